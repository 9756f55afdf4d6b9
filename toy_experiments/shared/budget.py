"""How many images training sees in a given processor time. Nothing to run here."""

import copy
import json
import time
from pathlib import Path

import torch

import dlsgan
from toy_experiments.shared import cli


def seconds_per_image(config: dlsgan.Config, steps: int = 96) -> float:
    """Processor seconds that training takes for a real image, from a few steps of an untrained model."""
    c = config
    torch.manual_seed(0)
    model = dlsgan.build(c).to(memory_format=torch.channels_last)
    networks = copy.deepcopy((model.generator, model.discriminator))
    average = dlsgan.DLSGAN(*networks, model.latent_scale).requires_grad_(False)
    optimizers = dlsgan.make_optimizers(model, c.lr)
    rng = torch.Generator().manual_seed(0)
    real = dlsgan.cartoon_faces(c.batch_size, c.resolution)[0][:, : dlsgan.image_channels(c)]
    real = real.contiguous(memory_format=torch.channels_last)
    start = 0.0
    for step in range(-8, steps):  # the first steps are slower and are not counted
        if step == 0:
            start = time.process_time()
        penalty_weight = dlsgan.penalty_weight(c, step, 0.0)
        dlsgan.train_step(model, optimizers, real, rng, c.loss, c.encoder_weight, penalty_weight)
        dlsgan.average_weights(average, model, step + 8)
    return (time.process_time() - start) / (steps * c.batch_size)


def images_within(minutes: float, config: dlsgan.Config, path: Path) -> int:
    """Real images that training sees in so much processor time. Speeds are kept in the file, so that all
    runs of the same cost get the same number."""
    c = config
    sizes = (c.dataset == "mnist", c.latent_dim, c.channel_base, c.channel_max, c.batch_size, c.r1_gamma > 0)
    kept = json.loads(path.read_text()) if path.exists() else {}
    if str(sizes) not in kept:
        kept[str(sizes)] = seconds_per_image(c)
        cli.write_json(path, kept)
    return max(1, round(60 * minutes / kept[str(sizes)] / c.batch_size)) * c.batch_size
