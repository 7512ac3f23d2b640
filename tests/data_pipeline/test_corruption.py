"""Damage of any kind to a data set or to shards: one line that names it, never a traceback, never another record in silence."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from corruptions import FOUND, HARMLESS, REFUSED, REJECTED, SHARES, SOURCE_KINDS, VERIFIED, WELL_FORMED, Laboratory, survey

from data_pipeline import checksums
from data_pipeline.build_shards import build_shards
from data_pipeline.checksums import Checksums, check_png
from data_pipeline.shard_folder import ShardedRecords
from data_pipeline.tfrecord import index_path
from data_pipeline.verify_shards import main as verify
from segearth_r2_jax.errors import UserError


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory) -> Laboratory:
    return Laboratory(tmp_path_factory.mktemp("laboratory"))


def check_outcomes(outcomes):
    """`Laboratory.damage` has raised AssertionError for everything that must never happen; the rest is which outcomes there may be."""
    for kind in SHARES:
        if kind in SOURCE_KINDS:
            assert set(outcomes[f"{kind}, with SHA256SUMS"]) <= {REFUSED, REJECTED}
        allowed = {
            "PNG bytes": {REJECTED, HARMLESS},
            "index bytes": {HARMLESS},
            "manifest bytes": {FOUND, HARMLESS},
            "shard bytes": {FOUND, VERIFIED},
        }
        assert set(outcomes[kind]) <= allowed.get(kind, {REFUSED, REJECTED, HARMLESS, WELL_FORMED}), kind


def test_random_damage(laboratory):
    check_outcomes(survey(laboratory, scale=0.04))


@pytest.mark.slow
def test_a_thousand_of_them(laboratory):
    outcomes = survey(laboratory)
    check_outcomes(outcomes)
    assert sum(outcomes[kind].total() for kind in SHARES) == 1000


def test_every_flipped_byte_of_a_shard_is_found(laboratory, tmp_path):
    """Exhaustive: all bytes, whether the index is there or not."""
    folder = tmp_path / "shards"
    build_shards("lasers", laboratory.data, folder, split="train", shards=6)
    shard = min(folder.glob("*.tfrecord"), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    assert len(content) > 500
    expected = read_every(folder)
    for index in (index_path(shard), None):
        if index is None:
            index_path(shard).unlink()
        with shard.open("r+b", buffering=0) as file:
            for position in range(len(content)):
                file.seek(position)
                file.write(bytes([content[position] ^ 0xFF]))
                with pytest.raises(UserError, match=rf"{shard.name}: record 0 is (damaged at byte 0|cut short)"):
                    read_every(folder)
                file.seek(position)
                file.write(content[position : position + 1])
        assert read_every(folder) == expected


def read_every(folder):
    records = ShardedRecords(folder)
    return [records[number] for number in range(len(records))]


def test_verify_finds_what_no_record_shows(laboratory, tmp_path, capsys):
    folder = tmp_path / "shards"
    folder.mkdir()
    for file in (laboratory.folder / "shards").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    assert verify([str(folder)]) == 0
    assert capsys.readouterr().out == f"{folder}: 4 shards with 8 records are as they were written\n"
    one, other = folder / "train-00000-of-00002.tfrecord", folder / "train-00001-of-00002.tfrecord"
    one.write_bytes(other.read_bytes())
    assert len(ShardedRecords(folder)) == 6
    assert verify([str(folder)]) == 2
    assert "train-00000-of-00002.tfrecord: " in capsys.readouterr().err
    other.unlink()
    assert verify([str(folder)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no file"),
        ("abc  x.json\n", "line 1: expected a SHA-256"),
        ("0" * 64 + "  ../x\n", "line 1: '../x' leads out of the folder"),
        ("0" * 64 + "  /etc/hostname\n", "leads out of the folder"),
        ("0" * 64 + "  x.json\n", r"x\.json: cannot be read \(No such file"),
        ("0" * 64 + "  x.png\n" + "1" * 64 + " *x.png\n", "line 2: x.png is listed twice"),
        ("\udcff", "is no text"),
    ],
)
def test_a_wrong_list_of_checksums(tmp_path, text, message):
    (tmp_path / "SHA256SUMS").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=message):
        Checksums(tmp_path)


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed")
def test_the_list_that_sha256sum_writes(lasers_copy):
    line = "find . -type f ! -name SHA256SUMS -print0 | sort -z | xargs -0 sha256sum > SHA256SUMS"
    assert line in Path(checksums.__file__).read_text()
    subprocess.run(line, shell=True, cwd=lasers_copy, check=True)
    sums = Checksums(lasers_copy)
    image = lasers_copy / "train/images/area/0.png"
    assert sums.wrong(image) is None
    assert sums.wrong(image.with_name("new.png")) == "is not listed in SHA256SUMS"
    image.write_bytes(image.read_bytes() + b" ")
    assert "is damaged or was changed" in Checksums(lasers_copy).wrong(image)
    file = lasers_copy / "test/annotations/test_short_query.json"
    file.write_text(file.read_text() + "\n")
    with pytest.raises(UserError, match=r"test_short_query\.json: is damaged or was changed"):
        Checksums(lasers_copy)


def test_without_a_list_nothing_is_compared(tmp_path):
    assert Checksums(tmp_path).wrong(tmp_path / "absent.png") is None


def test_every_flipped_byte_of_a_png_is_found(laboratory):
    content = next(path for path in laboratory.pictures if path.suffix == ".png").read_bytes()
    check_png(content, "x")
    # From the first chunk on: what stands before it makes the file a PNG.
    for position in range(8, len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 0x04
        with pytest.raises(UserError, match=r"^x: is damaged"):
            check_png(bytes(damaged), "x")
    check_png(b"\xff\xd8 a JPEG", "x")
