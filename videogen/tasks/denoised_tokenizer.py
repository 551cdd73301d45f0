"""Training a tokenizer by the loss of a diffusion transformer that is told its tokens (Divot, DiCoDe)."""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jaxtyping import Array, Float

from videogen import encoders, losses, tokenizers
from videogen.building import look_up
from videogen.data.token_files import PREFIX
from videogen.errors import UserError
from videogen.nn import MicroBatch, named_key
from videogen.parallel import inside, mesh_of, on_host, spread
from videogen.shapes import TokenGrid, Video
from videogen.tasks.base import PUBLISHED, Batch, Keep, Modules, Picture, compute_now, dtype_of, to_video
from videogen.tasks.latent_tokenizer import VAE
from videogen.tasks.tokenizer import TokenizerTask
from videogen.tokenizers import Encoded
from videogen.tokenizers.denoised import NORMALISED
from videogen.tokenizers.token_conditioned import update
from videogen.tokens import Layout, SegmentLayout

VISION = "vision"
"""The frozen image encoder among ``config.parts``."""

TOKENS, PIXELS = "video", "pixels"
"""Segments of a cache of tokens that a generator has drawn beside the clips (``inference.sampled``)."""

LEAST, MOST = 0.5, 2.0
"""Normalised latents have deviation 1; beyond these the process does not fit them."""


def sampled_layout(tokens: Sequence[int], sides: Sequence[str], clip: Any) -> Layout:
    """The layout of a cache of drawn tokens beside their clips.

    Args:
      tokens: lengths of their sides, and channels.
      sides: names of these.
      clip: with ``frames``, ``height`` and ``width``.
    """
    drawn = SegmentLayout(tuple(zip(sides, tokens[:-1], strict=True)), channels=tokens[-1])
    pixels = SegmentLayout.on_grid(TokenGrid(clip.frames, clip.height, clip.width), (256, 256, 256))
    return Layout.of(**{TOKENS: drawn, PIXELS: pixels})


def with_video(batch: Batch) -> Batch:
    """A batch with ``video``, which in that of a cache are the pixels beside the tokens."""
    pixels = batch.get(f"{PREFIX}{PIXELS}")
    return batch if pixels is None else {**batch, "video": pixels.astype(np.uint8)}


