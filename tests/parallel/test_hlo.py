"""Reading HLO text: shapes, loops, groups, and collectives hidden in fusions."""

# HLO does not break its lines.
# ruff: noqa: E501

import pytest

from videogen.parallel.hlo import argument_bytes, byte_size, collectives, executed, parse, trip_count

PROGRAM = r"""HloModule jit_train_step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (input: bf16[16,8]) -> bf16[4,8] {
  %input = bf16[16,8]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.9 = bf16[16,8]{1,0} all-reduce(%input), channel_id=3, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%sum
  %zero = s32[] constant(0)
  ROOT %share = bf16[4,8]{1,0} dynamic-slice(%all-reduce.9, %zero, %zero), dynamic_slice_sizes={4,8}
}

%condition (state: (s32[], bf16[4,8])) -> pred[] {
  %state = (s32[], bf16[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %bound = s32[] constant(24)
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

%body (carry: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %carry = (s32[], bf16[4,8]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%carry), index=0
  %x = bf16[4,8]{1,0} get-tuple-element(%carry), index=1
  %gather = bf16[16,8]{1,0} all-gather(%x), channel_id=1, replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}
  %kernel = bf16[16,8]{1,0} custom-call(%gather), custom_call_target="tpu_custom_call", backend_config={"text": "
}
line"}, metadata={op_name="jit(f)/splash/pallas_call"}
  %again = bf16[16,8]{1,0} all-gather(%x), channel_id=1, replica_groups=mesh['a'=4,'b'=2] {'a'}
  %scattered = bf16[4,8]{1,0} fusion(%kernel), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %next = (s32[], bf16[4,8]{1,0}) tuple(%i.1, %scattered)
}

ENTRY %main (x.1: bf16[4,8], y: f32[64]) -> bf16[4,8] {
  %x.1 = bf16[4,8]{1,0} parameter(0), metadata={op_name="state[\'params\'][\'kernel\']"}
  %y = f32[64]{0:T(128)} parameter(1), metadata={op_name="batch[\'video\']"}
  %total = f32[64]{0} all-reduce(%y), channel_id=7, replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%sum
  %send = (f32[64]{0}, u32[], token[]) send(%total), channel_id=9, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %first = s32[] constant(0)
  %init = (s32[], bf16[4,8]{1,0}) tuple(%first, %x.1)
  %loop = (s32[], bf16[4,8]{1,0}) while(%init), condition=%condition, body=%body
  ROOT %out = bf16[4,8]{1,0} get-tuple-element(%loop), index=1
}
"""


@pytest.fixture(scope="module")
def module():
    return parse(PROGRAM)


def test_computations_and_lines_broken_by_kernels(module):
    assert module.entry == "main"
    assert set(module.computations) == {"sum", "all-reduce-scatter.1", "condition", "body", "main"}
    assert "pallas_call" in module.computations["body"]["kernel"].attributes
    assert module.computations["body"]["next"].root


def test_loop_bodies_run_as_often_as_the_condition_says(module):
    assert trip_count(module, module.computations["main"]["loop"]) == 24
    times = {instruction.name: times for instruction, _, times in executed(module)}
    assert times["gather"] == 24 and times["total"] == 1


def test_loops_that_count_in_steps_run_less_often():
    by_two = PROGRAM.replace(
        "  ROOT %next = (s32[], bf16[4,8]{1,0}) tuple(%i.1, %scattered)",
        "  %two = s32[] constant(2)\n  %i.2 = s32[] add(%i.1, %two)\n"
        "  ROOT %next = (s32[], bf16[4,8]{1,0}) tuple(%i.2, %scattered)",
    )
    module = parse(by_two)
    assert trip_count(module, module.computations["main"]["loop"]) == 12


def test_sizes_with_tiles_and_without_on_chip_memory():
    assert byte_size("f32[3,200]{1,0:T(8,128)}") == 3 * 200 * 4
    assert byte_size("f32[3,200]{1,0:T(8,128)}", tiled=True) == 8 * 256 * 4
    assert byte_size("f32[3,200]{0,1:T(8,128)}", tiled=True) == 128 * 200 * 4
    assert byte_size("(bf16[10]{0}, pred[6]{0:T(128)S(1)})") == 26
    assert byte_size("(bf16[10]{0}, pred[6]{0:T(128)S(1)})", memory_only=True) == 20


def test_arguments_keep_their_names(module):
    assert argument_bytes(module) == {"state['params']['kernel']": 64.0, "batch['video']": 256.0}


def test_collectives(module):
    found = {(c.kind, c.dcn): c for c in collectives(module)}
    # The gather counts once although two instructions of the loop share its channel.
    assert len(collectives(module)) == 4
    gather = found["all-gather", False]
    assert (gather.payload, gather.times, gather.group) == (256.0, 24, (0, 1, 2, 3))
    scatter = found["reduce-scatter", False]
    assert (scatter.payload, scatter.times, scatter.group) == (256.0, 24, (0, 1, 2, 3))
    assert found["all-reduce", False].group == (0, 2, 4, 6)
    assert found["all-reduce", True].payload == 256.0
