"""Keeps the measures of finished runs as small JSON files, and prints them as the tables of the READMEs.

    python -m toy_experiments.tools.results_table add runs/cartoon "python dlsgan.py"
    python -m toy_experiments.tools.results_table judge runs/cartoon
    python -m toy_experiments.tools.results_table found
    python -m toy_experiments.tools.results_table table
    python -m toy_experiments.tools.results_table table --trials
    python -m toy_experiments.tools.results_table compare celeba64 celeba64-no-scale
    python -m toy_experiments.tools.results_table speed

`add` keeps toy_experiments/results/runs/cartoon.json; `judge` writes into it what all judges of
`toy_experiments.settings` say of the run, on 1,000 images. `found` prints the README's tables of judged runs
in Markdown, a row a setting, as mean and range over its seeds; `table` prints all kept runs at their last
evaluation, and with --trials short runs that tried settings; `compare` prints runs side by side, one a
column; `speed` prints the README's table of speeds. `compare` reads what `export_weights` measured of trained
models, on more images than an evaluation in training.
"""

import dataclasses
import json
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import dlsgan
from toy_experiments import settings
from toy_experiments.shared import cli
from toy_experiments.shared.cli import RESULTS

FOLDER = RESULTS / "runs"
TRIALS = RESULTS / "trials"
STRETCHES = ("", "second stretch", "third stretch", "fourth stretch")  # of training, by --init-from
COLUMNS = {
    "L_enc": ("l_enc", ".2f"),
    "live": ("active", "d"),
    "spread": ("spread", ".2f"),
    "PSNR (gain), generated": ("psnr_generated", ".1f", "psnr_gain_generated"),
    "SSIM": ("ssim_generated", ".2f"),
    "PSNR (gain), test": ("psnr_test", ".1f", "psnr_gain_test"),
    "SSIM, test": ("ssim_test", ".2f"),
    "images": ("images", ",d"),
    "minutes": ("minutes", ".1f"),
}

JUDGED = {
    "L_enc": ("l_enc", ".2f"),
    "live": ("active", ".2g"),
    "spread": ("spread", ".2f"),
    "generated, dB": ("psnr_gain_generated", "+.1f"),
    "test, dB": ("psnr_gain_test", "+.1f"),
    "distance": ("swd_ratio", ".2f"),
}

FOUND = {  # data set: heading of its table, the line that its rows begin with, and what is shown
    "cartoon": ("cartoon faces", "python dlsgan.py", "factors shown"),
    "mnist": ("digits", "python dlsgan.py --dataset mnist", "class kept"),
    "celeba": ("photographs", "python dlsgan.py --preset celeba64", "smile read"),
}

COMPARED = {
    "real images seen": ("images", ",d"),
    "L_enc": ("l_enc", ".3f"),
    "PSNR, generated images": ("psnr_generated", ".2f"),
    "gain over the mean image": ("psnr_gain_generated", "+.2f"),
    "SSIM, generated images": ("ssim_generated", ".3f"),
    "PSNR, test images": ("psnr_test", ".2f"),
    "gain over the mean test image": ("psnr_gain_test", "+.2f"),
    "SSIM, test images": ("ssim_test", ".3f"),
    "spread, generated / real": ("spread", ".2f"),
    "sliced Wasserstein distance of samples": ("swd", ".1f"),
    "the same of other test images": ("swd_test", ".1f"),
    "FID of samples": ("fid", ".1f"),
    "mean logit of D, training images": ("logits_train", "+.2f"),
    "mean logit of D, test images": ("logits_test", "+.2f"),
    "mean logit of D, generated images": ("logits_generated", "+.2f"),
    "entropy of z * s, nats": ("entropy", ".1f"),
    "live dimensions (v > 1/2)": ("active", "d"),
    "effective dimensions": ("effective", ".1f"),
}


