"""One component, and the line that says where its metrics go.

    python switch_backend.py                                                # prometheus
    python switch_backend.py --backend null
    python switch_backend.py --backend otlp                                 # to http://localhost:4318
    python switch_backend.py --backend libnv:capi/examples/build/libcounting.so
    python switch_backend.py --backend tee:prometheus,otlp

METRICBUS_BACKEND, METRICBUS_PREFIX and OpenTelemetry's own variables say the same without an argument.
"""

from __future__ import annotations

import argparse
import os

import metricbus as mb


class Cache(mb.Component, prefix="cache_"):
    """The component's cache: metrics that are a class go the same way."""

    hits_total: mb.Counter = mb.field("Lookups that found something.")


class Api:
    """The component. Nothing in it knows of a backend."""

    def __init__(self, base: mb.BaseComponentMetrics) -> None:
        container, labels = base.container, {"service": "api"}
        self.requests = container.create_counter_family("requests_total", "Requests served.", ("method",), labels)
        self.kv_usage = container.create_gauge("kv_usage_ratio", "Share of the KV cache in use.", labels)
        self.latency = container.create_histogram("latency_seconds", "Time to answer.", labels)
        self.cache = base.register(Cache)

    def serve(self) -> None:
        """Serves 100 made-up requests."""
        get, post = self.requests.labels("GET"), self.requests.labels("POST")
        for i in range(100):
            (get if i % 4 else post).inc()
            if i % 3 == 0:
                self.cache.hits_total.inc()
            self.kv_usage.set(i / 100)
            self.latency.observe(i / 1_000)


def run(base: mb.BaseComponentMetrics, deadline: float) -> None:
    """Lets the component work, and says what came of it."""
    api = Api(base)
    bus = base.container.bus
    assert bus is not None
    # Whatever the backend is, the bus is there, and thresholds fire.
    with bus.on_threshold('{__name__=~".*kv_usage_ratio"}', above=0.9, clear_below=0.8) as crossings:
        api.serve()
        crossing = crossings.get(timeout=5)
    print(f"threshold: {crossing.series} reached {crossing.value}")
    print(f"GET requests: {api.requests.labels('GET').get():.0f}")
    print(f"KV cache in use: {api.kv_usage.get()}")
    print(f"answers: {api.latency.get().count}")
    try:
        base.container.shutdown(deadline)
        print("everything is where it belongs")
    except mb.BackendError as error:
        print(f"not everything arrived: {error}")
    print("\nas Prometheus would see it:\n")
    base.container.print_metrics()


def main() -> None:
    parser = argparse.ArgumentParser(description="Serves 100 made-up requests, and reports them wherever you say.")
    parser.add_argument("--backend", help="prometheus, otlp, libnv:PATH, null, or tee:A,B (default: $METRICBUS_BACKEND, or prometheus)")
    parser.add_argument("--prefix", help="what all names begin with (default: $METRICBUS_PREFIX, or switch)")
    parser.add_argument("--deadline", type=float, default=5.0, help="seconds to wait at the end (default: %(default)s)")
    options = parser.parse_args()
    if options.backend:
        os.environ["METRICBUS_BACKEND"] = options.backend
    if options.prefix:
        os.environ["METRICBUS_PREFIX"] = options.prefix
    os.environ.setdefault("METRICBUS_PREFIX", "switch")
    try:
        # The line.
        base = mb.BaseComponentMetrics.from_env()
    except mb.BackendError as error:
        parser.error(str(error))
    run(base, options.deadline)


if __name__ == "__main__":
    main()
