"""A vector for each patch of a clip: where it lies, and that a description in a config says what the folder says."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from tests.parameters import with_random_parameters
from videogen.encoders import SEEN, SHIPPED, folder_of, trunk
from videogen.errors import UserError

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 4}
FOLDERS = {
    "clip_image": {"vision_config": {**SIZES, "image_size": 8}, "projection_dim": 6},
    "dinov2": {**SIZES, "image_size": 8, "model_type": "dinov2_with_registers", "num_register_tokens": 2},
    "siglip_image": {"vision_config": {**SIZES, "image_size": 8}},
    "videomae": {**SIZES, "image_size": 12, "num_frames": 4},
    "vjepa2": {**SIZES, "crop_size": 8},
}
TRAINED = {"name": "shapes_classifier", "classes": 3, "widths": (4, 4, 6, 10), "features": 5, "side": 16}
NAFLEX = {"vision_config": {**SIZES, "num_patches": 4}}


def folder(path, name):
    (path / "config.json").write_text(json.dumps(FOLDERS[name]))
    (path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.25, 0.5], "image_std": [1, 2, 1]}))
    return path


def described(name, path):
    """The encoder of a description that has gone through a config file, with random parameters."""
    settings = ConfigDict(json.loads(json.dumps(SEEN[name].describe(folder(path, name)))))
    return with_random_parameters(nnx.eval_shape(lambda: SEEN[name].described(settings)), seed=0)


@pytest.mark.parametrize("name", FOLDERS)
def test_vectors_are_the_tokens_of_whole_frames(tmp_path, name):
    network = described(name, tmp_path)
    clips = np.random.default_rng(0).uniform(-1, 1, (2, 4, 12, 12, 3)).astype(np.float32)
    pixels = ((clips + 1) / 2 - np.float32([0.5, 0.25, 0.5])) / np.float32([1, 2, 1])
    grid = jax.jit(lambda clips: network.grid(clips, 12))(clips)
    if network.moving:
        assert grid.shape == (2, 2, 3, 3, 8)
        expected = network.tokens(jnp.asarray(pixels))
    else:
        assert grid.shape == (2, 4, 3, 3, 8)
        expected = network.tokens(jnp.asarray(pixels[1, 2])[None])[:, -9:]
        grid = grid[1:, 2:3]
    np.testing.assert_allclose(grid.reshape(expected.shape), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", FOLDERS)
def test_a_description_builds_what_the_folder_says(tmp_path, name):
    ours, theirs = described(name, tmp_path), nnx.eval_shape(lambda: SEEN[name].structure(folder(tmp_path, name)))
    shapes = [{path: leaf.shape for path, leaf in nnx.to_flat_state(nnx.state(module))} for module in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert ours.preprocessing == theirs.preprocessing and ours.preprocessing.mean == (0.5, 0.25, 0.5)
    hash(nnx.graphdef(ours))


def test_frames_are_resized_as_a_whole(tmp_path):
    """A network that crops its pictures sees the edges of frames, too; a network of any size is told one."""
    network = described("dinov2", tmp_path)
    assert network.preprocessing.crop == 224
    clips = np.zeros((1, 1, 12, 16, 3), np.float32)
    edge = clips.copy()
    edge[:, :, :, 0] = 1
    look = jax.jit(lambda clips: network.grid(clips, 8))
    grids = [look(x) for x in (clips, edge)]
    assert grids[0].shape == (1, 1, 2, 2, 8) and np.abs(grids[0] - grids[1]).max() > 1e-3
    (tmp_path / "config.json").write_text(json.dumps(NAFLEX))
    kind, settings = SEEN["siglip_image"], SEEN["siglip_image"].describe(tmp_path)
    shape = jax.eval_shape(lambda clips: kind.described(settings).grid(clips, 8), clips).shape
    assert shape == (1, 1, 2, 2, 8)
    with pytest.raises(UserError, match="any size; name the side"):
        jax.eval_shape(lambda clips: kind.described(settings).grid(clips), clips)


def test_the_grid_of_the_classifier_is_what_its_features_pool():
    """Of the 10 channels half are pooled at most, half on average; a trained one has no head for that."""
    settings = {key: value for key, value in TRAINED.items() if key != "name"}
    network = with_random_parameters(nnx.eval_shape(lambda: SEEN["shapes_classifier"].described(settings)), seed=0)
    clips = np.random.default_rng(0).uniform(-1, 1, (2, 5, 12, 12, 3)).astype(np.float32)
    grid = np.asarray(jax.jit(network.grid)(clips))
    assert grid.shape == (2, 2, 2, 2, 10) == (2, 2, 2, 2, network.grid_width())
    pooled = np.concatenate([grid[..., :5].max((1, 2, 3)), grid[..., 5:].mean((1, 2, 3))], axis=-1)
    np.testing.assert_allclose(network(clips), network.embed(pooled), atol=1e-5)
    assert jax.eval_shape(lambda clips: network.grid(clips, 24), clips).shape == (2, 2, 3, 3, 10)
    with pytest.raises(UserError, match="ShapesClassifier has no reading 'projected'"):
        network.grid(clips, reading="projected")
    trained = trunk(TRAINED, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert trained.embed is trained.head is None
    shapes = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(trained))}
    assert {value.dtype for value in shapes.values()} == {jnp.dtype(jnp.float32)}
    assert {str(path[0]) for path in shapes} == {"convolutions", "norms"}
    with pytest.raises(UserError, match="unknown encoder 'vgg16'"):
        trunk({"name": "vgg16"}, dtype=jnp.float32, rngs=nnx.Rngs(0))


def test_a_stand_in_needs_no_folder():
    assert folder_of("shapes_classifier", "") == SHIPPED / "shapes_classifier"
    assert folder_of("shapes_classifier", "other") == "other" and not folder_of("dinov2", "") and not folder_of("", "")
