"""Training a video tokenizer: reconstruction, quantizer, perceptual and adversarial losses."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from flax import nnx
from jaxtyping import Array, Float

from videogen import losses, tokenizers
from videogen.data import read_buckets
from videogen.errors import UserError, near_matches
from videogen.metrics import bits_per_pixel, gradient_sharpness, psnr, ssim, to_unit
from videogen.metrics.fidelity import SSIM_WINDOW
from videogen.nn import MicroBatch, named_key
from videogen.parallel import on_host
from videogen.quantizers import UsageWatch, codebook_health, evaluated_health
from videogen.schedules import ramp
from videogen.shapes import Video, VideoShape
from videogen.tasks.base import (
    Batch,
    Modules,
    Outcome,
    Picture,
    dtype_of,
    parts,
    to_pixels,
    to_video,
    weighted_mean,
)
from videogen.tasks.discriminating import DISCRIMINATORS, Discriminating

FIDELITY = {"psnr": psnr, "ssim": ssim, "gradient_sharpness": gradient_sharpness}
"""What reconstructions are measured by, clip by clip."""

SMALLEST = {"ssim": SSIM_WINDOW, "gradient_sharpness": 2}
"""Metric -> the fewest rows and columns it can be taken of; where clips have fewer it is left out."""


def measurable(height: int, width: int) -> list[str]:
    """Names in ``FIDELITY`` of what can be measured of clips of this size."""
    return [name for name in FIDELITY if min(height, width) >= SMALLEST.get(name, 1)]


class TokenizerTask(Discriminating):
    """Groups: ``tokenizer`` and, with an adversarial loss, ``discriminator``, and with one of prediction, ``prior``.

    Losses (``config.losses``): ``l2``, ``l1`` weights; ``perceptual`` ``{name, weight, …}``; ``adversarial``
    ``{name, weight, start, r1, channel_multiplier}`` and, where they are wanted, ``discriminator`` (a name in
    ``DISCRIMINATORS``), ``multipliers`` (of the blocks of the one for clips), ``transformer`` (the settings of that
    one), ``label_smoothing`` of the real ones' targets and the weight ``lecam``; ``prior`` ``{weight, width, layers,
    heads, temperature}``. A weight of 0, or no such section, leaves the part and its network out.

    A model with a diffusion decoder has ``denoise(latents, video, key)``: training then compares with the video what
    the decoder sees in a noisy one (``l2`` is the diffusion loss), where others are compared by what they decode.

    The adversarial loss has weight 0 and the discriminator rests until step ``start``. ``adaptive`` multiplies the
    weight by the ratio of gradient norms of the other losses and of this one at the decoder's last layer. The
    discriminator is updated in one of ``every`` steps, with the R1 penalty in one of ``r1_every`` updates and so many
    times as heavy, and rests while its loss is below ``rest_below``. ``schedule`` ``((name, start, final, steps), …)``
    multiplies the quantizer's loss ``name`` by what goes from ``start`` to ``final`` over so many steps.
    """

    group = "tokenizer"
    """The parameter group that learns to reconstruct."""

    training_only: Sequence[str] = ()

    def __init__(self, config: Any):
        self.config = config
        self.weights, self.watch = config.losses, UsageWatch()
        self.losses, self.active = {self.group: self.tokenizer_loss}, {}
        self.updates = {self.group: self._update_quantizer}
        clip = config.data.clip
        if left_out := set(FIDELITY) - set(measurable(clip.height, clip.width)):
            size = f"{clip.height}x{clip.width}"
            logging.info("clips of %s pixels are too small for %s: left out", size, ", ".join(sorted(left_out)))
        judged = self.weights.adversarial.get("discriminator", "frame")
        if judged not in DISCRIMINATORS:
            raise UserError(f"unknown discriminator {judged!r}{near_matches(judged, DISCRIMINATORS)}")
        self.judged, self.judges_clips = judged, judged != "frame"
        if self.weights.adversarial.weight:
            losses.adversarial_loss(self.weights.adversarial.name)
            self.losses["discriminator"] = self.discriminator_loss
            self.updates["discriminator"] = self._update_averages
            if self.weights.adversarial.get("every", 1) > 1 or self.weights.adversarial.get("rest_below", 0.0):
                self.active["discriminator"] = self._discriminator_moves
        if self.weights.get("prior", {}).get("weight", 0.0):
            self.losses["prior"] = self.prior_loss
        for entry in self.weights.get("schedule", ()):
            if not isinstance(entry, list | tuple) or len(entry) != 4 or entry[3] < 0:
                raise UserError(f"losses.schedule has entries (name, start, final, steps >= 0), got {entry!r}")
        # The other networks serve training only.
        self.exported = (self.group,)

    def init(self, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        parallel = self.config.parallel
        trained, model = self._networks(rngs)
        clip = self.config.data.clip
        self.tokens = model.grid(VideoShape(clip.frames, clip.height, clip.width)).tokens
        self.bucket_tokens = [model.grid(bucket.shape).tokens for bucket in read_buckets(self.config.data)]
        modules = {self.group: trained}
        if "discriminator" in self.losses:
            modules["discriminator"] = self._discriminator(rngs)
        if "prior" in self.losses:
            settings = {name: value for name, value in self.weights.prior.items() if name != "weight"}
            common = dict(remat=parallel.remat, dtype=dtype_of(self.config), rngs=rngs)
            modules["prior"] = losses.AutoregressivePrior(self.tokens, model.quantizer.width, **settings, **common)
        return modules

    def _networks(self, rngs: nnx.Rngs) -> tuple[nnx.Module, nnx.Module]:
        """What learns to reconstruct, and the tokenizer it is part of."""
        model = tokenizers.build(
            self.config.model, dtype=dtype_of(self.config), remat=self.config.parallel.remat, rngs=rngs
        )
        return model, model

    def assembled(self, modules: Modules) -> nnx.Module:
        """The tokenizer of this stage, ready to use: what is trained, evaluated and shown."""
        return modules["tokenizer"]

    def frozen(self, load: Any) -> dict[str, nnx.Module]:
        if not self.weights.perceptual.weight:
            return {}
        settings = dict(structure_only=load is None, dtype=dtype_of(self.config))
        return {"perceptual": losses.build_perceptual(self.weights.perceptual, **settings)}

    def _autoencode(
        self, modules: Modules, video: Array, key: jax.Array, step: Array, micro: MicroBatch
    ) -> tuple[Float[Array, ""], dict[str, Array], dict[str, Array], dict[str, Any]]:
        """Loss, metrics, what other groups see (reconstruction and codes) and statistics of one part of a batch."""
        model = self.assembled(modules)
        quantize_key, frame_key, prior_key = (
            micro.keys(named_key(key, name), len(video)) for name in ("quantizer", "frame", "prior")
        )
        latents = model.encode(video)
        latents, codes, quantizer_losses, statistics = model.bottleneck(
            latents, key=quantize_key, train=True, mean=micro.mean
        )
        quantizer_losses = self._scheduled(quantizer_losses, step)
        if "discriminator" in modules and self.weights.adversarial.get("adaptive", False):
            total, terms, reconstruction = self._adaptive(modules, latents, video, key, step, micro)
            total += sum(quantizer_losses.values())
        else:
            reconstruction = _decode(model, latents, video, key, micro)
            total, terms = self._fidelity(modules, reconstruction, video)
            total += sum(quantizer_losses.values())
            if "discriminator" in modules:
                terms["adversarial"] = self._realism(modules, reconstruction, frame_key)
                started = step >= self.weights.adversarial.start
                total += jnp.where(started, self.weights.adversarial.weight, 0.0) * terms["adversarial"]
        terms |= quantizer_losses
        if "prior" in modules:
            terms["prior"], terms["prior_entropy"] = self._predict(modules, latents, codes.indices, prior_key, step)
            total += self.weights.prior.weight * terms["prior"]
        terms["loss"] = total
        return total, terms, {"reconstruction": reconstruction, "vectors": latents, "ids": codes.indices}, statistics

    def _scheduled(self, quantizer_losses: dict[str, Array], step: Array) -> dict[str, Array]:
        """The quantizer's losses times their weights at ``step``.

        Raises:
          UserError: a schedule of a loss that the quantizer does not have.
        """
        scaled = dict(quantizer_losses)
        for name, start, final, steps in self.weights.get("schedule", ()):
            if name not in scaled:
                raise UserError(f"losses.schedule: the quantizer has no loss {name!r}{near_matches(name, scaled)}")
            scaled[name] = scaled[name] * ramp(start, final, steps, step)
        return scaled

    def _fidelity(
        self, modules: Modules, reconstruction: Video, video: Video
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """Weighted sum of the pixel and perceptual losses, and each of them."""
        terms = {"l2": losses.l2(reconstruction, video)}
        total = self.weights.l2 * terms["l2"]
        if self.weights.l1:
            terms["l1"] = losses.l1(reconstruction, video)
            total += self.weights.l1 * terms["l1"]
        if "perceptual" in modules:
            terms["perceptual"] = modules["perceptual"](reconstruction, video)
            total += self.weights.perceptual.weight * terms["perceptual"]
        return total, terms

    def _realism(self, modules: Modules, reconstruction: Video, key: jax.Array) -> Float[Array, ""]:
        """The adversarial loss of reconstructions, unweighted."""
        logits = modules["discriminator"](self._judged(reconstruction, key))
        return losses.adversarial_loss(self.weights.adversarial.name).generator(logits)

    def _adaptive(
        self, modules: Modules, latents: Array, video: Video, key: jax.Array, step: Array, micro: MicroBatch
    ) -> tuple[Float[Array, ""], dict[str, Array], Video]:
        """Reconstruction, with the adversarial loss as heavy as its gradient at the last layer asks for.

        Both losses are differentiated as far as the pixels, once; what goes on from there is one gradient, and only
        the last layer is differentiated for the two norms, of the gradients of the whole batch.
        """
        reconstruction, pull = _to_last_layer(
            self.assembled(modules), lambda model: _decode(model, latents, video, key, micro)
        )
        frame_key = micro.keys(named_key(key, "frame"), len(video))
        pixels = jax.lax.stop_gradient(reconstruction)
        fidelity = jax.value_and_grad(lambda x: self._fidelity(modules, x, video), has_aux=True)
        realism = jax.value_and_grad(lambda x: self._realism(modules, x, frame_key))
        (total, terms), gradient = fidelity(pixels)
        terms["adversarial"], adversarial_gradient = realism(pixels)
        norms = (optax.global_norm(micro.mean(pull(g))) for g in (gradient, adversarial_gradient))
        ratio = losses.adaptive_weight(*norms)
        weight = jnp.where(step >= self.weights.adversarial.start, self.weights.adversarial.weight * ratio, 0.0)
        terms["adversarial_weight"] = weight
        total += weight * terms["adversarial"]
        total = losses.with_gradient(reconstruction, total, gradient + weight * adversarial_gradient)
        return total, terms, reconstruction

    def _predict(self, modules: Modules, vectors: Array, ids: Array, key: jax.Array, step: Array) -> losses.Prediction:
        """The prior's prediction of the codes of clips, in raster order."""
        quantizer = self.assembled(modules).quantizer
        if len(quantizer.vocabulary) != 1 or vectors.shape[-1] != quantizer.width:
            raise UserError("the prior needs a tokenizer whose latents are single code vectors, such as 'larp'")
        codebook = quantizer.lookup(jnp.arange(quantizer.vocabulary[0])[:, None])
        vectors, ids = vectors.reshape(len(vectors), -1, quantizer.width), ids.reshape(len(ids), -1)
        ratio = losses.mixing_ratio(step, self.config.steps)
        return modules["prior"](vectors, ids, codebook, ratio=ratio, key=key)

    def tokenizer_loss(
        self, modules: Modules, batch: Batch, key: jax.Array, step: Array, micro: MicroBatch | None = None
    ) -> tuple[Float[Array, ""], Outcome]:
        """Weighted sum of the losses, averaged over videos and images by their numbers."""
        totals, terms, handover, counts, sums, rows = [], [], {}, [], [], {}
        videos = [to_video(part["video"]) for part in parts(batch)]
        for i, video in enumerate(videos):
            part_key = jax.random.fold_in(key, i)
            total, metrics, results, measured = self._autoencode(modules, video, part_key, step, micro or MicroBatch())
            totals.append(total)
            terms.append(metrics)
            rows[f"part_{i}"] = measured.pop("candidates")
            sums.append(measured)
            handover |= {f"{name}_{i}": jax.lax.stop_gradient(value) for name, value in results.items()}
            counts.append(len(video))
        metrics = {name: weighted_mean([t[name] for t in terms], counts) for name in terms[0]}
        sums = functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), sums)
        outcome = Outcome(metrics, handover if len(self.losses) > 1 else {}, sums, rows)
        return weighted_mean(totals, counts), outcome

    def _update_quantizer(
        self, modules: Modules, sums: dict[str, Any], rows: dict[str, Any], key: jax.Array, step: Array
    ) -> dict[str, Float[Array, ""]]:
        """Moves what the quantizer measures, by all videos and images of the step; its health."""
        quantizer = self.assembled(modules).quantizer
        candidates = jax.tree.map(lambda *parts: jnp.concatenate(parts), *rows.values())
        quantizer.update(sums["update_sums"], candidates, named_key(key, "update"))
        return codebook_health(sums["counts"], quantizer.vocabulary)

    def prior_loss(
        self, modules: Modules, batch: Batch, key: jax.Array, step: Array, micro: MicroBatch | None = None
    ) -> tuple[Float[Array, ""], Outcome]:
        """What the prior learns from: its loss on the codes of the tokenizer, which stay as they are."""
        totals, counts, micro = [], [], micro or MicroBatch()
        for i in range(len(parts(batch))):
            vectors, ids = batch[f"vectors_{i}"], batch[f"ids_{i}"]
            keys = micro.keys(jax.random.fold_in(key, i), len(ids))
            totals.append(self._predict(modules, vectors, ids, keys, step).loss)
            counts.append(len(ids))
        return weighted_mean(totals, counts), Outcome({})

    def evaluate(self, modules: Modules, batches: Iterable[Batch], seed: int) -> dict[str, float]:
        """PSNR, SSIM, sharpness and codebook health over all batches, and the nominal bits per pixel of discrete codes.

        A codebook that is hardly used, or half as much as in the best evaluation since the process began, is named in
        the log, with the remedy.
        """
        return self.score(self.assembled(modules), batches, self.watch)

    @staticmethod
    def score(
        model: nnx.Module, batches: Iterable[Batch], watch: UsageWatch | None = None, **decoding: Any
    ) -> dict[str, float]:
        """``evaluate`` of a tokenizer of any origin; ``decoding`` are settings of its ``decode``."""
        graph, state = nnx.split(model)
        score = jax.jit(lambda state, video: _score(nnx.merge(graph, state), video, decoding))
        scores, counts = [], 0
        for batch in batches:
            of_clips, batch_counts = score(state, batch["video"])
            scores.append(jax.tree.map(on_host, of_clips))
            counts = counts + on_host(batch_counts)
        shape = VideoShape(*batch["video"].shape[1:4])
        grid = model.grid(shape)
        if warning := (watch or UsageWatch()).warning(model.quantizer, counts):
            logging.warning("%s", warning)
        values = {name: float(np.mean(np.concatenate([s[name] for s in scores]))) for name in scores[0]}
        if model.vocabulary:
            values["bits_per_pixel"] = bits_per_pixel(grid.tokens, model.vocabulary, shape)
        return values | evaluated_health(counts, model.vocabulary)

    def pictures(self, modules: Modules, batch: Batch, seed: int) -> list[Picture]:
        """Originals beside reconstructions."""
        video = np.asarray(batch["video"])[:4]
        rebuilt = reconstruct(self.assembled(modules), video)
        return [Picture("reconstructions", list(zip(video, rebuilt, strict=True)), [""] * len(video))]


