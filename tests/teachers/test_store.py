from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compact_distill.errors import RunError
from compact_distill.records import Verdict
from compact_distill.teachers.store import (
    RowStatus,
    Store,
    StoreReader,
    file_name,
    parse_row,
    parse_row_head,
    row_line,
    text_digest,
)


def test_rows_come_back_as_they_were_written(tmp_path, row):
    rows = [row(id="p0"), row(id="p1", verdict=None, status=RowStatus.TRUNCATED, cost=0.25, answer=None)]
    with Store(tmp_path, "t") as store:
        for r in rows:
            store.append(r)
        assert list(store.rows()) == rows
    assert list(StoreReader(tmp_path, "t").rows()) == rows


def test_a_store_has_the_permissions_of_any_new_file(tmp_path, row):
    before = os.umask(0o002)
    try:
        with Store(tmp_path, "t") as store:
            store.append(row())
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {"0o664"}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    identity=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    text=st.text(st.characters(exclude_categories=["Cs"])),
)
def test_any_text_survives_a_line_of_the_file(row, identity, text):
    written = row(id=identity, text=text, reasoning=text[::-1])
    line = row_line(written)
    assert line.count(b"\n") == 1
    assert parse_row(line) == written
    assert parse_row_head(line)["id"] == identity


def test_the_head_is_found_even_if_an_id_looks_like_the_text_field(row):
    assert parse_row_head(row_line(row(id='x", "text": "y')))["id"] == 'x", "text": "y'


def test_an_opened_store_knows_what_it_holds(tmp_path, row):
    with Store(tmp_path, "t") as store:
        store.append(row(id="p0", sample=1, status=RowStatus.DUPLICATE, verdict=Verdict.WRONG, text="x"))
        assert store.seen("p0", 1, "0" * 16) is None  # only what was there when it was opened
    with Store(tmp_path, "t") as store:
        seen = store.seen("p0", 1, "0" * 16)
        assert (seen.status, seen.verdict, seen.digest) == (RowStatus.DUPLICATE, Verdict.WRONG, text_digest("", "x"))
        assert store.read(seen.offset).text == "x"
        assert len(store) == 1
        for other in (("p1", 1, "0" * 16), ("p0", 0, "0" * 16), ("p0", 1, "1" * 16)):
            assert store.seen(*other) is None


def test_a_file_cut_at_any_byte_keeps_every_whole_row_and_can_be_written_again(tmp_path, row):
    whole = row_line(row(id="p0")) + row_line(row(id="p1", text="two\nlines é"))
    first = len(row_line(row(id="p0")))
    for length in range(len(whole) + 1):
        path = tmp_path / "t.jsonl"
        path.write_bytes(whole[:length])
        with Store(tmp_path, "t") as store:
            # A row that lacks nothing but the end of its line is whole.
            expected = [i for i, end in (("p0", first - 1), ("p1", len(whole) - 1)) if length >= end]
            assert [r.id for r in store.rows()] == expected, length
            torn = length not in (0, first - 1, first, len(whole) - 1, len(whole))
            assert store.damaged == [len(expected) + 1] * torn
            store.append(row(id="p9"))
            assert [r.id for r in store.rows()] == [*expected, "p9"]


def corrupt(line: bytes) -> bytes:
    """The line with another number in its text: still JSON, still a row."""
    return line.replace(b"2 + 2 = 4", b"2 + 2 = 5")


