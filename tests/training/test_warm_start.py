"""A new run takes over what fits from another one, once, and from then on needs nothing but its own directory."""

import functools
import logging
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.processes import REPOSITORY, environment
from tests.training.test_resume import finish, losses, wait_for, weights
from videogen import tasks
from videogen.configs import magvit, magvit2, omnitokenizer
from videogen.configuration import save_config
from videogen.errors import UserError
from videogen.parallel import make_mesh
from videogen.runs.checkpoints import Checkpoints
from videogen.training.checks import check_config
from videogen.training.loading import CONFIG, export_safetensors, load
from videogen.training.state import new_state, state_shardings, structure_of
from videogen.training.warm_start import starting_weights, with_weights

SMALL = {"width": 16, "heads": 2, "mlp_width": 32}


def transformer(stage: str = "tokenizer", **changes):
    config = omnitokenizer.get_config(f"stage={stage},size=debug")
    config.model.update(SMALL | {"encoder_temporal": 1, "decoder_spatial": "t", "decoder_temporal": 1} | changes)
    return config


def convolutional(stage: str):
    config = magvit2.get_config(f"stage={stage},size=debug")
    strides = {"spatial_strides": (2,), "temporal_strides": (1,) if stage == "image" else (2,)}
    config.model.update({"width": 4, "multipliers": (1, 2), "norm_groups": 2} | strides)
    return config


def fresh(config, seed: int):
    """A state before training, its task, structure and placement; drawn by NumPy, which compiles nothing."""
    task = tasks.build(config)
    structure, abstract = structure_of(task, config)
    shapes = jax.eval_shape(lambda: new_state(task, structure, config))
    random = np.random.default_rng(seed)
    state = jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape) / 4, x.dtype), shapes)
    return state, task, structure, state_shardings(abstract, shapes, make_mesh({}, jax.devices()[:1]))


def write_run(directory, config, step: int = 7):
    """A run directory as training leaves it; returns its state."""
    state = {**fresh(config, seed=1)[0], "step": jnp.asarray(step, jnp.int32)}
    checkpoints = Checkpoints(directory)
    checkpoints.save(step, state, {"position": 8 * step})
    checkpoints.close()
    save_config(directory / CONFIG, config)
    return state


def begin(directory, config, workdir, inflate: str = ""):
    """The state that a run of ``config`` would begin with."""
    config.start_from.update({"run": str(directory), "inflate": inflate})
    state, task, structure, placement = fresh(config, seed=2)
    taken = starting_weights(config, workdir, task)
    return with_weights(state, placement, taken), structure, state


def flat(tree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}


def changed(new: dict, old: dict) -> set[str]:
    return {name for name in new if (new[name] != old[name]).any()}


def test_equal_models_take_over_everything_but_step_and_optimizer(tmp_path, caplog):
    config = transformer()
    origin = write_run(tmp_path / "a", config)
    with caplog.at_level(logging.INFO, logger="absl"):
        state, _, before = begin(tmp_path / "a", transformer(), tmp_path / "b")
    jax.tree.map(np.testing.assert_array_equal, state["params"], origin["params"])
    jax.tree.map(np.testing.assert_array_equal, state["variables"], origin["variables"])
    assert state["step"] is before["step"]
    jax.tree.map(np.testing.assert_array_equal, state["optimizer"], before["optimizer"])
    assert "step 7: " in caplog.text and "tokenizer.quantizer.codebook" in caplog.text
    assert "new:" not in caplog.text and "left behind:" not in caplog.text


def test_averages_are_what_is_taken_over_where_there_are_any(tmp_path):
    config = transformer()
    config.ema.decay = 0.9
    origin = write_run(tmp_path / "a", config)
    state, *_ = begin(tmp_path / "a", config, tmp_path / "b")
    for name in ("params", "ema"):
        jax.tree.map(np.testing.assert_array_equal, state[name], origin["ema"])
    # Donated buffers must not be shared.
    pairs = zip(jax.tree.leaves(state["params"]), jax.tree.leaves(state["ema"]), strict=True)
    assert all(a.unsafe_buffer_pointer() != b.unsafe_buffer_pointer() for a, b in pairs)


