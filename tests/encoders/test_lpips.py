"""VGG16, AlexNet and LPIPS against torchvision and the ``lpips`` package, with its real heads on random trunks."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from tests.encoders.oracles import assert_near, channels_first, import_torchvision
from videogen.encoders.lpips import Lpips
from videogen.encoders.vgg import AlexNet, Vgg16
from videogen.errors import UserError

NETWORKS = {"vgg": (Vgg16, "vgg16"), "alex": (AlexNet, "alexnet")}


@pytest.fixture(scope="module")
def torchvision():
    return import_torchvision()


@pytest.fixture(scope="module")
def package(torchvision):
    return pytest.importorskip("lpips", reason="the lpips package is the oracle of LPIPS and has its heads")


def images(height, width):
    a, b = np.random.default_rng(0).uniform(-1, 1, (2, 3, height, width, 3)).astype(np.float32)
    return a, 0.8 * a + 0.2 * b


def written_out(name):
    """torchvision's ``features``: what the places in the names of its file stand for."""
    if name == "alex":
        sides = iter(
            [(3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1)]
        )
        pools = [False, True, True, False, False]
    else:
        widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
        sides = ((before, after, 3, 1, 1) for before, after in itertools.pairwise(widths))
        pools = [k in (2, 4, 7, 10) for k in range(13)]
    layers = []
    for pooled in pools:
        layers += [torch.nn.MaxPool2d(*((3, 2) if name == "alex" else (2, 2)))] if pooled else []
        layers += [torch.nn.Conv2d(*next(sides)), torch.nn.ReLU()]
    return torch.nn.ModuleDict({"features": torch.nn.Sequential(*layers)})


@pytest.mark.parametrize("oracle", ["written out", "torchvision"])
@pytest.mark.parametrize("name", NETWORKS)
def test_trunks_are_torchvisions(tmp_path, name, oracle):
    kind, theirs = NETWORKS[name]
    torch.manual_seed(0)
    models = import_torchvision().models if oracle == "torchvision" else None
    network = written_out(name) if models is None else vars(models)[theirs](weights=None).eval()
    torch.save({k: v for k, v in network.state_dict().items() if "classifier.0" not in k}, tmp_path / "a.pth")
    features, ours, x = network.get_submodule("features"), kind.load(tmp_path / "a.pth"), images(35, 50)[0][:1]
    found, y = [], channels_first(x)
    last = [stage[-1][0] + 1 for stage in kind.STAGES]  # the ReLU behind the last convolution
    for place, layer in enumerate(features[: last[-1] + 1]):
        y = layer(y)
        found += [y.clone()] if place in last else []
    for own, expected in zip(jax.jit(ours)(x), found, strict=True):
        assert_near(own, np.moveaxis(expected.detach().numpy(), 1, -1), 1e-5)


@pytest.fixture(scope="module", params=NETWORKS)
def pair(request, torchvision, package, tmp_path_factory):
    """The package's LPIPS on a random trunk, and ours from torchvision's file and its heads."""
    folder, name = tmp_path_factory.mktemp("lpips"), request.param
    torch.manual_seed(0)
    theirs = package.LPIPS(net=name, pnet_rand=True, verbose=False)
    trunk = getattr(torchvision.models, NETWORKS[name][1])(weights=None)
    slices = [getattr(theirs.net, f"slice{k}") for k in range(1, 6)]
    for own, layer in zip((layer for part in slices for layer in part), trunk.features, strict=False):
        layer.load_state_dict(own.state_dict())
    torch.save({k: v for k, v in trunk.state_dict().items() if k.startswith("features")}, folder / "trunk.pth")
    heads = Path(package.__file__).parent / "weights" / "v0.1" / f"{name}.pth"
    return theirs, Lpips.load([folder / "trunk.pth", heads], trunk=name)


@pytest.mark.parametrize("sides", [(64, 64), (35, 50)])
def test_distances_are_those_of_the_package(pair, sides):
    theirs, ours = pair
    a, b = images(*sides)
    expected = theirs(channels_first(a), channels_first(b)).detach().numpy()[:, 0, 0, 0]
    assert expected.min() > 1e-3
    assert_near(jax.jit(ours)(a, b), expected, 1e-5)


class Stages(nnx.Module):
    """Two maps in the place of a trunk's: the pixels, and their squares at every second place."""

    widths, smallest = (3, 3), 2

    def __call__(self, x):
        return [x, jnp.square(x[:, ::2, ::2])]


def test_the_value_is_the_published_formula():
    """Mean over places of the weighted squares of differences of unit vectors, summed over the stages."""
    ours, (a, b) = Lpips.structure("alex"), images(4, 6)
    weights = np.random.default_rng(1).uniform(0, 1, (2, 3)).astype(np.float32)
    ours.trunk, ours.heads = Stages(), nnx.List([nnx.Param(jnp.asarray(weight)) for weight in weights])
    expected = 0
    for stage, weight in zip(range(2), weights, strict=True):
        units = []
        for picture in (a, b):
            x = (np.float64(picture) - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]
            x = x if stage == 0 else x[:, ::2, ::2] ** 2
            units.append(x / np.sqrt((x**2).sum(-1, keepdims=True)))
        expected += ((units[0] - units[1]) ** 2 @ weight).mean((1, 2))
    np.testing.assert_allclose(ours(a, b), expected, rtol=1e-6)


def test_small_sides_are_refused():
    def shape(name, side):
        frame = jax.ShapeDtypeStruct((1, side, 64, 3), jnp.float32)
        return jax.eval_shape(lambda frame: Lpips.structure(name)(frame, frame), frame).shape

    for name, smallest in (("vgg", 16), ("alex", 31)):
        assert shape(name, smallest) == (1,)
        with pytest.raises(UserError, match=f"at least {smallest} pixels"):
            shape(name, smallest - 1)
    with pytest.raises(UserError, match="'alex'"):
        Lpips.structure("alexnet")


def test_black_areas_have_a_finite_distance_and_gradient():
    """Where all features are 0 there is no direction; the value and the slope are 0."""
    ours = Lpips.structure("alex")
    for layer in ours.trunk.layers:
        layer.kernel.set_value(jnp.zeros_like(layer.kernel.get_value()))
    for head in ours.heads:
        head.set_value(jnp.ones_like(head.get_value()))
    a, b = jnp.zeros((1, 31, 31, 3)), jnp.full((1, 31, 31, 3), 0.5)
    value, gradient = jax.jit(jax.value_and_grad(lambda x: ours(x, b)[0]))(a)
    assert float(value) == 0 and not jnp.any(gradient)
    for layer in ours.trunk.layers:  # features of one of the two are 0
        layer.kernel.set_value(jnp.ones_like(layer.kernel.get_value()))
    distance = jax.jit(jax.value_and_grad(lambda x: ours(x, jnp.full_like(x, -1))[0]))
    assert all(jnp.all(jnp.isfinite(x)) for x in distance(b)) and float(distance(b)[0]) > 0
