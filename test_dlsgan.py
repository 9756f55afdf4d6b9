"""Tests of dlsgan.py and toy_experiments: each piece against an independent oracle. `pytest` runs the fast ones."""

import contextlib
import copy
import csv
import dataclasses
import gzip
import importlib.util
import inspect
import itertools
import json
import math
import os
import pickle
import re
import runpy
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import warnings
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.signal
import scipy.stats
import torch
import torch.nn.functional as F
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from sklearn.decomposition import PCA
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import dlsgan
from toy_experiments import (
    align,
    cartoon_factors,
    common,
    compare,
    eigengan,
    eigengan_linear,
    exercises,
    export,
    floor,
    interfacegan,
    invert_by_optimization,
    judges,
    lia,
    linear_gaussian,
    measures,
    mnist,
    naive,
    paper_figures,
    results,
    speed,
    two_dimensional,
)

ROOT = Path(__file__).parent
REPORT = dlsgan.report
TINY = {"resolution": 16, "width": 0.02, "latent_dim": 4, "batch_size": 4, "images": 40, "threads": 1, "device": "cpu"}


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch):
    """Each test runs in a folder of its own, with its own cache, one thread and fixed weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dlsgan, "EVALUATED", 24)
    monkeypatch.setattr(dlsgan, "report", lambda *arguments: None)  # slow; drawn in one test and by the subprocesses
    monkeypatch.setitem(dlsgan.LOADERS, "cartoon", small_cartoon)
    torch.set_num_threads(1)
    torch.manual_seed(0)


def small_cartoon(config):
    images = dlsgan.to_uint8(dlsgan.cartoon_faces(64, config.resolution)[0]).numpy()
    return images[:40], images[40:]


def double(module):
    return module.double().requires_grad_()


# ---- Part I: the paper -----------------------------------------------------------------------------------------------


def test_moving_averages_against_a_loop():
    batches = np.random.default_rng(0).normal(size=(9, 5, 3)).astype(np.float32)
    ema, sma = dlsgan.LatentScale(3, "ema", window=4), dlsgan.LatentScale(3, "sma", window=4)
    expected, past = np.ones(3), [np.ones(3)] * 4
    for batch in batches:
        ema.update(torch.from_numpy(batch))
        sma.update(torch.from_numpy(batch))
        v = (batch.astype(float) ** 2).mean(0)
        expected = 0.75 * expected + 0.25 * v
        past = past[1:] + [v]
    np.testing.assert_allclose(ema.v, expected, rtol=1e-5)
    np.testing.assert_allclose(sma.v, np.mean(past, 0), rtol=1e-5)


def test_scale_shares_d_units_of_power_in_proportion_to_v():
    scale = dlsgan.LatentScale(4)
    scale.v.copy_(torch.tensor([0.9, 0.5, 0.1, 0.0]))
    s = scale.scale()
    assert s.square().mean().item() == pytest.approx(1)
    torch.testing.assert_close(s.square(), 4 * scale.v / 1.5)
    # line 2 of the paper: sqrt(d v) / |sqrt(v)|
    torch.testing.assert_close(s, (4 * scale.v).sqrt() / scale.v.sqrt().norm())
    assert torch.equal(dlsgan.LatentScale(4, enabled=False).scale(), torch.ones(4))


def test_entropy_active_and_effective_dimensions():
    scale, v = dlsgan.LatentScale(8), torch.tensor([0.9, 0.8, 0.7, 0.3, 0.2, 0.1, 0.05, 0.02])
    scale.v.copy_(v)
    s = scale.scale()
    gaussians = [torch.distributions.Normal(0.0, s_i).entropy() for s_i in s]
    measured = scale.measures()
    assert measured["entropy"].item() == pytest.approx(sum(gaussians).item(), rel=1e-6)
    assert measured["active"] == 3
    assert dlsgan.LatentScale(8).measures()["entropy"].item() == pytest.approx(8 * 1.4189385, rel=1e-6)
    scale.v.copy_(torch.tensor([1.0] * 3 + [0.0] * 5))
    assert scale.measures()["effective"].item() == pytest.approx(3)
    assert math.isfinite(scale.measures()["entropy"])


def test_latent_scale_state_survives_a_checkpoint():
    a, b = dlsgan.LatentScale(3, "sma", 5), dlsgan.LatentScale(3, "sma", 5)
    for _ in range(3):
        a.update(torch.randn(4, 3))
    b.load_state_dict(a.state_dict())
    z_hat = torch.randn(4, 3)
    a.update(z_hat)
    b.update(z_hat)
    assert torch.equal(a.v, b.v) and torch.equal(a.past, b.past)


@pytest.mark.parametrize("name", dlsgan.LOSSES)
def test_adversarial_losses_against_their_definitions(name):
    a = torch.linspace(-4, 4, 9, dtype=torch.float64)
    p = 1 / (1 + (-a).exp())
    definition = {
        "nsgan": (-p.log(), -(1 - p).log(), -p.log()),
        "original": (-p.log(), -(1 - p).log(), (1 - p).log()),
        "lsgan": ((a - 1) ** 2 / 2, a**2 / 2, (a - 1) ** 2 / 2),
        "wgan-gp": (-a, a, -a),
    }[name]
    for function, expected in zip(dlsgan.LOSSES[name], definition, strict=True):
        torch.testing.assert_close(function(a), expected)


def test_encoder_loss_is_the_mse_of_scaled_latents():
    z, z_hat, s = torch.randn(5, 3), torch.randn(5, 3), torch.rand(3)
    torch.testing.assert_close(dlsgan.encoder_loss(z, z_hat, s), F.mse_loss(z * s, z_hat * s))


def toy(latent_dim=3, pixels=2, width=8, dtype=torch.float64, **scale):
    """MLPs with smooth activations in the roles of G and D, as a DLSGAN."""

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(pixels, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
            self.head = nn.Linear(width, 1 + latent_dim)

        def forward(self, x):
            out = self.head(self.body(x))
            return out[:, 0], out[:, 1:]

    generator = nn.Sequential(nn.Linear(latent_dim, width), nn.SiLU(), nn.Linear(width, pixels))
    return dlsgan.DLSGAN(generator, Heads(), dlsgan.LatentScale(latent_dim, **scale)).to(dtype)


def test_r1_against_a_loop_over_samples():
    discriminator = toy().discriminator
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    penalty = dlsgan.r1_penalty(discriminator(x)[0], x)
    loop = [torch.autograd.functional.jacobian(lambda v: discriminator(v[None])[0][0], row) for row in x.detach()]
    torch.testing.assert_close(penalty, torch.stack(loop).square().sum(1).mean())


def test_wgan_penalty_in_closed_form():
    class Linear(nn.Module):
        def forward(self, x):
            return 3 * x[:, 0] + 4 * x[:, 1], x

    real, fake = torch.randn(4, 2), torch.randn(4, 2)
    assert dlsgan.gradient_penalty(Linear(), real, fake, torch.rand(4)).item() == pytest.approx((5 - 1) ** 2)


@pytest.mark.parametrize("name", dlsgan.LOSSES)
@pytest.mark.parametrize("penalty_weight", [0.0, 0.7])
def test_train_step_is_algorithm_1(name, penalty_weight):
    """Against the losses as the paper writes them: L_D and L_G each differentiated alone, from one z; s is a constant."""
    model, oracle = (m := toy()), copy.deepcopy(m)
    model.latent_scale.v.copy_(torch.tensor([0.9, 0.5, 0.2]))
    oracle.latent_scale.v.copy_(model.latent_scale.v)
    real = torch.randn(6, 2, dtype=torch.float64)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (model.generator, model.discriminator)]
    rng = torch.Generator().manual_seed(3)
    with torch.random.fork_rng():  # the step draws float32 latents; the oracle draws the same
        scalars = dlsgan.train_step(
            model, optimizers, real.clone(), rng, name, encoder_weight=0.8, penalty_weight=penalty_weight
        )

    rng = torch.Generator().manual_seed(3)
    z = torch.randn(6, 3, generator=rng)
    mix = torch.rand(6, generator=rng)
    v = oracle.latent_scale.v
    s = (3 * v / v.sum()).sqrt()
    real_loss, fake_loss, generator_loss = dlsgan.LOSSES[name]
    fake = oracle.generator(z * s)
    logits_fake, z_hat = oracle.discriminator(fake)
    logits_real, _ = oracle.discriminator(real.requires_grad_())
    l_enc = ((z - z_hat) ** 2 * s**2).mean()
    if name == "wgan-gp":
        x = (mix[:, None] * real + (1 - mix[:, None]) * fake).detach().requires_grad_()
        gradient = torch.autograd.grad(oracle.discriminator(x)[0].sum(), x, create_graph=True)[0]
        penalty = ((gradient.norm(dim=1) - 1) ** 2).mean()
    else:
        gradient = torch.autograd.grad(logits_real.sum(), real, create_graph=True)[0]
        penalty = (gradient**2).sum(1).mean()
    loss_d = real_loss(logits_real).mean() + fake_loss(logits_fake).mean() + 0.8 * l_enc
    loss_g = generator_loss(logits_fake).mean() + 0.8 * l_enc
    # D's loss treats the generated images as data; G's gradient goes through D
    weights = list(oracle.discriminator.parameters())
    gradients_d = torch.autograd.grad(loss_d + penalty_weight * penalty, weights, retain_graph=True)
    gradients_g = torch.autograd.grad(loss_g, list(oracle.generator.parameters()))
    for network, gradients in (("generator", gradients_g), ("discriminator", gradients_d)):
        pairs = zip(getattr(oracle, network).parameters(), getattr(model, network).parameters(), gradients, strict=True)
        for before, after, gradient in pairs:
            torch.testing.assert_close(after, before - 0.1 * gradient, rtol=1e-5, atol=1e-7)
    assert scalars["loss_d"].item() == pytest.approx(loss_d.item(), rel=1e-5)
    assert scalars["loss_g"].item() == pytest.approx(loss_g.item(), rel=1e-5)
    torch.testing.assert_close(model.latent_scale.v, 0.99 * v + 0.01 * (z_hat**2).mean(0).detach())  # after the step


def test_no_gradient_flows_through_the_scale():
    scale = dlsgan.LatentScale(3)
    scale.v.requires_grad_()
    assert not scale.scale().requires_grad
    model = toy()
    model.latent_scale.update(model.encode(torch.randn(4, 2, dtype=torch.float64)))
    assert not model.latent_scale.v.requires_grad


def test_decoding_always_scales():
    model = toy(dtype=torch.float32)
    model.latent_scale.v.copy_(torch.tensor([0.9, 0.5, 0.1]))
    z, s = torch.randn(4, 3), model.latent_scale.scale()
    torch.testing.assert_close(model.decode(z), model.generator(z * s))
    x = torch.randn(4, 2)
    torch.testing.assert_close(model.reconstruct(x), model.generator(model.discriminator(x)[1] * s))
    assert torch.equal(model.sample(3, seed=5), model.sample(3, seed=5))
    assert not torch.equal(model.sample(3, seed=5), model.sample(3, seed=6))


# ---- Part II: the networks -------------------------------------------------------------------------------------------


def naive_modulated(layer, x, w):
    """StyleGAN2 as published: a weight tensor per sample, one convolution per sample."""
    style = layer.style(w)
    outputs = []
    for image, s in zip(x, style, strict=True):
        weight = layer.weight * s[None, :, None, None]
        weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if layer.low_pass is None:
            y = F.conv2d(image[None], weight, padding=1)
        else:
            y = F.conv_transpose2d(image[None], weight.transpose(0, 1), stride=2)
            taps = torch.tensor([1.0, 3, 3, 1], dtype=x.dtype) / 8
            kernel = 4 * torch.outer(taps, taps)
            y = torch.stack([F.conv2d(c[None, None], kernel[None, None], padding=1)[0, 0] for c in y[0]])[None]
        outputs.append(y)
    y = torch.cat(outputs) + layer.bias
    return torch.where(y > 0, y, 0.2 * y) * math.sqrt(2)


@pytest.mark.parametrize("up", [False, True])
def test_modulated_convolution_against_a_loop_over_samples(up):
    layer = double(dlsgan.ModulatedConv2d(5, 4, w_dim=3, up=up))
    layer.bias.data.normal_()
    x = torch.randn(2, 5, 6, 6, dtype=torch.float64, requires_grad=True)
    w = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    fast, naive = layer(x, w), naive_modulated(layer, x, w)
    torch.testing.assert_close(fast, naive, rtol=1e-10, atol=1e-12)
    seed = torch.randn_like(fast)
    inputs = [x, w, *layer.parameters()]
    for a, b in zip(torch.autograd.grad(fast, inputs, seed), torch.autograd.grad(naive, inputs, seed), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("padding", "stride"), [(2, 1), (1, 2)])
def test_low_pass_filter_against_scipy(padding, stride):
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    taps = np.array([1, 3, 3, 1]) / 8
    expected = [[scipy.signal.convolve2d(np.pad(c, padding), np.outer(taps, taps), "valid") for c in image] for image in x]
    result = double(dlsgan.LowPass(padding, stride))(x)
    np.testing.assert_allclose(result, np.array(expected)[:, :, ::stride, ::stride], atol=1e-12)


def test_bilinear_interpolation_is_the_same_filter():
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    zeros = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    zeros[:, :, ::2, ::2] = x
    taps = torch.tensor([1.0, 3, 3, 1], dtype=torch.float64) / 4
    filtered = F.conv2d(F.pad(zeros, (2, 1, 2, 1)), torch.outer(taps, taps)[None, None])
    bilinear = F.interpolate(x, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(filtered[..., 2:-2, 2:-2], bilinear[..., 2:-2, 2:-2])


def test_to_rgb_against_einsum():
    layer = double(dlsgan.ToRGB(6, 3, 4))
    x, w = torch.randn(2, 6, 5, 5, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    expected = torch.einsum("oi,bi,bihw->bohw", layer.weight, layer.style(w), x) / math.sqrt(6)
    torch.testing.assert_close(layer(x, w), expected + layer.bias[:, None, None])


def test_discriminator_block_against_the_published_order():
    """Gains after each activation, 1x1 before down-sampling, division by sqrt(2) at the end."""
    block = double(dlsgan.DiscriminatorBlock(3, 4))
    for p in block.parameters():
        p.data.normal_()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    taps = torch.tensor([1.0, 3, 3, 1], dtype=torch.float64) / 8

    def low_pass(x, padding):
        kernel = torch.outer(taps, taps)[None, None]
        return F.conv2d(x.flatten(0, 1)[:, None], kernel, padding=padding).unflatten(0, x.shape[:2])[:, :, 0]

    def convolution(layer, x, **kw):
        return F.conv2d(x, layer.weight / math.sqrt(layer.weight[0].numel()), layer.bias, **kw)

    def activation(x):
        return F.leaky_relu(x, 0.2) * math.sqrt(2)

    y = activation(convolution(block.conv1, x, padding=1))
    y = activation(convolution(block.conv2, low_pass(y, 2), stride=2))
    bias = block.skip.bias[:, None, None]
    skip = low_pass(convolution(block.skip, x) - bias, 1)[:, :, ::2, ::2] + bias
    torch.testing.assert_close(block(x), (y + skip) / math.sqrt(2), rtol=1e-10, atol=1e-12)


def test_equalised_layers_start_at_unit_variance():
    x = torch.randn(4000, 64)
    assert dlsgan.EqualLinear(64, 50)(x).std().item() == pytest.approx(1, rel=0.05)
    slow = dlsgan.EqualLinear(64, 50, lr_multiplier=0.01)
    assert slow(x).std().item() == pytest.approx(1, rel=0.05)
    before = slow(x)
    slow.weight.data += 1.0  # what a step of Adam does, times 1/lr
    assert (slow(x) - before).std().item() == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize(("resolution", "channels"), [(8, 1), (16, 3), (64, 3)])
def test_shapes_and_finite_outputs(resolution, channels):
    generator = dlsgan.Generator(resolution, channels, 5, mapping_layers=2, width=0.02)
    discriminator = dlsgan.Discriminator(resolution, channels, 5, width=0.02)
    x = generator(torch.randn(3, 5))
    logits, z_hat = discriminator(x)
    assert x.shape == (3, channels, resolution, resolution) and logits.shape == (3,) and z_hat.shape == (3, 5)
    assert x.isfinite().all() and 0.1 < x.std() < 10 and z_hat.isfinite().all()


def test_channels_of_the_paper_preset():
    assert [dlsgan.channels_at(r, 1.0) for r in (4, 8, 16, 32, 64, 128)] == [512, 512, 512, 256, 128, 64]


def test_an_image_encodes_to_the_same_latent_in_any_batch():
    discriminator = dlsgan.Discriminator(16, 3, 5, width=0.05).double()
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(discriminator(x)[1][:1], discriminator(x[:1])[1], rtol=1e-10, atol=1e-12)


def test_the_length_of_the_latent_vector_is_information():
    """StyleGAN2 normalises z, after which G(2 z) = G(z); here it must not."""
    generator, z = dlsgan.Generator(16, 3, 5, mapping_layers=2, width=0.05), torch.randn(2, 5)
    assert (generator(2 * z) - generator(z)).abs().max() > 0.01
    assert torch.equal(generator(z), generator(z))  # and there is no noise


def test_head_scale_shrinks_only_the_first_predictions():
    torch.manual_seed(1)
    small = dlsgan.Discriminator(16, 3, 5, width=0.05, head_scale=0.1)
    torch.manual_seed(1)
    full = dlsgan.Discriminator(16, 3, 5, width=0.05)
    x = torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(10 * small(x)[1], full(x)[1])
    assert torch.equal(small(x)[0], full(x)[0])


def test_second_gradients_of_the_discriminator():
    discriminator = double(dlsgan.Discriminator(8, 1, 2, width=0.001))
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: discriminator(x)[0], x)


@pytest.mark.parametrize("penalty_weight", [0.0, 1.0])
def test_training_step_on_the_meta_device(penalty_weight):
    """Every tensor of the step lives on the device of the batch: nothing falls back to the CPU."""
    config = dlsgan.Config(**TINY)
    model = dlsgan.build(config).to("meta")
    optimizers = [torch.optim.Adam(m.parameters(), fused=False) for m in (model.generator, model.discriminator)]
    real = torch.empty(4, 3, 16, 16, device="meta")
    scalars = dlsgan.train_step(model, optimizers, real, torch.Generator(), penalty_weight=penalty_weight)
    assert all(value.device.type == "meta" for value in scalars.values())
    assert all(p.device.type == "meta" for p in model.parameters())


# ---- Part III: data --------------------------------------------------------------------------------------------------


def test_cartoon_faces_follow_their_factors():
    images, factors = dlsgan.cartoon_faces(6, 32, seed=4)
    assert images.shape == (6, 3, 32, 32) and factors.shape == (6, 8)
    assert images.min() >= -1 and images.max() <= 1
    assert torch.equal(images, dlsgan.cartoon_faces(6, 32, seed=4)[0])
    for k in range(8):  # each factor changes the picture, smoothly
        values = torch.zeros(3, 8)
        values[:, k] = torch.tensor([-0.5, 0.0, 0.01])
        low, middle, near = dlsgan.cartoon_faces(0, 32, values=values)[0]
        assert (low - middle).abs().max() > 0.1, dlsgan.CARTOON_FACTORS[k]
        assert (near - middle).abs().max() < 0.05, dlsgan.CARTOON_FACTORS[k]
    values = torch.zeros(2, 8)
    values[1, 7] = 1.0  # background only: the corner changes, the nose does not
    a, b = dlsgan.cartoon_faces(0, 32, values=values)[0]
    assert (a[:, 0, 0] != b[:, 0, 0]).all() and torch.equal(a[:, 17, 16], b[:, 17, 16])
    assert (dlsgan.cartoon_faces(5, 16, factors=3)[1][:, 3:] == 0).all()
    big, small = (dlsgan.cartoon_faces(4, r, seed=1)[0] for r in (128, 32))
    assert (F.avg_pool2d(big, 4) - small).abs().mean() < 0.03  # the same faces at any resolution


def write_idx(path, images, magic=0x803):
    data = struct.pack(">4I", magic, *images.shape) + images.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_mnist(root, n=30):
    random = np.random.default_rng(0)
    write_idx(root / "train-images-idx3-ubyte.gz", random.integers(0, 256, (n, 28, 28), dtype=np.uint8))
    write_idx(root / "t10k-images-idx3-ubyte", random.integers(0, 256, (n, 28, 28), dtype=np.uint8))


def write_celeba(root, n=30, test=5, newline="\r\n", size=(218, 178)):
    folder = root / "img_align_celeba"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    names = [f"{i:06d}.jpg" for i in range(1, n + 11)]  # ten more are listed than present
    for name in names[:n]:
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / name)
    partition = [f"{name} {2 if i < test else i % 2}" for i, name in enumerate(names)]
    (root / "list_eval_partition.txt").write_bytes(newline.join(partition).encode() + b"\n")
    attributes = [str(len(names)), "Smiling Young"] + [f"{name}  1 -1" for name in names]
    (root / "list_attr_celeba.txt").write_bytes(newline.join(attributes).encode())


def test_mnist_files_plain_and_gzipped():
    write_mnist(Path("m"))
    train, test = dlsgan.load_mnist(dlsgan.Config(dataset="mnist", data_dir="m"))
    assert train.shape == test.shape == (30, 1, 32, 32) and train.dtype == np.uint8
    assert (train[:, :, :2] == 0).all() and train[:, :, 2:-2, 2:-2].any()
    assert dlsgan.load_mnist(dlsgan.Config(dataset="mnist", data_dir="m", resolution=16))[0].shape == (30, 1, 16, 16)


def test_celeba_layout_partition_and_framing():
    write_celeba(Path("c"))
    config = dlsgan.Config(dataset="celeba", data_dir="c", resolution=16)
    train, test = dlsgan.load_celeba(config)
    assert train.shape == (25, 3, 16, 16) and test.shape == (5, 3, 16, 16)
    frame = Image.open("c/img_align_celeba/000006.jpg").resize((16, 16), Image.LANCZOS)  # whole frame, squashed
    np.testing.assert_array_equal(train[0], np.asarray(frame).transpose(2, 0, 1))


def test_celeba_without_test_images_holds_some_out(capsys):
    write_celeba(Path("c"), n=40, test=0)
    train, test = dlsgan.load_celeba(dlsgan.Config(dataset="celeba", data_dir="c", resolution=8))
    assert (len(train), len(test)) == (38, 2)
    assert "2 images (5%) are held out" in capsys.readouterr().out


def odd_images(root):
    root.mkdir()
    gradient = np.linspace(0, 255, 40 * 30).reshape(40, 30).astype(np.uint8)
    Image.fromarray(gradient).save(root / "grey.png")
    Image.fromarray(np.dstack([gradient] * 3 + [np.zeros_like(gradient)]), "RGBA").save(root / "clear.png")
    Image.fromarray(np.dstack([gradient, gradient]), "LA").save(root / "grey_alpha.png")
    Image.fromarray(gradient).convert("P").save(root / "palette.gif")
    Image.fromarray(np.dstack([gradient] * 3)).convert("CMYK").save(root / "cmyk.jpg")
    (root / "deep").mkdir()
    Image.fromarray(np.dstack([gradient] * 3)).save(root / "deep" / "photo.JPG")


def test_a_folder_of_odd_images(capsys):
    odd_images(Path("f"))
    (Path("f") / "text.jpg").write_text("this is no image")
    whole = (Path("f") / "deep" / "photo.JPG").read_bytes()
    (Path("f") / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    train, test = dlsgan.load_folder(dlsgan.Config(dataset="folder", data_dir="f", resolution=16))
    assert (len(train), len(test)) == (4, 2) and train.shape[1:] == (3, 16, 16)
    printed = capsys.readouterr()
    assert "text.jpg" in printed.out + printed.err and "truncated.jpg" in printed.out + printed.err
    image = dlsgan.read_image(Path("f/clear.png"), dlsgan.Config(dataset="folder", resolution=16))
    assert (image == 255).all()  # transparent pixels are white, whatever colour hides behind them


def test_decoded_images_are_cached_and_a_truncated_cache_is_rebuilt(monkeypatch):
    odd_images(Path("f"))
    config = dlsgan.Config(dataset="folder", data_dir="f", resolution=16)
    first = np.array(dlsgan.load_folder(config)[0])
    with monkeypatch.context() as patch:
        patch.setattr(dlsgan, "read_image", None)  # a second decoding would fail
        second = dlsgan.load_folder(config)[0]
    np.testing.assert_array_equal(first, second)
    assert isinstance(second, np.memmap)
    for file in Path("cache/dlsgan").glob("*.u8"):
        os.truncate(file, 100)
    np.testing.assert_array_equal(first, dlsgan.load_folder(config)[0])


def test_batches_cover_each_epoch_once_and_resume_anywhere():
    images = np.arange(10, dtype=np.uint8)[:, None, None, None]
    stream = dlsgan.batches(images, 5, seed=1, step=0, flip=False)
    epochs = [np.concatenate([next(stream), next(stream)]).ravel() for _ in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])
    for step in range(6):
        resumed = next(dlsgan.batches(images, 5, seed=1, step=step, flip=False)).ravel()
        np.testing.assert_array_equal(resumed, np.concatenate(epochs)[5 * step : 5 * step + 5])


def test_flip_mirrors_about_half():
    images = np.zeros((400, 1, 2, 2), np.uint8)
    images[..., 0] = 1
    batch = next(dlsgan.batches(images, 400, seed=0, step=0, flip=True))
    assert 150 < (batch[:, 0, 0, 1] == 1).sum() < 250
    assert (images[..., 0] == 1).all()  # the data itself stays as it was


def test_uint8_and_float_are_inverse():
    x = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    y = dlsgan.to_float(x)
    assert y.min() == -1 and y.max() == 1
    np.testing.assert_array_equal(dlsgan.to_uint8(y), x)


# ---- Part III: measures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_and_ssim_against_scikit_image(channels):
    x = dlsgan.cartoon_faces(4, 32)[0][:, :channels]
    y = (x + 0.3 * torch.randn_like(x)).clamp(-1, 1)
    for a, b, ours_psnr, ours_ssim in zip(x, y, dlsgan.psnr(x, y), dlsgan.ssim(x, y), strict=True):
        a, b = a.double().numpy(), b.double().numpy()
        assert ours_psnr.item() == pytest.approx(peak_signal_noise_ratio(a, b, data_range=2), abs=1e-4)
        settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 2}
        assert ours_ssim.item() == pytest.approx(structural_similarity(a, b, channel_axis=0, **settings), abs=1e-4)


def perfect_model(pixels=16):
    """G is the identity on d = H*W values, D's head its exact inverse."""

    class Inverse(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, 0], x.flatten(1)

    return dlsgan.DLSGAN(nn.Unflatten(1, (1, pixels, pixels)), Inverse(), dlsgan.LatentScale(pixels**2))


