"""Turns a published set of questions about videos into the questions.jsonl that the source question_folder reads.

    python launch/questions.py --dataset=next_qa --annotations=val.csv --videos=VIDEOS --out=VIDEOS/questions.jsonl

Sets: activitynet_qa, ego_schema, long_video_bench, mlvu, msrvtt_qa, msvd_qa, mv_bench, next_qa, ovo_bench,
streaming_bench, tgif_qa, video_mme.
--annotations is the file as it is published, or a folder of such files (mv_bench and mlvu have one for each task); of
parquet files give the export to JSON lines. Answers are read from the file that is published beside it where there is
one (ego_schema: subset_answers.json, activitynet_qa: test_a.json), names of videos from youtube_mapping.txt (msvd_qa).
A video is found by its path below --videos or, with or without its ending, by its name alone. Questions whose video is
not there, or there twice, are left out, counted and named.

Every line is one question, {"video": …, "question": …, "answer": …, "options": […], "kind": …, "id": …, "start": …,
"end": …}; options are missing where an answer is open, the answer where it is not published. Then train or evaluate
with --config.data.source.name=question_folder --config.data.source.path=VIDEOS.

--whole_videos leaves out the parts (start, end) of videos that are cut already. An existing --out is replaced at the
end, as a whole.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.insert(0, str(Path(__file__).parents[1]))

from videogen import app  # noqa: E402
from videogen.data.question_conversion import convert  # noqa: E402
from videogen.data.question_sets import SETS  # noqa: E402
from videogen.errors import UserError, near_matches  # noqa: E402

SET = flags.DEFINE_string("dataset", None, f"Name of the set: {', '.join(SETS)}.")
ANNOTATIONS = flags.DEFINE_string("annotations", None, "Its annotation file, or a folder of them.")
VIDEOS = flags.DEFINE_string("videos", None, "Folder of the videos.")
OUT = flags.DEFINE_string("out", None, "File to write.")
WHOLE_VIDEOS = flags.DEFINE_bool("whole_videos", False, "Leave out the parts of videos that questions name.")


def main() -> None:
    """Runs the command."""
    for flag in (SET, ANNOTATIONS, VIDEOS, OUT):
        if not flag.value:
            raise UserError(f"--{flag.name} is missing; see --help")
    if SET.value not in SETS:
        raise UserError(f"unknown set {SET.value!r}{near_matches(SET.value, SETS)}")
    convert(SET.value, ANNOTATIONS.value, VIDEOS.value, OUT.value, whole_videos=WHOLE_VIDEOS.value)


if __name__ == "__main__":
    app.run(main)
