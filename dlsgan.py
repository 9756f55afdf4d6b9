# /// script
# requires-python = ">=3.11"
# dependencies = ["torch>=2.6", "numpy", "matplotlib", "pillow", "tqdm"]
# ///
"""Dynamic Latent Scale GAN in one file: a GAN whose discriminator inverts its generator.

Paper: Jeongik Cho, "Dynamic Latent Scale GAN" (2021), viXra:2109.0028. "Line n" below is line n of its
Algorithm 1.

A generator is free to ignore part of its latent vector, and what it ignores no encoder can recover. DLSGAN
measures for each dimension how much the encoder recovers (the variance v of its predictions) and scales the
latent vector by that. Dimensions that are not recovered fade away and the others grow, until little is lost:

    z ~ N(0, I);  s = sqrt(d v / sum(v))                                   lines 1, 2
    fake = G(z * s);  logits_fake, z_hat = D(fake)                         line 3
    L_enc = mean((z - z_hat)^2 * s^2)                                      line 4
    logits_real, _ = D(x)                                                  line 5
    L_D = softplus(-logits_real) + softplus(logits_fake) + lambda L_enc    line 6   (+ R1)
    L_G = softplus(-logits_fake)                         + lambda L_enc    line 7
    v  <- moving average of mean_batch(z_hat^2)                            line 8
    encode(x) = z_hat;   decode(z) = G(z * s);   reconstruct(x) = G(z_hat * s)

    x         image                           [B, C, H, W]  in [-1, 1], H = W
    z, z_hat  latent vector, its prediction   [B, d]        z is i.i.d. N(0, 1); z_hat comes from D
    logits    D's score, high for real        [B]           also from D
    v, s      latent variance trace, scale    [d]           v = E[z_hat^2], in [0, 1] for a good encoder
    z_scaled  z * s, the input of G           [B, d]        mean(s^2) = 1
    w         output of G's mapping network   [B, d]

Changes from the paper, and choices where it is silent:
  * One fake batch serves L_D and L_G, as in Algorithm 1. No gradient flows through s or v.
  * R1 is computed at every 16th step with 16 times its weight (StyleGAN2's lazy regularisation), which is
    gamma / 2, in the same step of Adam and without StyleGAN2's correction of its rates. The author's code
    uses a weight of 10, so gamma = 20 there.
  * v starts at ones, since the first outputs of an untrained head say nothing. The celeba preset averages the
    last 512 batches as the paper does ("sma"), the laptop presets exponentially ("ema").
  * Laptop presets, for few steps: batches of 8, a smaller d, less R1, two mapping layers, a latent head that
    starts small, 6 to 8 times the learning rate, lambda above 1; photographs are mirrored at random.
  * G's images are clamped to [-1, 1]. Otherwise G hides z in values outside of that range, which real images
    do not have, and digits of the test set come back as others.
  * The mnist and celeba64 presets let lambda fall, from 3 to 1 or from 20 to 5, and celeba64 gamma, from 10
    to 3: many dimensions are found first, then samples weigh more.
  * The mapping network does not normalise its input: the length of z * s is information.
  * No per-pixel noise (nobody could recover it), no minibatch-stddev (an image must encode to the same latent
    vector in any batch), no style mixing, no path length term.
  * What is shown or measured uses averaged weights.
  * d = 512, Adam (betas 0 and 0.99; learning rate 1e-3, for the mapping network 1e-5, times 0.98 after each
    of 50 epochs, here by a smooth fall to the same end): the author's 2021 code.

    python dlsgan.py                       cartoon faces drawn by this file, 32x32: 11 minutes on one CPU core
    python dlsgan.py --dataset mnist       digits, 32x32: 20 minutes on one CPU core
    python dlsgan.py --dataset celeba      the paper's CelebA-128: needs a GPU; says how long it will take
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import ctypes
import dataclasses
import errno
import functools
import gzip
import hashlib
import io
import itertools
import json
import math
import os
import re
import shutil
import signal
import sys
import tarfile
import tempfile
import threading
import time
import urllib.request
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, distributed, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# ---- Processes and devices ---------------------------------------------------------------------------------
# On one device, which is the usual case, these functions do next to nothing.


def rank_and_world_size() -> tuple[int, int]:
    """The number of this process and of all that torchrun started; (0, 1) without torchrun."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def all_reduce_mean(*tensors: Tensor) -> Tensor:
    """Overwrites tensors by their means over all processes, which must all come here; returns the first."""
    _, world_size = rank_and_world_size()
    if world_size > 1 and not tensors[0].is_meta:
        together = torch.cat([x.flatten() for x in tensors]) / world_size
        with explain("another process of this training has ended or cannot be reached", RuntimeError):
            distributed.all_reduce(together)
        means = together.split([x.numel() for x in tensors])
        for x, mean in zip(tensors, means, strict=True):
            x.copy_(mean.view(x.shape))
    return tensors[0]


def in_any_process(condition: bool) -> bool:
    """Whether the condition holds in at least one process. All of them must come here."""
    return all_reduce_mean(torch.tensor(float(condition))).item() > 0


def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """Copies to CUDA without waiting for the GPU to be idle (on MPS, non_blocking can corrupt data)."""
    if torch.device(device).type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def in_batches(function: Callable[..., Tensor], *tensors: Tensor, batch_size: int = 64) -> Tensor:
    """function(*tensors) by parts of batch_size rows, so that memory does not grow with their number."""
    parts = zip(*(x.split(batch_size) for x in tensors), strict=True)
    return torch.cat([function(*part) for part in parts])


# ---- PART I   THE PAPER ------------------------------------------------------------------------------------
# Nothing here knows what G and D look like: G(z_scaled) -> x and D(x) -> (logits, z_hat) may be tiny toys.


class LatentScale(nn.Module):
    """The latent variance trace v and the latent scale s = sqrt(d v / sum(v)) (lines 2 and 8).

    rule     "ema": exponential moving average, decay 1 - 1/window; "sma" (paper): mean of `window` batches
    enabled  False keeps s = 1, the paper's comparison without latent scale; v is measured all the same
    """

    def __init__(self, latent_dim: int, rule: str = "ema", window: int = 100, enabled: bool = True):
        super().__init__()
        self.rule = rule
        self.window = window
        self.enabled = enabled
        self.register_buffer("v", torch.ones(latent_dim))
        self.register_buffer("past", torch.ones(window if rule == "sma" else 0, latent_dim))

    @torch.no_grad()
    def update(self, z_hat: Tensor) -> None:
        """Line 8. The variance of z_hat [B, d] is taken around 0, an optimal encoder's mean output."""
        batch_v = all_reduce_mean(z_hat.to(self.v.dtype).square().mean(0))  # [B, d] -> [d]
        if self.rule == "ema":
            self.v.lerp_(batch_v, 1 / self.window)
        else:
            self.past = torch.cat((self.past[1:], batch_v[None]))  # [window, d], oldest first
            self.v.copy_(self.past.mean(0))

    def scale(self) -> Tensor:
        """s [d], line 2: d units of power, shared in proportion to v. Carries no gradient."""
        v = self.v.detach()
        if not self.enabled:
            return torch.ones_like(v)
        return (len(v) * v / v.sum()).sqrt()

    def metrics(self) -> dict[str, Tensor]:
        """entropy: of z * s in nats, sum_i log(s_i sqrt(2 pi e)), at most 1.4189 d, reached at s = 1; active:
        number of dimensions with v_i > 1/2; effective: (sum s^2)^2 / sum s^4, which is k when k dimensions
        share all the power."""
        s = self.scale()
        entropy = (s.clamp(min=1e-12).log() + 0.5 * math.log(2 * math.pi * math.e)).sum()
        effective = s.square().sum() ** 2 / s.pow(4).sum()
        return {"entropy": entropy, "active": (self.v > 0.5).sum(), "effective": effective}


def minus_log_real(a: Tensor) -> Tensor:
    return F.softplus(-a)  # -log sigmoid(a)


def minus_log_fake(a: Tensor) -> Tensor:
    return F.softplus(a)  # -log(1 - sigmoid(a))


def log_fake(a: Tensor) -> Tensor:
    return -F.softplus(a)


def squared_distance_to_1(a: Tensor) -> Tensor:
    return (a - 1).square() / 2


def squared_distance_to_0(a: Tensor) -> Tensor:
    return a.square() / 2


LOSSES = {  # lines 6 and 7, [B] -> [B]: of D on real images (f_r^d) and on generated ones (f_g^d), of G (f_g)
    "nsgan": (minus_log_real, minus_log_fake, minus_log_real),
    "original": (minus_log_real, minus_log_fake, log_fake),
    "lsgan": (squared_distance_to_1, squared_distance_to_0, squared_distance_to_1),
    "wgan-gp": (torch.neg, torch.positive, torch.neg),  # with its own penalty instead of R1
}


def sample_latents(n: int, latent_scale: LatentScale, rng: torch.Generator) -> Tensor:
    """Line 1: z ~ N(0, I), [n, d]. Drawn on the CPU, so that a seed means the same on every device."""
    return to_device(torch.randn(n, len(latent_scale.v), generator=rng), latent_scale.v.device)


def encoder_loss(z: Tensor, z_hat: Tensor, s: Tensor) -> Tensor:
    """Line 4: the mean squared error between z * s and z_hat * s; z, z_hat [B, d], s [d] -> scalar."""
    return ((z - z_hat).square() * s.square()).mean()


def r1_penalty(logits: Tensor, x: Tensor) -> Tensor:
    """mean_batch |d logits / d x|^2 (Mescheder et al. 2018); logits [B] were computed from x [B, ...]."""
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


