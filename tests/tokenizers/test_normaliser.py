"""Normalisers: moments in one pass, statistics that are known, exact inverses; and tokenizers with one."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import quantizers, tokenizers
from videogen.errors import UserError
from videogen.shapes import Compression, VideoShape
from videogen.tokenizers import Encoded, Normalised, Tokenizer
from videogen.tokenizers.normaliser import build, moments_of, read_normaliser
from videogen.tokens import SegmentLayout, Tokens

SCALES, OFFSETS = np.array([3.0, 0.5, 0.02, 40.0]), np.array([-7.0, 0.0, 1e-3, 200.0])
CONFIGS = {"channel": {"name": "mean"}, "frame": {"name": "mean", "frames": 3}, "pca": {"name": "pca", "components": 4}}


def latents(seed: int = 0, batch: int = 50) -> np.ndarray:
    """Of three latent frames, each with an offset of its own."""
    noise = np.random.default_rng(seed).standard_normal((batch, 3, 2, 2, 4))
    mixed = noise @ np.array([[1, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, -0.3], [0, 0, 0, 1]])
    return (SCALES * (mixed + np.arange(3).reshape(3, 1, 1, 1)) + OFFSETS).astype(np.float32)


@pytest.mark.parametrize("by_frame", [False, True])
def test_one_pass_in_shards_is_numpys_of_the_whole(by_frame):
    x = latents() + np.float32(1e4)  # far from 0, where sums of squares would leave few digits
    exists = np.random.default_rng(1).random(x.shape[:-1]) < 0.7
    shards = [moments_of(x[i : i + 7], exists[i : i + 7], by_frame) for i in range(0, 50, 7)]
    joined = functools.reduce(lambda a, b: list(map(operator.add, a, b)), shards)
    assert len(joined) == (3 if by_frame else 1)
    for frame in range(3 if by_frame else 1):
        part = np.s_[:, frame] if by_frame else np.s_[:]
        rows = x[part][exists[part]].astype(np.float64)
        assert joined[frame].count == len(rows)
        np.testing.assert_allclose(joined[frame].mean, rows.mean(0), rtol=1e-12)
        expected = np.cov(rows.T, bias=True)
        np.testing.assert_allclose(
            joined[frame].covariance(biased=True), expected, rtol=1e-9, atol=1e-9 * expected.max()
        )


def fitted(name: str, x: np.ndarray):
    normaliser = build(CONFIGS[name], 4)
    return normaliser, normaliser.fit(moments_of(x, by_frame=bool(normaliser.frames)))


@pytest.mark.parametrize("name", CONFIGS)
def test_normalised_latents_have_mean_0_and_variance_1_and_come_back(name):
    x = latents()
    normaliser, _ = fitted(name, x)
    y = np.asarray(normaliser.normalise(x), np.float64)
    axes = (0, 2, 3) if name == "frame" else (0, 1, 2, 3)
    np.testing.assert_allclose(y.mean(axes), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(axes), 1, rtol=1e-5)
    if name == "pca":
        np.testing.assert_allclose(np.cov(y.reshape(-1, 4).T, bias=True), np.eye(4), atol=1e-4)
    np.testing.assert_allclose(normaliser.restore(y), x, rtol=1e-5, atol=1e-5 * np.abs(x).max())
    again = normaliser.normalise(normaliser.restore(y))
    np.testing.assert_allclose(again, y, rtol=1e-4, atol=1e-4)


def test_a_known_gaussian_is_found():
    x = OFFSETS + SCALES * np.random.default_rng(0).standard_normal((4000, 5, 4))
    normaliser, found = fitted("channel", x)
    mean, deviation = normaliser.mean.get_value()[0], normaliser.deviation.get_value()[0]
    np.testing.assert_allclose(deviation, SCALES, rtol=5 / np.sqrt(2 * 20000))
    assert (np.abs(mean - OFFSETS) < 5 * SCALES / np.sqrt(20000)).all()
    assert found == f"4 channels have means from -{-mean.min():.3g} to {mean.max():.3g} and deviations from " + (
        f"{deviation.min():.3g} to {deviation.max():.3g}"
    )


@pytest.mark.parametrize("change", ["normalise", "restore"])
def test_principal_components_are_products_of_full_precision(change):
    normaliser, _ = fitted("pca", latents())
    assert "precision=(Precision.HIGHEST" in str(jax.make_jaxpr(getattr(normaliser, change))(latents()))


@pytest.mark.parametrize("components", [4, 2])
def test_components_of_a_known_covariance_are_found(components):
    """Latents whose covariance is Q diag(s²) Qᵀ to the last digit."""
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    q *= np.sign(np.take_along_axis(q, np.abs(q).argmax(0)[None], 0))
    white = rng.standard_normal((60, 4))
    white = np.sqrt(60) * np.linalg.qr(white - white.mean(0))[0]
    scales = np.array([5.0, 2.0, 1.0, 0.1])
    x = (white * scales) @ q.T + OFFSETS
    normaliser = build({"name": "pca", "components": components}, 4)
    found = normaliser.fit(moments_of(x[:, None]))
    share = (scales[:components] ** 2).sum() / (scales**2).sum()
    assert found == f"{components} of 4 principal components hold {share:.2%} of the variance"
    np.testing.assert_allclose(normaliser.directions.get_value(), q[:, :components], atol=1e-6)
    np.testing.assert_allclose(normaliser.deviation.get_value(), scales[:components], rtol=1e-6)
    x32 = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(normaliser.normalise(x32), white[:, :components], atol=2e-4)
    error = np.mean(np.sum((np.asarray(normaliser.restore(normaliser.normalise(x32))) - x) ** 2, -1))
    np.testing.assert_allclose(error, (scales[components:] ** 2).sum(), rtol=1e-4, atol=1e-8)


def test_shorter_clips_have_the_statistics_of_the_first_frames():
    x = latents()
    normaliser, _ = fitted("frame", x)
    np.testing.assert_array_equal(normaliser.normalise(x[:, :1]), normaliser.normalise(x)[:, :1])
    np.testing.assert_array_equal(normaliser.restore(x[:, :2]), normaliser.restore(x)[:, :2])
    with pytest.raises(UserError, match="for clips of 3 latent frames, got 6"):
        normaliser.normalise(np.concatenate([x, x], axis=1))


def test_a_channel_that_does_not_move_comes_back():
    x = latents()
    x[..., 1] = 0.25
    normaliser, _ = fitted("channel", x)
    y = normaliser.normalise(x)
    assert np.isfinite(y).all() and not np.any(y[..., 1])
    np.testing.assert_array_equal(normaliser.restore(y)[..., 1], x[..., 1])


def test_what_cannot_be_normalised_is_refused():
    x = latents()
    flat = x.copy()
    flat[..., 3] = flat[..., 0] + 2 * flat[..., 1]
    for message, call in (
        ("no 5 principal components", lambda: build({"name": "pca", "components": 5}, 4)),
        ("'components'", lambda: build({"name": "pca"}, 4)),
        ("unknown normaliser 'means'.*'mean'", lambda: build({"name": "means"}, 4)),
        ("vary in 3 directions, fewer than 4", lambda: fitted("pca", flat)),
        ("the latents do not vary", lambda: fitted("channel", np.ones_like(x))),
        (
            "latent frames without any latents",
            lambda: build(CONFIGS["frame"], 4).fit(moments_of(x, np.zeros(x.shape[:-1], bool), True)),
        ),
        ("--normalise=pca must be channel, frame or pca:K", lambda: read_normaliser("pca", None)),
    ):
        with pytest.raises(UserError, match=message):
            call()
    layout = SegmentLayout((("time", 5), ("query", 2)), channels=4)
    settings = [read_normaliser(text, layout) for text in ("channel", "frame", "pca:3")]
    assert settings == [{"name": "mean"}, {"name": "mean", "frames": 5}, {"name": "pca", "components": 3}]


class Pooled(Tokenizer):
    """Two colours of a frame, scaled, are a latent of its own; it sees nothing else."""

    sides, last_layer, streams, drops = ("time", "query"), ("scale",), True, True

    def __init__(self, quantizer, rngs):
        self.compression = Compression(1, 4, 4, first_alone=False)
        self.quantizer = quantizers.build(quantizer, rngs=rngs)

    def layout(self, shape):
        return self.layout_of((shape.frames, 2))

    def encode(self, video, request=None):
        colours = 30.0 * video.mean((2, 3))[..., :2, None] + 5.0
        return Encoded(jnp.concatenate([colours, colours**2, 0 * colours, 0 * colours], axis=-1))

    def decode(self, latents, kept=None):
        colours = (latents[..., 0] - 5.0) / 30.0 * (1.0 if kept is None else kept)
        return jnp.broadcast_to(colours[:, :, None, None, [0, 1, 1]], (*colours.shape[:2], 4, 4, 3))


GAUSSIAN = {"name": "gaussian", "width": 2}


@pytest.mark.parametrize("name", CONFIGS)
def test_tokens_of_a_tokenizer_with_a_normaliser_are_normalised_and_decode_as_ever(name):
    raw = Pooled(GAUSSIAN, nnx.Rngs(0))
    video = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (6, 3, 4, 4, 3)), jnp.float32)
    before = raw.tokenize(video)
    config = CONFIGS[name] | ({"components": 2} if name == "pca" else {})
    normaliser = build(config, 2)
    normaliser.fit(moments_of(before.only.values, by_frame=name == "frame"))
    model = Normalised(raw, normaliser)
    tokens = model.tokenize(video)
    tokens.only.check()
    assert tokens.layout == model.layout(VideoShape(3, 4, 4)) == raw.layout(VideoShape(3, 4, 4))
    np.testing.assert_allclose(jnp.var(tokens.only.values, axis=(0, 2) if name == "frame" else (0, 1, 2)), 1, rtol=1e-3)
    np.testing.assert_allclose(model.lookup(tokens), before.only.values, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(model.detokenize(tokens), raw.detokenize(before), atol=1e-5)
    latents, _, losses, _ = model.bottleneck(model.encode(video))
    np.testing.assert_array_equal(latents, before.only.values)  # raw, as ``decode`` takes them
    assert "kl" in losses and (model.normalised, raw.normalised) == (True, False) and model.coder is model
    assert model.streams == (name != "frame")
    part = tokens.replace(
        video=tokens.only.__class__(tokens.only.values, tokens.layout.only, kept=jnp.zeros((6, 3, 2), bool))
    )
    assert not jnp.any(model.detokenize(part))


def test_fewer_components_make_narrower_tokens():
    raw = Pooled(GAUSSIAN, nnx.Rngs(0))
    model = Normalised(raw, build({"name": "pca", "components": 1}, 2))
    layout = model.layout(VideoShape(3, 4, 4)).only
    assert layout.channels == 1 and layout == model.layout_of((3, 2)).only
    tokens = Tokens.single(jnp.ones((5, 3, 2, 1)), model.layout_of((3, 2)))
    assert model.lookup(tokens).shape == (5, 3, 2, 2)


def test_a_tokenizer_that_cannot_be_normalised_is_refused():
    gaussian, codes = Pooled(GAUSSIAN, nnx.Rngs(0)), Pooled({"name": "fsq", "levels": [3] * 4}, nnx.Rngs(0))
    still = build({"name": "mean"}, 2)
    with pytest.raises(UserError, match="this tokenizer gives codes"):
        Normalised(codes, still)
    with pytest.raises(UserError, match="normalised already"):
        Normalised(Normalised(gaussian, still), still)
    gaussian.sides = ("query", "time")
    with pytest.raises(UserError, match="no latent frames; normalise them by channel"):
        Normalised(gaussian, build({"name": "mean", "frames": 3}, 2))
    config = {"name": "normalised", "tokenizer": {"name": "magvit"}, "normaliser": {"name": "mean"}}
    with pytest.raises(UserError, match="tokenizer 'magvit' needs the setting"):
        jax.eval_shape(lambda: tokenizers.build(config, rngs=nnx.Rngs(0)))
