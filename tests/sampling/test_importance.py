import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import ppvae
from ppvae.distributions import ConditionalNormal, StandardNormal
from ppvae.models import PPCA, VAE
from ppvae.nn import MLP
from ppvae.sampling.eval_mode import evaluating, validation
from ppvae.sampling.importance import importance_draws
from ppvae.sampling.sampler import PROBE_DATA, PROBE_SAMPLES, choose_sampler
from tests.reference import REFERENCES, LinearGaussian, linear_gaussian, ppca

PARTS = {"whole": None, "1": 1, "7": 7, "1000": 1000}


def plain(model_body, guide_body=None):
    """A pair of functions of (x,) that run inside a data plate."""

    def model(x):
        with pyro.plate("data", len(x)):
            model_body(x)

    def guide(x):
        with pyro.plate("data", len(x)):
            (guide_body or (lambda x: pyro.sample("z", dist.Normal(x, 1.0))))(x)

    return ppvae.Pair(model, guide)


def line(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def values(pair, *data, **options):
    return ppvae.log_marginal(pair, *data, **{"num_samples": 20, **options}).values


# Which form.


@pytest.mark.parametrize("name", REFERENCES)
def test_outer_plate_is_used_by_the_pairs_that_broadcast_and_by_no_other(name):
    reference = REFERENCES[name]()
    with evaluating(reference.pair, seed=0):
        chosen = choose_sampler(reference.pair, tuple(t[:PROBE_DATA] for t in reference.data), 100)
    assert (chosen.plate_dim is not None) == reference.broadcasts


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("name", ["wrong_softmax", "concatenating", "masked_series"])
def test_form_is_right_for_few_data(name, n):
    reference = REFERENCES[name]()
    estimate = ppvae.log_marginal(reference.pair, *(t[:n] for t in reference.data), num_samples=2000)
    z = (estimate.values - reference.log_prob[:n]) / estimate.std_error
    assert z.abs().max() < 4


def test_trial_runs_do_not_pass_by_a_coincidence_of_sizes():
    torch.manual_seed(0)
    for width in (PROBE_SAMPLES, PROBE_DATA, 2, 4):
        net = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.Linear(width, 4))
        pair = VAE(StandardNormal(width), ConditionalNormal(net, scale=1.0), ConditionalNormal(MLP(4, (), (2, width))))
        net[1].running_mean.normal_()
        x = torch.randn(9, 4)
        # batch norm takes (n, c, l): with c == n an outer plate runs, wrongly or until the sizes differ
        a = ppvae.log_marginal(pair, x, num_samples=500)
        b = ppvae.log_marginal(pair, x[:PROBE_DATA], num_samples=500)
        error = (a.std_error[:PROBE_DATA] ** 2 + b.std_error**2).sqrt()
        assert ((a.values[:PROBE_DATA] - b.values).abs() / error).max() < 5


def test_outer_plate_that_fails_only_on_some_size_falls_back():
    def body(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        if len(x) == 3 and z.dim() == 3:
            raise RuntimeError("not in this form")
        pyro.sample("x", dist.Normal(z.squeeze(-1), 1.0), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(x.unsqueeze(-1) / 2, 0.8).to_event(1))

    x = torch.linspace(-2, 2, 7)
    estimate = ppvae.log_marginal(plain(body, guide), x, num_samples=1000, batch_size=4)
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x)
    assert ((estimate.values - exact) / estimate.std_error).abs().max() < 4