def gradient_penalty(discriminator: nn.Module, real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """mean_batch (|d logits / d x| - 1)^2 between real and fake (WGAN-GP, Gulrajani et al. 2017, whose weight
    of 10 is gamma = 20 here, and whose D takes five steps for each of G); mix [B] in [0, 1]."""
    mix = mix.to(real.dtype).view(-1, *[1] * (real.dim() - 1))  # [B] -> [B, 1, ...]
    x = fake.detach().lerp(real, mix).requires_grad_()
    logits, _ = discriminator(x)
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


class DLSGAN(nn.Module):
    """A generator, its discriminator-encoder and their latent scale. Images are float32 [B, C, H, W], between
    -1 and 1. Latent vectors are [B, d] and not yet scaled: those of N(0, I) decode to samples."""

    def __init__(self, generator: nn.Module, discriminator: nn.Module, latent_scale: LatentScale):
        super().__init__()
        self.generator = generator
        self.discriminator = discriminator
        self.latent_scale = latent_scale

    def encode(self, x: Tensor) -> Tensor:
        _, z_hat = self.discriminator(x)
        return z_hat

    def decode(self, z: Tensor) -> Tensor:
        return self.generator(z * self.latent_scale.scale())

    def reconstruct(self, x: Tensor) -> Tensor:
        return in_batches(lambda part: self.decode(self.encode(part)), x)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        z = sample_latents(n, self.latent_scale, torch.Generator().manual_seed(seed))
        return in_batches(self.decode, z)


def train_step(
    model: DLSGAN,
    optimizers: Iterable[torch.optim.Optimizer],  # of G and of D
    real: Tensor,  # [B, ...] real images
    rng: torch.Generator,  # of the CPU
    loss: str = "nsgan",
    encoder_weight: float = 1.0,  # lambda
    penalty_weight: float = 0.0,  # of R1 (gamma / 2 times the interval) or of WGAN-GP; 0 leaves it out
    bf16: bool = False,  # bfloat16 autocast, for GPUs; the pass for R1, losses and averages are in float32
) -> dict[str, Tensor]:
    """Algorithm 1 and one step of both optimisers. Returns scalars, explained in METRICS, on the device."""
    discriminator = model.discriminator
    weights_d = list(discriminator.parameters())
    real_loss, fake_loss, generator_loss = LOSSES[loss]
    rank, world_size = rank_and_world_size()  # every process draws for all, and takes its share

    z = sample_latents(world_size * len(real), model.latent_scale, rng)[rank::world_size]  # line 1
    s = model.latent_scale.scale()  # line 2
    fake = run_network(model.generator, z * s, bf16)
    # L_D and L_G share one pass through D. L_G is differentiated to the image and on through G, not to D's
    # weights; L_D to D's weights, not beyond the image, which is a leaf for that.
    image = fake.detach().requires_grad_()
    logits_fake, z_hat = run_network(discriminator, image, bf16)  # line 3
    l_enc = encoder_loss(z, z_hat, s)  # line 4
    loss_g = generator_loss(logits_fake).mean() + encoder_weight * l_enc  # line 7
    loss_d_fake = fake_loss(logits_fake).mean() + encoder_weight * l_enc  # line 6, generated images
    (gradient,) = torch.autograd.grad(loss_g, image, retain_graph=True)
    fake.backward(gradient)
    loss_d_fake.backward(inputs=weights_d)

    needs_r1 = penalty_weight > 0 and loss != "wgan-gp"
    real = real.detach().requires_grad_(needs_r1)
    logits_real, _ = run_network(discriminator, real, bf16 and not needs_r1)  # line 5
    loss_d_real = real_loss(logits_real).mean()  # line 6, real images
    penalty = torch.zeros_like(loss_d_real)
    if needs_r1:
        penalty = penalty_weight * r1_penalty(logits_real, real)
    elif penalty_weight > 0:
        mix = to_device(torch.rand(world_size * len(real), generator=rng)[rank::world_size], real.device)
        penalty = penalty_weight * gradient_penalty(discriminator, real, fake, mix)
    (loss_d_real + penalty).backward(inputs=weights_d)

    all_reduce_mean(*(p.grad for p in model.parameters()))
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    model.latent_scale.update(z_hat.detach())  # line 8
    scalars = {"loss_d": loss_d_fake + loss_d_real, "loss_g": loss_g, "l_enc_train": l_enc}
    scalars |= {"penalty": penalty, "logits_real": logits_real.mean(), "logits_fake": logits_fake.mean()}
    scalars["z_hat_mean"] = all_reduce_mean(z_hat.detach().mean(0)).abs().mean()
    scalars = {name: value.detach() for name, value in scalars.items()}
    all_reduce_mean(*scalars.values())
    return scalars


def run_network(network: nn.Module, x: Tensor, bf16: bool):
    """network(x), in bfloat16 autocast if asked for; its outputs in the precision of x."""
    if not bf16:
        return network(x)
    with torch.autocast(x.device.type, torch.bfloat16):
        out = network(x)
    return out.to(x.dtype) if isinstance(out, Tensor) else tuple(part.to(x.dtype) for part in out)


def make_optimizers(model: DLSGAN, lr: float) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Adam for G and for D; the fused one where it exists."""
    settings = {"lr": lr, "betas": (0.0, 0.99), "fused": model.latent_scale.v.device.type in ("cpu", "cuda")}
    optimizer_g = torch.optim.Adam(model.generator.parameters(), **settings)
    optimizer_d = torch.optim.Adam(model.discriminator.parameters(), **settings)
    return optimizer_g, optimizer_d


def fall(first: float, final: float, progress: float) -> float:
    """Exponentially from `first` at progress 0 to first * final at progress 1."""
    return first * final**progress


def decay_learning_rate(
    optimizers: Iterable[torch.optim.Optimizer], lr: float, final: float, progress: float
) -> None:
    """Lets the learning rate fall from lr to lr * final."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = fall(lr, final, progress)


@torch.no_grad()
def average_weights(ema_module: nn.Module, module: nn.Module, step: int, most: float = 0.999) -> None:
    """Exponential moving average of parameters after step 0, 1, ...: the decay (1 + step) / (10 + step) rises
    to `most`, so that the first weights are forgotten soon."""
    averages = [p.detach() for p in ema_module.parameters()]
    weights = [p.detach() for p in module.parameters()]
    torch._foreach_lerp_(averages, weights, 1 - min(most, (1 + step) / (10 + step)))


# ---- PART II   THE NETWORKS --------------------------------------------------------------------------------
# StyleGAN2 (Karras et al. 2020) without the parts that lose information. Weights start as N(0, 1) and are
# multiplied by their gain 1/sqrt(fan_in) when used ("equalised learning rate"). Each leaky ReLU has a gain of
# sqrt(2); since leaky_relu(a x) = a leaky_relu(x) for a > 0, it is moved into the weights before it, where it
# costs nothing.
SQRT2 = math.sqrt(2)


def channels_at(resolution: int, base: int, most: int) -> int:
    """Feature maps at a resolution: StyleGAN2's min(most, base / resolution), at least 8."""
    return max(8, min(most, base // resolution))


def leaky_relu(x: Tensor) -> Tensor:
    """In place, which saves a pass over memory: no layer here needs the value before it for its gradient."""
    return F.leaky_relu_(x, 0.2)


class EqualLinear(nn.Module):
    """[B, n_in] -> [B, n_out]. lr_multiplier: how fast Adam moves the layer; gain multiplies its output."""

    def __init__(
        self, n_in: int, n_out: int, bias: float = 0.0, lr_multiplier: float = 1.0, gain: float = 1.0
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((n_out,), bias / lr_multiplier))
        self.weight_gain = gain * lr_multiplier / math.sqrt(n_in)
        self.bias_gain = gain * lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.weight_gain, self.bias * self.bias_gain)


class EqualConv2d(nn.Module):
    """[B, c_in, H, W] -> [B, c_out, H', W']; gain multiplies the output."""

    def __init__(
        self, c_in: int, c_out: int, size: int, stride: int = 1, padding: int = 0, gain: float = 1.0
    ):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_out, c_in, size, size))
        self.bias = nn.Parameter(torch.zeros(c_out))
        self.stride = stride
        self.padding = padding
        self.weight_gain = gain / math.sqrt(c_in * size**2)
        self.bias_gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(
            x, self.weight * self.weight_gain, self.bias * self.bias_gain, self.stride, self.padding
        )


class LowPass(nn.Module):
    """StyleGAN2's [1, 3, 3, 1] filter against aliasing: before down-sampling (total 1), after up-sampling
    (total 4)."""

    def __init__(self, padding: int, stride: int = 1, total: float = 1.0):
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("kernel", total * torch.outer(taps, taps)[None, None] / 64, persistent=False)
        self.padding = padding
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel.to(x.dtype).expand(x.shape[1], 1, 4, 4)  # the same for each channel
        return F.conv2d(x, kernel, stride=self.stride, padding=self.padding, groups=x.shape[1])


class MappingNetwork(nn.ModuleList):
    """z_scaled [B, d] -> w [B, d], without StyleGAN2's normalisation of the input."""

    def __init__(self, latent_dim: int, layers: int):
        super().__init__(
            EqualLinear(latent_dim, latent_dim, lr_multiplier=0.01, gain=SQRT2) for _ in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = leaky_relu(layer(x))
        return x


class ModulatedConv2d(nn.Module):
    """A 3x3 convolution with its own weight for each image, style[b, i] * weight[o, i] * demodulation[b, o],
    and a leaky ReLU: [B, c_in, H, W], w [B, d] -> [B, c_out, H, W], or [B, c_out, 2 H, 2 W] with up=True.
    Scaling input by style and output by demodulation is the same function, with one weight for the whole
    batch. Demodulation brings the output to unit variance, whatever the gain of the weight, which is
    therefore left out."""

    def __init__(self, c_in: int, c_out: int, w_dim: int, up: bool = False):
        super().__init__()
        self.style = EqualLinear(w_dim, c_in, bias=1.0)
        self.weight = nn.Parameter(torch.randn(c_out, c_in, 3, 3))
        self.bias = nn.Parameter(torch.zeros(c_out, 1, 1))
        self.low_pass = LowPass(padding=1, total=4.0) if up else None

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style = self.style(w)  # [B, d] -> [B, c_in]
        demodulation = (style.square() @ self.weight.square().sum((2, 3)).T + 1e-8).rsqrt()  # [B, c_out]
        x = x * style[:, :, None, None]
        if self.low_pass is None:
            x = F.conv2d(x, self.weight, padding=1)
        else:  # [B, c_in, H, W] -> [B, c_out, 2 H + 1, 2 W + 1] -> [B, c_out, 2 H, 2 W]
            x = self.low_pass(F.conv_transpose2d(x, self.weight.transpose(0, 1), stride=2))
        return leaky_relu(torch.addcmul(self.bias * SQRT2, x, SQRT2 * demodulation[:, :, None, None]))


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to image channels, without demodulation: [B, c_in, H, W] -> [B, C, H, W]."""

    def __init__(self, c_in: int, image_channels: int, w_dim: int):
        super().__init__()
        self.style = EqualLinear(w_dim, c_in, bias=1.0)
        self.weight = nn.Parameter(torch.randn(image_channels, c_in))
        self.bias = nn.Parameter(torch.zeros(image_channels))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        weight = self.weight * self.style(w)[:, None, :] / math.sqrt(x.shape[1])  # [B, C, c_in]
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2)  # -> [B, H*W, c_in], a view in channels_last
        rgb = pixels @ weight.transpose(1, 2) + self.bias  # [B, H*W, C]
        return rgb.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)  # -> [B, C, H, W]


class SynthesisBlock(nn.Module):
    """Doubles the resolution of features [B, c_in, H, W] -> [B, c_out, 2 H, 2 W] and image [B, C, H, W]."""

    def __init__(self, c_in: int, c_out: int, image_channels: int, w_dim: int):
        super().__init__()
        self.up = ModulatedConv2d(c_in, c_out, w_dim, up=True)
        self.conv = ModulatedConv2d(c_out, c_out, w_dim)
        self.to_rgb = ToRGB(c_out, image_channels, w_dim)

    def forward(self, x: Tensor, image: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv(self.up(x, w), w)
        image = F.interpolate(image, scale_factor=2, mode="bilinear")  # [1, 3, 3, 1] again, but at the border
        return x, image + self.to_rgb(x, w)


class Generator(nn.Module):
    """z_scaled [B, d] -> image [B, C, resolution, resolution] in [-1, 1]."""

    def __init__(
        self,
        resolution: int,
        image_channels: int,
        latent_dim: int,
        mapping_layers: int,
        channel_base: int,
        channel_max: int,
    ):
        super().__init__()
        sizes = [2**i for i in range(2, resolution.bit_length())]  # 4, 8, ..., resolution
        channels = [channels_at(size, channel_base, channel_max) for size in sizes]
        c = channels[0]
        self.mapping = MappingNetwork(latent_dim, mapping_layers)
        self.constant = nn.Parameter(torch.randn(1, c, 4, 4))
        self.conv = ModulatedConv2d(c, c, latent_dim)
        self.to_rgb = ToRGB(c, image_channels, latent_dim)
        self.blocks = nn.ModuleList(
            SynthesisBlock(c_in, c_out, image_channels, latent_dim)
            for c_in, c_out in itertools.pairwise(channels)
        )

    def forward(self, z_scaled: Tensor) -> Tensor:
        w = self.mapping(z_scaled)
        x = self.constant.expand(len(w), -1, -1, -1).contiguous(memory_format=torch.channels_last)
        x = self.conv(x, w)  # [B, c, 4, 4]
        image = self.to_rgb(x, w)
        for block in self.blocks:
            x, image = block(x, image, w)
        return image.to(self.constant.dtype).clamp(-1, 1)


class DiscriminatorBlock(nn.Module):
    """Residual block that halves the resolution: [B, c_in, H, W] -> [B, c_out, H/2, W/2]."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv1 = EqualConv2d(c_in, c_in, 3, padding=1, gain=SQRT2)
        self.low_pass = LowPass(padding=2)
        self.conv2 = EqualConv2d(c_in, c_out, 3, stride=2)  # gain sqrt(2) / sqrt(2): two branches are added
        self.skip_down = LowPass(padding=1, stride=2)
        self.skip = EqualConv2d(c_in, c_out, 1, gain=1 / SQRT2)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.skip(self.skip_down(x))  # thinned out before the 1x1 convolution, not after
        x = leaky_relu(self.conv1(x))
        x = leaky_relu(self.conv2(self.low_pass(x)))
        return skip.add_(x)


class Discriminator(nn.Module):
    """image [B, C, resolution, resolution] -> logits [B], z_hat [B, d], by two heads of one network."""

    def __init__(
        self,
        resolution: int,
        image_channels: int,
        latent_dim: int,
        channel_base: int,
        channel_max: int,
        head_scale: float = 1.0,
    ):
        super().__init__()
        sizes = [2**i for i in range(resolution.bit_length() - 1, 1, -1)]  # resolution, ..., 8, 4
        channels = [channels_at(size, channel_base, channel_max) for size in sizes]
        c = channels[-1]
        self.from_rgb = EqualConv2d(image_channels, channels[0], 1, gain=SQRT2)
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(c_in, c_out) for c_in, c_out in itertools.pairwise(channels)
        )
        self.conv = EqualConv2d(c, c, 3, padding=1, gain=SQRT2)
        self.linear = EqualLinear(c * 16, c, gain=SQRT2)
        self.logit_head = EqualLinear(c, 1)
        self.latent_head = EqualLinear(c, latent_dim)
        self.latent_head.weight.data.mul_(head_scale)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = leaky_relu(self.from_rgb(x))
        for block in self.blocks:
            x = block(x)
        x = leaky_relu(self.conv(x))  # [B, c, 4, 4]
        x = leaky_relu(self.linear(x.flatten(1)))  # [B, c*4*4] -> [B, c]
        return self.logit_head(x)[:, 0], self.latent_head(x)