def test_a_gaussian_head_replaces_the_codebook_and_nothing_else(tmp_path, caplog):
    origin = write_run(tmp_path / "a", transformer())
    with caplog.at_level(logging.INFO, logger="absl"):
        state, _, before = begin(tmp_path / "a", transformer("kl"), tmp_path / "b")
    new, old = flat(state["params"]), flat(origin["params"])
    kept = {name for name in new if name in old and new[name].shape == old[name].shape}
    assert {name for name in kept if (new[name] == old[name]).all()} == kept
    heads = {name for name in new if ".to_code." in name}
    assert set(new) - kept == heads and not changed({n: new[n] for n in heads}, flat(before["params"]))
    assert "new: tokenizer.to_code" in caplog.text and "left behind: tokenizer.to_code" in caplog.text


def test_an_export_is_an_origin_too(tmp_path):
    origin = write_run(tmp_path / "a", transformer())
    export_safetensors(load(tmp_path / "a"), tmp_path / "export")
    state, *_ = begin(tmp_path / "export", transformer(), tmp_path / "b")
    jax.tree.map(np.testing.assert_array_equal, state["params"], origin["params"])


@pytest.mark.slow
def test_an_inflated_tokenizer_treats_images_as_the_image_run_does(tmp_path, caplog):
    write_run(tmp_path / "image", convolutional("image"))
    image = load(tmp_path / "image").modules["tokenizer"]
    config = convolutional("tokenizer")
    assert config.start_from.inflate == "last"
    with caplog.at_level(logging.INFO, logger="absl"):
        state, structure, _ = begin(tmp_path / "image", config, tmp_path / "video", "last")
    video = structure.modules(state["params"], state["variables"])["tokenizer"]
    assert video.compression.time > image.compression.time == 1
    picture = np.random.default_rng(0).uniform(-1, 1, (2, 1, 24, 24, 3)).astype(np.float32)
    latents = jax.jit(image.encode)(picture).values
    np.testing.assert_allclose(jax.jit(video.encode)(picture).values, latents, atol=1e-4)
    np.testing.assert_allclose(jax.jit(video.decode)(latents), jax.jit(image.decode)(latents), atol=1e-4)
    assert "inflated: tokenizer.decoder" in caplog.text and "new:" not in caplog.text


@pytest.mark.slow
def test_an_inflated_magvit_treats_static_clips_as_the_image_run_does(tmp_path):
    config = magvit.get_config("stage=tokenizer,size=debug")
    config.model.update({"width": 4, "multipliers": (1, 2), "norm_groups": 2, "spatial_strides": (2,)})
    frames = int(config.data.clip.frames)
    config.model.temporal_strides, config.model.time_kernel, config.data.clip.frames = (1,), 1, 1
    write_run(tmp_path / "image", config)
    image = load(tmp_path / "image").modules["tokenizer"]
    config.model.temporal_strides, config.model.time_kernel, config.data.clip.frames = (2,), 3, frames
    state, structure, _ = begin(tmp_path / "image", config, tmp_path / "video", "central")
    video = structure.modules(state["params"], state["variables"])["tokenizer"]
    picture = np.random.default_rng(0).uniform(-1, 1, (2, 1, 24, 24, 3)).astype(np.float32)
    latents = jax.jit(image.encode)(picture).values
    coded = jax.jit(video.encode)(np.repeat(picture, 4, axis=1)).values
    np.testing.assert_allclose(coded, np.repeat(latents, 2, 1), atol=1e-4)
    rebuilt = jax.jit(image.decode)(latents)
    np.testing.assert_allclose(jax.jit(video.decode)(jnp.repeat(latents, 2, 1)), np.repeat(rebuilt, 4, 1), atol=1e-4)


