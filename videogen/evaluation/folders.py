"""Presets on two folders of videos or pictures, or on a folder and a file of statistics."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from videogen.data.captions import read_captions
from videogen.data.crops import CROPS
from videogen.data.folders import PICTURES, VIDEOS
from videogen.errors import UserError
from videogen.evaluation.measures import MEASURES, check_counts, load_network
from videogen.evaluation.measuring import Measuring
from videogen.evaluation.presets import RECONSTRUCTIONS, Preset, preset_of
from videogen.evaluation.sides import FolderSide
from videogen.evaluation.statistics import Reference, StatisticsFolder
from videogen.parallel import make_mesh
from videogen.tasks.base import Keep, compute_now


def files_of(name: str, folder: str | Path, preset: Preset) -> list[Path]:
    """The videos or pictures of a folder, in sorted order.

    Raises:
      UserError: there is no such folder.
    """
    folder = Path(folder)
    extensions = {0: VIDEOS + PICTURES, 1: PICTURES}.get(preset.frames, VIDEOS)
    if not folder.is_dir():
        raise UserError(f"--{name}={folder} is no folder")
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in extensions and path.is_file())


def side_of(name: str, folder: str | Path, wanted: int | None, preset: Preset, seed: int) -> FolderSide:
    """The clips of a folder: all, or of the real ones as many as are wanted in an order that the seed draws.

    Raises:
      UserError: the folder is missing, or has too few; nothing is counted twice.
    """
    files, fewest = files_of(name, folder, preset), wanted or MEASURES[preset.measure].fewest
    if len(files) < fewest:
        kind = "pictures" if preset.frames == 1 else "videos"
        raise UserError(f"{folder} has {len(files)} {kind}, and {fewest} are needed; --count=N takes another number")
    if wanted is not None and name == "real":
        files = [files[i] for i in np.random.default_rng(seed).permutation(len(files))]
    elif wanted is not None:
        files = files[:wanted]
    return FolderSide(name, tuple(files), wanted or len(files), preset, seed, Path(folder))


def repeats_of(folder: str | Path, preset: Preset, seed: int) -> list[FolderSide]:
    """The generated side: one set, or where there are files for all repeats of a preset so many, one after another."""
    repeats, count, files = preset.generated_clips.repeats, preset.generated, files_of("generated", folder, preset)
    if repeats == 1 or count is None or len(files) < repeats * count:
        return [side_of("generated", folder, count, preset, seed)]
    sets = [tuple(files[i * count : (i + 1) * count]) for i in range(repeats)]
    return [FolderSide("generated", found, count, preset, seed, Path(folder)) for found in sets]


def pairs_of(real: str | Path, generated: str | Path, preset: Preset, seed: int) -> tuple[FolderSide, list[FolderSide]]:
    """Both sides of reconstructions: files of one name, whatever their suffix, belong together.

    Raises:
      UserError: a file has no partner, or too few have one.
    """
    folders, named = {"real": Path(real), "generated": Path(generated)}, {}
    for name, folder in folders.items():
        named[name] = {}
        for file in files_of(name, folder, preset):
            key = file.relative_to(folder).with_suffix("").as_posix()
            if key in named[name]:
                raise UserError(f"{folder} has two files named {key}: which is paired is not clear")
            named[name][key] = file
    for one, other in (("real", "generated"), ("generated", "real")):
        if alone := sorted(named[one].keys() - named[other].keys()):
            raise UserError(
                f"{len(alone)} files of {folders[one]} have no partner of the same name in {folders[other]}, the first "
                f"is {alone[0]}"
            )
    keys, wanted = sorted(named["real"]), preset.real or len(named["real"])
    if len(keys) < (fewest := max(wanted, MEASURES[preset.measure].fewest)):
        raise UserError(f"there are {len(keys)} pairs, and {fewest} are needed; --count=N takes another number")
    if preset.real is not None:
        keys = [keys[i] for i in np.random.default_rng(seed).permutation(len(keys))[:wanted]]
    sides = [
        FolderSide(name, tuple(named[name][key] for key in keys), wanted, preset, seed, folders[name])
        for name in ("real", "generated")
    ]
    sizes = [side.stored.get("size", []) for side in sides]
    if preset.real_clips.crop in CROPS:
        sizes[0] = [f"{preset.real_clips.side}x{preset.real_clips.side}"]
    if sizes[0] != sizes[1]:
        said = " and ".join(
            f"{', '.join(found[:3])} of {side.name} files" for side, found in zip(sides, sizes, strict=True)
        )
        raise UserError(f"reconstructions are compared with exactly the pixels that were coded, and there are {said}")
    return sides[0], sides[1:]


def captions_of(side: FolderSide) -> Callable[[int], str]:
    """Number of a clip of a folder -> what it is to show, by its ``captions.jsonl``.

    Raises:
      UserError: a file has no caption there.
    """
    names = [file.relative_to(side.folder).as_posix() for file in side.files]
    entries, _ = read_captions(side.folder, names)
    missing = [name for name in names if not entries.get(name, {}).get("caption")]
    if missing:
        raise UserError(
            f"{len(missing)} files of {side.folder} have no caption in captions.jsonl, the first is {missing[0]}"
        )
    return [entries[name]["caption"] for name in names].__getitem__


def compare_folders(
    name: str,
    real: str | Path | None,
    generated: str | Path | None,
    weights: str | Path,
    *,
    count: int | None = None,
    seed: int = 0,
    batch_size: int = 8,
    mesh: Mesh | None = None,
    keep: Keep = compute_now,
    statistics: str | Path | None = None,
) -> dict[str, Any]:
    """Measures a preset on two folders; the record says everything that decides the number.

    Args:
      name: of the preset.
      real: folder of the real side, or an .npz file with its ``mu`` and ``sigma``; ``None`` for measures without one.
      generated: folder of the other one.
      weights: the published file (or folder) of the preset's network.
      count: clips of both sides instead of the preset's numbers.
      seed: decides which real clips, their windows, and random subsets.
      batch_size: clips that are encoded together.
      mesh: the devices that share a batch; ``None``: all of this process.
      keep: features of a batch pass through it.
      statistics: folder of statistics of real sides, as ``StatisticsFolder`` keeps them.

    Raises:
      UserError: a folder has too few clips, a file cannot be used, or the weights are not those of the network.
    """
    preset = preset_of(name, count)
    measure = MEASURES[preset.measure]
    check_counts(preset)
    # What split a folder holds is not known, and both files of a pair are read from their beginning.
    rule = "first" if preset.of == RECONSTRUCTIONS else preset.real_clips.rule
    taken = dataclasses.replace(preset.real_clips, split="", rule=rule)
    preset = dataclasses.replace(preset, real_clips=taken)
    for label, folder in (("generated", generated), *([("real", real)] if measure.real else [])):
        if folder is None:
            raise UserError(f"--{label} is missing: the folder of the {label} side")
    shown, drawn = _sides(real if measure.real else None, generated, preset, seed)
    if measure.texts:
        drawn = [dataclasses.replace(side, texts=captions_of(side)) for side in drawn]
    if mesh is None and len(jax.local_devices()) > 1:
        mesh = make_mesh({"data": -1}, jax.local_devices())
    network, kept = load_network(preset.network, weights, mesh), StatisticsFolder(statistics)
    return Measuring(name, preset, network, seed, batch_size, mesh, keep, kept).measure(shown, drawn)


def _sides(
    real: str | Path | None, generated: str | Path, preset: Preset, seed: int
) -> tuple[FolderSide | Reference | None, list[FolderSide]]:
    """The real side, where there is one, and the sets of the other."""
    if real is None:
        return None, repeats_of(generated, preset, seed)
    if Path(real).suffix == ".npz":
        return Reference.read(real), repeats_of(generated, preset, seed)
    if preset.of == RECONSTRUCTIONS:
        return pairs_of(real, generated, preset, seed)
    drawn = repeats_of(generated, preset, seed)
    return side_of("real", real, preset.real, preset, seed), drawn
