"""Tests of real_encoder.py and hybrid.py: small networks, and a generator that is the PCA of its data."""

import copy
import dataclasses
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import dlsgan
from conftest import counted, no_report, page_text, perfect_model, small_cartoon, tiny
from toy_experiments.shared import training
from toy_experiments.shared.cli import RESULTS
from toy_experiments.systems import hybrid, lia, real_encoder


@pytest.fixture
def trained():
    """A model that has hardly learned, with an uneven v."""
    config = tiny(out="run", images=16)
    list(dlsgan.train(config))
    model = dlsgan.load_model("run")
    model.latent_scale.v.copy_(torch.tensor([0.9, 0.5, 0.3, 0.1]))
    return config, model


def test_before_the_first_step_it_is_the_papers_encoder(trained):
    config, model = trained
    tuning = real_encoder.FineTuning(model, config.lr)
    x = dlsgan.to_float(small_cartoon(config)[1])
    for encoder in (tuning.encoder, tuning.average):
        assert encoder is not model.discriminator
        for ours, theirs in zip(encoder(x), model.discriminator(x), strict=True):
            assert torch.equal(ours, theirs)


def test_the_frozen_networks_do_not_move_and_the_encoder_does(trained):
    config, model = trained
    before = copy.deepcopy(model.state_dict())
    tuned = real_encoder.fine_tune(model, config, small_cartoon(config)[0])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert tuned.generator is model.generator and tuned.latent_scale is model.latent_scale
    head = tuned.discriminator.latent_head.weight
    assert not torch.equal(head, before["discriminator.latent_head.weight"])
    assert all(p.grad is None for p in model.parameters())


def test_the_loss_against_its_definition(trained):
    config, model = trained
    tuning = real_encoder.FineTuning(model, config.lr, seed=5)
    x = dlsgan.to_float(small_cartoon(config)[0][:6])
    target = x.flip(0)
    loss = tuning.loss(x, target)
    z = torch.randn(6, 4, generator=torch.Generator().manual_seed(5))
    v = model.latent_scale.v
    s = (4 * v / v.sum()).sqrt()
    codes = model.discriminator(x)[1] * s
    y = model.generator(codes)
    wanted = lia.features(model.discriminator, target).flatten()
    difference = wanted - lia.features(model.discriminator, y).flatten()
    z_error = z - model.discriminator(model.generator(z * s))[1]
    lengths = np.array([float(code @ code) for code in codes])
    pixels = ((y - target) ** 2).mean().item()
    features = (difference @ difference / (wanted @ wanted)).item()
    l_enc = (z_error**2 * s**2).mean().item()
    prior = np.mean((lengths / (s * s * v).sum().item() - 1) ** 2)
    expected = 20 * pixels + features + l_enc + (z_error**2).mean().item() + prior
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("last", [2, 5])
def test_fine_tuning_goes_on_where_it_stopped(trained, last, monkeypatch):
    config, model = trained
    config = dataclasses.replace(config, images=24)  # 6 steps
    images = small_cartoon(config)[0]
    ticks = itertools.count(0, 100)
    monkeypatch.setattr(training, "clock", lambda device: next(ticks))  # a state is kept after each step

    def fine_tune(path):
        record = {}
        return real_encoder.fine_tune(model, config, images, Path(path), record).state_dict(), record

    whole, record = fine_tune("whole.pt")
    with counted(real_encoder.FineTuning, "step", last + 1) as first, pytest.raises(KeyboardInterrupt):
        fine_tune("parts.pt")
    with counted(real_encoder.FineTuning, "step") as others:
        parts, record_of_parts = fine_tune("parts.pt")
    assert [number for *_, number in first] == list(range(last + 1))
    assert [number for *_, number in others] == list(range(last, 6)) and record_of_parts == record
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


# ---- The attack on the claim -------------------------------------------------------------------------------


