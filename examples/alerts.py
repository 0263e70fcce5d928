"""Prints the alerts of all pods as they come. It knows NATS and JSON, and nothing of metricbus.

    python -m venv .venv && .venv/bin/pip install nats-py
    .venv/bin/python examples/alerts.py nats://127.0.0.1:4222

Something to see: `cargo run --release --example cross_pod --features nats -- worker`, and type `spikes 3`.
An alert may come twice, with the same `id`, when a connection broke just then; who counts should leave out the second. Those of
the time before it started are in JetStream, if a stream takes their subjects: read that instead (docs/nats.md).
"""
import asyncio, json, sys
import nats

async def main(url):
    client = await nats.connect(url)
    # metricbus.v1.{namespace}.{component}.{instance}.a.{rule}.{firing|resolved}
    alerts = await client.subscribe("metricbus.v1.*.*.*.a.>")
    async for message in alerts.messages:
        event = json.loads(message.data)
        alert = event["data"]
        print(event["time"], event["source"], alert["rule"], alert["state"], alert["value"], flush=True)

asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "nats://127.0.0.1:4222"))
