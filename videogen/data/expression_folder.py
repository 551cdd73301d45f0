"""Published sets of videos with expressions and masks, in folders as they are given out: ReVOS, MeViS, ReasonVOS."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from PIL import Image

from videogen.data.captions import clean_text, printable
from videogen.data.clip import Clip, resize, spread
from videogen.data.expressions_source import FOUND, MISSING, ExpressionsSource
from videogen.data.media import PIXEL_BUDGET
from videogen.data.picture import read_still
from videogen.data.source import SampleError, Source
from videogen.errors import UserError

MASKS, FRAMES, ANNOTATIONS = "mask_dict.json", "JPEGImages", "Annotations"
"""Of ReVOS and MeViS the run lengths of all masks; the folder of frames, where there is one; of ReasonVOS masks as
pictures."""


class ExpressionFolderSource(Source):
    """Expressions about videos, each one sample with the fields of ``shapes_expressions``.

    The list names videos, their frames and expressions. A frame is ``JPEGImages/VIDEO/FRAME.jpg``, or
    ``VIDEO/FRAME.jpg`` below the folder. Masks stand in ``mask_dict.json`` by the numbers that ``anno_id`` gives
    (ReVOS, MeViS), where those of several things are joined, or in ``Annotations/SOURCE_VIDEO_OBJECT/FRAME.png``
    (ReasonVOS). Frames are spread evenly over the video, resized until they cover the clip, and cropped in the middle.

    Args:
      clip: the size of the samples.
      seed: unused: nothing is drawn.
      split: 'eval' has the expressions of ``eval_questions``.
      path: the folder.
      fps: frames per second of the listed frames.
      questions: the list below the folder.
      eval_questions: that of 'eval'; empty: both splits have the same.
      pixel_budget: videos are skipped whose frames have more pixels.

    Raises:
      UserError: a list or a folder is missing or malformed, or the rate is.
    """

    texts = ExpressionsSource.texts

    def __init__(
        self,
        *,
        clip: Clip,
        seed: int,
        split: str,
        path: str,
        fps: float | None = None,
        questions: str = "meta_expressions.json",
        eval_questions: str = "",
        pixel_budget: int = PIXEL_BUDGET,
    ):
        super().__init__(clip=clip, seed=seed, split=split)
        if not fps or fps <= 0:
            raise UserError("nothing in the folder tells the rate of its frames: set data.source.fps")
        self.folder, self._rate, self._budget = Path(path), fps, pixel_budget
        self.keeps_apart = bool(eval_questions)
        name = eval_questions if split == "eval" and eval_questions else questions
        videos = _read(self.folder / name)
        if not isinstance(videos, Mapping) or not isinstance(videos.get("videos"), Mapping):
            raise UserError(f"{self.folder / name} has no 'videos'; is it a list of expressions?")
        self._rows = [
            (video, row, said)
            for video, row in videos["videos"].items()
            for said in _expressions(row, self.folder / name, video)
        ]
        if not self._rows:
            raise UserError(f"{self.folder / name} has no expression")
        masks = self.folder / MASKS
        self._masks = _read(masks) if masks.exists() else None
        if self._masks is None and not (self.folder / ANNOTATIONS).is_dir():
            raise UserError(f"{self.folder} has neither {MASKS} nor a folder {ANNOTATIONS}")
        self._frames = self.folder / FRAMES if (self.folder / FRAMES).is_dir() else self.folder

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def fields(self) -> dict[str, tuple[tuple[int, ...], type]]:
        return ExpressionsSource.described(self.clip, {})

    @classmethod
    def described(cls, clip: Clip, settings: Any) -> dict[str, tuple[tuple[int, ...], type]]:
        return ExpressionsSource.described(clip, settings)

    @property
    def fps(self) -> float:
        """Frames per second of the listed frames."""
        return self._rate

    def name_of(self, index: int) -> str:
        video, _, said = self._rows[index]
        return printable(f"{video}: {_text(said)[:40]}")

    def caption(self, index: int) -> str:
        return _text(self._rows[index][2])

    def texts_at(self, index: int) -> list[str]:
        return [self.caption(index), FOUND, MISSING]

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """The expression at ``index``."""
        video, row, said = self._rows[index]
        name, frames = self.name_of(index), [str(frame) for frame in row["frames"]]
        if len(frames) < self.clip.frames:
            raise SampleError(name, f"it has {len(frames)} frames, and clips have {self.clip.frames}")
        chosen = spread(len(frames), self.clip.frames)
        pictures = [self._picture(video, frames[i], name) for i in chosen]
        masks = [
            self._mask(video, row, said, frames, i, p.shape[:2], name) for i, p in zip(chosen, pictures, strict=True)
        ]
        fitted = [self._fitted(picture, mask) for picture, mask in zip(pictures, masks, strict=True)]
        masks = np.stack([mask for _, mask in fitted])
        answer, wrong = (FOUND, MISSING) if masks.any() else (MISSING, FOUND)
        question = self.caption(index)
        return {
            "video": np.stack([picture for picture, _ in fitted]),
            "masks": masks,
            "marked": np.array(masks.any()),
            "times": (chosen / self._rate).astype(np.float32),
            "fps": self._rate,
            **{"caption": question, "question": question, "answer": answer, "wrong": wrong},
            "options": (),
            "kind": str(said.get("type_id", row.get("source", "listed"))),
        }

    def _picture(self, video: str, frame: str, name: str) -> np.ndarray:
        found = [self._frames / video / f"{frame}{ending}" for ending in (".jpg", ".png")]
        path = next((path for path in found if path.exists()), None)
        if path is None:
            raise SampleError(name, f"there is no frame {frame}")
        try:
            with path.open("rb") as file:
                return read_still(file, name, self._budget)
        except (OSError, ValueError, SyntaxError) as error:
            raise SampleError(name, f"frame {frame} cannot be read ({type(error).__name__})") from None

    def _mask(
        self,
        video: str,
        row: Mapping[str, Any],
        said: Mapping[str, Any],
        frames: list[str],
        number: int,
        size: tuple[int, int],
        name: str,
    ) -> Bool[np.ndarray, "height width"]:
        """The pixels of all things that an expression means in one frame, none where it is out of sight."""
        whole = np.zeros(size, bool)
        try:
            if self._masks is not None:
                numbers = said.get("anno_id") or []
                for anno in numbers if isinstance(numbers, list) else [numbers]:
                    if (coded := self._masks[str(anno)][number]) is not None:
                        whole |= decoded(coded)
                return whole
            folder = f"{str(row.get('source', '')).lower()}_{video}_{said['obj_id']}"
            path = self.folder / ANNOTATIONS / folder / f"{frames[number]}.png"
            if path.exists():
                with Image.open(path) as picture:
                    whole |= np.asarray(picture.convert("P") if picture.mode == "P" else picture.convert("L")) > 0
            return whole
        except (LookupError, TypeError, ValueError, OSError) as error:
            raise SampleError(
                name, f"its mask in frame {frames[number]} cannot be read ({type(error).__name__})"
            ) from None

    def _fitted(self, picture: np.ndarray, mask: Bool[np.ndarray, "h w"]) -> tuple[np.ndarray, np.ndarray]:
        """Both as large as the clip, cropped in the middle; a pixel of the mask is the nearest one."""
        height, width = self.clip.cover(*picture.shape[:2])
        rows, columns = (
            np.minimum(((np.arange(n) + 0.5) * side / n).astype(int), side - 1)
            for n, side in zip((height, width), mask.shape, strict=True)
        )
        top, left = (height - self.clip.height) // 2, (width - self.clip.width) // 2
        cut = slice(top, top + self.clip.height), slice(left, left + self.clip.width)
        shown = resize(np.ascontiguousarray(picture)[None], height, width)[0]
        return np.ascontiguousarray(shown[cut]), mask[rows[:, None], columns][cut]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError:
        raise UserError(f"there is no {path}; set data.source.path and data.source.questions") from None
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error})") from None


def _expressions(row: Any, path: Path, video: str) -> list[Mapping[str, Any]]:
    """The expressions of a video, by number or in a list."""
    said = row.get("expressions") if isinstance(row, Mapping) else None
    found = list(said.values()) if isinstance(said, Mapping) else said
    if not isinstance(found, list) or not isinstance(row.get("frames"), list) or not all(map(_text, found)):
        raise UserError(f"{path}: {printable(video)} needs frames, and expressions with a text each")
    return found


def _text(said: Any) -> str:
    """The words of an expression: ``exp`` of ReVOS and MeViS, ``exp_text`` of ReasonVOS."""
    return clean_text(str(said.get("exp") or said.get("exp_text") or "")) if isinstance(said, Mapping) else ""


def run_lengths(coded: str) -> Int[np.ndarray, "runs"]:
    """The lengths of runs that COCO's compressed string says: numbers of five bits a character, from the third on as
    differences to the last but one."""
    runs: list[int] = []
    place = 0
    while place < len(coded):
        value, shift, more = 0, 0, True
        while more:
            part = ord(coded[place]) - 48
            value |= (part & 31) << shift
            place, shift, more = place + 1, shift + 5, bool(part & 32)
            if not more and part & 16:
                value |= -1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return np.array(runs, np.int64)


def decoded(coded: Mapping[str, Any]) -> Bool[np.ndarray, "height width"]:
    """A mask from COCO's run lengths ``{size, counts}``, column after column, beginning with what is outside.

    Raises:
      ValueError: the runs are not as long as the mask.
    """
    height, width = coded["size"]
    counts = coded["counts"]
    runs = run_lengths(counts) if isinstance(counts, str) else np.array(counts, np.int64)
    if runs.min(initial=0) < 0 or runs.sum() != height * width:
        raise ValueError(f"runs of {runs.sum()} pixels for {height} x {width}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
