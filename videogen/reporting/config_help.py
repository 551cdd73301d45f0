"""``--help_config``: every key of a config with its value and its meaning."""

import fnmatch
import inspect
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from videogen import (
    conditioning,
    data,
    denoisers,
    detokenizers,
    diffusion,
    encoders,
    generators,
    heads,
    language,
    losses,
    nn,
    perception,
    quantizers,
    reducers,
    tokenizers,
)
from videogen.encoders.vit import tower
from videogen.language.fused import FUSED
from videogen.language.towers import TEXT_TOWERS, VIDEO_TOWERS
from videogen.language.vision import VisionSettings
from videogen.language.vision_encoders import VISION_ENCODERS
from videogen.losses.by_tokens import TokenBuckets
from videogen.tasks.adaptive import Passes
from videogen.tasks.answers import ANSWER_LOSSES
from videogen.tasks.clip_classes import Windows
from videogen.tasks.fused_settings import Masking, VideoTextSettings
from videogen.tasks.language import StreamSettings
from videogen.tasks.retrieval import TwoTowersSettings
from videogen.tasks.segmentation import MASK_DECODER, MASK_LOSSES, SegmentationSettings
from videogen.tasks.understanding import VideoLanguageSettings
from videogen.tasks.visual_targets import TARGETS
from videogen.tasks.watching import SessionSettings, WatchingSettings
from videogen.tokenizers import lengths, normaliser
from videogen.tokenizers.one_d_flow import Flow
from videogen.tokenizers.signs import SignDenoising
from videogen.tokenizers.token_conditioned import Denoising, VisionSection
from videogen.tokenizers.tokenflow import SemanticSection

