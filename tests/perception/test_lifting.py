"""HoT: equal to its host where all frames are kept, full length, its frames by joint-pooled peaks, its cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen.errors import UserError
from videogen.perception import LifterSizes, LiftingHourglass, PoseLifter, lifting_flops
from videogen.perception.lifting import JointRecovery, PosePeaks, read_hourglass
from videogen.reducers import of_grid
from videogen.reducers.clusters import DensityPeaks
from videogen.reducers.memory import Recovery
from videogen.reducers.tokens import TokenSet

JOINTS, FRAMES, WIDTH = 3, 6, 8
LAYERS = {"width": WIDTH, "layers": 3, "heads": 2, "mlp_width": 12}
POINTS = jnp.asarray(np.random.default_rng(0).normal(size=(2, FRAMES, JOINTS, 2)), jnp.float32)


def made(middle=None, **settings):
    return PoseLifter(JOINTS, {**LAYERS, **settings}, middle, frames=FRAMES, rngs=nnx.Rngs(0))


def run(model, points):
    graph, state = nnx.split(model)
    return jax.jit(lambda state, points: nnx.merge(graph, state)(points))(state, points)


def host_weights(model):
    """Weights of the host by their names there."""
    flat = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    flat["tower"] = flat["tower"]["stack"] if "stack" in flat["tower"] else flat["tower"]
    return flat


def test_with_all_frames_kept_it_is_its_host():
    hot = made({"start": 1, "stop": 2, "kept": FRAMES, "recover": "unmerge"})
    host = made()
    nnx.update(host, nnx.State(host_weights(hot)))
    np.testing.assert_allclose(run(hot, POINTS), run(host, POINTS), atol=1e-5)


def test_the_result_has_all_frames_and_they_differ():
    for recover in ("queries", "unmerge"):
        found = run(made({"start": 1, "stop": 2, "kept": 2, "recover": recover}), POINTS)
        assert found.shape == (2, FRAMES, JOINTS, 3) and found.dtype == jnp.float32
        apart = np.abs(found[:, :, None] - found[:, None]).max((-1, -2)) + np.eye(FRAMES)
        assert apart.min() > 1e-4


def test_every_parameter_learns():
    model = made({"start": 1, "stop": 2, "kept": 3})
    graph, state = nnx.split(model)
    slopes = jax.jit(jax.grad(lambda state: jnp.sum(nnx.merge(graph, state)(POINTS) ** 2)))(state)
    sizes = {"/".join(map(str, path)): float(jnp.abs(x).max()) for path, x in nnx.to_flat_state(slopes)}
    assert [name for name, size in sizes.items() if not size > 0] == []


def test_layers_see_joints_then_frames():
    """A block over joints keeps frames apart, one over frames keeps joints apart."""
    block = made().tower.layers.layer(0)
    x = jax.random.normal(jax.random.key(0), (1, FRAMES, JOINTS, WIDTH))
    other = x.at[0, 2, 1].add(1.0)
    moved = jnp.abs(block.space(x.reshape(-1, JOINTS, WIDTH)) - block.space(other.reshape(-1, JOINTS, WIDTH))).max(-1)
    assert (np.asarray(moved.max(1)) > 1e-6).tolist() == [t == 2 for t in range(FRAMES)]
    # Through both, all is reached.
    assert float(jnp.abs(block(x) - block(other)).max(-1).min()) > 1e-7
    there = jnp.array([[True] * 4 + [False] * 2])
    padded = block(x.at[:, 4:].set(9.0), exists=there)
    np.testing.assert_allclose(padded[:, :4], block(x, exists=there)[:, :4], atol=1e-5)


def test_frames_are_chosen_by_the_means_over_their_joints():
    x = jax.random.normal(jax.random.key(1), (2, FRAMES, JOINTS, WIDTH))
    flat = of_grid(x.reshape(2, FRAMES, 1, 1, -1))
    kept, said = PosePeaks(JOINTS, 3).reduce(flat)
    expected, _ = DensityPeaks(3, neighbours=2).reduce(of_grid(x.mean(2)[:, :, None, None]))
    np.testing.assert_array_equal(kept.source, expected.source)
    for i, row in enumerate(np.asarray(kept.source)):
        frames = np.flatnonzero(row >= 0)
        np.testing.assert_allclose(kept.x[i], x[i, frames].reshape(3, -1), atol=1e-6)
        assert (np.diff(frames) > 0).all()
    assert float(said["kept"]) == 3
    whole, _ = PosePeaks(JOINTS, FRAMES).reduce(flat)
    np.testing.assert_allclose(whole.x, flat.x)


def test_joints_are_recovered_one_by_one_with_the_same_queries():
    many = JointRecovery(WIDTH, FRAMES, 2, rngs=nnx.Rngs(0))
    one = Recovery(WIDTH, FRAMES, 2, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(2), (2, 3, JOINTS, WIDTH))
    found = many.restore(TokenSet(x.reshape(2, 3, -1))).reshape(2, FRAMES, JOINTS, WIDTH)
    for joint in range(JOINTS):
        np.testing.assert_allclose(found[:, :, joint], one.restore(TokenSet(x[:, :, joint])), atol=1e-5)


def test_places_of_the_middle_are_shared_by_the_joints():
    tower = made({"start": 1, "stop": 2, "kept": 4}).tower
    assert tower.positions.shape == (4, WIDTH) and tower.recovery.queries.shape == (FRAMES, WIDTH)
    assert made({"start": 1, "stop": 2, "kept": 4, "recover": "unmerge"}).tower.positions is None


def test_cost_follows_from_the_sizes():
    sizes = LifterSizes(joints=2, width=4, layers=3, inner=4, mlp_width=5)
    # Of a layer with T frames: T · 2 · 2 · (4·4·4 + 2·4·5) + 2 · 4 · (T·4 + 2·T²).
    assert sizes.layer(6) == 6 * 2 * 2 * 104 + 8 * (24 + 72)
    assert lifting_flops(sizes, 6) == 2 * (6 * 2 * 4 * 5 + 3 * sizes.layer(6))
    middle = LiftingHourglass(start=1, stop=3, kept=2, recover="unmerge")
    assert lifting_flops(sizes, 6, middle) == 2 * (240 + sizes.layer(6) + 2 * sizes.layer(2) + 36 * 4)
    queries = LiftingHourglass(start=1, stop=3, kept=2)
    read = 2 * 4 * (2 * 4 * (6 + 2) + 2 * 6 * 2)
    assert lifting_flops(sizes, 6, queries) - lifting_flops(sizes, 6, middle) == 2 * read


@pytest.mark.slow
@pytest.mark.parametrize("middle", [None, {"start": 1, "stop": 3, "kept": 8}])
def test_the_count_is_that_of_the_compiled_program(middle):
    """Within 4 %: what is compiled adds norms, softmax, activations and the ranks of the peaks."""
    sections = {"width": 128, "layers": 3, "heads": 2, "mlp_width": 256, "qk_norm": False}
    model = PoseLifter(8, sections, middle, frames=32, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    run = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
    compiled = run.lower(state, jax.ShapeDtypeStruct((1, 32, 8, 2), jnp.float32)).compile().cost_analysis()["flops"]
    assert lifting_flops(model.sizes, 32, model.middle) == pytest.approx(compiled, rel=0.04)


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="cannot keep 7 of 6 frames; lower model.hourglass.kept"):
        made({"start": 1, "stop": 2, "kept": 7})
    with pytest.raises(UserError, match="run of the layers 0 … 2, got 1:4"):
        made({"start": 1, "stop": 4, "kept": 2})
    for wrong in ({"rotary": True}, {"dropout": 0.1}, {"position_generator": True}):
        with pytest.raises(UserError, match="learned positions and no dropout"):
            made(**wrong)
    with pytest.raises(UserError, match="unknown recover"):
        read_hourglass({"start": 1, "stop": 2, "kept": 2, "recover": "interpolate"})
    assert read_hourglass({"start": 1, "stop": 2, "kept": 2}).neighbours == 2
