"""What every example does: from flags and data to a trained pair, a run folder, a table and figures."""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from ppvae import processes
from ppvae._validate import usable_device
from ppvae.cli.flags import GROUPS, ExperimentArgs, flag, in_flags, to_json
from ppvae.cli.images import ImageData, load_images
from ppvae.cli.parsing import parse
from ppvae.cli.pipes import outlives_its_reader
from ppvae.cli.report import Report, report, strict_json, table
from ppvae.compile import keep_freed_memory
from ppvae.data import Batches, Binarize, Source
from ppvae.evaluate.psis import ParetoWarning
from ppvae.infer import NonFiniteError, Run, RunFolder, TensorBoard, fit
from ppvae.infer.callbacks import Callback
from ppvae.infer.optim import ParamGroups
from ppvae.objectives import Cosine, Cyclical, Linear, Schedule, Sigmoid, Stages
from ppvae.pair import Batch
from ppvae.storage import save_state
from ppvae.weights import restore_weights


class ExperimentData(Protocol):
    """What an experiment reads off its data, `ImageData` or others."""

    @property
    def train(self) -> Batch:
        """The training data."""

    @property
    def valid(self) -> Batch:
        """Those held out while training; of no rows where there are none."""

    @property
    def test(self) -> Batch:
        """Those that the table is of."""

    @property
    def labels(self) -> Tensor | None:
        """Classes of the test data, where they have any."""

    @property
    def fingerprint(self) -> str:
        """A hash of data of the user's own, by which a run knows them again; "" where their name says it all."""

    def describe(self) -> str:
        """What the data were taken to be, said before training; "" where there is nothing to say."""

    def training(self, limit: int | None = None, *, seed: int = 0) -> Batch:
        """The first training data in the form of the test data."""


def images_alone(args: Any, x: Tensor, y: Tensor) -> Batch:
    """The images, for a pair that knows no labels."""
    return (x,)


def image_batches(args: Any, data: ImageData, device: torch.device) -> Batches:
    """Minibatches of the training images."""
    transform = Binarize() if args.binarize == "dynamic" else None
    return Batches(data.train[0], batch_size=args.batch_size, transform=transform, seed=args.seed, device=device)


def elbo_of_flag(args: Any) -> ELBO:
    """The ELBO that `--loss` names."""
    return TraceMeanField_ELBO() if args.loss == "mean-field" else Trace_ELBO()


def nothing_first(pair: nn.Module, args: Any, data: ImageData, device: torch.device, out: Path) -> None:
    """Trains nothing before the pair itself."""


def nothing_after(pair: nn.Module, args: Any, data: ImageData, run: Run) -> None:
    """Fits nothing after the training."""


def pair_itself(args: Any, pair: Any) -> nn.Module:
    """Trains the pair as it is."""
    return pair


def one_group(args: Any) -> ParamGroups | None:
    """No options of the optimizer by parameter name."""
    return None


def all_latents(args: Any) -> None:
    """No choice among the latents: all of them."""


def no_callbacks(args: Any, data: ImageData, out: Path) -> list[Callback]:
    """Calls nothing after an epoch."""
    return []


def no_further_figures(pair: nn.Module, args: Any, data: ImageData) -> Report:
    """Measures nothing besides the table."""
    return {}


