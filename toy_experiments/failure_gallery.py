"""Six deliberate mistakes: what a student would see, and the measure that reveals each.

Planar data (a correlated Gaussian, d = 8, networks and training of shared/planar.py), of which an intact
run keeps two live dimensions and inverts every point. Each mistake is a few lines below, and L_enc alone
reveals two of them: with heavy losses on codes and reconstructions of generated points it is even
better than intact, as is the error of these reconstructions, while the generator has shrunk to little more
than half the spread. Minibatch-stddev is harmless here, but its code of a point still depends on who else is
in the batch. Distances and errors are root mean squares; the data has standard deviation 1 in each direction.

    python -m toy_experiments.failure_gallery       two minutes on one core; draws results/failure_gallery.png

Expected printout: the symptom, the measure that reveals it and L_enc (in brackets: of the intact run):
    intact: each point comes back; error of reconstructions, data 0.0114 (0.0114), L_enc 0.0018 (0.0018)
    decoding without s: samples only in the middle; distance of samples 0.344 (0.0295), L_enc 0.244 (0.0018)
    normalised z: its length is lost; error of reconstructions, data 0.708 (0.0114), L_enc 0.132 (0.0018)
    noise in the generator: one z, two points; two decodings of one z differ by 0.206 (0), L_enc 0.01 (0.0018)
    minibatch-stddev: one x, two codes; code of x differs in a batch by 0.0131 (0), L_enc 0.0023 (0.0018)
    gradient through s: one dimension is missing; live dimensions 1 (2), L_enc 0.0125 (0.0018)
    loss on reconstructions: collapse that looks like success; spread 0.579 (1.01), L_enc 0.001 (0.0018)
"""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dlsgan
from toy_experiments.shared import cli
from toy_experiments.shared.cli import RESULTS
from toy_experiments.shared.planar import (
    ENCODER_WEIGHT,
    WIDTH,
    D,
    Discriminator,
    Generator,
    distance_from,
    draws_of_data,
    training,
)

DATA = "gaussian"
STEPS = 1500
encoder_loss = dlsgan.encoder_loss  # the right one: a mistake below takes its place


def loss_with_gradient_through_s(z: Tensor, z_hat: Tensor, s: Tensor) -> Tensor:
    """As `dlsgan.encoder_loss`, with s not from the moving average but from the v of this batch, through
    which the gradient then flows. The s given is not used."""
    v = z_hat.square().mean(0)
    s = (len(v) * v / v.sum()).sqrt()
    return encoder_loss(z, z_hat, s)


def step_with_loss_on_reconstructions(
    model: dlsgan.DLSGAN,
    optimizers: Iterable[torch.optim.Optimizer],
    real: Tensor,
    rng: torch.Generator,
    encoder_weight: float = 1.0,
    penalty_weight: float = 0.0,
    reconstruction_weight: float = 300.0,
) -> None:
    """`dlsgan.train_step` with one term more in L_G: the mean squared error of reconstructions of generated
    points."""
    z = dlsgan.sample_latents(len(real), model.latent_scale, rng)
    s = model.latent_scale.scale()
    fake = model.generator(z * s)
    logits_fake, z_hat = model.discriminator(fake)
    l_enc = dlsgan.encoder_loss(z, z_hat, s)
    again = model.generator(z_hat.detach() * s)
    loss_g = F.softplus(-logits_fake).mean() + encoder_weight * l_enc
    loss_g = loss_g + reconstruction_weight * (again - fake).square().mean()

    real = real.requires_grad_()
    logits_real, _ = model.discriminator(real)
    loss_d = F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean() + encoder_weight * l_enc
    if penalty_weight:
        loss_d = loss_d + penalty_weight * dlsgan.r1_penalty(logits_real, real)

    weights_g = list(model.generator.parameters())
    weights_d = list(model.discriminator.parameters())
    gradients = torch.autograd.grad(loss_g, weights_g, retain_graph=True)
    gradients += torch.autograd.grad(loss_d, weights_d)
    for weight, gradient in zip(weights_g + weights_d, gradients, strict=True):
        weight.grad = gradient
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    model.latent_scale.update(z_hat.detach())


