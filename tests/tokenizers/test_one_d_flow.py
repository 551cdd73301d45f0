"""Properties of the FlexTok sheet: prefixes, nested dropout, codes, the flow that decodes, its guidance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tokenizers.test_invariants import CONFIGS, make, model_of, video_of
from videogen import diffusion, quantizers
from videogen.diffusion import fresh_noise
from videogen.errors import UserError
from videogen.nn import MicroBatch
from videogen.tokenizers import Encoded, build
from videogen.tokenizers.lengths import first
from videogen.tokenizers.one_d_flow import EARLY, VELOCITY, OneDFlow

CONFIG = CONFIGS["one_d_flow"]
QUERIES, CLIP = CONFIG["queries"], (*CONFIG["clip"], 3)
KEYS = jax.random.split(jax.random.key(5), QUERIES)


def latents_of(count: int = QUERIES) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (count, QUERIES, 2))


@functools.cache
def decode(**settings):
    return jax.jit(functools.partial(model_of("one_d_flow").decode, **settings))


def with_oracle(monkeypatch, velocity: jax.Array) -> None:
    """The network knows the velocity."""
    shape = model_of("one_d_flow").places
    early = jnp.zeros((len(velocity), *shape, 16))
    monkeypatch.setattr(OneDFlow, "velocity", lambda self, noisy, t, registers: (velocity, early))


# Prefixes ------------------------------------------------------------------------------------------------------------


def test_every_prefix_decodes_as_all_registers_with_the_others_masked():
    """Property 1, of one example for every length, by Euler steps written out."""
    model, latents = model_of("one_d_flow"), latents_of()
    kept = first(jnp.arange(1, QUERIES + 1), (QUERIES, QUERIES))
    shown = decode(guidance_scale=1.0)(latents, kept, keys=KEYS)
    registers = np.array(model.from_code(latents))
    registers[~np.asarray(kept)] = model.no_code.get_value()
    x, velocity = fresh_noise(KEYS, CLIP, 0), jax.jit(model.velocity)
    for t in (1.0, 0.5):
        x = x - 0.5 * velocity(x, jnp.full(QUERIES, t), registers)[0]
    np.testing.assert_allclose(shown, x, atol=1e-4 * np.abs(x).max())
    everything = decode(guidance_scale=1.0)(latents, keys=KEYS)
    np.testing.assert_allclose(shown[-1], everything[-1], atol=1e-5 * np.abs(x).max())
    assert all(np.abs(shown[k] - everything[k]).max() > 1e-3 for k in range(QUERIES - 1))


def test_what_is_dropped_has_no_influence_and_no_gradient():
    """Property 2: exactly zero, also with guidance."""
    latents, kept = latents_of(), first(jnp.arange(1, QUERIES + 1), (QUERIES, QUERIES))
    run, model = decode(guidance_scale=2.0), model_of("one_d_flow")
    changed = jnp.where(kept[..., None], latents, 7.0)
    np.testing.assert_array_equal(run(changed, kept, keys=KEYS), run(latents, kept, keys=KEYS))
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(jnp.sin(model.decode(z, kept, guidance_scale=2.0)))))(latents)
    assert (np.abs(gradient).max(-1) > 0).tolist() == kept.tolist()


def test_the_encoder_does_not_know_how_many_are_kept():
    """Property 3: dropout acts on the decoder's side only."""
    model, video = model_of("one_d_flow"), video_of("one_d_flow")
    encode = jax.jit(lambda v, k: model.encode(v, k).values, static_argnums=1)
    whole = encode(video, None)
    for count in (1, 3, QUERIES):
        np.testing.assert_array_equal(encode(video, count), whole)
    drawn = [model.bottleneck(Encoded(whole), key=jax.random.key(s), train=True) for s in range(24)]
    assert {int(tokens.only.kept.sum()) for _, tokens, *_ in drawn} == {1, 2, 4, 6}
    latents = model.bottleneck(Encoded(whole))[0]
    assert all(np.array_equal(found[0], latents) for found in drawn)


# Codes ---------------------------------------------------------------------------------------------------------------


