"""What runs before a scrape, a push or an export: hooks that hang, raise, or are slow cost themselves only."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from typing import Any

import pytest

import metricbus as mb

from conftest import Pushgateway, Run


def sample(text: bytes, name: str) -> float:
    lines = text.decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def scrape(bus: mb.MetricBus, deadline: float = 0.2) -> bytes:
    return mb.Exporter(bus, hooks_deadline=deadline).answer()[2]


class Hangs:
    """A function that comes back only when it is let go."""

    def __init__(self) -> None:
        self.calls = 0
        self.go, self.ended = threading.Event(), threading.Event()

    def __call__(self) -> float:
        self.calls += 1
        assert self.go.wait(60)
        self.ended.set()
        return 3.0


def test_hooks_run_side_by_side(bus: mb.MetricBus) -> None:
    # Each waits for all others.
    barrier = threading.Barrier(20)
    for number in range(20):
        bus.gauge(f"g{number}", "G.").set_function(lambda: barrier.wait(30) and 7 or 7)
    text = scrape(bus, 30)
    assert [sample(text, f"g{number}") for number in range(20)] == [7] * 20
    assert sample(text, "metricbus_hook_timeouts_total") == 0


@pytest.mark.parametrize("count", [1, 100])
def test_hooks_that_hang_cost_themselves_only(
    bus: mb.MetricBus, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    hangs = [Hangs() for _ in range(count)]
    for number, hook in enumerate(hangs):
        bus.gauge(f"bad{number}", "B.").set_function(hook)
    values = iter(range(1, 1000))
    bus.gauge("good", "G.").set_function(lambda: next(values))
    # As the others are hung up, this one may only get a thread in the second scrape on a busy machine.
    text = scrape(bus, 2)
    assert sample(text, "good") == 1
    assert sample(text, "metricbus_hook_timeouts_total") == count
    # They are not begun again, nor waited for.
    for expected in (2, 3):
        text = scrape(bus, 60)
        assert sample(text, "good") == expected
    assert [hook.calls for hook in hangs] == [1] * count
    assert sample(text, "metricbus_hook_timeouts_total") == count
    assert sample(text, "metricbus_exporter_hook_timeouts_total{hook=\"python\"}") == 0
    for hook in hangs:
        hook.go.set()
    for hook in hangs:
        assert hook.ended.wait(30)
    while sample(text := scrape(bus, 60), "bad0") != 3:
        pass
    while any(hook.calls < 2 for hook in hangs):
        scrape(bus, 60)


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError, SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_hook_that_raises_costs_itself_only(
    bus: mb.MetricBus, caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    def raises() -> float:
        raise error("of a test")

    bad = bus.gauge("bad", "B.")
    bad.set(5)
    bad.set_function(raises)
    bus.on_collect(raises)
    for number in range(5):
        bus.gauge(f"g{number}", "G.").set_function(lambda: 7)
    for times in (1, 2):
        for text in (scrape(bus), mb.generate_latest(bus)):
            assert [sample(text, f"g{number}") for number in range(5)] == [7] * 5
            # What it was before.
            assert sample(text, "bad") == 5
    assert sample(scrape(bus), "metricbus_hook_failures_total") == 10
    assert caplog.text.count("of a test") >= 10 and error.__name__ in caplog.text


def test_a_hook_that_hangs_holds_up_no_push_and_no_text(bus: mb.MetricBus, pushgateway: Pushgateway) -> None:
    hook = Hangs()
    bus.gauge("bad", "B.").set_function(hook)
    bus.gauge("good", "G.").set_function(lambda: 7)
    assert sample(mb.generate_latest(bus), "good") == 7
    mb.push_to_gateway(pushgateway.url, "job", bus)

    async def main() -> None:
        await mb.Push(pushgateway.url, "job").push_async(bus)

    asyncio.run(main())
    assert pushgateway.groups()[(("job", "job"),)]["good"] == "7"
    hook.go.set()
    assert hook.ended.wait(30) and hook.calls == 1


def test_a_merged_registry_that_hangs_or_exits_costs_itself_only(bus: mb.MetricBus) -> None:
    import prometheus_client

    class Collects:
        def __init__(self, then: Callable[[], object]) -> None:
            self.then = then

        def describe(self) -> list[Any]:
            return []

        def collect(self) -> list[Any]:
            self.then()
            return []

    def exits() -> None:
        raise SystemExit

    hook = Hangs()
    good, bad = prometheus_client.CollectorRegistry(), prometheus_client.CollectorRegistry()
    prometheus_client.Gauge("theirs", "T.", registry=good).set(4)
    good.register(Collects(exits))
    bad.register(Collects(hook))
    bus.gauge("ours", "O.").set_function(lambda: 7)
    text = mb.Exporter(bus, merge=[bad, good]).answer()[2]
    assert (sample(text, "theirs"), sample(text, "ours")) == (4, 7)
    hook.go.set()


def test_a_removed_child_has_no_hook_any_more(bus: mb.MetricBus) -> None:
    calls: list[str] = []
    depth = bus.gauge("depth", "D.", ["queue"])

    def measures(queue: str) -> Callable[[], float]:
        def measure() -> float:
            calls.append(queue)
            return 1

        return measure

    for queue in ("a", "b"):
        depth.labels(queue).set_function(measures(queue))
    scrape(bus)
    depth.remove("a")
    calls.clear()
    for _ in range(3):
        scrape(bus)
    assert calls == ["b"] * 3


def test_hooks_run_in_a_forked_child(run: Run) -> None:
    done = run(
        """
        import os, metricbus as mb
        bus = mb.MetricBus()
        bus.gauge("pid", "P.").set_function(os.getpid)
        shown = lambda: f"pid {os.getpid()}".encode() in mb.generate_latest(bus)
        assert shown()
        child = os.fork()
        if child == 0:
            os._exit(0 if shown() else 1)
        assert os.waitpid(child, 0)[1] == 0
        print("done")
        """,
        "-W",
        "ignore::DeprecationWarning",
    )
    assert done.stdout == "done\n"


SERVER = """
import socket
listener = socket.create_server(("127.0.0.1", 0))
port = listener.getsockname()[1]
"""

# Calls that wait: what they are, by a program that defines `wait`, which would take for ever.
WAITS = {
    "generate_latest": "def wait():\n    while True: mb.generate_latest(hung)",
    "answer": "def wait(): mb.Exporter(hung, hooks_deadline=600).answer()",
    "wsgi": """
