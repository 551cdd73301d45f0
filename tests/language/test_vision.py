"""What a video-language model sees of a clip: chains of reducers, places in seconds, questions, budgets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import reducers
from videogen.errors import UserError
from videogen.language.vision import Question, View, Vision, VisionSettings
from videogen.language.vision_encoders import Features
from videogen.nn.linear import draw_by_name
from videogen.shapes import VideoShape

CLIP, WIDTH = VideoShape(8, 12, 12), 16
ENCODER = {"name": "patches", "patch": 3, "transformer": {"width": 8, "layers": 1, "heads": 2, "mlp_width": 8}}
GRID = (8, 4, 4)
VIDEO = jax.random.uniform(jax.random.key(0), (2, 8, 12, 12, 3), minval=-1.0)
SECONDS = jnp.broadcast_to(jnp.arange(8) / 4, (2, 8))
QUESTION = Question(jax.random.normal(jax.random.key(1), (2, 3, WIDTH)), jnp.array([[1, 1, 1], [1, 0, 0]], bool))
UNEVEN = jnp.array([[0.0, 1, 2, 10, 20, 21, 22, 50]] * 2)


def made(**settings) -> Vision:
    """With weights that do not depend on which other parts there are."""
    vision = Vision(VisionSettings(**{"encoder": ENCODER, **settings}), CLIP, WIDTH, rngs=nnx.Rngs(0))
    draw_by_name({"vision": vision}, jax.random.key(3))
    return vision


@functools.cache
def built(chain: tuple = (), **settings) -> Vision:
    return made(reducers=[dict(own) for own in chain], **settings)


def chain(*sections: dict) -> tuple:
    return tuple(tuple(section.items()) for section in sections)


def shown(vision: Vision, seconds=SECONDS, question=QUESTION, view=View(), video=VIDEO, **settings):
    """Vectors, which there are, and the report."""
    graph, state = nnx.split(vision)

    @jax.jit
    def run(state, video, seconds, question):
        live = nnx.merge(graph, state)
        seen = live.see(video, seconds, view=view, **settings)
        tokens, said = live.attend(seen, question, view)
        return live.vectors(seen, tokens), tokens.filled(), said

    return run(state, video, seconds, question)


def close(a, b, scale=1e-5):
    np.testing.assert_allclose(a, b, rtol=0, atol=scale * float(jnp.abs(b).max()))


FULL = {
    "frames": {"frames": 8},
    "tokens": {"budget": 128},
    "bipartite": {"removed": 0},
    "windows": {"window": (1, 1, 1)},
    "grid": {"side": 4},
    "question_pooling": {"window": (1, 1, 1)},
    "region": {"share": 1.0},
    "still": {"budget": 128, "threshold": 1.0},
    "bank": {"budget": 128},
}
"""Reducers with room for all."""


@pytest.mark.parametrize(
    "name", ["windows", *(pytest.param(n, marks=pytest.mark.slow) for n in FULL if n != "windows")]
)
def test_a_chain_with_room_for_all_is_no_chain(name):
    vectors, tokens, said = shown(built(chain({"name": name, **FULL[name]})))
    expected, whole, _ = shown(built())
    assert tokens.mask.all() and said["kept"] == 128 and said["lost"] == 0
    close(vectors, expected)
    np.testing.assert_array_equal(tokens.position, whole.position)


ALL = {
    "clips": {"anchors": 2, "pairs": ((1, 1), (4, 2))},
    "key_frames": {"budget": 64, "key": 4, "other": 2},
    "changes": {"budget": 100, "by": "pixel", "threshold": 0.2},
    "greedy": {"budget": 40},
    "medoids": {"budget": 10, "segments": 2},
    "density_peaks": {"budget": 20},
    "kmeans": {"budget": 12},
    "budgeted_grids": {"budget": 60, "ladder": (0, 1, 2, 4)},
    "sparse_dense": {"frames": 2},
    "thumbnails": {"picks": 10, "tiles": (2, 2)},
    "carriers": {},
    "grid_and_mean": {"side": 2},
    "scenes": {"budget": 100, "floor": 4},
    "conditional_queries": {"side": 2, "frames": 4, "heads": 2, "text": True},
    "bridge": {"memory": 4, "frames": 4, "heads": 2},
    "token_hash": {"budget": 8, "rounds": 2, "hidden": 8, "heads": 2},
    "progressive": {"heads": 2},
    "summaries": {"frames": 4, "each": 2, "heads": 2, "clips": 1},
    "perceiver": {"queries": (6,), "width": 8, "depth": 1, "heads": 2, "head_width": 4},
}
GUIDED = ("summaries", "clips", "budgeted_grids", "conditional_queries", "question_pooling", "region")


QUICK = ("carriers", "perceiver", "conditional_queries", "frames", "region")


def named(*names: str):
    """Names of reducers, of which most are slow."""
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", named(*ALL, *FULL))
def test_every_reducer_stands_in_a_chain_and_says_whether_it_looks_at_the_question(name):
    vision = built(chain({"name": name, **(ALL | FULL)[name]}))
    assert (vision.ask is not None) == (name in GUIDED)
    ((_, shape),) = vision.shapes
    graph, state = nnx.split(vision)

    @jax.jit
    def run(state):
        live = nnx.merge(graph, state)
        seen = live.see(VIDEO, SECONDS)
        return live.vectors(seen, live.attend(seen, QUESTION)[0])

    assert jax.eval_shape(run, state).shape == (2, shape.tokens, WIDTH)


def test_the_projector_has_the_layers_that_are_asked_for():
    sizes = []
    for layers in (1, 2):
        vision = nnx.eval_shape(
            lambda n=layers: Vision(
                VisionSettings(encoder=ENCODER, projector={"layers": n}), CLIP, WIDTH, rngs=nnx.Rngs(0)
            )
        )
        sizes.append(sum(x.size for x in jax.tree.leaves(nnx.state(vision.projector, nnx.Param))))
    assert sizes[1] - sizes[0] == WIDTH * (WIDTH + 1)
    with pytest.raises(UserError, match="has 1 or 2 layers"):
        made(projector={"layers": 3})


def test_the_other_reducers_are_refused_in_one_line():
    assert set(reducers.REDUCERS) - {*ALL, *FULL} == {"trajectories", "learned"}
    with pytest.raises(UserError, match="Trajectories needs 'labels', and there is key, frames"):
        built(chain({"name": "trajectories"}))
    with pytest.raises(UserError, match="LearnedSelection needs 'teacher'"):
        built(chain({"name": "learned", "budget": 4}))
    with pytest.raises(UserError, match="WindowPooling needs the whole grid of tokens, which is gone behind"):
        built(chain({"name": "tokens", "budget": 9}, {"name": "windows"}))
    frozen = VisionSettings(encoder={"name": "tokens"}, reducers=[{"name": "changes", "budget": 9, "by": "pixel"}])
    with pytest.raises(UserError, match="DifferentialDrop needs 'difference'"):
        Vision(frozen, CLIP, WIDTH, features=Features((8, 4, 4), 3, tuple(range(8))), rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="1 or 2 layers"):
        made(projector={"layers": 3})


def seconds_of(vision: Vision, seconds):
    graph, state = nnx.split(vision)

    @jax.jit
    def run(state, seconds):
        live = nnx.merge(graph, state)
        seen = live.see(VIDEO, seconds)
        return live._seconds(seen, live.attend(seen, QUESTION)[0].filled())

    return np.asarray(run(state, seconds))


def test_tokens_carry_the_mean_of_the_times_they_stand_for():
    np.testing.assert_allclose(seconds_of(built(), UNEVEN)[0].reshape(8, 16)[:, 0], UNEVEN[0])
    pooled = seconds_of(built(chain({"name": "windows", "window": (4, 2, 2)})), UNEVEN)
    np.testing.assert_allclose(pooled[0], [3.25] * 4 + [28.25] * 4, rtol=1e-6)
    # By what was kept, in a chain of two.
    both = built(chain({"name": "frames", "frames": 2}, {"name": "windows", "window": (2, 0, 0)}))
    np.testing.assert_allclose(seconds_of(both, UNEVEN), 25.0)
    # Of grids whose places overlap the time of their frame.
    uneven = seconds_of(built(chain({"name": "grid", "side": 3})), UNEVEN)
    np.testing.assert_allclose(uneven.reshape(2, 8, 9), np.repeat(np.asarray(UNEVEN)[:, :, None], 9, axis=2), rtol=1e-6)


def test_equal_times_are_equal_places_whatever_the_rate():
    """Frames of 8 and of 30 frames per second, taken at the same moments (users 2)."""
    vision = built()
    moments = np.arange(8) * 0.5
    a, b = (
        shown(vision, jnp.broadcast_to(jnp.asarray(np.round(moments * rate) / rate), (2, 8)))[0] for rate in (8, 30)
    )
    np.testing.assert_array_equal(a, b)
    other = shown(vision, SECONDS * 0.1)[0]
    assert jnp.abs(a - other).max() > 1e-2


def test_random_frames_keep_their_own_times_and_pixels():
    vision, keys = built(frames=(3,)), jax.random.split(jax.random.key(5), 2)
    view = View(frames=3)
    vectors, tokens, _ = shown(vision, UNEVEN, view=view, keys=keys)
    whole, _, _ = shown(built(), UNEVEN)
    whole = whole.reshape(2, 8, 16, WIDTH)
    chosen = []
    for row in range(2):
        found = [int(jnp.abs(whole[row] - frame).max((1, 2)).argmin()) for frame in vectors[row].reshape(3, 16, WIDTH)]
        assert found == sorted(set(found))
        close(vectors[row].reshape(3, 16, WIDTH), whole[row, np.array(found)])
        chosen.append(tuple(found))
    assert chosen[0] != chosen[1]


def test_random_tokens_are_some_of_those_behind_the_chain():
    view, keys = View(subset=20), jax.random.split(jax.random.key(5), 2)
    vectors, tokens, said = shown(built(subsets=(20,)), view=view, keys=keys)
    whole, _, _ = shown(built())
    assert vectors.shape[1] == 20 and said["kept"] == said["asked"] == 20
    place = np.asarray(tokens.position @ jnp.array([16, 4, 1.0])).astype(int)
    assert (np.diff(place, axis=1) > 0).all() and (place[0] != place[1]).any()
    close(vectors, jnp.take_along_axis(whole, jnp.asarray(place)[..., None], axis=1))


def test_question_b_after_a_is_b_alone():
    """What is kept of a clip does not depend on a question (users 11)."""
    vision = built(chain({"name": "frames", "frames": 4}, {"name": "tokens", "budget": 10, "rule": "score"}))
    assert vision.free == 1
    graph, state = nnx.split(vision)
    see = jax.jit(lambda state: nnx.merge(graph, state).see(VIDEO, SECONDS))
    attend = jax.jit(lambda state, seen, question: nnx.merge(graph, state).attend(seen, question)[0])
    kept = see(state)
    assert kept.tokens.shape == (2, 64)
    a, b = QUESTION, Question(-QUESTION.vectors, QUESTION.exists)
    first, second = attend(state, kept, a), attend(state, kept, b)
    assert (np.asarray(first.position) != np.asarray(second.position)).any()
    fresh = attend(state, see(state), b)
    for one, other in zip(jax.tree.leaves(second), jax.tree.leaves(fresh), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(UserError, match="look at the question, and none is given"):
        attend(state, kept, None)


def test_what_is_seen_of_a_clip_does_not_depend_on_its_neighbours():
    vision = built(chain({"name": "tokens", "budget": 10, "rule": "random"}))
    both, _, _ = shown(vision)
    swapped = jax.tree.map(lambda x: x[::-1], (VIDEO, QUESTION))
    other, _, _ = shown(vision, SECONDS, swapped[1], video=swapped[0])
    close(other[::-1], both)


def test_frames_that_do_not_exist_are_seen_by_nobody():
    exists = jnp.arange(8) < jnp.array([[8], [5]])
    _, tokens, _ = shown(built(), exists=exists)
    np.testing.assert_array_equal(tokens.mask.sum(1), [128, 80])
    pooled = built(chain({"name": "windows", "window": (4, 0, 0)}))
    changed = VIDEO.at[1, 5:].set(0.9)
    a, b = (shown(pooled, exists=exists, video=video)[0] for video in (VIDEO, changed))
    close(a, b)


def test_layers_over_time_see_the_seconds_between_frames_and_no_padding():
    graph, state = nnx.split(made(encoder={**ENCODER, "temporal": 1}))

    @jax.jit
    def grid(state, video, seconds, exists):
        return nnx.merge(graph, state).encoder(video, seconds, exists)

    exists = jnp.arange(8) < jnp.array([[8], [5]])
    whole = grid(state, VIDEO, SECONDS, exists)
    close(grid(state, VIDEO, SECONDS + 7.0, exists), whole, 1e-4)
    assert jnp.abs(grid(state, VIDEO, 2 * SECONDS, exists) - whole).max() > 1e-4
    close(grid(state, VIDEO.at[1, 5:].set(0.5), SECONDS, exists)[1, :5], whole[1, :5])


BUDGETS = [
    ({"name": "tokens", "budget": 9}, 20, 20),
    ({"name": "frames", "frames": 1}, 48, 48),
    ({"name": "grid", "side": 1}, 32, 32),
    ({"name": "bipartite", "removed": 1}, 20, 20),
    ({"name": "medoids", "budget": 3, "segments": 2}, 12, 12),
    ({"name": "kmeans", "budget": 3}, 12, 12),
]


@pytest.mark.parametrize(("section", "budget", "kept"), BUDGETS)
def test_the_last_reducer_has_the_budget_of_the_view(section, budget, kept):
    """The report holds what was asked and what was used (users 5)."""
    vision = built(chain(section), budgets=(budget,))
    ((view, shape),) = vision.shapes
    assert view == View(budget) and shape.tokens == kept
    _, tokens, said = shown(vision, view=view)
    assert said["asked"] == budget and said["kept"] == kept == tokens.mask.sum(1).max()


@pytest.mark.parametrize(
    ("section", "budget", "message"),
    [
        ({"name": "frames", "frames": 1}, 20, "whole frames of 16 tokens do not make up a budget of 20"),
        ({"name": "grid", "side": 1}, 20, "do not make up a budget of 20; take 8 or 32"),
        ({"name": "medoids", "budget": 3, "segments": 2}, 5, "2 segments do not share a budget of 5"),
        ({"name": "perceiver", "queries": (6,), "width": 8, "depth": 1, "heads": 2}, 5, "Perceiver has one budget"),
        ({"name": "token_hash"}, 5, "TokenHash has one budget"),
        (None, 5, "there is no reducer|none can have a budget"),
    ],
)
def test_budgets_that_cannot_be_are_refused(section, budget, message):
    with pytest.raises(UserError, match=message):
        built(chain(section) if section else (), budgets=(budget,))


def test_what_is_drawn_in_training_and_what_is_averaged():
    section = VisionSettings(encoder=ENCODER, budgets=(9, 4), frames=(2, 3))
    assert section.evaluated == View(9)
    assert section.trained == [[View(9, 2)], [View(4, 2)], [View(9, 3)], [View(4, 3)]]
    nest = VisionSettings(encoder=ENCODER, budgets=(9, 4), over_budgets="mean")
    assert nest.trained == [[View(9), View(4)]]
    assert VisionSettings(encoder=ENCODER).trained == [[View()]]


VIEWS = [
    (View(), (), {}),
    (View(frames=2), (), {"frames": (2,)}),
    (View(subset=10), (), {"subsets": (10,)}),
    (View(frames=4, subset=10), (), {"frames": (4,), "subsets": (10,)}),
    (View(), ({"name": "windows", "window": (2, 2, 2)},), {}),
    (View(), ({"name": "frames", "frames": 2},), {}),
]


@pytest.mark.parametrize(("view", "sections", "settings"), VIEWS)
def test_all_tokens_of_a_clip_together_count_as_all_that_it_has(view, sections, settings):
    vision = built(chain(*sections), proportional=True, **settings)
    graph, state = nnx.split(vision)
    exists = jnp.arange(8) < jnp.array([[8], [4]])

    @jax.jit
    def run(state):
        live = nnx.merge(graph, state)
        seen = live.see(VIDEO, SECONDS, view=view, exists=exists)
        return live.sizes(seen, live.attend(seen, QUESTION, view)[0])

    sizes = run(state)
    whole = 128 if view.frames is None else None
    np.testing.assert_allclose(sizes[0].sum(), 128, rtol=1e-6)
    assert whole is None or sizes[1].sum() == pytest.approx(64, rel=1e-6)
    assert built(chain(*sections), **settings).sizes(None, None) is None
