"""VidLA's tower: who sees whom, what it is at first, and where it begins as a published network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.errors import UserError
from videogen.language.multi_scale_tower import MultiScale
from videogen.nn import Full, mask_array
from videogen.nn.structured_masks import LEVEL, PATCH, by_kind, multi_scale, multi_scale_tags
from videogen.shapes import VideoShape

SIZES = {"width": 8, "layers": 2, "heads": 2, "hidden": 16, "kind": "gelu", "epsilon": 1e-5}
MODEL = {"image_size": 8, "patch": 4, "embed": 6, "sizes": SIZES}
VIDEO = jax.random.uniform(jax.random.key(0), (2, 4, 8, 8, 3), minval=-1)


def tower(levels: int = 3, frames: int = 4) -> MultiScale:
    return MultiScale(VideoShape(frames, 8, 8), 6, model=MODEL, levels=levels, each=4, rngs=nnx.Rngs(0))


def trunk(of: MultiScale, video=VIDEO):
    return jax.jit(of.trunk)(video)


def test_rows_of_the_mask():
    """T = 4, N = 3, U = 3, V = 4, r = 2: 25 tokens."""
    tags = multi_scale_tags(4, 3, 3, 4)
    allowed = np.asarray(mask_array(multi_scale(3), 25, 25, *2 * [{n: v[None] for n, v in tags.items()}]))[0]
    rows = allowed.sum(1)
    assert rows.tolist() == [25] + [16] * 4 + [14] * 4 + [15] * 4 + [15] * 12
    assert allowed[:, 0].tolist() == [True] + [False] * 24


def test_at_first_patches_are_those_of_the_image_network_on_each_frame():
    """Levels are hidden from the patches, and attention over time gives nothing: every frame is by itself."""
    found = tower()
    assert found.tokens == 1 + 12 + 4 * 4
    found.mask = multi_scale(3) & by_kind({(q, k): Full() for q in range(5) for k in range(5) if (q, k) not in HIDDEN})
    network = found.network
    x = network.embedded(network.preprocessing(VIDEO.reshape(8, 8, 8, 3)))
    image = found.network.transformer.stack
    tags = multi_scale_tags(1, 4, 0, 4)
    for layer in range(2):
        x = image.layer(layer).block(x, mask=multi_scale(0), tags=tags)
    expected = x[:, 1:].reshape(2, 16, 8)
    np.testing.assert_allclose(trunk(found)[:, 13:], expected, atol=1e-5)


HIDDEN = {(PATCH, LEVEL + u) for u in range(3)}


def test_one_frame_without_levels_is_the_image_network():
    """But for [CLS], which patches do not see."""
    found = tower(levels=0, frames=1)
    assert found.levels is None and found.tokens == 5
    network = found.network
    x = network.embedded(network.preprocessing(VIDEO[:, 0]))
    for layer in range(2):
        x = network.transformer.stack.layer(layer).block(x, mask=multi_scale(0), tags=multi_scale_tags(1, 4, 0, 1))
    np.testing.assert_allclose(trunk(found, VIDEO[:, :1]), x, atol=1e-5)
    expected = network.projection(network.transformer.finish(x[:, 0]))
    np.testing.assert_allclose(found(VIDEO[:, :1], None), expected, atol=1e-5)


def with_time(found: MultiScale) -> MultiScale:
    kernel = found.network.transformer.stack.layers.time.out.kernel
    kernel.set_value(jax.random.normal(jax.random.key(1), kernel.shape))
    return found


def reached(found: MultiScale, frame: int) -> np.ndarray:
    """Which tokens change with the first patch of a frame."""
    other = VIDEO.at[:, frame, :4, :4].set(0.5)
    return np.asarray(jnp.abs(trunk(found) - trunk(found, other)).max((0, 2)) > 1e-5)


def test_without_levels_attention_is_divided_into_space_and_time():
    """One layer: its own frame, [CLS], and once the attention over time is trained its own place in other frames."""
    sizes = {**MODEL, "sizes": {**SIZES, "layers": 1}}
    found = MultiScale(VideoShape(4, 8, 8), 6, model=sizes, levels=0, rngs=nnx.Rngs(0))
    space = np.array([True] + 4 * [False] + 4 * [True] + 8 * [False])
    np.testing.assert_array_equal(reached(found, 1), space)
    # What came over time is seen by all patches of a frame.
    assert reached(with_time(found), 1).all()
    found.network.transformer.stack.layers.block.attention.out.kernel.set_value(jnp.zeros((1, 8, 8)))
    place = np.array([False] + 4 * [True, False, False, False])
    np.testing.assert_array_equal(reached(found, 1), place)


def test_levels_carry_frames_that_are_a_multiple_of_their_rate():
    sizes = {**MODEL, "sizes": {**SIZES, "layers": 1}}
    found = MultiScale(VideoShape(4, 8, 8), 6, model=sizes, levels=3, each=1, rngs=nnx.Rngs(0))
    for frame, levels in ((0, [1, 1, 1]), (1, [1, 0, 0]), (2, [1, 1, 0]), (3, [1, 0, 0])):
        assert reached(found, frame)[1:4].tolist() == [bool(seen) for seen in levels]


def test_every_parameter_learns():
    found = with_time(tower())

    def loss(state):
        return (nnx.merge(graph, state)(VIDEO, None) ** 2).sum()

    graph, state = nnx.split(found)
    slopes = jax.tree.leaves(jax.jit(jax.grad(loss))(state))
    assert all(float(jnp.abs(slope).max()) > 0 for slope in slopes)


@pytest.mark.uncompiled
def test_what_cannot_be_is_one_line():
    with pytest.raises(UserError, match="embeds in 6 channels: set model.embed to it, not 7"):
        MultiScale(VideoShape(4, 8, 8), 7, model=MODEL, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="sees whole clips"):
        tower()(VIDEO, None, jnp.ones((2, 4), bool))
