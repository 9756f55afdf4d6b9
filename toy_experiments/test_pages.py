"""What the READMEs say, against the kept results that they tell of."""

import json
import re

import numpy as np
import pytest

import dlsgan
from conftest import ROOT, page_text
from toy_experiments import settings
from toy_experiments.shared.cli import RESULTS
from toy_experiments.tools import paper_figures, results_table

PAIR = ("celeba64", "celeba64-no-scale")


def test_the_readme_table_comes_from_the_judged_runs():
    text = (ROOT / "README.md").read_text()
    assert results_table.found() in text and "| 3 |" in text  # three seeds


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


def judged(name):
    return results_table.load(name)["judged"]


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
    assert shown[3] == 8 and "reconstructions show all eight factors with the scale" in text
    at_most = max(m["r2_reconstructions"][smile] for m in seeds)
    r2 = scaled_long["r2_reconstructions"][smile]
    assert f"(R² {r2:.2f}, after 60,000 images at most {at_most:.2f})" in text
    first = judged("cartoon-long-seed-0")
    assert first["active"] == 8 and f"the smile (R² {first['r2_reconstructions'][smile]:.2f})" in text
    assert f"That is seed 1, with {scaled_long['active']} live dimensions" in text
    assert settings.known_factors(plain_long["r2_reconstructions"]) == 3 and "and three without it" in text
    others = sorted(plain_long["r2_reconstructions"])[:5]
    assert plain_long["r2_reconstructions"][smile] > others[-1]
    passed = f"the smile among them (R² {plain_long['r2_reconstructions'][smile]:.2f}"
    assert f"{passed}; the other five reach {others[0]:.2f} to {others[-1]:.2f})" in text
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
    minutes = results_table.load("cartoon")["minutes"]
    assert f"--lr-final 0.1 --seed 1`, {minutes:.0f} minutes on one core with AVX-512" in text


def test_what_the_readme_says_of_digits_and_speeds():
    text = page_text("README.md")
    digits = [judged(f"mnist-seed-{seed}") for seed in range(3)]
    plain = [judged(f"mnist-seed-{seed}-no-scale") for seed in range(3)]
    unclamped, longer, wide = (judged(f"mnist{x}") for x in ("-unclamped", "-narrow", ""))
    readable = [f"{np.mean([m['readable'] for m in runs]):.0%}" for runs in (digits, plain)]
    sure = f"of {readable[0]} of the samples after 120,000 images"
    assert f"is sure {sure} ({readable[1]} without the scale), of" in text
    assert f"without the scale), of {longer['readable']:.0%} after 300,000, of" in text
    assert f"of {wide['readable']:.0%} with wider layers, and" in text
    assert f"and of {longer['readable_test']:.0%} of the test digits" in text
    kept = [results_table.load(name) for name in ("mnist", "mnist-narrow")]
    assert [result["measures"]["images"] for result in kept] == [300_000, 300_000]
    gains = [f"{m['psnr_gain_test']:+.1f} dB" for m in (wide, longer)]
    assert f"come back {gains[0]} above the mean digit after 300,000 images, against {gains[1]}" in text
    assert f"and {wide['kept']:.0%} keep their class, against {longer['kept']:.0%}" in text
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
    study = json.loads((RESULTS / "mnist.json").read_text())
    by_gamma = [f"{study[name]['measures']['readable']:.0%}" for name in ("gamma-10", "base")]
    assert "is sure of {} of the samples at gamma 10, and of {} at 2".format(*by_gamma) in text
    assert "little of what the encoder learned helps with real digits" in text
    assert unclamped["psnr_gain_test"] < 1.5 < 3 < digits[0]["psnr_gain_test"]
    kept = json.loads((RESULTS / "speed-avx512.json").read_text())
    floors = [kept[f"floor, {n} threads"] for n in (1, 2)]
    of_floor = [row["step/floor"] for rows in floors for name, row in rows.items() if "128x128" in name]
    presets = [kept[f"presets, {n} threads: before, after, gain"] for n in (1, 2)]
    gains = [row["gain"] for section in presets for row in section.values()]
    assert f"takes {min(of_floor):.2f} to {max(of_floor):.2f} of it" in text
    small = [
        ", ".join(f"{rows[name]['step/floor']:.1f}" for name in ("celeba64", "cartoon", "mnist"))
        for rows in floors
    ]
    assert f"take {small[0]} times their floor on one core, and {small[1]} on two" in text
    slower = json.loads((RESULTS / "speed-avx2.json").read_text())
    names = ("cartoon", "mnist", "celeba64")
    speeds = [[f"{x['floor, 1 threads'][name]['images/s']:.0f}" for name in names] for x in (kept, slower)]
    fast = "{} cartoon faces, {} digits or {} faces of `celeba64` a second".format(*speeds[0])
    assert f"{fast}, one with AVX2 on {{}}, {{}} and {{}}".format(*speeds[1]) in text
    rows = [slower[f"floor, {n} threads"] for n in (1, 2)]
    large = [row["step/floor"] for section in rows for name, row in section.items() if "128x128" in name]
    assert f"With AVX2 it is {min(large):.1f} to {max(large):.1f} times at 128x128" in text
    small = [row["step/floor"] for name, row in rows[0].items() if "128x128" not in name]
    toys = page_text("toy_experiments/README.md")
    assert f"at {min(small):.0f} to {max(small):.1f} times their floor on one AVX2 thread" in toys
    assert f"make a preset {min(gains):.1f} to {max(gains):.1f} times as fast" in text