@pytest.mark.slow
def test_kernels_are_inflated_only_where_that_is_asked_for_and_tables_never(tmp_path, caplog):
    image = convolutional("image")
    write_run(tmp_path / "image", image)
    with caplog.at_level(logging.INFO, logger="absl"):
        begin(tmp_path / "image", convolutional("tokenizer"), tmp_path / "video")
    assert "inflated:" not in caplog.text and "new: tokenizer.decoder" in caplog.text
    caplog.clear()
    # A codebook twice as wide is another codebook, although its values could be repeated.
    write_run(tmp_path / "narrow", transformer())
    wider = transformer()
    wider.model.quantizer.width *= 2
    with caplog.at_level(logging.INFO, logger="absl"):
        begin(tmp_path / "narrow", wider, tmp_path / "wide", "last")
    assert "inflated:" not in caplog.text and "tokenizer.quantizer.codebook" in caplog.text.partition("new:")[2]


@pytest.mark.slow
def test_the_image_stage_hands_on_its_discriminator(tmp_path):
    configs = transformer("image"), transformer()
    for config in configs:
        config.losses.adversarial.weight, config.losses.adversarial.discriminator.multipliers = 0.01, (2,)
    origin = write_run(tmp_path / "a", configs[0])
    state, *_ = begin(tmp_path / "a", configs[1], tmp_path / "b")
    np.testing.assert_equal(flat(state["params"]["discriminator"]), flat(origin["params"]["discriminator"]))


def test_a_run_that_has_begun_no_longer_reads_its_origin(tmp_path):
    write_run(tmp_path / "b", transformer())
    config = transformer()
    config.start_from.run = str(tmp_path / "deleted")
    assert starting_weights(config, tmp_path / "b", tasks.build(config)) is None
    config.start_from.run = ""
    assert starting_weights(config, tmp_path / "new", tasks.build(config)) is None


def test_origins_that_cannot_be_used_are_refused_with_the_reason(tmp_path):
    config = transformer()
    with pytest.raises(UserError, match="is no run or export directory"):
        begin(tmp_path / "nothing", config, tmp_path / "b")
    write_run(tmp_path / "other", convolutional("image"))
    with pytest.raises(UserError, match="nothing in .*other has the name and shape"):
        begin(tmp_path / "other", config, tmp_path / "b")
    with pytest.raises(UserError, match="unknown start_from.inflate 'lst'; did you mean 'last'"):
        begin(tmp_path / "other", config, tmp_path / "b", "lst")


def begin_with(workdir, config, *paths: tuple[str, str], run: str = ""):
    """The parameters a run begins with when parts of it have their own origin, and those it would have without."""
    config.start_from.update({"run": run, "paths": paths})
    state, task, _, placement = fresh(config, seed=2)
    return tuple(
        flat(s["params"]) for s in (with_weights(state, placement, starting_weights(config, workdir, task)), state)
    )


ENCODER, DECODER = "tokenizer.encoder.temporal", "tokenizer.decoder.temporal"


def branch(params: dict, path: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(f"{path}."): x for name, x in params.items() if name.startswith(f"{path}.")}


def test_a_branch_begins_as_the_copy_of_another_one_and_everything_else_as_without(tmp_path):
    origin = flat(write_run(tmp_path / "a", transformer())["params"])
    new, drawn = begin_with(tmp_path / "b", transformer(), (DECODER, f"{tmp_path}/a:{ENCODER}"))
    copied = branch(new, DECODER)
    assert copied
    np.testing.assert_equal(copied, branch(origin, ENCODER))
    assert changed(new, drawn) == {f"{DECODER}.{name}" for name in copied}


@pytest.mark.slow
def test_branches_come_from_two_runs_and_a_longer_path_counts(tmp_path):
    first = flat(write_run(tmp_path / "a", transformer())["params"])
    other = transformer()
    other.ema.decay = 0.9
    second = flat(write_run(tmp_path / "c:1", other)["ema"])
    # One array of the part that comes from the second run comes from the first.
    (norm,) = (name for name in branch(first, DECODER) if name.endswith("mlp_norm.scale"))
    paths = (f"{DECODER}.{norm}", f"{tmp_path}/a:{DECODER}.{norm}"), (DECODER, f"{tmp_path}/c:1:{DECODER}")
    new, _ = begin_with(tmp_path / "b", transformer(), *paths, run=str(tmp_path / "a"))
    expected = first | {f"{DECODER}.{name}": x for name, x in branch(second, DECODER).items() if name != norm}
    np.testing.assert_equal(new, {name: expected[name] for name in new})


