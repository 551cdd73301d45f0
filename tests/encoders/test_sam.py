"""The mask decoder of SAM against the public implementation on random weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import encoders
from videogen.encoders.sam import Doubling, SamMaskDecoder
from videogen.errors import UserError

SMALL = {"width": 32, "hidden": 24, "heads": 2}


def run(model, features, prompt):
    graph, state = nnx.split(model)
    return jax.jit(lambda state: nnx.merge(graph, state)(features, prompt))(state)


def test_a_transposed_convolution_puts_each_place_into_its_own_square():
    layer = Doubling(1, 2, dtype=jnp.float32, rngs=nnx.Rngs(0))
    layer.linear.kernel[...] = jnp.arange(8.0)[None]
    layer.bias[...] = jnp.array([0.5, -0.5])
    found = layer(jnp.array([[[[1.0], [10.0]]]]))
    assert found.shape == (1, 2, 4, 2)
    np.testing.assert_allclose(found[0, :, :, 0], np.array([[0, 2, 0, 20], [4, 6, 40, 60]]) + 0.5)
    np.testing.assert_allclose(found[0, :, :, 1], np.array([[1, 3, 10, 30], [5, 7, 50, 70]]) - 0.5)


def test_masks_are_four_times_as_fine_and_follow_the_order_of_the_pictures():
    model = SamMaskDecoder(**SMALL, rngs=nnx.Rngs(0))
    features = jax.random.normal(jax.random.key(0), (3, 2, 5, 32))
    prompt = jnp.broadcast_to(jax.random.normal(jax.random.key(1), (32,)), (3, 32))
    found = run(model, features, prompt)
    assert found.shape == (3, 8, 20) and found.dtype == jnp.float32
    order = jnp.array([2, 0, 1])
    np.testing.assert_allclose(run(model, features[order], prompt), found[order], rtol=1e-4, atol=1e-5)
    other = run(model, features, prompt + 1.0)
    assert float(jnp.abs(other - found).max()) > 1e-4


def test_places_are_waves_of_their_middles():
    model = SamMaskDecoder(**SMALL, rngs=nnx.Rngs(0))
    found, waves = model.places(1, 2), np.asarray(model.waves.get_value())
    # The middles of two places side by side: x = -1/2 and 1/2, y = 0.
    for place, x in zip(found, (-0.5, 0.5), strict=True):
        np.testing.assert_allclose(place[:16], np.sin(2 * np.pi * x * waves[0]), atol=1e-5)
        np.testing.assert_allclose(place[16:], np.cos(2 * np.pi * x * waves[0]), atol=1e-5)


def test_sizes_that_cannot_be():
    with pytest.raises(UserError, match="3 heads of a mask decoder do not divide its 16 channels inside"):
        SamMaskDecoder(width=32, heads=3, rngs=nnx.Rngs(0))
    for wrong in ({"depth": 1}, {"width": 36, "heads": 2}):
        with pytest.raises(UserError, match="divides by 8"):
            SamMaskDecoder(**{**SMALL, **wrong}, rngs=nnx.Rngs(0))


@pytest.mark.slow
def test_it_is_the_decoder_of_the_public_implementation(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.SamConfig(
        vision_config={"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32}
        | {
            "patch_size": 16,
            "output_channels": 32,
            "mlp_dim": 8,
            "global_attn_indexes": [0],
            "window_size": 2,
            "num_pos_feats": 16,
        },
        prompt_encoder_config={"hidden_size": 32, "image_size": 32, "patch_size": 16, "mask_input_channels": 4},
        mask_decoder_config={"hidden_size": 32, "mlp_dim": 24, "num_attention_heads": 2, "iou_head_hidden_dim": 32},
    )
    theirs = transformers.SamModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    theirs.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "sam"
    ours = encoders.load("sam_mask_decoder", tmp_path)
    features = np.random.default_rng(0).normal(size=(2, 3, 4, 32)).astype(np.float32)
    prompt = np.random.default_rng(1).normal(size=(2, 32)).astype(np.float32)
    places = np.asarray(ours.places(3, 4)).T.reshape(1, 32, 3, 4)
    with torch.no_grad():
        expected = theirs.mask_decoder(
            image_embeddings=torch.tensor(features.transpose(0, 3, 1, 2)),
            image_positional_embeddings=torch.tensor(places).repeat(2, 1, 1, 1),
            sparse_prompt_embeddings=torch.tensor(prompt)[:, None, None],
            dense_prompt_embeddings=theirs.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(2, -1, 3, 4),
            multimask_output=False,
        )[0].numpy()
    found = run(ours, jnp.asarray(features), jnp.asarray(prompt))
    np.testing.assert_allclose(found, expected[:, 0, 0], rtol=2e-4, atol=2e-4 * np.abs(expected).max())
    with torch.no_grad():
        wide = theirs.get_image_wide_positional_embeddings()[0].numpy()
    np.testing.assert_allclose(ours.places(2, 2).T.reshape(32, 2, 2), wide, rtol=1e-4, atol=1e-4)
