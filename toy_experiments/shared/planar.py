"""Planar data with eight latent dimensions: data sets, networks, training and measures, for the experiments
two_dimensional and failure_gallery and for the tutorial. The losses and the step are those of dlsgan.py."""

import copy
import functools
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

import dlsgan
from toy_experiments.shared.distances import sliced_wasserstein

D = 8  # latent dimensions
WIDTH = 128  # units of each of three hidden layers
STEPS = 5000
BATCH_SIZE = 256
LEARNING_RATE = 2e-3  # of Adam
FINAL = 0.03  # what is left of it at the end
R1_GAMMA = 0.01
ENCODER_WEIGHT = 0.3  # lambda
PLANAR = ("ring", "swiss roll", "checkerboard", "gaussian")
DATA = (*PLANAR, "curve")
SIGMA = 0.05  # standard deviation of a mode of the ring, and of the swiss roll across its sheet
MODES = torch.tensor(
    [(math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)) for k in range(8)]
)  # of the ring
COVARIANCE = torch.tensor([[1.0, 0.8], [0.8, 1.0]])  # of the gaussian


def draw_data(name: str, n: int, rng: torch.Generator) -> Tensor:
    """[n, 2] points of a data set, scaled to roughly unit variance. Raises ValueError for an unknown name."""
    u = torch.rand(n, 2, generator=rng)
    noise = torch.randn(n, 2, generator=rng)
    if name == "ring":
        mode = (8 * u[:, 0]).long()
        return MODES[mode] + SIGMA * noise
    if name == "swiss roll":
        t = 1.5 * math.pi * (1 + 2 * u[:, 0])
        return torch.stack((t * t.cos(), t * t.sin()), 1) / 7 + SIGMA * noise
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


def hidden_layers(inputs: int) -> list[nn.Module]:
    """Three layers [B, inputs] -> [B, WIDTH], each with its leaky ReLU."""
    layers = []
    for n in (inputs, WIDTH, WIDTH):
        layers += [nn.Linear(n, WIDTH), nn.LeakyReLU(0.2)]
    return layers


class Generator(nn.Sequential):
    """z * s [B, d] -> x [B, 2]."""

    def __init__(self):
        super().__init__(*hidden_layers(D), nn.Linear(WIDTH, 2))


class Discriminator(nn.Module):
    """x [B, 2] -> logits [B], z_hat [B, d]."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(*hidden_layers(2))
        self.head = nn.Linear(WIDTH, 1 + D)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.head(self.body(x))
        return out[:, 0], out[:, 1:]


def build(seed: int, scale: bool = True) -> dlsgan.DLSGAN:
    """Fresh networks. scale: whether the latent scale is used; v is measured all the same."""
    torch.manual_seed(seed)
    return dlsgan.DLSGAN(Generator(), Discriminator(), dlsgan.LatentScale(D, window=100, enabled=scale))


def training(
    model: dlsgan.DLSGAN,
    name: str,  # data set
    seed: int,  # of data and latent vectors
    steps: int = STEPS,
    batch_size: int = BATCH_SIZE,
    learning_rate: float = LEARNING_RATE,
    final: float = FINAL,
    r1_gamma: float = R1_GAMMA,
    encoder_weight: float = ENCODER_WEIGHT,
) -> Iterator[tuple[int, dlsgan.DLSGAN]]:
    """Trains, and yields after each step how many there were and the averaged model, which is the one to look
    at. It goes on changing: `copy.deepcopy` keeps a moment of it."""
    average = copy.deepcopy(model)
    average.latent_scale = model.latent_scale
    optimizers = dlsgan.make_optimizers(model, learning_rate)
    rng = torch.Generator().manual_seed(seed)
    for step in range(steps):
        dlsgan.decay_learning_rate(optimizers, learning_rate, final, progress=step / steps)
        real = draw_data(name, batch_size, rng)
        # R1 at every fourth step, four times as strong
        penalty_weight = 4 * r1_gamma / 2 if step % 4 == 0 else 0.0
        dlsgan.train_step(
            model, optimizers, real, rng, encoder_weight=encoder_weight, penalty_weight=penalty_weight
        )
        dlsgan.average_weights(average, model, step, most=0.998)
        yield step + 1, average


def snapshots(
    name: str, seed: int, scale: bool, moments: list[int], steps: int = STEPS, **settings: float
) -> dict[int, dlsgan.DLSGAN]:
    """One training, and copies of its averaged model after the given numbers of steps. settings: as in
    `training`."""
    kept = {}
    for step, model in training(build(seed, scale), name, seed, steps, **settings):
        if step in moments:
            kept[step] = copy.deepcopy(model)
    return kept


def train(name: str, seed: int, scale: bool, steps: int = STEPS, **settings: float) -> dlsgan.DLSGAN:
    """The averaged model after a whole training. settings: as in `training`."""
    return snapshots(name, seed, scale, [steps], steps, **settings)[steps]


def encoder_afterwards(
    model: dlsgan.DLSGAN, seed: int, steps: int = STEPS, batch_size: int = BATCH_SIZE
) -> nn.Module:
    """The usual way to invert a GAN: a new encoder for the finished generator, by the mean squared error of
    z, with the learning rate of the GAN. Returns the averaged one."""
    torch.manual_seed(seed)
    encoder = Discriminator()
    average = copy.deepcopy(encoder)
    optimizer = torch.optim.Adam(encoder.parameters(), LEARNING_RATE)
    rng = torch.Generator().manual_seed(seed)
    for step in range(steps):
        dlsgan.decay_learning_rate([optimizer], LEARNING_RATE, FINAL, progress=step / steps)
        z = dlsgan.sample_latents(batch_size, model.latent_scale, rng)
        with torch.no_grad():
            x = model.decode(z)
        loss = (encoder(x)[1] - z).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        dlsgan.average_weights(average, encoder, step, most=0.998)
    return average


# ---- Measures ----------------------------------------------------------------------------------------------


@torch.no_grad()
def reconstructions(model: dlsgan.DLSGAN, x: Tensor, encoder: nn.Module | None = None) -> Tensor:
    """G(E(x)) of points x [n, 2]: where they come back, [n, 2]. encoder: another one than the model's own."""
    z_hat = (encoder or model.discriminator)(x)[1]
    return model.decode(z_hat)


