"""The Hopper kernels, interpreted on the CPU with a race detector, against the references."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from sgjax.kernels import resolve
from sgjax.kernels.cases import AttentionCase, FilterCase, WriteCase
from sgjax.kernels.paged_decode import mosaic as decode_mosaic
from sgjax.kernels.paged_decode import reference as decode_reference
from sgjax.kernels.paged_prefill import mosaic as prefill_mosaic
from sgjax.kernels.paged_prefill import mosaic_tiles
from sgjax.kernels.paged_prefill import reference as prefill_reference
from sgjax.kernels.sampling_threshold import mosaic as threshold_mosaic
from sgjax.kernels.sampling_threshold import reference as threshold_reference
from sgjax.kernels.write_kv import mosaic as write_mosaic
from sgjax.kernels.write_kv import reference as write_reference
from sgjax.kernels.write_kv import specs as write_specs

# Shared memory that was never written is NaN in the interpreter, and rows past a block's are computed and dropped.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered in matmul:RuntimeWarning")


_FLOAT8: dict[str, Any] = dict(kv_dtype="float8_e4m3fn")
_DECODE = (  # With the number of programs: more of them cut rows into more pieces.
    (AttentionCase(kv_lens=(40, 0, 0, 65, 1, 130), sinks=True, return_lse=True), 3),
    (AttentionCase(kv_lens=(130, 20), window=2, num_kv_heads=1, group=12, head_dim=80, page_size=32), 2),
    (AttentionCase(kv_lens=(300, 5), num_kv_heads=1, group=1, head_dim=96, page_size=128, **_FLOAT8), 2),
    (AttentionCase(kv_lens=(600, 1), window=300, soft_cap=2.0, num_kv_heads=1, head_dim=128, page_size=64), 4),
    (AttentionCase(kv_lens=(520,), num_kv_heads=1, head_dim=256, page_size=64, return_lse=True, **_FLOAT8), 9),
    (AttentionCase(kv_lens=(33, 0, 5), num_kv_heads=1, group=128, page_size=32), 2),  # A head's queries are two items.
    (AttentionCase(kv_lens=(0, 0), sinks=True, return_lse=True), 1),
)
_PREFILL = (  # With sizes: few programs, so that each goes through several tiles.
    (AttentionCase(q_lens=(1, 70, 0, 5, 0), kv_lens=(30, 200, 0, 16, 32), num_tokens=140, num_kv_heads=1), {}),
    (AttentionCase(q_lens=(100, 8), kv_lens=(600, 513), window=100, soft_cap=2.0, num_kv_heads=1, group=3), {}),
    (
        AttentionCase(q_lens=(20,), kv_lens=(150,), num_kv_heads=1, group=12, head_dim=96, sinks=True, return_lse=True),
        {},
    ),
    (
        AttentionCase(
            q_lens=(5, 0, 40),
            kv_lens=(600, 40, 0),
            causal=False,
            sinks=True,
            num_kv_heads=1,
            page_size=32,
            note="2parts",
        ),
        {},
    ),
    (
        AttentionCase(q_lens=(22, 3), kv_lens=(150, 3), num_kv_heads=1, group=1, head_dim=80, page_size=128),
        dict(block_keys=64, num_stages=3),
    ),
    (
        AttentionCase(
            q_lens=(40,), kv_lens=(170,), num_kv_heads=1, head_dim=256, page_size=64, kv_dtype="float8_e4m3fn"
        ),
        {},
    ),
)


def _interpreted(function, args, kwargs, capsys):
    """The result, when no two threads or copies touched the same memory unordered."""
    options = {"xla_backend_optimization_level": 0}  # Optimised, an interpreted kernel takes longest to compile.
    with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(detect_races=True)):
        run = jax.jit(partial(function, **kwargs)).lower(*args).compile(options)
        out = jax.block_until_ready(run(*args))
    assert "RACE DETECTED" not in capsys.readouterr().out
    return out


def _assert_close(out, reference) -> None:
    """Within two roundings to bfloat16, that of the weights and that of the result."""
    for array, expected in zip(jax.tree.leaves(out), jax.tree.leaves(reference), strict=True):
        assert array.dtype == expected.dtype
        np.testing.assert_allclose(
            np.asarray(array, np.float32), np.asarray(expected, np.float32), rtol=2**-6, atol=2**-7
        )


@pytest.mark.parametrize(("case", "programs"), _DECODE, ids=lambda value: getattr(value, "name", ""))
def test_paged_decode(case, programs, capsys):
    args = case.make()
    tuning = decode_mosaic.Tuning(multiprocessors=programs, programs_per_multiprocessor=1)
    out = _interpreted(decode_mosaic.paged_decode, args, case.kwargs | {"tuning": tuning}, capsys)
    _assert_close(out, jax.jit(partial(decode_reference.paged_decode, **case.kwargs))(*args))


def test_decode_shares_units_out_evenly():
    """Every program's first unit lies in its row, and no program has more than the mean, rounded up."""
    case = AttentionCase(kv_lens=(1000, 0, 3, 70, 0), window=500)
    q, k_cache, *_, kv_lens = case.make()
    tuning = decode_mosaic.Tuning(block_keys=64, multiprocessors=4, programs_per_multiprocessor=1)
    plan = decode_mosaic._make_plan(q, k_cache, 1.0, case.window, None, tuning)
    work = decode_mosaic._share_out(kv_lens, case.num_kv_heads, plan)
    starts = [2 * n for n in (0, 9, 9, 10, 12, 12)]  # Position 500 is in block 7 of the 16.
    assert work.unit_starts.tolist() == starts
    assert work.first_rows.tolist() == [0, 0, 0, 2]  # of units 0, 6, 12 and 18


