"""What every tokenizer promises, whatever its networks: one suite for all of them."""

import functools
import re
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.parameters import with_random_parameters
from tests.processes import REPOSITORY
from videogen import building
from videogen.errors import UserError
from videogen.shapes import VideoShape
from videogen.tokenizers import TOKENIZERS
from videogen.tokenizers.base import SEGMENT


def example() -> type[nnx.Module]:
    """The class that docs/add_a_tokenizer.md writes."""
    page = (REPOSITORY / "docs" / "add_a_tokenizer.md").read_text()
    names: dict = {"__name__": "mine"}
    exec(compile(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1], "mine.py", "exec"), names)
    return names["MyTokenizer"]


KNOWN = {**TOKENIZERS, "mine": example()}
CLAMPED = {"name": "fsq", "levels": (8, 5), "bound": "clamp"}
NETWORK = {"width": 12, "layers": 1, "heads": 2, "mlp_width": 24}
VECTORS = {"name": "vq", "size": 64, "width": 6, "codebook_update": "gradient"}
HALVES = {"spatial_strides": (2,), "temporal_strides": (2,)}
TABLES = {"name": "dual_codebook", "size": 64, "widths": (3, 2)}
LFQ = {"name": "lfq", "bits": 6}
CONVOLUTIONAL = {"name": "convolutional", "width": 4, "norm_groups": 2, "quantizer": LFQ}
CONFIGS = {
    "cvivit": {
        "name": "cvivit",
        "patch": (2, 4, 4),
        "width": 16,
        "heads": 2,
        "mlp_width": 32,
        "encoder_layers": (1, 1),
        "decoder_layers": (1, 1),
        "quantizer": VECTORS,
    },
    # Two down-samplings of time, one of them alone, and stacks of more than one block.
    "convolutional": CONVOLUTIONAL
    | {"multipliers": (1, 2, 2), "blocks": 2, "spatial_strides": (2, 1), "temporal_strides": (2, 2)},
    "convolutional, blurred": CONVOLUTIONAL
    | {"multipliers": (1, 2), "blocks": 1, "spatial_strides": (2,), "temporal_strides": (2,)}
    | {"padding": "replicate", "downsampling": "blurred", "middle_blocks": 0},
    "omnitokenizer": {"name": "omnitokenizer", "patch": (2, 2, 2), "width": 16, "heads": 2, "mlp_width": 32}
    | {"window": 2, "encoder_spatial": "tw", "encoder_temporal": 1, "decoder_spatial": "wt", "decoder_temporal": 1}
    | {"quantizer": VECTORS},
    "magvit": {"name": "magvit", "width": 4, "multipliers": (1, 2), "blocks": 1, "middle_blocks": 1}
    | {"spatial_strides": (2,), "temporal_strides": (2,), "norm_groups": 2, "quantizer": VECTORS},
    "cdt": {"name": "cdt", "quantizer": {"name": "lfq", "bits": 6}}
    | {"pyramid": {"widths": (4, 6), "spatial_strides": (2, 1), "temporal_strides": (2, 2), "edge_kernel": (3, 3, 3)}}
    | {"decoder": {"name": "diffusion", "widths": (4, 6, 8), "context_width": 3, "noise_steps": 64}},
    "larp": {
        "name": "one_d",
        "clip": (4, 8, 8),
        "patch": (2, 4, 4),
        "queries": 5,
        "encoder": NETWORK,
        "decoder": NETWORK,
    }
    | {"quantizer": {"name": "stochastic", "size": 64, "width": 6}},
    "one_d": {"name": "one_d", "clip": (1, 8, 8), "patch": (1, 2, 4), "queries": 6, "encoder": NETWORK}
    | {"decoder": {"width": 16, "layers": 1, "heads": 2, "mlp_width": 24}, "query_scale": 1.0}
    | {"lengths": {"name": "tail_drop"}, "quantizer": VECTORS},
    "karl": {"name": "karl", "clip": (4, 8, 8), "patch": (2, 4, 4), "queries": 5, "longest": 7, "query_scale": 1.0}
    | {"encoder": NETWORK, "decoder": NETWORK, "quantizer": VECTORS, "halting_width": 8},
    "one_d_flow": {"name": "one_d_flow", "clip": (2, 8, 8), "patch": (1, 4, 4), "queries": 6, "encoder": NETWORK}
    | {"decoder": {"width": 16, "layers": 2, "heads": 2, "mlp_width": 24}, "query_scale": 1.0}
    | {"lengths": {"name": "tail_drop", "distribution": "power_of_two"}, "quantizer": CLAMPED}
    | {"flow": {"steps": 2, "guidance_scale": 2.0}},
    "tokenflow": {"name": "tokenflow", "clip": (3, 8, 8), "widths": (3, 2), "semantic_width": 6}
    | {"pixels": {"width": 4, "multipliers": (1, 2), "blocks": 1, "middle_blocks": 0, "norm_groups": 2} | HALVES}
    | {"semantic": {"encoder": {"name": "shapes_classifier", "classes": 2, "widths": (3, 4, 4, 6), "side": 16}}}
    | {"decoder": {"width": 12, "layers": 1, "heads": 2, "mlp_width": 16}}
    | {"quantizer": {"name": "multi_scale", "base": TABLES, "scales": ((1, 1, 1), (1, 2, 2), (2, 4, 4))}},
    "one_d_causal": {"name": "one_d_causal", "size": (8, 8), "patch": (2, 4, 4), "queries": 5, "query_scale": 1.0}
    | {"encoder": NETWORK, "decoder": NETWORK, "quantizer": VECTORS, "window": 3},
    "one_d_any_size": {
        "name": "one_d_any_size",
        "clip": (2, 8, 8),
        "patch": (1, 2, 2),
        "queries": 5,
        "query_scale": 1.0,
    }
    | {"encoder": NETWORK | {"width": 16, "layers": 2}, "decoder": NETWORK | {"width": 32, "layers": 2, "heads": 4}}
    | {"resized_after": (1, 1), "rotary_channels": (4, 2, 2), "extent": 4.0}
    | {"quantizer": {"name": "bernoulli", "bits": 6, "levels": 1}},
    # Layers of 4 × 4, 2 × 2 and one place a frame, the last of every other frame.
    "hitvideo": {"name": "hitvideo", "width": 4, "multipliers": (1, 2), "blocks": 1, "norm_groups": 2}
    | {"spatial_strides": (2,), "temporal_strides": (1,), "layer_strides": ((1, 2, 2), (2, 2, 2)), "code_width": 5}
    | {"quantizers": {"layer_3": VECTORS, "layer_2": {"name": "fsq", "levels": (8, 5)}, "layer_1": LFQ}},
    "one_vae": {"name": "one_vae", "width": 4, "multipliers": (1, 2, 2), "blocks": 1, "first_frame": "fine"}
    | {"spatial_strides": (2, 2), "temporal_strides": (1, 2)}
    | {"quantizer": {"name": "two_paths", "width": 6, "codes": {"name": "product", "groups": 2, "base": CLAMPED}}},
    "the guide's": {"name": "mine", "width": 16, "heads": 2, "quantizer": VECTORS},
}
FIXED = ("larp", "one_d", "karl", "one_d_flow", "one_d_any_size", "tokenflow")
"""Clips of one length only."""
SEVERAL = ("hitvideo", "one_vae")
"""Tokens of several segments."""
SECOND_TIER = ("convolutional, blurred", "cdt")
SIDE = 8


