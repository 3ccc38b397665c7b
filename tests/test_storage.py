import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import ppvae
from ppvae.models import PPCA
from ppvae.storage import load_state, read_json, save_state, write_atomically, write_json
from tests.infer.pairs import Store, same, state


class Everything(nn.Module):
    """All kinds of state: buffers, 0-d, bool, int and half tensors, tied and strided parameters."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.linear = nn.Linear(3, 3)
            self.tied = nn.Linear(3, 3)
            self.tied.weight = self.linear.weight
            self.strided = nn.Parameter(torch.randn(4, 3).T)
            self.scalar = nn.Parameter(torch.randn(()))
            self.brain = nn.Parameter(torch.randn(2).to(torch.bfloat16))
            self.wide = nn.Parameter(torch.randn(2, dtype=torch.float64))
            self.norm = nn.BatchNorm1d(3)
            self.register_buffer("mask", torch.rand(3) > 0.5)
            self.register_buffer("count", torch.randint(100, ()))
            self.register_buffer("empty", torch.zeros(0, 3))

    def model(self, x):
        pass

    def guide(self, x):
        pass


def test_round_trip_of_every_kind_of_tensor(tmp_path):
    first, second = Everything(0), Everything(1)
    assert not same(state(first), state(second))
    path = ppvae.save(first, tmp_path / "new" / "folder" / "pair.safetensors")
    assert path == tmp_path / "new" / "folder" / "pair.safetensors"
    assert ppvae.load(second, path) is second
    assert same(state(first), state(second))
    assert second.tied.weight is second.linear.weight
    assert second.strided.stride() == first.strided.stride() == (1, 3)


def test_optimizer_state_round_trip(tmp_path):
    nets = [nn.Linear(3, 2), nn.Linear(3, 2)]
    optimizers = [torch.optim.AdamW(net.parameters(), lr=0.1, amsgrad=True) for net in nets]
    nets[0](torch.ones(1, 3)).sum().backward()
    optimizers[0].step()
    path = save_state(tmp_path / "state", optimizers[0].state_dict())
    loaded = load_state(path)
    assert same(loaded, optimizers[0].state_dict())
    assert isinstance(loaded["param_groups"][0]["betas"], tuple)
    assert list(loaded["state"]) == [0, 1]  # integers, not the strings that JSON makes of keys
    optimizers[1].load_state_dict(loaded)


@pytest.mark.parametrize(
    "value",
    [
        {"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}},
        {1: torch.ones(1), "1": torch.zeros(1)},
        [1, 2.5, None, True, "text", (1, (2,)), {}, [], torch.arange(3)],
        {"inf": float("inf"), "-inf": float("-inf"), "third": 1 / 3},
        torch.tensor(3.0),
        {},
    ],
)
def test_nested_state_round_trip(tmp_path, value):
    loaded = load_state(save_state(tmp_path / "state", value))
    assert same(loaded, value)
    assert type(loaded) is type(value)


def test_what_is_no_state_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"state\['a.1'\] must be a tensor, number"):
        save_state(tmp_path / "state", {"a": [1, object()]})
    assert list(tmp_path.iterdir()) == []


def test_failed_writes_leave_the_old_file_and_nothing_else(tmp_path):
    path = write_json(tmp_path / "file.json", {"old": 1})

    def fails(temporary):
        temporary.write_text("half of")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fails)
    with pytest.raises(TypeError):
        write_json(path, {"new": object()})
    assert read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_bad_files_are_refused(tmp_path):
    good = ppvae.save(PPCA(4, 2), tmp_path / "good")
    (tmp_path / "truncated").write_bytes(good.read_bytes()[:-10])
    (tmp_path / "header").write_bytes(good.read_bytes()[:20])
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "pickle").write_bytes(pickle.dumps({"weights": [1, 2]}))
    torch.save({"a": torch.ones(1)}, tmp_path / "torch")
    for name in ("truncated", "header", "empty", "pickle", "torch"):
        with pytest.raises(ValueError, match=f"{name} is not a complete safetensors file"):
            ppvae.load(PPCA(4, 2), tmp_path / name)
    save_file({"a": torch.ones(1)}, tmp_path / "other")
    with pytest.raises(ValueError, match="other was not written by ppvae"):
        ppvae.load(PPCA(4, 2), tmp_path / "other")
    for text in ("{", '{"__tensor__": "b"}', '{"a": 1}', '{"__items__": 3}', "[" * 10_000 + "]" * 10_000):
        save_file({"a": torch.ones(1)}, tmp_path / "strange", {"state": text})
        with pytest.raises(ValueError, match="strange was not written by ppvae"):
            ppvae.load(PPCA(4, 2), tmp_path / "strange")
    save_state(tmp_path / "nested", {"model": {"a": torch.ones(1)}})
    with pytest.raises(ValueError, match="nested holds no weights"):
        ppvae.load(PPCA(4, 2), tmp_path / "nested")
    with pytest.raises(FileNotFoundError, match="no file"):
        ppvae.load(PPCA(4, 2), tmp_path / "nowhere")
    with pytest.raises(TypeError, match=r"pair must be an nn\.Module"):
        ppvae.load(nn.Linear(1, 1), good)


def test_keys_that_json_has_not_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"the keys of state\['a'\] must be numbers or strings, got \(1, 2\)"):
        save_state(tmp_path / "state.safetensors", {"a": {(1, 2): torch.zeros(())}})
    assert not list(tmp_path.iterdir())


def test_loading_never_unpickles(tmp_path, monkeypatch):
    path = ppvae.save(PPCA(4, 2), tmp_path / "pair")

    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, refuse)
    ppvae.load(PPCA(4, 2), path)


def test_misfits_are_named_and_change_nothing(tmp_path):
    pair = Store()
    ppvae.fit(pair, torch.ones(4), epochs=1, progress=False)
    saved = dict(pair.state_dict())
    other = PPCA(4, 2)
    before = state(other)
    path = save_state(
        tmp_path / "misfit", {**saved, "p_x_given_z.net.0.weight": torch.zeros(4, 3), "odd": torch.ones(1)}
    )
    with pytest.raises(ValueError, match="misfit does not fit this pair") as caught:
        ppvae.load(other, path)
    message = str(caught.value)
    assert "missing p_x_given_z.net.0.bias" in message
    assert "unexpected odd" in message
    assert "p_x_given_z.net.0.weight of shape (4, 3) where the pair has (4, 2)" in message
    assert same(before, state(other))  # no trace of the file's pyro_params either


def test_declared_parameters_come_to_a_fresh_pair(tmp_path):
    pair = Store()
    ppvae.fit(pair, torch.randn(20, generator=torch.Generator().manual_seed(0)), epochs=2, lr=0.1, progress=False)
    fresh = ppvae.load(Store(), ppvae.save(pair, tmp_path / "pair"))
    assert same(state(pair), state(fresh))
    x = torch.tensor([0.3, -2.0])
    assert torch.equal(ppvae.elbo(pair, x, num_samples=3).values, ppvae.elbo(fresh, x, num_samples=3).values)


def test_a_file_takes_the_place_of_no_device_or_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="cannot write: it is no file but a device or a pipe"):
        write_json(pipe, {"a": 1})
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]
