"""The two stages of TokensGen (2025): a trained transformer that is told condensed tokens, and one that plans them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen import generators
from videogen.conditioning import ChunkTokens
from videogen.parallel import inside, mesh_of
from videogen.tasks.base import Batch, Modules, Picture, to_pixels, to_video
from videogen.tasks.generator import GeneratorTask
from videogen.tasks.showing import SHOWN
from videogen.tokenizers import Condensed, Condenser

OF_CONDENSER = ("chunk", "queries", "resampler")
"""Settings of the generator that are those of its condenser."""


class BesideTokensTask(GeneratorTask):
    """Groups and frozen parts as of ``GeneratorTask``; ``config.model`` is a ``flow_beside_tokens``.

    Its tokenizer is what it has learned to condense (``tokenizers.Condensed``): a cache of its tokens is what a
    planner learns from (``videogen.tokenize``).
    """

    def assembled(self, modules: Modules) -> nnx.Module:
        own = modules["generator"].generator
        return Condensed(
            modules["tokenizer"], Condenser(own.statistics, own.embed, own.resampler, own.chunk, own.patch)
        )

    @property
    def assembled_model(self) -> dict[str, Any]:
        model = self.config.model.to_dict()
        condenser = {name: model[name] for name in OF_CONDENSER}
        condenser |= {"width": model["base"]["transformer"]["width"], "patch": model["base"]["patch"]}
        return {"name": "condensed", "vae": self.config.parts.tokenizer.model.to_dict(), "condenser": condenser}

    @classmethod
    def default_protocol(cls, config: Any) -> str | None:
        return None

    def pictures(self, modules: Modules, batch: Batch, seed: int) -> list[Picture]:
        """Clips beside what is drawn of their own tokens and captions; nothing of a token cache."""
        if "video" not in batch:
            return []
        named = ("video", "text_ids", "text_mask", "label", "text")
        few = {name: jax.tree.map(lambda x: x[:SHOWN], batch[name]) for name in named if name in batch}
        sampler = generators.build_sampler(self.config.sampler)
        keys = jax.random.split(jax.random.key(seed), len(few["video"]))
        graph, state = nnx.split(nnx.Dict(modules))

        @jax.jit
        def draw(state: Any, few: Any) -> Array:
            live = dict(nnx.merge(graph, state).items())
            told = chunk_tokens(self.assembled(live).tokenize(to_video(few["video"])).only.values)
            said = dataclasses.replace(self.conditioning(live, few), beside=told)
            tokens = live["generator"].generator.sample(self.layout, said, keys, sampler)
            return self.detokenize(live, tokens)

        with inside(mesh_of(state)):
            drawn = to_pixels(draw(state, few))
        rows = list(zip(np.asarray(few["video"]), drawn, strict=True))
        return [Picture("from_their_tokens", rows, [""] * len(rows), ("original", "from its tokens"))]


def chunk_tokens(values: Float[Array, "batch slots height width embed"]) -> ChunkTokens:
    """What a generator is told of whole videos with these condensed tokens, which are raw."""
    batch, slots = values.shape[:2]
    return ChunkTokens(values, jnp.full(batch, slots), jnp.zeros(batch, jnp.int32))


class PlanTask(GeneratorTask):
    """Groups and frozen parts as of ``GeneratorTask``; the tokens are condensed ones, and no videos by themselves."""

    @classmethod
    def default_protocol(cls, config: Any) -> str | None:
        return None

    def pictures(self, modules: Modules, batch: Batch, seed: int) -> Sequence[Picture]:
        """None: condensed tokens are no pictures."""
        return []
