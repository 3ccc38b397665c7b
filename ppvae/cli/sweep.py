"""`ppvae sweep MODEL --seeds 5 --beta 1 2 4`: trains an example at every setting of a grid, and compares them.

Every flag of the example is one of the sweep; several values after one make the grid. Each run is a folder, and the
same command goes on where a sweep was stopped: runs that are finished are neither trained nor evaluated again.
"""

from __future__ import annotations

import sys
from importlib import import_module

from ppvae.cli.experiment import Experiment
from ppvae.cli.grid import Request, Setting, check_settings, read_request
from ppvae.cli.main import models
from ppvae.cli.report import strict_json
from ppvae.cli.search import search
from ppvae.cli.sweep_runs import Result, evaluate, folder_of, summarise, table, train
from ppvae.infer import RunFolder
from ppvae.storage import write_json

HELP = """usage: ppvae sweep MODEL [--seeds N] [--trials N] [--out DIR] [flags of ppvae train MODEL]

  ppvae sweep vae --seeds 5 --beta 1 2 4                    a grid: several values after a flag
  ppvae sweep vae --hidden-dims 200 --hidden-dims 200 200   a flag that takes several values: each time is a setting
  ppvae sweep vae --trials 20 --lr 1e-4..1e-2               a search over ranges and choices: pip install "ppvae[sweep]"

  --seeds N    train every setting with the seeds 0 to N − 1 (1)
  --trials N   search: so many settings are tried, each chosen by what the validation ELBO of those before it was
  --out DIR    folder of the sweep (runs/sweep-MODEL); a folder for each setting, and in it one for each seed

The same command goes on where a sweep was stopped. Choose by the validation ELBO, never by the test columns: they are
what you report of the setting that validation data chose."""


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help") or {"-h", "--help"} & set(rest):
        print(HELP)
        return 0
    try:
        if name not in models():
            raise ValueError(f"there is no model {name!r}: {', '.join(models())}")
        experiment: Experiment = import_module(f"ppvae.examples.{name}").EXPERIMENT
        request = read_request(name, experiment.args, rest)
        return sweep(experiment, request) if request.trials is None else search(experiment, request)
    except KeyboardInterrupt:
        print("stopped: the same command goes on with the runs that are left", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def sweep(experiment: Experiment, request: Request) -> int:
    """Trains and evaluates every run of a grid, one seed after another, and prints the table."""
    settings = request.settings()
    check_settings(experiment, [s for s in settings if not _started(request, s)])
    runs = [(setting, seed) for seed in range(request.seeds) for setting in settings]
    results: dict[str, list[Result]] = {setting.name: [] for setting in settings}
    for number, (setting, seed) in enumerate(runs, 1):
        folder = folder_of(request, setting, seed)
        trained = train(experiment, setting, seed, folder)
        result = evaluate(experiment, setting, seed, folder) if trained else None
        print(f"[{number}/{len(runs)}] {setting.name}, seed {seed}: {result or 'failed: no finite loss'}", flush=True)
        results[setting.name] += [] if result is None else [result]
    rows = summarise(results)
    write_json(request.out / "sweep.json", strict_json({"symbol": experiment.symbol, "settings": rows}))
    print(f"\n{table(rows, experiment.symbol)}\nwritten to {request.out}/sweep.json")
    return 0 if all(results.values()) else 1


def _started(request: Request, setting: Setting) -> bool:
    """Whether a run of the setting has taken a step, so that nothing refuses its flags."""
    return any(RunFolder(folder_of(request, setting, seed)).last.is_file() for seed in range(request.seeds))
