"""Distillation of features: closed forms, where gradients go, places of latents, and a run of the real loop."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from tests.parameters import with_random_parameters
from tests.training_configs import tiny
from videogen import encoders, losses, tasks
from videogen.defaults import optimizer
from videogen.errors import UserError
from videogen.losses import OBJECTIVES, RECONSTRUCTION, Outputs, Pass
from videogen.losses.distillation import at_places
from videogen.nn import MicroBatch
from videogen.runs.records import FILE, read_metrics
from videogen.shapes import Compression, VideoShape
from videogen.tasks.base import PUBLISHED
from videogen.training.loading import export_safetensors, load
from videogen.training.loop import train
from videogen.training.state import structure_of

SIZES = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 4, "image_size": 8}
KEY, FIRST = jax.random.key(1), jnp.zeros((), jnp.int32)
FEATURES = {"encoded": 5, "vectors": 4}


def setting(folder) -> losses.Setting:
    """With a part ``dino``, of which only the structure is there."""
    (folder / "config.json").write_text(json.dumps({**SIZES, "model_type": "dinov2"}))
    dino = nnx.eval_shape(lambda: encoders.described(encoders.describe("dinov2", folder)))
    return losses.Setting(VideoShape(3, 8, 8), 8, 4, 10, FEATURES, {"dino": dino}, Compression(2, 4, 4))


def section(**settings) -> ConfigDict:
    return ConfigDict({"name": "distillation", "weight": 0.5, "teacher": "dino", "side": 8, **settings})


def built(folder, **settings):
    """The term and its modules, all random."""
    about = setting(folder)
    term = losses.build({"repa": section(**settings)}, about)["repa"]
    projection = nnx.eval_shape(lambda: term.module(nnx.Rngs(0)))
    modules = {"dino": about.parts["dino"], "distillation": projection}
    return term, {name: with_random_parameters(module, seed=0) for name, module in modules.items()}


def video(batch: int = 2) -> jax.Array:
    return jax.random.uniform(jax.random.key(0), (batch, 3, 8, 8, 3), minval=-1, maxval=1)


def outputs(term, modules, feature) -> Outputs:
    passes = {RECONSTRUCTION: Pass(video(), video())}
    return Outputs(passes, features={"encoded": feature, **term.features(modules, video())})


def grid(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(2), shape)


def test_closed_forms_of_the_objectives():
    x = grid(2, 2, 3, 3, 4)
    assert float(OBJECTIVES["cosine"](x, 3 * x)) == pytest.approx(0, abs=1e-6)
    assert float(OBJECTIVES["cosine"](x, -x)) == pytest.approx(2, rel=1e-6)
    a, b = jnp.eye(4)[0], jnp.eye(4)[2]
    assert float(OBJECTIVES["cosine"](2 * a[None], b[None])) == 1.0
    assert float(OBJECTIVES["l2"](x, x)) == 0.0
    assert float(OBJECTIVES["l2"](x, x + 3)) == pytest.approx(9, rel=1e-5)


def test_a_projection_that_gives_the_teachers_vectors_has_no_loss(tmp_path):
    term, modules = built(tmp_path)
    given = outputs(term, modules, grid(2, 2, 2, 2, 5))
    theirs = at_places(given.features["repa"], (2, 2, 2), 3, Compression(2, 4, 4))
    modules["distillation"] = lambda x: theirs
    value, _ = term.value(modules, given, KEY, FIRST, MicroBatch())
    assert float(value) == pytest.approx(0, abs=1e-5)
    # Orthogonal to every vector of 8 channels: pairs exchanged, one of them with the other sign.
    turned = jnp.stack([theirs[..., 1::2], -theirs[..., ::2]], axis=-1).reshape(theirs.shape)
    modules["distillation"] = lambda x: turned
    assert float(term.value(modules, given, KEY, FIRST, MicroBatch())[0]) == pytest.approx(1, rel=1e-5)


def test_vectors_are_means_over_the_frames_of_a_latent():
    x = grid(2, 5, 4, 6, 3)
    same = at_places(x, (5, 4, 6), 5, Compression(1, 8, 8))
    np.testing.assert_allclose(same, x, rtol=1e-6)
    causal = at_places(x, (3, 4, 6), 5, Compression(2, 8, 8))
    expected = jnp.stack([x[:, 0], (x[:, 1] + x[:, 2]) / 2, (x[:, 3] + x[:, 4]) / 2], axis=1)
    np.testing.assert_allclose(causal, expected, atol=1e-6)
    # A teacher whose vectors stand for two frames each, a latent of four: means of two vectors.
    pairs = at_places(x[:, :4], (2, 4, 6), 8, Compression(4, 8, 8, first_alone=False))
    np.testing.assert_allclose(pairs, (x[:, 0:4:2] + x[:, 1:4:2]) / 2, atol=1e-6)
    # Antialiased to half the places, a constant stays and a ramp keeps its mean.
    ramp = jnp.broadcast_to(jnp.arange(6.0)[:, None], x.shape)
    small = at_places(ramp, (5, 2, 3), 5, Compression(1, 8, 8))
    assert small.shape == (2, 5, 2, 3, 3) and float(small.mean()) == pytest.approx(2.5, rel=1e-6)


@pytest.mark.parametrize("hidden", [(), (6, 7)])
def test_gradients_reach_the_feature_and_the_projection_and_never_the_teacher(tmp_path, hidden):
    term, modules = built(tmp_path, hidden=hidden)
    kernels = [layer.kernel.get_value().shape for layer in modules["distillation"].layers]
    assert kernels == list(zip((5, *hidden), (*hidden, 8), strict=True))
    split = {name: nnx.split(module) for name, module in modules.items()}

    @jax.jit
    def both(feature, states):
        live = {name: nnx.merge(split[name][0], states[name]) for name in states}

        def value(feature, states):
            live = {name: nnx.merge(split[name][0], states[name]) for name in states}
            return term.value(live, outputs(term, live, feature), KEY, FIRST, MicroBatch())[0]

        def of_group(feature, states):
            live = {name: nnx.merge(split[name][0], states[name]) for name in states}
            given = outputs(term, live, feature).detached()
            return term.group_value(live, given, KEY, FIRST, MicroBatch())[0]

        given = outputs(term, live, feature)
        total, metrics = losses.combine({"repa": term}, live, given, KEY, FIRST, MicroBatch())
        gradients = [jax.value_and_grad(f, argnums=(0, 1))(feature, states) for f in (value, of_group)]
        return total, metrics, gradients

    feature = grid(2, 2, 2, 2, 5)
    total, metrics, ((value, own), (group, detached)) = both(feature, {n: s for n, (_, s) in split.items()})
    assert float(value) == float(group) == float(metrics["repa"]) and float(total) == pytest.approx(
        float(value) / 2, rel=1e-6
    )
    assert (np.abs(own[0]).max(axis=(0, -1)) > 1e-4).all() and not np.any(detached[0])
    for leaf in jax.tree.leaves(detached[1]["distillation"]):
        assert np.abs(leaf).max() > 1e-5
    assert not any(np.any(leaf) for part in (own, detached) for leaf in jax.tree.leaves(part[1]["dino"]))


def test_wrong_sections_are_one_line(tmp_path):
    about = setting(tmp_path)
    for settings, message in (
        ({"feature": "encodet"}, "no feature 'encodet' to distil into; did you mean 'encoded'"),
        ({"objective": "cosin"}, "unknown objective 'cosin' of distillation; did you mean 'cosine'"),
        ({"hidden": (0,)}, "hidden of loss term"),
        ({"teacher": "dine"}, "no part 'dine' to learn from; did you mean 'dino'"),
    ):
        with pytest.raises(UserError, match=message) as stop:
            losses.build({"repa": section(**settings)}, about)
        assert "\n" not in str(stop.value)
    term, modules = built(tmp_path)
    with pytest.raises(UserError, match="places of 'encoded' have no height and width"):
        term.value(modules, outputs(term, modules, grid(2, 6, 5)), KEY, FIRST, MicroBatch())


def test_without_a_projection_the_feature_itself_is_compared(tmp_path):
    """TokenFlow: the decoded semantics have the teacher's channels; no group, and no loss where they are parallel."""
    about = dataclasses.replace(setting(tmp_path), features=FEATURES | {"semantic": 8})
    term = losses.build({"repa": section(projected=False, feature="semantic")}, about)["repa"]
    modules = {"dino": with_random_parameters(about.parts["dino"], seed=0)}
    assert term.group == ""
    features = term.features(modules, video())
    theirs = at_places(features["repa"], (2, 2, 2), 3, Compression(2, 4, 4))
    for feature, expected in ((3 * theirs, 0.0), (-theirs, 2.0)):
        given = Outputs({RECONSTRUCTION: Pass(video(), video())}, features={"semantic": feature, **features})
        value, _ = term.value(modules, given, KEY, FIRST, MicroBatch())
        assert float(value) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(UserError, match="'vectors' has 4 channels, the teacher 8: without a projection as many"):
        losses.build({"repa": section(projected=False, feature="vectors")}, about)
    with pytest.raises(UserError, match="DinoV2 has no reading 'projected' of its patches"):
        losses.build({"repa": section(reading="projected")}, about)


