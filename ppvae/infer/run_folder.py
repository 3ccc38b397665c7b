"""The run folder: what training leaves on disk, and how it is read back.

```
runs/vae/
  config.json            how it was made
  model.safetensors      the weights to use: the best by validation ELBO, or the last
  checkpoints/           last.safetensors (everything that resuming needs), best.safetensors (weights)
  history.csv            one row an epoch
  metrics.json           the final table
  figures/*.png
```

Every write is atomic, every file holds its digest, and one process at a time writes. `checkpoints/last.safetensors` is
the truth that a killed run resumes from; `model.safetensors` is written before it, and never older.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout
from torch import Tensor

from ppvae._validate import check_path, naming_path
from ppvae.infer.checkpoint import Progress
from ppvae.infer.run_config import differences
from ppvae.result import Result
from ppvae.storage import load_state, read_json, remove_temporary, save_state, write_atomically, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, float]
"""One epoch of the history, by column."""

RESUMABLE_CHANGES = ("epochs", "device", "processes")
"""Settings that may differ between a run and its continuation."""


class RunFolder:
    """The files of one run.

    Args:
        path: the folder.

    Attributes:
        path: the folder.

    Example:
        >>> import tempfile, torch, ppvae
        >>> from ppvae.models import PPCA
        >>> out = tempfile.mkdtemp() + "/ppca"
        >>> run = ppvae.fit(PPCA(8, 2), torch.randn(100, 8), epochs=1, out=out, progress=False)
        >>> RunFolder(out).last.is_file()
        True
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = check_path("path", path)
        self.last = self.path / "checkpoints" / "last.safetensors"
        self.best = self.path / "checkpoints" / "best.safetensors"
        self.model = self.path / "model.safetensors"
        self.history = self.path / "history.csv"
        self.config = self.path / "config.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes, and other runs of this one, out of the folder, which it makes.

        The kernel lets go of the lock where a process dies. What a killed one was writing is removed.

        Raises:
            RuntimeError: where another run writes there, saying which.
        """
        with naming_path("out"):
            self.path.mkdir(parents=True, exist_ok=True)
        holder = self.path / ".holder"
        try:
            with FileLock(self.path / ".lock", timeout=0):
                remove_temporary(self.path)
                holder.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
                try:
                    yield
                finally:
                    holder.unlink(missing_ok=True)
        except Timeout:
            who = "another process"
            with contextlib.suppress(OSError, UnicodeDecodeError):
                who = holder.read_text(encoding="utf-8") or who
            raise RuntimeError(f"{self.path} is being written by {who}: one run at a time writes to a folder") from None

    def create(self, config: dict[str, Any]) -> None:
        """Makes the folder and writes its config.

        Raises:
            FileExistsError: where it holds a run already; nothing on disk is touched.
        """
        self.check_free()
        self.last.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.config, config)

    def check_free(self) -> None:
        """Raises FileExistsError where the folder holds a run already."""
        if self.config.exists() or self.last.exists():
            raise FileExistsError(f"{self.path} holds a run already: resume it, or choose another folder")

    def check_resumable(self) -> bool:
        """Whether there is a run to go on with: a job that was stopped before it wrote anything starts.

        Raises:
            FileNotFoundError: where a run has lost its config or its checkpoint: it is never started anew.
        """
        if not self.config.exists():
            if self.last.exists():
                raise FileNotFoundError(f"{self.path} has a checkpoint and no config.json that says what it is of")
            return False
        done = [path.name for path in (self.history, self.path / "metrics.json") if path.exists()]
        if done and not self.last.exists():
            raise FileNotFoundError(
                f"{self.path} cannot be resumed: it has {' and '.join(done)}, but {self.last} is missing. To train "
                "anew choose another folder"
            )
        return True

    def read_config(self) -> dict[str, Any]:
        """The config.

        Raises:
            FileNotFoundError: where the folder is no run folder.
            ValueError: where it is damaged.
        """
        if not self.config.is_file():
            raise FileNotFoundError(f"{self.path} is no run folder: it has no config.json")
        return read_json(self.config)

    def update_config(self, settings: dict[str, Any]) -> None:
        """Notes the settings that a run is resumed with."""
        write_json(self.config, {**self.read_config(), "fit": settings})

    def check_same(self, settings: dict[str, Any], versions: dict[str, str] | None = None) -> None:
        """Checks that a run is resumed as what it was started as.

        Raises:
            ValueError: naming each setting or version that differs, with both values.
        """
        config = self.read_config()
        started = config.get("fit", {})
        if not isinstance(started, dict):
            raise ValueError(f"{self.config} must hold the settings of fit by name, got {started!r}")
        # through JSON, so that a tuple here equals the list that the file holds
        resumed = {k: v for k, v in json.loads(json.dumps(settings)).items() if k not in RESUMABLE_CHANGES}
        changed = differences(started, resumed) + differences(config, versions or {})
        if changed:
            raise ValueError(f"cannot resume {self.path} with other settings: " + "; ".join(changed))

    def write_history(self, history: list[Row]) -> None:
        """Writes the rows as CSV, numbers in full."""
        columns = list(dict.fromkeys(column for row in history for column in row))

        def write(path: Path) -> None:
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(history)

        write_atomically(self.history, write)

    def read_history(self) -> list[Row]:
        """The rows of `history.csv`, as the checkpoint has them where there is one.

        Raises:
            ValueError: where the file is damaged.
        """
        try:
            with self.history.open(newline="", encoding="utf-8") as file:
                rows = [{k: float(v) for k, v in row.items() if v not in ("", None)} for row in csv.DictReader(file)]
        except (ValueError, TypeError, AttributeError, csv.Error) as error:
            raise ValueError(f"{self.history} is damaged: it is no table of numbers ({error})") from error
        if not self.last.is_file():
            return rows
        kept: list[Row] = Progress.of(self.read_checkpoint()["progress"], source=str(self.last)).history
        if rows != kept[: len(rows)]:
            raise ValueError(
                f"{self.history} is damaged, or was edited: {self.last} holds other numbers. Deleted, it is written "
                "again when the run is resumed"
            )
        return kept

    def write_checkpoint(self, state: dict[str, Any], best: dict[str, Tensor] | None, *, validated: bool) -> None:
        """Writes the weights to use, where they are new, and then the state to resume from.

        Args:
            state: what to resume from.
            best: the weights, where they are the best so far.
            validated: whether the best weights are the ones to use, or the last.
        """
        if best is not None:
            save_state(self.best, best)
        if best is not None or not validated:
            save_state(self.model, state["model"] if best is None else best)
        save_state(self.last, state)

    def read_checkpoint(self) -> dict[str, Any]:
        """The state that the run had when it was last written.

        Raises:
            ValueError: where the file is damaged, or no checkpoint.
        """
        state = load_state(self.last)
        if not isinstance(state, dict) or not {"model", "progress"} <= state.keys():
            raise ValueError(f"{self.last} is no checkpoint: it must hold 'model' and 'progress'")
        return state

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Writes `metrics.json`."""
        write_json(self.path / "metrics.json", metrics)

    def read_metrics(self) -> dict[str, Any]:
        """`metrics.json`; empty where there is none.

        Raises:
            ValueError: where it is damaged.
        """
        path = self.path / "metrics.json"
        return read_json(path) if path.is_file() else {}

    def reached(self, stopped: str) -> Run:
        """What a run had done when its last checkpoint was written.

        Args:
            stopped: why it ended, as of `Run`.

        Raises:
            FileNotFoundError: where no epoch was finished.
            ValueError: where the checkpoint is damaged.
        """
        now = Progress.of(self.read_checkpoint()["progress"], source=str(self.last))
        return Run(now.history, self.path, stopped, now.best_epoch, now.seconds)

    def weights(self) -> dict[str, Tensor]:
        """The weights to use: the run's result, or what a run that did not finish had reached.

        Raises:
            FileNotFoundError: where the run wrote none.
        """
        for path in (self.model, self.best):
            if path.is_file():
                return load_state(path)
        if self.last.is_file():
            return self.read_checkpoint()["model"]
        raise FileNotFoundError(f"{self.path} holds no weights: no epoch of the run was finished")


