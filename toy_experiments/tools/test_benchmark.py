"""Tests of the plain forms, the count of operations and the timings."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import dlsgan
from conftest import TINY, flat, tiny, write_celeba
from toy_experiments.tools import benchmark, flops, plain_forms, results_table


def gradients_of_a_step(levers, penalty_weight=4.0):
    """What one training step in float64 with plain gradient descent changes, with the named shortcuts
    switched off."""
    torch.manual_seed(0)
    config = dlsgan.Config(resolution=32, channel_base=512, channel_max=32, latent_dim=8, mapping_layers=2)
    with plain_forms.without(levers):
        model = dlsgan.build(config).double().to(memory_format=torch.channels_last)
        plain_forms.change_model(model, levers)
        before = [p.detach().clone() for p in model.parameters()]
        networks = (model.generator, model.discriminator)
        optimizers = [torch.optim.SGD(network.parameters(), 1.0) for network in networks]
        real = 2 * torch.rand(3, 3, 32, 32, dtype=torch.float64) - 1
        z = torch.randn(3, 8, dtype=torch.float64)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dlsgan, "sample_latents", lambda *arguments: z)
            dlsgan.train_step(model, optimizers, real, torch.Generator(), penalty_weight=penalty_weight)
        return [a.detach() - b for a, b in zip(model.parameters(), before, strict=True)]


def largest_difference(fast, plain):
    """Relative to the largest number of each tensor."""
    return max((p - f).abs().max() / f.abs().max() for f, p in zip(fast, plain, strict=True))


TWO_BATCHES = "one batch of fakes for both losses"  # which computes another function


FUSED_ADAM = "fused Adam"  # which the plain gradient descent above does not use


@pytest.mark.parametrize(
    "lever", [name for name in plain_forms.LEVERS if name not in (TWO_BATCHES, FUSED_ADAM)]
)
def test_each_shortcut_leaves_the_training_step_as_it_is(lever):
    assert largest_difference(gradients_of_a_step([]), gradients_of_a_step([lever])) < 1e-11


def weights_after_two_steps(levers):
    """By dlsgan's own optimisers, in float64, with the named shortcuts switched off."""
    torch.manual_seed(0)
    with plain_forms.without(levers):
        model = dlsgan.build(tiny()).double()
        optimizers = dlsgan.make_optimizers(model, 1e-3)
        for seed in (0, 1):
            rng = torch.Generator().manual_seed(seed)
            real = dlsgan.cartoon_faces(4, 16, seed)[0].double()
            with pytest.MonkeyPatch.context() as patch:
                z = torch.randn(4, TINY["latent_dim"], generator=rng, dtype=torch.float64)
                patch.setattr(dlsgan, "sample_latents", lambda *arguments, z=z: z)
                dlsgan.train_step(model, optimizers, real, rng)
    return flat(model), optimizers


def test_the_fused_adam_takes_the_steps_of_the_plain_one():
    """Two of them, so that the averages of the first count."""
    fast, fused = weights_after_two_steps([])
    plain, unfused = weights_after_two_steps([FUSED_ADAM])
    assert all(optimizer.defaults["fused"] for optimizer in fused)
    assert not any(optimizer.defaults["fused"] for optimizer in unfused)
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-6)


def tiny_sgd_step(self):
    for group in self.param_groups:
        for p in group["params"]:
            p.data.sub_(1e-9 * p.grad)


