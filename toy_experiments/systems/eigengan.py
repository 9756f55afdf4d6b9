"""EigenGAN (He, Kan and Shan, ICCV 2021, arXiv:2104.12476): a linear subspace in each layer of the generator.

Noise eps enters a dense layer; the features of layer i = 4x4, 8x8, ... are joined by a point of a q-dimensional subspace,

    phi_i = U_i (L_i * z_i) + mu_i,   U_i [c*h*w, q] with orthonormal columns, L_i [q] their lengths, z_i ~ N(0, I_q)
    h <- leaky_relu(h + conv1x1(phi_i));   h <- conv3x3(leaky_relu(up(h) + up(phi_i))),   up: convolution and up-sampling

so each of the q "eigen-dimensions" of a layer is a coordinate one can turn. Nothing labels them: what they come to mean is
found by adversarial training alone (hinge loss, R1). The input here is one vector z [B, d] = (eps, z_1, z_2, ...), so that
d is that of DLSGAN's preset. The ablation has no subspaces: all of z enters the dense layer.

Orthonormal by construction: U = Gram-Schmidt of a free matrix (the official code has both that and the penalty
1/2 |U^T U - I|^2). Adam moves each of a column's n = c*h*w entries by about the learning rate, so the column by
lr * sqrt(n), a quarter of its length or more for the largest U at the learning rates used here: a penalty would lag
behind. Gram-Schmidt also keeps the averaged generator orthonormal, whose U would otherwise be a mean of rotated ones.

Changes from the official code: equalised learning rates and the preset's Adam (not 1e-4); the discriminator of dlsgan.py,
its latent head unused; convolution, then bilinear up-sampling in place of transposed convolutions; one fake batch a step.

On cartoon faces a network that reads the known factors off a picture says how much of each one latent dimension explains.

    python -m toy_experiments.eigengan --images 16000       about 8 minutes on one core; draws results/eigengan-cartoon.png

Expected printout: |U^T U - I| below 1e-5, L away from 0, spread and distance of samples; without subspaces these collapse.
"""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dlsgan
from toy_experiments import common
from toy_experiments.eigengan_linear import orthonormal
from toy_experiments.judges import factor_regressor, in_parts
from toy_experiments.measures import swd
from toy_experiments.results import processor

Q = 6  # eigen-dimensions a layer
COLUMNS = 7  # steps of a traversal from -4.5 to 4.5 standard deviations


class Subspace(nn.Module):
    """z_i [B, q] -> phi [B, c, h, h]. L starts as in the official code, at 3 q, ..., 6, 3."""

    def __init__(self, channels: int, resolution: int):
        super().__init__()
        self.shape = (channels, resolution, resolution)
        self.free = nn.Parameter(torch.randn(math.prod(self.shape), Q))
        self.L = nn.Parameter(3.0 * torch.arange(Q, 0, -1))
        self.mu = nn.Parameter(torch.zeros(self.shape))

    def forward(self, z: Tensor) -> Tensor:
        return ((z * self.L) @ orthonormal(self.free).T).unflatten(1, self.shape) + self.mu  # [B, q] -> [B, c, h, h]


class Block(nn.Module):
    """Features [B, c_in, h, h] and z_i [B, q] -> [B, c_out, 2 h, 2 h]; without subspace, z_i is left aside."""

    def __init__(self, c_in: int, c_out: int, resolution: int, subspace: bool):
        super().__init__()
        self.subspace = Subspace(c_in, resolution) if subspace else None
        self.point = dlsgan.EqualConv2d(c_in, c_in, 1) if subspace else None
        self.up = dlsgan.EqualConv2d((1 + subspace) * c_in, c_out, 3, padding=1, scale=dlsgan.SQRT2)
        self.conv = dlsgan.EqualConv2d(c_out, c_out, 3, padding=1, scale=dlsgan.SQRT2)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        if self.subspace:
            phi = self.subspace(z)
            h = h + self.point(phi)
        h = dlsgan.leaky_relu(h)
        h = torch.cat((h, phi), 1) if self.subspace else h  # one convolution of both is the sum up(h) + up(phi)
        return self.conv(dlsgan.leaky_relu(F.interpolate(self.up(h), scale_factor=2, mode="bilinear")))


