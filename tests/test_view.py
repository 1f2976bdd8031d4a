"""The page of results folders: who may ask, what it says of studies that run, and that nothing it shows is trusted."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp.test_utils import TestClient, TestServer
from folders import write_results

from bitworth import running
from bitworth.assembly import assemble
from bitworth.errors import BitworthError
from bitworth.execute import Watcher, Work
from bitworth.ledger import Ledger
from bitworth.report import result_as_json
from bitworth.report.figures import percent
from bitworth.study import parse_study
from bitworth.types import Cell
from bitworth.view.answers import answer_page
from bitworth.view.folder import Folder
from bitworth.view.rows import Filters, figures_of, options_of
from bitworth.view.server import _is_ours, application

LUCK = random.Random(3)
SCORES = {
    "baseline": {"arc": [1, 1, 0, 1] * 20, "mmlu": [1, 0, 1, 1] * 20},
    "w8a8-fp": {"arc": [1, 1, 0, 1] * 20, "mmlu": [1, 0, 1, 0] * 20},
    "w4a16-int-rtn": {"arc": [1, 0, 0, 1] * 20, "mmlu": [1, 0, 0, 1] * 20},
}
SECONDS = {"baseline": [1.0, 1.1, 0.9], "w8a8-fp": [0.5, 0.6, 0.5]}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"

Ask = Callable[[TestClient[Any, Any]], Awaitable[Any]]


def study_of(root: Path, **changes: Any) -> Path:
    tasks = {"arc": "arc_challenge", "mmlu": "mmlu"}
    scores = {format: {tasks[name]: rows for name, rows in found.items()} for format, found in SCORES.items()}
    write_results(root, scores, SECONDS, **changes)
    return root


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return study_of(tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same answers, and an H100 on which nothing was timed: predicted from the model's config."""
    root = tmp_path_factory.mktemp("two")
    study_of(root, name="another", hardware=[{"name": "H100"}, {"name": "local"}])
    (root / "model.json").write_text(json.dumps(CONFIG))
    return root


def asking(roots: Iterable[Path], ask: Ask, hosts: Iterable[str] = ()) -> Any:
    """What `ask` gives with a client of these folders' page."""

    async def run() -> Any:
        async with TestClient(TestServer(application(list(roots), list(hosts)))) as client:
            return await ask(client)

    return asyncio.run(run())


def text_of(roots: Iterable[Path], path: str) -> str:
    async def ask(client: TestClient[Any, Any]) -> str:
        answer = await client.get(path)
        assert answer.status == 200, await answer.text()
        return await answer.text()

    found: str = asking(roots, ask)
    return found


