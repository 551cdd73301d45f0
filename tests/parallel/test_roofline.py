"""Where collectives run, and how fast: mesh axes, rings and networks."""

# HLO does not break its lines.
# ruff: noqa: E501

import pytest

from videogen.parallel.flops import Flops
from videogen.parallel.hlo import Collective, parse
from videogen.parallel.hlo_cost import Work
from videogen.parallel.mesh import AXES
from videogen.parallel.roofline import bandwidth, durations, estimate, mesh_axes, summarise
from videogen.parallel.topology import parse_topology

MESH = dict(zip(AXES, (1, 2, 4, 2, 1), strict=True))


@pytest.mark.parametrize(
    ("group", "axes"),
    [
        ((0, 1), "tensor"),
        ((0, 2, 4, 6), "fsdp"),
        ((0, 8), "data"),
        ((0, 2, 4, 6, 8, 10, 12, 14), "data,fsdp"),
        ((3,), ""),
    ],
)
def test_axes_of_a_group(group, axes):
    assert mesh_axes(group, MESH) == axes


def test_links_of_a_group():
    cube = parse_topology("v5p:4x4x4")
    ring = [(0, 0, x, 0, 0) for x in range(4)]
    plane = [(0, 0, x, y, 0) for x in range(4) for y in range(4)]
    assert bandwidth(cube, ring) == 2 * cube.chip.link_bandwidth
    assert bandwidth(cube, plane) == 4 * cube.chip.link_bandwidth
    assert bandwidth(cube, ring[:2]) == cube.chip.link_bandwidth  # a part of a ring is a line
    flat = parse_topology("v6e:8x8")
    assert bandwidth(flat, [(0, 0, x, 0) for x in range(8)]) == flat.chip.link_bandwidth  # no wraparound below 16
    two = parse_topology("v5p:4x4x4", slices=2)
    assert bandwidth(two, [(0, 0, 0, 0, 0), (1, 0, 0, 0, 0)]) == two.chip.dcn_bandwidth
    nodes = parse_topology("h100:64")
    assert bandwidth(nodes, [(0, 0, i) for i in range(8)]) == nodes.chip.link_bandwidth
    assert bandwidth(nodes, [(0, n, 0) for n in range(8)]) == nodes.chip.dcn_bandwidth


def test_sums_by_kind_and_axes():
    topology = parse_topology("v5p:4x4x1")
    places = [(0, 0, x, y, 0) for x in range(4) for y in range(4)]
    found = [Collective("all-reduce", 100.0, (0, 2, 4, 6), 3), Collective("all-reduce", 50.0, (0, 2, 4, 6), 1)]
    (traffic,) = summarise([*found, Collective("all-reduce", 8.0, (0,), 5)], topology, MESH, places)
    assert (traffic.kind, traffic.axis, traffic.bytes, traffic.count) == ("all-reduce", "fsdp", 350.0, 4)
    assert traffic.wire_bytes == pytest.approx(350 * 2 * 3 / 4)
    assert traffic.overlaps
    (tensor,) = summarise([Collective("all-reduce", 1.0, (0, 1), 1)], topology, MESH, places)
    assert not tensor.overlaps


def test_copies_started_ahead_hide_behind_products():
    """A copy takes what is left of it when it is awaited; a product that needs the memory itself hides nothing."""

    def item(name: str, **how) -> Work:
        return Work(name, 1, 0.0, 0.0, 0.0, **how)

    start, done = item("start", starts=True), item("done", awaits="start")
    product, elsewhere = item("product"), item("product", place=1)
    assert list(durations([(start, 0, 5), (product, 3, 1), (done, 0, 0)])) == [0, 3, 3]
    assert list(durations([(start, 0, 5), (product, 8, 1), (done, 0, 0)])) == [0, 8, 0]
    assert list(durations([(start, 0, 5), (product, 1, 3), (done, 0, 0)])) == [0, 3, 5]
    assert list(durations([(start, 0, 5), (elsewhere, 8, 1), (done, 0, 0)])) == [0, 8, 5]
    # The first copy started is the first to go on.
    second = item("second", starts=True)
    assert list(durations([(start, 0, 2), (second, 0, 2), (product, 3, 0), (done, 0, 0)])) == [0, 0, 3, 0]
    assert (
        list(durations([(start, 0, 2), (second, 0, 2), (product, 3, 0), (item("d", awaits="second"), 0, 0)]))[-1] == 1
    )


def test_a_copy_belongs_to_the_array_it_moves():
    body = """
  %a = f32[1024,1024]{1,0} parameter(0)
  %copy-start.1 = (f32[1024,1024]{1,0:S(1)}, f32[1024,1024]{1,0}, u32[]{:S(2)}) copy-start(%a)
  %copy-done.1 = f32[1024,1024]{1,0:S(1)} copy-done(%copy-start.1)
  ROOT %exp = f32[1024,1024]{1,0:S(1)} exponential(%copy-done.1), metadata={op_name="jit(f)/exp"}"""
    module = parse(f"HloModule jit_f\n\nENTRY %main (p: f32[1]) -> f32[1] {{\n{body}\n}}\n")
    topology = parse_topology("v5p:1x1x1")
    estimated = estimate(module, Flops(), topology, dict.fromkeys(AXES, 1), [(0, 0, 0, 0, 0)])
    share = estimated.shares[0]
    assert (share.source, share.count) == ("f32[1024,1024]", 1)
    assert share.seconds == share.hbm == pytest.approx(4 * 1024**2 / topology.chip.hbm_bandwidth)


def test_the_step_is_the_sum_of_its_shares():
    body = """
  %a = bf16[1024,1024]{1,0} parameter(0)
  %dot = bf16[1024,1024]{1,0} dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="jit(f)/dot_general"}
  ROOT %exp = bf16[1024,1024]{1,0} exponential(%dot), metadata={op_name="jit(f)/exp"}"""
    module = parse(f"HloModule jit_f\n\nENTRY %main (p: f32[1]) -> f32[1] {{\n{body}\n}}\n")
    topology = parse_topology("v5p:1x1x1")
    estimated = estimate(module, Flops(), topology, dict.fromkeys(AXES, 1), [(0, 0, 0, 0, 0)])
    product, exponential = estimated.shares
    assert product.source == "dot_general bf16[1024,1024]" and exponential.source == "exp bf16[1024,1024]"
    assert product.seconds == pytest.approx(2 * 1024**3 / topology.chip.flops)
    assert exponential.seconds == pytest.approx(2 * 2 * 1024**2 / topology.chip.hbm_bandwidth)
    assert estimated.step == pytest.approx(product.seconds + exponential.seconds)
