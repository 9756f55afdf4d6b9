"""The eight latent axes of a planar toy, drawn as curves from the first step of training to the last.

Claim. With the scale two axes take over, as the plane has two dimensions, and six shrink to a point; without
it all eight go on sharing the plane.

    python -m toy_experiments.two_dimensional_axes   2 minutes on one core; draws
                                                     results/two_dimensional_axes.png and .gif

The setting is that of two_dimensional.py, the data the ring, seed 0.
"""

from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

import dlsgan
from toy_experiments.shared import cli
from toy_experiments.shared.cli import RESULTS
from toy_experiments.shared.planar import STEPS, D, snapshots
from toy_experiments.two_dimensional import WITH, WITHOUT, draw_data_set

PARTS = (0.02, 0.05, 1.0)  # of a training: early, middle and late
AXIS_COLOURS = ("#d1495b", "#30638e", "#edae49", "#3c7a5d", "#7b4f9d", "#1b9aaa", "#8c5a2b", "#444444")


@torch.no_grad()
def latent_axes(model: dlsgan.DLSGAN, reach: float = 2.5, points: int = 101) -> np.ndarray:
    """The latent axes drawn through the plane: images of z = t e_i, t from -reach to reach: [d, points,
    2]."""
    t = torch.linspace(-reach, reach, points)
    z = torch.eye(D)[:, None, :] * t[:, None]  # [d, points, d]
    x = model.decode(z.flatten(0, 1))  # [d * points, 2]
    return x.unflatten(0, (D, points)).numpy()


def draw_axes(panel, bars, model: dlsgan.DLSGAN, name: str) -> None:
    """Above: data, and the eight latent axes as curves, as wide as their scale s_i. Below: s_i as bars, same
    colours."""
    draw_data_set(panel, name)
    s = model.latent_scale.scale().numpy()
    for curve, width, colour in zip(latent_axes(model), s, AXIS_COLOURS, strict=True):
        panel.plot(*curve.T, color=colour, linewidth=1.5 * width, solid_capstyle="round")
    bars.bar(range(1, D + 1), s, color=AXIS_COLOURS)
    bars.set(xticks=range(1, D + 1), yticks=(0, 1, 2), ylim=(0, 2.2))
    bars.tick_params(labelsize=8, length=2)
    bars.spines[["top", "right"]].set_visible(False)


def figure_of_axes(columns: list[tuple[str, dlsgan.DLSGAN]], name: str, rows: int = 1):
    """Panels of `draw_axes` with their titles, row by row."""
    n = len(columns) // rows
    figure = Figure((3.3 * n, 4.3 * rows), layout="constrained")
    panels = figure.subplots(2 * rows, n, height_ratios=(4, 1) * rows, squeeze=False)
    for i, (title, model) in enumerate(columns):
        row, column = divmod(i, n)
        panel, bars = panels[2 * row : 2 * row + 2, column]
        draw_axes(panel, bars, model, name)
        panel.set_title(title, fontsize=11)
        if column == 0:
            bars.set_ylabel("s", rotation=0)
        if row == rows - 1:
            bars.set_xlabel("latent dimension", fontsize=9)
    return figure


def animate(scaled: dict[int, dlsgan.DLSGAN], plain: dict[int, dlsgan.DLSGAN], name: str, path: Path) -> None:
    """A GIF of the latent axes at the moments of two trainings, with the scale and without."""
    pictures = []
    for step in scaled:
        columns = [(f"{way}, step {step:,}", kept[step]) for way, kept in ((WITH, scaled), (WITHOUT, plain))]
        canvas = FigureCanvasAgg(figure_of_axes(columns, name))
        canvas.figure.set_dpi(80)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[:, :, :3]
        pictures.append(Image.fromarray(pixels))
    # one palette for all frames, so that the grey of the data does not flicker
    palette = pictures[-1].quantize(48)
    frames = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    durations = [150] * (len(frames) - 1) + [3000]  # milliseconds
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True)


def axes_of_training(name: str = "ring", seed: int = 0, steps: int = STEPS) -> dict:
    """The latent axes from the first step to the last, one training with the scale and one without: a figure
    of three moments and an animation. Keeps the scales of the moments shown."""
    # close together at first, when the scale decides: about 50 moments
    moments = sorted({round(steps ** (i / 60)) for i in range(61)})
    early, middle, late = (min(moments, key=lambda step: abs(step - steps * part)) for part in PARTS)
    kept = {way: snapshots(name, seed, way == WITH, moments, steps) for way in (WITH, WITHOUT)}
    columns = []
    for way, models in kept.items():
        columns += [(f"{way}, step {step:,}", models[step]) for step in (early, middle, late)]
    RESULTS.mkdir(exist_ok=True)
    figure_of_axes(columns, name, rows=2).savefig(RESULTS / "two_dimensional_axes.png", dpi=100)
    animate(kept[WITH], kept[WITHOUT], name, RESULTS / "two_dimensional_axes.gif")
    result = {
        "command": "python -m toy_experiments.two_dimensional_axes",
        "machine": cli.processor(),
        "threads": 1,
    }
    result |= {"data": name, "seed": seed, "steps": steps, "scales": {}}
    for step in (early, middle, late):
        s = kept[WITH][step].latent_scale.scale().tolist()
        result["scales"][str(step)] = [round(value, 4) for value in s]
    cli.write_json(RESULTS / "two_dimensional_axes.json", result)
    return result


def main(steps: int = STEPS) -> dict:
    dlsgan.require(steps > 0, f"--steps {steps}: must be at least 1")
    torch.set_num_threads(1)
    return axes_of_training(steps=steps)


if __name__ == "__main__":
    parser = cli.parser(__doc__)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"training steps (default: {STEPS})")
    with cli.one_line("two_dimensional_axes"):
        main(**vars(parser.parse_args()))
