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
(mean difference of the pixels between its ends, in grey levels of 255); then the file and its size. 5 s for
two models at 32x32 on one core of an AMD EPYC with AVX2.
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

MOST_BYTES = 3_000_000
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

    def moves(self) -> list[float]:
        """How far each slider changes the picture from its one end to the other: mean absolute difference of
        pixels over all start images, in grey levels of 255."""
        difference = self.frames[:, :, -1].astype(float) - self.frames[:, :, 0]
        return np.abs(difference).mean((0, 2, 3, 4)).tolist()


@torch.no_grad()
def traverse(model: dlsgan.DLSGAN, z: Tensor, i: int, positions: Tensor) -> np.ndarray:
    """Images uint8 [positions, H, W, 3] of z [d] with its element i at each of the positions."""
    turned = z.repeat(len(positions), 1)  # [positions, d]
    turned[:, i] = positions
    x = dlsgan.to_uint8(dlsgan.in_batches(model.decode, turned))
    return x.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()  # a grey channel becomes three


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
    """Three or four sentences on what one sees, with the numbers measured on these images."""
    count = len(panel.dimensions) - 1
    *strong, weak = panel.moves()
    verb = "are" if panel.live > 1 else "is"
    text = f"{panel.live or 'None'} of {len(panel.v)} dimensions {verb} live (v above 0.5). "
    if panel.live >= count:
        shown = "Each of them" if panel.live == count else f"Each of the {count} strongest"
    else:
        shown = f"Each of the {count} with the largest v"
    text += f"{shown} changes the picture by {levels(strong)} grey levels of 255 from end to end. "
    last = "The dead one at the bottom" if is_dead(panel) else "The one with the smallest v"
    if weak < 2:
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
<span class="moves">changes {panel.moves()[k]:.1f}</span>
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
    parts = {"STYLE": STYLE, "SCRIPT": SCRIPT, "SECTIONS": "\n".join(sections), "LIMIT": f"{LIMIT}"}
    text = PAGE
    for name, part in parts.items():
        text = text.replace(f"@{name}@", part)
    return text


