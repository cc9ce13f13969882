"""The C++ kernels against the references, on every instruction set they are written for, and how they are built."""

from __future__ import annotations

import logging
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sgjax.kernels import registry, resolve
from sgjax.kernels.cases import AttentionCase as Case
from sgjax.kernels.native import attention, build
from sgjax.kernels.paged_decode import native as decode
from sgjax.kernels.paged_decode import reference as decode_reference
from sgjax.kernels.paged_decode import specs as decode_specs
from sgjax.kernels.paged_decode import xla as decode_xla
from sgjax.kernels.paged_prefill import native as prefill
from sgjax.kernels.paged_prefill import reference as prefill_reference
from sgjax.kernels.paged_prefill import specs as prefill_specs
from sgjax.kernels.write_kv.xla import write_kv

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, build._COMPILERS)), reason="the native kernels need a C++ compiler"
)

DECODE = (
    *decode_specs.PARITY,
    Case(kv_lens=(511, 512, 513, 1024, 1025, 1500), dtype="float32", note="keyranges"),
    Case(kv_lens=(1500, 3), window=700, dtype="float32", num_kv_heads=1, group=1),
    Case(kv_lens=(127, 128, 129, 255, 257), group=7, num_kv_heads=1),
    Case(kv_lens=(50, 20), head_dim=80, group=12),
    Case(kv_lens=(50, 20), head_dim=7, page_size=5, dtype="float32"),
    Case(kv_lens=(50, 20), head_dim=7, page_size=5),
    Case(kv_lens=(1500, 0, 20), window=700, sinks=True, return_lse=True),
)
PREFILL = (
    *prefill_specs.PARITY,
    Case(q_lens=(600,), kv_lens=(600,), dtype="float32", page_size=128, group=1),
    Case(q_lens=(63, 64, 65, 1), kv_lens=(63, 300, 65, 257), num_tokens=256, page_size=64, group=7),
    Case(q_lens=(40, 30), kv_lens=(40, 290), window=1, head_dim=80),
    Case(q_lens=(20,), kv_lens=(33,), page_size=5, head_dim=7, group=100, num_kv_heads=1),
    Case(q_lens=(70, 0, 3), kv_lens=(290, 0, 20), num_tokens=80, sinks=True, return_lse=True),
    Case(q_lens=(5, 40, 2), kv_lens=(290, 17, 0), num_tokens=64, causal=False, soft_cap=2.0, return_lse=True),
)


def _run(function, case: Case) -> list[np.ndarray]:
    out = jax.tree.leaves(jax.jit(lambda *args: function(*args, **case.kwargs))(*case.make()))
    assert [x.dtype for x in out] == [jnp.dtype(case.dtype), jnp.dtype("float32")][: 1 + case.return_lse]
    return [np.asarray(x, np.float32) for x in out]


def _check(case: Case) -> None:
    """float32: sums in another order. bfloat16: one rounding of the weights and one of the result."""
    kernel, reference = decode.paged_decode, decode_reference.paged_decode
    if case.q_lens is not None:
        kernel, reference = prefill.paged_prefill, prefill_reference.paged_prefill
    out = _run(kernel, case)
    tolerance = {"float32": dict(rtol=2e-5, atol=3e-6), "bfloat16": dict(rtol=2**-6, atol=2**-7)}[case.dtype]
    for x, expected in zip(out, _run(reference, case), strict=True):
        np.testing.assert_allclose(x, expected, **tolerance)
    padding = np.asarray(case.kv_lens) == 0 if case.q_lens is None else slice(sum(case.q_lens), None)
    assert not out[0][padding].any(), "padding is not zero"


@needs_compiler
@pytest.mark.parametrize("case", [*DECODE, *PREFILL], ids=lambda case: case.name)
def test_parity(case):
    _check(case)


_WITHOUT = (
    ["-mno-avx512bf16", "-mno-avx512f", "-mno-avx"] if platform.machine() == "x86_64" else ["-fno-tree-vectorize"]
)


@needs_compiler
@pytest.mark.parametrize("flag", _WITHOUT)
def test_parity_on_lesser_machines(flag, tmp_path):
    """Compiled for a CPU without this one's best instructions, in a process of its own: targets register once."""
    code = """
        import sys
        import jax
        sys.path.insert(0, sys.argv[1])
        from test_native import _check, build, decode_specs, prefill_specs, DECODE, PREFILL
        jax.config.update("jax_compilation_cache_dir", sys.argv[2])
        build._FLAGS += (sys.argv[3],)
        for case in (*DECODE[1:3], DECODE[8], *DECODE[-2:], *PREFILL[3:5], PREFILL[10], *PREFILL[-3:]):
            _check(case)
    """
    _python(code, Path(__file__).parent, tmp_path, flag)


