"""Where a run's files lie: <run.root>/<run.name>/."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ktse_dist.config import Config
from ktse_dist.config.base import ROOT_ALLOWED, WRITABLE, without_secrets
from ktse_dist.config_file import load_config, read_given, to_yaml
from ktse_dist.errors import UserError
from ktse_dist.files import read_json, write_text

JOB_MARK = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it in the entry point of a submitted job


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run, whether or not they exist yet."""

    path: Path
    address: str | None = None  # where the files go from `path`, if run.root is an address (training/mirror.py)

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def phase1(self) -> Path:
        """The checkpoint at the end of phase 1, from which runs fork."""
        return self.checkpoints / "phase1"

    @property
    def model(self) -> Path:
        return self.path / "model.safetensors"

    @property
    def card(self) -> Path:
        """What model.safetensors is, for those who get it from somebody."""
        return self.path / "model.md"

    @property
    def attribution(self) -> Path:
        """A copy of the data set's, if it has one: it belongs to the weights as well."""
        return self.path / "ATTRIBUTION.md"

    @property
    def masks(self) -> Path:
        return self.path / "masks"

    @property
    def refinement(self) -> "RunFolder":
        """The training of the network behind masks.refine=irn; it goes with the masks."""
        return RunFolder(self.masks / "irn")

    @property
    def refinement_labels(self) -> Path:
        return self.refinement.path / "labels"

    @property
    def phase1_scores(self) -> Path:
        return self.masks / "phase1"

    @property
    def summary_file(self) -> Path:
        return self.path / "summary.json"

    @property
    def confusion(self) -> Path:
        """Which class was taken for which: the table that evaluation/mask_score.py writes."""
        return self.path / "confusion.csv"

    @property
    def report(self) -> Path:
        return self.path / "report" / "index.html"

    @property
    def baseline(self) -> "RunFolder":
        """The classification-only run forked from the end of phase 1."""
        return RunFolder(self.path / "baseline", self.address and f"{self.address}/baseline")

    @property
    def segment(self) -> "RunFolder":
        """Stage 2, the segmentation network learnt from this run's masks."""
        return RunFolder(self.path / "segment")

    @property
    def learnt_masks_file(self) -> Path:
        return self.path / "masks.sha256"

    @property
    def learnt_masks(self) -> str | None:
        """Which masks stage 2 in this folder learns from: sha256 of their index."""
        file = self.learnt_masks_file
        return file.read_text(errors="replace").strip() if file.is_file() else None

    def write_config(self, config: Config) -> None:
        write_text(self.config_file, to_yaml(config))

    def read_config(self) -> Config:
        """The resolved config that the run was started with. UserError if this is no run."""
        if not self.config_file.is_file():
            raise UserError(f"--run {self.path}: no config.yaml there; give the folder that ktse train printed")
        if self.learnt_masks_file.is_file():
            its = f"give --run {self.path.parent}, or --model {self.model} to ktse predict"
            raise UserError(f"--run {self.path}: a network of ktse segment; {its}")
        sections = {field.alias or name for name, field in Config.model_fields.items()}
        mend = "give the ktse train command of the run again, which writes it anew"
        try:
            missing = sections - set(read_given(self.config_file))
            config = load_config(self.config_file)
        except UserError as error:
            raise UserError(f"{self.config_file}: not a run's config ({error}); {mend}") from None
        if missing:
            raise UserError(f"{self.config_file}: damaged, section '{min(missing)}' is missing; {mend}")
        return config

    def read_summary(self) -> dict[str, Any]:
        if not self.summary_file.is_file():
            return {}
        mend = "delete it and give the same command again; ktse evaluate scores a run anew"
        return read_json(self.summary_file, mend)

    def spent(self, stage: str) -> dict[str, float]:
        """The seconds of this folder's training, under the name that it has in another's summary; a summary.json that
        had to be deleted took them along."""
        seconds = self.read_summary().get("seconds", {})
        return {stage: seconds["train"]} if "train" in seconds else {}

    def forget(self, beginning: str) -> dict[str, Any]:
        """summary.json without the fields whose names begin so; returns it."""
        summary = {key: value for key, value in self.read_summary().items() if not key.startswith(beginning)}
        write_text(self.summary_file, json.dumps(summary, indent=2, sort_keys=True) + "\n")
        return summary

    def update_summary(self, **fields: Any) -> dict[str, Any]:
        """Merge fields into summary.json; `seconds` is merged one level deeper and its total kept true."""
        summary = self.read_summary()
        seconds = {k: v for k, v in (summary.get("seconds", {}) | fields.pop("seconds", {})).items() if k != "total"}
        summary |= fields | {"seconds": seconds | {"total": round(sum(seconds.values()), 1)}}
        write_text(self.summary_file, json.dumps(summary, indent=2, sort_keys=True) + "\n")
        return summary


def run_address(config: Config) -> str | None:
    """run.root, else $KTSE_RUNS, where that is an address."""
    root = config.run.root or os.environ.get("KTSE_RUNS") or ""
    if not isinstance(root, str) or "://" not in root:
        return None
    if not WRITABLE.fullmatch(root):
        raise UserError(f"KTSE_RUNS is '{without_secrets(root)}'; {ROOT_ALLOWED}")
    return root.rstrip("/")


def run_root(config: Config) -> Path:
    """run.root, else $KTSE_RUNS, else ./runs; absolute. Inside a submitted job a relative root is refused.

    Of an address this machine's working folder, in the cache of the user: what is there can be had again.
    """
    address = run_address(config)
    if address:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cache.absolute() / "ktse_runs" / hashlib.sha256(address.encode()).hexdigest()[:16]
    root = Path(config.run.root or os.environ.get("KTSE_RUNS") or "runs").expanduser()
    if not root.is_absolute() and JOB_MARK in os.environ:
        raise UserError(
            f"run.root: found '{root}' inside a submitted job, whose folder goes away with the job; "
            "allowed is an absolute path on storage that outlives it: set run.root=/shared/runs or KTSE_RUNS"
        )
    return root.absolute()


def run_folder(config: Config) -> RunFolder:
    address = run_address(config)
    return RunFolder(run_root(config) / config.run.name, address and f"{address}/{config.run.name}")


def dataset_path(config: Config) -> Path | str:
    """The packed data set, or its address; the embedded stickers lie under the run root, which every node sees."""
    path = config.data.path
    if isinstance(path, str):
        return path
    return path.expanduser().absolute() if path else run_root(config) / "stickers"
