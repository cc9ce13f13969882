"""docs/adding_a_kernel.md: its code runs, and is as short as it says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

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


@pytest.fixture(scope="module")
def notebook() -> str:
    (found,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    return found


def test_kernel_does_what_the_document_says(notebook):
    """Against dense attention over the tokens of the first page and the last eight."""
    assert len(notebook.splitlines()) < 40
    scope: dict[str, Any] = {}
    exec(notebook[: notebook.index("\ncase = ")], scope)
    case = AttentionCase(kv_lens=(300, 290), head_dim=8, dtype="float32")
    sparse = scope["paged_decode"](*case.make(), **case.kwargs)
    q, k_cache, v_cache, page_table, _ = map(np.asarray, case.make())
    for row, kv_len in enumerate(case.kv_lens):
        last = -(-kv_len // 16)
        positions = np.array([i for i in range(kv_len) if i < 16 or i >= 16 * (last - 8)])
        pages, offsets = page_table[row, positions // 16], positions % 16
        for head, group in np.ndindex(2, 2):
            scores = 8**-0.5 * k_cache[head, pages, offsets] @ q[row, head, group]
            weights = np.exp(scores - scores.max())
            expected = weights / weights.sum() @ v_cache[head, pages, offsets]
            np.testing.assert_allclose(sparse[row, head, group], expected, atol=1e-5)
    with pytest.raises(NotImplementedError, match="window"):
        scope["paged_decode"](*case.make(), **case.kwargs | {"window": 7})


def test_notebook_checks_and_serves_with_it(notebook, tmp_path: Path, embedded_model_path: Path, capsys):
    """With a tiny random model in the embedded one's place, which takes seconds to compile."""
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    settings = dict(tokenizer_path=str(embedded_model_path), load_format="dummy", max_running_requests=2)
    settings |= dict(compile_cache_dir=str(tmp_path / "compiled"), skip_warmup=True)
    code = notebook.replace('sgjax.Engine("embedded", ', f"sgjax.Engine({str(tmp_path)!r}, **{settings!r}, ")
    assert code != notebook
    exec(compile(code, str(DOCUMENT), "exec"), {"__name__": "notebook"})
    assert capsys.readouterr().out.strip(), "the engine generated nothing"
