"""A task's rows: a local folder laid out by dataset id, a folder of JSON Lines files, or the hub.

Layouts under DATA (also looked for in DATA/hf_datasets):

    <dataset id>/<config>/<split>/*.arrow       as `datasets.save_to_disk` writes it ("none": the only config)
    <dataset id>/<config>/<split>*.parquet      as the hub stores it (also .jsonl, .jsonl.gz)
    <short name>/[prefix]<split>[_suffix].jsonl[.gz]   e.g. arc/challenge_validation.jsonl.gz
    <short name>/<published name>.jsonl[.gz]           e.g. humaneval/HumanEval.jsonl.gz, for the first split
    <short name>/<published name>.tsv[.gz]             a question and its answer a line, e.g. mgsm/mgsm_de.tsv

Published files with a schema of their own become the hub's rows in `mirror`.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from bitworth.errors import BitworthError
from bitworth.guard.documents import json_of
from bitworth.tasks import mirror
from bitworth.tasks.base import RowSource

_EXTENSIONS = (".parquet", ".jsonl", ".jsonl.gz", ".json.gz", ".json", ".tsv", ".tsv.gz")


def read(task: RowSource, config: str | None, split: str, data: Path | None) -> Any:
    """One split of one configuration as a `datasets.Dataset` in the hub's schema, or None where it does not exist.

    Raises:
        BitworthError: a file that cannot be read, or a hub that does not answer.
    """
    if data is None:
        at, split = task.place(config, split)
        return _from_hub(task, at).get(split)
    files = find(task, config, split, data)
    if not files:
        return None
    try:
        return _from_files(task, config, files)
    except (OSError, ValueError, KeyError, EOFError, zlib.error) as error:
        raise BitworthError(f"Task {task.name}: {files[0]} cannot be read ({_first_line(error)}).") from error


def find(task: RowSource, config: str | None, split: str, data: Path) -> list[Path]:
    """The local files that hold a split, empty where there are none."""
    wanted = split
    subset = task.called(config)
    config, split = task.place(config, split)
    for root in (data, data / "hf_datasets"):
        for folder in (root / name / (config or "none") for name in task.folders):
            found = sorted((folder / split).glob("data-*.arrow")) or _named(folder, "", split)
            if found:
                return found
        for folder in (root / name for name in task.folders if config is None):
            found = sorted((folder / split).glob("data-*.arrow")) or _named(folder, "", split)
            if found:
                return found
        for prefix in task.prefixes:
            found = _named(root / task.flat, prefix, split)
            if found:
                return found
        for stem in task.stems if wanted == task.splits[0] else ():
            base = root / task.flat / stem.format(subset=subset)
            found = [path for path in (base.with_name(base.name + end) for end in _EXTENSIONS) if path.is_file()]
            if found:
                return found[:1]
    return []


def _named(folder: Path, prefix: str, split: str) -> list[Path]:
    """Files called `prefix + split` with an optional suffix such as `-00000-of-00001` or `_olmo`."""
    if not folder.is_dir():
        return []
    pattern = re.compile(rf"{re.escape(prefix + split)}([-_].*)?$")
    for extension in _EXTENSIONS:
        found = sorted(
            path
            for path in folder.iterdir()
            if path.name.endswith(extension) and pattern.match(path.name.removesuffix(extension))
        )
        if found:
            return found
    return []


class RowsAbsent(BitworthError):
    """A benchmark's rows are nowhere; the rest of a study can go on."""


def is_here(task: RowSource, data: Path | None) -> bool:
    """Whether the evaluated rows lie in the folder, or the hub's cache on this machine has the data set (no network).

    Few-shot examples may still be missing.
    """
    if data is not None:
        return any(has_split(task, split, data) for split in task.splits)
    import datasets

    name = task.dataset.replace("/", "___").lower()
    return any(folder.name.lower() == name for folder in Path(datasets.config.HF_DATASETS_CACHE).glob("*___*"))


def has_split(task: RowSource, split: str, data: Path) -> bool:
    """Whether a folder holds a split of every configuration."""
    return all(find(task, config, split, data) for config in task.configs())


