"""Exports a trained stage: for videogen.load, for the classes of diffusers, or as programs that run without videogen.

python -m videogen.export --checkpoint=runs/tokenizer --format=safetensors --out=exports/tokenizer
python -m videogen.export --checkpoint=runs/tokenizer --format=diffusers --out=exports/vae
python -m videogen.export --checkpoint=runs/tokenizer --format=stablehlo --clip=17x256x256 --out=exports/programs
"""

from absl import flags, logging

from videogen import app

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Run directory (or export, or published folder) to read.")
FORMAT = flags.DEFINE_enum(
    "format",
    "safetensors",
    ["safetensors", "diffusers", "stablehlo"],
    "What to write. safetensors: model.safetensors, frozen/ and config.json, which videogen.load reads anywhere. "
    "diffusers: config.json and diffusion_pytorch_model.safetensors (float32) of a tokenizer, or the folders "
    "transformer and vae of a generator, which the from_pretrained of their classes read; of models that diffusers "
    "has a class for (docs/public_weights.md). stablehlo: programs that run without videogen (encode and decode of a "
    "tokenizer, a denoising step of a generator of latents), their weights and a manifest.",
)
LORAS = flags.DEFINE_multi_string("lora", None, "FILE or FILE=STRENGTH: published updates that are merged.")
LORA_WITHOUT = flags.DEFINE_list("lora_without", [], "Patterns of tensors of these files that may be left out.")
CLIP = flags.DEFINE_string("clip", None, "FRAMESxHEIGHTxWIDTH that programs of a tokenizer are for.")
PLATFORMS = flags.DEFINE_list("platforms", ["cpu", "cuda", "tpu"], "What programs are lowered for.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Clips that a program takes.", lower_bound=1)
OUT = flags.DEFINE_string("out", None, "Directory to write to.")
flags.mark_flags_as_required(["checkpoint", "out"])


def main() -> None:
    """Runs the command."""
    from videogen.encoders.lora_files import read_lora
    from videogen.errors import UserError
    from videogen.inference.files import use_clip
    from videogen.training.folders import export_diffusers
    from videogen.training.loading import export_safetensors, load
    from videogen.training.programs import export_stablehlo

    for flag in (CLIP, PLATFORMS, BATCH_SIZE):
        if flag.present and FORMAT.value != "stablehlo":
            raise UserError(f"--{flag.name} is for --format=stablehlo")
    loaded = load(CHECKPOINT.value, loras=[read_lora(text, LORA_WITHOUT.value) for text in LORAS.value or []])
    if FORMAT.value == "stablehlo":
        if CLIP.value:
            use_clip(loaded, CLIP.value)
        export_stablehlo(loaded, OUT.value, PLATFORMS.value, BATCH_SIZE.value)
        logging.info("wrote programs, weights and manifest.json to %s", OUT.value)
        return
    if FORMAT.value == "diffusers":
        for line in export_diffusers(loaded, OUT.value):
            logging.info("%s", line)
        return
    exported = export_safetensors(loaded, OUT.value)
    logging.info("wrote step %d, weights %s, to %s", exported.step, exported.hash[:12], OUT.value)


if __name__ == "__main__":
    app.run(main)
