"""What Ray's workers inherit."""

from ktse_dist.config_file import load_config
from ktse_dist.launch.ray_train import worker_environment


def test_the_kernel_mode_of_the_environment_wins_over_the_config_on_workers_too(monkeypatch):
    config = load_config(None, ["kernels.mode=auto"])
    monkeypatch.setenv("KTSE_KERNELS", "reference")
    assert worker_environment(config)["KTSE_KERNELS"] == "reference"
    monkeypatch.delenv("KTSE_KERNELS")
    assert "KTSE_KERNELS" not in worker_environment(config)
