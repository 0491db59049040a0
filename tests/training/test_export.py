"""The cards: true to the run, complete, and safe to render."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from compact_distill.config.file import load_config
from compact_distill.data import export_instances, load_instances
from compact_distill.errors import ConfigError, RunError
from compact_distill.report.read import PairedChange, read_run
from compact_distill.report.trace import arrange_trace
from compact_distill.students.load import load_student
from compact_distill.students.prompt import prompt_tokens
from compact_distill.training import export
from compact_distill.training.export import dataset_card, merge, model_card, push_card, write_card
from models import byte_level_tokenizer


def front_and_body(card: str) -> tuple[dict, str]:
    _, front, body = card.split("---\n", 2)
    return yaml.safe_load(front), body


def change(role: str, low: float, high: float, **more) -> PairedChange:
    return PairedChange(f"{role}-task", role, 100, 0.5, 0.4, (low + high) / 2, low, high, 3, 13, 0.02, **more)


def test_a_run_ends_with_a_card_of_its_data_teachers_settings_and_results(finished):
    front, body = front_and_body((finished / "student" / "README.md").read_text())
    assert front["library_name"] == "peft"
    assert front["license"] == "apache-2.0"
    assert "base_model" not in front  # a folder of this machine
    assert [entry["dataset"]["name"] for entry in front["model-index"][0]["results"]] == ["kept", "sums"]
    assert "6 problems (SHA-256 " in body
    assert "| right | 6 | 100 % | 0." in body
    assert "| MIT |" in body
    assert r"| wr\|ong | 6 | 0 % | 0." in body
    assert "| not stated |" in body
    assert "Made &lt;up&gt;." in body
    assert "learning\\_rate: 0.05" in body
    assert "estimator: probe, " in body  # defaults too: another version may have others
    assert "AutoPeftModelForCausalLM.from_pretrained" in body
    assert "2601.13992" in body
    assert "Its base was a folder" in body
    assert str(finished) not in body


@pytest.mark.parametrize("chat", [False, True])
def test_the_cards_code_asks_with_the_prompt_of_training_and_gets_the_students_answer(finished, tmp_path, chat):
    shutil.copytree(finished, tmp_path / "run")
    config = load_config(finished / "config.yaml")
    if chat:
        byte_level_tokenizer(chat=True).save_pretrained(tmp_path / "run" / "student")
        text = config.text.model_copy(
            update={"system": 'Be "brief".\n', "template_options": {"enable_thinking": False}}
        )
        config = config.model_copy(update={"text": text})
    card = model_card(replace(read_run(finished), path=tmp_path / "run"), config)
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    code = code.replace("PATH_OR_NAME", str(tmp_path / "run" / "student")).replace('"..."', '"What is 2 + 1?"')
    made: dict = {}
    exec(code.replace("max_new_tokens=512", "max_new_tokens=4"), made)
    model, tokenizer = load_student(tmp_path / "run" / "student")
    if chat:
        prompt = prompt_tokens(tokenizer, config.text.messages("What is 2 + 1?"), config.text.template_options)
    else:
        prompt = tokenizer("Question: What is 2 + 1?\nAnswer:")["input_ids"]
    assert made["inputs"]["input_ids"].tolist() == [list(prompt)]
    model.eval()
    assert made["written"][0, len(prompt)] == model(torch.tensor([list(prompt)])).logits[0, -1].argmax()


def test_a_run_of_a_study_is_called_by_its_arm_and_seed(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "arms" / "verified" / "seed-0")
    _, body = front_and_body(
        model_card(read_run(tmp_path / "arms" / "verified" / "seed-0"), load_config(finished / "config.yaml"))
    )
    assert body.startswith("\n# verified, seed-0\n")


def test_mean_weights_sum_to_one_over_teachers_that_always_take_part(finished):
    _, body = front_and_body(model_card(read_run(finished), load_config(finished / "config.yaml")))
    weights = [float(line.split("|")[-3]) for line in body.splitlines() if line.startswith(("| right", "| wr"))]
    assert abs(sum(weights) - 1) < 2e-3


def test_rationales_without_weight_are_not_among_those_used(finished):
    """Only p0 and p1 are trained on, and of them the right rationales alone."""
    rows = [
        {"id": f"p{i}", "teachers": ["right", "wr|ong"], "difficulty": [1.0, 1.0], "weights": [1.0, 0.0]}
        for i in range(2)
    ]
    run = replace(read_run(finished), trace=arrange_trace(rows))
    _, body = front_and_body(model_card(run, load_config(finished / "config.yaml")))
    assert "2 of 6 problems (SHA-256 " in body
    assert "| right | 2 | 100 % | 1.000 | MIT |" in body
    assert "| wr" not in body
    assert "10 more rationales had no weight in any step, and are not counted here." in body


def test_a_student_that_was_an_adapter_is_told_with_its_own_rank_and_its_base(finished, tmp_path):
    (tmp_path / "old").mkdir()
    settings = {"base_model_name_or_path": "Org/Base", "revision": "abc", "r": 4}
    (tmp_path / "old" / "adapter_config.json").write_text(json.dumps(settings))
    config = load_config(finished / "config.yaml").model_copy(update={"student": str(tmp_path / "old"), "lora": None})
    front, body = front_and_body(model_card(read_run(finished), config))
    assert front["base_model"] == "Org/Base"
    assert "A LoRA adapter for `Org/Base` at `abc` (the adapter `old` trained further), trained with" in body
    assert re.search(r"\| LoRA \| r: 2, alpha: 32(\.0)?, dropout: 0\.1 \|", body)
    assert "Its base was a folder" not in body


def test_a_student_of_which_all_weights_were_trained_has_no_lora_in_its_card(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "student" / "adapter_config.json").unlink()
    _, body = front_and_body(model_card(read_run(run), load_config(finished / "config.yaml")))
    assert "| LoRA | none: all weights are trained |" in body
    assert "trained further" not in body


def test_a_student_of_answers_alone_is_not_said_to_reason(finished):
    config = load_config(finished / "config.yaml")
    alone = config.model_copy(update={"text": config.text.model_copy(update={"rationale": "answer"})})
    front, body = front_and_body(model_card(read_run(finished), alone))
    assert front["tags"] == ["compact-distill", "distillation"]
    assert "on several teachers' answers at once, each with a weight of its own." in body
    assert "It answers at once, without reasoning." in body
    assert not re.search("The answer is|worked-out", body)
    front, body = front_and_body(model_card(read_run(finished), config))
    assert "chain-of-thought" in front["tags"]
    assert "Its answers end in the form `The answer is {answer}.`." in body


def test_a_loss_that_the_interval_shows_is_called_forgotten_and_others_are_not(finished):
    run, config = read_run(finished), load_config(finished / "config.yaml")
    lost = model_card(replace(run, changes=[change("retained", -0.2, -0.1)]), config)
    assert "**It forgot:** retained-task (-15.0 points (-20.0 to -10.0))." in lost
    unclear = model_card(replace(run, changes=[change("retained", -0.2, 0.1)]), config)
    assert "It forgot" not in unclear
    assert "no loss shows beyond chance" in unclear
    # Of a text's likelihood more is worse.
    nats = model_card(replace(run, changes=[change("retained", 0.1, 0.2, metric="nats_per_token")]), config)
    assert "**It forgot:** retained-task (+0.150 (+0.100 to +0.200))." in nats
    assert "unknown" in model_card(replace(run, changes=[change("learned", 0.1, 0.2)]), config)
    same = replace(change("retained", 0.0, 0.0), gained=0, lost=0)
    assert "| none: not one of 100 rows was gained or lost |" in model_card(replace(run, changes=[same]), config)


def test_a_student_without_benchmarks_says_so_and_a_hub_base_is_named(finished):
    run = replace(read_run(finished), changes=[], results=[])
    config = load_config(finished / "config.yaml").model_copy(update={"student": "Org/My_Model@abc"})
    front, body = front_and_body(model_card(run, config))
    assert "Not evaluated" in body
    assert front["base_model"] == "Org/My_Model"
    assert "`Org/My_Model` at `abc`" in body
    assert "Its base was a folder" not in body


def test_texts_of_others_cannot_act_in_a_card(finished):
    config = load_config(finished / "config.yaml")
    hostile = config.card.model_copy(update={"data": "<script>x</script> [a](javascript:b) \x1b[31m | \n# head"})
    card = model_card(read_run(finished), config.model_copy(update={"card": hostile}))
    assert "<script>" not in card
    assert "[a](" not in card
    assert "\x1b" not in card
    assert "\n# head" not in card


def test_the_card_is_written_again_only_where_something_changed(finished):
    path = finished / "student" / "README.md"
    before = path.stat().st_mtime_ns
    assert write_card(read_run(finished)) == path
    assert path.stat().st_mtime_ns == before


def test_a_dataset_card_counts_what_was_written(finished, tmp_path):
    instances = load_instances(str(finished.parent / "data.jsonl"))
    counts = export_instances(instances, tmp_path / "rows.jsonl")
    card = dataset_card(instances, counts, "messages", "my_rows`.jsonl")
    assert "12 rows of `messages`" in card
    assert r"| wr\|ong | 6 | not stated |" in card
    assert """data_files="my_rows'.jsonl")""" in card  # as code, where Markdown's escapes would show


def test_the_card_goes_to_the_hub_and_a_refusal_ends_nothing(finished, monkeypatch, capsys):
    sent = []
    monkeypatch.setattr("huggingface_hub.HfApi.upload_file", lambda self, **what: sent.append(what))
    push_card(finished, "me/student")
    assert sent[0]["repo_id"] == "me/student"
    assert sent[0]["path_or_fileobj"] == str(finished / "student" / "README.md")

    def refuse(self, **what):
        raise OSError("403: not yours")

    monkeypatch.setattr("huggingface_hub.HfApi.upload_file", refuse)
    push_card(finished, "me/student")
    assert "me/student did not take it (403: not yours)" in capsys.readouterr().err


def test_the_merged_model_computes_what_adapter_and_base_did(finished, tmp_path):
    out = tmp_path / "whole"
    difference = merge(finished / "student", out)
    assert 0 < difference < 1e-4
    assert not (out / "adapter_config.json").exists()
    assert (out / "README.md").is_file()
    adapter, tokenizer = load_student(finished / "student")
    adapter.eval()
    base, _ = load_student(finished.parent / "student")
    whole = AutoModelForCausalLM.from_pretrained(out)
    ids = torch.tensor([tokenizer("What is 2 + 1?")["input_ids"]])
    with torch.no_grad():
        expected, got, plain = adapter(input_ids=ids).logits, whole(input_ids=ids).logits, base(input_ids=ids).logits
    assert torch.allclose(expected, got, atol=1e-5)
    assert not torch.allclose(expected, plain, atol=1e-3)


def test_a_merged_models_card_loads_it_as_what_it_is_and_one_that_somebody_wrote_stays(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    merge(run / "student", tmp_path / "whole")
    front, body = front_and_body((tmp_path / "whole" / "README.md").read_text())
    assert (front["library_name"], front["license"]) == ("transformers", "apache-2.0")
    assert "`student` with a LoRA adapter merged into it, trained with" in body
    assert "AutoPeft" not in body
    assert "Its base was a folder" not in body
    (code,) = re.findall(r"```python\n(.*?)```", body, re.S)
    made: dict = {}
    exec(code.replace("PATH_OR_NAME", str(tmp_path / "whole")).replace("max_new_tokens=512", "max_new_tokens=4"), made)
    assert made["written"].shape[1] > made["inputs"]["input_ids"].shape[1]
    (run / "student" / "README.md").write_text("my own words")
    merge(run / "student", tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text() == "my own words"


def test_a_plain_mixs_card_speaks_of_rationales_that_count_alike(finished):
    run, config = read_run(finished), load_config(finished / "config.yaml")
    several = model_card(run, config)
    assert "rationales (worked-out solutions) at once, each with a weight of its own." in several
    assert "A problem's weights sum to 1" in several
    alone = {
        f"{name}#{teacher}": replace(problem, rationales={teacher: rationale})
        for name, problem in run.problems.items()
        for teacher, rationale in problem.rationales.items()
    }
    mixed = config.model_copy(update={"example": "rationale", "weighting": "equal"})
    card = model_card(replace(run, problems=alone, trace=None), mixed)
    assert "rationales (worked-out solutions), each an example of its own." in card
    assert f"{len(alone)} rationales of {len(run.problems)} problems" in card
    assert "| example | rationale |" in card
    assert "weights sum to 1" not in card


def test_whoever_may_read_a_merged_models_settings_may_read_its_weights(finished, tmp_path):
    merge(finished / "student", tmp_path / "whole")
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "whole").iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]
    assert len(set(modes.values())) == 1


def test_a_card_that_somebody_has_written_into_is_kept_beside_the_new_one(finished, tmp_path, capsys):
    run = shutil.copytree(finished, tmp_path / "run")
    path = run / "student" / "README.md"
    path.write_bytes("my own words, é".encode("latin-1"))
    write_card(read_run(run))
    (kept,) = path.parent.glob("README.md.*")
    assert kept.read_bytes() == "my own words, é".encode("latin-1")
    assert kept.name in capsys.readouterr().err
    assert path.read_text(encoding="utf-8").startswith("---")


def test_a_merge_that_changes_the_model_is_refused_and_leaves_nothing(finished, tmp_path, monkeypatch):
    monkeypatch.setitem(export._TOLERANCE, "torch.float32", 0.0)
    with pytest.raises(RunError, match=r"merged model differs .* nothing was written"):
        merge(finished / "student", tmp_path / "whole")
    assert list(tmp_path.iterdir()) == []


def test_bad_targets_and_whole_models_are_refused_before_anything_is_loaded(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "load_student", lambda *_: pytest.fail("loaded"))
    with pytest.raises(ConfigError, match="must be an adapter's folder"):
        merge(finished.parent / "student", tmp_path / "whole")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(ConfigError, match="must be a new or empty folder"):
        merge(finished / "student", tmp_path / "full")
    with pytest.raises(ConfigError, match="does not exist; make it first"):
        merge(finished / "student", tmp_path / "no" / "where")
