"""Exports a trained stage as safetensors and its config: a directory that videogen.load reads anywhere.

python -m videogen.export --checkpoint=runs/tokenizer --format=safetensors --out=exports/tokenizer
"""

from absl import flags, logging

from videogen import app

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Run directory (or export) to read.")
FORMAT = flags.DEFINE_enum("format", "safetensors", ["safetensors"], "What to write.")
OUT = flags.DEFINE_string("out", None, "Directory to write model.safetensors, frozen/ and config.json to.")
flags.mark_flags_as_required(["checkpoint", "out"])


def main() -> None:
    """Runs the command."""
    from videogen.training.loading import export_safetensors, load

    exported = export_safetensors(load(CHECKPOINT.value), OUT.value)
    logging.info("wrote step %d, weights %s, to %s", exported.step, exported.hash[:12], OUT.value)


if __name__ == "__main__":
    app.run(main)