app = mb.make_wsgi_app(mb.Exporter(hung, hooks_deadline=600))
def wait(): app({"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics"}, lambda *_: None)
""",
    "push": SERVER + "def wait(): mb.push_to_gateway(f'127.0.0.1:{port}', 'job', bus, timeout=600)",
    "push with a hook": SERVER + "def wait():\n    while True: mb.push_to_gateway(f'127.0.0.1:{port}', 'job', hung, timeout=600)",
    "delete": SERVER + "def wait(): mb.delete_from_gateway(f'127.0.0.1:{port}', 'job', timeout=600)",
    "flush": SERVER + "container = mb.OtlpContainer('app', mb.OtlpOptions(f'http://127.0.0.1:{port}'))\ncontainer.create_counter('a_total', 'A.').inc()\ndef wait(): container.flush(600)",
    "shutdown": SERVER + "container = mb.OtlpContainer('app', mb.OtlpOptions(f'http://127.0.0.1:{port}'))\ncontainer.create_counter('a_total', 'A.').inc()\ndef wait(): container.shutdown(600)",
    "a stream": "stream = bus.on_change('kv').stream()\ndef wait(): stream.get()",
    "for": "stream = bus.on_change('kv').stream()\ndef wait(): list(stream)",
    "keep_rule_state": """
import os, tempfile
path = os.path.join(tempfile.mkdtemp(), "state")
os.mkfifo(path)
def wait(): bus.keep_rule_state(path)
""",
    "close": """
import socket
server = mb.Exporter(hung, hooks_deadline=600).serve("127.0.0.1:0")
client = socket.create_connection(("127.0.0.1", server.port))
client.sendall(b"GET /metrics HTTP/1.1\\r\\nhost: a\\r\\n\\r\\n")
assert began.wait(60)
def wait(): server.close()
""",
}


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("what", WAITS)
def test_a_signal_ends_a_call_that_waits(what: str, how: signal.Signals) -> None:
    program = """
import os, signal, sys, threading
import metricbus as mb
bus, hung = mb.MetricBus(), mb.MetricBus()
kv = bus.gauge("kv", "KV.")
began = threading.Event()
def hangs():
    began.set()
    threading.Event().wait()
hung.gauge("a", "A.").set_function(hangs)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
signal.signal(signal.SIGINT, lambda *_: sys.exit(5))
"""
    program += WAITS[what] + "\nprint('waits', flush=True)\nwait()\nprint('came back')\n"
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == "waits\n", child.communicate(timeout=30)
        # Some time after it has said so it waits; a signal that comes before ends it just as well.
        threading.Event().wait(0.3)
        child.send_signal(how)
        out, err = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
    assert (child.returncode, out) == (5, ""), err