def tiered(names: Iterable[str]) -> list:
    """What compiles longest is left to the second tier."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in SECOND_TIER else name for name in names]


def make(config: dict, seed: int = 1, **changes) -> nnx.Module:
    """A tokenizer with random parameters."""
    abstract = nnx.eval_shape(lambda: building.build(KNOWN, config | changes, "tokenizer", rngs=nnx.Rngs(0)))
    return with_random_parameters(abstract, seed)


@functools.cache
def model_of(name: str) -> nnx.Module:
    return make(CONFIGS[name])


CAUSAL = [name for name, config in CONFIGS.items() if KNOWN[config["name"]].prefix_equal]


def frames_of(name: str) -> int:
    if name in FIXED:
        return model_of(name).compression.frames(1)
    return model_of(name).compression.frames(4 if model_of(name).compression.time == 2 else 3)


def video_of(name: str) -> jax.Array:
    shape = (1, frames_of(name), SIDE, SIDE, 3)
    return jnp.asarray(np.random.default_rng(2).uniform(-1, 1, shape), jnp.float32)


@functools.cache
def run(name: str):
    """Jitted encoder, to latents, and ``decode``."""
    encode = encoder_of(name)
    return lambda video: encode(video).values, jax.jit(model_of(name).decode)


@functools.cache
def encoder_of(name: str):
    return jax.jit(model_of(name).encode)


@functools.cache
def latents_of(name: str) -> tuple[jax.Array, jax.Array]:
    """Latents of the video before and after quantisation."""
    encoded = encoder_of(name)(video_of(name))
    return encoded.values, model_of(name).bottleneck(encoded)[0]


def influence(function, x: jax.Array | dict) -> np.ndarray:
    """How much each output frame depends on each input frame: ``[output frames, input frames]``. Segments of latents
    are laid end to end."""

    def of_frames(y: jax.Array) -> jax.Array:
        return jnp.sin(y).sum([axis for axis in range(y.ndim) if axis != 1])

    def outputs(x):
        return jnp.concatenate([of_frames(y) for y in jax.tree.leaves(function(x))])

    jacobian = jax.tree.leaves(jax.jit(jax.jacrev(outputs))(x))
    others = [[axis for axis in range(part.ndim) if axis not in (0, 2)] for part in jacobian]
    return np.concatenate([np.asarray(jnp.abs(p).max(axes)) for p, axes in zip(jacobian, others, strict=True)], axis=1)


def latents_in(name: str, frames: int, values: jax.Array | dict, start: int = 0) -> jax.Array | dict:
    """Of all latents, of one kind or by segment, those of the frames from ``start`` up to ``frames`` of a clip."""
    model, count = model_of(name), lambda grid, n: grid.latent_frames(n) if n else 0
    if not isinstance(values, dict):
        # Those the decoder sees are on the finest grid.
        grid = model.feature_compression
        return values[:, count(grid, start) : count(grid, frames)]
    found = {}
    for part, x in values.items():
        grid, first = model.compressions[part], model.begins.get(part, 0)
        own = x[:, max(count(grid, start) - first, 0) : max(count(grid, frames) - first, 0)]
        found |= {part: own} if own.shape[1] else {}
    return found


def assert_near(a: jax.Array | dict, b: jax.Array | dict) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), a, b)


@pytest.mark.parametrize("name", tiered(CAUSAL))
def test_a_latent_depends_on_no_later_frame(name):
    model, rows = model_of(name), influence(run(name)[0], video_of(name))
    values = latents_of(name)[0]
    parts = sorted(values) if isinstance(values, dict) else [SEGMENT]
    compressions = {SEGMENT: model.compression, **model.compressions}
    latents = [
        (compressions[part], model.begins.get(part, 0) + i)
        for part in parts
        for i in range(values[part].shape[1] if isinstance(values, dict) else values.shape[1])
    ]
    for (compression, latent), row in zip(latents, rows, strict=True):
        own = compression.frames_of_latent(latent)
        assert (row[own.start : own.stop] > 0).all() and (row[own.stop :] == 0).all(), (latent, row)
        # Causality alone would hold for a model that ignores time.
        assert latent == 0 or row[: own.start].max() > 0, (latent, row)


@pytest.mark.parametrize("name", tiered(CAUSAL))
def test_a_frame_depends_on_no_later_latent(name):
    compression = model_of(name).feature_compression
    for frame, row in enumerate(influence(model_of(name).decode, latents_of(name)[1])):
        own = compression.latent_of_frame(frame)
        assert row[own] > 0 and (row[own + 1 :] == 0).all(), (frame, row)
        assert own == 0 or row[:own].max() > 0, (frame, row)


@pytest.mark.parametrize("name", tiered(CAUSAL))
def test_an_image_is_a_one_frame_video_and_a_prefix_has_a_prefix_of_the_latents(name):
    decode, video, (latents, quantized) = run(name)[1], video_of(name), latents_of(name)
    frames = model_of(name).compression.frames
    for length in map(frames, (1, 2)):
        part = encoder_of(name)(video[:, :length])
        assert_near(part.values, latents_in(name, length, latents))
        first = latents_in(name, length, quantized)
        assert_near(model_of(name).bottleneck(part)[0], first)
        whole, part = decode(quantized), decode(first)
        assert part.shape[1] == length
        np.testing.assert_allclose(part, whole[:, :length], atol=1e-4)


@pytest.mark.parametrize("name", tiered(CAUSAL))
def test_chunks_together_equal_the_whole(name):
    model, video = model_of(name), video_of(name)
    latents, quantized = latents_of(name)
    count = model.compression.latent_frames(video.shape[1])
    cuts = [0, *(model.compression.frames(n) for n in range(1, count + 1))]
    encode, decode = jax.jit(model.encode_chunk), jax.jit(model.decode_chunk)
    encoder_cache = decoder_cache = None
    frames, sizes = [], []
    for start, stop in zip(cuts, cuts[1:], strict=False):
        encoder_cache, part = encode(encoder_cache, video[:, start:stop])
        decoder_cache, pixels = decode(decoder_cache, latents_in(name, stop, quantized, start))
        assert_near(part.values, latents_in(name, stop, latents, start))
        frames.append(pixels)
        sizes.append([tuple(x.shape for x in jax.tree.leaves(cache)) for cache in (encoder_cache, decoder_cache)])
    np.testing.assert_allclose(jnp.concatenate(frames, 1), run(name)[1](quantized), atol=1e-4)
    # Attention sees the whole past and has to keep it; convolutions do not.
    encoded, decoded = (len({s[i] for s in sizes}) > 1 for i in range(2))
    assert model.streams and (encoded, decoded) == ("encode" in model.growing, "decode" in model.growing)
    with pytest.raises(UserError, match="later chunk must have"):
        model.encode_chunk(encoder_cache, video[:, :1])


@pytest.mark.parametrize("name", CONFIGS)
def test_every_legal_length_has_its_grid_and_comes_back(name):
    model = model_of(name)
    m, lone = model.compression.time, int(name in CAUSAL)
    for frames in range(1, 34):
        shape = VideoShape(frames, SIDE, SIDE)
        if name in FIXED and frames != frames_of(name):
            with pytest.raises(UserError, match="as a whole"):
                model.layout(shape)
        elif model.scales:
            assert model.layout(shape).names == model.quantizer.names
        elif (frames - lone) % m:
            with pytest.raises(UserError, match=rf"{m}·k frames"):
                model.layout(shape)
        elif name not in SEVERAL:
            assert model.grid(shape).time == lone + (frames - lone) // m
            assert model.compression.frames(model.grid(shape).time) == frames
    for latent_frames in (1,) if name in FIXED else (1, 2, 5):
        frames = model.compression.frames(latent_frames)
        video = jax.ShapeDtypeStruct((1, frames, SIDE, SIDE, 3), jnp.float32)
        codes = jax.eval_shape(model.tokenize, video)
        assert codes.layout == model.layout(VideoShape(frames, SIDE, SIDE))
        for _, segment in codes.items():
            assert segment.values.shape == (1, *segment.layout.shape, len(segment.layout.vocabulary))
        assert jax.eval_shape(model.detokenize, codes).shape == video.shape


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in CAUSAL])
def test_who_promises_neither_prefixes_nor_chunks_has_none(name):
    model, video = model_of(name), video_of(name)
    for call in (model.encode_chunk, model.decode_chunk):
        with pytest.raises(UserError, match="as a whole"):
            call(None, video)
    if name not in FIXED:
        short = video[:, : model.compression.frames(1)]
        assert np.abs(run(name)[0](short) - latents_of(name)[0][:, :1]).max() > 1e-3


ONE = [name for name in CONFIGS if name not in SEVERAL]


@pytest.mark.parametrize("name", ONE)
def test_codes_have_places_where_that_is_promised(name):
    model, shape = model_of(name), VideoShape(frames_of(name), SIDE, SIDE)
    segments = [layout for _, layout in model.layout(shape).segments]
    assert (segments[0].grid.shape == shape.grid(model.compression).shape and len(segments) == 1) == model.on_grid


@pytest.mark.parametrize("name", CONFIGS)
def test_bytes_and_missing_axes_are_refused_by_name(name):
    with pytest.raises(UserError, match="got uint8"):
        model_of(name).tokenize(np.zeros((1, frames_of(name), SIDE, SIDE, 3), np.uint8))
    with pytest.raises(UserError, match="add the batch axis"):
        model_of(name).tokenize(video_of(name)[0])


@pytest.mark.parametrize("name", ONE)
def test_ids_and_codes_are_a_bijection(name):
    model = model_of(name)
    ids = jnp.arange(model.vocabulary[0])[:, None]
    # Those of a scale alone: sums of several may have more than one row of ids.
    quantizer = model.quantizer.base if model.scales else model.quantizer
    np.testing.assert_array_equal(quantizer(quantizer.lookup(ids)).indices, ids)


@pytest.mark.parametrize("name", CONFIGS)
def test_codes_say_all_that_the_decoder_gets(name):
    model = model_of(name)
    latents, quantized = latents_of(name)
    for found, width in ((latents, model.quantizer.input_width), (quantized, model.quantizer.width)):
        assert {(x.dtype.name, x.shape[-1]) for x in jax.tree.leaves(found)} == {("float32", width)}
    codes = model.bottleneck(encoder_of(name)(video_of(name)))[1]
    np.testing.assert_allclose(jax.jit(model.detokenize)(codes), jnp.clip(run(name)[1](quantized), -1, 1), atol=1e-4)


@pytest.mark.parametrize("name", tiered(CONFIGS))
def test_gradient_reaches_every_parameter(name):
    graph, params, rest = nnx.split(model_of(name), nnx.Param, ...)
    video, model = video_of(name), model_of(name)
    # What stands for a token that is left out is a parameter, too.
    several = name in SEVERAL or model.scales
    few = name in SEVERAL and model.drops and model.layout(VideoShape(*video.shape[1:4])).segments[0][1].tokens
    some = {}
    if model.drops and not several:
        places = latents_of(name)[0].shape[:-1]
        some = {"kept": jnp.broadcast_to(jnp.arange(places[-1]) < 2, places)}

    def loss_of(model, request=None):
        encoded = model.encode(video, request)
        latents, _, losses, _ = model.bottleneck(encoded)
        more = sum(jnp.sum(jnp.sin(found)) for found in encoded.extra.values())
        if model.scales:
            compared = model.compare(encoded, latents, video, jax.random.key(0))
            more += sum(jnp.sum(jnp.sin(found)) for found in compared.features.values())
        return jnp.mean((model.decode(latents, **some) - video) ** 2) + sum(losses.values()) + more

    def loss(params):
        model = nnx.merge(graph, params, rest)
        total = loss_of(model) + sum(loss_of(variant) for variant in model.variants.values())
        return total + loss_of(model, few) if few else total

    grads = jax.jit(jax.grad(loss))(params)
    assert not [path for path, g in nnx.to_flat_state(grads) if not jnp.abs(g.get_value()).max() > 0]


MESH = """
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from tests.tokenizers.test_invariants import CONFIGS, make
from videogen.parallel import batch_sharding, make_mesh
graph, params = nnx.split(make(CONFIGS[{name!r}], **{settings!r}))
video = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, {frames}, {side}, {side}, 3)), jnp.float32)
def loss(params, video):
    model = nnx.merge(graph, params)
    latents, _, losses, _ = model.bottleneck(model.encode(video))
    return jnp.mean((model.decode(latents) - video) ** 2) + sum(losses.values())
step = lambda params, video: jax.jit(jax.value_and_grad(loss))(params, video)
expected = step(params, video)
mesh = make_mesh({{"data": 2, "context": 2}})
with jax.set_mesh(mesh):
    got = step(params, jax.device_put(video, batch_sharding(mesh, 2)))
for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-4)
print("equal")
"""


DIVISIBLE = {"convolutional, blurred": {"downsampling": "strided"}, "omnitokenizer": {"heads": 4}}
"""What a model needs for its sides to be shared out evenly."""


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_batch_and_width_over_the_mesh_change_nothing(run_python, name):
    frames = frames_of(name) if name in FIXED or name not in CAUSAL else model_of(name).compression.frames(2)
    about = dict(settings=DIVISIBLE.get(name, {}), frames=frames, side=SIDE)
    program = MESH.format(name=name, **about)
    result = run_python(program, devices=4)
    assert result.returncode == 0 and "equal" in result.stdout, result.stderr
