"""A web page with sliders over the live latent dimensions of a model, beside one trained without the scale.

    python -m toy_experiments.tools.explore --checkpoint pretrained/cartoon.pt \\
        --beside pretrained/cartoon-no-scale.pt --out explore.html

Claims: with the scale each live dimension (v > 1/2) changes the picture, and the dead one beside them does
not. Without the scale no dimension needs to be live, and even the one of smallest v changes the picture.

The page is one file of at most 3 MB that loads nothing, so it works from disk, on a phone and by keyboard. It
holds images, no generator: for each start image, each slider's dimension at 11 positions from -2.5 to 2.5.
That is why a slider that moves puts the other sliders of its model back. The start images come from random
latent vectors, the same ones for both models, in which the dimensions with sliders are rounded to the nearest
position. The images are one PNG if that fits, else one JPEG of quality 92 or 80.

The second model gets as many sliders as the first, over its largest v, and one over its smallest. The fairest
pair are two models trained alike, with the scale and without.

Expected printout: for each model the number of live dimensions, and how far each slider changes the picture
(mean difference of the pixels between its ends over 64 random images, in grey levels of 255); then the file
and its size. 3 to 5 s for two models at 32x32 on one core of an AMD EPYC.
"""

import base64
import dataclasses
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import dlsgan
from toy_experiments.shared import cli
from toy_experiments.shared.image_files import new_file
from toy_experiments.shared.sliders import LIMIT, count_live, count_sliders, strongest_and_weakest

TEMPLATE = Path(__file__).with_suffix(".html")  # the page's text, style and script
MOST_BYTES = 3_000_000
MEASURED = 64  # random images on which the sliders' changes are measured
POSITIONS = (6, 11, 26, 51)  # of a slider: steps of 1, 0.5, 0.2, 0.1
# tried in this order; each block of a JPEG, 8x8 pixels, lies within one image, since sizes are powers of two
FORMATS = (
    {"format": "png", "optimize": True},
    {"format": "jpeg", "quality": 92, "subsampling": 0},
    {"format": "jpeg", "quality": 80, "subsampling": 0},
)


@dataclasses.dataclass
class Panel:
    """What the page shows of one model."""

    scaled: bool  # whether it was trained with the scale
    live: int  # number of its dimensions with v > 1/2
    v: list[float]  # [d]
    dimensions: list[int]  # [sliders], those of largest v, largest first, and that of smallest v
    start: np.ndarray  # int [faces, sliders], the position that each slider starts at
    frames: np.ndarray  # uint8 [faces, sliders, positions, H, W, 3]
    moves: list[float]  # [sliders], how far each changes the picture, see `changes`


@torch.no_grad()
def traverse(model: dlsgan.DLSGAN, z: Tensor, i: int, positions: Tensor) -> np.ndarray:
    """Images uint8 [positions, H, W, 3] of z [d] with its element i at each of the positions."""
    turned = z.repeat(len(positions), 1)  # [positions, d]
    turned[:, i] = positions
    x = dlsgan.to_uint8(dlsgan.in_batches(model.decode, turned))
    return x.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()  # a grey channel becomes three


@torch.no_grad()
def changes(model: dlsgan.DLSGAN, dimensions: list[int]) -> list[float]:
    """How far each dimension changes the picture from -LIMIT to LIMIT: mean absolute difference of pixels of
    MEASURED random images, in grey levels of 255."""
    z = dlsgan.sample_latents(MEASURED, model.latent_scale, torch.Generator().manual_seed(0))
    result = []
    for i in dimensions:
        ends = []
        for value in (-LIMIT, LIMIT):
            turned = z.clone()
            turned[:, i] = value
            ends.append(dlsgan.in_batches(model.decode, turned).clamp(-1, 1))
        result.append(127.5 * (ends[1] - ends[0]).abs().mean().item())
    return result


