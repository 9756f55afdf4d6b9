"""Which settings matter: runs that differ from a base point by a change or a few, at equal processor time.

    python -m toy_experiments.settings run base lambda-1    trains and judges these runs, a result a line
    python -m toy_experiments.settings run                  all runs of LIST that are not kept yet
    python -m toy_experiments.settings table                the kept runs as Markdown
    python -m toy_experiments.settings figure               draws results/settings.png, settings_mnist.png
    python -m toy_experiments.settings judge runs/cartoon   all judges on any checkpoint, a measure a line

A name is a change or several: lambda-1+d-128, mnist+window-2000+seed-1. --minutes is the processor time of a
run on one thread (default 6). Before a run's first step a few steps tell how many images fit into that, so
that the learning rate falls to its end just then; evaluations (seconds each) come on top. A run goes on where
it stopped. --data-dir says where MNIST is (default: data/mnist; labels are downloaded when absent).

Judges. L_enc, live dimensions and the 9th and 12th largest v; spread and the gains in dB over the mean image,
of reconstructions of generated and of test images; SWD, the sliced Wasserstein distance of samples to test
images, over that of other test images. Faces: R^2 of each factor of unseen faces, by ridge regression from
z_hat in the live dimensions alone, and by a convolutional regressor, trained on drawn faces, that looks at
reconstructions. All of z_hat would tell the factors even without the scale, in dimensions that the generator
ignores. Digits: share of samples that a classifier reads with a confidence above 0.95, over that of test
digits; how many of the ten classes make up 5 to 15% of the samples; share of test digits whose reconstruction
is read as the same digit. CelebA, with `judge` alone: balanced accuracy of attributes of test images, read
from z_hat, from reconstructions and from the images.

Expected printout of `run base` (the numbers vary with the machine):
    base, 6 min: 38,440 images, L_enc 0.20, 6 live, spread 0.95, test +4.1 dB, SWD ratio 1.53, 1 of 8 factors
"""

import dataclasses
import json
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure

import dlsgan
from toy_experiments.shared import cli, figures, judges
from toy_experiments.shared.budget import images_within
from toy_experiments.shared.cli import RESULTS
from toy_experiments.shared.training import images_seen

CHECKPOINTS = Path("runs/settings")  # of the reader's folder; not kept in the repository
BASE = {  # the point from which each run differs
    "encoder_weight": 3.0,
    "encoder_weight_final": 1.0,
    "latent_dim": 64,
    "channel_base": 512,
    "channel_max": 64,
    "batch_size": 8,
    "lr": 4e-3,
    "lr_final": 0.25,
    "r1_gamma": 2.0,
    "scale_rule": "ema",
    "scale_window": 400,
    "head_scale": 0.1,
    "threads": 1,
    "device": "cpu",
}
CHANGES = {
    "base": {},
    "mnist": {"lr": dlsgan.Config().lr} | dlsgan.PRESETS["mnist"],  # the preset's rate is the default
    **{f"lambda-{x:g}": {"encoder_weight": float(x)} for x in (0.3, 1, 3, 10)},
    "lambda-stays": {"encoder_weight_final": 1.0},
    "lambda-10-to-1": {"encoder_weight": 10.0, "encoder_weight_final": 0.1},
    "lambda-3-to-0.3": {"encoder_weight_final": 0.1},
    "no-scale": {"latent_scale": False},
    **{f"gamma-{x:g}": {"r1_gamma": float(x)} for x in (0.2, 2, 10)},
    **{f"d-{d}": {"latent_dim": d} for d in (128, 512)},
    "channels-256-32": {"channel_base": 256, "channel_max": 32},
    "channels-1024-128": {"channel_base": 1024, "channel_max": 128},
    **{f"batch-{n}": {"batch_size": n} for n in (4, 16)},
    **{f"lr-{lr:g}": {"lr": lr} for lr in (0.002, 0.004, 0.008, 0.016)},
    **{f"lr-final-{x:g}": {"lr_final": x} for x in (0.1, 1.0)},
    **{f"window-{n}": {"scale_window": n} for n in (100, 400, 1000, 2000)},
    "sma-400": {"scale_rule": "sma"},
    "head-1": {"head_scale": 1.0},
    **{f"seed-{seed}": {"seed": seed} for seed in (1, 2)},
}


