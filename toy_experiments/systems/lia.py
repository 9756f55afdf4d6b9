"""Latently Invertible Autoencoder: invert a GAN through the space behind an invertible mapping network.

Jiapeng Zhu et al., "Disentangled Inference for GANs with Latently Invertible Autoencoder" (2019), arXiv:1906.08090.
Stage 1 is a GAN x = g(phi(z)) whose mapping network phi has an exact inverse. Stage 2 takes phi out, freezes g and trains
an encoder f, so that g(f(x)) is like x: an autoencoder without random variables. Then y = f(x) and z = phi^-1(y).

Claim. The inverse is exact. The paper also finds that an encoder to y learns more steadily, and reconstructs better, than
one that is trained as in a VAE to a distribution over z, through an MLP as mapping network; this is measured here. So is
the ablation, an encoder to the w of the same MLP: it has no way back to z, but shows what the invertible map itself does.

Changes from the paper: StyleGAN2's blocks of dlsgan.py, small; non-saturating loss with R1 as in the official code (the
text says WGAN with R1); no VGG16 is at hand for the perceptual term: features of the frozen discriminator of stage 1 at 1/8
of the resolution stand in, with a weight of their own; f is built as the discriminator, without batch norm.

    python -m toy_experiments.lia --dataset mnist     about 14 minutes on one core; draws results/lia-mnist.png

It prints measures of each system and "|phi(phi^-1(y)) - y| at most 2e-15 in float64". A second call goes on with what has
been trained, in runs/DATASET-IMAGES.
"""

import copy
import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dlsgan
from toy_experiments import common
from toy_experiments.results import processor

GAN_SHARE = 2 / 3  # of the budget for stage 1, the rest is for stage 2
KINDS = {  # system: mapping network and what the encoder gives
    "lia": "invertible map, encoder to y",
    "mlp": "MLP mapping, encoder to w",
    "variational": "MLP mapping, variational encoder to z",
}
LAYERS = ("from_rgb", "blocks.0.conv1", "latent_head")  # of the encoder: whose gradients are watched


