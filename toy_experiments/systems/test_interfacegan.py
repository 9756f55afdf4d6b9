"""Tests of InterFaceGAN, and of what the page says of it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dlsgan
from conftest import page_text, perfect_model, tiny, write_attributes, write_celeba, write_mnist
from toy_experiments.shared import classifiers
from toy_experiments.shared.cli import RESULTS
from toy_experiments.systems import interfacegan


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
    list(dlsgan.train(tiny(dataset="celeba", data_dir="c", out="celeba64", **settings)))
    result = interfacegan.main("celeba64", faces=6, judge_steps=2, results=Path("kept"))
    assert (result["labelled"], result["names"]) == (40, list(classifiers.CELEBA_ATTRIBUTES))
    assert result["judge"].keys() == {"accuracy", "share of test images"}
    assert {len(t) for t in result["directions"].values()} == {settings["latent_dim"]}
    assert result["recognised"].keys() == {"from z_hat", "from reconstructions", "from the images"}
    for dataset in ("cartoon", "celeba"):
        assert Path(f"kept/interfacegan-{dataset}.png").stat().st_size > 10_000
        kept = json.loads(Path(f"kept/interfacegan-{dataset}.json").read_text())
        assert kept["ways"].keys() == interfacegan.WAYS.keys()
    assert "largest leakage" in capsys.readouterr().out
    kept = Path("kept/interfacegan-cartoon.json").read_bytes()
    list(dlsgan.train(tiny(out="cartoon-no-scale", latent_scale=False, **settings)))
    interfacegan.main("cartoon-no-scale", labelled=60, faces=6, judge_steps=2, results=Path("kept"))
    assert Path("kept/interfacegan-cartoon.json").read_bytes() == kept
    for suffix in (".json", ".png"):
        assert Path(f"kept/interfacegan-cartoon-cartoon-no-scale{suffix}").exists()


def test_what_the_page_says_of_attributes_on_celeba():
    result = json.loads((RESULTS / "interfacegan-celeba.json").read_text())
    assert result["command"].endswith("--checkpoint pretrained/celeba64.pt")
    _, shipped = dlsgan.read_checkpoint(dlsgan.PRETRAINED / "celeba64.pt")
    assert result["model"]["images"] == shipped["images"]
    changes = np.array(result["ways"]["s*z, conditional"]["mean_change"])
    change = changes.diagonal()
    smiling, male, bangs = (result["names"].index(name) for name in ("Smiling", "Male", "Bangs"))
    assert change[smiling] > 2 * np.abs(changes[smiling, [male, bangs]]).max()
    found = dict(zip(result["names"], change, strict=True))
    easy = (found["Bangs"], found["Male"], found["Smiling"])
    assert min(easy) > 0.55 > max(found["Eyeglasses"], found["Young"])  # these are harder to edit
    said = f"bangs change by {found['Bangs']:.2f} and sex by {found['Male']:.2f} in the judge's probability, "
    said += f"the smile by {found['Smiling']:.2f}, glasses by {found['Eyeglasses']:.2f} and youth by "
    said += f"{found['Young']:.2f}, and of the smile's variance in test faces reconstructions keep "
    assert said + f"{result['kept']['Smiling']:.0%} |" in page_text("toy_experiments/README.md")


def test_what_the_page_says_of_factors_of_cartoon_faces():
    result = json.loads((RESULTS / "interfacegan-cartoon.json").read_text())
    assert result["command"].endswith("--checkpoint pretrained/cartoon.pt")
    changes = np.array(result["ways"]["s*z, conditional"]["mean_change"])
    own = changes.diagonal()
    leaked = np.abs(changes - np.diag(own)).max()
    said = f"moves its factor by {own.min():.1f} to {own.max():.1f} standard deviations and no other by more "
    assert f"{said}than {leaked:.2f}. On CelebA-64" in page_text("toy_experiments/README.md")


def test_interfacegan_says_what_it_cannot_edit():
    write_mnist(Path("m"))
    list(dlsgan.train(tiny(dataset="mnist", data_dir="m", out="mnist", images=8)))
    with pytest.raises(dlsgan.UserError, match="no attributes"):
        interfacegan.main("mnist")
    list(dlsgan.train(tiny(latent_dim=8, out="small", images=8)))
    with pytest.raises(dlsgan.UserError, match="more latent dimensions"):
        interfacegan.main("small")
