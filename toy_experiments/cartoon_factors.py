"""How many dimensions does DLSGAN find in faces drawn from K known factors, and which factor does each of
them carry?

Claim. `dlsgan.cartoon_faces` draws each face from eight independent numbers. If only the first K vary and the
others stay at 0, the images have K degrees of freedom, so that a generator that loses nothing should end with
K live latent dimensions (v > 1/2) of d = 64, and the encoder should know the K numbers of a face that it has
never seen.

What came out, with the cartoon preset (60,000 images). The number of live dimensions follows K: 3 for K = 2;
4, 5 and 4 for K = 4 (three seeds); 6 for K = 6; 10 for K = 8, each time with nothing behind them. That meets
the aim (within 1, from K = 6 on within 3). R^2 is at least 0.9 for each factor but one, the smile, which
neither the run with six factors nor the one with eight has found: of all factors it changes the pixels least.
Dead dimensions can be left out (PSNR above 30), and the spread is within 3% of 1.

Limits. A high R^2 alone says little: an untrained network's outputs tell the factors of few-factor faces as
well (r2_untrained_* in the results). So R^2 is that of the live dimensions alone, by boosted trees, as the
generator may bend or fold a factor; the linear fit and the R^2 of one dimension at a time stand beside it.
The encoder is not calibrated: in four of six runs its predictions are too small, E[z z_hat] > E[z_hat^2] in
the mean weighted by s^2, and L_enc lies below the 1 - sum(v^2)/sum(v) of an optimal encoder with this v.

    python -m toy_experiments.cartoon_factors           the runs that are not kept yet, then the figure
    python -m toy_experiments.cartoon_factors 4-0       K = 4, seed 0: 4 minutes on a core with AVX-512

A run that is named is trained also when its result is kept, unless its networks are in runs/cartoon_factors
already. The figure shows networks of two runs, 4-0 and 8-0: without these it is left as it is.

Expected printout (the numbers vary a little with the machine):
    share of the pixels' variance at 32x32: x 23%, y 13%, size 21%, tilt 12%, smile 7%, eye opening 9%,
        skin tone 22%, background tone 22%
    K = 2, seed 0: 3 live, L_enc 0.05, spread 1.03, least R^2 0.99, gain on test faces +12.9 dB
    K = 4, seed 0: 4 live, L_enc 0.05, spread 1.02, least R^2 0.97, gain on test faces +14.8 dB
    K = 4, seed 1: 5 live, L_enc 0.06, spread 1.03, least R^2 0.96, gain on test faces +13.7 dB
    K = 4, seed 2: 4 live, L_enc 0.05, spread 1.01, least R^2 0.97, gain on test faces +14.7 dB
    K = 6, seed 0: 6 live, L_enc 0.05, spread 1.01, least R^2 0.10, gain on test faces +9.2 dB
    K = 8, seed 0: 10 live, L_enc 0.08, spread 0.99, least R^2 0.15, gain on test faces +8.6 dB
"""

import copy
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LinearRegression
from torch import Tensor

import dlsgan
from toy_experiments.shared import cli, figures
from toy_experiments.shared.cli import RESULTS
from toy_experiments.shared.factors import face_shares_line

CHECKPOINTS = Path("runs/cartoon_factors")  # of the reader's folder; not kept in the repository
RUNS = ("2-0", "4-0", "4-1", "4-2", "6-0", "8-0")  # K-seed


def draw_faces(n: int, k: int, rng: torch.Generator, resolution: int) -> tuple[Tensor, Tensor]:
    """Faces [n, 3, H, W] of which only the first k factors vary, and the factors [n, 8]."""
    u = torch.randn(n, 8, generator=rng)
    u[:, k:] = 0
    faces, _ = dlsgan.cartoon_faces(n, resolution, values=u)
    return faces.contiguous(memory_format=torch.channels_last), u


