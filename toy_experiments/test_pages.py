"""What the READMEs say, against the kept results that they tell of."""

import json
import re

import numpy as np
import pytest

import dlsgan
from conftest import ROOT, judged, page_text
from toy_experiments import settings
from toy_experiments.shared.cli import RESULTS
from toy_experiments.tools import results_table


def test_the_readme_table_comes_from_the_judged_runs():
    text = (ROOT / "README.md").read_text()
    assert results_table.found() in text and "| 3 |" in text  # three seeds


def test_the_smallest_set_that_a_shipped_model_learned_from():
    names = [path.stem for path in dlsgan.PRETRAINED.glob("*.pt") if "real-encoder" not in path.stem]
    least = min(results_table.load(name)["exported"]["trained_on"] for name in names)
    said = f"no model here has learned from fewer than {least:,}"
    assert said in page_text("README.md") and said in (ROOT / "tutorial.ipynb").read_text()


@pytest.mark.parametrize("page", ["README.md", "toy_experiments/README.md", "pretrained/README.md"])
def test_links_of_the_pages_lead_to_files_and_headings(page):
    folder = (ROOT / page).parent
    targets = re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text())
    for target in targets:
        path, _, heading = target.partition("#")
        if not path.startswith("http"):
            file = folder / path if path else ROOT / page
            assert file.exists(), target
            if heading:
                file = file / "README.md" if file.is_dir() else file
                titles = re.findall(r"^#+ (.+)$", file.read_text(), re.M)
                anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
                assert heading in anchors, target


def test_what_the_readme_says_of_the_cartoon_runs():
    text = page_text("README.md")
    seeds = [judged(f"cartoon-seed-{seed}") for seed in range(3)]
    plain = [judged(f"cartoon-seed-{seed}-no-scale") for seed in range(3)]
    scaled_long, plain_long = judged("cartoon"), judged("cartoon-no-scale")
    smile = dlsgan.CARTOON_FACTORS.index("smile")
    assert "Without it L_enc stays high, with faces and with digits" in text
    pairs = [judged(name) for name in ("celeba64-no-scale", *(f"mnist-seed-{n}-no-scale" for n in range(3)))]
    assert min(m["l_enc"] for m in [*plain, *pairs]) > 0.7
    assert f"300,000 cartoon faces bring it down to {plain_long['l_enc']:.2f}" in text
    assert plain_long["l_enc"] > 10 * scaled_long["l_enc"]
    found = [m["active"] for m in seeds]
    assert f"{min(found)} to {max(found)} dimensions stay live, and v of all others is near 0" in text
    assert all(sorted(m["v"])[-1 - m["active"]] < 0.1 for m in seeds)
    shown = [settings.known_factors(m["r2_reconstructions"]) for m in (*seeds, scaled_long)]
    spanned = " to ".join(dict.fromkeys(map(str, (min(shown[:3]), max(shown[:3])))))
    assert f"reconstructions show {spanned} of the eight" in text
    worth = [a["psnr_gain_test"] - b["psnr_gain_test"] for a, b in zip(seeds, plain, strict=True)]
    assert f"come back {min(worth):.1f} to {max(worth):.1f} dB better with the scale, seed by seed" in text
    assert (
        shown[3] == 8
        and "After 300,000 they show all eight with the scale (seed 1; seed 0, with exactly" in text
    )
    first = judged("cartoon-long-seed-0")
    missed = [score < 0.8 for score in first["r2_reconstructions"]]
    assert missed[smile] and sum(missed) == 1 and "with exactly eight live, misses the smile)" in text
    assert first["active"] == 8
    assert settings.known_factors(plain_long["r2_reconstructions"]) == 3 and ", and three without it" in text
    better = scaled_long["psnr_gain_test"] - plain_long["psnr_gain_test"]
    assert f"and {better:.1f} dB after 300,000 images" in text
    ratios = [np.mean([m["swd_ratio"] for m in runs]) for runs in (seeds, plain)]
    assert f"after 60,000 images ({ratios[0]:.2f} against {ratios[1]:.2f}, and so in each" in text
    assert all(a["swd_ratio"] > b["swd_ratio"] for a, b in zip(seeds, plain, strict=True))
    after_long = f"({scaled_long['swd_ratio']:.2f} against {plain_long['swd_ratio']:.2f}, one seed)"
    assert f"and after 300,000 {after_long}" in text
    assert scaled_long["swd_ratio"] > plain_long["swd_ratio"]
    errors = f"({scaled_long['mse_z']:.2f} against {plain_long['mse_z']:.2f} after 300,000 cartoon faces)"
    assert f"the plain error over all 64 is not lower with the scale {errors}" in text
    assert f"With it, {scaled_long['active']} of 64 latent dimensions carry nearly everything" in text
    near = [abs(x - 0.5) < 0.06 for x in plain_long["v"]]
    assert sum(near) > 10 and "close to that line after 300,000 cartoon faces" in text
    minutes = results_table.load("cartoon")["minutes"]
    assert f"--lr-final 0.1 --seed 1`, {minutes:.0f} minutes on one core with AVX-512" in text