def test_one_sample_runs_the_pair_as_it_was_written():
    shapes = []

    def body(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        shapes.append(z.shape)
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    ppvae.elbo(plain(body), torch.randn(9), num_samples=1)
    assert shapes == [(5,), (5,), (9,)]


def test_noise_drawn_outside_a_sample_statement_is_not_shared_by_the_samples():
    def guide(x):
        noise = torch.randn(len(x))
        density = dist.Normal(0.0, 1.0).log_prob(noise) - math.log(0.9)
        pyro.sample("z", dist.Delta(x / 2 + 0.9 * noise, log_density=density))

    x = torch.linspace(-2, 2, 7)
    estimate = ppvae.log_marginal(plain(line, guide), x, num_samples=2000)
    assert estimate.ess.max() < 2000
    assert ((estimate.values - dist.Normal(0.0, math.sqrt(2)).log_prob(x)) / estimate.std_error).abs().max() < 4


# Draws.


class Counting(dist.Normal):
    drawn = 0

    def rsample(self, sample_shape=torch.Size()):  # noqa: B008
        value = super().rsample(sample_shape)
        Counting.drawn += value.numel()
        return value


@pytest.mark.parametrize("batch_size", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("num_samples", [1, 2, 255, 257, 5000])
def test_exactly_so_many_draws(num_samples, batch_size):
    pair = plain(line, lambda x: pyro.sample("z", Counting(x, 1.0)))
    Counting.drawn, n = 0, 9
    drawn = [0] * n
    for draws in importance_draws(pair, (torch.randn(n),), num_samples=num_samples, batch_size=batch_size):
        s, m = draws.log_weight().shape
        for i in range(draws.start, draws.start + m):
            drawn[i] += s
    trial = PROBE_DATA * (2 if num_samples == 1 else 2 + PROBE_SAMPLES)
    assert Counting.drawn - trial == n * num_samples
    assert drawn == [num_samples] * n


@pytest.mark.parametrize("name", ["masked_series", "hierarchy", "mixture", "concatenating", "wrong_softmax"])
@pytest.mark.parametrize("num_samples", [1, 300])
def test_chunks_agree_to_rounding(name, num_samples):
    reference = REFERENCES[name]()
    expected = ppvae.log_marginal(reference.pair, *reference.data, num_samples=num_samples)
    for batch_size in (1, 7, 1000):
        got = ppvae.log_marginal(reference.pair, *reference.data, num_samples=num_samples, batch_size=batch_size)
        torch.testing.assert_close(got.values, expected.values, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got.ess, expected.ess, rtol=1e-4, atol=1e-4)


def test_a_datum_s_estimate_does_not_depend_on_the_data_after_it():
    reference = ppca()
    x = reference.data[0].repeat(3, 1)
    rows = 8 * 20  # whole blocks
    assert torch.equal(values(reference.pair, x)[:11], values(reference.pair, x[: min(len(x), rows)])[:11])


def test_seed_and_global_random_state():
    reference = ppca()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = values(reference.pair, *reference.data)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert torch.equal(values(reference.pair, *reference.data), first)
    assert not torch.equal(values(reference.pair, *reference.data, seed=1), first)


# What is left as it was.


def noisy_net(d_in, d_out):
    return nn.Sequential(nn.Linear(d_in, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, d_out))


def test_modes_and_statistics_are_left_alone_and_dropout_is_off():
    torch.manual_seed(0)
    decoder = noisy_net(2, 4)
    pair = VAE(StandardNormal(2), ConditionalNormal(decoder, scale=1.0), ConditionalNormal(MLP(4, (), (2, 2))))
    pair.q_z_given_x.eval()
    decoder[2].eval()
    modes = [m.training for m in pair.modules()]
    state = {k: v.clone() for k, v in pair.state_dict().items()}
    x = torch.randn(20, 4)
    noisy = values(pair, x)
    assert [m.training for m in pair.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in pair.state_dict().items())
    assert torch.equal(values(pair.eval(), x), noisy)


def test_modules_that_the_pair_does_not_own_are_in_eval_mode_too():
    torch.manual_seed(0)
    decoder = noisy_net(2, 4)
    seen = []

    def body(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        loc = decoder(z)
        seen.append(decoder.training)
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    pair = plain(body, lambda x: pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1)))
    state = {k: v.clone() for k, v in decoder.state_dict().items()}
    noisy, x = [], torch.randn(9, 4)
    noisy.append(values(pair, x))
    assert all(m.training for m in decoder.modules())
    assert not any(seen)
    assert all(torch.equal(v, state[k]) for k, v in decoder.state_dict().items())
    decoder.eval()
    assert torch.equal(values(pair, x), noisy[0])
    assert not decoder.training


def test_everything_is_restored_after_an_error():
    reference, x = ppca(), torch.full((4, 6), math.nan)
    settings = pyro.settings.get()
    random = torch.get_rng_state()
    with pytest.raises(ValueError, match="x"):
        values(reference.pair, x)
    with pytest.raises(ValueError, match="x"), pyro.validation_enabled(False):
        values(reference.pair, x)
    assert reference.pair.training
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), random)
    assert pyro.settings.get() == settings
    assert values(reference.pair, *reference.data).isfinite().all()


