"""The VAE of HunyuanVideo beside its class in diffusers, on random weights; its windows; what cannot be read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from tests.tokenizers.beside import WEIGHTS, ours, run, theirs, with_config
from videogen.errors import UserError
from videogen.shapes import VideoShape
from videogen.tokenizers.hunyuan_video import HunyuanVideo, in_windows
from videogen.tokenizers.public import read_tokenizer

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

# The first resampling of encoder and decoder is of space only.
LEVELS = 4
TINY = {
    "block_out_channels": [8, 8, 8, 16],
    "down_block_types": ["HunyuanVideoDownBlock3D"] * LEVELS,
    "up_block_types": ["HunyuanVideoUpBlock3D"] * LEVELS,
    **{"latent_channels": 3, "layers_per_block": 1, "norm_num_groups": 2},
}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A model of diffusers with random weights, what is read of its folder, and the folder."""
    folder = tmp_path_factory.mktemp("hunyuan_video")
    torch.manual_seed(0)
    model = diffusers.AutoencoderKLHunyuanVideo(**TINY).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape) if parameter.ndim == 1 else 0.0)
    model.save_pretrained(folder)
    return model, read_tokenizer(folder), folder


def video(frames, side):
    return np.random.default_rng(frames).uniform(-1, 1, (2, frames, side, side + 8, 3)).astype(np.float32)


# Clips of 17 frames are coded in two windows, those of 29 in three, two of them of one length.
@pytest.mark.parametrize(
    "frames, side",
    [(5, 8), *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((1, 8), (9, 16), (17, 8), (29, 8)))],
)
def test_it_codes_as_its_publication(both, frames, side):
    reference, model, _ = both
    x = video(frames, side)
    with torch.no_grad():
        expected = ours(reference.encode(theirs(x)).latent_dist.parameters)
        latents = expected[..., :3]
        pixels = ours(reference.decode(theirs(latents)).sample)
    found = run(model.tokenizer, "encode", x).values
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    decoded = run(model.tokenizer, "decode", latents)
    assert decoded.shape == x.shape
    np.testing.assert_allclose(decoded, pixels, atol=1e-4 * np.abs(pixels).max())


def test_the_first_latent_is_not_that_of_the_first_picture(both):
    _, model, _ = both
    x = video(5, 8)
    assert not model.prefix_equal and not model.streams
    clip, picture = (np.asarray(run(model.tokenizer, "encode", part).values) for part in (x, x[:, :1]))
    assert np.abs(clip[:, :1] - picture).max() > 0.01 * np.abs(clip).max()


def test_windows_overlap_and_are_blended():
    x = jnp.arange(29.0).reshape(1, 29, 1, 1, 1)
    for frames in (1, 13, 17, 25, 29):
        same = in_windows(lambda part: part, x[:, :frames], 16, 12, 4)
        np.testing.assert_allclose(same, x[:, :frames], atol=1e-5)
    # Windows begin at frames 0 and 12; frames 13 to 16 are those of both.
    first = in_windows(lambda part: jnp.broadcast_to(part[:, :1], part.shape), x[:, :21], 16, 12, 4)
    assert first.ravel().tolist() == [0] * 13 + [0, 3, 6, 9] + [12] * 4
    # A clip that is no longer than a window is one, and so is any without windows.
    for window, frames in ((20, 20), (0, 29)):
        first = in_windows(lambda part: jnp.broadcast_to(part[:, :1], part.shape), x[:, :frames], window, 12, 4)
        assert not first.any() and first.shape[1] == frames


@pytest.mark.slow
def test_windows_are_part_of_the_result(both):
    _, model, _ = both
    latents = np.random.default_rng(0).normal(size=(2, 5, 1, 2, 3)).astype(np.float32)
    windows, whole = (run(model.tokenizer, path, latents) for path in ("decode", "_pixels_of"))
    # Frame 13 is the first that the second window, of latents 3 and 4, has a share in; at 0 it is still 0.
    np.testing.assert_allclose(windows[:, :14], whole[:, :14], atol=1e-5 * np.abs(whole).max())
    assert (np.abs(windows - whole)[:, 14:].max(axis=(0, 2, 3, 4)) > 0.01 * np.abs(whole).max()).all()


