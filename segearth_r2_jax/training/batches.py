"""The batches of a run: the loader its configuration asks for, and batches that lie on the devices before their step begins."""

from __future__ import annotations

import collections
import concurrent.futures
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from data_pipeline.loader import Loader, LoaderConfig, open_shards
from segearth_r2_jax.inputs.tokenizer import Tokenizer
from segearth_r2_jax.sharding.mesh import data_shard
from segearth_r2_jax.sharding.rules import batch_sharding
from segearth_r2_jax.training.run_config import RunConfig

# How often the wait for a batch looks whether the devices have run out of work, in seconds.
_LOOK = 0.005


def loader_config(config: RunConfig) -> LoaderConfig:
    """The loader's configuration: what the run says of its data, and the sizes that the model asks for."""
    return LoaderConfig(
        batch_size=config.data.batch_size,
        image_size=config.model.image_size,
        siglip_size=config.model.siglip.image_size,
        num_image_tokens=config.model.siglip.num_tokens,
        token_buckets=config.data.token_buckets,
        max_masks=config.data.max_masks,
        mask_canvas=config.data.mask_canvas,
        template=config.data.template,
        seed=config.seed,
        workers=config.data.workers,
        on_corrupt=config.data.on_corrupt,
    )


def open_loader(shards: str, tokenizer: Tokenizer, config: LoaderConfig, mesh: Mesh, *, split: str = "train") -> Loader:
    """The loader of the rows that this process gives to each batch on `mesh`."""
    index, count = data_shard(mesh)
    return Loader(open_shards(shards, split), tokenizer, config, process_index=index, process_count=count)


def to_devices(rows: dict[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    """The global batch of which this process has `rows`. The transfer goes on in the background."""
    return {key: jax.make_array_from_process_local_data(sharding, value) for key, value in rows.items()}


class Fetched(NamedTuple):
    """records: the numbers of this process's records; arrays: the global batch; loader_state: of the loader after this batch."""

    records: np.ndarray
    arrays: dict[str, jax.Array]
    loader_state: dict[str, Any]


class Prefetch:
    """The next `count` batches of a loader; `ahead` of them are on the devices, or on their way, before they are asked for.

    A thread of its own waits for the loader, so that a slow batch delays no step whose own batch is there. The loader itself is ahead
    of the training by these batches: what a checkpoint needs is the `loader_state` of the last batch that was used.

    Attributes:
        starved: seconds in which a batch was waited for while the devices had nothing to do.
    """

    def __init__(self, loader: Loader, mesh: Mesh, count: int, *, ahead: int = 2):
        self._loader = loader
        self._sharding = batch_sharding(mesh)
        self._left = count
        self._waiting: collections.deque[concurrent.futures.Future[Fetched]] = collections.deque()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self.starved = 0.0
        for _ in range(ahead):
            self._ask()

    def take(self, idle: Callable[[], bool]) -> Fetched:
        """The next batch; `idle` says whether the devices have nothing to do.

        Raises:
            UserError: a record cannot be trained on.
        """
        future = self._waiting.popleft()
        self._ask()
        while not future.done():
            starving, began = idle(), time.perf_counter()
            concurrent.futures.wait([future], timeout=_LOOK)
            if starving:
                self.starved += time.perf_counter() - began
        return future.result()

    def close(self) -> None:
        """Ends the thread; the loader may then be closed."""
        self._thread.shutdown(cancel_futures=True)

    def _ask(self) -> None:
        if self._left:
            self._left -= 1
            self._waiting.append(self._thread.submit(self._fetch))

    def _fetch(self) -> Fetched:
        rows = next(self._loader)
        state = self._loader.get_state()
        return Fetched(rows["record_index"], to_devices(rows, self._sharding), state)
