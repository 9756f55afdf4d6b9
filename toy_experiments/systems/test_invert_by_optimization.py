"""Tests of invert_by_optimization.py."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import dlsgan
from conftest import page_text, tiny
from toy_experiments.shared.cli import RESULTS
from toy_experiments.systems import invert_by_optimization, lia
from toy_experiments.tools import export_weights


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
