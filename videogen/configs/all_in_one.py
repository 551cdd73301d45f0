"""All-in-one (Wang et al., CVPR 2023): one vision transformer for patches and words, frames joined by token rolling.

    --config=all_in_one:size=debug|small|paper,model=Ti|S|B

Every frame goes through the layers with the whole text; an eighth of the patches of each comes from the frame before it
and an eighth from the one behind it, anew in every layer. The losses are matching (yes or no) and masked whole words;
--config.losses.contrastive.weight=1.0 adds the contrastive one. ``model`` is the published size at ``paper``. There
images and several sets of videos are mixed, which is up to the data; batch, rate and steps are those of the published
config. ``videogen.evaluate --protocol=retrieval`` ranks by the scores of matching.
"""

from ml_collections import ConfigDict

from videogen.configs.video_text import MASKED_WORDS, begun
from videogen.configuration import parse_argument
from videogen.defaults import optimizer
from videogen.errors import UserError

STAGES = ("pretraining",)

PUBLISHED = {"Ti": (192, 3), "S": (384, 6), "B": (768, 12)}
"""Width and heads; 12 layers each."""

CLIPS = {"debug": (3, 24, 24), "small": (3, 48, 48), "paper": (3, 224, 224)}
PATCHES = {"debug": 6, "small": 6, "paper": 16}


def get_config(argument: str = "") -> ConfigDict:
    """The config of a size; ``argument`` is what follows the colon of ``--config``."""
    chosen = parse_argument(argument, stage=STAGES, size=("debug", "small", "paper"), model=tuple(PUBLISHED))
    size = chosen["size"]
    if size != "paper" and chosen["model"] != "Ti":
        raise UserError("models are of the published sizes: add size=paper")
    config = begun(size, network(size, chosen["model"]), CLIPS[size], matching="binary", negatives=1, embed=256)
    config.model.masking.whole_words = True
    config.losses = {
        "words": MASKED_WORDS,
        "matching": {"name": "matching", "reads": "matching", "weight": 1.0, "temperature": 1.0},
        "contrastive": {"name": "contrastive", "reads": "contrastive", "weight": 0.0},
    }
    config.checkpoint.keep_best.metric = "text_to_video_recall_sum"
    if size == "paper":
        config.text.tokenizer.length = 40
        config.data.batch_size = 4096
        config.steps = 200_000
        config.optimizer = {"model": optimizer(learning_rate=1e-4, warmup=20_000, b2=0.98, weight_decay=0.01)}
    return config


def network(size: str, model: str) -> dict:
    """The one transformer."""
    if size == "debug":
        layers = {"width": 64, "layers": 3, "heads": 2, "mlp_width": 256}
    elif size == "small":
        layers = {"width": 384, "layers": 6, "heads": 6, "mlp_width": 1536}
    else:
        width, heads = PUBLISHED[model]
        layers = {"width": width, "layers": 12, "heads": heads, "mlp_width": 4 * width}
        layers |= {"norm": {"name": "layer", "epsilon": 1e-6}, "qk_norm": False, "mlp": {"kind": "gelu", "bias": True}}
        layers["attention"] = {"bias": ("query", "key", "value", "out")}
    return {"name": "shared", "patch": PATCHES[size], "transformer": layers, "fold": 8}
