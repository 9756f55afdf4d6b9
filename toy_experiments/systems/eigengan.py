"""EigenGAN (He, Kan and Shan, ICCV 2021, arXiv:2104.12476): a linear subspace in each layer of the generator.

Noise eps enters a dense layer; the features of layer i = 4x4, 8x8, ... are joined by a point of a
q-dimensional subspace,

    phi_i = U_i (L_i * z_i) + mu_i            U_i [c*h*w, q]: orthonormal columns, L_i [q]: their lengths,
                                              z_i ~ N(0, I_q)
    h <- leaky_relu(h + conv1x1(phi_i))
    h <- conv3x3(leaky_relu(up(h) + up(phi_i)))         up: convolution and up-sampling

so each of the q "eigen-dimensions" of a layer is a coordinate one can turn. Nothing labels them: what they
come to mean is found by adversarial training alone (hinge loss, R1). The input here is one vector z [B, d] =
(eps, z_1, z_2, ...), so that d is that of DLSGAN's preset. The ablation has no subspaces: all of z enters the
dense layer.

Orthonormal by construction: U = Gram-Schmidt of a free matrix (the official code has both that and the
penalty 1/2 |U^T U - I|^2). Adam moves each of a column's n = c*h*w entries by about the learning rate, so the
column by lr * sqrt(n), a quarter of its length or more for the largest U at the learning rates used here: a
penalty would lag behind. Gram-Schmidt also keeps the averaged generator orthonormal, whose U would otherwise
be a mean of rotated ones.

Changes from the official code: equalised learning rates and the preset's Adam, at half its rate (not 1e-4);
the discriminator of dlsgan.py, its latent head unused; convolution, then bilinear up-sampling in place of
transposed convolutions; one fake batch a step.

On cartoon faces a network that reads the known factors off a picture says how much of each one latent
dimension explains.

    python -m toy_experiments.systems.eigengan --images 16000

takes about 8 minutes on one core and draws results/eigengan-cartoon.png.

Expected printout: L away from 0, spread and distance of samples, which collapse without subspaces; |U^T U -
I| below 1e-5, the rounding error of Gram-Schmidt: it cannot be otherwise and says nothing about the training.
"""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import dlsgan
from toy_experiments.shared import cli, training
from toy_experiments.shared.classifiers import factor_regressor
from toy_experiments.shared.cli import RESULTS
from toy_experiments.shared.distances import swd
from toy_experiments.shared.figures import middles, traversal
from toy_experiments.systems.eigengan_linear import orthonormal

Q = 6  # eigen-dimensions a layer
LR_FACTOR = 0.5  # of the preset's learning rate; at the full one samples of digits collapse
COLUMNS = 7  # steps of a traversal ...
LIMIT = 4.5  # ... from -4.5 to 4.5 standard deviations


class Subspace(nn.Module):
    """z_i [B, q] -> phi [B, c, h, h]. L starts as in the official code, at 3 q, ..., 6, 3."""

    def __init__(self, channels: int, resolution: int):
        super().__init__()
        self.shape = (channels, resolution, resolution)
        self.free = nn.Parameter(torch.randn(math.prod(self.shape), Q))
        self.L = nn.Parameter(3.0 * torch.arange(Q, 0, -1))
        self.mu = nn.Parameter(torch.zeros(self.shape))

    def forward(self, z: Tensor) -> Tensor:
        phi = (z * self.L) @ orthonormal(self.free).T  # [B, q] -> [B, c*h*h]
        return phi.unflatten(1, self.shape) + self.mu  # [B, c, h, h]


class Block(nn.Module):
    """Features [B, c_in, h, h] and z_i [B, q] -> [B, c_out, 2 h, 2 h]; without subspace, z_i is left
    aside."""

    def __init__(self, c_in: int, c_out: int, resolution: int, subspace: bool):
        super().__init__()
        self.subspace = Subspace(c_in, resolution) if subspace else None
        self.point = dlsgan.EqualConv2d(c_in, c_in, 1) if subspace else None
        self.up = dlsgan.EqualConv2d((1 + subspace) * c_in, c_out, 3, padding=1, gain=dlsgan.SQRT2)
        self.conv = dlsgan.EqualConv2d(c_out, c_out, 3, padding=1, gain=dlsgan.SQRT2)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        if self.subspace:
            phi = self.subspace(z)
            h = h + self.point(phi)
        h = dlsgan.leaky_relu(h)
        if self.subspace:
            h = torch.cat((h, phi), 1)  # one convolution of both is the sum up(h) + up(phi)
        h = F.interpolate(self.up(h), scale_factor=2, mode="bilinear")
        return self.conv(dlsgan.leaky_relu(h))


