"""Scoring a whole data set without HTTP: `python -m serving score SOURCE --output FOLDER`.

Parts of the source are scored, and written, in any order and by whoever; what is there is not done again. So a command
that was stopped, or killed, goes on when it runs again, with no row twice and none missing.
"""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa

from serving.runtime import check_model, fetch_model
from serving.score_output import Output, Part
from serving.score_rows import RowMaker, readable
from serving.score_source import Source, open_source
from serving.scorer import Scorer, Wanted, cores
from tailstack.artifact import Artifact
from tailstack.engine import Runtime
from tailstack.errors import UserError
from tailstack.progress import track
from tailstack.session import Device


@dataclass
class ScoreSettings:
    """Classify every image of a data set, and write the answers as Parquet. Stopped, the same command goes on."""

    source: str
    """Folder, zip, Parquet (bytes or URIs) or text file with a URI a line; a path, or s3://…, gs://…"""
    output: str
    """Folder for the parts; a path, or s3://…, gs://…"""
    model: Path = Path("models/ensemble.onnx")
    """The file to score with."""
    cluster: str | None = None
    """Ray cluster to score on: `auto` (the one of this machine) or ray://HOST:PORT. Without it, in this process."""
    top_k: int = 5
    """Most probable classes in each row."""
    coverage: float | None = None
    """How often the prediction set has the true class; the default is the smallest that the model has."""
    column: str | None = None
    """Column of Parquet that has the images, where it isn't plain."""
    device: Device = "auto"
    """`auto` takes CUDA where it works, else the CPU."""
    runtime: Runtime = "onnxruntime"
    """What runs the file; `openvino` needs the extra of that name."""
    public_key: Path | None = None
    """PEM file, on each machine: the model has to be signed with the private part of this key."""
    batch_size: int = 16
    """Images of one inference."""
    part_size: int = 4096
    """Images of one part, which is what is lost at most when the command is killed."""


@dataclass(frozen=True)
class Summary:
    """What one run of the command did."""

    images: int
    """Scored now, those with an error included."""
    errors: int
    """Of those, images that can't be read."""
    kept: int
    """Scored by an earlier run."""
    seconds: float
    """Of the scoring, without loading the model."""

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds if self.seconds else 0.0


def score(settings: ScoreSettings) -> Summary:
    """Score what isn't scored yet.

    Raises:
        UserError: the source, the model, the cluster or the output can't be used, or the output is of something else.
    """
    if min(settings.batch_size, settings.part_size) < 1:
        raise UserError("--batch_size and --part_size have to be 1 or more")
    if _absolute(settings.output).is_relative_to(_absolute(settings.source)):
        raise UserError(
            f"--output {settings.output} lies inside {settings.source}, whose images its parts would be the next time: "
            "choose a folder outside"
        )
    source = open_source(settings.source, settings.column)
    artifact, version = _described(settings)
    wanted = Wanted(
        settings.model,
        version,
        settings.device,
        settings.runtime,
        settings.public_key,
        settings.batch_size,
        settings.top_k,
        settings.coverage,
    )
    maker = RowMaker(artifact, settings.top_k, settings.coverage)
    output = Output(settings.output)
    output.claim(
        {
            "source": readable(settings.source),
            "column": source.column,
            "images": len(source),
            "digest": source.digest,
            "model": version,
            "runtime": settings.runtime,
            "top_k": settings.top_k,
            "coverage": maker.coverage,
            "part_size": settings.part_size,
        }
    )
    parts = output.missing(len(source), settings.part_size)
    tables = _scored(settings.cluster, wanted, source, parts)
    start, errors = time.perf_counter(), 0
    for part, rows in tables:
        output.write(part, rows)
        errors += len(part) - rows["error"].null_count
    images = sum(map(len, parts))
    return Summary(images, errors, len(source) - images, time.perf_counter() - start)


def _described(settings: ScoreSettings) -> tuple[Artifact, str]:
    """Return the model's metadata and version; its bytes aren't kept."""
    model = check_model(fetch_model(settings.model), settings.runtime, settings.public_key)
    return model.artifact, model.version


def _absolute(place: str) -> PurePosixPath:
    """Return a URI as it is, or a path without symbolic links."""
    return PurePosixPath(place if "://" in place else os.path.realpath(place))


def _scored(
    cluster: str | None, wanted: Wanted, source: Source, parts: Sequence[Part]
) -> Iterator[tuple[Part, pa.Table]]:
    """Score parts here or on a cluster; nothing is loaded or started for none."""
    if not parts:
        return iter(())
    if cluster is None:
        return Scorer(wanted, cores()).parts(source, parts)
    try:
        from serving.score_cluster import score_on_cluster  # noqa: PLC0415 (Ray is an extra)
    except ModuleNotFoundError as error:
        raise UserError("Ray isn't installed: pip install 'tailstack[cluster]'") from error
    return track(score_on_cluster(cluster, wanted, source, parts), "Scoring", len(parts))
