"""What training minimises, beyond the likelihoods that generators own."""

from videogen.losses.adversarial import (
    ADVERSARIAL,
    AdversarialLoss,
    LeCam,
    adaptive_weight,
    adversarial_loss,
    r1_penalty,
    with_gradient,
)
from videogen.losses.commitment import codebook_loss, commitment
from videogen.losses.discriminators import StyleDiscriminator, VideoDiscriminator
from videogen.losses.entropy import entropy
from videogen.losses.perceptual import PERCEPTUAL, PerceptualLoss, UntrainedFeatures, build_perceptual
from videogen.losses.pixel import l1, l2
from videogen.losses.prior import AutoregressivePrior, Prediction, mixing_ratio
from videogen.losses.transformer_discriminator import TransformerDiscriminator

__all__ = [
    "ADVERSARIAL",
    "PERCEPTUAL",
    "AdversarialLoss",
    "AutoregressivePrior",
    "LeCam",
    "PerceptualLoss",
    "Prediction",
    "StyleDiscriminator",
    "TransformerDiscriminator",
    "UntrainedFeatures",
    "VideoDiscriminator",
    "adaptive_weight",
    "adversarial_loss",
    "build_perceptual",
    "codebook_loss",
    "commitment",
    "entropy",
    "l1",
    "l2",
    "mixing_ratio",
    "r1_penalty",
    "with_gradient",
]
