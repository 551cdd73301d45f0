"""The section of a transformer builds the stack that ``block_stack`` builds, and names its mistakes."""

import jax
import pytest
from flax import nnx

from videogen.errors import UserError
from videogen.nn import LayerNorm, RMSNorm, block_stack, read_transformer

SECTION = {"width": 8, "layers": 2, "heads": 2, "mlp_width": 12}


def shapes(stack) -> dict:
    return jax.tree.map(lambda x: x.shape, nnx.to_pure_dict(nnx.state(stack)))


def test_a_section_is_the_settings_of_a_stack():
    mine = read_transformer({**SECTION, "null_keys": 3, "dropout": 0.1, "position_generator": True, "qk_norm": False})
    theirs = dict(attention={"heads": 2, "qk_norm": None}, mlp={"hidden": 12}, dropout=0.1)
    theirs |= dict(position_generator="bidirectional", cross_attention={"context_width": 5, "null_keys": 3})
    one = nnx.eval_shape(lambda: mine.stack(context_width=5, rngs=nnx.Rngs(0)))
    other = nnx.eval_shape(lambda: block_stack(8, 2, **theirs, rngs=nnx.Rngs(0)))
    assert nnx.graphdef(one) == nnx.graphdef(other) and shapes(one) == shapes(other)
    assert mine.head_width == 4


def test_further_settings_reach_attention_and_mlp_and_the_norm_is_that_of_the_blocks():
    section = read_transformer(
        {**SECTION, "mlp": {"kind": "swiglu"}, "attention": {"key_value_heads": 1}}, norm="layer"
    )
    stack = nnx.eval_shape(lambda: section.stack(rngs=nnx.Rngs(0)))
    assert stack.layers.mlp.gate is not None and stack.layers.attention.key_value_heads == 1
    assert isinstance(stack.layers.mlp_norm, LayerNorm)
    assert isinstance(section.last_norm(rngs=nnx.Rngs(0)), LayerNorm)
    # What the section says comes before what holds otherwise.
    plain = read_transformer({**SECTION, "norm": "rms"}, norm="layer")
    assert isinstance(plain.last_norm(affine=False, rngs=nnx.Rngs(0)), RMSNorm)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widht": 3}, "did you mean 'width'"),
        ({"layers": -1}, "layers of section 'transformer' must be"),
        ({"dropout": 1.5}, "dropout of section 'transformer' must be"),
        ({"mlp": {"hiden": 1}}, "did you mean 'hidden'"),
        ({"norm": "group"}, "unknown norm 'group'"),
    ],
)
def test_mistakes_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        read_transformer({**SECTION, **changes}).stack(rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="needs the setting 'width'"):
        read_transformer({key: value for key, value in SECTION.items() if key != "width"})
