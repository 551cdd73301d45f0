"""Published sets of questions about videos, read from their own annotation files.

Each function of ``SETS`` reads one file as it is published, or the JSON export of it where it is published as parquet,
and gives its questions in order. ``question_conversion`` finds their videos and writes ``questions.jsonl``.
"""

import dataclasses
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from videogen.data.annotations import list_in, read_json, read_text, rows_in, text_in
from videogen.errors import UserError

LETTERS = string.ascii_uppercase


@dataclasses.dataclass(frozen=True)
class Published:
    """A question as a set has it.

    Attributes:
      videos: names that its video may have, the likeliest first; with or without folder and ending.
      fields: what a row of ``questions.jsonl`` has beside the video.
    """

    videos: tuple[str, ...]
    fields: dict[str, Any]


def next_qa(file: Path) -> Iterator[Published]:
    """NExT-QA, multiple choice (``val.csv``: the answer is the number of one of a0 … a4) or open (no such columns).

    The columns are ``video, frame_count, width, height, question, answer, qid, type`` (confirmed); an
    ``additional_ref_answer`` of the open test set is left out. Videos are ``ID.mp4`` below any folder.
    """
    for place, row in rows_in(file, ("video", "question", "answer", "qid", "type")):
        options = [text_in(row, f"a{i}", place) for i in range(5)] if row.get("a0") is not None else []
        video = text_in(row, "video", place)
        fields = {"question": text_in(row, "question", place), "kind": text_in(row, "type", place), "options": options}
        answer = _option(row["answer"], options, place) if options else text_in(row, "answer", place)
        yield Published((video,), {**fields, "answer": answer, "id": f"{video}_{text_in(row, 'qid', place)}"})


def ego_schema(file: Path) -> Iterator[Published]:
    """EgoSchema's ``questions.json`` (``q_uid, question, option 0 … option 4``); answers are those of a
    ``subset_answers.json`` beside it, 500 of them.

    The names of the videos, ``q_uid`` and the layout of the answers are confirmed; ``option 0 … option 4`` only from
    programs that read them. The export of the parquet files (``video_idx, question, option, answer``) is read, too.
    """
    beside = file.with_name("subset_answers.json")
    answers = read_json(beside) if beside.exists() else {}
    if not isinstance(answers, Mapping):
        raise UserError(f"{beside} is no object of answers by q_uid; download it again")
    for place, row in rows_in(file, ("question",)):
        exported = "video_idx" in row
        name = text_in(row, "video_idx" if exported else "q_uid", place)
        options = list_in(row, "option", place) if exported else [text_in(row, f"option {i}", place) for i in range(5)]
        answer = row.get("answer") if exported else answers.get(name)
        fields = {"question": text_in(row, "question", place), "options": options, "id": name}
        yield Published((name,), fields | ({} if answer is None else {"answer": _option(answer, options, place)}))


def mv_bench(file: Path) -> Iterator[Published]:
    """MVBench, one file for each task (``video, question, candidates, answer``, at times ``start, end``; confirmed).

    The task is the name of the file. Where the videos were cut to their parts, the parts must be left out.
    """
    yield from _candidates(file, lambda row: file.stem)


def mlvu(file: Path) -> Iterator[Published]:
    """MLVU, one file for each task (``video, duration, question, candidates, answer, question_type``; confirmed); tasks
    of generation have no candidates."""
    yield from _candidates(file, lambda row: row.get("question_type") or file.stem)


def _candidates(file: Path, kind: Callable[[Mapping[str, Any]], str]) -> Iterator[Published]:
    for number, (place, row) in enumerate(rows_in(file, ("video", "question"))):
        options = list_in(row, "candidates", place) if row.get("candidates") else []
        fields = {"question": text_in(row, "question", place), "options": options, "kind": kind(row)}
        if row.get("answer") is not None:
            fields["answer"] = text_in(row, "answer", place)
        part = {name: row[name] for name in ("start", "end") if row.get(name) is not None}
        yield Published((text_in(row, "video", place),), {**fields, **part, "id": f"{file.stem}_{number}"})


