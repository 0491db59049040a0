from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compact_distill.errors import ConfigError
from compact_distill.teachers.secrets import Redactor, read_key

KEY = "sk-proj-Zx81+/AbcdEfgh0123456789qrstuv"


@pytest.fixture
def redact(monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    return Redactor(["MY_KEY", None])


def test_a_key_is_cut_out_wherever_it_stands(redact):
    assert redact(f"Bearer {KEY}, and again {KEY}.") == "Bearer [MY_KEY], and again [MY_KEY]."


def test_a_key_is_cut_out_in_its_url_form_too(redact):
    assert "0123456789" not in redact("key=sk-proj-Zx81%2B%2FAbcdEfgh0123456789qrstuv")


@given(start=st.integers(0, len(KEY) - 12), length=st.integers(12, len(KEY)))
def test_twelve_characters_of_a_key_are_cut_out(start, length):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MY_KEY", KEY)
        part = KEY[start : start + length]
        assert Redactor(["MY_KEY"])(f"before {part} after") == "before [MY_KEY] after"


def test_other_text_stays_as_it_is(redact):
    text = "The sk-proj- project, 0123 and Abcd: the answer is 4."
    assert redact(text) == text


def test_a_placeholder_is_no_secret(monkeypatch):
    monkeypatch.setenv("MY_KEY", "EMPTY")
    assert Redactor(["MY_KEY"])("The set is EMPTY.") == "The set is EMPTY."


def test_a_key_that_is_not_set_says_which_and_how(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"MY_KEY must hold the key, but it is not set; `export MY_KEY=\.\.\.`"):
        read_key("MY_KEY")
    assert read_key(None) is None
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    assert read_key("MY_KEY") == KEY


@pytest.mark.parametrize("value", ["sk-\u00e9" * 4, "two words", "line\nbreak"])
def test_a_key_that_no_header_can_carry_is_refused_and_not_repeated(monkeypatch, value):
    monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(ConfigError, match="the key in MY_KEY must be plain ASCII") as caught:
        read_key("MY_KEY")
    assert value not in str(caught.value)
