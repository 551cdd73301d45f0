"""A plain PyTorch sampler of codes with cached keys and values, for ``sampling.py --peer``.

pip install torch
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional


class Layer(nn.Module):
    """A GPT-2 block without biases, appending to buffers of keys and values."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, place: int) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.query_key_value(self.attention_norm(x)).chunk(3, dim=-1)
        q, k, v = (y.view(batch, length, self.heads, -1).transpose(1, 2) for y in (q, k, v))
        keys[:, :, place : place + length], values[:, :, place : place + length] = k, v
        seen = place + length
        y = functional.scaled_dot_product_attention(q, keys[:, :, :seen], values[:, :, :seen])
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.mlp_norm(x)), approximate="tanh"))


def next_token_sampler(
    vocabulary: int, width: int, layers: int, heads: int, tokens: int, batch: int
) -> tuple[Callable[[], object], int]:
    """(draws one batch of sequences, parameters)."""
    torch.manual_seed(0)
    blocks = nn.ModuleList(Layer(width, heads) for _ in range(layers))
    table, positions = nn.Embedding(vocabulary + 1, width), nn.Embedding(tokens, width)
    norm, head = nn.LayerNorm(width, bias=False), nn.Linear(width, vocabulary, bias=False)
    modules = [blocks, table, positions, norm, head]

    @torch.inference_mode()
    def draw() -> torch.Tensor:
        shape = (layers, batch, heads, tokens, width // heads)
        keys, values = torch.zeros(shape), torch.zeros(shape)
        ids = torch.full((batch, tokens + 1), vocabulary)
        for place in range(tokens):
            x = table(ids[:, place : place + 1]) + positions.weight[place]
            for i, block in enumerate(blocks):
                x = block(x, keys[i], values[i], place)
            logits = head(norm(x))[:, 0]
            ids[:, place + 1] = torch.multinomial(torch.softmax(logits, -1), 1)[:, 0]
        return ids[:, 1:]

    return draw, sum(p.numel() for module in modules for p in module.parameters())
