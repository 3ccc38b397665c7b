import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO

import ppvae
from ppvae.distributions import ConditionalNormal, StandardNormal
from ppvae.evaluate import Annealed, Importance, ParetoWarning, bound_curve, pareto_k
from ppvae.evaluate.estimates import standard_error
from ppvae.models import PPCA, VAE
from ppvae.nn import MLP
from ppvae.sampling.importance import importance_draws
from tests.models.by_hand import C
from tests.models.linear_gaussian import LinearGaussian as LabelledLinearGaussian
from tests.reference import REFERENCES, linear_gaussian, ppca


@pytest.mark.parametrize("name", REFERENCES)
def test_log_marginal_is_exact_within_its_error(name):
    reference = REFERENCES[name]()
    estimate = ppvae.log_marginal(reference.pair, *reference.data, num_samples=3000)
    assert ((estimate.values - reference.log_prob) / estimate.std_error).abs().max() < 4
    assert (estimate.std_error < 0.2).all()
    assert (estimate.ess >= 1).all()
    assert (estimate.ess <= 3000).all()


def test_error_falls_as_one_over_the_root_of_the_samples():
    reference = ppca()
    x, exact = reference.data[0].repeat(100, 1), reference.log_prob.repeat(100)
    log_s, log_error = [], []
    for s in (20, 80, 320):
        estimate = ppvae.log_marginal(reference.pair, x, num_samples=s)
        log_s.append(math.log(s))
        log_error.append(math.log(float(((estimate.values - exact) ** 2).mean().sqrt())))
    mean_s, mean_error = sum(log_s) / 3, sum(log_error) / 3
    covariance = sum((a - mean_s) * (b - mean_error) for a, b in zip(log_s, log_error, strict=True))
    assert covariance / sum((a - mean_s) ** 2 for a in log_s) == pytest.approx(-0.5, abs=0.05)


def test_standard_error_is_calibrated():
    reference = linear_gaussian()
    x, exact = reference.data[0][:4].repeat(500), reference.log_prob[:4].repeat(500)
    estimate = ppvae.log_marginal(reference.pair, x, num_samples=400)
    z = (estimate.values - exact) / estimate.std_error
    assert float(z.var()) == pytest.approx(1.0, abs=4 * math.sqrt(2 / len(z)) + 0.05)
    terms = ppvae.elbo(reference.pair, x, num_samples=400)
    exact_elbo = elbo_of_linear_gaussian(reference.pair, x)
    z = (terms.values - exact_elbo) / terms.std_error
    assert float(z.var()) == pytest.approx(1.0, abs=0.2)
    assert float(z.mean()) == pytest.approx(0.0, abs=4 / math.sqrt(len(z)) + 0.05)


@torch.no_grad()
def elbo_of_linear_gaussian(pair, x):
    mean, variance = (pair.a * x + pair.b).double(), (2 * pair.log_t).exp().double()
    noise = (2 * pair.log_s).exp().double()
    residual = (x - pair.d - pair.c * mean) ** 2 + pair.c**2 * variance
    reconstruction = -0.5 * (residual / noise + noise.log() + math.log(2 * math.pi))
    return reconstruction - 0.5 * (variance + mean**2 - 1 - variance.log())


def test_bounds_rise_to_log_p():
    reference = ppca()
    x, exact = reference.data[0].repeat(400, 1), float(reference.log_prob.mean())
    means = [float(ppvae.elbo(reference.pair, x, num_samples=1).values.mean())]
    means += [ppvae.log_marginal(reference.pair, x, num_samples=k).mean() for k in (2, 5, 20, 80)]
    assert means == sorted(means)
    assert means[-1] <= exact + 1e-3
    assert exact - means[-1] < 0.1 * (exact - means[0])


def test_one_sample_of_log_marginal_is_one_of_the_elbo():
    reference = ppca()
    one = ppvae.log_marginal(reference.pair, *reference.data, num_samples=1)
    terms = ppvae.elbo(reference.pair, *reference.data, num_samples=1)
    torch.testing.assert_close(one.values, terms.values)
    assert one.std_error.isnan().all()
    assert terms.std_error.isnan().all()
    assert torch.equal(one.ess, torch.ones(11).double())