class EigenGenerator(nn.Module):
    """z [B, latent_dim] = (eps, z_1, ..., z_n) -> image [B, C, resolution, resolution] in (-1, 1)."""

    def __init__(
        self,
        resolution: int,
        image_channels: int,
        latent_dim: int,
        channel_base: int,  # as in dlsgan.Config
        channel_max: int,
        subspaces: bool = True,
    ):
        super().__init__()
        sizes = [2**i for i in range(2, resolution.bit_length() - 1)]  # 4, 8, ..., resolution / 2
        self.latent_dim = latent_dim
        self.noise_dim = latent_dim - Q * len(sizes) if subspaces else latent_dim
        too_few = f"--latent-dim {latent_dim} leaves no noise beside {len(sizes)} subspaces of {Q}"
        dlsgan.require(self.noise_dim >= 1, too_few)
        widths = (channel_base, channel_max)
        channels = dlsgan.channels_at(4, *widths)
        self.dense = dlsgan.EqualLinear(self.noise_dim, 16 * channels, gain=dlsgan.SQRT2)
        self.blocks = nn.ModuleList()
        for r in sizes:
            block = Block(dlsgan.channels_at(r, *widths), dlsgan.channels_at(2 * r, *widths), r, subspaces)
            self.blocks.append(block)
        self.to_rgb = dlsgan.EqualConv2d(
            dlsgan.channels_at(resolution, *widths), image_channels, 7, padding=3
        )

    def forward(self, z: Tensor) -> Tensor:
        layers = (self.latent_dim - self.noise_dim) // Q  # with a subspace: all or none
        eps, *parts = z.split([self.noise_dim] + [Q] * layers, 1)
        h = self.dense(eps).unflatten(1, (-1, 4, 4))  # [B, 16 c] -> [B, c, 4, 4]
        for block, part in zip(self.blocks, parts or [None] * len(self.blocks), strict=True):
            h = block(h, part)
        return torch.tanh(self.to_rgb(dlsgan.leaky_relu(h)))

    @torch.no_grad()
    def health(self) -> dict:
        """orthogonality: the largest |U^T U - I| of all layers; L: [[q lengths] of each layer]. A subspace
        whose L goes to zero has collapsed: nothing it says reaches the image."""
        errors = []
        lengths = []
        for block in self.blocks:
            if block.subspace:
                u = orthonormal(block.subspace.free).cpu().double()
                errors.append((u.T @ u - torch.eye(Q)).abs().max().item())
                lengths.append([round(x, 3) for x in block.subspace.L.tolist()])
        return {"orthogonality": max(errors, default=0.0), "L": lengths}


def train_step(
    generator: nn.Module,
    discriminator: nn.Module,
    optimizers: tuple,  # of G and of D
    real: Tensor,  # [B, C, H, W]
    z: Tensor,  # [B, d]
    penalty: float,  # weight of R1; 0 leaves it out
) -> tuple[Tensor, Tensor]:
    """One step with hinge loss (Lim and Ye 2017) and R1, one fake batch for both as in dlsgan. Returns the
    losses of D (without R1) and of G."""
    fake = generator(z)
    image = fake.detach().requires_grad_()
    logits_fake = discriminator(image)[0]
    (gradient,) = torch.autograd.grad(-logits_fake.mean(), image, retain_graph=True)
    fake.backward(gradient)
    real = real.detach().requires_grad_(penalty > 0)
    logits_real = discriminator(real)[0]
    loss_d = F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean()
    total = loss_d
    if penalty:
        total = loss_d + penalty * dlsgan.r1_penalty(logits_real, real)
    total.backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss_d.detach(), -logits_fake.detach().mean()


def build(config: dlsgan.Config, image_channels: int, subspaces: bool) -> dlsgan.DLSGAN:
    """The generator and a discriminator, with fresh weights; s = 1."""
    c = config
    generator = EigenGenerator(
        c.resolution, image_channels, c.latent_dim, c.channel_base, c.channel_max, subspaces
    )
    discriminator = dlsgan.Discriminator(c.resolution, image_channels, 1, c.channel_base, c.channel_max)
    discriminator.latent_head.requires_grad_(False)  # unused
    return dlsgan.DLSGAN(generator, discriminator, dlsgan.LatentScale(c.latent_dim, enabled=False))


