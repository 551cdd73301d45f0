"""Every size of the TokenFlow config, the encoder it begins as a copy of, and a run from first step to export."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

import videogen
from tests.parameters import with_random_parameters
from videogen import encoders, tasks
from videogen.configs import tokenflow
from videogen.errors import UserError
from videogen.losses.distillation import at_places, cosine
from videogen.nn import MicroBatch
from videogen.runs.records import FILE, read_metrics
from videogen.shapes import VideoShape
from videogen.tasks import to_video
from videogen.training.loading import export_safetensors, load, new_frozen
from videogen.training.loop import train
from videogen.training.state import parameter_count
from videogen.training.warm_start import starting_weights


@functools.cache
def task_of(argument: str) -> tasks.Task:
    return tasks.build(tokenflow.get_config(argument))


@functools.cache
def model_of(argument: str) -> nnx.Module:
    return nnx.eval_shape(lambda: task_of(argument).init(nnx.Rngs(0)))["tokenizer"]


def count(module: nnx.Module) -> int:
    return parameter_count(nnx.state(module, nnx.Param))


@pytest.mark.parametrize(
    ("variant", "tokens", "published", "head", "total"),
    [
        ("B", 561, 86_192_640, 768 * 512, 175.4e6),
        ("B-256", 817, 86_192_640, 768 * 512, 175.4e6),
        # The attention of the pooling head, its query, norm and MLP.
        ("XL", 2227, 428_225_600, 4 * (1152**2 + 1152) + 3 * 1152 + 2 * 1152 * 4304 + 4304 + 1152, 531.6e6),
    ],
)
def test_paper_sizes(variant, tokens, published, head, total):
    """The published encoders to the last parameter, less the head that is not read; the published tokens."""
    model = model_of(f"size=paper,variant={variant}")
    assert count(model.semantic.network) == published - head
    assert count(model) == pytest.approx(total, rel=1e-3)
    assert task_of(f"size=paper,variant={variant}").tokens == tokens
    layout = model.layout(model.clip)
    assert layout.tokens == tokens and {segment.bits for _, segment in layout.segments} == {15.0}
    assert layout.bits == 15 * tokens
    assert count(model.quantizer) == 32_768 * (32 + 8)


def test_the_published_tokenizer():
    config, model = tokenflow.get_config("size=paper,variant=XL"), model_of("size=paper,variant=XL")
    assert [scale[1] for scale in model.quantizer.scales] == [*range(1, 11), 12, 14, 17, 22, 27]
    assert model.clip == VideoShape(1, 384, 384) and model.seen_by_pixels == VideoShape(1, 27 * 16, 27 * 16)
    assert (config.model.quantizer.drop, config.model.quantizer.base.pixel_weight) == (0.1, 1.0)
    assert (config.model.decoder.layers, config.model.decoder.width) == (3, 1152)
    assert (model.semantic.reading, model.semantic_width) == ("penultimate", 1152)
    rate = config.optimizer.tokenizer
    assert (rate.learning_rate, rate.b1, rate.b2) == (1e-4, 0.9, 0.95)
    assert config.losses.distillation.weight == config.losses.l2.weight == 1.0
    assert (config.losses.adversarial.objective, config.losses.adversarial.start) == ("hinge", 20_000)
    for variant, width in (("B", 512), ("XL", 1152)):
        task = task_of(f"size=paper,variant={variant}")
        assert task.terms["distillation"].group == "" and list(task.losses) == ["tokenizer"]
        teacher = nnx.eval_shape(lambda t=task: t.structure_of_part("semantic"))
        assert teacher.grid_width(task.terms["distillation"].reading) == width


def test_the_wider_decoder_of_the_second_stage():
    config = tokenflow.get_config("size=paper,variant=B")
    config.model.pixel_decoder = {"width": 256, "blocks": 4}
    wide = nnx.eval_shape(lambda: tasks.build(config).init(nnx.Rngs(0)))["tokenizer"]
    plain = model_of("size=paper,variant=B")
    assert count(wide.pixel_encoder) == count(plain.pixel_encoder)
    assert count(wide.pixel_decoder) > 4 * count(plain.pixel_decoder)


@pytest.mark.parametrize(("size", "tokens"), [("debug", 140), ("small", 465)])
def test_smaller_sizes_build(size, tokens):
    assert count(model_of(f"size={size}")) > 5e5
    assert task_of(f"size={size}").tokens == tokens


@pytest.mark.parametrize("name", tokenflow.SWEEPS)
def test_every_variant_of_the_sweeps_builds(name):
    for change in tokenflow.SWEEPS[name]:
        config = tokenflow.get_config("size=debug")
        config.update_from_flattened_dict(change)
        tasks.build(config)


def narrow(**changes) -> ConfigDict:
    """The debug config with small networks beside the stand-in that comes with videogen."""
    config = tokenflow.get_config("size=debug")
    config.data.clip.update({"height": 8, "width": 8})
    config.data.batch_size = config.data.eval_batch_size = 2
    config.model.update({"clip": (5, 8, 8), "widths": (3, 2)})
    config.model.pixels.update({"width": 4, "multipliers": (1, 2), "norm_groups": 2})
    config.model.pixels.update({"spatial_strides": (2,), "temporal_strides": (2,)})
    config.model.decoder.update({"width": 12, "heads": 2, "mlp_width": 16})
    config.model.quantizer.update({"scales": ((1, 1, 1), (2, 2, 2), (3, 4, 4))})
    config.model.quantizer.base.update({"size": 16, "widths": (3, 2)})
    config.steps = config.eval_every = config.checkpoint_every = config.log_every = 2
    config.optimizer.tokenizer.warmup = 0
    config.update_from_flattened_dict(changes)
    return config


def test_the_semantic_encoder_begins_as_a_copy_of_the_frozen_one(tmp_path):
    config = narrow()
    task = tasks.build(config)
    frozen = new_frozen(task)
    weights = starting_weights(config, tmp_path / "run", task, frozen=frozen)
    shipped = nnx.to_pure_dict(nnx.state(encoders.load("shapes_classifier", encoders.SHIPPED / "shapes_classifier")))
    assert {path[:3] for path in weights} == {("tokenizer", "semantic", "network")} and len(weights) == 12
    for path, value in weights.items():
        theirs = functools.reduce(lambda tree, key: tree[int(key) if key.isdigit() else key], path[3:], shipped)
        np.testing.assert_array_equal(value, theirs)
    config.start_from.paths = (("tokenizer.semantic.network", ":semantics"),)
    with pytest.raises(UserError, match="the frozen parts of this run has nothing called 'semantics'; did you mean"):
        starting_weights(config, tmp_path / "run", task, frozen=frozen)


def loss_of(task: tasks.Task):
    """Random modules; compiled (parameters by module, clips) -> gradient of the loss, (loss, metrics); parameters."""
    abstract = nnx.eval_shape(lambda: task.init(nnx.Rngs(0)) | task.frozen(None))
    modules = {name: with_random_parameters(module) for name, module in abstract.items()}
    split = {name: nnx.split(module, nnx.Param, ...) for name, module in modules.items()}

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient(params, video):
        live = {name: nnx.merge(split[name][0], params[name], split[name][2]) for name in modules}
        batch = {"video": video}
        value, outcome = task.losses["tokenizer"](live, batch, jax.random.key(0), jnp.zeros((), int), MicroBatch())
        return value, (value, outcome.metrics)

    return modules, gradient, {name: params for name, (_, params, _) in split.items()}


@pytest.mark.slow
def test_the_term_compares_decoded_semantics_with_the_frozen_encoder():
    """Its value is the distance of what the tokenizer decodes, and its gradient reaches all that leads there."""
    config = narrow(**{"losses.l2.weight": 0.0, "model.quantizer.base.commitment_weight": 0.0})
    config.model.quantizer.drop = 0.0
    task = tasks.build(config)
    modules, gradient, params = loss_of(task)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 8, 8, 3), np.uint8)
    found, (value, metrics) = gradient(params, pixels)
    model, video = modules["tokenizer"], to_video(jnp.asarray(pixels))

    @jax.jit
    def expected(video):
        decoded = model.semantics(model.bottleneck(model.encode(video))[0])
        return cosine(decoded, at_places(modules["semantic"].grid(video), (3, 4, 4), 5, model.feature_compression))

    np.testing.assert_allclose(metrics["distillation"], expected(video), rtol=1e-4)
    np.testing.assert_allclose(value, config.losses.distillation.weight * metrics["distillation"], rtol=1e-5)
    reached = {name for name, part in found["tokenizer"].items() if any(np.any(x) for x in jax.tree.leaves(part))}
    assert reached == {"semantic", "from_code", "semantic_decoder", "to_teacher"}
    assert not any(np.any(x) for x in jax.tree.leaves(found["semantic"]))
    # A term of the feature's own name would read the teacher in its place.
    config.losses = {"semantic": config.losses.distillation}
    modules, gradient, params = loss_of(tasks.build(config))
    with pytest.raises(UserError, match="losses.semantic: 'semantic' is the name of a feature already"):
        jax.eval_shape(gradient, params, pixels)


@pytest.mark.slow
def test_a_run_from_its_first_step_to_its_export(tmp_path):
    """It resumes to the bit with its k-means start behind it, and the teacher stays as it is."""
    changes = {"model.quantizer.base.kmeans": 2, "optimizer.tokenizer.horizon": 4}
    train(narrow(**changes, steps=4), tmp_path / "straight")
    train(narrow(**changes), tmp_path / "run")
    half = load(tmp_path / "run")
    assert int(half.trained.quantizer.base.started.get_value()) == 1
    train(narrow(**changes, steps=4), tmp_path / "run")
    straight, resumed = (load(tmp_path / name) for name in ("straight", "run"))
    states = [jax.tree.leaves(nnx.state(loaded.trained)) for loaded in (straight, resumed)]
    for a, b in zip(*states, strict=True):
        np.testing.assert_array_equal(a, b)
    shipped = encoders.load("shapes_classifier", encoders.SHIPPED / "shapes_classifier")
    teacher = resumed.modules["semantic"]
    for a, b in zip(jax.tree.leaves(nnx.state(teacher)), jax.tree.leaves(nnx.state(shipped)), strict=True):
        np.testing.assert_array_equal(a, b)
    moved = np.abs(resumed.trained.semantic.network.norms[0].shift.get_value() - teacher.norms[0].shift.get_value())
    assert 0 < moved.max() < 0.1
    record = {name: value for row in read_metrics(tmp_path / "run" / FILE) for name, value in row.items()}
    assert {f"eval/codebook_usage_scale_{i}" for i in (1, 2, 3)} <= set(record)
    assert record["eval/codebook_expected_usage_scale_1"] == pytest.approx(1 - (15 / 16) ** 4)
    export_safetensors(resumed, tmp_path / "export")
    exported = videogen.load(tmp_path / "export")
    assert exported.hash == resumed.hash and set(exported.modules) == {"tokenizer"}
    video = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 5, 8, 8, 3)), jnp.float32)
    tokens = exported.tokenizer.tokenize(video, 9)
    np.testing.assert_allclose(tokens.bits(), 9 * 4.0)
    np.testing.assert_allclose(
        exported.tokenizer.detokenize(tokens),
        resumed.tokenizer.detokenize(resumed.tokenizer.tokenize(video, 9)),
        atol=1e-5,
    )
