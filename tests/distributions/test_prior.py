import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from ppvae.distributions import StandardNormal, UniformCategorical


@pytest.mark.parametrize("event_shape", [4, (4,), (2, 3), ()])
def test_density_is_the_formula(event_shape):
    torch.manual_seed(0)
    p_z = StandardNormal(event_shape)
    z = torch.randn(5, 7, *p_z.event_shape)
    squares = z.square().flatten(2).sum(-1) if p_z.event_shape else z.square()
    d = math.prod(p_z.event_shape)
    torch.testing.assert_close(p_z().log_prob(z), -0.5 * squares - 0.5 * d * math.log(2 * math.pi))


def test_ignores_its_context():
    p_z = StandardNormal(4)
    assert p_z(torch.zeros(7, 3)).batch_shape == p_z().batch_shape == ()
    assert p_z(torch.zeros(7, 3)).event_shape == (4,)


def test_follows_the_module_and_has_no_state():
    p_z = StandardNormal(4).to(torch.float64)
    assert p_z().sample().dtype == torch.float64
    assert not p_z.state_dict()
    assert not list(p_z.parameters())


def test_broadcasts_in_a_plate():
    def model():
        with pyro.plate("data", 6):
            return pyro.sample("z", StandardNormal(4)())

    assert model().shape == (6, 4)
    site = pyro.poutine.trace(model).get_trace().nodes["z"]
    assert isinstance(site["fn"].base_dist, dist.Normal)


def test_error_names_the_argument():
    with pytest.raises(ValueError, match=r"event_shape must be .*, got 0"):
        StandardNormal(0)


def test_uniform_categorical():
    p_y = UniformCategorical(4)
    assert (p_y().batch_shape, p_y().event_shape) == ((), ())
    torch.testing.assert_close(p_y().log_prob(torch.arange(4)), torch.full((4,), -math.log(4)))
    assert p_y(torch.zeros(7, 3)).batch_shape == ()
    torch.manual_seed(0)
    counts = p_y().sample((10000,)).bincount(minlength=4)
    assert ((counts - 2500).abs() < 200).all()
    assert not p_y.state_dict()
    assert not list(p_y.parameters())
    assert UniformCategorical(4).double()().probs.dtype == torch.float64


def test_uniform_categorical_is_enumerated():
    def model():
        with pyro.plate("data", 6):
            return pyro.sample("y", UniformCategorical(4)(), infer={"enumerate": "parallel"})

    with pyro.poutine.enum(first_available_dim=-2):
        assert model().shape == (4, 1)


def test_uniform_categorical_names_the_argument():
    with pytest.raises(ValueError, match="num_classes must be a whole number >= 1, got 0"):
        UniformCategorical(0)


def test_a_word_of_uniform_letters():
    p_k = UniformCategorical(4, 3)
    assert p_k().event_shape == (3,)
    torch.testing.assert_close(p_k().log_prob(torch.randint(4, (5, 7, 3))), torch.full((5, 7), -3 * math.log(4)))
    with pytest.raises(ValueError, match=r"event_shape must be .*, got \(0,\)"):
        UniformCategorical(4, (0,))
