"""Next scale over a dual codebook: one id, two vectors; all tokens of a scale are drawn at once (TokenFlow, VAR)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.contracts.driver import BLOCK, WIDTH, Skeleton, stage, trained
from videogen import heads, tasks
from videogen.heads import HeadSampler
from videogen.nn import (
    Embedding,
    LearnedPositions,
    Linear,
    MicroBatch,
    NotLater,
    block_stack,
    named_key,
    normal,
    parameter,
)
from videogen.tasks.base import Outcome, to_video
from videogen.tokens import Layout, Segment, SegmentLayout, Tokens

SCALES, SIZE = (1, 2), 16
PLACES = sum(side * side for side in SCALES)


class Scales(nnx.Module):
    """A picture -> codes of every scale; each id stands for a pixel vector and a semantic vector."""

    def __init__(self, rngs: nnx.Rngs):
        self.pixel = parameter(rngs, (SIZE, 3), (None, None), normal(1.0))
        self.semantic = parameter(rngs, (SIZE, 2), (None, None), normal(1.0))
        self.head = heads.build({"name": "categorical"}, vocabulary=(SIZE,), width=WIDTH, hidden=False,
                                remat="none", dtype=jnp.float32, rngs=rngs)  # fmt: skip
        self.features = Linear(5, WIDTH, axes=(None, "embed"), rngs=rngs)
        self.start = parameter(rngs, (WIDTH,), ("embed",), normal(1.0))
        self.places = LearnedPositions(PLACES, WIDTH, rngs=rngs)
        self.label = Embedding(3, WIDTH, axes=(None, "embed"), rngs=rngs)
        self.stack = block_stack(WIDTH, 1, **BLOCK, rngs=rngs)

    @property
    def layout(self) -> Layout:
        sides = {f"scale_{s}": SegmentLayout((("height", s), ("width", s)), (SIZE,)) for s in SCALES}
        return Layout.of(**sides)

    def lookup(self, ids: jax.Array) -> jax.Array:
        """Both vectors of ids, side by side."""
        return jnp.concatenate([self.pixel.get_value()[ids], self.semantic.get_value()[ids]], axis=-1)

    def tokenize(self, picture: jax.Array) -> Tokens:
        """Residual codes from coarse to fine; the nearest by pixels and semantics together."""
        rest, segments = jnp.concatenate([picture, picture[..., :2] ** 2], axis=-1), {}
        for side, (name, layout) in zip(SCALES, self.layout.segments, strict=True):
            coarse = resize(rest, side)
            table = self.lookup(jnp.arange(SIZE))
            ids = jnp.argmin(((coarse[..., None, :] - table) ** 2).sum(-1), axis=-1)
            segments[name] = Segment(ids[..., None], layout)
            rest = rest - resize(self.lookup(ids), rest.shape[1])
        return Tokens.of(**segments)

    def partial(self, tokens: Tokens, segment: str) -> jax.Array:
        """What the scales before ``segment`` stand for, at its places."""
        side, total = self.layout[segment].shape[0], 0.0
        for name, found in tokens.items():
            if name == segment:
                return resize(total, side) if isinstance(total, jax.Array) else None
            total = total + resize(self.lookup(found.values[..., 0]), SCALES[-1])
        return None

    def predict(self, inputs: list[jax.Array], label: jax.Array) -> jax.Array:
        """Features of the places of every scale, of which each sees its own scale and those before."""
        first = jnp.broadcast_to(self.start.get_value() + self.label(label)[:, None], (len(label), 1, WIDTH))
        x = jnp.concatenate([first, *[self.features(x.reshape(len(x), -1, 5)) for x in inputs]], axis=1)
        scale = np.concatenate([[i] * side * side for i, side in enumerate(SCALES)])[: x.shape[1]]
        return self.stack(x + self.places(x.shape[1]), mask=NotLater("order"), tags={"order": scale})

    def sample(self, label: jax.Array, keys: jax.Array) -> Tokens:
        segments, inputs = {}, []
        for side, (name, layout) in zip(SCALES, self.layout.segments, strict=True):
            if segments:
                drawn = Tokens.of(**segments, **{name: Segment(jnp.zeros((len(label), side, side, 1), int), layout)})
                inputs.append(self.partial(drawn, name))
            features = self.predict(inputs, label)[:, -side * side :]
            own = jax.vmap(lambda key, s=side: jax.random.fold_in(key, s))(keys)
            values, _ = self.head.draw(features, None, own, HeadSampler())
            segments[name] = Segment(values.reshape(-1, side, side, 1), layout)
        return Tokens.of(**segments)


def resize(x: jax.Array, side: int) -> jax.Array:
    return jax.image.resize(x, (x.shape[0], side, side, x.shape[-1]), "linear")


class NextScale(Skeleton):
    def network(self, rngs):
        return Scales(rngs)

    def loss(self, modules, batch, key, step, micro=None):
        micro, model = micro or MicroBatch(), modules["model"]
        picture = resize(to_video(batch["video"])[:, 0], SCALES[-1])
        tokens = model.tokenize(picture)
        label = micro.draw(lambda k, s: jax.random.randint(k, s, 0, 3), named_key(key, "label"), (len(picture),))
        features = model.predict([model.partial(tokens, name) for name in tokens.names[1:]], label)
        ids = jnp.concatenate([s.values.reshape(len(picture), -1, 1) for s in tokens.segments], axis=1)
        total, count, measured = model.head.loss(features, ids, jnp.ones(ids.shape[:2], bool), None)
        rebuilt = sum(resize(model.lookup(s.values[..., 0]), SCALES[-1]) for s in tokens.segments)[..., :3]
        loss = total / count + jnp.mean((rebuilt - picture) ** 2)
        return loss, Outcome({"loss": loss, "accuracy": measured["accuracy"][0] / measured["accuracy"][1]})


@pytest.mark.slow
def test_next_scale_over_a_dual_codebook(monkeypatch, tmp_path):
    monkeypatch.setitem(tasks.TASKS, "next_scale", NextScale)
    loaded = trained(stage("next_scale", frames=1), tmp_path)
    model, keys = loaded.modules["model"], jax.random.split(jax.random.key(0), 3)
    drawn = model.sample(jnp.arange(3), keys)
    assert drawn.names == ("scale_1", "scale_2") and drawn.layout == model.layout
    np.testing.assert_allclose(drawn.bits(), PLACES * np.log2(SIZE))
    alone = model.sample(jnp.arange(1, 2), keys[1:2])
    for one, all_ in zip(alone.segments, drawn.segments, strict=True):
        np.testing.assert_array_equal(one.values, all_.values[1:2])
    # A scale depends on none that comes later.
    inputs = [model.partial(drawn, "scale_2")]
    whole, changed = model.predict(inputs, jnp.arange(3)), model.predict([inputs[0] + 1.0], jnp.arange(3))
    np.testing.assert_allclose(whole[:, :1], changed[:, :1], atol=1e-6)
    assert jnp.abs(whole[:, 1:] - changed[:, 1:]).max() > 1e-3
