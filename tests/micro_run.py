"""A training run so small that it compiles in seconds: every part of the network is there."""

from __future__ import annotations

from pathlib import Path

from segearth_r2_jax.models.mask_decoder import MaskDecoderConfig
from segearth_r2_jax.models.phi import PhiConfig
from segearth_r2_jax.models.pixel_decoder import PixelDecoderConfig
from segearth_r2_jax.models.segearth_r2 import SegEarthR2Config
from segearth_r2_jax.models.siglip import SiglipConfig
from segearth_r2_jax.models.swin import SwinConfig
from segearth_r2_jax.objectives.mask_losses import PointSampling
from segearth_r2_jax.training.run_config import DataConfig, RunConfig
from segearth_r2_jax.training.schedules import OptimizerConfig
from segearth_r2_jax.training.step import StepConfig

TOKENIZER = Path(__file__).parent.parent / "segearth_r2_jax" / "inputs" / "tiny_tokenizer.json"


def micro_model(**phi: object) -> SegEarthR2Config:
    swin = SwinConfig(embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), window=4)
    return SegEarthR2Config(
        siglip=SiglipConfig(hidden_size=32, intermediate_size=48, num_layers=2, num_heads=2, patch_size=8, image_size=32),
        phi=PhiConfig(
            **{"vocab_size": 1024, "embed_rows": 1024, "hidden_size": 40, "intermediate_size": 64, "num_layers": 2, "num_heads": 2} | phi
        ),
        swin=swin,
        pixel_decoder=PixelDecoderConfig(
            in_channels=swin.channels, conv_dim=32, mask_dim=32, num_layers=1, num_heads=2, num_points=2, ffn_dim=32
        ),
        mask_decoder=MaskDecoderConfig(hidden_dim=32, num_heads=2, num_layers=1, ffn_dim=32, mask_dim=32),
        image_size=64,
    )


def micro_run(shards: Path | str, **changes: object) -> RunConfig:
    values = {
        "model": micro_model(),
        "tokenizer": str(TOKENIZER),
        "data": DataConfig(shards=str(shards), batch_size=2, token_buckets=(256,), max_masks=4, mask_canvas=64),
        "num_steps": 12,
        "optimizer": OptimizerConfig(learning_rate=1e-3),
        "step": StepConfig(points=PointSampling(num_points=32)),
        "frozen_dtype": "float32",
        "checkpoint_every": 3,
        "print_every": 1,
        "picture_every": 6,
    }
    return RunConfig(**(values | changes))
