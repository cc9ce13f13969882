"""Chat templates against transformers (make_chat_templates.py), and what is refused."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from sgjax.text.chat_template import ChatTemplate
from sgjax.types import RequestError

GOLDEN = json.loads((Path(__file__).parent / "data/chat_templates.json").read_text(encoding="utf-8"))
USER = {"role": "user", "content": "hi"}


def template(source: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, {"bos_token": "<s>"})


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: f"{c['template']}-{c['chat']}-{','.join(c['options'])}")
def test_renders_as_transformers(case: dict[str, Any]):
    compiled = ChatTemplate({"default": GOLDEN["templates"][case["template"]]}, GOLDEN["special_tokens"])
    messages = GOLDEN["chats"][case["chat"]]
    if "error" in case:
        with pytest.raises(RequestError) as error:
            compiled.render(messages, **case["options"])
        assert error.value.field == "messages"
        assert case["error"] in str(error.value)
    else:
        assert compiled.render(messages, **case["options"]) == case["rendered"]


def test_rendering_leaves_the_messages_alone():
    messages = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, {"role": "assistant", "content": "a"}]
    copy = json.loads(json.dumps(messages))
    source = "{% for m in messages %}{{ m.content }}{% endfor %}"
    template(source).render(messages, add_generation_prompt=False, continue_final_message=True)
    assert messages == copy


def test_text_parts_become_one_string():
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert template("{{ messages[0].content }}").render([{"role": "user", "content": parts}]) == "one two"


def test_tool_arguments_in_json_text_become_objects():
    def call(arguments: str) -> list[dict[str, Any]]:
        return [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]

    source = template("{{ messages[0].tool_calls[0].function.arguments | tojson }}")
    assert source.render(call('{"a": "é<"}')) == '{"a": "é<"}'
    assert source.render(call("not json")) == '"not json"'


def test_tool_use_template_serves_tools():
    both = ChatTemplate({"default": "plain", "tool_use": "tools"}, {})
    assert both.render([USER]) == "plain"
    assert both.render([USER], tools=[{"name": "f"}]) == "tools"


def test_strftime_now():
    now = template("{{ strftime_now('%Y') }}").render([USER])
    assert abs(int(now) - datetime.datetime.now().year) <= 1


def test_special_tokens_are_visible_and_can_be_overridden():
    assert template("{{ bos_token }}").render([USER]) == "<s>"
    assert template("{{ bos_token }}").render([USER], bos_token="<x>") == "<x>"


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "empty"),
        ("hi", "list of messages"),
        ({"role": "user"}, "list of messages"),
        (["hi"], "message 0"),
        ([USER, {"content": "no role"}], "message 1"),
        ([{"role": "user"}], "no content"),
        ([{"role": "user", "content": 3}], "string or a list"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "image_url"),
        ([{"role": "user", "content": [{"type": "text"}]}], "without text"),
        ([{"role": "user", "content": ["x"]}], "only 'text'"),
        ([{"role": "assistant", "tool_calls": ["x"]}], "tool call"),
    ],
)
def test_malformed_messages_are_refused(messages: Any, said: str):
    with pytest.raises(RequestError, match=said) as error:
        template("x").render(messages)
    assert error.value.field == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content + 1 }}",
        "{{ missing.attribute }}",
        "{{ messages[7].content.upper() }}",
        "{{ 1 / 0 }}",
        "{% if %}",
        "{{ messages.append(1) }}",  # the sandbox forbids changes
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",  # and the way out
    ],
)
def test_failing_templates_refuse_the_messages(source: str):
    with pytest.raises(RequestError, match="chat template"):
        template(source).render([USER])


def test_continuing_contradicts_a_generation_prompt():
    with pytest.raises(RequestError, match="contradicts"):
        template("x").render([USER], add_generation_prompt=True, continue_final_message=True)


@pytest.mark.parametrize(
    ("source", "final"), [("x", USER), ("{{ messages[0].content }}", {"role": "a", "content": None})]
)
def test_nothing_to_continue(source: str, final: dict[str, Any]):
    with pytest.raises(RequestError, match="continue_final_message"):
        template(source).render([final], add_generation_prompt=False, continue_final_message=True)
