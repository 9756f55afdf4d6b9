"""InterFaceGAN (Shen et al. 2020, arXiv:1907.10786) with DLSGAN's own encoder: attributes as directions in latent space.

Labelled real images are encoded, y = s * z_hat, and a linear support vector machine on y separates those with an attribute
from those without. Its unit normal n is the direction of the attribute, n . y + b the signed distance from the boundary. A
face is edited by setting this distance a, from -3 to 3: y' = y + (a - n . y - b) t. Plain edits have t = n. Conditional
edits keep the distances of other attributes: t is n without its projection on their normals N together,
n - N^T (N N^T)^-1 N n, scaled to n . t = 1. Conditions are those attributes that the SVM can separate at all. The original
labels random samples by a separate attribute predictor; an encoder makes that unnecessary, and a predictor serves here only
as judge: a network trained on other images reads the attributes off the edited pictures.

On `cartoon` each attribute is the sign of a factor u_k ~ N(0, 1), the judge is a regressor of u, and changes are in
standard deviations: that of the edited factor, and the leakage into the other seven. On `celeba` the attributes are
Smiling, Male, Eyeglasses, Bangs and Young, the judge is a classifier, and changes are in its probabilities.
Normals on z_hat, where dead dimensions weigh as much as live ones, are compared with those on s * z_hat.

An edit can only be as good as the encoder: what a reconstruction does not keep (`kept`: squared correlation between what
the judge reads off test images and off their reconstructions), no direction can change. Look at that line first.

    python -m toy_experiments.interfacegan --checkpoint runs/cartoon      about 3 minutes on one core
    python -m toy_experiments.interfacegan --checkpoint runs/celeba64     about 4 minutes on one core

Expected printout: for each attribute the judge's own score, what is kept, the accuracy of the SVM; for each way to edit,
the change of the target and the largest change of another attribute.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import balanced_accuracy_score
from sklearn.svm import LinearSVC
from torch import Tensor

import dlsgan
from toy_experiments import common
from toy_experiments.judges import CELEBA_ATTRIBUTES, attribute_classifier, celeba_labels, factor_regressor, in_parts
from toy_experiments.results import processor

SHOWN = {"cartoon": ("smile", "eye opening"), "celeba": CELEBA_ATTRIBUTES}
UNITS = {"cartoon": "standard deviations", "celeba": "probability"}
SEPARATED = 0.75  # balanced accuracy from which on a normal serves as a condition
WAYS = {  # on s * z or on z; conditional or not
    "normals on z": (False, False),
    "normals on s*z": (True, False),
    "s*z, conditional": (True, True),
}


def fit_normals(codes: np.ndarray, labels: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """A linear SVM per attribute, on 70% of codes [N, d] with labels bool [N, K]: unit normals [K, d], offsets b [K] such
    that n . y + b is the signed distance, and balanced accuracies on the other 30%. C: the mean hinge loss times 10. In some
    directions codes of real images hardly vary: a less regularised SVM uses these to separate a little better, but moving
    along them leaves the codes' distribution and changes other attributes, too."""
    order, cut = np.random.default_rng(seed).permutation(len(codes)), int(0.7 * len(codes))
    fitted, held_out = order[:cut], order[cut:]
    normals, offsets, accuracies = [], [], []
    for label in labels.T:
        svm = LinearSVC(C=10 / cut, intercept_scaling=10, class_weight="balanced", dual=False)
        svm.fit(codes[fitted], label[fitted])
        length = np.linalg.norm(svm.coef_[0])
        normals.append(svm.coef_[0] / length)
        offsets.append(svm.intercept_[0] / length)
        accuracies.append(round(balanced_accuracy_score(label[held_out], svm.predict(codes[held_out])), 4))
    return np.stack(normals), np.array(offsets), accuracies


def direction(normals: np.ndarray, target: int, conditions: Sequence[int] = ()) -> np.ndarray:
    """t [d] with n_target . t = 1 and n_j . t = 0 for all conditions j; without any, t is the normal itself."""
    n, others = normals[target], normals[list(conditions)]
    if len(others):
        n = n - others.T @ np.linalg.solve(others @ others.T, others @ n)  # the Gram system
    return n / (n @ normals[target])


def edit(codes: np.ndarray, normal: np.ndarray, offset: float, t: np.ndarray, distance: float) -> np.ndarray:
    """codes [N, d], moved along t until their signed distance is as given."""
    return codes + (distance - codes @ normal - offset)[:, None] * t