class PCA(nn.Module):
    """z [B, d] -> images: the mean of x and its d main axes, each as long as the data's spread along it."""

    def __init__(self, x, latent_dim):
        super().__init__()
        self.shape = x.shape[1:]
        self.mean = x.flatten(1).mean(0)
        _, lengths, axes = torch.linalg.svd(x.flatten(1) - self.mean, full_matrices=False)
        self.axes = axes[:latent_dim] * lengths[:latent_dim, None] / len(x) ** 0.5

    def forward(self, z):
        return (self.mean + z @ self.axes).view(-1, *self.shape)


def rise(paper, tuned, test):
    """By how many dB the reconstructions of test images got better."""
    errors = []
    for model in (paper, tuned):
        y = model.reconstruct(test).clamp(-1, 1)
        errors.append(((test - y) ** 2).flatten(1).mean(1))
    return 10 * torch.log10(errors[0] / errors[1]).mean().item()


def shuffled_step(self, x, target, step):
    return step_of_fine_tuning(self, x, target.roll(1, 0), step)


step_of_fine_tuning = real_encoder.FineTuning.step


def test_only_real_images_with_their_own_targets_bring_a_gain(monkeypatch):
    """An encoder that was taught on generated images rebuilds test images better after fine-tuning, but not
    if it is tuned on noise instead of images, or has to rebuild its neighbour's image."""
    config = tiny(resolution=8, latent_dim=8, batch_size=16, images=2400, lr=1e-2)
    faces = dlsgan.cartoon_faces(600, 8)[0]
    images = dlsgan.to_uint8(faces[:400]).numpy()
    test = faces[400:]
    encoder = dlsgan.Discriminator(8, 3, 8, channel_base=128, channel_max=16)
    paper = dlsgan.DLSGAN(PCA(faces[:400], 8), encoder, dlsgan.LatentScale(8))
    paper.discriminator = training.train_encoder(paper.decode, encoder, 8, config, 4800)

    assert rise(paper, real_encoder.fine_tune(paper, config, images), test) > 0.3
    noise = np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)
    assert rise(paper, real_encoder.fine_tune(paper, config, noise), test) < 0
    monkeypatch.setattr(real_encoder.FineTuning, "step", shuffled_step)
    assert rise(paper, real_encoder.fine_tune(paper, config, images), test) < 0


# ---- The hybrid, and the experiment as a whole -------------------------------------------------------------


def test_refined_codes_start_at_the_encoders_and_come_nearer(trained):
    config, model = trained
    x = dlsgan.to_float(small_cartoon(config)[1][:5])
    torch.testing.assert_close(hybrid.Refined(model, 0).encode(x), model.encode(x))
    errors = []
    for steps in (0, 5, 40):
        y = hybrid.Refined(model, steps).reconstruct(x)
        errors.append(((x - y) ** 2).flatten(1).mean(1))
    assert (errors[1] < errors[0]).all() and (errors[2] < errors[1]).all()


def test_share_of_codes_of_usual_length():
    """Images are latent vectors: those of a third the size lie inside of the shell, others on it."""
    model = perfect_model(4)
    generated = model.sample(500, seed=9).clamp(-1, 1)
    assert hybrid.share_inside(model, generated) == pytest.approx(0.98, abs=0.03)
    mixed = torch.cat((generated, generated / 3, 3 * generated))
    assert hybrid.share_inside(model, mixed) == pytest.approx(0.98 / 3, abs=0.02)


