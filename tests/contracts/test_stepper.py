"""An action-conditioned stepper: a state that goes on by one latent frame for each action (a world model)."""

from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.contracts.driver import BATCH, BLOCK, WIDTH, Skeleton, moved, stage, trained
from videogen import data, heads, tasks
from videogen.data import Source
from videogen.generators import BlockSampler, Generator, Stepper
from videogen.nn import BlockCausal, Embedding, LearnedPositions, MicroBatch, Stream, block_stack
from videogen.tasks.base import Outcome, to_video
from videogen.tokens import Layout, SegmentLayout, Tokens

FRAMES, SIDE, LEVELS, ACTIONS = 4, 2, 8, 3
LAYOUT = Layout.of(video=SegmentLayout((("time", FRAMES), ("height", SIDE), ("width", SIDE)), (LEVELS,)))


class Walks(Source):
    """A grey frame that gets brighter or darker by each action."""

    @property
    def fields(self):
        return super().fields | {"action": ((FRAMES,), np.int32)}

    def __len__(self):
        return 40

    def sample(self, index, rng):
        action = rng.integers(0, ACTIONS, FRAMES).astype(np.int32)
        grey = np.clip(120 + 30 * np.cumsum(action - 1), 0, 255).astype(np.uint8)
        shape = (FRAMES, self.clip.height, self.clip.width, 3)
        return {"video": np.broadcast_to(grey[:, None, None, None], shape).copy(), "action": action, "caption": ""}

    def caption(self, index):
        return ""


class Steps(Stepper):
    """One frame each, by its action. The conditioning are the actions of all frames, the memory the last frame and the
    caches."""

    frames = 1

    def begin(self, prefix):
        first = prefix.only.values[..., 0]
        return first, (self.model.stack.begin(len(first), FRAMES * SIDE * SIDE),)

    def advance(self, memory, at):
        frame, stream = memory[0], Stream(memory[1])
        x = self.model.inputs(frame, jax.lax.dynamic_slice_in_dim(self.conditioning, at, 1, axis=1), at - 1)
        x = self.model.stack(x, mask=BlockCausal(SIDE * SIDE), stream=stream)
        own = jax.vmap(lambda key: jax.random.fold_in(key, at))(self.keys)
        values, _ = self.model.head.draw(x, None, own, self.sampler.of_head(at / FRAMES))
        frame = values.reshape(frame.shape)
        return (frame, stream.cache), Tokens.single(frame, self.layout.with_time(1))


class World(Generator):
    """Frames of codes; the action of a frame is added to all tokens of that frame."""

    steppers = MappingProxyType({"window": Steps})

    def __init__(self, rngs: nnx.Rngs):
        self.head = heads.build({"name": "categorical"}, vocabulary=(LEVELS,), width=WIDTH, hidden=False,
                                remat="none", dtype=jnp.float32, rngs=rngs)  # fmt: skip
        self.action = Embedding(ACTIONS, WIDTH, axes=(None, "embed"), rngs=rngs)
        self.places = LearnedPositions(FRAMES * SIDE * SIDE, WIDTH, rngs=rngs)
        self.stack = block_stack(WIDTH, 2, **BLOCK, rngs=rngs)

    def inputs(self, frames: jax.Array, action: jax.Array, first: int | jax.Array = 0) -> jax.Array:
        """What stands at each place: the code of the frame before, and the action that leads to this one."""
        size = SIDE * SIDE
        x = self.head.embed(frames.reshape(len(frames), -1, 1)) + jnp.repeat(self.action(action), size, axis=1)
        places = jax.lax.dynamic_slice_in_dim(self.places(FRAMES * size), first * size, x.shape[1])
        return x + places

    def features(self, tokens: Tokens, action: jax.Array) -> jax.Array:
        """Of all tokens but those of the first frame, which is given."""
        ids = tokens.only.values[..., 0]
        return self.stack(self.inputs(ids[:, :-1], action[:, 1:]), mask=BlockCausal(SIDE * SIDE))


class Steering(Skeleton):
    def network(self, rngs):
        return World(rngs)

    def tokens(self, batch) -> Tokens:
        video = to_video(batch["video"])
        grey = jax.image.resize(video[..., :1], (len(video), FRAMES, SIDE, SIDE, 1), "linear")
        return Tokens.single(jnp.clip((grey + 1) * LEVELS / 2, 0, LEVELS - 1).astype(jnp.int32), LAYOUT)

    def loss(self, modules, batch, key, step, micro=None):
        micro, tokens = micro or MicroBatch(), self.tokens(batch)
        features = modules["model"].features(tokens, batch["action"])
        targets = tokens.only.values[:, 1:].reshape(len(features), -1, 1)
        total, count, _ = modules["model"].head.loss(features, targets, jnp.ones(targets.shape[:2], bool), None)
        loss = total / micro.mean(count)
        return loss, Outcome({"loss": loss})


@pytest.mark.slow
def test_a_stepper_that_actions_steer(monkeypatch, tmp_path):
    monkeypatch.setitem(tasks.TASKS, "stepper", Steering)
    monkeypatch.setitem(data.SOURCES, "walks", Walks)
    config = stage("stepper")
    config.data.source.name = "walks"
    loaded = trained(config, tmp_path)
    moved(config, loaded)
    model, task = loaded.modules["model"], loaded.task
    source = Walks(clip=data.Clip(4, 8, 8), seed=0, split="eval")
    batch = {k: np.stack([source[i][k] for i in range(BATCH)]) for k in ("video", "action")}
    tokens = task.tokens(batch)
    # Step by step with caches, told one action after another, is the sample, and the full forward on what was drawn.
    keys, sampler = jax.random.split(jax.random.key(0), BATCH), BlockSampler(temperature=1e-4)
    actions, first = jnp.asarray(batch["action"]), Tokens.single(tokens.only.values[:, :1], LAYOUT.with_time(1))
    state, frames = model.begin(LAYOUT, jnp.zeros_like(actions), keys, sampler, first), [first.only.values]
    for frame in range(1, FRAMES):
        state, drawn = model.advance(state, jnp.where(jnp.arange(FRAMES) == frame, actions, 0), frame)
        frames.append(drawn.only.values)
    whole = Tokens.single(jnp.concatenate(frames, axis=1), LAYOUT)
    sampled = model.sample(LAYOUT, actions, keys, sampler, first)
    np.testing.assert_array_equal(sampled.only.values, whole.only.values)
    likeliest = model.head.logits(model.features(whole, jnp.asarray(batch["action"])))[0].argmax(-1)
    np.testing.assert_array_equal(likeliest.reshape(BATCH, FRAMES - 1, SIDE, SIDE), whole.only.values[:, 1:, ..., 0])
    # An action changes its own frame and those after, none before.
    other = jnp.asarray(batch["action"]).at[:, 2].set((batch["action"][:, 2] + 1) % ACTIONS)
    a, b = (
        model.features(whole, action).reshape(BATCH, FRAMES - 1, -1) for action in (jnp.asarray(batch["action"]), other)
    )
    np.testing.assert_allclose(a[:, 0], b[:, 0], atol=1e-6)
    assert jnp.abs(a[:, 1] - b[:, 1]).max() > 1e-3
