"""`python -m tests.torture.signals FOLDER`: breeds systems that run as programs do, and take signals."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from actors.launch import run
from tests.torture.breeder import breed
from tests.torture.topology import topology


def main() -> None:
    folder = Path(sys.argv[1])
    app = topology(folder)

    def serve() -> None:
        try:
            run(app)
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        ended = folder / f"ended-{os.getpid()}"
        new = ended.with_suffix(".new")
        new.write_text(str(status))
        new.rename(ended)  # whole or not at all: signals end this process again
        os._exit(status)

    breed(folder / "log", serve)


if __name__ == "__main__":
    main()
