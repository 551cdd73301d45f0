"""The VAE of HunyuanVideo 1.5 beside its class in diffusers, on random weights; what cannot be read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from tests.tokenizers.beside import WEIGHTS, ours, run, theirs, with_config
from videogen.errors import UserError
from videogen.shapes import VideoShape
from videogen.tokenizers.hunyuan_video_15 import Down, HunyuanVideo15, Up
from videogen.tokenizers.public import read_tokenizer

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

# The first resampling from the pixels is of space only.
TINY = {"block_out_channels": [8, 8, 16, 16], "latent_channels": 4, "layers_per_block": 1}
TINY |= {"spatial_compression_ratio": 8}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A model of diffusers with random weights, what is read of its folder, and the folder."""
    folder = tmp_path_factory.mktemp("hunyuan_video_15")
    torch.manual_seed(0)
    model = diffusers.AutoencoderKLHunyuanVideo15(**TINY).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape) if "gamma" in name or "bias" in name else 0.0)
    model.save_pretrained(folder)
    return model, read_tokenizer(folder), folder


def video(frames, side):
    # Its published code takes one clip at a time: the mask of its attention has no axis of heads.
    return np.random.default_rng(frames).uniform(-1, 1, (1, frames, side, side + 8, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "frames, side", [(5, 8), *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((1, 8), (9, 16), (17, 8)))]
)
def test_it_codes_as_its_publication(both, frames, side):
    reference, model, _ = both
    x = video(frames, side)
    with torch.no_grad():
        expected = ours(reference.encode(theirs(x)).latent_dist.parameters)
        latents = expected[..., :4]
        pixels = ours(reference.decode(theirs(latents)).sample)
    found = run(model.tokenizer, "encode", x).values
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    decoded = run(model.tokenizer, "decode", latents)
    assert decoded.shape == x.shape
    np.testing.assert_allclose(decoded, pixels, atol=1e-4 * np.abs(pixels).max())


@pytest.mark.slow
def test_latents_of_the_first_frames_are_the_first_latents(both):
    _, model, _ = both
    x = video(9, 8)
    assert model.prefix_equal and not model.streams
    clip = run(model.tokenizer, "encode", x).values
    for frames in (1, 5):
        part = run(model.tokenizer, "encode", x[:, :frames]).values
        np.testing.assert_allclose(part, clip[:, : part.shape[1]], atol=1e-5 * np.abs(clip).max())
    # Later frames are seen by later latents only.
    other = run(model.tokenizer, "encode", np.concatenate([x[:, :5], -x[:, 5:]], axis=1)).values
    changed = np.abs(other - clip).max(axis=(0, 2, 3, 4))
    assert (changed[:2] == 0).all() and changed[2] > 0.01


def test_ways_around_resampling():
    x = jnp.arange(2 * 3 * 4.0).reshape(1, 3, 1, 2, 4)
    x = jnp.concatenate([x, x + 100], axis=2)
    layer = Down(4, 8, True, rngs=nnx.Rngs(0), dtype=jnp.float32)
    layer.convolution.kernel.set_value(jnp.zeros_like(layer.convolution.kernel.get_value()))
    found = layer(x)
    assert found.shape == (1, 2, 1, 1, 8)
    # The first frame has 16 values for 8 channels, a place after the other; the others have 32.
    assert found[0, 0].ravel().tolist() == [0.5, 2.5, 4.5, 6.5, 100.5, 102.5, 104.5, 106.5]
    assert found[0, 1].ravel().tolist() == [9.5, 13.5, 109.5, 113.5, 17.5, 21.5, 117.5, 121.5]
    layer = Up(8, 2, True, rngs=nnx.Rngs(0), dtype=jnp.float32)
    layer.convolution.kernel.set_value(jnp.zeros_like(layer.convolution.kernel.get_value()))
    found = layer(jnp.arange(16.0).reshape(1, 2, 1, 1, 8))
    assert found.shape == (1, 3, 2, 2, 2)
    assert found[0, 0].ravel().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert found[0, 1:, ..., 0].ravel().tolist() == found[0, 1:, ..., 1].ravel().tolist() == list(range(8, 16))


