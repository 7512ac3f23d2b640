"""Between the reference's `config.json` (MiphaPhiConfig of a merged SegEarth-R2 checkpoint) and `SegEarthR2Config`.

The file describes the language model and the SigLIP tower; the mask branch it only switches on. What it does not say is read off
the shapes of the stored tensors. An attribute that would change what the network computes is honoured or refused, never ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from segearth_r2_jax.errors import UserError
from segearth_r2_jax.models.mask_decoder import MaskDecoderConfig
from segearth_r2_jax.models.phi import PhiConfig
from segearth_r2_jax.models.pixel_decoder import PixelDecoderConfig
from segearth_r2_jax.models.segearth_r2 import SegEarthR2Config
from segearth_r2_jax.models.siglip import SiglipConfig
from segearth_r2_jax.models.swin import SwinConfig

_MOST_LAYERS = 1000

Shapes = Mapping[str, Sequence[int]]

# Attributes that change numbers, and the values that this network computes. An absent attribute has the first one, except the
# activations, whose defaults in the reference differ from what its weights were trained with.
_LANGUAGE = {
    "model_type": ("mipha_phi",),
    "hidden_act": ("gelu_new", "gelu_pytorch_tanh"),
    "qk_layernorm": (False,),
    "rope_scaling": (None,),
    "rope_parameters": (None,),
    "tie_word_embeddings": (False,),
    "embd_pdrop": (0.0,),
    "attention_dropout": (0.0,),
    "quantization_config": (None,),
}
_VISION = {"num_channels": (3,), "attention_dropout": (0.0,), "mm_vision_select_feature": ("patch", "cls_patch")}
_VISION_REQUIRED = {"hidden_act": ("gelu_pytorch_tanh",)}
_PROJECTOR_REQUIRED = {"mm_projector_type": ("mlp2x_gelu",)}

# What neither the reference's config.json nor a shape tells (sizes of the mask branch, which are in its yaml; the prompt template) is
# written under this name on export and read again, so that a network with other sizes survives the round trip.
EXTRA = "segearth_r2_jax"

# The prompt with which the reference evaluates its own weights.
REFERENCE_TEMPLATE = "eval_llama2"


def config_from_reference(config: Mapping[str, Any], shapes: Shapes) -> SegEarthR2Config:
    """The configuration of the network that the reference builds from `config` and loads tensors of `shapes` (by name) into.

    Raises:
        UserError: an attribute is missing or has a value that this network does not compute; a tensor is missing.
    """
    if "llm_dim" in config:
        config = _expand_short_names(config)
    vision = _section(config, "vision_tower")
    _require(config, _LANGUAGE, "config.json")
    _require(vision, _VISION, "config.json, vision_tower")
    _require(vision, _VISION_REQUIRED, "config.json, vision_tower", needed=True)
    _require(_section(config, "mm_projector"), _PROJECTOR_REQUIRED, "config.json, mm_projector", needed=True)
    heads = _get(config, "num_attention_heads")
    if (config.get("num_key_value_heads") or heads) != heads:
        raise UserError(f"config.json: num_key_value_heads {config['num_key_value_heads']} differs from num_attention_heads {heads}")
    try:
        extra = config.get(EXTRA, {})
        swin = _swin(shapes)
        built = SegEarthR2Config(
            siglip=SiglipConfig(
                hidden_size=_get(vision, "hidden_size"),
                intermediate_size=_get(vision, "intermediate_size"),
                num_layers=_layers(vision),
                num_heads=_get(vision, "num_attention_heads"),
                patch_size=_get(vision, "patch_size"),
                image_size=_get(vision, "image_size"),
                select_layer=_get(vision, "mm_vision_select_layer"),
                layer_norm_eps=_get(vision, "layer_norm_eps"),
            ),
            phi=PhiConfig(
                vocab_size=_shape(shapes, "lm_head.weight")[0],
                embed_rows=_shape(shapes, "model.embed_tokens.weight")[0],
                hidden_size=_get(config, "hidden_size"),
                intermediate_size=_get(config, "intermediate_size"),
                num_layers=_layers(config),
                num_heads=heads,
                rotary_fraction=_get(config, "partial_rotary_factor"),
                rope_theta=config.get("rope_theta", 1e4),
                layer_norm_eps=config.get("layer_norm_eps", 1e-5),
                residual_dropout=config.get("resid_pdrop", 0.0),
            ),
            swin=swin,
            pixel_decoder=_pixel_decoder(shapes, swin, extra.get("pixel_decoder_heads", 8)),
            mask_decoder=_mask_decoder(shapes, extra.get("mask_decoder_heads", 8)),
            image_size=extra.get("image_size", 1024),
        )
        return SegEarthR2Config.from_dict(built.to_dict())  # which checks the types
    except (ValueError, TypeError, AttributeError, IndexError, ZeroDivisionError) as error:  # a number that is a string, a flat table, ...
        raise UserError(f"config.json and the stored tensors do not describe a network: {error}") from error


def reference_config(config: SegEarthR2Config, original: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The reference's `config.json` for `config`; what only the reference knows is taken from `original`, where it is known.

    `config_from_reference` of the result (with the exported tensors' shapes) computes the same as `config`.
    """
    original = dict(original or {})
    if "llm_dim" in original:
        original = {}
    siglip, phi = config.siglip, config.phi
    sections = original.get("vision_config", {})
    vision = {
        "model_type": "mipha_vision_model",
        "hidden_act": "gelu_pytorch_tanh",
        "mm_vision_select_feature": "patch",
        **sections.get("vision_tower", {}),
        "hidden_size": siglip.hidden_size,
        "intermediate_size": siglip.intermediate_size,
        "num_hidden_layers": siglip.num_layers,
        "num_attention_heads": siglip.num_heads,
        "patch_size": siglip.patch_size,
        "image_size": siglip.image_size,
        "mm_vision_select_layer": siglip.select_layer,
        "layer_norm_eps": siglip.layer_norm_eps,
    }
    projector = {
        "model_type": "mipha_projector",
        "mm_projector_type": "mlp2x_gelu",
        **sections.get("mm_projector", {}),
        "mm_hidden_size": siglip.hidden_size,
        "hidden_size": phi.hidden_size,
    }
    return {
        "architectures": ["SegEarthR2"],
        "model_type": "mipha_phi",
        "hidden_act": "gelu_new",
        "mask_decode_train": True,
        "swin_type": "base",
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        **original,
        "vocab_size": phi.embed_rows,
        "hidden_size": phi.hidden_size,
        "intermediate_size": phi.intermediate_size,
        "num_hidden_layers": phi.num_layers,
        "num_attention_heads": phi.num_heads,
        "num_key_value_heads": phi.num_heads,
        "partial_rotary_factor": phi.rotary_fraction,
        "rope_theta": phi.rope_theta,
        "layer_norm_eps": phi.layer_norm_eps,
        "resid_pdrop": phi.residual_dropout,
        "vision_config": {**sections, "vision_tower": vision, "mm_projector": projector},
        EXTRA: {
            "pixel_decoder_heads": config.pixel_decoder.num_heads,
            "mask_decoder_heads": config.mask_decoder.num_heads,
            "image_size": config.image_size,
        },
    }


