"""What the journal backend promises beside the contract of all backends."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from persist import check, read
from persist.errors import JournalPoisoned
from persist.ilm.backend import Change, Run
from persist.ilm.backend_journal import JournalBackend
from persist.ilm.errors import BackendFailed, NotAStore, StorageFull
from persist.ilm.message import PeerId
from persist.retention import Retain
from tests.persist.building import filled
from tests.persist.ilm.backend_building import Disk

DEADLINE = 100.0


def run_async(main: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(DEADLINE):
            await main

    asyncio.run(limited())


def one(number: int, peer: PeerId = "bob") -> Change:
    return Change([(peer, Run(number, 1, b"%d" % number))])


def at_power(directory: Path, disk: Disk) -> JournalBackend:
    """Recovered, and `bob` is known: no new segment is begun for him."""
    backend = JournalBackend(directory, "power", files=disk)
    backend.recover()
    backend.commit(one(1))
    return backend


async def begun(disk: Disk) -> None:
    while not disk.syncing.is_set():
        await asyncio.sleep(0.001)


# ---------------------------------------------------------------------------------------------------- sync
def test_while_one_syncs_others_commit_and_share_the_next_sync(tmp_path: Path) -> None:
    disk = Disk()
    backend = at_power(tmp_path, disk)

    async def main() -> None:
        disk.may_sync.clear()
        first = asyncio.create_task(backend.sync())
        await begun(disk)
        others = []
        for number in range(2, 50):
            backend.commit(one(number))
            others.append(asyncio.create_task(backend.sync()))
            await asyncio.sleep(0)
        assert not first.done()
        assert not any(other.done() for other in others)
        assert len(list(backend.runs("bob", 0, 0))) == 49
        disk.may_sync.set()
        await asyncio.gather(first, *others)
        assert disk.syncs == 2
        await backend.sync()
        assert disk.syncs == 2  # there was nothing to do

    run_async(main())
    backend.close()


def test_a_sync_covers_only_what_was_there_when_it_began(tmp_path: Path) -> None:
    disk = Disk()
    backend = at_power(tmp_path, disk)

    async def main() -> None:
        disk.may_sync.clear()
        first = asyncio.create_task(backend.sync())
        await begun(disk)
        backend.commit(one(2))
        second = asyncio.create_task(backend.sync())
        disk.syncing.clear()
        disk.may_sync.set()
        await first
        await begun(disk)
        await second
        assert disk.syncs == 2

    run_async(main())
    backend.close()


def test_who_gives_up_waiting_takes_no_sync_from_others(tmp_path: Path) -> None:
    disk = Disk()
    backend = at_power(tmp_path, disk)

    async def main() -> None:
        disk.may_sync.clear()
        waiting = [asyncio.create_task(backend.sync()) for _ in range(3)]
        await begun(disk)
        waiting[0].cancel()
        await asyncio.sleep(0)
        disk.may_sync.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError, type(None), type(None)]

    run_async(main())
    backend.close()


def test_a_failed_sync_is_never_tried_again_and_nothing_goes_after_it(tmp_path: Path) -> None:
    disk = Disk()
    backend = at_power(tmp_path, disk)
    disk.sync_error = OSError(errno.EIO, "the disk is dying")

    async def main() -> None:
        disk.may_sync.clear()
        waiting = [asyncio.create_task(backend.sync()) for _ in range(3)]
        await begun(disk)
        backend.commit(one(2))
        waiting.append(asyncio.create_task(backend.sync()))
        await asyncio.sleep(0)
        disk.may_sync.set()
        for result in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(result, JournalPoisoned)
        disk.sync_error = None
        with pytest.raises(JournalPoisoned, match="dying"):
            await backend.sync()

    run_async(main())
    with pytest.raises(JournalPoisoned, match="dying"):
        backend.commit(one(3))
    assert disk.syncs == 1
    backend.close()


def test_closing_waits_for_the_sync_and_leaves_no_thread(tmp_path: Path) -> None:
    disk = Disk()
    backend = at_power(tmp_path, disk)
    threads = threading.active_count()

    async def main() -> None:
        disk.may_sync.clear()
        covered = asyncio.create_task(backend.sync())
        await begun(disk)
        backend.commit(one(2))
        late = asyncio.create_task(backend.sync())
        await asyncio.sleep(0)
        releasing = threading.Timer(0.05, disk.may_sync.set)
        releasing.start()
        backend.close()
        releasing.join()
        await covered
        with pytest.raises(BackendFailed, match="not open"):
            await late

    run_async(main())
    assert threading.active_count() == threads
    assert disk.syncs == 1


def test_a_new_segment_waits_for_the_sync_of_the_old_one(tmp_path: Path) -> None:
    disk = Disk()
    backend = at_power(tmp_path, disk)

    async def main() -> None:
        disk.may_sync.clear()
        waiting = asyncio.create_task(backend.sync())
        await begun(disk)
        releasing = threading.Timer(0.05, disk.may_sync.set)
        releasing.start()
        backend.commit(one(1, "new"))
        assert disk.may_sync.is_set()
        releasing.join()
        await waiting
        await backend.sync()

    run_async(main())
    assert disk.syncs == 2
    backend.close()


def test_what_a_new_segment_has_synced_is_not_synced_again(tmp_path: Path) -> None:
    disk = Disk()
    backend = at_power(tmp_path, disk)
    backend.forget("bob")
    asyncio.run(backend.sync())
    assert disk.syncs == 0
    backend.close()


def test_at_process_nothing_is_synced(tmp_path: Path) -> None:
    disk = Disk()
    backend = JournalBackend(tmp_path, files=disk)
    backend.recover()
    backend.commit(one(1))
    asyncio.run(backend.sync())
    assert disk.syncs == 0
    backend.close()


# ---------------------------------------------------------------------------------------------------- the directory
def test_the_journal_is_one_that_all_tools_understand(tmp_path: Path) -> None:
    backend = JournalBackend(tmp_path)
    backend.recover()
    backend.commit(Change([("bob", Run(1, 3, b"abc"))], [(5, 9)], [("user/key", b"value")]))
    backend.forget("bob")
    backend.commit(one(1))
    backend.close()
    assert check(tmp_path).ok
    recovered = read(tmp_path)
    assert recovered.assigned == {"s:bob": 3, "2/s:bob": 1}
    assert recovered.watermarks == {"i:5": 9, "s:bob": 0, "2/s:bob": 0}
    assert recovered.tables == {"ilm": {b"user/key": b"value"}}


def test_a_directory_without_pending_messages_has_one_segment(tmp_path: Path) -> None:
    backend = JournalBackend(tmp_path, segment_bytes=1 << 12)
    backend.recover()
    for number in range(1, 500):
        backend.commit(one(number))
    assert len(list(tmp_path.glob("*.journal"))) > 3
    backend.acknowledged("bob", 499)
    assert len(list(tmp_path.glob("*.journal"))) == 1
    backend.close()


def test_what_was_for_a_forgotten_peer_is_not_pending(tmp_path: Path) -> None:
    backend = JournalBackend(tmp_path, segment_bytes=1 << 12)
    backend.recover()
    backend.commit(Change([("bob", Run(1, 9, b"")), ("eve", Run(1, 1, b""))]))
    backend.forget("bob")
    for number in range(2, 500):
        backend.commit(one(number, "eve"))
    assert len(list(tmp_path.glob("*.journal"))) > 3
    backend.acknowledged("eve", 499)
    assert len(list(tmp_path.glob("*.journal"))) == 1
    backend.close()


def test_a_new_segment_knows_what_is_acknowledged(tmp_path: Path) -> None:
    backend = JournalBackend(tmp_path)
    backend.recover()
    for number in range(1, 6):
        backend.commit(one(number))
    backend.acknowledged("bob", 3)
    backend.acknowledged("bob", 2)
    backend.commit(one(1, "new"))
    backend.close()
    assert backend.recover()["bob"].acked == 3
    backend.close()


def test_new_peers_leave_no_segments_behind(tmp_path: Path) -> None:
    backend = JournalBackend(tmp_path)
    backend.recover()
    for peer in range(50):
        backend.commit(Change(consumed=[(peer, 1)]))
    backend.commit(Change([(peer, Run(1, 1, b"")) for peer in range(50, 100)]))
    assert len(list(tmp_path.glob("*.journal"))) == 1
    backend.close()
    assert len(backend.recover()) == 100
    backend.close()


def test_history_can_be_retained(tmp_path: Path) -> None:
    backend = JournalBackend(tmp_path, segment_bytes=1 << 12, retain=Retain(bytes=1 << 20))
    backend.recover()
    for number in range(1, 500):
        backend.commit(one(number))
        backend.acknowledged("bob", number)
    backend.forget("bob")
    assert len(list(tmp_path.glob("*.journal"))) > 3
    for _ in range(2):
        backend.close()
        assert backend.recover() == {}
    backend.commit(one(1))
    backend.close()
    assert backend.recover()["bob"].assigned == 1
    backend.close()


def test_names_of_forgotten_peers_go_with_their_messages(tmp_path: Path) -> None:
    backend = JournalBackend(tmp_path)
    backend.recover()
    backend.commit(one(1, "eve"))
    for _ in range(3):
        backend.commit(one(1))
        backend.forget("bob")
    for _ in range(2):
        backend.close()
        assert backend.recover().keys() == {"eve"}
    assert "s:bob" in read(tmp_path).watermarks  # messages to eve keep the segment with those to bob
    backend.acknowledged("eve", 1)
    for _ in range(2):
        backend.close()
        backend.recover()
    assert read(tmp_path).watermarks.keys() == {"s:eve", "4/s:bob"}
    backend.commit(one(1))
    backend.close()
    assert backend.recover()["bob"].assigned == 1
    backend.close()


def test_the_journal_of_a_worker_is_refused_untouched(tmp_path: Path) -> None:
    filled(tmp_path, 3)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.journal")}
    backend = JournalBackend(tmp_path)
    with pytest.raises(NotAStore, match="fingerprint"):
        backend.recover()
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.journal")} == before
    with pytest.raises(BackendFailed):
        backend.get("user/key")


def test_a_torn_tail_is_cut_off(tmp_path: Path) -> None:
    backend = JournalBackend(tmp_path)
    backend.recover()
    for number in range(1, 4):
        position = backend.commit(one(number))
    backend.close()
    last = max(tmp_path.glob("*.journal"))
    data = last.read_bytes()
    last.write_bytes(data[:-5])
    assert backend.recover()["bob"].assigned == 2
    assert backend.commit(one(3)) >= position
    assert [found.body for found in backend.runs("bob", 0, 0)] == [b"1", b"2", b"3"]
    backend.close()


def test_a_peer_for_whom_there_is_no_room_stays_unknown(tmp_path: Path) -> None:
    disk = Disk(capacity=100_000)
    backend = JournalBackend(tmp_path, reserve=1 << 14, files=disk)
    backend.recover()
    (tmp_path / "spare").unlink()
    disk.capacity = 0
    for _ in range(2):
        with pytest.raises(StorageFull, match="new peer"):
            backend.commit(one(1))
    assert list(backend.runs("bob", 0, 0)) == []
    disk.capacity = None
    backend.commit(one(1))
    (tmp_path / "spare").unlink(missing_ok=True)
    disk.capacity = 0
    with pytest.raises(StorageFull, match="new beginning"):
        backend.forget("bob")
    assert len(list(backend.runs("bob", 0, 0))) == 1
    disk.capacity = None
    backend.commit(one(2))
    backend.close()
    assert backend.recover()["bob"].assigned == 2
    backend.forget("bob")
    backend.close()
    assert backend.recover() == {}
    backend.close()


def test_a_full_disk_does_not_keep_segments_from_being_renewed_for_ever(tmp_path: Path) -> None:
    disk = Disk()
    backend = JournalBackend(tmp_path, segment_bytes=1 << 12, reserve=1 << 14, files=disk)
    backend.recover()
    backend.commit(one(1))
    (tmp_path / "spare").unlink()
    disk.capacity = 0
    for number in range(100):
        backend.commit(Change(consumed=[("bob", number)], values=[("user/key", bytes(100))]))
    disk.capacity = None
    before = max(tmp_path.glob("*.journal"))
    backend._renew_at = 0
    backend.commit(Change(consumed=[("bob", 100)]))
    assert max(tmp_path.glob("*.journal")) > before
    backend.close()
    assert backend.recover()["bob"].watermark == 100
    backend.close()
