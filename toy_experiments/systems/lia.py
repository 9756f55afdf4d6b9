"""Latently Invertible Autoencoder: invert a GAN through the space behind an invertible mapping network.

Jiapeng Zhu et al., "Disentangled Inference for GANs with Latently Invertible Autoencoder" (2019),
arXiv:1906.08090. Stage 1 is a GAN x = g(phi(z)) whose mapping network phi has an exact inverse. Stage 2 takes
phi out, freezes g and trains an encoder f, so that g(f(x)) is like x: an autoencoder without random
variables. Then y = f(x) and z = phi^-1(y).

Claim. The inverse is exact. The paper also finds that an encoder to y learns more steadily, and reconstructs
better, than one that is trained as in a VAE to a distribution over z, through an MLP as mapping network; this
is measured here. So is the ablation, an encoder to the w of the same MLP: it has no way back to z, but shows
what the invertible map itself does.

Changes from the paper: StyleGAN2's blocks of dlsgan.py, small; non-saturating loss with R1 as in the official
code (the text says WGAN with R1); no VGG16 is at hand for the perceptual term: features of the frozen
discriminator of stage 1 at 1/8 of the resolution stand in, with a weight of their own; f is built as the
discriminator, without batch norm.

    python -m toy_experiments.systems.lia --dataset mnist   14 minutes, one core; draws results/lia-mnist.png

It prints measures of each system and "|phi(phi^-1(y)) - y| at most 1e-14 in float64". A second call goes on
with what has been trained, in runs/DATASET-IMAGES.
"""

import copy
import dataclasses
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

import dlsgan
from toy_experiments.shared import cli, training
from toy_experiments.shared.cli import RESULTS
from toy_experiments.shared.figures import middles

# Of stage 1, in units of the preset's learning rate, at which a plain GAN of faces ended as black images:
STAGE_1_LR = {"celeba": 0.5}
GAN_SHARE = 2 / 3  # of the budget for stage 1, the rest is for stage 2
KINDS = {  # system: mapping network and what the encoder gives
    "lia": "invertible map, encoder to y",
    "mlp": "MLP mapping, encoder to w",
    "variational": "MLP mapping, variational encoder to z",
}
LAYERS = ("from_rgb", "blocks.0.conv1", "latent_head")  # of the encoder: whose gradients are watched


class Coupling(nn.Sequential):
    """Two dense layers, [B, d/2] -> [B, d/2]: by how much one half of the features moves the other."""

    def __init__(self, latent_dim: int):
        half = latent_dim // 2
        wide = dlsgan.EqualLinear(half, latent_dim, lr_multiplier=0.01, gain=dlsgan.SQRT2)
        narrow = dlsgan.EqualLinear(latent_dim, half, lr_multiplier=0.01, gain=dlsgan.SQRT2)
        super().__init__(wide, narrow)

    def forward(self, x: Tensor) -> Tensor:
        wide, narrow = self
        return dlsgan.leaky_relu(narrow(dlsgan.leaky_relu(wide(x))))


class InvertibleMapping(nn.Module):
    """z [B, d] -> y [B, d], d even, by additive coupling (NICE, Dinh et al. 2015): four times, two dense
    layers of one half are subtracted from the other half, and the order of features is reversed. Volumes are
    kept: log |det dy/dz| = 0."""

    def __init__(self, latent_dim: int, steps: int = 4):
        super().__init__()
        odd = f"the invertible map halves its input: {latent_dim} latent dimensions are odd"
        dlsgan.require(latent_dim % 2 == 0, odd)
        self.couplings = nn.ModuleList(Coupling(latent_dim) for _ in range(steps))

    def forward(self, z: Tensor) -> Tensor:
        for shift in self.couplings:
            first, second = z.chunk(2, 1)  # [B, d/2] each
            z = torch.cat((first, second - shift(first)), 1).flip(1)
        return z

    def inverse(self, y: Tensor) -> Tensor:
        for shift in reversed(self.couplings):
            first, second = y.flip(1).chunk(2, 1)
            y = torch.cat((first, second + shift(first)), 1)
        return y


def without_map(generator: nn.Module) -> nn.Module:
    """g: the same generator as a function of y (or w)."""
    result = copy.deepcopy(generator)
    result.mapping = nn.Identity()
    return result


