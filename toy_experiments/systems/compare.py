"""Ways to invert a GAN in one table, on the same data, judged by the same code.

Each method gets the same budget of training images (--images). Those with one stage spend it on that; those
with two spend two thirds on a GAN and one third on the encoder. A step of a GAN counts its real images, not
the generated ones beside them.

    dlsgan            this repository's method
    no-scale          the same without the latent scale
    real-encoder      DLSGAN, then its encoder fine-tuned on real images (real_encoder.py; not in the paper)
    20-steps          the run of dlsgan, then for each image 20 steps of gradient descent on z from the
                      encoder's guess (hybrid.py; not in the paper)
    encoder-after     plain GAN, then an encoder trained on generated images by the squared error of z
    lia               plain GAN with an invertible map, then an encoder to y trained on real images by pixels,
                      features and a critic (lia.py)
    lia-mlp           the same with an MLP as mapping network, encoder to w
    eigengan          EigenGAN, with its own generator and loss (eigengan.py), then an encoder as in
                      encoder-after
    optimisation      the GAN of encoder-after (two thirds of the budget, no more), then 100 steps of gradient
                      descent on w from its mean, for each image anew

What to bear in mind: only real-encoder, 20-steps, lia, lia-mlp and optimisation minimise the error of real
images, which the columns "test" measure; settings are the presets of dlsgan.py, which were chosen with
dlsgan. Of the other methods some were tuned: EigenGAN has half the learning rate, and so have plain GANs of
CelebA, which ended as black images at the preset's; real-encoder's weight of the pixel error was chosen (20,
where LIA's is 1). One seed.

    python -m toy_experiments.systems.compare run dlsgan lia --dataset mnist --images 24000
    python -m toy_experiments.systems.compare table --dataset mnist --images 24000

The first trains and measures some methods, or all if none is named; the second makes CSV, JSON and figure of
what has run: results/compare-mnist-24000.json, .csv and .png.

A method that was stopped goes on where it was (runs/DATASET-IMAGES); one that is finished is not repeated;
lia.py shares what it has trained, and `python dlsgan.py --preset celeba64 --images 400000 --out
runs/celeba-400000/dlsgan` is the method dlsgan of `--dataset celeba --images 400000`. Methods with the same
GAN must not run at once. About 5 minutes on one core for each method at 24,000 images. Reconstructions are
measured on 256 images, samples on 1,000; L_enc where codes are those of z; seconds to invert an image are the
best of five calls with one batch of 32, and for optimisation of a single call; minutes are of processor time,
those of DLSGAN's trainings of the clock.
"""

import csv
import dataclasses
import json
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import dlsgan
from toy_experiments.shared import cli, distances, training
from toy_experiments.shared.cli import RESULTS
from toy_experiments.shared.figures import middles
from toy_experiments.systems import eigengan, hybrid, lia, real_encoder
from toy_experiments.systems.invert_by_optimization import optimise

COLUMNS = {  # of the table: (heading, format)
    "mse_test": ("MSE, test", ".3f"),
    "psnr_test": ("PSNR, dB, test", ".2f"),
    "ssim_test": ("SSIM, test", ".2f"),
    "psnr_gain_test": ("gain over the mean image, dB, test", "+.2f"),
    "mse_generated": ("MSE, generated", ".3f"),
    "psnr_generated": ("PSNR, dB, generated", ".2f"),
    "ssim_generated": ("SSIM, generated", ".2f"),
    "psnr_gain_generated": ("gain over the mean image, dB, generated", "+.2f"),
    "l_enc": ("L_enc, generated", ".3f"),
    "spread": ("spread", ".2f"),
    "swd": ("SWD x 1000 of samples", ".1f"),
    "swd_of_other_test_images": ("SWD x 1000 of other test images", ".1f"),
    "fid": ("FID", ".1f"),
    "seconds_per_image": ("seconds to invert an image", ".4f"),
    "parameters": ("parameters, generator and encoder", ",d"),
    "images": ("training images", ",d"),
    "minutes": ("minutes of training", ".0f"),
}
SAMPLES = 1000  # images on either side of the distances between sets


class Optimised(dlsgan.DLSGAN):
    """A GAN whose images are inverted by gradient descent on w, from the mean of w; its encoder is not
    used."""

    def __init__(self, gan: dlsgan.DLSGAN, steps: int = 100):
        super().__init__(gan.generator, gan.discriminator, gan.latent_scale)
        self.synthesis = lia.without_map(gan.generator)
        self.steps = steps
        with torch.no_grad():
            w = gan.generator.mapping(
                dlsgan.sample_latents(4096, gan.latent_scale, torch.Generator().manual_seed(0))
            )
        self.mean = w.mean(0)
        self.lr = 0.05 * w.std(0).mean().item()

    def encode(self, x: Tensor) -> Tensor:
        return optimise(self.synthesis, x, self.mean.repeat(len(x), 1), self.steps, self.lr)[0]

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.synthesis(self.encode(x))


