"""One sequence of text ids and float tokens: two heads, and query blocks that see each other both ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.contracts.driver import BLOCK, WIDTH, Skeleton, moved, stage, trained
from videogen import heads, tasks
from videogen.heads import HeadSampler
from videogen.nn import (
    Causal,
    Equal,
    LearnedPositions,
    MicroBatch,
    Same,
    block_stack,
    named_key,
    parameter,
    truncated_normal,
)
from videogen.tasks.base import Outcome, to_video
from videogen.tokens import Layout, Segment, SegmentLayout, Tokens

TEXT, BLOCKS, PER_BLOCK, CHANNELS = 12, 2, 2, 3
FLOATS = BLOCKS * PER_BLOCK
BLOCK_OF = np.concatenate([np.full(TEXT, -1), np.repeat(np.arange(BLOCKS), PER_BLOCK)])
MASK = Causal() | (Same("block") & Equal("kind", 1))
"""Text is causal; the tokens of a block see all of it, and all that came before."""
TAGS = {"block": BLOCK_OF, "kind": (BLOCK_OF >= 0).astype(int)}
LAYOUT = Layout.of(
    text=SegmentLayout((("time", TEXT),), (257,)),
    frames=SegmentLayout((("time", BLOCKS), ("query", PER_BLOCK)), channels=CHANNELS),
)


class Mixed(nnx.Module):
    """Text predicts its next id; queries of a block predict the floats of that block."""

    def __init__(self, rngs: nnx.Rngs):
        common = dict(width=WIDTH, hidden=False, remat="none", dtype=jnp.float32, rngs=rngs)
        self.words = heads.build({"name": "categorical"}, vocabulary=(257,), **common)
        self.floats = heads.build({"name": "gaussian_mixture", "components": 2}, channels=CHANNELS, **common)
        self.queries = parameter(rngs, (PER_BLOCK, WIDTH), (None, "embed"), truncated_normal(1.0))
        self.places = LearnedPositions(TEXT + FLOATS, WIDTH, rngs=rngs)
        self.stack = block_stack(WIDTH, 2, **BLOCK, rngs=rngs)

    def features(self, ids: jax.Array, exists: jax.Array, frames: jax.Array) -> jax.Array:
        """Of all places: text, then the queries of each block, which see the floats of the blocks before."""
        shown = self.floats.embed(frames).reshape(len(ids), BLOCKS, PER_BLOCK, WIDTH)
        before = jnp.pad(shown, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1].mean(2, keepdims=True)
        queries = (self.queries.get_value() + before).reshape(len(ids), FLOATS, WIDTH)
        x = jnp.concatenate([self.words.embed(ids[..., None]), queries], axis=1) + self.places(TEXT + FLOATS)
        seen = jnp.concatenate([exists.at[:, 0].set(True), jnp.ones((len(ids), FLOATS), bool)], axis=1)
        return self.stack(x, mask=MASK, tags=TAGS, key_mask=seen)


class MixedTask(Skeleton):
    def network(self, rngs):
        return Mixed(rngs)

    def tokens(self, batch) -> Tokens:
        means = to_video(batch["video"]).reshape(len(batch["video"]), BLOCKS, PER_BLOCK, -1, 3).mean(3)
        text = Segment(batch["text_ids"][..., None], LAYOUT["text"], exists=batch["text_mask"])
        return Tokens.of(text=text, frames=Segment(means, LAYOUT["frames"]))

    def loss(self, modules, batch, key, step, micro=None):
        micro, model, tokens = micro or MicroBatch(), modules["model"], self.tokens(batch)
        ids, exists = tokens["text"].values[..., 0], tokens["text"].exists
        frames = tokens["frames"].values.reshape(len(ids), FLOATS, CHANNELS)
        x = model.features(ids, exists, frames)
        keys = micro.keys(named_key(key, "head"), len(ids))
        of_text = model.words.loss(x[:, : TEXT - 1], ids[:, 1:, None], exists[:, 1:], None)
        of_floats = model.floats.loss(x[:, TEXT:], frames, jnp.ones(frames.shape[:2], bool), keys)
        losses = [total / micro.mean(count) for total, count, _ in (of_text, of_floats)]
        return sum(losses), Outcome({"loss": sum(losses), "text": losses[0], "floats": losses[1]})

    def sample(self, model, ids, exists, keys) -> Tokens:
        """The floats of block after block."""
        frames = jnp.zeros((len(ids), FLOATS, CHANNELS))
        for block in range(BLOCKS):
            at = slice(block * PER_BLOCK, (block + 1) * PER_BLOCK)
            x = model.features(ids, exists, frames)[:, TEXT:][:, at]
            own = jax.vmap(lambda key, b=block: jax.random.fold_in(key, b))(keys)
            frames = frames.at[:, at].set(model.floats.draw(x, None, own, HeadSampler())[0])
        segment = Segment(frames.reshape(-1, BLOCKS, PER_BLOCK, CHANNELS), LAYOUT["frames"])
        return Tokens.of(text=Segment(ids[..., None], LAYOUT["text"], exists=exists), frames=segment)


@pytest.mark.slow
def test_ids_and_floats_in_one_sequence(monkeypatch, tmp_path):
    monkeypatch.setitem(tasks.TASKS, "mixed", MixedTask)
    config = stage("mixed")
    config.text = {
        "encoder": {"name": "transformer"},
        "tokenizer": {"name": "bytes", "path": "", "length": TEXT, "vocabulary_size": 257},
    }
    loaded = trained(config, tmp_path)
    moved(config, loaded)
    model, keys = loaded.modules["model"], jax.random.split(jax.random.key(0), 2)
    ids, exists = loaded.text.encode(["a red circle", "x"])
    drawn = loaded.task.sample(model, jnp.asarray(ids), jnp.asarray(exists), keys)
    assert drawn.layout == LAYOUT and np.isfinite(drawn["frames"].values).all()
    frames = drawn["frames"].values.reshape(2, FLOATS, CHANNELS)
    x = model.features(jnp.asarray(ids), jnp.asarray(exists), frames)
    # Text sees no later text; padding changes nothing; queries of a block see the text and each other.
    later = model.features(jnp.asarray(ids).at[0, 5].add(1), jnp.asarray(exists), frames)
    np.testing.assert_allclose(x[0, :5], later[0, :5], atol=1e-6)
    assert jnp.abs(x[0, TEXT:] - later[0, TEXT:]).max() > 1e-4
    padded = model.features(jnp.asarray(ids).at[1, 6].add(1), jnp.asarray(exists), frames)
    np.testing.assert_allclose(x[1, TEXT:], padded[1, TEXT:], atol=1e-6)
