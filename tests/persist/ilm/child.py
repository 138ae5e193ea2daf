"""One peer in a process of its own, to be killed at any moment: sends 1, 2, 3, ... and expects the same from the other.

Arguments: its name, the other's name, a directory for sockets and journals, how many. It writes "done" to its standard
output when all that it sent is acknowledged and all was delivered, and ends with status 3 if something was not next.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from bus import StreamTransport, Timing, UnixAddress
from persist.ilm.backend_journal import JournalBackend
from persist.ilm.delivery import Effects
from persist.ilm.facade import ILM
from persist.ilm.message import ILMMessage


async def main(name: str, peer: str, place: Path, count: int) -> None:
    ilm: ILM[ILMMessage]

    def deliver(message: ILMMessage) -> Effects:
        last = int(ilm.get("last") or b"0")
        if int(message.contents) != last + 1 or message.message_id != last + 1:
            print(f"{name} got {message} after {last}", file=sys.stderr, flush=True)
            os._exit(3)
        return Effects(put={"last": message.contents})

    transport = await StreamTransport.open(
        name,
        listen=[UnixAddress(str(place / name))] if name < peer else [],
        connect={} if name < peer else {peer: UnixAddress(str(place / peer))},
        timing=Timing(handshake=60.0),  # to be given up for being slow would be a warning
    )
    ilm = await ILM.open(JournalBackend(place / f"{name}.journal"), deliver, transport, retry=(0.02, 0.5), batch=20)
    sent = ilm.statistics()[peer].sent if peer in ilm.statistics() else 0
    for number in range(sent + 1, count + 1):
        await ilm.send_to(peer, b"%d" % number)
        if number % 10 == 0:
            await asyncio.sleep(0.002)
    while ilm.pending() or ilm.get("last") != b"%d" % count:
        if ilm.problems():
            print(f"{name}: {ilm.problems()}", file=sys.stderr, flush=True)
            os._exit(4)
        await asyncio.sleep(0.005)
    print("done", flush=True)
    await ilm.wait_closed()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])))