def absent(task: RowSource, split: str, data: Path | None) -> RowsAbsent:
    """The sentence for rows that are nowhere."""
    first = task.configs()[0]
    at, place = task.place(first, split)
    flat = task.stems[0].format(subset=task.called(first)) if task.stems else f"{task.prefixes[0]}{split}"
    where = f"is not in {data}" if data is not None else "could not be had from the model hub"
    ways = ["running once where the hub answers" + (", having accepted its terms" if task.gated else "")]
    ways.append(
        f"pointing --data at a folder with {task.folders[0]}/{at or 'none'}/{place}/*.arrow (or .parquet) or "
        f"{task.flat}/{flat}.jsonl"
    )
    if task.in_demo:
        ways.append("using the demo's data (demo:data)")
    return RowsAbsent(
        f"Task {task.name}: the {place} split of {task.dataset} {where}; get it by {', or by '.join(ways)}."
    )


def fingerprint(task: RowSource, data: Path | None) -> str:
    """sha256 over every split the task may read."""
    digest = hashlib.sha256()
    seen: set[Path] = set()
    for config in task.configs():
        for split in (*task.splits, *([task.pool] if task.pool else ())):
            if data is None:
                for row in read(task, config, split, None) or ():
                    digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode())
                continue
            for path in find(task, config, split, data):
                if path not in seen:
                    seen.add(path)
                    digest.update(f"{split}/{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    if data is not None and not seen:
        raise absent(task, task.splits[0], data)
    return digest.hexdigest()


def _from_files(task: RowSource, config: str | None, files: list[Path]) -> Any:
    import datasets

    if files[0].suffix == ".arrow":
        # In memory: `datasets` would otherwise write the cache of every map beside the rows, into the user's folder.
        return datasets.concatenate_datasets([datasets.Dataset.from_file(str(path), in_memory=True) for path in files])
    if files[0].suffix == ".parquet":
        return datasets.Dataset.from_parquet([str(path) for path in files], keep_in_memory=True)
    rows = [row for path in files for row in _json_rows(path, task.dataset)]
    if task.subset_key is not None:
        rows = [row for row in rows if row.get(task.subset_key, config) == config]
    return datasets.Dataset.from_list(rows) if rows else None


def _json_rows(path: Path, dataset: str) -> tuple[dict[str, Any], ...]:
    """All rows of a file in the hub's schema."""
    return _cached_rows(path, path.stat().st_mtime_ns, dataset)


@functools.lru_cache(maxsize=4)
def _cached_rows(path: Path, _changed_ns: int, dataset: str) -> tuple[dict[str, Any], ...]:
    """Rows of a file as it is now; cached because one file holds all of MMLU's 57 subjects."""
    return tuple(row for raw in _parse(path) for row in mirror.hub_rows(dataset, raw))


def _parse(path: Path) -> Iterator[dict[str, Any]]:
    with _opened(path) as lines:
        if ".tsv" in path.suffixes:
            yield from _table(lines)
            return
        if ".jsonl" not in path.name:
            document = json_of(lines.read())
            yield from document if isinstance(document, list) else [document]
            return
        for line in lines:
            if line.strip():
                yield json_of(line)


def _table(lines: TextIO) -> Iterator[dict[str, Any]]:
    """A table without a head: a question and its answer a line (MGSM)."""
    for line in lines:
        question, tab, answer = line.rstrip("\n").rpartition("\t")
        if not tab:
            raise ValueError("a line without a tab")
        yield {"question": question, "answer": answer}


def _opened(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _from_hub(task: RowSource, config: str | None) -> Mapping[str, Any]:
    import datasets

    try:
        once = datasets.DownloadConfig(max_retries=1)
        found: Mapping[str, Any] = datasets.load_dataset(task.dataset, config, download_config=once)
    except (OSError, ValueError, RuntimeError) as error:
        # `datasets` reports an unreachable hub as ConnectionError (an OSError) and offline mode as ValueError.
        raise absent(task, task.splits[0], None) from error
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
