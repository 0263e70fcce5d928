"""The threads in which Python code is called for the library: callbacks, hooks, handlers of the log.

They are daemon threads with no Rust below what they call, so the interpreter's end may end them wherever they are, however long a
callback hangs. What is to be done, and by how many threads, the Rust side says (`ThreadPool`).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from ._metricbus import hook_pool, hook_run, next_log_lines
from ._timing import Setter

if TYPE_CHECKING:
    from ._metricbus import ThreadPool

__all__ = ["start", "start_hooks", "start_log"]

logger = logging.getLogger("metricbus")


def start(
    name: str, pool: ThreadPool, run: Callable[[int], object], given_up: Callable[[int], object] | None = None
) -> None:
    """Starts a thread that runs the jobs of the pool, and others when it needs them."""
    threading.Thread(target=_work, args=(name, pool, run, given_up), name=name, daemon=True).start()


def _work(
    name: str, pool: ThreadPool, run: Callable[[int], object], given_up: Callable[[int], object] | None
) -> None:
    job = None
    while (turn := pool.next(job)) is not None:
        job, is_last, hanging = turn
        # While the program ends there are no new threads.
        if is_last and threading.main_thread().is_alive():
            try:
                start(name, pool, run, given_up)
            except RuntimeError as error:
                say(logging.ERROR, "metricbus: no more threads are to be had; what hangs now holds up the others: %s", error)
        for other in hanging:
            if given_up is not None:
                given_up(other)
        try:
            run(job)
        except BaseException as error:
            # A hook for exceptions that fails: no reason for the others to hear nothing.
            say(logging.ERROR, "metricbus: what tells of a failed callback has failed", error=error)


def say(level: int, text: str, *args: object, error: BaseException | None = None) -> None:
    """A line in the log, whatever its handlers do."""
    try:
        logger.log(level, text, *args, exc_info=error)
    except BaseException:
        # There is nobody left to tell.
        pass


def start_hooks() -> None:
    """Starts the first thread that runs hooks. Called by the Rust side."""
    start("metricbus-hooks", hook_pool(), _run_hook)


def _run_hook(job: int) -> None:
    run = hook_run(job)
    if run is None:
        return
    hook = run.function
    try:
        if isinstance(hook, Setter) and hook.is_over:
            run.forget()
        else:
            hook()
    except BaseException as error:
        run.failed()
        say(logging.ERROR, "metricbus: a hook before a scrape or an export failed: %r", hook, error=error)
    finally:
        run.end()


def start_log() -> None:
    """Starts the thread that hands the library's log to `logging`. Called by the Rust side."""
    try:
        threading.Thread(target=_log, name="metricbus-log", daemon=True).start()
    except RuntimeError:
        # While the program ends there are no new threads, from Python 3.12 on, and soon nobody to log to.
        pass


def _log() -> None:
    while lines := next_log_lines():
        for level, text in lines:
            say(level, "%s", text)