# ---- The page's own languages ------------------------------------------------------------------------------

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Latent dimensions, one at a time</title>
<link rel="icon" href="data:,">
<style>@STYLE@</style>
</head>
<body>
<main>
<h1>Latent dimensions, one at a time</h1>
<p>A generator makes a picture from random numbers, its latent dimensions. Each slider turns one of them
from &minus;@LIMIT@ to @LIMIT@ and leaves the rest as they are. A second slider puts the first one back. v
says how much of that number an encoder can read in the picture: 1 is all of it, 0 is nothing.</p>
<noscript><p>The sliders of this page need JavaScript.</p></noscript>
<div class="models">
@SECTIONS@
</div>
<p class="small">"changes": how far the picture changes while the slider goes from one end to the other. It is
the mean difference of the pixels in grey levels of 255, over all start images.</p>
</main>
<script>@SCRIPT@</script>
</body>
</html>
"""

STYLE = """
:root { --text: #1c1c1c; --page: #ffffff; --soft: #5a5a5a; --line: #d5d5d5; --accent: #30638e; }
@media (prefers-color-scheme: dark) {
  :root { --text: #ececec; --page: #17191c; --soft: #b0b0b0; --line: #44484d; --accent: #7fb2dd; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 0 0 .25rem; }
h3 { font-size: 1rem; margin: .75rem 0 .25rem; }
p { margin: 0 0 .75rem; }
.small { color: var(--soft); font-size: .875rem; margin-top: 1.5rem; }
.models { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 2rem; }
.model { min-width: 0; }
.model > p { min-height: 7.5em; }
.view { position: sticky; top: 0; z-index: 1; display: flex; gap: 1rem; padding: .5rem 0;
  background: var(--page); border-bottom: 1px solid var(--line); }
.picture { width: 16rem; height: 16rem; flex: none; border-radius: .25rem; }
.choices { display: flex; flex-direction: column; gap: .75rem; min-width: 0; }
fieldset { border: 0; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: .375rem; min-width: 0; }
legend { padding: 0; font-weight: 600; }
.face { position: relative; line-height: 1; cursor: pointer; }
.face canvas { display: block; width: 2.75rem; height: 2.75rem; border-radius: .25rem; }
.face span { position: absolute; right: 0; bottom: 0; padding: .1rem .25rem; font-size: .75rem;
  background: var(--page); border-radius: .25rem; }
.face input { position: absolute; inset: 0; margin: 0; opacity: 0; cursor: pointer; }
.face input:checked + canvas { outline: 3px solid var(--accent); outline-offset: 1px; }
.face input:focus-visible + canvas { outline: 3px dashed var(--text); outline-offset: 1px; }
button { align-self: start; min-height: 2.75rem; padding: 0 1rem; font: inherit; color: inherit;
  cursor: pointer; background: transparent; border: 1px solid var(--soft); border-radius: .25rem; }
.slider { display: grid; align-items: center; column-gap: .5rem; min-height: 2.5rem;
  grid-template-columns: 6.5rem minmax(0, 1fr) 2.75rem 6.5rem; }
.slider .name { display: inline-block; min-width: 2.25rem; font-weight: 600; }
.slider input { width: 100%; min-height: 2rem; margin: 0; accent-color: var(--accent); touch-action: pan-y; }
.slider input, .slider label { scroll-margin-top: 19rem; }  /* below the picture, which stays in view */
.slider.dead input { accent-color: var(--soft); }
.slider output, .slider .moves { text-align: right; font-variant-numeric: tabular-nums; }
.slider .moves { color: var(--soft); font-size: .875rem; }
.slider.moved label, .slider.moved output { color: var(--accent); }
button:focus-visible, .slider input:focus-visible { outline: 3px solid var(--accent); outline-offset: 1px; }
@media (max-width: 56rem) {
  .model > p { min-height: 0; }
}
@media (max-height: 34rem) {
  .picture { width: 9rem; height: 9rem; }
}
@media (max-width: 30rem) {
  .picture { width: 10rem; height: 10rem; }
  fieldset { max-width: 7rem; }
  .face canvas { width: 3rem; height: 3rem; }
  .slider { grid-template-columns: 1fr auto 3rem; padding: .25rem 0; }
  .slider label { grid-area: 1 / 1; }
  .slider .moves { grid-area: 1 / 2; }
  .slider output { grid-area: 1 / 3; }
  .slider input { grid-area: 2 / 1 / 3 / 4; min-height: 2.75rem; }
}
"""

SCRIPT = """
"use strict";

function start(section) {
  const panel = JSON.parse(section.dataset.panel);
  const sprite = section.querySelector(".sprite");
  const picture = section.querySelector(".picture");
  const inputs = [...section.querySelectorAll("input[type=range]")];
  const faces = [...section.querySelectorAll("input[type=radio]")];
  const small = document.createElement("canvas");  // one image, so that enlarging it mixes in no neighbour
  small.width = small.height = panel.size;

  function signed(value) {
    const text = Math.abs(value).toFixed(1);
    return value === 0 ? text : (value < 0 ? "\u2212" : "+") + text;
  }

  function position(input) {
    return Math.round((input.valueAsNumber - input.min) / input.step);
  }

  function cut(canvas, face, row, column) {
    const y = (face * panel.sliders + row) * panel.size;
    const x = column * panel.size;
    const context = canvas.getContext("2d");
    context.drawImage(sprite, x, y, panel.size, panel.size, 0, 0, panel.size, panel.size);
  }

  function draw(row) {
    const face = faces.findIndex(input => input.checked);
    cut(small, face, row, position(inputs[row]));
    const context = picture.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(small, 0, 0, picture.width, picture.height);
    const value = signed(inputs[row].valueAsNumber);
    picture.setAttribute("aria-label", `Start image ${face + 1}, ${panel.names[row]} at ${value}`);
  }

  function turn(row) {  // all sliders but this one at their start; all of them if row is -1
    const face = faces.findIndex(input => input.checked);
    inputs.forEach((input, k) => {
      if (k !== row) input.value = panel.values[panel.start[face][k]];
      input.parentElement.querySelector("output").textContent = signed(input.valueAsNumber);
      input.parentElement.classList.toggle("moved", position(input) !== panel.start[face][k]);
    });
    draw(Math.max(row, 0));
  }

  inputs.forEach((input, row) => input.addEventListener("input", () => turn(row)));
  faces.forEach((input, face) => {
    cut(input.nextElementSibling, face, 0, panel.start[face][0]);
    input.addEventListener("change", () => turn(-1));
  });
  section.querySelector("button").addEventListener("click", () => turn(-1));
  turn(-1);
}

for (const section of document.querySelectorAll(".model")) {
  section.querySelector(".sprite").decode().then(() => start(section));
}
"""


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
        changes = ", ".join(f"{move:.1f}" for move in panel.moves())
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
