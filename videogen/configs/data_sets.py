"""Public data sets: the section ``data.source`` that reads each, with the splits that the protocols of papers need.

``config.data.source.update(source("ucf101"))`` in a config, and the same settings as flags: --config.data.source.name=…
The user gives the path. The folders are those that the archives unpack to; lists are found below the path.
"""

from typing import Any

from videogen.errors import UserError, near_matches

_UCF101 = "ucfTrainTestlist"

SOURCES: dict[str, dict[str, Any]] = {
    # 13,320 videos; the path holds UCF-101/ and ucfTrainTestlist/. List 1: 9,537 for training, 3,783 held out.
    # Labels are those of classInd.txt less 1. Real statistics of FVD: train (MAGVIT, LARP), or both (StyleGAN-V).
    "ucf101": {
        "name": "video_folder",
        "folder_classes": True,
        "class_list": f"{_UCF101}/classInd.txt",
        "train_split": f"{_UCF101}/trainlist01.txt",
        "eval_split": f"{_UCF101}/testlist01.txt",
    },
    # Clips in train/CLASS/ID_START_END.mp4 and val/…, as the usual tools cut them; frame prediction is measured on val.
    # With the lists (train_split=train.csv, eval_split=validate.csv) clips that stand in both are held out.
    "kinetics600": {"name": "video_folder", "folder_classes": True, "train_split": "train", "eval_split": "val"},
    # 43,264 videos for training and 256 for testing, 30 frames of 64 × 64; prepared by tensorflow-datasets
    # (bair_robot_pushing_small). MAGVIT's protocol takes the camera image_aux1.
    "bair": {"name": "tfds", "field": "image_aux1", "train_split": "train", "eval_split": "test"},
    # 1,281,167 and 50,000 pictures in train/WORDNET_ID/ and val/WORDNET_ID/: labels are the places of the sorted ids.
    "imagenet": {"name": "image_folder", "train_split": "train", "eval_split": "val"},
    # 118,287 and 5,000 pictures without classes; reconstruction is measured on val2017.
    "coco2017": {"name": "image_folder", "train_split": "train2017", "eval_split": "val2017"},
}
"""Name -> settings of ``data.source`` but for the path."""

CLASSES = {"ucf101": 101, "kinetics600": 600, "imagenet": 1000}
"""Name -> number of labels, for ``config.classes`` of a generator."""


def source(name: str) -> dict[str, Any]:
    """The settings of ``data.source`` that read a data set.

    Raises:
      UserError: an unknown name.
    """
    if name not in SOURCES:
        raise UserError(f"unknown data set {name!r}{near_matches(name, SOURCES)}")
    return dict(SOURCES[name])
