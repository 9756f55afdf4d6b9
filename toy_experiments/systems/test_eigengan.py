"""Tests of EigenGAN and its linear case."""

import itertools
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA

import dlsgan
from conftest import counted, double, small_cartoon, tiny, write_mnist
from toy_experiments.shared import classifiers, training
from toy_experiments.systems import eigengan, eigengan_linear


def spread_eigenvalues(dimensions, seed):
    """A sample from a Gaussian with distinct eigenvalues, float64 [4000, dimensions]."""
    random = np.random.default_rng(seed)
    axes = np.linalg.qr(random.normal(size=(dimensions, dimensions)))[0]
    centred = random.normal(size=(4000, dimensions)) * np.linspace(2.5, 0.3, dimensions) @ axes.T
    return centred + random.normal(size=dimensions)


@pytest.mark.parametrize(
    ("dimensions", "q", "sigma", "seed"), [(6, 2, 0.3, 0), (8, 3, 0.5, 1), (10, 5, 0.2, 2)]
)
def test_a_linear_subspace_by_likelihood_is_pca(dimensions, q, sigma, seed):
    sample = spread_eigenvalues(dimensions, seed)
    pca = PCA(q).fit(sample)
    values = pca.explained_variance_ * (len(sample) - 1) / len(sample)  # of the maximum likelihood covariance
    moments = torch.tensor(sample.mean(0)), torch.tensor(np.cov(sample, rowvar=False, ddof=0))
    model = eigengan_linear.fit_by_likelihood(*moments, q, sigma, seed)
    order = model.L.detach().abs().argsort(descending=True)
    u = eigengan_linear.orthonormal(model.free.detach())[:, order].numpy()
    assert np.abs((u * pca.components_.T).sum(0)).min() >= 1 - 1e-6
    np.testing.assert_allclose(model.L.detach()[order].numpy() ** 2, values - sigma**2, atol=5e-5)
    np.testing.assert_allclose(model.mu.detach().numpy(), sample.mean(0), atol=1e-5)
    assert eigengan_linear.theorem(model, moments[1])["one_minus_cosine"] < 1e-6
    assert eigengan_linear.compare_with_pca(model, moments[1])["subspace"] < 0.1  # degrees


def test_likelihood_of_a_linear_subspace_against_scipy():
    sample = spread_eigenvalues(5, 4)
    moments = torch.tensor(sample.mean(0)), torch.tensor(np.cov(sample, rowvar=False, ddof=0))
    u = eigengan_linear.orthonormal(torch.randn(5, 2, dtype=torch.float64))
    length = torch.tensor([1.7, -0.6]).double()
    mu = torch.randn(5).double()
    sigma = 0.4
    ours = eigengan_linear.negative_log_likelihood(u, length, mu, sigma, *moments)
    covariance = (u * length**2) @ u.T + sigma**2 * torch.eye(5, dtype=torch.float64)
    oracle = -scipy.stats.multivariate_normal(mu.numpy(), covariance.numpy()).logpdf(sample).mean()
    assert ours.item() == pytest.approx(oracle, rel=1e-10)
    # a free matrix W in the place of U diag(L) may be rotated: the same density, but its columns are no
    # eigenvectors
    angle = torch.tensor(0.7).double()
    turn = torch.stack((torch.stack((angle.cos(), -angle.sin())), torch.stack((angle.sin(), angle.cos()))))
    w = (u * length) @ turn
    torch.testing.assert_close(w @ w.T + sigma**2 * torch.eye(5, dtype=torch.float64), covariance)
    cosines = (F.normalize(w, dim=0).T @ u).abs()
    assert cosines.max() < 0.99
    # of all those W, only those without rotation are orthogonal columns
    assert (w.T @ w - torch.diag((w.T @ w).diagonal())).abs().max() > 0.1


def test_samples_of_the_linear_subspace_have_the_stated_covariance():
    model = eigengan_linear.LinearSubspace(4, 2, 0.5)
    with torch.no_grad():
        x = model(torch.randn(200_000, 6, generator=torch.Generator().manual_seed(0)))
        u = eigengan_linear.orthonormal(model.free)
        expected = (u * model.L**2) @ u.T + 0.25 * torch.eye(4)
    torch.testing.assert_close(torch.cov(x.T), expected, atol=0.03, rtol=0)


