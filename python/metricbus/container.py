"""Containers, for components that choose their backend when they start.

A component that knows its backend is a `Component`. One that doesn't creates its metrics through a `MetricContainer`, and uses
no more of them than the protocols here say. `PrometheusContainer` is the container on a bus.

>>> import metricbus
>>> base = metricbus.BaseComponentMetrics.new_prometheus("myapp")
>>> requests = base.container.create_counter("requests_total", "Requests.", {"service": "api"})
>>> requests.inc(6)
>>> print(base.container.export_prometheus(), end="")
# HELP myapp_requests_total Requests.
# TYPE myapp_requests_total counter
myapp_requests_total{service="api"} 6
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Protocol, TypeVar, runtime_checkable

from ._metricbus import Counter, Gauge, Histogram, HistogramSnapshot, MetricBus, Scope, Snapshot

__all__ = [
    "BaseComponentMetrics",
    "MetricContainer",
    "MetricCounter",
    "MetricFamily",
    "MetricGauge",
    "MetricHistogram",
    "PrometheusContainer",
]

_M_co = TypeVar("_M_co", covariant=True)


@runtime_checkable
class MetricCounter(Protocol):
    """A counter of any backend. `metricbus.Counter` is one."""

    def inc(self, amount: float | None = None, /) -> None:
        """Adds `amount`, or 1."""

    def get(self) -> float:
        """The value now; 0 for a backend that can't be read back."""


@runtime_checkable
class MetricGauge(Protocol):
    """A gauge of any backend. `metricbus.Gauge` is one."""

    def set(self, value: float, /) -> None:
        """Sets it."""

    def inc(self, amount: float | None = None, /) -> None:
        """Raises it by `amount`, or by 1."""

    def dec(self, amount: float | None = None, /) -> None:
        """Lowers it by `amount`, or by 1."""

    def get(self) -> float:
        """The value now; NaN for a backend that can't be read back."""


@runtime_checkable
class MetricHistogram(Protocol):
    """A histogram of any backend. `metricbus.Histogram` is one."""

    def observe(self, amount: float, /) -> None:
        """Counts one observation."""

    def get(self) -> HistogramSnapshot:
        """What it has counted so far."""


@runtime_checkable
class MetricFamily(Protocol[_M_co]):
    """Metrics of one name that differ in the values of their labels."""

    def labels(self, *values: object) -> _M_co:
        """The one with these values, in the order in which the labels were named. It is made where there is none."""

    def remove(self, *values: object) -> bool:
        """Takes it away, and says whether there was one."""


class MetricContainer(ABC):
    """Where a component's metrics are made, and what they amount to.

    Names come without the container's prefix. `labels` are names and values; the labels of a family, `names`, come after
    them. Creating a metric again in the same way gives the same metric. Raises `DeclareError` where a name or label can't be.
    """

    @abstractmethod
    def create_counter(self, name: str, help: str, labels: Mapping[str, object] | None = None) -> MetricCounter:
        """A counter with these labels."""

    @abstractmethod
    def create_gauge(self, name: str, help: str, labels: Mapping[str, object] | None = None) -> MetricGauge:
        """A gauge with these labels."""

    @abstractmethod
    def create_histogram(
        self,
        name: str,
        help: str,
        labels: Mapping[str, object] | None = None,
        buckets: Iterable[float] | None = None,
    ) -> MetricHistogram:
        """A histogram with these labels and buckets."""

    @abstractmethod
    def create_counter_family(
        self, name: str, help: str, names: Iterable[str], labels: Mapping[str, object] | None = None
    ) -> MetricFamily[MetricCounter]:
        """Counters that differ in the values of the labels `names`."""

    @abstractmethod
    def create_gauge_family(
        self, name: str, help: str, names: Iterable[str], labels: Mapping[str, object] | None = None
    ) -> MetricFamily[MetricGauge]:
        """Gauges that differ in the values of the labels `names`."""

    @abstractmethod
    def create_histogram_family(
        self,
        name: str,
        help: str,
        names: Iterable[str],
        labels: Mapping[str, object] | None = None,
        buckets: Iterable[float] | None = None,
    ) -> MetricFamily[MetricHistogram]:
        """Histograms that differ in the values of the labels `names`."""

    @abstractmethod
    def get_metrics(self) -> Snapshot:
        """Every metric of the backend, as far as it can be read back, with its value now."""

    @abstractmethod
    def export_prometheus(self) -> str:
        """Every metric in Prometheus text 0.0.4, without what an exporter adds about the process."""

    @property
    def bus(self) -> MetricBus | None:
        """The bus on which these metrics can be subscribed to; `None` for a backend without one."""
        return None

    def print_metrics(self) -> None:
        """Prints `export_prometheus` to standard output."""
        sys.stdout.write(self.export_prometheus())


