"""Parts side by side: in order, each alone in its thread, and nothing of it left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from bitworth.threads import side_by_side


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_parts_come_back_in_order(threads: int) -> None:
    assert side_by_side(lambda part: part * part, range(20)) == [part * part for part in range(20)]
    assert side_by_side(str, []) == []


def test_as_many_run_at_once_as_torch_has_threads(threads: int) -> None:
    meeting = threading.Barrier(threads, timeout=10)
    side_by_side(lambda _: meeting.wait(), range(threads))  # breaks where fewer are there at once


def test_each_multiplies_in_its_own_thread_alone(threads: int) -> None:
    found = side_by_side(lambda _: torch.get_num_threads(), range(4))
    assert set(found) == {1}
    assert torch.get_num_threads() == threads


def test_threads_that_come_later_have_torchs_own_number(threads: int) -> None:
    side_by_side(abs, range(4))
    found: list[int] = []
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert found == [threads]


@pytest.mark.parametrize("inference", [False, True])
def test_no_part_is_recorded_for_gradients(threads: int, inference: bool) -> None:
    weight = torch.ones(3, requires_grad=True)
    with torch.inference_mode(inference), torch.no_grad():
        made = side_by_side(lambda part: weight * part, range(4))
    assert not any(one.requires_grad for one in made)
    assert all(one.is_inference() == inference for one in made)


def test_what_a_part_raises_is_raised(threads: int) -> None:
    def work(part: int) -> None:
        if part == 2:
            raise ValueError("the third")

    with pytest.raises(ValueError, match="the third"):
        side_by_side(work, range(4))
    assert torch.get_num_threads() == threads
