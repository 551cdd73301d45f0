"""Tokens of several segments in one row: there and back, coordinates, and what is shown of residual ones."""

import jax
import numpy as np
import pytest
from flax import nnx

from videogen import tasks
from videogen.conditioning import Conditioning
from videogen.configs import hitvideo, one_vae, tokenflow
from videogen.errors import UserError
from videogen.nn import MicroBatch
from videogen.tasks import to_video
from videogen.tasks.rows import in_row, relabel_of
from videogen.tokens import Tokens

SMALL = {"width": 16, "heads": 2, "layers": 1, "mlp_width": 16}


def task_of(system, **changes) -> tasks.Task:
    config = system.get_config("stage=generator,size=debug")
    model = config.parts.tokenizer.model
    if system is not tokenflow:
        model.update({"width": 4, "norm_groups": 2 if system is hitvideo else 0})
    config.model.transformer.update(SMALL)
    config.text.encoder.update({"width": 16, "heads": 2})
    config.update_from_flattened_dict(changes)
    return tasks.build(config)


@pytest.fixture(scope="module")
def layers():
    task = task_of(hitvideo, **{"model.token_drop": 0.5})
    modules = task.init(nnx.Rngs(0)) | {"tokenizer": task.structure_of_part("tokenizer")}
    clip = task.config.data.clip
    shape = (2, clip.frames, clip.height, clip.width, 3)
    return task, modules, {"video": np.random.default_rng(0).integers(0, 256, shape, np.uint8)}


def test_every_place_of_a_row_has_its_middle_in_pixels(layers):
    task, modules, _ = layers
    centres = np.array(modules["generator"].generator.centres)
    sizes = [segment.tokens for _, segment in task.layout.segments]
    assert centres.shape == (sum(sizes), 3) == (task.drawn.tokens, 3)
    # The finest layer has patches of 4 × 4: its first place lies around row 1.5; frame 0 stands alone.
    finest = centres[-sizes[-1] :]
    np.testing.assert_array_equal(finest[:2], [[0, 1.5, 1.5], [0, 1.5, 5.5]])
    # Four places of it lie around one of the layer above.
    above = centres[sizes[0] : sizes[0] + sizes[1]]
    grid = finest.reshape(3, 3, 2, 3, 2, 3).mean((2, 4)).reshape(-1, 3)
    np.testing.assert_allclose(grid[:, 1:], above[:, 1:])


@pytest.mark.slow
def test_a_row_decodes_as_its_segments_do(layers):
    task, modules, batch = layers
    tokens = task.tokens(modules, batch)
    row, shown = in_row(tokens, task.drawn, modules["generator"].generator, None, jax.random.key(0), MicroBatch())
    assert shown == {} and row.layout == task.drawn
    both = [task.detokenize(modules, found) for found in (row, tokens)]
    np.testing.assert_array_equal(*both)


def test_where_wrong_ids_are_shown_later_layers_are_coded_again(layers):
    task, modules, batch = layers
    tokens, tokenizer = task.tokens(modules, batch), modules["tokenizer"]
    relabel = relabel_of(tokenizer, batch)
    row, shown = in_row(tokens, task.drawn, modules["generator"].generator, relabel, jax.random.key(1), MicroBatch())
    seen, wanted = (Tokens.from_flat(found.flat, task.layout) for found in (shown["inputs"], row))
    first = tokens.names[0]
    np.testing.assert_array_equal(wanted[first].values, tokens[first].values)
    assert 0.2 < (seen[first].values != wanted[first].values).mean() < 0.7
    encoded = tokenizer.encode(to_video(batch["video"]))
    for i, name in enumerate(tokens.names[1:], 1):
        before = Tokens(seen.segments[:i], seen.names[:i])
        np.testing.assert_array_equal(wanted[name].values, tokenizer.relabel(encoded, before, name).values)
    assert (wanted[tokens.names[1]].values != tokens[tokens.names[1]].values).any()
    assert relabel_of(tokenizer, {"tokens/layer_3": 1}) is None


def test_what_is_shown_is_what_the_generator_reads(layers):
    task, modules, batch = layers
    generator = modules["generator"].generator
    tokens = Tokens.single(task.tokens(modules, batch).flat, task.drawn)
    other = Tokens.single((tokens.flat + 1) % 1000, task.drawn)
    said = Conditioning(task.conditioning(modules, batch | task.unprompted(2)).text)
    key = jax.random.key(0)

    @jax.jit
    def losses():
        plain = generator.loss(tokens, said, key, train=False)[0]
        same = generator.loss(tokens, said, key, train=False, inputs=tokens)[0]
        return plain, same, generator.loss(tokens, said, key, train=False, inputs=other)[0]

    plain, same, changed = losses()
    assert plain == same != changed


@pytest.mark.parametrize("system", [one_vae, tokenflow])
def test_generators_over_segments_build_and_refuse_other_sizes(system):
    task = task_of(system)
    assert task.drawn.tokens == task.layout.tokens and task.grid.time == 1
    with pytest.raises(UserError, match="several segments: leave data.image_batch_size out"):
        task_of(system, **{"data.image_batch_size": 2})


def test_a_tokenizer_without_scales_has_none_to_draw():
    scales = tokenflow.get_config("stage=generator,size=debug")
    config = hitvideo.get_config("stage=generator,size=debug")
    config.model, config.sampler = scales.model, scales.sampler
    with pytest.raises(UserError, match="has no scales to draw"):
        tasks.build(config)
