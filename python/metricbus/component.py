"""Metrics declared as a class: each annotated attribute is a metric, and an instance has them on a bus.

>>> import metricbus
>>> class Worker(metricbus.Component, prefix="worker_"):
...     '''What a decode worker measures.'''
...     requests_total: metricbus.Counter = metricbus.field("Requests served.", labels=("method",))
...     kv_usage_ratio: metricbus.Gauge = metricbus.field("Share of the KV cache in use.", unit="ratio")
>>> bus = metricbus.MetricBus()
>>> worker = Worker(bus, pod="decode-0")
>>> worker.kv_usage_ratio.set(0.25)
>>> str(worker.kv_usage_ratio.series)
'worker_kv_usage_ratio{pod="decode-0"}'

What can be known when the class is made is checked then, on a bus that nobody sees.
"""

from __future__ import annotations

import builtins
import inspect
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar

from ._errors import MetricBusError
from ._metricbus import Counter, Gauge, Histogram, MetricBus, Scope

__all__ = ["Component", "field", "nested"]

_METRICS = (Counter, Gauge, Histogram)


@dataclass(frozen=True)
class _Field:
    """What `field` was told."""

    help: str
    name: str | None
    labels: tuple[str, ...]
    const_labels: dict[str, str]
    unit: str | None
    buckets: tuple[float, ...] | None
    native: bool | None
    initial: float | None
    expire_after: float | timedelta | None
    max_series: int | None


@dataclass(frozen=True)
class _Nested:
    """What `nested` was told."""

    prefix: str
    labels: dict[str, str]


@dataclass(frozen=True)
class _Declared:
    """An attribute of a component."""

    attribute: str
    type: Any
    what: _Field | _Nested


def field(
    help: str,
    *,
    labels: Iterable[str] = (),
    name: str | None = None,
    const_labels: Mapping[str, object] | None = None,
    unit: str | None = None,
    buckets: Iterable[float] | None = None,
    native: bool | None = None,
    initial: float | None = None,
    expire_after: float | timedelta | None = None,
    max_series: int | None = None,
) -> Any:
    """Declares one metric of a `Component`; its type is the attribute's annotation.

    `labels` are the names of labels whose values are given per child, `const_labels` are labels with their values. `name` is
    the metric's name where it is not the attribute's. A gauge has no value until it is set, unless `initial` says where it begins.
    The rest is as in `MetricBus.counter`, `gauge` and `histogram`.
    """
    if not isinstance(help, str) or not help.strip():
        raise TypeError(f'field({help!r}): the help text comes first; field("Requests served.") would be right')
    if isinstance(labels, str):
        raise TypeError(f"field({help!r}): labels is the text {labels!r}; a sequence of names like ({labels!r},) would be right")
    return _Field(
        help=" ".join(help.split()),
        name=name,
        labels=tuple(labels),
        const_labels={key: str(value) for key, value in (const_labels or {}).items()},
        unit=unit,
        buckets=None if buckets is None else tuple(buckets),
        native=native,
        initial=initial,
        expire_after=expire_after,
        max_series=max_series,
    )


def nested(prefix: str = "", /, **labels: object) -> Any:
    """A component inside of a component, on the outer one's scope, with a further prefix and further labels."""
    return _Nested(prefix, {key: str(value) for key, value in labels.items()})


class Component:
    """Base of classes whose annotated attributes are metrics; each is declared with `field`, or is a `nested` component.

    An instance declares them all on a bus or a scope (`metricbus.REGISTRY` where none is named), with the class's `prefix` before
    each name and these labels on each series:

        class Worker(Component, prefix="worker_", labels={"tier": "gpu"}):
            ...

        worker = Worker(bus, pod="decode-0")

    The first paragraph of the docstring is what the bus knows of the component. A subclass has the metrics of its bases, too,
    and their prefix and labels unless it names its own.
    """

    _declared: ClassVar[tuple[_Declared, ...]] = ()
    _prefix: ClassVar[str] = ""
    _labels: ClassVar[Mapping[str, str]] = {}
    _component: ClassVar[str] = "Component"

    def __init_subclass__(
        cls,
        *,
        prefix: str | None = None,
        labels: Mapping[str, object] | None = None,
        component: str | None = None,
        **others: Any,
    ) -> None:
        super().__init_subclass__(**others)
        if prefix is not None:
            cls._prefix = prefix
        if labels is not None:
            cls._labels = {key: str(value) for key, value in labels.items()}
        cls._component = cls.__name__ if component is None else component
        # The frame of the class statement knows the names that annotations of a local class use.
        around = inspect.currentframe()
        names = around.f_back.f_locals if around is not None and around.f_back is not None else {}
        del around
        inherited = {declared.attribute: declared for base in reversed(cls.__mro__[1:]) for declared in _own(base)}
        own = {declared.attribute: declared for declared in _read(cls, names)}
        cls._declared = tuple((inherited | own).values())
        try:
            _declare(cls, MetricBus()._scope(cls._prefix, cls._labels))
        except MetricBusError as error:
            # It says what would be right.
            raise type(error)(f"{cls.__qualname__}: {error}") from None

    def __init__(self, place: MetricBus | Scope | None = None, /, **labels: object) -> None:
        if place is None:
            from . import REGISTRY

            place = REGISTRY
        if not isinstance(place, MetricBus | Scope):
            raise TypeError(
                f"{type(self).__name__} was given {place!r} to be declared on; "
                "a metricbus.MetricBus or a metricbus.Scope would be right"
            )
        scope = place._scope(self._prefix, self._labels)._scope("", labels)
        self._place(scope)
        scope.add_component(self._component, _first_paragraph(type(self).__doc__), _names(self))

    def _place(self, scope: Scope) -> None:
        self.__dict__["scope"] = scope
        self.__dict__.update(_declare(type(self), scope))

    #: The scope on which the metrics are.
    scope: Scope

    @property
    def bus(self) -> MetricBus:
        """The bus on which the metrics are."""
        return self.scope.bus

    def __setattr__(self, name: str, value: object) -> None:
        for declared in self._declared:
            if declared.attribute == name:
                how = f"{name}.set({value!r})" if declared.type is Gauge else f"a method of {name}"
                raise AttributeError(f"{type(self).__name__}.{name} is a metric and stays; {how} would be right")
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {', '.join(_names(self))}>"


