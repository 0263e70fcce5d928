'''One `/metrics` for servers that fork: gunicorn, uvicorn with workers, anything that calls `os.fork`.

Each process has metrics of its own, and answers for them on a Unix socket in a directory that all share. Whoever is scraped asks
every process that lives, and puts their answers together: each metric once, each series with a label `worker` that says whose
it is (its process id, unless it was given a name). So one scrape at any worker says all, and Prometheus adds up what is to be
added up: `sum without (worker) (rate(requests_total[1m]))`.

    from metricbus import multiprocess

    multiprocess.start()                       # once, at import; in $METRICBUS_MULTIPROC_DIR
    app.mount("/metrics", multiprocess.make_asgi_app())

It does not matter whether the application is imported before the workers are forked or in each of them. A process that is
forked after `start` answers for itself: its metrics begin at zero, on a bus of its own. A process that ends takes its series
with it; the socket of one that was killed is removed by the next scrape. A process that hangs costs the scrape its deadline,
and its series are missing from it; `metricbus_workers{state="silent"}` says how many did.
'''

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
import threading
import time
import wsgiref.simple_server
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any

from ._errors import ServeError
from ._metricbus import Exporter, MetricBus
from .exposition import Answer, ASGIApplication, _exporter, asgi_app, wsgi_app

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["Gatherer", "Worker", "generate_latest", "make_asgi_app", "make_wsgi_app", "start", "start_http_server"]

_VARIABLE = "METRICBUS_MULTIPROC_DIR"
_SUFFIX = ".metricbus"
_LABEL = "worker"

# A client that connects and then says nothing.
_PATIENCE = 5.0

# Longer ones do not fit where the kernel keeps the address, on some systems.
_PATH_MAX = 103

# They answer whether or not anybody keeps what `start` gave.
_workers: set[Worker] = set()
# The interpreter's end waits for them a little.
_answering: set[threading.Thread] = set()
_EXIT = 1.0

logger = logging.getLogger("metricbus")


def _directory(directory: str | os.PathLike[str] | None) -> Path:
    wanted = directory or os.environ.get(_VARIABLE)
    if not wanted:
        raise ValueError(f"no directory for the sockets of the processes is given; directory=… or {_VARIABLE} would be right")
    return Path(wanted)


