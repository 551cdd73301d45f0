"""A Bernoulli process over 1-D bits: bits are flipped towards chance, a network says how they were (Instella-T2I)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.contracts.driver import BLOCK, WIDTH, Skeleton, moved, stage, trained
from videogen import tasks
from videogen.nn import LearnedPositions, Linear, MicroBatch, TimeEmbedding, block_stack, named_key
from videogen.tasks.base import Outcome, to_video
from videogen.tokens import Layout, SegmentLayout, Tokens

TOKENS, LEVELS, STEPS = 4, 3, 4
LAYOUT = Layout.of(bits=SegmentLayout((("query", TOKENS),), (2,) * LEVELS))


class Flips:
    """x_t keeps each bit of x with probability 1 - t, and else is a coin."""

    def corrupt(self, clean: jax.Array, t: jax.Array, uniform: jax.Array, coins: jax.Array) -> jax.Array:
        return jnp.where(uniform < t[:, None, None], coins, clean)

    def loss(self, logits: jax.Array, clean: jax.Array) -> jax.Array:
        """Binary cross-entropy of the true bits, in nats, of every example."""
        return -jnp.mean(jnp.where(clean == 1, jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)), axis=(1, 2))

    def step(self, bits: jax.Array, logits: jax.Array, t: float, later: float, uniform: jax.Array) -> jax.Array:
        """From t to an earlier time: a share (t - later) / t of the bits is drawn anew from what is predicted."""
        drawn = (uniform[..., 0] < jax.nn.sigmoid(logits)).astype(jnp.int32)
        return jnp.where(uniform[..., 1] < (t - later) / t, drawn, bits)


class Denoiser(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.read = Linear(LEVELS, WIDTH, axes=(None, "embed"), rngs=rngs)
        self.places = LearnedPositions(TOKENS, WIDTH, rngs=rngs)
        self.time = TimeEmbedding(WIDTH, rngs=rngs)
        self.stack = block_stack(WIDTH, 1, **BLOCK, rngs=rngs)
        self.write = Linear(WIDTH, LEVELS, axes=("embed", None), rngs=rngs)

    def __call__(self, bits: jax.Array, t: jax.Array) -> jax.Array:
        x = self.read(2.0 * bits - 1.0) + self.places(TOKENS) + self.time(t)[:, None]
        return self.write(self.stack(x))


class BitDiffusion(Skeleton):
    process = Flips()

    def network(self, rngs):
        return Denoiser(rngs)

    def tokens(self, batch) -> Tokens:
        """Bits of a clip: whether each part of it is bright, by channel."""
        video = to_video(batch["video"])
        bright = video.reshape(len(video), TOKENS, -1, 3).mean(2) > 0
        return Tokens.single(bright.astype(jnp.int32), LAYOUT)

    def loss(self, modules, batch, key, step, micro=None):
        micro, clean = micro or MicroBatch(), self.tokens(batch).only.values
        t = micro.draw(jax.random.uniform, named_key(key, "time"), (len(clean),))
        uniform = micro.draw(jax.random.uniform, named_key(key, "whether"), clean.shape)
        coins = micro.draw(lambda k, s: jax.random.randint(k, s, 0, 2), named_key(key, "coins"), clean.shape)
        logits = modules["model"](self.process.corrupt(clean, t, uniform, coins), t)
        loss = self.process.loss(logits, clean).mean()
        return loss, Outcome({"loss": loss})

    def sample(self, model, keys) -> Tokens:
        """Bits from coins, in ``STEPS`` steps."""
        bits = jax.vmap(lambda key: jax.random.randint(key, (TOKENS, LEVELS), 0, 2))(keys)
        for i in range(STEPS):
            own = jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(keys)
            uniform = jax.vmap(lambda key: jax.random.uniform(key, (TOKENS, LEVELS, 2)))(own)
            t, later = 1 - i / STEPS, 1 - (i + 1) / STEPS
            bits = self.process.step(bits, model(bits, jnp.full(len(bits), t)), t, later, uniform)
        return Tokens.single(bits, LAYOUT)


@pytest.mark.slow
def test_a_bernoulli_process_over_bits(monkeypatch, tmp_path):
    monkeypatch.setitem(tasks.TASKS, "bits", BitDiffusion)
    config = stage("bits")
    loaded = trained(config, tmp_path)
    moved(config, loaded)
    drawn = loaded.task.sample(loaded.modules["model"], jax.random.split(jax.random.key(0), 5))
    assert set(np.unique(drawn.only.values)) <= {0, 1}
    np.testing.assert_allclose(drawn.bits(), TOKENS * LEVELS)
    # Nothing is flipped at time 0, all bits are coins at time 1.
    clean, coins = jnp.ones((2, TOKENS, LEVELS), int), jnp.zeros((2, TOKENS, LEVELS), int)
    uniform = jax.random.uniform(jax.random.key(0), clean.shape)
    np.testing.assert_array_equal(
        loaded.task.process.corrupt(clean, jnp.array([0.0, 1.0]), uniform, coins)[:, 0, 0], [1, 0]
    )
