"""What goes out over HTTP, judged by the parsers of prometheus_client."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import inspect
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

import metricbus as mb

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def names(text: str, parse: Callable[[str], Any] = parse_text) -> dict[str, str]:
    return {family.name: family.type for family in parse(text)}


@pytest.fixture
def served(bus: mb.MetricBus) -> mb.MetricBus:
    bus.gauge("kv_usage_ratio", "Share of KV blocks in use.", ("worker",)).labels('a"b\n').set(0.5)
    bus.counter("requests_total", "Requests.").inc(3)
    bus.histogram("ttft_seconds", "TTFT.", buckets=(0.1, 1)).observe(0.5)
    return bus


def test_generate_latest_is_text_that_a_prometheus_reads(served: mb.MetricBus) -> None:
    text = mb.generate_latest(served)
    families = {family.name: family for family in parse_text(text.decode())}
    assert {name: family.type for name, family in families.items()} == {
        "kv_usage_ratio": "gauge",
        "requests": "counter",
        "ttft_seconds": "histogram",
    }
    assert families["kv_usage_ratio"].samples[0].labels == {"worker": 'a"b\n'}
    assert mb.CONTENT_TYPE_LATEST.startswith("text/plain; version=0.0.4")
    assert mb.export_prometheus(served).encode() == text
    assert names(served.export_prometheus(openmetrics=True), parse_openmetrics) == names(text.decode())


def test_generate_latest_runs_what_is_to_run_before_a_scrape(bus: mb.MetricBus) -> None:
    bus.gauge("depth", "Depth.").set_function(lambda: 42)
    assert b"\ndepth 42\n" in mb.generate_latest(bus)


def test_what_is_no_bus_is_refused_with_what_would_be_right() -> None:
    import prometheus_client

    with pytest.raises(TypeError, match=r"can't be exposed.*Exporter\(bus, merge=\[registry\]\)"):
        mb.make_wsgi_app(prometheus_client.CollectorRegistry())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="'bus' can't be exposed; a metricbus.MetricBus or a metricbus.Exporter"):
        mb.export_prometheus("bus")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="is an exporter"):
        mb.export_prometheus(mb.Exporter(mb.MetricBus()))  # type: ignore[arg-type]


def test_start_http_server_serves_until_it_is_shut_down(served: mb.MetricBus) -> None:
    server, thread = mb.start_http_server(0, "127.0.0.1", served)
    with urllib.request.urlopen(server.url) as response:
        assert b"requests_total 3" in response.read()
    assert server.server_address == ("127.0.0.1", server.server_port)
    assert thread.daemon
    server.shutdown()
    thread.join(10)
    assert not thread.is_alive()
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=5).connect()
    server.server_close()


def test_every_path_that_is_not_ours_leads_to_the_metrics(served: mb.MetricBus) -> None:
    server, thread = mb.start_http_server(0, "127.0.0.1", served)

    def get(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}") as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, ""

    async def ask(path: str) -> tuple[int, str]:
        transport = httpx.ASGITransport(app=mb.make_asgi_app(served))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            answer = await client.get(path)
            return answer.status_code, answer.text

    try:
        for way in (get, lambda path: asyncio.run(ask(path))):
            assert all("requests_total 3" in way(path)[1] for path in ("/", "/metrics", "/anything/else"))
            assert "rules_left_out" in way("/rules")[1]
            assert way("/live") == (200, '{"status":"ok"}\n')
            assert (way("/stream")[0], way("/api/v1/query")[0]) == (404, 404)
            # As prometheus_client, by the names of samples.
            some = way("/metrics?name[]=requests_total&name[]=ttft_seconds_count")[1]
            assert [line for line in some.splitlines() if line[0] != "#"] == ["requests_total 3", "ttft_seconds_count 1"]
        # For people.
        with served.serve(0) as own, urllib.request.urlopen(f"http://127.0.0.1:{own.port}/") as response:
            assert "text/html" in response.headers["content-type"]
    finally:
        server.shutdown()
        thread.join(10)


@pytest.mark.parametrize("address", [0, "0"])
def test_a_port_alone_is_one_of_this_machine(served: mb.MetricBus, address: int | str) -> None:
    with served.serve(address) as server:
        assert server.address.startswith("127.0.0.1:") and server.port > 0
    assert "9464" in str(inspect.signature(mb.serve_forever))
    with pytest.raises(TypeError):
        served.serve(True)
    with pytest.raises(mb.ServeError, match="0 to 65535"):
        served.serve(70000)


def test_a_route_of_fastapi_answers_its_path_without_a_redirect(served: mb.MetricBus) -> None:
    app = FastAPI()
    app.add_route("/metrics", mb.make_asgi_app(served))  # type: ignore[arg-type]

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://here") as client:
            return await client.get("/metrics")

    answer = asyncio.run(ask())
    assert (answer.status_code, "requests_total 3" in answer.text) == (200, True)


def test_a_server_on_a_port_that_is_taken_says_so(served: mb.MetricBus) -> None:
    server, _thread = mb.start_http_server(0, "127.0.0.1", served)
    try:
        with pytest.raises(mb.ServeError, match=str(server.server_port)):
            mb.start_http_server(server.server_port, "127.0.0.1", served)
    finally:
        server.shutdown()


def test_a_server_on_ipv6(served: mb.MetricBus) -> None:
    try:
        server, _thread = mb.start_http_server(0, "::1", served)
    except mb.ServeError as error:
        pytest.skip(f"no IPv6 here: {error}")
    try:
        assert server.server_address[0] == "::1"
        with urllib.request.urlopen(server.url) as response:
            assert response.status == 200
    finally:
        server.shutdown()


def wsgi(app: Any, path: str = "/metrics", method: str = "GET", **headers: str) -> tuple[str, dict[str, str], bytes]:
    environ: dict[str, Any] = {"PATH_INFO": path, "SCRIPT_NAME": "", "REQUEST_METHOD": method}
    setup_testing_defaults(environ)
    environ["QUERY_STRING"] = ""
    environ.update({f"HTTP_{name.upper()}": value for name, value in headers.items()})
    told: list[Any] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        told.append((status, dict(headers)))
        return lambda data: None

    # The validator of the standard library judges the application.
    body = validator(app)(environ, start_response)
    try:
        data = b"".join(body)
    finally:
        body.close()  # type: ignore[attr-defined]
    return told[0][0], told[0][1], data


def test_the_wsgi_application_negotiates(served: mb.MetricBus) -> None:
    app = mb.make_wsgi_app(served)
    status, headers, body = wsgi(app)
    assert (status, headers["Content-Type"]) == ("200 OK", mb.CONTENT_TYPE_LATEST)
    assert names(body.decode())["requests"] == "counter"
    status, headers, body = wsgi(app, accept=OPENMETRICS, accept_encoding="gzip")
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert headers["Content-Encoding"] == "gzip"
    assert names(gzip.decompress(body).decode(), parse_openmetrics)["requests"] == "counter"
    uncompressed = mb.make_wsgi_app(served, disable_compression=True)
    assert "Content-Encoding" not in wsgi(uncompressed, accept_encoding="gzip")[1]


def test_the_wsgi_application_has_the_exporters_other_paths(served: mb.MetricBus) -> None:
    app = mb.make_wsgi_app(served)
    assert json.loads(wsgi(app, "/rules")[2])["rules"] == []
    assert wsgi(app, "/health")[0] == "200 OK"
    assert wsgi(app, "/live")[0] == "200 OK"
    # As in prometheus_client.
    assert b"requests_total 3" in wsgi(app, "/")[2]
    assert wsgi(app, "/favicon.ico")[2] == b""


def test_only_what_reads_is_allowed(served: mb.MetricBus) -> None:
    app = mb.make_wsgi_app(served)
    assert wsgi(app, method="POST")[0] == "405 Method Not Allowed"
    assert "GET" in wsgi(app, method="OPTIONS")[1]["Allow"]
    assert wsgi(app, method="HEAD")[2] == b""


def test_nonsense_is_a_bad_request(served: mb.MetricBus) -> None:
    app = mb.make_wsgi_app(served)
    environ: dict[str, Any] = {"PATH_INFO": "/rules", "QUERY_STRING": "a b", "REQUEST_METHOD": "GET"}
    told: list[str] = []
    body = app(environ, lambda status, headers, exc_info=None: told.append(status))  # type: ignore[arg-type]
    assert told == ["400 Bad Request"] and b"a b" in b"".join(body)

    async def main() -> list[Any]:
        sent: list[Any] = []

        async def receive() -> MutableMapping[str, Any]:
            return {"type": "http.request"}

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/rules", "query_string": b"a b", "headers": []}
        await mb.make_asgi_app(served)(scope, receive, send)
        return sent

    assert asyncio.run(main())[0]["status"] == 400


def fetch(app: Any, *requests: tuple[str, dict[str, str]]) -> list[httpx.Response]:
    async def main() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", headers={"accept-encoding": ""}) as client:
            return [await client.get(path, headers=headers) for path, headers in requests]

    return asyncio.run(main())


def test_the_asgi_application_negotiates(served: mb.MetricBus) -> None:
    app = mb.make_asgi_app(served)
    text, openmetrics = fetch(app, ("/", {}), ("/", {"accept": OPENMETRICS, "accept-encoding": "gzip"}))
    assert text.headers["content-type"] == mb.CONTENT_TYPE_LATEST
    assert names(text.text)["requests"] == "counter"
    # httpx takes the gzip off.
    assert openmetrics.headers["content-encoding"] == "gzip"
    assert names(openmetrics.text, parse_openmetrics)["requests"] == "counter"


def test_the_asgi_application_can_be_mounted(served: mb.MetricBus) -> None:
    app = FastAPI()
    app.mount("/metrics", mb.make_asgi_app(served))
    metrics, slash, rules, live, other = fetch(
        app, ("/metrics/", {}), ("/metrics/x", {}), ("/metrics/rules?state=firing", {}), ("/metrics/live", {}), ("/else", {})
    )
    assert "requests_total 3" in metrics.text and "requests_total 3" in slash.text
    assert rules.json()["rules"] == []
    assert live.status_code == 200
    assert other.status_code == 404


def test_the_asgi_application_serves_alone_with_its_lifespan(served: mb.MetricBus) -> None:
    async def main() -> list[str]:
        incoming = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
        sent: list[str] = []

        async def receive() -> MutableMapping[str, Any]:
            return incoming.pop(0)

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message["type"])

        app: Callable[..., Awaitable[None]] = mb.make_asgi_app(served)
        await app({"type": "lifespan"}, receive, send)
        with pytest.raises(ValueError, match="not websocket"):
            await app({"type": "websocket"}, receive, send)
        return sent

    assert asyncio.run(main()) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_a_scrape_does_not_block_the_event_loop(served: mb.MetricBus) -> None:
    inside, go = threading.Event(), threading.Event()

    def hook() -> None:
        inside.set()
        go.wait(30)

    served.on_collect(hook)
    app = mb.make_asgi_app(mb.Exporter(served, hooks_deadline=30))

    async def main() -> str:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            scrape = asyncio.ensure_future(client.get("/"))
            while not inside.is_set():
                # The loop goes round while the hook waits for it.
                await asyncio.sleep(0)
            assert not scrape.done()
            go.set()
            return (await scrape).text

    assert "requests_total 3" in asyncio.run(main())


def test_serve_forever_serves_until_it_is_cancelled(served: mb.MetricBus) -> None:
    async def main() -> mb.Server:
        ready: asyncio.Future[mb.Server] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(mb.serve_forever(served, "127.0.0.1:0", on_ready=ready.set_result))
        server = await asyncio.wait_for(ready, 10)
        async with httpx.AsyncClient() as client:
            assert "requests_total 3" in (await client.get(server.url)).text
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return server

    assert asyncio.run(main()).is_closed


def test_serve_forever_says_what_address_is_wrong(served: mb.MetricBus) -> None:
    with pytest.raises(mb.ServeError, match="9464"):
        asyncio.run(mb.serve_forever(served, ":9464"))


def test_a_cancelled_scrape_leaves_nothing_behind(served: mb.MetricBus) -> None:
    exporter = mb.Exporter(served)

    async def main() -> None:
        answer = asyncio.ensure_future(exporter.answer_async())
        await asyncio.sleep(0)
        answer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answer
        status, _headers, body = await exporter.answer_async()
        assert status == 200 and b"requests_total 3" in body
        with pytest.raises(ValueError, match="G T"):
            await exporter.answer_async(method="G T")

    start = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - start < 30


def test_a_forked_child_answers_for_itself_in_a_loop_of_its_own(run: Any) -> None:
    done = run(
        """
        import asyncio, os
        import metricbus as mb
        bus = mb.MetricBus()
        gauge = bus.gauge("depth", "Depth.")
        gauge.set(7)
        exporter = mb.Exporter(bus)
        async def answer():
            return await exporter.answer_async()
        def depth():
            _, _, body = asyncio.run(answer())
            return [line for line in body.decode().splitlines() if line.startswith("depth")]
        print(depth(), flush=True)
        pid = os.fork()
        if pid == 0:
            print(depth(), flush=True)
            gauge.set(1)
            print(depth(), flush=True)
            os._exit(0)
        print(os.waitpid(pid, 0)[1], depth())
        """
    )
    assert done.stdout == "['depth 7']\n[]\n['depth 1']\n0 ['depth 7']\n"


def test_a_bus_serves_in_the_background_or_until_it_is_cancelled(served: mb.MetricBus) -> None:
    with served.serve("127.0.0.1:0") as server:
        with urllib.request.urlopen(server.url) as response:
            assert response.status == 200
    assert server.is_closed

    async def main() -> None:
        server = served.serve("127.0.0.1:0")
        serving = asyncio.ensure_future(server)
        body = await asyncio.to_thread(lambda: urllib.request.urlopen(server.url).read())
        assert b"ttft_seconds" in body
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert server.is_closed

    asyncio.run(main())
