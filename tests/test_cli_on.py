"""`--on` and `--storage`: what they mean, and one sentence for what they do not."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bitworth.cli.on import placed
from bitworth.errors import BitworthError
from bitworth.execute import ray
from bitworth.execute.fleet import FleetExecutor
from bitworth.execute.placement import Node
from bitworth.hardware import hardware


def test_without_on_cells_run_here(tmp_path: Path) -> None:
    with placed(None, None, tmp_path, [], print) as (executor, machines):
        assert (executor, machines) == (None, ())


@pytest.mark.parametrize(
    ("on", "storage", "said"),
    [
        ("slurm", None, "^--on slurm: cells run on `ray`"),
        (None, "s3://x", "^--storage is for cells that run elsewhere"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(on: str | None, storage: str | None, said: str, tmp_path: Path) -> None:
    with pytest.raises(BitworthError, match=said), placed(on, storage, tmp_path, [], print):
        raise AssertionError("it must not be used")


def test_timings_are_for_the_rows_that_the_cluster_has(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    class OneNode:
        def nodes(self) -> list[Node]:
            names = ("NVIDIA A100-SXM4-80GB",)
            return [Node(id="a", address="a", cpus=8, gpus=1, gpu_names=names, machine={"processor": "x"})]

    @contextmanager
    def connect(address: str | None, root: Path, **options: Any) -> Any:
        asked.append((address, root, options["storage"]))
        yield OneNode()

    monkeypatch.setattr(ray, "connect", connect)
    rows = [hardware("A100"), hardware("H100")]
    with placed("ray", None, tmp_path, rows, lambda _: None) as (executor, machines):
        assert isinstance(executor, FleetExecutor)
        assert machines == [{"processor": "x", "hardware": "1 x A100"}]
    with placed("ray://head:10001", "s3://b", tmp_path, rows, lambda _: None):
        pass
    assert asked == [(None, tmp_path, None), ("ray://head:10001", tmp_path, "s3://b")]
