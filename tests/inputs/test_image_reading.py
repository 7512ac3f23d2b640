"""Every kind of picture file becomes uint8 RGB; what is no picture becomes one line that names the file."""

import io
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from segearth_r2_jax.errors import UserError
from segearth_r2_jax.inputs import image_reading
from segearth_r2_jax.inputs.image_reading import decode_image, decode_picture, read_image

H, W = 20, 30
RNG = np.random.default_rng(0)
RGB = RNG.integers(1, 256, (H, W, 3)).astype(np.uint8)
GREY = RGB[..., 0]
DEEP = RNG.integers(200, 4000, (4, H, W)).astype(np.uint16)


@pytest.fixture
def rasterio():
    return pytest.importorskip("rasterio", reason="rasterio (extra `geo`) is not installed")


def _save(image, path, **options):
    image.save(path, **options)
    return read_image(path)


def _write_tiff(rasterio, path, bands, **profile):
    with rasterio.open(path, "w", driver="GTiff", count=len(bands), height=H, width=W, dtype=bands.dtype, **profile) as file:
        file.write(bands)


def _expected_stretch(band, valid=None):
    low, high = np.percentile(band if valid is None else band[valid], (2, 98))
    return np.floor(np.clip((band.astype(np.float64) - low) / (high - low) * 255, 0, 255) + 0.5)


def test_rgb_is_returned_as_it_is(tmp_path):
    image = _save(Image.fromarray(RGB), tmp_path / "a.png")
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, RGB)
    np.testing.assert_array_equal(_save(Image.fromarray(RGB), tmp_path / "a.tif"), RGB)


