"""How good reconstructions are at how many bits, of a tokenizer and of codecs beside it.

The bits are those really written: of a tokenizer its packed codes (``data.bits``), of a codec its files with all their
headers. What is compared with is the array that was coded, so no resizing or second codec stands in between.
"""

import functools
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from absl import logging
from flax import nnx

from videogen import data
from videogen.data import bits
from videogen.data.video_io import Frames
from videogen.errors import UserError
from videogen.evaluation import stand_in
from videogen.evaluation.codecs import CODECS
from videogen.metrics import to_unit
from videogen.parallel import inside, mesh_of, on_host, padded, spread
from videogen.shapes import VideoShape
from videogen.tasks import to_pixels, to_video
from videogen.tasks.tokenizer import FIDELITY, measurable
from videogen.tokens import Layout

if TYPE_CHECKING:
    from videogen.evaluation.protocols import Evaluation

STRENGTHS = {
    "jpeg": (95, 75, 50, 25, 10, 1),
    "webp": (100, 75, 50, 25, 10, 1),
    "h264": (6, 15, 24, 33, 42, 51),
    "hevc": (6, 15, 24, 33, 42, 51),
}
"""Codec -> its strengths, the best first."""

WORDS = {
    "jpeg": "Pillow's JPEG of every frame, by quality",
    "webp": "Pillow's lossy WebP of every frame, by quality",
    "h264": "an mp4 of the clip by x264 with its default preset, 4:2:0, by constant rate factor",
    "hevc": "an mp4 of the clip by x265 with its default preset, 4:2:0, by constant rate factor",
}
"""Codec -> how it is used, for the record; of small clips its files are mostly headers."""

MEASURES = ("psnr", "ssim")
SHOWN = 12

Point = dict[str, float]
"""``written_bits_per_pixel``, ``bytes`` and what a reconstruction is measured by: means over the clips."""


def counts(model: nnx.Module, layout: Layout) -> list[int | None]:
    """Numbers of tokens that are tried (``Tokenizer.budgets``); ``None`` is what the tokenizer does by itself."""
    return [*model.budgets(layout)] or [None]


def rate_distortion(evaluation: "Evaluation") -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Points of a tokenizer, by the number of its tokens where it can do with fewer, and of codecs by their strength.

    A codec that this FFmpeg cannot write, or that refuses clips of this size, has no points, and the log says so.

    Raises:
      UserError: a tokenizer of continuous latents, which have no bits.
    """
    model, videos = evaluation.loaded.tokenizer, evaluation.videos
    if not model.vocabulary:
        raise UserError("rate_distortion needs a tokenizer of codes: continuous latents have no bits to write")
    judged = data.class_of(evaluation.loaded.config.data.source).judged
    found: dict[str, dict[str, Point]] = {"tokenizer": {}}
    layout = model.layout(VideoShape(*videos.shape[1:4]))
    pictures = {"originals": videos[:SHOWN]}
    for count in counts(model, layout):
        name = str(count or layout.tokens)
        rebuilt, sizes = _coded(evaluation, model, count, name)
        found["tokenizer"][name] = _point(videos, rebuilt, sizes, judged)
        pictures["reconstructions"] = rebuilt[:SHOWN]
    for codec, strengths in STRENGTHS.items():
        points = {str(strength): _of_codec(evaluation, codec, strength, judged) for strength in strengths}
        if points := {name: point for name, point in points.items() if point}:
            found[codec] = points
    evaluation.beside["codecs"] = WORDS
    if judged and videos.shape[1] > 1:
        rebuilt = "clips and what is left of them"
        evaluation.beside[stand_in.PRESET] = stand_in.protocol(videos, videos, rebuilt)
    return {"rate_distortion": found, "clips": len(videos)}, pictures


def _coded(evaluation: "Evaluation", model: nnx.Module, count: int | None, name: str) -> tuple[Frames, list[int]]:
    """All clips after the tokenizer, and the bytes of each."""
    graph, state = nnx.split(model)
    mesh = mesh_of(state)

    @jax.jit
    def run(state: Any, pixels: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        model = nnx.merge(graph, state)
        latents, tokens, *_ = model.bottleneck(model.encode(to_video(pixels), count))
        some = {segment: of.kept for segment, of in tokens.items() if of.kept is not None}
        return model.decode(latents, **model.seen(tokens)), some

    def code(video: Frames) -> dict[str, np.ndarray]:
        with inside(mesh):
            rebuilt, some = run(state, spread(padded(video, mesh), mesh))
        kept = {f"kept/{segment}": on_host(mask)[: len(video)] for segment, mask in some.items()}
        return {"videos": to_pixels(rebuilt)[: len(video)], **kept}

    layout = model.layout(VideoShape(*evaluation.videos.shape[1:4]))
    parts, sizes = [], []
    for i, batch in enumerate(evaluation.batches()):
        part = evaluation.keep(f"rate_{name}_{i}", functools.partial(code, batch["video"]))
        parts.append(part["videos"])
        for row in range(len(parts[-1])):
            kept = {name: int(part[f"kept/{name}"][row].sum()) for name in layout.names if f"kept/{name}" in part}
            # What a length rule chooses need be no first part of all.
            written = [
                bits.size(segment.tokens, segment.vocabulary, kept.get(name), prefix=count is not None)
                for name, segment in layout.segments
            ]
            sizes.append(sum(written))
    return np.concatenate(parts), sizes


def _of_codec(evaluation: "Evaluation", codec: str, strength: int, judged: bool) -> Point | None:
    def code() -> dict[str, np.ndarray]:
        coded = [CODECS[codec][0](video, strength) for video in evaluation.videos]
        return {"videos": np.stack([c.frames for c in coded]), "sizes": np.array([c.size for c in coded])}

    try:
        found = evaluation.keep(f"{codec}_{strength}", code)
    except (OSError, UserError) as error:
        logging.warning("%s:%d cannot code these clips and has no point: %s", codec, strength, error)
        return None
    return _point(evaluation.videos, found["videos"], found["sizes"].tolist(), judged)


def _point(originals: Frames, rebuilt: Frames, sizes: list[int], judged: bool) -> Point:
    size, pixels = float(np.mean(sizes)), np.prod(originals.shape[1:4])
    point = {"written_bits_per_pixel": 8 * size / float(pixels), "bytes": size}
    for name in set(MEASURES) & set(measurable(*originals.shape[2:4])):
        values = [
            np.asarray(FIDELITY[name](*(to_unit(to_video(clip[None])) for clip in pair)))
            for pair in zip(rebuilt, originals, strict=True)
        ]
        point[name] = float(np.mean(values))
    return point | (stand_in.distance(originals, rebuilt) if judged else {})
