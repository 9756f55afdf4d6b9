"""Tests of compare.py."""

import csv
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import dlsgan
from conftest import page_text
from toy_experiments.shared import cli, distances, training
from toy_experiments.shared.cli import RESULTS
from toy_experiments.systems import compare, eigengan, lia


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
    assert list(photos) == ["dlsgan", "20-steps", "encoder-after", "lia-mlp", "optimisation"]
    test = {method: f"{row['psnr_gain_test']:+.2f}" for method, row in digits.items()}
    generated = {method: f"{row['psnr_gain_generated']:+.2f}" for method, row in digits.items()}
    own = {method: f"{row['psnr_gain_generated']:+.2f}" for method, row in photos.items()}

    faces = {method: f"{row['psnr_gain_test']:+.2f}" for method, row in photos.items()}
    in_order = sorted(photos, key=lambda method: -photos[method]["psnr_gain_test"])
    assert in_order == ["20-steps", "optimisation", "lia-mlp", "dlsgan", "encoder-after"]
    assert photos["dlsgan"]["swd"] < photos["optimisation"]["swd"] - spread_of_seeds("swd")  # "nearer"

    black = json.loads((RESULTS / "plain_gan_at_full_rate.json").read_text())
    assert black["images"] == photos["optimisation"]["images"] and black["spread"] == 0
    assert f"spread {black['spread']:.2f}, distance {black['swd']:.0f})" in toys
    minutes = {method: row["minutes"] for method, row in photos.items()}
    in_all = minutes["dlsgan"] + minutes["encoder-after"] + minutes["lia-mlp"] - minutes["optimisation"]
    assert f"CelebA-64 {round(in_all / 30) / 2} h (five methods)" in toys  # their plain GAN counts once

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
        f"CelebA DLSGAN has {own['dlsgan']} dB, LIA's encoder to w {own['lia-mlp']}, and one trained "
        f"afterwards {own['encoder-after']}",
        "On CelebA 20 steps from DLSGAN's guess ({}) come further than 100 steps of descent ({}). Of the "
        "encoders, LIA's to w ({}) is a little ahead of DLSGAN ({}), and one trained afterwards far behind "
        "({})".format(*map(faces.get, in_order)),
        f"({generated['optimisation']} dB, and {generated['20-steps']} from DLSGAN's guess)",
        f"distances lie between {min(swd.values()):.1f} and {max(swd.values()):.1f}, "
        f"and three seeds of DLSGAN are {spread_of_seeds('swd'):.1f} apart",
        f"nearer, {photos['dlsgan']['swd']:.1f} against {photos['optimisation']['swd']:.1f} of the plain GAN",
        f"L_enc rises from {l_enc[0]} to {l_enc[1]}, but the fine-tuned encoder belongs to a generator",
        "generator](#an-encoder-for-real-photographs) it rises, too, from {:.3f} to {:.3f}".format(
            *same_generator
        ),
    ):
        assert sentence in toys, sentence


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
