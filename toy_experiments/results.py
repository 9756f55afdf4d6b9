"""Keeps the measures of finished runs as small JSON files, and prints them as the table of the README.

    python -m toy_experiments.results add runs/cartoon "python dlsgan.py"     keeps toy_experiments/results/runs/cartoon.json
    python -m toy_experiments.results table                                   prints the table in Markdown
"""

import argparse
import dataclasses
import json
import platform
import sys
from pathlib import Path

import dlsgan

FOLDER = Path(__file__).parent / "results" / "runs"
COLUMNS = {
    "L_enc": ("l_enc", ".2f"),
    "active": ("active", "d"),
    "spread": ("spread", ".2f"),
    "PSNR (gain), generated": ("psnr_generated", ".1f", "gain_generated"),
    "SSIM": ("ssim_generated", ".2f"),
    "PSNR (gain), test": ("psnr_test", ".1f", "gain_test"),
    "SSIM, test": ("ssim_test", ".2f"),
    "images": ("images", ",d"),
    "minutes": ("minutes", ".1f"),
}


def processor() -> str:
    """The processor's name and number of cores, as far as the system tells."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = f"{len(lines)} cores of {lines[0].split(':')[1].strip()}"
    return name


def add(run: str, command: str) -> Path:
    """Writes results/runs/NAME.json from the last evaluation of a run; NAME is that of the run's folder."""
    config, _ = dlsgan.read_checkpoint(run)
    lines = [json.loads(text) for text in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "l_enc" in line][-1]
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("data_dir", "out", "device")}
    result = {"command": command, "machine": processor(), "minutes": round(last["seconds"] / 60, 2)}
    result |= {"latent_dim": config.latent_dim, "settings": settings, "measures": last}
    path = FOLDER / f"{Path(run).resolve().name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def table(names: list[str] | None = None) -> str:
    """The kept results as a Markdown table, one row a run."""
    rows = ["| run | " + " | ".join(COLUMNS) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    for path in sorted(FOLDER.glob("*.json")):
        if names and path.stem not in names:
            continue
        result = json.loads(path.read_text())
        values = result["measures"] | {"minutes": result["minutes"]}
        cells = []
        for key, form, *gain in COLUMNS.values():
            cell = format(values[key], form)
            cell += f" of {result['latent_dim']}" if key == "active" else ""
            cells.append(cell + (f" ({values[gain[0]]:+.1f})" if gain else ""))
        rows.append(f"| `{result['command']}` | " + " | ".join(cells) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    adding = commands.add_parser("add")
    adding.add_argument("run")
    adding.add_argument("command")
    commands.add_parser("table")
    given = parser.parse_args()
    try:
        print(add(given.run, given.command) if given.what == "add" else table())
    except dlsgan.UserError as error:
        print(f"results: {error}", file=sys.stderr)
        sys.exit(2)