class Normalise(nn.Module):
    """What StyleGAN2's mapping network does first: z [B, d] to mean square 1. The length of z * s is lost."""

    def forward(self, z: Tensor) -> Tensor:
        return z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()


class Noise(nn.Module):
    """StyleGAN2's noise, fresh for each unit and each call. There its strength is learned, here it stays."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.3 * torch.randn(x.shape).to(x.device)


class NoisyGenerator(nn.Sequential):
    """The generator of planar with noise after each hidden layer."""

    def __init__(self):
        layers = []
        for layer in Generator():
            layers.append(layer)
            if isinstance(layer, nn.LeakyReLU):
                layers.append(Noise())
        super().__init__(*layers)


class NormalisingGenerator(nn.Sequential):
    """The generator of planar with its input normalised."""

    def __init__(self):
        super().__init__(Normalise(), *Generator())


class MinibatchStd(Discriminator):
    """One more feature: the standard deviation within groups of four points, averaged over features. B must
    be 4 m."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(WIDTH + 1, 1 + D)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        std = features.unflatten(0, (4, -1)).std(0).mean(1)  # [4 m, w] -> [4, m, w] -> [m]
        out = self.head(torch.cat((features, std.repeat(4)[:, None]), 1))
        return out[:, 0], out[:, 1:]


def build(
    generator: type[nn.Module] = Generator, discriminator: type[nn.Module] = Discriminator
) -> dlsgan.DLSGAN:
    """As planar.build with seed 0, with places for mistaken networks."""
    torch.manual_seed(0)
    return dlsgan.DLSGAN(generator(), discriminator(), dlsgan.LatentScale(D, window=100))


def train(
    model: dlsgan.DLSGAN,
    steps: int = STEPS,
    step: Callable = dlsgan.train_step,
    loss: Callable = encoder_loss,
    encoder_weight: float = ENCODER_WEIGHT,
) -> dlsgan.DLSGAN:
    """The averaged model after planar.training, in which a mistaken step or loss takes the place of
    the right one."""
    result = model
    with mock.patch.multiple(dlsgan, train_step=step, encoder_loss=loss):
        for _, average in training(model, DATA, 0, steps, encoder_weight=encoder_weight):
            result = average
    return result


def rms(a: Tensor, b: Tensor) -> float:
    """Root mean square distance between points [n, k] twice."""
    return round((a - b).square().sum(1).mean().sqrt().item(), 4)


@torch.no_grad()
def measure(model: dlsgan.DLSGAN, forget_s: bool = False, n: int = 4000) -> tuple[dict, dict]:
    """The measures of a model, and pairs of points [n, 2] for the figure. forget_s: decode by G(z) instead of
    G(z * s)."""
    decode = model.generator if forget_s else model.decode
    z = dlsgan.sample_latents(n, model.latent_scale, torch.Generator().manual_seed(1))
    s = model.latent_scale.scale()
    draws = draws_of_data(DATA, n)
    data = draws[0]
    x = decode(z)
    again = decode(z)
    z_hat = model.encode(x)
    restored = decode(model.encode(data))
    alone = model.encode(data.repeat(4, 1))[:n]  # in the company of itself: what a single image gets
    v = z_hat.square().mean(0)
    agreement = (z * z_hat).mean(0)
    result = {
        "L_enc": round(dlsgan.encoder_loss(z, z_hat, s).item(), 4),
        "live dimensions": int((v > 0.5).sum()),
        "E[z_hat^2] - E[z z_hat], largest": round((v - agreement).abs().max().item(), 4),
        "spread": round((x.std(0).mean() / data.std(0).mean()).item(), 4),
        "distance of samples": round(distance_from(x, draws), 4),
        "error of reconstructions, generated": rms(x, decode(z_hat)),
        "error of reconstructions, data": rms(data, restored),
        "two decodings of one z differ by": rms(x, again),
        "code of x differs in a batch by": rms(model.encode(data), alone),
    }
    pairs = {
        "reconstruction": (data, restored),
        "decoding": (x, again),
        "encoding": (decode(alone), restored),
    }
    return result, pairs | {"sample": (x, x), "data": data}


