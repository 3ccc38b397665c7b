"""One run of a sweep: trained, evaluated, and what several have come to, as a table.

A sweep chooses by validation data. The table has test data beside them, to report of what was chosen, never to choose.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor

from ppvae.cli.evaluate import Args, evaluate_run
from ppvae.cli.experiment import Experiment, check_same_experiment
from ppvae.cli.grid import Request, Setting
from ppvae.cli.report import first
from ppvae.cli.runs import restore
from ppvae.evaluate.compare import compare
from ppvae.evaluate.estimates import mean_over_data
from ppvae.evaluate.marginal import estimator_of
from ppvae.evaluate.psis import PARETO_GOOD
from ppvae.infer import RunFolder
from ppvae.infer.callbacks import Callback
from ppvae.sampling.guide_density import PointMassError
from ppvae.storage import load_state, read_json

COMPLETE = ("finished", "early", "callback")
"""How a run ends that there is no more to do for."""


@dataclass(frozen=True)
class Result:
    """What one run has come to.

    Attributes:
        seed: of the run.
        valid: its best validation ELBO, or minus its least loss where codes are deterministic; None without such data.
        elbo: of the first test data, (n,); None where there is none.
        log_marginal: of the same, (n,); None where it was not estimated.
        bad: of these, how many have k̂ > 0.7; None where there is no k̂.
    """

    seed: int
    valid: float | None
    elbo: Tensor | None
    log_marginal: Tensor | None
    bad: int | None

    def __str__(self) -> str:
        """The means, for a line."""
        parts = [] if self.valid is None else [f"validation {self.valid:.3f}"]
        parts += [] if self.log_marginal is None else [f"test log p {float(self.log_marginal.mean()):.3f}"]
        return ", ".join(parts) or "trained"


def folder_of(request: Request, setting: Setting, seed: int) -> Path:
    """Where a run lies."""
    return request.out / setting.name / f"seed-{seed}"


def train(
    experiment: Experiment, setting: Setting, seed: int, folder: Path, callbacks: tuple[Callback, ...] = ()
) -> bool:
    """Trains a run, or goes on with it, unless it is finished; whether it has come to its end.

    Raises:
        ValueError: where a run of other flags lies there, or the flags are wrong.
        KeyboardInterrupt: where it was stopped.
    """
    words = [*setting.words, "--seed", str(seed), "--out", str(folder)]
    args = tyro.cli(experiment.args, args=words).resolved()
    run = RunFolder(folder)
    ended = run.read_metrics().get("stopped") if run.config.is_file() else None
    if ended is not None:
        check_same_experiment(run, args)
        if ended == "nonfinite" or (ended in COMPLETE and run.read_config()["fit"]["epochs"] == args.epochs):
            return bool(ended in COMPLETE)
    (folder / "evaluation.json").unlink(missing_ok=True)  # of weights that there will be others in place of
    quick = replace(
        experiment,
        draw=lambda *_: None,
        callbacks=lambda args, data, out: [*experiment.callbacks(args, data, out), *callbacks],
    )
    with contextlib.redirect_stdout(io.StringIO()):
        status = quick.main([*words, *(["--resume"] if folder.is_dir() else [])])
    if status == 130:
        raise KeyboardInterrupt
    if status == 2:
        raise ValueError(f"{setting.name}, seed {seed} was not trained")
    return status == 0


def evaluate(experiment: Experiment, setting: Setting, seed: int, folder: Path) -> Result:
    """What a trained run has come to, its test data evaluated as `ppvae evaluate` does unless they have been."""
    args = tyro.cli(experiment.args, args=[*setting.words, "--seed", str(seed)]).resolved()
    run, path = RunFolder(folder), folder / "evaluation.json"
    valid = valid_score(run)
    wanted = {"num_samples": args.num_samples, "limit": args.num_eval}
    values_path = path.with_suffix(".safetensors")
    if not (path.is_file() and values_path.is_file() and wanted.items() <= read_json(path).items()):
        device = "cuda" if args.cuda else "cpu"
        trained = restore(folder, device=device, data_root=None, download=True)
        labels = None if trained.labels is None else trained.labels[: args.num_eval]
        trained = replace(trained, test=first(trained.test, args.num_eval), labels=labels)
        options = Args(runs=(folder,), num_samples=args.num_samples, limit=args.num_eval, cuda=args.cuda)
        try:
            evaluate_run(trained, folder, options, estimator_of("auto", args.num_samples))
        except ValueError as error:
            if not isinstance(error.__cause__, PointMassError):
                raise
            return Result(seed, valid, None, None, None)
    values, k_hat = load_state(values_path), read_json(path)["test"].get("k_hat", {})
    return Result(seed, valid, values.get("elbo"), values["log_marginal"], k_hat.get(f"above_{PARETO_GOOD}"))


def valid_score(run: RunFolder) -> float | None:
    """The best validation ELBO of a run, or minus its least validation loss."""
    rows = run.read_history()
    found = [row["valid_elbo"] if "valid_elbo" in row else -row.get("valid_loss", float("inf")) for row in rows]
    known = [score for score in found if score > float("-inf")]
    return max(known) if known else None


def summarise(results: dict[str, list[Result]]) -> dict[str, dict[str, Any]]:
    """Of each setting the mean of its runs with the standard error over seeds, and the paired difference to the first.

    The difference is of each datum under runs of the same seed, over the seeds that both have; its standard error is
    over seeds and data both (`ppvae.evaluate.compare`).
    """
    base = next(iter(results.values()))
    rows: dict[str, dict[str, Any]] = {}
    for name, runs in results.items():
        row: dict[str, Any] = {"seeds": [run.seed for run in runs]}
        means = {
            "valid": [run.valid for run in runs if run.valid is not None],
            "elbo": [float(run.elbo.mean()) for run in runs if run.elbo is not None],
            "log_marginal": [float(run.log_marginal.mean()) for run in runs if run.log_marginal is not None],
        }
        row |= {key: mean_over_data(torch.tensor(of, dtype=torch.double)) for key, of in means.items() if of}
        pairs = [
            (a.log_marginal, b.log_marginal)
            for a in base
            for b in runs
            if a.seed == b.seed and a.log_marginal is not None and b.log_marginal is not None
        ]
        if runs is not base and pairs:
            of_first, of_this = (torch.stack(values) for values in zip(*pairs, strict=True))
            row["difference"] = compare({"first": of_first, "this": of_this})["this"]["difference"]
        known = [
            (run.bad, len(run.log_marginal)) for run in runs if run.bad is not None and run.log_marginal is not None
        ]
        if known:
            bad, of_all = map(sum, zip(*known, strict=True))
            row[f"share_above_{PARETO_GOOD}"] = bad / of_all
        rows[name] = row
    return rows


def table(rows: dict[str, dict[str, Any]], symbol: str) -> str:
    """The settings as text, a row each; `*` marks the one that validation data choose."""
    width = max(len("setting"), *map(len, rows)) + 2
    base = next(iter(rows))
    head = f"{'setting':<{width}}seeds  {'valid ELBO':>10} ± {'s.e.':<8}{'test ELBO':>10} ± {'s.e.':<8}"
    head += f"{symbol:>10} ± {'s.e.':<8}{'difference':>10} ± {'s.e.':<7}k̂ > {PARETO_GOOD}"
    best = max((row["valid"]["mean"] for row in rows.values() if "valid" in row), default=None)
    lines = [head]
    for name, row in rows.items():
        chosen = len(rows) > 1 and best is not None and row.get("valid", {}).get("mean") == best
        line = f"{name:<{width}}{len(row['seeds']):>5}{' *' if chosen else '  '}"
        line += "".join(_cell(row.get(key)) for key in ("valid", "elbo", "log_marginal"))
        share = row.get(f"share_above_{PARETO_GOOD}")
        line += _cell(row.get("difference"), sign="+").removesuffix(" ")
        lines.append((line + ("" if share is None else f"{100 * share:6.1f} %")).rstrip())
    lines += ["", "nats per datum; s.e. of the means over seeds"]
    if len(rows) > 1:
        lines.append(f"difference: to {base}, of each datum under the same seed; its s.e. is over seeds and data")
    if len(rows) > 1 and best is not None:
        lines.append("*: the best by validation data, which alone may choose")
    return "\n".join(lines)


def _cell(value: dict[str, float] | None, sign: str = "") -> str:
    """A mean and its standard error, which one run has none of."""
    if value is None:
        return " " * 21
    error = value["std_error"]
    return f"{value['mean']:>{sign}10.3f}" + (f" ± {error:<8.3f}" if error == error else " " * 11)
