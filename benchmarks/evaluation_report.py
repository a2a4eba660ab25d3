"""What `benchmarks/eval.py` found, as a page of Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.accuracy import worst_classes
from benchmarks.corruptions import SEVERITIES
from benchmarks.evaluation_figures import Shown
from benchmarks.report import machine_line, table

HEADLINES = ("top1", "top5", "balanced", "macro_f1", "many", "medium", "few", "ece", "nll")
PERCENTILES = ("p50", "p90", "p99")
LISTED = 100
"""Classes that the page lists, at most."""
MISTAKES = 10


def markdown(report: Mapping[str, Any], figures: Sequence[Shown] = ()) -> str:
    """Return the page: accuracy, then latency, then what it was measured on, then figures that lie beside it."""
    sections = [
        f"# {report['model']['name']}",
        _model_line(report["model"]),
        table(("", *HEADLINES, "worst class"), _accuracy_rows(report), "Accuracy on the test split"),
        _fit_line(report),
        *_set_sections(report),
        *_class_sections(report),
        *_corruption_sections(report),
        *(_http_sections(report) if "http" in report else _latency_sections(report)),
        machine_line(report),
        *(f"## {shown.title}\n\n![{shown.title}]({shown.file})\n\n{shown.caption}" for shown in figures),
    ]
    return "\n\n".join(sections) + "\n"


def _model_line(model: Mapping[str, Any]) -> str:
    size = f"{model['megabytes']} MB, " if "megabytes" in model else ""
    line = f"{len(model['learners'])} learner(s), {model['classes']} classes, {size}technique {model['technique']}"
    return f"{line}, version {model['version']} at {model['url']}" if "url" in model else line


def _accuracy_rows(report: Mapping[str, Any]) -> Iterable[list[str]]:
    own = "HTTP" if "http" in report else "onnx"
    for name, part in {own: report, **report["against"]}.items():
        values = [*(part["accuracy"][key] for key in HEADLINES), part["worst_class"]["accuracy"]]
        yield [name, *("-" if value is None else f"{value:.4f}" for value in values)]


def _set_sections(report: Mapping[str, Any]) -> list[str]:
    rows = [
        [
            f"{float(stated):.0%} stated",
            *("-" if figures[key] is None else f"{figures[key]:.4f}" for key in ("coverage", "many", "medium", "few")),
            f"{figures['size']:.2f}",
        ]
        for stated, figures in report["prediction_sets"].items()
    ]
    header = ("", "have the true class", "many", "medium", "few", "classes in a set")
    return [table(header, rows, "Prediction sets")] if rows else []


def _class_sections(report: Mapping[str, Any]) -> list[str]:
    per_class = report["accuracy"]["per_class"]
    rows = [
        [
            entry["label"],
            f"{entry['accuracy']:.4f}",
            "-" if entry["precision"] is None else f"{entry['precision']:.4f}",
            str(entry["train_images"]),
            str(entry["test_images"]),
        ]
        for entry in worst_classes(report["accuracy"])[:LISTED]
    ]
    title = "Classes" if len(per_class) <= LISTED else f"The {LISTED} classes of the lowest accuracy"
    header = ("", "accuracy", "precision", "training images", "test images")
    mistakes = [[f"{true} as {taken}", f"{share:.0%}", str(images)] for true, taken, share, images in _mistakes(report)]
    sections = [table(header, rows, title)]
    if mistakes:
        sections.append(table(("", "of the class", "images"), mistakes, "What is mistaken for what most often"))
    return sections


def _corruption_sections(report: Mapping[str, Any]) -> list[str]:
    found = report.get("corruptions")
    if found is None:
        return []
    rows = [
        [name, part["category"], *(f"{value:.4f}" for value in part["top1"]), f"{part['mean']:.4f}"]
        for name, part in found["by_corruption"].items()
    ]
    header = ("", "kind", *(f"severity {severity}" for severity in SEVERITIES), "mean")
    line = (
        f"Top-1 of {found['images']} test images, with the parameters of {found['parameters_of']}: "
        f"{found['clean']:.4f} as they are, {found['mean']:.4f} on average over corruptions and severities."
    )
    return [table(header, rows, "Under corruptions"), line]


def _mistakes(report: Mapping[str, Any]) -> list[tuple[str, str, float, int]]:
    """Return true class, predicted class, share of the true one's images, and images, the largest share first."""
    if report["confusion"] is None:
        return []
    matrix = np.array(report["confusion"])
    names = [entry["label"] for entry in report["accuracy"]["per_class"]]
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    np.fill_diagonal(shares, 0)
    order = np.argsort(-shares, axis=None, kind="stable")[:MISTAKES]
    pairs = [divmod(int(place), len(names)) for place in order]
    return [(names[i], names[j], float(shares[i, j]), int(matrix[i, j])) for i, j in pairs if matrix[i, j]]


