"""How events reach Python code: callbacks, coroutines and iterators, over a bell that the loop or a thread watches.

The bus writes letters into bounded mailboxes and rings; it never waits for Python and never takes the interpreter's lock. A
*hub* is whoever looks for letters: one per event loop, which watches a bell; and one for all callbacks that were given without a
loop, whose threads grow in number when callbacks block (`ThreadPool`). It lets each reader that has letters take some. A reader
runs in one thread at a time, in order; only `close` may come from anywhere.

What a callback raises is told (to the loop's exception handler, or `threading.excepthook`) and counted, and costs its own event only.
After three failures in a row the subscription is closed, and the log says so. `SystemExit` and `KeyboardInterrupt` leave the loop's
`run`; in a thread of the hub they are logged and counted. A call that is cut short by a cancellation is logged and counted, too, and
does not count as one of the three.
"""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import itertools
import logging
import os
import select
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from ._errors import ClosedError, ForkedError
from ._metricbus import Bell, ThreadPool, after_fork_in_child, close_gate, end_backends
from ._threads import say, start
from ._timing import is_coroutine_function

if TYPE_CHECKING:
    from typing import Self

    from ._metricbus import Opening, Receiver, SubscriptionStats

__all__ = ["Events", "Listen", "Subscription"]

E = TypeVar("E")

# So many letters of one reader are handled before others have their turn, and not for longer than so many seconds.
_BATCH = 64
_TURN = 0.005

# So many callbacks run at the same time, of those that were given without a loop. Beyond it others wait, until one that runs has done
# so for as many seconds: that is given up then, and does not count until it comes back. One that is busy for longer than _STALL
# seconds holds up nobody else.
THREADS_MAX = 64
GIVEN_UP_AFTER = 1.0
_STALL = 0.01

_keys = itertools.count(1)

logger = logging.getLogger("metricbus")


def _seconds(timeout: float | timedelta | None) -> float | None:
    return timeout.total_seconds() if isinstance(timeout, timedelta) else timeout


class _Reader:
    """Somebody who takes letters when the bell has rung for its key."""

    __slots__ = ("__weakref__",)

    def _ready(self) -> None:
        raise NotImplementedError


class _Hub:
    """Looks for letters of many readers, which it does not keep alive but for some."""

    def __init__(self, looker: Bell | ThreadPool) -> None:
        self.looker = looker
        self.readers: weakref.WeakValueDictionary[int, _Reader] = weakref.WeakValueDictionary()
        # Those that live until they are closed, or their bus ends.
        self.kept: set[_Reader] = set()

    def failed(self, what: str, error: BaseException, reader: _Reader) -> None:
        """Tells of what a callback raised."""
        raise NotImplementedError


