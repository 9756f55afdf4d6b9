"""The figures of the paper, drawn from trained models and the kept measures of their runs.

    python -m toy_experiments.paper_figures                         all, of the two CelebA-64 models: a minute on one core
    python -m toy_experiments.paper_figures --figures 2 5 11 spectrum
    python -m toy_experiments.paper_figures --with pretrained/mine.pt --without pretrained/mine-no-scale.pt

Both models must be exported (`python -m toy_experiments.export`): their curves and measures are those of
toy_experiments/results/runs/NAME.json, everything else is computed from the weights. `--without none` draws what one model
can show. Figures of test images need the data set, those it lacks are left out; pictures go to results/paper/NAME/.

    1               distance of samples from test images: FID, if it was measured, and sliced Wasserstein distance
    2               L_enc over training
    3-4, 7-8        PSNR and SSIM of reconstructions over training, of generated and of test images
    5-6, 9-10       generated and test images, each row above its reconstructions, without and with scale
    11              stochastic flip: each element of z_hat times -1 with probability 10%, the same elements in a column
    spectrum        v of both models, and of the model that the paper's author has published
    interpolation   straight lines between the z_hat of test images
    traversal       the strongest dimensions of z, one at a time, the others at 0
    alignment       why a photo must be framed as the training images are

Expected printout: a line a figure, with the file's name, or why it is left out.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

import dlsgan
from toy_experiments import align, results

RESULTS = Path(__file__).parent / "results"


class Run(NamedTuple):
    """An exported model and the kept results of its run."""
    name: str
    label: str
    colour: str
    model: dlsgan.DLSGAN
    config: dlsgan.Config
    kept: dict


def open_run(path: str) -> Run:
    name, (config, _) = Path(path).stem, dlsgan.read_checkpoint(path)
    if "exported" not in (kept := results.load(name)):
        raise dlsgan.UserError(f"{path} was not written by toy_experiments.export")
    label, colour = ("with latent scale", "#30638e") if config.latent_scale else ("without latent scale", "#d1495b")
    return Run(name, label, colour, dlsgan.load(path), config, kept)


def blank(width: float, height: float, panels: int = 1) -> tuple[Figure, np.ndarray]:
    figure = Figure((width, height), layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def show(axis: Axes, picture: np.ndarray, title: str) -> None:
    axis.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set_title(title, fontsize=10)
    axis.set(xticks=[], yticks=[], frame_on=False)
    axis.tick_params(length=0, labelsize=8)


def distances(runs: list[Run], test: Tensor | None) -> Figure:
    bars = [(run.label, run.colour, run.kept["exported"]["distances"]["samples"]) for run in runs]
    bars.append(("other test images", "0.6", runs[-1].kept["exported"]["distances"]["other test images"]))
    names = [name for name in bars[-1][2] if all(name in values for *_, values in bars)]  # levels, their mean, FID
    figure, (axis,) = blank(9, 3.4)
    for i, (label, colour, values) in enumerate(bars):
        x = np.arange(len(names)) + 0.27 * (i - (len(bars) - 1) / 2)
        axis.bar_label(axis.bar(x, [values[k] for k in names], 0.25, color=colour, label=label), fmt="%.1f", fontsize=8)
    axis.set_xticks(range(len(names)), [k.replace("swd", "SWD") + " px" * k[-1].isdigit() for k in names])
    axis.set(ylabel="distance from test images", ymargin=0.1)
    n = runs[-1].kept["exported"]["distance_images"]
    axis.set_title(f"Figure 1: distance of {n:,} samples from {n:,} test images, at the end of training\n"
                   "(SWD: sliced Wasserstein distance times 1000, per level of the Laplacian pyramid)", fontsize=10)
    axis.legend(frameon=False, fontsize=9)
    return figure


def curves(runs: list[Run], test: Tensor | None, panels: dict[str, tuple[str, str]]) -> Figure:
    """Measures over training; panels: title -> (measure, unit). Dotted: the PSNR of the mean image, without any encoder."""
    figure, axes = blank(5 * len(panels), 3.4, len(panels))
    for axis, (title, (key, unit)) in zip(axes, panels.items(), strict=True):
        for run in runs:
            lines, own = run.kept["curves"], key.endswith("generated")  # the mean of its own generated images
            thousands, values = np.array(lines["images"]) / 1000, np.array(lines[key])
            axis.plot(thousands, values, marker=".", color=run.colour, label=run.label)
            if key.startswith("psnr"):
                label = f"mean image, {run.label}" if own else "mean image" if run is runs[-1] else None
                baseline = values - lines[key.replace("psnr", "gain")]
                axis.plot(thousands, baseline, ":", color=run.colour if own else "0.5", label=label)
        axis.set(xlabel="thousand real images seen", ylabel=unit, ymargin=0.25, ylim=(0, 1.1) if key == "l_enc" else None)
        axis.set_title(title, fontsize=10)
        axis.legend(frameon=False, fontsize=8)
        axis.grid(alpha=0.3)
    return figure


def pairs(runs: list[Run], test: Tensor | None, number: int, name: str) -> Figure:
    """Each row of eight images above its reconstructions, one panel a model."""
    figure, axes = blank(5.6 * len(runs), 5, len(runs))
    for axis, run in zip(axes, runs, strict=True):
        x = test[:24] if name == "test" else run.model.sample(24).clamp(-1, 1)
        rows = [image for part in x.split(8) for image in (part, run.model.reconstruct(part))]
        value, gain, ssim = (run.kept["exported"][f"{key}_{name}"] for key in ("psnr", "gain", "ssim"))
        quality = f"PSNR {value:.1f} dB, {gain:+.1f} dB over the mean image, SSIM {ssim:.2f}"
        title = f"Figure {number + run.config.latent_scale}: {name} images and reconstructions, {run.label}\n{quality}"
        show(axis, dlsgan.grid(rows), title)
    return figure


def flips(runs: list[Run], test: Tensor, rows: int = 6, columns: int = 9, probability: float = 0.1) -> Figure:
    """Input, reconstruction, white bar, flips; one mask a column, shared by all rows."""
    run, x = runs[-1], test[:rows]
    z_hat = run.model.encode(x)  # [rows, d]
    masks = torch.rand(columns, z_hat.shape[1], generator=torch.Generator().manual_seed(0)) < probability
    signs = 1 - 2 * masks.float()  # [columns, d]
    flipped = torch.stack([run.model.decode(z_hat * sign) for sign in signs], 1)  # [rows, columns, C, H, W]
    left = dlsgan.grid(torch.stack((x, run.model.decode(z_hat)), 1))
    bar = np.full((left.shape[0], x.shape[-1] // 4, *left.shape[2:]), 255, np.uint8)
    figure, (axis,) = blank(9, 5)
    active = torch.tensor(run.kept["exported"]["v"]) > 0.5
    title = f"{masks.sum(1).float().mean():.1f} elements of {len(active)}, of {int(active.sum())} active ones "
    title += f"{masks[:, active].sum(1).float().mean():.1f} a column" if active.any() else "(none are active)"
    show(axis, np.concatenate((left, bar, dlsgan.grid(flipped)), 1),
         f"Figure 11: test image, reconstruction | stochastic flip of z_hat, {probability:.0%}\nflipped: {title}")
    return figure


def spectrum(runs: list[Run], test: Tensor | None) -> Figure:
    figure, (axis,) = blank(7.5, 3.6)
    author = json.loads((RESULTS / "author_celeba128_v.json").read_text())["v"]
    lines = [(f"here, {run.label}", run.kept["exported"]["v"], run.colour) for run in runs]
    for label, v, colour in [*lines, ("the author's CelebA-128 model", author, "0.45")]:
        shown = sorted(v, reverse=True)[: max(len(v) for _, v, _ in lines)]
        text = f"{label}: {sum(x > 0.5 for x in v)} of {len(v)} active"
        axis.plot(range(1, 1 + len(shown)), shown, marker=".", markersize=4, color=colour, label=text)
    axis.axhline(0.5, color="0.6", linestyle="--", linewidth=0.8)
    axis.set(xlabel="latent dimension, sorted", ylabel="v: variance the encoder recovers", ylim=(0, 1.15))
    axis.legend(frameon=False, fontsize=8)
    return figure


def interpolation(runs: list[Run], test: Tensor, rows: int = 5, steps: int = 7) -> Figure:
    model, first, last = runs[-1].model, test[:rows], test[rows : 2 * rows]
    start, end = model.encode(first), model.encode(last)
    between = [model.decode(start.lerp(end, t)) for t in torch.linspace(0, 1, steps).tolist()]
    figure, (axis,) = blank(8, 4.8)
    images = torch.stack([first, *between, last], 1)  # [rows, steps + 2, C, H, W]
    show(axis, dlsgan.grid(images), "test image | decoded from z_hat in equal steps | test image")
    return figure


def traversal(runs: list[Run], test: Tensor | None, rows: int = 8, columns: int = 9) -> Figure:
    run, v = runs[-1], torch.tensor(runs[-1].kept["exported"]["v"])
    order, values = v.argsort(descending=True)[:rows], torch.linspace(-2.5, 2.5, columns)
    z = torch.zeros(len(order), columns, len(v))
    z[torch.arange(len(order))[:, None], torch.arange(columns), order[:, None]] = values
    images = run.model.decode(z.flatten(0, 1))  # [rows * columns, d] -> [rows * columns, C, H, W]
    (figure, (axis,)), size = blank(7.5, 6.6), images.shape[-1]
    show(axis, dlsgan.grid(images.split(columns)), "one dimension of z at a time (columns: its value), the others at 0")
    axis.set_yticks([size * (i + 0.5) for i in range(len(order))], [f"z{int(i)}, v = {v[i]:.2f}" for i in order])
    axis.set_xticks([size * (i + 0.5) for i in range(columns)], [f"{x:.1f}" for x in values.tolist()])
    return figure


def alignment(runs: list[Run], test: Tensor, shown: int = 5, n: int = 64) -> Figure:
    run, size, photos, crops = runs[-1], (runs[-1].config.resolution,) * 2, [], []
    if run.config.dataset != "celeba":
        raise dlsgan.UserError("only faces are cropped by their eyes")
    for x in test[:n]:
        photo, eyes = align.as_photo(Image.fromarray(dlsgan.grid([x[None]])))
        for image, arrays in ((photo, photos), (align.align(photo, eyes), crops)):
            arrays.append(np.asarray(image.resize(size, Image.LANCZOS)).transpose(2, 0, 1))  # -> [C, H, W]
    figure, axes = blank(9, 2.7, 2)
    for axis, arrays, name in zip(axes, (photos, crops), ("as they are", "cropped by the eyes"), strict=True):
        x = dlsgan.to_float(np.stack(arrays))
        y = run.model.reconstruct(x).clamp(-1, 1)
        quality = f"PSNR {dlsgan.psnr(x, y).mean():.1f} dB, SSIM {dlsgan.ssim(x, y).mean():.2f} ({len(x)} images)"
        show(axis, dlsgan.grid([x[:shown], y[:shown]]), f"turned test images {name}, and reconstructions\n{quality}")
    return figure


def quality(number: int, name: str) -> partial:
    titles = (f"Figure {i}: reconstruction of {name} images" for i in (number, number + 1))
    return partial(curves, panels=dict(zip(titles, ((f"psnr_{name}", "PSNR, dB"), (f"ssim_{name}", "SSIM")), strict=True)))


FIGURES = {
    "1": distances, "2": partial(curves, panels={"Figure 2: encoder loss on generated images": ("l_enc", "L_enc")}),
    "3-4": quality(3, "generated"), "5-6": partial(pairs, number=5, name="generated"),
    "7-8": quality(7, "test"), "9-10": partial(pairs, number=9, name="test"), "11": flips,
    "spectrum": spectrum, "interpolation": interpolation, "traversal": traversal, "alignment": alignment,
}
NEED_TEST = ("9-10", "11", "interpolation", "alignment")
ONE_MODEL = ("11", "interpolation", "traversal", "alignment")  # the last one given, with scale


@torch.no_grad()
def main(scaled: str, without: str, data_dir: str = "", figures: list[str] | None = None) -> list[Path]:
    """Draws figures into results/paper/NAME of the model with scale; returns the files."""
    runs = [open_run(path) for path in (without, scaled) if path != "none"]
    folder, files, test = RESULTS / "paper" / runs[-1].name, [], None
    seen = [f"{run.name}: {run.kept['exported']['images']:,} images seen" for run in runs]
    for name, draw in FIGURES.items():
        if figures and not set(figures) & {name, *name.split("-")}:
            continue
        try:
            if name in NEED_TEST and test is None:
                config = runs[-1].config
                config.data_dir = data_dir or config.data_dir
                test = dlsgan.to_float(dlsgan.LOADERS[config.dataset](config)[1][:256])
            figure = draw(runs, test)
        except dlsgan.UserError as error:
            if figures:
                raise
            print(f"{name} is left out: {error}")
            continue
        files.append(folder / f"{'figure-' * name[0].isdigit()}{name}.png")
        with dlsgan.explain(f"cannot write {files[-1]}"):
            folder.mkdir(parents=True, exist_ok=True)
            figure.suptitle("; ".join(seen[-1:] if name in ONE_MODEL else seen), fontsize=8, color="0.4")
            figure.savefig(files[-1], dpi=130)
        print(f"{name}: {files[-1]}")
    return files


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--with", dest="scaled", default=str(dlsgan.PRETRAINED / "celeba64.pt"), metavar="FILE")
    parser.add_argument("--without", default=str(dlsgan.PRETRAINED / "celeba64-no-scale.pt"), metavar="FILE")
    parser.add_argument("--data-dir", default="", help="where the data set is (default: data/DATASET)")
    names = {part for name in FIGURES for part in (name, *name.split("-"))}
    parser.add_argument("--figures", nargs="+", choices=sorted(names), metavar="NAME", help="which ones (default: all)")
    try:
        main(**vars(parser.parse_args()))
    except dlsgan.UserError as error:
        print(f"paper_figures: {error}", file=sys.stderr)
        sys.exit(2)
