"""The page of a study: what it claims, and what it holds."""

from __future__ import annotations

import json

import pytest

from compact_distill.study.page import headline, student_name, write_page


@pytest.fixture
def document():
    """What a study of three arms found, by hand."""

    def arm(learned, low, high, seed):
        drift = {"learned": {"kl": 0.2, "shift": 0.1, "cka": 0.9}}
        estimate = {"value": learned, "low": low, "high": high}
        entry = {"role": "learned", "rows": 3, **estimate, "by_seed": [learned]}
        return {"runs": {"0": f"arms/{seed}/seed-0"}, "tasks": {"t": entry}, "learned": estimate, "retained": estimate,
                "auc": None,
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


def test_the_page_holds_figures_links_and_no_markup_of_names(document, tmp_path):
    folder = tmp_path / "arms" / "verified" / "seed-0" / "eval" / "student"
    folder.mkdir(parents=True)
    row = {"id": "b", "question": "<b>how many?</b>", "gold": "4", "answer": "4"}
    (folder / "t.rows.jsonl").write_text(json.dumps(row) + "\n")
    text = write_page(tmp_path, document, {"arms": {}}).read_text()
    assert "verified solves 2 that equal does not" in text
    assert "&lt;b&gt;how many?&lt;/b&gt;" in text
    assert "<b>how many?" not in text
    assert 'href="arms/verified/seed-0/report.html#explorer"' in text
    assert text.count("</script>") == 1
    for title in ("Retained against learned", "Who solves what", "Learned: minus equal", "Drift"):
        assert title in text


def test_a_folder_is_shown_by_its_name_and_a_hub_model_by_all_of_it(tmp_path):
    assert student_name(str(tmp_path)) == tmp_path.name
    assert student_name("Org/Model") == "Org/Model"
