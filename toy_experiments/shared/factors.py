"""How much of what a function returns each of its independent inputs explains. Nothing to run here."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import dlsgan


def variance_shares(
    function: Callable[[Tensor], Tensor], inputs: int, n: int = 1500, seed: int = 0
) -> Tensor:
    """Total effect of each input on a function u [n, K] -> [n, ...] of u ~ N(0, I), as a share of its
    variance: [K].

    Jansen's estimator (1999): E[(f(u) - f(u with u_k drawn again))^2] / 2 over the variance of f, both
    summed over all elements of f. It contains what an input does together with others, so that the shares
    sum to 1 for a function without such interactions and to more otherwise."""
    rng = torch.Generator().manual_seed(seed)
    u = torch.randn(n, inputs, generator=rng)
    values = dlsgan.in_batches(function, u, batch_size=250).flatten(1)
    variance = values.var(0).sum()
    shares = []
    for k in range(inputs):
        redrawn = u.clone()
        redrawn[:, k] = torch.randn(n, generator=rng)
        change = dlsgan.in_batches(function, redrawn, batch_size=250).flatten(1) - values
        shares.append(change.square().mean(0).sum() / 2 / variance)
    return torch.stack(shares)


def draw(resolution: int, u: Tensor) -> Tensor:
    """Cartoon faces [n, 3, H, W] of factors u [n, 8]."""
    return dlsgan.cartoon_faces(len(u), resolution, values=u)[0]


def face_shares(resolution: int, n: int = 1500, seed: int = 0) -> dict[str, float]:
    """Share of the variance of the pixels of dlsgan.cartoon_faces that each factor carries."""
    shares = variance_shares(partial(draw, resolution), len(dlsgan.CARTOON_FACTORS), n, seed)
    return dict(zip(dlsgan.CARTOON_FACTORS, shares.tolist(), strict=True))


def face_shares_line(resolution: int, n: int = 1500) -> str:
    """The same as a line of text."""
    told = ", ".join(f"{name} {share:.0%}" for name, share in face_shares(resolution, n).items())
    return f"share of the pixels' variance at {resolution}x{resolution}: {told}"
