"""The video-language model of every size: recipes, sizes of the published parts, and nothing allocated for them."""

import jax
import pytest
from flax import nnx

from videogen import encoders, tasks
from videogen.configs import understanding
from videogen.configs.recipes import RECIPES
from videogen.configs.understanding import PUBLISHED, QWEN2, SIGLIP
from videogen.errors import UserError
from videogen.planning.programs import complete_for_planning


def count(make) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(nnx.eval_shape(make), nnx.Param)))


TOKENS = {
    **{"all": (288, 23_328), "uniform": (72, 5832), "random": (72, 5832), "pooling": (72, 5832), "m3": (72, 288)},
    **{"tome": (72, 576), "center_clip": (72, 640), "kmeans": (72, 32), "vq_token": (32, 32), "holitom": (72, 941)},
    **{"holitom_inside": (288, 23_328), "kffocus": (72, 2048), "timechat_online": (72, 4200), "grt": (72, 11_664)},
    **{"d_code": (72, 4320), "ts_llava": (72, 3609), "video_lisa": (44, 2948), "video_scan": (8, 32)},
    **{"videollm_mod": (288, 288), "slow_fast": (72, 5832), "cross_lmm": (72, 288), "ppllava": (72, 1296)},
    **{"b_vllm": (72, 576), "f2c": (72, 4608), "quota": (72, 12_544), "free_video_llm": (72, 3328)},
    **{"tdc": (78, 1024), "video_llamb": (80, 1184), "video_streaming": (32, 128), "pvc": (72, 2048)},
    "perceiver": (32, 32),
}
"""Recipe -> tokens of a clip that enter the decoder, at ``debug`` and with the published settings."""


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_leave_so_many_tokens(recipe):
    for size, tokens in zip(("debug", "paper"), TOKENS[recipe], strict=True):
        task = tasks.build(understanding.get_config(f"size={size},recipe={recipe}"))
        assert task.shapes[task.view].tokens == tokens
        longest = task.config.text.tokenizer.length
        # One question where the reducers look at it, at `debug` six elsewhere; each has two markers.
        asked = 1 if task.guided or size == "paper" else 6
        assert task.asked == asked and task.table_of(task.kinds).slots == tokens + 3 + asked * (2 + 2 * longest)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_budget_of_a_recipe_can_be_had(recipe):
    """The tokens that stay are the budget of the table, or the nearest number that the recipe can have."""
    config = understanding.get_config(f"size=debug,recipe={recipe}")
    for budget, chain in RECIPES[recipe].chains.items():
        with config.unlocked(), config.ignore_type():
            config.model.vision.reducers = chain
        tokens = next(iter(tasks.build(config).shapes.values())).tokens
        assert 0.6 * budget <= tokens <= 1.15 * budget


def test_alignment_sees_few_frames_and_trains_the_projector_of_published_models():
    # All tokens of these: no recipe could have its budget.
    config = understanding.get_config("stage=alignment,size=debug,recipe=tome")
    assert config.data.clip.frames == 8 and config.data.source.seconds == 4.0
    task = tasks.build(config)
    assert task.shapes[task.view].tokens == 2 * 36
    assert understanding.get_config("stage=alignment,size=paper").optimizer.language.freeze == ("stream",)


def test_recipes_are_of_two_sizes():
    with pytest.raises(UserError, match="recipes have numbers for two sizes: add size=debug or size=paper"):
        understanding.get_config("size=small,recipe=tome")
    task = tasks.build(understanding.get_config("size=small"))
    assert task.shapes[task.view].tokens == 32 * 36


def test_published_parts_have_their_sizes():
    """Qwen2 7B and the image tower of SigLIP so400m."""
    assert count(lambda: encoders.described({"name": "decoder", **QWEN2})) == 7_615_616_512
    assert count(lambda: encoders.described(SIGLIP)) == 428_225_600


@pytest.mark.slow
@pytest.mark.parametrize("decoder", PUBLISHED)
def test_the_paper_size_is_built_without_its_arrays(decoder):
    config = understanding.get_config(f"size=paper,decoder={decoder},recipe=pooling")
    complete_for_planning(config)
    task = tasks.build(config)
    assert task.shapes[task.view].tokens == 5832 and task.width == PUBLISHED[decoder]["width"]
    assert set(task.parts_of(config)) == {"encoder", "language_model"}
    network = nnx.eval_shape(lambda: task.init(nnx.Rngs(0)))["language"]
    published = nnx.state(network.stream.backbone.decoder, nnx.Param)
    assert sum(leaf.size for leaf in jax.tree.leaves(published)) > 6.7e9
