"""Tests of what makes tables, weights and figures."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import dlsgan
from conftest import ROOT, small_cartoon, tiny, write_celeba
from toy_experiments import settings
from toy_experiments.shared import distances
from toy_experiments.shared.cli import RESULTS
from toy_experiments.tools import export_weights, paper_figures, results_table

# ---- Tables ------------------------------------------------------------------------------------------------


def test_a_finished_run_is_kept_with_its_command(monkeypatch):
    monkeypatch.setattr(results_table, "FOLDER", Path("kept"))
    list(dlsgan.train(tiny(out="mine")))
    path = results_table.add("mine", "python dlsgan.py --out mine")
    last = json.loads(Path("mine/metrics.jsonl").read_text().splitlines()[-1])
    assert json.loads(path.read_text())["measures"] == last
    row = results_table.table().splitlines()[2]
    assert row.startswith("| `python dlsgan.py --out mine` | ")
    assert f"{last['psnr_test']:.1f} ({last['psnr_gain_test']:+.1f})" in row


def test_judged_runs_are_shown_as_mean_and_range_over_seeds(monkeypatch):
    monkeypatch.setattr(results_table, "FOLDER", Path("kept"))
    measures = {"l_enc": 0.1, "active": 8, "spread": 1.0, "psnr_gain_generated": 9.0, "psnr_gain_test": 5.0}
    judged = iter((0.1, 0.2, 0.3))
    content = {"swd_ratio": 1.2, "r2_reconstructions": [0.9, 0.8, 0.7]}
    monkeypatch.setattr(settings, "judge", lambda run: measures | content | {"l_enc": next(judged)})
    for seed in (0, 1, 2):
        list(dlsgan.train(tiny(out=f"run-{seed}", seed=seed, images=8)))
        results_table.add(f"run-{seed}", f"python dlsgan.py --seed {seed}")
        if seed < 2:
            before = json.loads(Path(f"kept/run-{seed}.json").read_text())
            results_table.judge(f"run-{seed}")
            assert json.loads(Path(f"kept/run-{seed}.json").read_text()).items() > before.items()
    cartoons, digits, photographs = results_table.found().split("\n\n")
    assert len(digits.splitlines()) == len(photographs.splitlines()) == 2  # no rows
    (row,) = cartoons.splitlines()[2:]
    cells = [
        "preset",
        "8",
        "2",
        "0.15 (0.10 to 0.20)",
        "8",
        "1.00",
        "+9.0",
        "+5.0",
        "1.20",
        "2 of 8",
    ]
    assert row == f"| {' | '.join(cells)} |"
    smiles = [{"recognised": {"from reconstructions": {"Smiling": score}}} for score in (0.7, 0.72)]
    assert results_table.shown_content(smiles) == "71 (70 to 72)%"


def test_rows_are_named_by_what_they_add_to_a_line():
    line = "python dlsgan.py --preset celeba64"
    assert results_table.row_name(line, line) == "preset"
    added = f"{line} --images 300000 --no-latent-scale"
    assert results_table.row_name(added, line) == "`--images 300000`, without the scale"
    assert results_table.row_name(f"{added}, resumed", line) == "resumed, without the scale"
    later = f"{line} --init-from runs/celeba64 --images 300000 --r1-gamma 1"
    assert results_table.row_name(later, line, 2) == "second stretch"
    assert results_table.row_name(later, line, 3) == "third stretch"
    assert results_table.row_name(later, line, 4) == "fourth stretch"


def test_a_run_that_started_from_another_counts_its_images_in(monkeypatch):
    monkeypatch.setattr(results_table, "FOLDER", Path("kept"))
    list(dlsgan.train(tiny(out="first")))
    list(dlsgan.train(tiny(out="second", images=16), init_from="first"))
    results_table.add("first", "python dlsgan.py --images 40")
    alone = json.loads(results_table.add("second", "python dlsgan.py --init-from first").read_text())
    first = results_table.load("first")
    both = json.loads(results_table.add("second", "...", after="first").read_text())
    assert (alone["measures"]["images"], both["measures"]["images"]) == (16, 56)
    assert both["measures"] == alone["measures"] | {"images": 56}
    assert both["stretches"] == 2 and results_table.counted_on(alone, both)["stretches"] == 3
    assert both["machine"] == alone["machine"]
    elsewhere = results_table.counted_on(alone, first | {"machine": "a slower one"})
    assert elsewhere["machine"] == f"a slower one, then {alone['machine']}"
    assert results_table.counted_on(alone, elsewhere)["machine"] == elsewhere["machine"]
    assert both["minutes"] == pytest.approx(first["minutes"] + alone["minutes"])
    assert both["curves"]["images"][: len(first["curves"]["images"])] == first["curves"]["images"]
    assert both["curves"]["images"][-1] == 56
    assert both["curves"]["l_enc"] == first["curves"]["l_enc"] + alone["curves"]["l_enc"]


# ---- Trained weights ---------------------------------------------------------------------------------------


@pytest.fixture
def kept(monkeypatch):
    """pretrained/ and results/ in the test's own folder."""
    monkeypatch.setattr(dlsgan, "PRETRAINED", Path("pretrained").resolve())
    monkeypatch.setattr(results_table, "FOLDER", Path("kept"))


