"""The Hopper kernels and whole steps with them, compiled for an H100 without one: they fit, and copy nothing large."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sgjax.kernels import OP_NAMES

COMPILER = Path(__file__).parents[2] / "build" / "h100"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What `h100.py` prints, run apart since the compiler's packages would disturb JAX here."""
    if not COMPILER.exists():
        unavailable = COMPILER.with_suffix(".unavailable")
        pytest.skip(unavailable.read_text() if unavailable.exists() else "scripts/install_h100_compiler.py was not run")
    dump = tmp_path_factory.mktemp("h100")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(COMPILER),
        "XLA_FLAGS": f"--xla_dump_to={dump} --xla_dump_emitter_re=ptx",
        "MOSAIC_GPU_DUMP_TO": str(dump),
        "MOSAIC_GPU_DUMP_PTX": "1",
        "MOSAIC_GPU_DUMP_PTXAS": "1",
        "MOSAIC_GPU_DUMP_HOST_LLVM": "1",
    }
    command, root = [sys.executable, "-m", "tests.kernels.h100"], Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_kernels_do_not_spill(report):
    assert {kernel["op"] for kernel in report["kernels"]} == {*OP_NAMES}
    for kernel in report["kernels"]:
        mosaic = {name: use for name, use in kernel["compiled"].items() if name.endswith("mosaic_gpu_kernel")}
        assert len(mosaic) == (2 if kernel["op"] == "paged_decode" else 1), kernel
        for name, use in kernel["compiled"].items():
            print(kernel["op"], kernel["case"], name, use)
            # Sums of 64 rows by 256 take half of a prefill's registers; what is spilled is used once a tile.
            budget = 192 if name.startswith("paged_prefill") and "H256" in kernel["case"] else 0
            assert use["spilled_bytes"] <= budget, (kernel["case"], name)
            assert not use["serialized"], (kernel["case"], name)


