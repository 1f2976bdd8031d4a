from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from bitworth.errors import Interrupted
from bitworth.states import InFiles, InMemory, States, writing

SHAPES = [(2, 3, 4), (1, 3, 4)]
CPU = torch.device("cpu")


def filled(kind: str, folder: Path) -> States:
    states: States = InMemory(CPU, CPU) if kind == "memory" else InFiles(CPU, folder, SHAPES)
    for index, shape in enumerate(SHAPES):
        states.append(torch.full(shape, float(index)))
    return states


@pytest.mark.parametrize("kind", ["memory", "files"])
def test_a_block_reads_what_the_last_one_wrote_and_a_killed_run_what_was_kept(kind: str, tmp_path: Path) -> None:
    states = filled(kind, tmp_path)
    for index in range(len(states)):
        assert states[index].shape == SHAPES[index]
        assert (states[index] == index).all()
        states[index] = states[index] + 10
    kept = states.turn(tmp_path)
    assert kept is not None
    for index in range(len(states)):
        assert (states[index] == index + 10).all()
        states[index] = states[index] + 10  # a block that is never finished
    again: States = InMemory(CPU, CPU) if kind == "memory" else InFiles(CPU, tmp_path, SHAPES)
    again.load(tmp_path / kept, SHAPES)
    assert [float(again[index].mean()) for index in range(2)] == [10, 11]
    assert again[1].shape == SHAPES[1]


def test_saving_from_memory_leaves_the_last_file_until_the_next_is_whole(tmp_path: Path) -> None:
    states = InMemory(CPU, CPU)
    states.append(torch.zeros(2, 3, 4))
    states._cost = 0.0
    names = []
    for _ in range(3):
        states._saved_at = -float("inf")
        names.append(states.turn(tmp_path))
    assert names[0] != names[1]
    assert names[0] == names[2]


def test_saving_from_memory_costs_a_tenth_of_the_time_at_most(tmp_path: Path) -> None:
    states = filled("memory", tmp_path)
    assert states.turn(tmp_path) is not None
    assert isinstance(states, InMemory)
    states._cost = 100.0  # as if it had taken so long
    assert states.turn(tmp_path) is None


def test_a_full_disk_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="could not be written: the disk is full"), writing(tmp_path / "x"):
        raise OSError(errno.ENOSPC, "No space left on device")
