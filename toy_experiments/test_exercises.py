"""Tests of exercises.py."""

import copy

import pytest
import torch

import dlsgan
from conftest import tiny
from toy_experiments import exercises, mnist


def flip_each_image(z, p, rng):
    """Other elements for each image."""
    return torch.where(torch.rand(z.shape, generator=rng) < p, -z, z)


def wrong_answer(name, solution):
    if isinstance(solution, set):
        return {*list(solution)[:2], "demodulation"}
    if isinstance(solution, tuple):
        return (lambda z: z, lambda x: x)  # inverts perfectly, but the images differ
    if name == "flip":
        return flip_each_image
    if callable(solution):
        return lambda *arguments: 1.1 * solution(*arguments)
    return (1.1 * torch.tensor(solution)).tolist()


@pytest.mark.parametrize("name", exercises.EXERCISES)
def test_exercises_accept_their_solution_and_no_other(name, capsys):
    solution = exercises.SOLUTIONS[name]
    assert exercises.check(name, solution) and capsys.readouterr().out == f"{name}: right\n"
    for answer in (wrong_answer(name, solution), None, "?"):
        assert not exercises.check(name, answer)
    assert exercises.EXERCISES[name].hint in capsys.readouterr().out
    assert not exercises.check(name)  # not answered yet
    assert exercises.EXERCISES[name].task in " ".join(capsys.readouterr().out.split())


def test_exercises_and_solutions_match():
    assert exercises.EXERCISES.keys() == exercises.SOLUTIONS.keys() and 8 <= len(exercises.EXERCISES) <= 14
    with_gradient = exercises.check("scale", lambda v: (len(v) * v / v.sum()).sqrt())  # the numbers are right
    assert not with_gradient


def steps_of_one_model(*steps):
    """The weights after one update of copies of a small model, each by its own step."""
    torch.manual_seed(0)
    first, weights = dlsgan.build(tiny()), []
    for step, options in steps:
        model = copy.deepcopy(first)
        networks = (model.generator, model.discriminator)
        optimizers = [torch.optim.SGD(network.parameters(), 1.0) for network in networks]
        step(model, optimizers, dlsgan.cartoon_faces(4, 16)[0], torch.Generator().manual_seed(0), **options)
        weights.append(
            [torch.cat([p.detach().flatten() for p in network.parameters()]) for network in networks]
        )
    return weights


def test_encoder_loss_in_d_only_leaves_the_generator_to_the_adversary():
    whole, without = ((dlsgan.train_step, {"encoder_weight": weight}) for weight in (3.0, 0.0))
    d_only = (mnist.encoder_loss_trains_d_only, {"encoder_weight": 3.0})
    ours, both, none = steps_of_one_model(d_only, whole, without)
    torch.testing.assert_close(ours[0], none[0])
    torch.testing.assert_close(ours[1], both[1])
    assert not torch.allclose(ours[0], both[0]) and not torch.allclose(ours[1], none[1])
