"""What reading a prompt costs a decoder, from its own sizes, and the two ways to count the tokens of a clip in it."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class DecoderSizes:
    """What the cost of a decoder follows from.

    Attributes:
      width: of its tokens.
      heads: of queries.
      key_value_heads: of keys and values, which are fewer with grouped queries.
      head_width: of a head.
      hidden: width inside an MLP.
      gated: MLPs have three matrices, not two.
    """

    width: int
    heads: int
    key_value_heads: int
    head_width: int
    hidden: int
    gated: bool

    @property
    def projections(self) -> int:
        """Multiply-adds of a token and layer for queries, keys, values and the output of the attention."""
        return 2 * self.width * (self.heads + self.key_value_heads) * self.head_width

    @property
    def mlp(self) -> int:
        """Multiply-adds of a token and layer in the MLP."""
        return (3 if self.gated else 2) * self.width * self.hidden

    def attention(self, tokens: int, causal: bool = False) -> int:
        """Multiply-adds of a layer for scores and sums of values over so many tokens; with ``causal`` of the pairs that
        a causal mask leaves, which only some kernels save."""
        pairs = tokens * (tokens + 1) // 2 if causal else tokens**2
        return 2 * pairs * self.heads * self.head_width


def prompt_flops(
    sizes: DecoderSizes,
    seen: Sequence[int],
    behind: Sequence[int] | None = None,
    *,
    others: int = 0,
    logits: int = 0,
    causal: bool = False,
) -> int:
    """Floating-point operations, two for each multiply-add, of reading a prompt.

    Args:
      sizes: of the decoder.
      seen: tokens of clips that the attention of each layer sees (``Backbone.seen_by_layers``).
      behind: those that its MLP sees; by default as many.
      others: text and markers, which all layers see.
      logits: multiply-adds of what is predicted: slots · width · ids.
      causal: as of ``DecoderSizes.attention``.
    """
    behind = seen if behind is None else behind
    attended = sum((n + others) * sizes.projections + sizes.attention(n + others, causal) for n in seen)
    return 2 * (attended + sum((n + others) * sizes.mlp for n in behind) + logits)


def mean_over_layers(seen: Sequence[int]) -> float:
    """The mean number of tokens of a clip over the layers of a decoder: what reducers inside of it state as theirs."""
    return sum(seen) / len(seen)


def left_for_mean(layers: int, tokens: int, mean: float, cut: int) -> float:
    """How many tokens are left behind the first ``cut`` layers where the mean over all layers is ``mean``.

    Of 576 tokens and 32 layers a "budget of 64" that is cut behind layer 2 leaves 29.9.
    """
    return (layers * mean - cut * tokens) / (layers - cut)
