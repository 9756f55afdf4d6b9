"""Tests of mnist.py."""

import json
from pathlib import Path

import pytest
import torch

import dlsgan
from conftest import ROOT, TINY, page_text, write_mnist
from toy_experiments import mnist, settings
from toy_experiments.shared import judges, training


def small_mnist(monkeypatch):
    write_mnist(Path("data/mnist"), 60)
    monkeypatch.setattr(mnist, "RESULTS", Path("kept"))
    keys = ("resolution", "channel_base", "channel_max", "latent_dim", "batch_size")
    small = {"dataset": "mnist", "encoder_weight": 3.0, "device": "cpu", "images": 80}
    small |= {key: TINY[key] for key in keys}
    monkeypatch.setitem(dlsgan.PRESETS, "mnist", small)

    def judge(checkpoint, data_dir):
        """Without the classifier, which takes minutes to train."""
        config, _ = dlsgan.read_checkpoint(checkpoint)
        test = dlsgan.to_float(dlsgan.load_mnist(config)[1])
        shares = {"kept": 0.5, "readable": 0.5, "readable_test": 1.0}
        return judges.quality(dlsgan.load_model(checkpoint), test) | shares

    monkeypatch.setattr(settings, "judge", judge)


def test_mnist_study_from_runs_to_figures(monkeypatch, capsys):
    small_mnist(monkeypatch)
    with pytest.raises(dlsgan.UserError, match="the run 'gan' comes first"):
        mnist.main("run", ("afterwards",), images=40)
    budgets = [mnist.configure(name, 0, "").images for name in ("scale-0", "base")]
    assert budgets == [80, 40]
    names = ("scale-0", "plain-0", "base", "lambda-1", "d-only", "gan", "afterwards")
    found = mnist.main("run", names, images=40)
    assert found.keys() == set(names)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(names) and all(row.count("|") == rows[0].count("|") for row in rows)
    first = {
        name: next(dlsgan.load_model(f"runs/mnist_study/{name}").generator.parameters()) for name in names
    }
    assert found["base"]["measures"] == found["scale-0"]["measures"]  # they differ by their budgets alone
    others = ("lambda-1", "d-only", "plain-0", "gan")
    assert all(not torch.equal(first["scale-0"], first[name]) for name in others)
    # the kept measures are those of the kept networks
    model = dlsgan.load_model("runs/mnist_study/scale-0")
    images = dlsgan.load_mnist(mnist.configure("scale-0", 40, "data/mnist"))[1]
    test = dlsgan.to_float(images[: len(images) // 2])
    l_enc = dlsgan.evaluate(model, test, 50)["l_enc"]
    assert found["scale-0"]["measures"]["l_enc"] == pytest.approx(l_enc, abs=1e-4)
    assert training.images_seen(*dlsgan.read_checkpoint("runs/mnist_study/afterwards")) == 40
    frozen, late = (dlsgan.load_model(f"runs/mnist_study/{name}") for name in ("gan", "afterwards"))
    assert torch.equal(frozen.sample(4), late.sample(4))
    assert not torch.equal(frozen.encode(test[:4]), late.encode(test[:4]))
    assert (
        not dlsgan.load_model("runs/mnist_study/plain-0").latent_scale.enabled and model.latent_scale.enabled
    )
    # a run that is there already goes on: nothing is left to train, and the result is the same
    again = mnist.main("run", ("scale-0",), images=40)
    assert again["scale-0"] == found["scale-0"] and again.keys() == found.keys()
    other = {"plain-0": found["plain-0"] | {"images": 24}}
    with pytest.raises(dlsgan.UserError, match="cannot be averaged: scale-0 40, plain-0 24$"):
        mnist.draw_curves(found | other, Path("curves.png"))
    assert not Path("curves.png").exists()
    mnist.main("figures")
    drawn = {path.stem for path in Path("kept").glob("*.png")}
    assert drawn == {"mnist_ablations", "mnist_curves", "mnist_digits"}


def test_a_wrong_name_is_told_before_the_first_run_trains(monkeypatch):
    small_mnist(monkeypatch)
    with pytest.raises(dlsgan.UserError, match="unknown run 'scale-9'"):
        mnist.main("run", ("scale-0", "scale-9"))
    assert not Path("runs").exists() and not Path("kept").exists()


def test_the_runs_on_mnist_use_one_thread_of_the_processor():
    for name in mnist.RUNS:
        config = mnist.configure(name, 0, "")
        assert (config.device, config.threads) == ("cpu", 1)


def test_the_kept_mnist_results_stand_in_the_table():
    text = (ROOT / "toy_experiments" / "README.md").read_text()
    results = json.loads((mnist.RESULTS / "mnist.json").read_text())
    assert all(row in text for row in mnist.table(results).splitlines())
    for name, r in results.items():
        command = f"python -m toy_experiments.mnist run {name} --images {r['images']}"
        assert r["command"] == command and r["machine"]
        if name != "afterwards":
            assert r["curves"][-1]["images"] == r["images"] and all(point["swd"] for point in r["curves"])


def test_what_the_page_says_of_the_ablations_on_mnist():
    text = page_text("toy_experiments/README.md")
    results = json.loads((mnist.RESULTS / "mnist.json").read_text())
    m = {name: r["measures"] for name, r in results.items()}
    readable = {name: f"{x['readable'] / x['readable_test']:.0%}" for name, x in m.items()}
    l_enc = {name: f"{x['l_enc']:.2f}" for name, x in m.items()}
    gain = {name: f"{x['psnr_gain_test']:+.1f}" for name, x in m.items()}
    for sentence in (
        f"({readable['gamma-10']} of the share of test digits can be read, {readable['base']} with gamma 2)",
        f"({gain['gamma-10']} against {gain['base']} dB)",
        f"it stays at {l_enc['d-only']}, against {l_enc['base']} when G follows it, too",
        f"An encoder *afterwards* ends at {l_enc['afterwards']}",
        f"finds {m['lambda-1']['active']} dimensions in this time, the preset {m['base']['active']}",
        f"L_enc {l_enc['sma']} and {gain['sma']} dB on test digits",
        f"({readable['sma']} of the share of test digits)",
    ):
        assert sentence in text, sentence


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
