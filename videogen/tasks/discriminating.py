"""What judges clips and reconstructions in training, and how it learns: the adversarial side of a tokenizer's task."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from videogen import losses
from videogen.nn import MicroBatch, draw, example_keys
from videogen.tasks.base import Batch, Modules, Outcome, Task, dtype_of, parts, to_video, weighted_mean

DISCRIMINATORS = ("frame", "clip", "transformer")
"""What the discriminator judges: one random frame of each clip, or the clip, by convolutions or by a transformer."""


class Discriminating(Task):
    """The group ``discriminator`` of a task with ``config.losses.adversarial`` (see ``TokenizerTask``)."""

    def _discriminator(self, rngs: nnx.Rngs) -> nnx.Module:
        """A judge of single frames or of whole clips; LeCam's averages, where it is on, travel with it."""
        settings, clip = self.weights.adversarial, self.config.data.clip
        common = dict(dtype=dtype_of(self.config), rngs=rngs)
        if self.judged == "transformer":
            remat = self.config.parallel.remat
            module = losses.TransformerDiscriminator(**settings.transformer, remat=remat, **common)
        elif self.judged == "clip":
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
        """What the discriminator sees of a clip: all of it, or a random frame; resized to ``data.clip``.

        Args:
          video: clips.
          key: one, or one of each clip.
        """
        judged, clip = video if self.judges_clips else random_frames(video, key), self.config.data.clip
        size = (*judged.shape[:-3], clip.height, clip.width, judged.shape[-1])
        return judged if judged.shape == size else jax.image.resize(judged, size, "bilinear")

    def discriminator_loss(
        self, modules: Modules, batch: Batch, key: jax.Array, step: Array, micro: MicroBatch | None = None
    ) -> tuple[Float[Array, ""], Outcome]:
        """Discriminator loss on every clip or a random frame of it, with the R1 penalty on real ones.

        It is 0 in the steps that ``every`` leaves out, and not computed.
        """
        settings = self.weights.adversarial
        discriminator = modules["discriminator"]
        # Videos and images apart: other devices may share them.
        reals, fakes, counts, micro = [], [], [], micro or MicroBatch()
        for i, part in enumerate(parts(batch)):
            frame_key = micro.keys(jax.random.fold_in(key, i), len(part["video"]))
            reals.append(self._judged(to_video(part["video"]), frame_key))
            fakes.append(self._judged(batch[f"reconstruction_{i}"], frame_key))
            counts.append(len(reals[-1]))
        if settings.get("every", 1) == 1:
            loss, metrics, sums = self._judgement(discriminator, reals, fakes, counts, step)
        else:
            judge = functools.partial(self._judgement, discriminator, reals, fakes, counts, step)
            nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(judge))
            loss, metrics, sums = jax.lax.cond(self._judges(step), judge, lambda: nothing)
        # Before the adversarial loss starts the discriminator rests too: it would only learn to win.
        loss = jnp.where(step >= settings.start, loss, 0.0)
        return loss, Outcome({"discriminator_loss": loss, **metrics}, sums=sums)

    def _judges(self, step: Array) -> Bool[Array, ""]:
        """Whether the discriminator is to be updated in this step."""
        settings = self.weights.adversarial
        return (step >= settings.start) & ((step - settings.start) % settings.get("every", 1) == 0)

    def _discriminator_moves(self, metrics: Mapping[str, Array], step: Array) -> Bool[Array, ""]:
        """Whether it is, and does not win by too much."""
        rest_below = self.weights.adversarial.get("rest_below", 0.0)
        return self._judges(step) & (metrics["discriminator_loss"] >= rest_below)

    def _update_averages(
        self, modules: Modules, sums: dict[str, Any], rows: dict[str, Any], key: jax.Array, step: Array
    ) -> dict[str, Float[Array, ""]]:
        """Moves LeCam's averages, where it is on."""
        if sums:
            count = jnp.maximum(sums["count"], 1)
            modules["discriminator"].lecam.update(sums["real"] / count, sums["fake"] / count, self._judges(step))
        return {}

    def _judgement(
        self, discriminator: nnx.Module, reals: list[Array], fakes: list[Array], counts: list[int], step: Array
    ) -> tuple[Float[Array, ""], dict[str, Array], dict[str, Array]]:
        """Discriminator loss, its metrics, and for LeCam's averages the sums of the logits of real and fake ones."""
        settings = self.weights.adversarial
        real_logits, fake_logits = (jnp.concatenate([discriminator(x) for x in xs]) for xs in (reals, fakes))
        objective = losses.adversarial_loss(settings.name, settings.get("label_smoothing", 0.0))
        loss, sums = objective.discriminator(real_logits, fake_logits), {}
        metrics = {"discriminator_real": real_logits.mean(), "discriminator_fake": fake_logits.mean()}
        if settings.r1:
            metrics["r1"] = self._penalty(discriminator, reals, counts, step)
            loss += 0.5 * settings.r1 * metrics["r1"]
        if hasattr(discriminator, "lecam"):
            metrics["lecam"] = discriminator.lecam(real_logits, fake_logits)
            loss += settings.lecam * metrics["lecam"]
            sums = {name: jnp.sum(x.astype(jnp.float32)) for name, x in (("real", real_logits), ("fake", fake_logits))}
            sums["count"] = jnp.asarray(len(real_logits), jnp.float32)
        return loss, metrics, sums

    def _penalty(
        self, discriminator: nnx.Module, reals: list[Array], counts: list[int], step: Array
    ) -> Float[Array, ""]:
        """The R1 penalty; with ``r1_every = n`` only in every n-th update, n times as heavy (StyleGAN2's lazy R1)."""
        settings = self.weights.adversarial

        def penalty() -> Float[Array, ""]:
            return weighted_mean([losses.r1_penalty(discriminator, real) for real in reals], counts)

        n = settings.get("r1_every", 1)
        if n == 1:
            return penalty()
        due = (step - settings.start) % (n * settings.get("every", 1)) == 0
        return n * jax.lax.cond(due, penalty, lambda: jnp.zeros(()))


def random_frames(video: Float[Array, "batch time h w c"], key: jax.Array) -> Float[Array, "batch h w c"]:
    """One uniformly chosen frame of every clip; ``key`` is one, or one of each clip."""
    keys = example_keys(key, len(video))
    index = draw(lambda key, shape: jax.random.randint(key, shape, 0, video.shape[1]), keys, video.shape[:1])
    return jnp.take_along_axis(video, index[:, None, None, None, None], axis=1)[:, 0]
