"""Planar data, d = 8 latent dimensions: the scale finds the two that the data has.

Claim. Small networks are trained until their samples fit the data: eight clusters on a ring, a swiss roll, a
checkerboard and a correlated Gaussian. With the latent scale two dimensions stay alive (v > 1/2), v is below
0.02 in the other six, and L_enc ends at 0.03 or less. Without it the generator spreads its information over
eight latents, the encoder can recover about two of eight parts, and L_enc stays at 0.64 to 0.74 (Gaussian:
0.54 to 0.58). An encoder that is trained afterwards on the finished generator, for as many steps, hardly does
better: what the generator has lost no later encoder finds.

    ring        with the scale 89% of the samples lie within 4 standard deviations of a mode, 12 to 13% of
                these at each. The rest lies between the modes: a continuous map cannot leave out the way
                from one to the next, it can only be quick.
    the others  samples are 0.9 to 1.8 times as far from the data as another draw of the data is (sliced
                Wasserstein distance), with scale and without
    gaussian    the best map is known: linear, with two axes that are perpendicular and of length 1 where the
                data are round. Found: 90 degrees, length 1.00. v is what nearest-neighbour regression finds,
                within 0.0125.

Limits. 1 - 2/8 = 0.75 is a guide for L_enc without scale and no bound: a bent map can show more than two
latents' worth of variance in two numbers, on the Gaussian 3.3 to 3.7. Points of the data come back at a
distance of 0.04 to 0.07 on the ring, with scale or without: what is lost without it is the latent vector, and
a blurred one makes nearly the same point. On the Gaussian and the checkerboard the points, too, come back
closer with the scale (0.01 and 0.07 against 0.08 and 0.13). On an open curve one number is enough. One seed
of three finds that; the other two keep a second dimension alive, in which the generator puts the point just
off the curve: L_enc 0.03, and samples farther from the data.

    python -m toy_experiments.two_dimensional        5 data sets, 3 seeds: 30 minutes on one core (a training:
                                                     30 to 50 s); draws results/two_dimensional.png
    python -m toy_experiments.two_dimensional sweep  7 minutes: one setting changed at a time, on the ring
    python -m toy_experiments.two_dimensional table  the README's tables, from the kept results

Expected printout, a line a data set and seed, or a setting (the numbers vary a little with the machine;
best: the distance of two draws of the data):
    ring, seed 0: 2 live; L_enc 0.020, without 0.70, afterwards 0.70; distance 0.014 / 0.015 (best: 0.006)
    the setting in use: L_enc 0.020, 2 live, 89% within 4 sigma, 8 modes, distance 0.014, 33 s
"""

import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import dlsgan
from toy_experiments.shared import cli
from toy_experiments.shared.cli import RESULTS
from toy_experiments.shared.figures import WITH_SCALE, WITHOUT_SCALE
from toy_experiments.shared.planar import (
    BATCH_SIZE,
    DATA,
    ENCODER_WEIGHT,
    FINAL,
    LEARNING_RATE,
    R1_GAMMA,
    STEPS,
    D,
    draw_data,
    encoder_afterwards,
    gaussian_check,
    measure,
    reconstructions,
    train,
)

SWEEP = (  # changes of the setting above, one at a time
    {},
    {"encoder_weight": 0.1},
    {"encoder_weight": 1.0},
    {"r1_gamma": 0.002},
    {"r1_gamma": 0.1},
    {"r1_gamma": 1.0},
    {"learning_rate": 1e-3},
    {"final": 1.0},
    {"steps": 2500},
    {"batch_size": 512},
)

WITH, WITHOUT, AFTERWARDS = "with scale", "without scale", "encoder afterwards"
COLOURS = {WITH: WITH_SCALE, WITHOUT: WITHOUT_SCALE, AFTERWARDS: "#3c7a5d"}


def run(name: str, seed: int, steps: int = STEPS) -> tuple[dict, dict]:
    """One data set three ways: measures, and (model, encoder) of each."""
    start = time.process_time()
    found = train(name, seed, True, steps)
    seconds = time.process_time() - start
    lost = train(name, seed, False, steps)
    late = encoder_afterwards(lost, seed, steps)
    models = {
        WITH: (found, found.discriminator),
        WITHOUT: (lost, lost.discriminator),
        AFTERWARDS: (lost, late),
    }
    result = {"seed": seed, "seconds_of_one_training": round(seconds, 1)}
    for way, (model, encoder) in models.items():
        result[way] = measure(model, encoder, name)
    if name == "gaussian":
        result["check"] = gaussian_check(found)
    return result, models


