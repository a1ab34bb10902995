"""The benchmark scripts of operations and of the training step: what they print, and what they refuse to print."""

import csv
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels.ops.transfer import eager
from ktse_dist import models
from ktse_dist.config.method import Network
from ktse_dist.config_file import load_config
from ktse_dist.inference.multiscale import network_of

FOLDER = Path(__file__).parent.parent / "benchmarks"
TINY = ["--quick", "--device", "cpu", "--pictures", "2", "--size", "64", "--seconds", "0.01"]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.delenv("KTSE_KERNELS", raising=False)
    return importlib.import_module


def printed(capsys):
    """(all lines but the last, the last one's object)."""
    *rows, last = capsys.readouterr().out.strip().splitlines()
    return rows, json.loads(last)


def rows_of(lines, op):
    return {line[13:23].strip() for line in lines if line.startswith(f"{op} ") and "NOT PRINTED" not in line}


def test_every_operation_is_a_row_of_every_variant(script, capsys, tmp_path):
    ops = script("ops")
    ops.main([*TINY, "--save", str(tmp_path / "ops.csv"), "--plot", str(tmp_path / "ops.png")])
    lines, last = printed(capsys)
    assert all(rows_of(lines, op) == {"published", "reference", "fast path"} for op in ops.OPS)
    assert last["benchmark"] == "ops" and last["holds"] is True
    assert all(last["figures"][f"{op}_x"] > 0 and last["figures"][f"{op}_mem_x"] > 0 for op in ops.OPS)
    with (tmp_path / "ops.csv").open(newline="") as file:
        saved = list(csv.DictReader(file))
    assert len(saved) == 3 * len(ops.OPS) and {row["torch"] for row in saved} == {torch.__version__}
    assert (tmp_path / "ops.png").stat().st_size > 1000


REAL = eager.align_loss
WRONG = {
    "value": lambda *arguments: 1.001 * REAL(*arguments),
    "gradient": lambda cam, erased, *rest: REAL(cam, erased, *rest) + 1e-3 * (erased - erased.detach()).sum(),
    "NaN": lambda *arguments: torch.nan * REAL(*arguments),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_row_whose_check_fails_is_not_printed_and_nothing_holds(script, capsys, monkeypatch, what):
    monkeypatch.setattr(eager, "align_loss", WRONG[what])
    script("ops").main([*TINY, "--ops", "align"])
    lines, last = printed(capsys)
    assert rows_of(lines, "align") == {"published", "reference"}
    assert any(line.startswith("align fast path: NOT PRINTED") for line in lines)
    assert last["holds"] is False and last["figures"] == {}


def test_a_variant_that_fails_takes_no_other_row_with_it(script, capsys, monkeypatch):
    def fails(*_):
        raise RuntimeError("out of memory\nand more")

    ops = script("ops")
    monkeypatch.setattr(script("published_ops"), "align_loss", fails)
    ops.main([*TINY, "--ops", "align"])
    lines, last = printed(capsys)
    assert "align published: NOT PRINTED, RuntimeError: out of memory" in lines
    assert rows_of(lines, "align") == {"reference", "fast path"} and last["holds"] is False


def test_half_precision_rows_are_checked_too(script, capsys):
    script("ops").main([*TINY, "--dtype", "bf16", "--ops", "align", "seg_loss", "erase"])
    lines, last = printed(capsys)
    assert last["holds"] and all(len(rows_of(lines, op)) == 3 for op in ("align", "seg_loss", "erase"))


def test_figures_below_their_targets_or_missing_do_not_hold(script):
    holds = script("ops").holds
    assert holds({"par_x": 6.0}, {"par_x": {"min": 6}})
    assert not holds({"par_x": 5.9}, {"par_x": {"min": 6}})
    assert not holds({"erase_us": 21.0}, {"erase_us": {"max": 20}})
    assert not holds({}, {"par_x": {"min": 6}})


def test_peak_memory_is_what_lives_at_once(script):
    def two_of_three():
        first = torch.ones(1 << 18)
        second = first + 1
        del first
        return second * 2

    peak = script("measuring").peak_bytes(two_of_three, torch.device("cpu"))
    assert 0 <= peak - (2 << 20) < 1024  # torch also allocates the numbers 1 and 2


def test_views_move_no_bytes(script):
    x = torch.ones(4, 8)
    assert script("measuring").moved_bytes(lambda: x.t()[1:].unsqueeze(0)) == 0
    assert script("measuring").moved_bytes(lambda: x + x) == 3 * 4 * x.numel()


def test_the_operations_are_measured_with_torch_and_triton_alone():
    others = ("ktse_dist", "matplotlib", "pydantic", "yaml", "cv2", "ray", "deepspeed")
    check = f"import sys; sys.modules.update(dict.fromkeys({others})); sys.path.insert(0, {str(FOLDER)!r}); import ops"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=120, cwd="/")


