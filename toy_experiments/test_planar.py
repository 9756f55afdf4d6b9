"""Tests of planar.py and two_dimensional.py: pieces against independent oracles, and the kept results."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import dlsgan
from conftest import flat
from toy_experiments import two_dimensional, two_dimensional_axes
from toy_experiments.shared import planar
from toy_experiments.shared.planar import D
from toy_experiments.two_dimensional import AFTERWARDS, WITH, WITHOUT


def kept(name):
    return json.loads((two_dimensional.RESULTS / name).read_text())


# ---- Data and training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", planar.DATA)
def test_planar_data_has_the_stated_shape(name):
    x = planar.draw_data(name, 4000, torch.Generator().manual_seed(0))
    assert x.shape == (4000, 2) and x.isfinite().all()
    assert (x.std(0) > 0.4).all() and (x.std(0) < 1.3).all()
    if name == "gaussian":
        np.testing.assert_allclose(np.cov(x.T.numpy()), planar.COVARIANCE, atol=0.06)
    if name == "checkerboard":  # squares of one colour only
        square = (x / 0.8 + 2).floor().long()
        assert (square.sum(1) % 2 == 0).all() and square.min() == 0 and square.max() == 3
    if name == "ring":  # eight equal clusters on the unit circle
        angle = np.arctan2(x[:, 1].numpy(), x[:, 0].numpy()) / (math.pi / 4)
        counts = np.bincount(np.round(angle).astype(int) % 8)
        assert len(counts) == 8 and (abs(counts / 4000 - 1 / 8) < 0.02).all()
        assert x.norm(dim=1).mean().item() == pytest.approx(1, abs=0.01)


def test_unknown_data_is_an_error():
    with pytest.raises(ValueError, match="unknown data set 'torus'"):
        planar.draw_data("torus", 3, torch.Generator())


def test_training_against_a_plain_loop():
    """Steps, penalty, learning rate and averages of five steps, written out."""
    first = planar.build(3)
    shown = list(planar.training(copy.deepcopy(first), "ring", 7, 5, batch_size=16))
    assert [step for step, _ in shown] == [1, 2, 3, 4, 5]

    model = copy.deepcopy(first)
    expected = flat(model)
    optimizers = [
        torch.optim.Adam(network.parameters(), 2e-3, (0.0, 0.99), fused=True)
        for network in (model.generator, model.discriminator)
    ]
    rng = torch.Generator().manual_seed(7)
    for step in range(5):
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 2e-3 * 0.03 ** (step / 5)
        penalty = [0.02, 0.0, 0.0, 0.0, 0.02][step]
        real = planar.draw_data("ring", 16, rng)
        dlsgan.train_step(model, optimizers, real, rng, encoder_weight=0.3, penalty_weight=penalty)
        decay = min(0.998, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * flat(model)
    _, average = shown[-1]
    torch.testing.assert_close(flat(average), expected)
    torch.testing.assert_close(average.latent_scale.v, model.latent_scale.v)
    assert not torch.equal(flat(average), flat(model))


def test_snapshots_are_moments_of_one_training():
    moments = planar.snapshots("ring", 0, True, [2, 6], 6)
    assert list(moments) == [2, 6]
    whole = planar.train("ring", 0, True, 6)
    assert torch.equal(flat(moments[6]), flat(whole)) and not torch.equal(flat(moments[2]), flat(whole))
    assert torch.equal(moments[6].latent_scale.v, whole.latent_scale.v)
    assert not torch.equal(moments[2].latent_scale.v, whole.latent_scale.v)


def test_a_later_encoder_leaves_the_generator_alone():
    model = planar.build(0, scale=False)
    before = flat(model)
    early, late = (planar.encoder_afterwards(model, 0, steps) for steps in (20, 300))
    assert torch.equal(before, flat(model))
    losses = [planar.measure(model, encoder, "ring", 4000)["l_enc"] for encoder in (early, late)]
    assert losses[1] < losses[0] < 1.2


def test_the_scale_finds_two_dimensions_in_a_short_training():
    """An eighth of the usual training: the scale has decided, the encoder is not yet exact."""
    found, lost = (planar.train("ring", 0, scale, steps=600) for scale in (True, False))
    found, lost = (planar.measure(model, model.discriminator, "ring") for model in (found, lost))
    assert found["live"] == 2 and lost["l_enc"] > 0.6
    assert found["l_enc"] < lost["l_enc"] / 2


# ---- Measures ----------------------------------------------------------------------------------------------


class Linear(nn.Module):
    """x = A (z s), and z_hat = B x: a generator and an encoder that are matrices."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = matrix

    def forward(self, x):
        return x @ self.matrix.T