def mistakes(steps: int) -> dict:
    """Name: (model, whether s is forgotten, the measure that reveals it, what the figure shows, the
    symptom)."""
    intact = train(build(), steps)
    normalised = train(build(generator=NormalisingGenerator), steps)
    noisy = train(build(generator=NoisyGenerator), steps)
    crowded = train(build(discriminator=MinibatchStd), steps)
    gradient = train(build(), steps, loss=loss_with_gradient_through_s)
    collapsed = train(build(), steps, step=step_with_loss_on_reconstructions, encoder_weight=300.0)
    error = "error of reconstructions, data"
    other = "code of x differs in a batch by"
    noise = "two decodings of one z differ by"
    live = "live dimensions"
    return {
        "intact": (intact, False, error, "reconstruction", "each point comes back"),
        "decoding without s": (intact, True, "distance of samples", "sample", "samples only in the middle"),
        "normalised z": (normalised, False, error, "reconstruction", "its length is lost"),
        "noise in the generator": (noisy, False, noise, "decoding", "one z, two points"),
        "minibatch-stddev": (crowded, False, other, "encoding", "one x, two codes"),
        "gradient through s": (gradient, False, live, "reconstruction", "one dimension is missing"),
        "loss on reconstructions": (collapsed, False, "spread", "sample", "collapse that looks like success"),
    }


def line(name: str, run: dict, intact: dict) -> str:
    """One line of the printout."""
    key = run["revealed by"]
    values = [f"{m} {run['measures'][m]:.3g} ({intact['measures'][m]:.3g})" for m in (key, "L_enc")]
    return f"{name}: {run['symptom']}; {', '.join(values)}"


def main(steps: int = STEPS) -> dict:
    torch.set_num_threads(1)
    start = time.process_time()
    results = {}
    pictures = {}
    for name, (model, forget_s, revealing, shown, symptom) in mistakes(steps).items():
        measures, pairs = measure(model, forget_s)
        results[name] = {"symptom": symptom, "revealed by": revealing, "measures": measures}
        pictures[name] = (pairs["data"], *pairs[shown], shown, results[name], results["intact"]["measures"])
        print(line(name, results[name], results["intact"]), flush=True)
    minutes = round((time.process_time() - start) / 60, 1)
    about = {
        "command": "python -m toy_experiments.failure_gallery",
        "machine": cli.processor(),
        "processor_minutes": minutes,
    }
    results = {**about, "seed": 0, "steps": steps, "runs": results}
    cli.write_json(RESULTS / "failure_gallery.json", results)
    draw(pictures, RESULTS / "failure_gallery.png")
    return results


def draw(pictures: dict, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure((11, 7.4), layout="constrained")
    axes = figure.subplots(2, 4).ravel()
    for axis, (name, picture) in zip(axes, pictures.items(), strict=False):
        data, start, end, shown, result, intact = picture
        axis.scatter(*data[:1500].numpy().T, s=3, color="0.8", linewidths=0)
        if shown == "sample":
            axis.scatter(*start[:1500].numpy().T, s=3, color="#d1495b", linewidths=0)
        else:
            lines = torch.stack((start[:150], end[:150]), 1).numpy()  # [150, 2 ends, 2]
            axis.plot(*lines.transpose(2, 1, 0), color="0.25", linewidth=0.8)
            axis.scatter(*end[:150].numpy().T, s=6, color="#d1495b", linewidths=0, zorder=3)
        axis.set(xticks=[], yticks=[], xlim=(-4, 4), ylim=(-4, 4), aspect="equal")
        axis.set_title(name, fontsize=10)
        measure = result["revealed by"]
        value = result["measures"]
        text = f"{measure}:\n{value[measure]:.3g} (intact {intact[measure]:.3g})\nL_enc {value['L_enc']:.4f}"
        axis.set_xlabel(text, fontsize=9)
    axes[7].axis("off")
    legend = (
        "grey: data",
        "red: samples, or where a point",
        "    comes back",
        "lines: from a point to its reconstruction;",
        "    between two decodings of one z;",
        "    between a point's reconstructions,",
        "    encoded alone and in a batch",
    )
    axes[7].text(0, 0.5, "\n".join(legend), va="center", fontsize=9)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    cli.parser(__doc__).parse_args()
    with cli.one_line("failure_gallery"):
        main()
