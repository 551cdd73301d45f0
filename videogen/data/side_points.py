"""Points of body and hands that stand beside a video: ``NAME.pose.npz`` beside ``NAME.mp4``.

Arrays of the file:

* ``points [frame, joint, 2]`` and ``mask [frame, joint]``: (x, y) in pixels, and which are known;
* ``names [joint]``: those of ``signer.JOINTS`` are read, joints that are missing are not known;
* ``size [2]``: height and width of the frames that the pixels are of;
* optional ``hands [frame, 2, 21, 3]`` and ``hands_mask [frame, 2]``: (x, y, z) of the left and the right hand, z the
  depth relative to the wrist, all in pixels.

There is an entry for every frame of the video, in order.
"""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from videogen.data.clip import Clip
from videogen.data.signer import HAND_POINTS, JOINTS
from videogen.data.source import SampleError

SUFFIX = ".pose.npz"


def side_file(video: Path) -> Path:
    """Where the points of a video are."""
    return video.with_name(video.stem + SUFFIX)


def point_fields(frames: int) -> dict[str, tuple[tuple[int, ...], type]]:
    """The arrays of a sample with points, as ``Source.fields``."""
    return {
        "pose": ((frames, len(JOINTS), 2), np.float32),
        "pose_mask": ((frames, len(JOINTS)), np.bool_),
        "hands": ((frames, 2, HAND_POINTS, 3), np.float32),
        "hands_mask": ((frames, 2), np.bool_),
    }


def read_points(video: Path, name: str, frames: Int[np.ndarray, "frames"], clip: Clip) -> dict[str, np.ndarray]:
    """The points of some frames of a video, in units of the sides of the clip that a central crop makes of them.

    Points that are not known are 0. Places are (y, x), depths are in units of the clip's width.

    Args:
      video: its file.
      name: what to call it in errors.
      frames: numbers of the frames.
      clip: how large.

    Raises:
      SampleError: the file is missing or malformed, or has fewer frames.
    """
    arrays = _read(side_file(video), name)
    if len(arrays["points"]) <= frames.max():
        raise SampleError(name, f"its {SUFFIX} has {len(arrays['points'])} frames, and frame {frames.max()} is needed")
    taken = {key: arrays[key][frames] for key in ("points", "mask", "hands", "hands_mask")}
    where = [list(arrays["names"]).index(joint) if joint in arrays["names"] else -1 for joint in JOINTS]
    there = np.array(where) >= 0
    pose, known = taken["points"][:, where][..., ::-1], taken["mask"][:, where] & there
    place = _Placed(arrays["size"], clip)
    hands = taken["hands"]
    depth = hands[..., 2:] * place.scale[1] / clip.width
    hands = np.concatenate([place(hands[..., 1::-1]), depth], axis=-1)
    return {
        "pose": np.where(known[..., None], place(pose), 0).astype(np.float32),
        "pose_mask": known,
        "hands": np.where(taken["hands_mask"][..., None, None], hands, 0).astype(np.float32),
        "hands_mask": taken["hands_mask"],
    }


class _Placed:
    """(y, x) in pixels of a frame -> in units of the sides of a clip, after ``Clip.fit``."""

    def __init__(self, size: np.ndarray, clip: Clip):
        covering = np.array(clip.cover(*map(int, size)))
        self.scale = covering / size
        self.sides = np.array([clip.height, clip.width])
        self.corner = (covering - self.sides) // 2

    def __call__(self, points: Float[np.ndarray, "... 2"]) -> Float[np.ndarray, "... 2"]:
        return (points * self.scale - self.corner) / self.sides


def _read(path: Path, name: str) -> dict[str, Any]:
    """The arrays of a file, whose shapes fit."""
    if not path.exists():
        raise SampleError(name, f"its points are missing: there is no {path.name}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise SampleError(name, f"{path.name} cannot be read") from error
    frames, joints = (*arrays.get("points", np.zeros(0)).shape, 0, 0)[:2]
    if "hands" not in arrays:
        arrays["hands"], arrays["hands_mask"] = np.zeros((frames, 2, HAND_POINTS, 3)), np.zeros((frames, 2), bool)
    wanted = {"points": (frames, joints, 2), "mask": (frames, joints), "names": (joints,), "size": (2,)}
    wanted |= {"hands": (frames, 2, HAND_POINTS, 3), "hands_mask": (frames, 2)}
    for key, shape in wanted.items():
        if key not in arrays or arrays[key].shape != shape:
            found = list(arrays[key].shape) if key in arrays else "nothing"
            raise SampleError(name, f"{path.name}: {key} must be {list(shape)}, got {found}")
    kinds = {"points": "fiu", "hands": "fiu", "size": "fiu", "mask": "b", "hands_mask": "b", "names": "U"}
    for key, kind in kinds.items():
        if arrays[key].dtype.kind not in kind:
            raise SampleError(name, f"{path.name}: {key} has the type {arrays[key].dtype}")
    if not frames or arrays["size"].min() < 1 or len(set(arrays["names"])) < joints:
        raise SampleError(name, f"{path.name}: no frame, a size below 1, or a joint named twice")
    for key, mask in (("points", "mask"), ("hands", "hands_mask")):
        if not np.isfinite(arrays[key][arrays[mask]]).all():
            raise SampleError(name, f"{path.name}: {key} that are known are no numbers")
    return arrays