@pytest.mark.parametrize(("case", "sizes"), _PREFILL, ids=lambda value: getattr(value, "name", ""))
def test_paged_prefill(case, sizes, capsys):
    args = case.make()
    tuning = prefill_mosaic.Tuning(num_programs=2, **sizes)
    out = _interpreted(prefill_mosaic.paged_prefill, args, case.kwargs | {"tuning": tuning}, capsys)
    _assert_close(out, jax.jit(partial(prefill_reference.paged_prefill, **case.kwargs))(*args))


@pytest.mark.parametrize("window", [None, 1, 50, 200])
def test_prefill_tiles_are_the_batch_with_the_most_work_first(window):
    """Each token is in one tile, no block that is left out is seen, and what goes without a mask is seen in full."""
    q_starts, kv_lens, num_tokens, block_keys = (3, 3, 4, 104, 104, 107), (5, 300, 220, 0, 107), 130, 128
    made = mosaic_tiles.make_tiles(
        jnp.asarray(kv_lens), jnp.asarray(q_starts), num_tokens, tile_tokens=64, block_keys=block_keys, window=window
    )
    tiles = [mosaic_tiles.Tile(*map(int, fields)) for fields in made.tiles]
    tokens = [token for tile in tiles for token in range(tile.first_token, tile.first_token + tile.num_tokens)]
    assert sorted(tokens) == list(range(num_tokens))
    assert [tile.num_blocks for tile in tiles] == sorted((tile.num_blocks for tile in tiles), reverse=True)
    for tile in tiles:
        positions = tile.first_position + np.arange(tile.num_tokens)[:, None]
        keys = np.arange(3 * block_keys)
        visible = (keys <= positions) & (keys > positions - (window or 1000)) & (tile.kv_len > 0)
        blocks = visible.reshape(len(positions), 3, block_keys)
        begin = tile.end - tile.num_blocks
        assert not blocks[:, :begin].any()
        assert not blocks[:, tile.end :].any()
        assert blocks[:, begin + tile.num_early : tile.end - tile.num_late].all()
        if tile.num_tokens and tile.kv_len:
            row = tile.sequence
            assert tile.kv_len == kv_lens[row]
            assert tile.first_position == kv_lens[row] - q_starts[row + 1] + tile.first_token


@pytest.mark.parametrize(
    "case", [case for case in write_specs.PARITY if case.dtype == "bfloat16"], ids=lambda case: case.name
)
def test_write_kv(case, capsys):
    args = case.make()
    out = _interpreted(write_mosaic.write_kv, args, {}, capsys)
    for cache, expected in zip(out, write_reference.write_kv(*args), strict=True):
        np.testing.assert_array_equal(np.asarray(cache, np.float32), np.asarray(expected, np.float32))