def test_linear_gans_run_and_are_measured():
    result = eigengan_linear.main(steps=60, seeds=1, figure=False)
    assert result["likelihood"]["one_minus_cosine"] < 1e-6 and result["likelihood"]["length_error"] < 1e-6
    assert len(result["gan"]) == 4
    for runs in result["gan"].values():
        assert [point["step"] for point in runs[0]] == [0, 50]
        assert all(0 <= point["subspace"] <= 90 and 0 <= point["axes"] <= 90 for point in runs[0])


@pytest.mark.slow
def test_wgan_comes_closer_to_pca_than_the_original_loss():
    gan = eigengan_linear.main(figure=False)["gan"]
    angles = {
        name: np.mean([[point["axes"] for point in run[-20:]] for run in runs]) for name, runs in gan.items()
    }
    for noise in ("0.5", "0.0"):
        assert angles[f"wgan-gp, sigma {noise}"] < angles[f"original, sigma {noise}"]


def test_orthonormal_is_gram_schmidt():
    free = torch.randn(7, 3, dtype=torch.float64)
    columns = []
    for column in free.T:
        for other in columns:
            column = column - (column @ other) * other
        columns.append(column / column.norm())
    torch.testing.assert_close(eigengan_linear.orthonormal(free), torch.stack(columns, 1))


def test_a_subspace_is_a_sum_over_its_eigen_dimensions():
    subspace = eigengan.Subspace(3, 4).double()
    subspace.mu.data.normal_()
    z = torch.randn(2, eigengan.Q, dtype=torch.float64)
    u = eigengan_linear.orthonormal(subspace.free)
    for got, coordinates in zip(subspace(z), z, strict=True):
        expected = subspace.mu.clone()
        for i in range(eigengan.Q):
            expected = expected + coordinates[i] * subspace.L[i] * u[:, i].view(3, 4, 4)
        torch.testing.assert_close(got, expected)


def test_a_block_adds_the_subspace_before_and_after_the_up_sampling():
    block = eigengan.Block(4, 3, 4, True).double()
    h, z = torch.randn(2, 4, 4, 4).double(), torch.randn(2, eigengan.Q).double()
    phi = block.subspace(z)

    def up(x, channels):  # one half of the joint convolution
        x = F.conv2d(x, block.up.weight[:, channels] * block.up.weight_gain, padding=1)
        return F.interpolate(x, scale_factor=2, mode="bilinear")

    inner = F.leaky_relu(h + block.point(phi), 0.2)
    bias = (block.up.bias * block.up.bias_gain)[:, None, None]
    total = up(inner, slice(0, 4)) + up(phi, slice(4, 8)) + bias
    torch.testing.assert_close(block(h, z), block.conv(F.leaky_relu(total, 0.2)))


def test_eigengan_training_step_against_separate_losses():
    torch.manual_seed(0)
    generator = double(eigengan.EigenGenerator(16, 1, 14, 164, 10))
    discriminator = double(dlsgan.Discriminator(16, 1, 1, 164, 10))
    real, z = torch.rand(3, 1, 16, 16).double(), torch.randn(3, 14).double()
    networks = (generator, discriminator)
    optimizers = [torch.optim.SGD(network.parameters(), 1.0) for network in networks]
    before = [[p.detach().clone() for p in network.parameters()] for network in networks]
    image = real.clone().requires_grad_()
    logits, fake = discriminator(image)[0], generator(z)
    loss_d = (1 - logits).clamp(min=0).mean() + (1 + discriminator(fake.detach())[0]).clamp(min=0).mean()
    loss_d = loss_d + 0.7 * dlsgan.r1_penalty(logits, image)
    loss_g = -discriminator(fake)[0].mean()
    expected = [
        torch.autograd.grad(loss, list(network.parameters()), allow_unused=True, retain_graph=True)
        for loss, network in ((loss_g, generator), (loss_d, discriminator))
    ]
    returned = eigengan.train_step(*networks, optimizers, real, z, 0.7)
    assert returned[1].item() == pytest.approx(loss_g.item())
    for network, old, gradients in zip(networks, before, expected, strict=True):
        for p, start, gradient in zip(network.parameters(), old, gradients, strict=True):
            torch.testing.assert_close(start - p, torch.zeros_like(p) if gradient is None else gradient)


