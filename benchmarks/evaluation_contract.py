"""What `benchmarks/eval.py` is asked, and what it finds."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tailstack.errors import UserError
from tailstack.metrics import Labels, Probabilities

MODEL = Path("models/ensemble.onnx")
"""The file that is measured where neither a file nor a server is named."""


@dataclass
class EvalSettings:
    """Measure an exported file or a server: accuracy on the test split, latency and images per second."""

    datastore: Path
    """Folder whose test split is classified."""
    model: Path | None = None
    """The file that `python -m export` wrote; the default is models/ensemble.onnx."""
    url: str = ""
    """Address of a server instead of a file, such as http://localhost:3000."""
    key: str = field(default="", repr=False)
    """The server's API key; the variable TAILSTACK_API_KEY, which no list of processes shows, does as well."""
    against: list[str] = field(default_factory=list)
    """Names in `PEERS`."""
    run: Path | None = None
    """Folder of the run with torch's weights; the default is the one that the file names."""
    output: Path | None = None
    """Folder for eval.json, eval.md and its figures."""
    min_top1: float | None = None
    """Fail if top-1 on the test split, from 0 to 1, is lower."""
    max_p99_ms: float | None = None
    """Fail if more than 1% of the calls with one image at a time take longer, in milliseconds, or one fails."""
    corruptions: int = 0
    """Test images that are corrupted; 0 leaves it out."""
    threads: int = 0
    """Threads of one inference; 0 takes one a core. A server has its own."""
    rounds: int = 5
    """Turns of each system at each batch size, or of the server at each number of requests under way."""
    seconds: float = 1.0
    """Length of a turn; over HTTP longer where the server is slow."""

    def check(self) -> None:
        """See that the settings make sense together.

        Raises:
            UserError: they don't.
        """
        if self.url and self.model:
            raise UserError("--model and --url: choose one")
        if self.url and self.against:
            raise UserError("--against puts other runtimes beside a file: name it with --model instead of --url")
        if self.url and self.corruptions:
            raise UserError(
                "--corruptions changes pixels before a file gets them: name it with --model instead of --url"
            )
        if self.corruptions < 0:
            raise UserError(f"--corruptions is {self.corruptions}, and has to be a number of images")
        if self.key and not self.url:
            raise UserError("--key is for a server: name it with --url")
        if self.min_top1 is not None and not 0 <= self.min_top1 <= 1:
            raise UserError(f"--min_top1 is {self.min_top1:g}, and has to be a share from 0 to 1")
        if self.max_p99_ms is not None and not self.max_p99_ms > 0:
            raise UserError(f"--max_p99_ms is {self.max_p99_ms:g}, and has to be above 0")
        if self.threads < 0:
            raise UserError(f"--threads is {self.threads}, and has to be a number of threads, or 0 for one a core")
        if self.rounds < 1 or not self.seconds >= 0:
            raise UserError("--rounds has to be 1 or more, and --seconds 0 or more")


@dataclass(frozen=True)
class Evaluation:
    """The report, and what only figures need."""

    report: dict[str, Any]
    probabilities: Probabilities
    """`[images, classes]`."""
    labels: Labels
    """True labels, `[images]`."""
    latencies_ms: dict[str, npt.NDArray[np.float64]]
    """Of each call or request, by what was measured."""
