"""Tests of the alignment of faces by their eyes."""

import base64
import io
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dlsgan
from toy_experiments.tools import align_face


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    ("angle", "scale", "x", "y"), [(0, 1, 90, 120), (25, 1.5, 200, 220), (-40, 0.6, 90, 90), (8, 5, 400, 300)]
)
def test_eyes_come_to_the_places_of_celeba(angle, scale, x, y, swapped):
    """Two soft dots, red and green, in an otherwise black photo; measured by their centres of mass in the
    crop."""
    distance = scale * (align_face.EYES[1][0] - align_face.EYES[0][0])
    right = (x + distance * math.cos(math.radians(angle)), y + distance * math.sin(math.radians(angle)))
    rows, columns = np.mgrid[: int(2.2 * y), : int(2 * x + distance)]
    pixels = np.zeros((*rows.shape, 3), np.uint8)
    for channel, (eye_x, eye_y) in enumerate(((x, y), right)):
        square = (columns - eye_x) ** 2 + (rows - eye_y) ** 2
        pixels[:, :, channel] = np.exp(-square / (2 * max(1.5, 2 * scale) ** 2)) * 255 + 0.5
    crop = align_face.align(Image.fromarray(pixels), (*right, x, y) if swapped else (x, y, *right))
    assert crop.size == (178, 218)
    weights = np.asarray(crop, float)
    for channel, eye in enumerate(align_face.EYES):
        total = weights[:, :, channel].sum()
        found = (weights[:, :, channel] * np.mgrid[:218, :178][::-1]).sum((1, 2)) / total
        np.testing.assert_allclose(found, eye, atol=0.05)


def test_a_frame_survives_being_a_photo():
    rows, columns = np.mgrid[:218, :178]
    waves = [127 + 100 * np.sin(rows / 20 + i) * np.cos(columns / 15) for i in range(3)]
    smooth = np.stack(waves, 2).astype(np.uint8)
    photo, eyes = align_face.as_photo(Image.fromarray(smooth))
    assert photo.size == (300, 300)
    again = np.asarray(align_face.align(photo, eyes), float)
    assert np.abs(again - smooth)[5:-5, 5:-5].mean() < 1.5


def test_a_photo_without_eyes_becomes_a_page_to_click_on(capsys):
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3)).astype(np.uint8)
    Image.fromarray(pixels).save("me.png")
    align_face.main("me.png", None, "out.jpg")
    assert capsys.readouterr().out.startswith("me-eyes.html: open it in a browser")
    page = Path("me-eyes.html").read_text()
    shown = Image.open(io.BytesIO(base64.b64decode(page.split("base64,")[1].split('"')[0])))
    assert shown.size == (40, 30) and "const scale = 40 / this.clientWidth" in page and "http" not in page


@pytest.mark.parametrize(
    "photo, eyes, named",
    [
        ("photo.png", (60, 10, 20, 10), "outside of the photo, which is 50 x 40"),
        ("photo.png", (20, 10, 20, 11), "less than two pixels apart"),
        ("text.png", (1, 1, 9, 1), "text.png cannot be read"),
        ("gone.png", (1, 1, 9, 1), "gone.png cannot be read"),
    ],
)
def test_bad_photos_and_eyes_are_named(photo, eyes, named):
    Image.new("RGB", (50, 40)).save("photo.png")
    Path("text.png").write_text("no")
    with pytest.raises(dlsgan.UserError, match=named):
        align_face.main(photo, eyes, "out.jpg")


def test_a_crop_is_written(capsys):
    frame = Image.new("RGB", (178, 218), "green")
    frame.save("frame.png")
    align_face.main("frame.png", [69, 111, 108, 111], "o/crop.png")
    assert np.array_equal(np.asarray(Image.open("o/crop.png")), np.asarray(frame))
    assert capsys.readouterr().out == "o/crop.png: turned by +0.0 degrees, scaled by 1.00\n"


def test_a_crop_goes_over_no_other_file(capsys):
    """Two photos, or one twice, give two crops by default; a file that is named must be new."""
    eyes = [69, 111, 108, 111]
    for name in ("a.png", "b.png"):
        Image.new("RGB", (178, 218), "green").save(name)
    for photo in ("a.png", "b.png", "a.png"):
        align_face.main(photo, eyes)
    written = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert written == ["a-aligned.jpg", "b-aligned.jpg", "a-aligned-2.jpg"]
    assert all(Image.open(name).size == (178, 218) for name in written)
    before = Path("a.png").read_bytes()
    with pytest.raises(dlsgan.UserError, match="cannot write a.png: it is there"):
        align_face.main("a.png", eyes, "a.png")
    assert Path("a.png").read_bytes() == before
