"""What the commands of the experiments share: options, one line for a mistake, the machine, and where results
are kept."""

import argparse
import contextlib
import json
import platform
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

import dlsgan

RESULTS = Path(__file__).parents[1] / "results"
FAULTS = (dlsgan.UserError, OSError, MemoryError, torch.OutOfMemoryError)  # those of dlsgan.main


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A command line that shows the module's docstring as it stands."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def image_parser(doc: str | None) -> argparse.ArgumentParser:
    """The same with the options that all experiments on images have (see training.configure)."""
    result = parser(doc)
    result.add_argument(
        "--dataset", default="cartoon", help="cartoon, mnist or celeba (at 64x64); default: cartoon"
    )
    result.add_argument("--data-dir", default="", help="where the data is (default: data/DATASET)")
    result.add_argument(
        "--images", type=int, default=24_000, help="budget: training images in all (default: 24000)"
    )
    result.add_argument("--seed", type=int, default=0)
    result.add_argument("--device", default="cpu", help="cpu, cuda, mps or auto (default: cpu)")
    result.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    return result


@contextlib.contextmanager
def one_line(name: str) -> Iterator[None]:
    """Ends the program with one line, "name: what is wrong", and exit code 2 on one of FAULTS; on Ctrl-C with
    "name: stopped" and 130."""
    try:
        yield
    except FAULTS as error:
        print(f"{name}: {' '.join(str(error).split()) or type(error).__name__}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{name}: stopped", file=sys.stderr)
        sys.exit(130)


def processor() -> str:
    """The processor's name, number of cores and vector instructions, as far as the system tells."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if lines:
            name = f"{len(lines)} cores of {lines[0].split(':')[1].strip()}"
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def write_json(path: Path, result: dict) -> None:
    """Keeps a result, a value a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def read_runs(path: Path) -> dict:
    """The kept runs of an experiment by their names; none if nothing is kept."""
    return json.loads(path.read_text()) if path.exists() else {}


def write_runs(path: Path, runs: dict, order: Iterable[str]) -> None:
    """Keeps runs by their names, in this order, a run a line."""
    lines = [f" {json.dumps(name)}: {json.dumps(runs[name])}" for name in order if name in runs]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")