def test_what_the_pages_say_of_time_and_of_the_trials_on_faces():
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
    instead = f"not {same['active']} and {same['psnr_gain_test']:.1f}"
    assert f"found {found} on test faces, {instead}" in page_text("README.md")
    lower = found.replace(" dimensions and", " and came to")
    assert (
        f"the run at 1.5 found {lower}" in page_text("README.md")
        and other["settings"]["encoder_weight"] == 1.5
    )
    moved = same["psnr_gain_test"] - other["measures"]["psnr_gain_test"]
    assert f"on another machine {moved:.1f} dB:" in page_text("toy_experiments/README.md")
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


def test_what_the_page_says_of_the_trials_on_faces():
    toys = page_text("toy_experiments/README.md")
    names = ("channel-base-512", "channel-base-1024", "gamma-1-from-the-start", "d-512", "d-512-no-scale")
    kept = [json.loads((results_table.TRIALS / f"{name}.json").read_text()) for name in names]
    narrow, wide, weak, large, large_plain = (result["measures"] for result in kept)
    assert f"see {narrow['images']:,} images and the wide ones {wide['images']:,}" in toys
    assert f"found more dimensions ({narrow['active']} and {wide['active']})" in toys
    assert abs(narrow["psnr_gain_test"] - wide["psnr_gain_test"]) < 0.15 and "back equally well" in toys
    curves = results_table.load("celeba64")["curves"]
    gains = dict(zip(curves["images"], curves["psnr_gain_test"], strict=True))
    live = dict(zip(curves["images"], curves["active"], strict=True))
    said = f"test faces come back {weak['psnr_gain_test']:+.1f} dB above the mean face with gamma 1"
    assert said in toys
    said = f"comes to {gains[32_000]:+.1f} dB after 32,000 images and {gains[48_000]:+.1f} dB after 48,000"
    assert said in toys and f"{live[112_000]:.0f} are live after 112,000 images" in toys
    assert f"{large['active']} are live after {large['images']:,} images" in toys
    assert f"learns nothing (L_enc {large_plain['l_enc']:.2f})" in toys and large_plain["l_enc"] > 0.98
    of_128 = [json.loads((results_table.TRIALS / f"d-128{x}.json").read_text()) for x in ("", "-no-scale")]
    worth = []  # of the scale, in dB, on generated and on test images
    for a, b in (of_128, [results_table.load(name) for name in PAIR]):
        for kind in ("generated", "test"):
            worth.append(a["exported"][f"psnr_gain_{kind}"] - b["exported"][f"psnr_gain_{kind}"])
    assert (
        "come back {:.1f} dB better with the scale than without, and test faces {:.1f} dB".format(*worth)
        in toys
    )
    assert "today {:.1f} and {:.1f} dB".format(*worth[2:]) in toys
    far = [result["judged"]["swd_ratio"] for result in of_128] + [judged(name)["swd_ratio"] for name in PAIR]
    with_128, without_128, now, without = (f"{ratio:.2f}" for ratio in far)
    assert f"were {with_128} times as far from test images as other test images are" in toys
    assert f"are {now} times as far today (without it {without_128} and {without})" in toys
    assert f"with the scale as without it ({now} and {without})" in page_text("README.md")
    assert abs(far[2] - far[3]) < 0.05


