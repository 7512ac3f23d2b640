"""Weights to start from, wherever they lie: a checkpoint folder of this project, or PyTorch's files, straight onto the mesh."""

from __future__ import annotations

from pathlib import Path

import jax
from etils import epath

from segearth_r2_jax.checkpoints import manager
from segearth_r2_jax.checkpoints.reference_import import Import
from segearth_r2_jax.checkpoints.sources.open import is_source, open_source
from segearth_r2_jax.models.binding import Params


class StartWeights:
    """The parameters at `path`: DIR/base and the newest step of a checkpoint folder (also in a bucket), or whatever PyTorch weights
    `convert` reads without further arguments.

    Raises:
        UserError: PyTorch weights that are not those of a whole network.
    """

    def __init__(self, path: epath.PathLike):
        self.path = path
        pytorch = "://" not in str(path) and not manager.has_base(path) and manager.latest_step(path) is None and is_source(Path(path))
        self._incoming = Import(open_source(Path(path))) if pytorch else None

    def has_adapters(self) -> bool:
        """Whether low-rank adapters are among them."""
        if self._incoming is not None:
            return any("/lora_" in path for path in self._incoming.leaves)
        return manager.has_adapters(self.path)

    def load(self, abstract_params: Params, dtype: jax.typing.DTypeLike, *, select: str = "") -> Params:
        """Those in whose path the regular expression `select` is found, as `dtype`, with the shapes and shardings of `abstract_params`.

        Raises:
            UserError: the parameters are those of another network; a file is damaged.
        """
        if self._incoming is not None:
            return self._incoming.place(abstract_params, dtype, select=select)
        return manager.load_parameters(self.path, abstract_params, dtype, select=select)
