"""Models as folders of diffusers: what its classes read there is what was read from theirs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import nnx
from ml_collections import ConfigDict
from safetensors import safe_open
from safetensors.numpy import load_file

import videogen
from videogen import tasks, tokenizers
from videogen.conditioning import Conditioning, EncodedText
from videogen.defaults import base, optimizer
from videogen.diffusion import LatentStatistics
from videogen.encoders.loading import Source, fill, tensors_of
from videogen.errors import UserError
from videogen.nn import Linear
from videogen.tasks.generator import TextToCodes
from videogen.training.folders import WEIGHTS, export_diffusers
from videogen.training.loading import Loaded, export_safetensors

VIDTOK = {"ch": 4, "ch_mult": [1, 2, 2], "z_channels": 3, "num_res_blocks": 1}
VIDTOK |= {"spatial_ds": [0, 1], "spatial_us": [1, 2], "tempo_us": [1, 2]}
LTX = {"latent_channels": 3, "decoder_spatio_temporal_scaling": [True, True], "patch_size": 2}
EARLY = {"block_out_channels": [4, 8], "layers_per_block": [1, 1, 1], "spatio_temporal_scaling": [True, True]}
EARLY |= {"down_block_types": ["LTXVideoDownBlock3D"] * 2, "downsample_type": ["conv"] * 2}
PLAIN = {"decoder_block_out_channels": [4, 8], "decoder_layers_per_block": [1, 2, 1], "decoder_causal": True}
PLAIN |= {"upsample_residual": [False] * 2, "upsample_factor": [1] * 2, "decoder_inject_noise": [False] * 3}
RESIDUAL = {"decoder_block_out_channels": [8, 16], "decoder_layers_per_block": [1, 1, 1]}
RESIDUAL |= {"upsample_residual": [True, True], "upsample_factor": [2, 2]}
FOLDED = {"block_out_channels": [4, 8, 8, 16], "layers_per_block": [1, 2, 1, 1], "spatio_temporal_scaling": [True] * 3}
FOLDED |= {"downsample_type": ["spatial", "temporal", "spatiotemporal"]}
TINY = {
    "wan 2.1": (
        "AutoencoderKLWan",
        {"base_dim": 4, "z_dim": 3, "latents_mean": [0.1, -0.2, 0.3], "latents_std": [2.8184, 1.0, 0.5]},
    ),
    "wan 2.2": (
        "AutoencoderKLWan",
        {"base_dim": 4, "decoder_base_dim": 8, "z_dim": 4, "is_residual": True, "patch_size": 2, "in_channels": 12}
        | {"out_channels": 12, "scale_factor_spatial": 16, "latents_mean": [0.1, -0.2, 0.3, 0.0]}
        | {"latents_std": [2.0, 1.0, 0.5, 4.0], "temperal_downsample": [True, True, False]},
    ),
    "cogvideox": (
        "AutoencoderKLCogVideoX",
        {"block_out_channels": [4, 4, 8, 8], "latent_channels": 3, "layers_per_block": 1, "norm_num_groups": 2},
    ),
    "hunyuan_video": (
        "AutoencoderKLHunyuanVideo",
        {"block_out_channels": [8, 8, 8, 16], "latent_channels": 3, "layers_per_block": 1, "norm_num_groups": 2},
    ),
    "hunyuan_video_15": (
        "AutoencoderKLHunyuanVideo15",
        {"block_out_channels": [8, 8, 16, 16], "latent_channels": 4, "layers_per_block": 1}
        | {"spatial_compression_ratio": 8},
    ),
    "cosmos": (
        "AutoencoderKLCosmos",
        {"latent_channels": 2, "encoder_block_out_channels": [4, 6, 8, 8], "num_layers": 1}
        | {"decode_block_out_channels": [6, 8, 8, 8], "latents_mean": [0.1, 0.2, -0.3, 0.4]}
        | {"latents_std": [1.0, 2.0, 0.5, 0.7]},
    ),
    "vidtok": ("AutoencoderVidTok", {**VIDTOK, "tempo_ds": [0, 1]}),
    "vidtok of codes": (
        "AutoencoderVidTok",
        {**VIDTOK, "tempo_ds": [1], "tempo_us": [2], "is_causal": False, "regularizer": "fsq", "double_z": False}
        | {"codebook_size": 8**3},
    ),
    "ltx 0.9.0": ("AutoencoderKLLTXVideo", {**LTX, **EARLY, **PLAIN}),
    "ltx 0.9.1": (
        "AutoencoderKLLTXVideo",
        {**LTX, **EARLY, **RESIDUAL, "timestep_conditioning": True, "decoder_inject_noise": [True, True, False]},
    ),
    "ltx 0.9.5": (
        "AutoencoderKLLTXVideo",
        {**LTX, **FOLDED, **RESIDUAL, "timestep_conditioning": True, "decoder_inject_noise": [False] * 3}
        | {"down_block_types": ["LTXVideo095DownBlock3D"] * 3, "layers_per_block": [1, 2, 1, 1]},
    ),
    "ltx 2": (
        "AutoencoderKLLTX2Video",
        {**FOLDED, "latent_channels": 4, "patch_size": 2, "down_block_types": ["LTX2VideoDownBlock3D"] * 3}
        | {"block_out_channels": [8, 8, 16], "decoder_block_out_channels": [8, 16, 32], "upsample_factor": [2] * 3}
        | {"decoder_layers_per_block": [1] * 4, "decoder_spatio_temporal_scaling": [True] * 3}
        | {"upsample_residual": [True] * 3, "decoder_inject_noise": [False] * 4}
        | {"upsample_type": ["spatiotemporal", "temporal", "spatial"]},
    ),
}


def published(name, folder):
    """A model of diffusers with random weights, and its folder."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    torch.manual_seed(0)
    kind, settings = TINY[name]
    model = getattr(diffusers, kind)(**settings).eval()
    with torch.no_grad():
        for each in model.parameters():
            each.add_(0.1 * torch.randn(each.shape))
    model.save_pretrained(folder)
    return model


