"""The settings of a model of clips and words, and what its config says before it is built."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt8, UInt32
from ml_collections import ConfigDict

from videogen import building
from videogen.ranges import Count, Natural, OneOf, Share

WORDS, MATCHING, CONTRASTIVE, LABELS = "words", "matching", "contrastive", "labels"
PASSES = (WORDS, MATCHING, CONTRASTIVE, LABELS)
"""The passes that every such model can give; those of visual targets are named by ``model.targets``."""

BEGINNINGS = ("bert", "video_swin")
"""Published networks among ``config.parts`` that parts of the model begin as (``start_from.paths``)."""

PATCHES = {"name": "patches"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masking:
    """The section ``masking``: how much of an example is hidden.

    Attributes:
      video: share of the patches of a clip; [CLS] is none.
      blocks: how likely they are boxes of time and space; else each is drawn by the attention that it gets.
      words: share of the words of a text, at least one.
      whole_words: all pieces of a word are hidden together.
      with_words: masked places are told with the words at hand; else from the clip alone.
    """

    video: Share = 0.15
    blocks: Share = 0.5
    words: Share = 0.15
    whole_words: bool = False
    with_words: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoTextSettings:
    """The section ``config.model`` of one transformer over clips and words.

    Attributes:
      network: ``{name: joint | shared, …}`` (``language.fused``).
      masking: as ``Masking`` has them.
      targets: ``{pass: {name: codes | features | pixels, …}}``: what masked places of a clip should be told to be.
      matching: ``choice``: the right text among others of the batch; ``binary``: yes or no.
      negatives: so many others.
      embed: width of a space of clips and texts by themselves, for a contrastive loss; 0: there is none.
      scale: ``{start, largest, smallest}`` of the logit scale there.
    """

    network: Mapping[str, Any]
    masking: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    targets: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    matching: Annotated[str, OneOf("choice", "binary")] = "choice"
    negatives: Count = 3
    embed: Natural = 0
    scale: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def encoder_of(config: Any) -> Mapping[str, Any]:
    """The section of the video encoder of a network; patches, where it has none of its own."""
    building.check_value("model", Mapping, config.model)
    network = config.model.get("network", {})
    building.check_value("model.network", Mapping, network)
    return network.get("encoder", PATCHES)


def targets_of(config: Any) -> Mapping[str, Any]:
    """The visual targets that terms read."""
    found = config.model.get("targets", {})
    building.check_value("model.targets", Mapping, found)
    read = {name: found[name] for name in sorted(reads_of(config.losses) & set(found))}
    for name, section in read.items():
        building.check_value(f"model.targets.{name}", Mapping, section)
    return read


def reads_of(section: Mapping[str, Any]) -> set[str]:
    """The passes that terms of ``config.losses`` read, unless their weight is 0."""
    building.check_value("losses", Mapping, section)
    found: set[str] = set()
    for label in section:
        term = section[label]
        # What is no section, and names that are none, are refused where the terms are built.
        if not isinstance(term, Mapping | ConfigDict) or term.get("weight") == 0:
            continue
        reads = term.get("reads", term.get("name", label))
        several = reads if isinstance(reads, tuple | list) else (reads,)
        found |= {name for name in several if isinstance(name, str)}
    return found


def digests(video: UInt8[Array, "batch *pixels"]) -> UInt32[Array, "batch 4"]:
    """Numbers of clips that equal clips share; others share them with a chance of about 2⁻¹²⁸."""
    flat = video.reshape(len(video), -1).astype(jnp.uint32)
    weights = jax.random.bits(jax.random.key(0), (4, flat.shape[1]), jnp.uint32) | 1
    return jnp.stack([jnp.sum(flat * own, axis=1, dtype=jnp.uint32) for own in weights], axis=1)
