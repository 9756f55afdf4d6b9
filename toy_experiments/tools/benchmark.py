"""What a training step costs, what the machine could do at best, and what each shortcut in dlsgan.py is
worth.

    python -m toy_experiments.tools.benchmark                              all: 25 minutes, two idle CPU cores
    python -m toy_experiments.tools.benchmark floor levers --threads 1     two of the sections below
    python -m toy_experiments.tools.benchmark shares --data-dir data/celeba    with real CelebA files

floor    images/s of the small presets, and at 128x128, 256,256,256,128,64,32 channels, d = 256, batch 8 and
         32, beside the floor: the operations that the convolutions and matrix products of this architecture
         need, over the machine's best speed in a matrix product
levers   the same step with one shortcut switched off, interleaved with the step as it is (ratios of medians;
         without R1)
growth   how the cost grows with resolution, batch and d
shares   of a step with its data: data, averaged weights, optimisers, R1; of a whole run: evaluations with
         their figures; and of a step without R1: kinds of kernels, by PyTorch's profiler
presets  images/s of each preset with the shortcuts of plain_forms.py off and on, interleaved; lazy R1 and
         keep_memory on in both
startup  seconds from the command to the end of the first step; memory of the process without mapped files
         after 50 steps and an evaluation, with all CelebA images and with a tenth of them

Each section goes to results/speed-avx2.json, or -avx512.json, as soon as it is measured. A machine that does
anything else meanwhile, above all on two threads, gives other numbers; `levers` and `presets` suffer least.
The plain forms are in plain_forms.py. A ratio to the floor below 1 is possible: then a convolution is faster
than the matrix product, or needs fewer operations than the formula.

Tried and left out of dlsgan.py (time of an average step with / without it; five to seven interleaved steps on
a machine that was not idle, where repeats differed by 10%, so none of these is a finding):
  filters as an autograd function with the adjoint as gradient: 1.07 and 1.10 on two threads, 0.98 on one; R1
    alone 0.78
  that and a leaky ReLU that passes no zeros to the forward graph: 1.09 and 0.99 on two threads, 1.02 on one
  demodulation carried on into the next layer's style: 0.98 and 0.97, for two more values through every block
  weights of the up-sampling layers stored transposed: 1.03 (one thread, batch 4)
  weights not in channels_last: 1.04
"""

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
from torch import Tensor

import dlsgan
from toy_experiments.shared import cli
from toy_experiments.shared.cli import RESULTS
from toy_experiments.tools import plain_forms
from toy_experiments.tools.flops import gemm_peak, kernels, memory, step_flops

BENCH = {
    "resolution": 128,
    "channel_base": 4096,
    "channel_max": 256,
    "latent_dim": 256,
    "mapping_layers": 8,
    "batch_size": 8,
}
KEPT = RESULTS / f"speed-{torch.backends.cpu.get_cpu_capability().lower()}.json"  # on this machine