def _decode(model: nnx.Module, latents: Array, video: Video, key: jax.Array, micro: MicroBatch) -> Video:
    """What training compares with ``video``."""
    if hasattr(model, "denoise"):
        return model.denoise(latents, video, named_key(key, "decoder"), micro)
    return model.decode(latents)


def _to_last_layer(model: nnx.Module, decode: Callable[[nnx.Module], Video]) -> tuple[Video, Callable[[Video], Any]]:
    """What the model decodes, and pixel gradient -> gradient of the decoder's last layer; a constant."""
    path = model.last_layer
    graph, last, rest = nnx.split(model, lambda at, _: tuple(at[: len(path)]) == path, ...)
    reconstruction, pull = jax.vjp(lambda last: decode(nnx.merge(graph, last, rest)), last)
    return reconstruction, lambda gradient: jax.lax.stop_gradient(pull(gradient))


def reconstruct(model: nnx.Module, video: np.ndarray) -> np.ndarray:
    """uint8 clips -> their uint8 reconstructions."""
    graph, state = nnx.split(model)

    @jax.jit
    def run(state: Any, pixels: Array) -> Array:
        model = nnx.merge(graph, state)
        return model.decode(model.bottleneck(model.encode(to_video(pixels)))[0])

    return to_pixels(run(state, video))


def _score(model: nnx.Module, pixels: Array, decoding: dict[str, Any]) -> tuple[dict[str, Array], Array]:
    """Each metric of every clip, and the counts of the codes used."""
    video = to_video(pixels)
    latents, _, _, statistics = model.bottleneck(model.encode(video))
    rebuilt, original = to_unit(model.decode(latents, **decoding)), to_unit(video)
    names = measurable(*video.shape[2:4])
    return {name: FIDELITY[name](rebuilt, original) for name in names}, statistics["counts"]