@pytest.mark.parametrize("num_samples", [2, 257, 1000])
def test_exact_posterior(num_samples):
    reference = ppca(guide="exact")
    estimate = ppvae.log_marginal(reference.pair, *reference.data, num_samples=num_samples)
    terms = ppvae.elbo(reference.pair, *reference.data, num_samples=num_samples)
    torch.testing.assert_close(estimate.values, reference.log_prob, rtol=0, atol=1e-4)
    torch.testing.assert_close(terms.values, reference.log_prob, rtol=0, atol=1e-4)
    torch.testing.assert_close(estimate.ess, torch.full((11,), num_samples).double(), rtol=1e-4, atol=0)
    assert estimate.std_error.max() < 1e-4
    assert terms.std_error.max() < 1e-4


def test_elbo_terms_add_up_and_match_closed_forms():
    reference = ppca()
    x = reference.data[0]
    terms = ppvae.elbo(reference.pair, x, num_samples=4000)
    torch.testing.assert_close(terms.values, terms.reconstruction - terms.kl["z"])
    q_z = reference.pair.encode(x)
    kl = 0.5 * (q_z.variance + q_z.mean**2 - 1 - q_z.variance.log()).sum(-1)
    torch.testing.assert_close(terms.kl["z"], kl.double().detach(), rtol=0, atol=0.15)
    both = ppvae.elbo(REFERENCES["hierarchy"]().pair, *REFERENCES["hierarchy"]().data, num_samples=5)
    assert set(both.kl) == {"z1", "z2"}
    torch.testing.assert_close(both.values, both.reconstruction - both.kl["z1"] - both.kl["z2"])


# Scales.


def vae(beta):
    torch.manual_seed(0)
    likelihood = ConditionalNormal(MLP(2, (4,), 5), scale="learned")
    return VAE(StandardNormal(2), likelihood, ConditionalNormal(MLP(5, (4,), (2, 2))), beta=beta)


def loss_of(pair, x):
    torch.manual_seed(1)
    return Trace_ELBO().differentiable_loss(pair.model, pair.guide, x).item()


def test_beta_changes_the_loss_and_not_the_likelihood():
    x = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    one, four = vae(1.0), vae(4.0)
    assert loss_of(four, x) != pytest.approx(loss_of(one, x))
    assert torch.equal(*(ppvae.log_marginal(p, x, num_samples=20).values for p in (one, four)))
    assert torch.equal(*(ppvae.elbo(p, x, num_samples=20).values for p in (one, four)))
    terms = ppvae.elbo(four, x, num_samples=20)
    assert torch.equal(terms.kl["z"], ppvae.elbo(one, x, num_samples=20).kl["z"])
    zero = vae(0.0)
    assert torch.equal(
        ppvae.log_marginal(zero, x, num_samples=20).values, ppvae.log_marginal(one, x, num_samples=20).values
    )


@pytest.mark.parametrize("scale", [ppvae.KLWeight(3.0), ppvae.KLWeight(torch.tensor(0.1)), poutine.scale(scale=7.0)])
def test_scales_from_outside_are_ignored(scale):
    reference = ppca()
    expected = ppvae.log_marginal(reference.pair, *reference.data, num_samples=20).values
    loss = loss_of(reference.pair, *reference.data)
    with scale:
        assert torch.equal(ppvae.log_marginal(reference.pair, *reference.data, num_samples=20).values, expected)
        assert loss_of(reference.pair, *reference.data) != pytest.approx(loss)


# Weights that are no numbers.


