"""Training what draws signers from maps of their points, and the codec of its embedding (SignViP, stages I and II)."""

import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen import data, tokenizers
from videogen.data.with_maps import MAPS
from videogen.errors import UserError
from videogen.nn import MicroBatch, named_key
from videogen.parallel import inside, mesh_of, on_host, padded, spread
from videogen.quantizers import evaluated_health
from videogen.shapes import Video
from videogen.tasks.base import Batch, Keep, Modules, Picture, compute_now, dtype_of, to_pixels, to_video
from videogen.tasks.latent_tokenizer import VAE
from videogen.tasks.tokenizer import TokenizerTask
from videogen.tokenizers.base import Encoded

DIFFUSION = "diffusion"
"""The frozen model of stage I among ``config.parts``."""

SHOWN = 4
"""Clips of a picture."""


class SignDiffusionTask(TokenizerTask):
    """Stage I. Group ``tokenizer``: the encoder of maps and the diffusion transformer. Frozen: ``vae``, a tokenizer of
    single frames.

    With the probability ``config.augmentation`` the maps of a frame are those of a random frame of a random clip of the
    batch (of the micro-batch at hand), which makes the model robust against errors of a translator (section 3.2).
    """

    parts = {VAE: "tokenizer"}

    def __init__(self, config: Any):
        self.config = config
        if config.data.image_batch_size:
            raise UserError("maps are of clips: leave data.image_batch_size at 0")
        # Only the arithmetic of a part is used here; its weights are a frozen module.
        (name,) = type(self).parts
        self.part = nnx.eval_shape(lambda: self.structure_of_part(name))
        super().__init__(config)

    def _networks(self, rngs: nnx.Rngs) -> tuple[nnx.Module, nnx.Module]:
        common = dict(dtype=dtype_of(self.config), remat=self.config.parallel.remat, rngs=rngs)
        model = tokenizers.build_sign_diffusion(self.config.model, self.part, **common)
        return model, tokenizers.SignVideo(self.part, model)

    @property
    def assembled_model(self) -> dict[str, Any]:
        vae = self.config.parts[VAE].model.to_dict()
        return {"name": "sign_video", "vae": vae, "tokenizer": self.config.model.to_dict()}

    def assembled(self, modules: Modules) -> nnx.Module:
        return tokenizers.SignVideo(modules[VAE], modules[self.group])

    @classmethod
    def default_protocol(cls, config: Any) -> str | None:
        return "signs" if data.class_of(config.data.source).signed else None

    def encoded(self, model: nnx.Module, batch: Batch, video: Video, key: jax.Array, micro: MicroBatch) -> Encoded:
        maps, share = to_video(_maps(batch)), self.config.get("augmentation", 0.0)
        return model.encode(exchanged(maps, share, named_key(key, "augmentation"), micro) if share else maps)

    def _update_quantizer(
        self, modules: Modules, sums: dict[str, Any], rows: dict[str, Any], key: jax.Array, step: Array
    ) -> dict[str, Float[Array, ""]]:
        """Moves the statistics of the latents; there is no codebook."""
        modules[self.group].update(sums["compared"])
        return {}

    def evaluate(
        self, modules: Modules, batches: Iterable[Batch], seed: int, keep: Keep = compute_now
    ) -> dict[str, float]:
        """The losses on held-out clips, with the same noise every time, and of a codec the use of its codes."""
        graphs, states = {}, {}
        for name, module in modules.items():
            graphs[name], states[name] = nnx.split(module)
        mesh = mesh_of(states)

        @jax.jit
        def score(states: Any, batch: Any, key: jax.Array) -> dict[str, Array]:
            live = {name: nnx.merge(graphs[name], states[name]) for name in graphs}
            _, outcome = self.tokenizer_loss(live, batch, key, jnp.zeros((), jnp.int32))
            return outcome.metrics | {"counts": outcome.sums["counts"]}

        def measure(i: int, batch: Batch) -> dict[str, np.ndarray]:
            read = {name: batch[name] for name in ("video", MAPS)}
            with inside(mesh):
                found = score(states, spread(read, mesh), jax.random.fold_in(jax.random.key(seed), i))
            return jax.tree.map(on_host, found)

        scores, clips, counts = [], [], 0
        for i, batch in enumerate(batches):
            scores.append(dict(keep(f"losses_{i}", functools.partial(measure, i, batch))))
            clips.append(len(batch["video"]))
            counts = counts + scores[-1].pop("counts")
        values = {name: float(np.average([s[name] for s in scores], weights=clips)) for name in scores[0]}
        quantizer = self.assembled(modules).quantizer
        return values | (evaluated_health(counts, quantizer.counted) if quantizer.vocabulary else {})

    def pictures(self, modules: Modules, batch: Batch, seed: int) -> list[Picture]:
        """Clips, the maps of their pose, and what is drawn of the maps with the first frame as reference."""
        video, maps = (np.asarray(batch[name])[:SHOWN] for name in ("video", MAPS))
        drawn = redraw(self.assembled(modules), maps, video[:, 0])
        rows = list(zip(video, maps[..., :3], drawn, strict=True))
        return [Picture("drawn", rows, [""] * len(rows), ("original", "pose", "drawn"))]