class LinearEncoder(Linear):
    def forward(self, x):
        return x[:, 0], super().forward(x)


def linear_model(a, noise=0.0):
    """G(z) = A z with A [2, d], and its best encoder E[z | x] = A^T (A A^T)^-1 x."""
    a = torch.as_tensor(a, dtype=torch.float32)
    best = a.T @ torch.linalg.inv(a @ a.T)
    return dlsgan.DLSGAN(Linear(a), LinearEncoder(best), dlsgan.LatentScale(D, enabled=False))


def test_the_check_of_the_gaussian_on_a_map_that_is_exact():
    """A rotation of the root of the covariance, in latents 2 and 5."""
    root = torch.linalg.cholesky(planar.COVARIANCE)
    turn = torch.tensor([[math.cos(0.4), -math.sin(0.4)], [math.sin(0.4), math.cos(0.4)]])
    a = torch.zeros(2, D)
    a[:, [2, 5]] = root @ turn
    check = planar.gaussian_check(linear_model(a), n=20_000)
    expected = [0, 0, 1, 0, 0, 1, 0, 0]
    np.testing.assert_allclose(check["v"], expected, atol=0.03)
    np.testing.assert_allclose(check["1 - MMSE by neighbours"], expected, atol=0.03)
    assert check["linear_r2"] == pytest.approx(1, abs=1e-3)
    assert check["lengths"] == pytest.approx([1, 1], abs=0.01) and check["degrees"] == pytest.approx(
        90, abs=0.5
    )


def test_neighbours_find_what_a_linear_map_leaves_unknown():
    """Eight latents in two numbers: 1 - MMSE is the diagonal of A^T (A A^T)^-1 A, whatever the encoder
    says."""
    a = np.random.default_rng(0).normal(size=(2, D))
    known = np.diag(a.T @ np.linalg.inv(a @ a.T) @ a)
    model = linear_model(a)
    check = planar.gaussian_check(model, n=20_000)
    np.testing.assert_allclose(check["1 - MMSE by neighbours"], known, atol=0.03)
    np.testing.assert_allclose(check["v"], known, atol=0.03)
    model.discriminator.matrix *= 2
    spoilt = planar.gaussian_check(model, n=20_000)
    np.testing.assert_allclose(spoilt["v"], 4 * known, atol=0.1)
    np.testing.assert_allclose(spoilt["1 - MMSE by neighbours"], known, atol=0.03)


def test_modes_of_the_ring_against_a_loop():
    rng = np.random.default_rng(0)
    x = rng.uniform(-1.3, 1.3, size=(3000, 2))
    counts = np.zeros(8)
    for point in x:
        for k in range(8):
            if math.dist(point, (math.cos(k * math.pi / 4), math.sin(k * math.pi / 4))) < 0.2:
                counts[k] += 1
    result = planar.ring_modes(torch.tensor(x, dtype=torch.float32))
    assert result["within_4_sigma"] == pytest.approx(counts.sum() / 3000, abs=1e-4)
    np.testing.assert_allclose(result["shares"], counts / counts.sum(), atol=1e-4)
    assert result["modes"] == 0  # an eighth of a few per cent is no mode
    data = planar.draw_data("ring", 4000, torch.Generator().manual_seed(0))
    whole = planar.ring_modes(data)
    assert whole["modes"] == 8 and whole["within_4_sigma"] > 0.999
    half = planar.ring_modes(data[data[:, 0] > 0.3])  # three modes lie there
    assert half["modes"] == 3 and sum(share > 0 for share in half["shares"]) == 3


def test_measures_of_a_model_that_is_exact():
    root = torch.linalg.cholesky(planar.COVARIANCE)
    a = torch.zeros(2, D)
    a[:, :2] = root
    model = linear_model(a)
    result = planar.measure(model, model.discriminator, "gaussian")
    assert result["live"] == 2 and result["l_enc"] == pytest.approx(
        0.75, abs=0.01
    )  # six of eight, without scale
    assert result["error_of_reconstructions"] == pytest.approx(0, abs=1e-4)
    assert 0 < result["distance_of_samples"] < 2 * result["distance_of_two_draws"]
    shifted = planar.distance_from(model.sample(4000) + 1, [model.sample(4000)])
    assert shifted == pytest.approx(2 * math.sqrt(2) / math.pi, rel=0.15)  # mean of |cos| of sqrt 2