def test_gains_by_descent_against_the_images_themselves(trained):
    config, model = trained
    x = dlsgan.to_float(small_cartoon(config)[1][:4])
    mean_image = x.mean(0)
    usual = dlsgan.psnr(x, mean_image.expand_as(x)).mean()
    found = hybrid.descend(model, x, mean_image, 5)
    start = dlsgan.psnr(x, model.reconstruct(x).clamp(-1, 1)).mean() - usual
    assert found["start"] == pytest.approx(start.item(), abs=2e-3)
    refined = hybrid.Refined(model, 5)
    end = dlsgan.psnr(x, refined.reconstruct(x).clamp(-1, 1)).mean() - usual
    assert found["z"] == pytest.approx(end.item(), abs=2e-3)
    assert found["w"] > found["start"]
    points = hybrid.curve(model, x, mean_image, 2)
    assert [point["steps"] for point in points] == [0, 5, 20, 100]
    assert points[0]["gain"] == pytest.approx(start.item(), abs=2e-3)
    assert points[1]["gain"] == pytest.approx(end.item(), abs=1e-2)
    times = [point["milliseconds"] for point in points]
    assert times == sorted(times)
    behind = hybrid.curve(model, x, mean_image, 4, "w")
    assert behind[0]["gain"] == points[0]["gain"]
    assert behind[1]["gain"] == pytest.approx(found["w"], abs=1e-2)


def no_step(*arguments):
    raise AssertionError("nothing is left to train")


def test_the_experiment_finds_the_images_of_a_run_on_a_folder(monkeypatch):
    Path("photos").mkdir()
    for i, face in enumerate(dlsgan.to_uint8(dlsgan.cartoon_faces(40, 16)[0])):
        Image.fromarray(face.permute(1, 2, 0).numpy()).save(f"photos/{i}.png")
    list(dlsgan.train(tiny(dataset="folder", data_dir="photos", out="run", images=8)))
    monkeypatch.setattr(hybrid, "STEPS", (0, 1))
    monkeypatch.setattr(real_encoder, "draw", no_report)
    result = real_encoder.main("run", 8, count=2, steps=1, results=Path("kept"))
    assert result["model"] == {"name": "run", "dataset": "folder", "images": 8}


def test_the_experiment_from_a_run_to_the_figure(trained, monkeypatch, capsys):
    monkeypatch.setattr(hybrid, "STEPS", (0, 2))
    options = {"images": 24, "count": 3, "steps": 4, "results": Path("kept")}
    result = real_encoder.main("run", **options)
    told = capsys.readouterr().out
    assert "paper's encoder: test" in told and "fine-tuned encoder: test" in told
    kept = json.loads(Path("kept/real_encoder-run.json").read_text())
    assert kept == result and kept["model"] == {"name": "run", "dataset": "cartoon", "images": 16}
    assert Path("kept/real_encoder-run.png").stat().st_size > 10_000

    config, state = dlsgan.read_checkpoint("runs/real_encoder/run-real-encoder.pt")
    assert state["encoder"] == "an encoder fine-tuned on 24 real images (not in the paper)"
    trained_config, _ = dlsgan.read_checkpoint("run")
    clean = {"data_dir": "data/cartoon", "out": "", "device": "auto", "threads": 0}
    assert config == dataclasses.replace(trained_config, **clean)
    test = dlsgan.to_float(small_cartoon(config)[1])
    for name, path in (("paper's", "run"), ("fine-tuned", "runs/real_encoder/run-real-encoder.pt")):
        measured = dlsgan.evaluate(dlsgan.load_model(path), test)
        assert kept[name]["psnr_gain_test"] == pytest.approx(measured["psnr_gain_test"], abs=1e-3)
        assert kept[name]["l_enc"] == pytest.approx(measured["l_enc"], abs=1e-3)

    monkeypatch.setattr(real_encoder, "draw", no_report)
    monkeypatch.setattr(real_encoder.FineTuning, "step", no_step)
    again = real_encoder.main("run", **options)  # fine-tuned already
    assert again["fine-tuned"]["psnr_gain_test"] == kept["fine-tuned"]["psnr_gain_test"]
    with pytest.raises(dlsgan.UserError, match="delete it to start again"):
        real_encoder.main("run", **options | {"images": 48})
    with pytest.raises(dlsgan.UserError, match="must be at least 1"):
        real_encoder.main("run", **options | {"count": 0})
    list(dlsgan.train(dataclasses.replace(trained_config, images=32), resume=True))  # another generator
    with pytest.raises(dlsgan.UserError, match="real_encoder/run.pt .*delete it .* frozen networks"):
        real_encoder.main("run", **options)


