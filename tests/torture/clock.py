"""`python -m tests.torture.clock FOLDER SECONDS`: a system under load while the wall clock jumps by hours, both ways.

Started with libfaketime preloaded, which reads from a file how far the clock is off; monotonic time stays as it is.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import sys
import threading
import time
from pathlib import Path

from actors import AskTimeout
from bus import Field
from tests.torture.oracle import judge, judge_ledgers, outside_problems
from tests.torture.outside import Feeder, remembered
from tests.torture.topology import WORKERS, Finish, Look, Seen, topology

HOUR = 3600
JUMPS = (5 * HOUR, -7 * HOUR, 0, 300 * HOUR, -HOUR, 60, -60)
SETTLE = 60.0


def environment(folder: Path) -> dict[str, str]:
    """What a process is to be started with."""
    found = importlib.util.find_spec("libfaketime")
    assert found is not None
    assert found.submodule_search_locations is not None
    library = Path(found.submodule_search_locations[0]) / "vendor/libfaketime/src/libfaketime.so.1"
    (folder / "offset").write_text("+0")
    return os.environ | {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(folder / "offset"),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }


def main() -> None:
    folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
    start, seen_off = time.time() - time.monotonic(), 0.0
    with topology(folder).start() as system:
        feeder = Feeder(system, folder)
        end = time.monotonic() + seconds
        jumps = random.sample(JUMPS, len(JUMPS))  # each once, however late it gets; then any, until the time is over
        while jumps or time.monotonic() < end:
            jump = jumps.pop() if jumps else random.choice(JUMPS)
            new = folder / "offset.new"
            new.write_text(f"{jump:+d}")
            new.rename(folder / "offset")
            threading.Event().wait(0.1)
            seen_off = max(seen_off, abs(time.time() - time.monotonic() - start))
        feeder.stop()
        began = time.monotonic()
        try:
            system.ask("source", Finish(), timeout=1.0)  # which is not answered
        except AskTimeout:
            pass
        waited = time.monotonic() - began
        deadline, wrong = time.monotonic() + SETTLE, ["nothing was seen"]
        while wrong and time.monotonic() < deadline:
            seen = {name: system.ask(name, Look(), timeout=SETTLE, reply=Seen) for name in WORKERS}
            wrong = judge(seen) + outside_problems(seen["sink"], *remembered(folder))
            threading.Event().wait(0.05)
        wrong += judge_ledgers(folder / "ledgers")
        restarts = sum(system.block(f"w-{name}").get(Field.RESTARTS) for name in WORKERS)
        items = seen["source"].count
    print(json.dumps({"wrong": wrong, "items": items, "restarts": restarts, "off": seen_off, "waited": waited}))


if __name__ == "__main__":
    main()
