"""A FastAPI component: its metrics as a class, a middleware that times requests, `/metrics`, and a callback on load.

    python examples/fastapi_component.py --port 8000
    curl "localhost:8000/generate?tokens=5"
    curl localhost:8000/metrics/

or `uvicorn fastapi_component:app`. When more than eight requests are in progress, the component says that it is busy; it would shed
load, or tell its router.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, Request, Response
from starlette.routing import Match

import metricbus as mb


class Generator(mb.Component, prefix="generator_"):
    """Generates tokens, slowly."""

    requests_total: mb.Counter = mb.field("Requests answered.", labels=("route", "code"))
    request_seconds: mb.Histogram = mb.field("Time to answer.", labels=("route",), unit="seconds")
    requests_in_progress: mb.Gauge = mb.field("Requests being answered.")
    tokens_total: mb.Counter = mb.field("Tokens generated.")


bus = mb.MetricBus()
metrics = Generator(bus)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async def busy(crossing: mb.Crossing) -> None:
        app.state.busy = crossing.is_raised
        print("busy" if crossing.is_raised else "idle again", flush=True)

    # It runs in the server's event loop, and ends with the application.
    with bus.on_threshold(metrics.requests_in_progress, busy, above=8, clear_below=4):
        yield


app = FastAPI(lifespan=lifespan)
app.state.busy = False
app.mount("/metrics", mb.make_asgi_app(bus))


def route_of(request: Request) -> str:
    """The route's path, not the request's: paths come without end, and each would be a series."""
    for route in request.app.routes:
        if route.matches(request.scope)[0] is Match.FULL:
            return str(getattr(route, "path", ""))
    return "(none)"


@app.middleware("http")
async def measure(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    route = route_of(request)
    if route == "/metrics":
        return await call_next(request)
    code = 500
    start = time.perf_counter()
    with metrics.requests_in_progress.track_inprogress():
        try:
            response = await call_next(request)
            code = response.status_code
            return response
        finally:
            metrics.request_seconds.labels(route).observe(time.perf_counter() - start)
            metrics.requests_total.labels(route, code).inc()


@app.get("/generate")
async def generate(tokens: int = 10) -> dict[str, object]:
    for _ in range(tokens):
        await asyncio.sleep(0.001)
        metrics.tokens_total.inc()
    return {"tokens": tokens, "busy": app.state.busy}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to serve at (%(default)s)")
    options = parser.parse_args()
    uvicorn.run(app, host=options.host, port=options.port)


if __name__ == "__main__":
    main()
