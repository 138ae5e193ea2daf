"""Two peers exchange numbers: each message is kept until the other has it, delivered once, and in order."""

from __future__ import annotations

import asyncio

from persist.backend_memory import MemoryBackend
from persist.ilm import ILM
from persist.memory_network import MemoryNetwork
from persist.message import ILMMessage


async def main() -> None:
    network = MemoryNetwork()
    got: dict[str, list[int]] = {"alice": [], "bob": []}

    def deliver_to(name: str):
        return lambda message: got[name].append(int(message.contents))

    async with (
        ILM.open(MemoryBackend(), deliver_to("alice"), network.join("alice")) as alice,
        ILM.open(MemoryBackend(), deliver_to("bob"), network.join("bob")) as bob,
    ):
        for number in (1, 2, 3):
            await alice.send_to("bob", b"%d" % number)
        for number in (4, 5, 6):
            await bob.send_to("alice", b"%d" % number)
    print(got)


if __name__ == "__main__":
    asyncio.run(main())
