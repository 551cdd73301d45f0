"""Draws videos from prompts.

    python -m videogen.sample --checkpoint=runs/generator --prompt="a red circle moves left" --out=samples

Several --prompt flags give several videos. With --story they are one video: each prompt holds for one window, in
order. --frames beyond the training window slides it; --image animates a picture. The same seed gives the same videos.
"""

from absl import flags, logging

from videogen import app

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Run directory or export of a generator.")
PROMPT = flags.DEFINE_multi_string("prompt", None, "What to show; repeat for several videos.")
STORY = flags.DEFINE_bool("story", False, "Take the prompts as one video's story, a window each.")
FRAMES = flags.DEFINE_integer("frames", None, "Length; by default one window, or one per story prompt.", lower_bound=1)
OVERLAP = flags.DEFINE_integer("overlap", None, "Frames kept at every slide of the window.", lower_bound=1)
IMAGE = flags.DEFINE_string("image", None, "Picture or clip whose first frame the videos start with.")
SEED = flags.DEFINE_integer("seed", 0, "Decides every draw.")
GUIDANCE = flags.DEFINE_float("guidance_scale", None, "Classifier-free guidance lambda; 0 is none.", lower_bound=0)
STEPS = flags.DEFINE_integer("steps", None, "Decoding steps.", lower_bound=1)
TEMPERATURE = flags.DEFINE_float("temperature", None, "Softmax temperature.", lower_bound=0.01)
OUT = flags.DEFINE_string("out", None, "Directory for sample_*.mp4 and prompts.json.")
flags.mark_flags_as_required(["checkpoint", "prompt", "out"])


def main() -> None:
    from videogen.training.loading import load
    from videogen.training.sampling import draw_videos, write_samples

    names = {"guidance_scale": GUIDANCE, "steps": STEPS, "temperature": TEMPERATURE}
    sampler = {name: flag.value for name, flag in names.items() if flag.value is not None}
    loaded = load(CHECKPOINT.value)
    videos = draw_videos(
        loaded,
        PROMPT.value,
        story=STORY.value,
        frames=FRAMES.value,
        seed=SEED.value,
        overlap=OVERLAP.value,
        image=IMAGE.value,
        sampler=sampler,
    )
    paths = write_samples(OUT.value, videos, PROMPT.value, loaded, seed=SEED.value, story=STORY.value)
    for path in paths:
        logging.info("wrote %s", path)


if __name__ == "__main__":
    app.run(main)
