"""MNIST with and without the latent scale: the paper's Figures 1 to 11 with digits, three seeds each, and ablations.

Claim (paper, section 4.2). With the scale L_enc falls and reconstructions improve, at the same quality of samples.

    python -m toy_experiments.mnist run scale-0         one run, 84,000 images: about 15 minutes; goes on where it stopped
    python -m toy_experiments.mnist run                 the 14 runs (ablations: 30,000 images), finished ones left out
    python -m toy_experiments.mnist figures             draws results/mnist_curves.png, mnist_digits.png, mnist_ablations.png
    python -m toy_experiments.mnist table

Expected printout: a Markdown table with a row for each finished run, from results/mnist.json. There is no FID in it, as that
needs Inception: the sliced Wasserstein distance (SWD, times 1000) stands in its place, under its own name.
"""

import argparse
import copy
import dataclasses
import json
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor

import dlsgan
from toy_experiments.cartoon_factors import traversals
from toy_experiments.measures import swd
from toy_experiments.results import processor

RESULTS = Path(__file__).parent / "results"
CHECKPOINTS = Path("runs/mnist_study")  # of the reader's folder; not kept in the repository
GAN = {"latent_scale": False, "encoder_weight": 0.0}
MAIN = {f"{n}-{seed}": {"seed": seed, "latent_scale": n == "scale"} for n in ("scale", "plain") for seed in range(3)}
ABLATIONS = {  # to be compared with the first of them, which has their budget
    **{f"lambda-{weight}": {"encoder_weight": float(weight)} for weight in (3, 0.1, 1, 10)},  # the preset has 3
    "sma": {"scale_rule": "sma"},
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


def encoder_loss_trains_d_only(model: dlsgan.DLSGAN, *arguments, **settings) -> dict[str, Tensor]:
    """`dlsgan.train_step` with the latent head reading a detached image: L_enc moves D as before, and no longer G."""
    forward = model.discriminator.forward

    def apart(x: Tensor) -> tuple[Tensor, Tensor]:
        return forward(x)[0], forward(x.detach())[1]

    with mock.patch.object(model.discriminator, "forward", apart):
        return TRAIN_STEP(model, *arguments, **settings)


def distance(model: dlsgan.DLSGAN, test: Tensor) -> float:
    """Sliced Wasserstein distance times 1000 of as many samples from the test images [N, 1, H, W]."""
    with torch.no_grad():
        samples = torch.cat([model.sample(len(part), seed).cpu() for seed, part in enumerate(test.split(50))])
    return round(swd(samples, test)["mean"], 3)


def configure(name: str, images: int, data_dir: str) -> dlsgan.Config:
    """images: budget of the run; 0 means 84,000, or 30,000 for an ablation."""
    dlsgan.require(name in RUNS, f"unknown run {name!r}: choose {', '.join(RUNS)}")
    given = {"images": images or (84_000 if name in MAIN else 30_000), "data_dir": data_dir, "out": str(CHECKPOINTS / name)}
    return dlsgan.Config(**dlsgan.PRESETS["mnist"] | RUNS[name] | given).check()


def encoder_afterwards(config: dlsgan.Config) -> list[dict]:
    """The usual way to invert a GAN: a new encoder for the frozen generator of the run "gan", by the mean squared error
    of z, for as many steps as the GAN had. Keeps both as a checkpoint; returns no evaluations."""
    gan = CHECKPOINTS / "gan" / "checkpoint.pt"
    dlsgan.require(gan.exists(), "the run 'gan' comes first: python -m toy_experiments.mnist run gan")
    model, out = dlsgan.load(gan, config.device), Path(config.out)
    torch.manual_seed(config.seed)
    encoder = dlsgan.build(config).discriminator.to(model.latent_scale.v.device, memory_format=torch.channels_last)
    model.discriminator = copy.deepcopy(encoder).requires_grad_(False)  # averaged, as elsewhere
    weights, averages = ([p.detach() for p in m.parameters()] for m in (encoder, model.discriminator))
    optimizer, rng = torch.optim.Adam(encoder.parameters(), config.lr, (0.9, 0.99)), torch.Generator().manual_seed(1)
    steps = config.images // config.batch_size
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = config.lr * config.lr_final ** (step / steps)
        z = dlsgan.prior(config.batch_size, model.latent_scale, rng)
        loss = (encoder(model.decode(z))[1] - z).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch._foreach_lerp_(averages, weights, 1 - min(0.999, (1 + step) / (10 + step)))
    state = {"format": dlsgan.FORMAT, "config": dataclasses.asdict(config), "ema": model.state_dict()}
    dlsgan.save_checkpoint(out / "checkpoint.pt", state)
    return []


def train(config: dlsgan.Config, name: str, test: Tensor) -> list[dict]:
    """Trains, or goes on with, a run by `dlsgan.train`. Returns its evaluations, each with the distance of samples."""
    out = Path(config.out)
    step = encoder_loss_trains_d_only if name == "d-only" else TRAIN_STEP
    if (out / "checkpoint.pt").exists():
        dlsgan.require(dlsgan.read_checkpoint(out)[0].images == config.images, f"{out} has another --images: delete it")
    kept = out / "distances.json"
    distances = json.loads(kept.read_text()) if kept.exists() else {}
    with mock.patch.object(dlsgan, "train_step", step):
        for line in dlsgan.train(config, resume=(out / "checkpoint.pt").exists()):
            if "l_enc" in line:  # the checkpoint of an evaluation is on disk before its line comes
                distances[str(line["images"])] = distance(dlsgan.load(out), test[: dlsgan.EVALUATED])
                kept.write_text(json.dumps(distances))
    lines = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    return [line | {"swd": distances.get(str(line["images"]))} for line in lines if "l_enc" in line]


def run(name: str, images: int, data_dir: str) -> dict:
    """One unit: trains, and measures on 500 test images."""
    config = configure(name, images, data_dir)
    test = dlsgan.to_float(dlsgan.load_mnist(config)[1][:1000])
    curves = encoder_afterwards(config) if name == "afterwards" else train(config, name, test)
    minutes = round(curves[-1]["seconds"] / 60, 1) if curves else None
    model, n = dlsgan.load(config.out), min(500, len(test) // 2)
    measures = dlsgan.evaluate(model, test[:n], 50) | {"swd": distance(model, test[:n])}
    measures["swd_of_other_test_images"] = round(swd(test[n : 2 * n], test[:n])["mean"], 3)  # the best one can expect
    result = {"command": f"python -m toy_experiments.mnist run {name} --images {config.images}", "images": config.images}
    result |= {"test_images": n, "seed": config.seed, "machine": processor(), "threads": torch.get_num_threads()}
    measures = {key: round(value, 4) if isinstance(value, float) else value for key, value in measures.items()}
    points = [{key: line[key] and round(line[key], 4) for key in ("images", "spread", *CURVES)} for line in curves]
    return result | {"minutes": minutes, "measures": measures, "curves": points}


def read_results() -> dict:
    path = RESULTS / "mnist.json"
    return json.loads(path.read_text()) if path.exists() else {}


def table(results: dict) -> str:
    """Markdown, a row a run."""
    columns = "run, L_enc, active, PSNR (gain) generated, SSIM generated, PSNR (gain) test, SSIM test, spread, SWD, images"
    rows = [f"| {columns.replace(', ', ' | ')} |", "|---" * 10 + "|"]
    for name in (n for n in RUNS if n in results):
        m, cells = results[name]["measures"], []
        for kind in ("generated", "test"):
            cells += [f"{m[f'psnr_{kind}']:.1f} ({m[f'gain_{kind}']:+.1f})", f"{m[f'ssim_{kind}']:.2f}"]
        cells = [f"{m['l_enc']:.2f}", str(m["active"]), *cells, f"{m['spread']:.2f}", f"{m['swd']:.0f}"]
        rows.append(f"| `{name}` | " + " | ".join([*cells, f"{results[name]['images']:,}"]) + " |")
    return "\n".join(rows)


def flips(model: dlsgan.DLSGAN, x: Tensor, columns: int, probability: float = 0.1, seed: int = 0) -> Tensor:
    """Figure 11: each element of the latent vectors of x [n, C, H, W] is multiplied by -1 with a probability, the same
    elements for all n images of a column. Returns [columns, n, C, H, W]."""
    z_hat = model.encode(x)
    chance = torch.rand(columns, z_hat.shape[1], generator=torch.Generator().manual_seed(seed))
    signs = torch.where(chance < probability, -1.0, 1.0).to(z_hat.device)  # [columns, d], one mask a column
    return torch.stack([model.decode(z_hat * sign) for sign in signs])


def draw_curves(results: dict, path: Path) -> None:
    """Figures 1 to 4, 7 and 8: mean of the seeds as a line, lowest to highest as a band."""
    from matplotlib.figure import Figure

    figure = Figure((11, 5.6), layout="constrained")
    for axis, (key, title) in zip(figure.subplots(2, 3).flat, CURVES.items(), strict=True):
        for kind, label, colour, style in (("scale", "with scale", "#d1495b", "-"), ("plain", "without", "#30638e", "--")):
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


@torch.no_grad()
def draw_digits(path: Path, data_dir: str) -> None:
    """Figures 5, 6 and 9 to 11, and traversals, from the checkpoints of seed 0."""
    from matplotlib.figure import Figure

    test = dlsgan.to_float(dlsgan.load_mnist(configure("scale-0", 1, data_dir))[1][:30])
    axes, panels = (figure := Figure((11, 6.3), layout="constrained")).subplots(2, 3), []
    for i, (name, kind) in enumerate((("plain-0", "without scale"), ("scale-0", "with scale"))):
        model = dlsgan.load(CHECKPOINTS / name)
        for number, x, what in ((5, model.sample(30), "generated"), (9, test, "test")):
            pairs = [row for part in x.split(10) for row in (part, model.reconstruct(part))]
            panels.append((f"Figure {number + i}: {what} over reconstructions, {kind}", dlsgan.grid(pairs)))
    flipped = dlsgan.grid(flips(model, test[:6], 8).transpose(0, 1))  # a row a digit, a column a mask
    both = dlsgan.grid([torch.stack(pair) for pair in zip(test[:6], model.reconstruct(test[:6]), strict=True)])
    bar = np.full((both.shape[0], 8), 255, np.uint8)
    panels.insert(2, ("Figure 11: test digit, reconstruction | 10% of the\nlatent elements flipped, the same in each column",
                      np.concatenate([both, bar, flipped], 1)))
    v = model.encode(model.sample(500)).square().mean(0)
    order = v.argsort(descending=True)[: max(1, int((v > 0.5).sum()))].tolist()
    panels.append(("live dimensions, each from -2 to 2", traversals(model, order)))
    for axis, (title, picture) in zip(axes.flat, panels, strict=True):
        axis.imshow(picture, cmap="gray", interpolation="nearest")
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    figure.savefig(path, dpi=110)


@torch.no_grad()
def draw_ablations(results: dict, path: Path) -> None:
    """A row a run of the ablations: its measures (gains over the mean image in dB) and samples."""
    from matplotlib.figure import Figure

    names = [name for name in ABLATIONS if name in results]
    titles = {"l_enc": "L_enc", "spread": "spread", "gain_generated": "dB, gen.", "gain_test": "dB, test", "swd": "SWD"}
    figure = Figure((11, 1.4 + 0.45 * len(names)), layout="constrained")
    *axes, last = figure.subplots(1, 6, width_ratios=(1, 1, 1, 1, 1, 1.9))
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        values = [results[name]["measures"][key] for name in names]
        low, high = min(0, *values), max(0, *values)
        axis.bar_label(axis.barh(range(len(names)), values, color="#7fa3c7"), fmt=" %.3g", fontsize=8)
        axis.set_yticks(range(len(names)), names if axis is axes[0] else [])
        left = 1.6 * low - 0.6 * high * (low < 0)
        axis.set(xticks=[], xlim=(left, 1.6 * high - 0.6 * low), ylim=(len(names) - 0.5, -0.5), title=title)
    last.imshow(dlsgan.grid(dlsgan.load(CHECKPOINTS / name).sample(8) for name in names), cmap="gray", aspect="auto")
    last.axis("off")
    figure.savefig(path, dpi=110)


def main(what: str = "table", names: tuple = (), images: int = 0, data_dir: str = "data/mnist") -> dict:
    results = read_results()
    if what == "run":
        for name in names or [n for n in RUNS if results.get(n, {}).get("images") != configure(n, images, data_dir).images]:
            measured = run(name, images, data_dir)
            results = read_results() | {name: measured}  # read again: other runs may have finished meanwhile
            rows = (f" {json.dumps(key)}: {json.dumps(results[key])}" for key in RUNS if key in results)
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / "mnist.json").write_text("{\n" + ",\n".join(rows) + "\n}\n")
    elif what == "figures":
        dlsgan.require({"scale-0", "plain-0"} <= results.keys(), "figures need at least the runs scale-0 and plain-0")
        draw_curves(results, RESULTS / "mnist_curves.png")
        draw_digits(RESULTS / "mnist_digits.png", data_dir)
        if results.keys() & ABLATIONS.keys():
            draw_ablations(results, RESULTS / "mnist_ablations.png")
    print(table(results))
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "figures", "table"))
    parser.add_argument("names", nargs="*", help=f"runs: {', '.join(RUNS)} (default: all)")
    parser.add_argument("--images", type=int, default=0, help="real images a run sees (default: 84000, ablations 30000)")
    parser.add_argument("--data-dir", default="data/mnist", help="where MNIST is, or is downloaded to (default: data/mnist)")
    try:
        main(**vars(parser.parse_args()))
    except dlsgan.UserError as error:
        print(f"mnist: {error}", file=sys.stderr)
        sys.exit(2)
