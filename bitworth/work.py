"""Runs one cell to its result, in a worker's process.

The worker keeps the models it last used, since cells of one format come one after another.
"""

from __future__ import annotations

import resource
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitworth.cells import calibration_of, workload_of
from bitworth.errors import BitworthError, Unsupported
from bitworth.execute import Tell
from bitworth.execute.parts import of_part
from bitworth.hardware import machine
from bitworth.ledger import Ledger, revive
from bitworth.types import Cell, Load, QuantizeResult, Recipe, TaskSpec
from bitworth.versions import installed

if TYPE_CHECKING:
    from bitworth.engines.generator import Completer
    from bitworth.engines.torch import TorchModel
    from bitworth.tasks import Loaded, LoadedOpen

_KEPT = 2
_models: OrderedDict[str, TorchModel] = OrderedDict()


def work(cell: Cell, root: str, tell: Tell) -> dict[str, Any]:
    """The cell's result as JSON values, with the machine and the peak memory of the process that made it.

    Raises:
        BitworthError: why there is no result.
    """
    _check_versions(cell)
    runner = {"quantize": _quantize, "evaluate": _evaluate, "diverge": _diverge, "benchmark": _benchmark}[cell.kind]
    result = runner(cell, Path(root), tell)
    return {**result, "machine": machine(), "peak_rss_mib": peak_rss_mib()}


def _check_versions(cell: Cell) -> None:
    """Refuse a worker that would compute with other packages than the cell's key says.

    Raises:
        BitworthError: a package of another version, or none.
    """
    for name, wanted in cell.inputs.get("versions", {}).items():
        here = installed(name)
        if here != wanted:
            raise BitworthError(
                f"This worker has {name} {here}, but the study was planned with {name} {wanted}; install the same "
                "versions wherever its cells run."
            )


def peak_rss_mib() -> float:
    """Most memory this process has held."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def get_ready(checkpoint: Path) -> None:
    """Load a model, and all that putting a task's questions to it in torch takes, before they are known.

    Raises:
        Exception: whatever the cell that asks will raise.
    """
    _model(checkpoint).packs()
    for name in ("transformers.generation.utils", "datasets", "lm_eval.api.task"):
        import_module(name)


def _quantize(cell: Cell, root: Path, tell: Tell) -> dict[str, Any]:
    """Make the cell's checkpoint, and along with it those of the plan that read the same hidden states."""
    _models.clear()
    company = _company(cell, root)
    try:
        found = _make([cell, *company], root, tell)
    except BitworthError:  # another recipe's fault must not be this one's
        if not company:
            raise
        found = _make([cell], root, tell)
    out = root / cell.where["out"]
    files = {path.name: path.stat().st_size for path in sorted(out.glob("*.safetensors"))}
    return {**asdict(replace(found, path=Path(cell.where["out"]))), "path": cell.where["out"], "files": files}


def _make(cells: Sequence[Cell], root: Path, tell: Tell) -> QuantizeResult:
    """The checkpoints of these cells in one walk; the first one's result."""
    from bitworth.devices import quantize_on

    first = cells[0]
    outs = {cell.format: root / cell.where["out"] for cell in cells}
    for out in outs.values():
        out.parent.mkdir(parents=True, exist_ok=True)
    return quantize_on(
        int(first.where.get("devices", 1)),
        Path(first.where["model"]),
        [revive(Recipe, cell.inputs["recipe"]) for cell in cells],
        outs,
        calibration=calibration_of(first),
        allow_group_fallback=first.inputs["allow_group_fallback"],
        device=first.inputs.get("device"),
        spread="data",
        progress=tell,
    )[0]


def _company(cell: Cell, root: Path) -> list[Cell]:
    """Other cells of the plan that quantize the same model on the same data without a stream of their own."""
    from bitworth.streams import walks_alone

    def fits(other: Cell) -> bool:
        if other.kind != "quantize" or other.inputs["calibration"] is None:
            return False
        shared = other.inputs["calibration"]["stream"] == "shared"
        return not walks_alone(revive(Recipe, other.inputs["recipe"]), shared=shared)

    def but_for_the_recipe(one: Cell) -> dict[str, Any]:
        return {name: value for name, value in one.inputs.items() if name != "recipe"}

    if "alone" in cell.where or not (root / "plan.json").is_file() or not fits(cell):
        return []
    others = [other for other in Ledger(root).read_plan() if other.format != cell.format and fits(other)]
    return [other for other in others if but_for_the_recipe(other) == but_for_the_recipe(cell)]


