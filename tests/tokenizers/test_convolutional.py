"""Properties of the MAGVIT-v2 and MAGVIT sheets beyond what every tokenizer promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tokenizers.test_invariants import CONFIGS, influence, make, model_of, video_of
from videogen.errors import UserError
from videogen.nn import AdaptiveGroupNorm, GroupNorm
from videogen.tokenizers import build
from videogen.tokenizers.inflation import inflate_array

LEVELS = {"width": 4, "multipliers": (1, 2), "blocks": 1, "middle_blocks": 1, "spatial_strides": (2,), "norm_groups": 2}
LEVELS |= {"quantizer": {"name": "lfq", "bits": 4}}


def test_norms_over_time_would_fail_the_causality_test(monkeypatch):
    """Guards that test: with statistics over time it must see the leak."""

    def over_time(self, x):
        return jnp.mean(x, axis=(1, 2, 3), keepdims=True)

    monkeypatch.setattr(GroupNorm, "_group_mean", over_time)
    name = "convolutional, blurred"
    first_latent = influence(lambda v: model_of(name).encode(v).values, video_of(name))[0]
    assert (first_latent[1:] > 0).any()


def test_adaptive_norm_begins_as_the_plain_one_and_then_follows_its_condition():
    random = np.random.default_rng(0)
    x, condition = (random.normal(size=s).astype(np.float32) for s in ((2, 5, 4, 4, 8), (2, 3, 2, 2, 3)))
    adaptive = AdaptiveGroupNorm(8, 3, groups=2, factors=(2, 2, 2), rngs=nnx.Rngs(0))
    plain = GroupNorm(8, groups=2, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(adaptive(x, condition), plain(x), atol=1e-6)
    adaptive.modulation.kernel.set_value(jnp.asarray(random.normal(size=(3, 16)), jnp.float32))
    changed = np.abs(adaptive(x, condition) - adaptive(x, np.concatenate([condition[:, :2], -condition[:, 2:]], 1)))
    # The last of three latent frames stands for frames 3 and 4.
    assert changed[:, :3].max() == 0 and changed[:, 3:].min(axis=(0, 2, 3)).max() > 0


def test_what_does_not_inflate_is_left():
    # Twice the output channels are no frames, but where a layer makes two of one.
    assert inflate_array(jnp.ones((1, 3, 3, 2, 4)), (3, 3, 3, 2, 8), "last", 1) is None
    assert inflate_array(jnp.ones((1, 3, 3, 2, 4)), (3, 3, 3, 2, 8), "last", 2).shape == (3, 3, 3, 2, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"padding": "same"}, "future"),
        ({"padding": "zeros"}, "did you mean 'zero'"),
        ({"downsampling": "average"}, "not causal"),
        ({"downsampling": "stride"}, "did you mean 'strided'"),
        ({"spatial_strides": (2, 2)}, "2 multipliers need 1 spatial_strides"),
        ({"norm_groups": 3}, "3 groups"),
        ({"temporal_strides": (4,), "downsampling": "strided"}, "stride of 4 frames"),
    ],
)
def test_wrong_settings_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        make(CONFIGS["convolutional, blurred"], **changes)


def test_rematerialisation_changes_no_gradient():
    name = "convolutional, blurred"
    video, graphs = video_of(name), {}
    for remat in ("none", "full"):
        graphs[remat] = nnx.graphdef(nnx.eval_shape(lambda r=remat: build(CONFIGS[name], remat=r, rngs=nnx.Rngs(0))))
    params = nnx.state(model_of(name))

    def gradient(remat: str):
        return jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(nnx.merge(graphs[remat], p).encode(video).values))))(params)

    for a, b in zip(*(jax.tree.leaves(gradient(remat)) for remat in graphs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
