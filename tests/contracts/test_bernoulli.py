"""A Bernoulli process over 1-D bits: a network says which of them are flipped (Instella-T2I)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.contracts.driver import BLOCK, WIDTH, Skeleton, moved, stage, trained
from videogen import diffusion, tasks
from videogen.nn import LearnedPositions, Linear, MicroBatch, TimeEmbedding, block_stack, named_key
from videogen.tasks.base import Outcome, to_video
from videogen.tokens import Layout, SegmentLayout, Tokens

TOKENS, LEVELS, STEPS = 4, 3, 4
LAYOUT = Layout.of(bits=SegmentLayout((("query", TOKENS),), (2,) * LEVELS))


class Denoiser(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.read = Linear(LEVELS, WIDTH, axes=(None, "embed"), rngs=rngs)
        self.places = LearnedPositions(TOKENS, WIDTH, rngs=rngs)
        self.time = TimeEmbedding(WIDTH, rngs=rngs)
        self.stack = block_stack(WIDTH, 1, **BLOCK, rngs=rngs)
        self.write = Linear(WIDTH, LEVELS, axes=("embed", None), rngs=rngs)

    def __call__(self, bits: jax.Array, t: jax.Array) -> jax.Array:
        """``bits`` are numbers, as the process gives them to a network."""
        x = self.read(bits) + self.places(TOKENS) + self.time(t)[:, None]
        return self.write(self.stack(x))


class BitDiffusion(Skeleton):
    process = diffusion.build("bit_process", {"name": "bernoulli"})

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
        noisy = self.process.corrupt(clean, t, micro.keys(named_key(key, "noise"), len(clean)))
        logits = modules["model"](self.process.network_input(noisy.values, t), t)
        loss = self.process.loss(logits, clean, noisy, t).mean()
        return loss, Outcome({"loss": loss})

    def sample(self, model, keys) -> Tokens:
        """Bits from coins, in ``STEPS`` steps."""
        coins = self.process.corrupt(jnp.zeros((len(keys), TOKENS, LEVELS), jnp.int32), 1.0, keys).values
        grid = jnp.broadcast_to(jnp.linspace(1.0, 0.0, STEPS + 1)[:, None], (STEPS + 1, len(keys)))

        def denoise(bits, t):
            return model(self.process.network_input(bits, t), t)

        return Tokens.single(diffusion.ancestral(denoise, self.process, grid, coins, keys), LAYOUT)


@pytest.mark.slow
def test_a_bernoulli_process_over_bits(monkeypatch, tmp_path):
    monkeypatch.setitem(tasks.TASKS, "bits", BitDiffusion)
    config = stage("bits")
    loaded = trained(config, tmp_path)
    moved(config, loaded)
    drawn = loaded.task.sample(loaded.modules["model"], jax.random.split(jax.random.key(0), 5))
    assert set(np.unique(drawn.only.values)) <= {0, 1}
    np.testing.assert_allclose(drawn.bits(), TOKENS * LEVELS)
