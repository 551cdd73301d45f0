"""Encoders of pictures and videos against ``transformers`` on random weights, and their own preprocessing."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests.encoders.oracles import assert_near, channels_first, pixels, randomise
from videogen.encoders.clip import ClipImage
from videogen.encoders.dinov2 import DinoV2
from videogen.encoders.preprocessing import CLIP_STATISTICS, Preprocessing
from videogen.encoders.siglip import SiglipImage, sides_for
from videogen.encoders.videomae import VideoMae
from videogen.encoders.vjepa2 import Vjepa2
from videogen.errors import UserError

SIZE = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3)
MLP = dict(intermediate_size=40)


def saved(model, path):
    randomise(model).save_pretrained(path)
    return model


def clip(path, act="quick_gelu"):
    vision = transformers.CLIPVisionConfig(**SIZE, **MLP, image_size=24, patch_size=8, hidden_act=act)
    text = transformers.CLIPTextConfig(**SIZE, **MLP, vocab_size=50, eos_token_id=49, bos_token_id=48)
    config = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=12)
    return saved(transformers.CLIPModel(config), path)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_clip(tmp_path, act):
    theirs, x = clip(tmp_path, act), pixels(2, 24, 24)
    ours = ClipImage.load(tmp_path)
    assert_near(ours.encode(x), theirs.get_image_features(channels_first(x)).pooler_output)
    expected = theirs.vision_model(channels_first(x)).last_hidden_state
    assert_near(ours.tokens(x), expected)
    projected = theirs.visual_projection(theirs.vision_model.post_layernorm(expected))
    assert_near(jax.jit(lambda x: ours.read(x, "projected"))(x), projected)
    assert ours.grid_width("projected") == 12 and ours.grid_width() == 24
    assert len(ours.hash) == 64 and ours.width == 12


def test_clip_at_another_size(tmp_path):
    theirs, x = clip(tmp_path), pixels(1, 32, 16)
    expected = theirs.vision_model(channels_first(x), interpolate_pos_encoding=True).last_hidden_state
    assert_near(ClipImage.load(tmp_path).tokens(x), expected)


def test_clip_without_an_activation_has_quick_gelu(tmp_path):
    clip(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    expected = ClipImage.load(tmp_path).encode(pixels(1, 24, 24))
    for part in ("vision_config", "text_config"):
        del config[part]["hidden_act"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    np.testing.assert_array_equal(ClipImage.load(tmp_path).encode(pixels(1, 24, 24)), expected)


def test_weights_alone_do_not_say_their_activation(tmp_path):
    """Weights trained with QuickGELU run with GELU without a word: features are off by up to 1.3."""
    clip(tmp_path)
    (tmp_path / "config.json").unlink()
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(UserError, match="config.json"):
            ClipImage.load(path)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(24, 24), (16, 16), (40, 16)])
@pytest.mark.parametrize("kind", ["plain", "swiglu", "registers"])
def test_dinov2(tmp_path, kind, size):
    sizes = dict(**SIZE, image_size=24, patch_size=8)
    if kind == "registers":
        config = transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=2)
        theirs = transformers.Dinov2WithRegistersModel(config)
    else:
        theirs = transformers.Dinov2Model(transformers.Dinov2Config(**sizes, use_swiglu_ffn=kind == "swiglu"))
    theirs, x, ours = saved(theirs, tmp_path), pixels(2, *size), DinoV2.load(tmp_path)
    expected = theirs(channels_first(x))
    assert_near(ours.tokens(x), expected.last_hidden_state)
    assert_near(ours.encode(x), expected.pooler_output)


def test_siglip(tmp_path):
    vision = transformers.SiglipVisionConfig(**SIZE, **MLP, image_size=24, patch_size=8)
    text = transformers.SiglipTextConfig(**SIZE, **MLP, vocab_size=50)
    config = transformers.SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())
    theirs, x = saved(transformers.SiglipModel(config), tmp_path), pixels(2, 24, 24)
    ours, expected = SiglipImage.load(tmp_path), theirs.vision_model(channels_first(x), output_hidden_states=True)
    assert_near(ours.tokens(x), expected.last_hidden_state)
    assert_near(ours.encode(x), expected.pooler_output)
    assert_near(jax.jit(lambda x: ours.read(x, "penultimate"))(x), expected.hidden_states[-2])
    x = pixels(1, 32, 16)
    expected = theirs.vision_model(channels_first(x), interpolate_pos_encoding=True).pooler_output
    assert_near(ours.encode(x), expected)


@pytest.mark.slow
@pytest.mark.parametrize("grid", [(4, 4), (2, 3), (2, 8)])
def test_siglip2_at_any_aspect_ratio(tmp_path, grid):
    vision = transformers.Siglip2VisionConfig(**SIZE, **MLP, num_patches=16, patch_size=8)
    text = transformers.Siglip2TextConfig(**SIZE, **MLP, vocab_size=50)
    config = transformers.Siglip2Config(text_config=text.to_dict(), vision_config=vision.to_dict())
    theirs, x = saved(transformers.Siglip2Model(config), tmp_path), pixels(2, 8 * grid[0], 8 * grid[1])
    patches = torch.tensor(x).reshape(2, grid[0], 8, grid[1], 8, 3).swapaxes(2, 3).reshape(2, -1, 192)
    mask = torch.ones(2, patches.shape[1], dtype=torch.long)
    expected = theirs.vision_model(patches, mask, torch.tensor([grid, grid]))
    ours = SiglipImage.load(tmp_path)
    assert_near(jax.jit(ours.tokens)(x), expected.last_hidden_state)
    assert_near(jax.jit(ours.encode)(x), expected.pooler_output)


@pytest.mark.parametrize("shape", [(100, 100), (640, 480), (33, 900), (7, 5)])
def test_siglip2_sides(shape):
    theirs = transformers.models.siglip2.image_processing_pil_siglip2.get_image_size_for_max_num_patches
    assert sides_for(*shape, 16, 256) == theirs(*shape, 16, 256)


@pytest.mark.parametrize("kind", ["model", "pretraining", "classifier", "unpooled"])
def test_videomae(tmp_path, kind):
    sizes = dict(**SIZE, **MLP, image_size=16, patch_size=8, num_frames=4, use_mean_pooling=kind != "unpooled")
    decoder = dict(decoder_num_attention_heads=3, decoder_hidden_size=12, decoder_num_hidden_layers=1)
    config = transformers.VideoMAEConfig(**sizes, **decoder, decoder_intermediate_size=16, num_labels=5)
    classes = {"pretraining": "VideoMAEForPreTraining", "classifier": "VideoMAEForVideoClassification"}
    theirs = saved(getattr(transformers, classes.get(kind, "VideoMAEModel"))(config), tmp_path)
    x, ours = pixels(2, 4, 16, 16), VideoMae.load(tmp_path)
    inner = theirs if kind in ("model", "unpooled") else theirs.videomae
    assert_near(ours.tokens(x), inner(channels_first(x)).last_hidden_state)
    if kind == "classifier":
        assert_near(ours.logits(x), theirs(channels_first(x)).logits)
    with pytest.raises(UserError, match="4×16×16"):
        ours.encode(x[:, :2])


@pytest.mark.parametrize("frames", [1, 2, 6])
def test_vjepa2(tmp_path, frames):
    predictor = dict(pred_hidden_size=12, pred_num_attention_heads=3, pred_num_hidden_layers=1)
    config = transformers.VJEPA2Config(**SIZE, **predictor, crop_size=24, patch_size=8, frames_per_clip=4)
    theirs, x = saved(transformers.VJEPA2Model(config), tmp_path), pixels(2, frames, 24, 24)
    expected = theirs(channels_first(x), skip_predictor=True).last_hidden_state
    ours = Vjepa2.load(tmp_path)
    assert_near(ours.tokens(x), expected)
    assert_near(ours.encode(x), expected.mean(1))


def test_features_in_bfloat16(tmp_path):
    clip(tmp_path)
    x = pixels(1, 24, 24)
    narrow = ClipImage.load(tmp_path, dtype=jnp.bfloat16)
    assert narrow.transformer.stack.layers.mlp.up.kernel.dtype == jnp.bfloat16
    assert_near(np.asarray(narrow.encode(x), np.float32), ClipImage.load(tmp_path).encode(x), 0.05)


@pytest.mark.parametrize("shape", [(48, 80), (80, 50), (10, 30)])
@pytest.mark.parametrize("method", ["cubic", "linear"])
def test_preprocessing_is_that_of_pillow(shape, method):
    """Up to the rounding to grey levels, which Pillow does twice: after rows and after columns."""
    images = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    processor = transformers.models.clip.image_processing_pil_clip.CLIPImageProcessorPil(
        size={"shortest_edge": 20},
        crop_size={"height": 16, "width": 16},
        resample={"cubic": Image.Resampling.BICUBIC, "linear": Image.Resampling.BILINEAR}[method],
    )
    expected = np.moveaxis(np.asarray(processor(Image.fromarray(images))["pixel_values"][0]), 0, -1)
    ours = Preprocessing(20, 16, method, **CLIP_STATISTICS)(jnp.asarray(images))
    assert np.abs(ours - expected).max() < 1.1 / 255 / min(CLIP_STATISTICS["std"])


def test_preprocessing_is_read_from_the_folder(tmp_path):
    clip(tmp_path)
    assert ClipImage.load(tmp_path).preprocessing == Preprocessing(24, 24, "cubic", **CLIP_STATISTICS)
    config = {"size": {"height": 12, "width": 10}, "do_center_crop": False, "resample": 2, "image_mean": [0, 0, 0]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    expected = Preprocessing((12, 10), None, "linear", (0, 0, 0), CLIP_STATISTICS["std"])
    assert ClipImage.load(tmp_path).preprocessing == expected
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"resample": 17}))
    with pytest.raises(UserError, match="preprocessor_config"):
        ClipImage.load(tmp_path)


def test_whole_numbers_and_floats_give_the_same(tmp_path):
    clip(tmp_path)
    ours, images = ClipImage.load(tmp_path), np.random.default_rng(0).integers(0, 256, (2, 30, 40, 3), np.uint8)
    floats = images.astype(np.float32) / 127.5 - 1
    assert_near(ours(jnp.asarray(images)), ours(jnp.asarray(floats)))
    assert_near(jax.jit(ours)(jnp.asarray(floats)), ours(jnp.asarray(floats)))
    for wrong in (floats * 255, floats * 2, np.full_like(floats, np.nan)):
        with pytest.raises(UserError, match=r"in \[-1, 1\]"):
            ours(jnp.asarray(wrong))
    with pytest.raises(UserError, match="height, width, 3"):
        ours(jnp.zeros((2, 30, 40, 4)))


def test_files_that_do_not_fit_are_refused(tmp_path):
    clip(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    for change, message in (
        ({"visual_projection.weight": None}, "lacks the tensors visual_projection.weight; is it a published file"),
        ({"visual_projection.weight": np.zeros((12, 25), np.float32)}, r"has shape \[12, 25\]"),
        ({"visual_projection.weight": np.zeros((24, 12), np.float32)}, r"has shape \[24, 12\]"),
        ({"surprise": np.zeros(1, np.float32)}, "1 tensors that are not known, the first is 'surprise'"),
    ):
        save_file({k: v for k, v in (weights | change).items() if v is not None}, path)
        with pytest.raises(UserError, match=message):
            ClipImage.load(tmp_path)
