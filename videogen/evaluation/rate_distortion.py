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
from videogen.data.bits import Packing
from videogen.data.video_io import Frames
from videogen.errors import UserError
from videogen.evaluation import stand_in
from videogen.evaluation.codecs import CODECS
from videogen.evaluation.measures import load_network
from videogen.metrics import to_unit
from videogen.parallel import inside, mesh_of, on_host, padded, spread
from videogen.shapes import VideoShape
from videogen.tasks import to_pixels, to_video
from videogen.tasks.tokenizer import FIDELITY, measurable
from videogen.tokenizers import Request, Tokenizer
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
LPIPS = "lpips_alex"
"""The name of LPIPS on AlexNet among the measures, and of its network."""

ERRORS = (0.02, 0.05, 0.1, 0.2)
"""What a tokenizer that decides by itself is asked for, in turn."""

Point = dict[str, float]
"""``written_bits_per_pixel``, ``bytes`` and what a reconstruction is measured by: means over the clips."""


def counts(model: Tokenizer, layout: Layout) -> list[int | None]:
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
    measures = _Measures(evaluation)
    found: dict[str, dict[str, Point]] = {"tokenizer": {}}
    layout = model.layout(VideoShape(*videos.shape[1:4]))
    pictures = {"originals": videos[:SHOWN]}
    if model.adapts:
        found["by_error"] = {}
        for error in ERRORS:
            rebuilt, sizes = _coded(evaluation, model, Request(error), f"error_{error}")
            found["by_error"][str(error)] = measures.point(rebuilt, sizes)
    for count in counts(model, layout):
        name = str(layout.tokens if count is None else count * (layout.tokens // Packing(layout).row))
        rebuilt, sizes = _coded(evaluation, model, count, name)
        found["tokenizer"][name] = measures.point(rebuilt, sizes)
        pictures["reconstructions"] = rebuilt[:SHOWN]
    for codec, strengths in STRENGTHS.items():
        points = {str(strength): _of_codec(evaluation, codec, strength, measures) for strength in strengths}
        if points := {name: point for name, point in points.items() if point}:
            found[codec] = points
    evaluation.beside.update({"codecs": WORDS, **measures.protocols})
    return {"rate_distortion": found, "clips": len(videos)}, pictures


def _coded(
    evaluation: "Evaluation", model: nnx.Module, count: Request | int | None, name: str
) -> tuple[Frames, list[int]]:
    """All clips after the tokenizer, and the bytes of each."""
    graph, state = nnx.split(model)
    mesh = mesh_of(state)

    @jax.jit
    def run(state: Any, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graph, state)
        latents, tokens, *_ = model.bottleneck(model.encode(to_video(pixels), count))
        sized = model.sized(VideoShape(*pixels.shape[1:4]))
        return model.decode(latents, **model.seen(tokens), **sized), tokens.kept

    def code(video: Frames) -> dict[str, np.ndarray]:
        with inside(mesh):
            rebuilt, kept = run(state, spread(padded(video, mesh), mesh))
        return {"videos": to_pixels(rebuilt)[: len(video)], "kept": on_host(kept)[: len(video)]}

    layout = model.layout(VideoShape(*evaluation.videos.shape[1:4]))
    packing = Packing(layout, model.kept_by(count))
    parts, sizes = [], []
    for i, batch in enumerate(evaluation.batches()):
        part = evaluation.keep(f"rate_{name}_{i}", functools.partial(code, batch["video"]))
        parts.append(part["videos"])
        sizes += map(packing.size, part["kept"])
    return np.concatenate(parts), sizes


def _of_codec(evaluation: "Evaluation", codec: str, strength: int, measures: "_Measures") -> Point | None:
    def code() -> dict[str, np.ndarray]:
        coded = [CODECS[codec][0](video, strength) for video in evaluation.videos]
        return {"videos": np.stack([c.frames for c in coded]), "sizes": np.array([c.size for c in coded])}

    try:
        found = evaluation.keep(f"{codec}_{strength}", code)
    except (OSError, UserError) as error:
        logging.warning("%s:%d cannot code these clips and has no point: %s", codec, strength, error)
        return None
    return measures.point(found["videos"], found["sizes"].tolist())


class _Measures:
    """What reconstructions are measured by; LPIPS where the evaluation has its weights."""

    def __init__(self, evaluation: "Evaluation"):
        self.originals = evaluation.videos
        self.names = set(MEASURES) & set(measurable(*self.originals.shape[2:4]))
        source = data.class_of(evaluation.loaded.config.data.source)
        self.judged = source.judged and self.originals.shape[1] > 1
        self.lpips = load_network(LPIPS, evaluation.weights, None) if evaluation.weights else None

    @property
    def protocols(self) -> dict[str, dict[str, Any]]:
        """Those of the measures with a network."""
        found = {} if self.lpips is None else {LPIPS: {"weights": self.lpips.hash}}
        if self.judged:
            sides = "clips and what is left of them"
            found[stand_in.PRESET] = stand_in.protocol(self.originals, self.originals, sides)
        return found

    def point(self, rebuilt: Frames, sizes: list[int]) -> Point:
        """The point of reconstructions of all clips in files of these sizes in bytes."""
        size, pixels = float(np.mean(sizes)), np.prod(self.originals.shape[1:4])
        each: dict[str, list[float]] = {}
        for pair in zip(rebuilt, self.originals, strict=True):
            videos = [to_video(clip[None]) for clip in pair]
            values = {name: FIDELITY[name](*map(to_unit, videos)) for name in self.names}
            if self.lpips is not None:
                values[LPIPS] = np.mean(self.lpips.encode(*(video[0] for video in videos)))
            for name, value in values.items():
                each.setdefault(name, []).append(float(np.asarray(value).item()))
        point = {"written_bits_per_pixel": 8 * size / float(pixels), "bytes": size}
        point |= {name: float(np.mean(values)) for name, values in each.items()}
        return point | (stand_in.distance(self.originals, rebuilt) if self.judged else {})
