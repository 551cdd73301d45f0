"""Videos of a folder with questions about them, from a ``questions.jsonl``."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from videogen.data.captions import Finder, printable
from videogen.data.clip import Clip
from videogen.data.decode_spread import decode_spread
from videogen.data.folders import VIDEOS, Found, by_hash, say_once, walk
from videogen.data.media import PICTURES, PIXEL_BUDGET
from videogen.data.question_rows import QUESTIONS, Row, read_questions
from videogen.data.source import Source
from videogen.errors import UserError


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A question and the file that it is about."""

    row: Row
    file: Path
    name: str


class QuestionFolderSource(Source):
    """Every question about a video of a folder, each one sample: frames over the whole video, question and answer.

    The frames are spread over the video, or over the part from ``start`` to ``end`` that a question names
    (``Clip.moments``), and ``times`` says when each is shown, in seconds from the first frame of the video. A sample
    also has ``options``, empty for an open question, and ``kind``. Where all questions have a wrong answer, their own
    or another option, it is ``wrong``. Crops are random in 'train' and central in 'eval'. A video that cannot be read
    is skipped. In 'train' questions without an answer are left out; in 'eval' their answer is empty.

    Args:
      clip: the size of the samples; ``fps`` is the rate that frames are taken at where the video has enough of them,
        and else it is denser. One-frame clips are read from pictures, too.
      seed: with the index, decides crop and wrong option.
      split: 'eval' has the questions about the videos that ``holdout`` keeps from 'train', or ``eval_questions``.
      path: the folder of the videos.
      questions: file of the questions, below the path or absolute (``question_rows``).
      eval_questions: file of those of 'eval'; ``holdout`` is not used then.
      holdout: share of the videos, by the hash of their names, whose questions only 'eval' has. With 0, and of a single
        video, both splits have all.
      pixel_budget: videos are skipped of which a decoder could hold more pixels (16 × width × height of a frame).

    Raises:
      UserError: the folder or a file is missing, a line is malformed, or no question is about a video that is there.
    """

    texts = ("caption", "question", "answer")
    captioned = 0

    def __init__(
        self,
        *,
        clip: Clip,
        seed: int,
        split: str,
        path: str,
        questions: str = QUESTIONS,
        eval_questions: str = "",
        holdout: float = 0.1,
        pixel_budget: int = PIXEL_BUDGET,
    ):
        super().__init__(clip=clip, seed=seed, split=split)
        if not 0 <= holdout < 1:
            raise UserError(f"holdout is a share of the videos in [0, 1), got {holdout}")
        folder = Path(path)
        if not folder.is_dir():
            raise UserError(f"no folder {folder}; set data.source.path to the folder of the videos")
        self._pixel_budget = pixel_budget
        endings = VIDEOS + (PICTURES if clip.frames == 1 else ())
        files = {f.relative_to(folder).as_posix(): f for f in walk(folder) if f.suffix.lower() in endings}
        name = eval_questions if split == "eval" and eval_questions else questions
        asked = _about(folder, folder / name, files)
        if not eval_questions:
            found = [Found(files[name], name, {}) for name in sorted({a.name for a in asked})]
            splits = by_hash(found, holdout)
            self.keeps_apart = splits["train"] is not splits["eval"]
            kept = {f.name for f in splits[split]}
            asked = [a for a in asked if a.name in kept]
        if split == "train":
            asked = _answered(folder / name, asked)
        self._asked = asked
        if all(a.row.wrong or len(a.row.options) > 1 for a in asked):
            self.texts = (*self.texts, "wrong")

    def __len__(self) -> int:
        return len(self._asked)

    @property
    def fields(self) -> dict[str, tuple[tuple[int, ...], type]]:
        return {**super().fields, "times": ((self.clip.frames,), np.float32)}

    def contents(self) -> str:
        """The hash of all questions and of the names and sizes of their videos."""
        lines = [f"{a.row.line()}\n{a.name} {a.file.stat().st_size}\n" for a in self._asked]
        return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Decodes the video of question ``index``; in 'eval' it does not depend on ``rng``."""
        asked = self._asked[index]
        part = asked.row.start, asked.row.end
        choice, name = self.choice(rng), printable(asked.file)
        decoded = decode_spread(asked.file, name, self.clip, choice, self._pixel_budget, part)
        return {
            "video": decoded.video,
            "times": decoded.times,
            "fps": decoded.fps,
            "caption": "",
            **self._said(index),
            "options": asked.row.options,
            "kind": asked.row.kind,
        }

    def _said(self, index: int) -> dict[str, str]:
        row = self._asked[index].row
        said = {"question": row.question, "answer": row.answer}
        if "wrong" in self.texts:
            others = [option for option in row.options if option != row.answer]
            choice = np.random.default_rng([self.seed, index])
            said["wrong"] = row.wrong or others[int(choice.integers(len(others)))]
        return said

    def caption(self, index: int) -> str:
        return ""

    def texts_at(self, index: int) -> list[str]:
        return [*self._said(index).values(), *self._asked[index].row.options]

    def name_of(self, index: int) -> str:
        asked = self._asked[index]
        return f"question {asked.row.id or asked.row.question[:40]!r} about {printable(asked.name)}"


def _about(folder: Path, file: Path, files: dict[str, Path]) -> list[_Asked]:
    """The questions of a file whose videos are there; the others are counted and named in one line."""
    rows, find = read_questions(file), Finder(folder, files)
    asked, missing = [], {}
    for row in rows:
        if (name := find(row.video)) is None:
            missing[row.video] = missing.get(row.video, 0) + 1
        else:
            asked.append(_Asked(row, files[name], name))
    line = f"{printable(file)}: {len(asked)} of {len(rows)} questions are about videos that are there"
    if missing:
        shown = ", ".join(ascii(name) for name in list(missing)[:3]) + (", …" if len(missing) > 3 else "")
        line += f"; {len(missing)} videos of {sum(missing.values())} questions are not: {shown}"
    say_once(line, warn=bool(missing))
    if not asked:
        raise UserError(f"{line}; set data.source.path to the folder that the names in it are relative to")
    return asked


def _answered(file: Path, asked: list[_Asked]) -> list[_Asked]:
    """The questions that have an answer."""
    kept = [a for a in asked if a.row.answer]
    if not kept:
        raise UserError(f"{printable(file)} has no question of the split 'train' with an answer to learn from")
    if len(kept) < len(asked):
        open_ones = len(asked) - len(kept)
        say_once(f"{printable(file)}: {open_ones} questions have no answer and are left out of 'train'", warn=True)
    return kept