# ---- PART III   PLUMBING -----------------------------------------------------------------------------------
# ---- MISTAKES ----------------------------------------------------------------------------------------------


class UserError(Exception):
    """A mistake the user can mend: the command line prints it as one line and exits with 2."""


# what a user's files can cause
FILE_FAULTS = (UserError, OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile, tarfile.TarError)


@contextlib.contextmanager
def explain(what: str, *faults: type[Exception]) -> Iterator[None]:
    """Turns FILE_FAULTS and the faults named into a UserError of one line that begins with `what`. All others
    are bugs, and go through."""
    try:
        yield
    except (*FILE_FAULTS, *faults) as fault:
        reason = getattr(fault, "strerror", None) or " ".join(str(fault).split()) or type(fault).__name__
        raise UserError(f"{what}: {reason[:200]}") from fault


def require(condition: object, message: str) -> None:
    """Raises a UserError unless the condition holds."""
    if not condition:
        raise UserError(message)


# ---- DATA --------------------------------------------------------------------------------------------------
# Every loader returns (train, test), uint8 arrays [N, C, H, W]; those of photographs are memory maps on disk.

CARTOON_FACTORS = ("x", "y", "size", "tilt", "smile", "eye opening", "skin tone", "background tone")


def ellipse_distance(x: Tensor, y: Tensor, a: float, b: float | Tensor) -> Tensor:
    """First-order distance to the curve (x/a)^2 + (y/b)^2 = 1, exact on it, negative inside."""
    u = x / a
    v = y / b
    length = (u * u + v * v).sqrt()
    slope = ((u / a).square() + (v / b).square()).sqrt().clamp(min=1e-6)
    return (length - 1) * length / slope


def mix_colours(first: tuple, last: tuple, position: Tensor) -> Tensor:
    """From the first RGB colour at position -1 to the last at 1: [n, 1, 1] -> [n, 3, 1, 1]."""
    first = torch.tensor(first).view(3, 1, 1)
    last = torch.tensor(last).view(3, 1, 1)
    return first.lerp(last, (1 + position[:, None]) / 2)


def cartoon_faces(n: int, resolution: int, seed: int = 0, factors: int = 8, values: Tensor | None = None):
    """Faces drawn from independent factors u_k ~ N(0, 1): images [n, 3, H, W] in [-1, 1] and factors [n, 8].
    Shapes are signed distances with an edge two pixels wide. Each factor runs through erf(u / sqrt(2)),
    uniform in (-1, 1). factors: how many of CARTOON_FACTORS vary (the others are 0); values: draw these
    factors [n, 8] instead of random ones."""
    if values is None:
        rng = torch.Generator().manual_seed(seed)
        values = torch.randn(n, 8, generator=rng) * (torch.arange(8) < factors)
    uniform = torch.erf(values / SQRT2)[:, :, None, None]  # [n, 8, 1, 1]
    shift_x, shift_y, size, tilt, smile, eyes, skin, ground = uniform.unbind(1)  # [n, 1, 1] each
    size = 0.78 + 0.08 * size
    tilt = 0.24 * tilt
    bend = 1.9 * smile
    axis = (torch.arange(resolution) + 0.5) * 2 / resolution - 1  # pixel centres from -1 to 1
    dx = axis[None, None, :] - 0.085 * shift_x
    dy = axis[None, :, None] - 0.06 * shift_y
    x = (tilt.cos() * dx + tilt.sin() * dy) / size  # the face's own coordinates, y downwards: [n, H, W]
    y = (tilt.cos() * dy - tilt.sin() * dx) / size

    arch = 0.27 - x * x  # the mouth lies between a flat line and a parabola, which is below it in a smile
    gape = (y - 0.57 + 0.17 * smile - bend * arch / 2).abs() - bend.abs() * arch / 2 - 0.055
    mouth = torch.maximum(gape / (1 + (2 * bend * x).square()).sqrt(), x.abs() - 0.52)
    shapes = [
        (ellipse_distance(x, y + 0.05, 0.98, 1.02), torch.tensor((0.38, 0.20, 0.10)).view(3, 1, 1)),  # hair
        (ellipse_distance(x, y - 0.17, 0.86, 0.88), mix_colours((0.50, 0.32, 0.22), (1.0, 0.88, 0.76), skin)),
        (mouth, torch.tensor((0.30, 0.0, 0.08)).view(3, 1, 1)),
    ]
    for side in (-0.36, 0.36):
        eye = ellipse_distance(x - side, y + 0.08, 0.32, 0.24 + 0.20 * eyes)
        pupil = ellipse_distance(x - side, y + 0.08, 0.14, 0.16)
        shapes.append((eye, torch.ones(3, 1, 1)))
        shapes.append((torch.maximum(eye, pupil), torch.tensor((0.05, 0.05, 0.12)).view(3, 1, 1)))
    image = mix_colours((0.26, 0.42, 0.66), (0.62, 0.86, 0.80), ground).expand(-1, -1, resolution, resolution)
    for distance, colour in shapes:  # each is painted over those before
        inside = (0.5 - distance * size * resolution / 4).clamp(0, 1)[:, None]  # [n, 1, H, W]
        image = image.lerp(colour, inside)
    return 2 * image - 1, values


