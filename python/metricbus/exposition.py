"""`/metrics` and its siblings for web servers of all kinds, under the names that `prometheus_client` has for them.

Whatever is exposed comes from an `Exporter`: text 0.0.4, OpenMetrics 1.0 or protobuf, gzip, `/rules`, `/health`, `/live`. Where a bus is given, it is
exposed with what `Exporter(bus)` adds; for anything else make the exporter yourself and give that.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from datetime import timedelta
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

from ._metricbus import Exporter, MetricBus, Push

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from ._metricbus import Server

__all__ = [
    "CONTENT_TYPE_LATEST",
    "BackgroundServer",
    "delete_from_gateway",
    "export_prometheus",
    "generate_latest",
    "instance_ip_grouping_key",
    "make_asgi_app",
    "make_wsgi_app",
    "push_to_gateway",
    "pushadd_to_gateway",
    "serve_forever",
    "start_http_server",
]

#: What `generate_latest` makes.
CONTENT_TYPE_LATEST = "text/plain; version=0.0.4; charset=utf-8"

Answer = tuple[int, list[tuple[str, str]], bytes]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApplication = Callable[[MutableMapping[str, Any], _Receive, _Send], Awaitable[None]]

_SIBLINGS = ("/rules", "/health", "/live", "/stream")


class Answering(Protocol):
    """What answers requests: an `Exporter`, or what asks several processes."""

    def answer(
        self, path: str = ..., *, method: str = ..., accept: str | None = ..., accept_encoding: str | None = ...
    ) -> Answer: ...

    def answer_async(
        self, path: str = ..., *, method: str = ..., accept: str | None = ..., accept_encoding: str | None = ...
    ) -> Awaitable[Answer]: ...


def _default() -> MetricBus:
    from . import REGISTRY

    return REGISTRY


def _exporter(registry: MetricBus | Exporter | None) -> Exporter:
    registry = _default() if registry is None else registry
    if isinstance(registry, Exporter):
        return registry
    if isinstance(registry, MetricBus):
        return Exporter(registry)
    raise TypeError(
        f"{registry!r} can't be exposed; a metricbus.MetricBus or a metricbus.Exporter would be right"
        + (", as in Exporter(bus, merge=[registry])" if callable(getattr(registry, "collect", None)) else "")
    )


def generate_latest(registry: MetricBus | None = None) -> bytes:
    """All metrics of the bus (`metricbus.REGISTRY` where none is named) in Prometheus text 0.0.4."""
    return export_prometheus(_default() if registry is None else registry).encode()


def export_prometheus(bus: MetricBus) -> str:
    """All metrics of the bus in Prometheus text 0.0.4, without what an exporter adds about the process."""
    if not isinstance(bus, MetricBus):
        # It says what would be right.
        _exporter(bus)
        raise TypeError(f"{bus!r} is an exporter; its text is answer()[2]")
    return bus.export_prometheus()


class BackgroundServer:
    """A running server, with the methods that the one of `prometheus_client` has."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._ended = threading.Event()
        self.server_address = (server.address.rpartition(":")[0].strip("[]"), server.port)
        self.server_port = server.port

    @property
    def url(self) -> str:
        """Where `/metrics` is."""
        return self._server.url

    def shutdown(self) -> None:
        """Stops serving; scrapes on their way are answered first."""
        self._server.close()
        self._ended.set()

    def server_close(self) -> None:
        """As `shutdown`."""
        self.shutdown()

    def __repr__(self) -> str:
        return f"<BackgroundServer {self._server!r}>"


def start_http_server(
    port: int, addr: str = "0.0.0.0", registry: MetricBus | Exporter | None = None
) -> tuple[BackgroundServer, threading.Thread]:
    """Serves in the background until the process ends, or until `shutdown()` of the server that it gives.

    As in `prometheus_client`, on all addresses where none is named, and under every path that is not the exporter's (`/rules`, `/health`,
    `/live`, `/stream`, `/api/`). The thread that comes with the server ends with it. For TLS
    put a proxy in front.
    """
    host = f"[{addr}]" if ":" in addr else addr
    server = BackgroundServer(_exporter(registry).serve(f"{host}:{port}", metrics_on_every_path=True))
    # The server is served by threads of its own; this one only keeps it, and can be joined.
    thread = threading.Thread(target=server._ended.wait, name="metricbus-server", daemon=True)
    thread.start()
    return server, thread


async def serve_forever(
    bus: MetricBus | Exporter,
    address: str | int = "127.0.0.1:9464",
    *,
    on_ready: Callable[[Server], object] | None = None,
) -> None:
    """Serves until the task is cancelled. `on_ready` is called with the server when it can be scraped."""
    # The address may be a name that has to be looked up.
    server = await asyncio.to_thread(_exporter(bus).serve, address)
    if on_ready is not None:
        on_ready(server)
    await server


async def until_cancelled(server: Server) -> None:
    """What `await server` does."""
    try:
        await asyncio.Event().wait()
    finally:
        # Waits for scrapes on their way, which may wait for a hook.
        await asyncio.to_thread(server.close)


def _push(gateway: str, job: str, grouping_key: Mapping[str, object] | None, timeout: float | timedelta | None) -> Push:
    if not gateway.startswith(("http://", "https://")):
        gateway = f"http://{gateway}"
    return Push(gateway, job, grouping=grouping_key, timeout=_NO_TIMEOUT if timeout is None else timeout)


# As long as it takes.
_NO_TIMEOUT = timedelta(days=1)


def _pushed(registry: MetricBus | None) -> MetricBus:
    registry = _default() if registry is None else registry
    if not isinstance(registry, MetricBus):
        raise TypeError(f"{registry!r} can't be pushed; a metricbus.MetricBus would be right")
    return registry