DAMAGE = {
    "zeros": b"\0" * 40 + b"\n",
    "garbage": b"garbage\n",
    "a list": b"[1]\n",
    "half a row": b'{"id": "p1"}\n',
    "nothing": b"\n",
    "no UTF-8": b"\xff\xfe}\n",
    "another text": None,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_line_is_moved_aside_and_spoils_no_other(tmp_path, row, name):
    damage = DAMAGE[name] or corrupt(row_line(row(id="p1")))
    (tmp_path / "t.jsonl").write_bytes(row_line(row(id="p0")) + damage + row_line(row(id="p2")))
    with Store(tmp_path, "t") as store:
        assert store.damaged == [2]
        assert [r.id for r in store.rows()] == ["p0", "p2"]
        assert store.seen("p1", 0, "0" * 16) is None
        assert store.read(store.seen("p2", 0, "0" * 16).offset).id == "p2"
        assert store.aside.read_bytes() == damage
        store.append(row(id="p1"))
    assert (tmp_path / "t.jsonl").read_bytes() == b"".join(row_line(row(id=i)) for i in ("p0", "p2", "p1"))
    with Store(tmp_path, "t") as store:
        assert store.damaged == []
        assert store.aside.read_bytes() == damage


def test_a_torn_last_line_is_moved_aside_too_and_what_is_aside_is_never_overwritten(tmp_path, row):
    torn = b'{"id": "p1", "tea'
    for count in (1, 2):
        with (tmp_path / "t.jsonl").open("ab") as file:
            file.write((row_line(row()) if count == 1 else b"") + torn)
        with Store(tmp_path, "t") as store:
            assert store.damaged == [2]
            assert [r.id for r in store.rows()] == ["p0"]
            assert store.aside.read_bytes() == (torn + b"\n") * count


def test_a_reader_takes_no_text_that_was_changed(tmp_path, row):
    (tmp_path / "t.jsonl").write_bytes(corrupt(row_line(row(id="p1"))))
    reader = StoreReader(tmp_path, "t")
    assert reader.read(reader.seen("p1", 0, "0" * 16).offset) is None
    assert list(reader.rows()) == []


def test_of_rows_with_the_same_key_the_last_one_counts(tmp_path, row):
    rows = [row(text="first: the answer is 5."), row(text="last: the answer is 4."), row(id="p1")]
    (tmp_path / "t.jsonl").write_bytes(b"".join(map(row_line, rows)))
    with Store(tmp_path, "t") as store:
        assert store.read(store.seen("p0", 0, "0" * 16).offset).text == "last: the answer is 4."
        assert len(store) == 2


def test_a_long_last_row_that_lacks_only_its_end_of_line_is_kept(tmp_path, row):
    long = row(text="x" * (3 << 20))
    (tmp_path / "t.jsonl").write_bytes(row_line(row(id="p1")) + row_line(long)[:-1])
    with Store(tmp_path, "t") as store:
        assert [r.id for r in store.rows()] == ["p1", "p0"]
        store.append(row(id="p2"))
    assert [r.id for r in StoreReader(tmp_path, "t").rows()] == ["p1", "p0", "p2"]


@pytest.fixture
def synced(monkeypatch):
    """What was brought to the disk itself, as (inode, size), in order."""
    found = []
    fsync = os.fsync

    def note(descriptor):
        fsync(descriptor)
        found.append((os.fstat(descriptor).st_ino, os.fstat(descriptor).st_size))

    monkeypatch.setattr(os, "fsync", note)
    return found


def test_syncing_and_closing_bring_every_row_to_the_disk(tmp_path, row, synced):
    with Store(tmp_path, "t") as store:
        inode = store.path.stat().st_ino
        store.append(row(id="p0"))
        synced.clear()
        store.sync()
        assert synced == [(inode, len(row_line(row(id="p0"))))]
        store.append(row(id="p1"))
        synced.clear()
    assert synced == [(inode, 2 * len(row_line(row(id="p0"))))]


def test_a_rewritten_store_is_on_the_disk_before_it_takes_the_old_ones_place(tmp_path, row, synced, monkeypatch):
    with Store(tmp_path, "t") as store:
        store.append(row(id="p0", verdict=None))
        synced.clear()
        replace_file = type(store.path).replace

        def check(fresh, target):
            assert synced == [(fresh.stat().st_ino, fresh.stat().st_size)]
            return replace_file(fresh, target)

        monkeypatch.setattr(type(store.path), "replace", check)
        store.rewrite([row(id="p0")])
        assert (tmp_path.stat().st_ino, tmp_path.stat().st_size) in synced  # and so is its name


def test_a_second_process_cannot_write_the_same_store(tmp_path):
    imports = "from pathlib import Path; from compact_distill.teachers.store import Store"
    code = f"{imports}; Store(Path({str(tmp_path)!r}), 't')"
    with Store(tmp_path, "t"):
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "RunError" in second.stderr
        assert f"t.jsonl is being written by process {os.getpid()}" in second.stderr
        with pytest.raises(RunError, match="being written by this very process"):
            Store(tmp_path, "t")
        with Store(tmp_path, "other"):
            pass
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_reading_needs_no_lock(tmp_path, row):
    with Store(tmp_path, "t") as store:
        store.append(row())
        assert len(StoreReader(tmp_path, "t")) == 1


def test_a_full_disk_leaves_no_torn_row_and_says_so(tmp_path):
    # A limit of the file's size makes real short writes.
    code = f"""
import resource, signal, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from pathlib import Path
from compact_distill.errors import RunError
from compact_distill.teachers.store import RowStatus, Store, StoredRow, text_digest
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
counts = (None, None, None, 0.0, None, None)
row = StoredRow("p", "t", 0, "0", RowStatus.OK, None, text_digest("", "x" * 300), "x" * 300, "", None, "4", *counts, "")
store = Store(Path({str(tmp_path)!r}), "t")
store.append(row)
try:
    store.append(row)
except RunError as error:
    print(error)
print(len(list(store.rows())), store.path.stat().st_size)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert "a row could not be written" in said[0]
    count, size = said[1].split()
    assert count == "1"
    assert int(size) < 700


def test_a_rewrite_replaces_all_rows_or_none(tmp_path, row):
    with Store(tmp_path, "t") as store:
        store.append(row(id="p0", verdict=None))
        store.append(row(id="p1", verdict=None))

        def breaks():
            yield row(id="p0")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            store.rewrite(breaks())
        assert [r.verdict for r in store.rows()] == [None, None]
        store.rewrite(replace(r, verdict=Verdict.WRONG) for r in store.rows())
        assert [r.verdict for r in store.rows()] == [Verdict.WRONG] * 2
        assert store.seen("p1", 0, "0" * 16).verdict is Verdict.WRONG
        store.append(row(id="p2"))
    assert [r.id for r in StoreReader(tmp_path, "t").rows()] == ["p0", "p1", "p2"]


def test_rows_may_be_brought_to_the_disk_while_others_take_their_place(tmp_path, row):
    wrong, done = [], threading.Event()

    def sync(store):
        while not done.is_set():
            try:
                store.sync()
            except RunError as error:
                wrong.append(error)

    with Store(tmp_path, "t") as store:
        store.append(row(id="p0"))
        thread = threading.Thread(target=sync, args=(store,))
        thread.start()
        for _ in range(100):
            store.rewrite(list(store.rows()))
        done.set()
        thread.join()
        store.append(row(id="p1"))
    assert wrong == []
    assert [r.id for r in StoreReader(tmp_path, "t").rows()] == ["p0", "p1"]


@pytest.mark.parametrize("name", ["../../etc/x", "a/b", "..", ".hidden", "é" * 200, "CON:", "a\nb", "-"])
def test_a_teachers_name_never_leaves_the_folder(tmp_path, name):
    assert (tmp_path / file_name(name)).resolve().parent == tmp_path.resolve()


def test_different_names_have_different_files():
    names = ["a/b", "a_b", "a:b", "a b", ".a", "a", "é", "è", "x" * 90, "x" * 91]
    assert len({file_name(name) for name in names}) == len(names)
    assert file_name("qwen2.5-72b") == "qwen2.5-72b.jsonl"


def test_a_name_of_any_length_has_a_store(tmp_path, row):
    with Store(tmp_path, "x" * 5000) as store:
        store.append(row())
    assert len(StoreReader(tmp_path, "x" * 5000)) == 1


def test_equal_digests_mean_equal_answers():
    assert text_digest("a", "b") == text_digest("a", "b")
    assert len({text_digest("a", "b"), text_digest("ab", ""), text_digest("", "ab"), text_digest("b", "a")}) == 4


def test_a_row_with_a_hole_in_its_text_is_damaged(tmp_path, row):
    # After a power cut a block of a file may hold zeros.
    holed = bytearray(row_line(row(id="p1", text="x" * 100)))
    start = holed.index(b"x" * 100)
    holed[start : start + 50] = b"\0" * 50
    (tmp_path / "t.jsonl").write_bytes(row_line(row(id="p0")) + holed)
    with Store(tmp_path, "t") as store:
        assert store.damaged == [2]
        assert store.seen("p1", 0, "0" * 16) is None
