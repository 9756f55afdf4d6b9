"""Turns a finished run into a small file of trained weights, pretrained/NAME.pt, with its model card.

    python -m toy_experiments.tools.export_weights runs/celeba64 "python dlsgan.py --preset celeba64"

takes minutes on one core. It keeps the averaged weights, the latent scale and the configuration, and leaves
out what only further training needs. The file is read like any checkpoint (`dlsgan.load_model`,
`dlsgan.load_pretrained("celeba64")`). Weights are stored in half precision, unless that moves L_enc by more
than 0.002 or a PSNR by more than 0.02 dB; v stays in float32. Both measures, the distance of samples from
test images and the curves of the run go to toy_experiments/results/runs/NAME.json, and pretrained/README.md
is written anew from these files. The second argument is the command the run was trained by.

Expected printout:
    measures of 1,000 generated and test images, float32 and float16; distances of samples; name, size of file
"""

import dataclasses
from pathlib import Path

import torch

import dlsgan
from toy_experiments.shared import cli, distances
from toy_experiments.shared.cli import RESULTS
from toy_experiments.shared.training import images_seen
from toy_experiments.tools import results_table

LIMIT = 12_000_000  # bytes
FINE_TUNED = "-real-encoder"  # ends the names of models whose encoder real_encoder.py has fine-tuned
TOLERANCE = {"l_enc": 0.002, "psnr_generated": 0.02, "psnr_test": 0.02}
DATA = {
    "celeba": "CelebA (Liu et al. 2015), aligned frames squashed to a square; its authors allow "
    "non-commercial research only, and so are these weights to be used.",
    "mnist": "MNIST (LeCun et al. 1998), padded to 32x32.",
    "cartoon": "Cartoon faces, drawn by `dlsgan.py`.",
    "folder": "A folder of images; their terms hold for these weights, too.",
}
INTRODUCTION = """# Trained models

Small models to look at and to take apart: `dlsgan.load_pretrained("NAME")` or `python dlsgan.py --reconstruct
photo.jpg --checkpoint pretrained/NAME.pt`. They hold averaged weights, latent scale and configuration:
`--init-from` starts a new training from them, `--resume` cannot go on with them.
This page is written by `python -m toy_experiments.tools.export_weights`, from the runs' own files.

The [README](../README.md#what-was-found) explains most measures. Wasserstein distances are times 1000. The
entropy is that of the scaled latent vector. "Effective" are as many dimensions as would have its power if all
shared it equally. Settings that end in "final" are factors: 0.1 means a fall to a tenth.

Limits. They have seen few images, by the standards of the field. A photo must be framed as the training
images were (`toy_experiments/tools/align_face.py` does that for faces); whatever lies outside of their faces,
poses and backgrounds comes back as somebody else. CelebA shows celebrities, and neither their ages nor
their skin tones are those of the world. A reconstruction is not evidence of anybody's identity, and nothing
here should judge a person.
"""


