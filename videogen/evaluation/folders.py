"""Distances between two folders of videos or pictures, by a preset."""

import collections
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float
from tqdm import tqdm

from videogen import encoders
from videogen.data.folders import PICTURES
from videogen.data.folders import VIDEOS as EXTENSIONS
from videogen.data.video_io import Frames, read_video
from videogen.encoders.i3d import tf1_bilinear
from videogen.encoders.preprocessing import in_range
from videogen.errors import UserError
from videogen.evaluation.origin import commit, hardware
from videogen.evaluation.presets import Preset, preset_of
from videogen.metrics.distributions import Moments, frechet_distance, inception_score, kernel_distance
from videogen.parallel import inside, make_mesh, padded, spread
from videogen.tasks.base import Keep, compute_now

Features = Float[np.ndarray, "examples dimensions"]
Encode = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Side:
    """The clips of one folder.

    Attributes:
      name: ``real`` or ``generated``.
      files: in the order they are read.
      wanted: clips that count.
      preset: how they are taken.
      seed: decides random windows.
    """

    name: str
    files: tuple[Path, ...]
    wanted: int
    preset: Preset
    seed: int = 0

    def clip(self, index: int) -> Frames:
        """The frames of a file that count.

        Raises:
          UserError: it has too few, or cannot be read.
        """
        video, _ = read_video(self.files[index])
        # Generated clips have the preset's stride already, and begin where they are compared.
        stride, rule = (self.preset.stride, self.preset.rule) if self.name == "real" else (1, "first")
        length = (self.preset.frames - 1) * stride + 1
        spare = len(video) - length
        if spare < 0:
            raise UserError(f"{self.files[index]} has {len(video)} frames, and {length} are needed")
        if rule == "random":
            start = int(np.random.default_rng((self.seed, index)).integers(spare + 1))
        else:
            start = {"first": 0, "centre": spare // 2}[rule]
        return video[start : start + length : stride]

    def describe(self) -> dict[str, Any]:
        """The folder's content: number and kinds of files, and the hash of their names and sizes."""
        entries = "\n".join(sorted(f"{file.name} {file.stat().st_size}" for file in self.files))
        kinds = collections.Counter(file.suffix.lower() for file in self.files)
        digest = hashlib.sha256(entries.encode(errors="surrogateescape")).hexdigest()
        return {"found": len(self.files), "files": dict(sorted(kinds.items())), "hash": digest[:16]}


def side_of(name: str, folder: str | Path, wanted: int | None, preset: Preset, seed: int) -> Side:
    """The clips of a folder: all, or of the real ones as many as are wanted in an order that the seed draws.

    Raises:
      UserError: the folder is missing, or has too few; nothing is counted twice.
    """
    folder, extensions = Path(folder), PICTURES if preset.frames == 1 else EXTENSIONS
    if not folder.is_dir():
        raise UserError(f"--{name}={folder} is no folder")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in extensions and path.is_file())
    if len(files) < (wanted or 2):
        kind = "pictures" if preset.frames == 1 else "videos"
        raise UserError(
            f"{folder} has {len(files)} {kind}, and {wanted or 2} are needed; --count=N takes another number"
        )
    if wanted is not None and name == "real":
        files = [files[i] for i in np.random.default_rng(seed).permutation(len(files))]
    elif wanted is not None:
        files = files[:wanted]
    return Side(name, tuple(files), wanted or len(files), preset, seed)


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


def features(side: Side, encode: Encode, batch_size: int, mesh: Mesh | None, keep: Keep) -> tuple[Features, int]:
    """Features of the clips of a side, in order, and how many files were left out; batches pass through ``keep``.

    Real videos that are too short or cannot be read are left out, with a line for each. Of the generated ones every one
    counts: one that cannot be read ends the evaluation. The batch size changes nothing but speed.

    Raises:
      UserError: a generated file cannot be used, or too few real ones can.
    """
    found, left_out = [], 0
    bar = tqdm(total=side.wanted, desc=side.name, unit=" clips")
    for start in range(0, len(side.files), batch_size):
        rows = range(start, min(start + batch_size, len(side.files)))
        compute = functools.partial(_batch, side, encode, rows, batch_size, mesh)
        found.append(keep(f"{side.name}_{start}", compute)["features"])
        left_out += len(rows) - len(found[-1])
        bar.update(len(found[-1]))
        if sum(map(len, found)) >= side.wanted:
            break
    bar.close()
    values = np.concatenate([part for part in found if len(part)] or found)[: side.wanted]
    if len(values) < side.wanted and (side.preset.real is not None or len(values) < 2):
        raise UserError(f"only {len(values)} of the {len(side.files)} {side.name} files can be used, not {side.wanted}")
    return values, left_out