def _swin(shapes: Shapes) -> SwinConfig:
    tower = "model.vision_tower_mask"
    stages = _count(shapes, f"{tower}.layers")
    first = f"{tower}.layers.0.blocks.0"
    tables = [_shape(shapes, f"{tower}.layers.{s}.blocks.0.attn.relative_position_bias_table") for s in range(stages)]
    patch = _shape(shapes, f"{tower}.patch_embed.proj.weight")
    return SwinConfig(
        embed_dim=patch[0],
        depths=tuple(_count(shapes, f"{tower}.layers.{s}.blocks") for s in range(stages)),
        num_heads=tuple(table[1] for table in tables),
        window=(math.isqrt(tables[0][0]) + 1) // 2,
        mlp_ratio=_shape(shapes, f"{first}.mlp.fc1.weight")[0] // patch[0],
        patch_size=patch[2],
    )


def _pixel_decoder(shapes: Shapes, swin: SwinConfig, heads: int) -> PixelDecoderConfig:
    layers = "pixel_decoder.transformer.encoder.layers"
    levels = _shape(shapes, "pixel_decoder.transformer.level_embed")[0]
    return PixelDecoderConfig(
        in_channels=swin.channels,
        conv_dim=_shape(shapes, "pixel_decoder.input_proj.0.0.weight")[0],
        mask_dim=_shape(shapes, "pixel_decoder.mask_features.weight")[0],
        num_layers=_count(shapes, layers),
        num_heads=heads,
        num_points=_shape(shapes, f"{layers}.0.self_attn.attention_weights.bias")[0] // (levels * heads),
        ffn_dim=_shape(shapes, f"{layers}.0.linear1.weight")[0],
    )


