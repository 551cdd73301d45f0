"""Measures every recipe of ``configs/recipes.py`` on one video-language model: one table, one picture.

    python -m videogen.train --config=understanding:size=debug --workdir=RUN
    python benchmarks/reducers.py --checkpoint=RUN --out=FOLDER [--recipes=random,tome --budgets=288,72]

A recipe without weights of its own is put before the trained model as it is. One with weights goes on from it for
``--steps`` steps, in ``FOLDER/runs``. Every row is asked the same held-out questions. Prints a JSON line for each row,
and writes ``rows.jsonl``, ``table.md`` and ``accuracy.png``; rows that ``rows.jsonl`` has are not measured again.

A row: ``tokens`` that enter the decoder, ``in_layers``, their mean over its layers, ``kept``, those that exist,
``chosen``, the share of questions whose likeliest option is right, ``error``, its standard error, ``by_kind``,
``written`` and ``unparsed`` of the answers that are written, ``picture``, the share of right answers about what one
place in time shows where the model sees that alone, ``gflops`` of the prompt in the decoder; where times are
measured, of one clip: seconds to ``see`` (encode and reduce what asks no question), to the ``first`` token (with what
asks), of ``each`` further one, and ``megabytes`` that reading the prompt takes beside the weights. Rows named
``no_video`` and ``oracle`` are all tokens hidden, and for each question the smallest nest of grids that answers it.
"""

import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

sys.path.insert(0, str(Path(__file__).parents[1]))

import videogen  # noqa: E402
from benchmarks.recipes import settings_of, with_recipe  # noqa: E402
from videogen import app  # noqa: E402
from videogen.configs.recipes import ALL, FULL, QUARTER, RECIPES, Recipe  # noqa: E402
from videogen.data.inputs import HeldOut, build_source, held_out  # noqa: E402
from videogen.data.questions import FLASH, parse_question  # noqa: E402
from videogen.environment import use_large_pages  # noqa: E402
from videogen.evaluation.answers import read_choice  # noqa: E402
from videogen.reporting.reducer_table import draw_accuracy, write_table  # noqa: E402
from videogen.training.loop import train  # noqa: E402

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Run of the trained model.", required=True)
OUT = flags.DEFINE_string("out", None, "Folder for the results.", required=True)
NAMES = flags.DEFINE_list("recipes", list(RECIPES), "Recipes to measure.")
BUDGETS = flags.DEFINE_list("budgets", [str(n) for n in (FULL, *ALL)], "Budgets to measure, in tokens.")
SAMPLES = flags.DEFINE_integer("samples", 512, "Questions.", lower_bound=1)
STEPS = flags.DEFINE_integer(
    "steps", 100, "Steps of recipes with weights of their own.", lower_bound=1, upper_bound=150
)
BATCH = flags.DEFINE_integer("batch", 32, "Questions at a time.", lower_bound=1)
KINDS = flags.DEFINE_list("kinds", None, "Kinds of questions; by default those of training that have options.")
STILL = ("colour", "form", "count", "background", "presence")
"""Kinds of questions about what one frame shows, but for those that name a direction or a flash."""
NESTED = ("all", "m3")
"""Recipes that are nests of each other, of which the oracle takes the smallest that answers."""
TEXTS = ("caption", "question", "answer", "wrong")
REPEATS = flags.DEFINE_integer("repeats", 5, "Timed runs of one clip; 0: no times.", lower_bound=0)


def trained(origin: Any, name: str, budget: int, recipe: Recipe, folder: Path) -> Any:
    """The run of a recipe with weights of its own, which goes on where it stopped."""
    config = settings_of(origin.config, recipe.chains[budget], recipe.hooks)
    config.steps = config.eval_every = config.checkpoint_every = STEPS.value
    config.start_from.run = str(origin.directory)
    config.optimizer.language.update({"learning_rate": 0.25 * config.optimizer.language.learning_rate, "warmup": 10})
    config.ema.decay = 0.95
    config.data.batch_size = 16
    train(config, folder / f"{name}_{budget}")
    loaded = videogen.load(folder / f"{name}_{budget}")
    loaded.task.texts = loaded.text
    return loaded


def questions(origin: Any, only: Sequence[str] = ()) -> tuple[list[dict[str, np.ndarray]], list[dict[str, Any]]]:
    """Batches of held-out questions with options, and their samples; of the kinds of training or, of these, some."""
    config = copy.deepcopy(origin.config)
    with config.unlocked(), config.ignore_type():
        kinds = KINDS.value or [kind for kind in dict.fromkeys(config.data.source.kinds) if kind != "describe"]
        config.data.source.kinds = tuple(kind for kind in kinds if not only or kind in only)
    found = held_out(build_source(config, "eval"), SAMPLES.value, origin.text)
    return found.batches(BATCH.value, origin.text), found.samples


