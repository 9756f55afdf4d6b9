"""What the tests of all rooms share: where they run, small configurations, and writers of tiny data sets."""

import contextlib
import gzip
import runpy
import struct
import sys
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import dlsgan
from toy_experiments.shared import training
from toy_experiments.tools import results_table

ROOT = Path(__file__).parent
TINY = {
    "resolution": 16,
    "channel_base": 164,
    "channel_max": 10,
    "latent_dim": 4,
    "batch_size": 4,
    "images": 40,
    "threads": 1,
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """Each test runs in a folder of its own, with its own cache, one thread and fixed weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dlsgan, "NUM_EVAL_IMAGES", 24)
    monkeypatch.setattr(dlsgan, "report", no_report)
    monkeypatch.setitem(dlsgan.LOADERS, "cartoon", small_cartoon)
    torch.set_num_threads(1)
    torch.manual_seed(0)


def no_report(*arguments):
    """In place of dlsgan.report, which is slow; it is drawn in one test and by the subprocesses."""


def small_cartoon(config):
    images = dlsgan.to_uint8(dlsgan.cartoon_faces(64, config.resolution)[0]).numpy()
    return images[:40], images[40:]


def tiny(**settings):
    return dlsgan.Config(**TINY | settings)


@pytest.fixture
def tiny_plain():
    """A configuration, training images and test images for the experiments on images."""
    config = training.configure("cartoon", **TINY | {"images": 48})
    train_images, test_images = dlsgan.LOADERS["cartoon"](config)
    return config, train_images, test_images


def flat(module):
    """All weights as one vector."""
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def double(module):
    return module.double().requires_grad_()


@contextlib.contextmanager
def counted(owner, name, last=None):
    """Inside `with`, the list that this gives gets the arguments of each call of owner.name; call number
    `last` is a Ctrl-C instead."""
    function = getattr(owner, name)
    calls = []

    def limited(*arguments):
        calls.append(arguments)
        if len(calls) == last:
            raise KeyboardInterrupt
        return function(*arguments)

    with mock.patch.object(owner, name, limited):
        yield calls


class Inverse(nn.Module):
    """x -> logits that mean nothing, and the pixels as z_hat."""

    def forward(self, x):
        return x.flatten(1)[:, 0], x.flatten(1)


def perfect_model(pixels=16):
    """G is the identity on d = H*W values, D's head its exact inverse."""
    generator = nn.Unflatten(1, (1, pixels, pixels))
    return dlsgan.DLSGAN(generator, Inverse(), dlsgan.LatentScale(pixels**2))


def page_text(page):
    """A page of the repository, every run of white space as one space."""
    return " ".join((ROOT / page).read_text().split())


def judged(name):
    """What the judges of toy_experiments.settings said of a kept run."""
    return results_table.load(name)["judged"]


def run_command(module, *arguments):
    """`python -m MODULE ARGUMENTS` in this process; returns the exit code."""
    with mock.patch.object(sys, "argv", [module, *arguments]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the module has been imported already
        try:
            runpy.run_module(module, run_name="__main__")
        except SystemExit as end:
            return end.code
    return 0


# ---- Tiny data sets, in the layout of the real ones --------------------------------------------------------


def write_idx(path, images, magic=0x803):
    data = struct.pack(">4I", magic, *images.shape) + images.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_mnist(root, n=30):
    random = np.random.default_rng(0)
    for name in ("train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte"):
        write_idx(root / name, random.integers(0, 256, (n, 28, 28), dtype=np.uint8))


def write_celeba(root, n=30, test=5, newline="\r\n", size=(218, 178)):
    """n images of noise; the first ones are for testing. Ten more are listed than present."""
    folder = root / "img_align_celeba"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    names = [f"{i:06d}.jpg" for i in range(1, n + 11)]
    for name in names[:n]:
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    partition = [f"{name} {2 if i < test else i % 2}" for i, name in enumerate(names)]
    (root / "list_eval_partition.txt").write_bytes(newline.join(partition).encode() + b"\n")
    attributes = [str(len(names)), "Smiling Young"] + [f"{name}  1 -1" for name in names]
    (root / "list_attr_celeba.txt").write_bytes(newline.join(attributes).encode())


def write_attributes(root, columns, newline="\r\n"):
    """Labels that tell which image they belong to: attribute k of image i is bit k of i."""
    names = sorted(path.name for path in (root / "img_align_celeba").glob("*.jpg"))
    lines = [str(len(names)), " ".join(columns)]
    for name in names:
        bits = [int(name[:6]) >> k & 1 for k in range(len(columns))]
        lines.append(f"{name} {' '.join('1' if bit else '-1' for bit in bits)}")
    (root / "list_attr_celeba.txt").write_bytes(newline.join(lines).encode())


def odd_images(root):
    """Grey, transparent, of a palette, CMYK, in a subfolder."""
    root.mkdir()
    gradient = np.linspace(0, 255, 40 * 30).reshape(40, 30).astype(np.uint8)
    Image.fromarray(gradient).save(root / "grey.png")
    Image.fromarray(np.dstack([gradient] * 3 + [np.zeros_like(gradient)]), "RGBA").save(root / "clear.png")
    Image.fromarray(np.dstack([gradient, gradient]), "LA").save(root / "grey_alpha.png")
    Image.fromarray(gradient).convert("P").save(root / "palette.gif")
    Image.fromarray(np.dstack([gradient] * 3)).convert("CMYK").save(root / "cmyk.jpg")
    (root / "deep").mkdir()
    Image.fromarray(np.dstack([gradient] * 3)).save(root / "deep" / "photo.JPG")
