# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "numpy", "matplotlib", "tqdm"]
# ///
"""Dynamic Latent Scale GAN in one file: a GAN whose discriminator inverts its generator.

Paper: Jeongik Cho, "Dynamic Latent Scale GAN" (2021), viXra:2109.0028. "Line n" below is line n of its Algorithm 1.

A generator is free to ignore part of its latent vector, and what it ignores no encoder can recover. DLSGAN measures
for each dimension how much the encoder recovers (the variance v of its predictions) and scales the latent vector by
that. Dimensions that are not recovered fade away, the others grow, until nothing is lost:

    z ~ N(0, I);  s = sqrt(d v / sum(v))                                   lines 1, 2
    fake = G(z * s);  logits_fake, z_hat = D(fake)                         line 3
    L_enc = mean((z - z_hat)^2 * s^2)                                      line 4
    logits_real, _ = D(x)                                                  line 5
    L_D = softplus(-logits_real) + softplus(logits_fake) + lambda L_enc    line 6   (+ R1)
    L_G = softplus(-logits_fake)                         + lambda L_enc    line 7
    v  <- moving average of mean_batch(z_hat^2)                            line 8
    encode(x) = z_hat;   decode(z) = G(z * s);   reconstruct(x) = G(z_hat * s)

    x         image                           [B, C, H, W]  in [-1, 1], H = W
    z, z_hat  latent vector, its prediction   [B, d]        z is i.i.d. N(0, 1); z_hat is the second output of D
    logits    adversarial value               [B]           first output of D
    v, s      latent variance trace, scale    [d]           v = E[z_hat^2], in [0, 1] for a good encoder; mean(s^2) = 1
    z_scaled  z * s, the input of G           [B, d]        w, also [B, d], is what its mapping network makes of it

Changes from the paper, and choices where it is silent:
  * One fake batch serves L_D and L_G, as in Algorithm 1. No gradient flows through s or v.
  * R1 is taken every 16th step, 16 times as strong (StyleGAN2's lazy regularisation), with StyleGAN2's factor
    gamma / 2. The author's code weighs it 10 at every step, which is gamma = 20 here.
  * v starts at ones, since the first outputs of an untrained head say nothing. The celeba preset averages the last 512
    batches as the paper does ("sma"), the laptop presets exponentially ("ema").
  * Laptop presets, for few steps: a larger lambda, less R1, two mapping layers, a latent head that starts at a tenth.
  * The mapping network does not normalise its input: the length of z * s is information.
  * No per-pixel noise (nobody could recover it), no minibatch-stddev (an image must encode to the same latent vector
    in any batch), no style mixing, no path length term. What is shown or measured uses averaged weights.
  * d = 512, Adam (1e-3, betas 0 and 0.99; mapping network 1e-5), x0.98 an epoch, 50 epochs: the author's 2021 code.

    python dlsgan.py                         cartoon faces drawn by this file, 32x32: 5 minutes on two CPU cores
    python dlsgan.py --dataset mnist         digits, 32x32: 16 minutes or less on two CPU cores
    python dlsgan.py --dataset celeba        the paper's CelebA-128: needs a GPU; prints its time after some steps
"""

import argparse
import contextlib
import copy
import ctypes
import dataclasses
import functools
import gzip
import hashlib
import io
import json
import math
import operator
import os
import re
import signal
import sys
import tarfile
import tempfile
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, distributed, nn
from tqdm import tqdm

# ---- PART I   THE PAPER ----------------------------------------------------------------------------------------------
# Nothing here knows what G and D look like: G(z_scaled) -> x and D(x) -> (logits, z_hat) may be toys of two layers.

class LatentScale(nn.Module):
    """The latent variance trace v and the latent scale s = sqrt(d v / sum(v)) (lines 2 and 8).
    rule     "ema": exponential moving average with decay 1 - 1/window; "sma" (paper): mean of the last `window` batches
    enabled  False keeps s = 1, the paper's comparison without latent scale; v is measured all the same
    """
    def __init__(self, latent_dim: int, rule: str = "ema", window: int = 100, enabled: bool = True):
        super().__init__()
        self.rule, self.window, self.enabled = rule, window, enabled
        self.register_buffer("v", torch.ones(latent_dim))
        self.register_buffer("past", torch.ones(window if rule == "sma" else 0, latent_dim))
    @torch.no_grad()
    def update(self, z_hat: Tensor) -> None:
        """Line 8. The variance of z_hat [B, d] is taken around 0, the mean of an optimal encoder's predictions."""
        batch_v = average_over_processes(z_hat.to(self.v.dtype).square().mean(0))  # [B, d] -> [d]
        if self.rule == "ema":
            self.v.lerp_(batch_v, 1 / self.window)
        else:
            self.past = torch.cat((self.past[1:], batch_v[None]))  # [window, d], oldest first
            self.v.copy_(self.past.mean(0))
    def scale(self) -> Tensor:
        """s [d], line 2: d units of power, shared in proportion to v. Carries no gradient."""
        v = self.v.detach()
        return (len(v) * v / v.sum()).sqrt() if self.enabled else torch.ones_like(v)
    def measures(self) -> dict[str, Tensor]:
        """entropy: of z * s in nats, sum_i log(s_i sqrt(2 pi e)), at most 1.4189 d, reached at s = 1; active: number of
        dimensions with v_i > 1/2; effective: (sum s^2)^2 / sum s^4, which is k when k dimensions share all the power."""
        s = self.scale()
        entropy = (s.clamp(min=1e-12).log() + 0.5 * math.log(2 * math.pi * math.e)).sum()
        return {"entropy": entropy, "active": (self.v > 0.5).sum(), "effective": s.square().sum() ** 2 / s.pow(4).sum()}

# f_r^d, f_g^d and f_g of lines 6 and 7: functions from logits a [B] to losses [B]. softplus(-a) = -log sigmoid(a).
LOSSES = {
    "nsgan": (lambda a: F.softplus(-a), F.softplus, lambda a: F.softplus(-a)),
    "original": (lambda a: F.softplus(-a), F.softplus, lambda a: -F.softplus(a)),
    "lsgan": (lambda a: (a - 1).square() / 2, lambda a: a.square() / 2, lambda a: (a - 1).square() / 2),
    "wgan-gp": (lambda a: -a, lambda a: a, lambda a: -a),  # with its own gradient penalty instead of R1
}

def prior(n: int, latent_scale: LatentScale, rng: torch.Generator) -> Tensor:
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
    """mean_batch (|d logits / d x| - 1)^2 between real and fake (WGAN-GP, Gulrajani et al. 2017); mix [B] in [0, 1]."""
    x = fake.detach().lerp(real, mix.to(real.dtype).view(-1, *[1] * (real.dim() - 1))).requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(x)[0].sum(), x, create_graph=True)
    return (gradient.flatten(1).norm(dim=1) - 1).square().mean()

class DLSGAN(nn.Module):
    """A generator, its discriminator-encoder and their latent scale. Images are float32 [B, C, H, W] in [-1, 1]; latent
    vectors are [B, d] and not yet scaled: those of N(0, I) decode to samples."""
    def __init__(self, generator: nn.Module, discriminator: nn.Module, latent_scale: LatentScale):
        super().__init__()
        self.generator, self.discriminator, self.latent_scale = generator, discriminator, latent_scale
    def encode(self, x: Tensor) -> Tensor:
        return self.discriminator(x)[1]
    def decode(self, z: Tensor) -> Tensor:
        return self.generator(z * self.latent_scale.scale())
    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))
    def sample(self, n: int, seed: int = 0) -> Tensor:
        return self.decode(prior(n, self.latent_scale, torch.Generator().manual_seed(seed)))