def test_the_published_codes():
    """Property 4: 64,000 ids, each a code of its own; levels in [-1, 1); the gradient is that of the tanh."""
    levels = np.array([8, 8, 8, 5, 5, 5])
    quantizer = quantizers.build({"name": "fsq", "levels": levels.tolist()}, rngs=nnx.Rngs(0))
    assert quantizer.vocabulary == (64_000,) and np.log2(64_000) == pytest.approx(15.966, abs=1e-3)
    ids = jnp.arange(64_000)[:, None]
    codes = np.asarray(quantizer.lookup(ids))
    digits = np.rint(codes * (levels // 2)).astype(int)
    np.testing.assert_array_equal(codes, (digits / (levels // 2)).astype(np.float32))
    for i, level in enumerate(levels):
        assert set(digits[:, i]) == set(range(-(level // 2), (level - 1) // 2 + 1))
    assert len(np.unique(digits, axis=0)) == 64_000
    # The bound of the sheet, inverted: latents in the middle of each cell.
    half, offset = (levels - 1) * (1 + 1e-3) / 2, np.where(levels % 2, 0, 0.5)
    shift = np.arctanh(offset / half)
    latents = jnp.asarray(np.arctanh(np.clip((digits + offset) / half, -0.9999, 0.9999)) - shift, jnp.float32)
    np.testing.assert_array_equal(quantizer(latents).indices, ids)
    z = jax.random.normal(jax.random.key(0), (50, 6))
    slope = jax.grad(lambda z: quantizer(z).latents.sum())(z)
    expected = half * (1 - np.tanh(z + shift) ** 2) / (levels // 2)
    np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-6)


# The flow ------------------------------------------------------------------------------------------------------------


def test_a_fresh_decoder_gives_zero_and_its_blocks_do_nothing():
    """Property 6 (adaLN-zero)."""
    times, kinds = jnp.array([0.3, 0.9]), np.repeat([0, 1], [4, QUERIES - 4])
    x, patches = jax.random.normal(jax.random.key(0), (2, QUERIES, 16)), jnp.ones((2, 8, 48))

    @jax.jit
    def run():
        decoder = build(CONFIG, rngs=nnx.Rngs(0)).decoder
        condition = decoder.time(times)[:, None]
        return decoder(patches, times, x), decoder.tower.trunk(x, condition=condition, group_of=kinds)

    found, (tokens, _, tapped) = run()
    np.testing.assert_array_equal(found.values, np.zeros_like(patches))
    for after in (tokens, tapped[1]):
        np.testing.assert_allclose(after, x, atol=1e-6)
    assert np.abs(found.early).max() > 0


def test_patches_and_registers_have_shifts_of_their_own():
    """Rows of one linear layer: those of the one kind of tokens change nothing for the other."""
    model = make(CONFIG)
    modulation = model.decoder.tower.stack.layers.modulation.linear
    kernel, bias = modulation.kernel.get_value(), modulation.bias.get_value()
    assert kernel.shape == (2, 16, 2 * 6 * 16)
    x = jax.random.normal(jax.random.key(1), (1, 5, 16))
    condition = model.decoder.time(jnp.full(1, 0.4))[:, None]
    # Gates closed for registers: they stay as they are, and patches do not.
    closed = bias.at[:, 6 * 16 :].set(0.0)
    modulation.kernel.set_value(kernel.at[..., 6 * 16 :].set(0.0))
    modulation.bias.set_value(closed)
    layer = model.decoder.tower.stack.layer(0)
    kinds = np.array([0, 0, 0, 1, 1])
    y = jax.jit(lambda x: layer(x, condition=condition, group_of=kinds))(x)
    np.testing.assert_array_equal(y[:, 3:], x[:, 3:])
    assert np.abs(y - x)[:, :3].max(-1).min() > 1e-3


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_the_true_velocity_leads_to_the_clip_in_any_number_of_steps(monkeypatch, steps):
    """Property 7."""
    clean = jax.random.uniform(jax.random.key(1), (QUERIES, *CLIP), minval=-1, maxval=1)
    with_oracle(monkeypatch, fresh_noise(KEYS, CLIP, 0) - clean)
    drawn = model_of("one_d_flow").decode(latents_of(), keys=KEYS, steps=steps, guidance_scale=1.0)
    np.testing.assert_allclose(drawn, clean, atol=2e-5)


def test_training_compares_velocities_and_shows_the_clip_they_mean(monkeypatch):
    model, video = model_of("one_d_flow"), jnp.concatenate([video_of("one_d_flow")] * 3)
    compare = jax.jit(lambda z, v, key: model.compare(Encoded(z), z, v, key))
    found = compare(latents_of(3), video, jax.random.key(0))
    value, target = found.passes[VELOCITY]
    assert value.shape == target.shape == video.shape
    # x_t = x + t·(noise - x), so that noise = x + target; its deviation is 1.
    noise = target + video
    assert float(noise.std()) == pytest.approx(1.0, rel=0.1) and abs(float(noise.mean())) < 0.1
    assert found.features[EARLY].shape == (3, *model.places, 16) and model.features[EARLY] == 16
    # Were the velocity true, the clip would be.
    with_oracle(monkeypatch, target)
    seen = model.compare(Encoded(latents_of(3)), latents_of(3), video, jax.random.key(0))
    np.testing.assert_allclose(seen.video, video, atol=1e-5)
    np.testing.assert_array_equal(seen.passes[VELOCITY][1], target)


def test_micro_batches_see_what_the_whole_batch_sees():
    model, latents = model_of("one_d_flow"), latents_of(4)
    video = jax.random.uniform(jax.random.key(1), (4, *CLIP), minval=-1, maxval=1)
    kept = first(jnp.array([1, 2, 4, 6]), (4, QUERIES))

    def velocities(rows: slice, micro: MicroBatch) -> tuple[jax.Array, jax.Array]:
        z = latents[rows]
        return model.compare(Encoded(z), z, video[rows], jax.random.key(0), micro, kept[rows]).passes[VELOCITY]

    part = jax.jit(lambda: velocities(slice(1, None, 2), MicroBatch(1, 2)))()
    whole = jax.jit(lambda: velocities(slice(None), MicroBatch()))()
    for one, other in zip(part, whole, strict=True):
        np.testing.assert_allclose(one, other[1::2], atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_null_registers_are_another_vector_than_dropped_ones(share):
    """Property 10: nothing kept is not the null; a share of the examples is trained with it."""
    model = make(CONFIG, flow=CONFIG["flow"] | {"null_share": share})
    latents, kept = latents_of(2), jnp.zeros((2, QUERIES), bool).at[:, 0].set(True)
    graph, state = nnx.split(model)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1))
    def gradient(state, z):
        found = nnx.merge(graph, state).compare(Encoded(z), z, jnp.zeros((2, *CLIP)), jax.random.key(0), kept=kept)
        return jnp.sum(jnp.sin(found.passes[VELOCITY][0]))

    of_state, of_latents = gradient(state, latents)
    moved = {name: bool(np.any(of_state[name].get_value())) for name in ("null", "no_code")}
    assert moved == {"null": share == 1, "no_code": share == 0} and bool(np.any(of_latents)) == (share == 0)
    nothing, null = model.registers(latents, jnp.zeros((2, QUERIES), bool)), model.nulls(2)
    assert np.abs(nothing - null).min(axis=(0, 1)).max() > 0.01


# Guidance ------------------------------------------------------------------------------------------------------------


def test_without_guidance_the_null_is_never_looked_at():
    """Property 10."""
    model = make(CONFIG)
    model.null.set_value(jnp.full_like(model.null.get_value(), jnp.nan))
    run = jax.jit(model.decode, static_argnames="guidance_scale")
    assert np.isfinite(run(latents_of(1), guidance_scale=1.0)).all()
    assert not np.isfinite(run(latents_of(1), guidance_scale=2.0)).any()


def test_guidance_leads_away_from_the_null():
    """``null + scale · (codes - null)`` at the one step of a decoding; the same everywhere where codes are null."""
    model = make(CONFIG, flow={"steps": 1, "guidance_scale": 3.0, "guidance": {"name": "classifier_free"}})
    latents, keys = latents_of(2), KEYS[:2]
    noise = fresh_noise(keys, CLIP, 0)
    seen, null = (model.velocity(noise, jnp.ones(2), r)[0] for r in (model.registers(latents), model.nulls(2)))
    guided = noise - (null + 3.0 * (seen - null))
    np.testing.assert_allclose(model.decode(latents, keys=keys), guided, atol=1e-4 * np.abs(guided).max())
    model.no_code.set_value(model.null.get_value())
    none = jnp.zeros((2, QUERIES), bool)
    one, three = (model.decode(latents, none, keys=keys, guidance_scale=s) for s in (1.0, 3.0))
    np.testing.assert_allclose(one, three, atol=1e-4 * np.abs(one).max())


def test_projected_guidance_without_its_changes_is_classifier_free():
    """Property 8; 9 is in tests/diffusion/test_guidance.py."""
    plain = {"name": "adaptive_projected", "eta": 1.0, "momentum": 0.0, "norm_threshold": 1e9}
    flows = [{"steps": 2, "guidance_scale": 4.0, "guidance": g} for g in (plain, {"name": "classifier_free"})]
    drawn = [jax.jit(make(CONFIG, flow=flow).decode)(latents_of(2), keys=KEYS[:2]) for flow in flows]
    np.testing.assert_allclose(drawn[0], drawn[1], atol=1e-4 * np.abs(drawn[1]).max())
    published = diffusion.build_guidance({"name": "adaptive_projected"}, 7.5)
    assert (published.scale, published.eta, published.momentum, published.norm_threshold) == (7.5, 0.0, -0.5, 2.5)


# Draws ---------------------------------------------------------------------------------------------------------------


def test_an_example_is_drawn_by_its_own_codes_and_key():
    """Property 11 for the decoder: in a batch as alone. Without keys all begin with the same noise, always."""
    latents, run = latents_of(3), decode(guidance_scale=2.0)
    together = run(latents, keys=KEYS[:3])
    for i in range(3):
        alone = run(latents[i : i + 1], keys=KEYS[i : i + 1])
        np.testing.assert_allclose(alone[0], together[i], atol=1e-4 * np.abs(together).max())
    np.testing.assert_array_equal(together, run(latents, keys=KEYS[:3]))
    assert np.abs(together - run(latents, keys=KEYS[3:6])).max() > 1e-2
    same = run(jnp.concatenate([latents[:1]] * 3))
    np.testing.assert_allclose(same[0], same[2], atol=1e-5 * np.abs(same).max())
    np.testing.assert_allclose(same, run(jnp.concatenate([latents[:1]] * 3)), atol=0)


def test_latents_of_any_scale_are_brought_to_deviation_1_and_back(monkeypatch):
    """The statistics of the steps so far; a factor of 7 shows where the order is wrong."""
    model = make(CONFIG, normalise=True, channels=3)
    for name, value in (("mean", jnp.zeros(3)), ("square", jnp.ones(3)), ("count", jnp.array(0)), ("seen", 0.0)):
        getattr(model.statistics, name).set_value(jnp.asarray(value))
    raw = 3 + 7 * jax.random.normal(jax.random.key(2), (QUERIES, *CLIP))
    found = jax.jit(lambda z: model.compare(Encoded(z), z, raw, jax.random.key(0)).sums)(latents_of())
    model.update({"update_sums": {}, "compared": found}, {})
    inside = model.normalised_input(raw)
    assert float(inside.mean()) == pytest.approx(0, abs=1e-4) and float(inside.std()) == pytest.approx(1, rel=1e-3)
    np.testing.assert_allclose(model.statistics.deviation, np.std(raw, axis=(0, 1, 2, 3)), rtol=1e-3)
    with_oracle(monkeypatch, fresh_noise(KEYS, CLIP, 0) - inside)
    drawn = model.decode(latents_of(), keys=KEYS, guidance_scale=1.0)
    np.testing.assert_allclose(drawn, raw, atol=1e-3)


def test_wrong_settings_are_named():
    for flow, message in (
        ({"guidance": {"name": "apg"}}, "unknown guidance 'apg'"),
        ({"null_share": 1.5}, "null_share"),
        ({"step": 3}, "no setting 'step'; did you mean 'steps'"),
        ({"solver": {"name": "eulers"}}, "unknown solver 'eulers'; did you mean 'euler'"),
    ):
        with pytest.raises(UserError, match=message):
            build(CONFIG | {"flow": flow}, rngs=nnx.Rngs(0))
