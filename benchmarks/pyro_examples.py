"""Pyro's published examples, unmodified, with `pyro.infer.SVI` and with `ppvae.SVI`, eager and compiled.

The examples come from a checkout of Pyro's repository (github.com/pyro-ppl/pyro), their data are generated. Each runs
four times from one seed: "eager" and "compiled" are the largest relative difference of a step's loss from that of
`pyro.infer.SVI`, and "nudged" is that of `pyro.infer.SVI` itself where its parameters are changed by a relative
`--nudge` after the first step, so that it says what rounding can do. Then the others take turns, and "times as fast" is
the median ratio. "fit" and "likelihood" say whether `ppvae.fit` trains the pair, and whether `log_marginal` (of latents
that all data share `log_evidence`) scores it.

    python benchmarks/pyro_examples.py --pyro ../pyro vae scanvi
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pyro
import torch
import tyro

import ppvae
from ppvae.evaluate import log_evidence

sys.path.insert(0, str(Path(__file__).parent))  # also where this is run by its path
from published import EXAMPLES, Make, Part, Published

MAKE_SVI: dict[str, Callable[[Part, Any], Any]] = {
    "pyro": lambda part, optim: pyro.infer.SVI(part.model, part.guide, optim, part.loss),
    "eager": lambda part, optim: ppvae.SVI(part.model, part.guide, optim, part.loss, compile=False),
    "compiled": lambda part, optim: ppvae.SVI(part.model, part.guide, optim, part.loss, compile=True),
}
"""The contestants."""
MOST_STEPS = 100
"""Of a turn: after some 700 steps on generated data point masses of `gmm` and `hmm` reach NaN, with Pyro's SVI too."""
NUM_SCORED, NUM_SAMPLES = 12, 5
"""Data and samples of the likelihood, which is only to exist here."""


@dataclass(frozen=True)
class Args:
    """Run Pyro's published examples side by side."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Which of the examples; all by default."""
    pyro: Path = Path("../pyro")
    """A checkout of Pyro's repository."""
    steps: int = 24
    """Steps from one seed whose losses are compared."""
    nudge: float = 1e-7
    """How much, relatively, parameters are changed in the column of that name."""
    rounds: int = 5
    """Turns of each contestant that are timed; 0 times nothing."""
    seconds: float = 1.0
    """About how long a turn takes, at most."""
    seed: int = 0
    """Of data, parameters and draws."""


class Contestant:
    """One way of training an example, with a parameter store and random numbers of its own."""

    def __init__(self, make: Make, pyro_dir: Path, name: str, seed: int) -> None:
        self._rng: Any = None
        self._store: Any = None
        self._seed = seed
        self._taken = 0
        with self._alone():
            self.example: Published = make(pyro_dir)
            self.svis = [MAKE_SVI[name](part, self.example.optim) for part in self.example.parts]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        outside = pyro.util.get_rng_state()
        with pyro.get_param_store().scope(self._store) as self._store:
            pyro.set_rng_seed(self._seed) if self._rng is None else pyro.util.set_rng_state(self._rng)
            yield
            self._rng = pyro.util.get_rng_state()
        pyro.util.set_rng_state(outside)

    def steps(self, count: int) -> list[float]:
        """So many steps; their losses."""
        with self._alone():
            return [self._step() for _ in range(count)]

    def nudge(self, relative: float) -> None:
        """Changes every parameter of Pyro's store by so much, each number up or down at random."""
        with self._alone():
            generator = torch.Generator().manual_seed(self._seed)
            for _, parameter in pyro.get_param_store().named_parameters():
                signs = torch.randint(2, parameter.shape, generator=generator, dtype=parameter.dtype) * 2 - 1
                parameter.data.mul_(1 + relative * signs)

    def milliseconds(self, seconds: float) -> float:
        """Of one pass through the minibatches, a step."""
        count, began = 0, time.perf_counter()
        with self._alone():
            while not count or (count < MOST_STEPS and time.perf_counter() - began < seconds):
                for _ in self.example.batches:
                    self._step()
                count += len(self.example.batches)
        return 1e3 * (time.perf_counter() - began) / count

    def _step(self) -> float:
        args, kwargs = self.example.batches[self._taken % len(self.example.batches)]
        self._taken += 1
        loss = sum(float(svi.step(*args, **kwargs)) for svi in self.svis)
        self.example.after_step()
        return loss


@dataclass
class Row:
    """What is printed of one example."""

    parity: dict[str, str]
    faster: dict[str, str]
    fit: str
    likelihood: str
    notes: list[str]


