"""Exemplars, native histograms, and the formats in which they are shown."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import prometheus_client
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

import metricbus as mb

# As a Prometheus with native histograms asks.
PROTOBUF = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7,"
    "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
OPENMETRICS = "application/openmetrics-text;version=1.0.0"


def openmetrics(text: str) -> list[Any]:
    """Samples, as the strict parser of another library reads them."""
    families = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    return [sample for family in families for sample in family.samples]


def exemplars(text: str) -> dict[str, tuple[dict[str, str], float]]:
    """By sample."""
    return {
        sample.name + sample.labels.get("le", ""): (sample.exemplar.labels, sample.exemplar.value)
        for sample in openmetrics(text)
        if sample.exemplar is not None
    }


def test_openmetrics_shows_the_latest_exemplar_of_a_counter_and_of_each_bucket(bus: mb.MetricBus) -> None:
    counter = bus.counter("jobs_total", "Jobs.")
    histogram = bus.histogram("wait_seconds", "Waits.", buckets=(0.1, 1))
    counter.inc(exemplar={"trace_id": "a"})
    counter.inc(2, exemplar={"trace_id": "b"})
    histogram.observe(0.05, exemplar={"trace_id": "c"})
    histogram.observe(7, {"trace_id": "d", "span_id": 9})
    histogram.observe(0.5)
    assert exemplars(bus.export_prometheus(openmetrics=True)) == {
        "jobs_total": ({"trace_id": "b"}, 2),
        "wait_seconds_bucket0.1": ({"trace_id": "c"}, 0.05),
        "wait_seconds_bucket+Inf": ({"trace_id": "d", "span_id": "9"}, 7),
    }
    # The older format has none.
    assert " # {" not in bus.export_prometheus()


def test_an_exemplar_can_be_read_back(bus: mb.MetricBus) -> None:
    counter = bus.counter("jobs_total", "Jobs.", labels=("queue",))
    fast = counter.labels("fast")
    assert fast.exemplar() is None
    fast.inc(3, exemplar={"trace_id": "a"})
    exemplar = fast.exemplar()
    assert exemplar is not None
    assert (exemplar.labels, exemplar.value) == ({"trace_id": "a"}, 3)
    assert exemplar.date.tzinfo is UTC and abs((exemplar.date - datetime.now(UTC)).total_seconds()) < 60
    assert repr(exemplar) == "<Exemplar {'trace_id': 'a'} 3>"
    histogram = bus.histogram("wait_seconds", "Waits.", buckets=(0.1, 1))
    histogram.observe(0.5, exemplar={"trace_id": "b"})
    assert [(bound, exemplar.value) for bound, exemplar in histogram.exemplars()] == [(1, 0.5)]


@pytest.mark.parametrize(
    "wrong, why",
    [
        ({"trace_id": "x" * 121}, "129 characters.*128 is the most"),
        ({"trace-id": "x"}, 'label "trace-id" is not valid'),
        ({"": "x"}, "not valid"),
    ],
)
def test_a_wrong_exemplar_is_an_error_and_the_mutation_counts_all_the_same(
    bus: mb.MetricBus, wrong: dict[str, str], why: str
) -> None:
    counter = bus.counter("jobs_total", "Jobs.")
    histogram = bus.histogram("wait_seconds", "Waits.")
    counter.inc(exemplar={"trace_id": "before"})
    with pytest.raises(mb.ExemplarError, match=why):
        counter.inc(2, exemplar=wrong)
    # As prometheus_client has it.
    with pytest.raises(ValueError, match=why):
        histogram.observe(0.5, exemplar=wrong)
    assert (counter.get(), histogram.get().count) == (3, 1)
    kept = counter.exemplar()
    assert kept is not None and kept.labels == {"trace_id": "before"}
    assert histogram.exemplars() == []


def test_the_longest_exemplar_is_kept(bus: mb.MetricBus) -> None:
    counter = bus.counter("jobs_total", "Jobs.")
    counter.inc(exemplar={"trace_id": "ä" * 120})
    assert counter.exemplar() is not None


def test_what_is_no_mapping_is_an_error_and_counts(bus: mb.MetricBus) -> None:
    counter, histogram = bus.counter("jobs_total", "Jobs."), bus.histogram("wait_seconds", "Waits.")
    with pytest.raises(TypeError, match="mapping"):
        counter.inc(1, exemplar="trace")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="mapping"):
        histogram.observe(1, exemplar=7)  # type: ignore[arg-type]
    assert (counter.get(), histogram.get().count) == (1, 1)
    # No labels are no exemplar.
    counter.inc(exemplar={})
    histogram.observe(1, exemplar={})
    assert (counter.get(), counter.exemplar(), histogram.exemplars()) == (2, None, [])


def test_an_amount_that_is_refused_counts_nothing_with_an_exemplar_either(bus: mb.MetricBus) -> None:
    counter = bus.counter("jobs_total", "Jobs.")
    for exemplar in ({"trace_id": "a"}, {"trace-id": "a"}):
        with pytest.raises(mb.CounterError):
            counter.inc(-1, exemplar=exemplar)
    assert (counter.get(), counter.exemplar()) == (0, None)


def test_counting_goes_on_as_prometheus_client_has_it() -> None:
    registry = prometheus_client.CollectorRegistry()
    theirs = prometheus_client.Counter("jobs", "Jobs.", registry=registry)
    ours = mb.Counter("jobs", "Jobs.", registry=mb.MetricBus())
    counters: Iterable[Any] = (theirs, ours)
    for counter in counters:
        counter.inc(2, {"trace_id": "a"})
        with pytest.raises(ValueError):
            counter.inc(3, exemplar={"trace_id": "x" * 200})
    assert ours.get() == registry.get_sample_value("jobs_total") == 5


# What is needed of io.prometheus.client's messages: fields by their number.
def fields(message: bytes) -> list[tuple[int, Any]]:
    found: list[tuple[int, Any]] = []
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        key = varint()
        match key & 7:
            case 0:
                found.append((key >> 3, varint()))
            case 1:
                found.append((key >> 3, message[at : at + 8]))
                at += 8
            case 2:
                length = varint()
                found.append((key >> 3, message[at : at + length]))
                at += length
            case kind:
                raise AssertionError(f"wire type {kind}")
    return found


def families(body: bytes) -> dict[str, list[bytes]]:
    """Metrics by their family's name. A message that is one field of another reads as a length-delimited one."""
    found: dict[str, list[bytes]] = {}
    at = 0
    while at < len(body):
        length = shift = 0
        while True:
            byte = body[at]
            at += 1
            length |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        family = fields(body[at : at + length])
        at += length
        name = next(value for number, value in family if number == 1)
        found[name.decode()] = [value for number, value in family if number == 4]
    return found


