"""The task over streams: its loss is that of its rows, the balance, drawing, captions and stories."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import data, tasks
from videogen.configs import language
from videogen.data.text import ByteTokenizer
from videogen.errors import UserError
from videogen.language.shares import Shares
from videogen.nn import MicroBatch
from videogen.tasks.stream_generation import StreamGenerator

LENGTH = 6


def tiny(model: str = "mistral", clips: int = 1, **changes):
    """Clips of 2×8×8 as 4 tokens of 3 numbers, texts of at most 6 bytes, a transformer of one layer."""
    config = language.get_config(f"stage=language,size=debug,model={model},clips={clips}")
    network = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 16}
    part = config.parts.tokenizer.model
    part.update({"clip": (2, 8, 8), "patch": (2, 4, 4), "queries": 4, "encoder": network, "decoder": network})
    part.quantizer.width = 3
    config.data.clip.update({"frames": 2, "height": 8, "width": 8})
    config.data.batch_size = config.data.eval_batch_size = 4
    config.model.backbone.transformer.update({"width": 16, "layers": 1, "heads": 2, "mlp_width": 16})
    config.text.tokenizer.update({"name": "bytes", "vocabulary_size": 257, "length": LENGTH})
    config.update_from_flattened_dict(changes)
    return config


def batch(count: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    source = data.build({"name": "shapes"}, clip=data.Clip(2, 8, 8, 8.0), seed=seed, split="train")
    lengths = np.arange(count)[:, None] % (LENGTH + 1)
    ids = np.random.default_rng(seed).integers(1, 257, (count, LENGTH)).astype(np.int32)
    video = np.stack([source[i]["video"] for i in range(count)])
    return {"video": video, "text_ids": ids, "text_mask": np.arange(LENGTH) < lengths}


@functools.cache
def built(model: str = "mistral", clips: int = 1, tokenizer: bool = False, **changes):
    """The task and its modules, with random weights where a fresh model has zeros, too."""
    task = tasks.build(tiny(model, clips, **changes))
    task.texts = ByteTokenizer(LENGTH)

    def fresh():
        return task.init(nnx.Rngs(0)) | ({"tokenizer": task.structure_of_part("tokenizer")} if tokenizer else {})

    @jax.jit
    def numbers():
        modules = fresh()
        leaves, tree = jax.tree.flatten(nnx.state(modules, nnx.Param))
        keys = jax.random.split(jax.random.key(1), len(leaves))
        leaves = [x + 0.1 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
        return jax.tree.unflatten(tree, leaves), nnx.state(modules, nnx.Not(nnx.Param))

    modules = nnx.eval_shape(fresh)
    nnx.update(modules, *numbers())
    return task, modules


def cached(count: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
    """The same as a token cache has it: no tokenizer is needed."""
    examples, rng = batch(count, seed), np.random.default_rng(seed)
    del examples["video"]
    return {**examples, "tokens/video": rng.normal(size=(count, 4, 3)).astype(np.float32)}


def losses(task, modules, examples, choice, packed=1, silent=False):
    graphs, states = {}, {}
    for name, module in modules.items():
        graphs[name], states[name] = nnx.split(module)

    @jax.jit
    def run(states, examples):
        live = {name: nnx.merge(graphs[name], states[name]) for name in graphs}
        chosen = jnp.asarray(choice)
        quiet = jnp.full(len(choice), silent)
        stream, values = task.stream(live, examples, task.tokens(live, examples), chosen, quiet, packed=packed)
        return stream, task.summed(live["language"], stream, values, MicroBatch())

    return jax.tree.map(np.asarray, run(states, examples))


def each_of(model, stream, floats):
    """``StreamModel.losses`` of rows."""
    graph, state = nnx.split(model)
    run = jax.jit(lambda state, stream, floats: nnx.merge(graph, state).losses(stream, {"video": floats}))
    return jax.tree.map(np.asarray, run(state, stream, floats))


def test_the_loss_is_the_mean_over_ids_and_over_numbers():
    task, modules = built()
    names, examples = list(task.layouts), cached()
    assert names == ["caption", "draw"]
    stream, (loss, metrics) = losses(task, modules, examples, [0, 1, 1, 0])
    # The statistics of a fresh model change nothing.
    each = each_of(modules["language"], stream, examples["tokens/video"])
    words, counted = each["words"]
    lengths = examples["text_mask"].sum(1)
    assert int(counted.sum()) == lengths[0] + lengths[3] + 2
    np.testing.assert_allclose(metrics["words"], words[counted].mean(), rtol=1e-5)
    floats, counted = each["video"]
    assert int(counted.sum()) == 2 * 4
    np.testing.assert_allclose(metrics["video"], floats[counted].mean() / 3, rtol=1e-5)
    np.testing.assert_allclose(loss, metrics["words"] + metrics["video"], rtol=1e-6)


@pytest.mark.slow
def test_balanced_samples_weigh_the_same_however_many_floats_they_have():
    """DiCoDe, 10.9: of two samples, one with a clip and one with two, each has half of the weight."""
    task, modules = built(clips=2, **{"model.balance": True})
    plain, _ = built(clips=2)
    names, examples = list(task.layouts), cached()
    choice = [names.index("draw"), names.index("story")]
    stream, (_, metrics) = losses(task, modules, examples, choice)
    nll, counted = each_of(modules["language"], stream, examples["tokens/video"].reshape(2, 8, 3))["video"]
    assert counted.sum(1).tolist() == [4, 8]
    of_samples = [float(nll[i][counted[i]].mean() / 3) for i in (0, 1)]
    np.testing.assert_allclose(metrics["video"], np.mean(of_samples), rtol=1e-5)
    _, (_, unbalanced) = losses(plain, modules, examples, choice)
    np.testing.assert_allclose(unbalanced["video"], np.average(of_samples, weights=[1, 2]), rtol=1e-5)


def test_the_loss_is_of_normalised_floats():
    """DiCoDe, 10.7, with a factor far from 1: tokens times 7 plus 3 have the loss of the tokens themselves."""
    task, modules = built()
    examples = cached()
    _, (_, plain) = losses(task, modules, examples, [1] * 4)
    moved = dict(examples, **{"tokens/video": 7 * examples["tokens/video"] + 3})
    statistics = modules["language"].floats["video"].statistics
    before = nnx.state(statistics)
    kept = jax.tree.map(jnp.array, before)
    statistics.mean.set_value(jnp.full(3, 3.0))
    statistics.square.set_value(jnp.full(3, 49.0 + 9.0))
    _, (_, measured) = losses(task, modules, moved, [1] * 4)
    np.testing.assert_allclose(measured["video"], plain["video"], rtol=1e-4)
    tokens = jnp.asarray(moved["tokens/video"])
    np.testing.assert_allclose(statistics.restore(statistics.normalise(tokens)), tokens, rtol=1e-5, atol=1e-5)
    nnx.update(statistics, kept)


def test_shares_of_layouts_change_at_named_steps():
    """VideoPoet, 11.7: at 0, 24.9 % and 25.1 % of 1000 steps."""
    shares = Shares([((0, 9), (250, 1)), ((0, 1), (250, 9))])
    for step, share in ((0, 0.9), (249, 0.9), (250, 0.1), (251, 0.1)):
        np.testing.assert_allclose(shares.at(step), [share, 1 - share], rtol=1e-6)
    drawn = jax.vmap(lambda key: shares.draw(100, key, ()))(jax.random.split(jax.random.key(0), 4000))
    assert abs(float((drawn == 0).mean()) - 0.9) < 0.02
    for given, message in (([0, 0], "never all 0"), ([((5, 1),)], r"or \(\(0, share\)"), (["much"], "is a number or")):
        with pytest.raises(UserError, match=message):
            Shares(given)


@pytest.mark.slow
def test_a_step_moves_every_parameter_of_the_model():
    task, modules = built(clips=2)
    graph, params, rest = nnx.split(modules["language"], nnx.Param, ...)

    @jax.jit
    def gradients(params):
        def loss(params):
            live = {"language": nnx.merge(graph, params, rest)}
            return task.loss(live, cached(24), jax.random.key(0), jnp.zeros((), int))[0]

        return jax.grad(loss)(params)

    still = [path for path, g in nnx.to_flat_state(gradients(params)) if not np.any(g.get_value())]
    assert still == []


@pytest.mark.slow
def test_clips_stories_and_captions_are_drawn():
    task, modules = built(clips=2, tokenizer=True)
    teller, said = StreamGenerator(task, modules), {k: v for k, v in batch(3).items() if k != "video"}
    assert teller.window == 2 and teller.windows(4, 0) == 2
    clip = teller.generate(said, 2, seed=0)
    assert clip.shape == (3, 2, 8, 8, 3) and clip.dtype == np.uint8
    np.testing.assert_array_equal(teller.generate(jax.tree.map(lambda x: x[1:], said), 2, seed=0, first=1), clip[1:])
    story = teller.generate([said, said], 4, seed=0)
    other = {**said, "text_ids": 1 + said["text_ids"] % 256, "text_mask": ~said["text_mask"]}
    changed = teller.generate([said, other], 4, seed=0)
    np.testing.assert_array_equal(changed[:, :2], story[:, :2])
    assert (changed[:, 2:] != story[:, 2:]).any()
    # The second text is written by the model where none is given.
    assert teller.generate(said, 4, seed=0).shape == (3, 4, 8, 8, 3)
    texts = teller.captions(batch(3)["video"], seed=0)
    assert len(texts) == 3 and all(isinstance(text, str) and len(text) <= LENGTH for text in texts)
    pictures = task.pictures(modules, batch(4), seed=0)
    assert [picture.name for picture in pictures] == ["samples", "captions"]
    assert [len(row) for picture in pictures for row in picture.rows] == [2] * 4 + [1] * 4
    with pytest.raises(UserError, match="draws at most 2 clips of 2 frames, one after another; ask for 4 frames"):
        teller.generate(said, 6, seed=0)
    with pytest.raises(UserError, match="takes no given frames"):
        teller.generate(said, 2, seed=0, first_frames=clip[:, :1])


@pytest.mark.slow
def test_an_evaluation_has_numbers_of_every_layout():
    task, modules = built(tokenizer=True)
    examples = batch(4)
    found = task.evaluate(modules, [examples, {k: v[:2] for k, v in examples.items()}], seed=0)
    wanted = {"loss", "captions_right", "draw_loss", "draw_video", "caption_loss", "caption_words", "caption_accuracy"}
    assert wanted == set(found) and 0 <= found["captions_right"] <= 1
    _, (_, metrics) = losses(task, modules, examples, [1] * 4)
    _, (_, rest) = losses(task, modules, {k: v[:2] for k, v in examples.items()}, [1] * 2)
    np.testing.assert_allclose(found["draw_video"], (4 * metrics["video"] + 2 * rest["video"]) / 6, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.batch_size": 6, "model.packed": 4}, "a batch of 6 does not divide into rows of 4 clips"),
        ({"model.packed": 2, "accumulate": 2}, "rows of several clips go with accumulate=1"),
        (
            {"model.condition_drop": 2.0},
            "condition_drop of model 'stream' must be a number of at least 0 and at most 1",
        ),
        ({"model.floats.video.name": "diffusion"}, "does not go with streams; take one of: gaussian, gaussian_mixture"),
        ({"sampler.name": "blocks"}, "unknown sampler 'blocks'"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        task = tasks.build(tiny(**changes))
        nnx.eval_shape(lambda: task.init(nnx.Rngs(0)))