def replies(answerer: Any, batches: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What is found of every question, and how many tokens there were."""
    parts = [answerer.measured(dict(batch)) for batch in batches]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def row(
    name: str, budget: int, found: dict[str, np.ndarray], options: list[Sequence[str]], **more: Any
) -> dict[str, Any]:
    """A row of the table from what was found of every question."""
    right, closed = found["right"][found["options"] > 0], found["options"] > 0
    share = float(right.mean())
    kinds = {
        kind: float(found["right"][closed & (found["kind"] == kind)].mean())
        for kind in sorted(set(found["kind"][closed]))
    }
    return {
        "recipe": name,
        "budget": budget,
        "chosen": share,
        "error": float(np.sqrt(share * (1 - share) / len(right))),
        "chance": float((1 / found["options"][closed]).mean()),
        "written": float(found["open"][closed].mean()),
        "unparsed": float(
            np.mean([read_choice(str(s), o) is None for s, o in zip(found["said"], options, strict=True)])
        ),
        "questions": len(right),
        "by_kind": kinds,
        **more,
    }


def hidden(batches: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """Questions without their clips: no frame exists."""
    return [{**b, "frame_mask": np.zeros(b["video"].shape[:2], bool)} for b in batches]


def pictures(origin: Any) -> list[dict[str, np.ndarray]]:
    """Batches of questions about what one place in time shows, of which all others are hidden."""
    batches, samples = questions(origin, STILL)
    still = [parse_question(sample["question"]).by not in ("direction", FLASH) for sample in samples]
    found = HeldOut([s for s, own in zip(samples, still, strict=True) if own], len(samples), {}, TEXTS)
    places = [round(c) for c in origin.task.answering(origin.modules).centres]
    middle = places[len(places) // 2]
    shown = np.arange(origin.config.data.clip.frames) == middle
    return [
        {**batch, "frame_mask": np.broadcast_to(shown, batch["video"].shape[:2])}
        for batch in found.batches(BATCH.value, origin.text)
    ]


def times(answerer: Any, batch: dict[str, np.ndarray]) -> dict[str, float]:
    """Of one clip and question: medians of seconds, and memory."""
    one = {name: jnp.asarray(array[:1]) for name, array in batch.items() if name in ("video", "times")}
    asked = {name: jnp.asarray(batch[name][:1]) for name in ("question_ids", "question_mask")}
    states = answerer.states
    see = jax.jit(answerer.see).lower(states, one).compile()
    seen, seeing = median(lambda: see(states, one))
    begin = jax.jit(answerer.begun).lower(states, seen, asked).compile()
    (state, _, _), first = median(lambda: begin(states, seen, asked))
    further = jax.jit(answerer.gone_on, static_argnames="clips").lower(states, state, clips=1).compile()
    (ids, _), whole = median(lambda: further(states, state))
    memory = begin.memory_analysis().temp_size_in_bytes / 2**20
    return {"see": seeing, "first": seeing + first, "each": whole / (ids.shape[1] + 1), "megabytes": memory}


def median(run: Callable[[], Any]) -> tuple[Any, float]:
    """What is computed, and the median of the seconds it takes."""
    seconds, found = [], jax.block_until_ready(run())
    for _ in range(REPEATS.value):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return found, statistics.median(seconds)


def measured(origin: Any, folder: Path, known: set[tuple[str, int]]) -> Iterator[dict[str, Any]]:
    """The rows that are not known."""
    batches, samples = questions(origin)
    stills = pictures(origin)
    options = [sample["options"] for sample in samples]
    budgets = {FULL, *map(int, BUDGETS.value)}
    runs: dict[str, Any] = {}
    nests: dict[int, np.ndarray] = {}
    # What others take their weights from comes first.
    order = sorted(NAMES.value, key=lambda name: bool(RECIPES[name].weights))
    for name in order:
        recipe = RECIPES[name]
        for budget, chain in recipe.chains.items():
            nested = name in NESTED and ("oracle", 0) not in known
            if budget not in budgets or ((name, budget) in known and not nested):
                continue
            if recipe.trained:
                runs[name] = loaded = trained(origin, name, budget, recipe, folder / "runs")
                task, modules = loaded.task, loaded.modules
            else:
                giver = origin
                if recipe.weights:
                    source = RECIPES[recipe.weights]
                    there = next(iter(source.chains))
                    giver = runs.setdefault(
                        recipe.weights, trained(origin, recipe.weights, there, source, folder / "runs")
                    )
                task, modules = with_recipe(giver, chain, recipe.hooks)
            answerer = task.answering(modules)
            found = replies(answerer, batches)
            if nested:
                nests[answerer.shape.tokens] = found["right"]
            if (name, budget) in known:
                continue
            costs = answerer.costs()
            more = {"tokens": costs["visual_tokens"], "in_layers": costs["visual_tokens_in_layers"]}
            seen = replies(answerer, stills)
            more["picture"] = float(seen["right"][seen["options"] > 0].mean())
            more |= {"gflops": costs["prompt_gflops"], "trained": recipe.trained, "idea": recipe.idea}
            if REPEATS.value and budget in (FULL, QUARTER):
                more |= times(answerer, batches[0])
            yield row(name, budget, found, options, **more)
            if name == "all" and ("no_video", 0) not in known:
                yield row("no_video", 0, replies(answerer, hidden(batches)), options, tokens=0.0, in_layers=0.0)
    if len(nests) > 2 and ("oracle", 0) not in known:
        yield oracle(nests, found, options)


def oracle(nests: dict[int, np.ndarray], found: dict[str, np.ndarray], options: list[Sequence[str]]) -> dict[str, Any]:
    """For every question the smallest nest of grids whose answer is right; all tokens where none is."""
    sizes = sorted(nests)
    right = np.stack([nests[size] for size in sizes])
    least = np.where(right.any(0), right.argmax(0), len(sizes) - 1)
    tokens = float(np.array(sizes)[least].mean())
    best = {**found, "right": right.any(0)}
    return row("oracle", 0, best, options, tokens=tokens, in_layers=tokens)


def main() -> None:
    """Measures, prints and draws."""
    use_large_pages()
    folder = Path(OUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    origin = videogen.load(CHECKPOINT.value)
    with path.open("a") as file:
        for one in measured(origin, folder, {(r["recipe"], r["budget"]) for r in rows}):
            rows.append(one)
            file.write(json.dumps(one) + "\n")
            file.flush()
            print(json.dumps(one), flush=True)
    write_table(rows, folder / "table.md")
    draw_accuracy(rows, folder / "accuracy.png")


if __name__ == "__main__":
    app.run(main)