@torch.no_grad()
def experiment(
    model: dlsgan.DLSGAN,
    judge: Callable[[Tensor], Tensor],  # x [N, 3, H, W] -> values [N, K]
    labelled: Tensor,  # real images to fit the normals on
    labels: np.ndarray,  # bool [N, K]
    test: Tensor,  # other real images, to edit
    names: Sequence[str],  # of the K attributes
) -> tuple[dict, dict]:
    """Results for JSON, and for each of WAYS the function (k, distance) -> test images with attribute k at that distance."""
    s, k_all = model.latent_scale.scale(), range(len(names))
    before, after = judge(test), judge(in_parts(model.reconstruct, test))
    kept = np.corrcoef(before.numpy(), after.numpy(), rowvar=False)[len(names) :, : len(names)].diagonal() ** 2
    result, editors = {"kept": dict(zip(names, kept.round(4).tolist(), strict=True)), "ways": {}}, {}
    z_labelled, z_test = (in_parts(model.encode, x) for x in (labelled, test))
    for way, (scaled, conditional) in WAYS.items():
        unit = s if scaled else torch.ones_like(s)
        codes, own = ((z * unit).double().numpy() for z in (z_labelled, z_test))
        normals, offsets, accuracies = fit_normals(codes, labels)
        found = [k for k in k_all if accuracies[k] >= SEPARATED and conditional]  # a normal of nothing is a random direction
        directions = [direction(normals, k, [j for j in found if j != k]) for k in k_all]

        def edited(k, distance, own=own, normals=normals, offsets=offsets, directions=directions, factor=s / unit) -> Tensor:
            y = torch.from_numpy(edit(own, normals[k], offsets[k], directions[k], distance)).float()
            return in_parts(model.generator, y * factor).clamp(-1, 1)

        editors[way] = edited
        changes = torch.stack([judge(edited(k, 3)) - judge(edited(k, -3)) for k in k_all])  # [K edited, N, K read]
        result["ways"][way] = {
            "svm_balanced_accuracy": dict(zip(names, accuracies, strict=True)),
            "std_of_distances": dict(zip(names, (own @ normals.T).std(0).round(4).tolist(), strict=True)),
            "cosines_of_normals": (normals @ normals.T).round(4).tolist(),
            "mean_change": changes.mean(1).numpy().round(4).tolist(),
            "mean_absolute_change": changes.abs().mean(1).numpy().round(4).tolist(),
        }
    return result, editors


def leakage(mean_change: list[list[float]], k: int) -> tuple[float, float, int]:
    """Of edit k: the change of its target, the largest |change| of another attribute, and which one that is."""
    row = np.array(mean_change[k])
    others = np.where(np.arange(len(row)) == k, 0, np.abs(row))
    return float(row[k]), float(others.max()), int(others.argmax())


