"""The latent vectors of a folder of photos as one file, and images from such a file.

    python -m toy_experiments.tools.encode_photos encode pretrained/celeba64.pt photos --out codes.npz
    python -m toy_experiments.tools.encode_photos decode pretrained/celeba64.pt codes.npz --out decoded

codes.npz holds `names`, the n files' paths below the folder; `z`, float32 [n, d], the encoder's predictions
z_hat, not yet scaled; `s` [d], the model's latent scale; and `checkpoint`, its name. In numpy:

    codes = numpy.load("codes.npz")
    codes["z"][list(codes["names"]).index("me.jpg")]

`decode` writes the image of each latent vector, G(z * s), as decoded/NAME.png. It takes edited vectors too,
but none of another model, which its scale gives away. `write_samples walk --codes codes.npz` goes from photo
to photo.

Photos are framed as the training images were (tools/align_face.py crops faces), and 64 are in memory at a
time. A folder of `encode` may hold folders and archives. Files that cannot be read are named at the end, with
exit code 2; the others are done. Nothing is overwritten. Expected printout: how many photos or images, and
where they are. Some hundred a second at 64x64 on one core of an AMD EPYC, most of it for reading them.
"""

import os
from functools import partial
from pathlib import Path, PurePosixPath

import torch

import dlsgan
from toy_experiments.shared import cli
from toy_experiments.shared.image_files import (
    BATCH,
    new_file,
    new_folder,
    read_codes,
    read_photos,
    require_all_read,
    save,
    to_pillow,
    write_codes,
)


@torch.no_grad()
def encode(checkpoint: str, folder: str, out: str, device: str = "cpu") -> None:
    """Writes z of each photo below a folder, by the path below it."""
    dlsgan.require(os.path.isdir(folder), f"{folder} is no folder")
    path = new_file(out)
    config, _ = dlsgan.read_checkpoint(checkpoint)
    model = dlsgan.load_model(checkpoint, device)
    photos = dlsgan.find_photos([folder])
    names = []
    parts = []
    failed = []
    for found, x in read_photos(photos, partial(dlsgan.read_image, config=config), failed):
        names += [os.path.relpath(photo, folder).replace(os.sep, "/") for photo in found]
        parts.append(model.encode(x.to(model.latent_scale.v.device)).cpu())
    if parts:
        write_codes(path, names, torch.cat(parts), model.latent_scale.scale(), checkpoint)
        print(f"{path}: latent vectors of {len(names):,} photos, d = {config.latent_dim}")
    require_all_read(failed)


def place(folder: Path, name: str) -> Path:
    """Where the image of a name belongs. UserError on a name that leads out of the folder."""
    parts = PurePosixPath(name.replace("\\", "/"))
    inside = parts.name and not parts.is_absolute() and ".." not in parts.parts and ":" not in name
    dlsgan.require(inside, f"the name {name!r} does not lie in the folder of the images")
    return folder / f"{parts}.png"


@torch.no_grad()
def decode(checkpoint: str, codes: str, out: str, device: str = "cpu") -> None:
    """Writes the image of each latent vector as NAME.png."""
    model = dlsgan.load_model(checkpoint, device)
    names, z = read_codes(codes, model)
    paths = [place(Path(out), name) for name in names]
    dlsgan.require(len(set(paths)) == len(paths), f"{codes} holds a name twice")
    new_folder(out)
    for start in range(0, len(z), BATCH):
        part = z[start : start + BATCH].to(model.latent_scale.v.device)
        for path, x in zip(paths[start:], model.decode(part), strict=False):
            save(to_pillow(x), path)
    print(f"{out}: {len(paths):,} images")


if __name__ == "__main__":
    parser = cli.parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    sources = {"folder": "photos below this folder", "codes": "file that `encode` wrote"}
    for function, source in zip((encode, decode), sources, strict=True):
        subparser = commands.add_parser(function.__name__, help=function.__doc__)
        subparser.add_argument("checkpoint", help="folder of a run, or a checkpoint")
        subparser.add_argument(source, help=sources[source])
        subparser.add_argument("--out", required=True, help="new file of codes, or new folder of images")
        subparser.add_argument("--device", default="cpu", help="cpu, cuda, mps or auto (default: cpu)")
    given = vars(parser.parse_args())
    with cli.one_line("encode_photos"):
        {"encode": encode, "decode": decode}[given.pop("command")](**given)
