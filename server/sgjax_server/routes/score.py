"""SGLang's scoring: how likely each label token is after a query and an item."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Response

from sgjax.types import GenerateOutput, Request, SamplingParams
from sgjax_server.calls import Call, encode, fields_named, finished
from sgjax_server.routes.context import Context, ContextDep, json_response
from sgjax_server.schemas.answers.native import Scores
from sgjax_server.schemas.tokenize import ScoreRequest

router = APIRouter(tags=["scoring"])

_NEXT_TOKEN = SamplingParams(max_new_tokens=1, temperature=0.0, ignore_eos=True)


@router.post("/v1/score", responses={200: {"model": Scores}})
async def score(body: ScoreRequest, context: ContextDep) -> Response:
    """One list of scores per item, in the order of its labels. What the prompts share is computed once."""
    rid = f"score-{uuid.uuid4().hex}"
    with fields_named({"input_ids": "items", "text": "items", "token_ids_logprob": "label_token_ids"}):
        prompts = await _prompts(body, context)
        requests = [
            Request(
                rid=f"{rid}-{number}",
                input_ids=tuple(ids),
                sampling=_NEXT_TOKEN,
                return_logprob=True,
                token_ids_logprob=tuple(dict.fromkeys(labels)),  # each is computed once
            )
            for number, (ids, labels) in enumerate(zip(prompts, body.labels, strict=True))
        ]
        call = Call(context, requests)
    results = await finished(call, context.receive)
    scores = [
        _scores(sample, labels, softmax=body.apply_softmax)
        for (sample,), labels in zip(results, body.labels, strict=True)
    ]
    num_tokens = sum(map(len, prompts))
    usage = {"prompt_tokens": num_tokens, "completion_tokens": 0, "total_tokens": num_tokens}
    return json_response({"object": "scoring", "model": context.model_name, "scores": scores, "usage": usage})


async def _prompts(body: ScoreRequest, context: Context) -> list[list[int]]:
    query: Any = body.query
    prompts = [item + query if body.item_first else query + item for item in body.item_list]
    return await encode(context.engine, prompts) if isinstance(query, str) else prompts


def _scores(sample: GenerateOutput, labels: Sequence[int], *, softmax: bool) -> list[float]:
    """Probabilities, of the whole vocabulary or, with `softmax`, of the labels alone."""
    assert sample.output_logprobs is not None
    found = dict(sample.output_logprobs[0].asked)
    if not softmax:
        return [math.exp(found[label]) for label in labels]
    best = max(found[label] for label in labels)
    if best == -math.inf:
        return [0.0] * len(labels)
    weights = [math.exp(found[label] - best) for label in labels]
    return [weight / sum(weights) for weight in weights]
