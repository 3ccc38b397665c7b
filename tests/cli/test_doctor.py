"""Each fault is named in a sentence, a pair without any is said to have none, and it stays as it was."""

import copy
import re
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppvae
from ppvae.cli.code_lines import place
from ppvae.cli.doctor import doctor
from ppvae.distributions import (
    ConditionalBernoulli,
    ConditionalCategorical,
    ConditionalNormal,
    StandardNormal,
    UniformCategorical,
)
from ppvae.models import PPCA, SSVAE, VAE
from ppvae.nn import MLP, ConditionalMLP, OneHot

N, D, K = 120, 6, 2


class Own(nn.Module):
    """A pair of a user's, to which a fault is added."""

    def __init__(self, fault=""):
        super().__init__()
        torch.manual_seed(0)
        self.fault = fault
        self.decoder, self.encoder = nn.Linear(K, D), nn.Linear(D, K)
        self.spare = nn.Linear(3, 3) if fault == "unused" else None
        self.width = nn.Parameter(torch.zeros(())) if fault == "nan" else None

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(K), 1.0).to_event(1))
            loc = self.decoder(z)
            if self.fault == "detached":
                loc = loc.detach()
            if self.fault == "ignored":
                loc = self.decoder(1e-4 * z)
            if self.fault == "shape":
                loc = self.decoder(z[..., :1])
            if self.fault == "numpy":
                loc = loc + torch.from_numpy(x.detach().numpy() * 0)
            if self.fault == "nan":
                loc = loc + (0 * self.width).sqrt()
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            name = "w" if self.fault == "name" else "z"
            loc = 1e-3 * self.encoder(x) if self.fault == "ignored" else self.encoder(x)
            pyro.sample(name, dist.Normal(loc, 1.0).to_event(1))


def x():
    return torch.randn(N, D, generator=torch.Generator().manual_seed(1))


def line(code):
    """Where a piece of code stands here first, as it is said."""
    lines = Path(__file__).read_text().splitlines()
    return place(__file__, next(i for i, text in enumerate(lines, 1) if code in text))


def texts(diagnosis, kind):
    return [finding.text for finding in diagnosis.findings if finding.kind == kind]


def test_a_pair_without_a_fault():
    diagnosis = doctor(Own(), x())
    assert diagnosis.healthy
    assert not texts(diagnosis, "wrong")
    assert "a gradient reaches each of 4 parameters" in texts(diagnosis, "fine")
    assert any("the latent 'z' is in use" in text for text in texts(diagnosis, "fine"))
    guide, prior, likelihood = diagnosis.sites
    assert guide == f"guide  z  Normal, 2 numbers in (-∞, ∞), in plate data (120)  [{line('pyro.sample(name')}]"
    assert prior == f"model  z  Normal, 2 numbers in (-∞, ∞), in plate data (120)  [{line('z = pyro.sample')}]"
    assert likelihood.startswith("model  x (observed)  Normal, 6 numbers")
    assert str(diagnosis) == diagnosis.summary()


@pytest.mark.parametrize(
    ("fault", "kind", "text", "where"),
    [
        (
            "unused",
            "wrong",
            "no gradient reaches 'spare.weight', 'spare.bias': neither model nor guide uses it",
            (f"Linear in Own {line('class Own')}",),
        ),
        ("detached", "wrong", "no gradient reaches 'decoder.weight'", (f"Linear in Own {line('class Own')}",)),
        ("nan", "wrong", "the gradient of 'width' is no number", (f"Own {line('class Own')}",)),
        (
            "ignored",
            "doubtful",
            "the latent 'z' tells nothing of the data",
            (f"guide {line('pyro.sample(name')}", f"model {line('z = pyro.sample')}"),
        ),
        (
            "name",
            "wrong",
            "the guide misses the latent site 'z': it samples ['w']",
            (line("z = pyro.sample"), line("pyro.sample(name")),
        ),
        ("shape", "wrong", "mat1 and mat2 shapes cannot be multiplied", (line("self.decoder(z[..., :1])"),)),
    ],
)
def test_a_fault_is_named_with_its_line(fault, kind, text, where):
    diagnosis = doctor(Own(fault), x())
    found = [finding for finding in diagnosis.findings if finding.kind == kind and text in finding.text]
    assert found, diagnosis.summary()
    assert found[0].where == where
    assert f"{text}" in str(diagnosis)
    assert f"  [{', '.join(where)}]" in str(diagnosis)
    assert diagnosis.healthy == (kind != "wrong")


def test_a_step_is_timed_beside_its_nets():
    (found,) = [text for text in texts(doctor(Own(), x(), compile=True), "fine") if text.startswith("a training step")]
    number = r"\d[\d.e+]*"
    assert re.fullmatch(
        rf"a training step on 120 data takes {number} ms, its nets alone, forward and backward, {number} ms: "
        rf"\d+% goes on around them; compiled it takes {number} ms",
        found,
    )


def test_data_that_do_not_fit_are_named():
    pair = VAE(StandardNormal(K), ConditionalBernoulli(MLP(K, (), D)), ConditionalNormal(MLP(D, (), (2, K))))
    assert any("outside the support of Bernoulli at site 'x'" in text for text in texts(doctor(pair, x()), "wrong"))
    far = doctor(Own(), 1000 + x())
    assert any("Standardize.of(x)" in text for text in texts(far, "doubtful"))


def test_what_is_held_fixed_is_said():
    pair = Own()
    pair.decoder.requires_grad_(False)
    assert any(
        "'decoder.weight', 'decoder.bias' is held fixed" in text for text in texts(doctor(pair, x()), "doubtful")
    )


def test_why_a_step_does_not_compile():
    assert "the training step is one compiled graph" in texts(doctor(Own(), x(), compile=True), "fine")
    found = texts(doctor(Own("numpy"), x(), compile=True), "doubtful")
    assert any(text.startswith("the training step is not compiled, runs eagerly: ") for text in found), found


def test_labels_that_are_summed_over():
    net = ConditionalMLP(D, 3, (4,), (2, K), embed=OneHot(3))
    pair = SSVAE(
        p_y=UniformCategorical(3),
        p_z=StandardNormal(K),
        p_x_given_zy=ConditionalNormal(ConditionalMLP(K, 3, (4,), (2, D), embed=OneHot(3))),
        q_y_given_x=ConditionalCategorical(MLP(D, (4,), 3), num_classes=3),
        q_z_given_xy=ConditionalNormal(net),
    )
    diagnosis = doctor(pair, x(), None)
    assert any(line.startswith("model  y  ") for line in diagnosis.sites)


def test_the_pair_and_the_random_state_stay_as_they_were():
    pair = Own().train()
    before, state = copy.deepcopy(pair.state_dict()), torch.get_rng_state()
    first, again = (doctor(pair, x(), seed=3).findings for _ in range(2))
    assert [f for f in first if "ms" not in f.text] == [f for f in again if "ms" not in f.text]
    assert pair.training
    assert all(p.grad is None for p in pair.parameters())
    assert all(torch.equal(before[name], value) for name, value in pair.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert ppvae.doctor is doctor


def test_bad_input_is_named():
    with pytest.raises(TypeError, match="pair"):
        doctor(lambda x: x, x())
    with pytest.raises(TypeError, match="compile must be"):
        doctor(PPCA(D, K), x(), compile="yes")
    assert any("takes 1 (x), got 2" in text for text in texts(doctor(Own(), x(), x()), "wrong"))
