"""Invariants of the diffusion transformer: times, masks, given frames, guidance, batches, and what training reaches."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.generators.clips import latents_of, layout_of
from videogen import diffusion
from videogen.conditioning import Conditioning, EncodedText
from videogen.errors import UserError
from videogen.generators import FlowSampler, FlowTransformer
from videogen.shapes import TokenGrid

GRID, CHANNELS = TokenGrid(3, 2, 4), 3
VIDEO = layout_of(GRID, channels=CHANNELS)
TRANSFORMER = {"width": 16, "layers": 2, "heads": 2, "mlp_width": 32}
SMALL = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 16}
MODELS = {
    "cross": {},
    "joint": {"text": "joint", "modulation": "single"},
    "frames": {"times": "frame", "modulation": "single", "prefix_share": 0.5},
    "causal": {"times": "frame", "causal": True},
    "causal, joint": {"text": "joint", "times": "frame", "causal": True},
    "prefix": {"prefix_share": 0.5, "classes": 4},
    "label": {"classes": 4, "context_width": None},
    "alone": {"context_width": None, "patch": (1, 1, 2)},
    "pairs of frames": {"patch": (3, 1, 2), "times": "frame"},
    "deep": {"text": "deep", "transformer": TRANSFORMER | {"rotary": False}},
}


@functools.cache
def fresh(name: str) -> FlowTransformer:
    settings = {"context_width": 8, "patch": (1, 2, 2), "transformer": TRANSFORMER, **MODELS[name]}
    return FlowTransformer(CHANNELS, GRID.shape, **settings, rngs=nnx.Rngs(0))


@functools.cache
def make(name: str) -> FlowTransformer:
    """With random numbers in place of the zeros of a fresh model, so that every path matters."""
    graph, state = nnx.split(fresh(name))
    random = np.random.default_rng(0)

    def away_from_zero(x: jax.Array) -> jax.Array:
        return x + jnp.asarray(0.2 * random.normal(size=x.shape), x.dtype)

    # Statistics, which are positive, stay.
    params, others = nnx.split_state(state, nnx.Param, ...)
    return nnx.merge(graph, jax.tree.map(away_from_zero, params), jax.tree.map(jnp.array, others))


def copy(model: FlowTransformer) -> FlowTransformer:
    graph, state = nnx.split(model)
    return nnx.merge(graph, jax.tree.map(jnp.array, state))


def told(name: str, batch: int) -> Conditioning:
    model, text = fresh(name), None
    if model.context is not None:
        features = jax.random.normal(jax.random.key(0), (batch, 5, 8))
        text = EncodedText(features, jnp.arange(5)[None] < 3 + jnp.zeros((batch, 1), int))
    return Conditioning(text, jnp.arange(batch) if model.label is not None else None)


def latents(batch: int = 2, frames: int = GRID.time, seed: int = 7) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (batch, frames, GRID.height, GRID.width, CHANNELS))


def keys(batch: int) -> jax.Array:
    return jax.random.split(jax.random.key(5), batch)


@functools.cache
def predictor(name: str):
    """Compiled once for the fresh model and the one with random numbers."""
    graph = nnx.graphdef(fresh(name))

    def predict(state, x, t, conditioning):
        model = nnx.merge(graph, state)
        return model.predict(x, t, model.prepare(conditioning))

    return jax.jit(predict)


def predict(
    name: str, x: jax.Array, t: jax.Array, conditioning: Conditioning | None = None, build: Callable = make
) -> jax.Array:
    told_of = told(name, len(x)) if conditioning is None else conditioning
    return predictor(name)(nnx.state(build(name)), x, t, told_of)


def draw(name: str, sampler: FlowSampler, batch: slice = slice(2), prefix=None, grid: TokenGrid = GRID) -> jax.Array:
    """Samples of some of three examples."""
    model = make(name)
    conditioning = jax.tree.map(lambda x: x[batch], told(name, 3))
    layout, prefix = layout_of(grid, channels=CHANNELS), None if prefix is None else latents_of(prefix)
    drawn = jax.jit(lambda c, k, p: model.sample(layout, c, k, sampler, p))(conditioning, keys(3)[batch], prefix)
    return drawn.only.values


SAMPLER = FlowSampler(steps=3, guidance_scale=2.0)


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_predicted_at_the_start(name):
    np.testing.assert_array_equal(predict(name, latents(), jnp.full(2, 0.5), build=fresh), 0)


@pytest.mark.parametrize("name", MODELS)
def test_one_time_for_all_frames_is_the_time_of_the_clip(name):
    t = jnp.array([0.3, 0.8])
    frames = jnp.broadcast_to(t[:, None], (2, GRID.time))
    np.testing.assert_allclose(predict(name, latents(), frames), predict(name, latents(), t), atol=2e-5)


@pytest.mark.parametrize(("name", "causal"), [("frames", False), ("causal", True), ("causal, joint", True)])
def test_who_depends_on_whose_latents_and_times(name, causal):
    """By gradients: frames that a frame does not see change it neither by their latents nor by their times."""
    t = jnp.array([[0.2, 0.5, 0.9]])

    def of_frame(x: jax.Array, t: jax.Array) -> jax.Array:
        return jnp.sum(predict(name, x, t)[0] ** 2, axis=(1, 2, 3))

    to_latents, to_times = jax.jacobian(of_frame, argnums=(0, 1))(latents(1), t)
    seen = np.tril(np.ones((3, 3), bool)) if causal else np.ones((3, 3), bool)
    np.testing.assert_array_equal(np.abs(to_latents[:, 0]).sum((2, 3, 4)) > 0, seen)
    np.testing.assert_array_equal(np.abs(to_times[:, 0]) > 0, seen)


LONG = TokenGrid(9, 1, 2)


@functools.cache
def windowed(window: tuple[int, ...], layers: int = 1) -> FlowTransformer:
    """The same weights, whatever the window."""
    settings = {"times": "frame", "causal": True, "window": window, "context_width": None, "patch": (1, 1, 1)}
    model = FlowTransformer(CHANNELS, LONG.shape, SMALL | {"layers": layers}, **settings, rngs=nnx.Rngs(0))
    graph, params, others = nnx.split(model, nnx.Param, ...)
    random = np.random.default_rng(0)
    moved = jax.tree.map(lambda x: x + jnp.asarray(0.3 * random.normal(size=x.shape), x.dtype), params)
    return nnx.merge(graph, moved, others)


@pytest.mark.parametrize("window", [(3, 1), (2, 0)])
def test_a_frame_sees_its_window_and_the_sinks(window):
    """In one layer, by gradients: in training and in sampling, which call the same network."""
    frames, sinks = window
    x = jax.random.normal(jax.random.key(0), (1, *LONG.shape, CHANNELS))

    def of_frame(x: jax.Array) -> jax.Array:
        model = windowed(window)
        return jnp.sum(model.predict(x, jnp.full(1, 0.5), model.prepare(Conditioning()))[0] ** 2, axis=(1, 2, 3))

    seen = np.abs(jax.jit(jax.jacobian(of_frame))(x)[:, 0]).sum((2, 3, 4)) > 0
    at, other = np.indices((9, 9))
    np.testing.assert_array_equal(seen, (other <= at) & ((other > at - frames) | (other < sinks)))


def test_windows_of_four_and_eight_draw_different_videos_and_one_of_nine_sees_all():
    sampler, layout = FlowSampler(steps=2), layout_of(LONG, channels=CHANNELS)
    four, eight, nine, every = (
        jax.jit(lambda m=windowed(w): m.sample(layout, Conditioning(), keys(1), sampler).only.values)()
        for w in ((4, 0), (8, 0), (9, 0), ())
    )
    np.testing.assert_allclose(four[:, :4], every[:, :4], atol=1e-4)
    np.testing.assert_allclose(eight[:, :8], every[:, :8], atol=1e-4)
    np.testing.assert_allclose(nine, every, atol=1e-4)
    assert (np.abs(four - eight)[:, 4:].max(axis=(0, 2, 3, 4)) > 1e-3).all() and np.abs(eight - every)[
        :, 8
    ].max() > 1e-3


@pytest.mark.parametrize("name", ["cross", "joint", "causal, joint", "label", "deep"])
def test_the_conditioning_matters_and_padding_does_not(name):
    t, conditioning = jnp.full(2, 0.5), told(name, 2)
    one, null = (predict(name, latents(), t, c) for c in (conditioning, conditioning.null()))
    assert (np.abs(one - null).max(axis=(1, 2, 3, 4)) > 1e-4).all()
    if conditioning.text is not None:
        features = jnp.where(conditioning.text.mask[..., None], conditioning.text.features, 9.0)
        other = Conditioning(EncodedText(features, conditioning.text.mask), conditioning.label)
        np.testing.assert_allclose(predict(name, latents(), t, other), one, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("cross", marks=pytest.mark.slow),
        "causal, joint",
        "deep",
        pytest.param("frames", marks=pytest.mark.slow),
        "prefix",
    ],
)
def test_gradient_reaches_every_parameter_after_two_steps(name):
    graph, params, others = nnx.split(fresh(name), nnx.Param, ...)

    def loss(params, key):
        conditioning = told(name, 4).drop(jnp.array([True, False, False, False]))
        return nnx.merge(graph, params, others).loss(latents_of(latents(4)), conditioning, key, train=False)[0]

    gradient = jax.jit(jax.grad(loss))
    optimizer = optax.adam(1e-2)
    state = optimizer.init(params)
    for step in range(2):
        updates, state = optimizer.update(gradient(params, jax.random.key(step)), state)
        params = optax.apply_updates(params, updates)
    grads = gradient(params, jax.random.key(2))
    dead = [path for path, g in jax.tree_util.tree_leaves_with_path(grads) if not jnp.abs(g).sum() > 0]
    assert not dead


@pytest.mark.parametrize("name", ["cross", "frames"])
def test_the_loss_is_the_error_of_the_prediction(name, monkeypatch):
    """An oracle has no loss, nothing predicted the mean square of the target; given frames do not count."""
    model = make(name)
    asked = {}

    def remember(noisy, t, prepared, *, key=None):
        asked.update(noisy=noisy, t=t)
        return jnp.zeros_like(noisy)

    monkeypatch.setattr(FlowTransformer, "predict", lambda self, *a, **k: remember(*a, **k))
    clean = latents(64)
    loss, metrics = model.loss(latents_of(clean), told(name, 64), jax.random.key(0), train=False)
    assert loss == metrics["loss"] and asked["t"].shape == ((64, 3) if name == "frames" else (64,))
    # The velocity e - x of unit noise and data has variance 2.
    np.testing.assert_allclose(loss, 2.0, rtol=0.1)

    live = copy(model)

    def oracle(noisy, t, prepared, *, key=None):
        asked.update(t=t)
        t = diffusion.broadcast_right(t, noisy)
        return jnp.where(t > 0, (noisy - live.statistics.normalise(clean)) / t, 9.0)

    monkeypatch.setattr(FlowTransformer, "predict", lambda self, *a, **k: oracle(*a, **k))
    loss, _ = live.loss(latents_of(clean), told(name, 64), jax.random.key(0), train=True)
    np.testing.assert_allclose(loss, 0.0, atol=1e-6)
    if name == "frames":
        given = np.asarray(asked["t"] == 0)
        assert 0.2 < given[:, 0].mean() < 0.8 and not given[:, -1].any()
        np.testing.assert_array_equal(given, np.sort(given, axis=1)[:, ::-1])


def test_latents_are_brought_to_unit_scale_in_training_and_back():
    statistics = copy(fresh("cross")).statistics
    scale, offset = jnp.array([3.0, 0.1, 1.0]), jnp.array([5.0, 0.0, -1.0])
    for seed in range(3):
        statistics.update(statistics.sums(scale * latents(8, seed=seed) + offset))
    np.testing.assert_allclose(statistics.mean.get_value(), offset, atol=0.5)
    np.testing.assert_allclose(statistics.deviation, scale, rtol=0.1)
    held = np.asarray(statistics.mean.get_value())
    np.testing.assert_allclose(statistics.restore(statistics.normalise(latents())), latents(), atol=1e-5)
    statistics.count.set_value(jnp.asarray(statistics.updates))
    statistics.update(statistics.sums(latents(8) + 100))
    np.testing.assert_array_equal(statistics.mean.get_value(), held)


def test_every_latent_counts_the_same_of_videos_and_images():
    """Two videos of three latent frames and four images, then one video: the mean is that over all their latents."""
    statistics = copy(fresh("cross")).statistics
    videos, images, later = latents(2), latents(4, 1, seed=1) + 10, latents(1, seed=2) - 5
    statistics.update(jax.tree.map(jnp.add, statistics.sums(videos), statistics.sums(images)))
    statistics.update(statistics.sums(later))
    every = np.concatenate([np.asarray(x).reshape(-1, CHANNELS) for x in (videos, images, later)])
    np.testing.assert_allclose(statistics.mean.get_value(), every.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics.deviation, every.std(0), rtol=1e-4)


@pytest.mark.parametrize("name", ["cross", "joint", "causal", "pairs of frames"])
def test_sampling_is_the_solver_step_by_step(name):
    model = make(name)
    drawn = draw(name, SAMPLER)
    x = model.noise(keys(3)[:2], 0, GRID, jnp.float32(1.0))
    times = SAMPLER.points(model.process, 1.0)
    for t, later in zip(times, times[1:], strict=False):
        given, null = (predict(name, x, jnp.full(2, t), c) for c in (told(name, 2), told(name, 2).null()))
        x = x + (later - t) * (null + 2.0 * (given - null))
    np.testing.assert_allclose(drawn, model.statistics.restore(x), atol=1e-4)


def test_guidance_of_scale_one_is_the_conditional_prediction():
    plain, nearly, guided = (draw("cross", FlowSampler(steps=2, guidance_scale=s)) for s in (1.0, 1.0 + 1e-7, 4.0))
    np.testing.assert_allclose(plain, nearly, atol=1e-4)
    assert np.abs(guided - plain).max() > 1e-2


@pytest.mark.parametrize("solver", [{"name": "ddim", "eta": 1.0}, {"name": "unipc"}])
def test_a_draw_does_not_depend_on_its_neighbours(solver):
    sampler = FlowSampler(steps=3, solver=solver)
    three, alone = draw("cross", sampler, slice(3)), draw("cross", sampler, slice(1, 2))
    np.testing.assert_allclose(three[1:2], alone, atol=1e-5)
    assert np.abs(three[0] - three[1]).max() > 0.1


@pytest.mark.parametrize(("name", "solver"), [("prefix", "euler"), ("frames", "unipc"), ("causal, joint", "euler")])
def test_given_frames_stay_exactly(name, solver):
    sampler, prefix = FlowSampler(steps=3, solver={"name": solver}), latents(2, 2, seed=9)
    drawn, other = (draw(name, sampler, prefix=p) for p in (prefix, prefix + 0.5))
    np.testing.assert_array_equal(drawn[:, :2], prefix)
    assert np.isfinite(drawn).all() and np.abs(drawn[:, 2] - drawn[:, 1]).max() > 0.1
    assert np.abs(other[:, 2] - drawn[:, 2]).max() > 1e-3


def test_frames_may_follow_one_another_and_causal_ones_never_look_ahead():
    sampler = FlowSampler(steps=3, lag=3)
    times = sampler.times(make("causal").process, 1.0, 3)
    assert times.shape == (10, 3) and (times[0] == 1).all() and (times[-1] == 0).all()
    drawn = draw("causal", sampler)
    # Autoregression: frame by frame, each with those before it given, from its own noise.
    first = draw("causal", FlowSampler(steps=3), grid=GRID.with_time(1))
    np.testing.assert_allclose(drawn[:, :1], first, atol=1e-4)
    np.testing.assert_allclose(draw("causal", sampler, prefix=drawn[:, :2]), drawn, atol=1e-4)


def test_an_image_is_a_clip_of_one_frame():
    loss, _ = copy(make("prefix")).loss(latents_of(latents(2, 1)), told("prefix", 2), jax.random.key(0))
    assert np.isfinite(loss)
    assert draw("prefix", SAMPLER, grid=GRID.with_time(1)).shape == (2, 1, 2, 4, CHANNELS)


@pytest.mark.parametrize(
    ("process", "prediction"),
    [
        ("rectified_flow", "x0"),
        pytest.param("variance_preserving", "v", marks=pytest.mark.slow),
        ("variance_preserving", "epsilon"),
        pytest.param("edm", "edm", marks=pytest.mark.slow),
    ],
)
def test_other_processes_and_predictions_train_and_sample(process, prediction):
    noise = {"process": {"name": process}, "prediction": prediction, "time_distribution": {"name": "uniform"}}
    settings = {"times": "frame", "prefix_share": 0.5, "noise": {**noise, "weighting": "min_snr"}}
    sampler = FlowSampler(steps=2, grid={"name": "uniform", "start": 0.99})

    @jax.jit
    def both():
        model = FlowTransformer(CHANNELS, GRID.shape, SMALL, **settings, rngs=nnx.Rngs(0))
        loss, _ = model.loss(latents_of(latents()), Conditioning(), jax.random.key(0))
        return loss, model.sample(VIDEO, Conditioning(), keys(2), sampler, latents_of(latents(2, 1))).only.values

    loss, drawn = both()
    assert np.isfinite(loss) and np.isfinite(drawn).all()


def test_shifts_follow_the_tokens_of_the_clip():
    def shift(value, grid):
        model = nnx.eval_shape(lambda: FlowTransformer(CHANNELS, grid, SMALL, noise={"shift": value}, rngs=nnx.Rngs(0)))
        return model.shift_of(TokenGrid(*grid))

    assert shift(3.0, (1, 64, 64)) == 3.0
    assert shift("exponent", (1, 64, 64)) == pytest.approx(2.58571, abs=1e-5)
    assert shift("frames", (33, 32, 32)) == pytest.approx(5.74456, abs=1e-5)
    sampler = FlowSampler(steps=50, shift=5.0, grid={"name": "uniform", "start": 0.999})
    points = sampler.points(diffusion.RectifiedFlow(), 1.0)
    # Wan's UniPC (diffusion sheet, section 13).
    np.testing.assert_allclose(points[[0, 1, 2, -2]], [0.999800, 0.995732, 0.991530, 0.092507], atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text": "crossed"}, "did you mean 'cross'"),
        ({"times": "frames"}, "did you mean 'frame'"),
        ({"noise": {"prediction": "eps"}}, "unknown prediction 'eps'"),
        ({"noise": {"weighting": "cosmaps"}}, "did you mean 'cosmap'"),
        ({"noise": {"shift": "frame"}}, "did you mean 'frames'"),
        ({"modulation": "none"}, "unknown modulation 'none'"),
        ({"noise": {"process": {"name": "flow"}}}, "unknown process 'flow'"),
        ({"patch": (1, 2, 3)}, "4 latents along width do not divide into patches of 3"),
        ({"window": (4, 1)}, "set model.causal, or leave it empty"),
        ({"window": (4,), "causal": True}, r"model.window is \(frames, sinks\)"),
        ({"window": (0, 1), "causal": True}, "1 or more frames"),
        ({"window": (3, 0), "causal": True, "patch": (2, 1, 1), "grid": (4, 2, 4)}, "whole patches of 2"),
    ],
)
def test_settings_that_cannot_work_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        FlowTransformer(CHANNELS, transformer=SMALL, **{"grid": GRID.shape, **settings}, rngs=nnx.Rngs(0))


def test_samplers_that_cannot_work_are_named():
    for settings, message in (
        ({"extension": "windows"}, "did you mean 'window'"),
        ({"solver": {"name": "eular"}}, "did you mean 'euler'"),
        ({"steps": 0}, "steps of FlowSampler must be a whole number of at least 1"),
        ({"guidance": {"name": "rescale", "inner": {"name": "clasifier_free"}}}, "did you mean"),
    ):
        with pytest.raises(UserError, match=message):
            FlowSampler(**settings)
    with pytest.raises(UserError, match='only in a model with times="frame"'):
        make("cross").sample(VIDEO, told("cross", 1), keys(1), FlowSampler(lag=1))
    with pytest.raises(UserError, match="fewer than 3"):
        make("prefix").sample(VIDEO, told("prefix", 1), keys(1), FlowSampler(), latents_of(latents(1)))


def test_a_model_that_never_saw_given_frames_takes_none():
    """As with ``lag``: what training did not show is refused, also when the window slides."""
    with pytest.raises(UserError, match="prefix_share above 0"):
        make("cross").sample(VIDEO, told("cross", 1), keys(1), FlowSampler(), latents_of(latents(1, 1)))
    assert [*make("cross").prefixes(3)] == [0] and [*make("prefix").prefixes(3)] == [0, 1, 2]
    assert [*make("frames").prefixes(3)] == [0, 1, 2] and [*make("pairs of frames").prefixes(6)] == [0, 3]


def test_latents_have_the_deviation_that_edm_reckons_with():
    model = FlowTransformer(
        CHANNELS, GRID.shape, SMALL, noise={"prediction": "edm", "process": {"name": "edm"}}, rngs=nnx.Rngs(0)
    )
    t, noise = jnp.full(64, 0.5), jax.random.normal(jax.random.key(1), latents(64).shape)
    noisy = model.process.add_noise(latents(64), noise, t)
    np.testing.assert_allclose(model.process.network_input(noisy, t).std(), 1, atol=0.05)
    np.testing.assert_allclose(model.process.target(latents(64), noise, t).std(), 1, atol=0.05)


def test_a_model_without_a_conditioning_is_drawn_in_one_pass_whatever_the_guidance(monkeypatch):
    sizes = []
    monkeypatch.setattr(
        FlowTransformer, "predict", lambda self, noisy, t, *_, **__: sizes.append(len(noisy)) or 0 * noisy
    )
    model, nothing = make("alone"), Conditioning()
    for scale in (1.0, 5.0):
        model.sample(VIDEO, nothing, keys(2), FlowSampler(steps=2, guidance_scale=scale))
    make("label").sample(VIDEO, told("label", 2), keys(2), FlowSampler(steps=2, guidance_scale=1.0))
    assert set(sizes) == {2}
    make("label").sample(VIDEO, told("label", 2), keys(2), FlowSampler(steps=2, guidance_scale=5.0))
    assert sizes[-1] == 4


@pytest.mark.parametrize("name", ["cross", "joint", "causal, joint"])
def test_padded_text_is_that_without_its_padding(name):
    """Padding is in no attention: five places of which three exist are three places."""
    padded = told(name, 2)
    short = Conditioning(jax.tree.map(lambda x: x[:, :3], padded.text))
    one, other = (predict(name, latents(), jnp.full(2, 0.5), c) for c in (padded, short))
    np.testing.assert_allclose(one, other, atol=1e-5)
