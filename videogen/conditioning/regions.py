"""Given pixels: MAGVIT's ten tasks as data, which pixels each gives, how the rest is filled, which codes that touches.

A generator is shown the codes of the filled clip, made by the frozen tokenizer that also makes its targets (COMMIT,
MAGVIT section 3.2). They depend on given pixels only, which codes of the true clip at the same places do not.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from videogen.errors import UserError, near_matches
from videogen.shapes import Compression, Video, VideoShape

Region = Bool[np.ndarray, "time height width"]
BLACK = -1.0


def _frames(*indices: int) -> Callable[[int, int, int], Region]:
    def region(frames: int, height: int, width: int) -> Region:
        given = np.zeros((frames, height, width), bool)
        given[list(indices)] = True
        return given

    return region


def _central(rows: bool, columns: bool) -> Callable[[int, int, int], Region]:
    """The second and third quarter of the rows, of the columns, or of both; in every frame."""

    def region(frames: int, height: int, width: int) -> Region:
        given = np.zeros((frames, height, width), bool)
        top, left = height // 4 if rows else 0, width // 4 if columns else 0
        given[:, top : height - top, left : width - left] = True
        return given

    return region


def _moving(rows: bool) -> Callable[[int, int, int], Region]:
    """Half of the columns, all rows or the central ones, moving from the left edge to the right one."""

    def region(frames: int, height: int, width: int) -> Region:
        given = np.zeros((frames, height, width), bool)
        top = height // 4 if rows else 0
        size = max(width // 2, 1)
        for frame, left in enumerate(np.round(np.linspace(0, width - size, frames)).astype(int)):
            given[frame, top : height - top, left : left + size] = True
        return given

    return region


def _outside(region: Callable[[int, int, int], Region]) -> Callable[[int, int, int], Region]:
    return lambda *shape: ~region(*shape)


@dataclasses.dataclass(frozen=True)
class PixelTask:
    """What a clip is completed from.

    Attributes:
      region: ``(frames, height, width)`` -> the given pixels.
      fill: what the others show to the tokenizer: ``time`` blends the given frames around them (the last one stays),
        ``edge`` repeats the rim of a rectangle that does not move, ``black``.
      uses_conditioning: whether text and label are seen.
      moving: the region moves, so on the codes it is drawn anew (a supervoxel it crosses is not in it for long).
    """

    region: Callable[[int, int, int], Region]
    fill: str
    uses_conditioning: bool = False
    moving: bool = False


TASKS = {
    "frame_prediction": PixelTask(_frames(0), "time"),
    "interpolation": PixelTask(_frames(0, -1), "time"),
    "outpaint_central": PixelTask(_central(True, True), "edge"),
    "outpaint_vertical": PixelTask(_central(False, True), "edge"),
    "outpaint_horizontal": PixelTask(_central(True, False), "edge"),
    "outpaint_dynamic": PixelTask(_moving(False), "black", moving=True),
    "inpaint_central": PixelTask(_outside(_central(True, True)), "black"),
    "inpaint_dynamic": PixelTask(_outside(_moving(True)), "black", moving=True),
    "conditional_generation": PixelTask(_frames(), "black", uses_conditioning=True),
    "conditional_prediction": PixelTask(_frames(0), "time", uses_conditioning=True),
}
"""Name -> task (MAGVIT table 7: FP, FI, OPC, OPV, OPH, OPD, IPC, IPD, CG, CFP). A strip that outpainting calls vertical
stands upright: what is missing is left and right of it."""

SHORT_NAMES = {
    "inpaint": "inpaint_central",
    "outpaint": "outpaint_central",
    "interpolate": "interpolation",
    "predict": "frame_prediction",
}
"""What people say -> the task that is most often meant by it."""

USES_CONDITIONING = np.array([task.uses_conditioning for task in TASKS.values()])
"""Which tasks see text and label, in the order of ``TASKS``."""


def task_index(name: str) -> int:
    """The place of a task in ``TASKS``, which is its id.

    Raises:
      UserError: there is no such task.
    """
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}{near_matches(name, TASKS)}")
    return list(TASKS).index(name)


def latent_region(task: PixelTask, shape: VideoShape, compression: Compression) -> Region:
    """The places of the token grid whose code of the filled clip is shown.

    Those whose supervoxel has a given pixel; a region that moves is drawn on the grid instead, as in the released code,
    so that it covers the same share of codes as of pixels.
    """
    grid = shape.grid(compression)
    if task.moving:
        return task.region(*grid.shape)
    pixels = task.region(shape.frames, shape.height, shape.width)
    time = [pixels[np.array(compression.frames_of_latent(i))].any(0) for i in range(grid.time)]
    blocks = np.stack(time).reshape(grid.time, grid.height, compression.height, grid.width, compression.width)
    return blocks.any(axis=(2, 4))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Given:
    """What a generator is shown of given pixels.

    Attributes:
      indices: codes of the filled clips.
      region: raster-ordered places at which they are shown.
      task: place in ``TASKS`` of each example's task.
    """

    indices: Int[Array, "batch latent_time latent_height latent_width levels"]
    region: Bool[Array, "batch tokens"]
    task: Int[Array, "batch"]


class TaskTables:
    """All tasks for clips of one shape, as tables that the task of each example selects from inside ``jit``.

    Filling is separable: every pixel is a blend of two frames at some row and column, or black.

    Args:
      shape: the clips.
      compression: of the tokenizer.
    """

    def __init__(self, shape: VideoShape, compression: Compression):
        size = (shape.frames, shape.height, shape.width)
        sources = [_sources(task, size) for task in TASKS.values()]
        self.sources = tuple(np.stack(table) for table in zip(*sources, strict=True))
        self.latent = np.stack([latent_region(task, shape, compression).reshape(-1) for task in TASKS.values()])

    def fill(self, video: Video, task: Int[Array, "batch"]) -> Video:
        """Clips of which only given pixels are left, the rest filled from them by each example's task."""

        def one(clip: Float[Array, "time height width channel"], i: Int[Array, ""]) -> Array:
            before, after, weight, rows, columns, black = (jnp.asarray(table)[i] for table in self.sources)
            weight = weight[:, None, None, None]
            filled = (1 - weight) * clip[before] + weight * clip[after]
            return jnp.where(black[..., None], BLACK, filled[:, rows][:, :, columns])

        return jax.vmap(one)(video, task)

    def region(self, task: Int[Array, "batch"]) -> Bool[Array, "batch tokens"]:
        """The places of the grid at which codes of the filled clips are shown."""
        return jnp.asarray(self.latent)[task]


def _sources(task: PixelTask, size: tuple[int, int, int]) -> tuple[np.ndarray, ...]:
    """Frames before and after with the weight of the latter, rows, columns, and where it is black."""
    given = task.region(*size)
    before = after = np.arange(size[0])
    weight = np.zeros(size[0], np.float32)
    rows, columns = np.arange(size[1]), np.arange(size[2])
    if task.fill == "time":
        frames = np.flatnonzero(given.any(axis=(1, 2)))
        times = np.arange(size[0])
        before = frames[np.maximum(np.searchsorted(frames, times, side="right") - 1, 0)]
        after = frames[np.minimum(np.searchsorted(frames, times), len(frames) - 1)]
        weight = np.where(after > before, (times - before) / np.maximum(after - before, 1), 0).astype(np.float32)
    elif task.fill == "edge":
        rows, columns = (
            np.clip(places, inside[0], inside[-1])
            for places, inside in (
                (rows, np.flatnonzero(given.any(axis=(0, 2)))),
                (columns, np.flatnonzero(given.any(axis=(0, 1)))),
            )
        )
    black = ~given if task.fill == "black" else np.zeros(size, bool)
    return before, after, weight, rows, columns, black