def _latency_sections(report: Mapping[str, Any]) -> list[str]:
    header = ("", "batch", "p50 ms", "p90 ms", "p99 ms", "images/s", "calls", "onnx is faster by")
    return [table(header, _timing_rows(report), "Latency"), *_thread_sections(report)]


def _thread_sections(report: Mapping[str, Any]) -> list[str]:
    parts = report["by_threads"]
    if len(parts) < 2:
        return []
    batches = list(report["throughput"])
    rows = [[threads, *(f"{part['throughput'][batch]:.1f}" for batch in batches)] for threads, part in parts.items()]
    header = ("threads", *(f"batch {batch}" for batch in batches))
    return [table(header, rows, "Images per second by threads of one inference")]


def _timing_rows(report: Mapping[str, Any]) -> Iterable[list[str]]:
    systems = {"onnx": report, **report["against"]}
    for batch in report["latency_ms"]:
        for name, part in systems.items():
            speed = f"{part['speed_of_onnx'][batch]:.2f}x" if "speed_of_onnx" in part else ""
            figures = _percentiles(part["latency_ms"][batch])
            yield [name, batch, *figures, f"{part['throughput'][batch]:.1f}", str(part["calls"][batch]), speed]


def _http_sections(report: Mapping[str, Any]) -> list[str]:
    http = report["http"]
    figures = ("p50 ms", "p90 ms", "p99 ms", "server CPU ms a request", "cores of the load", "failed")
    closed = [
        [
            concurrency,
            f"{report['throughput'][concurrency]:.1f}",
            *_percentiles(report["latency_ms"][concurrency]),
            *_load_cells(part, part["failed"]),
        ]
        for concurrency, part in http["closed"].items()
    ]
    opened = [
        [
            f"{part['rate']:.1f}",
            f"{part['throughput']:.1f}",
            *_percentiles(part["latency_ms"]),
            *_load_cells(part, sum(part["failed"].values())),
        ]
        for part in http["open"]
    ]
    return [
        table(("requests under way", "images/s", *figures), closed, "Closed loop"),
        table(("requests/s sent", "images/s", *figures), opened, "Open loop"),
        _http_line(http),
    ]


def _http_line(http: Mapping[str, Any]) -> str:
    text = (
        f"{http['photos']} test images of {http['mean_bytes']} bytes on average, as a form to `/classify`. The closed "
        "loop is wrk's, but with one request under way: wrk drops what is under way when a turn ends, and here every "
        "answer is waited for. Percentiles are those of the answers of all rounds. In the open loop a request's time "
        "counts from when it was due."
    )
    if http["server_seen"]:
        return f"{text} The server runs on this machine, and shares its cores with the load."
    return (
        f"{text} The server's processor time is left out: its processes can't be seen from here. What follows is the "
        "machine of the load."
    )


def _load_cells(part: Mapping[str, Any], failed: int) -> list[str]:
    cpu = "-" if part["server_cpu_ms"] is None else f"{part['server_cpu_ms']:.2f}"
    return [cpu, f"{part['load_cores']:.2f}", str(failed)]


def _percentiles(latency: Mapping[str, float]) -> list[str]:
    return [f"{latency[key]:.2f}" for key in PERCENTILES]


def _fit_line(report: Mapping[str, Any]) -> str:
    model = report["model"]
    lines = [f"`fit` measured top-1 {model['top1_in_fit']:.4f}"]
    if "same_test_split" in model:
        lines[0] += " on this test split." if model["same_test_split"] else " on another test split."
    else:
        lines[0] += " on the test split of its own datastore."
    for name, part in report["against"].items():
        lines.append(f"{name} gives the same label for {part['same_label']:.2%} of the images.")
    return " ".join(lines)
