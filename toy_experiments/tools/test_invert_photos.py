"""Tests of invert_photos.py, on an untrained model of 16x16 pixels that says it knows CelebA."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dlsgan
from toy_experiments.shared import image_files
from toy_experiments.systems import hybrid
from toy_experiments.tools import align_face, export_weights, invert_photos

TINY = {"resolution": 16, "latent_dim": 6, "channel_base": 128, "channel_max": 8}


def make_checkpoint(path, encoder="", **changes):
    config = dlsgan.Config(**TINY | {"dataset": "celeba"} | changes)
    torch.manual_seed(0)
    export_weights.write(path, config, 0, dlsgan.build(config).state_dict(), encoder)
    return str(path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model") / "tiny.pt")


@pytest.fixture
def frame():
    """A face in CelebA's frame: smooth, so that resampling it twice changes little."""
    x = dlsgan.cartoon_faces(1, 218)[0][0, :, :, 20:198]
    return Image.fromarray(dlsgan.to_uint8(x).permute(1, 2, 0).numpy())


def invert(photos, checkpoint, out, eyes=(), refine=0):
    given = {"checkpoint": checkpoint, "refine": refine, "out": str(out)}
    invert_photos.main([str(photo) for photo in photos], eyes=invert_photos.read_eyes(list(eyes)), **given)


def halves(path):
    """The original and the reconstruction in a written picture, [16, 16, 3] each."""
    picture = np.asarray(Image.open(path)).astype(int)
    assert picture.shape == (16, 32, 3)
    return picture[:, :16], picture[:, 16:]


def test_without_eyes_and_steps_it_is_the_models_reconstruction(checkpoint, frame, tmp_path, capsys):
    frame.save(tmp_path / "me.png")
    invert([tmp_path / "me.png"], checkpoint, tmp_path / "out")
    config, _ = dlsgan.read_checkpoint(checkpoint)
    model = dlsgan.load_model(checkpoint)
    x = dlsgan.to_float(dlsgan.read_image(tmp_path / "me.png", config)[None])
    y = model.reconstruct(x)
    original, rebuilt = halves(tmp_path / "out" / "me.png.png")
    assert np.abs(original - dlsgan.to_uint8(x[0]).permute(1, 2, 0).numpy()).max() <= 1
    assert np.abs(rebuilt - dlsgan.to_uint8(y[0]).permute(1, 2, 0).numpy()).max() <= 1
    names, z = image_files.read_codes(tmp_path / "out" / "codes.npz", model)
    assert names == ["me.png"]
    torch.testing.assert_close(z, model.encode(x), atol=1e-5, rtol=1e-5)

    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith("me.png: the paper's encoder: ")
    samples = model.sample(512).clamp(-1, 1)
    error = ((x - y.clamp(-1, 1)) ** 2).mean()
    gain = 10 * torch.log10(((x - samples.mean(0)) ** 2).mean() / error)
    lengths = (model.encode(samples) ** 2).sum(1)
    length = (z**2).sum()
    told = re.search(r" ([-+][\d.]+) dB .* ([\d.]+) times .* (\d+)% of", line)
    assert float(told[1]) == pytest.approx(gain.item(), abs=0.06)
    assert float(told[2]) == pytest.approx((length / lengths.mean()).item(), abs=0.006)
    assert float(told[3]) == pytest.approx(100 * (lengths < length).float().mean().item(), abs=0.6)


def test_steps_bring_a_photo_nearer_and_are_told(checkpoint, frame, tmp_path, capsys):
    frame.save(tmp_path / "me.png")
    errors = []
    for steps in (0, 5, 40):
        out = tmp_path / f"out-{steps}"
        invert([tmp_path / "me.png"], checkpoint, out, refine=steps)
        original, rebuilt = halves(out / "me.png.png")
        errors.append(((original - rebuilt) ** 2).mean())
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 0.9 * errors[0]
    assert "the paper's encoder and 40 steps: " in capsys.readouterr().out


def test_steps_of_one_photo_do_not_depend_on_the_others(checkpoint):
    model = dlsgan.load_model(checkpoint)
    x = dlsgan.cartoon_faces(5, 16)[0]
    refined = hybrid.Refined(model, 10)
    together = refined.encode(x)
    alone = torch.cat([refined.encode(photo) for photo in x.split(1)])
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=1e-3)


