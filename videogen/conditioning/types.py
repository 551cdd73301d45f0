"""What a generator may be told about a clip, as pytrees whose parts can be absent for each example."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from videogen.errors import UserError
from videogen.nn import MicroBatch

NULL_LABEL = -1
"""The label of an example without one."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EncodedText:
    """Encoded text.

    Attributes:
      features: one vector per text token, or one of each layer of a language model.
      mask: which tokens exist; an example without any is unconditional.
    """

    features: Float[Array, "batch length *layers embed"]
    mask: Bool[Array, "batch length"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ChunkTokens:
    """Condensed tokens of a whole video, chunk after chunk, beside which a window of it is denoised (TokensGen).

    Attributes:
      features: the slots of all chunks in the order of time, each a grid of tokens.
      count: how many slots of an example there are; what is behind them is padding.
      at: the latent frame of the video that the window begins with.
    """

    features: Float[Array, "batch slots height width embed"]
    count: Int[Array, "batch"]
    at: Int[Array, "batch"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Conditioning:
    """The conditioning of a batch; a part that is ``None`` is absent for every example.

    Given frames are not a part: they reach the generator as a prefix of codes.

    Attributes:
      text: encoded captions.
      label: class indices, ``NULL_LABEL`` for none.
      beside: condensed tokens of the video; the null does not drop them.
      rate: frames per second of each clip, for generators with positions in seconds; the null keeps it.
    """

    text: EncodedText | None = None
    label: Int[Array, "batch"] | None = None
    beside: ChunkTokens | None = None
    rate: Float[Array, "batch"] | None = None

    @property
    def batch_size(self) -> int:
        """Number of examples.

        Raises:
          UserError: there is no part to take it from.
        """
        if self.text is not None:
            return self.text.mask.shape[0]
        if self.label is not None:
            return self.label.shape[0]
        raise UserError("this conditioning has no part; give text or label (null() makes it unconditional)")

    def null(self) -> "Conditioning":
        """The unconditional twin for classifier-free guidance, same shapes."""
        if self.text is None and self.label is None:
            return self
        return self.drop(jnp.ones(self.batch_size, bool))

    def drop(self, drop: Bool[Array, "batch"]) -> "Conditioning":
        """Makes the marked examples unconditional."""
        text, label = self.text, self.label
        if text is not None:
            text = dataclasses.replace(text, mask=text.mask & ~drop[:, None])
        if label is not None:
            label = jnp.where(drop, NULL_LABEL, label)
        return dataclasses.replace(self, text=text, label=label)

    def drop_share(self, share: float, key: jax.Array, micro: MicroBatch) -> "Conditioning":
        """Makes a random share of the examples unconditional, as training for classifier-free guidance needs."""
        if share <= 0 or (self.text is None and self.label is None):
            return self
        return self.drop(micro.draw(jax.random.uniform, key, (self.batch_size,)) < share)

    def with_null(self) -> "Conditioning":
        """Twice the examples: first as they are, then unconditional; guidance needs the predictions for both."""
        return jax.tree.map(lambda own, null: jnp.concatenate([own, null]), self, self.null())
