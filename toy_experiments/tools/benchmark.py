"""What a training step costs, what the machine could do at best, and what each shortcut in dlsgan.py is worth.

    python -m toy_experiments.speed                                    everything: 25 minutes on two idle CPU cores
    python -m toy_experiments.speed floor levers --threads 1           two of the sections below
    python -m toy_experiments.speed shares --data-dir data/celeba      with the loading of real CelebA files

floor    images/s at 128x128, 256,256,256,128,64,32 channels, d = 256, batch 8 and 32, beside the floor: the operations that
         the convolutions and matrix products of this architecture need, over the machine's best speed in a matrix product
levers   the same step with one shortcut switched off, interleaved with the step as it is (ratios of medians; without R1)
growth   how the cost grows with resolution, batch and d
shares   of a step with its data: data, averaged weights, optimisers, R1; of a whole run: evaluations with their figures;
         and of a step without R1: kinds of kernels, by PyTorch's profiler
presets  images/s of each preset with the shortcuts of naive.py off and on, interleaved; lazy R1 and keep_memory on in both
startup  seconds from the command to the end of the first step; memory of the process without mapped files after 50 steps and
         an evaluation, with all CelebA images and with a tenth of them

Each section goes to results/speed.json as soon as it is measured. A machine that does anything else meanwhile, above all on
two threads, gives other numbers; `levers` and `presets` suffer least. The plain forms are in naive.py. A ratio to the floor
below 1 is possible: then a convolution is faster than the matrix product, or needs fewer operations than the formula.

Tried and left out of dlsgan.py (time of an average step with / without it; five to seven interleaved steps on a machine that
was not idle, where repeats differed by 10%, so none of these is a finding):
  filters as an autograd function with the adjoint as gradient: 1.07 and 1.10 on two threads, 0.98 on one; R1 alone 0.78
  that and a leaky ReLU that passes no zeros to the forward graph: 1.09 and 0.99 on two threads, 1.02 on one
  demodulation carried on into the next layer's style: 0.98 and 0.97, for two more values through every block
  weights of the up-sampling layers stored transposed: 1.03 (one thread, batch 4); weights not in channels_last: 1.04
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import dlsgan
from toy_experiments import naive
from toy_experiments.floor import gemm_peak, kernels, memory, step_flops
from toy_experiments.results import processor

BENCH = {"resolution": 128, "width": 0.5, "latent_dim": 256, "mapping_layers": 8, "batch_size": 8}
KEPT = Path(__file__).parent / "results" / "speed.json"
SECTIONS = ("floor", "levers", "growth", "shares", "presets", "startup")


class Stepper:
    """A model that takes steps on fixed images, with the named levers off; R1 every `r1_every` steps (0: never)."""
    def __init__(self, config: dlsgan.Config, off: tuple[str, ...] = (), r1_every: int = 16):
        torch.manual_seed(0)
        self.config, self.off, self.r1_every = config, off, r1_every
        self.model = dlsgan.build(config).to(memory_format=torch.channels_last)
        channels = 1 if config.dataset == "mnist" else 3
        self.real = torch.rand(config.batch_size, channels, config.resolution, config.resolution)
        self.real = self.real.mul_(2).sub_(1).contiguous(memory_format=torch.channels_last)
        naive.change_model(self.model, off)
        with naive.without(off):
            self.optimizers = dlsgan.make_optimizers(self.model, config.lr)
        self.rng = torch.Generator().manual_seed(0)

    def step(self, penalty: float) -> float:
        """Seconds of one step, with this weight of R1 (0: without R1)."""
        start = time.perf_counter()
        with naive.without(self.off):
            dlsgan.train_step(self.model, self.optimizers, self.real.clone(), self.rng, penalty_weight=penalty)
        return time.perf_counter() - start

    def cost(self, repeats: int) -> float:
        """Seconds of an average step, of which every 16th carries R1: medians of plain and of R1 steps."""
        self.step(0.0), self.step(1.0)
        plain = statistics.median(self.step(0.0) for _ in range(repeats))
        return (15 * plain + statistics.median(self.step(1.0) for _ in range(max(2, repeats // 3)))) / 16


def compare(a: Stepper, b: Stepper, rounds: int) -> dict:
    """Interleaved steps: images/s of a and of b, and how many times faster b is (all from medians of plain and R1 steps)."""
    costs = []
    for stepper in (a, b):
        stepper.step(0.0), stepper.step(1.0)
    pairs = [(a.step(0.0), b.step(0.0)) for _ in range(rounds)]
    with_r1 = [(a.step(1.0), b.step(1.0)) for _ in range(3)] if a.r1_every else pairs
    for i, stepper in enumerate((a, b)):
        share = 1 / max(1, stepper.r1_every)
        plain, r1 = (statistics.median(pair[i] for pair in times) for times in (pairs, with_r1))
        costs.append((1 - share) * plain + share * r1)
    n = a.config.batch_size
    return {"images/s off": n / costs[0], "on": n / costs[1], "gain": costs[0] / costs[1]}


def measure(settings: dict, threads: int, repeats: int) -> dict:
    """Images/s, milliseconds a step, their ratio to the floor, and the memory in GiB that training adds at its peak."""
    dlsgan.keep_memory()
    torch.set_num_threads(threads)
    before, peak, config = memory("VmHWM"), gemm_peak(), dlsgan.Config(**settings)
    seconds, floor = Stepper(config).cost(repeats), step_flops(config) / peak
    row = {"images/s": config.batch_size / seconds, "ms/step": 1000 * seconds, "floor ms": 1000 * floor}
    return row | {"step/floor": seconds / floor, "GiB": memory("VmHWM") - before, "GFLOP/s at best": peak / 1e9}


def alone(settings: dict, threads: int, repeats: int = 5) -> dict:
    """measure in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (settings, threads, repeats))