def _mask_decoder(shapes: Shapes, heads: int) -> MaskDecoderConfig:
    ffn = "predictor.transformer_ffn_layers"
    return MaskDecoderConfig(
        hidden_dim=_shape(shapes, "predictor.decoder_norm.weight")[0],
        num_heads=heads,
        num_layers=_count(shapes, ffn),
        ffn_dim=_shape(shapes, f"{ffn}.0.linear1.weight")[0],
        mask_dim=_shape(shapes, "predictor.mask_embed.layers.2.weight")[0],
    )


def _expand_short_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """The compact form in which the reference's published test numbers state their sizes -> the form of a checkpoint's config.json."""
    vision = {
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
        "hidden_size": config["vis_dim"],
        "intermediate_size": config["vis_ff"],
        "num_hidden_layers": config["vis_layers"],
        "num_attention_heads": config["vis_heads"],
        "image_size": config["vis_image"],
        "patch_size": config["vis_patch"],
        "mm_vision_select_layer": config["vis_select"],
    }
    if config["img_h"] != config["img_w"]:
        raise UserError(f"config.json: the image is a square; img_h {config['img_h']} differs from img_w {config['img_w']}")
    return {
        "hidden_size": config["llm_dim"],
        "intermediate_size": config["llm_ff"],
        "num_hidden_layers": config["llm_layers"],
        "num_attention_heads": config["llm_heads"],
        "partial_rotary_factor": 0.4,
        "vision_config": {"vision_tower": vision, "mm_projector": {"mm_projector_type": "mlp2x_gelu"}},
        EXTRA: {"pixel_decoder_heads": config["nheads"], "mask_decoder_heads": config["nheads"], "image_size": config["img_h"]},
    }


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = (config.get("vision_config") or {}).get(name)
    if not isinstance(section, Mapping):
        raise UserError(f"config.json: no vision_config.{name}; a merged SegEarth-R2 checkpoint has it")
    return section


def _get(section: Mapping[str, Any], name: str) -> Any:
    if section.get(name) is None:
        raise UserError(f"config.json: no {name}")
    return section[name]


def _layers(section: Mapping[str, Any]) -> int:
    # The table of names is built before it is held against the file: a number from nowhere must not make it endless.
    layers = _get(section, "num_hidden_layers")
    if isinstance(layers, int) and layers > _MOST_LAYERS:
        raise UserError(f"config.json: num_hidden_layers is {layers}; expected at most {_MOST_LAYERS}")
    return layers


def _require(section: Mapping[str, Any], values: Mapping[str, tuple[Any, ...]], where: str, *, needed: bool = False) -> None:
    for name, allowed in values.items():
        if name not in section and needed:
            raise UserError(f"{where}: no {name}; expected {allowed[0]!r}")
        if section.get(name, allowed[0]) not in allowed:
            expected = " or ".join(repr(value) for value in allowed)
            raise UserError(f"{where}: {name} is {section[name]!r}; this network computes {expected} only")


def _shape(shapes: Shapes, name: str) -> Sequence[int]:
    if name not in shapes:
        raise UserError(f"missing key {name}: a merged SegEarth-R2 checkpoint has it")
    return shapes[name]


def _count(shapes: Shapes, prefix: str) -> int:
    """How many numbers n there are with tensors named `prefix.n.*`."""
    return len({name[len(prefix) + 1 :].split(".")[0] for name in shapes if name.startswith(f"{prefix}.")})
