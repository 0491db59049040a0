"""Files that a crash cannot spoil, and finished work that is only ever moved aside."""

from __future__ import annotations

import hashlib

from compact_distill.runs.files import is_aside, move_aside, seed_of


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


def test_a_seed_is_the_first_31_bits_that_every_sampler_takes_of_its_names_hash():
    # sha256("42/p0/0") starts with these four bytes; without its first bit it is the seed.
    assert hashlib.sha256(b"42/p0/0").hexdigest()[:8] == "ec308c55"
    assert seed_of("42/p0/0") == 0xEC308C55 & 0x7FFFFFFF
    assert max(seed_of(str(number)) for number in range(200)) < 2**31
