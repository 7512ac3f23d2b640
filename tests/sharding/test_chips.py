import pytest

from segearth_r2_jax.sharding.chips import chip_of


@pytest.mark.parametrize(
    ("device_kind", "name"),
    [
        # As libtpu and the CUDA driver name them.
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "7x"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB PCIe"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
    ],
)
def test_a_device_kind_names_its_chip(device_kind, name):
    assert chip_of(device_kind).name == name


@pytest.mark.parametrize("device_kind", ["cpu", "", "NVIDIA GeForce GTX 1080", "TPU v2"])
def test_of_an_unknown_chip_nothing_is_said(device_kind):
    assert chip_of(device_kind) is None


def test_figures_are_per_device_and_one_way():
    v5e = chip_of("TPU v5 lite")
    assert (v5e.bf16_flops, v5e.hbm_bytes, v5e.hbm_bandwidth, v5e.interconnect_bandwidth) == (197e12, 16 * 2**30, 819e9, 200e9)
    # A TPU7x chip is two devices: half of 2307 TFLOP/s and of 192 GiB each.
    assert (chip_of("TPU7x").bf16_flops, chip_of("TPU7x").hbm_bytes) == (2307e12 / 2, 96 * 2**30)
