"""The benchmarks of structured output run, and what they count holds: answers validate, masks take known documents."""

from __future__ import annotations

import pytest

import sgjax
from benchmarks.structured import fill, jump, overlap
from benchmarks.structured.schemas import CHARACTER, make_schema, unbounded
from sgjax.text import load_tokenizer


@pytest.fixture(scope="module")
def engine():
    with sgjax.Engine("embedded", skip_warmup=True, max_running_requests=16, max_total_tokens=16_000) as engine:
        yield engine
        engine.check()


def test_the_embedded_model_fills_varied_schemas(engine):
    figures = fill.fill(engine, 32)
    assert (figures["parsed"], figures["validated"], figures["ends"]) == (32, 32, {"stop": 32})
    assert figures["formats_taken"] >= 31


def test_schemas_vary_and_repeat():
    assert make_schema(3) == make_schema(3)
    assert len({str(make_schema(seed)) for seed in range(200)}) > 190
    assert "maxLength" in str(CHARACTER)
    assert "maxLength" not in str(unbounded(CHARACTER))


def test_a_character_is_mostly_forced(engine):
    (output,) = jump._characters(engine, 1)
    assert output.receipt is not None
    assert output.receipt.forced_tokens > len(output.output_ids) / 2
    assert output.receipt.steps < len(output.output_ids) * 0.6


def test_every_mask_takes_the_known_document(embedded_model_path):
    """A token that its mask forbids would end its row."""
    tokenizer = load_tokenizer(embedded_model_path)
    figures = overlap.measure(tokenizer, num_rows=4, step_ms=[1.0], num_steps=40, repeats=1)
    assert [row["schema"] for row in figures] == list(overlap.SCHEMAS)
