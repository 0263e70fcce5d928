"""Counters, gauges, histograms and their families, also under the names that prometheus_client's users know."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import timedelta

import pytest

import metricbus
import metricbus as mb
from metricbus import Counter, Gauge, Histogram, MetricBus, Mutation, generate_latest


def test_a_counter_goes_up_and_never_down(bus: MetricBus) -> None:
    requests = bus.counter("requests_total", "Requests.")
    requests.inc()
    requests.inc(2.5)
    assert requests.get() == 3.5
    for wrong in (-1, math.nan, math.inf):
        with pytest.raises(metricbus.CounterError, match="finite and 0 or more"):
            requests.inc(wrong)
    assert requests.get() == 3.5


def test_a_gauge_that_was_never_set_has_no_value_unless_it_is_declared_as_with_prometheus_client(bus: MetricBus) -> None:
    never = bus.gauge("never", "G.")
    family = bus.gauge("some", "G.", ["a"], initial=2)
    theirs = Gauge("theirs", "G.", registry=bus)
    none = Gauge("none", "G.", registry=bus, initial=None)
    assert (never.get(), none.get(), never.series.value) == (None, None, None)
    assert (family.labels("x").get(), theirs.get()) == (2, 0)
    samples = [line for line in generate_latest(bus).decode().splitlines() if line.startswith(("never", "some", "theirs", "none"))]
    assert samples == ['some{a="x"} 2', "theirs 0"]
    assert bus.snapshot().value("never") is None
    assert bus.get_sample_value("never") is None
    with bus.subscribe("never") as tap:
        never.set(-0.0)
        mutation = tap.get(5)
        assert isinstance(mutation, Mutation)
        assert (mutation.before, mutation.after) == (None, 0)
    assert never.get() == 0
    assert Gauge("never", "G.", registry=bus, initial=3).get() == 0


def test_a_gauge_goes_anywhere(bus: MetricBus) -> None:
    depth = bus.gauge("queue_depth", "Waiting.")
    assert depth.get() is None
    depth.set(0)
    assert depth.get() == 0
    depth.set(5)
    depth.inc()
    depth.dec(4)
    depth.set_max(1)
    assert depth.get() == 2
    depth.set_min(-3)
    assert depth.get() == -3


def test_a_histogram_counts_what_is_at_most_each_bound(bus: MetricBus) -> None:
    latency = bus.histogram("latency_seconds", "Latency.", buckets=[0.1, 1])
    for value in (0.1, 0.5, 7):
        latency.observe(value)
    assert latency.get().buckets == [(0.1, 1), (1, 2), (math.inf, 3)]
    assert (latency.get().count, latency.get().sum) == (3, 7.6)


def test_children_are_told_apart_by_place_or_by_name(bus: MetricBus) -> None:
    requests = bus.counter("requests_total", "Requests.", labels=("method", "status"))
    requests.labels("GET", 200).inc()
    requests.labels(status="200", method="GET").inc()
    assert requests.labels("GET", "200").get() == 2
    assert str(requests.labels("GET", "200").series) == 'requests_total{method="GET",status="200"}'
    assert len(requests.all_series()) == 1
    assert requests.remove("GET", "200")
    assert not requests.remove("GET", "200")
    requests.labels("PUT", "201").inc()
    requests.clear()
    assert requests.all_series() == []


@pytest.mark.parametrize(
    ("values", "named", "message"),
    [
        (("GET",), {}, "method"),
        ((), {"method": "GET"}, "status"),
        ((), {"method": "GET", "status": "1", "path": "/"}, "path"),
        (("GET",), {"status": "1"}, "by place or by name"),
    ],
)
def test_labels_that_do_not_fit_are_named(
    bus: MetricBus, values: tuple[str, ...], named: dict[str, str], message: str
) -> None:
    requests = bus.counter("requests_total", "Requests.", labels=("method", "status"))
    with pytest.raises(metricbus.LabelError, match=message):
        requests.labels(*values, **named)


def test_a_family_has_no_value_and_a_single_metric_no_children(bus: MetricBus) -> None:
    family = bus.gauge("depth", "Waiting.", labels=["queue"])
    with pytest.raises(metricbus.LabelError, match=r"\.labels\("):
        family.set(1)
    with pytest.raises(metricbus.LabelError, match="no labels"):
        bus.gauge("one", "One.").labels("a")


def test_one_text_is_no_list_of_names(bus: MetricBus) -> None:
    with pytest.raises(TypeError, match="sequence of names"):
        bus.counter("a_total", "A.", labels="method")


def test_what_can_not_be_declared_is_an_error_that_names_it(bus: MetricBus) -> None:
    with pytest.raises(metricbus.DeclareError, match="it is empty"):
        bus.counter("", "No.")
    bus.counter("a_total", "A.")
    with pytest.raises(metricbus.DeclareError, match="a_total"):
        bus.gauge("a_total", "A.")
    with pytest.raises(metricbus.DeclareError):
        bus.histogram("h", "H.", buckets=[2, 1])
    with pytest.raises(ValueError, match="max_series"):
        bus.counter("b_total", "B.", labels=["x"], max_series=0)


def test_names_are_made_as_prometheus_client_makes_them(bus: MetricBus) -> None:
    requests = Counter("requests", "Requests.", ["method"], namespace="app", subsystem="http", registry=bus)
    assert requests.name == "app_http_requests_total"
    assert Counter("jobs_total", "Jobs.", registry=bus).name == "jobs_total"
    assert Gauge("load", "Load.", unit="ratio", registry=bus).name == "load_ratio"
    assert Histogram.DEFAULT_BUCKETS[-1] == math.inf
    default = Histogram("latency", "Latency.", unit="seconds", registry=bus)
    assert default.name == "latency_seconds"
    assert tuple(bound for bound, _ in default.get().buckets) == Histogram.DEFAULT_BUCKETS
    given = Histogram("sizes", "Sizes.", buckets=(1, 2, math.inf), registry=bus)
    assert [bound for bound, _ in given.get().buckets] == [1, 2, math.inf]


def test_without_a_registry_metrics_are_on_the_default_bus() -> None:
    counter = Counter("test_default_bus", "On the default bus.")
    counter.inc()
    assert metricbus.REGISTRY.snapshot().value("test_default_bus_total") == 1
    assert metricbus.REGISTRY.remove("test_default_bus_total") == 1


def test_a_scope_gives_prefix_and_labels(bus: MetricBus) -> None:
    worker = bus.scope("fleet_", component="decode").scope(worker=3)
    depth = worker.gauge("queue_depth", "Waiting.")
    assert str(depth.series) == 'fleet_queue_depth{component="decode",worker="3"}'
    assert depth.series.labels == {"component": "decode", "worker": "3"}
    assert Gauge("other", "Other.", registry=worker).series.label("worker") == "3"


def test_a_timer_reports_blocks_calls_and_coroutines(bus: MetricBus) -> None:
    latency = bus.histogram("latency_seconds", "Latency.")
    last = bus.gauge("last_seconds", "Last.")

    @latency.time()
    def plain(x: int) -> int:
        return x + 1

    @latency.time()
    async def coroutine(x: int) -> int:
        await asyncio.sleep(0)
        return x + 1

    with latency.time():
        pass
    with pytest.raises(ZeroDivisionError), latency.time():
        raise ZeroDivisionError
    assert plain(1) == 2
    assert plain.__name__ == "plain"
    assert asyncio.run(coroutine(2)) == 3
    with last.time():
        pass
    assert latency.get().count == 4
    assert (last.get() or 0) > 0


def test_calls_in_progress_are_counted_while_they_are(bus: MetricBus) -> None:
    running = bus.gauge("running", "Running.")
    seen: list[float | None] = []

    @running.track_inprogress()
    async def call() -> None:
        seen.append(running.get())
        await asyncio.sleep(0)

    async def main() -> None:
        await asyncio.gather(call(), call())

    asyncio.run(main())
    assert seen == [1, 2]
    with running.track_inprogress():
        assert running.get() == 1
    assert running.get() == 0


def test_a_timer_of_overlapping_calls_keeps_them_apart(bus: MetricBus) -> None:
    latency = bus.histogram("latency_seconds", "Latency.", buckets=[0.05])
    first, second = threading.Event(), threading.Event()

    @latency.time()
    def call(mine: threading.Event, other: threading.Event) -> None:
        mine.set()
        assert other.wait(10)

    threads = [threading.Thread(target=call, args=pair) for pair in ((first, second), (second, first))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert latency.get().count == 2


def test_exceptions_are_counted_and_go_on(bus: MetricBus) -> None:
    errors = bus.counter("errors_total", "Errors.")

    @errors.count_exceptions(ValueError)
    def fails(error: type[Exception]) -> None:
        raise error

    for error in (ValueError, KeyError):
        with pytest.raises(error):
            fails(error)
    assert errors.get() == 1


def test_a_function_says_the_value_when_somebody_looks(bus: MetricBus, caplog: pytest.LogCaptureFixture) -> None:
    sessions = ["a", "b"]
    bus.gauge("sessions", "Open.").set_function(lambda: len(sessions))
    bus.gauge("broken", "Fails.").set_function(lambda: 1 / 0)
    with caplog.at_level(logging.ERROR, "metricbus"):
        body = metricbus.Exporter(bus).answer()[2]
    assert b"\nsessions 2\n" in body
    assert b"\nbroken " not in body
    assert "of broken" in caplog.text and "ZeroDivisionError" in caplog.text


def test_idle_children_expire(clock: metricbus.Clock) -> None:
    bus = MetricBus(clock=clock)
    depth = bus.gauge("depth", "Waiting.", labels=["worker"], expire_after=timedelta(seconds=10))
    depth.labels("1").set(1)
    clock.advance(8)
    depth.labels("2").set(1)
    clock.advance(8)
    assert [series.label("worker") for series in depth.all_series()] == ["2"]


def test_more_series_than_allowed_are_counted_together(bus: MetricBus) -> None:
    depth = bus.gauge("depth", "Waiting.", labels=["worker"], max_series=2)
    for worker in range(10):
        depth.labels(worker).set(1)
    assert len(depth.all_series()) <= 3


def test_a_snapshot_is_plain_values(bus: MetricBus) -> None:
    bus.counter("a_total", "A.", labels=["x"]).labels("1").inc(3)
    bus.histogram("h", "H.", buckets=[1]).observe(2)
    snapshot = bus.snapshot()
    assert snapshot.value("a_total", x="1") == 3
    assert snapshot.value("a_total", x="2") is None
    family = snapshot.family("a_total")
    assert family is not None
    assert (family.kind, family.help, family.series[0].labels) == ("counter", "A.", {"x": "1"})
    histogram = snapshot.value("h")
    assert isinstance(histogram, metricbus.HistogramSnapshot)
    assert histogram.count == 1
    assert snapshot.family("nothing") is None


def test_a_selector_finds_series(bus: MetricBus) -> None:
    depth = bus.gauge("depth", "Waiting.", labels=["worker"])
    for worker in "abc":
        depth.labels(worker).set(1)
    assert len(bus.series('depth{worker=~"a|b"}')) == 2
    assert bus.series(depth.labels("a")) == [depth.labels("a").series]
    assert len(bus.series(depth)) == 3
    assert bus.remove('depth{worker="a"}') == 1
    with pytest.raises(metricbus.SelectorError, match="depth{"):
        bus.series("depth{")
    with pytest.raises(TypeError, match="selector"):
        bus.series(3)  # type: ignore[arg-type]


def test_threads_that_count_together_lose_nothing(bus: MetricBus) -> None:
    counter = bus.counter("a_total", "A.")

    def count() -> None:
        for _ in range(20_000):
            counter.inc()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.get() == 80_000


def test_a_manual_clock_stands_still_and_the_systems_can_not_be_advanced(clock: metricbus.Clock) -> None:
    before = clock.now()
    clock.advance(1.5)
    assert clock.now() == before + 1.5
    with pytest.raises(metricbus.MetricBusError, match="manual"):
        metricbus.Clock.system().advance(1)
    with pytest.raises(ValueError, match="-1"):
        clock.advance(-1)
    with pytest.raises(TypeError, match="timedelta"):
        clock.advance("soon")  # type: ignore[arg-type]


def test_a_timer_around_a_generator_lets_values_and_exceptions_through(bus: MetricBus) -> None:
    latency = bus.histogram("latency_seconds", "Latency.")
    log: list[str] = []

    @contextlib.asynccontextmanager
    @latency.time()
    async def transaction() -> AsyncIterator[str]:
        try:
            yield "open"
        except ValueError:
            log.append("rolled back")
        finally:
            log.append("released")

    @latency.time()
    async def echo() -> AsyncGenerator[str, str]:
        got = yield "first"
        while True:
            got = yield got

    async def main() -> None:
        async with transaction() as state:
            assert state == "open"
            raise ValueError
        log.append("after")
        generator = echo()
        assert await anext(generator) == "first"
        assert await generator.asend("hello") == "hello"
        await generator.aclose()

    asyncio.run(main())
    assert log == ["rolled back", "released", "after"]
    assert latency.get().count == 2


def test_a_timer_around_an_object_that_is_called_like_a_coroutine_waits_for_it(bus: MetricBus) -> None:
    latency = bus.histogram("latency_seconds", "Latency.", buckets=[0.02])

    class Work:
        async def __call__(self) -> None:
            await asyncio.sleep(0.03)

    asyncio.run(latency.time()(Work())())
    assert latency.get().buckets[0] == (0.02, 0)


def test_a_timer_may_learn_its_labels_inside(bus: MetricBus) -> None:
    latency = bus.histogram("latency_seconds", "Latency.", labels=["status"])
    with latency.time() as timer:
        timer.labels(status="ok")
    assert latency.labels("ok").get().count == 1


def test_a_function_of_a_child_that_was_removed_is_not_called(bus: MetricBus) -> None:
    calls: list[str] = []
    depth = bus.gauge("depth", "Waiting.", labels=["queue"])

    def function() -> float:
        calls.append("called")
        return 1

    depth.labels("a").set_function(function)
    exporter = metricbus.Exporter(bus)
    assert b'depth{queue="a"} 1\n' in exporter.answer()[2]
    depth.remove("a")
    exporter.answer()
    depth.labels("a").set(7)
    assert b'depth{queue="a"} 7\n' in exporter.answer()[2]
    assert calls == ["called"]


def test_one_sample_can_be_asked_for_as_in_tests_with_prometheus_client(bus: MetricBus) -> None:
    bus.counter("a_total", "A.", labels=["x"]).labels("1").inc(3)
    bus.histogram("h", "H.", buckets=[0.5, 1]).observe(0.7)
    assert bus.get_sample_value("a_total", {"x": "1"}) == 3
    assert bus.get_sample_value("a_total") is None
    assert bus.get_sample_value("h_count") == 1
    assert bus.get_sample_value("h_sum") == 0.7
    assert [bus.get_sample_value("h_bucket", {"le": le}) for le in ("0.5", "1.0", "1", "+Inf", "7")] == [0, 1, 1, 1, None]


def test_what_prometheus_client_takes_for_many_processes_is_taken(bus: MetricBus) -> None:
    Gauge("depth", "Waiting.", registry=bus, multiprocess_mode="livesum").set(1)
    with pytest.raises(TypeError, match=r"Exporter\(bus, merge=\[registry\]\)"):
        Gauge("depth", "Waiting.", registry=object())  # type: ignore[arg-type]


def test_a_counter_that_is_reset_begins_anew_for_all_who_hold_it(bus: mb.MetricBus) -> None:
    plain = mb.Counter("plain", "Plain.", registry=bus)
    family = mb.Counter("by_code", "By code.", ("code",), registry=bus)
    held, other = family.labels("200"), family.labels("500")
    window = bus.window("plain_total", 60)
    for counter in (plain, held, other):
        counter.inc(5)
    for counter in (plain, held):
        counter.reset()
        assert counter.get() == 0
        counter.inc(2)
    assert (plain.get(), held.get(), family.labels("200").get(), other.get()) == (2, 2, 2, 5)
    assert bus.get_sample_value("plain_total") == 2
    assert bus.get_sample_value("by_code_total", {"code": "200"}) == 2
    # A restart, and no fall.
    assert (window.stats().increase or 0) >= 0
    assert not held.series.is_removed and held.series == family.labels("200").series
    # A child that was removed does not come back by a late write, nor by another one that is reset.
    family.remove("200")
    other.reset()
    held.inc()
    assert bus.get_sample_value("by_code_total", {"code": "200"}) is None
    family.labels("200").inc()
    assert bus.get_sample_value("by_code_total", {"code": "200"}) == 1


def test_children_are_removed_by_some_of_their_labels(bus: mb.MetricBus) -> None:
    jobs = mb.Gauge("jobs", "Jobs.", ("tenant", "queue"), registry=bus)
    for tenant, queue in (("a", "x"), ("a", "y"), ("b", "x")):
        jobs.labels(tenant, queue).set(1)
    jobs.remove_by_labels({})
    assert len(jobs.all_series()) == 3
    jobs.remove_by_labels({"tenant": "a"})
    assert [series.labels for series in jobs.all_series()] == [{"tenant": "b", "queue": "x"}]
    with pytest.raises(mb.LabelError, match="there is no label 'who'|there is no label \"who\""):
        jobs.remove_by_labels({"who": "a"})
    jobs.clear()
    assert jobs.all_series() == []
    plain = mb.Gauge("plain", "Plain.", registry=bus)
    plain.set(1)
    plain.clear()
    assert plain.get() == 1


def test_without_a_registry_a_metric_is_exposed_by_nobody() -> None:
    hidden = mb.Counter("hidden_from_all", "Hidden.", registry=None)
    hidden.inc()
    assert hidden.get() == 1
    assert b"hidden_from_all" not in mb.generate_latest()
    shown = mb.Counter("shown_to_all", "Shown.")
    assert b"shown_to_all" in mb.generate_latest()
    del shown


def test_what_can_not_be_observed_says_so_at_once(bus: mb.MetricBus) -> None:
    counter = mb.Counter("c", "C.", ("l",), registry=bus)
    gauge = mb.Gauge("g", "G.", ("l",), registry=bus)
    for use in (counter.inc, counter.reset, counter.count_exceptions, gauge.track_inprogress, gauge.inc):
        with pytest.raises(ValueError, match="missing label values"):
            use()


def test_decorated_functions_keep_their_signature(bus: mb.MetricBus) -> None:
    import inspect

    @mb.Gauge("busy", "Busy.", registry=bus).track_inprogress()
    def work(amount: int, *, twice: bool = False) -> int:
        return amount

    assert inspect.getfullargspec(work)[:1] == (["amount"],)
    assert inspect.getfullargspec(work).kwonlyargs == ["twice"]
    with mb.Histogram("took_seconds", "Took.", registry=bus).time() as timer:
        assert timer.duration is None
    assert timer.duration == bus.get_sample_value("took_seconds_sum")
