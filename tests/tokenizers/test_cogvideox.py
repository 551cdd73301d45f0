"""The VAE of CogVideoX beside its class in diffusers, on random weights; its pieces; what cannot be read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from tests.tokenizers.beside import WEIGHTS, ours, run, theirs, with_config
from videogen.errors import UserError
from videogen.shapes import VideoShape
from videogen.tokenizers.cogvideox import CogVideoX, pieces
from videogen.tokenizers.public import read_tokenizer

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

# Two of three resamplings are of time: the first two of the encoder, and of the decoder.
LEVELS = 4
TINY = {
    "block_out_channels": [4, 4, 8, 8],
    "down_block_types": ["CogVideoXDownBlock3D"] * LEVELS,
    "up_block_types": ["CogVideoXUpBlock3D"] * LEVELS,
    **{"latent_channels": 3, "layers_per_block": 1, "norm_num_groups": 2},
}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A model of diffusers with random weights, what is read of its folder, and the folder."""
    folder = tmp_path_factory.mktemp("cogvideox")
    torch.manual_seed(0)
    model = diffusers.AutoencoderKLCogVideoX(**TINY).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape) if parameter.ndim == 1 else 0.0)
    model.save_pretrained(folder)
    return model, read_tokenizer(folder), folder


def video(frames, side):
    return np.random.default_rng(frames).uniform(-1, 1, (2, frames, side, side + 8, 3)).astype(np.float32)


def test_pieces_take_what_is_over_first():
    frames = {n: pieces(n, 8) for n in (1, 5, 8, 9, 13, 16, 17, 49)}
    assert frames == {1: (1, 0), 5: (5, 0), 8: (8, 0), 9: (9, 0), 13: (13, 0), 16: (8, 1), 17: (9, 1), 49: (9, 5)}
    assert [pieces(n, 2) for n in (1, 2, 3, 4, 13)] == [(1, 0), (2, 0), (3, 0), (2, 1), (3, 5)]


@pytest.mark.parametrize(
    "frames, side", [(9, 8), *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((1, 8), (17, 16), (25, 8)))]
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


@pytest.mark.slow
@pytest.mark.parametrize("frames", [8, 13])
def test_other_numbers_of_frames_are_coded_as_published_but_are_no_clips(both, frames):
    reference, model, _ = both
    x = video(frames, 8)
    with torch.no_grad():
        expected = ours(reference.encode(theirs(x)).latent_dist.parameters)
        pixels = ours(reference.decode(theirs(expected[..., :3])).sample)
    found = run(model.tokenizer, "posterior", x)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    decoded = run(model.tokenizer, "decode", expected[..., :3])
    # Every one of an even number of latent frames becomes four frames, also the first.
    assert found.shape[1] == frames // 4 + frames % 4 and decoded.shape[1] == 4 * found.shape[1]
    np.testing.assert_allclose(decoded, pixels, atol=1e-4 * np.abs(pixels).max())


def test_the_first_latent_is_not_that_of_the_first_picture(both):
    _, model, _ = both
    x = video(9, 8)
    assert not model.prefix_equal and not model.streams
    clip, picture = (np.asarray(run(model.tokenizer, "encode", part).values) for part in (x, x[:, :1]))
    assert np.abs(clip[:, :1] - picture).max() > 0.01 * np.abs(clip).max()


@pytest.mark.slow
def test_pieces_are_part_of_the_result(both):
    _, model, _ = both
    latents = jnp.asarray(np.random.default_rng(0).normal(size=(1, 5, 1, 2, 3)).astype(np.float32))
    by_pieces, at_once = run(model.tokenizer, "decode", latents), run(model.tokenizer, "decoder", latents)
    assert at_once.shape == by_pieces.shape
    assert float(jnp.abs(at_once - by_pieces).max()) > 0.01 * float(jnp.abs(by_pieces).max())
    # The first piece sees nothing of the second one, which sees the end of the first.
    other = run(model.tokenizer, "decode", latents.at[:, 3:].add(1.0))
    np.testing.assert_array_equal(other[:, :9], by_pieces[:, :9])
    other = run(model.tokenizer, "decode", latents.at[:, :3].add(1.0))
    assert (jnp.abs(other - by_pieces)[:, 9:] > 1e-3).any()