MEANINGS = {
    "seed": "decides weights, noise and the order of the data",
    "steps": "training steps of the whole run",
    "log_every": "steps between two records in metrics.jsonl",
    "eval_every": "steps between two evaluations",
    "checkpoint_every": "steps between two checkpoints",
    "checkpoint.keep": "how many of the last checkpoints are kept",
    "checkpoint.keep_best.metric": "the checkpoint that is best by this metric of the evaluation is kept, too",
    "checkpoint.keep_best.mode": "max or min: what is best",
    "stall_seconds": "a loop without progress for so long is stopped",
    "accumulate": "micro-batches that a batch is computed in",
    "start_from.run": "run or export whose weights a new run begins with",
    "start_from.paths": "((path, RUN:path), …): parts that begin as copies (:NAME: frozen ones, or start_from.run's)",
    "start_from.inflate": "last or central: the slice of time that 2-D kernels become part of",
    "ema.decay": "rate of the moving average of the weights; 0 keeps none",
    "task": "what is trained; decided by stage=",
    "root": "the joint that errors of an evaluation are told from",
    "classes": "number of labels a generator is told; none without",
    "parallel.mesh.*": "devices along this axis; -1 takes what is left",
    "parallel.remat": "what is computed again in the backward pass: none, dots, attention, full",
    "parallel.frozen": "weights of frozen modules: sharded over fsdp, or whole on every device",
    "parallel.dtype": "of activations and matrix products: float32 or bfloat16",
    "data.clip.frames": "frames of a clip",
    "data.clip.height": "rows of pixels",
    "data.clip.width": "columns of pixels",
    "data.clip.fps": "frames per second that clips are sampled at; 0 takes every frame of a file",
    "data.source.name": "where clips come from; the other settings are those of this source",
    "data.source.maps": "samples have maps of their points, for stages that draw from them (SignViP)",
    "data.source.segments": "own (of a source that draws its clips) or stand_in (k-means): samples have label maps",
    "data.source.things": "things of a clip that are linked through its label maps, the largest",
    "data.own": "sections of data that are not taken from the tokenizer's run",
    "data.frame_rate": "found by a run: frames per second of its samples",
    "data.held_out": "found by a run: whether the evaluated clips are kept from training",
    "data.batch_size": "videos in a batch of the whole job",
    "data.buckets": "((frames, height, width, batch size, share of the steps), …) instead of one size of clips",
    "data.phases": "((first step, (share of each bucket, …)), …): other shares of the buckets from that step on",
    "data.image_batch_size": "images beside the videos of a batch",
    "data.eval_batch_size": "clips that an evaluation has in memory at a time",
    "data.workers": "processes that decode; 0 decodes in the training process",
    "parts.*.checkpoint": "run or export of this frozen network; folder of a published one",
    "parts.*.hash": "found by a run: of its weights",
    "augmentation": "share of the frames in training whose maps are those of a random frame of the batch (SignViP)",
    "model.*.null_shares.*": "share of the training examples that are not told this part",
    "distillation.guidance_scale": "guidance that the teacher is asked with",
    "distillation.steps": "steps of the teacher that the student learns to take at once",
    "layouts.*.sequence": "({marker: word}, {input: segment, clip}, {output: segment, queries, clip}, …) in order",
    "layouts.*.prefix": "what stands before the first output sees each other both ways",
    "layouts.*.share": "of the samples, or ((first step, share), …)",
    "tasks.*": "weight of this task among those that clips are completed by; 0 leaves it out",
    "text.encoder.name": "transformer (trained along), none, stream (the model reads the ids itself), or the frozen "
    "part text_encoder: t5, a language model (decoder), the stand-in for one (shapes_captions), or CLIP's (clip_text)",
    "text.tokenizer.name": "bpe (learned from the captions), bytes or huggingface",
    "text.tokenizer.path": "a tokenizer.json, or its directory",
    "text.tokenizer.length": "tokens of a caption; longer ones are cut",
    "text.tokenizer.vocabulary_size": "number of tokens",
    "text.tokenizer.cleaned": "HTML entities are read and white space is collapsed, as for the prompts of Wan",
    "losses.*.weight.start": "weight at step 0 …",
    "losses.*.weight.final": "… and the one that it reaches in a straight line …",
    "losses.*.weight.steps": "… at this step",
    "optimizer.*.name": "adamw, muon, …",
    "optimizer.*.learning_rate": "highest learning rate",
    "optimizer.*.warmup": "steps of the linear rise to it",
    "optimizer.*.schedule": "how it falls after that",
    "optimizer.*.final": "share of it at the end",
    "optimizer.*.horizon": "step at which it has fallen; by default the last",
    "optimizer.*.b1": "decay of the mean of the gradient",
    "optimizer.*.b2": "decay of the mean of its square",
    "optimizer.*.weight_decay": "decoupled weight decay",
    "optimizer.*.clip": "largest norm of the gradient; 0 clips nothing",
    "optimizer.*.adam_share": "learning rate of what muon leaves to Adam, as a share of its own",
    "optimizer.*.freeze": "parameters that stay as they are, by path from the group's module; LoRA below is trained",
    "model.critic.layers": "layers of a critic that decides which codes decoding keeps; 0 leaves it out",
    "model.critic.weight": "weight of the critic's loss",
    "sampler.final_temperature": "temperature of the last step",
    "sampler.guidance_scale": "how strongly samples follow the conditioning",
    "*.rope.*": "of the rotary positions of a published language model",
    "*.lora.rank": "of low-rank updates",
    "*.lora.only": "projections of the attention that have low-rank updates; without: all linear layers",
    "*.lora.alpha": "what low-rank updates are multiplied by, times their rank",
    "*.spatial_strides": "factor that every level shrinks height and width by",
    "*.temporal_strides": "factor that every level shrinks time by",
    "*.mlp.kind": "of the MLPs: gelu, swiglu, geglu, …",
    "*.clip": "(frames, height, width) of the clips, in pixels",
    "*.heads": "attention heads",
    "*.attention.interleaved": "rotary positions turn channels 2i and 2i + 1, not i and i + half of the head",
    "*.layers": "layers",
    "*.width": "channels",
    "*.mlp_width": "channels inside an MLP",
    "*.name": "which part; its settings follow",
}
"""Pattern of a dotted key -> what it means, where no part says it; the first pattern that fits holds."""

