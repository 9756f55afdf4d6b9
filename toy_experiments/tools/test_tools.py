"""Tests of what makes figures, tables, weights and timings."""

import base64
import io
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import dlsgan
from conftest import ROOT, TINY, page_text, small_cartoon, tiny, write_celeba
from toy_experiments import settings
from toy_experiments.shared import distances
from toy_experiments.shared.cli import RESULTS
from toy_experiments.tools import (
    align_face,
    benchmark,
    export_weights,
    flops,
    paper_figures,
    plain_forms,
    results_table,
)

# ---- Plain forms, operations, timings ----------------------------------------------------------------------


def gradients_of_a_step(levers, penalty_weight=4.0):
    """What one training step in float64 with plain gradient descent changes, with the named shortcuts
    switched off."""
    torch.manual_seed(0)
    config = dlsgan.Config(resolution=32, channel_base=512, channel_max=32, latent_dim=8, mapping_layers=2)
    with plain_forms.without(levers):
        model = dlsgan.build(config).double().to(memory_format=torch.channels_last)
        plain_forms.change_model(model, levers)
        before = [p.detach().clone() for p in model.parameters()]
        networks = (model.generator, model.discriminator)
        optimizers = [torch.optim.SGD(network.parameters(), 1.0) for network in networks]
        real = 2 * torch.rand(3, 3, 32, 32, dtype=torch.float64) - 1
        z = torch.randn(3, 8, dtype=torch.float64)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dlsgan, "sample_latents", lambda *arguments: z)
            dlsgan.train_step(model, optimizers, real, torch.Generator(), penalty_weight=penalty_weight)
        return [a.detach() - b for a, b in zip(model.parameters(), before, strict=True)]


def largest_difference(fast, plain):
    """Relative to the largest number of each tensor."""
    return max((p - f).abs().max() / f.abs().max() for f, p in zip(fast, plain, strict=True))


TWO_BATCHES = "one batch of fakes for both losses"  # which computes another function


@pytest.mark.parametrize("lever", [name for name in plain_forms.LEVERS if name != TWO_BATCHES])
def test_each_shortcut_leaves_the_training_step_as_it_is(lever):
    assert largest_difference(gradients_of_a_step([]), gradients_of_a_step([lever])) < 1e-11


def tiny_sgd_step(self):
    for group in self.param_groups:
        for p in group["params"]:
            p.data.sub_(1e-9 * p.grad)


