"""Backends: the same component over each of them, their errors, and what becomes of them in forks and at the end."""

from __future__ import annotations

import asyncio
import gc
import http.server
import json
import os
import pickle
import socket
import sys
import threading
import urllib.request
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import Collector, Compile, Point, Run
from prometheus_client.parser import text_string_to_metric_families

import metricbus as mb
from metricbus import backends

OURS = ("METRICBUS_", "OTEL_", "COUNTING_")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(OURS)]:
        monkeypatch.delenv(name)


# The component, which knows nothing of backends.


class Cache(mb.Component, prefix="cache_"):
    """A cache."""

    hits_total: mb.Counter = mb.field("Hits.", labels=("tier",))


class Api:
    def __init__(self, base: mb.BaseComponentMetrics) -> None:
        labels = {"service": "api"}
        container = base.container
        self.requests = container.create_counter_family("requests_total", "Requests.", ("method",), labels)
        self.work = container.create_counter("work_seconds_total", "Work.")
        self.kv = container.create_gauge("kv_usage_ratio", "Share of the KV cache in use.", labels)
        self.seconds = container.create_histogram("latency_seconds", "Time to answer.", buckets=(0.25, 1))
        self.cache = base.register(Cache, region="eu")

    def serve(self) -> None:
        for i in range(100):
            self.requests.labels("GET" if i % 4 else "POST").inc()
            self.work.inc(0.5)
            self.kv.set(i / 100)
            self.seconds.observe(i / 50)
            self.cache.hits_total.labels("ram").inc(2)
        self.kv.dec(0.25)


Values = dict[str, float | tuple[int, float, tuple[int, ...]]]

#: By series; of a histogram its count, its sum, and its buckets, not added up.
SERVED: Values = {
    "app_requests_total{method=GET,service=api}": 75,
    "app_requests_total{method=POST,service=api}": 25,
    "app_work_seconds_total{}": 50,
    "app_kv_usage_ratio{service=api}": 0.74,
    "app_latency_seconds{}": (100, 99, (13, 38, 49)),
    "app_cache_hits_total{region=eu,tier=ram}": 200,
}


def key(name: str, labels: dict[str, str]) -> str:
    return f"{name}{{{','.join(f'{name}={value}' for name, value in sorted(labels.items()))}}}"


