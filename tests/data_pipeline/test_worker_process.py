"""A worker process uses its memory again instead of asking the system for it; that it ends with its parent is in tests/multiprocess."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import resource
from data_pipeline.worker_process import start_worker

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        buffers = [bytearray(4 << 20) for _ in range(3)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

page_faults()
usual = page_faults()
start_worker(0, 1)
page_faults()
print(usual, page_faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the settings are those of glibc's allocator")
def test_freed_memory_is_used_again():
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=root, capture_output=True, text=True, check=True)
    usual, kept = map(int, done.stdout.split())
    assert kept < 200 < usual
