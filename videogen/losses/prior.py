"""LARP's learned prior (Wang et al., ICLR 2025): a small autoregressive model that only training a tokenizer needs."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from videogen.errors import UserError
from videogen.losses.entropy import entropy
from videogen.losses.terms import Metrics, Modules, Outputs, Scalar, Setting, Term
from videogen.nn import (
    NORMS,
    Causal,
    LearnedPositions,
    Linear,
    MicroBatch,
    block_stack,
    draw,
    example_keys,
    l2_normalize,
    named_key,
)
from videogen.ranges import Count, Natural, Positive, Weight
from videogen.schedules import ramp

NORM = "layer"


class Prediction(NamedTuple):
    """What the prior makes of a batch.

    Attributes:
      loss: mean cross-entropy of codes 2 … n over both rounds, in nats.
      entropy: mean entropy of the second round's predictions, in nats; log of the codebook's size means that they
        are uniform, and the mixed-in codes no more than noise.
    """

    loss: Float[Array, ""]
    entropy: Float[Array, ""]


class AutoregressivePrior(nnx.Module):
    """Predicts each code vector from those before it, so that codes become easy to predict.

    A causal transformer over *continuous* quantised vectors: their straight-through gradient carries its loss to the
    encoder. Its unit-length output is compared with every code; the codebook is a constant to it.

    Args:
      length: codes of a clip.
      code_width: width of a code.
      width: token width.
      layers: number of layers.
      heads: attention heads; MLPs are four times as wide as tokens.
      temperature: of the cosine logits. At 1, the published value, predictions are almost uniform.
      remat: what the backward pass keeps (``nn.REMAT_POLICIES``).
    """

    def __init__(
        self,
        length: int,
        code_width: int,
        width: Count,
        layers: Natural,
        heads: Count,
        *,
        temperature: Positive = 1.0,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.temperature = temperature
        sections = dict(attention={"heads": heads}, mlp={"hidden": 4 * width}, norm=NORM)
        self.input = Linear(code_width, width, axes=(None, "embed"), dtype=dtype, rngs=rngs)
        self.positions = LearnedPositions(length, width, rngs=rngs)
        self.stack = block_stack(width, layers, **sections, remat=remat, dtype=dtype, rngs=rngs)
        self.norm = NORMS[NORM](width, rngs=rngs)
        self.head = Linear(width, code_width, axes=("embed", None), rngs=rngs)

    def logits(
        self, vectors: Float[Array, "batch tokens code"], codebook: Float[Array, "size code"]
    ) -> Float[Array, "batch tokens size"]:
        """Logits of the code after each vector, float32."""
        x = self.input(vectors)
        x = x + self.positions(x.shape[1]).astype(x.dtype)
        x = self.norm(self.stack(x, mask=Causal()))
        predicted = l2_normalize(self.head(x.astype(jnp.float32)))
        return predicted @ jax.lax.stop_gradient(codebook).T / self.temperature

    def rounds(
        self,
        given: Float[Array, "batch tokens code"],
        codebook: Float[Array, "size code"],
        ratio: Float[Array, ""],
        key: jax.Array,
    ) -> tuple[Float[Array, "batch tokens size"], Float[Array, "batch tokens size"]]:
        """Logits of two-round scheduled sampling: after the given vectors, and after a mix of them and draws.

        A share ``ratio`` of the second round's vectors, never the first one, is drawn from the first round's logits.
        """
        keys = example_keys(key, len(given))
        first = self.logits(given, codebook)
        ids = jax.vmap(jax.random.categorical)(named_key(keys, "ids"), jax.lax.stop_gradient(first))
        drawn = jax.lax.stop_gradient(codebook)[ids]
        # What was drawn at a place stands at the next one.
        drawn = jnp.concatenate([given[:, :1], drawn[:, :-1]], axis=1)
        replaced = draw(jax.random.uniform, named_key(keys, "replaced"), given.shape[:2]) < ratio
        return first, self.logits(jnp.where(replaced[..., None], drawn, given), codebook)

    def __call__(
        self,
        vectors: Float[Array, "batch tokens code"],
        ids: Int[Array, "batch tokens"],
        codebook: Float[Array, "size code"],
        *,
        ratio: Float[Array, ""],
        key: jax.Array,
    ) -> Prediction:
        """Predicts all codes but the first.

        Args:
          vectors: quantised vectors with the encoder's gradient.
          ids: their codes, the targets.
          codebook: the vector of every id.
          ratio: share of the second round's inputs that are draws (``mixing_ratio``).
          key: random key of the draws, one or one of each example.
        """
        first, second = self.rounds(vectors[:, :-1], codebook, ratio, key)
        targets = ids[:, 1:]
        losses = [optax.losses.softmax_cross_entropy_with_integer_labels(x, targets) for x in (first, second)]
        predicted = jax.nn.softmax(jax.lax.stop_gradient(second), axis=-1)
        return Prediction(jnp.mean(jnp.stack(losses)), jnp.mean(entropy(predicted)))


def mixing_ratio(step: Int[Array, ""], steps: int) -> Float[Array, ""]:
    """Scheduled sampling in a run of ``steps``: from 0 to a half over the first 30 % of them, then constant."""
    return ramp(0.0, 0.5, max(round(0.3 * steps), 1), step)


class LearnedPrior(Term):
    """How well a small autoregressive model predicts the codes, which it is trained on as a group of its own.

    Args:
      width: token width of the prior.
      layers: number of its layers.
      heads: its attention heads.
      temperature: of its cosine logits. At 1, the published value, predictions are almost uniform.
    """

    reads, group = "", "prior"

    def __init__(
        self,
        weight: Weight | Mapping[str, Any],
        width: Count,
        layers: Natural,
        heads: Count,
        setting: Setting,
        *,
        temperature: Positive = 1.0,
    ):
        super().__init__(weight, setting)
        self.settings = {"width": width, "layers": layers, "heads": heads, "temperature": temperature}

    def module(self, rngs: nnx.Rngs) -> AutoregressivePrior:
        setting = self.setting
        common = dict(remat=setting.remat, dtype=setting.dtype, rngs=rngs)
        return AutoregressivePrior(setting.tokens, setting.code_width, **self.settings, **common)

    def _predict(self, modules: Modules, outputs: Outputs, keys: jax.Array, step: Int[Array, ""]) -> Prediction:
        """The prediction of the codes of clips, in raster order."""
        if outputs.codebook is None:
            raise UserError("the prior needs a tokenizer whose latents are single code vectors, such as 'one_d'")
        vectors = outputs.vectors.reshape(len(outputs.vectors), -1, outputs.codebook.shape[-1])
        ids, ratio = outputs.ids.reshape(len(vectors), -1), mixing_ratio(step, self.setting.steps)
        return modules[self.group](vectors, ids, outputs.codebook, ratio=ratio, key=keys)

    def value(self, modules, outputs, key, step, micro):
        keys = micro.keys(named_key(key, "prior"), len(outputs.ids))
        predicted = self._predict(modules, outputs, keys, step)
        return predicted.loss, {"prior_entropy": predicted.entropy}

    def group_value(
        self, modules: Modules, outputs: Outputs, key: jax.Array, step: Int[Array, ""], micro: MicroBatch
    ) -> tuple[Scalar, Metrics, dict[str, Array]]:
        keys = micro.keys(key, len(outputs.ids))
        return self._predict(modules, outputs, keys, step).loss, {}, {}
