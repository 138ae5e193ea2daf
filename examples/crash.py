"""A message that kills its worker every time: the worker is restarted, the message becomes a dead letter.

The other messages lose nothing by it: not those before and behind it, and not those of the other worker.
"""

import os
import signal
from pathlib import Path
from tempfile import TemporaryDirectory

from actors import Handler, Message, State, Topology, handle
from persist import read


class Job(Message):
    number: int


class GetDone(Message):
    pass


class Done(Message):
    jobs: tuple[int, ...]


class Finished(State):
    jobs: list[int] = []


class Careful(Handler):
    state: Finished

    @handle
    def on_job(self, job: Job) -> None:
        self.state.jobs.append(job.number)

    @handle
    def on_get_done(self, get: GetDone) -> None:
        self.reply(Done(tuple(self.state.jobs)))


class Fragile(Careful):
    @handle
    def on_job(self, job: Job) -> None:
        if job.number == 3:
            os.kill(os.getpid(), signal.SIGKILL)  # a crash in a C library, or the out-of-memory killer
        self.state.jobs.append(job.number)


def main(directory: Path) -> None:
    app = Topology("crash", directory=directory, max_attempts=3)
    app.worker("workshop", press=Fragile)
    app.worker("office", ledger=Careful)
    app.external("press")
    app.external("ledger")
    with app.start() as system:
        for number in range(1, 6):
            for handler in ("press", "ledger"):
                system.send(handler, Job(number))
        for handler in ("press", "ledger"):
            done = system.ask(handler, GetDone(), timeout=60)
            assert isinstance(done, Done)
            print(f"{handler} did the jobs {', '.join(map(str, done.jobs))}")
        for worker in system.status().workers:
            print(", ".join(filter(None, [f"worker {worker.name}: {worker.restarts} restarts", worker.last_death])))
    for letter in read(directory / "journals" / "workshop").dead:
        what = letter.type.rpartition(".")[2]
        print(f"dead letter: a {what} to {letter.handler}, after {letter.attempts} attempts: {letter.reason}")


if __name__ == "__main__":
    with TemporaryDirectory(prefix="ringleader-crash-") as temporary:
        main(Path(temporary) / "run")
