"""Pictures of tokens: the right cells are dark, the right ones are tinted, the others as they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread

from videogen import reducers
from videogen.errors import UserError
from videogen.reducers import TokenSet, of_grid
from videogen.reducers.tokens import merge
from videogen.reporting.token_picture import DIM, TINT, shared_by, shown, write_token_picture

RNG = np.random.default_rng(0)
GRID = (2, 3, 4)
CLIP = RNG.integers(0, 256, (2, 12, 16, 3)).astype(np.uint8)
X = jnp.asarray(RNG.normal(size=(2, *GRID, 5)), jnp.float32)


def reduced(config, aux=None):
    reducer = reducers.build(config)
    return jax.jit(lambda x, aux: reducer.reduce(of_grid(x), aux)[0])(X, aux or {})


def cells(values):
    """A value for every cell of 4 × 4 pixels, for every pixel."""
    return np.repeat(np.repeat(np.reshape(values, GRID), 4, axis=1), 4, axis=2)[..., None]


def test_dropped_cells_are_dark_and_kept_ones_are_as_they_were():
    score = jnp.asarray(RNG.permutation(48).reshape(2, 24), jnp.float32)
    found = reduced({"name": "tokens", "budget": 7, "rule": "score"}, {"score": score})
    for example in range(2):
        stays = np.argsort(np.argsort(-np.asarray(score[example]))) < 7
        assert shared_by(found, example).tolist() == stays.astype(int).tolist()
        picture = shown(CLIP, found, GRID, example)
        np.testing.assert_array_equal(picture, np.where(cells(stays), CLIP, np.round(DIM * CLIP)).astype(np.uint8))


def test_merged_cells_are_tinted_by_how_many_share_a_token():
    x = np.array(X[:1])
    x[0, 1] = 0.0
    x[0, 1, :, :2] = 1.0  # of frame 1 the left half is one token, the right another
    x[0, 1, :, 2:] = -1.0
    group = np.arange(24).reshape(GRID)
    group[1, :, :2], group[1, :, 2:] = 12, 13
    merged = merge(of_grid(jnp.asarray(x)), jnp.asarray(group.reshape(1, -1)), 14)
    assert shared_by(merged).reshape(GRID)[1].tolist() == [[6] * 4] * 3
    picture = shown(CLIP, merged, GRID)
    np.testing.assert_array_equal(picture[0], CLIP[0])
    # The brightest colour of the scale, half and half.
    top = np.array([0.940015, 0.975158, 0.131326]) * 255
    np.testing.assert_allclose(picture[1], (1 - TINT) * CLIP[1] + TINT * top, atol=1)


def test_more_frames_than_tokens_along_time_and_uneven_sides():
    found = reduced({"name": "frames", "frames": 1})
    long = np.repeat(CLIP, 3, axis=0)[:, :, :13]
    picture = shown(long, found, GRID)
    np.testing.assert_array_equal(picture[:3], long[:3])  # of two frames the first is the middle
    np.testing.assert_array_equal(picture[3:], np.round(DIM * long[3:]).astype(np.uint8))


def test_what_cannot_be_shown_is_refused():
    found = reduced({"name": "bipartite", "removed": 10})
    with pytest.raises(UserError, match="24 tokens are no grid of 2 × 3 × 5"):
        shown(CLIP, found, (2, 3, 5))
    queries = TokenSet(jnp.zeros((2, 3, 5)), source=jnp.full((2, 24), -1))
    with pytest.raises(UserError, match="no token stands for a place"):
        shown(CLIP, queries, GRID)


def test_the_file_is_a_picture(tmp_path):
    found = reduced({"name": "bipartite", "removed": 10})
    write_token_picture(tmp_path / "tokens.png", CLIP, found, GRID, title="bipartite")
    picture = imread(tmp_path / "tokens.png")
    assert picture.ndim == 3 and picture.shape[1] > picture.shape[0] > 100
