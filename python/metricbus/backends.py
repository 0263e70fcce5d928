"""Backends: where the metrics of a container go.

One is made into a container by itself, or several into a `TeeContainer`:

>>> import metricbus
>>> from metricbus import backends
>>> container = metricbus.TeeContainer("myapp", [backends.Prometheus(), backends.Null()])
>>> container.create_counter("jobs_total", "Jobs done.").inc()
>>> print(container.export_prometheus().splitlines()[-1])
myapp_jobs_total 1

A backend can't be written in Python. It is told of a mutation, or asked, in threads that must not wait: for a mutation to
call Python code, each mutating thread would have to take the interpreter's lock. What wants to hear of mutations in Python
subscribes to the bus; a backend of your own is written in Rust or, as a library, in C or C++.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import NoReturn, final

from ._metricbus import OtlpOptions

__all__ = ["Backend", "Libnv", "Null", "Otlp", "Prometheus"]

_NOT_IN_PYTHON = (
    "a backend can't be written in Python, since every mutating thread would have to take the interpreter's lock; "
    "subscribe to the bus instead (bus.subscribe), or write it in Rust, or in C or C++ as a library for backends.Libnv"
)


class Backend:
    """What all backends are. There are no others than those of this module."""

    __slots__ = ()

    def __init_subclass__(cls) -> None:
        if cls.__module__ != __name__:
            raise TypeError(f"{cls.__qualname__}: {_NOT_IN_PYTHON}")
        super().__init_subclass__()

    def __new__(cls, *args: object, **kwargs: object) -> Backend:
        if cls is Backend:
            raise TypeError("Backend() is no backend itself; Prometheus(), Otlp(), Libnv(…) or Null() would be right")
        return super().__new__(cls)

    def _arguments(self) -> tuple[object, ...]:
        """Its name and its arguments, for the Rust side."""
        raise NotImplementedError


@final
@dataclass(frozen=True)
class Prometheus(Backend):
    """Metrics stay on the bus until somebody scrapes it."""

    def _arguments(self) -> tuple[object, ...]:
        return ("prometheus",)


@final
@dataclass(frozen=True)
class Null(Backend):
    """Metrics go nowhere. They are counted on the bus as ever, so thresholds, rules and windows work."""

    def _arguments(self) -> tuple[object, ...]:
        return ("null",)


@final
@dataclass(frozen=True)
class Otlp(Backend):
    """Metrics are exported to an OpenTelemetry collector, each interval, by a thread that does without the interpreter's lock.
    Hooks (`Gauge.set_function`, `MetricBus.on_collect`) run before, in threads of their own, which are waited for 1 s at most.

    Without `options`, OpenTelemetry's own variables count: `OtlpOptions.from_env()`.
    """

    options: OtlpOptions | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.options, OtlpOptions | None):
            raise TypeError(
                f"{self.options!r} is no options; OtlpOptions(\"http://localhost:4318\") or OtlpOptions.from_env() would be right"
            )

    def _arguments(self) -> tuple[object, ...]:
        return ("otlp", self.options)


@final
@dataclass(frozen=True)
class Libnv(Backend):
    """A shared library that counts by itself: each mutation is told to it.

    `path` is that of the library; without it, the one in the environment variable `METRICBUS_LIBNV` counts. The library is
    told `service_name` and `prefix`. Its functions run in the thread that mutates, and Python's other threads wait meanwhile.
    Counters of Python count in doubles, so to the library each is one of the kind `MB_REAL_COUNTER`, told by `add`.
    """

    service_name: str
    prefix: str
    path: str | os.PathLike[str] | None = None

    def _arguments(self) -> tuple[object, ...]:
        return ("libnv", self.service_name, self.prefix, None if self.path is None else os.fspath(self.path))


def checked(backend: object) -> Backend:
    """The backend that it is, or an error that says what would be right."""
    if isinstance(backend, Backend):
        return backend
    refuse(backend)


def refuse(backend: object) -> NoReturn:
    """Says why that is no backend."""
    if isinstance(backend, type) and issubclass(backend, Backend):
        raise TypeError(f"{backend.__name__} is a class; {backend.__name__}(…) would be right")
    if any(callable(getattr(backend, name, None)) for name in ("attach", "declare", "mirrors", "flush", "inc", "observe")):
        raise TypeError(f"{backend!r}: {_NOT_IN_PYTHON}")
    raise TypeError(
        f"{backend!r} is no backend; one of metricbus.backends would be right: Prometheus(), Otlp(), Libnv(…), Null()"
    )
