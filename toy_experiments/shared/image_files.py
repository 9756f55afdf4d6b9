"""Images as files: folders that nothing is overwritten in, numbered PNGs, photos read in batches, latent
vectors of photos. Nothing to run here."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import dlsgan

BATCH = 64  # images in memory at a time
CODES_FAULTS = (KeyError, EOFError, TypeError, AttributeError)  # of np.load on what is no archive of codes


def new_folder(out: str | Path) -> Path:
    """Makes a folder. UserError if something is in it."""
    path = Path(out)
    with dlsgan.explain(f"cannot write to {path}"):
        path.mkdir(parents=True, exist_ok=True)
        dlsgan.require(not any(path.iterdir()), "there are files in it, which would be mixed with new ones")
    return path


def new_file(out: str | Path) -> Path:
    """A path in a folder that exists. UserError if the file is there."""
    path = Path(out)
    with dlsgan.explain(f"cannot write {path}"):
        dlsgan.require(not path.exists(), "it is there, and nothing is overwritten")
        path.parent.mkdir(parents=True, exist_ok=True)
    return path


def to_pillow(x: Tensor, zoom: int = 1) -> Image.Image:
    """[C, H, W] in [-1, 1], clipped to that -> a grey or RGB picture, each pixel zoom x zoom large."""
    image = Image.fromarray(dlsgan.make_grid([x[None]]))
    return enlarge(image, zoom)


def enlarge(image: Image.Image, zoom: int) -> Image.Image:
    return image.resize((zoom * image.width, zoom * image.height), Image.NEAREST)


def save(image: Image.Image, path: Path) -> None:
    with dlsgan.explain(f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)


def frame_path(folder: Path, i: int, count: int) -> Path:
    """The i-th of `count` PNGs: digits enough for all of them, at least six, so that they sort by number."""
    return folder / f"{i:0{max(6, len(str(count - 1)))}d}.png"


def read_photos(
    photos: Iterable[str],
    read: Callable[[str], np.ndarray],  # path -> uint8 [C, H, W]
    failed: list[str],  # gets a line for each photo that cannot be read
) -> Iterator[tuple[list[str], Tensor]]:
    """Paths and images [n, C, H, W] in [-1, 1] of up to BATCH photos at a time."""
    paths = []
    images = []
    for photo in photos:
        try:
            images.append(read(photo))
            paths.append(photo)
        except Exception as fault:  # Pillow raises many kinds on damaged files
            failed.append(f"{photo}: {' '.join(str(fault).split())}")
        if len(paths) == BATCH:
            yield paths, dlsgan.to_float(np.stack(images))
            paths = []
            images = []
    if paths:
        yield paths, dlsgan.to_float(np.stack(images))


def require_all_read(failed: list[str]) -> None:
    """UserError that names the photos that could not be read, if there are any."""
    dlsgan.require(not failed, f"{len(failed)} of the files cannot be read as an image: {'; '.join(failed)}")


def write_codes(path: Path, names: list[str], z: Tensor, s: Tensor, checkpoint: str | Path) -> None:
    """Latent vectors of photos: names [n], z float32 [n, d], scale s [d], and the checkpoint's name."""
    arrays = {"names": np.array(names, np.str_), "z": z.cpu().numpy(), "s": s.cpu().numpy()}
    with dlsgan.explain(f"cannot write {path}"), open(path, "xb") as file:
        np.savez(file, checkpoint=np.array(Path(checkpoint).name), **arrays)


def read_codes(path: str | Path, model: dlsgan.DLSGAN) -> tuple[list[str], Tensor]:
    """Names [n] and z [n, d] of a file of `write_codes`. UserError if it is none, or of another model."""
    s = model.latent_scale.scale().cpu()
    with dlsgan.explain(f"{path} holds no latent vectors of this model", *CODES_FAULTS):
        with np.load(path) as file:  # never runs code from the file
            names = file["names"].tolist()
            z = torch.from_numpy(file["z"])
            scale = torch.from_numpy(file["s"])
            made_by = file["checkpoint"].item()
        fits = z.dim() == 2 and z.shape == (len(names), len(s)) and z.dtype == torch.float32
        dlsgan.require(fits, f"its z is {z.dtype} {list(z.shape)}, for {len(names)} names and d = {len(s)}")
        same = scale.shape == s.shape and torch.allclose(scale, s, atol=1e-3)
        dlsgan.require(same, f"its latent scale is that of {made_by}")
        dlsgan.require(z.isfinite().all(), "its z is not finite")
    return names, z
