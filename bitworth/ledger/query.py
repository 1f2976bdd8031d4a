"""SQL over a results folder: DuckDB reads the index's columns.

cells        a row a result: key, kind, format, task, title, finished, seconds, answers, score (mean), engine,
             kernel, device, planned (whether the folder's plan has it; true where there is no plan)
answers      a row an answer: key, format, task, item, prediction, score, subject, cluster, text, logprobs, measures
recoveries   a row a task and format: baseline, quantized, recovery_pct, questions; over the answers that are planned,
             paired question by question (Kurtic et al. 2025, arXiv 2411.02355, section 4). Intervals and verdicts
             are `bitworth recommend`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitworth.errors import BitworthError
from bitworth.ledger.folder import Ledger
from bitworth.ledger.index import Index, Segments
from bitworth.ledger.values import key_of
from bitworth.types import BASELINE

if TYPE_CHECKING:
    import duckdb

MEMORY = "512MB"
"""What DuckDB may hold; beyond it, it says so."""
RECOVERIES = "select * from recoveries order by task, format"
CELLS = "select kind, format, title, answers, score, seconds, key from cells order by kind, title, key"

_VIEWS = f"""
create view cells as
  select c.*, (select count(*) = 0 from planned) or c.key in (select key from planned) as planned from stored_cells c;
create view answers as select * from stored_answers;
create view recoveries as
  with asked as (select a.format, a.task, a.item, a.score from answers a
                 where a.key in (select key from cells where planned)),
       base as (select * from asked where format = '{BASELINE}')
  select a.task, a.format, avg(b.score) as baseline, avg(a.score) as quantized,
         case when avg(b.score) > 0 then 100 * avg(a.score) / avg(b.score) end as recovery_pct, count(*) as questions
  from asked a join base b on a.task = b.task and a.item = b.item
  where a.format <> '{BASELINE}' group by a.task, a.format;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """What a query gave; `more` where there were rows beyond those that were asked for."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    more: bool


def query(ledger: Ledger, sql: str, *, most: int = 1000) -> Rows:
    """Run one query on the results as they are now.

    It reads the folder's columns and nothing else: no other file, no network, whatever the text asks for.

    Args:
        ledger: a results folder.
        sql: a query over the views above.
        most: rows to give at most.

    Raises:
        BitworthError: the query does not run, or the folder holds no results.
        WorkFailed: the index cannot be written.
    """
    if not ledger.names():
        raise BitworthError(f"{ledger.root} holds no results; name a folder that bitworth wrote results into.")
    import duckdb

    with Index(ledger).opened() as segments, _connected(ledger, segments) as connection:
        try:
            found = connection.execute(sql)
            if found is None:
                raise BitworthError("The query is empty; `select * from recoveries` is one.")
            columns = tuple(entry[0] for entry in found.description or ())
            rows = found.fetchmany(most + 1) if columns else []
        except duckdb.Error as error:
            raise BitworthError(f"The query does not run: {_sentence(error)}") from error
    kept = tuple(tuple(map(_plain, row)) for row in rows[:most])
    return Rows(columns=columns, rows=kept, more=len(rows) > most)


@contextmanager
def _connected(ledger: Ledger, segments: Segments) -> Iterator[duckdb.DuckDBPyConnection]:
    import duckdb

    connection = duckdb.connect(config={"memory_limit": MEMORY, "threads": 2})
    try:
        connection.execute("create table planned (key varchar)")
        planned = [[key] for key in _planned(ledger)]
        if planned:
            connection.executemany("insert into planned values (?)", planned)
        for name, paths in (("stored_cells", segments.cells), ("stored_answers", segments.answers)):
            connection.execute(f"create view {name} as select * from read_parquet([{_listed(paths)}])")
        connection.execute(_VIEWS)
        connection.execute(f"set allowed_paths = [{_listed(segments.files())}]")
        connection.execute("set enable_external_access = false")
        connection.execute("set lock_configuration = true")
        yield connection
    finally:
        connection.close()


def _planned(ledger: Ledger) -> list[str]:
    try:
        return [key_of(cell) for cell in ledger.read_plan()]
    except BitworthError:
        return []


def _listed(paths: tuple[Path, ...]) -> str:
    return ", ".join("'" + str(path.resolve()).replace("'", "''") + "'" for path in paths)


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    return value if value is None or isinstance(value, bool | int | float | str | list | dict) else str(value)


def _sentence(error: Exception) -> str:
    """The first paragraph of what DuckDB says, in one line."""
    text = " ".join(str(error).split("\n\n")[0].split())
    return text if text.endswith((".", "!")) else f"{text}."
