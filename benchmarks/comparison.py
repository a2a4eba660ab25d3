"""Where we stand: the same file, photos, decoding and cores in what a user would pick instead, in one run, in turns.

    python benchmarks/compare.py --model models/ensemble.onnx --datastore data/photos-imbalance-0.1

In process: the exported file, a cheaper one of the same run, a session a learner, PyTorch eager and compiled, OpenVINO.
Over HTTP: `bentoml serve` of ours beside the peers of `benchmarks.peers`, each installed from the package index into an
environment of its own. Writes compare.json, compare.md and compare.png.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, set_parsing_settings

from benchmarks import comparison_http as over_http
from benchmarks import comparison_process as in_process
from benchmarks.accuracy import check_match, pixels, spread_indices
from benchmarks.comparison_places import beside_earlier
from benchmarks.comparison_report import draw, markdown
from benchmarks.comparison_rows import Row, read_rows
from benchmarks.machine import cores_of_others, describe_machine
from benchmarks.peers.registry import PEERS
from benchmarks.picture import PHOTOS, photo_pictures
from benchmarks.predictors import OnnxModel
from benchmarks.report import show
from tailstack import datastore as datastores
from tailstack.datastore import Split
from tailstack.errors import UserError
from tailstack.files import make_folder, write_json, write_text


@dataclass
class CompareSettings:
    """Measure our file and our server beside what a user would pick instead."""

    datastore: Path
    """Folder whose test photos are classified."""
    model: Path = Path("models/ensemble.onnx")
    """The plain file."""
    cheaper: Path | None = None
    """A cheaper file of the same run, such as an int8 cascade, measured besides."""
    run: Path | None = None
    """Folder of the run with torch's weights; the default is the one that the file names."""
    systems: list[str] = field(default_factory=lambda: list(PEERS))
    """Servers beside ours; none leaves HTTP out."""
    in_process: bool = True
    """Whether to measure in process too."""
    environments: Path = Path("runs/peers")
    """Folder of the servers' virtual environments; what is there is used again."""
    earlier: Path | None = None
    """The compare.json of an earlier run: the page then says whether the same systems are ahead."""
    output: Path = Path("benchmarks/results")
    """Folder for compare.json, compare.md and compare.png."""
    rounds: int = 8
    """Turns of each system."""
    seconds: float = 1.0
    """Length of a turn of the closed loop, longer where a server is slow; in process it is half of it, in the open loop
    three times as long."""


def run_comparison(settings: CompareSettings) -> tuple[list[Row], dict[str, Any], list[str]]:
    """Measure, and return the rows, the machine and notes for the reader.

    Raises:
        UserError: a file, the run or the datastore is missing, a peer can't be installed or started, or one of them
            answers something else than ours.
    """
    if settings.rounds < 1 or settings.seconds <= 0:
        raise UserError("--rounds has to be 1 or more, and --seconds above 0")
    cores = len(os.sched_getaffinity(0))
    model = OnnxModel.load(settings.model, cores)
    store = datastores.load(settings.datastore)
    check_match(model.artifact, store)
    rows: list[Row] = []
    notes = [
        "A place is 1, and 1 more for each system that is faster in so many rounds that chance doesn't explain it "
        "(sign test, 5%). Systems that share one can't be told apart."
    ]
    earlier = read_rows(settings.earlier) if settings.earlier else None
    busy = cores_of_others()
    if settings.in_process:
        photos = pixels(store.test, spread_indices(store.test, PHOTOS), model.artifact.image_size)
        systems = in_process.systems(model, settings.cheaper, settings.run, cores)
        notes += in_process.agreement(systems, photos)
        rows += in_process.measure(systems, photos, settings.rounds, settings.seconds / 2)
    if settings.systems:
        rows += _over_http(settings, store.test, cores)
        notes.append(
            f"Over HTTP, {PHOTOS} test photos are sent in turn, as JPEGs of 500x375. The closed loop's load is wrk's; "
            f"the open loop goes at {over_http.OPEN_SHARE:.0%} of what the slowest server manages, and counts a "
            "request's wait from when it was due."
        )
    if earlier is not None:
        notes.append(beside_earlier(rows, earlier))
    return rows, {**describe_machine(model.provider, cores), "cores_of_others": busy}, notes


def _over_http(settings: CompareSettings, test: Split, cores: int) -> list[Row]:
    pictures, environments = photo_pictures(test), settings.environments.resolve()
    found = over_http.contestants(settings.systems, settings.model, settings.cheaper, pictures, environments, cores)
    with over_http.start(found) as servers:
        over_http.check_answers(servers)
        rows = over_http.measure_closed(servers, settings.rounds, settings.seconds)
        capacity = over_http.capacity_of_weakest(rows)
        return rows + over_http.measure_open(servers, capacity, settings.rounds, settings.seconds)


def main() -> None:
    """Parse the command line, measure, print, and write the report."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        exit_on_error=False, prog="python benchmarks/compare.py", description=CompareSettings.__doc__
    )
    parser.add_argument("--config", action="config", help="YAML file with any of the settings below; flags override it")
    parser.add_class_arguments(CompareSettings, skip={"systems"})
    parser.add_argument(
        "--systems",
        nargs="*",
        default=list(PEERS),
        choices=list(PEERS),
        help="servers beside ours; none leaves HTTP out",
    )
    values = parser.parse_args().as_dict()
    values.pop("config")
    settings = CompareSettings(**values)
    # A folder that can't be written is found before minutes of measuring.
    output = make_folder(settings.output)
    rows, machine, notes = run_comparison(settings)
    text = markdown(rows, machine, notes)
    show(text)
    write_json(output / "compare.json", rows)
    write_text(output / "compare.md", text)
    draw(rows, output / "compare.png")
