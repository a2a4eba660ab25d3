"""A class mix that a client or the operator gives: `{"label": weight, …}` in JSON."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field, TypeAdapter, ValidationError

from tailstack.artifact import Artifact
from tailstack.errors import UserError
from tailstack.prior import reweighted

_SHOWN = 60
_WEIGHTS = TypeAdapter(dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]])


@dataclass(frozen=True, eq=False)
class ClassPrior:
    """How frequent the classes are where answers are used, and how frequent they are for the model."""

    shares: npt.NDArray[np.float64]
    """`[classes]`, in any unit."""
    own: npt.NDArray[np.float64]
    """`[classes]`."""

    def apply(self, probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the probabilities under this mix, `[…, classes]`."""
        return reweighted(probabilities, self.shares, self.own)


def read_prior(text: str, artifact: Artifact) -> ClassPrior:
    """Read the JSON of a class mix.

    Raises:
        ValueError: saying what is wrong with it.
    """
    if artifact.prior is None:
        raise ValueError(
            "the model doesn't know for which class mix its own probabilities are right: fit and export it again"
        )
    try:
        weights = _WEIGHTS.validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:_SHOWN]
        raise ValueError(f"{where}: {first['msg']}".removeprefix(": ")) from error
    for problem, labels in (
        ("no class", weights.keys() - set(artifact.classes)),
        ("no weight for", set(artifact.classes) - weights.keys()),
    ):
        if labels:
            raise ValueError(f"there is {problem} {min(labels)[:_SHOWN]!r}")
    shares = np.array([weights[label] for label in artifact.classes])
    if not shares.any():
        raise ValueError("all weights are 0")
    return ClassPrior(shares / shares.max(), np.array(artifact.prior))


def load_prior(path: Path, artifact: Artifact) -> ClassPrior:
    """Read the file of a class mix.

    Raises:
        UserError: it can't be read, or doesn't fit the model.
    """
    try:
        return read_prior(path.read_text(encoding="utf-8"), artifact)
    except OSError as error:
        raise UserError(f"class prior {path} can't be read: {error.strerror}") from error
    # Text that is not UTF-8 is a ValueError as well.
    except ValueError as error:
        raise UserError(f"class prior {path}: {error}") from error
