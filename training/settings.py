"""Every setting of the commands, with its default: the same names as flags and in YAML."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from tailstack.errors import UserError
from tailstack.files import write_text
from tailstack.remote import is_remote, local, refuse_remote, spelled
from training.duration import seconds_of

Loss = Literal["none", "ins", "isns", "ens", "logit_adjusted", "ldam"]
MAX_SEED = 4_000_000
"""The learners of a run have seeds of their own, a thousand for each seed, and NumPy's end at 2 ** 32."""
SHARED_SETTINGS = {
    "datastore",
    "output",
    "num_workers",
    "devices",
    "num_nodes",
    "strategy",
    "cluster",
    "cpus_per_learner",
}
"""Of `fit`: where and on what a run is trained. They don't decide what is learnt, and may change when it goes on."""
LITE_TRIO = ["tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2"]


@dataclass
class PrepareSettings:
    """Make a datastore of an image folder, a zip, `digits` or a torchvision data set, and imbalanced variants of it.

    Of a datastore, it makes the variants alone.
    """

    source: str
    output: Path
    """Folder of the datastore; variants are written beside it as OUTPUT-imbalance-RATIO."""
    classes: int | None = None
    """Keep only the first so many classes, in alphabetical order."""
    imbalance: list[float] = field(default_factory=list)
    """Ratios of the smallest to the largest class, from 0 to 1; each makes a variant."""
    test_fraction: float = 0.2
    """Share of each class that becomes the test split, where the source has no test/ or val/ of its own."""
    skip_unreadable: bool = False
    """Leave images out that can't be decoded, instead of stopping with their list."""
    seed: int = 0