def test_latents_are_scaled_once_by_the_published_factor(both):
    _, model, _ = both
    raw = np.random.default_rng(0).normal(size=(1, 3, 2, 3, 4)).astype(np.float32)
    np.testing.assert_allclose(model.normaliser.normalise(raw), raw * np.float32(1.03682), rtol=1e-6)
    np.testing.assert_allclose(model.normaliser.restore(model.normaliser.normalise(raw)), raw, rtol=1e-6)
    assert model.normalised and diffusers.AutoencoderKLHunyuanVideo15(**TINY).config.scaling_factor == 1.03682


def test_what_cannot_be_coded_is_refused(both):
    _, model, _ = both
    assert model.layout(VideoShape(17, 16, 24)).only.shape == (5, 2, 3)
    with pytest.raises(UserError, match=r"must have 1 \+ 4·k frames, got 8; use 5 or 9"):
        model.tokenizer.encode(jnp.zeros((1, 8, 8, 8, 3)))
    with pytest.raises(UserError, match="clip width 12 is no multiple of the patch 8"):
        model.layout(VideoShape(5, 8, 12))
    for widths, settings, match in (
        ((8, 8), {}, "temporal must be at most 1"),
        ((8, 16), {"temporal": 1, "latents": 5}, "coarsest width 16 must be a multiple of twice the 5"),
        ((8, 12), {"temporal": 1, "latents": 3}, "8 channels cannot be resampled to 12 by boxes of 8 places"),
    ):
        with pytest.raises(UserError, match=match):
            HunyuanVideo15(widths, **({"latents": 2} | settings), rngs=nnx.Rngs(0))


def test_every_tensor_is_used_and_a_missing_one_is_named(both, tmp_path):
    reference, _, folder = both
    tensors = {name: x.numpy() for name, x in reference.state_dict().items()}
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file({**tensors, "extra": np.zeros(1, np.float32)}, tmp_path / WEIGHTS)
    with pytest.raises(UserError, match="1 tensors that are not known, the first is 'extra'"):
        read_tokenizer(tmp_path)
    name = "encoder.norm_out.gamma"
    save_file({key: x for key, x in tensors.items() if key != name}, tmp_path / WEIGHTS)
    with pytest.raises(UserError, match=f"lacks the tensors {name}"):
        read_tokenizer(tmp_path)
    save_file({**tensors, "decoder.conv_out.conv.bias": np.zeros(5, np.float32)}, tmp_path / WEIGHTS)
    with pytest.raises(UserError, match=r"decoder.conv_out.conv.bias has shape \[5\]"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "match, changes",
    [
        ("temporal_compression_ratio=8 is not one that was published", {"temporal_compression_ratio": 8}),
        ("spatial_compression_ratio=16 is not one", {"spatial_compression_ratio": 16}),
        ("upsample_match_channel=False is not one", {"upsample_match_channel": False}),
        ("lacks or has another kind of 'scaling_factor'", {"scaling_factor": None}),
        ("lacks or has another kind of", {"block_out_channels": 4}),
        ("scale", {"scaling_factor": -1.0}),
    ],
)
def test_configs_that_were_not_published_are_one_line(both, tmp_path, match, changes):
    _, _, folder = both
    with pytest.raises(UserError, match=match):
        read_tokenizer(with_config(folder, tmp_path, **changes))


def test_size_of_the_published_network():
    model = nnx.eval_shape(lambda: HunyuanVideo15(rngs=nnx.Rngs(0)))
    with torch.device("meta"):
        published = diffusers.AutoencoderKLHunyuanVideo15()
    count = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    # The biases of keys of both networks change nothing and are left out.
    assert count == sum(p.numel() for p in published.parameters()) - 2 * 1024
    assert (model.compression.time, model.compression.height, model.compression.width) == (4, 16, 16)
