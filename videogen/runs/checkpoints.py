"""Checkpoints with Orbax v1: asynchronous saves of state and data position, restores into any mesh.

Orbax writes a checkpoint beside its final name and renames it when it is whole, so one that was cut short is never
taken for finished. Against damage that comes later every checkpoint carries the sizes of its files and a checksum of
its arrays; one that fails them is passed over for the one before.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint.experimental.v1 as ocp
from absl import logging
from etils import epath
from jaxtyping import Array, UInt32

from videogen.configuration import is_remote, replace_text
from videogen.errors import UserError
from videogen.parallel.distributed import from_process_zero, wait_for_all
from videogen.runs.stops import NotWritten, storage_errors

State = dict[str, Any]
"""Nested dicts of arrays."""

SIZES = "file_sizes.json"
"""Written into a finished checkpoint: path of every file -> bytes."""

UNPLANNED = "unplanned_checkpoints.json"
"""In the run directory: steps of the checkpoints that were saved because something went wrong."""

DAMAGED = "damaged_checkpoints"
"""Where a run moves checkpoints that it could not read."""


WEIGHTS = ("step", "params", "variables", "ema")
"""The parts of a state that a trained model is read from."""


class KeepLastAndBest:
    """Keeps the last ``keep`` checkpoints and the one with the best score; an Orbax preservation policy.

    Args:
      keep: number of latest checkpoints.
      mode: ``max`` or ``min``, which score is best.

    Attributes:
      scores: value of the metric by step.
      unplanned: steps that were saved because something went wrong. They do not count among the last ones, so that
        starting again and again cannot push the good ones out.
    """

    def __init__(self, keep: int, mode: str = "max"):
        self.scores: dict[int, float] = {}
        self.unplanned: set[int] = set()
        self._keep = keep
        self._choose = {"max": max, "min": min}[mode]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Which of ``checkpoints``, oldest first, stay."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        scored = [step for step in steps if step in self.scores]
        best = self._choose(scored, key=self.scores.__getitem__) if scored else None
        planned = [step for step in steps if step not in self.unplanned]
        return [step in (best, steps[-1]) or step in planned[-self._keep :] for step in steps]


class Checkpoints:
    """The ``checkpoints/`` directory of a run.

    Args:
      workdir: the run directory.
      policy: which checkpoints are kept.
      read_only: nothing is written or cleaned up: the run that writes there may still be going on.
    """

    def __init__(self, workdir: epath.PathLike, policy: KeepLastAndBest | None = None, read_only: bool = False):
        workdir = epath.Path(workdir)
        # Orbax wants absolute paths, which remote ones are.
        self.directory = (workdir if is_remote(workdir) else workdir.resolve()) / "checkpoints"
        self._policy = policy or KeepLastAndBest(2)
        self._read_only = read_only
        self._pending: Any = None
        self._unfinished: int | None = None
        self._failed = False
        self._policy.unplanned = _read_unplanned(self.directory.parent / UNPLANNED)
        self._checkpointer = self._open()

    def _open(self, clean_up: bool = True) -> ocp.training.Checkpointer | None:
        if self._read_only and not self.directory.exists():
            return None
        with storage_errors(self.directory, "choose another --workdir or make it writable", UserError):
            return ocp.training.Checkpointer(
                self.directory,
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=self._policy,
                cleanup_tmp_directories=clean_up and not self._read_only,
            )

    @property
    def steps(self) -> list[int]:
        """The finished checkpoints, oldest first."""
        if self._checkpointer is None:
            return []
        return [c.step for c in self._checkpointer.checkpoints if c.step != self._unfinished]

    @property
    def latest(self) -> int | None:
        """The last finished step on disk, ``None`` in a new run."""
        return max(self.steps, default=None)

    def score(self, step: int, value: float) -> None:
        """Notes what ``keep_best`` goes by; it decides when the next checkpoint is saved."""
        self._policy.scores[step] = value

    def save(self, step: int, state: State, position: dict[str, int], planned: bool = True) -> None:
        """Starts writing ``state`` and the data position; returns once the arrays are copied off the device.

        Args:
          step: finished steps.
          state: the train state.
          position: of the data.
          planned: whether it was due; one that was saved because something went wrong pushes no other out.

        Raises:
          NotWritten: this save or the one before could not be written.
        """
        self.wait()
        if self.latest == step:
            return
        if jax.process_index() == 0 and not self.directory.exists():
            # Orbax would make it anew, without the files that a run needs beside it.
            raise NotWritten(f"{self.directory} was removed while the run was going on; start again to begin anew")
        weights = {name: part for name, part in state.items() if name in WEIGHTS}
        data = {**position, "checksum": int(checksum(state)), "weights": int(checksum(weights))}
        with self._writing():
            self._note_unplanned(step, planned)
            self._unfinished = step
            self._pending = self._checkpointer.save_checkpointables_async(step, {"state": state, "data": data})

    def _note_unplanned(self, step: int, planned: bool) -> None:
        """Keeps the list of unplanned checkpoints up to date, also for later starts."""
        known = {step} if not planned else set()
        unplanned = (self._policy.unplanned - {step} | known) & {*self.steps, step}
        if unplanned != self._policy.unplanned:
            self._policy.unplanned = unplanned
            if jax.process_index() == 0:
                replace_text(self.directory.parent / UNPLANNED, json.dumps(sorted(unplanned)) + "\n")

    def wait(self, timeout: float | None = None) -> None:
        """Blocks until the save under way is on disk, or ``timeout`` seconds have passed.

        Raises:
          NotWritten: it could not be written.
        """
        if self._pending is None:
            return
        with self._writing():
            try:
                self._pending.result(timeout)
            except TimeoutError:
                if timeout is None:
                    self._give_up()
                return
            if jax.process_index() == 0:
                directory = self.directory / str(self._unfinished)
                (directory / SIZES).write_text(json.dumps(_file_sizes(directory)))
        self._pending = self._unfinished = None

    def _give_up(self) -> None:
        """Forgets a save that Orbax says took too long: it asks the clock on the wall, which has jumped.

        Whether a run stands still is the watchdog's business. The run goes on, and its next checkpoint is due as ever.
        """
        logging.warning("the checkpoint of step %d was not finished: the clock has jumped", self._unfinished)
        self._pending, self._unfinished = None, None
        with contextlib.suppress(Exception):
            self._checkpointer.close()
        # Its thread may still be writing: what it leaves is removed at the next start, not under its hands.
        self._checkpointer = self._open(clean_up=False)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """One line for a save that fails; after it nothing more is saved."""
        good = f"the last good checkpoint is that of step {self.latest}" if self.steps else "no checkpoint was saved"
        try:
            with storage_errors(self.directory, f"{good}; make room there and start the same command again"):
                yield
        except Exception:
            self._pending, self._failed = None, True
            raise

    def restore(self, abstract: State) -> tuple[State, dict[str, int]]:
        """Reads the latest sound checkpoint into the shapes, dtypes and shardings of ``abstract``.

        Damaged ones are passed over with a warning; a run moves them aside, so that it can save these steps again.

        Raises:
          UserError: there is none, or none can be read.
        """
        return self._restore(abstract, "checksum")

    def restore_weights(self, abstract: State, converted: bool = False) -> State:
        """As ``restore``, of ``WEIGHTS`` alone; nothing else is read.

        Args:
          abstract: shapes, dtypes and shardings.
          converted: the dtypes are not those that were saved, so that the checksum cannot be compared.
        """
        wanted = {name: part for name, part in abstract.items() if name in WEIGHTS}
        return self._restore(wanted, "" if converted else "weights")[0]

    def _restore(self, abstract: State, key: str) -> tuple[State, dict[str, int]]:
        if not self.steps:
            raise UserError(f"{self.directory} holds no finished checkpoint; train first")
        damaged: dict[int, str] = {}
        for step in reversed(self.steps):
            try:
                state, position = self._load(step, abstract, key)
            except _Damaged as damage:
                damaged[step] = str(damage)
                logging.warning("the checkpoint of step %d is damaged and passed over: %s", step, damage)
                continue
            if damaged and not self._read_only:
                self._set_aside(list(damaged))
            # A start reads its tokenizer twice, for its config and for its weights.
            if not self._read_only or (str(self.directory), step) not in _said:
                _said.add((str(self.directory), step))
                logging.info("restored step %d from %s", step, self.directory)
            return state, position
        step, reason = next(iter(damaged.items()))
        raise UserError(f"no checkpoint in {self.directory} can be read; that of step {step}: {reason}")

    def _load(self, step: int, abstract: State, key: str) -> tuple[State, dict[str, int]]:
        """One checkpoint; ``key`` names the checksum of what is read."""
        problem = _wrong_sizes(self.directory / str(step)) if jax.process_index() == 0 else ""
        if problem := from_process_zero(problem):
            raise _Damaged(problem)
        # One context for each load: a second load in it would not be a partial one.
        context = ocp.Context()
        context.pytree.loading.partial_load = key != "checksum"
        try:
            with context:
                loaded = self._checkpointer.load_checkpointables(step, {"state": abstract, "data": None})
        except Exception as error:
            if jax.process_count() > 1:
                # The others may have read their parts well: passing over it here alone would part our ways.
                remedy = f"remove {self.directory / str(step)} to go on from the checkpoint before"
                raise UserError(f"the checkpoint of step {step} cannot be read: {_cause(error)}; {remedy}") from error
            raise _Damaged(_cause(error)) from error
        state, data = loaded["state"], loaded["data"]
        if key in data and int(data[key]) != int(checksum(state)):
            raise _Damaged("its arrays do not have the checksum they were saved with")
        return state, {"position": int(data["position"])}

    def _set_aside(self, steps: list[int]) -> None:
        self._checkpointer.close()
        if jax.process_index() == 0:
            aside = self.directory.parent / DAMAGED
            aside.mkdir(exist_ok=True)
            for step in steps:
                target = aside / str(step)
                if target.exists():
                    target.rmtree()
                (self.directory / str(step)).rename(target)
            logging.warning("moved damaged checkpoints to %s: %s", aside, ", ".join(map(str, steps)))
        wait_for_all()
        self._checkpointer = self._open()

    def close(self) -> None:
        """Waits for the save under way and releases the directory."""
        if self._checkpointer is None:
            return
        try:
            self.wait()
        finally:
            checkpointer, self._checkpointer = self._checkpointer, None
            # Orbax raises the error of a failed save again.
            with contextlib.suppress(*(Exception,) if self._failed else ()):
                checkpointer.close()


def _read_unplanned(path: epath.Path) -> set[int]:
    try:
        return set(map(int, json.loads(path.read_text())))
    except (OSError, ValueError, TypeError):
        return set()


def latest_step(workdir: epath.PathLike) -> int | None:
    """The last finished step of a run directory, ``None`` where there is none."""
    checkpoints = Checkpoints(workdir, read_only=True)
    try:
        return checkpoints.latest
    finally:
        checkpoints.close()


class _Damaged(Exception):
    """A checkpoint cannot be used."""


@jax.jit
def checksum(state: State) -> UInt32[Array, ""]:
    """The sum of all bits of a state as whole numbers, mod 2³²: the same on every mesh, and on any number of hosts."""
    total = jnp.zeros((), jnp.uint32)
    for i, leaf in enumerate(jax.tree.leaves(state)):
        bits = leaf
        if leaf.dtype != jnp.bool_:
            bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
        # Odd factors, so that leaves which change places are noticed.
        total += jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32) * jnp.uint32(2 * i + 1)
    return total


def abstract_state(state: State, shardings: Any) -> State:
    """``ShapeDtypeStruct`` of every leaf, with the sharding it is to be restored to."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)


def _file_sizes(directory: epath.Path, prefix: str = "") -> dict[str, int]:
    """Relative path -> bytes of every file below a directory."""
    sizes: dict[str, int] = {}
    for path in directory.iterdir():
        if path.is_dir():
            sizes |= _file_sizes(path, f"{prefix}{path.name}/")
        else:
            sizes[prefix + path.name] = path.stat().length
    return sizes


def _wrong_sizes(directory: epath.Path) -> str:
    """Which file of a checkpoint is missing or of the wrong size; empty when none is, or sizes are not known."""
    path = directory / SIZES
    try:
        expected = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return ""  # killed between the end of the save and the end of this file
    found = _file_sizes(directory)
    for name, size in expected.items():
        if found.get(name) != size:
            return f"{name} has {found.get(name, 0):,} of {size:,} bytes"
    return ""


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".split("\n")[0]


_said: set[tuple[str, int]] = set()
"""What was read by this process."""
