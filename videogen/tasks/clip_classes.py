"""Training classifiers of long clips: by their labels, and before that by windows of one clip (Selective S4)."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen import building, encoders, losses
from videogen.errors import UserError
from videogen.language.vision_encoders import ENCODER, TOKENIZER, part_of
from videogen.nn import MicroBatch, named_key
from videogen.parallel import inside, mesh_of, on_host, spread
from videogen.perception import SelectiveStateSpace
from videogen.ranges import Count, Share
from videogen.reducers.selection import TokenSelection, frames_of
from videogen.reducers.tokens import TokenSet
from videogen.shapes import VideoShape
from videogen.tasks.base import PUBLISHED, Batch, Keep, Modules, Outcome, Task, compute_now, dtype_of
from videogen.tasks.seeing import Clips, reader_of

MOMENTUM = "momentum"
"""The moving average of the group ``model`` among the modules of a loss."""

CLASSES, WINDOWS = "classes", "windows"
"""The passes of logits beside labels, and of short windows beside long ones."""

NETWORKS = {"selective_state_space": SelectiveStateSpace}
"""Public name -> class, of ``config.model``."""


class ClipClassesTask(Task):
    """Group ``model``. Its choice of tokens is guided by the moving average of itself (``ema.decay``). Frozen, where it
    reads one, a ``tokenizer`` or a published ``encoder``.

    Batches have ``video [batch, frames, height, width, 3]``, or the tokens of a cache, and ``label [batch]``;
    ``config.classes`` is the number of labels.
    """

    exported = ("model",)
    averages: Mapping[str, str] = {MOMENTUM: "model"}

    def __init__(self, config: Any):
        self.config = config
        self.losses, self.updates = {"model": self.loss}, {"model": self._update}
        if len(config.data.buckets) or config.data.image_batch_size:
            raise UserError("long clips have one shape: leave data.buckets and images out")
        if not config.ema.decay:
            raise UserError("the slower copy that guides the choice is the moving average: set ema.decay above 0")
        building.check_value("classes", Count, config.classes)
        clip = config.data.clip
        self.clip, encoder = VideoShape(clip.frames, clip.height, clip.width), config.model.get("encoder")
        part = part_of(encoder)
        read = None if part is None else nnx.eval_shape(lambda: self.structure_of_part(part))
        self.reader = reader_of(encoder, self.clip, clip.fps, read)
        self.network = nnx.eval_shape(lambda: self.init(nnx.Rngs(0)))["model"]
        self.bucket_tokens = [self.network.tokens]
        self.terms = losses.build(config.losses, losses.Setting(self.clip, self.network.tokens, 0, config.steps))

    def init(self, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        given = dict(clip=self.clip, classes=self.config.classes, features=self.reader.features)
        given |= dict(remat=self.config.parallel.remat, dtype=dtype_of(self.config), rngs=rngs)
        return {"model": building.build(NETWORKS, self.config.model.to_dict(), "model", **given)}

    # Frozen parts -----------------------------------------------------------------------------------------------------

    @classmethod
    def parts_of(cls, config: Any) -> Mapping[str, str]:
        part = part_of(config.model.get("encoder"))
        return {TOKENIZER: "tokenizer"} if part == TOKENIZER else {ENCODER: PUBLISHED} if part == ENCODER else {}

    def structure_of_part(self, name: str) -> nnx.Module:
        if name == TOKENIZER:
            return super().structure_of_part(name)
        return encoders.described(self.config.parts[name].model.to_dict(), dtype=dtype_of(self.config))

    # Training ---------------------------------------------------------------------------------------------------------

    def chosen(self, modules: Modules, clips: Clips, key: Array | None = None) -> TokenSet:
        """The tokens that the network looks at; where there is no copy of it, as in an evaluation, it guides itself."""
        model = modules["model"]
        tokens, guide = model.read(clips.inputs, clips.seconds), None
        if model.guided:
            teacher = modules.get(MOMENTUM, model)
            seen = tokens if teacher is model else teacher.read(clips.inputs, clips.seconds)
            guide = jax.lax.stop_gradient(teacher.guide(seen))
        return model.choose(tokens, guide, key)

    def outputs(
        self, modules: Modules, clips: Clips, batch: Batch, key: jax.Array, micro: MicroBatch
    ) -> losses.Outputs:
        """The pass ``classes``."""
        if "label" not in batch:
            raise UserError("the clips have no labels: a classifier needs a source with classes")
        size = len(clips.seconds)
        keys = {name: micro.keys(named_key(key, name), size) for name in ("choice", "dropout")}
        model = modules["model"]
        pooled = model.pooled(self.chosen(modules, clips, keys["choice"]), keys["dropout"])
        return losses.Outputs({CLASSES: losses.Pass(model.logits(pooled), batch["label"])})

    def loss(
        self, modules: Modules, batch: Batch, key: jax.Array, step: Array, micro: MicroBatch | None = None
    ) -> tuple[Float[Array, ""], Outcome]:
        """The weighted sum of the terms."""
        micro = micro or MicroBatch()
        size = len(next(iter(batch.values())))
        clips = self.reader.clips(modules, batch, micro.keys(named_key(key, "tokens"), size))
        outputs = self.outputs(modules, clips, batch, key, micro)
        loss, metrics = losses.combine(self.terms, modules, outputs, key, step, micro)
        sums = modules["model"].encoder.sums(clips.inputs)
        return loss, Outcome(metrics, sums={"vision": sums} if sums else {})

    def _update(
        self, modules: Modules, sums: dict[str, Any], rows: dict[str, Any], key: jax.Array, step: Array
    ) -> dict[str, Array]:
        """Moves the statistics of what a frozen part gives."""
        if sums:
            modules["model"].encoder.update(sums["vision"])
        return {}

    # What is looked at ------------------------------------------------------------------------------------------------

    @classmethod
    def default_protocol(cls, config: Any) -> str | None:
        return None

    def measured(self, modules: Modules, batch: Batch, key: jax.Array) -> dict[str, Array]:
        """Metric -> its value for each example."""
        clips = self.reader.clips(modules, batch)
        pooled = modules["model"].pooled(self.chosen(modules, clips, key_of_baseline(modules, key)))
        logits, labels = modules["model"].logits(pooled), batch["label"]
        nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]
        return {"loss": nll, "accuracy": (logits.argmax(-1) == labels).astype(jnp.float32)}

    def evaluate(
        self, modules: Modules, batches: Iterable[Batch], seed: int, keep: Keep = compute_now
    ) -> dict[str, float]:
        """Means of ``measured`` over held-out clips, tokens of a clip, and those that are looked at."""
        graphs, states = {}, {}
        for name, module in modules.items():
            graphs[name], states[name] = nnx.split(module)
        mesh = mesh_of(states)

        @jax.jit
        def compute(states: Any, batch: Any, key: jax.Array) -> dict[str, Array]:
            return self.measured({n: nnx.merge(graphs[n], states[n]) for n in graphs}, batch, key)

        def measure(i: int, batch: Batch) -> dict[str, np.ndarray]:
            with inside(mesh):
                key = jax.random.fold_in(jax.random.key(seed), i)
                return jax.tree.map(on_host, compute(states, spread(dict(batch), mesh), key))

        found: dict[str, list[np.ndarray]] = {}
        for i, batch in enumerate(batches):
            read = {n: a for n, a in batch.items() if n in ("video", "times", "label") or n.startswith("tokens/")}
            for name, values in keep(f"classes_{i}", lambda i=i, read=read: measure(i, read)).items():
                found.setdefault(name, []).append(np.asarray(values, np.float64))
        network = modules["model"]
        means = {name: float(np.concatenate(values).mean()) for name, values in found.items()}
        return {**means, "tokens": float(network.tokens), "looked_at": float(network.budget)}


def key_of_baseline(modules: Modules, key: jax.Array) -> jax.Array | None:
    """The key of an evaluation's random choice; a learned choice draws nothing there."""
    return None if modules["model"].guided else key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Windows:
    """The section ``config.windows``.

    Attributes:
      short, long: frames of the two windows of a clip.
      masked: share of the tokens of each that are left out, at random.
    """

    short: Count
    long: Count
    masked: Share = 0.5


