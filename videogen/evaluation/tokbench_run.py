"""Running TokBench: what every sample gives, the whole of a set, and the record of a result."""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from absl import logging
from PIL import Image
from tqdm import tqdm

from videogen.data.video_io import Frames
from videogen.encoders.ppocr import PpOcr
from videogen.errors import UserError, near_matches
from videogen.evaluation.codecs import Codec
from videogen.evaluation.instances import Sample, crop, fitted
from videogen.evaluation.tokbench import (
    EDGES,
    SETTINGS,
    Embedder,
    Recogniser,
    Row,
    by_instance,
    mismatched,
    score_face,
    score_text,
    summarise,
)
from videogen.metrics import psnr, ssim
from videogen.tasks.base import Keep, compute_now

LOW = 0.9
"""T-NED of the untouched originals below which the reader, or the labels, are in doubt."""

SHOWN, TILE = 24, (32, 160)
"""Words of the picture table, and the height and width of their crops there."""

READERS: dict[str, Callable[[Any], Any]] = {"ppocrv6": PpOcr}
"""The last part of a protocol's name -> the reader of text, from its file."""

PROTOCOLS = tuple(f"tokbench.{setting}.{reader}" for setting in SETTINGS for reader in READERS)


class Set(Protocol):
    """Annotated samples."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Sample]: ...

    def describe(self) -> dict[str, Any]:
        """What the set is."""


@dataclasses.dataclass(frozen=True)
class Recognisers:
    """What judges reconstructions.

    Attributes:
      text: reads words.
      face: embeds faces; ``None``: faces are not judged.
      lpips: a distance of pictures in [-1, 1] by pairs; ``None``: not measured.
      hashes: name -> SHA-256 of its weights.
    """

    text: Recogniser
    face: Embedder | None = None
    lpips: Callable[[Any, Any], Any] | None = None
    hashes: dict[str, str] = dataclasses.field(default_factory=dict)


def setting_of(protocol: str) -> tuple[int, str]:
    """Side in pixels and name of the reader of ``tokbench.SIDE.READER``.

    Raises:
      UserError: there is no such protocol.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}{near_matches(protocol, PROTOCOLS)}")
    _, setting, reader = protocol.split(".")
    return int(setting), reader


def judged(sample: Sample, setting: int, codec: Codec, by: Recognisers) -> dict[str, np.ndarray]:
    """What the recognisers make of one sample before and after a codec, as arrays that can be stored."""
    given = fitted(sample.frames, setting)
    rebuilt = codec(given.frames)
    after = given.restored(rebuilt)
    before_rows, rejected = score_text(sample.frames, sample.words, by.text)
    after_rows, _ = score_text(after, sample.words, by.text)
    found: dict[str, Any] = {"rejected": rejected, **_fidelity(given.frames, rebuilt, by)}
    for name, rows in (("before", before_rows), ("after", after_rows)):
        found |= {f"{name}_{key}": [row.scores[key] for row in rows] for key in ("t_acc", "t_ned")}
        found[f"{name}_read"] = np.array([row.read for row in rows], np.str_)
    found |= {"word": np.array([row.instance for row in after_rows], np.str_)}
    found |= {"text": np.array([row.text for row in after_rows], np.str_), "word_ratio": [r.ratio for r in after_rows]}
    found["tiles"] = _tiles(sample, after)
    if by.face is not None:
        faces, embeddings = score_face(sample.frames, after, sample.faces, by.face)
        found |= {"f_sim": [row.scores["f_sim"] for row in faces], "face_ratio": [row.ratio for row in faces]}
        found |= {"face": np.array([row.instance for row in faces], np.str_), "embeddings": np.array(embeddings)}
    return {key: np.asarray(value) for key, value in found.items()}


def _fidelity(frames: Frames, rebuilt: Frames, by: Recognisers) -> dict[str, float]:
    """PSNR, SSIM and LPIPS of what the codec was given and gave, borders included."""
    pair = [jnp.asarray(x[None], jnp.float32) / 255 for x in (rebuilt, frames)]
    found = {"psnr": float(psnr(*pair)[0]), "ssim": float(ssim(*pair)[0])}
    if by.lpips is not None:
        found["lpips"] = float(np.mean(by.lpips(*(x[0] * 2 - 1 for x in pair))))
    return found


def _tiles(sample: Sample, after: Frames) -> np.ndarray:
    """Crops of the words of the first frame before and after, ``[words, 2, height, width, 3]``."""
    tiles = []
    for word in sample.words[0]:
        pair = [crop(frames[0], word.box) for frames in (sample.frames, after)]
        if pair[0] is not None:
            canvas = np.full((2, *TILE, 3), 255, np.uint8)
            for place, part in zip(canvas, pair, strict=True):
                wide = max(min(round(part.shape[1] * TILE[0] / part.shape[0]), TILE[1]), 1)
                place[:, :wide] = np.asarray(Image.fromarray(part).resize((wide, TILE[0]), Image.Resampling.BICUBIC))
            tiles.append(canvas)
    return np.stack(tiles) if tiles else np.zeros((0, 2, *TILE, 3), np.uint8)


