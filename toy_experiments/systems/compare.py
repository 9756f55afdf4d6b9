"""Ways to invert a GAN in one table, on the same data, judged by the same code.

Each method gets the same budget of training images (--images). Those with one stage spend it on that; those with two spend
two thirds on a GAN and one third on the encoder. A step of a GAN counts its real images, not the generated ones beside them.

    dlsgan            this repository's method
    no-scale          the same without the latent scale
    encoder-after     plain GAN, then an encoder trained on generated images by the squared error of z
    lia               plain GAN with an invertible map, then an encoder to y trained on real images by pixels, features and a
                      critic (toy_experiments/lia.py)
    lia-mlp           the same with an MLP as mapping network, encoder to w
    eigengan          EigenGAN, with its own generator and loss, then an encoder as in encoder-after (eigengan.py)
    optimisation      the GAN of encoder-after (two thirds of the budget, no more), then 100 steps of gradient descent on w
                      from its mean, for each image anew

What to bear in mind: only lia, lia-mlp and optimisation minimise the error of real images, which the columns "test" measure;
settings are the presets of dlsgan.py, which were chosen with dlsgan, and no other method was tuned; one seed.

    python -m toy_experiments.compare run dlsgan lia --dataset mnist --images 24000     some methods; all without names
    python -m toy_experiments.compare table --dataset mnist --images 24000              CSV, JSON and figure of what has run

A method that was stopped goes on where it was (runs/DATASET-IMAGES); one that is finished is not repeated; lia.py shares
what it has trained, and `python dlsgan.py --preset celeba64 --out runs/celeba-400000/dlsgan` is the method dlsgan. Methods
with the same GAN must not run at once. About 5 minutes on one core for each method at 24,000 images. Reconstructions are
measured on 256 images, samples on 1,000; seconds to invert an image are the best of five batches of 32; minutes are of
processor time, those of dlsgan and no-scale of the clock. `table` writes results/compare-mnist-24000.json, .csv and .png.
"""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import dlsgan
from toy_experiments import common, eigengan, lia, measures
from toy_experiments.invert_by_optimization import optimise
from toy_experiments.results import processor

MEASURES = {"mse": ("MSE", ".3f"), "psnr": ("PSNR, dB", ".2f"), "ssim": ("SSIM", ".2f"),
            "gain": ("gain over the mean image, dB", "+.2f")}
