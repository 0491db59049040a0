"""Every fault that a server can show, on the wire."""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import inspect
import json
import re
from pathlib import Path

import pytest
import yaml

from compact_distill.config.teachers import TeacherConfig
from compact_distill.errors import ConfigError
from compact_distill.records import Problem
from compact_distill.teachers.backends.openai import OpenAITeacher, retry_after
from compact_distill.teachers.protocol import (
    FATAL,
    FaultKind,
    Prompting,
    Redactor,
    SamplingParams,
    TeacherFault,
    TeacherRequest,
)
from teachers.server import Reply, Server, fails, says

KEY = "sk-secret-0123456789abcdefghij"


def request(system="be brief", **decoding):
    return TeacherRequest(Problem("p", "q", "4"), 0, system, "2 + 2?", SamplingParams(**decoding), 7, "k")


def ask(reply, key_env=None, system="be brief", **decoding):
    """Ask a server that always replies so; returns the answer and the request as the server saw it."""

    async def once(url):
        teacher = OpenAITeacher("t", "m", url, key_env, Redactor([key_env]))
        try:
            return await teacher.ask(request(system, **decoding))
        finally:
            await teacher.close()

    with Server(lambda body, number: reply) as server:
        return asyncio.run(once(server.url)), server.seen[0]


def fault(reply, key_env=None, system="be brief"):
    with pytest.raises(TeacherFault) as caught:
        ask(reply, key_env, system)
    return caught.value


def test_a_request_carries_what_the_configuration_says():
    decoding = {"temperature": 0.5, "top_p": None, "max_tokens": 30, "extra": {"top_k": 5}}
    _, seen = ask(says("4"), **decoding)
    assert seen.body == {
        "model": "m",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "2 + 2?"}],
        "seed": 7,
        "temperature": 0.5,
        "max_tokens": 30,
        "top_k": 5,
    }


def test_no_key_of_the_environment_is_sent_unless_it_is_named(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    _, seen = ask(says("4"))
    assert KEY not in str(seen.headers)
    _, seen = ask(says("4"), key_env="OPENAI_API_KEY")
    assert seen.headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("key_env", [None, "MY_KEY"])
def test_nothing_that_the_openai_client_reads_from_the_environment_reaches_a_named_server(monkeypatch, key_env):
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-openai-0123456789")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "sk-admin-0123456789")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-mine")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-of-mine")
    monkeypatch.setenv("OPENAI_WEBHOOK_SECRET", "hook-of-mine")
    monkeypatch.setenv(
        "OPENAI_CUSTOM_HEADERS", "X-Team: team-of-mine\nAuthorization: Bearer other-of-mine\nUser-Agent: agent-of-mine"
    )
    _, seen = ask(says("4"), key_env=key_env)
    assert "of-mine" not in str(seen.headers)
    assert "sk-of-openai" not in str(seen.headers)
    assert "sk-admin" not in str(seen.headers)
    assert seen.headers.get("authorization") == (None if key_env is None else f"Bearer {KEY}")
    # Nor does it tell what machine this is.
    assert not [name for name in seen.headers if name.startswith("x-")]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_to_another_host_is_refused(monkeypatch, status):
    monkeypatch.setenv("MY_KEY", KEY)
    with Server(lambda body, number: says("4")) as other:
        found = fault(Reply(status, {"Location": f"{other.url}/chat/completions?key=secret"}), key_env="MY_KEY")
        assert other.seen == []
    assert found.kind is FaultKind.UNUSABLE
    assert f"HTTP {status} leads to http://127.0.0.1:{other.port}; name the address in `base_url`" in str(found)
    assert "secret" not in str(found)


def test_a_redirect_on_the_same_host_is_followed():
    def behave(body, number):
        return Reply(307, {"Location": "/v1/moved/chat/completions"}) if number == 0 else says("4")

    async def once(url):
        return await OpenAITeacher("t", "m", url, None, Redactor([])).ask(request())

    with Server(behave) as server:
        assert asyncio.run(once(server.url)).text == "4"
        assert len(server.seen) == 2