@dataclasses.dataclass
class Collected:
    """What all samples gave.

    Attributes:
      before, after: rows of words of untouched originals and of reconstructions, by kind.
      faces: rows by kind.
      embeddings: of the first face of every instance, by name.
      fidelity: PSNR, SSIM and LPIPS of every sample, by name.
      rejected: words without a pixel in their picture.
      examples: words before and after, for the picture table.
    """

    before: dict[str, list[Row]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    after: dict[str, list[Row]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    faces: dict[str, list[Row]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    embeddings: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    fidelity: dict[str, list[float]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    rejected: int = 0
    examples: list[tuple[np.ndarray, str, str, str]] = dataclasses.field(default_factory=list)

    def add(self, sample: Sample, found: dict[str, np.ndarray]) -> None:
        """Takes in what ``judged`` gave of a sample."""
        self.rejected += int(found["rejected"])
        for name in ("psnr", "ssim", "lpips"):
            if name in found:
                self.fidelity[name].append(float(found[name]))
        for name, rows in (("before", self.before), ("after", self.after)):
            scores = {key: found[f"{name}_{key}"] for key in ("t_acc", "t_ned")}
            rows[sample.kind] += _rows(
                sample, found["word"], found["word_ratio"], scores, found["text"], found[f"{name}_read"]
            )
        for k in range(min(len(found["tiles"]), SHOWN - len(self.examples))):
            words = (str(found[key][k]) for key in ("text", "before_read", "after_read"))
            self.examples.append((found["tiles"][k], *words))
        if "f_sim" in found:
            rows = _rows(sample, found["face"], found["face_ratio"], {"f_sim": found["f_sim"]})
            self.faces[sample.kind] += rows
            for row, embedding in zip(rows, found["embeddings"], strict=True):
                self.embeddings.setdefault(f"{row.dataset}/{row.instance}", embedding)

    def metrics(self, setting: int, cleaned: bool) -> dict[str, Any]:
        """The numbers of a result."""
        found: dict[str, Any] = {name: float(np.mean(values)) for name, values in self.fidelity.items()}
        for kind in ("pictures", "videos"):
            before, after = by_instance(self.before[kind]), by_instance(self.after[kind])
            read = {(row.dataset, row.instance) for row in before if row.scores["t_acc"] == 1}
            kept = [row for row in after if not cleaned or (row.dataset, row.instance) in read]
            if after:
                edges = EDGES["text", kind][setting]
                found.setdefault("text", {})[kind] = summarise(kept, edges)
                originals = summarise(before, edges)
                found.setdefault("originals", {})[kind] = {
                    **originals,
                    "read_exactly": len(read),
                    "t_ned_of_all": float(np.mean([row.scores["t_ned"] for row in before])),
                }
            if self.faces[kind]:
                rows = by_instance(self.faces[kind])
                found.setdefault("faces", {})[kind] = summarise(rows, EDGES["faces", kind][setting])
        if "faces" in found:
            found["faces"] |= _above_floor(found["faces"], mismatched(self.embeddings))
        return found


def _above_floor(faces: dict[str, Any], floor: float | None) -> dict[str, Any]:
    """The floor, and where F-Sim stands between it (0) and 1."""
    if floor is None or floor >= 1:
        return {"f_sim_of_mismatched": floor}
    above = {
        f"f_sim_above_floor_of_{kind}": (summary["f_sim"] - floor) / (1 - floor)
        for kind, summary in faces.items()
        if summary.get("f_sim") is not None
    }
    return {"f_sim_of_mismatched": floor, **above}


def _rows(
    sample: Sample,
    instances: Sequence[str],
    ratios: Sequence[float],
    scores: dict[str, Sequence[float]],
    texts: Sequence[str] = (),
    reads: Sequence[str] = (),
) -> list[Row]:
    rows = []
    for k, (instance, ratio) in enumerate(zip(instances, ratios, strict=True)):
        own = {name: float(values[k]) for name, values in scores.items()}
        words = (str(texts[k]), str(reads[k])) if len(texts) else ("", "")
        rows.append(Row(f"{sample.name}#{instance}", float(ratio), own, *words, sample.dataset))
    return rows


def run(
    protocol: str, samples: Set, codec: Codec, by: Recognisers, *, cleaned: bool = False, keep: Keep = compute_now
) -> tuple[dict[str, Any], dict[str, Any], list[tuple[np.ndarray, str, str, str]]]:
    """Judges a codec (or tokenizer) on a set, sample by sample, so that memory does not grow with the set.

    Args:
      protocol: a name in ``PROTOCOLS``.
      samples: the set.
      codec: what is judged.
      by: the recognisers.
      cleaned: count only words that are read exactly in the untouched original (in every frame of a video); for sets
        whose labels nobody has compared with what this reader reads.
      keep: what is computed of a sample passes through it.

    Returns:
      The part of a record that says how it was measured, the metrics, and words before and after to look at: crops,
      what the word says, and what was read in the original and in the reconstruction.
    """
    setting, reader = setting_of(protocol)
    collected = Collected()
    for index, sample in enumerate(tqdm(samples, total=len(samples), desc=protocol, unit=" samples")):
        collected.add(sample, keep(f"sample_{index}", lambda s=sample: judged(s, setting, codec, by)))
    metrics = collected.metrics(setting, cleaned)
    for kind, originals in metrics.get("originals", {}).items():
        if not cleaned and originals["t_ned_of_all"] < LOW:
            logging.warning(
                "the untouched originals (%s) are read with a T-NED of %.2f: %s cannot read this set, or its labels "
                "are wrong, and the scores of reconstructions say little", kind, originals["t_ned_of_all"], reader
            )  # fmt: skip
    how = {
        "name": protocol,
        "setting": setting,
        "recogniser": reader,
        "networks": by.hashes,
        "data": samples.describe(),
        "cleaned": cleaned,
        "rejected_words": collected.rejected,
        "resize": "pictures: longer side to the setting (Lanczos), black around; videos: shorter side (bilinear), "
        "longer one padded to a multiple of 32; scored at the original size",
        "bins": {f"{what}.{kind}": list(edges[setting]) for (what, kind), edges in EDGES.items()},
    }
    return how, metrics, collected.examples
