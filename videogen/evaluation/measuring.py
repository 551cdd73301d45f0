"""Measuring a preset: features of both sides batch by batch, their statistics, the numbers and the record."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh
from tqdm import tqdm

from videogen.data.video_io import Frames
from videogen.encoders.i3d import tf1_bilinear
from videogen.encoders.preprocessing import in_range
from videogen.errors import UserError
from videogen.evaluation.measures import (
    MEASURES,
    Network,
    Numbers,
    consistency_of,
    numbers,
    over_repeats,
    score_of_frames,
)
from videogen.evaluation.origin import commit, hardware
from videogen.evaluation.presets import Preset
from videogen.evaluation.sides import LOSSLESS, Side
from videogen.evaluation.statistics import Reference, Statistics, StatisticsFolder
from videogen.metrics.distributions import Features
from videogen.parallel import inside, on_host, padded, spread
from videogen.tasks.base import Keep, compute_now

Found = tuple[list[Numbers], dict[str, Any], dict[str, Any]]
"""The numbers of each repeat, what was counted of each side, and what else the record says."""


def resized(clip: Frames, preset: Preset) -> np.ndarray:
    """A clip as the network is given it: ``uint8`` as it is, or float32 in [-1, 1] at the preset's sides."""
    if preset.sides is None or clip.shape[1:3] == preset.sides:
        return clip
    return np.asarray(_resized(jnp.asarray(clip), preset.sides, preset.resize))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _resized(clip: jax.Array, sides: tuple[int, int], rule: str) -> jax.Array:
    x = in_range(clip)
    if rule == "tf1_bilinear":
        rows, columns = (tf1_bilinear(n, side) for n, side in zip(x.shape[1:3], sides, strict=True))
        return jnp.einsum("yh,thwc,xw->tyxc", rows, x, columns, precision=jax.lax.Precision.HIGHEST)
    method, _, antialiased = rule.partition("_")
    method = {"bilinear": "linear", "bicubic": "cubic"}[method]
    x = jax.image.resize(x, (len(x), *sides, 3), method, antialias=bool(antialiased), precision="highest")
    return jnp.clip(x, -1, 1)


