"""Events, snapshots, rules and ids are plain values: they can be copied, pickled, and shown as dictionaries."""

from __future__ import annotations

import copy
import json
import math
import pickle
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

import metricbus as mb


def events(bus: mb.MetricBus) -> list[Any]:
    depth = mb.Gauge("depth", "Depth.", ("queue",), registry=bus)
    child = depth.labels('a"b')
    child.set(1)
    with (
        bus.on_threshold("depth", above=5) as crossings,
        bus.on_delta("depth", absolute=2) as moves,
        bus.on_change("depth") as changes,
        bus.subscribe("depth") as mutations,
    ):
        child.set(9)
        return [listen.get(timeout=10) for listen in (crossings, moves, changes, mutations)]


def alert(bus: mb.MetricBus) -> mb.Alert:
    load = bus.gauge("load", "Load.")
    bus.add_rule(mb.Rule("Loaded", mb.when("load", above=1), annotations={"summary": "{{ $value }}"}))
    with bus.on_alert() as alerts:
        load.set(2)
        found = alerts.get(timeout=10)
        while not isinstance(found, mb.Alert):
            found = alerts.get(timeout=10)
        return found


def values(bus: mb.MetricBus) -> list[Any]:
    bus.histogram("h", "H.", buckets=(1,)).observe(0.5)
    requests = bus.counter("requests_total", "Requests.")
    requests.inc(exemplar={"trace_id": "1"})
    rule = mb.Rule("Loaded", mb.when("load", above=0.9, clear_below=0.8), hold_for=0.5, labels={"severity": "page"})
    source = mb.SourceId("prod", "decode", "pod/7")
    snapshot = bus.snapshot()
    return [*events(bus), alert(bus), rule, source, snapshot, snapshot.families[0], requests.exemplar()]


def test_they_are_copied_pickled_and_shown(bus: mb.MetricBus) -> None:
    for value in values(bus):
        assert copy.copy(value) is value and copy.deepcopy(value) is value
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            again = pickle.loads(pickle.dumps(value, protocol))
            assert type(again) is type(value)
            assert again.to_dict() == value.to_dict()
        if not isinstance(value, mb.Rule):
            public = {name for name in dir(value) if name[0] != "_" and not callable(getattr(value, name))}
            assert value.to_dict().keys() == public
        # What JSON has, and nothing else.
        assert json.loads(json.dumps(value.to_dict())) == value.to_dict(), value


def test_a_crossing_as_a_dictionary(bus: mb.MetricBus) -> None:
    crossing, *_ = events(bus)
    shown = crossing.to_dict()
    assert shown["series"] == {"name": "depth", "labels": {"queue": 'a"b'}}
    assert (shown["state"], shown["value"], shown["epoch"], shown["is_raised"]) == ("raised", 9, 1, True)
    assert datetime.fromisoformat(shown["date"]) == crossing.date


def test_all_events_have_the_time_of_the_wall(bus: mb.MetricBus) -> None:
    now = datetime.now(timezone.utc)
    for event in [*events(bus), alert(bus)]:
        assert abs(event.date - now) < timedelta(minutes=5), event


def test_the_series_of_what_was_unpickled_is_a_name_and_labels(bus: mb.MetricBus) -> None:
    crossing, *_ = events(bus)
    again = pickle.loads(pickle.dumps(crossing))
    assert (again.series.name, again.series.labels, again.series.kind) == ("depth", {"queue": 'a"b'}, "gauge")
    assert again.series == crossing.series and hash(again.series) == hash(crossing.series)
    assert repr(again) == repr(crossing)
    with pytest.raises(mb.ForkedError, match="was unpickled and is on no bus"):
        again.series.value
    assert bus.series(str(again.series)) == [crossing.series]


def test_an_alert_and_a_rule_come_back_whole(bus: mb.MetricBus) -> None:
    told = alert(bus)
    again = pickle.loads(pickle.dumps(told))
    assert str(again) == str(told) and again.annotations == {"summary": "2"} == told.annotations
    rule = mb.Rule("Loaded", mb.when("load", above=0.9), hold_for=0.5, labels={"severity": "page"})
    assert pickle.loads(pickle.dumps(rule)) == rule
    assert rule.to_dict()["labels"] == {"severity": "page"}
    other = mb.MetricBus()
    other.add_rule(pickle.loads(pickle.dumps(rule)))


def test_a_derived_gauge_has_a_value_series_and_windows(bus: mb.MetricBus) -> None:
    used, total = bus.gauge("used", "Used.", ("worker",)), bus.gauge("blocks", "There are.")
    share = bus.derive("share_ratio", "Share.", mb.Expr.value("used") / mb.Expr.value("blocks"))
    assert share.get() is None and share.series == []
    window = share.window(60)
    total.set(8)
    used.labels("a").set(2)
    assert share.get() == 0.25
    assert [str(series) for series in share.series] == ['share_ratio{worker="a"}']
    last = window.stats().max
    assert last is not None and math.isclose(last, 0.25)
    used.labels("b").set(4)
    # Of two series neither is the value.
    assert share.get() is None and len(share.series) == 2
    share.close()
    assert share.get() is None and share.series == []
