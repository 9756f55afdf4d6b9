"""Tests of LIA, of inversion by optimisation, and of the comparison of methods."""

import copy
import csv
import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import dlsgan
from conftest import double, page_text, tiny
from toy_experiments.shared import cli, distances, training
from toy_experiments.shared.cli import RESULTS
from toy_experiments.systems import compare, eigengan, invert_by_optimization, lia
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


def test_both_stages_share_the_budget():
    for images in (12, 48, 24_000, 120_000, 400_000):
        config = tiny(images=images)
        assert lia.gan_budget(config) + lia.encoder_budget(config) == images
    assert math.ceil(lia.encoder_budget(tiny(images=120_000)) / 8) == 5000


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
    digits, digits_table = read_comparison("mnist-120000")
    photos, photos_table = read_comparison("celeba-400000")
    assert digits.keys() == compare.METHODS.keys()
    assert list(photos) == ["dlsgan", "no-scale", "lia"]
    test = {method: f"{row['psnr_gain_test']:+.2f}" for method, row in digits.items()}
    generated = {method: f"{row['psnr_gain_generated']:+.2f}" for method, row in digits.items()}
    own = {method: f"{row['psnr_gain_generated']:+.2f}" for method, row in photos.items()}

    best = sorted(digits, key=lambda method: -digits[method]["psnr_gain_test"])
    assert best[:5] == ["optimisation", "20-steps", "lia-mlp", "lia", "real-encoder"]
    assert best[5:] == ["dlsgan", "eigengan", "no-scale", "encoder-after"]
    by_own = sorted(digits, key=lambda method: -digits[method]["psnr_gain_generated"])
    assert by_own[:6] == ["20-steps", "optimisation", "eigengan", "real-encoder", "dlsgan", "lia"]
    hardly = digits["dlsgan"]["psnr_gain_generated"] - digits["lia"]["psnr_gain_generated"]
    assert 0 < hardly < 0.1 < spread_of_seeds("psnr_gain_generated")  # "hardly less"
    assert digits["eigengan"]["parameters"] > digits["dlsgan"]["parameters"]
    seconds = {method: row["seconds_per_image"] for method, row in digits.items()}
    assert 3.5 < seconds["optimisation"] / seconds["20-steps"] < 4.5  # "in a quarter of the time"
    swd = {method: row["swd"] for method, row in digits.items()}
    plain_gan = ("encoder-after", "lia-mlp", "optimisation")  # one generator
    assert len({swd[method] for method in plain_gan}) == 1
    assert max(swd.values()) - min(swd.values()) < 1.5 * spread_of_seeds("swd")  # "none is clearly ahead"
    l_enc = [f"{digits[method]['l_enc']:.2f}" for method in ("dlsgan", "real-encoder")]
    tuned = json.loads((RESULTS / "real_encoder-mnist.json").read_text())
    same_generator = [tuned[encoder]["l_enc"] for encoder in ("paper's", "fine-tuned")]
    for sentence in (
        digits_table,
        photos_table,
        f"descent ({test['optimisation']} dB over the mean digit",
        f"20 steps from DLSGAN's guess ({test['20-steps']} dB)",
        f"w of an ordinary map ({test['lia-mlp']}) and the one through an invertible map ({test['lia']})",
        f"fine-tuned on real digits ({test['real-encoder']}), and DLSGAN as the paper has it "
        f"({test['dlsgan']})",
        f"EigenGAN ({test['eigengan']}), DLSGAN without the scale ({test['no-scale']}) "
        f"and an encoder trained afterwards ({test['encoder-after']}) follow",
        f"of DLSGAN lie {spread_of_seeds('psnr_gain_test'):.2f} dB apart",
        f"has {generated['dlsgan']} dB (fine-tuned {generated['real-encoder']})",
        f"LIA has {generated['lia']} through its map, hardly less, and {generated['lia-mlp']} to w",
        f"EigenGAN has more ({generated['eigengan']}, with a larger generator)",
        f"CelebA DLSGAN has {own['dlsgan']} dB, and LIA {own['lia']}",
        f"({generated['optimisation']} dB, and {generated['20-steps']} from DLSGAN's guess)",
        f"distances lie between {min(swd.values()):.1f} and {max(swd.values()):.1f}, "
        f"and three seeds of DLSGAN are {spread_of_seeds('swd'):.1f} apart",
        f"between {photos['dlsgan']['swd']:.1f} and {photos['lia']['swd']:.1f}",
        f"L_enc rises from {l_enc[0]} to {l_enc[1]}, but the fine-tuned encoder belongs to a generator",
        "generator](#an-encoder-for-real-photographs) it rises, too, from {:.3f} to {:.3f}".format(
            *same_generator
        ),
    ):
        assert sentence in toys, sentence


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


def test_encoders_of_a_deleted_gan_are_not_taken_for_those_of_a_new_one(quick_methods, tiny_plain):
    config, images, _ = tiny_plain
    folder = Path("runs")
    for method in ("encoder-after", "lia-mlp"):
        compare.METHODS[method](config, images, folder)
    gan = folder / "gan-mlp.pt"
    state = torch.load(gan, weights_only=True)
    state["average"]["generator.mapping.0.bias"][0] += 1  # another training
    torch.save(state, gan)
    for method, file in (("encoder-after", "encoder-after.pt"), ("lia-mlp", "mlp.pt")):
        with pytest.raises(dlsgan.UserError, match=f"runs/{file} .*delete it .* frozen networks"):
            compare.METHODS[method](config, images, folder)
        (folder / file).unlink()
        compare.METHODS[method](config, images, folder)
    compare.METHODS["eigengan"](config, images, folder)
    with pytest.raises(dlsgan.UserError, match="encoder-after-eigengan.pt .*delete it .* frozen networks"):
        compare.METHODS["eigengan"](config, images, folder)  # the stand-in has new weights


def test_the_run_that_the_docstring_names_is_the_method_dlsgan():
    text = " ".join(compare.__doc__.split())
    command, options = re.search("`python dlsgan.py (--.+?)` is the method dlsgan of `(.+?)`", text).groups()
    given = vars(dlsgan.make_parser().parse_args(command.split()))
    settings = cli.image_parser("").parse_args(options.split())
    ours = training.configure(**vars(settings))
    run = dlsgan.configure(given)
    assert Path(run.out) == compare.run_folder(ours, Path("runs")) / "dlsgan"
    assert compare.same_settings(run, dataclasses.replace(ours, out=run.out))
    assert not compare.same_settings(dataclasses.replace(run, images=300_000), ours)


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
    assert (tmp_path / "invert_by_optimization-cartoon-run.png").exists()
    export_weights.write(Path("small.pt"), config, 16, dlsgan.read_checkpoint("run")[1]["ema"])
    exported = invert_by_optimization.main("small.pt", None, "", 3, 6, tmp_path)
    assert exported["training_images"] == {"DLSGAN": 16} == {"DLSGAN": found["training_images"]["DLSGAN"]}
    assert exported["DLSGAN"]["w"]["summary"]["encoder alone"]["psnr"] == pytest.approx(expected, abs=0.02)
    with pytest.raises(dlsgan.UserError, match="no finished LIA in run"):
        invert_by_optimization.main("run", "run", "", 3, 6, tmp_path)
