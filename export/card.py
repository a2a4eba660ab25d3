"""The model card: what a file is, what it was measured to be worth and how to check it, for people to read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from export.gate import ECE_RISE, FEW_SHOT_POINTS
from tailstack.artifact import Artifact
from tailstack.files import sha256, write_text
from tailstack.markdown import table
from tailstack.metrics import ClassFigures

NAMES = {
    "top1": "top-1",
    "balanced": "balanced accuracy",
    "many": "many-shot",
    "medium": "medium-shot",
    "few": "few-shot",
    "ece": "calibration error (ECE)",
    "nll": "negative log-likelihood",
}
_INTENDED = """\
It sorts photos into {classes} classes, and may have seen few images of some: look at a class's own figures before you
rely on it. It names one of its classes whatever it is shown, a picture of something else too. Its figures hold for
photos like those of its data set; on others, measure before use (`benchmarks/eval.py`). It doesn't know what an error
costs: what is decided about people needs more than it."""
_NOTHING_VALIDATED = (
    "Nothing validated, so that there is no calibration, no prediction set and no figure but those on test."
)


def beside(model: Path, ending: str) -> Path:
    """Return the path of something that goes with a file, so that two models in a folder don't share it."""
    return model.with_name(f"{model.name}.{ending}")


def write_card(model: Path, artifact: Artifact, per_class: Sequence[ClassFigures], pictures: Sequence[Path]) -> Path:
    """Write the card of a finished file, and return its path.

    Args:
        model: the file.
        artifact: its metadata.
        per_class: figures on the images that validate; empty where nothing did.
        pictures: files beside the card, first that of calibration, then that of classes; empty where nothing validated.
    """
    path = beside(model, "MODEL_CARD.md")
    write_text(path, card_text(model, sha256(model), artifact, per_class, [picture.name for picture in pictures]))
    return path


def card_text(
    model: Path, digest: str, artifact: Artifact, per_class: Sequence[ClassFigures], pictures: Sequence[str]
) -> str:
    """Return the card as Markdown; arguments are those of `write_card`, and the file's SHA-256."""
    parts = [
        f"# {artifact.name}",
        _summary(model, digest, artifact),
        "## Intended use",
        _INTENDED.format(classes=len(artifact.classes)),
        "## Learners",
        _learners(artifact),
        "## On the test split",
        "As measured after training, for all learners together in PyTorch: "
        + ", ".join(
            f"{name} {artifact.accuracy[key]:.4f}"
            for key, name in NAMES.items()
            if artifact.accuracy.get(key) is not None
        )
        + ".",
        "## On the images that validate",
        *(_validated(artifact, per_class, pictures) if artifact.validation else [_NOTHING_VALIDATED]),
        "## Where it comes from",
        _provenance(artifact),
        "## Check it",
        f"    sha256sum --check {model.name}.sha256\n    python -m export verify {model.name} [--datastore FOLDER]",
        "The second repeats the release gate's checks, and fails where the file isn't what it says of itself.",
    ]
    return "\n\n".join(parts) + "\n"


def _summary(model: Path, digest: str, artifact: Artifact) -> str:
    height, width = artifact.image_size
    cascade = artifact.cascade
    order = " → ".join(artifact.learners[place].name for place in cascade.order) if cascade else ""
    return table(
        ("", ""),
        [
            ("file", f"`{model.name}`"),
            ("SHA-256", f"`{digest}`"),
            ("made", f"{artifact.provenance['exported']}, by Tailstack {artifact.provenance['versions']['exporter']}"),
            ("technique", artifact.technique),
            ("input", f"uint8 RGB, {height}x{width} pixels"),
            ("answers", f"probabilities of {len(artifact.classes)} classes"),
            ("right for the class mix", _mix(artifact)),
            ("precision", artifact.precision),
            (
                "cascade",
                f"{order}; on below {', '.join(f'{value:g}' for value in cascade.thresholds)}" if cascade else "no",
            ),
        ],
        "ll",
    )


def _mix(artifact: Artifact) -> str:
    if artifact.prior is None:
        return "unknown"
    rarest, commonest = min(artifact.prior), max(artifact.prior)
    if commonest - rarest < 1e-6:
        return "all classes alike; the input `class_prior` takes another one"
    names = [artifact.classes[artifact.prior.index(share)] for share in (rarest, commonest)]
    return f"{rarest:.2%} ({names[0]}) to {commonest:.2%} ({names[1]}); the input `class_prior` takes another one"


