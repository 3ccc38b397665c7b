"""How a computation is traced: what torch's tracer is spared."""

from threading import Thread

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from ppvae._internals import undescribed
from ppvae.compile.arguments import Arguments
from ppvae.compile.tracing import trace

X = torch.zeros(3)


def pictures(module):
    """What a graph holds of each tensor besides its arithmetic."""
    return [node.meta["val"] for node in module.graph.nodes if "val" in node.meta]


def test_no_picture_is_taken_of_a_tensor():
    """For each torch would make a mode that looks at the whole stack: more than half of the time, as was measured."""
    module = trace(lambda args: ([args[0].exp() + 1], None), Arguments((X,))).module
    assert set(pictures(module)) <= {None}
    assert module(X)[0].tolist() == [2.0] * 3


def test_a_graph_that_another_thread_makes_meanwhile_has_its_pictures():
    found = []
    with undescribed():
        thread = Thread(target=lambda: found.extend(pictures(make_fx(torch.exp)(X))))
        thread.start()
        thread.join()
    assert found
    assert all(isinstance(picture, torch.Tensor) for picture in found)
    assert all(isinstance(picture, torch.Tensor) for picture in pictures(make_fx(torch.exp)(X)))  # and here afterwards