class PrometheusContainer(MetricContainer):
    """The container on a bus, whose metrics a Prometheus scrapes.

    `prefix` comes before each name, with a `_` between: `myapp` makes `myapp_requests_total`. Without `bus` it has one of its own.
    """

    def __init__(self, prefix: str = "", bus: MetricBus | None = None) -> None:
        self._bus = MetricBus() if bus is None else bus
        self._scope = self._bus.scope(f"{prefix}_" if prefix and not prefix.endswith("_") else prefix)

    @property
    def bus(self) -> MetricBus:
        """The bus."""
        return self._bus

    def _labelled(self, labels: Mapping[str, object] | None) -> Scope:
        return self._scope.scope("", **(labels or {}))

    def create_counter(self, name: str, help: str, labels: Mapping[str, object] | None = None) -> Counter:
        """A counter with these labels."""
        return self._labelled(labels).counter(name, help)

    def create_gauge(self, name: str, help: str, labels: Mapping[str, object] | None = None) -> Gauge:
        """A gauge with these labels."""
        return self._labelled(labels).gauge(name, help)

    def create_histogram(
        self,
        name: str,
        help: str,
        labels: Mapping[str, object] | None = None,
        buckets: Iterable[float] | None = None,
    ) -> Histogram:
        """A histogram with these labels and buckets."""
        return self._labelled(labels).histogram(name, help, buckets=buckets)

    def create_counter_family(
        self, name: str, help: str, names: Iterable[str], labels: Mapping[str, object] | None = None
    ) -> MetricFamily[Counter]:
        """Counters that differ in the values of the labels `names`."""
        return self._labelled(labels).counter(name, help, _some(name, names))

    def create_gauge_family(
        self, name: str, help: str, names: Iterable[str], labels: Mapping[str, object] | None = None
    ) -> MetricFamily[Gauge]:
        """Gauges that differ in the values of the labels `names`."""
        return self._labelled(labels).gauge(name, help, _some(name, names))

    def create_histogram_family(
        self,
        name: str,
        help: str,
        names: Iterable[str],
        labels: Mapping[str, object] | None = None,
        buckets: Iterable[float] | None = None,
    ) -> MetricFamily[Histogram]:
        """Histograms that differ in the values of the labels `names`."""
        return self._labelled(labels).histogram(name, help, _some(name, names), buckets=buckets)

    def get_metrics(self) -> Snapshot:
        """Every metric of the bus with its value now."""
        return self._bus.snapshot()

    def export_prometheus(self) -> str:
        """Every metric of the bus in Prometheus text 0.0.4, without what an exporter adds about the process."""
        return self._bus.export_prometheus()

    def __repr__(self) -> str:
        return f"<PrometheusContainer {self._scope.prefix!r}>"


def _some(name: str, names: Iterable[str]) -> str | tuple[str, ...]:
    # One text is told from names where metrics are declared.
    some = names if isinstance(names, str) else tuple(names)
    if not some:
        raise ValueError(f"the family {name!r} has no label names; without any it is created as a single metric")
    return some


class BaseComponentMetrics:
    """What every component has: a container to create its metrics with."""

    def __init__(self, container: MetricContainer) -> None:
        self.container = container

    @classmethod
    def new_prometheus(cls, prefix: str = "", bus: MetricBus | None = None) -> BaseComponentMetrics:
        """On a `PrometheusContainer`."""
        return cls(PrometheusContainer(prefix, bus))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self.container!r}>"
