"""A process that performs the series on a backend until it is killed: `backend_child KIND PLACE DONE`.

It prints the number of each act that is committed (and synced), and begins behind number DONE.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from tests.persist.ilm.backend_building import Model, opener, perform


def main(kind: str, place: str, done: int) -> None:
    model = Model()
    for number in range(1, done + 1):
        perform(model, number)
    backend = opener(kind, Path(place))()
    backend.recover()
    number = done
    with asyncio.Runner() as runner:
        while True:
            number += 1
            perform(model, number, backend)
            runner.run(backend.sync())
            os.write(1, b"%d\n" % number)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
