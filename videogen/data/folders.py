"""What sources of files in folders share: finding the files, their classes, and which of them a split has."""

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from absl import logging

from videogen.data import lists
from videogen.data.captions import CAPTIONS, printable, read_captions
from videogen.data.clip import Clip
from videogen.data.media import PICTURES
from videogen.data.source import SPLITS, Source, held_out, place
from videogen.errors import UserError, near_matches

VIDEOS = (".avi", ".gif", ".mkv", ".mov", ".mp4", ".webm")


@dataclasses.dataclass(frozen=True)
class Found:
    """A file of a source: where it is, its name below the folder that was given, and its ``caption`` and ``class``."""

    file: Path
    name: str
    entry: dict[str, Any]

    def of_class(self, name: str) -> "Found":
        """The same file with another class, or none."""
        entry = {key: self.entry[key] for key in self.entry if key != "class"}
        return dataclasses.replace(self, entry=entry | ({"class": name} if name else {}))


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which files belong to which split and class.

    Attributes:
      holdout: share of the files, by the hash of their names, that only 'eval' has; of several at least one is held out
        and one is not. With 0, and of a single file, both splits have all. It is not used where splits are named.
      folder_classes: the class of a file is the name of the folder it lies in, and not what ``captions.jsonl`` says.
      class_list: file below ``path`` with all classes in the order of their labels (``lists.read_classes``).
      train_split, eval_split: of each split a folder below ``path``, or a list of files there (``lists.read_list``).
    """

    holdout: float = 0.0
    folder_classes: bool = False
    class_list: str = ""
    train_split: str = ""
    eval_split: str = ""


class FolderSource(Source):
    """All files of some kinds below one or several folders, in sorted order: the base of ``video_folder`` and
    ``image_folder``, which read them.

    Args:
      clip: the size of the samples.
      seed: with the index, decides what is random about ``source[index]``.
      split: 'train' or 'eval'.
      path: a folder, or several with commas between them.
      extensions: endings of the names of the files to read.
      kind: what they are, for messages.
      choice: which belong to this split, and what their classes are.
      uncaptioned: whether models of text may train on them although none has a caption.

    Raises:
      UserError: a folder or a list is missing or malformed, or nothing is found.

    Attributes:
      captioned: number of samples that have a caption.
      listed: where splits are lists, how many files this one names; those that are not there are left out.
    """

    listed: int | None = None

    def __init__(
        self,
        *,
        clip: Clip,
        seed: int,
        split: str,
        path: str,
        extensions: Sequence[str],
        kind: str,
        choice: Choice,
        uncaptioned: bool,
    ):
        super().__init__(clip=clip, seed=seed, split=split)
        if not 0 <= choice.holdout < 1:
            raise UserError(f"holdout is a share of the {kind}s in [0, 1), got {choice.holdout}")
        if bool(choice.train_split) != bool(choice.eval_split):
            raise UserError("train_split and eval_split go together: name both, or none and set a holdout")
        self.uncaptioned = uncaptioned
        found, splits = [], {name: [] for name in SPLITS}
        for folder in map(Path, path.split(",")):
            there = _files(folder, extensions, kind)
            if choice.folder_classes or choice.class_list:
                there = [f.of_class(_class_folder(f.name, choice)) for f in there]
            found += there
            if choice.train_split:
                for name, files in self._named(folder, there, choice).items():
                    splits[name] += files
        if not choice.train_split:
            splits = by_hash(found, choice.holdout)
            self.keeps_apart = splits["train"] is not splits["eval"]
        kept = splits[split]
        if not kept:
            raise UserError(f"none of the {kind}s of the split {split!r} is in {path}")
        self._files, self._entries = [f.file for f in kept], [f.entry for f in kept]
        if all("class" in entry for entry in self._entries):
            # Of both splits, so that a label means the same in both.
            classes = {f.entry["class"] for files in splits.values() for f in files if "class" in f.entry}
            self.classes = _ordered(classes, Path(path.split(",")[0]), choice)
        self.captioned = sum(bool(entry.get("caption")) for entry in self._entries)

    def _named(self, folder: Path, found: list[Found], choice: Choice) -> dict[str, list[Found]]:
        """The files of each split that its folder holds or its list names, and a line that says how many."""
        names = dict(zip(SPLITS, (choice.train_split, choice.eval_split), strict=True))
        entries = {split: lists.read_list(folder / name) for split, name in names.items() if (folder / name).is_file()}
        shared = lists.in_both(*entries.values()) if len(entries) == 2 else set()
        splits = {}
        for split, name in names.items():
            if split not in entries:
                splits[split] = [f for f in found if f.name.startswith(name.rstrip("/") + "/")]
                if not splits[split]:
                    raise UserError(
                        f"{folder} has no files below {name}, and no list of that name (data.source.{split}_split)"
                    )
                continue
            # What stands in both lists is held out.
            own = [e for e in entries[split] if split == "eval" or e.name not in shared]
            where = lists.places(own, [f.name for f in found])
            pairs = [(e, found[i]) for e, i in zip(own, where, strict=True) if i is not None]
            splits[split] = [f.of_class(e.label) if e.label and not e.label.isdecimal() else f for e, f in pairs]
            _check_numbers(folder, pairs, choice)
            if split == self.split:
                self.listed = (self.listed or 0) + len(own)
                gone = next((e.name for e, i in zip(own, where, strict=True) if i is None), "")
                _say_listed(
                    f"{printable(folder / name)}: {len(pairs)} of {len(own)} listed files are there", gone, shared
                )
        return splits

    def __len__(self) -> int:
        return len(self._files)

    def contents(self) -> str:
        """The hash of the names and sizes of all files, in order."""
        entries = "\n".join(f"{file} {file.stat().st_size}" for file in self._files)
        return hashlib.sha256(entries.encode(errors="surrogateescape")).hexdigest()

    def caption(self, index: int) -> str:
        return self._entries[index].get("caption", "")

    def texts_at(self, index: int) -> list[str]:
        """All captions of file ``index``."""
        return list(self._entries[index].get("captions", (self.caption(index),)))

    def label(self, index: int) -> int:
        return self.classes.index(self._entries[index]["class"])

    def labelled(self, index: int, sample: dict[str, Any], choice: np.random.Generator | None = None) -> dict[str, Any]:
        """A sample with the caption of file ``index``, and its label where there are classes; of several captions one
        that ``choice`` draws, without it the first."""
        texts = self.texts_at(index)
        said = texts[0] if choice is None or len(texts) == 1 else texts[choice.integers(len(texts))]
        several = {"captions": tuple(texts)} if len(texts) > 1 else {}
        return {**sample, "caption": said, **several, **({"label": self.label(index)} if self.classes else {})}


def _class_folder(name: str, choice: Choice) -> str:
    """The folder that a file lies in, where that is not the whole source or a split."""
    folder = PurePosixPath(name).parent
    splits = {PurePosixPath(split) for split in (choice.train_split, choice.eval_split)}
    return "" if folder in splits else folder.name


def _ordered(classes: set[str], folder: Path, choice: Choice) -> tuple[str, ...]:
    """Classes in the order of their labels: that of a list, or sorted."""
    if not choice.class_list:
        found = lists.sorted_classes(classes) if choice.folder_classes else tuple(sorted(classes))
        if choice.folder_classes and all(map(lists.WORDNET.fullmatch, found)) and len(found) != lists.IMAGENET:
            line = f"{printable(folder)} has {len(found)} WordNet ids, and labels are places among these; ImageNet's "
            say_once(f"{line}are among {lists.IMAGENET:,}: give data.source.class_list", warn=True)
        return found
    listed = lists.read_classes(folder / choice.class_list)
    if unknown := sorted(classes - set(listed)):
        raise UserError(
            f"{len(unknown)} classes are not among the {len(listed)} of {choice.class_list}, the first is "
            f"{unknown[0]!r}{near_matches(unknown[0], listed)}"
        )
    return listed


def _check_numbers(folder: Path, pairs: list[tuple[lists.Entry, Found]], choice: Choice) -> None:
    """Refuses a list whose numbers of classes are not those of the list of classes."""
    if not choice.class_list:
        return
    classes = lists.read_classes(folder / choice.class_list)
    for entry, found in pairs:
        if entry.label.isdecimal() and classes[int(entry.label) - 1 : int(entry.label)] != (found.entry.get("class"),):
            raise UserError(
                f"{entry.name} is of class {entry.label} in its list, which {choice.class_list} calls otherwise"
            )


def by_hash(found: list[Found], share: float) -> dict[str, list[Found]]:
    """Both splits: those of the held-out share, but of two or more at least one, and never all; or twice the same."""
    if not share or len(found) < 2:
        return dict.fromkeys(SPLITS, found)
    names = [f.name for f in found]
    order = sorted(range(len(names)), key=lambda i: (place(names[i]), i))
    count = min(max(sum(held_out(name, share) for name in names), 1), len(names) - 1)
    chosen = set(order[:count])
    return {split: [f for i, f in enumerate(found) if (i in chosen) == (split == "eval")] for split in SPLITS}


def _files(folder: Path, extensions: Sequence[str], kind: str) -> list[Found]:
    """The files below a folder with what its ``captions.jsonl`` says of them."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}; set data.source.path to a folder of {kind}s")
    known = {*extensions, *PICTURES}
    found = sorted(file for file in walk(folder) if file.suffix.lower() in known and file.is_file())
    files = [file for file in found if file.suffix.lower() in extensions]
    if not files:
        but = "; pictures are read where data.clip.frames is 1" if found else ""
        raise UserError(f"no {kind} in {folder}; known file types are {', '.join(extensions)}{but}")
    names = [file.relative_to(folder).as_posix() for file in files]
    captions, unknown = read_captions(folder, names)
    _report(folder, len(files), captions, unknown, kind)
    return [Found(file, name, captions.get(name, {})) for file, name in zip(files, names, strict=True)]


