"""Tests of what the experiments share, and of their command lines."""

import dataclasses
import importlib
import itertools
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from torch import nn

import dlsgan
from conftest import ROOT, counted, run_command, tiny, write_attributes, write_celeba
from toy_experiments.shared import classifiers, cli, distances, figures, training

# ---- Training ----------------------------------------------------------------------------------------------


def test_training_any_two_networks_is_the_training_of_dlsgan(tiny_plain):
    config, images, _ = tiny_plain
    config = dataclasses.replace(config, out="a")
    list(dlsgan.train(config))
    torch.manual_seed(config.seed)
    model = training.train_gan(dlsgan.build(config), config, images)
    expected = dlsgan.load_model("a").state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_a_stopped_experiment_goes_on_where_it_was(tiny_plain, tmp_path, monkeypatch):
    config, images, _ = tiny_plain
    ticks = iter(range(0, 10**6, 100))
    monkeypatch.setattr(training, "clock", lambda device: next(ticks))  # a state is kept after each step

    def train(path):
        torch.manual_seed(config.seed)
        record = {}
        return training.train_gan(dlsgan.build(config), config, images, path, record).state_dict(), record

    whole, record = train(tmp_path / "whole.pt")
    with counted(dlsgan, "train_step", last=6) as first, pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts.pt")
    with counted(dlsgan, "train_step") as others:
        parts, record_of_parts = train(tmp_path / "parts.pt")
    assert (len(first), len(others)) == (6, 7) and record_of_parts == record
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    other = dataclasses.replace(config, seed=3)
    with pytest.raises(dlsgan.UserError, match="parts.pt is not of this run.*it has other settings"):
        training.train_gan(dlsgan.build(other), other, images, tmp_path / "parts.pt")


class LinearEncoder(nn.Linear):
    def forward(self, x):
        return None, super().forward(x)


@pytest.mark.parametrize("rank", [4, 2])
def test_an_encoder_trained_afterwards_finds_what_the_generator_kept(rank):
    """x = z A: the optimal encoder of Gaussian z recovers rank(A) of d dimensions: E|z - z_hat|^2 / d = 1 -
    rank / d."""
    basis = torch.linalg.qr(torch.randn(4, 4))[0]
    if rank < 4:
        a = basis[:, :rank] @ torch.randn(rank, 5)
    else:
        a = torch.cat((basis, basis[:, :1]), 1)
    config = training.configure("cartoon", batch_size=64, lr=0.05)
    encoder = training.train_encoder(lambda z: z @ a, LinearEncoder(5, 4), 4, config, 64 * 500)
    z = torch.randn(4000, 4)
    assert (encoder(z @ a)[1] - z).square().mean().item() == pytest.approx(1 - rank / 4, abs=0.02)


def test_an_encoder_goes_on_only_for_the_same_frozen_weights():
    config = training.configure("cartoon", batch_size=4)
    path = Path("encoder.pt")

    def train(generator, frozen):
        record = {}
        encoder = LinearEncoder(5, 4)
        return training.train_encoder(generator, encoder, 4, config, 20, path, record, frozen=frozen), record

    generator = nn.Linear(4, 5).requires_grad_(False)
    first, record = train(generator, generator)
    again, same_record = train(generator, generator)  # finished
    assert same_record == record and torch.equal(first.weight, again.weight)
    before = path.read_bytes()
    generator.bias[2] += 1e-6
    other = r"encoder.pt is not of this run \(delete it to start again\): it was trained for frozen networks"
    with pytest.raises(dlsgan.UserError, match=other):
        train(generator, generator)
    with pytest.raises(dlsgan.UserError, match=other):
        train(generator, None)
    assert path.read_bytes() == before
    path.unlink()
    train(generator, None)  # a file that does not say what was frozen
    train(generator, None)
    with pytest.raises(dlsgan.UserError, match=other):
        train(generator, generator)


def test_images_seen_of_a_run_and_of_exported_weights():
    assert training.images_seen(tiny(batch_size=8), {"step": 5}) == 40
    assert training.images_seen(tiny(batch_size=8), {"step": 5, "images": 7}) == 7
    assert training.images_seen(tiny(batch_size=8), {"images": 7}) == 7
    with pytest.raises(dlsgan.UserError, match="does not say on how many images it was trained"):
        training.images_seen(tiny(), {"format": 1, "config": {}, "ema": {}})


