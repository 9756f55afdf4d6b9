"""MNIST with and without the latent scale: the paper's Figures 1 to 11 with digits, three seeds, and
ablations.

Claim (paper, section 4.2). With the scale L_enc falls and reconstructions improve, at the same quality of
samples.

    python -m toy_experiments.mnist run scale-0   one run of the preset mnist; goes on where it stopped
    python -m toy_experiments.mnist run           all thirteen runs but for finished ones
    python -m toy_experiments.mnist figures       draws results/mnist_curves.png, _digits.png, _ablations.png
    python -m toy_experiments.mnist table

Expected printout: a Markdown table with a row for each finished run, from results/mnist.json. There is no FID
in it, as that needs Inception: the sliced Wasserstein distance (SWD, times 1000) stands in its place, under
its own name.
"""

import dataclasses
import json
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import dlsgan
from toy_experiments import settings
from toy_experiments.shared import cli, figures
from toy_experiments.shared.cli import RESULTS
from toy_experiments.shared.distances import samples_like, swd
from toy_experiments.shared.training import images_seen, train_encoder

CHECKPOINTS = Path("runs/mnist_study")  # of the reader's folder; not kept in the repository
GAN = {"latent_scale": False, "encoder_weight": 0.0}
MAIN = {
    f"{kind}-{seed}": {"seed": seed, "latent_scale": kind == "scale"}
    for kind in ("scale", "plain")
    for seed in range(3)
}
ABLATIONS = {  # seed 0, with half the budget, to be compared with the first
    "base": {},
    "gamma-10": {"r1_gamma": 10.0},
    "lambda-1": {"encoder_weight": 1.0, "encoder_weight_final": 1.0},  # the paper's
    "sma": {"scale_rule": "sma"},  # the paper's average over a window
    "d-only": {},  # the encoder loss trains D alone, by the step below
    "gan": GAN,  # no encoder at all ...
    "afterwards": GAN,  # ... and one that is trained later on its frozen generator
}
RUNS = MAIN | ABLATIONS
TRAIN_STEP = dlsgan.train_step  # the right one, also while another takes its place
CURVES = {  # of the paper's figures
    "swd": "Figure 1: distance of samples (SWD)",
    "l_enc": "Figure 2: L_enc",
    "psnr_generated": "Figure 3: PSNR, generated images, dB",
    "ssim_generated": "Figure 4: SSIM, generated images",
    "psnr_test": "Figure 7: PSNR, test images, dB",
    "ssim_test": "Figure 8: SSIM, test images",
}


def encoder_loss_trains_d_only(model: dlsgan.DLSGAN, *arguments, **options) -> dict[str, Tensor]:
    """`dlsgan.train_step` with the latent head reading a detached image: L_enc moves D as before, no longer
    G."""
    forward = model.discriminator.forward

    def apart(x: Tensor) -> tuple[Tensor, Tensor]:
        return forward(x)[0], forward(x.detach())[1]

    with mock.patch.object(model.discriminator, "forward", apart):
        return TRAIN_STEP(model, *arguments, **options)


def distance(model: dlsgan.DLSGAN, test: Tensor) -> float:
    """Sliced Wasserstein distance times 1000 of as many samples from the test images [N, 1, H, W]."""
    return round(swd(samples_like(model, test), test)["mean"], 3)


