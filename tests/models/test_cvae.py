import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn

import ppvae
from ppvae.data import load
from ppvae.distributions import ConditionalBernoulli, ConditionalNormal, StandardNormal
from ppvae.models import CVAE
from ppvae.nn import MLP, Concat, ConditionalMLP, ConditionalSequential, ConvDecoder, ConvEncoder, OneHot

D, K, N, CLASSES = 6, 2, 7, 3
CONDITIONS = {
    "label": lambda n: torch.arange(n) % CLASSES,
    "vector": lambda n: torch.randn(n, 4),
    "image": lambda n: torch.rand(n, 1, 3, 2),
    "multi-label": lambda n: torch.bernoulli(torch.full((n, 4), 0.5)),
}
SHAPES = {"label": CLASSES, "vector": 4, "image": (1, 3, 2), "multi-label": 4}


def net(kind, in_shape, hidden, out_shape, **options):
    embed = OneHot(CLASSES) if kind == "label" else None
    return ConditionalMLP(in_shape, SHAPES[kind], hidden, out_shape, embed=embed, **options)


def prior(kind):
    first = {"label": OneHot(CLASSES), "image": nn.Flatten(-3)}.get(kind, nn.Identity())
    return ConditionalNormal(nn.Sequential(first, MLP({"label": CLASSES, "image": 6}.get(kind, 4), (4,), (2, K))))


def make(kind="label", *, hidden=5, learned_prior=False, beta=1.0, **options):
    torch.manual_seed(0)
    options = {"activation": "tanh"} | options
    cvae = CVAE(
        prior(kind) if learned_prior else StandardNormal(K),
        ConditionalBernoulli(net(kind, K, hidden, D, **options)),
        ConditionalNormal(net(kind, D, hidden, (2, K), **options)),
        beta=beta,
    )
    y = CONDITIONS[kind](N)
    return cvae, cvae.sample(y), y


CASES = [(kind, learned) for kind in CONDITIONS for learned in (False, True)]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{'learned' if case[1] else 'fixed'}-prior")
def case(request):
    kind, learned = request.param
    return make(kind, learned_prior=learned)


def test_sites_of_model_and_guide(case):
    cvae, x, y = case
    guide_trace = poutine.trace(cvae.guide).get_trace(x, y)
    model_trace = poutine.trace(poutine.replay(cvae.model, trace=guide_trace)).get_trace(x, y)
    assert set(model_trace.stochastic_nodes) - {"data"} == {"z"} == set(guide_trace.stochastic_nodes) - {"data"}
    assert model_trace.observation_nodes == ["x"]
    model_trace.compute_log_prob()
    assert model_trace.nodes["x"]["log_prob"].shape == model_trace.nodes["z"]["log_prob"].shape == (N,)


@pytest.mark.parametrize("beta", [1.0, 3.0])
@pytest.mark.parametrize("learned", [False, True])
def test_loss_is_a_sum_over_data_and_a_mean_over_particles(beta, learned):
    cvae, x, y = make(beta=beta, learned_prior=learned)

    def mean_loss(n, particles, vectorize):
        torch.manual_seed(0)
        loss = Trace_ELBO(num_particles=particles, vectorize_particles=vectorize, max_plate_nesting=1)
        with torch.no_grad():
            return float(loss.differentiable_loss(cvae.model, cvae.guide, x[:1].expand(n, D), y[:1].expand(n))) / n

    one = mean_loss(4000, 1, False)
    assert mean_loss(40, 100, True) == pytest.approx(one, rel=0.05)
    assert mean_loss(400, 10, False) == pytest.approx(one, rel=0.05)
    terms = ppvae.elbo(cvae, x[:1].expand(4000, D), y[:1].expand(4000), num_samples=1)
    expected = float(terms.reconstruction.mean() - beta * terms.kl["z"].mean())
    assert -one == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("loss", [Trace_ELBO(), TraceMeanField_ELBO()], ids=["trace", "mean-field"])
def test_gradients_reach_every_parameter(case, loss):
    cvae, x, y = case
    loss.differentiable_loss(cvae.model, cvae.guide, x, y).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in cvae.parameters())