COLUMNS = {  # of the table: (heading, format)
    **{f"{key}_{of}": (f"{name}, {of}", form) for of in ("test", "generated") for key, (name, form) in MEASURES.items()},
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
    """A GAN whose images are inverted by gradient descent on w, from the mean of w; its encoder is not used."""

    def __init__(self, gan: dlsgan.DLSGAN, steps: int = 100):
        super().__init__(gan.generator, gan.discriminator, gan.latent_scale)
        self.synthesis, self.steps = lia.without_map(gan.generator), steps
        with torch.no_grad():
            w = gan.generator.mapping(dlsgan.prior(4096, gan.latent_scale, torch.Generator().manual_seed(0)))
        self.mean, self.lr = w.mean(0), 0.05 * w.std(0).mean().item()

    def encode(self, x: Tensor) -> Tensor:
        return optimise(self.synthesis, x, self.mean.repeat(len(x), 1), self.steps, self.lr)[0]

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.synthesis(self.encode(x))


def train_dlsgan(config, images, folder, scaled=True):
    out = folder / ("dlsgan" if scaled else "no-scale")  # a run as `python dlsgan.py --out` leaves it, finished or not
    config = dataclasses.replace(config, latent_scale=scaled, out=str(out))
    if resume := any(out.glob("checkpoint*.pt")):
        here = {key: getattr(config, key) for key in ("data_dir", "device", "threads", "out")}  # may differ
        same = dataclasses.replace(dlsgan.read_checkpoint(out)[0], **here) == config
        dlsgan.require(same, f"{out} holds a run with other settings: move it away to start again")
    list(dlsgan.train(config, resume))
    return dlsgan.load(out, config.device), dlsgan.read_checkpoint(out)[1]["seconds"]


def train_encoder_after(config, images, folder):
    first, second = {}, {}
    gan = lia.train_stage_1(config, images, folder, False, first)
    torch.manual_seed(config.seed + 1)
    encoder, budget = dlsgan.build(config).discriminator, round((1 - lia.GAN_SHARE) * config.images)
    path = folder / "encoder-after.pt"
    encoder = common.train_encoder(gan.decode, encoder, config.latent_dim, config, budget, path, second)
    return dlsgan.DLSGAN(gan.generator, encoder, gan.latent_scale), first["seconds"] + second["seconds"]


def train_lia(config, images, folder, kind="lia"):
    system, record = lia.fit(kind, config, images, folder)
    return system, 60 * record["minutes"]


def train_eigengan(config, images, folder):
    first, second = {}, {}
    stage_1 = dataclasses.replace(config, images=round(lia.GAN_SHARE * config.images))
    generator = eigengan.train(stage_1, images, path=folder / "gan-eigengan.pt", record=first)
    torch.manual_seed(config.seed + 1)
    encoder = dlsgan.build(dataclasses.replace(config, latent_dim=generator.latent_dim)).discriminator
    budget, path = round((1 - lia.GAN_SHARE) * config.images), folder / "encoder-after-eigengan.pt"
    encoder = common.train_encoder(generator, encoder, generator.latent_dim, config, budget, path, second)
    scale = dlsgan.LatentScale(generator.latent_dim, enabled=False).to(dlsgan.pick_device(config.device))
    return dlsgan.DLSGAN(generator, encoder, scale), first["seconds"] + second["seconds"]


def train_optimisation(config, images, folder):
    record = {}
    gan = lia.train_stage_1(config, images, folder, False, record)
    return Optimised(gan), record["seconds"]


METHODS = {
    "dlsgan": train_dlsgan,
    "no-scale": lambda *arguments: train_dlsgan(*arguments, scaled=False),
    "encoder-after": train_encoder_after,
    "lia": train_lia,
    "lia-mlp": lambda *arguments: train_lia(*arguments, kind="mlp"),
    "eigengan": train_eigengan,
    "optimisation": train_optimisation,
}


def measure(model: dlsgan.DLSGAN, test: Tensor, inception: torch.nn.Module | None) -> dict:
    """The columns that depend on the trained model alone; test [N, C, H, W] on the CPU."""
    device, few = next(model.parameters()).device, test[: dlsgan.EVALUATED]
    result = {key: value for key, value in dlsgan.evaluate(model, few).items() if key in COLUMNS}
    with torch.no_grad():
        samples = torch.cat([model.sample(50, seed).cpu() for seed in range(-(-len(test) // 50))])[: len(test)]
        x, seconds = few[:32].to(device), []
        for _ in range(1 if isinstance(model, Optimised) else 5):
            before = common.clock(device)
            model.encode(x).cpu()  # waits for a GPU
            seconds.append((common.clock(device) - before) / len(x))
        result["seconds_per_image"] = min(seconds)
    networks = [model.generator] + [model.discriminator] * (not isinstance(model, Optimised))
    result["parameters"] = sum(p.numel() for network in networks for p in network.parameters())
    result["swd"] = measures.swd(samples, test)["mean"]
    return result | ({"fid": measures.fid(samples, test, inception)} if inception else {})


def run(method: str, config: dlsgan.Config, runs: Path = Path("runs"), inception: str | None = None) -> dict:
    """Trains and measures one method; its row and its pictures stay in runs/DATASET-IMAGES/compare-METHOD.{json,npz}."""
    folder = runs / f"{config.dataset}-{config.images}"
    row = folder / f"compare-{method}.json"
    found = json.loads(row.read_text()) if row.exists() else {}
    if found.get("seed") == config.seed and ("fid" in found or not inception):
        print(f"{method}: already measured ({row}; delete it to do it again)")
        return found
    network = measures.load_inception(inception) if inception else None
    images, test_images = dlsgan.LOADERS[config.dataset](config)
    n = min(SAMPLES, len(test_images) // 2)
    test, others = dlsgan.to_float(test_images[:n]), dlsgan.to_float(test_images[n : 2 * n])
    model, seconds = METHODS[method](config, images, folder)
    used = round(lia.GAN_SHARE * config.images) if method == "optimisation" else config.images
    result = {"method": method, "seed": config.seed, "images": used, "minutes": seconds / 60}
    result["machine"] = f"{processor()}; device {dlsgan.pick_device(config.device)}, threads {config.threads or 'all'}"
    result |= measure(model, test, network)
    result["swd_of_other_test_images"] = measures.swd(others, test)["mean"]  # what a perfect generator could reach
    with torch.no_grad():
        x = test[:8].to(next(model.parameters()).device)
        pictures = {"x": x, "reconstructions": model.reconstruct(x), "samples": model.sample(8)}
    np.savez(folder / f"compare-{method}.npz", **{key: dlsgan.to_uint8(value.cpu()) for key, value in pictures.items()})
    row.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{method}: test {result['psnr_test']:.2f} dB ({result['gain_test']:+.2f}), SWD {result['swd']:.1f}", flush=True)
    return result


def table(config: dlsgan.Config, runs: Path = Path("runs"), results: Path = common.RESULTS) -> dict:
    """What has been measured, as JSON, CSV, figure and Markdown; says which methods are missing."""
    folder = runs / f"{config.dataset}-{config.images}"
    rows = [json.loads(path.read_text()) for m in METHODS if (path := folder / f"compare-{m}.json").exists()]
    rows = [row for row in rows if row["seed"] == config.seed]
    dlsgan.require(rows, f"nothing in {folder}: first python -m toy_experiments.compare run METHOD")
    same = len({row["swd_of_other_test_images"] for row in rows}) == 1  # the generator has no part in it
    dlsgan.require(same, f"rows in {folder} were measured on different images: delete its compare-*.json and run again")
    missing, shown = sorted(METHODS.keys() - {row["method"] for row in rows}), [row["method"] for row in rows]
    command = " ".join(["python -m toy_experiments.compare run", *(shown if missing else ()), f"--dataset {config.dataset}"])
    result = {"command": f"{command} --images {config.images} --seed {config.seed}", "images": config.images}
    result |= {"seed": config.seed, "missing": missing, "rows": rows}
    columns = [key for key in COLUMNS if any(key in row for row in rows)]
    stem = results / f"compare-{config.dataset}-{config.images}"
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    with open(stem.with_suffix(".csv"), "w", newline="") as file:
        writer = csv.DictWriter(file, ("method", *columns), extrasaction="ignore", restval="")
        writer.writeheader()
        writer.writerows(rows)
    print(markdown(rows))
    print(f"not there: {', '.join(missing) or 'nothing'}" + "\nFID: absent (see --inception)" * ("fid" not in columns))
    draw(rows, folder, stem.with_suffix(".png"), f"{config.dataset}, a budget of {config.images:,} training images")
    return result


def markdown(rows: list[dict]) -> str:
    """What `table` keeps, with a column for each method."""
    lines = [["", *(row["method"] for row in rows)], ["---"] * (1 + len(rows))]
    for key, (heading, form) in COLUMNS.items():
        cells = [format(row[key], form) if key in row else "absent" for row in rows]
        lines += [[heading, *cells]] if any(key in row for row in rows) else []
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(rows: list[dict], folder: Path, path: Path, title: str) -> None:
    """Gains of reconstructions over the mean image; distance of samples from the data; the pictures themselves."""
    from matplotlib.figure import Figure

    figure = Figure((11, 2.4 + 0.85 * len(rows)), layout="constrained")
    figure.suptitle(title)
    (gains, distances), (faces, samples) = figure.subplots(2, 2)
    y, names = np.arange(len(rows)), [row["method"] for row in rows]
    for shift, key, colour in ((-0.2, "test", "#30638e"), (0.2, "generated", "#edae49")):
        gains.barh(y + shift, [row[f"gain_{key}"] for row in rows], 0.4, color=colour, label=f"{key} images")
    gains.set(yticks=y, yticklabels=names, xlabel="PSNR of reconstructions, dB above the mean image")
    distances.barh(y, [row["swd"] for row in rows], 0.6, color="0.5", label="samples")
    distances.axvline(rows[0]["swd_of_other_test_images"], color="#d1495b", linestyle="--", label="other test images")
    distances.set(yticks=y, yticklabels=names, xlabel="distance from test images, SWD x 1000")
    for axis in (gains, distances):
        axis.invert_yaxis()
        axis.legend(frameon=False, fontsize=9, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    pictures = [np.load(folder / f"compare-{name}.npz") for name in names]
    for axis, key, first in ((faces, "reconstructions", [pictures[0]["x"]]), (samples, "samples", [])):
        shown = [dlsgan.to_float(part) for part in (*first, *(picture[key] for picture in pictures))]
        axis.imshow(dlsgan.grid(shown), cmap="gray", interpolation="nearest")
        labels = ["test image"] * len(first) + names
        axis.set(xticks=[], yticks=(np.arange(len(shown)) + 0.5) * shown[0].shape[2], yticklabels=labels, title=key)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    parser = common.parser(__doc__)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"{', '.join(METHODS)} (default: all)")
    parser.add_argument("--inception", help="TorchScript file inception-2015-12-05.pt, for FID")
    given = vars(parser.parse_intermixed_args())
    what, methods, inception = (given.pop(key) for key in ("what", "methods", "inception"))
    with common.one_line("compare"):
        config = common.configure(**given)
        for method in methods:
            dlsgan.require(method in METHODS, f"unknown method {method!r}: choose {', '.join(METHODS)}")
        if what == "table":
            table(config)
        for method in methods or METHODS if what == "run" else ():
            run(method, config, inception=inception)
