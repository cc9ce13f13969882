"""Grammars in EBNF, as llama.cpp and xgrammar write it (`root ::= ...`), in llguidance's notation."""

from __future__ import annotations

import re

from llguidance.gbnf_to_lark import (
    AlternativeNode,
    ASTNode,
    GrammarParser,
    RepetitionNode,
    RuleNode,
    RuleRefNode,
    SequenceNode,
    is_lark_syntax,
    resolve,
)

from sgjax.errors import RequestError

MAX_LEN = 1 << 15  # characters; the conversion is Python
MAX_RULES = 500
_ESCAPE = re.compile(r"\\\\|\\u[0-9a-fA-F]{4}|\\U[0-9a-fA-F]{8}")


def to_lark(text: str) -> str:
    """The same grammar as Lark text. Lark itself (`start: ...`) is taken as it is.

    Raises:
      RequestError: a mistake, with its line; too large; a rule that never ends.
    """
    if len(text) > MAX_LEN:
        raise RequestError("ebnf", f"too complex: more than {MAX_LEN} characters")
    if is_lark_syntax(text):
        return text
    if text.count("::=") > MAX_RULES:
        raise RequestError("ebnf", f"too complex: more than {MAX_RULES} rules")
    try:
        rules = GrammarParser().parse(_ESCAPE.sub(_decoded, text))
        resolve(rules)
        for rule in rules.values():
            _group_repeated(rule)
        _check_ends(rules)
        return _write(rules)
    except RecursionError:
        raise RequestError("ebnf", "too complex: nested too deeply") from None
    except RequestError:
        raise
    except Exception as error:  # the library raises plain exceptions
        raise RequestError("ebnf", str(error)) from None


def _write(rules: dict[str, RuleNode]) -> str:
    start = rules["start"]
    lines = ["%llguidance {}", ""]
    if start.alternatives.is_terminal():
        # One terminal for all: a lexer would take each part as long as it can be, and miss what follows.
        start.name = "START"
        lines.append("start: START")
    lines += [str(rule) for rule in sorted(rules.values(), key=lambda rule: rule.order)]
    return "\n".join(lines) + "\n"


def _group_repeated(node: ASTNode) -> None:
    """`("a"*)*` keeps its parentheses; the library would write `"a"**`, which is no Lark."""
    if isinstance(node, RepetitionNode) and isinstance(node.node, RepetitionNode):
        node.node = SequenceNode([node.node])
    for part in node.children():
        _group_repeated(part)


def _decoded(escape: re.Match[str]) -> str:
    """A Unicode escape as the character itself, or as `\\x..`; the library drops its leading zeros."""
    text = escape[0]
    if text[1] not in "uU":
        return text
    code = int(text[2:], 16)
    if code > 0x10FFFF or 0xD800 <= code < 0xE000:
        raise RequestError("ebnf", f"{text} is no character")
    return chr(code) if code >= 0x80 else f"\\x{code:02x}"


def _check_ends(rules: dict[str, RuleNode]) -> None:
    """Refuses rules that never end, by the least fixed point of those that do."""
    ended: set[str] = set()
    grows = True
    while grows:
        found = {rule.name for rule in rules.values() if rule.name not in ended and _ends(rule.alternatives, ended)}
        ended |= found
        grows = bool(found)
    if endless := [rule.name for rule in rules.values() if rule.name not in ended]:
        name = "root" if endless[0] == "start" else endless[0]
        raise RequestError("ebnf", f"the rule {name} never ends: each of its alternatives needs it again")


def _ends(node: ASTNode, ended: set[str]) -> bool:
    if isinstance(node, RuleRefNode):
        return node.target is None or node.target.name in ended
    if isinstance(node, RepetitionNode) and node.min_times == 0:
        return True
    parts = (_ends(part, ended) for part in node.children())
    return any(parts) if isinstance(node, AlternativeNode) else all(parts)