def config_of(folder, **settings) -> ConfigDict:
    config = tiny()
    config.losses.repa = section(**settings)
    config.parts.dino = {"checkpoint": str(folder), "model": {"name": "dinov2"}, "hash": ""}
    return config


def test_the_encoder_is_a_part_and_the_projection_a_group(tmp_path):
    config = config_of(tmp_path, feature="vectors")
    assert tasks.class_of(config).parts_of(config) == {"dino": PUBLISHED}
    with pytest.raises(UserError, match="config.parts.dino.checkpoint must be the folder that 'dinov2' is published"):
        tasks.build(config)
    setting(tmp_path)
    config.parts.dino.model = encoders.describe("dinov2", tmp_path)
    task = tasks.build(config)
    assert set(task.losses) == {"tokenizer", "distillation"} and "dino" in task.training_only
    with pytest.raises(UserError, match="config.optimizer.distillation is missing"):
        structure_of(task, config)
    config.parts.dino.model = {"name": "t5"}
    with pytest.raises(UserError, match="unknown encoder .parts.dino.model. 't5'"):
        tasks.build(config)
    config.losses.repa.weight = 0
    assert set(tasks.build(config).losses) == {"tokenizer"} and not tasks.class_of(config).parts_of(config)


@pytest.mark.slow
def test_a_tokenizer_learns_the_teachers_features_in_the_real_loop(tmp_path):
    transformers = pytest.importorskip("transformers")
    teacher = tmp_path / "teacher"
    published = transformers.Dinov2Model(transformers.Dinov2Config(**SIZES))
    published.save_pretrained(teacher)
    config = config_of(teacher, hidden=(16,))
    config.steps = config.checkpoint_every = config.eval_every = 30
    config.optimizer.distillation = optimizer(learning_rate=1e-2)
    train(config, tmp_path / "run")
    values = [r["train/repa"] for r in read_metrics(tmp_path / "run" / FILE) if "train/repa" in r]
    assert len(values) == 30 and np.mean(values[-5:]) < 0.8 * np.mean(values[:5])
    # The run needs the published files no more; an export has neither teacher nor projection.
    shutil.rmtree(teacher)
    config.steps = 31
    assert int(train(config, tmp_path / "run").state["step"]) == 31
    loaded = load(tmp_path / "run")
    assert {"dino", "distillation"} <= set(loaded.modules) and len(loaded.config.parts.dino.hash) == 64
    export_safetensors(loaded, tmp_path / "export")
    assert set(load(tmp_path / "export").modules) == {"tokenizer"}


