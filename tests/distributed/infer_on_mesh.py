"""Draws, rebuilds, measures and encodes with modules loaded onto a mesh, and writes what comes out.

python tests/distributed/infer_on_mesh.py TOKENIZER GENERATOR OUT '{"data": 4, "tensor": 2}'
"""

import json
import sys
from pathlib import Path

import numpy as np

from videogen.data.inputs import build_source, held_out
from videogen.evaluation.protocols import evaluate
from videogen.inference.caching import write_token_cache
from videogen.inference.sampling import encode_prompts
from videogen.tasks import reconstruct
from videogen.tasks.tokenizer import TokenizerTask
from videogen.training.loading import load

PROMPTS = ["a red circle moves left", "a blue square moves up", "", "a green circle", "a red square moves right"]
"""Five, which no number of devices but one divides."""


def main(tokenizer: str, generator: str, out: str, sizes: str) -> None:
    out, mesh = Path(out), json.loads(sizes)
    tokenizer, generator = load(tokenizer, mesh or None), load(generator, mesh or None)
    clips = held_out(build_source(generator.config, "eval"), 5)
    videos, batches = np.stack([sample["video"] for sample in clips.samples]), clips.batches(4, generator.text)
    sampler, arrays, metrics = generator.generator(), {}, {}
    said = encode_prompts(generator, PROMPTS)
    arrays["windows"] = sampler.generate(said, 7, seed=3, overlap=3)
    # The last two by themselves: a draw depends on its place among all.
    last = {name: part[3:] for name, part in said.items()}
    arrays["last"] = sampler.generate(last, 7, seed=3, overlap=3, first=3)
    arrays["continued"] = sampler.generate(said, 5, seed=4, first_frames=videos[:, :3])
    arrays["rebuilt"] = reconstruct(tokenizer.tokenizer, videos)
    metrics["score"] = TokenizerTask.score(tokenizer.tokenizer, batches)
    metrics["loss"] = generator.task.evaluate(generator.modules, batches, seed=5)
    record, pictures = evaluate(tokenizer, "reconstruction", 5, 0)
    metrics["reconstruction"] = {k: v for k, v in record["metrics"].items() if isinstance(v, float | int)}
    arrays["reconstructions"] = pictures["reconstructions"]
    metrics["written"] = {"clips": write_token_cache(tokenizer, out / "cache", None, clips=5, batch_size=3)}
    np.savez(out / "arrays.npz", **arrays)
    (out / "metrics.json").write_text(json.dumps(metrics))


if __name__ == "__main__":
    main(*sys.argv[1:])
