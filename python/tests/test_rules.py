"""Rules: what they judge, what they say and when, and what is refused."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import threading
import weakref
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

import metricbus as mb
from metricbus import Alert, Clock, Expr, MetricBus, Rule, when


@pytest.fixture
def bus(clock: Clock) -> MetricBus:
    return MetricBus(clock=clock)


def full(**more: Any) -> Rule:
    return Rule("KvFull", when("kv", above=0.9, clear_below=0.8), **more)


def states(live: mb.LiveRule) -> list[str]:
    return [alert.state for alert in live.history()]


# What an alert says.


def test_an_alert_tells_all_of_what_happened(bus: MetricBus, clock: Clock) -> None:
    kv = bus.gauge("kv", "KV.", ["worker"])
    rule = full(
        hold_for=0.5,
        labels={"severity": "page"},
        annotations={"summary": "KV cache of {{ $labels.worker }} is {{ $value }} full"},
    )
    bus.add_rule(rule)
    clock.advance(2)
    with bus.on_alert() as alerts:
        kv.labels("a").set(0.95)
        assert alerts.get_nowait() is None
        clock.advance(0.5)
        alert = alerts.get(timeout=5)
    assert (alert.rule, alert.state, alert.is_firing, alert.cause, alert.epoch) == ("KvFull", "firing", True, "condition", 1)
    assert (alert.value, alert.quality, alert.level, alert.previous_level) == (0.95, "good", None, None)
    assert (alert.since, alert.at) == (2.0, 2.5)
    assert alert.date == datetime(1970, 1, 1, 0, 0, 2, 500_000, tzinfo=timezone.utc)
    assert alert.since_date == datetime(1970, 1, 1, 0, 0, 2, tzinfo=timezone.utc)
    assert alert.group == {"worker": "a"}
    assert alert.labels == {"worker": "a", "severity": "page"}
    assert alert.label("severity") == "page" and alert.label("pod") is None
    assert alert.annotations == {"summary": "KV cache of a is 0.95 full"}
    assert alert.annotation("summary") == "KV cache of a is 0.95 full" and alert.annotation("more") is None
    assert alert.series == kv.labels("a").series
    assert (alert.holds, alert.members, alert.holding, alert.repeat, alert.origin) == (1, 1, [], 0, None)
    assert str(alert) == 'KvFull{worker="a"} firing at 0.95'


def test_an_alert_of_a_series_that_is_gone_still_tells_its_name(bus: MetricBus) -> None:
    kv = bus.gauge("kv", "KV.", ["worker"])
    bus.add_rule(full())
    with bus.on_alert() as alerts:
        kv.labels("a").set(1)
        kv.remove("a")
        firing, resolved = alerts.get(timeout=5), alerts.get(timeout=5)
    assert firing.series is not None and firing.series.is_removed and firing.series.label("worker") == "a"
    assert (resolved.state, resolved.cause) == ("resolved", "removed")


def test_alerts_are_equal_when_they_say_the_same(bus: MetricBus) -> None:
    kv = bus.gauge("kv", "KV.")
    live = bus.add_rule(full())
    with bus.on_alert() as alerts:
        kv.set(1)
        first = alerts.get(timeout=5)
        kv.set(0)
        second = alerts.get(timeout=5)
    assert live.history() == [first, second]
    assert first != second and first != "KvFull"


# Time.


def test_a_rule_holds_and_keeps_by_the_clock_alone(bus: MetricBus, clock: Clock) -> None:
    kv = bus.gauge("kv", "KV.")
    live = bus.add_rule(full(hold_for=5, keep_firing_for=timedelta(seconds=3)))
    kv.set(1)
    clock.advance(4)
    assert live.status().state == "pending"
    kv.set(0)
    assert live.status().state == "inactive"
    kv.set(1)
    clock.advance(5)
    assert live.status().state == "firing"
    kv.set(0)
    assert live.status().state == "clearing"
    clock.advance(3)
    assert live.status().state == "inactive"
    assert states(live) == ["firing", "resolved"]


def test_m_of_n_slots(bus: MetricBus, clock: Clock) -> None:
    kv = bus.gauge("kv", "KV.")
    live = bus.add_rule(full(m_of_n=(2, 3, 1.0)))
    clock.advance(1)
    kv.set(1)
    kv.set(0)
    assert live.status().state == "inactive"
    clock.advance(2)
    kv.set(1)
    assert live.status().state == "firing"


# Conditions.


@pytest.mark.parametrize(
    ("condition", "shown"),
    [
        (when("kv", above=0.9, clear_below=0.8), "kv above 0.9, clear below 0.8"),
        (when("kv", at_least=1), "kv at least 1"),
        (~when("kv", below=1) & mb.changed("kv"), "(not kv below 1 and kv changed)"),
        (when("kv", at_most=1) | mb.stale("kv", 5), "(kv at most 1 or kv stale for 5s)"),
        (mb.gone('kv{w="a"}', timedelta(minutes=1)), 'kv{w="a"} gone, for 60s at most'),
        (when(Expr.value("a") / "b" * 2 - 1, above=0), "(((a / b) * 2) - 1) above 0"),
        (when(1 - Expr.value("a"), above=0), "(1 - a) above 0"),
        (when(Expr.sum("a", by=["x", "y"]), above=0), "sum by (x, y) (a) above 0"),
        (when(Expr.over("a", 60).quantile(0.99), above=0), "quantile 0.99(a[60s]) above 0"),
        (when(Expr.over("a", 60, by=("m",)).avg(), above=0), "avg by (m) (a[60s]) above 0"),
        (when(Expr.over("a", 60).merged().avg(), above=0), "avg of all (a[60s]) above 0"),
        (when(Expr.rate("a", 0.5).ewma(2).scaled(50, 100), above=0.5), "scaled(ewma(rate(a[500ms]), 2s), 50, 100) above 0.5"),
        (when(-Expr.increase("a", 1), above=0), "(-1 * increase(a[1s])) above 0"),
    ],
)
def test_conditions_are_shown_as_written(condition: mb.Condition, shown: str) -> None:
    assert str(condition) == shown
    assert repr(condition) == f"<Condition {shown}>"


def test_values_that_say_the_same_are_equal() -> None:
    assert when("kv", above=1) == when("kv", above=1) != when("kv", above=2)
    assert Expr.over("a", 1).avg() == Expr.over("a", timedelta(seconds=1)).avg() != Expr.over("a", 1).max()
    assert Expr.over("a", 1) == Expr.over("a", 1) != Expr.over("a", 2)
    assert full() == full() != full(hold_for=1)


def test_a_metric_a_child_and_a_series_stand_for_their_names(bus: MetricBus) -> None:
    kv = bus.gauge("kv", "KV.", ["worker"])
    odd = kv.labels('a"b\\\n')
    assert str(when(kv, above=1)) == "kv above 1"
    assert str(when(odd, above=1)) == str(when(odd.series, above=1)) == 'kv{worker="a\\"b\\\\\\n"} above 1'
    live = bus.add_rule(Rule("Odd", when(odd, above=1)))
    odd.set(2)
    kv.labels("other").set(2)
    assert [group.labels for group in live.status().active] == [{"worker": 'a"b\\\n'}]


def test_a_family_of_a_scope_means_its_own_series_only(bus: MetricBus) -> None:
    odd = 'a"b\\\n'
    decode = bus.scope("p_", component=odd).gauge("kv", "KV.", ["worker"])
    prefill = bus.scope("p_", component="prefill").gauge("kv", "KV.", ["worker"])
    live = bus.add_rule(Rule("Full", when(decode, above=0.9)))
    prefill.labels("a").set(1)
    assert live.status().series == 0
    decode.labels("a").set(1)
    assert [group.labels for group in live.status().active] == [{"component": odd, "worker": "a"}]
    assert [series.label("component") for series in bus.series(decode)] == [odd]
    assert [series.label("component") for series, _ in prefill.window(1).each()] == ["prefill"]


def test_moves_and_changes_hold_for_a_moment(bus: MetricBus) -> None:
    kv = bus.gauge("kv", "KV.")
    moved = bus.add_rule(Rule("Moved", mb.moved(kv, relative=0.1, floor=50)))
    changed = bus.add_rule(Rule("Changed", mb.changed(kv)))
    for value in [0, 4.9, 5, 5, 10]:
        kv.set(value)
    assert [alert.value for alert in moved.history() if alert.is_firing] == [5, 10]
    assert [alert.value for alert in changed.history() if alert.is_firing] == [4.9, 5, 10]


def test_a_silent_series_is_stale_and_a_removed_one_is_gone(bus: MetricBus, clock: Clock) -> None:
    kv = bus.gauge("kv", "KV.", ["worker"])
    kv.labels("a").set(1)
    stale = bus.add_rule(Rule("Silent", mb.stale(kv, 5)))
    gone = bus.add_rule(Rule("Gone", mb.gone(kv, 60)))
    clock.advance(5)
    assert [(a.state, a.quality, a.value) for a in stale.history()] == [("firing", "stale", None)]
    kv.labels("a").set(1)
    assert states(stale) == ["firing", "resolved"]
    kv.remove("a")
    assert [(a.state, a.quality) for a in gone.history()] == [("firing", "gone")]
    kv.labels("a").set(1)
    assert states(gone) == ["firing", "resolved"]


def test_a_ratio_of_two_families_is_judged_for_each_worker(bus: MetricBus) -> None:
    used, total = (bus.gauge(name, "Blocks.", ["worker"]) for name in ("used", "total"))
    live = bus.add_rule(Rule("Full", when(Expr.value(used) / Expr.value(total), above=0.9)))
    for worker, blocks in (("a", 95), ("b", 50)):
        total.labels(worker).set(100)
        used.labels(worker).set(blocks)
    assert [(group.labels, group.value) for group in live.status().active] == [({"worker": "a"}, 0.95)]


def test_a_window_is_looked_at_by_the_clock(bus: MetricBus, clock: Clock) -> None:
    requests = bus.counter("requests_total", "Requests.")
    live = bus.add_rule(Rule("Busy", when(Expr.rate(requests, 1), above=100), every=0.1))
    requests.inc(200)
    assert live.status().state == "inactive"
    clock.advance(0.5)
    assert live.status().state == "firing"
    clock.advance(2)
    assert states(live) == ["firing", "resolved"]


# Groups and levels.


@pytest.mark.parametrize(
    ("group", "held", "fires"),
    [
        ("any", 1, True),
        ("all", 2, False),
        ("all", 3, True),
        (2, 1, False),
        (2, 2, True),
    ],
)
def test_a_group_fires_when_enough_of_it_holds(bus: MetricBus, group: Any, held: int, fires: bool) -> None:
    kv = bus.gauge("kv", "KV.", ["worker"])
    for worker in range(3):
        kv.labels(worker).set(0)
    live = bus.add_rule(full(group=group))
    for worker in range(held):
        kv.labels(worker).set(1)
    assert (live.status().state == "firing") is fires
    for alert in live.history():
        assert (alert.holds, alert.members) == (held, 3)
        assert alert.holding == [{"worker": str(worker)} for worker in range(held)]
        assert alert.series is None


def test_groups_are_told_apart_by_labels(bus: MetricBus) -> None:
    kv = bus.gauge("kv", "KV.", ["model", "worker"])
    live = bus.add_rule(full(group="any", by=("model",)))
    kv.labels(model="m", worker=1).set(1)
    kv.labels(model="n", worker=1).set(0)
    assert [group.labels for group in live.status().active] == [{"model": "m"}]
    assert (live.status().firing, live.status().inactive) == (1, 1)


def test_one_alert_tells_each_change_of_the_level(bus: MetricBus) -> None:
    kv = bus.gauge("kv", "KV.")
    levels = [("warn", when(kv, above=80, clear_below=70)), ("critical", when(kv, above=90, clear_below=85))]
    live = bus.add_rule(Rule.levels("Deep", levels))
    for value in [85, 95, 86, 75, 60]:
        kv.set(value)
    assert [(a.state, a.level, a.previous_level) for a in live.history()] == [
        ("firing", "warn", None),
        ("firing", "critical", "warn"),
        ("firing", "warn", "critical"),
        ("resolved", None, "warn"),
    ]
    thresholds = [(t.level, t.input, t.bound, t.clear) for t in live.status().thresholds]
    assert thresholds == [("warn", "kv", 80, 70), ("critical", "kv", 90, 85)]
    assert live.status().conditions == Rule.levels("Deep", levels).conditions
    assert Rule.levels("Deep", levels).conditions[0] == ("warn", "kv above 80, clear below 70")


# How a rule stands.


def test_a_rule_about_nothing_says_so(bus: MetricBus) -> None:
    live = bus.add_rule(Rule("Typo", when("kv_usage", above=0.9)))
    status = live.status()
    assert (status.ever_matched, status.unmatched, status.series, status.state) == (False, ["kv_usage"], 0, "inactive")
    assert "never matched" in repr(status)


def test_the_status_tells_how_a_rule_stands(bus: MetricBus, clock: Clock) -> None:
    kv = bus.gauge("kv", "KV.", ["worker"])
    live = bus.add_rule(full())
    kv.labels("a").set(0.95)
    kv.labels("b")
    clock.advance(1)
    status = live.status()
    assert (status.name, status.state, status.firing, status.fired, status.resolved) == ("KvFull", "firing", 1, 1, 0)
    assert (status.series, status.no_data, status.missed, status.dry_run) == (2, 1, 0, False)
    assert (status.value, status.since_evaluated) == (0.95, 1.0)
    (group,) = status.active
    assert (group.labels, group.state, group.level, group.value) == ({"worker": "a"}, "firing", None, 0.95)
    assert (group.since, group.quality, group.epoch) == (0.0, "good", 1)
    assert group.since_date == datetime(1970, 1, 1, tzinfo=timezone.utc)


def test_a_dry_run_records_and_tells_nobody(bus: MetricBus) -> None:
    kv = bus.gauge("kv", "KV.")
    live = bus.add_rule(full(dry_run=True))
    with bus.on_alert() as alerts:
        kv.set(1)
        assert alerts.get_nowait() is None
    assert live.status().dry_run and states(live) == ["firing"]


def test_history_is_as_long_as_was_asked_for(bus: MetricBus) -> None:
    kv = bus.gauge("kv", "KV.")
    live = bus.add_rule(full(history=3))
    for value in [1, 0] * 5:
        kv.set(value)
    assert [alert.epoch for alert in live.history()] == [8, 9, 10]


# Changing and removing rules.


def test_a_rule_can_be_changed_while_it_runs(bus: MetricBus, clock: Clock) -> None:
    kv = bus.gauge("kv", "KV.")
    live = bus.add_rule(full())
    kv.set(0.95)
    live.update(full(labels={"severity": "page"}))
    assert states(live) == ["firing"]
    again = bus.set_rule(Rule("KvFull", when("kv", above=0.99)))
    assert [(a.state, a.cause) for a in again.history()] == [("firing", "condition"), ("resolved", "rule_changed")]
    with pytest.raises(mb.RuleError, match='"KvFull" cannot become "Other"'):
        live.update(Rule("Other", mb.changed("kv")))
    with pytest.raises(mb.RuleError, match="should clear below"):
        live.update(Rule("KvFull", when("kv", above=1, clear_below=2)))
    assert live.status().thresholds[0].bound == 0.99


def test_rules_are_found_by_name_and_removed(bus: MetricBus) -> None:
    kv = bus.gauge("kv", "KV.")
    live = bus.add_rule(full())
    bus.add_rule(Rule("A", mb.changed("kv")))
    assert [rule.name for rule in bus.rules()] == ["A", "KvFull"]
    found = bus.rule("KvFull")
    assert found is not None and found.status().name == "KvFull"
    with live.on_alert() as alerts:
        kv.set(1)
        assert found.remove() and not live.remove() and not bus.remove_rule("KvFull")
        assert [alert.cause for alert in alerts] == ["condition", "rule_removed"]
    assert bus.rule("KvFull") is None and bus.remove_rule("A") and bus.rules() == []
    with pytest.raises(mb.RuleError, match='"KvFull" was removed'):
        live.on_alert().stream()
    with pytest.raises(mb.RuleError, match='"KvFull" was removed'):
        live.update(full())


# Subscribers.


def test_a_late_subscriber_hears_what_is_firing_then_the_mark(bus: MetricBus) -> None:
    kv = bus.gauge("kv", "KV.")
    live = bus.add_rule(full())
    kv.set(1)
    for notices in (bus.on_notice(), live.on_notice()):
        with notices as events:
            first, mark = events.get(timeout=5), events.get(timeout=5)
            assert isinstance(first, Alert) and first.cause == "initial"
            assert isinstance(mark, mb.Sync) and repr(mark) == "<Sync>"
            assert events.get_nowait() is None
    with bus.on_alert(initial=False) as alerts:
        assert alerts.get_nowait() is None


def test_a_rule_of_a_subscription_ends_with_it(bus: MetricBus) -> None:
    kv = bus.gauge("kv", "KV.")
    with bus.on_rule(full()) as alerts:
        kv.set(1)
        assert alerts.get(timeout=5).is_firing
        assert [rule.name for rule in bus.rules()] == ["KvFull"]
    assert bus.rules() == []


def test_a_rule_that_was_wrong_is_refused_where_somebody_subscribes(bus: MetricBus) -> None:
    with pytest.raises(mb.RuleError, match="should clear below 1"):
        bus.on_rule(Rule("X", when("kv", above=1, clear_below=2))).stream()


def test_a_coroutine_hears_alerts(bus: MetricBus, clock: Clock) -> None:
    kv = bus.gauge("kv", "KV.", ["worker"])
    bus.add_rule(full(hold_for=0.5))

    async def main() -> list[str]:
        heard: asyncio.Queue[Alert] = asyncio.Queue()
        subscription = bus.on_alert(heard.put)
        kv.labels("a").set(1)
        clock.advance(0.5)
        kv.labels("a").set(0)
        seen = [str(await heard.get()), str(await heard.get())]
        subscription.close()
        async with bus.on_alert() as alerts:
            kv.labels("b").set(1)
            clock.advance(0.5)
            async for alert in alerts:
                return [*seen, str(alert)]
        return seen

    assert asyncio.run(asyncio.wait_for(main(), 10)) == [
        'KvFull{worker="a"} firing at 1',
        'KvFull{worker="a"} resolved at 0',
        'KvFull{worker="b"} firing at 1',
    ]


def test_a_decorated_function_hears_one_rule_only(bus: MetricBus) -> None:
    kv = bus.gauge("kv", "KV.")
    live, other = bus.add_rule(full()), bus.add_rule(Rule("Other", when("kv", above=0.5)))
    heard, done = [], threading.Event()

    @live.on_alert()
    def hear(alert: Alert) -> None:
        heard.append(alert.rule)
        done.set()

    kv.set(1)
    assert done.wait(5) and heard == ["KvFull"] and states(other) == ["firing"]
    hear.close()


def test_a_slow_reader_loses_the_oldest_and_it_is_counted(bus: MetricBus) -> None:
    kv = bus.gauge("kv", "KV.")
    live = bus.add_rule(full())
    with bus.on_alert(capacity=2) as alerts:
        assert alerts.get_nowait() is None
        for value in [1, 0] * 3:
            kv.set(value)
        assert [alerts.get(5).epoch, alerts.get(5).epoch] == [5, 6]
        assert alerts.stats().dropped == 4
    assert live.status().missed == 4
    with pytest.raises(ValueError, match="capacity is 0"):
        bus.on_alert(capacity=0).stream()


def test_rules_and_subscriptions_leave_nothing_behind() -> None:
    bus = MetricBus()
    kv = bus.gauge("kv", "KV.")
    live = bus.add_rule(full())
    events = live.on_alert().stream()
    kv.set(1)
    events.get(timeout=5)
    gone = [weakref.ref(thing) for thing in (bus, live, events, kv)]
    del bus, kv, live, events
    gc.collect()
    assert [ref() for ref in gone] == [None] * 4


# What is refused, and how it is said.


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: when("kv"), TypeError, "no bound is given"),
        (lambda: when("kv", above=1, below=2), TypeError, "below is not the only bound"),
        (lambda: when("kv", over=1), TypeError, "there is no keyword"),  # type: ignore[call-arg]
        (lambda: when("kv{", above=1), mb.SelectorError, "expected a label name"),
        (lambda: when(1.0, above=1), TypeError, "1.0 is no selector"),  # type: ignore[arg-type]
        (lambda: when(Expr.over("kv", 1), above=1), TypeError, "say which statistic"),  # type: ignore[arg-type]
        (lambda: mb.moved("kv"), TypeError, "no distance is given"),
        (lambda: mb.stale("kv", -1), ValueError, "ttl is -1 seconds"),
        (lambda: mb.gone("kv", "1m"), TypeError, "keep is 1m, which is no time"),  # type: ignore[arg-type]
        (lambda: Expr.sum("kv", by="worker"), TypeError, r"by is the text 'worker'; .*\('worker',\)"),
        (lambda: Expr.sum("kv", by=3), TypeError, "by is 3; a sequence of names"),  # type: ignore[arg-type]
        (lambda: Expr.value("kv") + [], TypeError, "unsupported operand"),  # type: ignore[operator]
        (lambda: Expr.value("kv") + "kv{", mb.SelectorError, "expected a label name"),
        (lambda: bool(Expr.value("kv")), TypeError, "no truth of its own"),
        (lambda: mb.changed("kv") and mb.changed("kv"), TypeError, "`a & b`"),
        (lambda: full(group="some"), ValueError, "group is 'some'; \"each\""),
        (lambda: full(group=True), ValueError, "group is True"),
        (lambda: full(group=0), ValueError, "group is 0"),
        (lambda: full(group=-1), ValueError, "group is -1"),
        (lambda: full(m_of_n=3), TypeError, r"m_of_n is 3; .* \(3, 5, 1.0\)"),
        (lambda: full(hold_for=math.nan), ValueError, "hold_for is NaN seconds"),
        (lambda: full(labels=["severity"]), TypeError, "labels are a mapping"),
        (lambda: Rule.levels("X", [mb.changed("kv")]), TypeError, "is no level; pairs"),  # type: ignore[list-item]
        (lambda: Rule.levels("X", 3), TypeError, "3 is no level"),  # type: ignore[arg-type]
        (lambda: Rule("X", "kv > 1"), TypeError, "condition"),  # type: ignore[arg-type]
        (lambda: sum(Expr.value("kv") for _ in range(1000)), mb.RuleError, "256 are the most"),
    ],
)
def test_what_is_written_wrong_is_refused_at_once(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule("", mb.changed("kv")), "name"),
        (full(m_of_n=(3, 2, 1)), "3 of 2|m_of_n"),
        (Rule("X", when("kv", above=math.inf)), "finite"),
        (Rule("X", when("kv", above=1, clear_above=2)), "clear"),
        (Rule("X", when(Expr.constant(1), above=0)), "no metric"),
        (Rule("X", mb.stale("kv", 0)), "stale|10"),
        (Rule("X", when(Expr.value("kv").scaled(1, 1), above=0)), "scaled"),
        (Rule("X", when(Expr.over("kv", 1).quantile(2), above=0)), "quantile"),
        (Rule("X", mb.changed("kv"), labels={"a b": 1}), "a b"),
    ],
)
def test_a_wrong_rule_is_refused_when_it_is_added(bus: MetricBus, rule: Rule, message: str) -> None:
    with pytest.raises(mb.RuleError, match=message):
        bus.add_rule(rule)
    assert bus.rules() == []


def test_two_rules_of_one_name_are_refused(bus: MetricBus) -> None:
    bus.add_rule(full())
    with pytest.raises(mb.RuleError, match="set_rule"):
        bus.add_rule(full())


def test_the_deepest_expression_is_worked_with() -> None:
    deepest = sum((Expr.value("kv") for _ in range(254)), start=Expr.value("kv"))
    condition = when(deepest, above=1)
    bus = MetricBus()
    kv = bus.gauge("kv", "KV.")
    live = bus.add_rule(Rule("Deep", condition))
    kv.set(1)
    assert live.status().value == 255
    assert condition == when(deepest, above=1) and len(str(condition)) > 1000
    with pytest.raises(mb.RuleError, match="257 parts"):
        deepest + 1 + 1


# Derived gauges.


def test_an_expression_becomes_a_gauge_for_as_long_as_it_is_held(bus: MetricBus) -> None:
    used = bus.gauge("used", "Blocks.", ["worker"])
    total = bus.gauge("total", "Blocks.")
    with bus.derive("used_ratio", "Share.", Expr.value(used) / Expr.value(total), unit="ratio") as share:
        assert (share.name, str(share.expr)) == ("used_ratio", "(used / total)")
        total.set(200)
        used.labels("a").set(150)
        assert bus.snapshot().value("used_ratio", worker="a") == 0.75
        with bus.on_threshold("used_ratio", above=0.9) as crossings:
            used.labels("a").set(190)
            assert crossings.get(timeout=5).value == 0.95
    assert bus.snapshot().family("used_ratio") is None or bus.series("used_ratio") == []
    bus.derive("used_ratio", "Share.", used)
    assert bus.series("used_ratio") == []
    bus.derive("used_ratio", "Share.", used).forget()
    assert len(bus.series("used_ratio")) == 1


def test_a_derived_gauge_needs_a_name_of_its_own(bus: MetricBus) -> None:
    bus.gauge("kv", "KV.")
    with pytest.raises(mb.RuleError, match="declared already"):
        bus.derive("kv", "KV.", Expr.value("other"))
    with pytest.raises(mb.RuleError, match="name"):
        bus.derive("", "KV.", "kv")
    with pytest.raises(mb.RuleError, match="no metric"):
        bus.derive("one", "One.", Expr.constant(1))


# Restarts and forks.


def test_rules_go_on_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "rules.json"

    def start() -> tuple[MetricBus, mb.Gauge, mb.LiveRule]:
        bus = MetricBus()
        kv = bus.gauge("kv", "KV.")
        bus.keep_rule_state(path, outage_tolerance=60, grace_period=timedelta(minutes=1), every=1)
        return bus, kv, bus.add_rule(full())

    bus, kv, live = start()
    kv.set(1)
    bus.save_rule_state()
    before = live.history()[0]
    assert json.loads(path.read_text())
    bus, kv, live = start()
    kv.set(1)
    assert live.status().state == "firing" and live.status().fired == 0
    since = live.status().active[0].since_date
    assert since is not None and abs(since - before.since_date) < timedelta(seconds=1)
    kv.set(0)
    assert [(a.state, a.epoch) for a in live.history()] == [("resolved", 2)]


def test_state_that_cannot_be_kept_is_an_error(bus: MetricBus, tmp_path: Path) -> None:
    with pytest.raises(mb.RuleStateError, match="keep_rule_state"):
        bus.save_rule_state()
    with pytest.raises(mb.RuleStateError, match="can't be written"):
        bus.keep_rule_state(tmp_path / "no" / "folder")
    odd = tmp_path / "odd.json"
    odd.write_text("[]")
    with pytest.raises(mb.RuleStateError, match="move it away"):
        bus.keep_rule_state(str(odd))
    bus.add_rule(full())
    with pytest.raises(mb.RuleStateError, match="before rules are added"):
        bus.keep_rule_state(tmp_path / "rules.json")


def test_a_rule_written_before_a_fork_is_added_in_the_child(run: Callable[..., CompletedProcess[str]]) -> None:
    done = run(
        """
        import os, metricbus as mb
        bus = mb.MetricBus()
        kv = bus.gauge("kv", "KV.", ["worker"]).labels("a")
        rule = mb.Rule("Full", mb.when(kv, above=0.9) & ~mb.when(mb.Expr.max(kv), above=100))
        live = bus.add_rule(rule)
        alerts = live.on_alert()
        derived = bus.derive("kv_max", "Max.", mb.Expr.max(kv))
        kv.set(1)
        (old,) = live.history()
        child = os.fork()
        if child == 0:
            try:
                for touch in (live.status, live.history, live.remove, lambda: live.name, lambda: live.update(rule), alerts.stream):
                    try:
                        touch()
                        print("no error")
                    except mb.ForkedError as error:
                        assert "add it to the bus here" in str(error)
                derived.close()
                assert bus.rules() == [] and "another process" in repr(live)
                here = bus.add_rule(rule)
                kv.set(2)
                print(here.history()[0], old, sep=", ", flush=True)
                del live, derived, alerts, here, rule, bus, kv, old
            finally:
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        print(live.status().state)
        """
    )
    assert done.stdout.splitlines() == ['Full{worker="a"} firing at 2, Full{worker="a"} firing at 1', "firing"]


def test_an_annotation_that_cannot_be_filled_is_refused_when_the_rule_is_added() -> None:
    bus = mb.MetricBus()
    kv = bus.gauge("kv", "Share in use.", labels=("worker",))
    full = mb.when("kv", above=0.9)
    for text, why in [
        ("{{ $value", "not closed"),
        ("{{ $value | humanizePercentagee }}", "not known in braces"),
        ("{{ $labels.typo }}", "typo"),
    ]:
        with pytest.raises(mb.RuleError, match=why):
            bus.add_rule(mb.Rule("Full", full, group="any", annotations={"what": text}))
    text = "{{ $labels.worker }} of {{ .Holding }}"
    rule = bus.add_rule(mb.Rule("Full", full, group="any", annotations={"what": text}))
    kv.labels("a").set(0.95)
    assert rule.history()[-1].annotations == {"what": 'a of {worker="a"}'}


def test_a_rule_between_its_bounds_is_still_firing_after_a_restart(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    for value in (0.95, 0.85):
        bus = mb.MetricBus()
        bus.keep_rule_state(tmp_path / "rules.json")
        kv = bus.gauge("kv", "Share in use.")
        rule = bus.add_rule(mb.Rule("Full", mb.when(kv, above=0.9, clear_below=0.8)))
        kv.set(value)
        told.append((str(rule.status().state), len(rule.history())))
        bus.save_rule_state()
    assert told == [("firing", 1), ("firing", 0)]
