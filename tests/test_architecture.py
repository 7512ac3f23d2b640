"""The direction of imports: each room imports only what stands below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PRODUCT = "segearth_r2_jax"

# Room -> the rooms it may import. Every room may import its own modules, `errors` and `dataclass_io`.
ALLOWED = {
    "errors": set(),
    "dataclass_io": set(),
    "restricted_pickle": set(),
    "placement": set(),
    "kernels": {"placement"},
    "models": {"kernels", "placement"},
    "inputs": set(),
    "raster": set(),
    "objectives": {"kernels", "models"},
    "sharding": {"models", "placement"},
    "checkpoints": {"models"},
    "data_pipeline": {"inputs", "raster"},
    "training": {"objectives", "models", "placement", "sharding", "checkpoints", "inputs", "data_pipeline", "raster"},
    "inference": {"models", "inputs", "checkpoints", "raster"},
    "evaluation": {"inference", "inputs", "raster"},
    "ahead_of_time": {"training", "inference", "models", "sharding", "inputs"},
    "configs": {"models", "objectives", "sharding", "training"},
    "cli": {
        "training",
        "inference",
        "evaluation",
        "checkpoints",
        "models",
        "inputs",
        "raster",
        "data_pipeline",
        "sharding",
        "ahead_of_time",
    },
    "__main__": {"cli"},
}
EVERYWHERE = {"errors", "dataclass_io", "restricted_pickle"}


def _room(module: str) -> str | None:
    """The room of a dotted module name, None if it is not ours."""
    parts = module.split(".")
    if parts[0] in ("data_pipeline", "configs"):
        return parts[0]
    if parts[0] == PRODUCT:
        return parts[1] if len(parts) > 1 else "__init__"
    return None


def _imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} if node.module == PRODUCT else {node.module}
    return names


def _files() -> list[Path]:
    return sorted(path for folder in (PRODUCT, "data_pipeline", "configs") for path in (REPOSITORY / folder).rglob("*.py"))


def _module(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)


@pytest.mark.parametrize("path", _files(), ids=_module)
def test_a_room_imports_only_what_stands_below_it(path):
    room = _room(_module(path))
    if room == "__init__":
        return
    foreign = {_room(name) for name in _imports(path)} - {None, room} - EVERYWHERE
    assert foreign <= ALLOWED[room], f"{room} must not import {sorted(foreign - ALLOWED[room])}"


def test_the_rooms_form_no_circle():
    done: set[str] = set()
    while len(done) < len(ALLOWED):
        ready = {room for room, below in ALLOWED.items() if below <= done} - done
        assert ready, f"circle among {sorted(ALLOWED.keys() - done)}"
        done |= ready


def test_modules_form_no_circle():
    modules = {_module(path).removesuffix(".__init__"): _imports(path) for path in _files()}
    done: set[str] = set()
    while len(done) < len(modules):
        ready = {name for name, imports in modules.items() if {i for i in imports if i in modules and i != name} <= done} - done
        assert ready, f"circle among {sorted(modules.keys() - done)}"
        done |= ready


# Computes with PyTorch where it is installed (`convert --verify`); imported when that is asked for.
TORCH = f"{PRODUCT}.checkpoints.torch_forward"


@pytest.mark.parametrize("path", _files(), ids=_module)
def test_torch_is_imported_by_one_module(path):
    assert _module(path) == TORCH or not {name for name in _imports(path) if name.split(".")[0] == "torch"}
