"""Tests of encode_photos.py, on untrained models of 8x8 pixels."""

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dlsgan
from toy_experiments.shared import image_files
from toy_experiments.tools import encode_photos, export_weights, write_samples


def make_checkpoint(path, seed, **changes):
    config = dlsgan.Config(
        **{"resolution": 8, "latent_dim": 6, "channel_base": 64, "channel_max": 8} | changes
    )
    torch.manual_seed(seed)
    model = dlsgan.build(config)
    model.latent_scale.v.uniform_(0.1, 1)
    export_weights.write(path, config, 0, model.state_dict())
    return str(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model") / "tiny.pt", 0)


@pytest.fixture
def photos(tmp_path):
    """Five photos of other sizes than 8x8, two of them of one name in two folders."""
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "below/a.png", "below/deeper/c.png", "häuser 家.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 13, 3), np.uint8)).save(path)
    return tmp_path / "photos"


NAMES = ["a.png", "b.jpg", "below/a.png", "below/deeper/c.png", "häuser 家.png"]


def test_z_is_the_encoders_of_each_photo_by_its_name(checkpoint, photos, tmp_path):
    encode_photos.encode(checkpoint, str(photos), tmp_path / "codes.npz")
    codes = np.load(tmp_path / "codes.npz")
    model = dlsgan.load_model(checkpoint)
    config, _ = dlsgan.read_checkpoint(checkpoint)
    assert sorted(codes["names"].tolist()) == sorted(NAMES)
    assert codes["z"].dtype == np.float32 and codes["z"].shape == (5, 6)
    for name, z in zip(codes["names"].tolist(), codes["z"], strict=True):
        x = dlsgan.to_float(dlsgan.read_image(str(photos / name), config)[None])
        np.testing.assert_allclose(z, model.encode(x)[0], atol=1e-5)
    np.testing.assert_allclose(codes["s"], model.latent_scale.scale(), atol=1e-6)
    assert codes["checkpoint"].item() == "tiny.pt"
    with zipfile.ZipFile(tmp_path / "codes.npz") as file:  # numbers and text, no pickle
        for entry in file.infolist():
            assert b"'O'" not in file.read(entry)[:128]


def test_there_and_back_is_a_reconstruction(checkpoint, photos, tmp_path):
    encode_photos.encode(checkpoint, str(photos), tmp_path / "codes.npz")
    encode_photos.decode(checkpoint, tmp_path / "codes.npz", tmp_path / "decoded")
    model = dlsgan.load_model(checkpoint)
    config, _ = dlsgan.read_checkpoint(checkpoint)
    found = [path.relative_to(tmp_path / "decoded") for path in (tmp_path / "decoded").rglob("*.png")]
    assert sorted(path.as_posix() for path in found) == sorted(f"{name}.png" for name in NAMES)
    for name in NAMES:
        x = dlsgan.to_float(dlsgan.read_image(str(photos / name), config)[None])
        expected = dlsgan.to_uint8(model.reconstruct(x)[0]).permute(1, 2, 0).numpy().astype(int)
        decoded = np.asarray(Image.open(tmp_path / "decoded" / f"{name}.png"))
        assert np.abs(decoded - expected).max() <= 1


def test_more_photos_than_a_batch_keep_their_order(checkpoint, tmp_path):
    model = dlsgan.load_model(checkpoint)
    write_samples.write_images(model, 70, 0, tmp_path / "photos")
    encode_photos.encode(checkpoint, str(tmp_path / "photos"), tmp_path / "codes.npz")
    names, z = image_files.read_codes(tmp_path / "codes.npz", model)
    assert names == [f"{i:06d}.png" for i in range(70)]
    for i in (0, 63, 64, 69):
        x = dlsgan.to_float(np.asarray(Image.open(tmp_path / "photos" / names[i])).transpose(2, 0, 1)[None])
        torch.testing.assert_close(z[i], model.encode(x)[0], atol=1e-5, rtol=1e-5)
    encode_photos.decode(checkpoint, tmp_path / "codes.npz", tmp_path / "decoded")
    last = np.asarray(Image.open(tmp_path / "decoded" / "000069.png.png")).astype(int)
    expected = dlsgan.to_uint8(model.decode(z[69:])[0]).permute(1, 2, 0).numpy()
    assert np.abs(last - expected).max() <= 1


def test_bad_photos_are_named_and_the_others_done(checkpoint, photos, tmp_path):
    """The command, as a user gives it."""
    (photos / "broken.jpg").write_bytes((photos / "b.jpg").read_bytes()[:300])
    (photos / "text.png").write_text("no image")
    arguments = ["encode", checkpoint, str(photos), "--out", str(tmp_path / "codes.npz")]
    line = [sys.executable, "-m", "toy_experiments.tools.encode_photos", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, cwd=Path(dlsgan.__file__).parent)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("encode_photos: 2 of the files cannot be")
    assert "broken.jpg" in done.stderr and "text.png" in done.stderr and "a.png" not in done.stderr
    assert "5 photos" in done.stdout
    assert sorted(np.load(tmp_path / "codes.npz")["names"].tolist()) == sorted(NAMES)


def test_only_bad_photos_write_no_file(checkpoint, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "text.png").write_text("no image")
    with pytest.raises(dlsgan.UserError, match="text.png"):
        encode_photos.encode(checkpoint, str(tmp_path / "photos"), tmp_path / "codes.npz")
    assert not (tmp_path / "codes.npz").exists()


def test_codes_of_another_model_are_refused(checkpoint, photos, tmp_path):
    encode_photos.encode(checkpoint, str(photos), tmp_path / "codes.npz")
    other = make_checkpoint(tmp_path / "other.pt", 1)
    larger = make_checkpoint(tmp_path / "larger.pt", 1, latent_dim=7)
    for model, fault in ((other, "scale is that of tiny.pt"), (larger, "d = 7")):
        with pytest.raises(dlsgan.UserError, match=fault):
            encode_photos.decode(model, tmp_path / "codes.npz", tmp_path / "decoded")
    assert not (tmp_path / "decoded").exists()


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "", "C:/x", "..\\x"])
def test_names_that_lead_out_of_the_folder_are_refused(checkpoint, tmp_path, name):
    model = dlsgan.load_model(checkpoint)
    s = model.latent_scale.scale()
    image_files.write_codes(tmp_path / "codes.npz", [name], torch.zeros(1, 6), s, "tiny.pt")
    with pytest.raises(dlsgan.UserError, match="does not lie in the folder"):
        encode_photos.decode(checkpoint, tmp_path / "codes.npz", tmp_path / "decoded")
    assert not (tmp_path / "decoded").exists()


