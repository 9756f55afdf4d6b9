"""Tests of explore.py: of its page, read by a parser and by Pillow, not by a browser."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

import dlsgan
from conftest import ROOT, page_text, run_command
from toy_experiments.tools import explore, export_weights

VOID = {"meta", "link", "input", "img", "br"}  # elements that have no end


class Page(HTMLParser):
    """All elements of a page as (tag, attributes), its text, and whether each end fits its start."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.open = []
        self.words = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words += data.split()

    def all(self, tag, **wanted):
        found = [attributes for name, attributes in self.elements if name == tag]
        return [x for x in found if all(x.get(key) == value for key, value in wanted.items())]


def write_model(path, v, resolution=8, **settings):
    """An untrained model whose v is given."""
    config = dlsgan.Config(
        resolution=resolution, latent_dim=len(v), channel_base=64, channel_max=8, mapping_layers=1, **settings
    )
    torch.manual_seed(0)
    model = dlsgan.build(config)
    model.latent_scale.v.copy_(torch.tensor(v))
    export_weights.write(path, config, 0, model.state_dict())
    return str(path)


@pytest.fixture
def checkpoints(tmp_path):
    scaled = write_model(tmp_path / "scaled.pt", [0.7, 0.0, 0.9, 0.3, 0.8])
    plain = write_model(tmp_path / "plain.pt", [0.2, 0.3, 0.1, 0.4, 0.15], latent_scale=False)
    return scaled, plain


def read(path):
    """The page's panels as (settings, frames uint8 [faces, sliders, positions, H, W, 3]), and the page."""
    page = Page(path.read_text(encoding="utf-8"))
    panels = []
    images = page.all("img", **{"class": "sprite"})
    for part, image in zip(page.all("section", **{"class": "model"}), images, strict=True):
        settings = json.loads(part["data-panel"])
        head, data = image["src"].split(",")
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        assert head in ("data:image/png;base64", "data:image/jpeg;base64")
        size = settings["size"]
        rows = picture.reshape(-1, size, picture.shape[1] // size, size, 3).swapaxes(1, 2)
        panels.append((settings, rows.reshape(-1, settings["sliders"], *rows.shape[1:])))
    return panels, page


def changes(checkpoint, names):
    """Mean change of 64 random images when one element of z goes from one end of its slider to the other, by
    a loop over images."""
    model = dlsgan.load_model(checkpoint)
    latents = torch.randn(64, len(model.latent_scale.v), generator=torch.Generator().manual_seed(0))
    result = []
    for name in names:
        differences = []
        for z in latents:
            ends = z.repeat(2, 1)
            ends[:, int(name[1:])] = torch.tensor([-2.5, 2.5])
            low, high = (model.decode(ends).clamp(-1, 1) + 1) * 127.5
            differences.append((high - low).abs().mean().item())
        result.append(np.mean(differences))
    return result


def test_the_frames_are_what_the_model_makes_at_each_position(checkpoints, tmp_path):
    """Each image against one decoded alone. All sliders at their start show the same picture."""
    out = tmp_path / "page.html"
    explore.main(*checkpoints, str(out), faces=3, positions=6, seed=7)
    panels, _ = read(out)
    order = ([2, 4, 0, 1], [3, 1, 0, 2])  # three live ones, largest v first, and the one of smallest v
    grid = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5]
    for checkpoint, (settings, frames), dimensions in zip(checkpoints, panels, order, strict=True):
        model = dlsgan.load_model(checkpoint)
        assert settings["names"] == [f"z{i}" for i in dimensions]
        assert settings["values"] == grid
        assert frames.shape == (3, 4, 6, 8, 8, 3)
        z = torch.randn(3, 5, generator=torch.Generator().manual_seed(7))
        for face in range(3):
            for i in dimensions:
                z[face, i] = min(grid, key=lambda value: abs(value - z[face, i].item()))  # noqa: B023
            for k, i in enumerate(dimensions):
                assert grid[settings["start"][face][k]] == z[face, i]
                for position, value in enumerate(grid):
                    one = z[face].clone()
                    one[i] = value
                    x = (model.decode(one[None])[0].clamp(-1, 1).permute(1, 2, 0).numpy() + 1) * 127.5
                    assert np.abs(frames[face, k, position] - x).max() <= 1
            starts = [frames[face, k, settings["start"][face][k]] for k in range(4)]
            assert all(np.abs(start.astype(int) - starts[0]).max() <= 1 for start in starts)


def test_live_sliders_change_the_picture_and_the_dead_one_does_not(checkpoints, tmp_path):
    out = tmp_path / "page.html"
    explore.main(*checkpoints, str(out))
    ((settings, scaled), (settings_plain, plain)), page = read(out)
    for frames in (scaled[:, :-1], plain):
        for strip in frames.reshape(-1, *frames.shape[2:]):
            assert all((a != b).any() for a, b in zip(strip, strip[1:], strict=False))
    assert (scaled[:, -1] == scaled[:, -1, :1]).all()
    text = " ".join(page.words)
    assert "3 of 5 dimensions are live" in text and "None of 5 dimensions is live" in text
    moves = [changes(checkpoints[k], x["names"]) for k, x in enumerate((settings, settings_plain))]
    for change in [*moves[0], *moves[1]]:
        assert f"changes {change:.1f}" in text
    low, *_, high = sorted(moves[0][:-1])
    assert f"Each of them changes the picture by {explore.levels([low, high])} grey levels" in text
    assert "Live dimensions" in text and "Dead dimension" in text and "Smallest v" in text