@dataclass(frozen=True, repr=False)
class Run(Result):
    """What `fit` did: a line in a console, a list in a notebook, `to_dataframe()` with a row for each epoch.

    Attributes:
        history: one row an epoch: `epoch`, `loss` (as minimised), `elbo`, `reconstruction`, `kl_<site>` (of the
            training minibatches, nats per datum, unscaled), `kl_weight`, `lr`, and `valid_elbo`; where the
            guide gives a continuous latent one value, `valid_loss` in its place, and no `elbo`.
        folder: where the run lies on disk, if anywhere.
        stopped: "finished" (all epochs), "early" (no better validation ELBO), "callback" (one returned True) or
            "interrupted" (Ctrl-C); "nonfinite" where a run that met a NaN is read back.
        best_epoch: the epoch whose weights the pair now holds; None without validation data (the last).
        seconds: time spent training, all starts of a run that was resumed together.
    """

    history: list[Row]
    folder: Path | None
    stopped: str
    best_epoch: int | None
    seconds: float

    def summary(self) -> str:
        """What was done, for a person."""
        clauses = [f"{len(self.history)} epochs in {self.seconds:.1f} s, {self.stopped}"]
        for column in ("elbo", "valid_elbo", "valid_loss"):
            if self.history and column in (last := self.history[-1]):
                clauses.append(f"{column} {last[column]:.3f} in the last one")
        clauses += [] if self.best_epoch is None else [f"the weights are those of epoch {self.best_epoch}"]
        clauses += [] if self.folder is None else [f"in {self.folder}"]
        return "; ".join(clauses)

    def plot(self) -> Figure:
        """The training curves: see `ppvae.plot.training_curves`.

        Raises:
            ValueError: where no epoch was finished.

        Example:
            >>> import torch, ppvae
            >>> from ppvae.models import PPCA
            >>> run = ppvae.fit(PPCA(8, 2), torch.randn(100, 8), epochs=2, progress=False)
            >>> [axes.get_title() for axes in run.plot().axes], list(run.to_dataframe()["epoch"])
            (['ELBO', 'reconstruction', 'KL divergence'], [1.0, 2.0])
        """
        from ppvae import plot

        return plot.training_curves(self.history)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        license: str | None = None,
        tags: Sequence[str] = (),
        private: bool = False,
        message: str = "A run of ppvae",
    ) -> str:
        """Uploads the run's folder to the Hugging Face Hub, as `ppvae.push_to_hub` does.

        Args:
            repo_id: the repository, `owner/name`; it is made where there is none.
            license: its licence as the hub names it, e.g. "apache-2.0"; None states none.
            tags: what the model is filed under besides.
            private: whether a new repository is for its owner alone.
            message: of the commit.

        Returns:
            The address of the commit.

        Raises:
            ValueError: where the run was written nowhere: `fit(..., out=...)` writes it.
            ImportError, FileNotFoundError, OSError: as `ppvae.push_to_hub`.
        """
        from ppvae import push_to_hub

        if self.folder is None:
            raise ValueError("a run must lie in a folder to be pushed, and this one lies in none: fit(..., out=FOLDER)")
        return push_to_hub(self.folder, repo_id, license=license, tags=tags, private=private, message=message)
