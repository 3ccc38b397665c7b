"""A folder of your own pictures: load, train, report log p(x), look at codes; here the pictures are made first."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import ppvae
from ppvae.data import load
from ppvae.distributions import ConditionalDiscretizedLogistic, ConditionalNormal, StandardNormal
from ppvae.models import VAE
from ppvae.nn import MLP

folder, rng = Path(tempfile.mkdtemp()), np.random.default_rng(0)
for i in range(400):
    picture = np.full((20, 24), 30, np.uint8)
    row, column = rng.integers(2, 14, 2)
    picture[row : row + 5, column : column + 5] = rng.integers(120, 255)
    Image.fromarray(picture).save(folder / f"{i}.png")

torch.manual_seed(0)
data = load("folder", folder, size=16)  # or the images of class folders, or of train/ and test/
shape = tuple(data.event_shape)
pair = VAE(
    p_z=StandardNormal(4),
    p_x_given_z=ConditionalDiscretizedLogistic(MLP(4, (64,), shape), num_levels=data.levels, scale="learned"),
    q_z_given_x=ConditionalNormal(MLP(shape, (64,), (2, 4))),
)
ppvae.fit(pair, data.train.x, data.valid.x, epochs=100, batch_size=64, lr=3e-3, progress=False)
print(ppvae.log_marginal(pair, data.test.x).summary())
print("codes:", ppvae.encode(pair, data.test.x).shape)