def test_a_training_step_is_told_with_its_parts(script, capsys, tmp_path):
    script("train_step").main([*TINY, "--save", str(tmp_path / "steps.json")])
    lines, last = printed(capsys)
    assert [line.split(": ")[0] for line in lines if "images/s" in line] == [
        "published",
        "ours, published preset",
        "ours, corrected",
    ]
    assert last["figures"]["step_x"] > 0 and 0 < last["figures"]["outside_backbone"] < 1
    (saved,) = json.loads((tmp_path / "steps.json").read_text())
    ours = saved["rows"]["ours, published preset"]["parts_ms"]
    assert {"backbone forward", "backbone backward", "head", "par", "seg_loss", "erase", "optimiser"} <= ours.keys()
    assert saved["rows"]["published"]["parts_ms"]["par"] > 0


def test_a_step_that_computes_another_loss_is_not_printed(script, capsys, monkeypatch):
    published = script("published_ops")
    real = published.transfer_loss
    monkeypatch.setattr(published, "transfer_loss", lambda *arguments: real(*arguments) + 0.1)
    script("train_step").main(TINY)
    lines, last = printed(capsys)
    assert not any("images/s" in line for line in lines) and any("NOT PRINTED" in line for line in lines)
    assert last["figures"] == {} and last["holds"] is False


def test_timing_the_parts_changes_no_gradient_and_leaves_nothing_behind(script):
    import argparse

    train_step = script("train_step")
    shape = {"backbone": "efficientnet_lite0", "shapes": "demo", "device": "cpu", "precision": "fp32"}
    options = argparse.Namespace(**shape, pictures=2, size=64)
    for step in train_step.formulations(options, 2, 64, 20).values():
        loss, gradient = step.result()
        with train_step.parts_of(step) as clock:
            timed_loss, timed_gradient = step.result()
        torch.testing.assert_close((timed_loss, timed_gradient), (loss, gradient), rtol=1e-5, atol=1e-7)
        seen = dict(clock.spent)
        step.result()
        assert seen == clock.spent


CHECKPOINT = ["--quick", "--backbone", "efficientnet_lite0", "--size", "64"]


def test_what_a_checkpoint_costs_is_told_and_held_against_the_target(script, capsys):
    script("checkpoint").main(CHECKPOINT)
    _, last = printed(capsys)
    assert {"held_up_s", "longest_held_up_s", "write_s", "step_beside_x", "in_the_step_s"} <= last["figures"].keys()
    assert last["holds"] is (last["figures"]["longest_held_up_s"] <= 1)


def test_a_checkpoint_of_weights_that_training_went_on_to_change_gives_no_figure(script, capsys, monkeypatch):
    checkpoint = script("checkpoint")
    monkeypatch.setattr(checkpoint.HostCopies, "__call__", lambda self, name, tensor: tensor.detach())
    begin = checkpoint.Writer.begin
    monkeypatch.setattr(checkpoint.Writer, "begin", lambda *arguments: (trial_step(), begin(*arguments)))
    trials, init = [], checkpoint.Trial.__init__
    monkeypatch.setattr(checkpoint.Trial, "__init__", lambda self, *a: (trials.append(self), init(self, *a))[1])

    def trial_step():
        trials[0].step()

    with pytest.raises(AssertionError):
        checkpoint.main(CHECKPOINT)
    assert "figures" not in capsys.readouterr().out


