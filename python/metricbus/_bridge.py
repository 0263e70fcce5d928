"""What a registry of `prometheus_client` says, taken apart for the exporter.

Only what its metrics have in common is used (`name`, `documentation`, `type`, `samples`), so `prometheus_client` is not imported. What
Prometheus's text format has no type for becomes a gauge, as in `prometheus_client` itself; `_created` is left out.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["collect", "collecting"]

logger = logging.getLogger("metricbus")

_SINGLE = {"counter": ("_total", "counter"), "info": ("_info", "gauge")}
_DISTRIBUTIONS = {"histogram": ("histogram", "le"), "gaugehistogram": ("histogram", "le"), "summary": ("summary", "quantile")}


class _Into(Protocol):
    def put(self, families: list[_Family], /) -> None: ...


@dataclass
class _Series:
    labels: list[tuple[str, str]]
    value: float = math.nan
    points: list[tuple[float, float]] = field(default_factory=list)
    sum: float = math.nan
    count: float = math.nan


@dataclass
class _Family:
    name: str
    help: str
    kind: str
    series: list[_Series]


def collect(registry: Any) -> list[_Family]:
    """All its metrics. A collector that raises costs its own metrics and a line in the log."""
    families = []
    for collector in _collectors(registry):
        try:
            for metric in collector.collect():
                families.append(_family(metric))
        except BaseException:
            logger.exception("metricbus: a collector of a merged registry failed: %r", collector)
    return families


def collecting(registry: Any, into: _Into) -> Callable[[], None]:
    """What asks a registry when it is called, and puts what that says."""
    return lambda: into.put(collect(registry))


def _collectors(registry: Any) -> Iterable[Any]:
    """Its parts one by one, as far as it lets them be seen: asked as a whole, it ends at the first that raises."""
    parts = getattr(registry, "_collector_to_names", None)
    if not isinstance(parts, dict):
        return [registry]
    return [_TargetInfo(registry), *parts]


class _TargetInfo:
    """What a registry says besides its collectors."""

    def __init__(self, registry: Any) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Any]:
        if getattr(self._registry, "_target_info", None):
            yield self._registry._target_info_metric()


def _family(metric: Any) -> _Family:
    name: str = metric.name
    kind: str = metric.type
    if kind in _DISTRIBUTIONS:
        kind, point = _DISTRIBUTIONS[kind]
        return _Family(name, metric.documentation, kind, _distributions(metric, point))
    suffix, shown = _SINGLE.get(kind, ("", "gauge"))
    wanted = name + suffix
    series = [_Series(_labels(sample.labels), float(sample.value)) for sample in metric.samples if sample.name == wanted]
    return _Family(wanted, metric.documentation, shown, series)


def _labels(labels: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in labels.items()]


def _distributions(metric: Any, point: str) -> list[_Series]:
    """Its samples, put together by their labels."""
    found: dict[tuple[tuple[str, str], ...], _Series] = {}
    for sample in metric.samples:
        labels = _labels({name: value for name, value in sample.labels.items() if name != point})
        series = found.setdefault(tuple(sorted(labels)), _Series(labels))
        part = sample.name[len(metric.name) :]
        if part in ("_sum", "_gsum"):
            series.sum = float(sample.value)
        elif part in ("_count", "_gcount"):
            series.count = float(sample.value)
        elif point in sample.labels and part in ("", "_bucket"):
            series.points.append((float(sample.labels[point]), float(sample.value)))
    for series in found.values():
        series.points.sort()
        if math.isnan(series.count):
            # Of a histogram with negative buckets, for which OpenMetrics knows neither.
            series.count = series.points[-1][1] if point == "le" and series.points else 0.0
    return list(found.values())