@dataclasses.dataclass(frozen=True)
class Measuring:
    """A preset with its network, and how the work is done.

    Attributes:
      name: of the preset.
      preset: with the counts that are asked for.
      network: of its features.
      seed: decides which real clips, their windows, draws and random subsets.
      batch_size: clips that are encoded together; it changes nothing but speed.
      mesh: the devices that share a batch; ``None``: one.
      keep: what is computed of a batch passes through it.
      statistics: keeps those of the real side.
      alike: length and size of the clips, once one was seen, where the preset does not say.
    """

    name: str
    preset: Preset
    network: Network
    seed: int = 0
    batch_size: int = 8
    mesh: Mesh | None = None
    keep: Keep = compute_now
    statistics: StatisticsFolder = StatisticsFolder(None)
    alike: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    def measure(self, real: Side | Reference | None, generated: Sequence[Side]) -> dict[str, Any]:
        """Measures, and says everything that decides the numbers.

        Args:
          real: the real side, where the measure has one.
          generated: the other side: one, or one for each repeat, drawn with seed, seed + 1, ….

        Raises:
          UserError: a clip that counts cannot be used, or a side has too few.
        """
        by_clip = MEASURES[self.preset.measure].by_clip
        if isinstance(real, Reference) and MEASURES[self.preset.measure].whole:
            raise UserError(
                f"{real.about['file']} holds a mean and a covariance, and {self.name} needs clips: name a folder"
            )
        each, counts, more = self._by_clip(real, generated[0]) if by_clip else self._by_sets(real, generated)
        sides = {"generated": generated[0], "real": real}
        about = {name: side.describe() | counts[name] for name, side in sides.items() if side is not None}
        warn_of_storage(about, self.preset)
        protocol = {
            "name": self.name,
            **{
                key: value for key, value in dataclasses.asdict(self.preset).items() if key not in ("real", "generated")
            },
            "network_hash": self.network.hash,
            "counts": {name: count["counted"] for name, count in counts.items()},
            "repeats": len(each),
            **({"clip": list(self.alike["shape"])} if "shape" in self.alike else {}),
            **about,
            **more,
        }
        record = {"protocol": protocol, "seed": self.seed, "commit": commit(), "hardware": hardware()}
        if len(each) > 1:
            record["repeats"] = [{"seed": self.seed + i, **found} for i, found in enumerate(each)]
        return record | {"metrics": over_repeats(each)}

    def _by_sets(self, real: Side | Reference | None, generated: Sequence[Side]) -> Found:
        """Of sets of features."""
        each, counts, known = [], {}, None
        for i, side in enumerate(generated):
            found = self._statistics(side, f"generated_{i}" if i else "generated")
            if i == 0:
                counts["generated"] = _counted(found)
                if real is not None:
                    known = real if isinstance(real, Reference) else self._real_statistics(real)
                    counts["real"] = {"counted": "stored"} if isinstance(real, Reference) else _counted(known)
                self._check_equal(counts)
            each.append(numbers(self.preset, known, found, self.seed + i))
        return each, counts, {}

    def _check_equal(self, counts: Mapping[str, Any]) -> None:
        a, b = (counts.get(name, {}).get("counted") for name in ("real", "generated"))
        if self.preset.real is None and self.preset.generated is None and isinstance(a, int) and a != b:
            raise UserError(
                f"{a} real and {b} generated clips are compared, and this protocol takes equally many; --count=N takes "
                "so many of both"
            )

    def _real_statistics(self, real: Side) -> Statistics:
        preset = self.preset
        taken = {name: getattr(preset, name) for name in ("network", "frames", "sides", "resize", "real", "measure")}
        # Where the preset leaves length and size open, they are those of the generated side, which was read before.
        protocol = taken | {"real_clips": dataclasses.asdict(preset.real_clips), "clip": self.alike.get("shape")}
        data = real.describe()["hash"]
        key = {"data": data, "protocol": protocol, "network_hash": self.network.hash, "seed": self.seed}
        return self.statistics(key, lambda: self._statistics(real, "real"))

    def _statistics(self, side: Side, label: str) -> Statistics:
        """Those of a side.

        Raises:
          UserError: fewer clips can be used than are wanted.
        """
        found = Statistics.of(self._features(side, label), MEASURES[self.preset.measure].whole)
        if found.moments is not None and found.count <= len(found.moments.mean):
            dimensions = len(found.moments.mean)
            logging.warning(
                "%d %s clips say little of a covariance of %d features: the distance grows as clips become fewer",
                *(found.count, side.name, dimensions),
            )
        wanted = max(side.wanted or 0, MEASURES[self.preset.measure].fewest)
        if found.count < wanted:
            raise UserError(f"only {found.count} of the {len(side)} {side.name} clips can be used, not {wanted}")
        return found

    def _features(self, side: Side, label: str) -> Iterator[tuple[Features, int]]:
        """Features of the clips that count, batch after batch, and how many were left out of each."""
        missing = side.wanted or len(side)
        with tqdm(total=missing, desc=label.replace("_", " "), unit=" clips") as bar:
            for start in range(0, len(side), self.batch_size):
                rows = range(start, min(start + self.batch_size, len(side)))
                compute = functools.partial(self._batch, side, rows)
                kept = self.keep(f"{label}_{start}", compute)
                usable = kept["features"]
                self._check_alike(side, kept["shapes"])
                found = usable[:missing]
                missing -= len(found)
                bar.update(len(found))
                yield found, len(rows) - len(usable)
                if not missing:
                    break

    def _check_alike(self, side: Side, shapes: np.ndarray) -> None:
        """Where a preset leaves length and size open, those of the first clip are those of all.

        Raises:
          UserError: names both.
        """
        for shape in map(tuple, shapes.tolist()) if not self.preset.frames else ():
            first = self.alike.setdefault("shape", shape)
            if shape != first:
                one, other = ("x".join(map(str, clip)) for clip in (first, shape))
                raise UserError(
                    f"{self.name} compares clips of one length and size, and there are {one} and, of the {side.name} "
                    f"side, {other}"
                )

    def _batch(self, side: Side, rows: range) -> dict[str, np.ndarray]:
        clips = [resized(clip, self.preset) for clip in side.clips(rows) if clip is not None]
        shapes = np.array([clip.shape[:3] for clip in clips], np.int32).reshape(-1, 3)
        found = []
        # Clips of one size are encoded together.
        for _, group in itertools.groupby(clips, key=lambda clip: (clip.shape, clip.dtype)):
            stacked = np.stack(list(group))
            found.append(self._encoded(stacked[:, 0] if self.preset.frames == 1 else stacked))
        features = np.concatenate(found).astype(np.float32) if found else np.zeros((0, 1), np.float32)
        return {"features": features, "shapes": shapes}

    def _encoded(self, *inputs: np.ndarray) -> np.ndarray:
        """What the network makes of a few rows, filled up to the batch so that one program serves all."""
        rows = len(inputs[0])
        filled = [np.concatenate([x, np.repeat(x[-1:], self.batch_size - rows, axis=0)]) for x in inputs]
        with inside(self.mesh):
            return on_host(self.network.encode(*(spread(padded(x, self.mesh), self.mesh) for x in filled)))[:rows]

    def _by_clip(self, real: Side | None, generated: Side) -> Found:
        """Of each clip, or pair of clips; the mean."""
        compute = self._pairs if real is not None else self._scores
        wanted, values, cut, left_out = generated.wanted or len(generated), [], 0, 0
        with tqdm(total=wanted, desc=self.preset.measure, unit=" clips") as bar:
            for start in range(0, len(generated), self.batch_size):
                rows = range(start, min(start + self.batch_size, len(generated)))
                found = self.keep(f"clips_{start}", functools.partial(compute, real, generated, rows))
                usable = found["values"][: wanted - len(values)]
                values += usable.tolist()
                left_out, cut = left_out + len(rows) - len(found["values"]), cut + int(found["cut"])
                bar.update(len(usable))
                if len(values) == wanted:
                    break
        if not values or (generated.wanted is not None and len(values) < wanted):
            raise UserError(f"only {len(values)} of the {len(generated)} clips can be used, not {wanted}")
        counts = {"counted": len(values), "left_out": left_out}
        sides = {"generated": counts} | ({} if real is None else {"real": counts})
        more = {"texts_cut": cut} if MEASURES[self.preset.measure].texts else {}
        return [{self.preset.measure: float(np.mean(values))}], sides, more

    def _pairs(self, real: Side, generated: Side, rows: range) -> dict[str, np.ndarray]:
        values = []
        for one, other in zip(real.clips(rows), generated.clips(rows), strict=True):
            if one is None or other is None:
                continue
            if one.shape != other.shape:
                raise UserError(f"paired clips must be of one size, got {list(one.shape)} and {list(other.shape)}")
            values.append(np.mean(self._by_frame(*(np.asarray(in_range(clip)) for clip in (one, other)))))
        return {"values": np.array(values), "cut": np.array(0)}

    def _scores(self, real: None, generated: Side, rows: range) -> dict[str, np.ndarray]:
        if not MEASURES[self.preset.measure].texts:
            values = [consistency_of(self._by_frame(clip)) for clip in generated.clips(rows) if clip is not None]
            return {"values": np.array(values), "cut": np.array(0)}
        texts, cut = self.network.texts([generated.texts(row) for row in rows])
        pairs = zip(generated.clips(rows), texts, strict=True)
        values = [score_of_frames(self._by_frame(clip), text) for clip, text in pairs if clip is not None]
        return {"values": np.array(values), "cut": np.array(cut)}

    def _by_frame(self, *clips: np.ndarray) -> np.ndarray:
        """What the network makes of every frame of clips, or pairs of them."""
        starts = range(0, len(clips[0]), self.batch_size)
        return np.concatenate([self._encoded(*(clip[i : i + self.batch_size] for clip in clips)) for i in starts])


