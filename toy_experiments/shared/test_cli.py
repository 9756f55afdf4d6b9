"""Tests of how the commands of the experiments end."""

import pytest
import torch

import dlsgan
from toy_experiments.shared import cli


@pytest.mark.parametrize(
    ("fault", "code", "told"),
    [
        (dlsgan.UserError("no such run"), 2, "name: no such run"),
        (OSError(28, "No space left on device"), 2, "name: [Errno 28] No space left on device"),
        (torch.OutOfMemoryError("CUDA out\nof memory"), 2, "name: CUDA out of memory"),
        (MemoryError(), 2, "name: MemoryError"),
        (KeyboardInterrupt(), 130, "name: stopped"),
    ],
)
def test_mistakes_faults_of_the_machine_and_ctrl_c_are_one_line(fault, code, told, capsys):
    with pytest.raises(SystemExit) as end, cli.one_line("name"):
        raise fault
    assert end.value.code == code
    error = capsys.readouterr().err
    assert error.startswith(told) and error.count("\n") == 1


def test_bugs_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), cli.one_line("name"):
        1 / 0  # noqa: B018
