"""FLOPs of a decoder against what is compiled, and the two columns of a budget."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.tasks.test_understanding import tiny
from videogen import tasks
from videogen.language.backbones import build_backbone
from videogen.language.costs import DecoderSizes, left_for_mean, mean_over_layers, prompt_flops
from videogen.language.spans import RowShape

QWEN2 = DecoderSizes(3584, 28, 4, 128, 18_944, gated=True)


def test_matrices_of_a_published_decoder():
    """Users 6: 233.0 M multiply-adds for a token and layer, not 187.2 M; a tenth of the tokens costs 7.5 or 8.5 %."""
    assert (QWEN2.projections + QWEN2.mlp) / 1e6 == pytest.approx(233.0, abs=0.05)
    few, all_of_them = [[round(share * 12_544)] * 28 for share in (0.1, 1.0)]
    for causal, share in ((False, 0.075), (True, 0.085)):
        found = prompt_flops(QWEN2, few, causal=causal) / prompt_flops(QWEN2, all_of_them, causal=causal)
        assert found == pytest.approx(share, abs=0.0006)
    plain = DecoderSizes(3584, 28, 28, 128, 18_944, gated=False)
    assert (plain.projections + plain.mlp) / 1e6 == pytest.approx(187.2, abs=0.05)
    assert prompt_flops(plain, few) / prompt_flops(plain, all_of_them) == pytest.approx(0.071, abs=0.0006)


def test_tokens_that_enter_and_their_mean_over_the_layers():
    """Users 6: with 32 layers and the cut behind layer 2 "64" of 576 tokens are 29.9, and "192" are 166.4."""
    assert left_for_mean(32, 576, 64, 2) == pytest.approx(29.87, abs=0.01)
    assert left_for_mean(32, 576, 192, 2) == pytest.approx(166.4, abs=0.01)
    left = left_for_mean(32, 576, 64, 2)
    assert mean_over_layers([576] * 2 + [left] * 30) == pytest.approx(64)
    assert left_for_mean(32, 576, 576, 2) == 576


BACKBONES = {
    "tower": {
        "name": "tower",
        "transformer": {"width": 256, "layers": 2, "heads": 2, "mlp_width": 512, "rotary": True, "qk_norm": False},
    },
    "decoder": {
        "name": "decoder",
        "model": {
            **{"vocabulary_size": 16, "width": 256, "layers": 2, "heads": 2, "hidden": 384},
            **{"key_value_heads": 1, "head_width": 128},
        },
    },
}


@pytest.mark.parametrize("name", BACKBONES)
def test_the_count_is_that_of_the_compiled_program(name):
    """Within 2 %: what is compiled adds norms, softmax and rotary angles."""
    backbone = build_backbone(BACKBONES[name], length=128, rngs=nnx.Rngs(0))
    graph, state = nnx.split(backbone)

    def run(state, x):
        return nnx.merge(graph, state)(x, jnp.ones(x.shape[:2], bool))

    x = jax.ShapeDtypeStruct((1, 128, 256), jnp.float32)
    compiled = jax.jit(run).lower(state, x).compile().cost_analysis()["flops"]
    assert prompt_flops(backbone.sizes, [100, 100], others=28) == pytest.approx(compiled, rel=0.02)


def test_hooks_leave_fewer_tokens_to_later_layers():
    hooks = ({"layer": 0, "name": "depth", "share": 0.5}, {"layer": 1, "name": "merge_attended", "ratio": 0.75})
    config = tiny(**{"model.backbone.transformer.layers": 4, "model.backbone.hooks": hooks})
    task = tasks.build(config)
    backbone = nnx.eval_shape(lambda: task.init(nnx.Rngs(0)))["language"].stream.backbone
    shape = RowShape(1, 16, 9, 4)
    seen, behind = backbone.seen_by_layers(shape), backbone.behind_layers(shape)
    assert seen == [8, 16, 4, 4] and behind == [8, 4, 4, 4] and mean_over_layers(seen) == 8
    sizes = backbone.sizes
    by_hand = sum(2 * ((n + 9) * sizes.projections + sizes.attention(n + 9)) for n in seen)
    by_hand += sum(2 * (n + 9) * sizes.mlp for n in behind)
    assert prompt_flops(sizes, seen, behind, others=9) == by_hand
    assert sizes == DecoderSizes(16, 2, 2, 8, 16, gated=False)
    np.testing.assert_equal(prompt_flops(sizes, [0], others=3, logits=10) - prompt_flops(sizes, [0], others=3), 20)
