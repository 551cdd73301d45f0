"""The protocol ``tasks``: how well a generator completes clips of which something is given."""

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Int
from scipy import ndimage

from videogen.conditioning import TASKS
from videogen.inference.sampling import Pixels, encode_prompts
from videogen.metrics import region_psnr
from videogen.tasks import VideoGenerator
from videogen.training.loading import Loaded

if TYPE_CHECKING:
    from videogen.evaluation.protocols import Evaluation


SHOWN = 3
"""Clips of each task to look at."""


def nearest_given(
    region: Bool[np.ndarray, "time height width"],
) -> tuple[Int[np.ndarray, "time height width"], ...]:
    """Of every pixel the frame, row and column of the nearest given one: in time at its place, else in its frame."""
    # A step in space counts more than all steps in time.
    far = len(region) + 1
    return tuple(ndimage.distance_transform_edt(~region, sampling=(1, far, far), return_indices=True)[1])


def completion(evaluation: "Evaluation") -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """PSNR of what each task leaves unknown: of samples, of copies of the nearest given pixel, of reconstructions.

    A generator without tasks has one, frame prediction: from as many frames as it is always given, or from the first.
    A task has learned something where samples are better than copies; better than the tokenizer's reconstructions of
    the true clips they cannot be expected to be. Of conditional generation, which gives no pixel, there is no copy.
    """
    loaded, videos = evaluation.loaded, evaluation.videos
    generator = loaded.generator()
    rebuilt = evaluation.rebuilt(loaded.modules["tokenizer"], "rebuilt")
    metrics, pictures = {}, {name: [] for name in ("originals", "given", "videos")}
    regions = _regions(loaded, generator)
    for name, region in regions.items():
        drawn, filled = [], []
        for rows, counted in evaluation.rows(len(videos)):
            complete = functools.partial(_completed, evaluation, generator, name, region, rows)
            both = evaluation.keep(f"{name}_{rows[0]}", complete)
            for clips, key in ((drawn, "drawn"), (filled, "filled")):
                clips.append(both[key][:counted])
        drawn, filled = np.concatenate(drawn), np.concatenate(filled)
        compared = {"psnr": drawn, "reconstruction": rebuilt}
        if region.any():
            time, row, column = nearest_given(region)
            compared["copy"] = videos[:, time, row, column]
        unknown = np.broadcast_to(~region, videos.shape[:-1])
        metrics[name] = {
            key: float(np.mean(region_psnr(clips / 255, videos / 255, unknown))) for key, clips in compared.items()
        }
        for shown, clips in zip(pictures.values(), (videos, filled, drawn), strict=True):
            shown.append(clips[:SHOWN])
    captions = np.repeat(list(regions), len(pictures["videos"][0]))
    pictures = {name: np.concatenate(clips) for name, clips in pictures.items()}
    return {"tasks": metrics, "clips": len(videos)}, {**pictures, "captions": captions}


def _completed(
    evaluation: "Evaluation",
    generator: VideoGenerator,
    name: str,
    region: Bool[np.ndarray, "time height width"],
    rows: Int[np.ndarray, "batch"],
) -> dict[str, Pixels]:
    """Samples of a batch of clips of which the region is given, and the clips as they are given."""
    loaded, videos, place = evaluation.loaded, evaluation.videos, {"first": int(rows[0])}
    story = _story(loaded, [evaluation.clips.samples[row] for row in rows])
    if loaded.task.tasks is not None:
        drawn, filled = generator.complete([name] * len(rows), videos[rows], evaluation.seed, story, **place)
        return {"drawn": drawn, "filled": filled}
    first = videos[rows, : int(region[:, 0, 0].sum())]
    rest = ((0, 0), (0, generator.window - first.shape[1]), (0, 0), (0, 0), (0, 0))
    window, count = generator.window, len(rows)
    drawn = generator.generate(story, window, evaluation.seed, count=count, first_frames=first, **place)
    return {"drawn": drawn, "filled": np.pad(first, rest, mode="edge")}


def _regions(loaded: Loaded, generator: VideoGenerator) -> dict[str, Bool[np.ndarray, "time height width"]]:
    """Task -> the given pixels of a clip, for each that the generator was trained on."""
    clip = loaded.config.data.clip
    shape = (generator.window, clip.height, clip.width)
    if loaded.task.tasks is not None:
        shares = zip(TASKS, loaded.task.tasks, strict=True)
        return {name: TASKS[name].region(*shape) for name, share in shares if share}
    known = generator.given_frames or next(iter(generator.prefix_lengths()), 1)
    generator.check_given(known)
    given = np.zeros(shape, bool)
    given[:known] = True
    return {"frame_prediction": given}


def _story(loaded: Loaded, samples: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Captions and labels of held-out clips, as far as the generator takes them."""
    story = encode_prompts(loaded, [s["caption"] for s in samples]) if loaded.text is not None else {}
    if loaded.config.classes:
        story["label"] = np.array([s["label"] for s in samples], np.int32)
    return story
