"""The adversarial term: objectives over discriminator logits, and the regularisers that steady the discriminator."""

import functools
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from videogen.building import build
from videogen.errors import UserError, near_matches
from videogen.losses.by_tokens import ByTokens, TokenBuckets
from videogen.losses.discriminators import StyleDiscriminator, VideoDiscriminator
from videogen.losses.terms import RECONSTRUCTION, Metrics, Modules, Outputs, Pass, Scalar, Setting, Term
from videogen.losses.transformer_discriminator import TransformerDiscriminator
from videogen.nn import MicroBatch, draw, example_keys, named_key
from videogen.ranges import Count, Natural, OneOf, Share, Weight
from videogen.shapes import Video

Logits = Float[Array, "..."]


def hinge_discriminator(real_logits: Logits, fake_logits: Logits) -> Scalar:
    """mean max(0, 1 - D(real)) + mean max(0, 1 + D(fake)) (Lim and Ye, 2017); VQGAN takes half of it."""
    real, fake = real_logits.astype(jnp.float32), fake_logits.astype(jnp.float32)
    return jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake))


def hinge_generator(fake_logits: Logits) -> Scalar:
    """-mean D(fake)."""
    return -jnp.mean(fake_logits.astype(jnp.float32))


def nonsaturating_discriminator(real_logits: Logits, fake_logits: Logits, label_smoothing: float = 0.0) -> Scalar:
    """mean -log sigmoid(D(real)) + mean -log(1 - sigmoid(D(fake))) (Goodfellow et al., 2014).

    With ``label_smoothing`` the target of real ones is 1 less that, and that of fake ones stays 0 (Salimans et al.,
    2016): a sure discriminator is then held back.
    """
    real, fake = real_logits.astype(jnp.float32), fake_logits.astype(jnp.float32)
    return jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake)) + label_smoothing * jnp.mean(real)


def nonsaturating_generator(fake_logits: Logits) -> Scalar:
    """mean -log sigmoid(D(fake))."""
    return jnp.mean(jax.nn.softplus(-fake_logits.astype(jnp.float32)))


def r1_penalty(
    apply: Callable[[Float[Array, "batch ..."]], Float[Array, "batch ..."]], real: Float[Array, "batch ..."]
) -> Scalar:
    """Squared norm of the discriminator's gradient at real examples (Mescheder et al., 2018), mean over them.

    Args:
      apply: the discriminator; each example's logits may depend on that example only.
      real: real examples.

    Returns:
      The mean over examples; the caller multiplies by gamma/2.
    """
    gradient = jax.grad(lambda x: jnp.sum(apply(x).astype(jnp.float32)))(real.astype(jnp.float32))
    return jnp.sum(jnp.square(gradient)) / real.shape[0]


class MovingAverage(nnx.Variable):
    """State of a loss that is not trained by gradients."""


class LeCam(nnx.Module):
    """LeCam regularisation (Tseng et al., 2021): moving averages of the logits hold back a discriminator that wins.

    ``mean max(0, D(real) - average of D(fake))² + mean max(0, average of D(real) - D(fake))²``.

    Args:
      decay: of both averages per call of ``update``; they begin at 0.
    """

    def __init__(self, decay: float = 0.999):
        self.decay = decay
        self.real = MovingAverage(jnp.zeros(()))
        self.fake = MovingAverage(jnp.zeros(()))

    def __call__(self, real_logits: Logits, fake_logits: Logits) -> Scalar:
        """The regulariser; the averages are constants to it."""
        real, fake = real_logits.astype(jnp.float32), fake_logits.astype(jnp.float32)
        above = jax.nn.relu(real - self.fake.get_value())
        below = jax.nn.relu(self.real.get_value() - fake)
        return jnp.mean(above**2) + jnp.mean(below**2)

    def update(self, real: Scalar, fake: Scalar, active: Bool[Array, ""]) -> None:
        """Moves the averages towards the mean logits of a step, where ``active``."""
        for average, mean in ((self.real, real), (self.fake, fake)):
            old = average.get_value()
            average.set_value(jnp.where(active, self.decay * old + (1 - self.decay) * mean, old))


class AdversarialLoss(NamedTuple):
    """The two sides of one objective.

    Attributes:
      discriminator: ``(real_logits, fake_logits) -> scalar``.
      generator: ``(fake_logits) -> scalar``.
    """

    discriminator: Callable[[Logits, Logits], Scalar]
    generator: Callable[[Logits], Scalar]


ADVERSARIAL = {
    "hinge": AdversarialLoss(hinge_discriminator, hinge_generator),
    "nonsaturating": AdversarialLoss(nonsaturating_discriminator, nonsaturating_generator),
}


