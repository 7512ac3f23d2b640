"""Has a language model say the grammar's sentences in other words, and keeps what still means the same masks.

Every reply is stored in a cache file, so that a second run asks nothing twice and gives the same rows.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_pipeline.compose.chat_endpoint import ChatEndpoint, EndpointError
from data_pipeline.compose.rewriting_check import fault
from segearth_r2_jax.errors import UserError

Row = dict[str, Any]
# So many failures one after the other mean that the endpoint is not there at all.
_PATIENCE = 10

SYSTEM = (
    "You rephrase instructions for finding things in aerial images. You get a JSON object with an instruction and its answer. "
    "Say both in other words, natural and varied, without changing what is asked for. Keep every name of a thing, every colour, size, "
    "number, order and place in the image. Do not add any. In the answer keep each <p>...</p>[SEG] exactly as it is, in the same order. "
    "If the instruction describes a thing without naming it, do not name it either. Keep a short instruction to one sentence, and a long "
    'one long. Reply with one JSON object {"instruction": "...", "answer": "..."} and nothing else.'
)


class Cache:
    """Replies by question in a file of JSON lines. A line that was cut off by a kill is asked for again."""

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()
        self._replies: dict[str, str] = {}
        if path.exists():
            try:
                lines = path.read_bytes().splitlines()
            except OSError as error:
                raise UserError(f"--rewrite-cache {path}: cannot be read ({error.strerror})") from None
            for line in lines:
                try:
                    entry = json.loads(line)
                    self._replies[str(entry["key"])] = str(entry["reply"])
                except (ValueError, KeyError, TypeError):
                    continue
            if lines and not self._replies:
                raise UserError(f"--rewrite-cache {path}: is not a cache of rewritings; name another file")

    def get(self, key: str) -> str | None:
        """The reply that was given before, or None."""
        return self._replies.get(key)

    def put(self, key: str, reply: str) -> None:
        """Stores a reply at once."""
        with self._lock:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                # After a kill in the middle of a line the next one begins on its own.
                if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                    file.write(b"\n")
                file.write(json.dumps({"key": key, "reply": reply}).encode() + b"\n")
            self._replies[key] = reply


@dataclasses.dataclass
class Rewriter:
    """Rewrites rows in place; `names` are the data set's categories that the lexicon may lack."""

    endpoint: ChatEndpoint
    cache: Cache
    concurrency: int = 4
    names: tuple[str, ...] = ()
    progress: bool = True

    def __post_init__(self):
        self._failures = 0

    def __call__(self, rows: list[Row]) -> Mapping[str, Any]:
        """Asks for other words for every row and returns counts: rewritten, from the cache, kept as they were by reason.

        A row that was rewritten keeps the grammar's words under `grammar`. Raises UserError where the endpoint cannot be used at all.
        """
        counts: Counter[str] = Counter()
        cached = 0
        bar = tqdm(total=len(rows), desc="rewriting", unit=" rows", disable=not (self.progress and sys.stderr.isatty()))
        with bar, concurrent.futures.ThreadPoolExecutor(self.concurrency) as pool:
            try:
                for row, (reply, from_cache, failure) in zip(rows, pool.map(self._reply, rows), strict=True):
                    cached += from_cache
                    reason = failure or self._apply(row, reply)
                    counts[reason or "rewritten"] += 1
                    bar.update()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        kept = {reason: counts[reason] for reason in sorted(counts) if reason != "rewritten"}
        return {"model": self.endpoint.model, "rewritten": counts["rewritten"], "from_cache": cached, "kept": kept}

    def _reply(self, row: Row) -> tuple[str, bool, str | None]:
        """(reply, whether it came from the cache, why there is none)."""
        question = json.dumps({"instruction": row["description"], "answer": row["answer"]}, ensure_ascii=False)
        key = hashlib.sha256(json.dumps([self.endpoint.model, SYSTEM, question]).encode()).hexdigest()
        stored = self.cache.get(key)
        if stored is not None:
            return stored, True, None
        try:
            reply = self.endpoint.ask(SYSTEM, question)
        except EndpointError as error:
            self._failures += 1
            if self._failures >= _PATIENCE:
                failed = f"{self._failures} questions in a row failed ({error})"
                raise UserError(f"{self.endpoint.address}: {failed}; what was answered is kept in {self.cache.path}") from None
            return "", False, f"endpoint: {error}"
        self._failures = 0
        self.cache.put(key, reply)
        return reply, False, None

    def _apply(self, row: Row, reply: str) -> str | None:
        """Puts the new words into the row, or says why not."""
        found = re.search(r"\{.*\}", reply, re.DOTALL)
        try:
            content = json.loads(found[0]) if found else None
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, Mapping):
            return "reply is not JSON"
        instruction, answer = content.get("instruction"), content.get("answer")
        reason = fault(row, instruction, answer, self.names)
        if reason is not None:
            return reason
        if (instruction, answer) == (row["description"], row["answer"]):
            return "unchanged"
        row["grammar"] = {"description": row["description"], "answer": row["answer"]}
        row["description"], row["answer"] = instruction, answer
        return None


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """The command line's arguments."""
    group.add_argument("--rewrite-endpoint", metavar="URL", help="an OpenAI-compatible chat endpoint, e.g. http://127.0.0.1:8000/v1")
    group.add_argument("--rewrite-model", metavar="NAME", help="the model to ask")
    group.add_argument("--rewrite-key-env", metavar="VARIABLE", help="the environment variable that holds the key, if one is needed")
    group.add_argument("--rewrite-cache", type=Path, metavar="FILE", help="where replies are kept (default: OUTPUT.rewrites.jsonl)")
    group.add_argument("--rewrite-concurrency", type=int, default=4, metavar="N", help="questions at a time (default 4)")
    group.add_argument("--rewrite-timeout", type=float, default=60.0, metavar="S", help="seconds to wait for a reply (default 60)")


