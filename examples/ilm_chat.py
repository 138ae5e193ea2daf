"""Two processes talk over a Unix socket; one of them is killed with SIGKILL in the middle, twice, and started again.

alice says numbered lines, bob answers each with how many he has counted. His count and his answer are committed
together with the line: his answers show whether one was lost or done twice, and alice sees whether they come in order.

    python examples/ilm_chat.py
"""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from pathlib import Path

from bus import StreamTransport, UnixAddress
from persist import ILM, Effects, ILMMessage, JournalBackend

LINES = 20_000
KILLS = (5_000, 10_000)  # after so many answers
PATIENCE = 60.0  # seconds


async def bob(home: Path) -> None:
    """Listens, and answers until he is asked to stop. What he counted survives him."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    def answer(message: ILMMessage) -> Effects:
        count = int(ilm.get("count") or 0) + 1
        return Effects(put={"count": b"%d" % count}, send=[("alice", b"%d: %s" % (count, message.contents))])

    transport = await StreamTransport.open("bob", listen=[UnixAddress(str(home / "bob.sock"))])
    async with ILM.open(JournalBackend(home / "bob"), answer, transport) as ilm:
        await stop.wait()


async def alice(home: Path) -> list[str]:
    """Says her lines, and returns the answers. Kills bob meanwhile, and brings him back."""
    answers: list[str] = []
    kill_now, complete = asyncio.Event(), asyncio.Event()
    kills = list(KILLS)

    def hear(message: ILMMessage) -> None:
        answers.append(message.contents.decode())
        if kills and len(answers) >= kills[0]:
            del kills[0]
            kill_now.set()
        if len(answers) == LINES:
            complete.set()

    transport = await StreamTransport.open("alice", connect={"bob": UnixAddress(str(home / "bob.sock"))})
    async with ILM.open(JournalBackend(home / "alice"), hear, transport) as ilm:
        process = await start_bob(home)
        saying = asyncio.create_task(say(ilm))
        for _ in KILLS:
            await kill_now.wait()
            kill_now.clear()
            process.kill()
            print(f"bob was killed after {len(answers):,} answers", end="")
            await process.wait()
            process = await start_bob(home)
            print(", and started again")
        await saying
        await complete.wait()
        while "bob" not in ilm.connected_peers():  # until then he does not listen to SIGTERM
            await asyncio.sleep(0.01)
        process.terminate()
    if await process.wait():
        raise SystemExit(f"bob ended with {process.returncode}")
    return answers


async def say(ilm: ILM[ILMMessage]) -> None:
    """Whether bob is there or not: each line is kept until he has it."""
    for number in range(1, LINES + 1):
        await ilm.send_to("bob", b"line %d" % number)


async def start_bob(home: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(sys.executable, __file__, "bob", str(home))


async def main() -> None:
    print(f"alice says {LINES:,} lines to bob, who answers each with his count")
    with tempfile.TemporaryDirectory() as home:
        async with asyncio.timeout(PATIENCE):
            answers = await alice(Path(home))
    for number, answer in enumerate(answers, 1):
        if answer != f"{number}: line {number}":
            raise SystemExit(f"answer {number} is {answer!r}")
    print(f"{len(answers):,} answers, each line counted once and in order: nothing was lost, doubled or reordered")


if __name__ == "__main__":
    asyncio.run(bob(Path(sys.argv[2])) if sys.argv[1:2] == ["bob"] else main())
