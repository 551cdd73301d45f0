"""Draws videos from prompts or labels, or continues or completes a given video.

    python -m videogen.sample --checkpoint=runs/generator --prompt="a red circle moves left" --out=samples
    python -m videogen.sample --checkpoint=runs/generator --label=3 --count=8 --out=samples
    python -m videogen.sample --checkpoint=runs/generator --video=clip.mp4 --out=samples
    python -m videogen.sample --checkpoint=runs/generator --task=inpaint --video=clip.mp4 --out=samples
    python -m videogen.sample --checkpoint=Wan2.1-T2V-1.3B-Diffusers --lora=style.safetensors=0.8 --prompt="A cat." \\
        --frames=33 --size=480x832 --out=samples

--out is a directory, or a file of one video (.mp4, .gif, .png) or of several (.npz). What the videos were made from
stands beside them as JSON. --prompts=FILE has a prompt on each line. --set=KEY=VALUE is any setting of the sampler:
--set=attention.name=svg2 --set=attention.top_p=0.9 draws with sparse attention.

Several --prompt or --label flags give several videos, --count so many of each. With --story the prompts are one video:
each holds for one window, in order. --frames beyond the training window slides it; --image animates a picture, or says
who signs (--config=signvip), --video is continued from its first --given frames. The same seed gives the same videos. A
killed command goes on where it stopped: finished batches, and what was drawn but not decoded, stay in OUT.parts/ until
the end.

--checkpoint may be a folder that others have published (docs/public_weights.md), and --lora a published file of
low-rank updates for it. One line says how many of its tensors were used.

A generator that was trained with config.tasks (--config=magvit) completes a window of --video by --task:
frame_prediction, interpolation, outpaint_central, outpaint_vertical, outpaint_horizontal, outpaint_dynamic,
inpaint_central, inpaint_dynamic; conditional_prediction and conditional_generation may have a --prompt. inpaint,
outpaint, interpolate and predict are short for inpaint_central, outpaint_central, interpolation and frame_prediction.
Beside each sample stands side_by_side_*.mp4: the video, what was given of it, the sample. With --nopaste given pixels,
too, are what the tokenizer makes of them.

A language model over streams (--config=language) also says what a video shows: --caption --video=FILE prints --count
texts of its first clip, which stand in OUT/captions.json as well. With --story it writes the texts of the clips whose
--prompt is left out (--frames says how many clips there are).
"""

from absl import flags, logging

from videogen import app
from videogen.configuration import check_writable, read_settings
from videogen.errors import UserError

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Run directory or export of a generator, or a published folder.")
LORAS = flags.DEFINE_multi_string("lora", None, "FILE or FILE=STRENGTH: published updates of a published folder.")
LORA_WITHOUT = flags.DEFINE_list("lora_without", [], "Patterns of tensors of these files that may be left out.")
PROMPT = flags.DEFINE_multi_string("prompt", None, "What to show; repeat for several videos.")
PROMPTS = flags.DEFINE_string("prompts", None, "Text file with a prompt on each line.")
LABEL = flags.DEFINE_multi_string("label", None, "Number or name of a class; repeat for several videos.")
COUNT = flags.DEFINE_integer("count", 1, "Videos of each prompt or label, or in all without any.", lower_bound=1)
STORY = flags.DEFINE_bool("story", False, "Take the prompts as one video's story, a window each.")
FRAMES = flags.DEFINE_integer("frames", None, "Length; by default one window, or one per story prompt.", lower_bound=1)
OVERLAP = flags.DEFINE_integer("overlap", None, "Frames kept at every slide of the window.", lower_bound=1)
IMAGE = flags.DEFINE_string("image", None, "Picture or clip whose first frame the videos start with.")
SIZE = flags.DEFINE_string("size", None, "HEIGHTxWIDTH in pixels, where a generator draws others than in training.")
FPS = flags.DEFINE_float(
    "fps", None, "Frames per second that a generator with positions in seconds draws.", lower_bound=0.01
)
TASK = flags.DEFINE_string("task", None, "What to complete of --video, see above.")
VIDEO = flags.DEFINE_string("video", None, "Video to complete, or without --task to continue.")
GIVEN = flags.DEFINE_integer(
    "given", None, "Frames of --video to begin with; by default as in training.", lower_bound=1
)
PASTE = flags.DEFINE_bool("paste", True, "Keep the given pixels of --task as they are.")
CAPTION = flags.DEFINE_bool("caption", False, "Say what --video shows, instead of drawing.")
SEED = flags.DEFINE_integer("seed", 0, "Decides every draw.")
GUIDANCE = flags.DEFINE_float("guidance_scale", None, "Classifier-free guidance; 1 is none.", lower_bound=0)
STEPS = flags.DEFINE_integer("steps", None, "Decoding steps.", lower_bound=1)
TOKENS = flags.DEFINE_integer("tokens", None, "Of a row of codes draw the first ones alone, so many.", lower_bound=1)
SET = flags.DEFINE_multi_string(
    "set",
    [],
    "Setting of the sampler as KEY=VALUE, such as attention.name=svg2.",
    allow_override=True,  # beside the flag of launch/ in one process
)
EXTENSION = flags.DEFINE_string("extension", None, "Longer videos of latents: window, queue, adaptive_queue.")
TEMPERATURE = flags.DEFINE_float(
    "temperature", None, "Softmax temperature; 0, of bits, takes the likelier value.", lower_bound=0
)
TILE = flags.DEFINE_string(
    "tile", None, "HEIGHTxWIDTH in pixels: decode large frames by overlapping tiles of this size."
)
SCALE = flags.DEFINE_integer("scale", 1, "Whole factor by which files are larger than the clips.", lower_bound=1)
OUT = flags.DEFINE_string("out", None, "Directory for sample_*.mp4 and prompts.json; or a .mp4, .gif, .png, .npz file.")
MESH = app.define_mesh()
flags.mark_flags_as_required(["checkpoint", "out"])


