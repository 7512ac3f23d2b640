"""Stands in for the package `wandb`: what a run hands to the service is appended to the file WANDB_CALLS, one JSON line per call."""

from __future__ import annotations

import json
import os


class Error(Exception):
    pass


def _note(**call: object) -> None:
    with open(os.environ["WANDB_CALLS"], "a", encoding="utf-8") as file:
        file.write(json.dumps(call) + "\n")


class Image:
    def __init__(self, pixels):
        self.shape = pixels.shape


class Run:
    def log(self, values: dict, *, step: int) -> None:
        told = {name: list(value.shape) if isinstance(value, Image) else value for name, value in values.items()}
        _note(call="log", step=step, values=told)

    def finish(self) -> None:
        _note(call="finish")


def init(*, project: str, id: str, name: str, resume: str, dir: str, config: dict) -> Run:
    if project == "closed":
        raise Error("api_key not configured\n(no-tty)")
    json.dumps(config)
    _note(call="init", project=project, id=id, name=name, resume=resume)
    return Run()
