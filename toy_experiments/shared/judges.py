"""Judges of a trained DLSGAN: its samples, its reconstructions, the factors of cartoon faces that it knows,
how its digits read, and which attributes of photographs it keeps. Images are [N, C, H, W] in [-1, 1]. Nothing
to run here."""

import gzip
import hashlib
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

import dlsgan
from toy_experiments.shared import classifiers
from toy_experiments.shared.distances import samples_like, swd

LABELS_SHA256 = {  # of the decoded files
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


@torch.no_grad()
def quality(model: dlsgan.DLSGAN, test: Tensor) -> dict:
    """dlsgan.evaluate on the first half of the test images, and the sliced Wasserstein distance times 1000 of
    as many samples to them. swd_of_test_images is that of the second half: the best that can be expected."""
    half = len(test) // 2
    result = dlsgan.evaluate(model, test[:half], 50)
    result["v"].sort(reverse=True)
    result["swd"] = swd(samples_like(model, test[:half]), test[:half])["mean"]
    result["swd_of_test_images"] = swd(test[half : 2 * half], test[:half])["mean"]
    result["swd_ratio"] = result["swd"] / result["swd_of_test_images"]
    return result


@torch.no_grad()
def live_latents(model: dlsgan.DLSGAN, x: Tensor) -> Tensor:
    """z_hat of images in the live dimensions (v > 1/2 on generated images) alone: [N, number of them]."""
    generated = dlsgan.in_batches(model.encode, model.sample(1000, seed=10**6).clamp(-1, 1))
    live = generated.square().mean(0) > 0.5
    return dlsgan.in_batches(model.encode, x)[:, live]


def ridge_scores(codes: Tensor, u: Tensor) -> list[float]:
    """R^2 of each factor, u [N, K], by ridge regression from codes [N, k]: fitted on two thirds of the rows,
    scored on the others."""
    if codes.shape[1] == 0:
        return [0.0] * u.shape[1]
    codes = codes.double().numpy()
    u = u.double().numpy()
    cut = 2 * len(codes) // 3
    fit = Ridge().fit(codes[:cut], u[:cut])
    error = ((fit.predict(codes[cut:]) - u[cut:]) ** 2).mean(0) / u[cut:].var(0)
    return (1 - error).tolist()


def reading_scores(network: nn.Module, x: Tensor, u: Tensor) -> list[float]:
    """R^2 of what a regressor reads off images against the factors u [N, K] that these should show."""
    error = (classifiers.read(network, x) - u).square().mean(0) / u.var(0, correction=0)
    return (1 - error).tolist()


@torch.no_grad()
def factors(model: dlsgan.DLSGAN, regressor: nn.Module, n: int = 3000) -> dict:
    """How much of each factor of unseen cartoon faces the live dimensions know, how much of it
    reconstructions show, and how much the regressor sees in the faces themselves: R^2, a list of eight
    each."""
    resolution = 4 * 2 ** len(model.generator.blocks)
    x, u = dlsgan.cartoon_faces(n, resolution, seed=30)  # seeds 0 to 21 are those of dlsgan.load_cartoon
    x = x.contiguous(memory_format=torch.channels_last)
    y = dlsgan.in_batches(model.reconstruct, x[: n // 3])
    return {
        "r2_latents": ridge_scores(live_latents(model, x), u),
        "r2_reconstructions": reading_scores(regressor, y, u[: n // 3]),
        "r2_faces": reading_scores(regressor, x[: n // 3], u[: n // 3]),
    }


def probabilities(network: nn.Module, x: Tensor) -> Tensor:
    """Of the ten digits: grey images [N, 1, H, W] -> [N, 10]."""
    return classifiers.read(network, x.expand(-1, 3, -1, -1)).softmax(1)


@torch.no_grad()
def digits(model: dlsgan.DLSGAN, classifier: nn.Module, test: Tensor) -> dict:
    """Whether digits can be read. readable, readable_test: shares of samples and of test images of which the
    classifier is more than 95% sure; classes: how many of the ten make up 5 to 15% of the samples; kept:
    share of test images whose reconstruction is read as the same digit."""
    samples = probabilities(classifier, samples_like(model, test))
    real = probabilities(classifier, test)
    restored = probabilities(classifier, dlsgan.in_batches(model.reconstruct, test))
    shares = samples.argmax(1).bincount(minlength=10) / len(samples)
    return {
        "readable": (samples.amax(1) > 0.95).float().mean().item(),
        "readable_test": (real.amax(1) > 0.95).float().mean().item(),
        "classes": int(((shares >= 0.05) & (shares <= 0.15)).sum()),
        "kept": (restored.argmax(1) == real.argmax(1)).float().mean().item(),
    }


def read_labels(path: str | Path) -> np.ndarray:
    """Labels in MNIST's IDX format, gzipped or not: uint8 [N]."""
    with dlsgan.explain(f"{path} is not a readable IDX file of labels"):
        raw = dlsgan.read_bytes(str(path))
        magic, count = np.frombuffer(raw[:8], ">u4").tolist()
        dlsgan.require(magic == 0x801, f"its magic number is {magic:#x}, not 0x801")
        dlsgan.require(len(raw) == 8 + count > 8, f"it announces {count} labels and has {len(raw) - 8}")
        labels = np.frombuffer(raw, np.uint8, offset=8)
        dlsgan.require(labels.max() < 10, "a label is larger than 9")
        return labels


def download_labels(name: str, folder: str) -> str:
    """Fetches a file of MNIST's labels into the folder; returns its path there."""
    path = Path(folder, f"{name}.gz")
    url = f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}.gz"
    with dlsgan.explain(f"{path} is missing and cannot be downloaded from {url}"):
        data = urllib.request.urlopen(url, timeout=30).read()
        right = hashlib.sha256(gzip.decompress(data)).hexdigest() == LABELS_SHA256[name]
        dlsgan.require(right, "wrong checksum of what was sent")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return str(path)


def mnist_labels(data_dir: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels of the training and of the test images, from the original files, which are found where
    dlsgan.load_mnist finds those of the images, and downloaded when absent."""
    files = dlsgan.list_files(data_dir)
    result = []
    for name in LABELS_SHA256:
        pattern = name.replace("-", ".?") + "[^/]*$"  # Kaggle's train-labels.idx1-ubyte, too
        paths = dlsgan.find(files, pattern) or [download_labels(name, data_dir)]
        labels = read_labels(paths[0])
        for path in paths[1:]:
            same = np.array_equal(read_labels(path), labels)
            dlsgan.require(same, f"{paths[0]} and {path} differ: remove one")
        result.append(labels)
    return result[0], result[1]


def labelled_digits(images: np.ndarray, labels: np.ndarray, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of digits, as [B, 3, H, W], and their labels [B]."""
    rows = np.arange(len(images)).reshape(-1, 1, 1, 1)
    for batch in dlsgan.batches(rows, min(64, len(rows)), seed, 0, False):
        i = batch.ravel()
        yield dlsgan.to_float(images[i]).expand(-1, 3, -1, -1), torch.from_numpy(labels[i]).long()


def kept_network(path: Path, resolution: int, outputs: int, train: Callable[[], nn.Module]) -> nn.Module:
    """The judge in a file, which is trained and written when it is absent."""
    if not path.exists():
        dlsgan.save_checkpoint(path, train().state_dict())
    network = classifiers.judge_network(resolution, outputs)
    with dlsgan.explain(
        f"{path} is not a judge of {resolution}x{resolution} (delete it to train another)",
        *dlsgan.LOADING_FAULTS,
    ):
        network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval().requires_grad_(False)


def factor_regressor(folder: Path, resolution: int, steps: int = 1500) -> nn.Module:
    """Reads the factors off cartoon faces; learns from faces drawn for it. A minute on one core."""

    def train() -> nn.Module:
        faces = classifiers.drawn_faces(resolution)
        return classifiers.train_judge(faces, F.mse_loss, resolution, 8, steps, seed=0)

    return kept_network(folder / f"factors-{resolution}.pt", resolution, 8, train)


def digit_classifier(folder: Path, config: dlsgan.Config, steps: int = 2000) -> tuple[nn.Module, float]:
    """Reads MNIST's digits, and its accuracy on the test images. Two minutes on one core."""
    images, test_images = dlsgan.load_mnist(config)
    labels, test_labels = mnist_labels(config.data_dir)
    same = (len(images), len(test_images)) == (len(labels), len(test_labels))
    dlsgan.require(same, f"{config.data_dir} does not have a label for each image")

    def train() -> nn.Module:
        examples = labelled_digits(images, labels, seed=0)
        return classifiers.train_judge(examples, F.cross_entropy, config.resolution, 10, steps, seed=0)

    network = kept_network(folder / f"digits-{config.resolution}.pt", config.resolution, 10, train)
    right = probabilities(network, dlsgan.to_float(test_images)).argmax(1) == torch.tensor(test_labels)
    return network, right.float().mean().item()


class Material(NamedTuple):
    """What judging or editing attributes needs of a data set."""

    names: Sequence[str]  # of the K attributes
    judge: Callable[[Tensor], Tensor]  # x [N, 3, H, W] -> values [N, K]
    threshold: float  # of these values, above which an image has the attribute
    scores: dict[str, list[float]]  # how good the judge is, per attribute
    images: Tensor  # labelled
    labels: np.ndarray  # bool [N, K]
    test: Tensor  # other images; the first are edited
    test_labels: np.ndarray  # bool [M, K]


def celeba_material(config: dlsgan.Config, labelled: int = 8000, judge_steps: int = 1000) -> Material:
    """Half of the training images are for the normals, the other half for the judge."""
    train_images, test_images = dlsgan.load_celeba(config)
    labels = classifiers.celeba_labels(config)
    order = np.random.default_rng(0).permutation(len(train_images))
    half = len(order) // 2
    fit = np.sort(order[:half][:labelled])
    judge = classifiers.attribute_classifier(train_images, labels, np.sort(order[half:]), judge_steps)
    test_labels = labels[len(train_images) :]
    test = dlsgan.to_float(test_images)
    right = (judge(test).numpy() > 0.5) == test_labels
    scores = {
        "accuracy": right.mean(0).round(4).tolist(),
        "share of test images": test_labels.mean(0).round(4).tolist(),
    }
    images = dlsgan.to_float(train_images[fit])
    return Material(classifiers.CELEBA_ATTRIBUTES, judge, 0.5, scores, images, labels[fit], test, test_labels)


@torch.no_grad()
def recognised(model: dlsgan.DLSGAN, material: Material) -> dict[str, dict[str, float]]:
    """Balanced accuracy of each attribute on test images: of a logistic regression on z_hat, fitted on the
    labelled images, with ten times scikit-learn's usual penalty on its coefficients (C=0.1); of the judge on
    reconstructions, and on the images themselves."""
    z_labelled = dlsgan.in_batches(model.encode, material.images)
    z_test = dlsgan.in_batches(model.encode, material.test)
    by_codes = []
    for label in material.labels.T:
        regression = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced"))
        by_codes.append(regression.fit(z_labelled.numpy(), label).predict(z_test.numpy()))
    reconstructions = dlsgan.in_batches(model.decode, z_test)
    read = {
        "from z_hat": np.stack(by_codes, 1),
        "from reconstructions": (material.judge(reconstructions) > material.threshold).numpy(),
        "from the images": (material.judge(material.test) > material.threshold).numpy(),
    }
    result = {}
    for source, values in read.items():
        pairs = zip(material.test_labels.T, values.T, strict=True)
        scores = [round(float(balanced_accuracy_score(a, b)), 4) for a, b in pairs]
        result[source] = dict(zip(material.names, scores, strict=True))
    return result
