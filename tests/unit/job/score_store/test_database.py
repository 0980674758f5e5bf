"""A store gives back what was added, and nothing else, whatever happens to its file."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from pathlib import Path

import pytest

from rerank_cli.job.score_store import Rate, ScoreStore, Unusable, open_store
from rerank_cli.job.score_store import database as module
from rerank_cli.job.score_store.database import why_it_failed
from rerank_cli.job.score_store.folder import DATABASE, file_system


def key(number: int, query: int = 0) -> bytes:
    return (
        hashlib.blake2b(b"q%d" % query, digest_size=4).digest()
        + hashlib.blake2b(b"%d" % number, digest_size=12).digest()
    )


def entries(count: int, query: int = 0) -> dict[bytes, bytes]:
    return {key(number, query): b"%020d" % number for number in range(count)}


def opened(folder: Path, **options) -> ScoreStore:
    store = open_store(folder, **options)
    assert isinstance(store, ScoreStore), store
    return store


def test_what_was_added_is_found_by_the_next_process_and_by_one_beside(tmp_path: Path) -> None:
    store, beside = opened(tmp_path / "new" / "s"), opened(tmp_path / "new" / "s")
    store.add(entries(2500))
    assert beside.find([*entries(2500), key(9999)]) == entries(2500)
    beside.close()
    store.close()
    again = opened(tmp_path / "new" / "s")
    assert again.find(list(entries(2600))) == entries(2500)
    again.close()


@pytest.mark.parametrize("asked", [3, 8, 30, 700])
def test_of_a_query_is_found_what_is_asked_however_much_of_it_is_known(tmp_path: Path, asked: int) -> None:
    store = opened(tmp_path)
    for query in range(5):
        store.add(entries(10 if query == 4 else 900, query))
    wanted = {key: value for query in range(5) for key, value in list(entries(900, query).items())[5:][:asked]}
    there = {key: value for query in range(5) for key, value in entries(10 if query == 4 else 900, query).items()}
    assert store.find([*reversed(wanted)]) == {key: value for key, value in wanted.items() if key in there}
    assert store.damaged == 0
    store.close()


def test_an_entry_that_was_edited_torn_or_moved_is_none(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.add(entries(10))
    with sqlite3.connect(tmp_path / DATABASE) as hand:
        of = {
            number: hand.execute("SELECT value FROM scores WHERE key = ?", (key(number),)).fetchone()[0]
            for number in range(10)
        }
        for number, value in {0: b"\x01" + of[0][1:], 1: of[1][:-1], 2: of[3], 4: b"", 5: "text", 6: 7}.items():
            hand.execute("UPDATE scores SET value = ? WHERE key = ?", (value, key(number)))
    hand.close()
    assert sorted(store.find(list(entries(10)))) == sorted(key(number) for number in (3, 7, 8, 9))
    assert store.damaged == 6
    store.add({key(0): entries(10)[key(0)]})  # computed again
    assert store.find([key(0)]) == {key(0): entries(10)[key(0)]}
    store.close()


def test_a_damaged_database_is_set_aside_and_a_new_one_begins(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.add(entries(5000))
    store.close()
    data = bytearray((tmp_path / DATABASE).read_bytes())
    data[100:4096] = bytes(3996)  # the first page, behind its head
    (tmp_path / DATABASE).write_bytes(data)
    told: list[str] = []
    again = opened(tmp_path, on_fault=told.append)
    assert len(told) == 1
    assert "is damaged" in told[0]
    assert len(list(tmp_path.glob("scores.damaged-*"))) == 1
    again.add(entries(3))
    assert again.find(list(entries(3))) == entries(3)
    again.close()


def _leave_damaged(folder: Path) -> None:
    """Leave a store of 60,000 entries that is damaged behind its head."""
    store = opened(folder)
    store.add(entries(60_000))
    store.close()
    path = folder / DATABASE
    data = bytearray(path.read_bytes())
    data[8192:] = b"\xa5" * (len(data) - 8192)
    path.write_bytes(data)


def test_a_database_that_proves_damaged_while_it_is_used_is_set_aside_for_the_next_run(tmp_path: Path) -> None:
    _leave_damaged(tmp_path)
    told: list[str] = []
    again = opened(tmp_path, on_fault=told.append)
    assert again.find(list(entries(60_000))) == {}
    again.add(entries(10))
    assert again.find(list(entries(10))) == {}
    assert again.size == 0
    assert len(told) == 1
    assert "is damaged" in told[0]
    assert "continues without it" in told[0]
    again.close()
    assert len(list(tmp_path.glob("scores.damaged-*"))) == 1
    new = opened(tmp_path, on_fault=told.append)
    new.add(entries(10))
    assert new.find(list(entries(10))) == entries(10)
    new.close()
    assert len(told) == 1


def test_of_two_that_use_a_damaged_database_the_last_one_sets_it_aside(tmp_path: Path) -> None:
    _leave_damaged(tmp_path)
    told: list[str] = []
    both = [opened(tmp_path, on_fault=told.append) for _ in range(2)]
    assert both[0].find(list(entries(60_000))) == {}
    assert not list(tmp_path.glob("scores.damaged-*"))  # another one uses it
    assert both[1].find(list(entries(60_000))) == {}
    assert len(list(tmp_path.glob("scores.damaged-*"))) == 1
    assert ["continues without it" in text for text in told] == [True, True]
    for one in both:
        one.close()


@pytest.mark.parametrize(("code", "told"), [("SQLITE_IOERR_READ", False), ("SQLITE_IOERR_SHMSIZE", True)])
def test_only_of_a_failed_write_is_told_what_room_is_left(tmp_path: Path, code: str, told: bool) -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = getattr(sqlite3, code)
    assert ("left on the file system" in why_it_failed(error, tmp_path)) is told


def test_another_programs_database_is_left_as_it_is(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / DATABASE) as other:
        other.execute("CREATE TABLE mine (x)")
    other.close()
    before = (tmp_path / DATABASE).read_bytes()
    found = open_store(tmp_path)
    assert isinstance(found, Unusable)
    assert "another program" in found.reason
    assert (tmp_path / DATABASE).read_bytes() == before


def test_a_folder_that_cannot_be_has_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("file", "file/below"):
        assert isinstance(open_store(tmp_path / name), Unusable)


def test_a_store_that_another_process_writes_to_is_read_and_not_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "_BUSY_SECONDS", 0.05)
    told: list[str] = []
    store = opened(tmp_path, on_fault=told.append)
    store.add(entries(5))
    other = sqlite3.connect(tmp_path / DATABASE, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store.add(entries(10))
    store.add(entries(10))
    assert store.find(list(entries(10))) == entries(5)
    assert len(told) == 1
    assert "are not kept" in told[0]
    other.close()
    store.close()


@pytest.mark.parametrize("day", ["'abc'", "1.5", "x'00ff'", "1e999", "-5", "9223372036854775807"])
@pytest.mark.parametrize("of_lists", [False, True])
def test_an_entry_of_a_day_that_is_none_is_found_and_renewed(tmp_path: Path, day: str, of_lists: bool) -> None:
    faults: list[str] = []
    store = opened(tmp_path, on_fault=faults.append, limit_bytes=10**6)
    store.add(entries(10))
    with sqlite3.connect(tmp_path / DATABASE) as hand:
        hand.execute(f"UPDATE scores SET day = {day}")
        hand.execute("UPDATE days SET bytes = 'abc'")
    assert store.find(list(entries(10)), of_lists=of_lists) == entries(10)
    store.add(entries(20))
    assert store.find(list(entries(20)), of_lists=of_lists) == entries(20)
    assert not faults
    assert hand.execute("SELECT DISTINCT day FROM scores").fetchall() == [(ScoreStore._day_number(),)]
    hand.execute(f"UPDATE scores SET day = {day}")
    hand.commit()
    hand.close()
    store.close()
    small = opened(tmp_path, on_fault=faults.append, limit_bytes=1)
    small.add(entries(1, 9))
    small.close()
    assert not faults


@pytest.mark.parametrize("column", ["tokens", "seconds"])
@pytest.mark.parametrize("value", ["'abc'", "x'ff'", "1e999", "-1", "9e18"])
def test_a_rate_that_is_no_number_is_not_known(tmp_path: Path, column: str, value: str) -> None:
    faults: list[str] = []
    store = opened(tmp_path, on_fault=faults.append)
    store.add({}, b"one", Rate(100, 0.5))
    with sqlite3.connect(tmp_path / DATABASE) as hand:
        hand.execute(f"UPDATE rates SET {column} = {value}")
    hand.close()
    assert store.rate(b"one") == Rate()
    assert store.find([key(0)]) == {}
    store.close()
    assert not faults


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path, monkeypatch) -> None:
    day = [100]
    monkeypatch.setattr(ScoreStore, "_day_number", staticmethod(lambda: day[0]))
    limit = 2_000_000
    store = opened(tmp_path, limit_bytes=limit)
    kept = {of: entries(500, of) for of in range(3)}
    for of in kept:
        store.add(kept[of])
    number = 10
    for day[0] in range(101, 111):
        for _ in range(10):
            store.add(entries(500, number))
            number += 1
        for of in kept:
            assert store.find(list(kept[of])) == kept[of]
    store.close()
    assert (tmp_path / DATABASE).stat().st_size <= 1.1 * limit
    again = opened(tmp_path, limit_bytes=limit)
    assert again.find(list(entries(500, 10))) == {}
    assert again.find(list(entries(500, number - 1))) == entries(500, number - 1)
    again.close()
    less = opened(tmp_path, limit_bytes=1_000_000)
    less.add(entries(1, 9999))
    less.close()
    assert (tmp_path / DATABASE).stat().st_size <= 1_000_000
    with sqlite3.connect(tmp_path / DATABASE) as hand:
        counted = hand.execute("SELECT day, sum(length(value) + 24) FROM scores GROUP BY day ORDER BY day").fetchall()
        assert hand.execute("SELECT day, bytes FROM days WHERE bytes ORDER BY day").fetchall() == counted
        assert hand.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    hand.close()


def test_one_day_that_is_too_much_for_the_limit_is_kept_in_part(tmp_path: Path) -> None:
    store = opened(tmp_path, limit_bytes=1_000_000)
    for of in range(130):
        store.add(entries(500, of))
    store.close()
    assert 500_000 < (tmp_path / DATABASE).stat().st_size <= 1_100_000


def test_an_entry_takes_less_than_100_bytes(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for of in range(400):
        store.add(entries(50, of))
    assert 40 < store.size / 20_000 < 100
    store.close()


def test_rates_of_all_processes_are_added_up(tmp_path: Path) -> None:
    store, beside = opened(tmp_path), opened(tmp_path)
    store.add({}, b"one", Rate(100, 0.5))
    beside.add(entries(1), b"one", Rate(300, 1.0))
    assert store.rate(b"one") == Rate(400, 1.5)
    assert store.rate(b"two") == Rate()
    store.close()
    beside.close()


def test_threads_share_a_store(tmp_path: Path) -> None:
    store = opened(tmp_path)
    wrong: list[int] = []

    def work(of: int) -> None:
        for _ in range(20):
            store.add(entries(100, of))
            if store.find(list(entries(100, of))) != entries(100, of):
                wrong.append(of)

    threads = [threading.Thread(target=work, args=(of,)) for of in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert wrong == []
    store.close()


MOUNTS = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /data rw,relatime shared:2 - nfs4 server:/data rw,vers=4.2,local_lock=none,addr=10.0.0.1
31 22 0:41 / /old rw,relatime - nfs server:/old rw,vers=3,nolock,local_lock=all
32 22 0:42 / /with\040space rw - cifs //server/share rw,nobrl
33 30 8:2 / /data/local rw - xfs /dev/sdb rw
34 22 0:43 / /home/me/mnt rw - fuse.sshfs me@host:/ rw
"""


