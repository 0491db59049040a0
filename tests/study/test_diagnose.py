"""Diagnosis: a slow reference of the effect, what is taken back, and the analysis on rows made by hand."""

from __future__ import annotations

import copy
import json
import re

import pytest
import torch

from compact_distill.answers import Verifier
from compact_distill.config.file import config_from
from compact_distill.data import load_instances
from compact_distill.errors import DataError
from compact_distill.method.encode import Encoder
from compact_distill.students.load import load_student
from compact_distill.study.diagnose import _STEP, analyse, choose, describe, diagnose, measure, work, write_diagnosis


@pytest.fixture(scope="module")
def read(world):
    """Student and tokenizer in fp64, and the problems as tokens with verdicts."""
    model, tokenizer = load_student(world / "student", dtype=torch.float64)
    with Verifier() as verifier:
        encoded = list(Encoder(tokenizer).encode_all(load_instances(world / "train.jsonl"), verifier))
    return model, encoded


def slow_loss(model, problem, k):
    """Mean nats a token of one completion, by the model's own forward."""
    branch = problem.branches[k]
    ids = torch.tensor([[*problem.prompt, *branch.completion]])
    labels = ids.clone()
    labels[:, : len(problem.prompt)] = -100
    return model(input_ids=ids, labels=labels).loss


def test_the_effect_is_that_of_a_step_taken_by_hand(read):
    model, encoded = read
    tried, held = encoded[:1], encoded[5:7]
    plain = copy.deepcopy(model).eval()
    found = measure(copy.deepcopy(model), tried, held, learning_rate=1e-3, max_tokens=4096)
    right = [(problem, k) for problem in held for k in problem.right]

    def validation(student):
        return sum(slow_loss(student, problem, k) for problem, k in right) / len(right)

    before = validation(plain)
    direction = torch.autograd.grad(before, list(plain.parameters()))
    for k in tried[0].present:
        stepped = copy.deepcopy(plain)
        gradient = torch.autograd.grad(slow_loss(stepped, tried[0], k), list(stepped.parameters()))
        norm = torch.sqrt(sum(part.square().sum() for part in gradient))
        length = _STEP * 1e-3 * sum(int((part != 0).sum()) for part in gradient) ** 0.5
        with torch.no_grad():
            for parameter, part in zip(stepped.parameters(), gradient, strict=True):
                parameter -= length * part / norm
        product = sum((a * b).sum() for a, b in zip(gradient, direction, strict=True))
        cosine = product / norm / torch.sqrt(sum(part.square().sum() for part in direction))
        effect = found[tried[0].id][k]
        assert effect.effectiveness == pytest.approx(float((before - validation(stepped)).detach()), rel=1e-4, abs=1e-9)
        assert effect.cosine == pytest.approx(float(cosine.detach()), rel=1e-5)


def test_every_step_is_taken_back_bit_for_bit(read):
    model = copy.deepcopy(read[0])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure(model, read[1][:2], read[1][5:6], learning_rate=1.0, max_tokens=4096)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_step_on_a_validation_rationale_itself_lowers_the_loss(read):
    model, encoded = read
    problem = encoded[3]
    found = measure(copy.deepcopy(model), [problem], [problem], learning_rate=1e-4, max_tokens=4096)[problem.id]
    assert max(found[k].effectiveness for k in problem.right) > 0
    assert all(-1 <= effect.cosine <= 1 for effect in found.values())


def by_hand():
    """Ten problems of three rationales: `good` goes with the effect, `bad` against it, `noise` by turns."""
    rows = []
    for number in range(10):
        for k in range(3):
            noise = [[0, 1, 2], [2, 1, 0]][number % 2][k]
            row = {
                "problem": str(number),
                "teacher": "abc"[k],
                "index": k,
                "right": k > 0,
                "weight": [0.2, 0.3, 0.5][k],
            }
            rows.append({**row, "effectiveness": 0.1 * k, "cosine": 0.1 * k, "good": k, "bad": -k, "noise": noise})
    return rows


