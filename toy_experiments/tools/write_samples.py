"""Samples of a trained model as files: numbered PNGs for FID tools, a walk through latent space, a grid.

    python -m toy_experiments.tools.write_samples images runs/cartoon 50000 --out samples
    python -m toy_experiments.tools.write_samples walk runs/cartoon --stops 5 --out walk
    python -m toy_experiments.tools.write_samples walk runs/cartoon --codes codes.npz --out walk
    python -m toy_experiments.tools.write_samples grid runs/cartoon --rows 8 --columns 8 --out grid.png

`images` writes samples/000000.png, ..., 64 at a time, so that memory does not grow with their number. Image i
depends on the seed and on i alone: ten thousand more are the same ones and ten thousand others.

`walk` goes from stop to stop, random ones or the latent vectors in a file of encode_photos.py, in equal steps
of the angle between them, while the length goes linearly from one to the other. On a straight line it would
shrink on the way, and the images with it become more alike. It writes numbered frames and walk.gif, whose
256 colours a frame are the format's own.

`grid` writes the first samples as one picture.

Nothing is overwritten: a folder must be new or empty, a file must not be there. A model may be the folder of
a run, a checkpoint, or a file of pretrained/. Expected printout: what was written, and where. Some hundred
images a second at 32x32 on one core of an AMD EPYC.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import dlsgan
from toy_experiments.shared import cli
from toy_experiments.shared.image_files import (
    BATCH,
    enlarge,
    frame_path,
    new_file,
    new_folder,
    read_codes,
    save,
    to_pillow,
)


def draw_latents(model: dlsgan.DLSGAN, count: int, seed: int) -> Iterator[Tensor]:
    """`count` latent vectors in parts [n, d] of at most BATCH. Whole batches are drawn, and the last one is
    cut, so that the i-th vector depends on the seed and on i alone."""
    rng = torch.Generator().manual_seed(seed)
    for start in range(0, count, BATCH):
        yield dlsgan.sample_latents(BATCH, model.latent_scale, rng)[: count - start]


def between(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """From latent vector a [d] on towards b [d], which is left out: [steps, d], in equal steps of the angle
    between them (Shoemake 1985) and of the length."""
    t = torch.arange(steps, device=a.device, dtype=a.dtype)[:, None] / steps  # [steps, 1]
    length_a = a.norm().clamp(min=1e-12)
    length_b = b.norm().clamp(min=1e-12)
    cosine = (a / length_a) @ (b / length_b)
    angle = cosine.clamp(-1, 1).acos()
    if angle.sin() < 1e-3 or length_b < 1e-6 or length_a < 1e-6:  # there is no plane to turn in
        return a.lerp(b, t)
    direction = ((1 - t) * angle).sin() * a / length_a + (t * angle).sin() * b / length_b
    return direction / angle.sin() * length_a.lerp(length_b, t)


def path_through(stops: Tensor, frames: int, loop: bool) -> Tensor:
    """Latent vectors of a walk through stops [k, d], `frames` from one to the next: [frames * (k - 1) + 1, d]
    with the last stop, or [frames * k, d] back to the first one."""
    if loop:
        stops = torch.cat((stops, stops[:1]))
    parts = [between(a, b, frames) for a, b in pairwise(stops)]
    return torch.cat(parts if loop else [*parts, stops[-1:]])


@torch.no_grad()
def write_images(model: dlsgan.DLSGAN, count: int, seed: int, out: str | Path) -> None:
    dlsgan.require(count >= 1, f"{count} images: at least one is needed")
    folder = new_folder(out)
    i = 0
    for z in tqdm(draw_latents(model, count, seed), "writing", -(-count // BATCH), unit=f"x{BATCH} images"):
        for x in model.decode(z):
            save(to_pillow(x), frame_path(folder, i, count))
            i += 1
    print(f"{folder}: {count:,} images, from {frame_path(folder, 0, count).name} on")


@torch.no_grad()
def write_walk(
    model: dlsgan.DLSGAN,
    stops: Tensor,  # [k, d]
    frames: int,  # from one stop to the next
    out: str | Path,
    loop: bool = False,  # back to the first stop
    zoom: int = 1,  # pixels of the GIF a pixel of the image
    milliseconds: int = 50,  # a frame
) -> None:
    dlsgan.require(len(stops) >= 2, f"{len(stops)} stops: a walk needs two")
    dlsgan.require(min(frames, zoom) >= 1, "--frames and --zoom must be at least 1")
    dlsgan.require(milliseconds >= 20, "--milliseconds must be at least 20: viewers slow faster GIFs down")
    z = path_through(stops, frames, loop)
    folder = new_folder(out)
    for start in range(0, len(z), BATCH):
        for i, x in enumerate(model.decode(z[start : start + BATCH]), start):
            save(to_pillow(x), frame_path(folder, i, len(z)))
    write_gif(folder, len(z), zoom, milliseconds)
    print(f"{folder}: {len(z)} frames through {len(stops)} stops, and walk.gif")


def read_frames(folder: Path, count: int, zoom: int) -> Iterator[Image.Image]:
    """The numbered frames of a folder, one at a time."""
    for i in range(count):
        with Image.open(frame_path(folder, i, count)) as frame:
            yield enlarge(frame, zoom)


def write_gif(folder: Path, count: int, zoom: int, milliseconds: int) -> None:
    """walk.gif from the numbered frames of a folder."""
    frames = read_frames(folder, count, zoom)
    path = folder / "walk.gif"
    with dlsgan.explain(f"cannot write {path}"):
        next(frames).save(path, save_all=True, append_images=frames, duration=milliseconds, loop=0)


@torch.no_grad()
def write_grid(
    model: dlsgan.DLSGAN, rows: int, columns: int, seed: int, out: str | Path, zoom: int = 1
) -> None:
    dlsgan.require(min(rows, columns, zoom) >= 1, "--rows, --columns and --zoom must be at least 1")
    path = new_file(out)
    parts = [model.decode(z).cpu() for z in draw_latents(model, rows * columns, seed)]
    images = torch.cat(parts).unflatten(0, (rows, columns))
    save(to_pillow(torch.cat([torch.cat(list(row), 2) for row in images], 1), zoom), path)
    print(f"{path}: {rows} x {columns} samples")


def main(command: str, checkpoint: str, device: str, out: str, seed: int, **given) -> None:
    model = dlsgan.load_model(checkpoint, device)
    if command == "images":
        write_images(model, given["count"], seed, out)
    elif command == "grid":
        write_grid(model, given["rows"], given["columns"], seed, out, given["zoom"])
    else:
        codes = given["codes"]
        if codes:
            _, stops = read_codes(codes, model)
            stops = dlsgan.to_device(stops, model.latent_scale.v.device)
        else:
            dlsgan.require(given["stops"] >= 2, f"{given['stops']} stops: a walk needs two")
            stops = torch.cat(list(draw_latents(model, given["stops"], seed)))
        timing = {"zoom": given["zoom"], "milliseconds": given["milliseconds"]}
        write_walk(model, stops, given["frames"], out, given["loop"], **timing)


if __name__ == "__main__":
    parser = cli.parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    images = commands.add_parser("images", help="numbered PNGs in a new folder")
    walk = commands.add_parser("walk", help="numbered frames and a GIF in a new folder")
    grid = commands.add_parser("grid", help="one picture")
    for subparser in (images, walk, grid):
        subparser.add_argument("checkpoint", help="folder of a run, or a checkpoint")
        subparser.add_argument("--out", required=True, help="new folder (of a grid: new file)")
        subparser.add_argument("--seed", type=int, default=0)
        subparser.add_argument("--device", default="cpu", help="cpu, cuda, mps or auto (default: cpu)")
    images.add_argument("count", type=int, help="number of images")
    walk.add_argument("--codes", help="file of encode_photos.py whose latent vectors are the stops")
    walk.add_argument("--stops", type=int, default=4, help="number of random stops (default: 4)")
    walk.add_argument("--frames", type=int, default=30, help="from one stop to the next (default: 30)")
    walk.add_argument("--loop", action="store_true", help="go back to the first stop")
    walk.add_argument("--milliseconds", type=int, default=50, help="of a frame of the GIF (default: 50)")
    grid.add_argument("--rows", type=int, default=8)
    grid.add_argument("--columns", type=int, default=8)
    for subparser in (walk, grid):
        subparser.add_argument("--zoom", type=int, default=1, help="pixels a pixel (default: 1)")
    with cli.one_line("write_samples"):
        main(**vars(parser.parse_args()))
