"""Trains a stand-in for a public network on the shapes source, in minutes on two cores.

    python -m videogen.stand_in --kind=classifier --out=stand_ins/classifier
    python -m videogen.stand_in --kind=captions --out=stand_ins/captions

classifier: a small 3-D network that tells colour, form and direction of a moving shape; a semantic teacher, and the
network of the preset frechet.shapes_stand_in. The one that comes with videogen was made by the first command.
captions: a small language model of captions; it stands for the language models of video-language systems.

Both are called stand-ins wherever they are used: a number that they give is compared with numbers of the same stand-in
alone. The folder holds model.safetensors, config.json (with command, commit, seed and what was measured on held-out
clips), the text tokenizer of the language model, and the training run in run/, which goes on after a stop. It is read
as any published network:

    from videogen import encoders
    network = encoders.load("shapes_classifier", "stand_ins/classifier")

The stages are those of --config=stand_ins:stage=classifier|captions; videogen.train trains them on other data, too.
"""

import json
import shlex
import shutil
import sys
from pathlib import Path

from absl import flags, logging

from videogen import app
from videogen.configuration import check_writable, stage_config

KIND = flags.DEFINE_enum("kind", None, ["classifier", "captions"], "Which stand-in.")
OUT = flags.DEFINE_string("out", None, "Folder to write.")
SEED = flags.DEFINE_integer("seed", 0, "Decides weights and clips.", lower_bound=0)
STEPS = flags.DEFINE_integer("steps", None, "Training steps, if not those of the config.", lower_bound=1)
flags.mark_flags_as_required(["kind", "out"])

HELD_OUT = 512
"""Clips or captions that the stand-in is measured on."""


def main() -> None:
    """Runs the command."""
    # Imported late so that --help and bad flags answer at once.
    from videogen.data.inputs import TEXT_DIRECTORY, build_source, held_out
    from videogen.evaluation.origin import commit, hardware
    from videogen.tasks.stand_ins import grammar
    from videogen.training.loading import load
    from videogen.training.loop import train

    made = {"command": shlex.join(["python", "-m", "videogen.stand_in", *sys.argv[1:]]), "commit": commit()}
    check_writable(OUT.value, "--out", directory=True)
    config = stage_config(f"stand_ins:stage={KIND.value}")
    config.seed = SEED.value
    if STEPS.value is not None:
        config.steps = config.eval_every = config.checkpoint_every = STEPS.value
    out = Path(OUT.value)
    train(config, out / "run")
    loaded = load(out / "run")
    source = build_source(loaded.config, "eval")
    batches = held_out(source, HELD_OUT).batches(loaded.config.data.eval_batch_size, loaded.text)
    metrics = loaded.task.evaluate(loaded.modules, batches, SEED.value)
    if KIND.value == "captions":
        metrics |= grammar(metrics, build_source(loaded.config, "train"), source)
        shutil.copytree(out / "run" / TEXT_DIRECTORY, out / TEXT_DIRECTORY, dirs_exist_ok=True)
    made |= {
        "hardware": hardware(),
        "seed": SEED.value,
        "steps": loaded.step,
        "held_out": {"count": HELD_OUT, **metrics},
    }
    settings = {**loaded.config.model.to_dict(), **loaded.task.sizes()}
    del settings["name"]
    loaded.trained.save(out, settings, made)
    logging.info("wrote %s\n%s", out, json.dumps(made, indent=2))


if __name__ == "__main__":
    app.run(main)
