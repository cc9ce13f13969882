"""What programs are written with: the names of SGLang's frontend language."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

from sgjax.lang import ir
from sgjax.lang.backends.params import dtype_name
from sgjax.lang.choices import METHODS, ChoicesMethod, token_length_normalized
from sgjax.lang.program import SglFunction
from sgjax.lang.reasoning import check_model_type


@overload
def function(func: Callable[..., Any]) -> SglFunction: ...
@overload
def function(
    func: None = None, *, num_api_spec_tokens: int | None = None
) -> Callable[[Callable[..., Any]], SglFunction]: ...
def function(func: Callable[..., Any] | None = None, num_api_spec_tokens: int | None = None) -> Any:
    """Makes a program of a function whose first argument is the state.

        @sgl.function
        def answer(s, question):
            s += sgl.user(question)
            s += sgl.assistant(sgl.gen("answer", max_tokens=64))

        print(answer.run(question="Why?", backend=engine)["answer"])

    The function is called anew for each run. Its other parameters are arguments of `run`.

    Args:
      num_api_spec_tokens: with an API, ask once for this many tokens and match several `gen` with the answer; by
        default each `gen` is a request. A local engine needs none of it.

    Raises:
      TypeError: the function has no parameter for the state, or it is a coroutine.
    """
    if func is not None:
        return SglFunction(func, num_api_spec_tokens=num_api_spec_tokens)
    return lambda func: SglFunction(func, num_api_spec_tokens=num_api_spec_tokens)


def gen(
    name: str | None = None,
    max_tokens: int | None = None,
    min_tokens: int | None = None,
    n: int | None = None,
    stop: str | Sequence[str] | None = None,
    stop_token_ids: Sequence[int] | None = None,
    stop_regex: str | Sequence[str] | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    ignore_eos: bool | None = None,
    return_logprob: bool | None = None,
    logprob_start_len: int | None = None,
    top_logprobs_num: int | None = None,
    return_text_in_logprobs: bool | None = None,
    dtype: type | str | None = None,
    choices: Sequence[str] | None = None,
    choices_method: ChoicesMethod | str | None = None,
    regex: str | None = None,
    json_schema: str | dict[str, Any] | None = None,
    *,
    ebnf: str | None = None,
    structural_tag: str | dict[str, Any] | None = None,
    repetition_penalty: float | None = None,
    seed: int | None = None,
) -> ir.Expr:
    """Lets the model write; the state's variable `name` holds what it wrote.

    What is not given here is taken from `run(...)`, and else from the defaults: 128 tokens, temperature 1. Names are
    SGLang's; `SamplingParams` says what each does. Options are checked when the generation is sent, so what is wrong
    with them is raised where the variable is read.

    Args:
      name: the variable; None keeps none.
      max_tokens: at most as many tokens are generated. min_tokens: at least as many; not with a constraint.
      n: samples. With more than 1 the variable is a list of them, and nothing is appended.
      stop: texts that end the generation, and are not part of it.
      temperature: 0 takes the likeliest token.
      seed: draws depend on it and on the position alone; sample i uses seed + i. None: a random one.
      dtype: int, float, bool or str (in double quotes): only text of that form. The variable is text all the same.
      choices: score these and append the best, instead of generating: `select`.
      regex, json_schema, ebnf, structural_tag: only text that follows it; at most one. See docs/structured_output.md.
      return_logprob, logprob_start_len, top_logprobs_num, return_text_in_logprobs: what `get_meta_info` will hold.

    Raises:
      ValueError: `choices` with a grammar, an unknown `dtype` or choice method.
    """
    if choices is not None:
        grammars = {"regex": regex, "json_schema": json_schema, "ebnf": ebnf, "structural_tag": structural_tag}
        if given := [field for field, value in grammars.items() if value is not None]:
            raise ValueError(f"choices: cannot be combined with {given[0]}")
        return select(name, choices, 0.0 if temperature is None else temperature, choices_method)
    options = dict(
        max_new_tokens=max_tokens,
        min_new_tokens=min_tokens,
        n=n,
        stop=stop,
        stop_token_ids=stop_token_ids,
        stop_regex=stop_regex,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        repetition_penalty=repetition_penalty,
        ignore_eos=ignore_eos,
        seed=seed,
        return_logprob=return_logprob,
        logprob_start_len=logprob_start_len,
        top_logprobs_num=top_logprobs_num,
        return_text_in_logprobs=return_text_in_logprobs,
        dtype=None if dtype is None else dtype_name(dtype),
        regex=regex,
        json_schema=json_schema,
        ebnf=ebnf,
        structural_tag=structural_tag,
    )
    return ir.Gen(name, ir.Sampling(**{field: ir.lower(value) for field, value in options.items()}))


def gen_int(name: str | None = None, max_tokens: int | None = None, **options: Any) -> ir.Expr:
    """`gen` of an integer, `[+-]?[0-9]+`. The variable is text; `int(s[name])` is the number."""
    return gen(name, max_tokens, dtype=int, **options)


def gen_string(name: str | None = None, max_tokens: int | None = None, **options: Any) -> ir.Expr:
    """`gen` of letters, digits, `_` and white space in double quotes, which are part of the variable."""
    return gen(name, max_tokens, dtype=str, **options)


def select(
    name: str | None = None,
    choices: Sequence[str] | None = None,
    temperature: float = 0.0,
    choices_method: ChoicesMethod | str | None = None,
) -> ir.Select:
    """Appends the one of `choices` that the model finds likeliest.

    All are scored in one batch over the shared prefix; nothing is drawn. `get_meta_info` holds
    `normalized_prompt_logprobs` (a mean per choice, in nats) and `input_token_logprobs` (per choice, its tokens).

    Args:
      choices: texts, appended as they are: after a word they usually begin with a space.
      temperature: 0, which is accepted because `gen` has it; another value fails where the variable is read.
      choices_method: `token_length_normalized` (default), `greedy_token_selection`,
        `unconditional_likelihood_normalized`, or one of these names.

    Raises:
      TypeError: `name` is no string, or `choices` is one instead of a list.
      ValueError: no choices, an empty one, or an unknown method.
    """
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name: {name!r} is not a string; the choices come second: select('answer', choices)")
    lowered = ir.lower(choices)
    if isinstance(lowered, str):
        raise TypeError(f"choices: give a list of strings, not {lowered!r}, whose letters would be the choices")
    if not isinstance(lowered, ir.Value):
        if not lowered:
            raise ValueError("choices: give at least one")
        for choice in lowered:
            if not isinstance(choice, ir.Value) and (not isinstance(choice, str) or not choice):
                raise ValueError(f"choices: {choice!r} is not a string, or it is empty")
    if isinstance(choices_method, str):
        if choices_method not in METHODS:
            raise ValueError(f"choices_method: {choices_method!r} is none of {', '.join(METHODS)}")
        choices_method = METHODS[choices_method]
    return ir.Select(name, lowered, temperature, choices_method or token_length_normalized)


def image(expr: Any) -> ir.Image:
    """A picture: a path, a URL, base64 text or bytes.

    The backends of chat APIs take it. Engines and servers refuse it so far: reading raises `ProgramError`.
    """
    return ir.Image(ir.lower(expr))


def video(path: Any, num_frames: int = -1) -> ir.Video:
    """A film, as `num_frames` pictures; -1 is all of them. See `image`; of the APIs, Anthropic's takes none."""
    return ir.Video(ir.lower(path), num_frames)


