"""Masks of published video models, as rules about kinds of tokens and their frames (A2).

A rule table says which kinds see which, under what further mask. All compare tags, so that they hold for packed rows,
behind reducers, and for a cache that keeps the tags ``kind``, ``frame`` or ``clip``.
"""

import functools
import operator
from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from videogen.errors import UserError
from videogen.nn.masks import INDEX, Causal, Equal, Full, Mask, Multiple, NotEqual, Same

KIND, FRAME, CLIP = "kind", "frame", "clip"
"""Names of tags; a token that is of no frame or clip has -1 there."""

VISUAL, CARRIER, TEXT = 0, 1, 2
"""Kinds of ``semantic_flow``: tokens of pictures, those that stand for them afterwards, and words."""

CLASS, PATCH, LEVEL = 0, 1, 2
"""Kinds of ``multi_scale``; level u is the kind ``LEVEL + u``."""


def by_kind(rules: Mapping[tuple[int, int], Mask]) -> Mask:
    """Who sees whom by kinds: ``{(kind of the query, kind of the key): mask}``; other pairs do not see each other.

    Raises:
      UserError: no pair does.
    """
    if not rules:
        raise UserError("a table of kinds without a rule lets no token see anything")
    parts = [Equal(KIND, query, "query") & Equal(KIND, key) & mask for (query, key), mask in rules.items()]
    return functools.reduce(operator.or_, parts)


def multi_scale(levels: int, rate: int = 2) -> Mask:
    """VidLA's global attention (Rizve et al., 2024): a class token, tokens of several levels, patches.

    A patch sees the patches of its frame and all levels; level u sees levels up to its own, and the patches of every
    ``rate**u``-th frame; the class token sees everything, and no other sees it. Without levels, frames stand alone.
    """
    ranks = range(levels)
    rules: dict[tuple[int, int], Mask] = {(CLASS, kind): Full() for kind in (CLASS, PATCH, *(LEVEL + u for u in ranks))}
    rules[PATCH, PATCH] = Same(FRAME)
    for u in ranks:
        rules[PATCH, LEVEL + u] = Full()
        rules[LEVEL + u, PATCH] = Multiple(FRAME, rate**u)
        rules |= {(LEVEL + u, LEVEL + v): Full() for v in ranks if v <= u}
    return by_kind(rules)


def multi_scale_tags(frames: int, patches: int, levels: int, each: int) -> dict[str, Int[np.ndarray, "tokens"]]:
    """Tags of a class token, ``each`` tokens of every level, and the patches of every frame, in this order."""
    ranks = np.repeat(LEVEL + np.arange(levels), each)
    kinds = np.concatenate([[CLASS], ranks, np.full(frames * patches, PATCH)])
    of_frames = np.repeat(np.arange(frames), patches)
    places = np.concatenate([np.full(1 + levels * each, -1), of_frames])
    return {KIND: kinds.astype(np.int32), FRAME: places.astype(np.int32)}


def semantic_flow() -> Mask:
    """The past, in which tokens of earlier frames are gone but for their carriers (VideoScan; Li et al., 2025).

    A token sees the visual tokens of its own frame, all carriers and all words before it. So visual keys of a frame may
    be deleted as soon as its carrier has been read.
    """
    return Causal() & (NotEqual(KIND, VISUAL) | Same(FRAME))


def summary_flow() -> Mask:
    """The past, in which only the summaries of a clip read its visual tokens (VideoStreaming; Qian et al., 2024).

    A visual token sees itself and what is not visual before it, so that nothing of a clip is reached but through its
    summaries, which are its ``CARRIER`` tokens.
    """
    reads = Equal(KIND, CARRIER, "query") & Same(CLIP)
    return Causal() & (NotEqual(KIND, VISUAL) | reads | Same(INDEX))
