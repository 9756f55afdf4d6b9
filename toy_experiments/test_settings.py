"""Tests of the study of settings: its judges against cases with known answers, and tiny runs end to end."""

import gzip
import io
import json
import signal
import struct
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import dlsgan
from conftest import perfect_model, write_attributes, write_celeba
from toy_experiments import settings
from toy_experiments.shared import budget, classifiers, judges

ROOT = Path(__file__).parents[1]
TINY = {"channel_base": 64, "channel_max": 4, "latent_dim": 12, "batch_size": 4, "images": 32}


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The study in an empty folder, with small networks and judges that learn for a few steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(settings, "RESULTS", tmp_path / "results")
    for key in ("channel_base", "channel_max", "latent_dim", "batch_size"):
        monkeypatch.setitem(settings.BASE, key, TINY[key])
    monkeypatch.setattr(dlsgan, "load_cartoon", few_faces)
    monkeypatch.setitem(dlsgan.LOADERS, "cartoon", few_faces)
    monkeypatch.setattr(settings, "images_within", lambda minutes, config, path: 32)
    monkeypatch.setattr(judges, "factors", partial(judges.factors, n=90))
    train = classifiers.train_judge

    def short(examples, loss, resolution, outputs, steps, seed):
        return train(examples, loss, resolution, outputs, 2, seed)

    monkeypatch.setattr(classifiers, "train_judge", short)
    return tmp_path


def few_faces(config):
    images = dlsgan.to_uint8(dlsgan.cartoon_faces(120, config.resolution)[0]).numpy()
    return images[:60], images[60:]


class Bars(nn.Module):
    """Reads digits that are drawn as a white column: the digit is the column's place; sure if it is white."""

    def forward(self, x):
        return 10 * x[:, 0, 0, :10]


def drawn_digits(labels):
    """A digit as a white column in black [N, 1, 32, 32], which Bars reads for certain."""
    x = -torch.ones(len(labels), 1, 32, 32)
    x[torch.arange(len(labels)), 0, :, labels] = 1
    return x


class Album(nn.Module):
    """A generator that returns the images of an album by the first latent, and a discriminator that knows
    which image it sees. `order` says which image is returned for which."""

    def __init__(self, images, order):
        super().__init__()
        self.images = images
        self.order = order

    def forward(self, z_scaled):
        return self.images[self.order[z_scaled[:, 0].long()]]


class Index(nn.Module):
    def __init__(self, images):
        super().__init__()
        self.images = images

    def forward(self, x):
        place = torch.cdist(x.flatten(1), self.images.flatten(1)).argmin(1)
        return torch.zeros(len(x)), place[:, None].float()


def album(images, order, monkeypatch):
    """A model that reconstructs image i as image order[i], and whose samples are all images in turn."""
    model = dlsgan.DLSGAN(Album(images, order), Index(images), dlsgan.LatentScale(1, enabled=False))
    monkeypatch.setattr(judges, "samples_like", lambda model, test: model.generator.images[: len(test)])
    return model


def test_digits_of_a_model_that_returns_the_test_images(monkeypatch):
    labels = torch.arange(200) % 10
    test = drawn_digits(labels)
    test[::4] *= 0.1  # too faint to be read for certain: a quarter
    test += 0.001 * torch.randn(test.shape, generator=torch.Generator().manual_seed(0))  # all are different
    result = judges.digits(album(test, torch.arange(200), monkeypatch), Bars(), test)
    assert result["readable"] == result["readable_test"] == pytest.approx(0.75)
    assert result["classes"] == 10
    assert result["kept"] == 1.0


def test_digits_of_shuffled_reconstructions(monkeypatch):
    labels = torch.arange(1000) % 10
    noise = 0.001 * torch.randn(1000, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    test = drawn_digits(labels) + noise
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(1))
    result = judges.digits(album(test, order, monkeypatch), Bars(), test)
    same = (labels == labels[order]).float().mean().item()
    assert result["kept"] == pytest.approx(same)
    assert 0.05 < result["kept"] < 0.15
    assert result["readable"] == 1.0


def test_classes_that_are_too_many_or_too_few(monkeypatch):
    """Of 100 samples 30 are zeros, 4 are ones, and the others share 66: two classes are out of 5 to 15%."""
    labels = torch.cat([torch.zeros(30), torch.ones(4), 2 + torch.arange(66) % 8]).long()
    test = drawn_digits(labels)
    assert judges.digits(album(test, torch.arange(100), monkeypatch), Bars(), test)["classes"] == 8


