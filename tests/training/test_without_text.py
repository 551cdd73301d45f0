"""Generators that no text tells anything: they train, show pictures, are evaluated and draw, like all others."""

import functools
import json

import numpy as np
import pytest

from videogen.configs import nbp, phenaki, videodit
from videogen.data.video_io import read_video, write_video
from videogen.errors import UserError
from videogen.evaluation import protocols
from videogen.inference import sampling
from videogen.metrics.judge import ATTRIBUTES
from videogen.training.loading import load
from videogen.training.loop import train

NO_TEXT = {"encoder": {"name": "none"}, "tokenizer": {"name": "bytes", "path": "", "length": 1}}
SMALL = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 32}


def shorten(config, frames: int = 5):
    config.data.clip.update({"frames": frames, "height": 16, "width": 16})
    config.data.update({"batch_size": 4, "eval_batch_size": 4})
    config.data.source = {"name": "shapes", "length": 64}
    # The first evaluation comes before the first checkpoint.
    config.steps, config.log_every, config.eval_every, config.checkpoint_every = 2, 1, 1, 2
    return config


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Name -> directory of a tokenizer of codes, or of one of latents, one step old."""

    @functools.cache
    def directory(name: str) -> str:
        config = {"codes": phenaki, "latents": videodit}[name].tokenizer("debug")
        shorten(config, frames=9)
        config.model.update({"width": 16, "heads": 2, "mlp_width": 32})
        config.model.update({"encoder_layers": (1, 1), "decoder_layers": (1, 1)})
        config.model.quantizer.update({"size": 32} if name == "codes" else {"width": 4})
        config.steps = 1
        path = tmp_path_factory.mktemp(name)
        train(config, path)
        return str(path)

    return directory


def masked(classes: int | None = None):
    config = phenaki.generator("debug")
    config.classes = classes
    return config, "codes"


def next_block():
    """The published frame prediction at a debug size: two latent frames are given, nothing is said."""
    config = nbp.generator("debug", "700M")
    config.model.update({"start": "given", "given": 2, "block": (1, 1, 4)})
    return config, "codes"


def flow(classes: int | None = None):
    config = videodit.generator("debug", "1.3B")
    config.classes = classes
    return config, "latents"


MODELS = {
    "masked": masked,
    "masked, classes": functools.partial(masked, 24),
    "next block, given": next_block,
    "flow": flow,
    "flow, classes": functools.partial(flow, 24),
}


@pytest.fixture(
    scope="module",
    params=[name if "given" in name else pytest.param(name, marks=pytest.mark.slow) for name in MODELS],
)
def trained(request, tokenizer, tmp_path_factory):
    config, tokens = MODELS[request.param]()
    shorten(config, frames=9)
    config.model.transformer.update(SMALL)
    with config.unlocked():
        config.text = NO_TEXT
    config.parts.tokenizer.checkpoint = tokenizer(tokens)
    if "steps" in config.sampler:
        config.sampler.steps = 2
    workdir = tmp_path_factory.mktemp("generator")
    run = train(config, workdir)
    return load(workdir), run.pictures


@pytest.mark.slow
def test_it_trains_and_shows_pictures_given_the_held_out_first_frames(trained):
    loaded, pictures = trained
    assert loaded.step == 2
    (picture,) = pictures
    given = loaded.generator().given_frames
    assert given == (3 if loaded.config.model.get("given") else 0)
    for original, drawn in picture.rows:
        assert original.shape == drawn.shape == (9, 16, 16, 3)
        np.testing.assert_array_equal(drawn[:given], original[:given])
        assert (drawn[given:] != original[given:]).any()


@pytest.mark.slow
def test_it_draws_a_number_of_videos_and_continues_a_video_of_any_legal_length(trained, tmp_path):
    loaded, _ = trained
    clip = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3)).astype(np.uint8)
    write_video(tmp_path / "clip.mp4", clip, 8.0, scale=1)
    shown = read_video(tmp_path / "clip.mp4")[0]
    needed = loaded.generator().given_frames
    draw = functools.partial(sampling.draw_videos, loaded, [], seed=0, labels=["3"] if loaded.config.classes else [])
    if needed:
        with pytest.raises(UserError, match="begins with 3 given frames.*--video"):
            draw(count=3)
    else:
        drawn = draw(count=3)
        assert drawn.shape == (3, 9, 16, 16, 3) and (drawn[0] != drawn[1]).any()
    for given in (1, 3, 5, 7):
        continued = functools.partial(draw, count=2, video=str(tmp_path / "clip.mp4"), given=given)
        if given < needed:
            with pytest.raises(UserError, match="5 or 7"):
                continued()
            continue
        drawn = continued()
        assert drawn.shape == (2, 9, 16, 16, 3)
        np.testing.assert_array_equal(drawn[:, :given], np.stack([shown[:given]] * 2))
        assert (drawn[0] != drawn[1]).any()
    for given in (2, 9):
        with pytest.raises(UserError, match="5 or 7"):
            draw(video=str(tmp_path / "clip.mp4"), given=given)
    # Longer than a window: every one after the first begins with the end of what is there.
    assert draw(count=1, frames=13, video=str(tmp_path / "clip.mp4")).shape == (1, 13, 16, 16, 3)


@pytest.mark.slow
def test_it_is_evaluated(trained):
    loaded, _ = trained
    if loaded.config.classes:
        record, pictures = protocols.evaluate(loaded, "prompt_fidelity", 3, 0)
        shares = record["metrics"]["prompt_fidelity"]
        assert shares.keys() == set(ATTRIBUTES) - {"direction", "size", "background"}
        assert pictures["videos"].shape == (3, 9, 16, 16, 3)
    else:
        with pytest.raises(UserError, match="told nothing"):
            protocols.evaluate(loaded, "prompt_fidelity", 3, 0)
    record, pictures = protocols.evaluate(loaded, "tasks", 3, 0)
    assert record["metrics"]["tasks"]["frame_prediction"].keys() == {"psnr", "reconstruction", "copy"}
    given = loaded.generator().given_frames or 1
    np.testing.assert_array_equal(pictures["videos"][:, :given], pictures["originals"][:, :given])


@pytest.mark.slow
def test_labels_are_numbers_or_names_of_its_classes(trained):
    loaded, _ = trained
    if not loaded.config.classes:
        with pytest.raises(UserError, match="takes no labels"):
            sampling.draw_videos(loaded, [], seed=0, labels=["3"])
        return
    draw = functools.partial(sampling.draw_videos, loaded, [], seed=0)
    # The shapes source calls its fourth class so.
    np.testing.assert_array_equal(draw(labels=["3"]), draw(labels=["cyan circle"]))
    assert draw(labels=["3", "5"]).shape[0] == 2 and draw(labels=["3", "5"], count=2).shape[0] == 4
    for wrong, message in (("24", "0 to 23"), ("cyan circel", "did you mean 'cyan circle'")):
        with pytest.raises(UserError, match=message):
            draw(labels=[wrong])


@pytest.mark.slow
def test_the_command_draws_without_prompts(trained, run_command, tmp_path):
    loaded, _ = trained
    clip = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3)).astype(np.uint8)
    write_video(tmp_path / "clip.mp4", clip, 8.0, scale=1)
    told = ["--label=3", "--label=blue square"] if loaded.config.classes else []
    told += [f"--video={tmp_path / 'clip.mp4'}"] if loaded.generator().given_frames else []
    arguments = [f"--checkpoint={loaded.directory}", f"--out={tmp_path / 'out'}", "--count=2", *told]
    done = run_command("sample", *arguments)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "prompts.json").read_text())
    assert len(record["videos"]) == (4 if loaded.config.classes else 2)
    assert [*record.get("labels", {}).values()] == (
        ["3", "3", "blue square", "blue square"] if loaded.config.classes else []
    )
    for name in record["videos"]:
        assert len(read_video(tmp_path / "out" / name)[0]) == 9


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--given=3"], "--given"),
        (["--image=a.png", "--video=b.mp4"], "leave one of them out"),
        (["--story"], "--story needs its prompts"),
        (["--task=inpaint", "--video=a.mp4", "--given=3"], "leave --given out"),
        (["--task=inpaint", "--video=a.mp4", "--count=2"], "leave --count out"),
    ],
)
def test_flags_that_do_not_go_together_are_named(flags, message, monkeypatch):
    import importlib

    from absl import flags as absl_flags

    import videogen

    # The function of this name gives way to the command's module once that is imported.
    monkeypatch.setattr(videogen, "sample", videogen.sample)
    sample = importlib.import_module("videogen.sample")

    values = absl_flags.FLAGS
    values.unparse_flags()
    # Another command that was imported in this process may ask for a work directory.
    values(["sample", "--checkpoint=x", "--out=y", "--workdir=z", *flags], known_only=True)
    try:
        with pytest.raises(UserError, match=message):
            sample.check_flags()
    finally:
        for flag in ("given", "image", "video", "story", "task", "count"):
            values[flag].unparse()
        values.unparse_flags()
