"""Compiled programs, kept from one start to the next."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "JAX_COMPILATION_CACHE_DIR"


def keep_compiled_programs() -> None:
    """To be called before anything is compiled. They are kept in the folder that JAX_COMPILATION_CACHE_DIR names, by default in that of
    `default_folder`; an empty value keeps none. A default folder that cannot be written is done without.
    """
    import jax

    if VARIABLE in os.environ:
        return
    folder = default_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK | os.X_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # JAX keeps what took a second to compile. The start of a small network is made of programs that take less.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def default_folder() -> Path:
    """The folder of this user: under XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segearth-r2-jax"