class Autoencoder(dlsgan.DLSGAN):
    """The frozen generator of stage 1 with the encoder of stage 2; used and measured like a DLSGAN with s =
    1."""

    def __init__(self, gan: dlsgan.DLSGAN, encoder: nn.Module, kind: str):
        super().__init__(gan.generator, encoder, gan.latent_scale)
        self.kind = kind
        self.synthesis = without_map(gan.generator)

    def encode(self, x: Tensor) -> Tensor:
        """z [B, d]; for "mlp" it is w, which nothing turns into z."""
        code = self.discriminator(x)[1]
        if self.kind == "lia":
            return self.generator.mapping.inverse(code)
        if self.kind == "variational":
            return code.chunk(2, 1)[0]  # [B, 2d] -> [B, d], the mean
        return code

    def reconstruct(self, x: Tensor) -> Tensor:
        if self.kind == "mlp":
            return self.synthesis(self.encode(x))
        return super().reconstruct(x)


def gan_budget(config: dlsgan.Config) -> int:
    """Images for stage 1 of a budget."""
    return round(GAN_SHARE * config.images)


def encoder_budget(config: dlsgan.Config) -> int:
    """Images for stage 2 of a budget."""
    return config.images - gan_budget(config)


def stage_1(config: dlsgan.Config) -> dlsgan.Config:
    """Settings of a plain GAN, for its share of the budget: no encoder term and s = 1, so that the
    discriminator is nothing but that."""
    return dataclasses.replace(
        config,
        encoder_weight=0.0,
        latent_scale=False,
        images=gan_budget(config),
        lr=config.lr * STAGE_1_LR.get(config.dataset, 1.0),
    )


def train_stage_1(
    config: dlsgan.Config,  # its images are the budget of both stages
    images: np.ndarray,  # uint8 [N, C, H, W]
    folder: Path,  # where the state is kept
    invertible: bool,  # an InvertibleMapping in place of the MLP
    record: dict,  # see training.resumable
) -> dlsgan.DLSGAN:
    """The GAN whose inversion stage 2 learns."""
    config = stage_1(config)
    torch.manual_seed(config.seed)
    model = dlsgan.build(config)
    path = folder / "gan-mlp.pt"
    if invertible:
        model.generator.mapping = InvertibleMapping(config.latent_dim)
        path = folder / "gan-invertible.pt"
    return training.train_gan(model, config, images, path, record)


def features(discriminator: nn.Module, x: Tensor) -> Tensor:
    """Stand-in for VGG16's conv4_3: the discriminator's features after three blocks, [B, c, H/8, W/8]."""
    x = dlsgan.leaky_relu(discriminator.from_rgb(x))
    for block in discriminator.blocks[:3]:
        x = block(x)
    return x


def kl_to_prior(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, I)) in nats, [B, d] twice -> [B]."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