LIST = [name for name in CHANGES if name == "base" or BASE | CHANGES[name] != BASE]
LIST.remove("mnist")  # what `run` without names does: all changes, and a few with digits
LIST += [f"mnist+{name}" for name in ("base", "lambda-10", "gamma-10", "window-400", "lr-0.004")]


def configure(name: str, data_dir: str = "") -> dlsgan.Config:
    """The settings of a run: the base point with the changes that its name lists, joined by +."""
    settings = dict(BASE)
    for part in name.split("+"):
        dlsgan.require(part in CHANGES, f"unknown change {part!r} in {name!r}: choose {', '.join(CHANGES)}")
        settings |= CHANGES[part]
    if settings.get("dataset") == "mnist":
        settings["data_dir"] = data_dir
    return dlsgan.Config(**settings)


def processor_seconds(out: Path) -> float:
    """What a run in this folder has taken so far; 0 if it did not come to write that down."""
    clock = out / "processor.json"
    return json.loads(clock.read_text())["seconds"] if clock.exists() else 0.0


def train(name: str, minutes: float, data_dir: str = "") -> Path:
    """Trains a run, or goes on with it where it stopped. Returns its folder."""
    out = CHECKPOINTS / f"{minutes:g}-minutes" / name
    config = configure(name, data_dir)
    clock = out / "processor.json"
    used = 0.0
    if resume := (out / "checkpoint.pt").exists():
        config, state = dlsgan.read_checkpoint(out)
        if images_seen(config, state) >= config.images:
            return out
        used = processor_seconds(out)
    else:
        images = images_within(minutes, config, CHECKPOINTS / "seconds_per_image.json")
        config = dataclasses.replace(config, images=images, out=str(out))
    start = time.process_time() - used
    try:
        for line in dlsgan.train(config, resume):
            if "l_enc" in line:
                cli.write_json(clock, {"seconds": time.process_time() - start})
    finally:  # after Ctrl-C, too
        cli.write_json(clock, {"seconds": time.process_time() - start})
    return out


def judge(checkpoint: str | Path, data_dir: str = "") -> dict:
    """All judges on a checkpoint or the folder of a run: {measure: number or list of numbers}."""
    config, _ = dlsgan.read_checkpoint(checkpoint)
    known = config.dataset != "folder"
    dlsgan.require(known, f"{checkpoint} was trained on a folder of images, for which there is no judge")
    config = dataclasses.replace(config, data_dir=data_dir or config.data_dir)
    model = dlsgan.load_model(checkpoint, "cpu")
    test = dlsgan.to_float(dlsgan.LOADERS[config.dataset](config)[1][:2000])
    result = judges.quality(model, test)
    if config.dataset == "cartoon":
        regressor = judges.factor_regressor(CHECKPOINTS / "judges", config.resolution)
        result |= judges.factors(model, regressor)
    elif config.dataset == "celeba":
        result["recognised"] = judges.recognised(model, judges.celeba_material(config))
    else:
        classifier, accuracy = judges.digit_classifier(CHECKPOINTS / "judges", config)
        result |= judges.digits(model, classifier, test[:1000]) | {"classifier_accuracy": accuracy}
    return result


def rounded(x: object) -> object:
    """Numbers to four digits, in lists and dicts, too."""
    if isinstance(x, dict):
        return {key: rounded(value) for key, value in x.items()}
    if isinstance(x, list):
        return [rounded(value) for value in x]
    return round(x, 4) if isinstance(x, float) else x


def key_of(name: str, minutes: float) -> str:
    return f"{name}, {minutes:g} min"


