from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from bitworth.errors import BitworthError
from bitworth.hardware import LOCAL, NAMES, cpu_flags, gpus, hardware, is_this_machine, machine

SMI = """#!/bin/sh
cat <<END
{rows}
END
exit {status}
"""


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Sets which GPUs an nvidia-smi lists."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def install(*names: str, status: int = 0) -> None:
        rows = "\n".join(f"{index}, GPU-{index}aa, {name}" for index, name in enumerate(names))
        program = tmp_path / "nvidia-smi"
        program.write_text(SMI.format(rows=rows, status=status))
        program.chmod(0o755)

    return install


@pytest.mark.parametrize(
    ("name", "count", "usd"),
    [
        ("A6000", 1, 0.80),
        ("A6000", 4, 3.20),
        ("A100", 2, 3.58),
        ("H100", 1, 3.29),
        ("H100", 2, 6.38),
        ("H100", 8, 23.92),
    ],
)
def test_prices_are_the_papers(name: str, count: int, usd: float) -> None:
    row = hardware(name, count)
    assert (row.usd_per_hour, row.count) == (usd, count)
    assert "table 9" in row.price_source


def test_every_row_has_what_a_prediction_needs_and_a_priced_one_its_day() -> None:
    for name in NAMES[1:]:
        row = hardware(name)
        assert row.bandwidth_gb_s
        assert row.clock_ghz
        assert row.processors
        assert row.link_gb_s
        assert row.tera_ops["bf16"] < row.tera_ops["int8"]
        assert (row.usd_per_hour > 0) == bool(re.search(r"20\d\d-\d\d-\d\d$", row.price_source))


def test_int8_is_twice_bf16_and_only_h100_has_fp8() -> None:
    for name in ("A6000", "A100", "H100"):
        rates = hardware(name).tera_ops
        assert rates["int8"] == pytest.approx(2 * rates["bf16"], rel=0.01)
        assert ("fp8" in rates) == (name == "H100")


def test_local_is_this_machine_with_a_placeholder_price() -> None:
    row = hardware(LOCAL)
    assert row.memory_gib == pytest.approx(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, abs=0.1)
    assert "placeholder" in row.price_source
    assert is_this_machine(row)


@pytest.mark.parametrize(
    ("flags", "capability"),
    [
        ("", "cpu"),
        ("sse4_1 avx2", "avx2"),
        ("avx2 avx_vnni", "avx2_vnni"),
        ("avx2 avx512f", "avx512f"),
        ("avx2 avx512f avx512_vnni", "avx512_vnni"),
        ("avx2 avx512f avx512_vnni avx512_bf16 amx_int8", "avx512_bf16"),
    ],
)
def test_a_processors_capability(monkeypatch: pytest.MonkeyPatch, flags: str, capability: str) -> None:
    monkeypatch.setattr("bitworth.hardware.cpu_flags", lambda: frozenset(flags.split()))
    assert hardware(LOCAL).capability == capability


def test_an_unknown_name_is_one_sentence() -> None:
    with pytest.raises(BitworthError, match="did you mean 'H100'"):
        hardware("H10")
    with pytest.raises(BitworthError, match=", ".join(NAMES)):
        hardware("TPU")


@pytest.mark.parametrize(
    ("found", "row", "same"),
    [
        (["NVIDIA A100-SXM4-80GB"], ("A100", 1), True),
        (["NVIDIA A100-SXM4-80GB"], ("A100", 2), False),
        (["NVIDIA A100 80GB PCIe"] * 2, ("A100", 2), True),
        (["NVIDIA H100 80GB HBM3"], ("H100", 1), True),
        (["NVIDIA H100 80GB HBM3"], ("A100", 1), False),
        (["NVIDIA RTX A6000"], ("A6000", 1), True),
        (["NVIDIA RTX 6000 Ada Generation"], ("A6000", 1), False),
        (["NVIDIA GeForce RTX 4090"], ("RTX4090", 1), True),
        (["NVIDIA L40S"], ("L4", 1), False),
        (["NVIDIA H100 80GB HBM3", "NVIDIA RTX A6000"], ("H100", 2), False),
        ([], ("H100", 1), False),
    ],
)
def test_a_gpu_row_is_this_machine_when_name_and_count_match(smi, found, row, same) -> None:  # type: ignore[no-untyped-def]
    smi(*found)
    assert is_this_machine(hardware(*row)) is same


@pytest.mark.parametrize(
    ("visible", "names"),
    [("0", ["A"]), ("1,0", ["B", "A"]), ("GPU-1", ["B"]), ("", []), ("-1", []), ("1,-1,0", ["B"])],
)
def test_only_visible_gpus_count(smi, monkeypatch: pytest.MonkeyPatch, visible: str, names: list[str]) -> None:  # type: ignore[no-untyped-def]
    smi("A", "B")
    assert gpus() == ("A", "B")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert list(gpus()) == names


def test_a_driver_that_does_not_answer_means_no_gpu(smi, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    smi("A", status=9)
    assert gpus() == ()
    monkeypatch.setenv("PATH", "")
    assert gpus() == ()


def test_the_machine_in_words() -> None:
    words = machine()
    assert words["processor"]
    assert int(words["cores"]) >= 1
    assert words["memory"].endswith(" GiB")
    if Path("/proc/cpuinfo").exists() and os.uname().machine == "x86_64":
        assert "sse2" in cpu_flags()
