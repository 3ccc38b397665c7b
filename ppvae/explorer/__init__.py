"""A trained pair to look at in the browser: its latent map, any datum's likelihood, its decoder at every code.

data ──► exploration (codes, maps, terms, a `Decoder` for each latent) ──► page ──► served, or one HTML file

`decoder.py` makes E[x|z] a function of tensors, for any pair; `graph.py` writes that function down as a list of tensor
operations, `interpreter.js` runs the list in the browser. Bokeh, of the extra `ppvae[explore]`, draws the map and the
widgets; nothing of it is imported before `explore` is called.
"""

from ppvae.explorer.explore import explore

__all__ = ["explore"]
