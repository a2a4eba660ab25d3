"""Training of one learner: the Lightning module, its log, its checkpoint, and the resume from it."""

import csv
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as L
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.loggers import TensorBoardLogger
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]  # public, but not in its __all__
from torch import Tensor

from tailstack.errors import UserError
from tailstack.files import whole_file, write_text
from tailstack.network import Learner
from tailstack.run import WEIGHTS_FILE
from training.dataset import Batches, ShuffledKeys, TrainingData, batch_loader, ordered_keys
from training.depthwise import speed_up_depthwise
from training.losses import LongTailLoss, first_weighted_epoch, with_teacher
from training.schedule import Growth
from training.settings import FitSettings
from training.techniques import LearnerPlan

CHECKPOINT = "last.ckpt"
METRICS = "metrics.csv"
LOGGED: tuple[str, ...] = ("train_loss", "val_loss", "val_top1")
OnEpoch = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class Audience:
    """Who follows the training: a person at the console, and perhaps a caller."""

    console: Console
    on_epoch: OnEpoch | None = None
    """Called with each new row of metrics.csv, once its checkpoint is written."""
    length: Callable[[list[dict[str, float]]], int] | None = None
    """Asked after each epoch, with all rows of metrics.csv, how many epochs the learner is to have."""


class LearnerTraining(L.LightningModule):
    """AdamW, and one cycle of the learning rate: a rise, then a cosine to zero (Smith & Topin, 2018)."""

    def __init__(self, learner: Learner, loss: LongTailLoss, settings: FitSettings, plan: LearnerPlan, steps: int):
        super().__init__()
        self.learner = learner
        self.loss = loss
        self.settings = settings
        self.plan = plan
        self.steps = steps
        """Of one epoch."""

    def on_train_start(self) -> None:
        """Take the length of the settings, where a checkpoint was written with another one in mind."""
        if self.lr_schedulers().total_steps != cycle_steps(self.steps * self.settings.epochs):  # type: ignore[union-attr]  # the one of `configure_optimizers`
            self.change_length(self.settings.epochs)

    def change_length(self, epochs: int) -> None:
        """Train for another number of epochs in all; the cycle of the learning rate goes on in its new length."""
        trainer = self.trainer
        trainer.fit_loop.max_epochs = epochs
        self.loss.weights_from = first_weighted_epoch(self.plan.recipe.deferred, epochs)
        [config] = trainer.lr_scheduler_configs
        [optimizer] = trainer.optimizers
        config.scheduler = one_cycle(optimizer, self.steps * epochs, self.settings.warm_up, done=trainer.global_step)

    def on_train_epoch_start(self) -> None:
        """Seed what has no generator of its own (dropout), so that an epoch is the same after a resume."""
        torch.manual_seed(self.plan.seed + 7919 * self.current_epoch)

    def training_step(self, batch: tuple[Tensor, ...], _index: int) -> Tensor:
        """Return the loss of one batch of `training.dataset.Batches`."""
        images, labels, *answers = batch
        logits = self.learner(images)
        loss: Tensor = self.loss(logits, labels, self.current_epoch)
        for answer in answers:
            loss = with_teacher(loss, logits, answer)
        self.log("train_loss", loss, on_epoch=True, on_step=False, batch_size=len(labels), sync_dist=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _index: int) -> None:
        """Log cross-entropy and top-1 of one batch, without weights or offsets."""
        images, labels = batch
        logits = self.learner(images)
        top1 = (logits.argmax(dim=1) == labels).float().mean()
        self.log_dict({"val_loss": F.cross_entropy(logits, labels), "val_top1": top1}, batch_size=len(labels))

    def configure_optimizers(self) -> Any:
        """Return AdamW without decay of biases and normalisation, and its schedule by step."""
        groups = parameter_groups(self.learner, self.settings, self.plan.recipe.body_lr)
        optimizer = torch.optim.AdamW(groups, fused=True)
        schedule = one_cycle(optimizer, self.steps * self.settings.epochs, self.settings.warm_up)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def one_cycle(
    optimizer: torch.optim.Optimizer, steps: int, warm_up: float, done: int = 0
) -> torch.optim.lr_scheduler.OneCycleLR:
    """Let each group's learning rate rise to its own peak over `warm_up`, a share of the steps, and fall to zero.

    Args:
        optimizer: of any groups.
        steps: of the whole cycle.
        warm_up: share of them.
        done: how many of them were taken, in a cycle of another length.
    """
    rates = [group["max_lr"] if done else group["lr"] for group in optimizer.param_groups]
    total = cycle_steps(steps)
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rates, total_steps=total, pct_start=max(warm_up, 1.25 / total), last_epoch=done - 1
    )


