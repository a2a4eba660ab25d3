"""The student of a run, made by training's own command where there is none yet."""

import subprocess
import sys
from pathlib import Path

from tailstack.errors import UserError
from tailstack.remote import fetch, spelled
from tailstack.run import ENSEMBLE_FILE, RunRecord, student_folder, weights_digest


def student_of(run: Path, architecture: str, *, keep_others: bool = False) -> Path:
    """Return the run of `run`'s student, distilled first, or further, if it isn't finished.

    Training is another stage: it runs in a process of its own, and what it writes is a run like any other.

    Args:
        run: folder of a finished run.
        architecture: of the student.
        keep_others: whether `run`'s other learners stay beside it.

    Raises:
        UserError: there is no such run, the student can't be made, it is that of a run that was made anew since, or it
            lies in a store that can't be read.
    """
    teacher = RunRecord.load(run)
    folder = student_folder(run, keep_others=keep_others)
    place = spelled(folder)
    if not _is_finished(folder, architecture, weights_digest(run, teacher)):
        command = ["distill", spelled(run), "--architecture", architecture]
        command += ["--keep_others", "true"] * keep_others
        print(f"{place} isn't there yet: python -m training {' '.join(command)}", flush=True)
        if subprocess.run([sys.executable, "-m", "training", *command], check=False).returncode:
            raise UserError(f"{place} could not be made, for the reason above: there is no student to export")
    reached = RunRecord.load(folder).results["top1"]
    print(f"{place}: top-1 {reached:.4f} on test, the whole ensemble of {spelled(run)} {teacher.results['top1']:.4f}")
    return folder


def _is_finished(folder: Path, architecture: str, teacher_sha256: str) -> bool:
    """Return whether there is a finished student of that network; of another one, training refuses the folder.

    Raises:
        UserError: it is the student of a run that was made anew since, or lies in a store that can't be read.
    """
    if not (fetch(folder, missing_ok=True) / ENSEMBLE_FILE).exists():
        return False
    student = RunRecord.load(folder)
    # Runs of earlier versions don't say whose student they are.
    if student.teacher_sha256 not in (None, teacher_sha256):
        raise UserError(
            f"{spelled(folder)} is the student of an earlier run, whose folder was used again: move it away"
        )
    return bool(student.config["architectures"] == [architecture])
