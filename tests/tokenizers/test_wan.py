"""The VAEs of Wan beside their classes in diffusers, on random weights; chunks; what cannot be read."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from tests.tokenizers.beside import ours, run, theirs
from videogen.errors import UserError
from videogen.tokenizers.public import read_tokenizer
from videogen.tokenizers.public.wan import STATISTICS, wan_names
from videogen.tokenizers.wan import Wan, averaged, spread

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

TINY = {
    "2.1": {"base_dim": 4, "z_dim": 3, "latents_mean": [0.1, -0.2, 0.3], "latents_std": [2.0, 1.0, 0.5]},
    "2.2": {
        **{"base_dim": 4, "decoder_base_dim": 8, "z_dim": 4, "is_residual": True, "patch_size": 2},
        **{"in_channels": 12, "out_channels": 12, "scale_factor_spatial": 16},
        **{"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [2.0, 1.0, 0.5, 4.0]},
    },
}


def published(version, folder):
    """A model of diffusers with random weights, and its folder."""
    torch.manual_seed(0)
    model = diffusers.AutoencoderKLWan(**TINY[version]).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape) if "gamma" in name or "bias" in name else 0.0)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module", params=list(TINY))
def both(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan")
    return request.param, published(request.param, folder), read_tokenizer(folder), folder


def video(frames, side, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (2, frames, side, side + 16, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "frames, side", [(5, 16), *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((1, 16), (9, 32), (17, 48)))]
)
def test_it_codes_as_its_publication(both, frames, side):
    _, reference, model, _ = both
    x = video(frames, side)
    with torch.no_grad():
        expected = ours(reference.encode(theirs(x)).latent_dist.parameters)
        latents = expected[..., : expected.shape[-1] // 2]
        pixels = ours(reference.decode(theirs(latents)).sample)
    found = run(model.tokenizer, "encode", x).values
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    decoded = np.clip(run(model.tokenizer, "decode", latents), -1, 1)
    assert decoded.shape == x.shape
    np.testing.assert_allclose(decoded, pixels, atol=1e-4)


def test_latents_are_normalised_once_by_the_published_statistics(both):
    version, _, model, _ = both
    x = video(5, 16)
    raw = np.asarray(run(model.tokenizer, "encode", x).values)[..., : model.tokenizer.quantizer.width]
    tokens = run(model, "tokenize", x).only.values
    mean, deviation = (np.float32(TINY[version][name]) for name in ("latents_mean", "latents_std"))
    np.testing.assert_allclose(tokens, (raw - mean) / deviation, atol=1e-5)
    np.testing.assert_allclose(model.normaliser.restore(tokens), raw, atol=1e-5)


def test_the_published_statistics_of_both():
    mean, deviation = STATISTICS[16]
    assert (mean[0], deviation[0], mean[-1], deviation[-1]) == (-0.7571, 2.8184, -0.2921, 1.9160)
    assert (2.0613 - mean[0]) / deviation[0] == pytest.approx(1.0, abs=1e-4)
    reference = diffusers.AutoencoderKLWan(base_dim=4)
    assert list(mean) == reference.config.latents_mean and list(deviation) == reference.config.latents_std
    mean, deviation = STATISTICS[48]
    assert len(mean) == len(deviation) == 48
    # Sums of the published lists.
    assert sum(mean) == pytest.approx(-0.5589, abs=1e-6) and sum(deviation) == pytest.approx(32.536, abs=1e-6)


def in_chunks(coder, method, x, cuts):
    """What a method of chunks makes of ``x`` cut in time; one program for all chunks of a length."""
    graph, state = nnx.split(coder)
    call = jax.jit(lambda state, cache, part: getattr(nnx.merge(graph, state), method)(cache, part))
    cache, parts = None, []
    for start, stop in zip((0, *cuts), (*cuts, x.shape[1]), strict=True):
        cache, part = call(state, cache, x[:, start:stop])
        parts.append(part if method == "decode_chunk" else part.values)
    return jnp.concatenate(parts, 1)


@pytest.mark.slow
def test_chunks_of_any_length_are_the_whole(both):
    _, _, model, _ = both
    coder, x = model.tokenizer, jnp.asarray(video(13, 16))
    whole = run(coder, "encode", x).values
    for cuts in ((1, 5, 9), (9,)):
        parts = in_chunks(coder, "encode_chunk", x, cuts)
        np.testing.assert_allclose(parts, whole, atol=2e-5 * float(jnp.abs(whole).max()))
    latents = whole[..., : coder.quantizer.width]
    pixels = run(coder, "decode", latents)
    for cuts in ((1, 2), (3,)):
        parts = in_chunks(coder, "decode_chunk", latents, cuts)
        np.testing.assert_allclose(parts, pixels, atol=2e-5 * float(jnp.abs(pixels).max()))
    # The first latent is that of the first picture.
    first = run(coder, "encode", x[:, :1]).values
    np.testing.assert_allclose(first, whole[:, :1], atol=1e-5 * float(jnp.abs(whole).max()))


@pytest.mark.slow
def test_two_streams_in_turns_are_each_alone(both):
    _, _, model, _ = both
    coder, clips = model.tokenizer, [jnp.asarray(video(5, 16, seed)) for seed in (1, 2)]
    graph, state = nnx.split(coder)
    encode = jax.jit(lambda state, cache, part: nnx.merge(graph, state).encode_chunk(cache, part))
    alone = [encode(state, encode(state, None, clip[:, :1])[0], clip[:, 1:])[1].values for clip in clips]
    caches = [encode(state, None, clip[:, :1])[0] for clip in clips]
    for i, clip in enumerate(clips):
        np.testing.assert_array_equal(encode(state, caches[i], clip[:, 1:])[1].values, alone[i])
    assert (alone[0] != alone[1]).any()


def original_name(name):
    """What the original file calls a tensor of diffusers (2.1)."""
    for new, old in (
        ("conv_in", "conv1"), ("norm_out", "head.0"), ("conv_out", "head.2"), ("mid_block.resnets.0", "middle.0"),
        ("mid_block.resnets.1", "middle.2"), ("mid_block.attentions.0", "middle.1"), ("post_quant_conv", "conv2"),
        ("quant_conv", "conv1"), ("conv_shortcut", "shortcut"), ("down_blocks", "downsamples"),
    ):  # fmt: skip
        name = name.replace(new, old)
    for i in range(4):
        name = name.replace(f"up_blocks.{i}.upsamplers.0", f"upsamples.{4 * i + 3}")
        for j in range(3):
            name = name.replace(f"up_blocks.{i}.resnets.{j}", f"upsamples.{4 * i + j}")
    for new, old in (("norm1", "0"), ("norm2", "3")):
        name = name.replace(f".{new}.", f".residual.{old}.")
    if "conv1." in name and ("downsamples" in name or "upsamples" in name or "middle" in name):
        name = name.replace("conv1", "residual.2")
    return name.replace("conv2.", "residual.6.") if "samples" in name or "middle" in name else name


def test_the_original_file_is_the_folder(tmp_path):
    folder = tmp_path / "folder"
    torch.manual_seed(1)
    reference = diffusers.AutoencoderKLWan(base_dim=4).eval()
    reference.save_pretrained(folder)
    tensors = {original_name(name): x.contiguous() for name, x in reference.state_dict().items()}
    torch.save(tensors, tmp_path / "Wan2.1_VAE.pth")
    converted = diffusers.loaders.single_file_utils.convert_wan_vae_to_diffusers(dict(tensors))
    assert converted.keys() == reference.state_dict().keys()
    one, other = read_tokenizer(tmp_path / "Wan2.1_VAE.pth"), read_tokenizer(folder)
    for a, b in zip(jax.tree.leaves(nnx.state(one)), jax.tree.leaves(nnx.state(other)), strict=True):
        np.testing.assert_array_equal(a, b)
    # Also where the folder is that of a whole pipeline.
    (tmp_path / "pipeline").mkdir()
    folder.rename(tmp_path / "pipeline" / "vae")
    assert jax.tree.leaves(nnx.state(read_tokenizer(tmp_path / "pipeline")))[0].shape


def test_every_tensor_is_used_and_a_missing_one_is_named(both, tmp_path):
    version, reference, model, folder = both
    used = {name for source in wan_names(model.tokenizer).values() for name in getattr(source, "names", [source])}
    known = {part for name in used for part in name.split("|")}
    assert set(reference.state_dict()) <= known
    tensors = {name: x.numpy() for name, x in reference.state_dict().items()}
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file({**tensors, "extra": np.zeros(1, np.float32)}, path)
    with pytest.raises(UserError, match="1 tensors that are not known, the first is 'extra'"):
        read_tokenizer(tmp_path)
    save_file({name: x for name, x in tensors.items() if name != "decoder.conv_out.bias"}, path)
    with pytest.raises(UserError, match="lacks the tensors decoder.conv_out.bias"):
        read_tokenizer(tmp_path)
    save_file({**tensors, "decoder.conv_out.bias": np.zeros(7, np.float32)}, path)
    with pytest.raises(UserError, match=r"decoder.conv_out.bias has shape \[7\]"):
        read_tokenizer(tmp_path)


def test_what_is_no_tokenizer_is_one_line(both, tmp_path):
    _, _, _, folder = both
    config = json.loads((folder / "config.json").read_text())
    weights = "diffusion_pytorch_model.safetensors"
    (tmp_path / weights).symlink_to(folder / weights)

    def refused(match, **changes):
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(UserError, match=match):
            read_tokenizer(tmp_path)

    refused("is of a UNet2DModel; tokenizers that can be read", _class_name="UNet2DModel")
    refused("not one that was published", attn_scales=[1.0])
    refused("must be . numbers each, got 1", latents_std=[1.0])
    refused("deviations of latents must be positive", latents_std=[0.0] * config["z_dim"])
    refused("lacks or has another kind of", z_dim=None)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match="it is no dictionary"):
        read_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="does not say what it is"):
        read_tokenizer(tmp_path)
    save_file({"a": np.zeros(1, np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="no tokenizer that is known by its tensors"):
        read_tokenizer(tmp_path / "a.safetensors")
    names = ("encoder.conv1.weight", "decoder.head.0.gamma", "conv2.weight")
    save_file({name: np.zeros((5, 3), np.float32) for name in names}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="latents of 5 channels and pixels of 3"):
        read_tokenizer(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="2 given"):
        Wan(4, 4, 3, multipliers=(1, 2), temporal=(True, False), rngs=nnx.Rngs(0))


def test_sizes_of_the_published_networks():
    small = nnx.eval_shape(lambda: Wan(rngs=nnx.Rngs(0)))
    large = nnx.eval_shape(
        lambda: Wan(160, 256, 48, around=True, patch=2, rngs=nnx.Rngs(0)),
    )
    count = lambda model: sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))  # noqa: E731
    # 384 biases of keys, of both networks, change nothing and are left out; so are 640 and 1,024 of 2.2.
    with torch.device("meta"):
        published = diffusers.AutoencoderKLWan()
    assert count(small) == sum(p.numel() for p in published.parameters()) - 2 * 384
    settings = {k: v for k, v in TINY["2.2"].items() if not k.startswith("latents")}
    with torch.device("meta"):
        published = diffusers.AutoencoderKLWan(**{**settings, "base_dim": 160, "decoder_base_dim": 256, "z_dim": 48})
    assert count(large) == sum(p.numel() for p in published.parameters()) - 640 - 1024
    assert (small.compression.time, small.compression.height) == (4, 8)
    assert (large.compression.time, large.compression.height) == (4, 16)


def test_ways_around_levels():
    x = jnp.arange(3 * 8.0).reshape(1, 3, 2, 2, 2)
    down = averaged(x, (2, 2, 2), 4, True)
    assert down.shape == (1, 2, 1, 1, 4)
    # The first box has a frame of zeros before frame 0, the second has frames 1 and 2.
    np.testing.assert_allclose(down[0, 0, 0, 0], [0, 3, 0, 4])
    np.testing.assert_allclose(down[0, 1, 0, 0], [11, 19, 12, 20])
    up = spread(jnp.asarray([[[[[1.0, 2, 3, 4]]], [[[5.0, 6, 7, 8]]]]]), (2, 2, 2), 2, True)
    assert up.shape == (1, 3, 2, 2, 2)
    np.testing.assert_allclose(up[0, 0, :, :, 0], 2)
    np.testing.assert_allclose(up[0, 0, :, :, 1], 4)
    np.testing.assert_allclose(up[0, 1, :, :, 0], 5)
    np.testing.assert_allclose(up[0, 2, :, :, 1], 8)
    np.testing.assert_allclose(spread(jnp.ones((1, 1, 1, 1, 4)), (2, 2, 2), 2, False).shape, (1, 2, 2, 2, 2))
