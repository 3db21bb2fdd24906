"""Pictures: every form is read as stated, and every bad file is one clear error."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest

from stockpot.errors import DataError
from stockpot.image import Image, save_png, square

Pillow = pytest.importorskip("PIL.Image")


def written(picture, form="PNG", **options) -> bytes:
    out = io.BytesIO()
    picture.save(out, format=form, **options)
    return out.getvalue()


def two_halves(mode="RGB", size=(8, 4)):
    """Left red, right blue."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:, : size[0] // 2] = (255, 0, 0)
    pixels[:, size[0] // 2 :] = (0, 0, 255)
    return Pillow.fromarray(pixels).convert(mode)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    """Make a PNG of a few bytes that says it is huge."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("form", ["PNG", "BMP", "GIF", "TIFF", "WEBP"])
def test_lossless_forms_give_their_pixels(form):
    options = {"lossless": True} if form == "WEBP" else {}
    pixels = Image(written(two_halves(), form, **options)).pixels()
    assert (pixels == np.asarray(two_halves())).all()


def test_the_contents_decide_not_the_name(tmp_path):
    file = tmp_path / "picture.jpg"
    file.write_bytes(written(two_halves()))
    assert Image(file).pixels().shape == (4, 8, 3)


def test_exif_orientation_is_applied():
    exif = Pillow.Exif()
    exif[0x0112] = 3  # upside down
    pixels = Image(written(two_halves(), "PNG", exif=exif)).pixels()
    assert pixels[0, 0].tolist() == [0, 0, 255]


def test_transparent_parts_lie_on_white():
    clear = Pillow.new("RGBA", (2, 1), (255, 0, 0, 0))
    clear.putpixel((1, 0), (255, 0, 0, 255))
    assert Image(written(clear)).pixels().tolist() == [[[255, 255, 255], [255, 0, 0]]]
    palette = Pillow.new("P", (1, 1), 0)
    palette.putpalette([9, 9, 9])
    assert Image(written(palette, "PNG", transparency=0)).pixels().tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize("mode", ["CMYK", "L", "P", "YCbCr"])
def test_other_colour_models_become_rgb(mode):
    pixels = Image(written(two_halves(mode), "TIFF")).pixels()
    assert pixels.shape == (4, 8, 3)
    assert pixels[0, 0].tolist() != pixels[0, 7].tolist()


def test_sixteen_bits_become_eight():
    deep = Pillow.fromarray(np.array([[0, 65535]], np.uint16))
    assert Image(written(deep)).pixels()[0, :, 0].tolist() == [0, 255]


def test_of_an_animation_the_first_frame_is_read():
    frames = [Pillow.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    content = written(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert Image(content).pixels()[0, 0].tolist() == [255, 0, 0]


def test_a_single_pixel_fills_the_square():
    one = Image(np.array([[[7, 8, 9]]], np.uint8))
    assert (one.square(8) == (7, 8, 9)).all()


def test_the_longer_side_fits_and_the_rest_is_white():
    fitted = square(np.asarray(two_halves(size=(64, 16))), 16)
    assert fitted.shape == (16, 16, 3)
    assert (fitted[:6] == 255).all() and (fitted[-6:] == 255).all()
    assert fitted[8, 0].tolist() == [255, 0, 0] and fitted[8, 15].tolist() == [0, 0, 255]
    assert square(np.zeros((5000, 1, 3), np.uint8), 16).shape == (16, 16, 3)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_cut_file_is_damaged(form):
    noise = Pillow.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8))
    content = written(noise, form)
    for size in (len(content) // 2, len(content) // 3):
        with pytest.raises(DataError, match=r"damaged|no picture"):
            Image(content[:size]).pixels()


@pytest.mark.parametrize("content", [b"", b"hello", b"<svg/>", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_refused(content):
    with pytest.raises(DataError, match=r"no picture|damaged"):
        Image(content).pixels()


@pytest.mark.parametrize("sides", [(60_000, 60_000), (10_000, 10_000), (2**31 - 1, 2)])
def test_a_bomb_is_refused_before_it_is_unpacked(sides):
    with pytest.raises(DataError, match="too large"):
        Image(bomb(*sides)).pixels()


def test_missing_files_and_folders_are_refused(tmp_path):
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(DataError, match="is no file"):
            Image(path).pixels()


def test_random_changes_give_a_picture_or_our_error():
    dice = np.random.default_rng(1)
    whole = {form: written(two_halves(size=(32, 32)), form) for form in ("PNG", "JPEG", "GIF", "WEBP", "BMP")}
    for number in range(250):
        content = bytearray(whole[list(whole)[number % len(whole)]])
        for _ in range(4):
            content[dice.integers(len(content))] = dice.integers(256)
        try:
            assert Image(bytes(content)).pixels().ndim == 3
        except DataError as error:
            assert "\n" not in error.what


def test_equal_pictures_are_equal(tmp_path):
    content = written(two_halves())
    file = tmp_path / "a.png"
    file.write_bytes(content)
    assert Image(file) == Image(content)
    assert len({Image(file), Image(content), Image(b"x")}) == 2
    with pytest.raises(TypeError):
        Image(3)
    with pytest.raises(TypeError):
        Image(np.zeros((2, 2), np.uint8))


def test_pixels_are_written_as_png(tmp_path):
    pixels = np.asarray(two_halves())
    save_png(pixels, tmp_path / "half-written")
    assert (Image(tmp_path / "half-written").pixels() == pixels).all()