def same_tensors(folder, model, left_out=()):
    """The file holds the state of a model to the bit, and zeros for biases of keys that networks here leave out."""
    found, expected = load_file(folder / WEIGHTS), {name: x.numpy() for name, x in model.state_dict().items()}
    assert {name: (x.shape, x.dtype) for name, x in found.items()} == {
        name: (x.shape, x.dtype) for name, x in expected.items()
    }
    for name, tensor in expected.items():
        if name.endswith(left_out):
            # Of queries, keys and values together the second third.
            thirds = np.split(tensor, 3) if "qkv" in name else [tensor[:0], tensor, tensor[:0]]
            tensor = np.concatenate([thirds[0], 0 * thirds[1], thirds[2]])
        np.testing.assert_array_equal(found[name], tensor, name)
    with safe_open(folder / WEIGHTS, "numpy") as file:
        assert file.metadata() == {"format": "pt"}


KEYS = (".to_qkv.bias", ".to_k.bias", ".attn_1.k.conv.bias", ".attn_1.k.bias")


@pytest.mark.slow
@pytest.mark.parametrize("name", list(TINY))
def test_what_is_written_is_what_was_read(name, tmp_path):
    import torch

    model, out = published(name, tmp_path / "theirs"), tmp_path / "ours"
    (line,) = export_diffusers(videogen.load(tmp_path / "theirs"), out)
    assert line.startswith(f"{out}: {TINY[name][0]}, ")
    same_tensors(out, model, KEYS)
    # Settings that the file of diffusers says are the same, and the class reads the folder.
    theirs, ours = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "theirs", out))
    assert {key: value for key, value in theirs.items() if ours.get(key, value) != value} == {}
    read = type(model).from_pretrained(out).eval()
    frames = 5 if model.config.get("is_causal", True) else 16
    video = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (1, 3, frames, 16, 16)).astype(np.float32))
    with torch.no_grad():
        first, second = (encoded(each, video) for each in (model, read))
        np.testing.assert_allclose(second, first, atol=1e-4)
        first, second = (decoded(each, first) for each in (model, read))
        np.testing.assert_allclose(second, first, atol=1e-4)


def encoded(model, video):
    """The latents of a model of diffusers."""
    found = model.encode(video)[0]
    return found if model.config.get("regularizer") == "fsq" else found.mode()


