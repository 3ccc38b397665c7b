import platform
import subprocess
import sys

import pytest

from ppvae.compile import keep_freed_memory

FAULTS = """
import resource
import torch
from ppvae.compile import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        tensors = [torch.zeros(10 * 2**20) + 1 for _ in range(2)]
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

returned = faults()
assert keep_freed_memory()
faults()  # the last new pages
print(returned, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone has the setting")
def test_freed_memory_is_used_again():
    """Pages that a loop has the system fill anew: all of its tensors' by default, hardly any when they are kept."""
    result = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    returned, kept = map(int, result.stdout.split())
    assert returned > 100
    assert kept < returned / 20


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone has the setting")
def test_a_library_that_refuses_says_so(monkeypatch):
    class OldGlibc:
        def mallopt(self, parameter, value):
            calls.append((parameter, value))
            return int(value <= limit or parameter == -1)

    monkeypatch.setattr("ctypes.CDLL", lambda name: OldGlibc())
    calls, limit = [], 2**25
    assert keep_freed_memory() is True
    assert calls == [(-3, 2**31 - 1), (-3, 2**25), (-1, 2**31 - 1)]
    calls, limit = [], 0
    assert keep_freed_memory() is False
