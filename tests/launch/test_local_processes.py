"""Four processes of this machine, started by `local_processes.py` through `runtime.py`, join and compute together.

In the place of the command line stands a sum over all of them, which takes seconds. Training and evaluation in several processes are
compared with one process in tests/multiprocess.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from launched import LAUNCH

VERB = """
import json
import jax, jax.numpy as jnp, numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

def main(arguments):
    by_device = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))
    own = np.full(jax.local_device_count(), 10.0**jax.process_index())
    total = jax.jit(jnp.sum)(jax.make_array_from_process_local_data(by_device, own))
    gathered = multihost_utils.process_allgather(np.array(jax.process_index())).tolist()
    print(json.dumps([arguments, jax.process_index(), jax.device_count(), float(total), gathered]), flush=True)
"""


def test_four_processes_compute_together(tmp_path: Path):
    package = tmp_path / "segearth_r2_jax" / "cli"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").touch()
    shutil.copy(LAUNCH.parent / "segearth_r2_jax" / "cli" / "compilation_cache.py", package)
    (package / "main.py").write_text(VERB)
    command = [sys.executable, str(LAUNCH / "local_processes.py"), "-n", "4", "--cpu-devices", "2", "train", "--config=c.py"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = sorted(line for line in result.stdout.splitlines() if "c.py" in line)
    said = [(line[:4], *json.loads(line[4:])) for line in lines]
    assert said == [(f"[{n}] ", ["train", "--config=c.py"], n, 8, 2222.0, [0, 1, 2, 3]) for n in range(4)]
