"""Life and death: leaks, forks, the interpreter's exit, subinterpreters."""

from __future__ import annotations

import asyncio
import gc
import logging
import logging.handlers
import os
import queue
import sys
import threading
import weakref

import pytest

import metricbus
from metricbus import MetricBus

from conftest import Run

ROUNDS = 10_000


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.filterwarnings("ignore:nobody kept")
def test_ten_thousand_subscriptions_leave_nothing_behind(bus: MetricBus) -> None:
    kv = bus.gauge("kv", "KV.")

    async def coroutine(event: object) -> None:
        pass

    async def rounds(count: int) -> None:
        for i in range(count):
            plain = bus.on_threshold(kv, lambda _: None, above=0.5)
            slow = bus.on_threshold(kv, coroutine, above=0.5)
            async with bus.on_change(kv) as changes:
                kv.set(i % 2)
                await anext(changes)
            if i % 2:
                plain.close()
            slow.close()
            del plain, slow

    async def main() -> None:
        await rounds(100)
        gc.collect()
        before, threads = (descriptors(), len(asyncio.all_tasks())), threading.active_count()
        objects = len(gc.get_objects())
        blocks = sys.getallocatedblocks()
        await rounds(ROUNDS)
        await asyncio.sleep(0)
        gc.collect()
        assert (descriptors(), len(asyncio.all_tasks())) == before
        # Those of earlier tests may have gone meanwhile.
        assert threading.active_count() <= threads
        assert len(gc.get_objects()) - objects < 100
        assert sys.getallocatedblocks() - blocks < 1_000

    asyncio.run(main())
    # Nobody listens any more: what is left would be told here.
    assert b"metricbus_subscriptions 0\n" in metricbus.Exporter(bus).answer()[2]


def test_loops_come_and_go_without_leaving_descriptors(bus: MetricBus) -> None:
    kv = bus.gauge("kv", "KV.")

    async def main() -> None:
        with bus.on_change(kv, lambda _: None):
            kv.inc()
            await asyncio.sleep(0)

    asyncio.run(main())
    gc.collect()
    before = descriptors()
    for _ in range(100):
        asyncio.run(main())
    gc.collect()
    assert descriptors() == before


def test_readers_without_a_loop_leave_no_descriptors(bus: MetricBus) -> None:
    kv = bus.gauge("kv", "KV.")
    before = descriptors()
    for _ in range(1_000):
        with bus.on_change(kv) as changes:
            changes.get_nowait()
    del changes
    gc.collect()
    assert descriptors() == before


@pytest.mark.filterwarnings("ignore:nobody kept")
def test_a_callback_that_holds_its_own_subscription_is_collected(bus: MetricBus) -> None:
    class Component:
        def __init__(self) -> None:
            self.kv = bus.gauge("kv", "KV.")
            self.subscription = bus.on_change(self.kv, self.changed)

        def changed(self, event: object) -> None:
            pass

    component = weakref.ref(Component())
    gc.collect()
    assert component() is None
    assert b"metricbus_subscriptions 0\n" in metricbus.Exporter(bus).answer()[2]


def test_a_program_that_ends_while_coroutines_are_called_is_silent_and_calls_no_more(run: Run) -> None:
    done = run(
        """
        import asyncio, metricbus
        bus = metricbus.MetricBus()
        kv = bus.gauge("kv", "KV.")

        async def callback(event):
            print("begins", event.after)
            try:
                await asyncio.sleep(1000)
            finally:
                print("ends", event.after)

        async def main():
            global kept
            kept = bus.subscribe(kv, callback)
            kv.set(1)
            kv.set(2)
            await asyncio.sleep(0.05)
            print("main ends")

        asyncio.run(main())
        kv.set(3)
        """
    )
    assert done.stdout.splitlines() == ["begins 1.0", "main ends", "ends 1.0"]
    assert done.stderr == ""


@pytest.mark.parametrize("loop", ["asyncio.run", "thread"])
def test_the_interpreter_ends_with_live_subscriptions(run: Run, loop: str) -> None:
    done = run(
        f"""
        import asyncio, threading, metricbus
        bus = metricbus.MetricBus()
        kv = bus.gauge("kv", "KV.")
        server = metricbus.Exporter(bus).serve("127.0.0.1:0")

        async def callback(event):
            await asyncio.sleep(1000)

        async def main():
            bus.on_change(kv, callback).forget()
            kv.set(1)
            await asyncio.sleep(0)

        def mutate():
            while True:
                kv.inc()

        threading.Thread(target=mutate, daemon=True).start()
        if {loop!r} == "asyncio.run":
            asyncio.run(main())
        else:
            bus.on_change(kv, lambda event: None).forget()
        print("the end")
        """
    )
    assert done.stdout == "the end\n"
    assert done.stderr == ""


