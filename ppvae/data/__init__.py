"""Data sets by name, minibatches that live on the device, and binarization.

```
load("mnist") ──► DataSet(train, valid, test) ──► Batches(*data.train, transform=Binarize()) ──► a pair
```
"""

from ppvae.data.batches import Batches, JointBatches
from ppvae.data.datasets import DATASETS, DataSet, Split, load
from ppvae.data.labels import split_labels
from ppvae.data.source import IterableSource, Source
from ppvae.data.transforms import Binarize, Dequantize, Transform, binarize, dequantize, quantize

__all__ = [
    "DATASETS",
    "Batches",
    "Binarize",
    "DataSet",
    "Dequantize",
    "IterableSource",
    "JointBatches",
    "Source",
    "Split",
    "Transform",
    "binarize",
    "dequantize",
    "load",
    "quantize",
    "split_labels",
]
