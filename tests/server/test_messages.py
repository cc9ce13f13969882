"""What the processes say to each other comes through as it was."""

from __future__ import annotations

import dataclasses

import pytest
from sgjax_server.config import ServerConfig
from sgjax_server.processes import lines, messages
from sgjax_server.processes.messages import Abort, Call, ErrorInfo, Failed, Refused, Reply, Started, Step, Submit

from sgjax.config import EngineConfig
from sgjax.engine.info import StepReport
from sgjax.errors import EngineError, QueueFull, RequestError
from sgjax.types import FinishReason, Receipt, Request, SamplingParams, TokenEvent, TokenLogprobs

SAMPLING = SamplingParams(
    max_new_tokens=None,
    temperature=0.5,
    seed=2**62,
    stop=("a", "é\u2028"),
    stop_token_ids=(1, 2),
    stop_regex="a+",
    logit_bias={5: -1.5},
    json_schema={"type": "object"},
    n=3,
)
REQUEST = Request(
    rid="r", input_ids=tuple(range(5000)), sampling=SAMPLING, return_logprob=True, top_logprobs_num=2, priority=-7
)
EVENT = TokenEvent(
    "r",
    2,
    [1, 2**31],
    [TokenLogprobs(1, -0.25, ((1, -0.25), (2, -3.5)), ((9, -4.0),)), TokenLogprobs(2**31, None)],
    [TokenLogprobs(3, None)],
    FinishReason("stop", matched="é"),
    Receipt(queue_s=0.5, weight_version="two"),
)


@pytest.mark.parametrize(
    "message",
    [
        Submit(1, REQUEST, 12.5),
        Abort("r"),
        Abort("r", 1, FinishReason("stop", matched=7), worker=2),
        Call(0, 3, "pause", ["abort"]),
    ],
)
def test_to_the_engine(message):
    assert messages.decode_to_engine(messages.encode(message)) == message


@pytest.mark.parametrize(
    "message",
    [Step([EVENT, TokenEvent("s", 0, [])]), Started("r"), Refused("r", ErrorInfo("queue_full", "full")), Failed("why")],
)
def test_from_the_engine(message):
    assert messages.decode_from_engine(messages.encode(message)) == message


def test_a_reply_without_result_or_error_is_nothing():
    reply = messages.decode_from_engine(messages.encode(Reply(4)))
    assert isinstance(reply, Reply)
    assert (reply.number, bytes(reply.result), reply.error) == (4, b"\xc0", None)


@pytest.mark.parametrize("error", [RequestError("regex", "is bad"), QueueFull("full"), EngineError("closed")])
def test_errors(error: Exception):
    told = ErrorInfo.of(error).exception()
    assert (type(told), str(told), vars(told)) == (type(error), str(error), vars(error))


def test_other_errors_are_the_engines():
    assert str(ErrorInfo.of(ValueError("x")).exception()) == "ValueError: x"


def test_launches():
    engine = lines.LaunchEngine(EngineConfig(page_size=32), "info", "json", "/tmp/x", 3, lines.Weights("/w", "two"))
    assert lines.decode_launch_engine(lines.encode_line(engine)) == engine
    http = lines.LaunchHttp(ServerConfig(api_key="secret", cors_allow_origins=("*",)), "/tmp/x", 1, 7, 1000)
    assert lines.decode_launch_http(lines.encode_line(http)) == http


@pytest.mark.parametrize(
    "report",
    [
        lines.Loading("weights", 0.5),
        lines.Beat(None),
        lines.Beat(StepReport(1.5, "decode", (4, 4, 16), ("a", "b"))),
        lines.Weights("/w", "two"),
        lines.Rejected("no such model"),
        lines.Fault("out of memory"),
    ],
)
def test_reports(report):
    line = lines.encode_line(report)
    assert line.count(b"\n") == 1
    assert lines.decode_from_engine(line) == report


def test_a_request_is_checked_again_where_it_arrives():
    frame = messages.encode(Submit(0, dataclasses.replace(REQUEST, sampling=SamplingParams(top_p=0.5)), 0.0))
    with pytest.raises(Exception, match="top_p"):
        messages.decode_to_engine(frame.replace(b"\xcb\x3f\xe0" + bytes(6), b"\xcb\x40\x00" + bytes(6)))
