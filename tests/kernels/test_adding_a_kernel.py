"""docs/adding_a_kernel.md: its code runs, and is as short as it says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from sgjax.kernels import resolve
from sgjax.kernels.cases import AttentionCase

DOCUMENT = Path(__file__).parents[2] / "docs" / "adding_a_kernel.md"
TINY = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 49152,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "torch_dtype": "float32",
}


@pytest.fixture
def blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert len(found) == 2
    (tmp_path / "alibi.py").write_text(found[0])
    monkeypatch.chdir(tmp_path)
    return found


def test_kernel_does_what_alibi_says(blocks):
    """Against a loop over one row: scores minus slope times distance."""
    assert len(blocks[0].splitlines()) < 40
    case = AttentionCase(kv_lens=(21,), head_dim=8, dtype="float32")
    decode = resolve("paged_decode=alibi.py:paged_decode", "cpu").paged_decode
    q, k_cache, v_cache, page_table, _ = (np.asarray(arg, np.float64) for arg in case.make())
    pages, offsets = page_table[0, np.arange(21) // 16].astype(int), np.arange(21) % 16
    expected = np.zeros((2, 2, 8))
    for head, group in np.ndindex(2, 2):
        slope = 2.0 ** (-8 * (head * 2 + group + 1) / 4)
        scores = 8**-0.5 * k_cache[head, pages, offsets] @ q[0, head, group] - slope * np.arange(20, -1, -1)
        weights = np.exp(scores - scores.max())
        expected[head, group] = weights / weights.sum() @ v_cache[head, pages, offsets]
    np.testing.assert_allclose(decode(*case.make(), **case.kwargs)[0], expected, atol=1e-5)


def test_notebook_checks_and_serves_with_it(blocks, tmp_path: Path, embedded_model_path: Path, monkeypatch, capsys):
    """With a tiny random model in the embedded one's place, which takes seconds to compile."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    settings = dict(tokenizer_path=str(embedded_model_path), load_format="dummy", max_running_requests=2)
    settings["compile_cache_dir"] = str(tmp_path / "compiled")
    code = blocks[1].replace('sgjax.Engine("embedded", ', f"sgjax.Engine({str(tmp_path)!r}, **{settings!r}, ")
    assert code != blocks[1]
    exec(compile(code, str(DOCUMENT), "exec"), {})
    assert capsys.readouterr().out.strip(), "the engine generated nothing"
