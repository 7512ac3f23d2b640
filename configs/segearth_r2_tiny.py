"""The tiny preset on drawn scenes: every part of the full system, small enough to be trained from random weights on a laptop.

    python -m data_pipeline.synthesize --world simple --output runs/tiny/scenes --train 1500 --test 60
    python -m data_pipeline.build_shards --source lasers --input runs/tiny/scenes --output runs/tiny/shards
    segearth-r2 train --config configs/segearth_r2_tiny.py --workdir runs/tiny/model

`bash launch/quickstart.sh` does all of it. 600 steps take 5 to 7 minutes on 2 CPU cores and reach gIoU 26 (31 in another run) over the
nine test files of 60 held-out scenes (predicting every pixel: 8; untrained: 0).
"""

from pathlib import Path

from ml_collections import ConfigDict

from segearth_r2_jax.models.segearth_r2 import SegEarthR2Config
from segearth_r2_jax.objectives.mask_losses import PointSampling
from segearth_r2_jax.training.run_config import DataConfig, RunConfig
from segearth_r2_jax.training.schedules import OptimizerConfig
from segearth_r2_jax.training.step import StepConfig

TOKENIZER = Path(__file__).parent.parent / "segearth_r2_jax" / "inputs" / "tiny_tokenizer.json"


def get_config() -> ConfigDict:
    return RunConfig(
        model=SegEarthR2Config.tiny(vocab_size=1024),
        tokenizer=str(TOKENIZER),
        data=DataConfig(shards="runs/tiny/shards", batch_size=16, token_buckets=(192,), max_masks=3, mask_canvas=256),
        num_steps=600,
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_ratio=0.1, weight_decay=0.01, clip_norm=1.0),
        step=StepConfig(points=PointSampling(num_points=512)),
        checkpoint_every=200,
        print_every=50,
        picture_every=200,
    ).to_config_dict()
