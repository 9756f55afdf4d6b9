"""Pictures that several figures share: stochastic flips, traversals, places of labels beside grids of images,
bars and heat maps."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

import dlsgan

WITH_SCALE = "#d1495b"  # one colour for the same thing in all figures
WITHOUT_SCALE = "#30638e"


def middles(count: int, size: int) -> np.ndarray:
    """Where labels of `count` images of `size` pixels in a row belong, in pixels of the picture."""
    return (np.arange(count) + 0.5) * size


def flip_signs(columns: int, latent_dim: int, probability: float = 0.1, seed: int = 0) -> Tensor:
    """-1 with a probability and 1 otherwise: [columns, d], one mask a column."""
    chance = torch.rand(columns, latent_dim, generator=torch.Generator().manual_seed(seed))
    return torch.where(chance < probability, -1.0, 1.0)


def flips(model: dlsgan.DLSGAN, z_hat: Tensor, signs: Tensor) -> Tensor:
    """The paper's Figure 11, its stochastic flip: z_hat [n, d] times each row of signs [columns, d], decoded.
    All images of a column share one mask. Returns [n, columns, C, H, W]."""
    return torch.stack([model.decode(z_hat * sign) for sign in signs.to(z_hat.device)], 1)


def flip_picture(model: dlsgan.DLSGAN, x: Tensor, signs: Tensor) -> np.ndarray:
    """Images x [n, C, H, W], their reconstructions, a white bar, and their flips, as one picture with a row
    an image."""
    z_hat = model.encode(x)
    flipped = flips(model, z_hat, signs)
    left = dlsgan.make_grid(torch.stack((x, model.decode(z_hat)), 1))
    bar = np.full((left.shape[0], x.shape[-1] // 4, *left.shape[2:]), 255, np.uint8)
    return np.concatenate((left, bar, dlsgan.make_grid(flipped)), 1)


def traversal(decode: Callable[[Tensor], Tensor], z: Tensor, i: int, limit: float, columns: int) -> Tensor:
    """Images [columns, C, H, W] of z [d] with its element i from -limit to limit in equal steps."""
    turned = z.repeat(columns, 1)  # [columns, d]
    turned[:, i] = torch.linspace(-limit, limit, columns)
    return decode(turned)


def traversals(
    model: dlsgan.DLSGAN, order: Iterable[int], limit: float = 2.0, columns: int = 9
) -> np.ndarray:
    """A picture with a row for each latent dimension in `order`, turned from -limit to limit, the others at
    0."""
    zero = torch.zeros(len(model.latent_scale.v))
    return dlsgan.make_grid([traversal(model.decode, zero, i, limit, columns) for i in order])


def bars(axis: Axes, values: list[float], title: str, aim: float | None = None) -> None:
    """A horizontal bar with its number for each value, the first on top, and a dashed line at the aim."""
    drawn = axis.barh(range(len(values)), values, color="#7fa3c7")
    labels = [f" {value:.2f} " if isinstance(value, float) else f" {value} " for value in values]
    axis.bar_label(drawn, labels, fontsize=8)
    low = min(0, *values)
    high = max(0, aim or 0, *values)
    room = 0.6 * (high - low) + 1e-6  # for the numbers; all values may be 0
    axis.set(xlim=(low - room * (low < 0), high + room), ylim=(len(values) - 0.5, -0.5), xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.set_title(title, fontsize=9)
    if aim is not None:
        axis.axvline(aim, color="#d1495b", linestyle="--", linewidth=1, zorder=0)


def heat_map(axis: Axes, rows: list[list[float]], columns: Sequence[str], title: str) -> None:
    """Numbers between 0 and 1 as a table whose cells are darker the larger the number is."""
    values = np.array(rows)
    axis.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        colour = "white" if value > 0.6 else "0.3"
        axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    axis.set_xticks(range(len(columns)), columns, rotation=60, ha="right", fontsize=8)
    axis.set_yticks([])
    axis.set_title(title, fontsize=9)
