"""OpenAI's Responses."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import TypeAdapter

from sgjax.types import RequestError
from sgjax_server import sse
from sgjax_server.calls import fields_named, while_connected
from sgjax_server.chat.turn import ChatTurn, start_turn
from sgjax_server.errors import ApiError
from sgjax_server.responses import format
from sgjax_server.responses.conversation import Conversation, Item, input_items, new_id
from sgjax_server.responses.run import ResponseRun
from sgjax_server.responses.store import StoredResponse
from sgjax_server.routes.context import Context, ContextDep, json_response
from sgjax_server.schemas.answers.responses import ItemList, ResponseBody, ResponseDeleted, ResponseEvent
from sgjax_server.schemas.common import namespace
from sgjax_server.schemas.response_items import InputItem
from sgjax_server.schemas.responses import ResponsesRequest

router = APIRouter(prefix="/v1/responses", tags=["openai"])

_ITEMS = TypeAdapter(list[InputItem])


@router.post("", responses=sse.RESPONSES.responses(ResponseBody, ResponseEvent))
async def create(body: ResponsesRequest, context: ContextDep) -> Response:
    """Generates a response: whole, as a stream of events, or in the background."""
    items = input_items(body.input)
    history = context.responses.history(body.previous_response_id)
    with fields_named(body.PARAM_NAMES):
        turn = _turn(body, history, items, context)
        call = await start_turn(turn, context)
    run = ResponseRun(
        call,
        format.new_body(body, turn, context.model_name, int(time.time())),
        items,
        context,
        stored=body.is_stored,
        with_receipt=body.return_receipt,
    )
    if body.stream:
        return sse.EventStream(run.stream, run.close, sse.RESPONSES)
    if body.background:
        run.start()
        return json_response(run.response.body)
    try:
        return json_response(await while_connected(run.finish(), context.receive))
    finally:
        run.close()


@router.get("/{response_id}", responses={200: {"model": ResponseBody}})
async def get(response_id: str, context: ContextDep, stream: bool = False) -> Response:
    """A stored response, as far as it is."""
    if stream:
        raise RequestError("stream", "not supported: a stored response is given whole")
    return json_response(context.responses.get(response_id).body)


@router.delete("/{response_id}")
async def delete(response_id: str, context: ContextDep) -> ResponseDeleted:
    """Forgets a response, and ends it where it is still generated."""
    if context.responses.delete(response_id):
        context.engine.abort(response_id)
    return {"id": response_id, "object": "response", "deleted": True}


@router.post("/{response_id}/cancel", responses={200: {"model": ResponseBody}})
async def cancel(response_id: str, context: ContextDep) -> Response:
    """Ends a response that is generated in the background. One that has ended is left as it is."""
    response = context.responses.get(response_id)
    if not response.body["background"]:
        raise ApiError(400, f"{response_id} was not created with background, so it has ended", code="not_background")
    cancelled = format.cancelled(response.body)
    if context.responses.end(response_id, cancelled):
        context.engine.abort(response_id)
        return json_response(cancelled)
    return json_response(context.responses.get(response_id).body)


@router.get("/{response_id}/input_items", responses={200: {"model": ItemList}})
async def list_input_items(
    response_id: str,
    context: ContextDep,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> Response:
    """The items that the response's own request brought, the last first unless `order` is "asc"."""
    items = context.responses.get(response_id).input
    items = items[::-1] if order == "desc" else list(items)
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise RequestError("after", f"the response has no input item {after!r}")
        items = items[ids.index(after) + 1 :]
    page = items[:limit]
    return json_response(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(items) > limit,
        }
    )


def _turn(
    body: ResponsesRequest, history: Sequence[StoredResponse], items: Sequence[Item], context: Context
) -> ChatTurn:
    tools, choice = body.tools_and_choice()
    return ChatTurn(
        rid=new_id("resp"),
        messages=_messages(body.instructions, history, items),
        sampling=body.sampling(context.sampling_defaults),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        template_options=body.template_options(),
        return_logprob=body.wants_logprobs,
        top_logprobs_num=body.top_logprobs or 0,
        priority=body.priority or 0,
        extra_key=namespace(body.cache_salt, body.extra_key),
    )


def _messages(
    instructions: str | None, history: Sequence[StoredResponse], items: Sequence[Item]
) -> list[dict[str, Any]]:
    """The whole conversation; the instructions of earlier responses are not part of it.

    Raises:
      RequestError: a response to go on from has not ended.
    """
    conversation = Conversation(instructions)
    for response in history:
        if response.is_running:
            raise RequestError("previous_response_id", f"{response.id} has not ended")
        conversation.add(_ITEMS.validate_python([*response.input, *response.body["output"]]))
    conversation.add(_ITEMS.validate_python(items))
    if not conversation.messages:
        raise RequestError("input", "is empty")
    return conversation.messages