# Each method below takes a configuration, training images uint8 [N, C, H, W] and the folder where its state
# is kept, goes on with what is there, and returns the trained model and the seconds of its training.


def same_settings(there: dlsgan.Config, here: dlsgan.Config) -> bool:
    """Whether two configurations are of the same training, wherever and on whatever it runs."""
    may_differ = {key: getattr(here, key) for key in ("data_dir", "device", "threads", "out")}
    return dataclasses.replace(there, **may_differ) == here


def train_dlsgan(
    config: dlsgan.Config, images: np.ndarray, folder: Path, scaled: bool = True
) -> tuple[dlsgan.DLSGAN, float]:
    out = folder / (
        "dlsgan" if scaled else "no-scale"
    )  # a run as `python dlsgan.py --out` leaves it, finished or not
    config = dataclasses.replace(config, latent_scale=scaled, out=str(out))
    resume = any(out.glob("checkpoint*.pt"))
    if resume:
        same = same_settings(dlsgan.read_checkpoint(out)[0], config)
        dlsgan.require(same, f"{out} holds a run with other settings: move it away to start again")
    for _ in dlsgan.train(config, resume):
        pass
    _, state = dlsgan.read_checkpoint(out)
    return dlsgan.load_model(out, config.device), state["seconds"]


def train_real_encoder(
    config: dlsgan.Config, images: np.ndarray, folder: Path
) -> tuple[dlsgan.DLSGAN, float]:
    stage_1 = dataclasses.replace(config, images=lia.gan_budget(config))
    stage_2 = dataclasses.replace(config, images=lia.encoder_budget(config))
    record = {}
    model, seconds = train_dlsgan(stage_1, images, folder / "two-thirds")
    tuned = real_encoder.fine_tune(model, stage_2, images, folder / "real-encoder.pt", record)
    return tuned, seconds + record["seconds"]


def train_20_steps(config: dlsgan.Config, images: np.ndarray, folder: Path) -> tuple[dlsgan.DLSGAN, float]:
    model, seconds = train_dlsgan(config, images, folder)
    return hybrid.Refined(model, 20), seconds


def train_encoder_after(
    config: dlsgan.Config, images: np.ndarray, folder: Path
) -> tuple[dlsgan.DLSGAN, float]:
    first = {}
    second = {}
    gan = lia.train_stage_1(config, images, folder, False, first)
    torch.manual_seed(config.seed + 1)
    encoder = training.train_encoder(
        gan.decode,
        dlsgan.build(config).discriminator,
        config.latent_dim,
        config,
        lia.encoder_budget(config),
        folder / "encoder-after.pt",
        second,
        frozen=gan,
    )
    model = dlsgan.DLSGAN(gan.generator, encoder, gan.latent_scale)
    return model, first["seconds"] + second["seconds"]


def train_lia(
    config: dlsgan.Config, images: np.ndarray, folder: Path, kind: str = "lia"
) -> tuple[dlsgan.DLSGAN, float]:
    system, record = lia.fit(kind, config, images, folder)
    return system, 60 * record["minutes"]


def train_eigengan(config: dlsgan.Config, images: np.ndarray, folder: Path) -> tuple[dlsgan.DLSGAN, float]:
    first = {}
    second = {}
    stage_1 = dataclasses.replace(config, images=lia.gan_budget(config))
    generator = eigengan.train(stage_1, images, path=folder / "gan-eigengan.pt", record=first)
    torch.manual_seed(config.seed + 1)
    latent_dim = generator.latent_dim
    encoder = training.train_encoder(
        generator,
        dlsgan.build(dataclasses.replace(config, latent_dim=latent_dim)).discriminator,
        latent_dim,
        config,
        lia.encoder_budget(config),
        folder / "encoder-after-eigengan.pt",
        second,
        frozen=generator,
    )
    scale = dlsgan.LatentScale(latent_dim, enabled=False).to(dlsgan.pick_device(config.device))
    return dlsgan.DLSGAN(generator, encoder, scale), first["seconds"] + second["seconds"]


def train_optimisation(
    config: dlsgan.Config, images: np.ndarray, folder: Path
) -> tuple[dlsgan.DLSGAN, float]:
    record = {}
    gan = lia.train_stage_1(config, images, folder, False, record)
    return Optimised(gan), record["seconds"]


METHODS = {
    "dlsgan": train_dlsgan,
    "no-scale": partial(train_dlsgan, scaled=False),
    "real-encoder": train_real_encoder,
    "20-steps": train_20_steps,
    "encoder-after": train_encoder_after,
    "lia": train_lia,
    "lia-mlp": partial(train_lia, kind="mlp"),
    "eigengan": train_eigengan,
    "optimisation": train_optimisation,
}