def adversarial_loss(name: str, label_smoothing: float = 0.0) -> AdversarialLoss:
    """The objective called ``name``, with the real ones' targets smoothed.

    Raises:
      UserError: it is not in ``ADVERSARIAL``, or has no targets to smooth.
    """
    if name not in ADVERSARIAL:
        raise UserError(f"unknown adversarial loss {name!r}{near_matches(name, ADVERSARIAL)}")
    if not label_smoothing:
        return ADVERSARIAL[name]
    if name != "nonsaturating":
        raise UserError(f"adversarial loss {name!r} has no label_smoothing; use 'nonsaturating'")
    smoothed = functools.partial(nonsaturating_discriminator, label_smoothing=label_smoothing)
    return ADVERSARIAL[name]._replace(discriminator=smoothed)


DISCRIMINATORS = {"frame": StyleDiscriminator, "clip": VideoDiscriminator, "transformer": TransformerDiscriminator}
"""What is judged: one random frame of every clip; the clip, by convolutions; the clip, by a transformer."""

BY_TOKENS = "by_tokens"
"""The name of one discriminator for each range of numbers of tokens: ``{name, of: {name, …}, buckets, size}``."""

GROUPS = ("discriminator", "second_discriminator")
"""The parameter groups that a discriminator may be; a second one is for another pass."""


