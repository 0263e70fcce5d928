"""One `/metrics` for processes that fork: with real forks, real sockets and a real gunicorn."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

import metricbus as mb
from metricbus import multiprocess


@pytest.fixture
def directory() -> Iterator[Path]:
    """Short enough for a socket's path, which pytest's own are not everywhere."""
    with tempfile.TemporaryDirectory(prefix="mb-") as path:
        yield Path(path)


def values(text: str, name: str, parse: Any = parse_text) -> dict[str, float]:
    """By worker."""
    return {
        sample.labels["worker"]: sample.value for family in parse(text) for sample in family.samples if sample.name == name
    }


def states(text: str) -> dict[str, float]:
    return {
        sample.labels["state"]: sample.value
        for family in parse_text(text)
        for sample in family.samples
        if sample.name == "metricbus_workers"
    }


def started(directory: Path, name: str, **gauges: float) -> multiprocess.Worker:
    """One process in all but its process."""
    bus = mb.MetricBus()
    for gauge, value in gauges.items():
        bus.gauge(gauge, f"The {gauge}.").set(value)
    return multiprocess.start(mb.Exporter(bus, process_metrics=False), directory, name=name)


FORKS = """
    import os, signal, sys
    import metricbus as mb
    from metricbus import multiprocess

    directory = sys.argv[1] if len(sys.argv) > 1 else os.environ["METRICBUS_MULTIPROC_DIR"]
    bus = mb.MetricBus()
    requests = bus.counter("requests_total", "Requests.")
    requests.inc(100)
    untouched = bus.gauge("untouched", "Used by nobody.")
    untouched.set(5)
    multiprocess.start(bus)
    children = []
    for number in (1, 2):
        told, tell = os.pipe()
        pid = os.fork()
        if pid == 0:
            requests.inc(number)
            os.write(tell, b"ready")
            signal.pause()
        os.read(told, 5)
        children.append(pid)
