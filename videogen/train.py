"""Trains one stage of a system, or goes on where it stopped.

    python -m videogen.train --config=configs/phenaki.py:stage=tokenizer,size=debug --workdir=runs/tokenizer

Any key of the config is a flag: --config.steps=2000 --config.data.batch_size=16
--config.data.source.name=video_folder --config.data.source.path=my_videos
The run directory describes itself: config.json, checkpoints/, metrics.jsonl, tensorboard/, samples/. Start the same
command again to resume; SIGTERM saves and exits 0.
"""

import sys

from absl import flags, logging
from ml_collections import config_flags

from videogen import app

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "FILE:stage=…,size=… of the stage to train, e.g. configs/phenaki.py:stage=tokenizer,size=debug"
)
WORKDIR = flags.DEFINE_string("workdir", None, "Run directory; created, or resumed when it exists.")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    # Imported late so that --help and bad flags answer at once.
    from videogen.training.loop import Interrupted, NotFinite, train

    try:
        run = train(CONFIG.value, WORKDIR.value)
    except Interrupted as stop:
        logging.info("%s", stop)
        sys.exit(0)
    except NotFinite as stop:
        print(f"error: {stop}", file=sys.stderr)
        sys.exit(app.STOPPED)
    logging.info("finished %d steps in %s", int(run.state["step"]), run.workdir)


if __name__ == "__main__":
    app.run(main)
