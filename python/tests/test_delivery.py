"""Callbacks, coroutines and iterators: who hears what, where, in what order, and what is lost when nobody listens."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

import metricbus
from metricbus import Crossing, Gauge, Lagged, MetricBus, Mutation

LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.fixture(params=LOOPS, ids=["asyncio", "uvloop"])
def in_loop(request: pytest.FixtureRequest) -> Callable[[Any], Any]:
    """Runs a coroutine to its end, in each kind of loop, for ten seconds at most."""

    def run(coroutine: Any) -> Any:
        with asyncio.Runner(loop_factory=request.param) as runner:
            return runner.run(asyncio.wait_for(coroutine, 10))

    return run


@pytest.fixture
def kv(bus: MetricBus) -> Gauge:
    return bus.gauge("kv_usage_ratio", "Share of KV blocks in use.")


def count_up(gauge: Gauge, last: int) -> None:
    for i in range(1, last + 1):
        gauge.set(i)


class Heard(list[Any]):
    """What was heard, to be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._changed = asyncio.Condition()

    def __call__(self, event: Any) -> None:
        self.append(event)
        self._wake()

    async def slowly(self, event: Any) -> None:
        await asyncio.sleep(0)
        self(event)

    def _wake(self) -> None:
        async def wake() -> None:
            async with self._changed:
                self._changed.notify_all()

        self._task = asyncio.ensure_future(wake())

    async def until(self, count: int) -> list[Any]:
        async with self._changed:
            await self._changed.wait_for(lambda: len(self) >= count)
        return self


def test_a_function_a_coroutine_function_and_an_iterator_hear_the_same(
    bus: MetricBus, kv: Gauge, in_loop: Callable[[Any], Any]
) -> None:
    async def main() -> None:
        plain, slow = Heard(), Heard()
        with (
            bus.on_threshold(kv, plain, above=0.9, clear_below=0.8),
            bus.on_threshold(kv, slow.slowly, above=0.9, clear_below=0.8),
        ):
            async with bus.on_threshold(kv, above=0.9, clear_below=0.8) as crossings:
                for value in (0.95, 0.85, 0.5, 1.0):
                    kv.set(value)
                read: list[Crossing] = []
                async for crossing in crossings:
                    read.append(crossing)
                    if len(read) == 3:
                        break
            await plain.until(3)
            await slow.until(3)
        expected = [("raised", 0.95), ("cleared", 0.5), ("raised", 1.0)]
        for heard in (plain, slow, read):
            assert [(crossing.state, crossing.value) for crossing in heard] == expected
        assert [crossing.epoch for crossing in read] == [1, 2, 3]
        assert read[0].is_raised and read[0].series == kv.series and read[0].cause == "crossing"

    in_loop(main())


def test_a_burst_wakes_the_loop_once_and_arrives_in_order(
    bus: MetricBus, kv: Gauge, in_loop: Callable[[Any], Any]
) -> None:
    async def main() -> None:
        heard = Heard()
        with bus.subscribe(kv, heard, capacity=10_000):
            for i in range(5_000):
                kv.set(i + 1)
            await heard.until(5_000)
        assert [mutation.after for mutation in heard] == list(range(1, 5_001))
        assert [mutation.sequence for mutation in heard] == list(range(heard[0].sequence, heard[0].sequence + 5_000))

    in_loop(main())


def test_mutations_of_other_threads_reach_the_loop(bus: MetricBus, kv: Gauge, in_loop: Callable[[Any], Any]) -> None:
    async def main() -> None:
        here = threading.current_thread()
        heard = Heard()

        def callback(event: object) -> None:
            assert threading.current_thread() is here
            heard(event)

        with bus.on_change(kv, callback):
            thread = threading.Thread(target=count_up, args=(kv, 1_000))
            thread.start()
            while not heard or heard[-1].value != 1_000:
                await heard.until(len(heard) + 1)
            thread.join()

    in_loop(main())


