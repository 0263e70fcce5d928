"""Callbacks that are slow, hang or raise: what that costs others, what is counted and told, and who is detached."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

import metricbus
from metricbus import Crossing, Exporter, Gauge, MetricBus, Subscription
from metricbus._delivery import THREADS_MAX

from conftest import Run

LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.fixture
def kv(bus: MetricBus) -> Gauge:
    return bus.gauge("kv_usage_ratio", "Share of KV blocks in use.")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """What `threading.excepthook` is told."""
    errors: list[BaseException] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: errors.append(args.exc_value))
    return errors


def own(bus: MetricBus, name: str) -> float:
    """What `/metrics` says of the library itself."""
    lines = Exporter(bus).answer()[2].decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


class Heard:
    """Events, to be waited for by a thread."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self._changed = threading.Condition()

    def __call__(self, event: Any) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def until(self, count: int, seconds: float = 30) -> list[Any]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.events) >= count, seconds), f"heard {self.events}"
            return list(self.events)


class Hangs:
    """A callback that comes back only when it is let go."""

    def __init__(self, gauge: Gauge, count: int, bus: MetricBus) -> None:
        self._go = threading.Event()
        self.began, self.ended = Heard(), Heard()
        self.subscriptions = [bus.on_threshold(gauge, self, above=5) for _ in range(count)]

    def __call__(self, event: Crossing) -> None:
        self.began(event)
        assert self._go.wait(60)
        self.ended(event)

    def let_go(self) -> None:
        self._go.set()
        self.ended.until(len(self.subscriptions))
        for subscription in self.subscriptions:
            subscription.close()


@pytest.mark.parametrize("count", [1, THREADS_MAX + 1, 10 * THREADS_MAX])
def test_callbacks_that_hang_cost_nobody_else_an_event(count: int) -> None:
    mine, others = MetricBus(), MetricBus()
    gauge = mine.gauge("a", "A.")
    other = others.gauge("b", "B.")
    alike = mine.gauge("c", "C.")
    hangs = Hangs(gauge, count, mine)
    heard = Heard()
    with others.on_threshold(other, heard, above=5) as fast, mine.on_threshold(alike, heard, above=5) as near:
        gauge.set(9)
        hangs.began.until(1)
        for _ in range(10):
            for each in (other, alike):
                each.set(9)
                each.set(1)
        heard.until(40)
        # All of them are at work, and have a thread each.
        hangs.began.until(count)
        for each in (other, alike):
            each.set(9)
        heard.until(42)
        assert fast.stats().dropped == near.stats().dropped == 0
        # Only where all threads were needed are any given up.
        hung = own(mine, "metricbus_callbacks_hung_total")
        assert hung == 0 if count == 1 else count - THREADS_MAX <= hung <= count
        assert sum(subscription.stats().hung for subscription in hangs.subscriptions) == hung
        hangs.let_go()
        # Those that were given up hear what comes, as before.
        gauge.set(1)
        gauge.set(9)


def test_callbacks_that_hang_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    bus = MetricBus()
    gauge = bus.gauge("a", "A.")
    hangs = Hangs(gauge, THREADS_MAX + 1, bus)
    gauge.set(9)
    hangs.began.until(THREADS_MAX + 1)
    while "a callback hangs" not in caplog.text:
        threading.Event().wait(0.01)
    hangs.let_go()


def test_each_subscription_hears_in_order_and_one_event_at_a_time(bus: MetricBus) -> None:
    gauge = bus.gauge("a", "A.")
    rounds, slow = 300, threading.Event()
    busy = [threading.Lock() for _ in range(20)]
    heard = [Heard() for _ in busy]

    def callback(number: int) -> Callable[[Any], None]:
        def call(event: Any) -> None:
            assert busy[number].acquire(blocking=False), "two threads at once"
            if len(heard[number].events) % 50 == number:
                # Long enough for another thread to come.
                slow.wait(0.03)
            busy[number].release()
            heard[number](event.sequence)

        return call

    subscriptions = [bus.subscribe(gauge, callback(number), capacity=rounds) for number in range(len(busy))]
    for value in range(rounds):
        gauge.set(value)
    for each in heard:
        sequences = each.until(rounds)
        assert sequences == list(range(sequences[0], sequences[0] + rounds))
    for subscription in subscriptions:
        subscription.close()