def run(name: str, minutes: float, data_dir: str) -> dict:
    """Trains and judges a run."""
    out = train(name, minutes, data_dir)
    config, state = dlsgan.read_checkpoint(out)
    history = json.loads(state["history"])
    columns = ("images", "l_enc", "active", "spread", "psnr_gain_generated", "psnr_gain_test")
    return {
        "command": f"python -m toy_experiments.settings run {name} --minutes {minutes:g}",
        "dataset": config.dataset,
        "images": config.images,
        "seed": config.seed,
        "machine": cli.processor(),
        "threads": config.threads,
        "processor_minutes": round(processor_seconds(out) / 60, 2),
        "measures": rounded(judge(out, data_dir)),
        "curves": [rounded({key: line[key] for key in columns}) for line in history if "l_enc" in line],
    }


def summary(name: str, r: dict) -> str:
    """A line of the printout."""
    m = r["measures"]
    text = (
        f"{name}: {r['images']:,} images, L_enc {m['l_enc']:.2f}, {m['active']} live, "
        f"spread {m['spread']:.2f}, test {m['psnr_gain_test']:+.1f} dB, SWD ratio {m['swd_ratio']:.2f}, "
    )
    if "kept" in m:
        return text + f"readable {m['readable']:.2f} of {m['readable_test']:.2f}, kept {m['kept']:.2f}"
    return text + f"{known_factors(m['r2_reconstructions'])} of 8 factors"


def known_factors(scores: list[float], least: float = 0.8) -> int:
    return sum(score >= least for score in scores)


def sorted_runs(results: dict) -> dict:
    """The kept runs in the order of CHANGES."""
    order = list(CHANGES)

    def places(key: str) -> list[int]:
        return [order.index(part) for part in key.split(", ")[0].split("+")]

    return {key: results[key] for key in sorted(results, key=places)}


def row(key: str, r: dict) -> list[str]:
    """The cells of a run, under their headings in `table`."""
    m = r["measures"]
    cells = [key.split(", ")[0], f"{r['processor_minutes']:.1f}", f"{r['images']:,}"]
    cells += [f"{m['l_enc']:.2f}", str(m["active"])]
    cells += [f"{m['v'][8]:.2f}, {m['v'][11]:.2f}", f"{m['spread']:.2f}"]
    cells += [f"{m['psnr_gain_generated']:+.1f}, {m['psnr_gain_test']:+.1f}", f"{m['swd_ratio']:.2f}"]
    if "kept" in m:
        cells += [f"{m['readable']:.2f} / {m['readable_test']:.2f}", str(m["classes"]), f"{m['kept']:.2f}"]
    else:
        for scores in (m["r2_latents"], m["r2_reconstructions"]):
            cells.append(f"{known_factors(scores)} ({min(scores):.2f})")
    return cells


