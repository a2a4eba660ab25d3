"""The command `distill`: a run -> a run of one learner that the whole ensemble taught."""

from pathlib import Path
from typing import Any

from rich.console import Console

from tailstack.run import RunRecord, student_folder
from training.fit import fit
from training.settings import FitSettings

_OF_THE_TECHNIQUE = ("loss", "tau", "deferred", "blend", "threshold")
"""Settings of the run's technique, in the place of which the student's has its own."""


def distill(
    run: Path, architecture: str | None, output: Path | None, changes: dict[str, Any], *, keep_others: bool = False
) -> RunRecord:
    """Train a student of `run`, evaluate it and write its run, as `training.fit.fit` does.

    Where no output is named, RUN-student and RUN-taught share a student of the same settings: it is trained once.

    Args:
        run, architecture, output, changes, keep_others: as `student_settings` takes them.

    Raises:
        UserError: there is no such run, it isn't finished, or a setting can't be used.
        KeyboardInterrupt, SystemExit: as of `training.fit.fit`.
    """
    settings = student_settings(run, architecture, output, changes, keep_others=keep_others)
    student = fit(settings, share=None if output else settings.run.parent)
    Console().print(gain_kept(RunRecord.load(run), student), highlight=False, soft_wrap=True)
    return student


def student_settings(
    run: Path, architecture: str | None, output: Path | None, changes: dict[str, Any], *, keep_others: bool = False
) -> FitSettings:
    """Return the settings by which a student of `run` is trained: the run's own where nothing else is said.

    Args:
        run: folder of a finished run.
        architecture: of the student; None takes that of the smallest learner.
        output: folder of the student's run; None puts it beside `run`.
        changes: settings that are to differ from the run's.
        keep_others: whether `run`'s other learners stay, and the student takes the place of its own of that network.

    Raises:
        UserError: there is no such run, it isn't finished, or a setting can't be used.
    """
    record = RunRecord.load(run)
    smallest = min(record.learners, key=lambda learner: learner.parameters)
    values = {
        **record.config,
        **dict.fromkeys(_OF_THE_TECHNIQUE),
        "datastore": Path(record.datastore["path"]),
        "output": output or student_folder(run, keep_others=keep_others),
        "technique": "taught" if keep_others else "student",
        "teacher": run,
        "architectures": [architecture or smallest.architecture],
        "budget": None,
        "cluster": None,
        **changes,
    }
    return FitSettings(**values)


def gain_kept(teacher: RunRecord, made: RunRecord) -> str:
    """Put the student's accuracy on test beside its teacher's, and that of the teacher's learner of its network.

    Args:
        teacher: whose ensemble taught.
        made: the student's run, with the teacher's other learners or without.
    """
    architecture = made.config["architectures"][0]
    [student, *_] = [learner for learner in made.learners if learner.architecture == architecture]
    ensemble, reached = teacher.results["top1"], student.results["top1"]
    line = f"top-1 on test: the ensemble {ensemble:.4f}, the student {reached:.4f}"
    alone = [learner.results["top1"] for learner in teacher.learners if learner.architecture == architecture]
    if alone:
        gain, kept = ensemble - max(alone), reached - max(alone)
        share = f", {kept / gain:.0%} of the ensemble's gain" if gain > 0 else ""
        line += f", {architecture} without a teacher {max(alone):.4f}{share}"
    if len(made.learners) > 1:
        line += f"; the ensemble with the student in its place {made.results['top1']:.4f}"
    return line
