"""The VAEs of LTX beside their classes in diffusers, on random weights; noise, time, original files, refusals."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from tests.tokenizers.beside import ours, run, theirs
from videogen.encoders.files import Weights
from videogen.errors import UserError
from videogen.nn import named_key
from videogen.tokenizers import build
from videogen.tokenizers.ltx import Ltx
from videogen.tokenizers.public import describe, read_tokenizer
from videogen.tokenizers.public.ltx import LTX, VERSIONS, ltx_names
from videogen.tokenizers.staged import Noise

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

EARLY = {"block_out_channels": (4, 8), "layers_per_block": (1, 1, 1), "spatio_temporal_scaling": (True, True)}
PLAIN = {"decoder_block_out_channels": (4, 8), "decoder_layers_per_block": (1, 2, 1)}
RESIDUAL = {"decoder_block_out_channels": (8, 16), "decoder_layers_per_block": (1, 1, 1)}
RESIDUAL |= {"upsample_residual": (True, True), "upsample_factor": (2, 2)}
FOLDED = {"block_out_channels": (4, 8, 8, 16), "layers_per_block": (1, 2, 1, 1), "spatio_temporal_scaling": (True,) * 3}
FOLDED |= {"downsample_type": ("spatial", "temporal", "spatiotemporal")}
TWICE = {"decoder_spatio_temporal_scaling": (True, True), "patch_size": 2}
TINY = {
    "0.9.0": {"latent_channels": 3, **EARLY, **PLAIN, **TWICE},
    "0.9.1": {"latent_channels": 3, **EARLY, **RESIDUAL, **TWICE, "timestep_conditioning": True}
    | {"decoder_inject_noise": (True, True, False)},
    "0.9.5": {"latent_channels": 3, **FOLDED, **RESIDUAL, **TWICE, "timestep_conditioning": True}
    | {"down_block_types": ("LTXVideo095DownBlock3D",) * 3, "decoder_inject_noise": (False,) * 3},
    "causal": {"latent_channels": 3, **EARLY, **PLAIN, **TWICE, "decoder_causal": True},
    "2": {"latent_channels": 4, **FOLDED, "patch_size": 2, "down_block_types": ("LTX2VideoDownBlock3D",) * 3}
    | {"block_out_channels": (8, 8, 16), "decoder_block_out_channels": (8, 16, 32), "decoder_inject_noise": False}
    | {"decoder_layers_per_block": (1,) * 4, "decoder_spatio_temporal_scaling": True, "upsample_residual": True}
    | {"upsample_type": ("spatiotemporal", "temporal", "spatial"), "upsample_factor": (2,) * 3},
}
TIMED = ("0.9.1", "0.9.5")
PUBLISHED = {
    "0.9.0": {},
    "0.9.1": {"decoder_block_out_channels": (256, 512, 1024), "decoder_layers_per_block": (5, 6, 7, 8)}
    | {"decoder_spatio_temporal_scaling": (True,) * 3, "decoder_inject_noise": (True, True, True, False)}
    | {"upsample_residual": (True,) * 3, "upsample_factor": (2,) * 3, "timestep_conditioning": True},
    "0.9.5": {"block_out_channels": (128, 256, 512, 1024, 2048), "down_block_types": ("LTXVideo095DownBlock3D",) * 4}
    | {"decoder_block_out_channels": (256, 512, 1024), "decoder_layers_per_block": (5,) * 4}
    | {"decoder_spatio_temporal_scaling": (True,) * 3, "decoder_inject_noise": (False,) * 4}
    | {"upsample_residual": (True,) * 3, "upsample_factor": (2,) * 3, "timestep_conditioning": True}
    | {"layers_per_block": (4, 6, 6, 2, 2), "spatio_temporal_scaling": (True,) * 4}
    | {"downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal")},
    "2": {},
}
"""What the folders of diffusers of these versions say (its script of conversion; of 0.9.5 the folder itself)."""


def class_of(version):
    return diffusers.AutoencoderKLLTX2Video if version == "2" else diffusers.AutoencoderKLLTXVideo


def published(version, folder):
    """A model of diffusers with random weights, and its folder."""
    torch.manual_seed(0)
    model = class_of(version)(**TINY[version]).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name or "per_channel_scale" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape))
            if "multiplier" in name:
                parameter.mul_(0.97)
        model.latents_mean.copy_(torch.randn(model.latents_mean.shape))
        model.latents_std.copy_(0.5 + torch.rand(model.latents_std.shape))
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """``version -> (the model of diffusers, ours, its folder)``, each made when it is first asked for."""
    known = {}

    def get(version):
        if version not in known:
            folder = tmp_path_factory.mktemp("ltx")
            known[version] = published(version, folder), read_tokenizer(folder), folder
        return known[version]

    return get


def video(frames, side=16, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (2, frames, side, side + 8, 3)).astype(np.float32)


def picture(*shape):
    """Noise that is known: the same for both implementations."""
    return np.sin(np.arange(np.prod(shape)) * 12.9898).reshape(shape).astype(np.float32)


SLOW = [("0.9.0", 1, 24), ("0.9.0", 9, 16), ("0.9.1", 17, 24), ("0.9.5", 1, 16), ("0.9.5", 9, 24)]
SLOW += [("causal", 5, 24), ("2", 1, 24), ("2", 9, 16)]


@pytest.mark.parametrize(
    "version, frames, side", [("0.9.1", 5, 16), *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in SLOW)]
)
def test_it_codes_as_its_publication(made, monkeypatch, version, frames, side):
    """With times that differ by example, and noise that blocks add: it is drawn by nobody here, but given to both."""
    reference, model, _ = made(version)
    x, timed = video(frames, side), version in TIMED
    times = np.float32([0.05, 0.4]) if timed else None
    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(torch, "randn", lambda shape, **_: torch.from_numpy(picture(*shape)))
        expected = ours(reference.encode(theirs(x)).latent_dist.parameters)
        latents = expected[..., : expected.shape[-1] // 2]
        pixels = ours(reference.decode(theirs(latents), torch.from_numpy(times) if timed else None).sample)
    found = run(model.tokenizer, "encode", x).values
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    monkeypatch.setattr(Noise, "__call__", lambda self, y: picture(*y.shape[2:4])[None, None, :, :, None])
    settings = {"time": times, "noise_scale": 0.0} if timed else {}
    decoded = run(model.tokenizer, "decode", latents, **settings)
    assert decoded.shape == x.shape
    np.testing.assert_allclose(decoded, pixels, atol=1e-4 * np.abs(pixels).max())


@pytest.mark.slow
def test_without_noise_it_is_the_publication_without_its_draws(made, monkeypatch):
    reference, model, _ = made("0.9.1")
    latents = np.random.default_rng(1).normal(size=(2, 2, 2, 3, 3)).astype(np.float32)
    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(torch, "randn", lambda shape, **_: torch.zeros(shape))
        # The published default, which the pipelines of diffusers take from the user.
        pixels = ours(reference.decode(theirs(latents), torch.tensor([0.05, 0.05])).sample)
    found = run(model.tokenizer, "decode", latents, noise_scale=0.0, injected=False)
    np.testing.assert_allclose(found, pixels, atol=1e-4 * np.abs(pixels).max())
    assert model.drawn_with == {"time": 0.05, "noise_scale": 0.025}
    noisy = run(model.tokenizer, "decode", latents, noise_scale=0.0)
    assert np.abs(noisy - pixels).max() > 0.01 * np.abs(pixels).max()


@pytest.mark.slow
def test_noise_is_mixed_into_raw_latents_and_is_that_of_the_keys(made):
    _, model, _ = made("0.9.1")
    latents = np.random.default_rng(1).normal(size=(2, 2, 2, 3, 3)).astype(np.float32)
    graph, state = nnx.split(model.tokenizer)

    @jax.jit
    def decode(state, latents, keys, share):
        return nnx.merge(graph, state).decode(latents, keys=keys, noise_scale=share)

    keys = jax.random.split(jax.random.key(3), 2)
    noise = jnp.stack([jax.random.normal(key, (2, 2, 3, 3)) for key in named_key(keys, "latents")])
    drawn = decode(state, latents, keys, 0.25)
    mixed = decode(state, 0.75 * latents + 0.25 * noise, keys, 0.0)
    np.testing.assert_allclose(drawn, mixed, atol=1e-5)
    # Example 1 does not depend on example 0, and other keys draw another clip.
    others = decode(state, latents[::-1], keys[::-1], 0.25)
    np.testing.assert_allclose(others, drawn[::-1], atol=1e-5)
    assert np.abs(decode(state, latents, jax.random.key(4), 0.25) - drawn).max() > 1e-2
    # Without keys it is always the same noise, of the published share, for every clip.
    default = run(model.tokenizer, "decode", latents)
    same = decode(state, latents, jnp.stack([jax.random.key(0)] * 2), 0.025)
    np.testing.assert_allclose(default, same, atol=1e-5)


@pytest.mark.slow
def test_in_training_noise_is_drawn_by_the_key_and_gradients_reach_all_that_is_trained(made):
    _, model, _ = made("0.9.1")
    graph, parameters, rest = nnx.split(model.tokenizer, nnx.Param, ...)
    latents = np.random.default_rng(1).normal(size=(2, 1, 2, 2, 3)).astype(np.float32)

    @jax.jit
    def loss(parameters, key):
        model = nnx.merge(graph, parameters, rest)
        made = model.denoise(latents, jnp.zeros((2, 1, 16, 16, 3)), key)
        return jnp.mean(jnp.sin(made)), made

    (_, first), gradients = jax.value_and_grad(loss, has_aux=True)(parameters, jax.random.key(0))
    assert np.abs(loss(parameters, jax.random.key(1))[1] - first).max() > 1e-3
    still = [path for path, x in nnx.to_flat_state(gradients) if not np.any(x.get_value())]
    # The scale of times is no parameter, and the encoder was not asked.
    assert {path[0] for path in still} == {"encoder"}


def test_noise_of_blocks_is_one_picture_for_all_frames_and_another_for_each_call():
    noise = Noise(jax.random.split(jax.random.key(0), 2))
    x = jnp.zeros((2, 5, 64, 64, 3))
    first, second = noise(x), noise(x)
    assert first.shape == (2, 1, 64, 64, 1)
    assert abs(float(first.mean())) < 0.05 and float(first.std()) == pytest.approx(1, abs=0.05)
    for other in (second[0], first[1]):
        assert abs(float((first[0] * other).mean())) < 0.06


def test_latents_are_normalised_once_by_the_tensors_of_the_file(made):
    reference, model, _ = made("0.9.1")
    raw = np.random.default_rng(2).normal(size=(1, 2, 2, 3, 3)).astype(np.float32)
    mean, deviation = (x.numpy() for x in (reference.latents_mean, reference.latents_std))
    expected = (raw - mean) / deviation
    np.testing.assert_allclose(model.normaliser.normalise(raw), expected, atol=1e-6)
    np.testing.assert_allclose(model.normaliser.restore(expected), raw, atol=1e-5)
    assert model.normalised and not model.tokenizer.normalised


@pytest.mark.slow
@pytest.mark.parametrize("version", ["0.9.0", "0.9.5"])
def test_the_first_latent_is_the_picture_and_chunks_are_the_whole(made, version):
    _, model, _ = made(version)
    coder, x = model.tokenizer, video(13)
    assert coder.prefix_equal
    whole = np.asarray(run(coder, "encode", x).values)
    tolerance = 1e-5 * np.abs(whole).max()
    np.testing.assert_allclose(run(coder, "encode", x[:, :1]).values, whole[:, :1], atol=tolerance)
    np.testing.assert_allclose(run(coder, "encode", x[:, :9]).values, whole[:, :3], atol=tolerance)
    for cuts in ((1, 5, 13), (9, 13)):
        cache, parts, start = None, [], 0
        for stop in cuts:
            cache, part = run(coder, "encode_chunk", cache, x[:, start:stop])
            parts.append(part.values)
            start = stop
        np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=2 * tolerance)
    # The decoder sees ahead.
    assert not coder.streams and not model.streams
    with pytest.raises(UserError, match="as a whole"):
        coder.decode_chunk(None, whole[..., :3])


@pytest.mark.slow
@pytest.mark.parametrize("version", ["causal", "2"])
def test_a_causal_decoder_decodes_in_chunks(made, version):
    _, model, _ = made(version)
    coder = model.tokenizer
    assert coder.streams and model.streams
    latents = np.random.default_rng(1).normal(size=(2, 4, 2, 3, coder.quantizer.width)).astype(np.float32)
    whole = np.asarray(run(coder, "decode", latents))
    for cuts in ((1, 2, 4), (3, 4)):
        cache, parts, start = None, [], 0
        for stop in cuts:
            cache, part = run(coder, "decode_chunk", cache, latents[:, start:stop])
            parts.append(part)
            start = stop
        np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=2e-5 * np.abs(whole).max())


def test_the_frame_rule_is_that_of_the_publication():
    model = nnx.eval_shape(lambda: Ltx(rngs=nnx.Rngs(0)))
    with pytest.raises(UserError, match=r"1 \+ 8·k frames, got 5; use 1 or 9"):
        model.encode(jnp.zeros((1, 5, 32, 32, 3)))
    with pytest.raises(UserError, match="clip width 48 is no multiple of the patch 32"):
        model.encode(jnp.zeros((1, 9, 32, 48, 3)))
    with pytest.raises(UserError, match=r"8·k frames, got 4"):
        model.encode_chunk((), jnp.zeros((1, 4, 32, 32, 3)))


# Original files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", list(PUBLISHED))
def test_published_versions_have_the_names_and_sizes_of_diffusers(version):
    """The original names, renamed by the loader of diffusers, are those of its folder: of every parameter of ours."""
    with torch.device("meta"):
        reference = class_of(version)(**PUBLISHED[version])
    shapes = {name: tuple(x.shape) for name, x in reference.state_dict().items()}
    description = described(class_of(version).__name__, PUBLISHED[version])
    model = nnx.eval_shape(lambda: build(description.model, rngs=nnx.Rngs(0)))
    flat = {".".join(map(str, path)): x.get_value() for path, x in nnx.to_flat_state(nnx.state(model))}
    assert (model.compression.time, model.compression.height, model.compression.width) == (8, 32, 32)
    assert sum(x.size for x in flat.values()) == sum(p.numel() for p in reference.parameters())
    new, old = ltx_names(model), ltx_names(model, original=True)
    numbers, wanted = {}, {}
    for number, path in enumerate(flat):
        name = next(each for each in new[path].split("|") if each in shapes)
        assert np.prod(shapes.pop(name)) == flat[path].size
        # Of a shortcut the original has a plain convolution, of the others the inner one where there are two.
        choices = old[path].split("|")
        plain = "shortcut" in path or "skip.kernel" in path or "skip.bias" in path or ".conv.conv." not in name
        numbers["vae." + choices[-1 if plain else 0]] = torch.full((1, 1), number)
        wanted[name] = number
    assert set(shapes) == {"latents_mean", "latents_std"}
    if version == "0.9.5":
        # The loader knows the version by a width.
        key = "vae.encoder.conv_out.conv.weight"
        numbers[key] = torch.full((1, 2048), int(numbers[key][0, 0]))
    statistics = ("mean-of-means", "std-of-means", "mean-of-stds", "channel")
    numbers |= {f"vae.per_channel_statistics.{name}": torch.zeros(1, 1) for name in statistics}
    loaders = diffusers.loaders.single_file_utils
    second = version == "2"
    convert = loaders.convert_ltx2_vae_to_diffusers if second else loaders.convert_ltx_vae_checkpoint_to_diffusers
    renamed = convert(dict(numbers))
    assert {name: int(x[0, 0]) for name, x in renamed.items() if not name.startswith("latents_")} == wanted
    assert {"latents_mean", "latents_std"} <= set(renamed)


def described(name, settings):
    """What the config of a folder of diffusers says."""
    return LTX.of_config({"_class_name": name, **json.loads(json.dumps(settings))})


@pytest.mark.parametrize("version", list(VERSIONS))
def test_the_config_of_an_original_file_says_the_same_as_that_of_the_folder(version, tmp_path):
    """Also where its header has lost it, so that the tensors must tell the version."""
    wanted = dict(described("AutoencoderKLLTXVideo", PUBLISHED[version]).model)
    tensors = {"vae.encoder.down_blocks.0.res_blocks.0.conv1.conv.weight": np.zeros(1, np.float32)}
    tensors["vae.encoder.conv_in.conv.weight"] = np.zeros((128, 48), np.float32)
    width = {"0.9.0": 512}.get(version, 1024)
    tensors["vae.decoder.conv_in.conv.weight"] = np.zeros((width, 128), np.float32)
    if version != "0.9.0":
        tensors["vae.decoder.last_scale_shift_table"] = np.zeros(1, np.float32)
    if version == "0.9.5":
        tensors["vae.encoder.down_blocks.1.conv.conv.weight"] = np.zeros(1, np.float32)
    for metadata in (None, {"config": json.dumps({"vae": VERSIONS[version], "transformer": {}})}):
        save_file(tensors, tmp_path / "a.safetensors", metadata=metadata)
        description = describe(tmp_path / "a.safetensors").description
        found = dict(description.model)
        assert filled(found.pop("encoder")) == filled(wanted["encoder"])
        assert filled(found.pop("decoder")) == filled(wanted["decoder"])
        assert found == {name: value for name, value in wanted.items() if name not in ("encoder", "decoder")}


def test_ltx_2_mirrors_frames_in_its_decoder_unless_its_file_says_otherwise(tmp_path):
    tensors = {"encoder.down_blocks.0.res_blocks.0.conv1.conv.weight": np.zeros(1, np.float32)}
    tensors["encoder.down_blocks.1.conv.conv.weight"] = np.zeros(1, np.float32)
    tensors["encoder.conv_in.conv.weight"] = np.zeros((128, 48), np.float32)
    tensors["decoder.conv_in.conv.weight"] = np.zeros((1024, 128), np.float32)
    path = tmp_path / "a.safetensors"
    config = {**VERSIONS["0.9.5"], "timestep_conditioning": False, "causal_decoder": True}
    wanted = described("AutoencoderKLLTX2Video", {}).model
    for said, frames in (
        ({}, ("zeros", "mirrored")),
        ({"spatial_padding_mode": "zeros"}, ("zeros", "zeros")),
        ({"encoder_spatial_padding_mode": "reflect", "decoder_spatial_padding_mode": "zeros"}, ("mirrored", "zeros")),
    ):
        save_file(tensors, path, metadata={"config": json.dumps({"vae": config | said})})
        found = describe(path).description.model
        assert found["frames"] == frames
        assert filled(found["encoder"]) == filled(wanted["encoder"])
        assert filled(found["decoder"]) == filled(wanted["decoder"])
        assert {k: v for k, v in found.items() if k not in ("encoder", "decoder", "frames")} == {
            k: v for k, v in wanted.items() if k not in ("encoder", "decoder", "frames")
        }
    assert wanted["frames"] == ("zeros", "mirrored") and wanted["causal"] and "time" not in wanted
    save_file(tensors, path)
    with pytest.raises(UserError, match="its header has no config"):
        describe(path)


def filled(stages):
    """Stages with the settings that may be left out."""
    common = {"noise": False, "around": False, "stride": (2, 2, 2)}
    return [common | {k: v for k, v in stage.items() if stage["name"] != "strided" or k != "width"} for stage in stages]


TINY_CONFIG = {
    **{"_class_name": "CausalVideoAutoencoder", "dims": 3, "latent_channels": 3, "patch_size": 2},
    **{"norm_layer": "pixel_norm", "latent_log_var": "uniform", "timestep_conditioning": True},
    "encoder_blocks": [
        *(["res_x", 1], ["compress_all", 1], ["res_x_y", 1], ["res_x", {"num_layers": 1}], ["compress_all", {}]),
        ["res_x", 1],
    ],
    "decoder_blocks": [
        *(["res_x", {"num_layers": 1, "inject_noise": True}], ["compress_all", {"residual": True, "multiplier": 2}]),
        *(["res_x", {"num_layers": 1, "inject_noise": True}], ["compress_all", {"residual": True, "multiplier": 2}]),
        ["res_x", {"num_layers": 1, "inject_noise": False}],
    ],
}


def original_tensors(made):
    """The tensors of the tiny 0.9.1 by their original names, without a prefix."""
    _, model, folder = made("0.9.1")
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    new, old = (ltx_names(model.tokenizer, original) for original in (False, True))
    renamed = {}
    for path, names in new.items():
        # Of the two names of a convolution that is a shortcut or stands alone, the plain one is original.
        for a, b in zip(names.split("|"), old[path].split("|"), strict=True):
            if a in tensors:
                renamed[old[path].split("|")[-1] if "shortcut" in a else b] = tensors[a]
    for name, statistic in (("mean", "mean-of-means"), ("std", "std-of-means")):
        renamed[f"per_channel_statistics.{statistic}"] = tensors[f"latents_{name}"]
    assert len(renamed) == len(tensors)
    return renamed | {"per_channel_statistics.mean-of-stds": np.ones(3, np.float32)}


@pytest.mark.parametrize("prefix", ["vae.", ""])
def test_the_original_file_is_the_folder(made, tmp_path, prefix):
    tensors = {prefix + name: x for name, x in original_tensors(made).items()}
    if prefix:
        tensors |= {
            "model.diffusion_model.patchify_proj.weight": np.ones(2, np.float32),
            "alone": np.ones(1, np.float32),
        }
        tensors["audio_vae.encoder.conv_in.conv.weight"] = np.ones(2, np.float32)
    path, metadata = tmp_path / "ltx.safetensors", {"config": json.dumps({"vae": TINY_CONFIG, "scheduler": {}})}
    save_file(tensors, path, metadata=metadata)
    assert Weights(path).metadata == metadata
    one, other = read_tokenizer(path), made("0.9.1")[1]
    assert nnx.graphdef(one.tokenizer.decoder) == nnx.graphdef(other.tokenizer.decoder)
    for a, b in zip(jax.tree.leaves(nnx.state(one)), jax.tree.leaves(nnx.state(other)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.drawn_with == other.drawn_with
    # What it lacks and what it has too much is named as the file names it.
    name = f"{prefix}decoder.up_blocks.1.conv.conv.bias"
    save_file({k: v for k, v in tensors.items() if k != name}, path, metadata=metadata)
    with pytest.raises(UserError, match=f"lacks the tensors {name}"):
        read_tokenizer(path)
    save_file({**tensors, name: np.ones(7, np.float32)}, path, metadata=metadata)
    with pytest.raises(UserError, match=rf"{name} has shape \[7\]"):
        read_tokenizer(path)
    save_file({**tensors, f"{prefix}extra": np.ones(1, np.float32)}, path, metadata=metadata)
    with pytest.raises(UserError, match=f"1 tensors that are not known, the first is '{prefix}extra'"):
        read_tokenizer(path)
    statistic = f"{prefix}per_channel_statistics.std-of-means"
    save_file({k: v for k, v in tensors.items() if k != statistic}, path, metadata=metadata)
    with pytest.raises(UserError, match=f"lacks the tensors {statistic}"):
        read_tokenizer(path)


@pytest.mark.parametrize(
    "match, text",
    [
        ("is no JSON text", "{"),
        ("is no JSON text", "[" * 100_000),
        ("is no dictionary", "[]"),
        ("is no dictionary", json.dumps({"vae": 3})),
        ("is of a 'Other'", json.dumps({"vae": TINY_CONFIG | {"_class_name": "Other"}})),
        (
            "with norm_layer 'group_norm' cannot be read",
            json.dumps({"vae": TINY_CONFIG | {"norm_layer": "group_norm"}}),
        ),
        ("another kind of 'NoneType'", json.dumps({"vae": {}})),
        ("lacks or has another kind", json.dumps({"vae": TINY_CONFIG | {"encoder_blocks": [["res_x", {}]]}})),
        ("a block 'attn_res_x'", json.dumps({"vae": TINY_CONFIG | {"decoder_blocks": [["attn_res_x", 1]]}})),
        ("a block 'compress'", json.dumps({"vae": TINY_CONFIG | {"encoder_blocks": [["compress", 1]]}})),
        ("at most 1000, got 1000000", json.dumps({"vae": TINY_CONFIG | {"encoder_blocks": [["res_x", 10**6]]}})),
        ("as far as the other goes up", json.dumps({"vae": TINY_CONFIG | {"encoder_blocks": [["res_x", 1]]}})),
        ("padded with 'circular'", json.dumps({"vae": TINY_CONFIG | {"spatial_padding_mode": "circular"}})),
    ],
)
def test_headers_that_cannot_be_read_are_one_line(made, tmp_path, match, text):
    tensors = {"vae." + name: x for name, x in original_tensors(made).items()}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"config": text})
    with pytest.raises(UserError, match=match) as error:
        read_tokenizer(tmp_path / "a.safetensors")
    assert "\n" not in str(error.value)


# Folders -------------------------------------------------------------------------------------------------------------


def test_a_tensor_too_many_or_too_few_is_named(made, tmp_path):
    reference, _, folder = made("0.9.1")
    tensors = {name: x.numpy() for name, x in reference.state_dict().items()}
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    for match, changed in (
        ("1 tensors that are not known, the first is 'extra'", {**tensors, "extra": np.zeros(1, np.float32)}),
        ("lacks the tensors latents_std", {k: v for k, v in tensors.items() if k != "latents_std"}),
        (
            "lacks the tensors decoder.timestep_scale_multiplier",
            {k: v for k, v in tensors.items() if k != "decoder.timestep_scale_multiplier"},
        ),
        (r"decoder.conv_out.conv.bias has shape \[7\]", {**tensors, "decoder.conv_out.conv.bias": np.zeros(7, "f4")}),
        ("must be 3 numbers each, got 2", {**tensors, "latents_mean": np.zeros(2, np.float32)}),
        ("must be positive", {**tensors, "latents_std": np.zeros(3, np.float32)}),
    ):
        save_file(changed, path)
        with pytest.raises(UserError, match=match):
            read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "match, changes",
    [
        ("with encoder_causal=False is not one", {"encoder_causal": False}),
        ("with patch_size_t=2 is not one", {"patch_size_t": 2}),
        ("with scaling_factor=0.5 is not one", {"scaling_factor": 0.5}),
        ("4 colour channels cannot be decoded from 3", {"out_channels": 4}),
        ("an encoder of Other cannot be read", {"down_block_types": ["Other"]}),
        ("layers_per_block has 1 values, and there are 3 blocks", {"layers_per_block": [1]}),
        ("too few values for 2 blocks", {"decoder_layers_per_block": [1, 1]}),
        ("from 8 to 6 channels as the config has it", {"decoder_block_out_channels": [6, 16]}),
        ("lacks or has another kind of", {"latent_channels": None}),
        ("as far as the other goes up", {"decoder_spatio_temporal_scaling": [False, True], "upsample_factor": [1, 2]}),
    ],
)
def test_configs_that_no_published_model_has_are_refused(made, tmp_path, match, changes):
    _, _, folder = made("0.9.1")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "diffusion_pytorch_model.safetensors").symlink_to(folder / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(UserError, match=match):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "match, changes",
    [
        ("unknown stage 'block'; did you mean 'blocks'", {"encoder": ({"name": "block"},)}),
        ("changes nothing", {"encoder": ({"name": "widen", "width": 8},)}),
        ("cannot make 6 channels of 8", {"encoder": ({"name": "fold", "width": 6},)}),
        (
            "cannot lay out 12 channels",
            {"decoder_width": 12, "decoder": ({"name": "unfold", "width": 8, "around": True},)},
        ),
        ("a network has 1 to 1000 stages, got 0", {"encoder": ()}),
        ("at most 2, got 3", {"encoder": ({"name": "strided", "stride": (3, 1, 1)},)}),
        ("unknown entry|unknown frames", {"frames": ("zeros", "other")}),
    ],
)
def test_stages_that_do_not_fit_are_refused(match, changes):
    config = {"name": "ltx", "width": 8, "decoder_width": 8, "latents": 2, **changes}
    with pytest.raises(UserError, match=match):
        nnx.eval_shape(lambda: build(config, rngs=nnx.Rngs(0)))


def test_settings_of_a_decoder_without_a_time_are_refused():
    stages = ({"name": "blocks", "count": 1},)
    model = Ltx(4, 4, 2, encoder=stages, decoder=stages, patch=1, rngs=nnx.Rngs(0))
    assert model.drawn_with == {}
    for settings in ({"time": 0.1}, {"noise_scale": 0.0}):
        with pytest.raises(UserError, match="is told no time"):
            model.decode(jnp.zeros((1, 1, 2, 2, 2)), **settings)
