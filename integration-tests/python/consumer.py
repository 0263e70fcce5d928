"""A consumer of alerts and frames that knows nothing of metricbus: nats-py, json and opentelemetry-proto only.

    consumer.py URL

Prints a line of JSON for each message that it hears, and for each answer to a line of its standard input:
`services PING`, `services INFO` and `services STATS` ask the service API of NATS, `request SUBJECT BODY` asks anybody.
"""

import asyncio
import json
import sys

import nats
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.metrics.v1.metrics_pb2 import MetricsData


def say(kind, **what):
    print(json.dumps({"kind": kind, **what}), flush=True)


def frame_of(body):
    data = MetricsData()
    data.ParseFromString(body)
    return MessageToDict(data)


async def hear(msg):
    headers = dict(msg.headers or {})
    content = headers.get("Content-Type", "")
    what = {"subject": msg.subject, "headers": headers}
    if content.startswith("application/x-protobuf"):
        say("frame", frame=frame_of(msg.data), **what)
    elif ".a." in msg.subject:
        say("alert", event=json.loads(msg.data), **what)
    else:
        say("pulse", pulse=json.loads(msg.data), **what)


async def ask(client, subject, body, answers_max):
    inbox = client.new_inbox()
    inbound = await client.subscribe(inbox)
    await client.publish(subject, body, reply=inbox)
    answers = []
    while len(answers) < answers_max:
        try:
            answers.append(await inbound.next_msg(timeout=1.0))
        except nats.errors.TimeoutError:
            break
    await inbound.unsubscribe()
    return answers


async def main(url):
    client = await nats.connect(url)
    await client.subscribe("metricbus.v1.*.*.*.m.>", cb=hear)
    await client.subscribe("metricbus.v1.*.*.*.a.>", cb=hear)
    await client.subscribe("metricbus.v1.*.*.*.s.>", cb=hear)
    await client.flush()
    say("ready")
    lines = asyncio.StreamReader(limit=2**24)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := (await lines.readline()).decode():
        verb, _, rest = line.strip().partition(" ")
        if verb == "services":
            answers = await ask(client, f"$SRV.{rest}", b"", 1)
            say("services", answers=[json.loads(answer.data) for answer in answers])
        elif verb == "request":
            subject, _, body = rest.partition(" ")
            answers = await ask(client, subject, body.encode(), 1)
            for answer in answers:
                headers = dict(answer.headers or {})
                if headers.get("Content-Type", "").startswith("application/x-protobuf"):
                    say("answer", headers=headers, frame=frame_of(answer.data))
                else:
                    say("answer", headers=headers, text=answer.data.decode())
            if not answers:
                say("silence", subject=subject)
        else:
            raise SystemExit(f"not understood: {line!r}")
    await client.drain()


asyncio.run(main(sys.argv[1]))