def test_one_fake_batch_gives_the_gradients_of_two_updates_with_the_same_z():
    """Against the usual order (D's update, then G's), with D's update too small to change G's gradient."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", tiny_sgd_step)
        fast = gradients_of_a_step([], 0.0)
        plain = gradients_of_a_step([TWO_BATCHES], 0.0)
    assert largest_difference(fast, plain) < 1e-5


def test_the_floor_counts_what_pytorch_counts():
    """PyTorch's counter of operations also sees the depthwise filters, 16 products for each of their
    outputs."""
    config = dlsgan.Config(resolution=32, channel_base=512, channel_max=32, latent_dim=16, mapping_layers=3)
    model = dlsgan.build(config)
    channels = {r: dlsgan.channels_at(r, 512, 32) for r in (4, 8, 16, 32)}
    inputs = (torch.randn(2, 16), model.generator), (torch.randn(2, 3, 32, 32), model.discriminator)
    filters = (
        sum(r * r * channels[r] for r in (8, 16, 32)),
        sum(((r + 1) ** 2 + (r // 2) ** 2) * channels[r] for r in (8, 16, 32)),
    )
    for (x, network), expected, outputs in zip(inputs, flops.forward_flops(config), filters, strict=True):
        with FlopCounterMode(display=False) as counter:
            network(x)
        assert counter.get_total_flops() == 2 * (expected + 2 * 16 * outputs)


def test_every_section_of_the_speeds_and_their_table(monkeypatch):
    write_celeba(Path("c"), 40)
    small = {key: TINY[key] for key in TINY if key != "threads"}
    for name, changes in dlsgan.PRESETS.items():
        monkeypatch.setitem(dlsgan.PRESETS, name, changes | small)
    monkeypatch.setattr(benchmark, "gemm_peak", lambda: 1e9)
    monkeypatch.setattr(benchmark, "alone", lambda settings, threads: benchmark.measure(settings, threads, 1))
    monkeypatch.setattr(benchmark, "startup", lambda settings, every=1: {"seconds": 1.5, "GiB": 0.25 * every})
    bench = {
        "resolution": 16,
        "channel_base": 164,
        "channel_max": 10,
        "latent_dim": 4,
        "mapping_layers": 1,
        "batch_size": 2,
    }
    Path("results").mkdir()
    path = Path("results/speed.json")
    path.write_text(json.dumps({"machine": "another", "floor, 9 threads": {}}))  # is not mixed with this one
    found = benchmark.main([], [1], "c", bench, path)
    levers = found["levers, 1 threads: without it, with it, gain"]
    assert levers.keys() == {*plain_forms.LEVERS, "all of these", "R1 every 16th step"}
    assert all(math.isfinite(x) and x > 0 for row in levers.values() for x in row.values())
    assert json.loads(path.read_text()) == found and "floor, 9 threads" not in found
    benchmark.main(["startup"], [1], "", bench, path)  # one section anew, the others stay
    assert json.loads(path.read_text()).keys() == found.keys()
    monkeypatch.setattr(results_table, "FOLDER", Path("results/runs"))
    lines = results_table.speeds().splitlines()[2:-2]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    names = ["batch 8", "batch 32"]
    names += [f"{preset}, batch 4" for preset in ("cartoon", "mnist", "celeba64", "celeba")]
    names += ["128x128, d = 256", "celeba64", "cartoon", "celeba64"]
    assert [row[0].split(":")[0] for row in rows] == names
    kinds = rows[-1][0].removeprefix("celeba64: share of ").split(", ")
    assert kinds == ["data", "averaged weights", "optimisers", "R1", "evaluations"]
    assert len(rows[-1][1].split(", ")) == len(kinds)
    assert results_table.speeds().endswith("cartoon 1.5 s, 0.25 GiB.")


def test_the_share_of_the_optimisers_is_that_of_whole_updates(monkeypatch):
    """Adam leaves out weights without gradient, in no time at all."""
    whole = []
    step = torch.optim.Adam.step

    def watched(self, closure=None):
        whole.append(all(p.grad is not None for group in self.param_groups for p in group["params"]))
        step(self)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    found = benchmark.shares(tiny(), repeats=2)
    assert whole and all(whole)
    assert found.keys() == {"data", "averaged weights", "optimisers", "R1", "evaluations"}


def weight(c_out, c_in, size):
    return torch.ones(c_out, c_in, size, size)


@pytest.mark.parametrize(
    "kind, call",
    [
        ("filters", lambda x, square: dlsgan.LowPass(1)(x)),
        ("convolutions", lambda x, square: F.conv2d(x, weight(32, 32, 3))),
        ("convolutions", lambda x, square: F.conv_transpose2d(x, weight(32, 32, 3), stride=2)),
        ("convolutions", lambda x, square: F.conv2d(x, weight(32, 32, 1))),
        ("matrix products", lambda x, square: square @ square),
        ("everything else", lambda x, square: square.exp()),
    ],
)
def test_kernels_are_told_apart(kind, call):
    x = torch.randn(16, 32, 64, 64)
    square = torch.randn(1000, 1000)
    shares = flops.kernels(lambda: call(x, square))
    assert max(shares, key=shares.get) == kind and sum(shares.values()) == pytest.approx(1)


def link_images(root, n):
    """CelebA's layout with n links to two images of 64x64 pixels, the first 20 for testing."""
    folder = root / "img_align_celeba"
    folder.mkdir(parents=True)
    for i in range(2):
        image = Image.fromarray(np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8))
        image.save(root / f"{i}.png")
    for i in range(n):
        (folder / f"{i:06d}.png").symlink_to((root / f"{i % 2}.png").absolute())
    rows = [f"{i:06d}.png {2 * (i < 20)}" for i in range(n)]
    (root / "list_eval_partition.txt").write_text("\n".join(rows) + "\n")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_does_not_grow_with_the_data_set():
    """2,000 images of 64x64 pixels are 23 MiB; they stay in the file that is mapped into memory."""
    settings = TINY | {"dataset": "celeba", "resolution": 64}
    mebibytes = {}
    for name, n in (("few", 100), ("many", 2000)):
        link_images(Path(name), n)
        mebibytes[name] = 1024 * benchmark.startup(settings | {"data_dir": name})["GiB"]
    assert 50 < mebibytes["few"] and mebibytes["many"] < mebibytes["few"] + 10


