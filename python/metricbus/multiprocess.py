"""One `/metrics` for servers that fork: gunicorn, uvicorn with workers, anything that calls `os.fork`.

Each process has metrics of its own, and answers for them on a Unix socket in a directory that all share. Whoever is scraped asks
every process that lives, and puts their answers together: each metric once, each series with a label `process` that says whose
it is (its process id, unless it was given a name). So one scrape at any process says all, and Prometheus adds up what is to be
added up: `sum without (process) (rate(requests_total[1m]))`.

    from metricbus import multiprocess

    multiprocess.start()                       # once, at import; in $METRICBUS_MULTIPROC_DIR
    app.add_route("/metrics", multiprocess.make_asgi_app())

It does not matter whether the application is imported before the workers are forked or in each of them. A process that is
forked after `start` answers for itself: its metrics begin at zero, on a bus of its own. Where the process also has metrics of
`prometheus_client`, they are exposed with ours.

Without a directory (nobody said one, and `METRICBUS_MULTIPROC_DIR` is not set), or where no socket can be made in it, a process is
scraped for itself: `start` says the reason in the log, and never fails because of it.

`metricbus_workers` says how many processes were in which `state` at this scrape:

| state | |
|---|---|
| `answered` | it is in here |
| `silent` | it did not answer in time, or nonsense: it is not in here. One that hangs costs the scrape its deadline |
| `ended` | it ended in the last five minutes, as a program ends. Its counters, histograms and summaries are in here as it left them, so that what it counted since the scrape before is not lost when a server recycles its workers; its gauges are not |
| `lost` | it was killed in the last five minutes (or left by `os._exit`): what it counted since the scrape before is lost |
"""

from __future__ import annotations

import asyncio
import atexit
import gzip
import json
import logging
import os
import re
import selectors
import socket
import sys
import threading
import time
import wsgiref.simple_server
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any

from ._errors import ServeError
from ._merged_text import MergedText
from ._metricbus import Exporter, MetricBus
from ._shared_directory import SharedDirectory
from .exposition import Answer, ASGIApplication, _default, _exporter, asgi_app, wsgi_app

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["Gatherer", "Worker", "generate_latest", "make_asgi_app", "make_wsgi_app", "start", "start_http_server"]

_VARIABLE = "METRICBUS_MULTIPROC_DIR"

# A client that connects and then says nothing.
_PATIENCE = 5.0

# What one process may say, in bytes: its head, and its metrics.
_HEAD_MAX = 1 << 16
_TEXT_MAX = 1 << 30

# They answer whether or not anybody keeps what `start` gave.
_workers: set[Worker] = set()
# The interpreter's end waits for them a little.
_answering: set[threading.Thread] = set()
_EXIT = 1.0

logger = logging.getLogger("metricbus")


def _directory(directory: str | os.PathLike[str] | None) -> SharedDirectory | None:
    wanted = directory or os.environ.get(_VARIABLE)
    return SharedDirectory(wanted) if wanted else None