class Worker:
    """A process that answers for its metrics; and those that are forked from it, each for its own. Made by `start`."""

    def __init__(self, exporter: Exporter, directory: Path, name: str | None) -> None:
        self._exporter = exporter
        self._directory = directory
        self._name = name
        self._listener: socket.socket | None = None
        self._path: Path | None = None
        self._open()

    @property
    def name(self) -> str:
        """The value of its label `worker`."""
        return self._name or str(os.getpid())

    @property
    def path(self) -> Path | None:
        """Its socket, or `None` when it was closed."""
        return self._path

    def close(self) -> None:
        """Answers no more."""
        listener, self._listener = self._listener, None
        path, self._path = self._path, None
        _workers.discard(self)
        if path is not None:
            path.unlink(missing_ok=True)
        if listener is not None:
            try:
                # Wakes the thread that accepts.
                listener.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            listener.close()

    def _open(self) -> None:
        # Nobody else may look at the metrics, or make others believe theirs.
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A process id alone comes again.
        path = self._directory / f"{os.getpid()}-{os.urandom(4).hex()}{_SUFFIX}"
        if len(os.fsencode(path)) > _PATH_MAX:
            raise ServeError(f"{path} is too long for a socket; a directory with a shorter path would be right")
        # Under its name it is known only when it can be connected to: else a scrape would take it for a dead one.
        fresh = path.with_suffix(".new")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(os.fspath(fresh))
            fresh.chmod(0o600)
            listener.listen(64)
            fresh.rename(path)
        except OSError as error:
            listener.close()
            raise ServeError(f"no socket could be made at {path}: {error}") from error
        self._listener, self._path = listener, path
        threading.Thread(target=self._accept, args=(listener,), name="metricbus-worker", daemon=True).start()
        _workers.add(self)

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
                    line = lines.readline(65536)
                if not line:
                    # Who only wanted to know whether we live.
                    return
                asked = json.loads(line)
                _status, headers, body = self._exporter.answer(accept=asked["accept"])
                head = {
                    "worker": self.name,
                    "pid": os.getpid(),
                    "type": dict(headers).get("content-type", ""),
                    "length": len(body),
                }
                connection.sendall(json.dumps(head).encode() + b"\n" + body)
            except OSError:
                # Who asked is gone, or did not wait.
                pass
            except Exception:
                logger.exception("metricbus: process %s could not answer for its metrics", os.getpid())

    def __repr__(self) -> str:
        return f"<Worker {self.name} at {self._path}>"


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

    The directory is `$METRICBUS_MULTIPROC_DIR` where none is given, and is made where there is none. `name` is the value of the
    label `worker` where it is not to be the process id; give it in each worker, since processes forked later have it too.
    """
    where = _directory(directory)
    # What an earlier run was not asked to remove.
    for path in where.glob(f"*{_SUFFIX}"):
        connection = _connect(path)
        if isinstance(connection, socket.socket):
            connection.close()
    return Worker(_exporter(registry), where, name)


@dataclass(eq=False)
class _Reply:
    """What one process said, as far as it has said it."""

    path: Path
    connection: socket.socket
    data: bytearray = field(default_factory=bytearray)
    head: dict[str, object] | None = None

    def read(self) -> bool:
        """Takes what is there, and says whether that was all. The length decides: a child that was forked meanwhile may hold
        the other end open.
        """
        chunk = self.connection.recv(1 << 18)
        self.data += chunk
        if self.head is None and b"\n" in self.data:
            line, _, rest = bytes(self.data).partition(b"\n")
            self.head = json.loads(line)
            self.data = bytearray(rest)
        return not chunk or self.text is not None

    @property
    def text(self) -> str | None:
        """Its metrics, if they came whole."""
        if self.head is None or len(self.data) != self.head["length"]:
            return None
        return self.data.decode(errors="replace")


class Gatherer:
    """Asks all processes that answer in a directory. `timeout` is how long they have, all together."""

    def __init__(
        self, directory: str | os.PathLike[str] | None = None, *, timeout: float | timedelta = 1.0
    ) -> None:
        self._directory = _directory(directory)
        self._timeout = timeout.total_seconds() if isinstance(timeout, timedelta) else float(timeout)
        if not self._timeout > 0:
            raise ValueError(f"timeout is {timeout}; how many seconds processes have to answer, more than 0")

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
        replies, silent = self._ask(accept)
        kind = _type(accept)
        body = _merge(replies, silent, kind).encode()
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

    def _ask(self, accept: str | None) -> tuple[list[_Reply], int]:
        """The answers that came whole and in time, and how many did not."""
        request = json.dumps({"accept": _type(accept).replace("; charset=utf-8", "")}).encode() + b"\n"
        done: list[_Reply] = []
        silent = 0
        end = time.monotonic() + self._timeout
        with selectors.DefaultSelector() as selector:
            waiting: set[_Reply] = set()
            try:
                for path in sorted(self._directory.glob(f"*{_SUFFIX}")):
                    connection = _connect(path)
                    if not isinstance(connection, socket.socket):
                        silent += connection
                        continue
                    reply = _Reply(path, connection)
                    waiting.add(reply)
                    try:
                        # A line fits into any socket's buffer.
                        connection.send(request)
                    except OSError:
                        # It ends. Reading says so.
                        pass
                    selector.register(connection, selectors.EVENT_READ, reply)
                while waiting and (left := end - time.monotonic()) > 0:
                    for key, _ in selector.select(left):
                        reply = key.data
                        try:
                            ended = reply.read()
                        except (OSError, ValueError):
                            ended = True
                        if ended:
                            selector.unregister(reply.connection)
                            reply.connection.close()
                            waiting.discard(reply)
                            if reply.text is not None:
                                done.append(reply)
                            elif reply.path.exists():
                                silent += 1
            finally:
                for reply in waiting:
                    reply.connection.close()
        if waiting:
            late = ", ".join(sorted(reply.path.name for reply in waiting))
            logger.warning("metricbus: no answer within %s s from %s", self._timeout, late)
        done.sort(key=lambda reply: reply.path.name)
        return done, silent + len(waiting)

    def __repr__(self) -> str:
        return f"<Gatherer of {self._directory}>"


def _connect(path: Path) -> socket.socket | int:
    """The connection; or how many processes are silent for it: none if that of the socket is dead, which is then removed."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        connection.connect(os.fspath(path))
    except BlockingIOError:
        # Its queue is full: it does not accept.
        connection.close()
        return 1
    except (ConnectionRefusedError, FileNotFoundError):
        connection.close()
        path.unlink(missing_ok=True)
        return 0
    except OSError as error:
        connection.close()
        logger.warning("metricbus: %s can't be asked: %s", path, error)
        return 1
    return connection


_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def _type(accept: str | None) -> str:
    """The format that the exporter would choose of those that are text: it is asked, with nothing to expose."""
    # What several processes say is put together as text.
    ranges = [part for part in (accept or "").split(",") if "protobuf" not in part.lower()]
    accept = ",".join(ranges) or None
    global _negotiator
    if _negotiator is None:
        _negotiator = Exporter(MetricBus(), process_metrics=False)
    _status, headers, _body = _negotiator.answer(method="HEAD", accept=accept)
    kind = dict(headers).get("content-type", _TEXT)
    return kind