def evaluations(run: str | Path) -> list[dict]:
    """The lines of a run's metrics.jsonl that hold an evaluation."""
    path = Path(run) / "metrics.jsonl"
    with dlsgan.explain(f"{path} cannot be read"):
        lines = [json.loads(text) for text in path.read_text().splitlines()]
        found = [line for line in lines if "l_enc" in line]
        dlsgan.require(found, "the run has not come to its first evaluation")
    return found


def curves(lines: list[dict]) -> dict[str, list]:
    """Evaluations as one list a measure, to five digits and without v: what figures draw, in a few
    kilobytes."""
    result = {}
    for key, value in lines[-1].items():
        if key == "images":
            result[key] = [line[key] for line in lines]
        elif not isinstance(value, list):
            result[key] = [float(f"{line[key]:.5g}") for line in lines]
    return result


def load(name: str) -> dict:
    """The kept results/runs/NAME.json."""
    with dlsgan.explain(f"{FOLDER / name}.json cannot be read"):
        return json.loads((FOLDER / f"{name}.json").read_text())


def write(path: Path, result: dict) -> None:
    """A result as JSON, a value a line, but the curves, which are many numbers, in one."""
    text = json.dumps(result | {"curves": {}}, indent=1)
    text = text.replace('"curves": {}', f'"curves": {json.dumps(result["curves"])}')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


def counted_on(result: dict, earlier: dict) -> dict:
    """The kept result of a run that started from the weights of an earlier one (--init-from): images,
    minutes, curves and machines of both together."""
    before = earlier["measures"]["images"]
    curves = {}
    for key, values in result["curves"].items():
        more = [value + before for value in values] if key == "images" else values
        curves[key] = earlier["curves"][key] + more
    machines = dict.fromkeys((*earlier["machine"].split(", then "), result["machine"]))
    return result | {
        "machine": ", then ".join(machines),
        "minutes": round(earlier["minutes"] + result["minutes"], 2),
        "stretches": earlier.get("stretches", 1) + 1,
        "measures": result["measures"] | {"images": before + result["measures"]["images"]},
        "curves": curves,
    }


def add(
    run: str,
    command: str,
    name: str = "",  # of the file: NAME.json; default: that of the run's folder
    folder: Path | None = None,  # default: results/runs
    after: str = "",  # name of the kept run whose weights it started from
    **more: dict,  # whatever else is to stand there
) -> Path:
    """Writes NAME.json from the evaluations of a run."""
    config, _ = dlsgan.read_checkpoint(run)
    lines = evaluations(run)
    last = lines[-1]
    of_the_machine = ("data_dir", "out", "device")
    kept = {k: v for k, v in dataclasses.asdict(config).items() if k not in of_the_machine}
    result = {
        "command": command,
        "machine": cli.processor(),
        "minutes": round(last["seconds"] / 60, 2),
        "latent_dim": config.latent_dim,
        "settings": kept,
        "measures": last,
        **more,
        "curves": curves(lines),
    }
    if after:
        result = counted_on(result, load(after))
    path = (folder or FOLDER) / f"{name or Path(run).resolve().name}.json"
    write(path, result)
    return path


def judge(run: str, name: str = "") -> Path:
    """Writes into the kept NAME.json of a run what the judges of toy_experiments.settings say of it."""
    path = FOLDER / f"{name or Path(run).resolve().name}.json"
    result = load(path.stem)
    result["judged"] = settings.rounded(settings.judge(run))
    write(path, result)
    return path


def shown_command(command: str) -> str:
    """A kept command in Markdown: what can be pasted as code, a remark after a comma in brackets."""
    pasted, _, remark = command.partition(", ")
    return f"`{pasted}`" + (f" ({remark})" if remark else "")


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
            if key == "active":
                cell += f" of {result['latent_dim']}"
            if gain:
                cell += f" ({values[gain[0]]:+.1f})"
            cells.append(cell)
        rows.append(f"| {shown_command(result['command'])} | {' | '.join(cells)} |")
    return "\n".join(rows)


