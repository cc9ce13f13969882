"""Makes data/chat_templates.json: templates in the dialects of common checkpoints, rendered by transformers.

Run where transformers is installed (the project does not need it): python tests/text/make_chat_templates.py
"""

from __future__ import annotations

import json
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

TEMPLATES = {
    "chatml_tools": """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "assistant" and message.tool_calls %}
        {{- '<|im_start|>' + message.role }}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}{{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or messages[loop.index0 - 1].role != "tool" %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' }}{{- message.content }}{{- '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- elif not (loop.first and tools and message.role == 'system') %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}""",
    "llama3": """\
{{- bos_token }}
{% set loop_messages = messages %}
{% for message in loop_messages %}
    {% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim %}
    {{- content + '<|eot_id|>' }}
{% endfor %}
{% if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{% endif %}
""",
    "mistral": """\
{%- set ns = namespace(index=0) -%}
{{ bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' and ns.index % 2 == 0 %}
        {{- '[INST] ' + message['content'] + ' [/INST]' }}
    {%- elif message['role'] == 'assistant' and ns.index % 2 == 1 %}
        {%- generation %}{{ ' ' + message['content'] | trim + eos_token }}{% endgeneration %}
    {%- else %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
    {%- if ns.index > 3 %}{% break %}{% endif %}
{%- endfor %}
""",
}
TOOL = {
    "type": "function",
    "function": {
        "name": "météo",
        "description": "It's <b>the</b> weather & more",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Paris", "東京"]}}},
    },
}
USER = {"role": "user", "content": "  What's <2 & 3>? \n"}
CALL = {"function": {"name": "météo", "arguments": {"city": "東京", "days": [1, 2.5, None, True]}}, "type": "function"}
CHATS = {
    "one": [USER],
    "system": [{"role": "system", "content": "Be terse."}, USER],
    "turns": [USER, {"role": "assistant", "content": " Six. "}, {"role": "user", "content": "Sûr ?"}],
    "long": [USER, {"role": "assistant", "content": "a"}] * 3,
    "calls": [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "12°"},
        {"role": "tool", "content": "13°"},
        {"role": "assistant", "content": "Cool"},
    ],
    "continued": [USER, {"role": "assistant", "content": "The answer is  "}],
}
VARIANTS = [
    ({"add_generation_prompt": True}, None),
    ({"add_generation_prompt": False}, None),
    ({"add_generation_prompt": False, "continue_final_message": True}, ("continued", "turns")),
    ({"add_generation_prompt": True, "tools": [TOOL]}, ("system", "calls")),
    ({"add_generation_prompt": True, "enable_thinking": False}, ("one",)),
]
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def main() -> None:
    cases = []
    for template, source in TEMPLATES.items():
        for options, only in VARIANTS:
            for chat in only or CHATS:
                try:
                    rendered, _ = render_jinja_template(
                        conversations=[CHATS[chat]], chat_template=source, **options, **SPECIAL_TOKENS
                    )
                    result = {"rendered": rendered[0]}
                except Exception as error:
                    result = {"error": str(error)}
                cases.append({"template": template, "chat": chat, "options": options, **result})
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    texts = {"special_tokens": SPECIAL_TOKENS, "templates": TEMPLATES, "chats": CHATS}
    head = "\n".join(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}," for key, value in texts.items())
    path = Path(__file__).parent / "data/chat_templates.json"
    path.write_text(f'{{\n{head}\n"cases": [\n{lines}\n]\n}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
