"""Networks of newer video distances: pooling by the probes of V-JEPA, VideoMAE v2 from its own file."""

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from tests.encoders.oracles import assert_near, channels_first, pixels, randomise
from videogen.encoders.videomae import VideoMaeV2
from videogen.encoders.vjepa import Vjepa
from videogen.encoders.vjepa2 import Vjepa2Pooled
from videogen.errors import UserError

PREDICTOR = dict(pred_hidden_size=12, pred_num_attention_heads=3, pred_num_hidden_layers=1)


@pytest.mark.parametrize("layers", [1, 2])
def test_vjepa2_with_the_pooling_of_its_probe(tmp_path, layers):
    sizes = dict(hidden_size=24, num_hidden_layers=1, num_attention_heads=3, crop_size=16, patch_size=8)
    config = transformers.VJEPA2Config(**sizes, **PREDICTOR, frames_per_clip=4, num_pooler_layers=layers, num_labels=5)
    theirs = randomise(transformers.VJEPA2ForVideoClassification(config))
    theirs.save_pretrained(tmp_path)
    x, ours = pixels(2, 4, 16, 16), Vjepa2Pooled.load(tmp_path)
    with torch.no_grad():
        hidden = theirs.vjepa2(channels_first(x), skip_predictor=True).last_hidden_state
        expected = theirs.pooler(hidden)
    assert_near(ours.tokens(x), hidden)
    assert_near(ours.encode(x), expected)


def split(x, heads):
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