def mean_and_range(values: list[float], form: str) -> str:
    """ "0.12 (0.10 to 0.15)", or a single value if all look alike."""
    low = format(min(values), form)
    high = format(max(values), form)
    mean = format(round(sum(values) / len(values), 3), form)
    return low if low == high else f"{mean} ({low} to {high})"


def shown_content(judged: list[dict]) -> str:
    """What reconstructions of test images still show: factors of faces, the digit, or the smile."""
    if "kept" in judged[0]:
        return mean_and_range([100 * m["kept"] for m in judged], ".0f") + "%"
    if "recognised" in judged[0]:
        scores = [100 * m["recognised"]["from reconstructions"]["Smiling"] for m in judged]
        return mean_and_range(scores, ".0f") + "%"
    known = [settings.known_factors(m["r2_reconstructions"]) for m in judged]
    return mean_and_range(known, ".2g") + " of 8"


def row_name(command: str, line: str, stretches: int = 1) -> str:
    """What a kept command adds to a line of the README, in Markdown: "`--images 300000`", or its remark."""
    pasted, _, remark = command.partition(", ")
    options = pasted.removeprefix(line).partition("--init-from")[0]
    scaled = "--no-latent-scale" not in options
    options = options.replace("--no-latent-scale", "").strip()
    added = f"`{options}`" if options else ""
    names = [remark or added, STRETCHES[stretches - 1], "" if scaled else "without the scale"]
    return ", ".join(filter(None, names)) or "preset"


def found() -> str:
    """The judged runs as Markdown, a table for each kind of data and in it a row a setting, as mean and range
    over its seeds."""
    groups = defaultdict(list)
    for path in sorted(FOLDER.glob("*.json")):
        result = json.loads(path.read_text())
        if "judged" in result:
            groups[re.sub(r" --(seed|threads) \d+", "", result["command"])].append(result)
    in_order = sorted(groups.items(), key=lambda group: (group[1][0]["measures"]["images"], len(group[0])))
    return "\n\n".join(found_of(kind, in_order) for kind in FOUND)


def found_of(kind: str, groups: list[tuple[str, list[dict]]]) -> str:
    """One of the tables of `found`: (command, kept results) of each setting that has this data set."""
    title, line, content = FOUND[kind]
    headings = [f"{title}, `{line}`", "images", "seeds", *JUDGED, content]
    rows = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    for command, results in groups:
        if results[0]["settings"]["dataset"] != kind:
            continue
        judged = [result["judged"] for result in results]
        first = results[0]
        name = row_name(command, line, first.get("stretches", 1))
        cells = [name, f"{first['measures']['images']:,}", str(len(results))]
        cells += [mean_and_range([m[key] for m in judged], form) for key, form in JUDGED.values()]
        rows.append(f"| {' | '.join([*cells, shown_content(judged)])} |")
    return "\n".join(rows)


def different_settings(names: list[str]) -> str:
    """In which settings kept runs differ, and how."""
    kept = [load(name)["settings"] for name in names]
    texts = []
    for key, value in kept[0].items():
        values = [other.get(key) for other in kept]
        if any(other != value for other in values):
            texts.append(f"{key} ({', '.join(map(str, values))})")
    return "; ".join(texts) or "none"


