import pyro.distributions as dist
import pytest
import torch

from ppvae.distributions import ConditionalDiscretizedLogistic, DiscretizedLogistic
from ppvae.nn import MLP

LOCS = [-4.0, 0.0, 0.3, 0.5019, 1.0, 7.0]
SCALES = [1e-6, 5e-4, 0.05, 1.0, 100.0]


def levels(num_levels, dtype=torch.float32):
    return torch.arange(num_levels, dtype=dtype) / (num_levels - 1)


def grid(dtype):
    return (t.to(dtype) for t in torch.meshgrid(torch.tensor(LOCS), torch.tensor(SCALES), indexing="ij"))


@pytest.mark.parametrize("num_levels", [2, 3, 16, 256])
@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_masses_sum_to_one(num_levels, dtype, tol):
    loc, scale = grid(dtype)
    p = DiscretizedLogistic(loc, scale, num_levels)
    mass = p.log_prob(levels(num_levels, dtype)[:, None, None]).exp().sum(0)
    torch.testing.assert_close(mass, torch.ones_like(loc), atol=tol, rtol=0)


@pytest.mark.parametrize("num_levels", [2, 5, 256])
def test_is_the_difference_of_cumulative_logistics(num_levels):
    """In float64 and where the difference does not underflow, the definition itself."""
    loc = torch.tensor([-0.1, 0.25, 0.9], dtype=torch.float64)
    scale = torch.tensor([0.04, 0.1, 2.0], dtype=torch.float64)
    x = levels(num_levels, torch.float64)[:, None]
    half = 0.5 / (num_levels - 1)
    upper, lower = torch.sigmoid((x + half - loc) / scale), torch.sigmoid((x - half - loc) / scale)
    upper[-1], lower[0] = 1.0, 0.0
    # Of two equal forms, the one whose terms are not both near one.
    tail = torch.sigmoid((loc + half - x) / scale) - torch.sigmoid((loc - half - x) / scale)
    tail[0], tail[-1] = (upper - lower)[0], torch.sigmoid((loc + half - x[-1]) / scale)
    expected = torch.where(upper > 0.5, tail, upper - lower).log()
    p = DiscretizedLogistic(loc, scale, num_levels)
    torch.testing.assert_close(p.log_prob(x), expected, atol=1e-9, rtol=1e-9)


def test_float32_agrees_with_float64_down_to_the_far_tails():
    loc, scale = grid(torch.float32)
    x = levels(256)[:, None, None]
    single = DiscretizedLogistic(loc, scale).log_prob(x)
    double = DiscretizedLogistic(loc.double(), scale.double()).log_prob(x.double())
    assert single.isfinite().all()
    assert double.min() < -1e6
    # A location is known to its last bit, which is a part of the smallest scale.
    resolved = scale[0] >= 5e-4
    torch.testing.assert_close(single[..., resolved].double(), double[..., resolved], atol=5e-5, rtol=1e-6)
    torch.testing.assert_close(single.double(), double, atol=0.01, rtol=1e-2)


def test_gradients_are_finite_in_the_far_tails():
    loc, scale = (t.requires_grad_() for t in grid(torch.float32))
    DiscretizedLogistic(loc, scale).log_prob(levels(256)[:, None, None]).sum().backward()
    assert loc.grad.isfinite().all()
    assert scale.grad.isfinite().all()


