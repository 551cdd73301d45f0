"""The smallest training, for tests in one process."""

from ml_collections import ConfigDict

from videogen.configs import phenaki


def tiny(**changes) -> ConfigDict:
    """A C-ViViT of 16 channels on 5×16×16 clips, trained for a step, with ``{dotted key: value}`` changed."""
    config = phenaki.get_config("stage=tokenizer,size=debug")
    config.data.clip.update({"frames": 5, "height": 16, "width": 16})
    config.data.batch_size = config.data.eval_batch_size = 2
    config.model.update({"width": 16, "heads": 2, "mlp_width": 16, "encoder_layers": (0, 1), "decoder_layers": (1, 0)})
    config.model.quantizer.size = 8
    config.steps = config.eval_every = config.checkpoint_every = config.log_every = 1
    config.optimizer.tokenizer.warmup = 0
    config.update_from_flattened_dict(changes)
    return config
