"""CLIP's embedding of a text as conditioning."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from videogen.conditioning import FROZEN_TEXT
from videogen.encoders import ClipText

SIZES = {"width": 16, "layers": 1, "heads": 2, "hidden": 32, "kind": "quick_gelu", "epsilon": 1e-5}
SETTINGS = {"vocabulary_size": 20, "length": 6, "embed": 8, "end": 19, "sizes": SIZES}


def test_a_text_is_one_vector_and_one_without_tokens_is_absent():
    encoder = FROZEN_TEXT["clip_text"](**SETTINGS, rngs=nnx.Rngs(0))
    ids = jnp.array([[18, 3, 4, 19, 0, 0], [0] * 6])
    found = encoder(ids, jnp.array([[True] * 4 + [False] * 2, [False] * 6]))
    assert found.features.shape == (2, 1, 8)
    np.testing.assert_array_equal(found.mask, [[True], [False]])
    alone = ClipText(**SETTINGS, rngs=nnx.Rngs(0))(ids[:1])[0]
    np.testing.assert_allclose(found.features[0, 0], alone, rtol=1e-5)
    np.testing.assert_array_equal(found.features[1], 0)