class LongShortTask(ClipClassesTask):
    """Long-short masked contrastive pretraining (LSMCL): a short window of a clip, of which a part of the tokens is
    left out, is to be told from those of other clips by a long masked window that the moving average has seen.

    Windows and masks are drawn by keys of the examples' places in the batch. The loss is one of the whole batch.
    """

    def __init__(self, config: Any):
        super().__init__(config)
        section = config.windows.to_dict()
        self.windows = building.build({"windows": Windows}, {"name": "windows", **section}, "section")
        self.frames = self.network.grid[0]
        if not self.windows.short <= self.windows.long <= self.frames:
            raise UserError(f"windows are short ≤ long ≤ {self.frames}, the frames of tokens; change config.windows")

    def window(self, tokens: TokenSet, frames: int, masked: float, keys: Array) -> TokenSet:
        """A random run of frames, less a random part of its tokens."""
        spare = self.frames - frames
        draw = jax.vmap(lambda key: jax.random.randint(named_key(key, "start"), (), 0, spare + 1))
        index = draw(keys)[:, None] + jnp.arange(frames)
        run = frames_of(tokens, tokens.grid, index)
        count = max(1, round((1 - masked) * run.shape[1]))
        return TokenSelection(count, rule="random").reduce(run, {"key": named_key(keys, "mask")})[0]

    def pair(
        self, modules: Modules, clips: Clips, keys: tuple[Array, Array], masked: float, dropout: Array | None = None
    ) -> tuple[Float[Array, "batch embed"], Float[Array, "batch embed"]]:
        """Unit vectors of short windows by the network, and of long ones by its moving average."""
        found = []
        for module, frames, key, drop in (
            (modules["model"], self.windows.short, keys[0], dropout),
            (modules.get(MOMENTUM, modules["model"]), self.windows.long, keys[1], None),
        ):
            tokens = self.window(module.read(clips.inputs, clips.seconds), frames, masked, key)
            found.append(module.embedded(module.pooled(tokens, drop)))
        return found[0], jax.lax.stop_gradient(found[1])

    def outputs(
        self, modules: Modules, clips: Clips, batch: Batch, key: jax.Array, micro: MicroBatch
    ) -> losses.Outputs:
        """The pass ``windows``."""
        size = len(clips.seconds)
        short, long, dropout = (micro.keys(named_key(key, name), size) for name in ("short", "long", "dropout"))
        queries, keys = self.pair(modules, clips, (short, long), self.windows.masked, dropout)
        return losses.Outputs({WINDOWS: losses.Pass(queries, keys)})

    def measured(self, modules: Modules, batch: Batch, key: jax.Array) -> dict[str, Array]:
        """Whether the long window of the own clip is nearest to the short one, of those of the batch."""
        clips = self.reader.clips(modules, batch)
        size = len(clips.seconds)
        keys = [MicroBatch().keys(named_key(key, name), size) for name in ("short", "long")]
        queries, found = self.pair(modules, clips, tuple(keys), self.windows.masked)
        nearest = jnp.argmax(queries @ found.T, axis=1)
        return {"accuracy": (nearest == jnp.arange(size)).astype(jnp.float32)}