class EigenGenerator(nn.Module):
    """z [B, latent_dim] = (eps, z_1, ..., z_n) -> image [B, C, resolution, resolution] in (-1, 1)."""

    def __init__(self, resolution: int, image_channels: int, latent_dim: int, width: float, subspaces: bool = True):
        super().__init__()
        sizes = [2**i for i in range(2, resolution.bit_length() - 1)]  # 4, 8, ..., resolution / 2
        self.latent_dim, self.noise_dim = latent_dim, latent_dim - Q * len(sizes) * subspaces
        if self.noise_dim < 1:
            raise dlsgan.UserError(f"--latent-dim {latent_dim} leaves no noise beside {len(sizes)} subspaces of {Q}")
        c = dlsgan.channels_at(4, width)
        self.dense = dlsgan.EqualLinear(self.noise_dim, 16 * c, scale=dlsgan.SQRT2)
        self.blocks = nn.ModuleList(
            Block(dlsgan.channels_at(r, width), dlsgan.channels_at(2 * r, width), r, subspaces) for r in sizes
        )
        self.to_rgb = dlsgan.EqualConv2d(dlsgan.channels_at(resolution, width), image_channels, 7, padding=3)

    def forward(self, z: Tensor) -> Tensor:
        eps, *parts = z.split([self.noise_dim] + [Q] * ((self.latent_dim - self.noise_dim) // Q), 1)
        h = self.dense(eps).unflatten(1, (-1, 4, 4))  # [B, 16 c] -> [B, c, 4, 4]
        for block, part in zip(self.blocks, parts or [None] * len(self.blocks), strict=True):
            h = block(h, part)
        return torch.tanh(self.to_rgb(dlsgan.leaky_relu(h)))

    @torch.no_grad()
    def health(self) -> dict:
        """orthogonality: the largest |U^T U - I| of all layers; L: [[q lengths] of each layer]. A subspace whose L goes to
        zero has collapsed: nothing it says reaches the image."""
        subspaces = [block.subspace for block in self.blocks if block.subspace]
        frames = [orthonormal(subspace.free).cpu().double() for subspace in subspaces]
        errors = [(u.T @ u - torch.eye(Q)).abs().max().item() for u in frames]
        return {"orthogonality": max(errors, default=0.0), "L": [[round(x, 3) for x in s.L.tolist()] for s in subspaces]}


def train_step(generator: nn.Module, discriminator: nn.Module, optimizers: tuple, real: Tensor, z: Tensor, penalty: float):
    """One step with hinge loss (Lim and Ye 2017) and R1, one fake batch for both as in dlsgan: the losses of D and G."""
    fake = generator(z)
    image = fake.detach().requires_grad_()
    logits_fake = discriminator(image)[0]
    (gradient,) = torch.autograd.grad(-logits_fake.mean(), image, retain_graph=True)
    fake.backward(gradient)
    real = real.detach().requires_grad_(penalty > 0)
    logits_real = discriminator(real)[0]
    loss_d = F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean()
    (loss_d + (penalty * dlsgan.r1_penalty(logits_real, real) if penalty else 0.0)).backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss_d.detach(), -logits_fake.detach().mean()


def train(
    config: dlsgan.Config,
    train_images: np.ndarray | None = None,  # uint8 [N, C, H, W]; those of config.dataset if None
    subspaces: bool = True,  # False: the ablation
    path: Path | None = None,  # keeps the state, see common.resumable
    record: dict | None = None,  # gets "log": [{images, loss_d, loss_g, orthogonality, L}], and "seconds"
) -> EigenGenerator:
    """Trains on config.images images and returns the averaged generator z [B, d] -> x, with attribute latent_dim = d."""
    c, device, stream, record = config, dlsgan.pick_device(config.device), None, {} if record is None else record
    train_images = dlsgan.LOADERS[c.dataset](c)[0] if train_images is None else train_images
    torch.manual_seed(c.seed)
    generator = EigenGenerator(c.resolution, train_images.shape[1], c.latent_dim, c.width, subspaces)
    discriminator = dlsgan.Discriminator(c.resolution, train_images.shape[1], 1, c.width)
    discriminator.latent_head.requires_grad_(False)  # unused
    model = dlsgan.DLSGAN(generator, discriminator, dlsgan.LatentScale(c.latent_dim, enabled=False))
    model.to(device, memory_format=torch.channels_last)
    result, optimizers = copy.deepcopy(generator).requires_grad_(False), dlsgan.make_optimizers(model, c.lr)
    rng, steps = torch.Generator().manual_seed(c.seed), math.ceil(c.images / c.batch_size)
    stateful = {"model": model, "average": result, "optimizer_g": optimizers[0], "optimizer_d": optimizers[1], "rng": rng}
    record.setdefault("log", [])
    for step in common.resumable(steps, c, stateful, record, path):
        stream = stream or dlsgan.batches(train_images, c.batch_size, c.seed, step, c.flip)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = c.lr * c.lr_final ** (step / steps)
        real, z = dlsgan.to_float(next(stream), device), torch.randn(c.batch_size, c.latent_dim, generator=rng).to(device)
        losses = train_step(generator, discriminator, optimizers, real, z, 0.0 if step % 16 else c.r1_gamma / 2 * 16)
        common.average(result, generator, step)
        if step % max(1, steps // 25) == 0 or step == steps - 1:
            loss_d, loss_g = (loss.item() for loss in losses)
            line = {"images": (step + 1) * c.batch_size, "loss_d": loss_d, "loss_g": loss_g}
            record["log"].append(line | generator.health())
            if not math.isfinite(loss_d + loss_g):
                raise dlsgan.UserError(f"the loss is no longer finite at step {step:,}: try another --seed")
    return result.eval()


@torch.no_grad()
def traverse(generator: EigenGenerator, i: int, seed: int = 0) -> Tensor:
    """Latent dimension i turned from -4.5 to 4.5, the other z_i at 0 and eps as drawn from the seed: [7, C, H, W]."""
    z = torch.zeros(COLUMNS, generator.latent_dim)
    z[:, : generator.noise_dim] = torch.randn(generator.noise_dim, generator=torch.Generator().manual_seed(seed))
    z[:, i] = torch.linspace(-4.5, 4.5, COLUMNS)
    return generator(z)


@torch.no_grad()
def measure(generator: EigenGenerator, test: Tensor, regressor: Callable[[Tensor], Tensor] | None, seed: int = 1) -> dict:
    """spread: as in dlsgan.METRICS. swd: sliced Wasserstein distance to test images. On cartoon faces explained [d, 8]:
    squared correlation of each latent dimension with each factor that the regressor reads off its images."""
    z = torch.randn(len(test), generator.latent_dim, generator=torch.Generator().manual_seed(seed))
    x = in_parts(generator, z)
    result = {"spread": (x.std(0).mean() / test.std(0).mean()).item(), "swd": swd(x, test)["mean"]}
    if regressor:
        correlation, d = np.corrcoef(z.numpy(), regressor(x).numpy(), rowvar=False), generator.latent_dim
        result["explained"] = (correlation[:d, d:] ** 2).round(4).tolist()
    return result


def main(config: dlsgan.Config, runs: Path = Path("runs"), results: Path = common.RESULTS) -> dict:
    train_images, test_images = dlsgan.LOADERS[config.dataset](config)
    test = dlsgan.to_float(test_images[:1000])
    regressor, scores = factor_regressor(config.resolution) if config.dataset == "cartoon" else (None, None)
    command = f"python -m toy_experiments.eigengan --dataset {config.dataset} --images {config.images} --seed {config.seed}"
    result, generators = {"command": command, "machine": processor(), "regressor": scores}, {}
    for name, subspaces in (("subspaces", True), ("no subspaces", False)):
        path = runs / f"eigengan-{config.dataset}" / f"{name.replace(' ', '-')}.pt"
        generators[name] = train(config, train_images, subspaces, path, record := {}).cpu()
        found = measure(generators[name], test, regressor) | generators[name].health()
        result[name] = found | {"minutes": round(record["seconds"] / 60, 2), "log": record["log"]}
        lengths = "; ".join(", ".join(f"{length:.1f}" for length in layer) for layer in found["L"])
        print(f"{name}: spread {found['spread']:.2f}, swd {found['swd']:.1f}, L {lengths}, "
              f"|U^T U - I| {found['orthogonality']:.0e}", flush=True)
        if regressor:
            best = zip(dlsgan.CARTOON_FACTORS, np.max(found["explained"], 0), strict=True)
            print("  largest share of each factor in one dimension: " + ", ".join(f"{f} {share:.2f}" for f, share in best))
    results.mkdir(parents=True, exist_ok=True)
    (results / f"eigengan-{config.dataset}.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(generators, result, results / f"eigengan-{config.dataset}.png")
    return result


@torch.no_grad()
def draw(generators: dict, result: dict, path: Path) -> None:
    """Above: samples with and without subspaces, |L| over training. Below: a panel a layer, a row an eigen-dimension."""
    from matplotlib.figure import Figure

    with_subspaces, found = generators["subspaces"], result["subspaces"]
    figure = Figure((13, 8), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.1))
    *_, curves = axes = top.subplots(1, 3)
    for axis, (name, generator) in zip(axes, generators.items(), strict=False):
        z = torch.randn(40, generator.latent_dim, generator=torch.Generator().manual_seed(2))
        axis.imshow(dlsgan.grid(generator(z).split(8)), cmap="gray")
        axis.set(title=f"{name}: spread {result[name]['spread']:.2f}, swd {result[name]['swd']:.1f}", xticks=[], yticks=[])
    for layer in range(len(found["L"])):
        lengths = np.abs([line["L"][layer] for line in found["log"]])  # [lines, Q]
        lines = curves.plot([line["images"] / 1000 for line in found["log"]], lengths, color=f"C{layer}", linewidth=1)
        lines[0].set_label(f"layer of {4 * 2**layer}x{4 * 2**layer}")
    curves.set(xlabel="training images, thousands", ylabel="|L|", ylim=(0, 24), title="lengths of the eigen-dimensions")
    curves.legend(frameon=False, fontsize=8, ncols=len(found["L"]), loc="upper center")
    for layer, axis in enumerate(bottom.subplots(1, len(found["L"]), squeeze=False)[0]):
        lengths, first = np.abs(found["L"][layer]), with_subspaces.noise_dim + Q * layer
        order = (-lengths).argsort()
        labels = [f"{lengths[i]:.1f}" for i in order]
        if "explained" in found:  # the factor that this dimension explains best
            shares = [found["explained"][first + i] for i in order]
            best = [f"{dlsgan.CARTOON_FACTORS[np.argmax(share)]} {max(share):.2f}" for share in shares]
            labels = ["\n".join(pair) for pair in zip(labels, best, strict=True)]
        axis.imshow(picture := dlsgan.grid([traverse(with_subspaces, first + i) for i in order]), cmap="gray")
        height, width = np.array(picture.shape[:2]) / (Q, COLUMNS)
        axis.set_xticks((np.arange(COLUMNS) + 0.5) * width, [f"{z:g}" for z in np.linspace(-4.5, 4.5, COLUMNS)], fontsize=7)
        axis.set_yticks((np.arange(Q) + 0.5) * height, labels, fontsize=7)
        axis.set_title(f"|L| and traversals, layer of {4 * 2**layer}x{4 * 2**layer}", fontsize=10)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    with common.one_line("eigengan"):
        main(common.configure(**vars(common.parser(__doc__).parse_args())))
