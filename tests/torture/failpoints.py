"""`python -m tests.torture.failpoints --seed 1`: every failpoint x action x {first, n-th hit}; status 1: it went wrong.

A running system takes them a few at a time: arm, provoke what does not happen by itself, wait until all have acted and
until every worker and the program are getting on again. Whoever is stopped is killed, and a system that is gone is
started again where it was. At the end the oracle is asked; what handlers see, they see at once. Two systems share the
work, since much of it is waiting: one with the ring in Python, one with the C ring, in a build that has failpoints. At
the points inside of the ring and the sender each of them tries everything.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.bus.variants import FAILPOINTS, Edit, build
from tests.torture.breeder import breed
from tests.torture.combinations import Combination, Verdict, combinations, together, work
from tests.torture.failpoint_run import SYSTEMS, Run
from tests.torture.failpoint_system import server
from tests.torture.hook import points, points_in_c

RINGS = ("python", "c")


def torture(
    folder: Path,
    seed: int,
    only: Sequence[Combination] = (),
    rings: Sequence[str] = RINGS,
    mistakes: Sequence[Edit] = (),
    systems: Sequence[str] = tuple(SYSTEMS),
) -> Verdict:
    """All combinations, or these, with all rings in all systems; the verdict says what was wrong, and which came
    before. `mistakes` are those that the C ring has.
    """
    started = time.monotonic()
    wanted = only or combinations(random.Random(seed), points())
    variant = build(folder / "ring", FAILPOINTS, edits=mistakes) if "c" in rings else None
    plan = {key: share for key, share in work(wanted, points_in_c(), rings).items() if key[1] in systems}
    verdicts = [Verdict(seed) for _ in rings]
    threads = [
        threading.Thread(
            target=_torture_all,
            args=(folder / ring, f"{seed} {ring}", verdict, plan, variant if ring == "c" else None, ring),
        )
        for verdict, ring in zip(verdicts, rings, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = Verdict(seed)
    for verdict in verdicts:
        total.add(verdict)
    total.seconds = time.monotonic() - started
    return total


def _torture_all(
    folder: Path,
    seed: str,
    verdict: Verdict,
    plan: Mapping[tuple[str, str], Sequence[Combination]],
    variant: Path | None,
    ring: str,
) -> None:
    """One system after the other, with this ring."""
    for (its, system), wanted in plan.items():
        if its == ring:
            _torture_one(folder / system, seed, verdict, wanted, variant, system)


def _torture_one(
    folder: Path, seed: str, verdict: Verdict, wanted: Sequence[Combination], variant: Path | None, system: str
) -> None:
    run = Run(folder, random.Random(f"{seed} {system}"), verdict, variant, system)
    try:
        for group in together(wanted):
            run.take(group)
        run.finish()
    except Exception as error:
        verdict.wrong.append(f"{type(error).__name__}: {error}")
        verdict.wrong += run.describe()
    finally:
        run.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture.failpoints", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--only", action="append", default=[], metavar="POINT:ACTION:NTH")
    parser.add_argument("--ring", choices=RINGS, help="with this one only; both otherwise")
    parser.add_argument("--system", choices=SYSTEMS, help="in this one only; in all of them otherwise")
    parser.add_argument("--breed", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.breed:
        breed(arguments.breed / "log", server(arguments.breed, SYSTEMS[arguments.system]))
        return 0
    only = [Combination.read(one) for one in arguments.only]
    with tempfile.TemporaryDirectory(prefix="ringleader-failpoints-") as folder:
        rings = [arguments.ring] if arguments.ring else RINGS
        systems = [arguments.system] if arguments.system else list(SYSTEMS)
        verdict = torture(Path(folder), arguments.seed, only, rings, systems=systems)
    print(verdict)
    return 1 if verdict.wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
