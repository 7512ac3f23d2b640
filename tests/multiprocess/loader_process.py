"""One process of a run that only loads: it notes the records of every step, and can be killed at any moment.

    python loader_process.py '{"shards": ..., "tokenizer": ..., "log": ..., "index": 0, "count": 2, "workers": 1, "start": STATE or null}'

`log` receives one file per step, `POSITION-INDEX.json`, with the records of that step and the loader's state after it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from data_pipeline.loader import Loader, LoaderConfig, open_shards
from segearth_r2_jax.inputs.tokenizer import load_tokenizer


def main() -> None:
    job = json.loads(sys.argv[1])
    config = LoaderConfig(
        batch_size=8,
        image_size=16,
        siglip_size=8,
        num_image_tokens=4,
        token_buckets=tuple(job["buckets"]),
        max_masks=2,
        mask_canvas=16,
        seed=3,
        num_epochs=job["epochs"],
        workers=job["workers"],
    )
    with Loader(
        open_shards(job["shards"]), load_tokenizer(job["tokenizer"]), config, process_index=job["index"], process_count=job["count"]
    ) as loader:
        if job["start"] is not None:
            loader.set_state(job["start"])
        for batch in loader:
            state = loader.get_state()
            note = {"records": batch["record_index"].tolist(), "tokens": batch["token_ids"].shape[1], "state": state}
            path = Path(job["log"], f"{state['position']}-{job['index']}.json")
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(note))
            os.replace(partial, path)
            time.sleep(job["pause"])


if __name__ == "__main__":
    main()
