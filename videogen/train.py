"""Trains one stage of a system, or goes on where it stopped.

    python -m videogen.train --config=phenaki:stage=tokenizer,size=debug --workdir=runs/tokenizer

Any key of the config is a flag: --config.steps=2000 --config.data.batch_size=16
--config.data.source.name=video_folder --config.data.source.path=my_videos
The run directory describes itself: config.json, checkpoints/, metrics.jsonl, tensorboard/, samples/, report.html.
Start the same command again to resume; SIGTERM saves and exits 0. Several processes (SLURM, GKE, TPU pods, or the flags
--coordinator_address, --process_count, --process_index) train one model over all their devices and share the directory.
"""

from absl import flags, logging
from etils import epath
from ml_collections import config_flags

from videogen import app
from videogen.configuration import remote_errors

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "FILE:stage=…,size=… of the stage to train, e.g. phenaki:stage=tokenizer,size=debug"
)
WORKDIR = flags.DEFINE_string("workdir", None, "Run directory; created, or resumed when it exists.")
PROFILE = flags.DEFINE_string(
    "profile", None, "START:COUNT: trace COUNT steps after the START-th, for TensorBoard or xprof."
)
INTERRUPTED = flags.DEFINE_integer(
    "interrupted_exit_code", 0, "Exit code after a save on SIGTERM; launchers set one that makes them start again."
)
flags.adopt_module_key_flags(app)
flags.mark_flags_as_required(["config", "workdir"])


def main() -> None:
    """Runs the command."""
    # Imported late so that --help and bad flags answer at once.
    import jax

    from videogen.reporting.run_page import write_run_report
    from videogen.runs.profiling import parse_window
    from videogen.runs.records import FILE, last_result, read_metrics
    from videogen.runs.stops import Interrupted, Stopped, storage_errors
    from videogen.training.loop import train
    from videogen.training.workdir import data_of_tokenizer

    with remote_errors(WORKDIR.value):
        epath.Path(WORKDIR.value).exists()
    data_of_tokenizer(CONFIG.value, WORKDIR.value, config_flags.get_override_values(flags.FLAGS["config"]))
    try:
        run = train(CONFIG.value, WORKDIR.value, parse_window(PROFILE.value))
        if run.changed and jax.process_index() == 0:
            with storage_errors(run.workdir, "make room there; the checkpoints are complete"):
                captions = [sample.get("caption", "") for sample in run.start.evaluated.samples]
                write_run_report(run.workdir, run.config, run.pictures, captions)
    except Interrupted as stop:
        logging.info("%s", stop)
        raise SystemExit(INTERRUPTED.value) from stop
    except Stopped as stop:
        app.stop(stop)
    result = last_result(read_metrics(run.workdir / FILE))
    logging.info("finished %d steps%s; open %s/report.html", int(run.state["step"]), result, run.workdir)


if __name__ == "__main__":
    app.run(main, distributed=True)