def test_null_leaves_any_parameter_out():
    nothing = TeacherRequest(Problem("p", "q", "4"), 0, None, "2 + 2?", SamplingParams(), None, "k")

    async def once(url):
        return await OpenAITeacher("t", "m", url, None, Redactor([])).ask(nothing)

    with Server(lambda body, number: says("4")) as server:
        asyncio.run(once(server.url))
        assert server.seen[0].body == {"model": "m", "messages": [{"role": "user", "content": "2 + 2?"}]}


def error(body, status=400):
    return Reply(status, body=json.dumps(body).encode())


def openai_error(message, param=None):
    return error({"error": {"message": message, "type": "invalid_request_error", "param": param, "code": None}})


@pytest.mark.parametrize(
    ("reply", "remedy"),
    [
        (
            openai_error(
                "Unsupported value: 'temperature' does not support 0.7 with this model. "
                "Only the default (1) value is supported.",
                "temperature",
            ),
            "set `temperature: null` for this teacher",
        ),
        (openai_error("Unsupported parameter: 'top_p' is not supported with this model."), "set `top_p: null`"),
        (error({"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not "
                            "permitted"}]}, 422), "set `seed: null`"),
        (error({"message": "Unrecognized request argument supplied: seed"}), "set `seed: null`"),
        (error({"error": "max_tokens must not be sent: invalid argument"}), "set `max_tokens: null`"),
        (openai_error("unexpected keyword: top_k"), "take top_k out of `extra`"),
    ],
)  # fmt: skip
def test_a_refusal_that_names_a_parameter_says_which_key_to_set(reply, remedy):
    with pytest.raises(TeacherFault, match="HTTP 4") as caught:
        ask(reply, temperature=0.7, top_p=0.95, max_tokens=100, extra={"top_k": 5})
    assert remedy in str(caught.value)
    assert caught.value.kind is FaultKind.BAD_REQUEST


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 4096 tokens, however you requested 5000 tokens",
        "the temperature of the GPU is too high",
        "the model `n` is not supported",
    ],
)
def test_a_refusal_that_names_no_parameter_of_the_request_blames_none(message):
    found = str(fault(openai_error(message)))
    assert "null" not in found
    assert "check the decoding settings" in found


def test_a_server_that_wants_max_completion_tokens_gets_it_and_is_told_once(capsys):
    refusal = openai_error(
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        "max_tokens",
    )

    async def thrice(url):
        teacher = OpenAITeacher("t", "m", url, None, Redactor([]))
        return await asyncio.gather(*(teacher.ask(request(max_tokens=100)) for _ in range(3)))

    with Server(lambda body, number: refusal if "max_tokens" in body else says("4")) as server:
        assert [answer.text for answer in asyncio.run(thrice(server.url))] == ["4"] * 3
        assert [seen.body["max_completion_tokens"] for seen in server.seen[-3:]] == [100] * 3
    assert capsys.readouterr().err.count("refuses max_tokens") == 1


def test_openais_own_server_gets_the_name_that_its_reference_asks_for():
    teacher = OpenAITeacher("t", "gpt-6.1-terra", "https://api.openai.com/v1", None, Redactor([]))
    assert teacher._body(request(max_tokens=100))["max_completion_tokens"] == 100
    assert "max_tokens" not in teacher._body(request(max_tokens=100))