class SignCodecTask(SignDiffusionTask):
    """Stage II. Group ``tokenizer``: the codec of the embedding. Frozen: ``diffusion``, what stage I has trained with
    its VAE."""

    parts = {DIFFUSION: "tokenizer"}

    def _networks(self, rngs: nnx.Rngs) -> tuple[nnx.Module, nnx.Module]:
        common = dict(dtype=dtype_of(self.config), remat=self.config.parallel.remat, rngs=rngs)
        model = tokenizers.build(tokenizers.of_model(self.config.model, self.part), **common)
        return model, tokenizers.CodedFeatures(self.part, model)

    @property
    def assembled_model(self) -> dict[str, Any]:
        model = self.config.parts[DIFFUSION].model.to_dict()
        return {"name": "coded_features", "model": model, "tokenizer": self.config.model.to_dict()}

    def assembled(self, modules: Modules) -> nnx.Module:
        return tokenizers.CodedFeatures(modules[DIFFUSION], modules[self.group])

    _update_quantizer = TokenizerTask._update_quantizer


def exchanged(
    maps: Float[Array, "batch time height width maps"], share: float, key: jax.Array, micro: MicroBatch
) -> Float[Array, "batch time height width maps"]:
    """Maps of which each frame is, with the probability ``share``, a random frame of a random clip of these."""
    batch, time = maps.shape[:2]
    chosen = micro.draw(jax.random.uniform, named_key(key, "chosen"), (batch, time)) < share
    other = micro.draw(
        lambda key, shape: jax.random.randint(key, shape, 0, batch * time), named_key(key, "other"), (batch, time)
    )
    flat = maps.reshape(batch * time, *maps.shape[2:])
    return jnp.where(chosen[..., None, None, None], flat[other], maps)


def redraw(model: nnx.Module, maps: np.ndarray, reference: np.ndarray, **decoding: Any) -> np.ndarray:
    """uint8 maps and pictures of the signers -> uint8 videos, after all that the model does between; on its mesh."""
    return redrawer(model, **decoding)(maps, reference)


def redrawer(model: nnx.Module, **decoding: Any) -> Any:
    """``redraw`` with one model, compiled once for all batches of a size."""
    graph, state = nnx.split(model)
    mesh = mesh_of(state)

    @jax.jit
    def run(state: Any, maps: Array, reference: Array) -> Array:
        model = nnx.merge(graph, state)
        latents = model.bottleneck(model.encode(to_video(maps)))[0]
        return model.decode(latents, reference=to_video(reference), **decoding)

    def draw(maps: np.ndarray, reference: np.ndarray) -> np.ndarray:
        with inside(mesh):
            return to_pixels(run(state, *spread(padded((maps, reference), mesh), mesh)))[: len(maps)]

    return draw


def _maps(batch: Batch) -> Array:
    if MAPS not in batch:
        raise UserError("the clips have no maps of their points: set data.source.maps=True, of a source with points")
    return batch[MAPS]
