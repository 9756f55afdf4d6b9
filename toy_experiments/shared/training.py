"""Training that several experiments share: loops that go on where they stopped, an encoder for a frozen
generator."""

import copy
import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import dlsgan

PRESETS = {"cartoon": "cartoon", "mnist": "mnist", "celeba": "celeba64"}  # data set: preset of dlsgan.py
SAVE_SECONDS = 60  # of training between two states on disk
USUAL = {  # data set: the ends of the paths of models whose results have its name alone
    "cartoon": ("cartoon",),
    "mnist": ("mnist", "mnist-200000/dlsgan"),
    "celeba": ("celeba64",),
}


def configure(dataset: str, **changes) -> dlsgan.Config:
    """The preset of a data set with changes, checked. UserError on an unknown data set or an impossible
    value."""
    dlsgan.require(dataset in PRESETS, f"unknown data set {dataset!r}: choose {', '.join(PRESETS)}")
    config = dlsgan.Config(**dlsgan.PRESETS[PRESETS[dataset]] | {"threads": 1, "device": "cpu"} | changes)
    torch.set_num_threads(config.threads or torch.get_num_threads())
    return config


def images_seen(config: dlsgan.Config, state: dict) -> int:
    """Real images that a checkpoint was trained on (dlsgan.read_checkpoint): as it says itself, or by its
    step."""
    if "images" in state:
        return state["images"]
    dlsgan.require("step" in state, "the checkpoint does not say on how many images it was trained")
    return state["step"] * config.batch_size


def find_data(config: dlsgan.Config, data_dir: str) -> str:
    """Where the data of a trained model is: data_dir if it is given, else where the training had it if that
    is still there, else data/DATASET."""
    if not data_dir and Path(config.data_dir).exists():
        return config.data_dir
    return data_dir or f"data/{config.dataset}"


def result_name(config: dlsgan.Config, checkpoint: str | Path) -> str:
    """By what results of a trained model are named: DATASET for the models in USUAL, DATASET-NAME for all
    others. NAME is that of the run's folder, or of the file."""
    path = Path(checkpoint).absolute()
    if path.name == "checkpoint.pt":
        path = path.parent
    if path.suffix == ".pt":
        path = path.with_suffix("")
    if any(path.match(model) for model in USUAL.get(config.dataset, ())):
        return config.dataset
    return f"{config.dataset}-{path.name}"


def clock(device: str | torch.device) -> float:
    """Seconds of processor time on a CPU, where other programs may run, too; elsewhere time, on CUDA after
    all work that the device was given."""
    device = torch.device(device)
    if device.type == "cpu":
        return time.process_time()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def state_of(x: nn.Module | torch.optim.Optimizer | torch.Generator) -> dict | Tensor:
    return x.get_state() if isinstance(x, torch.Generator) else x.state_dict()


def set_state(x: nn.Module | torch.optim.Optimizer | torch.Generator, state: dict | Tensor) -> None:
    if isinstance(x, torch.Generator):
        x.set_state(state)
    else:
        x.load_state_dict(state)


def digest(network: nn.Module) -> str:
    """SHA-256 of all weights and buffers with their names."""
    result = hashlib.sha256()
    for name, value in network.state_dict().items():
        result.update(name.encode())
        result.update(value.cpu().numpy().tobytes())
    return result.hexdigest()


def read_progress(path: Path, run: dict, stateful: dict, record: dict) -> int:
    """Sets `stateful` and `record` to what the file holds; returns the number of steps that are done. run:
    what `resumable` compares."""
    with dlsgan.explain(f"{path} is not of this run (delete it to start again)", *dlsgan.LOADING_FAULTS):
        state = torch.load(path, map_location="cpu", weights_only=True)
        same = (state["steps"], state["settings"]) == (run["steps"], run["settings"])
        dlsgan.require(same, f"it has other settings or not {run['steps']:,} steps")
        same = state.get("frozen") == run.get("frozen")
        dlsgan.require(same, "it was trained for frozen networks with other weights")
        for name, x in stateful.items():
            set_state(x, state[name])
        record.update(state["record"])
        return state["step"]


def write_progress(path: Path, step: int, run: dict, stateful: dict, record: dict) -> None:
    """Keeps everything that `read_progress` needs; step: the number of steps that are done."""
    state = {name: state_of(x) for name, x in stateful.items()}
    state |= run | {"step": step, "record": record}
    temporary = path.with_suffix(".tmp")
    with dlsgan.explain(f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, temporary)
        temporary.replace(path)  # a crash while writing leaves the file before


