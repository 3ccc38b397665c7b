"""How graphs are handed to Inductor: without trial builds, with a head start for the headers; what if that fails."""

import threading

import pytest
import torch
from torch._inductor import codecache, cpu_vec_isa
from torch.fx.experimental.proxy_tensor import make_fx

from ppvae.compile import inductor

pytestmark = pytest.mark.inductor


def graph():
    return make_fx(lambda x: x.exp() + 1)(torch.zeros(3))


def head_start():
    """Runs `build_headers` anew, to its end."""
    inductor.build_headers.__wrapped__()
    for thread in threading.enumerate():
        if thread.name == "ppvae C++ headers":
            thread.join()


def test_a_compiled_graph_computes_what_the_graph_does():
    x = torch.randn(3)
    torch.testing.assert_close(inductor.compile_graph(graph(), [x])(x), x.exp() + 1)


def test_a_compiler_that_does_not_know_the_cpu_is_tried_again_with_trial_builds(monkeypatch):
    check, calls = cpu_vec_isa.VecISA.check_build, []

    def compile(module, inputs, options):
        calls.append(cpu_vec_isa.VecISA.check_build)
        if len(calls) == 1:
            cpu_vec_isa.valid_vec_isa_list()  # as Inductor does, and then the compiler stumbles over an instruction
            raise RuntimeError("unrecognized command-line option '-mavx512bf16'")
        return module, cpu_vec_isa.valid_vec_isa_list.cache_info().currsize

    monkeypatch.setattr("torch._inductor.compile", compile)
    module, known = inductor.compile_graph(graph(), [torch.zeros(3)])
    assert calls[0](None, "") is True
    assert calls[1] is check is cpu_vec_isa.VecISA.check_build
    assert known == 0  # what was taken for granted is asked anew
    x = torch.randn(3)
    torch.testing.assert_close(module(x), x.exp() + 1)  # not the one that the first attempt worked on


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(codecache, "_precompile_header"), reason="this torch builds no headers")
def test_the_head_start_builds_the_header_that_graphs_include(monkeypatch):
    asked = []

    def refuse(header, command, **options):
        asked.append((header, command))
        raise RuntimeError("enough is known")

    monkeypatch.setattr(codecache, "_precompile_header", refuse)
    with torch._inductor.utils.fresh_cache():
        head_start()
        assert len(asked) == 1
        with pytest.raises(Exception, match="enough is known"):
            inductor.compile_graph(graph(), [torch.zeros(3)])
    assert set(asked) == {asked[0]}
    assert len(asked) > 1


def test_without_an_inductor_that_it_knows_there_is_no_head_start(monkeypatch):
    monkeypatch.delattr(codecache, "CppPythonBindingsCodeCache")
    head_start()


@pytest.mark.parametrize(("device", "times"), [("cpu", 1), ("meta", 0)])
def test_a_graph_on_a_cpu_keeps_freed_memory(monkeypatch, device, times):
    kept = []
    monkeypatch.setattr(inductor, "keep_freed_memory", lambda: kept.append(True))
    monkeypatch.setattr("torch._inductor.compile", lambda *args: None)
    inductor.compile_graph(graph(), [torch.zeros(3, device=device)])
    assert len(kept) == times