@pytest.mark.parametrize(
    ("folder", "found"),
    [
        ("/var/x", (True, True)), ("/data/x", (False, True)), ("/old/x", (False, False)),
        ("/with space/x", (False, False)), ("/data/local/x", (True, True)), ("/home/me/mnt/x", (False, True)),
        ("/database", (True, True)),
    ],
)  # fmt: skip
def test_what_a_file_system_can_is_known_by_its_mount(folder: str, found: tuple[bool, bool]) -> None:
    assert file_system(Path(folder), MOUNTS) == found


def test_a_file_system_without_locks_has_no_store(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("rerank_cli.job.score_store.folder.file_system", lambda folder: (False, False))
    found = open_store(tmp_path)
    assert isinstance(found, Unusable)
    assert "does not lock" in found.reason


def test_a_network_that_locks_has_a_store_without_shared_memory(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("rerank_cli.job.score_store.folder.file_system", lambda folder: (False, True))
    store = opened(tmp_path)
    store.add(entries(10))
    assert store.find(list(entries(10))) == entries(10)
    assert not list(tmp_path.glob("*-wal"))
    store.close()


def test_with_a_list_all_entries_of_its_query_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(tmp_path)
    store.add(entries(20, 0), lists={key(900, 0): b"the list of query 0"})
    store.add(entries(20, 1), lists={key(900, 1): b"the list of query 1"})
    assert store.added == 40
    monkeypatch.setattr(ScoreStore, "_day_number", staticmethod(lambda: 99_999))
    assert store.find([key(900, 0)], of_lists=True) == {key(900, 0): b"the list of query 0"}
    with sqlite3.connect(tmp_path / DATABASE) as hand:
        today = {key for (key,) in hand.execute("SELECT key FROM scores WHERE day = 99999")}
        counted = dict(hand.execute("SELECT day, bytes FROM days"))
        sizes = dict(hand.execute(f"SELECT day, sum(length(value) + {module._BESIDE}) FROM scores GROUP BY day"))
    assert today == {*entries(20, 0), key(900, 0)}
    assert counted == sizes
    store.close()
