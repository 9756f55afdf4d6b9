"""Tests of write_samples.py, on an untrained model of 8x8 pixels."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dlsgan
from toy_experiments.shared import image_files
from toy_experiments.tools import export_weights, write_samples


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    config = dlsgan.Config(resolution=8, latent_dim=6, channel_base=64, channel_max=8)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "tiny.pt"
    export_weights.write(path, config, 0, dlsgan.build(config).state_dict())
    return path


@pytest.fixture(scope="module")
def model(checkpoint):
    return dlsgan.load_model(checkpoint)


def pixels(path):
    return np.asarray(Image.open(path))


def test_images_are_the_models_samples(model, tmp_path):
    write_samples.write_images(model, 70, 3, tmp_path / "samples")
    files = sorted((tmp_path / "samples").iterdir())
    assert [file.name for file in files] == [f"{i:06d}.png" for i in range(70)]
    x = model.sample(64, seed=3)  # of the same generator, and one batch
    for i in (0, 31, 63):
        expected = ((x[i].clamp(-1, 1).numpy() + 1) * 127.5).round().transpose(1, 2, 0)
        assert np.abs(pixels(files[i]) - expected).max() <= 1
    assert not np.array_equal(pixels(files[64]), pixels(files[0]))  # the second batch is another one


def test_an_image_depends_on_seed_and_number_alone(model, tmp_path):
    write_samples.write_images(model, 3, 3, tmp_path / "few")
    write_samples.write_images(model, 67, 3, tmp_path / "more")
    write_samples.write_images(model, 3, 4, tmp_path / "others")
    for i in range(3):
        few = (tmp_path / "few" / f"{i:06d}.png").read_bytes()
        assert few == (tmp_path / "more" / f"{i:06d}.png").read_bytes()
        assert few != (tmp_path / "others" / f"{i:06d}.png").read_bytes()


def test_no_more_than_a_batch_is_decoded_at_a_time(model, tmp_path, monkeypatch):
    sizes = []
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda z: (sizes.append(len(z)), decode(z))[1])
    write_samples.write_images(model, 130, 0, tmp_path / "samples")
    write_samples.write_walk(model, torch.randn(3, 6), 40, tmp_path / "walk")
    assert sizes == [64, 64, 2] + [64, 17]


def test_a_million_images_sort_by_number(tmp_path):
    names = [image_files.frame_path(tmp_path, i, 10_000_000).name for i in (9, 10, 9_999_999)]
    assert names == ["0000009.png", "0000010.png", "9999999.png"] == sorted(names)


def test_between_turns_by_equal_angles_and_lengths():
    """Against the exponential of the rotation in the plane of a and b, in float64."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 5)) * [[1.0], [3.0]]
    e1 = a / np.linalg.norm(a)
    e2 = b - (b @ e1) * e1
    e2 /= np.linalg.norm(e2)
    angle = np.arccos(b @ e1 / np.linalg.norm(b))
    path = write_samples.between(torch.from_numpy(a), torch.from_numpy(b), 7)
    for i, z in enumerate(path.numpy()):
        length = np.linalg.norm(a) + (np.linalg.norm(b) - np.linalg.norm(a)) * i / 7
        turned = np.cos(angle * i / 7) * e1 + np.sin(angle * i / 7) * e2
        np.testing.assert_allclose(z, length * turned, atol=1e-12)


@pytest.mark.parametrize("factor", [1.0, -1.0, 0.0, 2.5])
def test_between_parallel_vectors_is_a_line(factor):
    a = torch.tensor([1.0, 2.0, -1.0])
    path = write_samples.between(a, factor * a, 4)
    expected = torch.stack([a + (factor - 1) * a * i / 4 for i in range(4)])
    torch.testing.assert_close(path, expected)


def test_a_walk_passes_its_stops(model, tmp_path):
    stops = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    z = write_samples.path_through(stops, 5, loop=False)
    torch.testing.assert_close(z[::5], stops)
    looped = write_samples.path_through(stops, 5, loop=True)
    assert len(z) == 11 and len(looped) == 15
    torch.testing.assert_close(looped[::5], stops)
    assert (looped[-1] - stops[0]).norm() < (stops[2] - stops[0]).norm() / 2  # on its way back
    write_samples.write_walk(model, stops, 5, tmp_path / "walk", zoom=3)
    frames = sorted((tmp_path / "walk").glob("*.png"))
    assert len(frames) == 11
    expected = image_files.to_pillow(model.decode(stops)[1])
    np.testing.assert_array_equal(pixels(frames[5]), np.asarray(expected))
    with Image.open(tmp_path / "walk" / "walk.gif") as gif:
        assert gif.size == (24, 24)
        times = []
        for i in range(gif.n_frames):
            gif.seek(i)
            times.append(gif.info["duration"])
        assert sum(times) == 11 * 50  # equal frames become one that is shown longer


def test_a_grid_shows_the_first_samples_in_reading_order(model, tmp_path):
    write_samples.write_grid(model, 2, 3, 5, tmp_path / "grid.png", zoom=2)
    write_samples.write_images(model, 6, 5, tmp_path / "samples")
    grid = pixels(tmp_path / "grid.png")
    assert grid.shape == (32, 48, 3)
    for i in range(6):
        y = 16 * (i // 3)
        x = 16 * (i % 3)
        np.testing.assert_array_equal(
            grid[y : y + 16 : 2, x : x + 16 : 2], pixels(tmp_path / "samples" / f"{i:06d}.png")
        )


def test_zoom_repeats_pixels():
    x = torch.linspace(-1, 1, 12).view(3, 2, 2)
    small = np.asarray(image_files.to_pillow(x))
    large = np.asarray(image_files.to_pillow(x, 3))
    np.testing.assert_array_equal(large, small.repeat(3, 0).repeat(3, 1))


@pytest.mark.parametrize("command", ["images", "walk", "grid"])
def test_nothing_is_overwritten(checkpoint, tmp_path, command):
    """The command, as a user gives it: one line and exit code 2, and what was there is there."""
    kept = tmp_path / "kept.png"
    kept.write_bytes(b"mine")
    out = kept if command == "grid" else tmp_path
    arguments = [command, str(checkpoint), *(["4"] if command == "images" else []), "--out", str(out)]
    line = [sys.executable, "-m", "toy_experiments.tools.write_samples", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, cwd=Path(dlsgan.__file__).parent)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("write_samples: cannot write")
    assert kept.read_bytes() == b"mine" and list(tmp_path.iterdir()) == [kept]


@pytest.mark.parametrize(
    "fault, given",
    {
        "at least one": {"command": "images", "count": 0},
        "a walk needs two": {"command": "walk", "stops": 1},
        "at least 1": {"command": "walk", "stops": 2, "frames": 0},
        "viewers": {"command": "walk", "stops": 2, "milliseconds": 5},
        "--rows": {"command": "grid", "rows": 0},
    }.items(),
)
def test_impossible_wishes_leave_nothing_behind(checkpoint, tmp_path, fault, given):
    usual = {"codes": None, "frames": 2, "loop": False, "milliseconds": 50, "columns": 2, "zoom": 1}
    with pytest.raises(dlsgan.UserError, match=fault):
        write_samples.main(
            checkpoint=str(checkpoint), device="cpu", out=str(tmp_path / "out"), seed=0, **usual | given
        )
    assert not (tmp_path / "out").exists()
