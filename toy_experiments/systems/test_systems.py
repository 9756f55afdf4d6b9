"""Tests of the other ways to invert and to edit."""

import copy
import csv
import dataclasses
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from torch import nn

import dlsgan
from conftest import (
    double,
    page_text,
    perfect_model,
    small_cartoon,
    tiny,
    write_attributes,
    write_celeba,
    write_mnist,
)
from toy_experiments.shared import classifiers, distances
from toy_experiments.shared.cli import RESULTS
from toy_experiments.systems import (
    compare,
    eigengan,
    eigengan_linear,
    interfacegan,
    invert_by_optimization,
    lia,
)
from toy_experiments.tools import export_weights

# ---- LIA ---------------------------------------------------------------------------------------------------


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


def test_volatility_of_a_known_series():
    norms = [1.0, 3.0] * 25 + [2.0] * 50 + [7.0] * 100
    np.testing.assert_allclose(lia.volatility(norms), [0.5, 0, 0, 0])


# ---- Inversion by optimisation, and the comparison of methods ----------------------------------------------


def test_optimisation_finds_the_least_squares_solution():
    a = torch.randn(3, 64, dtype=torch.float64)
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64)

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
    model = dlsgan.build(tiny()).requires_grad_(False)
    model.latent_scale.v.copy_(torch.tensor([0.9, 0.5, 0.3, 0.1]))
    if invertible:
        model.latent_scale.enabled = False
        model.generator.mapping = lia.InvertibleMapping(4).requires_grad_(False)
    x = torch.rand(3, 3, 16, 16)
    spaces = invert_by_optimization.starting_points(model, x)
    assert list(spaces) == ["z", "y" if invertible else "w"]
    z, w = spaces.values()
    for start in ("random", "encoder", "mean") if invertible else ("random", "encoder"):
        from_z = z["decode"](z["codes"][start])
        from_w = w["decode"](w["codes"][start])
        torch.testing.assert_close(from_z, from_w, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(w["decode"](w["codes"]["encoder"]), model.reconstruct(x))
    assert w["codes"]["mean"].std(0).max() < 1e-6


def read_comparison(stem):
    """{method: row}, and what `table` printed."""
    kept = json.loads((RESULTS / f"compare-{stem}.json").read_text())
    return {row["method"]: row for row in kept["rows"]}, " ".join(compare.markdown(kept["rows"]).split())


def spread_of_seeds(key):
    """By how much three seeds of DLSGAN on MNIST differ."""
    kept = json.loads((RESULTS / "mnist.json").read_text())
    return np.ptp([kept[f"scale-{seed}"]["measures"][key] for seed in range(3)])


def test_the_page_tells_of_the_comparison_what_was_measured():
    toys = page_text("toy_experiments/README.md")
    digits, digits_table = read_comparison("mnist-200000")
    photos, photos_table = read_comparison("celeba-400000")
    not_run = {"real-encoder", "20-steps"}  # newer than the kept table
    assert digits.keys() == compare.METHODS.keys() - not_run
    assert list(photos) == ["dlsgan", "no-scale", "lia"]
    test = {method: f"{row['psnr_gain_test']:+.2f}" for method, row in digits.items()}
    generated = {method: f"{row['psnr_gain_generated']:+.2f}" for method, row in digits.items()}
    own = {method: row["psnr_gain_generated"] for method, row in photos.items()}
    swd = [row["swd"] for row in digits.values()]

    best = sorted(digits, key=lambda method: -digits[method]["psnr_gain_test"])
    assert best == ["optimisation", "lia-mlp", "lia", "eigengan", "dlsgan", "no-scale", "encoder-after"]
    by_own = sorted(digits, key=lambda method: digits[method]["psnr_gain_generated"])
    assert by_own[-3:] == ["eigengan", "dlsgan", "optimisation"]
    size = {method: row["parameters"] for method, row in digits.items()}  # optimisation counts G alone
    assert 1.8 < 1 + (size["eigengan"] - size["dlsgan"]) / size["optimisation"] < 2  # nearly twice as large
    assert np.ptp(swd) < spread_of_seeds("swd")  # "by as much"
    *_, second, slowest = sorted(row["seconds_per_image"] for row in digits.values())
    assert slowest > 200 * second

    lead = digits["dlsgan"]["psnr_gain_generated"] - digits["eigengan"]["psnr_gain_generated"]
    apart = np.ptp([digits[method]["psnr_gain_test"] for method in best[-3:]])
    for sentence in (
        digits_table,
        photos_table,
        f"by far ({test['optimisation']} dB over the mean image on MNIST",
        f"is invertible ({test['lia']} dB) or not ({test['lia-mlp']})",
        f"EigenGAN's is first ({test['eigengan']} dB",
        f"DLSGAN ({test['dlsgan']}), the same without scale ({test['no-scale']}) "
        f"and an encoder trained afterwards ({test['encoder-after']})",
        f"by {lead:.1f} dB on MNIST ({generated['dlsgan']} dB, before EigenGAN with {generated['eigengan']}) "
        f"and by {own['dlsgan'] - own['no-scale']:.1f} dB on CelebA ({own['dlsgan']:+.2f} dB, "
        f"where LIA has {own['lia']:+.2f}), "
        f"and only descent comes higher ({generated['optimisation']} on MNIST)",
        f"distances, {min(swd):.1f} to {max(swd):.1f} on MNIST (three seeds",
        f"and {photos['dlsgan']['swd']:.1f} to {photos['lia']['swd']:.1f} on CelebA",
        f"{apart:.2f} dB from first to last, where",
        f"of DLSGAN lie {spread_of_seeds('psnr_gain_test'):.2f} dB apart",
    ):
        assert sentence in toys, sentence


def test_the_page_tells_of_lia_what_was_measured():
    toys = page_text("toy_experiments/README.md")
    kept = json.loads((RESULTS / "lia-mnist.json").read_text())
    assert kept["inverse_error"] < 1e-10
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


def test_the_page_tells_of_descent_what_was_measured():
    toys = page_text("toy_experiments/README.md")
    kept = json.loads((RESULTS / "invert_by_optimization-celeba.json").read_text())["DLSGAN"]
    ends = {}
    for space, traces in kept.items():
        for where, end in traces["summary"].items():
            ends[space, where] = f"{end['psnr']:.1f}"
        psnr = {}
        for start in invert_by_optimization.STARTS:
            psnr[start] = {point["step"]: point["psnr"] for point in traces[start]}
        assert psnr["encoder"][50] > max(psnr["random"][100], psnr["mean"][100])
    near, far = ([ends[space, f"{start} + 500 steps"] for space in "zw"] for start in ("encoder", "random"))
    first = ends["z", "encoder alone"]
    assert f"goes from {first} to {near[0]} dB in 500 steps on z, and to {near[1]} dB on w" in toys
    assert f"from random codes to {far[0]} and {far[1]} dB" in toys


def stand_in_eigengan(config, images, path, record):
    """For the experiment, with a latent_dim of its own."""
    record["seconds"] = 1.0
    generator = dlsgan.Generator(16, 3, 8, 1, 164, 10).requires_grad_(False)
    generator.latent_dim = 8
    return generator


@pytest.fixture
def quick_methods(monkeypatch):
    monkeypatch.setattr(compare.Optimised.__init__, "__defaults__", (2,))  # steps
    monkeypatch.setattr(eigengan, "train", stand_in_eigengan)


def test_the_comparison_from_training_to_table(quick_methods, tiny_plain, capsys):
    config, images, test_images = tiny_plain
    runs = Path("runs")
    rows = {method: compare.run(method, config, runs) for method in compare.METHODS}
    capsys.readouterr()
    result = compare.table(config, runs, runs)
    assert "not there: nothing\nFID: absent" in capsys.readouterr().out
    assert result["rows"] == list(rows.values()) and not result["missing"]
    assert json.loads((runs / "compare-cartoon-48.json").read_text())["images"] == 48
    with open(runs / "compare-cartoon-48.csv") as file:
        table = list(csv.DictReader(file))
    assert [float(row["psnr_test"]) for row in table] == [row["psnr_test"] for row in rows.values()]
    assert {method for method, row in rows.items() if "l_enc" not in row} == {"lia-mlp", "optimisation"}
    assert rows["20-steps"]["psnr_test"] > rows["dlsgan"]["psnr_test"]  # descent from its guess
    assert rows["20-steps"]["seconds_per_image"] > rows["dlsgan"]["seconds_per_image"]
    assert rows["20-steps"]["swd"] == rows["dlsgan"]["swd"]  # the same generator
    (runs / "cartoon-48" / "compare-eigengan.json").unlink()
    assert compare.table(config, runs, runs)["missing"] == ["eigengan"]
    assert "not there: eigengan\n" in capsys.readouterr().out

    model, _ = compare.METHODS["lia-mlp"](config, images, runs / "cartoon-48")  # trained already
    x = dlsgan.to_float(test_images[: len(test_images) // 2])  # the others are for the yardstick of distances
    y = lia.without_map(model.generator)(model.discriminator(x)[1]).clamp(-1, 1)
    assert rows["lia-mlp"]["mse_test"] == pytest.approx((x - y).square().mean().item(), rel=1e-4)
    networks = (model.generator, model.discriminator)
    parameters = sum(p.numel() for network in networks for p in network.parameters())
    assert rows["lia-mlp"]["parameters"] == parameters
    for method in ("encoder-after", "optimisation"):  # these share the generator of lia-mlp
        assert rows[method]["spread"] == pytest.approx(rows["lia-mlp"]["spread"], rel=1e-5)


def test_methods_are_not_repeated_and_rows_of_other_runs_not_mixed(
    quick_methods, tiny_plain, monkeypatch, capsys
):
    config, _, _ = tiny_plain
    runs = Path("runs")
    folder = runs / "cartoon-48"
    first = compare.run("dlsgan", config, runs)
    compare.run("optimisation", config, runs)
    compare.run("dlsgan", config, runs)
    assert "already measured" in capsys.readouterr().out
    (folder / "compare-dlsgan.json").unlink()
    again = compare.run("dlsgan", config, runs)  # from the finished run, without a training step
    for row in (first, again):
        del row["seconds_per_image"]
    assert again == first
    monkeypatch.setattr(distances, "load_inception", lambda path: torch.nn.Identity())
    monkeypatch.setattr(distances, "fid", lambda samples, test, network: 3.0)
    assert compare.run("dlsgan", config, runs, "file")["fid"] == 3.0  # measured again, for what was missing
    capsys.readouterr()
    compare.table(config, runs, runs)
    told = capsys.readouterr().out
    assert "| FID | 3.0 | absent |\n" in told and "FID: absent" not in told
    with pytest.raises(dlsgan.UserError, match="cartoon-48/dlsgan holds a run with other settings"):
        compare.METHODS["dlsgan"](dataclasses.replace(config, lr=1e-3), np.empty(0), folder)
    with pytest.raises(dlsgan.UserError, match="nothing in"):  # the rows are those of another seed
        compare.table(dataclasses.replace(config, seed=1), runs, runs)
    row = folder / "compare-optimisation.json"
    key = '"swd_of_other_test_images": '
    row.write_text(row.read_text().replace(key, f"{key}1"))
    with pytest.raises(dlsgan.UserError, match="measured on different images: delete"):
        compare.table(config, runs, runs)


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
            assert set(ends) == {
                "encoder alone",
                *(f"{start} + 6 steps" for start in invert_by_optimization.STARTS),
            }
            assert ends["encoder alone"]["seconds"] < ends["encoder + 6 steps"]["seconds"]
    x = dlsgan.to_float(dlsgan.LOADERS["cartoon"](config)[1][:3])
    expected = dlsgan.psnr(x, dlsgan.load_model("run").reconstruct(x).clamp(-1, 1)).mean().item()
    assert found["DLSGAN"]["w"]["summary"]["encoder alone"]["psnr"] == pytest.approx(expected, abs=0.02)
    assert (tmp_path / "invert_by_optimization-cartoon.png").exists()
    export_weights.write(Path("small.pt"), config, 16, dlsgan.read_checkpoint("run")[1]["ema"])
    exported = invert_by_optimization.main("small.pt", None, "", 3, 6, tmp_path)
    assert exported["training_images"] == {"DLSGAN": 16} == {"DLSGAN": found["training_images"]["DLSGAN"]}
    assert exported["DLSGAN"]["w"]["summary"]["encoder alone"]["psnr"] == pytest.approx(expected, abs=0.02)
    with pytest.raises(dlsgan.UserError, match="no finished LIA in run"):
        invert_by_optimization.main("run", "run", "", 3, 6, tmp_path)


# ---- EigenGAN ----------------------------------------------------------------------------------------------


def spread_eigenvalues(dimensions, seed):
    """A sample from a Gaussian with distinct eigenvalues, float64 [4000, dimensions]."""
    random = np.random.default_rng(seed)
    axes = np.linalg.qr(random.normal(size=(dimensions, dimensions)))[0]
    centred = random.normal(size=(4000, dimensions)) * np.linspace(2.5, 0.3, dimensions) @ axes.T
    return centred + random.normal(size=dimensions)


@pytest.mark.parametrize(
    ("dimensions", "q", "sigma", "seed"), [(6, 2, 0.3, 0), (8, 3, 0.5, 1), (10, 5, 0.2, 2)]
)
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
    length = torch.tensor([1.7, -0.6]).double()
    mu = torch.randn(5).double()
    sigma = 0.4
    ours = eigengan_linear.negative_log_likelihood(u, length, mu, sigma, *moments)
    covariance = (u * length**2) @ u.T + sigma**2 * torch.eye(5, dtype=torch.float64)
    oracle = -scipy.stats.multivariate_normal(mu.numpy(), covariance.numpy()).logpdf(sample).mean()
    assert ours.item() == pytest.approx(oracle, rel=1e-10)
    # a free matrix W in the place of U diag(L) may be rotated: the same density, but its columns are no
    # eigenvectors
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
    angles = {
        name: np.mean([[point["axes"] for point in run[-20:]] for run in runs]) for name, runs in gan.items()
    }
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
        x = F.conv2d(x, block.up.weight[:, channels] * block.up.weight_gain, padding=1)
        return F.interpolate(x, scale_factor=2, mode="bilinear")

    inner = F.leaky_relu(h + block.point(phi), 0.2)
    bias = (block.up.bias * block.up.bias_gain)[:, None, None]
    total = up(inner, slice(0, 4)) + up(phi, slice(4, 8)) + bias
    torch.testing.assert_close(block(h, z), block.conv(F.leaky_relu(total, 0.2)))


def test_eigengan_training_step_against_separate_losses():
    torch.manual_seed(0)
    generator = double(eigengan.EigenGenerator(16, 1, 14, 164, 10))
    discriminator = double(dlsgan.Discriminator(16, 1, 1, 164, 10))
    real, z = torch.rand(3, 1, 16, 16).double(), torch.randn(3, 14).double()
    networks = (generator, discriminator)
    optimizers = [torch.optim.SGD(network.parameters(), 1.0) for network in networks]
    before = [[p.detach().clone() for p in network.parameters()] for network in networks]
    image = real.clone().requires_grad_()
    logits, fake = discriminator(image)[0], generator(z)
    loss_d = (1 - logits).clamp(min=0).mean() + (1 + discriminator(fake.detach())[0]).clamp(min=0).mean()
    loss_d = loss_d + 0.7 * dlsgan.r1_penalty(logits, image)
    loss_g = -discriminator(fake)[0].mean()
    expected = [
        torch.autograd.grad(loss, list(network.parameters()), allow_unused=True, retain_graph=True)
        for loss, network in ((loss_g, generator), (loss_d, discriminator))
    ]
    returned = eigengan.train_step(*networks, optimizers, real, z, 0.7)
    assert returned[1].item() == pytest.approx(loss_g.item())
    for network, old, gradients in zip(networks, before, expected, strict=True):
        for p, start, gradient in zip(network.parameters(), old, gradients, strict=True):
            torch.testing.assert_close(start - p, torch.zeros_like(p) if gradient is None else gradient)


@pytest.mark.parametrize("subspaces", [True, False])
def test_eigengan_stays_orthonormal_and_goes_on_where_it_stopped(subspaces):
    config = tiny(latent_dim=16, channel_base=246, channel_max=15, images=80, lr=0.01)
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
        eigengan.EigenGenerator(32, 3, 18, 164, 10)


def test_a_traversal_moves_one_dimension():
    generator = eigengan.EigenGenerator(16, 1, 16, 164, 10).requires_grad_(False)
    generator.blocks[0].subspace.L[2] = 0.0
    still, moving = (eigengan.traverse(generator, 4 + i) for i in (2, 0))
    assert (still - still[:1]).abs().max() < 1e-6 and (moving - moving[:1]).abs().max() > 1e-3


@pytest.fixture
def blind_judges(monkeypatch):
    """Judges that hardly learn, so that whole experiments run in seconds."""
    monkeypatch.setattr(eigengan, "factor_regressor", partial(classifiers.factor_regressor, steps=2))


@pytest.mark.parametrize("dataset", ["cartoon", pytest.param("mnist", marks=pytest.mark.slow)])
def test_eigengan_from_data_to_results(dataset, blind_judges):
    write_mnist(Path("data/mnist"), 60)
    config = tiny(dataset=dataset, data_dir=f"data/{dataset}", latent_dim=16, images=8)
    result = eigengan.main(config, results=Path("kept"))
    assert Path(f"kept/eigengan-{dataset}.png").stat().st_size > 10_000
    assert json.loads(Path(f"kept/eigengan-{dataset}.json").read_text()).keys() == result.keys()
    explained = np.array(result["subspaces"].get("explained", []))
    assert explained.shape == ((16, 8) if dataset == "cartoon" else (0,))


# ---- InterFaceGAN ------------------------------------------------------------------------------------------


def test_normals_of_labelled_codes():
    random = np.random.default_rng(0)
    true = F.normalize(torch.tensor(random.normal(size=(2, 6))), dim=1).numpy()
    codes = random.normal(size=(4000, 6))
    labels = codes @ true.T + [0.5, -0.2] > 0
    normals, offsets, accuracies = interfacegan.fit_normals(codes, labels)
    assert (np.abs((normals * true).sum(1)) > 0.999).all() and min(accuracies) > 0.96
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1)
    # classes of equal weight draw the boundary to the middle
    np.testing.assert_allclose(offsets, [0.5, -0.2], atol=0.15)
    noise = interfacegan.fit_normals(codes, random.normal(size=(4000, 1)) > 0)[2]
    assert abs(noise[0] - 0.5) < 0.06  # nothing to find: chance


def test_conditional_edits_keep_all_other_distances():
    random = np.random.default_rng(1)
    normals = F.normalize(torch.tensor(random.normal(size=(4, 9))), dim=1).numpy()
    offsets, codes = random.normal(size=4), random.normal(size=(5, 9))
    t = interfacegan.direction(normals, 1, [0, 2, 3])
    others = np.delete(normals, 1, 0)
    np.testing.assert_allclose(others @ t, 0, atol=1e-12)
    projection = others.T @ np.linalg.lstsq(others.T, normals[1], rcond=None)[0]
    residual = normals[1] - projection
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
    """Images are the latent vectors themselves, the judge reads three correlated directions of them: plain
    edits leak by the cosines of the normals, conditional ones not at all."""
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
    result, editors = interfacegan.experiment(
        model, judge, x[:5000], labels[:5000], x[5000:5100], ("a", "b", "c")
    )
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


def test_interfacegan_on_each_data_set(capsys):
    settings = {"latent_dim": 12, "images": 8}
    list(dlsgan.train(tiny(out="cartoon", **settings)))
    result = interfacegan.main("cartoon", labelled=60, faces=6, judge_steps=2, results=Path("kept"))
    assert result["names"] == list(dlsgan.CARTOON_FACTORS) and result["unit"] == "standard deviations"
    assert np.array(result["ways"]["normals on z"]["mean_change"]).shape == (8, 8)
    write_celeba(Path("c"), n=100, test=20)
    write_attributes(Path("c"), list(classifiers.CELEBA_ATTRIBUTES))
    list(dlsgan.train(tiny(dataset="celeba", data_dir="c", out="celeba", **settings)))
    result = interfacegan.main("celeba", "c", faces=6, judge_steps=2, results=Path("kept"))
    assert (result["labelled"], result["names"]) == (40, list(classifiers.CELEBA_ATTRIBUTES))
    assert result["judge"].keys() == {"accuracy", "share of test images"}
    assert {len(t) for t in result["directions"].values()} == {settings["latent_dim"]}
    assert result["recognised"].keys() == {"from z_hat", "from reconstructions", "from the images"}
    for dataset in ("cartoon", "celeba"):
        assert Path(f"kept/interfacegan-{dataset}.png").stat().st_size > 10_000
        kept = json.loads(Path(f"kept/interfacegan-{dataset}.json").read_text())
        assert kept["ways"].keys() == interfacegan.WAYS.keys()
    assert "largest leakage" in capsys.readouterr().out


def test_what_the_page_says_of_attributes_on_celeba():
    result = json.loads((RESULTS / "interfacegan-celeba.json").read_text())
    assert result["command"].endswith("--checkpoint pretrained/celeba64.pt")
    assert result["model"]["images"] == 200_000
    change = np.array(result["ways"]["s*z, conditional"]["mean_change"]).diagonal()
    found = dict(zip(result["names"], change, strict=True))
    assert min(found["Bangs"], found["Male"]) > 0.45
    assert max(found["Smiling"], found["Eyeglasses"], found["Young"]) < 0.45
    said = f"bangs change by {found['Bangs']:.2f} and sex by {found['Male']:.2f} in the judge's probability, "
    said += f"the smile by {found['Smiling']:.2f}, and of its variance in test faces reconstructions keep "
    assert said + f"{result['kept']['Smiling']:.0%} |" in page_text("toy_experiments/README.md")


def test_interfacegan_says_what_it_cannot_edit():
    write_mnist(Path("m"))
    list(dlsgan.train(tiny(dataset="mnist", data_dir="m", out="mnist", images=8)))
    with pytest.raises(dlsgan.UserError, match="no attributes"):
        interfacegan.main("mnist")
    list(dlsgan.train(tiny(latent_dim=8, out="small", images=8)))
    with pytest.raises(dlsgan.UserError, match="more latent dimensions"):
        interfacegan.main("small")