class Worker:
    """A process that answers for its metrics; and those that are forked from it, each for its own. Made by `start`."""

    def __init__(self, exporter: Exporter, directory: SharedDirectory | None, name: str | None) -> None:
        self._exporter = exporter
        self._directory = directory
        self._name = name
        self._listener: socket.socket | None = None
        self._path: Path | None = None
        self._open()

    @property
    def name(self) -> str:
        """The value of its label `process`."""
        return self._name or str(os.getpid())

    @property
    def path(self) -> Path | None:
        """Its socket; `None` when it was closed, or answers in this process only."""
        return self._path

    def close(self) -> None:
        """Answers no more. What it has counted is shown for another five minutes."""
        if self not in _workers:
            return
        _workers.discard(self)
        listener, self._listener = self._listener, None
        path, self._path = self._path, None
        if self._directory is not None and path is not None:
            try:
                # Before its socket goes: so it is never out of sight.
                self._directory.leave(path, self._report())
            except Exception as error:
                logger.warning("metricbus: the last counts of process %s are lost: %s", os.getpid(), error)
            self._directory.remove(path)
        if listener is not None:
            try:
                # Wakes the thread that accepts.
                listener.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            listener.close()

    def _open(self) -> None:
        _workers.add(self)
        if self._directory is None:
            return
        try:
            listener, path = self._directory.open_socket()
        except OSError as error:
            logger.error(
                "metricbus: process %s can't be asked by others, and answers only for itself: no socket in %s: %s",
                os.getpid(),
                self._directory,
                error,
            )
            return
        self._listener, self._path = listener, path
        threading.Thread(target=self._accept, args=(listener,), name="metricbus-worker", daemon=True).start()

    def _forked(self) -> None:
        """In a child: the parent's socket is not ours."""
        listener, self._listener, self._path = self._listener, None, None
        if listener is not None:
            # Without shutdown, which would end the parent's too.
            listener.close()
        try:
            self._open()
        except Exception:
            logger.exception("metricbus: process %s can't answer for its metrics", os.getpid())

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                if self._listener is not listener:
                    return
                # Out of descriptors, perhaps.
                time.sleep(0.1)
                continue
            # One that says nothing keeps nobody else waiting.
            thread = threading.Thread(target=self._answer, args=(connection,), name="metricbus-answer", daemon=True)
            _answering.add(thread)
            thread.start()

    def _answer(self, connection: socket.socket) -> None:
        try:
            self._say(connection)
        finally:
            _answering.discard(threading.current_thread())

    def _say(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.settimeout(_PATIENCE)
                with connection.makefile("rb") as lines:
                    line = lines.readline(_HEAD_MAX)
                if not line:
                    # Who only wanted to know whether we live.
                    return
                connection.sendall(self._exposed(json.loads(line)["accept"]))
            except OSError:
                # Who asked is gone, or did not wait.
                pass
            except Exception:
                logger.exception("metricbus: process %s could not answer for its metrics", os.getpid())

    def _exposed(self, accept: str) -> bytes:
        """A line that says what this is, and the metrics."""
        _status, headers, body = self._exporter.answer(accept=accept)
        head = {
            "worker": self.name,
            "pid": os.getpid(),
            "type": dict(headers).get("content-type", ""),
            "length": len(body),
        }
        return json.dumps(head).encode() + b"\n" + body

    def _report(self) -> bytes:
        """In each format that may be asked for."""
        return b"".join(self._exposed(_asked(kind)) for kind in (_type(None), _type("application/openmetrics-text")))

    def __repr__(self) -> str:
        return f"<Worker {self.name} at {self._path}>"


class _WithPrometheusClient:
    """The default registry of `prometheus_client`, where this process uses it: asked at each scrape, since it may be imported later."""

    def __getattr__(self, name: str) -> Any:
        client = sys.modules.get("prometheus_client")
        registry = getattr(client, "REGISTRY", None)
        if registry is None:
            raise AttributeError(name)
        return getattr(registry, name)

    def collect(self) -> Any:
        try:
            return self.__getattr__("collect")()
        except AttributeError:
            return ()

    def __repr__(self) -> str:
        return "prometheus_client.REGISTRY"


def _after_fork() -> None:
    _answering.clear()
    for worker in list(_workers):
        worker._forked()


# After the bus's own, which makes it anew: that module is imported before this one.
os.register_at_fork(after_in_child=_after_fork)


@atexit.register
def _at_exit() -> None:
    for worker in list(_workers):
        worker.close()
    end = time.monotonic() + _EXIT
    for thread in list(_answering):
        thread.join(max(0.0, end - time.monotonic()))


def start(
    registry: MetricBus | Exporter | None = None,
    directory: str | os.PathLike[str] | None = None,
    *,
    name: str | None = None,
) -> Worker:
    """This process, and those that are forked from it, answer for their metrics from now on, until they end or `close`.

    The directory is `$METRICBUS_MULTIPROC_DIR` where none is given, and is made where there is none. Where nobody says one, or no
    socket can be made in it, each process is scraped for itself; the reason is in the log. `name` is the value of the label `process`
    where it is not to be the process id; give it in each worker, since processes forked later have it too.

    What `prometheus_client.REGISTRY` has is exposed as well. Who wants something else gives an `Exporter`.
    """
    exporter = registry
    if not isinstance(exporter, Exporter):
        bus = _default() if registry is None else registry
        # It says what would be right for anything else.
        exporter = Exporter(bus, merge=[_WithPrometheusClient()]) if isinstance(bus, MetricBus) else _exporter(registry)
    where = _directory(directory)
    if where is None:
        logger.info("metricbus: no directory for the sockets of the processes (%s is not set), so this process answers for itself", _VARIABLE)
    else:
        # What an earlier run was not asked to remove.
        for _path, connection in _living(where)[0]:
            connection.close()
        where.tidy()
    return Worker(exporter, where, name)


def _living(directory: SharedDirectory) -> tuple[list[tuple[Path, socket.socket]], int]:
    """A connection to each process that answers, and how many do not."""
    connections = []
    silent = 0
    for path in directory.sockets():
        try:
            connection = directory.connect(path)
        except OSError as error:
            logger.warning("metricbus: %s can't be asked: %s", path, error)
            silent += 1
            continue
        if connection is not None:
            connections.append((path, connection))
    return connections, silent


@dataclass(eq=False)
class _Reply:
    """What one process said, as far as it has said it."""

    path: Path | None = None
    data: bytearray = field(default_factory=bytearray)
    head: dict[str, Any] | None = None

    def take(self, chunk: bytes) -> bool:
        """Takes what came, and says whether that was all: the length decides, since a child that was forked meanwhile may hold the other
        end open. Raises `ValueError` when it is nonsense.
        """
        self.data += chunk
        if self.head is None:
            line, newline, rest = bytes(self.data).partition(b"\n")
            if len(line) > _HEAD_MAX:
                raise ValueError(f"a head of more than {_HEAD_MAX} bytes")
            if newline:
                self.head = _head(line)
                self.data = bytearray(rest)
        return not chunk or self.text is not None

    @property
    def text(self) -> str | None:
        """Its metrics, if they came whole."""
        if self.head is None or len(self.data) < self.head["length"]:
            return None
        return self.data[: self.head["length"]].decode(errors="replace")

    @property
    def rest(self) -> bytes:
        """What comes after it."""
        return bytes(self.data[self.head["length"] :]) if self.head else b""


def _head(line: bytes) -> dict[str, Any]:
    head = json.loads(line)
    wanted = {"worker": str, "pid": int, "type": str, "length": int}
    if not isinstance(head, dict) or any(not isinstance(head.get(name), kind) for name, kind in wanted.items()):
        raise ValueError(f"{line[:200]!r} is no head of an answer")
    if not 0 <= head["length"] <= _TEXT_MAX:
        raise ValueError(f"an answer of {head['length']} bytes; {_TEXT_MAX} at most would be right")
    return head


class Gatherer:
    """Asks all processes that answer in a directory. `timeout` is how long they have, all together; `label` the name of the label that
    says whose a series is. A label of that name that a series has already becomes `exported_…`, as Prometheus itself does it.

    Where there is no directory, it asks this process only.
    """

    def __init__(
        self, directory: str | os.PathLike[str] | None = None, *, timeout: float | timedelta = 1.0, label: str = "process"
    ) -> None:
        self._directory = _directory(directory)
        self._timeout = timeout.total_seconds() if isinstance(timeout, timedelta) else float(timeout)
        if not self._timeout > 0:
            raise ValueError(f"timeout is {timeout}; how many seconds processes have to answer, more than 0")
        if not re.fullmatch("[a-zA-Z_][a-zA-Z0-9_]*", label) or label.startswith("__") or label in ("le", "quantile"):
            raise ValueError(
                f"label is {label!r}; the name of a label would be right, of letters, digits and underscores, but not le or quantile"
            )
        self._label = label

    def answer(
        self,
        path: str = "/metrics",
        *,
        method: str = "GET",
        accept: str | None = None,
        accept_encoding: str | None = None,
    ) -> Answer:
        """The answer to a request, as `Exporter.answer`: the metrics of all processes, whatever the path."""
        if method not in ("GET", "HEAD"):
            return 405, [("content-type", "text/plain; charset=utf-8"), ("allow", "GET, HEAD")], b"GET or HEAD, please\n"
        kind = _type(accept)
        body = self._gather(kind).encode()
        headers = [("content-type", kind), ("vary", "accept, accept-encoding")]
        if _takes_gzip(accept_encoding):
            # Quick rather than small: it does not go far.
            body = gzip.compress(body, 1)
            headers.append(("content-encoding", "gzip"))
        headers.append(("content-length", str(len(body))))
        return 200, headers, b"" if method == "HEAD" else body

    async def answer_async(
        self,
        path: str = "/metrics",
        *,
        method: str = "GET",
        accept: str | None = None,
        accept_encoding: str | None = None,
    ) -> Answer:
        """`answer`, in a thread of its own: the event loop goes on meanwhile."""
        return await asyncio.to_thread(
            self.answer, path, method=method, accept=accept, accept_encoding=accept_encoding
        )

    def _gather(self, kind: str) -> str:
        replies, silent = self._ask(kind)
        merged = MergedText(self._label)
        answered = ended = lost = 0
        for reply in replies:
            if _added(merged, reply, kind):
                answered += 1
            else:
                silent += 1
        if self._directory is not None:
            # Only now, since who ended meanwhile is in one of both.
            said = {reply.path for reply in replies}
            self._directory.tidy()
            for path, report in self._directory.reports().items():
                ended += path not in said and _added(merged, _report_of(report, path, kind), kind, ended=True)
            lost = self._directory.lost()
        states = {"answered": answered, "ended": ended, "lost": lost, "silent": silent}
        merged.set("metricbus_workers", "Processes that were asked for their metrics.", states)
        end = ["# EOF", ""] if kind.startswith("application/openmetrics-text") else [""]
        return "\n".join([*merged.lines(), *end])

    def _ask(self, kind: str) -> tuple[list[_Reply], int]:
        """The answers that came whole and in time, and how many did not."""
        done: list[_Reply] = []
        connections, silent = _living(self._directory) if self._directory is not None else ([], 0)
        end = time.monotonic() + self._timeout
        waiting: dict[_Reply, socket.socket] = {}
        with selectors.DefaultSelector() as selector:
            try:
                for path, connection in connections:
                    reply = _Reply(path)
                    waiting[reply] = connection
                    try:
                        # A line fits into any socket's buffer.
                        connection.send(json.dumps({"accept": _asked(kind)}).encode() + b"\n")
                    except OSError:
                        # It ends. Reading says so.
                        pass
                    selector.register(connection, selectors.EVENT_READ, reply)
                # Meanwhile, what nobody can ask for but here.
                done += self._own(kind)
                while waiting and (left := end - time.monotonic()) > 0:
                    for key, _ in selector.select(left):
                        reply, connection = key.data, waiting[key.data]
                        try:
                            ended = reply.take(connection.recv(1 << 18))
                        except (OSError, ValueError) as error:
                            logger.warning("metricbus: no answer from %s: %s", reply.path, error)
                            ended, reply.head = True, None
                        if ended:
                            selector.unregister(connection)
                            connection.close()
                            del waiting[reply]
                            if reply.text is not None:
                                done.append(reply)
                            elif reply.path is not None and reply.path.exists():
                                silent += 1
            finally:
                for connection in waiting.values():
                    connection.close()
        if waiting:
            late = ", ".join(sorted(reply.path.name for reply in waiting if reply.path is not None))
            logger.warning("metricbus: no answer within %s s from %s", self._timeout, late)
        return done, silent + len(waiting)

    def _own(self, kind: str) -> list[_Reply]:
        """Of this process, where it has no socket."""
        replies = []
        for worker in list(_workers):
            if worker.path is None and worker._directory == self._directory:
                reply = _Reply()
                reply.take(worker._exposed(_asked(kind)))
                replies.append(reply)
        return replies

    def __repr__(self) -> str:
        return f"<Gatherer of {self._directory or 'this process'}>"


def _added(merged: MergedText, reply: _Reply | None, kind: str, *, ended: bool = False) -> bool:
    """Whether it could be put to the others."""
    if reply is None or reply.head is None or reply.text is None or reply.head["type"] != kind:
        # Of another version, perhaps, which knows other formats.
        return False
    try:
        merged.add(reply.text, reply.head["worker"], reply.head["pid"], ended=ended)
    except ValueError as error:
        logger.warning("metricbus: the answer from %s is left out: %s", reply.path, error)
        return False
    return True


def _report_of(report: bytes, path: Path, kind: str) -> _Reply | None:
    """The part of a report that is in this format."""
    while report:
        reply = _Reply(path)
        try:
            reply.take(report)
        except ValueError as error:
            logger.warning("metricbus: what %s left can't be read: %s", path, error)
            return None
        if reply.head is None or reply.text is None or reply.head["type"] == kind:
            return reply
        report = reply.rest
    return None


_TEXT = "text/plain; version=0.0.4; charset=utf-8"


def _type(accept: str | None) -> str:
    """The format that the exporter would choose of those that can be put together: it is asked, with nothing to expose."""
    ranges = [part for part in (accept or "").split(",") if "protobuf" not in part.lower()]
    # Names that have to be quoted are escaped.
    accept = re.sub(r"(?i);\s*escaping\s*=[^;,]*", "", ",".join(ranges)) or None
    global _negotiator
    if _negotiator is None:
        _negotiator = Exporter(MetricBus(), process_metrics=False)
    _status, headers, _body = _negotiator.answer(method="HEAD", accept=accept)
    kind = dict(headers).get("content-type", _TEXT)
    return kind


_negotiator: Exporter | None = None


def _asked(kind: str) -> str:
    """What to accept, to get this type."""
    return kind.replace("; charset=utf-8", "")


def _takes_gzip(accept_encoding: str | None) -> bool:
    for member in (accept_encoding or "").split(","):
        name, *parameters = (part.strip().lower() for part in member.split(";"))
        if name == "gzip":
            return not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
    return False


def generate_latest(
    directory: str | os.PathLike[str] | None = None, *, timeout: float | timedelta = 1.0, label: str = "process"
) -> bytes:
    """The metrics of all processes, in Prometheus text 0.0.4."""
    return Gatherer(directory, timeout=timeout, label=label).answer()[2]


def make_wsgi_app(
    directory: str | os.PathLike[str] | None = None, *, timeout: float | timedelta = 1.0, label: str = "process"
) -> WSGIApplication:
    """A WSGI application that serves the metrics of all processes."""
    return wsgi_app(Gatherer(directory, timeout=timeout, label=label))


def make_asgi_app(
    directory: str | os.PathLike[str] | None = None, *, timeout: float | timedelta = 1.0, label: str = "process"
) -> ASGIApplication:
    """An ASGI application that serves the metrics of all processes. A scrape does not block the event loop."""
    return asgi_app(Gatherer(directory, timeout=timeout, label=label))


class _Server(ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    daemon_threads = True


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Quiet(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """A scrape is no news."""


def start_http_server(
    port: int,
    addr: str = "0.0.0.0",
    directory: str | os.PathLike[str] | None = None,
    *,
    timeout: float | timedelta = 1.0,
    label: str = "process",
) -> tuple[wsgiref.simple_server.WSGIServer, threading.Thread]:
    """Serves the metrics of all processes in the background, from one of them or from a process that has none of its own."""
    app = make_wsgi_app(directory, timeout=timeout, label=label)
    kind = _Server6 if ":" in addr else _Server
    try:
        server = wsgiref.simple_server.make_server(addr, port, app, kind, handler_class=_Quiet)
    except OSError as error:
        raise ServeError(f"{addr}:{port} can't be served: {error}") from error
    thread = threading.Thread(target=server.serve_forever, name="metricbus-server", daemon=True)
    thread.start()
    return server, thread
