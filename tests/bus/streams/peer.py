"""The other process of the process tests: `python -m tests.bus.streams.peer PATH`. Listens as alice, says so, and sends
everything back, until it is killed."""

from __future__ import annotations

import asyncio
import sys

from bus import StreamTransport, Timing, UnixAddress


async def main() -> None:
    async with await StreamTransport.open(
        "alice", listen=[UnixAddress(sys.argv[1])], timing=Timing(heartbeat=0.1)
    ) as alice:
        print("listening", flush=True)
        while True:
            peer, contents = await alice.next_message()
            if contents:
                await alice.send_message(peer, contents)


if __name__ == "__main__":
    asyncio.run(main())
