"""GuideLLM (the field's load generator) as a second client, run by a command of its own, and its reports as a source.

Its 0.8 reports keep, a request, when it was due, when it went out, when its first and its last token came and how many
there were, but not when each token came: an inter-token latency is then a request's mean. Its latency runs to the end
of the HTTP answer; ours, here too, to the last token. GuideLLM generates its own prompts, from the tokenizer of a model
folder.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitworth.engines.schedule import streams_of
from bitworth.errors import BitworthError, Unsupported, WorkFailed
from bitworth.guard import keys
from bitworth.guard.documents import MOST_NESTED, json_of
from bitworth.load.metrics import MOST_FAILED
from bitworth.types import EngineFacts, Load, Timing, UseCase

COMMAND = "guidellm"
#: What GuideLLM calls our loads; its own `throughput` sends everything at once.
_PROFILES = {
    "synchronous": "kind=synchronous",
    "throughput": "kind=concurrent,streams={streams}",
    "constant": "kind=constant,rate={rate:g}",
    "poisson": "kind=poisson,rate={rate:g}",
}
#: How its log tells what became of requests so far.
_COUNTS = re.compile(r"successful=(\d+) errored=(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class GuideRun:
    """One benchmark of a report: its load by name, and its requests in order of their start."""

    load: str
    timings: tuple[Timing, ...]
    version: str


class GuideLlm:
    """Drives a server through GuideLLM; see `engines.generator.Driver`."""

    def __init__(
        self, url: str, model: str, tokenizer: Path, facts: EngineFacts, command: str = COMMAND, silent_s: float = 600.0
    ) -> None:
        """Drive the server at `url`.

        Args:
            url: of the server.
            model: the name under which it serves the model.
            tokenizer: the model's folder.
            facts: what is known of the server.
            command: GuideLLM's program, by name or path.
            silent_s: a request fails when the server is silent for so long.

        Raises:
            BitworthError: there is no such program.
        """
        found = shutil.which(command)
        if found is None:
            raise BitworthError(
                f"There is no program '{command}'; install guidellm in an environment of its own and name its command "
                "with --guidellm."
            )
        self._command, self._url, self._model, self._tokenizer = found, url.removesuffix("/v1"), model, tokenizer
        self._facts, self._silent_s = facts, silent_s

    @property
    def facts(self) -> EngineFacts:
        """What the server's figures are measured with."""
        return self._facts

    def drive(self, use_case: UseCase, load: Load, count: int, seed: int) -> list[Timing]:
        """`count` requests of a use case under a load, in order of their start.

        Raises:
            Unsupported: a load that GuideLLM is not asked for here.
            WorkFailed: it did not finish, or wrote no report.
        """
        if load.kind not in _PROFILES:
            raise Unsupported(f"GuideLLM is not driven through a {load.kind} load here; use --client bitworth.")
        with tempfile.TemporaryDirectory(prefix="bitworth-guidellm-") as scratch:
            report = Path(scratch) / "report.json"
            self._run(self._arguments(use_case, load, count, seed, report), Path(scratch) / "log")
            if not report.is_file():
                raise WorkFailed("GuideLLM finished without a report.")
            return [timing for run in read_report(report) for timing in run.timings]

    def _arguments(self, use_case: UseCase, load: Load, count: int, seed: int, report: Path) -> list[str]:
        profile = _PROFILES[load.kind].format(rate=load.rate or 0.0, streams=streams_of(load))
        shape = f"prompt_tokens={use_case.prompt_tokens},output_tokens={use_case.output_tokens}"
        server = f"target={self._url},model={self._model},timeout={self._silent_s:g}"
        return [
            *(self._command, "run", "--disable-console"),
            *("--backend", f"kind=openai_http,{server},request_format=/v1/completions"),
            *("--tokenizer", f"kind=huggingface_auto,model={self._tokenizer}"),
            *("--data", f"kind=synthetic_text,{shape}"),
            *("--profile", profile),
            *("--constraint", f"kind=max_requests,count={count}"),
            # So many failures make the run worthless; a server that hangs should not cost a silence a request.
            *("--constraint", f"kind=max_errors,count={math.floor(MOST_FAILED * count) + 1}"),
            *("--seed", f"kind=static,value={seed}"),
            *("--output", f"kind=json,path={report}"),
        ]

    def _run(self, arguments: Sequence[str], log: Path) -> None:
        """Run to the end; whatever happens, none of its processes is left."""
        environment = {name: value for name, value in os.environ.items() if name not in keys.NAMES}
        with log.open("wb") as output:
            process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                env=environment,
            )  # fmt: skip
            try:
                status = process.wait()
            finally:
                _end(process)
        if status:
            raise WorkFailed(f"GuideLLM stopped with status {status}: {_last_words(log)}.")