# ---- The page ----------------------------------------------------------------------------------------------

MODELS = {  # in the page's table, with the options of their commands
    "celeba64": "pretrained/celeba64.pt --images 150000 --count 32",
    "mnist": "runs/mnist --count 16",
    "mnist-no-scale": "runs/mnist-no-scale --count 16",
}


def page_table():
    """The table of toy_experiments/README.md, from the kept results."""
    columns = []
    for name in MODELS:
        kept = json.loads((RESULTS / f"real_encoder-{name}.json").read_text())
        for encoder in ("paper's", "fine-tuned"):
            row = kept[encoder]
            descent, random = row["descent"], kept["random"]
            gains = {}
            times = {}
            for way in ("one", "one_w"):
                gains[way] = ", ".join(f"{point['gain']:+.2f}" for point in row[way])
                times[way] = ", ".join(f"{point['milliseconds']:.0f}" for point in row[way])
            columns.append(
                {
                    "": f"{name}, {encoder}",
                    "---": "---",
                    "gain on test images, dB": f"{row['psnr_gain_test']:+.2f}",
                    "gain on generated images, dB": f"{row['psnr_gain_generated']:+.2f}",
                    "L_enc": f"{row['l_enc']:.3f}",
                    "test codes of usual length": f"{row['inside']:.0%}",
                    "one by one, 0, 5, 20, 100 steps on z, dB": gains["one"],
                    "milliseconds": times["one"],
                    "0, 5, 20, 100 steps on w, dB": gains["one_w"],
                    "milliseconds, on w": times["one_w"],
                    "500 steps on z, on w, dB": f"{descent['z']:+.2f}, {descent['w']:+.2f}",
                    "the same from random codes, dB": f"{random['z']:+.2f}, {random['w']:+.2f}",
                }
            )
    lines = [f"| {key} | {' | '.join(column[key] for column in columns)} |" for key in columns[0]]
    return " ".join(" ".join(lines).split())


def test_the_page_tells_what_was_measured():
    text = page_text("toy_experiments/README.md")
    assert page_table() in text and f"of their pixels, with a weight of {real_encoder.PIXELS}," in text
    slowest = 0.0
    for name, options in MODELS.items():
        kept = json.loads((RESULTS / f"real_encoder-{name}.json").read_text())
        checkpoint, *flags = options.split(" --")
        command = f"python -m toy_experiments.systems.real_encoder {checkpoint} "
        assert kept["command"].startswith(command) and f"real_encoder {options}" in text
        assert all(f" --{flag} " in kept["command"] for flag in flags)
        assert kept["descent"]["test_images"] == int(options.split()[-1])
        kind = {"celeba": "faces", "mnist": "digits"}[kept["model"]["dataset"]]
        assert f"in {kept['minutes']:.0f} minutes for {kind}" in text
        if name != "mnist-no-scale":
            time = f"{kept['minutes']:.0f} (minutes of .+ )?for {kept['images']:,} {kind}"
            assert re.search(time, " ".join(real_encoder.__doc__.split()))
        for way in ("one", "one_w"):
            for one, other in zip(kept["paper's"][way], kept["fine-tuned"][way], strict=True):
                ratio = one["milliseconds"] / other["milliseconds"]
                slowest = max(slowest, ratio, 1 / ratio)
    assert 1.2 < slowest < 1.25 and "the same work differs by up to a quarter from column to column" in text


