"""Fewer tokens inside of CLIP's image encoder: counts of tokens and parameters, and identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import tasks
from videogen.configs import retrieval
from videogen.encoders import ClipImage
from videogen.errors import UserError
from videogen.language.clip_tower import ProgressiveMerging, SegmentMedoids, hooked, of_frames, tokens_of
from videogen.language.towers import ClipFrames
from videogen.nn import Attention, beside_lora, merged
from videogen.shapes import VideoShape
from videogen.training.optimizers import is_frozen

TINY = {
    **{"image_size": 8, "patch": 4, "embed": 6},
    "sizes": {"width": 8, "layers": 3, "heads": 2, "hidden": 16, "kind": "quick_gelu", "epsilon": 1e-5},
}
"""Four patches and [CLS] of a frame, three layers."""


def tower(frames: int = 4, **settings) -> ClipFrames:
    return ClipFrames(VideoShape(frames, 8, 8), 6, model=TINY, **settings, rngs=nnx.Rngs(0))


def clips(frames: int = 4) -> jax.Array:
    return jax.random.uniform(jax.random.key(0), (2, frames, 8, 8, 3), minval=-1.0)


def seen(own: ClipFrames, video: jax.Array) -> jax.Array:
    return own(video, jnp.zeros(video.shape[:2]))


def published(recipe: str) -> nnx.Module:
    task = tasks.build(retrieval.get_config(f"size=paper,recipe={recipe}"))
    return task, nnx.eval_shape(lambda: task.init(nnx.Rngs(0)))["towers"]


@pytest.mark.slow
def test_without_reduction_it_is_the_mean_of_the_embeddings_of_frames():
    own, video = tower(), clips()
    network = ClipImage(**TINY, rngs=nnx.Rngs(0))
    expected = np.mean([[network(frame[None])[0] for frame in clip] for clip in video], axis=1)
    np.testing.assert_allclose(seen(own, video), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "reduction",
    [
        {"name": "progressive_merging", "removed": 0, "layers": 3, "joins": (), "inside": 0.0},
        # A share of the joined tokens below one of them, and factors of one.
        {"name": "progressive_merging", "removed": 0, "layers": 1, "joins": (1, 1), "inside": 0.0},
        # As many medoids as patches, in segments of one frame.
        {"name": "segment_medoids", "behind": 2, "segments": 4, "budget": 4},
    ],
    ids=["nothing merges", "factors of one", "all are medoids"],
)
def test_a_reduction_that_reduces_nothing_is_the_plain_tower(reduction):
    video = clips()
    np.testing.assert_allclose(seen(tower(reduction=reduction), video), seen(tower(), video), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_joined_frames_see_each_other_and_keep_their_class_tokens():
    reduction = {
        "name": "progressive_merging",
        "removed": 1,
        "layers": 1,
        "joins": (2, 2),
        "across": 0.3,
        "inside": 0.1,
    }
    own, video = tower(reduction=reduction), clips()
    # 5 - 1; 8 - 2, all of it left behind the attention; 12 - 3, and 8 of them.
    assert own.tokens == 9 and own.positions.shape == (4, 8)
    pixels = own.network.preprocessing(video.reshape(-1, 8, 8, 3)).reshape(video.shape)
    x, units = tokens_of(own.network, pixels, own.reduction, own.positions.get_value())
    assert x.shape == (2, 9, 8) and units.first == 4
    # Every token of the clip is stood for, and no [CLS] by another.
    np.testing.assert_allclose(units.size.sum(1), 4 * 5)
    np.testing.assert_array_equal(units.size[:, :4], 1.0)
    found = of_frames(own.network, video, own.reduction, own.positions.get_value())
    changed = of_frames(own.network, video.at[:, 3].set(0.0), own.reduction, own.positions.get_value())
    assert found.shape == (2, 4, 6) and float(jnp.abs(found - changed)[:, 0].max()) > 1e-4


def test_segments_have_one_class_token_and_their_medoids():
    own = tower(reduction={"name": "segment_medoids", "behind": 1, "segments": 2, "budget": 3})
    assert own.tokens == 2 * (1 + 3)
    assert of_frames(own.network, clips(), own.reduction).shape == (2, 2, 6)


@pytest.mark.slow
def test_the_published_tower_of_tempme():
    task, towers = published("tempme")
    assert task.bucket_tokens == [97]
    prefixes = task.config.optimizer.towers.freeze
    frozen = beside_lora(towers, prefixes)
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(towers, nnx.Param)))
    trained = {
        jax.tree_util.keystr(p, simple=True, separator="."): x.size for p, x in leaves if not is_frozen(p, frozen)
    }
    assert trained.pop("scale.logarithm") == 1
    assert trained.pop("video.positions") == 7 * 768
    assert sum(trained.values()) == 491_520 and all(".lora." in name for name in trained)
    assert sum(trained.values()) + 7 * 768 == 496_896


def test_the_published_tower_of_centerclip():
    task, _ = published("centerclip")
    # 4 segments of 49 medoids and [CLS]: each as long as one frame.
    assert task.bucket_tokens == [4 * 50]


@pytest.mark.parametrize(
    ("reduction", "words"),
    [
        (SegmentMedoids(segments=3), "4 frames do not divide into 3 segments"),
        (ProgressiveMerging(removed=1, layers=1, joins=(3,)), "4 frames do not join by 3"),
        (ProgressiveMerging(removed=9, layers=1, joins=(2,)), "at most 2 can be merged away there, not 9"),
        (ProgressiveMerging(removed=1, layers=3, joins=(2, 2)), "more than 3 layers"),
    ],
)
def test_reductions_that_cannot_be_are_one_line(reduction, words):
    network = ClipImage(**TINY, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match=words):
        hooked(network, reduction, 4)


@pytest.mark.slow
def test_low_rank_updates_of_some_projections():
    layer = Attention(8, 2, lora={"rank": 2, "alpha": 4, "only": ("query", "value")}, rngs=nnx.Rngs(0))
    assert layer.out.lora is None and len(layer.query_key_value.lora.parts) == 2
    x = jax.random.normal(jax.random.key(0), (1, 3, 8))
    before = layer(x)
    plain = Attention(8, 2, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(before, merged(layer)(x), rtol=1e-5, atol=1e-6)
    for part in layer.query_key_value.lora.parts:
        part.up.set_value(jax.random.normal(jax.random.key(1), part.up.shape))
    kernel = layer.query_key_value.lora.kernel()
    assert kernel.shape == plain.query_key_value.kernel.shape and float(jnp.abs(kernel[:, 8:16]).max()) == 0.0
    assert float(jnp.abs(kernel[:, :8]).min()) > 0 and float(jnp.abs(kernel[:, 16:]).min()) > 0
    np.testing.assert_allclose(layer(x), merged(layer)(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="unknown projection 'queries'.*query"):
        Attention(8, 2, lora={"rank": 2, "alpha": 4, "only": ("queries",)}, rngs=nnx.Rngs(0))