def make_optimizers(model: DLSGAN, lr: float) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Adam for G and for D; the fused one where it exists."""
    networks, fused = (model.generator, model.discriminator), model.latent_scale.v.device.type in ("cpu", "cuda")
    return tuple(torch.optim.Adam(network.parameters(), lr, (0.0, 0.99), fused=fused) for network in networks)

@torch.no_grad()
def average_weights(average: nn.Module, module: nn.Module, step: int, most: float = 0.999) -> None:
    """Moving average of parameters after step 0, 1, ...: the decay (1 + step) / (10 + step) rises to `most`, so that the
    first weights are forgotten soon."""
    targets, weights = ([p.detach() for p in m.parameters()] for m in (average, module))
    torch._foreach_lerp_(targets, weights, 1 - min(most, (1 + step) / (10 + step)))

def decay_learning_rate(optimizers: Iterable[torch.optim.Optimizer], lr: float, final: float, progress: float) -> float:
    """Sets and returns lr * final^progress: from lr at progress 0 exponentially down to lr * final at progress 1."""
    lr = lr * final**progress
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
    return lr

def train_step(
    model: DLSGAN,
    optimizers: Iterable[torch.optim.Optimizer],  # of G and of D
    real: Tensor,  # [B, ...] real images
    rng: torch.Generator,  # of the CPU
    loss: str = "nsgan",
    encoder_weight: float = 1.0,  # lambda
    penalty_weight: float = 0.0,  # of R1 (gamma / 2 times the interval) or of WGAN-GP; 0 leaves it out of this step
    bf16: bool = False,  # bfloat16 autocast, for GPUs; penalty, losses and v stay in float32
) -> dict[str, Tensor]:
    """Algorithm 1 and one step of both optimisers. Returns scalars that stay on the device (explained in METRICS)."""
    real_loss, fake_loss, generator_loss = LOSSES[loss]
    generator, discriminator, weights_d = model.generator, model.discriminator, list(model.discriminator.parameters())
    precision = torch.autocast(real.device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()

    rank, count = processes()  # 0, 1 unless torchrun started several: then real and z are this process's share of a batch
    z, s = prior(count * len(real), model.latent_scale, rng)[rank::count], model.latent_scale.scale()  # lines 1, 2
    with precision:
        fake = generator(z * s)
        image = fake.detach().requires_grad_()  # a leaf: D's gradients to the image and to its weights come apart here
        logits_fake, z_hat = (out.to(real.dtype) for out in discriminator(image))  # line 3
    l_enc = encoder_loss(z, z_hat, s)  # line 4
    loss_g = generator_loss(logits_fake).mean() + encoder_weight * l_enc  # line 7
    loss_d_fake = fake_loss(logits_fake).mean() + encoder_weight * l_enc  # line 6, generated images
    (gradient,) = torch.autograd.grad(loss_g, image, retain_graph=True)  # back through D, leaving its weights alone
    fake.backward(gradient)  # and on through G
    loss_d_fake.backward(inputs=weights_d)

    r1 = bool(penalty_weight) and loss != "wgan-gp"
    with contextlib.nullcontext() if r1 else precision:
        logits_real = discriminator(real := real.detach().requires_grad_(r1))[0].to(real.dtype)  # line 5
    loss_d_real = real_loss(logits_real).mean()  # line 6, real images
    penalty = torch.zeros_like(loss_d_real)
    if r1:
        penalty = penalty_weight * r1_penalty(logits_real, real)
    elif penalty_weight:
        mix = to_device(torch.rand(count * len(real), generator=rng)[rank::count], real.device)
        penalty = penalty_weight * gradient_penalty(discriminator, real, fake, mix)
    (loss_d_real + penalty).backward(inputs=weights_d)

    average_over_processes(*(p.grad for p in model.parameters()))
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    model.latent_scale.update(z_hat.detach())  # line 8
    scalars = {"loss_d": loss_d_fake + loss_d_real, "loss_g": loss_g, "l_enc_train": l_enc, "penalty": penalty}
    scalars |= {"logits_real": logits_real.mean(), "logits_fake": logits_fake.mean()}
    scalars["z_hat_mean"] = average_over_processes(z_hat.detach().mean(0)).abs().mean()
    return {name: average_over_processes(value.detach()) for name, value in scalars.items()}

# ---- PART II   THE NETWORKS ------------------------------------------------------------------------------------------
# StyleGAN2 (Karras et al. 2020) without the parts that lose information. Weights start as N(0, 1) and are multiplied by
# their gain 1/sqrt(fan_in) when used ("equalised learning rate"). Each leaky ReLU has a gain of sqrt(2); since
# leaky_relu(a x) = a leaky_relu(x) for a > 0, it is moved into the weights before it, where it costs nothing.
SQRT2 = math.sqrt(2)

def channels_at(resolution: int, width: float) -> int:
    """Feature maps at a resolution: 512 up to 16x16, then 256, 128, 64 at 32, 64, 128; times width, at least 8."""
    return max(8, round(width * min(512, 8192 // resolution)))

def leaky_relu(x: Tensor) -> Tensor:
    """In place, which saves a pass over memory: no layer here needs the value before it for its gradient."""
    return F.leaky_relu_(x, 0.2)

class EqualLinear(nn.Module):
    """[B, n_in] -> [B, n_out]. lr_multiplier: how fast Adam moves the layer; scale multiplies its output."""
    def __init__(self, n_in: int, n_out: int, bias: float = 0.0, lr_multiplier: float = 1.0, scale: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((n_out,), bias / lr_multiplier))
        self.weight_gain, self.bias_gain = scale * lr_multiplier / math.sqrt(n_in), scale * lr_multiplier
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.weight_gain, self.bias * self.bias_gain)

class EqualConv2d(nn.Module):
    """[B, c_in, H, W] -> [B, c_out, H', W']; scale multiplies the output."""
    def __init__(self, c_in: int, c_out: int, size: int, stride: int = 1, padding: int = 0, scale: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_out, c_in, size, size))
        self.bias = nn.Parameter(torch.zeros(c_out))
        self.stride, self.padding, self.scale, self.gain = stride, padding, scale, scale / math.sqrt(c_in * size**2)
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.gain, self.bias * self.scale, self.stride, self.padding)

class LowPass(nn.Module):
    """StyleGAN2's [1, 3, 3, 1] filter against aliasing: before down-sampling (total 1), after up-sampling (total 4)."""
    def __init__(self, padding: int, stride: int = 1, total: float = 1.0):
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("kernel", total * torch.outer(taps, taps)[None, None] / 64, persistent=False)
        self.padding, self.stride = padding, stride
    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel.to(x.dtype).expand(x.shape[1], 1, 4, 4)  # the same for each channel
        return F.conv2d(x, kernel, stride=self.stride, padding=self.padding, groups=x.shape[1])

class MappingNetwork(nn.ModuleList):
    """z_scaled [B, d] -> w [B, d], without StyleGAN2's normalisation of the input."""
    def __init__(self, latent_dim: int, layers: int):
        super().__init__(EqualLinear(latent_dim, latent_dim, lr_multiplier=0.01, scale=SQRT2) for _ in range(layers))
    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = leaky_relu(layer(x))
        return x