def test_the_page_concludes_what_was_measured():
    text = page_text("toy_experiments/README.md")
    digits, faces, plain = (
        json.loads((RESULTS / f"real_encoder-{name}.json").read_text())
        for name in ("mnist", "celeba64", "mnist-no-scale")
    )
    first, last = digits["paper's"]["descent"], digits["fine-tuned"]["descent"]
    assert f"{last['start'] - first['start']:.1f} of {first['z'] - first['start']:.1f} dB come back" in text
    assert f"On w there are {first['w'] - first['z']:.1f} dB more" in text
    gain = digits["fine-tuned"]["psnr_gain_test"]
    rows = json.loads((RESULTS / "compare-mnist-120000.json").read_text())["rows"]
    compared = {row["method"]: row["psnr_gain_test"] for row in rows}
    assert {row["images"] for row in rows if row["method"] in ("real-encoder", "lia", "lia-mlp")} == {120_000}
    assert digits["model"]["images"] + digits["images"] == 160_000
    same_budget = compared["real-encoder"]
    gained = [
        kept["fine-tuned"]["psnr_gain_test"] - kept["paper's"]["psnr_gain_test"] for kept in (digits, faces)
    ]
    worse = [kept["fine-tuned"]["l_enc"] - kept["paper's"]["l_enc"] for kept in (digits, faces)]
    assert 0 < min(worse) and max(worse) <= 0.05 and len({f"{x:.2f}" for x in worse}) == 1
    said = "gains {:.1f} dB on digits and {:.1f} dB on faces, and L_enc rises by {:.2f}"
    assert said.format(*gained, worse[0]) in text and min(gained) >= 1.5
    assert min(gain, same_budget) > 5 and "With the same 120,000 images as LIA" in text
    by_lia = [compared["lia"], compared["lia-mlp"]]
    assert same_budget < min(by_lia)
    said = "it comes to {:+.2f} dB on digits, and LIA's two encoders to {:+.2f} and {:+.2f} dB"
    assert said.format(same_budget, *by_lia) in text

    def after(kept, steps, way="one"):
        point = next(point for point in kept["fine-tuned"][way] if point["steps"] == steps)
        return point["gain"], point["milliseconds"]

    assert "and some 10 for the measures" in " ".join(real_encoder.__doc__.split())
    in_all = [round(kept["minutes"] + 10) for kept in (digits, faces)]
    assert "| {} min for digits, {} for faces |".format(*in_all) in text
    times = [f"{after(kept, 20)[1]:.0f} ms" for kept in (digits, faces)]
    assert f"on z take {times[0]} for a digit and {times[1]} for a face, alone" in text
    against = [f"{after(kept, 20)[0]:+.1f} against {kept['random']['z']:+.1f} dB" for kept in (digits, faces)]
    assert f"on digits, {against[0]}, and not on faces, {against[1]}" in text
    short = [kept["random"]["z"] - after(kept, 20)[0] for kept in (digits, faces)]
    assert 0 < short[0] < 0.3 and short[1] > 0
    on_w = [f"{after(kept, 20, 'one_w')[0]:+.1f} dB" for kept in (digits, faces)]
    random_w = [f"{kept['random']['w']:+.1f}" for kept in (digits, faces)]
    assert f"20 steps on w come to {on_w[0]} for a digit and {on_w[1]} for a face" in text
    assert "500 on w from random codes to {} and {} dB".format(*random_w) in text
    gain, milliseconds = after(faces, 100)
    assert f"There 100 steps, in {milliseconds / 1000:.1f} s, come to {gain:+.1f} dB" in text
    assert faces["random"]["z"] - 0.1 < gain < faces["random"]["z"]
    assert min(kept["fine-tuned"]["inside"] for kept in (digits, faces)) >= 0.9
    ahead = [
        digits[way]["psnr_gain_test"] - plain[way]["psnr_gain_test"] for way in ("paper's", "fine-tuned")
    ]
    said = f"is {ahead[0]:.1f} dB ahead before fine-tuning and {-ahead[1]:.1f} dB behind after"
    assert said in text and ahead[0] > 0 > ahead[1]
    l_enc = f"L_enc {digits['fine-tuned']['l_enc']:.2f} against {plain['fine-tuned']['l_enc']:.2f}"
    assert f"{l_enc} after fine-tuning" in text
    higher = {space: plain["fine-tuned"]["descent"][space] - last[space] for space in ("z", "w")}
    assert higher["z"] > 0 > higher["w"]
    said = f"{higher['z']:.1f} dB higher without it on z, and {-higher['w']:.1f} dB lower on w"
    assert said in text