"""


def forked(directory: Path, rest: str, run: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("METRICBUS_MULTIPROC_DIR", str(directory))
    program = textwrap.dedent(FORKS) + textwrap.dedent(rest)
    return str(run(program).stdout)


def test_each_forked_process_has_its_own_series_from_zero(
    directory: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = """
    text = multiprocess.generate_latest().decode()
    for pid in children:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
    again = multiprocess.generate_latest().decode()
    print(os.getpid(), *children)
    print(text, again, sep="=====", end="")
    """
    first, _, rest = forked(directory, rest, run, monkeypatch).partition("\n")
    parent, one, two = first.split()
    text, again = rest.split("=====")
    assert values(text, "requests_total") == {parent: 100, one: 1, two: 2}
    assert values(text, "untouched") == {parent: 5, one: 0, two: 0}
    assert text.count("# TYPE requests_total counter") == 1
    assert states(text) == {"answered": 3, "silent": 0}
    # Of those that are gone nothing is left.
    assert values(again, "requests_total") == {parent: 100}
    assert states(again) == {"answered": 1, "silent": 0}
    # The parent took its own with it, and the scrape removed those of the killed.
    assert list(directory.iterdir()) == []


def test_a_process_that_hangs_costs_the_deadline(directory: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rest = """
    import time
    os.kill(children[0], signal.SIGSTOP)
    start = time.monotonic()
    text = multiprocess.generate_latest(timeout=2).decode()
    took = time.monotonic() - start
    os.kill(children[0], signal.SIGCONT)
    again = multiprocess.generate_latest(timeout=30).decode()
    for pid in children:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
    print(took, *children)
    print(text, again, sep="=====", end="")
    """
    first, _, rest = forked(directory, rest, run, monkeypatch).partition("\n")
    took, hanging, other = first.split()
    text, again = rest.split("=====")
    assert 2 <= float(took) < 20
    assert values(text, "requests_total").keys() >= {other} and hanging not in values(text, "requests_total")
    assert states(text) == {"answered": 2, "silent": 1}
    assert hanging in values(again, "requests_total")


def test_families_are_put_together_and_series_told_apart(directory: Path) -> None:
    workers = [started(directory, "a", kv=0.1, only_a=1), started(directory, 'b"\\', kv=0.2)]
    text = multiprocess.generate_latest(directory).decode()
    assert values(text, "kv") == {"a": 0.1, 'b"\\': 0.2}
    assert text.count("# HELP kv The kv.") == 1
    assert values(text, "only_a") == {"a": 1}
    for worker in workers:
        worker.close()
    assert states(multiprocess.generate_latest(directory).decode()) == {"answered": 0, "silent": 0}


def test_a_label_of_the_same_name_is_moved_out_of_the_way(directory: Path) -> None:
    bus = mb.MetricBus()
    trap = 'x,worker="1",exported_worker='
    bus.gauge("kv", "KV.", ("model", "worker")).labels(trap, "3").set(1)
    bus.gauge("both", "Both.", ("exported_worker", "worker")).labels("e", "w").set(1)
    worker = multiprocess.start(mb.Exporter(bus, process_metrics=False), directory, name="w1")
    families = {family.name: family for family in parse_text(multiprocess.generate_latest(directory).decode())}
    assert families["kv"].samples[0].labels == {"worker": "w1", "model": trap, "exported_worker": "3"}
    assert families["both"].samples[0].labels == {
        "worker": "w1",
        "exported_worker": "e",
        "exported_exported_worker": "w",
    }
    worker.close()


def test_two_workers_of_one_name_are_told_apart(directory: Path) -> None:
    workers = [started(directory, "same", kv=1), started(directory, "same", kv=2)]
    found = values(multiprocess.generate_latest(directory).decode(), "kv")
    assert found.keys() == {"same", f"same-{os.getpid()}"}
    for worker in workers:
        worker.close()


def test_of_one_name_and_two_types_the_first_stays(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = started(directory, "a", thing=1)
    bus = mb.MetricBus()
    bus.histogram("thing", "Another thing.").observe(1)
    second = multiprocess.start(mb.Exporter(bus, process_metrics=False), directory, name="b")
    with caplog.at_level(logging.WARNING, "metricbus"):
        text = multiprocess.generate_latest(directory).decode()
    assert len({family.type for family in parse_text(text) if family.name == "thing"}) == 1
    assert "so it is left out" in caplog.text
    first.close()
    second.close()


def test_who_asks_for_protobuf_gets_text_and_exemplars_come_along(directory: Path) -> None:
    bus = mb.MetricBus(native_histograms=True)
    bus.counter("jobs_total", "Jobs.").inc(2, exemplar={"trace_id": "a b"})
    bus.histogram("seconds", "Seconds.", ("path",), buckets=(1,)).labels("/").observe(0.5, {"trace_id": "c"})
    worker = multiprocess.start(bus, directory, name="a")
    protobuf = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
    gatherer = multiprocess.Gatherer(directory)
    _, headers, body = gatherer.answer(accept=protobuf)
    assert dict(headers)["content-type"].startswith("text/plain;")
    assert b'jobs_total{worker="a"} 2\n' in body
    _, headers, body = gatherer.answer(accept=f"{protobuf};q=0.7,application/openmetrics-text;version=1.0.0;q=0.6")
    assert dict(headers)["content-type"].startswith("application/openmetrics-text;")
    exemplars = {
        sample.name: (sample.labels, sample.exemplar.labels)
        for family in parse_openmetrics(body.decode())  # type: ignore[no-untyped-call]
        for sample in family.samples
        if sample.exemplar is not None
    }
    assert exemplars == {
        "jobs_total": ({"worker": "a"}, {"trace_id": "a b"}),
        "seconds_bucket": ({"worker": "a", "path": "/", "le": "1.0"}, {"trace_id": "c"}),
    }
    worker.close()


def test_openmetrics_and_gzip_are_negotiated(directory: Path) -> None:
    bus = mb.MetricBus()
    bus.counter("sent_bytes_total", "Bytes.", unit="bytes").inc(3)
    bus.histogram("seconds", "Seconds.", ("path",), buckets=(1,)).labels("/").observe(0.5)
    worker = multiprocess.start(bus, directory, name="a")

    async def main() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=multiprocess.make_asgi_app(directory))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            accept = {"accept": "application/openmetrics-text; version=1.0.0"}
            return [
                await client.get("/", headers={**accept, "accept-encoding": "gzip"}),
                await client.get("/", headers={"accept-encoding": "gzip;q=0, identity"}),
                await client.head("/"),
                await client.post("/"),
            ]

    openmetrics, text, head, post = asyncio.run(main())
    assert openmetrics.headers["content-encoding"] == "gzip"
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.text.endswith("# EOF\n")
    assert values(openmetrics.text, "sent_bytes_total", parse_openmetrics) == {"a": 3}
    assert "content-encoding" not in text.headers
    assert values(text.text, "seconds_count") == {"a": 1}
    assert (head.status_code, head.text) == (200, "")
    assert post.status_code == 405
    worker.close()


@pytest.mark.parametrize("accept", ["text/plain", "application/openmetrics-text; version=1.0.0"])
def test_a_metric_without_a_help_text_has_a_head_of_its_own(directory: Path, accept: str) -> None:
    parse = parse_openmetrics if "openmetrics" in accept else parse_text
    workers = []
    for name in ("one", "two"):
        bus = mb.MetricBus()
        bus.counter("aa_total", "The first.").inc()
        bus.counter("bb_total", "").inc(2)
        bus.gauge("cc", "").set(3)
        workers.append(multiprocess.start(mb.Exporter(bus, process_metrics=False), directory, name=name))
    text = multiprocess.Gatherer(directory).answer(accept=accept)[2].decode()
    assert [text.count(f"# TYPE {name} ") for name in ("bb", "bb_total", "cc")] == ([1, 0, 1] if parse is parse_openmetrics else [0, 1, 1])
    assert values(text, "aa_total", parse) == {"one": 1, "two": 1}
    assert values(text, "bb_total", parse) == {"one": 2, "two": 2}
    assert values(text, "cc", parse) == {"one": 3, "two": 3}
    for worker in workers:
        worker.close()


def test_a_socket_without_a_process_is_removed(directory: Path) -> None:
    path = directory / "1-dead.metricbus"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert states(multiprocess.generate_latest(directory).decode()) == {"answered": 0, "silent": 0}
    assert not path.exists()


def test_a_start_removes_what_an_earlier_run_left(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = directory / "1-dead.metricbus"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    living = started(directory, "a", kv=1)
    worker = started(directory, "b", kv=2)
    assert not path.exists()
    assert values(multiprocess.generate_latest(directory).decode(), "kv") == {"a": 1, "b": 2}
    # It is no news for the living to be looked at.
    assert caplog.text == ""
    living.close()
    worker.close()


def test_a_socket_that_answers_nonsense_costs_nobody_else(directory: Path) -> None:
    worker = started(directory, "good", kv=1)
    with socket.socket(socket.AF_UNIX) as odd:
        odd.bind(str(directory / "1-odd.metricbus"))
        odd.listen()
        odd.settimeout(10)
        import threading

        def answer() -> None:
            connection, _ = odd.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"nonsense\n")

        thread = threading.Thread(target=answer)
        thread.start()
        text = multiprocess.generate_latest(directory, timeout=10).decode()
        thread.join(10)
    assert values(text, "kv") == {"good": 1}
    assert states(text) == {"answered": 1, "silent": 1}
    worker.close()


def test_it_says_what_is_missing_or_wrong(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METRICBUS_MULTIPROC_DIR", raising=False)
    with pytest.raises(ValueError, match="directory=… or METRICBUS_MULTIPROC_DIR would be right"):
        multiprocess.start()
    with pytest.raises(ValueError, match="timeout is 0"):
        multiprocess.Gatherer(directory, timeout=0)
    with pytest.raises(mb.ServeError, match="is too long for a socket"):
        multiprocess.start(mb.MetricBus(), directory / ("x" * 100))
    taken = directory / "file"
    taken.write_text("")
    with pytest.raises(OSError, match="file"):
        multiprocess.start(mb.MetricBus(), taken)


def test_the_sockets_are_only_ours(directory: Path) -> None:
    inside = directory / "new"
    worker = started(inside, "a", kv=1)
    assert worker.path is not None
    assert (inside.stat().st_mode & 0o777, worker.path.stat().st_mode & 0o777) == (0o700, 0o600)
    path = worker.path
    worker.close()
    worker.close()
    assert not path.exists() and worker.path is None


def test_a_server_of_its_own(directory: Path) -> None:
    worker = started(directory, "a", kv=1)
    server, thread = multiprocess.start_http_server(0, "127.0.0.1", directory)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics") as response:
            assert values(response.read().decode(), "kv") == {"a": 1}
        with pytest.raises(mb.ServeError, match=str(server.server_port)):
            multiprocess.start_http_server(server.server_port, "127.0.0.1", directory)
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
        worker.close()


APPLICATION = """
import os
import metricbus as mb
from metricbus import multiprocess

