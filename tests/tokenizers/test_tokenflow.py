"""TokenFlow: scales that sum up, requests, sums and labels for generators, where gradients go, and its teacher."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tokenizers.test_invariants import CONFIGS, make
from videogen.errors import UserError
from videogen.losses.distillation import at_places, cosine
from videogen.nn import resize_area, resize_cubic
from videogen.shapes import Compression, VideoShape
from videogen.tokens import Tokens

CONFIG = CONFIGS["tokenflow"]
SCALES = CONFIG["quantizer"]["scales"]
CLIP = VideoShape(*CONFIG["clip"])
FIRST = (1, 5, 5 + 2 * 4 * 4)
"""Tokens of the first one, two and all scales."""


@functools.cache
def model() -> nnx.Module:
    return make(CONFIG)


def video(batch: int = 2) -> jax.Array:
    return jax.random.uniform(jax.random.key(1), (batch, 3, 8, 8, 3), minval=-1, maxval=1)


@functools.cache
def encoded():
    return jax.jit(model().encode)(video())


@functools.cache
def bottleneck():
    return jax.jit(model().bottleneck)(encoded())[:2]


def test_every_scale_is_a_segment_of_one_vocabulary():
    latents, tokens = bottleneck()
    assert tokens.names == ("scale_1", "scale_2", "scale_3") and tokens.layout == model().layout(CLIP)
    for segment, scale in zip(tokens.segments, SCALES, strict=True):
        assert dict(segment.layout.sides) == dict(zip(("time", "height", "width"), scale, strict=True))
        assert segment.layout.vocabulary == (64,) and segment.values.shape == (2, *scale, 1)
    assert latents.shape == encoded().values.shape == (2, *SCALES[-1], 5)
    assert model().layout(CLIP).bits == FIRST[-1] * 6


def test_semantics_come_first_and_from_the_encoder_alone():
    width = CONFIG["widths"][0]
    np.testing.assert_allclose(encoded().values[..., :width], jax.jit(model().semantic)(video()), atol=1e-5)
    np.testing.assert_allclose(encoded().values[..., width:], jax.jit(model().pixel_encoder)(video()), atol=1e-5)


def test_pixels_are_decoded_from_the_pixel_half_and_semantics_from_the_other():
    latents, width = bottleneck()[0], CONFIG["widths"][0]
    pixels, semantics = jax.jit(model().decode), jax.jit(model().semantics)
    for half, same, other in ((slice(0, width), pixels, semantics), (slice(width, None), semantics, pixels)):
        moved = latents.at[..., half].add(1.0)
        np.testing.assert_array_equal(same(moved), same(latents))
        assert np.abs(other(moved) - other(latents)).max() > 1e-3


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_first_scales_decode_however_they_are_said(count):
    """Fewer segments, a request, and masks are one thing: the sum of whole first scales."""
    names, (_, tokens) = model().quantizer.names[:count], bottleneck()
    expected = sum(resize_cubic(model().quantizer.base.lookup(tokens[name].values), SCALES[-1]) for name in names)
    np.testing.assert_allclose(model().lookup(Tokens(tokens.segments[:count], names)), expected, atol=1e-5)
    encode = jax.jit(functools.partial(model().encode, request=FIRST[count - 1]))
    latents, asked = jax.jit(model().bottleneck)(encode(video()))[:2]
    np.testing.assert_allclose(latents, expected, atol=1e-5)
    np.testing.assert_allclose(model().lookup(asked), expected, atol=1e-5)
    np.testing.assert_allclose(asked.bits(), 6.0 * FIRST[count - 1])
    for ours, theirs in zip(asked.segments, tokens.segments, strict=True):
        np.testing.assert_array_equal(ours.values, theirs.values)


@pytest.mark.parametrize("tokens", [0, 2, 6, 36, 38])
def test_a_request_that_cuts_a_scale_is_refused_with_the_sums(tokens):
    with pytest.raises(UserError, match=f"only whole scales decode, 1, 5, 37 tokens, and {tokens} are asked for"):
        jax.eval_shape(lambda clips: model().encode(clips, tokens).values, video())


@pytest.mark.uncompiled
def test_parts_of_scales_and_scales_without_the_ones_before_are_refused():
    _, tokens = bottleneck()
    ones = [jnp.ones((2, *scale), bool) for scale in SCALES]

    def with_masks(*masks):
        kept = dict(zip(tokens.names, masks, strict=True))
        return tokens.replace(**{name: dataclasses.replace(tokens[name], kept=kept[name]) for name in kept})

    part = ones[2].at[0, 0, 0, 0].set(False)
    for wrong in ((ones[0], ones[1], part), (ones[0], ~ones[1], ones[2]), (~ones[0], ~ones[1], ~ones[2])):
        with pytest.raises(UserError, match="scale_3 is there in part|and an earlier one is left out"):
            model().detokenize(with_masks(*wrong))
    with pytest.raises(UserError, match="only whole first scales of scale_1, scale_2, scale_3 decode"):
        model().lookup(Tokens(tokens.segments[1:], tokens.names[1:]))
    # Each example may keep a number of its own.
    first = jnp.asarray([True, False])[:, None, None, None]
    mixed = model().lookup(with_masks(ones[0], ones[1] & first, ones[2] & first))
    np.testing.assert_allclose(mixed[0], bottleneck()[0][0], atol=1e-5)
    np.testing.assert_allclose(mixed[1], model().lookup(Tokens(tokens.segments[:1], tokens.names[:1]))[1], atol=1e-5)


def test_partial_sums_are_what_a_scale_reads():
    tokens, quantizer = bottleneck()[1], model().quantizer
    total = jnp.zeros((2, *SCALES[-1], 5))
    for name, scale in zip(tokens.names, SCALES, strict=True):
        found = model().partial(tokens, name)
        assert found.shape == (2, *scale, 5)
        np.testing.assert_allclose(found, resize_area(total, scale), atol=1e-5)
        total = total + resize_cubic(quantizer.base.lookup(tokens[name].values), SCALES[-1])
    # The scales before are enough, and none of them may be missing.
    before = Tokens(tokens.segments[:2], tokens.names[:2])
    np.testing.assert_array_equal(model().partial(before, "scale_3"), model().partial(tokens, "scale_3"))
    with pytest.raises(UserError, match="there is no segment 'scale_2'"):
        model().partial(Tokens(tokens.segments[:1], tokens.names[:1]), "scale_3")
    with pytest.raises(UserError, match="there is no segment 'scale_4'"):
        model().partial(tokens, "scale_4")


def test_labels_are_found_again_behind_wrong_ids_and_equal_without():
    """Case 7: inputs and labels still sum up to the features; for right inputs labels are bit-equal."""
    tokens = bottleneck()[1]
    relabel = jax.jit(model().relabel, static_argnums=2)
    for count, name in enumerate(tokens.names):
        shown = Tokens(tokens.segments[: max(count, 1)], tokens.names[: max(count, 1)])
        found = relabel(encoded(), shown, name)
        assert found.layout == tokens[name].layout
        np.testing.assert_array_equal(found.values, tokens[name].values)
    wrong = tokens.replace(scale_1=dataclasses.replace(tokens["scale_1"], values=(tokens["scale_1"].values + 9) % 64))
    rest = encoded().values - resize_cubic(model().quantizer.base.lookup(wrong["scale_1"].values), SCALES[-1])
    expected = model().quantizer.base(resize_area(rest, SCALES[1])).indices
    np.testing.assert_array_equal(relabel(encoded(), wrong, "scale_2").values, expected)
    assert (expected != tokens["scale_2"].values).any()
    # Segments that are not shown are made as well: from the first alone to the last.
    first = Tokens(wrong.segments[:1], wrong.names[:1])
    second = dataclasses.replace(tokens["scale_2"], values=expected)
    both = Tokens((wrong.segments[0], second), wrong.names[:2])
    np.testing.assert_array_equal(
        relabel(encoded(), first, "scale_3").values, relabel(encoded(), both, "scale_3").values
    )


def test_other_tokenizers_have_no_sums():
    other = make(CONFIGS["larp"])
    assert model().scales and not other.scales
    for call in (lambda: other.partial(bottleneck()[1], "video"), lambda: other.relabel(encoded(), None, "video")):
        with pytest.raises(UserError, match="has no partial sums"):
            call()


def test_codes_decode_to_the_reconstruction():
    """Case 1: the decoder sees nothing but what the ids stand for."""
    latents, tokens = bottleneck()
    expected = jnp.clip(jax.jit(model().decode)(latents), -1, 1)
    np.testing.assert_allclose(jax.jit(model().detokenize)(tokens), expected, atol=1e-5)


def teacher_of(of: nnx.Module) -> nnx.Module:
    """A frozen encoder: another one than the trained."""
    return make(CONFIG, seed=3).semantic.network


@functools.cache
def gradients():
    """Of the distillation and of the pixels, each alone, to the parameters of the tokenizer and to the teacher."""
    graph, params, rest = nnx.split(model(), nnx.Param, ...)
    of_teacher, frozen = nnx.split(teacher_of(model()))

    def losses(params, frozen):
        live, clips = nnx.merge(graph, params, rest), video()
        found = live.encode(clips)
        latents, _, of_quantizer, _ = live.bottleneck(found)
        compared = live.compare(found, latents, clips, jax.random.key(0))
        grid = jax.lax.stop_gradient(nnx.merge(of_teacher, frozen).grid(clips))
        wanted = at_places(grid, SCALES[-1], clips.shape[1], live.feature_compression)
        semantic = cosine(compared.features["semantic"], wanted)
        return {"semantic": semantic, "pixels": jnp.mean((compared.video - clips) ** 2), **of_quantizer}

    return {
        name: jax.jit(jax.grad(lambda p, f, n=name: losses(p, f)[n], argnums=(0, 1)))(params, frozen)
        for name in ("semantic", "pixels", "codebook")
    }


def reached(gradient) -> set[str]:
    """Parts of the tokenizer that a gradient reaches."""
    return {
        str(path[0])
        for path, leaf in nnx.to_flat_state(gradient)
        if np.abs(np.asarray(leaf.get_value())).max(initial=0) > 0
    }


@pytest.mark.slow
def test_gradients_reach_what_they_should_and_never_the_teacher():
    """The one id leads to both encoders: through the mean of scales and the unit vectors of its own half."""
    found = gradients()
    assert reached(found["semantic"][0]) == {"semantic", "from_code", "semantic_decoder", "to_teacher"}
    assert reached(found["pixels"][0]) == {"pixel_encoder", "pixel_decoder"}
    # Codes learn by the losses of the quantizer, which follow the latents; the encoders do not see these.
    assert reached(found["codebook"][0]) == {"quantizer"}
    assert not any(reached(gradient[1]) for gradient in found.values())


def test_parallel_semantics_have_no_distance():
    ours = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 6))
    assert float(cosine(3.0 * ours, ours)) == pytest.approx(0.0, abs=1e-6)
    assert float(cosine(-ours, ours)) == pytest.approx(2.0, abs=1e-6)


def test_clips_that_are_no_multiple_of_the_grid_are_resized_for_the_convolutions():
    """As 384 pixels of SigLIP are 27 · 16 for them; the time must fit."""
    quantizer = CONFIG["quantizer"] | {"scales": ((1, 1, 1), (2, 5, 5))}
    other = make(CONFIG | {"quantizer": quantizer})
    assert other.seen_by_pixels == VideoShape(3, 10, 10) and other.feature_compression == Compression(2, 2, 2)
    found = jax.jit(other.encode)(video()).values
    expected = jax.jit(other.pixel_encoder)(resize_cubic(video(), (3, 10, 10)))
    np.testing.assert_allclose(found[..., CONFIG["widths"][0] :], expected, atol=1e-5)
    assert jax.eval_shape(other.decode, found).shape == video().shape
    with pytest.raises(UserError, match="the last scale has the time 1, that is 1 frames, and clips have 3"):
        make(CONFIG | {"quantizer": quantizer | {"scales": ((1, 4, 4),)}})


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="codes clips of 3×8×8 as a whole, got 3×8×16"):
        model().layout(VideoShape(3, 8, 16))
    for wrong, message in (
        ({"widths": (2, 2)}, r"the halves \(2, 2\) of a latent are not 5 wide"),
        ({"quantizer": {"name": "vq", "size": 4, "width": 5}}, "unknown quantizer of tokenflow 'vq'"),
        ({"semantic": {"encoder": {"name": "vgg16"}}}, "unknown encoder 'vgg16'"),
        ({"semantic": CONFIG["semantic"] | {"reading": "penultimate"}}, "no reading 'penultimate'"),
    ):
        with pytest.raises(UserError, match=message):
            make(CONFIG | wrong)