def walk(top: Path) -> Iterator[Path]:
    """All files below a folder. Links to folders are followed last, and to those alone that were not seen yet."""

    def warn(error: OSError) -> None:
        logging.warning("cannot read the folder %s: %s", printable(error.filename), error.strerror)

    seen: set[tuple[int, int]] = set()
    waiting = [top]
    while waiting:
        links = []
        for start in sorted(waiting):
            for folder, below, files in os.walk(start, onerror=warn):
                status = os.stat(folder)
                if (status.st_dev, status.st_ino) in seen:
                    below.clear()
                    continue
                seen.add((status.st_dev, status.st_ino))
                links += [Path(folder, name) for name in below if os.path.islink(os.path.join(folder, name))]
                yield from (Path(folder, name) for name in files)
        waiting = links


def _report(folder: Path, count: int, captions: dict[str, dict[str, Any]], unknown: list[str], kind: str) -> None:
    """One line about the captions of a folder, however often it is opened."""
    captioned = sum(bool(entry.get("caption")) for entry in captions.values())
    line = f"{printable(folder)}: {captioned} of {count} {kind}s have captions"
    if unknown:
        shown = ", ".join(ascii(name) for name in unknown[:3]) + (", …" if len(unknown) > 3 else "")
        line += f"; {len(unknown)} lines of {CAPTIONS} match no {kind}: {shown}"
    say_once(line, warn=bool(unknown))


def _say_listed(line: str, gone: str, shared: set[str]) -> None:
    line += f", {ascii(gone)} is not" if gone else ""
    line += f"; {len(shared)} stand in both lists and are held out" if shared else ""
    say_once(line, warn=bool(gone or shared))


def say_once(line: str, warn: bool) -> None:
    """Logs a line the first time that it is said, as a warning or for information."""
    if line not in _said:
        _said.add(line)
        (logging.warning if warn else logging.info)("%s", line)


_said: set[str] = set()
