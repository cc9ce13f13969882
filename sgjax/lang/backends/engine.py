"""An engine in this process."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

from sgjax.errors import RequestError
from sgjax.lang.backends.base import Completion, refuse_media
from sgjax.lang.backends.params import logprob_options, sampling_params
from sgjax.lang.chat_format import FIXED_FORMATS, ChatFormat, TemplateFormat
from sgjax.lang.choices import ChoiceScores, ChoicesDecision, ChoicesMethod, TokenLogprob
from sgjax.lang.ir import Sampling
from sgjax.lang.transcript import Prompt
from sgjax.sampling_params import SamplingParams
from sgjax.types import FinishReason, GenerateOutput, TokenLogprobs

_SCORING = SamplingParams(max_new_tokens=0, temperature=0.0)


class EngineBackend:
    """Programs on an `Engine`. Holds nothing of its own, so making several for one engine is fine.

    Args:
      engine: anything with an `Engine`'s `generate`, `stream`, `flush_cache` and `tokenizer`. The caller closes it.
    """

    is_chat_model = False
    has_prefix_cache = True

    def __init__(self, engine: Any):
        self.engine = engine
        self._is_over: Callable[[], bool] = lambda: False
        tokenizer = engine.tokenizer
        self._has_template = tokenizer.chat_template is not None
        self._bos = tokenizer.special_tokens.get("bos_token")
        self._format: ChatFormat = FIXED_FORMATS["default"]
        if self._has_template:
            self._format = TemplateFormat(
                lambda messages, prompt: tokenizer.apply_chat_template(messages, add_generation_prompt=prompt)
            )

    @property
    def chat_format(self) -> ChatFormat:
        return self._format

    def generate(self, prompt: Prompt, sampling: Sampling) -> list[Completion]:
        outputs = {output.index: output for output in self._outputs(prompt, sampling)}
        return [self._completion(outputs[index], sampling) for index in sorted(outputs)]

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[Completion]:
        for output in self._outputs(prompt, sampling):
            yield self._completion(output, sampling)

    def until(self, is_over: Callable[[], bool]) -> Self:
        other = copy.copy(self)
        other._is_over = is_over
        return other

    def _outputs(self, prompt: Prompt, sampling: Sampling) -> Iterator[GenerateOutput]:
        """The samples so far, as they grow. Leaving early aborts the request."""
        for output in self.engine.stream(**self._request(prompt, sampling)):
            if self._is_over():
                raise RuntimeError("nobody waits for the generation any more")
            yield output

    def prefill(self, prompt: Prompt) -> dict[str, Any]:
        output = self.engine.generate(input_ids=self._ids(prompt), sampling_params=_SCORING)
        return self._completion(output, Sampling()).meta_info

    def select(self, prompt: Prompt, choices: Sequence[str], method: ChoicesMethod) -> ChoicesDecision:
        prefix = self._ids(prompt)
        prompts = [self._ids(dataclasses.replace(prompt, text=prompt.text + choice)) for choice in choices]
        # The end of the prefix and the start of a choice may be one token, which belongs to the choice then.
        starts = [_common_len(prefix, ids) for ids in prompts]
        outputs = self._score(prompts, min(starts))
        conditional = tuple(self._tokens(output, start) for output, start in zip(outputs, starts, strict=True))
        unconditional = None
        if method.requires_unconditional_logprobs:
            alone = self._score([ids[start:] for ids, start in zip(prompts, starts, strict=True)], 0)
            unconditional = tuple(self._tokens(output, 0) for output in alone)
            outputs = outputs + alone
        decision = method(choices, ChoiceScores(conditional, unconditional))
        return dataclasses.replace(decision, meta_info={**decision.meta_info, **_cost(outputs)})

    def flush_cache(self) -> None:
        self.engine.flush_cache()

    def get_server_info(self) -> dict[str, Any]:
        config = getattr(self.engine, "config", None)
        info = {"model_path": getattr(config, "model_path", None)}
        if dataclasses.is_dataclass(config) and not isinstance(config, type):
            info = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        if hasattr(self.engine, "stats"):
            info["internal_states"] = [dataclasses.asdict(self.engine.stats())]
        return info

    def _request(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
        options = logprob_options(sampling)
        options.pop("return_text_in_logprobs", None)
        return {
            "input_ids": self._ids(prompt),
            "sampling_params": SamplingParams.from_dict(sampling_params(sampling)),
            **options,
        }

    def _ids(self, prompt: Prompt) -> list[int]:
        """Token ids; BOS once, whether the chat template wrote it, the program, or the tokenizer adds it."""
        refuse_media(prompt, "the engine")
        has_start = prompt.is_chat and self._has_template
        if self._bos and prompt.text.startswith(self._bos):
            has_start = True
        ids = self.engine.tokenizer.encode(prompt.text, add_special_tokens=not has_start)
        if not ids:
            raise RequestError("prompt", "there is no text yet: append some before gen() or select()")
        return ids

    def _score(self, prompts: list[list[int]], start: int) -> list[GenerateOutput]:
        """All prompts as one batch, with the log-probabilities of their tokens from `start` on."""
        return self.engine.generate(
            input_ids=prompts, sampling_params=_SCORING, return_logprob=True, logprob_start_len=start
        )

    def _tokens(self, output: GenerateOutput, start: int) -> tuple[TokenLogprob, ...]:
        num_tokens = len(output.prompt_ids) - start
        return tuple(self._triple(one, True) for one in (output.input_logprobs or [])[-num_tokens:])

    def _triple(self, one: TokenLogprobs, with_text: bool = False) -> TokenLogprob:
        return one.logprob, one.token_id, self._text(one.token_id) if with_text else None

    def _text(self, token_id: int) -> str:
        return self.engine.tokenizer.decode([token_id], skip_special_tokens=False)

    def _completion(self, output: GenerateOutput, sampling: Sampling) -> Completion:
        meta: dict[str, Any] = {
            "id": output.rid,
            "finish_reason": _finish_reason(output.finish, len(output.output_ids)),
            "prompt_tokens": len(output.prompt_ids),
            "completion_tokens": len(output.output_ids),
        }
        if output.finish is not None and output.receipt is not None:
            meta |= {
                "cached_tokens": output.receipt.cached_tokens,
                "computed_tokens": output.receipt.computed_tokens,
                "forced_tokens": output.receipt.forced_tokens,
                "e2e_latency": output.receipt.e2e_s,
            }
        if sampling.return_logprob:
            with_text = bool(sampling.return_text_in_logprobs)
            for side, logprobs in (("input", output.input_logprobs), ("output", output.output_logprobs)):
                meta |= self._logprobs(side, logprobs or [], with_text, bool(sampling.top_logprobs_num))
        return Completion(output.text, meta)

    def _logprobs(self, side: str, logprobs: list[TokenLogprobs], with_text: bool, with_top: bool) -> dict[str, Any]:
        found: dict[str, Any] = {f"{side}_token_logprobs": [self._triple(one, with_text) for one in logprobs]}
        if with_top:
            found[f"{side}_top_logprobs"] = [
                [(logprob, token, self._text(token) if with_text else None) for token, logprob in one.top] or None
                for one in logprobs
            ]
        return found


class OwnedEngine:
    """An engine made for programs: SGLang's `Runtime`, in this process. Close it with `shutdown()` or by `with`.

    Attributes:
      engine: the `Engine`.
      endpoint: its backend; `backend=` takes the `Runtime` itself too.
    """

    def __init__(self, engine: Any):
        self.engine = engine
        self.endpoint = EngineBackend(engine)

    def generate(self, prompt: str | list[str], sampling_params: Any = None, **options: Any) -> str:
        """Generates outside of any program.

        Args:
          prompt, sampling_params, **options: as for `Engine.generate`.

        Returns:
          JSON text of SGLang's answer: `text` and `meta_info`, or a list of such.
        """
        found = self.engine.generate(prompt, sampling_params, **options)
        sampling = Sampling(
            return_logprob=options.get("return_logprob"), top_logprobs_num=options.get("top_logprobs_num")
        )
        outputs = found if isinstance(found, list) else [found]
        answers = [dataclasses.asdict(self.endpoint._completion(output, sampling)) for output in outputs]
        return json.dumps(answers if isinstance(found, list) else answers[0])

    def get_tokenizer(self) -> Any:
        """The engine's `Tokenizer`."""
        return self.engine.tokenizer

    def cache_prefix(self, prefix: str) -> None:
        """Puts a text in the prefix cache."""
        self.endpoint.prefill(Prompt(prefix))

    def flush_cache(self) -> None:
        """Forgets every cached prefix that no running request uses."""
        self.endpoint.flush_cache()

    def get_server_info(self) -> dict[str, Any]:
        """The engine's settings, and its `stats()` in `internal_states`."""
        return self.endpoint.get_server_info()

    def shutdown(self) -> None:
        """Closes the engine. Twice is fine."""
        self.engine.close()

    def __enter__(self) -> OwnedEngine:
        return self

    def __exit__(self, *exc: object) -> None:
        self.shutdown()


def _common_len(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids both begin with; one fewer than all of `b`, since a choice needs a token of its own."""
    same = 0
    for left, right in zip(a, b[:-1], strict=False):
        if left != right:
            break
        same += 1
    return same


def _cost(outputs: Sequence[GenerateOutput]) -> dict[str, int]:
    receipts = [output.receipt for output in outputs if output.receipt is not None]
    return {
        "prompt_tokens": sum(len(output.prompt_ids) for output in outputs),
        "cached_tokens": sum(receipt.cached_tokens for receipt in receipts),
        "computed_tokens": sum(receipt.computed_tokens for receipt in receipts),
        "completion_tokens": 0,
    }


def _finish_reason(finish: FinishReason | None, num_tokens: int) -> dict[str, Any] | None:
    if finish is None:
        return None
    match finish.kind:
        case "stop":
            return {"type": "stop", "matched": finish.matched}
        case "length":
            return {"type": "length", "length": num_tokens}
    return {"type": "abort", "message": finish.message}
