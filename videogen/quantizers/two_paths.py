"""One posterior for two uses: its latents as they are, or codes of them (OneVAE, 2025)."""

from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen import quantizers
from videogen.errors import UserError
from videogen.nn import FULL, Linear, Mean, draw, example_keys, named_key, scaled_identity, whole
from videogen.quantizers.base import Quantized, Quantizer, require_key
from videogen.quantizers.gaussian import GaussianQuantizer
from videogen.ranges import Count, OneOf, Positive, Share, Weight

MODES = ("discrete", "continuous")


class TwoPathQuantizer(Quantizer):
    """A Gaussian posterior whose mean is also coded: linear map, quantizer, linear map.

    In training every example takes one path or the other, by chance: a draw of the posterior, or the codes of its mean.
    The losses of both count for all examples. Otherwise ``mode`` decides, and with ``continuous`` there are no ids. The
    linear maps begin as multiples of the identity, cut to their shapes, one the inverse of the other: codes begin as
    the rounded latents of a network that was trained without them.

    Args:
      width: channels of the latents.
      codes: quantizer config ``{name, …}`` of the discrete path; ``product`` gives several tokens to a place. Without
        one there is the continuous path only.
      mode: the path outside training, one of ``MODES``.
      discrete_share: probability that an example of training takes the discrete path (1:1 by default; the published
        proportion was not found).
      reach: the value of a latent that is 1 in front of the codes, at the start of training.
      kl_weight: as of ``gaussian``.
    """

    def __init__(
        self,
        width: Count,
        *,
        codes: Mapping[str, Any] | None = None,
        mode: Annotated[str, OneOf(*MODES)] = "discrete",
        discrete_share: Share = 0.5,
        reach: Positive = 3.0,
        kl_weight: Weight = 1e-6,
        rngs: nnx.Rngs,
    ):
        self.width, self.mode, self.share = width, mode if codes else "continuous", discrete_share
        self.posterior = GaussianQuantizer(width, kl_weight=kl_weight)
        self.codes = quantizers.build(codes, rngs=rngs) if codes else None
        if self.codes is None:
            return
        if not self.codes.vocabulary:
            raise UserError(f"the discrete path needs codes with ids, which {codes['name']!r} has not")
        self.remedy = self.codes.remedy
        inwards = dict(axes=("embed", None), initializer=scaled_identity(1 / reach), precision=FULL, rngs=rngs)
        outwards = dict(axes=(None, "embed"), initializer=scaled_identity(reach), precision=FULL, rngs=rngs)
        self.to_code = Linear(width, self.codes.input_width, **inwards)
        self.from_code = Linear(self.codes.width, width, **outwards)

    @property
    def input_width(self) -> int:
        """Twice ``width``: mean and log variance."""
        return 2 * self.width

    @property
    def vocabulary(self) -> tuple[int, ...]:
        """Of the discrete path; empty where ``mode`` is continuous."""
        return self.codes.vocabulary if self.mode == "discrete" else ()

    def lookup(self, indices: Int[Array, "... levels"]) -> Float[Array, "... width"]:
        """Latents of ids; raises ``UserError`` where ``mode`` is continuous."""
        if not self.vocabulary:
            return self.posterior.lookup(indices)
        return self.from_code(self.codes.lookup(indices))

    def __call__(
        self,
        latents: Float[Array, "... posterior"],
        *,
        key: jax.Array | None = None,
        train: bool = False,
        mean: Mean = whole,
        exists: Bool[Array, "..."] | None = None,
    ) -> Quantized:
        """Latents of the path that ``mode`` names; with ``train`` each example's is drawn with ``key``, one or one of
        each example."""
        keys = example_keys(require_key(key, "a choice of paths"), len(latents)) if train else None
        settings = dict(train=train, mean=mean, exists=exists)
        straight = self.posterior(latents, key=keys, **settings)
        if self.codes is None:
            return straight
        center = latents[..., : self.width].astype(jnp.float32)
        coded = self.codes(self.to_code(center), key=named_key(keys, "codes") if train else None, **settings)
        chosen = self.from_code(coded.latents)
        if train:
            discrete = draw(jax.random.uniform, named_key(keys, "path"), (len(latents),)) < self.share
            chosen = jnp.where(discrete.reshape(-1, *[1] * (latents.ndim - 1)), chosen, straight.latents)
        elif self.mode == "continuous":
            chosen = straight.latents
        ids, counts = coded.indices, coded.statistics["counts"]
        if not self.vocabulary:
            ids, counts = straight.indices, straight.statistics["counts"]
        losses = {**straight.losses, **coded.losses}
        return Quantized(chosen, ids, losses, {"counts": counts}, coded.update_sums, coded.candidates, coded.figures)

    def update(self, sums: Any, candidates: Any, key: jax.Array | None = None) -> None:
        """Moves the codes."""
        if self.codes is not None:
            self.codes.update(sums, candidates, key)
