"""`python -m ktse_dist.report --run RUN`: one HTML page about a run, to look at and to send.

Where `ktse evaluate` has not run yet, its score is computed first.
"""

import time
from pathlib import Path

from ktse_dist.data.mask_settings import asked, kept_settings
from ktse_dist.errors import Parser, run_main
from ktse_dist.evaluate import evaluated, lines
from ktse_dist.files import write_text
from ktse_dist.inference.generate import SeedSource
from ktse_dist.mask_work import network_from, splits
from ktse_dist.reporting.page import Material, render
from ktse_dist.run_folder import RunFolder


def main(arguments: list[str]) -> None:
    parser = Parser(prog="ktse report", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="the folder that ktse train printed")
    folder = RunFolder(parser.parse_args(arguments).run.absolute())
    about = material(folder)
    start = time.perf_counter()
    write_text(folder.report, render(about))
    summary = folder.update_summary(seconds={"report": round(time.perf_counter() - start, 1)})
    print(lines(summary, folder), f"report: {folder.report}", sep="\n")


def material(folder: RunFolder) -> Material:
    """All that the page is made of. UserError names the stage that is still to run."""
    config = folder.read_config()
    networks = [network_from(folder.model, config)]
    if folder.baseline.model.is_file():
        networks.append(network_from(folder.baseline.model, config))
    settings = kept_settings(folder.masks)
    train, val = (asked(index, settings) for index in splits(config))
    summary = evaluated(folder)
    run, *baseline = (SeedSource(network, val, settings, config.data.resize) for network in networks)
    return Material(folder, summary, train, run, baseline[0] if baseline else None)


if __name__ == "__main__":
    run_main(main)