def shares(config: dlsgan.Config, repeats: int = 9) -> dict:
    """Shares of a step, its data and averaging included, and of a whole run."""
    def timed(function: Callable) -> float:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])
    stepper = Stepper(config)
    model, seconds = stepper.model, stepper.cost(repeats)
    images, test = dlsgan.LOADERS[config.dataset](config)
    images.max()  # the first pass, which reads the decoded images from disk
    stream = dlsgan.batches(images, config.batch_size, 0, 0, config.flip)
    weights, average = ([p.detach().clone() for p in model.parameters()] for _ in range(2))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)  # until the next training step
    parts = {
        "data": timed(lambda: dlsgan.to_float(next(stream))),
        "averaged weights": timed(lambda: torch._foreach_lerp_(average, weights, 0.001)),
        "optimisers": timed(lambda: [optimizer.step() for optimizer in stepper.optimizers]),
        "R1": (timed(lambda: stepper.step(1.0)) - timed(lambda: stepper.step(0.0))) / 16,
    }
    seconds += parts["data"] + parts["averaged weights"]
    steps = -(-config.images // config.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        def evaluation() -> None:
            line = dlsgan.evaluate(model, dlsgan.to_float(test[: dlsgan.EVALUATED]), config.batch_size) | {"images": 8}
            dlsgan.report(model, dlsgan.to_float(test[:64]), [line], Path(folder) / "report.png", "")
        count, repeats = -(-steps // max(50, min(2000, -(-steps // 8)))), 2  # evaluations in a run of dlsgan.train
        evaluating = count * timed(evaluation)
    shares_of_step = {name: value / seconds for name, value in parts.items()}
    return shares_of_step | {"evaluations": evaluating / (steps * seconds + evaluating)}


def startup(settings: dict, every: int = 1) -> dict:
    """Seconds from the command to the end of the first step, data decoded before, and GiB of memory after 50 steps and an
    evaluation. every: 10 hides all but every tenth image of CelebA from the program."""
    settings = settings | {"images": 50 * settings.get("batch_size", dlsgan.Config.batch_size), "device": "cpu"}
    code = f"import json, sys, time; sys.path.insert(0, {str(Path(__file__).parents[1])!r}); import dlsgan; " \
           "steps = dlsgan.train(dlsgan.Config(**json.loads(sys.argv[1]))); next(steps); t = time.time(); list(steps); " \
           "from toy_experiments.floor import memory; print(t, memory('RssAnon'))"
    with tempfile.TemporaryDirectory() as folder:
        if every > 1:
            Path(folder, "img_align_celeba").mkdir()
            root = Path(settings["data_dir"]).absolute()
            for path in [*root.glob("*.txt"), *sorted(root.glob("img_align_celeba/*"))[::every]]:
                Path(folder, path.relative_to(root)).symlink_to(path)
            settings["data_dir"] = folder
        environment = os.environ | ({"XDG_CACHE_HOME": folder} if every > 1 else {})
        for _ in range(2):  # the first decodes
            start, command = time.time(), [sys.executable, "-c", code, json.dumps(settings)]
            done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
            end, own = done.stdout.split()[-2:]
    return {"seconds": float(end) - start, "GiB": float(own)}


def show(title: str, rows: dict[str, dict]) -> None:
    """A table with one row per measurement."""
    columns = list(next(iter(rows.values())))
    print(f"\n{title}\n{'':44}" + "".join(f"{name:>17}" for name in columns))
    for name, row in rows.items():
        print(f"{name:44}" + "".join(f"{row[column]:17.3f}" for column in columns), flush=True)


def main(sections: list[str], threads: list[int], data_dir: str = "", bench: dict = BENCH, path: Path = KEPT) -> dict:
    """Measures and returns the sections, and keeps them in a file beside what it holds from the same machine."""
    dlsgan.keep_memory()
    celeba64 = dlsgan.PRESETS["celeba64"] | {"data_dir": data_dir}
    runs = {"cartoon": {}} | ({"celeba64": celeba64} if data_dir else {})
    if data_dir:
        dlsgan.load_celeba(dlsgan.Config(**celeba64))  # what is wrong with it is said now
    wanted, results = sections or SECTIONS, {"machine": processor(), "torch": torch.__version__}
    kept = json.loads(path.read_text()) if path.exists() else {}
    results = kept if results.items() <= kept.items() else results

    def keep(name: str, rows: dict[str, dict]) -> None:
        show(name, rows)
        results[name] = rows
        path.write_text(json.dumps(results, indent=1) + "\n")
    for n in threads:
        torch.set_num_threads(n)
        if "floor" in wanted:
            keep(f"floor, {n} threads", {f"batch {b}": alone(bench | {"batch_size": b}, n) for b in (8, 32)})
        if "levers" in wanted:
            rows, base = {}, dlsgan.Config(**bench)
            for name, off in ({name: (name,) for name in naive.LEVERS} | {"all of these": tuple(naive.LEVERS)}).items():
                rows[name] = compare(Stepper(base, off, 0), Stepper(base, (), 0), 7)
            rows["R1 every 16th step"] = compare(Stepper(base, (), 1), Stepper(base, (), 16), 17)
            keep(f"levers, {n} threads: without it, with it, gain", rows)
        if "growth" in wanted:
            small = bench | {"latent_dim": 32, "resolution": 32}
            cases = [small | {"resolution": r} for r in (32, 64, 128)]
            cases += [small | {"batch_size": b} for b in (16, 32)] + [small | {"latent_dim": d} for d in (256, 512)]
            keys = ("resolution", "batch_size", "latent_dim")
            keep(f"growth, {n} threads", {", ".join(f"{k} {c[k]}" for k in keys): alone(c, n) for c in cases})
        if "shares" in wanted:
            keep(f"shares, {n} threads", {name: shares(dlsgan.Config(**c)) for name, c in runs.items()})
            steps = {"128x128, d = 256": Stepper(dlsgan.Config(**bench)), "celeba64": Stepper(dlsgan.Config(**celeba64))}
            keep(f"kernels, {n} threads", {name: kernels(partial(stepper.step, 0.0)) for name, stepper in steps.items()})
        if "presets" in wanted:
            rows = {}
            for name in ("cartoon", "mnist", "celeba64", "celeba"):
                c = dlsgan.Config(**dlsgan.PRESETS[name] | ({"batch_size": 4} if name == "celeba" else {}))
                rows[f"{name}, batch {c.batch_size}"] = compare(Stepper(c, tuple(naive.LEVERS)), Stepper(c), 9)
            keep(f"presets, {n} threads: before, after, gain", rows)
    if "startup" in wanted:
        fewer = {f"{name}, a tenth of the images": startup(c, 10) for name, c in runs.items() if c}
        keep("startup", {name: startup(c) for name, c in runs.items()} | fewer)
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help=f"any of {', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="CPU threads (default: 1 2)")
    parser.add_argument("--data-dir", default="", help="CelebA, for the loading of real files")
    given = parser.parse_args()
    if unknown := set(given.sections) - set(SECTIONS):
        parser.error(f"unknown section {min(unknown)}: choose {', '.join(SECTIONS)}")
    try:
        main(**vars(given))
    except dlsgan.UserError as error:
        print(f"speed: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"kept in {KEPT}")
