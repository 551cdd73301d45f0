"""KARL's tokenizer (Duggal et al., 2025): one pass of the encoder decides which tokens a clip needs for an error."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.errors import UserError
from videogen.nn import Linear, Same, parameter, read_transformer, truncated_normal
from videogen.ranges import Count, Natural, Positive, Triple
from videogen.shapes import Video
from videogen.tokenizers.base import Encoded
from videogen.tokenizers.lengths import ASKED, HALTING, first
from videogen.tokenizers.one_d import OneD
from videogen.tokenizers.requests import BINS, Request, RequestedErrors, bin_of

APART = "apart"
"""The tag that tokens which are seen have in common."""


def constant_rows(key: Any, shape: tuple[int, ...], dtype: jnp.dtype) -> Float[Array, "bins width"]:
    """The initial table of conditions: every channel of a row is the error of its bin."""
    return jnp.broadcast_to(jnp.asarray(BINS, dtype)[:, None], shape)


class Karl(OneD):
    """``OneD`` whose encoder is told an error and says which of the codes are not needed to reach it.

    The encoder reads [condition; patches; queries]: the condition is a learned vector of the error that is asked for,
    rounded up to one of ``requests.BINS``. Beside its code every query gives a logit that it is not needed
    (``Encoded.extra["halting"]``), and the length rule ``halting`` drops the codes whose probability is above its
    threshold, wherever they stand: what is kept is no prefix. Both transformers go without a token by putting it apart:
    it sees itself alone and nothing else sees it, so no row of scores is empty, and a clip may keep no code at all.

    It learns by the task ``adaptive``. ``tokenize(video, 7)`` asks for the first 7 codes as they are, and
    ``tokenize(video, Request(error, budget))`` for those of the first ``budget`` that ``error`` needs.

    Args:
      clip, patch, encoder, decoder, quantizer, query_scale, channels, remat: as ``OneD`` takes them.
      queries: the most codes of a clip.
      longest: codes that the estimating pass of training may use, at least ``queries`` (368 of 256 in the public
        code); 0: as many.
      error: what is asked for where a request does not say (0.05, as published).
      lengths: length rule ``{name, …}``; ``halting`` with its published threshold by default.
      halting_width: hidden channels of the network that says which codes are not needed.
    """

    adapts = True

    def __init__(
        self,
        clip: Triple,
        patch: Triple,
        queries: Count,
        encoder: Mapping[str, Any],
        decoder: Mapping[str, Any],
        quantizer: Mapping[str, Any],
        *,
        longest: Natural = 0,
        error: Positive = 0.05,
        lengths: Mapping[str, Any] | None = None,
        halting_width: Count = 512,
        query_scale: Positive = 0.02,
        channels: Count = 3,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        longest = longest or queries
        if longest < queries:
            raise UserError(f"longest must be at least the {queries} queries, or 0 for as many; got {longest}")
        settings = dict(lengths=lengths or {"name": HALTING}, query_scale=query_scale, channels=channels, remat=remat)
        super().__init__(clip, patch, longest, encoder, decoder, quantizer, **settings, dtype=dtype, rngs=rngs)
        self.codes, self.longest, self.error = queries, longest, error
        width = self.queries.shape[1]
        self.conditions = parameter(rngs, (len(BINS), width), (None, "embed"), constant_rows)
        # Without a vector of its own a constant row is nothing to a layer norm.
        self.condition_type = parameter(rngs, (width,), (None,), truncated_normal(0.02))
        self.halting_norm = read_transformer(encoder, norm="layer").last_norm(rngs=rngs)
        self.halting_hidden = Linear(width, halting_width, axes=("embed", "mlp"), rngs=rngs)
        self.halting = Linear(halting_width, 1, axes=("mlp", None), rngs=rngs)
        self.requested = RequestedErrors()

    def encode(self, video: Video, request: Request | int | None = None) -> Encoded:
        """Pixels to ``[batch, queries, code]`` before quantisation, and the logits of what is not needed.

        Args:
          video: in [-1, 1].
          request: the error that is asked for and the most codes; or a number of codes, the first ones, which are all
            kept and as good as they can be; ``None``: the tokenizer's own error, all codes.

        Raises:
          UserError: a number of codes that there are not, or an error that is not above 0.
        """
        if isinstance(request, int):
            asked = {ASKED: self._asked(request, len(video))}
            encoded = self.read(video, bin_of(BINS[0]), request)
            return encoded._replace(extra={**encoded.extra, **asked})
        error, budget = request or Request()
        error = self.error if error is None else error
        if isinstance(error, int | float) and not error > 0:
            raise UserError(f"the error that is asked for must be above 0, got {error}")
        if budget is not None:
            self._asked(budget, len(video))
        return self.read(video, bin_of(error), budget)

    def read(
        self,
        video: Video,
        bins: Int[Array, "*batch"],
        budget: Int[Array, ""] | int | None = None,
        count: int | None = None,
    ) -> Encoded:
        """``encode`` as training asks for it.

        Args:
          video: in [-1, 1].
          bins: number of the error in ``requests.BINS``, one or one of each clip.
          budget: how many codes exist, the first ones; may depend on the data. ``None``: all.
          count: the static number of codes, at most ``longest``; by default ``queries``.
        """
        patches, count, batch = self._patches(video), count or self.codes, len(video)
        width = patches.shape[-1]
        condition = self.conditions.get_value()[jnp.broadcast_to(bins, (batch,))] + self.condition_type.get_value()
        queries = jnp.broadcast_to(self.queries.get_value()[:count], (batch, count, width))
        x = jnp.concatenate([condition[:, None].astype(self.dtype), patches, queries.astype(self.dtype)], axis=1)
        exists, seen = None, None
        if budget is not None:
            exists = first(jnp.broadcast_to(budget, (batch,)), (batch, count))
            seen = jnp.concatenate([jnp.ones((batch, x.shape[1] - count), bool), exists], axis=1)
        x = self.encoder(x, **self._hiding(seen))[:, -count:].astype(jnp.float32)
        logits = self.halting(jnp.tanh(self.halting_hidden(self.halting_norm(x))))[..., 0]
        return Encoded(self.to_code(self.encoder_norm(x)), exists, {HALTING: logits})

    def _hiding(self, seen: Bool[Array, "batch tokens"] | None) -> dict[str, Any]:
        if seen is None:
            return {}
        return {"mask": Same(APART), "tags": {APART: jnp.where(seen, 0, 1 + jnp.arange(seen.shape[1]))}}