def _last_words(log: Path) -> str:
    """A log's last line, and how many requests had succeeded and failed when it last told."""
    text = log.read_text(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    counts = _COUNTS.findall(text)
    last = lines[-1][:300].rstrip(".") if lines else "it says nothing"
    return f"{last} ({counts[-1][0]} requests had succeeded, {counts[-1][1]} failed)" if counts else last


def read_report(path: Path) -> tuple[GuideRun, ...]:
    """The benchmarks of a JSON report.

    Raises:
        BitworthError: the file cannot be read, or is no report of a version that is known (0.8).
    """
    try:
        report = json_of(path.read_bytes(), nested=MOST_NESTED)
        version = str(report["metadata"]["guidellm_version"])
        return tuple(_run_of(row, version) for row in report["benchmarks"])
    except OSError as error:
        raise BitworthError(f"The report {path} cannot be read: {error.strerror}.") from error
    except (ArithmeticError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BitworthError(
            f"{path} is not a JSON report of GuideLLM 0.8 ({type(error).__name__}: {error}); write one with "
            "`guidellm run ... --output kind=json,path=FILE`."
        ) from error


def _run_of(benchmark: Mapping[str, Any], version: str) -> GuideRun:
    strategy = benchmark["config"]["strategy"]
    load = _load(strategy)
    # Requests that were under way when the time was up are neither successes nor failures.
    rows = [*(benchmark["requests"]["successful"] or []), *(benchmark["requests"]["errored"] or [])]
    sent = [row for row in rows if row["info"]["timings"]["request_start"] is not None]
    began = min((row["info"]["timings"]["request_start"] for row in sent), default=0.0)
    timings = [_timing(row, began, timed="@" in load) for row in sent]
    return GuideRun(load=load, timings=tuple(sorted(timings, key=lambda timing: timing.start_s)), version=version)


def _load(strategy: Mapping[str, Any]) -> str:
    """A strategy by our names."""
    kind = str(strategy["type_"])
    if kind in ("constant", "poisson", "async"):
        return f"{'constant' if kind == 'async' else kind}@{float(strategy['rate']):g}"
    return Load(kind="throughput", streams=int(strategy["streams"])).name if kind == "concurrent" else kind


def _timing(row: Mapping[str, Any], began: float, *, timed: bool) -> Timing:
    at = row["info"]["timings"]
    error = row["info"].get("error")
    first = at.get("first_token_iteration")
    ended = at.get("last_token_iteration") or at.get("request_end") or at["resolve_end"]
    counts = [int(row.get(name) or 0) for name in ("prompt_tokens", "output_tokens")]
    seconds = [time for time in (at["request_start"], first, ended, at["targeted_start"] if timed else None) if time]
    if not all(math.isfinite(time) for time in (*seconds, began)) or not all(0 <= count < 1e12 for count in counts):
        raise ValueError("a time or a count that cannot be")
    return Timing(
        start_s=at["request_start"] - began,
        first_token_s=None if first is None else first - began,
        end_s=ended - began,
        prompt_tokens=counts[0],
        output_tokens=counts[1],
        error=str(error) if error else None,
        due_s=at["targeted_start"] - began if timed else None,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the group, which is the process's own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