def test_what_the_pages_say_of_settings_at_equal_time():
    kept = settings.sorted_runs(json.loads((RESULTS / "settings.json").read_text()))
    toys, text = page_text("toy_experiments/README.md"), page_text("README.md")
    assert settings.table(kept) in (ROOT / "toy_experiments/README.md").read_text()
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
    found = "at 1, 1.5, 2 and 3 it finds {}, {}, {} and {} dimensions".format(*dimensions)
    better = "come back {:.1f}, {:.1f}, {:.1f} and {:.1f} dB above the mean face after 60,000".format(*gains)
    assert f"{found}, and test faces {better}" in text
    best = min((m["swd_ratio"], name) for name, m in runs.items())
    assert best[1] == "window-1000" and runs["lambda-10-to-1"]["swd_ratio"] > runs["base"]["swd_ratio"]
    assert f"blurred samples ({runs['gamma-10']['swd_ratio']:.2f})" in toys
    generated = runs["base"]["psnr_gain_generated"] - runs["no-scale"]["psnr_gain_generated"]
    worth = f"worth {lost['no-scale']:.1f} dB on test faces and {generated:.1f} dB on generated ones"
    assert worth in toys
    smile = dlsgan.CARTOON_FACTORS.index("smile")
    assert all(m["r2_reconstructions"][smile] < 0.1 for m in runs.values())
    of_seeds = [judged(f"cartoon-seed-{seed}")["psnr_gain_test"] for seed in range(3)]
    assert f"three seeds of the preset lie up to {max(of_seeds) - min(of_seeds):.1f} dB apart" in toys
    ends = [f"{gain[name]:+.1f}" for name in ("head-1", "sma-400", "seed-1", "seed-2")]
    assert (
        "comes to {} dB on test faces, the paper's plain average over as many steps to {},".format(*ends)
        in toys
    )
    assert "Two other seeds of the base come to {} and {} dB".format(*ends[2:]) in toys
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


def test_the_tables_of_all_runs_come_from_the_kept_results():
    text = (ROOT / "toy_experiments" / "README.md").read_text()
    for folder in (results_table.FOLDER, results_table.TRIALS):
        assert results_table.table(folder=folder) in text and list(folder.glob("*.json"))


def test_the_page_tells_of_speeds_what_was_measured():
    assert results_table.speeds() in (ROOT / "toy_experiments" / "README.md").read_text()


