"""Windows: what they have seen of a gauge, a counter and a histogram, of one series and of many."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from datetime import timedelta
from subprocess import CompletedProcess
from typing import Any

import pytest

import metricbus as mb
from metricbus import Clock, MetricBus


@pytest.fixture
def bus(clock: Clock) -> MetricBus:
    return MetricBus(clock=clock)


def test_the_average_of_a_gauge_is_weighted_by_time(bus: MetricBus, clock: Clock) -> None:
    kv = bus.gauge("kv", "KV.")
    window = bus.window(kv, 10)
    kv.set(1)
    clock.advance(3)
    kv.set(0)
    clock.advance(1)
    seen = window.stats()
    assert (seen.avg, seen.min, seen.max, seen.last, seen.count, seen.sum) == (0.75, 0, 1, 0, 2, 1)
    assert (seen.increase, seen.rate, seen.age) == (-1, -0.25, 1)
    assert (seen.coverage, seen.sources, seen.stale, seen.width, window.width) == (0.4, 1, 0, 10, 10)
    assert seen.stddev == pytest.approx(math.sqrt(0.75 * 0.25))
    assert seen.quantile(0.2) == 0 and seen.quantile(0.5) == pytest.approx(1, rel=0.011)
    clock.advance(20)
    idle = window.stats()
    assert (idle.avg, idle.min, idle.max, idle.count, idle.stale) == (0, 0, 0, 0, 1)


def test_the_increase_of_a_counter_is_exact(bus: MetricBus, clock: Clock) -> None:
    tokens = bus.counter("tokens_total", "Tokens.")
    window = tokens.window(timedelta(seconds=10))
    tokens.inc(100)
    clock.advance(4)
    seen = window.stats()
    assert (seen.increase, seen.rate, seen.coverage, seen.last) == (100, 25, 0.4, 100)
    assert seen.avg is None and seen.quantile(0.5) is None


def test_quantiles_of_a_histogram_are_within_their_error(bus: MetricBus) -> None:
    ttft = bus.histogram("ttft_seconds", "TTFT.")
    window = ttft.series.window(60)
    for ms in range(1, 1001):
        ttft.observe(ms / 1000)
    seen = window.stats()
    assert (seen.count, seen.increase, seen.min, seen.max) == (1000, 1000, 0.001, 1)
    assert seen.quantile(0.99) == pytest.approx(0.99, rel=0.011)
    assert seen.avg == pytest.approx(0.5005)
    assert (seen.quantile(0), seen.quantile(1)) == (0.001, 1)


def test_what_was_not_measured_is_none(bus: MetricBus) -> None:
    unset, nothing = bus.gauge("kv", "KV.").window(1).stats(), bus.window("nothing", 1).stats()
    for seen in (unset, nothing):
        assert [seen.avg, seen.min, seen.max, seen.last, seen.sum, seen.stddev, seen.age, seen.quantile(0.5)] == [None] * 8
    assert (unset.sources, nothing.sources, nothing.coverage) == (1, 0, 0)


def test_windows_of_many_series_are_told_together_apart_and_by_label(bus: MetricBus, clock: Clock) -> None:
    requests = bus.counter("requests_total", "Requests.", ["worker", "status"])
    window = bus.window(requests, 30)
    for worker, status, amount in [("a", "ok", 3), ("b", "ok", 4), ("b", "error", 1)]:
        requests.labels(worker, status).inc(amount)
    clock.advance(3)
    together = window.stats()
    assert (together.sources, together.increase, together.last) == (3, 8, None)
    apart = {series.labels["worker"] + series.labels["status"]: seen.increase for series, seen in window.each()}
    assert apart == {"aok": 3, "bok": 4, "berror": 1}
    by_status = [(labels, seen.sources, seen.increase) for labels, seen in window.stats_by(["status"])]
    assert by_status == [({"status": "error"}, 1, 1), ({"status": "ok"}, 2, 7)]
    assert [labels for labels, _ in window.stats_by(("pod",))] == [{"pod": ""}]
    requests.remove("b", "error")
    assert window.stats().sources == 2


def test_a_child_has_a_window_of_its_own_which_outlives_it(bus: MetricBus, clock: Clock) -> None:
    kv = bus.gauge("kv", "KV.", ["worker"])
    one, other = kv.labels("a"), kv.labels("b")
    by_metric, by_text = one.window(10), bus.window('kv{worker="a"}', 10)
    one.set(1)
    other.set(100)
    clock.advance(1)
    assert by_metric.stats().max == by_text.stats().max == 1
    assert [(series, seen.last) for series, seen in by_metric.each()] == [(one.series, 1)]
    assert [labels for labels, _ in by_metric.stats_by(["worker", "pod"])] == [{"worker": "a", "pod": ""}]
    kv.remove("a")
    clock.advance(1)
    assert (by_metric.stats().max, by_text.stats().sources) == (1, 0)


def test_a_window_sees_series_that_come_later(bus: MetricBus, clock: Clock) -> None:
    window = bus.window("kv", 10)
    clock.advance(1)
    bus.gauge("kv", "KV.").set(3)
    clock.advance(1)
    assert window.stats().avg == 3


def test_a_window_ends_with_the_last_who_holds_it(bus: MetricBus) -> None:
    kv = bus.gauge("kv", "KV.", ["worker"])
    windows = [kv.window(10), kv.labels("a").window(10), kv.labels("a").series.window(10)]
    gone = [weakref.ref(window) for window in windows]
    windows.clear()
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3
    kv.labels("a").set(1)


def test_a_window_keeps_its_bus(clock: Clock) -> None:
    kv = MetricBus(clock=clock).gauge("kv", "KV.", ["worker"])
    child = kv.labels("a")
    window = kv.window(10)
    del kv
    gc.collect()
    child.set(2)
    assert window.stats().max == 2


def test_windows_say_what_they_are(bus: MetricBus, clock: Clock) -> None:
    kv = bus.gauge("kv", "KV.", ["worker"])
    window = kv.window(0.01)
    assert repr(window) == "<Window kv[10ms]>" and window.width == 0.1
    assert repr(kv.labels("a").series.window(1)) == '<Window kv{worker="a"}[1s]>'
    kv.labels("a").set(1)
    assert repr(window.stats()) == "<WindowStats of 1 series over 0.1 s, coverage 0.00, avg=1, min=1, max=1>"
    assert window.stats() == window.stats() != kv.window(5).stats()


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan, math.inf])
def test_a_quantile_that_is_no_share_is_refused(bus: MetricBus, q: float) -> None:
    kv = bus.gauge("kv", "KV.")
    with pytest.raises(ValueError, match="a share from 0 to 1"):
        kv.window(1).stats().quantile(q)


@pytest.mark.parametrize(
    ("selector", "width", "error", "message"),
    [
        ("kv{", 1, mb.SelectorError, "expected a label name"),
        (3, 1, TypeError, "3 is no selector"),
        ("kv", "1m", TypeError, "width is 1m, which is no time"),
        ("kv", -1, ValueError, "width is -1 seconds"),
        ("kv", math.nan, ValueError, "width is NaN seconds"),
        ("kv", None, TypeError, "width is None"),
    ],
)
def test_a_wrong_window_is_refused(
    bus: MetricBus, selector: Any, width: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        bus.window(selector, width)


def test_labels_to_group_by_are_names_not_one_text(bus: MetricBus) -> None:
    with pytest.raises(TypeError, match="labels is the text 'worker'"):
        bus.window("kv", 1).stats_by("worker")


def test_a_forked_child_has_windows_over_its_own_metrics(run: Callable[..., CompletedProcess[str]]) -> None:
    done = run(
        """
        import os, metricbus as mb
        clock = mb.Clock.manual()
        bus = mb.MetricBus(clock=clock)
        kv = bus.gauge("kv", "KV.", ["worker"])
        one = kv.labels("a")
        windows = [kv.window(10), one.window(10), bus.window("kv", 10)]
        of_series = one.series.window(10)
        one.set(5)
        clock.advance(1)
        child = os.fork()
        if child == 0:
            try:
                for window in windows:
                    window.stats()
                one.set(1)
                clock.advance(1)
                print([window.stats().max for window in windows])
                try:
                    of_series.stats()
                except mb.ForkedError as error:
                    print(error, flush=True)
                del windows, of_series
            finally:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        print([window.stats().max for window in windows])
        """
    )
    child, error, parent = done.stdout.splitlines()
    assert (child, parent) == ("[1.0, 1.0, 1.0]", "[5.0, 5.0, 5.0]")
    assert "look it up on the bus again" in error


def test_a_window_that_has_existed_for_its_width_is_covered_and_stays_so(bus: MetricBus, clock: Clock) -> None:
    bus.gauge("g", "G.").set(1)
    rule = bus.add_rule(mb.Rule("Full", mb.when(mb.Expr.over("g", 300).coverage(), at_least=1)))
    for second in range(1, 1_201):
        clock.advance(1)
        assert rule.status().fired == (second >= 300), second