def table(results: dict) -> str:
    """Markdown: a table for each data set, a row a run."""
    columns = [
        "run",
        "minutes",
        "images",
        "L_enc",
        "live",
        "v, 9th, 12th",
        "spread",
        "gain generated, test",
        "SWD ratio",
    ]
    own = {
        "cartoon": ["factors from latents (least R^2)", "from reconstructions (least R^2)"],
        "mnist": ["readable / test digits", "classes", "kept"],
    }
    lines = []
    for dataset, more in own.items():
        runs = {key: r for key, r in results.items() if r["dataset"] == dataset}
        if runs:
            headings = columns + more
            lines += ["", f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
            lines += [f"| {' | '.join(row(key, r))} |" for key, r in runs.items()]
    return "\n".join(lines[1:])


PANELS = {  # measure: title and the bar to meet, if there is one
    "l_enc": ("L_enc", 0.15),
    "active": ("live dimensions", None),
    "spread": ("spread", 0.95),
    "psnr_gain_generated": ("generated, dB", None),
    "psnr_gain_test": ("test, dB", 5.0),
    "swd_ratio": ("SWD ratio", 1.3),
}


def draw(results: dict, dataset: str, path: Path) -> None:
    """All measures of the runs on a data set, a row a run; dashed, for cartoon faces: what the default run
    should reach."""
    runs = {key: r for key, r in results.items() if r["dataset"] == dataset}
    figure = Figure((13, 2.4 + 0.3 * len(runs)), layout="constrained")
    axes = figure.subplots(1, 8, width_ratios=(1, 1, 1, 1, 1, 1, 2.4, 2.4))
    for axis, key in zip(axes, PANELS, strict=False):
        title, aim = PANELS[key]
        if dataset != "cartoon":
            aim = None  # the bars are those of the default run, on cartoon faces
        figures.bars(axis, [r["measures"][key] for r in runs.values()], title, aim)
    axes[0].set_yticks(range(len(runs)), [key.split(", ")[0] for key in runs], fontsize=8)
    measures = [r["measures"] for r in runs.values()]
    if dataset == "cartoon":
        for axis, key in zip(axes[6:], ("r2_latents", "r2_reconstructions"), strict=True):
            rows = [m[key] for m in measures]
            figures.heat_map(axis, rows, dlsgan.CARTOON_FACTORS, f"R^2 from {key.removeprefix('r2_')}")
    else:
        rows = [[m["readable"], m["readable_test"], m["classes"] / 10, m["kept"]] for m in measures]
        names = ("readable samples", "readable test digits", "classes / 10", "class kept")
        figures.heat_map(axes[6], rows, names, "digits")
        axes[7].axis("off")
    aims = "; dashed: what the default run aims at" if dataset == "cartoon" else ""
    figure.suptitle(f"{dataset}: runs at equal processor time{aims}", fontsize=10)
    figure.savefig(path, dpi=110)


def print_measures(measures: dict) -> None:
    """A measure a line; lists, such as v, are cut after sixteen numbers."""
    for key, value in measures.items():
        numbers = value if isinstance(value, list) else [value]
        print(f"{key:22}{' '.join(f'{x:.4g}' for x in numbers[:16])}")
    if "r2_latents" in measures:
        print(f"{'factors':22}{', '.join(dlsgan.CARTOON_FACTORS)}")


def main(what: str, names: tuple = (), minutes: float = 6.0, data_dir: str = "data/mnist") -> dict:
    torch.set_num_threads(1)
    path = RESULTS / "settings.json"
    results = cli.read_runs(path)
    if what == "judge":
        dlsgan.require(len(names) == 1, "judge needs one checkpoint or folder of a run")
        of_digits = dlsgan.read_checkpoint(names[0])[0].dataset == "mnist"
        measures = rounded(judge(names[0], data_dir if of_digits else ""))
        print_measures(measures)
        return measures
    if what == "run":
        dlsgan.require(0 < minutes < 10_000, f"--minutes {minutes} is out of range")
        for name in names:
            configure(name)  # a wrong name is told before hours of training
        for name in names or [name for name in LIST if key_of(name, minutes) not in results]:
            result = run(name, minutes, data_dir)
            results = cli.read_runs(path) | {key_of(name, minutes): result}  # other runs may have finished
            cli.write_runs(path, results, results)
            print(summary(key_of(name, minutes), result), flush=True)
        return results
    dlsgan.require(results, "no run is kept yet: python -m toy_experiments.settings run base")
    results = sorted_runs(results)
    if what == "figure":
        for dataset, name in (("cartoon", "settings.png"), ("mnist", "settings_mnist.png")):
            if any(r["dataset"] == dataset for r in results.values()):
                draw(results, dataset, RESULTS / name)
    print(table(results))
    return results


if __name__ == "__main__":
    parser = cli.parser(__doc__)
    parser.add_argument("what", choices=("run", "table", "figure", "judge"))
    parser.add_argument("names", nargs="*", help=f"runs: {', '.join(CHANGES)}, joined by +; or a checkpoint")
    parser.add_argument("--minutes", type=float, default=6.0, help="processor time of a run (default: 6)")
    parser.add_argument("--data-dir", default="data/mnist", help="where MNIST is (default: data/mnist)")
    with cli.one_line("settings"):
        main(**vars(parser.parse_args()))