def resumable(
    steps: int,
    config: dlsgan.Config,
    stateful: dict,  # name: module, optimiser or random generator whose state is kept
    record: dict | None,  # numbers and lists that are kept as well; gets "seconds" of training
    path: Path | None,  # the file; None keeps nothing
    frozen: nn.Module | None = None,  # what is trained belongs to these weights, which stay as they are
) -> Iterator[int]:
    """Yields the training steps that are left, up to steps - 1, and keeps the state every minute and at the
    end. A second call with the same path goes on from there (UserError if number of steps, settings or frozen
    weights differ)."""
    settings = dataclasses.asdict(config) | {"data_dir": "", "device": "cpu", "threads": 1, "out": ""}
    run = {"steps": steps, "settings": settings}
    if path and frozen is not None:
        run["frozen"] = digest(frozen)
    record = {} if record is None else record
    first = 0
    if path and path.exists():
        first = read_progress(path, run, stateful, record)
    device = dlsgan.pick_device(config.device)
    saved = clock(device)
    started = saved - record.get("seconds", 0.0)
    for step in range(first, steps):
        yield step
        now = clock(device)
        record["seconds"] = now - started
        if path and (now - saved > SAVE_SECONDS or step == steps - 1):
            write_progress(path, step + 1, run, stateful, record)
            saved = now


def train_gan(
    model: dlsgan.DLSGAN,  # any G(z_scaled) -> x and D(x) -> (logits, z_hat); encoder_weight 0: a plain GAN
    config: dlsgan.Config,
    train_images: np.ndarray,  # uint8 [N, C, H, W]
    path: Path | None = None,  # see resumable
    record: dict | None = None,  # see resumable
) -> dlsgan.DLSGAN:
    """The loop of dlsgan.train for networks that its Config cannot name: returns the model with averaged
    weights."""
    c = config
    device = dlsgan.pick_device(c.device)
    bf16 = dlsgan.has_bf16(device)
    model.to(device, memory_format=torch.channels_last)
    generator = copy.deepcopy(model.generator)
    discriminator = copy.deepcopy(model.discriminator)
    result = dlsgan.DLSGAN(generator, discriminator, model.latent_scale).requires_grad_(False)

    optimizers = dlsgan.make_optimizers(model, c.lr)
    rng = torch.Generator().manual_seed(c.seed)
    stateful = {"model": model, "average": result}
    stateful |= {"optimizer_g": optimizers[0], "optimizer_d": optimizers[1], "rng": rng}
    steps = math.ceil(c.images / c.batch_size)
    stream = None
    for step in resumable(steps, c, stateful, record, path):
        if stream is None:  # only now it is known which step is the first
            stream = dlsgan.batches(train_images, c.batch_size, c.seed, step, c.flip)
        dlsgan.decay_learning_rate(optimizers, c.lr, c.lr_final, step / steps)
        weights = dlsgan.encoder_weight(c, step / steps), dlsgan.penalty_weight(c, step, step / steps)
        real = dlsgan.to_float(next(stream), device)
        losses = dlsgan.train_step(model, optimizers, real, rng, c.loss, *weights, bf16)
        dlsgan.average_weights(result, model, step)
        if step % 100 == 0:
            finite = math.isfinite(losses["loss_d"].item() + losses["loss_g"].item())
            dlsgan.require(
                finite, f"the loss is no longer finite at step {step:,}: try another --seed or data set"
            )
    return result


def train_encoder(
    generator: Callable[[Tensor], Tensor],  # z [B, d] -> x; frozen: DLSGAN.decode, or a module
    encoder: nn.Module,  # x -> (anything, z_hat [B, d]), such as dlsgan.Discriminator
    latent_dim: int,
    config: dlsgan.Config,  # batch_size, lr, seed, device
    images: int,  # budget: generated images
    path: Path | None = None,  # see resumable
    record: dict | None = None,  # see resumable
    lr_final: float = 0.1,  # the learning rate falls exponentially to this factor
    frozen: nn.Module | None = None,  # the weights behind `generator`, see resumable
) -> nn.Module:
    """An encoder (averaged) for a frozen generator by the mean squared error of z, the usual way to invert a
    GAN."""
    device = dlsgan.pick_device(config.device)
    encoder.to(device, memory_format=torch.channels_last)
    result = copy.deepcopy(encoder).requires_grad_(False)
    optimizer = torch.optim.Adam(encoder.parameters(), config.lr, (0.9, 0.99))
    rng = torch.Generator().manual_seed(config.seed)
    stateful = {"encoder": encoder, "average": result, "optimizer": optimizer, "rng": rng}
    steps = math.ceil(images / config.batch_size)
    for step in resumable(steps, config, stateful, record, path, frozen):
        dlsgan.decay_learning_rate([optimizer], config.lr, lr_final, step / steps)
        z = torch.randn(config.batch_size, latent_dim, generator=rng).to(device)
        with torch.no_grad():
            x = generator(z)
        loss = (encoder(x)[1] - z).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        dlsgan.average_weights(result, encoder, step)
    return result
