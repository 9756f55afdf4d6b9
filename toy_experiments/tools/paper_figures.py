"""The figures of the paper, drawn from trained models and the kept measures of their runs.

    python -m toy_experiments.tools.paper_figures                 all, of the two CelebA-64 models: a minute
    python -m toy_experiments.tools.paper_figures --figures 2 5 11 spectrum
    python -m toy_experiments.tools.paper_figures --with pretrained/a.pt --without pretrained/b.pt

Both models must be exported (`python -m toy_experiments.tools.export_weights`): their curves and measures are
those of toy_experiments/results/runs/NAME.json, everything else is computed from the weights. `--without
none` draws what one model can show. Figures of test images need the data set, those it lacks are left out;
pictures go to results/paper/NAME/.

    1               distance of samples from test images: FID, if it was measured, and sliced Wasserstein
    2               L_enc over training
    3-4, 7-8        PSNR and SSIM of reconstructions over training, of generated and of test images
    5-6, 9-10       generated and test images, each row above its reconstructions, without and with scale
    11              stochastic flip: each element of z_hat times -1 with probability 10%, the same in a column
    spectrum        v of both models, and of the model that the paper's author has published
    interpolation   straight lines between the z_hat of test images
    traversal       the strongest dimensions of z, one at a time, the others at 0
    alignment       why a photo must be framed as the training images are
    pair            in one picture: samples, reconstructions of test images, and v, of both models

Expected printout: a line a figure, with the file's name, or why it is left out.
"""

import json
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
from toy_experiments.shared import cli
from toy_experiments.shared.cli import RESULTS
from toy_experiments.shared.figures import (
    WITH_SCALE,
    WITHOUT_SCALE,
    flip_picture,
    flip_signs,
    middles,
    traversals,
)
from toy_experiments.tools import align_face, results_table


class Run(NamedTuple):
    """An exported model and the kept results of its run."""

    name: str
    label: str
    colour: str
    model: dlsgan.DLSGAN
    config: dlsgan.Config
    kept: dict


def open_run(path: str) -> Run:
    config, _ = dlsgan.read_checkpoint(path)
    kept = results_table.load(Path(path).stem)
    dlsgan.require("exported" in kept, f"{path} was not written by toy_experiments.tools.export_weights")
    label = "with latent scale" if config.latent_scale else "without latent scale"
    colour = WITH_SCALE if config.latent_scale else WITHOUT_SCALE
    return Run(Path(path).stem, label, colour, dlsgan.load_model(path), config, kept)


