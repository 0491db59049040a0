"""Files that a crash cannot spoil, finished work that is only moved aside, manifests that are damaged or not ours."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from compact_distill.errors import RunError
from compact_distill.runs.files import (
    Lock,
    give_ordinary_modes,
    is_aside,
    json_lines,
    move_aside,
    output_problem,
    read_jsonl,
    seed_of,
)
from compact_distill.runs.folder import RunFolder


def test_what_is_moved_aside_keeps_its_contents_and_frees_its_name(tmp_path):
    path = tmp_path / "gsm8k.json"
    path.write_text("old")
    aside = move_aside(path)
    assert not path.exists()
    assert aside.read_text() == "old"
    assert aside.parent == tmp_path
    assert aside.name.startswith("gsm8k.json.20")
    assert list(tmp_path.glob("*.json")) == []


def test_nothing_moved_aside_replaces_what_was_moved_before(tmp_path):
    asides = []
    for content in ("first", "second", "third"):
        (tmp_path / "student").mkdir()
        (tmp_path / "student" / "weights").write_text(content)
        asides.append(move_aside(tmp_path / "student"))
    assert len(set(asides)) == 3
    assert [(path / "weights").read_text() for path in asides] == ["first", "second", "third"]
    assert all(map(is_aside, asides))


def test_only_names_that_were_given_so_are_aside():
    assert is_aside("eval/student.2026-11-25T21-30-05Z")
    assert is_aside("gsm8k.json.2026-11-25T21-30-05Z-2")
    assert not any(
        map(is_aside, ("student", "gsm8k.json", "checkpoint-2", "my.2026-11-25", "run.2026-11-25T21-30-05Z.bak"))
    )


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_weights_get_the_permissions_of_any_other_new_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text("{}")
        give_ordinary_modes(tmp_path)
        assert os.umask(umask) == umask  # and is not moved
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode for path in tmp_path.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]


def test_a_seed_is_the_first_31_bits_that_every_sampler_takes_of_its_names_hash():
    # sha256("42/p0/0") starts with these four bytes; without its first bit it is the seed.
    assert hashlib.sha256(b"42/p0/0").hexdigest()[:8] == "ec308c55"
    assert seed_of("42/p0/0") == 0xEC308C55 & 0x7FFFFFFF
    assert max(seed_of(str(number)) for number in range(200)) < 2**31


def test_a_damaged_manifest_of_ours_is_replaced_and_kept(tmp_path, capsys):
    RunFolder.claim(tmp_path).close()
    for broken in (
        "[]",
        "null",
        '{"format": 1, "stages": {"train": []}}',
        '{"format": 1, "stages": {"train": {}}}',
        "{",
    ):
        (tmp_path / "manifest.json").write_text(broken)
        with RunFolder.claim(tmp_path) as run:
            assert run.manifest["stages"] == {}
        assert "was damaged; it is now manifest.json." in capsys.readouterr().err
    assert len(list(tmp_path.glob("manifest.json.*"))) == 5


def test_a_manifest_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "my web page"}')
    with pytest.raises(RunError, match="is damaged"):
        RunFolder.claim(tmp_path)
    assert (tmp_path / "manifest.json").read_text() == '{"name": "my web page"}'


@pytest.mark.parametrize("name", ["x" * 300, "x/" + "y" * 300])
def test_a_name_that_the_system_does_not_allow_is_told(tmp_path, name):
    assert "cannot be used: File name too long" in output_problem(tmp_path / name)
    with pytest.raises(RunError, match="File name too long"):
        RunFolder.claim(tmp_path / name)


LINES = b'\xef\xbb\xbf{"a": 1}\n\nnonsense\n[1]\n{"b": 2, "b": 3}\n\xff{}\r\n{"c": "\xe2\x80\xa8"}\n{"torn": 1}'


def test_every_damaged_line_is_told_with_its_place_and_what_becomes_of_it_is_the_readers_to_say(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(LINES)
    damaged = []
    assert list(read_jsonl(path, at_damage=damaged.append)) == [{"a": 1}, {"b": 3}, {"c": "\u2028"}]
    assert [(line.number, line.wrong.split(";")[0]) for line in damaged] == [
        (3, "broken JSON at column 1: Expecting value"),
        (4, "must be an object like {...}, got [1]"),
        (6, f"not UTF-8: byte 0xff at position 0 of the line, {LINES.index(0xFF, 3)} of the file"),
    ]
    with pytest.raises(RunError, match=r"rows.jsonl, line 3: broken JSON"):
        list(read_jsonl(path))
    assert list(read_jsonl(tmp_path / "none.jsonl")) == []


def test_what_others_wrote_may_lack_its_last_line_end_and_may_not_name_a_key_twice():
    lines = list(json_lines(io.BytesIO(LINES), by_hand=True))
    assert lines[-1] == (8, LINES.rindex(b"{"), {"torn": 1}, "")
    assert [line.number for line in lines if "'b' stands twice" in line.wrong] == [5]
    (only,) = json_lines(io.BytesIO('{"a": 1}\n'.encode("utf-16")), by_hand=True)
    assert only.wrong.startswith("is UTF-16")


def test_a_shared_lock_is_held_by_every_process_that_was_given_it_and_waited_for_as_long_as_asked(tmp_path):
    lock = Lock(tmp_path / "lock", tmp_path, shared=True)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock.fileno(),))
    lock.close()
    with pytest.raises(RunError, match=f"written by process {os.getpid()} on"):
        Lock(tmp_path / "lock", tmp_path, shared=True, patience=0.1)
    child.communicate(b"\n", timeout=60)
    with Lock(tmp_path / "lock", tmp_path, shared=True, patience=60.0):
        pass


def test_a_lock_that_is_not_shared_ends_with_its_own_process(tmp_path):
    lock = Lock(tmp_path / "lock", tmp_path)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock.fileno(),))
    lock.close()
    with Lock(tmp_path / "lock", tmp_path):
        pass
    child.communicate(b"\n", timeout=60)
