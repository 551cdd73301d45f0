"""Micro-batches on a mesh: the step of one device, and no example is sent from one device to another."""

import json
from pathlib import Path

import numpy as np
import pytest

from videogen.configs import phenaki
from videogen.data.inputs import check_batch
from videogen.errors import UserError

SCRIPT = Path(__file__).with_name("accumulate_on_meshes.py")
RUNS = [(1, {}), (4, {}), (1, {"data": 8}), (4, {"data": 8}), (2, {"data": 2, "fsdp": 4})]
BATCH, EXAMPLE = 32, 5 * 8 * 32 * 3
"""Clips of a batch, and bytes of one."""


@pytest.fixture(scope="module")
def steps(run_python) -> list[dict]:
    done = run_python([SCRIPT, json.dumps(RUNS)], timeout=1200)
    assert done.returncode == 0, done.stderr
    return list(map(json.loads, done.stdout.splitlines()))


@pytest.mark.slow
def test_micro_batches_on_any_mesh_give_the_step_of_the_batch(steps):
    assert len(set(steps[0]["losses"])) == 2  # the parameters move
    for step in steps[1:]:
        np.testing.assert_allclose(step["losses"], steps[0]["losses"], atol=1e-5)


@pytest.mark.slow
def test_no_example_is_sent_to_another_device(steps):
    whole, parts, with_fsdp = steps[2:]
    # Where every device has all weights it is as in the batch: nothing but sums, and the few latents that dead codes
    # begin anew from.
    assert parts["moved"] == whole["moved"]
    assert sum(size for _, size in parts["moved"]) < BATCH * EXAMPLE / 8
    # Where weights are shared out they are gathered, and nothing else is sent.
    assert max((size for kind, size in with_fsdp["moved"] if kind != "all-gather"), default=0) < 64


def test_micro_batches_that_the_devices_cannot_share_are_refused():
    config = phenaki.get_config("stage=tokenizer,size=debug")
    config.data.batch_size, config.data.image_batch_size, config.accumulate = 16, 0, 4
    mesh = {"replica": 1, "data": 4, "fsdp": 1}
    check_batch(config, mesh)
    with pytest.raises(UserError, match="data.batch_size = 16 in 4 micro-batches .* by the 8 .* a multiple of 32"):
        check_batch(config, mesh | {"fsdp": 2})
