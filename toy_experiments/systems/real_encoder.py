"""An encoder for real photographs: DLSGAN's own, fine-tuned on real images. The paper has no such step.

The paper's encoder sees generated images only. Here generator and scale are frozen, and a copy of the
discriminator-encoder goes on to learn, on real training images, to rebuild them. Per batch of real images x
and of as many generated ones G(z * s), with x_hat = G(z_hat * s) and features f of the frozen discriminator:

    20 mean((x - x_hat)^2)                       in stage 2 of lia.py the factor is 1, beside a critic
    + mean((f(x) - f(x_hat))^2) / mean(f(x)^2)   as there
    + L_enc of the generated images              so that z is not forgotten
    + mean((z - z_hat)^2) of the same            so that elements of z_hat that s leaves out stay near 0
    + mean((|s z_hat|^2 / sum(s^2 v) - 1)^2)     of real images, so that codes stay as long as usual

(v is E[z_hat^2] of generated images, so sum(s^2 v) is the usual |s z_hat|^2.) The copy is kept as a
checkpoint like any other, with the same generator; its logits mean nothing any more.

Questions. How much of what is lost of a test image was the encoder's fault? The generator's is what gradient
descent from the encoder's guess, on z and on w, cannot mend. What do a few steps of it cost and give? Does
fine-tuning spoil L_enc? Are codes of photographs as long as those of samples? And is the latent scale still
worth something then? For that, run a model trained without it, too.

    python -m toy_experiments.systems.real_encoder runs/mnist --images 40000
    python -m toy_experiments.systems.real_encoder pretrained/celeba64.pt --images 150000
    python -m toy_experiments.systems.real_encoder pretrained/celeba64-no-scale.pt --images 150000

Each writes results/real_encoder-NAME.json and .png, and runs/real_encoder/NAME-real-encoder.pt; NAME is that
of the run's folder, or of the file. 7 minutes of processor time of one core of an AMD EPYC with AVX2 for
40,000 digits and 71 for 150,000 faces, and some 10 for the measures. A second call goes on where the first
was stopped, if the model is still the same.
"""

import copy
import dataclasses
import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import dlsgan
from toy_experiments.shared import cli, training
from toy_experiments.shared.cli import RESULTS
from toy_experiments.shared.figures import middles
from toy_experiments.systems import lia
from toy_experiments.systems.hybrid import Refined, descend, measure, squared_length
from toy_experiments.tools import export_weights

PIXELS = 20  # weight of their squared error
LR_FINAL = 0.1  # factor to which the learning rate falls
TEST = 1000  # test images whose codes' lengths are compared
COLOURS = {"paper's": "#3c7a5d", "fine-tuned": "#7b4f9d"}  # encoders


class FineTuning:
    """The frozen model, the encoder that learns, its average, and one training step."""

    def __init__(self, model: dlsgan.DLSGAN, lr: float, seed: int = 0):
        self.model = model.requires_grad_(False)
        self.encoder = copy.deepcopy(model.discriminator).requires_grad_(True)
        self.average = copy.deepcopy(model.discriminator)
        self.optimizer = torch.optim.Adam(self.encoder.parameters(), lr, (0.9, 0.99))
        self.rng = torch.Generator().manual_seed(seed)

    def stateful(self) -> dict:
        """What training.resumable keeps."""
        networks = {"encoder": self.encoder, "average": self.average}
        return networks | {"optimizer": self.optimizer, "rng": self.rng}

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        """Of an encoder that sees x and is to rebuild the target, [B, C, H, W] both: x itself, but in a test
        of whether that matters."""
        scale = self.model.latent_scale
        z = dlsgan.sample_latents(len(x), scale, self.rng)
        _, codes = self.encoder(torch.cat((x, self.model.decode(z))))
        z_hat, z_hat_generated = codes.chunk(2)  # [2 B, d] -> [B, d] twice
        rebuilt = self.model.decode(z_hat)
        pixels = (rebuilt - target).square().mean()
        wanted = lia.features(self.model.discriminator, target)
        error = lia.features(self.model.discriminator, rebuilt) - wanted
        features = error.square().mean() / wanted.square().mean()
        s = scale.scale()
        l_enc = dlsgan.encoder_loss(z, z_hat_generated, s)
        recovery = (z - z_hat_generated).square().mean()
        usual = (s.square() * scale.v).sum()
        prior = (squared_length(z_hat * s) / usual - 1).square().mean()
        return PIXELS * pixels + features + l_enc + recovery + prior

    def step(self, x: Tensor, target: Tensor, step: int) -> float:
        """One step of the encoder and of its average; the loss before it."""
        loss = self.loss(x, target)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        dlsgan.average_weights(self.average, self.encoder, step)
        return loss.item()


