"""The linear case, solved exactly: what the latent scale converges to, and why the loss goes away.

Claim. Let x = A (s * z) + sigma * noise with a fixed matrix A, and let the encoder be optimal,
z_hat = E[z | x]. Then v_i = p_i * d/dp_i logdet(sigma^2 I + A diag(p) A^T) with p = s^2, so the full update
p <- d v / sum(v) is a Baum-Eagon growth transform of I(Z; X) = 1/2 logdet(I + A diag(p) A^T / sigma^2): the
mutual information never falls. For diagonal A the fixed point is exactly water-filling,
s_i^2 = max(0, c - sigma^2 / a_i^2) with c = d / sum(v), the classical way to share power among parallel
Gaussian channels. As sigma -> 0, sum(v) -> rank(A). Without scaling the loss stays at 1 - mean(v). With
correlated columns of a fixed A the fixed point can keep more dimensions than rank(A), and L_enc > 0: the
theorem is about the scale alone, and only a generator that moves, too, removes the loss.

    python -m toy_experiments.linear_gaussian     20 seconds on one core; draws results/linear_gaussian.png

Expected printout (exact values in float64; the learned ones vary a little with the machine):
    diagonal A: |s^2 - water-filling| below 1e-12; I(Z;X) never falls; sum(v) near rank(A) for small sigma
    learned encoder: s^2 within 2% of max(s^2) of the closed form, with both update rules
"""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import dlsgan
from toy_experiments.shared import cli
from toy_experiments.shared.cli import RESULTS


def variances(a: np.ndarray, p: np.ndarray, sigma: float) -> np.ndarray:
    """v [d] of the optimal encoder for x = A (sqrt(p) * z) + sigma * noise, with A [m, d] and p = s^2 [d]."""
    covariance = sigma**2 * np.eye(len(a)) + (a * p) @ a.T  # of x, [m, m]
    return p * (a * np.linalg.solve(covariance, a)).sum(0)  # p_i a_i^T covariance^-1 a_i


def information(a: np.ndarray, p: np.ndarray, sigma: float) -> float:
    """I(Z; X) in nats."""
    return 0.5 * float(np.linalg.slogdet(np.eye(len(a)) + (a * p) @ a.T / sigma**2)[1])


def dls_iterations(a: np.ndarray, sigma: float, steps: int) -> tuple[np.ndarray, list[float]]:
    """The full update p <- d v / sum(v) from p = 1: the final p [d], and I(Z; X) at each step."""
    p = np.ones(a.shape[1])
    trace = []
    for _ in range(steps):
        trace.append(information(a, p, sigma))
        v = variances(a, p, sigma)
        p = len(v) * v / v.sum()
    return p, trace


def water_filling(a: np.ndarray, sigma: float) -> tuple[np.ndarray, float]:
    """Powers max(0, c - sigma^2 / a_i^2) [d] that sum to d, and the water level c; a [d] holds the gains."""
    floor = np.sort(sigma**2 / a**2)
    levels = (len(a) + floor.cumsum()) / np.arange(1, len(a) + 1)  # c, if only the k best channels are used
    used = np.flatnonzero(levels > floor)[-1]  # the largest k whose level lies above its worst channel
    return np.maximum(0, levels[used] - sigma**2 / a**2), float(levels[used])


def learned_scale(
    a: np.ndarray,  # the matrix A [m, d]
    sigma: float,
    rule: str,  # of dlsgan.LatentScale: "ema" or "sma"
    window: int,
    steps: int,
    batch: int = 256,
    seed: int = 0,
) -> np.ndarray:
    """The same with an encoder that is learned and statistics of batches: z_hat = W x, by Adam on the
    mean squared error of z, without the weights s^2 of L_enc, and v through dlsgan.LatentScale. Returns the
    path of s^2 [steps, d]."""
    gains = torch.tensor(a, dtype=torch.float32)
    rng = torch.Generator().manual_seed(seed)
    encoder = torch.nn.Linear(a.shape[0], a.shape[1], bias=False)
    torch.nn.init.zeros_(encoder.weight)
    scale = dlsgan.LatentScale(a.shape[1], rule, window)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.02, betas=(0.9, 0.99))
    path = []
    for step in range(steps):
        s = scale.scale()
        z = torch.randn(batch, a.shape[1], generator=rng)
        x = (z * s) @ gains.T + sigma * torch.randn(batch, a.shape[0], generator=rng)
        z_hat = encoder(x)
        dlsgan.decay_learning_rate([optimizer], 0.02, 0.01, step / steps)
        optimizer.zero_grad()
        # its rows are independent regressions: without the weight s^2 faded dimensions are learned as well
        dlsgan.encoder_loss(z, z_hat, torch.ones_like(s)).backward()
        optimizer.step()
        if step > window:  # an untrained encoder knows nothing of v
            scale.update(z_hat.detach())
        path.append(s.square())
    return torch.stack(path).numpy()