def run(make: Make, args: Args) -> Row:
    """All of one example."""
    notes: list[str] = []
    losses: dict[str, list[float]] = {}
    contestants = {}
    for name in MAKE_SVI:
        with noting(notes, name):
            contestants[name] = Contestant(make, args.pyro, name, args.seed)
            losses[name] = contestants[name].steps(args.steps)
    times: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(args.rounds if len(losses) == len(MAKE_SVI) else 0):
        for name in list(times):
            with noting(notes, name):
                times[name].append(contestants[name].milliseconds(args.seconds))
                continue
            del times[name]  # it failed, and takes no further turn
    with noting(notes, "nudged"):
        nudged = Contestant(make, args.pyro, "pyro", args.seed)
        losses["nudged"] = nudged.steps(1)
        nudged.nudge(args.nudge)
        losses["nudged"] += nudged.steps(args.steps - 1)
    ours = ("eager", "compiled")
    notes += [contestant.example.differs for contestant in contestants.values() if contestant.example.differs]
    return Row(
        {name: difference(losses.get(name), losses.get("pyro")) for name in (*ours, "nudged")},
        {name: ratio(times.get("pyro"), times.get(name)) for name in ours},
        "yes" if attempt(lambda: fit(make, args), "fit", notes) else "no",
        "yes" if attempt(lambda: score(make, args), "likelihood", notes) else "no",
        list(dict.fromkeys(notes)),
    )


def difference(losses: list[float] | None, expected: list[float] | None) -> str:
    """The largest relative difference of two series of losses."""
    if not losses or not expected:
        return "-"
    return f"{max(abs(a - b) / abs(b) if b else abs(a) for a, b in zip(losses, expected, strict=True)):.0e}"


def ratio(theirs: list[float] | None, ours: list[float] | None) -> str:
    """How many times as fast ours is: the median over turns."""
    if not theirs or not ours:
        return "-"
    return f"{statistics.median(a / b for a, b in zip(theirs, ours, strict=True)):.1f}"


def fit(make: Make, args: Args) -> None:
    """One epoch of the pair."""
    example = alone(make, args)
    data = example.data if len(example.data) > 1 else example.data[0]
    n = next(len(t) for t in example.data if t is not None)
    size = n if example.shared else 32
    ppvae.fit(example.pair, data, loss=example.fit_loss, epochs=1, batch_size=size, compile=False, progress=False)


def score(make: Make, args: Args) -> None:
    """A likelihood of a few data, or of all where they share the latents."""
    example = alone(make, args)
    if example.shared:
        log_evidence(example.pair, *example.data, num_samples=NUM_SAMPLES)
    else:
        few = (None if t is None else t[:NUM_SCORED] for t in example.data)
        ppvae.log_marginal(example.pair, *few, num_samples=NUM_SAMPLES)


def alone(make: Make, args: Args) -> Published:
    """The example from its seed, with an empty store."""
    pyro.clear_param_store()
    pyro.set_rng_seed(args.seed)
    return make(args.pyro)


def attempt(act: Callable[[], None], what: str, notes: list[str]) -> bool:
    """Whether it works."""
    before = len(notes)
    with noting(notes, what):
        act()
    return not any(note.startswith(f"{what} fails") for note in notes[before:])


@contextmanager
def noting(notes: list[str], what: str) -> Iterator[None]:
    """Keeps what is warned of compilation, and what is raised, in one line each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except Exception as error:
            notes.append(f"{what} fails: {type(error).__name__}: {first_line(error)}")
    of_ours = [warning.message for warning in caught if "compile" in str(warning.message)]
    notes += [f"{what}: {first_line(message)}" for message in of_ours]


def first_line(message: object) -> str:
    """As much of a message as a note takes."""
    return str(message).partition("\n")[0][:300]


def main(args: Args) -> None:
    """Prints the table."""
    if not (args.pyro / "examples").is_dir():
        raise SystemExit(f"--pyro must be a checkout of Pyro's repository, and {args.pyro} has no folder 'examples'")
    if unknown := [name for name in args.names if name not in EXAMPLES]:
        raise SystemExit(f"no examples {unknown}: there are {', '.join(EXAMPLES)}")
    print(f"{args.steps} steps from one seed; {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("| example | eager | compiled | nudged | times as fast, eager | compiled | fit | likelihood |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    noted = {}
    for name in args.names or EXAMPLES:
        row = run(EXAMPLES[name], args)
        cells = [name, *row.parity.values(), *row.faster.values(), row.fit, row.likelihood]
        print("|", " | ".join(cells), "|", flush=True)
        noted[name] = row.notes
    for name, notes in noted.items():
        for note in notes:
            print(f"- {name}, {note}")


if __name__ == "__main__":
    main(tyro.cli(Args))