@torch.no_grad()
def seconds_to_invert(model: dlsgan.DLSGAN, x: Tensor) -> float:
    """Seconds an image, the best of five calls; of one, where it takes long."""
    seconds = []
    for _ in range(1 if isinstance(model, Optimised) else 5):
        before = training.clock(x.device)
        model.encode(x).cpu()  # waits for a GPU
        seconds.append((training.clock(x.device) - before) / len(x))
    return min(seconds)


def encodes_to_w(model: dlsgan.DLSGAN) -> bool:
    """Whether `encode` gives w and not z, so that L_enc says nothing."""
    return isinstance(model, Optimised) or (isinstance(model, lia.Autoencoder) and model.kind == "mlp")


def measure(model: dlsgan.DLSGAN, test: Tensor, inception: torch.nn.Module | None) -> dict:
    """The columns that depend on the trained model alone; test [N, C, H, W] on the CPU."""
    device = next(model.parameters()).device
    few = test[: dlsgan.NUM_EVAL_IMAGES]
    result = {key: value for key, value in dlsgan.evaluate(model, few).items() if key in COLUMNS}
    if encodes_to_w(model):
        del result["l_enc"]
    samples = distances.samples_like(model, test)
    result["seconds_per_image"] = seconds_to_invert(model, few[:32].to(device))
    networks = [model.generator]
    if not isinstance(model, Optimised):  # which has no encoder
        networks.append(model.discriminator)
    result["parameters"] = sum(p.numel() for network in networks for p in network.parameters())
    result["swd"] = distances.swd(samples, test)["mean"]
    if inception:
        result["fid"] = distances.fid(samples, test, inception)
    return result


def run_folder(config: dlsgan.Config, runs: Path) -> Path:
    return runs / f"{config.dataset}-{config.images}"


def keep_pictures(path: Path, model: dlsgan.DLSGAN, x: Tensor) -> None:
    """Test images, their reconstructions and samples, for the figure of `table`."""
    with torch.no_grad():
        x = x.to(next(model.parameters()).device)
        pictures = {"x": x, "reconstructions": model.reconstruct(x), "samples": model.sample(8)}
    np.savez(path, **{key: dlsgan.to_uint8(value.cpu()) for key, value in pictures.items()})


