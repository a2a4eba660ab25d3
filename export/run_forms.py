"""The forms of one run's learners, and what judges them: each made when a graph first asks for it, and only once.

Files of one run differ in what they may lose, and in which forms they may take, but not in the forms themselves.
"""

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np

from export.cascade import Votes
from export.forms import Form, FormMaker
from export.gate import Judge
from export.validation import calibration_batches, run_splits
from tailstack import datastore as datastores
from tailstack.blend import Blend
from tailstack.datastore import Datastore, Split
from tailstack.errors import UserError
from tailstack.images import Pixels
from tailstack.network import Ensemble, Learner, load_ensemble
from tailstack.remote import fetch, local, spelled
from tailstack.run import CONFIG_FILE, RunRecord

_LARGEST = 2_000_000_000
"""Bytes of weights in one file: protobuf ends at 2^31, and there are nodes and metadata."""


@dataclass(frozen=True)
class RunForms:
    """A finished run, and the forms of its learners."""

    run: Path
    record: RunRecord
    store: Datastore
    ensemble: Ensemble
    _smaller: dict[Form, Form | None] = field(default_factory=dict)
    _integers: dict[Form, list[Form]] = field(default_factory=dict)

    @classmethod
    def load(cls, run: Path) -> "RunForms":
        """Read the run in folder `run`, and its data set.

        Raises:
            UserError: the run isn't finished, its learners are too large for one file, or its data set is gone, or has
                other classes.
        """
        record = RunRecord.load(run)
        _check_size(record)
        ensemble = load_ensemble(run, record)
        store = datastores.load(_place_of_data(run, record))
        if store.classes != record.classes:
            raise UserError(f"datastore {store.path} has other classes than the run was trained on")
        return cls(run, record, store, ensemble)

    @property
    def blend(self) -> Blend:
        """How the learners' votes become one answer."""
        return Blend(tuple(self.record.weights), self.record.temperature)

    @functools.cached_property
    def maker(self) -> FormMaker:
        """What makes forms, by the images that validate."""
        return FormMaker(self._splits[1], self.record.image_size)

    @functools.cached_property
    def exact(self) -> list[Form]:
        """Each learner as it was trained.

        Raises:
            UserError: nothing validates, or torch can't export an architecture.
        """
        return [self.maker.in_float(cast(Learner, network)) for network in self.ensemble.learners]

    @functools.cached_property
    def votes(self) -> Votes:
        """The exact forms' votes on the images that validate, `[images, learners, classes]`."""
        return np.stack([form.votes for form in self.exact], axis=1)

    def judge(self, max_accuracy_drop: float) -> Judge:
        """Return what tells whether a graph loses more than so many points, on the images that validate."""
        return Judge(
            self.blend.apply(self.votes),
            self.votes,
            self._splits[1].labels,
            self.record.classes,
            np.array(self.record.class_counts),
            max_accuracy_drop,
        )

    def smaller(self, form: Form) -> Form | None:
        """Return `FormMaker.smaller` of a form."""
        if form not in self._smaller:
            self._smaller[form] = self.maker.smaller(form)
        return self._smaller[form]

    def in_integers(self, form: Form) -> list[Form]:
        """Return `FormMaker.in_integers` of a form, calibrated on training images."""
        if form not in self._integers:
            self._integers[form] = self.maker.in_integers(form, self._calibration)
        return self._integers[form]

    @functools.cached_property
    def _splits(self) -> tuple[Split, Split]:
        return run_splits(self.run, self.store)

    @functools.cached_property
    def _calibration(self) -> list[Pixels]:
        return calibration_batches(self._splits[0], self.record.image_size)


def _place_of_data(run: Path, record: RunRecord) -> Path:
    place = Path(record.datastore["path"])
    if not fetch(place, missing_ok=True).is_dir():
        raise UserError(
            f"run {spelled(run)} has its data set in {spelled(place)}, which doesn't exist; tell it where that is now, "
            f"which trains nothing: python -m training fit --config {local(run) / CONFIG_FILE} --datastore DATASTORE "
            f"--output {spelled(run)}"
        )
    return place


def _check_size(record: RunRecord) -> None:
    size = 4 * sum(learner.parameters for learner in record.learners)
    if size > _LARGEST:
        raise UserError(
            f"the learners have {size / 1e9:.1f} GB of weights, and one file of ONNX holds {_LARGEST / 1e9:g} GB: "
            "train fewer or smaller ones"
        )