def make_panel(model: dlsgan.DLSGAN, count: int, faces: int, steps: int, seed: int) -> Panel:
    """Sliders of `steps` positions over the `count` dimensions of largest v and the one of smallest, for
    `faces` start images."""
    v = model.latent_scale.v
    dimensions = strongest_and_weakest(v, count)
    positions = torch.linspace(-LIMIT, LIMIT, steps)
    z = dlsgan.sample_latents(faces, model.latent_scale, torch.Generator().manual_seed(seed))  # [faces, d]
    distances = (z[:, dimensions, None] - positions).abs()  # [faces, sliders, steps]
    start = distances.argmin(2)
    z[:, dimensions] = positions[start]
    frames = [[traverse(model, face, i, positions) for i in dimensions] for face in z]
    return Panel(
        scaled=model.latent_scale.enabled,
        live=count_live(v),
        v=v.tolist(),
        dimensions=dimensions,
        start=start.numpy(),
        frames=np.array(frames),
        moves=changes(model, dimensions),
    )


def sprite(panel: Panel, saving: dict) -> str:
    """All images of a panel as one picture in a data URI: a row for each slider, face by face, and a column
    for each position. `saving` is one of FORMATS."""
    faces, sliders, positions, height, width, channels = panel.frames.shape
    rows = panel.frames.swapaxes(2, 3)  # [faces, sliders, H, positions, W, 3]
    picture = rows.reshape(faces * sliders * height, positions * width, channels)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, **saving)
    return f"data:image/{saving['format']};base64,{base64.b64encode(buffer.getvalue()).decode()}"


# ---- What the page says ------------------------------------------------------------------------------------


