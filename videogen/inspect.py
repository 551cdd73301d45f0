"""Says what a file or folder is: the model in it, its size, its rules, and what it needs to run.

    python -m videogen.inspect Wan2.1_VAE.pth [--clip=17x480x832] [--memory]
    python -m videogen.inspect runs/tokenizer runs/generator

Reads runs, exports, and what others have published (docs/public_weights.md). Weights are not loaded; nothing in a file
is executed. --memory compiles encoding and decoding for this machine, which takes up to minutes for large models, and
says what they need besides the weights.
"""

from absl import flags

from videogen import app

CLIP = flags.DEFINE_string("clip", None, "FRAMESxHEIGHTxWIDTH of a clip; by default that of the run, or 256 pixels.")
MEMORY = flags.DEFINE_bool("memory", False, "Compile, to say how much memory encoding and decoding take.")


def main(paths: list[str]) -> None:
    """Runs the command."""
    from videogen.errors import UserError
    from videogen.inference.inspection import inspect

    if not paths:
        raise UserError("name a file or folder: python -m videogen.inspect PATH")
    for path in paths:
        found = inspect(path, CLIP.value, memory=MEMORY.value)
        print("\n".join(f"{name + ':':<20} {value}" for name, value in found.items()))


if __name__ == "__main__":
    app.run(main, takes_files=True)