def test_ridge_scores():
    """Codes that contain a factor know it, a factor that is independent of them they do not."""
    rng = torch.Generator().manual_seed(0)
    u = torch.randn(3000, 3, generator=rng)
    noise = torch.randn(3000, generator=rng)
    codes = torch.stack([u[:, 0], u[:, 1] + noise], 1) @ torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    known, half, unknown = judges.ridge_scores(codes, u)
    assert known == pytest.approx(1, abs=1e-4)
    assert half == pytest.approx(0.5, abs=0.05)  # var(u) / (var(u) + var(noise))
    assert abs(unknown) < 0.02
    assert judges.ridge_scores(torch.zeros(30, 0), u[:30]) == [0.0, 0.0, 0.0]


class Reader(nn.Module):
    """Reads the numbers that stand in the first pixels."""

    def forward(self, x):
        return x[:, 0, 0, :2]


def test_reading_scores():
    u = torch.rand(4000, 2, generator=torch.Generator().manual_seed(0)) - 0.5
    x = torch.zeros(4000, 1, 2, 2)
    x[:, 0, 0] = u
    assert judges.reading_scores(Reader(), x, u) == pytest.approx([1, 1])
    x[:, 0, 0, 1] = 0  # always its mean
    exact, mean = judges.reading_scores(Reader(), x, u)
    assert exact == pytest.approx(1)
    assert mean == pytest.approx(0, abs=0.01)


class Copy(nn.Module):
    """An encoder whose first outputs are those numbers of an image that stand in its first pixels."""

    def forward(self, x):
        return torch.zeros(len(x)), x[:, 0, 0, :4]


class Write(nn.Module):
    def forward(self, z_scaled):
        x = torch.zeros(len(z_scaled), 1, 4, 4)
        x[:, 0, 0] = z_scaled * torch.tensor([0.9, 0.8, 0.1, 0.0])
        return x


def test_live_latents_are_those_above_a_half():
    """v = E[z_hat^2] of generated images, whose pixels are cut at 1: about 0.46 and 0.41 here, and near 0."""
    model = dlsgan.DLSGAN(Write(), Copy(), dlsgan.LatentScale(4, enabled=False))
    x = torch.rand(7, 1, 4, 4)
    assert judges.live_latents(model, x).shape == (7, 0)
    model.generator.forward = lambda z: 10 * Write()(z)  # cut to -1 or 1 mostly, but for the last one
    seen = judges.live_latents(model, x)
    assert torch.equal(seen, x[:, 0, 0, :3])


def test_attributes_are_recognised_as_well_as_the_model_keeps_them():
    """Images are the latent vectors, attributes the signs of the first three: a perfect model keeps them all,
    one that forgets the second loses it in codes and pictures, and shuffled labels tell nothing."""
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.uniform(-1, 1, (3000, 1, 3, 3))).float()
    labels = x.flatten(1)[:, :3].numpy() > 0
    keep = torch.ones(9)
    model = perfect_model(3)
    model.generator = nn.Sequential(nn.Unflatten(1, (1, 3, 3)))
    model.discriminator.forward = lambda images: (images.flatten(1)[:, 0], images.flatten(1) * keep)

    def found(labels):
        halves = (x[:2000], labels[:2000], x[2000:], labels[2000:])
        judge = lambda images: images.flatten(1)[:, :3]  # noqa: E731
        return judges.recognised(model, judges.Material("abc", judge, 0.0, {}, *halves))

    for scores in found(labels).values():
        assert min(scores.values()) > 0.97
    keep[1] = 0
    forgetful = found(labels)
    assert min(forgetful["from the images"].values()) == 1
    for source in ("from z_hat", "from reconstructions"):
        assert forgetful[source]["b"] == pytest.approx(0.5, abs=0.05) and forgetful[source]["a"] > 0.97
    shuffled = found(rng.permutation(labels))
    assert all(abs(score - 0.5) < 0.06 for scores in shuffled.values() for score in scores.values())