def test_the_data_of_a_trained_model_is_where_it_was():
    config = tiny(dataset="folder", data_dir="photos")
    assert training.find_data(config, "") == "data/folder"  # not there any more
    Path("photos").mkdir()
    assert training.find_data(config, "") == "photos"
    assert training.find_data(config, "elsewhere") == "elsewhere"
    assert training.find_data(tiny(dataset="mnist"), "") == "data/mnist"


def test_kept_results_are_those_of_the_usual_models():
    """And other models get other names, so that their results do not take the place of these."""
    found = {}
    for experiment in ("interfacegan", "invert_by_optimization"):
        for path in cli.RESULTS.glob(f"{experiment}-*.json"):
            checkpoint = json.loads(path.read_text())["command"].split("--checkpoint ")[1].split()[0]
            dataset = path.stem.removeprefix(f"{experiment}-").split("-")[0]
            name = training.result_name(tiny(dataset=dataset), checkpoint)
            assert path.stem == f"{experiment}-{name}"
            found[checkpoint] = name
    assert found["pretrained/celeba64.pt"] == "celeba" and found["runs/mnist-200000/dlsgan"] == "mnist"
    for dataset, checkpoint, name in (
        ("celeba", "pretrained/celeba64-no-scale.pt", "celeba-celeba64-no-scale"),
        ("celeba", "runs/celeba", "celeba-celeba"),  # at 128x128
        ("mnist", "runs/mnist/checkpoint.pt", "mnist"),
        ("mnist", "runs/mnist-24000/dlsgan", "mnist-dlsgan"),
        ("folder", "runs/v1.5", "folder-v1.5"),
    ):
        assert training.result_name(tiny(dataset=dataset), checkpoint) == name


def test_the_clock_of_a_cpu_counts_work_and_not_waiting():
    before = training.clock("cpu"), training.clock("meta")
    time.sleep(0.2)
    assert training.clock(torch.device("cpu")) - before[0] < 0.1
    assert training.clock("meta") - before[1] >= 0.2


def test_the_device_auto_is_resolved_before_its_clock_is_read(monkeypatch):
    devices = []
    monkeypatch.setattr(training, "clock", lambda device: devices.append(device) or 0.0)
    assert list(training.resumable(2, tiny(device="auto"), {}, None, None)) == [0, 1]
    assert devices == [dlsgan.pick_device("auto")] * 3


# ---- Distances ---------------------------------------------------------------------------------------------


def test_sliced_wasserstein_in_one_dimension():
    a = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shifted = distances.sliced_wasserstein(a, a + 0.7, projections=4)
    assert shifted == pytest.approx(0.7, rel=1e-9)  # W1 of a shift is the shift
    scaled = distances.sliced_wasserstein(a, 3 * a, projections=4)
    assert scaled == pytest.approx(2 * a.abs().mean().item(), rel=0.01)  # closed form: (3 - 1) E|x|
    b = torch.rand(20_000, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = scipy.stats.wasserstein_distance(a[:, 0].numpy(), b[:, 0].numpy())
    assert distances.wasserstein_1d(a, b).item() == pytest.approx(expected, rel=1e-9)


def test_swd_is_small_for_equal_and_large_for_other_images():
    faces, _ = dlsgan.cartoon_faces(60, 32, 0)
    same, _ = dlsgan.cartoon_faces(60, 32, 1)
    other = torch.rand(60, 3, 32, 32) * 2 - 1
    near = distances.swd(faces, same)
    far = distances.swd(faces, other)
    assert near.keys() == {"32", "16", "mean"}
    assert all(2 * near[level] < far[level] for level in near)
    levels = distances.laplacian_pyramid(faces)
    assert [level.shape[-1] for level in levels] == [32, 16]


def root_of_product(a, b):
    return scipy.linalg.sqrtm(a @ b).real


def test_frechet_distance_against_scipy():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 12, 12))
    a = a @ a.T
    b = b @ b.T
    mean_a, mean_b = random.normal(size=(2, 12))
    expected = ((mean_a - mean_b) ** 2).sum() + np.trace(a + b - 2 * root_of_product(a, b))
    assert distances.frechet_distance(mean_a, a, mean_b, b) == pytest.approx(expected, abs=1e-6)


class StandInInception(nn.Module):
    """Eight features that are known: the mean of each of the first eight rows of the red channel."""

    def forward(self, x: torch.Tensor, return_features: bool = False):
        return x[:, 0, :8].float().mean(2)


