"""Tests of cartoon_factors.py."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dlsgan
from conftest import TINY, page_text, small_cartoon, tiny
from toy_experiments import cartoon_factors
from toy_experiments.shared import training
from toy_experiments.shared.factors import face_shares_line


def test_only_the_first_factors_vary():
    faces, u = cartoon_factors.draw_faces(20, 4, torch.Generator().manual_seed(3), 16)
    assert (u[:, 4:] == 0).all() and u[:, :4].std() > 0.5
    assert torch.equal(faces, dlsgan.cartoon_faces(20, 16, values=u)[0])


def test_the_short_training_loop_equals_train(monkeypatch):
    """On the same images, cartoon_factors.train gives the averaged weights of dlsgan.train to the bit."""
    config = tiny(images=68, out="r")  # with a penalty at steps 0 and 16
    list(dlsgan.train(config))
    train_images, _ = small_cartoon(config)
    stream = dlsgan.batches(train_images, config.batch_size, config.seed, 0, False)
    monkeypatch.setattr(cartoon_factors, "draw_faces", lambda *_: (dlsgan.to_float(next(stream)), None))
    expected = dlsgan.load_model("r").state_dict()
    found = cartoon_factors.train(8, config).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


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
    small = {key: TINY[key] for key in ("resolution", "channel_base", "channel_max", "latent_dim")}
    first = cartoon_factors.main(("2-0",), images=16, **small)
    assert first["2-0"]["images"] == 16 and len(first["2-0"]["v"]) == TINY["latent_dim"]
    assert np.shape(first["2-0"]["r2_of_one_latent"]) == (TINY["latent_dim"], 2)
    model = dlsgan.load_model("runs/cartoon_factors/2-0")
    l_enc = original(model, 2, dlsgan.read_checkpoint("runs/cartoon_factors/2-0")[0], n=150)["l_enc"]
    assert first["2-0"]["l_enc"] == pytest.approx(l_enc)
    monkeypatch.setattr(cartoon_factors, "train", None)  # would fail if called
    assert cartoon_factors.main(("2-0",), images=16, **small) == first
    assert cartoon_factors.line(first["2-0"]).startswith("K = 2, seed 0: 0 live")
    assert (Path("kept") / "cartoon_factors.png").stat().st_size > 10_000
    assert training.images_seen(*dlsgan.read_checkpoint("runs/cartoon_factors/2-0")) == 16
    with pytest.raises(dlsgan.UserError, match="unknown run '3-0'"):
        cartoon_factors.main(("3-0",), images=16)
    with pytest.raises(dlsgan.UserError, match="unknown run '3-0'"):
        cartoon_factors.main(("4-0", "3-0"), images=16, **small)
    assert not Path("runs/cartoon_factors/4-0").exists()


def test_a_kept_cartoon_run_is_trained_where_it_is_named(monkeypatch, capsys):
    """As in a fresh clone, which has results without networks."""
    original = cartoon_factors.measure
    trained = []

    def train(k, config):
        trained.append(k)
        return dlsgan.build(config)

    monkeypatch.setattr(cartoon_factors, "RESULTS", Path("kept"))
    monkeypatch.setattr(cartoon_factors, "RUNS", ("2-0", "4-0"))
    monkeypatch.setattr(cartoon_factors, "measure", lambda *arguments: original(*arguments, n=150))
    monkeypatch.setattr(cartoon_factors, "train", train)
    small = {key: TINY[key] for key in ("resolution", "channel_base", "channel_max", "latent_dim")}
    first = cartoon_factors.main(images=16, **small)
    assert trained == [2, 4] and first.keys() == {"2-0", "4-0"}
    shutil.rmtree("runs")
    figure = Path("kept/cartoon_factors.png")
    figure.write_bytes(b"as committed")
    capsys.readouterr()
    assert cartoon_factors.main(images=16, **small) == first
    told = capsys.readouterr().out.splitlines()
    assert [text[:5] for text in told[1:3]] == ["K = 2", "K = 4"] and len(told) == 4
    assert told[3].startswith("cartoon_factors.png is left as it is: ") and told[3].endswith("_factors 4-0")
    assert trained == [2, 4] and figure.read_bytes() == b"as committed"
    cartoon_factors.main(("2-0",), images=16, **small)
    assert trained == [2, 4, 2] and figure.read_bytes() == b"as committed"
    cartoon_factors.main(("4-0",), images=16, **small)
    assert trained == [2, 4, 2, 4] and figure.stat().st_size > 10_000


class Pixels(nn.Module):
    """Four latents as four pixels of an image, each times its gain."""

    def __init__(self, gain):
        super().__init__()
        self.gain = gain

    def forward(self, z):
        return 0.1 * F.pad(z * self.gain, (0, 3 * 256 - 4)).unflatten(1, (3, 16, 16))


class Reader(nn.Module):
    """Reads them exactly, where the gain is 1."""

    def __init__(self, gain):
        super().__init__()
        self.gain = gain

    def forward(self, x):
        pixels = x.flatten(1)
        return pixels[:, 0], 10 * self.gain * pixels[:, :4]


@pytest.mark.parametrize(("gain", "live"), [((1.0, 1, 1, 1), 4), ((1.0, 0, 0, 1), 2)])
def test_pruning_and_calibration_of_a_model_that_loses_nothing_or_half(gain, live):
    """v = E[z z_hat], and nothing to prune."""
    gain = torch.tensor(gain)
    model = dlsgan.DLSGAN(Pixels(gain), Reader(gain), dlsgan.LatentScale(4))
    r = cartoon_factors.measure(model, 2, tiny(), n=900)
    assert r["live"] == live and r["psnr_pruned"] > 100 and r["psnr_mean_image"] < 60
    assert r["v"] == pytest.approx(r["z_times_z_hat"], abs=1e-3)
    assert set(r["order"][:live]) == set(gain.nonzero()[:, 0].tolist())
    assert r["l_enc"] == pytest.approx(1 - live / 4, abs=0.1)
    assert r["l_enc_predicted_from_v"] == pytest.approx(0, abs=0.1)  # s does not follow v in this model


AIMS = {2: 1, 4: 1, 6: 3, 8: 3}  # K: by how much the number of live dimensions may differ
MISSED = {"6-0": ["smile"], "8-0": ["smile"]}  # run: factors with R^2 below 0.9, as the text has it


def test_the_kept_cartoon_results_say_what_the_text_says():
    kept_runs = json.loads((cartoon_factors.RESULTS / "cartoon_factors.json").read_text())
    for run, kept in kept_runs.items():
        assert cartoon_factors.line(kept) in cartoon_factors.__doc__
        assert kept["command"] == f"python -m toy_experiments.cartoon_factors {run}"
        assert kept["images"] == dlsgan.Config().images and kept["machine"]
        assert kept["live"] == sum(v > 0.5 for v in kept["v"]) and kept["v"][kept["live"]] < 0.03
        predicted = 1 - sum(v * v for v in kept["v"]) / sum(kept["v"])
        assert kept["l_enc_predicted_from_v"] == pytest.approx(predicted, abs=1e-3)
        assert abs(kept["live"] - kept["factors"]) <= AIMS[kept["factors"]]
        r2 = dict(zip(dlsgan.CARTOON_FACTORS, kept["r2_live_boosted_trees"], strict=False))
        assert [name for name in r2 if r2[name] < 0.9] == MISSED.get(run, [])
        assert abs(kept["spread"] - 1) < 0.03 and kept["psnr_pruned"] > 30  # dead dimensions can be left out
    assert [kept["live"] for kept in kept_runs.values()] == [3, 4, 5, 4, 6, 10]
    assert "of 64 dimensions 3, 4 or 5, 6 and 10 stay live" in page_text("toy_experiments/README.md")
    below = [kept["l_enc"] < kept["l_enc_predicted_from_v"] for kept in kept_runs.values()]
    assert sum(below) == 4 and "in four of six runs" in cartoon_factors.__doc__
    shares = face_shares_line(dlsgan.Config().resolution)
    assert shares in " ".join(cartoon_factors.__doc__.split())
    assert min(re.findall(r"\d+(?=%)", shares), key=int) == re.search(r"smile (\d+)%", shares)[1]


@pytest.mark.slow
def test_four_factors_are_found_anew(monkeypatch):
    monkeypatch.setattr(cartoon_factors, "RESULTS", Path("kept"))
    r = cartoon_factors.main(("4-0",))["4-0"]
    assert abs(r["live"] - 4) <= 1 and r["spread"] >= 0.8 and min(r["r2_live_boosted_trees"]) >= 0.9