class _LoopHub(_Hub):
    """The hub of an event loop. The loop keeps it, not the other way round."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.bell = Bell()
        super().__init__(self.bell)
        self._loop = weakref.ref(loop)
        # Keys of readers that have letters.
        self._turns: deque[int] = deque()

        def add() -> None:
            # In a context of its own: what happens to be set where the first subscription is made is nobody else's.
            contextvars.Context().run(loop.add_reader, self.bell.fileno(), self.rung)

        if _running() is loop:
            add()
        else:
            # Only a loop's own thread may do that. Until then the bell stays rung.
            loop.call_soon_threadsafe(add)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        loop = self._loop()
        if loop is None or loop.is_closed():
            raise ClosedError("the event loop of this subscription is closed; subscribe in the one that runs now")
        return loop

    def rung(self) -> None:
        self._turns.extend(self.bell.take())
        while self._turns:
            reader = self.readers.get(self._turns.popleft())
            if reader is not None:
                try:
                    reader._ready()
                except BaseException:
                    # The others still have their turns, should this not end the program.
                    self.bell.ring()
                    raise

    def failed(self, what: str, error: BaseException, reader: _Reader) -> None:
        loop = self._loop()
        if loop is None or loop.is_closed():
            say(logging.ERROR, "metricbus: %s", what, error=error)
        else:
            loop.call_exception_handler({"message": f"metricbus: {what}", "exception": error, "subscription": reader})


class _ThreadHub(_Hub):
    """Threads that run the callbacks which were given where no loop runs."""

    def __init__(self) -> None:
        self.pool = ThreadPool(THREADS_MAX, _STALL, GIVEN_UP_AFTER)
        super().__init__(self.pool)
        start("metricbus-callbacks", self.pool, self._run, self._given_up)

    def _run(self, key: int) -> None:
        reader = self.readers.get(key)
        if reader is not None:
            reader._ready()

    def _given_up(self, key: int) -> None:
        reader = self.readers.get(key)
        if isinstance(reader, Subscription):
            reader._hangs()

    def stop(self) -> None:
        # A callback that hangs must not keep the interpreter from ending.
        self.pool.close(1.0)

    def failed(self, what: str, error: BaseException, reader: _Reader) -> None:
        if isinstance(error, (SystemExit, KeyboardInterrupt)):
            say(logging.ERROR, "metricbus: %s, which ends no program from here", what, error=error)
            return
        # As an exception that ends a thread is told, though this one goes on.
        thread = threading.current_thread()
        threading.excepthook(threading.ExceptHookArgs((type(error), error, error.__traceback__, thread)))


_lock = threading.Lock()
_loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopHub] = weakref.WeakKeyDictionary()
_thread: _ThreadHub | None = None


def _running() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _hub_of(loop: asyncio.AbstractEventLoop) -> _LoopHub:
    if loop.is_closed():
        raise ClosedError("the event loop is closed; subscribe in one that runs, or will")
    with _lock:
        hub = _loops.get(loop)
        if hub is None:
            hub = _loops[loop] = _LoopHub(loop)
        return hub


def _hub_of_threads() -> _ThreadHub:
    global _thread
    with _lock:
        if _thread is None:
            _thread = _ThreadHub()
        return _thread


# What a program that ends waits for its backends to have everything, where it has not shut them down itself.
_LAST_FLUSH = 2.0


_ending = False


@atexit.register
def _stop() -> None:
    global _ending
    _ending = True
    if _thread is not None:
        _thread.stop()
    for error in end_backends(_LAST_FLUSH):
        logger.warning("metricbus: at the end of the program, %s", error)
    close_gate()


def _forked() -> None:
    global _lock, _thread
    after_fork_in_child()
    # Somebody may have held it.
    _lock = threading.Lock()
    _loops.clear()
    _thread = None


os.register_at_fork(after_in_child=_forked)


def _retrieved(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()


class Subscription(_Reader, Generic[E]):
    """A live subscription with a callback. Ends when it is closed, or when nothing refers to it any more.

    One that was made by a decorator lives as long as its bus. Of any other that nobody kept, and that has never heard anything, a
    `RuntimeWarning` tells when it goes. After three failed calls in a row it is closed (`is_detached`).
    """

    __slots__ = (
        "_aside",
        "_busy",
        "_callback",
        "_context",
        "_coroutine",
        "_detached",
        "_ended",
        "_failures",
        "_hub",
        "_key",
        "_letters",
        "_receiver",
        "_task",
    )

    def __init__(self, opening: Opening, callback: Callable[[E], object], hub: _LoopHub | _ThreadHub) -> None:
        self._callback = callback
        self._context = contextvars.copy_context()
        self._coroutine = is_coroutine_function(callback)
        self._hub = hub
        # Taken, and not delivered yet.
        self._letters: deque[E] = deque()
        self._ended = False
        self._busy = False
        self._aside = False
        self._task: asyncio.Task[None] | None = None
        # Calls that failed, in a row.
        self._failures = 0
        self._detached = False
        # Were it refused, it would go at once.
        self._receiver: Receiver | None = None
        self._key = next(_keys)
        receiver = opening.open(hub.looker, self._key)
        self._receiver = receiver
        # Complete, before another thread can come upon it.
        hub.readers[self._key] = self
        receiver.ring()

    @property
    def callback(self) -> Callable[[E], object]:
        """What is called."""
        return self._callback

    @property
    def is_closed(self) -> bool:
        """Whether nothing more will be heard."""
        return self._receiver is None

    @property
    def is_detached(self) -> bool:
        """Whether it was closed because its callback failed three times in a row."""
        return self._detached

    def stats(self) -> SubscriptionStats:
        """What it has done so far: events dropped because the callback was too slow, and failed calls, are counted here."""
        receiver = self._receiver
        if receiver is None:
            raise ClosedError("this subscription was closed")
        return receiver.stats()

    def close(self) -> None:
        """Ends it, from any thread. A call that runs goes on to its end; what waits is not delivered."""
        receiver, self._receiver = self._receiver, None
        self._hub.readers.pop(self._key, None)
        self._hub.kept.discard(self)
        if receiver is not None:
            receiver.close()

    def forget(self) -> Self:
        """Keeps it alive as long as its bus (and its event loop), though nobody holds it. `close` still ends it."""
        if self._receiver is not None:
            self._hub.kept.add(self)
        return self

    def __del__(self) -> None:
        # Not there, if it was never made.
        receiver = getattr(self, "_receiver", None)
        if receiver is None or _ending:
            return
        try:
            unheard = receiver.stats().delivered == 0
        except Exception:
            # Of a process from which this one was forked.
            return
        self.close()
        if unheard:
            warnings.warn(
                f"nobody kept the subscription of {self._callback!r}, so it has ended before it heard anything; "
                "keep it, close it, or let it live as long as its bus with forget()",
                RuntimeWarning,
                stacklevel=2,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self.is_closed else "open"
        return f"<Subscription of {self._callback!r} {state}>"

    def _ready(self) -> None:
        if not self._coroutine:
            self._deliver()
        elif not self._busy and not (self._aside and not self._has_news()):
            loop = cast(_LoopHub, self._hub).loop
            self._busy = True
            task = loop.create_task(self._work(), name=f"metricbus {self._callback!r}", context=self._context)
            # A loop may run it at once, to its end.
            self._task = task if self._busy else None
            # What leaves the loop's `run` was told by that.
            task.add_done_callback(_retrieved)

    def _take(self, most: int) -> bool:
        """Takes some letters, where none are left. Whether that may not have been all."""
        receiver = self._receiver
        if receiver is None:
            self._letters.clear()
            return False
        if self._letters:
            # None is taken, but it may be rung for again.
            receiver.take(0)
            return True
        letters, state = receiver.take(most)
        self._letters.extend(cast("list[E]", letters))
        if state == "ended":
            self._ended = True
        return state == "more"

    def _deliver(self) -> None:
        more = self._take(_BATCH)
        end = time.monotonic() + _TURN
        while self._letters and (receiver := self._receiver) is not None:
            letter = self._letters.popleft()
            try:
                self._context.run(self._callback, letter)
            except BaseException as error:
                self._failed(receiver, error)
                if isinstance(error, (SystemExit, KeyboardInterrupt)) and isinstance(self._hub, _LoopHub):
                    self._again()
                    raise
            else:
                self._failures = 0
            if time.monotonic() >= end:
                break
        if self._letters and self._receiver is not None:
            self._again()
        elif self._ended:
            self.close()
        elif more:
            self._again()

    async def _work(self) -> None:
        task = asyncio.current_task()
        try:
            for turn in itertools.count(1):
                self._take(1)
                receiver = self._receiver
                if not self._letters or receiver is None:
                    break
                letter = self._letters.popleft()
                try:
                    await cast("Awaitable[object]", self._callback(letter))
                except asyncio.CancelledError as error:
                    if task is not None and task.cancelling():
                        raise
                    # Something that the callback waited for was cancelled, not we.
                    self._failed(receiver, error)
                except GeneratorExit as error:
                    if _running() is None or asyncio.current_task() is not task:
                        # It is not the callback that raises: we are thrown away, with our loop.
                        raise
                    self._failed(receiver, error)
                except (SystemExit, KeyboardInterrupt) as error:
                    self._failed(receiver, error)
                    raise
                except BaseException as error:
                    self._failed(receiver, error)
                else:
                    self._failures = 0
                if turn % _BATCH == 0:
                    # A coroutine that never waits must not keep the loop to itself.
                    await asyncio.sleep(0)
            if self._ended:
                self.close()
        except asyncio.CancelledError:
            # Somebody cancels all tasks, most likely since the loop is about to end. What waits is not given up, and not
            # begun either: it goes on with the next letter.
            self._set_aside()
            raise
        except (SystemExit, KeyboardInterrupt):
            self._again()
            raise
        finally:
            self._busy = False
            self._task = None

    def _failed(self, receiver: Receiver, error: BaseException) -> None:
        """Counts a failed call and tells of it, unless it leaves the loop's `run`; ends the subscription if it was once too often."""
        ends = isinstance(error, (SystemExit, KeyboardInterrupt))
        cut = self._coroutine and isinstance(error, asyncio.CancelledError)
        if not (ends or cut):
            self._failures += 1
        what = f"the callback {self._callback!r} raised {type(error).__name__}"
        detached = receiver.failed(0 if ends or cut else self._failures, what)
        try:
            if cut:
                say(logging.WARNING, "metricbus: a call of %r was cut short: what it waited for was cancelled", self._callback)
            elif not ends or isinstance(self._hub, _ThreadHub):
                self._hub.failed(what, error, self)
        finally:
            if detached:
                self._detached = True
                self.close()

    def _hangs(self) -> None:
        receiver = self._receiver
        if receiver is not None:
            receiver.hangs()

    def _again(self) -> None:
        """Has a turn once more, after the others."""
        receiver = self._receiver
        if receiver is not None:
            receiver.ring()

    def _has_news(self) -> bool:
        """Whether anything has come since what waited was set aside: readers of a tap are rung for while it is silent, too."""
        before = len(self._letters)
        self._set_aside()
        self._aside = len(self._letters) == before
        return not self._aside

    def _set_aside(self) -> None:
        self._aside = True
        receiver = self._receiver
        state = "more"
        while receiver is not None and state == "more":
            letters, state = receiver.take(_BATCH)
            self._letters.extend(cast("list[E]", letters))


