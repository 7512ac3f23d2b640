"""`segearth-r2 predict` on real files with a small random network: files, sizes, messages, exit status."""

import io
import json
import threading

import numpy as np
import pytest
from PIL import Image
from tiny_checkpoint import write_checkpoint

from segearth_r2_jax.cli.main import main
from segearth_r2_jax.cli.predict import result_names
from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inference.segment import Segmenter
from segearth_r2_jax.inputs.image_reading import read_image
from segearth_r2_jax.raster import rle

RNG = np.random.default_rng(0)


@pytest.fixture
def predict(checkpoint_dir, tmp_path, capsys):
    """Runs the verb; returns (exit status, stdout, lines of stderr)."""

    def run(*images, instruction="find the roof", output=tmp_path / "out", checkpoint=checkpoint_dir, batch_size=1):
        status = 0
        arguments = ["predict", *map(str, images), "--instruction", instruction, "--checkpoint", str(checkpoint)]
        arguments += ["--batch-size", str(batch_size)]
        try:
            main([*arguments, "--output", str(output), "--max-new-tokens", "10"])
        except SystemExit as end:
            status = end.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err.splitlines()

    return run


def _picture(path, mode, size):
    pixels = RNG.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    elif mode == "F":
        image = Image.fromarray(pixels[..., 0].astype(np.float32))
    else:
        image = image.convert(mode)
    image.save(path)
    return path


def _check_result(folder, path):
    height, width = read_image(path).shape[:2]
    answer = json.loads((folder / "answer.json").read_text())
    assert answer["image"] == str(path)
    assert answer["image_size"] == {"height": height, "width": width}
    assert answer["instruction"] == "find the roof"
    assert answer["answer"].count("[SEG]") == len(answer["targets"]) > 0
    assert answer["template"] == "train_phi_v0"
    names = {"answer.json", "overlay.png"}
    for number, target in enumerate(answer["targets"], 1):
        assert target["mask"] == f"mask_{number}.png"
        names.add(target["mask"])
        with Image.open(folder / target["mask"]) as picture:
            assert picture.mode == "L"
            mask = np.asarray(picture)
        assert mask.shape == (height, width)
        assert set(np.unique(mask)) <= {0, 255}
        np.testing.assert_array_equal(rle.decode(target["rle"]), mask // 255)
        assert target["area"] == np.count_nonzero(mask)
        assert 0 <= target["score"] <= 1
        assert target["phrase"]
        if target["area"]:
            ys, xs = np.nonzero(mask)
            assert target["box"] == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        else:
            assert target["box"] is None
    with Image.open(folder / "overlay.png") as overlay:
        assert overlay.mode == "RGB"
    assert {file.name for file in folder.iterdir()} == names
    return answer


MODES = {
    "grey.png": ("L", (90, 60)),
    "rgb.jpg": ("RGB", (300, 40)),
    "rgba.png": ("RGBA", (40, 300)),
    "palette.gif": ("P", (77, 77)),
    "bit.png": ("1", (64, 65)),
    "cmyk.jpg": ("CMYK", (128, 128)),
    "deep.png": ("I;16", (500, 400)),
    "float.tif": ("F", (33, 1)),
    "pixel.png": ("RGB", (1, 1)),
}


def test_every_mode_shape_and_size(predict, tmp_path):
    paths = [_picture(tmp_path / name, *content) for name, content in MODES.items()]
    status, out, err = predict(*paths)
    assert (status, err) == (0, [])
    assert len(out.splitlines()) == len(paths)
    for path in paths:
        _check_result(tmp_path / "out" / path.stem, path)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_bad_files_are_named_in_one_line_each_and_the_others_are_done(predict, tmp_path, batch_size):
    good = _picture(tmp_path / "good.png", "RGB", (80, 50))
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (200, 200, 3)).astype(np.uint8)).save(buffer, "jpeg")
    (tmp_path / "cut.jpg").write_bytes(buffer.getvalue()[:3000])
    bad = [tmp_path / name for name in ("text.png", "empty.png", "cut.jpg", "missing.png")]
    status, out, err = predict(bad[0], bad[1], good, *bad[2:], batch_size=batch_size)
    assert status == 2
    assert len(out.splitlines()) == 1
    _check_result(tmp_path / "out" / "good", good)
    assert len(err) == len(bad) + 1
    for path, line, reason in zip(bad, err, ["is not an image", "is empty", "damaged", "no such file"], strict=False):
        assert line.startswith(f"segearth-r2: error: {path}: ")
        assert reason in line
    assert "4 of 5 images could not be segmented" in err[-1]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"good"}


def test_a_folder_of_images(predict, tmp_path):
    folder = tmp_path / "scenes"
    folder.mkdir()
    for name in ("b.png", "a.jpg", "c.TIF"):
        _picture(folder / name, "RGB", (50, 50)) if name != "c.TIF" else Image.new("L", (50, 50)).save(folder / name, "tiff")
    (folder / "notes.txt").write_text("not looked at")
    status, out, err = predict(folder)
    assert (status, err) == (0, [])
    assert [line.split(":")[0].rsplit("/", 1)[1] for line in out.splitlines()] == ["a.jpg", "b.png", "c.TIF"]