def test_one_fake_batch_gives_the_gradients_of_two_updates_with_the_same_z():
    """Against the usual order (D's update, then G's), with D's update too small to change G's gradient."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.SGD, "step", tiny_sgd_step)
        fast = gradients_of_a_step([], 0.0)
        plain = gradients_of_a_step([TWO_BATCHES], 0.0)
    assert largest_difference(fast, plain) < 1e-5


def test_the_floor_counts_what_pytorch_counts():
    """PyTorch's counter of operations also sees the depthwise filters, 16 products for each of their
    outputs."""
    config = dlsgan.Config(resolution=32, channel_base=512, channel_max=32, latent_dim=16, mapping_layers=3)
    model = dlsgan.build(config)
    channels = {r: dlsgan.channels_at(r, 512, 32) for r in (4, 8, 16, 32)}
    inputs = (torch.randn(2, 16), model.generator), (torch.randn(2, 3, 32, 32), model.discriminator)
    filters = (
        sum(r * r * channels[r] for r in (8, 16, 32)),
        sum(((r + 1) ** 2 + (r // 2) ** 2) * channels[r] for r in (8, 16, 32)),
    )
    for (x, network), expected, outputs in zip(inputs, flops.forward_flops(config), filters, strict=True):
        with FlopCounterMode(display=False) as counter:
            network(x)
        assert counter.get_total_flops() == 2 * (expected + 2 * 16 * outputs)


def test_every_section_of_the_speeds_and_their_table(monkeypatch):
    write_celeba(Path("c"), 40)
    small = {key: TINY[key] for key in TINY if key != "threads"}
    for name, changes in dlsgan.PRESETS.items():
        monkeypatch.setitem(dlsgan.PRESETS, name, changes | small)
    monkeypatch.setattr(benchmark, "gemm_peak", lambda: 1e9)
    monkeypatch.setattr(benchmark, "alone", lambda settings, threads: benchmark.measure(settings, threads, 1))
    monkeypatch.setattr(benchmark, "startup", lambda settings, every=1: {"seconds": 1.5, "GiB": 0.25 * every})
    bench = {
        "resolution": 16,
        "channel_base": 164,
        "channel_max": 10,
        "latent_dim": 4,
        "mapping_layers": 1,
        "batch_size": 2,
    }
    Path("results").mkdir()
    path = Path("results/speed-avx2.json")
    path.write_text(json.dumps({"machine": "another", "floor, 9 threads": {}}))  # is not mixed with this one
    found = benchmark.main([], [1], "c", bench, path)
    levers = found["levers, 1 threads: without it, with it, gain"]
    assert levers.keys() == {*plain_forms.LEVERS, "all of these", "R1 every 16th step"}
    assert all(math.isfinite(x) and x > 0 for row in levers.values() for x in row.values())
    assert json.loads(path.read_text()) == found and "floor, 9 threads" not in found
    benchmark.main(["startup"], [1], "", bench, path)  # one section anew, the others stay
    assert json.loads(path.read_text()).keys() == found.keys()
    monkeypatch.setattr(results_table, "FOLDER", Path("results/runs"))
    lines = results_table.speeds().splitlines()[2:-2]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    names = ["128x128, batch 8", "128x128, batch 32", "cartoon", "mnist", "celeba64"]
    names += [f"{preset}, batch 4" for preset in ("cartoon", "mnist", "celeba64", "celeba")]
    names += ["128x128, d = 256", "celeba64", "cartoon", "celeba64"]
    assert [row[0].split(":")[0] for row in rows] == names
    kinds = rows[-1][0].removeprefix("celeba64: share of ").split(", ")
    assert kinds == ["data", "averaged weights", "optimisers", "R1", "evaluations"]
    assert len(rows[-1][1].split(", ")) == len(kinds)
    assert results_table.speeds().endswith("cartoon 1.5 s, 0.25 GiB.")


def test_the_share_of_the_optimisers_is_that_of_whole_updates(monkeypatch):
    """Adam leaves out weights without gradient, in no time at all."""
    whole = []
    step = torch.optim.Adam.step

    def watched(self, closure=None):
        whole.append(all(p.grad is not None for group in self.param_groups for p in group["params"]))
        step(self)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    found = benchmark.shares(tiny(), repeats=2)
    assert whole and all(whole)
    assert found.keys() == {"data", "averaged weights", "optimisers", "R1", "evaluations"}


def test_a_benchmark_without_threads_is_one_line():
    with pytest.raises(dlsgan.UserError, match="--threads 0: at least 1"):
        benchmark.main(["floor"], [1, 0], path=Path("speed.json"))
    assert not Path("speed.json").exists()


def weight(c_out, c_in, size):
    return torch.ones(c_out, c_in, size, size)


@pytest.mark.parametrize(
    "kind, call",
    [
        ("filters", lambda x, square: dlsgan.LowPass(1)(x)),
        ("convolutions", lambda x, square: F.conv2d(x, weight(64, 32, 3))),
        ("convolutions", lambda x, square: F.conv_transpose2d(x, weight(32, 32, 3), stride=2)),
        ("convolutions", lambda x, square: F.conv2d(x, weight(256, 32, 1))),
        ("matrix products", lambda x, square: square @ square),
        ("everything else", lambda x, square: square.exp()),
    ],
)
def test_kernels_are_told_apart(kind, call):
    x = torch.randn(16, 32, 64, 64)
    square = torch.randn(1000, 1000)
    shares = flops.kernels(lambda: [call(x, square) for _ in range(5)])  # the first may wait for memory
    assert max(shares, key=shares.get) == kind and sum(shares.values()) == pytest.approx(1)


def link_images(root, n):
    """CelebA's layout with n links to two images of 64x64 pixels, the first 20 for testing."""
    folder = root / "img_align_celeba"
    folder.mkdir(parents=True)
    for i in range(2):
        image = Image.fromarray(np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8))
        image.save(root / f"{i}.png")
    for i in range(n):
        (folder / f"{i:06d}.png").symlink_to((root / f"{i % 2}.png").absolute())
    rows = [f"{i:06d}.png {2 * (i < 20)}" for i in range(n)]
    (root / "list_eval_partition.txt").write_text("\n".join(rows) + "\n")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_does_not_grow_with_the_data_set():
    """2,000 images of 64x64 pixels are 23 MiB; they stay in the file that is mapped into memory."""
    settings = TINY | {"dataset": "celeba", "resolution": 64}
    mebibytes = {}
    for name, n in (("few", 100), ("many", 2000)):
        link_images(Path(name), n)
        mebibytes[name] = 1024 * benchmark.startup(settings | {"data_dir": name})["GiB"]
    assert 50 < mebibytes["few"] and mebibytes["many"] < mebibytes["few"] + 10