@pytest.mark.parametrize("page", ["README.md", "docs/teachers.md"])
def test_the_hosted_example_sends_what_the_apis_published_reference_takes(page):
    """The reference as the openai client carries it: its types of the request's body, and which models will go."""
    from openai.types.chat.completion_create_params import CompletionCreateParamsBase
    from openai.types.shared import chat_model

    deprecated = inspect.getsource(chat_model).partition("Deprecated values")[2]
    assert '"gpt-5-mini"' in deprecated  # it was the example once

    text = (Path(__file__).resolve().parents[3] / page).read_text(encoding="utf-8")
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    given = [teacher for block in blocks for teacher in block.get("teachers", ()) if "openai.com" in str(teacher)]
    assert given
    for teacher in map(TeacherConfig.model_validate, given):
        problem = Problem("p", "2 + 2?", "4")
        asked = Prompting(teacher).request(problem, 0, "k")
        body = OpenAITeacher("t", teacher.model, teacher.base_url, None, Redactor([]))._body(asked)
        assert body.keys() <= set(CompletionCreateParamsBase.__annotations__)
        assert teacher.model in chat_model.ChatModel.__args__
        assert f'"{teacher.model}"' not in deprecated
        # Reasoning models: a limit by its newer name, no sampling settings, no seed (which some refuse).
        assert body.keys() == {"model", "messages", "max_completion_tokens"}
        assert body["max_completion_tokens"] == teacher.max_tokens


def test_a_limit_that_hidden_thoughts_use_up_is_a_truncated_answer():
    said = "Could not finish the message because max_tokens or model output limit was reached. Please try again."
    answer, _ = ask(openai_error(said), max_tokens=16)
    assert (answer.text, answer.finish_reason) == ("", "length")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"detail": [{"loc": ["body", "messages", 0], "msg": "Field required"}, {"msg": "too long"}]},
         "messages.0: Field required; too long"),
        ({"detail": "Not here"}, "Not here"),
        ({"error": "model requires more memory"}, "model requires more memory"),
        ({"error": {"message": "of OpenAI"}}, "of OpenAI"),
        ({"object": "error", "message": "of vLLM", "code": 400}, "of vLLM"),
        ([{"error": {"message": "of a list"}}], "of a list"),
        ({"errors": ["one", {"message": "two"}]}, "one; two"),
        ({"odd": 1}, '{"odd": 1}'),
    ],
)  # fmt: skip
def test_what_an_errors_body_says_is_shown_whatever_its_form(body, said):
    assert str(fault(error(body))).startswith(f"HTTP 400: {said}; ")


def test_an_account_without_money_ends_the_teacher_and_says_so(monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    found = fault(fails(402, "Insufficient credits"), key_env="MY_KEY")
    assert found.kind is FaultKind.UNPAID
    assert found.kind in FATAL
    assert "the account of the key in MY_KEY has no money left" in str(found)


@pytest.mark.parametrize(
    "message",
    [
        "System role not supported",
        "This model does not support system messages",
        "Developer instruction is not enabled; system instruction unsupported",
        "Conversation roles must alternate user/assistant/user/assistant/...",
    ],
)
def test_a_model_without_system_messages_says_which_key_to_set(message):
    assert "set `system: null` for this teacher" in str(fault(fails(400, message)))
    assert "system: null" not in str(fault(fails(400, message), system=None))  # none was sent


@pytest.mark.parametrize(
    "message", ["The system is overloaded", "the message is too long", "this model has no role here", "file system"]
)
def test_a_refusal_about_something_else_does_not_blame_the_system_message(message):
    assert "system: null" not in str(fault(fails(400, message)))


@pytest.mark.parametrize("reason", ["error", "abort", "ERROR"])
def test_a_server_that_breaks_off_is_asked_again(reason):
    found = fault(says("2 + 2 is", finish_reason=reason))
    assert found.kind is FaultKind.SERVER
    assert "broke off" in str(found)


@pytest.mark.parametrize(
    ("message", "said", "thought"),
    [
        ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "2 + "}, {"text": "2"}]},
                      {"type": "text", "text": "4"}]}, "4", "2 + 2"),
        ({"content": [{"type": "thinking", "thinking": "2 + 2", "signature": "xyz"}, {"type": "text", "text": "4"}]},
         "4", "2 + 2"),
        ({"content": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "2 + 2"}]},
                      {"type": "output_text", "text": "4"}]}, "4", "2 + 2"),
        ({"content": ["4"]}, "4", ""),
        ({"content": [{"type": "image_url", "image_url": "x"}, {"type": "text", "text": "4"}]}, "4", ""),
        ({"content": "4", "reasoning_details": [{"type": "reasoning.text", "text": "2 + "},
                                                {"type": "reasoning.summary", "summary": "2"},
                                                {"type": "reasoning.encrypted", "data": "xyz"}]}, "4", "2 + 2"),
        ({"content": "4", "reasoning": "2 + 2", "reasoning_details": [{"text": "2 + 2"}]}, "4", "2 + 2"),
        ({"content": "4", "reasoning": {"content": "2 + 2"}}, "4", "2 + 2"),
        ({"content": "4", "thinking": "2 + 2"}, "4", "2 + 2"),
        ({"content": "4", "reasoning": None, "reasoning_details": []}, "4", ""),
    ],
)  # fmt: skip
def test_structured_thoughts_are_kept_apart_from_what_is_said(message, said, thought):
    answer, _ = ask(says(message.pop("content"), **message))
    assert (answer.text, answer.reasoning) == (said, thought)