def test_a_child_counts_from_zero_on_a_bus_of_its_own(bus: MetricBus) -> None:
    counter = bus.counter("a_total", "A.", labels=["x"])
    child = counter.labels("1")
    child.inc(5)
    series = child.series
    subscription = bus.on_change(child, lambda _: None)
    server = metricbus.Exporter(bus).serve("127.0.0.1:0")
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            child.inc()
            counter.labels("2").inc(3)
            assert (child.get(), counter.labels("1").get()) == (1, 1)
            assert bus.snapshot().value("a_total", x="2") == 3
            assert server.is_closed
            with pytest.raises(metricbus.ForkedError, match="forked"):
                series.labels
            with pytest.raises(metricbus.ForkedError, match="subscribe again"):
                subscription.stats()
            # Subscriptions, loops, threads and servers work as in any process.
            with bus.on_change(child) as changes:
                child.inc()
                assert changes.get(timeout=10).value == 2

            async def main() -> float:
                async with bus.on_change(child) as changes:
                    child.inc()
                    return float((await anext(changes)).value)

            assert asyncio.run(main()) == 3
            called = threading.Event()
            kept = bus.on_change(child, lambda _: called.set())
            child.inc()
            assert called.wait(10)
            kept.close()
            with metricbus.Exporter(bus).serve("127.0.0.1:0") as own:
                assert own.port != server.port
            assert b'a_total{x="1"} 4\n' in metricbus.Exporter(bus).answer()[2]
            code = 0
        except BaseException as error:
            os.write(write, repr(error).encode())
        finally:
            os._exit(code)
    os.close(write)
    _, status = os.waitpid(pid, 0)
    assert status == 0, os.read(read, 10_000).decode()
    os.close(read)
    assert child.get() == 5
    assert subscription.stats().series_matched == 1
    subscription.close()
    server.close()


def test_children_of_children_and_of_busy_parents_do_not_hang(run: Run) -> None:
    done = run(
        """
        import os, threading, metricbus
        bus = metricbus.MetricBus()
        gauge = bus.gauge("a", "A.")
        stop = False

        def busy():
            while not stop:
                with bus.subscribe(gauge) as mutations:
                    for i in range(100):
                        gauge.set(i)
                    bus.snapshot()

        threads = [threading.Thread(target=busy) for _ in range(3)]
        kept = bus.on_change(gauge, lambda _: None)
        for thread in threads:
            thread.start()
        for _ in range(50):
            pid = os.fork()
            if pid == 0:
                gauge.set(2)
                inner = os.fork()
                gauge.set(3)
                ok = gauge.get() == 3 and bus.snapshot().value("a") == 3
                if inner != 0:
                    ok = ok and os.waitpid(inner, 0)[1] == 0
                os._exit(0 if ok else 1)
            assert os.waitpid(pid, 0)[1] == 0
        stop = True
        for thread in threads:
            thread.join()
        print("done")
        """,
        "-W",
        "ignore::DeprecationWarning",
    )
    assert done.stdout == "done\n"


def test_timers_run_in_children_of_parents_that_use_them(run: Run) -> None:
    done = run(
        """
        import os, metricbus
        from metricbus import Clock, MetricBus, Rule, when
        buses = [MetricBus(), MetricBus(clock=Clock.system())]
        gauges = [bus.gauge("a", "A.") for bus in buses]
        for bus, gauge in zip(buses, gauges):
            bus.add_rule(Rule("Busy", when("a", above=0), hold_for=0.001))
            gauge.set(1)

        def fires_in(bus, gauge):
            bus.add_rule(Rule("High", when("a", above=0), hold_for=0.001))
            with bus.on_alert() as alerts:
                gauge.set(1)
                return alerts.get(timeout=20).rule == "High"

        for _ in range(20):
            pid = os.fork()
            if pid == 0:
                ok = all(map(fires_in, buses, gauges))
                inner = os.fork()
                if inner == 0:
                    ok = ok and all(map(fires_in, buses, gauges))
                else:
                    ok = os.waitpid(inner, 0)[1] == 0
                os._exit(0 if ok else 1)
            assert os.waitpid(pid, 0)[1] == 0
        print("done")
        """,
        "-W",
        "ignore::DeprecationWarning",
    )
    assert done.stdout == "done\n"


def test_windows_see_what_a_child_measures_from_the_start(run: Run) -> None:
    done = run(
        """
        import os, metricbus
        bus = metricbus.MetricBus()
        jobs = bus.counter("jobs_total", "Jobs.")
        waits = bus.histogram("wait_seconds", "Waits.", ["who"])
        windows = [bus.window(of, 60) for of in (jobs, "jobs_total", waits)] + [waits.labels("a").window(60)]
        jobs.inc(5)
        waits.labels("a").observe(1)
        gone = bus.window(jobs, 60)
        del gone
        pid = os.fork()
        if pid == 0:
            jobs.inc(2)
            waits.labels("a").observe(1)
            waits.labels("a").observe(1)
            os._exit(0 if [window.stats().increase for window in windows] == [2] * 4 else 1)
        assert os.waitpid(pid, 0)[1] == 0
        assert [window.stats().increase for window in windows] == [5, 5, 1, 1]
        print("done")
        """,
        "-W",
        "ignore::DeprecationWarning",
    )
    assert done.stdout == "done\n"


