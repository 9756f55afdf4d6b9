"""Inversion by optimisation: gradient descent on the latent vector of an image, from three starts, in two spaces.

Question. Where does gradient descent end, and when: in the space of z, and behind the mapping network (w, or y = phi(z) for
LIA's invertible map)? It starts from random codes, from their mean (as Image2StyleGAN does), and from the encoder's. These
are the experiments of sections 6.3 and 6.4 of "Disentangled Inference for GANs with Latently Invertible Autoencoder" (Zhu et
al. 2019, arXiv:1906.08090). The paper finds the encoder's start best, and poor minima in the space of z; its exact inverse
lets the starts in z and y be the same images.

    python -m toy_experiments.invert_by_optimization --checkpoint runs/mnist                about 3 minutes on one core
    python -m toy_experiments.invert_by_optimization --checkpoint runs/mnist --lia runs/mnist-24000      twice that

The second line adds the LIA that `python -m toy_experiments.lia --dataset mnist` has trained. Both draw
results/invert_by_optimization-mnist.png: PSNR of test images against seconds per image. Seconds are of processor time on a
CPU, for a batch; optimising a single image wastes more.

It prints, for each system and space, PSNR and seconds of the encoder alone, the encoder and 50 steps, and each start and all
steps.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import dlsgan
from toy_experiments import common, lia
from toy_experiments.results import processor

STARTS = ("random", "mean", "encoder")
MARKS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)  # steps at which PSNR is noted


def optimise(
    decode: Callable[[Tensor], Tensor],  # code [B, d] -> x
    x: Tensor,  # [B, C, H, W], the images to invert
    start: Tensor,  # [B, d]
    steps: int,
    lr: float,
) -> tuple[Tensor, list[dict]]:
    """Adam on the squared error of each image, independently of the others in the batch. Returns the codes [B, d], and at
    MARKS the step, PSNR [B] (images clipped as everywhere) and seconds of processor time per image so far."""
    code = start.detach().clone().requires_grad_()
    optimizer, trace, seconds = torch.optim.Adam([code], lr), [], 0.0
    for step in range(steps + 1):
        before = common.clock(x.device)
        with torch.enable_grad():
            y = decode(code)
            loss = (y - x).square().flatten(1).mean(1).sum()  # a sum over images, so that none feels the size of the batch
        seconds += common.clock(x.device) - before
        if step in MARKS or step == steps:
            psnr = dlsgan.psnr(y.detach().clamp(-1, 1), x).tolist()
            trace.append({"step": step, "seconds": seconds / len(x), "psnr": psnr})
        if step < steps:
            before = common.clock(x.device)
            (code.grad,) = torch.autograd.grad(loss, code)
            optimizer.step()
            seconds += common.clock(x.device) - before
    return code.detach(), trace


@torch.no_grad()
def starting_points(model: dlsgan.DLSGAN, x: Tensor, seed: int = 0) -> dict[str, dict]:
    """For the space of z and the one behind the mapping network: the decoder, the spread of its codes, and the codes to
    start from; those of one start decode to the same images in both, where the map allows that."""
    generator, mapping, s = model.generator, model.generator.mapping, model.latent_scale.scale()
    rng = torch.Generator().manual_seed(seed)
    w = mapping(dlsgan.prior(4096, model.latent_scale, rng) * s)
    z = {"random": dlsgan.prior(len(x), model.latent_scale, rng), "encoder": model.encode(x)}
    codes = {start: mapping(value * s) for start, value in z.items()} | {"mean": w.mean(0).repeat(len(x), 1)}
    invertible = isinstance(mapping, lia.InvertibleMapping)
    z["mean"] = mapping.inverse(codes["mean"]) if invertible else torch.zeros_like(z["encoder"])
    return {
        "z": {"decode": model.decode, "spread": 1.0, "codes": z},
        "y" if invertible else "w": {"decode": lia.without_map(generator), "spread": w.std(0).mean().item(), "codes": codes},
    }


def study(model: dlsgan.DLSGAN, x: Tensor, steps: int) -> tuple[dict, dict]:
    """{space: {start: trace}} and reconstructions for the figure. The points of a trace have step, seconds per image (the
    encoder's own included), mean PSNR, and the share of poor images, those more than 3 dB below the median."""
    traces, pictures = {}, {}
    with torch.no_grad():
        model.encode(x)  # the first call is slower
        before = common.clock(x.device)
        model.encode(x)
        encoding = (common.clock(x.device) - before) / len(x)
    for space, given in starting_points(model, x).items():
        traces[space], lr = {}, 0.05 * given["spread"]
        for start in STARTS:
            code, trace = optimise(given["decode"], x, given["codes"][start], steps, lr)
            pictures[space, start], traces[space][start] = given["decode"](code).detach(), []
            for point in trace:
                seconds, psnr = point["seconds"] + encoding * (start == "encoder"), np.array(point["psnr"])
                told = {"psnr": round(psnr.mean(), 3), "poor": round((psnr < np.median(psnr) - 3).mean(), 3)}
                traces[space][start].append({"step": point["step"], "seconds": round(seconds, 5)} | told)
    return traces, pictures


def at(trace: list[dict], step: int) -> dict:
    """The last point of a trace up to a step."""
    return [point for point in trace if point["step"] <= step][-1]


def main(
    checkpoint: str, lia_folder: str | None, data_dir: str, count: int, steps: int, results: Path = common.RESULTS
) -> dict:
    if count < 1 or steps < 1:
        raise dlsgan.UserError("--count and --steps must be at least 1")
    config, state = dlsgan.read_checkpoint(checkpoint)
    models, trained = {"DLSGAN": dlsgan.load(checkpoint)}, {"DLSGAN": common.images_seen(config, state)}
    if lia_folder:
        models["LIA"], other = lia.load(lia_folder)
        if (other.dataset, other.resolution) != (config.dataset, config.resolution):
            raise dlsgan.UserError(f"{checkpoint} knows {config.dataset}, {lia_folder} knows {other.dataset}")
        trained["LIA"] = other.images
    config.data_dir = data_dir or f"data/{config.dataset}"
    torch.set_num_threads(1)
    x = dlsgan.to_float(dlsgan.LOADERS[config.dataset](config)[1][:count])
    result = {"command": f"python -m toy_experiments.invert_by_optimization --checkpoint {checkpoint} --count {count} "
              f"--steps {steps}" + (f" --lia {lia_folder}" if lia_folder else ""), "test_images": len(x)}
    result |= {"training_images": trained, "machine": f"one thread of {processor()}"}
    pictures = {}
    for name, model in models.items():
        result[name], pictures[name] = study(model, x, steps)
        for space, traces in result[name].items():
            few = min(50, steps)
            ends = {"encoder alone": at(traces["encoder"], 0), f"encoder + {few} steps": at(traces["encoder"], few)}
            ends |= {f"{start} + {steps} steps": at(traces[start], steps) for start in STARTS}
            result[name][space]["summary"] = ends
            told = (f"{key} {end['psnr']:.1f} dB in {end['seconds']:.3f} s" for key, end in ends.items())
            print(f"{name}, {space}: {'; '.join(told)}", flush=True)
    stem = results / f"invert_by_optimization-{config.dataset}"
    stem.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result, pictures, x, stem.with_suffix(".png"))
    return result