def test_a_teacher_that_gives_pixels_makes_it_the_ordinary_loss():
    """E-ViLM's tokenizer: with pixels as features the squared distance of what a decoder makes of quantised vectors."""
    clip, compression = VideoShape(3, 8, 8), Compression(2, 4, 4)

    class Identity(nnx.Module):
        def grid_width(self, reading):
            return 3

        def grid(self, video, side, reading):
            return video

    setting = losses.Setting(clip, 8, 5, 1, {"vectors": 5}, {"pixels": Identity()}, compression)
    section = {"name": "distillation", "weight": 1.0, "teacher": "pixels", "feature": "vectors", "objective": "l2"}
    (term,) = losses.build({"distillation": section}, setting).values()
    decoder = term.module(nnx.Rngs(0))
    video = jax.random.uniform(jax.random.key(0), (2, 3, 8, 8, 3), minval=-1)
    vectors = jax.random.normal(jax.random.key(1), (2, 2, 2, 2, 5))
    features = {"vectors": vectors, **term.features({"pixels": Identity()}, video)}
    outputs = losses.Outputs({losses.RECONSTRUCTION: losses.Pass(video, video)}, features=features)
    found, _ = term.value({"distillation": decoder}, outputs, jax.random.key(2), jnp.zeros((), int), MicroBatch())
    # Means of four by four pixels, of the first frame and of the two behind it.
    small = jax.image.resize(video, (2, 3, 2, 2, 3), "linear", antialias=True)
    seen = jnp.stack([small[:, 0], small[:, 1:].mean(1)], axis=1)
    assert float(found) == pytest.approx(float(jnp.square(decoder(vectors) - seen).mean()), rel=1e-5)
