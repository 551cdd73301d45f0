"""The video tokenizers of Cosmos beside their class in diffusers, on random weights; original files; refusals."""

import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from tests.tokenizers.beside import ours, run, theirs
from videogen.errors import UserError
from videogen.shapes import VideoShape
from videogen.tokenizers.cosmos import Cosmos, haar, inverse_haar
from videogen.tokenizers.public import read_tokenizer
from videogen.tokenizers.public.cosmos import COSMOS, cosmos_names

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

LATENTS, FRAMES = 3, 4
MEANS = np.linspace(-1, 1, LATENTS * FRAMES)
DEVIATIONS = np.linspace(0.5, 2, LATENTS * FRAMES)
TINY = {
    **{"latent_channels": LATENTS, "encoder_block_out_channels": [4, 6, 8, 8], "num_layers": 1},
    **{"decode_block_out_channels": [6, 8, 8, 8], "latents_mean": [*MEANS], "latents_std": [*DEVIATIONS]},
}
KINDS = {
    "8x8x8": {},
    "8x16x16": {"spatial_compression_ratio": 16},
    "4x8x8": {"temporal_compression_ratio": 4, "latents_mean": None, "latents_std": None},
}


def published(folder, **settings):
    """A model of diffusers with random weights, written to a folder."""
    torch.manual_seed(0)
    model = diffusers.AutoencoderKLCosmos(**TINY | settings).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape))
            else:
                # As they are drawn, what is seen in the pixels gets lost among the biases.
                parameter.mul_(2)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cosmos")
    return published(folder), read_tokenizer(folder), folder


def video(frames, height, width, batch=1):
    return np.random.default_rng(0).uniform(-1, 1, (batch, frames, height, width, 3)).astype(np.float32)


def compare(reference, coder, x):
    with torch.no_grad():
        latents = ours(reference.encode(theirs(x)).latent_dist.mode())
        pixels = ours(reference.decode(theirs(latents)).sample)
    assert latents.std((1, 2, 3)).max() > 0.05 * np.abs(latents).max()
    found = run(coder, "encode", x).values
    assert found.shape == latents.shape == (len(x), *coder.layout(VideoShape(*x.shape[1:4])).only.shape, LATENTS)
    np.testing.assert_allclose(found, latents, atol=1e-4 * np.abs(latents).max())
    decoded = run(coder, "decode", latents)
    assert decoded.shape == x.shape
    np.testing.assert_allclose(decoded, pixels, atol=1e-4 * np.abs(pixels).max())


@pytest.mark.parametrize(
    "frames, height, width",
    [(9, 16, 24), *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((1, 16, 24), (17, 32, 16)))],
)
def test_it_codes_as_its_publication(both, frames, height, width):
    reference, model, _ = both
    compare(reference, model.tokenizer, video(frames, height, width))


@pytest.mark.slow
@pytest.mark.parametrize("kind, frames", [("8x16x16", 9), ("4x8x8", 5)])
def test_other_compressions(kind, frames, tmp_path):
    reference = published(tmp_path, **KINDS[kind])
    model = read_tokenizer(tmp_path)
    # Without published statistics latents stay raw.
    assert model.normalised == (kind != "4x8x8")
    compare(reference, model.tokenizer if model.normalised else model, video(frames, 32, 16))


def test_latents_are_normalised_once_by_channel_and_latent_frame(both):
    _, model, _ = both
    raw = np.random.default_rng(1).normal(size=(2, 3, 2, 2, LATENTS)).astype(np.float32)
    # The published list has the latent frames of a channel side by side; clips may have fewer.
    mean, deviation = (x.reshape(LATENTS, FRAMES).T[None, :3, None, None] for x in (MEANS, DEVIATIONS))
    normalised = model.normaliser.normalise(raw)
    np.testing.assert_allclose(normalised, (raw - mean) / deviation, atol=1e-5)
    np.testing.assert_allclose(model.normaliser.restore(normalised), raw, atol=1e-5)
    assert model.normalised and not model.streams and model.prefix_equal
    with pytest.raises(UserError, match="clips of 4 latent frames, got 5"):
        model.normaliser.normalise(np.zeros((1, 5, 1, 1, LATENTS), np.float32))


def test_published_statistics_of_cv8x8x8():
    defaults = inspect.signature(diffusers.AutoencoderKLCosmos.__init__).parameters
    mean, deviation = (np.asarray(defaults[name].default) for name in ("latents_mean", "latents_std"))
    config = {"latent_channels": 16, "latents_mean": [*mean], "latents_std": [*deviation]}
    model = diffusers.AutoencoderKLCosmos(**TINY | config).config
    description = COSMOS.of_config(dict(model))
    assert description.normaliser == {"name": "mean", "frames": 16}
    found = np.stack(description.statistics)
    # Of channel 0 the first and second latent frame, of channel 1 the first.
    np.testing.assert_allclose(found[0, :2, :2], [[0.11362758, 0.19125476], [-0.0171717, 0.04556972]], rtol=1e-6)
    np.testing.assert_allclose(found[1, 0, :2], [0.56700271, 0.85245121], rtol=1e-6)