def test_random_walks_are_compared_before_a_figure_is_printed(script, capsys):
    walk = script("random_walk")
    both = walk.compare(*walk.drawn(80, 100))
    large = {"seconds": 1.0, "bytes": 1}
    assert walk.report((80, 100), both, large, (80, 100))["figures"]["walk_mem_x"] > 1
    failed = walk.report((80, 100), both | {"same": False}, large, (80, 100))
    assert failed["figures"] == {} and failed["holds"] is False
    assert "NOT PRINTED" in capsys.readouterr().out


def sent_in(script, capsys, *options):
    """Every row of a scaling run on small pictures, and its last line."""
    rows = []
    scaling = script("scaling")
    told = scaling.told
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling, "told", lambda found: (rows.extend(found), told(found)))
        scaling.main(["--quick", *options])
    return rows, printed(capsys)[1]


def test_zero3_sends_what_the_formula_says(script, capsys):
    rows, last = sent_in(script, capsys, "--workers", "2", "--engines", "zero3")
    assert [row["phase"] for row in rows] == [1, 2] and all(row["bytes"] > 10e6 for row in rows)
    assert all(row["calls"] == row["formula_calls"] for row in rows)
    assert last["figures"]["bytes_model_error"] < 0.01 and last["holds"] is True


@pytest.mark.slow
def test_all_engines_send_what_the_formula_says_in_both_phases(script, capsys, tmp_path):
    rows, last = sent_in(script, capsys, "--save", str(tmp_path))
    assert len(rows) == 2 * 2 * 6 and max(row["error"] for row in rows) < 0.01
    assert last["holds"] is True
    assert json.loads((tmp_path / "scaling.json").read_text())["rows"] == rows
    with (tmp_path / "scaling_on_paper.csv").open(newline="") as file:
        assert {row["gpus"] for row in csv.DictReader(file)} >= {"8", "512"}
    assert (tmp_path / "scaling_on_paper.png").stat().st_size > 1000


@pytest.mark.parametrize(("wrong", "holds"), [(0.04, True), (0.06, False)])
def test_a_formula_that_is_too_far_off_does_not_hold(script, wrong, holds):
    counted = {"engine": "ddp", "backbone": "efficientnet_lite0", "workers": 2, "phase": 1, "calls": 2}
    scaling = script("scaling")
    told = scaling.step_model.sent("ddp", scaling.step_model.size_of("efficientnet_lite0"), 2, 1).total
    sockets = {"socket_bytes": 1, "gloo_bytes": 1}
    row = scaling.against_formula(counted | {"bytes": told / (1 + wrong)} | sockets)
    assert scaling.result_of([row])["holds"] is holds


def test_a_collective_that_has_no_convention_is_an_error(script):
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with script("traffic").Traffic() as traffic:
            dist.all_reduce(torch.ones(3))
            with pytest.raises(AssertionError, match="no convention for"):
                dist.all_to_all_single(torch.empty(2), torch.ones(2))
    finally:
        dist.destroy_process_group()
    assert dict(traffic.size) == {"allreduce_": 12}


@pytest.mark.parametrize("engine", ["ddp", "zero1", "zero3"])
def test_on_paper_slower_links_and_more_nodes_never_help(script, engine):
    scaling = script("scaling")
    rows = [row for row in scaling.on_paper(16) if row["engine"] == engine]
    places = {(row["backbone"], row["phase"], row["link"], row["gpus"]): row["efficiency"] for row in rows}
    assert len(places) == len(rows) and all(0 < efficiency < 1 for efficiency in places.values())
    fast, slow = "400 Gbit/s", "25 Gbit/s"
    assert all(places[b, p, slow, n] <= places[b, p, fast, n] for b, p, _, n in places)
    assert all(places[b, p, link, 512] <= places[b, p, link, 8] for b, p, link, _ in places)


@pytest.mark.slow
def test_masks_of_one_worker_of_two_and_after_a_kill_are_the_same_files(script, capsys):
    script("masks").main(["--pictures", "240"])
    _, last = printed(capsys)
    assert last["figures"]["files_that_differ"] == last["figures"]["shards_made_twice"] == 0
    assert last["figures"]["workers_x"] > 0 and last["figures"]["command_x"] > 0


