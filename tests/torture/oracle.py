"""The oracle: what must be true at the end, from the number of items alone and from ledgers outside of the runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.torture.topology import HOPS, TOKEN_EVERY, Seen

BULK_EVERY = 5


def judge(seen: Mapping[str, Seen], sessions: int = 1) -> list[str]:
    """What is wrong in what the handlers have; empty if every item took effect exactly once and in order on every edge,
    and what `on_start` sends once a session."""
    items = seen["source"].count
    tokens = items // TOKEN_EVERY
    last_token = tokens * TOKEN_EVERY
    even, odd = [h for h in range(HOPS + 1) if (HOPS - h) % 2 == 0], [h for h in range(HOPS + 1) if (HOPS - h) % 2]
    expected: dict[str, tuple[int, dict[str, int]]] = {
        "left": (items, {"source": items}),
        "right": (items, {"source": items}),
        "join": (2 * items, {"left": items, "right": items}),
        "ping": (tokens * len(even), {f"hops {h}": last_token for h in even}),
        "pong": (tokens * len(odd), {f"hops {h}": last_token for h in odd}),
        "sink": (tokens, {"done": last_token}),
    }
    if "tally" in seen:
        bulks = items // BULK_EVERY
        last = {"rights": items, "starts": sessions, "bulk": bulks * BULK_EVERY}
        expected["tally"] = (items + sessions + bulks, last)
    wrong = []
    for name, (count, last) in expected.items():
        one = seen[name]
        wrong += [f"{name}: {text}" for text in one.wrong]
        if one.count != count:
            wrong.append(f"{name}: {one.count} messages took effect, {count} should have")
        if tokens and one.last != last:
            wrong.append(f"{name}: the last ones are {one.last}, not {last}")
    for side in ("left", "right"):
        if seen[side].digest.get("source") != seen["join"].digest.get(side):
            wrong.append(f"join: what came from {side} is not what {side} has committed")
    return wrong


def judge_ledgers(ledgers: Path) -> list[str]:
    """What is wrong in all that was ever tried. Takes seconds for a million items, so it comes last."""
    paths = [path for path in sorted(ledgers.iterdir()) if not path.name.startswith("died")]
    return [text for path in paths for text in ledger_problems(path)]


def outside_problems(sink: Seen, asked: int, accepted: set[int]) -> list[str]:
    """What `send` had returned for has come, once and in order. What it was killed in may have come, or not."""
    lost = accepted & {*sink.skipped, *range(sink.outside + 1, asked + 1)}
    wrong = [f"outside: lost {sorted(lost)[:20]}, which were accepted"] if lost else []
    if sink.outside > asked:
        wrong.append(f"outside: {sink.outside} came, and only {asked} were sent")
    return wrong


def ledger_problems(path: Path) -> list[str]:
    """Attempts may repeat what was not committed, but each number is tried, and first tried in its order."""
    wrong = []
    highest: dict[str, int] = {}
    for line in path.read_text().splitlines():
        stream, _, number = line.rpartition(" ")
        if not number.isdigit():
            continue  # empty, or cut short by a kill, as is the last line while it is being written
        n, before = int(number), highest.get(stream, 0)
        step = TOKEN_EVERY if path.name in {"Ping", "Pong", "Sink"} else BULK_EVERY if stream == "bulk" else 1
        if n > before + step:
            wrong.append(f"ledger of {path.name}: {stream} went from {before} to {n}")
        highest[stream] = max(before, n)
    return wrong