@pytest.mark.slow
def test_the_first_latents_are_those_of_the_first_frames(both):
    coder, x = both[1].tokenizer, video(17, 16, 16)
    whole = run(coder, "encode", x).values
    for frames in (1, 9):
        part = run(coder, "encode", x[:, :frames]).values
        np.testing.assert_allclose(part, whole[:, : part.shape[1]], atol=1e-5 * np.abs(whole).max())
    changed = x.copy()
    changed[:, 9:] = 0
    found = run(coder, "encode", changed).values
    np.testing.assert_allclose(found[:, :2], whole[:, :2], atol=1e-5 * np.abs(whole).max())
    assert np.abs(found[:, 2] - whole[:, 2]).max() > 1e-3


def test_wavelets():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 2, 4, 3)).astype(np.float32))
    bands = haar(x)
    assert bands.shape == (1, 2, 1, 2, 24)
    box = x[:, :2, :2, :2]
    np.testing.assert_allclose(bands[:, 0, 0, 0, :3], box.mean((1, 2, 3)), atol=1e-6)
    # Band 1 is the difference of columns, band 2 of rows, band 4 of frames.
    for band, axis in ((1, 3), (2, 2), (4, 1)):
        first, second = jnp.split(box, 2, axis=axis)
        expected = (first - second).sum((1, 2, 3)) / 8
        np.testing.assert_allclose(bands[:, 0, 0, 0, 3 * band : 3 * band + 3], expected, atol=1e-6)
    np.testing.assert_allclose(inverse_haar(bands), x, atol=1e-6)


def original_name(name):
    """What the original file calls a tensor of diffusers, by the program that converts the other way."""
    name = name.replace("conv_s.", "0.conv3d.").replace("conv_t.", "1.conv3d.")
    for new, old in (
        *((f"down_blocks.{i}", f"down.{i}") for i in range(3)),
        *((f"up_blocks.{i}", f"up.{2 - i}") for i in range(3)),
        *(("downsamplers.0", "downsample"), ("upsamplers.0", "upsample")),
        *(("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2")),
        *(("mid_block.attentions.0", "mid.attn_1.0"), ("mid_block.temp_attentions.0", "mid.attn_1.1")),
        *((".resnets.", ".block."), ("to_q.", "q.conv3d."), ("to_k.", "k.conv3d."), ("to_v.", "v.conv3d.")),
        *(("to_out.0.", "proj_out.conv3d."), ("conv_shortcut.", "nin_shortcut.conv3d.")),
        ("quant_conv.", "quant_conv.conv3d."),
    ):  # fmt: skip
        name = name.replace(new, old)
    if "sample.conv" in name:
        name = name.replace(".weight", ".conv3d.weight").replace(".bias", ".conv3d.bias")
    return name


def archive(path, tensors):
    """A TorchScript file with these tensors as attributes of modules."""
    root = torch.nn.Module()
    for name, tensor in tensors.items():
        *parents, last = name.split(".")
        module = root
        for part in parents:
            if part not in module._modules:
                module.add_module(part, torch.nn.Module())
            module = module._modules[part]
        module.register_buffer(last, tensor.detach().clone().contiguous())
    path.parent.mkdir(exist_ok=True)
    torch.jit.save(torch.jit.script(root), path)


def original(reference):
    """The tensors of a model of diffusers as the original has them, with its constants and its unused layers."""
    tensors = {original_name(name): x for name, x in reference.state_dict().items()}
    kernel, bias = torch.zeros(8, 8, 3, 1, 1), torch.zeros(8)
    for name in ("encoder.down.1.downsample.conv2", "decoder.up.2.upsample.conv1"):
        tensors |= {f"{name}.conv3d.weight": kernel, f"{name}.conv3d.bias": bias}
    tensors |= {"encoder.patcher3d.wavelets": torch.ones(2), "encoder.patcher3d._arange": torch.arange(2)}
    return tensors | {"decoder.unpatcher3d.wavelets": torch.ones(2)}