def test_no_gradients_and_no_parameter_store():
    reference = REFERENCES["pyro_params"]()
    for draws in importance_draws(reference.pair, reference.data, num_samples=3):
        assert not draws.log_weight().requires_grad
    assert not list(reference.pair.parameters())
    assert not list(pyro.get_param_store())


@pytest.mark.parametrize("on", [True, False])
def test_pyro_s_validation_is_the_user_s(on):
    reference = ppca()
    expected = values(reference.pair, *reference.data)
    with pyro.validation_enabled(on):
        before = pyro.settings.get()
        assert torch.equal(values(reference.pair, *reference.data), expected)
        with validation(True):
            assert pyro.settings.get() == before
        with validation(False):
            assert not pyro.settings.get("validate_infer")
        assert pyro.settings.get() == before


# Kinds of data.


def test_dtypes_of_the_user():
    reference = ppca()
    pair = reference.pair.double()
    estimate = values(pair, reference.data[0].double(), num_samples=5)
    assert estimate.dtype == torch.float64
    tokens = torch.arange(6) % 3
    pair = plain(
        lambda x: pyro.sample("x", dist.Categorical(torch.softmax(pyro.sample("z", normal3()), -1)), obs=x),
        lambda x: pyro.sample("z", normal3()),
    )
    torch.testing.assert_close(
        values(pair, tokens, num_samples=20000).exp(), torch.full((6,), 1 / 3).double(), rtol=0.05, atol=0
    )


def normal3():
    return dist.Normal(torch.zeros(3), 1.0).to_event(1)


def test_arguments_may_be_none():
    def model(x, y=None):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(0.3), obs=y)
            pyro.sample("x", dist.Normal(y, 1.0), obs=x)

    def guide(x, y=None):
        with pyro.plate("data", len(x)):
            if y is None:
                pyro.sample("y", dist.Bernoulli(torch.sigmoid(x - 0.5)))

    pair, x, y = ppvae.Pair(model, guide), torch.linspace(-1, 2, 7), torch.ones(7)
    joint = torch.stack([dist.Normal(float(k), 1.0).log_prob(x) + math.log(p) for k, p in enumerate((0.7, 0.3))])
    torch.testing.assert_close(values(pair, x, y), joint[1].double())  # no latent: every weight is p(x, y)
    estimate = ppvae.log_marginal(pair, x, None, num_samples=2000)
    assert ((estimate.values - joint.logsumexp(0)) / estimate.std_error).abs().max() < 4


# Errors.


def broken(which):
    def nothing(x):
        pass

    def latent(x):
        return pyro.sample("z", dist.Normal(0.0, 1.0))

    def extra(x):
        latent(x)
        pyro.sample("u", dist.Normal(0.0, 1.0))

    def uncountable(x):
        y = pyro.sample("y", dist.Poisson(0.5), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(latent(x) + y, 1.0), obs=x)

    def global_latent(x):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def inside_out(x):
        with pyro.plate("time", x.shape[1], dim=-1), pyro.plate("data", len(x), dim=-2):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def sized(x):
        with pyro.plate("data", 40, subsample_size=3):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def as_is(model, guide=nothing):
        return ppvae.Pair(model, guide)

    pairs = {
        "guide misses": (plain(line, nothing), (9,), "misses the latent site 'z'"),
        "guide has more": (plain(line, extra), (9,), "'u', which is no latent of the model"),
        "observes nothing": (plain(latent, latent), (9,), "observes nothing"),
        "uncountable": (plain(uncountable, latent), (9,), "'y' is marked for enumeration, but the values of Poisson"),
        "global latent": (
            as_is(global_latent, lambda x: pyro.sample("b", dist.Normal(0.0, 1.0))),
            (9,),
            "'b' of the guide lies in no plate",
        ),
        "no plate": (as_is(line, latent), (9,), "'z' of the guide lies in no plate"),
        "inner data plate": (as_is(inside_out), (9, 4), "'time' \\(size 4, dim -1\\)"),
        "inner, same size": (as_is(inside_out), (9, 5), "'time' \\(size 5, dim -1\\)"),
        "wrong size": (
            as_is(line, sized),
            (9,),
            "'z' of the guide lies in 'data' \\(size 3, dim -1\\). The plate 'data' takes 3 of 40",
        ),
        "off the support": (plain(lambda x: pyro.sample("x", dist.Bernoulli(0.5), obs=x), nothing), (9,), "site 'x'"),
    }
    return pairs[which]