@dataclass(frozen=True)
class Experiment:
    """One example; `ppvae.examples.<name>` holds it as `EXPERIMENT`.

    Attributes:
        name: of the example and its run folders.
        args: its dataclass of flags.
        build: from flags and data to the pair.
        draw: writes its pictures.
        load: from flags to the data, and whether files may be fetched.
        arguments: from images and labels, or what else the data hold, to the arguments of the pair, for validation and
            the table.
        batches: from flags and data to the training data.
        objective: from flags to the ELBO.
        first: trains what has to be trained before the pair.
        trained: from flags and pair to what is trained in its place, and shares its modules.
        after: fits what is fitted to the trained pair; the weights of the run are those that it leaves.
        param_groups: from flags to options of the optimizer by parameter name.
        kl_sites: from flags to the latents whose KL term --warmup weights; None is all.
        symbol: what the table calls the pair's marginal likelihood.
        callbacks: from flags, data and run folder to what is called after every epoch.
        measure: what the table shows besides likelihoods, by name: each {"mean", "std_error"} in its own unit; the
            error of a count is None.
    """

    name: str
    args: type[ExperimentArgs]
    build: Callable[[Any, Any], nn.Module]
    draw: Callable[[Any, Any, Any, Run], None]
    load: Callable[..., ExperimentData] = load_images
    arguments: Callable[..., Batch] = images_alone
    batches: Callable[[Any, Any, torch.device], Source] = image_batches
    objective: Callable[[Any], ELBO] = elbo_of_flag
    first: Callable[[Any, Any, Any, torch.device, Path], None] = nothing_first
    trained: Callable[[Any, Any], nn.Module] = pair_itself
    after: Callable[[Any, Any, Any, Run], None] = nothing_after
    param_groups: Callable[[Any], ParamGroups | None] = one_group
    kl_sites: Callable[[Any], Sequence[str] | None] = all_latents
    callbacks: Callable[[Any, Any, Path], list[Callback]] = no_callbacks
    symbol: str = "log p(x)"
    measure: Callable[[Any, Any, Any], Report] = no_further_figures

    @outlives_its_reader
    def main(self, argv: list[str] | None) -> int:
        """Runs the example from its command line: trains, prints the table, writes the run folder.

        Args:
            argv: the command line; None is `sys.argv`.

        Returns:
            The exit status: 0; 1 where training met a NaN; 2 for a wrong argument; 130 after Ctrl-C.
        """
        args = parse(self.args, argv, prog=f"ppvae train {self.name}", groups=GROUPS)
        keep_freed_memory()
        processes.join()
        try:
            args = args.resolved()
            device = usable_device("cuda" if args.cuda else "cpu")
            out = processes.on_first(lambda: _folder(self.name, args))
            data = processes.in_turn(lambda: self.load(args))
            if said := data.describe():
                processes.show(said)
            processes.show(f"writing to {out}")
            torch.manual_seed(args.seed)
            pair = self.build(args, data)
            self.first(pair, args, data, device, out)
            run = self.train(pair, args, data, device=device, out=out)
        except NonFiniteError as error:
            print(f"error: {error} Is --lr {args.lr:g} too large?", file=sys.stderr)
            self._finish_early(pair, args, data, out)
            return 1
        except InterruptedTraining as error:
            print(error, file=sys.stderr)
            return 130
        except (ValueError, OSError) as error:
            print(f"error: {in_flags(str(error), args)}", file=sys.stderr)
            return 2
        interrupted = run.stopped == "interrupted"
        if interrupted and processes.is_first():
            print(f"stopped in epoch {len(run.history) + 1}; continue with --resume --out {out}", file=sys.stderr)
        try:
            if run.history:
                self.finish(pair, args, data, run)
        except KeyboardInterrupt:
            print(f"interrupted after training; ppvae evaluate {out} repeats the table", file=sys.stderr)
            return 130
        return 130 if interrupted else 0

    def _finish_early(self, pair: Any, args: Any, data: ExperimentData, out: Path) -> None:
        """Writes what a run that met a NaN had reached with its last checkpoint, where it had finished an epoch."""
        folder = RunFolder(out)
        if not processes.on_first(folder.model.is_file):
            return
        trained = self.trained(args, pair)
        restore_weights(trained, processes.on_first(folder.weights), source=str(out))
        try:
            self.finish(pair, args, data, processes.on_first(partial(folder.reached, "nonfinite")))
        except (ValueError, RuntimeError, KeyboardInterrupt) as error:  # none of these is why the run has failed
            print(f"no table of the last finished epoch: {error}", file=sys.stderr)

    def check(self, args: ExperimentArgs) -> None:
        """Makes all that a run of these flags needs before its first step, and trains nothing.

        Raises:
            ValueError: naming the flag with a value that some part of the run refuses.
            OSError: where there are no data.
        """
        try:
            args = args.resolved()
            device = usable_device("cuda" if args.cuda else "cpu")
            data = self.load(args)
            self._options(self.build(args, data), args, data, device)
        except ValueError as error:
            raise ValueError(in_flags(str(error), args)) from error

    def train(self, pair: nn.Module, args: Any, data: ExperimentData, *, device: torch.device, out: Path) -> Run:
        """Trains the pair on its data."""
        return fit(
            out=out,
            resume=args.resume,
            config={"module": f"ppvae.examples.{self.name}", "args": to_json(args), **fingerprint_of(data)},
            callbacks=[*([TensorBoard(out)] if args.tensorboard else []), *self.callbacks(args, data, out)],
            **self._options(pair, args, data, device),
        )

    def _options(self, pair: nn.Module, args: Any, data: ExperimentData, device: torch.device) -> dict[str, Any]:
        """What `fit` is given, but for what says where the run is written."""
        assert args.epochs is not None
        held_out = data.valid[0]
        return {
            "pair": self.trained(args, pair),
            "train": self.batches(args, data, device),
            "valid": self.arguments(args, *data.valid) if held_out is not None and len(held_out) else None,
            "loss": self.objective(args),
            "param_groups": self.param_groups(args),
            "patience": args.patience,
            "kl_weight": warmup_of(args, getattr(pair, "beta", 1.0)),
            "kl_sites": self.kl_sites(args) if args.warmup else None,
            **fit_options(args, device, args.epochs),
        }

    def finish(self, pair: nn.Module, args: Any, data: ExperimentData, run: Run) -> None:
        """Fits what is fitted after training; prints the table of the pair; writes its metrics and figures."""
        assert run.folder is not None
        model = RunFolder(run.folder).model
        if self.after is not nothing_after or self.trained is not pair_itself:
            self.after(pair, args, data, run)
            processes.on_first(lambda: save_state(model, dict(pair.state_dict())))
        pair.eval()
        train = self.arguments(args, *data.training(args.num_eval))
        splits = {"train": train, "test": self.arguments(args, *data.test)}
        result = report(
            pair,
            splits,
            num_samples=args.num_samples,
            limit=args.num_eval,
            seed=args.seed,
            symbol=self.symbol,
            progress=sys.stderr.isatty(),
        )
        with warnings.catch_warnings(action="ignore", category=ParetoWarning):  # the table counts the data with large k̂
            measured = self.measure(pair, args, data)
        processes.on_first(lambda: self._show(pair, args, data, run, result, measured))

    def _show(
        self, pair: nn.Module, args: Any, data: ExperimentData, run: Run, result: Report, measured: Report
    ) -> None:
        """Prints and writes what was found, and the figures."""
        assert run.folder is not None
        print(table(result))
        for name, value in measured.items():
            error = value["std_error"]  # a count has none
            print(f"{name}: {value['mean']:g}" if error is None else f"{name}: {value['mean']:.2f} ± {error:.2f}")
        of_run = {"best_epoch": run.best_epoch, "stopped": run.stopped, "seconds": round(run.seconds, 2)}
        RunFolder(run.folder).write_metrics(strict_json({**result, "measured": measured, **of_run}))
        (run.folder / "figures").mkdir(exist_ok=True)
        self.draw(pair, args, data, run)
        print(f"trained in {run.seconds:.1f} s; weights, history, metrics and figures are in {run.folder}")
        print(_next_commands(run.folder))


