"""The report on the latents against closed forms of linear-Gaussian pairs."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import Planar
from torch import nn
from torch.distributions import kl_divergence

import ppvae
from ppvae.evaluate.latents import latent_report
from ppvae.models import PPCA
from tests.reference import (
    REFERENCES,
    LinearGaussian,
    autoguide,
    concatenating,
    hierarchy,
    linear_gaussian,
    masked_series,
    mixture,
)


class Lines(nn.Module):
    """z ~ N(0, I), x ~ N(c z, 1) in each of three dimensions; q(z|x) = N(a x + b, t²) in each: a = 0 is a dead unit."""

    def __init__(self, a=(0.6, 0.3, 0.0), b=(0.0, 0.4, 0.0), t=(0.5, 0.9, 1.0)):
        super().__init__()
        self.a, self.b, self.t = (torch.tensor(v, dtype=torch.float64) for v in (a, b, t))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z * (self.a > 0), 1.0).to_event(1), obs=x)

    def q(self, x):
        return dist.Normal(self.a * x + self.b, self.t.expand(x.shape))

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.q(x).to_event(1))


def lines(n=600, **options):
    generator = torch.Generator().manual_seed(0)
    return Lines(**options), 2 * torch.randn(n, 3, generator=generator, dtype=torch.float64)


def test_kl_per_dimension_and_active_units():
    pair, x = lines()
    site = latent_report(pair, x, num_samples=20).sites["z"]
    exact = kl_divergence(pair.q(x), dist.Normal(torch.zeros(3), 1.0))
    torch.testing.assert_close(site.kl_per_dim, exact.mean(0), rtol=0, atol=0.03)
    torch.testing.assert_close(site.kl, exact.sum(1), rtol=0, atol=2.0)
    assert float(site.kl.mean()) == pytest.approx(float(site.kl_per_dim.sum()))
    torch.testing.assert_close(site.mean_variance, (pair.a * x).var(0))
    assert site.active.tolist() == [True, True, False]
    assert not site.collapsed


def test_information_and_marginal_kl_of_a_gaussian_population():
    """Over many x ~ N(0, 4) q(z) is normal: I = ½ log(1 + 4a²/t²) and KL(N(b, 4a² + t²) ‖ N(0, 1)) in each dim."""
    pair, x = lines(1500)
    report = latent_report(pair, x, num_samples=4)
    variance = 4 * pair.a**2 + pair.t**2
    information = 0.5 * (variance / pair.t**2).log().sum()
    marginal = kl_divergence(dist.Normal(pair.b, variance.sqrt()), dist.Normal(0.0, 1.0)).sum()
    site = report.sites["z"]
    assert site.mutual_information == pytest.approx(float(information), abs=0.05)
    assert site.marginal_kl == pytest.approx(float(marginal), abs=0.05)
    assert site.mutual_information + site.marginal_kl == pytest.approx(float(site.kl.mean()))
    assert report.mutual_information == pytest.approx(site.mutual_information)
    torch.testing.assert_close(report.kl, site.kl)


def test_the_aggregated_posterior_is_the_mixture_over_all_data(monkeypatch):
    """The two parts by brute force at one draw per datum, in blocks of a few rows."""
    monkeypatch.setattr("ppvae.sampling.sampler.ROW_BLOCK", {"cpu": 30, "cuda": 30})
    pair, x = lines(23)
    site = latent_report(pair, x, num_samples=2).sites["z"]
    report = latent_report(pair, x, num_samples=300)
    z = pair.q(x).sample((2000,))
    q = pair.q(x).log_prob(z).sum(-1)
    mixed = pair.q(x).log_prob(z.unsqueeze(-2)).sum(-1).logsumexp(-1) - math.log(23)
    assert report.mutual_information == pytest.approx(float((q - mixed).mean()), abs=0.04)
    assert report.marginal_kl == pytest.approx(
        float((mixed - dist.Normal(0.0, 1.0).log_prob(z).sum(-1)).mean()), abs=0.04
    )
    assert site.posterior.shape == site.prior.shape == (23, 3)


def test_information_is_at_most_log_n():
    pair, x = lines(20, t=(1e-4, 1e-4, 1.0))
    report = latent_report(pair, x)
    assert report.mutual_information == pytest.approx(math.log(20), abs=1e-3)
    assert "I(x; z) is at its bound, log n = 2.996: over more data it would be larger" in report.summary()
    assert "bound" not in latent_report(*lines(200)).summary()


def test_a_site_that_has_collapsed_is_named():
    pair, x = lines(a=(0.0, 0.0, 0.0), b=(0.0, 0.0, 0.0), t=(1.0, 1.0, 1.0))
    report = latent_report(pair, x)
    assert report.collapsed == ["z"]
    assert "z has collapsed: KL 0.000 nats, 0 of 3 units active, I(x; z) 0.000 nats" in report.summary()
    assert "no site" not in report.summary()
    healthy = latent_report(*lines())
    assert healthy.collapsed == []
    assert "no site has collapsed" in healthy.summary()
    assert "2 of 3 units active" in healthy.summary()


def test_a_prior_that_is_missed_is_no_information():
    """The KL is large, but q(z|x) is the same for every x."""
    pair, x = lines(a=(0.0, 0.0, 0.0), b=(2.0, 0.0, 0.0), t=(0.5, 1.0, 1.0))
    report = latent_report(pair, x)
    assert report.marginal_kl > 1
    assert abs(report.mutual_information) < 1e-9
    assert report.collapsed == ["z"]


class Widths(nn.Module):
    """A posterior whose mean is always zero but whose width tells x."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z.abs(), 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, x.exp()))