class Adversarial(Term):
    """How real a discriminator finds the prediction; the discriminator is a parameter group of its own.

    Args:
      objective: form of the loss, a name in ``ADVERSARIAL``: hinge or nonsaturating.
      discriminator: what judges: ``{name, …}``, a name in ``DISCRIMINATORS`` and its settings, or ``by_tokens``.
      start: the first step that counts; before it the discriminator rests too: it would only learn to win.
      adaptive: the weight follows the gradients at the decoder's last layer (``terms.combine``).
      every: the discriminator is updated in one of so many steps …
      pause_below: … and pauses while its loss is below this.
      r1: weight gamma of the gradient penalty, which counts gamma/2 times.
      r1_every: the penalty is taken in one of so many updates, and is so many times as heavy (StyleGAN2's lazy R1).
      lecam: weight of ``LeCam``; 0 leaves its averages out.
      label_smoothing: how far the targets of real clips are below 1.
      reads: the pass that is judged.
      group: the parameter group of the discriminator, one of ``GROUPS``.
    """

    def __init__(
        self,
        weight: Weight | Mapping[str, Any],
        objective: str,
        discriminator: Mapping[str, Any],
        setting: Setting,
        *,
        start: Natural = 0,
        adaptive: bool = False,
        every: Count = 1,
        pause_below: Weight = 0.0,
        r1: Weight = 0.0,
        r1_every: Count = 1,
        lecam: Weight = 0.0,
        label_smoothing: Share = 0.0,
        reads: str = RECONSTRUCTION,
        group: Annotated[str, OneOf(*GROUPS)] = GROUPS[0],
    ):
        super().__init__(weight, setting)
        self.reads, self.group, self.by_tokens = reads, group, None
        self.objective, self.adaptive, self.start = adversarial_loss(objective, label_smoothing), adaptive, start
        self.every, self.pause_below = every, pause_below
        self.r1, self.r1_every, self.lecam = r1, r1_every, lecam
        if discriminator.get("name") == BY_TOKENS:
            self.by_tokens = build({BY_TOKENS: TokenBuckets}, discriminator, "discriminator")
            discriminator = self.by_tokens.of
        if (name := discriminator.get("name", "")) not in DISCRIMINATORS:
            raise UserError(f"unknown discriminator {name!r}{near_matches(name, DISCRIMINATORS)}")
        self.discriminator, self.judges_clips = discriminator, name != "frame"

    def module(self, rngs: nnx.Rngs) -> nnx.Module:
        setting, clip = self.setting, self.setting.clip
        sized = {"height": clip.height, "width": clip.width}
        shared = {"remat": setting.remat} if self.discriminator["name"] == "transformer" else sized

        def make(rngs: nnx.Rngs) -> nnx.Module:
            return build(DISCRIMINATORS, self.discriminator, "discriminator", **shared, dtype=setting.dtype, rngs=rngs)

        module = make(rngs) if self.by_tokens is None else ByTokens(make, self.by_tokens, rngs=rngs)
        if self.lecam:
            module.lecam = LeCam()
        return module

    def weight_at(self, step: Int[Array, ""]) -> Scalar:
        return jnp.where(step >= self.start, super().weight_at(step), 0.0)

    def value(self, modules, outputs, key, step, micro):
        compared = self.compared(outputs)
        keys = micro.keys(named_key(key, "frame"), len(compared.prediction))
        judge = self._judging(modules[self.group], compared)
        return self.objective.generator(judge(self.discriminator_input(compared.prediction, keys))), {}

    def _judging(self, discriminator: nnx.Module, compared: Pass) -> Callable[[Array], Logits]:
        """What gives the logits of clips of a pass."""
        if self.by_tokens is None:
            return discriminator
        if compared.tokens is None:
            raise UserError(
                f"the pass {self.reads!r} tells no number of tokens, which {BY_TOKENS!r} needs: leave it out"
            )
        return functools.partial(discriminator, tokens=compared.tokens)

    def discriminator_input(self, video: Video, keys: jax.Array) -> Array:
        """What the discriminator sees of clips: all of it, or a random frame; resized to the clips it was built for."""
        judged, clip = video if self.judges_clips else random_frames(video, keys), self.setting.clip
        size = (*judged.shape[:-3], clip.height, clip.width, judged.shape[-1])
        return judged if judged.shape == size else jax.image.resize(judged, size, "bilinear")

    def group_value(
        self, modules: Modules, outputs: Outputs, key: jax.Array, step: Int[Array, ""], micro: MicroBatch
    ) -> tuple[Scalar, Metrics, dict[str, Array]]:
        """The discriminator's loss; 0 in the steps that ``every`` leaves out, and not computed."""
        compared = self.compared(outputs)
        keys = micro.keys(key, len(compared.target))
        real, fake = (self.discriminator_input(x, keys) for x in (compared.target, compared.prediction))
        judging = self._judging(modules[self.group], compared)
        judge = functools.partial(self._judge, modules[self.group], judging, real, fake, step)
        if self.every == 1:
            loss, metrics, sums = judge()
        else:
            nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(judge))
            loss, metrics, sums = jax.lax.cond(self._updates(step), judge, lambda: nothing)
        loss = jnp.where(step >= self.start, loss, 0.0)
        return loss, {f"{self.group}_loss": loss, **metrics}, sums

    def _updates(self, step: Int[Array, ""]) -> Bool[Array, ""]:
        """Whether the discriminator is to be updated in this step."""
        return (step >= self.start) & ((step - self.start) % self.every == 0)

    def moves(self, metrics: Mapping[str, Array], step: Int[Array, ""]) -> Bool[Array, ""] | None:
        if self.every == 1 and not self.pause_below:
            return None
        return self._updates(step) & (metrics[f"{self.group}_loss"] >= self.pause_below)

    def _judge(
        self,
        discriminator: nnx.Module,
        judging: Callable[[Array], Logits],
        real: Array,
        fake: Array,
        step: Int[Array, ""],
    ) -> tuple[Scalar, Metrics, dict[str, Array]]:
        """Discriminator loss, its metrics, and for LeCam's averages the sums of the logits of real and fake ones."""
        real_logits, fake_logits = judging(real), judging(fake)
        loss, sums = self.objective.discriminator(real_logits, fake_logits), {}
        metrics = {f"{self.group}_real": real_logits.mean(), f"{self.group}_fake": fake_logits.mean()}
        if self.r1:
            metrics["r1"] = self._penalty(judging, real, step)
            loss += 0.5 * self.r1 * metrics["r1"]
        if self.lecam:
            metrics["lecam"] = discriminator.lecam(real_logits, fake_logits)
            loss += self.lecam * metrics["lecam"]
            sums = {name: jnp.sum(x.astype(jnp.float32)) for name, x in (("real", real_logits), ("fake", fake_logits))}
            sums["count"] = jnp.asarray(len(real_logits), jnp.float32)
        return loss, metrics, sums

    def _penalty(self, judging: Callable[[Array], Logits], real: Array, step: Int[Array, ""]) -> Scalar:
        """The gradient penalty, where it is due ``r1_every`` times."""

        def penalty() -> Scalar:
            return r1_penalty(judging, real)

        if self.r1_every == 1:
            return penalty()
        due = (step - self.start) % (self.r1_every * self.every) == 0
        return self.r1_every * jax.lax.cond(due, penalty, lambda: jnp.zeros(()))

    def update(self, module: nnx.Module, sums: dict[str, Array], step: Int[Array, ""]) -> None:
        if self.lecam:
            count = jnp.maximum(sums["count"], 1)
            module.lecam.update(sums["real"] / count, sums["fake"] / count, self._updates(step))


def random_frames(video: Float[Array, "batch time h w c"], key: jax.Array) -> Float[Array, "batch h w c"]:
    """One uniformly chosen frame of every clip; ``key`` is one, or one of each clip."""
    keys = example_keys(key, len(video))
    index = draw(lambda key, shape: jax.random.randint(key, shape, 0, video.shape[1]), keys, video.shape[:1])
    return jnp.take_along_axis(video, index[:, None, None, None, None], axis=1)[:, 0]
