"""The training loop behind `fit`: epochs of SVI steps whose state can be captured, written and restored."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ppvae import processes
from ppvae.compile.policy import Compile
from ppvae.data import Source
from ppvae.infer.callbacks import Callback
from ppvae.infer.checkpoint import Progress, check_like, check_optimizer_state, progress_bar, to_cpu
from ppvae.infer.interrupt import stop_requests, until
from ppvae.infer.nonfinite import NonFiniteError, all_finite, check_finite_parameters, nonfinite_rows
from ppvae.infer.optim import OptimizerFactory, ParamGroups
from ppvae.infer.preflight import (
    check_fits,
    check_kl_sites,
    check_normalised,
    check_objective,
    check_summed,
    check_while_training,
    default_objective,
    moved_supports,
    short_batch,
    warn_of_marks,
)
from ppvae.infer.run_folder import Row, Run, RunFolder
from ppvae.infer.shards import Shards, Step, agreed
from ppvae.infer.svi import SVI
from ppvae.infer.validation import mean_elbo, mean_loss
from ppvae.isolation import isolated
from ppvae.objectives.base import Objective, networks_of
from ppvae.objectives.joint import JointELBO
from ppvae.objectives.reverse import trained_model
from ppvae.objectives.schedule import Schedule
from ppvae.objectives.step_terms import StepTerms
from ppvae.pair import Batch, KLWeight, check_batch, device_of
from ppvae.params import LocalParams
from ppvae.rng import RandomState, forked_rng
from ppvae.sampling.eval_mode import eval_mode, evaluating, modes_kept, validation
from ppvae.storage import load_state, save_state
from ppvae.weights import restore_weights

SHOWN = ("loss", "elbo", "valid_elbo", "valid_loss")
"""The columns that the progress bar has, where there are any."""

FLUSH_EVERY = 100
"""Steps between reads from the device: the losses wait there until then."""


@dataclass
class Trainer:
    """Trains one pair; see `ppvae.fit` for the meaning of the fields.

    Attributes:
        loss: None until `prepare` has chosen it, where none was given.
        lr: a schedule that sets the learning rate at every step; None leaves the optimizer's own.
        kl_weight, kl_sites: a schedule for β, None leaves the pair its own; the latents that it weights, None is all.
        param_groups, compile, autocast: as of `SVI`.
        accumulate: in how many parts, one after another, a process runs its rows of a minibatch.
    """

    pair: Any
    train: Source
    valid: Source | None
    loss: Any
    optim: OptimizerFactory
    clip_norm: float | None
    param_groups: ParamGroups | None
    lr: Schedule | None
    kl_weight: Schedule | None
    kl_sites: Sequence[str] | None
    folder: RunFolder | None
    seed: int
    compile: Compile
    autocast: torch.dtype | None
    accumulate: int = 1
    callbacks: Sequence[Callback] = ()

    @isolated()
    def prepare(self) -> None:
        """Runs the pair once on a minibatch: creates its parameters, checks it against the data.

        Raises:
            ValueError: naming the site, the argument or the data that do not fit.
        """
        self.device = device_of(self.pair)
        self.random = RandomState(self.device, self.train.generators)
        self.shards = Shards(self.seed, self.random, self.train, self.accumulate)
        self.progress = Progress()
        self.best_weights: dict[str, Tensor] | None = None
        self.beta = torch.full((), 0.5, device=self.device)  # no KL weight that could be taken for none
        self.weighting: Any = nullcontext() if self.kl_weight is None else KLWeight(self.beta, self.kl_sites)
        self.steps_per_epoch = self.shards.steps_per_epoch()
        params = LocalParams(self.pair, attach=True, warns=True)
        with self.random.kept(), evaluating(self.pair, self.seed, params=params), self.weighting:
            found = {
                name: check_fits(self.pair, data, name=name)
                for name, data in (("train", self.train), ("valid", self.valid))
                if data is not None
            }
            self.points = {site for points in found.values() for site in points}
            first = next(self.train.epoch(0))
            batches = (first,) if self.train.weights is None else first
            # Torch's formulas go on outside of a support, and so would training: its steps are validated, and eager.
            self.moved = any(moved_supports(self.pair, batch) for batch in batches)
            self._choose_objective(batches)
            if isinstance(self.loss, Objective):
                self.loss.set_data(*[part.num_data for part in self.train.sets or [self.train]])
            check_objective(self.loss, self.pair, first)  # may create a parameter of the objective's own
            if (short := short_batch(self.train, first)) is not None:
                check_objective(self.loss, self.pair, short)
            if self.points and self.valid is not None:
                self._check_validates(self.valid)
            check_kl_sites(self.kl_sites, self.pair, batches)
            self.svi.setup(*batches)
            self.svi.check_buffers()
            self.shards.check(self.pair, self.loss, first, self.valid)
            processes.share(self._trained())
        with self.random.kept(), self.svi.running():
            check_normalised(self.pair, self.train, batches[0])
            if any(
                isinstance(part, nn.Module) for part in self.timed
            ):  # they may be others in training than in eval mode
                for batch in batches:
                    check_while_training(self.pair, batch)
        with forked_rng(self.device, self.seed):
            self.rng = self.random.get()

    def _check_validates(self, valid: Source) -> None:
        """Checks that the validation data have a loss, in each of their minibatches."""
        batch = next(valid.epoch(0))
        for part in (batch, short_batch(valid, batch)):
            if part is not None:
                check_objective(self._valid_objective, self.pair, part, name="valid")

    @property
    def _valid_objective(self) -> Any:
        """The objective of one data set."""
        return self.loss.elbo if isinstance(self.loss, JointELBO) else self.loss

    def _choose_objective(self, batches: Sequence[Batch]) -> None:
        """Takes the default objective where none was given, and makes the SVI of it."""
        with self.random.kept():  # what is looked at changes nothing
            model = trained_model(self.pair, batches[0])
            if self.loss is None:
                loss = default_objective(self.pair, batches)
                self.loss = loss if self.train.weights is None else JointELBO(loss, self.train.weights)
            else:
                warn_of_marks(self.loss, self.pair, batches)
            check_summed(self.loss, self.pair, batches)
        self.networks = nn.ModuleDict(networks_of(self.loss, beside=[self.pair]))
        self.timed = [part for part in (self.loss, *self.pair.modules()) if hasattr(part, "set_time")]
        self.svi = SVI(
            model,
            self.pair.guide,
            self.optim,
            self.loss,
            compile=not self.moved and self.compile,
            autocast=self.autocast,
            clip_norm=self.clip_norm,
            param_groups=self.param_groups,
            on_gradients=None if self.shards.world == 1 else processes.sum_gradients,
            owner=self.pair,
        )
        self.svi.strict = True
        self.svi.agreed = self.svi.agreed if self.shards.world == 1 else agreed

    def resume(self) -> None:
        """Continues from the folder's last checkpoint."""
        assert self.folder is not None
        if not processes.on_first(self.folder.last.is_file):
            return  # stopped before its first checkpoint: start over
        state, source = processes.on_first(self.folder.read_checkpoint), str(self.folder.last)
        self._check(state, source=source)
        self.restore(state, source=source)
        if self.progress.best_epoch is not None:
            self.best_weights = processes.on_first(partial(load_state, self.folder.best))
        # a kill may have come between the two files
        processes.on_first(partial(self.folder.write_history, self.progress.history))

    def run(self, *, epochs: int, patience: int | None, progress: bool) -> Run:
        """Trains until `epochs` epochs are done, validation stops improving, a callback asks to stop, or Ctrl-C."""
        self.began = time.perf_counter() - self.progress.seconds
        self.svi.planned_steps = (self.steps_per_epoch or 0) * self.accumulate * epochs
        with (
            modes_kept(self.pair),
            modes_kept(self.networks),
            stop_requests() as stop,
            progress_bar(self.progress, self.steps_per_epoch, epochs, show=progress and processes.is_first()) as bar,
        ):
            while (stopped := self._finished(epochs, patience)) is None:
                bar.set_description(f"epoch {self.progress.epoch + 1}/{epochs}", refresh=False)
                with isolated(), self._drawing(), self.svi.running(steady=self._is_steady), validation(self.moved):
                    if not self._epoch(stop, bar):
                        stopped = "interrupted"
                        break
                    self._finish_epoch(bar)
                if self._called_back():
                    stopped = "callback"
                    break
        return self._result(stopped)

    @property
    def _is_steady(self) -> bool:
        """Whether nobody's code runs between the steps of an epoch, which could change what a compiled step is of."""
        in_memory = all(part.whole is not None for part in self.train.sets or [self.train])
        return in_memory and not self.timed and self.accumulate == 1

    def _finished(self, epochs: int, patience: int | None) -> str | None:
        """Why training is over, if it is."""
        if patience is not None and self.progress.epoch - (self.progress.best_epoch or 0) >= patience:
            return "early"
        return "finished" if self.progress.epoch >= epochs else None

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """Goes on with the run's own random numbers, which are noted on leaving; the user's come back."""
        with forked_rng(self.device, self.seed):
            self.random.set(self.rng)
            yield
            self.rng = self.random.get()

    @isolated()
    def _called_back(self) -> bool:
        """Shows the finished epoch to the callbacks, outside all that training has set up; whether one asks to stop.

        They draw from where training stands, and what they draw changes none of its numbers.
        """
        if not self.callbacks:
            return False
        now = self.progress
        with self.random.kept(), forked_rng(self.device, self.seed), eval_mode(self.pair), torch.no_grad():
            self.random.set(self.rng)
            answers = [callback(dict(now.history[-1]), self.pair, now.epoch) for callback in self.callbacks]
        return any(processes.any_of(any(answer is True for answer in answers)))

    def _epoch(self, stop: threading.Event, bar: Any) -> bool:
        """Runs what is left of the epoch; False where a stop was asked for (a checkpoint is then written)."""
        now = self.progress
        if now.step == 0:
            now.epoch_rng, now.sums, now.counts = self.random.get(), {}, {}
        start = self.capture()
        pending: list[Step[StepTerms]] = []
        self.pair.train()
        self.networks.train()
        for batch in self.shards.minibatches(until(stop, self._remaining()), stop):
            pending.append(self._step(batch))
            now.step += 1
            if len(pending) >= FLUSH_EVERY:
                self._flush(pending, start, bar)
        self._flush(pending, start, bar)
        self.shards.check_equal(self._trained())
        (stopped,) = processes.any_of(stop.is_set())
        if stopped and now.step > start["progress"]["step"]:
            self._write(best=None)
        elif now.step == 0 and not stopped:
            raise ValueError(f"train gives no minibatch in epoch {now.epoch + 1}: it must give them every epoch")
        return not stopped

    def _remaining(self) -> Iterator[Batch]:
        """The minibatches of the running epoch that are not done yet, with the random state as it was there."""
        done, rng = self.progress.step, self.random.get()
        if done:
            self.random.set(self.progress.epoch_rng)  # an iterable may draw its order from the global state
        batches = self.train.epoch(self.progress.epoch)
        for _ in range(done):
            next(batches, None)  # of many processes one may have had its last
        if done:
            self.random.set(rng)
        yield from batches

    def _step(self, batch: Batch, *, check: bool = False) -> Step[StepTerms]:
        """One step on a minibatch that stands for n data: n, and what each part of it counts, with its terms."""
        n = check_batch(batch, name="train") if self.train.weights is None else self.train.num_data
        assert n is not None
        now = self.progress
        self._set_time(now.time(now.step, self.steps_per_epoch))
        parts, n = self.shards.of(batch, n)
        with self.weighting, self.shards.noise(now.epoch, now.step):
            terms = self.svi.update_in_parts([(part, share / n) for part, share in parts], check=check)
        return n, [(share, of) for (_, share), of in zip(parts, terms, strict=True)]

    def _set_time(self, epoch: float) -> None:
        """Sets what schedules give: learning rate, KL weight, values of the objective and of modules of the pair."""
        self.svi.stepper.set_rates(epoch, self.lr)
        if self.kl_weight is not None:
            self.beta.fill_(self.kl_weight(epoch))
        for part in self.timed:
            part.set_time(epoch, self.device)

    def _flush(self, pending: list[Step[StepTerms]], start: dict[str, Any], bar: Any) -> None:
        """Reads the waiting terms from the device, all at once, and adds them to the epoch's sums."""
        if not pending:
            return
        named = [terms.named() for _, parts in pending for _, terms in parts]
        values = iter(torch.stack([v.to(self.device) for of in named for v in of.values()]).tolist())
        read = ({name: next(values) for name in of} for of in named)
        steps = self.shards.summed([(n, [(share, next(read)) for share, _ in parts]) for n, parts in pending])
        bad = [i for i, (_, terms) in enumerate(steps) if not all(map(math.isfinite, terms.values()))]
        if bad or not all_finite(self.svi.parameters()):  # a NaN gradient shows in the loss of the next step only
            self._name_nonfinite(start, self.progress.step - len(pending) + (bad[0] if bad else len(pending) - 1))
        for n, terms in steps:
            self.progress.add_step(n, terms)
        bar.update(len(pending))
        pending.clear()

    def _name_nonfinite(self, start: dict[str, Any], last: int) -> None:
        """Replays the epoch with a check at every step, to name what was not finite first and stop before it."""
        where = f"in epoch {self.progress.epoch + 1}, step"
        kept = "The pair holds the weights before that step"
        if self.folder is not None and self.folder.last.is_file():
            kept += f"; the last checkpoint is {self.folder.last}"
        self.restore(start, source="the start of the epoch")
        self.random.set(self.rng)
        for batch in self.shards.minibatches(self._remaining(), threading.Event()):
            before = self._weights()
            try:
                self._step(batch, check=True)
                check_finite_parameters(self.svi.named_parameters())
            except NonFiniteError as error:
                restore_weights(self.pair, before, source="the step before")
                cause = max(processes.gather(nonfinite_rows(batch, "train")))
                raise NonFiniteError(f"{cause}{error}, {where} {self.progress.step + 1}. {kept}.") from None
            self.progress.step += 1
            if self.progress.step > last:
                break
        raise NonFiniteError(f"a value was not finite {where} {last + 1}, but all are in a replay of the epoch")

    def _finish_epoch(self, bar: Any) -> None:
        """Adds the epoch's row to the history, validates, and writes the checkpoint."""
        row, now = self._row(), self.progress
        now.epoch, now.step, now.sums, now.counts = now.epoch + 1, 0, {}, {}
        best = None
        if self.valid is not None:
            row |= self._validation()
            score = row["valid_elbo"] if "valid_elbo" in row else -row["valid_loss"]
            if score > now.best:
                now.best, now.best_epoch = score, now.epoch
                best = self.best_weights = self._weights()
        now.history.append(row)
        bar.set_postfix({k: f"{row[k]:.2f}" for k in SHOWN if k in row}, refresh=False)
        self._write(best)

    def _row(self) -> Row:
        """The training columns of the epoch that was just run."""
        now = self.progress
        assert self.svi.optimizer is not None
        mean = now.means()
        row = {"epoch": float(now.epoch + 1), "loss": mean["loss"]}
        for z in self.points:  # log q(z|x) does not exist
            mean.pop(f"kl_{z}", None)
        summed_over = now.counts.get("reconstruction") != now.sums["data"]  # a latent of some minibatch
        if not self.points and not summed_over:
            shares = {name: total / now.sums["data"] for name, total in now.sums.items()}
            row["elbo"] = shares["reconstruction"] - sum(v for name, v in shares.items() if name.startswith("kl_"))
        row |= mean
        last = now.time(now.step - 1, self.steps_per_epoch)
        if self.kl_weight is not None:
            row["kl_weight"] = float(self.kl_weight(last))
        return row | {"lr": float(self.svi.optimizer.defaults["lr"] if self.lr is None else self.lr(last))}

    def _validation(self) -> Row:
        """What the best epoch is chosen by: the ELBO of the validation data; where there is none, the loss on them."""
        assert self.valid is not None
        epoch = self.progress.epoch
        with self.random.kept():
            if not self.points:
                return {"valid_elbo": mean_elbo(self.pair, self.valid, seed=self.seed, epoch=epoch)}
            with self.weighting, evaluating(self.pair, self.seed):
                return {"valid_loss": mean_loss(self._valid_objective, self.svi, self.valid, epoch=epoch)}

    def capture(self) -> dict[str, Any]:
        """Everything that training depends on, copied to the CPU."""
        assert self.svi.optimizer is not None
        state = {
            "model": self._weights(),
            "optimizer": self.svi.optimizer.state_dict(),
            "rng": self.random.get(),
            "progress": vars(self.progress),
        }
        if self.networks:
            state["objective"] = dict(self.networks.state_dict())
        return to_cpu(state)

    def restore(self, state: dict[str, Any], *, source: str) -> None:
        """Puts back what `capture` copied."""
        restore_weights(self.pair, state["model"], source=source)
        if self.networks:
            restore_weights(self.networks, state.get("objective", {}), source=f"the objective in {source}")
        self.svi.stepper.load_state_dict(to_cpu(state["optimizer"]))
        self.rng = state["rng"]
        self.progress = Progress.of(to_cpu(state["progress"]), source=source)

    def _check(self, state: Any, *, source: str) -> None:
        """Checks that a checkpoint is one of this training, before anything is put back.

        Raises:
            ValueError: naming the file and what is none of it.
        """
        assert self.svi.optimizer is not None
        expected = {"model", "optimizer", "rng", "progress", *(["objective"] if self.networks else [])}
        try:
            if not isinstance(state, dict) or state.keys() != expected:
                raise ValueError(f"it must hold {sorted(expected)}")
            now = self.random.get()
            check_like(state["rng"], now | {"cuda": state["rng"]["cuda"]}, "rng")  # of the device that it was made on
            check_optimizer_state(state["optimizer"], self.svi.optimizer)
            if Progress.of(state["progress"], source="progress").step:
                check_like(state["progress"]["epoch_rng"], state["rng"], "progress.epoch_rng")
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{source} is no checkpoint of this training: {error}") from error

    def _trained(self) -> list[tuple[str, Tensor]]:
        """All that training writes to: parameters, and buffers of the pair and of the objective's networks."""
        return [*self.svi.named_parameters(), *self.pair.named_buffers(), *self.networks.named_buffers()]

    def _weights(self) -> dict[str, Tensor]:
        return to_cpu(dict(self.pair.state_dict()))

    def _write(self, best: dict[str, Tensor] | None) -> None:
        self.progress.seconds = time.perf_counter() - self.began
        if self.folder is not None and processes.is_first():
            self.folder.write_checkpoint(self.capture(), best, validated=self.valid is not None)
            self.folder.write_history(self.progress.history)

    def _result(self, stopped: str) -> Run:
        if self.best_weights is not None:
            restore_weights(self.pair, self.best_weights, source="the best epoch")
        if self.folder is not None:
            processes.on_first(partial(save_state, self.folder.model, self._weights()))
        folder = None if self.folder is None else self.folder.path
        seconds = time.perf_counter() - self.began
        return Run(self.progress.history, folder, stopped, self.progress.best_epoch, seconds)
