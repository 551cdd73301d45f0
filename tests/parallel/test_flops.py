"""Counting operations of traced functions: against the closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractDevice, AbstractMesh, PartitionSpec

from videogen.configs import phenaki
from videogen.nn import REMAT_POLICIES, Block, Stack, attend
from videogen.parallel import AXES
from videogen.parallel.flops import count
from videogen.planning.programs import abstract_run, abstract_step, complete_for_planning

WIDTH, HEADS, MLP, LAYERS, BATCH, LENGTH = 32, 4, 128, 3, 2, 16


def of(function, *shapes):
    return count(jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)))


def test_products_loops_and_branches():
    product = 2 * 8 * 16 * 32
    assert of(lambda a, b: a @ b, (8, 16), (16, 32)).model == product
    assert of(jax.vmap(lambda a, b: a @ b), (5, 8, 16), (5, 16, 32)).model == 5 * product
    loop = of(lambda a, b: jax.lax.scan(lambda c, _: (c @ b, None), a, length=7)[0], (8, 16), (16, 16))
    assert loop.model == 7 * 2 * 8 * 16 * 16
    branch = of(lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: jnp.zeros((8, 32))), (8, 16), (16, 32))
    assert branch.model == product


def test_convolutions_and_their_gradients_cost_three_times_the_forward_pass():
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    forward = 2 * 2 * 8 * 8 * 3 * 3 * 4 * 6
    assert of(convolve, (2, 8, 8, 4), (3, 3, 4, 6)).model == forward
    both = of(jax.grad(lambda x, k: (convolve(x, k) ** 2).sum(), (0, 1)), (2, 8, 8, 4), (3, 3, 4, 6))
    assert both.model == 3 * forward


@pytest.mark.parametrize("remat", ["none", "full"])
def test_transformer_matches_the_closed_form(remat):
    def make(rngs):
        return Block(WIDTH, {"heads": HEADS}, {"hidden": MLP}, depth=LAYERS, rngs=rngs)

    graph, state = nnx.split(nnx.eval_shape(lambda: Stack(make, LAYERS, remat=remat, rngs=nnx.Rngs(0))))

    def loss(state, x):
        return nnx.merge(graph, state)(x).sum()

    x = jax.ShapeDtypeStruct((BATCH, LENGTH, WIDTH), jnp.float32)
    counted = count(jax.make_jaxpr(jax.grad(loss, (0, 1)))(state, x))
    layer = 2 * (4 * WIDTH**2 + 2 * WIDTH * MLP) + 4 * LENGTH * WIDTH
    forward = BATCH * LENGTH * LAYERS * layer
    assert counted.model == pytest.approx(3 * forward, rel=1e-6)
    if remat == "none":
        assert counted.recomputed == 0
    else:
        # The last product of a block is not needed again.
        down = BATCH * LENGTH * LAYERS * 2 * WIDTH * MLP
        assert counted.recomputed in (forward, forward - down)


def test_work_that_shards_share_counts_once():
    mesh = AbstractMesh((1, 2, 4, 1, 1), AXES)

    def products(x, w):
        specs = dict(in_specs=(PartitionSpec("data"), PartitionSpec()), out_specs=PartitionSpec("data"))
        spread = jax.shard_map(lambda x, w: x @ w, mesh=mesh, **specs)
        return spread(x, w)

    with jax.sharding.use_abstract_mesh(mesh):
        assert of(products, (8, 16), (16, 32)).model == 2 * 8 * 16 * 32


# Backward one kernel does five products, two kernels seven; four would be enough.
@pytest.mark.parametrize(("length", "backward"), [(1024, 5), (4096, 7)])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("width", [64, 128])
def test_kernels_count_whichever_way_their_operands_lie(width, batch, length, backward):
    device = AbstractDevice(device_kind="v5p", num_cores=1, platform="tpu")
    mesh = AbstractMesh((1, 1, 1, 1, 1), AXES, abstract_device=device)
    heads = 4
    shapes = [jax.ShapeDtypeStruct((batch, length, heads, width), jnp.bfloat16)] * 3
    with jax.sharding.use_abstract_mesh(mesh):
        step = jax.grad(lambda *x: attend(*x).astype(jnp.float32).sum(), argnums=(0, 1, 2))
        counted = count(jax.make_jaxpr(step)(*shapes), tile=128)
    product = 2 * batch * heads * length**2 * width
    assert sum(counted.kernels.values()) == (2 + backward) * product
    assert (counted.model, counted.recomputed) == pytest.approx((6 * product, (backward - 4) * product), rel=1e-3)
    assert sum(counted.kernels_filled.values()) == (2 + backward) * product * 128 / width


def test_kernels_whose_results_are_kept_count_once():
    device = AbstractDevice(device_kind="v5p", num_cores=1, platform="tpu")
    x = jax.ShapeDtypeStruct((1, 1024, 4, 128), jnp.bfloat16)

    def forward(policy: str) -> float:
        layer = jax.checkpoint(lambda x: attend(x, x, x), policy=REMAT_POLICIES[policy])
        step = jax.value_and_grad(lambda x: layer(x).astype(jnp.float32).sum())
        with jax.sharding.use_abstract_mesh(AbstractMesh((1, 1, 1, 1, 1), AXES, abstract_device=device)):
            kernels = count(jax.make_jaxpr(step)(x)).kernels
        return sum(done for name, done in kernels.items() if name.startswith("splash_mha_fwd"))

    assert forward("full") == 2 * forward("attention") == 2 * 2 * (2 * 4 * 1024**2 * 128)


def test_paper_generator_matches_the_closed_form_to_two_percent():
    """The masked transformer, its frozen tokenizer and its frozen text encoder (C-ViViT and T5-XXL forward only)."""
    config = phenaki.get_config("stage=generator,size=paper")
    complete_for_planning(config)
    run = abstract_run(config)
    device = AbstractDevice(device_kind="v5p", num_cores=1, platform="tpu")
    mesh = AbstractMesh((1, 4, 16, 1, 1), AXES, abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        step, arguments = abstract_step(run, config, mesh)
        counted = count(step.trace(*arguments).jaxpr, tile=128)
    assert not counted.unknown

    expected, length = 0.0, config.text.tokenizer.length
    for examples, frames in ((config.data.batch_size, config.data.clip.frames), (config.data.image_batch_size, 1)):
        per_example = (
            generator_flops(config, frames, length) + tokenizer_flops(config, frames) + t5_flops(config, length)
        )
        expected += examples * per_example
    assert counted.model == pytest.approx(expected, rel=0.02)


def generator_flops(config, frames, length):
    model, vocabulary = config.model.transformer, config.parts.tokenizer.model.quantizer.size
    w, tokens = model.width, tokens_of(config, frames)
    projections = 2 * (4 * w * w + 2 * w * w + 2 * w * model.mlp_width)
    attention = 4 * w * (tokens + length)
    context = length * 2 * config.parts.text_encoder.model.width * 2 * w
    forward = model.layers * (tokens * (projections + attention) + context) + tokens * 2 * w * vocabulary
    # The context is frozen: its projection has a gradient of the weights only.
    return 3 * forward - model.layers * context


def tokenizer_flops(config, frames):
    model = config.parts.tokenizer.model
    time, height, width = model.patch
    places = config.data.clip.height // height * (config.data.clip.width // width)
    latents = tokens_of(config, frames) // places
    w = model.width
    layer = 2 * (4 * w * w + 2 * w * model.mlp_width)
    spatial, temporal = model.encoder_layers
    per_token = spatial * (layer + 4 * w * places) + temporal * (layer + 4 * w * latents)
    codes = 2 * w * model.quantizer.width + 2 * model.quantizer.width * model.quantizer.size
    pixels = 3 * height * width
    patches = places * 2 * w * pixels * (1 + (latents - 1) * time)
    return tokens_of(config, frames) * (per_token + codes) + patches


def t5_flops(config, length):
    t5 = config.parts.text_encoder.model
    inner = t5.heads * t5.head_width
    layer = 2 * (4 * t5.width * inner + 3 * t5.width * t5.mlp_width) + 4 * inner * length
    return length * t5.layers * layer


def tokens_of(config, frames):
    time, height, width = config.parts.tokenizer.model.patch
    clip = config.data.clip
    return int((1 + (frames - 1) / time) * np.prod([clip.height // height, clip.width // width]))
