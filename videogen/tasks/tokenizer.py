"""Training a video tokenizer: reconstruction, quantizer, perceptual and adversarial losses."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jaxtyping import Array, Float

from videogen import losses, tokenizers
from videogen.errors import UserError, near_matches
from videogen.evaluation import bits_per_pixel, psnr, ssim, to_unit
from videogen.parallel import on_host
from videogen.quantizers import codebook_health, collapse_warning, evaluated_health
from videogen.shapes import VideoShape
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

DISCRIMINATORS = ("frame", "clip")
"""What the discriminator judges: one random frame of each clip, or the clip."""


class TokenizerTask:
    """Groups: ``tokenizer`` and, with an adversarial loss, ``discriminator``.

    Losses (``config.losses``): ``l2``, ``l1`` weights; ``perceptual`` ``{name, weight, …}``; ``adversarial``
    ``{name, weight, start, r1, channel_multiplier}`` and, where they are wanted, ``discriminator`` (a name in
    ``DISCRIMINATORS``), ``multipliers`` (of the blocks of the one for clips) and the weight ``lecam``. A weight of 0
    leaves the part and its network out.
    """

    def __init__(self, config: Any):
        self.config = config
        self.weights = config.losses
        self.losses = {"tokenizer": self.tokenizer_loss}
        judged = self.weights.adversarial.get("discriminator", "frame")
        if judged not in DISCRIMINATORS:
            raise UserError(f"unknown discriminator {judged!r}{near_matches(judged, DISCRIMINATORS)}")
        self.judges_clips = judged == "clip"
        if self.weights.adversarial.weight:
            losses.adversarial_loss(self.weights.adversarial.name)
            self.losses["discriminator"] = self.discriminator_loss

    def init(self, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        parallel = self.config.parallel
        model = tokenizers.build(self.config.model, dtype=dtype_of(self.config), remat=parallel.remat, rngs=rngs)
        clip = self.config.data.clip
        self.tokens = model.grid(VideoShape(clip.frames, clip.height, clip.width)).tokens
        modules = {"tokenizer": model}
        if "discriminator" in self.losses:
            modules["discriminator"] = self._discriminator(rngs)
        return modules

    def _discriminator(self, rngs: nnx.Rngs) -> nnx.Module:
        """A judge of single frames or of whole clips; LeCam's averages, where it is on, travel with it."""
        settings, clip = self.weights.adversarial, self.config.data.clip
        common = dict(dtype=dtype_of(self.config), rngs=rngs)
        if self.judges_clips:
            channels = round(128 * settings.channel_multiplier)
            blocks = {"multipliers": settings.multipliers} if "multipliers" in settings else {}
            module = losses.VideoDiscriminator(clip.height, clip.width, channels=channels, **blocks, **common)
        else:
            module = losses.StyleDiscriminator(
                clip.height, clip.width, channel_multiplier=settings.channel_multiplier, **common
            )
        if settings.get("lecam", 0.0):
            module.lecam = losses.LeCam()
        return module

    def _judged(self, video: Array, key: jax.Array) -> Array:
        """What the discriminator sees of a clip: all of it, or a random frame."""
        return video if self.judges_clips else random_frames(video, key)

    def frozen(self, load: Any) -> dict[str, nnx.Module]:
        if not self.weights.perceptual.weight:
            return {}
        return {"perceptual": losses.build_perceptual(self.weights.perceptual, structure_only=load is None)}

    def _autoencode(
        self, modules: Modules, video: Array, key: jax.Array, step: Array
    ) -> tuple[Float[Array, ""], dict[str, Array], Array]:
        """Loss, metrics and reconstruction of one part of a batch."""
        model = modules["tokenizer"]
        quantize_key, frame_key = jax.random.split(key)
        latents, _, quantizer_losses, statistics = model.bottleneck(model.encode(video), key=quantize_key, train=True)
        reconstruction = model.decode(latents)
        terms = {"l2": losses.l2(reconstruction, video), **quantizer_losses}
        total = self.weights.l2 * terms["l2"] + sum(quantizer_losses.values())
        if self.weights.l1:
            terms["l1"] = losses.l1(reconstruction, video)
            total += self.weights.l1 * terms["l1"]
        if "perceptual" in modules:
            terms["perceptual"] = modules["perceptual"](reconstruction, video)
            total += self.weights.perceptual.weight * terms["perceptual"]
        if "discriminator" in modules:
            fake = modules["discriminator"](self._judged(reconstruction, frame_key))
            terms["adversarial"] = losses.adversarial_loss(self.weights.adversarial.name).generator(fake)
            started = step >= self.weights.adversarial.start
            total += jnp.where(started, self.weights.adversarial.weight, 0.0) * terms["adversarial"]
        terms["loss"] = total
        terms |= codebook_health(statistics["counts"], model.vocabulary)
        return total, terms, reconstruction

    def tokenizer_loss(
        self, modules: Modules, batch: Batch, key: jax.Array, step: Array
    ) -> tuple[Float[Array, ""], Outcome]:
        """Weighted sum of the losses, averaged over videos and images by their numbers."""
        totals, terms, handover = [], [], {}
        videos = [to_video(part["video"]) for part in parts(batch)]
        for i, video in enumerate(videos):
            total, metrics, reconstruction = self._autoencode(modules, video, jax.random.fold_in(key, i), step)
            totals.append(total)
            terms.append(metrics)
            handover[f"reconstruction_{i}"] = jax.lax.stop_gradient(reconstruction)
        counts = [video.shape[0] for video in videos]
        metrics = {name: weighted_mean([t[name] for t in terms], counts) for name in terms[0]}
        return weighted_mean(totals, counts), Outcome(metrics, handover if "discriminator" in modules else {})

    def discriminator_loss(
        self, modules: Modules, batch: Batch, key: jax.Array, step: Array
    ) -> tuple[Float[Array, ""], Outcome]:
        """Discriminator loss on every clip or a random frame of it, with the R1 penalty on real ones."""
        settings = self.weights.adversarial
        discriminator = modules["discriminator"]
        reals, fakes, counts = [], [], []
        for i, part in enumerate(parts(batch)):
            frame_key = jax.random.fold_in(key, i)
            reals.append(self._judged(to_video(part["video"]), frame_key))
            fakes.append(self._judged(batch[f"reconstruction_{i}"], frame_key))
            counts.append(len(reals[-1]))
        if not self.judges_clips:
            reals, fakes, counts = [jnp.concatenate(reals)], [jnp.concatenate(fakes)], [sum(counts)]
        real_logits, fake_logits = (jnp.concatenate([discriminator(x) for x in xs]) for xs in (reals, fakes))
        loss = losses.adversarial_loss(settings.name).discriminator(real_logits, fake_logits)
        metrics = {"discriminator_real": real_logits.mean(), "discriminator_fake": fake_logits.mean()}
        if settings.r1:
            metrics["r1"] = weighted_mean([losses.r1_penalty(discriminator, real) for real in reals], counts)
            loss += 0.5 * settings.r1 * metrics["r1"]
        if hasattr(discriminator, "lecam"):
            metrics["lecam"] = discriminator.lecam(real_logits, fake_logits)
            loss += settings.lecam * metrics["lecam"]
            discriminator.lecam.update(real_logits, fake_logits, active=step >= settings.start)
        # Before the adversarial loss starts the discriminator rests too: it would only learn to win.
        loss = jnp.where(step >= settings.start, loss, 0.0)
        return loss, Outcome({"discriminator_loss": loss, **metrics})

    def evaluate(self, modules: Modules, batches: Iterable[Batch], seed: int) -> dict[str, float]:
        """PSNR, SSIM and codebook health over all batches, and the nominal bits per pixel of discrete codes.

        A collapsed codebook is named in the log, with the remedy.
        """
        model = modules["tokenizer"]
        graph, state = nnx.split(model)
        score = jax.jit(lambda state, video: _score(nnx.merge(graph, state), video))
        psnrs, ssims, counts = [], [], 0
        for batch in batches:
            clip_psnr, clip_ssim, batch_counts = score(state, batch["video"])
            psnrs.append(on_host(clip_psnr))
            ssims.append(on_host(clip_ssim))
            counts = counts + on_host(batch_counts)
        shape = VideoShape(*batch["video"].shape[1:4])
        grid = model.grid(shape)
        if warning := collapse_warning(model.quantizer, counts):
            logging.warning("%s", warning)
        values = {"psnr": float(np.mean(np.concatenate(psnrs))), "ssim": float(np.mean(np.concatenate(ssims)))}
        if model.vocabulary:
            values["bits_per_pixel"] = bits_per_pixel(grid.tokens, model.vocabulary, shape)
        return values | evaluated_health(counts, model.vocabulary)

    def pictures(self, modules: Modules, batch: Batch, seed: int) -> list[Picture]:
        """Originals beside reconstructions."""
        video = np.asarray(batch["video"])[:4]
        rebuilt = reconstruct(modules["tokenizer"], video)
        return [Picture("reconstructions", list(zip(video, rebuilt, strict=True)), [""] * len(video))]


def random_frames(video: Float[Array, "batch time h w c"], key: jax.Array) -> Float[Array, "batch h w c"]:
    """One uniformly chosen frame of every clip."""
    index = jax.random.randint(key, (video.shape[0],), 0, video.shape[1])
    return jnp.take_along_axis(video, index[:, None, None, None, None], axis=1)[:, 0]


def reconstruct(model: nnx.Module, video: np.ndarray) -> np.ndarray:
    """uint8 clips -> their uint8 reconstructions."""
    graph, state = nnx.split(model)

    @jax.jit
    def run(state: Any, pixels: Array) -> Array:
        model = nnx.merge(graph, state)
        return model.decode(model.bottleneck(model.encode(to_video(pixels)))[0])

    return to_pixels(run(state, video))


def _score(model: nnx.Module, pixels: Array) -> tuple[Array, Array, Array]:
    """PSNR and SSIM of every clip, and the counts of the codes used."""
    video = to_video(pixels)
    latents, _, _, statistics = model.bottleneck(model.encode(video))
    rebuilt, original = to_unit(model.decode(latents)), to_unit(video)
    return psnr(rebuilt, original), ssim(rebuilt, original), statistics["counts"]