def levels(values: Sequence[float]) -> str:
    """A range in words, "23 to 48"; below ten with one decimal."""
    low, high = (f"{value:.1f}" if value < 10 else f"{value:.0f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def describe(panel: Panel) -> str:
    """Three or four sentences on what one sees, with the numbers that were measured."""
    count = len(panel.dimensions) - 1
    *strong, weak = panel.moves
    verb = "are" if panel.live > 1 else "is"
    text = f"{panel.live or 'None'} of {len(panel.v)} dimensions {verb} live (v above 0.5). "
    if panel.live >= count:
        shown = "Each of them" if panel.live == count else f"Each of the {count} strongest"
    else:
        shown = f"Each of the {count} with the largest v"
    text += f"{shown} changes the picture by {levels(strong)} grey levels of 255 from end to end. "
    last = "The dead one at the bottom" if is_dead(panel) else "The one with the smallest v"
    if weak < 1:
        return f"{text}{last} changes it by {weak:.1f}, which you will not see."
    text += f"{last} still changes it by {levels([weak])}."
    if not panel.scaled:
        share = f"{np.mean(panel.v):.0%}"
        text += f" All of them share the picture, and the encoder reads {share} of each on average."
    return text


def is_dead(panel: Panel) -> bool:
    """Whether the scale has faded the weakest dimension out: to a tenth or less of the strongest one's
    power, s^2."""
    return panel.scaled and min(panel.v) <= 0.1 * max(panel.v)


def slider_row(name: str, k: int, panel: Panel) -> str:
    """The label, the slider and the numbers of the k-th dimension; `name` tells the models apart."""
    i = panel.dimensions[k]
    positions = np.linspace(-LIMIT, LIMIT, panel.frames.shape[2])
    step = f"{positions[1] - positions[0]:.1f}"
    start = f"{positions[panel.start[0, k]]:.1f}"
    dead = " dead" if k == len(panel.dimensions) - 1 else ""
    return f"""<div class="slider{dead}">
<label for="{name}-{k}"><span class="name">z{i}</span> v {panel.v[i]:.2f}</label>
<input type="range" id="{name}-{k}" min="{-LIMIT}" max="{LIMIT}" step="{step}" value="{start}">
<output for="{name}-{k}"></output>
<span class="moves">changes {panel.moves[k]:.1f}</span>
</div>"""


def section(name: str, title: str, panel: Panel, saving: dict) -> str:
    """The part of the page about one model."""
    faces, sliders, positions, size = panel.frames.shape[:4]
    data = {
        "size": size,
        "sliders": sliders,
        "values": np.linspace(-LIMIT, LIMIT, positions).round(1).tolist(),
        "names": [f"z{i}" for i in panel.dimensions],
        "start": panel.start.tolist(),
    }
    choices = [
        f'<label class="face"><input type="radio" name="{name}-face" value="{face}"'
        f"{' checked' if face == 0 else ''}><canvas width={size} height={size} aria-hidden=true></canvas>"
        f"<span>{face + 1}</span></label>"
        for face in range(faces)
    ]
    strong = "Live dimensions" if panel.live >= sliders - 1 else "Largest v"
    weak = "Dead dimension" if is_dead(panel) else "Smallest v"
    rows = [slider_row(name, k, panel) for k in range(sliders)]
    line = "\n"
    settings = html.escape(json.dumps(data))
    return f"""<section class="model" aria-labelledby="{name}-title" data-panel="{settings}">
<h2 id="{name}-title">{html.escape(title)}</h2>
<p>{describe(panel)}</p>
<div class="view">
<canvas class="picture" width="512" height="512" role="img"></canvas>
<div class="choices">
<fieldset><legend>Start image</legend>
{line.join(choices)}
</fieldset>
<button type="button">Reset</button>
</div>
</div>
<h3>{strong}</h3>
{line.join(rows[:-1])}
<h3>{weak}</h3>
{rows[-1]}
<img class="sprite" hidden alt="" src="{sprite(panel, saving)}">
</section>"""


def page(panels: dict[str, Panel], saving: dict) -> str:
    """The whole page, from panels by their titles, with images saved in one of FORMATS."""
    sections = [
        section(f"model{number}", title, panel, saving)
        for number, (title, panel) in enumerate(panels.items())
    ]
    text = TEMPLATE.read_text(encoding="utf-8").replace("@LIMIT@", f"{LIMIT}")
    return text.replace("@SECTIONS@", "\n".join(sections))


# ---- Command line ------------------------------------------------------------------------------------------


def small_enough(panels: dict[str, Panel]) -> str:
    """The page in the first of FORMATS that keeps it within MOST_BYTES. UserError if none does."""
    for saving in FORMATS:
        text = page(panels, saving)
        if len(text.encode()) <= MOST_BYTES:
            return text
    megabytes = len(text.encode()) / 1e6
    advice = "ask for fewer --faces, --positions or --sliders"
    raise dlsgan.UserError(f"the page would have {megabytes:.1f} MB, and 3 are the most: {advice}")


def main(
    checkpoint: str,
    beside: str | None,
    out: str,
    faces: int = 4,
    positions: int = 11,
    sliders: int = 16,
    seed: int = 0,
) -> None:
    dlsgan.require(1 <= faces <= 20, f"--faces {faces} is not between 1 and 20")
    known = ", ".join(map(str, POSITIONS))
    dlsgan.require(positions in POSITIONS, f"--positions {positions} is none of {known}")
    path = new_file(out)
    models = [dlsgan.load_model(name) for name in (checkpoint, beside) if name]
    count = count_sliders(models[0].latent_scale.v, sliders)
    panels = {}
    for name, model in zip((checkpoint, beside), models, strict=False):
        panel = make_panel(model, min(count, len(model.latent_scale.v) - 1), faces, positions, seed)
        title = "With the latent scale" if panel.scaled else "Without the latent scale"
        if title in panels:  # two models of one kind
            title = f"{title}: {Path(name).stem}"
        panels[title] = panel
        changes = ", ".join(f"{move:.1f}" for move in panel.moves)
        print(f"{name}: {panel.live} of {len(panel.v)} live; change of the picture a slider: {changes}")
    text = small_enough(panels)
    with dlsgan.explain(f"cannot write {path}"):
        path.write_text(text, encoding="utf-8")
    print(f"{path}: {len(text.encode()) / 1e6:.2f} MB")


if __name__ == "__main__":
    parser = cli.parser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="folder of a run, or a checkpoint")
    parser.add_argument("--beside", help="another one, best without the scale (default: none)")
    parser.add_argument("--out", default="explore.html", help="new file (default: explore.html)")
    parser.add_argument("--faces", type=int, default=4, help="start images (default: 4)")
    parser.add_argument(
        "--positions", type=int, default=11, help="of a slider: 6, 11, 26 or 51 (default: 11)"
    )
    parser.add_argument("--sliders", type=int, default=16, help="over live dimensions, at most (default: 16)")
    parser.add_argument("--seed", type=int, default=0, help="of the start images (default: 0)")
    with cli.one_line("explore"):
        main(**vars(parser.parse_args()))
