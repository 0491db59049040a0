"""The lab's student: a tokenizer without unknown words, and a cache that holds whole students only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compact_distill.lab import STEPS, arithmetic, facts, instances, parse, pool, split_of, yes_no
from compact_distill.lab import student as lab_student
from compact_distill.lab.student import KNOWN_OPERANDS, Recipe, cache_folder, cached_student, corpus_lines, tokenizer
from compact_distill.method.encode import Encoder
from compact_distill.records import RationaleStatus
from compact_distill.students.load import check_student, load_student

TINY = Recipe(steps=4, lines_per_step=4, width=16, layers=1, heads=2, feed_forward=16)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def folder(cache: Path) -> Path:
    return cached_student(TINY, cache)


def test_the_cached_students_weights_may_be_read_by_whoever_reads_its_settings(folder: Path) -> None:
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode


def all_texts() -> list[str]:
    texts = corpus_lines(3000, seed=7)
    for split in ("train", "tuning", "held_out"):
        problems = arithmetic(split, 200, seed=7)
        texts += [p.question for p in problems]
        texts += [teacher.write(p) for p in problems for teacher in pool(7)]
    return texts + [f"{p.question} {p.answer}" for p in [*facts(), *yes_no()]]


def test_all_texts_of_the_world_survive_the_tokenizer_without_unknown_tokens() -> None:
    words = tokenizer()
    for text in all_texts():
        ids = words(text)["input_ids"]
        assert words.unk_token_id not in ids, text
        assert words.decode(ids) == text


def test_offsets_point_at_the_words() -> None:
    text = "Okay, first, 7 + 5 = 12.\nThe answer is 12."
    spans = tokenizer()(text, return_offsets_mapping=True)["offset_mapping"]
    words = [text[start:stop] for start, stop in spans]
    assert words == [
        "Okay",
        ",",
        "first",
        ",",
        *["7", "+", "5", "=", "12", "."],
        "\n",
        "The",
        "answer",
        "is",
        "12",
        ".",
    ]


def test_an_unknown_word_is_one_unknown_token() -> None:
    words = tokenizer()
    assert words("7 zebras")["input_ids"] == [*words("7")["input_ids"], words.unk_token_id]


def test_every_rationale_takes_part_in_training() -> None:
    encoder = Encoder(tokenizer())
    for problem in encoder.encode_all(instances(arithmetic("train", 50, seed=0), pool())):
        assert set(problem.statuses) == {RationaleStatus.OK}
        assert encoder.tokenizer.decode(problem.gold).startswith("\nThe answer is ")


def test_a_cached_student_reloads_identically(folder: Path, cache: Path) -> None:
    text = corpus_lines(TINY.steps * TINY.lines_per_step, TINY.seed)
    fresh = lab_student.pretrain(TINY, text).state_dict()
    loaded = load_student(folder)[0].state_dict()
    assert fresh.keys() == loaded.keys()
    assert all(torch.equal(fresh[name], loaded[name]) for name in fresh)


def test_the_cache_is_used_the_second_time(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab_student, "pretrain", lambda *_: pytest.fail("pre-trained again"))
    assert cached_student(TINY, cache) == folder


def test_another_recipe_or_another_version_is_another_student(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cached_student(Recipe(**{**_fields(TINY), "seed": 1}), cache) != folder
    monkeypatch.setattr(torch, "__version__", "0.0.1")
    assert cached_student(TINY, cache) != folder


def _fields(recipe: Recipe) -> dict[str, int | float]:
    return {name: getattr(recipe, name) for name in recipe.__slots__}


def test_a_failed_pre_training_leaves_nothing_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(lab_student.LlamaForCausalLM, "save_pretrained", full_disk)
    with pytest.raises(OSError, match="no space left"):
        cached_student(TINY, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_student_in_the_cache_is_one_that_the_package_accepts(folder: Path) -> None:
    assert check_student(folder) == []
    assert not [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pkl")]


def test_pre_training_leaves_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    lab_student.pretrain(TINY, corpus_lines(8, seed=0))
    assert torch.equal(torch.rand(3), expected)


def test_pre_training_lowers_the_loss() -> None:
    words = tokenizer()
    text = corpus_lines(40 * 16, seed=0)
    batch = lab_student._batch(words, corpus_lines(64, seed=1))
    recipe = Recipe(steps=40, lines_per_step=16, width=32, layers=1, heads=2, feed_forward=32, warmup_steps=4)
    untrained, trained = lab_student.pretrain(recipe, []), lab_student.pretrain(recipe, text)
    with torch.no_grad():
        assert trained(**batch).loss < 0.8 * untrained(**batch).loss


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("COMPACT_CACHE", raising=False)
    assert cache_folder() == tmp_path / "xdg" / "compact-distill"
    monkeypatch.setenv("COMPACT_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_the_corpus_never_holds_a_problem_to_tune_or_to_examine_on() -> None:
    worked = [arithmetic_part(line) for line in corpus_lines(20000, seed=0) if line.startswith("Question: compute")]
    long = [question for question in worked if len(parse(question)) == STEPS + 1]
    assert len(long) > 500
    assert {split_of(question) for question in long} == {"train"}


def test_the_corpus_holds_small_operands_only_while_problems_go_further() -> None:
    worked = [arithmetic_part(line) for line in corpus_lines(5000, seed=0) if line.startswith("Question: compute")]
    assert {abs(term) for question in worked for term in parse(question)[1:]} == set(KNOWN_OPERANDS)
    problems = arithmetic("held_out", 300, seed=0)
    assert {abs(term) for p in problems for term in parse(p.question)[1:]} == set(range(1, 10))


def arithmetic_part(line: str) -> str:
    return line.removeprefix("Question: ").partition("\n")[0]
