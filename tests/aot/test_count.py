"""The counter: on texts worked by hand, and on small programs whose bytes and FLOPs are known."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from iou_det.aot.count import Count, Kernel, count, exchanged, taps
from iou_det.aot.hlo import arrays, instruction
from iou_det.aot.parts import Part
from iou_det.parallel import device_mesh

# A sum over rows of what a fusion scales; a copy; a convolution of cuDNN; three trips of a loop; a slice.
GPU = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[8,16]{1,0})->f32[8]{0}}

FileNames
1 "/home/me/iou_det/ops/matching.py"
2 "/home/me/.venv/jax/numpy.py"

FunctionNames
1 "match"

FileLocations
1 {file_name_id=1 function_name_id=1 line=9}
2 {file_name_id=2 function_name_id=1 line=1}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%fused_sum (p: f32[8,16], q: f32[1000], r: f32[100,16]) -> f32[8] {
  %p = f32[8,16]{1,0} parameter(0)
  %q = f32[1000]{0} parameter(1)
  %r = f32[100,16]{1,0} parameter(2)
  %zero = f32[] constant(0)
  %part = f32[16]{0} slice(%q), slice={[4:20]}
  %wide = f32[8,16]{1,0} broadcast(%part), dimensions={1}
  %rows = f32[8,16]{1,0} slice(%r), slice={[0:8], [0:16]}
  %scaled = f32[8,16]{1,0} multiply(%p, %wide)
  %both = f32[8,16]{1,0} add(%scaled, %rows)
  ROOT %reduced = f32[8]{0} reduce(%both, %zero), dimensions={1}, to_apply=%add
}

%fused_update (t: f32[100,16], u: f32[1,16], at: s32[]) -> f32[100,16] {
  %t = f32[100,16]{1,0} parameter(0)
  %u = f32[1,16]{1,0} parameter(1)
  %at = s32[] parameter(2)
  %none = s32[] constant(0)
  ROOT %updated = f32[100,16]{1,0} dynamic-update-slice(%t, %u, %at, %none)
}

%body (state: (s32[], f32[100,16])) -> (s32[], f32[100,16]) {
  %state = (s32[], f32[100,16]{1,0}) parameter(0)
  %trip = s32[] get-tuple-element(%state), index=0
  %table = f32[100,16]{1,0} get-tuple-element(%state), index=1
  %row = f32[1,16]{1,0} dynamic-slice(%table, %trip, %trip), dynamic_slice_sizes={1,16}
  %new = f32[100,16]{1,0} fusion(%table, %row, %trip), kind=kLoop, calls=%fused_update
  ROOT %next = (s32[], /*index=1*/f32[100,16]{1,0}) tuple(%trip, %new)
}

%test (state.1: (s32[], f32[100,16])) -> pred[] {
  %state.1 = (s32[], f32[100,16]{1,0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (a: f32[8,16], b: f32[1000], c: f32[100,16], i: bf16[2,8,8,4], k: bf16[6,3,3,4]) -> f32[8] {
  %a = f32[8,16]{1,0} parameter(0), metadata={op_name="state.params"}
  %b = f32[1000]{0} parameter(1)
  %c = f32[100,16]{1,0} parameter(2)
  %i = bf16[2,8,8,4]{3,2,1,0} parameter(3)
  %k = bf16[6,3,3,4]{3,2,1,0} parameter(4)
  %sums = f32[8]{0} fusion(%a, %b, %c), kind=kInput, calls=%fused_sum, metadata={op_name="jit(step)/jvp()/x" stack_frame_id=2}
  %conv = (bf16[2,8,8,6]{3,2,1,0}, u8[999]{0}) custom-call(%i, %k), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward", metadata={op_name="jit(step)/jvp(RetinaNet)/backbone/conv1"}
  %out = bf16[2,8,8,6]{3,2,1,0} get-tuple-element(%conv), index=0
  %back = (bf16[6,3,3,4]{3,2,1,0}, u8[0]{0}) custom-call(%i, %out), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter", metadata={op_name="jit(step)/transpose(jvp(RetinaNet))/fpn/inner"}
  %loop = (s32[], f32[100,16]{1,0}) while(%start), condition=%test, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %copied = f32[8]{0} copy(%sums)
}
"""  # noqa: E501


