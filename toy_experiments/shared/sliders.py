"""Latent dimensions to turn by hand: which ones are worth a slider, and sliders for a notebook. Nothing to
run here; `toy_experiments/tools/explore.py` makes a page for a web browser of the same dimensions."""

import base64
import io

import ipywidgets
import torch
from PIL import Image
from torch import Tensor

import dlsgan
from toy_experiments.shared.image_files import to_pillow

LIMIT = 2.5  # a slider goes from -2.5 to 2.5, where 99% of N(0, 1) lie
IF_NONE_IS_LIVE = 8  # sliders


def count_live(v: Tensor) -> int:
    """The number of live dimensions, those of v [d] above 1/2."""
    return int((v > 0.5).sum())


def count_sliders(v: Tensor, most: int) -> int:
    """A slider for each live dimension of v [d], or IF_NONE_IS_LIVE; at most `most`, and at most d - 1, so
    that one dimension is left to stand beside them. UserError if most < 1 or d < 2."""
    dlsgan.require(most >= 1, f"{most} sliders: at least one is needed")
    dlsgan.require(len(v) >= 2, f"{len(v)} latent dimension: at least two are needed")
    return min(count_live(v) or IF_NONE_IS_LIVE, most, len(v) - 1)


def strongest_and_weakest(v: Tensor, count: int) -> list[int]:
    """The `count` dimensions of largest v [d], largest first, and then the one of smallest v."""
    order = v.argsort(descending=True, stable=True).tolist()
    return [*order[:count], order[-1]]


def to_png(x: Tensor, size: int) -> bytes:
    """An image [C, H, W] in [-1, 1] as a PNG of size x size pixels, smoothly enlarged."""
    buffer = io.BytesIO()
    to_pillow(x).resize((size, size), Image.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


class Explorer(ipywidgets.HBox):
    """A picture and its sliders, see `explore`.

    z        [d], the latent vector shown
    sliders  a FloatSlider for each of `dimensions`
    picture  an ipywidgets.Image
    button   puts all sliders back
    """

    def __init__(self, model: dlsgan.DLSGAN, z: Tensor, dimensions: list[int], size: int):
        super().__init__()
        self.model = model
        self.start = z.clone()
        self.z = z.clone()
        self.dimensions = dimensions
        self.size = size
        self.resetting = False
        self.picture = ipywidgets.Image(format="png", width=size, height=size)
        self.sliders = [self.make_slider(i) for i in dimensions]
        self.button = ipywidgets.Button(description="Reset")
        self.button.on_click(self.reset)
        self.draw()
        self.children = [self.picture, ipywidgets.VBox([*self.sliders, self.button])]

    def make_slider(self, i: int) -> ipywidgets.FloatSlider:
        """That of dimension i, at the start's value; its range is widened to that if need be."""
        v = self.model.latent_scale.v[i].item()
        slider = ipywidgets.FloatSlider(
            value=self.start[i].item(),
            min=min(-LIMIT, self.start[i].item()),
            max=max(LIMIT, self.start[i].item()),
            step=0.01,
            description=f"z{i}, v {v:.2f}",
            readout_format="+.2f",
            style={"description_width": "6.5rem"},
        )
        slider.observe(self.turn, names="value")
        return slider

    def turn(self, change: dict) -> None:
        """A slider has moved."""
        i = self.dimensions[self.sliders.index(change["owner"])]
        self.z[i] = change["new"]
        if not self.resetting:
            self.draw()

    def reset(self, button: ipywidgets.Button | None = None) -> None:
        """Back to the start."""
        self.resetting = True  # one drawing for all
        for slider, i in zip(self.sliders, self.dimensions, strict=True):
            slider.value = self.start[i].item()
        self.resetting = False
        self.z.copy_(self.start)
        self.draw()

    def _repr_mimebundle_(self, **given) -> dict[str, str]:
        """For IPython's display. Viewers without widgets, such as a web page of the notebook, get the
        picture."""
        bundle = super()._repr_mimebundle_(**given)
        names = ", ".join(f"z{i}" for i in self.dimensions)
        bundle["image/png"] = base64.b64encode(self.picture.value).decode()
        bundle["text/plain"] = f"sliders over {names}; they need a running notebook"
        return bundle

    @torch.no_grad()
    def draw(self) -> None:
        self.picture.value = to_png(self.model.decode(self.z[None])[0], self.size)


def explore(
    model: dlsgan.DLSGAN,
    z: Tensor | None = None,  # [d], where to start, for example an encoded photo; a random vector if None
    seed: int = 0,  # of that random vector
    most: int = 16,  # sliders at most, besides the one of smallest v
    size: int = 256,  # of the picture in pixels
) -> Explorer:
    """Sliders over the live latent dimensions of a model, largest v first, and below them one over the
    dimension of smallest v, which changes nothing if the latent scale has faded it out. Sliders combine. If
    no dimension is live, the eight of largest v are shown. UserError if most < 1, d < 2 or z is not [d]."""
    v = model.latent_scale.v
    dimensions = strongest_and_weakest(v, count_sliders(v, most))
    if z is None:
        z = dlsgan.sample_latents(1, model.latent_scale, torch.Generator().manual_seed(seed))[0]
    dlsgan.require(z.shape == v.shape, f"z is {list(z.shape)}, and this model has d = {len(v)}")
    return Explorer(model, z.detach(), dimensions, size)