def test_the_plain_loop_makes_the_same_masks_and_stores_its_cams(script, monkeypatch, tmp_path):
    pytest.importorskip("pydensecrf")
    stage = script("mask_stage")
    for name, value in {"HEIGHT": 96, "WIDTH": 128, "ROUNDS": 1, "PROCESSES": 0}.items():
        monkeypatch.setattr(stage, name, value)
    index, network = stage.pack(tmp_path / "data", 2), stage.untrained()
    rounds = stage.stage_rounds(network, index, 2, tmp_path)
    assert rounds["fp32"][0].same >= stage.SAME["fp32"]
    tagged = sum(len(stage.tags(index, row)) for row in range(2))
    assert stage.size(tmp_path / "plain") > 4 * 96 * 128 * tagged > stage.size(tmp_path / "fp32")


def test_a_mosaic_within_the_bound_is_what_it_was_and_a_larger_one_is_compared(script, monkeypatch):
    tiles = script("tiles")
    for name, value in {"CELL": (192, 160), "ACROSS": 3, "DOWN": 3, "MAX_PIXELS": (1_250_000, 250_000)}.items():
        monkeypatch.setattr(tiles, name, value)
    torch.manual_seed(0)
    backbone, head = (part.eval() for part in models.build(Network(weights="none"), 20))
    found = tiles.compared(network_of(backbone, head), *tiles.mosaic(0))
    assert found["1250000"] == {"same_labels": 1.0, "mean": 0.0, "most": 0.0}
    assert 0 < found["250000"]["mean"] < 0.2 and found["250000"]["same_labels"] > 0.5


@pytest.mark.parametrize(("network", "holds"), [(44.0, True), (39.0, False)])
def test_stages_are_told_as_means_over_seeds_and_a_row_that_is_there_is_not_made_again(
    script, capsys, monkeypatch, tmp_path, network, holds
):
    stages = script("stages")
    row = dict.fromkeys(stages.COLUMNS, "x") | dict.fromkeys(stages.SCORES, 40.0) | {"irn_val": 50.0}
    for seed in (1, 2):
        stages.append(tmp_path / "stages.csv", stages.COLUMNS, row | {"seed": seed, "network_final": network})
    monkeypatch.setattr("sys.argv", ["stages.py", "--results", str(tmp_path), "--seeds", "1", "2"])
    stages.main()
    _, last = printed(capsys)
    assert last["figures"]["masks_gain"] == 10 and last["figures"]["network_gain"] == network - 40
    assert last["holds"] is holds


@pytest.mark.slow
def test_a_seed_goes_through_all_stages_to_one_row(script, monkeypatch, tmp_path, untrained_run):
    pytest.importorskip("pydensecrf")
    run, stages = untrained_run("run", "engine.name=torch", train=9, val=2), script("stages")
    irn = ["masks.irn.crop=96", "masks.irn.batch=2", "masks.irn.epochs=1", "masks.irn.lr=0.01"]
    settings = [*irn, "masks.refine=crf", "masks.pictures.train=4"]
    monkeypatch.setattr(stages, "config_of", lambda *key: load_config(run / "config.yaml", [*settings, *key[3:]]))
    source = tmp_path / "seed-1" / "corrected" / stages.FULL
    source.mkdir(parents=True)
    shutil.copyfile(run / "model.safetensors", source / "model.safetensors")
    keys = ["data.crop=64", "train.batch=[[0,4]]", "train.epochs=1", "train.phase1_epochs=1"]
    row = stages.row_of(tmp_path, 1, 8, keys)
    assert row.keys() == set(stages.COLUMNS)
    assert all(0 <= row[score] <= 100 for score in (*stages.SCORES, *stages.TRAIN_SCORES))
    assert all(row[f"{stage}_s"] > 0 for stage in stages.SECONDS)
    again = stages.row_of(tmp_path, 1, 8, keys)
    assert again | {"date": row["date"]} == row  # nothing is made twice


def test_stages_without_a_row_hold_nothing(script):
    assert script("stages").summary([])["holds"] is False