def test_what_the_readme_says_of_digits():
    text = page_text("README.md")
    digits = [judged(f"mnist-seed-{seed}") for seed in range(3)]
    plain = [judged(f"mnist-seed-{seed}-no-scale") for seed in range(3)]
    unclamped, longer, wide = (judged(f"mnist{x}") for x in ("-unclamped", "-narrow", ""))
    readable = [f"{np.mean([m['readable'] for m in runs]):.0%}" for runs in (digits, plain)]
    sure = f"of {readable[0]} of the samples after 120,000 images"
    assert f"is sure {sure} ({readable[1]} without the scale), of" in text
    assert f"without the scale), of {longer['readable']:.0%} after 300,000, of" in text
    assert f"of {wide['readable']:.0%} of those of the larger model, and" in text
    trials = [judged(name) for name in ("mnist-400000", "mnist-450000")]
    read, kept_class = ([f"{m[key]:.1%}" for m in trials] for key in ("readable", "kept"))
    assert "more samples can be read, {} and {}".format(*read) in text
    assert "and a few fewer digits keep their class, {} and {}".format(*kept_class) in text
    for m in trials:
        assert m["readable"] > wide["readable"] + 0.01 and wide["kept"] - 0.02 < m["kept"] < wide["kept"]
    names = ("mnist", "mnist-400000", "mnist-450000")
    began, *ended = (results_table.load(name)["settings"] for name in names)
    for key in ("encoder_weight", "r1_gamma"):  # "less lambda and gamma"
        assert all(settings[key] < began[key] for settings in ended)
    assert f"and of {longer['readable_test']:.0%} of the test digits" in text
    kept = [results_table.load(name) for name in ("mnist", "mnist-narrow")]
    assert [result["measures"]["images"] for result in kept] == [300_000, 300_000]
    gains = [f"{m['psnr_gain_test']:+.1f} dB" for m in (wide, longer)]
    assert f"come back {gains[0]} above the mean digit after 300,000 images, against {gains[1]}" in text
    assert f"and {wide['kept']:.1%} keep their class, against {longer['kept']:.1%}" in text
    assert wide["kept"] > longer["kept"] + 0.02 and wide["psnr_gain_test"] > longer["psnr_gain_test"] + 0.8
    sizes = [result["settings"] for result in kept]
    for key in ("channel_base", "channel_max", "latent_dim"):  # "twice the channels, d = 128"
        assert sizes[0][key] == 2 * sizes[1][key]
    assert f"took {kept[0]['minutes']:.0f} minutes on a core with AVX2" in text
    assert kept[0]["machine"].endswith("AVX2")
    worth = [a["psnr_gain_test"] - b["psnr_gain_test"] for a, b in zip(digits, plain, strict=True)]
    said = f"is worth {min(worth):.1f} to {max(worth):.1f} dB after 120,000 images, seed by seed"
    assert f"{said}, and nothing in the share" in text
    assert all(a["kept"] < b["kept"] + 0.02 for a, b in zip(digits, plain, strict=True))
    worse = digits[0]["psnr_gain_test"] - unclamped["psnr_gain_test"]
    assert f"Without the clamp test digits come back {worse:.1f} dB worse (one seed)" in text
    assert unclamped["psnr_gain_test"] < 1.5 < 3 < digits[0]["psnr_gain_test"]
    tuned = [json.loads((RESULTS / f"real_encoder-mnist{x}.json").read_text()) for x in ("", "-no-scale")]
    with_scale, without = (result["fine-tuned"]["psnr_gain_test"] for result in tuned)
    assert with_scale < without and "digits come back no better with the scale than without it" in text