def video_mme(file: Path) -> Iterator[Published]:
    """Video-MME: the export of its parquet file (``videoID, video_id, question_id, task_type, question, options,
    answer``; confirmed), or videos with a list ``questions`` as its evaluation has them, ``choices`` in the place of
    ``options`` (confirmed). Letters in front of options are left out; an answer is a letter."""
    for place, entry in rows_in(file, ("video_id",)):
        for row in entry.get("questions", (entry,)):
            options = _unlettered(list_in(row, "options" if "options" in row else "choices", place))
            names = tuple(str(entry[name]) for name in ("videoID", "video_id") if entry.get(name))
            fields = {"question": text_in(row, "question", place), "options": options}
            fields |= {"kind": text_in(row, "task_type", place), "id": text_in(row, "question_id", place)}
            yield Published(names, {**fields, "answer": _option(text_in(row, "answer", place), options, place)})


def long_video_bench(file: Path) -> Iterator[Published]:
    """LongVideoBench's ``lvb_val.json`` (``video_path, question, candidates, correct_choice, question_category, id``;
    confirmed). The test set has no ``correct_choice``."""
    for place, row in rows_in(file, ("video_path", "question", "candidates", "id")):
        options = list_in(row, "candidates", place)
        fields = {"question": text_in(row, "question", place), "options": options, "id": text_in(row, "id", place)}
        if row.get("question_category"):
            fields["kind"] = text_in(row, "question_category", place)
        if row.get("correct_choice") not in (None, -1):
            fields["answer"] = _option(row["correct_choice"], options, place)
        yield Published((text_in(row, "video_path", place),), fields)


def msvd_qa(file: Path) -> Iterator[Published]:
    """MSVD-QA's ``test_qa.json`` (``id, video_id, question, answer``; confirmed). Videos are ``vidN``, or have the
    names of a ``youtube_mapping.txt`` beside the file (``NAME vidN`` a line)."""
    beside, names = file.with_name("youtube_mapping.txt"), {}
    if beside.exists():
        words = [line.split() for line in read_text(beside).splitlines()]
        names = {pair[1]: pair[0] for pair in words if len(pair) == 2}
    yield from _open_answers(file, lambda number: (f"vid{number}", *filter(None, [names.get(f"vid{number}")])))


def msrvtt_qa(file: Path) -> Iterator[Published]:
    """MSRVTT-QA's ``test_qa.json`` (``id, video_id, question, answer``; confirmed). Videos are ``videoN``."""
    yield from _open_answers(file, lambda number: (f"video{number}",))


def _open_answers(file: Path, names: Callable[[str], tuple[str, ...]]) -> Iterator[Published]:
    for place, row in rows_in(file, ("id", "video_id", "question", "answer")):
        question = text_in(row, "question", place)
        # What is asked for is the first word, by which the sets are scored.
        fields = {"question": question, "answer": text_in(row, "answer", place), "kind": question.split()[0].lower()}
        yield Published(names(text_in(row, "video_id", place)), {**fields, "id": text_in(row, "id", place)})


def tgif_qa(file: Path) -> Iterator[Published]:
    """TGIF-QA (``Test_action_question.csv``, …: columns parted by tabs, ``gif_name, question, [a1 … a5,] answer,
    [type,] vid_id, key``; confirmed).

    The answer of ``action`` and ``transition`` is the number of an option, from 0 on. The kind is the task and, of
    ``frameqa``, what is asked for.
    """
    for place, row in rows_in(file, ("gif_name", "question", "answer", "vid_id"), delimiter="\t"):
        options = [text_in(row, f"a{i}", place) for i in range(1, 6)] if row.get("a1") is not None else []
        name = text_in(row, "vid_id", place)
        kind = re.sub(r"\d+$", "", name).lower().replace("trans", "transition")
        if row.get("type") in ("0", "1", "2", "3"):
            kind += "." + ("object", "number", "color", "location")[int(row["type"])]
        answer = _option(row["answer"], options, place) if options else text_in(row, "answer", place)
        fields = {"question": text_in(row, "question", place), "options": options, "answer": answer}
        yield Published((text_in(row, "gif_name", place),), {**fields, "kind": kind, "id": name})


