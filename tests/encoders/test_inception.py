"""Inception-v3 of 2015 against its graph in PyTorch: means that do not count padding, a last max pooling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.encoders.oracles import assert_near
from videogen.encoders.inception import Inception
from videogen.errors import UserError


class Reference:
    """The published graph; every convolution draws its weights where it is first met."""

    def __init__(self):
        self.weights, self.generator = {}, torch.Generator().manual_seed(0)

    def draw(self, name, *shape, low=None):
        if name not in self.weights:
            value = torch.randn(shape, generator=self.generator)
            self.weights[name] = value if low is None else low + value.abs()
        return self.weights[name]

    def unit(self, x, name, outputs, size, stride=1, padding=0):
        size = (size, size) if isinstance(size, int) else size
        inputs = x.shape[1]
        self.weights.setdefault(
            f"{name}.conv.weight",
            torch.randn((outputs, inputs, *size), generator=self.generator) * (2 / (inputs * size[0] * size[1])) ** 0.5,
        )
        x = functional.conv2d(x, self.weights[f"{name}.conv.weight"], stride=stride, padding=padding)
        mean = 0.2 * self.draw(f"{name}.bn.running_mean", outputs)
        self.weights[f"{name}.bn.running_mean"], variance = mean, self.draw(f"{name}.bn.running_var", outputs, low=0.5)
        scale, shift = self.draw(f"{name}.bn.weight", outputs, low=0.5), self.draw(f"{name}.bn.bias", outputs)
        self.weights[f"{name}.bn.num_batches_tracked"] = torch.tensor(1)
        return torch.relu(functional.batch_norm(x, mean, variance, scale, shift, eps=1e-3))

    def mean(self, x):
        return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)

    def a(self, x, n, pooled):
        one = self.unit(x, f"{n}.branch1x1", 64, 1)
        five = self.unit(self.unit(x, f"{n}.branch5x5_1", 48, 1), f"{n}.branch5x5_2", 64, 5, padding=2)
        three = self.unit(self.unit(x, f"{n}.branch3x3dbl_1", 64, 1), f"{n}.branch3x3dbl_2", 96, 3, padding=1)
        three = self.unit(three, f"{n}.branch3x3dbl_3", 96, 3, padding=1)
        return torch.cat([one, five, three, self.unit(self.mean(x), f"{n}.branch_pool", pooled, 1)], 1)

    def b(self, x, n):
        three = self.unit(x, f"{n}.branch3x3", 384, 3, stride=2)
        double = self.unit(self.unit(x, f"{n}.branch3x3dbl_1", 64, 1), f"{n}.branch3x3dbl_2", 96, 3, padding=1)
        double = self.unit(double, f"{n}.branch3x3dbl_3", 96, 3, stride=2)
        return torch.cat([three, double, functional.max_pool2d(x, 3, stride=2)], 1)

    def c(self, x, n, width):
        wide, high = dict(size=(1, 7), padding=(0, 3)), dict(size=(7, 1), padding=(3, 0))
        one = self.unit(x, f"{n}.branch1x1", 192, 1)
        seven = self.unit(x, f"{n}.branch7x7_1", width, 1)
        seven = self.unit(self.unit(seven, f"{n}.branch7x7_2", width, **wide), f"{n}.branch7x7_3", 192, **high)
        double = self.unit(x, f"{n}.branch7x7dbl_1", width, 1)
        for k, (outputs, shape) in enumerate(((width, high), (width, wide), (width, high), (192, wide)), start=2):
            double = self.unit(double, f"{n}.branch7x7dbl_{k}", outputs, **shape)
        return torch.cat([one, seven, double, self.unit(self.mean(x), f"{n}.branch_pool", 192, 1)], 1)

    def d(self, x, n):
        three = self.unit(self.unit(x, f"{n}.branch3x3_1", 192, 1), f"{n}.branch3x3_2", 320, 3, stride=2)
        seven = self.unit(x, f"{n}.branch7x7x3_1", 192, 1)
        seven = self.unit(seven, f"{n}.branch7x7x3_2", 192, (1, 7), padding=(0, 3))
        seven = self.unit(seven, f"{n}.branch7x7x3_3", 192, (7, 1), padding=(3, 0))
        seven = self.unit(seven, f"{n}.branch7x7x3_4", 192, 3, stride=2)
        return torch.cat([three, seven, functional.max_pool2d(x, 3, stride=2)], 1)

    def e(self, x, n, pooled):
        def fork(y, name):
            wide = self.unit(y, f"{name}a", 384, (1, 3), padding=(0, 1))
            return torch.cat([wide, self.unit(y, f"{name}b", 384, (3, 1), padding=(1, 0))], 1)

        one = self.unit(x, f"{n}.branch1x1", 320, 1)
        three = fork(self.unit(x, f"{n}.branch3x3_1", 384, 1), f"{n}.branch3x3_2")
        double = self.unit(self.unit(x, f"{n}.branch3x3dbl_1", 448, 1), f"{n}.branch3x3dbl_2", 384, 3, padding=1)
        double = fork(double, f"{n}.branch3x3dbl_3")
        return torch.cat([one, three, double, self.unit(pooled, f"{n}.branch_pool", 192, 1)], 1)

    def __call__(self, x):
        x = self.unit(self.unit(x, "Conv2d_1a_3x3", 32, 3, stride=2), "Conv2d_2a_3x3", 32, 3)
        x = functional.max_pool2d(self.unit(x, "Conv2d_2b_3x3", 64, 3, padding=1), 3, stride=2)
        x = self.unit(self.unit(x, "Conv2d_3b_1x1", 80, 1), "Conv2d_4a_3x3", 192, 3)
        x = functional.max_pool2d(x, 3, stride=2)
        for name, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = self.a(x, name, pooled)
        x = self.b(x, "Mixed_6a")
        for name, width in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            x = self.c(x, name, width)
        x = self.d(x, "Mixed_7a")
        x = self.e(x, "Mixed_7b", self.mean(x))
        x = self.e(x, "Mixed_7c", functional.max_pool2d(x, 3, stride=1, padding=1))
        features = x.mean((2, 3))
        weight, bias = self.draw("fc.weight", 1008, 2048), self.draw("fc.bias", 1008)
        return features, functional.linear(features, weight, bias)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The file, pictures, and what the reference gives for them."""
    reference, x = Reference(), np.random.default_rng(0).uniform(-1, 1, (2, 139, 107, 3)).astype(np.float32)
    features, logits = reference(torch.tensor(np.moveaxis(x, -1, 1).copy()))
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    torch.save(reference.weights, path)
    return path, x, features, logits