class InvertibleMapping(nn.Module):
    """z [B, d] -> y [B, d], d even, by additive coupling (NICE, Dinh et al. 2015): four times, two dense layers of one half
    are subtracted from the other half, and the order of features is reversed. Volumes are kept: log |det dy/dz| = 0."""

    def __init__(self, latent_dim: int, steps: int = 4):
        super().__init__()
        if latent_dim % 2:
            raise dlsgan.UserError(f"the invertible map halves its input: {latent_dim} latent dimensions are odd")
        sizes, gains = ((latent_dim // 2, latent_dim), (latent_dim, latent_dim // 2)), (0.0, 0.01, dlsgan.SQRT2)
        pairs = (nn.ModuleList(dlsgan.EqualLinear(*size, *gains) for size in sizes) for _ in range(steps))
        self.couplings = nn.ModuleList(pairs)

    def forward(self, z: Tensor) -> Tensor:
        for wide, narrow in self.couplings:
            first, second = z.chunk(2, 1)  # [B, d/2] each
            shift = dlsgan.leaky_relu(narrow(dlsgan.leaky_relu(wide(first))))
            z = torch.cat((first, second - shift), 1).flip(1)
        return z

    def inverse(self, y: Tensor) -> Tensor:
        for wide, narrow in reversed(self.couplings):
            first, second = y.flip(1).chunk(2, 1)
            shift = dlsgan.leaky_relu(narrow(dlsgan.leaky_relu(wide(first))))
            y = torch.cat((first, second + shift), 1)
        return y


def without_map(generator: nn.Module) -> nn.Module:
    """g: the same generator as a function of y (or w)."""
    (result := copy.deepcopy(generator)).mapping = nn.Identity()
    return result


class Autoencoder(dlsgan.DLSGAN):
    """The frozen generator of stage 1 with the encoder of stage 2; used and measured like a DLSGAN with s = 1."""

    def __init__(self, gan: dlsgan.DLSGAN, encoder: nn.Module, kind: str):
        super().__init__(gan.generator, encoder, gan.latent_scale)
        self.kind, self.synthesis = kind, without_map(gan.generator)

    def encode(self, x: Tensor) -> Tensor:
        """z [B, d]; for "mlp" it is w, which nothing turns into z."""
        code = self.discriminator(x)[1]
        if self.kind == "lia":
            return self.generator.mapping.inverse(code)
        return code.chunk(2, 1)[0] if self.kind == "variational" else code  # [B, 2d] -> [B, d], the mean

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.synthesis(self.encode(x)) if self.kind == "mlp" else super().reconstruct(x)


def train_stage_1(config: dlsgan.Config, images: np.ndarray, folder: Path, invertible: bool, record: dict) -> dlsgan.DLSGAN:
    """A plain GAN: no encoder term and s = 1, so that the discriminator is nothing but that."""
    settings = {"encoder_weight": 0.0, "latent_scale": False, "images": round(GAN_SHARE * config.images)}
    config = dataclasses.replace(config, **settings)
    torch.manual_seed(config.seed)
    model = dlsgan.build(config)
    if invertible:
        model.generator.mapping = InvertibleMapping(config.latent_dim)
    return common.train_gan(model, config, images, folder / f"gan-{'invertible' if invertible else 'mlp'}.pt", record)


def features(discriminator: nn.Module, x: Tensor) -> Tensor:
    """Stand-in for VGG16's conv4_3: the discriminator's features after three blocks, [B, c, H/8, W/8]."""
    x = dlsgan.leaky_relu(discriminator.from_rgb(x))
    for block in discriminator.blocks[:3]:
        x = block(x)
    return x


def kl_to_prior(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, I)) in nats, [B, d] twice -> [B]."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


def train_stage_2(
    gan: dlsgan.DLSGAN, config: dlsgan.Config, kind: str, images: np.ndarray, path: Path | None, record: dict
) -> nn.Module:
    """The encoder f, averaged, for the networks of stage 1, which stay as they are. `record` gets the pixel loss and the
    norms of the encoder's gradients at each step; path: see common.resumable.
    L_f = mean((x - g(f(x)))^2) + relative squared error of features + 0.1 softplus(-c(g(f(x)))); the discriminator c goes on
    from stage 1 against g(f(x)), with R1. The variational encoder gives mean and log variance of z; its KL term in nats per
    pixel value fits the pixel loss for a noise variance of 1/2."""
    c, device = config, dlsgan.pick_device(config.device)
    steps = math.ceil((1 - GAN_SHARE) * c.images / c.batch_size)
    stream, variational, channels = None, kind == "variational", gan.discriminator.from_rgb.weight.shape[1]
    torch.manual_seed(c.seed + 1)
    encoder = dlsgan.Discriminator(c.resolution, channels, c.latent_dim * (1 + variational), c.width)
    encoder.to(device, memory_format=torch.channels_last)
    result, critic = copy.deepcopy(encoder).requires_grad_(False), copy.deepcopy(gan.discriminator).requires_grad_(True)
    decode = gan.generator if variational else without_map(gan.generator)  # frozen: its weights take no gradient
    optimizers = [torch.optim.Adam(network.parameters(), c.lr, (0.9, 0.99)) for network in (encoder, critic)]
    rng, stateful = torch.Generator().manual_seed(c.seed), {"encoder": encoder, "average": result, "critic": critic}
    stateful |= {"optimizer": optimizers[0], "optimizer_c": optimizers[1], "rng": rng}
    record |= {"pixel_loss": [], "gradient": {name: [] for name in LAYERS}}
    for step in common.resumable(steps, config, stateful, record, path):
        stream = stream or dlsgan.batches(images, c.batch_size, c.seed + 1, step, c.flip)
        real, kl = dlsgan.to_float(next(stream), device), 0.0
        code = encoder(real)[1]
        if variational:  # [B, 2d] -> [B, d] twice
            mean, log_variance = code.chunk(2, 1)
            kl = kl_to_prior(mean, log_variance).mean() / real[0].numel()
            code = mean + (log_variance / 2).exp() * torch.randn(mean.shape, generator=rng).to(device)
        fake = decode(code)
        pixel, target = (fake - real).square().mean(), features(gan.discriminator, real)
        feature = (features(gan.discriminator, fake) - target).square().mean() / target.square().mean()
        adversarial = F.softplus(-critic(fake)[0]).mean()
        (pixel + feature + 0.1 * adversarial + kl).backward(inputs=list(encoder.parameters()))

        logits = critic(real.requires_grad_(r1 := step % 16 == 0))[0]
        loss_c = F.softplus(-logits).mean() + F.softplus(critic(fake.detach())[0]).mean()
        penalty = 8 * c.r1_gamma * dlsgan.r1_penalty(logits, real) if r1 else 0.0  # gamma / 2, 16 times as strong
        (loss_c + penalty).backward(inputs=[p for name, p in critic.named_parameters() if "latent_head" not in name])

        record["pixel_loss"].append(pixel.item())
        for name in LAYERS:
            record["gradient"][name].append(encoder.get_submodule(name).weight.grad.norm().item())
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = c.lr * 0.1 ** (step / steps)
            optimizer.step()
            optimizer.zero_grad()
        common.average(result, encoder, step)
    return result


def fit(kind: str, config: dlsgan.Config, train_images: np.ndarray, folder: Path) -> tuple[Autoencoder, dict]:
    """Both stages, or what of them is not yet in the folder, and the record of stage 2 with the minutes of both."""
    first, second = {}, {}
    gan = train_stage_1(config, train_images, folder, kind == "lia", first)
    encoder = train_stage_2(gan, config, kind, train_images, folder / f"{kind}.pt", second)
    return Autoencoder(gan, encoder, kind), second | {"minutes": (first["seconds"] + second["seconds"]) / 60}


def load(folder: str | Path) -> tuple[Autoencoder, dlsgan.Config]:
    """A finished "lia" out of the folder of its run."""
    with dlsgan.explain(f"no finished LIA in {folder}"):
        state = torch.load(Path(folder) / "lia.pt", map_location="cpu", weights_only=True)
        if state["step"] < state["steps"]:
            raise ValueError("its training has stopped half way")
        config = dlsgan.Config(**state["settings"])
    return fit("lia", config, np.empty(0), Path(folder))[0], config


def per_window(values: list[float]) -> np.ndarray:
    """[steps] -> [windows, steps in a window]: 50, or a quarter of all where there are few."""
    window = max(1, min(50, len(values) // 4))
    return np.array(values)[: len(values) // window * window].reshape(-1, window)


def volatility(norms: list[float]) -> np.ndarray:
    """Standard deviation over mean of the gradient's norm in each window."""
    return per_window(norms).std(1) / per_window(norms).mean(1)


def main(config: dlsgan.Config, runs: Path = Path("runs"), results: Path = common.RESULTS) -> dict:
    train_images, test_images = dlsgan.LOADERS[config.dataset](config)
    test, systems, records = dlsgan.to_float(test_images[: dlsgan.EVALUATED]), {}, {}
    result = {"command": f"python -m toy_experiments.lia --dataset {config.dataset} --images {config.images}",
              "images": config.images, "seed": config.seed, "machine": f"one thread of {processor()}, minutes of its time"}
    for kind in KINDS:
        systems[kind], records[kind] = fit(kind, config, train_images, runs / f"{config.dataset}-{config.images}")
        unsteady = {name: round(volatility(norms).mean(), 4) for name, norms in records[kind]["gradient"].items()}
        result[kind] = dlsgan.evaluate(systems[kind], test) | {"volatility": unsteady, "minutes": records[kind]["minutes"]}
        print(f"{kind}: test {result[kind]['psnr_test']:.1f} dB ({result[kind]['gain_test']:+.1f} over the mean image), "
              f"generated {result[kind]['psnr_generated']:.1f} dB, volatility of the gradient {unsteady['latent_head']:.2f}")
    useless = ("v", "active", "l_enc", "mse_z")  # compare z with what the ablation gives, w
    result["mlp"] = {key: value for key, value in result["mlp"].items() if key not in useless}
    x, lia = test.to(dlsgan.pick_device(config.device)), systems["lia"]
    phi, y = copy.deepcopy(lia.generator.mapping).cpu().double(), lia.discriminator(x)[1].cpu().double()
    result["inverse_error"] = (phi(phi.inverse(y)) - y).abs().max().item()
    result["mean_square_of_z"] = phi.inverse(y).square().mean().item()  # of test images; 1 for z ~ N(0, I)
    print(f"|phi(phi^-1(y)) - y| at most {result['inverse_error']:.0e} in float64")
    (results / f"lia-{config.dataset}.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(systems, records, x[:10], results / f"lia-{config.dataset}.png")
    return result


@torch.no_grad()
def draw(systems: dict, records: dict, x: Tensor, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure((11, 6.2), layout="constrained")
    axes = figure.subplot_mosaic([["x"] * 3 + ["samples"] * 3, ["loss"] * 2 + ["norm"] * 2 + ["volatility"] * 2])
    samples = [part for kind in ("lia", "mlp") for part in systems[kind].sample(20).split(10)]
    rows = [x, *(system.reconstruct(x) for system in systems.values())]
    for name, shown, labels in (("x", rows, ["x", *KINDS]), ("samples", samples, ["lia", "", "mlp", ""])):
        axes[name].imshow(dlsgan.grid(shown), cmap="gray")
        axes[name].set(xticks=[], yticks=(np.arange(len(shown)) + 0.5) * x.shape[2], yticklabels=labels)
    for kind, style in zip(KINDS, ("-", "--", ":"), strict=True):
        norms = records[kind]["gradient"]["latent_head"]
        curves = per_window(records[kind]["pixel_loss"]).mean(1), per_window(norms).mean(1), volatility(norms)
        for name, values in zip(("loss", "norm", "volatility"), curves, strict=True):
            axes[name].plot((np.arange(len(values)) + 0.5) * per_window(norms).shape[1], values, style, label=KINDS[kind])
            axes[name].set(xlabel="training step of stage 2")
    titles = ("test images and reconstructions", "samples of stage 1", "pixel loss", "norm of the last layer's gradient",
              "its volatility: std / mean in a window")
    for axis, title in zip(axes.values(), titles, strict=True):
        axis.set_title(title, fontsize=10)
        axis.set_ylim(bottom=None if axis.images else 0)
    axes["volatility"].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    with common.one_line("lia"):
        main(common.configure(**vars(common.parser(__doc__).parse_args())))
