"""Two passes and a halting head: the second pass may use fewer tokens than the first one (as KARL does)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.contracts.driver import BLOCK, WIDTH, Skeleton, moved, stage, trained
from videogen import losses, quantizers, tasks
from videogen.errors import UserError
from videogen.nn import LearnedPositions, Linear, MicroBatch, block_stack, parameter, truncated_normal
from videogen.shapes import VideoShape
from videogen.tasks.base import Outcome, to_video
from videogen.tokenizers import lengths

TOKENS, PIXELS = 6, 4 * 8 * 8 * 3


class Halting(losses.Term):
    """Binary cross-entropy of the halting logits: a token is needed where the first pass was not good enough."""

    reads = ""

    def value(self, modules, outputs, key, step, micro):
        logits, needed = outputs.features["halting"], outputs.features["needed"]
        return -jnp.mean(jnp.where(needed, jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits))), {}


class Adaptive(nnx.Module):
    """Clip and wanted error -> codes and a logit of each, whether it is needed; codes that are kept -> clip."""

    def __init__(self, rngs: nnx.Rngs):
        self.quantizer = quantizers.build(
            {"name": "vq", "size": 16, "width": 4, "codebook_update": "gradient"}, rngs=rngs
        )
        self.read = Linear(PIXELS // 8, WIDTH, axes=(None, "embed"), rngs=rngs)
        self.wanted = Linear(1, WIDTH, axes=(None, "embed"), rngs=rngs)
        self.places = LearnedPositions(8, WIDTH, rngs=rngs)
        self.registers = parameter(rngs, (TOKENS, WIDTH), (None, "embed"), truncated_normal(1.0))
        self.encoder = block_stack(WIDTH, 1, **BLOCK, rngs=rngs)
        self.to_code = Linear(WIDTH, 4, axes=("embed", None), rngs=rngs)
        self.halt = Linear(WIDTH, 1, axes=("embed", None), rngs=rngs)
        self.from_code = Linear(4, WIDTH, axes=(None, "embed"), rngs=rngs)
        self.decoder = block_stack(
            WIDTH, 1, **BLOCK, cross_attention={"context_width": WIDTH, "null_keys": 1}, rngs=rngs
        )
        self.write = Linear(WIDTH, PIXELS // 8, axes=("embed", None), rngs=rngs)

    def encode(self, video: jax.Array, error: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = self.read(video.reshape(len(video), 8, -1)) + self.places(8) + self.wanted(error[:, None])[:, None]
        registers = jnp.broadcast_to(self.registers.get_value(), (len(x), TOKENS, WIDTH))
        x = self.encoder(jnp.concatenate([registers, x], axis=1))[:, :TOKENS]
        return self.to_code(x), self.halt(x)[..., 0]

    def decode(self, latents: jax.Array, kept: jax.Array) -> jax.Array:
        x = jnp.broadcast_to(self.places(8), (len(latents), 8, WIDTH))
        x = self.write(self.decoder(x, context=self.from_code(latents), context_mask=kept))
        return x.reshape(len(x), 4, 8, 8, 3)


class TwoPasses(Skeleton):
    def __init__(self, config):
        super().__init__(config)
        self.budget, self.halting = lengths.TailDrop(), lengths.Halting()
        self.terms = losses.build(config.losses, losses.Setting(VideoShape(4, 8, 8), TOKENS, 4, config.steps))

    def network(self, rngs):
        return Adaptive(rngs)

    def loss(self, modules, batch, key, step, micro=None):
        micro, model, video = micro or MicroBatch(), modules["model"], to_video(batch["video"])
        everything = jnp.ones((len(video), TOKENS), bool)
        latents, _ = model.encode(video, jnp.zeros(len(video)))
        first = model.quantizer(latents, train=True, mean=micro.mean)
        whole = model.decode(first.latents, everything)
        # The second pass is asked for the error of the first with fewer tokens, and learns which it needs.
        needed = self.budget.kept((len(video), TOKENS), key=micro.keys(key, len(video)), train=True)
        part = model.decode(first.latents, needed)
        error = jax.lax.stop_gradient(jnp.mean((part - video) ** 2, axis=(1, 2, 3, 4)))
        latents, halting = model.encode(video, error)
        second = model.quantizer(latents, train=True, mean=micro.mean)
        kept = self.halting.kept((len(video), TOKENS), extra={lengths.HALTING: halting}, train=True)
        again = model.decode(second.latents, kept)
        passes = {"first": losses.Pass(whole, video), "second": losses.Pass(again, video)}
        quantizer = {name: first.losses[name] + second.losses[name] for name in first.losses}
        features = {"halting": halting, "needed": needed}
        outputs = losses.Outputs(passes, features=features, quantizer=quantizer)
        loss, metrics = losses.combine(self.terms, modules, outputs, key, step, micro)
        return loss, Outcome(metrics)


TERMS = {
    "whole": {"name": "l2", "reads": "first", "weight": 1.0},
    "part": {"name": "l1", "reads": "second", "weight": 0.5},
    "halting": {"name": "halting", "weight": 0.1},
}


@pytest.fixture
def config(monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "two_passes", TwoPasses)
    monkeypatch.setitem(losses.TERMS, "halting", Halting)
    return stage("two_passes", losses=TERMS)


@pytest.mark.slow
def test_two_passes_and_a_halting_head(config, tmp_path):
    loaded = trained(config, tmp_path)
    moved(config, loaded)
    model = loaded.modules["model"]
    video = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 4, 8, 8, 3)), jnp.float32)
    latents, halting = model.encode(video, jnp.array([0.1, 0.1]))
    quantized = model.quantizer(latents).latents
    # As if the logits of every other token, and of one more, had learned to halt.
    halting = halting.at[:, 1::2].set(5.0).at[0, 4].set(5.0).at[:, 0].set(-5.0)
    kept = loaded.task.halting.kept((2, TOKENS), extra={lengths.HALTING: halting})
    few = model.decode(quantized, kept)
    np.testing.assert_array_equal(few, model.decode(quantized + jnp.where(kept, 0.0, 1.0)[..., None], kept))
    assert not np.array_equal(few, model.decode(quantized.at[:, 0].add(1.0), kept))
    assert halting.shape == (2, TOKENS) and few.shape == video.shape


def test_a_pass_that_is_not_there_is_named(config, tmp_path):
    config.losses.part.reads = "third"
    with pytest.raises(UserError, match="there is no pass 'third' to compare.*first.*second"):
        trained(config, tmp_path)
