"""The operations of a training step, and where its time goes: the counting and measuring behind
benchmark.py."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

import dlsgan


def forward_flops(c: dlsgan.Config, image_channels: int = 3) -> tuple[int, int]:
    """Floating-point operations (two per multiplication and addition) of the 3x3 and 1x1 convolutions and the
    matrix products in one forward pass of G and of D for one image. Filters and elementwise operations are
    not counted."""
    sizes = [2**i for i in range(2, c.resolution.bit_length())]  # 4, 8, ..., resolution
    width = {r: dlsgan.channels_at(r, c.channel_base, c.channel_max) for r in sizes}
    low = width[4]
    d = c.latent_dim
    generator = c.mapping_layers * d * d + 16 * low * low * 9 + 16 * low * image_channels
    generator += 2 * d * low + low * low  # styles of the first convolution and ToRGB, demodulation
    discriminator = c.resolution**2 * image_channels * width[c.resolution]
    discriminator += 16 * low * low * (9 + 1) + low * (1 + d)
    for r in sizes[1:]:
        small = width[r // 2]  # channels at half of this resolution
        large = width[r]
        generator += (r // 2) ** 2 * small * large * 9 + r * r * large * large * 9
        generator += r * r * large * image_channels
        generator += d * (small + 2 * large) + small * large + large * large  # styles and demodulation
        discriminator += r * r * large * large * 9 + (r // 2) ** 2 * large * small * (9 + 1)
    return 2 * generator, 2 * discriminator


def step_flops(c: dlsgan.Config) -> float:
    """One training step, R1 every 16th: G forward and its two gradients (3 G); D on generated images forward,
    back to the image, and both gradients of its own loss (4 D); D on real images (3 D); R1 adds a gradient
    and its two (3 D / 16)."""
    generator, discriminator = forward_flops(c)
    return c.batch_size * (3 * generator + (7 + 3 / 16) * discriminator)


def gemm_peak(seconds: float = 3.0) -> float:
    """The machine's best speed in a float32 matrix product 2048^3, in operations a second."""
    a = torch.randn(2048, 2048)
    best = math.inf
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        before = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - before)
    return 2 * 2048**3 / best


def memory(field: str) -> float:
    """GiB of this process: VmHWM, the most so far, or RssAnon, without mapped files; nan where there is no
    /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        return math.nan
    kibibytes = status.read_text().split(f"{field}:")[1].split()[0]
    return int(kibibytes) / 2**20


def kind_of_kernel(key: str, input_shapes: list) -> str:
    """What an operation of PyTorch's profiler is: its name and the shapes of its inputs."""
    if key in ("aten::mm", "aten::addmm", "aten::bmm"):
        return "matrix products"
    if "conv" not in key:
        return "everything else"
    if any(shape[1:] == [1, 4, 4] for shape in input_shapes):  # LowPass: [c, 1, 4, 4]
        return "filters"
    return "convolutions"


def kernels(function: Callable) -> dict[str, float]:
    """Shares of the time inside PyTorch's operations of a call (its second) in the kinds of kernels, by its
    profiler."""
    function()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as measured:
        function()
    seconds = {"convolutions": 0, "filters": 0, "matrix products": 0, "everything else": 0}
    for event in measured.key_averages(group_by_input_shape=True):
        seconds[kind_of_kernel(event.key, event.input_shapes)] += event.self_cpu_time_total
    total = sum(seconds.values())
    return {kind: value / total for kind, value in seconds.items()}
