"""Properties of the CDT sheet beyond what every tokenizer promises, and de-tokenizers of other tokenizers' codes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.tokenizers.test_invariants import CONFIGS, SIDE, make
from videogen.errors import UserError
from videogen.losses import UntrainedFeatures
from videogen.shapes import VideoShape
from videogen.tokenizers import Detokenized, build
from videogen.tokenizers.base import Encoded

GAUSSIAN = {"quantizer": {"name": "gaussian", "width": 3, "kl_weight": 1e-3}}
CDT = CONFIGS["cdt"]
LEVELS = {"kernels": ((1, 3, 3), (3, 1, 1)), "edge_kernel": (1, 3, 3), "upsampling": "subpixel"}
SMALL = CDT | {"pyramid": LEVELS | {"widths": (4,), "spatial_strides": (2,), "temporal_strides": (2,)}}
SMALL |= {"decoder": CDT["decoder"] | {"widths": (4, 4)}}
"""One level, which compiles sooner."""


def clip(frames: int, side: int = SIDE) -> jax.Array:
    return jnp.asarray(np.random.default_rng(2).uniform(-1, 1, (1, frames, side, side, 3)), jnp.float32)


@pytest.mark.parametrize("cuts", [(1, 5, 9), (5, 9), (1, 9)])
def test_chunks_of_any_size_are_encoded_as_the_whole(cuts):
    model, video = make(CDT, **GAUSSIAN), clip(9)
    encode, cache, parts = jax.jit(model.encode_chunk), None, []
    for start, stop in zip((0, *cuts), cuts, strict=False):
        cache, latents = encode(cache, video[:, start:stop])
        parts.append(latents.values)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), jax.jit(model.encode)(video).values, atol=1e-5)


def test_latents_are_the_mean_and_have_no_ids():
    model = make(CDT, **GAUSSIAN)
    latents = jax.jit(model.encode)(clip(5)).values
    assert latents.shape == (1, 2, 4, 4, 6) and latents.dtype == jnp.float32
    mean, codes, losses, _ = model.bottleneck(Encoded(latents))
    np.testing.assert_array_equal(mean, latents[..., :3])
    assert model.vocabulary == () and codes.only.values.shape == mean.shape
    assert model.bottleneck(Encoded(jnp.zeros_like(latents)))[2]["kl"] == 0 < losses["kl"]
    assert jnp.isfinite(model.bottleneck(Encoded(latents.at[..., 3:].set(1e4)))[2]["kl"])
    np.testing.assert_allclose(model.detokenize(codes), jnp.clip(model.decode(mean), -1, 1), atol=1e-5)


@pytest.mark.slow
def test_a_fresh_model_learns_with_every_parameter_after_one_step():
    """The head begins as zero: what is below it hears nothing in the first step, and must in the second."""
    graph = nnx.graphdef(nnx.eval_shape(lambda: build(SMALL | GAUSSIAN, rngs=nnx.Rngs(0))))
    params = jax.jit(lambda: nnx.state(build(SMALL | GAUSSIAN, rngs=nnx.Rngs(0))))()
    video = clip(3)

    @jax.jit
    def gradient(params, key):
        def loss(params):
            model = nnx.merge(graph, params)
            latents, _, losses, _ = model.bottleneck(model.encode(video), key=key, train=True)
            return jnp.mean((model.denoise(latents, video, key) - video) ** 2) + losses["kl"]

        return jax.grad(loss)(params)

    first = gradient(params, jax.random.key(0))
    assert float(optax.tree.norm(first["decoder"]["context"])) == 0
    moved = jax.tree.map(lambda p, g: p - 0.1 * jnp.sign(g), params, first)
    second = gradient(moved, jax.random.key(1))
    assert not [path for path, g in nnx.to_flat_state(second) if not jnp.abs(g.get_value()).max() > 0]


@pytest.mark.slow
def test_a_perceptual_gradient_flows_through_the_denoiser_into_the_encoder():
    graph, params = nnx.split(make(SMALL, **GAUSSIAN))
    video = clip(1, side=16)

    def loss(params):
        model = nnx.merge(graph, params)
        latents = model.bottleneck(model.encode(video))[0]
        return UntrainedFeatures()(model.denoise(latents, video, jax.random.key(0)), video)

    assert float(optax.tree.norm(jax.jit(jax.grad(loss))(params)["encoder"])) > 0


@pytest.mark.slow
def test_rematerialisation_changes_no_gradient():
    state, video = nnx.state(make(SMALL)), clip(3)
    gradients = []
    for remat in ("none", "full"):
        graph = nnx.graphdef(nnx.eval_shape(lambda r=remat: build(SMALL, remat=r, rngs=nnx.Rngs(0))))

        def loss(state, graph=graph):
            model = nnx.merge(graph, state)
            return jnp.sum(jnp.sin(model.decode(model.bottleneck(model.encode(video))[0])))

        gradients.append(jax.jit(jax.grad(loss))(state))
    for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3 * float(jnp.abs(b).max()) + 1e-5)


DETOKENIZER = {"name": "diffusion", "context_width": 3, "noise_steps": 64}


def detokenized(name: str, spatial: tuple[int, ...], temporal: tuple[int, ...], **changes) -> nnx.Module:
    levels = {"widths": (4,) * len(spatial), "spatial_strides": spatial, "temporal_strides": temporal}
    config = DETOKENIZER | {"pyramid": LEVELS | levels, "widths": (4,) * (len(spatial) + 1)}
    return make({"name": "detokenized", "tokenizer": CONFIGS[name] | changes, "detokenizer": config})


# Codes from convolutions and from tubelets, a clip without a first frame of its own, latents instead of codes.
COMBINATIONS = {
    "lfq": ("convolutional", (2,), (4,), {}),
    "fsq": ("convolutional", (2, 1), (2, 2), {"quantizer": {"name": "fsq", "levels": (5, 4, 4)}}),
    "tubelets": ("cvivit", (2, 2), (1, 2), {}),
    "not causal": ("magvit", (2,), (2,), {}),
    "latents": ("omnitokenizer", (2,), (2,), GAUSSIAN),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [x if x == "latents" else pytest.param(x, marks=pytest.mark.slow) for x in COMBINATIONS],
)
def test_a_de_tokenizer_decodes_the_codes_of_any_tokenizer(name):
    *arguments, changes = COMBINATIONS[name]
    model = detokenized(*arguments, **changes)
    video = clip(model.compression.frames(2))

    @jax.jit  # one program for all: they share most of what they compute
    def run(video):
        codes = model.tokenize(video)
        vectors, _, losses, _ = model.bottleneck(model.encode(video), key=jax.random.key(0), train=True)
        cache, first = model.decode_chunk(None, vectors[:, :1])
        chunks = [first, model.decode_chunk(cache, vectors[:, 1:])[1]]
        pixels = model.detokenize(codes) if model.vocabulary else None
        denoised = model.denoise(vectors, video, jax.random.key(0))
        return codes, model.tokenizer.tokenize(video), losses, model.decode(vectors), chunks, pixels, denoised

    codes, own, losses, rebuilt, chunks, pixels, denoised = run(video)
    assert (
        codes.layout == model.layout(VideoShape(*video.shape[1:4])) and model.vocabulary == model.tokenizer.vocabulary
    )
    np.testing.assert_array_equal(codes.only.values, own.only.values)
    assert rebuilt.shape == denoised.shape == video.shape and not losses
    if model.vocabulary:
        np.testing.assert_allclose(pixels, jnp.clip(rebuilt, -1, 1), atol=1e-5)
    np.testing.assert_allclose(jnp.concatenate(chunks, 1), rebuilt, atol=1e-4)


def test_other_strides_than_the_tokenizers_are_refused():
    with pytest.raises(UserError, match="compresses by 4×2×2 .* pyramid by 2×2×2"):
        detokenized("convolutional", (2,), (2,))


def test_a_de_tokenized_tokenizer_is_made_of_its_parts():
    model = detokenized("convolutional", (2,), (4,))
    again = Detokenized(model.tokenizer, model.detokenizer)
    assert again.last_layer == ("detokenizer", "denoiser", "output")
    ones = jnp.ones((1, 2, 4, 4, 6))
    np.testing.assert_array_equal(*jax.jit(lambda: (again.decode(ones), model.decode(ones)))())
