"""Six deliberate mistakes: what a student would see, and the measure that reveals each.

Planar data (a correlated Gaussian, d = 8, the networks of two_dimensional.py), of which an intact run keeps two live
dimensions and inverts every point. Each mistake is a few lines below, and L_enc alone would hardly reveal one of them: with
a loss on the reconstructions of generated images it is even better than intact, as is the error of these reconstructions,
while the generator has shrunk to half the spread. Minibatch-stddev is harmless here, but its code of a point still depends
on who else is in the batch. Distances and errors are root mean squares; the data has standard deviation 1 in each direction.

    python -m toy_experiments.failure_gallery       about a minute on one core; draws results/failure_gallery.png

Expected printout: the symptom, the measure that reveals it and L_enc (in brackets the intact run; numbers vary a little):
    intact: each point comes back; error of reconstructions, data 0.0797 (0.0797), L_enc 0.0081 (0.0081)
    decoding without s: samples only in the middle; distance of samples 0.378 (0.041), L_enc 0.251 (0.0081)
    normalised z: its length is lost; error of reconstructions, data 1.06 (0.0797), L_enc 0.092 (0.0081)
    noise in the generator: one z, two points; two decodings of one z differ by 0.186 (0), L_enc 0.0172 (0.0081)
    minibatch-stddev: one x, two codes; code of x, alone or in a batch, differs by 0.0259 (0), L_enc 0.0117 (0.0081)
    gradient through s: one dimension is missing; live dimensions 1 (2), L_enc 0.0138 (0.0081)
    loss on reconstructions: collapse that looks like success; spread 0.475 (1.03), L_enc 0.0064 (0.0081)
"""

import inspect
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import dlsgan
from toy_experiments.shared.cli import processor
from toy_experiments.shared.distances import sliced_wasserstein
from toy_experiments.two_dimensional import D, Discriminator, draw_data

RESULTS = Path(__file__).parent / "results"
DATA = "gaussian"


def changed_step(*changes: tuple[str, str]) -> Callable:
    """`dlsgan.train_step` with pieces of its text replaced: the pairs (old, new) are the whole difference."""
    source = inspect.getsource(dlsgan.train_step)
    for old, new in changes:
        if source.count(old) != 1:
            raise ValueError(f"{old!r} stands {source.count(old)} times in train_step, not once")
        source = source.replace(old, new)
    names = dict(vars(dlsgan))
    exec(source, names)
    return names["train_step"]


GRADIENT_THROUGH_S = (
    ("l_enc = encoder_loss(z, z_hat, s)",
     "v = z_hat.square().mean(0); l_enc = encoder_loss(z, z_hat, (len(v) * v / v.sum()).sqrt())"),
)
LOSS_ON_RECONSTRUCTIONS = (
    ("fake.backward(gradient)",
     "(30 * F.mse_loss(generator(z_hat.detach() * s), fake)).backward(retain_graph=True); fake.backward(gradient)"),
)


class Normalise(nn.Module):
    """What StyleGAN2's mapping network does first: z [B, d] to mean square 1. The length of z * s is lost."""

    def forward(self, z: Tensor) -> Tensor:
        return z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()


