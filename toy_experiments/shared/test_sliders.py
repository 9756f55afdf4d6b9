"""Tests of sliders.py. Changed values stand for a hand on the sliders; no browser is needed."""

import base64
import io

import nbclient
import nbformat
import numpy as np
import pytest
import torch
from PIL import Image

import dlsgan
from conftest import ROOT, tiny
from toy_experiments.shared import sliders


@pytest.fixture
def model():
    model = dlsgan.build(tiny(latent_dim=5)).requires_grad_(False)
    model.latent_scale.v.copy_(torch.tensor([0.7, 0.0, 0.9, 0.3, 0.8]))
    return model


def picture(widget):
    return np.asarray(Image.open(io.BytesIO(widget.picture.value))).astype(int)


def test_sliders_are_the_live_dimensions_by_v_and_a_dead_one(model):
    widget = sliders.explore(model)
    assert widget.dimensions == [2, 4, 0, 1]
    names = [slider.description for slider in widget.sliders]
    assert names == ["z2, v 0.90", "z4, v 0.80", "z0, v 0.70", "z1, v 0.00"]
    assert widget.children[0] is widget.picture
    assert widget.children[1].children == (*widget.sliders, widget.button)
    assert sliders.explore(model, most=2).dimensions == [2, 4, 1]
    model.latent_scale.v.fill_(0.1)
    assert sliders.explore(model).dimensions == [0, 1, 2, 3, 4]  # eight if none is live, and here d - 1


def test_every_slider_changes_the_picture_and_the_dead_one_does_not(model):
    widget = sliders.explore(model, seed=3)
    shown = picture(widget)
    for slider, i in zip(widget.sliders, widget.dimensions, strict=True):
        for value in (-2.5, 2.5):
            slider.value = value
            assert widget.z[i] == value
            assert (picture(widget) != shown).any() == (i != 1)
            shown = picture(widget)


def test_sliders_combine_and_the_picture_is_the_models(model):
    z = torch.tensor([0.5, -1.0, 0.2, 2.0, -0.3])
    widget = sliders.explore(model, z, size=16)  # of the images' own size
    widget.sliders[0].value = 1.5
    widget.sliders[2].value = -2.0
    x = model.decode(torch.tensor([[-2.0, -1.0, 1.5, 2.0, -0.3]]))[0]
    expected = (x.clamp(-1, 1).permute(1, 2, 0).numpy() + 1) * 127.5
    assert np.abs(picture(widget) - expected).max() <= 1
    assert z.tolist() == pytest.approx([0.5, -1.0, 0.2, 2.0, -0.3])  # the reader's vector is left alone


def test_reset_goes_back_to_the_start_in_one_drawing(model, monkeypatch):
    z = torch.tensor([0.5, -1.0, 3.21987, 2.0, -0.3])  # beyond the range, and between its steps
    widget = sliders.explore(model, z)
    start = widget.picture.value
    for slider in widget.sliders:
        slider.value = 1.0
    assert widget.picture.value != start
    calls = []
    decode = model.decode
    monkeypatch.setattr(model, "decode", lambda z: calls.append(z) or decode(z))
    widget.button.click()
    assert widget.picture.value == start and len(calls) == 1
    assert torch.equal(widget.z, z)
    assert [slider.value for slider in widget.sliders] == pytest.approx([3.21987, -0.3, 0.5, -1.0])


@pytest.mark.parametrize(
    "fault, given",
    [("0 sliders", {"most": 0}), ("z is", {"z": torch.zeros(1, 5)}), ("z is", {"z": torch.zeros(4)})],
)
def test_impossible_wishes(model, fault, given):
    with pytest.raises(dlsgan.UserError, match=fault):
        sliders.explore(model, **given)


def test_one_dimension_is_too_few():
    model = dlsgan.build(tiny(latent_dim=1))
    with pytest.raises(dlsgan.UserError, match="at least two"):
        sliders.explore(model)


def test_a_notebook_runs_it_without_a_browser():
    """With the widget as the last value of a cell, as a reader has it."""
    code = """
import dlsgan
from toy_experiments.shared.sliders import explore

explore(dlsgan.load_pretrained("cartoon"))
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(ROOT)}}).execute()
    (output,) = notebook.cells[0].outputs
    assert "application/vnd.jupyter.widget-view+json" in output["data"]
    model = dlsgan.load_pretrained("cartoon")
    first, second, *_ = model.latent_scale.v.argsort(descending=True).tolist()
    assert output["data"]["text/plain"].startswith(f"sliders over z{first}, z{second}, ")
    widget = sliders.explore(model)
    assert (
        base64.b64decode(output["data"]["image/png"]) == widget.picture.value
    )  # for viewers without widgets