def test_state_round_trip(case, tmp_path):
    cvae, x, y = case
    fresh = CVAE(cvae.p_z, cvae.p_x_given_zy, cvae.q_z_given_xy)
    path = ppvae.save(cvae, tmp_path / "cvae.safetensors")
    before = ppvae.log_marginal(cvae, x, y, num_samples=5).values
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    after = ppvae.log_marginal(ppvae.load(fresh, path), x, y, num_samples=5).values
    assert torch.equal(after, before)


class Linear(CVAE):
    """z ~ N(m(y), s(y)²), x ~ N(Wz + Vy + b, σ²), of which log p(x|y) is known; a guide affine in both."""

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(
            ConditionalNormal(MLP(3, (), (2, K))),
            ConditionalNormal(ConditionalMLP(K, 3, (), D), scale="learned"),
            ConditionalNormal(ConditionalMLP(D, 3, (), (2, K))),
        )

    @torch.no_grad()
    def exact(self, x, y):
        p_z, (affine,) = self.p_z(y), self.p_x_given_zy.net.net.layers
        weight, of_y = affine.linear.weight.split([K, 3], 1)
        variance = self.p_x_given_zy(p_z.mean, y).variance
        covariance = (weight * p_z.variance.unsqueeze(-2)) @ weight.T + torch.diag_embed(variance)
        mean = p_z.mean @ weight.T + y @ of_y.T + affine.linear.bias
        return dist.MultivariateNormal(mean.double(), covariance.double()).log_prob(x.double())


def test_bounds_rise_to_the_exact_conditional_likelihood():
    cvae, y = Linear(), torch.randn(200, 3)
    x = cvae.sample(y)
    ppvae.fit(cvae, (x, y), epochs=60, lr=1e-2, batch_size=50, progress=False)
    exact, x, y = cvae.exact(x, y)[:20], x[:20], y[:20]
    elbo = ppvae.elbo(cvae, x, y, num_samples=4000)
    several = ppvae.log_marginal(cvae, x.repeat(300, 1), y.repeat(300, 1), num_samples=5).values.view(300, 20)
    many = ppvae.log_marginal(cvae, x, y, num_samples=20000)
    error = several.std(0) / math.sqrt(300)
    assert (elbo.values < several.mean(0) + 4 * (error**2 + elbo.std_error**2).sqrt()).all()
    assert (several.mean(0) < exact + 4 * error).all()
    assert elbo.values.mean() < several.mean() < exact.mean()
    assert ((many.values - exact) / many.std_error).abs().max() < 4
    assert (exact - elbo.values).max() < 2


@pytest.mark.parametrize("way", ["concat", "film", "batch_norm", "attention"])
def test_overfits_a_tiny_set(way):
    """Two data for each label: given the label, log p(x|y) is at most −log 2."""
    cvae, _, _ = make(hidden=64, conditioning=way)
    x = torch.tensor(
        [[0, 1, 1, 0, 1, 0], [1, 0, 0, 1, 0, 1], [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]], dtype=torch.float32
    )
    y = torch.tensor([0, 0, 2, 2])
    ppvae.fit(cvae, (x.repeat(8, 1), y.repeat(8)), epochs=200, lr=1e-2, batch_size=32, progress=False)
    cvae.eval()
    assert ppvae.log_marginal(cvae, x, y, num_samples=500).mean() == pytest.approx(-math.log(2), abs=0.5)
    assert (cvae.reconstruct(x, y) - x).abs().max() < 0.5
    drawn = cvae.sample(y[:1].expand(50), mean=True).round()
    assert ((drawn == x[0]).all(-1) | (drawn == x[1]).all(-1)).float().mean() > 0.8


def test_learns_a_prior_that_depends_on_the_condition():
    torch.manual_seed(0)
    y = torch.arange(400) % CLASSES
    centre = torch.tensor([-4.0, 0.0, 4.0])[y].unsqueeze(-1)
    x = centre + torch.randn(400, 1)

    class IgnoringLabels(ConditionalNormal):
        def forward(self, z, y):
            return super().forward(z)

    cvae = CVAE(
        ConditionalNormal(nn.Sequential(OneHot(CLASSES), MLP(CLASSES, (), (2, 1)))),
        IgnoringLabels(nn.Linear(1, 1), scale=0.5),
        ConditionalNormal(ConditionalMLP(1, CLASSES, (), (2, 1), embed=OneHot(CLASSES))),
    )
    ppvae.fit(cvae, (x, y), epochs=80, lr=3e-2, batch_size=100, progress=False)
    exact = dist.Normal(centre, 1.0).log_prob(x).mean()
    assert ppvae.log_marginal(cvae, x, y, num_samples=200).mean() == pytest.approx(float(exact), abs=0.05)
    drawn = cvae.sample(torch.arange(CLASSES).unsqueeze(-1).expand(CLASSES, 500))
    torch.testing.assert_close(drawn.mean((1, 2)), torch.tensor([-4.0, 0.0, 4.0]), rtol=0, atol=0.4)


