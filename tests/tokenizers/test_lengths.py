"""Length rules: the distributions of lengths, prefixes, draws by example, and what a tokenizer does with them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.stats import chisquare

from videogen import quantizers
from videogen.errors import UserError
from videogen.nn import Linear, MicroBatch
from videogen.shapes import Compression
from videogen.tasks.tokenizer import TokenizerTask
from videogen.tokenizers import Encoded, Tokenizer, lengths
from videogen.tokens import Segment, SegmentLayout, Tokens

SHARES = {
    ("uniform", 1, 6): {1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1},
    ("uniform", 3, 6): {3: 1, 4: 1, 5: 1, 6: 1},
    ("uniform", 6, 6): {6: 1},
    ("power_of_two", 1, 8): {1: 1, 2: 1, 4: 1, 8: 1},
    ("power_of_two", 1, 6): {1: 1, 2: 1, 4: 1, 6: 1},
    ("power_of_two", 3, 12): {4: 1, 8: 1, 12: 1},
    ("power_of_two", 5, 6): {6: 1},
    ("uniform_power_of_two", 1, 8): {1: 1, 2: 1, 4: 2, 8: 4},
    ("uniform_power_of_two", 1, 6): {1: 1, 2: 1, 4: 2, 6: 2},
    ("uniform_power_of_two", 2, 5): {2: 1, 4: 2, 5: 1},
}
"""(distribution, minimum, tokens) -> the shares of lengths, by hand."""


@pytest.mark.parametrize(("distribution", "minimum", "tokens"), SHARES)
def test_lengths_follow_their_distribution(distribution, minimum, tokens):
    shares, rule = SHARES[distribution, minimum, tokens], lengths.TailDrop(distribution, minimum)
    kept = np.asarray(rule.kept((4000, tokens), key=jax.random.key(0), train=True))
    found = kept.sum(-1)
    np.testing.assert_array_equal(kept, np.arange(tokens) < found[:, None])  # a prefix
    assert set(found) == set(shares)
    expected = 4000 * np.array(list(shares.values())) / sum(shares.values())
    if len(shares) > 1:
        assert chisquare([(found == k).sum() for k in shares], expected).pvalue > 1e-3
    assert rule.bits(SegmentLayout((("query", tokens),), (2,))) == pytest.approx(np.log2(len(shares)))


def test_a_draw_belongs_to_its_example():
    rule, key = lengths.TailDrop("power_of_two", 2), jax.random.key(1)
    whole = np.asarray(rule.kept((12, 3, 9), key=key, train=True))
    part = rule.kept((4, 3, 9), key=MicroBatch(1, 3).keys(key, 4), train=True)
    np.testing.assert_array_equal(part, whole[1::3])
    # All latent frames of an example keep as many.
    np.testing.assert_array_equal(whole, np.broadcast_to(whole[:, :1], whole.shape))
    # A shorter example draws from its own number of tokens, wherever they are.
    exists = np.zeros((12, 9), bool)
    exists[:6, 1::2], exists[6:] = True, True
    kept = np.asarray(rule.kept((12, 9), exists=jnp.asarray(exists), key=key, train=True))
    alone = np.asarray(rule.kept((12, 4), key=key, train=True))
    np.testing.assert_array_equal((kept & exists)[:6, 1::2], alone[:6])
    np.testing.assert_array_equal(kept[6:], whole[6:, 0])


def test_what_is_not_needed_is_dropped():
    logits = np.log(3.0) + np.array([[-1, -1e-3, 1e-3, -2], [9, -9, 9, -9], [-9, -9, -9, -9]])
    extra = {"halting": jnp.asarray(logits, jnp.float32)}
    kept = lengths.Halting().kept((3, 4), extra=extra)  # log 3 has the probability 0.75
    np.testing.assert_array_equal(kept, np.array([[1, 1, 0, 1], [0, 1, 0, 1], [1, 1, 1, 1]], bool))
    cut = lengths.Halting(cut=True)
    np.testing.assert_array_equal(
        cut.kept((3, 4), extra=extra, train=True), np.array([[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]], bool)
    )
    np.testing.assert_array_equal(
        lengths.Halting(0.5).kept((1, 3), extra={"halting": jnp.array([[-1, 0, 1]])})[0], [1, 1, 0]
    )
    layout = SegmentLayout((("time", 2), ("query", 7)), (4096,))
    assert lengths.Halting().bits(layout) == 14 and lengths.All().bits(layout) == 0
    assert cut.bits(layout) == pytest.approx(2 * math.log2(7))
    kinds = {rule.kept_tokens for rule in (lengths.All(), lengths.TailDrop())}
    assert kinds == {"all"} and (lengths.Halting().kept_tokens, cut.kept_tokens) == ("set", "prefix")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "tail_drops"}, "unknown length rule 'tail_drops'.*'tail_drop'"),
        ({"name": "tail_drop", "distribution": "power_of_too"}, "unknown distribution .*power_of_two"),
        ({"name": "tail_drop", "minimum": 0}, "minimum of length rule 'tail_drop' must be .* at least 1"),
        ({"name": "halting", "threshold": 1.0}, "must be a number above 0 and below 1"),
    ],
)
def test_impossible_rules_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        lengths.build(config)


def test_a_rule_needs_what_it_decides_by():
    for rule, message in (
        (lengths.TailDrop(minimum=5), "at least 5 tokens, and there are 4"),
        (lengths.TailDrop(), "tail drop needs a random key"),
        (lengths.Halting(), "an encoder that says which tokens are not needed"),
    ):
        with pytest.raises(UserError, match=message):
            rule.kept((2, 4), train=True)
    assert lengths.build({"name": "all"}).kept((2, 4), train=True) is None
    assert lengths.TailDrop(minimum=5).kept((2, 4)) is None


class Rows(Tokenizer):
    """Each row of a picture is a token; the decoder leaves rows that it does not see black."""

    sides, drops, last_layer = ("query",), True, ("back",)

    def __init__(self, rule, rngs):
        self.compression, self.lengths = Compression(1, 1, 1), lengths.build(rule)
        self.quantizer = quantizers.build(
            {"name": "vq", "size": 16, "width": 4, "codebook_update": "gradient"}, rngs=rngs
        )
        self.to, self.back = Linear(24, 5, axes=(None, None), rngs=rngs), Linear(4, 24, axes=(None, None), rngs=rngs)

    def layout(self, shape):
        return self.layout_of((shape.height,))

    def encode(self, video, request=None):
        x = self.to(video.reshape(len(video), video.shape[2], -1))
        return Encoded(x[..., :4], extra={"halting": 20.0 * x[..., 4]})

    def decode(self, latents, kept=None):
        x = self.back(latents) if kept is None else jnp.where(kept[..., None], self.back(latents), 0.0)
        return x.reshape(len(x), 1, -1, 8, 3)


@pytest.fixture(scope="module")
def video():
    return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4, 1, 8, 8, 3)), jnp.float32)


def test_dropped_tokens_count_in_the_quantizer_and_not_in_the_decoder(video):
    model, every = (Rows(rule, nnx.Rngs(0)) for rule in ({"name": "tail_drop", "minimum": 2}, {"name": "all"}))
    encoded, key = model.encode(video), jax.random.key(5)
    both = jax.jit(lambda: [m.bottleneck(encoded, key=key, train=True)[1:] for m in (model, every)])
    (tokens, losses, measured), (all_tokens, all_losses, all_measured) = both()
    tokens.only.check()
    count = np.asarray(tokens.only.kept).sum(-1)
    assert all_tokens.only.kept is None and count.min() >= 2 and len(set(count)) > 1
    jax.tree.map(np.testing.assert_array_equal, (losses, measured), (all_losses, all_measured))
    np.testing.assert_array_equal(tokens.bits(), 4.0 * count)
    detokenize = jax.jit(model.detokenize)
    clip = detokenize(tokens)
    np.testing.assert_array_equal(np.asarray(clip != 0).any((1, 3, 4)), tokens.only.kept)
    assert model.tokenize(video).only.kept is None
    # The first tokens alone decode to what all of them decode to where the rest is not seen.
    short = Tokens.of(
        video=Segment(tokens["video"].values, tokens["video"].layout, kept=lengths.first(jnp.full(4, 3), (4, 8)))
    )
    np.testing.assert_array_equal(detokenize(short)[:, :, :3], detokenize(all_tokens)[:, :, :3])


def test_the_rate_counts_what_is_kept_and_the_bits_that_tell_it(video):
    model = Rows({"name": "halting"}, nnx.Rngs(0))
    pixels = np.asarray((video + 1) * 127.5).round().astype(np.uint8)
    values = TokenizerTask.score(model, [{"video": pixels}])
    kept = np.asarray(model.tokenize(pixels / jnp.float32(127.5) - 1).only.kept)
    assert 0 < kept.sum() < kept.size and not np.array_equal(kept, np.sort(kept)[:, ::-1])
    assert values["bits_per_pixel"] == pytest.approx((4 * kept.sum() + kept.size) / (4 * 64), rel=1e-6)
    whole = TokenizerTask.score(Rows({"name": "all"}, nnx.Rngs(0)), [{"video": pixels}])
    assert whole["bits_per_pixel"] == 8 * 4 / 64 and whole["psnr"] != values["psnr"]


def test_padding_reaches_the_quantizer(video):
    model = Rows({"name": "all"}, nnx.Rngs(0))
    exists = jnp.arange(8) < jnp.array([3, 8, 5, 0])[:, None]
    encoded = model.encode(video)._replace(exists=exists)
    _, tokens, losses, measured = model.bottleneck(encoded)
    expected = model.quantizer(encoded.values[exists])
    np.testing.assert_array_equal(measured["counts"], expected.statistics["counts"])
    np.testing.assert_allclose(losses["commitment"], expected.losses["commitment"], rtol=1e-6)
    np.testing.assert_array_equal(tokens.bits(), [12, 32, 20, 0])
