"""How deaths are told."""

from __future__ import annotations

import pytest

from actors.reasons import LIMIT, Facts, account, crash, tell

TRACEBACK = (
    'Traceback (most recent call last):\n  File "trades.py", line 3, in on_trade\n    1 / 0\nZeroDivisionError: x\n'
)
DUMP = """Fatal Python error: Segmentation fault

Thread 0x00007f0000000001 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 331 in wait

Current thread 0x00007f0000000002 (most recent call first):
  File "/home/me/trades.py", line 41 in peek
  File "/home/me/trades.py", line 77 in on_trade
  File "/opt/actors/dispatch.py", line 220 in _handle

Extension modules: bus._ring (total: 1)
"""


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        (Facts(0), "exit code 0"),
        (Facts(0, requested=True), "stopped by request; exit code 0"),
        (Facts(None), "never started"),
        (Facts(7), "exit code 7"),
        (Facts(1, TRACEBACK), "exit code 1 (CRASHED): an exception that nobody handled: ZeroDivisionError: x"),
        (Facts(-15), "killed by SIGTERM"),
        (Facts(-9), "killed by SIGKILL"),
        (Facts(-9, killed="hung: loop silent"), "hung: loop silent; killed by SIGKILL"),
        (Facts(-9, memory="says the kernel"), "killed for memory: says the kernel; killed by SIGKILL"),
        (Facts(-9, killed="hung", memory="says the kernel"), "hung; killed by SIGKILL"),
        (Facts(-15, memory="says the kernel"), "killed by SIGTERM"),
        (Facts(-11), "killed by SIGSEGV"),
        (Facts(-11, dump=DUMP), "killed by SIGSEGV in peek (trades.py:41)"),
        (Facts(-9, dump=DUMP), "killed by SIGKILL"),
        (
            Facts(1, "MemoryError\n", memory_bytes=1 << 28),
            "ran out of its own memory limit of 268,435,456 bytes; exit code 1 (CRASHED): an exception that nobody"
            " handled: MemoryError",
        ),
        (
            Facts(64, "OSError: [Errno 12] Cannot allocate memory"),
            "ran out of memory; exit code 64 (START_FAILED): it could not start: OSError: [Errno 12] Cannot allocate"
            " memory",
        ),
    ],
)
def test_the_best_known_cause_comes_first(facts: Facts, told: str) -> None:
    assert tell(facts) == told


def test_the_end_of_a_traceback_is_kept() -> None:
    facts = Facts(1, "é" * 2000 + TRACEBACK)
    kept = account("reason", facts)
    assert kept.startswith("reason\n")
    assert kept.endswith("ZeroDivisionError: x")
    assert len(kept.encode()) <= LIMIT


def test_the_innermost_frames_of_a_crash_are_kept() -> None:
    kept = account("reason", Facts(-11, TRACEBACK, DUMP + "x" * 5000))
    assert kept.splitlines()[1] == "Fatal Python error: Segmentation fault"
    assert "line 41 in peek" in kept
    assert len(kept.encode()) <= LIMIT


def test_stacks_that_were_asked_for_are_not_the_crash() -> None:
    asked = DUMP.replace("Fatal Python error: Segmentation fault\n\n", "")
    assert crash(asked) == ""
    assert crash(asked + DUMP) == DUMP.strip()
    assert account("killed by SIGKILL", Facts(-9, dump=asked)) == "killed by SIGKILL"


def test_a_reason_without_words_is_alone() -> None:
    assert account("exit code 7", Facts(7)) == "exit code 7"
    assert len(account("y" * 2000, Facts(1, TRACEBACK)).encode()) == LIMIT
    assert account("\udcff", Facts(1)) == "?"
