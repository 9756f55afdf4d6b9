"""InterFaceGAN (Shen et al. 2020, arXiv:1907.10786) with DLSGAN's own encoder: attributes as directions in
latent space.

Labelled real images are encoded, y = s * z_hat, and a linear support vector machine on y separates those with
an attribute from those without. Its unit normal n is the direction of the attribute, n . y + b the signed
distance from the boundary. A face is edited by setting this distance a, from -3 to 3: y' = y + (a - n . y -
b) t. Plain edits have t = n. Conditional edits keep the distances of other attributes: t is n without its
projection on their normals N together, n - N^T (N N^T)^-1 N n, scaled to n . t = 1. Conditions are those
attributes that the SVM can separate at all. The original labels random samples by a separate attribute
predictor; an encoder makes that unnecessary, and a predictor serves here only as judge: a network trained on
other images reads the attributes off the edited pictures.

On `cartoon` each attribute is the sign of a factor u_k ~ N(0, 1), the judge is a regressor of u, and changes
are in standard deviations: that of the edited factor, and the leakage into the other seven. On `celeba` the
attributes are Smiling, Male, Eyeglasses, Bangs and Young, the judge is a classifier, and changes are in its
probabilities. Normals on z_hat, where dead dimensions weigh as much as live ones, are compared with those on
s * z_hat. The same distances are steps of another size there: in the kept run on cartoon faces the edited
faces' own distances have a standard deviation of about 1.0 on z_hat and 2.4 on s * z_hat, so that edits from
-3 to 3 cover some 6 and 2.5 of them. Do not compare the ways by how much they change, but by the largest
leakage per unit of the target's change, which is printed.

An edit can only be as good as the encoder: what a reconstruction does not keep (`kept`: squared correlation
between what the judge reads off test images and off their reconstructions), no direction can change. Look at
that line first. `recognised` says the same in balanced accuracies on test images: of a logistic regression on
z_hat, of the judge on the reconstructions, and of the judge on the images themselves.

    python -m toy_experiments.systems.interfacegan --checkpoint pretrained/cartoon.pt    2 minutes on one core
    python -m toy_experiments.systems.interfacegan --checkpoint pretrained/celeba64.pt   4 minutes on one core

Their results are interfacegan-DATASET.json and .png, those of other models interfacegan-DATASET-MODEL.

Expected printout: for each attribute the judge's own score, what is kept and recognised, the accuracy of the
SVM; for each way to edit, the change of the target and the largest change of another attribute.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import balanced_accuracy_score
from sklearn.svm import LinearSVC
from torch import Tensor

import dlsgan
from toy_experiments.shared import cli
from toy_experiments.shared.classifiers import CELEBA_ATTRIBUTES, factor_regressor
from toy_experiments.shared.cli import RESULTS
from toy_experiments.shared.figures import middles
from toy_experiments.shared.judges import Material, celeba_material, recognised
from toy_experiments.shared.training import find_data, images_seen, result_name

SHOWN = {"cartoon": ("smile", "eye opening"), "celeba": CELEBA_ATTRIBUTES}
UNITS = {"cartoon": "standard deviations", "celeba": "probability"}
SEPARATED = 0.75  # balanced accuracy from which on a normal serves as a condition
WAYS = {  # on s * z or on z; conditional or not
    "normals on z": (False, False),
    "normals on s*z": (True, False),
    "s*z, conditional": (True, True),
}


def fit_normals(
    codes: np.ndarray, labels: np.ndarray, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """A linear SVM per attribute, on 70% of codes [N, d] with labels bool [N, K]: unit normals [K, d],
    offsets b [K] such that n . y + b is the signed distance, and balanced accuracies on the other 30%. C: the
    mean squared hinge loss times 10. In some directions codes of real images hardly vary: a less regularised
    SVM uses these to separate a little better, but moving along them leaves the codes' distribution and
    changes other attributes, too."""
    order = np.random.default_rng(seed).permutation(len(codes))
    cut = int(0.7 * len(codes))
    fitted = order[:cut]
    held_out = order[cut:]
    normals = []
    offsets = []
    accuracies = []
    for label in labels.T:
        svm = LinearSVC(C=10 / cut, intercept_scaling=10, class_weight="balanced", dual=False)
        svm.fit(codes[fitted], label[fitted])
        length = np.linalg.norm(svm.coef_[0])
        normals.append(svm.coef_[0] / length)
        offsets.append(svm.intercept_[0] / length)
        accuracy = balanced_accuracy_score(label[held_out], svm.predict(codes[held_out]))
        accuracies.append(round(accuracy, 4))
    return np.stack(normals), np.array(offsets), accuracies


def direction(normals: np.ndarray, target: int, conditions: Sequence[int] = ()) -> np.ndarray:
    """t [d] with n_target . t = 1 and n_j . t = 0 for all conditions j; without any, t is the normal
    itself."""
    n = normals[target]
    others = normals[list(conditions)]
    if len(others):
        n = n - others.T @ np.linalg.solve(others @ others.T, others @ n)  # the Gram system
    return n / (n @ normals[target])


def edit(codes: np.ndarray, normal: np.ndarray, offset: float, t: np.ndarray, distance: float) -> np.ndarray:
    """codes [N, d], moved along t until their signed distance is as given."""
    return codes + (distance - codes @ normal - offset)[:, None] * t


class Editor:
    """One of WAYS to edit: normals fitted on labelled codes, and the codes of the images to edit.
    editor(k, distance): those images with attribute k at that signed distance from its boundary."""

    def __init__(
        self,
        model: dlsgan.DLSGAN,
        z_labelled: Tensor,  # [N, d]
        labels: np.ndarray,  # bool [N, K]
        z_test: Tensor,  # [M, d]
        scaled: bool,  # normals on s * z, not on z
        conditional: bool,  # edits keep the distances of attributes that the SVM can separate
    ):
        s = model.latent_scale.scale()
        unit = s if scaled else torch.ones_like(s)
        self.generator = model.generator
        self.to_z_scaled = s / unit
        self.codes = (z_test * unit).double().numpy()
        self.normals, self.offsets, self.accuracies = fit_normals(
            (z_labelled * unit).double().numpy(), labels
        )
        conditions = []
        if conditional:  # a normal of nothing is a random direction, and no condition
            conditions = [k for k, accuracy in enumerate(self.accuracies) if accuracy >= SEPARATED]
        self.directions = []
        for k in range(len(self.normals)):
            others = [j for j in conditions if j != k]
            self.directions.append(direction(self.normals, k, others))

    def __call__(self, k: int, distance: float) -> Tensor:
        y = edit(self.codes, self.normals[k], self.offsets[k], self.directions[k], distance)
        z_scaled = torch.from_numpy(y).float() * self.to_z_scaled
        return dlsgan.in_batches(self.generator, z_scaled).clamp(-1, 1)


@torch.no_grad()
def experiment(
    model: dlsgan.DLSGAN,
    judge: Callable[[Tensor], Tensor],  # x [N, 3, H, W] -> values [N, K]
    labelled: Tensor,  # real images to fit the normals on
    labels: np.ndarray,  # bool [N, K]
    test: Tensor,  # other real images, to edit
    names: Sequence[str],  # of the K attributes
) -> tuple[dict, dict[str, Editor]]:
    """Results for JSON, and an Editor of the test images for each of WAYS."""
    before = judge(test)
    after = judge(dlsgan.in_batches(model.reconstruct, test))
    correlation = np.corrcoef(before.numpy(), after.numpy(), rowvar=False)[len(names) :, : len(names)]
    kept = correlation.diagonal() ** 2
    result = {"kept": dict(zip(names, kept.round(4).tolist(), strict=True)), "ways": {}}
    z_labelled = dlsgan.in_batches(model.encode, labelled)
    z_test = dlsgan.in_batches(model.encode, test)
    editors = {}
    for way, (scaled, conditional) in WAYS.items():
        editor = Editor(model, z_labelled, labels, z_test, scaled, conditional)
        editors[way] = editor
        changes = [judge(editor(k, 3)) - judge(editor(k, -3)) for k in range(len(names))]
        changes = torch.stack(changes)  # [K edited, N, K read]
        spread = (editor.codes @ editor.normals.T).std(0)
        result["ways"][way] = {
            "svm_balanced_accuracy": dict(zip(names, editor.accuracies, strict=True)),
            "std_of_distances": dict(zip(names, spread.round(4).tolist(), strict=True)),
            "cosines_of_normals": (editor.normals @ editor.normals.T).round(4).tolist(),
            "mean_change": changes.mean(1).numpy().round(4).tolist(),
            "mean_absolute_change": changes.abs().mean(1).numpy().round(4).tolist(),
        }
    return result, editors


def leakage(mean_change: list[list[float]], k: int) -> tuple[float, float, int]:
    """Of edit k: the change of its target, the largest |change| of another attribute, and which one that
    is."""
    row = np.array(mean_change[k])
    others = np.where(np.arange(len(row)) == k, 0, np.abs(row))
    return float(row[k]), float(others.max()), int(others.argmax())


def cartoon_material(config: dlsgan.Config, labelled: int, judge_steps: int) -> Material:
    """Attributes are the signs of the factors."""
    judge, scores = factor_regressor(config.resolution, judge_steps)
    images, factors = dlsgan.cartoon_faces(labelled, config.resolution, 9997)
    test, test_factors = dlsgan.cartoon_faces(2000, config.resolution, 9998)
    labels, test_labels = (u.numpy() > 0 for u in (factors, test_factors))
    return Material(dlsgan.CARTOON_FACTORS, judge, 0.0, scores, images, labels, test, test_labels)


MATERIAL = {"cartoon": cartoon_material, "celeba": celeba_material}


def main(
    checkpoint: str,
    data_dir: str = "",
    labelled: int = 8000,  # images to fit the normals on
    faces: int = 200,  # images to edit
    judge_steps: int = 1000,
    results: Path = RESULTS,
) -> dict:
    started = time.perf_counter()
    config, state = dlsgan.read_checkpoint(checkpoint)
    model = dlsgan.load_model(checkpoint, "cpu")
    dataset = config.dataset
    without = f"{checkpoint} was trained on {dataset}, which has no attributes: cartoon or celeba"
    dlsgan.require(dataset in SHOWN, without)
    count = len(dlsgan.CARTOON_FACTORS if dataset == "cartoon" else CELEBA_ATTRIBUTES)
    too_few = f"conditional edits of {count} attributes need more latent dimensions than {count}"
    dlsgan.require(config.latent_dim > count, too_few)
    seen = images_seen(config, state)
    config.data_dir = find_data(config, data_dir)
    material = MATERIAL[dataset](config, labelled, judge_steps)
    edited = material.test[:faces]
    found, editors = experiment(
        model, material.judge, material.images, material.labels, edited, material.names
    )
    shown = f"runs/{Path(checkpoint).name}" if Path(checkpoint).is_absolute() else checkpoint
    names = material.names
    result = {
        "command": f"python -m toy_experiments.systems.interfacegan --checkpoint {shown}",
        "machine": cli.processor(),
        "minutes": round((time.perf_counter() - started) / 60, 2),
        "model": {"images": seen, "latent_dim": config.latent_dim},
        "unit": UNITS[dataset],
        "labelled": len(material.images),
        "faces": len(edited),
        "test_images": len(material.test),
        "names": list(names),
        "judge": {key: dict(zip(names, values, strict=True)) for key, values in material.scores.items()},
    }
    result |= found | {"recognised": recognised(model, material)}
    directions = np.stack(editors["s*z, conditional"].directions).round(4).tolist()
    result["directions"] = dict(zip(names, directions, strict=True))  # of conditional edits of s * z
    report(result)
    stem = f"interfacegan-{result_name(config, checkpoint)}"
    cli.write_json(results / f"{stem}.json", result)
    with torch.no_grad():
        reconstructions = dlsgan.in_batches(model.reconstruct, edited)
        draw(result, editors, edited, reconstructions, SHOWN[dataset], results / f"{stem}.png")
    return result


def report(result: dict) -> None:
    names = result["names"]
    lines = [*result["judge"].items(), ("kept", result["kept"])]
    lines += [(f"recognised {source}", values) for source, values in result["recognised"].items()]
    for title, values in lines:
        print(f"{title}: " + ", ".join(f"{name} {value:.2f}" for name, value in values.items()))
    for way, found in result["ways"].items():
        print(f"{way}, from distance -3 to 3, changes in {result['unit']}:")
        for k, name in enumerate(names):
            target, largest, other = leakage(found["mean_change"], k)
            accuracy = found["svm_balanced_accuracy"][name]
            share = largest / max(abs(target), 1e-9)
            print(
                f"  {name}: SVM {accuracy:.2f}, change {target:+.2f}; largest leakage {largest:.2f}, "
                f"into {names[other]}; per unit of the target's change {share:.2f}"
            )


def draw_changes(axis: Axes, way: str, mean_change: list[list[float]], names: Sequence[str]) -> None:
    """A matrix: attributes edited (rows) by attributes read (columns)."""
    matrix = np.array(mean_change)
    limit = np.abs(matrix).max()
    axis.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit)
    for (i, j), value in np.ndenumerate(matrix):
        colour = "white" if abs(value) > 0.6 * limit else "black"
        axis.text(j, i, f"{value:z.1f}", ha="center", va="center", fontsize=6, color=colour)
    axis.set(ylabel="edited", xlabel="read", title=way)
    axis.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
    axis.set_yticks(range(len(names)), names, fontsize=7)


def draw(
    result: dict,
    editors: dict[str, Editor],
    test: Tensor,
    reconstructions: Tensor,
    shown: Sequence[str],  # attributes, each on a test image of its own
    path: Path,
) -> None:
    """Above: test images, their reconstructions, edits from -3 to 3. Below: mean change of each attribute for
    each edit."""
    names = result["names"]
    distances = range(-3, 4)
    rows = []
    labels = []
    for i, name in enumerate(shown):
        for way, kind in (("normals on s*z", "plain"), ("s*z, conditional", "conditional")):
            edits = [editors[way](names.index(name), distance)[i] for distance in distances]
            rows.append(torch.stack([test[i], reconstructions[i], *edits]))
            labels.append(f"{name}\n{kind}")
    figure = Figure((12, 4.5 + 0.8 * len(rows)), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(0.6 + 0.8 * len(rows), 3.9))
    axis = top.subplots()
    size = test.shape[3]
    axis.imshow(dlsgan.make_grid(rows), interpolation="nearest")
    columns = ["test image", "decoded", *(f"{distance:+d}" for distance in distances)]
    axis.set_xticks(middles(len(columns), size), columns)
    axis.set_yticks(middles(len(rows), size), labels)
    title = (
        "test image, its reconstruction, and edits: distance from the attribute's boundary set to -3, ..., 3"
    )
    axis.set_title(title)
    bottom.suptitle(f"mean change of what the judge reads, from distance -3 to 3, in {result['unit']}")
    for axis, (way, found) in zip(bottom.subplots(1, len(WAYS)), result["ways"].items(), strict=True):
        draw_changes(axis, way, found["mean_change"], names)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    parser = cli.parser(__doc__)
    checkpoint_help = "a run of dlsgan.py on cartoon or celeba: folder or checkpoint"
    parser.add_argument("--checkpoint", required=True, help=checkpoint_help)
    parser.add_argument("--data-dir", default="", help="where CelebA is (default: as in training)")
    with cli.one_line("interfacegan"):
        torch.set_num_threads(1)
        main(**vars(parser.parse_args()))