def test_fid_with_a_stand_in_network():
    torch.jit.script(StandInInception()).save("inception.pt")
    network = distances.load_inception("inception.pt")
    a = torch.rand(60, 3, 16, 16) * 2 - 1
    b = torch.rand(60, 3, 16, 16) - 0.5
    features = [dlsgan.to_uint8(x)[:, 0, :8].double().mean(2).numpy() for x in (a, b)]
    cov_a, cov_b = (np.cov(f, rowvar=False) for f in features)
    expected = ((features[0].mean(0) - features[1].mean(0)) ** 2).sum()
    expected += np.trace(cov_a + cov_b - 2 * root_of_product(cov_a, cov_b))
    assert distances.fid(a, b, network) == pytest.approx(expected, rel=1e-3)
    assert distances.fid(a, a, network) == pytest.approx(0, abs=1e-6)
    with pytest.raises(dlsgan.UserError, match="not the TorchScript file"):
        distances.load_inception(__file__)


def test_distances_of_a_run_from_the_command_line(capsys):
    list(dlsgan.train(tiny(out="r")))
    result = distances.main("r")
    assert result.keys() == {"samples", "other test images"}
    assert result["samples"].keys() == {"swd 16", "swd mean"}
    assert "FID: absent" in capsys.readouterr().out


# ---- Classifiers -------------------------------------------------------------------------------------------


def test_celeba_labels_follow_the_images():
    write_celeba(Path("c"))
    columns = ["Bangs", "Young", "Blond_Hair", "Smiling", "Male", "Eyeglasses"]
    write_attributes(Path("c"), columns)
    config = tiny(dataset="celeba", data_dir="c")
    Path("c/img_align_celeba/000009.jpg").write_text("no image")
    labels = classifiers.celeba_labels(config)
    numbers = [
        *range(6, 9),
        *range(10, 31),
        *range(1, 6),
    ]  # the first five are the test set, which comes last
    bits = [columns.index(name) for name in classifiers.CELEBA_ATTRIBUTES]
    expected = [[number >> bit & 1 for bit in bits] for number in numbers]
    np.testing.assert_array_equal(labels, np.array(expected) > 0)
    for missing in (columns[:3], columns[:5]):  # without "Smiling", then without "Eyeglasses" alone
        write_attributes(Path("c"), missing)
        with pytest.raises(dlsgan.UserError, match="has no column .*Eyeglasses"):
            classifiers.celeba_labels(config)
    Path("c/list_attr_celeba.txt").unlink()
    with pytest.raises(dlsgan.UserError, match="list_attr_celeba.txt, or Kaggle's .csv, is needed"):
        classifiers.celeba_labels(config)


@pytest.mark.slow
def test_the_factor_regressor_reads_every_factor():
    assert min(classifiers.factor_regressor(32)[1]["R^2"]) > 0.8


# ---- Figures -----------------------------------------------------------------------------------------------


def test_flips_share_one_mask_a_column():
    model = dlsgan.build(tiny(latent_dim=40)).requires_grad_(False)
    x, _ = dlsgan.cartoon_faces(3, 16)
    z_hat = model.encode(x)
    chance = torch.rand(5, 40, generator=torch.Generator().manual_seed(7))
    flipped = figures.flips(model, z_hat, figures.flip_signs(5, 40, probability=0.1, seed=7))
    for row, column in np.ndindex(3, 5):
        sign = torch.tensor([-1.0 if value < 0.1 else 1.0 for value in chance[column].tolist()])
        expected = model.decode(z_hat[row : row + 1] * sign)[0]
        assert torch.allclose(flipped[row, column], expected, atol=1e-5)
    unchanged = figures.flips(model, z_hat, figures.flip_signs(1, 40, probability=0.0))
    assert torch.equal(unchanged[:, 0], model.reconstruct(x))


def test_the_picture_of_flips_has_a_row_an_image():
    model = dlsgan.build(tiny()).requires_grad_(False)
    x, _ = dlsgan.cartoon_faces(3, 16)
    signs = torch.ones(2, 4)
    picture = figures.flip_picture(model, x, signs)
    both = dlsgan.make_grid(torch.stack((x, model.reconstruct(x)), 1))
    assert picture.shape == (3 * 16, 2 * 16 + 4 + 2 * 16, 3)
    assert np.array_equal(picture[:, :32], both) and (picture[:, 32:36] == 255).all()
    for first in (36, 52):  # signs of 1 change nothing
        assert np.abs(picture[:, first : first + 16].astype(int) - both[:, 16:]).max() <= 1


