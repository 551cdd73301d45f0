"""What features of frozen networks say of pictures and clips."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from videogen.errors import UserError
from videogen.metrics.temporal import needs_frames


def consistency(features: Float[Array, "batch time dimensions"]) -> Float[Array, "batch"]:
    """How alike the frames of a clip stay (VBench): subject with DINO features, background with those of CLIP.

    The mean over frames from the second on of two cosines, with the frame before and with the first one; a negative
    cosine counts as 0. Here it is a value of each clip; the published script pools over all frames of all clips.

    Raises:
      UserError: clips of one frame.
    """
    features = jnp.asarray(features, jnp.float32)
    needs_frames(features.shape[1])
    unit = features / jnp.linalg.norm(features, axis=-1, keepdims=True)
    before = jnp.sum(unit[:, 1:] * unit[:, :-1], axis=-1)
    first = jnp.sum(unit[:, 1:] * unit[:, :1], axis=-1)
    return jnp.mean((jnp.maximum(before, 0) + jnp.maximum(first, 0)) / 2, axis=-1)


def clip_score(
    images: Float[Array, "batch dimensions"], texts: Float[Array, "batch dimensions"]
) -> Float[Array, "batch"]:
    """100 times the cosine of each picture and its text, at least 0 (CLIPScore; Hessel et al., 2021,
    without their factor of 2.5).

    CLIPSIM of a clip is the mean over its frames.
    """
    images, texts = jnp.asarray(images, jnp.float32), jnp.asarray(texts, jnp.float32)
    if images.shape != texts.shape:
        raise UserError(f"every picture needs its text, got features {images.shape} and {texts.shape}")
    lengths = jnp.linalg.norm(images, axis=-1) * jnp.linalg.norm(texts, axis=-1)
    return jnp.maximum(100 * jnp.sum(images * texts, axis=-1) / lengths, 0)


def agreement(
    originals: Float[np.ndarray, "examples classes"], reconstructions: Float[np.ndarray, "examples classes"]
) -> float:
    """Share of examples whose likeliest class a frozen network finds again in the reconstruction."""
    if originals.shape != reconstructions.shape or not len(originals):
        raise UserError(
            f"agreement compares the scores of the same examples, got {originals.shape} and {reconstructions.shape}"
        )
    return float(np.mean(originals.argmax(-1) == reconstructions.argmax(-1)))
