"""VidTok beside its class in diffusers, on random weights: causal and not, latents and codes; original files."""

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
from videogen.tokenizers.base import Encoded
from videogen.tokenizers.public import read_tokenizer
from videogen.tokenizers.public.vidtok import vidtok_names
from videogen.tokenizers.vidtok import VidTok, doubled

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

TINY = {"ch": 4, "ch_mult": [1, 2, 2], "z_channels": 3, "num_res_blocks": 1, "tempo_ds": [0, 1]}
CODES = {"regularizer": "fsq", "double_z": False, "codebook_size": 8**3}
KINDS = {
    "causal": {},
    "symmetric": {"is_causal": False},
    "codes": CODES | {"tempo_ds": [1], "tempo_us": [2]},
    "8 frames": {"ch_mult": [1, 2, 2, 1], "tempo_ds": [0, 1, 2], "tempo_us": [1, 2, 3]},
}


def published(folder, **settings):
    """A model of diffusers with random weights, written to a folder."""
    torch.manual_seed(0)
    model = diffusers.AutoencoderVidTok(**TINY | settings).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("norm", "bias", "mix")):
                parameter.add_(0.3 * torch.randn(parameter.shape))
            else:
                # As they are drawn, what is seen in the pixels gets lost among the biases.
                parameter.mul_(2)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vidtok")
    return published(folder), read_tokenizer(folder), folder


def video(frames, height, width):
    return np.random.default_rng(0).uniform(-1, 1, (1, frames, height, width, 3)).astype(np.float32)


def expected(reference, x):
    """What the encoder gives, what is decoded, and pixels; as ``forward`` of the class has it, causal ones are given
    copies of the first frame."""
    padded = theirs(x)
    if reference.is_causal:
        padded = reference._pad_at_dim(padded, (reference.temporal_compression_ratio - 1, 0), 2, "replicate")
    with torch.no_grad():
        encoded, given = reference.encoder(padded), reference.encode(padded)
        latents = given[0] if reference.regularizer == "fsq" else given.latent_dist.mode()
        pixels = ours(reference.decode(latents))
    return ours(encoded), ours(latents), pixels


def compare(reference, coder, x):
    encoded, latents, pixels = expected(reference, x)
    assert encoded.std((1, 2, 3)).max() > 0.1 * np.abs(encoded).max()
    found = run(coder, "encode", x).values
    assert found.shape == encoded.shape
    assert found.shape[1:-1] == coder.layout(VideoShape(*x.shape[1:4])).only.shape
    np.testing.assert_allclose(found, encoded, atol=1e-4 * np.abs(encoded).max())
    decoded = run(coder, "decode", latents)
    assert decoded.shape == x.shape
    np.testing.assert_allclose(decoded, pixels, atol=1e-4 * np.abs(pixels).max())
    return Encoded(found)


@pytest.mark.parametrize(
    "frames, height, width",
    [(5, 8, 12), *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((1, 8, 12), (9, 8, 8), (17, 16, 8)))],
)
def test_it_codes_as_its_publication(causal, frames, height, width):
    reference, model, _ = causal
    compare(reference, model, video(frames, height, width))


@pytest.mark.slow
@pytest.mark.parametrize("kind, frames, time", [("symmetric", 16, 4), ("8 frames", 9, 8)])
def test_other_kinds(kind, frames, time, tmp_path):
    reference = published(tmp_path, **KINDS[kind])
    coder = read_tokenizer(tmp_path)
    compare(reference, coder, video(frames, 16, 8))
    symmetric = kind == "symmetric"
    assert coder.prefix_equal != symmetric and coder.compression.first_alone != symmetric
    assert not coder.normalised and not coder.streams
    assert coder.compression.time == time


@pytest.mark.slow
def test_codes_are_the_published_ones(tmp_path):
    reference = published(tmp_path, **KINDS["codes"])
    coder, x = read_tokenizer(tmp_path), video(5, 16, 16)
    encoded = compare(reference, coder, x)
    with torch.no_grad():
        codes, ids = reference.encode(reference._pad_at_dim(theirs(x), (1, 0), 2, "replicate"))
    tokens = coder.bottleneck(encoded)[1]
    assert coder.vocabulary == (512,) and len(np.unique(ids)) > 10
    np.testing.assert_array_equal(tokens.only.values[..., 0], ids.numpy())
    np.testing.assert_allclose(coder.lookup(tokens), ours(codes), atol=1e-6)


