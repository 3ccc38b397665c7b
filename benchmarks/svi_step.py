"""One SVI step, side by side in one run: hand-written PyTorch, Pyro's SVI and its JIT, and ppvae, eager and compiled.

Every contestant trains the same networks on the same minibatch; the hand-written loops use one fused Adam, KL terms in
closed form, and exact sums over y where the pair enumerates. ppvae's optimizer is torch's fused Adam or, with
`--optim pyro`, the object that Pyro's SVI has too, `pyro.optim.Adam({"lr": 1e-3})`. The contestants take turns. The
arithmetic floor is the step's floating point operations at the rate of a large matrix product in the same run.

    python benchmarks/svi_step.py --model vae --batch-size 16
    python benchmarks/svi_step.py --model vae --batch-size 16 --optim pyro
    python benchmarks/svi_step.py --model vae --batch-size 16 --steps-per-call 4
"""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pyro
import torch
import tyro
from pyro.infer import ELBO, JitTrace_ELBO, Trace_ELBO, TraceEnum_ELBO
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import ppvae
from ppvae.compile import keep_freed_memory
from ppvae.compile.arguments import Arguments
from ppvae.compile.inductor import compile_graph
from ppvae.distributions import (
    ConditionalBernoulli,
    ConditionalCategorical,
    ConditionalNormal,
    StandardNormal,
    UniformCategorical,
)
from ppvae.models import SSVAE, VAE
from ppvae.nn import MLP, ConditionalMLP, ConvDecoder, ConvEncoder, OneHot
from ppvae.objectives import JointELBO

MODELS = Literal["vae", "conv", "ssvae", "hierarchical"]
Step = Callable[..., Any]
Batch = tuple[Any, ...]
"""What a step is called with: a minibatch, or one with labels and one without."""


@dataclass(frozen=True)
class Args:
    """Time one SVI step, side by side."""

    model: MODELS = "vae"
    """Which pair: an MLP VAE 784-400-20, a convolutional one, a semi-supervised one with
    a labelled and an unlabelled minibatch a step, one of two levels."""
    batch_size: int = 128
    """Images in the minibatch."""
    optim: Literal["torch", "pyro"] = "torch"
    """Whose optimizer ppvae is given; Pyro's SVI has Pyro's."""
    steps_per_call: int = 1
    """Of more than one, a row for a graph of as many compiled steps, on a CPU: what ppvae does not do."""
    cuda: bool = False
    """Run on a CUDA GPU."""
    rounds: int = 9
    """Turns of each contestant that count."""
    seconds: float = 0.5
    """About how long a turn takes."""


class TwoLevels(nn.Module):
    """z2 ~ N(0, I), z1 ~ p(z1|z2), x ~ p(x|z1); guide q(z1|x) q(z2|z1)."""

    def __init__(self) -> None:
        super().__init__()
        self.p_z2 = StandardNormal(20)
        self.p_z1_given_z2 = ConditionalNormal(MLP(20, (200,), (2, 50), activation="tanh"))
        self.p_x_given_z1 = ConditionalBernoulli(MLP(50, (200,), 784, activation="tanh"))
        self.q_z1_given_x = ConditionalNormal(MLP(784, (200,), (2, 50), activation="tanh"))
        self.q_z2_given_z1 = ConditionalNormal(MLP(50, (200,), (2, 20), activation="tanh"))

    def model(self, x: Tensor) -> None:
        """z2, z1, x."""
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", self.p_z2())
            z1 = pyro.sample("z1", self.p_z1_given_z2(z2))
            pyro.sample("x", self.p_x_given_z1(z1), obs=x)

    def guide(self, x: Tensor) -> None:
        """z1, z2."""
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", self.q_z1_given_x(x))
            pyro.sample("z2", self.q_z2_given_z1(z1))

    def loss(self, x: Tensor) -> Tensor:
        """The same loss by hand."""
        m1, s1 = normal(self.q_z1_given_x.net(x))
        z1 = m1 + s1 * torch.randn_like(s1)
        m2, s2 = normal(self.q_z2_given_z1.net(z1))
        z2 = m2 + s2 * torch.randn_like(s2)
        pm1, ps1 = normal(self.p_z1_given_z2.net(z2))
        kl1 = (ps1 / s1).log() + (s1**2 + (m1 - pm1) ** 2) / (2 * ps1**2) - 0.5
        return nll(self.p_x_given_z1.net(z1), x).sum() + kl1.sum() + kl(m2, s2).sum()


class HandLossSSVAE(SSVAE):
    """An SSVAE with the loss of a labelled and an unlabelled minibatch by hand beside it."""

    def loss(self, labelled: tuple[Tensor, Tensor], unlabelled: tuple[Tensor]) -> Tensor:
        """The same loss by hand: exact sums over y where it is not known."""
        x, y = labelled
        log_q = F.log_softmax(self.q_y_given_x.net(x), -1)
        loss = (self.bound(x, y) - self.alpha * log_q.gather(-1, y[:, None]).squeeze(-1)).sum()
        (x,) = unlabelled
        log_q = F.log_softmax(self.q_y_given_x.net(x), -1).T
        return loss + (log_q.exp() * (self.bound(x, torch.arange(10, device=x.device)[:, None]) + log_q)).sum()

    def bound(self, x: Tensor, y: Tensor) -> Tensor:
        """L(x, y)."""
        mean, scale = normal(self.q_z_given_xy.net(x, y))
        z = mean + scale * torch.randn_like(scale)
        logits = self.p_x_given_zy.net(z, y)
        return nll(logits, x.expand_as(logits)).sum(-1) + kl(mean, scale) + math.log(10.0)