def test_an_exported_model_is_the_run_in_half_precision(kept):
    list(dlsgan.train(tiny(out="mine", images=80)))
    path = export_weights.export("mine", "python dlsgan.py --out mine", images=20)
    state = torch.load(path, weights_only=True)
    original = dlsgan.read_checkpoint("mine")[1]["ema"]
    assert path.name == "mine.pt" and path.stat().st_size < 12e6 and state["images"] == 80
    assert {x.dtype for k, x in state["ema"].items() if k != "latent_scale.v"} == {torch.float16}
    assert torch.equal(state["ema"]["latent_scale.v"], original["latent_scale.v"])
    for name, x in state["ema"].items():  # float16 has 11 bits, and subnormal numbers
        np.testing.assert_allclose(x.float(), original[name], rtol=2**-11, atol=2**-24)
    assert not {state["config"][key] for key in ("data_dir", "out")} & {"mine", "data/cartoon"}
    model = dlsgan.load_pretrained("mine")
    assert model.generator.constant.dtype == torch.float32
    x = dlsgan.cartoon_faces(4, 16)[0]
    torch.testing.assert_close(model.encode(x), dlsgan.load_model("mine").encode(x), atol=1e-2, rtol=1e-2)
    with pytest.raises(dlsgan.UserError, match="mine.pt/metrics.jsonl cannot be read"):
        export_weights.export(str(path), "again")
    with pytest.raises(dlsgan.UserError, match="pretrained/yours.pt cannot be read: .*; there: mine$"):
        dlsgan.load_pretrained("yours")


def test_the_measures_of_an_exported_model_are_kept(kept):
    list(dlsgan.train(tiny(out="mine", images=80)))
    export_weights.export("mine", "python dlsgan.py --out mine", images=20)
    lines = [json.loads(text) for text in Path("mine/metrics.jsonl").read_text().splitlines()]
    evaluated = [line for line in lines if "l_enc" in line]
    result = results_table.load("mine")
    curves = result["curves"]
    assert curves["images"] == [line["images"] for line in evaluated]
    np.testing.assert_allclose(curves["psnr_test"], [line["psnr_test"] for line in evaluated], rtol=1e-4)
    train_images, test_images = small_cartoon(tiny())
    measured = dlsgan.evaluate(dlsgan.load_pretrained("mine"), dlsgan.to_float(test_images[:20]))
    exported = result["exported"]
    assert exported["stored_as"] == "float16"
    assert exported["test_images"] == 20 and exported["trained_on"] == 40
    assert exported["l_enc"] == pytest.approx(measured["l_enc"]) and exported["swd"] > 0
    discriminator = dlsgan.load_model("mine").discriminator
    for name, images in (("train", train_images), ("test", test_images)):
        logits = [discriminator(x[None])[0].item() for x in dlsgan.to_float(images[:20])]
        assert exported[f"logits_{name}"] == pytest.approx(sum(logits) / 20, rel=1e-3)
    card = Path("pretrained/README.md").read_text()
    l_enc = f"{exported['l_enc']:.3f}"
    assert card == export_weights.card() and "## mine" in card and f"| L_enc | {l_enc} |" in card
    assert "| [mine](#mine) | cartoon, 16x16 | with |" in card
    export_weights.export("mine", "python dlsgan.py --init-from mine", "longer", images=20, after="mine")
    longer = results_table.load("longer")
    assert torch.load("pretrained/longer.pt")["images"] == longer["exported"]["images"] == 160
    assert longer["curves"]["images"][-1] == 160
    table = results_table.compare(["mine", "mine"])
    assert f"| L_enc | {l_enc} | {l_enc} |" in table and "differ: none" in table