def test_queries(case):
    cvae, x, y = case
    event = y.shape[1:]
    assert x.shape == (N, D)
    q_z = cvae.encode(x.expand(3, N, D), y.expand(3, N, *event))
    assert (q_z.batch_shape, q_z.event_shape) == ((3, N), (K,))
    assert cvae.decode(torch.zeros(4, 1, N, K), y.expand(3, N, *event)).batch_shape == (4, 3, N)
    assert cvae.decode(torch.zeros(N, K), y[:4].unsqueeze(1)).batch_shape == (4, N)
    torch.testing.assert_close(cvae.reconstruct(x, y), cvae.decode(cvae.encode(x, y).mean, y).mean)
    assert cvae.sample(y.expand(3, N, *event)).shape == (3, N, D)
    assert cvae.sample(y[0]).shape == (D,)
    means = cvae.sample(y[:1].expand(5, *y.shape[1:]), mean=True)
    assert means.shape == (5, D)
    assert means.std(0).max() > 0  # a z for every y


def test_style_transfer_leaves_z_as_it_is(case):
    cvae, x, y = case
    z = cvae.encode(x, y).mean
    swept = cvae.style_transfer(x, y, y[:4])
    assert swept.shape == (4, N, D)
    for j in range(4):
        torch.testing.assert_close(swept[j], cvae.decode(z, y[j].expand_as(y)).mean)
    torch.testing.assert_close(swept[torch.arange(4), torch.arange(4)], cvae.reconstruct(x, y)[:4])


def test_style_transfer_draws_z_once_where_the_guide_has_no_mean():
    cvae, x, y = make()

    class Flow(nn.Module):
        def forward(self, x, y):
            base = dist.Normal(torch.zeros(len(x), K), 1.0).to_event(1)
            return dist.TransformedDistribution(base, [dist.transforms.Planar(K)])

    cvae.q_z_given_xy = Flow()
    swept = cvae.style_transfer(x, y, torch.tensor([1, 1, 2]))
    torch.testing.assert_close(swept[0], swept[1])
    assert (swept[0] - swept[2]).abs().max() > 1e-2


def test_quadrants():
    """Sohn et al.'s task: one quarter of an image is given, the other three are predicted, by convolutions."""
    torch.manual_seed(0)
    image = load("digits").train.x[:64]
    y, x = image[..., :4, :4], torch.stack([image[..., :4, 4:], image[..., 4:, :4], image[..., 4:, 4:]], 1).round()
    decoder = ConditionalSequential(
        Concat(3, 8, 16), nn.ReLU(), MLP(16, (), (3, 1, 4, 4)), embed=ConvEncoder((1, 4, 4), 4, 8)
    )
    encoder = ConditionalMLP((3, 1, 4, 4), (1, 4, 4), (16,), (2, 3))
    cvae = CVAE(StandardNormal(3), ConditionalBernoulli(decoder), ConditionalNormal(encoder))
    run = ppvae.fit(cvae, (x, y), epochs=10, lr=1e-2, batch_size=32, progress=False)
    assert run.history[-1]["elbo"] > run.history[0]["elbo"] + 1
    assert cvae.sample(y[:5].expand(2, 5, 1, 4, 4)).shape == (2, 5, 3, 1, 4, 4)
    assert cvae.style_transfer(x[:5], y[:5], y[:2]).shape == (2, 5, 3, 1, 4, 4)
    assert ppvae.log_marginal(cvae, x[:5], y[:5], num_samples=20).num_dims == 48


