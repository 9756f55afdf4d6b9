"""Networks that read attributes off images, to judge what generators and edits do: the eight factors of cartoon faces, or
CelebA's attributes. They learn from drawn or labelled images, independently of what they judge. Nothing to run here."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dlsgan

CELEBA_ATTRIBUTES = ("Smiling", "Male", "Eyeglasses", "Bangs", "Young")


def in_parts(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.cat([function(part) for part in x.split(50)])


def blur(x: Tensor) -> Tensor:
    """The mean of 3x3 pixels; [B, C, H, W] -> the same."""
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def train_judge(draw, loss, resolution: int, outputs: int, steps: int, seed: int) -> Callable[[Tensor], Tensor]:
    """A judge of images, x [N, 3, H, W] -> [N, outputs]: a small convolutional network with batch normalisation. draw(step)
    gives x [B, 3, H, W] and targets [B, outputs]. Decoded pictures are less sharp than those the judge learns from, so these
    are blurred, with noise, by random amounts."""
    torch.manual_seed(seed)
    layers, size = [nn.Conv2d(3, 32, 5, 2, 2, bias=False)], resolution // 2  # strided: [B, 32, H/2, W/2]
    for c_in in (32, 64)[: 1 + (resolution > 32)]:  # down to H/4, or H/8 for larger images
        layers += [nn.BatchNorm2d(c_in), nn.ReLU(), nn.Conv2d(c_in, 64, 3, 2, 1, bias=False)]
        size //= 2
    layers += [nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers += [nn.Flatten(), nn.Linear(64 * size**2, 256), nn.ReLU(), nn.Linear(256, outputs)]
    network = nn.Sequential(*layers).to(memory_format=torch.channels_last)
    optimizer, rng = torch.optim.Adam(network.parameters(), 2e-3), torch.Generator().manual_seed(seed)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1.0, (step + 1) / 50) * 0.02 ** (step / steps)
        x, targets = draw(step)
        amounts = torch.rand(2, len(x), 1, 1, 1, generator=rng)
        x = x.lerp(blur(x), amounts[0]) + 0.05 * amounts[1] * torch.randn(x.shape, generator=rng)
        optimizer.zero_grad()
        loss(network(x.contiguous(memory_format=torch.channels_last)), targets).backward()
        optimizer.step()
    network.eval().requires_grad_(False)
    return lambda x: in_parts(network, x.clamp(-1, 1))


def factor_regressor(resolution: int, steps: int = 1000, seed: int = 0) -> tuple[Callable[[Tensor], Tensor], dict]:
    """A judge that reads the eight factors off cartoon faces, x [N, 3, H, W] -> u [N, 8], and its R^2 per factor on 2,000
    new faces, sharp and blurred."""
    judge = train_judge(lambda i: dlsgan.cartoon_faces(64, resolution, 10_000 + i), F.mse_loss, resolution, 8, steps, seed)
    x, u = dlsgan.cartoon_faces(2000, resolution, 9999)
    scores = {}
    for name, seen in (("R^2", x), ("R^2, blurred", blur(x))):
        error = (judge(seen) - u).square().mean(0) / u.var(0)
        scores[name] = [round(1 - e, 4) for e in error.tolist()]
    return judge, scores


def celeba_labels(config: dlsgan.Config) -> np.ndarray:
    """Whether each image has CELEBA_ATTRIBUTES, bool [N, 5], in the order of dlsgan.load_celeba: training images first."""
    train, test, table = dlsgan.find_celeba(config)
    if not table:
        raise dlsgan.UserError(f"no attributes in {config.data_dir}: list_attr_celeba.txt, or Kaggle's .csv, is needed")
    with dlsgan.explain(f"list_attr_celeba in {config.data_dir} does not name the attributes"):
        chosen = [table["image_id"].index(name) for name in CELEBA_ATTRIBUTES]
    _, readable = dlsgan.cache_images(train + test, config)
    names = [Path(path).stem for path, good in zip(train + test, readable, strict=True) if good]
    return np.array([table[name] for name in names])[:, chosen] > 0


def attribute_classifier(images: np.ndarray, labels: np.ndarray, chosen: np.ndarray, steps: int, seed: int = 0):
    """A judge that gives the probability of each attribute, x [N, 3, H, W] -> [N, K], trained on the chosen ones
    (indices) of images uint8 [M, 3, H, W] with labels bool [M, K]."""
    indices = dlsgan.batches(chosen.reshape(-1, 1, 1, 1), min(64, len(chosen)), seed, 0, False)

    def draw(step: int) -> tuple[Tensor, Tensor]:
        i = next(indices).ravel()
        x = dlsgan.to_float(images[i])
        return x.flip(3) if step % 2 else x, torch.from_numpy(labels[i]).float()

    judge = train_judge(draw, F.binary_cross_entropy_with_logits, images.shape[2], labels.shape[1], steps, seed)
    return lambda x: judge(x).sigmoid()
