"""Reducers between the layers of a transformer over the tokens of a clip."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from videogen import reducers
from videogen.errors import UserError
from videogen.nn.tower import NOTES, Call, Hook
from videogen.reducers.base import Reducer
from videogen.reducers.tokens import TokenSet, first_originals


class Reducing(Hook):
    """A reducer behind a layer. ``notes`` are the tokens of a clip as a ``TokenSet``, whose vectors are not looked at.

    Rotary angles of tokens become those of the first token each stands for.

    Args:
      reducer: what is applied; one that needs nothing beside the tokens.
    """

    place = "after"

    def __init__(self, reducer: Reducer):
        if reducer.needs:
            raise UserError(
                f"{type(reducer).__name__} needs {reducer.needs[0]!r}, which layers do not have; take another"
            )
        self.reducer = reducer

    def __call__(self, x: Array, call: Call, aux: Any) -> tuple[Array, Call]:
        # Tokens stand for those that came in here.
        given: TokenSet = dataclasses.replace(call[NOTES], x=x, source=None)
        found = self.reducer.reduce(given)[0].filled()
        changed = {**call, "key_mask": found.mask, NOTES: found}
        if "rotary" in call:
            changed["rotary"] = jnp.take_along_axis(call["rotary"], first_originals(found)[..., None], axis=1)
        return found.x.astype(x.dtype), changed


def reducing_hooks(sections: Sequence[Mapping[str, Any]], **shared: Any) -> dict[int, Reducing]:
    """Hooks by layer, from ``({layer, name, …}, …)``.

    Args:
      sections: a layer's number, and the section of a reducer.
      **shared: as ``reducers.build`` takes it.

    Raises:
      UserError: a section has no layer, or two have the same.
    """
    found: dict[int, Reducing] = {}
    for section in sections:
        if not isinstance(section, Mapping) or not isinstance(layer := section.get("layer"), int):
            raise UserError("hooks are ({layer, name, …}, …): every one says behind which layer it stands")
        if layer in found:
            raise UserError(f"two reducers stand behind layer {layer}; leave one out")
        found[layer] = Reducing(reducers.build({k: section[k] for k in section if k != "layer"}, **shared))
    return found