def measures(a: np.ndarray, p: np.ndarray, sigma: float) -> dict:
    """L_enc of the optimal encoder, effective dimensions and sum(v)."""
    v = variances(a, p, sigma)
    return {
        "l_enc": float(((1 - v) * p).mean()),
        "effective_dimensions": float(p.sum() ** 2 / (p**2).sum()),
        "sum_v": float(v.sum()),
    }


def moving_generator(a: np.ndarray, sigma: float, steps: int) -> dict:
    """The scale's fixed point for a fixed A; then A moves, too: gradient steps on L_enc at constant power of
    x, each followed by the update of the scale. Returns the measures before and after."""
    p, _ = dls_iterations(a, sigma, 4000)
    before = measures(a, p, sigma)
    power = np.trace((a * p) @ a.T)
    moving = torch.tensor(a, requires_grad=True)
    optimizer = torch.optim.Adam([moving], lr=0.02)
    for _ in range(steps):
        scaled = moving * torch.tensor(p).sqrt()
        covariance = sigma**2 * torch.eye(len(a), dtype=torch.float64) + scaled @ scaled.T
        v = (scaled * torch.linalg.solve(covariance, scaled)).sum(0)
        optimizer.zero_grad()
        l_enc = ((1 - v) * torch.tensor(p)).mean()  # of the optimal encoder: mean of (1 - v_i) s_i^2
        l_enc.backward()
        optimizer.step()
        with torch.no_grad():
            moved = np.trace((moving.numpy() * p) @ moving.numpy().T)
            moving.mul_(float(np.sqrt(power / moved)))
        v = variances(moving.detach().numpy(), p, sigma)
        p = len(v) * v / v.sum()
    return {"fixed A": before, "A moves, too": measures(moving.detach().numpy(), p, sigma)}


def fan() -> np.ndarray:
    """A [2, 5] of five directions in a plane: rank 2, strongly correlated columns."""
    angle = np.pi * np.arange(5) / 5 + 0.03 * np.random.default_rng(0).normal(size=5)
    return np.stack((np.cos(angle), np.sin(angle)))


def main(steps: int = 8000, learned_steps: int = 6000, moving_steps: int = 3000, figure: bool = True) -> dict:
    d = 8
    sigma = 0.5
    gains = np.array([2.0, 1.5, 1.1, 0.8, 0.55, 0.3, 0.2, 0.1])
    closed, level = water_filling(gains, sigma)
    p, trace = dls_iterations(np.diag(gains), sigma, steps)
    v = variances(np.diag(gains), np.ones(d), sigma)
    result = {
        "water_filling_error": float(np.abs(p - closed).max()),
        "margin_to_the_water_line": float(np.abs(level - sigma**2 / gains**2).min()),
        "largest_fall_of_information": float(max(0, -np.diff(trace).min())),
        "loss_without_scale": float(1 - v.mean()),
    }
    low_rank = np.random.default_rng(0).normal(size=(3, d))
    for noise in (0.1, 0.01, 0.001):
        result[f"sum_v_rank_3_sigma_{noise}"] = float(variances(low_rank, np.ones(d), noise).sum())
    paths = {}
    for rule, window in (("ema", 200), ("sma", 400)):
        paths[rule] = learned_scale(np.diag(gains), sigma, rule, window, learned_steps)
        result[f"learned_error_{rule}"] = float(np.abs(paths[rule][-1] - closed).max() / closed.max())
    result["correlated"] = moving_generator(fan(), 0.1, moving_steps)
    for key, value in result.items():
        print(f"{key}: {value}")
    if figure:
        cli.write_json(RESULTS / "linear_gaussian.json", result)
        draw(closed, trace, paths, RESULTS / "linear_gaussian.png")
    return result


def draw(closed: np.ndarray, trace: list[float], paths: dict, path: Path) -> None:
    """Left: I(Z; X) over the updates. Right: the learned powers (lines) over the closed form (dashed)."""
    figure = Figure((11, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.6))
    left.plot(range(1, 61), trace[:60], color="#30638e")
    left.set(xlabel="update of the scale", ylabel="I(Z; X), nats", title="the update never loses information")
    for i in range(len(closed)):
        for rule, style in (("ema", "-"), ("sma", ":")):
            right.plot(paths[rule][:, i], style, color=f"C{i}", linewidth=1.2)
        right.axhline(closed[i], color=f"C{i}", linestyle="--", linewidth=0.8)
    styles = {"learned encoder, ema": "-", "learned encoder, sma": ":", "water-filling": "--"}
    for name, style in styles.items():
        right.plot([], [], style, color="0.3", label=name)
    right.set(xlabel="training step", ylabel="power s_i^2")
    right.set_title("learned scale of 8 channels over the closed form")
    right.legend(frameon=False, loc="center right", bbox_to_anchor=(1.0, 0.35))
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    cli.parser(__doc__).parse_args()
    main()