def weighted(log_weight_of):
    """A pair whose log weight is `log_weight_of(z)`, z ~ N(0, 1), for every datum but the first, where it is 0."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("x", torch.where(x > 0, log_weight_of(z), 0.0))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))

    return ppvae.Pair(model, guide)


def test_all_weights_zero():
    x = torch.arange(7)
    estimate = ppvae.log_marginal(weighted(lambda z: torch.full_like(z, -math.inf)), x, num_samples=600)
    assert estimate.values[0] == 0
    assert (estimate.values[1:] == -math.inf).all()
    assert estimate.ess[1:].isnan().all()
    assert estimate.std_error[1:].isnan().all()
    assert estimate.ess[0] == 600
    terms = ppvae.elbo(weighted(lambda z: torch.full_like(z, -math.inf)), x, num_samples=600)
    assert (terms.values[1:] == -math.inf).all()
    assert terms.std_error[1:].isnan().all()
    assert terms.values[0] == 0
    assert "-inf" in estimate.summary()


def test_some_weights_zero():
    x = torch.arange(7)
    pair = weighted(lambda z: torch.where(z > 1, 0.0, -math.inf))
    estimate = ppvae.log_marginal(pair, x, num_samples=4000)
    assert estimate.values[0] == 0
    exact = math.log(0.5 * math.erfc(1 / math.sqrt(2)))
    assert ((estimate.values[1:] - exact) / estimate.std_error[1:]).abs().max() < 4
    torch.testing.assert_close(estimate.ess, 4000 * estimate.values.exp())
    terms = ppvae.elbo(pair, x, num_samples=4000)
    assert (terms.values[1:] == -math.inf).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_nan_or_infinite_are_named(bad):
    for estimate in (ppvae.elbo, ppvae.log_marginal):
        with (
            pytest.raises(ValueError, match=rf"datum 1 is {bad:g}, because log p\(x\|z\) = {bad:g}"),
            pyro.validation_enabled(False),
        ):
            estimate(weighted(lambda z: torch.full_like(z, bad)), torch.arange(7), num_samples=6)


def test_weights_far_from_zero_do_not_overflow():
    x = torch.arange(7)
    estimate = ppvae.log_marginal(weighted(lambda z: z - 1e5), x, num_samples=3000)
    error = (estimate.values[1:] - (0.5 - 1e5)) / estimate.std_error[1:]
    assert error.abs().max() < 5
    terms = ppvae.elbo(weighted(lambda z: torch.full_like(z, -1e6)), x, num_samples=3000)
    assert terms.std_error.max() < 1e-9


# How far to trust them.


def with_guide_scale(factor):
    """A linear pair whose posterior is N(m, σ²) and whose guide is N(m, (factor σ)²)."""
    reference = linear_gaussian()
    with torch.no_grad():
        reference.pair.log_t.add_(math.log(factor / 1.3))
    return reference


@pytest.mark.parametrize(("factor", "k"), [(0.1, 0.99), (0.3, 0.91)])
def test_a_guide_with_too_light_tails_is_flagged(factor, k):
    """Its weights have the tail index k = 1 − factor², which they approach slowly, from below."""
    reference = with_guide_scale(factor)
    with pytest.warns(ParetoWarning) as record:
        estimate = ppvae.log_marginal(reference.pair, *reference.data, num_samples=4000)
    assert k - 0.15 < float(estimate.pareto_k.mean()) < k
    flagged = estimate.diagnostics.num_unreliable()
    assert flagged == int((estimate.pareto_k > 0.7).sum()) >= 8
    (warning,) = record
    assert f"k̂ > 0.7 for {flagged} of 11 data" in str(warning.message)
    assert "guide" in str(warning.message)
    assert warning.filename == __file__
    assert str(warning.message) in estimate.summary()
    assert (estimate.values < reference.log_prob).sum() >= 8  # which is why


@pytest.mark.parametrize("factor", [1.0, 1.3, 2.0])
def test_a_guide_with_heavy_enough_tails_is_not(factor):
    reference = with_guide_scale(factor)
    with warnings.catch_warnings(action="error"):
        estimate = ppvae.log_marginal(reference.pair, *reference.data, num_samples=4000)
    assert estimate.diagnostics.num_unreliable() == 0
    assert estimate.pareto_k.max() < 0.5
    assert f"k̂ ≤ 0.7 for all data, most {float(estimate.pareto_k.max()):.2f}" in estimate.summary()


def test_few_samples_say_nothing_about_tails():
    reference = with_guide_scale(0.3)
    with warnings.catch_warnings(action="error"):
        estimate = ppvae.log_marginal(reference.pair, *reference.data, num_samples=99)
    assert estimate.pareto_k.isnan().all()
    assert estimate.diagnostics.num_unreliable() == 0
    assert "no k̂, which takes at least 100 samples" in estimate.summary()


def test_weights_that_are_all_zero_are_flagged():
    with pytest.warns(ParetoWarning, match="k̂ > 0.7 for 6 of 7 data, most inf"):
        estimate = ppvae.log_marginal(weighted(lambda z: torch.full_like(z, -math.inf)), torch.arange(7))
    assert estimate.pareto_k.tolist() == [-math.inf] + [math.inf] * 6


@pytest.mark.parametrize("name", ["ppca", "hierarchy", "masked_series", "concatenating"])
def test_diagnostics_are_those_of_all_weights(name):
    reference = REFERENCES[name]()
    estimate = ppvae.log_marginal(reference.pair, *reference.data, num_samples=700, seed=5)
    draws = importance_draws(reference.pair, reference.data, num_samples=700, seed=5)
    log_weight = torch.cat([block.log_weight() for block in draws]).double()
    assert log_weight.shape == (700, 11)
    torch.testing.assert_close(estimate.pareto_k, pareto_k(log_weight))
    torch.testing.assert_close(estimate.diagnostics.bound, bound_curve(log_weight))
    assert torch.equal(estimate.diagnostics.bound[700], estimate.values)
    terms = ppvae.elbo(reference.pair, *reference.data, num_samples=700, seed=5)
    torch.testing.assert_close(estimate.diagnostics.bound[1], terms.values)


def test_bound_is_that_of_fewer_samples():
    reference = ppca()
    x, exact = reference.data[0].repeat(100, 1), float(reference.log_prob.mean())
    estimate = ppvae.log_marginal(reference.pair, x, num_samples=200)
    assert list(estimate.diagnostics.bound) == [1, 2, 5, 10, 20, 50, 100, 200]
    means = [float(bound.mean()) for bound in estimate.diagnostics.bound.values()]
    assert means == sorted(means)
    assert means[-1] == pytest.approx(exact, abs=0.02)
    for size in (2, 20):
        fewer = ppvae.log_marginal(reference.pair, x, num_samples=size, seed=1).values
        assert float((estimate.diagnostics.bound[size] - fewer).mean()) == pytest.approx(
            0.0, abs=4 * standard_error(fewer)
        )
    assert f"{means[-2]:.3f} (K = 100), {means[-1]:.3f} (K = 200)" in estimate.summary()


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_diagnostics_do_not_depend_on_the_chunks(batch_size):
    reference = REFERENCES["hierarchy"]()
    one = ppvae.log_marginal(reference.pair, *reference.data, num_samples=300)
    other = ppvae.log_marginal(reference.pair, *reference.data, num_samples=300, batch_size=batch_size)
    torch.testing.assert_close(other.pareto_k, one.pareto_k)
    torch.testing.assert_close(other.diagnostics.bound, one.diagnostics.bound)


def test_more_data_than_one_block():
    """One datum more or less moves no other's diagnostics."""
    reference = ppca()
    x = reference.data[0].repeat(30, 1)
    many = ppvae.log_marginal(reference.pair, x, num_samples=300)
    assert len(many.values) == len(many.pareto_k) == len(many.diagnostics.bound[1]) == 330
    torch.testing.assert_close(many.diagnostics.bound[300], many.values)
    draws = importance_draws(reference.pair, (x,), num_samples=300)
    blocks = {}
    for block in draws:
        blocks.setdefault(block.start, []).append(block.log_weight().double())
    assert len(blocks) > 1
    expected = torch.cat([pareto_k(torch.cat(block)) for block in blocks.values()])
    torch.testing.assert_close(many.pareto_k, expected)


