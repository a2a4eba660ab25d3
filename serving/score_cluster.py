"""Scoring on a Ray cluster: Ray Data hands parts of the source to workers, of which each has the model."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import ray.data

from serving.score_output import Part
from serving.score_source import Source
from serving.scorer import Scorer, Wanted
from tailstack.cluster import connect
from tailstack.errors import UserError


def score_on_cluster(
    address: str, wanted: Wanted, source: Source, parts: Sequence[Part]
) -> Iterator[tuple[Part, pa.Table]]:
    """Yield the rows of parts, as they are done.

    Args:
        address: as of `tailstack.cluster.connect`.
        wanted: what each worker loads; the model's file has to be there on each machine, or shared.
        source: what each worker reads.
        parts: of the source.

    Raises:
        UserError: there is no such cluster, or its machines can't load the model.
    """
    connect(address)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        # Ray Data tells of each step, on the terminal that has our own bar.
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        workers, cpus, gpus = _workers(ray.cluster_resources())
        ranges = [{"start": part.start, "stop": part.stop} for part in parts]
        scored = ray.data.from_items(ranges, override_num_blocks=len(ranges)).map_batches(
            _Worker,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(workers, len(parts)))),
            fn_constructor_args=(wanted, ray.put(source), cpus),
            num_cpus=cpus,
            num_gpus=gpus,
        )
        for row in scored.iter_rows():
            yield Part(int(row["start"]), int(row["stop"])), pa.ipc.open_stream(row["rows"]).read_all()
    except ray.exceptions.RayError as error:
        raise UserError(f"the cluster could not score: {str(error).strip().splitlines()[-1]}") from error
    finally:
        ray.shutdown()


def _workers(resources: Mapping[str, float]) -> tuple[int, int, int]:
    """Return how many workers a cluster has room for, and each one's cores and GPUs: a GPU where there are any."""
    cpus, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
    return (gpus, max(1, cpus // gpus), 1) if gpus else (cpus, 1, 0)


class _Worker:
    """One worker: the model, loaded once, and the source."""

    def __init__(self, wanted: Wanted, source: "ray.ObjectRef[Any]", threads: int) -> None:
        self._scorer = Scorer(wanted, threads)
        self._source: Source = ray.get(source)

    def __call__(self, batch: dict[str, npt.NDArray[np.int64]]) -> dict[str, Any]:
        """Score one part, which is sent as one value: what Ray does to blocks doesn't take it apart."""
        part = Part(int(batch["start"][0]), int(batch["stop"][0]))
        [(_, rows)] = self._scorer.parts(self._source, [part])
        stream = pa.BufferOutputStream()
        with pa.ipc.new_stream(stream, rows.schema) as writer:
            writer.write_table(rows)
        return {**batch, "rows": [stream.getvalue().to_pybytes()]}