def test_a_text_counted_by_hand():
  found = count(GPU, one_memory=True)
  kernels = {k.instruction.name: k for k in found.kernels}
  assert list(kernels) == ["sums", "conv", "back", "row", "new", "copied"]
  # All of p, 16 of q's 1,000, 8 of r's 100 rows, and 8 written.
  assert kernels["sums"].bytes == 4 * (8 * 16 + 16 + 8 * 16 + 8)
  image, kernel, result = 2 * 2 * 8 * 8 * 4, 2 * 6 * 3 * 3 * 4, 2 * 2 * 8 * 8 * 6
  assert kernels["conv"].bytes == kernels["back"].bytes == image + kernel + result, "no workspace"
  # Of 8 x 3 taps along an axis the two that stand out fall on padding.
  assert kernels["conv"].flops == kernels["back"].flops == 2 * 2 * 22 * 22 * 4 * 6
  assert kernels["row"].bytes == 2 * 4 * 16 and kernels["row"].times == 3
  assert kernels["new"].bytes == 4 * (16 + 16 + 1), (
    "the update and where it goes are read, it alone is written"
  )
  assert kernels["copied"].bytes == 2 * 4 * 8
  assert found.number == 10 and found.unknown_loops == 0
  assert found.convolution_floor == 2 * (image + kernel + result)


def test_parts_by_names_places_and_neighbours():
  parts = {k.instruction.name: str(k.part) for k in count(GPU, one_memory=True).kernels}
  assert parts["sums"] == "matching", "of the innermost file that is known"
  assert parts["conv"] == "backbone forward" and parts["back"] == "FPN backward"
  assert parts["copied"] == "matching", "says nothing, moves what matching made"
  assert parts["row"] == "other"


def test_a_loop_of_unknown_length_counts_once_and_is_told():
  text = GPU.replace('backend_config={"known_trip_count":{"n":"3"}}', "backend_config={}")
  found = count(text, one_memory=True)
  assert found.number == 6 and found.unknown_loops == 1


def test_tiles_are_filled_up_and_other_memories_are_free():
  (array,) = arrays("bf16[16,100,12]{2,1,0:T(8,128)(2,1)}")
  assert array.logical == 2 * 16 * 100 * 12 and array.physical == 2 * 16 * 104 * 128
  tpu = """HloModule m

ENTRY %main (a: f32[64,128]) -> f32[64,128] {
  %a = f32[64,128]{1,0:T(8,128)} parameter(0)
  %ahead = (f32[64,128]{1,0:T(8,128)S(1)}, f32[64,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%a)
  %near = f32[64,128]{1,0:T(8,128)S(1)} copy-done(%ahead)
  ROOT %there = f32[64,128]{1,0:T(8,128)} negate(%near), backend_config={"x":{},"estimated_cycles":"1500"}
}
"""
  assert count(tpu, one_memory=False).cycles == 1500, "XLA's own estimate, of what it gives one of"
  kernels = count(tpu, one_memory=False).kernels
  assert [k.bytes for k in kernels] == [4 * 64 * 128] * 2, "read once, written once"
  assert [k.bytes for k in count(tpu, one_memory=True).kernels] == [2 * 4 * 64 * 128] * 2


def test_collectives_and_what_runs_beside_them():
  text = """HloModule m

%kept (p: f32[16]) -> f32[4] {
  %p = f32[16]{0} parameter(0)
  %zero = s32[] constant(0)
  %reduced = f32[16]{0} all-reduce(%p), to_apply=%add
  ROOT %part = f32[4]{0} dynamic-slice(%reduced, %zero), dynamic_slice_sizes={4}
}

ENTRY %main (a: f32[16], b: f32[16]) -> f32[16] {
  %a = f32[16]{0} parameter(0)
  %b = f32[16]{0} parameter(1)
  %sum = (f32[2,3]{1,0}, bf16[]) all-reduce-start(%a, %b), to_apply=%add
  %work = f32[16]{0} negate(%b)
  %summed = (f32[2,3]{1,0}, bf16[]) all-reduce-done(%sum)
  %all = (f32[2]{0}, f32[16]{0}) all-gather-start(%a)
  %gathered = f32[16]{0} all-gather-done(%all)
  %sent = (f32[16]{0}, f32[16]{0}, u32[], u32[]) collective-permute-start(%a)
  %more = (f32[16]{0}, f32[16]{0}, u32[], u32[]) collective-permute-start(%b)
  %got = f32[16]{0} collective-permute-done(%sent)
  %gotten = f32[16]{0} collective-permute-done(%more)
  %own = f32[4]{0} fusion(%a), kind=kCustom, calls=%kept
  %token = token[] after-all()
  %out = (f32[16]{0}, u32[], token[]) send(%a, %token), is_host_transfer=true
  %in = (f32[8]{0}, u32[], token[]) recv(%token), is_host_transfer=true
  %away = token[] send-done(%out), is_host_transfer=true
  %other = f32[16]{0} negate(%gotten)
  %here = (f32[8]{0}, token[]) recv-done(%in), is_host_transfer=true
  ROOT %plain = f32[4]{0} all-reduce(%b), to_apply=%add
}
"""
  counted = count(text, one_memory=True)
  found = exchanged(counted)
  assert found["all-reduce"] == {"count": 3, "bytes": 26 + 16 + 16, "overlapped": 1}
  # What is started names its operands too: only the results are counted.
  assert found["all-gather"] == {"count": 1, "bytes": 64, "overlapped": 0}
  # Two that run beside each other run beside no work.
  assert found["collective-permute"] == {"count": 2, "bytes": 128, "overlapped": 0}
  assert [k.bytes for k in counted.kernels if k.bytes == 128], "64 bytes read and 64 written"
  assert found["recv"] == {"count": 1, "bytes": 32, "overlapped": 1}