# ---- Tables ------------------------------------------------------------------------------------------------


def test_the_readme_table_comes_from_the_judged_runs():
    text = (ROOT / "README.md").read_text()
    assert results_table.found() in text and "| 3 |" in text  # three seeds


def judged(name):
    return results_table.load(name)["judged"]


def test_what_the_readme_says_of_the_cartoon_runs():
    text = page_text("README.md")
    seeds = [judged(f"cartoon-seed-{seed}") for seed in range(3)]
    plain = [judged(f"cartoon-seed-{seed}-no-scale") for seed in range(3)]
    scaled_long, plain_long = judged("cartoon"), judged("cartoon-no-scale")
    smile = dlsgan.CARTOON_FACTORS.index("smile")
    assert "Without it L_enc stays high, with faces and with digits" in text
    assert min(m["l_enc"] for m in [*plain, plain_long, judged("mnist-no-scale")]) > 0.6
    assert f"and {' or '.join(sorted({str(m['active']) for m in seeds}))} dimensions are found" in text
    shown = [settings.known_factors(m["r2_reconstructions"]) for m in (*seeds, scaled_long)]
    assert max(shown[:3]) == 5 and "reconstructions show at most 5 of these" in text
    assert shown[3] == 7 and "reconstructions show seven factors with the scale" in text
    assert f"(R² {scaled_long['r2_reconstructions'][smile]:.2f}, after 60,000 images below 0)" in text
    assert max(m["r2_reconstructions"][smile] for m in seeds) < 0
    assert "a little farther from the data with it than without" in text
    assert 0.1 < scaled_long["swd_ratio"] - plain_long["swd_ratio"] < 0.25
    assert "nine of 64 latent dimensions" in text and scaled_long["active"] == 9


def test_what_the_readme_says_of_digits_and_speeds():
    text = page_text("README.md")
    digits, unclamped = judged("mnist"), judged("mnist-unclamped")
    plain = judged("mnist-no-scale")
    sure = f"{digits['readable']:.0%} of the samples with the scale, of {plain['readable']:.0%} without"
    assert f"is sure of {sure}" in text and f"and of {digits['readable_test']:.0%} of the test digits" in text
    worth = digits["psnr_gain_test"] - plain["psnr_gain_test"]
    assert f"is worth {worth:.1f} dB, and nothing in the share" in text
    assert abs(digits["kept"] - plain["kept"]) < 0.01
    assert "little of what the encoder learned helps with real digits" in text
    assert unclamped["psnr_gain_test"] < 1 < 2 < digits["psnr_gain_test"]
    kept = json.loads((RESULTS / "speed.json").read_text())
    of_floor = [row["step/floor"] for n in (1, 2) for row in kept[f"floor, {n} threads"].values()]
    presets = [kept[f"presets, {n} threads: before, after, gain"] for n in (1, 2)]
    gains = [row["gain"] for section in presets for row in section.values()]
    assert f"takes {min(of_floor):.2f} to {max(of_floor):.2f} times the time" in text
    assert f"make a preset {min(gains):.1f} to {max(gains):.1f} times as fast" in text


