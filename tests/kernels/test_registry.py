"""Choosing kernels by name, falling back, and swapping in a kernel from a researcher's file."""

from __future__ import annotations

import dataclasses
import json
import logging
from functools import partial
from pathlib import Path

import jax
import pytest

import sgjax
from sgjax.kernels import OP_NAMES, Ops, describe, registry, resolve
from sgjax.kernels.cases import AttentionCase
from sgjax.kernels.paged_decode import mosaic, reference, xla
from sgjax.kernels.registry import FirstSupported

CASE = AttentionCase(kv_lens=(5, 20), dtype="float32")


def test_star_stands_for_every_op_not_named():
    ops = resolve(" paged_decode = reference , *=xla", "cpu")
    assert ops.paged_decode is reference.paged_decode
    assert ops.write_kv is resolve("*=xla", "gpu").write_kv
    assert ops.paged_prefill.__module__ == "sgjax.kernels.paged_prefill.xla"


@pytest.mark.parametrize("platform", ["cpu", "gpu", "cuda"])
def test_auto_is_the_default_and_equal_when_resolved_twice(platform):
    assert resolve("", platform) == resolve("*=auto", platform) == resolve("write_kv=auto", platform)
    assert hash(resolve("", platform)) == hash(resolve("", platform))


def test_auto_prefers_the_kernel_of_the_platform():
    assert resolve("", "gpu").paged_decode.names[0] == "mosaic"  # type: ignore[attr-defined]
    assert resolve("", "cuda") == resolve("", "gpu")
    assert resolve("", "cpu") != resolve("", "gpu")


def test_functions_and_ops_are_choices_too():
    def mine(*args, **kwargs): ...

    ops = resolve({"paged_decode": mine, "*": "xla"}, "gpu")
    assert ops.paged_decode is mine
    assert ops.write_kv is resolve("*=xla", "gpu").write_kv
    assert resolve(ops) is ops
    assert resolve({"paged_decode": "reference"}).paged_decode is reference.paged_decode
    assert resolve() == resolve("", "cpu"), "the tests' device"
    assert describe("*=xla") == "*=xla"
    assert describe({"paged_decode": mine, "*": "xla"}) == f"paged_decode={__name__}.mine,*=xla"
    assert describe(ops).startswith("write_kv=sgjax.kernels.write_kv.xla.write_kv,paged_decode=")


def test_ops_are_known_again_in_another_run():
    ops = resolve("*=xla").replace(paged_decode=partial(reference.paged_decode), write_kv=resolve("", "gpu").write_kv)
    assert ops.identity.startswith("sgjax.kernels.write_kv.xla.write_kv, functools.partial, ")
    assert "paged_prefill.mosaic.paged_prefill or sgjax" in resolve("", "gpu").identity


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"decode": "xla"}, "unknown kernel 'decode'"),
        ({"paged_decode": 3}, "paged_decode: an implementation is a name or a function, not 3"),
        ("decode=xla", "unknown kernel 'decode'.*write_kv, paged_decode, paged_prefill"),
        ("paged_decode=cutlass", "unknown implementation 'cutlass' of paged_decode.*reference.*mosaic.*auto"),
        ("paged_decode", "must be op=implementation"),
        ("paged_decode=", "must be op=implementation"),
        ("paged_decode=xla,paged_decode=mosaic", "'paged_decode' is chosen twice"),
        ("*=xla,*=mosaic", "'\\*' is chosen twice"),
        ("paged_decode=missing.py:decode", "'missing.py' does not exist"),
    ],
)
def test_errors_name_the_choice(choices, message):
    with pytest.raises(ValueError, match=message):
        resolve(choices, "cpu")


def test_unknown_platform():
    with pytest.raises(ValueError, match="platform 'tpu'"):
        resolve("", "tpu")
    assert resolve("*=xla", "tpu")  # Named implementations do not depend on it.


def test_function_of_a_file(tmp_path: Path):
    path = tmp_path / "mine.py"
    path.write_text("def decode(q, *rest, **options):\n    return q\n\nanswer = 42\n")
    assert resolve(f"paged_decode={path}:decode", "cpu").paged_decode(CASE) is CASE  # type: ignore[call-arg]
    for name in ("encode", "answer"):
        with pytest.raises(ValueError, match=f"no function '{name}'"):
            resolve(f"paged_decode={path}:{name}", "cpu")


def test_explicit_choice_raises_for_what_it_does_not_support():
    ops = resolve("paged_decode=mosaic", "gpu")
    assert ops.paged_decode is mosaic.paged_decode
    with pytest.raises(NotImplementedError, match="float32"):
        ops.paged_decode(*CASE.make(), **CASE.kwargs)