def train(k: int, c: dlsgan.Config) -> dlsgan.DLSGAN:
    """`dlsgan.train` in short, with other data: each face is drawn for its step. Returns the averaged
    networks."""
    torch.manual_seed(c.seed)
    model = dlsgan.build(c).to(memory_format=torch.channels_last)
    networks = copy.deepcopy((model.generator, model.discriminator))
    average = dlsgan.DLSGAN(*networks, model.latent_scale).requires_grad_(False)
    optimizers = dlsgan.make_optimizers(model, c.lr)
    rng = torch.Generator().manual_seed(c.seed)
    steps = math.ceil(c.images / c.batch_size)
    for step in range(steps):
        dlsgan.decay_learning_rate(optimizers, c.lr, c.lr_final, step / steps)
        real, _ = draw_faces(c.batch_size, k, rng, c.resolution)
        weights = dlsgan.encoder_weight(c, step / steps), dlsgan.penalty_weight(c, step, step / steps)
        dlsgan.train_step(model, optimizers, real, rng, c.loss, *weights)
        dlsgan.average_weights(average, model, step)
    return average


def correlation_ratios(codes: np.ndarray, u: np.ndarray, bins: int = 20) -> np.ndarray:
    """R^2 of the best function of one latent alone: codes [n, d], u [n, K] -> [d, K]. The function is the
    mean of u in each of `bins` equally filled intervals of the latent, which sees a fold where a correlation
    sees nothing."""
    ranks = codes.argsort(0).argsort(0) * bins // len(codes)  # [n, d], the interval of each value
    members = ranks[None] == np.arange(bins)[:, None, None]  # [bins, n, d]
    counts = members.sum(1)[:, :, None]  # [bins, d, 1]
    means = np.einsum("bnd,nk->bdk", members, u) / counts
    explained = (counts * (means - u.mean(0)) ** 2).sum(0) / len(codes)  # [d, K]
    return explained / u.var(0)


def scores(codes: np.ndarray, u: np.ndarray, kind: Callable = HistGradientBoostingRegressor) -> list[float]:
    """R^2 of each factor from all columns of codes [n, k], u [n, K]: fitted on two thirds, scored on the last
    third."""
    if codes.shape[1] == 0:
        return [0.0] * u.shape[1]
    cut = 2 * len(codes) // 3
    result = []
    for column in u.T:
        fit = kind().fit(codes[:cut], column[:cut])
        result.append(round(float(fit.score(codes[cut:], column[cut:])), 4))
    return result


def decoded(model: dlsgan.DLSGAN, z: Tensor) -> Tensor:
    return dlsgan.in_batches(model.decode, z).clamp(-1, 1)


