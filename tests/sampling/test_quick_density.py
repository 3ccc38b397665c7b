"""Quick sums of log-probabilities: what torch computes in double precision, with its gradients, wherever they apply."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppvae
from ppvae import Pair
from ppvae.compile import Compiled
from ppvae.sampling.quick_density import _group, bernoulli_log_prob, score_quickly


def exact(logits, x, event_dim):
    return dist.Bernoulli(logits=logits.double(), validate_args=False).to_event(event_dim).log_prob(x.double())


def draws(*shape):
    """Logits of every size, and values."""
    return torch.randn(*shape) * torch.logspace(-2, 1.5, shape[-1]), torch.bernoulli(torch.rand(shape[1:]))


@pytest.mark.parametrize("event", [(784,), (787,), (1,), (6,), (48,), (1, 28, 28), (3, 5)])
def test_it_is_the_density_and_its_gradient(event):
    logits, x = draws(5, 3, *event)
    logits.requires_grad_()
    found = bernoulli_log_prob(logits, x, event_dim=len(event))
    expected = exact(logits, x, len(event))
    d = logits[0, 0].numel()
    assert found.shape == (5, 3)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=2 * d * torch.finfo(torch.float32).eps)
    (ours,), (torchs,) = (torch.autograd.grad(of.sum(), logits) for of in (found, expected))
    torch.testing.assert_close(ours, torchs, rtol=0, atol=3e-7)


@pytest.mark.parametrize(("d", "group"), [(784, 7), (4096, 8), (48, 3), (16, 1), (40, 8), (787, 1)])
def test_products_leave_whole_vectors_where_they_can(d, group):
    assert _group(d) == group


def test_it_takes_intensities_and_one_row_of_logits_for_all_data():
    logits, x = draws(4, 9)[0][0], torch.rand(4, 9)
    torch.testing.assert_close(bernoulli_log_prob(logits, x, event_dim=1).double(), exact(logits, x, 1))


def test_gradients_of_gradients_are_those_of_the_density():
    logits, x = draws(2, 6)
    torch.autograd.gradgradcheck(
        lambda of: bernoulli_log_prob(of, x.double(), event_dim=1), logits.double().requires_grad_()
    )


def test_what_is_impossible_has_probability_zero_and_what_is_certain_costs_nothing():
    logits = torch.tensor([[torch.inf, 0.0], [-torch.inf, 0.0], [torch.nan, 0.0]])
    found = bernoulli_log_prob(logits, torch.zeros(2), event_dim=1)
    assert found[0] == -torch.inf
    torch.testing.assert_close(found[1], torch.tensor(0.5).log())
    assert found[2].isnan()
    for x in (torch.nan, torch.inf):  # no data
        assert bernoulli_log_prob(torch.zeros(2), torch.tensor([x, 0.0]), event_dim=1).isnan()


@pytest.mark.parametrize(
    ("make", "quick"),
    [
        (lambda: dist.Bernoulli(logits=torch.randn(3, 4), validate_args=False).to_event(1), True),
        (lambda: dist.Bernoulli(torch.rand(3, 4), validate_args=False).to_event(1), True),
        (lambda: dist.Bernoulli(logits=torch.randn(3, 4), validate_args=True).to_event(1), True),
        (lambda: dist.Bernoulli(logits=torch.randn(3), validate_args=False), False),
        (lambda: dist.Bernoulli(logits=torch.randn(3, 4), validate_args=False).to_event(1).mask(False), False),
        (lambda: dist.Normal(torch.randn(3, 4), 1.0, validate_args=False).to_event(1), False),
    ],
)
def test_a_trace_is_scored_as_pyro_scores_it(make, quick):
    fn = make()
    x = torch.ones(fn.shape())

    @pyro.poutine.scale(scale=0.3)
    @pyro.poutine.mask(mask=torch.tensor([True, False, True]))
    def model():
        with pyro.plate("data", 3):
            pyro.sample("x", fn, obs=x)

    ours, pyros = (pyro.poutine.trace(model).get_trace() for _ in range(2))
    score_quickly(ours)
    assert ("log_prob" in ours.nodes["x"]) == quick
    ours.compute_log_prob()
    pyros.compute_log_prob()
    for key in ("unscaled_log_prob", "log_prob", "log_prob_sum"):
        torch.testing.assert_close(ours.nodes["x"][key], pyros.nodes["x"][key])


@pytest.mark.parametrize("x", [torch.full((3, 4), 0.5), torch.full((3, 4), torch.nan)])
def test_what_validation_refuses_is_left_to_it(x):
    image = dist.Bernoulli(logits=torch.randn(3, 4), validate_args=True).to_event(1)
    trace = pyro.poutine.trace(lambda: pyro.sample("x", image, obs=x)).get_trace()
    score_quickly(trace)
    with pytest.raises(ValueError, match="x"):
        trace.compute_log_prob()


class Images(nn.Module):
    """Bernoulli images as Pyro's own examples write them."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 12)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.net(z)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.2).to_event(1))


@pytest.mark.parametrize("method", ["importance", "adaptive"])
def test_estimates_are_those_of_a_likelihood_that_it_does_not_know(method):
    class Spelt(dist.Bernoulli):
        """The same, of another class."""

    pair, x = Images(), torch.bernoulli(torch.full((6, 12), 0.4))

    def spelt(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", Spelt(logits=pair.net(z)).to_event(1), obs=x)

    found, plain = (ppvae.log_marginal(of, x, method=method) for of in (pair, Pair(spelt, pair.guide)))
    torch.testing.assert_close(found.values, plain.values, rtol=0, atol=1e-4)


def test_a_graph_holds_its_gradient():
    logits, x = draws(5, 3, 8)

    def gradient(args):
        leaf = args[0].detach().requires_grad_()
        value = bernoulli_log_prob(leaf, args[1], event_dim=1)
        return [value.detach(), *torch.autograd.grad(value.sum(), leaf)], None

    compiled = Compiled(gradient, [])
    for _ in range(2):
        (value, slope), _ = compiled((logits, x))
        torch.testing.assert_close(value.double(), exact(logits, x, 1))
        torch.testing.assert_close(slope, x - logits.sigmoid())
    assert compiled.num_graphs == 1
