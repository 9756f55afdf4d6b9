"""Tests of failure_gallery.py: each mistake against the step without it, and the kept results."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import dlsgan
from conftest import ROOT, flat, run_command
from toy_experiments import failure_gallery
from toy_experiments.shared import planar
from toy_experiments.shared.planar import D


def one_update(step, loss=dlsgan.encoder_loss, **settings):
    """The weights of generator and discriminator after one step of gradient descent by `step`."""
    model = planar.build(0)
    model.latent_scale.v.copy_(torch.linspace(0.1, 0.9, D))
    optimizers = [
        torch.optim.SGD(network.parameters(), 1.0) for network in (model.generator, model.discriminator)
    ]
    rng = torch.Generator().manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dlsgan, "encoder_loss", loss)
        step(model, optimizers, planar.draw_data("gaussian", 32, rng), rng, **settings)
    return model


@pytest.mark.parametrize("penalty_weight", [0.0, 0.5])
def test_the_step_with_a_loss_on_reconstructions_is_the_usual_one_without_it(penalty_weight):
    settings = {"encoder_weight": 3.0, "penalty_weight": penalty_weight}
    step = failure_gallery.step_with_loss_on_reconstructions
    usual = one_update(dlsgan.train_step, **settings)
    ours = one_update(step, reconstruction_weight=0.0, **settings)
    torch.testing.assert_close(flat(ours), flat(usual))
    torch.testing.assert_close(ours.latent_scale.v, usual.latent_scale.v)
    wrong = one_update(step, reconstruction_weight=30.0, **settings)
    assert not torch.allclose(flat(wrong.generator), flat(usual.generator))
    torch.testing.assert_close(flat(wrong.discriminator), flat(usual.discriminator))


def test_gradient_through_s_is_the_derivative_of_the_whole_loss():
    """By finite differences of L_enc as a function of z_hat alone, with s made of z_hat."""
    z = torch.randn(6, 3, dtype=torch.float64)
    z_hat = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)

    def whole(guess):
        v = (guess**2).mean(0)
        return float((((z.numpy() - guess) ** 2) * (3 * v / v.sum())).mean())

    loss = failure_gallery.loss_with_gradient_through_s(z, z_hat, torch.ones(3, dtype=torch.float64))
    loss.backward()
    guess = z_hat.detach().numpy()
    assert loss.item() == pytest.approx(whole(guess))
    for i in range(3):
        moved = np.zeros_like(guess)
        moved[i, i] = 1e-6
        slope = (whole(guess + moved) - whole(guess - moved)) / 2e-6
        assert z_hat.grad[i, i].item() == pytest.approx(slope, abs=1e-6)
    wrong, usual = (
        one_update(dlsgan.train_step, failure_gallery.loss_with_gradient_through_s),
        one_update(dlsgan.train_step),
    )
    assert not torch.allclose(flat(wrong), flat(usual)) and flat(wrong).isfinite().all()


def test_a_mistake_takes_its_place_only_in_training():
    used = []

    def step(model, optimizers, real, rng, **settings):
        used.append((len(real), settings["encoder_weight"], dlsgan.encoder_loss))

    usual = dlsgan.train_step, dlsgan.encoder_loss
    failure_gallery.train(failure_gallery.build(), 2, step=step, loss=F.mse_loss, encoder_weight=7.0)
    assert used == [(planar.BATCH_SIZE, 7.0, F.mse_loss)] * 2
    assert usual == (dlsgan.train_step, dlsgan.encoder_loss)


def test_the_mistakes_of_the_gallery_before_any_training():
    """What each mistake breaks by construction, and what an intact model keeps."""
    x = planar.draw_data("ring", 40, torch.Generator().manual_seed(0))
    z = torch.randn(40, D)
    intact = failure_gallery.build()
    normalised = failure_gallery.build(generator=failure_gallery.NormalisingGenerator)
    noisy = failure_gallery.build(generator=failure_gallery.NoisyGenerator)
    crowd = failure_gallery.build(discriminator=failure_gallery.MinibatchStd)
    assert torch.allclose(
        normalised.decode(3 * z), normalised.decode(z), atol=1e-5
    )  # the length of z is lost
    assert not torch.allclose(intact.decode(3 * z), intact.decode(z), atol=1e-2)
    assert torch.equal(intact.decode(z), intact.decode(z))
    assert not torch.equal(noisy.decode(z), noisy.decode(z))
    for model, same in ((intact, True), (crowd, False)):
        assert torch.allclose(model.encode(x)[:4], model.encode(x[:4]), atol=1e-6) == same
    features = crowd.discriminator.body(x[:8])
    for i in range(2):  # the groups are {0, 2, 4, 6} and {1, 3, 5, 7}
        std = features[i::2].std(0).mean()
        expected = crowd.discriminator.head(torch.cat((features[i::2], std.expand(4, 1)), 1))[:, 1:]
        assert torch.allclose(crowd.encode(x[:8])[i::2], expected, atol=1e-6)


def gallery_claims(result):
    """The sentences of failure_gallery's docstring, on its results."""
    measures = {name: run["measures"] for name, run in result["runs"].items()}
    intact = measures.pop("intact")
    assert intact["live dimensions"] == 2 and intact["error of reconstructions, data"] < 0.05
    assert intact["L_enc"] < 0.01
    for name in measures:
        key = result["runs"][name]["revealed by"]
        better, worse = sorted((abs(measures[name][key]), abs(intact[key])))
        assert worse > 1.5 * better, name
    collapsed = measures["loss on reconstructions"]
    for key in ("L_enc", "error of reconstructions, generated", "spread"):
        assert collapsed[key] < intact[key]
    assert measures["gradient through s"]["live dimensions"] == 1


def test_the_kept_gallery_shows_each_mistake():
    result = json.loads((failure_gallery.RESULTS / "failure_gallery.json").read_text())
    gallery_claims(result)
    assert len(result["runs"]) == 7 and result["steps"] == failure_gallery.STEPS
    for name, run in result["runs"].items():
        assert failure_gallery.line(name, run, result["runs"]["intact"]) in failure_gallery.__doc__


def test_the_page_lists_each_mistake_with_its_measures():
    text = (ROOT / "toy_experiments" / "README.md").read_text()
    runs = json.loads((failure_gallery.RESULTS / "failure_gallery.json").read_text())["runs"]
    intact = runs["intact"]["measures"]
    for name, run in runs.items():
        key, measures = run["revealed by"], run["measures"]
        revealed = f"{key}: {measures[key]:.3g} ({intact[key]:.3g})"
        assert f"| {name} | {run['symptom']} | {revealed} | {measures['L_enc']:.4f} |" in text
    found = [run["measures"]["L_enc"] for run in list(runs.values())[1:]]
    assert min(found[:2]) > 0.1 and max(found[2:]) < 0.02 and found[-1] < intact["L_enc"]
    assert f"shrunk to {runs['loss on reconstructions']['measures']['spread']:.2f} of the spread" in text


@pytest.mark.parametrize(("option", "code"), [("--help", 0), ("--steps=1", 2)])
def test_options_of_the_gallery_begin_no_training(option, code, monkeypatch, capsys):
    monkeypatch.setattr(planar, "training", None)  # would fail if called
    assert run_command("toy_experiments.failure_gallery", option) == code
    assert "usage: " in "".join(capsys.readouterr())


@pytest.mark.slow
def test_the_gallery_anew(monkeypatch, tmp_path):
    monkeypatch.setattr(failure_gallery, "RESULTS", tmp_path / "kept")
    gallery_claims(failure_gallery.main())
    assert (tmp_path / "kept" / "failure_gallery.png").exists()
