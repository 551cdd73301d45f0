"""From files to files: videos to codes, codes to videos, prompts to videos."""

import dataclasses
import io
import re
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from videogen.configuration import check_writable, read_file
from videogen.data.inputs import sample_clip
from videogen.data.video_io import Frames, read_fitted
from videogen.errors import UserError
from videogen.inference.pictures import WRITERS
from videogen.inference.sampling import Pixels, check_single, draw_videos, write_samples
from videogen.shapes import VideoShape
from videogen.tasks import to_pixels
from videogen.tokenizers import Tiled
from videogen.tokenizers.long import LongVideos
from videogen.training.loading import Loaded, load

KEYS = ("codes", "frames", "fps", "tokenizer")
"""Arrays of a file of codes."""

Checkpoint = Loaded | epath.PathLike
"""A run or export: loaded, or its directory."""

Size = tuple[int, int]
"""Height and width in pixels."""


def encode(
    checkpoint: Checkpoint,
    video: epath.PathLike,
    out: epath.PathLike,
    *,
    size: Size | None = None,
    tile: Size | None = None,
) -> np.ndarray:
    """Writes a video as codes; of a tokenizer without codes, as its latents.

    Frames are taken at the rate that the tokenizer was trained at, resized and cropped to its clips, and coded in the
    memory of one clip, however long the video is.

    Args:
      checkpoint: of a tokenizer, or of a generator or de-tokenizer, whose tokenizer is taken.
      video: a video or picture file.
      out: an .npz file, with ``codes`` [time, height, width, levels], ``frames``, ``fps`` and the ``tokenizer``'s hash.
      size: height and width that frames are resized and cropped to; ``None`` means those of the clips.
      tile: height and width of overlapping tiles that frames are coded by, best those of the clips; ``None``: as a
        whole.

    Returns:
      The codes.

    Raises:
      UserError: no such run, or a file that cannot be read or written.
    """
    if epath.Path(out).suffix != ".npz":
        raise UserError(f"codes are written to a .npz file, not to {out}")
    loaded = _loaded(checkpoint)
    check_writable(out, "out")
    clip = sample_clip(loaded.config)
    if size is not None:
        clip = dataclasses.replace(clip, height=size[0], width=size[1])
    frames, fps = read_fitted(video, clip)
    coded = _long(loaded, tile).encode(frames[None].astype(np.float32) / 127.5 - 1.0)[0]
    content = io.BytesIO()
    np.savez_compressed(content, codes=coded, frames=len(frames), fps=fps, tokenizer=loaded.coder_hash)
    epath.Path(out).write_bytes(content.getvalue())
    return coded


def decode(checkpoint: Checkpoint, codes: epath.PathLike, out: epath.PathLike, *, tile: Size | None = None) -> Frames:
    """Writes the video that a file of codes stands for.

    Args:
      checkpoint: of the tokenizer that made them, or a de-tokenizer or generator of it.
      codes: what ``encode`` wrote.
      out: an .mp4, .gif, .png or .npz file.
      tile: height and width of overlapping tiles that frames are decoded by; ``None``: as a whole.

    Returns:
      The video.

    Raises:
      UserError: no such run or file, or codes of another tokenizer.
    """
    out = epath.Path(out)
    if out.suffix not in WRITERS:
        raise UserError(f"videos are written to {', '.join(WRITERS)} files, not to {out}")
    loaded = _loaded(checkpoint)
    check_writable(out, "out")
    try:
        arrays = np.load(io.BytesIO(read_file(codes)), allow_pickle=False)
        coded, frames, fps, made_by = (arrays[key] for key in KEYS)
    except (ValueError, KeyError, EOFError, OSError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{codes} is no file of codes; videogen.encode writes one") from error
    if str(made_by) != loaded.coder_hash:
        raise UserError(f"{codes} was made by tokenizer {str(made_by)[:12]}, this one is {loaded.coder_hash[:12]}")
    video = to_pixels(_long(loaded, tile).decode(coded[None], int(frames)))[0]
    WRITERS[out.suffix](out, video, float(fps), 1)
    return video


def sample(
    checkpoint: Checkpoint,
    out: epath.PathLike,
    prompts: Sequence[str] = (),
    *,
    seed: int = 0,
    labels: Sequence[str] = (),
    count: int = 1,
    story: bool = False,
    scale: int = 1,
    sampler: dict[str, Any] | None = None,
    **asked: Any,
) -> Pixels:
    """Draws videos and writes them with what they were made from, as ``python -m videogen.sample`` does.

    Args:
      checkpoint: of a generator.
      out: a directory, or a file of one video.
      prompts: what to show.
      seed, labels, count, story, sampler: as for ``videogen.inference.sampling.draw_videos``.
      scale: whole factor that files are larger by.
      **asked: its ``frames``, ``overlap``, ``image``, ``video``, ``given`` or ``tile``.

    Returns:
      The videos.
    """
    check_single(out, count * (1 if story else max(len(prompts), len(labels), 1)))
    loaded, settings = _loaded(checkpoint), {"seed": seed, "labels": labels, "story": story, "sampler": sampler}
    check_writable(out, "out", directory=epath.Path(out).suffix not in WRITERS)
    measured: dict[str, Any] = {}
    videos = draw_videos(loaded, prompts, count=count, **settings, **asked, measured=measured)
    asked = {"count": count, **asked}
    write_samples(out, videos, prompts, loaded, scale=scale, asked=asked, **settings, measured=measured)
    return videos


def _loaded(checkpoint: Checkpoint) -> Loaded:
    return checkpoint if isinstance(checkpoint, Loaded) else load(checkpoint)


def _long(loaded: Loaded, tile: Size | None) -> LongVideos:
    clip = loaded.config.data.clip
    coder = loaded.coder if tile is None else Tiled(loaded.coder, tile)
    return LongVideos(coder, VideoShape(clip.frames, clip.height, clip.width))


def read_clip_size(clip: str) -> VideoShape:
    """``FRAMESxHEIGHTxWIDTH`` of a flag ``--clip``.

    Raises:
      UserError: a malformed size.
    """
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", clip):
        raise UserError(f"--clip={clip} must be FRAMESxHEIGHTxWIDTH, e.g. --clip=9x64x64")
    return VideoShape(*map(int, clip.split("x")))


def use_clip(loaded: Loaded, clip: str) -> None:
    """Lets a tokenizer work on clips of another size than its config has.

    Args:
      loaded: the tokenizer, whose config is changed.
      clip: ``FRAMESxHEIGHTxWIDTH``.

    Raises:
      UserError: a malformed size, or one that the tokenizer cannot take.
    """
    shape = read_clip_size(clip)
    loaded.tokenizer.layout(shape)
    loaded.config.data.clip.update({"frames": shape.frames, "height": shape.height, "width": shape.width})