def test_what_the_pages_say_of_time_and_of_the_trials_on_faces():
    fastest = min(results_table.load(f"cartoon-seed-{seed}")["minutes"] for seed in range(3))
    images = dlsgan.Config().images
    speed = round(images / 60 / fastest, -1)
    said = f"sees some {speed:.0f} images/s on one core, which makes {fastest:.0f} minutes"
    assert said in page_text("README.md")
    assert f"32x32: {fastest:.0f} minutes on one CPU core" in dlsgan.__doc__
    trials = [f"channel-base-{base}.json" for base in (512, 1024)]
    narrow, wide = (json.loads((results_table.TRIALS / name).read_text())["measures"] for name in trials)
    toys = page_text("toy_experiments/README.md")
    assert f"see {narrow['images']:,} images and the wide ones {wide['images']:,}" in toys
    assert f"found more dimensions ({narrow['active']} and {wide['active']})" in toys
    assert abs(narrow["psnr_gain_test"] - wide["psnr_gain_test"]) < 0.15 and "back equally well" in toys


def test_the_tables_of_all_runs_come_from_the_kept_results():
    text = (ROOT / "toy_experiments" / "README.md").read_text()
    for folder in (results_table.FOLDER, results_table.TRIALS):
        assert results_table.table(folder=folder) in text and list(folder.glob("*.json"))


def test_the_page_tells_of_speeds_what_was_measured():
    assert results_table.speeds() in (ROOT / "toy_experiments" / "README.md").read_text()


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
    (row,) = results_table.found().splitlines()[2:]
    cells = [
        "`python dlsgan.py`",
        "8",
        "2",
        "0.15 (0.10 to 0.20)",
        "8",
        "1.00",
        "+9.0",
        "+5.0",
        "1.20",
        "2 factors",
    ]
    assert row == f"| {' | '.join(cells)} |"
    smiles = [{"recognised": {"from reconstructions": {"Smiling": score}}} for score in (0.7, 0.72)]
    assert results_table.shown_content(smiles) == "smile at 71 (70 to 72)%"


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
    with pytest.raises(dlsgan.UserError, match="at most 0 MB"):
        export_weights.export("mine", "again", images=20)
    assert not path.exists()


@pytest.mark.parametrize("path", sorted((ROOT / "pretrained").glob("*.pt")), ids=lambda path: path.stem)
def test_the_committed_models_and_their_card(path):
    assert path.stat().st_size < 12e6 and dlsgan.load_pretrained(path.stem).sample(2).isfinite().all()
    exported = results_table.load(path.stem)["exported"]
    assert exported["bytes"] == path.stat().st_size
    assert exported["images"] == torch.load(path, weights_only=True)["images"]
    assert (ROOT / "pretrained" / "README.md").read_text() == export_weights.card()


# ---- Alignment of faces ------------------------------------------------------------------------------------


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    ("angle", "scale", "x", "y"), [(0, 1, 90, 120), (25, 1.5, 200, 220), (-40, 0.6, 90, 90), (8, 5, 400, 300)]
)
def test_eyes_come_to_the_places_of_celeba(angle, scale, x, y, swapped):
    """Two soft dots, red and green, in an otherwise black photo; measured by their centres of mass in the
    crop."""
    distance = scale * (align_face.EYES[1][0] - align_face.EYES[0][0])
    right = (x + distance * math.cos(math.radians(angle)), y + distance * math.sin(math.radians(angle)))
    rows, columns = np.mgrid[: int(2.2 * y), : int(2 * x + distance)]
    pixels = np.zeros((*rows.shape, 3), np.uint8)
    for channel, (eye_x, eye_y) in enumerate(((x, y), right)):
        square = (columns - eye_x) ** 2 + (rows - eye_y) ** 2
        pixels[:, :, channel] = np.exp(-square / (2 * max(1.5, 2 * scale) ** 2)) * 255 + 0.5
    crop = align_face.align(Image.fromarray(pixels), (*right, x, y) if swapped else (x, y, *right))
    assert crop.size == (178, 218)
    weights = np.asarray(crop, float)
    for channel, eye in enumerate(align_face.EYES):
        total = weights[:, :, channel].sum()
        found = (weights[:, :, channel] * np.mgrid[:218, :178][::-1]).sum((1, 2)) / total
        np.testing.assert_allclose(found, eye, atol=0.05)


