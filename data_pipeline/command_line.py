"""How every command of this package ends."""

from __future__ import annotations

import sys
from collections.abc import Callable

from segearth_r2_jax.errors import UserError


def run_command(action: Callable[[], None], interrupted: str = "nothing was written") -> int:
    """Runs a command; its exit status: 0, 2 where the input is wrong or a file cannot be written, 130 where it was interrupted.

    What is wrong is one line on standard error; `interrupted` says there what an interruption has left.
    """
    try:
        action()
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted: {interrupted}", file=sys.stderr)
        return 130
    return 0
