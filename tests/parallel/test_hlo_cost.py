"""Products and memory traffic of single instructions."""

# HLO does not break its lines.
# ruff: noqa: E501

import itertools

import pytest

from videogen.parallel.hlo import parse
from videogen.parallel.hlo_cost import valid_positions, work


def works(body: str, computations: str = "", tile: int = 1):
    text = f"HloModule jit_f\n{computations}\nENTRY %main (p: f32[1]) -> f32[1] {{\n{body}\n}}\n"
    return {item.name: item for item in work(parse(text), tile)}


def test_products_and_the_tiles_they_fill():
    dot = """
  %a = bf16[4,100,64]{2,1,0} parameter(0)
  %b = bf16[4,64,300]{2,1,0} parameter(1)
  ROOT %dot = f32[4,100,300]{2,1,0} dot(%a, %b), lhs_batch_dims={0}, rhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_contracting_dims={1}"""
    item = works(dot, tile=128)["dot"]
    assert item.flops == 2 * 4 * 100 * 64 * 300
    # The depth of 64 takes as long as 128, and 300 columns as long as 384 (or 100 rows as 128, which is cheaper).
    assert item.filled == 2 * 4 * 128 * min(100 * 384, 128 * 300)
    assert item.moved == 4 * 100 * 64 * 2 + 4 * 64 * 300 * 2 + 4 * 100 * 300 * 4


def test_batched_products_written_as_convolutions():
    attention = """
  %q = bf16[256,1536,64]{2,1,0} parameter(0)
  %k = bf16[256,1536,64]{2,1,0} parameter(1)
  ROOT %c = f32[256,1536,1536]{2,1,0} convolution(%q, %k), window={size=256 stride=255 lhs_dilate=256}, dim_labels=0bf_0oi->0bf"""
    assert works(attention)["c"].flops == 2 * 256 * 1536 * 1536 * 64
    weight_gradient = """
  %x = bf16[8,6,256]{2,1,0} parameter(0)
  %g = bf16[8,6,512]{2,1,0} parameter(1)
  ROOT %c = f32[256,512,1]{1,0,2} convolution(%x, %g), window={size=6}, dim_labels=f0b_i0o->bf0"""
    item = works(weight_gradient.replace("bf16[8,6,256]{2,1,0}", "bf16[8,6,256]{2,1,0}"), tile=8)["c"]
    assert item.flops == item.filled == 2 * 8 * 6 * 256 * 512  # the window is depth, and fills the tiles


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "low", "holes", "dilation"),
    [(9, 3, 1, 1, 1, 1), (9, 3, 2, 0, 1, 1), (5, 4, 1, 3, 2, 1), (12, 3, 1, 2, 1, 2), (7, 7, 6, 0, 7, 1)],
)
def test_valid_positions_by_brute_force(size, kernel, stride, low, holes, dilation):
    out = 6
    window = {"stride": str(stride), "pad": f"{low}_0", "lhs_dilate": str(holes), "rhs_dilate": str(dilation)}
    expected = 0
    for o, k in itertools.product(range(out), range(kernel)):
        place = o * stride - low + k * dilation
        expected += 0 <= place <= (size - 1) * holes and place % holes == 0
    assert valid_positions(size, kernel, out, window, 0) == expected


def test_fusions_move_only_the_slices_they_touch():
    computations = """
%fused (stack: f32[24,1024], index: s32[], row: f32[1,1024]) -> f32[24,1024] {
  %stack = f32[24,1024]{1,0} parameter(0)
  %index = s32[] parameter(1)
  %row = f32[1,1024]{1,0} parameter(2)
  %old = f32[1,1024]{1,0} dynamic-slice(%stack, %index, %index), dynamic_slice_sizes={1,1024}
  %new = f32[1,1024]{1,0} add(%old, %row)
  ROOT %update = f32[24,1024]{1,0} dynamic-update-slice(%stack, %new, %index, %index)
}
"""
    body = """
  %s = f32[24,1024]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %r = f32[1,1024]{1,0:S(1)} parameter(2)
  ROOT %f = f32[24,1024]{1,0} fusion(%s, %i, %r), kind=kLoop, calls=%fused"""
    assert works(body, computations)["f"].moved == pytest.approx(3 * 4096 + 4, abs=8)


def test_work_names_what_it_comes_from():
    body = """
  %a = f32[8,4]{1,0} parameter(0)
  %copy.1 = f32[8,4]{0,1} copy(%a)
  ROOT %add = (f32[8,4]{0,1}, f32[8]{0}) add(%copy.1, %copy.1), metadata={op_name="jit(f)/transpose(jvp())/while/add_any"}"""
    items = works(body)
    assert items["add"].source == "backward add_any f32[8,4]"
    assert items["copy.1"].source == "f32[8,4]"
