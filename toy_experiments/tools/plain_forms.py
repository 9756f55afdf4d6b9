"""The shortcuts of dlsgan.py undone, one by one: the plain forms that its fast ones must equal, for tests and
benchmark.py.

Each entry of LEVERS replaces something in dlsgan by the form that StyleGAN2's paper or PyTorch's default
suggests. All but "one batch of fakes" compute the same function: the tests compare one training step, or two
of Adam, with and without each in float64.
"""

import contextlib
from collections.abc import Iterable, Iterator
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

import dlsgan


def per_sample_forward(self: dlsgan.ModulatedConv2d, x: Tensor, w: Tensor) -> Tensor:
    """A weight for each image and a grouped convolution, as StyleGAN2's paper writes it (equations 1 to
    3)."""
    weight = self.weight * self.style(w)[:, None, :, None, None]  # [B, c_out, c_in, 3, 3]
    weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    n, c_out, c_in = weight.shape[:3]
    x = x.reshape(1, n * c_in, *x.shape[2:])
    if self.low_pass is None:
        x = F.conv2d(x, weight.flatten(0, 1), padding=1, groups=n)
    else:
        x = F.conv_transpose2d(x, weight.transpose(1, 2).flatten(0, 1), stride=2, groups=n)
    x = x.view(n, c_out, *x.shape[2:])
    if self.low_pass is not None:
        x = self.low_pass(x)
    return dlsgan.leaky_relu(dlsgan.SQRT2 * (x + self.bias))


def skip_forward(self: dlsgan.DiscriminatorBlock, x: Tensor) -> Tensor:
    """The skip path thinned out after its 1x1 convolution."""
    bias = (self.skip.bias * self.skip.bias_gain)[
        :, None, None
    ]  # a filter with a border of zeros would change it there
    skip = self.skip_down(F.conv2d(x, self.skip.weight * self.skip.weight_gain)) + bias
    x = dlsgan.leaky_relu(self.conv1(x))
    return skip + dlsgan.leaky_relu(self.conv2(self.low_pass(x)))


def two_batches_step(
    model: dlsgan.DLSGAN,
    optimizers: tuple,  # of G and of D
    real: Tensor,
    rng: torch.Generator,
    loss: str = "nsgan",
    encoder_weight: float = 1.0,
    penalty_weight: float = 0.0,
    bf16: bool = False,
) -> dict[str, Tensor]:
    """The usual order of GAN training: D learns on one batch of generated images, then G on another."""
    optimizer_g, optimizer_d = optimizers
    real_loss, fake_loss, generator_loss = dlsgan.LOSSES[loss]
    s = model.latent_scale.scale()

    z = dlsgan.sample_latents(len(real), model.latent_scale, rng)
    logits, z_hat = model.discriminator(model.generator(z * s))
    loss_d = fake_loss(logits).mean() + encoder_weight * dlsgan.encoder_loss(z, z_hat, s)
    real = real.detach().requires_grad_(penalty_weight > 0)
    logits_real = model.discriminator(real)[0]
    loss_d = loss_d + real_loss(logits_real).mean()
    if penalty_weight:
        loss_d = loss_d + penalty_weight * dlsgan.r1_penalty(logits_real, real)
    loss_d.backward(inputs=list(model.discriminator.parameters()))
    optimizer_d.step()
    optimizer_d.zero_grad(set_to_none=True)

    z = dlsgan.sample_latents(len(real), model.latent_scale, rng)
    logits, z_hat = model.discriminator(model.generator(z * s))
    loss_g = generator_loss(logits).mean() + encoder_weight * dlsgan.encoder_loss(z, z_hat, s)
    loss_g.backward(inputs=list(model.generator.parameters()))
    optimizer_g.step()
    optimizer_g.zero_grad(set_to_none=True)

    model.latent_scale.update(z_hat.detach())
    return {"loss": loss_g.detach()}


def make_contiguous(module: torch.nn.Module, inputs: tuple) -> tuple:
    """A hook: the first input of a layer with channels first in memory."""
    return (inputs[0].contiguous(), *inputs[1:])


def planar(model: dlsgan.DLSGAN) -> None:
    """Channels first in memory, PyTorch's default."""
    model.to(memory_format=torch.contiguous_format)
    model.generator.conv.register_forward_pre_hook(make_contiguous)
    model.discriminator.register_forward_pre_hook(make_contiguous)


def plain_adam(model: dlsgan.DLSGAN, lr: float) -> tuple:
    networks = (model.generator, model.discriminator)
    return tuple(torch.optim.Adam(network.parameters(), lr, (0.0, 0.99)) for network in networks)


def leaky_relu(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


LEVERS = {  # name -> (where, attribute, what replaces it), or a function that changes a model
    "one weight for the whole batch": (dlsgan.ModulatedConv2d, "forward", per_sample_forward),
    "channels last": planar,
    "one batch of fakes for both losses": (dlsgan, "train_step", two_batches_step),
    "fused Adam": (dlsgan, "make_optimizers", plain_adam),
    "leaky ReLU in place": (dlsgan, "leaky_relu", leaky_relu),
    "skip path thinned out first": (dlsgan.DiscriminatorBlock, "forward", skip_forward),
}


def change_model(model: dlsgan.DLSGAN, names: Iterable[str]) -> None:
    for name in names:
        if callable(LEVERS[name]):
            LEVERS[name](model)


@contextlib.contextmanager
def without(names: Iterable[str]) -> Iterator[None]:
    """Within it, dlsgan does without the named levers (but for those that change a model)."""
    with contextlib.ExitStack() as stack:
        for name in names:
            if not callable(LEVERS[name]):
                stack.enter_context(mock.patch.object(*LEVERS[name]))
        yield
