"""Adversarial objectives over discriminator logits, and the gradient penalty that steadies them."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from videogen.errors import UserError, near_matches

Logits = Float[Array, "..."]
Scalar = Float[Array, ""]


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


LARGEST_ADAPTIVE_WEIGHT = 1e4


def adaptive_weight(reconstruction_norm: Scalar, adversarial_norm: Scalar) -> Scalar:
    """What makes the adversarial gradient as long as the reconstruction's (VQGAN; Esser et al., 2021), up to 10⁴.

    Args:
      reconstruction_norm: norm of the gradient of the reconstruction losses at the decoder's last layer.
      adversarial_norm: the same of the adversarial loss.
    """
    return jnp.clip(reconstruction_norm / (adversarial_norm + 1e-4), 0.0, LARGEST_ADAPTIVE_WEIGHT)


def with_gradient(x: Array, value: Scalar, gradient: Array) -> Scalar:
    """``value``, whose gradient with respect to ``x`` is ``gradient``: a loss whose derivative is known already."""
    return jax.lax.stop_gradient(value) + jnp.vdot(jax.lax.stop_gradient(gradient), x - jax.lax.stop_gradient(x))


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