def main(checkpoint: str, data_dir: str = "", labelled: int = 8000, faces: int = 200, judge_steps: int = 1000,
         results: Path = common.RESULTS) -> dict:
    started = time.perf_counter()
    config, state = dlsgan.read_checkpoint(checkpoint)
    model = dlsgan.load(checkpoint, "cpu")
    if config.dataset not in SHOWN:
        raise dlsgan.UserError(f"{checkpoint} was trained on {config.dataset}, which has no attributes: cartoon or celeba")
    names = dlsgan.CARTOON_FACTORS if config.dataset == "cartoon" else CELEBA_ATTRIBUTES
    if config.latent_dim <= len(names):
        raise dlsgan.UserError(f"conditional edits of {len(names)} attributes need more latent dimensions than {len(names)}")
    if config.dataset == "cartoon":
        judge, scores = factor_regressor(config.resolution, judge_steps)
        images, factors = dlsgan.cartoon_faces(labelled, config.resolution, 9997)
        labels, test = factors.numpy() > 0, dlsgan.cartoon_faces(faces, config.resolution, 9998)[0]
    else:
        config.data_dir = data_dir or "data/celeba"
        train_images, test_images = dlsgan.load_celeba(config)
        labels = celeba_labels(config, len(train_images) + len(test_images))
        order = np.random.default_rng(0).permutation(len(train_images))
        fit, other = np.sort(order[: len(order) // 2][:labelled]), np.sort(order[len(order) // 2 :])
        judge = attribute_classifier(train_images, labels, other, judge_steps)
        test_labels = labels[len(train_images) :]
        read = judge(dlsgan.to_float(test_images)).numpy() > 0.5
        pairs = list(zip(test_labels.T, read.T, strict=True))
        scores = {"accuracy": [round(float((a == b).mean()), 4) for a, b in pairs],
                  "balanced accuracy": [round(balanced_accuracy_score(a, b), 4) for a, b in pairs],
                  "share of test images": test_labels.mean(0).round(4).tolist()}
        images, labels, test = dlsgan.to_float(train_images[fit]), labels[fit], dlsgan.to_float(test_images[:faces])
    result, editors = experiment(model, judge, images, labels, test, names)
    shown = f"runs/{Path(checkpoint).name}" if Path(checkpoint).is_absolute() else checkpoint
    command = f"python -m toy_experiments.interfacegan --checkpoint {shown}"
    result = {"command": command, "machine": processor(), "minutes": round((time.perf_counter() - started) / 60, 2),
              "model": {"images": common.images_seen(config, state), "latent_dim": config.latent_dim},
              "unit": UNITS[config.dataset], "labelled": len(images), "faces": len(test), "names": list(names),
              "judge": {name: dict(zip(names, values, strict=True)) for name, values in scores.items()}, **result}
    report(result)
    results.mkdir(parents=True, exist_ok=True)
    (results / f"interfacegan-{config.dataset}.json").write_text(json.dumps(result, indent=1) + "\n")
    with torch.no_grad():
        draw(result, editors, test, in_parts(model.reconstruct, test).clamp(-1, 1), SHOWN[config.dataset],
             results / f"interfacegan-{config.dataset}.png")
    return result


def report(result: dict) -> None:
    names = result["names"]
    for title, values in (*result["judge"].items(), ("kept", result["kept"])):
        print(f"{title}: " + ", ".join(f"{name} {value:.2f}" for name, value in values.items()))
    for way, found in result["ways"].items():
        print(f"{way}, from distance -3 to 3, changes in {result['unit']}:")
        for k, name in enumerate(names):
            target, largest, other = leakage(found["mean_change"], k)
            accuracy = found["svm_balanced_accuracy"][name]
            print(f"  {name}: SVM {accuracy:.2f}, change {target:+.2f}; largest leakage {largest:.2f}, into {names[other]}; "
                  f"per unit of the target's change {largest / max(abs(target), 1e-9):.2f}")


def draw(result: dict, editors: dict, test: Tensor, reconstructions: Tensor, shown: Sequence[str], path: Path) -> None:
    """Above: test images, their reconstructions, edits from -3 to 3. Below: mean change of each attribute for each edit."""
    from matplotlib.figure import Figure

    names, rows, labels = result["names"], [], []
    for i, name in enumerate(shown):
        for way in ("normals on s*z", "s*z, conditional"):
            edits = [editors[way](names.index(name), a)[i] for a in (-3, -2, -1, 0, 1, 2, 3)]
            rows.append(torch.stack([test[i], reconstructions[i], *edits]))
            labels.append(f"{name}\n{'conditional' if 'cond' in way else 'plain'}")
    figure = Figure((12, 4.5 + 0.8 * len(rows)), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(0.6 + 0.8 * len(rows), 3.9))
    axis, size = top.subplots(), test.shape[3]
    axis.imshow(dlsgan.grid(rows), interpolation="nearest")
    ticks = ["test image", "decoded", *(f"{a:+d}" for a in range(-3, 4))]
    title = "test image, its reconstruction, and edits: distance from the attribute's boundary set to -3, ..., 3"
    axis.set(xticks=(np.arange(9) + 0.5) * size, xticklabels=ticks, title=title)
    axis.set(yticks=(np.arange(len(rows)) + 0.5) * size, yticklabels=labels)
    bottom.suptitle(f"mean change of what the judge reads, from distance -3 to 3, in {result['unit']}")
    for axis, (way, found) in zip(bottom.subplots(1, len(WAYS)), result["ways"].items(), strict=True):
        matrix = np.array(found["mean_change"])
        limit = np.abs(matrix).max()
        axis.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit)
        for (i, j), value in np.ndenumerate(matrix):
            colour = "white" if abs(value) > 0.6 * limit else "black"
            axis.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=6, color=colour)
        axis.set(xticks=range(len(names)), yticks=range(len(names)), ylabel="edited", xlabel="read", title=way)
        axis.set_xticklabels(names, rotation=60, ha="right", fontsize=7)
        axis.set_yticklabels(names, fontsize=7)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="a run of dlsgan.py on cartoon or celeba: folder or checkpoint")
    parser.add_argument("--data-dir", default="", help="where CelebA is (default: data/celeba)")
    with common.one_line("interfacegan"):
        torch.set_num_threads(1)
        main(**vars(parser.parse_args()))