def from_options(options: argparse.Namespace, names: tuple[str, ...] = ()) -> Callable[[list[Row]], Mapping[str, Any]] | None:
    """The rewriter that the command line asks for, None if it asks for none. Raises UserError for options that do not fit together."""
    if options.rewrite_endpoint is None:
        given = [name for name in ("rewrite_model", "rewrite_key_env", "rewrite_cache") if getattr(options, name) is not None]
        if given:
            raise UserError(f"--{given[0].replace('_', '-')}: expected together with --rewrite-endpoint")
        return None
    if not options.rewrite_model:
        raise UserError("--rewrite-model: which model should be asked?")
    key = None
    if options.rewrite_key_env is not None:
        key = os.environ.get(options.rewrite_key_env, "").strip()
        if not key or not key.isprintable():
            raise UserError(f"--rewrite-key-env {options.rewrite_key_env}: the environment variable is not set or is no key")
    if not 1 <= options.rewrite_concurrency <= 256:
        raise UserError(f"--rewrite-concurrency {options.rewrite_concurrency}: expected 1 to 256")
    if not options.rewrite_timeout > 0:
        raise UserError(f"--rewrite-timeout {options.rewrite_timeout}: expected more than 0 seconds")
    output = Path(options.output)
    cache = Cache(options.rewrite_cache or output.with_name(output.name + ".rewrites.jsonl"))
    endpoint = ChatEndpoint(options.rewrite_endpoint, options.rewrite_model, key, options.rewrite_timeout)
    return Rewriter(endpoint, cache, options.rewrite_concurrency, names)


def told(counts: Mapping[str, Any]) -> str:
    """What was done, for a person."""
    total = counts["rewritten"] + sum(counts["kept"].values())
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts["kept"].items(), key=lambda item: -item[1]))
    return f"rewriting: {counts['rewritten']} of {total} rows have new words" + (f"; kept: {reasons}" if reasons else "")
