"""LPIPS against a PyTorch re-implementation, the untrained stand-in, and refusals of bad files."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from videogen.encoders import ResNet
from videogen.errors import UserError
from videogen.losses import PerceptualLoss, Setting, UntrainedFeatures, build
from videogen.losses.perceptual import ResNetLoss
from videogen.shapes import VideoShape

torch = pytest.importorskip("torch")


def lpips_tensors() -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of the public files."""
    shapes, inputs, index = {}, 3, 0
    for stage, widths in enumerate(((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)):
        for width in widths:
            shapes |= {f"features.{index}.weight": (width, inputs, 3, 3), f"features.{index}.bias": (width,)}
            inputs, index = width, index + 2
        shapes[f"lin{stage}.model.1.weight"] = (1, widths[-1], 1, 1)
        index += 1
    return shapes


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    result = {}
    for name, shape in lpips_tensors().items():
        scale = (2 / np.prod(shape[1:])) ** 0.5 if name.endswith("weight") else 0.1
        result[name] = (scale * generator.standard_normal(shape, np.float32)).astype(np.float32)
        result[name] = np.abs(result[name]) if name.startswith("lin") else result[name]
    return result


@pytest.fixture(scope="module")
def weights(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("lpips") / "vgg.safetensors"
    save_file({**tensors, "classifier.0.bias": np.zeros(3, np.float32)}, path)
    return path


@pytest.fixture(scope="module")
def lpips(weights) -> PerceptualLoss:
    return PerceptualLoss.load(weights)


def videos(size: tuple[int, int] = (33, 40)) -> tuple[jax.Array, jax.Array]:
    a, b = jax.random.uniform(jax.random.key(0), (2, 2, 2, *size, 3), minval=-1)
    return a, 0.7 * a + 0.3 * b


def torch_lpips(tensors, prediction, target) -> float:
    """The published definition, layer by layer, with torchvision's VGG16 layout."""
    functional = torch.nn.functional
    stages = [(0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)]
    weight = {name: torch.tensor(value) for name, value in tensors.items()}

    def features(video):
        x = torch.tensor(np.array(video)).flatten(0, 1).permute(0, 3, 1, 2)
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        x = (x - shift[:, None, None]) / scale[:, None, None]
        for number, stage in enumerate(stages):
            x = functional.max_pool2d(x, 2) if number else x
            for i in stage:
                x = torch.relu(
                    functional.conv2d(x, weight[f"features.{i}.weight"], weight[f"features.{i}.bias"], padding=1)
                )
            yield x / (x.pow(2).sum(1, keepdim=True).sqrt() + 1e-10)

    total = 0
    for k, (a, b) in enumerate(zip(features(prediction), features(target), strict=True)):
        total = total + functional.conv2d((a - b) ** 2, weight[f"lin{k}.model.1.weight"]).mean((1, 2, 3))
    return float(total.mean())


def test_matches_pytorch(lpips, tensors):
    prediction, target = videos((17, 20))
    expected = torch_lpips(tensors, prediction, target)
    assert expected > 1e-2
    np.testing.assert_allclose(jax.jit(lpips)(prediction, target), expected, rtol=1e-4)


@pytest.mark.slow
def test_zero_for_identical_and_symmetric(lpips):
    a, b = videos((17, 20))
    distance = jax.jit(lpips)
    assert 0 <= float(distance(a, a)) < 1e-10
    np.testing.assert_allclose(distance(a, b), distance(b, a), rtol=1e-5)


@pytest.mark.slow
def test_gradient_reaches_the_prediction_and_no_weight(lpips):
    a, b = videos((16, 16))
    graph, state = nnx.split(lpips)
    gradient = jax.jit(jax.grad(lambda s, x: nnx.merge(graph, s)(x, b), argnums=(0, 1)))
    to_state, to_prediction = gradient(state, a)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(to_state))
    assert jnp.isfinite(to_prediction).all() and jnp.abs(to_prediction).max(axis=(2, 3, 4)).min() > 0
    # Zero weights make every feature vanish: the normalisation must not turn that into NaN.
    _, to_prediction = gradient(jax.tree.map(jnp.zeros_like, state), a)
    np.testing.assert_array_equal(to_prediction, 0)


def test_hash_is_that_of_the_file(lpips, weights):
    assert lpips.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()


def term(**section):
    """A perceptual term of weight 0.1."""
    return build({"perceptual": {"weight": 0.1, **section}}, Setting(VideoShape(1, 16, 16), 1, 1, 1))["perceptual"]


def test_structure_has_the_shapes_of_the_loaded_module(lpips):
    structure = term(name="lpips", path="absent").frozen(structure_only=True)
    shapes = lambda module: jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(module)))  # noqa: E731
    assert shapes(structure) == shapes(lpips)


def test_built_by_name(weights, lpips):
    assert term(name="lpips", path=str(weights)).frozen(structure_only=False).sha256 == lpips.sha256
    assert isinstance(term(name="untrained").frozen(structure_only=False), UntrainedFeatures)
    with pytest.raises(UserError, match="'lpips'"):
        term(name="lpip")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features.10.weight": None}, r"lacks the tensors features\.10\.weight"),
        ({f"lin{k}.model.1.weight": None for k in range(5)}, r"lin0\.model.*and 2 more"),
        ({"features.0.bias": np.zeros(65, np.float32)}, r"features\.0\.bias has shape \[65\], where \[64\]"),
        (
            {"lin3.model.1.weight": np.full((1, 512, 1, 1), -1, np.float32)},
            r"lin3\.model\.1\.weight must not",
        ),
    ],
)
def test_wrong_files_are_refused(tensors, tmp_path, change, message):
    path = tmp_path / "wrong.safetensors"
    save_file({name: value for name, value in {**tensors, **change}.items() if value is not None}, path)
    with pytest.raises(UserError, match=message):
        PerceptualLoss.load(path)