def configure(name: str, images: int, data_dir: str) -> dlsgan.Config:
    """The preset with the changes of a run. images: its budget; 0 means the preset's, or half of that for an
    ablation."""
    dlsgan.require(name in RUNS, f"unknown run {name!r}: choose {', '.join(RUNS)}")
    preset = dlsgan.PRESETS["mnist"]
    budget = images or (preset["images"] if name in MAIN else preset["images"] // 2)
    given = {"images": budget, "data_dir": data_dir, "out": str(CHECKPOINTS / name)}
    return dlsgan.Config(**preset | RUNS[name] | given | {"device": "cpu", "threads": 1})


def encoder_afterwards(config: dlsgan.Config) -> list[dict]:
    """The usual way to invert a GAN: a new encoder for the frozen generator of the run "gan", by the mean
    squared error of z, for as many steps as the GAN had. Keeps both as a checkpoint; returns no
    evaluations."""
    gan = CHECKPOINTS / "gan" / "checkpoint.pt"
    dlsgan.require(gan.exists(), "the run 'gan' comes first: python -m toy_experiments.mnist run gan")
    model = dlsgan.load_model(gan, config.device)
    torch.manual_seed(config.seed)
    encoder = dlsgan.build(config).discriminator
    other_latents = dataclasses.replace(config, seed=1)  # than those the GAN was trained on
    steps = config.images // config.batch_size
    model.discriminator = train_encoder(
        model.decode,
        encoder,
        config.latent_dim,
        other_latents,
        steps * config.batch_size,
        lr_final=config.lr_final,
    )
    state = {
        "format": dlsgan.CHECKPOINT_VERSION,
        "config": dataclasses.asdict(config),
        "images": images_seen(*dlsgan.read_checkpoint(gan)),  # real ones, by the GAN alone
        "ema": model.state_dict(),
    }
    dlsgan.save_checkpoint(Path(config.out) / "checkpoint.pt", state)
    return []


def train(config: dlsgan.Config, name: str, test: Tensor) -> list[dict]:
    """Trains, or goes on with, a run by `dlsgan.train`. Returns its evaluations, each with the distance of
    samples."""
    out = Path(config.out)
    step = encoder_loss_trains_d_only if name == "d-only" else TRAIN_STEP
    if (out / "checkpoint.pt").exists():
        same = dlsgan.read_checkpoint(out)[0].images == config.images
        dlsgan.require(same, f"{out} has another --images: delete it")
    kept = out / "distances.json"
    distances = json.loads(kept.read_text()) if kept.exists() else {}
    with mock.patch.object(dlsgan, "train_step", step):
        for line in dlsgan.train(config, resume=(out / "checkpoint.pt").exists()):
            if "l_enc" in line:  # the checkpoint of an evaluation is on disk before its line comes
                distances[str(line["images"])] = distance(
                    dlsgan.load_model(out), test[: dlsgan.NUM_EVAL_IMAGES]
                )
                kept.write_text(json.dumps(distances))
    lines = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    return [line | {"swd": distances.get(str(line["images"]))} for line in lines if "l_enc" in line]


def run(name: str, images: int, data_dir: str) -> dict:
    """One unit: trains, and measures on 1,000 test images."""
    config = configure(name, images, data_dir)
    test = dlsgan.to_float(dlsgan.load_mnist(config)[1][:1000])
    curves = encoder_afterwards(config) if name == "afterwards" else train(config, name, test)
    columns = ("images", "spread", *CURVES)
    return {
        "command": f"python -m toy_experiments.mnist run {name} --images {config.images}",
        "images": config.images,
        "seed": config.seed,
        "machine": cli.processor(),
        "threads": config.threads,
        "minutes": round(curves[-1]["seconds"] / 60, 1) if curves else None,
        "measures": settings.rounded(settings.judge(config.out, data_dir)),
        "curves": [settings.rounded({key: point[key] for key in columns}) for point in curves],
    }


def table(results: dict) -> str:
    """Markdown, a row a run."""
    columns = [
        "run",
        "L_enc",
        "live",
        "PSNR (gain) generated",
        "SSIM generated",
        "PSNR (gain) test",
        "SSIM test",
        "class kept",
        "readable / test digits",
        "spread",
        "SWD ratio",
        "images",
    ]
    rows = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name in RUNS:
        if name not in results:
            continue
        m = results[name]["measures"]
        cells = [f"`{name}`", f"{m['l_enc']:.2f}", str(m["active"])]
        for kind in ("generated", "test"):
            cells.append(f"{m[f'psnr_{kind}']:.1f} ({m[f'psnr_gain_{kind}']:+.1f})")
            cells.append(f"{m[f'ssim_{kind}']:.2f}")
        cells += [f"{m['kept']:.2f}", f"{m['readable'] / m['readable_test']:.2f}"]
        cells += [f"{m['spread']:.2f}", f"{m['swd_ratio']:.2f}", f"{results[name]['images']:,}"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def draw_curves(results: dict, path: Path) -> None:
    """Figures 1 to 4, 7 and 8: mean of the seeds as a line, lowest to highest as a band. UserError if the
    runs differ in their budgets."""
    budgets = {name: results[name]["images"] for name in MAIN if name in results}
    told = ", ".join(f"{name} {images:,}" for name, images in budgets.items())
    dlsgan.require(len(set(budgets.values())) == 1, f"runs of different --images cannot be averaged: {told}")
    kinds = {
        "scale": ("with scale", figures.WITH_SCALE, "-"),
        "plain": ("without", figures.WITHOUT_SCALE, "--"),
    }
    figure = Figure((11, 5.6), layout="constrained")
    for axis, (key, title) in zip(figure.subplots(2, 3).flat, CURVES.items(), strict=True):
        for kind, (label, colour, style) in kinds.items():
            runs = [results[name]["curves"] for name in results if name in MAIN and name.startswith(kind)]
            values = np.array([[point[key] for point in curve] for curve in runs], float)
            images = [point["images"] / 1000 for point in runs[0]]
            axis.plot(images, values.mean(0), style, color=colour, label=f"{label} ({len(runs)} seeds)")
            axis.fill_between(images, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
        axis.set(xlabel="thousand real images seen")
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    figure.axes[1].legend(frameon=False)
    figure.savefig(path, dpi=110)


def pairs(model: dlsgan.DLSGAN, x: Tensor) -> np.ndarray:
    """Each row of ten images above its reconstructions."""
    rows = []
    for part in x.split(10):
        rows += [part, model.reconstruct(part)]
    return dlsgan.make_grid(rows)


def show(axis: Axes, picture: np.ndarray, title: str) -> None:
    axis.imshow(picture, cmap="gray", interpolation="nearest")
    axis.set_title(title, fontsize=10)
    axis.axis("off")


@torch.no_grad()
def draw_digits(path: Path, data_dir: str) -> None:
    """Figures 5, 6 and 9 to 11, and traversals, from the checkpoints of seed 0."""
    test = dlsgan.to_float(dlsgan.load_mnist(configure("scale-0", 1, data_dir))[1][:30])
    figure = Figure((11, 6.3), layout="constrained")
    axes = figure.subplots(2, 3)
    models = {"without scale": "plain-0", "with scale": "scale-0"}
    for row, (kind, name) in enumerate(models.items()):
        model = dlsgan.load_model(CHECKPOINTS / name)
        for column, (number, x, what) in enumerate(((5, model.sample(30), "generated"), (9, test, "test"))):
            title = f"Figure {number + row}: {what} over\nreconstructions, {kind}"
            show(axes[row, column], pairs(model, x), title)
    signs = figures.flip_signs(8, len(model.latent_scale.v))  # of the model with scale
    title = (
        "Figure 11: test digit, reconstruction | 10% of the\nlatent elements flipped, the same in each column"
    )
    show(axes[0, 2], figures.flip_picture(model, test[:6], signs), title)
    v = model.encode(model.sample(500)).square().mean(0)
    live = max(1, int((v > 0.5).sum()))
    order = v.argsort(descending=True)[:live].tolist()
    show(axes[1, 2], figures.traversals(model, order), "live dimensions, each from -2 to 2")
    figure.savefig(path, dpi=110)


@torch.no_grad()
def draw_ablations(results: dict, path: Path) -> None:
    """A row a run of the ablations: measures (gains over the mean image in dB) and samples."""
    names = [name for name in ABLATIONS if name in results]
    titles = {
        "l_enc": "L_enc",
        "spread": "spread",
        "psnr_gain_generated": "dB, gen.",
        "psnr_gain_test": "dB, test",
        "swd_ratio": "SWD ratio",
    }
    figure = Figure((11, 1.4 + 0.45 * len(names)), layout="constrained")
    *axes, last = figure.subplots(1, 6, width_ratios=(1, 1, 1, 1, 1, 1.9))
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        values = [results[name]["measures"][key] for name in names]
        bars = axis.barh(range(len(names)), values, color="#7fa3c7")
        axis.bar_label(bars, fmt=" %.3g", fontsize=8)
        axis.set_yticks(range(len(names)), names if axis is axes[0] else [])
        low = min(0, *values)
        high = max(0, *values)
        left = 1.6 * low - 0.6 * high if low < 0 else 1.6 * low
        right = 1.6 * high - 0.6 * low
        axis.set(xticks=[], xlim=(left, right), ylim=(len(names) - 0.5, -0.5), title=title)
    samples = [dlsgan.load_model(CHECKPOINTS / name).sample(8) for name in names]
    last.imshow(dlsgan.make_grid(samples), cmap="gray", aspect="auto")
    last.axis("off")
    figure.savefig(path, dpi=110)


def unfinished(images: int, data_dir: str) -> list[str]:
    """The runs that are not kept with this budget."""
    results = cli.read_runs(RESULTS / "mnist.json")
    kept = {name: result["images"] for name, result in results.items()}
    return [name for name in RUNS if kept.get(name) != configure(name, images, data_dir).images]


def main(what: str = "table", names: tuple = (), images: int = 0, data_dir: str = "data/mnist") -> dict:
    path = RESULTS / "mnist.json"
    if what == "run":
        for name in names:
            configure(name, images, data_dir)  # a wrong name is told before any training
        for name in names or unfinished(images, data_dir):
            measured = run(name, images, data_dir)
            results = cli.read_runs(path) | {
                name: measured
            }  # read now: other runs may have finished meanwhile
            cli.write_runs(path, results, RUNS)
    results = cli.read_runs(path)
    if what == "figures":
        there = {"scale-0", "plain-0"} <= results.keys()
        dlsgan.require(there, "figures need at least the runs scale-0 and plain-0")
        draw_curves(results, RESULTS / "mnist_curves.png")
        draw_digits(RESULTS / "mnist_digits.png", data_dir)
        if results.keys() & ABLATIONS.keys():
            draw_ablations(results, RESULTS / "mnist_ablations.png")
    print(table(results))
    return results


if __name__ == "__main__":
    parser = cli.parser(__doc__)
    parser.add_argument("what", choices=("run", "figures", "table"))
    parser.add_argument("names", nargs="*", help=f"runs: {', '.join(RUNS)} (default: all)")
    images_help = "real images a run sees (default: as the preset; ablations half)"
    parser.add_argument("--images", type=int, default=0, help=images_help)
    data_help = "where MNIST is, or is downloaded to (default: data/mnist)"
    parser.add_argument("--data-dir", default="data/mnist", help=data_help)
    with cli.one_line("mnist"):
        main(**vars(parser.parse_args()))
