"""The training loop behind `fit`: epochs of SVI steps whose state can be captured, written and restored."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ppvae.data import Batches
from ppvae.infer.checks import check_fits, minibatches
from ppvae.infer.importance import evaluating, importance_draws, validation
from ppvae.infer.nonfinite import NonFiniteError
from ppvae.infer.run import Row, Run, RunFolder
from ppvae.infer.schedule import Schedule
from ppvae.infer.state import get_rng, set_rng, to_cpu
from ppvae.infer.svi import SVI, OptimizerFactory, StepTerms
from ppvae.pair import Batch, KLWeight, check_batch, device_of
from ppvae.storage import load_state, restore_weights, save_state

FLUSH_EVERY = 100
"""Steps between reads from the device: the losses wait there until then."""


@dataclass
class _Progress:
    """How far training has come; all of it goes into a checkpoint.

    Attributes:
        epoch: epochs finished.
        step: steps finished in the running epoch.
        sums: of each term over the running epoch, and of the data ("data").
        history: the finished epochs.
        best: the best validation ELBO so far.
        best_epoch: the epoch that reached it.
        epoch_rng: the random state with which the running epoch began.
    """

    epoch: int = 0
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    history: list[Row] = field(default_factory=list)
    best: float = -math.inf
    best_epoch: int | None = None
    epoch_rng: dict[str, Any] = field(default_factory=dict)


@dataclass
class Trainer:
    """Trains one pair; see `ppvae.fit` for the meaning of the fields.

    Attributes:
        lr: a schedule that sets the learning rate at every step; None leaves the optimizer's own.
        kl_weight: a schedule for β; None leaves the pair's own scales.
    """

    pair: nn.Module
    train: Batches | Iterable[Any]
    valid: Batches | Iterable[Any] | None
    loss: Any
    optim: OptimizerFactory
    clip_norm: float | None
    lr: Schedule | None
    kl_weight: Schedule | None
    folder: RunFolder | None
    seed: int

    def prepare(self) -> None:
        """Runs the pair once on a minibatch: creates its parameters, checks it against the data.

        Raises:
            ValueError: naming the site, the argument or the data that do not fit.
        """
        self.device = device_of(self.pair)
        self.progress = _Progress()
        self.best_weights: dict[str, Tensor] | None = None
        self.beta = torch.ones((), device=self.device)
        pair: Any = self.pair
        self.svi = SVI(pair.model, pair.guide, self.optim, self.loss, clip_norm=self.clip_norm)
        with evaluating(self.pair, self.seed, attach=True):
            for name, data in (("train", self.train), ("valid", self.valid)):
                if data is not None:
                    check_fits(self.pair, data, self.device, name=name)
            self.svi.setup(*next(self._minibatches(0)))
        with self._seeded():
            self.rng = get_rng(self.device)

    def resume(self) -> None:
        """Continues from the folder's last checkpoint."""
        assert self.folder is not None
        if not self.folder.last.is_file():
            return  # stopped before its first checkpoint: start over
        self.restore(self.folder.read_checkpoint(), source=str(self.folder.last))
        if self.progress.best_epoch is not None:
            self.best_weights = load_state(self.folder.best)

    def run(self, *, epochs: int, patience: int | None, progress: bool, log: Any) -> Run:
        """Trains until `epochs` epochs are done, validation stops improving, or Ctrl-C."""
        began = time.perf_counter()
        with (
            self._seeded(),
            self.svi.running(),
            validation(False),
            _stop_requests() as stop,
            _progress_bar(self.train, epochs, progress) as bar,
        ):
            set_rng(self.rng)
            stopped = "finished"
            while self.progress.epoch < epochs:
                bar.set_description(f"epoch {self.progress.epoch + 1}/{epochs}", refresh=False)
                if not self._epoch(stop, bar):
                    stopped = "interrupted"
                    break
                self._finish_epoch(bar, log)
                waited = self.progress.epoch - (self.progress.best_epoch or 0)
                if patience is not None and waited >= patience:
                    stopped = "early"
                    break
        return self._result(stopped, time.perf_counter() - began)

    def _epoch(self, stop: threading.Event, bar: Any) -> bool:
        """Runs what is left of the epoch; False where a stop was asked for (a checkpoint is then written)."""
        now = self.progress
        if now.step == 0:
            now.epoch_rng, now.sums = get_rng(self.device), {}
        start = self.capture()
        pending: list[tuple[int, StepTerms]] = []
        self.pair.train()
        for batch in self._remaining():
            pending.append(self._step(batch))
            now.step += 1
            if len(pending) >= FLUSH_EVERY or stop.is_set():
                self._flush(pending, start, bar)
            if stop.is_set():
                self._write(best=None)
                return False
        self._flush(pending, start, bar)
        return True

    def _remaining(self) -> Iterator[Batch]:
        """The minibatches of the running epoch that are not done yet, with the random state as it was there."""
        done, rng = self.progress.step, get_rng(self.device)
        if done:
            set_rng(self.progress.epoch_rng)  # an iterable may draw its order from the global state
        minibatches = self._minibatches(self.progress.epoch)
        for _ in range(done):
            next(minibatches)
        if done:
            set_rng(rng)
        yield from minibatches

    def _minibatches(self, epoch: int) -> Iterator[Batch]:
        """The minibatches of an epoch as tuples of tensors on the device."""
        yield from minibatches(self.train, epoch, self.device)

    def _step(self, batch: Batch, *, check: bool = False) -> tuple[int, StepTerms]:
        """One step on a minibatch of n data: n, and the terms summed over them."""
        n = check_batch(batch, name="train")
        time_in_epochs = self._time()
        if self.lr is not None:
            assert self.svi.optimizer is not None
            for group in self.svi.optimizer.param_groups:
                group["lr"] = self.lr(time_in_epochs)
        if self.kl_weight is None:
            return n, self.svi.update(*batch, weight=1 / n, check=check)
        self.beta.fill_(self.kl_weight(time_in_epochs))
        with KLWeight(self.beta):
            return n, self.svi.update(*batch, weight=1 / n, check=check)

    def _time(self) -> float:
        """The time in epochs, for schedules; whole where the length of an epoch is not known."""
        steps = len(self.train) if isinstance(self.train, Sized) else math.inf
        return self.progress.epoch + self.progress.step / steps

    def _flush(self, pending: list[tuple[int, StepTerms]], start: dict[str, Any], bar: Any) -> None:
        """Reads the waiting terms from the device, all at once, and adds them to the epoch's sums."""
        if not pending:
            return
        names = list(pending[0][1].named())
        table = torch.stack([torch.stack(list(terms.named().values())) for _, terms in pending]).double().cpu()
        finite = table.isfinite().all(1)
        if not bool(finite.all()):
            bad = int((~finite).nonzero()[0])
            terms = ", ".join(f"{k} = {v:g}" for k, v in zip(names, table[bad].tolist(), strict=True))
            self._name_nonfinite(start, self.progress.step - len(pending) + bad, terms)
        sums = self.progress.sums
        for name, total in zip(names, table.sum(0).tolist(), strict=True):
            sums[name] = sums.get(name, 0.0) + total
        sums["data"] = sums.get("data", 0.0) + sum(n for n, _ in pending)
        bar.update(len(pending))
        pending.clear()

    def _name_nonfinite(self, start: dict[str, Any], step: int, terms: str) -> None:
        """Replays the epoch with a check at every step, to name what was not finite first and stop before it."""
        epoch = self.progress.epoch + 1
        kept = "" if self.folder is None else f"; the last checkpoint is {self.folder.last}"
        kept = f"The pair holds the weights before that step{kept}."
        self.restore(start, source="the start of the epoch")
        set_rng(self.rng)
        for batch in self._remaining():
            if self.progress.step > step:
                break
            try:
                self._step(batch, check=True)
            except NonFiniteError as error:
                raise NonFiniteError(f"{error}, in epoch {epoch}, step {self.progress.step + 1}. {kept}") from None
            self.progress.step += 1
        raise NonFiniteError(f"the loss is not finite in epoch {epoch}, step {step + 1}: {terms}. {kept}")

    def _finish_epoch(self, bar: Any, log: Any) -> None:
        """Adds the epoch's row to the history, validates, and writes the checkpoint."""
        now = self.progress
        data = now.sums.pop("data", math.nan)
        row = {name: total / data for name, total in now.sums.items()}
        if "reconstruction" in row:
            kl = sum(value for name, value in row.items() if name.startswith("kl_"))
            row = {"loss": row.pop("loss"), "elbo": row["reconstruction"] - kl, **row}
        end = float(now.epoch + 1)
        row = {"epoch": end, **row}
        if self.kl_weight is not None:
            row["kl_weight"] = float(self.beta)
        assert self.svi.optimizer is not None
        row["lr"] = float(self.svi.optimizer.param_groups[0]["lr"])
        now.epoch, now.step, now.sums = now.epoch + 1, 0, {}
        best = None
        if self.valid is not None:
            row["valid_elbo"] = self._valid_elbo()
            if row["valid_elbo"] > now.best:
                now.best, now.best_epoch = row["valid_elbo"], now.epoch
                best = self.best_weights = self._weights()
        now.history.append(row)
        shown = {k: f"{row[k]:.2f}" for k in ("loss", "elbo", "valid_elbo") if k in row}
        bar.set_postfix(shown, refresh=False)
        for name, value in row.items() if log is not None else ():
            log.add_scalar(name, value, now.epoch)
        self._write(best)

    def _valid_elbo(self) -> float:
        """The mean ELBO of the validation data, one draw per datum, the same draws every epoch."""
        assert self.valid is not None
        total, count = 0.0, 0
        whole = [self.valid.tensors] if isinstance(self.valid, Batches) and self.valid.transform is None else None
        for batch in whole or minibatches(self.valid, 0, self.device):
            for draws in importance_draws(self.pair, batch, num_samples=1, seed=self.seed):
                total += float(draws.log_weight().double().sum())
            count += check_batch(batch, name="valid")
        return total / count

    def capture(self) -> dict[str, Any]:
        """Everything that training depends on, copied to the CPU."""
        assert self.svi.optimizer is not None
        state = {
            "model": self._weights(),
            "optimizer": self.svi.optimizer.state_dict(),
            "rng": get_rng(self.device),
            "progress": {**vars(self.progress), "history": list(self.progress.history)},
        }
        return to_cpu(state)

    def restore(self, state: dict[str, Any], *, source: str) -> None:
        """Puts back what `capture` copied."""
        restore_weights(self.pair, state["model"], source=source)
        assert self.svi.optimizer is not None
        self.svi.optimizer.load_state_dict(to_cpu(state["optimizer"]))
        self.rng = state["rng"]
        progress = state["progress"]
        self.progress = _Progress(**{**progress, "sums": dict(progress["sums"]), "history": list(progress["history"])})

    def _weights(self) -> dict[str, Tensor]:
        return to_cpu(dict(self.pair.state_dict()))

    def _write(self, best: dict[str, Tensor] | None) -> None:
        if self.folder is not None:
            self.folder.write_checkpoint(self.capture(), best)
            self.folder.write_history(self.progress.history)

    def _result(self, stopped: str, seconds: float) -> Run:
        if self.best_weights is not None:
            restore_weights(self.pair, self.best_weights, source="the best epoch")
        if self.folder is not None:
            save_state(self.folder.model, self._weights())
        now = self.progress
        folder = None if self.folder is None else self.folder.path
        return Run(now.history, folder, stopped, now.best_epoch, seconds)

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        """The random state of this run in place of the global one, which comes back on leaving."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(self.seed)
            yield


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event that Ctrl-C (or a scheduler's SIGTERM) sets once; a second one interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return
    before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _progress_bar(train: Any, epochs: int, show: bool) -> Any:
    steps = len(train) * epochs if isinstance(train, Sized) else None
    often = 0.2 if sys.stderr.isatty() else 30.0  # a log file wants few lines
    return tqdm(total=steps, unit="step", disable=not show, dynamic_ncols=True, mininterval=often)
