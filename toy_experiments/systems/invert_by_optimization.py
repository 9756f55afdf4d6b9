"""Inversion by optimisation: gradient descent on the latent vector of an image, from three starts, in two
spaces.

Question. Where does gradient descent end, and when: in the space of z, and behind the mapping network (w, or
y = phi(z) for LIA's invertible map)? It starts from random codes, from their mean (as Image2StyleGAN does),
and from the encoder's. These are the experiments of sections 6.3 and 6.4 of "Disentangled Inference for GANs
with Latently Invertible Autoencoder" (Zhu et al. 2019, arXiv:1906.08090). The paper finds the encoder's start
best, and poor minima in the space of z; its exact inverse lets the starts in z and y be the same images.

    python -m toy_experiments.systems.invert_by_optimization --checkpoint runs/mnist
    python -m toy_experiments.systems.invert_by_optimization --checkpoint runs/mnist --lia runs/mnist-24000

take about 3 and 6 minutes on one core. The second line adds the LIA that `python -m
toy_experiments.systems.lia --dataset mnist` has trained. Both draw results/invert_by_optimization-mnist.png:
PSNR of test images against seconds per image. Models other than those of USUAL in shared/training.py have
their names in that of the file, too: results/invert_by_optimization-DATASET-MODEL.png. Seconds are of
processor time on a CPU, for a batch; optimising a single image wastes more.

It prints, for each system and space, PSNR and seconds of the encoder alone, the encoder and 50 steps, and
each start and all steps.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

import dlsgan
from toy_experiments.shared import cli
from toy_experiments.shared.cli import RESULTS
from toy_experiments.shared.figures import middles
from toy_experiments.shared.training import clock, find_data, images_seen, result_name
from toy_experiments.systems import lia

STARTS = ("random", "mean", "encoder")
MARKS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)  # steps at which PSNR is noted


def optimise(
    decode: Callable[[Tensor], Tensor],  # code [B, d] -> x
    x: Tensor,  # [B, C, H, W], the images to invert
    start: Tensor,  # [B, d]
    steps: int,
    lr: float,
) -> tuple[Tensor, list[dict]]:
    """Adam on the squared error of each image, independently of the others in the batch. Returns the codes
    [B, d], and at MARKS the step, PSNR [B] (images clipped as everywhere) and seconds of processor time per
    image so far."""
    code = start.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([code], lr)
    trace = []
    seconds = 0.0
    for step in range(steps + 1):
        before = clock(x.device)
        with torch.enable_grad():
            y = decode(code)
            errors = (y - x).square().flatten(1).mean(1)  # [B]
            loss = errors.sum()  # not their mean, so that no image feels the size of the batch
        seconds += clock(x.device) - before
        if step in MARKS or step == steps:
            psnr = dlsgan.psnr(y.detach().clamp(-1, 1), x).tolist()
            trace.append({"step": step, "seconds": seconds / len(x), "psnr": psnr})
        if step < steps:
            before = clock(x.device)
            (code.grad,) = torch.autograd.grad(loss, code)
            optimizer.step()
            seconds += clock(x.device) - before
    return code.detach(), trace


@torch.no_grad()
def starting_points(model: dlsgan.DLSGAN, x: Tensor, seed: int = 0) -> dict[str, dict]:
    """For the space of z and the one behind the mapping network: the decoder, the spread of its codes, and
    the codes to start from; those of one start decode to the same images in both, where the map allows
    that."""
    mapping = model.generator.mapping
    invertible = isinstance(mapping, lia.InvertibleMapping)
    s = model.latent_scale.scale()
    rng = torch.Generator().manual_seed(seed)
    w = mapping(dlsgan.sample_latents(4096, model.latent_scale, rng) * s)
    z = {"random": dlsgan.sample_latents(len(x), model.latent_scale, rng), "encoder": model.encode(x)}
    codes = {start: mapping(value * s) for start, value in z.items()}
    codes["mean"] = w.mean(0).repeat(len(x), 1)
    z["mean"] = mapping.inverse(codes["mean"]) if invertible else torch.zeros_like(z["encoder"])
    behind = {
        "decode": lia.without_map(model.generator),
        "spread": w.std(0).mean().item(),
        "codes": codes,
    }
    return {"z": {"decode": model.decode, "spread": 1.0, "codes": z}, "y" if invertible else "w": behind}


@torch.no_grad()
def seconds_to_encode(model: dlsgan.DLSGAN, x: Tensor) -> float:
    """Seconds an image."""
    model.encode(x)  # the first call is slower
    before = clock(x.device)
    model.encode(x)
    return (clock(x.device) - before) / len(x)


def told(point: dict, more_seconds: float) -> dict:
    """A point of a trace of `optimise`, averaged over images; poor: the share of those more than 3 dB below
    the median."""
    psnr = np.array(point["psnr"])
    return {
        "step": point["step"],
        "seconds": round(point["seconds"] + more_seconds, 5),
        "psnr": round(psnr.mean(), 3),
        "poor": round((psnr < np.median(psnr) - 3).mean(), 3),
    }


def study(model: dlsgan.DLSGAN, x: Tensor, steps: int) -> tuple[dict, dict]:
    """{space: {start: trace}} and reconstructions {(space, start): images} for the figure. The points of a
    trace have step, seconds per image (the encoder's own included), mean PSNR, and the share of poor
    images."""
    traces = {}
    pictures = {}
    encoding = seconds_to_encode(model, x)
    for space, given in starting_points(model, x).items():
        traces[space] = {}
        for start in STARTS:
            lr = 0.05 * given["spread"]
            code, trace = optimise(given["decode"], x, given["codes"][start], steps, lr)
            pictures[space, start] = given["decode"](code).detach()
            more = encoding if start == "encoder" else 0.0
            traces[space][start] = [told(point, more) for point in trace]
    return traces, pictures


def at(trace: list[dict], step: int) -> dict:
    """The last point of a trace up to a step."""
    return [point for point in trace if point["step"] <= step][-1]


def summary(traces: dict, steps: int) -> dict:
    """Where each start ends, where the encoder's begins, and where it is after a few steps."""
    few = min(50, steps)
    encoder = traces["encoder"]
    result = {"encoder alone": at(encoder, 0), f"encoder + {few} steps": at(encoder, few)}
    return result | {f"{start} + {steps} steps": at(traces[start], steps) for start in STARTS}


def main(
    checkpoint: str,  # of dlsgan.py
    lia_folder: str | None,  # of lia.py, for the same data
    data_dir: str,
    count: int,  # test images
    steps: int,
    results: Path = RESULTS,
) -> dict:
    dlsgan.require(count >= 1 and steps >= 1, "--count and --steps must be at least 1")
    config, state = dlsgan.read_checkpoint(checkpoint)
    models = {"DLSGAN": dlsgan.load_model(checkpoint)}
    trained = {"DLSGAN": images_seen(config, state)}
    command = f"python -m toy_experiments.systems.invert_by_optimization --checkpoint {checkpoint}"
    command += f" --count {count} --steps {steps}"
    if lia_folder:
        models["LIA"], other = lia.load(lia_folder)
        same = (other.dataset, other.resolution) == (config.dataset, config.resolution)
        dlsgan.require(same, f"{checkpoint} knows {config.dataset}, {lia_folder} knows {other.dataset}")
        trained["LIA"] = other.images
        command += f" --lia {lia_folder}"
    config.data_dir = find_data(config, data_dir)
    torch.set_num_threads(1)
    x = dlsgan.to_float(dlsgan.LOADERS[config.dataset](config)[1][:count])
    result = {"command": command, "test_images": len(x), "training_images": trained}
    result["machine"] = f"one thread of {cli.processor()}"
    pictures = {}
    for name, model in models.items():
        result[name], pictures[name] = study(model, x, steps)
        for space, traces in result[name].items():
            ends = summary(traces, steps)
            traces["summary"] = ends
            texts = [f"{key} {end['psnr']:.1f} dB in {end['seconds']:.3f} s" for key, end in ends.items()]
            print(f"{name}, {space}: {'; '.join(texts)}", flush=True)
    stem = results / f"invert_by_optimization-{result_name(config, checkpoint)}"
    cli.write_json(stem.with_suffix(".json"), result)
    draw(result, pictures, x, stem.with_suffix(".png"))
    return result


def draw(result: dict, pictures: dict, x: Tensor, path: Path) -> None:
    """Left: PSNR against seconds, one panel a space. Right: the first images and where each start ends."""
    figure = Figure((11, 3.6 * len(pictures)), layout="constrained")
    rows = figure.subplots(len(pictures), 3, squeeze=False, width_ratios=(1, 1, 1.2))
    n = min(8, len(x))
    for row, (name, shown) in zip(rows, pictures.items(), strict=True):
        row[1].sharey(row[0])
        images = [x[:n]]
        labels = ["test image"]
        for axis, (space, traces) in zip(row, result[name].items(), strict=False):
            for start, style in zip(STARTS, ("s:", "^--", "o-"), strict=True):
                seconds = [point["seconds"] for point in traces[start]]
                psnr = [point["psnr"] for point in traces[start]]
                axis.plot(seconds, psnr, style, markersize=3.5, label=start)
                images.append(shown[space, start][:n])
                labels.append(f"{space}, {start}")
            axis.set(xscale="log", xlabel="seconds an image", ylabel="PSNR, dB")
            axis.set_title(f"{name}, descent on {space}")
            axis.grid(alpha=0.3)
        row[2].imshow(dlsgan.make_grid(images), cmap="gray")
        row[2].set(xticks=[], yticks=middles(len(images), x.shape[2]), yticklabels=labels)
        row[2].set_title("where each start ends")
    rows[0][0].legend(frameon=False, title="start", loc="lower right")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    parser = cli.parser(__doc__)
    parser.add_argument("--checkpoint", required=True, help="a run of dlsgan.py, or pretrained/celeba64.pt")
    parser.add_argument("--lia", dest="lia_folder", help="folder of a run of lia.py")
    parser.add_argument("--data-dir", default="", help="where the data is (default: as in training)")
    parser.add_argument("--count", type=int, default=16, help="test images (default: 16)")
    parser.add_argument("--steps", type=int, default=500, help="steps of gradient descent (default: 500)")
    with cli.one_line("invert_by_optimization"):
        main(**vars(parser.parse_args()))