def test_what_the_pages_say_of_speeds():
    text = page_text("README.md")
    kept = json.loads((RESULTS / "speed-avx512.json").read_text())
    floors = [kept[f"floor, {n} threads"] for n in (1, 2)]
    of_floor = [row["step/floor"] for rows in floors for name, row in rows.items() if "128x128" in name]
    presets = [kept[f"presets, {n} threads: before, after, gain"] for n in (1, 2)]
    gains = [row["gain"] for section in presets for row in section.values()]
    assert f"takes {min(of_floor):.2f} to {max(of_floor):.2f} of it" in text
    slower = json.loads((RESULTS / "speed-avx2.json").read_text())
    names = ("cartoon", "mnist", "celeba64")
    speeds = [[f"{x['floor, 1 threads'][name]['images/s']:.0f}" for name in names] for x in (kept, slower)]
    fast = "{} cartoon faces, {} digits or {} faces of `celeba64` a second".format(*speeds[0])
    assert f"{fast}, one with AVX2 on {{}}, {{}} and {{}}".format(*speeds[1]) in text
    rows = [slower[f"floor, {n} threads"] for n in (1, 2)]
    large = [row["step/floor"] for section in rows for name, row in section.items() if "128x128" in name]
    assert f"With AVX2 it is {min(large):.1f} to {max(large):.1f} times at 128x128" in text
    assert "A second core helps with AVX-512; with AVX2 it helped in some measurements and not in" in text
    assert all(floors[1][name]["images/s"] > 1.1 * floors[0][name]["images/s"] for name in names)
    by_presets = [slower[f"presets, {n} threads: before, after, gain"]["cartoon, batch 8"] for n in (1, 2)]
    assert by_presets[1]["on"] > 1.1 * by_presets[0]["on"]
    assert rows[1]["cartoon"]["images/s"] < 0.9 * rows[0]["cartoon"]["images/s"]
    small = [row["step/floor"] for name, row in rows[0].items() if "128x128" not in name]
    assert min(small) >= max(large) > 1.9 and "small presets are farther from it" in text
    toys = page_text("toy_experiments/README.md")
    assert f"at {min(small):.0f} to {max(small):.1f} times their floor on one AVX2 thread" in toys
    assert f"make a preset {min(gains):.1f} to {max(gains):.1f} times as fast" in text
    one_thread = [x["presets, 1 threads: before, after, gain"] for x in (slower, kept)]
    paper = [f"{rows['celeba, batch 4']['on']:.1f}" for rows in one_thread]
    assert (
        "at {} images/s on one thread with AVX2 and at {} with AVX-512 (batches of 4)".format(*paper) in text
    )


def test_what_the_pages_say_of_time():
    fastest = min(results_table.load(f"cartoon-seed-{seed}")["minutes"] for seed in range(3))
    images = dlsgan.Config().images
    speed = round(images / 60 / fastest, -1)
    said = f"sees some {speed:.0f} images/s on one core, which makes {fastest:.0f} minutes"
    assert said in page_text("README.md")
    other = results_table.load("cartoon-two-threads")
    assert other["settings"]["threads"] == 0 and "AVX512" in other["machine"]
    assert f"on two cores with AVX-512 it took {other['minutes']:.0f}." in page_text("README.md")
    same = results_table.load("cartoon-seed-0")["measures"]
    found = f"{other['measures']['active']} dimensions and {other['measures']['psnr_gain_test']:.1f} dB"
    instead = f"not {same['active']} and {same['psnr_gain_test']:.1f} (of 256 images)"
    assert f"found {found} on test faces, {instead}" in page_text("README.md")
    moved = same["psnr_gain_test"] - other["measures"]["psnr_gain_test"]
    assert f"on another machine {moved:.1f} dB;" in page_text("toy_experiments/README.md")
    assert f"32x32: {fastest:.0f} minutes on one CPU core" in dlsgan.__doc__
    tutorial = (ROOT / "tutorial.ipynb").read_text()
    assert f"in {fastest:.0f} minutes on one core, here with three seeds each" in tutorial
    digits = results_table.load("mnist-seed-0")
    slower = json.loads((RESULTS / "speed-avx2.json").read_text())["floor, 1 threads"]["mnist"]["images/s"]
    assert 17 < digits["measures"]["images"] / 60 / slower < 23  # "twenty", without the evaluations
    said = f"in {digits['minutes']:.0f} minutes on one core with AVX-512, and some 20 with AVX2"
    assert said in tutorial and "32x32: 20 minutes on one CPU core" in dlsgan.__doc__
    assert "AVX512" in digits["machine"]
    larger = results_table.load("mnist")
    assert f"took longer, {larger['minutes']:.0f} minutes with AVX2" in tutorial
    assert larger["machine"].endswith("AVX2") and larger["settings"]["latent_dim"] == 128


