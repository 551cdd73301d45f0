"""Our T5 encoder against the transformers library as numerical oracle, and its refusals."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from videogen.building import build
from videogen.conditioning import TEXT_ENCODERS, T5Encoder
from videogen.encoders import T5
from videogen.encoders.t5 import relative_buckets
from videogen.errors import UserError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LENGTH = 23
MASK = np.arange(LENGTH)[None] < np.array([LENGTH, 9, 1])[:, None]
IDS = np.random.default_rng(0).integers(1, 50, (3, LENGTH)) * MASK


def save_oracle(directory, projection="relu", dtype=None, **save):
    """Writes a random T5 encoder with unusual, small dimensions and returns it."""
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=50,
        d_model=24,
        d_kv=6,
        d_ff=40,
        num_layers=3,
        num_heads=3,
        feed_forward_proj=projection,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=20,
    )
    model = transformers.T5EncoderModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms away from one, scores away from uniform
            parameter.add_(0.2 * torch.randn_like(parameter))
    model = model if dtype is None else model.to(dtype)
    model.save_pretrained(directory, safe_serialization=True, **save)
    return model.float()


@pytest.fixture
def checkpoint(tmp_path):
    save_oracle(tmp_path)
    return tmp_path


def oracle_features(model):
    with torch.no_grad():
        return model(torch.tensor(IDS), attention_mask=torch.tensor(MASK)).last_hidden_state.numpy()


@pytest.mark.parametrize("projection", ["relu", "gated-gelu"])
@pytest.mark.parametrize("shard", [{}, {"max_shard_size": "10KB"}])
def test_agrees_with_transformers(tmp_path, projection, shard):
    expected = oracle_features(save_oracle(tmp_path, projection, **shard))
    assert (tmp_path / "model.safetensors.index.json").exists() == bool(shard)
    tokens = T5Encoder.load(tmp_path)(jnp.asarray(IDS), jnp.asarray(MASK))
    np.testing.assert_allclose(tokens.features[MASK], expected[MASK], atol=1e-4)
    np.testing.assert_array_equal(tokens.features[~MASK], 0)
    np.testing.assert_array_equal(tokens.mask, MASK)


def test_reads_half_precision_files(tmp_path):
    expected = oracle_features(save_oracle(tmp_path, dtype=torch.bfloat16))
    encoder = T5Encoder.load(tmp_path)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(encoder)))
    np.testing.assert_allclose(encoder(jnp.asarray(IDS), jnp.asarray(MASK)).features[MASK], expected[MASK], atol=1e-4)


def test_full_model_checkpoints_load_their_encoder(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    reference = T5Encoder.load(checkpoint)(jnp.asarray(IDS), jnp.asarray(MASK)).features
    weights["encoder.embed_tokens.weight"] = weights.pop("shared.weight")
    save_file({**weights, "decoder.final_layer_norm.weight": np.ones(24)}, checkpoint / "model.safetensors")
    features = T5Encoder.load(checkpoint)(jnp.asarray(IDS), jnp.asarray(MASK)).features
    np.testing.assert_array_equal(features, reference)


def test_the_table_of_words_has_one_meaning(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    reference = T5Encoder.load(checkpoint)(jnp.asarray(IDS), jnp.asarray(MASK)).features
    both = {**weights, "encoder.embed_tokens.weight": weights["shared.weight"]}
    save_file(both, checkpoint / "model.safetensors")
    np.testing.assert_array_equal(T5Encoder.load(checkpoint)(jnp.asarray(IDS), jnp.asarray(MASK)).features, reference)
    save_file({**both, "encoder.embed_tokens.weight": weights["shared.weight"] + 1}, checkpoint / "model.safetensors")
    with pytest.raises(UserError, match="other words in 'shared.weight' than in 'encoder.embed_tokens.weight'"):
        T5Encoder.load(checkpoint)
    # No other table stands in for it, such as that of the output.
    words = weights.pop("shared.weight")
    save_file({**weights, "lm_head.weight": words}, checkpoint / "model.safetensors")
    with pytest.raises(UserError, match="lacks the tensors shared.weight"):
        T5Encoder.load(checkpoint)


def test_umt5_has_positions_in_every_layer(tmp_path):
    """The folder as it is saved; some published files have the tied table under both names."""
    torch.manual_seed(0)
    size = dict(
        vocab_size=50, d_model=24, d_kv=6, d_ff=40, num_layers=3, num_heads=3, relative_attention_num_buckets=16
    )
    model = transformers.UMT5EncoderModel(transformers.UMT5Config(**size, relative_attention_max_distance=20)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    expected = oracle_features(model)
    encoder = T5.load(tmp_path)
    assert encoder.config.own_positions and encoder.position_bias.shape == (3, 16, 3)
    features = encoder(jnp.asarray(IDS), jnp.asarray(MASK))
    np.testing.assert_allclose(features[MASK], expected[MASK], atol=1e-4 * np.abs(expected).max(), rtol=0)
    # The table of each layer counts by itself.
    table = encoder.position_bias.get_value()
    encoder.position_bias.set_value(table.at[1].add(jnp.linspace(0, 3, table[1].size).reshape(table[1].shape)))
    assert np.abs(encoder(jnp.asarray(IDS), jnp.asarray(MASK)) - features)[MASK].max() > 1e-2


@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (16, 20)])
def test_relative_buckets_agree_with_transformers(buckets, max_distance):
    offset = torch.arange(300)[None] - torch.arange(300)[:, None]
    expected = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket(
        offset, bidirectional=True, num_buckets=buckets, max_distance=max_distance
    )
    actual = relative_buckets(300, buckets=buckets, max_distance=max_distance)
    np.testing.assert_array_equal(actual, expected.numpy())


def test_padding_content_does_not_matter_and_nothing_learns(checkpoint):
    encoder = T5Encoder.load(checkpoint)
    ids, mask = jnp.asarray(IDS), jnp.asarray(MASK)
    np.testing.assert_array_equal(encoder(jnp.where(mask, ids, 3), mask).features, encoder(ids, mask).features)
    graph, state = nnx.split(encoder)
    gradient = jax.grad(lambda s: jnp.sum(nnx.merge(graph, s)(ids, mask).features ** 2))(state)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_structure_has_the_shapes_of_the_loaded_encoder(checkpoint):
    def shapes(encoder):
        return jax.tree.map(lambda x: (x.shape, x.dtype), nnx.to_pure_dict(nnx.state(encoder)))

    loaded = T5Encoder.load(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    structure = nnx.eval_shape(lambda: T5Encoder.structure(checkpoint))
    assert shapes(structure) == shapes(loaded)


def test_hash_follows_the_weights(checkpoint):
    before = T5Encoder.load(checkpoint).hash
    assert len(before) == 64 and T5Encoder.load(checkpoint).hash == before
    weights = load_file(checkpoint / "model.safetensors")
    weights["encoder.final_layer_norm.weight"] = weights["encoder.final_layer_norm.weight"] + 1
    save_file(weights, checkpoint / "model.safetensors")
    assert T5Encoder.load(checkpoint).hash != before


def test_built_by_name(checkpoint):
    config = {"name": "t5", "directory": str(checkpoint)}
    encoder = build(TEXT_ENCODERS, config, "text encoder", rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    assert encoder(jnp.asarray(IDS), jnp.asarray(MASK)).features.dtype == jnp.bfloat16
    assert encoder.width == 24


def test_weights_are_kept_as_the_products_take_them(checkpoint):
    def features(encoder):
        return encoder(jnp.asarray(IDS), jnp.asarray(MASK)).features

    narrow = T5Encoder.load(checkpoint, dtype=jnp.bfloat16)
    layer = narrow.transformer.stack.layers
    assert layer.attention.query_key_value.kernel.dtype == narrow.embedding.table.dtype == jnp.bfloat16
    assert layer.mlp_norm.scale.dtype == narrow.transformer.norm.scale.dtype == jnp.float32
    assert narrow.position_bias.dtype == jnp.float32
    wide = T5Encoder.load(checkpoint)
    assert wide.transformer.stack.layers.attention.query_key_value.kernel.dtype == jnp.float32
    for _, module in nnx.iter_modules(wide):
        if getattr(module, "dtype", None) is not None:
            module.dtype = jnp.bfloat16
    np.testing.assert_array_equal(features(narrow), features(wide))


def rewrite(checkpoint, change):
    weights = load_file(checkpoint / "model.safetensors")
    change(weights)
    save_file(weights, checkpoint / "model.safetensors")


def test_missing_tensors_are_named(checkpoint):
    rewrite(checkpoint, lambda w: w.pop("encoder.block.1.layer.0.SelfAttention.k.weight"))
    with pytest.raises(UserError, match=r"encoder\.block\.1\.layer\.0\.SelfAttention\.k\.weight"):
        T5Encoder.load(checkpoint)


def test_ill_shaped_tensors_are_named(checkpoint):
    rewrite(checkpoint, lambda w: w.update({"encoder.final_layer_norm.weight": np.ones(25, np.float32)}))
    with pytest.raises(UserError, match=r"encoder\.final_layer_norm\.weight has shape \[25\]"):
        T5Encoder.load(checkpoint)


@pytest.mark.parametrize("change", [{"feed_forward_proj": "swish"}, {"d_kv": None}, {"num_heads": "many"}])
def test_bad_settings_are_refused(checkpoint, change):
    path = checkpoint / "config.json"
    config = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    with pytest.raises(UserError, match=r"config\.json"):
        T5Encoder.load(checkpoint)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"[]", b"\x00garbage"])
def test_unreadable_files_are_refused(checkpoint, name, content):
    (checkpoint / name).unlink() if content is None else (checkpoint / name).write_bytes(content)
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        T5Encoder.load(checkpoint)


@pytest.mark.parametrize("shard", ["absent.safetensors", "../model.safetensors"])
def test_index_may_name_only_files_beside_it(checkpoint, shard):
    (checkpoint / "inner").mkdir()
    (checkpoint / "config.json").rename(checkpoint / "inner/config.json")
    (checkpoint / "inner/model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": shard}}))
    with pytest.raises(UserError, match="not in"):
        T5Encoder.load(checkpoint / "inner")
