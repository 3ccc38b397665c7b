import pyro
import pytest
import torch
from torch import nn

from ppvae.distributions import AutoregressivePrior, CategoricalPrior
from ppvae.nn import CausalTransformer

K, P = 3, 3


def prior():
    p_k = AutoregressivePrior(CausalTransformer(K, P, dim=8, num_heads=2, num_blocks=1))
    with torch.no_grad():
        p_k.net.decoder.out.linear.weight.mul_(3)  # far from uniform
    return p_k


def words():
    return torch.cartesian_prod(*[torch.arange(K)] * P)


def test_the_probabilities_of_all_words_sum_to_one():
    torch.testing.assert_close(prior()().log_prob(words()).logsumexp(0), torch.tensor(0.0), rtol=0, atol=1e-5)


def test_the_density_is_the_chain_rule():
    p_k, k = prior(), words()
    log_p = p_k.net(k).log_softmax(-1)
    by_hand = sum(log_p[torch.arange(len(k)), p, k[:, p]] for p in range(P))
    torch.testing.assert_close(p_k().log_prob(k), by_hand)


def test_draws_have_the_density():
    p_k, n = prior()(), 20_000
    draws = p_k.sample((n,))
    found = (draws @ torch.tensor([K**2, K, 1])).bincount(minlength=K**P) / n
    probability = p_k.log_prob(words()).exp().detach()
    assert ((found - probability).abs() < 4.5 * (probability * (1 - probability) / n).sqrt()).all()
    assert probability.max() > 2 * probability.min()


def test_leading_dims_and_plates():
    p_k = prior()
    k = torch.randint(K, (5, 7, P))
    assert p_k(torch.zeros(7, 2)).batch_shape == ()
    rows = torch.stack([p_k().log_prob(row) for row in k.reshape(-1, P)]).reshape(5, 7)
    torch.testing.assert_close(p_k().expand([7]).log_prob(k), rows)
    assert p_k().expand([7]).log_prob(k[0, 0]).shape == (7,)
    assert p_k().expand([7]).sample((5,)).shape == (5, 7, P)

    def model():
        with pyro.plate("data", 7):
            return pyro.sample("k", p_k())

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["k"]["log_prob"].shape == (7,)


def test_gradients_reach_every_parameter():
    p_k = prior()
    p_k().log_prob(words()).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in p_k.parameters())


def net_of(function, out_shape=(P, K)):
    net = nn.Module()
    net.forward, net.out_shape = function, out_shape
    return net


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (net_of(lambda k: nn.functional.one_hot(k, K).float()), "position 0 depend on the class at 0"),
        (
            net_of(lambda k: nn.functional.one_hot(k.roll(1, -1), K).float()),
            "net must give logits of the positions before each alone, but those up to position 2",
        ),
        (net_of(lambda k: torch.zeros(*k.shape, K + 1)), r"net must return logits \(..., 3, 3\), got \(4, 3, 4\)"),
        (nn.Linear(3, 3), r"net must declare an out_shape \(positions, classes\), got None"),
        (net_of(None, (3,)), r"net must declare .*, got \(3,\)"),
    ],
)
def test_a_net_that_sees_too_much_is_refused(net, message):
    with pytest.raises(ValueError, match=message):
        AutoregressivePrior(net)


def test_a_net_is_tried_out_in_eval_mode_and_comes_back():
    net = CausalTransformer(K, P, dim=8, dropout=0.5)
    net.decoder.net.blocks[0].eval()
    modes, state = [module.training for module in net.modules()], torch.get_rng_state()
    assert [module.training for module in AutoregressivePrior(net).net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(TypeError, match=r"net must be a torch.nn.Module, got int"):
        AutoregressivePrior(3)


def test_it_is_built_without_memory():
    """As the pair of a run folder is, to compare its sizes with those of the weights."""
    with torch.device("meta"):
        p_k = AutoregressivePrior(CausalTransformer(K, P, dim=8))
    assert all(parameter.is_meta for parameter in p_k.parameters())


def test_independent_classes_have_probabilities_of_their_own():
    p_k = CategoricalPrior(K, P)
    torch.testing.assert_close(p_k().log_prob(words()), torch.full((K**P,), -P * torch.tensor(float(K)).log()))
    with torch.no_grad():
        p_k.logits.copy_(torch.randn(P, K))
    by_hand = sum(p_k.logits.log_softmax(-1)[p, words()[:, p]] for p in range(P))
    torch.testing.assert_close(p_k().log_prob(words()), by_hand)
    assert p_k(torch.zeros(7, 2)).sample((5,)).shape == (5, P)
    assert (CategoricalPrior(K)().event_shape, CategoricalPrior(K, (2, 3))().event_shape) == ((), (2, 3))