def test_a_subinterpreter_is_refused_with_a_reason(run: Run) -> None:
    done = run(
        """
        import metricbus, sys
        if sys.version_info < (3, 13):
            import _xxsubinterpreters as interpreters
            try:
                interpreters.run_string(interpreters.create(), "import metricbus")
            except interpreters.RunFailedError as error:
                print(error)
        else:
            import _interpreters as interpreters
            # Of both kinds: with an interpreter lock of its own, and sharing that of the first.
            for kind in ("isolated", "legacy"):
                error = interpreters.run_string(interpreters.create(kind), "import metricbus")
                print(error.formatted)
        """
    )
    told = done.stdout.splitlines()
    assert told
    assert all("ImportError" in line and "subinterpreters" in line for line in told), told


def test_signals_are_handled_while_a_server_runs(run: Run) -> None:
    run(
        """
        import os, signal, threading, metricbus
        server = metricbus.Exporter(metricbus.MetricBus()).serve("127.0.0.1:0")
        try:
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(30)
        except KeyboardInterrupt:
            server.close()
            raise SystemExit(3)
        """,
        status=3,
    )


def test_what_an_operator_should_know_is_logged(bus: MetricBus) -> None:
    records: queue.Queue[logging.LogRecord] = queue.Queue()
    logger = logging.getLogger("metricbus")
    handler = logging.handlers.QueueHandler(records)
    logger.addHandler(handler)
    try:
        # promtool would criticise that.
        bus.counter("requests", "Requests.")
        record = records.get(timeout=10)
        while "requests" not in record.getMessage():
            record = records.get(timeout=10)
        assert record.levelno == logging.WARNING
    finally:
        logger.removeHandler(handler)
    assert any("requests" in lint for lint in bus.lints())


# What a daemon thread may be doing when a program ends.
DAEMONS = {
    "text": "mb.generate_latest(bus)",
    "answer": "exporter.answer()",
    "merged": "merging.answer()",
    "wsgi": "app({'REQUEST_METHOD': 'GET', 'PATH_INFO': '/metrics'}, lambda *_: None)",
    "set": "gauge.set(Number()); gauge.inc(Number()); gauge.set_max(Number())",
    "count": "counter.inc(Number())",
    "observe": "histogram.observe(Number())",
    "labels": "family.labels(Text()).inc()",
    "exemplar": "counter.inc(1, {'trace_id': Text()})",
    "timer": "with histogram.time(): pass",
    "subscribe": "bus.on_change(gauge, print).close()",
    "log": "bus.counter(f'requests{next(names)}', 'Requests.')",
    "callback": "gauge.inc()",
    "snapshot": "bus.snapshot()",
    "await": "asyncio.run(ask())",
    "error": """
                    try:
                        family.labels(nothing=1)
                    except mb.LabelError:
                        pass""",
}


@pytest.mark.parametrize("what", DAEMONS)
def test_a_program_ends_while_daemon_threads_are_inside(run: Run, what: str) -> None:
    for _ in range(3):
        done = run(
            f"""
            import asyncio, itertools, logging, threading, time
            import metricbus as mb, prometheus_client
            bus = mb.MetricBus()
            names = itertools.count()

            def busy():
                return float(sum(i for i in range(2000)))

            class Number:
                def __float__(self):
                    return busy()

            class Text:
                def __str__(self):
                    return str(int(busy()) % 5)

            class Handler(logging.Handler):
                def emit(self, record):
                    busy()

            logging.getLogger("metricbus").addHandler(Handler())
            logging.getLogger("metricbus").propagate = False
            gauge, counter, histogram = bus.gauge("g", "G."), bus.counter("c_total", "C."), bus.histogram("h", "H.")
            family = bus.gauge("f", "F.", ["x"])
            bus.gauge("hook", "H.").set_function(busy)
            registry = prometheus_client.CollectorRegistry()
            prometheus_client.Gauge("theirs", "T.", registry=registry).set_function(busy)
            exporter, merging = mb.Exporter(bus), mb.Exporter(bus, merge=[registry])
            app = mb.make_wsgi_app(bus)
            if {what!r} == "callback":
                kept = [bus.on_change(gauge, lambda event: busy()) for _ in range(10)]

            async def ask():
                for _ in range(100):
                    await exporter.answer_async("/health")

            def loop():
                while True:
                    {DAEMONS[what]}

            for _ in range(8):
                threading.Thread(target=loop, daemon=True).start()
            time.sleep(0.2)
            print("the end")
            """
        )
        assert (done.stdout, done.stderr) == ("the end\n", "")