def is_native(bus: mb.MetricBus, name: str) -> bool:
    """Whether a scrape in protobuf has exponential buckets: fields from `schema` on."""
    status, headers, body = mb.Exporter(bus, process_metrics=False).answer(accept=PROTOBUF)
    assert status == 200
    assert dict(headers)["content-type"].startswith("application/vnd.google.protobuf;")
    (metric,) = families(body)[name]
    histogram = next(value for number, value in fields(metric) if number == 7)
    numbers = {number for number, _ in fields(histogram)}
    assert {1, 2, 3} <= numbers, "the classic buckets are there, too"
    return 5 in numbers


def test_a_native_histogram_has_exponential_buckets_for_who_asks_for_them(bus: mb.MetricBus) -> None:
    native = bus.histogram("native_seconds", "N.", native=True)
    classic = bus.histogram("classic_seconds", "C.")
    for histogram in (native, classic):
        histogram.observe(0.3)
    assert is_native(bus, "native_seconds")
    assert not is_native(bus, "classic_seconds")
    # In text there is no difference.
    assert 'native_seconds_bucket{le="0.5"} 1\n' in bus.export_prometheus()


def test_a_bus_can_have_native_histograms_everywhere() -> None:
    bus = mb.MetricBus(native_histograms=True)
    bus.histogram("native_seconds", "N.").observe(1)
    bus.histogram("classic_seconds", "C.", native=False).observe(1)
    mb.Histogram("made_seconds", "M.", registry=bus).observe(1)
    mb.Histogram("not_seconds", "M.", registry=bus, native=False).observe(1)
    bus.scope("scoped_").histogram("seconds", "S.").observe(1)
    names = ["native_seconds", "classic_seconds", "made_seconds", "not_seconds", "scoped_seconds"]
    assert [is_native(bus, name) for name in names] == [True, False, True, False, True]


def test_families_and_fields_can_be_native(bus: mb.MetricBus) -> None:
    class Worker(mb.Component):
        wait_seconds: mb.Histogram = mb.field("W.", labels=("queue",), native=True)

    Worker(bus).wait_seconds.labels("fast").observe(1)
    assert is_native(bus, "wait_seconds")
    with pytest.raises(mb.DeclareError, match="native"):
        bus.histogram("wait_seconds", "W.", labels=("queue",), native=False)
    with pytest.raises(TypeError, match=r"Wrong\.depth is a Gauge and says native=True; only a Histogram can be native"):

        class Wrong(mb.Component):
            depth: mb.Gauge = mb.field("D.", native=True)


def test_lines_say_since_when_something_counts_where_that_is_wanted(bus: mb.MetricBus) -> None:
    bus.counter("jobs_total", "Jobs.").inc()
    plain = mb.Exporter(bus, process_metrics=False).answer(accept=OPENMETRICS)[2]
    assert b"jobs_created" not in plain
    wanted = mb.Exporter(bus, process_metrics=False, created_lines=True)
    text = wanted.answer(accept=OPENMETRICS)[2].decode()
    (created,) = [sample.value for sample in openmetrics(text) if sample.name == "jobs_created"]
    assert abs(created - datetime.now(UTC).timestamp()) < 60
    assert b"jobs_created" not in wanted.answer()[2]


def test_protobuf_comes_through_wsgi_asgi_and_a_server(bus: mb.MetricBus) -> None:
    bus.counter("jobs_total", "Jobs.").inc(3)
    wanted = mb.Exporter(bus, process_metrics=False)

    def started(status: str, headers: list[tuple[str, str]], _: object = None) -> Any:
        answers.append((status, dict(headers)["Content-Type"]))

    answers: list[tuple[str, str]] = []
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/metrics", "HTTP_ACCEPT": PROTOBUF, "HTTP_ACCEPT_ENCODING": "gzip"}
    body = b"".join(mb.make_wsgi_app(wanted)(environ, started))
    assert answers[0][0] == "200 OK" and answers[0][1].startswith("application/vnd.google.protobuf;")
    assert "jobs_total" in families(gzip.decompress(body))

    async def asgi() -> bytes:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"accept", PROTOBUF.encode())]}
        await mb.make_asgi_app(wanted)(scope, receive, send)
        kind = dict(sent[0]["headers"])[b"content-type"]
        assert kind.startswith(b"application/vnd.google.protobuf;")
        content: bytes = sent[1]["body"]
        return content

    assert "jobs_total" in families(asyncio.run(asgi()))