def test_a_frame_survives_being_a_photo():
    rows, columns = np.mgrid[:218, :178]
    waves = [127 + 100 * np.sin(rows / 20 + i) * np.cos(columns / 15) for i in range(3)]
    smooth = np.stack(waves, 2).astype(np.uint8)
    photo, eyes = align_face.as_photo(Image.fromarray(smooth))
    assert photo.size == (300, 300)
    again = np.asarray(align_face.align(photo, eyes), float)
    assert np.abs(again - smooth)[5:-5, 5:-5].mean() < 1.5


def test_a_photo_without_eyes_becomes_a_page_to_click_on(capsys):
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3)).astype(np.uint8)
    Image.fromarray(pixels).save("me.png")
    align_face.main("me.png", None, "out.jpg")
    assert capsys.readouterr().out.startswith("me-eyes.html: open it in a browser")
    page = Path("me-eyes.html").read_text()
    shown = Image.open(io.BytesIO(base64.b64decode(page.split("base64,")[1].split('"')[0])))
    assert shown.size == (40, 30) and "const scale = 40 / this.clientWidth" in page and "http" not in page


@pytest.mark.parametrize(
    "photo, eyes, named",
    [
        ("photo.png", (60, 10, 20, 10), "outside of the photo, which is 50 x 40"),
        ("photo.png", (20, 10, 20, 11), "less than two pixels apart"),
        ("text.png", (1, 1, 9, 1), "text.png cannot be read"),
        ("gone.png", (1, 1, 9, 1), "gone.png cannot be read"),
    ],
)
def test_bad_photos_and_eyes_are_named(photo, eyes, named):
    Image.new("RGB", (50, 40)).save("photo.png")
    Path("text.png").write_text("no")
    with pytest.raises(dlsgan.UserError, match=named):
        align_face.main(photo, eyes, "out.jpg")


def test_a_crop_is_written(capsys):
    frame = Image.new("RGB", (178, 218), "green")
    frame.save("frame.png")
    align_face.main("frame.png", [69, 111, 108, 111], "o/crop.png")
    assert np.array_equal(np.asarray(Image.open("o/crop.png")), np.asarray(frame))
    assert capsys.readouterr().out == "o/crop.png: turned by +0.0 degrees, scaled by 1.00\n"


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


PAIR = ("celeba64", "celeba64-no-scale")