class Events(_Reader, Generic[E]):
    """A live subscription that is read: `async for` where it was made in an event loop, `for` and `get` elsewhere.

    Subscribed from the moment it is made. Ends when it is closed, when the bus ends, or when nothing refers to it any more.
    """

    __slots__ = ("_bell", "_hub", "_key", "_letters", "_receiver", "_state", "_waiters")

    def __init__(self, opening: Opening) -> None:
        loop = _running()
        self._letters: deque[E] = deque()
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._state = "more"
        self._key = next(_keys)
        self._hub: _LoopHub | None = None
        if loop is not None:
            self._hub = _hub_of(loop)
            self._bell = self._hub.bell
        else:
            self._bell = Bell()
        receiver = opening.open(self._bell, self._key)
        self._receiver: Receiver | None = receiver
        # Complete, before it can be rung for.
        if self._hub is not None:
            self._hub.readers[self._key] = self
        receiver.ring()

    @property
    def is_closed(self) -> bool:
        """Whether it was closed; what was taken before that can still be read."""
        return self._receiver is None

    def stats(self) -> SubscriptionStats:
        """What it has done so far: events dropped because the reader was too slow are counted here."""
        receiver = self._receiver
        if receiver is None:
            raise ClosedError("this subscription was closed")
        return receiver.stats()

    def close(self) -> None:
        """Ends it: whoever waits for an event hears that there is none to come."""
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            receiver.close()
        if self._hub is not None:
            self._hub.readers.pop(self._key, None)
            loop = self._hub._loop()
            if loop is not None and not loop.is_closed():
                if _running() is loop:
                    self._ready()
                else:
                    loop.call_soon_threadsafe(self._ready)
        else:
            try:
                self._bell.ring()
            except ForkedError:
                pass

    def get_nowait(self) -> E | None:
        """The next event if there is one now, or `None`."""
        if not self._letters and self._receiver is not None and self._state != "ended":
            letters, self._state = self._receiver.take(_BATCH)
            self._letters.extend(cast("list[E]", letters))
        return self._letters.popleft() if self._letters else None

    def get(self, timeout: float | timedelta | None = None) -> E:
        """The next event, waiting for it at most so many seconds; in a thread without an event loop.

        Raises `TimeoutError` when there is none in time, and `ClosedError` when there will be none.
        """
        if self._hub is not None:
            raise RuntimeError("this was subscribed in an event loop, which get() would block; use `async for`")
        seconds = _seconds(timeout)
        end = None if seconds is None else time.monotonic() + seconds
        poll = select.poll()
        poll.register(self._bell.fileno(), select.POLLIN)
        while True:
            event = self.get_nowait()
            if event is not None:
                return event
            if self._receiver is None or self._state == "ended":
                raise ClosedError("this subscription was closed, so no event will come")
            left = None if end is None else end - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutError(f"no event came within {timeout} seconds")
            # poll() takes no more than some weeks.
            poll.poll(None if left is None else min(left * 1000, 1e9))
            self._bell.take()

    def __iter__(self) -> Iterator[E]:
        while True:
            try:
                yield self.get()
            except ClosedError:
                return

    def __aiter__(self) -> AsyncIterator[E]:
        return self

    async def __anext__(self) -> E:
        if self._hub is None:
            raise RuntimeError("this was subscribed outside of an event loop; make it inside, with `async with` or stream()")
        while True:
            event = self.get_nowait()
            if event is not None:
                return event
            if self._receiver is None or self._state == "ended":
                raise StopAsyncIteration
            waiter = self._hub.loop.create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            finally:
                if waiter in self._waiters:
                    self._waiters.remove(waiter)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Events {'closed' if self.is_closed else 'open'}>"

    def _ready(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()


class Listen(Generic[E]):
    """What can be heard, before anybody listens: `call` it back, or read it with `stream`, `async for` or `for`."""

    __slots__ = ("_opening", "_streams")

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._streams: list[Events[E]] = []

    def call(
        self, callback: Callable[[E], object], *, loop: asyncio.AbstractEventLoop | None = None
    ) -> Subscription[E]:
        """Calls `callback` with each event, in order, one at a time.

        In the running event loop or in `loop`; without either in a thread of the bus, whose number grows when callbacks block: 64
        at the same time, and beyond that one more for each that has been running for a second. A coroutine function is awaited before
        the next event is taken, and needs a loop. What it raises goes to the loop's exception handler, or to
        `threading.excepthook`, and is counted; after three failures in a row it is detached. `SystemExit` and `KeyboardInterrupt` leave
        the loop's `run`; in a thread they are logged. While it is busy, events wait in the mailbox; when that is full,
        what a later event of the same series supersedes is dropped and counted.

        Keep what this gives: it ends when nothing refers to it any more, unless it was told to `forget`.
        """
        if not callable(callback):
            raise TypeError(f"{callback!r} can't be called; a function or a coroutine function of one event would be right")
        loop = loop or _running()
        if loop is not None:
            return Subscription(self._opening, callback, _hub_of(loop))
        if is_coroutine_function(callback):
            raise TypeError(
                f"{callback!r} is a coroutine function, and no event loop runs here; "
                "subscribe inside of one, or name it with .call(callback, loop=loop)"
            )
        return Subscription(self._opening, callback, _hub_of_threads())

    def __call__(self, callback: Callable[[E], object]) -> Subscription[E]:
        """`call`, as a decorator: the name of the function is then its subscription, which lives as long as the bus."""
        return self.call(callback).forget()

    def stream(self) -> Events[E]:
        """Subscribes, to be read."""
        return Events(self._opening)

    def __aiter__(self) -> AsyncIterator[E]:
        return self.stream()

    def __iter__(self) -> Iterator[E]:
        return iter(self.stream())

    def __enter__(self) -> Events[E]:
        stream = self.stream()
        self._streams.append(stream)
        return stream

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._streams.pop().close()

    async def __aenter__(self) -> Events[E]:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)
