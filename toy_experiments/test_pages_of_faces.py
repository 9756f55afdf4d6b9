"""What the page on toy experiments says of photographs, against the kept results that it tells of."""

import json

import pytest

import dlsgan
from conftest import judged, page_text
from toy_experiments.shared.cli import RESULTS
from toy_experiments.tools import paper_figures, results_table

PAIR = ("celeba64", "celeba64-no-scale")


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
    assert (
        f"learns nothing in 60,000 images (L_enc {large_plain['l_enc']:.2f})" in toys
        and large_plain["l_enc"] > 0.98
    )
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
    gain_of_the_first = f"{gains[0][seen]:+.1f}"
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
    assert f"Generated faces come back {difference} better" in main
    assert f"without weights stays as it is ({b['mse_z']:.2f} and {a['mse_z']:.2f})" in main
    assert abs(a["mse_z"] - b["mse_z"]) < 0.02
    assert f"photographs both models had {gain_of_the_first} dB after the first stretch" in main
    assert f"cost the one without the scale {lost[1]:.1f} dB and the other {lost[0]:.1f} (" in main
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
    youth = [f"{scores['from z_hat']['Young']:.0%}" for scores in (with_scale, without)]
    assert (
        "a little worse with the scale (youth {} against {}), a smile a little better".format(*youth) in toys
    )
    better = {
        name: with_scale["from z_hat"][name] - without["from z_hat"][name]
        for name in with_scale["from z_hat"]
    }
    assert max(better["Male"], better["Young"]) < 0 < better["Smiling"]
    for scores in (with_scale, without):  # "shows less than z_hat knows, above all of glasses"
        less = {name: scores["from z_hat"][name] - x for name, x in scores["from reconstructions"].items()}
        assert min(less.values()) > 0 and max(less, key=less.get) == "Eyeglasses"
    smiles = [f"{scores['from reconstructions']['Smiling']:.0%}" for scores in (with_scale, without)]
    assert f"right in {smiles[0]} of the reconstructions, {smiles[1]} without" in page_text("README.md")
    assert f"and {with_scale['from the images']['Smiling']:.0%} what it reads off" in page_text("README.md")


def test_the_page_shows_each_figure_of_the_paper():
    toys = page_text("toy_experiments/README.md")
    shown = {path.stem for path in (RESULTS / "paper" / "celeba64").glob("*.png")}
    assert shown == {f"figure-{name}" if name[0].isdigit() else name for name in paper_figures.FIGURES}
    assert all(f"results/paper/celeba64/{name}.png" in toys for name in shown)
