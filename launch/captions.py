"""Turns a published set of captioned videos into the captions.jsonl that the source video_folder reads.

    python launch/captions.py --dataset=msrvtt --annotations=MSRVTT_data.json --videos=VIDEOS

Sets: activitynet, didemo, lsmdc, msrvtt, msvd. --annotations is the file as it is published, or a folder of such files.
A video is found by its path below --videos or, with or without its ending, by its name alone. Captions whose video is
not there, or there twice, are left out, counted and named. --list keeps the videos of a split alone: a file of names,
one a line, or a csv file with a column video_id (MSRVTT_train.9k.csv).

--rule says what a line has of a video with several captions: all (training draws one each time), the first, or all
joined to a paragraph. By default it is the one that the papers of the set measure with: paragraph of didemo and
activitynet, all of the others.

The file is --out, by default captions.jsonl in the folder of the videos; an existing one is replaced at the end, as a
whole. Then train or evaluate with --config.data.source.name=video_folder --config.data.source.path=VIDEOS.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).parents[1]))

from videogen import app  # noqa: E402
from videogen.data.caption_conversion import RULES, convert_captions  # noqa: E402
from videogen.data.caption_sets import SETS  # noqa: E402
from videogen.data.captions import CAPTIONS  # noqa: E402
from videogen.errors import UserError, near_matches  # noqa: E402

SET = flags.DEFINE_string("dataset", None, f"Name of the set: {', '.join(SETS)}.")
ANNOTATIONS = flags.DEFINE_string("annotations", None, "Its annotation file, or a folder of them.")
VIDEOS = flags.DEFINE_string("videos", None, "Folder of the videos.")
OUT = flags.DEFINE_string("out", None, "File to write; by default captions.jsonl in the folder of the videos.")
RULE = flags.DEFINE_string("rule", "", f"Caption rule: {', '.join(RULES)}; by default that of the set.")
LIST = flags.DEFINE_string("list", "", "File of the names of the videos that are wanted; by default all.")


def main() -> None:
    """Runs the command."""
    for flag in (SET, ANNOTATIONS, VIDEOS):
        if not flag.value:
            raise UserError(f"--{flag.name} is missing; see --help")
    if SET.value not in SETS:
        raise UserError(f"unknown set {SET.value!r}{near_matches(SET.value, SETS)}")
    if RULE.value and RULE.value not in RULES:
        raise UserError(f"unknown caption rule {RULE.value!r}{near_matches(RULE.value, RULES)}")
    out = OUT.value or str(Path(VIDEOS.value) / CAPTIONS)
    convert_captions(SET.value, ANNOTATIONS.value, VIDEOS.value, out, RULE.value, LIST.value)


if __name__ == "__main__":
    app.run(main)
