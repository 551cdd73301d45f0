"""The keys that the config of every stage has, with the values that they have unless a system says otherwise."""

from ml_collections import ConfigDict, config_dict


def base(dtype: str) -> ConfigDict:
    """The keys every stage has."""
    config = ConfigDict()
    config.seed = 0
    config.steps = 1
    config.log_every = 10
    config.eval_every = 1000
    config.checkpoint_every = 1000
    # The last ones are kept and, where a metric of the evaluation is named, the best one too.
    config.checkpoint = {"keep": 2, "keep_best": {"metric": "", "mode": "max"}}
    # A loop without progress for so long is stopped, with its stacks in the log. Compiling is part of it.
    config.stall_seconds = 1800.0
    config.accumulate = 1
    # Frozen networks by name: {"checkpoint": run or export, "model": config, "hash": of the weights}.
    config.parts = {}
    # A run directory or export whose weights a new run begins with, where names and shapes agree; empty: fresh ones.
    # "last" (causal) or "central" also inflates 2-D kernels to 3-D ones, into that slice of time.
    # Parts of their own origin: ((path in the new run, "RUN" or "RUN:path in it"), …).
    config.start_from = {"run": "", "inflate": "", "paths": config_dict.placeholder(tuple)}
    config.ema = {"decay": 0.0}
    config.parallel = {
        "mesh": {"replica": 1, "data": -1, "fsdp": 1, "tensor": 1, "context": 1},
        "remat": "none",
        # Weights of frozen modules: "sharded" over fsdp like trained ones, or "whole" on every device.
        "frozen": "sharded",
        "dtype": dtype,
    }
    config.data = data_section()
    return config


def data_section() -> dict:
    """The keys of ``data``."""
    return {
        # Settings of single sources; those left empty take the source's own default.
        "source": {
            "name": "shapes",
            "path": "",
            "holdout": config_dict.placeholder(float),
            "length": config_dict.placeholder(int),
            "second_shape": config_dict.placeholder(float),
            "without": config_dict.placeholder(str),
            "turn": config_dict.placeholder(float),
            "directions": config_dict.placeholder(bool),
            "subtitle": config_dict.placeholder(bool),
            "words": config_dict.placeholder(int),
            "maps": config_dict.placeholder(bool),
            "segments": config_dict.placeholder(str),
            "things": config_dict.placeholder(int),
            "audio": config_dict.placeholder(bool),
            "audio_rate": config_dict.placeholder(int),
            "pixel_budget": config_dict.placeholder(int),
            "whole": config_dict.placeholder(bool),
            "times": config_dict.placeholder(bool),
            "pictures": config_dict.placeholder(bool),
            "uncaptioned": config_dict.placeholder(bool),
            # Of questions in a folder, and about shapes.
            "questions": config_dict.placeholder(str),
            "eval_questions": config_dict.placeholder(str),
            "questions_per_clip": config_dict.placeholder(int),
            "kinds": config_dict.placeholder(tuple),
            "distractors": config_dict.placeholder(int),
            "seconds": config_dict.placeholder(float),
            "needle": config_dict.placeholder(int),
            "depth": config_dict.placeholder(float),
            # Of a mixture: ({"name": …, "weight": …, …}, …).
            "parts": config_dict.placeholder(tuple),
            # Of a TFDS directory.
            "fps": config_dict.placeholder(float),
            "field": config_dict.placeholder(str),
            # Of folders: where classes come from. The splits are those of a TFDS directory, too.
            "folder_classes": config_dict.placeholder(bool),
            "class_list": config_dict.placeholder(str),
            "train_split": config_dict.placeholder(str),
            "eval_split": config_dict.placeholder(str),
        },
        "clip": {"frames": 5, "height": 32, "width": 32, "fps": 8.0},
        # A generator takes source and clip of its tokenizer where the command gives no others, but for these sections.
        "own": (),
        # Found by a run: frames per second of its samples, whether the clips that it evaluates are kept from training,
        # and what a token cache was made from.
        "frame_rate": config_dict.placeholder(float),
        "held_out": config_dict.placeholder(bool),
        "made_from": {},
        "batch_size": 8,
        # ((frames, height, width, batch_size, share of the steps), …); without any, all batches are of the clip above.
        "buckets": (),
        # ((first step, (share of each bucket, …)), …): other shares from that step on.
        "phases": config_dict.placeholder(tuple),
        "image_batch_size": 0,
        # Where the images beside the videos come from; without a name they are frames of the videos.
        "image_source": {
            "name": config_dict.placeholder(str),
            "path": config_dict.placeholder(str),
            "holdout": config_dict.placeholder(float),
            "folder_classes": config_dict.placeholder(bool),
            "without": config_dict.placeholder(str),
        },
        "eval_batch_size": 16,
        "workers": 0,
    }


def optimizer(name: str = "adamw", **values) -> ConfigDict:
    """One parameter group's optimizer; see ``videogen.training.optimizers``."""
    defaults = {
        "learning_rate": 1e-4,
        "warmup": 0,
        "schedule": "half_cosine",
        "final": 0.0,
        "horizon": config_dict.placeholder(int),
        "b1": 0.9,
        "b2": 0.99,
        "weight_decay": 1e-4,
        "clip": 1.0,
        "adam_share": 1.0,
        # Parameters that stay as they are, by their path from the group's module: ("encoder", "quantizer"). Low-rank
        # updates (LoRA) below such a path are trained.
        "freeze": (),
    }
    return ConfigDict({"name": name, **defaults, **values})