def test_as_many_programs_as_meant_fit_on_a_multiprocessor(report):
    """Of its 65,536 registers, which are given out 8 a thread, and 228 KB of shared memory, 1 KB of it lost to each."""
    for kernel in report["kernels"]:
        for name, use in kernel["compiled"].items():
            if "threads" in use:
                registers = -(-use["registers"] // 8) * 8
                assert registers * use["threads"] * kernel["programs"] <= 65536, (kernel["case"], name)
                assert (use["shared_bytes"] + 1024) * kernel["programs"] <= 228 << 10, (kernel["case"], name)


def test_attention_makes_no_copy_of_the_cache(report):
    """Nor is an FP8 cache converted outside of the kernel."""
    for kernel in (kernel for kernel in report["kernels"] if kernel["op"] != "sampling_threshold"):
        others = set(kernel["makes_caches"]) - {"parameter", "bitcast", "get-tuple-element"}
        assert others == ({"custom-call"} if kernel["op"] == "write_kv" else set()), kernel["case"]


def test_write_kv_is_in_place(report):
    (kernel,) = [kernel for kernel in report["kernels"] if kernel["op"] == "write_kv"]
    assert kernel["alias_bytes"] == kernel["donated_bytes"] > 0


def test_decode_makes_nothing_large_but_its_results(report):
    """Of an 8B Llama: nothing as large as a weight is made, but the logits and, in place, the cache."""
    for name, write in (("decode", "fusion"), ("decode, all mosaic", "custom-call")):
        step = report["steps"][name]
        print(name, {key: step[key] for key in ("num_layers", "cache_bytes", "alias_bytes", "temp_bytes")})
        assert step["alias_bytes"] >= step["cache_bytes"]
        assert step["temp_bytes"] < 64 << 20
        writes = [kind for kind, types in step["large"] if step["cache_shape"] in types]
        assert set(writes) == {write}
        assert len(writes) == step["num_layers"] * (2 if write == "fusion" else 1)
        assert [types for _, types in step["large"] if step["cache_shape"] not in types] == ["f32[64,128256]"]


def test_prefill_copies_no_weights_and_no_cache(report):
    step = report["steps"]["prefill"]
    print({key: step[key] for key in ("num_layers", "cache_bytes", "alias_bytes", "temp_bytes")})
    assert step["alias_bytes"] >= step["cache_bytes"]
    assert [kind for kind, types in step["large"] if types == step["cache_shape"]] == ["fusion"] * 2 * step[
        "num_layers"
    ]
    assert not {"copy", "transpose", "convert"} & {kind for kind, _ in step["large"]}
    # The feed-forward's 2048 x 28672 products, float32, and a few activations of 2048 x 4096.
    assert step["temp_bytes"] < 2 * 2048 * 28672 * 4


def test_steps_move_little_more_than_they_must(report):
    """Within 5 % of weights and KV read once and each activation written and read once, as far as the HLO tells."""
    for name, step in report["steps"].items():
        print(name, f"{step['moved_bytes'] / 1e9:.3f} GB of", f"{step['floor_bytes'] / 1e9:.3f};", end=" ")
        print(*(f"{kernel} {num_bytes / 1e6:.1f} MB" for num_bytes, kernel in step["largest_activations"]), sep=", ")
        assert step["floor_bytes"] < step["moved_bytes"] < 1.05 * step["floor_bytes"], name


def test_a_step_is_one_command_buffer_of_kernels(report):
    """Nothing is launched beside it, and nothing in it is a copy; a loop or a branch would break it up."""
    for name, step in report["steps"].items():
        print(name, step["thunks"])
        assert not {"while", "conditional"} & set(step["counts"]), name
        assert step["thunks"]["launched"] == {"kCommandBuffer": 1}, name
        assert set(step["thunks"]["captured"]) == {"kCustomKernel", "kCustomCall"}, name
        # A layer's, of XLA: 4 products, 2 norms, 2 additions, the gate, and 3 that rotate and write. Before and after
        # them, once: embedding, angles, the attention kernel's tables, norm and head.
        assert step["thunks"]["captured"]["kCustomKernel"] <= 12 * step["num_layers"] + 12, name


def test_a_step_whose_rows_share_prefixes_is_one_command_buffer_too(report):
    """A layer attends to the shared prefixes, to what each row holds alone, whose parts are merged, and joins both."""
    cascade, flat = report["cascade"], report["steps"]["decode of one"]
    print(cascade["thunks"], cascade["temp_bytes"], flat["thunks"])
    assert cascade["alias_bytes"] >= cascade["cache_bytes"]
    assert cascade["thunks"]["launched"] == {"kCommandBuffer": 1}
    assert set(cascade["thunks"]["captured"]) == {"kCustomKernel", "kCustomCall"}
    assert cascade["counts"]["custom-call"] == 3 * cascade["num_layers"]
    assert not [kind for kind, types in cascade["large"] if types == cascade["cache_shape"] and kind != "fusion"]
    assert {kernel: use for kernel, use in cascade["compiled"].items() if use["spilled_bytes"]} == {}


def test_greedy_sampling_reads_the_logits_once(report):
    """Twice the maxima of blocks, an eighth of the logits each, beside it; the newest tokens are updated in place."""
    greedy = report["greedy"]
    assert greedy["moved_bytes"] < 1.07 * greedy["logits_bytes"]
    assert greedy["thunks"] == {"launched": {"kCommandBuffer": 1}, "captured": {"kCustomKernel": 5}}


def test_sampling_with_filters_waits_for_nothing(report):
    """With its threshold by Mosaic. The logits are read for the largest and for the weights, which are written; those
    are read for the threshold, for the mass of blocks and, few of them, for the draw."""
    sampled = report["sampled"]
    print(sampled)
    assert sampled["moved_bytes"] < 5.3 * sampled["logits_bytes"]
    assert sampled["thunks"] == {"launched": {"kCommandBuffer": 1}, "captured": {"kCustomKernel": 16, "kCustomCall": 1}}


def test_steps_do_not_spill(report):
    for name, step in report["steps"].items():
        # Decoding attends and merges.
        kernels_per_layer = name.startswith("decode") + 1 + (step["kernel_choices"] == "*=mosaic")
        assert step["counts"]["custom-call"] == kernels_per_layer * step["num_layers"], name
        assert {kernel: use for kernel, use in step["compiled"].items() if use["spilled_bytes"]} == {}