def system(expr: Any = None) -> ir.Concat:
    """A turn of the system: `expr` as the model's chat template writes it.

    Args:
      expr: text, `gen`, or several joined by `+`; None is an empty turn.
    """
    return _turn("system", expr)


def user(expr: Any = None) -> ir.Concat:
    """A turn of the user; see `system`."""
    return _turn("user", expr)


def assistant(expr: Any = None) -> ir.Concat:
    """A turn of the assistant; see `system`. What stands before a `gen` in it is put in the model's mouth."""
    return _turn("assistant", expr)


def _turn(role: str, expr: Any) -> ir.Concat:
    return ir.concat(ir.RoleBegin(role), "" if expr is None else expr, ir.RoleEnd(role))


def system_begin() -> ir.RoleBegin:
    """A turn of the system begins; for turns that take several `+=`.

    Fails, where something is read, inside a turn.
    """
    return ir.RoleBegin("system")


def system_end() -> ir.RoleEnd:
    """It ends. Fails, where something is read, when the open turn is another role's or none is open."""
    return ir.RoleEnd("system")


def user_begin() -> ir.RoleBegin:
    """A turn of the user begins; see `system_begin`."""
    return ir.RoleBegin("user")


def user_end() -> ir.RoleEnd:
    """It ends; see `system_end`."""
    return ir.RoleEnd("user")


def assistant_begin() -> ir.RoleBegin:
    """A turn of the assistant begins; see `system_begin`."""
    return ir.RoleBegin("assistant")


def assistant_end() -> ir.RoleEnd:
    """It ends; see `system_end`."""
    return ir.RoleEnd("assistant")


def separate_reasoning(expr: Any, model_type: str) -> ir.SeparateReasoning:
    """Generations of a reasoning model: `<name>` holds the answer, `<name>_reasoning_content` the reasoning.

    The text goes on with the answer alone. Reasoning that never ends leaves an empty answer.

    Args:
      expr: `gen`, or several joined with text. None of them streams.
      model_type: whose markup to expect, for example "qwen3" or "deepseek-r1".

    Raises:
      ValueError: no markup is known for it.
    """
    return ir.SeparateReasoning(ir.as_expr(expr), check_model_type(model_type))
