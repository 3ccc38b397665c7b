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

Every write is atomic. `checkpoints/last.safetensors` is the truth that a killed run resumes from.
"""

from __future__ import annotations

import csv
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ppvae._validate import check_path
from ppvae.storage import load_state, save_state, write_atomically, write_json

Row = dict[str, float]
"""One epoch of the history, by column."""

RESUMABLE_CHANGES = ("epochs", "device")
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
        if self.config.exists():
            raise FileExistsError(f"{self.path} holds a run already: resume it, or choose another folder")

    def read_config(self) -> dict[str, Any]:
        """The config.

        Raises:
            FileNotFoundError: where the folder is no run folder.
        """
        if not self.config.is_file():
            raise FileNotFoundError(f"{self.path} is no run folder: it has no config.json")
        return json.loads(self.config.read_text(encoding="utf-8"))

    def update_config(self, settings: dict[str, Any]) -> None:
        """Notes the settings that a run is resumed with."""
        write_json(self.config, {**self.read_config(), "fit": settings})

    def check_same(self, settings: dict[str, Any]) -> None:
        """Checks that a run is resumed with the settings that it was started with.

        Raises:
            ValueError: naming each setting that differs, with both values.
        """
        # through JSON, so that a tuple here equals the list that the file holds
        started, resumed = self.read_config().get("fit", {}), json.loads(json.dumps(settings))
        changed = [
            f"{name} was {started[name]!r}, is {resumed[name]!r}"
            for name in sorted(started.keys() & resumed.keys())  # others are those of another version
            if name not in RESUMABLE_CHANGES and started[name] != resumed[name]
        ]
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
        """The rows of `history.csv`."""
        with self.history.open(newline="", encoding="utf-8") as file:
            return [{k: float(v) for k, v in row.items() if v not in ("", None)} for row in csv.DictReader(file)]

    def write_checkpoint(self, state: dict[str, Any], best: dict[str, Tensor] | None) -> None:
        """Writes the best weights, where they are new, and then the state to resume from."""
        if best is not None:
            save_state(self.best, best)
        save_state(self.last, state)

    def read_checkpoint(self) -> dict[str, Any]:
        """The state that the run had when it was last written."""
        return load_state(self.last)

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        """Writes `metrics.json`."""
        write_json(self.path / "metrics.json", metrics)

    def weights(self) -> dict[str, Tensor]:
        """The weights to use: the run's result, or what a run that did not finish had reached.

        Raises:
            FileNotFoundError: where the run wrote none.
        """
        for path in (self.model, self.best):
            if path.is_file():
                return load_state(path)
        if self.last.is_file():
            return load_state(self.last)["model"]
        raise FileNotFoundError(f"{self.path} holds no weights: no epoch of the run was finished")


@dataclass(frozen=True)
class Run:
    """What `fit` did.

    Attributes:
        history: one row an epoch: `epoch`, `loss` (as minimised), `elbo`, `reconstruction`, `kl_<site>` (of the
            training minibatches, nats per datum, unscaled), `kl_weight`, `lr`, and `valid_elbo`.
        folder: where the run lies on disk, if anywhere.
        stopped: "finished" (all epochs), "early" (no better validation ELBO), "callback" (one returned True) or
            "interrupted" (Ctrl-C).
        best_epoch: the epoch whose weights the pair now holds; None without validation data (the last).
        seconds: time spent training, this time.
    """

    history: list[Row] = field(repr=False)
    folder: Path | None
    stopped: str
    best_epoch: int | None
    seconds: float
