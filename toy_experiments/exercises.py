"""The exercises of tutorial.ipynb, with checks. A reader changes `...` into an answer:

    from toy_experiments.exercises import check
    check("floor", ...)              prints the exercise
    check("floor", 0.5)              says whether 0.5 is right, and gives a hint if not; returns True or False

Answers are numbers, lists, sets of names or functions. Functions are called on random inputs and compared
with closed forms. The solutions stand at the end of this file, below a clear line.
"""

import math
import textwrap
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import dlsgan
from toy_experiments.linear_gaussian import variances, water_filling


class Exercise(NamedTuple):
    task: str
    check: Callable[[Any], bool]  # raises or returns False for a wrong answer
    hint: str


def is_near(answer: Any, expected: Any, tolerance: float) -> bool:
    """Whether numbers are those expected; the tolerance is relative to the largest of them."""
    answer = torch.as_tensor(answer, dtype=torch.float64)
    expected = torch.as_tensor(expected, dtype=torch.float64)
    if answer.shape != expected.shape:
        return False
    return bool((answer - expected).abs().max() <= tolerance * expected.abs().max())


def near(expected: Any, tolerance: float = 1e-2) -> Callable[[Any], bool]:
    """The check that an answer is near the expected numbers."""
    return partial(is_near, expected=expected, tolerance=tolerance)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def check_scale(answer: Callable) -> bool:
    for seed in range(3):
        latent_scale = dlsgan.LatentScale(6).double()
        v = random(6, seed=seed)
        latent_scale.v.copy_(v)
        s = answer(v.requires_grad_())
        if s.requires_grad or not is_near(s, latent_scale.scale(), 1e-6):
            return False
    return True


def check_loss(answer: Callable) -> bool:
    z = torch.randn(5, 3).double()
    z_hat = torch.randn(5, 3).double()
    s = random(3)
    return is_near(answer(z, z_hat, s), dlsgan.encoder_loss(z, z_hat, s), 1e-6)


def check_predicted_loss(answer: Callable) -> bool:
    """Against encoder_loss on samples of a calibrated pair: z_hat = v z + sqrt(v (1 - v)) noise."""
    v = random(4, seed=1)
    rng = torch.Generator().manual_seed(2)
    z = torch.randn(200_000, 4, dtype=torch.float64, generator=rng)
    noise = torch.randn(200_000, 4, dtype=torch.float64, generator=rng)
    z_hat = v * z + (v * (1 - v)).sqrt() * noise
    s = (4 * v / v.sum()).sqrt()
    return is_near(answer(v), dlsgan.encoder_loss(z, z_hat, s), 0.02)


def check_update(answer: Callable) -> bool:
    for seed in range(3):
        a = random(4, seed=seed) + 0.2
        p = random(4, seed=seed + 9)
        v = variances(torch.diag(a).numpy(), p.numpy(), 0.5)
        if not is_near(answer(a, p, 0.5), 4 * v / v.sum(), 1e-6):
            return False
    return True


def check_flip(answer: Callable) -> bool:
    z = torch.randn(500, 40, generator=torch.Generator().manual_seed(3))
    flipped = answer(z.clone(), 0.25, torch.Generator().manual_seed(4))
    signs = flipped / z
    if not (signs == signs[0]).all():  # as in Figure 11: the same elements for every image
        return False
    if set(signs.unique().tolist()) != {-1.0, 1.0}:
        return False
    count = 0
    for seed in range(200):
        again = answer(z[:1].clone(), 0.25, torch.Generator().manual_seed(seed))
        count += int((again != z[:1]).sum())
    return 9 < count / 200 < 11  # 40 * 0.25