def _own(base: type) -> tuple[_Declared, ...]:
    return base._declared if issubclass(base, Component) else ()


def _first_paragraph(doc: str | None) -> str:
    return " ".join(inspect.cleandoc(doc).split("\n\n")[0].split()) if doc else ""


def _names(component: Component) -> list[str]:
    """Of all metrics, also of nested components, each once."""
    names: dict[str, None] = {}
    for declared in component._declared:
        value = component.__dict__[declared.attribute]
        names.update(dict.fromkeys(_names(value) if isinstance(value, Component) else [value.name]))
    return list(names)


def _read(cls: type[Component], names: Mapping[str, Any]) -> Iterable[_Declared]:
    """The declarations in the body of this class, which are taken out of it: an instance has metrics instead."""
    annotations = inspect.get_annotations(cls)
    for attribute, value in list(vars(cls).items()):
        if isinstance(value, _Field | _Nested) and attribute not in annotations:
            right = "its class" if isinstance(value, _Nested) else "metricbus.Counter, Gauge or Histogram"
            raise TypeError(f"{cls.__qualname__}.{attribute} has no annotation; {right} would be right")
    for attribute, annotation in annotations.items():
        value = vars(cls).get(attribute)
        kind = _evaluated(annotation, cls, names)
        where = f"{cls.__qualname__}.{attribute}"
        if not isinstance(value, _Field | _Nested):
            if isinstance(kind, type) and issubclass(kind, (*_METRICS, Component)):
                how = "nested()" if issubclass(kind, Component) else 'field("What it counts.")'
                raise TypeError(f"{where} is not declared; {attribute}: {kind.__name__} = {how} would be right")
            continue
        if isinstance(value, _Field) and kind not in _METRICS:
            raise TypeError(
                f"{where} is annotated as {_shown(annotation)}; metricbus.Counter, Gauge or Histogram would be right"
            )
        if isinstance(value, _Field) and value.native is not None and kind is not Histogram:
            raise TypeError(f"{where} is a {kind.__name__} and says native={value.native}; only a Histogram can be native")
        if isinstance(value, _Field) and value.initial is not None and kind is not Gauge:
            raise TypeError(f"{where} is a {kind.__name__} and says initial={value.initial}; only a Gauge has an initial value")
        if isinstance(value, _Nested) and not (isinstance(kind, type) and issubclass(kind, Component)):
            raise TypeError(f"{where} is annotated as {_shown(annotation)}; a class that is a Component would be right")
        if isinstance(value, _Field) and value.buckets is not None and kind is not Histogram:
            raise TypeError(f"{where} is a {kind.__name__} and has buckets; only a Histogram has them")
        if hasattr(Component, attribute) or attribute == "scope":
            raise TypeError(f"{where} can't be called so, because each component has an attribute {attribute!r} of its own")
        delattr(cls, attribute)
        yield _Declared(attribute, kind, value)


def _shown(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _evaluated(annotation: Any, cls: type, names: Mapping[str, Any]) -> Any:
    """The annotation, or the text that it is where it can't be made out."""
    if not isinstance(annotation, str):
        return annotation
    module = sys.modules.get(cls.__module__)
    try:
        return eval(annotation, {**vars(builtins), **(vars(module) if module else {}), **names})  # noqa: S307
    except Exception:
        return annotation


def _declare(cls: type[Component], scope: Scope) -> dict[str, Counter | Gauge | Histogram | Component]:
    made: dict[str, Counter | Gauge | Histogram | Component] = {}
    for declared in cls._declared:
        what = declared.what
        if isinstance(what, _Nested):
            inner: type[Component] = declared.type
            component = inner.__new__(inner)
            component._place(scope._scope(what.prefix, what.labels)._scope(inner._prefix, inner._labels))
            made[declared.attribute] = component
            continue
        place = scope._scope("", what.const_labels)
        name = declared.attribute if what.name is None else what.name
        if declared.type is Histogram:
            made[declared.attribute] = place.histogram(
                name,
                what.help,
                what.labels,
                buckets=what.buckets,
                native=what.native,
                unit=what.unit,
                expire_after=what.expire_after,
                max_series=what.max_series,
            )
        elif declared.type is Gauge:
            made[declared.attribute] = place.gauge(
                name,
                what.help,
                what.labels,
                initial=what.initial,
                unit=what.unit,
                expire_after=what.expire_after,
                max_series=what.max_series,
            )
        else:
            made[declared.attribute] = place.counter(
                name,
                what.help,
                what.labels,
                unit=what.unit,
                expire_after=what.expire_after,
                max_series=what.max_series,
            )
    return made
