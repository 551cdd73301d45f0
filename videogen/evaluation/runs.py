"""Presets on a run or export: samples of a generator, or reconstructions of a tokenizer, and clips of a source."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from videogen import data
from videogen.conditioning import TASKS
from videogen.data.crops import CROPS
from videogen.data.inputs import clip_of, pixel_source
from videogen.errors import UserError
from videogen.evaluation.measures import MEASURES, check_counts, load_network
from videogen.evaluation.measuring import Measuring
from videogen.evaluation.origin import of_model
from videogen.evaluation.presets import PRESETS, RECONSTRUCTIONS, Preset, counterpart, preset_of
from videogen.evaluation.sides import Clips, DrawnSide, RebuiltSide, Side, SourceSide
from videogen.evaluation.statistics import StatisticsFolder
from videogen.inference.sampling import encode_prompts
from videogen.parallel import make_mesh
from videogen.tasks import VideoGenerator, reconstructor
from videogen.tasks.base import Keep, compute_now
from videogen.training.loading import Loaded

PREDICTION = "frame_prediction"
"""How a generator that was trained with ``config.tasks`` goes on with given frames."""


def check_kind(loaded: Loaded, name: str) -> None:
    """Refuses a preset of reconstructions on a generator, and one of samples on a tokenizer.

    Raises:
      UserError: names the preset that measures the other.
    """
    rebuilds = PRESETS[name].of == RECONSTRUCTIONS
    if rebuilds == (not loaded.task.draws):
        return
    what = "reconstructions of a tokenizer" if rebuilds else "samples of a generator"
    other = counterpart(name)
    use = f"; use --protocol={other}" if other else ""
    raise UserError(f"{name} measures {what}, and {loaded.directory} holds a {loaded.config.task}{use}")


def check_frames(loaded: Loaded, name: str, preset: Preset) -> None:
    """Refuses clips of another length than the preset's.

    Raises:
      UserError: names both lengths.
    """
    clip = loaded.config.data.clip
    frames = loaded.generator().window if loaded.task.draws else clip.frames
    if preset.frames and frames != preset.frames:
        size = f"{preset.frames}x{clip.height}x{clip.width}"
        remedy = "" if loaded.task.draws else f"; --clip={size} takes others, if the tokenizer can"
        raise UserError(f"{name} takes clips of {preset.frames} frames, and this run has {frames}{remedy}")


def real_side(loaded: Loaded, name: str, preset: Preset, seed: int, other: bool) -> SourceSide:
    """Clips of the run's data source, in an order that the seed draws where not all of them count.

    Raises:
      UserError: the source has too few, or another rate than the preset's.
    """
    config, taken = loaded.config, preset.real_clips
    clip = dataclasses.replace(clip_of(config), window=taken.rule, crop=taken.crop or "centre")
    settings = pixel_source(config)
    # By the seed of the evaluation, so that procedural clips are the same whichever run is measured.
    source = data.build(settings, clip=clip, seed=seed, split=taken.split)
    if taken.fps and source.fps and abs(source.fps - taken.fps) > 0.01 * taken.fps:
        raise UserError(f"{name} takes {taken.fps:g} frames per second, and this source has {source.fps:g}")
    wanted = preset.real
    if wanted is not None and len(source) < wanted:
        raise UserError(
            f"the split {taken.split!r} has {len(source)} clips, and {name} takes {wanted}; --count=N takes others"
        )
    order = np.arange(len(source)) if wanted is None else np.random.default_rng(seed).permutation(len(source))
    named = {key: value for key, value in settings.items() if value not in (None, "", {})}
    about = {"source": named, "split": taken.split}
    # Of another test set nothing is kept back.
    about |= {"held_out": source.keeps_apart} if taken.split == "eval" and not other else {}
    return SourceSide(source, order.tolist(), wanted, seed, about)


@dataclasses.dataclass(frozen=True)
class Drawing:
    """Draws samples of a generator, each by its number alone.

    Attributes:
      generator: what draws.
      loaded: the run it is of.
      real: whose labels, prompts and first frames are taken.
      preset: how.
      batch_size: samples that are drawn together.
      seed: decides every draw.
    """

    generator: VideoGenerator
    loaded: Loaded
    real: SourceSide
    preset: Preset
    batch_size: int
    seed: int

    def __call__(self, rows: Sequence[int]) -> Clips:
        """The samples of these numbers."""
        # Filled up, so that one program serves all.
        filled = [*rows, *[rows[-1]] * (self.batch_size - len(rows))]
        given, shown = self.preset.generated_clips.given, None
        if given:
            shown = np.stack([self.real.beginning(row, given) for row in filled])
        said, window, first = self.said(filled), self.generator.window, rows[0]
        if given and self.loaded.task.tasks is not None:
            rest = ((0, 0), (0, window - given), (0, 0), (0, 0), (0, 0))
            tasks = [PREDICTION] * len(filled)
            drawn, _ = self.generator.complete(tasks, np.pad(shown, rest, "edge"), self.seed, said, first=first)
        else:
            place = {"count": len(filled), "first": first, "first_frames": shown}
            drawn = self.generator.generate(said, window, self.seed, **place)
        return drawn[: len(rows)]

    def said(self, rows: Sequence[int]) -> dict[str, np.ndarray]:
        """Prompts and labels, as far as the generator takes them."""
        said = {}
        if self.loaded.text is not None:
            said = encode_prompts(self.loaded, [self.real.source.caption(self.real.place(row)) for row in rows])
        if classes := self.loaded.config.classes:
            if self.preset.generated_clips.labels == "uniform":
                labels = [row % classes for row in rows]
            else:
                labels = [self.real.source.label(self.real.place(row)) for row in rows]
            said["label"] = np.array(labels, np.int32)
        return said


def made_like(real: SourceSide) -> dict[str, Any]:
    """What the record says of clips that a model made: they have the size and rate of the real ones, and no file."""
    return {"codec": ["none"], **{name: real.describe()[name] for name in ("size", "fps")}}


def drawn_sides(loaded: Loaded, name: str, preset: Preset, real: SourceSide, seed: int, batch_size: int) -> list[Side]:
    """Samples of a generator, a set for each repeat.

    Raises:
      UserError: it cannot begin with so many given frames, or is always given others.
    """
    generator, drawn = loaded.generator(), preset.generated_clips
    if drawn.given and loaded.task.tasks is not None:
        generator.check_task(PREDICTION)
        clip = loaded.config.data.clip
        known = int(TASKS[PREDICTION].region(generator.window, clip.height, clip.width)[:, 0, 0].sum())
        if known != drawn.given:
            raise UserError(f"{name} gives {drawn.given} frames, and {PREDICTION} of this generator {known}")
    elif drawn.given:
        generator.check_given(drawn.given)
    elif generator.given_frames:
        raise UserError(
            f"this generator continues {generator.given_frames} given frames, and {name} is of samples without any"
        )
    count, about = preset.generated or len(real), made_like(real) | {"first_frames_given": drawn.given}
    sides: list[Side] = []
    for repeat in range(drawn.repeats):
        draw = Drawing(generator, loaded, real, preset, batch_size, seed + repeat)
        sides.append(DrawnSide(draw, count, about, texts_of(loaded, preset, real)))
    return sides


def texts_of(loaded: Loaded, preset: Preset, real: SourceSide) -> Callable[[int], str] | None:
    """Number of a sample -> its prompt, where the measure compares with it.

    Raises:
      UserError: it does, and the generator takes none.
    """
    if not MEASURES[preset.measure].texts:
        return None
    if loaded.text is None:
        raise UserError(f"{loaded.directory} was trained without text: its samples have no prompts to compare with")
    return lambda row: real.source.caption(real.place(row))


def _fitting(loaded: Loaded, name: str, count: int | None) -> Preset:
    """A preset that fits a run, with the side of the pictures that it cuts."""
    preset = preset_of(name, count)
    check_kind(loaded, name)
    check_frames(loaded, name, preset)
    check_counts(preset)
    if preset.real_clips.crop not in CROPS:
        return preset
    cut = dataclasses.replace(preset.real_clips, side=loaded.config.data.clip.height)
    return dataclasses.replace(preset, real_clips=cut)


def evaluate_preset(
    loaded: Loaded,
    name: str,
    weights: str | Path,
    *,
    count: int | None = None,
    seed: int = 0,
    batch_size: int = 8,
    other: bool = False,
    keep: Keep = compute_now,
    statistics: str | Path | None = None,
) -> dict[str, Any]:
    """Measures a preset on a run or export; the record says everything that decides the number.

    The real side are clips of its data source, of the split that the preset names. A generator draws the other side,
    with prompts, labels and given frames of that split; a tokenizer codes and decodes exactly the real clips. Pixels
    are clamped and rounded to uint8 before anything is measured.

    Args:
      loaded: the run or export, on the mesh that shares the batches.
      name: of the preset.
      weights: the published file (or folder) of the preset's network.
      count: clips of both sides instead of the preset's numbers.
      seed: decides every draw.
      batch_size: clips that are drawn, coded and encoded together.
      other: whether its config names another test set (``protocols.use_test_set``).
      keep: features of a batch pass through it.
      statistics: folder of statistics of real sides, as ``StatisticsFolder`` keeps them.

    Raises:
      UserError: the preset is one of the other kind of model, or clips do not fit it.
    """
    preset = _fitting(loaded, name, count)
    real = real_side(loaded, name, preset, seed, other)
    if loaded.task.draws:
        generated = drawn_sides(loaded, name, preset, real, seed, batch_size)
    else:
        rebuild = reconstructor(loaded.tokenizer)
        generated = [RebuiltSide(real, rebuild, made_like(real))]
    mesh = loaded.mesh
    if mesh is None and len(jax.local_devices()) > 1:
        mesh = make_mesh({"data": -1}, jax.local_devices())
    network, kept = load_network(preset.network, weights, mesh), StatisticsFolder(statistics)
    measuring = Measuring(name, preset, network, seed, batch_size, mesh, keep, kept)
    record = measuring.measure(real if MEASURES[preset.measure].real else None, generated)
    record["protocol"] |= of_model(loaded)
    return record