def compare(names: list[str]) -> str:
    """Exported models side by side in Markdown, and in which settings they differ."""
    columns = []
    for name in names:
        result = load(name)
        dlsgan.require(
            "exported" in result, f"{name} was not measured by toy_experiments.tools.export_weights"
        )
        columns.append(result["exported"])
    rows = ["| | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for title, (key, form) in COMPARED.items():
        if any(key in column for column in columns):
            cells = [format(column[key], form) if key in column else "-" for column in columns]
            rows.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join([*rows, "", f"Settings that differ: {different_settings(names)}."])


def speed_rows(sections: list[dict], text: str, cell: Callable[[dict], str]) -> list[str]:
    """Rows of Markdown, a row for each name in any of the sections, a column for each section."""
    names = dict.fromkeys(name for section in sections for name in section)
    rows = []
    for name in names:
        cells = [cell(section[name]) if name in section else "not measured" for section in sections]
        rows.append(f"| {name}: {text} | {' | '.join(cells)} |")
    return rows


def floor_cell(row: dict) -> str:
    return f"{row['images/s']:.1f}, {row['step/floor']:.2f}, {row['GiB']:.1f} GiB"


def preset_cell(row: dict) -> str:
    return f"{row['images/s off']:.1f}, {row['on']:.1f}; {row['gain']:.2f}"


def shares_cell(row: dict) -> str:
    return ", ".join(f"{share:.1%}" for share in row.values())


def speeds() -> str:
    """What `toy_experiments.tools.benchmark` kept in results/speed-*.json, in Markdown: a column for each
    machine and number of threads."""
    machines = [json.loads(path.read_text()) for path in sorted(FOLDER.parent.glob("speed-*.json"))]
    columns = []  # (machine, number of threads)
    for kept in machines:
        columns += [(kept, name.split()[1]) for name in kept if name.startswith("floor")]
    heads = []
    for kept, n in columns:
        heads.append(f"{kept['machine'].split(', ')[1]}, {n} thread{'s' * (n != '1')}")
    rows = [f"| | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    floors = [kept[f"floor, {n} threads"] for kept, n in columns]
    rows += speed_rows(floors, "images/s, time / floor, memory that training adds", floor_cell)
    presets = [kept[f"presets, {n} threads: before, after, gain"] for kept, n in columns]
    rows += speed_rows(presets, "images/s of the plain form, of this one; gain", preset_cell)
    for what in ("kernels", "shares"):
        sections = [kept.get(f"{what}, {n} threads", {}) for kept, n in columns]
        parts = ", ".join(next(row for section in sections for row in section.values()))
        rows += speed_rows(sections, f"share of {parts}", shares_cell)
    startup = next(kept["startup"] for kept in machines if "startup" in kept)
    first = [f"{name} {row['seconds']:.1f} s, {row['GiB']:.2f} GiB" for name, row in startup.items()]
    text = f"Seconds from the command to the end of the first step, and memory after 50: {'; '.join(first)}."
    return "\n".join([*rows, "", text])


def main(
    what: str,
    run: str = "",
    command: str = "",
    names: tuple = (),
    name: str = "",
    trials: bool = False,
    after: str = "",
) -> None:
    folder = TRIALS if trials else FOLDER
    if what == "add":
        print(add(run, command, name, folder, after))
    elif what == "judge":
        print(judge(run, name))
    elif what == "found":
        print(found())
    elif what == "table":
        print(table(folder=folder))
    elif what == "compare":
        print(compare(names))
    else:
        lacks = "a results/speed-*.json lacks a section, see python -m toy_experiments.tools.benchmark"
        with dlsgan.explain(lacks, KeyError, StopIteration):
            text = speeds()
        print(text)


if __name__ == "__main__":
    parser = cli.parser(__doc__)
    commands = parser.add_subparsers(dest="what", required=True)
    adding = commands.add_parser("add")
    adding.add_argument("run")
    adding.add_argument("command")
    after_help = "kept run whose weights it started from (--init-from); its images and curves are counted in"
    adding.add_argument("--after", default="", metavar="NAME", help=after_help)
    judging = commands.add_parser("judge")
    judging.add_argument("run")
    for command in (adding, judging):
        command.add_argument(
            "--name", default="", help="of the kept file (default: that of the run's folder)"
        )
    commands.add_parser("found")
    printing = commands.add_parser("table")
    for command in (adding, printing):
        command.add_argument("--trials", action="store_true", help="in results/trials, not results/runs")
    comparing = commands.add_parser("compare")
    comparing.add_argument("names", nargs="+", help="names of exported models")
    commands.add_parser("speed")
    with cli.one_line("results_table"):
        main(**vars(parser.parse_args()))