def draw(result: dict, pictures: dict, x: Tensor, path: Path) -> None:
    """Left: PSNR against seconds, one panel a space. Right: the first images and where each start ends."""
    from matplotlib.figure import Figure

    figure = Figure((11, 3.6 * len(pictures)), layout="constrained")
    rows = figure.subplots(len(pictures), 3, squeeze=False, width_ratios=(1, 1, 1.2))
    for row, (name, shown) in zip(rows, pictures.items(), strict=True):
        spaces = list(result[name])
        row[1].sharey(row[0])
        for axis, space in zip(row, spaces, strict=False):
            for start, style in zip(STARTS, ("s:", "^--", "o-"), strict=True):
                trace = result[name][space][start]
                x_y = [point["seconds"] for point in trace], [point["psnr"] for point in trace]
                axis.plot(*x_y, style, markersize=3.5, label=start)
            axis.set(xscale="log", title=f"{name}, descent on {space}", xlabel="seconds an image", ylabel="PSNR, dB")
            axis.grid(alpha=0.3)
        n = min(8, len(x))
        columns = [x[:n], *(shown[space, start][:n] for space in spaces for start in STARTS)]
        row[2].imshow(dlsgan.grid(columns), cmap="gray")
        labels = ["test image", *(f"{space}, {start}" for space in spaces for start in STARTS)]
        row[2].set(xticks=[], yticks=(np.arange(len(columns)) + 0.5) * x.shape[2], yticklabels=labels)
        row[2].set_title("where each start ends")
    rows[0][0].legend(frameon=False, title="start", loc="lower right")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="a run of dlsgan.py, or pretrained/celeba64.pt")
    parser.add_argument("--lia", dest="lia_folder", help="folder of a run of lia.py")
    parser.add_argument("--data-dir", default="", help="where the data is (default: data/DATASET)")
    parser.add_argument("--count", type=int, default=16, help="test images (default: 16)")
    parser.add_argument("--steps", type=int, default=500, help="steps of gradient descent (default: 500)")
    with common.one_line("invert_by_optimization"):
        main(**vars(parser.parse_args()))
