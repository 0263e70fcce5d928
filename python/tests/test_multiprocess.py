"""One `/metrics` for processes that fork: with real forks, real sockets and a real gunicorn."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
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
        sample.labels["process"]: sample.value for family in parse(text) for sample in family.samples if sample.name == name
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
    assert values(text, "untouched") == {parent: 5}
    assert text.count("# TYPE requests_total counter") == 1
    assert states(text) == {"answered": 3, "silent": 0, "ended": 0, "lost": 0}
    # Of those that were killed nothing is left, and the scrape says so.
    assert values(again, "requests_total") == {parent: 100}
    assert states(again) == {"answered": 1, "silent": 0, "ended": 0, "lost": 2}
    # The parent left what it had counted, as a program does that ends.
    assert sorted(path.suffix for path in directory.iterdir()) == [".ended", ".lost", ".lost"]
    ended = multiprocess.generate_latest(directory).decode()
    assert values(ended, "requests_total") == {parent: 100}
    assert values(ended, "untouched") == {}


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
    assert states(text) == {"answered": 2, "silent": 1, "ended": 0, "lost": 0}
    assert hanging in values(again, "requests_total")


def test_families_are_put_together_and_series_told_apart(directory: Path) -> None:
    workers = [started(directory, "a", kv=0.1, only_a=1), started(directory, 'b"\\', kv=0.2)]
    text = multiprocess.generate_latest(directory).decode()
    assert values(text, "kv") == {"a": 0.1, 'b"\\': 0.2}
    assert text.count("# HELP kv The kv.") == 1
    assert values(text, "only_a") == {"a": 1}
    for worker in workers:
        worker.close()
    assert states(multiprocess.generate_latest(directory).decode()) == {"answered": 0, "silent": 0, "ended": 2, "lost": 0}


def test_a_label_of_the_same_name_is_moved_out_of_the_way(directory: Path) -> None:
    bus = mb.MetricBus()
    trap = 'x,process="1",exported_process='
    bus.gauge("kv", "KV.", ("model", "process")).labels(trap, "3").set(1)
    bus.gauge("both", "Both.", ("exported_process", "process")).labels("e", "w").set(1)
    worker = multiprocess.start(mb.Exporter(bus, process_metrics=False), directory, name="w1")
    families = {family.name: family for family in parse_text(multiprocess.generate_latest(directory).decode())}
    assert families["kv"].samples[0].labels == {"process": "w1", "model": trap, "exported_process": "3"}
    assert families["both"].samples[0].labels == {
        "process": "w1",
        "exported_process": "e",
        "exported_exported_process": "w",
    }
    worker.close()


def test_the_label_can_be_chosen_and_a_users_own_worker_stays(directory: Path) -> None:
    bus = mb.MetricBus()
    bus.gauge("kv", "KV.", ("worker",)).labels("3").set(1)
    worker = multiprocess.start(mb.Exporter(bus, process_metrics=False), directory, name="w1")
    for label in ("process", "pid"):
        text = multiprocess.generate_latest(directory, label=label).decode()
        assert f'kv{{{label}="w1",worker="3"}} 1\n' in text
    for label in ("", "a-b", "__name__", "le", "ü"):
        with pytest.raises(ValueError, match="the name of a label would be right"):
            multiprocess.Gatherer(directory, label=label)
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
    assert b'jobs_total{process="a"} 2\n' in body
    _, headers, body = gatherer.answer(accept=f"{protobuf};q=0.7,application/openmetrics-text;version=1.0.0;q=0.6")
    assert dict(headers)["content-type"].startswith("application/openmetrics-text;")
    exemplars = {
        sample.name: (sample.labels, sample.exemplar.labels)
        for family in parse_openmetrics(body.decode())  # type: ignore[no-untyped-call]
        for sample in family.samples
        if sample.exemplar is not None
    }
    assert exemplars == {
        "jobs_total": ({"process": "a"}, {"trace_id": "a b"}),
        "seconds_bucket": ({"process": "a", "path": "/", "le": "1.0"}, {"trace_id": "c"}),
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


def dead_socket(directory: Path) -> Path:
    """What a process leaves that is killed."""
    # The name is one that a process has here.
    worker = started(directory, "dead")
    path = worker.path
    assert path is not None
    worker.close()
    path.with_suffix(".ended").unlink()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    return path


def test_a_process_that_was_killed_is_counted_for_a_while(directory: Path) -> None:
    path = dead_socket(directory)
    for _ in range(2):
        assert states(multiprocess.generate_latest(directory).decode()) == {"answered": 0, "silent": 0, "ended": 0, "lost": 1}
        assert not path.exists()
    lost = path.with_suffix(".lost")
    os.utime(lost, (0, 0))
    assert states(multiprocess.generate_latest(directory).decode())["lost"] == 0
    assert list(directory.iterdir()) == []


def test_what_a_process_counted_is_shown_after_its_end(directory: Path) -> None:
    """As a server recycles its workers: what was counted since the last scrape is in the next."""
    bus = mb.MetricBus()
    bus.counter("requests_total", "Requests.", ("path",)).labels("/").inc(3)
    bus.histogram("seconds", "Seconds.", buckets=(1,)).observe(0.5)
    bus.gauge("depth", "Requests waiting.").set(7)
    worker = multiprocess.start(mb.Exporter(bus, process_metrics=False), directory, name="a")
    path = worker.path
    assert path is not None
    worker.close()
    for accept, parse in (("text/plain", parse_text), ("application/openmetrics-text; version=1.0.0", parse_openmetrics)):
        text = multiprocess.Gatherer(directory).answer(accept=accept)[2].decode()
        assert values(text, "requests_total", parse) == {"a": 3}
        assert values(text, "seconds_count", parse) == {"a": 1}
        # It has no depth any more.
        assert values(text, "depth", parse) == {}
    assert states(multiprocess.generate_latest(directory).decode())["ended"] == 1
    os.utime(path.with_suffix(".ended"), (0, 0))
    assert values(multiprocess.generate_latest(directory).decode(), "requests_total") == {}
    assert list(directory.iterdir()) == []


def test_of_very_many_that_ended_the_oldest_count_as_lost(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metricbus._shared_directory.ENDED_MAX", 3)
    for number in range(5):
        worker = started(directory, f"w{number}")
        path = worker.path
        assert path is not None
        worker.close()
        now = os.stat(path.with_suffix(".ended")).st_mtime
        os.utime(path.with_suffix(".ended"), (now, now - 5 + number))
    text = multiprocess.generate_latest(directory).decode()
    assert states(text) == {"answered": 0, "silent": 0, "ended": 3, "lost": 2}


def test_a_start_puts_aside_what_an_earlier_run_left(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = dead_socket(directory)
    living = started(directory, "a", kv=1)
    worker = started(directory, "b", kv=2)
    assert not path.exists()
    assert values(multiprocess.generate_latest(directory).decode(), "kv") == {"a": 1, "b": 2}
    # It is no news for the living to be looked at.
    assert caplog.text == ""
    living.close()
    worker.close()


def test_what_is_not_ours_stays_and_costs_nothing(directory: Path) -> None:
    """Files and folders of others, sockets of other machines, and names like ours."""
    worker = started(directory, "good", kv=1)
    assert worker.path is not None
    machine = worker.path.stem.rpartition("-")[2]
    other_machine = directory / "7-00000000-ffffffff.metricbus"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(other_machine))
    strange = [directory / f"7-0000000{number}-{machine}.metricbus" for number in range(2)]
    strange[0].write_text("somebody's")
    strange[1].mkdir()
    (strange[1] / "inside").write_text("somebody's")
    others = [directory / "7-dead.metricbus", directory / "notes.txt", directory / f"8-00000000-{machine}.ended"]
    for other in others[:2]:
        other.write_text("somebody's")
    others[2].mkdir()
    for path in (*strange, *others, other_machine):
        os.utime(path, (0, 0))
    again = started(directory, "second", kv=2)
    text = multiprocess.generate_latest(directory).decode()
    assert values(text, "kv") == {"good": 1, "second": 2}
    assert states(text) == {"answered": 2, "silent": 0, "ended": 0, "lost": 0}
    assert all(path.exists() for path in (*strange, *others, other_machine))
    worker.close()
    again.close()


def test_a_socket_that_answers_nonsense_costs_nobody_else(directory: Path) -> None:
    worker = started(directory, "good", kv=1)
    assert worker.path is not None
    kind = "text/plain; version=0.0.4; charset=utf-8"

    def answer(text: bytes, type: str = kind) -> bytes:
        return json.dumps({"worker": "odd", "pid": 1, "type": type, "length": len(text)}).encode() + b"\n" + text

    nonsense = [
        b"nonsense\n",
        b"x" * (1 << 17),
        b"7\n",
        b'{"worker": "odd"}\n',
        b'{"worker": "odd", "pid": 1, "type": "", "length": -1}\n',
        answer(b"kv 1\n"),
        answer(b"# TYPE kv gauge\nkv\n"),
        answer(b'# TYPE kv gauge\nkv{a="b" 1\n'),
        answer(b"#  \n"),
        answer(b"# TYPE kv gauge\nkv 1\n", "text/html"),
    ]
    listening = []
    for number in range(len(nonsense)):
        odd = socket.socket(socket.AF_UNIX)
        odd.bind(str(worker.path.with_name(re.sub("-[0-9a-f]+-", f"-{number:08x}-", worker.path.name))))
        odd.listen()
        odd.settimeout(10)
        listening.append(odd)

    def talk() -> None:
        for odd, said in zip(listening, nonsense, strict=True):
            connection, _ = odd.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(1000)
                connection.sendall(said)

    thread = threading.Thread(target=talk)
    thread.start()
    text = multiprocess.generate_latest(directory, timeout=10).decode()
    thread.join(10)
    for odd in listening:
        odd.close()
    assert values(text, "kv") == {"good": 1}
    assert states(text) == {"answered": 1, "silent": len(nonsense), "ended": 0, "lost": 0}
    worker.close()


def test_it_says_what_is_wrong(directory: Path) -> None:
    with pytest.raises(ValueError, match="timeout is 0"):
        multiprocess.Gatherer(directory, timeout=0)
    with pytest.raises(TypeError, match="can't be exposed"):
        multiprocess.start(7, directory)  # type: ignore[arg-type]


def test_without_a_directory_a_process_is_scraped_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METRICBUS_MULTIPROC_DIR", raising=False)
    bus = mb.MetricBus()
    bus.gauge("kv", "KV.").set(1)
    worker = multiprocess.start(mb.Exporter(bus, process_metrics=False), name="a")
    try:
        text = multiprocess.generate_latest().decode()
        assert worker.path is None
        assert values(text, "kv") == {"a": 1}
        assert states(text) == {"answered": 1, "silent": 0, "ended": 0, "lost": 0}
    finally:
        worker.close()
    assert values(multiprocess.generate_latest().decode(), "kv") == {}


def test_a_child_of_a_process_without_a_directory_is_scraped_for_itself(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METRICBUS_MULTIPROC_DIR", raising=False)
    program = """
    import os, sys
    import metricbus as mb
    from metricbus import multiprocess
    requests = mb.Counter("requests", "Requests.")
    multiprocess.start()
    requests.inc(100)
    pid = os.fork()
    requests.inc(1)
    line = next(line for line in multiprocess.generate_latest().decode().splitlines() if line.startswith("requests_total"))
    if pid == 0:
        print("child", line == f'requests_total{{process="{os.getpid()}"}} 1', flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
    print("parent", line == f'requests_total{{process="{os.getpid()}"}} 101')
    """
    assert run(program).stdout.split() == ["child", "True", "parent", "True"]


@pytest.mark.parametrize("wrong", ["too long", "a file", "under a file"])
def test_where_no_socket_can_be_made_a_process_is_scraped_for_itself(
    directory: Path, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    (directory / "file").write_text("")
    where = {"too long": directory / ("x" * 100), "a file": directory / "file", "under a file": directory / "file" / "new"}[wrong]
    with caplog.at_level(logging.ERROR, "metricbus"):
        worker = started(where, "a", kv=1)
    assert "answers only for itself: no socket in" in caplog.text
    text = multiprocess.generate_latest(where).decode()
    assert values(text, "kv") == {"a": 1}
    worker.close()
    assert (directory / "file").read_text() == ""


def test_a_directory_that_became_read_only_fails_no_scrape_and_no_start(directory: Path, run: Any) -> None:
    """In a process without root's rights, which may do what it likes."""
    program = """
    import os, pathlib, sys
    import metricbus as mb
    from metricbus import multiprocess
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    directory = pathlib.Path(sys.argv[1])
    def started(name):
        bus = mb.MetricBus()
        bus.gauge("kv", "KV.").set(1)
        return multiprocess.start(mb.Exporter(bus, process_metrics=False), directory, name=name)
    first = started("a")
    directory.chmod(0o500)
    second = started("b")
    text = multiprocess.generate_latest(directory).decode()
    print(sorted(line for line in text.splitlines() if line.startswith("kv{")), second.path)
    first.close()
    print(multiprocess.generate_latest(directory).decode().count("kv{"))
    second.close()
    directory.chmod(0o700)
    """
    directory.chmod(0o777)
    inside = directory / "inside"
    inside.mkdir()
    inside.chmod(0o777)
    if os.geteuid() == 0:
        os.chown(inside, 65534, 65534)
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(inside)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "['kv{process=\"a\"} 1', 'kv{process=\"b\"} 1'] None", done.stderr
    # Its socket can't be removed, and nobody answers there: the scrape goes on all the same.
    assert done.stdout.splitlines()[1] == "1", done.stderr


def test_metrics_of_prometheus_client_come_along(directory: Path, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METRICBUS_MULTIPROC_DIR", str(directory))
    program = """
    import metricbus as mb
    from metricbus import multiprocess
    mb.Counter("ours", "Ours.").inc()
    multiprocess.start(name="a")
    # Only now.
    import prometheus_client
    prometheus_client.Counter("theirs", "Theirs.", ["path"]).labels("/").inc(2)
    print(multiprocess.generate_latest().decode())
    """
    text = run(program).stdout
    assert values(text, "ours_total") == {"a": 1}
    assert values(text, "theirs_total") == {"a": 2}
    assert len(values(text, "process_open_fds")) == 1
    assert "python_info{" in text


def test_a_child_says_what_stayed_with_its_parent(run: Any) -> None:
    program = """
    import os, logging, sys
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    import metricbus as mb
    def fork():
        pid = os.fork()
        if pid == 0:
            sys.stdout.flush()
            os._exit(0)
        os.waitpid(pid, 0)
    bus = mb.MetricBus()
    kv = bus.gauge("kv", "KV.")
    fork()
    one, two = (bus.on_threshold(kv, print, above=bound) for bound in (1, 2))
    rule = bus.add_rule(mb.Rule("Full", mb.when("kv", above=0.9)))
    server = bus.serve("127.0.0.1:0")
    print("fork", flush=True)
    fork()
    two.close(); server.close(); rule.remove()
    print("fork", flush=True)
    fork()
    """
    said = run(program).stdout.split("fork\n")
    assert said[0] == ""
    assert "stayed there: 1 rule, 2 subscriptions, 1 server; subscribe, add rules and serve again here" in said[1]
    assert "stayed there: 1 subscription; subscribe" in said[2]


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


@contextlib.contextmanager
def gunicorn(directory: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A real one, and its URL."""
    pytest.importorskip("gunicorn", reason="gunicorn is not installed")
    (directory / "application.py").write_text(APPLICATION)
    with socket.socket() as bound:
        # Bound here, so that nobody else gets the port, and handed over.
        bound.bind(("127.0.0.1", 0))
        bound.listen()
        port = bound.getsockname()[1]
        command = [sys.executable, "-m", "gunicorn", "--bind", f"fd://{bound.fileno()}", "--chdir", str(directory)]
        environment = {**os.environ, "METRICBUS_MULTIPROC_DIR": str(directory / "sockets")}
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        server = subprocess.Popen(
            [*command, *options, "application:app"],
            env=environment,
            pass_fds=[bound.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        )
    try:
        yield server, f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGTERM)
        _, errors = server.communicate(timeout=30)
    assert server.returncode == 0, errors


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as response:
        return str(response.read().decode())


@pytest.mark.parametrize("preload", [False, True], ids=["imported in each worker", "imported before the fork"])
def test_a_real_gunicorn(directory: Path, preload: bool) -> None:
    with gunicorn(directory, "--workers", "2", *(["--preload"] if preload else [])) as (server, url):
        first = fetch(url)
        # Then it is the other's turn.
        os.kill(int(first), signal.SIGSTOP)
        try:
            second = fetch(url)
        finally:
            os.kill(int(first), signal.SIGCONT)
        served = {first: 1, second: 1}
        assert first != second
        text = fetch(f"{url}/metrics")
        found = values(text, "requests_total")
        assert {pid: found[pid] for pid in served} == served
        assert set(found) - set(served) <= {str(server.pid)}
        assert states(text) == {"answered": 3 if preload else 2, "silent": 0, "ended": 0, "lost": 0}
    assert {path.suffix for path in (directory / "sockets").iterdir()} == {".ended"}


def test_workers_that_gunicorn_recycles_lose_no_count(directory: Path) -> None:
    with gunicorn(directory, "--workers", "1", "--max-requests", "3") as (_server, url):
        pids = [fetch(url) for _ in range(8)]
        assert len(set(pids)) == 3
        text = fetch(f"{url}/metrics")
    assert values(text, "requests_total") == {pid: pids.count(pid) for pid in set(pids)}
    assert states(text) == {"answered": 1, "silent": 0, "ended": 2, "lost": 0}
