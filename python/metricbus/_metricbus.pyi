"""The half of the package that is written in Rust. Import these names from `metricbus`."""

from asyncio import Future
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from os import PathLike
from typing import Any, ClassVar, Literal, NoReturn, Self, TypedDict, TypeVar, Unpack, final, overload, type_check_only

from ._delivery import Listen, Subscription
from ._timing import CountExceptions, InProgress, Timer

_T = TypeVar("_T")

# Seconds, or a timedelta.
_Time = float | timedelta
_Path = str | PathLike[str]
_Selector = str | Counter | Gauge | Histogram | Series
_Kind = Literal["counter", "gauge", "histogram"]
# What a condition looks at, and what is reckoned with.
_Input = Expr | _Selector
_Operand = Expr | float | _Selector
_Quality = Literal["good", "nan", "no_data", "stale", "gone"]
_RuleState = Literal["inactive", "pending", "clearing", "firing"]

# One bound, and at most one where it is cleared.
@type_check_only
class _Threshold(TypedDict, total=False):
    above: float
    at_least: float
    below: float
    at_most: float
    clear_below: float
    clear_at_most: float
    clear_above: float
    clear_at_least: float

__version__: str

def after_fork_in_child() -> None: ...
def close_gate() -> None: ...
def claim_interpreter(identity: int) -> None: ...
def rules_of_all() -> int: ...
def stayed_with_parent() -> list[tuple[str, int]]: ...
def end_backends(deadline: float) -> list[str]: ...
def hook_pool() -> ThreadPool: ...
def hook_run(job: int) -> HookRun | None: ...
def next_log_lines() -> list[tuple[int, str]]: ...

@final
class Reporter:
    """Backends under a bus, and the scope on which a container makes its metrics."""

    def __new__(cls, bus: MetricBus, prefix: str, backends: Sequence[tuple[object, ...]], tee: bool) -> Self: ...
    @staticmethod
    def from_env(bus: MetricBus) -> Reporter: ...
    @property
    def scope(self) -> Scope: ...
    def flush(self, deadline: _Time) -> None: ...
    def shutdown(self, deadline: _Time) -> None: ...
    def flush_async(self, deadline: _Time) -> Awaitable[None]: ...
    def shutdown_async(self, deadline: _Time) -> Awaitable[None]: ...

@final
class Counter:
    """Something that only goes up: one series, or with label names a family of them."""

    def __new__(
        cls,
        name: str,
        documentation: str,
        labelnames: Iterable[str] | None = None,
        namespace: str = "",
        subsystem: str = "",
        unit: str = "",
        registry: MetricBus | Scope | None = ...,
        *,
        expire_after: _Time | None = None,
        max_series: int | None = None,
    ) -> Self: ...
    def inc(self, amount: float | None = None, exemplar: Mapping[str, object] | None = None) -> None:
        """Counts up, by 1 unless told otherwise. `exemplar`: labels of this one increment, mostly the id of a trace.

        An exemplar that can't be, with more than 128 characters or a wrong name, is an `ExemplarError`; it is counted all the same.
        """
    def reset(self) -> None:
        """Begins again at 0, as where a logical process starts anew: the series is removed and made anew, so that everybody sees a
        restart, and nobody a fall. Who has subscribed to this one series hears that it is gone.
        """
    def get(self) -> float: ...
    def exemplar(self) -> Exemplar | None:
        """The latest exemplar, if there ever was one."""
    def labels(self, *args: object, **kwargs: object) -> Counter: ...
    def remove(self, *values: object) -> bool: ...
    def remove_by_labels(self, labels: Mapping[str, object]) -> None:
        """Removes every child that has these label values, given by name for some of the labels. Without any, nothing."""
    def clear(self) -> None:
        """Removes all children; where there are no labels, nothing."""
    def count_exceptions(
        self, exception: type[BaseException] | tuple[type[BaseException], ...] | None = None
    ) -> CountExceptions: ...
    @property
    def name(self) -> str: ...
    @property
    def series(self) -> Series: ...
    def all_series(self) -> list[Series]: ...
    def window(self, width: _Time) -> Window:
        """A sliding window over this series, or over all series of the family, from now on."""

@final
class Gauge:
    """Something that goes up and down: one series, or with label names a family of them."""

    def __new__(
        cls,
        name: str,
        documentation: str,
        labelnames: Iterable[str] | None = None,
        namespace: str = "",
        subsystem: str = "",
        unit: str = "",
        registry: MetricBus | Scope | None = ...,
        multiprocess_mode: str | None = None,
        *,
        initial: float | None = ...,
        expire_after: _Time | None = None,
        max_series: int | None = None,
    ) -> Self: ...
    def set(self, value: float) -> None: ...
    def inc(self, amount: float | None = None) -> None: ...
    def dec(self, amount: float | None = None) -> None: ...
    def set_max(self, value: float) -> None: ...
    def set_min(self, value: float) -> None: ...
    def get(self) -> float | None:
        """Its value now; `None` where it was never set. Where it was made in a container of a library, what that has."""

    def set_to_current_time(self) -> None: ...
    def set_function(self, function: Callable[[], float]) -> None:
        """Before each scrape, push and export, `function` says the value; in a thread of its own, as with `MetricBus.on_collect`.

        Where it raises, or is not done in time, the gauge keeps the value that it had, if it had one.
        """

    def track_inprogress(self) -> InProgress: ...
    def time(self) -> Timer: ...
    def labels(self, *args: object, **kwargs: object) -> Gauge: ...
    def remove(self, *values: object) -> bool: ...
    def remove_by_labels(self, labels: Mapping[str, object]) -> None:
        """Removes every child that has these label values, given by name for some of the labels. Without any, nothing."""
    def clear(self) -> None:
        """Removes all children; where there are no labels, nothing."""
    @property
    def name(self) -> str: ...
    @property
    def series(self) -> Series: ...
    def all_series(self) -> list[Series]: ...
    def window(self, width: _Time) -> Window:
        """A sliding window over this series, or over all series of the family, from now on."""

@final
class Histogram:
    """A distribution: one series, or with label names a family of them."""

    DEFAULT_BUCKETS: ClassVar[tuple[float, ...]]

    def __new__(
        cls,
        name: str,
        documentation: str,
        labelnames: Iterable[str] | None = None,
        namespace: str = "",
        subsystem: str = "",
        unit: str = "",
        registry: MetricBus | Scope | None = ...,
        *,
        buckets: Iterable[float] | None = None,
        native: bool | None = None,
        expire_after: _Time | None = None,
        max_series: int | None = None,
    ) -> Self: ...
    def observe(self, amount: float, exemplar: Mapping[str, object] | None = None) -> None:
        """Counts one observation. `exemplar`: labels of this one observation, mostly the id of a trace.

        An exemplar that can't be, with more than 128 characters or a wrong name, is an `ExemplarError`; it is counted all the same.
        """
    def get(self) -> HistogramSnapshot: ...
    def exemplars(self) -> list[tuple[float, Exemplar]]:
        """The latest exemplar of each bucket that has one, with the bucket's upper bound."""
    def time(self) -> Timer: ...
    def labels(self, *args: object, **kwargs: object) -> Histogram: ...
    def remove(self, *values: object) -> bool: ...
    def remove_by_labels(self, labels: Mapping[str, object]) -> None:
        """Removes every child that has these label values, given by name for some of the labels. Without any, nothing."""
    def clear(self) -> None:
        """Removes all children; where there are no labels, nothing."""
    @property
    def name(self) -> str: ...
    @property
    def series(self) -> Series: ...
    def all_series(self) -> list[Series]: ...
    def window(self, width: _Time) -> Window:
        """A sliding window over this series, or over all series of the family, from now on."""

@final
class Exemplar:
    """One increment, or one observation, with labels of its own."""

    @property
    def labels(self) -> dict[str, str]:
        """Names and values."""
    @property
    def value(self) -> float:
        """What was observed, or by how much the counter was raised."""
    @property
    def date(self) -> datetime:
        """When, by the bus's clock."""
    def to_dict(self) -> dict[str, Any]:
        """Its attributes in a dictionary, as what JSON has: dates as text, series as names and labels."""

@final
class Series:
    """One metric with one set of labels, as the bus knows it."""

    @property
    def name(self) -> str: ...
    @property
    def help(self) -> str: ...
    @property
    def unit(self) -> str | None: ...
    @property
    def kind(self) -> _Kind: ...
    @property
    def labels(self) -> dict[str, str]: ...
    def label(self, name: str) -> str | None: ...
    @property
    def value(self) -> float | None:
        """Its value now; of a histogram, the number of observations; `None` of a gauge that was never set."""

    @property
    def is_removed(self) -> bool: ...
    def window(self, width: _Time) -> Window:
        """A sliding window over this series, from now on."""
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class Clock:
    """Where time comes from: the system, or a test's own hand."""

    @staticmethod
    def system() -> Clock: ...
    @staticmethod
    def manual() -> Clock: ...
    def now(self) -> float: ...
    @property
    def is_manual(self) -> bool: ...
    def advance(self, by: _Time) -> None: ...

