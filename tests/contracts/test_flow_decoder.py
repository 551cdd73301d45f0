"""A flow decoder over the latents of a frozen VAE, from 1-D tokens whose tail is dropped (as FlexTok does)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import videogen
from tests.contracts.driver import BLOCK, WIDTH, Skeleton, moved, stage, trained
from tests.training_configs import tiny
from videogen import diffusion, losses, quantizers, tasks
from videogen.nn import (
    Embedding,
    LearnedPositions,
    Linear,
    MicroBatch,
    TimeEmbedding,
    block_stack,
    named_key,
    parameter,
    truncated_normal,
)
from videogen.shapes import VideoShape
from videogen.tasks.base import Outcome, to_video
from videogen.tokenizers import lengths
from videogen.tokens import Layout, Segment, SegmentLayout, Tokens
from videogen.training.loop import train

TOKENS, STEPS = 4, 3


class Ordered(nnx.Module):
    """Latents of a VAE -> a row of codes, of which any prefix will do; and a velocity of noisy latents, given those."""

    def __init__(self, places: int, channels: int, rngs: nnx.Rngs):
        self.quantizer = quantizers.build({"name": "fsq", "levels": (5, 5)}, rngs=rngs)
        self.read = Linear(channels, WIDTH, axes=(None, "embed"), rngs=rngs)
        self.places = LearnedPositions(places, WIDTH, rngs=rngs)
        self.registers = parameter(rngs, (TOKENS, WIDTH), (None, "embed"), truncated_normal(1.0))
        self.encoder = block_stack(WIDTH, 1, **BLOCK, rngs=rngs)
        self.to_code = Linear(WIDTH, self.quantizer.input_width, axes=("embed", None), rngs=rngs)
        self.from_code = Linear(self.quantizer.width, WIDTH, axes=(None, "embed"), rngs=rngs)
        self.order = Embedding(TOKENS, WIDTH, axes=(None, "embed"), rngs=rngs)
        self.time = TimeEmbedding(WIDTH, rngs=rngs)
        self.decoder = block_stack(
            WIDTH, 1, **BLOCK, cross_attention={"context_width": WIDTH, "null_keys": 1}, rngs=rngs
        )
        self.velocity = Linear(WIDTH, channels, axes=("embed", None), rngs=rngs)
        self.process = diffusion.RectifiedFlow()

    def encode(self, latents: jax.Array) -> jax.Array:
        x = self.read(latents) + self.places(latents.shape[1])
        registers = jnp.broadcast_to(self.registers.get_value(), (len(x), TOKENS, WIDTH))
        return self.to_code(self.encoder(jnp.concatenate([registers, x], axis=1))[:, :TOKENS])

    def predict(self, noisy: jax.Array, t: jax.Array, vectors: jax.Array, kept: jax.Array) -> jax.Array:
        x = self.read(noisy) + self.places(noisy.shape[1]) + self.time(t)[:, None]
        context = self.from_code(vectors) + self.order(jnp.arange(TOKENS))
        return self.velocity(self.decoder(x, context=context, context_mask=kept))

    def detokenize(self, tokens: Tokens, shape: tuple[int, ...], keys: jax.Array) -> jax.Array:
        """Latents by Euler steps from the noise of each example's key."""
        segment = tokens.only
        vectors = self.quantizer.lookup(segment.values)

        def denoise(noisy, t):
            return self.predict(noisy, t, vectors, segment.kept)

        times = diffusion.UniformGrid()(STEPS, self.process)
        return diffusion.sample(denoise, self.process, diffusion.Euler(), times, keys, shape)