def test_collectives_of_known_programs():
  """A sum over 8 devices is one all-reduce of a float; gathering 64 floats one all-gather of 256 bytes."""
  mesh = device_mesh(8)
  split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
  x = jax.device_put(jnp.arange(64.0), split)

  def of(function):
    text = jax.jit(function, out_shardings=whole).lower(x).compile().as_text()
    return exchanged(count(text, one_memory=True))

  assert of(jnp.sum)["all-reduce"]["bytes"] == 4 and of(jnp.sum)["all-reduce"]["count"] == 1
  gathered = of(lambda x: x + 1)["all-gather"]
  assert (gathered["count"], gathered["bytes"]) == (1, 256)


def counted(function, *shapes) -> Count:
  arguments = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  return count(jax.jit(function).lower(*arguments).compile().as_text(), one_memory=True)


def test_compiled_programs_move_what_they_must():
  """On this CPU: operands once and results once, and the products' FLOPs."""
  elementwise = counted(lambda x, y: jnp.exp(x) * y + 1, (128, 256), (128, 256))
  assert elementwise.bytes == 3 * 4 * 128 * 256 and elementwise.flops == 0
  product = counted(jnp.dot, (64, 128), (128, 32))
  assert product.flops == 2 * 64 * 128 * 32
  assert product.bytes == 4 * (64 * 128 + 128 * 32 + 64 * 32)
  layout = ("NHWC", "HWIO", "NHWC")
  convolve = lambda x, k: jax.lax.conv_general_dilated(x, k, (2, 2), "SAME", dimension_numbers=layout)
  convolution = counted(convolve, (2, 16, 16, 8), (3, 3, 8, 24))
  # Windows of 3 in steps of 2 over 16 pixels, of which SAME pads one behind: 8 x 3 taps without one.
  assert convolution.flops == 2 * 2 * 23 * 23 * 8 * 24
  assert convolution.bytes >= 4 * (2 * 16 * 16 * 8 + 3 * 3 * 8 * 24 + 2 * 8 * 8 * 24)


@pytest.mark.parametrize(
  ("arguments", "pairs"),
  [
    ((8, 3, 8, 1, 1, 1, 1), 22),  # pad 1: all but one at each end
    ((8, 3, 6, 0, 1, 1, 1), 18),  # no padding: all
    ((4, 3, 8, 1, 1, 2, 1), 11),  # a gradient of stride 2: values at 0, 2, 4, 6 of the dilated input
    ((8, 3, 8, 2, 1, 1, 2), 20),  # a dilated kernel: two outputs at each end miss one
  ],
)
def test_taps_that_fall_on_values(arguments, pairs):
  assert taps(*arguments) == pairs


def test_the_bound_is_the_slower_of_bytes_and_flops_for_each_kernel():
  some = instruction("x", "f32[] add(%y)", False)
  kernels = [Kernel(some, 2, 100, 10, Part("other"), 0), Kernel(some, 1, 1, 1000, Part("other"), 0)]
  assert Count(kernels).bound(flops=100.0, bandwidth=50.0) == pytest.approx(2 * 2.0 + 10.0)