@final
class MetricBus:
    """Registry and bus in one: metrics are declared on it, and subscribed to."""

    def __new__(
        cls, *, clock: Clock | None = None, cardinality_limit: int | None = None, native_histograms: bool = False
    ) -> Self:
        """`native_histograms`: whether histograms are native unless their declaration says otherwise; see `histogram`."""
    @property
    def clock(self) -> Clock: ...
    def scope(self, prefix: str = "", **labels: object) -> Scope: ...
    def _scope(self, prefix: str, labels: Mapping[str, object]) -> Scope: ...
    def counter(
        self,
        name: str,
        help: str,
        labels: Iterable[str] | None = None,
        *,
        unit: str | None = None,
        expire_after: _Time | None = None,
        max_series: int | None = None,
    ) -> Counter: ...
    def gauge(
        self,
        name: str,
        help: str,
        labels: Iterable[str] | None = None,
        *,
        initial: float | None = None,
        unit: str | None = None,
        expire_after: _Time | None = None,
        max_series: int | None = None,
    ) -> Gauge: ...
    def histogram(
        self,
        name: str,
        help: str,
        labels: Iterable[str] | None = None,
        *,
        buckets: Iterable[float] | None = None,
        native: bool | None = None,
        unit: str | None = None,
        expire_after: _Time | None = None,
        max_series: int | None = None,
    ) -> Histogram: ...
    @overload
    def on_threshold(
        self,
        selector: _Selector,
        callback: None = None,
        *,
        capacity: int | None = None,
        initial: bool = True,
        **threshold: Unpack[_Threshold],
    ) -> Listen[Crossing]: ...
    @overload
    def on_threshold(
        self,
        selector: _Selector,
        callback: Callable[[Crossing], object],
        *,
        capacity: int | None = None,
        initial: bool = True,
        **threshold: Unpack[_Threshold],
    ) -> Subscription[Crossing]: ...
    @overload
    def on_delta(
        self,
        selector: _Selector,
        callback: None = None,
        *,
        absolute: float | None = None,
        relative: float | None = None,
        floor: float | None = None,
        of_range: tuple[float, float, float] | None = None,
        capacity: int | None = None,
    ) -> Listen[Moved]: ...
    @overload
    def on_delta(
        self,
        selector: _Selector,
        callback: Callable[[Moved], object],
        *,
        absolute: float | None = None,
        relative: float | None = None,
        floor: float | None = None,
        of_range: tuple[float, float, float] | None = None,
        capacity: int | None = None,
    ) -> Subscription[Moved]: ...
    @overload
    def on_change(
        self, selector: _Selector, callback: None = None, *, capacity: int | None = None
    ) -> Listen[Changed]: ...
    @overload
    def on_change(
        self,
        selector: _Selector,
        callback: Callable[[Changed], object],
        *,
        capacity: int | None = None,
    ) -> Subscription[Changed]: ...
    @overload
    def subscribe(
        self, selector: _Selector, callback: None = None, *, capacity: int | None = None
    ) -> Listen[Mutation | Lagged]: ...
    @overload
    def subscribe(
        self, selector: _Selector, callback: Callable[[Mutation | Lagged], object], *, capacity: int | None = None
    ) -> Subscription[Mutation | Lagged]: ...
    def snapshot(self) -> Snapshot: ...
    def series(self, selector: _Selector) -> list[Series]: ...
    def remove(self, selector: _Selector) -> int: ...
    def lints(self) -> list[str]: ...
    def serve(self, address: str | int = ...) -> Server:
        """Serves `/metrics` and its siblings in the background. A port alone, `9464` or `"9464"`, is one of this machine only."""
    def get_sample_value(self, name: str, labels: Mapping[str, object] | None = None) -> float | None:
        """The value of one sample as it would be scraped, or `None`. What is to run before a scrape runs first. `_created` is since when a
        counter or a histogram counts, unless `PROMETHEUS_DISABLE_CREATED_SERIES` is set.
        """
    def export_prometheus(self, *, openmetrics: bool = False) -> str:
        """Every metric in Prometheus text 0.0.4, or in OpenMetrics 1.0, without what an exporter adds about the process.

        What is to run before a scrape (`on_collect`, `Gauge.set_function`) runs first, in threads of its own, which are
        waited for 1 s at most.
        """

    def on_collect(self, hook: Callable[[], _T], *, name: str | None = None) -> Callable[[], _T]:
        """Calls `hook` before each scrape, push and export, to set what is only worth measuring when somebody looks. Of two with one
        name the second replaces the first.

        Hooks run in threads of their own, side by side where they block. One that is not done by the deadline is not waited for, nor
        begun again, until it ends; what it raises is logged and counted. Either costs nobody else anything.
        """

    def add_rule(self, rule: Rule) -> LiveRule:
        """Runs a rule until it is removed or the bus ends. Who hears of it: `on_alert`."""
    def set_rule(self, rule: Rule) -> LiveRule:
        """Runs a rule in the place of the one of its name, if there is one: see `LiveRule.update`."""
    def remove_rule(self, name: str) -> bool:
        """Ends a rule: what is firing is resolved, because of `"rule_removed"`. `False`: there was none of that name."""
    def rule(self, name: str) -> LiveRule | None:
        """The rule of this name, or `None`."""
    def rules(self) -> list[LiveRule]:
        """All rules, sorted by name."""
    @overload
    def on_alert(self, callback: None = None, *, capacity: int | None = None, initial: bool = True) -> Listen[Alert]:
        """The alerts of all rules, present and future: what is firing first (unless `initial=False`), with the cause
        `"initial"`, then every transition.
        """
    @overload
    def on_alert(
        self, callback: Callable[[Alert], object], *, capacity: int | None = None, initial: bool = True
    ) -> Subscription[Alert]: ...
    @overload
    def on_notice(self, callback: None = None, *, capacity: int | None = None) -> Listen[Alert | Sync]:
        """As `on_alert`, with the mark `Sync` once what is firing has been told: from there on alerts are changes."""
    @overload
    def on_notice(
        self, callback: Callable[[Alert | Sync], object], *, capacity: int | None = None
    ) -> Subscription[Alert | Sync]: ...
    @overload
    def on_rule(self, rule: Rule, callback: None = None, *, capacity: int | None = None, initial: bool = True) -> Listen[Alert]:
        """The alerts of a rule that lives as long as the subscription does."""
    @overload
    def on_rule(
        self, rule: Rule, callback: Callable[[Alert], object], *, capacity: int | None = None, initial: bool = True
    ) -> Subscription[Alert]: ...
    def keep_rule_state(
        self,
        path: str | PathLike[str],
        *,
        outage_tolerance: _Time | None = None,
        grace_period: _Time | None = None,
        every: _Time | None = None,
    ) -> None:
        """Keeps the state of rules in a file, and lets rules that are added from now on go on from what it says: what was firing
        before a restart goes on firing without a word, what was pending goes on with its hold. Call it before rules are
        added. No file yet is no error; its folder must exist. One process at a time.

        After an outage longer than `outage_tolerance` (an hour) all rules begin anew. What was firing waits at most
        `grace_period` (10 minutes) to be known again. The file is written when something was told, and each `every`
        (5 seconds).
        """
    def save_rule_state(self) -> None:
        """Writes the state of rules now, and waits for it: at shutdown, say."""
    def derive(self, name: str, help: str, expr: _Input, *, unit: str | None = None) -> Derived:
        """Declares a gauge that shows an expression: one series for each set of labels that the expression has, for as long as
        what is returned is held. A series comes with the first value; while there is no data it is NaN.

        It is set when the expression is evaluated, by the thread that mutates an operand, after its mutation, or by a timer:
        rules, taps, windows and `/metrics` apply to it as to any gauge.
        """
    def window(self, selector: _Selector, width: _Time) -> Window:
        """A sliding window over the selected series, from now on; of a metric without labels, or a child of one, over that one
        series.

        >>> window = bus.window("ttft_seconds", 60)
        >>> window.stats().quantile(0.99)
        """

@final
class Scope:
    """A bus with a prefix for names and labels for series."""

    @property
    def bus(self) -> MetricBus: ...
    @property
    def prefix(self) -> str: ...
    @property
    def labels(self) -> dict[str, str]: ...
    def scope(self, prefix: str = "", **labels: object) -> Scope: ...
    def _scope(self, prefix: str, labels: Mapping[str, object]) -> Scope: ...
    def counter(
        self,
        name: str,
        help: str,
        labels: Iterable[str] | None = None,
        *,
        unit: str | None = None,
        expire_after: _Time | None = None,
        max_series: int | None = None,
    ) -> Counter: ...
    def gauge(
        self,
        name: str,
        help: str,
        labels: Iterable[str] | None = None,
        *,
        initial: float | None = None,
        unit: str | None = None,
        expire_after: _Time | None = None,
        max_series: int | None = None,
    ) -> Gauge: ...
    def histogram(
        self,
        name: str,
        help: str,
        labels: Iterable[str] | None = None,
        *,
        buckets: Iterable[float] | None = None,
        native: bool | None = None,
        unit: str | None = None,
        expire_after: _Time | None = None,
        max_series: int | None = None,
    ) -> Histogram: ...
    def add_component(self, name: str, help: str, metrics: list[str]) -> None: ...

@final
class Crossing:
    """A threshold was crossed."""

    @property
    def series(self) -> Series: ...
    @property
    def state(self) -> Literal["raised", "cleared"]: ...
    @property
    def is_raised(self) -> bool: ...
    @property
    def value(self) -> float: ...
    @property
    def epoch(self) -> int: ...
    @property
    def cause(self) -> Literal["crossing", "initial", "removed", "other"]: ...
    @property
    def at(self) -> float: ...
    @property
    def date(self) -> datetime:
        """`at` as a date, in UTC."""
    def to_dict(self) -> dict[str, Any]:
        """Its attributes in a dictionary, as what JSON has: dates as text, series as names and labels."""

@final
class Moved:
    """A value moved by as much as was subscribed to."""

    @property
    def series(self) -> Series: ...
    @property
    def before(self) -> float: ...
    @property
    def after(self) -> float: ...
    @property
    def epoch(self) -> int:
        """1 for the first move of this series, 2 for the next …: a gap is the number that the mailbox had no room for."""

    @property
    def at(self) -> float: ...
    @property
    def date(self) -> datetime:
        """`at` as a date, in UTC."""
    def to_dict(self) -> dict[str, Any]:
        """Its attributes in a dictionary, as what JSON has: dates as text, series as names and labels."""

@final
class Changed:
    """A value is another one than when it was last told."""

    @property
    def series(self) -> Series: ...
    @property
    def value(self) -> float: ...
    @property
    def at(self) -> float: ...
    @property
    def date(self) -> datetime:
        """`at` as a date, in UTC."""
    def to_dict(self) -> dict[str, Any]:
        """Its attributes in a dictionary, as what JSON has: dates as text, series as names and labels."""

@final
class Mutation:
    """One mutation, as a tap tells it."""

    @property
    def series(self) -> Series: ...
    @property
    def sequence(self) -> int: ...
    @property
    def at(self) -> float: ...
    @property
    def kind(self) -> Literal["counted", "set", "observed", "other"]: ...
    @property
    def before(self) -> float | None: ...
    @property
    def after(self) -> float | None: ...
    @property
    def amount(self) -> float: ...
    @property
    def date(self) -> datetime:
        """`at` as a date, in UTC."""
    def to_dict(self) -> dict[str, Any]:
        """Its attributes in a dictionary, as what JSON has: dates as text, series as names and labels."""

@final
class Lagged:
    """So many mutations are missing here, because the reader was too slow."""

    @property
    def missed(self) -> int: ...
    def to_dict(self) -> dict[str, Any]:
        """Its attributes in a dictionary, as what JSON has: dates as text, series as names and labels."""

