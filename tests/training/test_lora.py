"""Low-rank updates of a run: trained beside a frozen base by the one loop, and part of the kernels in an export."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import nnx
from ml_collections import ConfigDict

from tests.training_configs import tiny
from tests.untrained import save_untrained
from videogen import tasks
from videogen.configs import nbp
from videogen.data.text import build_text_tokenizer
from videogen.training.loading import Loaded, export_safetensors, load
from videogen.training.loop import train

LORA = {"rank": 2, "alpha": 4.0}


def generator(lora: bool) -> ConfigDict:
    """Of the codes of ``tiny``, two steps long; with low-rank updates beside a frozen transformer, or plain."""
    config = nbp.get_config("stage=generator,size=debug")
    config.parts.tokenizer.model = tiny().model
    config.data.clip.update({"frames": 5, "height": 16, "width": 16})
    config.data.batch_size = config.data.eval_batch_size = 2
    config.model.update({"block": (1, 1, 4)})
    config.model.transformer = {"width": 16, "layers": 2, "heads": 2, "mlp_width": 16}
    config.text.encoder.update({"width": 16, "heads": 2})
    config.optimizer.generator.update({"name": "adamw", "warmup": 0})
    config.ema.decay = 0.9
    config.log_every, config.steps = 1, 2
    config.eval_every = config.checkpoint_every = 2
    if lora:
        config.model.transformer.update({"attention": {"lora": LORA}, "mlp": {"lora": LORA}})
        config.optimizer.generator.freeze = ("generator", "text_encoder")
    return config


def drawn(config: ConfigDict, directory: Path) -> Loaded:
    """What a run would be loaded as, with random numbers everywhere; drawn by NumPy, which compiles nothing."""
    task, random = tasks.build(config), np.random.default_rng(0)

    def draw(module: nnx.Module) -> nnx.Module:
        graph, state = nnx.split(module)
        return nnx.merge(graph, jax.tree.map(lambda x: jnp.asarray(random.normal(size=x.shape) / 4, x.dtype), state))

    modules = nnx.eval_shape(lambda: task.init(nnx.Rngs(0)) | task.frozen(None))
    build_text_tokenizer(config.text.tokenizer).save(directory / "text_tokenizer")
    return Loaded(epath.Path(directory), config, task, {name: draw(module) for name, module in modules.items()}, 7)


def flat(module: nnx.Module) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(module)))
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}


def features(model: nnx.Module) -> np.ndarray:
    """What the transformer of a generator makes of inputs."""
    inputs, context = (jax.random.normal(jax.random.key(i), (2, length, 16)) for i, length in enumerate((8, 3)))
    graph, state = nnx.split(model.generator.stack)
    return np.asarray(jax.jit(lambda state: nnx.merge(graph, state)(inputs, context=context))(state))


def test_an_export_is_a_plain_model_with_the_same_outputs(tmp_path):
    config = generator(lora=True)
    config.text.tokenizer.name = "bytes"
    loaded = drawn(config, tmp_path)
    written = export_safetensors(loaded, tmp_path / "export")
    exported = load(tmp_path / "export")
    assert "lora" not in (tmp_path / "export" / "config.json").read_text()
    assert written.hash == exported.hash != loaded.hash
    # ``load`` refuses weights that are not those of the model without updates, which the config describes.
    before, after = flat(loaded.trained), flat(exported.trained)
    assert set(after) == {name for name in before if ".lora." not in name}
    merged = {name for name in after if (after[name] != before[name]).any()}
    assert merged == {name.partition("lora.")[0] + "kernel" for name in before if ".lora." in name}
    expected, found = (features(x.trained) for x in (loaded, exported))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.slow
def test_a_run_trains_the_updates_alone_and_keeps_no_state_of_the_rest(tmp_path):
    save_untrained(tiny(), tmp_path / "tokenizer")
    base = load(save_untrained(generator(lora=False), tmp_path / "base"))
    config = generator(lora=True)
    config.parts.tokenizer.checkpoint = str(tmp_path / "tokenizer")
    config.start_from.run = str(tmp_path / "base")
    run = train(config, tmp_path / "run")
    before, after = flat(base.trained), flat(load(tmp_path / "run").trained)
    updates = {name for name in after if ".lora." in name}
    assert set(after) - updates == set(before) and updates
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    assert all(np.abs(after[name]).max() > 0 for name in updates)
    optimizer = jax.tree_util.tree_leaves_with_path(run.state["optimizer"])
    moments = {jax.tree_util.keystr(path) for path, leaf in optimizer if leaf.ndim}
    assert len(moments) == 2 * len(updates) and all("'lora'" in name for name in moments)
    export_safetensors(load(tmp_path / "run"), tmp_path / "export")
    assert set(flat(load(tmp_path / "export").trained)) == set(before)
