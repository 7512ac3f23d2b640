"""Whatever of the reference's kind lies at a path -> `ReferenceCheckpoint`: recognised by its files and by the names of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segearth_r2_jax.checkpoints.json_files import read_json
from segearth_r2_jax.checkpoints.reference_config import EXTRA
from segearth_r2_jax.checkpoints.sources.adapters import is_adapter_folder, lora_config, read_adapters
from segearth_r2_jax.checkpoints.sources.mask2former import is_mask2former
from segearth_r2_jax.checkpoints.sources.mipha import has_mask_branch, is_mipha, merged_config, read_mipha
from segearth_r2_jax.checkpoints.sources.peft_names import is_adapter
from segearth_r2_jax.checkpoints.sources.reference_checkpoint import (
    AS_STORED,
    EMBEDDING,
    Collection,
    Origin,
    ReferenceCheckpoint,
    missing_parts,
)
from segearth_r2_jax.checkpoints.sources.seg_token import with_seg_token
from segearth_r2_jax.checkpoints.sources.siglip import is_siglip
from segearth_r2_jax.checkpoints.sources.tokenizer_files import has_tokenizer
from segearth_r2_jax.checkpoints.sources.zero import LATEST, is_zero_folder, read_zero
from segearth_r2_jax.checkpoints.torch_files.state_dict import read_state_dict, stored_names
from segearth_r2_jax.errors import UserError

_CONFIG = "config.json"
_ASSEMBLE = "make the reference's starting point of it and the other sources with --assemble"


def is_source(path: Path) -> bool:
    """Whether `path` looks like something that `open_source` reads: a file, a folder of weights or adapters, a DeepSpeed checkpoint."""
    return path.is_file() or (path.is_dir() and (bool(stored_names(path)) or is_adapter_folder(path) or is_zero_folder(path)))


def open_source(
    path: Path, *, base: Path | None = None, lora_alpha: float | None = None, lora_rank: int | None = None
) -> ReferenceCheckpoint:
    """What lies at `path`, unread.

    path: a merged checkpoint (a folder with config.json, or a weights file beside it), a folder of PEFT adapters, or a DeepSpeed ZeRO
        checkpoint (the folder of `latest`, or of one step). Where a folder is a DeepSpeed checkpoint and something else, too, as those
        of transformers' trainer are, the DeepSpeed checkpoint is read, since only it has everything that was trained.
    base: the weights that a run started from, for what the run did not save: a merged or assembled checkpoint, or Mipha's folder.
    lora_alpha: of adapters whose files do not say it. lora_rank: expected of the adapters.

    Raises:
        UserError: nothing is there; it is damaged, of a kind that is no whole network, or does not fit its base.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if path.is_dir() and is_zero_folder(path):
        found, stage = read_zero(path)
        home = path if (path / LATEST).is_file() else path.parent
        kind = f"DeepSpeed ZeRO checkpoint, stage {'3' if stage == 3 else '1 or 2'}"
        return _run(kind, found, path, home, base, lora_alpha, lora_rank)
    if path.is_dir() and is_adapter_folder(path):
        if base is None:
            raise UserError(f"{path}: holds adapters only; give the weights that they were trained on with --base")
        return _run("PEFT adapters", read_adapters(path), path, path, base, lora_alpha, lora_rank)
    if base is not None:
        raise UserError(f"--base: only for adapters and DeepSpeed checkpoints; {path} holds neither")
    if lora_alpha is not None or lora_rank is not None:
        raise UserError(f"--lora-alpha, --lora-rank: only for adapters and DeepSpeed checkpoints; {path} holds neither")
    return with_seg_token(_open_merged(path))