@pytest.mark.parametrize("num_samples", [1, 20])
@pytest.mark.parametrize(
    "which",
    [
        "guide misses",
        "guide has more",
        "observes nothing",
        "uncountable",
        "global latent",
        "no plate",
        "inner data plate",
        "inner, same size",
        "wrong size",
        "off the support",
    ],
)
def test_pair_that_breaks_the_contract(which, num_samples):
    pair, shape, message = broken(which)
    with pytest.raises(ValueError, match=message):
        values(pair, torch.randn(shape) + 3, num_samples=num_samples)


def test_value_off_the_support_in_a_late_block():
    pair = plain(lambda x: pyro.sample("x", dist.Bernoulli(0.5), obs=x), lambda x: None)
    x = torch.ones(5000)
    x[4321] = 0.5
    with pytest.raises(ValueError, match="site 'x'"):
        values(pair, x, num_samples=2)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((), ValueError, "at least one tensor"),
        ((None,), ValueError, "at least one tensor"),
        ((torch.zeros(0, 6),), ValueError, "empty"),
        ((torch.zeros(3, 6), torch.zeros(4)), ValueError, "one length"),
        (([0.0, 1.0],), TypeError, "data must give minibatches that are tensors .* got float"),
        ((torch.zeros(()),), TypeError, "0-d tensor"),
    ],
)
def test_bad_data(data, error, message):
    for estimate in (ppvae.elbo, ppvae.log_marginal):
        with pytest.raises(error, match=message):
            estimate(PPCA(6, 2), *data)


@pytest.mark.parametrize("count", [0, -1, 2.0, True, None, "3"])
def test_bad_counts(count):
    reference = linear_gaussian()
    for estimate in (ppvae.elbo, ppvae.log_marginal):
        if count is not None or estimate is ppvae.elbo:
            with pytest.raises(ValueError, match="num_samples must be a whole number >= 1"):
                estimate(reference.pair, *reference.data, num_samples=count)
        if count is not None:
            with pytest.raises(ValueError, match="batch_size must be a whole number >= 1"):
                estimate(reference.pair, *reference.data, batch_size=count)


class ModelOnly(nn.Module):
    def model(self, x):
        pass


@pytest.mark.parametrize("pair", [ModelOnly(), nn.Linear(2, 2), lambda x: x, LinearGaussian])
def test_not_a_pair(pair):
    for estimate in (ppvae.elbo, ppvae.log_marginal):
        with pytest.raises(TypeError, match=r"ppvae.Pair\(model, guide\)"):
            estimate(pair, torch.zeros(3))


def test_factors_of_the_guide():
    def guide(x, has_rsample):
        z = pyro.sample("z", dist.Normal(x / 2, 0.8))
        pyro.factor("volume", 3 * z, has_rsample=has_rsample)

    x = torch.linspace(-2, 2, 7)
    plain_values = values(plain(line, lambda x: pyro.sample("z", dist.Normal(x / 2, 0.8))), x)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet = values(plain(line, lambda x: guide(x, False)), x)
        assert not caught
        loud = values(plain(line, lambda x: guide(x, True)), x, num_samples=20)
    assert [str(w.message)[:27] for w in caught] == ["the guide's factor 'volume'"]
    assert torch.equal(quiet, plain_values)
    assert torch.equal(loud, plain_values)
