"""Distances between two sets of images: sliced Wasserstein (needs no network) and FID (needs Inception).

    python -m toy_experiments.shared.distances runs/cartoon                                     about a minute
    python -m toy_experiments.shared.distances runs/celeba64 --inception inception-2015-12-05.pt

prints the distances between samples of a trained model and its test images, and, as a yardstick for the best
that can be expected, between two halves of the test set. Images are [N, C, H, W] in [-1, 1] and are clipped
to that.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import dlsgan
from toy_experiments.shared import cli


def wasserstein_1d(a: Tensor, b: Tensor) -> Tensor:
    """Wasserstein-1 distance between samples of equal number: [n, k] twice -> [k], the mean gap between
    sorted values."""
    return (a.sort(0).values - b.sort(0).values).abs().mean(0)


def sliced_wasserstein(a: Tensor, b: Tensor, projections: int = 512, seed: int = 0) -> float:
    """Mean Wasserstein-1 distance between projections of two clouds of points [n, k] on random unit
    vectors."""
    n = min(len(a), len(b))
    directions = torch.randn(a.shape[1], projections, generator=torch.Generator().manual_seed(seed)).to(a)
    directions = directions / directions.norm(dim=0)
    return wasserstein_1d(a[:n] @ directions, b[:n] @ directions).mean().item()


def smooth(x: Tensor, gain: float = 1.0) -> Tensor:
    """The binomial filter [1, 4, 6, 4, 1] / 16 in both directions, times gain; [N, C, H, W] -> the same."""
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=x.dtype, device=x.device) / 16
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 5, 5)  # the same for each channel
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), gain * kernel, groups=x.shape[1])


def laplacian_pyramid(images: Tensor, smallest: int = 16) -> list[Tensor]:
    """Band-pass images from the full resolution down to `smallest`, whose level keeps the low frequencies."""
    levels = []
    while images.shape[-1] > smallest:
        small = smooth(images)[:, :, ::2, ::2]
        up = torch.zeros_like(images)
        up[:, :, ::2, ::2] = small
        levels.append(images - smooth(up, 4.0))
        images = small
    return [*levels, images]


def patches(level: Tensor, per_image: int, size: int, seed: int) -> Tensor:
    """Random patches [N * per_image, C * size^2], normalised per channel to mean 0 and standard deviation
    1."""
    n, _, h, _ = level.shape
    random = np.random.default_rng(seed)
    y, x = random.integers(0, h - size + 1, (2, n, per_image))
    windows = level.unfold(2, size, 1).unfold(3, size, 1)  # [N, C, h', w', size, size], a view
    found = windows[np.arange(n)[:, None], :, y, x].flatten(0, 1)  # [N * per_image, C, size, size]
    mean = found.mean((0, 2, 3), keepdim=True)
    std = found.std((0, 2, 3), keepdim=True)
    return ((found - mean) / std.clamp(min=1e-8)).flatten(1)


def swd(a: Tensor, b: Tensor, per_image: int = 64, size: int = 7, seed: int = 0) -> dict[str, float]:
    """Sliced Wasserstein distance times 1000 on 7x7 patches of each pyramid level (Karras et al. 2018, the
    measure of LIA), and their mean. {"32": ..., "16": ..., "mean": ...}; smaller is better."""
    n = min(len(a), len(b))
    pyramid_a = laplacian_pyramid(a[:n].clamp(-1, 1))
    pyramid_b = laplacian_pyramid(b[:n].clamp(-1, 1))
    result = {}
    for level_a, level_b in zip(pyramid_a, pyramid_b, strict=True):
        patches_a = patches(level_a, per_image, size, seed)
        patches_b = patches(level_b, per_image, size, seed)
        result[str(level_a.shape[-1])] = 1000 * sliced_wasserstein(patches_a, patches_b, seed=seed)
    return result | {"mean": sum(result.values()) / len(result)}


def frechet_distance(mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray) -> float:
    """|mean_a - mean_b|^2 + trace(A + B - 2 (A B)^(1/2)) for covariances A, B (Heusel et al. 2017), in
    float64. The trace of the root is that of the symmetric (A^(1/2) B A^(1/2))^(1/2), whose eigenvalues are
    real."""
    values, vectors = np.linalg.eigh(cov_a)
    root_a = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    root_trace = np.sqrt(np.linalg.eigvalsh(root_a @ cov_b @ root_a).clip(0)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * root_trace)


@torch.no_grad()
def inception_features(images: Tensor, inception: torch.nn.Module, batch_size: int = 32) -> np.ndarray:
    """[N, C, H, W] in [-1, 1] -> float64 [N, 2048]. The standard TorchScript file takes uint8 RGB and resizes
    itself."""
    if images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    parts = [inception(dlsgan.to_uint8(part), return_features=True) for part in images.split(batch_size)]
    return torch.cat(parts).double().cpu().numpy()


def fid(a: Tensor, b: Tensor, inception: torch.nn.Module) -> float:
    """Frechet Inception distance. With few images it is biased upwards: compare only equal numbers of
    images."""
    moments = []
    for images in (a, b):
        features = inception_features(images, inception)
        moments += [features.mean(0), np.cov(features, rowvar=False)]
    return frechet_distance(*moments)


def load_inception(path: str) -> torch.nn.Module:
    with dlsgan.explain(f"{path} is not the TorchScript file inception-2015-12-05.pt"):
        return torch.jit.load(path).eval()


@torch.no_grad()
def samples_like(model: dlsgan.DLSGAN, images: Tensor) -> Tensor:
    """As many samples of a model as there are images, on the CPU."""
    return torch.cat([model.sample(len(part), seed).cpu() for seed, part in enumerate(images.split(50))])


def main(run: str, inception: str | None = None) -> dict:
    """The distances of a run's samples, and of one half of its test set from the other."""
    network = load_inception(inception) if inception else None
    config, _ = dlsgan.read_checkpoint(run)
    model = dlsgan.load(run, "cpu")
    test = dlsgan.to_float(dlsgan.LOADERS[config.dataset](config)[1][:2000])
    half = len(test) // 2
    compared = {"samples": samples_like(model, test[:half]), "other test images": test[half : 2 * half]}
    result = {}
    for name, images in compared.items():
        result[name] = {f"swd {level}": value for level, value in swd(images, test[:half]).items()}
        if network:
            result[name]["FID"] = fid(images, test[:half], network)
        told = ", ".join(f"{key} {value:.2f}" for key, value in result[name].items())
        print(f"{half} {name} from {half} test images: {told}")
    if not network:
        print("FID: absent (give --inception FILE)")
    return result


if __name__ == "__main__":
    parser = cli.parser(__doc__)
    parser.add_argument("run", help="folder of a run, or a checkpoint")
    parser.add_argument("--inception", help="TorchScript file inception-2015-12-05.pt")
    with cli.one_line("distances"):
        main(**vars(parser.parse_args()))