def line(name: str, result: dict) -> str:
    """One line of the printout."""
    found = result[WITH]
    lost = result[WITHOUT]
    late = result[AFTERWARDS]
    losses = f"L_enc {found['l_enc']:.3f}, without {lost['l_enc']:.2f}, afterwards {late['l_enc']:.2f}"
    distances = f"{found['distance_of_samples']:.3f} / {lost['distance_of_samples']:.3f}"
    return (
        f"{name}, seed {result['seed']}: {found['live']} live; {losses}; "
        f"distance {distances} (best: {found['distance_of_two_draws']:.3f})"
    )


def run_all(seeds: int = 3, steps: int = STEPS) -> dict:
    """Every data set with every seed; keeps the measures and draws the models of seed 0."""
    about = {"command": "python -m toy_experiments.two_dimensional", "machine": cli.processor(), "threads": 1}
    runs = {}
    pictures = {}
    for name in DATA:
        runs[name] = []
        for seed in range(seeds):
            result, models = run(name, seed, steps)
            runs[name].append(result)
            pictures.setdefault(name, (result, models))
            print(line(name, result), flush=True)
        cli.write_json(
            RESULTS / "two_dimensional.json", about | {"setting": setting(steps=steps), "runs": runs}
        )
    draw(pictures, RESULTS / "two_dimensional.png")
    return runs


def setting(**changes: float) -> dict:
    """What a training is set to."""
    usual = {"steps": STEPS, "batch_size": BATCH_SIZE, "learning_rate": LEARNING_RATE, "final": FINAL}
    usual |= {"r1_gamma": R1_GAMMA, "encoder_weight": ENCODER_WEIGHT}
    return usual | changes


def sweep(steps: int = STEPS) -> dict:
    """The ring with scale, seed 0, with one setting changed at a time. The first row is the setting in
    use."""
    about = {
        "command": "python -m toy_experiments.two_dimensional sweep",
        "machine": cli.processor(),
        "threads": 1,
    }
    rows = []
    for change in SWEEP:
        start = time.process_time()
        settings = setting(steps=steps) | change
        model = train("ring", 0, True, **settings)
        seconds = round(time.process_time() - start, 1)
        row = {"change": change, "setting": settings, "seconds": seconds}
        row |= measure(model, model.discriminator, "ring")
        rows.append(row)
        print(sweep_line(row), flush=True)
        cli.write_json(
            RESULTS / "two_dimensional_sweep.json", about | {"data": "ring", "seed": 0, "rows": rows}
        )
    return {"rows": rows}


def change_of(row: dict) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in row["change"].items()) or "the setting in use"


def sweep_line(row: dict) -> str:
    """One line of the printout."""
    return (
        f"{change_of(row)}: L_enc {row['l_enc']:.3f}, {row['live']} live, {row['within_4_sigma']:.0%} within "
        f"4 sigma, {row['modes']} modes, distance {row['distance_of_samples']:.3f}, {row['seconds']:.0f} s"
    )


def span(values: list[float], form: str) -> str:
    """The lowest and the highest value, or the one value if both look the same."""
    low = format(min(values), form)
    high = format(max(values), form)
    return low if low == high else f"{low} to {high}"


def table(runs: dict) -> str:
    """Markdown: a row for each data set and way, with the lowest and the highest value of all seeds."""
    rows = [
        "| data | | L_enc | live | third largest v | distance | error of reconstructions |",
        "|---" * 7 + "|",
    ]
    for name, results in runs.items():
        for way in (WITH, WITHOUT, AFTERWARDS):
            measured = [result[way] for result in results]
            ratios = [m["distance_of_samples"] / m["distance_of_two_draws"] for m in measured]
            cells = [
                name,
                way,
                span([m["l_enc"] for m in measured], ".3f"),
                span([m["live"] for m in measured], "d"),
                span([m["v"][2] for m in measured], ".2f"),
                span(ratios, ".1f"),
                span([m["error_of_reconstructions"] for m in measured], ".3f"),
            ]
            rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def sweep_table(rows: list[dict]) -> str:
    """Markdown: a row for each change of the setting."""
    lines = ["| change | L_enc | within 4 sigma | distance | seconds |", "|---" * 5 + "|"]
    for row in rows:
        ratio = row["distance_of_samples"] / row["distance_of_two_draws"]
        cells = [change_of(row), f"{row['l_enc']:.3f}", f"{row['within_4_sigma']:.0%}", f"{ratio:.1f}"]
        lines.append("| " + " | ".join([*cells, f"{row['seconds']:.0f}"]) + " |")
    return "\n".join(lines)


def print_tables() -> None:
    """The tables of the README, from the kept results."""
    print(table(json.loads((RESULTS / "two_dimensional.json").read_text())["runs"]))
    print()
    print(sweep_table(json.loads((RESULTS / "two_dimensional_sweep.json").read_text())["rows"]))


# ---- Figures -----------------------------------------------------------------------------------------------


