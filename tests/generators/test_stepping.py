"""The contract of stepping: a sample is the loop over ``begin`` and ``advance``, of every kind of generator."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.generators.clips import layout_of
from videogen.conditioning import Conditioning
from videogen.errors import UserError
from videogen.generators import (
    BlockSampler,
    FlowSampler,
    FlowTransformer,
    Generator,
    MaskedTransformer,
    MaskGITSampler,
    NextBlockTransformer,
    State,
)
from videogen.generators.sampling import Sampler
from videogen.shapes import TokenGrid
from videogen.tokens import Layout, Tokens

GRID, CHANNELS = TokenGrid(3, 1, 2), 2
SMALL = {"width": 8, "layers": 1, "heads": 1, "mlp_width": 8}
FLOW = FlowSampler(steps=3, guidance_scale=2.0, solver={"name": "unipc"})
QUEUE = FlowSampler(steps=3, guidance_scale=2.0, extension="queue", solver={"name": "ddim", "eta": 1.0})
MASKED = MaskGITSampler(steps=2, guidance_scale=2.0)
BLOCKS = BlockSampler(guidance_scale=2.0, guidance_schedule="cosine")


class Kind(NamedTuple):
    """A generator with its sampler, latent frames of what is drawn, those given, and those of a step."""

    build: type[Generator]
    sampler: Sampler
    settings: dict = {}
    frames: int = 3
    known: int = 0
    step: int = 1


KINDS = {
    "blocks": Kind(NextBlockTransformer, BLOCKS, {"block": (1, 1, 2)}),
    "blocks after a prefix": Kind(NextBlockTransformer, BLOCKS, {"block": (1, 1, 1)}, known=1),
    "token start": Kind(NextBlockTransformer, BLOCKS, {"block": (1, 1, 2), "start": "tokens"}),
    "prefix LM": Kind(NextBlockTransformer, BLOCKS, {"start": "prefix", "given": 1}, known=1),
    "delayed levels": Kind(NextBlockTransformer, BLOCKS, {"vocabulary": (5, 4), "delay": True}),
    "latents in blocks": Kind(NextBlockTransformer, BLOCKS, {"head": {"name": "gaussian_mixture", "components": 2}}),
    "masked": Kind(MaskedTransformer, MASKED, step=3),
    "masked after a prefix": Kind(MaskedTransformer, MASKED, known=2, step=3),
    "flow": Kind(FlowTransformer, FLOW, step=3),
    "flow after a prefix": Kind(FlowTransformer, FLOW, known=2, step=3),
    "flow with a lag": Kind(FlowTransformer, FlowSampler(steps=3, lag=2, guidance_scale=1.0), known=1, step=3),
    "queue": Kind(FlowTransformer, QUEUE, frames=5),
}


FIRST_TIER = ("blocks after a prefix", "delayed levels", "masked after a prefix", "flow after a prefix", "queue")
"""One of each way to step; the others are compiled in the second tier."""
EVERY = [name if name in FIRST_TIER else pytest.param(name, marks=pytest.mark.slow) for name in KINDS]


@functools.cache
def make(name: str) -> Generator:
    """With random numbers in place of the zeros of a fresh model."""
    kind = KINDS[name]
    common = dict(grid=GRID.shape, transformer=SMALL, rngs=nnx.Rngs(0))
    if kind.build is FlowTransformer:
        model = kind.build(CHANNELS, **common, classes=3, times="frame", patch=(1, 1, 1))
    else:
        floats = "head" in kind.settings
        values = {"vocabulary": () if floats else (5,), "channels": CHANNELS if floats else None}
        model = kind.build(**{**values, **kind.settings}, **common, context_width=8, classes=3)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    leaves, tree = jax.tree.flatten(params)
    random = np.random.default_rng(0)
    moved = [x + 0.2 * jnp.asarray(random.normal(size=x.shape), x.dtype) for x in leaves]
    return nnx.merge(graph, jax.tree.unflatten(tree, moved), rest)


def layout(name: str, frames: int = 0) -> Layout:
    kind = KINDS[name]
    floats = kind.build is FlowTransformer or "head" in kind.settings
    vocabulary = () if floats else kind.settings.get("vocabulary", (5,))
    return layout_of(GRID.with_time(frames or kind.frames), vocabulary, CHANNELS if floats else 0)


def given(name: str, frames: int) -> Tokens | None:
    """The first frames of two clips, which are the same whatever their number."""
    if not frames:
        return None
    segment = layout(name, 2).only
    shape, key = (2, *segment.shape, segment.width), jax.random.key(3)
    values = jax.random.randint(key, shape, 0, 3) if segment.vocabulary else jax.random.normal(key, shape)
    return Tokens.single(values[:, :frames], layout(name, frames))


KEYS = jax.random.split(jax.random.key(1), 2)
TOLD = Conditioning(label=jnp.array([0, 1]))


def begin(name: str, known: int | None = None) -> State:
    kind, model = KINDS[name], make(name)
    known = kind.known if known is None else known
    prefix = given(name, known)
    first = lambda prefix: model.begin(layout(name), TOLD, KEYS, kind.sampler, prefix)  # noqa: E731
    return (jax.jit(first) if kind.sampler is QUEUE else first)(prefix)


@functools.cache
def advance(name: str):
    model = make(name)
    return jax.jit(lambda state, at: model.advance(state, None, at))


@functools.cache
def sample(name: str, known: int) -> np.ndarray:
    kind, model = KINDS[name], make(name)
    return jax.jit(lambda prefix: model.sample(layout(name), TOLD, KEYS, kind.sampler, prefix).only.values)(
        given(name, known)
    )


def assert_close(found: jax.Array, expected: jax.Array) -> None:
    """Equal codes; latents but for the rounding of two programs."""
    if jnp.issubdtype(expected.dtype, jnp.integer):
        np.testing.assert_array_equal(found, expected)
    else:
        np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", EVERY)
def test_steps_by_hand_are_the_sample(name):
    kind = KINDS[name]
    state, drawn, shapes = begin(name), [], []
    for at in range(kind.known, kind.frames, kind.step):
        state, tokens = advance(name)(state, at)
        assert tokens.layout == layout(name, kind.step)
        drawn.append(tokens.only.values)
        shapes.append(jax.tree.map(jnp.shape, state))
    assert all(later == shapes[0] for later in shapes)
    parts = drawn if kind.step > 1 or not kind.known else [given(name, kind.known).only.values, *drawn]
    assert_close(jnp.concatenate(parts, axis=1), sample(name, kind.known))


@pytest.mark.parametrize("name", ["masked after a prefix", "flow after a prefix"])
def test_examples_begin_a_window_at_their_own_frame(name):
    assert make(name).apart
    _, tokens = advance(name)(begin(name), jnp.array([1, 2]))
    for row, known in enumerate((1, 2)):
        alone = sample(name, known)
        assert_close(tokens.only.values[row], alone[row])
        np.testing.assert_array_equal(
            tokens.only.values[row, :known], given(name, KINDS[name].known).only.values[row, :known]
        )


def test_examples_in_a_queue_are_at_their_own_frame():
    """One is three frames on when the other begins."""
    name, states, frames = "queue", [begin("queue")], []
    for at in range(4):
        state, tokens = advance(name)(states[-1], at)
        states.append(state), frames.append(tokens.only.values)
    memory = jax.tree.map(lambda late, new: jnp.stack([late[0], new[1]]), states[3].memory, states[0].memory)
    _, together = advance(name)(dataclasses.replace(states[0], memory=memory), jnp.array([3, 0]))
    assert make(name).apart
    assert_close(together.only.values, jnp.stack([frames[3][0], frames[0][1]]))


def test_blocks_are_all_at_the_same_frame():
    assert not make("blocks").apart


def test_another_conditioning_is_that_of_all_later_blocks():
    """The cached keys of what is said are those of a clip that began with it; those of the clip stay."""
    name, other = "blocks", Conditioning(label=jnp.array([2, 2]))
    model, kind = make(name), KINDS[name]

    @jax.jit
    def memories():
        steppers = [model.stepper(layout(name), told, KEYS, kind.sampler) for told in (TOLD, other)]
        opened = [stepper.open(stepper.begin(None)) for stepper in steppers]
        state = State(opened[0], TOLD, KEYS, layout(name), kind.sampler, 0)
        once, _ = model.advance(state, other, 0)
        return (
            *opened,
            steppers[1].reconditioned(opened[0]),
            model.advance(once, None, 1),
            model.advance(once, other, 1),
        )

    (values, before), (_, begun), (kept, told), *after = memories()
    np.testing.assert_array_equal(kept, values)
    for place, (new, old, fresh) in enumerate(zip(told, before, begun, strict=True)):
        jax.tree.map(np.testing.assert_array_equal, new, fresh if place % 2 else old)
    assert jnp.abs(told[1].key - before[1].key).max() > 1e-3
    # What was said once holds.
    np.testing.assert_array_equal(after[0][0].conditioning.label, other.label)
    jax.tree.map(
        np.testing.assert_array_equal, *((state.memory, state.conditioning, tokens) for state, tokens in after)
    )


def test_a_queue_takes_no_first_frames():
    with pytest.raises(UserError, match="takes no first frames"):
        make("queue").begin(layout("queue"), TOLD, KEYS, QUEUE, given("queue", 1))
