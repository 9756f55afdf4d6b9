"""Networks that read attributes off images, to judge what generators and edits do: the eight factors of
cartoon faces, or CelebA's attributes. They learn from drawn or labelled images, independently of what they
judge. Nothing to run here."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dlsgan

CELEBA_ATTRIBUTES = ("Smiling", "Male", "Eyeglasses", "Bangs", "Young")


def blur(x: Tensor) -> Tensor:
    """The mean of 3x3 pixels; [B, C, H, W] -> the same."""
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def judge_network(resolution: int, outputs: int) -> nn.Sequential:
    """A small convolutional network with batch normalisation: [B, 3, H, W] -> [B, outputs]."""
    layers = [nn.Conv2d(3, 32, 5, 2, 2, bias=False)]  # strided: [B, 32, H/2, W/2]
    size = resolution // 2
    widths = (32, 64) if resolution > 32 else (32,)
    for c_in in widths:  # down to H/4, or H/8 for larger images
        layers += [nn.BatchNorm2d(c_in), nn.ReLU(), nn.Conv2d(c_in, 64, 3, 2, 1, bias=False)]
        size //= 2
    layers += [
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, 1, 1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
    ]
    layers += [nn.Flatten(), nn.Linear(64 * size**2, 256), nn.ReLU(), nn.Linear(256, outputs)]
    return nn.Sequential(*layers)


def read(network: nn.Module, x: Tensor) -> Tensor:
    """What a trained judge says of images [N, 3, H, W]: [N, outputs]."""
    return dlsgan.in_batches(network, x.clamp(-1, 1))


def read_probabilities(network: nn.Module, x: Tensor) -> Tensor:
    return read(network, x).sigmoid()


def train_judge(
    examples: Iterator[tuple[Tensor, Tensor]],  # images [B, 3, H, W] and targets [B, outputs] for each step
    loss: Callable[[Tensor, Tensor], Tensor],
    resolution: int,
    outputs: int,
    steps: int,
    seed: int,
) -> nn.Module:
    """A judge of images. Decoded pictures are less sharp than those the judge learns from, so these are
    blurred, with noise of a standard deviation up to 0.05, by random amounts. The learning rate rises over
    50 steps and falls along them all, from 2e-3 to 0.02 of that."""
    torch.manual_seed(seed)
    network = judge_network(resolution, outputs).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    rng = torch.Generator().manual_seed(seed)
    for step in range(steps):
        dlsgan.decay_learning_rate([optimizer], 2e-3 * min(1.0, (step + 1) / 50), 0.02, step / steps)
        x, targets = next(examples)
        amounts = torch.rand(2, len(x), 1, 1, 1, generator=rng)
        x = x.lerp(blur(x), amounts[0]) + 0.05 * amounts[1] * torch.randn(x.shape, generator=rng)
        optimizer.zero_grad()
        loss(network(x.contiguous(memory_format=torch.channels_last)), targets).backward()
        optimizer.step()
    return network.eval().requires_grad_(False)


def drawn_faces(resolution: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of new cartoon faces and their factors."""
    for seed in itertools.count(10_000):
        yield dlsgan.cartoon_faces(64, resolution, seed)


def factor_regressor(
    resolution: int, steps: int = 1000, seed: int = 0
) -> tuple[Callable[[Tensor], Tensor], dict]:
    """A judge that reads the eight factors off cartoon faces, x [N, 3, H, W] -> u [N, 8], and its R^2 per
    factor on 2,000 new faces, sharp and blurred."""
    network = train_judge(drawn_faces(resolution), F.mse_loss, resolution, 8, steps, seed)
    judge = partial(read, network)
    x, u = dlsgan.cartoon_faces(2000, resolution, 9999)
    scores = {}
    for name, seen in (("R^2", x), ("R^2, blurred", blur(x))):
        error = (judge(seen) - u).square().mean(0) / u.var(0)
        scores[name] = [round(1 - e, 4) for e in error.tolist()]
    return judge, scores


def celeba_labels(config: dlsgan.Config) -> np.ndarray:
    """Whether each image has CELEBA_ATTRIBUTES, bool [N, 5], in the order of dlsgan.load_celeba: training
    images first. UserError if there is no table of attributes, or it lacks one of them."""
    train, test, (columns, table) = dlsgan.find_celeba(config)
    needed = f"no attributes in {config.data_dir}: list_attr_celeba.txt, or Kaggle's .csv, is needed"
    dlsgan.require(table, needed)
    missing = [name for name in CELEBA_ATTRIBUTES if name not in columns]
    dlsgan.require(not missing, f"list_attr_celeba in {config.data_dir} has no column {', '.join(missing)}")
    chosen = [columns.index(name) for name in CELEBA_ATTRIBUTES]
    _, readable = dlsgan.cache_images(train + test, config)
    names = [Path(path).stem for path, good in zip(train + test, readable, strict=True) if good]
    return np.array([table[name] for name in names])[:, chosen] > 0


def labelled_images(
    images: np.ndarray, labels: np.ndarray, chosen: np.ndarray, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of the chosen images and their labels, every second batch mirrored."""
    indices = dlsgan.batches(chosen.reshape(-1, 1, 1, 1), min(64, len(chosen)), seed, 0, False)
    for step, batch in enumerate(indices):
        i = batch.ravel()
        x = dlsgan.to_float(images[i])
        yield x.flip(3) if step % 2 else x, torch.from_numpy(labels[i]).float()


def attribute_classifier(
    images: np.ndarray,  # uint8 [M, 3, H, W]
    labels: np.ndarray,  # bool [M, K]
    chosen: np.ndarray,  # indices of those to learn from
    steps: int,
    seed: int = 0,
) -> Callable[[Tensor], Tensor]:
    """A judge that gives the probability of each attribute, x [N, 3, H, W] -> [N, K]."""
    examples = labelled_images(images, labels, chosen, seed)
    loss = F.binary_cross_entropy_with_logits
    return partial(
        read_probabilities, train_judge(examples, loss, images.shape[2], labels.shape[1], steps, seed)
    )
