"""The command `segearth-r2`: finds the verb, runs it, and turns a UserError into one line and exit status 2
(wrong input), a Preempted into one line and exit status 75 (the same command continues).

A verb is a module here with `HELP`, `add_arguments(parser)` and `run(args)`. What is slow (JAX) is imported inside `run`: help and
mistakes in the arguments answer at once. A verb whose parser has an argument `overrides` also finds there the arguments that the
parser does not know, such as `--config.key=value`.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import sys
from collections.abc import Sequence

from segearth_r2_jax.cli.quiet import silence_libraries
from segearth_r2_jax.errors import PREEMPTED, Preempted, UserError

PROGRAM = "segearth-r2"
VERBS = ("predict", "train", "evaluate", "convert", "compile")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line `arguments` (default: sys.argv). Exits with 2 on wrong input, 75 when preempted, 130 when interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Say what to find in an aerial or satellite image and get it as masks.", allow_abbrev=False
    )
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    asked = next((word for word in arguments if not word.startswith("-")), None)
    modules = {verb: importlib.import_module(f"segearth_r2_jax.cli.{verb}") for verb in VERBS}
    for verb, module in modules.items():
        subparser = subparsers.add_parser(verb, help=module.HELP, description=module.HELP, allow_abbrev=False)
        if verb == asked:
            module.add_arguments(subparser)
    args, unknown = parser.parse_known_args(arguments)
    if unknown and not hasattr(args, "overrides"):
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if unknown:
        args.overrides = [*args.overrides, *unknown]
    silence_libraries()
    try:
        modules[args.verb].run(args)
    except UserError as error:
        # One line, whatever names from files are in it.
        print(f"{PROGRAM}: error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        sys.exit(2)
    except Preempted as end:
        print(f"{PROGRAM}: {end}", file=sys.stderr)
        sys.exit(PREEMPTED)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"{PROGRAM}: error: {error.strerror}{f': {error.filename}' if error.filename else ''}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        sys.exit(130)