def digits_cvae(**options):
    torch.manual_seed(0)
    return CVAE(
        StandardNormal(4),
        ConditionalBernoulli(ConditionalMLP(4, 10, (32,), (1, 8, 8), embed=OneHot(10), **options)),
        ConditionalNormal(ConditionalMLP((1, 8, 8), 10, (32,), (2, 4), embed=OneHot(10), **options)),
    )


@pytest.fixture(scope="module")
def digits():
    data = load("digits").train
    return data.x.round(), data.y


def test_fits_digits(digits):
    x, y = digits
    cvae = digits_cvae()
    run = ppvae.fit(cvae, (x, y), epochs=5, lr=1e-2, progress=False)
    elbos = [row["elbo"] for row in run.history]
    assert elbos == sorted(elbos)
    right = ppvae.log_marginal(cvae, x[:200], y[:200], num_samples=50).mean()
    wrong = ppvae.log_marginal(cvae, x[:200], (y[:200] + 1) % 10, num_samples=50).mean()
    assert right > wrong + 1


@pytest.mark.usefixtures("with_and_without_inductor")
@pytest.mark.parametrize("way", ["concat", "attention"])
def test_the_compiled_step_gives_the_same_losses(digits, way):
    x, y = digits
    losses = []
    for compile in (False, True):
        cvae = digits_cvae(conditioning=way)
        svi = ppvae.SVI(cvae.model, cvae.guide, partial(torch.optim.Adam, lr=1e-2), Trace_ELBO(), compile=compile)
        torch.manual_seed(1)
        losses.append([svi.step(x[i : i + 32], y[i : i + 32]) for i in range(0, 320, 32)])
    assert svi._compiled.num_graphs == 1
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_convolutions_and_samples_in_an_outer_plate(digits):
    x, y = digits[0][:6], digits[1][:6]
    torch.manual_seed(0)
    cvae = CVAE(
        StandardNormal(3),
        ConditionalBernoulli(
            ConditionalSequential(Concat(3, 10, 8), nn.ReLU(), ConvDecoder(8, (4,), (1, 8, 8)), embed=OneHot(10))
        ),
        ConditionalNormal(
            ConditionalSequential(
                ConvEncoder((1, 8, 8), (4,), 8), nn.ReLU(), ConditionalMLP(8, 10, (), (2, 3)), embed=OneHot(10)
            )
        ),
    )
    one, other = (ppvae.log_marginal(cvae, x, y, num_samples=300, seed=seed) for seed in (0, 1))
    assert ((one.values - other.values) / (one.std_error**2 + other.std_error**2).sqrt()).abs().max() < 5
    assert cvae.style_transfer(x, y, torch.arange(10)).shape == (10, 6, 1, 8, 8)


def wrong(kind):
    """A condition that is wrong, and what is said of it, for a batch of N."""
    return {
        "length": (
            torch.zeros(N - 1).long(),
            ValueError,
            r"one y for every x, got x of shape \(7, 6\) and y .* \(6,\)",
        ),
        "float": (torch.zeros(N), TypeError, r"y must hold class indices of an integer dtype, got torch.float32 of"),
        "one-hot": (torch.eye(CLASSES)[torch.zeros(N).long()], TypeError, r"y.argmax\(-1\) turns one-hot rows"),
        "integer-one-hot": (torch.ones(N, CLASSES).long(), ValueError, r"got .*\(7, 3\).*; y.argmax\(-1\) turns one"),
        "column": (torch.ones(N, 1).long(), ValueError, r"y.squeeze\(-1\) drops the last dim"),
        "range": (torch.full((N,), 3), ValueError, "y must hold class indices from 0 to 2, got values from 3 to 3"),
        "unlabelled": (torch.full((N,), -1), ValueError, "y must hold class indices from 0 to 2, got values from -1"),
        "none": (None, TypeError, "y must be a tensor"),
    }[kind]