def test_information_without_an_active_unit_is_no_collapse():
    site = latent_report(Widths(), torch.linspace(-2, 2, 100)).sites["z"]
    assert not site.active.any()
    assert site.mutual_information > 0.2
    assert not site.collapsed


class TwoLevels(nn.Module):
    """Z1 takes part, z2 is its prior's: q(z2|z1) = N(w z1, 1), and the posterior mean of z2 is w times that of z1."""

    def __init__(self, w=0.0):
        super().__init__()
        self.w = w

    def model(self, x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(self.w * z2, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z1, 0.5).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(0.8 * x, 0.4).to_event(1))
            pyro.sample("z2", dist.Normal(self.w * z1, 1.0).to_event(1))


def test_of_two_levels_the_one_that_has_collapsed():
    x = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    report = latent_report(TwoLevels(), x)
    assert report.collapsed == ["z2"]
    assert "z2 has collapsed: KL 0.000 nats, 0 of 2 units active" in report.summary()
    assert report.sites["z1"].mutual_information + report.sites["z1"].marginal_kl == pytest.approx(
        float(report.sites["z1"].kl.mean()), rel=1e-4
    )


def test_a_site_given_another_has_no_marginal_of_its_own():
    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    report = latent_report(TwoLevels(0.5), x, num_samples=20)
    z1, z2 = report.sites["z1"], report.sites["z2"]
    assert math.isnan(z2.mutual_information)  # q(z2|x) is an integral over z1
    assert math.isnan(z1.marginal_kl)  # p(z1|z2) is no marginal
    assert z1.mutual_information > 0.5
    torch.testing.assert_close(z2.mean_variance, (0.4 * x).double().var(0), rtol=0, atol=0.02)
    torch.testing.assert_close(z1.mean_variance, (0.8 * x).double().var(0))
    assert report.mutual_information + report.marginal_kl == pytest.approx(float(report.kl.mean()))
    torch.testing.assert_close(report.kl, z1.kl + z2.kl)
    assert "nan" not in report.summary()


