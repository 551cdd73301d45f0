"""Looks for needles in long videos with a video-language model: a heat map over lengths and depths (NIAVH).

    python benchmarks/haystack.py --checkpoint=RUN --out=FOLDER [--lengths=4,8,16 --depths=6 --questions=8]

A needle is a symbol that ``--needle`` seconds of the video show alone; the model sees the frames of its clip, spread
over the whole video, and is asked for the symbol's colour or form. Prints a JSON line for each place, and writes
``haystack.json`` and ``haystack.png``.
"""

import copy
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

sys.path.insert(0, str(Path(__file__).parents[1]))

import videogen  # noqa: E402
from videogen import app  # noqa: E402
from videogen.data.inputs import HeldOut, build_source, held_out  # noqa: E402
from videogen.environment import use_large_pages  # noqa: E402
from videogen.evaluation.haystack import haystacks, heat_map  # noqa: E402
from videogen.reporting.heat_map import write_heat_map  # noqa: E402

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Run of a video-language model.", required=True)
OUT = flags.DEFINE_string("out", None, "Folder for the results.", required=True)
LENGTHS = flags.DEFINE_list("lengths", ["4", "6", "8", "12", "16", "24", "32", "48", "64", "96"], "Seconds of videos.")
DEPTHS = flags.DEFINE_integer("depths", 6, "Places of the needle, from the first to the last second.", lower_bound=2)
QUESTIONS = flags.DEFINE_integer("questions", 16, "Questions at each place.", lower_bound=1)
NEEDLE = flags.DEFINE_float("needle", 1.0, "Seconds that a needle lasts.", lower_bound=0.1)
BATCH = flags.DEFINE_integer("batch", 32, "Questions at a time.", lower_bound=1)


def samples_at(loaded: "videogen.Loaded", settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Held-out questions about needles."""
    config = copy.deepcopy(loaded.config)
    with config.unlocked(), config.ignore_type():
        config.data.source.update(settings)
    return held_out(build_source(config, "eval"), QUESTIONS.value, loaded.text).samples


def main() -> None:
    """Asks, prints and draws."""
    use_large_pages()
    folder = Path(OUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    loaded = videogen.load(CHECKPOINT.value)
    answerer, clip = loaded.task.answering(loaded.modules), loaded.config.data.clip
    asked = [*map(float, LENGTHS.value)], np.linspace(0, 1, DEPTHS.value).tolist()
    places = haystacks(clip.frames, clip.fps, *asked, NEEDLE.value)
    samples = [samples_at(loaded, settings) for _, _, settings in places]
    everything = HeldOut([sample for own in samples for sample in own], 0, {}, ("caption", "question", "answer"))
    batches = everything.batches(BATCH.value, loaded.text)
    right = iter(np.concatenate([answerer.measured(batch)["right"] for batch in batches]).tolist())
    found = heat_map(
        (length, depth, next(right)) for (length, depth, _), own in zip(places, samples, strict=True) for _ in own
    )
    record = found.record() | {"needle": NEEDLE.value, "frames": clip.frames}
    print(json.dumps(record))
    (folder / "haystack.json").write_text(json.dumps(record) + "\n")
    title = f"needles of {NEEDLE.value:g} s in {clip.frames} frames, {QUESTIONS.value} questions a place"
    write_heat_map(folder / "haystack.png", found, title)


if __name__ == "__main__":
    app.run(main)
