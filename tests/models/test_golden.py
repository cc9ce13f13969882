"""Every family against Hugging Face transformers, through `tests/golden/make_models.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

GOLDEN = Path(__file__).parent.parent / "golden" / "models"
NAMES = sorted(folder.name for folder in GOLDEN.iterdir())
TOLERANCE = 1e-4
CHUNK = 16
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
    d.feed(prompts, pad_to=128)
    check(d.log_probs, expected)


def test_prefill_in_chunks(golden, driver):
    model, prompts, expected = golden
    d = driver(model, 2, 72)
    for start in range(0, 72, CHUNK):
        d.feed([prompt[start : start + CHUNK] for prompt in prompts], pad_to=2 * CHUNK)
    check(d.log_probs, expected)


def test_decode_after_prefill(golden, driver):
    """One token a step from before the window is full until well after, then a chunk, one row having ended."""
    model, prompts, expected = golden
    d = driver(model, 2, 72)
    d.feed([prompt[:CHUNK] for prompt in prompts], pad_to=2 * CHUNK)
    for i in range(CHUNK, 45):
        d.feed([prompt[i : i + 1] for prompt in prompts], decode=True, pad_to=4)
    d.feed([prompts[0][45:], prompts[1][:0]], pad_to=2 * CHUNK)
    check(d.log_probs, expected)