def test_reconstructions_and_axes():
    model = planar.build(0)
    model.latent_scale.v.copy_(torch.tensor([0.9, 0.5] + [0.01] * 6))
    x = torch.randn(5, 2)
    torch.testing.assert_close(planar.reconstructions(model, x), model.reconstruct(x))
    other = planar.Discriminator()
    expected = model.generator(other(x)[1] * model.latent_scale.scale())
    torch.testing.assert_close(planar.reconstructions(model, x, other), expected)
    curves = two_dimensional_axes.latent_axes(model, reach=2.0, points=5)
    assert curves.shape == (D, 5, 2)
    for i in range(D):
        for j, t in enumerate((-2, -1, 0, 1, 2)):
            z = torch.zeros(1, D)
            z[0, i] = t
            np.testing.assert_allclose(curves[i, j], model.decode(z)[0].detach(), atol=1e-6)


# ---- Kept results ------------------------------------------------------------------------------------------


def kept_runs():
    return [(name, run) for name, runs in kept("two_dimensional.json")["runs"].items() for run in runs]


def test_the_kept_runs_are_all_there():
    whole = kept("two_dimensional.json")
    assert whole["setting"] == two_dimensional.setting() and whole["machine"] and whole["threads"] == 1
    assert list(whole["runs"]) == list(planar.DATA)
    assert all([run["seed"] for run in runs] == [0, 1, 2] for runs in whole["runs"].values())


def test_two_dimensions_live_with_the_scale_and_nothing_is_lost():
    for name, run in kept_runs():
        assert run["seconds_of_one_training"] <= 60
        if name not in planar.PLANAR:
            continue
        found = run[WITH]
        lost = run[WITHOUT]["l_enc"]
        assert found["live"] == 2 and len(found["v"]) == D, name
        assert max(found["v"][2:]) < 0.02 and found["l_enc"] <= 0.03, (name, run["seed"])
        assert max(found["v"]) < 1.03
        low, high = (0.54, 0.58) if name == "gaussian" else (0.64, 0.74)
        assert low <= round(lost, 2) <= high and run[AFTERWARDS]["l_enc"] >= 0.5
        assert lost - 0.03 < run[AFTERWARDS]["l_enc"] < lost


def test_on_a_curve_one_seed_finds_the_one_dimension():
    live = [run[WITH]["live"] for run in kept("two_dimensional.json")["runs"]["curve"]]
    l_enc = [run[WITH]["l_enc"] for run in kept("two_dimensional.json")["runs"]["curve"]]
    assert live == [1, 2, 2] and l_enc[0] < 0.01 and all(0.025 < value < 0.04 for value in l_enc[1:])


def test_samples_fit_the_data():
    ratios = []
    for name, run in kept_runs():
        for way in (WITH, WITHOUT):
            if name in ("swiss roll", "checkerboard", "gaussian"):
                ratios.append(run[way]["distance_of_samples"] / run[way]["distance_of_two_draws"])
    assert [round(bound(ratios), 1) for bound in (min, max)] == [0.9, 1.8]  # the bar is 2
    for run in kept("two_dimensional.json")["runs"]["ring"]:
        assert run[WITH]["modes"] == 8 and round(run[WITH]["within_4_sigma"], 2) == 0.89  # the bar: 0.85
        assert [round(bound(run[WITH]["shares"]), 2) for bound in (min, max)] == [
            0.12,
            0.13,
        ]  # bars: 8 and 17%


def test_what_the_text_says_of_reconstructions():
    errors = {
        (name, way): [run[way]["error_of_reconstructions"] for run in runs]
        for name, runs in kept("two_dimensional.json")["runs"].items()
        for way in (WITH, WITHOUT)
    }
    ring = errors["ring", WITH] + errors["ring", WITHOUT]
    assert [round(bound(ring), 2) for bound in (min, max)] == [0.04, 0.07]
    for name, numbers in (("gaussian", (0.01, 0.08)), ("checkerboard", (0.07, 0.13))):
        means = [np.mean(errors[name, way]) for way in (WITH, WITHOUT)]
        assert means == pytest.approx(numbers, abs=0.006)