ACTIVITYNET_TYPES = ("motion", "spatial", "temporal", "yes/no", "color", "object", "location", "number", "other")


def activitynet_qa(file: Path) -> Iterator[Published]:
    """ActivityNet-QA's ``test_q.json`` (``video_name, question, question_id``) with the ``test_a.json`` beside it
    (``answer, type, question_id``; both confirmed). Videos are ``v_NAME`` or ``NAME``."""
    if not file.stem.endswith("_q"):
        raise UserError(f"{file} has no questions of ActivityNet-QA; give train_q.json, val_q.json or test_q.json")
    beside = file.with_name(f"{file.stem[:-1]}a{file.suffix}")
    known = {}
    if beside.exists():
        known = {text_in(row, "question_id", place): (place, row) for place, row in rows_in(beside, ("question_id",))}
    for place, row in rows_in(file, ("video_name", "question", "question_id")):
        name, key = text_in(row, "video_name", place), text_in(row, "question_id", place)
        fields = {"question": text_in(row, "question", place), "id": key}
        if key in known:
            there, answer = known[key]
            fields["answer"] = text_in(answer, "answer", there)
            if answer.get("type") in range(len(ACTIVITYNET_TYPES)):
                fields["kind"] = ACTIVITYNET_TYPES[answer["type"]]
        yield Published((f"v_{name}", name), fields)


OVO_TASKS = {
    **dict.fromkeys(("EPM", "ASI", "HLD"), "backward"),
    **dict.fromkeys(("STU", "OJR", "ATR", "ACR", "OCR", "FPD"), "current"),
    **dict.fromkeys(("REC", "SSR", "CRR"), "future"),
}
"""Task of OVO-Bench -> whether the evidence lies before the question, in the last frames, or comes later."""


def ovo_bench(file: Path) -> Iterator[Published]:
    """OVO-Bench's list of ``id, task, video, realtime, question, options, gt`` (confirmed), asked at second
    ``realtime``: the part of the video is what was seen by then.

    Tasks about the future have a list ``test_info`` of ``realtime`` with ``count`` (REC), ``step`` and ``type`` (SSR)
    or ``type`` (CRR; the fields are those of the program that scores it). They become one question each, in words of
    ours; kinds are ``backward.EPM``, ``current.OCR``, ``future.REC``, ….
    """
    for place, row in rows_in(file, ("id", "task", "video")):
        task = text_in(row, "task", place)
        if task not in OVO_TASKS:
            raise UserError(f"{place}: unknown task {task[:20]!r}; the tasks are {', '.join(OVO_TASKS)}")
        path = Path(text_in(row, "video", place))
        names = (path.as_posix(), path.name)
        common = {"kind": f"{OVO_TASKS[task]}.{task}", "start": 0.0}
        if OVO_TASKS[task] != "future":
            options = list_in(row, "options", place)
            fields = {"question": text_in(row, "question", place), "options": options}
            fields |= {"answer": _option(row.get("gt"), options, place), "id": text_in(row, "id", place)}
            yield Published(names, {**fields, **common, "end": _seconds(row.get("realtime"), place)})
            continue
        if not isinstance(moments := row.get("test_info"), list):
            raise UserError(f"{place} lacks test_info, the moments at which it is asked")
        for number, moment in enumerate(moments):
            there = f"{place}, moment {number + 1}"
            if not isinstance(moment, Mapping):
                raise UserError(f"{there} is no object of realtime and what is true then")
            fields = {**_of_future(task, row, moment, there), "id": f"{text_in(row, 'id', place)}_{number}"}
            yield Published(names, {**fields, **common, "end": _seconds(moment.get("realtime"), there)})


