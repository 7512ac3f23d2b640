"""What the makers publish of the chips that a run may meet: the peaks that utilisation and estimated times are measured against.

All figures are per device as JAX counts devices. That is one whole chip, but for TPU7x, where each of a chip's two cores is a device and
has half of the chip's figures (a v4 or v5p chip has two cores as well, but they are fused into one device, "megacore").

bfloat16 peaks are dense, without structured sparsity. `interconnect_bandwidth` is what one device can send to its neighbours at the same
time, all links together and one direction only: half of what is published as bidirectional.

Sources. TPUs: the page of each version under https://cloud.google.com/tpu/docs (v4, v5e, v5p, v6e, tpu7x); v4's interconnect is Jouppi et
al. 2023, "TPU v4: An Optically Reconfigurable Supercomputer" (6 links of 50 GB/s). GPUs: NVIDIA's data sheets of A100, H100, H200, L4, L40S
and DGX B200; their interconnect is NVLink, or PCIe x16 where there is none. Memory is published in GB and comes in GiB.
"""

from __future__ import annotations

import dataclasses

GB = 10**9
TERA = 10**12
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published limits of one device.

    bf16_flops: FLOP/s. hbm_bytes: bytes. hbm_bandwidth, interconnect_bandwidth: bytes/s.
    """

    name: str
    bf16_flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    interconnect_bandwidth: float


_A100_40 = Chip("A100 40GB", 312 * TERA, 40 * GIB, 1555 * GB, 300 * GB)
_A100_80 = Chip("A100 80GB", 312 * TERA, 80 * GIB, 2039 * GB, 300 * GB)

# (what a device kind has to begin with, the chip); the first that fits counts.
_CHIPS: tuple[tuple[str, Chip], ...] = (
    ("TPU v4", Chip("v4", 275 * TERA, 32 * GIB, 1200 * GB, 300 * GB)),
    ("TPU v5 lite", Chip("v5e", 197 * TERA, 16 * GIB, 819 * GB, 200 * GB)),
    ("TPU v5e", Chip("v5e", 197 * TERA, 16 * GIB, 819 * GB, 200 * GB)),
    ("TPU v5", Chip("v5p", 459 * TERA, 95 * GIB, 2765 * GB, 600 * GB)),
    ("TPU v6", Chip("v6e", 918 * TERA, 32 * GIB, 1638 * GB, 400 * GB)),
    ("TPU7x", Chip("7x", 1153.5 * TERA, 96 * GIB, 3690 * GB, 300 * GB)),
    ("NVIDIA A100-SXM4-40GB", _A100_40),
    ("NVIDIA A100-PCIE-40GB", dataclasses.replace(_A100_40, name="A100 40GB PCIe", interconnect_bandwidth=32 * GB)),
    ("NVIDIA A100 80GB PCIe", Chip("A100 80GB PCIe", 312 * TERA, 80 * GIB, 1935 * GB, 32 * GB)),
    ("NVIDIA A100", _A100_80),
    ("NVIDIA H100 PCIe", Chip("H100 PCIe", 756 * TERA, 80 * GIB, 2000 * GB, 64 * GB)),
    ("NVIDIA H100 NVL", Chip("H100 NVL", 835 * TERA, 94 * GIB, 3900 * GB, 300 * GB)),
    ("NVIDIA H100", Chip("H100 SXM", 989.4 * TERA, 80 * GIB, 3350 * GB, 450 * GB)),
    ("NVIDIA H200 NVL", Chip("H200 NVL", 835 * TERA, 141 * GIB, 4800 * GB, 450 * GB)),
    ("NVIDIA H200", Chip("H200", 989.4 * TERA, 141 * GIB, 4800 * GB, 450 * GB)),
    ("NVIDIA B200", Chip("B200", 2250 * TERA, 180 * GIB, 8000 * GB, 900 * GB)),
    ("NVIDIA L40S", Chip("L40S", 362 * TERA, 48 * GIB, 864 * GB, 32 * GB)),
    ("NVIDIA L4", Chip("L4", 121 * TERA, 24 * GIB, 300 * GB, 32 * GB)),
)


def chip_of(device_kind: str) -> Chip | None:
    """The chip behind `jax.Device.device_kind` ("TPU v5 lite", "NVIDIA H100 80GB HBM3"), None if it is not known here."""
    return next((chip for prefix, chip in _CHIPS if device_kind.startswith(prefix)), None)
