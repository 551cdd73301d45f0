"""Exports a trained stage as weights and its config: for videogen.load, or for the classes of diffusers.

python -m videogen.export --checkpoint=runs/tokenizer --format=safetensors --out=exports/tokenizer
python -m videogen.export --checkpoint=runs/tokenizer --format=diffusers --out=exports/vae
"""

from absl import flags, logging

from videogen import app

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Run directory (or export, or published folder) to read.")
FORMAT = flags.DEFINE_enum(
    "format",
    "safetensors",
    ["safetensors", "diffusers"],
    "What to write. safetensors: model.safetensors, frozen/ and config.json, which videogen.load reads anywhere. "
    "diffusers: config.json and diffusion_pytorch_model.safetensors (float32) of a tokenizer, or the folders "
    "transformer and vae of a generator, which the from_pretrained of their classes read; of models that diffusers "
    "has a class for (docs/public_weights.md).",
)
OUT = flags.DEFINE_string("out", None, "Directory to write to.")
flags.mark_flags_as_required(["checkpoint", "out"])


def main() -> None:
    """Runs the command."""
    from videogen.training.folders import export_diffusers
    from videogen.training.loading import export_safetensors, load

    loaded = load(CHECKPOINT.value)
    if FORMAT.value == "diffusers":
        for line in export_diffusers(loaded, OUT.value):
            logging.info("%s", line)
        return
    exported = export_safetensors(loaded, OUT.value)
    logging.info("wrote step %d, weights %s, to %s", exported.step, exported.hash[:12], OUT.value)


if __name__ == "__main__":
    app.run(main)
