"""Wrong values of every kind of argument, each made anew: a name of the value, and what makes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pyro
import torch
from pyro.infer import Trace_ELBO
from torch import nn

Wrong = Mapping[str, Callable[[], object]]


def constants(*values: object) -> dict[str, Callable[[], object]]:
    """Values that are what they are, named by themselves."""
    return {repr(value)[:40]: lambda value=value: value for value in values}


def x(n: int = 20, d: int = 6) -> torch.Tensor:
    """Binary data."""
    return torch.rand(n, d, generator=torch.Generator().manual_seed(n)).round()


def changed(value: float) -> torch.Tensor:
    """Data of which one is something else."""
    data = x()
    data[7, 2] = value
    return data


class Halves(nn.Module):
    """A pair without a guide."""

    def model(self, x: torch.Tensor) -> None:
        """Observes nothing."""


class Tupled(nn.Module):
    """A net that returns a tuple."""

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return inputs[0][..., :2], inputs[0][..., :2]


NOT_NUMBERS = constants("1", [1], None, math.nan, 1j, True)
COUNTS = constants(0, -1, 2.5, math.inf) | NOT_NUMBERS
NATURALS = constants(-1, 2.5, math.inf) | NOT_NUMBERS
SEEDS = constants(-1, 1.5, "0", None, True, [0], math.nan, 2**64, 2**200)
POSITIVE = constants(0.0, -1.0, math.inf) | NOT_NUMBERS
WEIGHTS = constants(-1.0, math.inf) | NOT_NUMBERS
FRACTIONS = constants(-0.1, 1.5) | NOT_NUMBERS
REALS = constants(math.inf) | NOT_NUMBERS
FLAGS = constants("no", 3, None, 0.0, [True])
CHOICES = constants("nope", 3, None, ["x"], True, "")
COMPILE = constants("nope", 3, None, ["x"], "")
NAMES = constants(3, [1], "nope", ["nope"], None, [None])
SHAPES = constants(0, -1, 2.5, "8", None, True, (3, 0), (2.5,), ((3,),), 2**70, (2, 2**63))
PATHS = constants(None, 3, ["a"], "", "a\0b", b"a", 2.5)
PATHS_TO_WRITE = PATHS | constants("/proc/nope/x", "/dev/null/x", "x" * 300)
FUNCTIONS = constants(None, 3, "f", [print])
DEVICES = constants("gpu", "cuda:99", "meta", 3, "", "cpu:x")
DTYPES = constants("float32", torch.int64, 16, torch.float64)
PAIRS: Wrong = {
    **constants(None, "pair", 3),
    "a net": lambda: nn.Linear(6, 2),
    "a class": lambda: Halves,
    "no guide": Halves,
    "a list": lambda: [Halves(), Halves()],
    "functions": lambda: (print, print),
}
MODULES: Wrong = {**constants(None, 3, "net"), "a class": lambda: nn.Linear, "a function": lambda: torch.relu}
NO_TENSOR: Wrong = {
    **constants("x", 3, 2.5),
    "list": lambda: x().tolist(),
    "numpy": lambda: x().numpy(),
    "dict": lambda: {"x": x()},
    "module": lambda: nn.Linear(2, 2),
}
NO_DENSE_TENSOR: Wrong = NO_TENSOR | {
    "complex": lambda: x().to(torch.complex64),
    "sparse": lambda: x().to_sparse(),
    "meta": lambda: x().to("meta"),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(3), torch.zeros(6)]),
}
DATA: Wrong = {name: value for name, value in NO_DENSE_TENSOR.items() if name != "numpy"} | {
    "array of text": lambda: x().numpy().astype(str),
    "masked array": lambda: np.ma.masked_greater(x().numpy(), 0.5),
    "0-d": lambda: torch.tensor(1.0),
    "one datum": lambda: x()[0],
    "narrow": lambda: x(20, 5),
    "empty": lambda: x(0),
    "no width": lambda: x(20, 0),
    "extra dim": lambda: x()[None],
    "nan": lambda: changed(math.nan),
    "inf": lambda: changed(math.inf),
    "half": lambda: changed(0.5),
    "negative": lambda: changed(-1.0),
    "int64": lambda: x().long(),
    "float64": lambda: x().double(),
    "float16": lambda: x().half(),
    "bool": lambda: x().bool(),
}
TRAINING_DATA: Wrong = DATA | {
    "tuple of nothing": lambda: (None,),
    "unequal lengths": lambda: (x(20), x(19)),
    "second argument": lambda: (x(), x()),
    "iterator": lambda: iter([x()]),
    "generator": lambda: (part for part in [x()]),
    "list of nothing": list,
    "list of strings": lambda: ["a"],
    "list of dicts": lambda: [{"x": x()}],
    "loader with nan": lambda: [x(), changed(math.nan)],
    "loader with halves": lambda: [changed(0.5)],
    "loader of one datum": lambda: [x()[0]],
    "a set": lambda: {1, 2},
}
LABELS: Wrong = NO_DENSE_TENSOR | {
    "float": lambda: torch.zeros(20),
    "nan": lambda: torch.full((20,), math.nan),
    "bool": lambda: torch.zeros(20, dtype=torch.bool),
    "too large": lambda: torch.full((20,), 3),
    "negative": lambda: torch.full((20,), -1),
    "one-hot": lambda: torch.eye(3)[torch.zeros(20, dtype=torch.long)],
    "column": lambda: torch.zeros(20, 1, dtype=torch.long),
    "fewer": lambda: torch.zeros(19, dtype=torch.long),
    "0-d": lambda: torch.tensor(1),
    "empty": lambda: torch.zeros(0, dtype=torch.long),
}
SCHEDULES: Wrong = {
    **constants(-1.0, math.inf, "1", [1], math.nan, 1j, True),
    "no argument": lambda: lambda: 1.0,
    "two arguments": lambda: lambda epoch, step: 1.0,
    "string": lambda: lambda epoch: "1",
    "nan": lambda: lambda epoch: math.nan,
    "string later": lambda: lambda epoch: 1e-3 if epoch < 0.5 else "1",
    "nan later": lambda: lambda epoch: 1e-3 if epoch < 0.5 else math.nan,
    "none later": lambda: lambda epoch: 1e-3 if epoch < 0.5 else None,
    "negative later": lambda: lambda epoch: 1e-3 if epoch < 0.5 else -1.0,
    "tensor later": lambda: lambda epoch: 1e-3 if epoch < 0.5 else torch.ones(3),
}
OPTIMIZERS: Wrong = {
    **constants(None, "adam", 3),
    "int": lambda: int,
    "a module": lambda: nn.Linear,
    "sgd object": lambda: torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1),
    "pyro": lambda: pyro.optim.ClippedAdam({"lr": 0.1}),
    "lbfgs": lambda: torch.optim.LBFGS,
    "sparse adam": lambda: torch.optim.SparseAdam,
    "no arguments": lambda: lambda: None,
    "returns none": lambda: lambda parameters, lr: None,
    "unknown option": lambda: partial(torch.optim.Adam, momentum=0.9),
    "bad betas": lambda: partial(torch.optim.Adam, betas=(2.0, 0.9)),
}
LOSSES: Wrong = {
    **constants(3, "elbo", [1]),
    "class": lambda: Trace_ELBO,
    "no argument": lambda: lambda: torch.tensor(1.0),
    "mse": nn.MSELoss,
    "returns none": lambda: lambda model, guide, x: None,
    "returns a string": lambda: lambda model, guide, x: "1",
    "returns a vector": lambda: lambda model, guide, x: torch.ones(3, requires_grad=True),
    "constant": lambda: lambda model, guide, x: torch.tensor(1.0),
    "number": lambda: lambda model, guide, x: 1.0,
}
CALLBACKS: Wrong = {
    **constants(3, "f", None, [3], ["f"], [None]),
    "bare": lambda: print,
    "no argument": lambda: [lambda: None],
}
CONFIGS: Wrong = {
    **constants(3, "c", [1], {"a": math.nan}, {"a": math.inf}, {"a": object}, {"a": {1, 2}}, {(1, 2): 3}),
    "tensor": lambda: {"a": torch.ones(2)},
}
TRANSFORMS: Wrong = {
    **constants(3, "f", [print]),
    "no argument": lambda: lambda: None,
    "one argument": lambda: lambda generator: None,
    "bare tensor": lambda: lambda generator, x: x,
    "none": lambda: lambda generator, x: None,
}
LOG_WEIGHTS: Wrong = NO_DENSE_TENSOR | {
    "0-d": lambda: torch.tensor(1.0),
    "1-d": lambda: torch.zeros(5),
    "no samples": lambda: torch.zeros(0, 3),
    "no data": lambda: torch.zeros(5, 0),
    "nan": lambda: torch.full((200, 3), math.nan),
    "3-d": lambda: torch.zeros(5, 3, 2),
}
PROBABILITIES: Wrong = NO_DENSE_TENSOR | {
    "nan": lambda: torch.full((20, 3), math.nan),
    "sum of two": lambda: torch.full((20, 3), 2 / 3),
    "negative": lambda: torch.tensor([[1.5, -0.25, -0.25]]).expand(20, 3),
    "int": lambda: torch.ones(20, 3, dtype=torch.long),
    "1-d": lambda: torch.ones(20),
    "0-d": lambda: torch.tensor(1.0),
    "fewer": lambda: torch.full((19, 3), 1 / 3),
    "empty": lambda: torch.zeros(0, 3),
}
ARRAYS: Wrong = {
    **constants("x", None),
    "strings": lambda: np.array(["a", "b"]),
    "objects": lambda: np.array([object()]),
    "nan": lambda: torch.full((4, 8, 8), math.nan),
    "0-d": lambda: torch.tensor(1.0),
    "empty": lambda: torch.zeros(0),
    "5-d": lambda: torch.zeros(2, 2, 2, 2, 2, 2),
    "complex": lambda: torch.zeros(4, dtype=torch.complex64),
    "ragged": lambda: [[1.0], [1.0, 2.0]],
    "dict": lambda: {"a": 1},
}
HISTORIES: Wrong = {
    **constants("a", 3, None, [], [1], [{}], [{"elbo": "x"}], [{"elbo": math.nan}], {"elbo": [1.0]}),
    "tensor": lambda: torch.zeros(3),
}
FIGURES: Wrong = constants(None, "fig", 3)