def _evaluate(cell: Cell, root: Path, tell: Tell) -> dict[str, Any]:
    from bitworth import tasks
    from bitworth.engines.prompts import context_tokens, load_tokenizer
    from bitworth.evaluation import answer_questions, takes_conversations
    from bitworth.hygiene import check_prompts

    spec = revive(TaskSpec, cell.inputs["task"])
    data, batch = cell.where.get("data"), cell.inputs.get("batch")
    folder, checkpoint = Path(data) if data else None, root / cell.where["checkpoint"]
    stretch = (batch[0], batch[1]) if batch else None
    chat = tasks.get(spec.name).chat and takes_conversations(checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    loaded = tasks.load(
        spec,
        folder,
        batch=stretch,
        chat=chat,
        unsafe=cell.inputs.get("unsafe", False),
        measure=lambda text: len(tokenizer.encode(text)),
    )
    prompts = asdict(check_prompts(loaded, tokenizer, context_tokens(checkpoint, tokenizer)))
    loaded = _part_of(loaded, cell.where.get("part"))
    named = cell.inputs.get("by_name", False)
    with _engine(cell.where.get("engine"), checkpoint, loaded, cell.inputs.get("device"), by_name=named) as model:
        answers = answer_questions(model, loaded, progress=tell)
    found = {"answers": [asdict(a) for a in answers], "task": dict(loaded.facts), "facts": asdict(model.facts)}
    return {**found, "prompts": prompts}


def _part_of(loaded: Loaded | LoadedOpen, part: str | None) -> Loaded | LoadedOpen:
    """The task with the questions of that part alone; see `execute.parts`."""
    from bitworth.tasks import LoadedOpen

    if isinstance(loaded, LoadedOpen):
        return replace(loaded, questions=tuple(of_part(loaded.questions, part)))
    return replace(loaded, questions=tuple(of_part(loaded.questions, part)))


@contextmanager
def _engine(
    name: str | None, checkpoint: Path, task: Loaded | LoadedOpen, device: str | None, *, by_name: bool = False
) -> Iterator[TorchModel | Completer]:
    """The exact engine (no name), or another, which can only write.

    Raises:
        BitworthError: another for a task that is not answered in writing.
    """
    if name is None:
        yield _model(checkpoint, device)
        return
    from bitworth.engines import open_completer
    from bitworth.engines.prompts import encode_prompt, load_tokenizer
    from bitworth.tasks import LoadedOpen

    if not isinstance(task, LoadedOpen):
        raise BitworthError(f"Task {task.task} scores given answers, which only the torch engine does; drop --engine.")
    _models.clear()  # a server should have the memory to itself
    tokenizer = load_tokenizer(checkpoint)
    longest = max(len(encode_prompt(tokenizer, question.prompt)) for question in task.questions)
    room = longest + task.sampling.max_tokens
    with open_completer(name, checkpoint, context_tokens=room, by_name=by_name) as completer:
        yield completer


def _diverge(cell: Cell, root: Path, tell: Tell) -> dict[str, Any]:
    from bitworth.evaluation import diverge

    device = cell.inputs.get("device")
    model = _model(root / cell.where["checkpoint"], device)
    baseline = _model(root / cell.where["baseline"], device) if "baseline" in cell.where else None
    text = Path(cell.where["text"]).read_text(encoding="utf-8")
    window, windows = cell.inputs["window"], cell.inputs["windows"]
    found = diverge(model, baseline, text, window=window, limit_windows=windows, progress=tell)
    return {"divergence": asdict(found), "facts": asdict(model.facts)}


def _benchmark(cell: Cell, root: Path, tell: Tell) -> dict[str, Any]:
    from bitworth.benchmarking import measure

    _models.clear()  # what it measures should have the memory to itself
    load = revive(Load, cell.inputs["load"])
    try:
        found = measure(
            root / cell.where["checkpoint"],
            workload_of(cell),
            load,
            engine=cell.inputs["engine"],
            requests=cell.inputs["requests"],
            progress=partial(tell, "requests"),
        )
    except Unsupported as reason:  # a fact about the format on this machine, as lasting as a figure
        return {"unsupported": str(reason), "timings": [], "facts": None}
    rates = [asdict(point) for point in found.rates]
    timings = [asdict(timing) for timing in found.timings]
    return {"unsupported": None, "timings": timings, "rates": rates, "facts": asdict(found.facts)}


def _model(checkpoint: Path, device: str | None = None) -> TorchModel:
    from bitworth.engines.torch import load_exact

    name = f"{checkpoint} on {device}"
    if name not in _models:
        while len(_models) >= _KEPT:
            _models.popitem(last=False)
        _models[name] = load_exact(checkpoint, device=device)
    _models.move_to_end(name)
    return _models[name]
