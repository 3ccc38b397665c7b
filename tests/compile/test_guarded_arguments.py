"""What a compiled step takes for granted of its arguments, and of what Python reads from them."""

from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from ppvae.infer import SVI
from tests.compile.test_guards import Config


class Regression(nn.Module):
    """P(y|x), of two arguments."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 2), nn.Linear(2, 4)
        self.count = torch.zeros(())

    def scale(self, x):
        return 1.0

    def model(self, x, y):
        self.count.add_(1.0)
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=self.scale(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=y)

    def guide(self, x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))

    def svi(self, compile):
        return SVI(self.model, self.guide, partial(torch.optim.Adam, lr=1e-3), Trace_ELBO(), compile=compile)


def losses_of(make, batches, compile):
    torch.manual_seed(0)
    pair = make()
    svi = pair.svi(compile)
    torch.manual_seed(1)
    return [svi.step(*batch) for batch in batches], pair


A, B = torch.linspace(-1, 1, 32).view(8, 4), torch.linspace(-10, 12, 32).view(8, 4)


def test_one_tensor_for_two_arguments_is_not_taken_for_one_argument():
    batches = [(A, A)] * 3 + [(A, B)] * 2
    compiled, eager = losses_of(Regression, batches, True), losses_of(Regression, batches, False)
    assert compiled[0] == pytest.approx(eager[0], rel=1e-5)


def test_a_tensor_of_the_pair_that_is_also_a_batch_stays_its_own():
    class Anchored(Regression):
        def __init__(self):
            super().__init__()
            self.anchor = A

        def scale(self, x):
            return self.anchor.square().sum()

    batches = [(A, A)] * 3 + [(B, B)] * 2
    assert losses_of(Anchored, batches, True)[0] == pytest.approx(losses_of(Anchored, batches, False)[0], rel=1e-5)


READERS = {
    "tolist": lambda x: x.abs().mean(1).tolist()[0],
    "numpy": lambda x: float(x.abs().mean(1).numpy()[0]),
    "asarray": lambda x: float(np.asarray(x.abs().mean(1))[0]),
    "tensor_split": lambda x: len(torch.tensor_split(x, x[:1, 0].abs().long().cpu())[0]) + 1.0,
}


@pytest.mark.parametrize("name", READERS)
def test_a_tensor_that_is_read_as_a_whole_is_no_constant(name):
    class Reading(Regression):
        def scale(self, x):
            return READERS[name](x)

    batches = [(A, A)] * 3 + [(B, B)] * 4
    whole = name in ("numpy", "asarray")
    with pytest.warns(UserWarning, match="not compiled, runs eagerly") if whole else nullcontext():
        compiled, _ = losses_of(Reading, batches, True)
    assert compiled == pytest.approx(losses_of(Reading, batches, False)[0], rel=1e-5)


def test_a_tensor_that_is_no_buffer_is_written_as_often_as_in_eager_steps():
    counts = [losses_of(Regression, [(A, A)] * 5, compile)[1].count.item() for compile in (False, True)]
    assert counts == [5.0, 5.0]


def test_an_objective_at_the_address_of_an_old_one_is_a_new_one():
    def scaled(factor):
        return lambda model, guide, *args: factor * Trace_ELBO().differentiable_loss(model, guide, *args)

    pair = Regression()
    svi = SVI(pair.model, pair.guide, partial(torch.optim.SGD, lr=0.0), scaled(1.0), compile=True)
    for factor in (1.0, 1.0, 10.0, 100.0, 1000.0):  # the addresses of functions without a name are used again at once
        svi.objective = scaled(factor)
        torch.manual_seed(1)
        loss = svi.step(A, A)
        torch.manual_seed(1)
        assert loss == pytest.approx(factor * Trace_ELBO().loss(pair.model, pair.guide, A, A), rel=1e-5)


class Configured(Regression):
    """With a weight that is held by an argument."""

    def model(self, x, y, config):
        with pyro.poutine.scale(scale=config.kl.weight):
            super().model(x, y)

    def guide(self, x, y, config):
        super().guide(x, y)


@pytest.mark.parametrize("nested", [False, True])
def test_an_object_among_the_arguments_counts_with_its_attributes(nested):
    """Long after its graph was last compared with an eager step."""
    results = []
    for compile in (False, True):
        torch.manual_seed(0)
        kl = Config()
        config, svi = (SimpleNamespace(kl=kl) if nested else kl), Configured().svi(compile)
        kl.kl = kl
        losses = [svi.step(A, A, config) for _ in range(12)]
        kl.weight = 3.0
        results.append([*losses, svi.step(A, A, config)])
    assert results[1] == pytest.approx(results[0], rel=1e-5)
    assert svi._compiled.num_graphs == 2


def test_an_object_whose_numbers_change_at_every_step_is_named():
    svi, config = Configured().svi(compile=True), SimpleNamespace(kl=Config())

    def step(weight):
        config.kl.weight = weight
        svi.step(A, A, config)

    for weight in (1.0, 2.0, 3.0, 4.0):
        step(weight)
    step(5.0)
    with pytest.warns(UserWarning, match=r"the others run eagerly: args\[2\] comes in more kinds .*attributes"):
        step(6.0)
    assert svi._compiled.num_graphs == 4


def test_a_batch_that_the_pair_fails_on_leaves_the_graphs_alone():
    svi = Regression().svi(compile=True)
    for _ in range(3):
        svi.step(A, A)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        svi.step(torch.zeros(8, 5), A)
    svi.step(A, A)
    assert svi._compiled.num_graphs == 1


def test_a_step_without_tensors_is_compiled():
    class Closed(Regression):
        def model(self):
            super().model(A, B)

        def guide(self):
            super().guide(A, B)

    assert losses_of(Closed, [()] * 4, True)[0] == pytest.approx(losses_of(Closed, [()] * 4, False)[0], rel=1e-5)


def test_a_network_that_first_runs_for_a_second_kind_of_batch_is_guarded():
    def run(compile):
        torch.manual_seed(0)
        encoder, decoder, extra = nn.Linear(4, 2), nn.Linear(2, 4), nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.9))

        def model(x, y=None):
            pyro.module("decoder", decoder)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

        def guide(x, y=None):
            pyro.module("encoder", encoder)
            pyro.module("extra", extra)
            loc = encoder(x) if y is None else 20 * extra(y)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

        with pyro.get_param_store().scope():
            svi = SVI(model, guide, partial(torch.optim.SGD, lr=0.0), Trace_ELBO(), compile=compile)
            losses = [svi.step(*batch) for batch in ((A,), (A,), (A, B), (A, B))]
            extra.eval()
            return [*losses, svi.step(A, B)]

    assert run(True) == pytest.approx(run(False), rel=1e-5)
