"""How events reach Python code: callbacks, coroutines and iterators, over a bell that the loop or a thread watches.

The bus writes letters into bounded mailboxes and rings; it never waits for Python and never takes the interpreter's lock. A
*hub* is whoever watches a bell: one per event loop, and one thread for all callbacks that were given without a loop. When
the bell rings, the hub asks which readers have letters, and lets each of them take some. All of a reader runs in its hub's
thread; only `close` may come from anywhere.
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
import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from ._errors import ClosedError, ForkedError
from ._metricbus import Bell, after_fork_in_child, close_gate, end_backends
from ._timing import is_coroutine_function

if TYPE_CHECKING:
    from typing import Self

    from ._metricbus import Opening, Receiver, SubscriptionStats

__all__ = ["Events", "Listen", "Subscription"]

E = TypeVar("E")

# So many letters of one reader are handled before others have their turn.
_BATCH = 64

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
    """Watches one bell for many readers, which it does not keep alive."""

    def __init__(self) -> None:
        self.bell = Bell()
        self.readers: weakref.WeakValueDictionary[int, _Reader] = weakref.WeakValueDictionary()
        # Keys of readers that have letters.
        self._turns: deque[int] = deque()

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
        raise NotImplementedError


class _LoopHub(_Hub):
    """The hub of an event loop. The loop keeps it, not the other way round."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = weakref.ref(loop)

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

    def failed(self, what: str, error: BaseException, reader: _Reader) -> None:
        loop = self._loop()
        if loop is None or loop.is_closed():
            logger.error("metricbus: %s", what, exc_info=error)
        else:
            loop.call_exception_handler({"message": f"metricbus: {what}", "exception": error, "subscription": reader})


class _ThreadHub(_Hub):
    """A thread that runs the callbacks which were given where no loop runs."""

    def __init__(self) -> None:
        super().__init__()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="metricbus-callbacks", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self.bell.fileno(), select.POLLIN)
        while not self._stopping:
            poll.poll()
            try:
                if not self._stopping:
                    self.rung()
            except BaseException as error:
                # sys.exit() in a callback, or a hook for exceptions that fails: no reason for the others to hear nothing.
                logger.error("metricbus: a callback would have ended the thread of all callbacks", exc_info=error)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        self._stopping = True
        self.bell.ring()
        if threading.current_thread() is not self._thread:
            # A callback that hangs must not keep the interpreter from ending.
            self._thread.join(1.0)

    def failed(self, what: str, error: BaseException, reader: _Reader) -> None:
        # As an exception that ends a thread is told, though this one goes on.
        args = threading.ExceptHookArgs((type(error), error, error.__traceback__, self._thread))
        threading.excepthook(args)


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
        if _thread is None or not _thread.is_alive:
            _thread = _ThreadHub()
        return _thread


# What a program that ends waits for its backends to have everything, where it has not shut them down itself.
_LAST_FLUSH = 2.0


@atexit.register
def _stop() -> None:
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


class Subscription(_Reader, Generic[E]):
    """A live subscription with a callback. Ends when it is closed, or when nothing refers to it any more."""

    __slots__ = (
        "_aside",
        "_busy",
        "_callback",
        "_context",
        "_coroutine",
        "_ended",
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
        self._key = next(_keys)
        receiver = opening.open(hub.bell, self._key)
        self._receiver: Receiver | None = receiver
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

    def stats(self) -> SubscriptionStats:
        """What it has done so far: events dropped because the callback was too slow are counted here."""
        receiver = self._receiver
        if receiver is None:
            raise ClosedError("this subscription was closed")
        return receiver.stats()

    def close(self) -> None:
        """Ends it, from any thread. A call that runs goes on to its end; what waits is not delivered."""
        receiver, self._receiver = self._receiver, None
        self._hub.readers.pop(self._key, None)
        _kept.discard(self)
        if receiver is not None:
            receiver.close()

    def forget(self) -> Self:
        """Keeps it alive as long as the process, though nobody holds it. `close` still ends it."""
        if self._receiver is not None:
            _kept.add(self)
        return self

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

    def _take(self, most: int) -> bool:
        """Takes some letters, where none are left. Whether that may not have been all."""
        receiver = self._receiver
        if receiver is None:
            self._letters.clear()
            return False
        if self._letters:
            return True
        letters, state = receiver.take(most)
        self._letters.extend(cast("list[E]", letters))
        if state == "ended":
            self._ended = True
        return state == "more"

    def _deliver(self) -> None:
        more = self._take(_BATCH)
        while self._letters and self._receiver is not None:
            letter = self._letters.popleft()
            try:
                self._context.run(self._callback, letter)
            except Exception as error:
                self._hub.failed(f"the callback {self._callback!r} raised", error, self)
            except BaseException:
                self._again()
                raise
        if self._ended:
            self.close()
        elif more:
            self._again()

    async def _work(self) -> None:
        try:
            for turn in itertools.count(1):
                self._take(1)
                if not self._letters:
                    break
                letter = self._letters.popleft()
                try:
                    await cast("Awaitable[object]", self._callback(letter))
                except Exception as error:
                    self._hub.failed(f"the callback {self._callback!r} raised", error, self)
                except asyncio.CancelledError:
                    task = asyncio.current_task()
                    if task is not None and task.cancelling():
                        raise
                    # Something that the callback waited for was cancelled, not we.
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


# Those that were told to be forgotten about.
_kept: set[Subscription[Any]] = set()


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

        In the running event loop or in `loop`; without either in a thread of the bus. A coroutine function is awaited before
        the next event is taken, and needs a loop. What it raises goes to the loop's exception handler, or to
        `threading.excepthook`. While it is busy, events wait in the mailbox; when that is full the oldest are dropped and
        counted.
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
        """`call`, as a decorator: the name of the function is then its subscription."""
        return self.call(callback)

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