def test_lines_stand_in_the_order_of_the_images_and_batches_change_nothing(predict, tmp_path):
    paths = [_picture(tmp_path / f"{name}.png", "RGB", (60 + 9 * i, 70)) for i, name in enumerate("edcab")]
    (tmp_path / "bad.png").write_text("not a picture")
    paths.insert(2, tmp_path / "bad.png")
    lines, answers = [], []
    for batch_size in (1, 2):
        output = tmp_path / f"out {batch_size}"
        status, out, err = predict(*paths, output=output, batch_size=batch_size)
        assert (status, len(err)) == (2, 2)
        lines.append([line.split(":")[0] for line in out.splitlines()])
        answers.append([json.loads((output / path.stem / "answer.json").read_text())["answer"] for path in paths if path.stem != "bad"])
    assert lines == [[str(path) for path in paths if path.stem != "bad"]] * 2
    assert answers[0] == answers[1]


def test_a_result_that_cannot_be_written_costs_its_own_line(predict, tmp_path):
    first, second = (_picture(tmp_path / f"{name}.png", "RGB", (60, 60)) for name in ("first", "second"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "first").write_text("in the way")
    status, out, err = predict(first, second)
    assert status == 2
    assert "first: cannot be made a folder" in err[0]
    assert "1 of 2 images" in err[1]
    assert [line.split(":")[0] for line in out.splitlines()] == [str(second)]


def test_an_interruption_leaves_no_half_result_and_no_thread(predict, tmp_path, monkeypatch):
    paths = [_picture(tmp_path / f"{i}.png", "RGB", (60, 60)) for i in range(6)]
    segment_batch, asked = Segmenter.segment_batch, []

    def interrupted(self, images, instructions, **options):
        asked.append(len(images))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return segment_batch(self, images, instructions, **options)

    monkeypatch.setattr(Segmenter, "segment_batch", interrupted)
    status, _, err = predict(*paths)
    assert (status, err) == (130, ["segearth-r2: interrupted"])
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPool")]
    for folder in (tmp_path / "out").iterdir():
        _check_result(folder, tmp_path / f"{folder.name}.png")


def test_a_folder_without_images(predict, tmp_path):
    (tmp_path / "empty").mkdir()
    status, _, err = predict(tmp_path / "empty")
    assert status == 2
    assert "holds no image" in err[0]
    assert not (tmp_path / "out").exists()


def test_a_second_run_replaces_the_masks_of_the_first(predict, tmp_path):
    path = _picture(tmp_path / "scene.png", "RGB", (60, 60))
    predict(path)
    folder = tmp_path / "out" / "scene"
    (folder / "mask_99.png").write_bytes(b"left over")
    predict(path)
    _check_result(folder, path)


def test_an_answer_without_a_mask_is_an_answer(predict, tmp_path):
    path = _picture(tmp_path / "scene.png", "RGB", (60, 60))
    status, out, err = predict(path, checkpoint=write_checkpoint(tmp_path / "checkpoint", seed=4))
    assert (status, err) == (0, [])
    assert "0 masks" in out
    answer = json.loads((tmp_path / "out" / "scene" / "answer.json").read_text())
    assert answer["targets"] == []
    assert answer["answer"]
    assert {file.name for file in (tmp_path / "out" / "scene").iterdir()} == {"answer.json", "overlay.png"}


def test_mistakes_before_anything_is_loaded(predict, tmp_path):
    path = _picture(tmp_path / "scene.png", "RGB", (60, 60))
    status, _, err = predict(path, instruction="  ")
    assert (status, len(err)) == (2, 1)
    assert "instruction is empty" in err[0]
    (tmp_path / "file").write_text("")
    status, _, err = predict(path, output=tmp_path / "file")
    assert (status, len(err)) == (2, 1)
    assert "cannot be made a folder" in err[0]
    status, _, err = predict(path, checkpoint=tmp_path / "nowhere")
    assert (status, len(err)) == (2, 1)
    assert "nowhere" in err[0]


def test_an_instruction_that_is_too_long_is_said_once(predict, tmp_path):
    paths = [_picture(tmp_path / f"{i}.png", "RGB", (60, 60)) for i in range(3)]
    status, _, err = predict(*paths, instruction="roof " * 4000)
    assert (status, len(err)) == (2, 1)
    assert "too long" in err[0]


def test_images_of_one_name_get_folders_of_their_own(tmp_path):
    from pathlib import Path

    names = result_names([Path("a/x.png"), Path("b/x.png"), Path("x.tif"), Path("c/x.png"), Path("X.jpg"), Path("y.png")])
    assert names[0] == "x"
    assert names[-1] == "y"
    assert len({name.casefold() for name in names}) == len(names)


def test_real_images(predict, data_dir, tmp_path):
    """Satellite and aerial files of every kind: masks of their own size; the one of 648 million pixels is refused in one line."""
    pytest.importorskip("rasterio", reason="rasterio (extra `geo`) is not installed")
    paths = [path for path in sorted(data_dir.rglob("*")) if path.suffix in (".tif", ".jpg") and "CDL" not in path.name]
    paths += sorted((data_dir / "lasers_sample").rglob("*.png"))[:2]
    assert len(paths) > 15
    status, out, err = predict(*paths)
    assert status == 2
    assert len(err) == 2
    assert "cog_world.tif: 36000 x 18000 pixels are too many" in err[0]
    assert len(out.splitlines()) == len(paths) - 1
    names = dict(zip(paths, result_names(paths), strict=True))
    for path in (p for p in paths if "naip" in str(p) or "solaris" in str(p)):
        _check_result(tmp_path / "out" / names[path], path)


def test_user_errors_are_of_one_line():
    with pytest.raises(UserError, match="no such file"):
        read_image("/nowhere/at/all.png")