@final
class SubscriptionStats:
    """What a subscription has done so far."""

    @property
    def series_matched(self) -> int: ...
    @property
    def did_you_mean(self) -> str | None:
        """Where it is none, and no metric has the name in the selector: the name of one that may have been meant."""
    @property
    def delivered(self) -> int: ...
    @property
    def dropped(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def hung(self) -> int: ...

@final
class Snapshot:
    """All metrics of a bus at one time."""

    @property
    def families(self) -> list[FamilySnapshot]: ...
    def family(self, name: str) -> FamilySnapshot | None: ...
    def value(self, name: str, /, **labels: str) -> float | HistogramSnapshot | None: ...
    def to_dict(self) -> dict[str, Any]:
        """Its attributes in a dictionary, as what JSON has: dates as text, series as names and labels."""

@final
class FamilySnapshot:
    """A metric with all its series."""

    @property
    def name(self) -> str: ...
    @property
    def help(self) -> str: ...
    @property
    def unit(self) -> str | None: ...
    @property
    def kind(self) -> _Kind: ...
    @property
    def series(self) -> list[SeriesSnapshot]: ...
    def to_dict(self) -> dict[str, Any]:
        """Its attributes in a dictionary, as what JSON has: dates as text, series as names and labels."""

@final
class SeriesSnapshot:
    """One series: its labels and its value."""

    @property
    def labels(self) -> dict[str, str]: ...
    @property
    def value(self) -> float | HistogramSnapshot: ...
    def to_dict(self) -> dict[str, Any]:
        """Its attributes in a dictionary, as what JSON has: dates as text, series as names and labels."""

@final
class HistogramSnapshot:
    """A histogram's state: cumulative counts per upper bound, `inf` the last."""

    @property
    def buckets(self) -> list[tuple[float, int]]: ...
    @property
    def sum(self) -> float: ...
    @property
    def count(self) -> int: ...
    def to_dict(self) -> dict[str, Any]:
        """Its attributes in a dictionary, as what JSON has: dates as text, series as names and labels."""

@final
class SourceId:
    """The identity of a process that publishes metrics, as `prod/decode/pod-7`: its namespace (a cluster, a tenant), its
    component (what it does) and its instance (which one of those).
    """
    def __new__(cls, namespace: str, component: str, instance: str) -> Self: ...
    @staticmethod
    def parse(text: str) -> SourceId:
        """The source of a text like `prod/decode/pod-7`."""
    @property
    def namespace(self) -> str:
        """Such as a cluster, a tenant, or Dynamo's namespace."""
    @property
    def component(self) -> str:
        """What it does: `decode`, `router` …"""
    @property
    def instance(self) -> str:
        """Which one of those: a pod's name."""
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...
    def to_dict(self) -> dict[str, Any]:
        """Its attributes in a dictionary, as what JSON has: dates as text, series as names and labels."""

@final
class Origin:
    """Where an alert was made that came from another process, and its place among what that process said."""
    @property
    def source(self) -> SourceId:
        """Who made it."""
    @property
    def boot(self) -> int:
        """Which life of that process: greater after a restart."""
    @property
    def sequence(self) -> int:
        """1 for the first alert of that life, 2 for the next …"""
    def __eq__(self, other: object, /) -> bool: ...
    __hash__: ClassVar[None]  # type: ignore[assignment]
    def to_dict(self) -> dict[str, Any]:
        """Its attributes in a dictionary, as what JSON has: dates as text, series as names and labels."""

@final
class Alert:
    """A transition of a rule: it fires, its level changes, or it is resolved.

    Per rule and group, `epoch` grows by 1 with each alert: a gap in it is the number of those that were dropped because the
    reader was too slow. Firing and resolved alternate; with levels there can be several firing in a row, each of another
    level.
    """
    @property
    def rule(self) -> str:
        """The rule's name."""
    @property
    def state(self) -> Literal["firing", "resolved"]:
        """Which way: `"firing"` or `"resolved"`."""
    @property
    def is_firing(self) -> bool:
        """Whether it fires, at whatever level."""
    @property
    def level(self) -> str | None:
        """The level now in force; `None` when resolved, and of a rule without levels."""
    @property
    def previous_level(self) -> str | None:
        """The level before; `None` when it was not firing, and of a rule without levels."""
    @property
    def group(self) -> dict[str, str]:
        """What tells apart the groups of a rule: the labels of the series, or those it is grouped by."""
    @property
    def labels(self) -> dict[str, str]:
        """The group's labels and the rule's own, which win."""
    @property
    def annotations(self) -> dict[str, str]:
        """The rule's annotations, with `{{ $value }}` and `{{ $labels.name }}` filled in."""
    @property
    def series(self) -> Series | None:
        """The series, where the rule is about one: a group of one, and a single metric, of this process."""
    @property
    def value(self) -> float | None:
        """The value that made the difference, as the thread that made it saw it; of a group of several that fires, that of the
        first of `holding`. `None` where there was no data, and of absence.
        """
    @property
    def quality(self) -> _Quality:
        """How good what is known of it is: `"good"`, `"nan"`, `"no_data"`, `"stale"` or `"gone"`."""
    @property
    def epoch(self) -> int:
        """1 for the first alert of this rule and group, 2 for the next …"""
    @property
    def cause(self) -> Literal["condition", "initial", "removed", "rule_changed", "rule_removed", "restored"]:
        """Why now: `"condition"`, `"initial"`, `"removed"`, `"rule_changed"`, `"rule_removed"` or `"restored"`."""
    @property
    def at(self) -> float:
        """When, in seconds on the bus's clock."""
    @property
    def date(self) -> datetime:
        """`at` as a date, in UTC."""
    @property
    def since(self) -> float:
        """Since when the condition has held, or held before it was resolved, in seconds on the bus's clock."""
    @property
    def since_date(self) -> datetime:
        """`since` as a date, in UTC; right also where that was before a restart, which the bus's clock cannot tell."""
    @property
    def holds(self) -> int:
        """Of a group of several: for how many the condition holds."""
    @property
    def members(self) -> int:
        """How many series, or sets of series with the same labels, the group has."""
    @property
    def holding(self) -> list[dict[str, str]]:
        """For which of a group of several it holds: their labels, ten at most."""
    @property
    def repeat(self) -> int:
        """How many times this firing was sent before."""
    @property
    def origin(self) -> Origin | None:
        """Where it was made, if in another process; `None`: here. Of one made elsewhere `series` is `None`, `date` is by that
        process's clock, and `at` is when it was received.
        """
    def label(self, name: str) -> str | None:
        """The value of one label, or `None`."""
    def annotation(self, name: str) -> str | None:
        """One annotation, or `None`."""
    def __eq__(self, other: object, /) -> bool: ...
    __hash__: ClassVar[None]  # type: ignore[assignment]
    def to_dict(self) -> dict[str, Any]:
        """Its attributes in a dictionary, as what JSON has: dates as text, series as names and labels."""

@final
class Sync:
    """The mark that ends what a late subscriber begins with: it knows the present state, and from here on alerts are changes."""
    def __eq__(self, other: object, /) -> bool: ...
    __hash__: ClassVar[None]  # type: ignore[assignment]

@final
class Expr:
    """A number made from metrics: the value of a series, a statistic of a window, a sum over series, or arithmetic on these.

    A condition judges it; `MetricBus.derive` makes a gauge of it. Wherever an expression is wanted, a selector, a metric or
    a series stands for its value.

    It is evaluated once for each set of labels. Operands with the same labels belong together, whatever the names of their
    metrics; one without labels goes with all of them. No data is not a number: a gauge that was never set, a window that
    has seen nothing, 0/0. Whatever is computed from it is no data either.

    >>> Expr.value("kv_blocks_used") / Expr.value("kv_blocks")
    <Expr (kv_blocks_used / kv_blocks)>
    """
    @staticmethod
    def value(selector: _Selector) -> Expr:
        """The value of each selected series; of a histogram, each observation.

        In arithmetic a selector should mean one metric: of two with the same labels the one that was mutated last counts. To
        put several together say how: `Expr.sum`, `Expr.max` …
        """
    @staticmethod
    def constant(value: float) -> Expr:
        """A number."""
    @staticmethod
    def sum(selector: _Selector, by: Iterable[str] | None = None) -> Expr:
        """The sum of the selected series: of all, or one for each value of the labels `by`. Series without a value, and NaN, are
        left out, here and in the other gatherings; without any there is no data.
        """
    @staticmethod
    def avg(selector: _Selector, by: Iterable[str] | None = None) -> Expr:
        """The mean of the selected series' values."""
    @staticmethod
    def min(selector: _Selector, by: Iterable[str] | None = None) -> Expr:
        """The least of the selected series' values."""
    @staticmethod
    def max(selector: _Selector, by: Iterable[str] | None = None) -> Expr:
        """The greatest of the selected series' values."""
    @staticmethod
    def count(selector: _Selector, by: Iterable[str] | None = None) -> Expr:
        """How many of the selected series have a value."""
    @staticmethod
    def over(selector: _Selector, width: _Time, by: Iterable[str] | None = None) -> Over:
        """A window of this width over each selected series, or one for each value of the labels `by` (`by=()`: one for all). Say
        next which statistic of it is meant.

        >>> Expr.over("ttft_seconds", 60, by=("model",)).quantile(0.99)
        <Expr quantile 0.99 by (model) (ttft_seconds[60s])>
        """
    @staticmethod
    def rate(selector: _Selector, width: _Time, by: Iterable[str] | None = None) -> Expr:
        """The change per second over a window of this width: `Expr.over(selector, width, by).rate()`."""
    @staticmethod
    def increase(selector: _Selector, width: _Time, by: Iterable[str] | None = None) -> Expr:
        """The increase over a window of this width: `Expr.over(selector, width, by).increase()`."""
    def scaled(self, low: float, high: float) -> Expr:
        """A trigger between 0 and 1: 0 at `low` and before it, 1 at `high` and beyond, linear in between. `low` may be the
        greater of the two.
        """
    def ewma(self, tau: _Time) -> Expr:
        """The exponentially weighted moving average with time constant `tau`, weighted by time: a value that is held for `tau`
        takes 63 % of the way, for 3 `tau` 95 %. It begins at the first value. `tau` is at least 10 ms.
        """
    def __add__(self, other: _Operand, /) -> Expr: ...
    def __radd__(self, other: _Operand, /) -> Expr: ...
    def __sub__(self, other: _Operand, /) -> Expr: ...
    def __rsub__(self, other: _Operand, /) -> Expr: ...
    def __mul__(self, other: _Operand, /) -> Expr: ...
    def __rmul__(self, other: _Operand, /) -> Expr: ...
    def __truediv__(self, other: _Operand, /) -> Expr: ...
    def __rtruediv__(self, other: _Operand, /) -> Expr: ...
    def __neg__(self) -> Expr: ...
    def __bool__(self) -> NoReturn: ...
    def __eq__(self, other: object, /) -> bool: ...
    __hash__: ClassVar[None]  # type: ignore[assignment]

@final
class Over:
    """A window in an expression, of which a statistic is to be chosen. Made by `Expr.over`.

    What the statistics mean for a counter, a gauge and a histogram: `WindowStats`.
    """
    def count(self) -> Expr:
        """Mutations of a gauge, observations of a histogram."""
    def sum(self) -> Expr:
        """The sum."""
    def avg(self) -> Expr:
        """The average: of a gauge over time, of a histogram over observations."""
    def min(self) -> Expr:
        """The least value."""
    def max(self) -> Expr:
        """The greatest value."""
    def last(self) -> Expr:
        """The last value."""
    def rate(self) -> Expr:
        """The change per second; of a histogram, observations per second."""
    def increase(self) -> Expr:
        """The increase of a counter, the change of a gauge."""
    def stddev(self) -> Expr:
        """The standard deviation."""
    def coverage(self) -> Expr:
        """The share of the width that was observed, 0 to 1: a rule about a long window may want most of it."""
    def age(self) -> Expr:
        """Seconds since the newest mutation in the window; no data where there was none."""
    def sources(self) -> Expr:
        """How many series took part."""
    def quantile(self, q: float) -> Expr:
        """The `q`-quantile, 0 to 1, with a relative error of at most 1.1 %."""
    def merged(self) -> Over:
        """One window over all selected series together, rather than one each."""
    def __eq__(self, other: object, /) -> bool: ...
    __hash__: ClassVar[None]  # type: ignore[assignment]

@final
class Condition:
    """What has to hold. Made by `when`, `moved`, `changed`, `stale` and `gone`, and put together with `&`, `|` and `~`.

    A condition about something that has no data is neither true nor false: it does not fire, and neither does its opposite.
    Unknown *and* false is false, unknown *or* true is true.

    >>> when("kv_usage_ratio", above=0.9, clear_below=0.8) & ~when(Expr.rate("requests_total", 60), below=1)
    <Condition (kv_usage_ratio above 0.9, clear below 0.8 and not rate(requests_total[60s]) below 1)>
    """
    def __and__(self, other: Condition, /) -> Condition: ...
    def __rand__(self, other: Condition, /) -> Condition: ...
    def __or__(self, other: Condition, /) -> Condition: ...
    def __ror__(self, other: Condition, /) -> Condition: ...
    def __invert__(self) -> Condition: ...
    def __bool__(self) -> NoReturn: ...
    def __eq__(self, other: object, /) -> bool: ...
    __hash__: ClassVar[None]  # type: ignore[assignment]

def when(input: _Input, **threshold: Unpack[_Threshold]) -> Condition:
    """The input is beyond a bound, and has not crossed its clear bound since: one of `above=`, `at_least=`, `below=`,
    `at_most=`, and at most one of `clear_below=`, `clear_at_most=`, `clear_above=`, `clear_at_least=`.

    The input is an expression, or a selector, a metric or a series, whose value is meant.
    """
def moved(
    input: _Input,
    *,
    absolute: float | None = None,
    relative: float | None = None,
    floor: float | None = None,
    of_range: tuple[float, float, float] | None = None,
) -> Condition:
    """The input has moved by so much since it last had: by `absolute`, by the share `relative` of what it was (of `floor`
    where that is more), or by a share of a range, `of_range=(share, low, high)`.

    Holds for that moment only: a rule fires and is resolved at once, or stays firing for as long as `keep_firing_for` says;
    with `hold_for` it never fires. The first value is the reference and says nothing.
    """
def changed(input: _Input) -> Condition:
    """The input takes another value. Holds for that moment only, as `moved`; every change is seen, not only the last."""
def stale(selector: _Selector, ttl: _Time) -> Condition:
    """A series had no mutation for `ttl`, at least 10 ms; before its first mutation, since the rule was added or the series
    made. A mutation that does not change the value is one.
    """
def gone(selector: _Selector, keep: _Time) -> Condition:
    """A series was removed or has expired. Holds until it is back, or for `keep`; then it is forgotten."""

@final
class Rule:
    """What to watch, and when it is worth a word: a plain value, checked when it is added to a bus.

    Fires when its condition holds, for `hold_for` without a break; is resolved when it has not held for `keep_firing_for`.
    `m_of_n=(m, n, slot)`: the condition counts as holding while it held in `m` of the last `n` slots of that width.

    It judges every series that its selectors match, present and future: with `group="each"` each alone, with `"any"`,
    `"all"` or a number (at least so many) as a group, one for all or one for each value of the labels `by`.

    Annotations may have `{{ $value }}`, `{{ $labels.name }}` and `{{ .Holding }}` in them; anything else in braces, and a label that
    no series can have, raises `RuleError`. `every`: how often windows are looked at.
    `initial=False`: says nothing of what holds already when it is added. `dry_run=True`: records and tells nobody.
    `history`: how many of its last alerts it remembers, 100 unless told otherwise.

    >>> Rule(
    ...     "KvCacheFull",
    ...     when("kv_usage_ratio", above=0.9, clear_below=0.8),
    ...     hold_for=0.5,
    ...     labels={"severity": "page"},
    ...     annotations={"summary": "KV cache of {{ $labels.worker }} is {{ $value }} full"},
    ... )
    <Rule 'KvCacheFull': kv_usage_ratio above 0.9, clear below 0.8>
    """
    def __new__(
        cls,
        name: str,
        condition: Condition,
        *,
        hold_for: _Time | None = None,
        keep_firing_for: _Time | None = None,
        m_of_n: tuple[int, int, _Time] | None = None,
        group: Literal["each", "any", "all"] | int | None = None,
        by: Iterable[str] | None = None,
        labels: Mapping[str, object] | None = None,
        annotations: Mapping[str, object] | None = None,
        every: _Time | None = None,
        initial: bool = True,
        dry_run: bool = False,
        history: int | None = None,
    ) -> Self: ...
    @staticmethod
    def levels(
        name: str,
        levels: Iterable[tuple[str, Condition]],
        *,
        hold_for: _Time | None = None,
        keep_firing_for: _Time | None = None,
        m_of_n: tuple[int, int, _Time] | None = None,
        group: Literal["each", "any", "all"] | int | None = None,
        by: Iterable[str] | None = None,
        labels: Mapping[str, object] | None = None,
        annotations: Mapping[str, object] | None = None,
        every: _Time | None = None,
        initial: bool = True,
        dry_run: bool = False,
        history: int | None = None,
    ) -> Rule:
        """A rule with several conditions, each with the name of a level, the least severe first: its level is the highest that
        fires, and one alert tells each change of it.

        >>> Rule.levels("QueueDeep", [
        ...     ("warn", when("queue_depth", above=80, clear_below=70)),
        ...     ("critical", when("queue_depth", above=90, clear_below=85)),
        ... ])
        <Rule 'QueueDeep': warn: queue_depth above 80, clear below 70; critical: queue_depth above 90, clear below 85>
        """
    @property
    def name(self) -> str:
        """The name."""
    @property
    def conditions(self) -> list[tuple[str | None, str]]:
        """Its condition as text, or its conditions with the names of their levels."""
    def __eq__(self, other: object, /) -> bool: ...
    __hash__: ClassVar[None]  # type: ignore[assignment]
    def to_dict(self) -> dict[str, Any]:
        """Its attributes in a dictionary, as what JSON has: dates as text, series as names and labels."""

@final
class LiveRule:
    """A rule that runs. Others for the same rule are as good; it does not end with them, but by `remove`, or with its bus."""
    @property
    def name(self) -> str:
        """The name."""
    def status(self) -> RuleStatus:
        """How it stands."""
    def history(self) -> list[Alert]:
        """Its last alerts, the oldest first, those of dry runs included. How many: `history` of the rule."""
    @overload
    def on_alert(self, callback: None = None, *, capacity: int | None = None, initial: bool = True) -> Listen[Alert]:
        """The alerts of this rule: what is firing first (unless `initial=False`), then every transition, also after it was
        changed. They end when the rule is removed.
        """
    @overload
    def on_alert(
        self, callback: Callable[[Alert], object], *, capacity: int | None = None, initial: bool = True
    ) -> Subscription[Alert]: ...
    @overload
    def on_notice(self, callback: None = None, *, capacity: int | None = None) -> Listen[Alert | Sync]:
        """As `on_alert`, with the mark `Sync` once what is firing has been told."""
    @overload
    def on_notice(
        self, callback: Callable[[Alert | Sync], object], *, capacity: int | None = None
    ) -> Subscription[Alert | Sync]: ...
    def update(self, rule: Rule) -> None:
        """Changes the rule while it runs; the other rule must have its name. Groups that it also has keep their state and go on
        from there: what is firing and still has to be goes on without a word. Epochs, history and subscriptions go on.

        Where conditions, groups and `every` stay the same, conditions go on where they are, in the middle of a window, too.
        """
    def remove(self) -> bool:
        """Ends the rule: what is firing is resolved, because of `"rule_removed"`. `False`: it had ended already."""

@final
class RuleStatus:
    """How a rule stands."""
    @property
    def name(self) -> str:
        """The rule's name."""
    @property
    def conditions(self) -> list[tuple[str | None, str]]:
        """Its condition as text, or its conditions with the names of their levels."""
    @property
    def thresholds(self) -> list[RuleThreshold]:
        """The thresholds in it."""
    @property
    def state(self) -> _RuleState:
        """The gravest state of its groups: `"inactive"`, `"pending"`, `"clearing"` or `"firing"`."""
    @property
    def inactive(self) -> int:
        """Groups that are inactive."""
    @property
    def pending(self) -> int:
        """Groups that are pending."""
    @property
    def clearing(self) -> int:
        """Groups that are clearing: still firing, though the condition no longer holds."""
    @property
    def firing(self) -> int:
        """Groups that are firing and not clearing."""
    @property
    def active(self) -> list[RuleGroup]:
        """Groups that are not inactive."""
    @property
    def series(self) -> int:
        """Series that match now, counted once for each place in the rule."""
    @property
    def ever_matched(self) -> bool:
        """Whether any series has ever matched. One that hasn't is not quiet: it is about nothing, often for a typing error."""
    @property
    def unmatched(self) -> list[str]:
        """Selectors of the rule that have never matched a series."""
    @property
    def did_you_mean(self) -> list[str]:
        """Of those in which a name stands that no metric has: the names of metrics that may have been meant."""
    @property
    def no_data(self) -> int:
        """Groups of which nothing is known: what they look at was never set, or saw nothing."""
    @property
    def value(self) -> float | None:
        """What it looks at now; of a rule about several sets of labels, what it judged last. `None`: there is no data."""
    @property
    def since_evaluated(self) -> float | None:
        """How many seconds ago something was last judged, or `None`. A threshold judges only what crosses its bound, or comes
        near: long silence is no fault.
        """
    @property
    def fired(self) -> int:
        """Alerts that said firing."""
    @property
    def resolved(self) -> int:
        """Alerts that said resolved."""
    @property
    def missed(self) -> int:
        """Alerts that were dropped from full mailboxes of subscribers."""
    @property
    def dry_run(self) -> bool:
        """Whether it tells no subscriber."""

@final
class RuleThreshold:
    """One threshold of a rule, as numbers."""
    @property
    def level(self) -> str | None:
        """The level it belongs to, or `None`."""
    @property
    def input(self) -> str:
        """What is compared."""
    @property
    def bound(self) -> float:
        """The bound at which it begins to hold."""
    @property
    def clear(self) -> float:
        """The bound at which it ceases to."""

@final
class RuleGroup:
    """One group of a rule."""
    @property
    def labels(self) -> dict[str, str]:
        """What tells it apart."""
    @property
    def state(self) -> _RuleState:
        """Its state: `"inactive"`, `"pending"`, `"clearing"` or `"firing"`."""
    @property
    def level(self) -> str | None:
        """The level in force, of a rule with levels."""
    @property
    def since(self) -> float | None:
        """Since when the condition has held, in seconds on the bus's clock."""
    @property
    def since_date(self) -> datetime | None:
        """The same as a date, in UTC; right also where that was before a restart."""
    @property
    def value(self) -> float | None:
        """What was judged last, or `None`."""
    @property
    def quality(self) -> _Quality:
        """How good what is known of it is: `"good"`, `"nan"`, `"no_data"`, `"stale"` or `"gone"`."""
    @property
    def epoch(self) -> int:
        """How many alerts there were of it."""

@final
class Derived:
    """A gauge that shows an expression. Ends when it is closed, or when nothing refers to it any more: its series are removed."""
    @property
    def name(self) -> str:
        """The gauge's name."""
    @property
    def expr(self) -> Expr:
        """What it shows."""
    def close(self) -> None:
        """Removes its series. In a forked child there is nothing to remove."""
    def forget(self) -> Self:
        """Keeps it for as long as the bus lives, though nobody holds it."""
    def __enter__(self) -> Self: ...
    def __exit__(self, *_exception: object) -> None: ...
    def get(self) -> float | None:
        """Its present value, where it is one series; `None` where there is no data, no series, or more than one."""
    @property
    def series(self) -> list[Series]:
        """Its series: one for each set of labels that the expression has a value for."""
    def window(self, width: _Time) -> Window:
        """A sliding window over its series, those to come too, from now on."""

@final
class Window:
    """A sliding window over one series, or over all series of a selector, present and future. It sees mutations from its making
    on, and ends when nothing refers to it any more.

    A gauge's average is weighted by time: a value counts for as long as it was held. A counter's increase and rate are exact
    over the time that the window covers: its width, and less than a slot more. Time is cut into slots of a hundredth of the
    width, at least 10 ms; a window is at least 100 ms wide.

    One over a single series stays as it was when that is removed; of a selector, a series that is removed leaves the window.
    """
    def stats(self) -> WindowStats:
        """What it has seen, up to now: of several series, what all of them together have. Without any series `sources` is 0, and
        everything is `None`.
        """
    def each(self) -> list[tuple[Series, WindowStats]]:
        """What each series has seen, up to now."""
    def stats_by(self, labels: Iterable[str]) -> list[tuple[dict[str, str], WindowStats]]:
        """What the series have seen that agree in these labels, up to now: for each combination of values, in order. A label
        that a series does not have is empty.
        """
    @property
    def width(self) -> float:
        """The width in force, in seconds: what was asked for, at least 0.1."""

@final
class WindowStats:
    """What a window has seen.

    `None` means that there was nothing to go by; it is never 0 instead. NaN is passed over, and so is a gauge until it is
    first set.

    |          | gauge                      | counter                 | histogram                  |
    |----------|----------------------------|-------------------------|----------------------------|
    | count    | how often it was set       | 0                       | observations               |
    | sum      | of the values set          | the increase            | of the observations        |
    | avg      | of the value over *time*   | None                    | of the observations        |
    | min, max | of the values held or set  | None                    | of the observations        |
    | stddev   | of the value over time     | None                    | as their buckets tell      |
    | quantile | of the value over time     | None                    | of the observations        |
    | last     | the value                  | the value               | None                       |
    | increase | the change of the value    | the increase            | count                      |
    | rate     | its change per second      | the increase per second | observations per second    |
    | age      | since it was last set      | since it last grew      | since the last observation |

    Of several series: counts, sums, increases and rates add up; `avg`, `stddev` and quantiles are over all series and their
    time (gauges) or over all observations; `min` and `max` are those of single series, not of their sum; `age` is that of the
    newest mutation; `last` is `None`.
    """
    @property
    def width(self) -> float:
        """The width in force, in seconds: what was asked for, at least 0.1."""
    @property
    def coverage(self) -> float:
        """The share of the width that was observed, 0 to 1: small until the window has existed for its width, 1 from then on. Of
        several series the mean.
        """
    @property
    def sources(self) -> int:
        """How many series took part."""
    @property
    def stale(self) -> int:
        """How many of them had no mutation in the window."""
    @property
    def count(self) -> int:
        """How often a gauge was set; observations of a histogram."""
    @property
    def sum(self) -> float | None:
        """The sum: see the table."""
    @property
    def avg(self) -> float | None:
        """The average: of a gauge over time, of a histogram over observations."""
    @property
    def min(self) -> float | None:
        """The least value."""
    @property
    def max(self) -> float | None:
        """The greatest value."""
    @property
    def stddev(self) -> float | None:
        """The standard deviation, of everything rather than of a sample: one value has 0."""
    @property
    def last(self) -> float | None:
        """The last value, of a window over one series."""
    @property
    def increase(self) -> float | None:
        """The increase of a counter, the change of a gauge."""
    @property
    def rate(self) -> float | None:
        """The change per second; of a histogram, observations per second. There is none until one slot was observed."""
    @property
    def age(self) -> float | None:
        """Seconds since the newest mutation that the window has seen, or `None`."""
    def quantile(self, q: float) -> float | None:
        """The `q`-quantile, from 0 (the minimum) to 1 (the maximum): the smallest value that at least the share `q` of all was at
        or under. Of a gauge the share of time. Off by at most 1.1 % of itself. `None` where there is nothing to go by.
        """
    def __eq__(self, other: object, /) -> bool: ...
    __hash__: ClassVar[None]  # type: ignore[assignment]

@final
class Exporter:
    """What is exposed, and how: answers for any web server, and a server of its own."""

    def __new__(
        cls,
        bus: MetricBus,
        *,
        process_metrics: bool = True,
        hooks_deadline: _Time | None = None,
        merge: Iterable[Any] | None = None,
        created_lines: bool = False,
        native_buckets_max: int | None = None,
    ) -> Self:
        """`process_metrics`: whether `process_*` is exposed. `hooks_deadline`: how long a scrape waits for hooks, 1 s unless told.

        `merge`: registries of `prometheus_client` to expose as well. `created_lines`: whether OpenMetrics says since when each counter
        and histogram counts, on a line `NAME_created` (a Prometheus before 2.50 stores those as series; protobuf says it anyway).
        `native_buckets_max`: the most exponential buckets that a native histogram has in a scrape, 160 unless told otherwise.
        """
    def answer(
        self,
        path: str = "/metrics",
        *,
        method: str = "GET",
        accept: str | None = None,
        accept_encoding: str | None = None,
    ) -> tuple[int, list[tuple[str, str]], bytes]: ...
    def answer_async(
        self,
        path: str = "/metrics",
        *,
        method: str = "GET",
        accept: str | None = None,
        accept_encoding: str | None = None,
    ) -> Awaitable[tuple[int, list[tuple[str, str]], bytes]]:
        """`answer`, to be awaited: the event loop goes on meanwhile."""

    def serve(self, address: str | int = ..., *, metrics_on_every_path: bool = False) -> Server:
        """Serves in the background. `metrics_on_every_path`: `/` and all paths that lead nowhere lead to the metrics, as
        `prometheus_client` has it.
        """

@final
class Push:
    """What sends the metrics of a bus to a Prometheus Pushgateway, for batch jobs that are over before anybody scrapes them.

    The gateway keeps what was pushed until it is deleted: a group for each `job` and the labels of `grouping`. `basic_auth` is
    user and password, `headers` go with each request, `timeout` is for all of a push (10 s unless told otherwise). `format` is
    `"text"`, or `"protobuf"`, which carries native histograms, too. `root_certificates` are PEM files with those who may vouch for the
    gateway, `client_certificate` those of the certificate to show and its key. What is wrong with any of it is a `PushError` of what
    is sent.
    """

    def __new__(
        cls,
        url: str,
        job: str,
        *,
        grouping: Mapping[str, object] | None = None,
        basic_auth: tuple[str, str] | None = None,
        headers: Mapping[str, object] | None = None,
        timeout: _Time | None = None,
        format: Literal["text", "protobuf"] = "text",
        root_certificates: _Path | Sequence[_Path] | None = None,
        client_certificate: tuple[_Path, _Path] | None = None,
    ) -> Self: ...
    def push(self, bus: MetricBus) -> None:
        """Replaces the whole group by the metrics of the bus: what it had before and the bus has not is gone."""
    def add(self, bus: MetricBus) -> None:
        """As `push`, but of what the group had before only metrics of the same names are replaced."""
    def delete(self) -> None:
        """Deletes the group. There need not be one. A gateway answers as soon as it has noted the wish, and deletes a moment later."""
    def push_async(self, bus: MetricBus) -> Awaitable[None]:
        """`push`, to be awaited: the event loop goes on meanwhile."""
    def add_async(self, bus: MetricBus) -> Awaitable[None]:
        """`add`, to be awaited."""
    def delete_async(self) -> Awaitable[None]:
        """`delete`, to be awaited."""

@final
class OtlpOptions:
    """Where metrics are exported to by OTLP, and how. Without arguments: to a collector on this machine, each minute.

    `endpoint`: the collector's URL, to which `/v1/metrics` is added for HTTP; `http://localhost:4318`, or `:4317` for gRPC, unless told
    otherwise. `metrics_endpoint`: the whole URL instead. `protocol`: `"http/protobuf"` or `"grpc"`. `headers`: of each request.
    `timeout`: for an answer (10 s). `give_up_after`: for how long a batch is tried before it is dropped and counted (5 min).
    `compression`: `"none"` or `"gzip"`. `interval`: how often (60 s). `temporality`: `"cumulative"`, `"delta"` or `"lowmemory"`.
    `histograms`: `"explicit"` with their own buckets, or `"exponential"`, with at most `buckets_max` (160). `resource`: attributes of the
    resource. `service_name`: its `service.name`. `root_certificates`: PEM files with those who may vouch for the collector.
    `client_certificate`: PEM files of the certificate to show, and its key. `batch_points`: points in a request (8 192). `queue_bytes`:
    what may wait (32 MiB). `retry`: how long is waited before the first retry, and at most (1 s, 30 s). `own_metrics`: whether
    `metricbus_*` is exported, too.

    Nothing is opened or read before an exporter is started with them. No text of it shows a header's value.
    """

    def __new__(
        cls,
        endpoint: str | None = None,
        *,
        metrics_endpoint: str | None = None,
        protocol: Literal["http/protobuf", "grpc"] = "http/protobuf",
        headers: Mapping[str, object] | None = None,
        timeout: _Time | None = None,
        give_up_after: _Time | None = None,
        compression: Literal["none", "gzip"] = "none",
        interval: _Time | None = None,
        temporality: Literal["cumulative", "delta", "lowmemory"] = "cumulative",
        histograms: Literal["explicit", "exponential"] = "explicit",
        buckets_max: int | None = None,
        resource: Mapping[str, object] | None = None,
        service_name: str | None = None,
        root_certificates: _Path | Sequence[_Path] | None = None,
        client_certificate: tuple[_Path, _Path] | None = None,
        batch_points: int | None = None,
        queue_bytes: int | None = None,
        retry: tuple[_Time, _Time] | None = None,
        own_metrics: bool = False,
    ) -> Self: ...
    @staticmethod
    def from_env() -> OtlpOptions:
        """As the environment says, with OpenTelemetry's own variables: `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME` and so on.

        A word or a number that is not known is logged and counts as not set, as OpenTelemetry has it. An endpoint, headers or certificates that can't be
        used are a `BackendError` that names the variable, the value, and what would be right.
        """

@final
class Server:
    """A server for `/metrics`, which runs until it is closed."""

    @property
    def address(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def url(self) -> str: ...
    @property
    def is_closed(self) -> bool: ...
    def close(self) -> None: ...
    def forget(self) -> None: ...
    def __await__(self) -> Generator[Any, None, None]: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_exception: object) -> None: ...

# How events get here; for `_delivery`.

@final
class Bell:
    def __new__(cls) -> Self: ...
    def fileno(self) -> int: ...
    def take(self) -> list[int]: ...
    def ring(self) -> None: ...

@final
class Opening:
    def open(self, looker: Bell | ThreadPool, key: int) -> Receiver: ...

@final
class Receiver:
    def take(self, most: int) -> tuple[list[object], Literal["more", "empty", "ended"]]: ...
    def ring(self) -> None: ...
    def close(self) -> None: ...
    def failed(self, in_a_row: int, message: str) -> bool: ...
    def hangs(self) -> None: ...
    def stats(self) -> SubscriptionStats: ...

@final
class ThreadPool:
    def __new__(cls, running_max: int, stall: _Time, patience: _Time) -> Self: ...
    def next(self, done: int | None = None) -> tuple[int, bool, list[int]] | None: ...
    def close(self, patience: float) -> bool: ...

@final
class HookRun:
    @property
    def function(self) -> Callable[[], object]: ...
    def failed(self) -> None: ...
    def forget(self) -> None: ...
    def end(self) -> None: ...

# Across pods, over NATS.

@final
class NatsOptions:
    """Which NATS servers to connect to, and as whom.

    `urls` is one URL, or several: with commas between them, or as a list. `nats://` and port 4222 may be left out;
    `tls://` demands TLS; `user:password@` or `token@` may stand before the host.

    What is shown to the server to be let in is one of: `user` and `password`, `token`, `credentials_file` (a user's
    JWT and seed, as `nsc` writes them), `credentials` (the content of such a file), `nkey_file`, `nkey` (the seed
    itself).

    `root_certificates`: PEM files with those who may vouch for a server, in place of the system's.
    `client_certificate`: the certificate to show to the server, and its key. `require_tls`: no connection without
    TLS. `tls_first`: TLS from the first byte. `name`: what the connection is called in the server's lists.
    `ping_interval`: how often a silent server is asked whether it is there, 5 s unless told otherwise.
    `inbox_prefix`: under what answers are received.

    No text of it, and of no error, holds a secret. Files are read when a connection is made.
    """

    def __new__(
        cls,
        urls: str | Sequence[str],
        *,
        user: str | None = None,
        password: str | None = None,
        token: str | None = None,
        credentials_file: _Path | None = None,
        credentials: str | None = None,
        nkey_file: _Path | None = None,
        nkey: str | None = None,
        root_certificates: _Path | Sequence[_Path] | None = None,
        client_certificate: tuple[_Path, _Path] | None = None,
        require_tls: bool = False,
        tls_first: bool = False,
        name: str | None = None,
        ping_interval: _Time | None = None,
        inbox_prefix: str | None = None,
    ) -> Self: ...
    @staticmethod
    def from_env() -> NatsOptions:
        """As the environment says, with the variables of the `nats` command line tool: `NATS_URL`
        (`nats://127.0.0.1:4222` if not set), `NATS_CREDS`, `NATS_NKEY`, `NATS_USER` and `NATS_PASSWORD`,
        `NATS_TOKEN`, `NATS_CA`, `NATS_CERT` and `NATS_KEY`. An empty variable counts as one that is not set.
        """

@final
class NatsForwarder:
    """Publishes what happens on a bus to NATS. Made by `await NatsForwarder.start(bus, options, …)`.

    Nothing that the network does is an error: `status()` and the metrics `metricbus_nats_*` of the bus tell what it
    does. An alert goes into an outbox, and from there to the server as soon as there is one, again and again until
    it is confirmed. A mutation never waits for any of this, and neither does an event loop.

    It ends by `await forwarder.shutdown()` or the end of an `async with`, and also when nothing refers to it any
    more, when its bus ends, and when the interpreter does; then it is given a second for its last alerts. It
    belongs to the process, not to the loop in which it was started.
    """

    @staticmethod
    def start(
        bus: MetricBus,
        options: NatsOptions | str,
        *,
        source: SourceId | str | None = None,
        prefix: str | None = None,
        subject: str | None = None,
        delivery: Literal["auto", "core", "jetstream"] = "auto",
        stream: str | None = None,
        create_stream: bool = False,
        outbox: int | None = None,
        outbox_bytes: int | None = None,
        heartbeat: _Time | None = None,
        alerts_per_second_max: float | None = None,
        frames_per_second_max: float | None = None,
        rules_from: str | None = None,
    ) -> Future[NatsForwarder]:
        """Starts a forwarder of what happens on `bus`. That no server answers is no error; wrong settings and missing
        files are.

        `options` are `NatsOptions` or a URL. `source` says who we are; without it the environment does:
        `METRICBUS_NAMESPACE`, `METRICBUS_COMPONENT`, and `HOSTNAME` or what the machine is called.

        `delivery` is how alerts get to the server. `"core"`: to those who listen at the time. `"jetstream"`: into
        the stream `stream`, which is made where it does not exist if `create_stream` is true. `"auto"`: through
        JetStream where a stream takes their subject, else as `"core"`. `subject` is a template for subjects of your
        own, such as `alerts.{component}.{rule}.{state}`, which a `Fleet` does not hear.

        `outbox` and `outbox_bytes` bound the alerts that wait or may be asked for again: 10 000 and 64 MiB.
        `heartbeat` is how often to say that we live: each second. `alerts_per_second_max` and
        `frames_per_second_max`: 1 000 and 100.

        `rules_from` names a bucket of JetStream's key-value store, `"metricbus-rules"` as a rule, from which rules
        are taken that a `Fleet` sends. Not unless told: whoever may write there decides what is evaluated here.
        """
    def forward_alerts(self) -> AlertForwarding:
        """Sends every alert of the bus's rules, those that are firing now first, for as long as the forwarder lives or
        until what it returns is closed.

        The thread that mutates puts the alert into the outbox: no callback of Python and no event loop lies
        between. To send some alerts only, call `send` in a callback of `bus.on_alert`.
        """
    def forward(
        self,
        selector: _Selector,
        *,
        every: _Time | None = None,
        name: str | None = None,
        absolute: float | None = None,
        relative: float | None = None,
        floor: float | None = None,
        of_range: tuple[float, float, float] | None = None,
    ) -> Forwarding:
        """Sends the values of the selected series, present and future, when they have changed, for as long as the
        forwarder lives or until what it returns is closed.

        `every` is how often a frame is sent at most: 0.1 s unless told otherwise, at least 0.01 s. With `absolute`,
        `relative` or `of_range`, in the words of `on_delta`, a gauge is sent only when it has moved by so much
        since it was last sent. `name` is the last token of the subject, by which consumers choose: `all` unless
        told otherwise.
        """
    def send(self, alert: Alert) -> int:
        """Puts one alert of a rule of this process into the outbox, and returns its place there: 1 for the first alert
        of this forwarder, 2 for the next … Never waits.

        Raises `NatsError` for an alert that came from another process, lest it go round in circles, and for one
        that is larger than all of the outbox.
        """
    def status(self) -> ForwarderStatus:
        """What it is doing."""
    @property
    def source(self) -> SourceId:
        """Who it says it is."""
    def flush(self, deadline: _Time) -> Future[None]:
        """Waits until all alerts that are in the outbox now are confirmed, and raises `NatsError`, with what stood in
        the way, when they are not within `deadline`. They stay in the outbox then.
        """
    def shutdown(self, deadline: _Time | None = None) -> Future[None]:
        """Takes no more alerts, waits until those it has are confirmed, but not longer than `deadline`, says that it
        ends, and closes the connection. What is not confirmed by then is lost. It goes on where waiting for it is
        given up.
        """
    @property
    def is_closed(self) -> bool:
        """Whether it was shut down."""
    def __aenter__(self) -> Future[Self]: ...
    def __aexit__(self, *_exception: object) -> Future[None]: ...

@final
class Forwarding:
    """Series that a forwarder sends. Goes on until it is closed, or its forwarder ends."""

    @property
    def series(self) -> int:
        """How many series it forwards now."""
    @property
    def frames_sent(self) -> int:
        """How many frames it has sent."""
    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
    def close(self) -> None:
        """Ends it, and tells consumers that its series are no more, unless another forwarding of this source has them."""
    def __enter__(self) -> Self: ...
    def __exit__(self, *_exception: object) -> None: ...

@final
class AlertForwarding:
    """The alerts of a bus, which a forwarder sends. Goes on until it is closed, or its forwarder ends."""

    def stats(self) -> SubscriptionStats:
        """What it has done so far: how many alerts it has put into the outbox."""
    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
    def close(self) -> None:
        """Ends it. What is in the outbox is sent all the same."""
    def __enter__(self) -> Self: ...
    def __exit__(self, *_exception: object) -> None: ...

@final
class ConnectionStatus:
    """A connection as it is now, for people."""

    @property
    def state(self) -> Literal["connecting", "connected", "disconnected", "refused"]:
        """`"connecting"`: not yet connected, tried again and again. `"connected"`. `"disconnected"`: it was connected,
        and is tried again. `"refused"`: there is a server, and credentials or certificates are wrong; tried again
        all the same.
        """
    @property
    def since(self) -> datetime:
        """Since when."""
    @property
    def servers(self) -> list[str]:
        """The addresses it was given, without secrets."""
    @property
    def server(self) -> str | None:
        """The name of the server it is connected to, or was last."""
    @property
    def version(self) -> str | None:
        """The version of that."""
    @property
    def last_error(self) -> str | None:
        """The last that went wrong, and what to do about it. Stays after it was put right, with `last_error_at`."""
    @property
    def last_error_at(self) -> datetime | None:
        """When that was."""
    @property
    def connects(self) -> int:
        """How many times it was connected."""
    @property
    def denied(self) -> int:
        """What the server did not permit: publications and subscriptions."""
    @property
    def slow(self) -> int:
        """Messages that were dropped because a subscription's reader did not keep up."""

@final
class ForwarderStatus:
    """What a forwarder is doing."""

    @property
    def source(self) -> SourceId:
        """Who it says it is."""
    @property
    def boot(self) -> int:
        """Which life of that source this is: microseconds since 1970 at its start."""
    @property
    def connection(self) -> ConnectionStatus:
        """The connection."""
    @property
    def delivery(self) -> str:
        """How alerts are sent at the moment, for people: `core NATS`, `stream NAME`, or that it is not known yet."""
    @property
    def outbox(self) -> OutboxStatus:
        """Alerts."""
    @property
    def frames(self) -> FramesStatus:
        """Frames of updates."""
    @property
    def rules_in(self) -> RulesInStatus | None:
        """Rules taken from others, where `rules_from` was given."""
    @property
    def last_error(self) -> str | None:
        """The last that went wrong other than with the connection, and what to do about it."""
    @property
    def last_error_at(self) -> datetime | None:
        """When that was."""

@final
class OutboxStatus:
    """The alerts of a forwarder."""

    @property
    def held(self) -> int:
        """In the outbox, confirmed or not …"""
    @property
    def limit(self) -> int:
        """… at most so many …"""
    @property
    def bytes(self) -> int:
        """… of so many bytes, by estimate."""
    @property
    def unconfirmed(self) -> int:
        """Of them: not confirmed."""
    @property
    def oldest_unconfirmed(self) -> float | None:
        """For how many seconds the oldest of those is there, by the bus's clock."""
    @property
    def sent(self) -> int:
        """Given to the client, each time it was."""
    @property
    def retried(self) -> int:
        """Of those: not for the first time."""
    @property
    def confirmed(self) -> int:
        """Confirmed."""
    @property
    def dropped(self) -> int:
        """Lost because the outbox was full."""
    @property
    def too_large(self) -> int:
        """Lost because they are larger than the server takes, or the outbox."""
    @property
    def unstored(self) -> int:
        """Of those that are confirmed: sent to a stream that did not take them, so that only those who listened have
        them.
        """
    @property
    def looped(self) -> int:
        """Refused because they came from another process."""

@final
class FramesStatus:
    """The frames of updates of a forwarder."""

    @property
    def forwardings(self) -> int:
        """How many forwardings there are."""
    @property
    def series(self) -> int:
        """How many series are forwarded; one that several forward is counted once."""
    @property
    def sent(self) -> int:
        """Given to the client."""
    @property
    def bytes(self) -> int:
        """Their bytes."""
    @property
    def dropped(self) -> int:
        """Not taken by the client in time; the next one holds what they held."""
    @property
    def merged(self) -> int:
        """Times that a forwarding sent nothing, as the source had sent as many as it may; it was sent later, together."""
    @property
    def too_large(self) -> int:
        """Times that a series was left out because it alone is larger than a message may be."""
    @property
    def skipped(self) -> int:
        """Sequences left out on purpose, so that consumers ask for a snapshot: more series had gone than could be
        told.
        """

@final
class RulesInStatus:
    """Rules from a bucket, as they stand."""

    @property
    def bucket(self) -> str:
        """The bucket."""
    @property
    def state(self) -> Literal["waiting", "watching", "missing", "failing"]:
        """Where the reading of it stands: `"waiting"` (for a connection), `"watching"`, `"missing"` (there is no such
        bucket) or `"failing"`. It is tried again in any case, and rules that are in force go on.
        """
    @property
    def why(self) -> str | None:
        """Why it can't be read, where it is failing."""
    @property
    def in_force(self) -> int:
        """How many rules are in force because the bucket says so."""
    @property
    def refused(self) -> list[RefusedRule]:
        """Keys about this source that give no rule, and why."""

@final
class RefusedRule:
    """A key of a bucket that gives no rule."""

    @property
    def key(self) -> str:
        """The key."""
    @property
    def why(self) -> str:
        """What is wrong, and what would be right."""

@final
class Fleet:
    """All sources of a fleet: their series, as they are, on a bus of its own; their alerts; whether they live. Made by
    `await Fleet.start(options, …)`.

    It finds by itself who is there, and takes each over by snapshot; it finds out what it missed, and mends it. It
    ends when it is closed, by `close()` or the end of an `async with`, or when nothing refers to it any more; its
    bus is then left without the sources' series. It belongs to the process, not to the loop in which it was
    started.

    Series have the labels `namespace`, `component` and `instance` in front, and are ordinary series of `bus`
    otherwise: selectors, thresholds, rules, windows and `/metrics` apply. They move when a frame comes, so a spike
    between two frames is seen by rules at the source only. `fleet_source_up{namespace,component,instance}` is 1 for
    a source that lives and 0 for one that is stale; of one that is gone there is none.
    """

    @staticmethod
    def start(
        options: NatsOptions | str,
        *,
        namespace: str | None = None,
        component: str | None = None,
        prefix: str | None = None,
        stale_after: _Time | None = None,
        gone_after: _Time | None = None,
        sources_max: int | None = None,
        series_max_per_source: int | None = None,
        rules_bucket: str | None = None,
        clock: Clock | None = None,
    ) -> Future[Fleet]:
        """Begins to listen. An unreachable server is no error: it is tried again and again, and `status()` says how it
        goes.

        `options` are `NatsOptions` or a URL. `namespace` and `component` choose sources; `prefix` is that of all
        subjects, as the forwarders have it: `metricbus`.

        A source of which nothing was heard for `stale_after` is stale: three of its heartbeats unless told
        otherwise; one of which nothing was heard for `gone_after`, 10 s, is gone. `sources_max` and
        `series_max_per_source` bound what is taken in: 10 000 each. `rules_bucket` is where sources look for rules:
        `metricbus-rules`. `clock` is the clock of the fleet's bus, by which sources live and die.
        """
    @property
    def bus(self) -> MetricBus:
        """The bus with all series of all sources. Metrics may be declared on it, too."""
    def synced(self) -> Future[None]:
        """Done when the fleet is connected and knows everybody who is there, with all series and what is firing. At
        once, where it is so already. Without a server it waits for one: bound it by `asyncio.wait_for`.
        """
    @property
    def is_synced(self) -> bool:
        """Whether it is in sync now."""
    def sources(self) -> list[SourceStatus]:
        """All sources, sorted; those that were gone in the last ten minutes, too."""
    def source(self, source: SourceId | str) -> SourceStatus | None:
        """How one source stands, or `None`: it is not known."""
    @overload
    def on_source(
        self, callback: None = None, *, capacity: int | None = None, initial: bool = True
    ) -> Listen[SourceEvent]:
        """What becomes of sources; first, unless `initial` is false, which are there."""
    @overload
    def on_source(
        self, callback: Callable[[SourceEvent], object], *, capacity: int | None = None, initial: bool = True
    ) -> Subscription[SourceEvent]: ...
    @overload
    def on_alert(self, callback: None = None, *, capacity: int | None = None, initial: bool = True) -> Listen[Alert]:
        """The alerts that rules at the sources make: what is firing first, unless `initial` is false, then each once
        and in order for each source. `alert.origin` says of whom. Alerts of rules on the fleet's own bus:
        `fleet.bus.on_alert`.
        """
    @overload
    def on_alert(
        self, callback: Callable[[Alert], object], *, capacity: int | None = None, initial: bool = True
    ) -> Subscription[Alert]: ...
    def add_rule(self, rule: Rule) -> LiveRule:
        """Runs a rule over the series of all sources; as `add_rule` of `bus`."""
    def window(self, selector: _Selector, width: _Time) -> Future[FleetWindow]:
        """Asks all live sources what a window of this width has seen, and merges what they say without loss: quantiles
        are those of all observations of all sources.

        Matchers on `namespace`, `component` and `instance` choose whom to ask. A source opens a window when it is
        first asked, so the first answers cover little of it: see `stats.coverage`. It keeps it as long as somebody
        asks at least once a minute. Sources that don't answer within two seconds are named in the result; so are
        those that are stale.
        """
    def snapshot(self, source: SourceId | str, selector: _Selector | None = None) -> Future[Snapshot]:
        """Asks one source for the selected series as they are this moment, of those that it forwards; all of them
        unless told otherwise. Their labels are those that the source gave them. Raises `FleetError` when it does
        not answer.
        """
    def rules_of(self, source: SourceId | str) -> Future[SourceRules]:
        """Asks one source how its rules stand. Raises `FleetError` when it does not answer."""
    def send_rule(self, target: RuleTarget, rule: Rule) -> Future[SentRule]:
        """Sends a rule to sources, which run it themselves where they were told to take rules from this bucket: each
        mutation is judged, and only transitions travel. It replaces the one of its name that was sent to the same
        target.

        Without a connection, or JetStream, it is kept and written as soon as that can be; `written` and `why` of
        what it returns say so. It stays in the bucket when the fleet ends. Whether sources took it: `rules_of`.
        """
    def retract_rule(self, target: RuleTarget, name: str) -> Future[SentRule]:
        """Takes a rule back that was sent to this target, by whomever: sources end it. Where it can't be written yet
        it is kept, as with `send_rule`. One that is not there is no error.
        """
    def sent_rules(self) -> Future[list[SentRule]]:
        """All rules in the bucket, by whomever they were sent, and those that this fleet could not yet write. Without
        a connection: those that this fleet has sent.
        """
    def status(self) -> FleetStatus:
        """How it stands."""
    @property
    def is_closed(self) -> bool:
        """Whether it was closed."""
    def close(self) -> None:
        """Ends it. Its bus is left without the sources' series, and `on_alert` and `on_source` hear no more."""
    def __aenter__(self) -> Future[Self]: ...
    def __aexit__(self, *_exception: object) -> Future[None]: ...

@final
class FleetStatus:
    """How a fleet stands."""

    @property
    def connection(self) -> ConnectionStatus:
        """Its connection."""
    @property
    def synced(self) -> bool:
        """Whether it knows all who are there, with everything."""
    @property
    def live(self) -> int:
        """Sources that live …"""
    @property
    def stale(self) -> int:
        """… that are stale …"""
    @property
    def gone(self) -> int:
        """… and that are gone, of the last ten minutes."""
    @property
    def unsynced(self) -> int:
        """Sources of which something is missing: not yet taken over, or being mended."""
    @property
    def gaps(self) -> int:
        """Times at which frames of a source were found missing."""
    @property
    def alerts_lost(self) -> int:
        """Alerts that nobody can get any more."""
    @property
    def firing(self) -> int:
        """Groups of rules that fire at sources."""
    @property
    def dropped(self) -> int:
        """Messages that were dropped since the fleet did not keep up."""
    @property
    def ignored(self) -> dict[str, int]:
        """What was received and ignored, by reason."""
    @property
    def last_ignored(self) -> str | None:
        """Why something was last ignored."""
    @property
    def rules_unwritten(self) -> int:
        """Rules to be sent, or taken back, that are not yet in the bucket."""

@final
class SourceEvent:
    """Something has become of a source.

    | `change` | |
    |---|---|
    | `"born"` | it is known, with all its series |
    | `"restarted"` | it is another life of the process, with all its series; `other_boot` is the one before |
    | `"live"` | it was stale, and was heard again |
    | `"back"` | it was gone, and is there again, with all its series |
    | `"stale"` | nothing was heard of it for too long; its series are still there, as they were |
    | `"gone"` | it is dead, or nobody can vouch for it any more: see `gone`; its series are gone |
    | `"conflict"` | a second process, of `other_boot`, has the same identity, and is ignored |
    | `"alerts_lost"` | it said `alerts` alerts that nobody can get any more |
    | `"refused"` | its metric `metric` can't be taken over, and is left out: `why` |
    """

    @property
    def source(self) -> SourceId:
        """Which one."""
    @property
    def boot(self) -> int:
        """Which life of it."""
    @property
    def change(self) -> Literal["born", "restarted", "live", "back", "stale", "gone", "conflict", "alerts_lost", "refused", "other"]:
        """What: `"born"`, `"restarted"`, `"live"`, `"back"`, `"stale"`, `"gone"`, `"conflict"`, `"alerts_lost"` or
        `"refused"`.
        """
    @property
    def gone(self) -> Literal["died", "silent", "no_responders", "unreachable", "failed", "other"] | None:
        """How it is known that it is gone: `"died"` (it said so), `"silent"`, `"no_responders"` (the server says that
        nobody answers for it), `"unreachable"` (the fleet itself has no connection) or `"failed"` (it has failed itself).
        """
    @property
    def why(self) -> str | None:
        """In words, why it is gone or a metric was refused."""
    @property
    def other_boot(self) -> int | None:
        """The boot of the life before, or of the double."""
    @property
    def alerts(self) -> int | None:
        """How many alerts were lost."""
    @property
    def metric(self) -> str | None:
        """The name of the metric that was refused."""
    @property
    def at(self) -> float:
        """When, in seconds on the clock of the fleet's bus."""
    @property
    def date(self) -> datetime:
        """`at` as a date, in UTC."""
    @property
    def initial(self) -> bool:
        """It was so when the subscriber came, and is no news."""
    @property
    def text(self) -> str:
        """All of it in words, such as `prod/decode/pod-7 is stale`."""
    def to_dict(self) -> dict[str, Any]:
        """Its attributes in a dictionary, as what JSON has: dates as text, series as names and labels."""

@final
class SourceStatus:
    """How a source stands.

    Counts are since the fleet knows of the source; it forgets one that has been gone for ten minutes.
    """

    @property
    def source(self) -> SourceId:
        """Which one."""
    @property
    def state(self) -> Literal["live", "stale", "gone"]:
        """Whether it lives: `"live"`, `"stale"` (nothing was heard of it for too long; what it last said is still
        shown) or `"gone"`.
        """
    @property
    def boot(self) -> int:
        """Which life: microseconds since 1970 by its own clock, when that began."""
    @property
    def synced(self) -> bool:
        """Whether all its series, and what it has firing, are known."""
    @property
    def series(self) -> int:
        """Its series on the fleet's bus. It may have more: see `refused`."""
    @property
    def series_said(self) -> int:
        """How many series it says that it forwards."""
    @property
    def age(self) -> float:
        """Seconds since it was last heard."""
    @property
    def interval(self) -> float:
        """How often it says that it lives, in seconds."""
    @property
    def skew(self) -> float | None:
        """By how many seconds its clock was ahead of ours in its last pulse, the time on the way included; negative
        where it was behind. `None` before the first pulse.
        """
    @property
    def version(self) -> str:
        """The version of metricbus that it says it runs; empty before the first pulse."""
    @property
    def frames(self) -> int:
        """Frames that were applied …"""
    @property
    def frames_duplicate(self) -> int:
        """… that came twice …"""
    @property
    def frames_missed(self) -> int:
        """… and that never came."""
    @property
    def gaps(self) -> int:
        """Times at which something was found missing, and a snapshot was asked for."""
    @property
    def snapshots(self) -> int:
        """Snapshots that came …"""
    @property
    def snapshots_failed(self) -> int:
        """… and that did not."""
    @property
    def alerts(self) -> int:
        """Alerts that were delivered …"""
    @property
    def alerts_duplicate(self) -> int:
        """… that came twice …"""
    @property
    def alerts_lost(self) -> int:
        """… and that nobody can get any more."""
    @property
    def restarts(self) -> int:
        """Restarts."""
    @property
    def other_life(self) -> int:
        """Messages of another life than the present one: old ones, or those of a second process with this identity."""
    @property
    def refused(self) -> dict[str, str]:
        """Metrics of this life that are left out, and why: sixteen at most."""
    @property
    def last_error(self) -> str | None:
        """The last that went wrong with it."""

@final
class FleetWindow:
    """What a window has seen at all sources that answered."""

    @property
    def stats(self) -> WindowStats:
        """All of it: the windows of all series of all sources that answered, merged as if they were one."""
    @property
    def asked(self) -> int:
        """Live sources that could have such series, and were asked."""
    @property
    def answered(self) -> int:
        """Those that answered; perhaps that they have no such series."""
    @property
    def stale(self) -> list[SourceId]:
        """Sources that are stale and were not asked: what they know is in none of this."""
    @property
    def silent(self) -> list[tuple[SourceId, str]]:
        """Sources that were asked and gave no answer, and why."""
    @property
    def each(self) -> list[SourceWindow]:
        """What each source that answered has seen."""
    @property
    def is_complete(self) -> bool:
        """Whether everybody who could know something of it has told it: nobody is stale, and all who were asked
        answered.
        """

@final
class SourceWindow:
    """What the windows of one source have seen."""

    @property
    def source(self) -> SourceId:
        """Which one."""
    @property
    def stats(self) -> WindowStats:
        """All its series together."""
    @property
    def series(self) -> list[SeriesWindow]:
        """Each of them."""

@final
class SeriesWindow:
    """What the window of one series of a source has seen."""

    @property
    def name(self) -> str:
        """The metric's name."""
    @property
    def labels(self) -> dict[str, str]:
        """Labels as the source gave them."""
    @property
    def stats(self) -> WindowStats:
        """What was seen."""

@final
class RuleTarget:
    """Which sources a rule is sent to."""

    @staticmethod
    def component(namespace: str, component: str) -> RuleTarget:
        """All instances of a component of a namespace."""
    @staticmethod
    def namespace(namespace: str) -> RuleTarget:
        """All components of a namespace."""
    @staticmethod
    def component_anywhere(component: str) -> RuleTarget:
        """A component, in whatever namespace."""
    @staticmethod
    def all() -> RuleTarget:
        """All sources that take rules from the bucket."""
    def __eq__(self, other: object, /) -> bool: ...
    def __hash__(self) -> int: ...

@final
class SentRule:
    """A rule that was sent to sources, by this fleet or another one."""

    @property
    def target(self) -> RuleTarget:
        """To whom."""
    @property
    def name(self) -> str:
        """Its name."""
    @property
    def rule(self) -> Rule | None:
        """The rule; `None` where it was taken back and that is not yet written, and where it can't be read."""
    @property
    def written(self) -> bool:
        """Whether it is in the bucket as it should be. If not, that is tried again and again."""
    @property
    def why(self) -> str | None:
        """Why it is not written yet, or can't be read."""

@final
class SourceRules:
    """The rules of a source, as it says itself."""

    @property
    def rules(self) -> list[SourceRule]:
        """Those that run there, sorted by name."""
    @property
    def refused(self) -> list[RefusedRule]:
        """Rules from a bucket that it could not take."""
    @property
    def left_out(self) -> int:
        """How many more there are that it did not tell."""
    def rule(self, name: str) -> SourceRule | None:
        """The rule of this name, or `None`."""

@final
class SourceRule:
    """A rule that runs at a source."""

    @property
    def name(self) -> str:
        """Its name."""
    @property
    def state(self) -> Literal["inactive", "pending", "clearing", "firing"]:
        """The gravest state of its groups: `"inactive"`, `"pending"`, `"clearing"` or `"firing"`."""
    @property
    def note(self) -> str:
        """What an operator should know who wonders why it is quiet; mostly empty."""
    @property
    def series(self) -> int:
        """How many series match it."""
    @property
    def value(self) -> float | None:
        """What it looks at now, or looked at last. `None` where there is no data."""
    @property
    def json(self) -> str:
        """All that the source said of it: JSON, as `/rules` of its exporter shows it."""
