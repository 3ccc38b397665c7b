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
    assert [settings[key] for key in ("train", "train_digest", "batch_size")] == [None, None, None]


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
    assert [settings[key] for key in ("train", "train_digest", "batch_size")] == [[[40, 6]], "one", 8]
    with pytest.raises(ValueError, match="train_digest was 'one', is 'other'"):
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


def test_digests_are_those_of_version_0_1():
    x, y = torch.arange(12.0).reshape(6, 2), torch.arange(6)
    one, other = Batches(x, y, batch_size=2), Batches(x[:3], batch_size=1)
    assert one.digest() == DIGESTS[0]
    assert JointBatches(one, other).digest() == DIGESTS[1]
    assert JointBatches(one, other).shapes == [[[6, 2], [6]], [[3, 2]]]


DIGESTS = ("896cb2ee49c54c3f", "7038c8948bc10139")


def test_an_iterable_as_a_source():
    x = torch.arange(12.0).reshape(6, 2)
    listed = IterableSource([x, (x, None), [x, x]])
    assert [len(batch) for batch in listed.epoch(7)] == [1, 2, 2]
    assert (listed.num_batches, listed.is_cut, listed.batch_size, listed.digest()) == (3, False, None, None)
    loader = IterableSource(DataLoader(TensorDataset(x), batch_size=4))
    assert (loader.num_batches, loader.is_cut, loader.batch_size, loader.generators) == (2, True, 4, [])
    assert not IterableSource(DataLoader(TensorDataset(x), batch_size=6)).is_cut
    assert IterableSource(iter([x])).num_batches is None

    class Endless(IterableDataset):
        def __iter__(self):
            return iter([x])

    assert IterableSource(DataLoader(Endless())).num_batches is None
    with pytest.raises(TypeError, match="valid must give minibatches that are tensors or tuples of them, got dict"):
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