def test_the_pages_tell_of_the_pair_what_was_measured():
    main = page_text("README.md")
    toys = page_text("toy_experiments/README.md")
    table, _ = results_table.compare(list(PAIR)).split("\n\n")
    assert " ".join(table.split()) in toys
    kept = [results_table.load(name) for name in (*PAIR, "celeba128")]
    a, b, large = (result["exported"] for result in kept)
    assert a["images"] == b["images"] == dlsgan.PRESETS["celeba64"]["images"] and large["images"] >= 150_000
    settings = [result["settings"] for result in kept]
    assert {key for key in settings[0] if settings[0][key] != settings[1][key]} == {"latent_scale"}
    assert settings[0].items() >= dlsgan.PRESETS["celeba64"].items()
    difference = f"{a['psnr_gain_generated'] - b['psnr_gain_generated']:.1f} dB"
    generated = f"{a['psnr_gain_generated']:+.1f} against {b['psnr_gain_generated']:+.1f}"
    logits = [" and ".join(f"{x[f'logits_{name}']:+.2f}" for name in ("train", "test")) for x in (a, b)]
    found = f"L_enc {large['l_enc']:.2f}, {large['active']} live dimensions"
    gains = (
        f"{large['psnr_gain_generated']:+.1f} dB on generated images and {large['psnr_gain_test']:+.1f} dB"
    )
    apart = a["psnr_gain_test"] - b["psnr_gain_test"]
    for sentence in (
        f"stays high without it.* {a['l_enc']:.2f} and {b['l_enc']:.2f}.",
        f"the error of z is {a['mse_z']:.2f} against {b['mse_z']:.2f}",
        f"By {difference} ({generated} over each one's mean image)",
        f"SSIM {a['ssim_generated']:.2f} against {b['ssim_generated']:.2f}",
        f"{a['psnr_gain_test']:+.2f} dB against {b['psnr_gain_test']:+.2f} over the mean face",
        f"{apart:.2f} dB for the scale",
        f"{a['swd']:.1f} against {b['swd']:.1f} (other test images: {a['swd_test']:.1f})",
        f"spread {a['spread']:.2f} and {b['spread']:.2f}",
        f"{a['active']} of {kept[0]['latent_dim']} dimensions are live",
        f", {b['active']} of them above 1/2",
        f"between {min(b['v']):.2f} and {max(b['v']):.2f}",
        f"{found}, {gains} on test images",
        f"The entropy of z * s is {a['entropy']:.1f} against {b['entropy']:.1f} nats",
        f"({'; '.join(logits)})",
    ):
        assert sentence in toys, sentence
    for sentence in (
        f"L_enc from {b['l_enc']:.2f} to {a['l_enc']:.2f}",
        f"({a['psnr_gain_test']:+.2f} against {b['psnr_gain_test']:+.2f} dB over the mean face)",
    ):
        assert sentence in main, sentence
    assert f"generated faces come back {difference} better" in main
    assert f"scale {a['active']} of {kept[0]['latent_dim']} dimensions are live" in main


def test_the_page_tells_what_is_left_of_test_faces():
    toys = page_text("toy_experiments/README.md")
    with_scale, without = (judged(name)["recognised"] for name in PAIR)
    rows = {
        "from z_hat, with the scale": with_scale["from z_hat"],
        "from z_hat, without": without["from z_hat"],
        "from reconstructions, with the scale": with_scale["from reconstructions"],
        "from reconstructions, without": without["from reconstructions"],
        "from the photographs": with_scale["from the images"],
    }
    for title, scores in rows.items():
        assert f"| {title} | {' | '.join(f'{score:.0%}' for score in scores.values())} |" in toys
    for scores in (with_scale, without):
        read = [f"{scores['from z_hat'][name]:.0%}" for name in ("Male", "Bangs")]
        assert " and ".join(read) in toys or ", ".join(read) in toys
    smiles = [f"{scores['from reconstructions']['Smiling']:.0%}" for scores in (with_scale, without)]
    assert f"({smiles[0]} with the scale, {smiles[1]} without)" in toys
    assert f"and {with_scale['from the images']['Smiling']:.0%} what it reads off" in page_text("README.md")


def test_the_page_shows_each_figure_of_the_paper():
    toys = page_text("toy_experiments/README.md")
    shown = {path.stem for path in (RESULTS / "paper" / "celeba64").glob("*.png")}
    assert shown == {f"figure-{name}" if name[0].isdigit() else name for name in paper_figures.FIGURES}
    assert all(f"results/paper/celeba64/{name}.png" in toys for name in shown)


def test_the_authors_spectrum_is_whole():
    v = np.array(json.loads((RESULTS / "author_celeba128_v.json").read_text())["v"])
    assert len(v) == 512 and (v > 0.5).sum() == 26 and v.sum() == pytest.approx(26.0248, abs=1e-4)
