"""Containers, for components that choose their backend when they start.

A component that knows its backend is a `Component`. One that doesn't creates its metrics through a `MetricContainer`, and uses
no more of them than the protocols here say. The containers here are scopes of a bus with a backend beside it, so thresholds, rules,
windows and `/metrics` work with each of them, and everything on the bus is reported, however it was declared. They differ in where
that goes; the line that makes one is the only one that says it, or `METRICBUS_BACKEND` does (`BaseComponentMetrics.from_env`).

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

import asyncio
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from . import backends as _backends
from ._metricbus import Counter, Gauge, Histogram, HistogramSnapshot, MetricBus, OtlpOptions, Reporter, Scope, Snapshot
from .component import Component

if TYPE_CHECKING:
    import os

__all__ = [
    "BackendContainer",
    "BaseComponentMetrics",
    "LibnvContainer",
    "MetricContainer",
    "MetricCounter",
    "MetricFamily",
    "MetricGauge",
    "MetricHistogram",
    "NullContainer",
    "OtlpContainer",
    "PrometheusContainer",
    "TeeContainer",
]

_Component = TypeVar("_Component", bound=Component)

# Seconds that a flush may take where nothing else is said.
_DEADLINE = 5.0

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

    def get(self) -> float | None:
        """The value now, `None` where there was none yet; NaN for a backend that can't be read back."""


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

    @property
    def scope(self) -> Scope | None:
        """The scope on which these metrics are made, for a `Component` to be declared on; `None` for a backend without a bus."""
        return None

    def print_metrics(self) -> None:
        """Prints `export_prometheus` to standard output."""
        sys.stdout.write(self.export_prometheus())

    def flush(self, deadline: float | timedelta = _DEADLINE) -> None:
        """Has what was counted until now at the far end when it returns, or raises `BackendError` when the time is over.

        Waits, with other threads running meanwhile: not for an event loop, which has `flush_async`.
        """

    def shutdown(self, deadline: float | timedelta = _DEADLINE) -> None:
        """The last flush: nothing is reported after it, though metrics can still be counted. Doing it again does nothing.

        Waits as `flush` does. A program that ends without it does it then, for at most two seconds.
        """
        self.flush(deadline)

    async def flush_async(self, deadline: float | timedelta = _DEADLINE) -> None:
        """`flush`, with the event loop going on meanwhile."""
        await asyncio.to_thread(self.flush, deadline)

    async def shutdown_async(self, deadline: float | timedelta = _DEADLINE) -> None:
        """`shutdown`, with the event loop going on meanwhile."""
        await asyncio.to_thread(self.shutdown, deadline)