def scraped(text: str) -> Values:
    """As another library reads it."""
    values: Values = {}
    histograms: dict[str, dict[str, Any]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            if family.type != "histogram":
                values[key(sample.name, labels)] = sample.value
                continue
            bound, part = labels.pop("le", None), sample.name.removeprefix(family.name)
            seen = histograms.setdefault(key(family.name, labels), {"buckets": []})
            if bound is None:
                seen[part] = sample.value
            else:
                seen["buckets"].append(int(sample.value))
    for series, seen in histograms.items():
        up = [0, *seen["buckets"]]
        values[series] = (int(seen["_count"]), seen["_sum"], tuple(b - a for a, b in zip(up, up[1:], strict=False)))
    return values


def received(points: list[Point]) -> Values:
    """The last point of each series."""
    return {
        key(point.name, point.labels): (point.count, point.sum, tuple(point.buckets)) if point.kind == "Histogram" else point.value or 0
        for point in points
    }


def counted(file: Path) -> Values:
    """What the library has written."""
    values: Values = {}
    for line in file.read_text().splitlines()[1:]:
        series, *rest = line.split(" ")
        name, _, labels = series.partition("{")
        pairs = dict(pair.split("=") for pair in labels.rstrip("}").replace('"', "").split(",") if pair)
        if rest[0].startswith("sum="):
            buckets = tuple(int(part) for part in rest[1:])
            values[key(name, pairs)] = (sum(buckets), float(rest[0].removeprefix("sum=")), buckets)
        else:
            values[key(name, pairs)] = float(rest[0])
    return values


def flat(values: Values) -> dict[str, float]:
    """With a histogram's numbers one by one."""
    flat: dict[str, float] = {}
    for series, value in values.items():
        if isinstance(value, tuple):
            count, total, buckets = value
            flat |= {f"{series} count": count, f"{series} sum": total}
            flat |= {f"{series} bucket {i}": n for i, n in enumerate(buckets)}
        else:
            flat[series] = value
    return flat


def same(one: Values, other: Values) -> None:
    assert flat(one) == pytest.approx(flat(other))


class TestEachBackend:
    """The same code, the same mutations, the same values at the far end."""

    def serve(self, base: mb.BaseComponentMetrics) -> None:
        container = base.container
        api = Api(base)
        # Thresholds fire whatever the backend is.
        assert container.bus is not None
        with container.bus.on_threshold('{__name__="app_kv_usage_ratio"}', above=0.9) as crossings:
            api.serve()
            assert crossings.get(timeout=10).value == 0.91
        container.flush(20)
        # What the handles say is the same, too.
        assert isinstance(api.requests.labels("GET"), mb.MetricCounter)
        assert api.requests.labels("GET").get() == 75
        assert api.work.get() == 50
        assert api.kv.get() == pytest.approx(0.74)
        assert api.seconds.get().sum == pytest.approx(99)
        assert api.seconds.get().buckets == [(0.25, 13), (1, 51), (float("inf"), 100)]
        assert api.cache.hits_total.labels("ram").get() == 200
        same(scraped(container.export_prometheus()), SERVED)

    @pytest.mark.parametrize("by", ["constructor", "environment"])
    def test_prometheus(self, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("METRICBUS_PREFIX", "app")
        base = mb.BaseComponentMetrics.from_env() if by == "environment" else mb.BaseComponentMetrics.new_prometheus("app")
        self.serve(base)
        assert base.container.bus is not None
        with mb.Exporter(base.container.bus, process_metrics=False).serve("127.0.0.1:0") as server:
            with urllib.request.urlopen(server.url) as answer:
                text = answer.read().decode()
        same({name: value for name, value in scraped(text).items() if name.startswith("app_")}, SERVED)
        base.container.shutdown(20)

    @pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
    @pytest.mark.parametrize("by", ["constructor", "environment"])
    def test_otlp(self, by: str, protocol: Any, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
        if by == "environment":
            monkeypatch.setenv("METRICBUS_PREFIX", "app")
            monkeypatch.setenv("METRICBUS_BACKEND", "otlp")
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url(protocol))
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
            monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "host.name=h-1")
            base = mb.BaseComponentMetrics.from_env()
        else:
            options = mb.OtlpOptions(collector.url(protocol), protocol=protocol, resource={"host.name": "h-1"})
            base = mb.BaseComponentMetrics.new_otlp("app", options)
        self.serve(base)
        base.container.shutdown(20)
        points = collector.until(lambda points: len(points) >= len(SERVED))
        same(received(points), SERVED)
        assert {point.resource["service.name"] for point in points} == {"app"}
        assert {point.resource["host.name"] for point in points} == {"h-1"}
        seconds = [point for point in points if point.name == "app_latency_seconds"][-1]
        assert (seconds.min, seconds.max) == (0, 1.98)

    @pytest.mark.parametrize("by", ["constructor", "path in the environment", "environment"])
    def test_libnv(self, by: str, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "counted"
        monkeypatch.setenv("COUNTING_BACKEND_FILE", str(file))
        match by:
            case "constructor":
                base = mb.BaseComponentMetrics.new_libnv("shop", "app", library)
            case "path in the environment":
                monkeypatch.setenv("METRICBUS_LIBNV", str(library))
                base = mb.BaseComponentMetrics.new_libnv("shop", "app")
            case _:
                monkeypatch.setenv("METRICBUS_BACKEND", f"libnv:{library}")
                monkeypatch.setenv("METRICBUS_PREFIX", "app")
                monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
                base = mb.BaseComponentMetrics.from_env()
        self.serve(base)
        assert file.read_text().startswith("service shop\n")
        same(counted(file), SERVED)
        base.container.shutdown(20)

    def test_null(self) -> None:
        self.serve(mb.BaseComponentMetrics.new_null("app"))

    @pytest.mark.parametrize("by", ["constructor", "environment"])
    def test_tee(
        self, by: str, collector: Collector, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "counted"
        monkeypatch.setenv("COUNTING_BACKEND_FILE", str(file))
        if by == "environment":
            monkeypatch.setenv("METRICBUS_BACKEND", f"tee:prometheus,otlp,libnv:{library},null")
            monkeypatch.setenv("METRICBUS_PREFIX", "app")
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url())
            base = mb.BaseComponentMetrics.from_env()
        else:
            options = mb.OtlpOptions(collector.url())
            ends = [backends.Prometheus(), backends.Otlp(options), backends.Libnv("shop", "app", library), backends.Null()]
            base = mb.BaseComponentMetrics(mb.TeeContainer("app", ends))
        self.serve(base)
        base.container.shutdown(20)
        same(counted(file), SERVED)
        same(received(collector.until(lambda points: len(points) >= len(SERVED))), SERVED)


class TestLibrary:
    def test_values_are_those_of_the_library(self, library: Path) -> None:
        one = mb.LibnvContainer("shop", "app", library)
        jobs = one.create_counter("jobs_total", "Jobs.")
        jobs.inc(3)
        # It is told of all that is counted on the bus, whoever does it, and however it was declared.
        mb.PrometheusContainer("app", one.bus).create_counter("jobs_total", "Jobs.").inc(2)
        one.bus.counter("app_jobs_total", "Jobs.").inc(0.5)
        assert jobs.get() == 5.5
        one.shutdown()
        # Metrics can still be counted.
        jobs.inc()
        assert one.bus.snapshot().value("app_jobs_total") == 6.5

    def test_a_child_that_is_removed_is_gone_there(self, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = tmp_path / "counted"
        monkeypatch.setenv("COUNTING_BACKEND_FILE", str(file))
        container = mb.LibnvContainer("shop", "app", library)
        depths = container.create_gauge_family("depth", "Depth.", ("queue",))
        for queue in ("fast", "slow"):
            depths.labels(queue).set(1)
        assert depths.remove("fast")
        container.flush()
        assert counted(file) == {"app_depth{queue=slow}": 1}

    def test_threads_that_mutate_together_lose_nothing(self, library: Path) -> None:
        container = mb.LibnvContainer("shop", "app", library)
        jobs = container.create_counter("jobs_total", "Jobs.")

        def count() -> None:
            for _ in range(2_000):
                jobs.inc()

        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        container.flush()
        assert jobs.get() == 8_000

    def test_what_can_not_be_loaded_says_so(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(mb.BackendError, match="METRICBUS_LIBNV") as missing:
            mb.LibnvContainer("shop", "app")
        assert (missing.value.kind, missing.value.backend) == ("setting", None)
        with pytest.raises(mb.BackendError, match="can't be loaded") as wrong:
            mb.LibnvContainer("shop", "app", tmp_path / "none.so")
        assert (wrong.value.kind, wrong.value.backend) == ("setup", "libnv")
        assert wrong.value.why and wrong.value.why.startswith("the library ")
        with pytest.raises(mb.BackendError, match="give the service a name"):
            mb.LibnvContainer("", "app", tmp_path / "none.so")
        # A library, but none of ours.
        with pytest.raises(mb.BackendError, match="metricbus_backend"):
            mb.LibnvContainer("shop", "app", sys.modules["metricbus._metricbus"].__file__)


class TestErrors:
    @pytest.mark.parametrize(
        "variables, kind, why",
        [
            ({"METRICBUS_BACKEND": "promethus"}, "unknown", 'METRICBUS_BACKEND is "promethus", which names no backend.*there are '),
            ({"METRICBUS_BACKEND": "tee"}, "unknown", 'a tee is written "tee:A,B"'),
            ({"METRICBUS_BACKEND": "null:7"}, "setting", "takes nothing after its name"),
            ({"METRICBUS_BACKEND": "tee:null,tee:null"}, "unknown", "a tee can't be in a tee"),
            ({"METRICBUS_PREFIX": 'my"app'}, "setting", 'METRICBUS_PREFIX is "my.*app": no metric\'s name can begin with it'),
            ({"METRICBUS_BACKEND": "libnv"}, "setting", "METRICBUS_LIBNV"),
            (
                {"METRICBUS_BACKEND": "otlp", "OTEL_EXPORTER_OTLP_ENDPOINT": "collector"},
                "setting",
                'OTEL_EXPORTER_OTLP_ENDPOINT is "collector".*http://localhost:4318',
            ),
        ],
    )
    def test_a_wrong_variable_is_named_with_its_value_and_what_would_be_right(
        self, variables: dict[str, str], kind: str, why: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(mb.BackendError, match=why) as wrong:
            mb.BaseComponentMetrics.from_env()
        assert wrong.value.kind == kind
        assert wrong.value.why and wrong.value.why in str(wrong.value)

    def test_words_of_open_telemetry_that_are_not_known_are_logged_and_ignored(
        self, collector: Collector, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """So a deployment's setting for other programs keeps none of ours from starting, nor from exporting."""
        for name, value in {
            "METRICBUS_BACKEND": "otlp",
            "METRICBUS_PREFIX": "odd",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url(),
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "zstd",
            "OTEL_METRIC_EXPORT_INTERVAL": "1s",
            "OTEL_SDK_DISABLED": "1",
        }.items():
            monkeypatch.setenv(name, value)
        program = """
        import logging, sys
        logging.basicConfig(stream=sys.stdout, format="%(message)s")
        import metricbus as mb
        base = mb.BaseComponentMetrics.from_env()
        base.container.create_counter("jobs_total", "Jobs.").inc(3)
        base.container.shutdown(20)
        """
        said = run(program).stdout
        for name in ("PROTOCOL", "COMPRESSION", "INTERVAL", "DISABLED"):
            assert name in said, said
        collector.until(lambda points: any(point.name == "odd_jobs_total" and point.value == 3 for point in points))

    def test_a_variable_that_is_no_text_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("METRICBUS_BACKEND", os.fsdecode(b"null\xff"))
        with pytest.raises(mb.BackendError, match="METRICBUS_BACKEND.*not UTF-8"):
            mb.BaseComponentMetrics.from_env()
        monkeypatch.setenv("METRICBUS_BACKEND", "otlp")
        monkeypatch.setenv("OTEL_SERVICE_NAME", os.fsdecode(b"\xff"))
        with pytest.raises(mb.BackendError, match="OTEL_SERVICE_NAME.*not UTF-8"):
            mb.BaseComponentMetrics.from_env()

    @pytest.mark.parametrize(
        "options, why",
        [
            ({"protocol": "http/json"}, 'protocol is "http/json": "http/protobuf" or "grpc" would be right'),
            ({"temporality": "deltas"}, 'temporality is "deltas": "cumulative" or "delta" or "lowmemory"'),
            ({"histograms": "native"}, '"explicit" or "exponential"'),
            ({"compression": "zstd"}, '"none" or "gzip"'),
            ({"endpoint": "collector:4318"}, "endpoint"),
            ({"interval": 0}, "interval"),
            ({"headers": {"a b": "c"}}, "header"),
            ({"root_certificates": "/nowhere/ca.pem"}, "/nowhere/ca.pem"),
            ({"retry": (2, 1)}, "retry"),
        ],
    )
    def test_a_wrong_option_is_named(self, options: dict[str, Any], why: str) -> None:
        with pytest.raises(mb.BackendError, match=why):
            mb.OtlpContainer("app", mb.OtlpOptions(**options))

    def test_arguments_of_another_type_are_type_errors(self) -> None:
        with pytest.raises(TypeError, match="no options"):
            mb.OtlpContainer("app", "http://localhost:4318")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="endpoint= and metrics_endpoint= are both given"):
            mb.OtlpOptions("http://a", metrics_endpoint="http://b")
        with pytest.raises(TypeError, match="interval"):
            mb.OtlpOptions(interval="1s")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="is no bus"):
            mb.NullContainer("app", "bus")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="several of them in a list"):
            mb.TeeContainer("app", backends.Null())  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"Null is a class; Null\(…\) would be right"):
            mb.TeeContainer("app", [backends.Null])  # type: ignore[list-item]
        with pytest.raises(TypeError, match="can't be registered"):
            mb.BaseComponentMetrics.new_null().register(int)  # type: ignore[type-var]

    def test_options_from_the_environment_show_no_secret(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=s3cr3t")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
        shown = repr(mb.OtlpOptions.from_env())
        assert "s3cr3t" not in shown and "collector:4318" in shown

    def test_an_error_of_a_backend_can_be_pickled(self) -> None:
        with pytest.raises(mb.BackendError) as wrong:
            mb.LibnvContainer("shop", "app", "/none.so")
        copy = pickle.loads(pickle.dumps(wrong.value))
        assert (str(copy), copy.kind, copy.backend, copy.why) == (str(wrong.value), "setup", "libnv", wrong.value.why)

    def test_a_backend_can_not_be_written_in_python(self) -> None:
        class Mine:
            def declare(self, series: object) -> None: ...
            def inc(self, by: int) -> None: ...

        why = "can't be written in Python, since every mutating thread would have to take"
        with pytest.raises(TypeError, match=why):
            mb.TeeContainer("app", [Mine()])  # type: ignore[list-item]
        with pytest.raises(TypeError, match=why):
            mb.BackendContainer("app", Mine())  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"Inherited: a backend can't be written in Python"):

            class Inherited(backends.Backend):
                pass

        with pytest.raises(TypeError, match="one of metricbus.backends would be right"):
            mb.TeeContainer("app", [7])  # type: ignore[list-item]

    def test_a_container_of_another_kind_registers_no_component(self) -> None:
        class Elsewhere(mb.MetricContainer):
            create_counter = create_gauge = create_histogram = None  # type: ignore[assignment]
            create_counter_family = create_gauge_family = create_histogram_family = None  # type: ignore[assignment]
            get_metrics = export_prometheus = None  # type: ignore[assignment]

        base = mb.BaseComponentMetrics(Elsewhere())
        base.container.flush(1)
        asyncio.run(base.container.shutdown_async(1))
        with pytest.raises(TypeError, match="not on a bus"):
            base.register(Cache)


class Answers(http.server.BaseHTTPRequestHandler):
    """A collector in this process, in a thread of Python's: it can only answer if nobody holds the interpreter's lock."""

    requests = 0

    def do_POST(self) -> None:
        type(self).requests += 1
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def answering() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """Takes connections, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def url(server: socket.socket) -> str:
    return f"http://127.0.0.1:{server.getsockname()[1]}"


class TestFlush:
    def test_other_threads_run_meanwhile(self, answering: str) -> None:
        base = mb.BaseComponentMetrics.new_otlp("app", mb.OtlpOptions(answering))
        base.container.create_counter("jobs_total", "Jobs.").inc()
        before = Answers.requests
        base.container.flush(timedelta(seconds=20))
        base.container.shutdown(20)
        assert Answers.requests >= before + 2
        # Again: nothing is left to do.
        base.container.shutdown(20)

    def test_the_event_loop_goes_on_meanwhile(self) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while line := await reader.readline():
                length = 0
                while line.strip():
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.partition(b":")[2])
                    line = await reader.readline()
                await reader.readexactly(length)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\ncontent-type: application/x-protobuf\r\n\r\n")
                await writer.drain()
            writer.close()

        async def main() -> None:
            server = await asyncio.start_server(answer, "127.0.0.1", 0)
            base = mb.BaseComponentMetrics.new_otlp("app", mb.OtlpOptions(url(server.sockets[0])))
            base.container.create_counter("jobs_total", "Jobs.").inc()
            await base.container.flush_async(20)
            await base.container.shutdown_async(20)
            server.close()

        asyncio.run(asyncio.wait_for(main(), 60))

    def test_what_is_not_there_in_time_is_an_error(self, silent: socket.socket) -> None:
        container = mb.OtlpContainer("app", mb.OtlpOptions(url(silent)))
        container.create_counter("jobs_total", "Jobs.").inc()
        with pytest.raises(mb.BackendError, match="1 points are left") as late:
            container.flush(0.05)
        assert (late.value.kind, late.value.backend) == ("deadline", "otlp")
        with pytest.raises(mb.BackendError, match="not done within 50ms"):
            asyncio.run(container.shutdown_async(0.05))
        # Metrics can still be counted.
        container.create_counter("jobs_total", "Jobs.").inc()
        with pytest.raises(ValueError, match="deadline is -1"):
            container.flush(-1)
        with pytest.raises(TypeError, match="deadline"):
            container.flush("soon")  # type: ignore[arg-type]

    def test_one_of_a_tee_that_is_gone_does_not_keep_the_others(
        self, silent: socket.socket, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "counted"
        monkeypatch.setenv("COUNTING_BACKEND_FILE", str(file))
        options = mb.OtlpOptions(url(silent))
        tee = mb.TeeContainer("app", [backends.Otlp(options), backends.Libnv("shop", "app", library)])
        tee.create_counter("jobs_total", "Jobs.").inc(3)
        with pytest.raises(mb.BackendError, match="otlp"):
            tee.shutdown(0.2)
        assert counted(file) == {"app_jobs_total{}": 3}

    def test_ctrl_c_is_heard_meanwhile(self, run: Run) -> None:
        run(
            """
            import os, signal, socket, threading
            import metricbus as mb
            server = socket.create_server(("127.0.0.1", 0))
            container = mb.OtlpContainer("app", mb.OtlpOptions(f"http://127.0.0.1:{server.getsockname()[1]}"))
            container.create_counter("jobs_total", "Jobs.").inc()

            def interrupt():
                server.accept()
                os.kill(os.getpid(), signal.SIGINT)

            threading.Thread(target=interrupt).start()
            try:
                container.flush(3600)
            except KeyboardInterrupt:
                raise SystemExit(3)
            """,
            status=3,
        )

    def test_a_backend_lives_as_long_as_a_metric_on_its_bus(self, collector: Collector) -> None:
        def made() -> mb.MetricCounter:
            container = mb.OtlpContainer("app", mb.OtlpOptions(collector.url(), interval=0.01))
            return container.create_counter("jobs_total", "Jobs.")

        jobs = made()
        gc.collect()
        jobs.inc(3)
        collector.until(lambda points: bool(points) and points[-1].value == 3)
        jobs.inc(4)
        # And what was counted last is sent when it goes.
        del jobs
        collector.until(lambda points: points[-1].value == 7)

    def test_what_is_counted_before_a_container_comes_is_reported(self, bus: mb.MetricBus, collector: Collector) -> None:
        bus.counter("jobs_total", "Jobs.").inc(3)
        container = mb.OtlpContainer("app", mb.OtlpOptions(collector.url(), temporality="delta"), bus)
        assert container.bus is bus
        container.shutdown(20)
        (point,) = collector.until(bool)
        assert (point.name, point.value, point.temporality) == ("jobs_total", 3, "delta")

    def test_histograms_can_be_exported_with_exponential_buckets(self, collector: Collector) -> None:
        container = mb.OtlpContainer("app", mb.OtlpOptions(collector.url(), histograms="exponential", compression="gzip"))
        seconds = container.create_histogram("seconds", "S.")
        for i in range(100):
            seconds.observe(i / 100)
        container.shutdown(20)
        (point,) = collector.until(bool)
        assert (point.kind, point.count, point.min, point.max) == ("ExponentialHistogram", 100, 0, 0.99)
        assert sum(point.buckets) >= 99


FORK = ("-W", "ignore::DeprecationWarning")


class TestHooks:
    """What is to run before a scrape runs before an export, too."""

    @pytest.mark.parametrize("by", ["flush", "flush_async", "shutdown", "shutdown_async", "interval", "environment", "tee"])
    def test_they_run_before_an_export(self, by: str, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
        options = mb.OtlpOptions(collector.url(), interval=0.01 if by == "interval" else 3600)
        if by == "environment":
            monkeypatch.setenv("METRICBUS_BACKEND", "otlp")
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url())
            base = mb.BaseComponentMetrics.from_env()
        elif by == "tee":
            base = mb.BaseComponentMetrics(mb.TeeContainer("", [backends.Prometheus(), backends.Otlp(options)]))
        else:
            base = mb.BaseComponentMetrics.new_otlp("", options)
        container = base.container
        bus = container.bus
        assert bus is not None
        bus.gauge("depth", "Depth.").set_function(lambda: 42)
        bus.on_collect(lambda: bus.gauge("measured", "Measured.").set(7))

        @bus.on_collect
        def fails() -> None:
            raise KeyError("costs nobody else")

        match by:
            case "flush_async" | "shutdown_async":
                asyncio.run(getattr(container, by)(20))
            case "shutdown":
                container.shutdown(20)
            case "interval":
                pass
            case _:
                container.flush(20)
        points = collector.until(lambda points: {"depth", "measured"} <= {point.name for point in points})
        assert {(point.name, point.value) for point in points} == {("depth", 42), ("measured", 7)}
        container.shutdown(20)

    @pytest.mark.parametrize("by", ["flush", "end"])
    def test_they_run_before_a_library_is_flushed(self, by: str, run: Run, library: Path, tmp_path: Path) -> None:
        file = tmp_path / "counted"
        run(
            f"""
            import os
            os.environ["COUNTING_BACKEND_FILE"] = {str(file)!r}
            import metricbus as mb
            container = mb.LibnvContainer("shop", "app", {str(library)!r})
            container.create_gauge("depth", "Depth.").set_function(lambda: 42)
            if {by == "flush"}:
                container.flush(20)
                os._exit(0)
            """
        )
        assert counted(file) == {"app_depth{}": 42}

    def test_they_run_when_a_program_or_a_child_of_it_ends(self, run: Run, collector: Collector) -> None:
        run(
            f"""
            import os, sys
            import metricbus as mb
            container = mb.OtlpContainer("app", mb.OtlpOptions({collector.url()!r}))
            container.create_gauge("pid", "Of the process.").set_function(os.getpid)
            jobs = container.create_counter("jobs_total", "Jobs.")
            child = os.fork()
            jobs.inc()
            if child:
                assert os.waitpid(child, 0)[1] == 0
            sys.exit(0)
            """,
            *FORK,
        )
        points = collector.until(lambda points: len(points) >= 4)
        assert len({point.value for point in points if point.name == "app_pid"}) == 2

    @pytest.mark.parametrize("how", ["threading.Event().wait()", "spin()"])
    def test_one_that_hangs_is_waited_for_once_and_a_program_ends(self, run: Run, collector: Collector, how: str) -> None:
        run(
            f"""
            import threading
            import metricbus as mb
            begun = []

            def spin():
                while True:
                    pass

            def hangs():
                begun.append(None)
                {how}

            container = mb.OtlpContainer("app", mb.OtlpOptions({collector.url()!r}))
            jobs = container.create_counter("jobs_total", "Jobs.")
            jobs.inc(3)
            container.bus.on_collect(hangs)
            for _ in range(3):
                container.flush(20)
            assert len(begun) == 1
            jobs.inc()
            """,
            timeout=30,
        )
        collector.until(lambda points: bool(points) and points[-1].value == 4)


class TestFork:
    def test_a_child_exports_what_it_counts_as_another_instance(self, run: Run, collector: Collector) -> None:
        run(
            f"""
            import os
            import metricbus as mb
            base = mb.BaseComponentMetrics.new_otlp("app", mb.OtlpOptions({collector.url()!r}))
            jobs = base.container.create_counter("jobs_total", "Jobs.")
            jobs.inc(5)
            base.container.flush(20)
            child = os.fork()
            if child == 0:
                try:
                    jobs.inc(7)
                    base.container.flush(20)
                    jobs.inc(1)
                    base.container.shutdown(20)
                    os._exit(0)
                finally:
                    os._exit(1)
            assert os.waitpid(child, 0)[1] == 0
            jobs.inc()
            base.container.shutdown(20)
            """,
            *FORK,
        )
        points = collector.until(lambda points: len(points) >= 4)
        values: dict[str, list[float | None]] = {}
        for point in points:
            values.setdefault(point.resource["service.instance.id"], []).append(point.value)
        assert sorted(map(tuple, values.values())) == [(5, 6), (7, 8)]

    def test_a_child_that_only_counts_exports_when_it_ends(self, run: Run, collector: Collector) -> None:
        run(
            f"""
            import os, sys
            import metricbus as mb
            base = mb.BaseComponentMetrics.new_otlp("app", mb.OtlpOptions({collector.url()!r}))
            jobs = base.container.create_counter("jobs_total", "Jobs.")
            child = os.fork()
            jobs.inc(5 if child else 7)
            if child:
                assert os.waitpid(child, 0)[1] == 0
            sys.exit(0)
            """,
            *FORK,
        )
        points = collector.until(lambda points: len(points) >= 2)
        assert sorted(point.value or 0 for point in points) == [5, 7]

    def test_containers_that_send_nothing_work_in_a_child_as_ever(self, run: Run) -> None:
        run(
            """
            import os
            import metricbus as mb
            containers = [mb.PrometheusContainer("app"), mb.NullContainer("app"), mb.TeeContainer("app", [mb.backends.Null()])]
            jobs = [container.create_counter("jobs_total", "Jobs.") for container in containers]
            for one in jobs:
                one.inc(5)
            child = os.fork()
            if child == 0:
                try:
                    for container, one in zip(containers, jobs):
                        one.inc(7)
                        container.flush(20)
                        container.shutdown(20)
                        assert one.get() == 7
                    os._exit(0)
                finally:
                    os._exit(1)
            assert os.waitpid(child, 0)[1] == 0
            """,
            *FORK,
        )

    def test_a_child_of_what_was_shut_down_reports_nothing(self, run: Run, collector: Collector) -> None:
        run(
            f"""
            import os
            import metricbus as mb
            base = mb.BaseComponentMetrics.new_otlp("app", mb.OtlpOptions({collector.url()!r}))
            jobs = base.container.create_counter("jobs_total", "Jobs.")
            jobs.inc(5)
            base.container.shutdown(20)
            child = os.fork()
            if child == 0:
                jobs.inc(7)
                try:
                    base.container.flush(20)
                    os._exit(1)
                except mb.ForkedError as error:
                    assert "shut down before" in str(error), error
                base.container.shutdown(20)
                os._exit(0 if jobs.get() == 7 else 1)
            assert os.waitpid(child, 0)[1] == 0
            """,
            *FORK,
        )
        assert [point.value for point in collector.until(bool)] == [5]

    def test_children_of_one_parent_are_told_apart(self, run: Run, collector: Collector) -> None:
        run(
            f"""
            import os, sys
            import metricbus as mb
            base = mb.BaseComponentMetrics.new_otlp("app", mb.OtlpOptions({collector.url()!r}))
            jobs = base.container.create_counter("jobs_total", "Jobs.")
            for n in range(1, 4):
                child = os.fork()
                if child == 0:
                    jobs.inc(n)
                    sys.exit(0)
                assert os.waitpid(child, 0)[1] == 0
            base.container.shutdown(20)
            """,
            *FORK,
        )
        points = collector.until(lambda points: len(points) >= 4)
        assert sorted(point.value or 0 for point in points) == [0, 1, 2, 3]
        assert len({point.resource["service.instance.id"] for point in points}) == 4

    def test_a_library_stays_with_the_parent(self, run: Run, library: Path, tmp_path: Path) -> None:
        done = run(
            f"""
            import os, logging, threading
            os.environ["COUNTING_BACKEND_FILE"] = {str(tmp_path / "parent")!r}
            import metricbus as mb
            base = mb.BaseComponentMetrics.new_libnv("shop", "app", {str(library)!r})
            jobs = base.container.create_counter("jobs_total", "Jobs.")
            jobs.inc(5)
            logged = threading.Event()

            class Log(logging.Handler):
                def emit(self, record):
                    if "forked from one in which a library counts" in record.getMessage():
                        logged.set()

            logging.getLogger("metricbus").addHandler(Log())
            child = os.fork()
            if child == 0:
                try:
                    jobs.inc(7)
                    assert logged.wait(20)
                    assert jobs.get() == 7
                    try:
                        base.container.flush(20)
                    except mb.ForkedError as error:
                        print(error, flush=True)
                    # One of its own works as ever.
                    os.environ["COUNTING_BACKEND_FILE"] = {str(tmp_path / "child")!r}
                    own = mb.BaseComponentMetrics.new_libnv("shop", "own", {str(library)!r})
                    own.container.create_counter("jobs_total", "Jobs.").inc(2)
                    own.container.shutdown(20)
                    os._exit(0)
                finally:
                    os._exit(1)
            assert os.waitpid(child, 0)[1] == 0
            jobs.inc()
            assert jobs.get() == 6
            base.container.shutdown(20)
            """,
            *FORK,
        )
        assert "make a container here" in done.stdout
        assert counted(tmp_path / "parent") == {"app_jobs_total{}": 6}
        assert counted(tmp_path / "child") == {"own_jobs_total{}": 2}

    def test_a_tee_keeps_what_can_be_kept(self, run: Run, library: Path, collector: Collector) -> None:
        run(
            f"""
            import os
            os.environ["METRICBUS_BACKEND"] = "tee:otlp,libnv:{library}"
            os.environ["METRICBUS_PREFIX"] = "app"
            os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = {collector.url()!r}
            import metricbus as mb
            base = mb.BaseComponentMetrics.from_env()
            jobs = base.container.create_counter("jobs_total", "Jobs.")
            child = os.fork()
            if child == 0:
                try:
                    jobs.inc(7)
                    try:
                        base.container.flush(20)
                    except mb.ForkedError:
                        os._exit(0)
                finally:
                    os._exit(1)
            assert os.waitpid(child, 0)[1] == 0
            """,
            *FORK,
        )
        points = collector.until(lambda points: any(point.value == 7 for point in points))
        assert points[-1].name == "app_jobs_total"


STUBBORN = """
#include "metricbus.hpp"
#include <unistd.h>

struct nothing : metricbus::plugin::series {
    void get_value(mb_value &) const override {}
};

struct stubborn : metricbus::plugin::backend {
    explicit stubborn(const metricbus::plugin::config &) {}

    std::unique_ptr<metricbus::plugin::series> declare(const metricbus::plugin::declared &series) override {
        if (series.name == "app_unwanted_total") {
            throw std::runtime_error("nobody wants that");
        }
        return std::make_unique<nothing>();
    }

    void flush(std::chrono::nanoseconds) override {
        for (;;) {
            pause();
        }
    }
};

METRICBUS_BACKEND(stubborn, "stubborn")
"""


@pytest.fixture(scope="session")
def stubborn(compiled: Compile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that refuses a metric, and does not come back from a flush."""
    source = tmp_path_factory.mktemp("source") / "stubborn.cpp"
    source.write_text(STUBBORN)
    return compiled(source)


class TestStubbornLibrary:
    def test_what_it_refuses_is_an_error_of_the_metric(self, stubborn: Path) -> None:
        container = mb.LibnvContainer("shop", "app", stubborn)
        with pytest.raises(mb.DeclareError, match="app_unwanted_total.*nobody wants that"):
            container.create_counter("unwanted_total", "U.")
        with pytest.raises(mb.DeclareError, match="nobody wants that"):
            container.scope.counter("unwanted_total", "U.")
        # Of a family only a child can be refused. It counts on the bus.
        family = mb.LibnvContainer("shop", "app", stubborn).create_counter_family("unwanted_total", "U.", ("queue",))
        child = family.labels("fast")
        child.inc(2)
        assert child.get() == 2

    def test_it_does_not_keep_a_program_from_ending(self, run: Run, stubborn: Path) -> None:
        done = run(
            f"""
            import metricbus as mb
            container = mb.LibnvContainer("shop", "app", {str(stubborn)!r})
            container.create_gauge("depth", "D.")
            """,
            timeout=30,
        )
        assert done.stderr == "metricbus: at the end of the program, not every backend was done within 2s\n"


class TestEnd:
    @pytest.mark.parametrize("kept", [True, False])
    def test_a_program_that_ends_has_sent_what_it_counted(self, run: Run, collector: Collector, kept: bool) -> None:
        done = run(
            f"""
            import metricbus as mb

            def main():
                base = mb.BaseComponentMetrics.new_otlp("app", mb.OtlpOptions({collector.url()!r}))
                base.container.create_counter("jobs_total", "Jobs.").inc(3)
                return base

            kept = main()
            if not {kept}:
                del kept
            """
        )
        assert (done.stdout, done.stderr) == ("", "")
        (point,) = collector.until(bool)
        assert point.value == 3

    def test_a_library_is_flushed_too(self, run: Run, library: Path, tmp_path: Path) -> None:
        file = tmp_path / "counted"
        run(
            f"""
            import os
            os.environ["COUNTING_BACKEND_FILE"] = {str(file)!r}
            import metricbus as mb
            mb.LibnvContainer("shop", "app", {str(library)!r}).create_counter("jobs_total", "Jobs.").inc(3)
            """
        )
        assert counted(file) == {"app_jobs_total{}": 3}

    @pytest.mark.parametrize("mutating", [False, True])
    def test_a_collector_that_hangs_does_not_keep_a_program_from_ending(
        self, run: Run, silent: socket.socket, mutating: bool
    ) -> None:
        done = run(
            f"""
            import threading
            import metricbus as mb
            base = mb.BaseComponentMetrics.new_otlp("app", mb.OtlpOptions({url(silent)!r}))
            jobs = base.container.create_counter("jobs_total", "Jobs.")
            jobs.inc(3)

            def mutate():
                while True:
                    jobs.inc()

            if {mutating}:
                threading.Thread(target=mutate, daemon=True).start()
            """,
            timeout=30,
        )
        assert "at the end of the program" in done.stderr and "1 points are left" in done.stderr
        assert done.stderr.count("\n") == 1

    def test_an_exception_is_told_as_ever(self, run: Run, collector: Collector) -> None:
        done = run(
            f"""
            import metricbus as mb
            base = mb.BaseComponentMetrics.new_otlp("app", mb.OtlpOptions({collector.url()!r}))
            base.container.create_counter("jobs_total", "Jobs.").inc(3)
            raise KeyError("lost")
            """,
            status=1,
        )
        assert done.stderr.rstrip().endswith("KeyError: 'lost'")
        assert collector.until(bool)[0].value == 3


def test_the_environment_is_read_into_a_bus_that_is_there(bus: mb.MetricBus) -> None:
    base = mb.BaseComponentMetrics.from_env(bus)
    base.container.create_counter("jobs_total", "Jobs.").inc()
    assert bus.snapshot().value("jobs_total") == 1
    assert repr(base) == "<BaseComponentMetrics on <BackendContainer ''>>"


def test_a_container_takes_a_label_called_prefix() -> None:
    container = mb.PrometheusContainer("app")
    container.create_counter("jobs_total", "Jobs.", {"prefix": "p", "labels": "l"}).inc()
    container.create_gauge_family("depth", "Depth.", ["self"], {"prefix": "p"}).labels("s").set(2)
    assert str(container.create_histogram("s", "S.", {"prefix": "p"}, [1.0]).series) == 'app_s{prefix="p"}'
    snapshot = container.get_metrics()
    assert snapshot.value("app_jobs_total", prefix="p", labels="l") == 1
    assert snapshot.value("app_depth", **{"prefix": "p", "self": "s"}) == 2


def test_containers_say_what_they_are() -> None:
    for container in (mb.PrometheusContainer("app"), mb.NullContainer("app_"), mb.TeeContainer("app", [])):
        assert repr(container) == f"<{type(container).__name__} 'app_'>"
        assert container.scope.prefix == "app_"


def test_backends_can_be_compared_and_shown() -> None:
    ends: list[backends.Backend] = [backends.Null(), backends.Prometheus()]
    assert ends[0] == backends.Null() and ends[0] != ends[1]
    shown = json.dumps([repr(end) for end in (backends.Null(), backends.Libnv("shop", "app", "/lib.so"))])
    assert "Libnv(service_name='shop', prefix='app', path='/lib.so')" in shown


