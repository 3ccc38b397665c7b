"""Reproducible experiments with flags: `python -m ppvae.examples.<model> --help`."""
