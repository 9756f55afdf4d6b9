"""Crops a photo as CelebA does, from the positions of the two eyes.

CelebA's aligned images are 178 pixels wide and 218 high, turned, scaled and shifted until the eyes lie at the
same place: on average at the pixels (69, 111) and (108, 111). A model trained on them knows faces in no other
place: an image that is not framed so is reconstructed as another face. Two points determine a similarity
transform (rotation, scale, shift). What lies outside of the photo is filled with its edge.

    python -m toy_experiments.tools.align_face photo.jpg
    python -m toy_experiments.tools.align_face photo.jpg --eyes 412 530 575 518 --out aligned.jpg
    python dlsgan.py --reconstruct aligned.jpg

The first line writes photo-eyes.html: open it in a browser, click on both eyes, and it shows the numbers for
the second, which are the pixels x y of the centre of one eye and x y of that of the other, in the upright
photo. The eye farther left in the photo becomes the left one of the crop. Without --out the crop is written
to photo-aligned.jpg, or photo-aligned-2.jpg if that is there. A file that --out names must not be there.

Expected printout: where the crop was written, and by how much the photo was turned and scaled.
"""

import base64
import cmath
import io
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

import dlsgan
from toy_experiments.shared import cli
from toy_experiments.shared.image_files import new_file

WIDTH = 178
HEIGHT = 218
EYES = ((69, 111), (108, 111))  # pixels of the left and the right eye in CelebA's frame
CENTRE = 0.5 + 0.5j  # of a pixel, from its corner
CLICK = """
const scale = {width} / this.clientWidth;
const clicked = [event.offsetX, event.offsetY].map(x => Math.floor(x * scale));
this.eyes = [...(this.eyes || []), ...clicked].slice(-4);
const both = `eyes = (${{this.eyes.join(', ')}}), or --eyes ${{this.eyes.join(' ')}}`;
this.nextElementSibling.textContent = this.eyes.length < 4 ? 'Now the other eye.' : both;
"""


def similarity(eyes: tuple[float, float, float, float]) -> tuple[complex, complex]:
    """(a, b) of the map p -> a p + b from the crop to the photo; points x + iy as complex numbers, whose
    product turns and scales. Positions are of the centres of pixels, which lie half a pixel from the corners
    that Pillow counts from."""
    left, right = sorted((complex(*eyes[:2]), complex(*eyes[2:])), key=lambda eye: eye.real)
    dlsgan.require(abs(right - left) >= 2, f"the eyes {eyes} are less than two pixels apart")
    to_left, to_right = (complex(*eye) for eye in EYES)
    a = (right - left) / (to_right - to_left)
    return a, left + CENTRE - a * (to_left + CENTRE)


def sample(image: Image.Image, size: tuple[int, int], a: complex, b: complex, border: int) -> Image.Image:
    """The picture of this size whose point p is a p + b of the image; the image's edge goes on for `border`
    pixels."""
    pixels = np.pad(np.asarray(image.convert("RGB")), ((border, border), (border, border), (0, 0)), "edge")
    b += border * (1 + 1j)
    coefficients = (a.real, -a.imag, b.real, a.imag, a.real, b.imag)  # of Pillow: output pixel -> input pixel
    return Image.fromarray(pixels).transform(
        size, Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC
    )


def align(photo: Image.Image, eyes: tuple[float, float, float, float]) -> Image.Image:
    """The RGB crop of 178x218 pixels of an upright photo; eyes: x, y of one and x, y of the other, in its
    pixels."""
    inside = all(0 <= x < size for x, size in zip(eyes, photo.size * 2, strict=True))
    size = f"{photo.width} x {photo.height} pixels"
    dlsgan.require(inside, f"the eyes {eyes} lie outside of the photo, which is {size}")
    a, b = similarity(eyes)
    corners = [a * complex(x, y) + b for x in (0, WIDTH) for y in (0, HEIGHT)]
    beyond = []  # how far each corner of the crop lies outside of the photo, on each side
    for corner in corners:
        beyond += [-corner.real, corner.real - photo.width, -corner.imag, corner.imag - photo.height]
    border = max(0, math.ceil(max(beyond)) + 2)
    too_far = f"the eyes {eyes} are so far apart that the crop is mostly outside of the photo"
    dlsgan.require(border <= 10 * max(photo.size), too_far)
    finer = max(1, math.ceil(abs(a)))  # a large photo is sampled finely and then averaged, against aliasing
    return sample(photo, (finer * WIDTH, finer * HEIGHT), a / finer, b, border).reduce(finer)


def as_photo(frame: Image.Image) -> tuple[Image.Image, tuple[float, float, float, float]]:
    """An aligned frame as a photo of 300x300 pixels and the positions of its eyes: turned by 20 degrees and
    off the centre, its edge going on to all sides. To show what framing means to a model, and to check
    `align`."""
    a = cmath.rect(1.1, math.radians(20))
    b = complex(165, 125) - a * complex(
        WIDTH / 2, EYES[0][1]
    )  # what lies between the eyes comes to (165, 125)
    left, right = (a * (complex(*eye) + CENTRE) + b - CENTRE for eye in EYES)
    frame = frame.resize((WIDTH, HEIGHT), Image.LANCZOS)
    photo = sample(frame, (300, 300), 1 / a, -b / a, border=300)
    return photo, (left.real, left.imag, right.real, right.imag)


def click_page(photo: Image.Image) -> str:
    """HTML that shows a photo and, after a click on each eye, their positions in its pixels. For a browser or
    a notebook (IPython.display.HTML)."""
    buffer = io.BytesIO()
    photo.convert("RGB").save(buffer, "JPEG", quality=90)
    source = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    style = "cursor: crosshair; max-width: 100%; max-height: 80vh"
    click = CLICK.format(width=photo.width)
    return f'<div><img src="{source}" style="{style}" onclick="{click}"><p>Click on both eyes.</p></div>'


def main(photo: str, eyes: list[float] | None, out: str = "") -> None:
    """Reads a photo, writes the crop, over no other file; without eyes a page to click on them. out: file to
    write; the first of STEM-aligned.jpg, STEM-aligned-2.jpg, ... that is not there if empty."""
    with dlsgan.explain(f"{photo} cannot be read as an image"):
        image = ImageOps.exif_transpose(Image.open(photo))
        image.load()
    if not eyes:
        page = Path(f"{Path(photo).stem}-eyes.html")
        with dlsgan.explain(f"cannot write {page}"):
            page.write_text(click_page(image))
        print(f"{page}: open it in a browser, click on both eyes, and give their pixels by --eyes")
        return
    crop = align(image, tuple(eyes))
    a, _ = similarity(tuple(eyes))
    names = dlsgan.numbered(Path(f"{Path(photo).stem}-aligned.jpg"))
    path = new_file(out or next(name for name in names if not name.exists()))
    with dlsgan.explain(f"cannot write {path}"):
        crop.save(path, quality=95)
    angle = math.degrees(math.atan2(a.imag, a.real))
    print(f"{path}: turned by {angle:+.1f} degrees, scaled by {1 / abs(a):.2f}")


if __name__ == "__main__":
    parser = cli.parser(__doc__)
    parser.add_argument("photo")
    positions = ("X", "Y", "X", "Y")
    parser.add_argument("--eyes", type=float, nargs=4, metavar=positions, help="in pixels")
    parser.add_argument("--out", default="", help="new file to write (default: PHOTO-aligned.jpg)")
    with cli.one_line("align_face"):
        main(**vars(parser.parse_args()))