def _of_future(task: str, row: Mapping[str, Any], moment: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Question and answer of a moment of a task about the future."""
    if task == "REC":
        activity = text_in(row, "activity", place)
        return {"question": f"How many times did they {activity}?", "answer": text_in(moment, "count", place)}
    if task == "SSR":
        question = f"Is this step being done now: {text_in(moment, 'step', place)}"
    else:
        question = f"Can this be answered by now: {text_in(row, 'question', place)}"
    options = ["no", "yes"]
    return {"question": question, "options": options, "answer": _option(moment.get("type"), options, place)}


def streaming_bench(file: Path) -> Iterator[Published]:
    """StreamingBench's lists of videos (``questions_omni_stream.json``: ``video_path``, and ``questions`` of
    ``task_type, question, time_stamp, answer, options``; confirmed), each asked at its ``time_stamp``, HH:MM:SS: the
    part of the video is what was seen by then. Letters in front of options are left out; an answer is a letter."""
    for place, video in rows_in(file, ("video_path", "questions")):
        path = Path(text_in(video, "video_path", place))
        if not isinstance(video["questions"], list):
            raise UserError(f"{place}: 'questions' must be a list")
        for number, row in enumerate(video["questions"]):
            there = f"{place}, number {number + 1}"
            if not isinstance(row, Mapping):
                raise UserError(f"{there} is no object of question, options and answer")
            options = _unlettered(list_in(row, "options", there))
            fields = {"question": text_in(row, "question", there), "options": options}
            fields |= {"answer": _option(text_in(row, "answer", there), options, there)}
            fields |= {"kind": text_in(row, "task_type", there), "id": f"{path.stem}_{number}"}
            part = {"start": 0.0, "end": _seconds(row.get("time_stamp"), there)}
            yield Published((path.as_posix(), path.name), {**fields, **part})


SETS: dict[str, Callable[[Path], Iterator[Published]]] = {
    "activitynet_qa": activitynet_qa,
    "ego_schema": ego_schema,
    "long_video_bench": long_video_bench,
    "mlvu": mlvu,
    "msrvtt_qa": msrvtt_qa,
    "msvd_qa": msvd_qa,
    "mv_bench": mv_bench,
    "next_qa": next_qa,
    "ovo_bench": ovo_bench,
    "streaming_bench": streaming_bench,
    "tgif_qa": tgif_qa,
    "video_mme": video_mme,
}
"""Name of a set -> reads one of its annotation files."""


def _seconds(value: Any, place: str) -> float:
    """A moment in seconds: a number, or HH:MM:SS."""
    parts = str(value).split(":")
    try:
        seconds = float(sum(float(part) * 60**i for i, part in enumerate(reversed(parts))))
    except ValueError:
        seconds = -1.0
    if isinstance(value, bool) or len(parts) > 3 or not 0 < seconds < float("inf"):
        raise UserError(f"{place}: the moment must be seconds or HH:MM:SS behind the start, got {str(value)[:20]!r}")
    return seconds


def _option(answer: Any, options: Sequence[str], place: str) -> str:
    """The option that a number from 0 on, or a letter, means."""
    word = str(answer).strip().rstrip(".")
    number = LETTERS.find(word) if len(word) == 1 and word.isalpha() else int(word) if word.isdecimal() else -1
    if not 0 <= number < len(options):
        raise UserError(f"{place}: the answer {word[:20]!r} is none of the {len(options)} options")
    return options[number]


def _unlettered(options: Sequence[str]) -> list[str]:
    """Options without ``A.``, ``B)``, … in front, where all have their own."""
    matches = [
        re.fullmatch(rf"\(?{letter}[.):]\s*(.*)", o, re.DOTALL) for letter, o in zip(LETTERS, options, strict=False)
    ]
    return [match[1].strip() for match in matches] if all(matches) and len(matches) == len(options) else list(options)
