"""The language's text is what the model's chat template renders for the same messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import sgjax as sgl
from sgjax.errors import RequestError
from sgjax.lang.backends.jinja_render import compile_template
from sgjax.lang.chat_format import FIXED_FORMATS, TemplateFormat, fixed_format_of
from sgjax.text.chat_template import ChatTemplate

from .fakes import FakeBackend

GOLDEN = json.loads((Path(__file__).parents[1] / "text/data/chat_templates.json").read_text(encoding="utf-8"))
SPECIAL = GOLDEN["special_tokens"]

DEFAULT_SYSTEM = """{%- if messages[0]['role'] != 'system' %}<|im_start|>system
You are helpful.<|im_end|>
{% endif %}{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

SYSTEM_IN_USER_TURN = """{%- if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}
{%- set loop_messages = messages[1:] %}{% else %}{% set system = '' %}{% set loop_messages = messages %}{% endif %}
{%- for m in loop_messages %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
    {%- if m.role == 'user' %}
        {%- if loop.first %}{{ bos_token }}{% endif %}
        {{- '[INST] ' + (system + '\\n\\n' if loop.first and system else '') + m.content.strip() + ' [/INST]' }}
    {%- else %}{{ ' ' + m.content.strip() + eos_token }}{% endif %}
{%- endfor %}
{%- if not loop_messages %}{{ raise_exception('no user turn') }}{% endif %}"""

HEADER_WITH_DATE = """{{- bos_token }}{%- if messages[0].role == 'system' %}{% set text = messages[0].content | trim %}
{%- set messages = messages[1:] %}{% else %}{% set text = '' %}{% endif %}
{{- '<|start|>system<|end|>\\n\\nToday: ' + strftime_now('%Y') + '\\n\\n' + text + '<|eot|>' }}
{%- for m in messages %}{{- '<|start|>' + m.role + '<|end|>\\n\\n' + m.content | trim + '<|eot|>' }}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant<|end|>\\n\\n' }}{%- endif %}"""

# Qwen3's way: the last answer shows its reasoning even if it is empty, earlier ones do not.
DROPS_REASONING = """{%- for m in messages %}
    {%- set text = m.content.split('</think>')[-1].lstrip('\\n') %}
    {%- if m.role == 'assistant' and loop.last %}
        {%- set thought = m.content.split('</think>')[0].split('<think>')[-1] if '</think>' in m.content else '' %}
        {{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + text }}
        {{- '<|im_end|>\\n' }}
    {%- else %}{{- '<|im_start|>' + m.role + '\\n' + text + '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

NO_SYSTEM = """{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}
{%- endif %}<turn>{{ m.role }}
{{ m.content | trim }}</turn>
{% endfor %}{% if add_generation_prompt %}<turn>assistant
{% endif %}"""

TEMPLATES = {
    **GOLDEN["templates"],
    "default_system": DEFAULT_SYSTEM,
    "system_in_user_turn": SYSTEM_IN_USER_TURN,
    "header_with_date": HEADER_WITH_DATE,
    "drops_reasoning": DROPS_REASONING,
    "no_system": NO_SYSTEM,
}
CONSISTENT = [name for name in TEMPLATES if name != "drops_reasoning"]


def template(name: str) -> ChatTemplate:
    return ChatTemplate({"default": TEMPLATES[name]}, SPECIAL)


def backend_of(name: str, answers: list[str]) -> FakeBackend:
    """Renders as an endpoint's backend does; the tests compare with `template`, the model's own."""
    return FakeBackend(answers, chat_format=TemplateFormat(compile_template(TEMPLATES[name], SPECIAL)))


NO_SYSTEM_TURN = ("mistral", "no_system")
CASES = [(name, False) for name in CONSISTENT] + [(name, True) for name in CONSISTENT if name not in NO_SYSTEM_TURN]


@pytest.mark.parametrize("answers", [["One.", "Two."], [" Six. \n", "\n7"]], ids=["plain", "spaces"])
@pytest.mark.parametrize(("name", "with_system"), CASES)
def test_text_is_what_the_template_renders(name: str, answers: list[str], with_system: bool):
    backend, render = backend_of(name, answers), template(name).render
    s = sgl.function(lambda s: None).run(backend=backend)
    if with_system:
        s += sgl.system("Be terse.")
    for turn, question in enumerate(["  What's <2 & 3>? \n", "Sûr ?"]):
        s += sgl.user(question)
        s += sgl.assistant(sgl.gen(f"answer_{turn}"))
        if name == "mistral" and turn == 1:
            break  # this one stops after three messages
        assert backend.asked[-1].text == render(s.messages()[:-1], add_generation_prompt=True)
        assert backend.asked[-1].prompt.is_chat
        assert s.text() == render(s.messages(), add_generation_prompt=False)
    assert [message["content"] for message in s.messages()[-2:]] == ["Sûr ?", answers[1]]


@pytest.mark.parametrize("name", [name for name in CONSISTENT if name != "mistral"])
def test_text_inside_turns(name: str):
    """Turns that are built piece by piece, and an answer that the program begins."""
    backend, render = backend_of(name, ["six"]), template(name).render
    s = sgl.function(lambda s: None).run(backend=backend)
    with s.user():
        s += "How many"
        assert "How many" in s.text()
        s += " are they?"
    s += sgl.assistant("They are " + sgl.gen("n") + ".")
    begun = [*s.messages()[:-1], {"role": "assistant", "content": "They are"}]
    expected = render(begun, add_generation_prompt=False, continue_final_message=True)
    assert backend.asked[0].text == expected + " "
    assert s.messages()[-1]["content"] == "They are six."
    assert s.text() == render(s.messages(), add_generation_prompt=False)


@pytest.mark.parametrize("name", TEMPLATES)
def test_examples_before_the_first_generation(name: str):
    """Constant answers are rendered as a whole conversation, by whatever rules."""
    backend, render = backend_of(name, ["x"]), template(name).render
    s = sgl.function(lambda s: None).run(backend=backend)
    s += sgl.user("a") + sgl.assistant("b") + sgl.user("c") + sgl.assistant(sgl.gen("x"))
    s.sync()
    assert backend.asked[0].text == render(s.messages()[:3], add_generation_prompt=True)


def test_what_was_seen_stays_where_the_template_rewrites_it():
    backend = backend_of("drops_reasoning", ["<think>\nhm\n</think>\n\n1", "2", "3"])
    s = sgl.function(lambda s: None).run(backend=backend)
    for question in "abc":
        s += sgl.user(question) + sgl.assistant(sgl.gen(question))
    s.sync()
    texts = [asked.text for asked in backend.asked]
    assert texts[1].startswith(texts[0] + "<think>\nhm\n</think>\n\n1<|im_end|>\n<|im_start|>user\nb<|im_end|>\n")
    assert texts[2] == texts[1] + "2<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
    assert s.text() == texts[2] + "3<|im_end|>\n"


def test_answers_without_reasoning_agree_again_with_the_next_turn():
    backend = backend_of("drops_reasoning", ["1", "2"])
    s = sgl.function(lambda s: None).run(backend=backend)
    s += sgl.user("a") + sgl.assistant(sgl.gen("x")) + sgl.user("b") + sgl.assistant(sgl.gen("y"))
    s.sync()
    expected = template("drops_reasoning").render(s.messages()[:3], add_generation_prompt=True)
    assert backend.asked[1].text == expected


def test_turns_after_plain_text():
    s = sgl.function(lambda s: None).run(backend=backend_of("default_system", ["x"]))
    s += "Plain. "
    s += sgl.user("a")
    assert s.text().startswith("Plain. ")
    assert s.text().endswith("<|im_start|>user\na<|im_end|>\n")


@pytest.mark.parametrize("name", NO_SYSTEM_TURN)
def test_a_refused_conversation(name: str):
    s = sgl.function(lambda s: None).run(backend=backend_of(name, ["x"]))
    s += sgl.system("Be terse.") + sgl.user("a") + sgl.assistant(sgl.gen("x"))
    with pytest.raises(sgl.ProgramError, match="chat template refuses") as caught:
        s["x"]
    assert isinstance(caught.value.__cause__, RequestError)


def test_formats_by_model_name():
    assert fixed_format_of("meta-llama/Llama-3.1-8B-Instruct") is FIXED_FORMATS["llama-3-instruct"]
    assert fixed_format_of("Qwen/Qwen2.5-7B-Instruct").system_text == "You are a helpful assistant."
    assert fixed_format_of("my/model").name == "default"


def test_a_fixed_format_starts_with_its_system_text():
    s = sgl.function(lambda s: None).run(backend=FakeBackend(chat_format=FIXED_FORMATS["qwen"]))
    s += sgl.user("a") + sgl.assistant("b" + sgl.gen("x"))
    assert s.text() == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nbok<|im_end|>\n"
    )


def test_what_is_no_template():
    with pytest.raises(ValueError, match="the chat template is not Jinja"):
        compile_template("{% if %}", {})