def test_grey_becomes_three_equal_bands(tmp_path):
    np.testing.assert_array_equal(_save(Image.fromarray(GREY), tmp_path / "a.png"), np.stack([GREY] * 3, -1))
    np.testing.assert_array_equal(_save(Image.fromarray(GREY), tmp_path / "a.tif"), np.stack([GREY] * 3, -1))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_one_bit_becomes_black_and_white(tmp_path, suffix):
    image = _save(Image.fromarray(GREY > 100), tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(image, np.where(GREY > 100, 255, 0)[..., None].repeat(3, -1))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_palette_is_looked_up(tmp_path, suffix):
    palette = Image.fromarray(RGB).quantize(7)
    np.testing.assert_array_equal(_save(palette, tmp_path / f"a.{suffix}"), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_becomes_rgb(tmp_path, suffix):
    cmyk = Image.new("CMYK", (W, H), (0, 255, 255, 0))
    image = _save(cmyk, tmp_path / f"a.{suffix}")
    assert image.shape == (H, W, 3)
    assert np.abs(image.astype(int) - np.asarray(cmyk.convert("RGB"))).max() <= 3
    assert image[0, 0, 0] > 200
    assert image[0, 0, 1] < 50


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_alpha_zero_is_black_and_any_other_alpha_keeps_the_colour(tmp_path, suffix):
    alpha = RNG.integers(1, 256, (H, W)).astype(np.uint8)
    alpha[:5] = 0
    image = _save(Image.fromarray(np.dstack([RGB, alpha])), tmp_path / f"a.{suffix}")
    assert not image[:5].any()
    np.testing.assert_array_equal(image[5:], RGB[5:])


def test_an_alpha_band_that_is_zero_everywhere_hides_nothing(tmp_path):
    rgba = np.dstack([RGB, np.zeros((H, W), np.uint8)])
    np.testing.assert_array_equal(_save(Image.fromarray(rgba), tmp_path / "a.png"), RGB)


def test_grey_with_alpha(tmp_path):
    image = _save(Image.fromarray(np.dstack([GREY, np.full((H, W), 9, np.uint8)])), tmp_path / "a.png")
    np.testing.assert_array_equal(image, np.stack([GREY] * 3, -1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    picture = Image.fromarray(np.kron(RGB[:4, :6], np.ones((8, 8, 1), np.uint8)))
    image = _save(picture, tmp_path / "a.jpg", exif=exif, quality=98, subsampling=0)
    x = np.asarray(picture)
    turned = {1: x, 2: x[:, ::-1], 3: x[::-1, ::-1], 4: x[::-1], 5: x.swapaxes(0, 1), 6: np.rot90(x, -1)}
    turned |= {7: x.swapaxes(0, 1)[::-1, ::-1], 8: np.rot90(x)}
    assert image.shape == turned[orientation].shape
    assert np.abs(image.astype(int) - turned[orientation]).max() < 12


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_stretched_between_its_percentiles(tmp_path, suffix):
    image = _save(Image.fromarray(DEEP[0]), tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(image, np.stack([_expected_stretch(DEEP[0])] * 3, -1))
    assert image.min() == 0
    assert image.max() == 255


def test_floats_are_stretched_and_nan_is_black(tmp_path):
    values = RNG.normal(size=(H, W)).astype(np.float32)
    values[3, 4] = np.nan
    image = _save(Image.fromarray(values), tmp_path / "a.tif")
    valid = np.isfinite(values)
    np.testing.assert_array_equal(image[3, 4], [0, 0, 0])
    np.testing.assert_array_equal(image[valid][:, 0], _expected_stretch(values, valid)[valid])


def test_a_band_with_a_single_value_is_black_and_one_with_few_outliers_keeps_them(tmp_path):
    constant = np.full((H, W), 700, np.uint16)
    assert not _save(Image.fromarray(constant), tmp_path / "a.png").any()
    constant[0, 0] = 900
    image = _save(Image.fromarray(constant), tmp_path / "b.png")
    assert image[0, 0, 0] == 255
    assert image.sum() == 3 * 255


def test_four_bands_of_sixteen_bits(tmp_path, rasterio):
    _write_tiff(rasterio, tmp_path / "a.tif", DEEP)
    image = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(image, np.stack([_expected_stretch(band) for band in DEEP[:3]], -1))


def test_bands_that_say_their_colour_are_taken_by_it(tmp_path, rasterio):
    from rasterio.enums import ColorInterp

    bands = RNG.integers(0, 256, (5, H, W)).astype(np.uint8)
    kinds = (ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined, ColorInterp.undefined)
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", count=5, height=H, width=W, dtype="uint8") as file:
        file.write(bands)
        file.colorinterp = kinds
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.moveaxis(bands[[2, 1, 0]], 0, -1))


def test_two_bands_show_the_first(tmp_path, rasterio):
    _write_tiff(rasterio, tmp_path / "a.tif", np.stack([GREY, GREY // 2]))
    image = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(image, np.stack([GREY] * 3, -1))


def test_nodata_is_black_and_outside_the_percentiles(tmp_path, rasterio):
    bands = DEEP[:3].copy()
    bands[:, :6] = 65535
    _write_tiff(rasterio, tmp_path / "a.tif", bands, nodata=65535)
    image = read_image(tmp_path / "a.tif")
    valid = np.ones((H, W), bool)
    valid[:6] = False
    assert not image[:6].any()
    expected = np.stack([_expected_stretch(band, valid) for band in bands], -1)
    np.testing.assert_array_equal(image[6:], expected[6:])


def test_an_internal_mask_is_black(tmp_path, rasterio):
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True),
        rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", count=3, height=H, width=W, dtype="uint8") as file,
    ):
        file.write(np.moveaxis(RGB, -1, 0))
        file.write_mask(np.arange(W)[None].repeat(H, 0) < 10)
    image = read_image(tmp_path / "a.tif")
    assert not image[:, 10:].any()
    np.testing.assert_array_equal(image[:, :10], RGB[:, :10])


def test_colour_png_of_sixteen_bits(tmp_path, rasterio):
    with rasterio.open(tmp_path / "a.png", "w", driver="PNG", count=3, height=H, width=W, dtype="uint16") as file:
        file.write(DEEP[:3])
    image = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(image, np.stack([_expected_stretch(band) for band in DEEP[:3]], -1))


def test_encoded_bytes_read_like_the_file(tmp_path, rasterio):
    _write_tiff(rasterio, tmp_path / "a.tif", DEEP)
    np.testing.assert_array_equal(decode_image((tmp_path / "a.tif").read_bytes(), "a"), read_image(tmp_path / "a.tif"))
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "png")
    np.testing.assert_array_equal(decode_image(buffer.getvalue(), "a"), RGB)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1", "I;16"])
def test_the_picture_of_pillow_is_the_same(mode):
    buffer = io.BytesIO()
    image = Image.fromarray(DEEP[0]) if mode == "I;16" else Image.fromarray(RGB).convert(mode)
    exif = Image.Exif()
    exif[274] = 6  # Turned by a quarter.
    image.save(buffer, "TIFF" if mode == "CMYK" else "PNG", exif=exif)
    found = decode_picture(buffer.getvalue(), "picture")
    assert found.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(found), decode_image(buffer.getvalue(), "picture"))


def test_one_pixel(tmp_path):
    assert _save(Image.new("RGB", (1, 1), (1, 2, 3)), tmp_path / "a.png").tolist() == [[[1, 2, 3]]]
    assert _save(Image.fromarray(np.array([[7]], np.uint16)), tmp_path / "b.png").shape == (1, 1, 3)


class TestWithoutRasterio:
    def test_pillow_reads_the_same_from_simple_tiffs(self, tmp_path, rasterio, monkeypatch):
        deep = DEEP[:1].copy()
        deep[:, :4] = 0
        _write_tiff(rasterio, tmp_path / "deep.tif", deep, nodata=0)
        _write_tiff(rasterio, tmp_path / "rgb.tif", np.moveaxis(RGB, -1, 0))
        _write_tiff(rasterio, tmp_path / "four.tif", np.concatenate([np.moveaxis(RGB, -1, 0), GREY[None]]), photometric="RGB")
        files = sorted(tmp_path.glob("*.tif"))
        assert len(files) == 3
        expected = [read_image(file) for file in files]
        monkeypatch.setitem(sys.modules, "rasterio", None)
        for file, image in zip(files, expected, strict=True):
            np.testing.assert_array_equal(read_image(file), image, err_msg=file.name)

    def test_what_pillow_cannot_read_names_the_extra(self, tmp_path, rasterio, monkeypatch):
        _write_tiff(rasterio, tmp_path / "a.tif", DEEP)
        with rasterio.open(tmp_path / "a.png", "w", driver="PNG", count=3, height=H, width=W, dtype="uint16") as file:
            file.write(DEEP[:3])
        monkeypatch.setitem(sys.modules, "rasterio", None)
        for name in ("a.tif", "a.png"):
            with pytest.raises(UserError, match=r"segearth-r2-jax\[geo\]") as error:
                read_image(tmp_path / name)
            assert name in str(error.value)


def _declares(width, height):
    """A PNG of a hundred bytes that says it is width x height pixels."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


def _encoded(form, **options):
    buffer = io.BytesIO()
    Image.fromarray(np.kron(RGB, np.ones((8, 8, 1), np.uint8))).save(buffer, form, **options)
    return buffer.getvalue()


BROKEN = {
    "empty": (b"", "is empty"),
    "text renamed to .png": (b"not a picture at all\n" * 9, "is not an image"),
    "truncated jpeg": (_encoded("jpeg")[:2000], "damaged"),
    "truncated png": (_encoded("png")[:200], "damaged"),
    "truncated tiff": (_encoded("tiff")[:-3000], "damaged|rasterio may"),
    "tiff of nothing but its magic": (b"II*\0", "damaged|rasterio may"),
    "a header of 40000 x 40000": (_declares(40000, 40000), "too many"),
    "a header of 12000 x 12000": (_declares(12000, 12000), "too many"),
}


@pytest.mark.parametrize(("data", "reason"), BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("pillow_only", [False, True])
def test_a_bad_file_is_one_line_with_its_name(tmp_path, capfd, monkeypatch, data, reason, pillow_only):
    if pillow_only:
        monkeypatch.setitem(sys.modules, "rasterio", None)
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    for read in (lambda: read_image(path), lambda: decode_image(data, "bad.png")):
        with pytest.raises(UserError, match=reason) as error:
            read()
        assert "bad.png" in str(error.value)
        assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.png: no such file"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match="is a folder"):
        read_image(tmp_path)


def test_the_size_limit_is_checked_before_a_tiff_is_decoded(tmp_path, rasterio, monkeypatch):
    monkeypatch.setattr(image_reading, "MAX_PIXELS", H * W - 1)
    _write_tiff(rasterio, tmp_path / "a.tif", DEEP)
    monkeypatch.setattr(rasterio.DatasetReader, "read", lambda *_: pytest.fail("pixels were read"))
    with pytest.raises(UserError, match="30 x 20 pixels are too many"):
        read_image(tmp_path / "a.tif")


def test_damage_anywhere_in_a_file_is_a_user_error_or_a_picture():
    rng = np.random.default_rng(3)
    for data in (_encoded("png"), _encoded("jpeg"), _encoded("tiff", compression="tiff_lzw"), _encoded("webp"), _encoded("gif")):
        for _ in range(40):
            broken = bytearray(data)
            for at in rng.integers(0, min(len(broken), 600), 4):
                broken[at] = rng.integers(0, 256)
            try:
                image = decode_image(bytes(broken), "broken")
            except UserError:
                continue
            assert image.dtype == np.uint8
            assert image.ndim == 3


def test_real_files(data_dir):
    """Sixteen bit, palette, alpha, nodata, near-infrared marked as alpha: real files of every kind give real pictures."""
    pytest.importorskip("rasterio", reason="rasterio (extra `geo`) is not installed")
    files = [path for path in sorted(data_dir.rglob("*.tif")) if path.stat().st_size < 3_500_000 and "CDL" not in path.name]
    assert len(files) > 10
    for path in files:
        if path.name == "cog_world.tif":
            with pytest.raises(UserError, match="36000 x 18000 pixels are too many"):
                read_image(path)
            continue
        image = read_image(path)
        assert image.dtype == np.uint8
        assert image.shape[2] == 3
        assert 20 < image.mean() < 220, path
        assert image.std() > 10, path
