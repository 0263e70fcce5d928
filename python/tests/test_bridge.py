"""A registry of prometheus_client, exposed with a bus, and judged by its own parsers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import prometheus_client as pc
import pytest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeHistogramMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
    SummaryMetricFamily,
    UnknownMetricFamily,
)
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families as parse_text

import metricbus as mb

# Which has no types.
parse_openmetrics: Any = openmetrics_parser.text_string_to_metric_families


@pytest.fixture
def registry() -> pc.CollectorRegistry:
    return pc.CollectorRegistry()


def scrape(bus: mb.MetricBus, *registries: Any) -> dict[str, Metric]:
    """All families in both formats, which have to say the same."""
    exporter = mb.Exporter(bus, process_metrics=False, merge=registries)
    text = exporter.answer()[2].decode()
    openmetrics = exporter.answer(accept="application/openmetrics-text; version=1.0.0")[2].decode()
    found = {family.name: family for family in parse_text(text) if not family.name.startswith("metricbus_")}
    again = {family.name: family for family in parse_openmetrics(openmetrics) if not family.name.startswith("metricbus_")}
    assert found.keys() == again.keys()
    return found


def samples(family: Metric) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for sample in family.samples}


class Custom:
    """A collector that says what it is told to."""

    def __init__(self, *metrics: Metric) -> None:
        self.metrics = metrics

    def collect(self) -> Iterator[Metric]:
        yield from self.metrics


def test_counters_and_gauges_come_with_their_labels(bus: mb.MetricBus, registry: pc.CollectorRegistry) -> None:
    pc.Counter("http_requests", "Requests.", ["method"], registry=registry).labels("GET").inc(2.5)
    pc.Gauge("depth", 'A "help"\nof two lines.', registry=registry).set(-1)
    found = scrape(bus, registry)
    assert samples(found["http_requests"]) == {("http_requests_total", (("method", "GET"),)): 2.5}
    assert found["http_requests"].type == "counter"
    assert samples(found["depth"]) == {("depth", ()): -1}
    assert found["depth"].documentation == 'A "help"\nof two lines.'


def test_histograms_and_summaries_come_whole(bus: mb.MetricBus, registry: pc.CollectorRegistry) -> None:
    histogram = pc.Histogram("seconds", "S.", ["path"], buckets=(0.1, 1), registry=registry)
    histogram.labels("/").observe(0.5)
    histogram.labels("/").observe(5)
    histogram.labels("/x").observe(0.05)
    pc.Summary("size", "Size.", registry=registry).observe(7)
    quantiles = Metric("rpc", "RPC.", "summary")
    quantiles.add_sample("rpc", {"quantile": "0.5"}, 1.5)
    quantiles.add_sample("rpc", {"quantile": "0.99"}, 2.5)
    quantiles.add_sample("rpc_count", {}, 4)
    quantiles.add_sample("rpc_sum", {}, 6)
    registry.register(Custom(quantiles))
    found = scrape(bus, registry)
    got = samples(found["seconds"])
    assert found["seconds"].type == "histogram"
    assert got[("seconds_bucket", (("le", "0.1"), ("path", "/")))] == 0
    assert got[("seconds_bucket", (("le", "1"), ("path", "/")))] == 1
    assert got[("seconds_bucket", (("le", "+Inf"), ("path", "/")))] == 2
    assert got[("seconds_sum", (("path", "/"),))] == 5.5
    assert got[("seconds_count", (("path", "/x"),))] == 1
    assert found["size"].type == "summary"
    assert samples(found["size"]) == {("size_count", ()): 1, ("size_sum", ()): 7}
    assert samples(found["rpc"])[("rpc", (("quantile", "0.99"),))] == 2.5


def test_what_the_text_format_has_no_type_for_is_a_gauge(bus: mb.MetricBus, registry: pc.CollectorRegistry) -> None:
    pc.Info("build", "Build.", registry=registry).info({"version": "1.2"})
    pc.Enum("mode", "Mode.", states=["on", "off"], registry=registry).state("off")
    registry.register(Custom(UnknownMetricFamily("mystery", "Nobody knows.", value=3)))
    found = scrape(bus, registry)
    assert samples(found["build_info"]) == {("build_info", (("version", "1.2"),)): 1}
    assert samples(found["mode"]) == {("mode", (("mode", "off"),)): 1, ("mode", (("mode", "on"),)): 0}
    assert samples(found["mystery"]) == {("mystery", ()): 3}


def test_a_gauge_histogram_and_negative_buckets_come_as_histograms(
    bus: mb.MetricBus, registry: pc.CollectorRegistry
) -> None:
    gauge = GaugeHistogramMetricFamily("ages", "Ages.", buckets=[("1", 2), ("+Inf", 3)], gsum_value=9)
    negative = HistogramMetricFamily("temperature", "T.", buckets=[("-10", 1), ("+Inf", 4)], sum_value=1)
    registry.register(Custom(gauge, negative))
    found = scrape(bus, registry)
    assert samples(found["ages"])[("ages_count", ())] == 3
    assert samples(found["temperature"])[("temperature_bucket", (("le", "-10"),))] == 1
    assert samples(found["temperature"])[("temperature_bucket", (("le", "+Inf"),))] == 4


def test_the_default_collectors_come_too(bus: mb.MetricBus) -> None:
    registry = pc.CollectorRegistry(target_info={"env": "test"})
    pc.PlatformCollector(registry)
    pc.ProcessCollector(registry=registry)
    pc.GCCollector(registry)
    found = scrape(bus, registry)
    assert {"python_info", "process_cpu_seconds", "python_gc_collections", "target_info"} <= found.keys()


def test_what_is_registered_later_is_there_too(bus: mb.MetricBus, registry: pc.CollectorRegistry) -> None:
    exporter = mb.Exporter(bus, merge=[registry])
    pc.Gauge("late", "Late.", registry=registry).set(1)
    assert b"\nlate 1\n" in exporter.answer()[2]


def test_of_two_with_one_name_the_bus_keeps_its_own(bus: mb.MetricBus, registry: pc.CollectorRegistry) -> None:
    bus.gauge("depth", "Ours.").set(1)
    pc.Gauge("depth", "Theirs.", registry=registry).set(2)
    pc.Gauge("other", "Theirs.", registry=registry).set(3)
    found = scrape(bus, registry)
    assert samples(found["depth"]) == {("depth", ()): 1}
    assert samples(found["other"]) == {("other", ()): 3}


def test_two_registries_are_merged(bus: mb.MetricBus, registry: pc.CollectorRegistry) -> None:
    second = pc.CollectorRegistry()
    pc.Gauge("first", "F.", registry=registry).set(1)
    pc.Gauge("second", "S.", registry=second).set(2)
    assert scrape(bus, registry, second).keys() == {"first", "second"}


class Broken:
    def __init__(self) -> None:
        self.failing = False

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily("before_it_broke", "B.", value=1)
        if self.failing:
            raise RuntimeError("no luck")


def test_a_collector_that_raises_is_logged_and_the_scrape_goes_on(
    bus: mb.MetricBus, registry: pc.CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Broken()
    registry.register(broken)
    pc.Counter("fine", "Fine.", registry=registry).inc()
    bus.gauge("ours", "Ours.").set(1)
    broken.failing = True
    with caplog.at_level(logging.ERROR, "metricbus"):
        found = scrape(bus, registry)
    assert {"fine", "ours", "before_it_broke"} <= found.keys()
    assert "no luck" in caplog.text and "Broken" in caplog.text


def test_a_collector_that_hangs_costs_the_scrape_its_deadline(bus: mb.MetricBus, registry: pc.CollectorRegistry) -> None:
    go = threading.Event()

    class Hanging:
        def collect(self) -> Iterator[Metric]:
            if registered:
                go.wait(60)
            yield GaugeMetricFamily("slow", "Slow.", value=1)

    registered = False
    registry.register(Hanging())
    registered = True
    bus.gauge("ours", "Ours.").set(1)
    exporter = mb.Exporter(bus, merge=[registry])
    try:
        body = exporter.answer()[2]
    finally:
        go.set()
    assert b"\nours 1\n" in body and b"\nslow " not in body


def test_a_registry_of_another_make_that_raises_costs_its_own_metrics(
    bus: mb.MetricBus, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Broken()
    broken.failing = True
    bus.gauge("ours", "Ours.").set(1)
    with caplog.at_level(logging.ERROR, "metricbus"):
        assert scrape(bus, broken).keys() == {"ours", "before_it_broke"}
    assert "no luck" in caplog.text


def test_nonsense_of_a_collector_never_breaks_the_scrape(bus: mb.MetricBus, registry: pc.CollectorRegistry) -> None:
    negative = CounterMetricFamily("negative", "N.", value=-1)
    shrinking = HistogramMetricFamily("shrinking", "S.", buckets=[("1", 5), ("+Inf", 3)], sum_value=1)
    twice = GaugeMetricFamily("twice", "T.", labels=["a"])
    twice.add_metric(["x"], 1)
    twice.add_metric(["x"], 2)
    empty = SummaryMetricFamily("empty", "E.", labels=["a"])
    odd = Metric("odd", "O.", "gauge")
    odd.name = "not a name"
    odd.add_sample("not a name", {}, 1)
    numbers = GaugeMetricFamily("numbers", "N.", labels=["code"])
    numbers.add_metric([404], 1)  # type: ignore[list-item]
    registry.register(Custom(negative, shrinking, twice, empty, odd, numbers))
    found = scrape(bus, registry)
    # One bad child does not take its family with it.
    assert found.keys() == {"numbers", "twice", "not_a_name"}
    assert [sample.value for sample in found["twice"].samples] == [1]
    assert samples(found["numbers"]) == {("numbers", (("code", "404"),)): 1}


def test_what_can_not_be_collected_is_refused(bus: mb.MetricBus) -> None:
    with pytest.raises(TypeError, match=r"'registry' can't be merged; a prometheus_client.CollectorRegistry"):
        mb.Exporter(bus, merge=["registry"])


def test_a_scrape_while_the_interpreter_ends_is_harmless(run: Any) -> None:
    done = run(
        """
        import threading, urllib.request, prometheus_client as pc, metricbus as mb
        registry = pc.CollectorRegistry()
        pc.Gauge("g", "G.", registry=registry).set(1)
        server = mb.Exporter(mb.MetricBus(), merge=[registry]).serve("127.0.0.1:0")
        assert b"g 1" in urllib.request.urlopen(server.url).read()
        def scrape():
            try:
                while True:
                    urllib.request.urlopen(server.url, timeout=5).read()
            except Exception:
                pass
        for _ in range(3):
            threading.Thread(target=scrape, daemon=True).start()
        urllib.request.urlopen(server.url).read()
        print("done")
        """
    )
    assert done.stdout == "done\n" and done.stderr == ""


def test_names_and_labels_with_dots_come_as_prometheus_client_writes_them(bus: mb.MetricBus, registry: pc.CollectorRegistry) -> None:
    pc.Gauge("http.depth", "Depth.", ["queue.name"], registry=registry).labels("x").set(3)
    found = scrape(bus, registry)
    theirs = {family.name for family in parse_text(pc.generate_latest(registry).decode())}
    assert found.keys() == theirs == {"http_depth"}
    assert [(sample.labels, sample.value) for sample in found["http_depth"].samples] == [({"queue_name": "x"}, 3)]
