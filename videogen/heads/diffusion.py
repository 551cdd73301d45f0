"""A small diffusion model of each continuous token (MAR; Li et al., 2024, "Autoregressive image generation without
vector quantization")."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen import diffusion
from videogen.heads.base import Features, FloatHead, Mask, Sums
from videogen.heads.sampling import HeadSampler, guide
from videogen.nn import (
    MLP,
    MODULATIONS,
    NORMS,
    Linear,
    Stack,
    TimeEmbedding,
    draw,
    example_keys,
    modulate,
    named_key,
    zeros,
)
from videogen.ranges import Count, Natural

Condition = Float[Array, "*batch hidden_width"]


class ResidualMLP(nnx.Module):
    """A residual branch of two linear layers, modulated by a condition; at first the identity.

    Args:
      width: of the vectors and of the condition.
    """

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.modulation = MODULATIONS["zero"](width, 3, rngs=rngs)
        self.norm = NORMS["layer"](width, affine=False, rngs=rngs)
        self.mlp = MLP(width, width, kind="silu", bias=True, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "*batch width"], *, condition: Condition, key: jax.Array | None = None
    ) -> Float[Array, "*batch width"]:
        """``key`` is not used."""
        shift, scale, gate = jnp.moveaxis(self.modulation(condition).astype(x.dtype), -2, 0)
        return x + gate * self.mlp(modulate(self.norm(x), shift, scale))


class TokenDenoiser(nnx.Module):
    """What is predicted of a noisy token, from its noise level and a feature: an MLP with adaptive norms.

    Args:
      channels: of the token.
      feature_width: of the feature.
      width: of the layers.
      layers: residual branches.
    """

    def __init__(
        self,
        channels: int,
        feature_width: int,
        width: int,
        layers: int,
        *,
        remat: str,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        common = dict(dtype=dtype, rngs=rngs)
        self.inputs = Linear(channels, width, axes=(None, "embed"), **common)
        self.condition = Linear(feature_width, width, axes=("embed", None), **common)
        self.time = TimeEmbedding(width, rngs=rngs)
        self.stack = Stack(lambda rngs: ResidualMLP(width, dtype=dtype, rngs=rngs), layers, remat=remat, rngs=rngs)
        self.modulation = MODULATIONS["zero"](width, 2, rngs=rngs)
        self.norm = NORMS["layer"](width, affine=False, rngs=rngs)
        self.outputs = Linear(width, channels, axes=("embed", None), initializer=zeros, rngs=rngs)

    def __call__(
        self, noisy: Float[Array, "*batch channels"], t: Float[Array, "*times"], condition: Condition
    ) -> Float[Array, "*batch channels"]:
        """The prediction, float32; ``condition`` is that of ``self.condition``, and ``t`` may lack its last axes."""
        time = self.time(t)
        time = time.reshape(*t.shape, *(1,) * (condition.ndim - 1 - t.ndim), -1)
        condition = condition + time
        x = self.inputs(noisy)
        x = self.stack(x, condition=jnp.broadcast_to(condition, x.shape))
        shift, scale = jnp.moveaxis(self.modulation(condition).astype(x.dtype), -2, 0)
        return self.outputs(modulate(self.norm(x), shift, scale)).astype(jnp.float32)


class Diffusion(FloatHead):
    """Draws each token by a diffusion of its own, conditioned on the feature of its place.

    There is no likelihood, so draws have no log-probability. The temperature multiplies the noise that a stochastic
    solver adds in its steps, as in MAR. Guidance is that of the prediction. MAR predicts ``epsilon``; with ``v`` the
    data is determined from pure noise, too.

    Args:
      channels: of the normalised latents.
      width: of features and inputs.
      hidden_width: of the layers.
      layers: residual branches.
      process, prediction, time_distribution: parts of ``videogen.diffusion``: the noise process, what is predicted of
        it, and how often each noise level is trained.
      draws: noise levels that each token is trained at in a step.
      steps: of the solver, where the sampler has no other number.
      solver: a solver of ``videogen.diffusion``.
      hidden: whether values may be hidden: a learned vector then stands in their place.
      remat: what the backward pass keeps (``nn.REMAT_POLICIES``).
    """

    def __init__(
        self,
        channels: int,
        width: int,
        *,
        hidden_width: Count = 1024,
        layers: Natural = 3,
        process: Mapping[str, Any] | None = None,
        prediction: str = "v",
        time_distribution: Mapping[str, Any] | None = None,
        draws: Count = 4,
        steps: Count = 100,
        solver: Mapping[str, Any] | None = None,
        hidden: bool = False,
        remat: str = "none",
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        super().__init__(channels, width, hidden=hidden, dtype=dtype, rngs=rngs)
        process = {"data_deviation": 1.0, **(process or {"name": "variance_preserving"})}
        self.process = diffusion.build("process", process, prediction=prediction)
        self.times_of = diffusion.build("time_distribution", time_distribution or {"name": "uniform"})
        self.solver = diffusion.build("solver", solver or {"name": "ddim", "eta": 1.0})
        self.draws, self.steps = draws, steps
        diffusion.check_times(self._times(steps), self.process)
        self.denoiser = TokenDenoiser(channels, width, hidden_width, layers, remat=remat, dtype=dtype, rngs=rngs)

    def loss(
        self,
        features: Features,
        targets: Float[Array, "batch *places channels"],
        mask: Mask,
        key: jax.Array | None,
        *,
        train: bool = True,
        measured: Mask | None = None,
    ) -> tuple[Float[Array, ""], Float[Array, ""], dict[str, Sums]]:
        """Squared error of the prediction, the mean over ``draws`` noise levels, counted by numbers."""
        batch, *places, _ = targets.shape
        shape = (batch, self.draws, *places)
        keys = example_keys(key, batch)
        uniform = draw(jax.random.uniform, named_key(keys, "time"), shape)
        t = self.times_of(jnp.clip(uniform, 1e-6, 1 - 1e-6), self.process)
        clean = jnp.broadcast_to(targets.astype(jnp.float32)[:, None], (*shape, self.channels))
        noisy = self.process.corrupt(clean, t, named_key(keys, "noise"))
        inputs = self.process.network_input(noisy.values, t)
        value = self.denoiser(inputs, t, self.denoiser.condition(features)[:, None])
        error = self.process.loss(value, clean, noisy, t)
        total = jnp.where(mask, error.sum(axis=-1).mean(axis=1), 0.0).sum()
        return total, mask.sum() * float(self.channels), {}

    def draw(
        self, features: Features, null_features: Features | None, keys: jax.Array, sampler: HeadSampler
    ) -> tuple[Float[Array, "batch *places channels"], None]:
        shape, guided = (*features.shape[:-1], self.channels), null_features is not None
        both = jnp.concatenate([features, null_features]) if guided else features
        condition = self.denoiser.condition(both)
        times = self._times(sampler.steps or self.steps)
        grid = jnp.broadcast_to(jnp.asarray(times)[:, None], (len(times), shape[0]))

        def denoise(noisy: Float[Array, "batch *places channels"], t: Float[Array, "batch"]) -> Array:
            inputs = self.process.network_input(noisy, t)
            if not guided:
                return self.denoiser(inputs, t, condition)
            value = self.denoiser(jnp.concatenate([inputs, inputs]), jnp.concatenate([t, t]), condition)
            return guide(*jnp.split(value, 2), sampler.guidance_scale)

        def noise(step: Array | int) -> Float[Array, "batch *places channels"]:
            return draw(jax.random.normal, jax.vmap(lambda key: jax.random.fold_in(key, step))(keys), shape)

        start = self.process.scales(grid[0])[1].reshape(-1, *(1,) * (len(shape) - 1)) * noise(0)
        drawn = diffusion.integrate(
            denoise,
            self.process,
            self.solver,
            grid,
            start,
            lambda step: sampler.temperature * noise(step + 1),
        )
        return drawn, None

    def _times(self, steps: int) -> Float[np.ndarray, "points"]:
        return diffusion.UniformGrid()(steps, self.process)