class FlowDecoder(Skeleton):
    parts = {"vae": "tokenizer"}

    def __init__(self, config):
        super().__init__(config)
        self.lengths = lengths.build({"name": "tail_drop", "distribution": "power_of_two"})
        vae = nnx.eval_shape(lambda: self.structure_of_part("vae"))
        clip = config.data.clip
        self.latents = vae.layout(VideoShape(clip.frames, clip.height, clip.width)).only
        self.layout = Layout.of(tokens=SegmentLayout((("query", TOKENS),), (25,)))
        setting = losses.Setting(VideoShape(clip.frames, clip.height, clip.width), TOKENS, 2, config.steps)
        self.terms = losses.build(config.losses, setting)
        self.updates = {"model": lambda modules, *_: {}}

    def network(self, rngs):
        return Ordered(self.latents.tokens, self.latents.channels, rngs)

    def tokenize(self, modules, video, kept=None) -> tuple[Tokens, jax.Array, jax.Array]:
        """Tokens, the latents they stand for, and their vectors, which carry gradients."""
        found = modules["vae"].tokenize(video).only.values
        latents = jax.lax.stop_gradient(found.reshape(len(video), -1, found.shape[-1]))
        quantized = modules["model"].quantizer(modules["model"].encode(latents))
        segment = Segment(quantized.indices, self.layout["tokens"], kept=kept)
        return Tokens.of(tokens=segment), latents, quantized.latents

    def loss(self, modules, batch, key, step, micro=None):
        micro, video = micro or MicroBatch(), to_video(batch["video"])
        kept = self.lengths.kept((len(video), TOKENS), key=micro.keys(key, len(video)), train=True)
        tokens, latents, vectors = self.tokenize(modules, video, kept)
        t, process = micro.draw(jax.random.uniform, named_key(key, "time"), (len(video),)), modules["model"].process
        noisy = process.corrupt(latents, t, micro.keys(named_key(key, "noise"), len(video)))
        velocity = modules["model"].predict(noisy.values, t, vectors, tokens.only.kept)
        target = process.target(latents, noisy.noise, t)
        outputs = losses.Outputs({"flow": losses.Pass(velocity, target)}, features={"kept": kept})
        loss, metrics = losses.combine(self.terms, modules, outputs, key, step, micro)
        return loss, Outcome(metrics | {"bits": tokens.bits().mean()})


@pytest.mark.slow
def test_tail_dropped_tokens_decode_by_a_flow(monkeypatch, tmp_path):
    monkeypatch.setitem(tasks.TASKS, "flow_decoder", FlowDecoder)
    vae = tiny(**{"model.quantizer": {"name": "gaussian", "width": 4}, "data.clip.height": 8, "data.clip.width": 8})
    train(vae, tmp_path / "vae")
    config = stage("flow_decoder", frames=5, losses={"flow": {"name": "l2", "reads": "flow", "weight": 1.0}})
    config.parts.vae = {"checkpoint": str(tmp_path / "vae"), "model": {}, "hash": ""}
    loaded = trained(config, tmp_path)
    assert loaded.config.parts.vae.hash == videogen.load(tmp_path / "vae").hash
    moved(loaded.config, loaded)
    task, model = loaded.task, loaded.modules["model"]
    video = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 5, 8, 8, 3)), jnp.float32)
    keys, shape = jax.random.split(jax.random.key(0), 2), (task.latents.tokens, task.latents.channels)
    kept = lengths.first(jnp.full(2, 2), (2, TOKENS))
    tokens, *_ = task.tokenize(loaded.modules, video, kept)
    np.testing.assert_allclose(tokens.bits(), 2 * np.log2(25), rtol=1e-6)
    few = model.detokenize(tokens, shape, keys)
    # What is dropped is not seen; what is kept is.
    segment = tokens.only
    for place, same in ((3, True), (0, False)):
        changed = Segment(segment.values.at[:, place].set(24 - segment.values[:, place]), segment.layout, kept=kept)
        other = model.detokenize(Tokens.of(tokens=changed), shape, keys)
        assert np.array_equal(few, other) == same
    # The frozen VAE makes a clip of the latents.
    layout = loaded.modules["vae"].layout(VideoShape(5, 8, 8))
    clip = loaded.modules["vae"].detokenize(Tokens.single(few, layout))
    assert clip.shape == video.shape and jnp.abs(clip).max() <= 1
