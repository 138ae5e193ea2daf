"""Brokers that keep messages on disk: one process appends them, another consumes and acknowledges them.

Each is used as a sensible user would: many appends in one round trip, many messages in one fetch, one acknowledgement
for all of them. Redis with `appendfsync everysec`, and JetStream, answer before a message is synced to disk, as level
`process` does; Redis with `always` is compared with level `power`. They deliver at least once, not exactly once.
"""

from __future__ import annotations

import asyncio
import functools
import time
from typing import Any

import msgspec

from tests.bench.channels import without
from tests.bench.handlers import Tick
from tests.bench.measure import RATE, Case, Scale, Series
from tests.bench.pairs import Meet, run_pair, timed
from tests.bench.servers import HOST, serving, without_server

BATCH = 256  # messages in one round trip, both ways
COUNTS = {"everysec": 30_000, "always": 15_000, "file": 10_000}  # by policy, so that a run takes a second or two
PATIENCE = 30.0  # seconds
SIZE = 64
STREAM, GROUP = "ticks", "readers"

BLOB = bytes(range(SIZE))


def one_way(broker: str, policy: str, form: str, scale: Scale) -> Series:
    """Messages per second, seen by the consumer, from the first batch to the last acknowledgement."""
    count = max(2, scale.count(COUNTS[policy], 2 * BATCH) // BATCH) * BATCH
    produce, consume = {"redis": (_redis_append, _redis_consume), "nats": (_nats_append, _nats_consume)}[broker]
    with serving(functools.partial({"redis": _redis, "nats": _nats}[broker], policy), scale) as port:
        (received, seconds), _ = run_pair(
            (consume, (port, form, count)), (produce, (port, form, count)), min(scale.timeout, 4 * PATIENCE)
        )
    return {"rate": [received / seconds]}


def _encoder(form: str) -> Any:
    """What makes bytes of one message, and back."""
    if form == "64 B":
        return (lambda number: BLOB), len
    encode, decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(Tick).decode
    return (lambda number: encode(Tick("RNGL", 101.25, number))), decode


# ------------------------------------------------------------------------------------------------ Redis streams
def _redis(policy: str, port: int) -> list[str]:
    options = {"bind": HOST, "port": str(port), "appendonly": "yes", "appendfsync": policy, "save": "", "dir": "."}
    return ["redis-server", *(word for name, value in options.items() for word in (f"--{name}", value))]


def _redis_append(meet: Meet, port: int, form: str, count: int) -> None:
    import redis

    make, _ = _encoder(form)
    with redis.Redis(host=HOST, port=port, socket_timeout=PATIENCE) as client:
        meet()
        for start in range(0, count, BATCH):
            with client.pipeline(transaction=False) as pipe:
                for number in range(start, start + BATCH):
                    pipe.xadd(STREAM, {"m": make(number)})
                pipe.execute()
        meet()


def _redis_consume(meet: Meet, port: int, form: str, count: int) -> tuple[int, float]:
    import redis

    _, take = _encoder(form)
    with redis.Redis(host=HOST, port=port, socket_timeout=PATIENCE) as client:
        client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)

        def receive() -> int:
            found: Any = client.xreadgroup(GROUP, "one", {STREAM: ">"}, count=BATCH, block=int(PATIENCE * 500))
            ((_, entries),) = found.items() if isinstance(found, dict) else found
            for _, fields in entries:
                take(fields[b"m"])
            client.xack(STREAM, GROUP, *(entry for entry, _ in entries))
            return len(entries)

        return timed(meet, receive, count)


# ------------------------------------------------------------------------------------------------ JetStream
def _nats(policy: str, port: int) -> list[str]:
    return ["nats-server", "--addr", HOST, "--port", str(port), "--jetstream", "--store_dir", "."]


def _nats_append(meet: Meet, port: int, form: str, count: int) -> None:
    asyncio.run(_appended(meet, port, form, count))


async def _appended(meet: Meet, port: int, form: str, count: int) -> None:
    import nats

    make, _ = _encoder(form)
    client = await nats.connect(f"nats://{HOST}:{port}")
    stream = client.jetstream()
    await asyncio.to_thread(meet)
    for start in range(0, count, BATCH):  # with `publish_async` it is slower
        numbers = range(start, start + BATCH)
        await asyncio.gather(*(stream.publish(STREAM, make(number), timeout=PATIENCE) for number in numbers))
    await asyncio.to_thread(meet)
    await client.close()


def _nats_consume(meet: Meet, port: int, form: str, count: int) -> tuple[int, float]:
    return asyncio.run(_consumed(meet, port, form, count))


async def _consumed(meet: Meet, port: int, form: str, count: int) -> tuple[int, float]:
    import nats
    from nats.js import api

    _, take = _encoder(form)
    client = await nats.connect(f"nats://{HOST}:{port}")
    stream = client.jetstream()
    await stream.add_stream(name=STREAM, subjects=[STREAM], storage=api.StorageType.FILE)
    config = api.ConsumerConfig(ack_policy=api.AckPolicy.ALL, max_ack_pending=16 * BATCH)
    subscription = await stream.pull_subscribe(STREAM, durable=GROUP, config=config)

    async def receive() -> int:
        messages = await subscription.fetch(BATCH, timeout=PATIENCE)
        for message in messages:
            take(message.data)
        await messages[-1].ack()  # and with it all before
        return len(messages)

    await asyncio.to_thread(meet)
    first = received = await receive()
    began = time.monotonic()
    while received < count:
        received += await receive()
    await client.flush()
    elapsed = time.monotonic() - began
    await asyncio.to_thread(meet)
    await client.close()
    return received - first, elapsed


def cases() -> list[Case]:
    redis = without("redis", "redis") or without_server("redis-server", "redis-server")
    nats = without("nats", "nats-py") or without_server("nats-server", "nats-server")
    found = []
    for form, group in (("3 fields", "tell, 3 fields"), ("64 B", "payload, 64 B")):
        for name, broker, policy, versus, missing in (
            ("Redis streams, AOF everysec", "redis", "everysec", "process", redis),
            ("Redis streams, AOF always", "redis", "always", "power", redis),
            ("NATS JetStream, file", "nats", "file", "process", nats),
        ):
            run = functools.partial(one_way, broker, policy, form)
            found.append(Case(group, name, run, (RATE,), missing=missing, versus=versus))
    return found