def test_the_analysis_of_rows_made_by_hand():
    found = analyse(by_hand(), {"good": 1.0})
    assert found["predicts"]["good"]["value"] == pytest.approx(1.0)
    assert found["predicts"]["bad"]["value"] == pytest.approx(-1.0)
    assert found["predicts"]["noise"]["value"] == pytest.approx(0.0)
    assert found["predicts"]["noise"]["low"] < 0 < found["predicts"]["noise"]["high"]
    assert found["tells_right"]["good"]["value"] == 1.0
    assert found["tells_right"]["bad"]["value"] == 0.0
    assert found["redundancy"]["good"]["bad"]["value"] == pytest.approx(-1.0)
    assert found["teachers"]["c"]["effectiveness"]["value"] == pytest.approx(0.2)
    assert analyse(by_hand(), {}, turned=["bad"])["tells_right"]["bad"]["value"] == 1.0
    assert [found["teachers"][name]["right"] for name in "abc"] == [0.0, 1.0, 1.0]
    chosen = found["coefficients"]
    assert chosen["configured"] == {"good": 1.0}
    assert chosen["explained"] > 0.95
    assert chosen["regression"]["good"] == pytest.approx(-chosen["regression"]["bad"])
    assert abs(chosen["regression"]["noise"]) < 0.05


def test_what_all_problems_agree_in_is_no_certainty_and_of_fewer_than_five_nothing_is_told(tmp_path):
    rows, z2 = by_hand(), 1.959964**2
    for row in rows:
        if row["problem"] in "012345":
            row["right"] = True  # four are left that have right and wrong ones
    found = analyse(rows, {"good": 1.0})
    # Ten problems of ten: Wilson's of an area between 0 and 1, Tango's of a correlation between -1 and 1.
    assert found["predicts"]["good"]["low"] == pytest.approx((10 - z2) / (10 + z2))
    assert found["predicts"]["bad"]["high"] == pytest.approx(-(10 - z2) / (10 + z2))
    assert analyse(by_hand(), {})["tells_right"]["good"]["low"] == pytest.approx(10 / (10 + z2))
    assert all(own is None for own in found["tells_right"].values())
    few = analyse([row for row in rows if row["problem"] in "0123"], {})
    assert few["predicts"]["good"] is None
    assert few["teachers"]["a"]["effectiveness"] is None
    page = write_diagnosis({"student": "s", "validation": 3, "problems": 4, "rationales": rows, **few}, tmp_path)
    assert "Of 0 scores tried" in page.read_text()
    assert ["good", "-", "-"] in [line.split() for line in describe(few)]


def test_a_diagnosis_that_is_there_already_is_moved_aside(tmp_path):
    found = {"student": "s", "validation": 3, "rationales": by_hand(), **analyse(by_hand(), {"good": 1.0})}
    for problems in (10, 11, 11):
        write_diagnosis({**found, "problems": problems}, tmp_path)
    kept = [json.loads(file.read_text())["problems"] for file in tmp_path.glob("diagnosis.json*")]
    assert sorted(kept) == [10, 11], "the first is kept beside the second; the third says the same"
    assert json.loads((tmp_path / "diagnosis.json").read_text())["problems"] == 11
    assert len(list(tmp_path.glob("diagnosis.html*"))) == 2
    cells = re.findall(r">([^<>]*)</text>", (tmp_path / "diagnosis.html").read_text())
    assert "\u22121" in cells, "good against bad, in tenths: longer numbers would run into each other"


UP, DOWN, ACROSS = (
    {"problems": 9, "value": value, "low": value - 0.2, "high": value + 0.2} for value in (0.5, -0.5, 0.1)
)


@pytest.mark.parametrize(
    ("weight", "scores", "told"),
    [
        (UP, {"a": UP}, "go to the rationales that help this student. Of 1 score tried, a predicts what helps."),
        (DOWN, {"a": DOWN, "b": UP}, "go away from the rationales that help this student. Of 2 scores tried, a and b"),
        (
            ACROSS,
            {"a": ACROSS, "b": None},
            "do not clearly follow what helps this student. Of 1 score tried, none clea",
        ),
        (None, {"a": ACROSS, "b": UP}, "cannot be told apart here. Of 2 scores tried, b predicts what helps."),
    ],
)
def test_the_headline_of_a_diagnosis_names_only_what_an_interval_shows(weight, scores, told, tmp_path):
    found = {"student": "s", "validation": 3, "problems": 10, "rationales": by_hand(), **analyse(by_hand(), {})}
    found["predicts"] = {"weight": weight, "cosine": UP, **scores}
    page = write_diagnosis(found, tmp_path).read_text()
    headline = re.sub(r"\s+", " ", re.search(r"<h1[^>]*>(.*?)</h1>", page, re.S)[1]).replace("&#39;", "'")
    assert headline.strip().startswith(f"Today's weights {told}")


def test_scores_that_know_nothing_explain_nothing():
    random = torch.Generator().manual_seed(0)
    rows = by_hand()
    for row in rows:
        row["effectiveness"] = float(torch.randn((), generator=random))
    assert analyse(rows, {})["coefficients"]["explained"] < 0.2