def _python(code: str, *args: object) -> None:
    lines = "\n".join(line.removeprefix("        ") for line in code.splitlines())
    command = [sys.executable, "-c", lines, *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


@needs_compiler
def test_a_query_of_another_dtype_is_cast_as_xla_does():
    q, *rest = Case(kv_lens=(40, 7)).make()
    out = decode.paged_decode(q.astype(jnp.float32) * 1.001, *rest, scale=0.1)
    assert out.dtype == jnp.float32
    expected = decode.paged_decode((q.astype(jnp.float32) * 1.001).astype(jnp.bfloat16), *rest, scale=0.1)
    np.testing.assert_array_equal(out, expected)


@needs_compiler
def test_a_row_does_not_depend_on_its_batch():
    """To the bit: ranges of keys are cut by position, and which thread takes one does not matter."""
    case = Case(kv_lens=(1100, 40, 513, 256), num_kv_heads=3, group=3)
    q, k_cache, v_cache, page_table, kv_lens = case.make()
    whole = decode.paged_decode(q, k_cache, v_cache, page_table, kv_lens, scale=0.125)
    for row in range(4):
        one = slice(row, row + 1)
        alone = decode.paged_decode(q[one], k_cache, v_cache, page_table[one], kv_lens[one], scale=0.125)
        np.testing.assert_array_equal(np.asarray(alone[0]), np.asarray(whole[row]))


@needs_compiler
def test_calls_from_two_threads_at_once_give_the_same_every_time():
    decode_case = Case(kv_lens=(1100, 40, 513, 256) * 4, num_kv_heads=3, group=3)
    prefill_case = Case(q_lens=(64, 100), kv_lens=(300, 100), num_kv_heads=3, group=3)

    def repeat(function, case: Case) -> None:
        run = jax.jit(lambda *args: function(*args, **case.kwargs))
        args = case.make()
        first = np.asarray(run(*args))
        for _ in range(50):
            np.testing.assert_array_equal(np.asarray(run(*args)), first)

    jobs = [(decode.paged_decode, decode_case), (prefill.paged_prefill, prefill_case)] * 2
    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(repeat, *job) for job in jobs]:
            done.result(timeout=120)


@needs_compiler
def test_one_core_is_enough():
    """XLA's pool then has one thread, which may be the one that calls."""
    code = """
        import os, sys
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        sys.path.insert(0, sys.argv[1])
        from test_native import _check, DECODE, PREFILL
        _check(DECODE[1])
        _check(PREFILL[2])
    """
    _python(code, Path(__file__).parent)


@needs_compiler
def test_the_cache_is_read_in_place():
    case = Case(kv_lens=(300, 40), num_kv_heads=3, group=3, num_pages=512)
    q, cache, _, *ints = case.shapes()
    new = jax.ShapeDtypeStruct((2, 3, case.head_dim), cache.dtype)

    def step(k_cache, v_cache, q, new, kv_index, *ints):
        k_cache, v_cache = write_kv(k_cache, v_cache, new, new, kv_index)
        return k_cache, v_cache, decode.paged_decode(q, k_cache, v_cache, *ints, scale=0.125)

    index = jax.ShapeDtypeStruct((2,), jnp.int32)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(cache, cache, q, new, index, *ints).compile()
    memory = compiled.memory_analysis()
    cache_bytes = int(np.prod(cache.shape)) * 2
    assert memory.alias_size_in_bytes == 2 * cache_bytes
    assert memory.temp_size_in_bytes < cache_bytes / 8
    shape = ",".join(map(str, cache.shape))
    assert not re.search(rf"= bf16\[{shape}\]\S* (copy|transpose|convert)\(", compiled.as_text())


