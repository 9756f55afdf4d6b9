"""Latently Invertible Autoencoder: invert a GAN through the space behind an invertible mapping network.

Jiapeng Zhu et al., "Disentangled Inference for GANs with Latently Invertible Autoencoder" (2019), arXiv:1906.08090.
Stage 1 is a GAN x = g(phi(z)) whose mapping network phi has an exact inverse. Stage 2 takes phi out, freezes g and trains
an encoder f, so that g(f(x)) is like x: an autoencoder without random variables. Then y = f(x) and z = phi^-1(y).

Claim. The inverse is exact, and an encoder to y learns more steadily, and reconstructs better, than one that is trained
as in a VAE to a distribution over z, through an MLP as mapping network. The ablation, an encoder to the w of the same MLP,
has no way back to z, but shows what the invertible map costs or gives besides.

Changes from the paper: StyleGAN2's blocks of dlsgan.py, small; non-saturating loss with R1 as in the official code (the
text says WGAN with R1); no VGG16 is at hand for the perceptual term, so the features of the frozen discriminator of stage
1 at 1/8 of the resolution stand in, with a weight of their own; f is built as the discriminator, without batch norm.

    python -m toy_experiments.lia                     cartoon faces, 24,000 images a system: about 20 minutes on one core
    python -m toy_experiments.lia --dataset mnist     draws results/lia-mnist.png, writes results/lia-mnist.json

Expected printout, a line a system (what was trained stays in runs/DATASET-IMAGES, where a second call goes on):
    lia: test 17.5 dB (+3.1 over the mean image), generated 20.0 dB, volatility of the gradient 0.4
    lia: |phi(phi^-1(y)) - y| at most 2e-15 in float64
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


class InvertibleMapping(nn.Module):
    """z [B, d] -> y [B, d], d even, by additive coupling (NICE, Dinh et al. 2015): four times, two dense layers of one half
    are subtracted from the other half, and the order of features is reversed. Volumes are kept: log |det dy/dz| = 0."""

    def __init__(self, latent_dim: int, steps: int = 4):
        super().__init__()
        if latent_dim % 2:
            raise dlsgan.UserError(f"the invertible map halves its input: {latent_dim} latent dimensions are odd")
        sizes = (latent_dim // 2, latent_dim), (latent_dim, latent_dim // 2)
        self.couplings = nn.ModuleList(
            nn.ModuleList(dlsgan.EqualLinear(*size, lr_multiplier=0.01, scale=dlsgan.SQRT2) for size in sizes)
            for _ in range(steps)
        )

    @staticmethod
    def shift(layers: nn.ModuleList, half: Tensor) -> Tensor:
        for layer in layers:
            half = dlsgan.leaky_relu(layer(half))
        return half

    def forward(self, z: Tensor) -> Tensor:
        for layers in self.couplings:
            first, second = z.chunk(2, 1)  # [B, d/2] each
            z = torch.cat((first, second - self.shift(layers, first)), 1).flip(1)
        return z

    def inverse(self, y: Tensor) -> Tensor:
        for layers in reversed(self.couplings):
            first, second = y.flip(1).chunk(2, 1)
            y = torch.cat((first, second + self.shift(layers, first)), 1)
        return y


def without_map(generator: nn.Module) -> nn.Module:
    """g: the same generator as a function of y (or w)."""
    result = copy.deepcopy(generator)
    result.mapping = nn.Identity()
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
    gan: dlsgan.DLSGAN,  # averaged networks of stage 1; stays as it is
    config: dlsgan.Config,
    kind: str,  # one of KINDS
    train_images: np.ndarray,
    path: Path | None,
    record: dict,  # gets "pixel_loss" and, per layer of the encoder, "gradient" norms, a value a step
    feature_weight: float = 0.1,
    adversarial_weight: float = 0.1,
) -> nn.Module:
    """The encoder f, averaged. L_f = mean((x - g(f(x)))^2) + feature_weight * relative error of features
    + adversarial_weight * softplus(-c(g(f(x)))); the discriminator c goes on from stage 1 against g(f(x)), with R1.
    The variational encoder gives mean and log variance of z; with the KL term in nats per pixel its pixel and KL terms
    are the evidence lower bound for a noise variance of 1/2 a pixel value."""
    c, device, stream = config, dlsgan.pick_device(config.device), None
    steps = math.ceil((1 - GAN_SHARE) * c.images / c.batch_size)
    torch.manual_seed(c.seed + 1)
    channels, variational = gan.discriminator.from_rgb.weight.shape[1], kind == "variational"
    encoder = dlsgan.Discriminator(c.resolution, channels, c.latent_dim * (1 + variational), c.width)
    encoder.to(device, memory_format=torch.channels_last)
    result, critic = copy.deepcopy(encoder).requires_grad_(False), copy.deepcopy(gan.discriminator).requires_grad_(True)
    decode = gan.generator if variational else without_map(gan.generator)  # frozen: its weights take no gradient
    optimizers = [torch.optim.Adam(network.parameters(), c.lr / 2, (0.9, 0.99)) for network in (encoder, critic)]
    rng = torch.Generator().manual_seed(c.seed)
    stateful = {"encoder": encoder, "average": result, "critic": critic, "rng": rng}
    stateful |= {"optimizer": optimizers[0], "optimizer_c": optimizers[1]}
    for step in common.resumable(steps, config, stateful, record, path):
        stream = stream or dlsgan.batches(train_images, c.batch_size, c.seed + 1, step, c.flip)
        real, kl = dlsgan.to_float(next(stream), device), 0.0
        code = encoder(real)[1]
        if variational:
            mean, log_variance = code.chunk(2, 1)
            kl = kl_to_prior(mean, log_variance).mean() / real[0].numel()
            noise = torch.randn(mean.shape, generator=rng).to(device)
            code = mean + (log_variance / 2).exp() * noise
        fake = decode(code)
        pixel, target = (fake - real).square().mean(), features(gan.discriminator, real)
        feature = (features(gan.discriminator, fake) - target).square().mean() / target.square().mean()
        adversarial = F.softplus(-critic(fake)[0]).mean()
        loss = pixel + feature_weight * feature + adversarial_weight * adversarial + kl
        loss.backward(inputs=list(encoder.parameters()))

        real.requires_grad_(r1 := step % 16 == 0)
        logits = critic(real)[0]
        loss_c = F.softplus(-logits).mean() + F.softplus(critic(fake.detach())[0]).mean()
        loss_c = loss_c + (8 * c.r1_gamma * dlsgan.r1_penalty(logits, real) if r1 else 0.0)
        loss_c.backward(inputs=[p for name, p in critic.named_parameters() if "latent_head" not in name])

        record.setdefault("pixel_loss", []).append(pixel.item())
        for name in ("from_rgb", "blocks.1.conv1", "latent_head"):
            norm = encoder.get_submodule(name).weight.grad.norm().item()
            record.setdefault("gradient", {}).setdefault(name, []).append(norm)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = c.lr / 2 * 0.1 ** (step / steps)
            optimizer.step()
            optimizer.zero_grad()
        common.average(result, encoder, step)
    return result


def fit(kind: str, config: dlsgan.Config, train_images: np.ndarray, folder: Path) -> tuple[Autoencoder, dict]:
    """Both stages, or what of them is not yet in the folder; "mlp" and "variational" share stage 1. Also returns the
    record of stage 2, with the minutes of both."""
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


def per_window(values: list[float], window: int) -> np.ndarray:
    """[steps] -> [steps // window, window]."""
    return np.array(values)[: len(values) // window * window].reshape(-1, window)


def volatility(norms: list[float], window: int = 50) -> np.ndarray:
    """Standard deviation over mean of gradient norms in successive windows of steps."""
    return per_window(norms, window).std(1) / per_window(norms, window).mean(1)


@torch.no_grad()
def inverse_error(mapping: InvertibleMapping, y: Tensor) -> float:
    """max |phi(phi^-1(y)) - y| in float64."""
    mapping, y = copy.deepcopy(mapping).double(), y.double()
    return (mapping(mapping.inverse(y)) - y).abs().max().item()


def main(config: dlsgan.Config, runs: Path = Path("runs"), results: Path = common.RESULTS) -> dict:
    train_images, test_images = dlsgan.LOADERS[config.dataset](config)
    test, systems, records = dlsgan.to_float(test_images[: dlsgan.EVALUATED]), {}, {}
    result = {"command": f"python -m toy_experiments.lia --dataset {config.dataset} --images {config.images}",
              "images": config.images, "seed": config.seed, "machine": f"one thread of a busy machine, {processor()}"}
    for kind in KINDS:
        system, record = fit(kind, config, train_images, runs / f"{config.dataset}-{config.images}")
        measures = dlsgan.evaluate(system, test) | {"minutes": round(record["minutes"], 2)}
        measures["volatility"] = {name: volatility(norms).mean() for name, norms in record["gradient"].items()}
        result[kind], systems[kind], records[kind] = measures, system, record
        print(f"{kind}: test {measures['psnr_test']:.1f} dB ({measures['gain_test']:+.1f} over the mean image), generated "
              f"{measures['psnr_generated']:.1f} dB, volatility of the gradient {measures['volatility']['latent_head']:.2f}")
    for key in ("v", "active", "l_enc", "mse_z"):
        del result["mlp"][key]  # compares z with what the ablation gives, w
    x, mapping = test.to(dlsgan.pick_device(config.device)), systems["lia"].generator.mapping
    with torch.no_grad():
        result["inverse_error"] = inverse_error(mapping, systems["lia"].discriminator(x)[1])
        result["mean_square_of_z_of_test_images"] = systems["lia"].encode(x).square().mean().item()
    print(f"lia: |phi(phi^-1(y)) - y| at most {result['inverse_error']:.0e} in float64")
    results.mkdir(parents=True, exist_ok=True)
    (results / f"lia-{config.dataset}.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(systems, records, x[:10], results / f"lia-{config.dataset}.png")
    return result


@torch.no_grad()
def draw(systems: dict, records: dict, x: Tensor, path: Path) -> None:
    """Above: test images over their reconstructions, and samples. Below: stage 2 of the three systems."""
    from matplotlib.figure import Figure

    figure = Figure((11, 6.6), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.2))
    samples = [part for kind in ("lia", "mlp") for part in systems[kind].sample(20).split(10)]
    panels = (("test images, reconstructions", [x, *(system.reconstruct(x) for system in systems.values())], "x", *KINDS),
              ("samples of stage 1", samples, "invertible", "", "MLP", ""))
    for axis, (title, rows, *names) in zip(top.subplots(1, 2), panels, strict=True):
        axis.imshow(dlsgan.grid(rows), cmap="gray")
        axis.set(title=title, xticks=[], yticks=(np.arange(len(rows)) + 0.5) * x.shape[2], yticklabels=names)
    axes, window = bottom.subplots(1, 3), 50 if len(records["lia"]["pixel_loss"]) > 100 else 1
    for kind, style in zip(KINDS, ("-", "--", ":"), strict=True):
        norms, loss = records[kind]["gradient"]["latent_head"], records[kind]["pixel_loss"]
        curves = per_window(loss, window).mean(1), per_window(norms, window).mean(1), volatility(norms, window)
        for axis, values in zip(axes, curves, strict=True):
            axis.plot((np.arange(len(values)) + 0.5) * window, values, style, label=KINDS[kind])
    titles = ("pixel loss", "norm of the last layer's gradient", "volatility: std / mean of the norm in 50 steps")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=10)
        axis.set(xlabel="training step of stage 2", ylim=(0, None))
    axes[0].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    with common.one_line("lia"):
        main(common.configure(**vars(common.parser(__doc__).parse_args())))
