"""Absent hardware: names, shapes, and devices where the compilers are installed."""

import importlib.util

import pytest

from videogen.errors import UserError
from videogen.parallel import make_mesh
from videogen.parallel.topology import absent_devices, parse_topology

needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")


def test_shapes_and_counts():
    topology = parse_topology("v5p:4x4x8", slices=2)
    assert (topology.chips, topology.devices, str(topology)) == (256, 256, "v5p:4x4x8")
    assert topology.wrap == (True, True, True)
    assert parse_topology("v6e:8x16").wrap == (False, True)
    assert parse_topology("v5:2x2x1").name == "v5p"
    assert parse_topology("tpu7x:2x2x1").devices == 8


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("v5q:4x4x4", "did you mean 'v5p'"),
        ("v5p:4x4", "like v5p:4x4x4"),
        ("v6e:4x4x4", "like v6e:4x4"),
        ("v6e:32x32", "largest v6e slice is 16x16"),
        ("h100:12", "nodes of 8"),
        ("v5p", "like v5p:4x4x4"),
    ],
)
def test_what_cannot_be_is_refused(text, words):
    with pytest.raises(UserError, match=words):
        parse_topology(text)


@needs_libtpu
@pytest.mark.parametrize("text", ["v4:4x4x4", "v5e:4x4", "v5p:4x4x4", "v6e:16x16", "tpu7x:2x2x1", "v5p:1x1x1"])
def test_devices_of_every_generation(text):
    topology = parse_topology(text)
    devices = absent_devices(topology)
    assert len(devices) == topology.devices
    assert {device.platform for device in devices} == {"tpu"}


@needs_libtpu
def test_a_slice_the_compiler_does_not_know_is_refused():
    with pytest.raises(UserError, match="no slice v5p:3x3x3"):
        absent_devices(parse_topology("v5p:3x3x3"))


@needs_libtpu
def test_meshes_may_split_physical_axes_and_slices_are_replicas():
    # 8 is no product of the axes of a 4 × 4 × 4 cube.
    mesh = make_mesh({"data": 8, "fsdp": 8}, absent_devices(parse_topology("v5p:4x4x4")))
    assert dict(mesh.shape)["data"] == 8
    devices = absent_devices(parse_topology("v5p:4x4x4", slices=2))
    mesh = make_mesh({"replica": 2, "fsdp": -1}, devices)
    slices = [{device.slice_index for device in half.flat} for half in mesh.devices]
    assert slices == [{0}, {1}]
    with pytest.raises(UserError, match="multiple of 2"):
        make_mesh({"fsdp": -1}, devices)