@pytest.mark.slow
def test_the_public_files_themselves(tensors, lpips, tmp_path):
    """torchvision's file with its classifier, in the older layout, and that of the lpips package."""
    files = tmp_path / "vgg16-397923af.pth", tmp_path / "vgg.pth"
    for file, part in zip(files, ("features.", "lin"), strict=True):
        weights = {name: torch.tensor(value) for name, value in tensors.items() if name.startswith(part)}
        weights |= {"classifier.0.bias": torch.zeros(3)} if part == "features." else {}
        torch.save(weights, file, _use_new_zipfile_serialization=False)
    both = term(name="lpips", path=",".join(map(str, files))).frozen(structure_only=False)
    a, b = videos((17, 20))
    np.testing.assert_array_equal(jax.jit(both)(a, b), jax.jit(lpips)(a, b))
    digests = b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)
    assert both.sha256 == hashlib.sha256(digests).hexdigest()


@pytest.mark.parametrize("content", [None, b"", b"not safetensors"])
def test_unreadable_files_are_refused(tmp_path, content):
    path = tmp_path / "broken.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.safetensors"):
        PerceptualLoss.load(path)


@pytest.mark.parametrize("side", [(15, 32), (32, 15)])
def test_small_frames_are_refused(side):
    with pytest.raises(UserError, match="at least 16"):
        UntrainedFeatures()(*videos(side))


def test_untrained_features_behave_like_a_distance():
    a, b = videos((16, 18))
    distance = jax.jit(UntrainedFeatures())
    assert 0 <= float(distance(a, a)) < 1e-10
    near, far = float(distance(a, a + 0.01 * (b - a))), float(distance(a, b))
    assert 0 < near < far
    assert float(jax.jit(UntrainedFeatures())(a, b)) == far
    gradient = jax.jit(jax.grad(UntrainedFeatures()))(a, b)
    assert jnp.isfinite(gradient).all() and jnp.abs(gradient).max() > 0


@pytest.mark.slow
def test_features_of_frozen_networks_are_terms(tmp_path):
    """A small ResNet: the value is the mean squared difference of its logits, and its weights get no gradient."""
    network = ResNet(stem=4, widths=(8, 16), depths=(1, 1), classes=6, rngs=nnx.Rngs(0))
    loss = ResNetLoss(network)
    a, b = videos((20, 30))
    graph, state = nnx.split(loss)
    value, (to_state, to_a) = jax.jit(jax.value_and_grad(lambda s, x: nnx.merge(graph, s)(x, b), (0, 1)))(state, a)
    frames = [jax.image.resize(x.reshape(4, 20, 30, 3), (4, 224, 224, 3), "linear", antialias=False) for x in (a, b)]
    mean, std = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
    ours, theirs = (jax.jit(network.logits)(((x + 1) / 2 - mean) / std) for x in frames)
    np.testing.assert_allclose(value, jnp.mean((ours - theirs) ** 2), rtol=1e-4)
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(to_state)) and jnp.abs(to_a).max() > 0
    for name, kind in (("resnet", "ResNet"), ("i3d", "I3d")):
        with pytest.raises(UserError, match=f"{kind} needs the setting 'path'"):
            term(name=name).frozen(structure_only=False)
        structure = nnx.eval_shape(lambda name=name: term(name=name).frozen(structure_only=True))
        frame = jax.ShapeDtypeStruct((1, 9, 64, 48, 3), jnp.float32)
        assert jax.eval_shape(structure, frame, frame).shape == ()


SPREAD = """
import jax, jax.numpy as jnp
from videogen.shapes import VideoShape
from videogen.losses import PerceptualLoss
from videogen.parallel import batch_sharding, make_mesh

loss = jax.value_and_grad(PerceptualLoss.structure())
mesh = make_mesh({"data": 2, "fsdp": 4})
video = jax.ShapeDtypeStruct((8, 3, 32, 32, 3), jnp.float32)
spread = jax.ShapeDtypeStruct(video.shape, video.dtype, sharding=batch_sharding(mesh, 8))
alone = jax.jit(loss).lower(video, video).compile().memory_analysis()
with jax.set_mesh(mesh):
    compiled = jax.jit(loss).lower(spread, spread).compile()
for kind in ("all-gather", "all-to-all", "collective-permute"):
    assert f" {kind}(" not in compiled.as_text(), kind
print(compiled.memory_analysis().temp_size_in_bytes / alone.temp_size_in_bytes)
"""


@pytest.mark.slow
def test_features_stay_on_the_devices_of_their_clips(run_python):
    done = run_python(SPREAD)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.4


@pytest.mark.slow
def test_features_in_bfloat16_give_nearly_the_same_distance(weights, lpips):
    a, b = videos((32, 32))
    narrow = PerceptualLoss.load(weights, dtype=jnp.bfloat16)
    assert narrow.features(a[:, 0])[0].dtype == jnp.bfloat16
    distance = narrow(a, b)
    assert distance.dtype == jnp.float32
    np.testing.assert_allclose(distance, lpips(a, b), rtol=0.03)
