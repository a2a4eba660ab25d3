"""Memory that is free in the process, but not yet for others."""

import ctypes
import gc
import sys


def give_back_memory() -> None:
    """Let go of what models that are gone took: glibc keeps it, and a server would grow with each reload."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)