class Noise(nn.Module):
    """StyleGAN2's noise, fresh for each unit and each call. There its strength is learned, here it stays."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.3 * torch.randn(x.shape).to(x.device)


class MinibatchStd(Discriminator):
    """One more feature: the standard deviation within groups of four points, averaged over features. B must be 4 m."""

    def __init__(self, width: int = 96):
        super().__init__(width)
        self.head = nn.Linear(width + 1, 1 + D)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        std = features.unflatten(0, (4, -1)).std(0).mean(1)  # [4 m, w] -> [4, m, w] -> [m]
        out = self.head(torch.cat((features, std.repeat(4)[:, None]), 1))
        return out[:, 0], out[:, 1:]


def train(
    steps: int,
    step: Callable = dlsgan.train_step,
    encoder_weight: float = 1.0,
    first: type[nn.Module] = nn.Identity,  # layer before the generator's mapping
    between: type[nn.Module] = nn.Identity,  # layer within the generator
    discriminator: type[nn.Module] = Discriminator,
) -> dlsgan.DLSGAN:
    """As two_dimensional.train, with places for the mistakes."""
    torch.manual_seed(0)
    hidden = [nn.Linear(D, 96), nn.LeakyReLU(0.2), between(), nn.Linear(96, 96), nn.LeakyReLU(0.2), between()]
    generator = nn.Sequential(first(), *hidden, nn.Linear(96, 2))
    model = dlsgan.DLSGAN(generator, discriminator(), dlsgan.LatentScale(D, window=100))
    optimizers, rng = dlsgan.make_optimizers(model, 2e-3), torch.Generator().manual_seed(0)
    for i in range(steps):
        step(model, optimizers, draw_data(DATA, 256, rng), rng, "nsgan", encoder_weight, 0.0 if i % 4 else 2.0)
    return model


@torch.no_grad()
def measure(model: dlsgan.DLSGAN, forget_s: bool = False, n: int = 4000) -> tuple[dict, dict]:
    """The measures of a model, and pairs of points [n, 2] for the figure. forget_s: decode by G(z) instead of G(z * s)."""
    decode = model.generator if forget_s else model.decode
    z, s = dlsgan.prior(n, model.latent_scale, torch.Generator().manual_seed(1)), model.latent_scale.scale()
    data, x, again = draw_data(DATA, n, torch.Generator().manual_seed(2)), decode(z), decode(z)
    z_hat, restored = model.encode(x), decode(model.encode(data))
    alone = model.encode(data.repeat(4, 1))[:n]  # in the company of itself: what a single image gets
    v, agreement = z_hat.square().mean(0), (z * z_hat).mean(0)

    def rms(a: Tensor, b: Tensor) -> float:
        return round((a - b).square().sum(1).mean().sqrt().item(), 4)

    result = {
        "L_enc": round(dlsgan.encoder_loss(z, z_hat, s).item(), 4),
        "live dimensions": int((v > 0.5).sum()),
        "E[z_hat^2] - E[z z_hat], largest": round((v - agreement).abs().max().item(), 4),
        "spread": round((x.std(0).mean() / data.std(0).mean()).item(), 4),
        "distance of samples": round(sliced_wasserstein(x, data, projections=64), 4),
        "error of reconstructions, generated": rms(x, decode(z_hat)),
        "error of reconstructions, data": rms(data, restored),
        "two decodings of one z differ by": rms(x, again),
        "code of x, alone or in a batch, differs by": rms(model.encode(data), alone),
    }
    pairs = {"reconstruction": (data, restored), "decoding": (x, again), "encoding": (decode(alone), restored)}
    return result, pairs | {"sample": (x, x), "data": data}


def mistakes(steps: int) -> dict:
    """Name: (model, whether s is forgotten, the measure that reveals it, what the figure shows, the symptom)."""
    intact = train(steps)
    gradient = train(steps, changed_step(*GRADIENT_THROUGH_S))
    collapsed = train(steps, changed_step(*LOSS_ON_RECONSTRUCTIONS), encoder_weight=10.0)
    error, other = "error of reconstructions, data", "code of x, alone or in a batch, differs by"
    noise = "two decodings of one z differ by"
    return {
        "intact": (intact, False, error, "reconstruction", "each point comes back"),
        "decoding without s": (intact, True, "distance of samples", "sample", "samples only in the middle"),
        "normalised z": (train(steps, first=Normalise), False, error, "reconstruction", "its length is lost"),
        "noise in the generator": (train(steps, between=Noise), False, noise, "decoding", "one z, two points"),
        "minibatch-stddev": (train(steps, discriminator=MinibatchStd), False, other, "encoding", "one x, two codes"),
        "gradient through s": (gradient, False, "live dimensions", "reconstruction", "one dimension is missing"),
        "loss on reconstructions": (collapsed, False, "spread", "sample", "collapse that looks like success"),
    }


def line(name: str, run: dict, intact: dict) -> str:
    """One line of the printout."""
    key = run["revealed by"]
    values = [f"{name} {run['measures'][name]:.3g} ({intact['measures'][name]:.3g})" for name in (key, "L_enc")]
    return f"{name}: {run['symptom']}; {', '.join(values)}"


def main(steps: int = 1000) -> dict:
    torch.set_num_threads(1)
    start, results, pictures = time.process_time(), {}, {}
    for name, (model, forget_s, revealing, shown, symptom) in mistakes(steps).items():
        measures, pairs = measure(model, forget_s)
        results[name] = {"symptom": symptom, "revealed by": revealing, "measures": measures}
        pictures[name] = (pairs["data"], *pairs[shown], shown, results[name], results["intact"]["measures"])
        print(line(name, results[name], results["intact"]), flush=True)
    minutes = round((time.process_time() - start) / 60, 1)
    about = {"command": "python -m toy_experiments.failure_gallery", "machine": processor(), "processor_minutes": minutes}
    results = {**about, "seed": 0, "steps": steps, "runs": results}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "failure_gallery.json").write_text(json.dumps(results, indent=1) + "\n")
    draw(pictures, RESULTS / "failure_gallery.png")
    return results


def draw(pictures: dict, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure((11, 7.4), layout="constrained")
    axes = figure.subplots(2, 4).ravel()
    for axis, (name, (data, start, end, shown, result, intact)) in zip(axes, pictures.items(), strict=False):
        axis.scatter(*data[:1500].numpy().T, s=3, color="0.8", linewidths=0)
        if shown == "sample":
            axis.scatter(*start[:1500].numpy().T, s=3, color="#d1495b", linewidths=0)
        else:
            lines = torch.stack((start[:150], end[:150]), 1).numpy()  # [150, 2 ends, 2]
            axis.plot(*lines.transpose(2, 1, 0), color="#30638e", linewidth=0.8)
            axis.scatter(*end[:150].numpy().T, s=6, color="#d1495b", linewidths=0, zorder=3)
        axis.set(xticks=[], yticks=[], xlim=(-4, 4), ylim=(-4, 4), aspect="equal")
        axis.set_title(name, fontsize=10)
        measure, value = result["revealed by"], result["measures"]
        text = f"{measure}:\n{value[measure]:.3g} (intact {intact[measure]:.3g})\nL_enc {value['L_enc']:.3f}"
        axis.set_xlabel(text, fontsize=9)
    axes[7].axis("off")
    legend = ("grey: data", "red: samples, or where a point", "    comes back", "blue: from a point to its reconstruction;",
              "    between two decodings of one z;", "    between a point's reconstructions,",
              "    encoded alone and in a batch")
    axes[7].text(0, 0.5, "\n".join(legend), va="center", fontsize=9)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