def test_latents_are_scaled_once_by_the_published_factor(both):
    _, model, _ = both
    raw = np.random.default_rng(0).normal(size=(2, 3, 2, 3, 3)).astype(np.float32)
    np.testing.assert_allclose(model.normaliser.normalise(raw), raw * np.float32(0.476986), rtol=1e-6)
    np.testing.assert_allclose(model.normaliser.restore(model.normaliser.normalise(raw)), raw, rtol=1e-6)
    assert model.normalised and diffusers.AutoencoderKLHunyuanVideo(**TINY).config.scaling_factor == 0.476986


def test_what_cannot_be_coded_is_refused(both):
    _, model, _ = both
    assert model.layout(VideoShape(17, 16, 24)).only.shape == (5, 2, 3)
    with pytest.raises(UserError, match=r"must have 1 \+ 4·k frames, got 8; use 5 or 9"):
        model.tokenizer.encode(jnp.zeros((1, 8, 8, 8, 3)))
    with pytest.raises(UserError, match="clip width 12 is no multiple of the patch 8"):
        model.layout(VideoShape(5, 8, 12))
    with pytest.raises(UserError, match="so it cannot take it in chunks"):
        model.tokenizer.decode_chunk(None, jnp.zeros((1, 1, 2, 2, 3)))
    for settings, match in (
        ({"temporal": 2}, "temporal must be at most 1"),
        ({"temporal": 1, "window": 5}, "multiples of 2 frames"),
        ({"temporal": 1, "window": 8}, "no longer than the window; got 8 and 12"),
    ):
        with pytest.raises(UserError, match=match):
            HunyuanVideo((2, 2), 2, groups=1, **settings, rngs=nnx.Rngs(0))


def test_the_original_file_is_the_folder(tmp_path):
    torch.manual_seed(1)
    reference = diffusers.AutoencoderKLHunyuanVideo(block_out_channels=[32, 32, 32, 64], layers_per_block=1).eval()
    reference.save_pretrained(tmp_path / "vae")
    torch.save({"state_dict": reference.state_dict()}, tmp_path / "pytorch_model.pt")
    one, other = read_tokenizer(tmp_path / "pytorch_model.pt"), read_tokenizer(tmp_path)
    for a, b in zip(jax.tree.leaves(nnx.state(one)), jax.tree.leaves(nnx.state(other)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.compression == other.compression and one.normaliser.scale == other.normaliser.scale == 0.476986


def test_every_tensor_is_used_and_a_missing_one_is_named(both, tmp_path):
    reference, _, folder = both
    tensors = {name: x.numpy() for name, x in reference.state_dict().items()}
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file({**tensors, "extra": np.zeros(1, np.float32)}, tmp_path / WEIGHTS)
    with pytest.raises(UserError, match="1 tensors that are not known, the first is 'extra'"):
        read_tokenizer(tmp_path)
    name = "decoder.mid_block.attentions.0.to_v.bias"
    save_file({key: x for key, x in tensors.items() if key != name}, tmp_path / WEIGHTS)
    with pytest.raises(UserError, match=f"lacks the tensors {name}"):
        read_tokenizer(tmp_path)
    save_file({**tensors, "quant_conv.bias": np.zeros(5, np.float32)}, tmp_path / WEIGHTS)
    with pytest.raises(UserError, match=r"quant_conv.bias has shape \[5\]"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "match, changes",
    [
        ("temporal_compression_ratio=8 is not one that was published", {"temporal_compression_ratio": 8}),
        ("spatial_compression_ratio=16 is not one", {"spatial_compression_ratio": 16}),
        ("mid_block_add_attention=False is not one", {"mid_block_add_attention": False}),
        ("up_block_types=.* is not one", {"up_block_types": ["UpBlock3D"] * LEVELS}),
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
    model = nnx.eval_shape(lambda: HunyuanVideo(rngs=nnx.Rngs(0)))
    with torch.device("meta"):
        published = diffusers.AutoencoderKLHunyuanVideo()
    count = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    # The biases of keys of both networks change nothing and are left out.
    assert count == sum(p.numel() for p in published.parameters()) - 2 * 512
    assert (model.compression.time, model.compression.height, model.compression.width) == (4, 8, 8)