class BackendContainer(MetricContainer):
    """A container on a bus, with one of `metricbus.backends`.

    `prefix` comes before each name, with a `_` between: `myapp` makes `myapp_requests_total`. Without `bus` it has one of its own;
    on one that is there already, what others declared is reported as well. The backend lives as long as the bus, that is as long as
    anybody has a metric on it, or until `shutdown`.

    After a fork, what exports is started again in the child, for the metrics of the child, which begin at zero. A library stays with
    the parent: the child's metrics are counted on its bus only, which is logged, and `flush` raises `ForkedError`.

    Raises `BackendError` where the backend can't be set up.
    """

    def __init__(self, prefix: str = "", backend: _backends.Backend | None = None, bus: MetricBus | None = None) -> None:
        backend = _backends.Prometheus() if backend is None else _backends.checked(backend)
        self._take(prefix, [backend], bus)

    def _take(self, prefix: str, backends: list[_backends.Backend], bus: MetricBus | None, tee: bool = False) -> None:
        bus = _bus(bus)
        self._keep(bus, Reporter(bus, prefix, [backend._arguments() for backend in backends], tee))

    def _keep(self, bus: MetricBus, reporter: Reporter) -> None:
        self._bus = bus
        self._reporter = reporter
        self._scope = reporter.scope

    @property
    def bus(self) -> MetricBus:
        """The bus."""
        return self._bus

    @property
    def scope(self) -> Scope:
        """The scope on which these metrics are made, for a `Component` to be declared on."""
        return self._scope

    def flush(self, deadline: float | timedelta = _DEADLINE) -> None:
        """Has what was counted until now at the far end when it returns, or raises `BackendError` when the time is over.

        Waits, with other threads running meanwhile: not for an event loop, which has `flush_async`.
        """
        self._reporter.flush(deadline)

    def shutdown(self, deadline: float | timedelta = _DEADLINE) -> None:
        """The last flush: nothing is reported after it, though metrics can still be counted. Doing it again does nothing.

        Waits as `flush` does. A program that ends without it does it then, for at most two seconds.
        """
        self._reporter.shutdown(deadline)

    async def flush_async(self, deadline: float | timedelta = _DEADLINE) -> None:
        """`flush`, with the event loop going on meanwhile."""
        await self._reporter.flush_async(deadline)

    async def shutdown_async(self, deadline: float | timedelta = _DEADLINE) -> None:
        """`shutdown`, with the event loop going on meanwhile."""
        await self._reporter.shutdown_async(deadline)

    def _labelled(self, labels: Mapping[str, object] | None) -> Scope:
        return self._scope._scope("", labels or {})

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
        return f"<{type(self).__name__} {self._scope.prefix!r}>"


class PrometheusContainer(BackendContainer):
    """The container whose metrics a Prometheus scrapes.

    `prefix` and `bus` are those of `BackendContainer`.
    """

    def __init__(self, prefix: str = "", bus: MetricBus | None = None) -> None:
        self._take(prefix, [_backends.Prometheus()], bus)


class NullContainer(BackendContainer):
    """The container whose metrics go nowhere. They are counted on its bus as ever.

    `prefix` and `bus` are those of `BackendContainer`.
    """

    def __init__(self, prefix: str = "", bus: MetricBus | None = None) -> None:
        self._take(prefix, [_backends.Null()], bus)


class OtlpContainer(BackendContainer):
    """The container whose metrics an OpenTelemetry collector gets, each interval.

    Without `options`, OpenTelemetry's own variables count: `OtlpOptions.from_env()`. `prefix` and `bus` are those of `BackendContainer`;
    `prefix` is the service's name, too, where nobody has given one. A collector that can't be reached is no error: what
    waits is bounded, tried again and counted (`metricbus_otlp_*`), and whoever counts never waits.
    """

    def __init__(self, prefix: str = "", options: OtlpOptions | None = None, bus: MetricBus | None = None) -> None:
        self._take(prefix, [_backends.Otlp(options)], bus)


class LibnvContainer(BackendContainer):
    """The container of a shared library that counts by itself: each mutation is told to it, and `get()` is what it says.

    The library is the one at `path`, or the one that the environment variable `METRICBUS_LIBNV` names; its functions run in this process,
    so load only what you trust. It is told `service_name` and `prefix`; `prefix` and `bus` are those of `BackendContainer`, too.
    """

    def __init__(
        self,
        service_name: str,
        prefix: str,
        path: str | os.PathLike[str] | None = None,
        bus: MetricBus | None = None,
    ) -> None:
        self._take(prefix, [_backends.Libnv(service_name, prefix, path)], bus)


class TeeContainer(BackendContainer):
    """The container whose metrics go to several of `metricbus.backends`. They are stored once.

    An error of one does not keep the others from being flushed. `get()` is what the first says that can be read. `prefix` and `bus`
    are those of `BackendContainer`.
    """

    def __init__(self, prefix: str, backends: Iterable[_backends.Backend], bus: MetricBus | None = None) -> None:
        if isinstance(backends, _backends.Backend):
            raise TypeError(f"{backends!r} is one backend; several of them in a list would be right")
        self._take(prefix, [_backends.checked(backend) for backend in backends], bus, tee=True)