def blank(width: float, height: float, panels: int = 1) -> tuple[Figure, np.ndarray]:
    figure = Figure((width, height), layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def show(axis: Axes, picture: np.ndarray, title: str) -> None:
    axis.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axis.set_title(title, fontsize=10)
    axis.set(xticks=[], yticks=[], frame_on=False)
    axis.tick_params(length=0, labelsize=8)


def distance_label(name: str) -> str:
    """Of a key in `shared.distances`: "swd 32", "swd mean" or "FID"."""
    label = name.replace("swd", "SWD")
    return f"{label} px" if label[-1].isdigit() else label


def distances(runs: list[Run], test: Tensor | None) -> Figure:
    last = runs[-1].kept["exported"]
    bars = [(run.label, run.colour, run.kept["exported"]["distances"]["samples"]) for run in runs]
    bars.append(("other test images", "0.6", last["distances"]["other test images"]))
    names = list(bars[-1][2])  # levels, their mean, FID
    for _, _, values in bars:
        names = [name for name in names if name in values]
    figure, (axis,) = blank(9, 3.4)
    for i, (label, colour, values) in enumerate(bars):
        x = np.arange(len(names)) + 0.27 * (i - (len(bars) - 1) / 2)
        drawn = axis.bar(x, [values[name] for name in names], 0.25, color=colour, label=label)
        axis.bar_label(drawn, fmt="%.1f", fontsize=8)
    axis.set_xticks(range(len(names)), [distance_label(name) for name in names])
    axis.set(ylabel="distance from test images", ymargin=0.25)
    n = f"{last['distance_images']:,}"
    title = f"Figure 1: distance of {n} samples from {n} test images, at the end of training"
    explanation = "(SWD: sliced Wasserstein distance times 1000, per level of the Laplacian pyramid)"
    axis.set_title(f"{title}\n{explanation}", fontsize=10)
    axis.legend(frameon=False, fontsize=9, ncols=3, loc="upper left")
    return figure


def curves(runs: list[Run], test: Tensor | None, panels: dict[str, tuple[str, str]]) -> Figure:
    """Measures over training; panels: title -> (measure, unit). Dotted: the PSNR of the mean image, without
    any encoder."""
    figure, axes = blank(5 * len(panels), 3.4, len(panels))
    for axis, (title, (key, unit)) in zip(axes, panels.items(), strict=True):
        for run in runs:
            lines = run.kept["curves"]
            thousands = np.array(lines["images"]) / 1000
            values = np.array(lines[key])
            axis.plot(thousands, values, marker=".", color=run.colour, label=run.label)
            if key.startswith("psnr"):
                mean_image = values - lines[key.replace("psnr", "psnr_gain")]
                if key.endswith("generated"):  # each run has a mean of its own generated images
                    label = f"mean image, {run.label}"
                    axis.plot(thousands, mean_image, ":", color=run.colour, label=label)
                else:
                    label = "mean image" if run is runs[-1] else None
                    axis.plot(thousands, mean_image, ":", color="0.5", label=label)
        axis.set(xlabel="thousand real images seen", ylabel=unit, ymargin=0.1)
        if key == "l_enc":
            axis.set_ylim(0, 1.1)
        axis.set_title(title, fontsize=10)
        axis.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
        axis.grid(alpha=0.3)
    return figure


def pairs(runs: list[Run], test: Tensor | None, number: int, name: str) -> Figure:
    """Each row of eight images above its reconstructions, one panel a model."""
    figure, axes = blank(5.6 * len(runs), 5, len(runs))
    for axis, run in zip(axes, runs, strict=True):
        x = test[:24] if name == "test" else run.model.sample(24).clamp(-1, 1)
        rows = []
        for part in x.split(8):
            rows += [part, run.model.reconstruct(part)]
        e = run.kept["exported"]
        gain = f"{e[f'psnr_gain_{name}']:+.1f} dB over the mean image"
        quality = f"PSNR {e[f'psnr_{name}']:.1f} dB, {gain}, SSIM {e[f'ssim_{name}']:.2f}"
        title = f"Figure {number + run.config.latent_scale}: {name} images and reconstructions, {run.label}"
        show(axis, dlsgan.make_grid(rows), f"{title}\n{quality}")
    return figure


def flips(runs: list[Run], test: Tensor, rows: int = 6, columns: int = 9, probability: float = 0.1) -> Figure:
    """Input, reconstruction, white bar, flips; one mask a column, shared by all rows."""
    run = runs[-1]
    active = torch.tensor(run.kept["exported"]["v"]) > 0.5
    signs = flip_signs(columns, len(active), probability)  # [columns, d]
    flipped = signs < 0
    text = f"{flipped.sum(1).float().mean():.1f} elements of {len(active)}, of {int(active.sum())} live ones "
    if active.any():
        text += f"{flipped[:, active].sum(1).float().mean():.1f} a column"
    else:
        text += "(none is live)"
    figure, (axis,) = blank(9, 5)
    title = f"Figure 11: test image, reconstruction | stochastic flip of z_hat, {probability:.0%}"
    show(axis, flip_picture(run.model, test[:rows], signs), f"{title}\nflipped: {text}")
    return figure


def spectrum(runs: list[Run], test: Tensor | None) -> Figure:
    figure, (axis,) = blank(7.5, 3.6)
    author = json.loads((RESULTS / "author_celeba128_v.json").read_text())["v"]
    lines = [(f"here, {run.label}", run.kept["exported"]["v"], run.colour) for run in runs]
    for label, v, colour in [*lines, ("the author's CelebA-128 model", author, "0.45")]:
        shown = sorted(v, reverse=True)[: max(len(v) for _, v, _ in lines)]
        text = f"{label}: {sum(x > 0.5 for x in v)} of {len(v)} live"
        axis.plot(range(1, 1 + len(shown)), shown, marker=".", markersize=4, color=colour, label=text)
    axis.axhline(0.5, color="0.6", linestyle="--", linewidth=0.8)
    axis.set(xlabel="latent dimension, sorted", ylabel="v: variance the encoder recovers", ylim=(0, 1.15))
    axis.legend(frameon=False, fontsize=8)
    return figure


def pair(runs: list[Run], test: Tensor, columns: int = 5) -> Figure:
    """A column a model: samples, test images above their reconstructions, and the spectrum of v."""
    figure = Figure((4.6 * len(runs), 7.6), layout="constrained")
    axes = figure.subplots(3, len(runs), squeeze=False, height_ratios=(1, 4, 2))
    for column, run in zip(axes.T, runs, strict=True):
        e = run.kept["exported"]
        samples = dlsgan.make_grid([run.model.sample(columns).clamp(-1, 1)])
        show(column[0], samples, f"{run.label}: samples")
        column[0].title.set_color(run.colour)
        first, second = (
            dlsgan.make_grid([x, run.model.reconstruct(x)]) for x in test[: 2 * columns].split(columns)
        )
        gap = np.full_like(first[: len(first) // 24], 255)  # white, between two pairs of rows
        gain = f"{e['psnr_gain_test']:+.1f} dB over the mean image"
        picture = np.concatenate((first, gap, second))
        show(column[1], picture, f"test images, each row above its reconstructions\n{gain}")
        v = sorted(e["v"], reverse=True)
        column[2].stairs(v, np.arange(0.5, 1 + len(v)), fill=True, color=run.colour)
        column[2].set(xlabel="latent dimension, sorted", ylabel="v", ylim=(0, 1.15), xlim=(0, 1 + len(v)))
        column[2].set_title(f"what the encoder recovers; L_enc {e['l_enc']:.2f}", fontsize=10)
    return figure


def interpolation(runs: list[Run], test: Tensor, rows: int = 5, steps: int = 7) -> Figure:
    model = runs[-1].model
    first = test[:rows]
    last = test[rows : 2 * rows]
    start = model.encode(first)
    end = model.encode(last)
    between = [model.decode(start.lerp(end, t)) for t in torch.linspace(0, 1, steps).tolist()]
    figure, (axis,) = blank(8, 4.8)
    images = torch.stack([first, *between, last], 1)  # [rows, steps + 2, C, H, W]
    show(axis, dlsgan.make_grid(images), "test image | decoded from z_hat in equal steps | test image")
    return figure


def traversal(runs: list[Run], test: Tensor | None, rows: int = 8, columns: int = 9) -> Figure:
    run = runs[-1]
    v = torch.tensor(run.kept["exported"]["v"])
    order = v.argsort(descending=True)[:rows].tolist()
    picture = traversals(run.model, order, limit=2.5, columns=columns)
    size = run.config.resolution
    figure, (axis,) = blank(7.5, 6.6)
    show(axis, picture, "one dimension of z at a time (columns: its value), the others at 0")
    axis.set_yticks(middles(len(order), size), [f"z{i}, v = {v[i]:.2f}" for i in order])
    axis.set_xticks(middles(columns, size), [f"{x:.1f}" for x in torch.linspace(-2.5, 2.5, columns).tolist()])
    return figure


def alignment(runs: list[Run], test: Tensor, shown: int = 5, n: int = 64) -> Figure:
    run = runs[-1]
    dlsgan.require(run.config.dataset == "celeba", "only faces are cropped by their eyes")
    size = (run.config.resolution, run.config.resolution)
    photos = []
    crops = []
    for x in test[:n]:
        photo, eyes = align_face.as_photo(Image.fromarray(dlsgan.make_grid([x[None]])))
        photos.append(photo)
        crops.append(align_face.align(photo, eyes))
    figure, axes = blank(9, 2.7, 2)
    for axis, images, name in zip(axes, (photos, crops), ("as they are", "cropped by the eyes"), strict=True):
        resized = np.stack([np.asarray(image.resize(size, Image.LANCZOS)) for image in images])
        x = dlsgan.to_float(resized.transpose(0, 3, 1, 2))  # [N, H, W, C] -> [N, C, H, W]
        y = run.model.reconstruct(x).clamp(-1, 1)
        psnr = dlsgan.psnr(x, y).mean()
        quality = f"PSNR {psnr:.1f} dB, SSIM {dlsgan.ssim(x, y).mean():.2f} ({len(x)} images)"
        title = f"turned test images {name}, and reconstructions\n{quality}"
        show(axis, dlsgan.make_grid([x[:shown], y[:shown]]), title)
    return figure


def quality(number: int, name: str) -> partial:
    """The pair of figures of PSNR and SSIM; name: "generated" or "test"."""
    panels = {
        f"Figure {number}: reconstruction of {name} images": (f"psnr_{name}", "PSNR, dB"),
        f"Figure {number + 1}: reconstruction of {name} images": (f"ssim_{name}", "SSIM"),
    }
    return partial(curves, panels=panels)


FIGURES = {
    "1": distances,
    "2": partial(curves, panels={"Figure 2: encoder loss on generated images": ("l_enc", "L_enc")}),
    "3-4": quality(3, "generated"),
    "5-6": partial(pairs, number=5, name="generated"),
    "7-8": quality(7, "test"),
    "9-10": partial(pairs, number=9, name="test"),
    "11": flips,
    "spectrum": spectrum,
    "interpolation": interpolation,
    "traversal": traversal,
    "alignment": alignment,
    "pair": pair,
}
NEED_TEST = ("9-10", "11", "interpolation", "alignment", "pair")
ONE_MODEL = ("11", "interpolation", "traversal", "alignment")  # the last one given, with scale


def load_test(config: dlsgan.Config, data_dir: str) -> Tensor:
    """The first 256 test images."""
    config.data_dir = data_dir or config.data_dir
    return dlsgan.to_float(dlsgan.LOADERS[config.dataset](config)[1][:256])


def wanted(name: str, figures: list[str] | None) -> bool:
    """Whether a figure, such as "3-4", is one of those that were asked for by "3-4", "3" or "4"; None:
    all."""
    return not figures or not {name, *name.split("-")}.isdisjoint(figures)


@torch.no_grad()
def main(
    scaled: str,  # weights of the model with scale
    without: str,  # weights of that without, or "none"
    data_dir: str = "",
    figures: list[str] | None = None,  # parts of names in FIGURES; None: all that can be drawn
) -> list[Path]:
    """Draws figures into results/paper/NAME of the model with scale; returns the files."""
    runs = [open_run(path) for path in (without, scaled) if path != "none"]
    folder = RESULTS / "paper" / runs[-1].name
    seen = [f"{run.name}: {run.kept['exported']['images']:,} images seen" for run in runs]
    files = []
    test = None
    for name, draw in FIGURES.items():
        if not wanted(name, figures):
            continue
        try:
            if name in NEED_TEST and test is None:
                test = load_test(runs[-1].config, data_dir)
            figure = draw(runs, test)
        except dlsgan.UserError as error:
            if figures:
                raise
            print(f"{name} is left out: {str(error).splitlines()[0]}")
            continue
        path = folder / (f"figure-{name}.png" if name[0].isdigit() else f"{name}.png")
        with dlsgan.explain(f"cannot write {path}"):
            folder.mkdir(parents=True, exist_ok=True)
            figure.suptitle("; ".join(seen[-1:] if name in ONE_MODEL else seen), fontsize=8, color="0.4")
            figure.savefig(path, dpi=130)
        files.append(path)
        print(f"{name}: {path}")
    return files


if __name__ == "__main__":
    parser = cli.parser(__doc__)
    scaled = str(dlsgan.PRETRAINED / "celeba64.pt")
    parser.add_argument("--with", dest="scaled", default=scaled, metavar="FILE")
    without = str(dlsgan.PRETRAINED / "celeba64-no-scale.pt")
    parser.add_argument("--without", default=without, metavar="FILE")
    parser.add_argument("--data-dir", default="", help="where the data set is (default: data/DATASET)")
    names = sorted({part for name in FIGURES for part in (name, *name.split("-"))})
    figures_help = "which ones (default: all)"
    parser.add_argument("--figures", nargs="+", choices=names, metavar="NAME", help=figures_help)
    with cli.one_line("paper_figures"):
        main(**vars(parser.parse_args()))
