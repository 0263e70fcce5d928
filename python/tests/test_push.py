"""Pushes to a real Pushgateway."""

from __future__ import annotations

import asyncio
import inspect
import socket

import prometheus_client
import pytest
from conftest import Pushgateway, Run

import metricbus as mb


def test_a_push_replaces_the_group_and_an_add_only_what_it_names(bus: mb.MetricBus, pushgateway: Pushgateway) -> None:
    bus.gauge("rows", "Rows.").set(7)
    push = mb.Push(pushgateway.url, "backup", grouping={"database": "orders", "path": "/var/lib"})
    push.push(bus)
    group = (("database", "orders"), ("job", "backup"), ("path", "/var/lib"))
    assert pushgateway.groups() == {group: {"rows": "7"}}
    other = mb.MetricBus()
    other.gauge("seconds", "Seconds.").set(2)
    push.add(other)
    assert pushgateway.groups() == {group: {"rows": "7", "seconds": "2"}}
    push.push(other)
    assert pushgateway.groups() == {group: {"seconds": "2"}}
    push.delete()
    push.delete()
    pushgateway.wait_for(0)


def test_the_event_loop_goes_on_during_a_push(bus: mb.MetricBus, pushgateway: Pushgateway) -> None:
    bus.gauge("rows", "Rows.").set(7)

    async def main() -> None:
        push = mb.Push(pushgateway.url, "backup", format="protobuf")
        await push.push_async(bus)
        await push.add_async(bus)
        assert pushgateway.groups() == {(("job", "backup"),): {"rows": "7"}}
        await push.delete_async()
        pushgateway.wait_for(0)

    asyncio.run(main())


def test_the_functions_of_prometheus_client_are_there(bus: mb.MetricBus, pushgateway: Pushgateway) -> None:
    address = f"127.0.0.1:{pushgateway.port}"
    depth = bus.gauge("depth", "Depth.")
    # What is asked before a scrape is asked before a push.
    depth.set_function(lambda: 3)
    mb.push_to_gateway(address, "batch", bus, {"instance": 7}, timeout=10)
    mb.pushadd_to_gateway(pushgateway.url, job="batch", registry=bus, grouping_key={"instance": "8"})
    mb.pushadd_to_gateway(pushgateway.url, "batch", bus, timeout=None)
    groups = pushgateway.groups()
    assert groups[(("instance", "7"), ("job", "batch"))] == {"depth": "3"}
    assert groups[(("instance", "8"), ("job", "batch"))] == {"depth": "3"}
    mb.delete_from_gateway(address, "batch", {"instance": "7"})
    pushgateway.wait_for(2)


@pytest.mark.parametrize("name", ["push_to_gateway", "pushadd_to_gateway", "delete_from_gateway", "instance_ip_grouping_key"])
def test_their_parameters_are_in_the_same_order(name: str) -> None:
    theirs = [p for p in inspect.signature(getattr(prometheus_client, name)).parameters if p not in ("handler", "compression")]
    assert list(inspect.signature(getattr(mb, name)).parameters) == theirs


def test_the_default_bus_is_pushed_where_none_is_named(pushgateway: Pushgateway) -> None:
    mb.Gauge("test_push_default", "D.").set(1)
    mb.push_to_gateway(pushgateway.url, "default")
    assert pushgateway.groups()[(("job", "default"),)]["test_push_default"] == "1"


def test_an_instance_is_an_address() -> None:
    key = mb.instance_ip_grouping_key()
    assert list(key) == ["instance"]
    socket.inet_aton(key["instance"])


def test_what_can_not_be_pushed_is_said(bus: mb.MetricBus, pushgateway: Pushgateway) -> None:
    with pytest.raises(mb.PushError, match="does not begin with http://"):
        mb.Push("pushgateway:9091", "backup").push(bus)
    with pytest.raises(mb.PushError, match="job has no name"):
        mb.push_to_gateway(pushgateway.url, "", bus)
    with pytest.raises(mb.PushError, match='group by label "job"'):
        mb.push_to_gateway(pushgateway.url, "backup", bus, {"job": "other"})
    with pytest.raises(ValueError, match='format is "openmetrics"; "text" or "protobuf" would be right'):
        mb.Push(pushgateway.url, "backup", format="openmetrics")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="metricbus.MetricBus would be right"):
        mb.push_to_gateway(pushgateway.url, "backup", prometheus_client.REGISTRY)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="handler"):
        mb.push_to_gateway(pushgateway.url, "backup", bus, handler=print)  # type: ignore[call-arg]


def test_a_gateway_that_is_not_there_is_an_error_as_of_any_connection(bus: mb.MetricBus) -> None:
    with socket.socket() as taken:
        # Bound, but nobody listens.
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match="nothing was pushed"):
            mb.push_to_gateway(address, "backup", bus)
        with pytest.raises(mb.PushError, match="refused"):
            asyncio.run(_pushed(address, bus))


async def _pushed(address: str, bus: mb.MetricBus) -> None:
    await mb.Push(f"http://{address}", "backup").push_async(bus)


@pytest.mark.parametrize("call", ["push.push(bus)", "push.add(bus)", "push.delete()"])
def test_a_push_that_waits_hears_a_ctrl_c_and_breaks_off(run: Run, call: str) -> None:
    program = f"""
        import os, signal, socket, threading
        import metricbus as mb

        with socket.create_server(("127.0.0.1", 0)) as gateway:
            connections = []

            def interrupt():
                connection, _ = gateway.accept()
                connection.recv(1)
                connections.append(connection)
                os.kill(os.getpid(), signal.SIGINT)

            threading.Thread(target=interrupt).start()
            bus = mb.MetricBus()
            push = mb.Push(f"http://127.0.0.1:{{gateway.getsockname()[1]}}", "backup", timeout=3600)
            try:
                {call}
            except KeyboardInterrupt:
                # Ends where nothing is sent to it any more.
                connections[0].settimeout(10)
                while connections[0].recv(65536):
                    pass
                print("interrupted")
    """
    assert run(program, timeout=30).stdout == "interrupted\n"


def test_no_text_of_a_push_shows_a_secret() -> None:
    push = mb.Push("http://user:s3cr3t@gateway", "backup", basic_auth=("backup", "s3cr3t"), headers={"authorization": "s3cr3t"})
    assert "s3cr3t" not in repr(push)
    assert "backup" in repr(push)