def test_what_a_callback_raises_goes_to_the_loops_handler_and_the_next_event_comes(
    bus: MetricBus, kv: Gauge, in_loop: Callable[[Any], Any]
) -> None:
    async def main() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        heard = Heard()

        def fails(event: object) -> None:
            heard(event)
            raise ValueError("plain")

        async def fails_later(event: object) -> None:
            await asyncio.sleep(0)
            heard(event)
            raise ValueError("coroutine")

        with bus.on_change(kv, fails), bus.on_change(kv, fails_later) as later:
            kv.set(1)
            await heard.until(2)
            kv.set(2)
            await heard.until(4)
            assert not later.is_closed
        assert sorted(str(context["exception"]) for context in told) == ["coroutine"] * 2 + ["plain"] * 2
        assert all("callback" in context["message"] for context in told)

    in_loop(main())


def test_a_loop_that_is_blocked_loses_the_oldest_and_counts_them(
    bus: MetricBus, kv: Gauge, in_loop: Callable[[Any], Any]
) -> None:
    async def main() -> None:
        async with bus.subscribe(kv, capacity=100) as mutations:
            # The loop does nothing else meanwhile.
            for i in range(1, 1_001):
                kv.set(i)
            first = await anext(mutations)
            assert isinstance(first, Lagged)
            rest: list[Mutation] = []
            async for mutation in mutations:
                assert isinstance(mutation, Mutation)
                rest.append(mutation)
                if mutation.after == 1_000:
                    break
            assert first.missed + len(rest) == 1_000
            assert mutations.stats().dropped == first.missed

    in_loop(main())


def test_a_slow_coroutine_is_given_the_last_state_and_told_what_it_missed(
    bus: MetricBus, kv: Gauge, in_loop: Callable[[Any], Any]
) -> None:
    async def main() -> None:
        heard = Heard()
        go = asyncio.Event()

        async def slow(crossing: Crossing) -> None:
            await go.wait()
            heard(crossing)

        with bus.on_threshold(kv, slow, above=0.5, capacity=4) as subscription:
            kv.set(1)
            await asyncio.sleep(0)
            for _ in range(50):
                kv.set(0)
                kv.set(1)
            go.set()
            while not heard or heard[-1].epoch != 101:
                await heard.until(len(heard) + 1)
            assert heard[-1].is_raised
            assert subscription.stats().dropped + len(heard) == 101

    in_loop(main())


def test_the_last_event_of_every_series_arrives_however_many_there_are(bus: MetricBus, in_loop: Callable[[Any], Any]) -> None:
    """To a function in a thread, to a coroutine, and to an iterator that nobody asked before."""
    kv = bus.gauge("many", "Many.", labels=("worker",))
    workers = [kv.labels(str(number)) for number in range(300)]
    expected = {str(number): (number % 2 == 0, 3 + number % 2) for number in range(300)}

    def last(crossings: list[Any]) -> dict[str, tuple[bool, int]]:
        return {crossing.series.labels["worker"]: (crossing.is_raised, crossing.epoch) for crossing in crossings}

    async def main() -> None:
        in_thread, in_coroutine = list[Any](), Heard()
        go, at_it, complete = threading.Event(), threading.Event(), threading.Event()

        def slow(crossing: Crossing) -> None:
            at_it.set()
            go.wait(30)
            in_thread.append(crossing)
            if last(in_thread) == expected:
                complete.set()

        function = await asyncio.to_thread(bus.on_threshold, "many", slow, above=0.5, capacity=4)
        coroutine = bus.on_threshold("many", in_coroutine.slowly, above=0.5, capacity=4)
        iterator = bus.on_threshold("many", above=0.5, capacity=4)
        with function, coroutine, iterator as crossings:
            crossings.get_nowait()
            workers[0].set(1)
            await asyncio.to_thread(at_it.wait, 30)
            for number, worker in enumerate(workers):
                for value in (1, 0, 1):
                    worker.set(value)
                if number % 2:
                    worker.set(0)
            go.set()
            assert await asyncio.to_thread(complete.wait, 9)
            while last(in_coroutine) != expected:
                await in_coroutine.until(len(in_coroutine) + 1)
            read = []
            while (crossing := crossings.get_nowait()) is not None:
                read.append(crossing)
            assert last(read) == expected
            # Together with what the gaps in the epochs say, that is all of them.
            for heard, subscription in ((in_thread, function), (in_coroutine, coroutine), (read, crossings)):
                assert len(heard) + subscription.stats().dropped == 3 * 300 + 150

    in_loop(main())


