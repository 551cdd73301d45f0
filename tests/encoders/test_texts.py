"""Encoders of text and language models against ``transformers`` on random weights."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from tests.encoders.oracles import assert_near
from tests.encoders.test_vision import MLP, SIZE, clip, saved
from videogen.conditioning import LanguageModel
from videogen.encoders.bert import Bert
from videogen.encoders.clip import ClipText
from videogen.encoders.decoders import Decoder, frequencies
from videogen.encoders.siglip import SiglipText
from videogen.errors import UserError
from videogen.nn import Stream

LENGTH = 9
MASK = np.arange(LENGTH)[None] < np.array([LENGTH, 6, 2])[:, None]
IDS = np.random.default_rng(0).integers(2, 48, (3, LENGTH))


def test_clip_text(tmp_path):
    theirs = clip(tmp_path)
    ids = np.where(MASK, IDS, 49)  # padded with the end token, as it is published
    ours = ClipText.load(tmp_path)
    assert_near(ours(jnp.asarray(ids)), theirs.get_text_features(torch.tensor(ids)).pooler_output)
    assert_near(ours.tokens(jnp.asarray(ids)), theirs.text_model(torch.tensor(ids)).last_hidden_state)


def test_old_clip_configs_end_at_the_largest_id(tmp_path):
    theirs = clip(tmp_path)
    theirs.text_model.eos_token_id = theirs.config.text_config.eos_token_id = 2
    theirs.save_pretrained(tmp_path)
    ids = np.where(MASK, IDS, 0)
    ids[:, 1] = 49
    assert_near(ClipText.load(tmp_path)(jnp.asarray(ids)), theirs.get_text_features(torch.tensor(ids)).pooler_output)


@pytest.mark.parametrize("version", ["Siglip", "Siglip2"])
def test_siglip_text(tmp_path, version):
    sides = dict(num_patches=4) if version == "Siglip2" else dict(image_size=16)
    vision = getattr(transformers, f"{version}VisionConfig")(**SIZE, **MLP, patch_size=8, **sides)
    text = getattr(transformers, f"{version}TextConfig")(**SIZE, **MLP, vocab_size=50, projection_size=20)
    config = getattr(transformers, f"{version}Config")(text_config=text.to_dict(), vision_config=vision.to_dict())
    theirs = saved(getattr(transformers, f"{version}Model")(config), tmp_path)
    expected = theirs.text_model(torch.tensor(IDS)).pooler_output
    assert_near(SiglipText.load(tmp_path)(jnp.asarray(IDS)), expected)


@pytest.mark.parametrize("name", ["BertModel", "BertForMaskedLM"])
def test_bert(tmp_path, name):
    theirs = saved(getattr(transformers, name)(transformers.BertConfig(**SIZE, **MLP, vocab_size=50)), tmp_path)
    inner = theirs if name == "BertModel" else theirs.bert
    expected = inner(torch.tensor(IDS), attention_mask=torch.tensor(MASK)).last_hidden_state.detach().numpy()
    ours = Bert.load(tmp_path)
    assert_near(ours.tokens(jnp.asarray(IDS), jnp.asarray(MASK))[MASK], expected[MASK])
    mean = (expected * MASK[..., None]).sum(1) / MASK.sum(1, keepdims=True)
    assert_near(ours(jnp.asarray(IDS), jnp.asarray(MASK)), mean / np.linalg.norm(mean, axis=1, keepdims=True))


LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=5000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
DECODERS = {
    "llama": ("Llama", dict(num_key_value_heads=1, rms_norm_eps=1e-5)),
    "llama 3.1": ("Llama", dict(num_key_value_heads=1, rope_parameters=LLAMA3, head_dim=16)),
    "llama with biases": ("Llama", dict(attention_bias=True, mlp_bias=True, tie_word_embeddings=True)),
    "linear": ("Llama", dict(rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=10_000.0))),
    "qwen2": ("Qwen2", dict(num_key_value_heads=1)),
    "qwen2 tied": ("Qwen2", dict(num_key_value_heads=3, tie_word_embeddings=True)),
}


def decoder(path, name):
    kind, settings = DECODERS[name]
    config = getattr(transformers, f"{kind}Config")(**SIZE, **MLP, vocab_size=50, **settings)
    return saved(getattr(transformers, f"{kind}ForCausalLM")(config), path)


@pytest.mark.parametrize("name", DECODERS)
def test_decoders(tmp_path, name):
    theirs, ours = decoder(tmp_path, name), Decoder.load(tmp_path)
    expected = theirs(torch.tensor(IDS), attention_mask=torch.tensor(MASK)).logits.detach().numpy()
    assert_near(ours(jnp.asarray(IDS), jnp.asarray(MASK))[MASK], expected[MASK])


def test_hidden_states_are_those_behind_the_layers_without_the_embeddings(tmp_path):
    """Theirs begin with the embeddings and end behind the last norm."""
    theirs, ours = decoder(tmp_path, "llama"), Decoder.load(tmp_path)
    arguments = dict(attention_mask=torch.tensor(MASK), output_hidden_states=True)
    expected = [states.detach().numpy() for states in theirs(torch.tensor(IDS), **arguments).hidden_states]
    found = ours.states(ours.embedding(jnp.asarray(IDS)), jnp.asarray(MASK))
    assert len(found) == len(expected) - 1
    for state, their in zip(found[:-1], expected[1:-1], strict=True):
        assert_near(state[MASK], their[MASK])
    assert_near(ours.transformer.finish(found[-1])[MASK], expected[-1][MASK])
    layered = LanguageModel.load(tmp_path)(jnp.asarray(IDS), jnp.asarray(MASK))
    assert_near(layered.features[MASK], np.asarray(found).transpose(1, 2, 0, 3)[MASK])
    assert not np.asarray(layered.features)[~MASK].any()


def test_decoding_token_by_token_equals_the_whole(tmp_path):
    decoder(tmp_path, "llama 3.1")
    ours = Decoder.load(tmp_path)
    expected, cache, parts = ours(jnp.asarray(IDS)), ours.begin(3, LENGTH), []
    for start, stop in ((0, 4), (4, 5), (5, LENGTH)):
        stream = Stream(cache)
        places = jnp.broadcast_to(jnp.arange(start, stop), (3, stop - start))
        tokens = ours.tokens(ours.embedding(jnp.asarray(IDS[:, start:stop])), positions=places, stream=stream)
        parts.append(ours.scores(tokens))
        cache = stream.cache
    assert_near(jnp.concatenate(parts, axis=1), expected, 1e-5)


def test_unknown_rotary_positions_are_refused():
    with pytest.raises(UserError, match="yarn"):
        frequencies(8, 10_000.0, {"rope_type": "yarn", "factor": 2.0})
