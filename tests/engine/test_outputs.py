"""The output processor alone: stops in the text, and the engine's last event that each waits for."""

from __future__ import annotations

from pathlib import Path

import pytest

from sgjax.engine.outputs import OutputProcessor, RequestHandle, Stop
from sgjax.errors import EngineError, QueueFull
from sgjax.text import Tokenizer, load_tokenizer
from sgjax.types import FinishReason, OutputDelta, Receipt, Request, RequestError, SamplingParams, TokenEvent


@pytest.fixture(scope="module")
def tokenizer(embedded_model_path: Path) -> Tokenizer:
    return load_tokenizer(embedded_model_path)


class Processed:
    """A processor with one request, whose tokens are those of `pieces`, an event each."""

    def __init__(self, tokenizer: Tokenizer, **stops: str):
        self.outputs = OutputProcessor(tokenizer)
        self.handle = RequestHandle(Request(rid="a", input_ids=(1,), sampling=SamplingParams(**stops)), None)  # type: ignore[arg-type]
        self.outputs.open(self.handle)()
        self._tokenizer = tokenizer

    def event(self, text: str, finish: FinishReason | None = None) -> list[Stop]:
        receipt = None if finish is None else Receipt(completion_tokens=9)
        return self.outputs.process([TokenEvent("a", 0, self._tokenizer.encode(text), finish=finish, receipt=receipt)])

    def delta(self) -> OutputDelta:
        return next(iter(self.handle))


def test_a_stop_is_told_to_the_engine_and_its_last_event_awaited(tokenizer: Tokenizer):
    stop = FinishReason("stop", matched=" two")
    processed = Processed(tokenizer, stop=" two")
    assert processed.event("one two three") == [Stop("a", 0, stop)]
    assert processed.event(" four") == []  # of a step that was at work already
    assert processed.event("", FinishReason("abort")) == []
    delta = processed.delta()
    assert (delta.text, delta.finish) == ("one", stop)
    assert tokenizer.decode(delta.token_ids) == "one two"  # what came with the stop in one event, behind it, is dropped
    assert delta.receipt == Receipt(completion_tokens=7)


def test_a_stop_in_the_last_token_wins_over_the_length(tokenizer: Tokenizer):
    processed = Processed(tokenizer, stop=" two")
    assert processed.event("one two", FinishReason("length")) == []  # the core has ended it already
    assert processed.delta().finish == FinishReason("stop", matched=" two")


def test_a_regex_that_backtracks_without_end_aborts_its_request_alone(tokenizer: Tokenizer):
    processed = Processed(tokenizer, stop_regex=r"(\w|\w\w)+!\d")
    (stop,) = processed.event("x" * 60 + "!a")
    assert stop.rid == "a"
    processed.event("", stop.reason)
    finish = processed.delta().finish
    assert finish is not None
    assert finish.kind == "abort"
    assert "stop_regex" in (finish.message or "")


def test_a_regex_that_only_re_accepts_is_refused_in_the_callers_thread(tokenizer: Tokenizer):
    with pytest.raises(RequestError, match="stop_regex"):
        Processed(tokenizer, stop_regex="x{e<1")


@pytest.mark.parametrize("refusal", [RequestError("rid", "is in use"), QueueFull("1 waits"), EngineError("is closed")])
def test_a_refusal_reaches_who_waits_for_the_start_and_who_reads(tokenizer: Tokenizer, refusal: Exception):
    processed = Processed(tokenizer)
    processed.outputs.refused("a", refusal)  # type: ignore[arg-type]
    with pytest.raises(type(refusal)):
        processed.handle.wait_started()
    with pytest.raises(type(refusal)):
        processed.delta()


def test_a_failure_after_the_first_delta_is_raised_by_reading_alone(tokenizer: Tokenizer):
    processed = Processed(tokenizer)
    processed.event("one")
    processed.outputs.failed(EngineError("has failed"))
    processed.handle.wait_started()
    assert processed.delta().text == "one"
    with pytest.raises(EngineError):
        processed.delta()
