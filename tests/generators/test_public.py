"""Published transformers beside their classes in diffusers, on random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.conditioning import Conditioning, EncodedText
from videogen.encoders.loading import fill
from videogen.errors import UserError
from videogen.generators import NormalisedLatents
from videogen.generators.flow import FlowTransformer
from videogen.generators.public import PREFIXES
from videogen.generators.public.wan import WAN, wan_described, wan_model, wan_names, wan_transformer

TINY = {
    **{"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "text_dim": 12},
    **{"ffn_dim": 48, "num_layers": 2, "patch_size": (1, 2, 2)},
}


def built(config, grid=(2, 4, 6)):
    """The structure of a transformer over normalised latents."""
    found = wan_described(config)
    settings = {name: value for name, value in found.model.items() if name != "name"}

    def make():
        width = found.text_width
        model = FlowTransformer(found.channels, grid, **settings, context_width=width, rngs=nnx.Rngs(0))
        model.statistics = NormalisedLatents()
        return model

    return nnx.eval_shape(make)


def velocity(model, latents, t, text, mask):
    prepared = model.prepare(Conditioning(EncodedText(jnp.asarray(text), jnp.asarray(mask))))
    return np.asarray(model.predict(jnp.asarray(latents), jnp.asarray(t), prepared))


@pytest.fixture(scope="module")
def both():
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    torch.manual_seed(0)
    reference = diffusers.WanTransformer3DModel(**TINY).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    tensors = {name: x.numpy() for name, x in reference.state_dict().items()}
    model = built(TINY)
    return reference, fill(model, wan_names(model), tensors, "a file"), tensors


@pytest.mark.parametrize("frames, height, width", [(1, 4, 6), (3, 2, 8)])
def test_the_velocity_of_wan(both, frames, height, width):
    import torch

    reference, model, _ = both
    rng = np.random.default_rng(0)
    latents = rng.standard_normal((2, frames, height, width, 4)).astype(np.float32)
    text = rng.standard_normal((2, 7, 12)).astype(np.float32)
    mask = np.arange(7) < np.array([[7], [3]])
    t = np.array([0.9991, 0.3], np.float32)
    # Wan attends to 512 rows, of which those behind the text are zeros.
    rows = np.zeros((2, 512, 12), np.float32)
    rows[:, :7] = np.where(mask[..., None], text, 0)
    with torch.no_grad():
        given = (np.moveaxis(latents, -1, 1).copy(), t * 1000, rows)
        expected = reference(*map(torch.from_numpy, given), return_dict=False)[0].numpy()
    expected = np.moveaxis(expected, 1, -1)
    found = velocity(model, latents, t, text, mask)
    np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def test_zeros_behind_a_text_are_seen(both):
    _, model, _ = both
    rng = np.random.default_rng(1)
    latents = rng.standard_normal((1, 1, 4, 6, 4)).astype(np.float32)
    text, mask, t = (
        rng.standard_normal((1, 3, 12)).astype(np.float32),
        np.ones((1, 3), bool),
        np.array([0.5], np.float32),
    )
    full = velocity(model, latents, t, text, mask)
    padded = np.pad(text, ((0, 0), (0, 4), (0, 0)), constant_values=9.0)
    # What stands in masked rows changes nothing; how many zeros there are does.
    np.testing.assert_allclose(velocity(model, latents, t, padded, np.arange(7)[None] < 3), full, atol=1e-6)
    other = nnx.clone(model)
    other.context.length = 226
    other.context.null_text.set_value(jnp.zeros((226, 12)))
    assert np.abs(velocity(other, latents, t, text, mask) - full).max() > 1e-3
    with pytest.raises(UserError, match="texts have 513 tokens, and this generator reads 512"):
        velocity(model, latents, t, np.zeros((1, 513, 12), np.float32), np.ones((1, 513), bool))


def test_without_a_text_there_is_the_null_table(both):
    _, model, _ = both
    table = np.random.default_rng(2).standard_normal((512, 12)).astype(np.float32)
    model = nnx.clone(model)
    model.context.null_text.set_value(jnp.asarray(table))
    latents, t = np.ones((1, 1, 4, 6, 4), np.float32), np.array([0.5], np.float32)
    expected = velocity(model, latents, t, table[None], np.ones((1, 512), bool))
    absent = velocity(model, latents, t, np.ones((1, 5, 12), np.float32), np.zeros((1, 5), bool))
    np.testing.assert_allclose(absent, expected, atol=1e-6)


def test_original_names_are_those_of_the_folder(both):
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    _, model, tensors = both
    new = {
        "condition_embedder.time_embedder.linear_1": "time_embedding.0",
        "condition_embedder.time_embedder.linear_2": "time_embedding.2",
        "condition_embedder.text_embedder.linear_1": "text_embedding.0",
        "condition_embedder.text_embedder.linear_2": "text_embedding.2",
        "condition_embedder.time_proj": "time_projection.1",
        "proj_out": "head.head",
    }
    inner = {
        **{"attn1": "self_attn", "attn2": "cross_attn", "to_out.0": "o", "to_q": "q", "to_k": "k", "to_v": "v"},
        **{"ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2", "norm2": "norm3", "scale_shift_table": "modulation"},
    }
    old = {}
    for name, tensor in tensors.items():
        named = "head.modulation" if name == "scale_shift_table" else name
        for a, b in (inner if name.startswith("blocks") else new).items():
            named = named.replace(a, b)
        old[f"model.diffusion_model.{named}"] = tensor
    assert convert_wan_transformer_to_diffusers(dict(old)).keys() == tensors.keys()
    abstract = built(TINY)
    read = fill(abstract, wan_names(abstract), old, "a file", prefixes=PREFIXES)
    for a, b in zip(jax.tree.leaves(nnx.state(read)), jax.tree.leaves(nnx.state(model)), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(UserError, match="1 tensors that are not known, the first is 'blocks.0.extra'"):
        fill(abstract, wan_names(abstract), {**tensors, "blocks.0.extra": np.zeros(1)}, "a file")


def test_what_is_no_text_to_video_transformer_is_refused():
    for changes, match in (
        ({"in_channels": 36}, "36 channels in and 4 out draws from pictures"),
        ({"image_dim": 1280}, "draws from pictures"),
        ({"qk_norm": None}, "qk_norm=None is not one that was published: 'rms_norm_across_heads' is known"),
        ({"num_layers": None}, "lacks or has another kind of"),
    ):
        with pytest.raises(UserError, match=match):
            wan_described({**TINY, **changes})
    with pytest.raises(UserError, match="lacks or has another kind of 'ffn_dim'"):
        wan_described({name: value for name, value in TINY.items() if name != "ffn_dim"})


def test_published_sizes_have_the_parameters_of_the_class():
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    for heads, layers, mlp, channels in ((12, 30, 8960, 16), (40, 40, 13_824, 16), (24, 30, 14_336, 48)):
        config = {"num_attention_heads": heads, "attention_head_dim": 128, "num_layers": layers, "ffn_dim": mlp}
        config |= {"in_channels": channels, "out_channels": channels, "text_dim": 4096, "patch_size": (1, 2, 2)}
        with torch.device("meta"):
            expected = sum(p.numel() for p in diffusers.WanTransformer3DModel(**config).parameters())
        state = nnx.state(built(config), nnx.Param)
        count = sum(x.size for x in jax.tree.leaves(state))
        # Ours holds the features of the empty text besides.
        assert count == expected + 512 * 4096
    assert wan_described(config).model == wan_model(wan_transformer(3072, 30, 24, 14_336))


def test_clips_and_times_as_published():
    def size(channels):
        return tuple(WAN.clip(channels)[name] for name in ("frames", "height", "width", "fps"))

    # Wan 2.1 at 480p; Wan 2.2 5B has 48 channels. Others, as in tests, are taken for the former.
    assert size(16) == size(4) == (81, 480, 832, 16.0)
    assert size(48) == (121, 704, 1280, 24.0)
    for scheduler, shift in (({"flow_shift": 3.0}, 3.0), ({"shift": 8.0}, 8.0), ({}, 5.0), ({"flow_shift": None}, 5.0)):
        found = WAN.sampler(scheduler, "")
        assert found["shift"] == shift
        assert found["solver"] == {"name": "unipc"} and found["guidance_scale"] == 5.0
        assert found["grid"] == {"name": "uniform", "start": 0.999}