def check_flags() -> None:
    """Refuses flags that do not go together."""
    window = {"story": STORY, "frames": FRAMES, "overlap": OVERLAP, "image": IMAGE, "given": GIVEN, "label": LABEL}
    window["size"] = SIZE
    for name, flag in window.items():
        if TASK.value and flag.value:
            raise UserError(f"--task completes one window of --video; leave --{name} out")
    for name, flag in {**window, "task": TASK, "prompt": PROMPT, "prompts": PROMPTS}.items():
        if CAPTION.value and flag.value:
            raise UserError(f"--caption says what --video shows; leave --{name} out")
    if CAPTION.value and not VIDEO.value:
        raise UserError("--caption says what a video shows: name it with --video=FILE")
    if TASK.value and COUNT.value > 1:
        raise UserError("--task completes --video once, or once for each --prompt; leave --count out")
    if GIVEN.value and not VIDEO.value:
        raise UserError("--given says how many frames of --video to begin with; name the video")
    if IMAGE.value and VIDEO.value:
        raise UserError("videos begin with --image or with frames of --video; leave one of them out")
    if PROMPT.value and PROMPTS.value:
        raise UserError("give the prompts by --prompt or by --prompts, not by both")
    if STORY.value and not (PROMPT.value or PROMPTS.value):
        raise UserError("--story needs its prompts: --prompt, once for each window")


def say() -> None:
    """Prints and writes what a video shows."""
    from videogen.inference.captioning import caption_video, write_texts
    from videogen.training.loading import load_for_command

    loaded = load_for_command(CHECKPOINT.value, MESH.value)
    check_writable(OUT.value, "--out", directory=True)
    sampler = {} if TEMPERATURE.value is None else {"temperature": TEMPERATURE.value}
    texts = caption_video(loaded, VIDEO.value, seed=SEED.value, count=COUNT.value, sampler=sampler)
    for text in texts:
        print(text)
    logging.info("wrote %s", write_texts(OUT.value, texts, loaded, VIDEO.value, SEED.value))


def main() -> None:
    """Runs the command."""
    from videogen.encoders.lora_files import read_lora
    from videogen.inference.pictures import WRITERS
    from videogen.inference.sampling import (
        at_rate,
        check_single,
        complete_video,
        draw_videos,
        read_prompts,
        write_samples,
    )
    from videogen.runs.finished import FinishedBatches
    from videogen.tokenizers.tiling import read_tile
    from videogen.training.loading import load_for_command

    check_flags()
    if CAPTION.value:
        say()
        return
    prompts, labels = read_prompts(PROMPTS.value) if PROMPTS.value else PROMPT.value or [], LABEL.value or []
    check_single(OUT.value, COUNT.value * (1 if STORY.value else max(len(prompts), len(labels), 1)))
    loras = [read_lora(text, LORA_WITHOUT.value) for text in LORAS.value or []]
    loaded = load_for_command(CHECKPOINT.value, MESH.value, loras=loras)
    if FPS.value is not None:
        at_rate(loaded, FPS.value)
    given = {f.name: f.value for f in (GUIDANCE, STEPS, TEMPERATURE, EXTENSION, TOKENS) if f.value is not None}
    sampler = read_settings(SET.value, loaded.config.get("sampler") or {}) | given
    tile = read_tile(TILE.value) if TILE.value else None
    check_writable(OUT.value, "--out", directory=not OUT.value.endswith(tuple(WRITERS)))
    recorded = {"count": COUNT, "overlap": OVERLAP, "image": IMAGE, "video": VIDEO, "given": GIVEN, "task": TASK}
    recorded |= {"tile": TILE, "size": SIZE, "lora": LORAS} | ({"paste": PASTE} if TASK.value else {})
    asked = {name: flag.value for name, flag in recorded.items()}
    said = {"seed": SEED.value, "story": STORY.value, "labels": labels, "asked": asked, "sampler": sampler}
    if loaded.text is not None and not (prompts or labels or TASK.value):
        raise UserError("nothing to draw: give --prompt, or --task with --video")
    # What is drawn does not depend on the tiles that it is decoded by.
    drawn = said | {"asked": {name: value for name, value in asked.items() if name != "tile"}}
    finished = FinishedBatches(OUT.value, {"prompts": prompts, "frames": FRAMES.value, **drawn, **loaded.key})
    settings, compared, measured = {"seed": SEED.value, "sampler": sampler, "tile": tile}, None, {}
    if TASK.value:
        videos, compared = complete_video(loaded, TASK.value, VIDEO.value, prompts, paste=PASTE.value, **settings)
    else:
        flags_of_draw = {"count": COUNT, "story": STORY, "frames": FRAMES, "overlap": OVERLAP, "image": IMAGE}
        flags_of_draw |= {"video": VIDEO, "given": GIVEN}
        settings |= {name: flag.value for name, flag in flags_of_draw.items()}
        settings["size"] = read_tile(SIZE.value, "size") if SIZE.value else None
        videos = draw_videos(loaded, prompts, labels=labels, **settings, keep=finished, measured=measured)
    shown = {"compared": compared, "scale": SCALE.value, "measured": measured}
    paths = write_samples(OUT.value, videos, prompts, loaded, **shown, **said)
    finished.remove()
    for path in paths:
        logging.info("wrote %s", path)


if __name__ == "__main__":
    app.run(main)
