"""Photographs through a trained model: aligned, encoded, refined by gradient descent, and rebuilt.

    python -m toy_experiments.tools.invert_photos me.jpg --eyes me.jpg 412 530 575 518 --out inverted
    python -m toy_experiments.tools.invert_photos photos --eyes-table eyes.csv --refine 20 --out inverted
    python -m toy_experiments.tools.invert_photos photos --out inverted \\
        --checkpoint runs/real_encoder/celeba64-real-encoder.pt

Photos and folders go in. Where the positions of a photo's eyes are given, in pixels as align_face.py takes
them, it is cropped as CelebA's frames are; other photos must be framed so already. A line of the table is
NAME,X,Y,X,Y. Then the encoder guesses z, and --refine K steps of Adam on the squared error of the pixels
improve the guess.

The paper has no such steps: its encoder is that of pretrained/celeba64.pt, without --refine, as in `python
dlsgan.py --reconstruct`. A file of systems/real_encoder.py has an encoder that was fine-tuned on real images.
Each line says which it was.

The new folder gets, for each photo, the original beside its reconstruction as NAME.png, and codes.npz with z
by NAME, as encode_photos.py writes it. Expected printout, a line a photo:

    me.jpg: the paper's encoder and 20 steps: +5.1 dB over the mean face; |z|^2 is 1.31 times the usual,
    larger than that of 88% of generated images' codes

The mean face is that of generated images. A code far longer or shorter than the usual is none that samples
have: what edits do to samples they need not do there. Some seconds to begin with, and a fraction of a second
for each photo at 64x64, on one core of an AMD EPYC. Unreadable files are named at the end, with exit code 2;
the others are done.
"""

import csv
import os
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

import dlsgan
from toy_experiments.shared import cli
from toy_experiments.shared.image_files import new_folder, read_photos, require_all_read, save, write_codes
from toy_experiments.systems.hybrid import Refined, squared_length
from toy_experiments.tools.align_face import align

Eyes = tuple[float, float, float, float]  # x, y of one and x, y of the other, in pixels


def read_table(path: str) -> list[list[str]]:
    """The rows of a file of comma-separated values."""
    with dlsgan.explain(f"{path} cannot be read as a table", csv.Error):
        with open(path, encoding="utf-8-sig", newline="") as file:
            return [row for row in csv.reader(file) if row]


def read_eyes(rows: list[list[str]]) -> dict[str, Eyes]:
    """{name: eyes} from rows of a name and four numbers. UserError on anything else, or two of one name."""
    result = {}
    for row in rows:
        with dlsgan.explain(f"{' '.join(row)!r} is no file name with four numbers"):
            dlsgan.require(len(row) == 5, f"it has {len(row)} parts")
            numbers = tuple(float(number) for number in row[1:])
        dlsgan.require(row[0] not in result, f"the eyes of {row[0]} are given twice")
        result[row[0]] = numbers
    return result


def read_aligned(photo: str, config: dlsgan.Config, eyes: dict[str, Eyes]) -> np.ndarray:
    """The photo as uint8 [C, H, W]: cropped by the eyes, if they are given by its path or by its name."""
    found = eyes.get(photo) or eyes.get(os.path.basename(photo))
    if not found:
        return dlsgan.read_image(photo, config)
    with Image.open(photo) as image:
        crop = align(ImageOps.exif_transpose(image), found)
    with tempfile.TemporaryDirectory() as folder:  # framed from a file, as all photos are
        path = Path(folder, "aligned.png")
        crop.save(path)
        return dlsgan.read_image(path, config)


class Yardstick:
    """What generated images say of a model: their mean, and how long their codes are."""

    def __init__(self, model: dlsgan.DLSGAN):
        images = model.sample(512).clamp(-1, 1)
        self.mean_face = images.mean(0)
        self.lengths = squared_length(dlsgan.in_batches(model.encode, images))

    def tell(self, x: Tensor, y: Tensor, z: Tensor) -> str:
        """Of one photo x, its reconstruction y [C, H, W] and its code z [d]."""
        gain = dlsgan.psnr(x[None], y[None]) - dlsgan.psnr(x[None], self.mean_face[None])
        length = squared_length(z[None])
        shorter = (self.lengths < length).float().mean().item()
        times = (length / self.lengths.mean()).item()
        return (
            f"{gain.item():+.1f} dB over the mean face; |z|^2 is {times:.2f} times the usual, "
            f"larger than that of {shorter:.0%} of generated images' codes"
        )


@torch.no_grad()
def main(photos: list[str], checkpoint: str, eyes: dict[str, Eyes], refine: int, out: str) -> None:
    """Writes originals beside reconstructions, and the latent vectors. UserError at the end on bad files."""
    dlsgan.require(refine >= 0, "--refine must be at least 0")
    config, state = dlsgan.read_checkpoint(checkpoint)
    unaligned = f"{checkpoint} knows no aligned faces, but {config.dataset}: leave the eyes out"
    dlsgan.require(config.dataset == "celeba" or not eyes, unaligned)
    paths = dlsgan.find_photos(photos)
    unknown = eyes.keys() - {*paths, *map(os.path.basename, paths)}
    dlsgan.require(not unknown, f"eyes are given of {', '.join(sorted(unknown))}, not among the photos")
    folder = new_folder(out)
    model = dlsgan.load_model(checkpoint)
    yardstick = Yardstick(model)
    refined = Refined(model, refine)
    how = state.get("encoder", "the paper's encoder")
    if refine:
        how += f" and {refine} steps"
    names = []
    codes = []
    failed = []
    for found, x in read_photos(paths, partial(read_aligned, config=config, eyes=eyes), failed):
        z = refined.encode(x)
        y = model.decode(z).clamp(-1, 1)
        codes.append(z)
        for i, photo in enumerate(found):
            paths = dlsgan.numbered(folder / f"{os.path.basename(photo)}.png")
            path = next(path for path in paths if not path.exists())
            save(Image.fromarray(dlsgan.make_grid([torch.stack((x[i], y[i]))])), path)
            names.append(path.stem)
            print(f"{path.stem}: {how}: {yardstick.tell(x[i], y[i], z[i])}")
    if names:
        write_codes(folder / "codes.npz", names, torch.cat(codes), model.latent_scale.scale(), checkpoint)
        print(f"{folder}: {len(names):,} photos beside their reconstructions, and codes.npz")
    require_all_read(failed)


if __name__ == "__main__":
    parser = cli.parser(__doc__)
    parser.add_argument("photos", nargs="+", help="photos, or folders of photos")
    usual = str(dlsgan.PRETRAINED / "celeba64.pt")
    parser.add_argument("--checkpoint", default=usual, help="default: pretrained/celeba64.pt")
    positions = ("PHOTO", "X", "Y", "X", "Y")
    parser.add_argument("--eyes", nargs=5, action="append", default=[], metavar=positions, help="in pixels")
    parser.add_argument("--eyes-table", default="", metavar="FILE", help="the same for many photos")
    parser.add_argument("--refine", type=int, default=0, metavar="K", help="steps of Adam on z (default: 0)")
    parser.add_argument("--out", required=True, help="new folder")
    given = vars(parser.parse_args())
    with cli.one_line("invert_photos"):
        table = given.pop("eyes_table")
        rows = given.pop("eyes") + (read_table(table) if table else [])
        main(eyes=read_eyes(rows), **given)