def test_closing_ends_it_from_inside_outside_and_another_thread(
    bus: MetricBus, kv: Gauge, in_loop: Callable[[Any], Any]
) -> None:
    async def main() -> None:
        heard = Heard()

        def once(event: metricbus.Changed) -> None:
            heard(event)
            subscription.close()

        subscription = bus.on_change(kv, once)
        kv.set(1)
        await heard.until(1)
        kv.set(2)
        assert subscription.is_closed
        with pytest.raises(metricbus.ClosedError):
            subscription.stats()

        events = bus.on_change(kv).stream()
        kv.set(3)
        assert (await anext(events)).value == 3
        waiting = asyncio.ensure_future(anext(events, None))
        await asyncio.sleep(0)
        thread = threading.Thread(target=events.close)
        thread.start()
        assert await waiting is None
        thread.join()
        assert len(heard) == 1

    in_loop(main())


def test_a_waiting_iterator_can_be_cancelled_and_used_again(
    bus: MetricBus, kv: Gauge, in_loop: Callable[[Any], Any]
) -> None:
    async def main() -> None:
        async with bus.on_change(kv) as changes:
            waiting = asyncio.ensure_future(anext(changes))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            kv.set(3)
            assert (await anext(changes)).value == 3

    in_loop(main())


def test_context_variables_are_those_of_the_subscription(
    bus: MetricBus, kv: Gauge, in_loop: Callable[[Any], Any]
) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    async def main() -> None:
        heard = Heard()

        async def callback(event: object) -> None:
            heard(variable.get())

        variable.set("subscribed")
        with bus.on_change(kv, callback), bus.on_change(kv, lambda _: heard(variable.get())):
            variable.set("mutated")
            kv.set(1)
            assert await heard.until(2) == ["subscribed"] * 2

    in_loop(main())


def test_a_subscription_that_nobody_holds_ends_and_one_that_is_forgotten_stays(bus: MetricBus, kv: Gauge) -> None:
    async def main() -> None:
        heard = Heard()
        with pytest.warns(RuntimeWarning, match="nobody kept the subscription of"):
            bus.on_change(kv, heard)
            gc.collect()
        kept = Heard()
        bus.on_change(kv, kept).forget()
        gc.collect()
        kv.set(1)
        await kept.until(1)
        assert not heard

    asyncio.run(main())


def test_without_a_loop_a_thread_calls_back(bus: MetricBus, kv: Gauge) -> None:
    names: list[str] = []
    called = threading.Event()

    @bus.on_threshold(kv, above=0.9)
    def crossed(crossing: Crossing) -> None:
        names.append(threading.current_thread().name)
        called.set()

    kv.set(1)
    assert called.wait(10)
    assert names == ["metricbus-callbacks"]
    crossed.close()


def test_what_a_threads_callback_raises_is_told_and_the_thread_goes_on(
    bus: MetricBus, kv: Gauge, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    called = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(args.exc_value))

    def callback(event: metricbus.Changed) -> None:
        if event.value == 2:
            called.set()
        raise ValueError(event.value)

    with bus.on_change(kv, callback):
        kv.set(1)
        while not told:
            os.sched_yield()
        kv.set(2)
        assert called.wait(10)
    assert str(told[0]) == "1.0"


def test_a_coroutine_function_without_a_loop_is_refused(bus: MetricBus, kv: Gauge) -> None:
    async def callback(event: object) -> None:
        raise AssertionError

    with pytest.raises(TypeError, match="no event loop runs here"):
        bus.on_change(kv, callback)
    with pytest.raises(TypeError, match="can't be called"):
        bus.on_change(kv, 3)  # type: ignore[call-overload]


