"""Replays one run: `python -m tests.model cycle process --seed 52`, or `... pair power --fault process --at 17`."""

from __future__ import annotations

import argparse

from tests.model.policies import Chance, FaultAt, Policy
from tests.model.simulation import simulate
from tests.model.topologies import SCENES

parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
parser.add_argument("scene", choices=SCENES)
parser.add_argument("level", choices=["process", "power"])
parser.add_argument("--seed", type=int)
parser.add_argument("--faults", type=int, default=6)
parser.add_argument("--fault", choices=["process", "system", "zombie"])
parser.add_argument("--at", type=int, default=1)
parser.add_argument("--then", type=int, default=0)
parser.add_argument("--late", action="store_true")
given = parser.parse_args()
policy = Policy()
if given.fault:
    policy = FaultAt(given.at, given.fault, given.late, given.then)
elif given.seed is not None:
    policy = Chance(given.seed, given.faults)
seed = given.at if given.seed is None else given.seed
run = simulate(SCENES[given.scene](given.level), policy, seed=seed, again=given.seed is not None)
print(f"holds: {policy.steps} steps, {run.oracle.transactions} transactions, {run.deaths} deaths")
