import pytest
import torch

from ppvae.nn import Combiner, GatedTransition

K, C = 3, 5


def test_a_gated_transition_is_the_formula_of_the_paper():
    torch.manual_seed(0)
    net, z = GatedTransition(K, 8), torch.randn(2, 7, K)
    hidden = torch.relu(net.hidden(z))
    gate, proposal = torch.sigmoid(net.gate(hidden[..., :8])), net.proposal(hidden[..., 8:])
    loc, raw_scale = net(z).unbind(-2)
    torch.testing.assert_close(loc, (1 - gate) * net.linear(z) + gate * proposal)
    torch.testing.assert_close(raw_scale, net.scale(torch.relu(proposal)))


def test_states_stay_where_they_are_at_first():
    net, z = GatedTransition(K, 8), torch.randn(7, K)
    torch.testing.assert_close(net.linear(z), z)


def test_a_combiner_is_the_formula_of_the_paper():
    torch.manual_seed(0)
    net, z, h = Combiner(K, C, (2, K)), torch.randn(4, 7, K), torch.randn(7, C)
    expected = net.out(0.5 * (torch.tanh(net.of_state(z)) + h))
    torch.testing.assert_close(net(z, h), expected.reshape(4, 7, 2, K))


@pytest.mark.parametrize("make", [lambda: GatedTransition(0, 8), lambda: GatedTransition(K, 0)])
def test_sizes_are_checked(make):
    with pytest.raises(ValueError, match="must be a whole number >= 1"):
        make()


def test_shapes_of_a_combiner_are_checked():
    with pytest.raises(ValueError, match="summary_dim"):
        Combiner(K, 0, (2, K))
    with pytest.raises(ValueError, match="out_shape"):
        Combiner(K, C, 0)
