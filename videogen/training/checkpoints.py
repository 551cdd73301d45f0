"""Checkpoints with Orbax v1: asynchronous saves of state and data position, restores into any mesh."""

from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as ocp
from absl import logging
from etils import epath

from videogen.errors import UserError
from videogen.training.state import State


class Checkpoints:
    """The ``checkpoints/`` directory of a run.

    Args:
      workdir: the run directory.
      keep: number of latest checkpoints kept.
    """

    def __init__(self, workdir: epath.PathLike, keep: int = 2):
        self.directory = epath.Path(workdir).resolve() / "checkpoints"
        self._checkpointer = ocp.training.Checkpointer(
            self.directory,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )
        self._pending = None

    @property
    def latest(self) -> int | None:
        """The last finished step on disk, ``None`` in a new run."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, step: int, state: State, position: dict[str, int]) -> None:
        """Starts writing ``state`` and the data position; returns once the arrays are copied off the device."""
        self.wait()
        if self.latest == step:
            return
        self._pending = self._checkpointer.save_checkpointables_async(step, {"state": state, "data": position})

    def wait(self) -> None:
        """Blocks until the save under way is on disk."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def restore(self, abstract: State) -> tuple[State, dict[str, int]]:
        """Reads the latest checkpoint into the shapes, dtypes and shardings of ``abstract``."""
        step = self.latest
        if step is None:
            raise UserError(f"{self.directory} holds no finished checkpoint; train first")
        try:
            loaded = self._checkpointer.load_checkpointables(step, {"state": abstract, "data": {"position": 0}})
        except Exception as error:
            raise UserError(
                f"the checkpoint of step {step} in {self.directory} cannot be read: {_root_cause(error)}"
            ) from error
        logging.info("restored step %d from %s", step, self.directory)
        return loaded["state"], {"position": int(loaded["data"]["position"])}

    def close(self) -> None:
        """Waits for the save under way and releases the directory."""
        self.wait()
        self._checkpointer.close()


def abstract_state(state: State, shardings: Any) -> State:
    """``ShapeDtypeStruct`` of every leaf, with the sharding it is to be restored to."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".split("\n")[0]
