"""What a teacher may be called, and where it may live."""

from __future__ import annotations

import pytest

from compact_distill.config.teachers import TeacherConfig
from compact_distill.config.yaml import messages
from compact_distill.data import load_instances
from compact_distill.runs.files import json_line

ADDRESS = "http://localhost:1/v1"


@pytest.mark.parametrize(
    "url",
    [
        "http://user:sk-secret@host/v1",
        "http://sk-secret@host/v1",
        "user:sk-secret@host/v1",
        "http://host/v1?key=sk-secret",
        "http://host/v1#key=sk-secret",
        "http://host/v1;key=sk-secret",
        "http://host;key=sk-secret/v1",
        "http://host/v1;/chat",
    ],
)
def test_an_address_with_a_secret_in_any_part_is_refused_and_not_repeated(url):
    with pytest.raises(ValueError, match="must hold nothing but host, port and path") as caught:
        TeacherConfig(name="t", model="m", base_url=url)
    assert "sk-secret" not in caught.value.errors()[0]["msg"]


@pytest.mark.parametrize("url", ["http://localhost:8000/v1", "https://api.openai.com/v1/", "http://[::1]:80/a%20b"])
def test_a_plain_address_is_taken_as_it_is(url):
    assert TeacherConfig(name="t", model="m", base_url=url).base_url == url


@pytest.mark.parametrize(
    "key",
    ["gsk_abcdefGHIJ0123456789", "hf_AbCdEfGhIjKlMnOpQrStUvWx", "sk_live_abcdefghijklm", "xai_0123456789abcdefgh",
     "r8_AbCdEf0123456789xyz", "a1b2c3d4e5f6a7b8c9d0e1f2"],
)  # fmt: skip
def test_a_key_in_the_place_of_a_variables_name_is_refused_and_not_repeated(key):
    with pytest.raises(ValueError, match="looks like a key itself") as caught:
        TeacherConfig(name="t", model="m", base_url=ADDRESS, api_key_env=key)
    assert all(key not in text for _, text in messages(caught.value, TeacherConfig))


@pytest.mark.parametrize(
    "name",
    ["QWQ_KEY", "hf_token", "sk_my_key", "TOGETHERAI2026_API_KEY_2", "MYVERYLONGVARIABLE2026", "myverylongvariable"],
)
def test_a_variables_name_is_taken_as_it_is(name):
    assert TeacherConfig(name="t", model="m", base_url=ADDRESS, api_key_env=name).api_key_env == name


@pytest.mark.parametrize(
    "name", ["", "  ", " qwq", "qwq\t", "a\nb", "a\x1b[31mb", "a\u202eb", "\ufeffa", "qwq#1", "a#12"]
)
def test_a_name_that_cannot_be_read_back_is_refused_where_it_is_configured(name):
    with pytest.raises(ValueError, match="name"):
        TeacherConfig(name=name, model="m", base_url=ADDRESS)


@pytest.mark.parametrize("name", ["qwq", "Qwen/QwQ-32B", "gpt 5", "über", "c#", "#1 teacher", "x" * 5000])
def test_every_other_name_is_read_back_from_training_data(tmp_path, name):
    TeacherConfig(name=name, model="m", base_url=ADDRESS, samples=2)
    rationales = [{"teacher": name, "text": "The answer is 4.", "sample": sample} for sample in (0, 1)]
    path = tmp_path / "data.jsonl"
    path.write_text(json_line({"id": "p", "question": "q", "answer": "4", "rationales": rationales}))
    (instance,) = load_instances(path)
    assert instance.teachers == (name, f"{name}#1")
