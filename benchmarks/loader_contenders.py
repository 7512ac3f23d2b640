"""What `benchmarks.loader` compares: this loader, a PyTorch DataLoader with the reference's transforms, and a bare decoding loop.

Each is started once and then asked for samples in turns, so that all meet the machine in the same moods.
"""

from __future__ import annotations

import dataclasses
import io
import json
import multiprocessing
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipeline.loader import Loader, LoaderConfig, open_shards
from segearth_r2_jax.inputs.conversation import encode_training, expand, pad_row
from segearth_r2_jax.inputs.tokenizer import load_tokenizer

IMAGE_SIZE, SIGLIP_SIZE, IMAGE_TOKENS, BUCKET, MAX_MASKS = 1024, 384, 729, 1280, 8
BATCH = 8
TEMPLATE = "train_phi_v0"


def ours(shards: Path, tokenizer: Path, workers: int) -> Iterator[int]:
    """Numbers of samples, batch by batch, from this repository's loader; `workers` = 0 uses threads."""
    config = LoaderConfig(
        batch_size=BATCH,
        image_size=IMAGE_SIZE,
        siglip_size=SIGLIP_SIZE,
        num_image_tokens=IMAGE_TOKENS,
        token_buckets=(BUCKET,),
        max_masks=MAX_MASKS,
        too_many_masks="skip",
        workers=workers,
    )
    with Loader(open_shards(str(shards)), load_tokenizer(tokenizer), config) as loader:
        for batch in loader:
            yield len(batch["image"])


@dataclasses.dataclass
class ReferenceRows:
    """A map-style data set that does what the official `LaSeRSDataset` does with a row.

    Pillow reads the image, scales its longest side to 1024 (bilinear) and pads with 128; the pixels are normalised in float32, channels
    first. Masks are decoded by pycocotools at the image's size. Prompt and answer are tokenized. Its collator reads the image again with
    OpenCV (Pillow where that is absent), resizes it to 384 x 384 (bicubic), normalises it, and stacks and pads everything.
    """

    rows: list[dict[str, Any]]
    images: Path
    tokenizer: Path

    def __post_init__(self):
        self._loaded = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        import torch
        from pycocotools import mask as coco

        if self._loaded is None:
            self._loaded = load_tokenizer(self.tokenizer)
        row = self.rows[index]
        path = self.images / row["image_name"]
        image = Image.open(path).convert("RGB")
        width, height = image.size
        scale = IMAGE_SIZE / max(width, height)
        image = image.resize((int(width * scale + 0.5), int(height * scale + 0.5)), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
        missing = [(0, IMAGE_SIZE - pixels.shape[0]), (0, IMAGE_SIZE - pixels.shape[1]), (0, 0)]
        if any(after for _, after in missing):
            pixels = np.pad(pixels, missing, constant_values=128)
        chw = torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous().float()
        mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
        text = encode_training(self._loaded, TEMPLATE, row["description"], row["answer"])
        return {
            "path": str(path),
            "image": (chw - mean[:, None, None]) / std[:, None, None],
            "masks": [torch.from_numpy(coco.decode(mask))[None] for mask in row["mask"]],
            "text": pad_row(expand(text, IMAGE_TOKENS), BUCKET, MAX_MASKS),
        }

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        squashed = []
        for row in rows:
            small = Image.fromarray(_read_again(row["path"])).resize((SIGLIP_SIZE, SIGLIP_SIZE), Image.Resampling.BICUBIC)
            scaled = np.asarray(small).astype(np.float32) * np.float32(1 / 255)
            squashed.append(torch.from_numpy((scaled - np.float32(0.5)) / np.float32(0.5)).permute(2, 0, 1).contiguous())
        return {
            "image": torch.stack([row["image"] for row in rows]),
            "image_siglip": torch.stack(squashed),
            "masks": [mask for row in rows for mask in row["masks"]],
            **{key: torch.from_numpy(np.stack([row["text"][key] for row in rows])) for key in rows[0]["text"]},
        }


def _read_again(path: str) -> np.ndarray:
    try:
        import cv2
    except ImportError:
        return np.asarray(Image.open(path).convert("RGB"))
    cv2.setNumThreads(1)
    return cv2.cvtColor(cv2.imread(path), cv2.COLOR_BGR2RGB)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The training rows of a folder in the LaSeRS layout that have at most MAX_MASKS masks."""
    rows = json.loads((folder / "train" / "annotations" / "train_data.json").read_text())
    return [row for row in rows if len(row["mask"]) <= MAX_MASKS]


def reference(folder: Path, tokenizer: Path, workers: int) -> Iterator[int]:
    """Numbers of samples, batch by batch, from a PyTorch DataLoader over `ReferenceRows`."""
    import torch

    torch.set_num_threads(1)
    data = ReferenceRows(read_rows(folder), folder / "train" / "images", tokenizer)
    loader = torch.utils.data.DataLoader(
        data,
        batch_size=BATCH,
        sampler=torch.utils.data.RandomSampler(data, replacement=True, num_samples=10**9),
        num_workers=workers,
        collate_fn=data.collate,
        multiprocessing_context="spawn",
    )
    for batch in loader:
        yield len(batch["image"])


def decode_loop(folder: Path, tokenizer: Path, workers: int) -> Iterator[int]:
    """Numbers of samples from `workers` processes that read a file, decode it, and resize it for both towers; nothing leaves them."""
    context = multiprocessing.get_context("spawn")
    paths = [str(folder / "train" / "images" / row["image_name"]) for row in read_rows(folder)]
    slots, done = context.Semaphore(2 * workers), context.SimpleQueue()
    processes = [context.Process(target=_decode, args=(paths, slots, done, number), daemon=True) for number in range(workers)]
    for process in processes:
        process.start()
    try:
        while True:
            done.get()
            slots.release()
            yield BATCH
    finally:
        for process in processes:
            process.kill()
            process.join()


def _decode(paths: list[str], slots: Any, done: Any, seed: int) -> None:
    chance = random.Random(seed)
    while True:
        slots.acquire()
        for _ in range(BATCH):
            decode_and_resize(Path(chance.choice(paths)).read_bytes())
        done.put(os.getpid())


def decode_and_resize(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """The pixels for Swin and for SigLIP of an encoded image, and nothing else."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = IMAGE_SIZE / max(image.size)
    large = image.resize(tuple(int(side * scale + 0.5) for side in image.size), Image.Resampling.BILINEAR)
    return np.asarray(large), np.asarray(image.resize((SIGLIP_SIZE, SIGLIP_SIZE), Image.Resampling.BICUBIC))