KINDS = ["length", "float", "one-hot", "integer-one-hot", "column", "range", "unlabelled", "none"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("query", ["model", "guide", "encode", "reconstruct", "style_transfer"])
def test_a_wrong_label_is_an_error(kind, query):
    cvae, x, _ = make()
    y, error, message = wrong(kind)
    more = (torch.arange(2),) if query == "style_transfer" else ()
    with pytest.raises(error, match=message):
        getattr(cvae, query)(x, y, *more)


def test_other_wrong_conditions_are_errors():
    cvae, x, y = make()
    with pytest.raises(ValueError, match="new_y must hold class indices from 0 to 2, got values from 0 to 3"):
        cvae.style_transfer(x, y, torch.arange(4))
    with pytest.raises(ValueError, match=r"new_y must have shape \(c\), got \(2, 3\); new_y.argmax\(-1\) turns"):
        cvae.style_transfer(x, y, torch.ones(2, 3).long())
    with pytest.raises(TypeError, match="y must hold class indices"):
        cvae.sample(torch.zeros(N))
    with pytest.raises(TypeError, match="y must hold class indices"):
        cvae.decode(torch.zeros(N, K), torch.zeros(N))
    with pytest.raises(TypeError, match="x must be a tensor, got list"):
        cvae.encode([0.0], y)
    cvae, x, y = make("vector")
    with pytest.raises(ValueError, match=r"y must have shape \(..., 4,\), got \(7, 3\)"):
        cvae.model(x, torch.zeros(N, 3))
    with pytest.raises(TypeError, match=r"y must be floating point, got torch.int64 of shape \(7, 4\)"):
        cvae.guide(x, torch.zeros(N, 4).long())
    with pytest.raises(ValueError, match=r"y must have shape \(n, 4\), got \(7, 1, 4\)"):
        cvae.model(x, y.unsqueeze(1))


@pytest.mark.parametrize("kind", ["float", "range", "length", "integer-one-hot"])
def test_fit_and_likelihood_say_so_before_they_work(kind):
    cvae, x, _ = make()
    y, error, _ = wrong(kind)
    with pytest.raises(error, match=r"y|length"):
        ppvae.fit(cvae, (x, y), epochs=1, progress=False)
    with pytest.raises(error, match=r"y|length"):
        ppvae.log_marginal(cvae, x, y, num_samples=2)


def test_a_label_out_of_range_in_a_later_batch_is_no_silent_error():
    cvae, x, y = make()
    y = torch.cat([y, torch.tensor([-1])])
    with pytest.raises(ppvae.infer.NonFiniteError, match="site 'z' in the guide"):
        ppvae.fit(cvae, (torch.cat([x, x[:1]]), y), epochs=3, batch_size=1, compile=False, progress=False)


def test_values_are_not_read_where_validation_is_off():
    cvae, x, y = make()
    with pyro.validation_enabled(False):
        cvae.guide(x, torch.full_like(y, 99))
    with pytest.raises(ValueError, match="class indices"), pyro.validation_enabled(True):
        cvae.guide(x, torch.full_like(y, 99))


def test_labels_through_a_net_that_declares_nothing():
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self, d, out):
            super().__init__()
            self.embed, self.affine, self.out = nn.Embedding(3, 5), nn.Linear(d, 5), nn.Linear(5, out)

        def forward(self, h, y):
            return self.out(torch.tanh(self.affine(h) + self.embed(y)))

    class Encoder(Net):
        def forward(self, x, y):
            return super().forward(x, y).unflatten(-1, (2, K))

    cvae = CVAE(StandardNormal(K), ConditionalBernoulli(Net(K, D)), ConditionalNormal(Encoder(D, 2 * K)))
    y = torch.arange(N) % 3
    x = cvae.sample(y)
    assert x.shape == (N, D)
    ppvae.fit(cvae, (x, y), epochs=1, progress=False)
    assert cvae.style_transfer(x, y, torch.arange(3)).shape == (3, N, D)
    with pytest.raises(ValueError, match=r"new_y must have shape \(c, \.\.\.\), got \(\)"):
        cvae.style_transfer(x, y, torch.tensor(1))


def test_constructor():
    pieces = {"p_z": StandardNormal(K), "p_x_given_zy": StandardNormal(D), "q_z_given_xy": StandardNormal(K)}
    for beta in (-1.0, math.nan, "1", True, None):
        with pytest.raises(ValueError, match="beta must be a finite number >= 0"):
            CVAE(**pieces, beta=beta)
    for name in pieces:
        with pytest.raises(TypeError, match=f"{name} must be a module that returns a distribution, got Normal"):
            CVAE(**{**pieces, name: dist.Normal(0.0, 1.0)})
