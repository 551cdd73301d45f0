"""LARP's discriminator: clips of any length the patch divides, independent of each other, gradients everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.errors import UserError
from videogen.losses import TransformerDiscriminator


def make(dtype=jnp.float32) -> TransformerDiscriminator:
    return TransformerDiscriminator((2, 4, 4), 12, 1, 2, dtype=dtype, rngs=nnx.Rngs(0))


def clips(frames: int = 4) -> jax.Array:
    return jax.random.uniform(jax.random.key(1), (3, frames, 8, 8, 3), minval=-1)


def test_every_clip_has_a_logit_of_its_own():
    model, video = jax.jit(make()), clips()
    logits, other = model(video), model(video.at[0].set(-video[0]))
    assert logits.shape == (3,)
    np.testing.assert_allclose(logits[1:], other[1:], rtol=1e-5)
    assert abs(float(logits[0] - other[0])) > 1e-4
    assert model(clips(2)).shape == (3,)
    half = jax.jit(make(jnp.bfloat16))(video)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, logits, atol=0.1)


def test_frames_have_an_order():
    model = jax.jit(make())
    assert np.abs(model(clips()) - model(clips()[:, ::-1])).max() > 1e-4


def test_gradient_reaches_every_parameter_and_every_pixel():
    graph, state = nnx.split(make())
    grads = jax.jit(jax.grad(lambda s, v: jnp.sum(jnp.sin(nnx.merge(graph, s)(v))), argnums=(0, 1)))
    to_state, to_video = grads(state, clips())
    for path, leaf in jax.tree_util.tree_leaves_with_path(to_state):
        assert jnp.abs(leaf).max() > 0, jax.tree_util.keystr(path)
    assert jnp.abs(to_video).max((0, 4)).min() > 0


def test_clips_that_the_patch_does_not_divide_are_refused():
    with pytest.raises(UserError, match=r"2·k frames"):
        make()(clips(3))
