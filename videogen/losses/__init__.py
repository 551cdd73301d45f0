"""What training minimises, beyond the likelihoods that generators own."""

from videogen.losses.adversarial import ADVERSARIAL, AdversarialLoss, LeCam, adversarial_loss, r1_penalty
from videogen.losses.commitment import codebook_loss, commitment
from videogen.losses.discriminators import StyleDiscriminator, VideoDiscriminator
from videogen.losses.entropy import entropy
from videogen.losses.perceptual import PERCEPTUAL, PerceptualLoss, UntrainedFeatures, build_perceptual
from videogen.losses.pixel import l1, l2

__all__ = [
    "ADVERSARIAL",
    "PERCEPTUAL",
    "AdversarialLoss",
    "LeCam",
    "PerceptualLoss",
    "StyleDiscriminator",
    "UntrainedFeatures",
    "VideoDiscriminator",
    "adversarial_loss",
    "build_perceptual",
    "codebook_loss",
    "commitment",
    "entropy",
    "l1",
    "l2",
    "r1_penalty",
]