@pytest.mark.parametrize("subspaces", [True, False])
def test_eigengan_stays_orthonormal_and_goes_on_where_it_stopped(subspaces, monkeypatch):
    config = tiny(latent_dim=16, channel_base=246, channel_max=15, images=80, lr=0.01)
    images = small_cartoon(config)[0]
    ticks = itertools.count(0, 100)
    monkeypatch.setattr(training, "clock", lambda device: next(ticks))  # a state is kept after each step

    def train(path):
        record = {}
        return eigengan.train(config, images, subspaces, Path(path), record), record

    with counted(eigengan, "train_step") as calls:
        generator, record = train("state.pt")
        again, _ = train("state.pt")  # finished: nothing is left to do
    assert len(calls) == 20
    assert generator.latent_dim == 16 and generator.noise_dim == (4 if subspaces else 16)
    assert generator(torch.randn(3, 16)).shape == (3, 3, 16, 16)
    assert record["log"][-1]["images"] == 80 and record["log"][-1]["orthogonality"] < 1e-5
    for block in generator.blocks if subspaces else []:
        u = eigengan_linear.orthonormal(block.subspace.free).double()
        assert (u.T @ u - torch.eye(eigengan.Q)).abs().max() < 1e-5 and block.subspace.L.abs().min() > 1
    with counted(eigengan, "train_step", last=9) as first, pytest.raises(KeyboardInterrupt):
        train("parts.pt")
    with counted(eigengan, "train_step") as others:
        parts, record_of_parts = train("parts.pt")
    assert (len(first), len(others)) == (9, 12) and record_of_parts == record
    for other in (again, parts):
        for a, b in zip(generator.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_eigengan_has_half_the_learning_rate(monkeypatch):
    """Adam's first step moves a weight by its learning rate, whatever the gradient."""
    config = tiny(latent_dim=16, channel_base=246, channel_max=15, batch_size=4, images=4, lr=0.01)
    moved = []
    step = eigengan.train_step

    def watched(generator, discriminator, *arguments):
        before = discriminator.logit_head.weight.detach().clone()
        losses = step(generator, discriminator, *arguments)
        moved.append((discriminator.logit_head.weight - before).abs().max().item())
        return losses

    monkeypatch.setattr(eigengan, "train_step", watched)
    eigengan.train(config, small_cartoon(config)[0])
    assert moved == [pytest.approx(0.005, rel=1e-3)]


def test_eigengan_needs_room_for_noise():
    with pytest.raises(dlsgan.UserError, match="leaves no noise"):
        eigengan.EigenGenerator(32, 3, 18, 164, 10)


def test_a_traversal_moves_one_dimension():
    generator = eigengan.EigenGenerator(16, 1, 16, 164, 10).requires_grad_(False)
    generator.blocks[0].subspace.L[2] = 0.0
    still, moving = (eigengan.traverse(generator, 4 + i) for i in (2, 0))
    assert (still - still[:1]).abs().max() < 1e-6 and (moving - moving[:1]).abs().max() > 1e-3


@pytest.fixture
def blind_judges(monkeypatch):
    """Judges that hardly learn, so that whole experiments run in seconds."""
    monkeypatch.setattr(eigengan, "factor_regressor", partial(classifiers.factor_regressor, steps=2))


@pytest.mark.parametrize("dataset", ["cartoon", pytest.param("mnist", marks=pytest.mark.slow)])
def test_eigengan_from_data_to_results(dataset, blind_judges):
    write_mnist(Path("data/mnist"), 60)
    config = tiny(dataset=dataset, data_dir=f"data/{dataset}", latent_dim=16, images=8)
    result = eigengan.main(config, results=Path("kept"))
    assert Path(f"kept/eigengan-{dataset}.png").stat().st_size > 10_000
    assert json.loads(Path(f"kept/eigengan-{dataset}.json").read_text()).keys() == result.keys()
    explained = np.array(result["subspaces"].get("explained", []))
    assert explained.shape == ((16, 8) if dataset == "cartoon" else (0,))
