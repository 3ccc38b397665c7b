"""What log p(x) of a trained run costs by each method, and how far each stays below the truth: one table, one picture.

The truth is the last line, annealing with the most temperatures. Every method runs with several settings, on the same
data and in turn; the error of a mean difference is over the data, so that what all methods share is not in it. Seconds
are of the process (`--wall` for those of the clock), and so the same on a machine that others use.

    python benchmarks/likelihoods.py runs/mnist --limit 100 --figure docs/images/methods.png
"""

from __future__ import annotations

import math
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

import ppvae
from ppvae.cli.runs import Trained, restore
from ppvae.compile import keep_freed_memory
from ppvae.evaluate import Adaptive, Annealed, Auto, Estimator, Importance, LogMarginal
from ppvae.evaluate.auto import AutoDiagnostics
from ppvae.plot.figure import PALETTE, house_style, plain_axes, save


@dataclass(frozen=True)
class Args:
    """Set the methods for log p(x) side by side."""

    run: Annotated[Path, tyro.conf.Positional]
    """A folder that an example wrote."""
    limit: int = 100
    """Data of the test set."""
    num_temperatures: tuple[int, ...] = (30, 100, 1000)
    """Of annealing; the last is the truth."""
    data_root: Path | None = None
    """Where the data set lies, if not where the run found it."""
    figure: Path | None = None
    """Where to draw nats below the truth against seconds per datum."""
    wall: bool = False
    """Measure seconds of the clock."""
    seed: int = 0
    """Of the draws."""


@dataclass(frozen=True)
class Row:
    """One setting of one method.

    Attributes:
        method: its name.
        setting: in words.
        estimate: of the data.
        seconds: that it took.
    """

    method: str
    setting: str
    estimate: LogMarginal
    seconds: float


def settings(args: Args) -> list[tuple[str, str, Estimator]]:
    """Every method and setting, the truth last."""
    return [
        *(("importance", f"K = {k:,}", Importance(k)) for k in (100, 1000, 5000)),
        *(("adaptive", f"tolerance {t}", Adaptive(tolerance=t)) for t in (0.2, 0.1, 0.05)),
        ("auto", "K = 1,000 at first", Auto()),
        *(
            ("annealed, fitted start", f"{t} temperatures", Annealed(num_temperatures=t, start="adaptive"))
            for t in (10, 100)
        ),
        *(("annealed", f"{t:,} temperatures", Annealed(num_temperatures=t)) for t in args.num_temperatures),
    ]


def measured(run: Trained, args: Args) -> list[Row]:
    """Each of them, timed."""
    clock = time.perf_counter if args.wall else time.process_time
    data = tuple(None if t is None else t[: args.limit] for t in run.test)
    rows = []
    for method, setting, estimator in settings(args):
        began = clock()
        estimate = ppvae.log_marginal(run.pair, *data, method=estimator, seed=args.seed, compile=False)
        rows.append(Row(method, setting, estimate, clock() - began))
    return rows


def table(rows: list[Row]) -> str:
    """A row a setting."""
    truth, base = rows[-1].estimate, next(row for row in rows if row.setting == "K = 5,000").seconds
    n = len(truth.values)
    columns = ("log p(x)", "to truth", "± s.e.", "furthest", "k̂ > 0.7", "ESS", "least", "s a datum", "to K = 5,000")
    lines = [f"{n} data; {torch.get_num_threads()} threads, torch {torch.__version__}; ESS: median and least"]
    lines.append(f"{'':<43}" + "".join(f"{name:>10}" for name in columns[:-1]) + f"{columns[-1]:>14}")
    for row in rows:
        of, difference = row.estimate, row.estimate.values - truth.values
        error = float(difference.std() / math.sqrt(n)) if n > 1 else math.nan
        k = of.pareto_k
        bad = "" if bool(k.isnan().all()) else str(int((k > 0.7).sum()))
        lines.append(
            f"{row.method:<23}{row.setting:<20}{of.mean():>10.3f}{float(difference.mean()):>+10.3f}{error:>10.3f}"
            f"{float(difference.abs().max()):>10.3f}{bad:>10}{float(of.ess.median()):>10.0f}"
            f"{float(of.ess.min()):>10.1f}{row.seconds / n:>10.4f}{row.seconds / base:>14.2f}"
        )
        if isinstance(of.diagnostics, AutoDiagnostics):
            lines.append(f"{'':<23}" + ", ".join(f"{name} for {m}" for name, m in of.diagnostics.num_data().items()))
    return "\n".join(lines)


def draw(rows: list[Row], path: Path) -> None:
    """Nats below the truth against seconds per datum, a line a method."""
    from matplotlib.figure import Figure

    truth, n = rows[-1].estimate.values, len(rows[-1].estimate.values)
    with house_style():
        figure = Figure(figsize=(3.4, 2.3), layout="constrained")
        axes = figure.add_subplot()
        for color, method in zip(PALETTE, dict.fromkeys(row.method for row in rows), strict=False):
            own = [row for row in rows[:-1] if row.method == method]
            below = [truth - row.estimate.values for row in own]
            axes.errorbar(
                [row.seconds / n for row in own],
                [float(b.mean()) for b in below],
                yerr=[float(b.std() / math.sqrt(n)) for b in below],
                label=method,
                color=color,
                marker="o",
                markersize=3,
                capsize=1.5,
                elinewidth=0.7,
            )
        axes.axhline(0, color="0.6", linewidth=0.7)
        axes.set_xscale("log")
        axes.set(xlabel="seconds per datum", ylabel="nats below the truth")
        axes.legend(frameon=False)
        plain_axes(axes)
        save(figure, path)


def main(args: Args) -> None:
    """Prints the table, and draws the picture."""
    keep_freed_memory()
    warnings.filterwarnings("ignore")
    run = restore(args.run, device="cpu", data_root=args.data_root)
    rows = measured(run, args)
    print(table(rows))
    if args.figure is not None:
        draw(rows, args.figure)


if __name__ == "__main__":
    main(tyro.cli(Args))