def test_what_the_pages_say_of_settings_at_equal_time():
    kept = settings.sorted_runs(json.loads((RESULTS / "settings.json").read_text()))
    toys, text = page_text("toy_experiments/README.md"), page_text("README.md")
    assert settings.table(kept) in (ROOT / "toy_experiments/README.md").read_text()
    minutes = [result["processor_minutes"] for result in kept.values()]
    assert f"(factors, digits, distances) | {min(minutes):.0f} to {max(minutes):.0f} min a run |" in toys
    runs = {key.split(", ")[0]: r["measures"] for key, r in kept.items()}
    of_digits = {name: runs.pop(name) for name in list(runs) if name.startswith("mnist+")}
    gain = {name: m["psnr_gain_test"] for name, m in runs.items()}
    rates = [gain[name] for name in ("lr-0.002", "base", "lr-0.008", "lr-0.016")]
    slow, usual, fast, faster = (f"{x:.1f}" for x in rates)
    assert f"+{slow}, +{usual}, +{fast} and +{faster} dB on test faces" in toys
    said = f"come back {slow} dB above the mean face, at 0.004 {usual} dB, at the preset's 0.008 {fast} dB"
    assert said in text and runs["lr-0.016"]["swd_ratio"] > runs["lr-0.008"]["swd_ratio"]
    lost = {name: gain["base"] - gain[name] for name in gain}
    assert (
        f"{min(lost[name] for name in ('channels-1024-128', 'batch-16', 'batch-4')):.1f} dB or more lost"
        in text
    )
    assert all(abs(lost[name]) < 0.5 for name in ("lambda-1", "lambda-10-to-1"))
    assert all(abs(lost[name]) < 1 for name in ("gamma-10", "window-1000"))
    assert all(1.9 < lost[name] < 2.2 for name in ("gamma-0.2", "lambda-3-to-0.3"))
    assert 1.65 < lost["d-128"] < 1.8 and "gamma 0.2 and d = 128 lose 1.7 to 2 dB" in text
    names = ("cartoon-lambda-1", "cartoon-seed-0", "cartoon-lambda-2", "cartoon-lambda-3")
    weights = [results_table.load(name) for name in names]
    assert [r["settings"]["encoder_weight"] for r in weights] == [1, 1.5, 2, 3]
    dimensions = [r["measures"]["active"] for r in weights]
    assert "{}, {}, {} and {} at 1, 1.5, 2 and 3".format(*dimensions) in toys
    gains = [r["measures"]["psnr_gain_test"] for r in weights]
    assert "come back {:+.1f}, {:+.1f}, {:+.1f} and {:+.1f} dB above the mean face".format(*gains) in toys
    assert "are found: {}, {}, {} and {} at 1, 1.5, 2 and 3 (one run each)".format(*dimensions) in text
    assert "A strong R1 makes samples worse, a very weak one loses dimensions" in text
    assert runs["gamma-10"]["swd_ratio"] > runs["base"]["swd_ratio"] + 0.2
    assert of_digits["mnist+gamma-10"]["readable"] < of_digits["mnist+base"]["readable"] - 0.05
    assert runs["gamma-0.2"]["active"] < runs["base"]["active"]
    other = results_table.load("cartoon-two-threads")
    assert other["settings"]["encoder_weight"] == 1.5
    assert f"(one run each; the preset, 1.5, found {other['measures']['active']} on another" in toys
    generated = runs["base"]["psnr_gain_generated"] - runs["no-scale"]["psnr_gain_generated"]
    assert f"Generated faces come back {generated:.1f} dB better with the scale; no run" in toys
    assert runs["gamma-0.2"]["spread"] < runs["base"]["spread"] - 0.03  # "loses spread"
    smile = dlsgan.CARTOON_FACTORS.index("smile")
    assert all(m["r2_reconstructions"][smile] < 0.1 for m in runs.values())
    of_seeds = [judged(f"cartoon-seed-{seed}")["psnr_gain_test"] for seed in range(3)]
    assert f"Three seeds of the preset lie up to {max(of_seeds) - min(of_seeds):.1f} dB apart" in toys
    ends = [f"{gain[name]:+.1f}" for name in ("sma-400", "seed-1", "seed-2")]
    counts = [runs[name]["active"] for name in ("sma-400", "seed-1", "seed-2")]
    assert "plain average over as many steps comes to {} dB on test faces,".format(*ends) in toys
    assert f"on test faces, with {counts[0]} dimensions" in toys
    said = "two other seeds of the base come to {} and {} dB, with {} and {} dimensions"
    assert said.format(*ends[1:], *counts[1:]) in toys
    shares = {name: [f"{m[key]:.2f}" for key in ("readable", "kept")] for name, m in of_digits.items()}
    assert f"sure of {shares['mnist+base'][0]} of its samples" in toys
    assert f"keep their class in {shares['mnist+base'][1]} of the cases" in toys
    l_enc = [f"{of_digits[f'mnist+{name}']['l_enc']:.2f}" for name in ("lambda-10", "base")]
    sooner = "(L_enc {} against {}, ".format(*l_enc) + shares["mnist+lambda-10"][1]
    assert f"{sooner} keep their class) and samples are poorer ({shares['mnist+lambda-10'][0]})" in toys
    assert "At gamma 10 they are, too ({}; {})".format(*shares["mnist+gamma-10"]) in toys
    assert "A rate of 0.004 is far behind ({}; {})".format(*shares["mnist+lr-0.004"]) in toys
    assert of_digits["mnist+gamma-10"]["readable"] < of_digits["mnist+base"]["readable"]
    later = [f"{runs[name]['l_enc']:.2f}" for name in ("d-128", "base", "window-1000")]
    assert f"L_enc {later[0]} in place of {later[1]}" in toys and f"still at {later[2]}" in toys