def assert_equal(one, other):
    for a, b in zip(jax.tree.leaves(nnx.state(one)), jax.tree.leaves(nnx.state(other)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_original_files_are_the_folder(both, tmp_path):
    reference, model, _ = both
    tensors = original(reference)
    folder = tmp_path / "Cosmos-1.0-Tokenizer-CV8x8x8"
    archive(folder / "autoencoder.jit", tensors)
    statistics = tuple(torch.tensor(x, dtype=torch.float32) for x in (MEANS, DEVIATIONS))
    torch.save(statistics, folder / "mean_std.pt")
    assert_equal(read_tokenizer(folder), model)


@pytest.mark.slow
def test_the_original_files_in_parts_elsewhere_or_damaged(both, tmp_path):
    reference, model, _ = both
    tensors = original(reference)
    folder = tmp_path / "Cosmos-1.0-Tokenizer-CV8x8x8"
    archive(folder / "autoencoder.jit", tensors)
    statistics = tuple(torch.tensor(x, dtype=torch.float32) for x in (MEANS, DEVIATIONS))
    torch.save(statistics, folder / "mean_std.pt")
    assert_equal(read_tokenizer(folder / "autoencoder.jit"), model)
    # In two files, of a tokenizer without statistics.
    halves = tmp_path / "CV8x8x8"
    for side in ("encoder", "decoder"):
        own = ("encoder.", "quant_conv.") if side == "encoder" else ("decoder.", "post_quant_conv.")
        archive(halves / f"{side}.jit", {name: x for name, x in tensors.items() if name.startswith(own)})
    assert_equal(read_tokenizer(halves), model.tokenizer)
    with pytest.raises(UserError, match="half of a tokenizer of Cosmos"):
        read_tokenizer(halves / "encoder.jit")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "autoencoder.jit").symlink_to(folder / "autoencoder.jit")
    assert_equal(read_tokenizer(tmp_path / "mine" / "autoencoder.jit"), model.tokenizer)
    folder.rename(tmp_path / "renamed")
    with pytest.raises(UserError, match="does not say how many pixels a latent of it stands for"):
        read_tokenizer(tmp_path / "renamed")
    (tmp_path / "renamed").rename(folder)
    torch.save((statistics[0], statistics[1][:-1]), folder / "mean_std.pt")
    with pytest.raises(UserError, match="by latent frames, got 12, 11 numbers"):
        read_tokenizer(folder)
    archive(folder / "autoencoder.jit", tensors | {"other.weight": torch.zeros(1)})
    (folder / "mean_std.pt").unlink()
    with pytest.raises(UserError, match="1 tensors that are not known, the first is 'other.weight'"):
        read_tokenizer(folder)


LEVELS = (8, 8, 8, 5, 5, 5)


def scalar_quantization(z):
    """FSQ as Mentzer et al. (2023) have it, in numpy: ids and codes of ``[…, 6]``."""
    levels = np.array(LEVELS)
    half = (levels - 1) * (1 + 1e-3) / 2
    offset = np.where(levels % 2 == 0, 0.5, 0.0)
    digits = np.round(np.tanh(z + np.arctanh(offset / half)) * half - offset)
    ids = ((digits + levels // 2) * np.cumprod([1, *LEVELS[:-1]])).sum(-1)
    return ids.astype(np.int64), digits / (levels // 2)


@pytest.mark.parametrize("stored", [pytest.param(True, marks=pytest.mark.slow), False])
def test_codes(both, tmp_path, stored):
    reference = both[0]
    torch.manual_seed(1)
    tensors = original(reference)
    kernels = {"quant_conv": 3 * torch.randn(6, LATENTS), "post_quant_conv": torch.randn(LATENTS, 6)}
    biases = {"quant_conv": torch.randn(6), "post_quant_conv": torch.randn(LATENTS)}
    for name, kernel in kernels.items():
        tensors[f"{name}.conv3d.weight"] = kernel[:, :, None, None, None]
        tensors[f"{name}.conv3d.bias"] = biases[name]
    if stored:
        tensors |= {"quantizer._levels": torch.tensor(LEVELS), "quantizer._basis": torch.ones(6)}
        tensors |= {"quantizer.implicit_codebook": torch.ones(3, 6)}
    archive(tmp_path / "Cosmos-1.0-Tokenizer-DV8x8x8" / "autoencoder.jit", tensors)
    model = read_tokenizer(tmp_path / "Cosmos-1.0-Tokenizer-DV8x8x8")
    assert model.vocabulary == (64000,) and not model.normalised
    if not stored:
        assert model.quantizer.levels == LEVELS
        return
    x = video(9, 16, 16)
    with torch.no_grad():
        z = ours(reference.encoder(theirs(x)))
    z = z @ kernels["quant_conv"].numpy().T + biases["quant_conv"].numpy()
    ids, codes = scalar_quantization(z)
    tokens = run(model, "tokenize", x)
    np.testing.assert_array_equal(tokens.only.values[..., 0], ids)
    assert len(np.unique(ids)) > 4
    np.testing.assert_allclose(model.lookup(tokens), codes, atol=1e-6)
    latents = codes @ kernels["post_quant_conv"].numpy().T + biases["post_quant_conv"].numpy()
    with torch.no_grad():
        pixels = ours(reference.decoder(theirs(latents.astype(np.float32))))
    decoded = run(model, "decode", codes.astype(np.float32))
    np.testing.assert_allclose(decoded, pixels, atol=1e-4 * np.abs(pixels).max())


def test_every_tensor_is_used_and_a_missing_one_is_named(both, tmp_path):
    reference, model, folder = both
    used = {name for source in cosmos_names(model.tokenizer).values() for name in getattr(source, "names", [source])}
    known = {part for name in used for part in name.split("|")}
    left = {name for name in reference.state_dict() if name not in known}
    assert left and all(name.endswith("to_k.bias") for name in left)
    assert {original_name(name) for name in reference.state_dict() if name not in left} <= known
    tensors = {name: x.numpy() for name, x in reference.state_dict().items()}
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file({**tensors, "extra": np.zeros(1, np.float32)}, path)
    with pytest.raises(UserError, match="1 tensors that are not known, the first is 'extra'"):
        read_tokenizer(tmp_path)
    save_file({name: x for name, x in tensors.items() if name != "quant_conv.bias"}, path)
    with pytest.raises(UserError, match="lacks the tensors quant_conv.bias"):
        read_tokenizer(tmp_path)
    save_file({**tensors, "quant_conv.bias": np.zeros(7, np.float32)}, path)
    with pytest.raises(UserError, match=r"quant_conv.bias has shape \[7\]"):
        read_tokenizer(tmp_path)


def test_what_cannot_be_read_is_one_line(both, tmp_path):
    folder = both[2]
    config = json.loads((folder / "config.json").read_text())
    weights = "diffusion_pytorch_model.safetensors"
    (tmp_path / weights).symlink_to(folder / weights)

    def refused(match, **changes):
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(UserError, match=match):
            read_tokenizer(tmp_path)

    refused("with patch_type rearrange is not one that was published", patch_type="rearrange")
    refused(r"with attention_resolutions \[64\] is not one", attention_resolutions=[64])
    refused("with out_channels 4 is not one that was published", out_channels=4)
    refused("3 channels by latent frames, got 1, 12 numbers", latents_mean=[1.0])
    refused("deviations of latents must be positive", latents_std=[0.0] * LATENTS * FRAMES)
    refused("lacks or has another kind of", latent_channels=None)
    refused("side of these levels and this patch must be one of 4, 8, 16, got 32", spatial_compression_ratio=32)
    refused("time of these levels and this patch must be one of 4, 8, got 16", temporal_compression_ratio=16)
    pictures = tmp_path / "Cosmos-0.1-Tokenizer-CI16x16"
    archive(pictures / "autoencoder.jit", {"encoder.patcher.wavelets": torch.ones(2)})
    with pytest.raises(UserError, match=r"tokenizer of pictures of Cosmos \(CI or DI\); only CV and DV"):
        read_tokenizer(pictures)
    archive(pictures / "autoencoder.jit", {"encoder.conv_in.weight": torch.ones(2)})
    with pytest.raises(UserError, match=r"tokenizer of pictures of Cosmos \(CI or DI\); only CV and DV"):
        read_tokenizer(pictures / "autoencoder.jit")
    pictures.rename(tmp_path / "pictures")
    with pytest.raises(UserError, match="no tokenizer that is known by its tensors"):
        read_tokenizer(tmp_path / "pictures")


def test_settings_and_clips_that_are_refused(both):
    coder = both[1].tokenizer
    with pytest.raises(UserError, match=r"a clip must have 1 \+ 8·k frames, got 8; use 1 or 9"):
        coder.encode(video(8, 16, 16))
    with pytest.raises(UserError, match="clip height 12 is no multiple of the patch 8"):
        coder.layout(VideoShape(9, 12, 16))
    with pytest.raises(UserError, match="codes a clip as a whole"):
        coder.encode_chunk(None, video(9, 16, 16))
    for match, settings in (
        ("got 3 and 2", {"widths": (4, 4, 4), "decoder_widths": (4, 4)}),
        ("patch must be a power of two, got 3", {"patch": 3}),
        ("time of these levels .* must be one of 4, got 8", {"widths": (4, 4, 4), "decoder_widths": (4, 4, 4)}),
    ):  # fmt: skip
        with pytest.raises(UserError, match=match):
            nnx.eval_shape(lambda settings=settings: Cosmos(**settings, rngs=nnx.Rngs(0)))


def test_sizes_of_the_published_network():
    model = nnx.eval_shape(lambda: Cosmos(rngs=nnx.Rngs(0)))
    with torch.device("meta"):
        published = diffusers.AutoencoderKLCosmos()
    # The biases of the keys of four attentions, which change nothing, are left out.
    count = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert count == sum(p.numel() for p in published.parameters()) - 4 * 512
    assert (model.compression.time, model.compression.height, model.quantizer.width) == (8, 8, 16)
