"""The page of a study: what it claims, and what it holds."""

from __future__ import annotations

import json

import pytest

from compact_distill.study.page import headline, student_name, write_page


@pytest.fixture
def document():
    """What a study of three arms found, by hand."""

    def arm(learned, low, high, seed):
        values = {"kl": 0.2, "shift": 0.1, "cka": 0.9}
        drift = {"learned": {**values, "by_seed": {name: [value] for name, value in values.items()}}}
        estimate = {"value": learned, "low": low, "high": high}
        entry = {"role": "learned", "rows": 3, **estimate, "by_seed": [learned]}
        follows = {"mqm": {"problems": 3, "value": -0.5, "low": -0.8, "high": -0.2}}
        curriculum = {"difficulty": [{"value": 0.1, "low": -0.1, "high": 0.3}]}
        return {"runs": {"0": f"arms/{seed}/seed-0"}, "tasks": {"t": entry}, "learned": estimate, "retained": estimate,
                "what": "as it says", "settings": {"weighting": seed}, "auc": None, "follows": follows,
                "curriculum": curriculum,
                "likelihood": {}, "drift": drift, "tokens": [100], "tokens_with_weight": [100]}  # fmt: skip

    def minus(value, low, high, p):
        return {"learned": {"seeds": 1, "value": value, "low": low, "high": high, "p": p, "p_holm": p}}

    arms = {
        "equal": arm(0.2, 0.1, 0.3, "equal"),
        "verified": arm(0.4, 0.3, 0.5, "verified"),
        "</script>": arm(0.2, 0.1, 0.3, "x"),
    }
    shares = {"equal": [1, 0, 0], "verified": [0, 1, 1], "</script>": [1, 0, 0]}
    return {
        "student": "s", "budget": "tokens", "seeds": [0], "base": {"tasks": {}, "likelihood": {}}, "arms": arms,
        "failed": {},
        "differences": {"equal": {"verified": minus(0.2, 0.1, 0.3, 0.01), "</script>": minus(0.0, -0.1, 0.1, 1.0)}},
        "rows": {"t": {"ids": ["a", "b", "c"], "arms": shares}},
    }  # fmt: skip


def test_the_headline_names_only_what_interval_and_corrected_p_show(document):
    assert headline(document) == "Verified learned more than equal."
    document["differences"]["equal"]["verified"]["learned"]["p_holm"] = 0.06
    assert headline(document) == "No arm differs clearly from equal, neither in what it learned nor in what it kept."
    document["differences"] = {}
    assert "no arm to compare with" in headline(document)


def test_an_arm_without_settings_of_its_own_says_so(document, tmp_path):
    document["arms"]["verified"]["settings"] = {}
    text = write_page(tmp_path, document, {"arms": {}}).read_text()
    assert "none: the base" in text
    assert "{}" not in text


def write_rows(folder, arm, rows):
    place = folder / "arms" / arm / "seed-0" / "eval" / "student"
    place.mkdir(parents=True)
    (place / "t.rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_page_holds_figures_links_and_no_markup_of_names(document, tmp_path):
    costs = {"arms": {arm: {"train_seconds": [s], "peak_memory_gib": [1.0], "steps": [10]}
                      for arm, s in (("equal", 20.0), ("verified", 30.0))}}  # fmt: skip
    text = write_page(tmp_path, document, costs).read_text()
    assert "verified solves 2 that equal does not" in text
    assert 'href="arms/verified/seed-0/report.html"' in text
    assert 'href="arms/verified/seed-0/report.html#explorer"' in text, "from the problems it solves, to its problems"
    assert text.count("</script>") == 1
    for title in ("Retained against learned", "Who solves what", "Learned: minus equal", "Next words, learned prompts",
                  "PCA shift, learned prompts", "Weights against mqm", "Does a curriculum show?", "Time of training",
                  "What is compared", "{weighting: verified}"):  # fmt: skip
        assert title in text
    assert "verified, seed 0: 1.5" in text, "of the time of equal"


def test_the_page_counts_the_runs_that_are_done(document, tmp_path):
    document["seeds"] = [0, 1, 2]
    assert "3 ways (1 run of each, on" in write_page(tmp_path, document, {"arms": {}}).read_text()
    equal = document["arms"]["equal"]
    equal |= {"runs": {"0": "arms/equal/seed-0", "1": "arms/equal/seed-1"}, "curriculum": {}, "drift": {}}
    text = write_page(tmp_path, document, {"arms": {}}).read_text()
    assert "3 ways (1 to 2 runs of each, on" in text
    assert "95 % intervals over runs and questions" in text


def test_a_figure_names_the_seeds_that_ran_and_not_their_places(document, tmp_path):
    for name, arm in document["arms"].items():
        arm["runs"] = {seed: f"arms/{name}/seed-{seed}" for seed in ("7", "11")}
        arm["curriculum"]["difficulty"] *= 2
        arm["drift"]["learned"]["by_seed"] = {"kl": [0.1, 0.2], "shift": [0.1, 0.2], "cka": [0.9, 0.9]}
    costs = {"arms": {arm: {"train_seconds": [20.0, 30.0], "peak_memory_gib": [1.0, 1.0], "steps": [10, 10]}
                      for arm in ("equal", "verified")}}  # fmt: skip
    text = write_page(tmp_path, document, costs).read_text()
    for told in ("verified, verified, seed 11: 0.1", "verified, seed 11: 0.2", "verified, seed 11: 1.2"):
        assert told in text
    assert "seed 1:" not in text
    assert "seed 2" not in text


def test_rows_that_one_arm_solves_show_what_both_wrote_as_text(document, tmp_path):
    row = {"id": "b", "question": "<b>how many?</b>", "gold": "4"}
    write_rows(tmp_path, "verified", [{**row, "answer": "4", "text": "2 + 2 = 4 <img src=x>", "verdict": "correct"}])
    write_rows(tmp_path, "equal", [{**row, "answer": "5", "text": "2 + 2 = 5", "verdict": "wrong"}])
    text = write_page(tmp_path, document, {"arms": {}}).read_text()
    assert "verified solves 2 that equal does not, the first 1 of them here" in text
    assert "&lt;b&gt;how many?&lt;/b&gt;" in text
    assert "<b>how many?" not in text
    assert "2 + 2 = 4 &lt;img src=x&gt;" in text
    assert "<img src=x" not in text
    assert "2 + 2 = 5" in text
    assert "seed 0, right: <bdi>4</bdi>" in text
    assert "seed 0, wrong: <bdi>5</bdi>" in text


def test_of_several_seeds_the_one_is_shown_that_says_why(document, tmp_path):
    equal = document["arms"]["equal"]
    equal |= {"runs": {"0": "arms/equal/seed-0", "1": "arms/equal1/seed-0"}, "curriculum": {}, "drift": {}}
    row = {"id": "b", "question": "q", "gold": "4"}
    write_rows(tmp_path, "verified", [{**row, "answer": "4", "text": "right", "verdict": "correct"}])
    write_rows(tmp_path, "equal", [{**row, "answer": "4", "text": "by luck", "verdict": "correct"}])
    write_rows(tmp_path, "equal1", [{**row, "answer": "5", "text": "the error", "verdict": "wrong"}])
    text = write_page(tmp_path, document, {"arms": {}}).read_text()
    assert "the error" in text
    assert "by luck" not in text


def test_a_folder_is_shown_by_its_name_and_a_hub_model_by_all_of_it(tmp_path):
    assert student_name(str(tmp_path)) == tmp_path.name
    assert student_name("Org/Model") == "Org/Model"
