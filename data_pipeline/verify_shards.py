"""Compares a folder of shards with its manifest, byte for byte: after a copy to another machine, say.

    python -m data_pipeline.verify_shards DIR

A loader finds every damaged byte of the records it reads. This finds what no checksum of a single record can: a shard that is another
one's copy, records that were exchanged or left out.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from etils import epath

from data_pipeline.command_line import run_command
from data_pipeline.manifest import read_manifest
from data_pipeline.progress import Progress
from data_pipeline.random_access import cannot_read, file_size
from data_pipeline.shard_folder import ShardedRecords
from segearth_r2_jax.errors import UserError

_BLOCK = 2**22


def verify_shards(folder: str | os.PathLike[str]) -> tuple[int, int]:
    """Reads every shard of a folder, here or in cloud storage; how many shards and records there are.

    Raises UserError naming the first file that is not what the manifest says.
    """
    path = epath.Path(folder)
    splits = read_manifest(path)["splits"]
    shards = [entry for split in splits.values() for entry in split["shards"]]
    for split in splits:
        ShardedRecords(path, split)
    with Progress("verified", len(shards), "shards") as progress:
        for entry in shards:
            _verify(path / entry["file"], entry)
            progress.add(1)
    return len(shards), sum(entry["records"] for entry in shards)


def _verify(shard: epath.Path, entry: dict[str, Any]) -> None:
    if file_size(shard) != entry["bytes"]:
        raise UserError(f"{shard}: has {file_size(shard)} bytes, the manifest says {entry['bytes']}; build it, or copy it, again")
    digest = hashlib.sha256()
    try:
        with shard.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise cannot_read(shard, error) from None
    if digest.hexdigest() != entry["sha256"]:
        raise UserError(f"{shard}: its SHA-256 is not the one in the manifest; build it, or copy it, again")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m data_pipeline.verify_shards", description="Compares shards with their manifest.")
    parser.add_argument("folder", metavar="DIR", help="the folder of shards; gs:// too")
    options = parser.parse_args(arguments)

    def run() -> None:
        shards, records = verify_shards(options.folder)
        print(f"{options.folder}: {shards} shards with {records} records are as they were written")

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