def _next_commands(folder: Path) -> str:
    """What to type after a training."""
    run = shlex.quote(str(folder))
    commands = {
        f"ppvae evaluate {run} --posterior": "how far to believe log p(x)",
        f"ppvae explore {run}": "latents, data and decoder in the browser",
        f"ppvae doctor {run}": "sites, gradients, latents, speed",
    }
    width = max(map(len, commands))
    lines = (f"{command:<{width}}  {text}" for command, text in commands.items())
    return "next: " + "\n      ".join(lines)


class InterruptedTraining(Exception):
    """Ctrl-C in a training that comes before the pair's own; the message says how to go on."""


def fingerprint_of(data: ExperimentData) -> dict[str, str]:
    """What a run notes of data that their name does not determine."""
    return {"data": data.fingerprint} if data.fingerprint else {}


def fit_options(args: ExperimentArgs, device: torch.device, epochs: int) -> dict[str, Any]:
    """What the shared flags say to `ppvae.fit`, whatever is trained for so many epochs."""
    return {
        "epochs": epochs,
        "accumulate": args.accumulate,
        "lr": lr_of(args, epochs),
        "optim": partial(torch.optim.Adam, eps=args.adam_eps, fused=True),
        "compile": "auto" if args.compile == "auto" else args.compile == "always",
        "device": device,
        "seed": args.seed,
    }


def lr_of(args: ExperimentArgs, epochs: int) -> float | Schedule:
    """The learning rate that the flags describe, over so many epochs."""
    if args.lr_schedule == "constant":
        return args.lr
    return Cosine(epochs, args.lr, args.lr / 100) if args.lr_schedule == "cosine" else Stages(epochs, args.lr)


def warmup_of(args: ExperimentArgs, beta: float = 1.0) -> Schedule | None:
    """What the flags multiply the KL weight of the pair with, which is `beta`; None leaves it as it is."""
    if not args.warmup:
        return None
    if args.warmup_from and not beta:
        raise ValueError(f"--warmup-from {args.warmup_from:g} does not go with --beta 0, which weights no KL term")
    if args.warmup_shape == "sigmoid":  # from 0.007 to 0.993
        return Sigmoid(midpoint=args.warmup / 2, width=args.warmup / 10)
    if args.warmup_shape == "cyclical":
        return Cyclical(args.warmup)
    return Linear(args.warmup, start=args.warmup_from and args.warmup_from / beta)


def _folder(name: str, args: ExperimentArgs) -> Path:
    """The run folder: the one asked for, or the next free one."""
    if args.resume and args.out is None:
        raise ValueError("--resume needs --out, the folder of the run to continue")
    if args.out is not None:
        folder = RunFolder(args.out)
        if not args.resume:
            folder.check_free()
        else:  # a run that was stopped in a training that comes first has only that one's folder
            parts = [RunFolder(path.parent) for path in args.out.glob("*/config.json")]
            known = [run for run in (folder, *parts) if run.config.is_file()]
            if known:
                check_same_experiment(known[0], args)
        return args.out
    number = 1
    while (out := Path("runs") / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return out


def check_same_experiment(folder: RunFolder, args: ExperimentArgs) -> None:
    """Checks that a run goes on with the flags that it was started with, but for those that may change.

    Raises:
        ValueError: naming each flag that differs, with both values.
    """
    of_run = folder.read_config().get("experiment") or {}
    started = of_run.get("args", {}) if isinstance(of_run, dict) else {}
    free = {"epochs", "cuda", "out", "resume", "tensorboard", "data_root", "num_samples", "num_eval"}
    changed = [
        f"{flag(key)} was {started[key]!r}, is {value!r}"
        for key, value in to_json(args).items()
        if key not in free and key in started and started[key] != value  # a flag that came later has no other value
    ]
    if changed:
        raise ValueError(f"cannot resume {folder.path} with other flags: " + "; ".join(changed))