def test_latents_are_scaled_once_by_the_published_factor(both):
    _, model, _ = both
    raw = np.random.default_rng(0).normal(size=(2, 3, 2, 3, 3)).astype(np.float32)
    np.testing.assert_allclose(model.normaliser.normalise(raw), raw * np.float32(1.15258426), rtol=1e-6)
    np.testing.assert_allclose(model.normaliser.restore(model.normaliser.normalise(raw)), raw, rtol=1e-6)
    assert model.normalised and diffusers.AutoencoderKLCogVideoX(**TINY).config.scaling_factor == 1.15258426


def test_clips_that_cannot_be_coded_are_refused(both):
    _, model, _ = both
    assert model.layout(VideoShape(17, 16, 24)).only.shape == (5, 2, 3)
    for shape, match in (
        ((5, 8, 8), r"must have 1 \+ 8·k frames, got 5; use 1 or 9"),
        ((13, 8, 8), "got 13; use 9 or 17"),
        ((8, 8, 8), r"must have 1 \+ 4·k frames, got 8; use 5 or 9"),
        ((9, 12, 8), "clip height 12 is no multiple of the patch 8"),
    ):
        with pytest.raises(UserError, match=match):
            model.layout(VideoShape(*shape))
    with pytest.raises(UserError, match="got 5; use 1 or 9"):
        model.tokenizer.encode(jnp.zeros((1, 5, 8, 8, 3)))
    with pytest.raises(UserError, match="so it cannot take it in chunks"):
        model.tokenizer.encode_chunk(None, jnp.zeros((1, 9, 8, 8, 3)))
    with pytest.raises(UserError, match="less than the number of levels, 2; got 2"):
        CogVideoX((2, 2), 2, groups=1, rngs=nnx.Rngs(0))


def test_every_tensor_is_used_and_a_missing_one_is_named(both, tmp_path):
    reference, _, folder = both
    tensors = {name: x.numpy() for name, x in reference.state_dict().items()}
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file({**tensors, "extra": np.zeros(1, np.float32)}, tmp_path / WEIGHTS)
    with pytest.raises(UserError, match="1 tensors that are not known, the first is 'extra'"):
        read_tokenizer(tmp_path)
    name = "decoder.norm_out.conv_b.conv.bias"
    save_file({key: x for key, x in tensors.items() if key != name}, tmp_path / WEIGHTS)
    with pytest.raises(UserError, match=f"lacks the tensors {name}"):
        read_tokenizer(tmp_path)
    save_file({**tensors, "encoder.conv_in.conv.weight": np.zeros((4, 3, 3, 3), np.float32)}, tmp_path / WEIGHTS)
    with pytest.raises(UserError, match=r"encoder.conv_in.conv.weight has shape \[4, 3, 3, 3\]"):
        read_tokenizer(tmp_path)
    # Without its config it could have another scale.
    with pytest.raises(UserError, match="no tokenizer that is known by its tensors"):
        read_tokenizer(folder / WEIGHTS)


@pytest.mark.parametrize(
    "match, changes",
    [
        ("use_quant_conv=True is not one that was published", {"use_quant_conv": True}),
        ("act_fn='relu' is not one", {"act_fn": "relu"}),
        ("down_block_types=.* is not one", {"down_block_types": ["CogVideoXDownBlock3D"]}),
        ("out_channels=4 is not one", {"out_channels": 4}),
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
    model = nnx.eval_shape(lambda: CogVideoX(rngs=nnx.Rngs(0)))
    with torch.device("meta"):
        published = diffusers.AutoencoderKLCogVideoX()
    count = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert count == sum(p.numel() for p in published.parameters())
    assert (model.compression.time, model.compression.height, model.compression.width) == (4, 8, 8)