def _bus(bus: MetricBus | None) -> MetricBus:
    if bus is None:
        return MetricBus()
    if not isinstance(bus, MetricBus):
        raise TypeError(f"{bus!r} is no bus for a container; a metricbus.MetricBus would be right")
    return bus


def _some(name: str, names: Iterable[str]) -> str | tuple[str, ...]:
    # One text is told from names where metrics are declared.
    some = names if isinstance(names, str) else tuple(names)
    if not some:
        raise ValueError(f"the family {name!r} has no label names; without any it is created as a single metric")
    return some


class BaseComponentMetrics:
    """What every component has: a container to create its metrics with. The one line that makes it says where they go.

    | | metrics go |
    |---|---|
    | `new_prometheus` | to whoever scrapes |
    | `new_otlp` | to an OpenTelemetry collector |
    | `new_libnv` | to a shared library |
    | `new_null` | nowhere |
    | `from_env` | where `METRICBUS_BACKEND` says |
    | `BaseComponentMetrics(container)` | anywhere |

    Each takes a `bus` that is there already; without it, the container has one of its own.
    """

    def __init__(self, container: MetricContainer) -> None:
        #: Where the component's metrics are made.
        self.container = container

    @classmethod
    def new_prometheus(cls, prefix: str = "", bus: MetricBus | None = None) -> BaseComponentMetrics:
        """On a `PrometheusContainer`."""
        return cls(PrometheusContainer(prefix, bus))

    @classmethod
    def new_otlp(
        cls, prefix: str = "", options: OtlpOptions | None = None, bus: MetricBus | None = None
    ) -> BaseComponentMetrics:
        """On an `OtlpContainer`. Without `options`, OpenTelemetry's own variables count."""
        return cls(OtlpContainer(prefix, options, bus))

    @classmethod
    def new_libnv(
        cls,
        service_name: str,
        prefix: str,
        path: str | os.PathLike[str] | None = None,
        bus: MetricBus | None = None,
    ) -> BaseComponentMetrics:
        """On a `LibnvContainer`: the library at `path`, or that which `METRICBUS_LIBNV` names."""
        return cls(LibnvContainer(service_name, prefix, path, bus))

    @classmethod
    def new_null(cls, prefix: str = "", bus: MetricBus | None = None) -> BaseComponentMetrics:
        """On a `NullContainer`."""
        return cls(NullContainer(prefix, bus))

    @classmethod
    def from_env(cls, bus: MetricBus | None = None) -> BaseComponentMetrics:
        """On the container that the environment asks for, as in Rust.

        | variable | value | when it is not set, or empty |
        |---|---|---|
        | `METRICBUS_BACKEND` | `prometheus`, `otlp`, `libnv`, `libnv:PATH`, `null`, `tee:A,B,…` | `prometheus` |
        | `METRICBUS_PREFIX` | what all names begin with; a `_` comes after it | nothing |
        | `METRICBUS_LIBNV` | path of the library, for `libnv` without one | an error |
        | `OTEL_…` | as OpenTelemetry has them, for `otlp` | as OpenTelemetry has it |

        A wrong value is a `BackendError` that names the variable, its value, and what would be right.
        """
        bus = _bus(bus)
        container = BackendContainer.__new__(BackendContainer)
        container._keep(bus, Reporter.from_env(bus))
        return cls(container)

    def register(self, component: type[_Component], /, **labels: object) -> _Component:
        """A `Component` beside the metrics that are created in the container, with its prefix, and with these labels."""
        if not (isinstance(component, type) and issubclass(component, Component)):
            raise TypeError(f"{component!r} can't be registered; a class that is a metricbus.Component would be right")
        scope = self.container.scope
        if scope is None:
            raise TypeError(f"{self.container!r} is not on a bus, and takes metrics one at a time only")
        return component(scope, **labels)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self.container!r}>"