def test_sampling_threshold(capsys):
    """Rows in clusters of two blocks, one of which is filled up: no filter, top_p, top_k and top_p."""
    args = tuple(x[np.array([0, 2, 3])] for x in FilterCase(num_rows=4, vocab_size=1900).make())
    out = _interpreted(partial(threshold_mosaic.sampling_threshold, lines_per_block=8), args, {}, capsys)
    np.testing.assert_array_equal(out, threshold_reference.sampling_threshold(*args))


def test_sampling_threshold_names_a_vocabulary_that_is_too_large():
    shapes = FilterCase(num_rows=2, vocab_size=262_145).shapes()
    with pytest.raises(NotImplementedError, match=r"vocabulary is 262145.*up to 262144"):
        jax.eval_shape(threshold_mosaic.sampling_threshold, *shapes)


@pytest.mark.parametrize(
    ("change", "named"),
    [({"dtype": "float32"}, "float32"), ({"head_dim": 72}, "72"), ({"page_size": 8}, "page_size is 8")],
)
def test_what_is_not_supported_is_named(change, named):
    for function, case in (
        (decode_mosaic.paged_decode, AttentionCase(kv_lens=(3,), **change)),
        (prefill_mosaic.paged_prefill, AttentionCase(kv_lens=(3,), q_lens=(2,), **change)),
    ):
        with pytest.raises(NotImplementedError, match=named):
            jax.eval_shape(lambda *args, f=function, c=case: f(*args, **c.kwargs), *case.shapes())
    if "page_size" not in change:
        with pytest.raises(NotImplementedError, match=named):
            jax.eval_shape(write_mosaic.write_kv, *WriteCase(num_tokens=3, **change).shapes())


def test_caches_of_two_dtypes_are_named():
    for function, case in (
        (decode_mosaic.paged_decode, AttentionCase(kv_lens=(3,))),
        (prefill_mosaic.paged_prefill, AttentionCase(kv_lens=(3,), q_lens=(2,))),
    ):
        q, k_cache, v_cache, *rows = case.shapes()
        v_cache = jax.ShapeDtypeStruct(v_cache.shape, jnp.float8_e4m3fn)
        with pytest.raises(NotImplementedError, match="k_cache is bfloat16 and v_cache float8_e4m3fn"):
            jax.eval_shape(partial(function, **case.kwargs), q, k_cache, v_cache, *rows)


def test_decode_names_a_group_that_is_too_large():
    case = AttentionCase(kv_lens=(3,), group=65)
    with pytest.raises(NotImplementedError, match="65 query heads"):
        jax.eval_shape(lambda *args: decode_mosaic.paged_decode(*args, **case.kwargs), *case.shapes())


def test_decode_refuses_blocks_that_it_cannot_multiply():
    case, tuning = AttentionCase(kv_lens=(3,)), decode_mosaic.Tuning(block_keys=100)
    with pytest.raises(ValueError, match="block_keys is 100"):
        jax.eval_shape(partial(decode_mosaic.paged_decode, **case.kwargs, tuning=tuning), *case.shapes())


def test_other_gpus_are_named_and_auto_goes_on(monkeypatch, caplog):
    monkeypatch.setattr(jax, "local_devices", lambda: [SimpleNamespace(compute_capability="8.0")])
    case = AttentionCase(kv_lens=(30, 5))
    args = case.make()
    with pytest.raises(NotImplementedError, match=r"8\.0"):
        decode_mosaic.paged_decode(*args, **case.kwargs)
    out = resolve("*=auto", "gpu").paged_decode(*args, **case.kwargs)
    _assert_close(out, decode_reference.paged_decode(*args, **case.kwargs))
    assert "8.0" in caplog.text


def test_programs_fill_the_gpu_at_hand(monkeypatch):
    gpu = SimpleNamespace(compute_capability="9.0", core_count=114)
    monkeypatch.setattr(jax, "local_devices", lambda: [gpu])
    q, k_cache, *_ = AttentionCase(kv_lens=(3,), head_dim=128).shapes()
    plan = decode_mosaic._make_plan(q, k_cache, 1.0, None, None, decode_mosaic.Tuning(programs_per_multiprocessor=1))
    assert plan.num_programs == 114