def test_traversals_meet_at_zero():
    model = dlsgan.build(tiny(latent_dim=40)).requires_grad_(False)
    picture = figures.traversals(model, [3, 8])  # uint8 [2 * 16, 9 * 16, 3]
    middle = slice(4 * 16, 5 * 16)
    assert np.array_equal(picture[:16, middle], picture[16:, middle])  # both pass through z = 0
    z = torch.zeros(1, 40)
    z[0, 8] = -2
    assert np.abs(picture[16:, :16].astype(int) - dlsgan.make_grid([model.decode(z)])).max() <= 1


def test_labels_stand_at_the_middles_of_images():
    assert figures.middles(3, 16).tolist() == [8, 24, 40]


# ---- Command lines -----------------------------------------------------------------------------------------


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


PROGRAMS = sorted(
    module_name(path)
    for path in (ROOT / "toy_experiments").rglob("*.py")
    if '__name__ == "__main__"' in path.read_text() and not path.name.startswith("test_")
)


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_of_each_command_is_its_docstring(name, capsys):
    assert run_command(name, "--help") == 0
    shown = capsys.readouterr().out
    first_line = importlib.import_module(name).__doc__.splitlines()[0]
    assert shown.startswith("usage: ") and first_line in shown
    assert f"python -m {name}" in shown


@pytest.mark.parametrize(
    "command, told",
    [
        ("cartoon_factors 3-0", "unknown run '3-0': choose 2-0, "),
        ("mnist run nonsense", "unknown run 'nonsense': choose scale-0, "),
        ("systems.lia --dataset nonsense", "unknown data set 'nonsense'"),
        ("systems.lia --images 0", "--images 0 is out of range"),
        ("systems.eigengan --dataset flowers", "unknown data set 'flowers'"),
        ("systems.interfacegan --checkpoint nothing", "nothing cannot be read"),
        ("systems.compare run dlsgan nonsense", "unknown method 'nonsense'"),
        ("systems.compare run --dataset mnist nonsense", "unknown method 'nonsense'"),
        ("systems.compare table", "nothing in runs/cartoon-24000"),
        ("systems.invert_by_optimization --checkpoint nowhere", "nowhere cannot be read"),
        ("systems.invert_by_optimization --checkpoint x --steps 0", "--count and --steps must be at least 1"),
        ("tools.align_face gone.png --eyes 1 2 9 2", "gone.png cannot be read"),
        ("tools.export_weights gone command", "gone/checkpoint.pt|gone cannot be read"),
        ("tools.paper_figures --with gone.pt --without none", "gone.pt cannot be read"),
        ("tools.results_table compare gone", "gone.json cannot be read"),
        ("tools.benchmark speed", "unknown section speed: choose floor, "),
        ("shared.distances gone", "gone cannot be read"),
    ],
)
def test_bad_input_to_a_command_gets_one_line(command, told, capsys):
    name, *arguments = command.split()
    assert run_command(f"toy_experiments.{name}", *arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith(f"{name.split('.')[-1]}: ")
    assert re.search(told, error), error


def test_commands_that_the_tree_names_exist():
    """In docstrings, pages, kept results and the tutorial: each `python -m toy_experiments...` names a
    module."""
    named = {}
    rooms = [ROOT.glob("*"), (ROOT / "toy_experiments").rglob("*"), (ROOT / "pretrained").glob("*")]
    for path in itertools.chain(*rooms):
        if path.suffix in (".py", ".md", ".json", ".ipynb", ".toml", ".txt") and path.is_file():
            for module in re.findall(r"python -m\s+(toy_experiments[\w.]*\w)", path.read_text()):
                named.setdefault(module, path)
    missing = {module: str(path) for module, path in named.items() if module not in PROGRAMS}
    missing.pop("toy_experiments.NAME", None)  # of the README
    assert not missing and len(named) > 10


def test_runs_are_kept_in_order_one_a_line():
    path = Path("kept/runs.json")
    assert cli.read_runs(path) == {}
    runs = {"b": {"images": 2}, "a": {"images": [1, 2]}}
    cli.write_runs(path, runs, ("a", "b", "c"))
    assert cli.read_runs(path) == runs and list(cli.read_runs(path)) == ["a", "b"]
    assert path.read_text().splitlines() == ["{", ' "a": {"images": [1, 2]},', ' "b": {"images": 2}', "}"]