def test_an_answer_keeps_what_the_server_says_of_it():
    answer, _ = ask(says("4", finish_reason="length"))
    assert (answer.text, answer.finish_reason, answer.refused) == ("4", "length", False)
    assert (answer.prompt_tokens, answer.completion_tokens, answer.model) == (12, 7, "served-model")


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_in_a_field_of_its_own_is_kept_apart(field):
    answer, _ = ask(says("4", **{field: "2 + 2 = 4"}))
    assert (answer.text, answer.reasoning) == ("4", "2 + 2 = 4")


def test_content_null_is_an_empty_answer():
    answer, _ = ask(says(None))
    assert answer.text == ""


def test_content_in_parts_is_joined():
    answer, _ = ask(says([{"type": "text", "text": "The answer "}, {"type": "text", "text": "is 4."}]))
    assert answer.text == "The answer is 4."


@pytest.mark.parametrize("reply", [says(None, refusal="I cannot"), says("", finish_reason="content_filter")])
def test_refusals_are_the_servers_own_word(reply):
    answer, _ = ask(reply)
    assert answer.refused


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, FaultKind.BAD_REQUEST),
        (401, FaultKind.UNAUTHORISED),
        (403, FaultKind.FORBIDDEN),
        (404, FaultKind.NOT_FOUND),
        (408, FaultKind.TIMEOUT),
        (422, FaultKind.BAD_REQUEST),
        (429, FaultKind.RATE_LIMITED),
        (500, FaultKind.SERVER),
        (503, FaultKind.SERVER),
    ],
)
def test_each_status_is_a_kind_of_fault(status, kind):
    found = fault(fails(status, "because"))
    assert found.kind is kind
    assert f"HTTP {status}" in str(found)
    assert "because" in str(found)
    assert found.retry_after is None


def test_the_wait_that_a_server_asks_for_is_read_whatever_its_length():
    assert fault(fails(429, Retry_After="1")).retry_after == 1
    assert fault(fails(429, Retry_After="600")).retry_after == 600
    assert fault(fails(503, Retry_After="90")).retry_after == 90


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "600"}, 600),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": email.utils.format_datetime(datetime.datetime.fromtimestamp(1090, datetime.UTC))}, 90),
        ({"retry-after": email.utils.format_datetime(datetime.datetime.fromtimestamp(900, datetime.UTC))}, 0),
    ],
)
def test_waits_are_numbers_or_dates(headers, seconds):
    assert retry_after(headers, now=1000) == seconds


