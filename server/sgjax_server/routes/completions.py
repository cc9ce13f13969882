"""OpenAI's completions."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
import uuid
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Response

from sgjax.types import GenerateOutput, OutputDelta, Request, RequestError, TokenLogprobs
from sgjax_server import sse
from sgjax_server.calls import Call, encode, fields_named, finished, started
from sgjax_server.openai_format import CompletionLogprobs, Usage, finish_fields, receipt_fields
from sgjax_server.routes.context import Context, ContextDep, json_response
from sgjax_server.schemas.answers.openai import Completion, CompletionChunk, TextChoice
from sgjax_server.schemas.common import namespace
from sgjax_server.schemas.openai import CompletionRequest
from sgjax_server.tokens import TokenTexts

router = APIRouter(tags=["openai"])


@router.post("/v1/completions", responses=sse.OPENAI.responses(Completion, CompletionChunk))
async def completions(body: CompletionRequest, context: ContextDep) -> Response:
    """Continues one prompt or several, as OpenAI's API does."""
    with fields_named(body.param_names):
        prompts = await _prompts(body, context)
        requests = _requests(body, [ids for _, ids in prompts], context)
        call = Call(context, requests)
        await started(call, context.receive)
    echoes = [text if body.echo else "" for text, _ in prompts]
    head = {"id": requests[0].rid, "object": "text_completion", "created": int(time.time())}
    head["model"] = context.model_name
    if body.stream:
        chunks = _Chunks(head, requests[0].sampling.n, echoes, body, context.token_texts)
        return sse.EventStream(functools.partial(_write, call, chunks, context.stream_interval), call.close)
    results = await finished(call, context.receive)
    best = [_likeliest(samples, body.num_choices) for samples in results] if body.is_ranked else results
    answers = [(sample, echo) for samples, echo in zip(best, echoes, strict=True) for sample in samples]
    choices = [_choice(sample, echo, index, body, context) for index, (sample, echo) in enumerate(answers)]
    usage = Usage.of(results)
    sglext = usage.sglext(wanted=bool(body.return_cached_tokens_details))
    return json_response({**head, "choices": choices, "usage": usage.as_dict(), **sglext})


async def _prompts(body: CompletionRequest, context: Context) -> list[tuple[str, list[int]]]:
    """Text and token ids of each prompt."""
    prompt: Any = body.prompt
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        prompt = [prompt]
    if not prompt:
        raise RequestError("prompt", "is empty")
    if isinstance(prompt[0], str):
        return list(zip(prompt, await encode(context.engine, prompt), strict=True))
    return [(context.decode(ids, "prompt", skip_special_tokens=False) if body.echo else "", ids) for ids in prompt]


def _requests(body: CompletionRequest, prompt_ids: Sequence[Sequence[int]], context: Context) -> list[Request]:
    rid = body.rid or f"cmpl-{uuid.uuid4().hex}"
    sampling = body.sampling(context.sampling_defaults, body.max_tokens)
    if body.is_ranked:
        sampling = dataclasses.replace(sampling, n=body.best_of)
    wants_logprobs = body.logprobs is not None
    return [
        Request(
            rid=rid if len(prompt_ids) == 1 else f"{rid}_{number}",
            input_ids=tuple(ids),
            sampling=sampling,
            return_logprob=wants_logprobs or body.is_ranked,
            logprob_start_len=0 if wants_logprobs and body.echo else -1,
            top_logprobs_num=body.logprobs or 0,
            priority=body.priority or 0,
            extra_key=namespace(body.cache_salt, body.extra_key),
        )
        for number, ids in enumerate(prompt_ids)
    ]


def _likeliest(samples: Sequence[GenerateOutput], count: int) -> list[GenerateOutput]:
    """The best samples by mean log-probability per token, as `best_of` is defined; equals keep their order."""

    def mean_logprob(sample: GenerateOutput) -> float:
        logprobs = [one.logprob for one in sample.output_logprobs or () if one.logprob is not None]
        return sum(logprobs) / len(logprobs) if logprobs else -math.inf

    return sorted(samples, key=mean_logprob, reverse=True)[:count]


def _choice(sample: GenerateOutput, echo: str, index: int, body: CompletionRequest, context: Context) -> TextChoice:
    wanted = body.logprobs is not None
    logprobs = _joined(sample.input_logprobs, sample.output_logprobs) if wanted else None
    return {
        "index": index,
        "text": echo + sample.text,
        "logprobs": CompletionLogprobs(context.token_texts).format(logprobs),
        **finish_fields(sample.finish),
        **receipt_fields(sample.receipt, wanted=body.return_receipt),
    }


async def _write(call: Call, chunks: _Chunks, interval: int, out: sse.Writer) -> None:
    await call.deliver(lambda deltas: out.write_now(b"".join([chunks.of(*one) for one in deltas])), interval)
    await out.write(chunks.end())


class _Chunks:
    """Encodes the stream of a call's choices.

    Args:
      n: samples of each prompt. echoes: what the choices of each prompt begin with.
    """

    def __init__(self, head: dict[str, Any], n: int, echoes: Sequence[str], body: CompletionRequest, texts: TokenTexts):
        self._chunk = sse.EventHead(head).event
        self._n = n
        self._echoes = echoes
        self._body = body
        self._texts = texts
        self._usage = Usage()
        self._logprobs: dict[int, CompletionLogprobs] = {}

    def of(self, number: int, delta: OutputDelta) -> bytes:
        """The chunk that a delta of prompt `number` becomes."""
        index = number * self._n + delta.index
        text = delta.text
        if index not in self._logprobs:
            self._logprobs[index] = CompletionLogprobs(self._texts)
            text = self._echoes[number] + text
        choice = {
            "index": index,
            "text": text,
            "logprobs": self._logprobs[index].format(_joined(delta.prompt_logprobs, delta.logprobs)),
            **finish_fields(delta.finish),
        }
        if delta.finish is None or delta.receipt is None:
            return self._chunk({"choices": [choice]})
        self._usage.add(delta.index, delta.receipt)
        sglext = self._usage.sglext(wanted=bool(self._body.return_cached_tokens_details))
        choice |= receipt_fields(delta.receipt, wanted=self._body.return_receipt)
        return self._chunk({"choices": [choice], **sglext})

    def end(self) -> bytes:
        """What follows the last choice's end."""
        return self._chunk({"choices": [], "usage": self._usage.as_dict()}) if self._body.include_usage else b""


def _joined(
    prompt: Sequence[TokenLogprobs] | None, output: Sequence[TokenLogprobs] | None
) -> list[TokenLogprobs] | None:
    return None if prompt is None and output is None else [*(prompt or ()), *(output or ())]