def test_the_pages_tell_of_the_pair_what_was_measured():
    main = page_text("README.md")
    toys = page_text("toy_experiments/README.md")
    table, _ = results_table.compare(list(PAIR)).split("\n\n")
    assert " ".join(table.split()) in toys
    kept = [results_table.load(name) for name in (*PAIR, "celeba128")]
    a, b, large = (result["exported"] for result in kept)
    first = results_table.load("celeba64-304000")
    seen = first["measures"]["images"]
    preset = dict(dlsgan.PRESETS["celeba64"])
    assert abs(seen / preset.pop("images") - 1) < 0.02
    for key in ("lr_final", "encoder_weight_final", "r1_gamma_final"):  # "fall as the preset's do"
        fallen = first["settings"][key] ** (seen / first["settings"]["images"])
        assert fallen == pytest.approx(preset.pop(key), rel=0.02)
    assert first["settings"].items() >= preset.items()
    second = results_table.load("celeba64-544000")
    assert second["measures"]["images"] == seen + second["settings"]["images"]
    third = results_table.load("celeba64-844000")
    assert third["measures"]["images"] == second["measures"]["images"] + third["settings"]["images"]
    assert a["images"] == b["images"] == third["measures"]["images"] + kept[0]["settings"]["images"]
    assert kept[0]["stretches"] == kept[1]["stretches"] == 4 and a["images"] > 1_000_000
    assert f"{kept[0]['minutes']:.0f} minutes with the scale and {kept[1]['minutes']:.0f} without it" in toys
    assert f"{kept[0]['minutes']:.0f} minutes in all on one core, three of them with AVX-512" in main
    before = [results_table.load(f"celeba64-844000{x}")["exported"] for x in ("", "-no-scale")]
    worth = [
        before[0][f"psnr_gain_{kind}"] - before[1][f"psnr_gain_{kind}"] for kind in ("generated", "test")
    ]
    assert f"(SWD {before[0]['swd']:.1f} and {before[1]['swd']:.1f} before it)" in toys
    gains = f"({before[0]['psnr_gain_test']:+.2f} against {before[1]['psnr_gain_test']:+.2f})"
    said = f"came back {worth[0]:.1f} dB better with the scale, test faces {worth[1]:.2f} dB {gains}"
    assert said in toys
    assert a["swd"] < before[0]["swd"] and b["swd"] > before[1]["swd"]  # "nearer", "a little farther"
    size = f"{large['images']:,} images of {large['trained_on']:,} photographs"
    assert f"{size} in {kept[2]['minutes']:.0f} minutes" in toys and kept[2]["stretches"] == 2
    harsh = results_table.load("celeba128-300000")
    assert f"{harsh['command']} --out runs/celeba128 {kept[2]['command']} ```" in toys
    assert large["images"] == harsh["measures"]["images"] + kept[2]["settings"]["images"] >= 400_000
    assert harsh["settings"]["r1_gamma"] == 10 * kept[2]["settings"]["r1_gamma"] == 4 * preset["r1_gamma"]
    before_it = harsh["exported"]
    was = f"{before_it['l_enc']:.2f}, {before_it['active']}, {before_it['psnr_gain_generated']:+.1f} dB and"
    assert f"{before_it['images']:,} images, it was {was} {before_it['psnr_gain_test']:+.1f} dB" in toys
    ratios = [result["swd"] / result["swd_test"] for result in (before_it, large)]
    as_far = "{:.1f} times as far from test images as other test images are; now they are {:.1f} times"
    assert as_far.format(*ratios) in toys
    ahead = []  # of the model without the scale, on generated and on test images
    for measure in ("psnr_generated", "psnr_test"):
        pairs = zip(*(result["curves"][measure] for result in kept[:2]), strict=True)
        ahead.append([x - y for x, y in pairs])
    images = kept[0]["curves"]["images"]
    behind = max(n for n, x in zip(images, ahead[0], strict=True) if x < 0)
    assert f"ahead from {behind + 16_000:,} images on, at the end by {ahead[0][-1]:.1f} dB" in toys
    by_gain = [result["curves"]["psnr_gain_generated"][-1] for result in kept[:2]]
    assert f"allows for the mean image of each model, is {by_gain[0] - by_gain[1]:.1f} dB apart" in toys
    l_enc = dict(zip(images, kept[1]["curves"]["l_enc"], strict=True))
    late = [value for n, value in l_enc.items() if n >= 80_000]
    assert f"stays between {min(late):.2f} and {max(late):.2f} from 80,000 images on" in toys
    gains = [dict(zip(images, result["curves"]["psnr_gain_test"], strict=True)) for result in kept[:2]]
    same = {f"both come to the same {gain[seen]:+.1f} dB in the first stretch" for gain in gains}
    assert len(same) == 1 and same.pop() in toys
    later = [[gain[n] for n in images if n > seen] for gain in gains]
    low, high = f"{min(later[0]):+.1f}", f"{max(later[0]):+.1f}"
    assert f"falls to {later[1][-1]:+.1f} dB, the one with it stays between {low} and {high}" in toys
    judgements = [
        (judged(name)["psnr_gain_test"], judged(f"celeba64-304000{x}")["psnr_gain_test"])
        for name, x in zip(PAIR, ("", "-no-scale"), strict=True)
    ]
    lost = [first - last for last, first in judgements]
    assert f"the model with the scale lost {lost[0]:.1f} dB, and the other {lost[1]:.1f}" in toys
    assert all(x > 0 for n, x in zip(images, ahead[1], strict=True) if n > seen)
    assert f"it is ahead throughout, at the end by {ahead[1][-1]:.1f} dB" in toys
    rows = [a["distances"]["samples"], a["distances"]["other test images"], b["distances"]["samples"]]
    fine = "({:.0f} with the scale, {:.0f} without, against {:.0f})"
    assert fine.format(*(rows[i]["swd 64"] for i in (0, 2, 1))) in toys
    assert "({:.0f} against {:.0f}, and {:.0f} without)".format(*(row["swd 16"] for row in rows)) in toys
    dead, weakest = sorted(a["v"])[-1 - a["active"] :][:2]
    assert f"after the {a['active']}th dimension, from {weakest:.2f} to {dead:.2f}" in toys
    settings = [result["settings"] for result in kept]
    assert {key for key in settings[0] if settings[0][key] != settings[1][key]} == {"latent_scale"}
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
        f"({a['psnr_gain_test']:+.2f} against {b['psnr_gain_test']:+.2f} dB over the mean face;",
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
    youth = [f"{scores['from z_hat']['Young']:.0%}" for scores in (with_scale, without)]
    assert (
        "a little worse with the scale (youth {} against {}), a smile a little better".format(*youth) in toys
    )
    better = {
        name: with_scale["from z_hat"][name] - without["from z_hat"][name]
        for name in with_scale["from z_hat"]
    }
    assert max(better["Male"], better["Young"]) < 0 < better["Smiling"]
    smiles = [f"{scores['from reconstructions']['Smiling']:.0%}" for scores in (with_scale, without)]
    assert f"({smiles[0]} with the scale, {smiles[1]} without)" in toys
    assert f"right in {smiles[0]} of the reconstructions, {smiles[1]} without" in page_text("README.md")
    assert f"and {with_scale['from the images']['Smiling']:.0%} what it reads off" in page_text("README.md")


def test_the_page_shows_each_figure_of_the_paper():
    toys = page_text("toy_experiments/README.md")
    shown = {path.stem for path in (RESULTS / "paper" / "celeba64").glob("*.png")}
    assert shown == {f"figure-{name}" if name[0].isdigit() else name for name in paper_figures.FIGURES}
    assert all(f"results/paper/celeba64/{name}.png" in toys for name in shown)