class Page(HTMLParser):
    """Elements as (tag, attributes), and the text of each cell."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def fragment(words: str) -> str:
    return re.sub(r"\s+", " ", Page(words).text.replace("\u00a0", " "))


# --- what it shows ------------------------------------------------------------------------------------------------


def test_the_page_says_what_the_document_says(one: Path) -> None:
    said = fragment(text_of([one], "/"))
    document = result_as_json(assemble(one))
    for row in document["recoveries"]:
        assert percent(row["recovery_pct"], apart_from=95) in said
    for name in (
        "w8a8-fp",
        "w4a16-int-rtn",
        "arc_challenge",
        "mmlu",
        "rag, synchronous",
        "8 of 8 cells done; complete",
    ):
        assert name in said
    assert "80 questions" in said


def test_studies_stand_side_by_side(one: Path, two: Path) -> None:
    text = text_of([one, two], "/")
    assert "2 studies side by side" in text
    table = text[text.index("Table of recoveries") : text.index("</table>", text.index("Table of recoveries"))]
    assert re.findall(r'<th scope="col">(.*?)</th>', table) == ["Format", "made up", "another"]
    rows = re.findall(r'<tr><th scope="row" .*?</tr>', table, re.DOTALL)
    assert len(rows) == 6  # two formats, two tasks and the average
    assert all(row.count("<b>") == 2 for row in rows)
    assert '<span class="tag open">predicted</span>' in text  # nothing was timed on an H100


def test_filters_cut_rows_and_columns(one: Path, two: Path) -> None:
    results = {0: assemble(one), 1: assemble(two)}
    whole = figures_of(results, Filters())
    assert len(whole.recoveries.shown) == 6
    asked = figures_of(results, Filters(format="w8a8-fp", task="mmlu"))
    assert [row.names for row in asked.recoveries.shown] == [("w8a8-fp",)]
    assert {row.names[1] for row in figures_of(results, Filters(hardware="local")).costs.shown} == {"local"}
    for source in ("measured", "predicted"):
        found = figures_of(results, Filters(source=source)).costs.shown
        assert {value.cost.source for row in found for value in row.values.values()} == {source}
    assert figures_of(results, Filters(load="throughput")).costs.shown == ()
    assert options_of(results)["hardware"] == ["local", "H100"]
    text = text_of([one, two], "/figures?study=1&format=w8a8-fp")
    assert 'scope="col">another' in text
    assert 'scope="col">made up' not in text
    assert "w4a16-int-rtn" not in fragment(text)


def test_an_unknown_filter_finds_nothing_and_says_so(one: Path) -> None:
    text = text_of([one], "/?format=nonsense&colour=red")
    assert "No recovery of this kind." in text
    assert '<option value="nonsense" selected>' in text


def test_the_report_and_the_document_are_those_of_the_results(one: Path) -> None:
    document = json.loads(text_of([one], "/study/0/recommendation.json"))
    assert document == json.loads(json.dumps(result_as_json(assemble(one))))
    assert "What to deploy" in text_of([one], "/study/0/report.html")


def test_answers_side_by_side(one: Path) -> None:
    found = answer_page(Ledger(one), "mmlu", "w4a16-int-rtn")
    before, after = SCORES["baseline"]["mmlu"], SCORES["w4a16-int-rtn"]["mmlu"]
    changed = [str(at) for at, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]
    assert [row.item for row in found.questions] == changed
    assert (found.answered, found.changed, found.lost) == (80, len(changed), len(changed))
    whole = answer_page(Ledger(one), "mmlu", "w4a16-int-rtn", which="all", page=99)
    assert (whole.page, whole.pages, len(whole.questions)) == (2, 2, 30)
    text = text_of([one], "/study/0/answers?task=mmlu&format=w4a16-int-rtn&which=all&page=2")
    assert "Page 2 of 2" in text
    assert 'rel="prev"' in text
    assert "0 questions answered by both" in text_of([one], "/study/0/answers?task=none&format=none&page=x")


@pytest.mark.parametrize("row", [5, {}, {"task": "mmlu", "item": "x", "prediction": "A", "score": "high"}])
def test_answers_of_another_shape_are_a_sentence(tmp_path: Path, row: Any) -> None:
    folder = study_of(tmp_path / "s")
    ledger = Ledger(folder)
    (cell,) = (one for one in ledger.read_plan() if one.title == "mmlu on baseline")
    result = ledger.get(cell)
    assert result is not None
    ledger.put(cell, {**result, "answers": [*result["answers"], row]})

    async def ask(client: TestClient[Any, Any]) -> tuple[int, str]:
        answer = await client.get("/study/0/answers?task=mmlu&format=w8a8-fp")
        return answer.status, await answer.text()

    status, text = asking([folder], ask)
    assert status == 503
    assert "does not read back" in text
    assert "Unexpected" not in text


def test_everything_is_reachable_without_a_mouse_or_eyes(one: Path, two: Path) -> None:
    for path in ("/", "/study/0/answers"):
        page = Page(text_of([one, two], path))
        identifiers = [found["id"] for _, found in page.elements if "id" in found]
        assert len(identifiers) == len(set(identifiers))
        text = text_of([one, two], path)
        assert '<html lang="en">' in text
        assert all(f"<label>{label} <select" in text for label in re.findall(r"<label>(.*?) <select", text))
        assert len(page.all("select")) == len(page.all("label"))
        for region in [found for _, found in page.elements if found.get("role") == "region"]:
            assert region["tabindex"] == "0"
            assert region["aria-label"]
        assert all(found.get("aria-label") for found in page.all("progress"))
        for found in page.all("th"):
            assert found["scope"] in ("col", "row", "rowgroup")
        links = [found["href"] for found in page.all("a")]
        assert links[0] == "#main"
        for link in links:
            assert not (link or "").startswith("#") or (link or "")[1:] in identifiers


# --- nothing is trusted -------------------------------------------------------------------------------------------


def evil_study(root: Path) -> Path:
    """A study whose every name, path and answer is markup."""
    study_of(root, name=EVIL, model=EVIL)
    ledger = Ledger(root)
    for cell in ledger.read_plan():
        if cell.kind == "evaluate":
            record = ledger.get(cell)
            assert record is not None
            for row in record["answers"]:
                row |= {"prediction": EVIL, "text": EVIL, "group": EVIL, "item": EVIL + row["item"]}
            record["facts"] = {"engine": EVIL, "kernel": EVIL, "device": EVIL, "versions": {EVIL: EVIL}}
            ledger.put(cell, record)
    (root / "plan.json").write_text((root / "plan.json").read_text().replace("rag, ", json.dumps(EVIL)[1:-1]))
    first = ledger.read_plan()[0]
    ledger.path(first).unlink()
    ledger.fail(first, EVIL)
    return root


@pytest.mark.parametrize(
    "path", ["/", "/figures", "/study/0/answers?which=all", f"/?format={EVIL}", "/study/0/answers?task=" + EVIL]
)
def test_what_models_and_files_say_is_escaped(tmp_path: Path, path: str) -> None:
    page = Page(text_of([evil_study(tmp_path / EVIL.replace("/", "_"))], path))
    assert [found for found in page.all("script") if found.get("src") != "/view.js"] == []
    assert page.all("img") == []
    assert not any(name.startswith("on") for _, found in page.elements for name in found)


def test_the_policy_allows_what_the_page_uses_and_no_more(one: Path) -> None:
    async def ask(client: TestClient[Any, Any]) -> dict[str, Any]:
        paths = ("/", "/figures", "/state.json", "/view.js", "/view.css", "/nothing", "/study/9/report.html")
        return {path: (await client.get(path)).headers for path in paths}

    for headers in asking([one], ask).values():
        policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["frame-ancestors"] == "'none'"
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "Access-Control-Allow-Origin" not in headers
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    page = Page(text_of([one], "/"))
    assert not any("style" in found for _, found in page.elements)
    assert page.all("style") == []
    sources = [found.get("src") or found.get("href") for tag, found in page.elements if tag in ("script", "link")]
    assert sources == ["data:,", "/view.css", "/view.js"]
    assert not re.search(r"https?://", text_of([one], "/") + text_of([one], "/view.js") + text_of([one], "/view.css"))


def test_the_reports_policy_names_its_program(one: Path) -> None:
    async def ask(client: TestClient[Any, Any]) -> tuple[str, str]:
        answer = await client.get("/study/0/report.html")
        return answer.headers["Content-Security-Policy"], await answer.text()

    policy, text = asking([one], ask)
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/=]{44}'", policy)
    assert "frame-ancestors 'none'" in policy
    assert policy.split("script-src ")[1].split(";")[0] in text.replace("&#39;", "'")


@pytest.mark.parametrize(
    ("host", "hosts", "taken"),
    [
        ("127.0.0.1:8765", (), True),
        ("127.0.0.1", (), True),
        ("localhost:1", (), True),
        ("LOCALHOST", (), True),
        ("[::1]:8765", (), True),
        ("evil.example:8765", (), False),
        ("127.0.0.1.evil.example", (), False),
        ("localhost.evil.example", (), False),
        ("10.0.0.7:8765", (), False),
        ("", (), False),
        ("127.0.0.1:8765@evil.example", (), False),
        ("10.0.0.7:8765", ("*",), True),
        ("box", ("*", "box"), True),
        ("evil.example", ("*", "box"), False),
    ],
)
def test_hosts(host: str, hosts: tuple[str, ...], taken: bool) -> None:
    assert _is_ours(host, frozenset(hosts)) is taken


def test_a_rebound_name_gets_nothing(one: Path) -> None:
    async def ask(client: TestClient[Any, Any]) -> list[int]:
        paths = ("/", "/state.json", "/study/0/recommendation.json", "/view.js", "/nothing")
        return [(await client.get(path, headers={"Host": "evil.example"})).status for path in paths]

    assert asking([one], ask) == [403] * 5


def test_it_only_reads(one: Path) -> None:
    async def ask(client: TestClient[Any, Any]) -> list[int]:
        return [(await client.request(how, "/state.json")).status for how in ("POST", "PUT", "DELETE", "PATCH")]

    before = {path: path.stat().st_mtime_ns for path in one.rglob("*")}
    assert asking([one], ask) == [405] * 4
    text_of([one], "/")
    assert {path: path.stat().st_mtime_ns for path in one.rglob("*")} == before


# --- studies that run ---------------------------------------------------------------------------------------------


def test_only_what_changed_is_read(tmp_path: Path) -> None:
    folder = Folder(study_of(tmp_path))
    first = folder.look()
    assert (first.done, first.total, folder.reads) == (8, 8, 0)
    folder.result()
    assert folder.reads == 8
    folder.result()
    assert folder.reads == 8
    assert folder.look().version == first.version
    ledger = Ledger(tmp_path)
    cell = ledger.read_plan()[3]
    ledger.put(cell, ledger.get(cell) or {}, seconds=7.0)
    assert folder.look().version == first.version + 1
    folder.result()
    assert folder.reads == 9
    ledger.path(cell).unlink()
    assert folder.look().done == 7
    assert [row.title for row in folder.result().missing] == [cell.title]
    ledger.fail(cell, "It broke.")
    assert folder.look().failed == 1
    assert folder.reads == 9


def test_what_is_remembered_gives_the_same_result(one: Path, two: Path) -> None:
    for root in (one, two):
        assert Folder(root).result() == assemble(root)


def test_what_is_remembered_is_all_that_counts(tmp_path: Path) -> None:
    """Written answers and log-probabilities, which tell where two models part, and groups and clusters."""
    ledger = Ledger(study_of(tmp_path))
    for cell in ledger.read_plan():
        found = ledger.get(cell)
        if cell.kind == "evaluate" and found is not None:
            for at, row in enumerate(found["answers"]):
                written = cell.inputs["task"]["name"] == "mmlu"
                said = {"text": f"{cell.format} says {at % 7}"} if written else {"logprobs": [-1.0 - at % 5, -2.0]}
                row |= {**said, "group": f"subject {at % 3}", "cluster": str(at // 2), "measures": {"strict": 1.0}}
            ledger.put(cell, found, seconds=50.0)
    folder, whole = Folder(tmp_path), assemble(tmp_path)
    assert whole.groups
    assert folder.result() == whole
    assert folder.result() == whole  # from memory


def test_a_folder_that_settled_is_not_listed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = study_of(tmp_path)
    for path in [*root.glob("cells/*"), *root.glob("failures")]:
        os.utime(path, (time.time() - 60, time.time() - 60))
    listed: list[Any] = []
    scandir = os.scandir
    monkeypatch.setattr("bitworth.view.folder.os.scandir", lambda path: listed.append(path) or scandir(path))
    folder = Folder(root)
    looked = len(listed)
    for _ in range(5):
        folder.look()
    assert len(listed) == looked


class Stepwise:
    """An executor that tells of half of each cell and then waits to be let on."""

    def __init__(self) -> None:
        self.on, self.halfway = threading.Semaphore(0), threading.Semaphore(0)

    def run(self, cells: Iterable[Cell], work: Work, root: str, watcher: Watcher) -> None:
        for cell in cells:
            watcher.started(cell)
            watcher.told(cell, "half", 0, 20)
            time.sleep(1.1)  # the file is written once a second
            watcher.told(cell, "half", 10, 20)
            self.halfway.release()
            self.on.acquire()
            watcher.ended(cell, work(cell, root, lambda *_: None), None, 2.0)


@pytest.mark.slow(beside=True)
def test_the_page_follows_a_study_of_the_fake_engine(tiny_study: dict[str, Any], tmp_path: Path) -> None:
    """Only timings by the fake engine: three cells, each seen half done."""
    study = parse_study(
        {
            **tiny_study,
            "formats": ["baseline"],
            "tasks": [],
            "divergence": None,
            "use_cases": ["16/4", "8/2", "4/2"],
            "loads": ["synchronous"],
        }
    )
    steps = Stepwise()
    runs = threading.Thread(target=lambda: running.run(study, tmp_path, executor=steps), daemon=True)
    runs.start()
    seen: list[dict[str, Any]] = []

    async def state(client: TestClient[Any, Any]) -> dict[str, Any]:
        await asyncio.sleep(0.6)  # looks are half a second apart
        document = await (await client.get("/state.json")).json()
        found: dict[str, Any] = document["studies"][0]
        return found

    async def ask(client: TestClient[Any, Any]) -> None:
        for at in range(3):
            if at:
                await asyncio.to_thread(steps.halfway.acquire)
            seen.append(await state(client))
            steps.on.release()
        await asyncio.to_thread(runs.join)
        for _ in range(20):
            last = await state(client)
            if last["headline"].startswith("Stay"):
                break
        seen.append(last)
        assert "16/4, synchronous" in await (await client.get("/figures")).text()

    steps.halfway.acquire()
    asking([tmp_path], ask)
    assert [row["cells"]["done"] for row in seen] == [0, 1, 2, 3]
    assert [row["is_running"] for row in seen] == [True, True, True, False]
    assert seen[0]["says"] == "0 of 3 cells done; running"
    for row in seen[:3]:
        assert re.fullmatch(r".*: 10 of 20, [\d.]+ a second", row["running"][0])
    assert seen[1]["left"].startswith("about ")
    assert 2.0 < seen[1]["left_s"] < 5.0  # two seconds for the last, and half of the one that runs
    assert (seen[3]["says"], seen[3]["running"], seen[3]["left"]) == ("3 of 3 cells done; complete", [], "")


def test_a_damaged_study_does_not_take_the_others_down(one: Path, two: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(two, broken)

    async def ask(client: TestClient[Any, Any]) -> tuple[str, int]:
        (broken / "study.json").write_text("{")
        await asyncio.sleep(0.6)
        await client.get("/")
        await asyncio.sleep(0.6)
        return await (await client.get("/")).text(), (await client.get("/study/1/report.html")).status

    text, status = asking([one, broken], ask)
    assert "holds no readable study.json" in text
    assert "80 questions" in text
    assert status in (200, 503)


# --- the command --------------------------------------------------------------------------------------------------


@contextmanager
def served(*arguments: str | Path) -> Iterator[tuple[dict[str, Any], subprocess.Popen[str]]]:
    """`bitworth view ... --port 0 --json` as a process of its own, and what it printed."""
    command = [sys.executable, "-m", "bitworth", "view", *map(str, arguments), "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        lines = ""
        while not lines.endswith("}\n"):
            line = process.stdout.readline()
            assert line, process.stderr.read() if process.stderr else ""
            lines += line
        yield json.loads(lines), process
    finally:
        process.kill()
        process.wait()


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return answer.read().decode()


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow(beside=True))])
def test_the_command_serves_and_ends_cleanly(one: Path, two: Path, number: int) -> None:
    with served(one, two) as (document, process):
        assert document["studies"] == [str(one), str(two)]
        assert document["url"].startswith("http://127.0.0.1:")
        assert "2 studies side by side" in get(document["url"])
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert "Traceback" not in err


@pytest.mark.slow(beside=True)
def test_what_is_no_request_leaves_the_terminal_alone(one: Path) -> None:
    """aiohttp logs a traceback for each, which Python prints where nothing else takes it."""
    with served(one) as (document, process):
        address = ("127.0.0.1", int(document["url"].rsplit(":", 1)[1].strip("/")))
        with socket.create_connection(address, timeout=60) as asked:
            asked.sendall(b"GET / HTTP/1.1\r\nHo st\x9a: 127.0.0.1\r\n\r\n")
            assert b" 400 " in asked.recv(100)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert "Traceback" not in err


@pytest.mark.slow(beside=True)
def test_it_loads_no_torch(one: Path) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom bitworth.view.folder import Folder\nimport bitworth.view.server\n"
        "from bitworth.report.page import render_page\nrender_page(Folder(Path(sys.argv[1])).result())\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script, str(one)], check=True)


def refused(*arguments: str | Path) -> str:
    command = [sys.executable, "-m", "bitworth", "view", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    [line] = done.stderr.splitlines()
    return line


@pytest.mark.slow(beside=True)
def test_what_it_refuses(one: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"Port {port} is in use" in refused(one, "--port", str(port))
    assert "without a password; add --expose" in refused(one, "--host", "0.0.0.0")
    assert "is no address of this machine" in refused(one, "--host", "no.such.host.invalid", "--expose")
    assert "holds no readable plan.json" in refused(one, tmp_path)
    with pytest.raises(BitworthError, match="holds no readable"):
        application([tmp_path])


@pytest.mark.slow
def test_the_page_of_a_study_that_another_process_runs(tiny_study: dict[str, Any], tmp_path: Path) -> None:
    file, out = tmp_path / "study.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(tiny_study))
    driver = subprocess.Popen([sys.executable, "-m", "bitworth", "run", str(file), "--out", str(out), "--quiet"])
    try:
        while not (out / "study.json").is_file():
            assert driver.poll() is None
            time.sleep(0.1)
        with served(out) as (document, _):
            states = []
            while driver.poll() is None:
                states.append(json.loads(get(document["url"] + "state.json"))["studies"][0])
                time.sleep(0.3)
            assert driver.returncode == 0
            assert any(row["running"] and row["is_running"] for row in states)
            done = [row["cells"]["done"] for row in states]
            assert done == sorted(done)
            assert done[-1] > done[0]
            time.sleep(1)
            last = json.loads(get(document["url"] + "state.json"))["studies"][0]
            assert last["says"] == "19 of 19 cells done; complete"
    finally:
        driver.kill()
        driver.wait()


def test_packed_results_are_seen(tmp_path: Path) -> None:
    from bitworth.ledger.compaction import compact

    root = study_of(tmp_path / "study")
    before, results = Folder(root).look(), Folder(root).result()
    with Ledger(root).lock():
        compact(Ledger(root))
    assert not list(root.glob("cells/*/*"))
    assert Folder(root).look() == before
    assert Folder(root).result() == results