def test_draws_of_a_dead_unit_do_not_make_it_active():
    """Without a known mean the draws stand for it; their own error, 1/s, is far above the threshold."""

    class Flow(TwoLevels):
        def guide(self, x):
            with pyro.plate("data", len(x)):
                z1 = pyro.sample("z1", dist.Normal(0.8 * x, 0.4).to_event(1))
                base = dist.Normal(0.0 * z1, 1.0).to_event(1)
                pyro.sample("z2", dist.TransformedDistribution(base, [torch.distributions.AffineTransform(0.0, 1.0)]))

    x = torch.randn(3000, 2, generator=torch.Generator().manual_seed(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "ppvae.evaluate.latents.log_aggregated", lambda c, draws: {}
        )  # it takes long, and is not looked at
        report = latent_report(Flow(), x, num_samples=10)
    assert report.sites["z2"].kl_per_dim is None
    assert not report.sites["z2"].active.any()
    assert report.sites["z1"].active.all()


def test_classes():
    reference = mixture()
    report = latent_report(reference.pair, *reference.data, num_samples=2000)
    site = report.sites["y"]
    q = 0.8 * reference.pair.joint(*reference.data).softmax(-1).detach() + 0.2 / 3
    marginal = q.mean(0)
    information = (q * (q / marginal).log()).sum(-1).mean()
    assert site.mutual_information == pytest.approx(float(information), abs=0.02)
    expected = (marginal * (marginal / reference.pair.probs).log()).sum()
    assert site.marginal_kl == pytest.approx(float(expected), abs=0.02)
    assert site.active is None
    assert not site.collapsed
    assert site.posterior.shape == (11,)


def test_nested_plates_are_summed():
    reference = masked_series()
    report = latent_report(reference.pair, *reference.data, num_samples=500)
    terms = ppvae.elbo(reference.pair, *reference.data, num_samples=2000)
    for name, site in report.sites.items():
        torch.testing.assert_close(site.kl, terms.kl[name], rtol=0, atol=0.3)
        assert float(site.kl.mean()) == pytest.approx(float(terms.kl[name].mean()), abs=0.05)
    assert report.sites["w"].kl_per_dim is None
    assert report.sites["w"].active is None
    assert report.sites["z"].active.all()


def test_a_mask_is_part_of_every_dimension():
    class Masked(Lines):
        def model(self, x):
            with pyro.poutine.mask(mask=x[:, 0] > 0):
                super().model(x)

        def guide(self, x):
            with pyro.poutine.mask(mask=x[:, 0] > 0):
                super().guide(x)

    _, x = lines(200)
    site = latent_report(Masked(), x).sites["z"]
    assert (site.kl[x[:, 0] <= 0] == 0).all()
    assert float(site.kl.mean()) == pytest.approx(float(site.kl_per_dim.sum()))


@pytest.mark.parametrize("lacking", [True, False])
def test_a_latent_that_some_data_lack_has_no_information_of_its_own(lacking):
    """Q(z|x_j) is no density where datum j has no such latent; of the others nothing changes."""

    def masked(x, has):
        return pyro.poutine.mask(mask=has)

    def model(x, has):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            with masked(x, has):
                pyro.sample("u", dist.Normal(0.0, 100.0))

    def guide(x, has):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
            with masked(x, has):
                pyro.sample("u", dist.Normal(0.0, 100.0))

    x = torch.randn(50)
    has = torch.arange(50) >= (25 if lacking else 0)
    report = latent_report(ppvae.Pair(model, guide), x, has)
    assert report.sites["z"].mutual_information > 0.1
    if lacking:
        assert all(math.isnan(value) for value in (report.mutual_information, report.sites["u"].marginal_kl))
    else:
        assert report.sites["u"].mutual_information == pytest.approx(0.0, abs=1e-6)
        assert report.mutual_information == pytest.approx(report.sites["z"].mutual_information)


@pytest.mark.parametrize("name", REFERENCES)
def test_any_pair_has_a_report_whose_parts_add_up(name):
    reference = REFERENCES[name]()
    report = latent_report(reference.pair, *reference.data, num_samples=200)
    if name == "masked_series":  # whose data have latents of their own number each
        assert math.isnan(report.mutual_information)
        assert "nats (its parts are not known: " in report.summary()
    else:
        assert report.mutual_information + report.marginal_kl == pytest.approx(float(report.kl.mean()), abs=1e-6)
        assert report.mutual_information <= math.log(11) + 0.05
    expected = ppvae.elbo(reference.pair, *reference.data, num_samples=500)
    kl = float(sum(expected.kl.values()).mean())
    assert float(report.kl.mean()) == pytest.approx(kl, abs=0.1 + 0.05 * kl)


def test_the_form_of_the_pair_changes_nothing():
    repeated, plated = (
        latent_report(make().pair, torch.linspace(-2, 2, 30)) for make in (concatenating, linear_gaussian)
    )
    torch.testing.assert_close(repeated.sites["z"].mean_variance[0], plated.sites["z"].mean_variance)
    assert repeated.mutual_information == pytest.approx(plated.mutual_information, abs=0.1)


def test_an_autoguide_s_delta_has_no_kl_of_its_own():
    reference = autoguide()
    report = latent_report(reference.pair, *reference.data)
    assert report.sites["z"].kl.isnan().all()
    assert report.sites["z"].kl_per_dim is None
    assert report.mutual_information > 0
    assert "nan" not in report.summary()


def test_a_guide_that_cannot_score_other_values_has_a_kl_all_the_same():
    torch.manual_seed(0)
    planar = Planar(2)

    class OfPlanar(TwoLevels):
        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z1", dist.TransformedDistribution(dist.Normal(0.8 * x, 0.4).to_event(1), [planar]))
                pyro.sample("z2", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    report = latent_report(OfPlanar(), torch.randn(50, 2))
    assert math.isnan(report.mutual_information)
    assert bool(report.kl.isfinite().all())
    assert report.sites["z1"].active.all()
    assert report.collapsed == ["z2"]


def test_draws_are_of_the_seed_and_the_global_state_stays():
    reference = hierarchy()
    before = torch.get_rng_state()
    first, again, other = (latent_report(reference.pair, *reference.data, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.kl, again.kl)
    assert not torch.equal(first.kl, other.kl)


@pytest.mark.parametrize(
    ("run", "error", "message"),
    [
        (lambda: latent_report(PPCA(4, 2), torch.zeros(0, 4)), ValueError, "empty"),
        (lambda: latent_report(PPCA(4, 2), torch.zeros(1, 4)), ValueError, "at least 2 data.*got 1"),
        (
            lambda: latent_report(PPCA(4, 2), torch.zeros(5, 4), num_samples=0),
            ValueError,
            "num_samples must be a whole",
        ),
        (lambda: latent_report(PPCA(4, 2), torch.zeros(5, 4), num_samples=1), ValueError, "num_samples must be at"),
        (lambda: latent_report(nn.Linear(2, 2), torch.zeros(5, 4)), TypeError, "pair must be"),
    ],
)
def test_wrong_arguments(run, error, message):
    with pytest.raises(error, match=message):
        run()


def test_a_mask_of_the_distribution_itself_leaves_a_latent_out_too():
    def model(x, has):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).mask(has))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, has):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).mask(has))

    x = torch.randn(40, generator=torch.Generator().manual_seed(0))
    some, every = (
        latent_report(ppvae.Pair(model, guide), x, has).sites["z"] for has in (x > 0, torch.ones(40, dtype=torch.bool))
    )
    assert math.isnan(some.mutual_information)
    assert not math.isnan(every.mutual_information)


def test_a_datum_that_is_not_a_number_is_named():
    x = torch.randn(30)
    x[17] = float("nan")
    with pytest.raises(ValueError, match=r"data\[0\] holds NaN or infinite values, first in row 17"):
        latent_report(LinearGaussian(), x)


@pytest.mark.parametrize("where", ["inside the event", "around it"])
def test_the_dimensions_of_a_masked_distribution(where):
    """What the mask of a distribution leaves out counts for nothing, and the dimensions sum to the KL."""

    def masked(normal, x):
        if where == "inside the event":
            return normal.mask(torch.tensor([True, False])).to_event(1)
        return normal.to_event(1).mask(x[:, 0] > 0)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", masked(dist.Normal(torch.zeros(len(x), 2), 1.0), x))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", masked(dist.Normal(x / 2, 0.8), x))

    torch.manual_seed(0)
    site = latent_report(ppvae.Pair(model, guide), torch.randn(40, 2)).sites["z"]
    assert float(site.kl_per_dim.sum()) == pytest.approx(float(site.kl.mean()), abs=1e-5)
    assert (float(site.kl_per_dim[1]) == 0) == (where == "inside the event")
