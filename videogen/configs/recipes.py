"""Recipes of published systems that reduce the tokens of a clip, as chains of reducers and hooks of the decoder.

Numbers are for clips of 8 × 6 × 6 tokens, those that a debug model has of 32 frames. What a system has beside its
reduction, its encoder, its language model and its data, is not part of a recipe.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

Chain = tuple[dict[str, Any], ...]
FRAMES, EACH = 8, 36
"""Places in time of a clip of 32 frames, of which the encoder joins four at a time, and tokens of each place."""
FULL = FRAMES * EACH

HALF, QUARTER, TENTH, DOZEN, PER_FRAME = 144, 72, 32, 12, 8
"""Budgets of the table: a half, a quarter and a ninth of the tokens, twelve, and one for each place in time."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What stands between encoder and answer.

    Attributes:
      idea: in a few words, and whose it is.
      chains: budget of the table -> reducers, one behind the other (``model.vision.reducers``); the tokens that stay
        are the nearest number that the recipe can have.
      hooks: in the decoder (``model.backbone.hooks``).
      trained: it has weights of its own, so it is trained for some steps.
      weights: the recipe whose training gives the weights: that of what questions look for.
      published: the chain with the published settings, for 32 frames of 27 × 27 tokens.
      published_hooks: in a decoder of 28 layers.
    """

    idea: str
    chains: Mapping[int, Chain]
    hooks: Chain = ()
    trained: bool = False
    weights: str = ""
    published: Chain = ()
    published_hooks: Chain = ()

    @property
    def usual(self) -> Chain:
        """The chain at a quarter of the tokens, or at the largest budget it has."""
        return self.chains.get(QUARTER, self.chains[max(self.chains)])


def _each(*budgets: int, before: Chain = (), **section: Any) -> dict[int, Chain]:
    """Chains whose last reducer takes the budget as it is."""
    return {budget: (*before, {**section, "budget": budget}) for budget in budgets}


ALL = (HALF, QUARTER, TENTH, PER_FRAME, DOZEN)

RECIPES = {
    "all": Recipe("all tokens", {FULL: ()}),
    "uniform": Recipe(
        "evenly spaced frames",
        {n: ({"name": "frames", "frames": n // EACH},) for n in (HALF, QUARTER)}
        | {TENTH: ({"name": "frames", "frames": 1},)},
        published=({"name": "frames", "frames": 8},),
    ),
    "random": Recipe(
        "random tokens",
        _each(*ALL, name="tokens", rule="random"),
        published=({"name": "tokens", "budget": 5832, "rule": "random"},),
    ),
    "pooling": Recipe(
        "means of windows over time",
        {
            HALF: ({"name": "windows", "window": (2, 1, 1)},),
            QUARTER: ({"name": "windows", "window": (2, 2, 1)},),
            TENTH: ({"name": "windows", "window": (1, 3, 3)},),
            DOZEN: ({"name": "windows", "window": (2, 6, 2)},),
            PER_FRAME: ({"name": "windows", "window": (4, 3, 3)},),
        },
        published=({"name": "windows", "window": (4, 1, 1)},),
    ),
    "m3": Recipe(
        "coarser grids of every frame (M3)",
        {
            QUARTER: ({"name": "grid", "side": 3},),
            TENTH: ({"name": "grid", "side": 2},),
            PER_FRAME: ({"name": "grid", "side": 1},),
        },
        published=({"name": "grid", "side": 3},),
    ),
    "tome": Recipe(
        "bipartite merging (ToMe, TempMe)",
        {n: ({"name": "bipartite", "removed": FULL - n, "rounds": 8},) for n in ALL},
        published=({"name": "bipartite", "removed": 23_328 - 576, "rounds": 8},),
    ),
    "center_clip": Recipe(
        "medoids of four segments (CenterCLIP)",
        {n: ({"name": "medoids", "budget": n // 4, "segments": 4},) for n in ALL},
        published=({"name": "medoids", "budget": 160, "segments": 4},),
    ),
    "kmeans": Recipe(
        "clusters (VQToken without its attention)",
        _each(*ALL, name="kmeans"),
        published=({"name": "kmeans", "budget": 32},),
    ),
    "vq_token": Recipe(
        "clusters that know where they are (VQToken)",
        _each(TENTH, DOZEN, PER_FRAME, name="token_hash", hidden=64),
        trained=True,
        published=({"name": "token_hash", "budget": 32, "hidden": 729},),
    ),
    "holitom": Recipe(
        "still places merged, then density peaks (HoliTom)",
        _each(*ALL, name="density_peaks", output="blend", before=({"name": "still", "budget": FULL},)),
        published=(
            {"name": "grid", "side": 14},
            {"name": "still", "budget": 6272},
            {"name": "density_peaks", "budget": 941, "output": "blend"},
        ),
    ),
    "holitom_inside": Recipe(
        "merged inside the decoder (HoliTom)",
        {FULL: ()},
        ({"name": "merge_attended", "layer": 1, "ratio": 0.75},),
        published_hooks=({"name": "merge_attended", "layer": 18, "ratio": 0.5},),
    ),
    "kffocus": Recipe(
        "finer grids for key frames (KFFocus)",
        {
            QUARTER: ({"name": "key_frames", "budget": QUARTER, "key": 4, "other": 2},),
            TENTH: ({"name": "key_frames", "budget": TENTH, "key": 3, "other": 1},),
        },
        published=({"name": "key_frames", "budget": 2048, "key": 14, "other": 7},),
    ),
    "timechat_online": Recipe(
        "what changed since the frame before (TimeChat-Online)",
        {
            n: ({"name": "changes", "budget": n, "by": "share", "share": 1 - (n - EACH) / (FULL - EACH)},)
            for n in (HALF, QUARTER)
        },
        published=({"name": "changes", "budget": 4200, "by": "share", "share": 0.85},),
    ),
    "grt": Recipe(
        "scenes merged (GRT)",
        {
            HALF: ({"name": "scenes", "budget": HALF, "share": 0.42, "floor": 4},),
            QUARTER: ({"name": "scenes", "budget": QUARTER, "share": 0.14, "floor": 4},),
        },
        published=({"name": "scenes", "budget": 11_664, "share": 0.5, "floor": 16},),
    ),
    "d_code": Recipe(
        "diverse frames, long vectors, alike merged (D-CoDe)",
        _each(QUARTER, TENTH, DOZEN, name="greedy", before=({"name": "frames", "frames": 4, "rule": "diverse"},)),
        published=({"name": "frames", "frames": 15, "rule": "diverse"}, {"name": "greedy", "budget": 4320}),
    ),
    "ts_llava": Recipe(
        "spread tokens and a thumbnail (TS-LLaVA)",
        {n: ({"name": "thumbnails", "picks": n - EACH, "tiles": (2, 3)},) for n in (HALF, QUARTER)},
        published=({"name": "thumbnails", "picks": 2880, "tiles": (3, 3)},),
    ),
    "video_lisa": Recipe(
        "all frames as one token, some whole (VideoLISA)",
        {n: ({"name": "sparse_dense", "frames": (n - FRAMES) // EACH},) for n in (HALF, QUARTER)},
        published=({"name": "sparse_dense", "frames": 4},),
    ),
    "video_scan": Recipe(
        "a carrier for each frame, in a bank (VideoScan)",
        _each(PER_FRAME, name="bank", before=({"name": "carriers"},)),
        published=({"name": "carriers"}, {"name": "bank", "budget": 64}),
    ),
    "videollm_mod": Recipe(
        "every second layer for a fifth (VideoLLM-MoD)",
        {FULL: ()},
        ({"name": "depth", "layer": 1}, {"name": "depth", "layer": 3}),
        trained=True,
        published=({"name": "grid", "side": 3},),
        published_hooks=tuple({"name": "depth", "layer": layer} for layer in range(1, 28, 2)),
    ),
    "slow_fast": Recipe(
        "coarse grids, all tokens beside the text (Slow-Fast)",
        {QUARTER: ({"name": "grid", "side": 3},)},
        ({"name": "beside", "layer": 2, "queries": "text"},),
        trained=True,
        published=({"name": "windows", "window": (4, 1, 1)},),
        published_hooks=tuple({"name": "beside", "layer": layer, "queries": "text"} for layer in range(0, 28, 8)),
    ),
    "cross_lmm": Recipe(
        "coarse grids, all tokens beside both (CrossLMM)",
        {QUARTER: ({"name": "grid", "side": 3},)},
        ({"name": "beside", "layer": 1, "queries": "both"}, {"name": "beside", "layer": 3, "queries": "both"}),
        trained=True,
        published=({"name": "grid", "side": 3},),
        published_hooks=tuple({"name": "beside", "layer": layer, "queries": "both"} for layer in range(0, 28, 4)),
    ),
    "ppllava": Recipe(
        "means of windows by the question (PPLLaVA)",
        {QUARTER: ({"name": "question_pooling", "window": (1, 2, 2)},)},
        trained=True,
        published=({"name": "question_pooling", "window": (2, 3, 3)},),
    ),
    "b_vllm": Recipe(
        "frames by the question, then merging (B-VLLM)",
        {
            n: (
                {"name": "frames", "frames": 4, "rule": "query"},
                {"name": "bipartite", "removed": 144 - n, "rounds": 8},
            )
            for n in (QUARTER, TENTH)
        },
        weights="ppllava",
        published=(
            {"name": "frames", "frames": 16, "rule": "query"},
            {"name": "bipartite", "removed": 16 * 729 - 576, "rounds": 8},
        ),
    ),
    "f2c": Recipe(
        "frames by the question, grown to clips (F2C)",
        {n: ({"name": "clips", "anchors": max(n // EACH, 1), "pairs": ((1, 1), (4, 2))},) for n in (QUARTER, TENTH)},
        weights="ppllava",
        published=(
            {"name": "grid", "side": 24},
            {"name": "clips", "anchors": 8, "pairs": ((1, 1), (4, 2), (16, 4))},
        ),
    ),
    "quota": Recipe(
        "grids by relevance (QuoTA)",
        _each(QUARTER, TENTH, name="budgeted_grids", ladder=(0, 1, 2, 3, 4, 5, 6)),
        weights="ppllava",
        published=({"name": "budgeted_grids", "budget": 12_544, "ladder": tuple(range(28))},),
    ),
    "free_video_llm": Recipe(
        "a region by the question, then spread tokens (Free Video-LLM)",
        _each(QUARTER, TENTH, name="tokens", before=({"name": "region", "share": 0.5},)),
        weights="ppllava",
        published=({"name": "region", "share": 0.8}, {"name": "tokens", "budget": 3328}),
    ),
    "tdc": Recipe(
        "queries of what changed (TDC)",
        {QUARTER: ({"name": "conditional_queries", "side": 1, "frames": 4, "heads": 4},)},
        trained=True,
        published=({"name": "grid", "side": 12}, {"name": "conditional_queries", "side": 4, "frames": 8}),
    ),
    "video_llamb": Recipe(
        "bridge tokens and the last segment (VideoLLaMB)",
        {QUARTER: ({"name": "bridge", "memory": 8, "frames": 2, "heads": 4},)},
        trained=True,
        published=({"name": "grid", "side": 12}, {"name": "bridge", "memory": 32, "frames": 8}),
    ),
    "video_streaming": Recipe(
        "summaries of clips (VideoStreaming)",
        {TENTH: ({"name": "summaries", "frames": 2, "heads": 4},)},
        trained=True,
        published=({"name": "grid", "side": 16}, {"name": "summaries", "frames": 16}),
    ),
    "pvc": Recipe(
        "frames that say what is new (PVC)",
        {QUARTER: ({"name": "progressive", "heads": 4},)},
        trained=True,
        published=({"name": "grid", "side": 16}, {"name": "progressive"}),
    ),
    "perceiver": Recipe(
        "learned queries (Perceiver, Q-Former)",
        {TENTH: ({"name": "perceiver", "queries": (32,), "width": 64, "depth": 2, "heads": 4, "head_width": 16},)},
        trained=True,
        published=({"name": "perceiver", "queries": (32,), "width": 1024, "depth": 2, "heads": 16},),
    ),
}
"""Name -> recipe."""