@pytest.mark.slow
def test_the_first_latents_are_those_of_the_first_frames_where_it_is_causal(causal, tmp_path):
    coder, x = causal[1], video(9, 8, 8)
    whole = run(coder, "encode", x).values
    for frames in (1, 5):
        part = run(coder, "encode", x[:, :frames]).values
        np.testing.assert_allclose(part, whole[:, : part.shape[1]], atol=1e-5 * np.abs(whole).max())
    published(tmp_path, **KINDS["symmetric"])
    coder, x = read_tokenizer(tmp_path), video(8, 8, 8)
    whole, part = (run(coder, "encode", video).values for video in (x, x[:, :4]))
    assert np.abs(part - whole[:, :1]).max() > 1e-2 * np.abs(whole).max()


def test_frames_are_doubled_by_linear_interpolation():
    x = jnp.asarray([0.0, 4.0, 8.0]).reshape(1, 3, 1, 1, 1)
    np.testing.assert_allclose(doubled(x).reshape(-1), [0, 1, 3, 5, 7, 8])
    assert doubled(x[:, :0]).shape == (1, 0, 1, 1, 1)


def as_of_version_1_0(model):
    """A model of diffusers (1.1) with the rules of version 1.0: zeros before the first frame, frames repeated."""
    pad = torch.nn.functional.pad
    for module in model.modules():
        name = type(module).__name__
        if name == "VidTokCausalConv1d":
            module.forward = lambda x, m=module: m.conv(pad(x, (m.time_pad, 0)))
        elif name == "VidTokCausalConv3d":
            module.forward = lambda x, m=module: m.conv(pad(x, (*m.spatial_padding[:4], m.time_pad, 0)))
        elif name == "VidTokUpsample3D":
            module.enable_cached, module.interpolation_mode = False, "nearest"
        elif name == "VidTokDownsample3D":

            def forward(x, m=module):
                share = torch.sigmoid(m.mix_factor)
                return share * m.avg_pool(pad(x, (0, 0, 0, 0, 1, 0))) + (1 - share) * m.conv(x)

            module.forward = forward
    return model


def assert_equal(one, other):
    for a, b in zip(jax.tree.leaves(nnx.state(one)), jax.tree.leaves(nnx.state(other)), strict=True):
        np.testing.assert_array_equal(a, b)


def write(path, model, **more):
    """A file of Lightning, with what a training keeps."""
    tensors = {**model.state_dict(), "loss.logvar": torch.zeros(1), **more}
    torch.save({"state_dict": tensors, "global_step": 7, "optimizer_states": [{"step": torch.ones(1)}]}, path)


def test_the_original_file_is_the_folder(causal, tmp_path):
    reference, model, folder = causal
    path = tmp_path / "vidtok_kl_causal_488_4chn_v1_1.ckpt"
    write(path, reference)
    found = read_tokenizer(path)
    assert_equal(found, model)
    assert nnx.graphdef(found) == nnx.graphdef(model)
    save_file({name: x.numpy() for name, x in reference.state_dict().items()}, path.with_suffix(".safetensors"))
    assert_equal(read_tokenizer(path.with_suffix(".safetensors")), model)


@pytest.mark.slow
def test_original_files_that_cannot_be_read(causal, tmp_path):
    reference = causal[0]
    path = tmp_path / "vidtok_kl_causal_488_4chn_v1_1.ckpt"
    write(path, reference)
    path.rename(tmp_path / "mine.ckpt")
    with pytest.raises(UserError, match="of version 1.0 or 1.1, which its tensors do not tell"):
        read_tokenizer(tmp_path / "mine.ckpt")
    write(path, reference, other=torch.zeros(1))
    with pytest.raises(UserError, match="1 tensors that are not known, the first is 'other'"):
        read_tokenizer(path)
    write(path, reference, **{"decoder.conv_in.conv.weight": torch.zeros(3)})
    with pytest.raises(UserError, match=r"decoder.conv_in.conv.weight has shape \[3\], where a kernel is needed"):
        read_tokenizer(path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["symmetric", "codes"])
def test_original_files_of_other_kinds(kind, tmp_path):
    reference = published(tmp_path / "folder", **KINDS[kind])
    path = tmp_path / f"vidtok_{kind}_v1_1.ckpt"
    write(path, reference)
    model = read_tokenizer(tmp_path / "folder")
    found = read_tokenizer(path)
    assert_equal(found, model)
    assert nnx.graphdef(found) == nnx.graphdef(model)