def cycle_steps(steps: int) -> int:
    """Return the length of the cycle, which needs a warm-up of more than one step, by which it divides."""
    return max(steps, 5)


def parameter_groups(learner: Learner, settings: FitSettings, body_lr: float) -> list[dict[str, Any]]:
    """Sort the parameters by learning rate (body and head) and by weight decay (none on biases and normalisation)."""
    head = {id(parameter) for parameter in learner.backbone.get_classifier().parameters()}
    groups = []
    for group in param_groups_weight_decay(learner, settings.weight_decay):
        for lr, members in (
            (settings.lr * body_lr, [p for p in group["params"] if id(p) not in head]),
            (settings.lr, [p for p in group["params"] if id(p) in head]),
        ):
            if members:
                groups.append({**group, "params": members, "lr": lr})
    return groups


class Journal(L.Callback):
    """After each epoch: a row of metrics.csv, a line for the user, and the checkpoint, in that order.

    The rows travel in the checkpoint, so that a resumed learner's log has each epoch once.
    """

    def __init__(self, folder: Path, plan: LearnerPlan, audience: Audience) -> None:
        self.folder = folder
        self.plan = plan
        self.audience = audience
        self.rows: list[dict[str, float]] = []
        self._before = 0.0
        self._start = self._epoch_start = self._last_step = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Return what the checkpoint keeps."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the rows of the epochs that are done."""
        self.rows = state_dict["rows"]
        self._before = self.rows[-1]["seconds"]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock of the epoch's steps."""
        self._epoch_start = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the time: after an epoch's last step comes its validation, which isn't training speed."""
        self._last_step = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the row, then the checkpoint."""
        seconds = self._before + time.monotonic() - self._start
        measured = trainer.callback_metrics
        figures: dict[str, float] = {name: float(measured[name]) for name in LOGGED if name in measured}
        epoch = trainer.current_epoch + 1
        speed = len(self.plan.samples) / (self._last_step - self._epoch_start)
        self.rows.append(
            {"epoch": epoch, **figures, "images_per_second": round(speed, 2), "seconds": round(seconds, 3)}
        )
        if trainer.is_global_zero:
            write_text(self.folder / METRICS, as_csv(self.rows))
        shown = ", ".join(f"{name} {value:.3f}" for name, value in figures.items())
        line = f"{self.plan.name}: epoch {epoch}/{trainer.max_epochs}, {shown}, {speed:.0f} images/s, {seconds:.0f} s"
        self.audience.console.print(line, highlight=False, soft_wrap=True)
        # After the last epoch come the weights themselves.
        if epoch < (trainer.max_epochs or 0):
            self._save(trainer)
        if self.audience.on_epoch:
            self.audience.on_epoch(self.rows[-1])
        if self.audience.length:
            self._follow(self.audience.length(self.rows), trainer, pl_module)

    def _follow(self, epochs: int, trainer: L.Trainer, training: L.LightningModule) -> None:
        if epochs <= len(self.rows):
            trainer.should_stop = True
        elif epochs != trainer.max_epochs and isinstance(training, LearnerTraining):
            training.change_length(epochs)

    def _save(self, trainer: L.Trainer) -> None:
        if not trainer.is_global_zero:
            trainer.save_checkpoint(self.folder / CHECKPOINT)  # takes part in it, and writes nothing
            return
        with whole_file(self.folder / CHECKPOINT) as part:
            trainer.save_checkpoint(part)