def test_a_latent_that_is_summed_over_leaves_one_weight():
    """The guide's q(z|x, y) is exact, so each sample's Σ_y is p(x) itself."""
    story = LabelledLinearGaussian(sees_label=True)
    torch.manual_seed(0)
    pair = story.pair(alpha=7.0)
    x = pair.sample(torch.arange(9) % C)
    estimate = ppvae.log_marginal(pair, x, num_samples=200)
    exact = story.log_joint(x).logsumexp(-1)
    for bound in estimate.diagnostics.bound.values():
        torch.testing.assert_close(bound, exact, rtol=0, atol=1e-4)
    assert (estimate.pareto_k < 0.7).all()


@pytest.mark.parametrize("method", ["nope", Importance, None])
def test_method_is_checked(method):
    with pytest.raises(ValueError, match=r"method must be one of 'importance', .* or an Es") as error:
        ppvae.log_marginal(ppca().pair, *ppca().data, method=method)
    assert str(error.value).endswith(f"got {method!r}")


def test_options_of_a_method_live_on_its_object():
    reference = ppca()
    by_name = ppvae.log_marginal(reference.pair, *reference.data, num_samples=20, seed=3)
    estimate = ppvae.log_marginal(reference.pair, *reference.data, method=Importance(num_samples=20), seed=3)
    assert torch.equal(estimate.values, by_name.values)
    assert Importance() == Importance(num_samples=1000)
    with pytest.raises(ValueError, match="num_samples must be a whole number >= 1, got 0"):
        Importance(num_samples=0)
    for method in (Importance(), Annealed(start="prior")):
        with pytest.raises(ValueError, match="num_samples=7 belongs on the method, which is an object") as error:
            ppvae.log_marginal(reference.pair, *reference.data, method=method, num_samples=7)
        assert f"like method={type(method).from_num_samples(7)}" in str(error.value)