@pytest.mark.slow
def test_version_1_0(causal, tmp_path):
    path = tmp_path / "vidtok_kl_causal_488_4chn.ckpt"
    reference = published(tmp_path / "folder")
    write(path, reference)
    coder = read_tokenizer(path)
    compare(as_of_version_1_0(reference), coder, video(9, 8, 12))
    # Which is another function of the same weights.
    x = video(5, 8, 8)
    other = run(causal[1], "encode", x).values
    assert np.abs(run(coder, "encode", x).values - other).max() > 1e-2 * np.abs(other).max()


def test_every_tensor_is_used_and_a_missing_one_is_named(causal, tmp_path):
    reference, model, folder = causal
    known = {name for source in vidtok_names(model).values() for name in getattr(source, "names", [source])}
    left = {name for name in reference.state_dict() if name not in known}
    assert left == {f"{side}.mid.attn_1.k.conv.bias" for side in ("encoder", "decoder")}
    tensors = {name: x.numpy() for name, x in reference.state_dict().items()}
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file({**tensors, "extra": np.zeros(1, np.float32)}, path)
    with pytest.raises(UserError, match="1 tensors that are not known, the first is 'extra'"):
        read_tokenizer(tmp_path)
    name = "decoder.up_temporal.1.upsample.mix_factor"
    save_file({key: x for key, x in tensors.items() if key != name}, path)
    with pytest.raises(UserError, match=f"lacks the tensors {name}"):
        read_tokenizer(tmp_path)
    save_file({**tensors, name: np.zeros(7, np.float32)}, path)
    with pytest.raises(UserError, match=rf"{name} has shape \[7\]"):
        read_tokenizer(tmp_path)


def test_what_cannot_be_read_is_one_line(causal, tmp_path):
    folder = causal[2]
    config = json.loads((folder / "config.json").read_text())
    weights = "diffusion_pytorch_model.safetensors"
    (tmp_path / weights).symlink_to(folder / weights)

    def refused(match, **changes):
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(UserError, match=match):
            read_tokenizer(tmp_path)

    refused("with regularizer vq is not one that was published", regularizer="vq")
    refused("with double_z False is not one that was published", double_z=False)
    refused("with codebook_size 7 is not one", **CODES | {"codebook_size": 7})
    refused("with out_channels 4 is not one that was published", out_channels=4)
    refused("lacks or has another kind of", z_channels=None)
    refused(r"levels that resample frames \(\[0, 5\]\) must be among", tempo_ds=[0, 5])
    refused("as many levels that resample as its encoder", tempo_ds=[1])


def test_settings_and_clips_that_are_refused(causal):
    coder = causal[1]
    with pytest.raises(UserError, match=r"a clip must have 1 \+ 4·k frames, got 16; use 13 or 17"):
        coder.layout(VideoShape(16, 8, 8))
    with pytest.raises(UserError, match="codes a clip as a whole"):
        coder.encode_chunk(None, video(5, 8, 8))
    with pytest.raises(UserError, match="unknown time 'causall'"):
        VidTok(4, time="causall", rngs=nnx.Rngs(0))
    symmetric = nnx.eval_shape(lambda: VidTok(4, time="symmetric", rngs=nnx.Rngs(0)))
    assert symmetric.layout(VideoShape(16, 16, 16)).only.shape == (4, 2, 2)
    with pytest.raises(UserError, match=r"a clip must have 4·k frames, got 17; use 16 or 20"):
        symmetric.layout(VideoShape(17, 16, 16))


@pytest.mark.parametrize(
    "ours, published, side",
    [
        ({}, {}, 8),
        ({"time": "symmetric"}, {"is_causal": False}, 8),
        # The table of codes of the class, which is no parameter, cannot be made without memory.
        ({"quantizer": {"name": "fsq", "levels": (8,) * 6}}, {"z_channels": 6, "double_z": False}, 8),
        (
            {"multipliers": (1, 2, 4, 4, 4), "spatial": range(4), "temporal": (2, 3), "spatial_up": range(1, 5)},
            {"ch_mult": [1, 2, 4, 4, 4]},
            16,
        ),
    ],
)
def test_sizes_of_the_published_networks(ours, published, side):
    model = nnx.eval_shape(lambda: VidTok(**ours, rngs=nnx.Rngs(0)))
    with torch.device("meta"):
        reference = diffusers.AutoencoderVidTok(**published)
    count = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    # The biases of the keys of both attentions, which change nothing, are left out.
    assert count == sum(p.numel() for p in reference.parameters()) - 2 * 512
    assert (model.compression.time, model.compression.height) == (4, side)