requests = mb.Counter("requests", "Requests.")
multiprocess.start()
metrics = multiprocess.make_wsgi_app(timeout=20)

def app(environ, start_response):
    if environ["PATH_INFO"] == "/metrics":
        return metrics(environ, start_response)
    requests.inc()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]
"""


@pytest.mark.parametrize("preload", [False, True], ids=["imported in each worker", "imported before the fork"])
def test_a_real_gunicorn(directory: Path, preload: bool) -> None:
    pytest.importorskip("gunicorn", reason="gunicorn is not installed")
    (directory / "application.py").write_text(APPLICATION)
    sockets = directory / "sockets"
    with socket.socket() as bound:
        # Bound here, so that nobody else gets the port, and handed over.
        bound.bind(("127.0.0.1", 0))
        bound.listen()
        port = bound.getsockname()[1]
        command = [sys.executable, "-m", "gunicorn", "--workers", "2", "--bind", f"fd://{bound.fileno()}", "--chdir", str(directory)]
        environment = {**os.environ, "METRICBUS_MULTIPROC_DIR": str(sockets)}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        server = subprocess.Popen(
            [*command, *(["--preload"] if preload else []), "application:app"],
            env=environment,
            pass_fds=[bound.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"

        def fetch() -> str:
            with urllib.request.urlopen(url, timeout=30) as response:
                return str(response.read().decode())

        first = fetch()
        # Then it is the other's turn.
        os.kill(int(first), signal.SIGSTOP)
        try:
            second = fetch()
        finally:
            os.kill(int(first), signal.SIGCONT)
        served = {first: 1, second: 1}
        assert first != second
        with urllib.request.urlopen(f"{url}/metrics", timeout=30) as response:
            text = response.read().decode()
        found = values(text, "requests_total")
        assert {pid: found[pid] for pid in served} == served
        assert set(found) - set(served) <= {str(server.pid)}
        assert states(text) == {"answered": 3 if preload else 2, "silent": 0}
    finally:
        server.send_signal(signal.SIGTERM)
        _, errors = server.communicate(timeout=30)
    assert server.returncode == 0, errors
    assert list(sockets.iterdir()) == [], errors