_negotiator: Exporter | None = None


def _takes_gzip(accept_encoding: str | None) -> bool:
    for member in (accept_encoding or "").split(","):
        name, *parameters = (part.strip().lower() for part in member.split(";"))
        if name == "gzip":
            return not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
    return False


@dataclass
class _Merged:
    """One metric of all processes."""

    head: list[str]
    type: str
    lines: list[str] = field(default_factory=list)


def _merge(replies: Iterable[_Reply], silent: int, kind: str) -> str:
    families: dict[str, _Merged] = {}
    names: set[str] = set()
    answered = 0
    for reply in replies:
        head = reply.head or {}
        if head.get("type") != kind:
            # Of another version, perhaps, which knows other formats.
            silent += 1
            continue
        answered += 1
        name = str(head["worker"])
        if name in names:
            name = f"{name}-{head['pid']}"
        names.add(name)
        _add(families, reply.text or "", name)
    workers = _Merged(
        ["# HELP metricbus_workers Processes that were asked for their metrics.", "# TYPE metricbus_workers gauge"],
        "gauge",
        [f'metricbus_workers{{state="answered"}} {answered}', f'metricbus_workers{{state="silent"}} {silent}'],
    )
    families["metricbus_workers"] = workers
    lines = [line for name in sorted(families) for line in (*families[name].head, *families[name].lines)]
    if kind == _OPENMETRICS:
        lines.append("# EOF")
    return "\n".join(lines) + "\n"


def _add(families: dict[str, _Merged], text: str, worker: str) -> None:
    """Puts what one process said to what the others did."""
    label = f'{_LABEL}="{_escaped(worker)}"'
    head: list[str] = []
    begun: str | None = None
    family: _Merged | None = None
    for line in text.split("\n"):
        if not line or line == "# EOF":
            continue
        if line.startswith("# "):
            _, what, name, *rest = line.split(" ", 3)
            if name != begun:
                # Not every metric has a help text to begin with.
                head, begun, family = [], name, None
            head.append(line)
            if what == "TYPE":
                family = families.setdefault(name, _Merged(head, rest[0]))
                if family.type != rest[0]:
                    logger.warning(
                        "metricbus: %s is a %s in worker %s and a %s in others, so it is left out", name, rest[0], worker, family.type
                    )
                    family = None
        elif family is not None:
            family.lines.append(_labelled(line, label))


_PAIR = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"(,?)')


def _labelled(line: str, label: str) -> str:
    """The sample with one label more, and with one of the same name out of its way, as Prometheus itself moves them."""
    brace, space = line.find("{"), line.find(" ")
    if brace < 0 or space < brace:
        return f"{line[:space]}{{{label}}}{line[space:]}"
    start = end = brace + 1
    pairs = []
    while (pair := _PAIR.match(line, end)) is not None:
        pairs.append((pair[1], pair[2]))
        end = pair.end()
    taken = {name for name, _ in pairs}
    if _LABEL in taken:
        other = f"exported_{_LABEL}"
        while other in taken:
            other = f"exported_{other}"
        inner = ",".join(f'{other if name == _LABEL else name}="{value}"' for name, value in pairs)
    else:
        inner = line[start:end]
    return f"{line[:start]}{label}{',' if inner else ''}{inner}{line[end:]}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def generate_latest(
    directory: str | os.PathLike[str] | None = None, *, timeout: float | timedelta = 1.0
) -> bytes:
    """The metrics of all processes, in Prometheus text 0.0.4."""
    return Gatherer(directory, timeout=timeout).answer()[2]


def make_wsgi_app(
    directory: str | os.PathLike[str] | None = None, *, timeout: float | timedelta = 1.0
) -> WSGIApplication:
    """A WSGI application that serves the metrics of all processes."""
    return wsgi_app(Gatherer(directory, timeout=timeout))


def make_asgi_app(
    directory: str | os.PathLike[str] | None = None, *, timeout: float | timedelta = 1.0
) -> ASGIApplication:
    """An ASGI application that serves the metrics of all processes. A scrape does not block the event loop."""
    return asgi_app(Gatherer(directory, timeout=timeout))


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
) -> tuple[wsgiref.simple_server.WSGIServer, threading.Thread]:
    """Serves the metrics of all processes in the background, from one of them or from a process that has none of its own."""
    app = make_wsgi_app(directory, timeout=timeout)
    kind = _Server6 if ":" in addr else _Server
    try:
        server = wsgiref.simple_server.make_server(addr, port, app, kind, handler_class=_Quiet)
    except OSError as error:
        raise ServeError(f"{addr}:{port} can't be served: {error}") from error
    thread = threading.Thread(target=server.serve_forever, name="metricbus-server", daemon=True)
    thread.start()
    return server, thread