def _batch(side: Side, encode: Encode, rows: range, size: int, mesh: Mesh | None) -> dict[str, np.ndarray]:
    clips, found = [], []
    for row in rows:
        try:
            clips.append(resized(side.clip(row), side.preset))
        except UserError as error:
            if side.name == "generated":
                raise
            logging.warning("left out: %s", error)
    # Clips of one size are encoded together, filled up to the batch so that one program serves all.
    for _, group in itertools.groupby(clips, key=lambda clip: (clip.shape, clip.dtype)):
        stacked = np.stack(list(group))
        filled = np.concatenate([stacked, np.repeat(stacked[-1:], size - len(stacked), axis=0)])
        if side.preset.frames == 1:
            filled = filled[:, 0]
        with inside(mesh):
            found.append(np.asarray(encode(spread(padded(filled, mesh), mesh)))[: len(stacked)])
    return {"features": np.concatenate(found).astype(np.float32) if found else np.zeros((0, 1), np.float32)}


def measured(preset: Preset, real: Features | None, generated: Features, seed: int) -> dict[str, float]:
    """The numbers of a preset from the features of both sides."""
    if preset.measure == "inception_score":
        return {"inception_score": inception_score(np.asarray(jax.nn.softmax(jnp.asarray(generated))))[0]}
    if preset.measure == "frechet":
        return {"frechet_distance": frechet_distance(*map(Moments.of, (real, generated)), biased=preset.biased)}
    mean, deviation = kernel_distance(real, generated, seed=seed)
    return {"kernel_distance": mean, "kernel_distance_deviation": deviation}


def compare_folders(
    name: str,
    real: str | Path | None,
    generated: str | Path,
    weights: str | Path,
    *,
    count: int | None = None,
    seed: int = 0,
    batch_size: int = 8,
    mesh: Mesh | None = None,
    keep: Keep = compute_now,
) -> dict[str, Any]:
    """Measures a preset on two folders; the record says everything that decides the number.

    Args:
      name: of the preset.
      real: folder of the real side; ``None`` for measures that have none.
      generated: folder of the other one.
      weights: the published file (or folder) of the preset's network.
      count: clips of both sides instead of the preset's numbers.
      seed: decides which real clips, their windows, and random subsets.
      batch_size: clips that are encoded together.
      mesh: the devices that share a batch; ``None``: all of this process.
      keep: features of a batch pass through it.

    Raises:
      UserError: a folder has too few clips, a file cannot be used, or the weights are not those of the network.
    """
    preset = preset_of(name, count)
    network = encoders.load(preset.network, weights)
    if mesh is None and len(jax.local_devices()) > 1:
        mesh = make_mesh({"data": -1}, jax.local_devices())
    encode = _compiled(network, mesh)
    sides, values = {}, {}
    for label, folder, wanted in (("generated", generated, preset.generated), ("real", real, preset.real)):
        if label == "real" and preset.measure == "inception_score":
            continue
        if folder is None:
            raise UserError(f"--{label} is missing: the folder of the {label} side")
        side = side_of(label, folder, wanted, preset, seed)
        values[label], left_out = features(side, encode, batch_size, mesh, keep)
        sides[label] = side.describe() | {"counted": len(values[label]), "left_out": left_out}
    _warn_of_codecs(sides)
    protocol = {
        "name": name,
        **{key: value for key, value in dataclasses.asdict(preset).items() if key not in ("real", "generated")},
        "network_hash": network.hash,
        "counts": {label: side["counted"] for label, side in sides.items()},
        **sides,
    }
    metrics = measured(preset, values.get("real"), values["generated"], seed)
    return {"protocol": protocol, "seed": seed, "commit": commit(), "hardware": hardware(), "metrics": metrics}


def _compiled(network: nnx.Module, mesh: Mesh | None) -> Encode:
    """The network as a program whose weights every device has."""
    graph, state = nnx.split(network)
    weights = nnx.to_pure_dict(state)
    if mesh is not None:
        weights = jax.device_put(weights, NamedSharding(mesh, PartitionSpec()))
    forward = jax.jit(lambda weights, clips: nnx.merge(graph, weights)(clips))
    return functools.partial(forward, weights)


def _warn_of_codecs(sides: dict[str, Any]) -> None:
    kinds = [set(side["files"]) for side in sides.values()]
    if len(kinds) == 2 and kinds[0] != kinds[1]:
        words = " and ".join(f"{label}: {', '.join(side['files'])}" for label, side in sides.items())
        logging.warning(
            "the sides are stored differently (%s): compression on one side alone changes a distance", words
        )
