"""The server and the client over real HTTP: both wire formats, what is served, and servers that are killed, slow or hostile."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.tasks.vrag.kit import environment, make_corpus, row, settings, whole_file
from unify_posttrain.tasks.vrag import protocol
from unify_posttrain.tasks.vrag.client import HttpRetriever
from unify_posttrain.tasks.vrag.llm_judge import Judge
from unify_posttrain.tasks.vrag.retrieval import RetrievalError
from unify_posttrain.tasks.vrag.server import main, server_settings
from unify_posttrain.tasks.vrag.settings import JudgeSettings, RetrieverSettings
from unify_posttrain.tasks.waiting import settled

ROOT = Path(__file__).resolve().parents[3]
FAST = {"timeout_s": 5, "retries": 1, "pause_s": 0.01}

Answer = Callable[[bytes], Iterator[bytes]]  # request -> pieces of what is sent back


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("vrag") / "corpus", (300, 200))


@contextlib.contextmanager
def real_server(corpus: Path, *options: str, pages: int = 5) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The command, in a process of its own."""
    command = [sys.executable, "-m", "unify_posttrain.tasks.vrag.server", "--corpus", str(corpus), "--port", "0", *options]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith(f"serving {pages} pages of {corpus} at http://127.0.0.1:"), line
        yield line.split()[-1], process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def stand_in(answer: Answer) -> Iterator[str]:
    """A server that answers every request as it likes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        stopped = threading.Event()

        def serve() -> None:
            while not stopped.is_set():
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=talk, args=(connection,), daemon=True).start()

        def talk(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                request = b""
                while b"\r\n\r\n" not in request:
                    request += connection.recv(65536)
                head, _, body = request.partition(b"\r\n\r\n")
                length = next(
                    (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0
                )
                while len(body) < length:
                    body += connection.recv(65536)
                for piece in answer(head + b"\r\n\r\n" + body):
                    if stopped.is_set():
                        return
                    connection.sendall(piece)

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            stopped.set()


def says(value: Any, status: str = "200 OK") -> Answer:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()

    def answer(request: bytes) -> Iterator[bytes]:
        yield f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body

    return answer


def client(corpus: Path, url: str, **changes: Any) -> HttpRetriever:
    return HttpRetriever(RetrieverSettings(**{**settings(corpus)["retriever"], "kind": "http", "url": url, **FAST, **changes}))


def asked(url: str, body: Any = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.mark.slow
def test_the_real_server(corpus: Path) -> None:
    with real_server(corpus) as (url, process):
        assert json.loads(asked(f"{url}/healthz")[1]) == {"status": "ok", "pages": 5}
        found = json.loads(asked(f"{url}/search?queries=revenue%20forecast&queries=zebra")[1])
        assert [[each["idx"] for each in pages] for pages in found] == [[1, 3, 0], []]
        assert found[0][0]["image_file"] == "pages/deck_2.png"
        posted = json.loads(asked(f"{url}/search", {"queries": ["revenue forecast"], "top_k": 2})[1])["results"]
        assert [each["indice"] for each in posted[0]] == [1, 3] and posted[0][0]["score"] == pytest.approx(1.645464, abs=1e-6)
        assert posted[0][0]["data"]["page_id"] == "deck_2"
        assert asked(f"{url}/image/deck_2") == (200, (corpus / "pages" / "deck_2.png").read_bytes())
        for page in ("..%2Fpages.jsonl", "deck_9", quote("/etc/passwd", safe=""), "pages%2Fdeck_1.png", "deck_1.png"):
            assert asked(f"{url}/image/{page}")[0] == 404, page
        for bad in (
            {"queries": [], "top_k": 3},
            {"queries": ["a"], "top_k": 0},
            {"queries": ["a"] * 101},
            {"queries": ["a" * 9000]},
            {},
        ):
            assert asked(f"{url}/search", bad)[0] == 422
        assert asked(f"{url}/search")[0] == 422 and asked(f"{url}/docs")[0] == 404
        for wire in ("get", "post"):
            pages = asyncio.run(client(corpus, url, wire=wire).search(["revenue forecast", "zebra"], 2))
            assert [[page.page_id for page in each] for each in pages] == [["deck_2", "memo_1"], []]
            assert pages[0][0].image == (corpus / "pages" / "deck_2.png").resolve()
        several = asyncio.run(client(corpus, url, batch=3).search(["headcount", "zebra"] * 5, 1))  # four requests
        assert [[page.page_id for page in each] for each in several] == [["deck_3"], []] * 5
        # killed in the middle of an episode, and started again
        made = environment(corpus, retriever=client_node(corpus, url))
        made.reset(row(pages=(2,)))
        assert settled(made.step("<search>revenue forecast</search>", True)).feedback[0].origin["page_id"] == "deck_2"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert settled(made.step("<search>headcount</search>", True)).feedback == (protocol.NO_SEARCH,)
        fields = made.fields()
        assert (fields["n_search"], fields["search_errors"], fields["n_invalid"]) == (2, 1, 0)
    with real_server(corpus, "--port", url.rpartition(":")[2]):
        assert settled(made.step("<search>headcount</search>", True)).feedback[0].origin["page_id"] == "deck_3"
        assert settled(made.step("<answer>12</answer>", True)).solved


def client_node(corpus: Path, url: str) -> dict[str, Any]:
    return {**settings(corpus)["retriever"], "kind": "http", "url": url, **FAST}


@pytest.mark.slow
def test_a_corpus_that_is_none_and_an_address_that_is_taken(corpus: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "unify_posttrain.tasks.vrag.server", "--corpus"]
    done = subprocess.run([*command, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (
        done.returncode == 1 and done.stderr.startswith("error: environment.retriever.corpus=") and "Traceback" not in done.stderr
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run([*command, str(corpus), "--port", port], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and f"--port {port} cannot be listened on" in done.stderr


def test_the_server_listens_on_this_machine_alone() -> None:
    serving, _ = server_settings()
    assert serving["host"] == "127.0.0.1" == whole_file().prepare.task.server.host
    with pytest.raises(SystemExit):
        main([])  # without a corpus


OK, CHUNKED = b"HTTP/1.1 200 OK\r\n", b"Transfer-Encoding: chunked\r\n\r\n"


def drip(pieces: bytes, pause: float) -> Answer:
    """A byte now and then, each of them well in time."""

    def answer(request: bytes) -> Iterator[bytes]:
        while True:
            for piece in pieces:
                yield bytes([piece])
                time.sleep(pause)

    return answer


@pytest.mark.slow
@pytest.mark.parametrize(
    "pieces", [b"", OK + b"X: " + b"a" * 5000, OK + CHUNKED + b"1\r\n \r\n" * 1000], ids=["silent", "head", "body"]
)
def test_a_slow_server_is_given_up(corpus: Path, pieces: bytes) -> None:
    """A limit on single reads would wait for ever; the whole call ends, long before the minute of this test."""

    def silent(request: bytes) -> Iterator[bytes]:
        time.sleep(600)
        yield b""

    with (
        stand_in(drip(pieces, 0.02) if pieces else silent) as url,
        pytest.raises(RetrievalError, match="2 attempts: no complete answer"),
    ):
        asyncio.run(asyncio.wait_for(client(corpus, url, timeout_s=0.5).search(["a"], 3), 60))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (says({"detail": "no"}, "500 Internal Server Error"), "2 attempts: status 500"),
        (says(b"<html>", "404 Not Found"), "status 404: <html>"),
        (says(b"", "302 Found"), "status 302"),
        (says(b"{"), "no JSON"),
        (says(b"[" * 9_999), "no JSON: is nested too deeply"),
        (says([]), "does not answer in the format environment.retriever.wire=get"),
        (says([{"a": 1}]), "does not answer in the format"),
        (says(b" " * 20_000), "more than 10000 bytes"),
        (says(b"\xff\xfe"), "no JSON: not UTF-8"),
    ],
    ids=range(9),
)
def test_answers_that_are_none(corpus: Path, answer: Answer, message: str) -> None:
    with stand_in(answer) as url, pytest.raises(RetrievalError, match=message):
        asyncio.run(client(corpus, url, largest_answer_bytes=10_000).search(["a"], 3))


def test_a_dead_server_and_a_query_that_no_address_holds(corpus: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free = taken.getsockname()[1]
    dead = client(corpus, f"http://127.0.0.1:{free}")
    for query in ("a", "\ud800\0\n" * 10, "x" * 200_000):
        with pytest.raises(RetrievalError, match="2 attempts"):
            asyncio.run(dead.search([query], 3))


@pytest.mark.parametrize("proxy", [None, "http://127.0.0.1:9"])
def test_paths_that_lead_out_are_left_out(
    corpus: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, proxy: str | None
) -> None:
    """Published spellings, paths within the corpus, and names that mean something else. No proxy is asked for loopback."""
    if proxy is not None:
        monkeypatch.setenv("http_proxy", proxy)
    names = ["/etc/passwd", "../../secret.png", str(corpus / "pages" / "deck_3.png"), "pages/memo_1.png", 3, None]
    with stand_in(says([[{"idx": 0, "image_file": name} for name in names]])) as url:
        found = asyncio.run(client(corpus, url).search(["a"], 10))
    assert [page.page_id for page in found[0]] == ["deck_3", "memo_1"]
    assert caplog.text.count("is no image of the corpus") == 2 and caplog.text.count("names no image") == 2
    data = [{"score": 2, "indice": 4, "data": "pages/deck_1.png"}, {"score": True, "data": {"file_path": "pages/deck_2.png"}}]
    with stand_in(says({"results": [data]})) as url:
        found = asyncio.run(client(corpus, url, wire="post").search(["a"], 10))
    assert [(page.page_id, page.score) for page in found[0]] == [("deck_1", 2.0), ("deck_2", -1.0)]


# --- a language model as judge --------------------------------------------------------------------------------------


def judge(corpus: Path, url: str, **changes: Any) -> Judge:
    found = {**settings(corpus)["judge"], "kind": "llm", "model": "judge", "url": f"{url}/v1", **FAST, **changes}
    return Judge(JudgeSettings(**found))


def verdict(word: str) -> dict[str, Any]:
    return {"choices": [{"message": {"content": f"A reason.\nverdict: {word}"}}]}


def test_a_judge_is_asked_once_and_remembers(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[bytes] = []

    def answer(request: bytes) -> Iterator[bytes]:
        requests.append(request)
        yield from says(verdict("yes" if b"twelve" in request else "no"))(request)

    monkeypatch.setenv("MY_JUDGE_KEY", "s3cret")
    with stand_in(answer) as url:
        made = judge(corpus, url, key_env="MY_JUDGE_KEY", remembered=2)
        ask = lambda text: asyncio.run(made.by_model("How much?", text, ("12",)))  # noqa: E731
        assert [ask(text).right for text in ("twelve", "13", "twelve", "13")] == [True, False, True, False]
        assert (
            len(requests) == 2
            and b"Authorization: Bearer s3cret" in requests[0]
            and requests[0].startswith(b"POST /v1/chat/completions")
        )
        body = json.loads(requests[0].partition(b"\r\n\r\n")[2])
        assert (
            body["model"] == "judge"
            and body["temperature"] == 0
            and "<candidate>twelve</candidate>" in body["messages"][0]["content"]
        )
        assert ask("14").right is False and len(made.known) == 2  # the oldest is forgotten


def test_a_judge_that_fails_is_replaced_by_the_rule(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    with stand_in(says({"choices": [{"message": {"content": "Perhaps."}}]})) as url:
        node = {**settings(corpus)["judge"], "kind": "llm", "model": "judge", "url": url, **FAST}
        made = environment(corpus, judge=node)
        made.reset(row())
        settled(made.step("<search>revenue forecast</search>", True))
        assert settled(made.step("<answer>12</answer>", True)).solved
        assert made.fields()["judge_errors"] == 1
    made.reset(row())
    step = made.step("<answer>12</answer>", True)  # no search before it: nobody is asked
    assert settled(step).reward == 0 and made.fields()["judge_errors"] == 0
    dead = judge(corpus, url)
    found = asyncio.run(dead.by_model("q", "12", ("12",)))
    assert (found.right, found.failed) == (True, True) and "the rule judges in its place" in caplog.text


def test_a_key_that_is_not_there(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ValueError, match=r"environment.judge.key_env=NO_SUCH_KEY: no such variable"):
        judge(corpus, "http://127.0.0.1:1", key_env="NO_SUCH_KEY")