@pytest.mark.parametrize("beside", [False, True])
def test_the_page_is_whole_and_loads_nothing(checkpoints, tmp_path, beside):
    out = tmp_path / "page.html"
    explore.main(checkpoints[0], checkpoints[1] if beside else None, str(out), faces=2)
    text = out.read_text(encoding="utf-8")
    panels, page = read(out)
    models = 1 + beside
    assert len(panels) == models and not page.open and len(text.encode()) <= 3_000_000
    words = re.sub("base64,[A-Za-z0-9+/=]+", "", text)
    assert "http:" not in words and "https:" not in words and "//" not in words.split("<script>")[0]
    assert "@" not in words.replace("@media", "")  # no placeholder is left
    addresses = [x.get("src", x.get("href")) for _, x in page.elements if "src" in x or "href" in x]
    assert addresses and all(address.startswith("data:") for address in addresses)
    assert page.all("html", lang="en") and page.all("meta", name="viewport")
    assert "prefers-color-scheme: dark" in text
    ids = [x["id"] for _, x in page.elements if "id" in x]
    assert len(set(ids)) == len(ids)
    sliders = page.all("input", type="range")
    labels = [label.get("for") for label in page.all("label")]
    assert len(sliders) == 4 * models and all(slider["id"] in labels for slider in sliders)
    assert {(x["min"], x["max"], x["step"]) for x in sliders} == {("-2.5", "2.5", "0.5")}
    starts = [settings["values"][k] for settings, _ in panels for k in settings["start"][0]]
    assert [float(x["value"]) for x in sliders] == starts
    groups = {x["name"] for x in page.all("input", type="radio")}
    assert len(groups) == models and len(page.all("input", type="radio")) == 2 * models
    assert len(page.all("button", type="button")) == models


def test_the_shipped_model(tmp_path):
    """The claim of the docstring, on the trained cartoon faces, and the README's numbers of them."""
    out = tmp_path / "page.html"
    explore.main(str(ROOT / "pretrained/cartoon.pt"), None, str(out))
    (((settings, _),), page) = read(out)
    *live, dead = changes(ROOT / "pretrained/cartoon.pt", settings["names"])
    assert len(live) == (dlsgan.load_pretrained("cartoon").latent_scale.v > 0.5).sum()
    assert min(live) > 10 and dead < 1
    text = f"by {min(live):.0f} to {max(live):.0f} grey levels of 255 from end to end"
    assert f"{text}, the dead one by {dead:.1f}" in page_text("toy_experiments/README.md")
    assert "which you will not see" in " ".join(page.words)


def test_a_second_model_need_not_be_alike(tmp_path):
    """Grey, larger, of fewer dimensions than the first has live ones, and scaled as well."""
    first = write_model(tmp_path / "first.pt", [0.9, 0.8, 0.7, 0.1])
    second = write_model(tmp_path / "a<b.pt", [0.1, 0.9], resolution=16, dataset="mnist")
    out = tmp_path / "page.html"
    explore.main(first, second, str(out), faces=1, positions=6)
    panels, page = read(out)
    assert [frames.shape for _, frames in panels] == [(1, 4, 6, 8, 8, 3), (1, 2, 6, 16, 16, 3)]
    grey = panels[1][1]
    assert (grey[..., :1] == grey).all()
    assert "With the latent scale: a<b" in " ".join(page.words)


def test_images_become_jpeg_when_png_is_too_large(checkpoints, tmp_path, monkeypatch):
    out = tmp_path / "page.html"
    explore.main(*checkpoints, str(out), seed=1)
    exact, _ = read(out)
    size = out.stat().st_size
    assert "image/png" in out.read_text(encoding="utf-8")
    monkeypatch.setattr(explore, "MOST_BYTES", size - 1)
    smaller = tmp_path / "smaller.html"
    explore.main(*checkpoints, str(smaller), seed=1)
    assert "image/jpeg" in smaller.read_text(encoding="utf-8") and smaller.stat().st_size < size
    rounded, _ = read(smaller)
    for (_, a), (_, b) in zip(exact, rounded, strict=True):
        assert np.abs(a.astype(int) - b).mean() < 5
    assert (rounded[0][1][:, -1] == rounded[0][1][:, -1, :1]).all()  # the dead one stays still
    monkeypatch.setattr(explore, "MOST_BYTES", 1000)
    with pytest.raises(dlsgan.UserError, match="fewer --faces"):
        explore.main(*checkpoints, str(tmp_path / "none.html"))
    assert not (tmp_path / "none.html").exists()


@pytest.mark.parametrize(
    "fault, arguments",
    {
        "gone.pt cannot be read": ["--checkpoint", "gone.pt"],
        "other.pt cannot be read": ["--checkpoint", "{model}", "--beside", "other.pt"],
        "--faces 0 is not between": ["--checkpoint", "{model}", "--faces", "0"],
        "--positions 12 is none of 6, 11, 26, 51": ["--checkpoint", "{model}", "--positions", "12"],
        "0 sliders: at least one": ["--checkpoint", "{model}", "--sliders", "0"],
        "it is there, and nothing is overwritten": ["--checkpoint", "{model}", "--out", "{model}"],
    }.items(),
)
def test_bad_input_gets_one_line(checkpoints, capsys, tmp_path, fault, arguments):
    before = sorted(tmp_path.iterdir())
    arguments = [argument.format(model=checkpoints[0]) for argument in arguments]
    assert run_command("toy_experiments.tools.explore", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("explore: ") and error.count("\n") == 1 and fault in error
    assert sorted(tmp_path.iterdir()) == before
