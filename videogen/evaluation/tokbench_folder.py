"""The published TokBench folder: pictures and videos with the annotations that come with them.

What the published scripts read (github.com/wjf5203/TokBench, eval_text.py, eval_face.py and ocr_json.py; the data
itself was not at hand):

    annotations/text_NAME.json    [{file_name, height, width, annotations: [{bbox, rec, ratio}]}]
    images/text_data/NAME/        the pictures
    annotations/face_meta.json    [{image_name, img_height, img_width, faces: [{kps, ratio}]}]
    images/face_data/wflw/
    video_annotations/text_NAME.json      as above, of frames: also video_name; file_name ends in -frameN, N from 1
    videos/text_data/NAME/VIDEO_NAME.mp4
    video_annotations/videoface_meta.json [{video_name, video_height, video_width, frame_anns: [[{kps, ratio}]]}]
    videos/face_data/face_clip_3s/

``bbox`` is left, top, right, bottom. Not found: whether the instances of a video have a name. Ours is ``id`` where
there is one; else a word is named by its text and a face by its place in the list of its frame.
"""

import collections
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from videogen.data.video_io import Frames, read_video
from videogen.errors import UserError, shown
from videogen.evaluation.instances import Face, Sample, Word

SUFFIX = re.compile(r"(\.(?:jpe?g|png|webp|bmp))(?:\.(?:jpe?g|png|webp|bmp))+$", re.IGNORECASE)

Read = Callable[[], Sample]


def plain_name(name: str) -> str:
    """A file's name without a doubled ending: some tools write ``a.jpg.jpg``."""
    return SUFFIX.sub(r"\1", name)


class PublishedFolder:
    """The samples of a folder: its pictures, then its videos, in the order of the annotations.

    Args:
      folder: with the layout above; parts of it may be missing.

    Raises:
      UserError: it has no annotations, or they cannot be understood.
    """

    def __init__(self, folder: str | Path):
        self.folder, self._reads = Path(folder), []
        self._missing: list[Path] = []
        for path in sorted(self.folder.glob("annotations/text_*.json")):
            self._understand(path, self._text_pictures)
        for path in sorted(self.folder.glob("annotations/face_meta.json")):
            self._understand(path, self._face_pictures)
        for path in sorted(self.folder.glob("video_annotations/text_*.json")):
            self._understand(path, self._text_videos)
        for path in sorted(self.folder.glob("video_annotations/videoface_meta.json")):
            self._understand(path, self._face_videos)
        if not self._reads:
            raise UserError(
                f"{folder} has no annotations/text_*.json, annotations/face_meta.json or video_annotations/: "
                "name the published TokBench folder"
            )
        if self._missing:
            raise UserError(f"{len(self._missing)} annotated files are missing, the first is {self._missing[0]}")

    def __len__(self) -> int:
        return len(self._reads)

    def __getitem__(self, index: int) -> Sample:
        return self._reads[index]()

    def __iter__(self) -> Iterator[Sample]:
        return (read() for read in self._reads)

    def describe(self) -> dict[str, Any]:
        """What the folder holds, for the record of a result."""
        names = sorted(path.relative_to(self.folder).as_posix() for path in self.folder.glob("*annotations/*.json"))
        return {"name": "published", "samples": len(self), "annotations": names}

    def _understand(self, path: Path, add: Callable[[Path, Any], None]) -> None:
        try:
            add(path, json.loads(path.read_text()))
        except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise UserError(f"cannot read {path}: {shown(error)}; unpack the published folder again") from error

    def _add(self, file: Path, dataset: str, size: Any, words: Sequence[Any], faces: Sequence[Any]) -> None:
        if not file.is_file():
            self._missing.append(file)
            return
        sides = (int(size[0]), int(size[1]))
        self._reads.append(lambda: _sample(file, dataset, sides, words, faces))

    def _text_pictures(self, path: Path, entries: Any) -> None:
        dataset = path.stem.removeprefix("text_")
        for entry in entries:
            file = self._picture(self.folder / "images" / "text_data" / dataset, str(entry["file_name"]))
            words = [[_word(word, str(k)) for k, word in enumerate(entry["annotations"])]]
            self._add(file, dataset, (entry["height"], entry["width"]), words, [[]])

    def _face_pictures(self, path: Path, entries: Any) -> None:
        for entry in entries:
            file = self._picture(self.folder / "images" / "face_data" / "wflw", str(entry["image_name"]))
            faces = [[_face(face, str(k)) for k, face in enumerate(entry["faces"])]]
            self._add(file, "wflw", (entry["img_height"], entry["img_width"]), [[]], faces)

    def _text_videos(self, path: Path, entries: Any) -> None:
        dataset = path.stem.removeprefix("text_")
        videos: dict[str, dict[int, list[Word]]] = collections.defaultdict(dict)
        sizes = {}
        for entry in entries:
            name, frame = str(entry["video_name"]), int(Path(entry["file_name"]).stem.rpartition("-frame")[2])
            videos[name][frame - 1] = [_word(word, "") for word in entry["annotations"]]
            sizes[name] = (entry["height"], entry["width"])
        for name, frames in videos.items():
            words = [frames.get(k, []) for k in range(max(frames) + 1)]
            file = self.folder / "videos" / "text_data" / dataset / f"{name}.mp4"
            self._add(file, dataset, sizes[name], words, [[] for _ in words])

    def _face_videos(self, path: Path, entries: Any) -> None:
        for entry in entries:
            faces = [[_face(face, str(k)) for k, face in enumerate(frame)] for frame in entry["frame_anns"]]
            file = self.folder / "videos" / "face_data" / "face_clip_3s" / str(entry["video_name"])
            self._add(file, "face_clip_3s", (entry["video_height"], entry["video_width"]), [[] for _ in faces], faces)

    @staticmethod
    def _picture(folder: Path, name: str) -> Path:
        """The file of a picture, whichever of the two has a doubled ending."""
        if (folder / name).is_file():
            return folder / name
        plain = plain_name(name)
        choices = [folder / plain, folder / (plain + Path(plain).suffix)]
        return next((path for path in choices if path.is_file()), folder / name)


def _word(entry: Any, instance: str) -> Word:
    left, top, right, bottom = map(float, entry["bbox"])
    text = str(entry["rec"])
    return Word((left, top, right, bottom), text, float(entry["ratio"]), str(entry.get("id", instance or text)))


def _face(entry: Any, instance: str) -> Face:
    return Face(
        np.asarray(entry["kps"], np.float64).reshape(5, 2), float(entry["ratio"]), str(entry.get("id", instance))
    )


def _sample(
    file: Path, dataset: str, sides: tuple[int, int], words: Sequence[Sequence[Word]], faces: Sequence[Sequence[Face]]
) -> Sample:
    """Reads the file; where it has not the annotated size, the annotations are scaled to it.

    Raises:
      UserError: it cannot be read, or has fewer frames than are annotated.
    """
    frames: Frames = read_video(file)[0]
    if len(frames) < len(words):
        raise UserError(f"{file} has {len(frames)} frames, and {len(words)} are annotated")
    frames = frames[: len(words)]
    y, x = (found / told for found, told in zip(frames.shape[1:3], sides, strict=True))
    name = plain_name(file.name)
    scaled = [[[item.scaled(x, y) for item in frame] for frame in kind] for kind in (words, faces)]
    return Sample(name, dataset, frames, *scaled)