def ring_modes(x: Tensor) -> dict:
    """How points [n, 2] are spread over the ring's modes. A point belongs to the nearest mode if it lies
    within four standard deviations (0.2) of it; a mode of the data has an eighth of all points, and counts as
    found with half of that."""
    distance, nearest = torch.cdist(x, MODES).min(1)
    near = distance < 4 * SIGMA
    shares = [((nearest == k) & near).float().mean().item() for k in range(8)]
    modes = sum(share > 1 / 16 for share in shares)
    within = near.float().mean().item()
    # the share of each mode among those points that belong to one
    shares = [round(share / max(within, 1e-8), 4) for share in shares]
    return {"modes": modes, "within_4_sigma": round(within, 4), "shares": shares}


def draws_of_data(name: str, n: int) -> list[Tensor]:
    """Three draws of n points each, which no training saw."""
    return [draw_data(name, n, torch.Generator().manual_seed(seed)) for seed in (2, 3, 4)]


def distance_from(x: Tensor, draws: list[Tensor]) -> float:
    """Sliced Wasserstein distance of points x [n, 2] from draws of the data, the mean over these, in units of
    the plane."""
    return float(np.mean([sliced_wasserstein(x, draw, projections=64) for draw in draws]))


@functools.cache
def distance_of_two_draws(name: str, n: int) -> float:
    """The same between two draws of the data: the best that samples can be expected to reach. Mean over three
    pairs."""
    first, second, third = draws_of_data(name, n)
    return (2 * distance_from(first, [second, third]) + distance_from(second, [third])) / 3


@torch.no_grad()
def measure(model: dlsgan.DLSGAN, encoder: nn.Module, name: str, n: int = 20_000) -> dict:
    """On n fresh latent vectors and points: L_enc, v (sorted) and the number of live dimensions; the sliced
    Wasserstein distance of samples from data, and of two draws of the data, means over three draws; the root
    mean square distance of data from their reconstructions."""
    z = dlsgan.sample_latents(n, model.latent_scale, torch.Generator().manual_seed(1))
    draws = draws_of_data(name, n)
    data = draws[0]
    x = model.decode(z)
    z_hat = encoder(x)[1]
    v = z_hat.square().mean(0)
    error = (data - reconstructions(model, data, encoder)).square().sum(1).mean().sqrt()
    result = {
        "l_enc": round(dlsgan.encoder_loss(z, z_hat, model.latent_scale.scale()).item(), 4),
        "live": int((v > 0.5).sum()),
        "v": sorted((round(value, 4) for value in v.tolist()), reverse=True),
        "distance_of_samples": round(distance_from(x, draws), 4),
        "distance_of_two_draws": round(distance_of_two_draws(name, n), 4),
        "error_of_reconstructions": round(error.item(), 4),
    }
    if name == "ring":
        result |= ring_modes(x)
    return result


@torch.no_grad()
def gaussian_check(model: dlsgan.DLSGAN, n: int = 200_000, neighbours: int = 50) -> dict:
    """What can be known of a model of the gaussian without its encoder, on n fresh latent vectors.

    v of the two live dimensions and 1 - MMSE of all eight by nearest-neighbour regression of z on x
    (scikit-learn): half of the points are the neighbours, the other half is predicted. The mean of m
    neighbours adds 1/m of the variance around the regression to its squared error, which is taken off. A
    linear map x = A z of two live latents fits the data if A A^T is their covariance C. Then C^(-1/2) A is a
    rotation: its two columns, the images of the two axes where the data are round, have length 1 and are 90
    degrees apart. A is here the linear regression of x on the two latents, `linear_r2` the part of the
    variance of x that it explains.
    """
    from sklearn.neighbors import KNeighborsRegressor

    z = dlsgan.sample_latents(n, model.latent_scale, torch.Generator().manual_seed(4))
    x = model.decode(z)
    v = model.encode(x).square().mean(0)
    half = n // 2
    regression = KNeighborsRegressor(neighbours).fit(x[:half].numpy(), z[:half].numpy())
    errors = (regression.predict(x[half:].numpy()) - z[half:].numpy()) ** 2
    known = 1 - errors.mean(0) / (1 + 1 / neighbours)  # [d], 1 - MMSE
    live = v.argsort(descending=True)[:2]
    design = torch.cat((z[:, live], torch.ones(n, 1)), 1)
    fit = torch.linalg.lstsq(design, x).solution  # [3, 2]
    rest = x - design @ fit
    eigenvalues, eigenvectors = torch.linalg.eigh(COVARIANCE)
    whiten = eigenvectors @ torch.diag(eigenvalues.rsqrt()) @ eigenvectors.T
    columns = whiten @ fit[:2].T  # [2, 2], a column an axis
    lengths = columns.norm(dim=0)
    cosine = (columns[:, 0] @ columns[:, 1]) / lengths.prod()
    return {
        "v": [round(value, 4) for value in v.tolist()],
        "1 - MMSE by neighbours": [round(float(value), 4) for value in known],
        "linear_r2": round((1 - rest.square().mean() / (x - x.mean(0)).square().mean()).item(), 4),
        "lengths": [round(value, 4) for value in lengths.tolist()],
        "degrees": round(math.degrees(math.acos(cosine.item())), 1),
    }