def _open_merged(path: Path) -> ReferenceCheckpoint:
    tensors = {} if path.suffix == ".pkl" else read_state_dict(path)
    _refuse_parts(path, list(tensors))
    folder = path if path.is_dir() else path.parent
    config = read_json(folder / _CONFIG)
    origins = {name: Origin(str(path), name, AS_STORED) for name in tensors}
    return ReferenceCheckpoint(
        kind="merged SegEarth-R2 checkpoint",
        folder=folder,
        tensors=tensors,
        origins=origins,
        dropped=(),
        config=config,
        tokenizer=folder if has_tokenizer(folder) else None,
        template=_template(config),
    )


def _refuse_parts(path: Path, names: list[str]) -> None:
    """Raise UserError unless the names are those of a whole network."""
    if any(is_adapter(name) for name in names):
        raise UserError(f"{path}: holds adapters; expected them in a folder with their adapter_config.json, and --base")
    if has_mask_branch(names):
        return
    if path.suffix == ".pkl" or is_mask2former(names):
        raise UserError(f"{path}: a Mask2Former file has the mask branch only, no language model and no SigLIP tower; {_ASSEMBLE}")
    if is_mipha(names):
        raise UserError(f"{path}: a Mipha checkpoint has no Swin tower, no pixel decoder and no mask decoder; {_ASSEMBLE}")
    if is_siglip(names):
        raise UserError(f"{path}: a SigLIP checkpoint has the image tower only, no language model and no mask branch; {_ASSEMBLE}")
    raise UserError(f"{path}: no checkpoint that is known here; its first key is {min(names, default='none')}")


def _run(
    kind: str, found: Collection, path: Path, home: Path, base: Path | None, alpha: float | None, rank: int | None
) -> ReferenceCheckpoint:
    """What a training run saved, over the weights that it started from."""
    below = None if base is None else _open_base(Path(base))
    whole = found if below is None else found.put_over(below)
    if missing := missing_parts(whole.tensors):
        what = f"{path} and {base} have" if base is not None else f"{path} has"
        hint = (
            "an assembled checkpoint has it (--assemble)" if base is not None else "give the weights that the run started from with --base"
        )
        raise UserError(f"{what} no {', no '.join(missing)}; {hint}")
    lora = lora_config(whole.tensors, path, home, alpha=alpha, rank=rank)
    config = _run_config(home, below)
    rows = whole.tensors[EMBEDDING].shape[0] if whole.tensors[EMBEDDING].shape else 0
    tokenizer = home if has_tokenizer(home) else (below.tokenizer if below is not None else None)
    checkpoint = ReferenceCheckpoint(
        kind=kind + (" with adapters" if lora is not None and "adapters" not in kind else ""),
        folder=home,
        tensors=whole.tensors,
        origins=whole.origins,
        dropped=tuple(whole.dropped),
        config=merged_config(config, rows),
        lora=lora,
        tokenizer=tokenizer,
        template=_template(config),
    )
    return with_seg_token(checkpoint)


def _open_base(base: Path) -> ReferenceCheckpoint:
    """The weights under a run: a merged checkpoint, or Mipha's, whose mask branch the run must have."""
    if not base.exists():
        raise UserError(f"{base}: no such file or folder")
    if base.suffix != ".pkl" and is_mipha(list(read_state_dict(base))):
        found, config = read_mipha(base)
        folder = base if base.is_dir() else base.parent
        tokenizer = folder if has_tokenizer(folder) else None
        return ReferenceCheckpoint("Mipha", folder, found.tensors, found.origins, tuple(found.dropped), config, None, tokenizer)
    return _open_merged(base)


def _run_config(home: Path, below: ReferenceCheckpoint | None) -> Mapping[str, Any]:
    if (home / _CONFIG).is_file():
        return read_json(home / _CONFIG)
    if below is None:
        raise UserError(f"{home}: no {_CONFIG}; give the weights that the run started from with --base, or put their {_CONFIG} there")
    return below.config


def _template(config: Mapping[str, Any]) -> str | None:
    extra = config.get(EXTRA)
    return extra.get("template") if isinstance(extra, Mapping) else None
