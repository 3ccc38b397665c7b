import pytest
import torch

from ppvae.nn import CausalTransformer

K, P = 5, 4


def test_each_position_sees_those_before_it_alone():
    net = CausalTransformer(K, P, dim=8, num_heads=2)
    k = torch.randint(K, (P,))
    logits = net(k)
    for p in range(P):
        other = k.clone()
        other[p] = (k[p] + 1) % K
        changed = (net(other) - logits).abs().amax(-1) > 1e-6
        assert changed.tolist() == [False] * (p + 1) + [True] * (P - p - 1)


def test_leading_dims():
    net, k = CausalTransformer(K, P, dim=8), torch.randint(K, (3, 2, P))
    assert net(k).shape == (3, 2, P, K) == (3, 2, *net.out_shape)
    torch.testing.assert_close(net(k)[1, 0], net(k[1, 0]))


def test_dropout_is_of_training():
    net, k = CausalTransformer(K, P, dim=8, dropout=0.5), torch.zeros(P, dtype=torch.long)
    assert not torch.equal(net(k), net(k))
    net.eval()
    assert torch.equal(net(k), net(k))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes must be a whole number >= 1, got 0"),
        ({"num_positions": 0}, "num_positions must be a whole number >= 1, got 0"),
        ({"dim": 8, "num_heads": 3}, "num_heads must divide dim, 8, got 3"),
        ({"num_blocks": 0}, "num_blocks must be a whole number >= 1, got 0"),
        ({"dropout": 1.0}, "dropout must be a finite number >= 0 and < 1"),
    ],
)
def test_errors_name_the_argument(arguments, message):
    with pytest.raises(ValueError, match=message):
        CausalTransformer(**{"num_classes": K, "num_positions": P} | arguments)


@pytest.mark.parametrize("k", [torch.zeros(P), torch.zeros(3, dtype=torch.long), [0, 1, 2, 3]])
def test_what_is_no_sequence_is_refused(k):
    with pytest.raises(ValueError, match=rf"k must hold integers of shape \(\.\.\., {P}\), got"):
        CausalTransformer(K, P, dim=8)(k)