class Published:
    """V-JEPA's graph written out on the tensors of its two files: 192 wide with 3 heads, 16 frames of 8 × 8."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)

        def draw(*shape):
            return torch.randn(shape, generator=generator) * (shape[-1] ** -0.5 if len(shape) > 1 else 0.2)

        width, inner = 192, "module.backbone.{}"
        names = {"patch_embed.proj.weight": (width, 3, 2, 4, 4), "patch_embed.proj.bias": (width,)}
        names |= {"pos_embed": (1, 32, width)} | self.layer("blocks.0.", "attn.qkv", "attn.proj", 3, width)
        names |= {"norm.weight": (width,), "norm.bias": (width,)}
        self.encoder = {inner.format(name): draw(*shape) for name, shape in names.items()}
        block = "pooler.cross_attention_block."
        probe = {"pooler.query_tokens": (1, 1, width)} | self.layer(block, "xattn.kv", "xattn.proj", 2, width)
        probe |= {f"{block}xattn.q.weight": (width, width), f"{block}xattn.q.bias": (width,)}
        probe |= {"linear.weight": (5, width), "linear.bias": (5,)}
        self.probe = {f"module.{name}": draw(*shape) for name, shape in probe.items()}

    @staticmethod
    def layer(prefix, joined, out, parts, width):
        sizes = {joined: (parts * width, width), out: (width, width), "mlp.fc1": (4 * width, width)}
        sizes |= {"mlp.fc2": (width, 4 * width)}
        names = {f"{prefix}{name}.weight": size for name, size in sizes.items()}
        names |= {f"{prefix}{name}.bias": size[:1] for name, size in sizes.items()}
        return names | {
            f"{prefix}{norm}.{leaf}": (width,) for norm in ("norm1", "norm2") for leaf in ("weight", "bias")
        }

    def save(self, path):
        encoder = {f"target_encoder.{name}": value for name, value in self.encoder.items()}
        other = {f"encoder.{name}": value + 1 for name, value in self.encoder.items()}
        save_file({**encoder, **other, "opt.state": torch.zeros(1)}, path / "vith16.safetensors")
        save_file(
            {f"classifier.{name}": value.contiguous() for name, value in self.probe.items()}, path / "p.safetensors"
        )
        return f"{path / 'vith16.safetensors'},{path / 'p.safetensors'}"

    def __call__(self, x):
        f = torch.nn.functional
        e = {name.removeprefix("module.backbone."): value for name, value in self.encoder.items()}
        p = {name.removeprefix("module."): value for name, value in self.probe.items()}

        def linear(t, name, x):
            return f.linear(x, t[f"{name}.weight"], t[f"{name}.bias"])

        def norm(t, name, x, epsilon):
            return f.layer_norm(x, x.shape[-1:], t[f"{name}.weight"], t[f"{name}.bias"], epsilon)

        def mlp(t, name, x):
            return linear(t, f"{name}.fc2", f.gelu(linear(t, f"{name}.fc1", x)))

        def attended(q, k, v):
            q, k, v = (split(y, 3) for y in (q, k, v))
            return f.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

        x = x.movedim(2, 1)
        x = f.conv3d(x, e["patch_embed.proj.weight"], e["patch_embed.proj.bias"], stride=(2, 4, 4))
        x = x.flatten(2).transpose(1, 2) + e["pos_embed"]
        qkv = linear(e, "blocks.0.attn.qkv", norm(e, "blocks.0.norm1", x, 1e-6))
        x = x + linear(e, "blocks.0.attn.proj", attended(*qkv.chunk(3, -1)))
        x = x + mlp(e, "blocks.0.mlp", norm(e, "blocks.0.norm2", x, 1e-6))
        x, block = norm(e, "norm", x, 1e-6), "pooler.cross_attention_block"
        q, kv = p["pooler.query_tokens"].repeat(len(x), 1, 1), norm(p, f"{block}.norm1", x, 1e-5)
        found = attended(linear(p, f"{block}.xattn.q", q), *linear(p, f"{block}.xattn.kv", kv).chunk(2, -1))
        q = q + linear(p, f"{block}.xattn.proj", found)
        return (q + mlp(p, f"{block}.mlp", norm(p, f"{block}.norm2", q, 1e-5)))[:, 0]


def test_vjepa_with_the_pooling_of_its_probe(tmp_path):
    published, x = Published(), pixels(2, 16, 8, 8)
    path = published.save(tmp_path)
    ours = Vjepa.load(path)
    assert_near(ours.encode(x), published(channels_first(x)))
    assert len(ours.hash) == 64
    with pytest.raises(UserError, match="16×8×8 pixels, got 8×8×8"):
        ours.encode(x[:, :8])
    with pytest.raises(UserError, match="lacks the tensors pooler.cross_attention_block.mlp.fc1"):
        Vjepa.load(path.split(",")[0])
    with pytest.raises(UserError, match="no patch_embed.proj.weight and pos_embed"):
        Vjepa.load(path.split(",")[1])


def test_videomae_v2_is_the_network_of_transformers_under_other_names(tmp_path):
    """Widths of 384 have 6 heads; pixels stay in [0, 1], and features are normalised means."""
    sizes = dict(hidden_size=384, num_hidden_layers=1, num_attention_heads=6, intermediate_size=48)
    config = transformers.VideoMAEConfig(**sizes, image_size=224, patch_size=112, num_labels=5, layer_norm_eps=1e-6)
    theirs = randomise(transformers.VideoMAEForVideoClassification(config))
    theirs.fc_norm.eps = 1e-6
    state, layer = theirs.state_dict(), "videomae.encoder.layer.0"
    inner, embedding = f"{layer}.attention.attention", "videomae.embeddings.patch_embeddings.projection"
    renamed = {
        "patch_embed.proj": embedding,
        "blocks.0.attn.proj": f"{layer}.attention.output.dense",
        "blocks.0.norm1": f"{layer}.layernorm_before",
        "blocks.0.norm2": f"{layer}.layernorm_after",
        "blocks.0.mlp.fc1": f"{layer}.intermediate.dense",
        "blocks.0.mlp.fc2": f"{layer}.output.dense",
        "fc_norm": "fc_norm",
        "head": "classifier",
    }
    tensors = {f"{a}.{leaf}": state[f"{b}.{leaf}"] for a, b in renamed.items() for leaf in ("weight", "bias")}
    qkv = torch.cat([state[f"{inner}.{name}.weight"] for name in ("query", "key", "value")])
    tensors |= {"blocks.0.attn.qkv.weight": qkv}
    tensors |= {f"blocks.0.attn.{name[0]}_bias": state[f"{inner}.{name}.bias"] for name in ("query", "value")}
    save_file({f"module.{name}": value.contiguous() for name, value in tensors.items()}, tmp_path / "x.safetensors")
    ours, x = VideoMaeV2.load(tmp_path / "x.safetensors"), pixels(1, 16, 224, 224)
    with torch.no_grad():
        expected = theirs.fc_norm(theirs.videomae(channels_first(x)).last_hidden_state.mean(1))
    assert_near(ours.encode(x), expected)
    clip = np.random.default_rng(0).integers(0, 256, (1, 16, 224, 224, 3)).astype(np.uint8)
    np.testing.assert_allclose(ours(clip), ours.encode(clip / np.float32(255)), rtol=1e-4, atol=1e-4)