def test_files_that_hold_no_codes_are_one_line(checkpoint, tmp_path):
    s = dlsgan.load_model(checkpoint).latent_scale.scale().numpy()
    good = {"names": np.array(["a"]), "z": np.zeros((1, 6), np.float32), "s": s, "checkpoint": "tiny.pt"}
    nan = np.full((1, 6), np.nan, np.float32)
    bad = {"two names": {"names": np.array(["a", "b"])}, "nan": {"z": nan}, "flat": {"z": np.zeros(6)}}
    bad |= {"pickle": {"names": np.array(["a", None])}, "text": {"z": np.array("z")}, "no s": {"s": None}}
    for fault, change in bad.items():
        np.savez(tmp_path / f"{fault}.npz", **good | change)
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "letter.npz").write_text("Dear Sir")
    np.save(tmp_path / "array.npz", np.zeros(3))
    files = [path for path in tmp_path.iterdir() if path.is_file()]
    assert len(files) >= 9
    for path in files:
        with pytest.raises(dlsgan.UserError, match="holds no latent vectors of this model|cannot be read"):
            encode_photos.decode(checkpoint, path, tmp_path / "decoded")


def test_nothing_is_overwritten(checkpoint, photos, tmp_path):
    codes = tmp_path / "codes.npz"
    encode_photos.encode(checkpoint, str(photos), codes)
    before = codes.read_bytes()
    with pytest.raises(dlsgan.UserError, match="nothing is overwritten"):
        encode_photos.encode(checkpoint, str(photos), codes)
    with pytest.raises(dlsgan.UserError, match="there are files in it"):
        encode_photos.decode(checkpoint, codes, photos)
    assert codes.read_bytes() == before
    with pytest.raises(dlsgan.UserError, match="no folder"):
        encode_photos.encode(checkpoint, str(codes), tmp_path / "new.npz")