class ModulatedConv2d(nn.Module):
    """A 3x3 convolution with its own weight for each image, style[b, i] * weight[o, i] * demodulation[b, o], and a
    leaky ReLU: [B, c_in, H, W], w [B, d] -> [B, c_out, H, W], or [B, c_out, 2 H, 2 W] with up=True.
    Scaling input by style and output by demodulation is the same function, with one weight for the whole batch.
    Demodulation brings the output to unit variance, whatever the gain of the weight, which is therefore left out."""
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
        pixels = x.permute(0, 2, 3, 1).flatten(1, 2)  # [B, c_in, H, W] -> [B, H*W, c_in], a view in channels_last
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
    """z_scaled [B, d] -> image [B, C, resolution, resolution]."""
    def __init__(self, resolution: int, image_channels: int, latent_dim: int, mapping_layers: int, width: float):
        super().__init__()
        c = channels_at(4, width)
        self.mapping = MappingNetwork(latent_dim, mapping_layers)
        self.constant = nn.Parameter(torch.randn(1, c, 4, 4))
        self.conv = ModulatedConv2d(c, c, latent_dim)
        self.to_rgb = ToRGB(c, image_channels, latent_dim)
        self.blocks = nn.ModuleList(
            SynthesisBlock(channels_at(r // 2, width), channels_at(r, width), image_channels, latent_dim)
            for r in [2**i for i in range(3, resolution.bit_length())]  # 8, 16, ..., resolution
        )
    def forward(self, z_scaled: Tensor) -> Tensor:
        w = self.mapping(z_scaled)
        x = self.constant.expand(len(w), -1, -1, -1).contiguous(memory_format=torch.channels_last)
        x = self.conv(x, w)  # [B, c, 4, 4]
        image = self.to_rgb(x, w)
        for block in self.blocks:
            x, image = block(x, image, w)
        return image.to(self.constant.dtype)

class DiscriminatorBlock(nn.Module):
    """Residual block that halves the resolution: [B, c_in, H, W] -> [B, c_out, H/2, W/2]."""
    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv1 = EqualConv2d(c_in, c_in, 3, padding=1, scale=SQRT2)
        self.low_pass = LowPass(padding=2)
        self.conv2 = EqualConv2d(c_in, c_out, 3, stride=2)  # gain sqrt(2), over sqrt(2) for the sum of two branches
        self.skip_down = LowPass(padding=1, stride=2)
        self.skip = EqualConv2d(c_in, c_out, 1, scale=1 / SQRT2)
    def forward(self, x: Tensor) -> Tensor:
        skip = self.skip(self.skip_down(x))  # thinned out before the 1x1 convolution, not after
        x = leaky_relu(self.conv1(x))
        x = leaky_relu(self.conv2(self.low_pass(x)))
        return skip.add_(x)

class Discriminator(nn.Module):
    """image [B, C, resolution, resolution] -> logits [B], z_hat [B, d]: the encoder shares all but the last layer."""
    def __init__(self, resolution: int, image_channels: int, latent_dim: int, width: float, head_scale: float = 1.0):
        super().__init__()
        c = channels_at(4, width)
        self.from_rgb = EqualConv2d(image_channels, channels_at(resolution, width), 1, scale=SQRT2)
        sizes = [2**i for i in range(resolution.bit_length() - 1, 2, -1)]  # resolution, ..., 16, 8
        self.blocks = nn.ModuleList(DiscriminatorBlock(channels_at(r, width), channels_at(r // 2, width)) for r in sizes)
        self.conv = EqualConv2d(c, c, 3, padding=1, scale=SQRT2)
        self.linear = EqualLinear(c * 16, c, scale=SQRT2)
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

# ---- PART III   PLUMBING ---------------------------------------------------------------------------------------------
class UserError(Exception):
    """A mistake the user can mend: the command line prints it as one line and exits with 2."""

@contextlib.contextmanager
def explain(what: str) -> Iterator[None]:
    """Turns an error inside into a UserError of one line that begins with `what`."""
    try:
        yield
    except Exception as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{what}: {reason[:200]}") from None

def require(condition: object, message: str) -> None:
    """Raises a UserError unless the condition holds."""
    if not condition:
        raise UserError(message)

def processes() -> tuple[int, int]:
    """The rank of this process and the number of all that torchrun started; (0, 1) without torchrun."""
    started = distributed.is_available() and distributed.is_initialized()
    return (distributed.get_rank(), distributed.get_world_size()) if started else (0, 1)

def average_over_processes(*tensors: Tensor) -> Tensor:
    """Overwrites the tensors by their means over all processes, which must all come here; returns the first tensor."""
    if (count := processes()[1]) > 1:
        together = torch.cat([x.flatten() for x in tensors]) / count
        with explain("another process of this training has ended"):
            distributed.all_reduce(together)
        for x, mean in zip(tensors, together.split([x.numel() for x in tensors]), strict=True):
            x.copy_(mean.view(x.shape))
    return tensors[0]

def option(default, text: str, least: float = 1e-12, most: int = 2**31 - 1):
    return dataclasses.field(default=default, metadata={"help": text, "range": (least, most)})

@dataclasses.dataclass
class Config:
    """All settings of a run. The defaults are the cartoon preset; each field is also a flag of the command line."""
    dataset: str = option("cartoon", "cartoon (drawn by this program), mnist, celeba, or a folder of images")
    data_dir: str = option("", "where the data is (default: data/DATASET); alone, it means a folder of images")
    resolution: int = option(32, "width and height of the images, a power of two from 8")
    width: float = option(0.125, "factor on feature maps (1: 512,512,512,256,128,64 at 4,8,16,32,64,128 pixels)", most=16)
    latent_dim: int = option(32, "dimensions d of the latent vector", most=2**14)
    mapping_layers: int = option(2, "layers of the mapping network", most=64)
    batch_size: int = option(8, "real images a step, of all processes together")
    images: int = option(32_000, "budget: real images seen in training")
    lr: float = option(3e-3, "learning rate of Adam (the mapping network moves at 0.01 of it)")
    lr_final: float = option(0.5, "the learning rate falls exponentially to this factor at the end of the budget")
    loss: str = option("nsgan", f"adversarial loss: {', '.join(LOSSES)}")
    encoder_weight: float = option(10.0, "lambda, the weight of L_enc in both losses", 0)
    r1_gamma: float = option(2.0, "gamma: gamma / 2 weighs R1 (or the penalty of wgan-gp)", 0)
    latent_scale: bool = option(True, "scale the latent vector; without it, s = 1: the paper's comparison")
    scale_rule: str = option("ema", "moving average behind v: ema or sma")
    scale_window: int = option(400, "its memory in steps", most=2**20)
    head_scale: float = option(0.1, "initial scale of the latent head")
    flip: bool = option(False, "mirror half of the training images")
    framing: str = option("auto", "how images become squares: crop, pad, squash, or auto: squash for celeba, else crop")
    image_channels: int = option(0, "1, 3, or 0: 1 for mnist and folders of grey images, else 3", 0, 3)
    seed: int = option(0, "seed of weights, latent vectors and data order", 0)
    device: str = option("auto", "cuda, mps, cpu, or auto: the first of these that is there")
    threads: int = option(0, "CPU threads (default: PyTorch's choice)", 0, 1024)
    out: str = option("", "folder of the run (default: runs/PRESET, numbered when taken)")
    def check(self) -> "Config":
        """Raises UserError on the first setting that cannot work; fills in the default of data_dir. Returns itself."""
        sets = {"dataset": LOADERS, "loss": LOSSES, "scale_rule": ["ema", "sma"], "resolution": [2**i for i in range(3, 11)],
                "framing": ["auto", *FRAMINGS], "image_channels": [0, 1, 3]}
        for field in dataclasses.fields(self):
            value, kind, (least, most) = getattr(self, field.name), type(field.default), field.metadata["range"]
            flag, choices = "--" + field.name.replace("_", "-"), sets.get(field.name, [value])
            require(isinstance(value, (int, float) if kind is float else kind), f"{flag} {value} is no {kind.__name__}")
            require(kind not in (int, float) or least <= value <= most, f"{flag} {value} is out of range")
            require(value in choices, f"{flag} {value} is not one of {', '.join(map(str, choices))}")
        self.data_dir = self.data_dir or f"data/{self.dataset}"
        return self

PRESETS = {
    "cartoon": {},
    "mnist": {"dataset": "mnist", "batch_size": 16, "encoder_weight": 3.0, "r1_gamma": 5.0, "lr": 2e-3, "images": 84_000},
    "celeba64": {"dataset": "celeba", "resolution": 64, "latent_dim": 64, "batch_size": 16, "flip": True, "images": 400_000,
                 "lr": 2e-3, "lr_final": 0.1, "encoder_weight": 8.0, "r1_gamma": 1.0, "scale_window": 1500},
    "celeba": {"dataset": "celeba", "resolution": 128, "width": 1.0, "latent_dim": 512, "mapping_layers": 8,
               "batch_size": 32, "images": 50 * 182_637, "lr": 1e-3, "lr_final": round(0.98**50, 4), "encoder_weight": 1.0,
               "r1_gamma": 20.0, "scale_rule": "sma", "scale_window": 512, "head_scale": 1.0}}
PRESETS["folder"] = {**PRESETS["celeba64"], "dataset": "folder"}

def build(config: Config) -> DLSGAN:
    """Networks and latent scale of a configuration, on the CPU, with fresh weights from torch's global seed."""
    c, channels = config, image_channels(config)
    return DLSGAN(Generator(c.resolution, channels, c.latent_dim, c.mapping_layers, c.width),
                  Discriminator(c.resolution, channels, c.latent_dim, c.width, c.head_scale),
                  LatentScale(c.latent_dim, c.scale_rule, c.scale_window, c.latent_scale))

def pick_device(name: str) -> torch.device:
    """The named device, or the best there is."""
    here = [d for d in ("cuda", "mps", "cpu") if d == "cpu" or getattr(torch, d).is_available()]
    with explain(f"device {name!r} is not available: choose {', '.join(here)}"):
        device = torch.device(here[0] if name == "auto" else name)
        if device == torch.device("cuda"):  # each process of torchrun takes its own GPU
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))
        torch.ones(1, device=device).item()  # fails on the cuda:7 of a machine with four
        return device

# Data. Every loader returns (train, test), uint8 arrays [N, C, H, W]; large ones are memory maps on disk.
CARTOON_FACTORS = ("x", "y", "size", "tilt", "smile", "eye opening", "skin tone", "background tone")

def cartoon_faces(n: int, resolution: int, seed: int = 0, factors: int = 8, values: Tensor | None = None):
    """Faces drawn from independent factors u_k ~ N(0, 1): images [n, 3, H, W] in [-1, 1] and factors [n, 8]. Shapes are
    signed distances with an edge one pixel wide. Each factor runs through erf(u / sqrt(2)), uniform in (-1, 1). factors:
    how many of CARTOON_FACTORS vary (the others are 0); values: draw these factors [n, 8] instead of random ones."""
    if values is None:
        values = torch.randn(n, 8, generator=torch.Generator().manual_seed(seed)) * (torch.arange(8) < factors)
    shift_x, shift_y, size, tilt, smile, eyes, skin, ground = torch.erf(values / SQRT2).T[..., None, None]  # [n, 1, 1]
    axis = (torch.arange(resolution) + 0.5) * 2 / resolution - 1  # pixel centres from -1 to 1
    size, tilt, bend = 0.78 * (1 + 0.15 * size), 0.3 * tilt, 0.9 * smile  # bend: the mouth is a parabola
    dx, dy = axis[None, None, :] - 0.15 * shift_x, axis[None, :, None] - 0.1 * shift_y
    x = (tilt.cos() * dx + tilt.sin() * dy) / size  # the face's own coordinates, y downwards: [n, H, W]
    y = (tilt.cos() * dy - tilt.sin() * dx) / size
    def paint(distance: Tensor, *colours: tuple, mix: Tensor | float = 0.0) -> Tensor:
        first, last = (torch.tensor(c)[:, None, None] for c in (colours[0], colours[-1]))
        colour = first + (last - first) * mix  # [n or 1, 3, 1, 1]
        inside = (0.5 - distance * size * resolution / 2).clamp(0, 1)[:, None]  # where distance < 0: [n, 1, H, W]
        return image + (colour - image) * inside
    def ellipse(x0: float, y0: float, a, b) -> Tensor:  # first-order distance to the curve, exact on it
        u, v = (x - x0) / a, (y - y0) / b
        length = (u * u + v * v).sqrt()
        return (length - 1) * length / ((u / a).square() + (v / b).square()).sqrt().clamp(min=1e-6)
    image = torch.zeros(1, 3, 1, 1)
    image = paint(torch.full_like(x, -9.0), (0.08, 0.16, 0.42), (0.68, 0.93, 0.86), mix=(1 + ground)[:, None] / 2)
    image = paint(ellipse(0, -0.08, 0.92, 1.0), (0.18, 0.10, 0.06))  # hair
    image = paint(ellipse(0, 0.12, 0.8, 0.88), (0.36, 0.21, 0.13), (1.0, 0.86, 0.72), mix=(1 + skin)[:, None] / 2)
    for side in (-0.33, 0.33):
        eye = ellipse(side, -0.1, 0.26, 0.17 + 0.13 * eyes)
        image = paint(eye, (1.0, 1.0, 1.0))
        image = paint(torch.maximum(eye, ellipse(side, -0.1, 0.13, 0.15)), (0.05, 0.05, 0.1))  # pupil
    mouth = (y - 0.52 + bend * (x * x - 0.07)).abs() / (1 + (2 * bend * x).square()).sqrt() - 0.07
    return 2 * paint(torch.maximum(mouth, x.abs() - 0.4), (0.65, 0.1, 0.15)) - 1, values

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
        if path.lower().endswith(".zip"):
            file = open(path, "rb") if os.path.isfile(path) else io.BytesIO(read_bytes(path))
            archive = zipfile.ZipFile(file)
            members = {entry.filename: functools.partial(archive.read, entry) for entry in archive.infolist()}
        else:
            data = read_bytes(path)
            members = {}
            for entry in tarfile.open(fileobj=io.BytesIO(data)):
                span = slice(entry.offset_data, entry.offset_data + entry.size)
                if entry.isfile():
                    members[entry.name] = functools.partial(operator.getitem, data, span)
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


def read_table(path: str, values: set[int]) -> dict[str, list]:
    """CelebA's .txt or Kaggle's .csv: number of rows, names of columns (both optional), then a file name and
    numbers out of `values` for each image -> {name without ending: numbers; "image_id": names of columns}."""
    with explain(f"{path} is not a CelebA table"):
        text = read_bytes(path).decode("utf-8-sig")
        lines = text.translate(str.maketrans(',;"', "   ")).splitlines()
        rows = [line.split() for line in lines if line.strip()]
        announced = int(rows.pop(0)[0]) if rows and len(rows[0]) == 1 else None
        header = rows.pop(0) if rows and "." not in rows[0][0] else ["image_id", "partition"]
        first = header[0]
        require(first == "image_id" or "," not in text, f"its first column is {first} instead of image_id")
        table = {"image_id": [name for name in header if name != "image_id"]}
        meaning = {str(value): value for value in values}
        for name, *numbers in rows:
            if len(numbers) != len(table["image_id"]) or not meaning.keys() >= set(numbers):
                raise UserError(f"{name} needs {len(table['image_id'])} values of {sorted(values)}")
            table[os.path.splitext(name)[0]] = [meaning[number] for number in numbers]
        count = len(rows) if announced is None else announced
        complete = len(table) - 1 == len(rows) == count > 0
        require(complete, f"it announces {count} rows; {len(rows)} rows name {len(table) - 1} files")
        return table


def find_table(name: str, values: set[int], files: list[str], root: str) -> tuple[str, dict[str, list]]:
    """Path and content of a CelebA table, among the files or, as root may hold images alone, beside it."""
    pattern = name + "[^/]*$"  # list_eval_partition (1).txt, list_eval_partition.txt.txt
    paths = find(files, pattern)
    for folder in list(Path(root).absolute().parents)[:2]:
        beside = [path for place in ("", "Eval/", "Anno/") for path in folder.glob(f"{place}list*")]
        paths = paths or find([path.as_posix() for path in beside], pattern)
    tables = [read_table(path, values) for path in paths]
    for path, table in zip(paths, tables, strict=True):
        require(table == tables[0], f"{paths[0]} and {path} differ: remove one")
    return (paths[0], tables[0]) if paths else ("", {})


def find_faces(files: list[str], root: str) -> dict[str, str]:
    """CelebA's images among the files, {name without ending: path}, sorted. Aligned images come before those
    "in the wild", unpacked ones before those in archives. Two more of one name are an error."""
    kinds = [rf"{folder}.*/\d{{6}}" for folder in ("img.?align.?celeba(?!.?png)", "align", "")]
    paths = find_images(files, kinds, "CelebA images (000001.jpg, ...)")
    require(paths, f"no CelebA images (000001.jpg, ...) in {root}. {CELEBA_TREES}")
    faces = {}
    for path in paths:
        name = os.path.splitext(os.path.basename(path))[0]
        if name in faces:
            raise UserError(f"there are {faces[name]} and {path}: name one of the folders with --data-dir")
        faces[name] = path
    return faces


def find_celeba(config: Config) -> tuple[list[str], list[str], dict[str, list]]:
    """CelebA's images for training, those for testing, and the table of attributes, {} if there is none."""
    files = list_files(config.data_dir)
    faces = find_faces(files, config.data_dir)
    partition_from, partition = find_table("list.eval.partition", {0, 1, 2}, files, config.data_dir)
    attributes_from, attributes = find_table("list.attr.celeba", {-1, 1}, files, config.data_dir)
    folders = sorted({os.path.dirname(path) for path in faces.values()})
    tables = f"partition from {partition_from or 'no file'}, attributes from {attributes_from or 'no file'}"
    print(f"celeba: {len(faces):,} images in {', '.join(folders[:4])}, {tables}")
    if partition:
        columns = partition.pop("image_id")
        require(columns == ["partition"], f"{partition_from} gives {', '.join(columns)} instead of partition")
        listed = {name: path for name, path in faces.items() if name in partition}
        counts = f"{len(listed):,} of {len(partition):,} listed images are present"
        print(f"celeba: {counts}; {len(faces) - len(listed):,} not listed")
        require(listed, f"{partition_from} lists none of the {len(faces):,} images, such as {min(faces)}")
        faces = listed
    unknown = [name for name in faces if attributes and name not in attributes]
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
            image = Image.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype(np.uint8))
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
    held_out = min(len(images), max(2, int(readable[len(train) :].sum())))
    count = len(images) - held_out
    print(f"{config.dataset}: {len(images):,} images: {count:,} to train on, {held_out:,} held out")
    return images[:count], images[count:]


def cache_folders(data_dir: str) -> list[Path]:
    """Where decoded images may be kept: the user's cache, else beside the data, else with temporary files."""
    beside = Path(data_dir) if Path(data_dir).is_dir() else Path(data_dir).parent
    folders = [beside / ".dlsgan-cache"]
    with contextlib.suppress(RuntimeError):  # a user without a home
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folders.insert(0, Path(home, "dlsgan"))
    with contextlib.suppress(OSError):  # no folder for temporary files
        user = os.getuid() if hasattr(os, "getuid") else 0
        folders.append(Path(tempfile.gettempdir(), f"dlsgan-{user}"))
    return folders


def is_writable(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        return True
    return False


def last_change(path: str) -> str:
    """Size and time of change of a file, or of the archive around it; "" for a broken link."""
    outside = re.match(f".*?{ARCHIVE}(?=/)|.*", path, re.DOTALL)[0]
    with contextlib.suppress(OSError):
        status = os.stat(outside)
        return f"{status.st_size} {status.st_mtime_ns}"
    return ""


def read_or_skip(path: str, config: Config) -> bytes:
    """The pixels of an image, or none, which is said, if it cannot be read."""
    try:
        return read_image(path, config).tobytes()
    except Exception as error:  # Pillow raises many kinds on damaged files
        tqdm.write(f"skipped {path!r}: {' '.join(str(error).split())}")
        return b""


def write_cache(path: Path, files: list[str], config: Config) -> None:
    """A byte for each file, 1 if it is a readable image, then the pixels of those that are."""
    for other in path.parent.glob("*.tmp"):  # of a killed decoding: a living one writes every few seconds
        if time.time() - other.stat().st_mtime > 600:
            other.unlink(missing_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    read = functools.partial(read_or_skip, config=config)
    what = f"cannot write the decoded images to {path.parent}"
    readable = bytearray(len(files))
    try:
        with explain(what), ThreadPoolExecutor() as pool, open(temporary, "wb") as file:
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


def is_whole(path: Path, files: int, pixels: int) -> bool:
    """Whether write_cache has written the file and nobody has cut it short."""
    here = os.path.isfile(path)
    return here and path.stat().st_size == files + pixels * np.fromfile(path, np.uint8, files).sum()


def cache_images(files: list[str], config: Config) -> tuple[np.ndarray, np.ndarray]:
    """The images as a memory map [N, C, H, W] of a file, which is written once per list of files and framing,
    and whether each file could be read, bool [files]."""
    shape = (image_channels(config), config.resolution, config.resolution)
    key = hashlib.sha256(f"{shape} {config.framing}".encode())
    for file in files:
        key.update(os.fsencode(f"{os.path.abspath(file)} {last_change(file)}\n"))
    name = f"{config.dataset}-{config.resolution}-{key.hexdigest()[:16]}.u8"
    paths = [folder / name for folder in cache_folders(config.data_dir)]
    path = next((path for path in paths if is_whole(path, len(files), math.prod(shape))), None)
    if path is None:
        path = next((path for path in paths if is_writable(path.parent)), None)
        tried = ", ".join(str(path.parent) for path in paths)
        require(path, f"none of {tried} can be written: name a folder for decoded images as XDG_CACHE_HOME")
        print(f"decoded images are kept in {path.parent}")
        write_cache(path, files, config)
    open_archive.cache_clear()  # frees memory
    readable = np.fromfile(path, np.bool_, len(files))
    shape = (int(readable.sum()), *shape)
    return np.memmap(path, np.uint8, "r", offset=len(files), shape=shape), readable


LOADERS = {"cartoon": load_cartoon, "mnist": load_mnist, "celeba": load_celeba, "folder": load_folder}

def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] -> 0..255, clipped and rounded."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)

def to_device(x: Tensor, device: torch.device | str) -> Tensor:
    """Copies to CUDA without waiting for what the GPU still has to do (on MPS, non_blocking can corrupt data)."""
    return x.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else x.to(device)

def to_float(x: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """uint8 [B, C, H, W] -> float32 in [-1, 1] on the device, channels last in memory."""
    return to_device(torch.tensor(x), device).to(torch.float32, memory_format=torch.channels_last).div_(127.5).sub_(1)

def batches(images: np.ndarray, batch_size: int, seed: int, step: int, flip: bool) -> Iterator[np.ndarray]:
    """Endless uint8 batches [B, C, H, W], from a training step on, in a new random order each epoch (whose incomplete
    last batch is left out). The order follows from seed and epoch alone, so that a run can go on where it stopped."""
    rank, count = processes()  # of which each gets its share of every batch
    require(batch_size <= len(images), f"--batch-size {batch_size} is too large for {len(images)} images for training")
    require(batch_size % count == 0, f"--batch-size {batch_size} cannot be shared by {count} processes")
    epoch, first = divmod(step, len(images) // batch_size)
    while True:
        rng = np.random.default_rng([seed, epoch])
        order, mirrored = rng.permutation(len(images)), rng.random(len(images)) < 0.5 * flip
        for i in range(first * batch_size, len(images) - batch_size + 1, batch_size):
            share = slice(i + rank, i + batch_size, count)
            batch, mirror = images[order[share]], mirrored[share]
            batch[mirror] = batch[mirror, :, :, ::-1]
            yield batch
        epoch, first = epoch + 1, 0

# Measures
METRICS = {  # every field of metrics.jsonl; those from "l_enc" on stand only in lines with an evaluation
    "images": "real images seen so far",
    "seconds": "training time so far, in seconds, evaluations included",
    "images_per_second": "training speed since the last line",
    "lr": "learning rate",
    "loss_d": "discriminator loss without penalty, mean since the last line (as all training losses)",
    "loss_g": "generator loss",
    "l_enc_train": "L_enc of the networks in training",
    "penalty": "R1 or WGAN-GP penalty times its weight",
    "logits_real": "mean logit of real images",
    "logits_fake": "mean logit of generated images",
    "z_hat_mean": "mean over dimensions of |batch mean of z_hat|; chance alone gives a good encoder 0.8 sqrt(v / batch)",
    "active_train": "number of v_i > 1/2 in the running average v",
    "entropy_train": "differential entropy of z * s, in nats",
    "effective_train": "effective dimensions (sum s^2)^2 / sum s^4",
    "l_enc": "L_enc of the averaged networks (1: the encoder knows nothing; 0: everything)",
    "mse_z": "mean squared error of z_hat, not weighted by s^2",
    "v": "E[z_hat^2] of the averaged encoder, per dimension",
    "active": "number of v_i > 1/2",
    "spread": "standard deviation per pixel, averaged: generated over real images (healthy: near 1)",
    "psnr_*": "PSNR of reconstructions (of generated and of test images), dB",
    "ssim_*": "SSIM of reconstructions; absent below 11x11 pixels",
    "gain_*": "PSNR of reconstructions above that of the mean image, dB",
    "mse_*": "mean squared error of reconstructions, images in [-1, 1]"}

def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio per image in dB: [B, C, H, W] twice, in [-1, 1] (peak to peak 2) -> [B]."""
    return 10 * torch.log10(4 / (x - y).square().flatten(1).mean(1).clamp(min=1e-10))

def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity per image (Wang et al. 2004: 11x11 Gaussian, sigma 1.5) of 11x11 pixels or more; as psnr."""
    taps = torch.exp(-torch.arange(-5.0, 6.0, dtype=x.dtype, device=x.device).square() / (2 * 1.5**2))
    window = torch.outer(taps, taps)[None, None] / taps.sum() ** 2
    def mean(image: Tensor) -> Tensor:  # [B, C, H, W] -> [B*C, 1, H-10, W-10]
        return F.conv2d(image.flatten(0, 1)[:, None], window)
    x_mean, y_mean = mean(x), mean(y)
    x_var, y_var, covariance = mean(x * x) - x_mean**2, mean(y * y) - y_mean**2, mean(x * y) - x_mean * y_mean
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2  # the usual constants for a range of 2
    similarity = (2 * x_mean * y_mean + c1) * (2 * covariance + c2)
    return (similarity / ((x_mean**2 + y_mean**2 + c1) * (x_var + y_var + c2))).view(len(x), -1).mean(1)

@torch.no_grad()
def evaluate(model: DLSGAN, images: Tensor, batch_size: int = 32, seed: int = 1) -> dict:
    """The METRICS from "l_enc" on, of test images [N, C, H, W] in [-1, 1] and N generated ones."""
    def in_batches(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        parts = zip(*(x.split(batch_size) for x in tensors), strict=True)
        return torch.cat([function(*(x.to(model.latent_scale.v.device) for x in part)).cpu() for part in parts])
    z = prior(len(images), model.latent_scale, torch.Generator().manual_seed(seed)).cpu()
    generated = in_batches(lambda z: model.decode(z).clamp(-1, 1), z)
    z_hat = in_batches(model.encode, generated)
    v = z_hat.square().mean(0)
    result = {"l_enc": encoder_loss(z, z_hat, model.latent_scale.scale().cpu()).item(), "mse_z": F.mse_loss(z, z_hat).item()}
    result |= {"v": [round(value, 5) for value in v.tolist()], "active": int((v > 0.5).sum())}
    result["spread"] = (generated.std(0).mean() / images.std(0).mean()).item()
    for name, x in (("generated", generated), ("test", images.clamp(-1, 1))):
        y = in_batches(lambda x: model.reconstruct(x).clamp(-1, 1), x)
        scores = {"psnr": in_batches(psnr, x, y), "ssim": in_batches(ssim, x, y) if x.shape[-1] >= 11 else None}
        scores["gain"] = scores["psnr"] - in_batches(psnr, x, x.mean(0).expand_as(x))
        scores["mse"] = in_batches(lambda x, y: (x - y).square().flatten(1).mean(1), x, y)
        result |= {f"{key}_{name}": score.mean().item() for key, score in scores.items() if score is not None}
    return result

def grid(rows: Iterable[Tensor]) -> np.ndarray:
    """Rows of images [n, C, H, W] in [-1, 1] as one picture [rows*H, n*W, C] (without C if grey)."""
    return to_uint8(torch.cat([torch.cat(list(row.cpu()), 2) for row in rows], 1)).permute(1, 2, 0).squeeze(2).numpy()

@torch.no_grad()
def report(model: DLSGAN, test: Tensor, history: list[dict], path: Path, title: str) -> None:
    """The figure to look at first: samples, reconstructions, the spectrum of v, and curves from metrics.jsonl."""
    from matplotlib.figure import Figure
    samples = torch.cat([model.sample(8, seed).cpu().clamp(-1, 1) for seed in range(8)])
    lines = [line for line in history if "l_enc" in line]
    last, panels = lines[-1], [("samples", samples.split(8))]
    for name, x in (("generated", samples), ("test", test)):
        x = x[: 8 * min(4, max(1, len(x) // 8))].split(8)
        text = f"{last[f'psnr_{name}']:.1f} dB, {last[f'gain_{name}']:+.1f} dB against the mean image"
        pairs = [row for part in x for row in (part, model.reconstruct(part.to(model.latent_scale.v.device)))]
        panels.append((f"{name} images, each row above its reconstructions\n{text}", pairs))
    figure = Figure((12, 8.2), layout="constrained")
    figure.suptitle(f"{title}: {last['active']} of {len(last['v'])} latent dimensions active (v > 1/2)")
    pictures, (spectrum, *curves) = figure.subplots(2, 3, height_ratios=(1.2, 1))
    for axis, (text, rows) in zip(pictures, panels, strict=True):
        axis.imshow(grid(rows), cmap="gray", interpolation="nearest")
        axis.set_title(text, fontsize=10)
        axis.axis("off")
    spectrum.bar(range(1, 1 + len(last["v"])), sorted(last["v"], reverse=True), width=1, color="#30638e")
    spectrum.axhline(0.5, color="0.4", linestyle="--")
    spectrum.set(xlabel="latent dimension, sorted", ylabel="v: variance the encoder recovers", ylim=(0, 1.1))
    fields = {"L_enc; spread": {"l_enc": "L_enc", "spread": "spread, generated / real"},
              "dB above the mean image": {"gain_generated": "generated images", "gain_test": "test images"}}
    for axis, (unit, keys) in zip(curves, fields.items(), strict=True):
        for (key, label), style in zip(keys.items(), (".-", ".--"), strict=True):
            axis.plot([line["images"] / 1000 for line in lines], [line[key] for line in lines], style, label=label)
        axis.set(xlabel="thousand real images seen", ylabel=unit)
        axis.legend(frameon=False)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)

# Training
FORMAT, SAVE_SECONDS, EVALUATED = 2, 300, 256  # of checkpoints; time between them; test images in an evaluation
PRETRAINED = Path(__file__).resolve().with_name("pretrained")  # trained models; a copied dlsgan.py has none

def save_checkpoint(path: Path, state: dict) -> None:
    """Replaces the file in one step and keeps the one before as checkpoint-previous.pt."""
    with explain(f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_suffix(".tmp"), "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.replace(path, path.with_name("checkpoint-previous.pt"))
        os.replace(file.name, path)

def read_checkpoint(path: str | Path) -> tuple[Config, dict]:
    """The configuration and the state in a checkpoint file, or in the newest checkpoint of a run's folder."""
    files = (Path(path) / "checkpoint.pt", Path(path) / "checkpoint-previous.pt") if Path(path).is_dir() else (Path(path),)
    path = next((file for file in files if file.exists()), files[0])
    try:
        require(not zipfile.ZipFile(path).testzip(), "a checksum is wrong")  # torch.load does not compare them
        state = torch.load(path, map_location="cpu", weights_only=True)  # never runs code from the file
        config, written = Config(**state["config"]), state["format"]
    except OSError as error:
        there = "; there: " + (", ".join(sorted(p.stem for p in PRETRAINED.glob("*.pt"))) or "nothing, see the repository")
        raise UserError(f"{path} cannot be read: {error.strerror}{there * (path.parent == PRETRAINED)}") from None
    except Exception:  # torch's message is pages long, and advises to load the file unsafely
        raise UserError(f"{path} is damaged or not a checkpoint of this program") from None
    require(written == FORMAT, f"{path} has checkpoint format {written}, and this program reads {FORMAT}")
    return config.check(), state

def load(checkpoint: str | Path, device: str = "cpu") -> DLSGAN:
    """The trained model (averaged weights) of a checkpoint file or a run's folder, ready to encode and decode."""
    config, state = read_checkpoint(checkpoint)
    model = build(config)
    with explain(f"{checkpoint} holds weights of another configuration than it names"):
        model.load_state_dict(state["ema"])
    return model.requires_grad_(False).eval().to(pick_device(device), memory_format=torch.channels_last)

def load_pretrained(name: str, device: str = "cpu") -> DLSGAN:
    """The trained model in pretrained/NAME.pt beside this file (the repository has it): load_pretrained("celeba64")."""
    return load(PRETRAINED / f"{name}.pt", device)

def keep_memory() -> None:
    """glibc gives large blocks back to the system at every free, and each new one costs page faults. Keep them."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0), libc.mallopt(-1, -1)  # M_MMAP_MAX, M_TRIM_THRESHOLD

def train(config: Config, resume: bool = False, stop: threading.Event | None = None) -> Iterator[dict]:
    """Trains and yields lines of METRICS every 50 steps or sooner, some with an evaluation. Writes checkpoint.pt,
    metrics.jsonl and report.png to config.out, if set. resume: go on from the checkpoint there; on the same CPU and thread
    count the result is that of an uninterrupted run to the bit. stop: an event; once it is set, the loop saves and ends."""
    c, device, (rank, count) = config.check(), pick_device(config.device), processes()
    out = Path(c.out) if c.out and rank == 0 else None
    new = not out or resume or not any(out.glob("checkpoint*.pt"))
    require(new, f"{out} already holds a run: --resume {out} goes on with it, --out names another")
    keep_memory()
    torch.set_num_threads(c.threads or torch.get_num_threads())
    torch.set_float32_matmul_precision("high")  # TF32 on CUDA, no effect on a CPU
    torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    torch.manual_seed(c.seed)
    c.image_channels = c.image_channels if resume else detect_channels(c)
    model = build(c).to(device, memory_format=torch.channels_last)
    average = DLSGAN(*map(copy.deepcopy, (model.generator, model.discriminator)), model.latent_scale).requires_grad_(False)
    rng, optimizers = torch.Generator().manual_seed(c.seed), make_optimizers(model, c.lr)
    stateful = {"model": model, "ema": average, "optimizer_g": optimizers[0], "optimizer_d": optimizers[1]}
    step, step_logged, seconds, totals, history = 0, 0, 0.0, {}, []  # totals: sums of the losses since the last line
    if resume:
        _, state = read_checkpoint(c.out)
        with explain(f"the checkpoint in {c.out} does not fit its own configuration"):
            for name, target in stateful.items():
                target.load_state_dict(state[name])
            rng.set_state(state["rng"])
            kinds = {"step": int, "logged": int, "seconds": float, "totals": dict, "history": json.loads}
            step, step_logged, seconds, totals, history = (kind(state[key]) for key, kind in kinds.items())
            fit = [s[k].shape == p.shape for o in optimizers for p, s in o.state.items() for k in ("exp_avg", "exp_avg_sq")]
            require(step >= 0 and all(fit), "its step is negative, or the moments of Adam are those of other weights")
    for first in (True, False):  # one process downloads or decodes the data, then the others find them
        if first == (rank == 0):
            train_images, test_images = LOADERS[c.dataset](c)
        average_over_processes(torch.zeros(1))
    require(len(test_images) > 1, f"{c.data_dir} has too few images: {len(test_images)} for testing")
    test = to_float(test_images[: EVALUATED // max(1, c.resolution // 128)])
    stream = batches(train_images, c.batch_size, c.seed, step, c.flip)
    steps, penalty_every = math.ceil(c.images / c.batch_size), 1 if c.loss == "wgan-gp" else 16
    log_every, evaluate_every = min(50, max(1, steps // 200)), max(50, min(2000, -(-steps // 8)))
    logged = saved = time.perf_counter()
    started, step_saved, step_timed, written = logged - seconds, step if resume else -1, step, 0
    def save() -> None:
        state = {name: x.state_dict() for name, x in stateful.items()} | {"format": FORMAT, "config": dataclasses.asdict(c)}
        state |= {"step": step, "logged": step_logged, "totals": totals, "history": json.dumps(history)}
        save_checkpoint(out / "checkpoint.pt", state | {"rng": rng.get_state(), "seconds": time.perf_counter() - started})
    while step < steps and not average_over_processes(torch.tensor(float(stop is not None and stop.is_set()))):
        lr = decay_learning_rate(optimizers, c.lr, c.lr_final, step / steps)
        penalty_weight = 0.0 if step % penalty_every else c.r1_gamma / 2 * penalty_every
        real = to_float(next(stream), device)
        scalars = train_step(model, optimizers, real, rng, c.loss, c.encoder_weight, penalty_weight, device.type == "cuda")
        average_weights(average, model, step)
        totals = {key: value + totals.get(key, 0.0) for key, value in scalars.items()}
        step += 1
        if step % log_every and step % evaluate_every and step not in (1, 2, 4, 8, 16, steps):
            continue
        line = {key: value.item() / (step - step_logged) for key, value in totals.items()}
        now, step_logged = time.perf_counter(), step  # after .item() has waited for the device
        line |= {"images": step * c.batch_size, "seconds": round(now - started, 2), "lr": lr}
        line["images_per_second"] = round((step - step_timed) * c.batch_size / (now - logged), 2)
        line |= {f"{key}_train": value.item() for key, value in model.latent_scale.measures().items()}
        if rank == 0 and (step % evaluate_every == 0 or step == steps):
            line |= evaluate(average, test, c.batch_size // count)
        if bad := [key for key, value in line.items() if not np.isfinite(value).all()]:
            raise UserError(f"{bad[0]} became {line[bad[0]]} after {line['images']:,} images; a checkpoint before is kept: "
                            "try a smaller --lr or a larger --r1-gamma")
        totals = {}
        history.append(line)
        if out:
            with explain(f"cannot write to {out}"):
                out.mkdir(parents=True, exist_ok=True)
                written = written if (out / "metrics.jsonl").exists() else 0  # lines; 0 if somebody removed the folder
                with open(out / "metrics.jsonl", "a" if written else "w") as file:
                    file.writelines(json.dumps(line) + "\n" for line in history[written:])
                if "l_enc" in line:
                    title = f"{c.dataset}, {'' if c.latent_scale else 'no '}latent scale, seed {c.seed}"
                    report(average, test, history, out / "report.png", f"{title}, {line['images']:,} images")
            if "l_enc" in line or now - saved > SAVE_SECONDS:
                save()
                saved, step_saved = now, step
        yield line
        logged, step_timed, written = time.perf_counter(), step, len(history)
    if out and step != step_saved and all(math.isfinite(value) for value in totals.values()):
        save()

# Command line
def reconstruct_photos(photos: list[str], checkpoint: str | Path = PRETRAINED / "celeba64.pt", out: str = ".") -> None:
    """Writes each photo beside its reconstruction as PHOTO-reconstruction.png; prints PSNR and how unusual it is."""
    model, (config, _) = load(checkpoint, "cpu"), read_checkpoint(checkpoint)
    z_hat = torch.cat([model.encode(model.sample(32, seed).clamp(-1, 1)) for seed in range(16)])
    v = z_hat.square().mean(0)
    live = v >= min(0.5, v.max())
    distances = (z_hat.square() / v)[:, live].mean(1)  # [512], 1 on average
    for photo in photos:
        with explain(f"{photo} cannot be read as an image"):
            x = to_float(read_image(Path(photo), config)[None])
        y, distance = model.reconstruct(x).clamp(-1, 1), (model.encode(x)[0].square() / v)[live].mean()
        path = Path(out, f"{Path(photo).name}-reconstruction.png")
        with explain(f"cannot write {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(grid([torch.cat([x, y])])).save(path)
        print(f"{path}: PSNR {psnr(x, y).item():.1f} dB; latent distance {distance:.2f} (generated images: 1.00 on average; "
              f"farther out than {(distances < distance).float().mean():.0%} of them)")

def parse(arguments: list[str] | None) -> dict:
    changes = {name: " ".join(f"{k}={v}" for k, v in p.items()) or "the defaults above" for name, p in PRESETS.items()}
    parser = argparse.ArgumentParser(
        description="Trains a Dynamic Latent Scale GAN, or reconstructs photos with a trained one.",
        epilog="presets, as changes from the defaults:\n" + "\n".join(f"  {n:9} {text}" for n, text in changes.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter, argument_default=argparse.SUPPRESS, usage="%(prog)s [options]")
    parser.add_argument("--preset", choices=PRESETS, help="settings to start from (default: named as the data set)")
    parser.add_argument("--resume", metavar="RUN", help="go on with the run in this folder, with its own settings")
    parser.add_argument("--reconstruct", metavar="PHOTO", nargs="+", help="write photos beside their reconstructions")
    parser.add_argument("--checkpoint", metavar="FILE", help="checkpoint or folder for --reconstruct (default: celeba64)")
    for field in dataclasses.fields(Config):
        text, kind = field.metadata["help"], type(field.default)
        text += f" (default: {field.default})" if field.default != "" and field.name != "threads" else ""
        kw = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind, "metavar": kind.__name__.upper()}
        parser.add_argument("--" + field.name.replace("_", "-"), help=text, **kw)
    return vars(parser.parse_args(arguments))

def configure(given: dict) -> Config:
    """The configuration that a command line means, with data and output folders filled in."""
    dataset = given.get("dataset", "folder" if "data_dir" in given and "preset" not in given else None)
    if dataset is not None and dataset not in LOADERS:
        require(dataset and Path(dataset).exists(), f"data set {dataset!r} is none of {', '.join(LOADERS)} and no folder")
        given["data_dir"], dataset = dataset, "folder"
    preset = given.pop("preset", dataset or "cartoon")
    config = Config(**PRESETS[preset] | given | ({"dataset": dataset} if dataset else {})).check()
    if not config.out:
        base = f"runs/{preset}" + ("" if config.latent_scale else "-no-scale")
        config.out = next(r for i in range(1, 10**6) if not Path(r := base if i == 1 else f"{base}-{i}").exists())
    return config

def run(config: Config, resume: bool) -> None:
    """Trains with a progress bar, then prints the measures and where everything is."""
    stop, measured, config.device = threading.Event(), {}, str(pick_device(config.device))
    if "TORCHELASTIC_RUN_ID" in os.environ:  # started by torchrun
        distributed.init_process_group()  # over gloo for tensors on the CPU, over NCCL for those on GPUs
    sys.stdout = open(os.devnull, "w") if (silent := processes()[0] > 0) else sys.stdout  # the first one speaks for all
    print("settings: " + " ".join(f"{key}={value}" for key, value in dataclasses.asdict(config).items() if value != ""))
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda number, _: (stop.set(), signal.signal(number, signal.SIG_DFL)))  # a second one kills
    with tqdm(total=config.images, unit=" images", unit_scale=True, smoothing=0.1, delay=0.01, disable=silent) as bar:
        for i, line in enumerate(train(config, resume, stop)):
            if i == 4:
                speed, left = line["images_per_second"], (config.images - line["images"]) / line["images_per_second"] / 60
                tqdm.write(f"{speed:.1f} images/s on this device: about {left:.0f} minutes ({left / 1440:.1f} days) left")
            bar.set_postfix_str(f"L_enc {line['l_enc_train']:.3f}, {line['active_train']} active", refresh=False)
            bar.update(min(line["images"], config.images) - bar.n)
            measured = line if "l_enc" in line else measured
    for key, value in ((key, measured[key]) for key in measured if key != "v"):
        number = format(value, "," if isinstance(value, int) else ".4f")
        print(f"{key:18}{number:>12}   {METRICS.get(key) or METRICS[key.split('_')[0] + '_*']}")
    how = f"stopped; go on with: python {sys.argv[0]} --resume {config.out}" if stop.is_set() else "finished"
    print(f"{how}; in {config.out}: {', '.join(sorted(file.name for file in Path(config.out).glob('*.*')))}")

def main(arguments: list[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal's, which may not know all letters of a file name
            stream.reconfigure(errors="backslashreplace")
    given = parse(arguments)
    try:
        uses = {"resume": "resume images device threads data_dir", "reconstruct": "reconstruct checkpoint out"}
        for mode in uses.keys() & given.keys():
            if own := given.keys() - uses[mode].split():
                raise UserError(f"--{mode} keeps the settings of its checkpoint: leave out --{min(own).replace('_', '-')}")
        require("checkpoint" not in given or "reconstruct" in given,
                "--checkpoint FILE goes with --reconstruct PHOTO (to train on, use --resume RUN)")
        if "reconstruct" in given:
            reconstruct_photos(given["reconstruct"], **{key: given[key] for key in ("checkpoint", "out") if key in given})
        elif folder := given.pop("resume", None):
            run(dataclasses.replace(read_checkpoint(folder)[0], out=folder, **given), resume=True)
        else:
            run(configure(given), resume=False)
    except (UserError, OSError, MemoryError, torch.OutOfMemoryError) as error:
        text = str(error) if str(error).endswith(CELEBA_TREES) else " ".join(str(error).split())
        print(f"dlsgan: {text}", file=sys.stderr)
        return 2
    return 0

if __name__ == "__main__":
    sys.exit(main())