def half_precision(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Floating-point weights as float16, but for the latent scale's statistics, which lie close to 0."""
    result = dict(weights)
    for name, x in weights.items():
        if x.is_floating_point() and name != "latent_scale.v":
            result[name] = x.half()
    return result


def write(
    path: Path,
    config: dlsgan.Config,
    images: int,  # real images that the model has seen
    weights: dict[str, torch.Tensor],
    encoder: str = "",  # what its encoder is, if it is not the paper's
) -> None:
    """A checkpoint of weights alone; paths and device of the machine it was trained on are left out."""
    clean = dataclasses.replace(config, data_dir="", out="", device="auto", threads=0)
    settings = dataclasses.asdict(clean) | {"data_dir": ""}
    state = {"format": dlsgan.CHECKPOINT_VERSION, "config": settings, "images": images}
    state["ema"] = {name: x.contiguous() for name, x in weights.items()}
    if encoder:
        state["encoder"] = encoder
    with dlsgan.explain(f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, path)


def measure(checkpoint: str | Path, test: torch.Tensor) -> dict:
    """dlsgan.evaluate of a trained model, and the measures of its latent scale."""
    model = dlsgan.load_model(checkpoint)
    scale = {key: value.item() for key, value in model.latent_scale.metrics().items() if key != "active"}
    return dlsgan.evaluate(model, test) | scale


@torch.no_grad()
def mean_logits(checkpoint: str | Path, **images: torch.Tensor) -> dict[str, float]:
    """Mean logit of the averaged discriminator for sets of images [N, C, H, W], "test" among them, and for as
    many samples as that has: {"logits_NAME": ...}. If it has learned the training images by heart, it finds
    them much more real than test images."""
    model = dlsgan.load_model(checkpoint)
    tens = len(images["test"]) // 10 + 1
    images["generated"] = torch.cat([model.sample(10, seed) for seed in range(tens)])
    result = {}
    for name, x in images.items():
        logits = dlsgan.in_batches(lambda part: model.discriminator(part)[0], x.clamp(-1, 1))
        result[f"logits_{name}"] = logits.mean().item()
    return result


def half_is_enough(half: dict, full: dict) -> bool:
    """Whether no measure moves by more than its TOLERANCE."""
    return all(abs(half[key] - full[key]) <= most for key, most in TOLERANCE.items())


def export(
    run: str,
    command: str,
    name: str = "",
    images: int = 1000,
    inception: str | None = None,
    after: str = "",  # as in results_table.add
) -> Path:
    """Writes pretrained/NAME.pt, results/runs/NAME.json and the model card; returns the first. A fault leaves
    a file of that name as it was."""
    config, state = dlsgan.read_checkpoint(run)
    results_table.evaluations(run)  # a UserError here, before anything is measured or written
    if inception:
        distances.load_inception(inception)  # here, too
    name = name or Path(run).resolve().name
    path = dlsgan.PRETRAINED / f"{name}.pt"
    train_set, test_set = dlsgan.LOADERS[config.dataset](config)
    test = dlsgan.to_float(test_set[:images])
    seen = images_seen(config, state)
    if after:
        seen += results_table.load(after)["measures"]["images"]
    full = measure(run, test)
    temporary = path.with_suffix(".tmp")
    try:
        write(temporary, config, seen, half_precision(state["ema"]))
        half = measure(temporary, test)
        for precision, values in (("float32", full), ("float16", half)):
            told = ", ".join(f"{key} {value:.4f}" for key, value in values.items() if key != "v")
            print(f"{precision}: {told}")
        stored_as = "float16"
        if not half_is_enough(half, full):
            stored_as = "float32"
            write(temporary, config, seen, state["ema"])
        size = temporary.stat().st_size
        too_large = f"{path} would have {size / 1e6:.1f} MB: at most {LIMIT / 1e6:.0f} MB are kept"
        dlsgan.require(size <= LIMIT, too_large)

        compared = distances.main(run, inception)
        samples = compared["samples"]
        others = compared["other test images"]
        exported = {"stored_as": stored_as, "bytes": size, "images": seen, "test_images": len(test)}
        exported |= half if stored_as == "float16" else full
        exported |= {"trained_on": len(train_set), "swd": samples["swd mean"], "swd_test": others["swd mean"]}
        exported |= mean_logits(run, train=dlsgan.to_float(train_set[:images]), test=test)
        if inception:
            exported |= {"fid": samples["FID"], "fid_test": others["FID"]}
        exported["distances"] = compared
        exported["distance_images"] = min(2000, len(test_set)) // 2  # of distances.main
        exported["cost_of_float16"] = {key: half[key] - full[key] for key in TOLERANCE}
        results_table.add(run, command, name, after=after, exported=exported)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    (path.parent / "README.md").write_text(card())
    print(f"{path}: {size / 1e6:.2f} MB, {stored_as}")
    return path


def section(path: Path) -> str:
    """The part of the model card on one file."""
    result = results_table.load(path.stem)
    e = result["exported"]
    settings = result["settings"]
    size = f"{settings['resolution']}x{settings['resolution']}"
    command = results_table.shown_command(result["command"])
    machine = ("one thread of " if settings["threads"] == 1 else "") + result["machine"]
    minutes = f"{result['minutes']:,.0f} minutes"
    stretches = result.get("stretches", 1)
    trained_by = f"{command}, {minutes} on {machine}"
    if stretches > 1:
        trained_by = f"the last of {stretches} stretches: {command}; all took {minutes} on {machine}"
    rows = {
        "file": f"`{path.name}`, {e['bytes'] / 1e6:.2f} MB, weights stored as {e['stored_as']}",
        "trained by": trained_by,
        "data": f"{DATA[settings['dataset']]} {e['trained_on']:,} images for training, at {size}; "
        f"measured on {e['test_images']:,} test images",
        "settings": ", ".join(f"{key} {value}" for key, value in settings.items() if value != ""),
        "float16 changes": ", ".join(f"{key} {value:+.4f}" for key, value in e["cost_of_float16"].items()),
    }
    for title, (key, form) in results_table.COMPARED.items():
        if key in e:
            rows[title] = format(e[key], form)
    lines = [f"| {key} | {value} |" for key, value in rows.items()]
    return "\n".join([f"## {path.stem}", "", "| | |", "|---|---|", *lines]) + "\n"


def section_of_fine_tuned(path: Path) -> str:
    """The part of the model card on an encoder fine-tuned on real images, from what real_encoder.py kept."""
    name = path.stem.removesuffix(FINE_TUNED)
    result = cli.read_runs(RESULTS / f"real_encoder-{name}.json")
    before = result["paper's"]
    after = result["fine-tuned"]
    gains = f"{after['psnr_gain_test']:+.2f} ({before['psnr_gain_test']:+.2f} before)"
    rows = {
        "file": f"`{path.name}`, {path.stat().st_size / 1e6:.2f} MB",
        "what it is": f"generator and scale of `{name}` after {result['model']['images']:,} images, and its "
        "encoder after fine-tuning on "
        f"{result['images']:,} real images, which the paper does not do; its logits mean nothing",
        "trained by": f"`{result['command']}`, {result['minutes']:,.0f} minutes on {result['machine']}",
        f"gain over the mean test image, {result['test_images']['gain']} images": gains,
        "L_enc": f"{after['l_enc']:.3f} ({before['l_enc']:.3f} before)",
    }
    lines = [f"| {key} | {value} |" for key, value in rows.items()]
    return "\n".join([f"## {path.stem}", "", "| | |", "|---|---|", *lines]) + "\n"


def overview(paths: list[Path]) -> str:
    """A table with a row for each file."""
    rows = ["| model | data | latent scale | file |", "|---|---|---|---|"]
    for path in paths:
        name = path.stem.removesuffix(FINE_TUNED)
        settings = results_table.load(name)["settings"]
        data = f"{settings['dataset']}, {settings['resolution']}x{settings['resolution']}"
        scale = "with" if settings["latent_scale"] else "without"
        if name != path.stem:
            scale += ", encoder fine-tuned on real images"
        rows.append(
            f"| [{path.stem}](#{path.stem}) | {data} | {scale} | {path.stat().st_size / 1e6:.2f} MB |"
        )
    return "\n".join(rows) + "\n"


def card() -> str:
    """The model card of all files in pretrained/, from results/runs/*.json."""
    paths = sorted(dlsgan.PRETRAINED.glob("*.pt"), key=lambda path: path.stem)
    sections = []
    for path in paths:
        write_section = section_of_fine_tuned if path.stem.endswith(FINE_TUNED) else section
        sections.append(write_section(path))
    return "\n".join([INTRODUCTION, overview(paths), *sections])


if __name__ == "__main__":
    parser = cli.parser(__doc__)
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("command", help="the command it was trained by, for the model card")
    parser.add_argument("--name", default="", help="name of the file (default: that of the run's folder)")
    parser.add_argument("--images", type=int, default=1000, help="test images to measure on (default: 1000)")
    after_help = "kept run whose weights it started from (--init-from); its images and curves are counted in"
    parser.add_argument("--after", default="", metavar="NAME", help=after_help)
    parser.add_argument("--inception", help="TorchScript file inception-2015-12-05.pt, for FID")
    with cli.one_line("export_weights"):
        export(**vars(parser.parse_args()))
