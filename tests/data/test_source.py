"""What gives minibatches: a source of one's own, and an iterable as one."""

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, TensorDataset

import ppvae
from ppvae.data import Batches, IterableSource, JointBatches, Source
from ppvae.infer import RunFolder
from tests.infer.pairs import binary, small_vae


class Drawn(Source):
    """New minibatches in every epoch, a function of its number."""

    num_batches = 5

    def __init__(self, give=lambda x: (x,)):
        self.give = give

    def epoch(self, index):
        for i in range(self.num_batches):
            yield self.give(binary(8, seed=100 * index + i).to(self.device))


def test_a_source_of_ones_own_trains_and_resumes(tmp_path):
    def train(out, epochs, **options):
        return ppvae.fit(small_vae(), Drawn(), binary(8), epochs=epochs, out=out, progress=False, **options)

    whole = train(tmp_path / "whole", 3)
    train(tmp_path / "parts", 1)
    assert train(tmp_path / "parts", 3, resume=True).history == whole.history
    settings = RunFolder(tmp_path / "whole").read_config()["fit"]
    assert (settings["train"], settings["batch_size"]) == (None, None)
    assert settings["train_data"] == {"kind": "Drawn", "sha256": None}


def test_what_a_source_knows_goes_to_the_config(tmp_path):
    class Known(Drawn):
        batch_size = 8
        shapes = [[40, 6]]  # noqa: RUF012

        def __init__(self, text):
            super().__init__()
            self.text = text

        def digest(self):
            return self.text

    options = {"epochs": 1, "out": tmp_path / "run", "progress": False}
    ppvae.fit(small_vae(), Known("one"), **options)
    settings = RunFolder(tmp_path / "run").read_config()["fit"]
    assert (settings["train"], settings["train_data"]["sha256"], settings["batch_size"]) == ([[40, 6]], "one", 8)
    with pytest.raises(ValueError, match=r"train_data\.sha256 was 'one', is 'other'"):
        ppvae.fit(small_vae(), Known("other"), resume=True, **options)


def test_generators_of_a_source_are_part_of_a_checkpoint(tmp_path):
    class Stream(Source):
        def __init__(self):
            self.generators = [torch.Generator().manual_seed(3)]

        def epoch(self, index):
            for _ in range(4):
                yield (torch.bernoulli(torch.full((8, 6), 0.5), generator=self.generators[0]),)

    def train(out, epochs, **options):
        return ppvae.fit(small_vae(), Stream(), epochs=epochs, out=out, progress=False, **options)

    whole = train(tmp_path / "whole", 3)
    train(tmp_path / "parts", 1)
    assert train(tmp_path / "parts", 3, resume=True).history == whole.history


@pytest.mark.parametrize("give", [lambda x: x, lambda x: [x], lambda x: {"x": x}])
def test_minibatches_that_are_no_tuples_are_named(give):
    with pytest.raises(TypeError, match="train must give minibatches that are tuples of tensors, got"):
        ppvae.fit(small_vae(), Drawn(give), epochs=1, progress=False)


def test_what_batches_say_of_themselves():
    x, y = torch.arange(7.0), torch.arange(7)
    batches = Batches(x, None, y, batch_size=3)
    assert (batches.num_batches, batches.last_rows, batches.is_cut, batches.weights) == (3, 1, True, None)
    assert batches.shapes == [[7], None, [7]]
    assert batches.sets == ()
    assert all(a is b for a, b in zip(batches.whole, (x, None, y), strict=True))
    drawn = Batches(x, batch_size=7, transform=lambda generator, x: (x,))
    assert (drawn.num_batches, drawn.last_rows, drawn.is_cut, drawn.whole) == (1, 0, False, None)
    assert Batches(x, batch_size=3, drop_last=True).last_rows == 0
    assert Batches(x, batch_size=9).last_rows == 0
    assert drawn.digest() == Batches(x, batch_size=2).digest() != batches.digest()


@pytest.mark.parametrize("row", [0, 1, 2, 2500, 4999])
def test_a_digest_is_of_all_the_data(row):
    x, y = torch.zeros(5000, 2), torch.arange(5000)
    one = Batches(x, y, batch_size=100)
    changed = x.clone()
    changed[row, 1] = 1e-38
    assert Batches(changed, y, batch_size=10).digest() != one.digest() == Batches(x.clone(), y, batch_size=7).digest()
    assert Batches(x, y.int(), batch_size=100).digest() != one.digest()
    assert Batches(x.reshape(5000, 2, 1), y, batch_size=100).digest() != one.digest()
    assert JointBatches(one, one).shapes == [one.shapes, one.shapes]


def test_the_digest_of_an_iterable_is_of_its_first_minibatch():
    x = torch.randn(20, 3)

    def digest(x, **options):
        return IterableSource(DataLoader(TensorDataset(x), batch_size=4, **options)).digest()

    state = torch.get_rng_state()
    assert digest(x, shuffle=True) == digest(x, shuffle=True) != digest(x)
    assert digest(x) != digest(x + 1)
    assert torch.equal(torch.get_rng_state(), state)
    generator = torch.Generator().manual_seed(3)
    assert digest(x, shuffle=True, generator=generator) == digest(x, shuffle=True, generator=generator)
    new_every_time = [(torch.full((2,), i),) for i in range(99)]

    class Counting:
        def __iter__(self):
            return iter([new_every_time.pop()])

    assert IterableSource(Counting()).digest() is None


def test_an_iterable_as_a_source():
    x = torch.arange(12.0).reshape(6, 2)
    listed = IterableSource([x, (x, None), [x, x]])
    assert [len(batch) for batch in listed.epoch(7)] == [1, 2, 2]
    assert (listed.num_batches, listed.is_cut, listed.batch_size, listed.settings()["of"]) == (3, False, None, "list")
    loader = IterableSource(DataLoader(TensorDataset(x), batch_size=4))
    assert (loader.num_batches, loader.is_cut, loader.batch_size, loader.generators) == (2, True, 4, [])
    assert not IterableSource(DataLoader(TensorDataset(x), batch_size=6)).is_cut
    assert IterableSource(iter([x])).num_batches is None

    class Endless(IterableDataset):
        def __iter__(self):
            return iter([x])

    assert IterableSource(DataLoader(Endless())).num_batches is None
    with pytest.raises(TypeError, match="valid gives minibatches that are dicts"):
        next(IterableSource([{}], name="valid").epoch(0))


def test_generators_of_a_loader_are_found_once():
    generator = torch.Generator()
    data = TensorDataset(torch.zeros(4))
    both = DataLoader(data, sampler=RandomSampler(data, generator=generator), generator=generator)
    assert IterableSource(both).generators == [generator]
    batched = DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 2, drop_last=False))
    assert IterableSource(batched).generators == []


def test_moving_a_source():
    source = Drawn()
    moved = source.to("cpu")
    assert (source.device, moved.device, moved.give) == (None, torch.device("cpu"), source.give)


def test_a_loader_says_how_short_its_last_minibatch_is():
    data = TensorDataset(torch.zeros(257, 3))
    assert IterableSource(DataLoader(data, batch_size=128)).last_rows == 1
    assert IterableSource(DataLoader(data, batch_size=128, drop_last=True)).last_rows == 0
    assert IterableSource(DataLoader(data, batch_size=300)).last_rows == 0
    assert IterableSource([torch.zeros(128, 3), torch.zeros(1, 3)]).last_rows == 0
