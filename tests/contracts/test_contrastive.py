"""A two-tower contrastive task: clips against captions, over the whole batch (CLIP; Radford et al., 2021)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.contracts.driver import BATCH, BLOCK, WIDTH, Skeleton, moved, stage, trained
from videogen import tasks
from videogen.data.inputs import build_source
from videogen.nn import Embedding, LearnedPositions, Linear, block_stack, patchify
from videogen.tasks.base import Outcome, to_video


class Towers(nnx.Module):
    """Unit vectors of clips and of captions."""

    def __init__(self, rngs: nnx.Rngs):
        self.patches = Linear(4 * 4 * 4 * 3, WIDTH, axes=(None, "embed"), rngs=rngs)
        self.places = LearnedPositions(4, WIDTH, rngs=rngs)
        self.video = block_stack(WIDTH, 1, **BLOCK, rngs=rngs)
        self.words = Embedding(64, WIDTH, axes=(None, "embed"), rngs=rngs)
        self.text = block_stack(WIDTH, 1, **BLOCK, rngs=rngs)
        self.scale = nnx.Param(jnp.array(1.0))

    def of_videos(self, video: jax.Array) -> jax.Array:
        x = self.patches(patchify(video, (4, 4, 4)))
        return unit(self.video(x.reshape(len(x), -1, WIDTH) + self.places(4)).mean(1))

    def of_texts(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        x = self.text(self.words(ids % 64), key_mask=mask)
        return unit(jnp.where(mask[..., None], x, 0).sum(1))


def unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class Contrastive(Skeleton):
    def network(self, rngs):
        return Towers(rngs)

    def loss(self, modules, batch, key, step, micro=None):
        if micro is not None and micro.count > 1:
            raise tasks.base.UserError("a contrastive loss compares the whole batch: leave accumulate at 1")
        model = modules["model"]
        videos, texts = model.of_videos(to_video(batch["video"])), model.of_texts(batch["text_ids"], batch["text_mask"])
        logits = jnp.exp(model.scale.get_value()) * videos @ texts.T
        both = (jax.nn.log_softmax(logits, axis) for axis in (0, 1))
        loss = -sum(jnp.mean(jnp.diagonal(x)) for x in both) / 2
        return loss, Outcome({"loss": loss, "right": jnp.mean(logits.argmax(1) == jnp.arange(len(logits)))})


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "contrastive", Contrastive)
    config = stage("contrastive")
    config.text = {
        "encoder": {"name": "transformer"},
        "tokenizer": {"name": "bytes", "path": "", "length": 24, "vocabulary_size": 257},
    }
    return config


@pytest.mark.slow
def test_two_towers(config, tmp_path):
    loaded = trained(config, tmp_path)
    moved(config, loaded)
    # It retrieves: similarities of clips and captions, whose loss is that of the evaluation.
    source = build_source(loaded.config, "train")
    samples = [source[i] for i in range(BATCH)]
    ids, mask = loaded.text.encode([sample["caption"] for sample in samples])
    video = np.stack([sample["video"] for sample in samples])
    model = loaded.modules["model"]
    scores = model.of_videos(to_video(video)) @ model.of_texts(ids, mask).T
    assert scores.shape == (BATCH, BATCH) and jnp.abs(scores).max() <= 1 + 1e-5


def test_accumulation_is_refused_by_name(config, tmp_path):
    config.accumulate = 2
    with pytest.raises(tasks.base.UserError, match="leave accumulate at 1"):
        trained(config, tmp_path)