def write_digits(folder, n=90):
    """Files in MNIST's format: a digit is a column of white pixels at its place."""
    folder.mkdir()
    for part, count in (("train", n), ("t10k", n // 2)):
        labels = np.arange(count, dtype=np.uint8) % 10
        images = np.zeros((count, 28, 28), np.uint8)
        images[np.arange(count), :, 4 + 2 * labels] = 255
        data = struct.pack(">4I", 0x803, *images.shape) + images.tobytes()
        (folder / f"{part}-images-idx3-ubyte").write_bytes(data)
        data = struct.pack(">2I", 0x801, count) + labels.tobytes()
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(data))


def test_classifier_learns_and_is_kept(tmp_path):
    write_digits(tmp_path / "digits")
    config = dlsgan.Config(dataset="mnist", data_dir=str(tmp_path / "digits"))
    network, accuracy = judges.digit_classifier(tmp_path, config, steps=60)
    assert accuracy == 1.0  # ten patterns that never vary
    x = dlsgan.to_float(dlsgan.load_mnist(config)[1][:10])
    assert judges.probabilities(network, x).sum(1).tolist() == pytest.approx([1] * 10)
    again, _ = judges.digit_classifier(tmp_path, config, steps=0)  # read from the file
    assert torch.equal(judges.probabilities(network, x), judges.probabilities(again, x))


def test_labels_that_are_none(tmp_path):
    write_digits(tmp_path / "digits")
    path = tmp_path / "digits" / "train-labels-idx1-ubyte.gz"
    assert judges.mnist_labels(str(tmp_path / "digits"))[0][:12].tolist() == [*range(10), 0, 1]
    for data in (b"", struct.pack(">2I", 0x803, 1) + b"\0", struct.pack(">2I", 0x801, 2) + b"\0"):
        path.write_bytes(data)
        with pytest.raises(dlsgan.UserError, match="IDX file of labels"):
            judges.read_labels(path)
    path.write_bytes(struct.pack(">2I", 0x801, 1) + b"\x0b")
    with pytest.raises(dlsgan.UserError, match="larger than 9"):
        judges.read_labels(path)


def test_labels_are_found_where_the_images_are(tmp_path, monkeypatch):
    """In torchvision's layout, beside other copies, and nowhere."""
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.parent.mkdir(parents=True)
    write_digits(raw)
    for root in (tmp_path / "data", tmp_path / "data" / "mnist"):
        labels, test_labels = judges.mnist_labels(str(root))
        assert labels.tolist() == [i % 10 for i in range(90)] and len(test_labels) == 45
        config = dlsgan.Config(dataset="mnist", data_dir=str(root))
        assert len(dlsgan.load_mnist(config)[0]) == len(labels)
    packed = raw / "train-labels-idx1-ubyte.gz"
    plain = gzip.decompress(packed.read_bytes())
    (raw / "train-labels-idx1-ubyte").write_bytes(plain)
    assert judges.mnist_labels(str(raw))[0].tolist() == labels.tolist()
    (raw / "train-labels-idx1-ubyte").write_bytes(plain[:-1] + b"\5")
    with pytest.raises(dlsgan.UserError, match="train-labels-idx1-ubyte.gz differ: remove one"):
        judges.mnist_labels(str(raw))
    monkeypatch.setattr(judges.urllib.request, "urlopen", lambda *_, **__: io.BytesIO(packed.read_bytes()))
    with pytest.raises(dlsgan.UserError, match="empty/train-labels.* cannot be downloaded .*wrong checksum"):
        judges.mnist_labels("empty")


def test_names_mean_changes_from_the_base():
    base = settings.configure("base")
    assert (base.encoder_weight, base.latent_dim, base.batch_size, base.scale_window) == (3, 64, 8, 400)
    both = settings.configure("lambda-1+d-128+seed-2")
    assert (both.encoder_weight, both.latent_dim, both.seed, both.lr) == (1, 128, 2, base.lr)
    assert settings.configure("mnist", "somewhere").data_dir == "somewhere"
    assert not settings.configure("no-scale").latent_scale
    for name in settings.LIST:
        settings.configure(name)
    with pytest.raises(dlsgan.UserError, match="unknown change 'lambda-7'"):
        settings.configure("base+lambda-7")


def test_faces_of_celeba_are_judged_by_their_attributes(tiny):
    write_celeba(Path("c"), n=100, test=20)
    write_attributes(Path("c"), list(classifiers.CELEBA_ATTRIBUTES))
    config = dlsgan.Config(**TINY | {"resolution": 16, "dataset": "celeba", "data_dir": "c", "out": "run"})
    list(dlsgan.train(config))
    result = settings.judge("run")
    assert result["swd_ratio"] > 0
    assert result["recognised"]["from z_hat"].keys() == set(classifiers.CELEBA_ATTRIBUTES)


def test_budget_is_time_over_speed(tmp_path, monkeypatch):
    config = dlsgan.Config(**TINY)
    assert budget.seconds_per_image(config, steps=16) > 0
    monkeypatch.setattr(budget, "seconds_per_image", lambda config: 0.01)
    path = tmp_path / "speeds.json"
    assert budget.images_within(0.5, config, path) == 3000  # 30 s at 100 images a second, in fours
    monkeypatch.setattr(budget, "seconds_per_image", lambda config: 0.02)
    assert budget.images_within(0.5, config, path) == 3000  # kept
    config.batch_size = 16
    assert budget.images_within(0.5, config, path) == 1504  # another cost; 94 steps of 16


def test_runs_are_kept_resumed_and_told(tiny, capsys):
    results = settings.main("run", ("base", "no-scale"), 0.5)
    assert list(results) == ["base, 0.5 min", "no-scale, 0.5 min"]
    kept = json.loads((tiny / "results/settings.json").read_text())
    r = kept["base, 0.5 min"]
    assert r["command"] == "python -m toy_experiments.settings run base --minutes 0.5"
    assert r["images"] == 32
    assert r["curves"][-1]["images"] == 32
    m = r["measures"]
    assert len(m["r2_latents"]) == len(m["r2_reconstructions"]) == len(m["r2_faces"]) == 8
    assert m["v"] == sorted(m["v"], reverse=True)
    assert m["swd_ratio"] == pytest.approx(m["swd"] / m["swd_of_test_images"], rel=1e-3)
    checkpoint = tiny / "runs/settings/0.5-minutes/base/checkpoint.pt"
    before = checkpoint.read_bytes()
    again = settings.main("run", ("base",), 0.5)["base, 0.5 min"]
    assert checkpoint.read_bytes() == before  # a finished run is not trained again
    assert again["measures"] == m

    capsys.readouterr()
    settings.main("figure")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| run | minutes | images | L_enc | live |")
    assert len(lines) == 4
    minutes = f"{r['processor_minutes']:.1f}"
    assert f"| base | {minutes} | 32 | {m['l_enc']:.2f} | {m['active']} |" in lines[2]
    assert len({line.count("|") for line in lines}) == 1
    assert (tiny / "results/settings.png").exists()
    assert not (tiny / "results/settings_mnist.png").exists()

    settings.main("judge", (str(checkpoint),))
    told = capsys.readouterr().out
    assert f"l_enc                 {m['l_enc']:.4g}" in told
    assert "skin tone" in told


@pytest.mark.parametrize("kept", [True, False])
def test_a_run_stopped_before_its_first_evaluation_goes_on(tiny, monkeypatch, kept):
    """Without its clock, too, as after a power cut."""
    step = dlsgan.train_step
    taken = []

    def stopped_at_the_third(*arguments):
        taken.append(1)
        if len(taken) == 3:
            signal.raise_signal(signal.SIGINT)
        return step(*arguments)

    monkeypatch.setattr(dlsgan, "train_step", stopped_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        settings.train("base", 0.5)
    out = tiny / "runs/settings/0.5-minutes/base"
    state = dlsgan.read_checkpoint(out)[1]
    assert state["step"] == 3 and "l_enc" not in state["history"].replace("l_enc_train", "")
    clock = out / "processor.json"
    before = 0
    assert settings.processor_seconds(out) > 0
    if kept:
        before = 1000
        clock.write_text('{"seconds": 1000}')
    else:
        clock.unlink()
    settings.train("base", 0.5)
    assert len(taken) == 8
    total = settings.processor_seconds(out)
    assert before < total < before + 600
    settings.train("base", 0.5)  # finished: reading the images takes no time of the run
    assert settings.processor_seconds(out) == total


def test_mnist_runs(tiny, capsys):
    write_digits(tiny / "digits")
    results = settings.main("run", ("mnist",), 0.5, "digits")
    m = results["mnist, 0.5 min"]["measures"]
    assert 0 <= m["kept"] <= 1
    assert "r2_latents" not in m
    assert "classifier_accuracy" in m
    capsys.readouterr()
    settings.main("figure")
    assert capsys.readouterr().out.splitlines()[0].endswith("| readable / test digits | classes | kept |")
    assert (tiny / "results/settings_mnist.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "lambda-7"], "unknown change 'lambda-7'"),
        (["run", "base", "--minutes", "0"], "--minutes 0.0 is out of range"),
        (["judge", "nothing"], "nothing cannot be read"),
        (["judge"], "judge needs one checkpoint"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path):
    command = [sys.executable, "-m", "toy_experiments.settings", *arguments]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith("settings: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