def test_evaluate_on_a_perfect_and_on_a_blind_model():
    test = perfect_model().sample(40, seed=9).clamp(-1, 1)
    result = dlsgan.evaluate(perfect_model(), test, batch_size=7)
    assert result["mse_test"] == 0 and result["ssim_test"] == pytest.approx(1) and result["gain_test"] > 50
    assert result["spread"] == pytest.approx(1, abs=0.05)
    # clipping to [-1, 1] loses the tails: E[(z - clip(z))^2] for a standard normal variable
    clipped = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    assert result["l_enc"] == pytest.approx((clipped - clipped.clamp(-1, 1)).square().mean().item(), rel=0.05)
    blind = perfect_model()
    blind.discriminator.forward = lambda x: (x.flatten(1)[:, 0], 0 * x.flatten(1))
    result = dlsgan.evaluate(blind, test)
    assert result["l_enc"] == pytest.approx(1, rel=0.05) and result["active"] == 0
    # it reconstructs the mean, 0, and gains nothing over the mean image
    assert result["gain_test"] == pytest.approx(0, abs=0.2) and result["gain_generated"] == pytest.approx(0, abs=0.2)


def test_calibration_of_an_optimal_linear_encoder():
    """x = z + noise: z_hat = x / (1 + sigma^2), v = 1 / (1 + sigma^2), E[z z_hat] = v, MSE = 1 - v."""
    z = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = 0.5 * torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z_hat = (z + noise) / 1.25
    v = z_hat.square().mean()
    assert v.item() == pytest.approx(0.8, rel=0.01) and (z * z_hat).mean().item() == pytest.approx(0.8, rel=0.01)
    assert dlsgan.encoder_loss(z, z_hat, torch.ones(1)).item() == pytest.approx(0.2, rel=0.02)


def test_sliced_wasserstein_in_one_dimension():
    a = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shifted = measures.sliced_wasserstein(a, a + 0.7, projections=4)
    assert shifted == pytest.approx(0.7, rel=1e-9)  # W1 of a shift is the shift
    scaled = measures.sliced_wasserstein(a, 3 * a, projections=4)
    assert scaled == pytest.approx(2 * a.abs().mean().item(), rel=0.01)  # closed form: (3 - 1) E|x|
    from scipy.stats import wasserstein_distance

    b = torch.rand(20_000, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = wasserstein_distance(a[:, 0].numpy(), b[:, 0].numpy())
    assert measures.wasserstein_1d(a, b).item() == pytest.approx(expected, rel=1e-9)


def test_swd_is_small_for_equal_and_large_for_other_images():
    faces, same = (dlsgan.cartoon_faces(60, 32, seed)[0] for seed in (0, 1))
    other = torch.rand(60, 3, 32, 32) * 2 - 1
    near, far = measures.swd(faces, same), measures.swd(faces, other)
    assert near.keys() == {"32", "16", "mean"}
    assert all(2 * near[level] < far[level] for level in near)
    levels = measures.laplacian_pyramid(faces)
    assert [level.shape[-1] for level in levels] == [32, 16]


def test_frechet_distance_against_scipy():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 12, 12))
    a, b = a @ a.T, b @ b.T
    mean_a, mean_b = random.normal(size=(2, 12))
    expected = ((mean_a - mean_b) ** 2).sum() + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)
    assert measures.frechet_distance(mean_a, a, mean_b, b) == pytest.approx(expected, abs=1e-6)


class StandInInception(nn.Module):
    """Eight features that are known: the mean of each of the first eight rows of the red channel."""

    def forward(self, x: torch.Tensor, return_features: bool = False):
        return x[:, 0, :8].float().mean(2)


def test_fid_with_a_stand_in_network():
    torch.jit.script(StandInInception()).save("inception.pt")
    network = measures.load_inception("inception.pt")
    a, b = torch.rand(60, 3, 16, 16) * 2 - 1, torch.rand(60, 3, 16, 16) - 0.5
    features = [dlsgan.to_uint8(x)[:, 0, :8].double().mean(2).numpy() for x in (a, b)]
    covariances = [np.cov(f, rowvar=False) for f in features]
    expected = ((features[0].mean(0) - features[1].mean(0)) ** 2).sum()
    expected += np.trace(covariances[0] + covariances[1] - 2 * scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real)
    assert measures.fid(a, b, network) == pytest.approx(expected, rel=1e-3)
    assert measures.fid(a, a, network) == pytest.approx(0, abs=1e-6)
    with pytest.raises(dlsgan.UserError, match="not the TorchScript file"):
        measures.load_inception(__file__)


# ---- Toy experiments -------------------------------------------------------------------------------------------------


def test_optimal_encoder_of_the_linear_case_against_samples():
    """v_i = Var(E[z_i | x]) and E[z_i z_hat_i] = v_i, with E[z | x] by least squares on samples."""
    random = np.random.default_rng(0)
    a, p = random.normal(size=(3, 4)), random.uniform(0.2, 2, 4)
    z = random.normal(size=(200_000, 4))
    x = (z * np.sqrt(p)) @ a.T + 0.5 * random.normal(size=(200_000, 3))
    z_hat = x @ np.linalg.lstsq(x, z, rcond=None)[0]
    expected = linear_gaussian.variances(a, p, 0.5)
    np.testing.assert_allclose((z_hat**2).mean(0), expected, atol=0.01)
    np.testing.assert_allclose((z * z_hat).mean(0), expected, atol=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_the_scale_update_never_loses_information(seed):
    random = np.random.default_rng(seed)
    a, sigma = random.normal(size=(5, 8)), random.uniform(0.1, 1)
    p, trace = linear_gaussian.dls_iterations(a, sigma, 300)
    assert np.diff(trace).min() > -1e-10 and trace[-1] > trace[0] + 0.01
    # v_i = p_i d/dp_i logdet(sigma^2 I + A diag(p) A^T), which is 2 p_i dI/dp_i, by finite differences
    steps = 1e-6 * np.eye(8)
    both = [[linear_gaussian.information(a, p + sign * step, sigma) for sign in (1, -1)] for step in steps]
    slope = np.array([(more - less) / 2e-6 for more, less in both])
    np.testing.assert_allclose(linear_gaussian.variances(a, p, sigma), 2 * p * slope, atol=1e-6)


def test_linear_gaussian_claims():
    result = linear_gaussian.main(steps=3000, learned_steps=1, moving_steps=1500, figure=False)
    assert result["margin_to_the_water_line"] >= 0.05 and result["water_filling_error"] < 1e-12
    assert result["largest_fall_of_information"] < 1e-10
    assert result["sum_v_rank_3_sigma_0.001"] == pytest.approx(3, abs=1e-5)
    fixed, moved = result["correlated"].values()
    assert fixed["effective_dimensions"] > 4 and fixed["l_enc"] > 0.5  # the fixed point of a fixed, correlated A
    assert moved["effective_dimensions"] < 2.1 and moved["l_enc"] < 0.05  # and what is left when A moves


def test_water_filling_against_its_conditions():
    gains = np.array([2.0, 1.0, 0.5, 0.3])
    power, level = linear_gaussian.water_filling(gains, 1.0)
    assert power.sum() == pytest.approx(4) and (power[power > 0] + 1 / gains[power > 0] ** 2 == pytest.approx(level))
    assert (1 / gains[power == 0] ** 2 >= level).all() and (power == 0).any()


@pytest.mark.slow
def test_learned_linear_scale_within_two_percent():
    result = linear_gaussian.main(figure=False)
    assert result["learned_error_ema"] < 0.02 and result["learned_error_sma"] < 0.02


# ---- Speed -----------------------------------------------------------------------------------------------------------

def gradients_of_a_step(levers, penalty_weight=4.0):
    """What one training step in float64 with plain gradient descent changes, with the named shortcuts switched off."""
    torch.manual_seed(0)
    config = dlsgan.Config(resolution=32, width=0.0625, latent_dim=8, mapping_layers=2)
    with naive.without(levers):
        model = dlsgan.build(config).double().to(memory_format=torch.channels_last)
        naive.change_model(model, levers)
        before = [p.detach().clone() for p in model.parameters()]
        optimizers = [torch.optim.SGD(network.parameters(), 1.0) for network in (model.generator, model.discriminator)]
        real = 2 * torch.rand(3, 3, 32, 32, dtype=torch.float64) - 1
        z = torch.randn(3, 8, dtype=torch.float64)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dlsgan, "prior", lambda *arguments: z)
            dlsgan.train_step(model, optimizers, real, torch.Generator(), penalty_weight=penalty_weight)
        return [a.detach() - b for a, b in zip(model.parameters(), before, strict=True)]


@pytest.mark.parametrize("lever", [name for name in naive.LEVERS if not name.startswith("one batch")])
def test_each_shortcut_leaves_the_training_step_as_it_is(lever):
    fast, plain = gradients_of_a_step([]), gradients_of_a_step([lever])
    assert max((p - f).abs().max() / f.abs().max() for f, p in zip(fast, plain, strict=True)) < 1e-11


def test_one_fake_batch_gives_the_gradients_of_two_updates_with_the_same_z():
    """Against the usual order (D's update, then G's), with D's update too small to change G's gradient."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", lambda self: [
            p.data.sub_(1e-9 * p.grad) for group in self.param_groups for p in group["params"]])
        fast, plain = gradients_of_a_step([], 0.0), gradients_of_a_step(["one batch of fakes for both losses"], 0.0)
    assert max((p - f).abs().max() / f.abs().max() for f, p in zip(fast, plain, strict=True)) < 1e-5


def test_the_floor_counts_what_pytorch_counts():
    """PyTorch's counter of operations also sees the depthwise filters, 16 products for each of their outputs."""
    config = dlsgan.Config(resolution=32, width=0.0625, latent_dim=16, mapping_layers=3)
    model, channels = dlsgan.build(config), {r: dlsgan.channels_at(r, 0.0625) for r in (4, 8, 16, 32)}
    inputs = (torch.randn(2, 16), model.generator), (torch.randn(2, 3, 32, 32), model.discriminator)
    filters = (
        sum(r * r * channels[r] for r in (8, 16, 32)),
        sum(((r + 1) ** 2 + (r // 2) ** 2) * channels[r] for r in (8, 16, 32)),
    )
    for (x, network), expected, outputs in zip(inputs, floor.forward_flops(config), filters, strict=True):
        with FlopCounterMode(display=False) as counter:
            network(x)
        assert counter.get_total_flops() == 2 * (expected + 2 * 16 * outputs)


def test_every_section_of_the_speeds_and_their_table(monkeypatch):
    write_celeba(Path("c"), 40)
    for name, changes in dlsgan.PRESETS.items():
        monkeypatch.setitem(dlsgan.PRESETS, name, changes | {key: TINY[key] for key in TINY if key != "threads"})
    monkeypatch.setattr(speed, "gemm_peak", lambda: 1e9)
    monkeypatch.setattr(speed, "alone", lambda settings, threads: speed.measure(settings, threads, 1))
    monkeypatch.setattr(speed, "startup", lambda settings, every=1: {"seconds": 1.5, "GiB": 0.25 * every})
    bench = {"resolution": 16, "width": 0.02, "latent_dim": 4, "mapping_layers": 1, "batch_size": 2}
    Path("results").mkdir()
    path = Path("results/speed.json")
    path.write_text(json.dumps({"machine": "another", "floor, 9 threads": {}}))  # is not mixed with this one
    found = speed.main([], [1], "c", bench, path)
    levers = found["levers, 1 threads: without it, with it, gain"]
    assert levers.keys() == {*naive.LEVERS, "all of these", "R1 every 16th step"}
    assert all(math.isfinite(x) and x > 0 for row in levers.values() for x in row.values())
    assert json.loads(path.read_text()) == found and "floor, 9 threads" not in found
    speed.main(["startup"], [1], "", bench, path)  # one section anew, the others stay
    assert json.loads(path.read_text()).keys() == found.keys()
    monkeypatch.setattr(results, "FOLDER", Path("results/runs"))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in results.speeds().splitlines()[2:-2]]
    names = ["batch 8", "batch 32", "cartoon, batch 4", "mnist, batch 4", "celeba64, batch 4", "celeba, batch 4",
             "128x128, d = 256", "celeba64", "cartoon", "celeba64"]
    assert [row[0].split(":")[0] for row in rows] == names
    kinds = rows[-1][0].removeprefix("celeba64: share of ").split(", ")
    assert kinds == ["data", "averaged weights", "optimisers", "R1", "evaluations"]
    assert len(rows[-1][1].split(", ")) == len(kinds)
    assert results.speeds().endswith("cartoon 1.5 s, 0.25 GiB.")


def test_the_share_of_the_optimisers_is_that_of_whole_updates(monkeypatch):
    """Adam leaves out weights without gradient, in no time at all."""
    stepped, step = [], torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, closure=None: stepped.append(
        all(p.grad is not None for group in self.param_groups for p in group["params"])) or step(self))
    found = speed.shares(tiny(), repeats=2)
    assert all(stepped) and found.keys() == {"data", "averaged weights", "optimisers", "R1", "evaluations"}


def test_kernels_are_told_apart():
    x, square = torch.randn(16, 32, 64, 64), torch.randn(1000, 1000)
    calls = [("filters", lambda: dlsgan.LowPass(1)(x)), ("convolutions", lambda: F.conv2d(x, torch.ones(32, 32, 3, 3))),
             ("convolutions", lambda: F.conv_transpose2d(x, torch.ones(32, 32, 3, 3), stride=2)),
             ("convolutions", lambda: F.conv2d(x, torch.ones(32, 32, 1, 1))),
             ("matrix products", lambda: square @ square), ("everything else", lambda: square.exp())]
    for kind, call in calls:
        shares = floor.kernels(call)
        assert max(shares, key=shares.get) == kind and sum(shares.values()) == pytest.approx(1), (kind, shares)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_does_not_grow_with_the_data_set():
    """2,000 images of 64x64 pixels are 23 MiB; they stay in the file that is mapped into memory."""
    for name, n in (("few", 100), ("many", 2000)):
        folder = Path(name, "img_align_celeba")
        folder.mkdir(parents=True)
        for i in range(2):
            image = Image.fromarray(np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8))
            image.save(Path(name, f"{i}.png"))
        for i in range(n):
            (folder / f"{i:06d}.png").symlink_to(Path(name, f"{i % 2}.png").absolute())
        rows = [f"{i:06d}.png {2 * (i < 20)}" for i in range(n)]
        Path(name, "list_eval_partition.txt").write_text("\n".join(rows) + "\n")
    settings = TINY | {"dataset": "celeba", "resolution": 64}
    few, many = (speed.startup(settings | {"data_dir": name})["GiB"] * 1024 for name in ("few", "many"))
    assert 50 < few and many < few + 10  # MiB


def test_adam_sees_gradients_laid_out_like_their_weights(monkeypatch):
    """The fused Adam of PyTorch 2.13 on a CPU silently mixes up the entries of a weight whose gradient has other strides."""
    model = dlsgan.build(dlsgan.Config(**TINY)).to(memory_format=torch.channels_last)
    optimizers = dlsgan.make_optimizers(model, 1e-3)
    for optimizer in optimizers:
        monkeypatch.setattr(optimizer, "step", lambda: None)
        monkeypatch.setattr(optimizer, "zero_grad", lambda set_to_none: None)
    dlsgan.train_step(model, optimizers, torch.zeros(4, 3, 16, 16), torch.Generator(), penalty_weight=1.0)
    for p in model.parameters():
        ambiguous = [size > 1 for size in p.shape]
        assert [a for a, b in zip(p.stride(), ambiguous, strict=True) if b] == [
            a for a, b in zip(p.grad.stride(), ambiguous, strict=True) if b]


def test_copies_to_cuda_do_not_wait(monkeypatch):
    """A copy from memory that is not pinned would make the host wait until the GPU has done all its work."""
    calls = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: calls.append("pinned") or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *where, **how: calls.append((where, how)) or self)
    for device in ("cuda", "mps"):
        dlsgan.to_device(torch.ones(2), device)
    assert calls == ["pinned", (("cuda",), {"non_blocking": True}), (("mps",), {})]


# ---- Part III: training and the command line -------------------------------------------------------------------------


def tiny(**settings):
    return dlsgan.Config(**TINY | settings)


def flags(**settings):
    return [f"--{key.replace('_', '-')}={value}" for key, value in (TINY | settings).items()]


def test_the_averaged_weights_carry_no_graph(monkeypatch):
    """In-place averages of weights that require gradients would keep the graph of every step alive."""
    seen = []
    monkeypatch.setattr(dlsgan, "evaluate", lambda model, *_: seen.extend(model.parameters()) or {})
    list(dlsgan.train(tiny()))
    assert seen and not any(p.requires_grad or p.grad_fn for p in seen)


def test_a_second_training_does_not_overwrite_the_first():
    list(dlsgan.train(tiny(out="r")))
    before = Path("r/metrics.jsonl").read_text()
    with pytest.raises(dlsgan.UserError, match="r already holds a run"):
        list(dlsgan.train(tiny(out="r")))
    assert Path("r/metrics.jsonl").read_text() == before


def test_celeba_in_the_nested_folder_of_some_archives():
    write_celeba(Path("c"))
    Path("c/img_align_celeba").rename("c/inner")
    Path("c/img_align_celeba").mkdir()
    Path("c/inner").rename("c/img_align_celeba/img_align_celeba")
    train, test = dlsgan.load_celeba(dlsgan.Config(dataset="celeba", data_dir="c", resolution=8))
    assert (len(train), len(test)) == (25, 5)


def test_every_metric_is_documented_and_finite(monkeypatch):
    monkeypatch.setattr(dlsgan, "report", REPORT)
    lines = list(dlsgan.train(tiny(out="r")))
    written = [json.loads(text) for text in Path("r/metrics.jsonl").read_text().splitlines()]
    assert written == json.loads(json.dumps(lines))
    families = {re.sub("_(generated|test)$", "_*", key) for line in lines for key in line}
    assert families == dlsgan.METRICS.keys()
    assert all(np.isfinite(value).all() for line in lines for value in line.values())
    assert [line["images"] for line in lines] == list(range(4, 44, 4))
    assert Image.open("r/report.png").size[0] > 1000


@pytest.mark.parametrize("dataset", ["cartoon", "mnist", "celeba", "folder"])
def test_a_few_real_training_steps_on_each_data_set(dataset, capsys):
    write_mnist(Path("data/mnist"))
    write_celeba(Path("data/celeba"))
    odd_images(Path("pictures"))
    name = "pictures" if dataset == "folder" else dataset
    small = flags(batch_size=4, images=12)
    assert dlsgan.main(["--dataset", name, *small]) == 0
    printed = capsys.readouterr().out
    assert "images/s on this device" not in printed or "minutes" in printed
    assert "L_enc of the averaged networks" in printed and f"in runs/{dataset}: checkpoint.pt, metrics" in printed
    model = dlsgan.load(f"runs/{dataset}")
    x = model.sample(3)
    assert x.shape == (3, 1 if dataset == "mnist" else 3, 16, 16) and x.isfinite().all()
    assert model.encode(x).shape == (3, 4)
    assert torch.equal(model.reconstruct(x), model.decode(model.encode(x)))


@pytest.mark.parametrize("loss", ["original", "lsgan", "wgan-gp"])
def test_the_other_losses_train(loss):
    assert list(dlsgan.train(tiny(loss=loss)))[-1]["images"] == 40


def weights(folder):
    state = torch.load(Path(folder) / "checkpoint.pt", weights_only=True)
    return {f"{part}.{name}": value for part in ("model", "ema") for name, value in state[part].items()}


@pytest.mark.parametrize("rule", ["ema", "sma"])
def test_a_stopped_and_resumed_run_is_bit_exact(rule):
    """Stopped between two lines of metrics, with a penalty step (16) still to come and an epoch (10 steps) passed."""
    settings = {"resolution": 8, "images": 4 * 430, "scale_rule": rule, "flip": True}
    list(dlsgan.train(tiny(out="whole", **settings)))
    stop = threading.Event()
    count = 0

    def stopping(*arguments, original=dlsgan.train_step, **keywords):
        nonlocal count
        count += 1
        if count == 13:
            stop.set()
        return original(*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dlsgan, "train_step", stopping)
        list(dlsgan.train(tiny(out="parts", **settings), stop=stop))
    config, state = dlsgan.read_checkpoint("parts")
    assert state["step"] == 13
    list(dlsgan.train(config, resume=True))
    a, b = weights("whole"), weights("parts")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    lines = [Path(run, "metrics.jsonl").read_text().splitlines() for run in ("whole", "parts")]
    for pair in zip(*(map(json.loads, texts) for texts in lines), strict=True):
        for line in pair:
            del line["seconds"], line["images_per_second"]
        assert pair[0] == pair[1]


