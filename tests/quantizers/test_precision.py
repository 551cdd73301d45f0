"""Quantizers and what is next to them take no product in fewer digits than float32, on TPUs and GPUs too."""

import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tests.quantizers.test_micro_batches import ALONE, TOGETHER
from videogen import tokenizers
from videogen.metrics import gradient_sharpness
from videogen.parallel import cpu
from videogen.quantizers import base, build

PLATFORMS = ("tpu", "cuda")
PRODUCT = re.compile(r"stablehlo\.(?:dot_general|convolution).*")


def products(function, *arguments) -> list[str]:
    """The matrix products and convolutions of a function as it is lowered for every platform."""
    traced = jax.jit(function).trace(*arguments)
    return [line for p in PLATFORMS for line in PRODUCT.findall(traced.lower(lowering_platforms=(p,)).as_text())]


def assert_full(lines: list[str]) -> None:
    assert all(line.count("HIGHEST") == 2 for line in lines), lines


@pytest.fixture(autouse=True)
def as_on_an_accelerator(monkeypatch):
    monkeypatch.setattr(cpu, "target_platform", lambda: "tpu")


@pytest.mark.parametrize("largest", [base.LARGEST_TABLE, 3], ids=["one table", "blocks"])
@pytest.mark.parametrize("name", [*ALONE, *TOGETHER])
def test_products_of_quantizers_and_of_their_gradients(name, largest, monkeypatch):
    monkeypatch.setattr(base, "LARGEST_TABLE", largest)
    quantizer = build((ALONE | TOGETHER)[name], rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(quantizer, nnx.Param, ...)

    def loss(z, params):
        quantized = nnx.merge(graph, params, rest)(z, key=jax.random.key(0), train=True)
        return quantized.latents.sum() + sum(quantized.losses.values()), quantized

    places = quantizer.scales[-1] if name == "multi_scale" else (3,)
    z = jnp.ones((2, *places, quantizer.input_width))
    lines = products(jax.grad(loss, (0, 1), has_aux=True), z, params)
    assert_full(lines)
    # Rounding and sampling of Gaussians and bits have none.
    assert bool(lines) == (name not in ("fsq", "gaussian", "per_dimension", "bernoulli"))


NETWORK = {"width": 16, "heads": 2, "mlp_width": 16}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    "settings",
    [
        {"name": "cvivit", "patch": (2, 4, 4), **NETWORK, "encoder_layers": (1, 1), "decoder_layers": (1, 1)},
        {"name": "one_d", "clip": (2, 8, 8), "patch": (2, 4, 4), "queries": 3, "encoder": NETWORK | {"layers": 1},
         "decoder": NETWORK | {"layers": 1}},
    ],
    ids=lambda settings: settings["name"],
)  # fmt: skip
def test_projections_around_quantizers(settings, dtype):
    vq = {"name": "vq", "size": 8, "width": 4}
    config = settings | {"quantizer": vq}
    model = tokenizers.build(config, dtype=dtype, remat="none", rngs=nnx.Rngs(0))
    lines = products(lambda x: (model.to_code(x), model.from_code(x[..., :4])), jnp.ones((2, 3, 16)))
    assert len(lines) == 2 * len(PLATFORMS)
    assert_full(lines)


def test_the_projection_of_convolutional_encoders():
    levels = {"multipliers": (1, 1), "blocks": 1, "spatial_strides": (2,), "temporal_strides": (1,), "norm_groups": 4}
    config = {"name": "convolutional", "width": 8, **levels, "quantizer": {"name": "lfq", "bits": 4}}
    model = tokenizers.build(config, dtype=jnp.float32, remat="none", rngs=nnx.Rngs(0))
    lines = products(model.encoder.output, jnp.ones((2, 3, 8)))
    assert len(lines) == len(PLATFORMS)
    assert_full(lines)


def test_brightness_of_sharpness():
    video = jnp.zeros((1, 2, 8, 8, 3))
    lines = products(gradient_sharpness, video, video)
    assert len(lines) == 2 * len(PLATFORMS)
    assert_full(lines)