def check_cheat(answer: tuple[Callable, Callable]) -> bool:
    generator, encoder = answer
    z = torch.randn(1000, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    x = generator(z)
    return bool(x.std(0).mean() < 0.01 and dlsgan.encoder_loss(z, encoder(x), torch.ones(4)) < 1e-6)


EXERCISES = {
    "floor": Exercise(
        "A linear generator squeezes d = 512 latent numbers through k = 26. What is the smallest plain "
        "mean squared error that an encoder can reach? (a number)",
        near(1 - 26 / 512),
        "at most k of the d units of variance come back, so 1 - mean(v) is at least ...",
    ),
    "sign": Exercise(
        "x is the sign of z, and z ~ N(0, 1). What is v, the variance of the best guess of z? (a number)",
        near(2 / math.pi),
        "the best guess is E[z | sign], which is plus or minus E|z|; v is its square",
    ),
    "scale": Exercise(
        "Write line 2 of Algorithm 1: a function of v [d] that returns s [d]. No gradient may flow through "
        "it.",
        check_scale,
        "s^2 shares d units in proportion to v; detach v first",
    ),
    "loss": Exercise(
        "Write line 4: a function of z [B, d], z_hat [B, d] and s [d] that returns L_enc.",
        check_loss,
        "an average over batch and dimensions, with s^2 as weight",
    ),
    "one alive": Exercise(
        "d = 16, and v is 1 for the first latent and 0 for all others. What is s_1? (a number)",
        near(4.0),
        "all d units of power go to one dimension, and s is the root of that",
    ),
    "predict": Exercise(
        "The encoder is calibrated. Write a function of v [d] that returns the L_enc to expect, s being "
        "made of this v.",
        check_predicted_loss,
        "dimension i loses 1 - v_i of its variance and has weight s_i^2 = d v_i / sum(v)",
    ),
    "entropy": Exercise(
        "d = 32 and s = 1. How many nats of differential entropy has z * s? (a number)",
        near(32 * 1.4189385, 1e-3),
        "d times the entropy of a standard normal variable, log(sqrt(2 pi e))",
    ),
    "water": Exercise(
        "Three parallel channels x_i = a_i s_i z_i + noise with a = (2, 1, 0.5) and sigma = 1. To which "
        "powers s_i^2 does the latent scale converge? (a list of three numbers)",
        near(water_filling(torch.tensor([2.0, 1.0, 0.5]).double().numpy(), 1.0)[0], 1e-3),
        "pour 3 units of water on floors of 1/a_i^2; one channel stays dry",
    ),
    "update": Exercise(
        "Write one full update of the scale for parallel channels: a function of gains a [d], powers p = "
        "s^2 [d] and sigma (tensors and a number) that returns the next p.",
        check_update,
        "v_i = p_i a_i^2 / (sigma^2 + p_i a_i^2) for the best encoder; then p = d v / sum(v)",
    ),
    "saturation": Exercise(
        "D gives a generated image the logit -4. What is the derivative of NSGAN's generator loss "
        "softplus(-a) there? (a number; compare it with that of the original loss, -softplus(a): -0.018)",
        near(-1 / (1 + math.exp(-4))),
        "the derivative of softplus is the sigmoid; mind the sign inside",
    ),
    "lazy": Exercise(
        "The preset celeba has r1_gamma = 20, and R1 is taken at every 16th step only. By which number is "
        "R1 multiplied at such a step? (a number)",
        near(160.0),
        "gamma / 2, and 16 times as strong because it is 16 times as rare",
    ),
    "lossy": Exercise(
        "Which three of these parts of StyleGAN2 are not in dlsgan.py, because of what they do to "
        'inversion? "per-pixel noise", "demodulation", "input normalisation", "minibatch stddev", '
        '"equalised learning rate", "skip ToRGB" (a set)',
        lambda answer: set(answer) == {"per-pixel noise", "input normalisation", "minibatch stddev"},
        "one adds what nobody can recover, one removes the length of z * s, one lets the other images of a "
        "batch in",
    ),
    "flip": Exercise(
        "Write the stochastic flip of the paper's Figure 11: a function of z [B, d], a probability p and a "
        "torch.Generator that multiplies each of the d elements by -1 with probability p, the same "
        "elements for all B images.",
        check_flip,
        "draw d random numbers once, not B times d; then torch.where",
    ),
    "cheat": Exercise(
        "L_enc means nothing alone. Write a generator and an encoder, functions from [B, 4] to [B, 4], "
        "whose L_enc (s = 1) is below 1e-6 although all generated images look the same: standard deviation "
        "below 0.01. (a pair of functions)",
        check_cheat,
        "floating point holds what no eye can see",
    ),
}


def check(name: str, answer: Any = ...) -> bool:
    """Prints whether the answer is right, or the exercise itself if the answer is `...`; returns True if it
    is right."""
    if name not in EXERCISES:
        raise dlsgan.UserError(f"unknown exercise {name!r}: choose {', '.join(EXERCISES)}")
    exercise = EXERCISES[name]
    if answer is ...:
        print(textwrap.fill(f"{name}: {exercise.task}", 100), end="\n\n")
        return False
    try:
        right = bool(exercise.check(answer))
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        print(f"{name}: the answer could not be checked ({reason}). Hint: {exercise.hint}")
        return False
    print(f"{name}: right" if right else f"{name}: not yet. Hint: {exercise.hint}")
    return right


# ============================================================================================================
# Solutions. Try the exercises first.
# ============================================================================================================


def scale(v: Tensor) -> Tensor:
    v = v.detach()
    return (len(v) * v / v.sum()).sqrt()


def update(a: Tensor, p: Tensor, sigma: float) -> Tensor:
    v = p * a**2 / (sigma**2 + p * a**2)
    return len(v) * v / v.sum()


def flip(z: Tensor, p: float, rng: torch.Generator) -> Tensor:
    return torch.where(torch.rand(z.shape[1], generator=rng) < p, -z, z)


SOLUTIONS = {
    "floor": 1 - 26 / 512,
    "sign": 2 / math.pi,  # E|z| = sqrt(2 / pi)
    "scale": scale,
    "loss": lambda z, z_hat, s: ((z - z_hat) ** 2 * s**2).mean(),
    "one alive": 4,
    "predict": lambda v: 1 - (v**2).sum() / v.sum(),  # mean of (1 - v_i) d v_i / sum(v)
    "entropy": 32 * math.log(math.sqrt(2 * math.pi * math.e)),
    "water": [1.875, 1.125, 0],  # c = (3 + 1/4 + 1) / 2 = 2.125 lies below the third floor, 4
    "update": update,
    "saturation": -1 / (1 + math.exp(-4)),
    "lazy": 20 / 2 * 16,
    "lossy": {"per-pixel noise", "input normalisation", "minibatch stddev"},
    "flip": flip,
    "cheat": (lambda z: z / 1000, lambda x: 1000 * x),
}
