"""What is minimised by default: latents that are marked for enumeration are summed over."""

import json
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import nn

import ppvae
from ppvae.data import Batches, JointBatches

X = torch.randn(40, generator=torch.Generator().manual_seed(0))


class Mixture(nn.Module):
    """y ~ Categorical, x ~ N(c_y, 1); y is marked by the guide, by the model alone, or by nobody."""

    def __init__(self, marked_by):
        super().__init__()
        self.centres = nn.Parameter(torch.tensor([-1.0, 0.5, 2.0]))
        self.q = nn.Linear(1, 3)
        self.marked_by = marked_by

    def infer(self, which):
        return {"enumerate": "parallel"} if which == self.marked_by else {}

    def model(self, x, y=None):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])), obs=y, infer=self.infer("model"))
            pyro.sample("x", dist.Normal(self.centres[y], 1.0), obs=x)

    def guide(self, x, y=None):
        if self.marked_by == "model" or y is not None:
            return
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=self.q(x.unsqueeze(-1))), infer=self.infer("guide"))


def train(pair, data=X, **options):
    return ppvae.fit(pair, data, epochs=1, batch_size=40, lr=1e-9, progress=False, **options)


@pytest.mark.parametrize("marked_by", ["guide", "model"])
def test_a_marked_latent_is_summed_over(marked_by, tmp_path):
    pair = Mixture(marked_by)
    joint = dist.Normal(pair.centres, 1.0).log_prob(X.unsqueeze(-1)) + torch.tensor([0.2, 0.3, 0.5]).log()
    log_q = pair.q(X.unsqueeze(-1)).log_softmax(-1)
    elbo = joint.logsumexp(-1) if marked_by == "model" else (log_q.exp() * (joint - log_q)).sum(-1)
    run = train(pair, out=tmp_path / "run")
    assert run.history[0]["loss"] == pytest.approx(-float(elbo.mean().detach()), rel=1e-5)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["fit"]["loss"].startswith("TraceEnum_ELBO(")
    run = ppvae.fit(pair, X, epochs=2, batch_size=40, lr=1e-9, progress=False, out=tmp_path / "run", resume=True)
    assert len(run.history) == 2


def test_without_marks_it_is_drawn_and_nothing_is_said(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(Mixture("nobody"), out=tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["fit"]["loss"].startswith("Trace_ELBO(")


@pytest.mark.parametrize("marked_by", ["guide", "model"])
def test_an_objective_that_draws_a_marked_latent_is_warned_of_once(marked_by):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(Mixture(marked_by), loss=Trace_ELBO())
    said = [str(w.message) for w in caught if "numerat" in str(w.message)]
    assert len(said) == 1
    assert "the latents ['y'] are marked for enumeration, and Trace_ELBO draws them" in said[0]


def test_one_that_sums_over_it_is_not():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(Mixture("guide"), loss=TraceEnum_ELBO())


def test_one_set_of_several_that_marks_it_is_enough(tmp_path):
    labelled = Batches(X[:8], torch.arange(8) % 3, batch_size=8)
    data = JointBatches(labelled, Batches(X, batch_size=40))
    train(Mixture("guide"), data, out=tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert "TraceEnum_ELBO(" in config["fit"]["loss"]


def test_a_run_of_another_default_is_not_resumed_as_this_one(tmp_path):
    pair = Mixture("guide")
    with pytest.warns(UserWarning, match="marked for enumeration"):
        train(pair, loss=Trace_ELBO(), out=tmp_path / "run")
    with pytest.raises(ValueError, match=r"loss was 'Trace_ELBO.*', is 'TraceEnum_ELBO"):
        train(pair, out=tmp_path / "run", resume=True)
