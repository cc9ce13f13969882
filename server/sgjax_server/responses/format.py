"""The response object of the Responses API."""

from __future__ import annotations

from typing import Any

from sgjax.types import FinishReason, Receipt
from sgjax_server.chat.events import Ended
from sgjax_server.chat.turn import ChatTurn
from sgjax_server.responses.conversation import Item
from sgjax_server.schemas.answers.responses import ResponseUsage
from sgjax_server.schemas.responses import ResponsesRequest

Body = dict[str, Any]


def new_body(body: ResponsesRequest, turn: ChatTurn, model: str, created_s: int) -> Body:
    """A response that has begun. It repeats what was asked for, with what the model's defaults made of it."""
    sampling = turn.sampling
    return {
        "id": turn.rid,
        "object": "response",
        "created_at": created_s,
        "status": "in_progress",
        "background": bool(body.background),
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "metadata": body.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": turn.parallel_tool_calls,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning is not None else None, "summary": None},
        "service_tier": "default",
        "store": body.is_stored,
        "temperature": sampling.temperature,
        "text": {"format": _text_format(body)},
        "tool_choice": body.tool_choice if isinstance(body.tool_choice, str) else _dumped(body.tool_choice) or "auto",
        "tools": [{"strict": False, **tool.model_dump(exclude_none=True)} for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": sampling.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": None,
    }


def ended(body: Body, items: list[Item], end: Ended, *, with_receipt: bool) -> Body:
    """The response when its turn has ended."""
    done = {**body, "output": items, **_status(end.finish)}
    if end.receipt is not None:
        done["usage"] = _usage(end.receipt, end.num_reasoning_tokens)
        if with_receipt:
            done["sgjax"] = {"receipt": end.receipt}
    return done


def failed(body: Body, items: list[Item], message: str) -> Body:
    """The response when its turn could not be finished."""
    return {**body, "status": "failed", "output": items, "error": {"code": "server_error", "message": message}}


def cancelled(body: Body) -> Body:
    return {**body, "status": "cancelled"}


def _status(finish: FinishReason) -> Body:
    if finish.kind == "stop":
        return {"status": "completed"}
    if finish.kind == "length":
        return {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}
    message = finish.message or "aborted"
    return {"status": "failed", "error": {"code": "server_error", "message": f"the answer was ended: {message}"}}


def _usage(receipt: Receipt, num_reasoning_tokens: int) -> ResponseUsage:
    return {
        "input_tokens": receipt.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": receipt.cached_tokens,
            "cache_write_tokens": receipt.prompt_tokens - receipt.cached_tokens,
        },
        "output_tokens": receipt.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": num_reasoning_tokens},
        "total_tokens": receipt.prompt_tokens + receipt.completion_tokens,
    }


def _text_format(body: ResponsesRequest) -> Body:
    if body.text is None or body.text.format is None:
        return {"type": "text"}
    return body.text.format.model_dump(exclude_none=True, by_alias=True)


def _dumped(choice: Any) -> Body | None:
    return None if choice is None else choice.model_dump()