@torch.no_grad()
def measure(model: dlsgan.DLSGAN, k: int, config: dlsgan.Config, n: int = 6000) -> dict:
    """All measures of one run, on fresh latent vectors and on faces that were not used in training."""
    s = model.latent_scale.scale()
    z = dlsgan.sample_latents(n // 3, model.latent_scale, torch.Generator().manual_seed(10**6))
    fake = decoded(model, z)
    z_hat = dlsgan.in_batches(model.encode, fake)
    v = z_hat.square().mean(0)
    agreement = (z * z_hat).mean(0)
    order = v.argsort(descending=True)
    live = order[: int((v > 0.5).sum())]
    rounded = {"v": v[order], "z_times_z_hat": agreement[order], "s": s[order]}
    result = {key: [round(x, 4) for x in value.tolist()] for key, value in rounded.items()}
    result["live"] = len(live)
    result["order"] = order.tolist()
    result["l_enc"] = dlsgan.encoder_loss(z, z_hat, s).item()
    result["l_enc_predicted_from_v"] = (1 - v.square().sum() / v.sum()).item()

    faces, u = draw_faces(n, k, torch.Generator().manual_seed(10**6 + 1), config.resolution)
    result["spread"] = (fake.std(0).mean() / faces.std(0).mean()).item()
    pruned = torch.zeros_like(z)
    pruned[:, live] = z[:, live]
    result["psnr_pruned"] = dlsgan.psnr(fake, decoded(model, pruned)).mean().item()
    result["psnr_mean_image"] = dlsgan.psnr(fake, fake.mean(0)).mean().item()  # what pruning everything costs
    test = faces[: n // 3]
    restored = dlsgan.in_batches(model.reconstruct, test).clamp(-1, 1)
    result["psnr_test"] = dlsgan.psnr(test, restored).mean().item()
    result["psnr_gain_test"] = result["psnr_test"] - dlsgan.psnr(test, faces.mean(0)).mean().item()

    u = u[:, :k].double().numpy()
    codes = (dlsgan.in_batches(model.encode, faces) * s)[:, order].double().numpy()
    torch.manual_seed(0)
    untrained = dlsgan.in_batches(dlsgan.build(config).encode, faces).double().numpy()
    found = codes[:, : len(live)]
    result["r2_live_linear"] = scores(found, u, LinearRegression)
    result["r2_live_boosted_trees"] = scores(found, u)
    result["r2_all_outputs_linear"] = scores(codes, u, LinearRegression)
    result["r2_untrained_all_outputs_linear"] = scores(
        untrained, u, LinearRegression
    )  # says what an R^2 is worth
    result["r2_untrained_boosted_trees"] = scores(
        untrained[:, : len(live)], u
    )  # as many outputs as live dimensions
    result["r2_of_one_latent"] = correlation_ratios(codes, u).round(4).tolist()  # [d, K], rows sorted by v
    return result


def run(name: str, **settings) -> dict:
    """Trains one run, unless its networks are there already, and measures it. `dlsgan.load_model` reads the
    networks. settings: of dlsgan.Config, where they differ from the preset."""
    k, seed = map(int, name.split("-"))
    config = dlsgan.Config(**settings, seed=seed, device="cpu", threads=1)
    path = CHECKPOINTS / name / "checkpoint.pt"
    if not path.exists() or dlsgan.read_checkpoint(path)[0] != config:
        start = time.process_time()
        weights = train(k, config).state_dict()
        minutes = (time.process_time() - start) / 60
        state = {"format": dlsgan.CHECKPOINT_VERSION, "config": dataclasses.asdict(config), "ema": weights}
        dlsgan.save_checkpoint(path, state | {"images": config.images, "minutes": minutes})
    _, state = dlsgan.read_checkpoint(path)
    result = {
        "command": f"python -m toy_experiments.cartoon_factors {name}",
        "factors": k,
        "seed": seed,
        "images": config.images,
        "machine": cli.processor(),
        "processor_minutes": round(state["minutes"], 1),
    }
    return result | measure(dlsgan.load_model(path), k, config)


def title(r: dict) -> str:
    return f"K = {r['factors']}, seed {r['seed']}"


def line(r: dict) -> str:
    """One line of the printout."""
    least = min(r["r2_live_boosted_trees"])
    return (
        f"{title(r)}: {r['live']} live, L_enc {r['l_enc']:.2f}, spread {r['spread']:.2f}, "
        f"least R^2 {least:.2f}, gain on test faces {r['psnr_gain_test']:+.1f} dB"
    )


def runs_of_traversals(results: dict) -> list[str]:
    """The runs whose networks the figure shows."""
    richest = max(results, key=lambda name: results[name]["factors"])
    return list(dict.fromkeys(name for name in ("4-0", richest) if name in results))


def main(names: tuple[str, ...] = (), **settings) -> dict:
    """names: of RUNS; none: those that are not kept. settings: of dlsgan.Config, where they differ from the
    preset."""
    for name in names:
        dlsgan.require(name in RUNS, f"unknown run {name!r}: choose {', '.join(RUNS)}")
    torch.set_num_threads(1)
    dlsgan.keep_memory()
    preset = dlsgan.Config(**settings)
    print(face_shares_line(preset.resolution), flush=True)
    kept = RESULTS / "cartoon_factors.json"
    results = cli.read_runs(kept)
    for name in names or RUNS:
        if name in names or results.get(name, {}).get("images") != preset.images:
            measured = run(name, **settings)
            results = cli.read_runs(kept) | {name: measured}  # read now: other runs may have finished
            cli.write_runs(kept, results, RUNS)
        print(line(results[name]), flush=True)
    figure = RESULTS / "cartoon_factors.png"
    shown = runs_of_traversals(results)
    if missing := [name for name in shown if not (CHECKPOINTS / name / "checkpoint.pt").exists()]:
        command = f"python -m toy_experiments.cartoon_factors {' '.join(missing)}"
        print(f"{figure.name} is left as it is: it shows networks that are not here, train them by {command}")
    else:
        draw(results, figure)
    return results


def draw_factors(axis: Axes, r: dict) -> None:
    """R^2 of each factor (rows) from each live latent dimension alone, and from all of them (columns)."""
    table = np.array(r["r2_of_one_latent"][: r["live"]] + [r["r2_live_boosted_trees"]])
    picture = axis.imshow(table.T, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(table):
        text = f"{value:.2f}".replace("0.", ".", 1)
        colour = "white" if value > 0.5 else "0.3"
        axis.text(i, j, text, ha="center", va="center", fontsize=8, color=colour)
    axis.set_xticks(range(len(table)), [*range(1, len(table)), "all\nlive"])
    axis.set_yticks(range(table.shape[1]), dlsgan.CARTOON_FACTORS[: table.shape[1]])
    axis.set(xlabel="live latent dimension, sorted by v")
    axis.set(title=f"K = {r['factors']}: R^2 of factors, held-out faces")
    axis.figure.colorbar(picture, ax=axis, pad=0.01)


@torch.no_grad()
def draw(results: dict, path: Path) -> None:
    """Live dimensions over K, spectra, calibration; for two runs the factors in each latent, and its
    traversal."""
    figure = Figure((11, 10.5), layout="constrained")
    axes = figure.subplot_mosaic("aabbcc;dddddd;eeefff", height_ratios=(1, 1.1, 1.3))
    for name, r in results.items():
        style = {"color": f"C{RUNS.index(name)}", "label": title(r)}
        axes["a"].plot(r["factors"], r["live"], "o", **style)
        largest = r["v"][:16]
        axes["b"].plot(range(1, 1 + len(largest)), largest, **style)
        axes["c"].plot(r["v"], r["z_times_z_hat"], ".", **style)
    axes["a"].plot((0, 9), (0, 9), color="0.6", linewidth=0.8)
    axes["a"].set(xlabel="K, factors that vary", ylabel="live dimensions, v > 1/2", xticks=(2, 4, 6, 8))
    axes["b"].axhline(0.5, color="0.6", linestyle="--", linewidth=0.8)
    axes["b"].set(xlabel="latent dimension, sorted", ylabel="v", xticks=(1, 4, 8, 12, 16))
    axes["b"].legend(frameon=False, fontsize=8)
    axes["c"].plot((0, 1), (0, 1), color="0.6", linewidth=0.8)
    axes["c"].set(xlabel="v = E[z_hat^2]", ylabel="E[z z_hat]", title="calibration")
    shown = runs_of_traversals(results)
    draw_factors(axes["d"], results[shown[-1]])
    axes["e"].axis("off")
    axes["f"].axis("off")
    for axis, name in zip((axes["e"], axes["f"]), shown, strict=False):
        order = results[name]["order"][: results[name]["live"]]
        if order:
            picture = figures.traversals(dlsgan.load_model(CHECKPOINTS / name), order)
            axis.imshow(picture, interpolation="nearest")
        axis.set_title(f"K = {results[name]['factors']}: live dimensions, each from -2 to 2", fontsize=10)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    parser = cli.parser(__doc__)
    names_help = f"any of {' '.join(RUNS)} (default: those that are not kept)"
    parser.add_argument("names", nargs="*", metavar="K-SEED", help=names_help)
    images = dlsgan.Config().images
    parser.add_argument("--images", type=int, default=images, help=f"images a run (default: {images})")
    with cli.one_line("cartoon_factors"):
        main(**vars(parser.parse_args()))