@pytest.fixture(scope="module")
def network(published):
    return Inception.load(published[0])


@pytest.mark.slow
def test_equal_to_the_written_out_graph(published, network):
    _, x, features, logits = published
    ours = jax.jit(network.encode)(x)
    assert_near(ours, features)
    assert_near(network.logits(ours), logits)
    bias = np.asarray(network.classifier.bias.get_value())
    assert_near(network.logits(ours, bias=False), logits.numpy() - bias)
    assert len(network.hash) == 64


def test_pictures_are_resized_as_the_port_does(network):
    images = np.random.default_rng(0).uniform(-1, 1, (1, 37, 50, 3)).astype(np.float32)
    larger = functional.interpolate(torch.tensor(np.moveaxis(images, -1, 1).copy()), (299, 299), mode="bilinear")
    resized = jax.image.resize(jnp.asarray(images), (1, 299, 299, 3), "linear", antialias=False)
    assert_near(resized, np.moveaxis(larger.numpy(), 1, -1), 1e-5)
    seen = []
    network.encode, encode = seen.append, network.encode
    try:
        network(jnp.asarray(images))
    finally:
        network.encode = encode
    assert_near(seen[0], resized, 1e-6)


def test_small_pictures_are_refused(network):
    with pytest.raises(UserError, match="at least 75"):
        network.encode(jnp.zeros((1, 74, 100, 3)))
