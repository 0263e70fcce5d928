"""Across pods, over a real nats-server."""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from conftest import NatsServer

import metricbus as mb

T = TypeVar("T")

# Nobody listens here.
NOWHERE = "nats://127.0.0.1:1"

POD = mb.SourceId("prod", "decode", "pod-7")


def within(seconds: float, main: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(main, seconds))


async def first(events: AsyncIterator[T], which: Callable[[T], bool]) -> T:
    async for event in events:
        if which(event):
            return event
    raise AssertionError("the events have ended")


async def worker(bus: mb.MetricBus, nats: NatsServer, source: mb.SourceId = POD, **settings: Any) -> mb.NatsForwarder:
    settings = {"heartbeat": 0.1, "delivery": "core", **settings}
    return await mb.NatsForwarder.start(bus, nats.url, source=source, **settings)


async def planner(nats: NatsServer, *known: mb.SourceId, **settings: Any) -> mb.Fleet:
    """A fleet that knows these already."""
    fleet = await mb.Fleet.start(nats.url, **settings)
    await fleet.synced()
    # Those that were not yet connected themselves come later.
    missing = set(known)
    async with fleet.on_source() as events:
        while missing:
            missing.discard((await anext(events)).source)
    return fleet


class TestOptions:
    def test_no_text_of_them_shows_a_secret(self) -> None:
        shown = [
            mb.NatsOptions("nats://worker:s3cr3t@nats-0:4222"),
            mb.NatsOptions("nats://s3cr3t@nats-0"),
            mb.NatsOptions("nats-0", user="worker", password="s3cr3t"),
            mb.NatsOptions("nats-0", token="s3cr3t"),
        ]
        assert "s3cr3t" not in repr(shown)
        with pytest.raises(mb.NatsError, match="can't be used") as wrong:
            mb.NatsOptions("http://worker:s3cr3t@nats-0")
        assert "s3cr3t" not in str(wrong.value)

    def test_servers_are_given_with_commas_or_as_a_list(self) -> None:
        one, other = mb.NatsOptions("nats-0,nats-1"), mb.NatsOptions(["nats-0", "nats-1"])
        assert repr(one) == repr(other)
        assert "nats-1" in repr(other)

    def test_a_user_needs_a_password(self) -> None:
        with pytest.raises(TypeError, match="user= is given without password="):
            mb.NatsOptions("nats-0", user="worker")
        with pytest.raises(TypeError, match="password= is given without user="):
            mb.NatsOptions("nats-0", password="s3cr3t")

    def test_the_environment_is_read_as_the_nats_tool_does(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in [name for name in os.environ if name.startswith("NATS_")]:
            monkeypatch.delenv(name)
        assert "127.0.0.1:4222" in repr(mb.NatsOptions.from_env())
        monkeypatch.setenv("NATS_URL", "nats-9:4333")
        monkeypatch.setenv("NATS_USER", "worker")
        monkeypatch.setenv("NATS_PASSWORD", "s3cr3t")
        shown = repr(mb.NatsOptions.from_env())
        assert "nats-9:4333" in shown and "worker" in shown and "s3cr3t" not in shown
        monkeypatch.delenv("NATS_USER")
        with pytest.raises(mb.NatsError, match="NATS_PASSWORD"):
            mb.NatsOptions.from_env()

    def test_what_a_start_needs_is_checked_before_the_network(self, bus: mb.MetricBus, tmp_path: Path) -> None:
        missing = tmp_path / "worker.creds"

        async def main() -> None:
            with pytest.raises(mb.NatsError, match="worker.creds"):
                await mb.NatsForwarder.start(bus, mb.NatsOptions(NOWHERE, credentials_file=missing), source=POD)
            with pytest.raises(mb.NatsError, match="two kinds of credentials"):
                await mb.Fleet.start(mb.NatsOptions(NOWHERE, token="a", user="b", password="c"))
            with pytest.raises(mb.NatsError, match="ping_interval"):
                await mb.Fleet.start(mb.NatsOptions(NOWHERE, ping_interval=timedelta(0)))
            with pytest.raises(TypeError, match="a int is no options"):
                await mb.Fleet.start(4222)  # type: ignore[arg-type]

        within(10, main())


class TestForwarder:
    def test_wrong_settings_are_errors_that_say_what_would_be_right(self, bus: mb.MetricBus) -> None:
        async def refused(what: type[Exception], why: str, **settings: Any) -> None:
            with pytest.raises(what, match=why):
                await mb.NatsForwarder.start(bus, NOWHERE, **{"source": POD, **settings})

        async def main() -> None:
            await refused(mb.NatsError, "heartbeat .* 1s is usual", heartbeat=0)
            await refused(mb.NatsError, "outbox .* room for one alert", outbox=0)
            await refused(mb.NatsError, "frames_per_second_max", frames_per_second_max=0)
            await refused(mb.NatsError, "prefix", prefix="a b")
            await refused(ValueError, "delivery is \"mail\"", delivery="mail")
            await refused(TypeError, "needs stream=", delivery="jetstream")
            await refused(TypeError, "stream= is only for", stream="ALERTS")
            await refused(TypeError, "create_stream= is only for", create_stream=True)
            await refused(ValueError, "three parts", source="decode/pod-7")
            await refused(TypeError, "7 is no source", source=7)
            await refused(OverflowError, "negative", outbox=-1)

        within(10, main())

    def test_it_is_started_in_an_event_loop(self, bus: mb.MetricBus) -> None:
        with pytest.raises(RuntimeError, match="no running event loop"):
            mb.NatsForwarder.start(bus, NOWHERE, source=POD)

    def test_no_server_is_no_error(self, bus: mb.MetricBus) -> None:
        async def main() -> None:
            async with await mb.NatsForwarder.start(bus, NOWHERE, source="prod/decode/pod-7") as forwarder:
                assert forwarder.source == POD
                status = forwarder.status()
                assert status.source == POD
                assert status.connection.state in ("connecting", "disconnected")
                assert status.connection.servers == ["nats://127.0.0.1:1"]
                assert abs(status.connection.since - datetime.now(UTC)) < timedelta(minutes=1)
                assert status.outbox.limit == 10_000 and status.rules_in is None
                await forwarder.flush(0)
                await forwarder.shutdown(0)
                assert forwarder.is_closed
                with pytest.raises(mb.ClosedError, match="the forwarder has ended"):
                    forwarder.forward("kv")

        within(10, main())

    def test_series_are_forwarded_until_that_is_closed(self, bus: mb.MetricBus, nats: NatsServer) -> None:
        kv = bus.gauge("kv_usage_ratio", "KV", ["worker"])
        kv.labels("1").set(0.5)

        async def main() -> None:
            forwarder = await worker(bus, nats)
            forwarding = forwarder.forward(kv, every=0.01)
            assert forwarding.series == 1
            async with await planner(nats, POD) as fleet:
                async with fleet.bus.on_threshold("kv_usage_ratio", at_least=0) as crossings:
                    series = (await anext(crossings)).series
                    assert series.labels == {
                        "namespace": "prod", "component": "decode", "instance": "pod-7", "worker": "1"
                    }  # fmt: skip
                async with fleet.bus.on_change("kv_usage_ratio") as changes:
                    kv.labels("1").set(0.7)
                    await first(changes, lambda change: change.value == 0.7)
                    kv.labels("2").set(0.1)
                    await first(changes, lambda change: change.series.label("worker") == "2")
                assert forwarding.series == 2 and forwarding.frames_sent >= 3
                assert forwarder.status().frames.series == 2
                async with fleet.bus.on_threshold("kv_usage_ratio", above=0.5) as crossings:
                    assert (await anext(crossings)).is_raised
                    forwarding.close()
                    assert forwarding.is_closed
                    with pytest.raises(mb.ClosedError):
                        forwarding.series  # noqa: B018
                    assert (await anext(crossings)).cause == "removed"
                await forwarder.shutdown(5)

        within(20, main())

    def test_a_forwarding_has_the_words_of_on_delta(self, bus: mb.MetricBus) -> None:
        bus.gauge("kv_usage_ratio", "KV")

        async def main() -> None:
            async with await mb.NatsForwarder.start(bus, NOWHERE, source=POD) as forwarder:
                with forwarder.forward("kv_usage_ratio", absolute=0.01, every=timedelta(seconds=1), name="kv") as kept:
                    assert not kept.is_closed
                assert kept.is_closed
                with pytest.raises(TypeError, match="floor= is given without relative="):
                    forwarder.forward("kv_usage_ratio", absolute=0.1, floor=1)
                with pytest.raises(mb.SubscribeError):
                    forwarder.forward("kv_usage_ratio", absolute=-1)
                with pytest.raises(mb.SelectorError):
                    forwarder.forward("kv{")
                with pytest.raises(mb.NatsError, match="at most every 10ms"):
                    forwarder.forward("kv_usage_ratio", every=0.001)
                await forwarder.shutdown(0)

        within(10, main())

    def test_it_outlives_the_loop_in_which_it_was_started(self, bus: mb.MetricBus, nats: NatsServer) -> None:
        bus.gauge("ready", "").set(1)
        forwarder = within(10, worker(bus, nats))
        forwarder.forward("ready", every=0.01)

        async def main() -> None:
            async with await planner(nats, POD) as fleet:
                assert [source.state for source in fleet.sources()] == ["live"]
            await forwarder.shutdown(5)

        within(20, main())

    def test_a_start_that_is_given_up_leaves_nothing_behind(self, bus: mb.MetricBus, nats: NatsServer) -> None:
        async def main() -> None:
            async with await planner(nats) as fleet, fleet.on_source() as events:
                loop = asyncio.get_running_loop()
                for i in range(20):
                    start = mb.NatsForwarder.start(bus, nats.url, source=f"prod/decode/gone-{i}")
                    loop.call_later(i / 20_000, start.cancel)
                    try:
                        await start
                    except asyncio.CancelledError:
                        pass
                    del start
                async with await worker(bus, nats):
                    await first(events, lambda event: event.source == POD)
                # No event tells of those that had gone before all of them was known.
                while any(source.state == "live" for source in fleet.sources()):
                    await asyncio.sleep(0.01)

        within(20, main())

    def test_it_ends_when_nothing_refers_to_it(self, bus: mb.MetricBus, nats: NatsServer) -> None:
        async def main() -> None:
            forwarder = await worker(bus, nats)
            async with await planner(nats, POD) as fleet, fleet.on_source() as events:
                live = await anext(events)
                assert (live.source, live.change, live.initial) == (POD, "live", True)
                del forwarder
                gc.collect()
                gone = await first(events, lambda event: event.change == "gone")
                assert gone.gone == "died" and gone.why == "it ended: dropped"

        within(20, main())


class TestFleet:
    def test_wrong_settings_are_errors_that_say_what_would_be_right(self) -> None:
        async def refused(what: type[Exception], why: str, **settings: Any) -> None:
            with pytest.raises(what, match=why):
                await mb.Fleet.start(NOWHERE, **settings)

        async def main() -> None:
            await refused(mb.FleetError, "stale_after .* more than 0", stale_after=0)
            await refused(mb.FleetError, "sources_max .* at least 1", sources_max=0)
            await refused(mb.FleetError, "rules_bucket", rules_bucket="a.b")
            await refused(ValueError, "gone_after is -1", gone_after=-1)

        within(10, main())

    def test_without_a_server_it_says_so_and_goes_on(self) -> None:
        async def main() -> None:
            async with await mb.Fleet.start(NOWHERE) as fleet:
                assert not fleet.is_synced and fleet.sources() == [] and fleet.source(POD) is None
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(fleet.synced(), 0.05)
                with pytest.raises(mb.FleetError, match="prod/decode/pod-7"):
                    await fleet.snapshot(POD)
                window = await fleet.window("ttft_seconds", 60)
                assert (window.asked, window.answered, window.each) == (0, 0, [])
                status = fleet.status()
                assert status.live == 0 and not status.synced
                assert set(status.ignored.values()) == {0} and status.last_ignored is None

        within(20, main())

    def test_it_hears_what_becomes_of_sources(self, bus: mb.MetricBus, nats: NatsServer) -> None:
        async def main() -> None:
            async with await planner(nats, component="decode") as fleet:
                heard: list[str] = []
                changed = asyncio.Event()

                @fleet.on_source
                async def hear(event: mb.SourceEvent) -> None:
                    heard.append(str(event))
                    changed.set()

                other = await worker(bus, nats, mb.SourceId("prod", "prefill", "pod-1"))
                forwarder = await worker(bus, nats)
                await changed.wait()
                changed.clear()
                await other.shutdown(5)
                await forwarder.shutdown(5)
                await changed.wait()
                assert heard == ["prod/decode/pod-7 is there", "prod/decode/pod-7 is gone: it ended: shut down"]
                (status,) = fleet.sources()
                assert (status.source, status.state) == (POD, "gone")
                assert status.skew is not None and abs(status.skew) < 60 and status.refused == {}
                hear.close()

        within(20, main())

    def test_a_source_is_asked_for_its_series_as_they_are(self, bus: mb.MetricBus, nats: NatsServer) -> None:
        bus.counter("requests_total", "", ["method"]).labels("GET").inc(3)
        bus.gauge("kv_usage_ratio", "").set(0.5)
        bus.gauge("secret", "").set(42)

        async def main() -> None:
            async with await worker(bus, nats) as forwarder, await planner(nats, POD) as fleet:
                assert (await fleet.snapshot(POD)).families == []
                forwarder.forward('{__name__!="secret",__name__!=""}')
                everything = await fleet.snapshot("prod/decode/pod-7")
                assert everything.value("requests_total", method="GET") == 3
                assert everything.value("kv_usage_ratio") == 0.5 and everything.value("secret") is None
                some = await fleet.snapshot(POD, "kv_usage_ratio")
                assert [family.name for family in some.families] == ["kv_usage_ratio"]
                with pytest.raises(mb.FleetError, match="nobody answers for it"):
                    await fleet.snapshot("prod/decode/pod-8")
                with pytest.raises(mb.SelectorError):
                    await fleet.snapshot(POD, "kv{")

        within(20, main())

    def test_what_waits_for_it_ends_when_it_is_closed(self) -> None:
        async def main() -> None:
            fleet = await mb.Fleet.start(NOWHERE)
            events = fleet.on_source().stream()
            synced = asyncio.ensure_future(fleet.synced())
            await asyncio.sleep(0)
            fleet.close()
            fleet.close()
            with pytest.raises(mb.ClosedError, match="this fleet was closed"):
                await synced
            assert fleet.is_closed and repr(fleet) == "<Fleet closed>"
            for ask in (fleet.sources, fleet.status, fleet.synced, fleet.on_alert().stream):
                with pytest.raises(mb.ClosedError):
                    ask()
            assert fleet.bus.series("{__name__=~\".+\"}") == []
            events.close()

        within(10, main())


class TestAlerts:
    FULL = mb.Rule("KvCacheFull", mb.when("kv_usage_ratio", above=0.9, clear_below=0.8), labels={"severity": "page"})

    def test_each_is_heard_once_and_in_order(self, bus: mb.MetricBus, nats: NatsServer) -> None:
        kv = bus.gauge("kv_usage_ratio", "KV", ["worker"])
        kv.labels("1").set(0.95)
        bus.add_rule(self.FULL)

        async def main() -> None:
            async with await worker(bus, nats) as forwarder, await planner(nats, POD) as fleet:
                sending = forwarder.forward_alerts()
                async with fleet.on_alert() as alerts:
                    firing = await anext(alerts)
                    assert (firing.rule, firing.state, firing.value) == ("KvCacheFull", "firing", 0.95)
                    assert firing.labels == {"severity": "page", "worker": "1"}
                    assert firing.origin is not None
                    assert (firing.origin.source, firing.origin.sequence) == (POD, 1)
                    for _ in range(50):
                        kv.labels("1").set(0.1)
                        kv.labels("1").set(0.99)
                    told = [(alert.epoch, alert.state) for alert in [await anext(alerts) for _ in range(100)]]
                    assert told == [(2 + i, ["resolved", "firing"][i % 2]) for i in range(100)]
                await forwarder.flush(5)
                outbox = forwarder.status().outbox
                assert (outbox.confirmed, outbox.unconfirmed, outbox.dropped) == (101, 0, 0)
                async with fleet.on_alert() as late:
                    firing = await anext(late)
                    assert (firing.state, firing.cause) == ("firing", "initial")
                sending.close()
                kv.labels("1").set(0.1)
                await forwarder.flush(5)
                assert forwarder.status().outbox.confirmed == 101

        within(20, main())

    def test_some_are_sent_by_hand_and_never_those_of_others(self, bus: mb.MetricBus, nats: NatsServer) -> None:
        kv = bus.gauge("kv_usage_ratio", "KV", ["worker"])
        bus.add_rule(self.FULL)

        async def main() -> None:
            async with await worker(bus, nats) as forwarder, await planner(nats, POD) as fleet, fleet.on_alert() as alerts:
                sent: list[int] = []

                @bus.on_alert
                def some(alert: mb.Alert) -> None:
                    if alert.label("worker") == "2":
                        sent.append(forwarder.send(alert))

                for name in ("1", "2", "3", "2"):
                    kv.labels(name).set(0.95)
                    kv.labels(name).set(0.1)
                heard = [await anext(alerts) for _ in range(4)]
                assert [(alert.label("worker"), alert.state) for alert in heard] == [("2", "firing"), ("2", "resolved")] * 2
                assert sent == [1, 2, 3, 4]
                with pytest.raises(mb.NatsError, match="made by prod/decode/pod-7 and is not forwarded again"):
                    forwarder.send(heard[0])
                assert forwarder.status().outbox.looped == 1
                some.close()

        within(20, main())

    def test_they_wait_until_there_is_a_server(self, bus: mb.MetricBus, nats: NatsServer) -> None:
        kv = bus.gauge("kv_usage_ratio", "KV")
        bus.add_rule(self.FULL)

        async def main() -> None:
            nats.kill()
            options = mb.NatsOptions(nats.url, ping_interval=0.5)
            forwarder = await mb.NatsForwarder.start(bus, options, source=POD, heartbeat=0.1, delivery="core")
            async with forwarder, await mb.Fleet.start(options) as fleet, fleet.on_alert() as alerts:
                forwarder.forward_alerts()
                kv.set(0.95)
                kv.set(0.1)
                with pytest.raises(mb.NatsError, match="2 alerts were not confirmed before the deadline: .*nobody listens"):
                    await forwarder.flush(0.05)
                outbox = forwarder.status().outbox
                assert (outbox.held, outbox.unconfirmed) == (2, 2)
                assert outbox.oldest_unconfirmed is not None and outbox.oldest_unconfirmed > 0
                # Whoever gives up waiting changes nothing.
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(forwarder.flush(60), 0.05)
                await asyncio.to_thread(nats.start)
                await forwarder.flush(20)
                await fleet.synced()
                kv.set(0.95)
                again = await first(alerts, lambda alert: alert.epoch == 3)
                assert again.origin is not None and again.origin.sequence == 3
                await asyncio.to_thread(nats.kill)
                kv.set(0.1)
                await asyncio.to_thread(nats.start)
                resolved = await anext(alerts)
                assert (resolved.state, resolved.epoch) == ("resolved", 4)

        within(50, main())

    def test_they_go_into_a_stream(self, bus: mb.MetricBus, nats: NatsServer) -> None:
        kv = bus.gauge("kv_usage_ratio", "KV")
        bus.add_rule(self.FULL)

        async def main() -> None:
            started = worker(bus, nats, delivery="jetstream", stream="ALERTS", create_stream=True)
            async with await started as forwarder:
                forwarder.forward_alerts()
                kv.set(0.95)
                await forwarder.flush(20)
                status = forwarder.status()
                assert status.delivery == "stream ALERTS" and status.outbox.confirmed == 1

        within(30, main())


class TestRules:
    FULL = mb.Rule("KvCacheFull", mb.when("kv_usage_ratio", above=0.9, clear_below=0.8), group="any")

    def test_one_is_judged_over_all_sources(self, nats: NatsServer) -> None:
        buses = [mb.MetricBus(), mb.MetricBus()]
        queues = [bus.gauge("queue_depth", "Waiting.") for bus in buses]

        async def main() -> None:
            async with await planner(nats) as fleet:
                backlog = mb.Rule("Backlog", mb.when(mb.Expr.sum("queue_depth"), above=500, clear_below=200))
                live = fleet.add_rule(backlog)
                with pytest.raises(mb.RuleError):
                    fleet.add_rule(backlog)
                forwarders = []
                for i, bus in enumerate(buses):
                    forwarders.append(await worker(bus, nats, mb.SourceId("prod", "decode", f"pod-{i}")))
                    forwarders[-1].forward("queue_depth", every=0.01)
                async with fleet.bus.on_alert() as alerts:
                    queues[0].set(300)
                    queues[1].set(300)
                    assert (await anext(alerts)).value == 600
                    # The queue of one who is gone counts no more.
                    await forwarders[1].shutdown(5)
                    queues[0].set(100)
                    assert (await anext(alerts)).state == "resolved"
                live.remove()
                await forwarders[0].shutdown(5)

        within(20, main())

    def test_one_is_sent_to_sources_and_taken_back(self, bus: mb.MetricBus, nats: NatsServer) -> None:
        bus.gauge("kv_usage_ratio", "KV").set(0.95)
        decode = mb.RuleTarget.component("prod", "decode")

        async def main() -> None:
            async with await planner(nats) as fleet, fleet.on_alert() as alerts:
                sent = await fleet.send_rule(decode, self.FULL)
                assert sent.written and sent.why is None and sent.target == decode and sent.rule == self.FULL
                async with await worker(bus, nats, rules_from="metricbus-rules") as forwarder:
                    forwarder.forward_alerts()
                    firing = await anext(alerts)
                    assert (firing.rule, firing.state, firing.value) == ("KvCacheFull", "firing", 0.95)
                    (rule,) = (await fleet.rules_of(POD)).rules
                    assert (rule.name, rule.state, rule.series, rule.value) == ("KvCacheFull", "firing", 1, 0.95)
                    status = forwarder.status().rules_in
                    assert status is not None and (status.state, status.in_force, status.refused) == ("watching", 1, [])
                    assert [(one.name, one.written) for one in await fleet.sent_rules()] == [("KvCacheFull", True)]
                    assert (await fleet.retract_rule(decode, "KvCacheFull")).written
                    resolved = await anext(alerts)
                    assert (resolved.state, resolved.cause) == ("resolved", "rule_removed")
                    assert await fleet.sent_rules() == []

        within(30, main())

    def test_targets_are_told_apart(self) -> None:
        target = mb.RuleTarget
        targets = [target.all(), target.namespace("a"), target.component_anywhere("a"), target.component("a", "b")]
        assert [str(one) for one in targets] == ["*/*", "a/*", "*/a", "a/b"]
        assert len(set(targets)) == 4 and target.component("a", "b") in targets

    def test_one_that_waits_for_a_server_is_told_as_such(self) -> None:
        async def main() -> None:
            async with await mb.Fleet.start(NOWHERE) as fleet:
                sending = asyncio.ensure_future(fleet.send_rule(mb.RuleTarget.all(), self.FULL))
                sent = await sending
                assert not sent.written and sent.why is not None
                assert fleet.status().rules_unwritten == 1
                (kept,) = await fleet.sent_rules()
                assert kept.rule == self.FULL

        within(20, main())


class TestWindows:
    def test_they_are_merged_without_loss(self, nats: NatsServer) -> None:
        buses = [mb.MetricBus(), mb.MetricBus()]
        ttft = [bus.histogram("ttft_seconds", "TTFT", ["model"]) for bus in buses]
        for histogram in ttft:
            histogram.labels("m")

        async def main() -> None:
            pods = [mb.SourceId("prod", "decode", f"pod-{i}") for i in range(2)]
            forwarders = [await worker(bus, nats, pod) for bus, pod in zip(buses, pods, strict=True)]
            async with await planner(nats, *pods) as fleet:
                assert (await fleet.window("ttft_seconds", 60)).stats.count == 0
                for _ in range(99):
                    ttft[0].labels("m").observe(0.1)
                ttft[1].labels("m").observe(10)
                window = await fleet.window("ttft_seconds", timedelta(minutes=1))
                assert window.is_complete and (window.asked, window.answered) == (2, 2)
                assert window.stats.count == 100 and window.stats.max == pytest.approx(10)
                median = window.stats.quantile(0.5)
                assert median is not None and median == pytest.approx(0.1, rel=0.05)
                assert [one.source for one in window.each] == pods
                (series,) = window.each[0].series
                assert (series.name, series.labels, series.stats.count) == ("ttft_seconds", {"model": "m"}, 99)
                one = await fleet.window('ttft_seconds{instance="pod-1"}', 60)
                assert (one.asked, one.stats.count) == (1, 1)
                with pytest.raises(mb.FleetError, match="window"):
                    await fleet.window("ttft_seconds", 0)
            for forwarder in forwarders:
                await forwarder.shutdown(5)

        within(20, main())


class TestLog:
    def test_an_operator_is_told_what_to_check(self) -> None:
        async def main() -> None:
            loop, told = asyncio.get_running_loop(), asyncio.Event()

            class Handler(logging.Handler):
                def emit(self, record: logging.LogRecord) -> None:
                    if "nobody listens there" in record.getMessage():
                        loop.call_soon_threadsafe(told.set)

            handler = Handler()
            logging.getLogger("metricbus").addHandler(handler)
            try:
                async with await mb.Fleet.start(NOWHERE):
                    await told.wait()
            finally:
                logging.getLogger("metricbus").removeHandler(handler)

        within(20, main())


class TestEnds:
    """Nothing is left behind, and nothing is printed, however it ends."""

    PROGRAM = """
        import asyncio, logging, sys
        import metricbus as mb

        # That nobody listens there is said; here it is not to be seen.
        logging.getLogger("metricbus").setLevel(logging.CRITICAL)

        bus = mb.MetricBus()
        up = bus.gauge("ready", "Of a test.")
        up.set(1)
        bus.add_rule(mb.Rule("Up", mb.when(up, above=2)))
        kept = []

        async def main():
            forwarder = await mb.NatsForwarder.start(bus, URL, source="prod/decode/pod-7", heartbeat=0.1)
            forwarder.forward("ready", every=0.01)
            forwarder.forward_alerts()
            fleet = await mb.Fleet.start(URL)
            await asyncio.wait_for(fleet.synced(), 20)
            nowhere = await mb.Fleet.start("nats://127.0.0.1:1")
            kept.extend([forwarder, fleet, nowhere, fleet.on_source().stream(), fleet.on_source(print_nothing)])
            # Nobody waits for these, and they go on while the loop is closed and the interpreter ends.
            kept.extend([nowhere.synced(), forwarder.flush(5), fleet.window("ready", 1), fleet.sent_rules()])

        def print_nothing(event):
            pass

        asyncio.run(main())
        END
    """

    @pytest.mark.parametrize("end", ["pass", "kept.clear()", "sys.exit()", "sys.exit(3)", "import gc; kept.clear(); gc.collect()"])
    def test_an_interpreter_ends_in_silence(self, run: Any, nats: NatsServer, end: str) -> None:
        program = self.PROGRAM.replace("URL", repr(nats.url)).replace("END", end)
        done = run(program, "-X", "dev", status=3 if "3" in end else 0)
        assert (done.stdout, done.stderr) == ("", "")

    def test_an_interpreter_ends_while_the_loop_of_another_thread_asks(self, run: Any, nats: NatsServer) -> None:
        program = """
            import asyncio, threading
            import metricbus as mb

            ready = threading.Event()
            bus = mb.MetricBus()
            up = bus.gauge("ready", "Of a test.")

            async def ask(fleet):
                while True:
                    await fleet.window("ready", 1)
                    up.inc()
                    ready.set()

            async def main():
                forwarder = await mb.NatsForwarder.start(bus, URL, source="prod/decode/pod-7", heartbeat=0.1)
                forwarder.forward("ready", every=0.01)
                fleet = await mb.Fleet.start(URL)
                await fleet.synced()
                await asyncio.gather(*[ask(fleet) for _ in range(8)])

            threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()
            assert ready.wait(20)
        """
        for _ in range(5):
            done = run(program.replace("URL", repr(nats.url)))
            assert (done.stdout, done.stderr) == ("", "")

    def test_last_words_are_said_at_the_end_of_the_interpreter(self, run: Any, nats: NatsServer) -> None:
        async def main() -> None:
            async with await planner(nats) as fleet, fleet.on_alert() as alerts:
                program = self.PROGRAM.replace("URL", repr(nats.url)).replace("END", "up.set(3)")
                await asyncio.to_thread(run, program)
                firing = await anext(alerts)
                assert (firing.rule, firing.state, firing.value) == ("Up", "firing", 3)
                # A life so short may be over before the fleet has told of it: then nothing is told of its end, either.
                while any(source.state != "gone" for source in fleet.sources()):
                    await asyncio.sleep(0.01)

        within(30, main())

    def test_a_closed_loop_is_told_nothing(self, nats: NatsServer, capfd: pytest.CaptureFixture[str]) -> None:
        async def main() -> mb.Fleet:
            fleet = await mb.Fleet.start(NOWHERE)
            left.append(fleet.synced())
            return fleet

        left: list[Awaitable[None]] = []
        fleet = within(10, main())
        # Now its result has nowhere to go.
        fleet.close()
        within(10, asyncio.sleep(0.05))
        assert capfd.readouterr() == ("", "")

    def test_a_forked_child_starts_its_own(self, bus: mb.MetricBus, nats: NatsServer) -> None:
        kv = bus.gauge("kv_usage_ratio", "")
        kv.set(0.5)

        async def main() -> None:
            forwarder = await worker(bus, nats)
            forwarding = forwarder.forward(kv, every=0.01)
            alerts = forwarder.forward_alerts()
            fleet = await planner(nats, POD)
            context = multiprocessing.get_context("fork")
            answers: multiprocessing.SimpleQueue[list[str]] = context.SimpleQueue()
            asked: list[Callable[[], object]] = [
                forwarder.status,
                lambda: forwarder.flush(1),
                lambda: forwarder.forward(kv),
                lambda: forwarding.series,
                alerts.stats,
                fleet.sources,
                fleet.synced,
                lambda: fleet.bus,
                fleet.on_source().stream,
            ]

            async def own() -> list[str]:
                other = mb.SourceId("prod", "decode", "child")
                async with await worker(bus, nats, other) as mine, await planner(nats, POD, other) as both:
                    mine.forward(kv, every=0.01)
                    return [str(source.source) for source in both.sources()]

            def child() -> None:
                told = []
                for ask in asked:
                    try:
                        ask()
                    except mb.MetricBusError as error:
                        told.append(type(error).__name__)
                # What happens to it here is nothing to the parent.
                forwarding.close()
                alerts.close()
                fleet.close()
                told += within(20, own())
                answers.put(told)

            process = context.Process(target=child)
            process.start()
            told = await asyncio.to_thread(answers.get)
            await asyncio.to_thread(process.join)
            assert process.exitcode == 0
            assert told == ["ForkedError"] * len(asked) + ["prod/decode/child", "prod/decode/pod-7"]
            assert forwarding.series == 1 and not alerts.is_closed and not fleet.is_closed
            assert forwarder.status().connection.state == "connected"
            fleet.close()
            await forwarder.shutdown(5)

        within(40, main())
