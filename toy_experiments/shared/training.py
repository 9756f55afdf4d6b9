"""What experiments share: training loops that go on where they stopped, and an encoder for a frozen generator."""

import argparse
import contextlib
import copy
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import dlsgan

RESULTS = Path(__file__).parent / "results"
PRESETS = {"cartoon": "cartoon", "mnist": "mnist", "celeba": "celeba64"}  # data set: preset of dlsgan.py


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A command line with the options that all experiments on images have."""
    result = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--dataset", default="cartoon", help="cartoon, mnist or celeba (at 64x64); default: cartoon")
    result.add_argument("--data-dir", default="", help="where the data is (default: data/DATASET)")
    result.add_argument("--images", type=int, default=24_000, help="budget: training images in all (default: 24000)")
    result.add_argument("--seed", type=int, default=0)
    result.add_argument("--device", default="cpu", help="cpu, cuda, mps or auto (default: cpu)")
    result.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    return result


def configure(dataset: str, **changes) -> dlsgan.Config:
    """The preset of a data set with changes, checked. UserError on an unknown data set or an impossible value."""
    if dataset not in PRESETS:
        raise dlsgan.UserError(f"unknown data set {dataset!r}: choose {', '.join(PRESETS)}")
    config = dlsgan.Config(**dlsgan.PRESETS[PRESETS[dataset]] | {"threads": 1, "device": "cpu"} | changes)
    config.check()
    torch.set_num_threads(config.threads or torch.get_num_threads())
    return config


def images_seen(config: dlsgan.Config, state: dict) -> int:
    """Real images that a checkpoint was trained on (dlsgan.read_checkpoint); exported weights say it themselves."""
    return state["images"] if "images" in state else state["step"] * config.batch_size


def clock(device: str | torch.device) -> float:
    """Seconds of processor time on a CPU, where other programs may run, too; elsewhere time."""
    return time.process_time() if str(device) == "cpu" else time.perf_counter()


@contextlib.contextmanager
def one_line(name: str) -> Iterator[None]:
    """Ends the program with one line and exit code 2 on a UserError."""
    try:
        yield
    except dlsgan.UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)


@torch.no_grad()
def average(target: nn.Module, source: nn.Module, step: int) -> None:
    """Moving average of weights after training step 0, 1, ...; the decay rises to 0.999 as in dlsgan.train."""
    weights = (list(module.parameters()) for module in (target, source))
    torch._foreach_lerp_(*weights, 1 - min(0.999, (1 + step) / (10 + step)))


def resumable(steps: int, config: dlsgan.Config, stateful: dict, record: dict, path: Path | None) -> Iterator[int]:
    """Yields the training steps that are left, up to steps - 1. Every minute and at the end, `path` keeps the state of
    everything in `stateful` (modules, optimisers, random generators) and of `record`, a dictionary of numbers and lists,
    to which "seconds" of training are added. A second call with the same path goes on from there (UserError if number of
    steps or settings differ)."""
    settings, first = dataclasses.asdict(config) | {"data_dir": "", "device": "cpu", "threads": 1, "out": ""}, 0
    if path and path.exists():
        with dlsgan.explain(f"{path} is not of this run (delete it to start again)"):
            state = torch.load(path, map_location="cpu", weights_only=True)
            if (state["steps"], state["settings"]) != (steps, settings):
                raise ValueError(f"it has other settings or not {steps:,} steps")
            for name, x in stateful.items():
                getattr(x, "set_state", getattr(x, "load_state_dict", None))(state[name])
            record.update(state["record"])
            first = state["step"]
    started = (saved := clock(config.device)) - record.get("seconds", 0.0)
    for step in range(first, steps):
        yield step
        now = clock(config.device)
        record["seconds"] = now - started
        if path and (now - saved > 60 or step == steps - 1):
            state = {name: getattr(x, "get_state", getattr(x, "state_dict", None))() for name, x in stateful.items()}
            state |= {"step": step + 1, "steps": steps, "settings": settings, "record": record}
            with dlsgan.explain(f"cannot write {path}"):
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.save(state, temporary := path.with_suffix(".tmp"))
                temporary.replace(path)  # a crash while writing leaves the file before
            saved = now


def train_gan(
    model: dlsgan.DLSGAN,  # any G(z_scaled) -> x and D(x) -> (logits, z_hat); encoder_weight 0 makes it a plain GAN
    config: dlsgan.Config,
    train_images: np.ndarray,  # uint8 [N, C, H, W]
    path: Path | None = None, record: dict | None = None,  # see resumable
) -> dlsgan.DLSGAN:
    """The loop of dlsgan.train for networks that its Config cannot name: returns the model with averaged weights."""
    c, device, stream = config, dlsgan.pick_device(config.device), None
    model.to(device, memory_format=torch.channels_last)
    result = dlsgan.DLSGAN(*map(copy.deepcopy, (model.generator, model.discriminator)), model.latent_scale)
    result.requires_grad_(False)
    rng, optimizers = torch.Generator().manual_seed(c.seed), dlsgan.make_optimizers(model, c.lr)
    steps, penalty_every = math.ceil(c.images / c.batch_size), 1 if c.loss == "wgan-gp" else 16
    stateful = {"model": model, "average": result, "optimizer_g": optimizers[0], "optimizer_d": optimizers[1], "rng": rng}
    for step in resumable(steps, config, stateful, record if record is not None else {}, path):
        stream = stream or dlsgan.batches(train_images, c.batch_size, c.seed, step, c.flip)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = c.lr * c.lr_final ** (step / steps)
        penalty = 0.0 if step % penalty_every else c.r1_gamma / 2 * penalty_every
        real = dlsgan.to_float(next(stream), device)
        losses = dlsgan.train_step(model, optimizers, real, rng, c.loss, c.encoder_weight, penalty, device.type == "cuda")
        average(result, model, step)
        if step % 100 == 0 and not math.isfinite(losses["loss_d"].item() + losses["loss_g"].item()):
            raise dlsgan.UserError(f"the loss is no longer finite at step {step:,}: try another --seed or data set")
    return result


def train_encoder(
    generator: Callable[[Tensor], Tensor],  # z [B, d] -> x; frozen: DLSGAN.decode, or a module
    encoder: nn.Module,  # x -> (anything, z_hat [B, d]), such as dlsgan.Discriminator
    latent_dim: int,
    config: dlsgan.Config,  # batch_size, lr, seed, device
    images: int,  # budget: generated images
    path: Path | None = None, record: dict | None = None,  # see resumable
) -> nn.Module:
    """An encoder (averaged) for a frozen generator by the mean squared error of z, the usual way to invert a GAN."""
    device, steps = dlsgan.pick_device(config.device), math.ceil(images / config.batch_size)
    rng = torch.Generator().manual_seed(config.seed)
    encoder.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(encoder.parameters(), config.lr, (0.9, 0.99))
    result = copy.deepcopy(encoder).requires_grad_(False)
    stateful = {"encoder": encoder, "average": result, "optimizer": optimizer, "rng": rng}
    for step in resumable(steps, config, stateful, record if record is not None else {}, path):
        optimizer.param_groups[0]["lr"] = config.lr * 0.1 ** (step / steps)
        z = torch.randn(config.batch_size, latent_dim, generator=rng).to(device)
        with torch.no_grad():
            x = generator(z)
        loss = (encoder(x)[1] - z).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average(result, encoder, step)
    return result
