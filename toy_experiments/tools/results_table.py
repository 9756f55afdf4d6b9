"""Keeps the measures of finished runs as small JSON files, and prints them as the table of the README.

    python -m toy_experiments.results add runs/cartoon "python dlsgan.py"     keeps toy_experiments/results/runs/cartoon.json
    python -m toy_experiments.results table                                   prints the table in Markdown
    python -m toy_experiments.results table --trials                          the same of short runs that tried settings
    python -m toy_experiments.results compare celeba64 celeba64-no-scale      prints runs side by side, one a column
    python -m toy_experiments.results speed                                   prints the README's table of speeds

`compare` reads what `toy_experiments.export` measured of trained models, on more images than an evaluation in training.
"""

import argparse
import dataclasses
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import dlsgan

FOLDER = Path(__file__).parent / "results" / "runs"
TRIALS = FOLDER.with_name("trials")
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

COMPARED = {
    "real images seen": ("images", ",d"),
    "L_enc": ("l_enc", ".3f"),
    "PSNR, generated images": ("psnr_generated", ".2f"),
    "gain over the mean image": ("gain_generated", "+.2f"),
    "SSIM, generated images": ("ssim_generated", ".3f"),
    "PSNR, test images": ("psnr_test", ".2f"),
    "gain over the mean face": ("gain_test", "+.2f"),
    "SSIM, test images": ("ssim_test", ".3f"),
    "spread, generated / real": ("spread", ".2f"),
    "sliced Wasserstein distance of samples": ("swd", ".1f"),
    "the same of other test images": ("swd_test", ".1f"),
    "FID of samples": ("fid", ".1f"),
    "mean logit of D, training images": ("logits_train", "+.2f"),
    "mean logit of D, test images": ("logits_test", "+.2f"),
    "mean logit of D, generated images": ("logits_generated", "+.2f"),
    "entropy of z * s, nats": ("entropy", ".1f"),
    "active dimensions (v > 1/2)": ("active", "d"),
    "effective dimensions": ("effective", ".1f"),
}


def processor() -> str:
    """The processor's name and number of cores, as far as the system tells."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = f"{len(lines)} cores of {lines[0].split(':')[1].strip()}" if lines else name
    return name


def evaluations(run: str | Path) -> list[dict]:
    """The lines of a run's metrics.jsonl that hold an evaluation."""
    path = Path(run) / "metrics.jsonl"
    with dlsgan.explain(f"{path} cannot be read"):
        lines = [json.loads(text) for text in path.read_text().splitlines()]
        if not (found := [line for line in lines if "l_enc" in line]):
            raise ValueError("the run has not come to its first evaluation")
        return found


def curves(lines: list[dict]) -> dict[str, list]:
    """Evaluations as one list a measure, to five digits and without v: what figures draw, in a few kilobytes."""
    keys = [key for key, value in lines[-1].items() if not isinstance(value, list)]
    return {key: [float(f"{line[key]:.5g}") if key != "images" else line[key] for line in lines] for key in keys}


def load(name: str) -> dict:
    """The kept results/runs/NAME.json."""
    with dlsgan.explain(f"{FOLDER / name}.json cannot be read"):
        return json.loads((FOLDER / f"{name}.json").read_text())


def add(run: str, command: str, name: str = "", folder: Path | None = None, **more: dict) -> Path:
    """Writes NAME.json in results/runs (or another folder) from the evaluations of a run, and whatever else is to stand
    there; NAME is that of the run's folder, if none is given."""
    config, _ = dlsgan.read_checkpoint(run)
    lines = evaluations(run)
    last = lines[-1]
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("data_dir", "out", "device")}
    result = {"command": command, "machine": processor(), "minutes": round(last["seconds"] / 60, 2)}
    result |= {"latent_dim": config.latent_dim, "settings": settings, "measures": last} | more
    text = json.dumps(result | {"curves": {}}, indent=1).replace('"curves": {}', f'"curves": {json.dumps(curves(lines))}')
    path = (folder or FOLDER) / f"{name or Path(run).resolve().name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    return path


def table(names: list[str] | None = None, folder: Path | None = None) -> str:
    """The kept results as a Markdown table, one row a run."""
    rows = ["| run | " + " | ".join(COLUMNS) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    for path in sorted((folder or FOLDER).glob("*.json")):
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


def compare(names: list[str]) -> str:
    """Exported models side by side in Markdown, and in which settings they differ."""
    columns, settings = [], []
    for name in names:
        result = load(name)
        if "exported" not in result:
            raise dlsgan.UserError(f"{name} was not measured by toy_experiments.export")
        columns.append(result["exported"])
        settings.append(result["settings"])
    rows = ["| | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for title, (key, form) in COMPARED.items():
        if any(key in column for column in columns):
            cells = [format(column[key], form) if key in column else "-" for column in columns]
            rows.append(f"| {title} | " + " | ".join(cells) + " |")
    differ = [key for key in settings[0] if any(other.get(key) != settings[0][key] for other in settings)]
    values = [f"{key} ({', '.join(str(other.get(key)) for other in settings)})" for key in differ]
    return "\n".join([*rows, "", f"Settings that differ: {'; '.join(values) or 'none'}."])


def speeds() -> str:
    """What `toy_experiments.speed` kept in results/speed.json, in Markdown: a column for each number of threads."""
    kept = json.loads((FOLDER.parent / "speed.json").read_text())
    threads = [name.removeprefix("floor, ") for name in kept if name.startswith("floor")]
    rows = [f"| | {' | '.join(threads)} |".replace("1 threads", "1 thread"), "|---" * (1 + len(threads)) + "|"]
    def add_rows(key: str, text: str, cell: Callable[[dict], str]) -> None:
        sections = [kept[key.format(n)] for n in threads]
        for name in sections[0]:
            rows.append(f"| {name}: {text} | {' | '.join(cell(section[name]) for section in sections)} |")
    add_rows("floor, {}", "images/s, time / floor, memory that training adds",
             lambda row: f"{row['images/s']:.1f}, {row['step/floor']:.2f}, {row['GiB']:.1f} GiB")
    add_rows("presets, {}: before, after, gain", "images/s of the plain form, of this one; gain",
             lambda row: f"{row['images/s off']:.1f}, {row['on']:.1f}; {row['gain']:.2f}")
    for key in ("kernels, {}", "shares, {}"):
        add_rows(key, "share of " + ", ".join(next(iter(kept[key.format(threads[0])].values()))),
                 lambda row: ", ".join(f"{share:.1%}" for share in row.values()))
    first = (f"{name} {row['seconds']:.1f} s, {row['GiB']:.2f} GiB" for name, row in kept["startup"].items())
    text = f"Seconds from the command to the end of the first step, and memory after 50: {'; '.join(first)}."
    return "\n".join([*rows, "", text])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    adding = commands.add_parser("add")
    adding.add_argument("run")
    adding.add_argument("command")
    for command in (adding, commands.add_parser("table")):
        command.add_argument("--trials", action="store_const", const=TRIALS, help="in results/trials, not results/runs")
    commands.add_parser("speed")
    commands.add_parser("compare").add_argument("names", nargs="+", help="names of exported models")
    given = parser.parse_args()
    try:
        if given.what == "add":
            print(add(given.run, given.command, folder=given.trials))
        else:
            with dlsgan.explain("results/speed.json lacks a section, see python -m toy_experiments.speed"):
                text = speeds() if given.what == "speed" else ""
            print(text or (table(folder=given.trials) if given.what == "table" else compare(given.names)))
    except dlsgan.UserError as error:
        print(f"results: {error}", file=sys.stderr)
        sys.exit(2)