class Stage2:
    """The networks, optimisers and latent noise of stage 2, and one training step of it. L_f = mean((x -
    g(f(x)))^2) + relative squared error of features + 0.1 softplus(-c(g(f(x)))); the discriminator c goes on
    from stage 1 against g(f(x)), with R1. The variational encoder gives mean and log variance of z; its KL
    term in nats per pixel value fits the pixel loss for a noise variance of 1/2."""

    def __init__(self, gan: dlsgan.DLSGAN, config: dlsgan.Config, kind: str):
        device = dlsgan.pick_device(config.device)
        channels = gan.discriminator.from_rgb.weight.shape[1]
        self.variational = kind == "variational"
        outputs = 2 * config.latent_dim if self.variational else config.latent_dim
        torch.manual_seed(config.seed + 1)
        self.encoder = dlsgan.Discriminator(
            config.resolution, channels, outputs, config.channel_base, config.channel_max
        )
        self.encoder.to(device, memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.encoder).requires_grad_(False)
        self.critic = copy.deepcopy(gan.discriminator).requires_grad_(True)
        self.judged = [p for name, p in self.critic.named_parameters() if "latent_head" not in name]
        # frozen: its weights take no gradient
        self.decode = gan.generator if self.variational else without_map(gan.generator)
        self.frozen_discriminator = gan.discriminator
        self.optimizer = torch.optim.Adam(self.encoder.parameters(), config.lr, (0.9, 0.99))
        self.optimizer_c = torch.optim.Adam(self.critic.parameters(), config.lr, (0.9, 0.99))
        self.rng = torch.Generator().manual_seed(config.seed)

    def stateful(self) -> dict:
        """What training.resumable keeps."""
        return {
            "encoder": self.encoder,
            "average": self.average,
            "critic": self.critic,
            "optimizer": self.optimizer,
            "optimizer_c": self.optimizer_c,
            "rng": self.rng,
        }

    def encoder_loss(self, real: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """L_f, its pixel loss, and the reconstructions."""
        code = self.encoder(real)[1]
        kl = 0.0
        if self.variational:  # [B, 2d] -> [B, d] twice
            mean, log_variance = code.chunk(2, 1)
            kl = kl_to_prior(mean, log_variance).mean() / real[0].numel()
            noise = torch.randn(mean.shape, generator=self.rng).to(mean.device)
            code = mean + (log_variance / 2).exp() * noise
        fake = self.decode(code)
        pixel = (fake - real).square().mean()
        target = features(self.frozen_discriminator, real)
        feature = (
            features(self.frozen_discriminator, fake) - target
        ).square().mean() / target.square().mean()
        adversarial = F.softplus(-self.critic(fake)[0]).mean()
        return pixel + feature + 0.1 * adversarial + kl, pixel, fake

    def critic_loss(self, real: Tensor, fake: Tensor, penalty_weight: float) -> Tensor:
        real.requires_grad_(penalty_weight > 0)
        logits = self.critic(real)[0]
        loss = F.softplus(-logits).mean() + F.softplus(self.critic(fake.detach())[0]).mean()
        if penalty_weight:
            loss = loss + penalty_weight * dlsgan.r1_penalty(logits, real)
        return loss

    def step(self, real: Tensor, penalty_weight: float) -> tuple[float, dict[str, float]]:
        """One step of the encoder and of the critic. Returns the pixel loss and the norms of LAYERS'
        gradients."""
        loss, pixel, fake = self.encoder_loss(real)
        loss.backward(inputs=list(self.encoder.parameters()))
        self.critic_loss(real, fake, penalty_weight).backward(inputs=self.judged)
        norms = {name: self.encoder.get_submodule(name).weight.grad.norm().item() for name in LAYERS}
        for optimizer in (self.optimizer, self.optimizer_c):
            optimizer.step()
            optimizer.zero_grad()
        return pixel.item(), norms


def train_stage_2(
    gan: dlsgan.DLSGAN,
    config: dlsgan.Config,
    kind: str,  # of KINDS
    images: np.ndarray,  # uint8 [N, C, H, W]
    path: Path | None,  # see training.resumable
    record: dict,  # gets the pixel loss and the norms of the encoder's gradients at each step
) -> nn.Module:
    """The encoder f, averaged, for the networks of stage 1, which stay as they are."""
    c = config
    device = dlsgan.pick_device(c.device)
    stage = Stage2(gan, c, kind)
    record["pixel_loss"] = []
    record["gradient"] = {name: [] for name in LAYERS}
    steps = math.ceil(encoder_budget(c) / c.batch_size)
    stream = None
    for step in training.resumable(steps, c, stage.stateful(), record, path, gan):
        if stream is None:
            stream = dlsgan.batches(images, c.batch_size, c.seed + 1, step, c.flip)
        dlsgan.decay_learning_rate((stage.optimizer, stage.optimizer_c), c.lr, 0.1, step / steps)
        penalty_weight = dlsgan.penalty_weight(c, step, step / steps)
        pixel, norms = stage.step(dlsgan.to_float(next(stream), device), penalty_weight)
        dlsgan.average_weights(stage.average, stage.encoder, step)
        record["pixel_loss"].append(pixel)
        for name, norm in norms.items():
            record["gradient"][name].append(norm)
    return stage.average


def fit(kind: str, config: dlsgan.Config, train_images: np.ndarray, folder: Path) -> tuple[Autoencoder, dict]:
    """Both stages, or what of them is not yet in the folder, and the record of stage 2 with the minutes of
    both."""
    first = {}
    second = {}
    gan = train_stage_1(config, train_images, folder, kind == "lia", first)
    encoder = train_stage_2(gan, config, kind, train_images, folder / f"{kind}.pt", second)
    second["minutes"] = (first["seconds"] + second["seconds"]) / 60
    return Autoencoder(gan, encoder, kind), second


def load(folder: str | Path) -> tuple[Autoencoder, dlsgan.Config]:
    """A finished "lia" out of the folder of its run."""
    with dlsgan.explain(f"no finished LIA in {folder}", *dlsgan.LOADING_FAULTS):
        state = torch.load(Path(folder) / "lia.pt", map_location="cpu", weights_only=True)
        dlsgan.require(state["step"] == state["steps"], "its training has stopped half way")
        config = dlsgan.Config(**state["settings"])
    return fit("lia", config, np.empty(0), Path(folder))[0], config


def per_window(values: list[float]) -> np.ndarray:
    """[steps] -> [windows, steps in a window]: 50, or a quarter of all where there are few."""
    window = max(1, min(50, len(values) // 4))
    return np.array(values)[: len(values) // window * window].reshape(-1, window)


def volatility(norms: list[float]) -> np.ndarray:
    """Standard deviation over mean of the gradient's norm in each window."""
    return per_window(norms).std(1) / per_window(norms).mean(1)


def main(config: dlsgan.Config, runs: Path = Path("runs"), results: Path = RESULTS) -> dict:
    train_images, test_images = dlsgan.LOADERS[config.dataset](config)
    test = dlsgan.to_float(test_images[: dlsgan.NUM_EVAL_IMAGES])
    folder = runs / f"{config.dataset}-{config.images}"
    systems = {}
    records = {}
    options = f"--dataset {config.dataset} --images {config.images}"
    result = {
        "command": f"python -m toy_experiments.systems.lia {options}",
        "images": config.images,
        "seed": config.seed,
        "machine": f"one thread of {cli.processor()}, minutes of its time",
    }
    for kind in KINDS:
        systems[kind], record = fit(kind, config, train_images, folder)
        records[kind] = record
        unsteady = {name: round(volatility(norms).mean(), 4) for name, norms in record["gradient"].items()}
        row = dlsgan.evaluate(systems[kind], test)
        result[kind] = row | {"volatility": unsteady, "minutes": record["minutes"]}
        print(
            f"{kind}: test {row['psnr_test']:.1f} dB ({row['psnr_gain_test']:+.1f} over the mean image), "
            f"generated {row['psnr_generated']:.1f} dB, "
            f"volatility of the gradient {unsteady['latent_head']:.2f}"
        )
    useless = ("v", "active", "l_enc", "mse_z")  # compare z with what the ablation gives, w
    result["mlp"] = {key: value for key, value in result["mlp"].items() if key not in useless}
    x = test.to(dlsgan.pick_device(config.device))
    lia = systems["lia"]
    phi = copy.deepcopy(lia.generator.mapping).cpu().double()
    y = lia.discriminator(x)[1].cpu().double()
    result["inverse_error"] = (phi(phi.inverse(y)) - y).abs().max().item()
    result["mean_square_of_z"] = phi.inverse(y).square().mean().item()  # of test images; 1 for z ~ N(0, I)
    print(f"|phi(phi^-1(y)) - y| at most {result['inverse_error']:.0e} in float64")
    cli.write_json(results / f"lia-{config.dataset}.json", result)
    draw(systems, records, x[:10], results / f"lia-{config.dataset}.png")
    return result


@torch.no_grad()
def draw(systems: dict, records: dict, x: Tensor, path: Path) -> None:
    """Above: reconstructions and samples. Below: pixel loss, norm of the gradient and its volatility in stage
    2."""
    figure = Figure((11, 6.2), layout="constrained")
    layout = [["x"] * 3 + ["samples"] * 3, ["loss"] * 2 + ["norm"] * 2 + ["volatility"] * 2]
    axes = figure.subplot_mosaic(layout)
    rows = [x, *(system.reconstruct(x) for system in systems.values())]
    samples = [part for kind in ("lia", "mlp") for part in systems[kind].sample(20).split(10)]
    for name, shown, labels in (("x", rows, ["x", *KINDS]), ("samples", samples, ["lia", "", "mlp", ""])):
        axes[name].imshow(dlsgan.make_grid(shown), cmap="gray")
        axes[name].set(xticks=[], yticks=middles(len(shown), x.shape[2]), yticklabels=labels)
    for kind, style in zip(KINDS, ("-", "--", ":"), strict=True):
        norms = records[kind]["gradient"]["latent_head"]
        windows = per_window(norms)  # [windows, steps in a window]
        curves = {
            "loss": per_window(records[kind]["pixel_loss"]).mean(1),
            "norm": windows.mean(1),
            "volatility": volatility(norms),
        }
        for name, values in curves.items():
            axes[name].plot(middles(len(values), windows.shape[1]), values, style, label=KINDS[kind])
            axes[name].set(xlabel="training step of stage 2")
    titles = {
        "x": "test images and reconstructions",
        "samples": "samples of stage 1",
        "loss": "pixel loss",
        "norm": "norm of the last layer's gradient",
        "volatility": "its volatility: std / mean in a window",
    }
    for name, title in titles.items():
        axes[name].set_title(title, fontsize=10)
    for name in ("loss", "norm", "volatility"):
        axes[name].set_ylim(bottom=0)
    axes["volatility"].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    with cli.one_line("lia"):
        main(training.configure(**vars(cli.image_parser(__doc__).parse_args())))
