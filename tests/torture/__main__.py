"""`python -m tests.torture --seed 1 --kills 200 --system-kills 20`: one torture, status 1 if anything was wrong."""

from __future__ import annotations

import argparse
import logging
import random
import tempfile
from pathlib import Path

from tests.torture.breeder import breed
from tests.torture.run import server, torture
from tests.torture.sabotage import MUTATIONS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--kills", type=int, default=200, help="workers killed by SIGKILL")
    parser.add_argument("--system-kills", type=int, default=20, help="whole systems killed by SIGKILL")
    parser.add_argument("--sabotage", choices=sorted(MUTATIONS), default="", help="break the runtime in this way")
    parser.add_argument("--breed", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.getLogger("ringleader").setLevel(logging.ERROR)  # every kill is a warning
    if arguments.breed:
        breed(arguments.breed / "log", server(arguments.breed))
        return 0
    with tempfile.TemporaryDirectory(prefix="ringleader-torture-") as folder:
        verdict = torture(
            Path(folder),
            seed=arguments.seed,
            kills=arguments.kills,
            system_kills=arguments.system_kills,
            mutation=arguments.sabotage,
        )
    print(verdict)
    return 1 if verdict.wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
