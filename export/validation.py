"""The run's own images, by which an export is decided: those that validate, and those that were trained on."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from scipy.special import softmax

from export.cascade import Votes
from export.graph import LOGITS
from tailstack.artifact import INPUT, LEARNER_PROBABILITIES, PROBABILITIES
from tailstack.datastore import Datastore, Split
from tailstack.errors import UserError
from tailstack.files import read_json
from tailstack.images import Pixels, Size
from tailstack.progress import track
from tailstack.remote import local
from tailstack.run import SPLIT_FILE
from tailstack.session import open_session

BATCH = 32
CALIBRATION_IMAGES = 384


class NothingValidatesError(UserError):
    """The run held no images out."""


def run_splits(run: Path, store: Datastore) -> tuple[Split, Split]:
    """Return what `run` was trained on and what validates it.

    Raises:
        NothingValidatesError: no image validates.
        UserError: there is no split.json, or it is of other data.
    """
    path = local(run) / SPLIT_FILE
    split = read_json(path)
    if split["datastore_sha256"] != store.digests():
        raise UserError(f"datastore {store.path} has changed since {run} was trained: {path} is of other images")
    if store.val is not None:
        return store.train, store.val
    if not split["val"]:
        raise NothingValidatesError(
            f"{path} has no images that validate, and nothing else can say what an export may change"
        )
    return store.train.subset(np.array(split["train"])), store.train.subset(np.array(split["val"]))


def held_out(run: Path, store: Datastore) -> list[int] | None:
    """Return which images of train.json validate; None where val.json does."""
    if store.val is not None:
        return None
    indices: list[int] = read_json(local(run) / SPLIT_FILE)["val"]
    return indices


def spread(split: Split, count: int) -> Split:
    """Return at most `count` images, evenly spaced."""
    return split.subset(np.unique(split.spread(count)))


def pixel_batches(split: Split, size: Size) -> Iterator[Pixels]:
    """Yield the images in order, uint8 `[images, height, width, 3]`, the last batch shorter."""
    for start in range(0, len(split), BATCH):
        stop = min(start + BATCH, len(split))
        yield split.decode_batch(range(start, stop), size)


def calibration_batches(train: Split, size: Size) -> list[Pixels]:
    """Return batches of training images by which ranges of activations are measured."""
    return list(pixel_batches(spread(train, CALIBRATION_IMAGES), size))


def count_batches(split: Split) -> int:
    """Return how many batches `pixel_batches` yields."""
    return -(-len(split) // BATCH)


def learner_votes(learners: Sequence[onnx.ModelProto], split: Split, size: Size, title: str) -> Votes:
    """Return each learner's probabilities as its own graph gives them: float32 `[images, learners, classes]`."""
    voters = Voters(learners)
    batches = track(pixel_batches(split, size), title, count_batches(split))
    return np.concatenate([voters.vote(images) for images in batches])


def file_answers(path: Path, split: Split, size: Size, title: str) -> tuple[npt.NDArray[np.float32], Votes]:
    """Return what a file answers on the CPU: probabilities `[images, classes]` and the learners' votes."""
    session = open_session(path, "cpu")
    batches = track(pixel_batches(split, size), title, count_batches(split))
    outputs = [session.run([PROBABILITIES, LEARNER_PROBABILITIES], {INPUT: images}) for images in batches]
    answers, votes = (np.concatenate(parts) for parts in zip(*outputs, strict=True))
    return answers, votes


class Voters:
    """Learners' graphs, one session each."""

    def __init__(self, learners: Sequence[onnx.ModelProto], threads: int = 0) -> None:
        # On the CPU, as torch: GPUs round the factors of convolutions (TF32).
        self._sessions = [
            open_session(Path("learner"), "cpu", threads, content=model.SerializeToString()) for model in learners
        ]

    def vote(self, images: Pixels) -> Votes:
        """Map uint8 `[images, height, width, 3]` to float32 `[images, learners, classes]`."""
        logits = [session.run([LOGITS], {INPUT: images})[0] for session in self._sessions]
        return np.asarray(softmax(np.stack(logits, axis=1), axis=2), np.float32)