@torch.no_grad()
def latent_lines(model: dlsgan.DLSGAN, first: int, second: int) -> list[np.ndarray]:
    """Images of grid lines in the plane of two latent dimensions, the others at 0: polylines [m, 2], nine
    along the first and then nine along the second."""
    lines = []
    for a, b in ((first, second), (second, first)):
        for level in torch.linspace(-2, 2, 9):
            z = torch.zeros(80, D)
            z[:, a] = torch.linspace(-2.5, 2.5, 80)
            z[:, b] = level
            lines.append(model.decode(z).numpy())
    return lines


def strongest(model: dlsgan.DLSGAN) -> list[int]:
    """Latent dimensions, the best known first, by v on 2,000 samples."""
    with torch.no_grad():
        v = model.encode(model.sample(2000)).square().mean(0)
    return v.argsort(descending=True).tolist()


def draw_data_set(panel, name: str, n: int = 2000) -> None:
    """Grey points of the data in a square without ticks."""
    data = draw_data(name, n, torch.Generator().manual_seed(0))
    panel.scatter(*data.numpy().T, s=2, color="0.75", linewidths=0)
    middle = (data.amax(0) + data.amin(0)) / 2
    half = 0.55 * (data.amax(0) - data.amin(0)).max()
    low, high = (middle - half).tolist(), (middle + half).tolist()
    panel.set(xticks=[], yticks=[], xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")


def draw_grid(panel, model: dlsgan.DLSGAN, colour: str) -> None:
    """Samples, and the image of a square grid in the plane of the two strongest latents."""
    with torch.no_grad():
        samples = model.sample(2000)
    panel.scatter(*samples.numpy().T, s=2, color="#edae49", linewidths=0)
    first, second, *_ = strongest(model)
    for curve in latent_lines(model, first, second):
        panel.plot(*curve.T, linewidth=0.8, color=colour)


def draw_reconstructions(
    panel, model: dlsgan.DLSGAN, x: Tensor, colour: str, encoder: nn.Module | None = None
) -> None:
    """A line from each point x [n, 2] to G(E(x)), where a dot stands."""
    back = reconstructions(model, x, encoder)
    lines = torch.stack((x, back), 2).numpy()  # [n, 2, 2 ends]
    panel.plot(*lines.transpose(1, 2, 0), color=colour, linewidth=0.8)
    panel.scatter(*back.numpy().T, s=5, color=colour, linewidths=0, zorder=3)


def draw(pictures: dict, path: Path) -> None:
    """A row a data set: data; samples and latent grid, reconstructions, each with scale and without; v of
    three ways."""
    from matplotlib.figure import Figure

    figure = Figure((14, 2.3 * len(pictures)), layout="constrained")
    rows = figure.subplots(len(pictures), 6, width_ratios=(1, 1, 1, 1, 1, 1.4), squeeze=False)
    for (name, (result, models)), row in zip(pictures.items(), rows, strict=True):
        for panel in row[:5]:
            draw_data_set(panel, name)
        row[0].set_ylabel(name)
        points = draw_data(name, 150, torch.Generator().manual_seed(5))
        for i, way in enumerate((WITH, WITHOUT)):
            model, _ = models[way]
            draw_grid(row[1 + i], model, COLOURS[way])
            draw_reconstructions(row[3 + i], model, points, COLOURS[way])
        for way, marker in zip(models, "os^", strict=True):
            label = f"{way}: L_enc {result[way]['l_enc']:.2f}"
            row[5].plot(range(1, D + 1), result[way]["v"], marker, color=COLOURS[way], label=label)
        row[5].axhline(0.5, color="0.6", linestyle="--", linewidth=0.8)
        row[5].set(ylim=(-0.05, 1.55), yticks=(0, 0.5, 1), ylabel="v")
        row[5].legend(frameon=False, fontsize=8, loc="upper right")
    titles = [
        "data",
        "samples, latent grid:\nwith scale",
        "without scale",
        "x to G(E(x)):\nwith scale",
        "without scale",
    ]
    for panel, title in zip(rows[0], [*titles, "v, sorted"], strict=True):
        panel.set_title(title, fontsize=10)
    rows[-1][5].set_xlabel("latent dimension", fontsize=9)
    figure.savefig(path, dpi=110)


def main(what: str = "runs", seeds: int = 3, steps: int = STEPS) -> dict | None:
    dlsgan.require(seeds > 0, f"--seeds {seeds}: must be at least 1")
    dlsgan.require(steps > 0, f"--steps {steps}: must be at least 1")
    torch.set_num_threads(1)
    if what == "sweep":
        return sweep(steps)
    if what == "table":
        return print_tables()
    return run_all(seeds, steps)


if __name__ == "__main__":
    parser = cli.parser(__doc__)
    parser.add_argument("what", nargs="?", default="runs", choices=("runs", "sweep", "table"))
    parser.add_argument("--seeds", type=int, default=3, help="runs a data set (default: 3)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"training steps (default: {STEPS})")
    with cli.one_line("two_dimensional"):
        main(**vars(parser.parse_args()))
