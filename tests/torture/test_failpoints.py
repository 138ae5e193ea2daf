"""Every failpoint of the sources x {exit, SIGKILL, SIGSEGV, SIGSTOP, error} x {first, a later hit}; those inside of
what is in C, the ring and the sender, with both implementations."""

from __future__ import annotations

import builtins
import random
import subprocess
import sys
from pathlib import Path

import pytest

from actors.identity import stale_prefix
from tests.bus import implementations
from tests.bus.implementations import needs_c
from tests.bus.variants import TAIL_FIRST
from tests.torture import failpoint_run
from tests.torture.combinations import ACTIONS, WAYS, Combination, combinations, shares, together, work
from tests.torture.failpoints import RINGS, torture
from tests.torture.hook import SUPERVISOR, points, points_in_c
from tests.torture.run import identity_of, left_over


@pytest.mark.timeout(1800)
def test_no_failpoint_loses_doubles_or_reorders_anything(tmp_path: Path) -> None:
    rings = [ring for ring in RINGS if ring in implementations.RINGS]
    verdict = torture(tmp_path, seed := random.randrange(10**6), rings=rings)
    print(verdict)
    assert not verdict.wrong, str(verdict)
    acted = {point for _, point in verdict.acted}
    assert acted == set(points()), f"never reached: {set(points()) - acted}"
    assert verdict.acted >= {(ring, point) for ring in rings for point in points_in_c()}
    wanted = work(combinations(random.Random(seed), points()), points_in_c(), rings)
    assert verdict.count == sum(map(len, wanted.values()))


def test_a_run_that_cannot_go_on_says_so_once_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failpoint_run, "PATIENCE", 3.0)
    verdict = torture(tmp_path, 1, [Combination("rows-sent", "exit", 10**9)], ["python"], systems=["memory"])
    assert verdict.wrong[0].startswith("Trouble: not reached within 3 s: {'rows-sent:exit:1000000000': ")
    prefix = stale_prefix(identity_of(tmp_path / "python" / "memory"))
    assert not left_over([prefix])


@needs_c
@pytest.mark.timeout(900)
def test_a_tail_that_moves_before_its_record_is_whole_is_caught(tmp_path: Path) -> None:
    """The C ring with this mistake must not pass. (What is in the ring from before may look like a record.)"""
    only = [Combination(point, "SIGKILL", 1) for point in ("ring-claimed", "ring-copying", "ring-copied")]
    verdicts = (torture(tmp_path / str(seed), seed, only, rings=["c"], mistakes=[TAIL_FIRST]) for seed in range(5))
    assert any(verdict.wrong for verdict in verdicts)


def test_each_ring_has_all_its_own_failpoints_and_both_share_the_others() -> None:
    wanted = combinations(random.Random(1), points())
    work = shares(wanted, points_in_c(), RINGS)
    inside = {str(one) for one in wanted if one.point in points_in_c()}
    assert inside == {str(one) for one in work["python"]} & {str(one) for one in work["c"]}
    assert {str(one) for one in wanted} == {str(one) for share in work.values() for one in share}
    assert shares(wanted, points_in_c(), ["c"]) == {"c": wanted}


def test_all_combinations_are_there_and_each_once() -> None:
    wanted = combinations(random.Random(1), points())
    assert len(wanted) == len(points()) * len(ACTIONS) * 2
    assert {(one.point, one.action, one.nth == 1) for one in wanted} == {
        (point, action, first) for point in points() for action in ACTIONS for first in (True, False)
    }
    groups = list(together(wanted))
    assert sorted(map(str, wanted)) == sorted(str(one) for group in groups for one in group)
    for group in groups:
        assert len({one.point for one in group}) == len(group)
        assert len({one.way.role for one in group}) == 1


def test_every_way_leads_to_a_failpoint_of_the_sources() -> None:
    assert set(WAYS) <= set(points())
    assert any(way.role == SUPERVISOR for way in WAYS.values())


def test_a_combination_is_read_as_it_is_printed() -> None:
    one = Combination("append-written", "SIGKILL", 7)
    assert Combination.read(str(one)) == one


def test_without_the_hook_a_failpoint_is_a_comment() -> None:
    assert not hasattr(builtins, "__failpoint__")
    code = "import builtins, sys, actors.worker; sys.exit(hasattr(builtins, '__failpoint__'))"
    hooked = str(Path(__file__).parent / "hooked")
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": f"{hooked}:{root}"}, timeout=60, check=False)
    assert done.returncode == 0


def test_the_hook_keeps_line_numbers_and_arms_one_point_once(tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from tests.torture.hook import FailpointError, SUPERVISOR, Switchboard, install
folder = Path({str(tmp_path)!r})
board = Switchboard(folder, create=True)
install(str(folder))
from tests.torture.hook import switchboard
switchboard().supervise()
from persist.link import Outbound
board.arm("backlog-spilled", "error", 2, SUPERVISOR, 1)

def spill():
    link = Outbound(1)
    for first in (1, 2):
        link.assign(1)
        link.committed(first, 1, 10, None, first)
    return link

spill()
try:
    spill()
except FailpointError as error:
    frame = error.__traceback__.tb_next.tb_next
    assert Path(frame.tb_frame.f_code.co_filename).read_text().splitlines()[frame.tb_lineno - 1].strip() == (
        "# failpoint: backlog-spilled"
    )
else:
    raise SystemExit("it did not act")
assert board.acted_in("backlog-spilled")
spill()
assert (folder / "cache" / "persist.link").exists()
"""
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
