"""SegEarth-R2-3B on LaSeRS, the set-up of the published scripts: LoRA on q and v, both decoders and the LM head in full, the rest frozen.

    segearth-r2 train --config configs/segearth_r2_lasers.py --workdir gs://bucket/run \
        --config.data.shards=gs://bucket/lasers --config.initial_checkpoint=gs://bucket/start --config.tokenizer=gs://bucket/start

`initial_checkpoint` is a converted checkpoint (`segearth-r2 convert`) or, on a disk, PyTorch weights.
Published for this set-up: LaSeRS test gIoU 57.2, cIoU 67.9.
Not yet trained here: the published weights and LaSeRS have to be brought, and no figure of ours exists for time or accuracy.
"""

from ml_collections import ConfigDict

from segearth_r2_jax.models.layers import LoraConfig
from segearth_r2_jax.models.segearth_r2 import SegEarthR2Config
from segearth_r2_jax.sharding.mesh import MeshShape
from segearth_r2_jax.training.run_config import DataConfig, RunConfig
from segearth_r2_jax.training.step import StepConfig


def get_config() -> ConfigDict:
    return RunConfig(
        model=SegEarthR2Config.segearth_r2_3b(lora=LoraConfig(rank=8, alpha=16.0, dropout=0.05)),
        tokenizer="",
        data=DataConfig(shards="", batch_size=8, token_buckets=(896, 1024, 1280), max_masks=4, mask_canvas=1024, workers=8),
        mesh=MeshShape(data=-1, fsdp=-1),
        num_steps=5000,
        step=StepConfig(dtype="bfloat16", regularize=True, logits_chunk=256),
        trainable=("lora_", "^phi/lm_head", "^pixel_decoder", "^mask_decoder", "^seg_projector"),
        checkpoint_every=1000,
        picture_every=1000,
    ).to_config_dict()
