"""Residuals over scales: sums, one scale, drops, whole scales, and labels that are found again."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.errors import UserError
from videogen.nn import resize_area, resize_cubic
from videogen.quantizers import build
from videogen.quantizers.health import evaluated_health

DUAL = {"name": "dual_codebook", "size": 24, "widths": (5, 3)}
SCALES = ((1, 1, 1), (1, 2, 2), (2, 3, 3), (2, 4, 5))
TOKENS = 1 + 4 + 18 + 40


@functools.cache
def make(**settings) -> nnx.Module:
    return build({"name": "multi_scale", "base": DUAL, "scales": SCALES} | settings, rngs=nnx.Rngs(0))


def latents(batch: int = 3, seed: int = 1) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (batch, 2, 4, 5, 8))


@functools.cache
def coded(number: int):
    """Compiled: what is left over -> the base's result at a scale, and its codes on the full grid."""

    @jax.jit
    def run(rest):
        found = make().base(resize_area(rest, SCALES[number]))
        return found, resize_cubic(found.latents, SCALES[-1])

    return run


@functools.cache
def quantized():
    return jax.jit(make())(latents())


def test_scales_and_what_is_left_over_sum_up_to_the_latents():
    """Each scale written out: the mean of the rest, its code, enlarged, added, taken off."""
    quantizer, rest, total = make(), np.asarray(latents()), 0.0
    for number, ids in enumerate(quantizer.split(quantized().indices)):
        coarse, codes = coded(number)(rest)
        np.testing.assert_array_equal(ids, coarse.indices)
        codes = np.asarray(codes)
        total, rest = total + codes, rest - codes
    np.testing.assert_allclose(quantized().latents, total, atol=1e-5)
    np.testing.assert_allclose(total + rest, latents(), atol=1e-5)
    assert quantized().indices.shape == (3, TOKENS, 1) == (3, quantizer.tokens(4), 1)


BASES = {
    "dual_codebook": DUAL,
    "vq": {"name": "vq", "size": 16, "width": 8, "cosine": False, "restart_threshold": 0.5},
    "fsq": {"name": "fsq", "levels": [4, 3, 5, 8, 3, 3, 3, 3]},
    "product": {"name": "product", "base": {"name": "vq", "size": 8, "width": 4}, "groups": 2},
}


@pytest.mark.parametrize("name", BASES)
def test_the_full_scale_alone_is_the_base(name):
    """Ids, codes, losses, counts, sums and gradients, to the bit, of any family."""

    def run(config):
        quantizer = build(config, rngs=nnx.Rngs(0))

        def loss(z):
            found = quantizer(z, key=jax.random.key(2), train=True)
            return jnp.sum(jnp.sin(found.latents)) + sum(found.losses.values()), found

        (value, found), gradient = jax.value_and_grad(loss, has_aux=True)(latents())
        flat = found.indices.reshape(3, -1, found.indices.shape[-1])
        return value, gradient, flat, found.latents, found.losses, found.measured

    ours = run({"name": "multi_scale", "base": BASES[name], "scales": SCALES[-1:]})
    jax.tree.map(np.testing.assert_array_equal, ours, run(BASES[name]))


def test_losses_are_means_over_the_scales_and_counts_stand_apart():
    quantizer, rest, losses = make(), latents(), []
    for number, scale in enumerate(SCALES):
        found, codes = coded(number)(rest)
        losses.append(found.losses)
        counts = np.asarray(quantized().statistics["counts"]).reshape(4, 24)[number]
        np.testing.assert_array_equal(counts, found.statistics["counts"])
        assert counts.sum() == 3 * np.prod(scale)
        rest = rest - codes
    for name, value in quantized().losses.items():
        np.testing.assert_allclose(value, np.mean([of_scale[name] for of_scale in losses]), rtol=1e-5)
    assert quantizer.counted == {f"scale_{i}": 24 for i in (1, 2, 3, 4)}
    health = evaluated_health(np.asarray(quantized().statistics["counts"]), quantizer.counted)
    # Three ids of the first scale: even draws would show 1 - (1 - 1/24)^3 of the table.
    assert health["codebook_expected_usage_scale_1"] == pytest.approx(1 - (23 / 24) ** 3)


def test_whole_scales_decode_and_a_part_of_one_does_not():
    quantizer, lookup = make(), jax.jit(make().lookup)
    rest = np.asarray(latents())
    for count, tokens in enumerate((1, 5, 23, 63), start=1):
        codes = lookup(quantized().indices[:, :tokens])
        assert quantizer.whole_scales(tokens) == count
        rest = rest - np.asarray(coded(count - 1)(rest)[1])
        np.testing.assert_allclose(codes, latents() - rest, atol=1e-5)
    np.testing.assert_allclose(codes, quantized().latents, atol=1e-6)
    for tokens in (2, 22, 62):
        with pytest.raises(UserError, match=f"only whole scales decode, 1, 5, 23, 63 tokens, and {tokens}"):
            quantizer.lookup(quantized().indices[:, :tokens])


@pytest.mark.parametrize("counts", [(1, 2, 4, 6, 8, 10, 12, 14), (1, 2, 4, 6, 8, 10, 12, 14, 16)])
def test_published_numbers_of_tokens(counts):
    scales = tuple((1, side, side) for side in counts)
    assert make(scales=scales).tokens(len(scales)) == {14: 561, 16: 817}[counts[-1]]


