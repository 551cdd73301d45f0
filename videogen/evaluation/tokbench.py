"""TokBench (Wu et al., 2025): how well text and faces survive a tokenizer, by what frozen recognisers make of them.

Every annotated word is cut from the reconstruction and read: T-ACC is the share of exact readings (upper and lower case
differ), T-NED the mean of 1 - edit distance / longer length. Every annotated face is aligned by the same landmarks in
original and reconstruction: F-Sim is the cosine of the two embeddings. Scores are means over bins of size.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from videogen.errors import UserError
from videogen.evaluation.instances import Face, Picture, Word, crop
from videogen.metrics.recognition import binned, cosine, temporal_stability, text_similarity

Recogniser = Callable[[Picture], str]
"""What a crop of one word says; exactly one text, which may be empty."""

Embedder = Callable[[Picture, Float[np.ndarray, "5 2"]], Float[np.ndarray, "dimensions"]]
"""The embedding of the face with these landmarks; the embedder aligns it in its own way."""

SETTINGS = (256, 512, 1024)
"""Sides of the pictures that a tokenizer is given."""

EDGES: dict[tuple[str, str], dict[int, tuple[float, ...]]] = {
    ("text", "pictures"): {256: (0.02, 0.03, 0.04, 1), 512: (0.01, 0.02, 0.03, 1), 1024: (0.005, 0.01, 0.02, 1)},
    ("text", "videos"): {256: (0.01, 0.02, 0.03, 1), 512: (0.005, 0.01, 0.02, 1), 1024: (0.005, 0.01, 0.02, 1)},
    ("faces", "pictures"): {256: (0, 0.1, 0.2, 1), 512: (0, 0.05, 0.2, 1), 1024: (0, 0.05, 0.1, 1)},
    ("faces", "videos"): {256: (0.05, 0.1, 0.2, 1), 512: (0.02, 0.05, 0.1, 1), 1024: (0.02, 0.05, 0.1, 1)},
}
"""Edges of the bins of size. Published videos have 256 and 480 pixels; 480's edges stand here for 512 and 1024."""


@dataclasses.dataclass(frozen=True)
class Row:
    """The score of one instance in one frame.

    Attributes:
      instance: its name among all of a data set.
      ratio: its size relative to the picture.
      scores: ``t_acc`` and ``t_ned`` of a word, ``f_sim`` of a face.
      text, read: what the word says, and what was read.
      dataset: where it comes from.
    """

    instance: str
    ratio: float
    scores: Mapping[str, float]
    text: str = ""
    read: str = ""
    dataset: str = ""


def score_text(
    images: Sequence[Picture], annotations: Sequence[Sequence[Word]], recogniser: Recogniser
) -> tuple[list[Row], int]:
    """Reads the words of pictures, each by itself.

    Args:
      images: reconstructions, or the frames of one.
      annotations: the words of each.
      recogniser: gives the text of a crop.

    Returns:
      A row for each word, in order, and how many were rejected: their boxes have no pixel in the picture.

    Raises:
      UserError: there are not as many annotations as pictures.
    """
    _check(images, annotations)
    rows, rejected = [], 0
    for image, words in zip(images, annotations, strict=True):
        for word in words:
            part = crop(image, word.box)
            if part is None:
                rejected += 1
                continue
            read = recogniser(part)
            scores = {"t_acc": float(read == word.text), "t_ned": text_similarity(word.text, read)}
            rows.append(Row(word.instance, word.ratio, scores, word.text, read))
    return rows, rejected


def score_face(
    originals: Sequence[Picture],
    reconstructions: Sequence[Picture],
    landmarks: Sequence[Sequence[Face]],
    embedder: Embedder,
) -> tuple[list[Row], list[Float[np.ndarray, "dimensions"]]]:
    """Compares the faces of pictures before and after, aligned by the same landmarks.

    Args:
      originals, reconstructions: pictures of one size, or the frames of two videos.
      landmarks: the faces of each.
      embedder: gives the embedding of a face.

    Returns:
      A row for each face, in order, and the embeddings of the originals.

    Raises:
      UserError: the numbers of pictures or annotations differ.
    """
    _check(originals, landmarks)
    _check(reconstructions, landmarks)
    rows, embeddings = [], []
    for before, after, faces in zip(originals, reconstructions, landmarks, strict=True):
        for face in faces:
            embeddings.append(np.asarray(embedder(before, face.landmarks)))
            similarity = cosine(embeddings[-1], embedder(after, face.landmarks))
            rows.append(Row(face.instance, face.ratio, {"f_sim": similarity}))
    return rows, embeddings


def _check(images: Sequence[Any], annotations: Sequence[Any]) -> None:
    if len(images) != len(annotations):
        raise UserError(f"every picture needs its annotations, got {len(images)} and {len(annotations)}")


def by_instance(rows: Iterable[Row]) -> list[Row]:
    """One row for each instance: means over the frames it is in, and its temporal stability where these are several."""
    groups: dict[tuple[str, str], list[Row]] = collections.defaultdict(list)
    for row in rows:
        groups[row.dataset, row.instance].append(row)
    return [_mean(group) for group in groups.values()]


def _mean(rows: Sequence[Row]) -> Row:
    first = rows[0]
    if len(rows) == 1:
        return first
    scores = {name: float(np.mean([row.scores[name] for row in rows])) for name in first.scores}
    steady = "f_sim" if "f_sim" in first.scores else "t_ned"
    scores["stability"] = temporal_stability([row.scores[steady] for row in rows])
    return dataclasses.replace(first, ratio=float(np.mean([row.ratio for row in rows])), scores=scores)


def summarise(rows: Sequence[Row], edges: Sequence[float]) -> dict[str, Any]:
    """Means by size of instances, those of all data sets together, and the unweighted means over the bins.

    Of videos also ``stability``, the mean over the instances that are in several frames.

    Args:
      rows: of instances (``by_instance``), of pictures or of videos.
      edges: of the bins.
    """
    values = {
        name: [row.scores[name] for row in rows] for name in (rows[0].scores if rows else ()) if name != "stability"
    }
    steady = [row.scores["stability"] for row in rows if "stability" in row.scores]
    summary = binned([row.ratio for row in rows], values, edges).describe()
    if steady:
        summary["stability"] = float(np.mean(steady))
    return {"instances": len(rows), **summary}


def mismatched(embeddings: Mapping[str, Float[np.ndarray, "dimensions"]]) -> float | None:
    """The floor of F-Sim: the mean cosine of each face and the next one of another name; ``None`` for fewer than two.

    A network that gives 1 for everybody has a floor of 1.

    Args:
      embeddings: of the originals, one for each person (or instance).
    """
    faces = list(embeddings.values())
    if len(faces) < 2:
        return None
    pairs = zip(faces, faces[1:] + faces[:1], strict=True)
    return float(np.mean([cosine(a, b) for a, b in pairs]))
