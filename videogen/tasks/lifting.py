"""Training what lifts poses from pictures into space, whole or as an hourglass over time (HoT)."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from videogen import building, losses
from videogen.errors import UserError
from videogen.metrics.poses import aligned_mpjpe, mpjpe
from videogen.nn import MicroBatch
from videogen.parallel import inside, mesh_of, on_host, spread
from videogen.perception import PoseLifter, lifting_flops
from videogen.shapes import VideoShape
from videogen.tasks.base import Batch, Keep, Modules, Outcome, Task, compute_now, dtype_of

POSES = "poses"
"""The pass of predicted joints beside those that there are."""


class LiftingTask(Task):
    """Group ``model``, a ``PoseLifter``. Batches have ``points [batch, frames, joints, 2]``, joints in the picture, and
    ``joints [batch, frames, joints, 3]``, where they are in the axes of the camera.

    ``config.root`` is the joint that errors are told from.
    """

    exported = ("model",)

    def __init__(self, config: Any):
        self.config, self.losses = config, {"model": self.loss}
        if len(config.data.buckets) or config.data.image_batch_size:
            raise UserError("poses are of clips of one length: leave data.buckets and images out")
        clip = config.data.clip
        self.lifter = nnx.eval_shape(lambda: self.init(nnx.Rngs(0)))["model"]
        self.root, joints = config.root, self.lifter.sizes.joints
        building.check_value("root", int, self.root)
        if not 0 <= self.root < joints:
            raise UserError(f"root is one of the joints 0 … {joints - 1}, got {self.root}")
        self.bucket_tokens = [clip.frames * joints]
        setting = losses.Setting(VideoShape(clip.frames, clip.height, clip.width), clip.frames, 0, config.steps)
        self.terms = losses.build(config.losses, setting)

    def init(self, rngs: nnx.Rngs) -> dict[str, nnx.Module]:
        given = dict(frames=self.config.data.clip.frames, remat=self.config.parallel.remat)
        given |= dict(dtype=dtype_of(self.config), rngs=rngs)
        return {"model": building.build({"pose_lifter": PoseLifter}, self.config.model.to_dict(), "model", **given)}

    def loss(
        self, modules: Modules, batch: Batch, key: jax.Array, step: Array, micro: MicroBatch | None = None
    ) -> tuple[Float[Array, ""], Outcome]:
        """The weighted sum of the terms."""
        self._check(batch)
        found = modules["model"](batch["points"])
        outputs = losses.Outputs({POSES: losses.Pass(found, batch["joints"])})
        loss, metrics = losses.combine(self.terms, modules, outputs, key, step, micro or MicroBatch())
        return loss, Outcome(metrics)

    def _check(self, batch: Batch) -> None:
        """Refuses batches without poses, or of other joints than those of the model."""
        if "points" not in batch or "joints" not in batch:
            raise UserError("the clips have no poses in space: data.source.name is skeletons or pose_folder here")
        if (joints := batch["points"].shape[2]) != self.lifter.sizes.joints:
            raise UserError(f"the poses have {joints} joints; set model.joints={joints}")

    @classmethod
    def default_protocol(cls, config: Any) -> str | None:
        return None

    def lifting(self, modules: Modules) -> Any:
        """What maps ``points`` of a batch to joints, on the mesh of the modules."""
        graph, state = nnx.split(modules["model"])
        mesh, run = mesh_of(state), jax.jit(lambda state, points: nnx.merge(graph, state)(points))

        def lift(points: Float[np.ndarray, "batch frames joints 2"]) -> Float[np.ndarray, "batch frames joints 3"]:
            with inside(mesh):
                return on_host(run(state, spread(jnp.asarray(points), mesh)))

        return lift

    def evaluate(
        self, modules: Modules, batches: Iterable[Batch], seed: int, keep: Keep = compute_now
    ) -> dict[str, float]:
        """``mpjpe`` and ``p_mpjpe`` in the units of the data, of every frame of the held-out clips, and floating-point
        operations of a clip: of this model, of its host without an hourglass, and their ratio."""
        lift, errors, aligned = self.lifting(modules), [], []
        for i, batch in enumerate(batches):
            self._check(batch)
            found = keep(f"joints_{i}", lambda batch=batch: {"joints": lift(batch["points"])})["joints"]
            errors.append(mpjpe(found, batch["joints"], self.root).ravel())
            aligned.append(aligned_mpjpe(found, batch["joints"]).ravel())
        frames, sizes = self.config.data.clip.frames, self.lifter.sizes
        own, host = (lifting_flops(sizes, frames, middle) for middle in (self.lifter.middle, None))
        cost = {"flops": own, "flops_of_host": host, "flops_share": own / host}
        means = {name: np.concatenate(found).mean() for name, found in (("mpjpe", errors), ("p_mpjpe", aligned))}
        return {name: float(value) for name, value in {**means, **cost}.items()}