def run(method: str, config: dlsgan.Config, runs: Path = Path("runs"), inception: str | None = None) -> dict:
    """Trains and measures one method; its row and its pictures stay in
    runs/DATASET-IMAGES/compare-METHOD.{json,npz}."""
    folder = run_folder(config, runs)
    path = folder / f"compare-{method}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    if found.get("seed") == config.seed and ("fid" in found or not inception):
        print(f"{method}: already measured ({path}; delete it to do it again)")
        return found
    network = distances.load_inception(inception) if inception else None
    images, test_images = dlsgan.LOADERS[config.dataset](config)
    n = min(SAMPLES, len(test_images) // 2)
    test = dlsgan.to_float(test_images[:n])
    others = dlsgan.to_float(test_images[n : 2 * n])
    model, seconds = METHODS[method](config, images, folder)
    device = dlsgan.pick_device(config.device)
    row = {
        "method": method,
        "seed": config.seed,
        "images": lia.gan_budget(config) if method == "optimisation" else config.images,
        "minutes": seconds / 60,
        "machine": f"{cli.processor()}; device {device}, threads {config.threads or 'all'}",
    }
    row |= measure(model, test, network)
    row["swd_of_other_test_images"] = distances.swd(others, test)[
        "mean"
    ]  # what a perfect generator could reach
    keep_pictures(path.with_suffix(".npz"), model, test[:8])
    cli.write_json(path, row)
    told = f"test {row['psnr_test']:.2f} dB ({row['psnr_gain_test']:+.2f}), SWD {row['swd']:.1f}"
    print(f"{method}: {told}", flush=True)
    return row


def read_rows(config: dlsgan.Config, folder: Path) -> list[dict]:
    """What has been measured with this seed."""
    paths = [folder / f"compare-{method}.json" for method in METHODS]
    rows = [json.loads(path.read_text()) for path in paths if path.exists()]
    rows = [row for row in rows if row["seed"] == config.seed]
    dlsgan.require(rows, f"nothing in {folder}: first python -m toy_experiments.systems.compare run METHOD")
    same = len({row["swd_of_other_test_images"] for row in rows}) == 1  # the generator has no part in it
    different = f"rows in {folder} were measured on different images: delete its compare-*.json and run again"
    dlsgan.require(same, different)
    return rows


def table(config: dlsgan.Config, runs: Path = Path("runs"), results: Path = RESULTS) -> dict:
    """What has been measured, as JSON, CSV, figure and Markdown; says which methods are missing."""
    folder = run_folder(config, runs)
    rows = read_rows(config, folder)
    shown = [row["method"] for row in rows]
    missing = sorted(METHODS.keys() - set(shown))
    command = ["python -m toy_experiments.systems.compare run", *(shown if missing else ())]
    command += [f"--dataset {config.dataset}", f"--images {config.images}", f"--seed {config.seed}"]
    result = {
        "command": " ".join(command),
        "images": config.images,
        "seed": config.seed,
        "missing": missing,
        "rows": rows,
    }
    columns = [key for key in COLUMNS if any(key in row for row in rows)]
    stem = results / f"compare-{config.dataset}-{config.images}"
    cli.write_json(stem.with_suffix(".json"), result)
    with open(stem.with_suffix(".csv"), "w", newline="") as file:
        writer = csv.DictWriter(file, ("method", *columns), extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(rows)
    print(markdown(rows))
    print(f"not there: {', '.join(missing) or 'nothing'}")
    if "fid" not in columns:
        print("FID: absent (see --inception)")
    title = f"{config.dataset}, a budget of {config.images:,} training images"
    draw(rows, folder, stem.with_suffix(".png"), title)
    return result


def markdown(rows: list[dict], shown: Iterable[str] = COLUMNS) -> str:
    """What `table` keeps, or some of it, with a column for each method."""
    lines = [["", *(row["method"] for row in rows)], ["---"] * (1 + len(rows))]
    for key in shown:
        heading, form = COLUMNS[key]
        if any(key in row for row in rows):
            cells = [format(row[key], form) if key in row else "absent" for row in rows]
            lines.append([heading, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw_bars(gains: Axes, swds: Axes, rows: list[dict]) -> None:
    """Gains of reconstructions over the mean image, and the distance of samples from the data; a row a
    method."""
    y = np.arange(len(rows))
    names = [row["method"] for row in rows]
    for shift, key, colour in ((-0.2, "test", "#30638e"), (0.2, "generated", "#edae49")):
        values = [row[f"psnr_gain_{key}"] for row in rows]
        gains.barh(y + shift, values, 0.4, color=colour, label=f"{key} images")
    gains.set(xlabel="PSNR of reconstructions, dB above the mean image")
    swds.barh(y, [row["swd"] for row in rows], 0.6, color="0.5", label="samples")
    others = rows[0]["swd_of_other_test_images"]
    swds.axvline(others, color="#d1495b", linestyle="--", label="other test images")
    swds.set(xlabel="distance from test images, SWD x 1000")
    for axis in (gains, swds):
        axis.set(yticks=y, yticklabels=names)
        axis.invert_yaxis()
        axis.legend(frameon=False, fontsize=9, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))


def show_pictures(axis: Axes, title: str, rows: dict[str, np.ndarray]) -> None:
    """Label: images uint8 [n, C, H, W], a row each."""
    images = [dlsgan.to_float(row) for row in rows.values()]
    axis.imshow(dlsgan.make_grid(images), cmap="gray", interpolation="nearest")
    axis.set(xticks=[], yticks=middles(len(images), images[0].shape[2]), yticklabels=list(rows), title=title)


def draw(rows: list[dict], folder: Path, path: Path, title: str) -> None:
    """Above: the bars. Below: test images with their reconstructions, and samples."""
    figure = Figure((11, 2.4 + 0.85 * len(rows)), layout="constrained")
    figure.suptitle(title)
    (gains, swds), (faces, samples) = figure.subplots(2, 2)
    draw_bars(gains, swds, rows)
    pictures = {row["method"]: np.load(folder / f"compare-{row['method']}.npz") for row in rows}
    first = next(iter(pictures.values()))
    reconstructions = {name: picture["reconstructions"] for name, picture in pictures.items()}
    show_pictures(faces, "reconstructions", {"test image": first["x"]} | reconstructions)
    show_pictures(samples, "samples", {name: picture["samples"] for name, picture in pictures.items()})
    figure.savefig(path, dpi=110)


def main(what: str, methods: list[str], inception: str | None, **settings) -> None:
    """settings: those of cli.image_parser."""
    config = training.configure(**settings)
    for method in methods:
        dlsgan.require(method in METHODS, f"unknown method {method!r}: choose {', '.join(METHODS)}")
    if what == "table":
        table(config)
        return
    for method in methods or METHODS:
        run(method, config, inception=inception)


if __name__ == "__main__":
    parser = cli.image_parser(__doc__)
    parser.add_argument("what", choices=("run", "table"))
    methods_help = f"{', '.join(METHODS)} (default: all)"
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=methods_help)
    parser.add_argument("--inception", help="TorchScript file inception-2015-12-05.pt, for FID")
    with cli.one_line("compare"):
        main(**vars(parser.parse_intermixed_args()))
