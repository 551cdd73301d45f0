"""Measures prompt programs on one video-language model of shapes: what they change, and what that costs.

    python benchmarks/programs.py --checkpoint=RUN --out=FOLDER [--questions=128]

The text model is a rule over the grammar of questions about shapes (``language.shape_rules``). ``decompose`` is asked
with all tokens. ``decouple`` says how many tokens each place in time is given, so it is asked with the recipe
``quota``, beside the same budget spread evenly. Prints a JSON line for each row, and writes ``programs.json``.

A row: ``program``, ``tokens`` of a clip that are read, ``right``, the share of questions whose likeliest option is
right, ``error``, its standard error, ``changed`` against the row before of the same tokens, ``by_kind``, and means for
a question: ``asked`` (prompts beside the question), ``extra_tokens`` of their answers, ``extra_seconds`` they take,
and ``seconds`` of the question itself.
"""

import copy
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from absl import flags

sys.path.insert(0, str(Path(__file__).parents[1]))

import videogen  # noqa: E402
from benchmarks.recipes import with_recipe  # noqa: E402
from videogen import app  # noqa: E402
from videogen.configs.recipes import QUARTER, RECIPES, TENTH  # noqa: E402
from videogen.data.inputs import build_source, held_out  # noqa: E402
from videogen.data.questions import parse_question  # noqa: E402
from videogen.data.text import FileTokenizer  # noqa: E402
from videogen.environment import use_large_pages  # noqa: E402
from videogen.errors import UserError  # noqa: E402
from videogen.inference.programs import Asked  # noqa: E402
from videogen.language.asking import run  # noqa: E402
from videogen.language.programs import Program, build_program  # noqa: E402
from videogen.language.shape_rules import decouple_shapes, shape_rules  # noqa: E402

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Run of a video-language model of shapes.", required=True)
OUT = flags.DEFINE_string("out", None, "Folder for the results.", required=True)
QUESTIONS = flags.DEFINE_integer("questions", 128, "Questions of a row.", lower_bound=1)
LENGTH = flags.DEFINE_integer("length", 40, "Tokens of a prompt at most.", lower_bound=16)


def options(prompt: str) -> tuple[str, ...]:
    """The possible answers of a question about shapes, which may stand behind other words; none of another text."""
    for start in (i for i in range(len(prompt)) if not i or prompt[i - 1] == " "):
        try:
            return parse_question(prompt[start:]).options
        except UserError:
            continue
    return ()


def row(name: str, program: Program, ask: Asked, samples: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
    """What a program finds of held-out questions."""
    right, kinds = [], defaultdict(list)
    costs = {"asked": [], "extra_tokens": [], "extra_seconds": [], "seconds": []}
    for number, sample in enumerate([samples[0], *samples]):
        video = {"video": sample["video"], "times": sample["times"]}
        duration = float(sample["times"][-1])
        found = run(program, ask, shape_rules, video, sample["question"], duration=duration, times=ask.times(video))
        # The first question compiles what is asked, and is asked again.
        if number:
            right.append(found.answer.text == sample["answer"])
            kinds[sample["kind"]].append(right[-1])
            spent = len(found.exchanges) - 1, found.extra_tokens, found.extra_seconds, found.answer.seconds
            for cost, value in zip(costs, spent, strict=True):
                costs[cost].append(value)
    share = float(np.mean(right))
    return {
        "program": name,
        "tokens": tokens,
        "right": share,
        "error": float(np.sqrt(share * (1 - share) / len(right))),
        "questions": len(right),
        "by_kind": {kind: float(np.mean(own)) for kind, own in sorted(kinds.items())},
        **{cost: float(np.mean(own)) for cost, own in costs.items()},
    }


def measured(origin: Any, report: Callable[[dict[str, Any]], None]) -> None:
    """Reports the rows one after another."""
    config = copy.deepcopy(origin.config)
    config.text.tokenizer.length = LENGTH.value
    text = FileTokenizer(origin.directory / "text_tokenizer", LENGTH.value)
    origin = SimpleNamespace(config=config, text=text, modules=origin.modules)
    samples = held_out(build_source(config, "eval"), QUESTIONS.value, text).samples
    even, searched = build_program({"name": "plain"}), decouple_shapes()
    rows = [("all", max(RECIPES["all"].chains), {"plain": even, "decompose": build_program({"name": "decompose"})})]
    rows += [("quota", tokens, {"evenly": even, "decouple": searched}) for tokens in (QUARTER, TENTH)]
    for recipe, tokens, programs in rows:
        task, modules = with_recipe(origin, RECIPES[recipe].chains[tokens])
        ask, before = Asked(task.answering(modules), text, options, evenly=recipe == "quota"), None
        for name, program in programs.items():
            found = row(name, program, ask, samples, tokens)
            before, found["changed"] = found["right"], 0.0 if before is None else found["right"] - before
            report(found)


def main() -> None:
    """Asks, prints and writes."""
    use_large_pages()
    folder = Path(OUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []

    def report(found: dict[str, Any]) -> None:
        rows.append(found)
        print(json.dumps(found), flush=True)
        (folder / "programs.json").write_text(json.dumps(rows, indent=2) + "\n")

    measured(videogen.load(CHECKPOINT.value), report)


if __name__ == "__main__":
    app.run(main)