WHOLE = says("The answer is 4.").body
BROKEN = {
    "dropped before a reply": Reply(drop_after=-1),
    "dropped in the body": Reply(body=WHOLE, drop_after=40),
    "no JSON": Reply(body=b"<!doctype html><p>gateway"),
    "half of JSON": Reply(body=WHOLE[:40]),
    "no UTF-8": Reply(body=b'{"choices": "\xff\xfe"}'),
    "deep JSON": Reply(body=b"[" * 200_000),
    "an empty body": Reply(body=b""),
    "JSON, but no object": Reply(body=b"[1, 2]"),
    "no choices": Reply(body=b'{"choices": []}'),
    "choices null": Reply(body=b'{"choices": null, "error": {"message": "overloaded"}}'),
    "a choice without message": Reply(body=b'{"choices": [{"finish_reason": "stop"}]}'),
    "HTML as text": Reply(headers={"Content-Type": "text/html"}, body=b"<p>login</p>"),
    "broken compression": Reply(headers={"Content-Encoding": "gzip"}, body=b"\x00\x01"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_body_is_a_fault_that_may_be_asked_again(name):
    found = fault(BROKEN[name])
    assert found.kind in (FaultKind.CONNECTION, FaultKind.MALFORMED)


def test_a_strange_answer_never_raises_anything_else():
    for strange in (
        {"choices": [{"message": {"content": 3}}], "usage": 5, "model": ["x"]},
        {"choices": [{"message": {"content": {"a": 1}}, "finish_reason": 7}], "usage": {"prompt_tokens": "many"}},
        {"choices": [{"message": {"content": [1, {"text": None}]}}], "usage": {"completion_tokens": -1}},
        {"choices": [{"message": {"content": True, "refusal": 0}}], "usage": None},
    ):
        answer, _ = ask(Reply(body=json.dumps(strange).encode()))
        assert answer.text == ""
        assert answer.prompt_tokens is None
        assert answer.completion_tokens is None
        assert answer.model is None


def test_a_server_that_is_not_there_is_a_connection_fault_with_a_remedy():
    with Server(lambda body, number: says("")) as server:
        url = server.url

    async def once():
        await OpenAITeacher("t", "m", url, None, Redactor([])).ask(request())

    with pytest.raises(TeacherFault, match=f"check `base_url` \\({url}\\) and that the server runs") as caught:
        asyncio.run(once())
    assert caught.value.kind is FaultKind.CONNECTION


@pytest.mark.parametrize(
    "reply",
    [
        fails(401, f"Incorrect API key provided: {KEY}"),
        fails(401, f"Incorrect API key provided: {KEY[:20]}"),
        fails(500, "x" * 290 + KEY),
        Reply(body=f"you sent {KEY}".encode()),
        Reply(body=json.dumps({"choices": [], "you": KEY}).encode()),
    ],
)
def test_a_key_that_the_server_echoes_is_in_no_message(monkeypatch, reply):
    monkeypatch.setenv("MY_KEY", KEY)
    found = fault(reply, key_env="MY_KEY")
    assert KEY[:12] not in str(found)
    assert found.__cause__ is None


def test_a_wrong_key_names_its_variable(monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    assert "check the key in MY_KEY" in str(fault(fails(401), key_env="MY_KEY"))


def test_a_wrong_model_names_model_and_address():
    found = str(fault(fails(404, "the model `m` does not exist")))
    assert "check `model` (m) and `base_url` (http://127.0.0.1:" in found


def test_a_key_that_is_not_set_is_found_before_anything_is_sent(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ConfigError, match="MY_KEY must hold the key"):
        OpenAITeacher("t", "m", "http://127.0.0.1:1/v1", "MY_KEY", Redactor([]))


def test_a_quota_that_is_used_up_is_not_waited_for():
    body = json.dumps({"error": {"message": "pay", "code": "insufficient_quota"}}).encode()
    assert fault(Reply(429, body=body)).kind is FaultKind.UNPAID


def test_an_error_message_cannot_control_the_terminal():
    assert "\x1b" not in str(fault(fails(500, "\x1b[2J\x07gone\r\nover")))


@pytest.mark.parametrize("reply", [fails(500), fails(429, Retry_After="0"), Reply(drop_after=-1)])
def test_one_ask_is_one_request_whatever_comes_back(reply):
    async def once(url):
        teacher = OpenAITeacher("t", "m", url, None, Redactor([]))
        with pytest.raises(TeacherFault):
            await teacher.ask(request())
        await teacher.close()

    with Server(lambda body, number: reply) as server:
        asyncio.run(once(server.url))
        assert len(server.seen) == 1
