"""The estimate of bytes moved, on HLO whose bytes one can count."""

from __future__ import annotations

from tests.kernels import hlo_bytes

# As the compiler writes it, without layouts' and metadata's clutter. The caches are (2, 8, 16, 64), 16,384 elements.
HLO = """HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  ROOT %b = f32[] parameter(1)
}

%rotated (param_1.7: f32[4,10,256], param_0.9: s32[10]) -> (bf16[10,64], f32[10,128]) {
  %param_1.7 = f32[4,10,256]{2,1,0} parameter(1)
  %zero = f32[] constant(0)
  %reduce.1 = f32[10,256]{1,0} reduce(%param_1.7, %zero), dimensions={0}, to_apply=%add
  %slice.1 = f32[10,64]{1,0} slice(%reduce.1), slice={[0:10], [0:64]}
  %convert.1 = bf16[10,64]{1,0} convert(%slice.1)
  %slice.2 = f32[10,128]{1,0} slice(%reduce.1), slice={[0:10], [128:256]}
  %param_0.9 = s32[10]{0} parameter(0)
  ROOT %tuple.1 = (bf16[10,64]{1,0}, f32[10,128]{1,0}) tuple(%convert.1, %slice.2)
}

%written (param_0.1: bf16[2,8,16,64], param_1.1: s32[10], param_2.1: bf16[10,64]) -> bf16[2,8,16,64] {
  %param_0.1 = bf16[2,8,16,64]{3,2,1,0} parameter(0)
  %param_1.1 = s32[10]{0} parameter(1)
  %bitcast.2 = s32[10,1]{1,0} bitcast(%param_1.1)
  %param_2.1 = bf16[10,64]{1,0} parameter(2)
  ROOT %scatter.1 = bf16[2,8,16,64]{3,2,1,0} scatter(%param_0.1, %bitcast.2, %param_2.1), to_apply=%add
}

%embedded (param_0.2: bf16[1000,64], param_1.2: s32[10]) -> bf16[10,64] {
  %param_0.2 = bf16[1000,64]{1,0} parameter(0)
  %param_1.2 = s32[10]{0} parameter(1)
  ROOT %gather.1 = bf16[10,64]{1,0} gather(%param_0.2, %param_1.2), offset_dims={1}
}

ENTRY %main (ids: s32[10], table: bf16[1000,64], keys: bf16[2,8,16,64]) -> (bf16[2,8,16,64], /*index=1*/bf16[10,64]) {
  %ids = s32[10]{0} parameter(0)
  %table = bf16[1000,64]{1,0} parameter(1)
  %flat = bf16[64000]{0} bitcast(%table)
  %keys = bf16[2,8,16,64]{3,2,1,0} parameter(2)
  %embed = bf16[10,64]{1,0} fusion(%table, %ids), kind=kLoop, calls=%embedded
  %product = f32[4,10,256]{2,1,0} custom-call(%embed, %flat), custom_call_target="gemm"
  %rotate = (bf16[10,64]{1,0}, f32[10,128]{1,0}) fusion(%ids, %product), kind=kLoop, calls=%rotated
  %q = bf16[10,64]{1,0} get-tuple-element(%rotate), index=0
  %write = bf16[2,8,16,64]{3,2,1,0} fusion(%keys, %ids, %q), kind=kInput, calls=%written
  %attend = bf16[10,64]{1,0} custom-call(%q, %write, %write, /*index=3*/%ids), custom_call_target="mosaic_gpu_v2"
  %copy.1 = bf16[10,64]{1,0} copy(%attend)
  ROOT %tuple.2 = (bf16[2,8,16,64]{3,2,1,0}, bf16[10,64]{1,0}) tuple(%write, /*index=1*/%copy.1)
}
"""
IDS, ROWS = 40, 10 * 64 * 2  # bytes


def test_each_kernel_moves_what_it_uses():
    found = {
        x.kernel: (x.parameter_bytes, x.activation_bytes)
        for x in hlo_bytes.traffic(hlo_bytes.parse(HLO), cache_shape=(2, 8, 16, 64), kv_bytes=5000)
    }
    assert found == {
        "embed": (ROWS + IDS, ROWS),  # rows of the table
        "product": (1000 * 64 * 2, ROWS + 4 * 10 * 256 * 4),  # a view of a parameter is the parameter
        "rotate": (0, 4 * 10 * (64 + 128) * 4 + ROWS + 10 * 128 * 4),  # what is sliced, of all four parts
        "write": (IDS, 2 * ROWS),  # nothing of the cache but the update
        "attend": (5000 + IDS, 2 * ROWS),
        "copy.1": (0, 2 * ROWS),
    }


def test_a_kernel_that_gives_caches_back_wrote_into_them():
    hlo = """HloModule write

ENTRY %main (keys: bf16[2,8,16,64], new: bf16[10,64]) -> (bf16[2,8,16,64]) {
  %keys = bf16[2,8,16,64]{3,2,1,0} parameter(0)
  %new = bf16[10,64]{1,0} parameter(1)
  ROOT %write = (bf16[2,8,16,64]{3,2,1,0}) custom-call(%keys, %new), custom_call_target="mosaic_gpu_v2"
}
"""
    (write,) = hlo_bytes.traffic(hlo_bytes.parse(hlo), cache_shape=(2, 8, 16, 64), kv_bytes=5000)
    assert (write.parameter_bytes, write.activation_bytes) == (ROWS, ROWS)
