"""An encoder's guess and a few steps of gradient descent from there: the hybrid by which people invert GANs.
The paper has no such step. For real_encoder.py, compare.py and tools/invert_photos.py; nothing to run here.

Gains are PSNR of reconstructions above that of the mean image, in dB. Descent is Adam on the squared error of
the pixels; its step is 5% of the spread of codes, which is 1 for z. Milliseconds are of processor time on a
CPU.
"""

import numpy as np
import torch
from torch import Tensor

import dlsgan
from toy_experiments.systems.invert_by_optimization import at, optimise, seconds_to_encode, starting_points

STEPS = (0, 5, 20, 100)  # of the curve of dB against milliseconds
STEP_SIZE = 0.05
GENERATED = 1000  # images, whose codes say which lengths are usual


class Refined(dlsgan.DLSGAN):
    """The same model, whose `encode` goes on from the encoder's guess by gradient descent on z."""

    def __init__(self, model: dlsgan.DLSGAN, steps: int):
        super().__init__(model.generator, model.discriminator, model.latent_scale)
        self.steps = steps

    def encode(self, x: Tensor) -> Tensor:
        return optimise(self.decode, x, super().encode(x), self.steps, STEP_SIZE)[0]


def squared_length(z: Tensor) -> Tensor:
    """|z|^2, [B, d] -> [B]."""
    return z.square().sum(1)


@torch.no_grad()
def share_inside(model: dlsgan.DLSGAN, x: Tensor) -> float:
    """The share of images x whose |z_hat|^2 lies between the 1% and the 99% quantile of that of generated
    images; 0.98 for generated images themselves."""
    generated = model.sample(GENERATED, seed=2).clamp(-1, 1)
    usual = squared_length(dlsgan.in_batches(model.encode, generated))
    lengths = squared_length(dlsgan.in_batches(model.encode, x))
    inside = (lengths >= usual.quantile(0.01)) & (lengths <= usual.quantile(0.99))
    return inside.float().mean().item()


def mean_gain(point: dict, x: Tensor, mean_image: Tensor) -> float:
    """PSNR above that of the mean image, averaged over images x, at a point of the trace of `optimise`."""
    usual = dlsgan.psnr(x, mean_image.expand_as(x)).mean().item()
    return round(float(np.mean(point["psnr"])) - usual, 3)


def descend(
    model: dlsgan.DLSGAN,
    x: Tensor,  # [B, C, H, W]
    mean_image: Tensor,  # [C, H, W]
    steps: int,
    start: str = "encoder",  # or "random"
) -> dict[str, float]:
    """Gains at the start, and after so many steps on z and on w, the output of the mapping network."""
    spaces = starting_points(model, x)
    result = {}
    for space in ("z", "w"):
        given = spaces[space]
        lr = STEP_SIZE * given["spread"]
        _, trace = optimise(given["decode"], x, given["codes"][start], steps, lr)
        result["start"] = mean_gain(trace[0], x, mean_image)  # the same image in both spaces
        result[space] = mean_gain(trace[-1], x, mean_image)
    return result


def curve(
    model: dlsgan.DLSGAN,
    x: Tensor,  # [N, C, H, W]
    mean_image: Tensor,  # [C, H, W]
    batch_size: int,  # so many images at a time
    space: str = "z",  # or "w"
) -> list[dict]:
    """Mean gain, and milliseconds an image, at STEPS of Adam from the encoder's guess."""
    gains = []
    seconds = []
    for part in x.split(batch_size):
        encoding = seconds_to_encode(model, part)
        given = starting_points(model, part)[space]
        lr = STEP_SIZE * given["spread"]
        _, trace = optimise(given["decode"], part, given["codes"]["encoder"], max(STEPS), lr)
        reached = [at(trace, step) for step in STEPS]
        gains.append([mean_gain(point, part, mean_image) for point in reached])
        seconds.append([encoding + point["seconds"] for point in reached])
    rows = zip(STEPS, np.mean(gains, 0), np.mean(seconds, 0), strict=True)
    return [{"steps": k, "gain": round(gain, 3), "milliseconds": round(1000 * s, 3)} for k, gain, s in rows]


def measure(model: dlsgan.DLSGAN, test: Tensor, count: int, steps: int) -> dict:
    """One encoder: gains of NUM_EVAL_IMAGES test and generated images, lengths of all test codes, descent on
    `count` test images, and a few steps from its guess, image by image and all at once."""
    few = test[: dlsgan.NUM_EVAL_IMAGES]
    evaluated = dlsgan.evaluate(model, few)
    result = {key: round(evaluated[key], 4) for key in ("psnr_gain_test", "psnr_gain_generated", "l_enc")}
    result["inside"] = round(share_inside(model, test), 4)
    mean_image = few.mean(0)
    x = test[:count]
    result["descent"] = descend(model, x, mean_image, steps)
    result["one"] = curve(model, x, mean_image, 1)
    result["one_w"] = curve(model, x, mean_image, 1, "w")
    result["batch"] = curve(model, x, mean_image, count)
    return result
