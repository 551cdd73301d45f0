"""Retrieval by tokens of things: what is refused, published sizes, and a run."""

import jax
import numpy as np
import pytest
from flax import nnx

from tests.tasks.test_retrieval import batch as of_retrieval
from videogen import tasks
from videogen.configs import trajvit
from videogen.errors import UserError
from videogen.runs.records import FILE, read_metrics
from videogen.training.loop import train


def tiny(recipe="things"):
    config = trajvit.get_config(f"size=debug,recipe={recipe}")
    config.data.clip.update({"frames": 4, "height": 8, "width": 8})
    config.data.batch_size = config.data.eval_batch_size = 4
    config.model.embed = 8
    config.model.video.transformer.update({"width": 8, "layers": 1, "heads": 2, "mlp_width": 8})
    config.model.text.update({"width": 16, "layers": 1, "heads": 2})
    config.text.tokenizer = {"name": "bytes", "path": "", "length": 12, "vocabulary_size": 257}
    config.optimizer.towers.update({"name": "adamw", "learning_rate": 1e-2, "warmup": 0})
    if recipe == "things":
        config.model.video.update({"widths": (4, 8), "latents": 1})
    else:
        config.model.video.size = (2, 4, 4)
    return config


def test_clips_without_label_maps_are_refused():
    task = tasks.build(tiny())
    modules = nnx.eval_shape(lambda: task.init(nnx.Rngs(0)))
    with pytest.raises(
        UserError, match="reads 'segments', which the samples do not have: set data.source.segments=own"
    ):
        task.loss(modules, of_retrieval(), jax.random.key(0), 0)
    assert task.bucket_tokens == [4] and tasks.build(tiny("tubes")).bucket_tokens == [8]


def test_published_settings():
    counts = {}
    for recipe in ("things", "tubes"):
        config = trajvit.get_config(f"size=paper,recipe={recipe}")
        task = tasks.build(config)
        towers = nnx.eval_shape(lambda task=task: task.init(nnx.Rngs(0)))["towers"]
        layers = nnx.state(towers.video.classed.stack, nnx.Param)
        counts[recipe] = sum(x.size for x in jax.tree.leaves(layers)), towers.video.tokens
        assert config.model.embed == 256 and config.optimizer.towers.learning_rate == 1e-4
        assert np.exp([-towers.scale.most, -towers.scale.least]) == pytest.approx([0.001, 0.5])
        assert config.model.scale.start == pytest.approx(1 / 0.07)
    # The same transformer over a tenth of the tokens and less.
    assert counts["things"][0] == counts["tubes"][0] and (counts["things"][1], counts["tubes"][1]) == (128, 1568)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["things", "tubes"])
def test_a_run_learns_and_is_evaluated(tmp_path, recipe):
    config = tiny(recipe)
    config.steps = config.eval_every = config.checkpoint_every = 4
    config.log_every = 1
    train(config, tmp_path)
    records = read_metrics(tmp_path / FILE)
    assert any("eval/text_to_video_recall_sum" in r for r in records)