def test_auto_falls_back_and_says_so_once(caplog):
    calls = []

    def picky(q, *args, **kwargs):
        calls.append(q.dtype)
        raise NotImplementedError("no float32 in test_auto_falls_back")

    auto = FirstSupported("paged_decode", ("picky", "xla"), (picky, xla.paged_decode))
    args = CASE.make()
    with caplog.at_level(logging.WARNING, registry.__name__):
        out = [auto(*args, **CASE.kwargs) for _ in range(3)]
    assert len(calls) == 3
    assert jax.numpy.array_equal(out[0], xla.paged_decode(*args, **CASE.kwargs))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert "paged_decode: picky does not support this case (no float32" in said[0]


def test_what_no_candidate_supports_raises_the_last_error():
    def refuse(*args, **kwargs):
        raise NotImplementedError("refused by the last")

    with pytest.raises(NotImplementedError, match="refused by the last"):
        FirstSupported("write_kv", ("a", "b"), (refuse, refuse))()


def test_replace_retraces_once():
    traced = []

    def mine(*args, **kwargs):
        traced.append("mine")
        return reference.paged_decode(*args, **kwargs)

    @jax.jit(static_argnames="ops")
    def step(args, ops: Ops):
        traced.append("step")
        return ops.paged_decode(*args, **CASE.kwargs)

    args, ops = CASE.make(), resolve("*=xla", "cpu")
    first = step(args, ops)
    assert traced == ["step"]
    swapped = ops.replace(paged_decode=mine)
    assert swapped.write_kv is ops.write_kv
    second = step(args, swapped)
    assert traced == ["step", "step", "mine"]
    for again in (ops, swapped, resolve("*=xla", "cpu"), ops.replace(paged_decode=mine)):
        step(args, again)
    assert traced == ["step", "step", "mine"]
    assert jax.numpy.allclose(first, second, atol=1e-5)


def test_ops_are_immutable_and_replace_knows_the_ops():
    ops = resolve("*=xla", "cpu")
    with pytest.raises(dataclasses.FrozenInstanceError):
        ops.write_kv = None  # type: ignore[misc,assignment]
    with pytest.raises(ValueError, match="unknown kernel 'decode'"):
        ops.replace(decode=xla.paged_decode)
    assert {field.name for field in dataclasses.fields(Ops)} == {*OP_NAMES}


TINY = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 49152,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "torch_dtype": "float32",
}

KERNEL = """
from pathlib import Path

from sgjax.kernels.paged_decode.reference import paged_decode

def my_decode(q, *args, **kwargs):
    with Path(__file__).with_suffix(".log").open("a") as log:
        print(*q.shape[1:], file=log)
    return {sign}paged_decode(q, *args, **kwargs)
"""


def test_engine_uses_a_researchers_kernel(tmp_path: Path, embedded_model_path: Path):
    """The same maths gives the same tokens, other maths gives others, and the kernel is traced, not run, by Python."""
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    sizes = dict(max_running_requests=2, max_total_tokens=256, chunked_prefill_size=64, skip_warmup=True)

    def greedy(kernels: str) -> list[int]:
        with sgjax.Engine(
            str(tmp_path),
            tokenizer_path=str(embedded_model_path),
            load_format="dummy",
            kernels=kernels,
            compile_cache_dir=str(tmp_path / "compiled"),
            **sizes,
        ) as engine:
            sampling_params = dict(temperature=0, max_new_tokens=8, ignore_eos=True)
            return engine.generate(input_ids=[5, 6, 7], sampling_params=sampling_params).output_ids

    expected = greedy("*=auto")
    for name, sign in (("same", ""), ("negated", "-")):
        path = tmp_path / f"{name}.py"
        path.write_text(KERNEL.format(sign=sign))
        tokens = greedy(f"paged_decode={path}:my_decode,*=auto")
        traced = path.with_suffix(".log").read_text().splitlines()
        assert set(traced) == {"2 2 8"}, "K, G and H of the model"
        assert len(traced) < 7, "more often than there are shapes: it ran in every step"
        assert tokens[0] == expected[0], "the first token comes from the prefill"
        assert (tokens == expected) == (name == "same")


def test_engine_refuses_an_unknown_kernel_by_name(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    with pytest.raises(ValueError, match="unknown implementation 'fast' of paged_decode"):
        sgjax.Engine(model_path=str(tmp_path), load_format="dummy", kernels="paged_decode=fast")