def test_problems_are_not_validated_on_themselves(read):
    sample, held = choose(read[1], 5, 3)
    assert (len(sample), len(held)) == (5, 3)
    assert not set(sample) & set(held)
    with pytest.raises(DataError, match=r"5 problems with several rationales .* got 4 and 8 of 12"):
        choose(read[1], 4, 3)  # an interval over four says nothing


def test_the_work_is_that_of_the_tokens_it_reads(read):
    tried, held = read[1][:2], read[1][5:6]
    prompt, sizes = len(held[0].prompt), [len(held[0].branches[k]) for k in held[0].right]
    validation = prompt + sum(sizes)
    expected = 3 * validation
    for problem in tried:
        own = [len(problem.branches[k]) for k in problem.present]
        expected += 4 * (len(problem.prompt) + sum(own))
        expected += sum(3 * (len(problem.prompt) + length) + validation for length in own)
    assert work(tried, held) == expected
    # Twice the problems: twice the work, but for the validation gradient.
    assert work(tried * 2, held) - 3 * validation == 2 * (expected - 3 * validation)


def test_the_cost_is_told_before_the_work_starts(world, tmp_path, base, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt  # as a user who finds it too long

    told = []
    monkeypatch.setattr("compact_distill.study.diagnose._scores", stop)
    monkeypatch.setattr("compact_distill.study.diagnose.say", told.append)
    with pytest.raises(KeyboardInterrupt):
        diagnose(config_from({**base, "output": str(tmp_path / "run")}), problems=5, validation=2)
    (cost,) = [line for line in told if "about" in line]
    assert re.search(r"20 rationales of 5 problems take about \d+ (s|min).*--problems N", cost)


def test_it_writes_a_page_and_the_numbers_behind_it(world, tmp_path, base):
    document = diagnose(config_from({**base, "output": str(tmp_path / "run")}), problems=5, validation=2)
    page = write_diagnosis(document, tmp_path / "diagnosis").read_text()
    assert "diagnosis of student, before any training" in page, "a folder is shown by its name, not its path"
    assert str(world) not in page
    assert json.loads((tmp_path / "diagnosis" / "diagnosis.json").read_text()) == document
    assert len(document["rationales"]) == 20
    for title in (
        "What predicts the effect",
        "What tells right from wrong",
        "Which scores say the same",
        "by regression",
    ):
        assert title in page
    assert {"adaptability_lens", "adaptability_probe", "consensus_heads", "agreement"} <= set(document["predicts"])


def test_scores_of_ones_own_are_tried_and_every_coefficient_stands_at_the_score_that_it_weighs(world, tmp_path, base):
    text = "import compact_distill as c\n"
    text += "for name in ('tried', 'asked'): c.register_score(name, lambda outputs: outputs.length_BK.float())\n"
    (tmp_path / "own_scores.py").write_text(text)
    own = {"tried": 0.5, "agreement": 0.25}
    compatibility = {"attention": "heads", "scores_from": str(tmp_path / "own_scores.py"), "extra_scores": own}
    more = {"compatibility": compatibility, "weighting": {"best": "asked"}, "output": str(tmp_path / "run")}
    document = diagnose(config_from({**base, **more}), problems=5, validation=2)
    assert {"tried", "asked", "agreement", "rank_surprisal"} <= set(document["predicts"])
    assert document["redundancy"]["tried"]["asked"]["value"] == 1
    coefficients = document["coefficients"]
    assert coefficients["configured"] == {
        "consensus_heads": 0.25, "adaptability_probe": 1.0, "difficulty": -0.25, **own
    }  # fmt: skip
    assert set(coefficients["configured"]) <= set(coefficients["regression"]), "else the page does not show it"


def test_a_diagnosis_that_is_there_is_moved_aside_and_told(tmp_path, capsys):
    document = {"predicts": {}, "tells_right": {}, "teachers": {}}
    out = tmp_path / "diagnosis"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("compact_distill.study.diagnose.diagnosis_page", lambda found: f"page of {found['number']}")
        for number in (1, 2, 2):  # the same again moves nothing
            write_diagnosis({**document, "number": number}, out)
    for name, first in (("diagnosis.html", "page of 1"), ("diagnosis.json", None)):
        (aside,) = out.glob(f"{name}.*")
        assert aside.read_text() == first if first else json.loads(aside.read_text())["number"] == 1
        assert f"that one is now {aside}" in capsys.readouterr().err if first else True
    assert (out / "diagnosis.html").read_text() == "page of 2"
