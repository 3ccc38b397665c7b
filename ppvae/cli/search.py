"""`ppvae sweep MODEL --trials 20 --lr 1e-4..1e-2`: Optuna looks for the setting of the best validation ELBO.

Trials lie in the sweep's folder, each in one that its setting names, and the study in `study.journal` beside them: the
same command goes on where it was stopped. Test data are looked at once, under the setting that validation data chose.
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from ppvae._validate import optional_library
from ppvae.cli.experiment import Experiment
from ppvae.cli.flags import flag
from ppvae.cli.grid import Range, Request, Setting, check_settings
from ppvae.cli.sweep_runs import evaluate, folder_of, summarise, table, train, valid_score
from ppvae.infer import RunFolder
from ppvae.infer.run_folder import Row
from ppvae.storage import write_json

SHOWN = 10
"""Trials that are printed at the end."""


def search(experiment: Experiment, request: Request) -> int:
    """Runs the trials that are left, prints the best of all, and evaluates that one on the test data."""
    optuna = optional_library("optuna", what="--trials", extra="sweep")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if not request.axes:
        raise ValueError("--trials searches over flags with a range (--lr 1e-4..1e-2) or several values, got none")
    # of each flag its ends, or all of its values, beside the first of the others
    ends = {f: [_words(of.low), _words(of.high)] if isinstance(of, Range) else of for f, of in request.axes.items()}
    firsts = {field: of[0] for field, of in ends.items()}
    each = [firsts, *({**firsts, field: value} for field, of in ends.items() for value in of[1:])]
    check_settings(experiment, [request.setting(chosen) for chosen in each])
    assert request.trials is not None
    study = _study(optuna, experiment, request)
    states = optuna.trial.TrialState
    while (done := len(_trials(study, states.COMPLETE, states.PRUNED, states.FAIL))) < request.trials:
        # seeded by the number of trials before it: a search that was stopped goes on as it would have
        study.sampler = optuna.samplers.TPESampler(seed=done)
        _run(optuna, study, experiment, request)
    return _report(study, states, experiment, request)


def _study(optuna: Any, experiment: Experiment, request: Request) -> Any:
    """The study in the sweep's folder; what a killed process was trying is queued again.

    Raises:
        ValueError: where a search of other flags lies there.
    """
    request.out.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        backend = optuna.storages.journal.JournalFileBackend(str(request.out / "study.journal"))
        storage = optuna.storages.JournalStorage(backend)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=5)
    study = optuna.create_study(
        study_name="sweep", storage=storage, load_if_exists=True, direction="maximize", pruner=pruner
    )
    axes = {flag(field): str(of) for field, of in request.axes.items()}
    asked = f"{experiment.name} {' '.join(request.fixed)} {axes}, {request.seeds} seeds"
    if (before := study.user_attrs.get("asked", asked)) != asked:
        raise ValueError(f"{request.out} holds a search of other flags: it was {before}, is {asked}")
    study.set_user_attr("asked", asked)
    for trial in _trials(study, optuna.trial.TrialState.RUNNING):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.set_user_attr(f"again {trial.number}", True)
        study.enqueue_trial(trial.params)
    return study


def _trials(study: Any, *states: Any) -> list[Any]:
    """The trials in some states, without those that were stopped and queued again."""
    again = {int(name.removeprefix("again ")) for name in study.user_attrs if name.startswith("again ")}
    return [trial for trial in study.get_trials(deepcopy=False, states=states) if trial.number not in again]


def _run(optuna: Any, study: Any, experiment: Experiment, request: Request) -> None:
    """One trial: its setting trained with every seed, its value the mean of their validation ELBOs."""
    trial = study.ask()
    setting = request.setting({field: _suggest(trial, field, of) for field, of in request.axes.items()})
    trial.set_user_attr("setting", setting.name)
    pruned: list[int] = []

    def watch(row: Row, pair: nn.Module, epoch: int) -> bool:
        if "valid_elbo" in row:
            trial.report(row["valid_elbo"], epoch)
        pruned.extend([epoch] if trial.should_prune() else [])
        return bool(pruned)

    scores = []
    for seed in range(request.seeds):
        folder = folder_of(request, setting, seed)
        trained = train(experiment, setting, seed, folder, (watch,) if seed == 0 else ())
        score = valid_score(RunFolder(folder)) if trained else None
        if trained and score is None:
            raise ValueError("a search chooses by validation data, and there are none: give --num-valid")
        if pruned or score is None:
            break
        scores.append(score)
    state, value = optuna.trial.TrialState.COMPLETE, sum(scores) / max(len(scores), 1)
    if pruned or len(scores) < request.seeds:
        state = optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.FAIL
    with_value = {"values": value} if state == optuna.trial.TrialState.COMPLETE else {"state": state}
    study.tell(trial, **with_value)
    said = f"validation {value:.3f}" if "values" in with_value else f"stopped in epoch {pruned[0]}, below the median"
    failed = not pruned and "values" not in with_value
    print(f"[trial {trial.number}] {_short(setting.name)}: {'no finite loss' if failed else said}", flush=True)


def _suggest(trial: Any, field: str, of: list[tuple[str, ...]] | Range) -> tuple[str, ...]:
    """A value of a flag, as its words."""
    if isinstance(of, Range):
        suggest = trial.suggest_int if of.whole else trial.suggest_float
        return _words(suggest(field, of.low, of.high, log=of.log))
    chosen = trial.suggest_categorical(field, [" ".join(words) for words in of])
    return tuple(chosen.split())


def _words(value: float) -> tuple[str, ...]:
    return (repr(value),)


def _report(study: Any, states: Any, experiment: Experiment, request: Request) -> int:
    """The best trials, and what the best of all comes to on the test data."""
    ranked = sorted(_trials(study, states.COMPLETE), key=lambda trial: -trial.value)
    if not ranked:
        print("no trial has come to its end")
        return 1
    numbers = {
        state.name.lower(): len(_trials(study, state)) for state in (states.COMPLETE, states.PRUNED, states.FAIL)
    }
    print(f"\n{', '.join(f'{n} {name}' for name, n in numbers.items() if n)}; the best by validation ELBO:")
    for trial in ranked[:SHOWN]:
        print(f"{trial.value:>10.3f}  {_short(trial.user_attrs['setting'])}")
    best = _setting_of(ranked[0], request)
    results = [evaluate(experiment, best, seed, folder_of(request, best, seed)) for seed in range(request.seeds)]
    rows = summarise({best.name: results})
    content = {"symbol": experiment.symbol, "settings": rows, "flags": list(best.words), "trials": numbers}
    write_json(request.out / "sweep.json", content)
    print(f"\n{table({_short(name): row for name, row in rows.items()}, experiment.symbol)}")
    print(f"ppvae train {experiment.name} {' '.join(best.words)}\nwritten to {request.out}/sweep.json")
    return 0


def _setting_of(trial: Any, request: Request) -> Setting:
    """The setting that a trial was of."""
    chosen = {
        field: _words(value) if isinstance(of, Range) else tuple(value.split())
        for (field, of), value in zip(request.axes.items(), (trial.params[f] for f in request.axes), strict=True)
    }
    return request.setting(chosen)


def _short(name: str) -> str:
    """A setting's name with its numbers to four digits."""

    def short(part: str) -> str:
        field, _, value = part.partition("=")
        try:
            return f"{field}={float(value):.4g}"
        except ValueError:
            return part

    return ",".join(map(short, name.split(",")))
