"""Attentive pooling: a learned query asks the tokens of a video transformer, as the probes of V-JEPA do."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from videogen.encoders.loading import linear_names, norm_names
from videogen.encoders.vit import tower
from videogen.nn import MLP, LayerNorm, Linear, attend, normal, parameter


class AttentivePooling(nnx.Module):
    """[self-attention layers over the tokens →] one query attends to the tokens → MLP; a vector for each clip.

    Args:
      width, heads: of the tokens; the MLP is four times as wide.
      layers: self-attention before.
      out: there is a projection behind the attention of the query.
      epsilon: of the norms.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        layers: int = 0,
        out: bool = False,
        epsilon: float = 1e-6,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.heads, hidden = heads, 4 * width
        settings = dict(epsilon=epsilon, dtype=dtype, rngs=rngs)
        self.tower = tower(width, layers, heads, hidden, **settings) if layers else None
        if layers:
            self.tower.norm = None
        self.queries = parameter(rngs, (1, width), (None, "embed"), normal(0.02))
        self.norm, self.mlp_norm = (LayerNorm(width, epsilon=epsilon, rngs=rngs) for _ in range(2))
        linear = dict(axes=("embed", "heads"), bias=True, dtype=dtype, rngs=rngs)
        self.query, self.key, self.value = (Linear(width, width, **linear) for _ in range(3))
        self.out = Linear(width, width, axes=("heads", "embed"), bias=True, dtype=dtype, rngs=rngs) if out else None
        self.mlp = MLP(width, hidden, kind="gelu", bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: Float[Array, "batch tokens embed"]) -> Float[Array, "batch embed"]:
        x = tokens if self.tower is None else self.tower(tokens)
        asked = jnp.broadcast_to(self.queries.get_value(), (len(x), *self.queries.get_value().shape)).astype(x.dtype)
        seen = self.norm(x)
        query, key, value = self._split(self.query(asked)), self._split(self.key(seen)), self._split(self.value(seen))
        found = attend(query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype), key, value).reshape(asked.shape)
        asked = asked + (found if self.out is None else self.out(found))
        return (asked + self.mlp(self.mlp_norm(asked)))[:, 0]

    def _split(self, x: Float[Array, "batch n embed"]) -> Float[Array, "batch n heads head_width"]:
        return x.reshape(*x.shape[:2], self.heads, -1)

    @staticmethod
    def names(ours: str, queries: str, norm: str, mlp: str) -> dict[str, Any]:
        """The part of a table but for the projections of the attention, which files have split or joined.

        Args:
          ours: path of the pooling.
          queries: name of the query.
          norm: of the two norms, which end in 1 and 2.
          mlp: of the MLP.
        """
        return {
            f"{ours}.queries": queries,
            **norm_names(f"{ours}.norm", f"{norm}1"),
            **norm_names(f"{ours}.mlp_norm", f"{norm}2"),
            **linear_names(f"{ours}.mlp.up", f"{mlp}.fc1"),
            **linear_names(f"{ours}.mlp.down", f"{mlp}.fc2"),
        }
