"""Tests of what cartoon faces show of their factors, and of the estimator that says so."""

import itertools

import numpy as np
import pytest
import torch

import dlsgan
from toy_experiments.shared.factors import face_shares, face_shares_line, variance_shares


def test_shares_of_a_linear_function():
    """f(u) = A u: the share of u_k is |A_k|^2 / |A|^2, and the shares sum to 1."""
    a = torch.randn(30, 5, generator=torch.Generator().manual_seed(1)) * torch.tensor(
        [3.0, 2.0, 1.0, 0.5, 0.0]
    )
    shares = variance_shares(lambda u: (u @ a.T).view(-1, 5, 6), 5, 20_000)
    exact = a.square().sum(0) / a.square().sum()
    assert torch.allclose(shares, exact, atol=0.01)
    assert shares[4] == 0
    assert abs(shares.sum() - 1) < 0.02


def test_shares_contain_interactions():
    """f(u) = u_0 u_1 + u_2: the product belongs to both of its factors, so that the sum is 3 / 2."""
    shares = variance_shares(lambda u: u[:, :1] * u[:, 1:2] + u[:, 2:], 3, 40_000)
    assert torch.allclose(shares, torch.tensor([0.5, 0.5, 0.5]), atol=0.03)


@pytest.mark.parametrize("resolution", [16, 32, 64])
def test_each_factor_of_the_faces_shows(resolution):
    shares = face_shares(resolution, 500)
    assert list(shares) == list(dlsgan.CARTOON_FACTORS)
    for name, share in shares.items():
        assert 0.05 <= share <= 0.35, f"{name}: {share:.1%}"


def test_shares_line():
    assert face_shares_line(16, 100).startswith("share of the pixels' variance at 16x16: x 1")


def extreme_factors():
    """All corners of [-4, 4]^8, where a factor is as far as it goes, and 128 points inside: [384, 8]."""
    corners = torch.tensor(list(itertools.product((-4.0, 4.0), repeat=8)))
    inside = torch.rand(128, 8, generator=torch.Generator().manual_seed(0)) * 8 - 4
    return torch.cat([corners, inside])


def test_nothing_leaves_the_frame():
    """Every pixel of the border has the colour of the background, which depends on the last factor alone."""
    places = torch.tensor(list(itertools.product((-4.0, 0.0, 4.0), repeat=4)))  # x, y, size, tilt
    others = torch.rand(81, 4, generator=torch.Generator().manual_seed(0)) * 8 - 4
    dark = torch.tensor([0.26, 0.42, 0.66])
    light = torch.tensor([0.62, 0.86, 0.80])
    for values in torch.cat([places, others], 1).split(27):
        images = dlsgan.cartoon_faces(0, 256, values=values)[0]
        position = torch.erf(values[:, 7:] / 2**0.5) / 2 + 0.5  # [n, 1], between the two colours
        background = 2 * (dark + (light - dark) * position) - 1  # [n, 3]
        for border in (images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1]):
            assert torch.allclose(border, background[:, :, None].expand_as(border), atol=1e-6)


def inside_face(values, resolution):
    """Whether a pixel's centre lies in the ellipse of the face, from the factors [n, 8]: bool [n, H, W]."""
    shift_x, shift_y, size, tilt = torch.erf(values[:, :4] / 2**0.5).double().numpy().T[:, :, None, None]
    size = 0.78 + 0.08 * size
    pixels = (np.arange(resolution) + 0.5) * 2 / resolution - 1
    x, y = np.meshgrid(pixels, pixels)
    offset = (x - 0.085 * shift_x) + 1j * (y - 0.06 * shift_y)
    turned = offset * np.exp(-0.24j * tilt) / size
    return (turned.real / 0.86) ** 2 + ((turned.imag - 0.17) / 0.88) ** 2 < 1


@pytest.mark.parametrize("factor", ["smile", "eye opening"])
def test_features_stay_in_the_face(factor):
    """Between any two values of smile or eyes, only pixels of the face change."""
    k = dlsgan.CARTOON_FACTORS.index(factor)
    resolution = 128
    for values in extreme_factors().split(64):
        inside = torch.from_numpy(inside_face(values, resolution))
        first = None
        for amount in (-4.0, -1.0, 0.0, 1.0, 4.0):
            changed = values.clone()
            changed[:, k] = amount
            images = dlsgan.cartoon_faces(0, resolution, values=changed)[0]
            first = images if first is None else first
            differs = (images - first).abs().amax(1) > 1e-6  # [n, H, W]
            assert not (differs & ~inside).any()
        assert (differs.flatten(1).sum(1) > 100).all()  # it does change between -4 and 4


@pytest.mark.parametrize("resolution", [16, 32, 64])
@pytest.mark.parametrize("k", range(8), ids=dlsgan.CARTOON_FACTORS)
def test_frames_differ_visibly(k, resolution):
    """From frame to frame of a traversal, at least 1% of the pixels change by 20 of 255 grey levels."""
    values = torch.zeros(4, 8)
    values[:, k] = torch.tensor([-1.5, -0.5, 0.5, 1.5])
    images = dlsgan.to_uint8(dlsgan.cartoon_faces(0, resolution, values=values)[0]).int()
    change = (images[1:] - images[:-1]).abs().amax(1)  # [3, H, W]
    visible = (change >= 20).float().mean((1, 2))
    assert (visible >= 0.01).all(), visible