def test_resume_cuts_metrics_after_the_checkpoint():
    list(dlsgan.train(tiny(out="r")))
    path = Path("r/metrics.jsonl")
    complete = path.read_text()
    path.write_text(complete + json.dumps({"images": 44}) + '\n{"images": 48, "se')  # a crash after the checkpoint
    list(dlsgan.train(tiny(out="r", images=52), resume=True))
    assert path.read_text().startswith(complete)
    assert [json.loads(line)["images"] for line in path.read_text().splitlines()] == list(range(4, 56, 4))


def test_resume_from_the_command_line(capsys):
    assert dlsgan.main(flags(out="r")) == 0
    assert dlsgan.main(["--resume", "r", "--images", "60"]) == 0
    assert json.loads(Path("r/metrics.jsonl").read_text().splitlines()[-1])["images"] == 60
    capsys.readouterr()
    assert dlsgan.main(["--resume", "r", "--lr", "0.1"]) == 2
    assert capsys.readouterr().err == "dlsgan: --resume keeps the settings of its checkpoint: leave out --lr\n"


def test_nan_stops_with_the_last_good_checkpoint(monkeypatch, capsys):
    list(dlsgan.train(tiny(out="r")))
    before = weights("r")

    def poisoned(model, *arguments, original=dlsgan.train_step, **keywords):
        model.generator.constant.data.fill_(math.nan)
        return original(model, *arguments, **keywords)

    monkeypatch.setattr(dlsgan, "train_step", poisoned)
    assert dlsgan.main(["--resume", "r", "--images", "80"]) == 2
    assert re.search(r"loss_\w became nan after 44 images; a checkpoint before is kept: try", capsys.readouterr().err)
    assert all(torch.equal(value, before[name]) for name, value in weights("r").items())


def test_presets():
    paper = dlsgan.configure({"dataset": "celeba", "out": "x"})
    assert (paper.resolution, paper.latent_dim, paper.batch_size, paper.encoder_weight) == (128, 512, 32, 1.0)
    assert (paper.scale_rule, paper.scale_window, paper.r1_gamma, paper.lr) == ("sma", 512, 20.0, 1e-3)
    assert (paper.width, paper.mapping_layers, paper.head_scale) == (1.0, 8, 1.0)
    small = dlsgan.configure({"preset": "celeba64", "data_dir": "d", "out": "x"})
    assert (small.dataset, small.resolution, small.data_dir) == ("celeba", 64, "d")
    assert dlsgan.configure({}).out == "runs/cartoon"
    Path("runs/cartoon").mkdir(parents=True)
    assert dlsgan.configure({}).out == "runs/cartoon-2"
    assert dlsgan.configure({"latent_scale": False}).out == "runs/cartoon-no-scale"
    for preset in dlsgan.PRESETS:
        dlsgan.Config(**dlsgan.PRESETS[preset]).check()


def test_help_shows_every_flag_and_its_default(capsys):
    with pytest.raises(SystemExit) as end:
        dlsgan.main(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    for field in dataclasses.fields(dlsgan.Config):
        assert "--" + field.name.replace("_", "-") in text
    assert "(default: 32)" in text and "celeba64" in text


def test_photos_are_written_beside_their_reconstructions(capsys):
    assert dlsgan.main(flags(out="r")) == 0
    odd_images(Path("f"))
    capsys.readouterr()
    photos = ["f/grey.png", "f/deep/photo.JPG"]
    assert dlsgan.main(["--reconstruct", *photos, "--checkpoint", "r", "--out", "o"]) == 0
    line = r"o/[\w.]+-reconstruction.png: PSNR -?\d+\.\d dB; latent distance \d+\.\d\d \(generated images: 1.00 on average; "
    assert len(re.findall(line, capsys.readouterr().out)) == 2
    assert Image.open("o/grey.png-reconstruction.png").size == (32, 16)


class Exploit:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def damaged_inputs():
    """Name -> (how to damage, arguments, what the line must name)."""

    def mnist(change):
        def make():
            write_mnist(Path("m"))
            change(Path("m/t10k-images-idx3-ubyte"))

        return make

    def celeba(change):
        def make():
            write_celeba(Path("c"))
            change(Path("c"))

        return make

    def checkpoint(change):
        def make():
            list(dlsgan.train(tiny(out="r", images=8)))
            change(Path("r/checkpoint.pt"))

        return make

    def edit(path, change):
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)

    def folder(name, *contents):
        def make():
            Path(name).mkdir()
            for i, content in enumerate(contents):
                Path(name, f"{i}.jpg").write_bytes(content)

        return make

    def drop_attribute_rows(root):
        path = root / "list_attr_celeba.txt"
        lines = path.read_text().splitlines()
        path.write_text("\n".join(["35", *lines[1:2], *lines[7:]]))

    def replace(path, old, new):
        path.write_bytes(path.read_bytes().replace(old, new, 1))

    partition = "list_eval_partition.txt"
    idx, use_c, use_r = "m/t10k-images-idx3-ubyte", ["--dataset=celeba", "--data-dir=c"], ["--resume=r"]
    use_m, photo = ["--dataset=mnist", "--data-dir=m"], ["--checkpoint=r", "--reconstruct"]
    return {
        "missing celeba": (None, ["--dataset=celeba"], "data/celeba/img_align_celeba"),
        "missing folder": (None, ["--data-dir=nowhere"], "nowhere"),
        "empty folder": (folder("f"), ["--dataset=f"], "f is not a folder with image files"),
        "text files named jpg": (folder("f", b"text", b"more"), ["--dataset=f"], "f/"),
        "unknown data set": (None, ["--dataset=imagenet"], "imagenet"),
        "idx magic": (mnist(lambda p: replace(p, b"\x08\x03", b"\x0d\x03")), use_m, f"{idx} .*magic number is 0xd03"),
        "idx short": (mnist(lambda p: os.truncate(p, 1000)), use_m, idx),
        "idx empty": (mnist(lambda p: os.truncate(p, 0)), use_m, idx),
        "idx gzip damaged": (mnist(lambda p: p.write_bytes(gzip.compress(p.read_bytes())[:500])), use_m, idx),
        "partition missing": (celeba(lambda r: (r / partition).unlink()), use_c, partition),
        "partition value": (celeba(lambda r: replace(r / partition, b"jpg 2", b"jpg 7")), use_c, "000001.jpg"),
        "attributes do not match": (celeba(drop_attribute_rows), use_c, "list_attr_celeba.txt .*000001.jpg"),
        "attributes column": (celeba(lambda r: replace(r / "list_attr_celeba.txt", b"1 -1", b"1")), use_c, "000001.jpg"),
        "attributes count": (celeba(lambda r: replace(r / "list_attr_celeba.txt", b"40", b"41")), use_c, "announces 41"),
        "resolution": (None, ["--resolution=100"], "--resolution 100"),
        "negative rate": (None, ["--lr=-1"], "--lr"),
        "nan rate": (None, ["--lr=nan"], "--lr"),
        "batch larger than data": (None, ["--batch-size=64"], "--batch-size 64"),
        "unknown loss": (None, ["--loss=hinge"], "hinge"),
        "unknown device": (None, ["--device=tpu"], "tpu"),
        "output is a file": (lambda: Path("o").write_text("mine"), ["--out=o"], "o"),
        "output below a file": (lambda: Path("o").write_text("mine"), ["--out=o/run"], "o/run"),
        "output holds a run": (checkpoint(lambda p: None), ["--out=r"], "r already holds a run"),
        "no checkpoint": (None, ["--resume=nowhere"], "nowhere"),
        "text as checkpoint": (checkpoint(lambda p: p.write_text("weights")), use_r, "r/checkpoint.pt"),
        "truncated checkpoint": (checkpoint(lambda p: os.truncate(p, 5000)), use_r, "r/checkpoint.pt"),
        "foreign checkpoint": (checkpoint(lambda p: torch.save({"a": 1}, p)), use_r, "r/checkpoint.pt"),
        "malicious checkpoint": (checkpoint(lambda p: p.write_bytes(pickle.dumps(Exploit()))), use_r, "r/checkpoint.pt"),
        "malicious zip checkpoint": (checkpoint(lambda p: torch.save(Exploit(), p)), use_r, "r/checkpoint.pt"),
        "checkpoint of another format": (checkpoint(lambda p: edit(p, lambda s: s.update(format=9))), use_r, "format 9"),
        "other configuration": (checkpoint(lambda p: edit(p, lambda s: s["config"].update(latent_dim=7))), use_r, "r"),
        "bad photo": (checkpoint(lambda p: Path("x.jpg").write_text("no")), [*photo, "x.jpg"], "x.jpg"),
        "missing photo": (checkpoint(lambda p: None), [*photo, "gone.jpg"], "gone.jpg"),
        "checkpoint without photo": (None, ["--checkpoint=r"], "--reconstruct PHOTO"),
    }


@pytest.mark.parametrize("case", damaged_inputs())
def test_bad_input_gets_one_clear_line(case, capsys):
    make, arguments, named = damaged_inputs()[case]
    if make:
        make()
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file() and path.parts[0] != "cache"}
    capsys.readouterr()
    reading = any(a.startswith(("--resume", "--checkpoint", "--reconstruct")) for a in arguments)
    given = {a.split("=")[0] for a in arguments}
    rest = [] if reading else [flag for flag in flags(out="run") if flag.split("=")[0] not in given]
    assert dlsgan.main([*arguments, *rest]) == 2
    error = capsys.readouterr().err
    line = error.replace("\r", "\n").strip().splitlines()[-1]
    assert line.startswith("dlsgan: ") and re.search(named, line), error
    assert "Traceback" not in error and len(line) < 400
    after = {path: path.read_bytes() for path in before if path.exists()}
    assert after == before  # nothing that was there is lost
    assert not Path("executed").exists()


