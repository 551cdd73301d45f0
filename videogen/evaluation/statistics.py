"""What is kept of the features of one side: moments or the features themselves, in files, and from published files."""

import dataclasses
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from videogen.configuration import check_writable
from videogen.errors import UserError
from videogen.metrics.distributions import Features, Gaussian, Moments, checked

TOGETHER = 1024
"""Examples whose moments are taken at a time."""


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Of one side.

    Attributes:
      count: clips that count.
      left_out: clips that could not be used.
      moments: mean and covariance, for measures that need no more.
      features: of every clip, for the others.
    """

    count: int
    left_out: int
    moments: Moments | None = None
    features: Features | None = None

    @classmethod
    def of(cls, batches: Iterator[tuple[Features, int]], whole: bool) -> "Statistics":
        """From batches of features with how many clips each left out; ``whole`` keeps the features."""
        parts, left_out, count, moments = [], 0, 0, None
        for features, missing in batches:
            left_out, count = left_out + missing, count + len(features)
            parts += [features] if len(features) else []
            if not whole and sum(map(len, parts)) >= TOGETHER:
                moments, parts = _added(moments, parts), []
        if whole:
            return cls(count, left_out, features=np.concatenate(parts) if parts else np.zeros((0, 1), np.float32))
        return cls(count, left_out, moments=_added(moments, parts) if parts else moments)

    def arrays(self) -> dict[str, np.ndarray]:
        """All of it as arrays by name."""
        if self.features is not None:
            kept = {"features": self.features}
        else:
            kept = {"mean": self.moments.mean, "scatter": self.moments.scatter}
        return {"count": np.array(self.count), "left_out": np.array(self.left_out), **kept}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Statistics":
        """What ``arrays`` gave."""
        count, left_out = int(arrays["count"]), int(arrays["left_out"])
        if "features" in arrays:
            return cls(count, left_out, features=checked(arrays["features"], count).astype(np.float32))
        return cls(count, left_out, moments=Moments(count, arrays["mean"], arrays["scatter"]))


def _added(moments: Moments | None, parts: list[Features]) -> Moments:
    found = Moments.of(np.concatenate(parts))
    return found if moments is None else moments + found


class StatisticsFolder:
    """Statistics of real sides in files, by all that decides them: data, protocol of the side, network and seed.

    A file is an .npz without pickled objects. One that holds another key than its name says, or is damaged, is named in
    a warning, not used, and replaced.

    Args:
      folder: where they are; ``None`` keeps nothing.

    Raises:
      UserError: it cannot be written.
    """

    def __init__(self, folder: str | Path | None):
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            check_writable(self.folder, "--statistics", directory=True)

    def __call__(self, key: Mapping[str, Any], compute: Callable[[], Statistics]) -> Statistics:
        """The statistics of a key, read or computed and written.

        Args:
          key: JSON values by name.
          compute: gives them.
        """
        if self.folder is None:
            return compute()
        text = json.dumps(key, sort_keys=True)
        path = self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.npz"
        if path.exists() and (found := _read(path, text)) is not None:
            logging.info("statistics of the real side: %s", path)
            return found
        found, content = compute(), io.BytesIO()
        np.savez(content, key=np.frombuffer(text.encode(), np.uint8), **found.arrays())
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_bytes(content.getvalue())
        unfinished.replace(path)
        return found


def _read(path: Path, text: str) -> Statistics | None:
    """The statistics of a file, where they are those of this key."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        if arrays["key"].tobytes().decode() == text:
            return Statistics.from_arrays(arrays)
        reason = "holds the statistics of another key than its name says"
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, UserError):
        reason = "is damaged"
    logging.warning("%s %s; it is not used, and replaced", path, reason)
    return None


@dataclasses.dataclass(frozen=True)
class Reference:
    """A published file with the mean and covariance of a real side (ADM, pytorch-fid): its pictures are never used.

    Attributes:
      gaussian: what it holds as ``mu`` and ``sigma``.
      about: what the record says of it.
    """

    gaussian: Gaussian
    about: Mapping[str, Any]

    def describe(self) -> dict[str, Any]:
        """What the record says of it, as of a side."""
        return dict(self.about)

    @classmethod
    def read(cls, path: str | Path) -> "Reference":
        """Reads ``mu`` and ``sigma`` of an .npz file.

        Raises:
          UserError: it cannot be read, or they are missing, of other shapes, or not finite.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                names = list(file.files)
                if not {"mu", "sigma"} <= set(names):
                    raise UserError(f"{path} holds no mu and sigma, only {', '.join(names)}; name a folder instead")
                mean, matrix = (np.asarray(file[name], np.float64) for name in ("mu", "sigma"))
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}; download it again") from error
        except (ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is no .npz file of arrays mu and sigma; download it again") from error
        if mean.ndim != 1 or matrix.shape != (mean.size, mean.size):
            raise UserError(f"{path}: mu {list(mean.shape)} and sigma {list(matrix.shape)} are no mean and covariance")
        if not (np.isfinite(mean).all() and np.isfinite(matrix).all()):
            raise UserError(f"{path}: mu or sigma holds NaN or infinity")
        digest = hashlib.sha256(mean.tobytes() + matrix.tobytes()).hexdigest()[:16]
        unused = [name for name in names if name not in ("mu", "sigma")]
        about = {"statistics": "stored mean and covariance", "file": Path(path).name, "unused": unused, "hash": digest}
        return cls(Gaussian(mean, matrix), about)
