"""Random ids in the place of true ones, for generators that are to mend their own mistakes."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from videogen.errors import UserError
from videogen.heads import Head
from videogen.nn import MicroBatch, named_key
from videogen.tokens import Segment, Tokens

Relabel = Callable[[Tokens, str], Segment]
"""``Tokenizer.relabel`` of clips: the ids of a segment, where those before it are as they were shown."""


def disturbed(
    tokens: Tokens, relabel: Relabel | None, share: float, head: Head, key: jax.Array, micro: MicroBatch
) -> tuple[Tokens, Tokens]:
    """What is shown, with ids that have nothing to do with the data, and the ids that each segment should have then.

    A segment of a residual tokenizer codes what those before it leave open, so wrong ids change what it should be.

    Args:
      tokens: of the clips.
      relabel: of the tokenizer, for these clips.
      share: of the ids that are replaced.
      head: draws them.
      key: decides which.
      micro: which examples of the batch these are.

    Raises:
      UserError: there are only ids to learn from (a token cache), so none can be found again.
    """
    if relabel is None:
        raise UserError(
            "model.token_drop replaces ids and finds the later ones again, which needs the clips: train from "
            "videos, or set it to 0"
        )
    shown, wanted = {}, {}
    for name, segment in tokens.items():
        wanted[name] = own = relabel(Tokens.of(**shown), name) if shown else segment
        batch, named = len(own.values), named_key(key, name)
        random = head.random_values(micro.keys(named_key(named, "random_ids"), batch), own.values.shape)
        draws = micro.draw(jax.random.uniform, named_key(named, "token_drop"), own.values.shape[:-1])
        values = jnp.where((draws < share)[..., None], random, own.values)
        shown[name] = dataclasses.replace(own, values=values)
    return Tokens.of(**shown), Tokens.of(**wanted)
