"""The stages that train stand-ins, and the command that writes them."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from videogen import encoders, tasks
from videogen.configs import stand_ins
from videogen.data import Clip
from videogen.data.shapes_source import COLOURS, DIRECTIONS, FORMS, ShapesSource
from videogen.errors import UserError
from videogen.tasks.stand_ins import grammar


def test_labels_tell_colour_form_and_direction():
    plain, told = (ShapesSource(clip=Clip(2, 8, 8), seed=0, split="train", directions=d) for d in (False, True))
    assert len(plain.classes) == 24 and len(told.classes) == 96 == stand_ins.classifier().classes
    for i in range(20):
        shape = told[i]["attributes"]["shapes"][0]
        name = f"{shape['colour']} {shape['form']} {shape['directions'][0]}"
        assert told.classes[told[i]["label"]] == name and told[i]["label"] // 4 == plain[i]["label"]
    assert told.classes[0] == " ".join(next(iter(words)) for words in (COLOURS, FORMS, DIRECTIONS))


def test_the_loss_of_a_classifier_is_the_cross_entropy_of_its_labels():
    config = stand_ins.classifier()
    config.model.update({"widths": (4, 4, 4, 4), "side": 8})
    task = tasks.build(config)
    modules = task.init(nnx.Rngs(0))
    video = np.random.default_rng(0).integers(0, 256, (3, 4, 8, 8, 3), np.uint8)
    labels = jnp.array([3, 0, 95])
    logits = jax.jit(lambda video: modules["model"].logits(modules["model"](video)))(video)
    expected = np.mean([jax.nn.logsumexp(row) - row[label] for row, label in zip(logits, labels, strict=True)])
    loss, outcome = jax.jit(lambda batch: task.loss(modules, batch, None, 0))({"video": video, "label": labels})
    assert float(loss) == pytest.approx(expected, rel=1e-5) and logits.shape == (3, 96)
    # Batches of any size count by their clips.
    batches = [{"video": video[:1], "label": labels[:1]}, {"video": video[1:], "label": labels[1:]}]
    found = task.evaluate(modules, batches, 0)
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    assert found["accuracy"] == float(np.mean(np.argmax(logits, -1) == labels)) == float(outcome.metrics["accuracy"])
    with pytest.raises(UserError, match="needs a source with classes"):
        task.loss(modules, {"video": video}, None, 0)


def test_the_loss_of_captions_is_the_likelihood_of_each(monkeypatch):
    config = stand_ins.captions()
    task = tasks.build(config)
    model = types.SimpleNamespace(log_likelihood=lambda ids, mask: -2.0 * mask.sum(1))
    mask = jnp.array([[True, True, False], [True, False, False]])
    values = task.values(model, {"text_ids": jnp.zeros((2, 3), int), "text_mask": mask})
    assert values["loss"].tolist() == [4.0, 2.0] and values["tokens"].tolist() == [3.0, 2.0]
    assert task.sizes() == {"vocabulary_size": 512} and tasks.class_of(config).default_protocol(config) is None


def test_the_perplexity_of_the_grammar_is_that_of_a_draw_among_all_captions():
    sources = [types.SimpleNamespace(captions=lambda n=n: ["x"] * n) for n in (700, 324)]
    found = grammar({"loss": 10 * np.log(3), "tokens": 10.0}, *sources)
    assert found["perplexity"] == pytest.approx(3) and found["entropy_of_the_grammar"] == pytest.approx(np.log(1024))
    assert found["perplexity_of_the_grammar"] == pytest.approx(2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classifier", "captions"])
def test_the_command_writes_what_encoders_read_and_the_seed_decides_it(run_command, tmp_path, kind):
    names = ("one", "two", "other")
    for name, seed in zip(names, (0, 0, 1), strict=True):
        done = run_command("stand_in", f"--kind={kind}", f"--out={tmp_path / name}", "--steps=2", f"--seed={seed}")
        assert done.returncode == 0, done.stderr
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in names]
    assert weights[0] == weights[1] != weights[2]
    made = json.loads((tmp_path / "one" / "config.json").read_text())["made"]
    assert made["steps"] == 2 and made["held_out"]["count"] == 512 and made["command"].endswith("--steps=2 --seed=0")
    network = encoders.load(f"shapes_{kind}", tmp_path / "one")
    if kind == "captions":
        assert (network.score(["a small red circle moves left slowly on a pale plain background"]) < 0).all()
        assert made["held_out"]["perplexity"] > made["held_out"]["perplexity_of_the_grammar"] > 1


def test_what_is_missing_is_one_line(run_command, tmp_path):
    done = run_command("stand_in", "--kind=painter", f"--out={tmp_path}/x")
    assert done.returncode == 2 and "painter" in done.stderr and not (tmp_path / "x").exists()