def test_a_full_disk_keeps_the_checkpoint_before(monkeypatch):
    list(dlsgan.train(tiny(out="r")))
    before = weights("r")

    def full(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(dlsgan.UserError, match="cannot write r/checkpoint.pt: No space left on device"):
        list(dlsgan.train(dataclasses.replace(tiny(out="r"), images=60), resume=True))
    assert all(torch.equal(value, before[name]) for name, value in weights("r").items())


def test_the_file_alone_runs_in_an_empty_folder():
    shutil.copy(ROOT / "dlsgan.py", "dlsgan.py")
    command = [sys.executable, "dlsgan.py", *flags(images=8, resolution=8)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    assert "spread" in done.stdout and Path("runs/cartoon/report.png").exists()
    foreign = r"^(from|import) (toy_experiments|scipy|skimage|sklearn|torchvision)"
    assert not re.search(foreign, Path("dlsgan.py").read_text(), re.M)


def test_sigterm_saves_and_says_how_to_go_on():
    command = [sys.executable, str(ROOT / "dlsgan.py"), *flags(images=10**6, resolution=8, out="r")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with contextlib.suppress(FileNotFoundError):
        while process.poll() is None and not (Path("r/metrics.jsonl").exists() and Path("r/metrics.jsonl").stat().st_size):
            pass
    process.terminate()
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert "--resume r" in out and dlsgan.read_checkpoint("r")[1]["step"] > 0


def test_the_readme_commands_and_example():
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```(\w+)\n(.*?)```", text, re.S)
    shell = [line for kind, block in blocks if kind == "sh" for line in block.splitlines()]
    flag_names = {"--" + field.name.replace("_", "-") for field in dataclasses.fields(dlsgan.Config)}
    flag_names |= {"--no-latent-scale", "--preset", "--resume", "--reconstruct", "--checkpoint", "--nproc-per-node"}
    for line in shell:
        if "dlsgan.py" in line:
            assert {word for word in shlex.split(line, comments=True) if word.startswith("--")} <= flag_names, line
    assert shell[0].endswith("dlsgan.py") and shell[1].endswith("-m pytest")
    assert shell[1] in (ROOT / ".ci" / "run").read_text().splitlines()  # CI runs what the reader runs
    list(dlsgan.train(tiny(resolution=32, out="runs/cartoon")))
    for kind, block in blocks:
        if kind == "python":
            exec(compile(block, "README.md", "exec"), {})


def test_the_readme_table_comes_from_the_kept_results():
    for page, folder in (("README.md", results.FOLDER), ("toy_experiments/README.md", results.TRIALS)):
        shown = [line for line in (ROOT / page).read_text().splitlines() if line.startswith("| `python dlsgan.py")]
        assert shown == results.table(folder=folder).splitlines()[2:] and shown


def test_the_readme_speeds_come_from_the_kept_measurement():
    assert results.speeds() in (ROOT / "README.md").read_text()


def test_a_finished_run_is_kept_with_its_command(monkeypatch):
    monkeypatch.setattr(results, "FOLDER", Path("kept"))
    list(dlsgan.train(tiny(out="mine")))
    path = results.add("mine", "python dlsgan.py --out mine")
    last = json.loads(Path("mine/metrics.jsonl").read_text().splitlines()[-1])
    assert json.loads(path.read_text())["measures"] == last
    row = results.table().splitlines()[2]
    assert row.startswith("| `python dlsgan.py --out mine` | ")
    assert f"{last['psnr_test']:.1f} ({last['gain_test']:+.1f})" in row


def test_distances_of_a_run_from_the_command_line(capsys):
    list(dlsgan.train(tiny(out="r")))
    result = measures.main("r")
    assert result.keys() == {"samples", "other test images"} and result["samples"].keys() == {"swd 16", "swd mean"}
    assert "FID: absent" in capsys.readouterr().out


def test_the_sizes_of_the_files():
    assert len((ROOT / "dlsgan.py").read_text().splitlines()) <= 980
    for path in (ROOT / "toy_experiments").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 250, path.name


# ---- Trained models and the paper's figures --------------------------------------------------------------------------


@pytest.fixture
def kept(monkeypatch):
    """pretrained/ and results/ in the test's own folder."""
    monkeypatch.setattr(dlsgan, "PRETRAINED", Path("pretrained").resolve())
    monkeypatch.setattr(results, "FOLDER", Path("kept"))


def test_an_exported_model_is_the_run_in_half_precision(kept, capsys, monkeypatch):
    list(dlsgan.train(tiny(out="mine", images=80)))
    path = export.export("mine", "python dlsgan.py --out mine", images=20)
    state = torch.load(path, weights_only=True)
    original = dlsgan.read_checkpoint("mine")[1]["ema"]
    assert path.name == "mine.pt" and path.stat().st_size < 12e6 and state["images"] == 80
    assert {x.dtype for k, x in state["ema"].items() if k != "latent_scale.v"} == {torch.float16}
    assert torch.equal(state["ema"]["latent_scale.v"], original["latent_scale.v"])
    for name, x in state["ema"].items():
        np.testing.assert_allclose(x.float(), original[name], rtol=2**-11, atol=2**-24)  # float16: 11 bits, subnormals
    assert not {state["config"][key] for key in ("data_dir", "out")} & {"mine", "data/cartoon"}
    model = dlsgan.load_pretrained("mine")
    assert model.generator.constant.dtype == torch.float32
    x = dlsgan.cartoon_faces(4, 16)[0]
    torch.testing.assert_close(model.encode(x), dlsgan.load("mine").encode(x), atol=1e-2, rtol=1e-2)
    with pytest.raises(dlsgan.UserError, match="mine.pt/metrics.jsonl cannot be read"):
        export.export(str(path), "again")
    with pytest.raises(dlsgan.UserError, match="pretrained/yours.pt cannot be read: .*; there: mine$"):
        dlsgan.load_pretrained("yours")

    lines = [json.loads(text) for text in Path("mine/metrics.jsonl").read_text().splitlines()]
    evaluated = [line for line in lines if "l_enc" in line]
    result = results.load("mine")
    assert result["curves"]["images"] == [line["images"] for line in evaluated]
    np.testing.assert_allclose(result["curves"]["psnr_test"], [line["psnr_test"] for line in evaluated], rtol=1e-4)
    measured = dlsgan.evaluate(model, dlsgan.to_float(small_cartoon(tiny())[1][:20]))
    exported = result["exported"]
    assert exported["stored_as"] == "float16" and exported["test_images"] == 20 and exported["trained_on"] == 40
    assert exported["l_enc"] == pytest.approx(measured["l_enc"]) and exported["swd"] > 0
    with torch.no_grad():
        for name, part in zip(("train", "test"), small_cartoon(tiny()), strict=True):
            logits = [dlsgan.load("mine").discriminator(x[None])[0].item() for x in dlsgan.to_float(part[:20])]
            assert exported[f"logits_{name}"] == pytest.approx(sum(logits) / 20, rel=1e-3)
    card = Path("pretrained/README.md").read_text()
    assert card == export.card() and "## mine" in card and f"| L_enc | {exported['l_enc']:.3f} |" in card
    table = results.compare(["mine", "mine"])
    assert f"| L_enc | {exported['l_enc']:.3f} | {exported['l_enc']:.3f} |" in table and "differ: none" in table

    monkeypatch.setattr(export, "half_precision", lambda weights: {k: 0 * x for k, x in weights.items()})
    monkeypatch.setattr(measures, "main", lambda *_: exported["distances"])
    export.export("mine", "again", images=20)
    assert results.load("mine")["exported"]["stored_as"] == "float32"
    assert torch.equal(torch.load(path, weights_only=True)["ema"]["generator.constant"], original["generator.constant"])
    monkeypatch.setattr(export, "LIMIT", 1000)
    with pytest.raises(dlsgan.UserError, match="at most 0 MB"):
        export.export("mine", "again", images=20)
    assert not path.exists()


@pytest.mark.parametrize("path", sorted((ROOT / "pretrained").glob("*.pt")), ids=lambda path: path.stem)
def test_the_committed_models_and_their_card(path):
    assert path.stat().st_size < 12e6 and dlsgan.load_pretrained(path.stem).sample(2).isfinite().all()
    exported = results.load(path.stem)["exported"]
    assert exported["bytes"] == path.stat().st_size
    assert exported["images"] == torch.load(path, weights_only=True)["images"]
    assert (ROOT / "pretrained" / "README.md").read_text() == export.card()


def test_photos_are_reconstructed_by_the_pretrained_model(monkeypatch, capsys):
    shutil.copy(ROOT / "dlsgan.py", "copied.py")
    spec = importlib.util.spec_from_file_location("copied", "copied.py")
    copied = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "copied", copied)
    spec.loader.exec_module(copied)
    Image.new("RGB", (20, 20), "green").save("photo.png")
    assert copied.main(["--reconstruct", "photo.png"]) == 2  # a copied file has no trained models
    line = r"dlsgan: \S+/pretrained/celeba64.pt cannot be read: .*; there: nothing, see the repository\n"
    assert re.fullmatch(line, capsys.readouterr().err)
    list(dlsgan.train(tiny(out="r", images=8)))
    config, state = dlsgan.read_checkpoint("r")
    export.write(Path("pretrained/celeba64.pt"), config, 8, export.half_precision(state["ema"]))
    assert copied.main(["--reconstruct", "photo.png"]) == 0
    assert "photo.png-reconstruction.png: PSNR" in capsys.readouterr().out
    assert Image.open("photo.png-reconstruction.png").size == (32, 16)
    assert copied.load_pretrained("celeba64").sample(2).shape == (2, 3, 16, 16)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    ("angle", "scale", "x", "y"), [(0, 1, 90, 120), (25, 1.5, 200, 220), (-40, 0.6, 90, 90), (8, 5, 400, 300)]
)
def test_eyes_come_to_the_places_of_celeba(angle, scale, x, y, swapped):
    """Two soft dots, red and green, in an otherwise black photo; measured by their centres of mass in the crop."""
    distance = scale * (align.EYES[1][0] - align.EYES[0][0])
    right = (x + distance * math.cos(math.radians(angle)), y + distance * math.sin(math.radians(angle)))
    rows, columns = np.mgrid[: int(2.2 * y), : int(2 * x + distance)]
    pixels = np.zeros((*rows.shape, 3), np.uint8)
    for channel, (eye_x, eye_y) in enumerate(((x, y), right)):
        square = (columns - eye_x) ** 2 + (rows - eye_y) ** 2
        pixels[:, :, channel] = np.exp(-square / (2 * max(1.5, 2 * scale) ** 2)) * 255 + 0.5
    crop = align.align(Image.fromarray(pixels), (*right, x, y) if swapped else (x, y, *right))
    assert crop.size == (178, 218)
    weights = np.asarray(crop, float)
    for channel, eye in enumerate(align.EYES):
        total = weights[:, :, channel].sum()
        found = (weights[:, :, channel] * np.mgrid[:218, :178][::-1]).sum((1, 2)) / total
        np.testing.assert_allclose(found, eye, atol=0.05)


def test_a_frame_survives_being_a_photo():
    rows, columns = np.mgrid[:218, :178]
    smooth = np.stack([127 + 100 * np.sin(rows / 20 + i) * np.cos(columns / 15) for i in range(3)], 2).astype(np.uint8)
    photo, eyes = align.as_photo(Image.fromarray(smooth))
    assert photo.size == (300, 300)
    again = np.asarray(align.align(photo, eyes), float)
    assert np.abs(again - smooth)[5:-5, 5:-5].mean() < 1.5


def test_bad_photos_and_eyes_get_one_clear_line(monkeypatch, capsys):
    Image.new("RGB", (50, 40)).save("photo.png")
    Path("text.png").write_text("no")
    for photo, eyes, named in (
        ("photo.png", (60, 10, 20, 10), "outside of the photo, which is 50 x 40"),
        ("photo.png", (20, 10, 20, 11), "less than two pixels apart"),
        ("text.png", (1, 1, 9, 1), "text.png cannot be read"),
        ("gone.png", (1, 1, 9, 1), "gone.png cannot be read"),
    ):
        with pytest.raises(dlsgan.UserError, match=named):
            align.main(photo, eyes, "out.jpg")
    for script, *arguments in (
        (align, "gone.png", "--eyes", "1", "2", "9", "2"),
        (export, "gone", "command"),
        (paper_figures, "--with", "gone.pt", "--without", "none"),
        (results, "compare", "gone"),
    ):
        monkeypatch.setattr(sys, "argv", [script.__file__, *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(script.__file__, run_name="__main__")
        error = capsys.readouterr().err
        assert end.value.code == 2 and error.count("\n") == 1 and "gone" in error
        assert error.startswith(script.__name__.split(".")[-1] + ": ")


def test_a_crop_is_written(capsys):
    frame = Image.new("RGB", (178, 218), "green")
    frame.save("frame.png")
    align.main("frame.png", [69, 111, 108, 111], "o/crop.png")
    assert np.array_equal(np.asarray(Image.open("o/crop.png")), np.asarray(frame))
    assert capsys.readouterr().out == "o/crop.png: turned by +0.0 degrees, scaled by 1.00\n"


class Recorder:
    """A model whose encoder gives ones and whose decoder remembers what it was given."""

    def __init__(self):
        self.decoded = []

    def encode(self, x):
        return torch.ones(len(x), 200)

    def decode(self, z):
        self.decoded.append(z)
        return torch.zeros(len(z), 3, 16, 16)


def test_one_mask_a_column_is_shared_by_all_rows_of_figure_11():
    model = Recorder()
    run = paper_figures.Run("r", "with latent scale", "k", model, tiny(), {"exported": {"v": [0.9] * 200}})
    paper_figures.flips([run], torch.zeros(6, 3, 16, 16), rows=4, columns=30)
    assert len(model.decoded) == 30 + 1 and (model.decoded[-1] == 1).all()  # the reconstructions are not flipped
    masks = torch.stack(model.decoded[:-1])  # [columns, rows, d]
    assert set(masks.unique().tolist()) == {-1.0, 1.0} and (masks == masks[:, :1]).all()
    assert len(masks[:, 0].unique(dim=0)) == 30
    assert (masks[:, 0] < 0).float().mean().item() == pytest.approx(0.1, abs=4 * (0.09 / 6000) ** 0.5)


def test_every_figure_of_the_paper_is_drawn(kept, monkeypatch, capsys):
    monkeypatch.setattr(paper_figures, "RESULTS", Path("drawn"))
    monkeypatch.setattr(measures, "main", lambda *_: {"samples": {"swd mean": 2.0}, "other test images": {"swd mean": 1.0}})
    Path("drawn").mkdir()
    shutil.copy(ROOT / "toy_experiments" / "results" / "author_celeba128_v.json", "drawn")
    write_celeba(Path("c"), n=40, test=24)
    for scale, name in ((True, "with"), (False, "without")):
        list(dlsgan.train(tiny(dataset="celeba", data_dir="c", out=name, latent_scale=scale, images=8)))
        export.export(name, "command", images=8)
    assert "Settings that differ: latent_scale (True, False)." in results.compare(["with", "without"])
    both = ("pretrained/with.pt", "pretrained/without.pt")
    capsys.readouterr()
    few = paper_figures.main(*both, figures=["4", "spectrum"])  # needs no data
    assert [path.name for path in few] == ["figure-3-4.png", "spectrum.png"]
    with pytest.raises(dlsgan.UserError, match="data/celeba/img_align_celeba"):
        paper_figures.main(*both, figures=["11"])
    assert "left out" not in capsys.readouterr().out
    monkeypatch.setattr(paper_figures.Figure, "savefig", lambda figure, path, dpi: Path(path).write_text("drawn"))
    assert len(paper_figures.main(*both)) == len(paper_figures.FIGURES) - len(paper_figures.NEED_TEST)
    assert capsys.readouterr().out.count("is left out: no data/celeba/img_align_celeba") == 4
    files = paper_figures.main(*both, data_dir="c")
    assert len(files) == len(paper_figures.FIGURES) == 11 and all(path.parent == Path("drawn/paper/with") for path in files)
    assert len(paper_figures.main("pretrained/with.pt", "none", data_dir="c")) == 11
    numbers = {part for name in paper_figures.FIGURES for part in name.split("-") if part.isdigit()}
    assert numbers == {str(i) for i in range(1, 12)}  # every figure of the paper


def test_the_pages_tell_of_the_pair_what_was_measured():
    names = ("celeba64", "celeba64-no-scale", "celeba128")
    text, toys = (" ".join((ROOT / page).read_text().split()) for page in ("README.md", "toy_experiments/README.md"))
    assert " ".join(results.compare(list(names)).split("\n\n")[0].split()) in toys
    kept = [results.load(name) for name in names]
    a, b, large = (result["exported"] for result in kept)
    assert a["images"] == b["images"] == 400_000 and large["images"] >= 150_000
    differ = {key for key in kept[0]["settings"] if kept[0]["settings"][key] != kept[1]["settings"][key]}
    assert differ == {"latent_scale"}
    gains = {n: [format(x[f"gain_{n}"], form) for x in (a, b)] for n, form in (("generated", "+.1f"), ("test", "+.2f"))}
    assert f"L_enc from {b['l_enc']:.2f} to {a['l_enc']:.2f}" in text
    assert f"less far apart: {a['l_enc']:.2f} and {b['l_enc']:.2f}, where" in toys
    assert f"the error of z is larger with the scale ({a['mse_z']:.2f} against {b['mse_z']:.2f})" in toys
    assert f"({gains['test'][0]} against {gains['test'][1]} dB over the mean face)" in text
    assert f"it is worth {a['gain_test'] - b['gain_test']:.1f} dB here" in text
    difference = f"{a['gain_generated'] - b['gain_generated']:.1f} dB"
    assert f"By {difference} ({gains['generated'][0]} against {gains['generated'][1]} over each one's mean image)" in toys
    assert f"{difference} better" in text
    assert f"SSIM {a['ssim_generated']:.2f} against {b['ssim_generated']:.2f}" in toys
    assert f"{gains['test'][0]} dB against {gains['test'][1]} over the mean face" in toys
    assert f"{a['swd']:.1f} against {b['swd']:.1f} (other test images: {a['swd_test']:.1f})" in toys
    assert f"spread {a['spread']:.2f} and {b['spread']:.2f}" in toys
    assert f"{a['active']} of 64 dimensions have v above 1/2" in toys and f", {b['active']} of them above 1/2" in toys
    assert f"between {min(b['v']):.1f} and {max(b['v']):.1f} everywhere" in toys
    told = "L_enc {l_enc:.2f}, {active} active dimensions, {gain_generated:+.1f} dB on generated images and {gain_test:+.1f}"
    assert told.format(**large) + " dB on test images" in toys
    assert f"The entropy of z * s is {a['entropy']:.1f} against {b['entropy']:.1f} nats" in toys
    pairs = [[f"{x[f'logits_{name}']:+.2f}" for name in ("train", "test")] for x in (a, b)]
    assert f"({'; '.join(' and '.join(pair) for pair in pairs)})" in toys
    both = json.loads((ROOT / "toy_experiments/results/invert_by_optimization-celeba.json").read_text())
    descent = both["DLSGAN"]
    alone, ends = descent["z"]["summary"]["encoder alone"], [descent[s]["summary"]["encoder + 500 steps"] for s in "zw"]
    told = "goes from {:.1f} to {:.1f} dB in 500 steps on z, and to {:.1f} dB on w"
    assert told.format(*(end["psnr"] for end in (alone, *ends))) in toys
    spaces = [both[name][space] for name, space in (("DLSGAN", "w"), ("LIA", "y"), ("DLSGAN", "z"), ("LIA", "z"))]
    end = "{} + 500 steps"
    near, far = ([f"{at['summary'][end.format(start)]['psnr']:.1f}" for at in spaces] for start in ("encoder", "random"))
    assert f"end at {near[0]} dB on w of DLSGAN and at {near[1]} dB on y of LIA, from" in toys
    assert f"from random codes at {far[0]} and {far[1]} dB" in toys
    assert f"on z from the encoder's code at {near[2]} and {near[3]} dB" in toys
    for at in spaces:
        psnr = {(start, point["step"]): point["psnr"] for start in ("encoder", "random", "mean") for point in at[start]}
        assert psnr["encoder", 50] > max(psnr["random", 100], psnr["mean", 100])
    shown = {path.stem for path in (ROOT / "toy_experiments/results/paper/celeba64").glob("*.png")}
    assert shown == {"figure-" * name[0].isdigit() + name for name in paper_figures.FIGURES}
    assert all(f"results/paper/celeba64/{name}.png" in toys for name in shown)


def test_the_authors_spectrum_is_whole():
    v = np.array(json.loads((ROOT / "toy_experiments/results/author_celeba128_v.json").read_text())["v"])
    assert len(v) == 512 and (v > 0.5).sum() == 26 and v.sum() == pytest.approx(26.0248, abs=1e-4)


# ---- Toy experiments: LIA, inversion by optimisation, the comparison of methods --------------------------------------


@pytest.fixture
def tiny_plain():
    """A configuration and training images for the experiments on images."""
    config = common.configure("cartoon", **TINY | {"images": 48})
    return config, *dlsgan.LOADERS["cartoon"](config)


@pytest.fixture
def strong_map():
    """An invertible map of 6 dimensions in float64 that moves its input far."""
    mapping = double(lia.InvertibleMapping(6))
    with torch.no_grad():
        for parameter in mapping.parameters():
            parameter.normal_().mul_(200)
    return mapping


@pytest.mark.parametrize("latent_dim", [2, 32, 512])
def test_the_invertible_map_has_an_exact_inverse(latent_dim):
    mapping, z = lia.InvertibleMapping(latent_dim).double(), 3 * torch.randn(50, latent_dim, dtype=torch.float64)
    y = mapping(z)
    assert (mapping.inverse(y) - z).abs().max() < 1e-10
    assert (mapping(mapping.inverse(z)) - z).abs().max() < 1e-10
    assert (y - z).abs().mean() > 0.1


def test_the_invertible_map_against_its_definition(strong_map):
    z = np.random.default_rng(0).normal(size=(5, 6))
    expected = z.copy()
    for layers in strong_map.couplings:
        shift = expected[:, :3]
        for layer, fan_in in zip(layers, (3, 6), strict=True):
            weight, bias = (p.detach().numpy() * 0.01 for p in (layer.weight, layer.bias))
            shift = math.sqrt(2) * (shift @ weight.T / math.sqrt(fan_in) + bias)
            shift = np.where(shift > 0, shift, 0.2 * shift)
        expected = np.concatenate((expected[:, :3], expected[:, 3:] - shift), 1)[:, ::-1]
    np.testing.assert_allclose(strong_map(torch.from_numpy(z)).detach(), expected, rtol=1e-12)
    assert np.abs(expected).max() > 5


def test_the_invertible_map_keeps_volumes(strong_map):
    for z in torch.randn(4, 6, dtype=torch.float64):
        jacobian = torch.autograd.functional.jacobian(lambda z: strong_map(z[None])[0], z)
        assert abs(torch.linalg.slogdet(jacobian)[1].item()) < 1e-10
        y = strong_map(z[None])[0]
        back = torch.autograd.functional.jacobian(lambda y: strong_map.inverse(y[None])[0], y)
        torch.testing.assert_close(back @ jacobian, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-8)


def test_the_invertible_map_needs_two_halves():
    with pytest.raises(dlsgan.UserError, match="5 latent dimensions are odd"):
        lia.InvertibleMapping(5)


def test_kl_divergence_against_torch_distributions():
    mean, log_variance = torch.randn(2, 7, 3, dtype=torch.float64)
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(mean, (log_variance / 2).exp()), normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(lia.kl_to_prior(mean, log_variance), expected)


def test_perceptual_features_are_those_inside_the_discriminator():
    discriminator, seen = dlsgan.Discriminator(32, 3, 4, 0.02), []
    discriminator.blocks[2].register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    x = torch.randn(2, 3, 32, 32)
    discriminator(x)
    features = lia.features(discriminator, x)
    assert features.shape[2:] == (4, 4)
    torch.testing.assert_close(features, seen[0])


@pytest.mark.parametrize("kind", lia.KINDS)
def test_stage_2_trains_an_encoder_and_nothing_else(kind, tiny_plain, tmp_path):
    config, images, _ = tiny_plain
    gan = lia.train_stage_1(config, images, tmp_path, kind == "lia", {})
    before, record = copy.deepcopy(gan.state_dict()), {}
    encoder = lia.train_stage_2(gan, config, kind, images, None, record)
    assert all(torch.equal(value, before[name]) for name, value in gan.state_dict().items())
    assert len(record["pixel_loss"]) == 4 and all(len(norms) == 4 for norms in record["gradient"].values())
    torch.manual_seed(config.seed + 1)  # the first step, again
    first = dlsgan.Discriminator(16, 3, 8 if kind == "variational" else 4, config.width)
    x = dlsgan.to_float(next(dlsgan.batches(images, 4, config.seed + 1, 0, False)))
    code = first(x)[1]
    if kind == "variational":
        noise = torch.randn(4, 4, generator=torch.Generator().manual_seed(config.seed))
        code = gan.generator.mapping(code[:, :4] + (code[:, 4:] / 2).exp() * noise)
    fake = lia.without_map(gan.generator)(code)
    assert record["pixel_loss"][0] == pytest.approx((fake - x).square().mean().item(), rel=1e-4)
    system = lia.Autoencoder(gan, encoder, kind)
    again, code = system.reconstruct(x), encoder(x)[1]
    if kind == "variational":
        torch.testing.assert_close(again, gan.generator(code[:, :4]))
    else:
        torch.testing.assert_close(again, lia.without_map(gan.generator)(code), rtol=1e-4, atol=1e-4)
    if kind == "lia":  # y = f(x), z = phi^-1(y), x~ = g(phi(z))
        torch.testing.assert_close(gan.generator.mapping(system.encode(x)), code, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["lia", "variational"])
def test_the_gradients_of_stage_2_are_those_of_its_loss(kind, tiny_plain, tmp_path, monkeypatch):
    config, images, _ = tiny_plain
    gan = lia.train_stage_1(config, images, tmp_path, kind == "lia", {})
    record, config = {}, dataclasses.replace(config, images=12)  # a single step
    lia.train_stage_2(gan, config, kind, images, None, record)
    torch.manual_seed(config.seed + 1)
    first = dlsgan.Discriminator(16, 3, 8 if kind == "variational" else 4, config.width)
    x = dlsgan.to_float(next(dlsgan.batches(images, 4, config.seed + 1, 0, False)))
    code, kl = first(x)[1], 0.0
    if kind == "variational":
        mean, deviation = code[:, :4], (code[:, 4:] / 2).exp()
        normal = torch.distributions.Normal
        kl = torch.distributions.kl_divergence(normal(mean, deviation), normal(0.0, 1.0)).sum() / 4 / (3 * 16 * 16)
        code = mean + deviation * torch.randn(4, 4, generator=torch.Generator().manual_seed(config.seed))
    fake = gan.generator(code) if kind == "variational" else lia.without_map(gan.generator)(code)
    real_features, fake_features = lia.features(gan.discriminator, x), lia.features(gan.discriminator, fake)
    loss = F.mse_loss(fake, x) + F.mse_loss(fake_features, real_features) / real_features.square().mean()
    loss = loss - 0.1 * F.logsigmoid(gan.discriminator(fake)[0]).mean() + kl
    loss.backward()
    assert record["gradient"]["latent_head"][0] == pytest.approx(first.latent_head.weight.grad.norm().item(), rel=1e-3)
    assert record["gradient"]["from_rgb"][0] == pytest.approx(first.from_rgb.weight.grad.norm().item(), rel=1e-3)


def test_volatility_of_a_known_series():
    norms = [1.0, 3.0] * 25 + [2.0] * 50 + [7.0] * 100
    np.testing.assert_allclose(lia.volatility(norms), [0.5, 0, 0, 0])


def test_training_any_two_networks_is_the_training_of_dlsgan(tiny_plain):
    config, images, _ = tiny_plain
    config = dataclasses.replace(config, out="a")
    list(dlsgan.train(config))
    torch.manual_seed(config.seed)
    model = common.train_gan(dlsgan.build(config), config, images)
    expected = dlsgan.load("a").state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_a_stopped_experiment_goes_on_where_it_was(tiny_plain, tmp_path, monkeypatch):
    config, images, _ = tiny_plain
    ticks, step, calls = iter(range(0, 10**6, 100)), dlsgan.train_step, []
    monkeypatch.setattr(common, "clock", lambda device: next(ticks))  # a state is kept after each step

    def train(path, last=None):
        def limited(*arguments):
            calls.append(1)
            if len(calls) == last:
                raise KeyboardInterrupt
            return step(*arguments)

        monkeypatch.setattr(dlsgan, "train_step", limited)
        torch.manual_seed(config.seed)
        record = {}
        return common.train_gan(dlsgan.build(config), config, images, path, record).state_dict(), record

    whole, record = train(tmp_path / "whole.pt")
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts.pt", last=6)
    parts, record_of_parts = train(tmp_path / "parts.pt")
    assert len(calls) == 6 + 7 and record_of_parts == record
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    with pytest.raises(dlsgan.UserError, match="parts.pt is not of this run"):
        common.train_gan(dlsgan.build(config), dataclasses.replace(config, seed=3), images, tmp_path / "parts.pt")


@pytest.mark.parametrize("rank", [4, 2])
def test_an_encoder_trained_afterwards_finds_what_the_generator_kept(rank):
    """x = z A: the optimal encoder of Gaussian z recovers rank(A) of d dimensions, E|z - z_hat|^2 / d = 1 - rank / d."""
    basis = torch.linalg.qr(torch.randn(4, 4))[0]
    a = basis[:, :rank] @ torch.randn(rank, 5) if rank < 4 else torch.cat((basis, basis[:, :1]), 1)

    class Encoder(nn.Linear):
        def forward(self, x):
            return None, super().forward(x)

    config = common.configure("cartoon", batch_size=64, lr=0.05)
    encoder = common.train_encoder(lambda z: z @ a, Encoder(5, 4), 4, config, 64 * 500)
    z = torch.randn(4000, 4)
    assert (encoder(z @ a)[1] - z).square().mean().item() == pytest.approx(1 - rank / 4, abs=0.02)


def test_optimisation_finds_the_least_squares_solution():
    a, x = torch.randn(3, 64, dtype=torch.float64), torch.randn(4, 1, 8, 8, dtype=torch.float64)
    def decode(z):
        return (z @ a).view(-1, 1, 8, 8)
    start = torch.randn(4, 3, dtype=torch.float64)
    code, trace = invert_by_optimization.optimise(decode, x, start, 1000, 0.02)
    best = torch.linalg.lstsq(a.T, x.flatten(1).T).solution.T
    torch.testing.assert_close(code, best, rtol=0, atol=1e-3)
    assert [point["step"] for point in trace] == [0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    np.testing.assert_allclose(trace[0]["psnr"], dlsgan.psnr(decode(start).clamp(-1, 1), x), atol=1e-3)
    np.testing.assert_allclose(trace[-1]["psnr"], dlsgan.psnr(decode(best).clamp(-1, 1), x), atol=1e-2)
    alone, _ = invert_by_optimization.optimise(decode, x[:1], start[:1], 30, 0.02)
    together, _ = invert_by_optimization.optimise(decode, x, start, 30, 0.02)
    torch.testing.assert_close(alone, together[:1])


@pytest.mark.parametrize("invertible", [False, True])
def test_the_starts_in_both_spaces_are_the_same_images(invertible):
    model = dlsgan.build(dlsgan.Config(**TINY)).requires_grad_(False)
    model.latent_scale.v.copy_(torch.tensor([0.9, 0.5, 0.3, 0.1]))
    if invertible:
        model.latent_scale.enabled, model.generator.mapping = False, lia.InvertibleMapping(4).requires_grad_(False)
    x = torch.rand(3, 3, 16, 16)
    spaces = invert_by_optimization.starting_points(model, x)
    assert list(spaces) == ["z", "y" if invertible else "w"]
    z, w = spaces.values()
    for start in ("random", "encoder") + ("mean",) * invertible:
        torch.testing.assert_close(z["decode"](z["codes"][start]), w["decode"](w["codes"][start]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(w["decode"](w["codes"]["encoder"]), model.reconstruct(x))
    assert w["codes"]["mean"].std(0).max() < 1e-6


def test_the_pages_tell_of_the_comparison_what_was_measured():
    text, toys = (" ".join((ROOT / page).read_text().split()) for page in ("README.md", "toy_experiments/README.md"))
    kept = [json.loads((ROOT / f"toy_experiments/results/compare-{stem}.json").read_text())
            for stem in ("mnist-200000", "celeba-400000")]
    assert all(" ".join(compare.markdown(result["rows"]).split()) in toys for result in kept)
    assert not kept[0]["missing"] and [row["method"] for row in kept[1]["rows"]] == ["dlsgan", "no-scale", "lia"]
    digits, photos = ({row["method"]: row for row in result["rows"]} for result in kept)
    told = {method: (f"{row['gain_test']:+.2f}", f"{row['gain_generated']:+.2f}") for method, row in digits.items()}
    best = sorted(digits, key=lambda method: -digits[method]["gain_test"])
    assert best == ["optimisation", "lia-mlp", "lia", "eigengan", "dlsgan", "no-scale", "encoder-after"]
    assert f"by far ({told['optimisation'][0]} dB over the mean image on MNIST" in toys
    assert f"is invertible ({told['lia'][0]} dB) or not ({told['lia-mlp'][0]})" in toys
    assert f"EigenGAN's is first ({told['eigengan'][0]} dB" in toys
    sizes = {name: row["parameters"] for name, row in digits.items()}  # optimisation counts the generator alone
    assert 1.8 < 1 + (sizes["eigengan"] - sizes["dlsgan"]) / sizes["optimisation"] < 2  # nearly twice as large
    others = (f"DLSGAN ({told['dlsgan'][0]}), the same without scale ({told['no-scale'][0]}) and an encoder trained "
              f"afterwards ({told['encoder-after'][0]})")
    assert others in toys
    gain = {method: row["gain_generated"] for method, row in digits.items()}
    assert sorted(gain, key=gain.get)[-3:] == ["eigengan", "dlsgan", "optimisation"]
    lead, own = gain["dlsgan"] - gain["eigengan"], {method: row["gain_generated"] for method, row in photos.items()}
    assert (f"by {lead:.1f} dB on MNIST ({told['dlsgan'][1]} dB, before EigenGAN with {told['eigengan'][1]}) and by "
            f"{own['dlsgan'] - own['no-scale']:.1f} dB on CelebA ({own['dlsgan']:+.2f} dB, where LIA has {own['lia']:+.2f})"
            f", and only descent comes higher ({told['optimisation'][1]} on MNIST)") in toys
    low, high = (f"{extreme(row['swd'] for row in digits.values()):.1f}" for extreme in (min, max))
    assert f"distances, {low} to {high} on MNIST (three seeds" in toys
    assert f"and {photos['dlsgan']['swd']:.1f} to {photos['lia']['swd']:.1f} on CelebA" in toys
    seeds = json.loads((ROOT / "toy_experiments/results/mnist.json").read_text())
    seeds = [seeds[f"scale-{seed}"]["measures"] for seed in range(3)]
    assert np.ptp([row["swd"] for row in digits.values()]) < np.ptp([seed["swd"] for seed in seeds])  # "by as much"
    first, last = np.ptp([digits[name]["gain_test"] for name in best[-3:]]), np.ptp([seed["gain_test"] for seed in seeds])
    assert f"{first:.2f} dB from first to last, where" in toys and f"of DLSGAN lie {last:.2f} dB apart" in toys
    seconds = {method: row["seconds_per_image"] for method, row in digits.items()}
    assert sorted(seconds.values())[-1] > 200 * sorted(seconds.values())[-2]
    above = {method: digits[method]["gain_test"] - digits["dlsgan"]["gain_test"] for method in digits}
    assert f"real digits: {above['lia']:.1f} dB above DLSGAN's with the invertible map" in text
    assert f"map, {above['lia-mlp']:.1f} dB with an ordinary one" in text
    assert f"descent is {above['optimisation']:.1f} dB above DLSGAN's, at more than 200 times" in text
    assert f"the best encoder, by {lead:.1f} dB" in text
    apart = {of: photos["lia"][f"gain_{of}"] - photos["dlsgan"][f"gain_{of}"] for of in ("test", "generated")}
    assert f"{apart['test']:.1f} dB apart on test images, and {-apart['generated']:.1f} dB, in favour of DLSGAN" in text


def test_the_page_tells_of_lia_what_was_measured():
    toys = " ".join((ROOT / "toy_experiments/README.md").read_text().split())
    kept = json.loads((ROOT / "toy_experiments/results/lia-mnist.json").read_text())
    assert kept["inverse_error"] < 1e-10 and f"exact to {kept['inverse_error']:.0e} in float64" in toys
    lia, mlp, variational = (kept[name] for name in ("lia", "mlp", "variational"))
    assert f"({lia['gain_test']:+.1f} against {variational['gain_test']:+.1f} dB on test digits)" in toys
    last, first = ([x["volatility"][layer] for x in (lia, mlp, variational)] for layer in ("latent_head", "from_rgb"))
    assert f"{last[0]:.2f} of the mean, against {last[2]:.2f})" in toys
    assert f"does as well ({mlp['gain_test']:+.1f} dB, {last[1]:.2f})" in toys
    assert "the least steady ({:.2f} against {:.2f} and {:.2f})".format(*first) in toys
    assert f"their mean square over test digits is {kept['mean_square_of_z']:.1f}, where" in toys


def test_the_comparison_from_training_to_table(tiny_plain, tmp_path, monkeypatch, capsys):
    config, images, test_images = tiny_plain
    monkeypatch.setattr(compare.Optimised.__init__, "__defaults__", (2,))  # steps

    def train_eigengan(config, images, path, record):  # stands in for the experiment, with its own latent_dim
        record["seconds"], generator = 1.0, dlsgan.Generator(16, 3, 8, 1, 0.02).requires_grad_(False)
        generator.latent_dim = 8
        return generator

    for method in compare.METHODS.keys() - {"eigengan"}:
        compare.run(method, config, tmp_path)
    compare.table(config, tmp_path, tmp_path)
    assert "not there: eigengan\nFID: absent" in capsys.readouterr().out
    monkeypatch.setattr(compare.eigengan, "train", train_eigengan)
    compare.run("eigengan", config, tmp_path)
    result = compare.table(config, tmp_path, tmp_path)
    rows = {row["method"]: row for row in result["rows"]}
    assert rows.keys() == compare.METHODS.keys() and not result["missing"]
    assert json.loads((tmp_path / "compare-cartoon-48.json").read_text())["images"] == 48
    with open(tmp_path / "compare-cartoon-48.csv") as file:
        table = list(csv.DictReader(file))
    assert [float(row["psnr_test"]) for row in table] == [row["psnr_test"] for row in result["rows"]]
    model, _ = compare.METHODS["lia-mlp"](config, images, tmp_path / "cartoon-48")  # trained already
    x = dlsgan.to_float(test_images[: len(test_images) // 2])  # the others are for the yardstick of distances
    y = lia.without_map(model.generator)(model.discriminator(x)[1]).clamp(-1, 1)
    assert rows["lia-mlp"]["mse_test"] == pytest.approx((x - y).square().mean().item(), rel=1e-4)
    networks = (model.generator, model.discriminator)
    assert rows["lia-mlp"]["parameters"] == sum(p.numel() for network in networks for p in network.parameters())
    for method in compare.METHODS.keys() - {"eigengan", "lia", "dlsgan", "no-scale"}:  # these share one generator
        assert rows[method]["spread"] == pytest.approx(rows["lia-mlp"]["spread"], rel=1e-5)
    capsys.readouterr()
    compare.run("dlsgan", config, tmp_path)
    assert "already measured" in capsys.readouterr().out
    (tmp_path / "cartoon-48/compare-dlsgan.json").unlink()
    again = compare.run("dlsgan", config, tmp_path)  # from the finished run, without a training step
    same = {*again} - {"seconds_per_image"}
    assert {key: again[key] for key in same} == {key: rows["dlsgan"][key] for key in same}
    monkeypatch.setattr(measures, "load_inception", lambda path: torch.nn.Identity())
    monkeypatch.setattr(measures, "fid", lambda samples, test, network: 3.0)
    assert compare.run("dlsgan", config, tmp_path, "file")["fid"] == 3.0  # measured again, for what was missing
    capsys.readouterr()
    compare.table(config, tmp_path, tmp_path)
    assert f"| FID | 3.0 |{' absent |' * 6}\n" in (told := capsys.readouterr().out) and "FID: absent" not in told
    with pytest.raises(dlsgan.UserError, match="cartoon-48/dlsgan holds a run with other settings"):
        compare.METHODS["dlsgan"](dataclasses.replace(config, lr=1e-3), images, tmp_path / "cartoon-48")
    with pytest.raises(dlsgan.UserError, match="nothing in"):  # the rows are those of another seed
        compare.table(dataclasses.replace(config, seed=1), tmp_path, tmp_path)
    row = tmp_path / "cartoon-48/compare-lia.json"
    row.write_text(row.read_text().replace('"swd_of_other_test_images": ', '"swd_of_other_test_images": 1'))
    with pytest.raises(dlsgan.UserError, match="measured on different images: delete"):
        compare.table(config, tmp_path, tmp_path)


def test_lia_and_inversion_by_optimisation_from_training_to_figure(tiny_plain, tmp_path, capsys):
    config, _, _ = tiny_plain
    result = lia.main(config, tmp_path, tmp_path)
    assert result["inverse_error"] < 1e-10 and "|phi(phi^-1(y)) - y| at most" in capsys.readouterr().out
    assert (tmp_path / "lia-cartoon.png").exists() and "l_enc" not in result["mlp"]
    list(dlsgan.train(dataclasses.replace(config, out="run", images=16)))
    found = invert_by_optimization.main("run", str(tmp_path / "cartoon-48"), "", 3, 6, tmp_path)
    for name, spaces in (("DLSGAN", "zw"), ("LIA", "zy")):
        assert "".join(found[name]) == spaces
        for space in spaces:
            ends = found[name][space]["summary"]
            assert set(ends) == {"encoder alone", *(f"{start} + 6 steps" for start in invert_by_optimization.STARTS)}
            assert ends["encoder alone"]["seconds"] < ends["encoder + 6 steps"]["seconds"]
    x = dlsgan.to_float(dlsgan.LOADERS["cartoon"](config)[1][:3])
    expected = dlsgan.psnr(x, dlsgan.load("run").reconstruct(x).clamp(-1, 1)).mean().item()
    assert found["DLSGAN"]["w"]["summary"]["encoder alone"]["psnr"] == pytest.approx(expected, abs=0.02)
    assert (tmp_path / "invert_by_optimization-cartoon.png").exists()
    export.write(Path("small.pt"), config, 16, dlsgan.read_checkpoint("run")[1]["ema"])
    exported = invert_by_optimization.main("small.pt", None, "", 3, 6, tmp_path)
    assert exported["training_images"] == {"DLSGAN": 16} == {"DLSGAN": found["training_images"]["DLSGAN"]}
    assert exported["DLSGAN"]["w"]["summary"]["encoder alone"]["psnr"] == pytest.approx(expected, abs=0.02)
    with pytest.raises(dlsgan.UserError, match="no finished LIA in run"):
        invert_by_optimization.main("run", "run", "", 3, 6, tmp_path)


@pytest.mark.parametrize("command, told", [
    ("lia --dataset nonsense", "unknown data set 'nonsense'"),
    ("lia --images 0", "--images 0 is out of range"),
    ("compare run dlsgan nonsense", "unknown method 'nonsense'"),
    ("compare run --dataset mnist nonsense", "unknown method 'nonsense'"),
    ("compare table", "nothing in runs/cartoon-24000"),
    ("invert_by_optimization --checkpoint nowhere", "nowhere cannot be read"),
    ("invert_by_optimization --checkpoint x --steps 0", "--count and --steps must be at least 1"),
])
def test_experiments_answer_bad_input_with_one_line(command, told, monkeypatch, capsys):
    name, *arguments = command.split()
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as end, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the module has been imported already
        runpy.run_module(f"toy_experiments.{name}", run_name="__main__")
    error = capsys.readouterr().err
    assert end.value.code == 2 and told in error and error.count("\n") == 1


# ---- toy_experiments: EigenGAN, InterFaceGAN and their judges ---------------------------------------------------------


def spread_eigenvalues(dimensions, seed):
    """A sample from a Gaussian with distinct eigenvalues, float64 [4000, dimensions]."""
    random = np.random.default_rng(seed)
    axes = np.linalg.qr(random.normal(size=(dimensions, dimensions)))[0]
    centred = random.normal(size=(4000, dimensions)) * np.linspace(2.5, 0.3, dimensions) @ axes.T
    return centred + random.normal(size=dimensions)


@pytest.mark.parametrize(("dimensions", "q", "sigma", "seed"), [(6, 2, 0.3, 0), (8, 3, 0.5, 1), (10, 5, 0.2, 2)])
def test_a_linear_subspace_by_likelihood_is_pca(dimensions, q, sigma, seed):
    sample = spread_eigenvalues(dimensions, seed)
    pca = PCA(q).fit(sample)
    values = pca.explained_variance_ * (len(sample) - 1) / len(sample)  # of the maximum likelihood covariance
    moments = torch.tensor(sample.mean(0)), torch.tensor(np.cov(sample, rowvar=False, ddof=0))
    model = eigengan_linear.fit_by_likelihood(*moments, q, sigma, seed)
    order = model.L.detach().abs().argsort(descending=True)
    u = eigengan_linear.orthonormal(model.free.detach())[:, order].numpy()
    assert np.abs((u * pca.components_.T).sum(0)).min() >= 1 - 1e-6
    np.testing.assert_allclose(model.L.detach()[order].numpy() ** 2, values - sigma**2, atol=5e-5)
    np.testing.assert_allclose(model.mu.detach().numpy(), sample.mean(0), atol=1e-5)
    assert eigengan_linear.theorem(model, moments[1])["one_minus_cosine"] < 1e-6
    assert eigengan_linear.compare_with_pca(model, moments[1])["subspace"] < 0.1  # degrees


def test_likelihood_of_a_linear_subspace_against_scipy():
    sample = spread_eigenvalues(5, 4)
    moments = torch.tensor(sample.mean(0)), torch.tensor(np.cov(sample, rowvar=False, ddof=0))
    u = eigengan_linear.orthonormal(torch.randn(5, 2, dtype=torch.float64))
    length, mu, sigma = torch.tensor([1.7, -0.6]).double(), torch.randn(5).double(), 0.4
    ours = eigengan_linear.negative_log_likelihood(u, length, mu, sigma, *moments)
    covariance = (u * length**2) @ u.T + sigma**2 * torch.eye(5, dtype=torch.float64)
    oracle = -scipy.stats.multivariate_normal(mu.numpy(), covariance.numpy()).logpdf(sample).mean()
    assert ours.item() == pytest.approx(oracle, rel=1e-10)
    # a free matrix W in the place of U diag(L) may be rotated: the same density, but its columns are no eigenvectors
    angle = torch.tensor(0.7).double()
    turn = torch.stack((torch.stack((angle.cos(), -angle.sin())), torch.stack((angle.sin(), angle.cos()))))
    w = (u * length) @ turn
    torch.testing.assert_close(w @ w.T + sigma**2 * torch.eye(5, dtype=torch.float64), covariance)
    cosines = (F.normalize(w, dim=0).T @ u).abs()
    assert cosines.max() < 0.99
    # of all those W, only those without rotation are orthogonal columns
    assert (w.T @ w - torch.diag((w.T @ w).diagonal())).abs().max() > 0.1


def test_samples_of_the_linear_subspace_have_the_stated_covariance():
    model = eigengan_linear.LinearSubspace(4, 2, 0.5)
    with torch.no_grad():
        x = model(torch.randn(200_000, 6, generator=torch.Generator().manual_seed(0)))
        u = eigengan_linear.orthonormal(model.free)
        expected = (u * model.L**2) @ u.T + 0.25 * torch.eye(4)
    torch.testing.assert_close(torch.cov(x.T), expected, atol=0.03, rtol=0)


def test_linear_gans_run_and_are_measured():
    result = eigengan_linear.main(steps=60, seeds=1, figure=False)
    assert result["likelihood"]["one_minus_cosine"] < 1e-6 and result["likelihood"]["length_error"] < 1e-6
    assert len(result["gan"]) == 4
    for runs in result["gan"].values():
        assert [point["step"] for point in runs[0]] == [0, 50]
        assert all(0 <= point["subspace"] <= 90 and 0 <= point["axes"] <= 90 for point in runs[0])


@pytest.mark.slow
def test_wgan_comes_closer_to_pca_than_the_original_loss():
    gan = eigengan_linear.main(figure=False)["gan"]
    angles = {name: np.mean([[point["axes"] for point in run[-20:]] for run in runs]) for name, runs in gan.items()}
    for noise in ("0.5", "0.0"):
        assert angles[f"wgan-gp, sigma {noise}"] < angles[f"original, sigma {noise}"]


def test_orthonormal_is_gram_schmidt():
    free = torch.randn(7, 3, dtype=torch.float64)
    columns = []
    for column in free.T:
        for other in columns:
            column = column - (column @ other) * other
        columns.append(column / column.norm())
    torch.testing.assert_close(eigengan_linear.orthonormal(free), torch.stack(columns, 1))


def test_a_subspace_is_a_sum_over_its_eigen_dimensions():
    subspace = eigengan.Subspace(3, 4).double()
    subspace.mu.data.normal_()
    z = torch.randn(2, eigengan.Q, dtype=torch.float64)
    u = eigengan_linear.orthonormal(subspace.free)
    for got, coordinates in zip(subspace(z), z, strict=True):
        expected = subspace.mu.clone()
        for i in range(eigengan.Q):
            expected = expected + coordinates[i] * subspace.L[i] * u[:, i].view(3, 4, 4)
        torch.testing.assert_close(got, expected)


def test_a_block_adds_the_subspace_before_and_after_the_up_sampling():
    block = eigengan.Block(4, 3, 4, True).double()
    h, z = torch.randn(2, 4, 4, 4).double(), torch.randn(2, eigengan.Q).double()
    phi = block.subspace(z)

    def up(x, channels):  # one half of the joint convolution
        x = F.conv2d(x, block.up.weight[:, channels] * block.up.gain, padding=1)
        return F.interpolate(x, scale_factor=2, mode="bilinear")

    inner = F.leaky_relu(h + block.point(phi), 0.2)
    bias = (block.up.bias * block.up.scale)[:, None, None]
    total = up(inner, slice(0, 4)) + up(phi, slice(4, 8)) + bias
    torch.testing.assert_close(block(h, z), block.conv(F.leaky_relu(total, 0.2)))


def test_eigengan_training_step_against_separate_losses():
    torch.manual_seed(0)
    generator = double(eigengan.EigenGenerator(16, 1, 14, 0.02))
    discriminator = double(dlsgan.Discriminator(16, 1, 1, 0.02))
    real, z = torch.rand(3, 1, 16, 16).double(), torch.randn(3, 14).double()
    networks = generator, discriminator
    optimizers = [torch.optim.SGD(network.parameters(), 1.0) for network in networks]
    before = [[p.detach().clone() for p in network.parameters()] for network in networks]
    image = real.clone().requires_grad_()
    logits, fake = discriminator(image)[0], generator(z)
    loss_d = (1 - logits).clamp(min=0).mean() + (1 + discriminator(fake.detach())[0]).clamp(min=0).mean()
    loss_d = loss_d + 0.7 * dlsgan.r1_penalty(logits, image)
    loss_g = -discriminator(fake)[0].mean()
    expected = [torch.autograd.grad(loss, list(network.parameters()), allow_unused=True, retain_graph=True)
                for loss, network in ((loss_g, generator), (loss_d, discriminator))]
    returned = eigengan.train_step(*networks, optimizers, real, z, 0.7)
    assert returned[1].item() == pytest.approx(loss_g.item())
    for network, old, gradients in zip(networks, before, expected, strict=True):
        for p, start, gradient in zip(network.parameters(), old, gradients, strict=True):
            torch.testing.assert_close(start - p, torch.zeros_like(p) if gradient is None else gradient)


@pytest.mark.parametrize("subspaces", [True, False])
def test_eigengan_stays_orthonormal_and_goes_on_where_it_stopped(subspaces):
    config = tiny(latent_dim=16, width=0.03, images=80, lr=0.01)
    images = small_cartoon(config)[0]
    record = {}
    generator = eigengan.train(config, images, subspaces, Path("state.pt"), record)
    assert generator.latent_dim == 16 and generator.noise_dim == (4 if subspaces else 16)
    assert generator(torch.randn(3, 16)).shape == (3, 3, 16, 16)
    assert record["log"][-1]["images"] == 80 and record["log"][-1]["orthogonality"] < 1e-5
    for block in generator.blocks if subspaces else []:
        u = eigengan_linear.orthonormal(block.subspace.free).double()
        assert (u.T @ u - torch.eye(eigengan.Q)).abs().max() < 1e-5 and block.subspace.L.abs().min() > 1
    again = eigengan.train(config, images, subspaces, Path("state.pt"), {})  # finished: nothing is left to do
    for a, b in zip(generator.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_eigengan_needs_room_for_noise():
    with pytest.raises(dlsgan.UserError, match="leaves no noise"):
        eigengan.EigenGenerator(32, 3, 18, 0.02)


def test_a_traversal_moves_one_dimension():
    generator = eigengan.EigenGenerator(16, 1, 16, 0.02).requires_grad_(False)
    generator.blocks[0].subspace.L[2] = 0.0
    still, moving = (eigengan.traverse(generator, 4 + i) for i in (2, 0))
    assert (still - still[:1]).abs().max() < 1e-6 and (moving - moving[:1]).abs().max() > 1e-3


@pytest.fixture
def blind_judges(monkeypatch):
    """Judges that hardly learn, so that whole experiments run in seconds."""
    monkeypatch.setattr(eigengan, "factor_regressor", lambda resolution: judges.factor_regressor(resolution, 2))


@pytest.mark.parametrize("dataset", ["cartoon", pytest.param("mnist", marks=pytest.mark.slow)])
def test_eigengan_from_data_to_results(dataset, blind_judges):
    write_mnist(Path("data/mnist"), 60)
    config = tiny(dataset=dataset, data_dir=f"data/{dataset}", latent_dim=16, images=8)
    result = eigengan.main(config, results=Path("kept"))
    assert Path(f"kept/eigengan-{dataset}.png").stat().st_size > 10_000
    assert json.loads(Path(f"kept/eigengan-{dataset}.json").read_text()).keys() == result.keys()
    explained = np.array(result["subspaces"].get("explained", []))
    assert explained.shape == ((16, 8) if dataset == "cartoon" else (0,))


def test_normals_of_labelled_codes():
    random = np.random.default_rng(0)
    true = F.normalize(torch.tensor(random.normal(size=(2, 6))), dim=1).numpy()
    codes = random.normal(size=(4000, 6))
    labels = codes @ true.T + [0.5, -0.2] > 0
    normals, offsets, accuracies = interfacegan.fit_normals(codes, labels)
    assert (np.abs((normals * true).sum(1)) > 0.999).all() and min(accuracies) > 0.96
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1)
    np.testing.assert_allclose(offsets, [0.5, -0.2], atol=0.15)  # classes of equal weight draw the boundary to the middle
    noise = interfacegan.fit_normals(codes, random.normal(size=(4000, 1)) > 0)[2]
    assert abs(noise[0] - 0.5) < 0.06  # nothing to find: chance


def test_conditional_edits_keep_all_other_distances():
    random = np.random.default_rng(1)
    normals = F.normalize(torch.tensor(random.normal(size=(4, 9))), dim=1).numpy()
    offsets, codes = random.normal(size=4), random.normal(size=(5, 9))
    t = interfacegan.direction(normals, 1, [0, 2, 3])
    others = np.delete(normals, 1, 0)
    np.testing.assert_allclose(others @ t, 0, atol=1e-12)
    residual = normals[1] - others.T @ np.linalg.lstsq(others.T, normals[1], rcond=None)[0]  # the projection, another way
    np.testing.assert_allclose(t, residual / (residual @ residual), atol=1e-12)
    edited = interfacegan.edit(codes, normals[1], offsets[1], t, 2.0)
    np.testing.assert_allclose(edited @ normals[1] + offsets[1], 2.0)
    np.testing.assert_allclose(edited @ others.T, codes @ others.T, atol=1e-12)
    plain = interfacegan.edit(codes, normals[1], offsets[1], interfacegan.direction(normals, 1), 2.0)
    np.testing.assert_allclose(plain @ normals[1] + offsets[1], 2.0)
    assert np.abs((plain - codes) @ others.T).max() > 0.1
    two = interfacegan.direction(normals[:2], 0, [1])  # a single condition: n1 - (n1 . n2) n2
    single = normals[0] - (normals[0] @ normals[1]) * normals[1]
    np.testing.assert_allclose(two, single / (single @ normals[0]))


def test_edits_of_a_perfect_model_change_what_they_should():
    """Images are the latent vectors themselves, the judge reads three correlated directions of them: plain edits leak by
    the cosines of the normals, conditional ones not at all."""
    model = perfect_model(3)
    axes = F.normalize(torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [0.3, 0.3, 0.9]]), dim=1)
    axes = F.pad(axes, (0, 6))  # [3, 9]

    def judge(x):
        return x.flatten(1) @ axes.T

    x = torch.randn(6000, 1, 3, 3).clamp(-3, 3) / 3  # edited images are clipped to [-1, 1]
    model.latent_scale.v.copy_(torch.linspace(0.5, 1.5, 9))
    s = model.latent_scale.scale().view(1, 1, 3, 3)
    model.generator = nn.Sequential(nn.Unflatten(1, (1, 3, 3)))
    model.discriminator.forward = lambda images: (images.flatten(1)[:, 0], (images / s).flatten(1))
    labels = judge(x).numpy() > 0
    result, editors = interfacegan.experiment(model, judge, x[:5000], labels[:5000], x[5000:5100], ("a", "b", "c"))
    assert min(result["kept"].values()) > 0.999
    cosines = (axes @ axes.T).numpy()
    for way in ("normals on s*z", "s*z, conditional"):
        np.testing.assert_allclose(result["ways"][way]["cosines_of_normals"], cosines, atol=0.05)
    small = [editors["normals on s*z"](0, a) for a in (-0.3, 0.3)]
    change = (judge(small[1]) - judge(small[0])).mean(0)
    np.testing.assert_allclose(change, 0.6 * cosines[0], atol=0.05)
    small = [editors["s*z, conditional"](0, a) for a in (-0.3, 0.3)]
    change = (judge(small[1]) - judge(small[0])).mean(0)
    np.testing.assert_allclose(change, [0.6, 0, 0], atol=0.05)
    small = [editors["normals on z"](0, a) for a in (-0.1, 0.1)]  # another metric, the same boundary
    assert (judge(small[1]) - judge(small[0]))[:, 0].min() > 0
    assert interfacegan.leakage([[2.0, -0.3, 0.1], [0, 1, 0], [0, 0, 1]], 0) == (2.0, 0.3, 1)


def write_attributes(root, columns, newline="\r\n"):
    """Labels that tell which image they belong to: attribute k of image i is bit k of i."""
    names = sorted(path.name for path in (root / "img_align_celeba").glob("*.jpg"))
    rows = [f"{name} " + " ".join("1" if int(name[:6]) >> k & 1 else "-1" for k in range(len(columns))) for name in names]
    (root / "list_attr_celeba.txt").write_bytes(newline.join([str(len(rows)), " ".join(columns), *rows]).encode())


def test_celeba_labels_follow_the_images():
    write_celeba(Path("c"))
    columns = ["Bangs", "Young", "Blond_Hair", "Smiling", "Male", "Eyeglasses"]
    write_attributes(Path("c"), columns)
    labels = judges.celeba_labels(dlsgan.Config(dataset="celeba", data_dir="c"), 30)
    numbers = [*range(6, 31), *range(1, 6)]  # the first five images are the test set, which comes last
    expected = [[number >> columns.index(name) & 1 for name in judges.CELEBA_ATTRIBUTES] for number in numbers]
    np.testing.assert_array_equal(labels, np.array(expected) > 0)
    with pytest.raises(dlsgan.UserError, match="unreadable"):
        judges.celeba_labels(dlsgan.Config(dataset="celeba", data_dir="c"), 29)
    write_attributes(Path("c"), columns[:3])
    with pytest.raises(dlsgan.UserError, match="does not name the attributes"):
        judges.celeba_labels(dlsgan.Config(dataset="celeba", data_dir="c"), 30)


def test_interfacegan_on_each_data_set(capsys):
    settings = {"latent_dim": 12, "images": 8}
    list(dlsgan.train(tiny(out="cartoon", **settings)))
    result = interfacegan.main("cartoon", labelled=60, faces=6, judge_steps=2, results=Path("kept"))
    assert result["names"] == list(dlsgan.CARTOON_FACTORS) and result["unit"] == "standard deviations"
    assert np.array(result["ways"]["normals on z"]["mean_change"]).shape == (8, 8)
    write_celeba(Path("c"), n=100, test=20)
    write_attributes(Path("c"), list(judges.CELEBA_ATTRIBUTES))
    list(dlsgan.train(tiny(dataset="celeba", data_dir="c", out="celeba", **settings)))
    result = interfacegan.main("celeba", "c", faces=6, judge_steps=2, results=Path("kept"))
    assert (result["labelled"], result["names"]) == (40, list(judges.CELEBA_ATTRIBUTES))
    assert result["judge"].keys() == {"accuracy", "balanced accuracy", "share of test images"}
    for dataset in ("cartoon", "celeba"):
        assert Path(f"kept/interfacegan-{dataset}.png").stat().st_size > 10_000
        assert json.loads(Path(f"kept/interfacegan-{dataset}.json").read_text())["ways"].keys() == interfacegan.WAYS.keys()
    assert "largest leakage" in capsys.readouterr().out


def test_what_the_page_says_of_attributes_on_celeba():
    result = json.loads((ROOT / "toy_experiments/results/interfacegan-celeba.json").read_text())
    assert result["command"].endswith("--checkpoint pretrained/celeba64.pt") and result["model"]["images"] == 400_000
    change = np.array(result["ways"]["s*z, conditional"]["mean_change"]).diagonal()
    found = dict(zip(result["names"], change, strict=True))
    assert min(found["Bangs"], found["Male"]) > 0.45 > max(found[name] for name in ("Smiling", "Eyeglasses", "Young"))
    assert result["kept"]["Smiling"] < 0.03


def test_interfacegan_says_what_it_cannot_edit():
    write_mnist(Path("m"))
    list(dlsgan.train(tiny(dataset="mnist", data_dir="m", out="mnist", images=8)))
    with pytest.raises(dlsgan.UserError, match="no attributes"):
        interfacegan.main("mnist")
    list(dlsgan.train(tiny(latent_dim=8, out="small", images=8)))
    with pytest.raises(dlsgan.UserError, match="more latent dimensions"):
        interfacegan.main("small")


@pytest.mark.parametrize("arguments", ["interfacegan --checkpoint nothing", "eigengan --dataset flowers"])
def test_bad_input_to_the_experiments_gets_one_line(arguments, monkeypatch, capsys):
    name, *options = arguments.split()
    monkeypatch.setattr(sys, "argv", [name, *options])
    monkeypatch.delitem(sys.modules, f"toy_experiments.{name}")  # runpy warns of a module that is imported already
    with pytest.raises(SystemExit) as end:
        runpy.run_module(f"toy_experiments.{name}", run_name="__main__")
    assert end.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.slow
def test_the_factor_regressor_reads_every_factor():
    assert min(judges.factor_regressor(32)[1]["R^2"]) > 0.8


# ---- Toy experiments: known factors, deliberate mistakes, MNIST ------------------------------------------------------


def test_only_the_first_factors_vary():
    faces, u = cartoon_factors.draw_faces(20, 4, torch.Generator().manual_seed(3), 16)
    assert (u[:, 4:] == 0).all() and u[:, :4].std() > 0.5
    assert torch.equal(faces, dlsgan.cartoon_faces(20, 16, values=u)[0])


def test_the_short_training_loop_equals_train(monkeypatch):
    """On the same images, cartoon_factors.train gives the averaged weights of dlsgan.train to the bit."""
    config = tiny(images=68, out="r")  # with a penalty at steps 0 and 16
    list(dlsgan.train(config))
    stream = dlsgan.batches(small_cartoon(config)[0], config.batch_size, config.seed, 0, False)
    monkeypatch.setattr(cartoon_factors, "draw_faces", lambda *_: (dlsgan.to_float(next(stream)), None))
    expected = dlsgan.load("r").state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in cartoon_factors.train(8, config).state_dict().items())


def test_correlation_ratio_sees_a_fold_and_nothing_in_noise():
    random = np.random.default_rng(0)
    codes = random.normal(size=(4000, 3))
    u = np.stack((codes[:, 0], np.abs(codes[:, 1]), random.normal(size=4000)), 1)
    ratios = cartoon_factors.correlation_ratios(codes, u)
    for i, k in np.ndindex(3, 3):  # one pair at a time, from its definition
        groups = np.array_split(u[codes[:, i].argsort(), k], 20)
        between = np.mean([(group.mean() - u[:, k].mean()) ** 2 for group in groups])
        assert ratios[i, k] == pytest.approx(between / u[:, k].var(), abs=1e-9)
    assert ratios[0, 0] > 0.95 and ratios[1, 1] > 0.95 and ratios[:, 2].max() < 0.02
    assert cartoon_factors.scores(codes[:, 1:2], u[:, 1:2], cartoon_factors.LinearRegression)[0] < 0.05
    assert cartoon_factors.scores(codes[:, 1:2], u[:, 1:2])[0] > 0.99


def test_cartoon_runs_are_kept_and_not_repeated(monkeypatch, capsys):
    original = cartoon_factors.measure
    monkeypatch.setattr(cartoon_factors, "RESULTS", Path("kept"))
    monkeypatch.setattr(cartoon_factors, "measure", lambda *arguments: original(*arguments, n=150))
    small = {key: TINY[key] for key in ("resolution", "width", "latent_dim")}
    monkeypatch.setattr(cartoon_factors, "SETTINGS", cartoon_factors.SETTINGS | small)
    first = cartoon_factors.main(("2-0",), images=16)
    assert first["2-0"]["images"] == 16 and len(first["2-0"]["v"]) == TINY["latent_dim"]
    assert np.shape(first["2-0"]["r2_of_one_latent"]) == (TINY["latent_dim"], 2)
    model = dlsgan.load("runs/cartoon_factors/2-0")
    l_enc = original(model, 2, dlsgan.read_checkpoint("runs/cartoon_factors/2-0")[0], n=150)["l_enc"]
    assert first["2-0"]["l_enc"] == pytest.approx(l_enc)
    monkeypatch.setattr(cartoon_factors, "train", None)  # would fail if called
    assert cartoon_factors.main(("2-0",), images=16) == first
    assert cartoon_factors.line(first["2-0"] | {"lambda": 10.0}).startswith("K = 2, seed 0, lambda 10: 0 live")
    assert (Path("kept") / "cartoon_factors.png").stat().st_size > 10_000
    with pytest.raises(dlsgan.UserError, match="unknown run '3-0'"):
        cartoon_factors.main(("3-0",), images=16)


def test_pruning_and_calibration_of_a_model_that_loses_nothing_or_half():
    """d = 4 latents as four pixels, read exactly: v = E[z z_hat]; or two of them dead: nothing to prune."""

    class Pixels(nn.Module):
        def forward(self, z):
            return 0.1 * F.pad(z * gain, (0, 3 * 256 - 4)).unflatten(1, (3, 16, 16))

    class Reader(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, 0], 10 * gain * x.flatten(1)[:, :4]

    for gain, live in ((torch.ones(4), 4), (torch.tensor([1.0, 0, 0, 1]), 2)):
        model = dlsgan.DLSGAN(Pixels(), Reader(), dlsgan.LatentScale(4))
        r = cartoon_factors.measure(model, 2, tiny(), n=900)
        assert r["live"] == live and r["psnr_pruned"] > 100 and r["psnr_mean_image"] < 60
        assert r["v"] == pytest.approx(r["z_times_z_hat"], abs=1e-3)
        assert set(r["order"][:live]) == set(gain.nonzero()[:, 0].tolist())
        assert r["l_enc"] == pytest.approx(1 - live / 4, abs=0.1)
        assert r["l_enc_predicted_from_v"] == pytest.approx(0, abs=0.1)  # s does not follow v in this model


def test_the_kept_cartoon_results_say_what_the_text_says():
    for run, kept in json.loads((cartoon_factors.RESULTS / "cartoon_factors.json").read_text()).items():
        assert cartoon_factors.line(kept) in cartoon_factors.__doc__
        assert kept["command"] == f"python -m toy_experiments.cartoon_factors {run}"
        assert kept["images"] == cartoon_factors.IMAGES and kept["machine"]
        assert kept["live"] == sum(v > 0.5 for v in kept["v"])
        predicted = 1 - sum(v * v for v in kept["v"]) / sum(kept["v"])
        assert kept["l_enc_predicted_from_v"] == pytest.approx(predicted, abs=1e-3) and kept["l_enc"] < predicted
        if kept["lambda"] == cartoon_factors.SETTINGS["encoder_weight"]:  # the aims, met or missed as the text has it
            missed = {"2-0": [], "4-0": [], "4-1": ["y"], "4-2": ["x", "y", "tilt"], "6-0": ["y", "smile"]}
            missed["8-0"], k = ["size", "tilt", "smile", "eye opening"], kept["factors"]
            assert (abs(kept["live"] - k) <= {2: 1, 4: 1, 6: 3, 8: 3}[k]) == (k != 2)
            r2 = dict(zip(dlsgan.CARTOON_FACTORS, kept["r2_live_boosted_trees"], strict=False))
            assert [name for name in r2 if r2[name] < 0.9] == missed[run] and kept["spread"] >= 0.8
            assert kept["psnr_pruned"] > 30  # dead dimensions can be left out


def steps_of_one_model(*steps):
    """The weights after one update of copies of a small model, each by its own step."""
    torch.manual_seed(0)
    first, weights = dlsgan.build(tiny()), []
    for step, settings in steps:
        model = copy.deepcopy(first)
        networks = (model.generator, model.discriminator)
        optimizers = [torch.optim.SGD(network.parameters(), 1.0) for network in networks]
        step(model, optimizers, dlsgan.cartoon_faces(4, 16)[0], torch.Generator().manual_seed(0), **settings)
        weights.append([torch.cat([p.detach().flatten() for p in network.parameters()]) for network in networks])
    return weights


def test_encoder_loss_in_d_only_leaves_the_generator_to_the_adversary():
    whole, without = ((dlsgan.train_step, {"encoder_weight": weight}) for weight in (3.0, 0.0))
    d_only = (mnist.encoder_loss_trains_d_only, {"encoder_weight": 3.0})
    ours, both, none = steps_of_one_model(d_only, whole, without)
    torch.testing.assert_close(ours[0], none[0])
    torch.testing.assert_close(ours[1], both[1])
    assert not torch.allclose(ours[0], both[0]) and not torch.allclose(ours[1], none[1])


def small_mnist(monkeypatch):
    write_mnist(Path("data/mnist"), 60)
    monkeypatch.setattr(mnist, "RESULTS", Path("kept"))
    preset = {"dataset": "mnist", "encoder_weight": 3.0} | {key: TINY[key] for key in TINY if key != "images"}
    monkeypatch.setitem(dlsgan.PRESETS, "mnist", preset)


def test_mnist_study_from_runs_to_figures(monkeypatch, capsys):
    small_mnist(monkeypatch)
    with pytest.raises(dlsgan.UserError, match="the run 'gan' comes first"):
        mnist.main("run", ("afterwards",), images=40)
    names = ("scale-0", "plain-0", "lambda-3", "d-only", "gan", "afterwards")
    found = mnist.main("run", names, images=40)
    assert found.keys() == set(names)
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 + len(names) and all(row.count("|") == rows[0].count("|") for row in rows)
    measures = {name: found[name]["measures"] for name in names}
    assert measures["lambda-3"] == measures["scale-0"]  # the same settings at the same budget
    first = {name: next(dlsgan.load(f"runs/mnist_study/{name}").generator.parameters()) for name in names}
    assert all(not torch.equal(first["lambda-3"], first[name]) for name in ("d-only", "plain-0", "gan"))
    # the kept measures are those of the kept networks
    model = dlsgan.load("runs/mnist_study/scale-0")
    test = dlsgan.to_float(dlsgan.load_mnist(mnist.configure("scale-0", 40, "data/mnist"))[1][:30])
    l_enc = dlsgan.evaluate(model, test, 50)["l_enc"]
    assert found["scale-0"]["measures"]["l_enc"] == pytest.approx(l_enc, abs=1e-4)
    frozen, late = (dlsgan.load(f"runs/mnist_study/{name}") for name in ("gan", "afterwards"))
    assert torch.equal(frozen.sample(4), late.sample(4))
    assert not torch.equal(frozen.encode(test[:4]), late.encode(test[:4]))
    assert not dlsgan.load("runs/mnist_study/plain-0").latent_scale.enabled and model.latent_scale.enabled
    # a run that is there already goes on: nothing is left to train, and the result is the same
    again = mnist.main("run", ("scale-0",), images=40)
    assert again["scale-0"] == found["scale-0"] and again.keys() == found.keys()
    mnist.main("figures")
    assert {path.stem for path in Path("kept").glob("*.png")} == {"mnist_ablations", "mnist_curves", "mnist_digits"}


def test_the_kept_mnist_results_stand_in_the_table():
    kept, text = mnist.RESULTS / "mnist.json", (ROOT / "toy_experiments" / "README.md").read_text()
    if not kept.exists():
        pytest.skip("no run is kept")
    results = json.loads(kept.read_text())
    assert all(row in text for row in mnist.table(results).splitlines())
    for name, r in results.items():
        assert r["command"] == f"python -m toy_experiments.mnist run {name} --images {r['images']}" and r["machine"]
        if name != "afterwards":
            assert r["curves"][-1]["images"] == r["images"] and all(point["swd"] for point in r["curves"])


@pytest.mark.slow
def test_the_scale_lowers_l_enc_on_mnist(monkeypatch):
    data = ROOT / "data" / "mnist"
    if not data.exists():
        pytest.skip("needs data/mnist")
    monkeypatch.setattr(mnist, "RESULTS", Path("kept"))
    runs = mnist.main("run", ("scale-0", "plain-0"), data_dir=str(data))
    scale, plain = (runs[name]["measures"] for name in ("scale-0", "plain-0"))
    assert scale["l_enc"] < plain["l_enc"] and scale["psnr_generated"] > plain["psnr_generated"]
    assert min(scale["spread"], plain["spread"]) > 0.8


@pytest.mark.slow
def test_four_factors_are_found_anew(monkeypatch):
    monkeypatch.setattr(cartoon_factors, "RESULTS", Path("kept"))
    r = cartoon_factors.main(("4-0",))["4-0"]
    assert abs(r["live"] - 4) <= 1 and r["spread"] >= 0.8 and min(r["r2_live_boosted_trees"]) >= 0.9


def test_flips_share_one_mask_a_column_and_traversals_meet_at_zero():
    config = tiny(latent_dim=40)
    model = dlsgan.build(config).requires_grad_(False)
    x = dlsgan.cartoon_faces(3, 16)[0]
    z_hat = model.encode(x)
    chance = torch.rand(5, 40, generator=torch.Generator().manual_seed(7))
    flipped = mnist.flips(model, x, 5, probability=0.1, seed=7)
    for column, row in np.ndindex(5, 3):
        sign = [-1.0 if value < 0.1 else 1.0 for value in chance[column].tolist()]
        assert torch.allclose(flipped[column, row], model.decode(z_hat[row : row + 1] * torch.tensor(sign))[0], atol=1e-5)
    assert torch.equal(mnist.flips(model, x, 1, probability=0.0)[0], model.reconstruct(x))
    picture = cartoon_factors.traversals(model, [3, 8])  # uint8 [2 * 16, 9 * 16, 3]
    z = torch.zeros(1, 40)
    assert np.array_equal(picture[:16, 4 * 16 : 5 * 16], picture[16:, 4 * 16 : 5 * 16])  # both pass through z = 0
    z[0, 8] = -2
    assert np.abs(picture[16:, :16].astype(int) - dlsgan.grid([model.decode(z)])).max() <= 1


@pytest.mark.parametrize("arguments", [["cartoon_factors", "3-0"], ["mnist", "run", "nonsense"]])
def test_unknown_toy_runs_get_one_clear_line(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "toy_experiments" / f"{arguments[0]}.py"), run_name="__main__")
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and re.fullmatch(rf"{arguments[0]}: unknown run '{arguments[-1]}': choose .*\n", error)


# ---- Nothing lost: kills, faults, damaged input, several processes ---------------------------------------------------


SCRIPT = """
import json, os, sys, torch, dlsgan
torch.set_num_threads(1)
dlsgan.SAVE_SECONDS, dlsgan.EVALUATED, dlsgan.report = 0, 24, lambda *arguments: None  # a checkpoint at every line

def run(arguments):
    if "DOUBLE" in os.environ:
        torch.set_default_dtype(torch.float64)
        torch.Tensor.float, to_float = torch.Tensor.double, dlsgan.to_float
        dlsgan.to_float = lambda *arguments: to_float(*arguments).double()
    step, weights = dlsgan.train_step, {}
    dlsgan.train_step = lambda model, *arguments: weights.update(model.state_dict()) or step(model, *arguments)
    code = dlsgan.main(arguments)
    if "RANK" in os.environ:
        torch.save(weights, f"rank{os.environ['RANK']}.pt")
    return code

if len(sys.argv) > 1:
    sys.exit(run(sys.argv[1:]))
import torch._dynamo  # which the first optimiser of a process imports
for line in sys.stdin:  # [environment, arguments]: run them in a fork and print its id; an id: print its exit code
    request = json.loads(line)
    if isinstance(request, int):
        print(os.waitstatus_to_exitcode(os.waitpid(request, 0)[1]), flush=True)
    elif child := os.fork():
        print(child, flush=True)
    else:
        os.environ.update(request[0])
        os.chdir(request[0]["FOLDER"])
        for output in (1, 2):
            os.dup2(os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), output)
        os._exit(run(request[1]))
"""


class Launcher:
    """Runs the command line in a process of its own, or, much faster, in forks of one that has imported torch."""

    def __init__(self, folder):
        self.script, self.processes = folder / "script.py", {}
        self.script.write_text(SCRIPT)
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": self.environment}
        self.server = subprocess.Popen([sys.executable, str(self.script)], **pipes)

    def ask(self, request):
        print(json.dumps(request), file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline())

    def fork(self, *arguments, **environment):
        return self.ask([environment | {"FOLDER": os.getcwd(), "XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"]}, arguments])

    def start(self, *arguments, command=(sys.executable,)):
        environment = self.environment | {"XDG_CACHE_HOME": os.environ["XDG_CACHE_HOME"]}
        with open("log", "a") as log:
            process = subprocess.Popen([*command, str(self.script), *arguments], stdout=log, stderr=log, env=environment)
        self.processes[process.pid] = process
        return process.pid

    def wait(self, process):
        with limit(120):
            return self.processes[process].wait() if process in self.processes else self.ask(process)

    def fork_all(self, count, *arguments, **environment):
        """What torchrun does: `count` processes that know of each other."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        group = {"TORCHELASTIC_RUN_ID": "test", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count)}
        return [self.fork(*arguments, RANK=str(i), LOCAL_RANK=str(i), **group, **environment) for i in range(count)]


@pytest.fixture(scope="module")
def launcher(tmp_path_factory):
    launcher = Launcher(tmp_path_factory.mktemp("launcher"))
    yield launcher
    launcher.server.stdin.close()
    launcher.server.wait(60)


class Hang(BaseException):
    """Not an Exception, which the program may turn into an answer."""


@contextlib.contextmanager
def limit(seconds):
    def stop(*_):
        raise Hang

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def pictures(folder="pictures", n=40, size=8):
    random = np.random.default_rng(0)
    Path(folder).mkdir()
    for i in range(n):
        Image.fromarray(random.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(Path(folder, f"{i:02d}.png"))


def same(a, b):
    """Equality to the bit of nested lists and dictionaries of tensors, the wall clock and the folder's name aside."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        keys = a.keys() - {"seconds", "images_per_second", "out", "history"}  # of which metrics.jsonl is a copy
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in keys)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, list | tuple) else a == b


def left_behind(run):
    state = torch.load(Path(run, "checkpoint.pt"), weights_only=True)
    return [state, [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]]


def written_lines(run):
    path = Path(run, "metrics.jsonl")
    return path.read_bytes().count(b"\n") if path.exists() else 0


KILLED = ["--dataset=pictures", *flags(resolution=8, images=120, scale_rule="sma", scale_window=20), "--flip"]


def kill_and_resume(launcher, starts, run, random):
    """Starts a run of 30 steps and kills it with -9 at a random instant, and again, until the last of `starts`, which lets
    it finish. Returns what the kills found."""
    found = Counter()
    for i, start in enumerate(starts, 1):
        begun, resumed = time.time(), any(Path(run).glob("checkpoint*.pt"))
        process = start(*(["--resume", run] if resumed else [*KILLED, "--out", run]))
        if i < len(starts):
            line = random.integers(0, 31)
            with limit(120):
                while written_lines(run) < line:
                    time.sleep(0.002)
            time.sleep(random.uniform(0, 0.03))
            os.kill(process, signal.SIGKILL)
        code = launcher.wait(process)
        assert code == 0 or (code == -signal.SIGKILL and i < len(starts)), Path("log").read_text()[-2000:]
        checkpoints = [dlsgan.read_checkpoint(file) for file in Path(run).glob("checkpoint*.pt")]  # none is unreadable
        if code:
            here = {file.name for file in Path(run).glob("*") if file.stat().st_mtime > begun}
            steps = [state["step"] for _, state in checkpoints] or [0]
            found["kills"] += 1
            found["before the first checkpoint"] += not checkpoints
            found["in the middle of a checkpoint"] += "checkpoint.tmp" in here
            found["between a checkpoint's two renamings"] += bool(checkpoints) and not Path(run, "checkpoint.pt").exists()
            found["with metrics that the checkpoint lacks"] += written_lines(run) > max(steps)
    return found


def test_five_runs_killed_at_random_instants_and_resumed(launcher):
    """All end with the weights of an uninterrupted run, and no line lost or repeated."""
    pictures()
    assert launcher.wait(launcher.fork(*KILLED, "--out=whole")) == 0, Path("log").read_text()
    for seed in range(5):
        starts = (launcher.fork if seed else launcher.start, launcher.fork)  # the first one by the command line itself
        kill_and_resume(launcher, starts, f"r{seed}", np.random.default_rng(seed))
        assert same(left_behind(f"r{seed}"), left_behind("whole"))


@pytest.mark.slow
def test_a_hundred_runs_killed_at_random_instants_and_resumed(launcher, capsys):
    pictures()
    launcher.wait(launcher.fork(*KILLED, "--out=whole"))
    found, equal, whole = Counter(), 0, left_behind("whole")
    for seed in range(100):
        random = np.random.default_rng(1000 + seed)
        found += kill_and_resume(launcher, [launcher.fork] * random.integers(2, 5), f"r{seed}", random)
        equal += same(left_behind(f"r{seed}"), whole)
    with capsys.disabled():
        print(f"\n100 runs of 30 steps, {found.pop('kills')} kills:", ", ".join(f"{n} {what}" for what, n in found.items()))
        print(f"unreadable checkpoints: 0; runs equal to the uninterrupted one in weights, optimisers, v, metrics: {equal}")
    assert equal == 100


def test_a_cache_truncated_in_mid_run_costs_no_more_than_a_kill(launcher):
    """The kernel ends the process (SIGBUS), as a memory map allows no better; --resume decodes again and goes on."""
    pictures()
    assert launcher.wait(launcher.fork(*KILLED, "--out=whole")) == 0
    process = launcher.fork(*KILLED, "--out=r")
    with limit(120):
        while written_lines("r") < 3:
            time.sleep(0.002)
    (cache,) = Path("cache/dlsgan").glob("*.u8")
    os.truncate(cache, 0)
    assert launcher.wait(process) == -signal.SIGBUS
    assert launcher.wait(launcher.fork("--resume=r")) == 0
    assert same(left_behind("r"), left_behind("whole"))


def test_a_folder_removed_in_mid_run_is_written_anew():
    list(dlsgan.train(tiny(out="whole")))
    for i, _ in enumerate(dlsgan.train(tiny(out="r"))):
        if i == 4:
            shutil.rmtree("r")
    assert same(left_behind("r"), left_behind("whole"))


def test_files_that_vanish_before_during_and_after_decoding(capsys, monkeypatch):
    pictures(n=20)
    Path("pictures/link.png").symlink_to("nowhere.png")
    config, read = tiny(dataset="folder", data_dir="pictures"), dlsgan.read_image

    def vanishing(path, config):
        Path("pictures/07.png").unlink(missing_ok=True)
        return read(path, config)

    monkeypatch.setattr(dlsgan, "read_image", vanishing)
    lines = []
    for line in dlsgan.train(config):  # 19 images are decoded once and serve all epochs
        shutil.rmtree("pictures", ignore_errors=True)
        lines.append(line)
    printed = capsys.readouterr().out
    assert len(lines) == 10 and "skipped 'pictures/07.png'" in printed and "skipped 'pictures/link.png'" in printed


def test_what_a_killed_decoding_left_is_removed():
    pictures(n=4)
    cache = Path("cache/dlsgan")
    cache.mkdir(parents=True)
    for name in ("old.1.tmp", "new.2.tmp"):
        (cache / name).write_bytes(b"half")
    os.utime(cache / "old.1.tmp", (time.time() - 3600,) * 2)
    dlsgan.load_folder(tiny(dataset="folder", data_dir="pictures"))
    assert sorted(file.suffix for file in cache.iterdir()) == [".tmp", ".u8"] and (cache / "new.2.tmp").exists()


def test_sixteen_bit_grey_is_scaled_not_clipped():
    values = np.linspace(0, 65535, 256).reshape(16, 16).astype(np.uint16)
    Image.fromarray(values).save("deep.png")
    image = dlsgan.read_image(Path("deep.png"), tiny(dataset="folder"))
    np.testing.assert_array_equal(image, np.broadcast_to(np.round(values / 257), (3, 16, 16)))


def test_metrics_are_json_even_below_the_window_of_ssim():
    list(dlsgan.train(tiny(resolution=8, out="r")))
    lines = [json.loads(text, parse_constant=pytest.fail) for text in Path("r/metrics.jsonl").read_text().splitlines()]
    assert "psnr_test" in lines[-1] and "ssim_test" not in lines[-1]


def peak_memory(function):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = profile.profiler.kineto_results.events()
    return max(itertools.accumulate(event.nbytes() for event in events if event.name() == "[memory]"))


def test_evaluation_and_report_take_less_memory_than_a_training_step():
    config = dlsgan.Config(device="cpu", resolution=16, batch_size=32)
    model = dlsgan.build(config)
    images = dlsgan.cartoon_faces(128, config.resolution)[0]
    optimizers, rng = dlsgan.make_optimizers(model, 1e-3), torch.Generator()
    step = peak_memory(lambda: dlsgan.train_step(model, optimizers, images[: config.batch_size], rng, penalty_weight=1.0))
    evaluated = {}
    assert peak_memory(lambda: evaluated.update(dlsgan.evaluate(model, images, config.batch_size))) < step
    history = [{"images": 1, **evaluated}]
    assert peak_memory(lambda: REPORT(model, images, history, Path("report.png"), "title")) < step


@pytest.mark.parametrize("loss", ["nsgan", "wgan-gp"])
def test_two_processes_train_like_one(launcher, loss):
    """In float64, so that rounding is the only difference and stays tiny; both processes end with the same bits."""
    pictures()
    arguments = ["--dataset=pictures", *flags(resolution=8, images=24, loss=loss), "--flip"]
    assert launcher.wait(launcher.fork(*arguments, "--out=one", DOUBLE="1")) == 0, Path("log").read_text()
    two = launcher.fork_all(2, *arguments, "--out=two", DOUBLE="1")
    assert [launcher.wait(process) for process in two] == [0, 0], Path("log").read_text()
    (one, one_lines), (two, two_lines) = left_behind("one"), left_behind("two")
    for part in ("model", "ema"):
        torch.testing.assert_close(two[part], one[part], rtol=1e-9, atol=1e-9)
    assert same(*(torch.load(f"rank{i}.pt", weights_only=True) for i in (0, 1)))
    for a, b in zip(one_lines, two_lines, strict=True):
        assert a.keys() == b.keys()
        assert all(b[key] == pytest.approx(a[key], rel=1e-6) for key in a.keys() - {"seconds", "images_per_second"})


def test_one_of_two_processes_stops_or_dies(launcher):
    pictures()
    arguments = ["--dataset=pictures", *flags(resolution=8, images=10**6)]
    for number, codes in ((signal.SIGTERM, [0, 0]), (signal.SIGKILL, [2, -9])):
        run = f"r{number}"
        both = launcher.fork_all(2, *arguments, "--out", run)
        with limit(120):
            while written_lines(run) < 2:
                time.sleep(0.01)
        os.kill(both[1], number)  # only the second one
        assert [launcher.wait(process) for process in both] == codes, Path("log").read_text()
        assert dlsgan.read_checkpoint(run)[1]["step"] > 0
    assert "dlsgan: another process of this training has ended" in Path("log").read_text()
    both = launcher.fork_all(2, *arguments, "--batch-size=5")
    assert [launcher.wait(process) for process in both] == [2, 2]
    assert "dlsgan: --batch-size 5 cannot be shared by 2 processes" in Path("log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_torchrun_after_twenty_steps(launcher, capsys, count):
    pictures("pictures", 80, 32)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}")
    arguments = ["--dataset=pictures", "--images=160", "--threads=1", "--device=cpu", "--resolution=32", "--batch-size=8"]
    for double in ("", "1"):
        if double:
            launcher.environment["DOUBLE"] = double
        runs = [f"{name}{double}" for name in ("one", "all")]
        for run, command in zip(runs, ((sys.executable,), torchrun), strict=True):
            assert launcher.wait(launcher.start(*arguments, "--out", run, command=command)) == 0, Path("log").read_text()
        launcher.environment.pop("DOUBLE", None)
        (one, one_lines), (several, lines) = map(left_behind, runs)
        difference = max((one["model"][k] - x).abs().max().item() for k, x in several["model"].items() if x.numel())
        speeds = [sum(line["images_per_second"] for line in part[1:]) / len(part[1:]) for part in (one_lines, lines)]
        with capsys.disabled():
            print(f"\n{count} processes, 20 steps, {'float64' if double else 'float32'}: largest difference of a weight "
                  f"{difference:.1e}; images/s {speeds[0]:.1f} in one, {speeds[1] / count:.1f} per process")
        assert difference < (1e-9 if double else 0.1)


# Damaged input: each function damages a copy of valid input and returns what it did, the command line that reads it, the
# exit code, and what the last line of the error output (code 2) or the printed lines (code 0) must contain.


def flipped(data, random, first, end):
    """The bytes with one of them changed to another value."""
    i = random.integers(first, end)
    return data[:i] + bytes([data[i] ^ random.integers(1, 256)]) + data[i + 1 :]


def damage_idx(random):
    path = Path("m", random.choice(["train-images-idx3-ubyte", "t10k-images-idx3-ubyte"]))
    data = path.read_bytes()
    packed, n = gzip.compress(data), len(data)
    kind, content = {
        0: ("IDX cut short", lambda: data[: random.integers(n)]),
        1: ("IDX with bytes too many", lambda: data + random.bytes(random.integers(1, 50))),
        2: ("IDX header changed", lambda: flipped(data, random, 0, 16)),
        3: ("IDX of random bytes", lambda: random.bytes(random.integers(1, 3000))),
        4: ("gzipped IDX cut short", lambda: packed[: random.integers(len(packed))]),
        5: ("gzipped IDX with one byte changed", lambda: flipped(packed, random, 10, len(packed))),
        6: ("gzipped IDX with bytes too many", lambda: packed + b"\1" + random.bytes(9)),
        7: ("IDX of labels", lambda: struct.pack(">2I", 0x801, 12) + bytes(12)),
        8: ("IDX without images", lambda: struct.pack(">4I", 0x803, 0, 28, 28)),
        9: ("IDX of few images", lambda: struct.pack(">4I", 0x803, 1, 28, 28) + data[16 : 16 + 784]),
    }[random.integers(10)]
    path.write_bytes(content())
    named = "too large for 1 images|too few images: 1 for testing" if "few" in kind else f"{path} is not a readable IDX file"
    return kind, ["--dataset=mnist", "--data-dir=m"], 2, named


def damage_image(path, random):
    """Replaces a file by something that is no image; what that is."""
    data = path.read_bytes()
    kind = random.choice(["cut short", "empty", "text", "random bytes", "folder", "link to nowhere", "pipe", "too large"])
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "link to nowhere":
        path.symlink_to("nowhere")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        giant = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4s2I5B", 13, b"IHDR", 50_000, 50_000, 8, 2, 0, 0, 0)
        giant += struct.pack(">I", zlib.crc32(giant[12:])) + data[33:]
        content = {"empty": b"", "text": b"<html>404</html>", "too large": giant, "random bytes": random.bytes(300)}
        path.write_bytes(content.get(kind, data[: random.integers(8, len(data) // 2)]))
    return kind


def damage_folder(random):
    files, use = sorted(Path("pictures").iterdir()), ["--dataset=pictures"]
    kind = random.integers(8)
    if kind == 0:
        for file in files[:12]:
            damage_image(file, random)
        return "twelve of fourteen images damaged", use, 2, "too many unreadable images|too large for . images"
    if kind == 1:
        for file in files[3:]:
            file.unlink()
        return "three images left", use, 2, "too large for 1 images"
    if kind == 2:
        strange = Path("pictures", os.fsdecode(random.choice([b"\xff.png", b"new\nline.png", "Gruß 日本.png".encode()])))
        strange.write_text("text")
        return "a strange name that is no image", use, 0, "skipped 'pictures/" + re.escape(repr(strange.name)[1:-1])
    if kind == 3:
        grey = random.integers(0, 65536, (9, 7)).astype(np.uint16)
        Image.fromarray(grey).save(files[0])
        Image.fromarray(grey[:1, :1].astype(np.uint8)).save(files[1])
        return "images of 16 bits, of one pixel", use, 0, "^(?!.*skipped)"
    damaged = random.choice(files, random.integers(1, 4), replace=False)
    kinds = [damage_image(file, random) for file in damaged]
    files = [file for file, kind in zip(damaged, kinds, strict=True) if kind not in ("folder", "pipe")]  # no files at all
    return f"images damaged: {kinds[0]}", use, 0, "".join(f"(?=.*skipped '{file}': )" for file in files)


def damage_celeba(random):
    partition, attributes = Path("c/list_eval_partition.txt"), Path("c/list_attr_celeba.txt")
    use = ["--dataset=celeba", "--data-dir=c"]
    path = random.choice([partition, attributes])
    lines, head = path.read_text().splitlines(), 2 * (path == attributes)
    row = head + random.integers(12)  # of an image that is there
    name = lines[row].split()[0]
    table = f"{path} is not a CelebA table: "
    bad_value = lines[row][:-1] + str(random.choice(list("3579x-")))
    kinds = [
        ("value changed", [*lines[:row], bad_value, *lines[row + 1 :]], table + f"({name}|invalid literal)"),
        ("value missing", [*lines[:row], lines[row][:-2].rstrip(), *lines[row + 1 :]], table + name),
        ("value too many", [*lines[:row], lines[row] + " 1", *lines[row + 1 :]], table + name),
        ("row twice", [*lines, lines[row]], table + "it announces .* rows name"),
        ("cut within a row", [*lines[:row], lines[row][: random.integers(1, 11)]], table),
        ("bytes that are no text", None, table),
        ("empty", [], table + "it announces"),
        ("the other table", None, table),
    ]
    if path == attributes:
        kinds += [
            ("count changed", [str(int(lines[0]) + random.choice([-7, -1, 1, 1000])), *lines[1:]], table + "it announces"),
            ("count is text", ["many", *lines[1:]], table),
            ("column added", [lines[0], lines[1] + " Bald", *lines[2:]], table),
            ("row removed", lines[:row] + lines[row + 1 :], table + "it announces"),
            ("image without a row", ["21", *lines[1:row], *lines[row + 1 :]], f"{path} does not match .* no row for {name}"),
        ]
    else:
        kinds += [
            ("row removed", lines[:row] + lines[row + 1 :], None),
            ("missing", None, f"{path} is not a CelebA table: No such file"),
        ]
    kind, changed, named = kinds[random.integers(len(kinds))]
    if kind == "bytes that are no text":
        i = random.integers(path.stat().st_size)
        path.write_bytes(path.read_bytes()[:i] + b"\xff\xfe" + path.read_bytes()[i:])
    elif kind == "the other table":
        shutil.copy(attributes if path == partition else partition, path)
    elif kind == "missing":
        path.unlink()
    else:
        path.write_text(("\n", "\r\n")[random.integers(2)].join(changed))
    kind = f"{'attributes' if head else 'partition'}: {kind}"
    return (kind, use, 2, named) if named else (kind, use, 0, "11 of 21 listed images are present; 1 not listed")


def damage_checkpoint(random):
    path, use = Path("r/checkpoint.pt"), ["--resume=r", "--images=16"]
    data = path.read_bytes()
    named = "r/checkpoint.pt (is damaged or not a checkpoint|cannot be read)"
    kinds = ["bytes", "one byte", "one byte", "entry", "type", "configuration", "network", "nan", "moments"]
    kind = random.choice(kinds)
    if kind == "bytes":
        contents = [data[: random.integers(len(data))], random.bytes(500), b"", b"PK\3\4" + random.bytes(500), data[100:]]
        path.write_bytes(contents[random.integers(5)])
        return "checkpoint cut short or of other bytes", use, 2, named
    if kind == "one byte":
        with zipfile.ZipFile(path) as archive:
            records = [record for record in archive.infolist() if record.file_size]
        record = records[random.integers(len(records))]
        first = record.header_offset + 30 + sum(struct.unpack("<2H", data[record.header_offset + 26 :][:4]))
        path.write_bytes(flipped(data, random, first, first + record.file_size))
        return "checkpoint with one byte changed", use, 2, named
    state = torch.load(path, weights_only=True)
    named = "r/checkpoint.pt|the checkpoint in r does not fit|cannot write to r: Object of type Tensor"
    if kind == "entry":
        del state[name := random.choice(list(state))]
        what = f"checkpoint without {name}"
    elif kind == "type":
        name = random.choice(sorted(state.keys() - {"config", "format"}))
        state[name] = [None, "text", torch.ones(2)][random.integers(3)]
        what = "checkpoint with an entry of another type"
    elif kind == "configuration":
        changes = {"dataset": "x", "loss": 3, "lr": "x", "latent_dim": 4.5, "batch_size": 0, "resolution": 12}
        changes |= {"seed": -1, "scale_rule": "mean", "device": "tpu", "data_dir": None, "colour": 1, "width": 1e6}
        name = random.choice(list(changes))
        state["config"][name] = changes[name]
        named, what = "r/checkpoint.pt is damaged|--|device 'tpu'", f"checkpoint with {name} = {changes[name]}"
    elif kind == "network":
        name = random.choice(["latent_dim", "resolution", "mapping_layers", "width"])
        state["config"][name] = {"resolution": 32, "width": 1.0}.get(name, 7)
        what = f"checkpoint with another {name}"
    elif kind == "nan":
        part = random.choice(["generator", "discriminator"])
        name = random.choice([name for name in state["model"] if name.startswith(part) and "rgb" in name])
        state["model"][name].fill_(math.nan)
        named, what = r"\w+ became nan after 12 images", "checkpoint with weights that are nan"
    else:
        moments = state[random.choice(["optimizer_g", "optimizer_d"])]["state"][random.integers(5)]
        moments["exp_avg"] = moments["exp_avg"].flatten()[:1].reshape(1, 1, 1, 1, 1)
        what = "checkpoint with moments of another shape"
    torch.save(state, path)
    return what, use, 2, named


def damage_command(random):
    fields = {field.name: field for field in dataclasses.fields(dlsgan.Config)}
    kind = random.integers(6)
    if kind < 3:
        name = random.choice([name for name, field in fields.items() if type(field.default) in (int, float)])
        whole, may_be_zero = type(fields[name].default) is int, name in ("encoder_weight", "r1_gamma", "threads", "seed")
        values = ["-1", "nan", "inf", "1e99", "abc", "", "1,5", "--", "9" * 12, *["1.5"] * whole, *["0"] * (not may_be_zero)]
        value = random.choice(values)
        return "a number that cannot be", [f"--{name.replace('_', '-')}={value}"], 2, name.replace("_", "-")
    if kind == 3:
        flag = "--" + "".join(random.choice(list("qxzj"), 6))
        extra = [[flag], [flag, "3"], ["cartoon"], ["--flip=yes"], ["--lr"], ["--preset=paper"], ["--no-resume"], ["-lr=1"]]
        return "unknown words", extra[random.integers(len(extra))], 2, "error: (unrecognized|argument|ambiguous)"
    if kind == 4:
        rest = random.choice(["--lr=1", "--dataset=mnist", "--flip", "--preset=mnist", "--checkpoint=r", "--loss=lsgan"])
        together = [["--resume=r", rest], ["--checkpoint=r", "--reconstruct", "x.png", "--lr=1"], ["--checkpoint=r"]]
        together += [["--reconstruct", "x.png", "--seed=1"], ["--resume=r", "--reconstruct", "x.png"]]
        return "options that exclude each other", together[random.integers(len(together))], 2, "leave out --|goes with"
    Path("file").write_text("text")
    name, value = {
        0: ("device", random.choice(["cpu:foo", "tpu", "CPU", "", "meta", "auto:1", "cuda:77"])),
        1: ("dataset", random.choice(["imagenet", "", "Cartoon", "no/where", "file", "\udcff", "x" * 300])),
        2: ("data-dir", random.choice(["no/where", "file", "file/below", "x" * 300])),
        3: ("out", random.choice(["file", "file/below", "x" * 300, "r"])),
        4: (random.choice(["loss", "scale-rule"]), random.choice(["hinge", "", "NSGAN"])),
        5: ("resume", random.choice(["no/where", "file", "", "m"])),
    }[random.integers(6)]
    return f"--{name} that cannot be", [f"--{name}={value}"], 2, "."


DAMAGES = {"m": damage_idx, "pictures": damage_folder, "c": damage_celeba, "r": damage_checkpoint, "": damage_command}
INPUTS = {"m": "IDX file", "pictures": "folder", "c": "CelebA table", "r": "checkpoint", "": "command line"}


def valid_inputs():
    write_idx(Path("m/train-images-idx3-ubyte"), np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8))
    shutil.copy("m/train-images-idx3-ubyte", "m/t10k-images-idx3-ubyte")
    write_celeba(Path("c"), n=12, test=3, newline="\n", size=(16, 20))
    pictures(n=14)
    list(dlsgan.train(tiny(out="r", images=8, resolution=8)))


def answers_to_damage(seeds, capsys):
    """Runs a damaged input for each seed. Returns how often each answer was given, {(kind of input, answer): n}."""
    valid_inputs()
    answers, base = Counter(), Path.cwd()
    for seed in seeds:
        random = np.random.default_rng(seed)
        (case := base / "case").mkdir()
        os.chdir(case)
        family = list(DAMAGES)[seed % len(DAMAGES)]
        for folder in {family, "r"} - {""}:
            shutil.copytree(base / folder, folder)
        what, arguments, expected, named = DAMAGES[family](random)
        given = {argument.split("=")[0] for argument in arguments}
        reading = given & {"--resume", "--checkpoint", "--reconstruct"}
        rest = [] if reading else [f for f in flags(resolution=8, images=4, out="o") if f.split("=")[0] not in given]
        capsys.readouterr()
        try:
            with limit(60):
                code = dlsgan.main([*arguments, *rest])
        except SystemExit as end:  # of argparse
            code = end.code
        except BaseException as error:
            pytest.fail(f"seed {seed}, {what}, {arguments}: {error!r}")
        printed = capsys.readouterr()
        last = printed.err.replace("\r", "\n").strip().splitlines()[-1] if code else printed.out.replace("\n", " ")
        assert code == expected and re.search(named, last), f"seed {seed}, {what}, {arguments}: {code}, {last}"
        assert "Traceback" not in printed.err and (not code or len(last) < 500)
        answer = last.split(": ", 1)[1] if code else "it trains, naming what it skips"
        answers[INPUTS[family], re.sub(r"'.*?'|--[\w-]+|\S*[\d/]\S*", "*", answer)[:90]] += 1
        os.chdir(base)
        shutil.rmtree(case)
    return answers


def test_sixty_damaged_inputs(capsys):
    assert sum(answers_to_damage(range(60), capsys).values()) == 60


@pytest.mark.slow
def test_a_thousand_damaged_inputs(capsys):
    answers = answers_to_damage(range(1000), capsys)
    with capsys.disabled():
        print()
        for (family, answer), n in sorted(answers.items()):
            print(f"{n:5} {family}: {answer}")
    assert sum(answers.values()) == 1000


# ---- Tutorial: each tagged sentence of tutorial.ipynb -----------------------------------------------------------------

TUTORIAL = ROOT / "tutorial.ipynb"


def tutorial_cells(kind):
    return [cell for cell in json.loads(TUTORIAL.read_text())["cells"] if cell["cell_type"] == kind]


def tutorial_text():
    """Markdown cells and Markdown that cells have printed, every run of white space as one space, "¶" between them."""
    outputs = [output.get("data", {}) for cell in tutorial_cells("code") for output in cell["outputs"]]
    parts = [cell["source"] for cell in tutorial_cells("markdown")] + [data.get("text/markdown", []) for data in outputs]
    return " ".join(" ¶ ".join("".join(part) for part in parts).split())


def says(tag, *expected):
    """The numbers of the sentence that ends in a tag are these, as formatted."""
    before = tutorial_text().split(f"[{tag}]")[0]
    sentence = re.split(r"(?:[.!?:]\*?|¶)\s+(?=[A-Z`])", before)[-1]
    assert re.findall(r"(?<![\w.,])[+-]?\d[\d,]*(?:\.\d+)?", sentence) == list(expected), sentence


@pytest.fixture(scope="module")
def ring():
    """The three systems of the tutorial's ring: models and measures."""
    torch.set_num_threads(1)
    steps = 1500
    assert f"steps = {steps}\n" in "".join("".join(cell["source"]) for cell in tutorial_cells("code"))
    found, lost = (two_dimensional.train("ring", seed=0, scale=scale, steps=steps) for scale in (True, False))
    late = two_dimensional.encoder_afterwards(lost, seed=0, steps=steps)
    pairs = {"found": (found, found.discriminator), "lost": (lost, lost.discriminator), "late": (lost, late)}
    return {name: {"model": m, "encoder": e} | two_dimensional.measure(m, e, "ring") for name, (m, e) in pairs.items()}


def test_c01_the_plain_encoder_does_not_converge(ring):
    """without scale, the encoder that is trained along with the ring's generator ends with an error above 0.55 [C01]"""
    assert 0.55 < ring["lost"]["l_enc"] < 1


def test_c02_nor_does_one_that_is_trained_later(ring):
    """a fresh encoder, trained on the finished generator for as long again, ends above 0.55, too [C02]"""
    assert 0.55 < ring["late"]["l_enc"] < 1


def test_c03_two_of_eight():
    """if $x$ shows two of eight independent standard normal numbers exactly and nothing of the other six, the best guess of
    those six is 0, and the mean squared error over all eight is 6/8 [C03]"""
    z = torch.randn(100_000, 8, dtype=torch.float64)
    a, b = z[:, 0], z[:, 1]
    features = torch.stack((torch.ones_like(a), a, b, a * a, a * b, b * b, a**3, b**3), 1)  # of x = (a, b)
    z_hat = features @ torch.linalg.lstsq(features, z).solution
    assert z_hat[:, 2:].abs().mean() < 0.02
    assert dlsgan.encoder_loss(z, z_hat, torch.ones(8)).item() == pytest.approx(6 / 8, abs=0.01)


def conditional_means(seed):
    """z, and the best guess of it from x = round(2 |z| + noise): means of z^2-like bins, fitted on other samples."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(2, 200_000))
    x = np.clip(np.round(2 * z + rng.normal(size=z.shape)), -8, 8).astype(int) + 8
    means = np.bincount(x[0], z[0], 17) / np.maximum(np.bincount(x[0], minlength=17), 1)
    return z[1], means[x[1]]


def test_c04_total_variance():
    """For the best encoder, $v_i$ and the mean squared error of dimension $i$ add up to 1 [C04]."""
    z, z_hat = conditional_means(0)
    v, error = (z_hat**2).mean(), ((z - z_hat) ** 2).mean()
    assert 0.5 < v < 0.9 and v + error == pytest.approx(1, abs=0.01)


def test_c05_calibration(ring):
    """the covariance of guess and truth, $\\mathbb E[z_i \\hat z_i]$, equals the variance of the guess, $v_i$ [C05]"""
    z, z_hat = conditional_means(1)
    assert (z * z_hat).mean() == pytest.approx((z_hat**2).mean(), abs=0.01)
    model, encoder = ring["late"]["model"], ring["late"]["encoder"]  # nearly so for a trained encoder
    z = dlsgan.prior(20_000, model.latent_scale, torch.Generator().manual_seed(1))
    with torch.no_grad():
        z_hat = encoder(model.decode(z))[1]
    assert ((z * z_hat).mean(0) - z_hat.square().mean(0)).abs().max() < 0.08


@pytest.mark.parametrize("k", (1, 2, 5))
def test_c06_linear_maps_obey_the_guide_line(k):
    """If everything that $G$ does is linear and passes through $k$ numbers, then $\\sum_i v_i \\le k$ [C06]."""
    random = np.random.default_rng(k)
    for sigma in (1e-3, 0.1, 1.0):
        total = linear_gaussian.variances(random.normal(size=(k, 8)), random.uniform(0.1, 3, 8), sigma).sum()
        assert 0 < total <= k + 1e-9
    assert total < k - 0.05 < linear_gaussian.variances(np.eye(8)[:k], np.ones(8), 1e-3).sum()


def test_c07_an_angle_beats_the_guide_line():
    """one number, yet both coordinates are partly known from it, and $v_1 + v_2 = \\pi/2 \\approx 1.57$, more than 1
    [C07]"""
    z = np.random.default_rng(0).normal(size=(400_000, 2))
    bins = ((np.arctan2(z[:, 1], z[:, 0]) / np.pi + 1) * 100).astype(int)  # x, the angle
    z_hat = np.stack([np.bincount(bins, column) / np.bincount(bins) for column in z.T], 1)[bins]
    assert (z_hat**2).mean(0).sum() == pytest.approx(math.pi / 2, abs=0.01)


def test_c08_power_is_moved_not_added():
    """Whatever $v$ is, the mean of $s_i^2$ is 1: power is moved, not added [C08]."""
    for v in (torch.rand(8), torch.rand(8) ** 9, torch.eye(8)[2]):
        scale = dlsgan.LatentScale(8)
        scale.v.copy_(v)
        assert scale.scale().square().mean().item() == pytest.approx(1)


def test_c09_loss_of_scaled_vectors():
    """which is the mean squared error between the scaled vectors $z \\odot s$ and $\\hat z \\odot s$ [C09]"""
    z, z_hat, s = torch.randn(5, 3), torch.randn(5, 3), 2 * torch.rand(3)
    assert dlsgan.encoder_loss(z, z_hat, s).item() == pytest.approx(F.mse_loss(z * s, z_hat * s).item(), rel=1e-6)


def test_c10_no_gradient_through_s():
    """And $s$ is a statistic, no weight: no gradient flows through it [C10]."""
    scale, z_hat = dlsgan.LatentScale(3), torch.randn(5, 3, requires_grad=True)
    scale.v = torch.rand(3, requires_grad=True)
    assert not scale.scale().requires_grad
    scale = dlsgan.LatentScale(3)
    scale.update(z_hat)
    assert not scale.v.requires_grad and scale.v.ne(1).all()


def calibrated(v, n=200_000):
    """z and a calibrated guess of it: E[z_hat^2] = E[z z_hat] = v."""
    z, noise = torch.randn(2, n, len(v), dtype=torch.float64)
    return z, v * z + (v * (1 - v)).sqrt() * noise


def test_c11_what_a_calibrated_encoder_scores():
    """If the encoder is calibrated, the plain error is $1 - \\frac1d\\sum_i v_i$ and $L_{enc}$ is
    $1 - \\sum_i v_i^2 / \\sum_i v_i$ [C11]."""
    scale, v = dlsgan.LatentScale(5).double(), torch.tensor([0.9, 0.7, 0.3, 0.1, 0.05], dtype=torch.float64)
    scale.v.copy_(v)
    z, z_hat = calibrated(v)
    assert dlsgan.encoder_loss(z, z_hat, torch.ones(5)).item() == pytest.approx((1 - v.mean()).item(), abs=0.005)
    expected = (1 - v.square().sum() / v.sum()).item()
    assert dlsgan.encoder_loss(z, z_hat, scale.scale()).item() == pytest.approx(expected, abs=0.005)


def test_c12_nothing_is_asked_of_faded_dimensions():
    """With two dimensions fully known and six unknown the plain error stays at 0.75 while $L_{enc}$ is 0 [C12]."""
    scale, v = dlsgan.LatentScale(8).double(), torch.tensor([1.0] * 2 + [0.0] * 6, dtype=torch.float64)
    scale.v.copy_(v)
    z, z_hat = calibrated(v)
    assert dlsgan.encoder_loss(z, z_hat, torch.ones(8)).item() == pytest.approx(0.75, abs=0.005)
    assert dlsgan.encoder_loss(z, z_hat, scale.scale()) == 0


def test_c13_entropy_is_largest_without_scale():
    """The differential entropy of $z \\odot s$ is $\\sum_i \\log(s_i\\sqrt{2\\pi e})$ nats; among all scales with the same
    power it is largest, $1.4189\\,d$, when all $s_i$ are 1 [C13]."""
    scale = dlsgan.LatentScale(6)
    largest = scale.measures()["entropy"].item()
    assert largest == pytest.approx(1.4189 * 6, abs=1e-3)
    for _ in range(5):
        scale.v.copy_(torch.rand(6))
        gaussian = torch.distributions.MultivariateNormal(torch.zeros(6), torch.diag(scale.scale().square()))
        assert scale.measures()["entropy"].item() == pytest.approx(gaussian.entropy().item(), rel=1e-5)
        assert scale.measures()["entropy"] < largest - 0.1


def test_c14_the_scale_finds_the_ring(ring):
    """With the scale, the ring's generator keeps two live dimensions ($v > 1/2$) of its eight, and $L_{enc}$ ends below
    0.15 [C14]."""
    assert ring["found"]["live"] == 2 and 0 < ring["found"]["l_enc"] < 0.15


@pytest.mark.parametrize("seed", range(5))
def test_c15_information_never_falls(seed):
    """the information $I(Z;X)$ never falls from one update to the next, whatever $A$ is [C15]"""
    random = np.random.default_rng(seed)
    _, trace = linear_gaussian.dls_iterations(random.normal(size=(4, 7)), random.uniform(0.05, 1), 200)
    assert np.diff(trace).min() > -1e-10 and trace[-1] > trace[0] + 0.01


def test_c16_water_filling():
    """The update of the scale converges to exactly that, $s_i^2 = \\max(0,\\ c - \\sigma^2/a_i^2)$ with the water level
    $c = d/\\sum_i v_i$ [C16]."""
    gains, sigma = np.array([2.0, 1.5, 1.1, 0.8, 0.55, 0.3, 0.2, 0.1]), 0.5
    power, _ = linear_gaussian.dls_iterations(np.diag(gains), sigma, 3000)
    level = 8 / linear_gaussian.variances(np.diag(gains), power, sigma).sum()
    np.testing.assert_allclose(power, np.maximum(0, level - sigma**2 / gains**2), atol=1e-9)
    assert power.sum() == pytest.approx(8) and (power == 0).sum() + (power < 1e-9).sum() > 0


def test_c17_the_sum_of_v_counts_what_passes():
    """When the noise becomes small, each direction that $A$ lets through is known for certain, and $\\sum_i v_i$ tends to
    the rank of $A$ [C17]."""
    random = np.random.default_rng(0)
    for rank in (1, 3, 5):
        a = random.normal(size=(6, rank)) @ random.normal(size=(rank, 8))
        assert np.linalg.matrix_rank(a) == rank
        assert linear_gaussian.variances(a, random.uniform(0.5, 2, 8), 1e-4).sum() == pytest.approx(rank, abs=1e-4)


def test_c18_a_generator_that_moves_removes_the_loss():
    """For this *fixed* $A$ the best scale keeps all five alive, and $L_{enc}$ stays above 0.5; if $A$ may learn as well, two
    dimensions remain and $L_{enc}$ falls below 0.05 [C18]."""
    angle = np.pi * np.arange(5) / 5 + 0.03 * np.random.default_rng(0).normal(size=5)
    fixed, moved = linear_gaussian.moving_generator(np.stack((np.cos(angle), np.sin(angle))), 0.1, 1500).values()
    assert fixed["effective_dimensions"] > 4.5 and fixed["l_enc"] > 0.5
    assert moved["effective_dimensions"] < 2.1 and moved["l_enc"] < 0.05


def test_c19_the_original_loss_saturates():
    """when the discriminator is sure that an image is fake, at $a_g = -4$, the non-saturating loss has a slope of $-0.98$
    and the original one of only $-0.018$ [C19]"""
    for name, slope in (("nsgan", -0.98), ("original", -0.018)):
        a = torch.tensor(-4.0, requires_grad=True)
        dlsgan.LOSSES[name][2](a).backward()
        assert float(f"{a.grad.item():.2g}") == slope


def test_c20_r1_of_a_linear_discriminator():
    """for a linear discriminator $a = c^\\top x$ it is $\\lVert c\\rVert^2$ [C20]"""
    x, c = torch.randn(4, 3, 2, 2, requires_grad=True), torch.randn(12)
    assert dlsgan.r1_penalty(x.flatten(1) @ c, x).item() == pytest.approx(c.square().sum().item(), rel=1e-5)


def test_c21_each_line_of_algorithm_1_has_its_place():
    """All eight lines of Algorithm 1 stand in `train_step` under their numbers [C21]."""
    comments = re.findall(r"#.*?\blines? ([\d, ]*\d)", inspect.getsource(dlsgan.train_step))
    assert {int(number) for text in comments for number in text.split(",")} == set(range(1, 9))


def test_c22_each_network_follows_its_own_loss():
    """The generator moves along the gradient of $L_G$ alone and the discriminator along that of $L_D$ alone, both taken
    before either has moved [C22]."""
    model, real = toy(), torch.randn(6, 2, dtype=torch.float64)
    s, z = model.latent_scale.scale(), dlsgan.prior(6, model.latent_scale, torch.Generator().manual_seed(5)).double()
    logits, z_hat = model.discriminator(model.generator(z * s))
    l_enc, sigmoid = 3 * ((z - z_hat) ** 2 * s**2).mean(), torch.sigmoid(logits)
    loss_d = l_enc - torch.sigmoid(model.discriminator(real)[0]).log().mean() - (1 - sigmoid).log().mean()
    networks, losses = (model.generator, model.discriminator), (l_enc - sigmoid.log().mean(), loss_d)
    weights = [list(network.parameters()) for network in networks]
    slopes = [torch.autograd.grad(loss, w, retain_graph=True) for loss, w in zip(losses, weights, strict=True)]
    before = [[p.detach().clone() for p in w] for w in weights]
    optimizers = [torch.optim.SGD(w, 1.0) for w in weights]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dlsgan, "prior", lambda *arguments: z)
        dlsgan.train_step(model, optimizers, real, torch.Generator(), encoder_weight=3.0)
    for w, old, slope in zip(weights, before, slopes, strict=True):
        for p, q, g in zip(w, old, slope, strict=True):
            torch.testing.assert_close(p.detach(), q - g)


def test_c23_a_small_factor_and_a_large_one():
    """from $u = -2$ to $2$, the smile changes less than 2% of the pixels of this face by more than a tenth of the range, the
    background tone more than half of them [C23]"""
    changed = {}
    for name in ("smile", "background tone"):
        values = torch.zeros(2, 8)
        values[:, dlsgan.CARTOON_FACTORS.index(name)] = torch.tensor([-2.0, 2.0])
        one, other = dlsgan.cartoon_faces(2, 32, values=values)[0]
        changed[name] = ((one - other).abs().amax(0) > 0.2).float().mean()
    assert 0 < changed["smile"] < 0.02 and changed["background tone"] > 0.5


def test_c24_a_perfect_score_for_nothing():
    """A generator that hides $z$ in a thousandth of the range of grey around one and the same picture, with an encoder that
    reads it there, has $L_{enc}$ below 0.001 and a spread below 0.01 [C24]."""
    class Hiding(nn.Module):
        def forward(self, z):
            return (z / 500).view(-1, 3, 4, 4).clamp(-1, 1)  # the range of grey is 2

    class Reading(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, 0], 500 * x.flatten(1)

    result = dlsgan.evaluate(dlsgan.DLSGAN(Hiding(), Reading(), dlsgan.LatentScale(48)), dlsgan.cartoon_faces(64, 4)[0])
    assert result["l_enc"] < 0.001 and result["spread"] < 0.01 and result["active"] == 48


def test_c25_a_flip_is_as_likely():
    """Multiplying a latent by $-1$ leaves it exactly as likely as before, since the normal density is even: $p(z) = p(-z)$
    in each coordinate [C25]."""
    z = dlsgan.prior(20_000, dlsgan.LatentScale(2), torch.Generator().manual_seed(0))
    assert scipy.stats.kstest(z[:, 0].numpy(), "norm").pvalue > 1e-3  # it is normal
    assert scipy.stats.ks_2samp(z[:, 1].numpy(), -z[:, 1].numpy()).pvalue > 1e-3
    normal = torch.distributions.Normal(0.0, 1.0)
    assert torch.equal(normal.log_prob(z), normal.log_prob(z * torch.tensor([-1.0, 1.0])))


def test_c26_demodulation_ignores_the_length_of_the_style():
    """Its output therefore hardly depends on how long the style is, only on its direction: doubling the style changes
    nothing [C26]."""
    for up in (False, True):
        layer, x, style = dlsgan.ModulatedConv2d(6, 5, 4, up), torch.randn(2, 6, 8, 8), torch.randn(2, 6)
        outputs = []
        for factor in (1, 2):
            layer.style.forward = lambda w, style=factor * style: style
            outputs.append(layer(x, torch.zeros(2, 4)))
        torch.testing.assert_close(*outputs)


def small_model():
    return dlsgan.build(dlsgan.Config(resolution=16, width=0.03, latent_dim=6))


def test_c27_no_noise():
    """The same latent vector always makes the same image, to the bit [C27]."""
    model, z = small_model(), torch.randn(3, 6)
    assert torch.equal(model.decode(z), model.decode(z)) and model.decode(z).std(0).mean() > 0.01


def test_c28_length_is_information():
    """Two latent vectors of the same direction and different length make different images, and with StyleGAN2's
    normalisation they would make the same [C28]."""
    model, z = small_model(), torch.randn(3, 6)
    difference = (model.decode(z) - model.decode(2 * z)).abs().mean()
    assert difference > 0.05
    forward = model.generator.mapping.forward
    model.generator.mapping.forward = lambda x: forward(x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt())
    assert (model.decode(z) - model.decode(2 * z)).abs().mean() < 1e-4 * difference


def test_c29_a_code_of_its_own():
    """An image encodes to the same $\\hat z$ whatever else is in its batch [C29]."""
    model, x = small_model().double(), torch.rand(4, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(model.encode(x)[:1], model.encode(x[:1]))
    assert (model.encode(x)[0] - model.encode(x)[1]).abs().max() > 1e-6


def test_c30_number_of_weights():
    """The paper's setting has more than 35 million weights in all, the model of this page's first picture less than one
    million [C30]."""
    with torch.device("meta"):
        models = [dlsgan.build(dlsgan.Config(**dlsgan.PRESETS[name])) for name in ("celeba", "celeba64")]
    large, small = (sum(p.numel() for p in model.parameters()) for model in models)
    assert 35e6 < large < 40e6 and small < 1e6


def test_r01_the_pretrained_model():
    e = results.load("celeba64")["exported"]
    sizes = f"{e['images']:,}", f"{e['psnr_generated']:.1f}", f"{e['psnr_test']:.1f}"
    says("R01", *sizes, f"{e['gain_generated']:+.1f}", f"{e['gain_test']:+.1f}")


def test_r02_planar_data():
    kept = json.loads((ROOT / "toy_experiments/results/two_dimensional.json").read_text())["runs"]
    losses = [[run[key]["l_enc"] for runs in kept.values() for run in runs] for key in ("with scale", "without scale")]
    assert len(kept) == 5 and all(len(runs) == 3 for runs in kept.values())
    says("R02", *(f"{bound(values):.2f}" for values in losses for bound in (min, max)))


def cartoon_pair():
    pair = [results.load(name)["measures"] for name in ("cartoon", "cartoon-no-scale")]
    assert [m["images"] for m in pair] == [32_000, 32_000]
    return pair


def test_r03_cartoon_with_and_without_scale():
    scaled, plain = cartoon_pair()
    assert scaled["l_enc"] < plain["l_enc"] and scaled["active"] > plain["active"]
    says("R03", f"{scaled['l_enc']:.2f}", str(scaled["active"]), "32", f"{plain['l_enc']:.2f}", str(plain["active"]))


def test_r04_cartoon_reconstructions():
    scaled, plain = cartoon_pair()
    assert abs(scaled["gain_test"] - plain["gain_test"]) < 0.15 < scaled["gain_generated"] - plain["gain_generated"]
    says("R04", *(f"{m[f'gain_{name}']:+.1f}" for name in ("generated", "test") for m in (scaled, plain)))


def test_r05_what_the_paper_setting_costs():
    full = results.load("celeba-full")
    images, minutes, budget = full["measures"]["images"], full["minutes"], dlsgan.PRESETS["celeba"]["images"]
    machine = re.findall(r"(?<!\w)\d+", full["machine"])
    says("R05", *machine, f"{images:,}", f"{minutes:.0f}", f"{budget:,}", f"{budget * minutes / images / 1440:,.0f}")


def test_r06_the_spectrum_of_the_author():
    v = json.loads((ROOT / "toy_experiments/results/author_celeba128_v.json").read_text())["v"]
    active, others = [x for x in v if x > 0.5], [x for x in v if x <= 0.5]
    says("R06", str(len(active)), str(len(v)), f"{min(active):.2f}", f"{max(others):.2f}")


def celeba_runs():
    kept = [results.load(name) for name in ("celeba64", "celeba64-no-scale", "celeba128")]
    return kept, [result["exported"] for result in kept]


def test_r07_what_the_celeba_runs_cost():
    kept, (a, b, large) = celeba_runs()
    minutes = [f"{result['minutes']:.0f}" for result in kept]
    assert a["images"] == b["images"]
    says("R07", minutes[0], f"{a['images']:,}", minutes[1], "128", minutes[2], f"{large['images']:,}")


def test_r09_celeba_with_and_without_scale():
    kept, (a, b, _) = celeba_runs()
    assert a["l_enc"] < b["l_enc"] and a["active"] > b["active"]
    says("R09", f"{a['l_enc']:.2f}", str(a["active"]), str(kept[0]["latent_dim"]), f"{b['l_enc']:.2f}", str(b["active"]))


def test_r10_celeba_reconstructions():
    _, (a, b, _) = celeba_runs()
    assert a["gain_test"] - b["gain_test"] < 0.3 < a["gain_generated"] - b["gain_generated"]
    says("R10", *(f"{x[f'gain_{name}']:+.2f}" for name in ("generated", "test") for x in (a, b)))


def compared():
    kept = (f"toy_experiments/results/compare-{stem}.json" for stem in ("mnist-200000", "celeba-400000"))
    return [{row["method"]: row for row in json.loads((ROOT / path).read_text())["rows"]} for path in kept]


def test_r11_methods_on_test_digits():
    digits, _ = compared()
    methods = "dlsgan", "no-scale", "encoder-after", "eigengan", "lia", "optimisation"
    says("R11", *(f"{digits[method]['gain_test']:+.2f}" for method in methods))


def test_r12_methods_on_their_own_digits():
    digits, _ = compared()
    assert max((row for row in digits.values() if row["method"] != "optimisation"),
               key=lambda row: row["gain_generated"])["method"] == "dlsgan"
    says("R12", *(f"{digits[method]['gain_generated']:+.2f}" for method in ("dlsgan", "lia")))


def test_r13_methods_on_photographs():
    _, photos = compared()
    says("R13", *(f"{photos[method][f'gain_{of}']:+.2f}" for of in ("test", "generated") for method in ("dlsgan", "lia")))


def test_r08_what_the_encoder_knows_of_a_cartoon_face():
    kept = json.loads((ROOT / "toy_experiments/results/cartoon_factors.json").read_text())["8-0"]
    r2 = dict(zip(dlsgan.CARTOON_FACTORS, kept["r2_live_boosted_trees"], strict=True))
    says("R08", f"{kept['images']:,}", str(kept["live"]), "2", f"{r2['x']:.2f}", f"{r2['smile']:.2f}")


def test_every_tag_of_the_tutorial_has_a_test_that_quotes_it():
    text = tutorial_text()
    tags, tests = re.findall(r"\[([CR]\d\d)\]", text), {}
    for name, function in globals().items():
        if match := re.match(r"test_([cr]\d\d)_", name):
            assert match[1].upper() not in tests, name
            tests[match[1].upper()] = function
    assert sorted(tags) == sorted(tests)  # each once
    assert sum(tag[0] == "C" for tag in tags) >= 20
    for tag, function in tests.items():
        if tag[0] == "C":
            quoted = " ".join(function.__doc__.split())
            assert f"[{tag}]" in quoted and len(quoted) > 40 and quoted in text, tag


def test_the_tutorial_was_executed_in_order_and_holds_its_outputs():
    cells = tutorial_cells("code")
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert [i for i, cell in enumerate(cells) if not cell["outputs"]] == [0]  # all but the imports show something
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 12
    assert TUTORIAL.stat().st_size < 6e6
    assert not re.search(r"/(tmp|work|root|home)/", TUTORIAL.read_text())


@pytest.mark.slow
def test_the_tutorial_runs_from_scratch(tmp_path):
    options = ["--to", "notebook", "--execute", str(TUTORIAL), "--output-dir", "."]
    command = [sys.executable, "-m", "jupyter", "nbconvert", *options]
    assert subprocess.run(command, cwd=tmp_path, timeout=1800).returncode == 0
    assert (tmp_path / "tutorial.ipynb").exists()
    assert any(line.startswith(".venv/bin/jupyter nbconvert") for line in (ROOT / ".ci" / "run").read_text().splitlines())


@pytest.mark.parametrize("name", exercises.EXERCISES)
def test_exercises_accept_their_solution_and_no_other(name, capsys):
    solution = exercises.SOLUTIONS[name]
    assert exercises.check(name, solution) and capsys.readouterr().out == f"{name}: right\n"
    if isinstance(solution, set):
        wrong = {*list(solution)[:2], "demodulation"}
    elif isinstance(solution, tuple):
        wrong = (lambda z: z, lambda x: x)  # inverts perfectly, but the images differ
    elif name == "flip":
        def wrong(z, p, rng):
            return torch.where(torch.rand(z.shape, generator=rng) < p, -z, z)  # other elements for each image
    elif callable(solution):
        def wrong(*arguments):
            return 1.1 * solution(*arguments)
    else:
        wrong = (1.1 * torch.tensor(solution)).tolist()
    for answer in (wrong, None, "?"):
        assert not exercises.check(name, answer)
    assert exercises.EXERCISES[name].hint in capsys.readouterr().out
    assert not exercises.check(name)  # not answered yet
    assert exercises.EXERCISES[name].task in " ".join(capsys.readouterr().out.split())


def test_exercises_and_solutions_match():
    assert exercises.EXERCISES.keys() == exercises.SOLUTIONS.keys() and 8 <= len(exercises.EXERCISES) <= 14
    assert not exercises.check("scale", lambda v: (len(v) * v / v.sum()).sqrt())  # right numbers, but with a gradient
