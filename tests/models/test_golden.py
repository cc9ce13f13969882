"""Every family against Hugging Face transformers, through `tests/golden/make_models.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parent.parent / "golden" / "models"
NAMES = sorted(folder.name for folder in GOLDEN.iterdir())
TOLERANCE = 1e-4
# The second row is shorter, so that rows end at different steps.
LENS = (72, 45)


@pytest.fixture(scope="module", params=NAMES)
def golden(request, load_golden):
    """The model, its prompts and what transformers makes of them."""
    expected = np.load(GOLDEN / request.param / "expected.npz")
    prompts = [ids[:n] for ids, n in zip(expected["token_ids"], LENS, strict=True)]
    return load_golden(request.param), prompts, expected["logprobs"]


def check(log_probs, expected):
    for row, (got, n) in enumerate(zip(log_probs, LENS, strict=True)):
        np.testing.assert_allclose(np.stack(got), expected[row, :n], atol=TOLERANCE, rtol=0)


def test_prefill_in_one_batch(golden, driver):
    model, prompts, expected = golden
    d = driver(model, 2, 72)
    d.feed(prompts, padding=11)
    check(d.log_probs, expected)


def test_prefill_in_chunks(golden, driver):
    model, prompts, expected = golden
    d = driver(model, 2, 72)
    for start in range(0, 72, 16):
        d.feed([prompt[start : start + 16] for prompt in prompts])
    check(d.log_probs, expected)


def test_decode_after_prefill(golden, driver):
    """From before the window is full until well after, one token a step; the shorter row is decoded first."""
    model, prompts, expected = golden
    d = driver(model, 2, 72)
    d.feed([prompts[0][:20], prompts[1][:20]])
    for i in range(20, 45):
        d.feed([prompts[0][i : i + 1], prompts[1][i : i + 1]], decode=True, padding=2)
    d.feed([prompts[0][45:], prompts[1][:0]])
    check(d.log_probs, expected)
