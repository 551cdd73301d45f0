"""Next-block prediction with three billion parameters on 128 absent chips, at 5,000 and 32,000 tokens a clip."""

import importlib.util
import re

import pytest

from videogen.configs import nbp
from videogen.parallel.topology import parse_topology
from videogen.planning.plans import plan_of
from videogen.planning.programs import Request, compile_for, complete_for_planning

BLOCK = 16
"""Tokens the first input places are short of the clip: with given frames the last block is never an input."""


def quadratic(hlo: str, lengths: set[int]) -> set[str]:
    """Arrays of a program that have the sequence on two axes."""
    shapes = set(re.findall(r"\b[a-z]+\d*\[([\d,]+)\]", hlo))
    return {shape for shape in shapes if sum(int(size) in lengths for size in shape.split(",")) > 1}


def test_quadratic_arrays_are_found():
    assert quadratic("%s = f32[4,32,5104,5120]{3,2,1,0} dot(bf16[4,5104,96] %q)", {5104, 5120}) == {"4,32,5104,5120"}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="compiling for TPUs needs libtpu")
@pytest.mark.parametrize(("frames", "batch", "tokens"), [(77, 256, 5120), (509, 128, 32_768)])
def test_long_clips_fit_without_anything_quadratic(frames, batch, tokens):
    config = nbp.get_config("stage=generator,size=paper,model=3B")
    config.data.source.name = "tokens"
    config.data.update({"batch_size": batch})
    config.data.clip.frames = frames
    assumed, topology = complete_for_planning(config), parse_topology("v5p:4x4x8")
    mesh = {"replica": 1, "data": 1, "fsdp": 128, "tensor": 1, "context": 1}
    compiled = compile_for(config, Request(str(topology), 1, mesh, "attention", "sharded"))
    plan = plan_of(compiled, topology, config, assumed)
    assert any(f",{tokens - BLOCK}," in shape for shape in re.findall(r"\[[\d,]+\]", compiled.hlo))
    assert "splash_mha_dkv" in compiled.hlo
    assert not quadratic(compiled.hlo, {tokens - BLOCK, tokens})
    # The bytes the compiler reports leave no room for one layer's scores: heads × tokens² in bfloat16 at 32,768 tokens.
    assert plan["fits"] and plan["bytes_per_chip"]["total"] < 32 * 2**30
    assert plan["mfu"] > 0.5