def test_weights_that_half_precision_would_change_stay_as_they_are(kept, monkeypatch):
    list(dlsgan.train(tiny(out="mine", images=80)))
    original = dlsgan.read_checkpoint("mine")[1]["ema"]
    nothing = {"swd mean": 0.0}
    found = {"samples": nothing, "other test images": nothing}
    monkeypatch.setattr(distances, "main", lambda *_: found)
    monkeypatch.setattr(export_weights, "half_precision", lambda w: {name: 0 * x for name, x in w.items()})
    path = export_weights.export("mine", "again", images=20)
    assert results_table.load("mine")["exported"]["stored_as"] == "float32"
    weights = torch.load(path, weights_only=True)["ema"]
    assert torch.equal(weights["generator.constant"], original["generator.constant"])
    monkeypatch.setattr(export_weights, "LIMIT", 1000)
    before = path.read_bytes()
    for name in ("other", "mine"):
        with pytest.raises(dlsgan.UserError, match=f"{name}.pt would have .*at most 0 MB"):
            export_weights.export("mine", "again", name, images=20)
    assert {file.name for file in path.parent.iterdir()} == {"mine.pt", "README.md"}
    assert path.read_bytes() == before  # the weights of a good export outlive a bad one


def test_a_bad_inception_file_is_told_before_anything_is_measured(kept, monkeypatch):
    list(dlsgan.train(tiny(out="mine")))
    monkeypatch.setattr(export_weights, "measure", None)  # would fail if called
    Path("text.pt").write_text("no network")
    with pytest.raises(dlsgan.UserError, match="text.pt is not the TorchScript file"):
        export_weights.export("mine", "again", inception="text.pt")
    assert not Path("pretrained").exists()


def digest(weights):
    """Of all but the encoder: generator and scale, by name and content."""
    result = hashlib.sha256()
    for name, x in sorted(weights.items()):
        if not name.startswith("discriminator."):
            result.update(name.encode() + x.contiguous().numpy().tobytes())
    return result.hexdigest()[:16]


@pytest.mark.parametrize("path", sorted((ROOT / "pretrained").glob("*.pt")), ids=lambda path: path.stem)
def test_the_committed_models_and_their_card(path):
    assert path.stat().st_size < 12e6 and dlsgan.load_pretrained(path.stem).sample(2).isfinite().all()
    assert (ROOT / "pretrained" / "README.md").read_text() == export_weights.card()
    state = torch.load(path, weights_only=True)
    if path.stem.endswith(export_weights.FINE_TUNED):  # generator and scale are those of the model it names
        name = path.stem.removesuffix(export_weights.FINE_TUNED)
        kept = json.loads((RESULTS / f"real_encoder-{name}.json").read_text())
        original = torch.load(path.with_stem(name), weights_only=True)
        assert kept["model"]["images"] == state["images"] == original["images"]
        assert digest(state["ema"]) == digest(original["ema"])
        heads = [model["ema"]["discriminator.latent_head.weight"] for model in (original, state)]
        assert not torch.equal(*heads)
    else:
        exported = results_table.load(path.stem)["exported"]
        assert exported["bytes"] == path.stat().st_size
        assert exported["images"] == state["images"]


