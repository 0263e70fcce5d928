"""Components as classes."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

import metricbus as mb


class Queue(mb.Component, prefix="queue_"):
    """Requests that wait."""

    depth: mb.Gauge = mb.field("Requests waiting.")


class Worker(mb.Component, prefix="worker_", labels={"tier": "gpu"}):
    """What a decode
    worker measures.

    And more about it.
    """

    seen: ClassVar[int] = 0
    note: str = ""

    requests_total: mb.Counter = mb.field("Requests served.", labels=("method",))
    kv_usage_ratio: mb.Gauge = mb.field("Share of the KV cache in use.", unit="ratio")
    ttft_seconds: mb.Histogram = mb.field("Time to the first token.", unit="seconds", buckets=(0.1, 1))
    fast: Queue = mb.nested("fast_", lane="fast")
    slow: Queue = mb.nested(lane="slow")

    def busy(self) -> bool:
        return (self.kv_usage_ratio.get() or 0) > 0.9


def test_each_field_is_a_metric_with_prefix_and_labels(bus: mb.MetricBus) -> None:
    worker = Worker(bus, pod="decode-0")
    worker.requests_total.labels("GET").inc()
    worker.kv_usage_ratio.set(0.95)
    worker.ttft_seconds.observe(0.5)
    assert str(worker.kv_usage_ratio.series) == 'worker_kv_usage_ratio{tier="gpu",pod="decode-0"}'
    assert worker.busy()
    text = mb.export_prometheus(bus)
    assert '# HELP worker_requests_total Requests served.\n' in text
    assert 'worker_requests_total{tier="gpu",pod="decode-0",method="GET"} 1\n' in text
    assert 'worker_ttft_seconds_bucket{tier="gpu",pod="decode-0",le="1"} 1\n' in text
    assert worker.bus.snapshot().value("worker_kv_usage_ratio", tier="gpu", pod="decode-0") == 0.95


def test_it_is_declared_on_a_scope_or_on_the_default_bus(bus: mb.MetricBus) -> None:
    queue = Queue(bus.scope("app_", pod="p"))
    assert str(queue.depth.series) == 'app_queue_depth{pod="p"}'
    assert str(queue.scope.prefix) == "app_queue_"

    class OnDefault(mb.Component, prefix="test_component_"):
        depth: mb.Gauge = mb.field("D.")

    OnDefault().depth.set(3)
    assert b"test_component_depth 3\n" in mb.generate_latest()


def test_nested_components_take_the_outer_ones_prefix_and_labels(bus: mb.MetricBus) -> None:
    worker = Worker(bus)
    assert str(worker.fast.depth.series) == 'worker_fast_queue_depth{tier="gpu",lane="fast"}'
    assert str(worker.slow.depth.series) == 'worker_queue_depth{tier="gpu",lane="slow"}'


def test_two_instances_are_told_apart_by_their_labels(bus: mb.MetricBus) -> None:
    one, two = Worker(bus, pod="1"), Worker(bus, pod="2")
    one.kv_usage_ratio.set(0.1)
    two.kv_usage_ratio.set(0.2)
    assert [series.value for series in bus.series("worker_kv_usage_ratio")] == [0.1, 0.2]


def test_a_field_can_have_another_name_and_labels_with_values(bus: mb.MetricBus) -> None:
    class Cache(mb.Component):
        hits: mb.Counter = mb.field("Lookups.", name="lookups_total", const_labels={"result": "hit"})
        misses: mb.Counter = mb.field("Lookups.", name="lookups_total", const_labels={"result": "miss"})

    cache = Cache(bus)
    cache.misses.inc()
    assert bus.snapshot().value("lookups_total", result="miss") == 1
    assert str(cache.hits.series) == 'lookups_total{result="hit"}'


def test_a_subclass_has_what_its_bases_have(bus: mb.MetricBus) -> None:
    class Bigger(Worker):
        errors_total: mb.Counter = mb.field("Errors.")

        def __init__(self, place: mb.MetricBus, size: int) -> None:
            super().__init__(place, size=size)
            self.size = size

    bigger = Bigger(bus, 7)
    bigger.errors_total.inc()
    assert str(bigger.errors_total.series) == 'worker_errors_total{tier="gpu",size="7"}'
    assert str(bigger.kv_usage_ratio.series) == 'worker_kv_usage_ratio{tier="gpu",size="7"}'
    assert bigger.size == 7


def test_a_metric_can_not_be_assigned_to(bus: mb.MetricBus) -> None:
    worker = Worker(bus)
    with pytest.raises(AttributeError, match=r"kv_usage_ratio\.set\(0\.5\) would be right"):
        worker.kv_usage_ratio = 0.5  # type: ignore[assignment]
    worker.note = "other attributes can"


def test_a_label_may_be_called_as_a_parameter_is(bus: mb.MetricBus) -> None:
    class Inner(mb.Component, labels={"self": "s"}):
        depth: mb.Gauge = mb.field("Depth.", const_labels={"prefix": "const"})

    class Outer(mb.Component, prefix="outer_"):
        inner: Inner = mb.nested(labels="nested")

    class Cached(mb.Component, labels={"prefix": "cached"}):
        hits: mb.Counter = mb.field("Hits.")

    class Nests(mb.Component):
        inner: Cached = mb.nested("a_")
        other: Queue = mb.nested("b_", prefix="nested")

    assert str(Outer(bus).inner.depth.series) == 'outer_depth{labels="nested",self="s",prefix="const"}'
    nests = Nests(bus)
    assert str(nests.inner.hits.series) == 'a_hits{prefix="cached"}'
    assert str(nests.other.depth.series) == 'b_queue_depth{prefix="nested"}'
    assert str(Queue(bus, prefix="instance").depth.series) == 'queue_depth{prefix="instance"}'
    assert str(bus.scope(prefix="app_", tier="gpu").gauge("depth", "D.").series) == 'app_depth{tier="gpu"}'


def test_labels_that_are_there_twice_are_refused(bus: mb.MetricBus) -> None:
    with pytest.raises(mb.DeclareError, match="method"):
        Worker(bus, method="GET")


def test_it_says_what_it_can_not_be_declared_on() -> None:
    with pytest.raises(TypeError, match=r"Queue was given 'bus'.*MetricBus or a metricbus.Scope would be right"):
        Queue("bus")  # type: ignore[arg-type]


def test_a_wrong_annotation_is_an_error_of_the_class() -> None:
    with pytest.raises(TypeError, match=r"Wrong\.depth is annotated as int; metricbus\.Counter, Gauge or Histogram"):

        class Wrong(mb.Component):
            depth: int = mb.field("D.")

    with pytest.raises(TypeError, match=r"Inner\.queue is annotated as mb\.Gauge; a class that is a Component"):

        class Inner(mb.Component):
            queue: mb.Gauge = mb.nested()

    with pytest.raises(TypeError, match=r"Unknown\.depth is annotated as NoSuchThing"):

        class Unknown(mb.Component):
            depth: NoSuchThing = mb.field("D.")  # type: ignore[name-defined]  # noqa: F821


def test_a_missing_annotation_or_declaration_is_an_error_of_the_class() -> None:
    with pytest.raises(TypeError, match=r"NoAnnotation\.depth has no annotation"):

        class NoAnnotation(mb.Component):
            depth = mb.field("D.")

    with pytest.raises(TypeError, match=r"NoField\.depth is not declared; depth: Gauge = field\("):

        class NoField(mb.Component):
            depth: mb.Gauge

    with pytest.raises(TypeError, match=r"NoNested\.queue is not declared; queue: Queue = nested\(\)"):

        class NoNested(mb.Component):
            queue: Queue


def test_what_the_bus_refuses_is_an_error_of_the_class() -> None:
    with pytest.raises(mb.DeclareError, match=r"Buckets.*increas"):

        class Buckets(mb.Component):
            size: mb.Histogram = mb.field("S.", buckets=(2, 1))

    with pytest.raises(mb.DeclareError, match="Label.*le"):

        class Label(mb.Component):
            size: mb.Gauge = mb.field("S.", labels=("le",))

    with pytest.raises(mb.DeclareError, match="Unit"):

        class Unit(mb.Component):
            size: mb.Gauge = mb.field("S.", unit="bytes")

    with pytest.raises(TypeError, match=r"NoHistogram\.size is a Gauge and has buckets"):

        class NoHistogram(mb.Component):
            size: mb.Gauge = mb.field("S.", buckets=(1, 2))

    with pytest.raises(TypeError, match=r"Reserved\.bus can't be called so"):

        class Reserved(mb.Component):
            bus: mb.Gauge = mb.field("B.")  # type: ignore[assignment]


def test_a_field_wants_its_help_text() -> None:
    with pytest.raises(TypeError, match="the help text comes first"):
        mb.field("")
    with pytest.raises(TypeError, match=r"labels is the text 'method'; a sequence of names like \('method',\)"):
        mb.field("R.", labels="method")


def test_annotations_may_be_names_of_the_enclosing_function(bus: mb.MetricBus) -> None:
    Local = mb.Gauge

    class InFunction(mb.Component):
        depth: Local = mb.field("D.")  # type: ignore[valid-type]

    assert InFunction(bus).depth.get() is None  # type: ignore[attr-defined]


def test_annotations_need_not_be_texts(run: Any) -> None:
    done = run(
        """
        import typing
        import metricbus as mb
        class Queue(mb.Component):
            depth: mb.Gauge = mb.field("Requests\\n   waiting.")
        class Both(mb.Component):
            limit: typing.ClassVar[int] = 3
            first: Queue = mb.nested("first_")
            later: "Later | None" = None
        bus = mb.MetricBus()
        both = Both(bus)
        both.first.depth.set(1)
        print(mb.export_prometheus(bus), both, both.limit, both.later)
        """
    )
    text = "# HELP first_depth Requests waiting.\n# TYPE first_depth gauge\nfirst_depth 1\n <Both first_depth> 3 None\n"
    assert done.stdout == text


class Lists(mb.MetricContainer):
    """A backend of another kind: it can only be written to."""

    create_counter = create_gauge = create_histogram = None  # type: ignore[assignment]


def test_a_component_can_be_written_for_any_backend() -> None:
    class Api:
        def __init__(self, base: mb.BaseComponentMetrics) -> None:
            labels = {"service": "api"}
            container = base.container
            self.requests = container.create_counter("requests_total", "Requests.", labels)
            self.seconds = container.create_histogram("seconds", "Seconds.", labels, buckets=(1, 10))
            self.ready = container.create_gauge("ready", "Ready.")
            self.by_path = container.create_counter_family("paths_total", "By path.", ("path",), labels)
            self.depths = container.create_gauge_family("depth", "Depth.", ("queue",))
            self.sizes = container.create_histogram_family("sizes", "Sizes.", ("kind",), buckets=(1,))

    base = mb.BaseComponentMetrics.new_prometheus("myapp")
    api = Api(base)
    api.requests.inc(6)
    api.seconds.observe(2)
    api.ready.set(1)
    api.by_path.labels("/").inc()
    api.depths.labels("q").set(3)
    api.sizes.labels("big").observe(7)
    assert isinstance(api.requests, mb.MetricCounter)
    assert isinstance(api.ready, mb.MetricGauge)
    assert isinstance(api.seconds, mb.MetricHistogram)
    assert isinstance(api.by_path, mb.MetricFamily)
    text = base.container.export_prometheus()
    assert 'myapp_requests_total{service="api"} 6\n' in text
    assert 'myapp_paths_total{service="api",path="/"} 1\n' in text
    assert 'myapp_seconds_bucket{service="api",le="10"} 1\n' in text
    assert 'myapp_depth{queue="q"} 3\n' in text
    assert base.container.get_metrics().value("myapp_ready") == 1
    assert api.by_path.remove("/") is True


def test_a_container_can_be_on_a_bus_that_is_there_already(bus: mb.MetricBus, capsys: pytest.CaptureFixture[str]) -> None:
    bus.gauge("up", "Up.").set(1)
    container = mb.PrometheusContainer("myapp_", bus)
    container.create_gauge("kv", "KV.").set(2)
    container.print_metrics()
    assert capsys.readouterr().out == "# HELP myapp_kv KV.\n# TYPE myapp_kv gauge\nmyapp_kv 2\n# HELP up Up.\n# TYPE up gauge\nup 1\n"
    assert container.bus is bus


def test_a_family_without_names_is_refused() -> None:
    with pytest.raises(ValueError, match="has no label names"):
        mb.PrometheusContainer().create_counter_family("a_total", "A.", ())
    with pytest.raises(mb.DeclareError, match="app_a"):
        mb.PrometheusContainer('my"app').create_gauge("a", "A.")


def test_a_backend_has_to_be_complete() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Lists()  # type: ignore[abstract]