def _learners(artifact: Artifact) -> str:
    rows = [
        (
            card.name,
            card.architecture,
            f"{card.resolution}",
            f"{card.parameters / 1e6:.1f} M",
            f"{card.weight:.3f}",
            f"{card.top1:.4f}",
        )
        for card in artifact.learners
    ]
    header = ("learner", "architecture", "pixels", "parameters", "weight", "top-1 on test, alone, as trained")
    return table(header, rows, "ll")


def _validated(artifact: Artifact, per_class: Sequence[ClassFigures], pictures: Sequence[str]) -> list[str]:
    calibration, sets, validation = artifact.calibration, artifact.prediction_sets, artifact.validation
    assert calibration and sets and validation
    reliability, classes = pictures
    coverages = ", ".join(f"{100 * float(coverage):g}%" for coverage in sets.thresholds)
    return [
        _gate(artifact.evidence) if artifact.evidence else _figures(validation.figures, sets.images),
        "### Calibration",
        f"Calibration error: {calibration.ece_before:.4f} as the plain average of the learners that saw an image, "
        f"{calibration.ece_after:.4f} with the weights and temperatures of the file ({_temperatures(artifact)}). "
        "Each class counts by its share of the mix that the file is right for.",
        f"![Reliability before and after]({reliability})",
        "### Prediction sets",
        f"For coverages of {coverages} the metadata has the probability that a class has to reach to be in an image's "
        f"set, chosen on {sets.images} images: the true class is in the set that often, in classes with few training "
        "images too, where enough of these validate.",
        "### Classes",
        f"![Accuracy of a class against its training images]({classes})",
        _classes(per_class),
    ]


def _figures(figures: dict[str, float | None], images: int) -> str:
    rows = [(NAMES[key], _number(value)) for key, value in figures.items()]
    said = (
        f"{images} images. In fp32 and without a cascade, the file answers as PyTorch does, at the temperature below."
    )
    return f"{said}\n\n{table(('', 'this file'), rows)}"


def _gate(evidence: dict[str, Any]) -> str:
    plain, this, most = evidence["plain"], evidence["this"], evidence["max_accuracy_drop"]
    limits = {
        "top1": f"{most:g} points less, 90% sure",
        "balanced": f"{most:g} points less, 90% sure",
        "few": f"{max(FEW_SHOT_POINTS, most):g} points less, 90% sure",
        "ece": f"{ECE_RISE:g} more, by image or by class",
    }
    rows = [(NAMES[key], _number(plain[key]), _number(this[key]), limits.get(key, "")) for key in plain]
    expected = f"{evidence['expected_drop']:.2f}, at most {evidence['expected_drop_bound']:.2f} (90% sure)"
    rows.append(("loss that the plain ensemble expects, points", "0", expected, f"{most:g} at most"))
    for batch, cost in evidence["cost"].items():
        milliseconds = f"{cost['ms']:.2f} ({cost['relative']:.2f}x)"
        rows.append((f"ms per image, one thread, batch {batch}", f"{cost['plain_ms']:.2f}", milliseconds, ""))
    intro = (
        f"The release gate compared the file with the plain ensemble in fp32 on {evidence['images']} images, and found "
        f"it within its limits. {evidence['learners_used']:.2f} learners see an image on average."
    )
    return f"{intro}\n\n" + table(("", "plain ensemble", "this file", "limit"), rows, "lrrl")


def _temperatures(artifact: Artifact) -> str:
    if artifact.cascade is None or artifact.cascade.temperatures is None:
        return f"temperature {artifact.temperature:.3f}"
    values = ", ".join(f"{value:.3f}" for value in artifact.cascade.temperatures)
    return f"temperatures {values}, by the number of learners that saw the image"


def _classes(per_class: Sequence[ClassFigures]) -> str:
    rows = [
        (item["label"], f"{item['train_images']}", f"{item['test_images']}", _number(item["accuracy"]))
        for item in sorted(per_class, key=lambda item: -item["train_images"])
    ]
    return table(("class", "training images", "images that validate", "accuracy on them"), rows)


def _provenance(artifact: Artifact) -> str:
    origin = artifact.provenance
    machine = origin["machine"]
    digests = {f"{name}.json": value for name, value in origin["datastore"].items() if name != "path"}
    rows = [
        ("data set", f"`{origin['datastore']['path']}`"),
        *((f"SHA-256 of {name}", f"`{value}`") for name, value in digests.items()),
        *((f"SHA-256 of {name}", f"`{value}`") for name, value in origin["weights"].items()),
        ("exported on", f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in origin["versions"].items())),
        ("largest difference from the reference", f"{max(artifact.parity.values()):.1e}"),
    ]
    return table(("", ""), rows, "ll")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
