"""A table with holes: train on it, report log p of what is there, and fill the rest in."""

import pandas as pd
import torch
from sklearn.datasets import load_wine

import ppvae
from ppvae.data import Table
from ppvae.distributions import ColumnEncoder, ConditionalColumns, ConditionalNormal, StandardNormal, num_params
from ppvae.evaluate import impute
from ppvae.models import MaskedVAE
from ppvae.nn import MLP

torch.manual_seed(0)
wine = load_wine(as_frame=True)
frame: pd.DataFrame = wine.data.assign(grape=[f"grape {k}" for k in wine.target]).sample(frac=1.0, random_state=0)
holes = frame.mask(torch.rand(frame.shape).numpy() < 0.2)  # a fifth of all cells
table = Table.of(holes)
(x, observed), (truth, _) = table.tensors(holes), table.tensors(frame)
pair = MaskedVAE(
    p_z=StandardNormal(3),
    p_x_given_z=ConditionalColumns(MLP(3, (32,), num_params(table.columns)), table.columns),
    q_z_given_x=ConditionalNormal(ColumnEncoder(table.columns, (32,), (2, 3))),
)
ppvae.fit(pair, (x[:140], observed[:140]), (x[140:], observed[140:]), epochs=150, lr=3e-3, progress=False)
print(ppvae.log_marginal(pair, x[140:], observed[140:], num_samples=2000).summary())
filled = impute(pair, x[140:], observed[140:])
print(f"90 % intervals hold {100 * filled.coverage(truth[140:]):.0f} % of the cells that were taken out")
print(table.frame(filled.draws[0]).head())
