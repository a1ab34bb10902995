"""Memory that a training keeps, and gives back at its end."""

import subprocess
import sys

import pytest

SCRIPT = """
import psutil, torch
from ktse_dist.memory import keep_freed_memory, return_freed_memory
resident = lambda: psutil.Process().memory_info().rss >> 20
torch.ones(1)
before = resident()
keep_freed_memory()
some = [torch.ones(1 << 20) for _ in range(100)]
del some
kept = resident()
return_freed_memory()
print(kept - before, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_freed_tensors_stay_for_the_next_step_and_go_back_at_the_end():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=True)
    kept, left = map(int, done.stdout.split())
    assert kept > 350 and left < 100  # megabytes, of 400
