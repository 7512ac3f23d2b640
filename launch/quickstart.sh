#!/usr/bin/env bash
# Installs everything into a virtual environment and runs the main job at the tiny size, on any machine with Python 3.11 or newer:
# draws scenes, packs them into shards, trains, evaluates on held-out scenes against the untrained model, and segments an image.
# Run again it continues where it stopped; what is done is not done again.
#
#   bash launch/quickstart.sh [FOLDER]      (default: runs/quickstart)
#
#   SEGEARTH_R2_DATA   a folder of real images to take the picture from (default: ../shared/data; a drawn scene where it is absent)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
install_environment requirements.txt
use_cpu_by_default

folder="${1:-runs/quickstart}"
mkdir -p "$folder"
segearth() { "$PYTHON" -m segearth_r2_jax "$@"; }
step() { printf '\n== %s (%d:%02d)\n' "$1" $((SECONDS / 60)) $((SECONDS % 60)); }
SECONDS=0

step "1/5 drawing scenes with known masks"
"$PYTHON" -m data_pipeline.synthesize --output "$folder/scenes" --world simple --train 1500 --test 60 --size 256 --seed 0

step "2/5 packing them into TFRecord shards"
if [ ! -e "$folder/shards/manifest.json" ]; then
  "$PYTHON" -m data_pipeline.build_shards --source lasers --input "$folder/scenes" --output "$folder/shards" --split train
fi

step "3/5 training the tiny preset"
segearth train --config configs/segearth_r2_tiny.py --workdir "$folder/model" --config.data.shards="$folder/shards"
segearth train --config configs/segearth_r2_tiny.py --workdir "$folder/untrained" --config.data.shards="$folder/shards" --config.num_steps=0

step "4/5 evaluating on held-out scenes: untrained, then trained"
for model in untrained model; do
  echo "-- $model"
  segearth evaluate --checkpoint "$folder/$model" --data "$folder/scenes" --benchmark lasers --output "$folder/evaluation/$model" --max-new-tokens 48
done
"$PYTHON" - "$folder/evaluation" << 'PYTHON'
import json, pathlib, sys
giou = {name: json.loads((pathlib.Path(sys.argv[1]) / name / "report.json").read_text())["all"]["gIoU"] * 100 for name in ("untrained", "model")}
print(f"gIoU on held-out scenes: untrained {giou['untrained']:.2f}, trained {giou['model']:.2f}")
PYTHON

step "5/5 segmenting an image"
data="${SEGEARTH_R2_DATA:-../shared/data}"
image="$data/lasers_sample/test/images/mmseg_tests__loveda__img_dir__1.png" instruction="all water"
if [ ! -e "$image" ]; then
  image="$(find "$folder/scenes/test/images" -name '*.png' | sort | head -n 1)" instruction="all buildings"
fi
segearth predict "$image" --instruction "$instruction" --checkpoint "$folder/model" --output "$folder/predictions"

printf '\ndone in %d:%02d. Pictures:\n' $((SECONDS / 60)) $((SECONDS % 60))
find "$folder/predictions" "$folder/model/samples" -name '*.png' | sort
