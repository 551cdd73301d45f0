"""What training minimises, beyond the likelihoods that generators own."""

from videogen.losses.adversarial import ADVERSARIAL, AdversarialLoss, adversarial_loss, r1_penalty
from videogen.losses.commitment import codebook_loss, commitment
from videogen.losses.discriminators import StyleDiscriminator
from videogen.losses.entropy import entropy
from videogen.losses.perceptual import PERCEPTUAL, PerceptualLoss, UntrainedFeatures, build_perceptual
from videogen.losses.pixel import l1, l2

__all__ = [
    "ADVERSARIAL",
    "PERCEPTUAL",
    "AdversarialLoss",
    "PerceptualLoss",
    "StyleDiscriminator",
    "UntrainedFeatures",
    "adversarial_loss",
    "build_perceptual",
    "codebook_loss",
    "commitment",
    "entropy",
    "l1",
    "l2",
    "r1_penalty",
]