TABLES = {
    "source": data.SOURCES,
    "model": {
        **tokenizers.TOKENIZERS,
        **tokenizers.TOKEN_CONDITIONED,
        "sign_diffusion": tokenizers.SignDiffusion,
        **generators.GENERATORS,
        **detokenizers.DETOKENIZERS,
        "stream": StreamSettings,
        "video_language": VideoLanguageSettings,
        "two_towers": TwoTowersSettings,
        "video_text": VideoTextSettings,
        "watching": WatchingSettings,
        "pose_lifter": perception.PoseLifter,
        "selective_state_space": perception.SelectiveStateSpace,
        "segmenting": SegmentationSettings,
        **{name: encoders.ENCODERS[name] for name in ("shapes_captions", "shapes_classifier")},
    },
    "head": heads.HEADS,
    **dict.fromkeys(("quantizer", "codes", "base"), quantizers.QUANTIZERS),
    **dict.fromkeys(("resampler", "expander"), reducers.REDUCERS),
    "normaliser": normaliser.NORMALISERS,
    "lengths": lengths.LENGTHS,
    "discriminator": losses.DISCRIMINATORS,
    "of": losses.DISCRIMINATORS,
    "decoder": detokenizers.DETOKENIZERS,
    "sampler": {**generators.SAMPLERS, **language.SAMPLERS},
    "backbone": language.BACKBONES,
    "encoder": {"transformer": conditioning.TextEncoder, **encoders.SEEN},
    **diffusion.PARTS,
    "process": {**diffusion.PROCESSES, **diffusion.BIT_PROCESSES},
}
"""Section -> its parts by name."""

SHORTCUTS = {("sampler", "attention"): generators.ATTENTIONS, ("sampler", "cache"): generators.CACHES}
"""Sections of a sampler -> their parts by name; a transformer has an ``attention`` of its own."""

TOWERS = {("model", "video"): VIDEO_TOWERS, ("model", "text"): TEXT_TOWERS, ("model", "network"): FUSED}
"""Sections of two towers, and of a model of clips and words -> their parts by name."""

SHARED = (
    *(nn.FactorisedStack, nn.TransformerSection, detokenizers.Pyramid, generators.TrainingNoise),
    *(encoders.Decoder, encoders.ClipImage, encoders.ClipText, losses.LogitScale),
    *(
        Masking,
        encoders.Bert,
        encoders.VideoSwin,
        Flow,
        TokenBuckets,
        Passes,
        SemanticSection,
        VisionSettings,
        tokenizers.ConvolutionalTokenizer,
        tower,
    ),
    *(perception.LiftingHourglass, Windows),
    *(SessionSettings, Denoising, VisionSection, denoisers.VideoTransformer, SignDenoising, conditioning.MapEncoder),
)
"""Parts whose settings stand in sections of other parts, or without a name."""


def table(path: Sequence[str]) -> Mapping[str, Callable]:
    """The parts by name that a section may be, from the keys that lead to it."""
    if len(path) > 1 and path[-2] == "quantizers":
        return quantizers.QUANTIZERS
    if tuple(path[-2:]) in SHORTCUTS:
        return SHORTCUTS[tuple(path[-2:])]
    if len(path) > 1 and path[-2] == "floats":
        return heads.HEADS
    if tuple(path[-2:]) in (("vision", "encoder"), ("video", "encoder"), ("network", "encoder")):
        return VISION_ENCODERS
    if tuple(path[:2]) == ("model", "targets"):
        return TARGETS
    if tuple(path[-2:]) == ("masks", "decoder"):
        return {MASK_DECODER: encoders.SamMaskDecoder}
    if tuple(path) == ("model", "encoder"):
        return {**TABLES["encoder"], **VISION_ENCODERS}
    if tuple(path) in TOWERS:
        return TOWERS[tuple(path)]
    if tuple(path[:1]) == ("losses",) and path[-1] in ANSWER_LOSSES:
        return ANSWER_LOSSES
    if tuple(path[:1]) == ("losses",) and path[-1] in MASK_LOSSES:
        return MASK_LOSSES
    return losses.TERMS if len(path) == 2 and path[0] == "losses" else TABLES.get(path[-1], {})