# The results.


def test_summaries():
    reference = ppca()
    estimate = ppvae.log_marginal(reference.pair, *reference.data, num_samples=50)
    assert estimate.mean() == pytest.approx(float(estimate.values.mean()))
    assert estimate.mean_std_error() == pytest.approx(float(estimate.values.std()) / math.sqrt(11))
    assert estimate.bits_per_dim() == pytest.approx(-estimate.mean() / 6 / math.log(2))
    assert estimate.num_dims == 6
    assert estimate.diagnostics.settings() == {"num_samples": 50}
    for number in (f"{estimate.mean():.3f}", f"{estimate.mean_std_error():.3f}", "over 11 data", "50 importance"):
        assert number in estimate.summary()
    assert {t.dtype for t in (estimate.values, estimate.std_error, estimate.ess)} == {torch.float64}
    assert math.isnan(standard_error(torch.ones(1)))
    terms = ppvae.elbo(reference.pair, *reference.data, num_samples=3)
    assert terms.mean() == pytest.approx(float(terms.values.mean()))
    assert terms.num_samples == 3


def test_progress_goes_to_stderr(capfd):
    reference = ppca()
    quiet = ppvae.log_marginal(reference.pair, *reference.data, num_samples=50)
    assert capfd.readouterr() == ("", "")
    shown = ppvae.log_marginal(reference.pair, *reference.data, num_samples=50, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "log p(x)" in err
    assert torch.equal(shown.values, quiet.values)


def test_larger_models_agree_with_their_exact_value():
    torch.manual_seed(0)
    pair = PPCA(64, 10)
    x = pair.sample(5)
    torch.testing.assert_close(
        ppvae.log_marginal(pair, x, num_samples=10).values, pair.log_prob(x).double().detach(), rtol=1e-5, atol=1e-3
    )


def test_one_sample_in_words():
    found = ppvae.log_marginal(PPCA(6, 2), torch.randn(5, 6), num_samples=1).summary()
    assert found.endswith("over 5 data; 1 importance sample per datum, exact where all latents are summed over")
    assert "nan" not in found


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"compile": "maybe"}, ValueError, "compile must be True, False or 'auto', got 'maybe'"),
        ({"seed": -1}, ValueError, "seed must be a whole number >= 0, got -1"),
        ({"seed": "a"}, ValueError, "seed must be a whole number >= 0, got 'a'"),
        ({"given": 3}, TypeError, "given must be a list of names of observed sites, got 3"),
    ],
)
def test_options_are_checked(options, kind, message):
    with pytest.raises(kind, match=message):
        ppvae.log_marginal(PPCA(6, 2), torch.randn(5, 6), num_samples=3, **options)


def test_the_elbo_in_words():
    terms = ppvae.elbo(PPCA(6, 2), torch.randn(5, 6), num_samples=3)
    mean, reconstruction, kl = (float(v.mean()) for v in (terms.values, terms.reconstruction, terms.kl["z"]))
    assert terms.summary() == (
        f"ELBO = {mean:.3f} ± {terms.mean_std_error():.3f} nats, mean ± standard error over 5 data; "
        f"reconstruction {reconstruction:.3f} − KL z {kl:.3f}; 3 draws per datum"
    )
    assert terms.mean_std_error() == pytest.approx(float(terms.values.std() / math.sqrt(5)))


def test_the_kl_of_an_autoguide_is_that_of_the_latent():
    reference = REFERENCES["autoguide"]()
    x, _ = reference.data
    terms = ppvae.elbo(reference.pair, *reference.data, num_samples=20000)
    exact = torch.distributions.kl_divergence(dist.Normal(x / 1.25, 0.6), dist.Normal(0.0, 1.0))
    assert list(terms.kl) == ["z"]
    assert torch.allclose(terms.kl["z"].float(), exact, atol=0.05)