def push_to_gateway(
    gateway: str,
    job: str,
    registry: MetricBus | None = None,
    grouping_key: Mapping[str, object] | None = None,
    timeout: float | timedelta | None = 30,
) -> None:
    """Pushes the bus (`metricbus.REGISTRY` where none is named) to a Pushgateway: the group has these metrics only, then.

    `gateway` is a URL, or a host and port. `grouping_key` are the labels of the group beside `job`. There is no `handler=`, since it is
    not Python that sends: `Push` takes what one was written for, basic authentication, headers and certificates.
    """
    _push(gateway, job, grouping_key, timeout).push(_pushed(registry))


def pushadd_to_gateway(
    gateway: str,
    job: str,
    registry: MetricBus | None = None,
    grouping_key: Mapping[str, object] | None = None,
    timeout: float | timedelta | None = 30,
) -> None:
    """As `push_to_gateway`, but of what the group has only metrics of the same names are replaced."""
    _push(gateway, job, grouping_key, timeout).add(_pushed(registry))


def delete_from_gateway(
    gateway: str, job: str, grouping_key: Mapping[str, object] | None = None, timeout: float | timedelta | None = 30
) -> None:
    """Deletes the group from a Pushgateway. There need not be one."""
    _push(gateway, job, grouping_key, timeout).delete()


def instance_ip_grouping_key() -> dict[str, str]:
    """A grouping key with this machine's address as `instance`: the one from which others are reached."""
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        try:
            # Nothing is sent: the system only chooses the way.
            probe.connect(("10.255.255.255", 1))
        except OSError:
            return {"instance": "127.0.0.1"}
        return {"instance": str(probe.getsockname()[0])}


def _path(path: str, query: str) -> str:
    """A path of the exporter's. As in `prometheus_client`, any that is not known leads to the metrics."""
    if not path.startswith("/api/"):
        path = next((sibling for sibling in _SIBLINGS if path.rstrip("/") == sibling), "/metrics")
    return f"{path}?{query}" if query else path


def _known(method: str, path: str) -> Answer | None:
    """What is answered without asking anybody."""
    if method == "OPTIONS":
        return 200, [("content-type", CONTENT_TYPE_LATEST), ("allow", "OPTIONS,GET,HEAD")], b""
    if path == "/favicon.ico":
        return 200, [("content-type", CONTENT_TYPE_LATEST)], b""
    return None


def _refused(error: ValueError) -> Answer:
    """Of a request that no HTTP client should have sent."""
    return 400, [("content-type", "text/plain; charset=utf-8")], f"{error}\n".encode()


def make_wsgi_app(
    registry: MetricBus | Exporter | None = None, disable_compression: bool = False
) -> WSGIApplication:
    """A WSGI application that serves the metrics, to be mounted or served by itself."""
    return wsgi_app(_exporter(registry), disable_compression)


def wsgi_app(answering: Answering, disable_compression: bool = False) -> WSGIApplication:
    """Whatever answers, as a WSGI application."""

    def metrics(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")
        try:
            status, headers, body = _known(method, path) or answering.answer(
                _path(path, environ.get("QUERY_STRING", "")),
                method=method,
                accept=environ.get("HTTP_ACCEPT"),
                accept_encoding=None if disable_compression else environ.get("HTTP_ACCEPT_ENCODING"),
            )
        except ValueError as error:
            status, headers, body = _refused(error)
        reason = HTTPStatus(status).phrase
        start_response(f"{status} {reason}", [(name.title(), value) for name, value in headers])
        return [body]

    return metrics


def make_asgi_app(
    registry: MetricBus | Exporter | None = None, disable_compression: bool = False
) -> ASGIApplication:
    """An ASGI application that serves the metrics, to be a route (`app.add_route("/metrics", …)`), mounted, or served by itself. A scrape does not block the event loop."""
    return asgi_app(_exporter(registry), disable_compression)


def asgi_app(answering: Answering, disable_compression: bool = False) -> ASGIApplication:
    """Whatever answers, as an ASGI application."""
    return _Metrics(answering, disable_compression)


class _Metrics:
    """An object and no function: frameworks take a function for a handler of their own kind, and this for an application. So
    `app.add_route("/metrics", make_asgi_app())` of FastAPI and Starlette has it answer that very path, without the redirect to
    `/metrics/` that `app.mount` makes."""

    def __init__(self, answering: Answering, disable_compression: bool) -> None:
        self._answering = answering
        self._disable_compression = disable_compression

    async def __call__(self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        if scope["type"] != "http":
            raise ValueError(f"metrics are served over http, not {scope['type']}")
        method, path, root = scope["method"], scope["path"], scope.get("root_path", "")
        # Where it is mounted, the path may be told with or without that of the mount.
        path = path[len(root) :] if root and path.startswith(root) else path
        accept, encoding = (_header(scope, name) for name in (b"accept", b"accept-encoding"))
        try:
            status, headers, body = _known(method, path) or await self._answering.answer_async(
                _path(path, scope.get("query_string", b"").decode("latin-1")),
                method=method,
                accept=accept,
                accept_encoding=None if self._disable_compression else encoding,
            )
        except ValueError as error:
            status, headers, body = _refused(error)
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": body})


def _header(scope: MutableMapping[str, Any], name: bytes) -> str | None:
    """A header may be there several times, which says the same as a list."""
    values = [value.decode("latin-1") for key, value in scope.get("headers", ()) if key.lower() == name]
    return ", ".join(values) if values else None


async def _live(receive: _Receive, send: _Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
