"""A learned choice of tokens, guided by a slower copy of the network (Selective S4; Wang et al., 2023; S5)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen.nn import FULL, Linear
from videogen.ranges import Count, Positive, Share
from videogen.reducers.base import Reducer, Report, need, report
from videogen.reducers.selection import NONE, logistic
from videogen.reducers.tokens import TokenSet, best, take


class LearnedSelection(Reducer):
    """The tokens that a small network scores highest, in raster order; the score learns straight through the choice.

    It reads ``aux["teacher"]`` ``[batch, tokens, inputs]``, what a momentum copy of the network makes of the tokens. In
    training ``aux["key"]`` draws Gumbel noise; without a key nothing is drawn. A token that stays is multiplied by
    ``hard + soft - sg(soft)``, which is 1 and has the gradient of ``soft``, its probability to stay.

    Args:
      inputs: channels of the teacher's features.
      budget: tokens that stay.
      hidden: channels inside the network.
      temperature: of the probability.
    """

    laws = ("fixed_budget", "identity_at_full_budget")
    needs = ("teacher",)

    def __init__(
        self,
        inputs: Count,
        budget: Count,
        *,
        hidden: Count = 128,
        temperature: Positive = 1.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.budget, self.temperature = budget, temperature
        self.inner = Linear(inputs, hidden, axes=("embed", "mlp"), dtype=dtype, rngs=rngs)
        self.outer = Linear(hidden, 1, axes=("mlp", None), precision=FULL, rngs=rngs)

    def scores(self, teacher: Float[Array, "batch tokens inputs"]) -> Float[Array, "batch tokens"]:
        """Logits that a token stays; the teacher gets no gradient."""
        hidden = jax.nn.gelu(self.inner(jax.lax.stop_gradient(teacher)))
        return self.outer(hidden.astype(jnp.float32))[..., 0]

    def reduce(self, tokens: TokenSet, aux: Mapping[str, Any] = NONE) -> tuple[TokenSet, Report]:
        given, (batch, count) = tokens.filled(), tokens.shape
        logits = self.scores(need(aux, "teacher", self))
        if aux.get("key") is not None:
            # The difference of two Gumbel draws, those of staying and of going.
            logits = logits + logistic(aux["key"], batch, count)
        soft = jax.nn.sigmoid(logits / self.temperature)
        index, there = best(logits, given.mask, self.budget)
        found = take(tokens, index, there)
        chance = jnp.take_along_axis(soft, index, axis=1)
        passed = 1.0 + (chance - jax.lax.stop_gradient(chance))
        x = (found.x * passed[..., None]).astype(given.x.dtype)
        found = TokenSet(x, found.mask, found.position, found.size, found.source)
        return found, report(tokens, found, self.budget, chance=jnp.mean(chance))


def followed(teacher: Any, student: Any, momentum: Share) -> Any:
    """The weights of the momentum copy one step on: ``momentum · teacher + (1 - momentum) · student``, leaf by leaf; 1
    leaves the teacher as it is, 0 copies the student."""
    return jax.tree.map(lambda a, b: momentum * a + (1 - momentum) * b, teacher, student)
