"""The page on running it as a service is true: its unit file passes systemd's own check and says what the text says."""

from __future__ import annotations

import configparser
import inspect
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from actors import Handler, Message, Topology, handle
from actors.exits import ExitStatus
from actors.restart import ChildSpec
from actors.ring_sizes import Room, fitted

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
PAGE = (ROOT / "actors" / "SERVICE.md").read_text()
UNIT = re.findall(r"```ini\n(.*?)```", PAGE, re.DOTALL)[0]


def verify(folder: Path, unit: str) -> str:
    """What systemd has to say about it. Its program and its folder exist here."""
    program = folder / "trades" / ".venv" / "bin" / "ringleader"
    program.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy("/bin/true", program)
    path = folder / "ringleader@trades.service"
    path.write_text(unit.replace("/srv/", f"{folder}/"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_the_unit_file_passes_systemds_own_check(tmp_path: Path) -> None:
    assert verify(tmp_path, UNIT) == ""
    assert "Unknown key" in verify(tmp_path, UNIT.replace("OOMPolicy", "OOMPolcy")), "it would have told"


def settings() -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(UNIT)
    return dict(parser["Service"])


def test_the_unit_file_says_what_the_text_explains() -> None:
    service = settings()
    for setting in re.findall(r"^- `(\w+)=(\S*)`", PAGE, re.MULTILINE):
        assert service[setting[0]] == setting[1] or not setting[1]
    for said in ("Type", "WatchdogSec", "KillMode", "TimeoutStopSec", "Restart", "OOMPolicy", "LimitNOFILE", "User"):
        assert re.search(rf"^- `{said}\b", PAGE, re.MULTILINE), f"{said} is not explained"
        assert said in service


def test_the_numbers_of_the_unit_file_fit_the_program() -> None:
    service = settings()
    no_use = {int(ExitStatus.USAGE), int(ExitStatus.HELD), int(ExitStatus.DAMAGED)}
    assert {int(status) for status in service["RestartPreventExitStatus"].split()} == no_use
    drain = inspect.signature(Topology).parameters["drain_timeout"].default
    assert float(service["TimeoutStopSec"]) > drain + ChildSpec("w").shutdown
    assert f"(status {ExitStatus.OK:d})" in PAGE
    assert f"(status {ExitStatus.NOT_DRAINED:d})" in PAGE


class Item(Message):
    n: int


class Worker(Handler):
    @handle
    def on_item(self, item: Item) -> None:
        self.send(item)


def rings(routes: list[tuple[int, int]]) -> tuple[int, dict[int, int]]:
    """How many rings ten workers with these routes have, and how many of each size in a container of 64 MiB."""
    topology = Topology("sizes")
    for number in range(10):
        topology.worker(f"w{number}", **{f"h{number}": Worker})
    for source in range(10):
        targets = [f"h{target}" for one, target in routes if one == source]
        if targets:
            topology.route(f"h{source}", Item, to=targets)
    topology.external("h0", Item)
    edges = topology.compile().edges
    return len(edges), Counter(fitted(edges, 0, Room(64 * MIB, None), {}).values())


def test_what_the_page_says_of_shared_memory() -> None:
    page = " ".join(PAGE.split())
    chain, sizes = rings([(n, n + 1) for n in range(9)])
    assert sizes == {MIB: chain}
    assert f"so the chain takes {chain} MiB" in page
    everyone, sizes = rings([(a, b) for a in range(10) for b in range(10) if a != b])
    assert f"{chain} for a chain of ten workers, {everyone} for ten workers that all talk to each other" in page
    (small, most), *others = Counter(sizes).most_common()
    assert most > sum(count for _, count in others)
    together = sum(size * count for size, count in sizes.items()) / MIB
    assert f"are smaller there ({small >> 10} KiB), and they take {together:.0f} MiB together" in page