class Stepper:
    """A model that takes steps on fixed images, with the named levers off; R1 every `r1_every` steps (0:
    never)."""

    def __init__(self, config: dlsgan.Config, off: tuple[str, ...] = (), r1_every: int = 16):
        torch.manual_seed(0)
        self.config = config
        self.off = off
        self.r1_every = r1_every
        self.model = dlsgan.build(config).to(memory_format=torch.channels_last)
        channels = dlsgan.image_channels(config)
        real = torch.rand(config.batch_size, channels, config.resolution, config.resolution)
        self.real = real.mul_(2).sub_(1).contiguous(memory_format=torch.channels_last)
        plain_forms.change_model(self.model, off)
        with plain_forms.without(off):
            self.optimizers = dlsgan.make_optimizers(self.model, config.lr)
        self.rng = torch.Generator().manual_seed(0)

    def step(self, penalty: float) -> float:
        """Seconds of one step, with this weight of R1 (0: without R1)."""
        start = time.perf_counter()
        with plain_forms.without(self.off):
            real = self.real.clone()
            dlsgan.train_step(self.model, self.optimizers, real, self.rng, penalty_weight=penalty)
        return time.perf_counter() - start

    def warm_up(self) -> None:
        """The first steps are slower."""
        self.step(0.0)
        self.step(1.0)

    def average(self, plain: list[float], with_r1: list[float]) -> float:
        """Seconds of an average step, from the medians of steps without and with R1."""
        if self.r1_every == 0:
            return statistics.median(plain)
        share = 1 / self.r1_every
        return (1 - share) * statistics.median(plain) + share * statistics.median(with_r1)

    def cost(self, repeats: int) -> float:
        """Seconds of an average step."""
        self.warm_up()
        plain = [self.step(0.0) for _ in range(repeats)]
        with_r1 = [self.step(1.0) for _ in range(max(2, repeats // 3))]
        return self.average(plain, with_r1)


def compare(a: Stepper, b: Stepper, rounds: int) -> dict:
    """Interleaved steps: images/s of a and of b, and how many times faster b is (all from medians of plain
    and R1 steps)."""
    steppers = (a, b)
    for stepper in steppers:
        stepper.warm_up()
    plain = [[stepper.step(0.0) for stepper in steppers] for _ in range(rounds)]
    with_r1 = []
    if a.r1_every:
        with_r1 = [[stepper.step(1.0) for stepper in steppers] for _ in range(3)]
    costs = []
    for i, stepper in enumerate(steppers):
        costs.append(stepper.average([times[i] for times in plain], [times[i] for times in with_r1]))
    n = a.config.batch_size
    return {"images/s off": n / costs[0], "on": n / costs[1], "gain": costs[0] / costs[1]}


def measure(settings: dict, threads: int, repeats: int) -> dict:
    """Images/s, milliseconds a step, their ratio to the floor, and the memory in GiB that training adds at
    its peak."""
    dlsgan.keep_memory()
    torch.set_num_threads(threads)
    config = dlsgan.Config(**settings)
    before = memory("VmHWM")
    peak = gemm_peak()
    seconds = Stepper(config).cost(repeats)
    floor = step_flops(config) / peak
    return {
        "images/s": config.batch_size / seconds,
        "ms/step": 1000 * seconds,
        "floor ms": 1000 * floor,
        "step/floor": seconds / floor,
        "GiB": memory("VmHWM") - before,
        "GFLOP/s at best": peak / 1e9,
    }


def alone(settings: dict, threads: int, repeats: int = 5) -> dict:
    """measure in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (settings, threads, repeats))


def timed(function: Callable, repeats: int) -> float:
    """Median seconds of a call, without the first."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def step_all(optimizers: tuple) -> None:
    for optimizer in optimizers:
        optimizer.step()


def evaluate_and_report(model: dlsgan.DLSGAN, test: Tensor, batch_size: int, folder: str) -> None:
    """What dlsgan.train does now and then."""
    line = dlsgan.evaluate(model, test, batch_size) | {"images": 8}
    dlsgan.report(model, test[:64], [line], Path(folder) / "report.png", "")


def shares(config: dlsgan.Config, repeats: int = 9) -> dict:
    """Shares of a step, its data and averaging included, and of a whole run."""
    stepper = Stepper(config)
    model = stepper.model
    seconds = stepper.cost(repeats)
    images, test = dlsgan.LOADERS[config.dataset](config)
    images.max()  # the first pass, which reads the decoded images from disk
    stream = dlsgan.batches(images, config.batch_size, 0, 0, config.flip)
    average = dlsgan.build(config).to(memory_format=torch.channels_last)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)  # until the next training step
    with_r1 = partial(stepper.step, 1.0)
    without_r1 = partial(stepper.step, 0.0)
    parts = {
        "data": timed(lambda: dlsgan.to_float(next(stream)), repeats),
        "averaged weights": timed(partial(dlsgan.average_weights, average, model, 10**6), repeats),
        "optimisers": timed(partial(step_all, stepper.optimizers), repeats),
        "R1": (timed(with_r1, repeats) - timed(without_r1, repeats)) / 16,
    }
    seconds += parts["data"] + parts["averaged weights"]
    result = {name: value / seconds for name, value in parts.items()}

    steps = -(-config.images // config.batch_size)
    evaluations = -(-steps // max(50, min(2000, -(-steps // 8))))  # in a run of dlsgan.train
    shown = dlsgan.to_float(test[: dlsgan.NUM_EVAL_IMAGES])
    with tempfile.TemporaryDirectory() as folder:
        one = partial(evaluate_and_report, model, shown, config.batch_size, folder)
        evaluating = evaluations * timed(one, 2)
    result["evaluations"] = evaluating / (steps * seconds + evaluating)
    return result


STARTUP = """
import json, sys, time
sys.path.insert(0, sys.argv[2])
import dlsgan
steps = dlsgan.train(dlsgan.Config(**json.loads(sys.argv[1])))
next(steps)
first = time.time()
list(steps)
from toy_experiments.tools.flops import memory
print(first, memory("RssAnon"))
"""


def link_some(data_dir: str, folder: str, every: int) -> None:
    """CelebA's tables and every so many of its images, as links in another folder."""
    root = Path(data_dir).absolute()
    Path(folder, "img_align_celeba").mkdir()
    for path in [*root.glob("*.txt"), *sorted(root.glob("img_align_celeba/*"))[::every]]:
        Path(folder, path.relative_to(root)).symlink_to(path)


def startup(settings: dict, every: int = 1) -> dict:
    """Seconds from the command to the end of the first step, data decoded before, and GiB of memory after 50
    steps and an evaluation. every: 10 hides all but every tenth image of CelebA from the program."""
    batch_size = settings.get("batch_size", dlsgan.Config.batch_size)
    settings = settings | {"images": 50 * batch_size, "device": "cpu"}
    environment = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        if every > 1:
            link_some(settings["data_dir"], folder, every)
            settings["data_dir"] = folder
            environment["XDG_CACHE_HOME"] = folder
        top = str(Path(__file__).parents[2])
        command = [sys.executable, "-c", STARTUP, json.dumps(settings), top]
        for _ in range(2):  # the first decodes
            start = time.time()
            done = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
            end, own = done.stdout.split()[-2:]
    return {"seconds": float(end) - start, "GiB": float(own)}


def show(title: str, rows: dict[str, dict]) -> None:
    """A table with one row per measurement."""
    columns = list(next(iter(rows.values())))
    print(f"\n{title}\n{'':44}" + "".join(f"{name:>17}" for name in columns))
    for name, row in rows.items():
        print(f"{name:44}" + "".join(f"{row[column]:17.3f}" for column in columns), flush=True)


# Sections, each {row: {column: number}}. bench: settings of the large model; runs: presets with their data.


def measure_floor(bench: dict, runs: dict[str, dict], threads: int) -> dict:
    cases = {f"128x128, batch {size}": bench | {"batch_size": size} for size in (8, 32)}
    cases |= {name: dlsgan.PRESETS[name] for name in ("cartoon", "mnist", "celeba64")}
    return {name: alone(settings, threads) for name, settings in cases.items()}


def measure_levers(bench: dict, runs: dict[str, dict], threads: int) -> dict:
    base = dlsgan.Config(**bench)
    levers = {name: (name,) for name in plain_forms.LEVERS}
    levers["all of these"] = tuple(plain_forms.LEVERS)
    rows = {}
    for name, off in levers.items():
        rows[name] = compare(Stepper(base, off, 0), Stepper(base, (), 0), 7)
    rows["R1 every 16th step"] = compare(Stepper(base, (), 1), Stepper(base, (), 16), 17)
    return rows


def measure_growth(bench: dict, runs: dict[str, dict], threads: int) -> dict:
    small = bench | {"latent_dim": 32, "resolution": 32}
    cases = [small | {"resolution": resolution} for resolution in (32, 64, 128)]
    cases += [small | {"batch_size": size} for size in (16, 32)]
    cases += [small | {"latent_dim": d} for d in (256, 512)]
    rows = {}
    for case in cases:
        title = ", ".join(f"{key} {case[key]}" for key in ("resolution", "batch_size", "latent_dim"))
        rows[title] = alone(case, threads)
    return rows


def measure_shares(bench: dict, runs: dict[str, dict], threads: int) -> dict:
    return {name: shares(dlsgan.Config(**settings)) for name, settings in runs.items()}


def measure_kernels(bench: dict, runs: dict[str, dict], threads: int) -> dict:
    settings = {"128x128, d = 256": bench, "celeba64": dlsgan.PRESETS["celeba64"]}
    steppers = {name: Stepper(dlsgan.Config(**values)) for name, values in settings.items()}
    return {name: kernels(partial(stepper.step, 0.0)) for name, stepper in steppers.items()}


def measure_presets(bench: dict, runs: dict[str, dict], threads: int) -> dict:
    rows = {}
    for name in ("cartoon", "mnist", "celeba64", "celeba"):
        config = dlsgan.Config(**dlsgan.PRESETS[name])
        if name == "celeba":
            config.batch_size = 4  # of 32, which takes minutes
        plain = Stepper(config, tuple(plain_forms.LEVERS))
        rows[f"{name}, batch {config.batch_size}"] = compare(plain, Stepper(config), 9)
    return rows


def measure_startup(runs: dict[str, dict]) -> dict:
    rows = {name: startup(settings) for name, settings in runs.items()}
    for name, settings in runs.items():
        if settings:  # not the cartoon preset, which has no files
            rows[f"{name}, a tenth of the images"] = startup(settings, 10)
    return rows


SECTIONS = {  # of the command line: {name of the section in the kept file: how it is measured}
    "floor": {"floor, {} threads": measure_floor},
    "levers": {"levers, {} threads: without it, with it, gain": measure_levers},
    "growth": {"growth, {} threads": measure_growth},
    "shares": {"shares, {} threads": measure_shares, "kernels, {} threads": measure_kernels},
    "presets": {"presets, {} threads: before, after, gain": measure_presets},
    "startup": {},  # not for each number of threads
}


def kept_results(path: Path) -> dict:
    """What the file holds, if it was measured on this machine with this PyTorch."""
    results = {"machine": cli.processor(), "torch": torch.__version__}
    kept = json.loads(path.read_text()) if path.exists() else {}
    return kept if results.items() <= kept.items() else results


def main(
    sections: list[str],  # of SECTIONS; none: all
    threads: list[int],
    data_dir: str = "",  # of CelebA
    bench: dict = BENCH,
    path: Path = KEPT,
) -> dict:
    """Measures and returns the sections, and keeps them in a file beside what it holds from the same
    machine."""
    unknown = sorted(set(sections) - set(SECTIONS))
    dlsgan.require(not unknown, f"unknown section {', '.join(unknown)}: choose {', '.join(SECTIONS)}")
    dlsgan.require(min(threads) >= 1, f"--threads {min(threads)}: at least 1 is needed")
    dlsgan.keep_memory()
    runs = {"cartoon": {}}
    if data_dir:
        runs["celeba64"] = dlsgan.PRESETS["celeba64"] | {"data_dir": data_dir}
        dlsgan.load_celeba(dlsgan.Config(**runs["celeba64"]))  # what is wrong with it is said now
    results = kept_results(path)
    measured = []
    for n in threads:
        for section in SECTIONS:
            if not sections or section in sections:
                for title, function in SECTIONS[section].items():
                    measured.append((n, title.format(n), partial(function, bench, runs, n)))
    if not sections or "startup" in sections:
        measured.append((threads[-1], "startup", partial(measure_startup, runs)))
    for n, title, function in measured:
        torch.set_num_threads(n)
        results[title] = function()
        show(title, results[title])
        cli.write_json(path, results)
    return results


if __name__ == "__main__":
    parser = cli.parser(__doc__)
    parser.add_argument("sections", nargs="*", help=f"any of {', '.join(SECTIONS)} (default: all)")
    threads_help = "CPU threads (default: 1 2)"
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help=threads_help)
    parser.add_argument("--data-dir", default="", help="CelebA, for the loading of real files")
    with cli.one_line("benchmark"):
        main(**vars(parser.parse_args()))
    print(f"kept in {KEPT}")
