"""Training a video tokenizer: reconstruction, quantizer, perceptual and adversarial losses."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen import losses, tokenizers
from videogen.evaluation import bits_per_pixel, codebook_usage, perplexity, psnr, ssim, to_unit
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


class TokenizerTask:
    """Groups: ``tokenizer`` and, with an adversarial loss, ``discriminator``.

    Losses (``config.losses``): ``l2``, ``l1`` weights; ``perceptual`` ``{name, weight, …}``; ``adversarial``
    ``{name, weight, start, r1, …}``. A weight of 0 leaves the part and its network out.
    """

    def __init__(self, config: Any):
        self.config = config
        self.weights = config.losses
        self.losses = {"tokenizer": self.tokenizer_loss}
        if self.weights.adversarial.weight:
            losses.adversarial_loss(self.weights.adversarial.name)
            self.losses["discriminator"] = self.discriminator_loss

    def init(self, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        parallel = self.config.parallel
        model = tokenizers.build(self.config.model, dtype=dtype_of(self.config), remat=parallel.remat, rngs=rngs)
        clip = self.config.data.clip
        model.grid(VideoShape(clip.frames, clip.height, clip.width))
        modules = {"tokenizer": model}
        if "discriminator" in self.losses:
            modules["discriminator"] = losses.StyleDiscriminator(
                clip.height,
                clip.width,
                channel_multiplier=self.weights.adversarial.channel_multiplier,
                dtype=dtype_of(self.config),
                rngs=rngs,
            )
        return modules

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
            fake = modules["discriminator"](random_frames(reconstruction, frame_key))
            terms["adversarial"] = losses.adversarial_loss(self.weights.adversarial.name).generator(fake)
            started = step >= self.weights.adversarial.start
            total += jnp.where(started, self.weights.adversarial.weight, 0.0) * terms["adversarial"]
        terms["loss"] = total
        terms["codebook_usage"] = codebook_usage(statistics["counts"])
        terms["codebook_perplexity"] = perplexity(statistics["counts"])
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
        """Discriminator loss on one random frame of every clip, with the R1 penalty on real frames."""
        settings = self.weights.adversarial
        discriminator = modules["discriminator"]
        pairs = []
        for i, part in enumerate(parts(batch)):
            frame_key = jax.random.fold_in(key, i)
            pairs.append(
                (
                    random_frames(to_video(part["video"]), frame_key),
                    random_frames(batch[f"reconstruction_{i}"], frame_key),
                )
            )
        real, fake = (jnp.concatenate(x) for x in zip(*pairs, strict=True))
        real_logits, fake_logits = discriminator(real), discriminator(fake)
        loss = losses.adversarial_loss(settings.name).discriminator(real_logits, fake_logits)
        metrics = {"discriminator_real": real_logits.mean(), "discriminator_fake": fake_logits.mean()}
        if settings.r1:
            metrics["r1"] = losses.r1_penalty(discriminator, real)
            loss += 0.5 * settings.r1 * metrics["r1"]
        # Before the adversarial loss starts the discriminator rests too: it would only learn to win.
        loss = jnp.where(step >= settings.start, loss, 0.0)
        return loss, Outcome({"discriminator_loss": loss, **metrics})

    def evaluate(self, modules: Modules, batches: Iterable[Batch], seed: int) -> dict[str, float]:
        """PSNR, SSIM, codebook usage and perplexity over all batches, and the nominal bits per pixel."""
        model = modules["tokenizer"]
        graph, state = nnx.split(model)
        score = jax.jit(lambda state, video: _score(nnx.merge(graph, state), video))
        psnrs, ssims, counts = [], [], 0
        for batch in batches:
            clip_psnr, clip_ssim, batch_counts = score(state, batch["video"])
            psnrs.append(clip_psnr)
            ssims.append(clip_ssim)
            counts = counts + batch_counts
        shape = VideoShape(*batch["video"].shape[1:4])
        grid = model.grid(shape)
        return {
            "psnr": float(np.mean(np.concatenate(psnrs))),
            "ssim": float(np.mean(np.concatenate(ssims))),
            "codebook_usage": float(codebook_usage(counts)),
            "codebook_perplexity": float(perplexity(counts)),
            "bits_per_pixel": bits_per_pixel(grid.tokens, model.vocabulary, shape),
        }

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
        return model.detokenize(model.tokenize(to_video(pixels)))

    return to_pixels(run(state, video))


def _score(model: nnx.Module, pixels: Array) -> tuple[Array, Array, Array]:
    """PSNR and SSIM of every clip, and the counts of the codes used."""
    video = to_video(pixels)
    latents, _, _, statistics = model.bottleneck(model.encode(video))
    rebuilt, original = to_unit(model.decode(latents)), to_unit(video)
    return psnr(rebuilt, original), ssim(rebuilt, original), statistics["counts"]
