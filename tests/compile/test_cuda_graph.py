"""What is recorded as a CUDA graph, and when it is recorded anew; here a run that is repeated stands for the graph."""

from contextlib import contextmanager
from functools import partial

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO

from ppvae.compile import compiled as compiling
from ppvae.compile import cuda_graph as recording
from ppvae.compile.cuda_graph import Recording
from ppvae.infer.optim import Stepper
from tests.compile.compiling import D, K, assert_same, binary, make_vae, recordings


class CapturableSGD(torch.optim.SGD):
    """Says of itself that a CUDA graph can hold its step, as Adam does on a GPU."""

    def __init__(self, parameters, **options):
        super().__init__(parameters, momentum=0.9, foreach=False, **options)
        for group in self.param_groups:
            group["capturable"] = True


class Replays:
    """Stands for `torch.cuda.CUDAGraph`: recording changes nothing, and replaying writes the tensors of the recording.

    Attributes:
        number: how often something was recorded.
    """

    def __init__(self):
        self.number = 0
        self.tensors = []

    def capture(self, function, device):
        self.number += 1
        with self.nothing_changes():
            outputs = list(function())

        def replay():
            for output, new in zip(outputs, function(), strict=True):
                output.data = new.detach().clone()

        return replay, outputs

    @contextmanager
    def nothing_changes(self):
        tensors = [t for t in self.tensors() if isinstance(t, torch.Tensor)]
        before, rng = [t.detach().clone() for t in tensors], torch.get_rng_state()
        yield
        torch.set_rng_state(rng)
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)


@pytest.fixture
def replays(monkeypatch):
    found = Replays()
    monkeypatch.setattr(compiling, "recordable", lambda tensors: True)
    monkeypatch.setattr(recording, "capture", found.capture)
    return found


def same(replays, before_step=None, **options):
    """The SVI of 20 recorded steps, which are those of the eager run."""
    options = {"optim": partial(CapturableSGD, lr=1e-3), **options}

    def prepare(svi, i):
        def tensors():
            states = [] if svi.optimizer is None else list(svi.optimizer.state.values())
            return [*svi.parameters(), *(value for state in states for value in state.values())]

        replays.tensors = tensors
        if before_step is not None:
            before_step(svi, i)

    return assert_same(make_vae, Trace_ELBO, [(binary(),)], before_step=prepare, **options)


@pytest.mark.usefixtures("with_and_without_inductor")
def test_the_whole_step_is_recorded_once(replays):
    svi = same(replays)
    assert (replays.number, len(recordings(svi))) == (1, 1)
    assert {id(t) for t in svi.parameters()} <= {id(t) for t in recordings(svi)[0]._referred}


def test_clipping_is_part_of_it(replays):
    assert len(recordings(same(replays, clip_norm=0.5))) == 1


@pytest.mark.parametrize(
    ("change", "number"),
    [
        (lambda svi: svi.optimizer.load_state_dict(svi.optimizer.state_dict()), 1),
        (lambda svi: svi.optimizer.state.update({p: dict(s) for p, s in svi.optimizer.state.items()}), 1),
        (lambda svi: svi.optimizer.state[svi.parameters()[0]].update(momentum_buffer=torch.ones(D, K)), 2),
        (lambda svi: svi.optimizer.param_groups[0].update(weight_decay=0.1), 2),
        (lambda svi: setattr(svi.stepper, "clip_norm", 0.1), 2),
        (lambda svi: [p.data.add_(0.1) for p in svi.parameters()], 1),
        (lambda svi: [setattr(p, "data", p.data + 0.1) for p in svi.parameters()], 2),
        (lambda svi: svi.optimizer.param_groups[0].update(lr=1e-4), 1),
        (lambda svi: svi.optimizer.register_step_post_hook(lambda *_: None), 2),
    ],
    ids=["loaded", "same state", "other state", "option", "clipping", "values", "memory", "learning rate", "hook"],
)
def test_what_changes_between_steps_counts(replays, change, number):
    svi = same(replays, before_step=lambda svi, i: change(svi) if i == 10 else None)
    assert replays.number == number
    assert len(recordings(svi)) == 1


def test_a_learning_rate_that_is_set_at_every_step_is_recorded_once(replays):
    def set_rate(svi, i):
        if i:
            svi.optimizer.param_groups[0]["lr"] = 1e-3 / i

    svi = same(replays, before_step=set_rate)
    assert replays.number == 1
    assert float(svi.optimizer.param_groups[0]["lr"]) == pytest.approx(1e-3 / 19)


@pytest.mark.parametrize(
    "optim",
    [
        partial(torch.optim.Adam, lr=1e-2, fused=True),
        partial(torch.optim.SGD, lr=1e-3),
        pyro.optim.ClippedAdam({"lr": 1e-2}),
    ],
    ids=["adam on a CPU", "plain sgd", "pyro clipped adam"],
)
def test_a_step_that_cannot_be_recorded_is_taken_after_the_gradient(replays, optim):
    svi = same(replays, optim=optim)
    assert replays.number == 1
    assert recordings(svi)[0]._held is None


def test_what_the_device_refuses_to_record_runs_unrecorded_after_one_warning(replays, monkeypatch):
    def refuse(function, device):
        replays.number += 1
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(recording, "capture", refuse)
    with pytest.warns(
        UserWarning, match="not recorded as a CUDA graph: operation not permitted when stream is cap"
    ) as w:
        svi = same(replays)
    assert (replays.number, len(w), recordings(svi)) == (1, 1, [])


def test_a_learning_rate_from_another_device_is_a_number_again():
    parameters = [torch.nn.Parameter(torch.ones(3))]
    stepper = Stepper(partial(torch.optim.Adam, lr=1e-3, fused=True), None, capturable=True)
    stepper.prepare([("p", p) for p in parameters])
    parameters[0].grad = torch.ones(3)
    stepper.step(lambda: [("p", p) for p in parameters], parameters)
    state = stepper.optimizer.state_dict()
    state["param_groups"][0] |= {"capturable": True, "lr": torch.tensor(0.5)}  # as a GPU's run saves them
    stepper.load_state_dict(state)
    parameters[0].grad = torch.ones(3)
    stepper.step(lambda: [("p", p) for p in parameters], parameters)
    assert stepper.optimizer.param_groups[0]["lr"] == 0.5
    torch.testing.assert_close(parameters[0].detach(), torch.full((3,), 1 - 1e-3 - 0.5), rtol=1e-4, atol=0)


def test_arguments_are_copied_into_tensors_of_the_recording(replays):
    replays.tensors = list
    x, y = torch.ones(3), torch.full((3,), 5.0)
    recorded = Recording(lambda args: [args[0] * 2], [x], [], None)
    assert recorded([y])[0].tolist() == [10.0] * 3
    assert x.tolist() == [1.0] * 3
    with pytest.raises(RuntimeError, match="share memory"):
        Recording(lambda args: args, [torch.ones(1).expand(3)], [], None)
