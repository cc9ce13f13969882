"""SGLang's native generation route."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

from fastapi import APIRouter, Response

from sgjax.types import FinishReason, GenerateOutput, OutputDelta, Request, TokenLogprobs
from sgjax_server import sse
from sgjax_server.calls import Call, encode, finished, started
from sgjax_server.routes.context import Context, ContextDep, json_response
from sgjax_server.schemas.answers.native import Generated
from sgjax_server.schemas.native import GenerateRequest, SessionParams
from sgjax_server.sessions import SessionTurn

router = APIRouter(tags=["native"])


@router.post("/generate", responses=sse.OPENAI.responses(Generated | list[Generated], Generated))
async def generate(body: GenerateRequest, context: ContextDep) -> Response:
    """Continues one prompt or several, as SGLang's native API does."""
    prompts: Any = body.prompts()
    prompt_ids = prompts if body.text is None else await encode(context.engine, prompts)
    if body.session_params is not None:
        prompt_ids = [_session_prompt(body.session_params, prompt_ids[0], context)]
    requests = body.requests(prompt_ids)
    form = _Format(context, with_text=body.return_text_in_logprobs)
    is_single = not body.is_batch and requests[0].sampling.n == 1
    call = Call(context, requests)
    turn = None
    if body.session_params is not None:
        turn = _begin_turn(body.session_params, requests[0], call, context)
    close = functools.partial(_close, call, turn)
    try:
        await started(call, context.receive)
        if body.stream:
            write = functools.partial(_write, call, form, context.stream_interval, turn, is_single)
            return sse.EventStream(write, close)
        results = await finished(call, context.receive)
        if turn is not None:
            turn.output_ids = results[0][0].output_ids
    except BaseException:
        close()
        raise
    close()
    answers = [
        form.answer(request, sample) for request, samples in zip(requests, results, strict=True) for sample in samples
    ]
    return json_response(answers[0] if is_single else answers)


def _session_prompt(params: SessionParams, new_ids: Sequence[int], context: Context) -> list[int]:
    return context.sessions.prompt(params.id, params.continuation, new_ids, context.engine.tokenizer.bos_token_id)


def _begin_turn(params: SessionParams, request: Request, call: Call, context: Context) -> SessionTurn:
    try:
        return context.sessions.begin(
            params.id, request.rid, params.continuation, request.input_ids, context.engine.abort
        )
    except BaseException:  # another request of the session came between
        call.close()
        raise


def _close(call: Call, turn: SessionTurn | None) -> None:
    call.close()
    if turn is not None:
        turn.close()


async def _write(
    call: Call, form: _Format, interval: int, turn: SessionTurn | None, is_single: bool, out: sse.Writer
) -> None:
    """Each event holds the sample's whole answer so far; `index` tells a batch's samples apart."""
    samples: dict[tuple[int, int], GenerateOutput] = {}

    def encoded(number: int, delta: OutputDelta) -> bytes:
        request = call.requests[number]
        key = (number, delta.index)
        if key not in samples:
            samples[key] = GenerateOutput(request.rid, delta.index, request.input_ids)
        samples[key].add(delta)
        if turn is not None:
            turn.output_ids = samples[key].output_ids
        answer = form.answer(request, samples[key])
        if not is_single:
            answer["index"] = number * request.sampling.n + delta.index
        return sse.event(answer)

    await call.deliver(lambda deltas: out.write_now(b"".join([encoded(*one) for one in deltas])), interval)


class _Format:
    """Builds answers in SGLang's form, where a log-probability is [logprob, token id, text or null]."""

    def __init__(self, context: Context, *, with_text: bool):
        self._texts = context.token_texts if with_text else None

    def answer(self, request: Request, sample: GenerateOutput) -> dict[str, Any]:
        meta = {
            "id": request.rid,
            "finish_reason": _finish_reason(sample.finish, len(sample.output_ids)),
            "prompt_tokens": len(sample.prompt_ids),
            "completion_tokens": len(sample.output_ids),
        }
        if sample.receipt is not None:
            meta["cached_tokens"] = sample.receipt.cached_tokens
        if sample.finish is not None and sample.receipt is not None:
            meta["weight_version"] = sample.receipt.weight_version
            meta["forced_tokens"] = sample.receipt.forced_tokens
            meta["e2e_latency"] = sample.receipt.e2e_s
            meta["receipt"] = sample.receipt
        if request.return_logprob:
            meta |= self._logprobs(request, "input", sample.input_logprobs or [])
            meta |= self._logprobs(request, "output", sample.output_logprobs or [])
        return {"text": sample.text, "output_ids": sample.output_ids, "meta_info": meta}

    def _logprobs(self, request: Request, side: str, logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
        found: dict[str, Any] = {
            f"{side}_token_logprobs": [self._triple(one.token_id, one.logprob) for one in logprobs]
        }
        if request.top_logprobs_num:
            found[f"{side}_top_logprobs"] = [self._triples(one.top) for one in logprobs]
        if request.token_ids_logprob:
            found[f"{side}_token_ids_logprobs"] = [self._triples(one.asked) for one in logprobs]
        return found

    def _triples(self, pairs: Iterable[tuple[int, float]]) -> list | None:
        """None where there is nothing, as at the first token of a prompt."""
        return [self._triple(token_id, logprob) for token_id, logprob in pairs] or None

    def _triple(self, token_id: int, logprob: float | None) -> tuple[float | None, int, str | None]:
        return logprob, token_id, self._texts.text(token_id) if self._texts else None


def _finish_reason(finish: FinishReason | None, num_tokens: int) -> dict[str, Any] | None:
    match finish:
        case None:
            return None
        case FinishReason(kind="stop"):
            return {"type": "stop", "matched": finish.matched}
        case FinishReason(kind="length"):
            return {"type": "length", "length": num_tokens}
        case _:
            return {"type": "abort", "message": finish.message}