def fine_tune(
    model: dlsgan.DLSGAN,  # its weights stay as they are
    config: dlsgan.Config,  # images (the budget of real images), batch_size, lr, seed, flip
    images: np.ndarray,  # uint8 [N, C, H, W], of the training set
    path: Path | None = None,  # see training.resumable
    record: dict | None = None,  # see training.resumable
) -> dlsgan.DLSGAN:
    """The same generator and scale with the fine-tuned encoder (averaged weights). UserError if the loss is
    no longer finite."""
    c = config
    device = model.latent_scale.v.device
    tuning = FineTuning(model, c.lr, c.seed)
    steps = math.ceil(c.images / c.batch_size)
    stream = None
    for step in training.resumable(steps, c, tuning.stateful(), record, path, model):
        if stream is None:  # only now it is known which step is the first
            stream = dlsgan.batches(images, c.batch_size, c.seed + 1, step, c.flip)
        dlsgan.decay_learning_rate([tuning.optimizer], c.lr, LR_FINAL, step / steps)
        x = dlsgan.to_float(next(stream), device)
        loss = tuning.step(x, x, step)
        dlsgan.require(math.isfinite(loss), f"the loss is no longer finite at step {step:,}")
    return dlsgan.DLSGAN(model.generator, tuning.average, model.latent_scale)


def tell(name: str, row: dict, steps: int) -> None:
    """Prints what `measure` found."""
    gain = f"test {row['psnr_gain_test']:+.2f} dB, L_enc {row['l_enc']:.3f}"
    print(f"{name} encoder: {gain}, {row['inside']:.0%} of test codes of usual length")
    descent = row["descent"]
    print(
        f"    from its guess, {descent['start']:+.2f} dB, {steps} steps lead to {descent['z']:+.2f} dB on z, "
        f"{descent['w']:+.2f} dB on w"
    )
    for space, key in (("z", "one"), ("w", "one_w")):
        points = [f"{p['steps']} steps {p['gain']:+.2f} dB in {p['milliseconds']:.0f} ms" for p in row[key]]
        print(f"    one image, on {space}: {', '.join(points)}", flush=True)


def main(
    checkpoint: str,
    images: int,  # real images to fine-tune on
    data_dir: str = "",
    seed: int = 0,
    device: str = "cpu",
    count: int = 64,  # test images for gradient descent
    steps: int = 500,  # of it
    runs: Path = Path("runs"),
    results: Path = RESULTS,
) -> dict:
    """Fine-tunes, measures both encoders, writes numbers and figure."""
    dlsgan.require(min(images, count, steps) >= 1, "--images, --count and --steps must be at least 1")
    trained, state = dlsgan.read_checkpoint(checkpoint)
    seen = training.images_seen(trained, state)
    changes = {"images": images, "seed": seed, "device": device, "threads": 1}
    config = dataclasses.replace(trained, **changes, data_dir=training.find_data(trained, data_dir))
    torch.set_num_threads(1)
    name = Path(checkpoint).stem
    folder = runs / "real_encoder"
    train_images, test_images = dlsgan.LOADERS[config.dataset](config)
    test = dlsgan.to_float(test_images[:TEST], dlsgan.pick_device(device))
    model = dlsgan.load_model(checkpoint, device)
    record = {}
    tuned = fine_tune(model, config, train_images, folder / f"{name}.pt", record)
    weights = export_weights.half_precision(tuned.state_dict())
    text = f"an encoder fine-tuned on {images:,} real images (not in the paper)"
    path = folder / f"{name}-real-encoder.pt"
    export_weights.write(path, trained, seen, weights, encoder=text)
    models = {"paper's": model, "fine-tuned": dlsgan.load_model(path, device)}
    command = f"python -m toy_experiments.systems.real_encoder {checkpoint} --images {images}"
    result = {
        "command": f"{command} --seed {seed} --count {count} --steps {steps}",
        "model": {"name": name, "dataset": trained.dataset, "images": seen},
        "images": images,
        "test_images": {"gain": min(len(test), dlsgan.NUM_EVAL_IMAGES), "inside": len(test)},
        "descent": {"test_images": min(len(test), count), "steps": steps},
        "machine": f"one thread of {cli.processor()}" if device == "cpu" else device,
        "minutes": round(record["seconds"] / 60, 2),  # of fine-tuning, processor time on a CPU
    }
    mean_image = test[: dlsgan.NUM_EVAL_IMAGES].mean(0)
    result["random"] = random = descend(model, test[:count], mean_image, steps, "random")
    for encoder, each in models.items():
        result[encoder] = measure(each, test, count, steps)
        tell(encoder, result[encoder], steps)
    print(f"from random codes, {steps} steps lead to {random['z']:+.2f} dB on z, {random['w']:+.2f} dB on w")
    cli.write_json(results / f"real_encoder-{name}.json", result)
    draw(result, models, test[:8], results / f"real_encoder-{name}.png")
    return result