def train(
    config: dlsgan.Config,
    train_images: np.ndarray | None = None,  # uint8 [N, C, H, W]; those of config.dataset if None
    subspaces: bool = True,  # False: the ablation
    path: Path | None = None,  # keeps the state, see training.resumable
    record: dict | None = None,  # gets "log": [{images, loss_d, loss_g, orthogonality, L}], and "seconds"
) -> EigenGenerator:
    """Trains on config.images images and returns the averaged generator z [B, d] -> x, with attribute
    latent_dim = d."""
    c = config
    device = dlsgan.pick_device(c.device)
    if train_images is None:
        train_images, _ = dlsgan.LOADERS[c.dataset](c)
    torch.manual_seed(c.seed)
    model = build(c, train_images.shape[1], subspaces).to(device, memory_format=torch.channels_last)
    generator = model.generator
    result = copy.deepcopy(generator).requires_grad_(False)

    lr = LR_FACTOR * c.lr
    optimizers = dlsgan.make_optimizers(model, lr)
    rng = torch.Generator().manual_seed(c.seed)
    stateful = {"model": model, "average": result}
    stateful |= {"optimizer_g": optimizers[0], "optimizer_d": optimizers[1], "rng": rng}
    record = {} if record is None else record
    record.setdefault("log", [])
    steps = math.ceil(c.images / c.batch_size)
    log_every = max(1, steps // 25)
    stream = None
    for step in training.resumable(steps, c, stateful, record, path):
        if stream is None:
            stream = dlsgan.batches(train_images, c.batch_size, c.seed, step, c.flip)
        dlsgan.decay_learning_rate(optimizers, lr, c.lr_final, step / steps)
        real = dlsgan.to_float(next(stream), device)
        z = torch.randn(c.batch_size, c.latent_dim, generator=rng).to(device)
        penalty = dlsgan.penalty_weight(c, step, step / steps)
        losses = train_step(generator, model.discriminator, optimizers, real, z, penalty)
        dlsgan.average_weights(result, generator, step)
        if step % log_every == 0 or step == steps - 1:
            loss_d, loss_g = (loss.item() for loss in losses)
            line = {"images": (step + 1) * c.batch_size, "loss_d": loss_d, "loss_g": loss_g}
            record["log"].append(line | generator.health())
            finite = math.isfinite(loss_d + loss_g)
            dlsgan.require(finite, f"the loss is no longer finite at step {step:,}: try another --seed")
    return result.eval()


@torch.no_grad()
def traverse(generator: EigenGenerator, i: int, seed: int = 0) -> Tensor:
    """Latent dimension i turned from -4.5 to 4.5, the other z_i at 0 and eps as drawn from the seed: [7, C,
    H, W]."""
    z = torch.zeros(generator.latent_dim)
    rng = torch.Generator().manual_seed(seed)
    z[: generator.noise_dim] = torch.randn(generator.noise_dim, generator=rng)
    return traversal(generator, z, i, LIMIT, COLUMNS)


@torch.no_grad()
def measure(
    generator: EigenGenerator,
    test: Tensor,  # [N, C, H, W]
    regressor: Callable[[Tensor], Tensor] | None,  # of cartoon faces: x -> factors [N, 8]
    seed: int = 1,
) -> dict:
    """spread: as in dlsgan.METRICS. swd: sliced Wasserstein distance to test images. With a regressor,
    explained [d, 8]: squared correlation of each latent dimension with each factor that it reads off the
    images."""
    d = generator.latent_dim
    z = torch.randn(len(test), d, generator=torch.Generator().manual_seed(seed))
    x = dlsgan.in_batches(generator, z)
    result = {"spread": (x.std(0).mean() / test.std(0).mean()).item(), "swd": swd(x, test)["mean"]}
    if regressor:
        correlation = np.corrcoef(z.numpy(), regressor(x).numpy(), rowvar=False)
        result["explained"] = (correlation[:d, d:] ** 2).round(4).tolist()
    return result


def report(name: str, found: dict) -> None:
    """One line, and for cartoon faces a second one."""
    lengths = "; ".join(", ".join(f"{length:.1f}" for length in layer) for layer in found["L"])
    print(
        f"{name}: spread {found['spread']:.2f}, swd {found['swd']:.1f}, L {lengths}, "
        f"|U^T U - I| {found['orthogonality']:.0e}",
        flush=True,
    )
    if "explained" in found:
        best = zip(dlsgan.CARTOON_FACTORS, np.max(found["explained"], 0), strict=True)
        shares = ", ".join(f"{factor} {share:.2f}" for factor, share in best)
        print(f"  largest share of each factor in one dimension: {shares}")


def main(config: dlsgan.Config, runs: Path = Path("runs"), results: Path = RESULTS) -> dict:
    train_images, test_images = dlsgan.LOADERS[config.dataset](config)
    test = dlsgan.to_float(test_images[:1000])
    regressor = None
    scores = None
    if config.dataset == "cartoon":
        regressor, scores = factor_regressor(config.resolution)
    options = f"--dataset {config.dataset} --images {config.images} --seed {config.seed}"
    result = {
        "command": f"python -m toy_experiments.systems.eigengan {options}",
        "machine": cli.processor(),
        "regressor": scores,
    }
    generators = {}
    for name in ("subspaces", "no subspaces"):
        path = runs / f"eigengan-{config.dataset}" / f"{name.replace(' ', '-')}.pt"
        record = {}
        generator = train(config, train_images, name == "subspaces", path, record).cpu()
        generators[name] = generator
        found = measure(generator, test, regressor) | generator.health()
        result[name] = found | {"minutes": round(record["seconds"] / 60, 2), "log": record["log"]}
        report(name, found)
    cli.write_json(results / f"eigengan-{config.dataset}.json", result)
    draw(generators, result, results / f"eigengan-{config.dataset}.png")
    return result


def draw_samples(axis: Axes, name: str, generator: EigenGenerator, found: dict) -> None:
    z = torch.randn(40, generator.latent_dim, generator=torch.Generator().manual_seed(2))
    axis.imshow(dlsgan.make_grid(generator(z).split(8)), cmap="gray")
    axis.set(xticks=[], yticks=[])
    axis.set_title(f"{name}: spread {found['spread']:.2f}, swd {found['swd']:.1f}")


def draw_lengths(axis: Axes, log: list[dict], layers: int) -> None:
    """|L| of each eigen-dimension over training, a colour a layer."""
    images = [line["images"] / 1000 for line in log]
    for layer in range(layers):
        lengths = np.abs([line["L"][layer] for line in log])  # [lines, Q]
        lines = axis.plot(images, lengths, color=f"C{layer}", linewidth=1)
        lines[0].set_label(f"layer of {4 * 2**layer}x{4 * 2**layer}")
    axis.set(xlabel="training images, thousands", ylabel="|L|", ylim=(0, 24))
    axis.set_title("lengths of the eigen-dimensions")
    axis.legend(frameon=False, fontsize=8, ncols=layers, loc="upper center")


def draw_layer(axis: Axes, generator: EigenGenerator, layer: int, found: dict) -> None:
    """A row an eigen-dimension, the longest first, with its length and the factor that it explains best."""
    first = generator.noise_dim + Q * layer
    lengths = np.abs(found["L"][layer])
    order = (-lengths).argsort()
    labels = []
    for i in order:
        label = f"{lengths[i]:.1f}"
        if "explained" in found:
            shares = found["explained"][first + i]
            label += f"\n{dlsgan.CARTOON_FACTORS[np.argmax(shares)]} {max(shares):.2f}"
        labels.append(label)
    picture = dlsgan.make_grid([traverse(generator, first + i) for i in order])
    size = picture.shape[0] // Q
    values = [f"{z:g}" for z in np.linspace(-LIMIT, LIMIT, COLUMNS)]
    axis.imshow(picture, cmap="gray")
    axis.set_xticks(middles(COLUMNS, size), values, fontsize=7)
    axis.set_yticks(middles(Q, size), labels, fontsize=7)
    axis.set_title(f"|L| and traversals, layer of {4 * 2**layer}x{4 * 2**layer}", fontsize=10)


@torch.no_grad()
def draw(generators: dict, result: dict, path: Path) -> None:
    """Above: samples with and without subspaces, |L| over training. Below: a panel a layer."""
    found = result["subspaces"]
    layers = len(found["L"])
    figure = Figure((13, 8), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.1))
    *axes, curves = top.subplots(1, 3)
    for axis, (name, generator) in zip(axes, generators.items(), strict=True):
        draw_samples(axis, name, generator, result[name])
    draw_lengths(curves, found["log"], layers)
    for layer, axis in enumerate(bottom.subplots(1, layers, squeeze=False)[0]):
        draw_layer(axis, generators["subspaces"], layer, found)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    with cli.one_line("eigengan"):
        main(training.configure(**vars(cli.image_parser(__doc__).parse_args())))
