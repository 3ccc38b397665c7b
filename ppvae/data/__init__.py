"""Data sets by name, minibatches that live on the device, and binarization.

```
load("mnist") ──► DataSet(train, valid, test) ──► Batches(*data.train, transform=Binarize()) ──► a pair
```
"""

from ppvae.data.batches import Batches, JointBatches
from ppvae.data.chorales import Series, SeriesData, load_chorales, padded_series
from ppvae.data.datasets import DATASETS, DataSet, Split, load
from ppvae.data.factor_files import FACTOR_DATA, load_factors
from ppvae.data.factors import FactorData, Render, StoredFactors
from ppvae.data.labels import split_labels
from ppvae.data.pictures import Pictures
from ppvae.data.progressions import Progressions
from ppvae.data.sequences import LengthBuckets, Vocabulary
from ppvae.data.source import IterableSource, Source
from ppvae.data.sprites import Sprites
from ppvae.data.table import Column, Table, split_missing
from ppvae.data.transforms import Binarize, Dequantize, RandomPart, Transform, binarize, dequantize, quantize

__all__ = [
    "DATASETS",
    "FACTOR_DATA",
    "Batches",
    "Binarize",
    "Column",
    "DataSet",
    "Dequantize",
    "FactorData",
    "IterableSource",
    "JointBatches",
    "LengthBuckets",
    "Pictures",
    "Progressions",
    "RandomPart",
    "Render",
    "Series",
    "SeriesData",
    "Source",
    "Split",
    "Sprites",
    "StoredFactors",
    "Table",
    "Transform",
    "Vocabulary",
    "binarize",
    "dequantize",
    "load",
    "load_chorales",
    "load_factors",
    "padded_series",
    "quantize",
    "split_labels",
    "split_missing",
]
