"""SGLang's routes about tokens: texts to ids, ids to texts."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from sgjax_server.calls import encode, encode_chat, fields_named
from sgjax_server.routes.context import ContextDep, json_response
from sgjax_server.schemas.answers.native import Texts, Tokens
from sgjax_server.schemas.tokenize import DetokenizeRequest, TokenizeRequest

router = APIRouter(tags=["tokens"])


@router.post("/tokenize", responses={200: {"model": Tokens}})
@router.post("/v1/tokenize", include_in_schema=False)
async def tokenize(body: TokenizeRequest, context: ContextDep) -> Response:
    """Token ids of a text, of several, or of a conversation, with their count."""
    ids: Any
    with fields_named({"text": "prompt" if body.messages is None else "messages"}):
        if body.messages is not None:
            ids = await encode_chat(context.engine, body.messages, add_generation_prompt=body.add_generation_prompt)
        elif isinstance(body.prompt, list):
            ids = await encode(context.engine, body.prompt, add_special_tokens=body.add_special_tokens)
        else:
            (ids,) = await encode(context.engine, [body.prompt or ""], add_special_tokens=body.add_special_tokens)
    count = [len(one) for one in ids] if isinstance(body.prompt, list) else len(ids)
    answer = Tokens(tokens=ids, count=count, max_model_len=context.engine.info.context_length)
    return json_response(answer)


@router.post("/detokenize", responses={200: {"model": Texts}})
@router.post("/v1/detokenize", include_in_schema=False)
async def detokenize(body: DetokenizeRequest, context: ContextDep) -> Response:
    """The text of token ids; bytes that are no character show as U+FFFD."""
    given: Any = body.tokens
    is_batch = bool(given) and isinstance(given[0], list)
    texts = [
        context.decode(ids, "tokens", skip_special_tokens=body.skip_special_tokens)
        for ids in (given if is_batch else [given])
    ]
    return json_response(Texts(text=texts if is_batch else texts[0]))
