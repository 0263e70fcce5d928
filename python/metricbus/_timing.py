"""Context managers that are decorators too: for times, calls in progress, exceptions; and what runs before a scrape."""

from __future__ import annotations

import functools
import inspect
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, TypeVar

if TYPE_CHECKING:
    from typing import Self

    from ._metricbus import Counter, Gauge

__all__ = ["CountExceptions", "InProgress", "Setter", "Timer"]

_F = TypeVar("_F", bound=Callable[..., Any])


def is_coroutine_function(function: object) -> bool:
    """Whether a call of it has to be awaited: an `async def`, or an object whose `__call__` is one."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))


class _Around:
    """What is done around a block or around each call of a function, plain, coroutine or generator function."""

    def _fresh(self) -> Self:
        """One for a call of its own: calls overlap, in threads and tasks."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        raise NotImplementedError

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        raise NotImplementedError

    def __call__(self, function: _F) -> _F:
        around = self._around(function)
        try:
            # Also for those who do not follow `__wrapped__`, as `inspect.getfullargspec`.
            around.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
        except (TypeError, ValueError):
            pass  # It has none, as some built in.
        return around

    def _around(self, function: _F) -> _F:
        if is_coroutine_function(function):

            @functools.wraps(function)
            async def around_coroutine(*args: Any, **kwargs: Any) -> Any:
                with self._fresh():
                    return await function(*args, **kwargs)

            return around_coroutine  # type: ignore[return-value]
        if inspect.isasyncgenfunction(function):

            @functools.wraps(function)
            async def around_async_generator(*args: Any, **kwargs: Any) -> Any:
                # What is sent and thrown in goes on to the function: context managers are made of such generators.
                with self._fresh():
                    inner = function(*args, **kwargs)
                    try:
                        value = await anext(inner)
                        while True:
                            try:
                                sent = yield value
                            except GeneratorExit:
                                raise
                            except BaseException as error:
                                value = await inner.athrow(error)
                            else:
                                value = await inner.asend(sent)
                    except StopAsyncIteration:
                        return
                    finally:
                        await inner.aclose()

            return around_async_generator  # type: ignore[return-value]
        if inspect.isgeneratorfunction(function):

            @functools.wraps(function)
            def around_generator(*args: Any, **kwargs: Any) -> Any:
                with self._fresh():
                    return (yield from function(*args, **kwargs))

            return around_generator  # type: ignore[return-value]

        @functools.wraps(function)
        def around(*args: Any, **kwargs: Any) -> Any:
            with self._fresh():
                return function(*args, **kwargs)

        return around  # type: ignore[return-value]


class Timer(_Around):
    """Reports how many seconds a block or a call took, also where it raised."""

    __slots__ = ("_report", "_start", "duration")

    def __init__(self, report: Callable[[float], None]) -> None:
        self._report = report
        self._start = 0.0
        #: The seconds that were reported last; `None` before.
        self.duration: float | None = None

    def _fresh(self) -> Timer:
        return Timer(self._report)

    def labels(self, *args: object, **kwargs: object) -> None:
        """The child to report to, where the metric has labels whose values are known only inside of the block."""
        metric: Any = getattr(self._report, "__self__")
        self._report = getattr(metric.labels(*args, **kwargs), getattr(self._report, "__name__"))

    def __enter__(self) -> Timer:
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.duration = max(time.perf_counter() - self._start, 0)
        self._report(self.duration)


class InProgress(_Around):
    """One more while a block or a call runs."""

    __slots__ = ("_gauge",)

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge

    def _fresh(self) -> InProgress:
        return self

    def __enter__(self) -> InProgress:
        self._gauge.inc()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gauge.dec()


class CountExceptions(_Around):
    """Counts what a block or a call raises."""

    __slots__ = ("_counter", "_of")

    def __init__(
        self, counter: Counter, of: type[BaseException] | tuple[type[BaseException], ...] | None = None
    ) -> None:
        self._counter = counter
        self._of = Exception if of is None else of

    def _fresh(self) -> CountExceptions:
        return self

    def __enter__(self) -> CountExceptions:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, self._of):
            self._counter.inc()


class Setter:
    """Sets a gauge to what a function says, before each scrape."""

    __slots__ = ("_function", "_gauge")

    def __init__(self, gauge: Gauge, function: Callable[[], float]) -> None:
        self._gauge = gauge
        self._function = function

    @property
    def is_over(self) -> bool:
        """Whether the gauge is a child that was removed."""
        return self._gauge.series.is_removed

    def __call__(self) -> None:
        self._gauge.set(float(self._function()))

    def __repr__(self) -> str:
        return f"set_function({self._function!r}) of {self._gauge.series}"
