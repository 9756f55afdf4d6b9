"""Tests of lia.py."""

import copy
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import dlsgan
from conftest import double, page_text, tiny
from toy_experiments.shared.cli import RESULTS
from toy_experiments.systems import lia


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
    mapping = lia.InvertibleMapping(latent_dim).double()
    z = 3 * torch.randn(50, latent_dim, dtype=torch.float64)
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


def kl_to_standard_normal(mean, deviation):
    normal = torch.distributions.Normal
    return torch.distributions.kl_divergence(normal(mean, deviation), normal(0.0, 1.0))


def test_kl_divergence_against_torch_distributions():
    mean, log_variance = torch.randn(2, 7, 3, dtype=torch.float64)
    expected = kl_to_standard_normal(mean, (log_variance / 2).exp()).sum(1)
    torch.testing.assert_close(lia.kl_to_prior(mean, log_variance), expected)


def test_perceptual_features_are_those_inside_the_discriminator():
    discriminator = dlsgan.Discriminator(32, 3, 4, 164, 10)
    seen = []
    discriminator.blocks[2].register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    x = torch.randn(2, 3, 32, 32)
    discriminator(x)
    features = lia.features(discriminator, x)
    assert features.shape[2:] == (4, 4)
    torch.testing.assert_close(features, seen[0])


def first_step(config, images, kind):
    """The encoder as stage 2 begins with it, its first images, and its first noise."""
    torch.manual_seed(config.seed + 1)
    encoder = dlsgan.Discriminator(
        16, 3, 8 if kind == "variational" else 4, config.channel_base, config.channel_max
    )
    x = dlsgan.to_float(next(dlsgan.batches(images, 4, config.seed + 1, 0, False)))
    noise = torch.randn(4, 4, generator=torch.Generator().manual_seed(config.seed))
    return encoder, x, noise


@pytest.mark.parametrize("kind", lia.KINDS)
def test_stage_2_trains_an_encoder_and_nothing_else(kind, tiny_plain, tmp_path):
    config, images, _ = tiny_plain
    gan = lia.train_stage_1(config, images, tmp_path, kind == "lia", {})
    before = copy.deepcopy(gan.state_dict())
    record = {}
    encoder = lia.train_stage_2(gan, config, kind, images, None, record)
    assert all(torch.equal(value, before[name]) for name, value in gan.state_dict().items())
    assert len(record["pixel_loss"]) == 4
    assert all(len(norms) == 4 for norms in record["gradient"].values())
    first, x, noise = first_step(config, images, kind)
    synthesis = lia.without_map(gan.generator)
    code = first(x)[1]
    if kind == "variational":
        code = gan.generator.mapping(code[:, :4] + (code[:, 4:] / 2).exp() * noise)
    error = (synthesis(code) - x).square().mean().item()
    assert record["pixel_loss"][0] == pytest.approx(error, rel=1e-4)
    system = lia.Autoencoder(gan, encoder, kind)
    again = system.reconstruct(x)
    code = encoder(x)[1]
    if kind == "variational":
        torch.testing.assert_close(again, gan.generator(code[:, :4]))
    else:
        torch.testing.assert_close(again, synthesis(code), rtol=1e-4, atol=1e-4)
    if kind == "lia":  # y = f(x), z = phi^-1(y), x~ = g(phi(z))
        torch.testing.assert_close(gan.generator.mapping(system.encode(x)), code, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["lia", "variational"])
def test_the_gradients_of_stage_2_are_those_of_its_loss(kind, tiny_plain, tmp_path):
    config, images, _ = tiny_plain
    gan = lia.train_stage_1(config, images, tmp_path, kind == "lia", {})
    record = {}
    lia.train_stage_2(
        gan, dataclasses.replace(config, images=12), kind, images, None, record
    )  # a single step
    first, x, noise = first_step(config, images, kind)
    code = first(x)[1]
    kl = 0.0
    if kind == "variational":
        mean = code[:, :4]
        deviation = (code[:, 4:] / 2).exp()
        kl = kl_to_standard_normal(mean, deviation).sum() / 4 / (3 * 16 * 16)
        fake = gan.generator(mean + deviation * noise)
    else:
        fake = lia.without_map(gan.generator)(code)
    real_features = lia.features(gan.discriminator, x)
    fake_features = lia.features(gan.discriminator, fake)
    loss = F.mse_loss(fake, x) + F.mse_loss(fake_features, real_features) / real_features.square().mean()
    loss = loss - 0.1 * F.logsigmoid(gan.discriminator(fake)[0]).mean() + kl
    loss.backward()
    for name in ("latent_head", "from_rgb"):
        norm = first.get_submodule(name).weight.grad.norm().item()
        assert record["gradient"][name][0] == pytest.approx(norm, rel=1e-3)


def test_stage_1_is_a_plain_gan_and_slower_on_faces():
    for preset, slower in (("cartoon", 1), ("mnist", 1), ("celeba64", 0.5)):
        config = dlsgan.configure({"preset": preset})
        plain = lia.stage_1(config)
        assert plain.encoder_weight == 0 and not plain.latent_scale
        assert plain.lr == config.lr * slower


def test_both_stages_share_the_budget():
    for images in (12, 48, 24_000, 120_000, 400_000):
        config = tiny(images=images)
        assert lia.gan_budget(config) + lia.encoder_budget(config) == images
    assert math.ceil(lia.encoder_budget(tiny(images=120_000)) / 8) == 5000


def test_volatility_of_a_known_series():
    norms = [1.0, 3.0] * 25 + [2.0] * 50 + [7.0] * 100
    np.testing.assert_allclose(lia.volatility(norms), [0.5, 0, 0, 0])


def test_the_page_tells_of_lia_what_was_measured():
    toys = page_text("toy_experiments/README.md")
    kept = json.loads((RESULTS / "lia-mnist.json").read_text())
    assert kept["inverse_error"] < 1e-10
    assert f"at most {kept['inverse_error']:.0e} in float64" in lia.__doc__
    gain = {kind: f"{kept[kind]['psnr_gain_test']:+.1f}" for kind in lia.KINDS}
    last = {kind: f"{kept[kind]['volatility']['latent_head']:.2f}" for kind in lia.KINDS}
    first = {kind: f"{kept[kind]['volatility']['from_rgb']:.2f}" for kind in lia.KINDS}
    for sentence in (
        f"exact to {kept['inverse_error']:.0e} in float64",
        f"({gain['lia']} against {gain['variational']} dB on test digits)",
        f"{last['lia']} of the mean, against {last['variational']})",
        f"does as well ({gain['mlp']} dB, {last['mlp']})",
        f"the least steady ({first['lia']} against {first['mlp']} and {first['variational']})",
        f"their mean square over test digits is {kept['mean_square_of_z']:.1f}, where",
    ):
        assert sentence in toys, sentence