def load_cartoon(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """20,000 faces for training and 2,000 other ones for testing."""
    chunks = [to_uint8(cartoon_faces(1000, config.resolution, seed)[0]).numpy() for seed in range(22)]
    return np.concatenate(chunks[:20]), np.concatenate(chunks[20:])


# Finding files. A path may lead into an archive, such as data/archive.zip/img_align_celeba/000001.jpg.
IMAGE = r"\.(?i:jpe?g|jfif|png|bmp|webp|gif|tiff?|ppm|pgm|avif)$"
ARCHIVE = r"\.(?i:zip|tar|tgz|tar\.gz)"
IGNORED = re.compile(r"(^|/)(\.|__MACOSX)|\.(crdownload|part)$")  # hidden, a Mac's notes, half a download


def list_files(root: str) -> list[str]:
    """All files below a folder, unsorted. Links to folders are followed once."""
    open_archive.cache_clear()
    root = Path(os.path.normpath(root))
    if not root.exists():  # torchvision's data/MNIST serves as data/mnist
        root = next((path for path in root.parent.glob("*") if path.name.lower() == root.name.lower()), root)
    files = [root.as_posix()] if root.is_file() else []
    folders = [str(root)] if root.is_dir() else []
    visited = {str(parent) for parent in Path(os.path.realpath(root)).parents}  # links upwards are loops
    while folders:  # real folders first and then those behind links, so that a new link renames nothing
        for folder, subfolders, names in os.walk(folders.pop(0), onerror=print):
            real = os.path.realpath(folder)
            if real in visited:
                subfolders.clear()
                continue
            visited.add(real)
            subfolders[:] = sorted(name for name in subfolders if not IGNORED.search(name))
            folders += filter(os.path.islink, [os.path.join(folder, name) for name in subfolders])
            prefix = folder.replace(os.sep, "/")
            files += [f"{prefix}/{name}" for name in names if not IGNORED.search(name)]
    return files


@functools.lru_cache
def open_archive(path: str) -> dict[str, Callable[[], bytes]]:
    """What reads each file in a .zip or .tar (which, or an archive in an archive, is held in memory)."""
    with explain(f"{path} is damaged or no archive (half a download, or a web page under its name)"):
        file = open(path, "rb") if os.path.isfile(path) else io.BytesIO(read_bytes(path))
        if path.lower().endswith(".zip"):
            archive = zipfile.ZipFile(file)
            members = {name: functools.partial(archive.read, name) for name in archive.namelist()}
        else:  # read now, as a tar serves one thread only
            archive = tarfile.open(fileobj=file)
            contents = {entry.name: archive.extractfile(entry).read() for entry in archive if entry.isfile()}
            members = {name: io.BytesIO(content).getvalue for name, content in contents.items()}
    members = {name.replace("\\", "/").removeprefix("./"): read for name, read in members.items()}
    return {name: read for name, read in members.items() if name[-1:] != "/" and not IGNORED.search(name)}


def read_bytes(path: str) -> bytes:
    """The content of a file, which may lie in an archive, with gzip undone."""
    inside = re.fullmatch(rf"(.*{ARCHIVE})/(.*)", path, re.DOTALL)
    if os.path.isfile(path):  # a pipe is none, and would be waited for
        data = Path(path).read_bytes()
    elif inside and inside[2] in open_archive(inside[1]):
        data = open_archive(inside[1])[inside[2]]()
    else:
        raise UserError("no such file")
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def find(files: list[str], pattern: str) -> list[str]:
    """The files whose paths match a regular expression, sorted; if there are none, those in archives."""
    matches = re.compile(pattern, re.IGNORECASE).search
    is_archive = re.compile(f"{ARCHIVE}$").search
    found = [file for file in files if matches(file) and not is_archive(file)]
    if not found:
        for archive in filter(is_archive, files):
            found += find([f"{archive}/{name}" for name in open_archive(archive)], pattern)
    return sorted(found)


def find_images(files: list[str], kinds: list[str], what: str) -> list[str]:
    """Images whose paths without ending match the first regular expression of `kinds` that fits any."""
    images = []
    for kind in kinds:
        images = images or find(files, kind + IMAGE)
    is_packed = re.compile(rf"(^|/)(?!list_)[^/]*({ARCHIVE}|\.7z|\.rar)(\.\d+)?$").search
    packed = ", ".join(list(filter(is_packed, files))[:4])
    if packed and not images:
        raise UserError(f"no {what} that can be read in {packed}")
    if packed and os.path.isfile(images[0]):
        print(f"there are unpacked images, so none are read from {packed}")
    return images


def hold_out(files: list[str], names: list[str]) -> tuple[list[str], list[str]]:
    """Splits files into those to train on and some 5%, at least two, to test with, by a hash of their names:
    an image stays on its side when others come and go."""
    shares = [int.from_bytes(hashlib.sha256(os.fsencode(n)).digest()[:4], "big") / 2**32 for n in names]
    count = max(2, sum(share < 0.05 for share in shares))
    ordered = [file for _, file in sorted(zip(shares, files, strict=True), reverse=True)]
    return ordered[:-count], ordered[-count:]


def fingerprint(train: np.ndarray, test: np.ndarray) -> str:
    """Sizes and a hash of some 64 images, by which a resumed run can tell that its images are others."""
    some = [images[:: max(1, len(images) // 32)].tobytes() for images in (train, test)]
    return f"{len(train):,} + {len(test):,} images, {hashlib.sha256(b''.join(some)).hexdigest()[:12]}"


MNIST_SHA256 = {  # of the decoded files
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
}


def read_idx(path: str | Path) -> np.ndarray:
    """Images in MNIST's IDX format, gzipped or not: magic number, three sizes, bytes -> uint8 [N, H, W]."""
    with explain(f"{path} is not a readable IDX file of images"):
        raw = read_bytes(str(path))
        magic, *shape = np.frombuffer(raw[:16], ">u4").tolist()
        require(magic == 0x803, f"its magic number is {magic:#x}, not 0x803")
        pixels = len(raw) - 16
        require(pixels == math.prod(shape) > 0, f"its {pixels} bytes of pixels are not the announced {shape}")
        return np.frombuffer(raw, np.uint8, offset=16).reshape(shape)


def download_mnist(name: str, folder: str) -> str:
    """Fetches a file of MNIST into the folder; returns its path there."""
    path = Path(folder, f"{name}.gz")
    url = f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}.gz"
    with explain(f"{path} is missing and cannot be downloaded from {url}"):
        data = urllib.request.urlopen(url, timeout=30).read()
        digest = hashlib.sha256(gzip.decompress(data)).hexdigest()
        require(digest == MNIST_SHA256[name], "wrong checksum of what was sent")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return str(path)


def load_mnist(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """The original files, downloaded when absent; 28x28 padded to 32x32, other sizes resized from that."""
    files = list_files(config.data_dir)
    arrays = []
    for name, use in zip(MNIST_SHA256, ("to train on", "held out"), strict=True):
        pattern = name.replace("-", ".?") + "[^/]*$"  # Kaggle's train-images.idx3-ubyte, too
        paths = find(files, pattern) or [download_mnist(name, config.data_dir)]
        digits = read_idx(paths[0])
        for path in paths[1:]:
            require(np.array_equal(read_idx(path), digits), f"{paths[0]} and {path} differ: remove one")
        print(f"mnist: {len(digits):,} images in {paths[0]}, {use}")
        images = np.pad(digits, ((0, 0), (2, 2), (2, 2)))
        if config.resolution != 32:
            size = (config.resolution, config.resolution)
            images = np.stack([Image.fromarray(image).resize(size, Image.LANCZOS) for image in images])
        arrays.append(images[:, None])  # [N, 32, 32] -> [N, 1, 32, 32]
    return arrays[0], arrays[1]


CELEBA_TREES = """Any of these will do, with whole folders packed (.zip) or not:
  img_align_celeba/, list_eval_partition.txt, list_*.txt: https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html
  Img/img_align_celeba/, Eval/list_eval_partition.txt, Anno/list_attr_celeba.txt: that page's Google Drive
  img_align_celeba/img_align_celeba/, list_*.csv: https://www.kaggle.com/datasets/jessicali9530/celeba-dataset
  celeba/img_align_celeba/, celeba/list_*.txt: torchvision.datasets.CelebA(FOLDER, download=True)
  img_align_celeba/ alone, from any of them: some 5% of the images are then held out for testing
  any of them in another folder: --data-dir FOLDER; images of other names: --dataset FOLDER"""


Table = tuple[list[str], dict[str, list[int]]]  # names of the columns; for each image, by name, its numbers


def read_table(path: str, values: set[int]) -> Table:
    """CelebA's .txt or Kaggle's .csv: number of rows, names of columns (both optional), then a file name and
    numbers out of `values` for each image. The names of images lose their ending."""
    with explain(f"{path} is not a CelebA table"):
        text = read_bytes(path).decode("utf-8-sig")
        lines = text.translate(str.maketrans(',;"', "   ")).splitlines()
        rows = [line.split() for line in lines if line.strip()]
        announced = int(rows.pop(0)[0]) if rows and len(rows[0]) == 1 else None
        header = rows.pop(0) if rows and "." not in rows[0][0] else ["image_id", "partition"]
        first = header[0]
        require(first == "image_id" or "," not in text, f"its first column is {first} instead of image_id")
        columns = [name for name in header if name != "image_id"]
        meaning = {str(value): value for value in values}
        table = {}
        for name, *numbers in rows:
            if len(numbers) != len(columns) or not meaning.keys() >= set(numbers):
                raise UserError(f"{name} needs {len(columns)} values of {sorted(values)}")
            table[os.path.splitext(name)[0]] = [meaning[number] for number in numbers]
        count = len(rows) if announced is None else announced
        complete = len(table) == len(rows) == count > 0
        require(complete, f"it announces {count} rows; {len(rows)} rows name {len(table)} files")
        return columns, table


def find_table(name: str, values: set[int], files: list[str], root: str) -> tuple[str, Table]:
    """Path and content of a CelebA table, among the files or, as root may hold images alone, beside it; an
    empty path and table if there is none."""
    pattern = name + "[^/]*$"  # list_eval_partition (1).txt, list_eval_partition.txt.txt
    paths = find(files, pattern)
    for folder in list(Path(root).absolute().parents)[:2]:
        beside = [path for place in ("", "Eval/", "Anno/") for path in folder.glob(f"{place}list*")]
        paths = paths or find([path.as_posix() for path in beside], pattern)
    tables = [read_table(path, values) for path in paths]
    for path, table in zip(paths, tables, strict=True):
        require(table == tables[0], f"{paths[0]} and {path} differ: remove one")
    return (paths[0], tables[0]) if paths else ("", ([], {}))


def find_faces(files: list[str], root: str) -> dict[str, str]:
    """CelebA's images among the files, {name without ending: path}, sorted. Aligned images come before those
    "in the wild", unpacked ones before those in archives. Two more of one name are an error."""
    kinds = [rf"{folder}.*/\d{{6}}" for folder in ("img.?align.?celeba(?!.?png)", "align", "")]
    paths = find_images(files, kinds, "CelebA images (000001.jpg, ...)")
    if not paths:
        print(CELEBA_TREES)
        raise UserError(f"no CelebA images (000001.jpg, ...) in {root}; what may be there is said above")
    faces = {}
    for path in paths:
        name = os.path.splitext(os.path.basename(path))[0]
        if name in faces:
            raise UserError(f"there are {faces[name]} and {path}: name one of the folders with --data-dir")
        faces[name] = path
    return faces


def find_celeba(config: Config) -> tuple[list[str], list[str], Table]:
    """CelebA's images for training, those for testing, and the table of attributes, which may be empty."""
    files = list_files(config.data_dir)
    faces = find_faces(files, config.data_dir)
    root = config.data_dir
    partition_from, (columns, partition) = find_table("list.eval.partition", {0, 1, 2}, files, root)
    attributes_from, attributes = find_table("list.attr.celeba", {-1, 1}, files, root)
    labels = attributes[1]
    folders = sorted({os.path.dirname(path) for path in faces.values()})
    tables = f"partition from {partition_from or 'no file'}, attributes from {attributes_from or 'no file'}"
    print(f"celeba: {len(faces):,} images in {', '.join(folders[:4])}, {tables}")
    if partition:
        require(columns == ["partition"], f"{partition_from} gives {', '.join(columns)} instead of partition")
        listed = {name: path for name, path in faces.items() if name in partition}
        counts = f"{len(listed):,} of {len(partition):,} listed images are present"
        print(f"celeba: {counts}; {len(faces) - len(listed):,} not listed")
        require(listed, f"{partition_from} lists none of the {len(faces):,} images, such as {min(faces)}")
        faces = listed
    unknown = [name for name in faces if labels and name not in labels]
    if unknown:
        rows = f"no row for {os.path.basename(faces[unknown[0]])}, {len(unknown)} in all"
        raise UserError(f"{attributes_from} does not match the images: {rows}")
    test = [path for name, path in faces.items() if partition.get(name) == [2]]
    train = [path for name, path in faces.items() if partition.get(name) != [2]]
    if not test:
        print("celeba: no images of a test set, so some 5% are held out, chosen by their names")
        train, test = hold_out(train, list(faces))
    return train, test, attributes


def load_celeba(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """CelebA or any part of it, in any of CELEBA_TREES."""
    train, test, _ = find_celeba(config)
    return load_images(train, test, config)


def load_folder(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Every readable image below a folder. Its path below the folder decides whether it is held out."""
    images = find_images(list_files(config.data_dir), [""], "images")
    require(images, f"{config.data_dir} is not a folder with image files (.jpg, .png, ...) or an archive")
    start = len(os.path.normpath(config.data_dir)) + 1
    names = [re.sub(f"[^/]*{ARCHIVE}/", "", path[start:]) for path in images]  # unpacking in place keeps them
    train, test = hold_out(images, names)
    return load_images(train, test, config)


def image_channels(config: Config) -> int:
    """1 for grey images, 3 for coloured ones."""
    return config.image_channels or (1 if config.dataset == "mnist" else 3)


def detect_channels(config: Config) -> int:
    """The image_channels of a new run on a folder, if not set: 1 if some 64 of its images are all grey."""
    if config.dataset != "folder" or config.image_channels:
        return config.image_channels
    images = find(list_files(config.data_dir), IMAGE)
    modes = set()
    for path in images[:: max(1, len(images) // 64)]:
        with contextlib.suppress(Exception), Image.open(io.BytesIO(read_bytes(path))) as image:
            modes.add(image.mode.split(";")[0])
    return 1 if modes and modes <= {"1", "L", "LA", "I", "F"} else 3


FRAMINGS = {  # functions of an image, a size and a filter
    "crop": ImageOps.fit,
    "pad": functools.partial(ImageOps.pad, color="white"),
    "squash": Image.Image.resize,
}


def read_image(path: str | Path, config: Config) -> np.ndarray:
    """A picture as uint8 [C, H, W], upright, on white. Unless config.framing says otherwise, CelebA's whole
    frame is squashed to a square, as in the paper, and other pictures are cropped."""
    with Image.open(io.BytesIO(read_bytes(str(path)))) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode[0] == "I":  # 16-bit grey, which Pillow would clip at 255
            grey = np.asarray(image)
            grey = grey / (257 if grey.max() > 255 else 1)
            image = Image.fromarray(grey.round().clip(0, 255).astype(np.uint8))
        require(image.mode != "F", "its pixels are fractions, of an unknown range: save it with 8 or 16 bits")
        if image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
        image = image.convert("L" if image_channels(config) == 1 else "RGB")
        usual = "squash" if config.dataset == "celeba" else "crop"
        frame = FRAMINGS[usual if config.framing == "auto" else config.framing]
        image = frame(image, (config.resolution, config.resolution), Image.LANCZOS)
        return np.asarray(image).reshape(*image.size, -1).transpose(2, 0, 1)


def load_images(train: list[str], test: list[str], config: Config) -> tuple[np.ndarray, np.ndarray]:
    """The readable images of two lists of files. If too few are for testing, the last others join them."""
    images, readable = cache_images(train + test, config)
    open_archive.cache_clear()  # frees memory
    held_out = min(len(images), max(2, int(readable[len(train) :].sum())))
    count = len(images) - held_out
    print(f"{config.dataset}: {len(images):,} images: {count:,} to train on, {held_out:,} held out")
    return images[:count], images[count:]


def cache_folders(data_dir: str) -> list[Path]:
    """Where decoded images may be kept: the user's cache, else beside the data, else with temporary files."""
    beside = Path(data_dir) if Path(data_dir).is_dir() else Path(data_dir).parent
    folders = [beside / ".dlsgan-cache"]
    with contextlib.suppress(RuntimeError):  # a user without a home
        folders.insert(0, Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "dlsgan"))
    with contextlib.suppress(OSError):  # no folder for temporary files
        user = os.getuid() if hasattr(os, "getuid") else 0
        folders.append(Path(tempfile.gettempdir(), f"dlsgan-{user}"))
    return folders


def last_change(path: str) -> str:
    """Size and time of change of what an absolute path names, or of the archive or folder around it."""
    try:
        status = os.stat(path)
    except OSError:
        return last_change(os.path.dirname(path))
    return f"{status.st_size} {status.st_mtime_ns}"


def read_or_skip(path: str, config: Config) -> bytes:
    """The pixels of an image, or none, which is said, if it cannot be read."""
    try:
        return read_image(path, config).tobytes()
    except Exception as error:  # Pillow raises many kinds on damaged files
        tqdm.write(f"skipped {path!r}: {' '.join(str(error).split())}")
        return b""


def write_cache(path: Path, files: list[str], config: Config) -> None:
    """A byte for each file, 1 if it is a readable image, then the pixels of those that are. OSError if the
    folder cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for other in path.parent.glob("*.tmp"):  # of a killed decoding: a living one writes every few seconds
        if time.time() - other.stat().st_mtime > 600:
            other.unlink(missing_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    read = functools.partial(read_or_skip, config=config)
    readable = bytearray(len(files))
    try:
        with open(temporary, "wb") as file, ThreadPoolExecutor() as pool:
            print(f"decoded images are kept in {path.parent}")
            file.write(readable)
            for start in tqdm(range(0, len(files), 256), "decoding", unit="x256 images"):
                for i, pixels in enumerate(pool.map(read, files[start : start + 256]), start):
                    readable[i] = len(pixels) > 0
                    file.write(pixels)
            file.seek(0)
            file.write(readable)
        bad = [file for file, good in zip(files, readable, strict=True) if not good]
        too_many = f"too many unreadable images: {len(bad)} of {len(files)} files, such as {''.join(bad[:1])}"
        require(len(bad) < len(files) and len(bad) <= max(10, 0.05 * len(files)), too_many)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_cache(path: Path, count: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """What write_cache has written for so many files. OSError or ValueError if it is absent or cut short."""
    readable = np.fromfile(path, np.bool_, count)
    return np.memmap(path, np.uint8, "r", count, (int(readable.sum()), *shape)), readable


def cache_images(files: list[str], config: Config) -> tuple[np.ndarray, np.ndarray]:
    """The images as a memory map [N, C, H, W] of a file, which is written once per list of files and framing,
    and whether each file could be read, bool [files]."""
    shape = (image_channels(config), config.resolution, config.resolution)
    key = hashlib.sha256(f"{shape} {config.framing}".encode())
    for file in map(os.path.abspath, files):
        key.update(os.fsencode(f"{file} {last_change(file)}\n"))
    name = f"{config.dataset}-{config.resolution}-{key.hexdigest()[:16]}.u8"
    folders = cache_folders(config.data_dir)
    for folder in folders:
        with contextlib.suppress(OSError, ValueError):
            return read_cache(folder / name, len(files), shape)
    for folder in folders:
        with contextlib.suppress(OSError):
            write_cache(folder / name, files, config)
            return read_cache(folder / name, len(files), shape)
    tried = ", ".join(map(str, folders))
    raise UserError(f"none of {tried} can be written: name a folder for decoded images as XDG_CACHE_HOME")


LOADERS = {
    "cartoon": load_cartoon,
    "mnist": load_mnist,
    "celeba": load_celeba,
    "folder": load_folder,
}


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] -> 0..255, clipped and rounded."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_float(x: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """uint8 [B, C, H, W] -> float32 in [-1, 1] on the device, channels last in memory."""
    x = to_device(torch.tensor(x), device)
    return x.to(torch.float32, memory_format=torch.channels_last).div_(127.5).sub_(1)


def batches(images: np.ndarray, batch_size: int, seed: int, step: int, flip: bool) -> Iterator[np.ndarray]:
    """Endless uint8 batches [B, C, H, W] from a training step on. Each epoch has an order of its own, which
    follows from the seed, so that a run can go on where it stopped; its incomplete last batch is left out."""
    rank, world_size = rank_and_world_size()  # each process gets its share of every batch
    n = len(images)
    require(batch_size <= n, f"--batch-size {batch_size} is too large for {n} images for training")
    shared = batch_size % world_size == 0
    require(shared, f"--batch-size {batch_size} cannot be shared by {world_size} processes")
    epoch, first = divmod(step, n // batch_size)
    while True:
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(n)
        mirrored = rng.random(n) < 0.5 * flip
        for start in range(first * batch_size, n - batch_size + 1, batch_size):
            share = slice(start + rank, start + batch_size, world_size)
            batch = images[order[share]]
            mirror = mirrored[share]
            batch[mirror] = batch[mirror, :, :, ::-1]
            yield batch
        epoch += 1
        first = 0


# ---- METRICS -----------------------------------------------------------------------------------------------

METRICS = {  # every field of metrics.jsonl; those from "l_enc" on stand only in lines with an evaluation
    "images": "real images seen so far",
    "seconds": "training time so far, in seconds, without evaluations",
    "images_per_second": "training speed since the last line",
    "lr": "learning rate",
    "changed": "settings that --resume changed before this line",
    "loss_d": "discriminator loss with lambda L_enc, without penalty; all losses: mean since the last line",
    "loss_g": "generator loss, lambda L_enc included",
    "l_enc_train": "L_enc of the networks in training",
    "penalty": "R1 or WGAN-GP penalty times its weight",
    "logits_real": "mean logit of real images",
    "logits_fake": "mean logit of generated images",
    "z_hat_mean": "mean of |batch mean of z_hat|; chance alone gives a good encoder 0.8 sqrt(v / batch)",
    "active_train": "number of live dimensions: v_i > 1/2 in the running average v",
    "entropy_train": "differential entropy of z * s, in nats",
    "effective_train": "effective dimensions (sum s^2)^2 / sum s^4",
    "l_enc": "L_enc of the averaged networks (1: the encoder knows nothing; 0: everything)",
    "mse_z": "mean squared error of z_hat, not weighted by s^2",
    "v": "E[z_hat^2] of the averaged encoder, per dimension",
    "active": "number of live dimensions, v_i > 1/2",
    "spread": "standard deviation per pixel, averaged: generated over real images (healthy: near 1)",
    "psnr_*": "PSNR of reconstructions (of generated and of test images), dB",
    "ssim_*": "SSIM of reconstructions; absent below 11x11 pixels",
    "psnr_gain_*": "PSNR of reconstructions above that of the mean image, dB",
    "mse_*": "mean squared error of reconstructions, images in [-1, 1]",
}


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio per image in dB: [B, C, H, W] twice, in [-1, 1] (peak to peak 2) -> [B]."""
    return 10 * torch.log10(4 / (x - y).square().flatten(1).mean(1).clamp(min=1e-10))


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity per image (Wang et al. 2004: 11x11 Gaussian, sigma 1.5); shapes as in psnr."""
    taps = torch.exp(-torch.arange(-5.0, 6.0, dtype=x.dtype, device=x.device).square() / (2 * 1.5**2))
    window = (torch.outer(taps, taps) / taps.sum() ** 2)[None, None]
    batch_size = len(x)
    x = x.flatten(0, 1)[:, None]  # [B, C, H, W] -> [B*C, 1, H, W]
    y = y.flatten(0, 1)[:, None]
    x_mean = F.conv2d(x, window)  # [B*C, 1, H-10, W-10]
    y_mean = F.conv2d(y, window)
    x_var = F.conv2d(x * x, window) - x_mean**2
    y_var = F.conv2d(y * y, window) - y_mean**2
    covariance = F.conv2d(x * y, window) - x_mean * y_mean
    c1 = (0.01 * 2) ** 2  # the usual constants for a range of 2
    c2 = (0.03 * 2) ** 2
    similarity = (2 * x_mean * y_mean + c1) * (2 * covariance + c2)
    similarity = similarity / ((x_mean**2 + y_mean**2 + c1) * (x_var + y_var + c2))
    return similarity.view(batch_size, -1).mean(1)


@torch.no_grad()
def evaluate(model: DLSGAN, images: Tensor, batch_size: int = 32, seed: int = 1) -> dict:
    """The METRICS from "l_enc" on, of test images [N, C, H, W] in [-1, 1] and N generated ones. What is not
    defined for these images (the spread over equal ones, the SSIM of small ones) is absent."""
    z = sample_latents(len(images), model.latent_scale, torch.Generator().manual_seed(seed))
    images = images.to(z.device).clamp(-1, 1)
    generated = in_batches(model.decode, z, batch_size=batch_size).clamp(-1, 1)
    z_hat = in_batches(model.encode, generated, batch_size=batch_size)
    v = z_hat.square().mean(0)
    result = {
        "l_enc": encoder_loss(z, z_hat, model.latent_scale.scale()).item(),
        "mse_z": F.mse_loss(z, z_hat).item(),
        "v": [round(value, 5) for value in v.tolist()],
        "active": int((v > 0.5).sum()),
    }
    real_spread = images.std(0).mean()
    if real_spread > 0:
        result["spread"] = (generated.std(0).mean() / real_spread).item()
    for name, x in (("generated", generated), ("test", images)):
        y = in_batches(model.reconstruct, x, batch_size=batch_size).clamp(-1, 1)
        result[f"psnr_{name}"] = psnr(x, y).mean().item()
        if x.shape[-1] >= 11:
            result[f"ssim_{name}"] = in_batches(ssim, x, y, batch_size=batch_size).mean().item()
        result[f"psnr_gain_{name}"] = (psnr(x, y) - psnr(x, x.mean(0).expand_as(x))).mean().item()
        result[f"mse_{name}"] = (x - y).square().flatten(1).mean(1).mean().item()
    return result


def make_grid(rows: Iterable[Tensor]) -> np.ndarray:
    """Rows of images [n, C, H, W] in [-1, 1] as one picture uint8 [rows*H, n*W, C] (without C if grey)."""
    picture = torch.cat([torch.cat(list(row.cpu()), 2) for row in rows], 1)  # [C, rows*H, n*W]
    return to_uint8(picture).permute(1, 2, 0).squeeze(2).numpy()


@torch.no_grad()
def report(model: DLSGAN, test: Tensor, history: list[dict], path: Path, title: str) -> None:
    """The figure to look at first: samples, reconstructions, the spectrum of v, and curves of metrics."""
    from matplotlib.figure import Figure

    evaluations = [line for line in history if "l_enc" in line]
    last = evaluations[-1]
    figure = Figure((12, 8.2), layout="constrained")
    figure.suptitle(f"{title}: {last['active']} of {len(last['v'])} latent dimensions live (v > 1/2)")
    pictures, (spectrum, *curves) = figure.subplots(2, 3, height_ratios=(1.2, 1))
    samples = torch.cat([model.sample(8, seed).cpu() for seed in range(8)])
    show_rows(pictures[0], samples.split(8), "samples")
    for axis, name, images in ((pictures[1], "generated", samples), (pictures[2], "test", test)):
        text = f"{last[f'psnr_{name}']:.1f} dB, {last[f'psnr_gain_{name}']:+.1f} dB against the mean image"
        text = f"{name} images, each row above its reconstructions\n{text}"
        show_rows(axis, with_reconstructions(model, images[:32]), text)
    colour = "#d1495b" if model.latent_scale.enabled else "#30638e"  # red: with the scale
    spectrum.bar(range(1, 1 + len(last["v"])), sorted(last["v"], reverse=True), width=1, color=colour)
    spectrum.axhline(0.5, color="0.4", linestyle="--")
    spectrum.set(xlabel="latent dimension, sorted", ylabel="v: variance the encoder recovers")
    spectrum.set_ylim(0, max(1.1, *last["v"]))
    losses = {"l_enc": "L_enc", "spread": "spread, generated / real"}
    show_curves(curves[0], evaluations, losses, "L_enc; spread")
    gains = {"psnr_gain_generated": "generated images", "psnr_gain_test": "test images"}
    show_curves(curves[1], evaluations, gains, "dB above the mean image")
    figure.savefig(path, dpi=110)


def with_reconstructions(model: DLSGAN, images: Tensor) -> list[Tensor]:
    """Rows of up to 8 images, each followed by the row of their reconstructions; images [n, C, H, W]."""
    if len(images) > 8:
        images = images[: len(images) // 8 * 8]
    rows = []
    for row in images.split(8):
        rows += [row, model.reconstruct(row.to(model.latent_scale.v.device))]
    return rows


def show_rows(axis, rows: Iterable[Tensor], title: str) -> None:
    axis.imshow(make_grid(rows), cmap="gray", interpolation="nearest")
    axis.set_title(title, fontsize=10)
    axis.axis("off")


def show_curves(axis, lines: list[dict], fields: dict[str, str], unit: str) -> None:
    images = [line["images"] / 1000 for line in lines]
    for (field, label), style in zip(fields.items(), (".-", ".--"), strict=True):
        axis.plot(images, [line.get(field, math.nan) for line in lines], style, label=label)
    axis.set(xlabel="thousand real images seen", ylabel=unit)
    axis.legend(frameon=False)
    axis.grid(alpha=0.3)


# ---- TRAINING ----------------------------------------------------------------------------------------------

CHECKPOINT_VERSION = 2
LOADING_FAULTS = (AttributeError, KeyError, TypeError, ValueError, RuntimeError)  # of load_state_dict
SAVE_SECONDS = 300  # a checkpoint at least this often
NUM_EVAL_IMAGES = 256  # test images in an evaluation; fewer at 256x256 pixels and more
PRETRAINED = Path(__file__).resolve().with_name("pretrained")  # trained models; a copied dlsgan.py has none


def option(default, text: str, least: float = 1e-12, most: float = 2**31 - 1, choices: Iterable = ()):
    metadata = {"help": text, "range": (least, most), "choices": list(choices)}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass
class Config:
    """All settings of a run; each is also a flag of the command line. The defaults are the cartoon preset.
    UserError on the first value that cannot work."""

    dataset: str = option("cartoon", "an image folder, or one of", choices=LOADERS)
    data_dir: str = option("", "where the data is (default: data/DATASET); alone: an image folder")
    resolution: int = option(32, "image size in pixels, a power of two", choices=[2**i for i in range(3, 11)])
    channel_base: int = option(512, "channels of a layer: channel_base / its resolution", most=2**20)
    channel_max: int = option(64, "the most channels of a layer", most=2**14)
    latent_dim: int = option(64, "dimensions d of the latent vector", most=2**14)
    mapping_layers: int = option(2, "layers of the mapping network", most=64)
    batch_size: int = option(8, "real images a step, of all processes together")
    images: int = option(60_000, "budget: real images seen in training; lr, lambda, gamma fall along it")
    lr: float = option(8e-3, "learning rate of Adam (the mapping network moves at 0.01 of it)")
    lr_final: float = option(0.25, "factor to which the learning rate falls by the end of the budget")
    loss: str = option("nsgan", "adversarial loss", choices=LOSSES)
    encoder_weight: float = option(1.5, "lambda, the weight of L_enc in both losses", 0)
    encoder_weight_final: float = option(1.0, "factor to which lambda falls by the end of the budget")
    r1_gamma: float = option(2.0, "gamma: gamma / 2 weighs R1 (or the penalty of wgan-gp)", 0)
    r1_gamma_final: float = option(1.0, "factor to which gamma falls by the end of the budget")
    latent_scale: bool = option(True, "scale the latent vector; without it, s = 1: the paper's comparison")
    scale_rule: str = option("ema", "moving average behind v", choices=["ema", "sma"])
    scale_window: int = option(400, "its memory in steps", most=2**20)
    head_scale: float = option(0.1, "initial scale of the latent head")
    flip: bool = option(False, "mirror half of the training images")
    framing: str = option("auto", "make square (auto: squash celeba, else crop)", choices=["auto", *FRAMINGS])
    image_channels: int = option(0, "1 (grey), 3 (colour), or 0: as the images are", 0, choices=[0, 1, 3])
    seed: int = option(0, "seed of weights, latent vectors and data order", 0)
    device: str = option("auto", "cuda, mps, cpu, or auto: the first of these that is there")
    threads: int = option(0, "CPU threads, or 0: PyTorch's choice", 0, 1024)
    keep_every: int = option(0, "keep numbered checkpoints and reports, one in so many images", 0)
    out: str = option("", "folder of the run (default: runs/PRESET, numbered when taken)")

    def __post_init__(self):
        for field in dataclasses.fields(self):
            check_setting(field, getattr(self, field.name))
        fixed = self.dataset in ("cartoon", "mnist")
        require(not (fixed and self.image_channels), f"--image-channels has no meaning for {self.dataset}")
        self.data_dir = self.data_dir or f"data/{self.dataset}"


def check_setting(field: dataclasses.Field, value: object) -> None:
    """UserError unless the value has the field's type and range, and is one of its choices if it has any."""
    flag = "--" + field.name.replace("_", "-")
    kind = type(field.default)
    least, most = field.metadata["range"]
    choices = field.metadata["choices"]
    kinds = (int, float) if kind is float else kind
    require(isinstance(value, kinds), f"{flag} {value} is no {kind.__name__}")
    require(kind not in (int, float) or least <= value <= most, f"{flag} {value} is out of range")
    require(not choices or value in choices, f"{flag} {value} is not one of {', '.join(map(str, choices))}")


# fmt: off
PRESETS = {
    "cartoon": {},
    "mnist": {"dataset": "mnist", "images": 120_000, "lr_final": 0.1, "encoder_weight": 3.0,
              "encoder_weight_final": 0.33, "scale_window": 1000},
    "celeba64": {"dataset": "celeba", "resolution": 64, "channel_base": 1024, "latent_dim": 256,
                 "images": 300_000, "lr": 6e-3, "lr_final": 0.38, "encoder_weight": 20.0,
                 "encoder_weight_final": 0.27, "r1_gamma": 10.0, "r1_gamma_final": 0.31,
                 "scale_window": 2000, "flip": True},
    "celeba": {"dataset": "celeba", "resolution": 128, "channel_base": 8192, "channel_max": 512,
               "latent_dim": 512, "mapping_layers": 8, "batch_size": 32, "images": 50 * 182_637, "lr": 1e-3,
               "lr_final": round(0.98**50, 4), "encoder_weight": 1.0, "r1_gamma": 20.0, "scale_rule": "sma",
               "scale_window": 512, "head_scale": 1.0},
}
# fmt: on
PRESETS["folder"] = {**PRESETS["celeba64"], "dataset": "folder"}


def build(config: Config) -> DLSGAN:
    """Networks and latent scale of a configuration, on the CPU, with fresh weights from torch's seed."""
    sizes = {
        "resolution": config.resolution,
        "image_channels": image_channels(config),
        "latent_dim": config.latent_dim,
        "channel_base": config.channel_base,
        "channel_max": config.channel_max,
    }
    generator = Generator(**sizes, mapping_layers=config.mapping_layers)
    discriminator = Discriminator(**sizes, head_scale=config.head_scale)
    latent_scale = LatentScale(config.latent_dim, config.scale_rule, config.scale_window, config.latent_scale)
    return DLSGAN(generator, discriminator, latent_scale)


def pick_device(name: str) -> torch.device:
    """The named device, or the best there is. UserError if it is not there."""
    backends = {"cuda": torch.cuda, "mps": torch.backends.mps}
    available = [kind for kind, backend in backends.items() if backend.is_available()] + ["cpu"]
    faults = (RuntimeError, AssertionError, NotImplementedError)  # what torch raises for a device it lacks
    with explain(f"device {name!r} is not available: choose {', '.join(available)}", *faults):
        device = torch.device(available[0] if name == "auto" else name)
        if device == torch.device("cuda"):  # each process of torchrun takes its own GPU
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))
        torch.ones(1, device=device).item()  # fails on the cuda:7 of a machine with four
        return device


def has_bf16(device: torch.device) -> bool:
    """Whether to train in bfloat16 autocast: on CUDA, where convolutions have it (compute capability 8)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def keep_memory() -> None:
    """glibc gives large blocks back to the system when freed, and new ones cost page faults. Keep them."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD


def prepare(config: Config) -> torch.device:
    """Sets what is global in a process: threads, precision, seed. Returns the device to train on."""
    device = pick_device(config.device)
    keep_memory()
    torch.set_num_threads(config.threads or torch.get_num_threads())
    torch.set_float32_matmul_precision("high")  # TF32 on CUDA, no effect on a CPU
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(config.seed)
    print(f"training on {device}, {torch.get_num_threads()} CPU threads")
    return device


class TrainingState:
    """All that training changes; a checkpoint keeps it. Begins with fresh weights from torch's seed."""

    def __init__(self, config: Config, device: torch.device):
        self.model = build(config).to(device, memory_format=torch.channels_last)
        networks = copy.deepcopy((self.model.generator, self.model.discriminator))
        self.ema_model = DLSGAN(*networks, self.model.latent_scale).requires_grad_(False)  # averaged weights
        self.optimizers = make_optimizers(self.model, config.lr)
        names = ("model", "ema", "optimizer_g", "optimizer_d")
        self.parts = dict(zip(names, (self.model, self.ema_model, *self.optimizers), strict=True))
        self.rng = torch.Generator().manual_seed(config.seed)
        self.step = 0
        self.step_saved = 0  # step of the last checkpoint
        self.in_step = False  # networks and statistics are those of no step
        self.seconds = 0.0  # of training so far, without evaluations
        self.totals = {}  # sums of the losses since the last line of metrics
        self.step_logged = 0  # step of that line
        self.history = []  # lines of metrics
        self.changed = ""  # settings that --resume changed, for the next line
        self.data = ""  # fingerprint of the images

    def state_dict(self) -> dict:
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {name: getattr(self, name) for name in ("step", "seconds", "totals", "changed", "data")}
        state |= {"rng": self.rng.get_state(), "logged": self.step_logged}
        return state | {"history": json.dumps(self.history)}

    def load_state_dict(self, state: dict) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        for optimizer in self.optimizers:  # which do not compare shapes themselves
            for weight, moments in optimizer.state.items():
                same = moments["exp_avg"].shape == moments["exp_avg_sq"].shape == weight.shape
                require(same, "the moments of Adam are those of other weights")
        self.rng.set_state(state["rng"])
        require(int(state["step"]) >= 0, "its step is negative")
        self.seconds = float(state["seconds"])
        self.totals = dict(state["totals"])
        self.step_logged = int(state["logged"])
        self.changed = str(state.get("changed", ""))  # absent in older checkpoints, as the next
        self.data = state.get("data", "")
        self.history = [upgrade_names(line) for line in json.loads(state["history"])]
        self.step = self.step_saved = int(state["step"])

    def is_finite(self) -> bool:
        """Whether losses and weights are numbers. A checkpoint of others would be of no use."""
        losses = all(math.isfinite(total) for total in self.totals.values())
        return losses and all(p.isfinite().all() for p in self.model.parameters())

    def start_clock(self) -> None:
        self.step_timed = self.step
        self.time_begun = time.perf_counter()
        self.seconds_begun = self.seconds

    def add(self, scalars: dict[str, Tensor]) -> None:
        """Counts a step and adds its losses to the totals."""
        self.totals = {name: value + self.totals.get(name, 0.0) for name, value in scalars.items()}
        self.step += 1
        self.in_step = False
        self.seconds = self.seconds_begun + time.perf_counter() - self.time_begun

    def next_line(self, batch_size: int) -> dict:
        """Mean losses since the last line, and the latent scale's metrics."""
        line = {name: total.item() / (self.step - self.step_logged) for name, total in self.totals.items()}
        elapsed = time.perf_counter() - self.time_begun  # after .item() has waited for the device
        line["images"] = self.step * batch_size
        self.seconds = self.seconds_begun + elapsed
        line["seconds"] = round(self.seconds, 2)
        line["images_per_second"] = round((self.step - self.step_timed) * batch_size / elapsed, 2)
        line["lr"] = self.optimizers[0].param_groups[0]["lr"]
        line |= {f"{name}_train": value.item() for name, value in self.model.latent_scale.metrics().items()}
        if self.changed:
            line["changed"] = self.changed
        self.totals = {}
        self.changed = ""
        self.step_logged = self.step
        return line


class PeakMemory(TorchDispatchMode):
    """Inside `with`, notes the tensors that operations make; `peak` becomes the most bytes alive at once. On
    the meta device tensors have sizes but no content, so that nothing is computed."""

    def __init__(self):
        super().__init__()
        self.alive = weakref.WeakSet()  # storages: several tensors may be views of one
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.alive |= {x.untyped_storage() for x in tree_leaves(out) if isinstance(x, Tensor)}
        self.peak = max(self.peak, sum(storage.nbytes() for storage in self.alive))
        return out


def training_memory(config: Config) -> int:
    """Bytes that training takes at most on the device of this process, in float32 and without the
    convolutions' workspace: two steps with their penalty on the meta device."""
    _, world_size = rank_and_world_size()
    with PeakMemory() as memory:
        with torch.device("meta"):
            state = TrainingState(config, torch.device("meta"))
        share = max(1, config.batch_size // world_size)
        real = torch.empty(share, image_channels(config), config.resolution, config.resolution, device="meta")
        for _ in range(2):  # in the second, Adam's moments are there from the beginning
            train_step(state.model, state.optimizers, real, state.rng, config.loss, penalty_weight=1.0)
    return memory.peak


def check_memory(config: Config, device: torch.device) -> None:
    """UserError if a GPU has too little free memory for this training, before anything is loaded."""
    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # kept by torch, unused
    needed = training_memory(config)
    if needed > free:
        _, world_size = rank_and_world_size()
        least = training_memory(dataclasses.replace(config, batch_size=world_size))  # an image a process
        each = (needed - least) / max(1, config.batch_size // world_size - 1)  # bytes are linear in the batch
        fitting = world_size * (1 + math.floor((free - least) / each)) if free > least else 0
        advice = f"--batch-size {fitting} would fit"
        if not fitting:
            advice = f"not even --batch-size {world_size} fits"
        needs = f"training needs about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free on {device}"
        raise UserError(f"{needs}: {advice}")


def upgrade_names(old: dict) -> dict:
    """Settings or metrics of an older checkpoint by today's names; `width` was a factor on all channels."""
    new = {re.sub("^gain_", "psnr_gain_", name): value for name, value in old.items()}
    if "width" in new:
        width = new.pop("width")
        new["channel_base"] = round(8192 * width)
        new["channel_max"] = round(512 * width)
    return new


def save_checkpoint(path: Path, state: dict) -> None:
    """Writes the file beside its place, then puts it there in one step."""
    with explain(f"cannot write {path}", RuntimeError):  # torch's, on a full disk
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def read_checkpoint(path: str | Path) -> tuple[Config, dict]:
    """The configuration and the state in a checkpoint file, or in the checkpoint of a run's folder."""
    path = Path(path)
    if path.is_dir():
        path = path / "checkpoint.pt"
    damaged = f"{path} is damaged or not a checkpoint of this program"
    try:
        require(not zipfile.ZipFile(path).testzip(), damaged)  # checksums, which torch.load does not compare
        state = torch.load(path, map_location="cpu", weights_only=True)  # never runs code from the file
        version = state["format"]
        settings = upgrade_names(state["config"])
    except OSError as fault:
        there = ""
        if path.parent == PRETRAINED:
            names = sorted(file.stem for file in PRETRAINED.glob("*.pt"))
            there = "; there: " + (", ".join(names) or "nothing, see the repository")
        raise UserError(f"{path} cannot be read: {fault.strerror}{there}") from fault
    except Exception as fault:  # a damaged file can raise anything; torch's message is pages long
        raise UserError(damaged) from fault
    known = CHECKPOINT_VERSION
    require(version == known, f"{path} has checkpoint format {version}, and this program reads {known}")
    with explain(damaged, TypeError):  # settings of another name
        return Config(**settings), state


def load_model(checkpoint: str | Path, device: str = "cpu") -> DLSGAN:
    """The trained model (averaged weights) of a checkpoint or a run's folder, ready to encode and decode."""
    config, state = read_checkpoint(checkpoint)
    model = build(config)
    with explain(f"{checkpoint} holds weights of another configuration than it names", *LOADING_FAULTS):
        model.load_state_dict(state["ema"])
    return model.requires_grad_(False).eval().to(pick_device(device), memory_format=torch.channels_last)


def load_pretrained(name: str, device: str = "cpu") -> DLSGAN:
    """The trained model in pretrained/NAME.pt beside this file, as the repository has it."""
    return load_model(PRETRAINED / f"{name}.pt", device)


NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # what file systems say that cannot lock


class RunFolder:
    """The files of a run in config.out: checkpoint.pt, metrics.jsonl, report.png. Inside `with`, no other
    process trains there; the end of the block saves what is left to save."""

    def __init__(self, config: Config, state: TrainingState, resume: bool):
        self.config = config
        self.state = state
        self.path = Path(config.out)
        self.lines_written = 0
        self.time_saved = time.perf_counter()
        new = not any(self.path.glob("checkpoint*.pt"))
        taken = f"{self.path} already holds a run: --resume {self.path} goes on with it, --out names another"
        require(resume or new, taken)
        with explain(f"cannot write to {self.path}"):
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = open(self.path / ".lock", "w")  # its lock ends with the process, however that ends
        if fcntl:
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as fault:
                busy = f"another training runs in {self.path} (wait for its end, or name another --out)"
                require(fault.errno in NO_LOCKS, busy)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        whole = not self.state.in_step and kind in (None, GeneratorExit, KeyboardInterrupt)
        if whole and self.state.step != self.state.step_saved and self.state.is_finite():
            with DeferredSignals():
                self.save()
        self.lock.close()
        Path(self.lock.name).unlink(missing_ok=True)

    def write(self, test: Tensor) -> None:
        """All files after a line of metrics; after an evaluation the checkpoint first, then the figure."""
        self.write_metrics()
        evaluated = "l_enc" in self.state.history[-1]
        due = evaluated or time.perf_counter() - self.time_saved > SAVE_SECONDS
        if due and self.state.is_finite():
            self.save()
        if evaluated:
            self.write_report(test)
            self.keep_numbered()

    def write_metrics(self) -> None:
        """Appends the lines that are not there yet; after a resume all of them, to a new file."""
        path = self.path / "metrics.jsonl"
        with explain(f"cannot write {path}"):
            self.path.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                self.lines_written = 0
            with open(path, "a" if self.lines_written else "w") as file:
                for line in self.state.history[self.lines_written :]:
                    file.write(json.dumps(line) + "\n")
        self.lines_written = len(self.state.history)

    def save(self) -> None:
        written = {"format": CHECKPOINT_VERSION, "config": dataclasses.asdict(self.config)}
        save_checkpoint(self.path / "checkpoint.pt", written | self.state.state_dict())
        self.state.step_saved = self.state.step
        self.time_saved = time.perf_counter()

    def write_report(self, test: Tensor) -> None:
        """The figure of the last evaluation. No fault of a plot ends a training."""
        scale = "latent scale" if self.config.latent_scale else "no latent scale"
        images = self.state.history[-1]["images"]
        title = f"{self.config.dataset}, {scale}, seed {self.config.seed}, {images:,} images"
        try:
            report(self.state.ema_model, test, self.state.history, self.path / "report.png", title)
        except Exception as fault:
            reason = " ".join(str(fault).split())[:200]
            tqdm.write(f"no report.png this time: {type(fault).__name__}: {reason}")

    def keep_numbered(self) -> None:
        """Copies of checkpoint and report, at the first evaluation after every so many images."""
        every = self.config.keep_every
        images = self.state.history[-1]["images"]
        numbers = [path.stem.partition("-")[2] for path in self.path.glob("checkpoint-*.pt")]
        kept = [int(number) for number in numbers if number.isdigit()]  # not a user's checkpoint-best.pt
        if every and images // every > max(kept, default=0) // every:
            for file in (self.path / "checkpoint.pt", self.path / "report.png"):
                if file.exists():
                    shutil.copy(file, file.with_stem(f"{file.stem}-{images:09d}"))


class DeferredSignals:
    """Inside `with`, Ctrl-C and SIGTERM wait for the end of the block, so that no step is left half done; a
    second one interrupts at once. Handlers are put back at the end. `pending` says whether a signal came."""

    def __init__(self):
        self.pending = False
        self.previous = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self.note)

    def __exit__(self, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def note(self, *_):
        if self.pending:
            raise KeyboardInterrupt
        self.pending = True


def load_data(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Images for training and testing. One process downloads or decodes them, then the others find them."""
    rank, _ = rank_and_world_size()
    small = config.dataset not in ("cartoon", "mnist") or config.resolution <= 128
    require(small, f"--resolution {config.resolution} is too much for {config.dataset}: 128 at most")
    if rank > 0:
        all_reduce_mean(torch.zeros(1))
    train_images, test_images = LOADERS[config.dataset](config)
    if rank == 0:
        all_reduce_mean(torch.zeros(1))
    require(len(test_images) > 1, f"{config.data_dir} has too few images: {len(test_images)} for testing")
    return train_images, test_images


RESUME_MAY_CHANGE = ("images", "lr", "r1_gamma", "encoder_weight", "keep_every", "device", "threads")


def resume_training(state: TrainingState, config: Config) -> None:
    """Loads the checkpoint in config.out, and notes which settings are no longer those of the checkpoint."""
    before, saved = read_checkpoint(config.out)
    with explain(f"the checkpoint in {config.out} does not fit its own configuration", *LOADING_FAULTS):
        state.load_state_dict(saved)
    names = [name for name in RESUME_MAY_CHANGE if getattr(before, name) != getattr(config, name)]
    changes = [f"{name} {getattr(before, name)} -> {getattr(config, name)}" for name in names]
    state.changed = ", ".join(filter(None, [state.changed, *changes]))


def start_from(state: TrainingState, checkpoint: str | Path) -> None:
    """Trained weights and latent scale for a new training; its sizes must be those of the file."""
    _, saved = read_checkpoint(checkpoint)
    weights = saved["ema"]
    with explain(f"the weights in {checkpoint} are of other sizes than this training's", *LOADING_FAULTS):
        past = state.model.latent_scale.past
        if weights["latent_scale.past"].shape != past.shape:  # another moving average: it begins at v
            weights["latent_scale.past"] = weights["latent_scale.v"].expand_as(past)
        state.model.load_state_dict(weights)
        state.ema_model.load_state_dict(weights)


def encoder_weight(config: Config, progress: float) -> float:
    """lambda, which falls from progress 0 to 1."""
    return fall(config.encoder_weight, config.encoder_weight_final, progress)


def penalty_weight(config: Config, step: int, progress: float) -> float:
    """Lazy regularisation: R1 every 16th step, 16 times as strong. WGAN-GP has its penalty at every step.
    gamma falls from progress 0 to 1."""
    interval = 1 if config.loss == "wgan-gp" else 16
    gamma = fall(config.r1_gamma, config.r1_gamma_final, progress)
    return 0.0 if step % interval else gamma / 2 * interval


def require_finite(line: dict, folder: RunFolder | None) -> None:
    """UserError on the first metric that is infinite or no number, with what the user can do."""
    for name, value in line.items():
        if isinstance(value, str) or np.isfinite(value).all():
            continue
        advice = "start again with"
        if folder and (folder.path / "checkpoint.pt").exists():
            advice = f"the last checkpoint is kept; go on from there by --resume {folder.path} and"
        what = f"{name} became {value} after {line['images']:,} images"
        raise UserError(f"{what}: {advice} a smaller --lr or a larger --r1-gamma")


def train(config: Config, resume: bool = False, init_from: str | Path = "") -> Iterator[dict]:
    """Trains and yields lines of METRICS every 50 steps or sooner, some with an evaluation. Writes
    checkpoint.pt, metrics.jsonl and report.png to config.out, if set; also when the iteration is left early
    or interrupted.

    resume     go on from the checkpoint there; on the same CPU and thread count the result is that of an
               uninterrupted run to the bit
    init_from  a checkpoint whose averaged weights and latent scale to start from
    """
    device = prepare(config)
    check_memory(config, device)
    if not resume:
        config = dataclasses.replace(config, image_channels=detect_channels(config))
    state = TrainingState(config, device)
    rank, _ = rank_and_world_size()
    writes = config.out and rank == 0
    with RunFolder(config, state, resume) if writes else contextlib.nullcontext() as folder:
        if resume:
            resume_training(state, config)
        elif init_from:
            start_from(state, init_from)
        train_images, test_images = load_data(config)
        data = fingerprint(train_images, test_images)
        if state.data not in ("", data):
            print(f"the images are not those of the checkpoint: {state.data} then, {data} now")
        state.data = data
        test = to_float(test_images[: NUM_EVAL_IMAGES // max(1, config.resolution // 128)])
        stream = batches(train_images, config.batch_size, config.seed, state.step, config.flip)
        yield from training_loop(config, state, stream, test, folder)


def training_loop(
    config: Config,
    state: TrainingState,
    stream: Iterator[np.ndarray],
    test: Tensor,
    folder: RunFolder | None,
) -> Iterator[dict]:
    """The steps that are left. Ctrl-C ends it after the step at hand, by KeyboardInterrupt."""
    device = state.model.latent_scale.v.device
    rank, world_size = rank_and_world_size()
    steps = math.ceil(config.images / config.batch_size)
    log_every = min(50, max(1, steps // 200))
    evaluate_every = max(50, min(2000, math.ceil(steps / 8)))
    signals = DeferredSignals()
    state.start_clock()
    while state.step < steps:
        with signals:
            if in_any_process(signals.pending):
                raise KeyboardInterrupt
            progress = state.step / steps
            decay_learning_rate(state.optimizers, config.lr, config.lr_final, progress)
            real = to_float(next(stream), device)
            weights = encoder_weight(config, progress), penalty_weight(config, state.step, progress)
            bf16 = has_bf16(device)
            state.in_step = True
            scalars = train_step(state.model, state.optimizers, real, state.rng, config.loss, *weights, bf16)
            average_weights(state.ema_model, state.model, state.step)
            state.add(scalars)
            evaluated = state.step % evaluate_every == 0 or state.step == steps
            if not evaluated and state.step % log_every and state.step not in (1, 2, 4, 8, 16, 32):
                continue
            line = state.next_line(config.batch_size)
            if evaluated and rank == 0:
                line |= evaluate(state.ema_model, test, config.batch_size // world_size)
            require_finite(line, folder)
            state.history.append(line)
            if folder:
                folder.write(test)
        yield line
        state.start_clock()
    if signals.pending:
        raise KeyboardInterrupt


# ---- COMMAND LINE ------------------------------------------------------------------------------------------


def reconstruct_photos(photos: list[str], checkpoint: str | Path = "", out: str = ".") -> None:
    """Writes each photo beside its reconstruction and overwrites nothing; prints PSNR and how unusual its
    latent vector is. A folder means the images in it. UserError at the end on bad files."""
    checkpoint = checkpoint or PRETRAINED / "celeba64.pt"
    config, _ = read_checkpoint(checkpoint)
    model = load_model(checkpoint)
    z_hat = torch.cat([model.encode(model.sample(32, seed)) for seed in range(16)])
    v = z_hat.square().mean(0)
    live = v >= min(0.5, v.max())
    distances = (z_hat.square() / v)[:, live].mean(1)  # [512], 1 on average
    failed = []
    for photo in find_photos(photos):
        try:
            x = to_float(read_image(photo, config)[None])
        except Exception as fault:  # Pillow raises many kinds on damaged files
            failed.append(f"{photo}: {' '.join(str(fault).split())}")
            continue
        y = model.reconstruct(x)
        distance = (model.encode(x)[0].square() / v)[live].mean()
        farther = (distances < distance).float().mean()
        paths = numbered(Path(out, f"{os.path.basename(photo)}-reconstruction.png"))
        path = next(path for path in paths if not path.exists())
        with explain(f"cannot write {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(make_grid([torch.cat([x, y])])).save(path)
        print(f"{path}: PSNR {psnr(x, y).item():.1f} dB; latent distance {distance:.2f} ", end="")
        print(f"(generated images: 1.00 on average; farther out than {farther:.0%} of them)")
    require(not failed, f"{len(failed)} of the files cannot be read as an image: {'; '.join(failed)}")


def find_photos(names: list[str]) -> list[str]:
    """The files named, and the images in the folders named."""
    photos = []
    for name in names:
        photos += find(list_files(name), IMAGE) if os.path.isdir(name) else [name]
    require(photos, f"no images in {', '.join(names)}")
    return photos


def numbered(path: Path) -> Iterator[Path]:
    """NAME, NAME-2, NAME-3, ..."""
    yield path
    for number in itertools.count(2):
        yield path.with_stem(f"{path.stem}-{number}")


def make_parser() -> argparse.ArgumentParser:
    presets = ["presets, as changes from the defaults:"]
    for name, settings in PRESETS.items():
        changes = " ".join(f"{key}={value}" for key, value in settings.items())
        presets.append(f"  {name:9} {changes or 'the defaults above'}")
    parser = argparse.ArgumentParser(
        description="Trains a Dynamic Latent Scale GAN, or reconstructs photos with a trained one.",
        epilog="\n".join(presets),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        usage="%(prog)s [options]",
    )
    add = parser.add_argument
    add(
        "--preset",
        choices=PRESETS,
        help="settings to start from (default: named as the data set)",
    )
    add("--resume", metavar="RUN", help="go on with the run in this folder, with its own settings")
    add("--init-from", metavar="FILE", help="start from the weights of a checkpoint, with its settings")
    add("--reconstruct", metavar="PHOTO", nargs="+", help="write photos beside their reconstructions")
    add("--checkpoint", metavar="FILE", help="checkpoint or folder for --reconstruct (default: celeba64)")
    add("--debug", action="store_true", help="show the traceback of an error")
    for field in dataclasses.fields(Config):
        kind = type(field.default)
        text = field.metadata["help"]
        if field.metadata["choices"]:
            text += ": " + ", ".join(map(str, field.metadata["choices"]))
        if field.default != "":
            text += f" (default: {field.default})"
        flag = {"type": kind, "metavar": kind.__name__.upper()}
        if kind is bool:
            flag = {"action": argparse.BooleanOptionalAction}
        add("--" + field.name.replace("_", "-"), help=text, **flag)
    return parser


def configure(given: dict) -> Config:
    """What a command line means: the settings of the preset, or of --init-from, changed by the flags. Beside
    --init-from a preset gives no more than the data set and the folder's name."""
    given = dict(given)
    init_from = given.pop("init_from", None)
    preset = given.pop("preset", None)
    dataset = given.pop("dataset", None)
    if dataset is None and "data_dir" in given and not preset:
        require(not init_from, "--init-from and --data-dir also need --dataset, folder or one of the others")
        dataset = "folder"
    if dataset is not None and dataset not in LOADERS:
        known = ", ".join(LOADERS)
        require(dataset and Path(dataset).exists(), f"data set {dataset!r} is none of {known} and no folder")
        require("data_dir" not in given, f"--dataset {dataset} names a folder, and so does --data-dir")
        given["data_dir"] = dataset
        dataset = "folder"
    settings = dict(PRESETS[preset or dataset or "cartoon"])
    trained = None
    if init_from:
        trained, _ = read_checkpoint(init_from)
        dataset = dataset or (settings.get("dataset", "cartoon") if preset else trained.dataset)
        settings = dataclasses.asdict(trained)
        for name in ("data_dir", "out", "device", "threads", "keep_every", "image_channels"):
            del settings[name]
        if dataset == "folder":  # its images are read as those that the weights have seen
            settings["image_channels"] = image_channels(trained)
    if dataset:
        settings["dataset"] = dataset
    config = Config(**settings | given)
    if trained:
        colours = {1: "grey", 3: "coloured"}
        here, there = colours[image_channels(config)], colours[image_channels(trained)]
        require(here == there, f"the weights in {init_from} are for {there} images, and these are {here}")
    if not config.out and os.environ.get("RANK", "0") == "0":  # the first of torchrun's processes writes
        name = preset or config.dataset
        config.out = claim_folder(f"runs/{name}" + ("" if config.latent_scale else "-no-scale"))
    return config


def claim_folder(name: str) -> str:
    """Makes the first of NAME, NAME-2, NAME-3, ... that does not exist: two runs cannot get the same."""
    with explain(f"cannot make the folder {name}"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        for folder in numbered(Path(name)):
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                return str(folder)


def resume_config(given: dict) -> Config:
    """The settings of the run in given["resume"], with the changes that a resumed run may have."""
    folder = Path(given.pop("resume"))
    if folder.name == "checkpoint.pt":
        folder = folder.parent  # the run that the file belongs to
    config, state = read_checkpoint(folder)
    advice = f"{folder} holds trained weights, not a run: start from them by --init-from {folder}"
    require("optimizer_d" in state, advice)
    require(folder.is_dir(), f"{folder} is a copy: put it as checkpoint.pt into a new folder and resume that")
    return dataclasses.replace(config, out=str(folder), **given)


def run(config: Config, resume: bool = False, init_from: str = "") -> None:
    """Trains with a progress bar, then prints the metrics and where everything is."""
    if "TORCHELASTIC_RUN_ID" in os.environ:  # started by torchrun
        distributed.init_process_group()  # over gloo for tensors on the CPU, over NCCL for those on GPUs
    rank, _ = rank_and_world_size()
    if rank > 0:  # the first process speaks for all
        sys.stdout = open(os.devnull, "w", errors="replace")
    settings = dataclasses.asdict(config).items()
    print("settings: " + " ".join(f"{key}={value}" for key, value in settings if value != ""))
    try:
        with contextlib.closing(train(config, resume, init_from=init_from)) as lines:
            print_metrics(follow(lines, config, silent=rank > 0))
        ending = "finished"
    except KeyboardInterrupt:
        ending = "stopped before the first checkpoint"
        if Path(config.out, "checkpoint.pt").exists():
            ending = f"stopped; go on with: python {os.path.relpath(__file__)} --resume {config.out}"
    finally:
        with contextlib.suppress(OSError):
            Path(config.out).rmdir()  # claimed in vain, if it is empty
    files = sorted(file.name for file in Path(config.out).glob("*.*"))
    print(f"{ending}; in {config.out}: {', '.join(files)}")


def follow(lines: Iterator[dict], config: Config, silent: bool) -> dict:
    """Shows the progress of a training; returns the last line with an evaluation."""
    evaluation = {}
    style = {"unit": " images", "unit_scale": True, "smoothing": 0.1, "delay": 0.01}
    first = begin = None
    with tqdm(total=config.images, disable=silent, **style) as bar:
        for line in lines:
            first = first or line
            if line["images"] - first["images"] < 16 * config.batch_size:
                begin = line
            elif begin and line["images"] - begin["images"] >= 16 * config.batch_size:  # one step with R1
                seconds = line["seconds"] - begin["seconds"]
                speed = (line["images"] - begin["images"]) / max(seconds, 0.01)
                begin = None
                minutes = (config.images - line["images"]) / speed / 60
                left = f"about {minutes:.0f} minutes ({minutes / 1440:.1f} days) left"
                tqdm.write(f"{speed:.1f} images/s on this device: {left}")
            text = f"L_enc {line['l_enc_train']:.3f}, {line['active_train']} live"
            bar.set_postfix_str(text, refresh=False)
            bar.update(min(line["images"], config.images) - bar.n)
            if "l_enc" in line:
                evaluation = line
    return evaluation


def print_metrics(line: dict) -> None:
    for name, value in line.items():
        if isinstance(value, (int, float)):
            number = format(value, "," if isinstance(value, int) else ".4f")
            family = name.replace("_generated", "_*").replace("_test", "_*")
            print(f"{name:20}{number:>12}   {METRICS[name if name in METRICS else family]}")


def check_modes(given: dict) -> None:
    """UserError on flags that do not go together."""
    modes = {
        "resume": {"resume", "data_dir", *RESUME_MAY_CHANGE},
        "reconstruct": {"reconstruct", "checkpoint", "out"},
    }
    for mode in modes.keys() & given.keys():
        others = ", ".join(f"--{flag.replace('_', '-')}" for flag in sorted(given.keys() - modes[mode]))
        require(not others, f"--{mode} keeps the settings of its checkpoint: leave out {others}")
    together = "checkpoint" not in given or "reconstruct" in given
    require(together, "--checkpoint FILE goes with --reconstruct PHOTO (to train on, use --resume RUN)")


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, or 2 after a user's mistake, printed as one line."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal's, which may not know all letters of a file name
            stream.reconfigure(errors="backslashreplace")
    given = vars(make_parser().parse_args(arguments))
    debug = given.pop("debug", False)
    try:
        check_modes(given)
        if "reconstruct" in given:
            reconstruct_photos(given["reconstruct"], given.get("checkpoint", ""), given.get("out", "."))
        elif "resume" in given:
            run(resume_config(given), resume=True)
        else:
            run(configure(given), init_from=given.get("init_from", ""))
    except (UserError, OSError, MemoryError, torch.OutOfMemoryError) as error:
        if debug:
            raise
        print(f"dlsgan: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    os.environ["MPLBACKEND"] = "agg"  # that of a notebook, inherited by `!python dlsgan.py`, may be missing
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # between two steps, too, what is done is saved
    sys.exit(main())
