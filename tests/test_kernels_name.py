"""Hugging Face's package `kernels` in front of ours is one clear error."""

import os
import subprocess
import sys


def test_another_package_called_kernels_is_named(tmp_path):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", "import ktse_dist"], env=environment, capture_output=True, text=True, timeout=60, cwd="/"
    )
    assert "ImportError: ktse_dist needs its own package 'kernels'" in done.stderr
    assert str(tmp_path) in done.stderr
