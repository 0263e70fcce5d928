"""Metrics in Python, measured side by side: metricbus, prometheus_client, the OpenTelemetry SDK, and a floor below which
nothing in Python can go.

Each round measures all of them in turns, some milliseconds each, so that a busy machine slows all alike. What counts are the
ratios within a round: their median and quartiles are reported. Absolute times mean nothing on another machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import threading
import time
import timeit
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import prometheus_client
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

import metricbus
from metricbus import MetricBus

REPORT = Path(__file__).parents[2] / "target" / "bench-python-report.json"

LABELS = ("GET", "200")
SERIES = 10_000


@dataclass
class Entry:
    """What is measured: functions that give seconds per operation, ours first, and the bar for it."""

    name: str
    what: str
    floor: tuple[str, Callable[[], float]] | None
    ours: Callable[[], float]
    peers: dict[str, Callable[[], float]]
    bar: str
    # Whom the bar is about, and the greatest ratio to it.
    against: str
    most: float
    rounds: int
    times: dict[str, list[float]] = field(default_factory=dict)

    def contestants(self) -> dict[str, Callable[[], float]]:
        floor = dict([self.floor]) if self.floor else {}
        return {"metricbus": self.ours, **floor, **self.peers}


def per_call(call: Callable[[], object], number: int) -> Callable[[], float]:
    timer = timeit.Timer("call()", globals={"call": call})
    return lambda: timer.timeit(number) / number


def per_observation(call: Callable[[float], object], number: int) -> Callable[[], float]:
    timer = timeit.Timer("call(0.25)", globals={"call": call})
    return lambda: timer.timeit(number) / number


class Empty:
    """A method that does nothing: the least that anything written in Python costs."""

    def call(self) -> None:
        pass

    def call_with(self, value: float) -> None:
        pass


def entries(rounds: int) -> list[Entry]:
    bus = MetricBus()
    registry = prometheus_client.CollectorRegistry()
    reader = InMemoryMetricReader()
    meter = MeterProvider(metric_readers=[reader]).get_meter("bench")
    empty = Empty()
    attributes = {"method": "GET", "status": "200"}

    counter = bus.counter("a_total", "A.")
    their_counter = prometheus_client.Counter("a", "A.", registry=registry)
    otel_counter = meter.create_counter("a")

    family = bus.counter("b_total", "B.", labels=("method", "status"))
    their_family = prometheus_client.Counter("b", "B.", ["method", "status"], registry=registry)

    histogram = bus.histogram("c_seconds", "C.")
    their_histogram = prometheus_client.Histogram("c_seconds", "C.", registry=registry)
    otel_histogram = meter.create_histogram("c")

    return [
        Entry(
            "py_counter_inc",
            "inc() of a counter",
            ("empty method", per_call(empty.call, 50_000)),
            per_call(counter.inc, 50_000),
            {
                "prometheus_client": per_call(their_counter.inc, 10_000),
                "opentelemetry": per_call(lambda: otel_counter.add(1), 2_000),
            },
            "<= 0.1 x prometheus_client",
            "prometheus_client",
            0.1,
            rounds,
        ),
        Entry(
            "py_labels_inc",
            "labels(...).inc() with two labels",
            None,
            per_call(lambda: family.labels(*LABELS).inc(), 10_000),
            {
                "prometheus_client": per_call(lambda: their_family.labels(*LABELS).inc(), 5_000),
                "opentelemetry": per_call(lambda: otel_counter.add(1, attributes), 2_000),
            },
            "<= 1 x prometheus_client",
            "prometheus_client",
            1.0,
            rounds,
        ),
        Entry(
            "py_histogram_observe",
            "observe() of a histogram",
            ("empty method", per_observation(empty.call_with, 50_000)),
            per_observation(histogram.observe, 50_000),
            {
                "prometheus_client": per_observation(their_histogram.observe, 5_000),
                "opentelemetry": per_observation(otel_histogram.record, 2_000),
            },
            "<= 0.1 x prometheus_client",
            "prometheus_client",
            0.1,
            rounds,
        ),
        generate(max(rounds // 5, 5)),
        crossing(max(rounds // 5, 5)),
        latency(max(rounds // 10, 5)),
    ]


def generate(rounds: int) -> Entry:
    bus = MetricBus()
    registry = prometheus_client.CollectorRegistry()
    reader = InMemoryMetricReader()
    otel = MeterProvider(metric_readers=[reader]).get_meter("bench").create_counter("d")
    ours = bus.counter("d_total", "D.", labels=["worker"], max_series=SERIES)
    theirs = prometheus_client.Counter("d", "D.", ["worker"], registry=registry)
    for worker in range(SERIES):
        ours.labels(worker).inc(worker)
        theirs.labels(worker).inc(worker)
        otel.add(worker, {"worker": str(worker)})
    exporter = metricbus.Exporter(bus, process_metrics=False)
    return Entry(
        "py_generate_10k",
        f"/metrics of {SERIES:,} counters",
        None,
        per_call(exporter.answer, 1),
        {
            "prometheus_client": per_call(lambda: prometheus_client.generate_latest(registry), 1),
            "opentelemetry (collected, not written)": per_call(reader.get_metrics_data, 1),
        },
        "<= 0.1 x prometheus_client",
        "prometheus_client",
        0.1,
        rounds,
    )


class Woken:
    """From a thread to something that runs in an idle event loop: how long it takes."""

    EACH = 40

    def __init__(self) -> None:
        self._took: list[float] = []

    def measure(self, begin: Callable[[asyncio.AbstractEventLoop, Callable[[], None]], Callable[[], None]]) -> float:
        """`begin` is told the loop and what is to be called in it, and gives what makes that happen."""
        took: list[float] = []
        start = [0.0]
        arrived = threading.Event()

        def arrive() -> None:
            took.append(time.perf_counter() - start[0])
            arrived.set()

        async def main() -> None:
            cause = begin(asyncio.get_running_loop(), arrive)
            finished = asyncio.get_running_loop().create_future()
            loop = asyncio.get_running_loop()

            def work() -> None:
                for _ in range(self.EACH):
                    # The loop is to be asleep.
                    time.sleep(0.001)
                    arrived.clear()
                    start[0] = time.perf_counter()
                    cause()
                    arrived.wait(10)
                loop.call_soon_threadsafe(finished.set_result, None)

            thread = threading.Thread(target=work)
            thread.start()
            await finished
            thread.join()

        asyncio.run(main())
        return statistics.median(took)


def crossing(rounds: int) -> Entry:
    bus = MetricBus()
    kv = bus.gauge("kv", "KV.")
    woken = Woken()
    state = {"value": 0.0}
    kept: list[object] = []

    def ours(loop: asyncio.AbstractEventLoop, arrive: Callable[[], None]) -> Callable[[], None]:
        async def callback(event: object) -> None:
            arrive()

        kept[:] = [bus.on_threshold(kv, callback, above=0.5, initial=False)]

        def cause() -> None:
            state["value"] = 1.0 - state["value"]
            kv.set(state["value"])

        return cause

    def bare(loop: asyncio.AbstractEventLoop, arrive: Callable[[], None]) -> Callable[[], None]:
        async def callback() -> None:
            arrive()

        def start() -> None:
            kept[:] = [loop.create_task(callback())]

        return lambda: (loop.call_soon_threadsafe(start), None)[1]

    return Entry(
        "py_crossing_to_coroutine",
        "set() in a thread to a coroutine in an idle loop",
        ("call_soon_threadsafe", lambda: woken.measure(bare)),
        lambda: woken.measure(ours),
        {},
        "<= 1.3 x a bare call_soon_threadsafe",
        "call_soon_threadsafe",
        1.3,
        rounds,
    )


def latency(rounds: int) -> Entry:
    bus = MetricBus()
    kv = bus.gauge("kv", "KV.")

    def p99(how: str) -> float:
        """How late a ticker of 1 ms is, at the 99th percentile, while a thread makes a million mutations per second, of
        which one in a hundred crosses. Whoever wakes the loop makes it late: it rounds what is left of its sleep up to
        whole milliseconds. So it is measured beside a thread that tells the loop by hand."""
        late: list[float] = []
        stop = threading.Event()
        loop = asyncio.new_event_loop()
        loop.close()

        def mutate() -> None:
            quiet, loud = [0.1, 0.2] * 50, 0.9
            due = time.perf_counter()
            while not stop.is_set():
                for _ in range(10):
                    for value in quiet:
                        kv.set(value)
                    kv.set(loud)
                    if how == "by hand":
                        loop.call_soon_threadsafe(callback, loud)
                        loop.call_soon_threadsafe(callback, quiet[0])
                due += 0.001
                wait = due - time.perf_counter()
                if wait > 0:
                    time.sleep(wait)
                elif wait < -0.1:
                    due = time.perf_counter()

        heard = 0

        def callback(event: object) -> None:
            nonlocal heard
            heard += 1

        async def main() -> None:
            nonlocal loop
            loop = asyncio.get_running_loop()
            subscription = bus.on_threshold(kv, callback, above=0.5) if how == "subscribed" else None
            thread = threading.Thread(target=mutate)
            thread.start()
            for _ in range(300):
                due = time.perf_counter() + 0.001
                await asyncio.sleep(0.001)
                late.append(max(time.perf_counter() - due, 1e-6))
            stop.set()
            thread.join()
            if heard == 0 and how != "alone":
                sys.exit("no crossing arrived, so nothing was measured")
            if subscription is not None:
                subscription.close()

        asyncio.run(main())
        return statistics.quantiles(late, n=100)[98]

    return Entry(
        "py_event_loop_latency",
        "p99 of a ticker of 1 ms, at 1 M mutations/s with 1 % crossings",
        ("without subscription", lambda: p99("alone")),
        lambda: p99("subscribed"),
        {"call_soon_threadsafe by hand": lambda: p99("by hand")},
        "<= 1.5 x the same by hand",
        "call_soon_threadsafe by hand",
        1.5,
        rounds,
    )


def shown(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filter", default="", help="only entries whose name contains this")
    parser.add_argument("--rounds", type=int, default=100, help="rounds of the quick entries; others make fewer (%(default)s)")
    options = parser.parse_args()

    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"WARNING: the load is {load:.1f}: others compute here, too. Expect wide quartiles.", file=sys.stderr)
    chosen = [entry for entry in entries(options.rounds) if options.filter in entry.name]
    report = {}
    for number, entry in enumerate(chosen, 1):
        print(f"{number}/{len(chosen)}: {entry.name}: {entry.what}", file=sys.stderr)
        contestants = entry.contestants()
        for measure in contestants.values():
            measure()
        for _ in range(entry.rounds):
            names = list(contestants)
            random.shuffle(names)
            for name in names:
                entry.times.setdefault(name, []).append(contestants[name]())
        ours = entry.times["metricbus"]
        print(f"\n{entry.name}: {entry.what}: {shown(statistics.median(ours))}")
        row: dict[str, object] = {"metricbus_seconds": statistics.median(ours), "rounds": entry.rounds}
        for name, theirs in entry.times.items():
            if name == "metricbus":
                continue
            low, middle, high = statistics.quantiles([a / b for a, b in zip(ours, theirs)], n=4)
            print(f"    {middle:6.3f} x [{low:.3f}-{high:.3f}]  {name}, {shown(statistics.median(theirs))}")
            row[name] = {"seconds": statistics.median(theirs), "ratio": middle, "quartiles": [low, high]}
            if name == entry.against:
                verdict = "within" if middle <= entry.most else "OVER THE BAR of"
                print(f"             {verdict} {entry.bar}")
        report[entry.name] = row
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\nwritten to {REPORT.relative_to(Path.cwd()) if REPORT.is_relative_to(Path.cwd()) else REPORT}")


if __name__ == "__main__":
    main()