def test_three_failures_in_a_row_detach_and_are_counted(
    bus: MetricBus, kv: Gauge, told: list[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    calls, others = Heard(), Heard()

    def fails(event: Crossing) -> None:
        calls(event)
        # Two in a row are not enough.
        if event.epoch != 3:
            raise ValueError(event.epoch)

    with bus.on_threshold(kv, others, above=5) as other:
        bad = bus.on_threshold(kv, fails, above=5)
        for count in range(1, 9):
            kv.set(9 if count % 2 else 1)
            others.until(count)
        calls.until(6)
        while not bad.is_closed:
            threading.Event().wait(0.001)
        assert (bad.is_detached, other.is_detached) == (True, False)
        assert [str(error) for error in told] == ["1", "2", "4", "5", "6"]
        assert own(bus, "metricbus_callback_panics_total") == 5
        assert own(bus, "metricbus_subscriptions_detached_total") == 1
        assert own(bus, "metricbus_subscriptions") == 1
    while "callback detached: it failed 3 times in a row" not in caplog.text:
        threading.Event().wait(0.001)


@pytest.mark.parametrize("error", [GeneratorExit, SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_whatever_a_function_raises_costs_that_event_only(
    bus: MetricBus, kv: Gauge, told: list[BaseException], caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    calls = Heard()

    def once(event: Crossing) -> None:
        calls(event)
        if event.epoch == 2:
            raise error("of a test")

    with bus.on_threshold(kv, once, above=5) as subscription:
        for _ in range(6):
            kv.set(9)
            kv.set(1)
        calls.until(12)
        kv.set(9)
        assert [event.epoch for event in calls.until(13)] == list(range(1, 14))
        assert subscription.stats().failed == 1
        assert own(bus, "metricbus_callback_panics_total") == 1
    if error in (SystemExit, KeyboardInterrupt):
        assert "of a test" in caplog.text and error.__name__ in caplog.text
        assert told == []
    else:
        assert [type(each) for each in told] == [error]


def test_who_would_end_the_program_from_a_thread_is_not_detached(
    bus: MetricBus, kv: Gauge, caplog: pytest.LogCaptureFixture
) -> None:
    calls = Heard()

    def leaves(event: Crossing) -> None:
        calls(event)
        raise SystemExit("not from here")

    with bus.on_threshold(kv, leaves, above=5) as subscription:
        for count in range(1, 9):
            kv.set(9 if count % 2 else 1)
            calls.until(count)
        assert not subscription.is_detached
        while own(bus, "metricbus_callback_panics_total") < 8:
            threading.Event().wait(0.001)
    assert caplog.text.count("which ends no program from here") == 8


@pytest.mark.parametrize("make_loop", LOOPS, ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("is_coroutine", [False, True], ids=["function", "coroutine"])
@pytest.mark.parametrize("error", [ValueError, GeneratorExit, asyncio.CancelledError])
def test_in_a_loop_whatever_a_callback_raises_costs_that_event_only(
    bus: MetricBus,
    kv: Gauge,
    make_loop: Callable[[], asyncio.AbstractEventLoop],
    is_coroutine: bool,
    error: type[BaseException],
) -> None:
    epochs: list[int] = []
    contexts: list[dict[str, Any]] = []

    def function(event: Crossing) -> None:
        epochs.append(event.epoch)
        if event.epoch == 2:
            raise error("of a test")

    async def coroutine(event: Crossing) -> None:
        await asyncio.sleep(0)
        function(event)

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: contexts.append(context))
        with bus.on_threshold(kv, coroutine if is_coroutine else function, above=5) as subscription:
            for _ in range(6):
                kv.set(9)
                kv.set(1)
            while len(epochs) < 12:
                await asyncio.sleep(0)
            kv.set(9)
            while len(epochs) < 13:
                await asyncio.sleep(0)
            assert subscription.stats().failed == 1

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(asyncio.wait_for(main(), 30))
    assert epochs == list(range(1, 14))
    assert own(bus, "metricbus_callback_panics_total") == 1
    # A call that was cut short is no error of the callback's.
    cut = is_coroutine and error is asyncio.CancelledError
    assert [type(context["exception"]) for context in contexts] == ([] if cut else [error])


@pytest.mark.parametrize("make_loop", LOOPS, ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("is_coroutine", [False, True], ids=["function", "coroutine"])
def test_in_a_loop_three_failures_in_a_row_detach(
    bus: MetricBus, kv: Gauge, make_loop: Callable[[], asyncio.AbstractEventLoop], is_coroutine: bool
) -> None:
    epochs: list[int] = []

    def function(event: Crossing) -> None:
        epochs.append(event.epoch)
        raise ValueError("of a test")

    async def coroutine(event: Crossing) -> None:
        function(event)

    async def main() -> Subscription[Crossing]:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        subscription = bus.on_threshold(kv, coroutine if is_coroutine else function, above=5)
        for _ in range(6):
            kv.set(9)
            kv.set(1)
        while not subscription.is_closed:
            await asyncio.sleep(0)
        return subscription

    with asyncio.Runner(loop_factory=make_loop) as runner:
        assert runner.run(asyncio.wait_for(main(), 30)).is_detached
    assert epochs == [1, 2, 3]
    assert own(bus, "metricbus_callback_panics_total") == 3
    assert own(bus, "metricbus_subscriptions_detached_total") == 1


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize("error", ["SystemExit(7)", "KeyboardInterrupt"])
def test_in_a_loop_an_exit_leaves_run(run: Run, loop: str, kind: str, error: str) -> None:
    run(
        f"""
        import asyncio, sys, {loop}, metricbus
        bus = metricbus.MetricBus()
        kv = bus.gauge("kv", "KV.")

        {kind} callback(event):
            raise {error}

        async def main():
            with bus.on_change(kv, callback):
                kv.set(1)
                await asyncio.sleep(30)

        try:
            {loop}.run(main())
        except KeyboardInterrupt:
            sys.exit(7)
        """,
        status=7,
    )


def test_a_decorated_function_hears_as_long_as_its_bus_lives() -> None:
    bus = MetricBus()
    kv = bus.gauge("kv", "KV.")
    heard = Heard()

    def setup() -> weakref.ref[object]:
        @bus.on_threshold(kv, above=0.5)
        def hot(event: Crossing) -> None:
            heard(event)

        return weakref.ref(hot)

    subscription = setup()
    gc.collect()
    kv.set(1)
    heard.until(1)
    assert own(bus, "metricbus_subscriptions") == 1
    del bus, kv
    gc.collect()
    while subscription() is not None:
        threading.Event().wait(0.001)


def test_a_subscription_that_nobody_keeps_says_so(bus: MetricBus, kv: Gauge) -> None:
    with pytest.warns(RuntimeWarning, match=r"nobody kept the subscription of .*forget\(\)"):
        bus.on_threshold(kv, print, above=0.5)
        gc.collect()
    assert own(bus, "metricbus_subscriptions") == 0
    # One that has heard something was kept by somebody.
    heard = Heard()
    subscription = bus.on_change(kv, heard)
    kv.set(1)
    heard.until(1)
    del subscription
    bus.on_change(kv, heard).close()
    gc.collect()


def test_a_server_that_nobody_keeps_says_so(bus: MetricBus, caplog: pytest.LogCaptureFixture) -> None:
    bus.serve("127.0.0.1:0").close()
    bus.serve("127.0.0.1:0").forget()
    address = bus.serve("127.0.0.1:0").address
    gc.collect()
    while f"nobody keeps the server at {address}" not in caplog.text:
        threading.Event().wait(0.001)
    assert caplog.text.count("nobody keeps the server") == 1


def test_a_program_that_ends_says_nothing_of_its_subscriptions(run: Run) -> None:
    done = run(
        """
        import metricbus
        bus = metricbus.MetricBus()
        kept = bus.on_change(bus.gauge("kv", "KV."), print)
        """
    )
    assert done.stderr == ""


def test_a_callback_that_hangs_does_not_keep_a_program_from_ending(run: Run) -> None:
    done = run(
        """
        import threading, metricbus
        bus = metricbus.MetricBus()
        kv = bus.gauge("kv", "KV.")
        began = threading.Event()

        @bus.on_change(kv)
        def hangs(event):
            began.set()
            while True:
                threading.Event().wait(0.001)

        kv.set(1)
        assert began.wait(30)
        print("the end")
        """
    )
    assert (done.stdout, done.stderr) == ("the end\n", "")