def test_paths_that_name_nothing_or_other_shapes_are_refused(tmp_path):
    write_run(tmp_path / "a", transformer())
    run, config, read = f"{tmp_path}/a", transformer(), functools.cache(load)
    task = tasks.build(config)
    for pair, message in (
        (
            ("tokenizer.encodr", f"{run}:tokenizer.encoder"),
            "this run has nothing called 'tokenizer.encodr'; did you mean",
        ),
        (("tokenizer.encoder", f"{run}:tokenizer.encode"), "a has nothing called 'tokenizer.encode'; did you mean"),
        ((DECODER, f"{run}:{ENCODER[:-9]}.spatial"), "and tokenizer.encoder.spatial.*is not there"),
        (("tokenizer.encoder_norm", f"{run}:tokenizer.to_code"), "has the shape"),
        ((DECODER, f"{tmp_path}/none:{ENCODER}"), "is no run or export directory"),
    ):
        config.start_from.paths = (pair,)
        with pytest.raises(UserError, match=message) as stop:
            starting_weights(config, tmp_path / "b", task, read)
        assert "\n" not in str(stop.value)
    config.start_from.paths = (("a", "b", "c"),)
    with pytest.raises(UserError, match="config.start_from.paths, entry 0, must have 2 entries"):
        check_config(config)


SHARDED = {"width": 64, "heads": 4, "mlp_width": 256}
"""Large enough that FSDP shards some parameters."""


def train(workdir, *extra: str) -> subprocess.Popen:
    """Starts a tokenizer stage on two devices."""
    command = [sys.executable, "-m", "videogen.train", f"--workdir={workdir}"]
    command += ["--config=omnitokenizer:stage=tokenizer,size=debug"]
    command += [f"--config.model.{name}={value}" for name, value in SHARDED.items()]
    command += ["--config.model.decoder_spatial=t", "--config.data.image_batch_size=0"]
    command += ["--config.parallel.mesh.data=1", "--config.parallel.mesh.fsdp=2", "--config.data.eval_batch_size=4"]
    command += ["--config.log_every=1", "--config.eval_every=100", "--config.checkpoint_every=100"]
    return subprocess.Popen([*command, *extra], cwd=REPOSITORY, env=environment(2), stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_killed_run_goes_on_without_its_origin_to_the_same_bits(tmp_path):
    """Killed before its first own checkpoint, so that all it has is the state it began with; on a sharded mesh."""
    write_run(tmp_path / "image", transformer("image", **SHARDED, decoder_temporal=2))
    given = ("--config.steps=5", f"--config.start_from.run={tmp_path / 'image'}")
    straight = train(tmp_path / "straight", *given)
    message = finish(straight)
    assert straight.returncode == 0 and "step 7: " in message and "new:" not in message, message
    killed = train(tmp_path / "killed", *given)
    wait_for(tmp_path / "killed", 2, killed)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    shutil.rmtree(tmp_path / "image")
    resumed = train(tmp_path / "killed", *given)
    message = finish(resumed)
    assert resumed.returncode == 0, message
    assert losses(tmp_path / "killed") == losses(tmp_path / "straight")
    for a, b in zip(weights(tmp_path / "killed"), weights(tmp_path / "straight"), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_bad_origin_leaves_nothing_on_disk(tmp_path):
    process = train(tmp_path / "run", f"--config.start_from.run={tmp_path / 'nothing'}")
    message = finish(process)
    assert process.returncode == 2 and "is no run or export directory" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", ["nosuch://bucket/run", "http://localhost/run", "s3://bucket/run"])
def test_remote_paths_that_cannot_be_read_are_one_line(path):
    """Ended with a traceback of the library, or of a table of kinds of paths."""
    with pytest.raises(UserError, match="cannot be reached") as error:
        load(path)
    assert "\n" not in str(error.value)