class Bar(L.Callback):
    """A progress bar over all steps of a learner, with the time that is left."""

    def __init__(self, title: str, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
        times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
        self._progress = Progress(*columns, *times, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task(title, total=None)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start at the step that was resumed from."""
        self._progress.update(self._task, completed=trainer.global_step)
        self._progress.start()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say how many steps there are, which may have changed."""
        self._progress.update(self._task, total=trainer.estimated_stepping_batches)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance by one step."""
        self._progress.update(self._task, completed=trainer.global_step)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Leave the terminal as it was, also after an error."""
        self._progress.stop()


def train_learner(
    learner: Learner,
    plan: LearnerPlan,
    data: TrainingData,
    loss: LongTailLoss,
    settings: FitSettings,
    folder: Path,
    audience: Audience,
    start: Mapping[str, Tensor] | None = None,
    share: float = 0.0,
) -> None:
    """Train `learner`, from the checkpoint in `folder` if there is one, and write its weights there.

    Args:
        learner, plan, data, loss, settings, folder, audience: what is trained, on what, how, and who follows it.
        start: the weights it has, where they come from a training on the same images.
        share: what is kept of them.

    Raises:
        KeyboardInterrupt: the user stopped it; the checkpoint of the last whole epoch stays.
        UserError: an image can't be read any more, or the folder can't be written.
    """
    keys = ShuffledKeys(plan.samples, settings.batch_size, plan.seed)
    batches = Batches(data.train_pixels, data.train_labels, settings.augment, data.answers)
    loader = batch_loader(batches, keys, _workers(settings, data))
    validation = Batches(data.val_pixels, data.val_labels)
    val_loader = batch_loader(validation, ordered_keys(len(data.val_labels), settings.batch_size), num_workers=0)
    speed_up_depthwise(learner)
    training = LearnerTraining(learner, loss, settings, plan, len(keys))
    trainer = L.Trainer(
        accelerator="auto",
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=settings.strategy,
        sync_batchnorm=settings.processes > 1 and torch.cuda.is_available(),  # torch has it for GPUs only
        precision=settings.precision,
        max_epochs=settings.epochs,
        callbacks=_callbacks(learner, plan, folder, audience),
        logger=TensorBoardLogger(folder, name="", version=""),
        enable_checkpointing=False,  # `Journal` writes it, after its row
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    checkpoint = folder / CHECKPOINT
    resume = checkpoint if checkpoint.exists() else None
    try:
        trainer.fit(training.to(memory_format=torch.channels_last), loader, val_loader, ckpt_path=resume)
    except SystemExit as stop:
        raise KeyboardInterrupt from stop  # Lightning turns Ctrl-C into an exit
    except UserError as error:
        # That of a process which makes batches comes with its traceback.
        line = str(error).strip().splitlines()[-1]
        raise UserError(line.removeprefix(f"{UserError.__module__}.{UserError.__name__}: ")) from error
    if not trainer.is_global_zero:
        return
    weights = learner.state_dict()
    save_weights(averaged(start, weights, share) if start else weights, folder / WEIGHTS_FILE)
    checkpoint.unlink(missing_ok=True)


def save_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    """Write a learner's weights to `path`, whole or not at all.

    Raises:
        UserError: `path` can't be written.
    """
    with whole_file(path) as part:
        try:
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, part)
        except SafetensorError as error:
            raise OSError(str(error)) from error  # a full disk, which `whole_file` tells


def averaged(start: Mapping[str, Tensor], trained: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return `share` of a network's weights before its training, and the rest of those after it.

    Fine-tuned weights lie where the loss is low between them and their start, and their mean is better than either:
    Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022.
    """
    return {
        name: torch.lerp(after, start[name].to(after.device), share) if after.is_floating_point() else after
        for name, after in trained.items()
    }


def _workers(settings: FitSettings, data: TrainingData) -> int:
    """Return how many processes make batches.

    On two cores a process beside training costs an eighth of its speed: torch's threads wait for the one whose core it
    takes. Augmenting in between costs a fiftieth; decoding files in between would cost more.
    """
    if settings.num_workers is not None:
        return settings.num_workers
    if torch.cuda.is_available():
        return 2
    return 0 if isinstance(data.train_pixels, np.ndarray) else 1


def _callbacks(learner: Learner, plan: LearnerPlan, folder: Path, audience: Audience) -> list[L.Callback]:
    recipe = plan.recipe
    callbacks: list[L.Callback] = [Growth(learner, recipe.grow_from, recipe.freeze)]
    if recipe.ema:
        callbacks.append(EMAWeightAveraging(decay=recipe.ema))
    # The journal saves the checkpoint, after all others have done their part of an epoch.
    return [*callbacks, Bar(plan.name, audience.console), Journal(folder, plan, audience)]


def seconds_trained(folder: Path) -> float:
    """Return the wall time that the learner in `folder` has taken, over all sittings: 0 before its first epoch."""
    rows = read_log(folder)
    return rows[-1]["seconds"] if rows else 0.0


def read_log(folder: Path) -> list[dict[str, float]]:
    """Return the rows of metrics.csv of the learner in `folder`: none before its first epoch."""
    path = folder / METRICS
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def as_csv(rows: list[dict[str, float]]) -> str:
    """Return the rows of a learner's log as metrics.csv has them."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