def test_what_the_page_says_of_the_ring_and_of_cartoon_factors():
    toys = page_text("toy_experiments/README.md")
    ring = json.loads((RESULTS / "two_dimensional.json").read_text())["runs"]["ring"]
    near = {
        key: [f"{run[key]['within_4_sigma']:.0%}" for run in ring] for key in ("with scale", "without scale")
    }
    assert set(near["with scale"]) == {"89%"} and set(near["without scale"]) == {"88%", "89%"}
    assert "It is 89% with the scale and 88% to 89% without, and all eight modes are there" in toys
    assert all(run[key]["modes"] == 8 for run in ring for key in near)
    factors = json.loads((RESULTS / "cartoon_factors.json").read_text())["8-0"]
    smile = dlsgan.CARTOON_FACTORS.index("smile")
    assert "can be read off these few (as they can off all 64 outputs of an untrained encoder)" in toys
    for key in ("r2_live_linear", "r2_untrained_all_outputs_linear"):
        assert factors[key][smile] < 0.6
        assert min(score for i, score in enumerate(factors[key]) if i != smile) > 0.8


def test_the_tables_of_all_runs_come_from_the_kept_results():
    text = (ROOT / "toy_experiments" / "README.md").read_text()
    for folder in (results_table.FOLDER, results_table.TRIALS):
        assert results_table.table(folder=folder) in text and list(folder.glob("*.json"))


def test_the_page_tells_of_speeds_what_was_measured():
    assert results_table.speeds() in (ROOT / "toy_experiments" / "README.md").read_text()