def draw_bars(axis: Axes, result: dict) -> None:
    """Gains of test images by encoder and descent."""
    steps = result["descent"]["steps"]
    gains = {}
    for encoder in COLOURS:
        descent = result[encoder]["descent"]
        gains[f"{encoder} encoder"] = descent["start"]
        gains[f"{encoder}, {steps} steps on z"] = descent["z"]
        gains[f"{encoder}, {steps} steps on w"] = descent["w"]
    colours = [colour for colour in COLOURS.values() for _ in range(3)]
    gains[f"random, {steps} steps on z"] = result["random"]["z"]
    drawn = axis.barh(list(gains), list(gains.values()), color=[*colours, "0.6"])
    axis.bar_label(drawn, fmt=" %+.1f ")
    axis.margins(x=0.25)
    axis.invert_yaxis()
    axis.set(xlabel="gain on test images, dB above the mean image")


def draw_curves(axis: Axes, result: dict) -> None:
    """Gain against milliseconds from each encoder's guess: one photograph on z and on w, a batch on z."""
    ways = (("one", "o-", "on z"), ("one_w", "^:", "on w"), ("batch", "s--", "on z, in a batch"))
    for encoder, colour in COLOURS.items():
        for many, style, label in ways:
            x = [point["milliseconds"] for point in result[encoder][many]]
            y = [point["gain"] for point in result[encoder][many]]
            axis.plot(x, y, style, color=colour, markersize=5, label=f"{encoder}, {label}")
    steps = ", ".join(str(point["steps"]) for point in result["paper's"]["one"])
    axis.set_title(f"encoder and {steps} steps", fontsize=10)
    axis.set(xscale="log", xlabel="milliseconds an image", ylabel="dB above the mean image")
    axis.legend(frameon=False, fontsize=9)
    axis.grid(alpha=0.3)


def draw(result: dict, models: dict[str, dlsgan.DLSGAN], x: Tensor, path: Path) -> None:
    """Left: gains by encoder and descent. Middle: dB against milliseconds. Right: test images x and what is
    made of them."""
    shown = {"test image": x}
    for encoder, model in models.items():
        shown[f"{encoder} encoder"] = model.reconstruct(x)
        shown[f"{encoder}, 20 steps"] = Refined(model, 20).reconstruct(x)
    figure = Figure((15, 4.4), layout="constrained")
    bars, curves, images = figure.subplots(1, 3, width_ratios=(1, 1, 1.2))
    draw_bars(bars, result)
    draw_curves(curves, result)
    images.imshow(dlsgan.make_grid(list(shown.values())), cmap="gray")
    images.set(xticks=[], yticks=middles(len(shown), x.shape[2]), yticklabels=list(shown))
    told = f"the paper's encoder, and the same fine-tuned on {result['images']:,} real images"
    figure.suptitle(f"{result['model']['name']}: {told}")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    parser = cli.parser(__doc__)
    parser.add_argument("checkpoint", help="folder of a run, or a checkpoint")
    parser.add_argument("--data-dir", default="", help="where the data is (default: as in training)")
    parser.add_argument("--images", type=int, default=40_000, help="budget: real images (default: 40000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps or auto (default: cpu)")
    parser.add_argument("--count", type=int, default=64, help="images for gradient descent (default: 64)")
    parser.add_argument("--steps", type=int, default=500, help="of gradient descent (default: 500)")
    with cli.one_line("real_encoder"):
        main(**vars(parser.parse_args()))