def decoded(model, latents):
    """What a model of diffusers makes of latents, at a time where it is told one and always with the same noise."""
    import torch

    torch.manual_seed(0)
    told = {"temb": torch.tensor([0.05])} if model.config.get("timestep_conditioning") else {}
    return model.decode(latents, **told)[0]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """The folder of a small pipeline of Wan with random weights, and its transformer."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("pipeline")
    torch.manual_seed(0)
    diffusers.AutoencoderKLWan(base_dim=4, z_dim=4, latents_mean=[0.1] * 4, latents_std=[2.0] * 4).save_pretrained(
        path / "vae"
    )
    sizes = {"num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "text_dim": 12}
    transformer = diffusers.WanTransformer3DModel(**sizes, ffn_dim=48, num_layers=2, eps=1e-5).eval()
    with torch.no_grad():
        for each in transformer.parameters():
            each.add_(0.1 * torch.randn(each.shape))
    transformer.save_pretrained(path / "transformer")
    sizes = {"vocab_size": 8, "d_model": 12, "d_kv": 6, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    config = transformers.UMT5Config(**sizes, feed_forward_proj="gated-gelu")
    transformers.UMT5EncoderModel(config).save_pretrained(path / "text_encoder")
    (path / "tokenizer").mkdir()
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"}
    (path / "tokenizer" / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model}))
    return path, transformer


@pytest.mark.slow
def test_a_generator_is_written_as_transformer_and_vae(pipeline, tmp_path, monkeypatch):
    import torch

    path, transformer = pipeline
    loaded = videogen.load(path)
    lines = export_diffusers(loaded, tmp_path / "published")
    assert len(lines) == 3 and "WanTransformer3DModel" in "".join(lines) and "text_encoder" in lines[-1]
    same_tensors(tmp_path / "published" / "transformer", transformer)
    theirs, ours = (json.loads((p / "transformer/config.json").read_text()) for p in (path, tmp_path / "published"))
    assert {key: value for key, value in theirs.items() if ours.get(key, value) != value} == {}
    # A run of our own: it is written as it was saved, and its own statistics of latents are in those of the VAE.
    run = export_safetensors(loaded, tmp_path / "run")
    export_diffusers(videogen.load(run.directory), tmp_path / "ours")
    same_tensors(tmp_path / "ours" / "transformer", transformer)
    # Only for weights in parts of bfloat16 the class needs the package accelerate.
    monkeypatch.setattr(type(transformer), "_keep_in_fp32_modules", None)
    read = type(transformer).from_pretrained(tmp_path / "ours" / "transformer").eval()
    rng = np.random.default_rng(0)
    latents, text = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 2, 4, 6, 4), (1, 512, 12)))
    prepared = run.trained.generator.prepare(Conditioning(EncodedText(jnp.asarray(text), jnp.ones((1, 512), bool))))
    found = run.trained.generator.predict(jnp.asarray(latents), jnp.array([0.3]), prepared)
    with torch.no_grad():
        given = np.moveaxis(latents, -1, 1).copy(), np.array([300.0], np.float32), text
        expected = read(*map(torch.from_numpy, given), return_dict=False)[0].numpy()
    np.testing.assert_allclose(np.moveaxis(found, -1, 1), expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_other_generators_are_refused(pipeline, tmp_path):
    loaded = videogen.load(pipeline[0])
    for key, value in (("causal", True), ("prefix_share", 0.1), ("noise", {"prediction": "epsilon"})):
        config = loaded.config.copy_and_resolve_references()
        with config.ignore_type():
            config.model[key] = value
        other = dataclasses.replace(loaded, config=config)
        if key == "prefix_share":
            export_diffusers(other, tmp_path / "fine")
            continue
        with pytest.raises(UserError, match="not a WanTransformer3DModel in every part"):
            export_diffusers(other, tmp_path / "other")
    own = dataclasses.replace(
        loaded, modules=loaded.modules | {"generator": TextToCodes(loaded.trained.generator, loaded.trained)}
    )
    with pytest.raises(UserError, match="has a text encoder of its own"):
        export_diffusers(own, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_the_statistics_of_a_generator_are_those_of_the_folder(pipeline, tmp_path):
    """As of a run over raw latents, which measures its own."""
    loaded = videogen.load(pipeline[0])
    config, generator = loaded.config.copy_and_resolve_references(), nnx.clone(loaded.trained)
    config.parts.tokenizer.model = config.parts.tokenizer.model.tokenizer
    generator.generator.statistics = LatentStatistics(4)
    generator.generator.statistics.mean.set_value(jnp.array([0.0, 1.0, 2.0, -1.0]))
    generator.generator.statistics.square.set_value(jnp.array([1.0, 5.0, 4.25, 1.25]))
    modules = {"generator": generator, "tokenizer": loaded.modules["tokenizer"].tokenizer}
    export_diffusers(dataclasses.replace(loaded, config=config, modules=modules), tmp_path)
    said = json.loads((tmp_path / "vae" / "config.json").read_text())
    np.testing.assert_allclose(said["latents_mean"], [0.0, 1.0, 2.0, -1.0], atol=1e-6)
    np.testing.assert_allclose(said["latents_std"], [1.0, 2.0, 0.5, 0.5], atol=1e-6)


def run(model, seed=0):
    """A run of a tokenizer, as it is loaded."""
    config = base("float32")
    config.task, config.model = "tokenizer", ConfigDict(model)
    config.optimizer, config.losses = {"tokenizer": optimizer()}, {"l2": {"name": "l2", "weight": 1.0}}
    config.data.source, config.data.clip = {"name": "shapes"}, {"frames": 5, "height": 32, "width": 32, "fps": 0.0}
    modules = {"tokenizer": tokenizers.build(model, rngs=nnx.Rngs(seed))}
    return Loaded(epath.Path("runs/none"), config, tasks.build(config), modules, 0)


SMALL = {"name": "wan", "width": 4, "decoder_width": 4, "latents": 2, "multipliers": (1, 2), "temporal": (True,)}


def test_a_run_of_our_own_is_written_and_read(tmp_path):
    """Without a normaliser the statistics are those of raw latents; settings that are not said are the defaults."""
    loaded = run({**SMALL, "blocks": 1})
    export_diffusers(loaded, tmp_path / "raw")
    said = json.loads((tmp_path / "raw" / "config.json").read_text())
    assert (said["_class_name"], said["latents_mean"], said["latents_std"]) == (
        "AutoencoderKLWan",
        [0.0] * 2,
        [1.0] * 2,
    )
    read = videogen.load(tmp_path / "raw").tokenizer
    both = (jax.tree.leaves(nnx.state(model)) for model in (loaded.tokenizer, read.tokenizer))
    for own, other in zip(*both, strict=True):
        np.testing.assert_array_equal(own, other)
    # Once more in the same place, with statistics.
    section = {"name": "normalised", "tokenizer": SMALL, "normaliser": {"name": "fixed", "shift": 0.5, "scale": 4.0}}
    export_diffusers(run(section), tmp_path / "raw")
    said = json.loads((tmp_path / "raw" / "config.json").read_text())
    assert (said["num_res_blocks"], said["latents_mean"], said["latents_std"]) == (2, [0.5] * 2, [0.25] * 2)


@pytest.mark.slow
def test_what_cannot_be_written_is_one_line(tmp_path):
    known = "folders of diffusers can be written of the tokenizers wan, "
    cvivit = {"name": "cvivit", "width": 16, "heads": 2, "mlp_width": 16, "encoder_layers": (1, 1)}
    cvivit |= {"decoder_layers": (1, 1), "patch": (2, 8, 8), "quantizer": {"name": "gaussian", "width": 2}}
    whitened = {"name": "normalised", "tokenizer": SMALL, "normaliser": {"name": "pca", "components": 2}}
    for model, match in (
        (cvivit, f"a 'cvivit' tokenizer has no class in diffusers; {known}"),
        (whitened, "mixes the channels"),
    ):
        with pytest.raises(UserError, match=match):
            export_diffusers(run(model), tmp_path / "out")
    held = tmp_path / "run"
    held.mkdir()
    (held / "config.json").write_text('{"task": "tokenizer"}')
    with pytest.raises(UserError, match="holds a run or an export"):
        export_diffusers(run(SMALL), held)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["config.json", "run"]


def test_tensors_of_is_the_way_back_of_fill():
    class Network(nnx.Module):
        def __init__(self):
            self.layer = Linear(6, 4, rngs=nnx.Rngs(0))
            self.stacked = nnx.Param(jnp.arange(6.0).reshape(2, 3))
            self.query_bias = nnx.Param(jnp.array([[1.0, 2.0]]))

    def table(_):
        return {
            "layer.kernel": Source(("a.weight|old", "b.weight")),
            "layer.bias": Source(("a.bias", "b.bias")),
            "stacked": "layers.{}.scale",
            "query_bias": Source(("qk.bias",), part=(0, 1, 2)),
        }

    network = Network()
    found = tensors_of(network, table(network), layouts={"?.weight": (1, 3), "*.scale": (1, -1)}, zeros=["c.bias"])
    assert {name: x.shape for name, x in found.items()} == {
        **{"a.weight": (2, 2, 1, 3), "b.weight": (2, 2, 1, 3), "a.bias": (2,), "b.bias": (2,), "qk.bias": (4,)},
        **{"layers.0.scale": (1, 3), "layers.1.scale": (1, 3)},
    }
    np.testing.assert_array_equal(found["qk.bias"], [1, 2, 0, 0])
    np.testing.assert_array_equal(found["b.weight"][1, 0, 0], network.layer.kernel.get_value()[::2, 3])
    read = fill(nnx.eval_shape(Network), table(None), found, "a file")
    for own, other in zip(jax.tree.leaves(nnx.state(network)), jax.tree.leaves(nnx.state(read)), strict=True):
        np.testing.assert_array_equal(own, other)
