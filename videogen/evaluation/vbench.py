"""VBench (Huang et al., CVPR 2024) of a folder: dimensions whose networks are here, and values measured elsewhere.

Of the sixteen dimensions ``temporal_flickering`` needs no network and ``background_consistency`` CLIP's. The others
come from a file of values, or are missing, and then there is no total.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from tqdm import tqdm

from videogen.data.video_io import read_video
from videogen.errors import UserError, near_matches
from videogen.evaluation.measures import consistency_of, load_network
from videogen.evaluation.origin import commit, hardware
from videogen.metrics.temporal import flicker
from videogen.metrics.vbench import DIMENSIONS, normalised, totals
from videogen.tasks.base import Keep, compute_now

MANIFEST = "vbench.jsonl"
FLICKER, BACKGROUND = "temporal_flickering", "background_consistency"
BATCH = 8
"""Frames that the network takes at a time."""
LARGEST = 1000
"""Values of dimensions are shares and scores; none is beyond this."""
NAMED = 5
"""Missing files that are named."""

_LIKE = '{"file": "a.mp4", "prompt": "a cat", "dimensions": ["temporal_flickering"]}'


def read_manifest(folder: Path) -> dict[str, list[str]]:
    """The samples that ``vbench.jsonl`` of a folder lists: file -> its dimensions. Prompts are for people.

    Files are named, not found by prompts: two prompts may differ in their capitals alone, and a folder may hold files
    of an older run.

    Raises:
      UserError: no such file, a line that is no such JSON object, a file outside the folder or listed twice, or an
        unknown dimension.
    """
    path, found, seen = folder / MANIFEST, {}, set()
    try:
        lines = _content(path, f"; it lists the samples, a line {_LIKE} each").decode("utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{path} is no UTF-8; save the file with that encoding") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            entry = json.loads(line)
            file, dimensions = entry["file"], entry["dimensions"]
            real = (folder / file).resolve()
            odd = not file or real.exists() and not real.is_file()
        except (ValueError, TypeError, KeyError, RecursionError):
            raise UserError(f"{place} is no JSON object like {_LIKE}") from None
        except (OSError, RuntimeError) as error:  # a name that is too long, links in a circle
            raise UserError(f"{place}: {file[:40]} cannot be a file: {error!s:.80}") from None
        if not isinstance(dimensions, list):
            raise UserError(f"{place} is no JSON object like {_LIKE}")
        if odd:
            raise UserError(f"{place}: {file or 'an empty name'} is no regular file")
        if not real.is_relative_to(folder.resolve()):
            raise UserError(f"{place}: {file} is outside {folder}")
        if real in seen:
            raise UserError(f"{place}: {file} is listed twice; give it all its dimensions in one line")
        for name in dimensions:
            _check_dimension(name, place)
        seen.add(real)
        found[file] = dimensions
    if not found:
        raise UserError(f"{path} lists no sample")
    return found


def read_values(path: str | os.PathLike) -> dict[str, float]:
    """Values of dimensions that were measured elsewhere: a JSON object of names and numbers.

    Raises:
      UserError: the file cannot be read, a dimension is unknown or named twice, or a value is no number from -1000 to
        1000.
    """
    try:
        values = json.loads(_content(Path(path)), object_pairs_hook=tuple)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, tuple):
        raise UserError(f'{path} is no JSON object like {{"motion_smoothness": 0.97}}')
    found: dict[str, float] = {}
    for name, value in values:
        _check_dimension(name, str(path))
        if name in found:
            raise UserError(f"{path}: {name} is named twice")
        if isinstance(value, bool) or not isinstance(value, int | float) or not -LARGEST <= value <= LARGEST:
            raise UserError(f"{path}: {name} must be a number from -{LARGEST} to {LARGEST}, got {str(value)[:40]}")
        found[name] = float(value)
    return found


def _content(path: Path, advice: str = "") -> bytes:
    """The bytes of a regular file: opening a pipe would wait for ever."""
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"cannot read {path}: no regular file{advice}")
        return path.read_bytes()
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}{advice}") from None


def _check_dimension(name: Any, place: str) -> None:
    if not isinstance(name, str) or name not in DIMENSIONS:
        raise UserError(f"{place}: unknown dimension {name!r}{near_matches(str(name), DIMENSIONS)}")


def vbench(
    folder: str | os.PathLike,
    weights: str | None = None,
    values: str | os.PathLike | None = None,
    *,
    keep: Keep = compute_now,
) -> dict[str, Any]:
    """Measures the samples that a folder's manifest lists, and adds up what VBench adds up.

    A value is a mean over clips, where the published script pools the frames of all clips. Flicker means something only
    for scenes that do not move: the published prompts are chosen for it, and the manifest says which files these are.

    Args:
      folder: of the videos and ``vbench.jsonl``.
      weights: folder of CLIP ViT-B/32, for ``background_consistency``.
      values: file of values measured elsewhere; they count as given, whatever the manifest lists.
      keep: what is computed of a file passes through it.

    Returns:
      The record. A dimension of which a sample is missing has the mean of the others and stands under ``incomplete``;
      it is in no total.

    Raises:
      UserError: a file cannot be read, files have several frame rates, or the weights are missing.
    """
    folder = Path(folder)
    manifest, given = read_manifest(folder), read_values(values) if values is not None else {}
    listed = {name: [file for file, names in manifest.items() if name in names] for name in DIMENSIONS}
    expected = {name: files for name, files in listed.items() if files}
    here = [name for name in (FLICKER, BACKGROUND) if name in expected and name not in given]
    if BACKGROUND in here and weights is None:
        raise UserError(f"--weights is missing: openai/clip-vit-base-patch32, for {BACKGROUND}; or name its value")
    network = load_network("clip_image", weights, None) if BACKGROUND in here else None
    asked = [file for file, names in manifest.items() if set(here) & set(names)]
    files = [file for file in asked if (folder / file).is_file()]
    if absent := [file for file in asked if not (folder / file).is_file()]:
        logging.warning("%d listed files are missing: %s", len(absent), ", ".join(absent[:NAMED]))
    found: dict[str, list[float]] = {name: [] for name in here}
    rates: set[float] = set()

    def measured(file: str) -> dict[str, np.ndarray]:
        video, fps = read_video(folder / file)
        measures = {"fps": np.asarray(fps)}
        if FLICKER in manifest[file] and FLICKER in here:
            measures[FLICKER] = np.asarray(flicker(video[None].astype(np.float32) / 255)[0])
        if BACKGROUND in manifest[file] and network is not None:
            parts = [np.asarray(network.encode(video[i : i + BATCH])) for i in range(0, len(video), BATCH)]
            measures[BACKGROUND] = np.asarray(consistency_of(np.concatenate(parts)))
        return measures

    for file in tqdm(files, desc="vbench", unit=" clips"):
        about = (folder / file).stat()
        key = f"{file} {about.st_size} {about.st_mtime_ns} {manifest[file]}"
        label = hashlib.sha256(key.encode()).hexdigest()[:16]
        try:
            one = keep(f"clip_{label}", lambda file=file: measured(file))
        except UserError as error:
            raise UserError(f"{error}; every listed sample counts: make it again") from error
        rates.add(float(one["fps"]))
        for name in found.keys() & one.keys():
            found[name].append(float(one[name]))
    if len(rates) > 1:
        said = ", ".join(f"{rate:g}" for rate in sorted(rates))
        raise UserError(f"the files of {folder} have {said} frames per second; these numbers are of one rate")
    return _record(folder, expected, found, given, rates, "" if network is None else network.hash)


def _record(
    folder: Path,
    expected: Mapping[str, list[str]],
    found: Mapping[str, list[float]],
    given: Mapping[str, float],
    rates: set[float],
    network_hash: str,
) -> dict[str, Any]:
    dimensions: dict[str, dict[str, Any]] = {name: {"value": value, "from": "given"} for name, value in given.items()}
    for name, each in found.items():
        counts = {"samples": len(each), "expected": len(expected[name])}
        dimensions[name] = {"value": float(np.mean(each)) if each else None, "from": "measured", **counts}
    for name, about in dimensions.items():
        about["normalised"] = None if about["value"] is None else normalised(name, about["value"])
    incomplete = [name for name, each in found.items() if len(each) < len(expected[name])]
    complete = {name: about["value"] for name, about in dimensions.items() if name not in incomplete}
    protocol = {
        "name": "vbench",
        "manifest": hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()[:16],
        "fps": sorted(rates),
        "counts": {name: f"{len(each)} of {len(expected[name])}" for name, each in found.items()},
        "given": sorted(given),
        "network_hash": network_hash,
    }
    metrics = {"dimensions": dimensions, "incomplete": incomplete, **totals(complete)}
    return {"protocol": protocol, "commit": commit(), "hardware": hardware(), "metrics": metrics}
