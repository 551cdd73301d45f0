"""Answers questions about a video, in the terminal.

    python -m videogen.ask --checkpoint=runs/understanding --video=clip.mp4 --question="which form is the red shape?"
    python -m videogen.ask --checkpoint=runs/understanding --video=clip.mp4 --question="where does the circle move?" \\
        --options="left,right,up,down" --budget=64

The frames lie over the whole video, at most at the rate of training, each with its own time; the first line says their
rate, the next one whether the video is longer than the clips of training. For every question there is the answer (with
--options the likeliest of them), the tokens of the video before and behind the reducers, the time to the first token
and that of each further one, without compiling.

Several --question flags are answered one after another, each as if it were the first: what of the video does not depend
on a question is kept, reducers that look at the question run again. --budget is another number of tokens for the last
reducer.

With --stream the frames arrive one by one, at the rate of training, and what the model says has its time in front:

    python -m videogen.ask --checkpoint=runs/watching --video=clip.mp4 --stream
    python -m videogen.ask --checkpoint=runs/watching --video=clip.mp4 --stream \\
        --question="how many shapes are there?" --at=3.5 --question="which form appears next?" --at=4

The first lines say how many frames and minutes fit into the memory, and what is forgotten then: memory does not grow
with the video. Every --question has an --at, the second at which it is asked; a question that cannot be answered yet
stays open and is answered when its time has come. --speaks says when the model speaks by itself:
    silence    where silence behind a frame is less probable than --threshold (models that were trained on streams)
    changes    where the share of each frame that is as before says that a new scene begins
    scenes     at the end of every scene, about it (models that were trained on clips)
    never      it answers questions alone
--memory is another number of frames that are remembered, --evict how room is made: oldest, alike, still.
"""

from absl import flags

from videogen import app
from videogen.errors import UserError

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Run directory or export of a video-language model.")
VIDEO = flags.DEFINE_string("video", None, "Video file.")
QUESTION = flags.DEFINE_multi_string("question", None, "What to answer; repeat for several.")
OPTIONS = flags.DEFINE_string("options", None, "Possible answers, separated by commas.")
BUDGET = flags.DEFINE_integer("budget", None, "Tokens of the video behind the last reducer.", lower_bound=1)
STREAM = flags.DEFINE_bool("stream", False, "Watch the video frame by frame, with bounded memory.")
AT = flags.DEFINE_multi_float("at", None, "Of a stream: when each question is asked, in seconds.")
SPEAKS = flags.DEFINE_enum(
    "speaks", None, ("silence", "changes", "scenes", "never"), "Of a stream: when the model speaks by itself."
)
THRESHOLD = flags.DEFINE_float(
    "threshold", None, "Of a stream: the model is silent while silence is so probable.", lower_bound=0, upper_bound=1
)
MEMORY = flags.DEFINE_integer("memory", None, "Of a stream: frames that are remembered at most.", lower_bound=2)
EVICT = flags.DEFINE_string("evict", None, "Of a stream: which frames are forgotten first: oldest, alike, still.")
MESH = app.define_mesh()
flags.mark_flags_as_required(["checkpoint", "video"])


def main() -> None:
    """Runs the command."""
    of_streams, of_clips = (AT, SPEAKS, THRESHOLD, MEMORY, EVICT), (OPTIONS, BUDGET)
    for flag in of_clips if STREAM.value else of_streams:
        if flag.value is not None:
            wrong = "is not for streams; leave it out" if STREAM.value else "is for streams; add --stream"
            raise UserError(f"--{flag.name} {wrong}")
    if STREAM.value:
        _watch()
    elif not QUESTION.value:
        raise UserError("--question is missing: what do you want to know? With --stream the model speaks by itself")
    else:
        _ask()


def _ask() -> None:
    # Imported late so that --help and bad flags answer at once.
    from videogen.inference.answering import ask, check, parse_options, watch
    from videogen.training.loading import load_for_command

    options = parse_options(OPTIONS.value)
    if OPTIONS.value is not None and len(options) < 2:
        raise UserError(f"--options={OPTIONS.value} leaves nothing to choose: give several, separated by commas")
    loaded = load_for_command(CHECKPOINT.value, MESH.value, batch=1)
    check(loaded, QUESTION.value, options)
    watched = watch(loaded, VIDEO.value)
    print("\n".join(watched.lines()))
    for reply in ask(loaded, watched, QUESTION.value, options, BUDGET.value):
        print("\n".join(reply.lines(options)), flush=True)


def _watch() -> None:
    from videogen.inference.streaming import Settings, open_session, watch_file
    from videogen.training.loading import load_for_command

    questions, moments = QUESTION.value or [], AT.value or []
    if len(questions) != len(moments):
        raise UserError(
            f"of a stream every --question has an --at, the second at which it is asked: there are {len(questions)} "
            f"questions and {len(moments)} times"
        )
    loaded = load_for_command(CHECKPOINT.value, MESH.value, batch=1)
    settings = Settings(SPEAKS.value, THRESHOLD.value, MEMORY.value, EVICT.value)
    session = open_session(loaded, settings)
    print("\n".join(session.lines()), flush=True)
    for said in watch_file(session, VIDEO.value, list(zip(moments, questions, strict=True))):
        print(said.line(), flush=True)
    for question in session.open:
        print(f"not answered: {question}")


if __name__ == "__main__":
    app.run(main)
