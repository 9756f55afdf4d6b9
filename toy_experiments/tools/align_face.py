"""Crops a photo as CelebA does, from the positions of the two eyes.

CelebA's aligned images are 178 pixels wide and 218 high, turned, scaled and shifted until the eyes lie at the same place:
on average at the pixels (69, 111) and (108, 111). A model trained on them knows faces in no other place: an image that is
not framed so is reconstructed as another face. Two points determine a similarity transform (rotation, scale, shift). What
lies outside of the photo is filled with its edge.

    python -m toy_experiments.align photo.jpg --eyes 412 530 575 518 --out aligned.jpg
    python dlsgan.py --reconstruct aligned.jpg

The four numbers are the pixels x y of one eye's centre and x y of the other's, as an image viewer shows them, in the
upright photo. Of the two, the eye farther left in the photo becomes the left one of the crop.

Expected printout: where the crop was written, and by how much the photo was turned and scaled.
"""

import argparse
import cmath
import math
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

import dlsgan

WIDTH, HEIGHT = 178, 218
EYES = ((69, 111), (108, 111))  # pixels of the left and the right eye in CelebA's frame


def similarity(eyes: tuple[float, float, float, float]) -> tuple[complex, complex]:
    """(a, b) of the map p -> a p + b from the crop to the photo; points x + iy as complex numbers, whose product turns
    and scales. Positions are of the centres of pixels, which lie half a pixel from the corners that Pillow counts from."""
    left, right = sorted((complex(*eyes[:2]), complex(*eyes[2:])), key=lambda eye: eye.real)
    to_left, to_right = (complex(*eye) for eye in EYES)
    if abs(right - left) < 2:
        raise dlsgan.UserError(f"the eyes {eyes} are less than two pixels apart")
    a = (right - left) / (to_right - to_left)
    half = 0.5 + 0.5j
    return a, left + half - a * (to_left + half)


def sample(image: Image.Image, size: tuple[int, int], a: complex, b: complex, border: int) -> Image.Image:
    """The picture of this size whose point p is a p + b of the image; the image's edge goes on for `border` pixels."""
    pixels = np.pad(np.asarray(image.convert("RGB")), ((border, border), (border, border), (0, 0)), "edge")
    b += border * (1 + 1j)
    coefficients = (a.real, -a.imag, b.real, a.imag, a.real, b.imag)  # of Pillow: output pixel -> input pixel
    return Image.fromarray(pixels).transform(size, Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC)


def align(photo: Image.Image, eyes: tuple[float, float, float, float]) -> Image.Image:
    """The RGB crop of 178x218 pixels of an upright photo; eyes: x, y of one and x, y of the other, in its pixels."""
    if not all(0 <= x < size for x, size in zip(eyes, photo.size * 2, strict=True)):
        raise dlsgan.UserError(f"the eyes {eyes} lie outside of the photo, which is {photo.width} x {photo.height} pixels")
    a, b = similarity(eyes)
    corners = [a * complex(x, y) + b for x in (0, WIDTH) for y in (0, HEIGHT)]
    low = (min(p.real for p in corners), min(p.imag for p in corners))
    high = (max(p.real for p in corners) - photo.width, max(p.imag for p in corners) - photo.height)
    border = max(0, math.ceil(max(*high, -low[0], -low[1])) + 2)  # how far the crop reaches beyond the photo
    if border > 10 * max(photo.size):
        raise dlsgan.UserError(f"the eyes {eyes} are so far apart that the crop is mostly outside of the photo")
    finer = max(1, math.ceil(abs(a)))  # a large photo is sampled finely and then averaged, against aliasing
    return sample(photo, (finer * WIDTH, finer * HEIGHT), a / finer, b, border).reduce(finer)


def as_photo(frame: Image.Image) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """An aligned frame as a photo of 300x300 pixels and the positions of its eyes: turned by 20 degrees and off the
    centre, its edge going on to all sides. To show what framing means to a model, and to check `align`."""
    a = cmath.rect(1.1, math.radians(20))
    b = complex(165, 125) - a * complex(WIDTH / 2, EYES[0][1])  # what lies between the eyes comes to (165, 125)
    eyes = [a * (complex(*eye) + 0.5 + 0.5j) + b - (0.5 + 0.5j) for eye in EYES]
    photo = sample(frame.resize((WIDTH, HEIGHT), Image.LANCZOS), (300, 300), 1 / a, -b / a, border=300)
    return photo, (eyes[0].real, eyes[0].imag, eyes[1].real, eyes[1].imag)


def main(photo: str, eyes: list[float], out: str) -> None:
    """Reads a photo, writes the crop."""
    with dlsgan.explain(f"{photo} cannot be read as an image"):
        image = ImageOps.exif_transpose(Image.open(photo))
        image.load()
    crop, (a, _) = align(image, tuple(eyes)), similarity(tuple(eyes))
    with dlsgan.explain(f"cannot write {out}"):
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        crop.save(out, quality=95)
    print(f"{out}: turned by {math.degrees(math.atan2(a.imag, a.real)):+.1f} degrees, scaled by {1 / abs(a):.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo")
    parser.add_argument("--eyes", type=float, nargs=4, required=True, metavar=("X", "Y", "X", "Y"), help="in pixels")
    parser.add_argument("--out", default="aligned.jpg", help="file to write (default: aligned.jpg)")
    try:
        main(**vars(parser.parse_args()))
    except dlsgan.UserError as error:
        print(f"align: {error}", file=sys.stderr)
        sys.exit(2)
