"""Every setting of the commands, with its default: the same names as flags and in YAML."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from tailstack.errors import UserError
from tailstack.files import write_text

LITE_TRIO = ["tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2"]


@dataclass
class PrepareSettings:
    """Make a datastore of an image folder, a zip, `digits` or a torchvision data set, and imbalanced variants of it."""

    source: str
    output: Path
    """Folder of the datastore; variants are written beside it as OUTPUT-imbalance-RATIO."""
    classes: int | None = None
    """Keep only the first so many classes, in alphabetical order."""
    imbalance: list[float] = field(default_factory=list)
    """Ratios of the smallest to the largest class, from 0 to 1; each makes a variant."""
    test_fraction: float = 0.2
    """Share of each class that becomes the test split, where the source has no test/ of its own."""
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
    technique: str = "stacking-wl"
    """Which samples, architectures and losses make the learners: baseline, stacking or stacking-wl."""
    architectures: list[str] = field(default_factory=lambda: list(LITE_TRIO))
    """Names of timm models, one learner each where the technique stacks; else the first alone is used."""
    loss: Literal["none", "ins", "isns", "ens"] = "isns"
    """Class weights where the technique weighs: 1/n, 1/sqrt(n), or (1-beta)/(1-beta^n)."""
    beta: float = 0.999
    """For `ens`: the nearer to 1, the nearer to 1/n."""
    batch_size: int = 64
    lr: float = 1e-3
    """Peak of the one-cycle schedule."""
    epochs: int = 8
    resolution: int = 96
    """Height and width, in pixels, that the backbones see."""
    augment: Literal["none", "reference", "flip"] = "reference"
    """`reference` shifts, scales, rotates and changes colours; `flip` mirrors images as well."""
    pretrained: bool = True
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    num_workers: int = 1
    """Processes that augment images beside the training."""
    val_fraction: float = 0.2
    """Share of each class that is held out for validation, where the datastore has no val.json."""
    seed: int = 0
    devices: int = 1
    """GPUs to use, where there are any."""

    def __post_init__(self) -> None:
        """Refuse values that no run can have.

        Raises:
            UserError: naming the setting.
        """
        for name in ("batch_size", "epochs", "resolution", "devices"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} is {getattr(self, name)}, and has to be 1 or more")
        if not self.architectures:
            raise UserError("--architectures is empty: name one timm model or more")
        if not 0 < self.val_fraction < 1:
            raise UserError(f"--val_fraction is {self.val_fraction}, and has to lie between 0 and 1")
        if not 0 <= self.beta < 1:
            raise UserError(f"--beta is {self.beta}, and has to be at least 0 and less than 1")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}

    def save(self, path: Path) -> None:
        """Write the settings as YAML that `--config` reads."""
        write_text(path, yaml.safe_dump(self.to_dict(), sort_keys=False))
