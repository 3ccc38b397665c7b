"""Texts of any length, letter by letter: train on them, report log p(x) and perplexity, and draw new ones."""

import torch
from matplotlib import colors

import ppvae
from ppvae.data import LengthBuckets, Vocabulary
from ppvae.distributions import ConditionalCategorical, ConditionalNormal, ConditionalSequence, StandardNormal
from ppvae.models import SequenceVAE
from ppvae.nn import RNN, SequenceDecoder, SequenceEncoder

torch.manual_seed(1)
names = [name.removeprefix("xkcd:") for name in colors.XKCD_COLORS]  # 949 names of colours
vocabulary = Vocabulary.of(names)
x, lengths = vocabulary.encode(names)  # (n, t), padded; how many letters of each count, its end included
rows = torch.randperm(len(x))
train, test = rows[100:], rows[:100]
size = len(vocabulary)
decoder = SequenceDecoder(torch.nn.Embedding(size, 32), RNN(32, 64), 4, size, word_dropout=0.3)
pair = SequenceVAE(
    p_z=StandardNormal(4),
    p_x_given_z=ConditionalSequence(ConditionalCategorical(decoder, num_classes=size)),
    q_z_given_x=ConditionalNormal(SequenceEncoder(torch.nn.Embedding(size, 32), RNN(32, 32), (2, 4))),
)
ppvae.fit(pair, LengthBuckets(x[train], lengths[train], batch_size=32), epochs=15, lr=5e-3, progress=False)
found = ppvae.log_marginal(pair, x[test], lengths[test], num_samples=1000)
print(f"{found.summary()}\nperplexity per letter: {found.perplexity():.2f}")
print(vocabulary.decode(*pair.eval().sample(8, 20, end=vocabulary.end, temperature=0.7)))
