"""Two peers exchange numbers. Each message is kept until the other has it, delivered once, and in order."""

from __future__ import annotations

import asyncio

from persist import ILM, ILMMessage, MemoryBackend, MemoryNetwork


async def main() -> None:
    network = MemoryNetwork()
    got: dict[object, list[int]] = {"alice": [], "bob": []}
    all_there = asyncio.Event()

    def deliver(message: ILMMessage) -> None:
        got[message.destination_id].append(int(message.contents))
        if all(len(numbers) == 3 for numbers in got.values()):
            all_there.set()

    async with (
        ILM.open(MemoryBackend(), deliver, network.join("alice")) as alice,
        ILM.open(MemoryBackend(), deliver, network.join("bob")) as bob,
    ):
        for number in (1, 2, 3):
            await alice.send_to("bob", b"%d" % number)
        for number in (4, 5, 6):
            await bob.send_to("alice", b"%d" % number)
        await all_there.wait()

    for name, numbers in got.items():
        print(f"{name} got {numbers}")


if __name__ == "__main__":
    asyncio.run(main())