def test_v_of_the_gaussian_is_what_neighbours_find():
    for run in kept("two_dimensional.json")["runs"]["gaussian"]:
        check = run["check"]
        np.testing.assert_allclose(check["v"], check["1 - MMSE by neighbours"], atol=0.0125)  # the bar: 0.05
        assert sum(value > 0.5 for value in check["v"]) == 2 and check["linear_r2"] > 0.99
        np.testing.assert_allclose(check["lengths"], 1, atol=0.005)
        assert abs(check["degrees"] - 90) < 0.5
        assert 3.3 <= round(sum(run[WITHOUT]["v"]), 1) <= 3.7


def test_the_printout_is_that_of_the_kept_runs():
    name = "ring"
    assert (
        two_dimensional.line(name, kept("two_dimensional.json")["runs"][name][0]) in two_dimensional.__doc__
    )
    sweep = kept("two_dimensional_sweep.json")
    assert [row["change"] for row in sweep["rows"]] == list(two_dimensional.SWEEP)
    assert two_dimensional.sweep_line(sweep["rows"][0]) in two_dimensional.__doc__
    assert sweep["rows"][0]["setting"] == two_dimensional.setting()


def test_the_tables_of_the_readme(capsys):
    page = (two_dimensional.RESULTS.parent / "README.md").read_text()
    two_dimensional.main("table")
    tables = capsys.readouterr().out.strip().split("\n\n")
    assert len(tables) == 2 and all(table in page for table in tables)
    assert [len(table.splitlines()) for table in tables] == [17, 12]
    with_scale = next(row for row in tables[0].splitlines() if row.startswith("| ring | with scale"))
    l_enc = [run[WITH]["l_enc"] for run in kept("two_dimensional.json")["runs"]["ring"]]
    assert f"| {sorted(l_enc)[0]:.3f} to {sorted(l_enc)[2]:.3f} | 2 | 0.00 |" in with_scale


def test_the_kept_axes():
    result = kept("two_dimensional_axes.json")
    assert result["command"] == "python -m toy_experiments.two_dimensional_axes"
    scales = result["scales"].values()
    spread = [max(s) - min(s) for s in scales]
    assert spread[0] < 0.5 and spread[-1] > 1.9  # from equal scales to two of 2 and six of 0
    path = two_dimensional.RESULTS / "two_dimensional_axes.gif"
    assert path.stat().st_size <= 2_000_000
    with Image.open(path) as picture:
        assert picture.n_frames > 30


def test_from_runs_to_figures(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(two_dimensional, "RESULTS", tmp_path / "kept")
    monkeypatch.setattr(two_dimensional, "DATA", ("ring",))
    monkeypatch.setattr(two_dimensional, "SWEEP", ({"encoder_weight": 1.0},))
    monkeypatch.setattr(two_dimensional_axes, "RESULTS", tmp_path / "kept")
    for what in ("runs", "sweep"):
        two_dimensional.main(what, seeds=1, steps=4)
    two_dimensional_axes.main(steps=4)
    written = {path.name for path in (tmp_path / "kept").iterdir()}
    names = ("two_dimensional", "two_dimensional_axes")
    assert written == {f"{name}.{kind}" for name in names for kind in ("json", "png")} | {
        "two_dimensional_axes.gif",
        "two_dimensional_sweep.json",
    }
    printed = capsys.readouterr().out
    assert "ring, seed 0: " in printed and "encoder_weight 1: " in printed


@pytest.mark.parametrize("wrong", [{"seeds": 0}, {"steps": 0}])
def test_impossible_numbers_are_refused(wrong):
    with pytest.raises(dlsgan.UserError, match="at least 1"):
        two_dimensional.main(**wrong)
    with pytest.raises(dlsgan.UserError, match="at least 1"):
        two_dimensional_axes.main(steps=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", planar.PLANAR)
@pytest.mark.parametrize("seed", range(3))
def test_two_live_dimensions_anew(name, seed):
    result, _ = two_dimensional.run(name, seed)
    assert result[WITH]["live"] == 2 and result[WITH]["l_enc"] <= 0.03
    assert result[WITHOUT]["l_enc"] >= 0.6 and result[AFTERWARDS]["l_enc"] >= 0.5
