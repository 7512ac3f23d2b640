"""`segearth-r2 train`: trains, and continues by itself."""

from __future__ import annotations

import argparse
from pathlib import Path

from segearth_r2_jax.errors import UserError

HELP = "train on TFRecord shards; started again with the same arguments it continues"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="FILE", help="a file of configs/, with get_config()")
    parser.add_argument("--workdir", required=True, metavar="DIR", help="where checkpoints, logs and pictures go")
    parser.add_argument(
        "--profile",
        nargs="?",
        type=_positive,
        const=3,
        default=0,
        metavar="STEPS",
        help="trace STEPS steps (default: 3) of this start, from its third on, into WORKDIR/profile",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="--config.KEY=VALUE", help="replace a field of the configuration, e.g. --config.num_steps=100"
    )


def run(args: argparse.Namespace) -> None:
    from segearth_r2_jax.training.loop import train
    from segearth_r2_jax.training.run_config import RunConfig

    config = RunConfig.from_config_dict(read_config_file(args.config, args.overrides))
    train(config, args.workdir, overrides=args.overrides, profile_steps=args.profile)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of steps, got {text!r}")
    return int(text)


def read_config_file(path: str, overrides: list[str]):
    """The ConfigDict of a configuration file with overrides of the form `--config.key=value`.

    Raises:
        UserError: there is no such file, an override names no field, or its value has another type.
    """
    from absl import flags
    from ml_collections import config_flags

    file = path.partition(":")[0]
    if not Path(file).is_file():
        raise UserError(f"{file}: no such configuration file")
    for override in overrides:
        if not override.startswith("--config.") or "=" not in override:
            raise UserError(f"{override}: expected --config.KEY=VALUE")
    arguments = ["train", f"--config={path}", *overrides]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    try:
        values(arguments)
    except (flags.Error, KeyError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error
    return values.config
