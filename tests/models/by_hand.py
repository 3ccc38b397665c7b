"""What the tests of semi-supervised models share: densities and noise by hand, a tiny set, and wrong labels."""

import math

import pyro.distributions as dist
import torch
from pyro.infer import TraceEnum_ELBO
from torch.nn.functional import softplus

D, C, N = 6, 3, 7
ENUM = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)  # all labels may be known


def log_normal(value, loc, scale):
    return (-0.5 * ((value - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


def loc_scale(conditional, *context):
    loc, raw = conditional.net(*context).unbind(-2)
    return loc, softplus(raw) + conditional.min_scale


def log_classifier(pair, x):
    return pair.q_y_given_x.net(x).log_softmax(-1)


def noise_of(*shapes):
    """What `Normal.rsample` draws after this seed, for these shapes in turn."""
    torch.manual_seed(3)
    return [dist.Normal(torch.zeros(shape), 1.0).sample() for shape in shapes]


def gradients(loss, pair):
    pair.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in pair.named_parameters() if p.grad is not None}


def assert_same_loss(pair, objective, expected):
    """The objective's value and all of its gradients are those of `expected`."""
    torch.manual_seed(3)
    loss = objective()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    actual, by_hand = gradients(loss, pair), gradients(expected, pair)
    assert actual.keys() == by_hand.keys()
    for name, value in actual.items():
        torch.testing.assert_close(value, by_hand[name], rtol=1e-4, atol=1e-5)


PATTERNS = torch.tensor(
    [
        [0.0, 1.0, 1.0, 0.0, 1.0, 0.0],
        [1.0, 0.0, 0.0, 1.0, 0.0, 1.0],
        [1.0, 1.0, 1.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 1.0, 1.0, 1.0],
        [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    ]
)
"""Two of each class."""
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])

WRONG = {
    "length": (torch.zeros(N - 1).long(), ValueError, r"one y for every x, got x of shape \(7, 6\) and y .* \(6,\)"),
    "float": (torch.zeros(N), TypeError, r"y must hold class indices of an integer dtype, got torch.float32 of"),
    "bool": (torch.zeros(N).bool(), TypeError, r"y must hold class indices of an integer dtype, got torch.bool"),
    "one-hot": (torch.eye(C)[torch.zeros(N).long()], TypeError, r"y.argmax\(-1\) turns one-hot rows"),
    "integer-one-hot": (torch.ones(N, C).long(), ValueError, r"got .*\(7, 3\).*; y.argmax\(-1\) turns one"),
    "column": (torch.ones(N, 1).long(), ValueError, r"y.squeeze\(-1\) drops the last dim"),
    "range": (torch.full((N,), 3), ValueError, "y must hold class indices from 0 to 2, got values from 3 to 3"),
    "unlabelled": (torch.full((N,), -1), ValueError, "y must hold class indices from 0 to 2, got values from -1"),
}