def test_a_loop_can_be_named_from_another_thread(bus: MetricBus, kv: Gauge) -> None:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    heard: list[Any] = []
    called = threading.Event()

    async def callback(event: object) -> None:
        heard.append(threading.current_thread())
        called.set()

    subscription = bus.on_change(kv).call(callback, loop=loop)
    kv.set(1)
    assert called.wait(10)
    assert heard == [thread]
    subscription.close()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    with pytest.raises(metricbus.ClosedError, match="closed"):
        bus.on_change(kv).call(callback, loop=loop)


def test_several_loops_at_once_hear_each_their_own(bus: MetricBus, kv: Gauge) -> None:
    heard: dict[int, list[float]] = {}
    ready, done = threading.Barrier(4), threading.Barrier(4)

    def run(number: int) -> None:
        async def main() -> None:
            async with bus.subscribe(kv) as mutations:
                ready.wait(10)
                heard[number] = []
                async for mutation in mutations:
                    assert isinstance(mutation, Mutation) and mutation.after is not None
                    heard[number].append(mutation.after)
                    if mutation.after == 100:
                        return

        asyncio.run(main())
        done.wait(10)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    ready.wait(10)
    for i in range(1, 101):
        kv.set(i)
    done.wait(10)
    for thread in threads:
        thread.join()
    assert heard == {number: list(range(1, 101)) for number in range(3)}


def test_a_loop_that_is_closed_under_a_subscription_harms_nobody(bus: MetricBus, kv: Gauge) -> None:
    loop = asyncio.new_event_loop()

    async def subscribe() -> metricbus.Subscription[metricbus.Changed]:
        return bus.on_change(kv, lambda _: None)

    subscription = loop.run_until_complete(subscribe())
    loop.close()
    for i in range(1_000):
        kv.set(i)
    assert kv.get() == 999
    del loop
    gc.collect()
    kv.set(-1)
    subscription.close()
    kv.set(1)


def test_reading_without_a_loop_waits_and_gives_up(bus: MetricBus, kv: Gauge) -> None:
    with bus.on_change(kv) as changes:
        with pytest.raises(TimeoutError, match=r"0\.01"):
            changes.get(timeout=0.01)
        thread = threading.Thread(target=kv.set, args=(2,))
        thread.start()
        assert changes.get(timeout=10).value == 2
        thread.join()
        assert changes.get_nowait() is None
        closer = threading.Thread(target=changes.close)
        closer.start()
        with pytest.raises(metricbus.ClosedError):
            changes.get(timeout=10)
        closer.join()
    assert list(changes) == []


def test_an_iterator_knows_where_it_was_made(bus: MetricBus, kv: Gauge) -> None:
    outside = bus.on_change(kv).stream()

    async def main() -> metricbus.Events[metricbus.Changed]:
        with pytest.raises(RuntimeError, match="outside of an event loop"):
            await anext(outside)
        inside = bus.on_change(kv).stream()
        with pytest.raises(RuntimeError, match="async for"):
            inside.get()
        return inside

    asyncio.run(main()).close()
    outside.close()


def test_an_interrupt_ends_a_blocking_read(bus: MetricBus, kv: Gauge) -> None:
    class Interrupt(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with bus.on_change(kv) as changes, pytest.raises(Interrupt):
            changes.get()
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({}, "no bound"),
        ({"above": 1, "below": 2}, "not the only bound"),
        ({"over": 1}, "over"),
        ({"above": "high"}, "high"),
        ({"above": 1, "clear_below": 0, "clear_at_most": 0}, "both"),
        ({"above": float("nan")}, "NaN"),
        ({"above": 1, "clear_above": 2}, "clear"),
    ],
)
def test_a_threshold_that_makes_no_sense_is_refused(
    bus: MetricBus, kv: Gauge, words: Any, message: str
) -> None:
    with pytest.raises((TypeError, metricbus.SubscribeError), match=f"(?i){message}"):
        bus.on_threshold(kv, lambda _: None, **words)