@needs_compiler
def test_heads_are_split_over_devices():
    code = """
        import re
        import jax, numpy as np
        from jax.sharding import NamedSharding, PartitionSpec
        jax.config.update("jax_num_cpu_devices", 2)
        from sgjax.kernels.cases import AttentionCase as Case
        from sgjax.kernels.paged_decode.native import paged_decode
        from sgjax.kernels.paged_prefill.native import paged_prefill
        mesh = jax.make_mesh((2,), ("tensor",), axis_types=(jax.sharding.AxisType.Auto,))
        cases = Case(kv_lens=(40, 0, 16)), Case(kv_lens=(40, 0, 16), q_lens=(10, 0, 16))
        for function, case in zip((paged_decode, paged_prefill), cases):
            args = case.make()
            cache = PartitionSpec("tensor")
            specs = [PartitionSpec(None, "tensor"), cache, cache, *[PartitionSpec()] * (len(args) - 3)]
            split = [jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip(args, specs)]
            run = jax.jit(lambda *args: function(*args, **case.kwargs))
            compiled = run.lower(*split).compile()
            assert not re.search("all-|collective", compiled.as_text())
            np.testing.assert_array_equal(np.asarray(compiled(*split)), np.asarray(run(*args)))
    """
    _python(code)


@needs_compiler
def test_what_would_read_outside_the_arrays_is_an_error():
    q, k_cache, v_cache, page_table, kv_lens = Case(kv_lens=(40, 7)).make()
    for table, lens, message in (
        (page_table.at[0, 1].set(10_000), kv_lens, "no page 10000"),
        (page_table, kv_lens.at[1].set(5000), "row 1 has 5000 tokens, more than its pages hold"),
    ):
        with pytest.raises(jax.errors.JaxRuntimeError, match=message):
            jax.block_until_ready(decode.paged_decode(q, k_cache, v_cache, table, lens, scale=1.0))
    starts = jnp.asarray([0, 0, 2], jnp.int32)
    rest = (k_cache, v_cache, page_table, kv_lens.at[1].set(1), starts)
    with pytest.raises(jax.errors.JaxRuntimeError, match="more queries than tokens"):
        jax.block_until_ready(prefill.paged_prefill(q, *rest, scale=1.0))


@needs_compiler
def test_other_dtypes_are_named():
    q, k_cache, v_cache, *ints = Case(kv_lens=(40, 7)).make()
    with pytest.raises(NotImplementedError, match="q bfloat16 with caches float16 and float16"):
        decode.paged_decode(q, k_cache.astype(jnp.float16), v_cache.astype(jnp.float16), *ints, scale=1.0)


@needs_compiler
def test_auto_takes_native_on_a_cpu_and_one_table_width_will_do():
    ops = resolve("", "cpu")
    assert ops.paged_decode.names == ops.paged_prefill.names == ("native", "xla")  # type: ignore[attr-defined]
    assert not ops.time_grows_with_table
    assert not resolve("*=native,write_kv=xla,sampling_threshold=xla", "cpu").time_grows_with_table
    assert resolve("*=xla", "cpu").time_grows_with_table


def test_without_a_compiler_auto_is_xla_and_says_why_once(monkeypatch, caplog):
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    for module in (registry, attention):
        monkeypatch.setattr(module, "unavailable", build.unavailable.__wrapped__)
    with caplog.at_level(logging.WARNING, registry.__name__):
        for _ in range(2):
            ops = resolve("", "cpu")
    assert ops.paged_decode is decode_xla.paged_decode
    assert ops.time_grows_with_table
    (said,) = [record.getMessage() for record in caplog.records]
    assert "no C++ compiler (looked for c++, g++, clang++)" in said
    with pytest.raises(NotImplementedError, match=r"no C\+\+ compiler"):
        resolve("paged_decode=native", "cpu").paged_decode(*Case(kv_lens=(4,)).make(), scale=1.0)


@needs_compiler
def test_the_compilers_own_words_are_the_reason(monkeypatch):
    monkeypatch.setattr(build, "_FLAGS", (*build._FLAGS, "-fno-such-option"))
    assert re.search("failed: .*error.*no-such-option", build.unavailable.__wrapped__() or "")


@needs_compiler
def test_processes_that_build_at_once_do_not_meet_half_a_library(tmp_path):
    """And one that comes later finds it, without compiling."""
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(build._build, [tmp_path] * 2)
    assert first == second
    assert list(tmp_path.iterdir()) == [first]
    changed = first.stat().st_mtime_ns
    assert build._build(tmp_path) == first
    assert first.stat().st_mtime_ns == changed


def test_a_folder_that_others_may_write_to_is_refused(tmp_path):
    native = tmp_path / "native"
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    try:
        assert build._folder() == native
        assert native.stat().st_mode & 0o777 == 0o700
        native.chmod(0o777)
        assert "that no other may write to" in (build.unavailable.__wrapped__() or "")
        native.rmdir()
        native.symlink_to(tmp_path)
        with pytest.raises(build._Unavailable):
            build._folder()
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
