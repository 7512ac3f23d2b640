#!/usr/bin/env bash
# Installs everything into a virtual environment and runs the main job at the tiny size, on any machine with Python 3.11 or newer:
# draws scenes, packs them into shards, trains, evaluates on held-out scenes against the untrained model, and segments one image.
# Run again it continues where it stopped; what is done is not done again.
#
#   bash launch/quickstart.sh [FOLDER]      (default: runs/quickstart)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh
install_environment requirements.txt
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"

folder="${1:-runs/quickstart}"
mkdir -p "$folder"
segearth() { "$PYTHON" -m segearth_r2_jax "$@"; }
step() { printf '\n== %s\n' "$1"; }

step "1/5 drawing scenes with known masks"
"$PYTHON" -m data_pipeline.synthesize --output "$folder/scenes" --train 2400 --test 60 --size 256 --seed 0

step "2/5 packing them into TFRecord shards"
"$PYTHON" -m data_pipeline.build_shards --source lasers --input "$folder/scenes" --output "$folder/shards" --split train

step "3/5 training the tiny preset"
segearth train --config configs/segearth_r2_tiny.py --workdir "$folder/model" --config.data.shards="$folder/shards"
segearth train --config configs/segearth_r2_tiny.py --workdir "$folder/untrained" --config.data.shards="$folder/shards" --config.num_steps=0

step "4/5 evaluating on held-out scenes: untrained, then trained"
segearth evaluate --checkpoint "$folder/untrained" --data "$folder/scenes" --benchmark lasers --output "$folder/evaluation-untrained"
segearth evaluate --checkpoint "$folder/model" --data "$folder/scenes" --benchmark lasers --output "$folder/evaluation"
