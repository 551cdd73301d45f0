"""A network over clips and words, and what reads its tokens: words, visual targets, matching, classes, unit vectors."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.language.fused import Fused, FusedNetwork, Seen
from videogen.language.tower_base import unit_rows
from videogen.losses import LogitScale
from videogen.nn import LayerNorm, Linear, parameter, zeros


class TwoLayers(nnx.Module):
    """Linear - GELU - linear, the output in float32.

    Args:
      inputs, hidden, outputs: channels.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.inner = Linear(inputs, hidden, axes=("embed", None), dtype=dtype, rngs=rngs)
        self.outer = Linear(hidden, outputs, axes=(None, None), dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "... inputs"]) -> Float[Array, "... outputs"]:
        return self.outer(jax.nn.gelu(self.inner(x), approximate=False)).astype(jnp.float32)


class WordHead(nnx.Module):
    """Scores of ids by the vectors of the words themselves (BERT; Devlin et al., 2019).

    Args:
      width: of the tokens.
      vocabulary_size: ids.
    """

    def __init__(self, width: int, vocabulary_size: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.dense = Linear(width, width, axes=("embed", None), dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(width, epsilon=1e-12, rngs=rngs)
        self.bias = parameter(rngs, (vocabulary_size,), ("vocabulary",), zeros)

    def __call__(self, x: Float[Array, "... width"], table: Float[Array, "ids width"]) -> Float[Array, "... ids"]:
        """Logits in float32; ``table`` are the vectors of the words."""
        x = self.norm(jax.nn.gelu(self.dense(x), approximate=False))
        return jnp.matmul(x, table.T.astype(x.dtype)).astype(jnp.float32) + self.bias.get_value()


class VideoText(nnx.Module):
    """A network over clips and words with the heads that its losses read.

    Args:
      network: of ``fused.FUSED``.
      visual: name of a visual target -> numbers of each place: logits of ids, or channels.
      words: whether masked words are told.
      scores: of a clip and a text: 1, or 2 of no and yes; 0 leaves them out.
      classes: of clips by themselves; 0 leaves them out.
      embed: width of a space of clips and texts by themselves; 0 leaves it out.
      scale: of the cosines there.
    """

    def __init__(
        self,
        network: FusedNetwork,
        *,
        visual: Mapping[str, int],
        words: bool,
        scores: int,
        classes: int,
        embed: int,
        scale: LogitScale | None,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        width, common = network.width, dict(dtype=dtype, rngs=rngs)
        self.network, self.scale = network, scale
        self.visual = nnx.Dict(
            {name: TwoLayers(width, 2 * width, outputs, **common) for name, outputs in sorted(visual.items())}
        )
        self.words = WordHead(width, network.vocabulary_size, **common) if words else None
        self.matching = TwoLayers(width, 2 * width if scores == 1 else width, scores, **common) if scores else None
        self.labels = Linear(width, classes, axes=("embed", None), **common) if classes else None
        plain = dict(bias=False, axes=("embed", None), **common)
        self.clip = Linear(width, embed, **plain) if embed else None
        self.text = Linear(width, embed, **plain) if embed else None

    def logits_of_words(self, fused: Fused) -> Float[Array, "batch length ids"]:
        """What every word is."""
        return self.words(fused.words, self.network.vectors.table.get_value())

    def matched(
        self, seen: Seen, ids: Int[Array, "batch length"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch scores"]:
        """The scores of pairs of a clip and a text."""
        return self.matching(self.network.fuse(seen, ids, mask).first)

    def match(
        self, seen: Seen, ids: Int[Array, "batch length"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch"]:
        """How well a text fits a clip: the score, or the log-odds of yes."""
        scores = self.matched(seen, ids, mask)
        return scores[:, 0] if scores.shape[1] == 1 else scores[:, 1] - scores[:, 0]

    def by_itself(self, seen: Seen, length: int = 1) -> Fused:
        """Clips without words."""
        nothing = jnp.zeros((len(seen), length), jnp.int32)
        return self.network.fuse(seen, nothing, nothing > 0)

    def logits_of_labels(self, seen: Seen) -> Float[Array, "batch classes"]:
        """What class a clip is of, from the mean of its patches."""
        mean = self.by_itself(seen).patches.astype(jnp.float32).mean((1, 2, 3))
        return self.labels(mean).astype(jnp.float32)

    def of_clips(self, seen: Seen) -> Float[Array, "batch embed"]:
        """Unit vectors of clips by themselves."""
        return unit_rows(self.clip(self.by_itself(seen).first))

    def of_texts(
        self, ids: Int[Array, "batch length"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch embed"]:
        """Unit vectors of texts by themselves."""
        return unit_rows(self.text(self.network.read(ids, mask)))