def test_training_drops_one_scale_in_a_tenth_of_the_examples_and_never_the_first():
    quantizer = make()
    kept = np.asarray(jax.jit(quantizer.kept_scales, static_argnums=0)(20_000, jax.random.key(3)))
    assert kept[:, 0].all() and set((~kept).sum(-1)) == {0, 1}
    # 0.1 ± 4 standard deviations, and a third of that for each scale.
    np.testing.assert_allclose((~kept).any(-1).mean(), 0.1, atol=0.0085)
    np.testing.assert_allclose((~kept)[:, 1:].mean(0), 0.1 / 3, atol=0.0052)


def test_a_dropped_scale_adds_nothing_takes_nothing_off_and_is_in_no_loss():
    """Every example drops a scale; each one is what a quantizer without that scale makes of it."""
    quantizer, key, batch = make(drop=1.0), jax.random.key(4), 12
    z = latents(batch)
    found = jax.jit(functools.partial(quantizer, train=True))(z, key=key)
    kept = np.asarray(quantizer.kept_scales(batch, key))
    assert set(np.argmin(kept, axis=1)) == {1, 2, 3} and found.latents.shape == z.shape
    commitment, places = np.zeros(4), np.zeros(4)
    for example in range(batch):
        left = np.flatnonzero(kept[example])
        rest, total = z[example : example + 1], 0.0
        for number in left:
            result, codes = coded(number)(rest)
            rest, total = rest - codes, total + codes
            commitment[number] += result.losses["commitment"]
            places[number] += 1
        np.testing.assert_allclose(found.latents[example], total[0], atol=1e-5)
    np.testing.assert_allclose(found.losses["commitment"], np.mean(commitment / places), rtol=1e-5)
    counts = np.asarray(found.statistics["counts"]).reshape(4, 24).sum(1)
    np.testing.assert_array_equal(counts, places * [1, 4, 18, 40])


def test_nothing_is_dropped_in_evaluation_nor_where_there_is_one_scale():
    found = jax.jit(make(drop=1.0))(latents(), key=jax.random.key(4))
    np.testing.assert_array_equal(found.latents, quantized().latents)
    alone = build({"name": "multi_scale", "base": DUAL, "scales": SCALES[-1:], "drop": 1.0}, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(alone(latents(), key=jax.random.key(4), train=True).latents, alone(latents()).latents)


def test_labels_of_later_scales_are_found_again_behind_wrong_ids():
    """Case 7: what the wrong ids leave over is coded; behind the right ones labels are equal to the bit."""
    quantizer, ids = make(), make().split(quantized().indices)
    relabel = jax.jit(lambda z, *shown: quantizer.relabel(z, shown))
    for shown in range(4):
        for ours, theirs in zip(relabel(latents(), *ids[:shown]), ids[shown:], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    wrong = [ids[0], (ids[1] + 7) % 24]
    found = relabel(latents(), *wrong)
    rest = latents() - quantizer.total(wrong)
    for number, label in enumerate(found, start=2):
        expected, codes = coded(number)(rest)
        np.testing.assert_array_equal(label, expected.indices)
        rest = rest - codes
    assert any((label != old).any() for label, old in zip(found, ids[2:], strict=True))
    # Shown ids and labels together still sum up to the latents, with what is left over.
    np.testing.assert_allclose(quantizer.total([*wrong, *found]) + rest, latents(), atol=1e-5)


def test_five_is_four_and_one_or_three_and_two():
    """The example of case 7, with whole numbers as codes."""
    quantizer = build(
        {
            "name": "multi_scale",
            "base": {"name": "fsq", "levels": [11], "bound": "clamp"},
            "scales": ((1, 1, 1), (1, 1, 1)),
        },
        rngs=nnx.Rngs(0),
    )
    value = quantizer.base.lookup(jnp.arange(11)[:, None])[:, 0]
    of = {float(round(v * 5)): i for i, v in enumerate(np.asarray(value))}
    five = jnp.full((1, 1, 1, 1, 1), float(value[of[5.0]]))
    for first, second in ((4.0, 1.0), (3.0, 2.0)):
        shown = [jnp.full((1, 1, 1, 1, 1), of[first], jnp.int32)]
        assert int(quantizer.relabel(five, shown)[0].reshape(())) == of[second]


def test_what_a_scale_reads_is_the_mean_of_the_sum_before_it():
    quantizer, ids = make(), make().split(quantized().indices)
    total = quantizer.total(ids[:2])
    np.testing.assert_array_equal(quantizer.at_scale(total, 2), resize_area(total, SCALES[2]))
    np.testing.assert_array_equal(quantizer.at_scale(total, 3), total)


def test_the_base_moves_once_by_the_tokens_of_all_scales():
    base = {"name": "vq", "size": 16, "width": 8, "decay": 0.5}
    quantizer = build({"name": "multi_scale", "base": base, "scales": SCALES}, rngs=nnx.Rngs(0))
    found = jax.jit(functools.partial(quantizer, train=True))(latents(), key=jax.random.key(0))
    quantizer.update(found.update_sums, found.candidates, jax.random.key(1))
    used = np.asarray(found.statistics["counts"]).reshape(4, 16).sum(0)
    np.testing.assert_allclose(quantizer.base.counts.get_value(), 0.5 * used)


def test_what_cannot_be_is_refused():
    for scales in ((), ((1, 5, 1), (2, 4, 5))):
        with pytest.raises(UserError, match="the last of the scales is the whole grid"):
            make(scales=scales)
    with pytest.raises(UserError, match="'gaussian' gives none"):
        build({"name": "multi_scale", "base": {"name": "gaussian", "width": 4}, "scales": SCALES}, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="whole grids of 2×4×5, got 2×4×4"):
        make()(latents()[..., :4, :])
    with pytest.raises(UserError, match="got padding"):
        make()(latents(), exists=jnp.ones((3, 2, 4, 5), bool))