def test_eyes_put_a_photo_into_celebas_frame(checkpoint, frame, tmp_path):
    """A turned photo whose eyes are given comes back as the frame it was made from."""
    photo, eyes = align_face.as_photo(frame)
    photo.save(tmp_path / "turned.png")
    frame.save(tmp_path / "frame.png")
    row = ["turned.png", *map(str, eyes)]
    invert([tmp_path / "turned.png", tmp_path / "frame.png"], checkpoint, tmp_path / "with", [row])
    invert([tmp_path / "turned.png"], checkpoint, tmp_path / "without")
    frame_pixels, _ = halves(tmp_path / "with" / "frame.png.png")
    aligned, _ = halves(tmp_path / "with" / "turned.png.png")
    as_it_was, _ = halves(tmp_path / "without" / "turned.png.png")
    assert np.abs(aligned - frame_pixels).mean() < 6
    assert np.abs(as_it_was - frame_pixels).mean() > 20


def test_an_encoder_for_real_images_is_named(frame, tmp_path, capsys):
    text = "an encoder fine-tuned on 320 real images"
    path = make_checkpoint(tmp_path / "real.pt", text)
    frame.save(tmp_path / "me.png")
    invert([tmp_path / "me.png"], path, tmp_path / "out")
    assert "me.png: an encoder fine-tuned on 320 real images: " in capsys.readouterr().out


def test_photos_of_one_name_are_all_kept(checkpoint, frame, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        frame.save(tmp_path / folder / "me.png")
    invert([tmp_path / "a", tmp_path / "b"], checkpoint, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["codes.npz", "me.png-2.png", "me.png.png"]
    assert np.load(tmp_path / "out" / "codes.npz")["names"].tolist() == ["me.png", "me.png-2"]


def test_a_table_of_eyes(tmp_path):
    path = tmp_path / "eyes.csv"
    path.write_text('\ufeffme.jpg,1,2,3.5,4\r\n"from a, trip 2.jpg",5, 6,7,-8\r\n\r\n', "utf-8")
    eyes = invert_photos.read_eyes(invert_photos.read_table(path))
    assert eyes == {"me.jpg": (1, 2, 3.5, 4), "from a, trip 2.jpg": (5, 6, 7, -8)}
    for text in ("me.jpg,1,2,3,4\nyou.jpg,1,2\n", "photo,x,y,x,y\n", "me.jpg 1 2 3 4\n"):
        path.write_text(text)
        with pytest.raises(dlsgan.UserError, match="no file name with four numbers"):
            invert_photos.read_eyes(invert_photos.read_table(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(dlsgan.UserError, match="eyes.csv cannot be read as a table"):
        invert_photos.read_table(path)


def test_the_command_names_bad_photos_and_does_the_others(checkpoint, frame, tmp_path):
    frame.save(tmp_path / "me.png")
    frame.save(tmp_path / "far.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "me.png").read_bytes()[:200])
    line = [sys.executable, "-m", "toy_experiments.tools.invert_photos"]
    line += [str(tmp_path / name) for name in ("broken.png", "missing.png", "far.png", "me.png")]
    line += ["--eyes", "far.png", "1", "1", "9999", "1", "--checkpoint", checkpoint]
    line += ["--out", str(tmp_path / "out")]
    done = subprocess.run(line, capture_output=True, text=True, cwd=Path(dlsgan.__file__).parent)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("invert_photos: 3 of the files cannot be")
    assert all(text in done.stderr for text in ("broken.png", "missing.png", "lie outside of the photo"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["codes.npz", "me.png.png"]


def test_mistakes_are_told_before_anything_is_written(checkpoint, frame, tmp_path):
    frame.save(tmp_path / "me.png")
    photos = [tmp_path / "me.png"]
    out = tmp_path / "out"
    cartoon = make_checkpoint(tmp_path / "cartoon.pt", dataset="cartoon")
    row = ["me.png", "1", "2", "30", "4"]
    with pytest.raises(dlsgan.UserError, match="at least 0"):
        invert(photos, checkpoint, out, refine=-1)
    with pytest.raises(dlsgan.UserError, match="you.png, not among the photos"):
        invert(photos, checkpoint, out, [["you.png", *row[1:]]])
    with pytest.raises(dlsgan.UserError, match="knows no aligned faces, but cartoon"):
        invert(photos, cartoon, out, [row])
    with pytest.raises(dlsgan.UserError, match="given twice"):
        invert(photos, checkpoint, out, [row, row])
    for bad in (row[:4], [*row, "5"], ["me.png", "1", "2", "three", "4"]):
        with pytest.raises(dlsgan.UserError, match="no file name with four numbers"):
            invert(photos, checkpoint, out, [bad])
    assert not out.exists()
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(dlsgan.UserError, match="there are files in it"):
        invert(photos, checkpoint, out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