@dataclass
class FitSettings:
    """Train the learners of a technique on a datastore; the same command again goes on where it stopped."""

    datastore: Path
    """Folder with train.json and test.json, as `prepare` writes it."""
    output: Path
    """Folder of the run."""
    budget: str | None = None
    """Time that all of it may take, such as 20m or 2h: what is not set by hand among architectures, resolution,
    grow_from and epochs is then chosen for this machine, by our own results."""
    technique: str = "tailstack"
    """Which samples, architectures and losses make the learners: baseline, balanced, weighted, bagging, bagging-wl,
    stacking, stacking-wl, logit-adjusted, drw, ldam, tailstack, or student and taught, which need a teacher."""
    teacher: Path | None = None
    """Finished run on the same datastore whose ensemble teaches a student; `distill` takes the rest of it over too."""
    architectures: list[str] = field(default_factory=lambda: list(LITE_TRIO))
    """Names of timm models, one learner each where the technique stacks; else the first alone is used."""
    loss: Loss | None = None
    """`none` is plain cross-entropy; `ins`, `isns` and `ens` weigh classes by 1/n, 1/sqrt(n) or (1-beta)/(1-beta^n)."""
    beta: float = 0.999
    """For `ens`: the nearer to 1, the nearer to 1/n."""
    tau: list[float] | None = None
    """For `logit_adjusted`: its strength; of several values each learner takes one, in turn."""
    deferred: float | None = None
    """Share of the epochs that pass before class weights count."""
    class_weights: dict[str, float] = field(default_factory=dict)
    """Factors on the weights of single classes, by name: "{lynx: 3.5}"."""
    threshold: int | None = None
    """Images of a class after balancing, or of a bag's share of the largest class."""
    bag_split: Literal["median", "threshold"] = "median"
    """Which classes go into every bag: those under the median count, or those under the threshold."""
    batch_size: int = 64
    lr: float = 1e-3
    """Peak of the learning rate, which rises in the warm-up and then falls to zero along a cosine."""
    body_lr: float | None = None
    """Learning rate of the body, as a share of the head's: 0.3, or 1 for one that isn't pretrained."""
    warm_up: float = 0.25
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.05
    ema: float | None = None
    """Decay of the average of weights (by step) that is kept in the place of the last ones; 0 keeps the last."""
    epochs: int = 8
    second_cycle: int | None = None
    """Epochs of a second cycle of the learning rate, at full resolution: each weight is then the mean of what both
    cycles end with, which is worth more than either."""
    resolution: int = 96
    """Height and width, in pixels, that the backbones see."""
    grow_from: int | None = None
    """Resolution of the first epoch, from which it grows over two thirds of them; 0 doesn't grow."""
    freeze: float | None = None
    """Share of the epochs in which the first third of a backbone's layers doesn't learn."""
    augment: Literal["none", "reference", "flip", "light"] = "reference"
    """`reference` shifts, scales, rotates and changes colours; `flip` mirrors as well; `light` mirrors and shifts."""
    pretrained: bool = True
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    blend: bool | None = None
    """Fit the learners' weights and a temperature on validation, and keep them where they help there."""
    num_workers: int | None = None
    """Processes that read and augment batches; the default is 2 beside a GPU, and none without one, where they would
    take the cores from training (images that don't fit into memory get 1)."""
    val_fraction: float = 0.1
    """Share of each class that is held out for validation, where the datastore has no val.json."""
    seed: int = 0
    devices: int = 1
    """Processes of one learner on each machine, each with a GPU where there are any; `batch_size` is that of all."""
    num_nodes: int = 1
    """Machines of one learner; the command runs on each, by Lightning's rules, with one shared output."""
    strategy: str = "auto"
    """How the processes of one learner work together: the name of a strategy of Lightning's, such as ddp."""
    cluster: str | None = None
    """Train learners in parallel on Ray: `auto` is this machine, `ray://HOST:PORT` a cluster that shares the output."""
    cpus_per_learner: int = 0
    """Cores of one learner where there is a cluster; 0 takes one."""

    def __post_init__(self) -> None:
        """Refuse values that no run can have.

        Raises:
            UserError: naming the setting.
        """
        counted = ("batch_size", "epochs", "second_cycle", "resolution", "devices", "num_nodes", "threshold")
        _at_least(self, 1, *counted)
        _at_least(self, 0, "grow_from", "num_workers", "cpus_per_learner")
        if self.budget is not None:
            self._check_budget(self.budget)
        if self.processes > 1:
            self._check_processes()
        if not self.architectures:
            raise UserError("--architectures is empty: name one timm model or more")
        if not 0 < self.val_fraction < 1:
            raise UserError(f"--val_fraction is {self.val_fraction}, and has to lie between 0 and 1")
        for name in ("beta", "ema", "warm_up", "freeze", "deferred"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise UserError(f"--{name} is {value}, and has to be at least 0 and less than 1")
        if self.tau is not None and not self.tau:
            raise UserError("--tau is empty: give one strength or more")
        if not 0 <= self.seed <= MAX_SEED:
            raise UserError(f"--seed is {self.seed}, and has to lie between 0 and {MAX_SEED}")
        self._check_class_weights()

    def _check_class_weights(self) -> None:
        for name, weight in self.class_weights.items():
            # YAML reads 3, no or null as what they are elsewhere.
            if not isinstance(name, str):
                raise UserError(f"--class_weights names {name}, which is no text as it stands: put it in quotes")
            if weight <= 0:
                raise UserError(f"--class_weights has the factor {weight} for {name}, which is not above 0")

    def _check_budget(self, budget: str) -> None:
        seconds_of(budget)
        if self.cluster is not None:
            raise UserError("--budget plans for learners one after the other: leave --cluster out")
        if self.teacher is not None:
            raise UserError("--budget doesn't plan for a student: leave it out, and set --epochs")
        if self.second_cycle is not None:
            raise UserError("--budget doesn't plan for a second cycle: leave one of them out")

    def _check_processes(self) -> None:
        if self.cluster is not None or self.budget is not None:
            raise UserError(
                "--devices and --num_nodes are for one learner after the other: leave --cluster and --budget"
            )
        if self.second_cycle is not None:
            raise UserError("--second_cycle is for learners of one process each: leave --devices and --num_nodes")
        if self.num_nodes > 1 and is_remote(self.output):
            raise UserError(f"--output is {spelled(self.output)}: several machines need a folder that they share")
        if self.batch_size < self.processes:
            raise UserError(
                f"--batch_size is {self.batch_size}, less than one image for each of {self.processes} processes"
            )

    @property
    def processes(self) -> int:
        """Processes that train one learner."""
        return self.devices * self.num_nodes

    @property
    def run(self) -> Path:
        """Where the run lies on this machine: `output`, or its copy if that is in an object store."""
        return local(self.output)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return {key: spelled(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}

    def save(self, path: Path) -> None:
        """Write the settings as YAML that `--config` reads."""
        write_text(path, yaml.safe_dump(self.to_dict(), sort_keys=False))


@dataclass
class CompareSettings:
    """Train every technique on every datastore with every seed, and write a report; the same command goes on later."""

    output: Path
    """Folder of the results: a small JSON file a cell, and the report."""
    runs: Path | None = None
    """Folder of the trained runs; the default is runs/ and the output's name."""
    datastores: list[Path] = field(default_factory=list)
    """Folders of datastores, such as a data set's imbalanced variants."""
    techniques: list[str] = field(default_factory=lambda: ["all"])
    """Names of techniques, or `all`."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Each trains all anew."""

    def __post_init__(self) -> None:
        """Refuse what can't be compared.

        Raises:
            UserError: naming the setting.
        """
        refuse_remote("--output", self.output)
        refuse_remote("--runs", self.runs)
        if not self.datastores:
            raise UserError("--datastores is empty: name one folder or more")
        names = [path.name for path in self.datastores]
        if len(set(names)) < len(names):
            raise UserError("two of --datastores have folders of the same name, by which results are told apart")

    @property
    def runs_folder(self) -> Path:
        """Where the runs lie."""
        return self.runs or Path("runs") / self.output.name


@dataclass
class SweepSettings:
    """Try every combination of the settings that are given as lists; the same command goes on where it stopped."""

    output: Path
    """Folder of the results: sweep.csv, a JSON file a finished trial, and the trained runs."""
    samples: int = 0
    """So many combinations, drawn at random; 0 tries all."""
    stop_losers: bool = True
    """Stop a trial early that is in the worse half after each doubling of its epochs (ASHA)."""
    cpus_per_trial: int = 0
    """Cores that one trial takes; 0 takes all of a machine, so that trials follow each other."""
    cluster: str | None = None
    """Address of a Ray cluster, ray://HOST:PORT; without one, or with `auto`, this machine."""

    def __post_init__(self) -> None:
        """Refuse what no sweep can have.

        Raises:
            UserError: naming the setting.
        """
        refuse_remote("--output", self.output)
        _at_least(self, 0, "samples", "cpus_per_trial")


def _at_least(settings: object, least: int, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < least:
            raise UserError(f"--{name} is {value}, and has to be {least} or more")
