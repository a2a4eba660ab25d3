"""Where we stand: the same file, photos, decoding and cores in what a user would pick instead, in one run, in turns.

    python benchmarks/compare.py --model models/ensemble.onnx --datastore data/photos-imbalance-0.1

In process: the exported file, a cheaper one of the same run, a session a learner, PyTorch eager and compiled, OpenVINO.
Over HTTP: `bentoml serve` of ours beside the peers of `benchmarks.peers`, each installed from the package index into an
environment of its own. Writes compare.json, compare.md and compare.png, anew after each part.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jsonargparse import ArgumentParser, set_parsing_settings

from benchmarks import comparison_http as over_http
from benchmarks import comparison_process as in_process
from benchmarks.accuracy import check_match
from benchmarks.comparison_places import beside_earlier
from benchmarks.comparison_report import Comparison
from benchmarks.comparison_rows import HTTP, IN_PROCESS, OPEN_LOOP, read_rows
from benchmarks.comparison_servers import Contestant, check_answers, contestants, start
from benchmarks.machine import cores_of_others, describe_machine
from benchmarks.peers.registry import PEERS
from benchmarks.picture import PHOTOS, photo_pictures
from benchmarks.predictors import OnnxModel
from benchmarks.report import show
from benchmarks.wrk import check_wrk
from tailstack import datastore as datastores
from tailstack.datastore import Datastore
from tailstack.errors import UserError
from tailstack.files import make_folder

PLACES = (
    "A place is 1, and 1 more for each system that is faster in so many rounds that chance doesn't explain it (sign "
    "test, 5%). Systems that share one can't be told apart."
)
OVER_HTTP = (
    f"Over HTTP, {PHOTOS} test photos are sent in turn, as JPEGs of 500x375. The closed loop's load is wrk's, and "
    "shares the cores with the servers. The open loop sends at random, at the same moments to all, and at "
    f"{over_http.OPEN_SHARE:.0%} of what the slowest server manages; a request's wait counts from when it was due. "
    "Ours measures at its start how ONNX Runtime runs the file fastest, as it does for its users (`TAILSTACK_TUNE`), "
    "anew in each run; the others run it by its defaults."
)


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
    three times as long or longer."""


@dataclass(frozen=True)
class _Subject:
    """What is measured."""

    model: OnnxModel
    cheaper: OnnxModel | None
    store: Datastore
    cores: int

    @classmethod
    def load(cls, settings: CompareSettings) -> "_Subject":
        """Load the files and the datastore, and see that they fit together.

        Raises:
            UserError: something is missing, or doesn't.
        """
        cores = len(os.sched_getaffinity(0))
        model = OnnxModel.load(settings.model, cores)
        cheaper = OnnxModel.load(settings.cheaper, cores) if settings.cheaper else None
        if cheaper:
            in_process.check_cheaper(model.artifact, cheaper.artifact)
        store = datastores.load(settings.datastore)
        check_match(model.artifact, store)
        return cls(model, cheaper, store, cores)


def run_comparison(settings: CompareSettings) -> Comparison:
    """Measure, and write each part as soon as it is measured. What is cheap to check is checked before.

    Raises:
        UserError: a file, the run or the datastore is missing, files don't fit together, wrk isn't installed, there is
            nothing to measure, or our own server fails.
    """
    _check(settings)
    # A folder that can't be written is found before minutes of measuring.
    output = make_folder(settings.output)
    subject = _Subject.load(settings)
    earlier = read_rows(settings.earlier) if settings.earlier else None
    parts = [IN_PROCESS] * settings.in_process + [HTTP, OPEN_LOOP] * bool(settings.systems)
    found = Comparison(output, describe_machine(subject.model.provider, subject.cores), parts, notes=[PLACES])
    with tempfile.TemporaryDirectory() as cache:
        servers = _contestants(settings, subject, Path(cache), found)
        found.machine["cores_of_others"] = cores_of_others()
        if settings.in_process:
            _measure_in_process(settings, subject, found)
        if servers:
            _measure_over_http(settings, servers, found)
    if earlier is not None:
        found.notes.append(beside_earlier(found.rows, earlier))
    found.write()
    return found


def _check(settings: CompareSettings) -> None:
    if settings.rounds < 1 or settings.seconds <= 0:
        raise UserError("--rounds has to be 1 or more, and --seconds above 0")
    if not settings.systems and not settings.in_process:
        raise UserError("--systems names none and --in_process is false: there is nothing to measure")
    if settings.systems:
        check_wrk()


def _contestants(settings: CompareSettings, subject: _Subject, cache: Path, found: Comparison) -> list[Contestant]:
    """Return the servers, installed; none where HTTP is left out."""
    if not settings.systems:
        return []
    cheaper = subject.cheaper.path if subject.cheaper else None
    return contestants(
        settings.systems,
        subject.model.path,
        cheaper,
        photo_pictures(subject.store.test),
        settings.environments.resolve(),
        subject.cores,
        cache,
        found.absent,
    )


def _measure_in_process(settings: CompareSettings, subject: _Subject, found: Comparison) -> None:
    test = subject.store.test
    photos = test.decode_batch(test.spread(PHOTOS), subject.model.artifact.image_size)
    systems = in_process.systems(subject.model, subject.cheaper, settings.run, subject.cores)
    found.notes += in_process.agreement(systems, photos)
    found.add(IN_PROCESS, in_process.measure(systems, photos, settings.rounds, settings.seconds / 2))


def _measure_over_http(settings: CompareSettings, servers: Sequence[Contestant], found: Comparison) -> None:
    found.notes.append(OVER_HTTP)
    absent = found.absent
    with start(servers, absent) as started:
        running = check_answers(started, absent)
        rows = over_http.measure_closed(running, settings.rounds, settings.seconds, absent)
        found.add(HTTP, rows)
        running, capacity = absent.among(running), over_http.capacity_of_weakest(rows)
        found.add(OPEN_LOOP, over_http.measure_open(running, capacity, settings.rounds, settings.seconds, absent))


def main() -> None:
    """Parse the command line, measure, write the report, and print it."""
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
    show(run_comparison(CompareSettings(**values)).page())
