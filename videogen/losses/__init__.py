"""What training minimises: terms by name (``TERMS``), beyond the likelihoods that generators own."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from videogen import building
from videogen.errors import UserError
from videogen.losses.adversarial import (
    ADVERSARIAL,
    DISCRIMINATORS,
    Adversarial,
    AdversarialLoss,
    LeCam,
    adversarial_loss,
    r1_penalty,
    random_frames,
)
from videogen.losses.commitment import codebook_loss, commitment
from videogen.losses.contrastive import (
    Contrastive,
    LogitScale,
    MomentumContrast,
    contrastive_loss,
    momentum_contrast,
    positives,
)
from videogen.losses.discriminators import StyleDiscriminator, VideoDiscriminator
from videogen.losses.distillation import OBJECTIVES, Distillation, Projection
from videogen.losses.entropy import entropy
from videogen.losses.halting import Halting
from videogen.losses.matching import Matching, matching_loss, negatives, numbered
from videogen.losses.perceptual import (
    I3dFeatures,
    Lpips,
    PerceptualLoss,
    ResNetFeatures,
    Untrained,
    UntrainedFeatures,
)
from videogen.losses.pixel import l1, l2
from videogen.losses.poses import JointError, joint_errors, mean_joint_error
from videogen.losses.preference import preference_loss, preference_margin
from videogen.losses.prior import AutoregressivePrior, LearnedPrior, Prediction, mixing_ratio
from videogen.losses.regression import Regression
from videogen.losses.sequences import (
    CrossEntropy,
    cross_entropy,
    log_probability,
    mean_over_scales,
    negative_log_likelihood,
)
from videogen.losses.streaming import Streaming, first_speech, streaming_loss, streaming_targets
from videogen.losses.terms import (
    RECONSTRUCTION,
    AbsoluteError,
    Outputs,
    Pass,
    QuantizerLoss,
    Setting,
    SquaredError,
    Term,
    adaptive_weight,
    combine,
    with_gradient,
)
from videogen.losses.transformer_discriminator import TransformerDiscriminator

TERMS: dict[str, type[Term]] = {
    "l1": AbsoluteError,
    "l2": SquaredError,
    "lpips": Lpips,
    "resnet": ResNetFeatures,
    "i3d": I3dFeatures,
    "untrained": Untrained,
    "adversarial": Adversarial,
    "prior": LearnedPrior,
    "quantizer": QuantizerLoss,
    "distillation": Distillation,
    "halting": Halting,
    "cross_entropy": CrossEntropy,
    "matching": Matching,
    "contrastive": Contrastive,
    "regression": Regression,
    "momentum_contrast": MomentumContrast,
    "streaming": Streaming,
    "joint_error": JointError,
}


def build(config: Mapping[str, Any], setting: Setting) -> dict[str, Term]:
    """The terms of ``config.losses = {term: {name, weight, …}}``, in alphabetical order, less those of weight 0.

    Raises:
      UserError: an unknown name or setting, two terms with one parameter group, or two adaptive ones of one pass.
    """
    terms: dict[str, Term] = {}
    for label in sorted(config):
        section = config[label]
        if not isinstance(section, Mapping | ConfigDict):
            raise UserError(f"losses.{label} must be a section such as {{name: l2, weight: 1.0}}, got {section!r}")
        term = building.build(TERMS, section, f"loss term (losses.{label})", setting=setting)
        term.label = label
        if term.weight == 0:
            continue
        for other in terms.values():
            if term.group and term.group == other.group:
                raise UserError(f"losses.{other.label} and losses.{label} both train a {term.group}; leave one out")
            if term.adaptive and other.adaptive and term.reads == other.reads:
                raise UserError(f"losses.{other.label} and losses.{label} cannot both be adaptive")
        terms[label] = term
    return terms


def parts_of(config: Mapping[str, Any]) -> list[str]:
    """The published networks among ``config.parts`` that terms of ``config.losses`` read, unless their weight is 0."""
    sections = [config[label] for label in sorted(config) if isinstance(config[label], Mapping | ConfigDict)]
    # Names that are none are refused where the terms are built.
    read = [(s.get("name"), s) for s in sections if s.get("weight") != 0]
    return [part for name, s in read if isinstance(name, str) and name in TERMS for part in TERMS[name].parts(s)]


__all__ = [
    "ADVERSARIAL",
    "DISCRIMINATORS",
    "OBJECTIVES",
    "RECONSTRUCTION",
    "TERMS",
    "AbsoluteError",
    "Adversarial",
    "AdversarialLoss",
    "AutoregressivePrior",
    "Contrastive",
    "CrossEntropy",
    "Distillation",
    "Halting",
    "I3dFeatures",
    "JointError",
    "LeCam",
    "LearnedPrior",
    "LogitScale",
    "Lpips",
    "Matching",
    "MomentumContrast",
    "Outputs",
    "Pass",
    "PerceptualLoss",
    "Prediction",
    "Projection",
    "QuantizerLoss",
    "Regression",
    "ResNetFeatures",
    "Setting",
    "SquaredError",
    "Streaming",
    "StyleDiscriminator",
    "Term",
    "TransformerDiscriminator",
    "Untrained",
    "UntrainedFeatures",
    "VideoDiscriminator",
    "adaptive_weight",
    "adversarial_loss",
    "build",
    "codebook_loss",
    "combine",
    "commitment",
    "contrastive_loss",
    "cross_entropy",
    "entropy",
    "first_speech",
    "joint_errors",
    "l1",
    "l2",
    "log_probability",
    "matching_loss",
    "mean_joint_error",
    "mean_over_scales",
    "mixing_ratio",
    "momentum_contrast",
    "negative_log_likelihood",
    "negatives",
    "numbered",
    "parts_of",
    "positives",
    "preference_loss",
    "preference_margin",
    "r1_penalty",
    "random_frames",
    "streaming_loss",
    "streaming_targets",
    "with_gradient",
]
