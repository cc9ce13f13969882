"""The output processor alone: a request whose stop_regex misbehaves ends by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from sgjax.engine.outputs import OutputProcessor, RequestHandle
from sgjax.text import Tokenizer, load_tokenizer
from sgjax.types import FinishReason, OutputDelta, Receipt, Request, RequestError, SamplingParams, TokenEvent


@pytest.fixture(scope="module")
def tokenizer(embedded_model_path: Path) -> Tokenizer:
    return load_tokenizer(embedded_model_path)


class Core:
    """Records what the processor ends."""

    def __init__(self) -> None:
        self.finished: list[tuple[str, FinishReason]] = []

    def finish(self, rid: str, index: int | None, reason: FinishReason) -> list[TokenEvent]:
        self.finished.append((rid, reason))
        return [TokenEvent(rid, index or 0, [], finish=reason, receipt=Receipt(completion_tokens=3))]


def run(tokenizer: Tokenizer, core: Core, text: str, finish: FinishReason | None = None, **stops: str) -> OutputDelta:
    """The delta of one event that brings all tokens of `text`."""
    outputs = OutputProcessor(tokenizer, core.finish)
    request = Request(rid="a", input_ids=(1,), sampling=SamplingParams(**stops))  # type: ignore[arg-type]
    handle = RequestHandle(request, None)
    outputs.add(handle, outputs.open_streams(request))
    outputs.process([TokenEvent("a", 0, tokenizer.encode(text), finish=finish)], lambda rid: None)
    return next(iter(handle))


def test_a_stop_ends_the_request(tokenizer: Tokenizer):
    core = Core()
    delta = run(tokenizer, core, "one two three", stop=" two")
    assert (delta.text, delta.finish) == ("one", FinishReason("stop", matched=" two"))
    assert tokenizer.decode(delta.token_ids) == "one two"  # what came with the stop in one event, behind it, is dropped
    assert delta.receipt == Receipt(completion_tokens=2)
    assert core.finished == [("a", FinishReason("stop", matched=" two"))]


def test_a_stop_in_the_last_token_wins_over_the_length(tokenizer: Tokenizer):
    core = Core()
    delta = run(tokenizer, core, "one two", FinishReason("length"), stop=" two")
    assert delta.finish == FinishReason("stop", matched=" two")
    assert core.finished == []  # the core has ended it already


def test_a_regex_that_backtracks_without_end_aborts_its_request_alone(tokenizer: Tokenizer):
    core = Core()
    delta = run(tokenizer, core, "x" * 60 + "!a", stop_regex=r"(\w|\w\w)+!\d")
    assert delta.finish is not None
    assert delta.finish.kind == "abort"
    assert "stop_regex" in (delta.finish.message or "")
    assert [rid for rid, _ in core.finished] == ["a"]


def test_a_regex_that_only_re_accepts_is_refused_in_the_callers_thread(tokenizer: Tokenizer):
    outputs = OutputProcessor(tokenizer, Core().finish)
    request = Request(rid="a", input_ids=(1,), sampling=SamplingParams(stop_regex="x{e<1"))
    with pytest.raises(RequestError, match="stop_regex"):
        outputs.open_streams(request)