class DenoisedTokenizerTask(TokenizerTask):
    """Groups as of ``TokenizerTask``. Frozen: ``vae``, a tokenizer with continuous latents, and ``vision``, a published
    image encoder; both are parts of the tokenizer, and none of its group.

    ``config.model`` is one of ``tokenizers.TOKEN_CONDITIONED``. With ``optimizer.tokenizer.freeze`` naming what leads
    to the tokens, the denoiser alone is trained.
    """

    parts = {VAE: "tokenizer", VISION: PUBLISHED}

    def __init__(self, config: Any):
        self.config = config
        # Only their arithmetic is used here; the weights are frozen modules.
        self.vae, self.vision = (nnx.eval_shape(lambda n=name: self.structure_of_part(n)) for name in (VAE, VISION))
        super().__init__(config)
        share, model = config.model.get("denoising", {}).get("null_share", 0.0), self._abstract
        if share and not set(model.encoder) <= set(config.optimizer[self.group].freeze):
            listed = ", ".join(f"'{name}'" for name in model.encoder)
            raise UserError(
                "the null of denoising.null_share is what the tokenizer makes of the all-zero video, computed once: "
                f"freeze what leads to the tokens (optimizer.{self.group}.freeze=({listed},)), or set the share to 0"
            )

    def structure_of_part(self, name: str) -> nnx.Module:
        if name != VISION:
            return super().structure_of_part(name)
        model = self.config.parts[name].model
        look_up(encoders.SEEN, model, f"encoder (parts.{name}.model)")
        if set(model) == {"name"}:
            raise UserError(f"config.parts.{name}.checkpoint must be the folder that {model.name!r} is published in")
        return encoders.described(model, dtype=dtype_of(self.config))

    def _networks(self, rngs: nnx.Rngs) -> tuple[nnx.Module, nnx.Module]:
        common = dict(dtype=dtype_of(self.config), remat=self.config.parallel.remat, rngs=rngs)
        self._abstract = model = tokenizers.build_token_conditioned(self.config.model, self.vae, self.vision, **common)
        return model, tokenizers.Denoised(self.vae, self.vision, model)

    @property
    def assembled_model(self) -> dict[str, Any]:
        parts = {name: self.config.parts[name].model.to_dict() for name in (VAE, VISION)}
        return {"name": "denoised", **parts, "tokenizer": self.config.model.to_dict()}

    def assembled(self, modules: Modules) -> nnx.Module:
        return tokenizers.Denoised(modules[VAE], modules[VISION], modules[self.group])

    @property
    def layout(self) -> Layout:
        """Of a cache that it may train on."""
        clip = self.config.data.clip
        sides = self._abstract.layout_sides(clip.frames)
        return sampled_layout((*sides, self._abstract.quantizer.width), self._abstract.sides, clip)

    def forward(self, modules: Modules, batch: Batch, key: jax.Array, micro: MicroBatch) -> Any:
        return super().forward(modules, with_video(batch), key, micro)

    def encoded(
        self,
        model: nnx.Module,
        batch: Batch,
        video: Video,
        key: jax.Array | None = None,
        micro: MicroBatch | None = None,
    ) -> Encoded:
        """The tokens of the clips, or those that a generator has drawn for them."""
        drawn = batch.get(f"{PREFIX}{TOKENS}")
        return model.encode(video) if drawn is None else Encoded(drawn)

    def pictures(self, modules: Modules, batch: Batch, seed: int) -> list[Picture]:
        return super().pictures(modules, with_video(batch), seed)

    def found(self, outputs: losses.Outputs) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        metrics, sums, rows = super().found(outputs)
        normalised = outputs.features[NORMALISED]
        measured = {"latent_mean": jnp.mean(normalised), "latent_deviation": jnp.std(normalised)}
        return metrics | measured, sums, rows

    def _update_quantizer(
        self, modules: Modules, sums: dict[str, Any], rows: dict[str, Any], key: jax.Array, step: Array
    ) -> dict[str, Float[Array, ""]]:
        """Moves the statistics of the latents, and takes the null over; there is no codebook."""
        update(modules[self.group], sums["compared"])
        return {}

    def evaluate(
        self, modules: Modules, batches: Iterable[Batch], seed: int, keep: Keep = compute_now
    ) -> dict[str, float]:
        """As of a tokenizer; and the deviation of the normalised latents, with a warning where it is far from 1, and
        the loss with the tokens of each clip beside that with those of the next one (``loss_shuffled``)."""
        batches = [with_video(batch) for batch in batches]
        values = super().evaluate(modules, batches, seed, keep)
        found = self._diffusion_losses(modules, batches, seed, keep)
        if not LEAST <= found["latent_deviation"] <= MOST:
            logging.warning(
                "the normalised latents of the VAE have the deviation %.3g, and the noise is made for 1: train until "
                "their statistics are measured, or give the VAE a normaliser that fits its latents",
                found["latent_deviation"],
            )
        return values | found

    def _diffusion_losses(self, modules: Modules, batches: list[Batch], seed: int, keep: Keep) -> dict[str, float]:
        graph, state = nnx.split(self.assembled(modules))
        mesh = mesh_of(state)

        @jax.jit
        def measure(state: Any, batch: Batch, key: Array) -> dict[str, Array]:
            model, video = nnx.merge(graph, state), to_video(batch["video"])
            encoded = self.encoded(model, batch, video)

            def loss(tokens: Array) -> tuple[Array, Array]:
                compared = model.compare(encoded, tokens, video, key)
                (pair,) = compared.passes.values()
                return jnp.mean((pair[0] - pair[1]) ** 2), compared.features[NORMALISED]

            own, normalised = loss(encoded.values)
            other, _ = loss(jnp.roll(encoded.values, 1, axis=0))
            return {"loss": own, "loss_shuffled": other, "latent_deviation": jnp.std(normalised)}

        found, clips = [], []
        for i, batch in enumerate(batches):

            def run(i: int = i, batch: Batch = batch) -> dict[str, np.ndarray]:
                seen = {name: batch[name] for name in ("video", f"{PREFIX}{TOKENS}") if name in batch}
                key = jax.random.fold_in(named_key(jax.random.key(seed), "losses"), i)
                with inside(mesh):
                    return jax.tree.map(on_host, measure(state, spread(seen, mesh), key))

            found.append(keep(f"losses_{i}", run))
            clips.append(len(batch["video"]))
        return {name: float(np.average([f[name] for f in found], weights=clips)) for name in found[0]}