class HandLossVAE(VAE):
    """A VAE with its loss by hand beside it."""

    def loss(self, x: Tensor) -> Tensor:
        """The same loss by hand."""
        mean, scale = normal(self.q_z_given_x.net(x))
        z = mean + scale * torch.randn_like(scale)
        return nll(self.p_x_given_z.net(z), x).sum() + kl(mean, scale).sum()


def normal(parameters: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and scale of a net's output (..., 2, k)."""
    mean, raw = parameters.unbind(-2)
    return mean, F.softplus(raw) + 1e-4


def kl(mean: Tensor, scale: Tensor) -> Tensor:
    """KL of a diagonal normal to the standard one, summed over k."""
    return 0.5 * (mean**2 + scale**2 - 1 - 2 * scale.log()).sum(-1)


def nll(logits: Tensor, x: Tensor) -> Tensor:
    """Bernoulli negative log-likelihood of each pixel."""
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none")


def make_pair(model: MODELS) -> Any:
    """The pair, with its hand-written `loss`."""
    torch.manual_seed(0)
    if model == "hierarchical":
        return TwoLevels()
    if model == "ssvae":
        return HandLossSSVAE(
            UniformCategorical(10),
            StandardNormal(20),
            ConditionalBernoulli(ConditionalMLP(20, 10, (200,), 784, embed=OneHot(10))),
            ConditionalCategorical(MLP(784, (200,), 10), num_classes=10),
            ConditionalNormal(ConditionalMLP(784, 10, (200,), (2, 20), embed=OneHot(10))),
            alpha=10.0,
        )
    shape = (1, 28, 28)
    nets: tuple[nn.Module, nn.Module] = (MLP(20, (400,), 784), MLP(784, (400,), (2, 20)))
    if model == "conv":
        nets = (ConvDecoder(20, (32, 16), shape), ConvEncoder(shape, (16, 32), (2, 20)))
    return HandLossVAE(StandardNormal(20), ConditionalBernoulli(nets[0]), ConditionalNormal(nets[1]))


def by_hand(pair: Any, *, compile: bool) -> Step:
    """A plain PyTorch loop with one fused Adam."""
    optimizer = torch.optim.Adam(pair.parameters(), lr=1e-3, fused=True)
    loss_of = torch.compile(pair.loss) if compile else pair.loss

    def step(*batch: Any) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(*batch)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def by_pyro(pair: Any, loss: ELBO, name: str) -> Step:
    """`pyro.infer.SVI`, with Pyro's optimizer and its usual validation."""

    def model(*batch: Any) -> None:
        pyro.module(name, pair)
        pair.model(*batch)

    return pyro.infer.SVI(model, pair.guide, pyro.optim.Adam({"lr": 1e-3}), loss).step


def by_ppvae(pair: Any, loss: ELBO, *, compile: bool, optim_of: str = "torch") -> FitSteps:
    """`ppvae.SVI` as `fit` runs it: without validation, the loss left on the device."""
    optim = pyro.optim.Adam({"lr": 1e-3}) if optim_of == "pyro" else partial(torch.optim.Adam, lr=1e-3)
    return FitSteps(ppvae.SVI(pair.model, pair.guide, optim, loss, compile=compile))


@dataclass(frozen=True)
class FitSteps:
    """Steps within the contexts that `fit` enters once for all of them."""

    svi: ppvae.SVI

    def __call__(self, *batch: Any) -> Tensor:
        """One step."""
        return self.svi.update(*batch).loss

    def running(self) -> AbstractContextManager[None]:
        """The contexts."""
        stack = ExitStack()
        stack.enter_context(self.svi.running(steady=True))
        stack.enter_context(pyro.validation_enabled(False))
        return stack


class StepsInOne:
    """Several compiled steps as one graph, which runs without anything of ours around it.

    Args:
        svi: whose compiled step is repeated.
        count: how often.
    """

    def __init__(self, svi: ppvae.SVI, count: int) -> None:
        self.steps = FitSteps(svi)
        self.count = count
        self.function: Callable[..., Any] | None = None

    def __call__(self, *batch: Any) -> None:
        """As many steps."""
        (graph,) = self.steps.svi._compiled._graphs or [self._first(batch)]
        tensors = [*Arguments(batch).tensors, *graph._inputs]
        if self.function is None:
            self.function = compile_graph(self._repeated(graph.traced.module), tensors)
        with torch.no_grad():
            self.function(*tensors)

    def _first(self, batch: Batch) -> Any:
        """The graph of one step."""
        with self.steps.running():
            for _ in range(3):
                self.steps(*batch)
        return self.steps.svi._compiled._graphs[0]

    def _repeated(self, module: fx.GraphModule) -> fx.GraphModule:
        """A graph that does all that this one does several times, and gives what the last gives."""
        graph, output = fx.Graph(), None
        inputs = {node: graph.node_copy(node) for node in module.graph.find_nodes(op="placeholder")}
        for _ in range(self.count):
            output = graph.graph_copy(module.graph, dict(inputs))
        graph.output(output)
        return fx.GraphModule(module, graph)


def measure(step: Step, batch: Batch, seconds: float) -> float:
    """Milliseconds a step."""
    with step.running() if isinstance(step, FitSteps) else nullcontext():
        count, began = 0, time.perf_counter()
        while count < 5 or time.perf_counter() - began < seconds:
            step(*batch)
            count += 1
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    steps = count * (step.count if isinstance(step, StepsInOne) else 1)
    return 1e3 * (time.perf_counter() - began) / steps


def arithmetic_floor(pair: Any, batch: Batch, device: torch.device) -> float:
    """Milliseconds that the step's floating point operations take at the rate of a large matrix product."""
    with FlopCounterMode(display=False) as counter:
        pair.loss(*batch).backward()
    a = torch.randn(2048, 2048, device=device)
    times = [measure(lambda b: a @ b, (a,), 0.3) for _ in range(3)]
    return counter.get_total_flops() / (2 * 2048**3) * min(times)


def make_batch(args: Args, device: torch.device) -> Batch:
    """A minibatch; for the semi-supervised model one with labels and one without, each of the batch size."""
    shape = (1, 28, 28) if args.model == "conv" else (784,)
    x = torch.bernoulli(torch.full((args.batch_size, *shape), 0.3)).to(device)
    if args.model != "ssvae":
        return (x,)
    y = torch.arange(args.batch_size, device=device) % 10
    return (x, y), (x.flip(0),)


def main(args: Args) -> None:
    """Prints the table."""
    keep_freed_memory()  # as a compiled graph of ours has it: for every contestant, whatever their order
    warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
    device = torch.device("cuda" if args.cuda else "cpu")
    batch = make_batch(args, device)
    make_loss: Callable[[], ELBO] = partial(Trace_ELBO, max_plate_nesting=1)
    if args.model == "ssvae":
        make_loss = partial(JointELBO, TraceEnum_ELBO(max_plate_nesting=1), (1.0, 1.0))

    def pair() -> Any:
        return make_pair(args.model).to(device)

    contestants: dict[str, Step] = {
        "hand-written, eager": by_hand(pair(), compile=False),
        "hand-written, compiled": by_hand(pair(), compile=True),
        "pyro.infer.SVI": by_pyro(pair(), make_loss(), "eager"),
        "ppvae.SVI, eager": by_ppvae(pair(), make_loss(), compile=False, optim_of=args.optim),
        "ppvae.SVI, compiled": by_ppvae(pair(), make_loss(), compile=True, optim_of=args.optim),
    }
    if args.model != "ssvae":  # Pyro's JIT has no objective of several minibatches
        jit = JitTrace_ELBO(max_plate_nesting=1, ignore_jit_warnings=True)
        contestants["pyro.infer.SVI, Jit ELBO"] = by_pyro(pair(), jit, "jit")
    if args.steps_per_call > 1:
        compiled = by_ppvae(pair(), make_loss(), compile=True, optim_of=args.optim)
        contestants[f"{args.steps_per_call} steps a call"] = StepsInOne(compiled.svi, args.steps_per_call)
    first = {name: measure_first(step, batch) for name, step in contestants.items()}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(args.rounds):
        for name, step in contestants.items():
            times[name].append(measure(step, batch, args.seconds))
    threads = torch.get_num_threads()
    setting = f"{args.model}, batch {args.batch_size}, {device}, {args.optim}.optim, {threads} threads"
    print(f"{setting}, torch {torch.__version__}")
    print(f"{'':<26}{'first step':>11}{'ms/step':>9}{'vs compiled by hand':>21}{'pyro.infer.SVI / this':>23}")
    for name, milliseconds in times.items():
        hand = statistics.median(a / b for a, b in zip(milliseconds, times["hand-written, compiled"], strict=True))
        svi = statistics.median(b / a for a, b in zip(milliseconds, times["pyro.infer.SVI"], strict=True))
        row = f"{first[name]:>9.2f} s{statistics.median(milliseconds):>9.2f}{hand:>21.2f}{svi:>23.2f}"
        print(f"{name:<26}{row}")
    print(f"{'arithmetic floor':<26}{'':>11}{arithmetic_floor(pair(), batch, device):>9.2f}")


def measure_first(step: Step, batch: Batch) -> float:
    """Seconds of the first two steps: parameters are met in the first, and the graph is made in the second."""
    began = time.perf_counter()
    with step.running() if isinstance(step, FitSteps) else nullcontext():
        for _ in range(2):
            step(*batch)
    return time.perf_counter() - began


if __name__ == "__main__":
    main(tyro.cli(Args))
