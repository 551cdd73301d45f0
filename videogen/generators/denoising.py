"""From a diffusion transformer and a conditioning to a denoiser, as solvers take it."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from videogen import diffusion
from videogen.conditioning import Conditioning
from videogen.generators.flow_sampling import FlowSampler
from videogen.shapes import Latents, TokenGrid


def denoiser_of(
    model: nnx.Module, conditioning: Conditioning, sampler: FlowSampler, calls: int | None = None
) -> Callable[..., Any]:
    """``(x_t, t) -> prediction`` of normalised latents or of bits, guided as the sampler says.

    What a text gives the cross-attentions is computed once for all calls.

    Args:
      model: a ``FlowTransformer``.
      conditioning: one entry per example.
      sampler: how to draw.
      calls: how often the denoiser is called, for shortcuts; ``None``: as often as a clip without a lag takes.
    """
    guided = sampler.guidance_scale != 1 and (model.context is not None or model.label is not None)
    prepared = model.read(model.prepare(conditioning.with_null() if guided else conditioning))
    calls = sampler.steps * sampler.build_solver().calls if calls is None else calls
    shortcut = sampler.build_shortcut()
    guidance = sampler.build_guidance() if guided else None

    def begin(noisy: Latents) -> Any:
        tokens = model.tokens(TokenGrid(*noisy.shape[1:4])).tokens
        text = prepared.text.mask.shape[1] if model.joint and prepared.text is not None else 0
        return shortcut.begin(model, len(noisy), tokens, 1 + guided, text)

    def predict(noisy: Latents, t: Array, memory: Any = None) -> tuple[Any, Any]:
        call = None if shortcut is None else shortcut.call(memory, calls)
        if guided:
            noisy, t = jnp.concatenate([noisy, noisy]), jnp.concatenate([t, t])
        # Only bits have a temperature.
        own = {} if call is None else {"shortcut": call}
        value = model.predict(noisy, t, prepared, **own) / sampler.temperature
        value = tuple(jnp.split(value, 2)) if guided else value
        return value, None if call is None else call.memory

    if shortcut is not None:
        return diffusion.Remembering(predict, begin, guidance)
    if guided:
        return diffusion.Guided(lambda noisy, t: predict(noisy, t)[0], guidance)
    return lambda noisy, t: predict(noisy, t)[0]
