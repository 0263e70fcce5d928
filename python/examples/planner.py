"""A planner in asyncio: it hears when workers get full or stand idle, and changes how many there are.

The load is made up: a wave that rises and falls twice. Each worker says how full its KV cache is. Two rules look at that; when one of
them fires, a coroutine of the planner starts or stops workers, one at a time, until the rule says that it is enough. Nobody polls.

    python examples/planner.py --seconds 10
    python examples/planner.py --seconds 60 --serve 127.0.0.1:9464     # and look at /metrics and /rules
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import math
import random
import time
from collections.abc import Callable

import metricbus as mb

# Requests that one worker has room for.
ROOM = 100.0
WORKERS_MAX = 12
# How long a worker takes to start, or the planner waits to see what a step has brought.
STEP = 0.15


class Worker(mb.Component, prefix="worker_"):
    """One decode worker."""

    kv_usage_ratio: mb.Gauge = mb.field("Share of the KV cache in use.", labels=("worker",), unit="ratio")
    requests_total: mb.Counter = mb.field("Requests taken.", labels=("worker",))


class Pool(mb.Component, prefix="pool_"):
    """All workers together."""

    workers: mb.Gauge = mb.field("Workers that run.")
    offered_requests: mb.Gauge = mb.field("Requests that want to be served at a time.")


class Fleet:
    """The made-up workers, and the load on them."""

    def __init__(self, bus: mb.MetricBus, seconds: float, seed: int) -> None:
        self.metrics = Worker(bus)
        self.pool = Pool(bus)
        self.seconds = seconds
        self.chance = random.Random(seed)
        self.names = (f"w{number}" for number in itertools.count(1))
        self.running: list[str] = []
        self.most = 0

    def start(self) -> str:
        name = next(self.names)
        self.running.append(name)
        self.most = max(self.most, len(self.running))
        return name

    def stop(self) -> str:
        name = self.running.pop()
        # Its series go with it, and what the rules know of it.
        self.metrics.kv_usage_ratio.remove(name)
        return name

    async def run(self) -> None:
        """Twice from little to much and back."""
        begin = time.monotonic()
        while (passed := time.monotonic() - begin) < self.seconds:
            offered = 400.0 - 330.0 * math.cos(4 * math.pi * passed / self.seconds)
            self.pool.offered_requests.set(offered)
            self.pool.workers.set(len(self.running))
            for name in self.running:
                share = offered / len(self.running) * self.chance.uniform(0.97, 1.03)
                self.metrics.kv_usage_ratio.labels(name).set(min(share / ROOM, 1.0))
                self.metrics.requests_total.labels(name).inc(min(share, ROOM) / 50)
            await asyncio.sleep(0.02)


class Planner:
    """Starts workers while one is full, stops some while all are idle."""

    def __init__(self, fleet: Fleet, say: Callable[[str], None]) -> None:
        self.fleet = fleet
        self.say = say
        self.steps: dict[str, asyncio.Task[None]] = {}
        self.decisions = 0

    def rules(self) -> list[mb.Rule]:
        kv = self.fleet.metrics.kv_usage_ratio
        return [
            mb.Rule("KvCacheFull", mb.when(kv, above=0.9, clear_below=0.8), hold_for=0.05, group="any"),
            mb.Rule("Idle", mb.when(mb.Expr.avg(kv), below=0.35, clear_above=0.5), hold_for=0.2),
        ]

    async def on_alert(self, alert: mb.Alert) -> None:
        """Awaited for each alert, one after the other. What takes long is left to a task."""
        value = "" if alert.value is None else f" at {alert.value:.2f}"
        self.say(f"{alert.rule} {alert.state}{value}")
        if alert.is_firing:
            change = self.grow if alert.rule == "KvCacheFull" else self.shrink
            self.steps[alert.rule] = asyncio.create_task(change())
        elif (task := self.steps.pop(alert.rule, None)) is not None:
            task.cancel()

    async def grow(self) -> None:
        while len(self.fleet.running) < WORKERS_MAX:
            await asyncio.sleep(STEP)
            self.decisions += 1
            self.say(f"  + {self.fleet.start()}, now {len(self.fleet.running)}")

    async def shrink(self) -> None:
        while len(self.fleet.running) > 1:
            self.decisions += 1
            self.say(f"  - {self.fleet.stop()}, now {len(self.fleet.running)}")
            await asyncio.sleep(STEP)

    async def close(self) -> None:
        tasks = list(self.steps.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def plan(seconds: float, seed: int, address: str | None) -> None:
    bus = mb.MetricBus()
    begin = bus.clock.now()

    def say(what: str) -> None:
        print(f"{bus.clock.now() - begin:6.2f} s  {what}", flush=True)

    fleet = Fleet(bus, seconds, seed)
    planner = Planner(fleet, say)
    fleet.start()
    for rule in planner.rules():
        bus.add_rule(rule)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(planner.close)
        stack.enter_context(bus.on_alert(planner.on_alert))
        if address is not None:
            server = stack.enter_context(mb.Exporter(bus).serve(address))
            say(f"metrics at {server.url}")
        await fleet.run()
    alerts = sum(len(rule.history()) for rule in bus.rules())
    say(f"{alerts} alerts, {planner.decisions} changes, at most {fleet.most} workers")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").strip(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="how long the made-up load lasts (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="where chance starts from (%(default)s)")
    parser.add_argument("--serve", metavar="ADDRESS", help="serve /metrics and /rules there meanwhile")
    options = parser.parse_args()
    if not options.seconds > 0:
        parser.error(f"--seconds is {options.seconds}; more than 0 would be right")
    try:
        asyncio.run(plan(options.seconds, options.seed, options.serve))
    except mb.ServeError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