def config_help(config: ConfigDict) -> str:
    """The keys of a config, one a line: flag, value, meaning."""
    lines = []
    for key, value in walk(config):
        line = f"--config.{key}={value if value is not None else ''}"
        said = meaning(key, config)
        lines.append(f"{line}\n    {said}" if said else line)
    return "\n".join(lines) + "\n"


def walk(section: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values in the order of the config; what other runs decide is left out."""
    for key in section:
        name, value = f"{prefix}{key}", section[key]
        if name == "data.made_from" or _fits(name, "parts.*.model"):
            continue
        if isinstance(value, ConfigDict):
            yield from walk(value, f"{name}.")
        else:
            yield name, value


def meaning(key: str, config: ConfigDict) -> str:
    """What a key means: in the words of its own table, of its part, or of a part around it; empty where none says."""
    if key == "data.source.name":
        return f"{MEANINGS[key]}: {', '.join(sorted(data.SOURCES))}"
    if key == "data.image_source.name":
        return f"where images come from: {', '.join(sorted(data.SOURCES))}; empty: frames of the videos"
    if key.startswith(("data.source.", "data.image_source.")) and key not in MEANINGS:
        return _of_sources(key.rpartition(".")[2])
    exact = [words for pattern, words in MEANINGS.items() if not pattern.startswith("*") and _fits(key, pattern)]
    if exact:
        return exact[0]
    *path, last = key.split(".")
    if last == "name" and path and table(path):
        return f"one of {', '.join(sorted(table(path)))}; its settings follow"
    for depth in range(len(path), 0, -1):
        section = config
        for name in path[:depth]:
            section = section[name]
        part = table(path[:depth]).get(section.get("name"))
        if said := arguments(part).get(last) if part else "":
            return said
    for part in SHARED:
        if said := arguments(part).get(last):
            return said
    return next((words for pattern, words in MEANINGS.items() if _fits(key, pattern)), "")


def _of_sources(key: str) -> str:
    """What a setting of sources means, after the names of those that take it."""
    said = {
        name: words
        for name, source in sorted(data.SOURCES.items())
        if key in inspect.signature(source).parameters and (words := arguments(source).get(key))
    }
    return "; ".join(f"{name}: {words}" for name, words in said.items()) or MEANINGS.get(f"data.source.{key}", "")


def _fits(key: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(key, pattern)


def arguments(part: Callable) -> Mapping[str, str]:
    """``{argument: meaning}`` from the ``Args:`` and ``Attributes:`` of a part's docstrings, its bases' included."""
    found: dict[str, str] = {}
    for owner in itertools.chain(getattr(part, "__mro__", (part,)), (getattr(part, "__init__", None),)):
        for names, words in _entries(inspect.getdoc(owner) if owner is not None else None):
            for name in names:
                found.setdefault(name, words)
    return found


def _entries(docstring: str | None) -> Iterator[tuple[list[str], str]]:
    block = re.search(r"^(?:Args|Attributes):\n((?: +.*\n?|\n)+)", docstring or "", re.MULTILINE)
    if block is None:
        return
    for entry in re.split(r"\n(?=  \S)", block[1].rstrip()):
        head, _, words = entry.strip().partition(": ")
        if re.fullmatch(r"[\w*]+(?:, [\w*]+)*", head):
            yield head.split(", "), " ".join(words.split()).replace("``", "").rstrip(".")