def test_moves_of_a_size_are_told(bus: MetricBus, kv: Gauge) -> None:
    with bus.on_delta(kv, absolute=0.5) as moves:
        for value in (0.25, 1.0, 1.25):
            kv.set(value)
        moved = moves.get(timeout=10)
        assert moved.after == 1.0
        assert moves.get_nowait() is None
    for wrong in ({}, {"absolute": 1, "relative": 1}, {"absolute": 1, "floor": 1}):
        with pytest.raises(TypeError, match="delta is one of"):
            bus.on_delta(kv, lambda _: None, **wrong)  # type: ignore[call-overload]


def test_a_tap_tells_every_kind_of_mutation(bus: MetricBus) -> None:
    counter = bus.counter("a_total", "A.")
    histogram = bus.histogram("h", "H.")
    with bus.subscribe('{__name__=~"a_total|h"}') as mutations:
        counter.inc(2)
        histogram.observe(0.5)
        first, second = mutations.get(timeout=10), mutations.get(timeout=10)
    assert isinstance(first, Mutation) and isinstance(second, Mutation)
    assert (first.kind, first.before, first.after, first.amount) == ("counted", 0, 2, 2)
    assert (second.kind, second.before, second.amount) == ("observed", None, 0.5)


def test_a_subscription_that_is_rung_for_while_it_is_made_hears_of_it(bus: MetricBus, kv: Gauge) -> None:
    others = threading.Semaphore(0)
    heard = threading.Event()
    other = bus.on_change(kv, lambda _: others.release())
    kv.set(1)
    assert others.acquire(timeout=10)
    listen = bus.on_change(kv)
    opening = listen._opening

    class Slow:
        """The thread of the callbacks has been at work before the subscription knows that it is open."""

        def open(self, bell: Any, key: int) -> Any:
            receiver = opening.open(bell, key)
            kv.set(2)
            assert others.acquire(timeout=10)
            return receiver

    listen._opening = Slow()  # type: ignore[assignment]
    subscription = listen.call(lambda _: heard.set())
    assert heard.wait(10)
    subscription.close()
    other.close()