def test_float64_gradients_are_right():
    loc = torch.tensor([-0.5, 0.3, 0.52], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([0.05, 0.01, 3.0], dtype=torch.float64, requires_grad=True)
    x = levels(5, torch.float64)[:, None]
    assert torch.autograd.gradcheck(lambda a, b: DiscretizedLogistic(a, b, 5).log_prob(x), (loc, scale))


@pytest.mark.parametrize("num_levels", [2, 16, 256])
def test_mean_is_the_sum_over_levels(num_levels):
    loc, scale = grid(torch.float64)
    p = DiscretizedLogistic(loc, scale, num_levels)
    x = levels(num_levels, torch.float64)[:, None, None]
    torch.testing.assert_close(p.mean, (x * p.log_prob(x).exp()).sum(0))


@pytest.mark.parametrize(("loc", "scale"), [(0.3, 0.1), (-0.2, 0.3), (0.97, 0.01)])
def test_samples_have_the_masses(loc, scale):
    torch.manual_seed(0)
    p = DiscretizedLogistic(torch.tensor(loc), torch.tensor(scale), 8)
    n = 20_000
    counts = (p.sample((n,)) * 7).round().long().bincount(minlength=8)
    mass = p.log_prob(levels(8)).exp()
    # Five standard errors, and one count for masses near zero.
    assert ((counts - n * mass).abs() <= 5 * (n * mass * (1 - mass)).sqrt() + 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_lie_on_the_levels_of_pixel_data(dtype):
    torch.manual_seed(0)
    x = DiscretizedLogistic(torch.zeros(2, 500, dtype=dtype), torch.full((500,), 0.5, dtype=dtype)).sample((3,))
    assert (x.shape, x.dtype) == ((3, 2, 500), dtype)
    assert torch.isin(x, torch.arange(256, dtype=torch.uint8).to(dtype) / 255).all()


def test_rounding_of_the_data_changes_nothing():
    p = DiscretizedLogistic(torch.tensor(0.3), torch.tensor(1e-3))
    byte = torch.arange(256, dtype=torch.uint8)
    exact = p.log_prob(byte.float() / 255)
    for x in (byte.float() * (1 / 255), byte.float() / 255 * (1 + 2e-7), (byte.double() / 255).float()):
        assert torch.equal(p.log_prob(x.clamp(max=1)), exact)


def test_support_is_the_levels():
    support = DiscretizedLogistic(torch.zeros(()), torch.ones(()), 5).support
    values = torch.tensor([0.0, 0.25, 1.0, 0.3, 1.25, -0.25, float("nan")])
    assert support.check(values).tolist() == [True, True, True, False, False, False, False]
    assert support.is_discrete
    assert DiscretizedLogistic(torch.zeros(()), torch.ones(())).support.check(levels(256)).all()


def test_validation():
    with pytest.raises(ValueError, match="scale"):
        DiscretizedLogistic(torch.zeros(2), torch.zeros(2), validate_args=True)
    p = DiscretizedLogistic(torch.zeros(2), torch.ones(2), 5, validate_args=True)
    for q in (p, p.expand([3, 2]), p.to_event(1)):
        with pytest.raises(ValueError, match="to be within the support"):
            q.log_prob(torch.full((2,), 0.3))
    quiet = DiscretizedLogistic(torch.zeros(2), torch.ones(2), 5, validate_args=False)
    assert torch.equal(quiet.log_prob(torch.tensor(0.3)), quiet.log_prob(torch.tensor(0.25)))


def test_broadcasts_and_expands_without_copies():
    loc, scale = torch.randn(3, 1), torch.rand(4) + 0.1
    p = DiscretizedLogistic(loc, scale, 5)
    assert p.batch_shape == (3, 4)
    assert (p.has_rsample, p.has_enumerate_support) == (False, False)
    q = p.expand([2, 3, 4])
    assert isinstance(q, DiscretizedLogistic)
    assert q.loc.data_ptr() == loc.data_ptr()
    x = q.sample()
    assert x.shape == q.mean.shape == (2, 3, 4)
    torch.testing.assert_close(q.log_prob(x), p.log_prob(x))
    assert p.to_event(1).mask(torch.tensor([True, False, True])).log_prob(x).shape == (2, 3)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((0.5, torch.ones(())), TypeError, "loc must be a tensor, got float"),
        ((torch.ones(()), 0.5), TypeError, "scale must be a tensor, got float"),
        ((torch.ones(()), torch.ones(()), 1), ValueError, "num_levels must be a whole number >= 2, got 1"),
        ((torch.ones(()), torch.ones(()), 8.0), ValueError, "num_levels must be a whole number >= 2, got 8.0"),
    ],
)
def test_errors_name_the_argument(args, error, message):
    with pytest.raises(error, match=message):
        DiscretizedLogistic(*args)


@pytest.mark.parametrize("scale", ["learned", "conditional", 0.1])
def test_conditional_has_its_location_and_scale(scale):
    torch.manual_seed(0)
    net = MLP(3, (), (2, 1, 2, 2) if scale == "conditional" else (1, 2, 2))
    family = ConditionalDiscretizedLogistic(net, num_levels=16, scale=scale)
    context = torch.randn(7, 3)
    p = family(context)
    assert (p.batch_shape, p.event_shape) == ((7,), (1, 2, 2))
    loc, expected = net(context), torch.tensor(0.1)
    if scale == "conditional":
        loc, expected = loc[:, 0], 5e-4 + torch.nn.functional.softplus(loc[:, 1])
    x = dist.Bernoulli(0.5).sample((7, 1, 2, 2))
    reference = DiscretizedLogistic(loc, expected, 16).log_prob(x).sum((1, 2, 3))
    torch.testing.assert_close(p.log_prob(x), reference)


def test_a_value_between_the_levels_is_told_which_there_are():
    assert str(DiscretizedLogistic(torch.tensor(0.5), torch.tensor(1.0), 256).support) == "k / 255 with k = 0, …, 255"