def _counted(found: Statistics) -> dict[str, int]:
    return {"counted": found.count, "left_out": found.left_out}


def warn_of_storage(sides: Mapping[str, Any], preset: Preset) -> None:
    """Says where the files of the sides are stored so differently that this changes a distance."""
    if not all("codec" in side for side in sides.values()) or len(sides) < 2:
        return
    kinds = {name: sorted(side["files"]) for name, side in sides.items()}
    words = " and ".join(f"{name}: {', '.join(files)}" for name, files in kinds.items())
    lossy = {name: not set(side["codec"]) <= LOSSLESS for name, side in sides.items()}
    if len(set(lossy.values())) == 2:
        one = next(name for name, is_lossy in lossy.items() if is_lossy)
        logging.warning("the %s side alone is compressed with losses (%s), which changes a distance", one, words)
    elif kinds["real"] != kinds["generated"]:
        logging.warning(
            "the sides are stored differently (%s): compression on one side alone changes a distance", words
        )
    strides = {"real": preset.real_clips.stride, "generated": preset.generated_clips.stride}
    rates = {name: {fps / strides[name] for fps in side.get("fps", ())} for name, side in sides.items()}
    if preset.frames != 1 and rates["real"] != rates["generated"]:
        said = " and ".join(f"{name}: {', '.join(f'{r:g}' for r in sorted(found))}" for name, found in rates.items())
        logging.warning("the sides have other frames per second (%s), which changes a distance of videos", said)