def test_a_callback_that_exits_ends_neither_the_thread_nor_its_neighbours(
    bus: MetricBus, kv: Gauge, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[float] = []
    second = threading.Event()

    def leaves(event: metricbus.Changed) -> None:
        raise SystemExit("not from here")

    def stays(event: metricbus.Changed) -> None:
        heard.append(event.value)
        if event.value == 2:
            second.set()

    with bus.on_change(kv, leaves), bus.on_change(kv, stays), bus.on_change(kv, leaves):
        kv.set(1)
        while not heard:
            os.sched_yield()
        kv.set(2)
        assert second.wait(10)
    assert "which ends no program from here" in caplog.text


def test_an_interrupt_in_one_callback_costs_the_others_nothing(
    bus: MetricBus, kv: Gauge, in_loop: Callable[[Any], Any]
) -> None:
    heard: list[str] = []
    loop = asyncio.new_event_loop()

    def plain(event: Mutation | Lagged) -> None:
        assert isinstance(event, Mutation)
        heard.append(f"plain {event.after}")
        if event.after == 1:
            raise KeyboardInterrupt

    async def coroutine(event: Mutation | Lagged) -> None:
        assert isinstance(event, Mutation)
        heard.append(f"coroutine {event.after}")
        if event.after == 2:
            raise SystemExit

    async def subscribe() -> list[metricbus.Subscription[Mutation | Lagged]]:
        return [bus.subscribe(kv, plain), bus.subscribe(kv, coroutine)]

    async def until_heard() -> None:
        while len(heard) < 6:
            await asyncio.sleep(0)

    subscriptions = loop.run_until_complete(subscribe())
    for value in (1, 2, 3):
        kv.set(value)
    left: list[type[BaseException]] = []
    while True:
        try:
            loop.run_until_complete(asyncio.wait_for(until_heard(), 10))
            break
        except (KeyboardInterrupt, SystemExit) as error:
            left.append(type(error))
            # As `asyncio.run` does not, a loop that goes on has its old tasks, too.
    assert sorted(heard) == [f"{kind} {value}.0" for kind in ("coroutine", "plain") for value in (1, 2, 3)]
    assert {KeyboardInterrupt, SystemExit} == set(left)
    for subscription in subscriptions:
        subscription.close()
    pending = asyncio.all_tasks(loop)
    for task in pending:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
    loop.close()


def test_a_loop_that_runs_tasks_at_once_hears_everything(bus: MetricBus, kv: Gauge) -> None:
    factory = getattr(asyncio, "eager_task_factory", None)
    if factory is None:
        pytest.skip("asyncio has no eager tasks before Python 3.12")

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(factory)
        heard: list[float] = []
        done = asyncio.Event()

        async def callback(event: metricbus.Changed) -> None:
            heard.append(event.value)
            if event.value == 3:
                done.set()

        with bus.on_change(kv, callback):
            for value in (1, 2, 3):
                kv.set(value)
                await asyncio.sleep(0.001)
            await asyncio.wait_for(done.wait(), 10)
        assert heard[-1] == 3

    asyncio.run(main())


def test_what_a_callback_waits_for_may_be_cancelled(
    bus: MetricBus, kv: Gauge, in_loop: Callable[[Any], Any]
) -> None:
    async def main() -> None:
        heard = Heard()
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.cancel()

        async def callback(event: metricbus.Changed) -> None:
            heard(event.value)
            if event.value == 1:
                await waiting

        with bus.on_change(kv, callback):
            kv.set(1)
            await heard.until(1)
            kv.set(2)
            assert await heard.until(2) == [1, 2]

    in_loop(main())


def test_cancelling_all_tasks_gives_nothing_up(bus: MetricBus, kv: Gauge, in_loop: Callable[[Any], Any]) -> None:
    async def main() -> None:
        heard = Heard()
        begun = asyncio.Event()

        async def callback(mutation: Mutation | Lagged) -> None:
            assert isinstance(mutation, Mutation)
            heard(mutation.after)
            if mutation.after == 1:
                begun.set()
                await asyncio.sleep(1000)

        with bus.subscribe(kv, callback):
            kv.set(1)
            kv.set(2)
            await begun.wait()
            (task,) = [task for task in asyncio.all_tasks() if task.get_name().startswith("metricbus")]
            task.cancel()
            await asyncio.wait([task])
            assert heard == [1]
            kv.set(3)
            assert await heard.until(3) == [1, 2, 3]

    in_loop(main())


def test_a_read_that_waits_for_ever_is_one(bus: MetricBus, kv: Gauge) -> None:
    with bus.on_change(kv) as changes:
        kv.set(1)
        assert changes.get(timeout=float("inf")).value == 1
        thread = threading.Thread(target=kv.set, args=(2,))
        thread.start()
        assert changes.get(timeout=1e10).value == 2
        thread.join()


@pytest.mark.parametrize("ask", ["on_change", "subscribe", "series", "remove", "window"])
def test_a_metric_of_another_bus_is_refused(bus: MetricBus, kv: Gauge, ask: str) -> None:
    family = bus.counter("jobs_total", "Jobs.", ["kind"])
    other = MetricBus()
    more = (10,) if ask == "window" else ()
    for metric in (kv, family, family.labels("a")):
        with pytest.raises(metricbus.SelectorError, match="another bus"):
            getattr(other, ask)(metric, *more)
    # A name means whatever has it there.
    getattr(other, ask)("kv_usage_ratio", *more)


def test_a_metric_of_the_default_bus_is_not_heard_of_on_another(bus: MetricBus) -> None:
    with pytest.raises(metricbus.SelectorError, match=r"metricbus\.REGISTRY"):
        bus.on_threshold(metricbus.Counter("of_the_default_bus", "Nothing."), above=2)
