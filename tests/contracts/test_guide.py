"""The task that docs/add_a_task.md writes, trained as a stage."""

import re

import pytest

from tests.contracts.driver import BATCH, moved, trained
from tests.processes import REPOSITORY
from videogen import tasks


@pytest.mark.slow
def test_the_task_of_the_guide_works(monkeypatch, tmp_path):
    monkeypatch.setattr(tasks, "TASKS", dict(tasks.TASKS))
    page = (REPOSITORY / "docs" / "add_a_task.md").read_text()
    task, stage = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {}
    exec(task, names)
    exec(stage, names)
    config = names["config"]
    config.data.batch_size = config.data.eval_batch_size = BATCH
    config.eval_every = config.checkpoint_every = 2
    config.log_every = 1
    loaded = trained(config, tmp_path)
    moved(config, loaded)
    assert loaded.modules["model"].logit.kernel.shape == (32, 1)