# ---- The paper's figures -----------------------------------------------------------------------------------


class Recorder:
    """A model whose encoder gives ones and whose decoder remembers what it was given."""

    def __init__(self):
        self.decoded = []

    def encode(self, x):
        return torch.ones(len(x), 200)

    def decode(self, z):
        self.decoded.append(z)
        return torch.zeros(len(z), 3, 16, 16)


def test_one_mask_a_column_is_shared_by_all_rows_of_figure_11():
    model = Recorder()
    kept = {"exported": {"v": [0.9] * 200}}
    run = paper_figures.Run("r", "with latent scale", "k", model, tiny(), kept)
    paper_figures.flips([run], torch.zeros(6, 3, 16, 16), rows=4, columns=30)
    assert (
        len(model.decoded) == 30 + 1 and (model.decoded[-1] == 1).all()
    )  # the reconstructions are not flipped
    masks = torch.stack(model.decoded[:-1])  # [columns, rows, d]
    assert set(masks.unique().tolist()) == {-1.0, 1.0} and (masks == masks[:, :1]).all()
    assert len(masks[:, 0].unique(dim=0)) == 30
    assert (masks[:, 0] < 0).float().mean().item() == pytest.approx(0.1, abs=4 * (0.09 / 6000) ** 0.5)


def test_every_figure_of_the_paper_is_drawn(kept, monkeypatch, capsys):
    monkeypatch.setattr(paper_figures, "RESULTS", Path("drawn"))
    found = {"samples": {"swd mean": 2.0}, "other test images": {"swd mean": 1.0}}
    monkeypatch.setattr(distances, "main", lambda *_: found)
    Path("drawn").mkdir()
    shutil.copy(RESULTS / "author_celeba128_v.json", "drawn")
    write_celeba(Path("c"), n=40, test=24)
    for scale, name in ((True, "with"), (False, "without")):
        list(dlsgan.train(tiny(dataset="celeba", data_dir="c", out=name, latent_scale=scale, images=8)))
        export_weights.export(name, "command", images=8)
    assert "Settings that differ: latent_scale (True, False)." in results_table.compare(["with", "without"])
    both = ("pretrained/with.pt", "pretrained/without.pt")
    capsys.readouterr()
    few = paper_figures.main(*both, figures=["4", "spectrum"])  # needs no data
    assert [path.name for path in few] == ["figure-3-4.png", "spectrum.png"]
    with pytest.raises(dlsgan.UserError, match="no CelebA images .* in data/celeba"):
        paper_figures.main(*both, figures=["11"])
    assert "left out" not in capsys.readouterr().out
    monkeypatch.setattr(
        paper_figures.Figure, "savefig", lambda figure, path, dpi: Path(path).write_text("drawn")
    )
    assert len(paper_figures.main(*both)) == len(paper_figures.FIGURES) - len(paper_figures.NEED_TEST)
    assert capsys.readouterr().out.count("is left out: no CelebA images (") == 5
    files = paper_figures.main(*both, data_dir="c")
    assert len(files) == len(paper_figures.FIGURES) == 12
    assert all(path.parent == Path("drawn/paper/with") for path in files)
    assert len(paper_figures.main("pretrained/with.pt", "none", data_dir="c")) == 12
    numbers = {part for name in paper_figures.FIGURES for part in name.split("-") if part.isdigit()}
    assert numbers == {str(i) for i in range(1, 12)}  # every figure of the paper


def test_the_authors_spectrum_is_whole():
    v = np.array(json.loads((RESULTS / "author_celeba128_v.json").read_text())["v"])
    assert len(v) == 512 and (v > 0.5).sum() == 26 and v.sum() == pytest.approx(26.0248, abs=1e-4)
