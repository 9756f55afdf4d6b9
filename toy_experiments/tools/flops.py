"""The operations of a training step, and where its time goes: the counting and measuring behind speed.py."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

import dlsgan


def forward_flops(c: dlsgan.Config, image_channels: int = 3) -> tuple[int, int]:
    """Floating-point operations (two per multiplication and addition) of the 3x3 and 1x1 convolutions and the matrix
    products in one forward pass of G and of D for one image. Filters and elementwise operations are not counted."""
    width = {r: dlsgan.channels_at(r, c.width) for r in [2**i for i in range(2, c.resolution.bit_length())]}
    low, d = width[4], c.latent_dim
    generator = c.mapping_layers * d * d + 16 * low * low * 9 + 16 * low * image_channels
    generator += 2 * d * low + low * low  # styles of the first convolution and ToRGB, demodulation
    discriminator = c.resolution**2 * image_channels * width[c.resolution] + 16 * low * low * (9 + 1) + low * (1 + d)
    for r in list(width)[1:]:
        small, large = width[r // 2], width[r]  # channels below and at resolution r
        generator += (r // 2) ** 2 * small * large * 9 + r * r * large * large * 9 + r * r * large * image_channels
        generator += d * (small + 2 * large) + small * large + large * large
        discriminator += r * r * large * large * 9 + (r // 2) ** 2 * large * small * (9 + 1)
    return 2 * generator, 2 * discriminator


def step_flops(c: dlsgan.Config) -> float:
    """One training step, R1 every 16th: G forward and its two gradients (3 G); D on generated images forward, back to the
    image, and both gradients of its own loss (4 D); D on real images (3 D); R1 adds a gradient and its two (3 D / 16)."""
    generator, discriminator = forward_flops(c)
    return c.batch_size * (3 * generator + (7 + 3 / 16) * discriminator)


def gemm_peak(seconds: float = 3.0) -> float:
    """The machine's best speed in a float32 matrix product 2048^3, in operations a second."""
    a, best, start = torch.randn(2048, 2048), 1e9, time.perf_counter()
    while time.perf_counter() - start < seconds:
        t = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - t)
    return 2 * 2048**3 / best


def memory(field: str) -> float:
    """GiB of this process: VmHWM, the most so far, or RssAnon, without mapped files; nan where there is no /proc."""
    status = Path("/proc/self/status")
    return int(status.read_text().split(f"{field}:")[1].split()[0]) / 2**20 if status.exists() else math.nan


def kernels(function: Callable) -> dict[str, float]:
    """Shares of the time inside PyTorch's operations of a call (its second) in the kinds of kernels, by its profiler."""
    function()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as measured:
        function()
    seconds = {"convolutions": 0, "filters": 0, "matrix products": 0, "everything else": 0}
    for event in measured.key_averages(group_by_input_shape=True):
        kind = "convolutions" if "conv" in event.key else "everything else"
        if kind == "convolutions" and any(shape[1:] == [1, 4, 4] for shape in event.input_shapes):  # LowPass: [c, 1, 4, 4]
            kind = "filters"
        if event.key in ("aten::mm", "aten::addmm", "aten::bmm"):
            kind = "matrix products"
        seconds[kind] += event.self_cpu_time_total
    return {kind: value / sum(seconds.values()) for kind, value in seconds.items()}
