"""A computation traced once: its arithmetic compiled, guarded, compared with the eager one, recorded on a GPU."""

from ppvae.compile.allocator import keep_freed_memory
from ppvae.compile.compiled import Compiled
from ppvae.compile.tracing import UncompilableError

__all__ = ["Compiled", "UncompilableError", "keep_freed_memory"]
