"""Planar data, d = 8 latent dimensions: the scale finds the two that the data has.

Claim. On a ring of Gaussians, a swiss roll, a checkerboard and a correlated Gaussian, training with the latent scale ends
with two live dimensions (v > 1/2) and a small L_enc. Without it the generator spreads its information over eight latents,
the encoder can recover about two of eight parts, and L_enc stays near 1 - k/d = 0.75 (k = 2; a guide, not a bound: maps
that are not linear can do a little better). An encoder that is trained afterwards on the frozen generator, the usual way to
invert a GAN, ends there, too: what the generator has lost no later encoder finds.
On an open curve one number is enough, yet two dimensions stay alive: the generator can put a second latent just off the
curve, where the encoder reads it and the discriminator hardly sees it.

Limits. After 1,000 steps none of the generators shows the clusters or the thickness of the data: the samples (yellow) are
too smooth, about equally with and without scale, as their sliced Wasserstein distance from the data says. And v can lie
above 1, which no optimal encoder's does: this one chases a moving generator. The claim is about the latent vector alone.

    python -m toy_experiments.two_dimensional       about 4 minutes on one core; draws results/two_dimensional.png

Expected printout, a line a data set and seed (the numbers vary a little with the machine):
    ring, seed 0: 2 live, L_enc 0.01; without scale 0.67; encoder trained afterwards 0.66; ...
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import dlsgan
from toy_experiments.shared.distances import sliced_wasserstein

RESULTS = Path(__file__).parent / "results"
D = 8  # latent dimensions


def draw_data(name: str, n: int, rng: torch.Generator) -> Tensor:
    """[n, 2] points of a data set, scaled to roughly unit variance."""
    u, noise = torch.rand(n, 2, generator=rng), torch.randn(n, 2, generator=rng)
    if name == "ring":
        angle = (8 * u[:, 0]).floor() * (2 * math.pi / 8)
        return torch.stack((angle.cos(), angle.sin()), 1) + 0.05 * noise
    if name == "swiss roll":
        t = 1.5 * math.pi * (1 + 2 * u[:, 0])
        return torch.stack((t * t.cos(), t * t.sin()), 1) / 7 + 0.05 * noise
    if name == "checkerboard":
        column = (4 * u[:, 0]).floor()
        row = 2 * (2 * u[:, 1]).floor() + column % 2  # every second square
        inside = torch.rand(n, 2, generator=rng)
        return (torch.stack((column, row), 1) + inside - 2) * 0.8
    if name == "gaussian":
        return torch.stack((noise[:, 0], 0.8 * noise[:, 0] + 0.6 * noise[:, 1]), 1)
    if name == "curve":
        t = 2 * u[:, 0] - 1
        return torch.stack((1.5 * t, (math.pi * t).sin()), 1)
    raise ValueError(f"unknown data set {name!r}")


PLANAR = ("ring", "swiss roll", "checkerboard", "gaussian")


class Discriminator(nn.Module):
    """x [B, 2] -> logits [B], z_hat [B, d]."""

    def __init__(self, width: int = 96):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2))
        self.head = nn.Linear(width, 1 + D)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.head(self.body(x))
        return out[:, 0], out[:, 1:]


def train(name: str, seed: int, scale: bool, steps: int = 1000) -> dlsgan.DLSGAN:
    """Small networks through the same training step as the faces: `dlsgan.train_step`."""
    torch.manual_seed(seed)
    layers = [nn.Linear(D, 96), nn.LeakyReLU(0.2), nn.Linear(96, 96), nn.LeakyReLU(0.2), nn.Linear(96, 2)]
    model = dlsgan.DLSGAN(nn.Sequential(*layers), Discriminator(), dlsgan.LatentScale(D, window=100, enabled=scale))
    optimizers, rng = dlsgan.make_optimizers(model, 2e-3), torch.Generator().manual_seed(seed)
    for step in range(steps):
        real = draw_data(name, 256, rng)
        dlsgan.train_step(model, optimizers, real, rng, penalty_weight=0.0 if step % 4 else 2.0)
    return model


def encoder_afterwards(model: dlsgan.DLSGAN, seed: int, steps: int = 1000) -> nn.Module:
    """The usual way: a new encoder for the frozen generator, by the mean squared error of z."""
    torch.manual_seed(seed)
    encoder = Discriminator()
    optimizer = torch.optim.Adam(encoder.parameters(), lr=2e-3)
    rng = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        z = dlsgan.prior(256, model.latent_scale, rng)
        with torch.no_grad():
            x = model.decode(z)
        loss = (encoder(x)[1] - z).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return encoder


@torch.no_grad()
def measure(model: dlsgan.DLSGAN, encoder: nn.Module, name: str, n: int = 20_000) -> dict:
    """L_enc, v and the number of live dimensions, on fresh latent vectors, and how far the samples lie from the data."""
    z = dlsgan.prior(n, model.latent_scale, torch.Generator().manual_seed(1))
    z_hat = encoder(model.decode(z))[1]
    v = z_hat.square().mean(0)
    l_enc = dlsgan.encoder_loss(z, z_hat, model.latent_scale.scale()).item()
    distance = sliced_wasserstein(model.decode(z), draw_data(name, n, torch.Generator().manual_seed(2)), projections=32)
    spectrum = sorted((round(x, 3) for x in v.tolist()), reverse=True)
    return {"l_enc": l_enc, "live": int((v > 0.5).sum()), "v": spectrum, "distance_of_samples": round(distance, 4)}


def run(name: str, seed: int, steps: int = 1000) -> tuple[dict, dict]:
    """The three columns for one data set: measures and models."""
    models = {"with scale": train(name, seed, True, steps), "without scale": train(name, seed, False, steps)}
    encoders = {key: model.discriminator for key, model in models.items()}
    models["encoder afterwards"] = models["without scale"]
    encoders["encoder afterwards"] = encoder_afterwards(models["without scale"], seed, steps)
    result = {key: measure(models[key], encoders[key], name) for key in models}
    found, lost, late = result.values()
    distances = f"{found['distance_of_samples']:.2f} with, {lost['distance_of_samples']:.2f} without scale"
    print(f"{name}, seed {seed}: {found['live']} live, L_enc {found['l_enc']:.2f}; without scale {lost['l_enc']:.2f}; "
          f"encoder trained afterwards {late['l_enc']:.2f}; distance of samples from the data {distances}", flush=True)
    return result, models


def main(seeds: int = 3, steps: int = 1000) -> dict:
    torch.set_num_threads(1)
    result, pictures = {}, {}
    for name in (*PLANAR, "curve"):
        runs = [run(name, seed, steps) for seed in range(seeds)]
        result[name] = [measures for measures, _ in runs]
        pictures[name] = runs[0]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "two_dimensional.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(pictures, RESULTS / "two_dimensional.png")
    return result


@torch.no_grad()
def latent_lines(model: dlsgan.DLSGAN, first: int, second: int) -> list[np.ndarray]:
    """Images of grid lines in the plane of two latent dimensions, the others at 0: polylines [m, 2]."""
    lines = []
    for a, b in ((first, second), (second, first)):
        for level in torch.linspace(-2, 2, 9):
            z = torch.zeros(80, D)
            z[:, a], z[:, b] = torch.linspace(-2.5, 2.5, 80), level
            lines.append(model.decode(z).numpy())
    return lines


@torch.no_grad()
def draw(pictures: dict, path: Path) -> None:
    """Rows: data sets. Columns: data; latent grids with and without scale; v of all three ways."""
    from matplotlib.figure import Figure

    figure = Figure((10.5, 2.3 * len(pictures)), layout="constrained")
    rows = figure.subplots(len(pictures), 4, width_ratios=(1, 1, 1, 1.3))
    for (name, (result, models)), row in zip(pictures.items(), rows, strict=True):
        points = draw_data(name, 2000, torch.Generator().manual_seed(0)).numpy()
        row[0].scatter(*points.T, s=2, color="0.3", linewidths=0)
        row[0].set_ylabel(name)
        for axis, key in zip(row[1:3], ("with scale", "without scale"), strict=True):
            order = models[key].discriminator(models[key].sample(2000))[1].square().mean(0).argsort(descending=True)
            axis.scatter(*models[key].sample(2000).numpy().T, s=2, color="#edae49", linewidths=0)
            for i, line in enumerate(latent_lines(models[key], int(order[0]), int(order[1]))):
                axis.plot(*line.T, linewidth=0.8, color="#d1495b" if i < 9 else "#30638e")
        for axis in row[:3]:
            axis.set(xticks=[], yticks=[], xlim=row[0].get_xlim(), ylim=row[0].get_ylim())
        for key, marker in zip(result, "os^", strict=True):
            row[3].plot(range(1, D + 1), result[key]["v"], marker, label=f"{key}: L_enc {result[key]['l_enc']:.2f}")
        row[3].axhline(0.5, color="0.6", linestyle="--", linewidth=0.8)
        row[3].set(ylim=(-0.05, 1.45), yticks=(0, 0.5, 1), ylabel="v")
        row[3].legend(frameon=False, fontsize=8, loc="upper right")
    for axis, title in zip(rows[0], ("data", "samples, latent grid, with scale", "without scale", "v, sorted"), strict=True):
        axis.set_title(title, fontsize=10)
    rows[-1][3].set_xlabel("latent dimension; guide for L_enc: 1 - 2/8 = 0.75", fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="runs a data set (default: 3)")
    main(**vars(parser.parse_args()))
