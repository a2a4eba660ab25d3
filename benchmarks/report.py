"""Figures as a page of Markdown: the same text in the terminal and in the file."""

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.latency import Timing

IDLE = 0.1
"""Cores that others may take without a word of warning."""
HEADLINES = ("top1", "top5", "balanced", "macro_f1", "many", "medium", "few", "ece", "nll")


def timing_figures(timings: Mapping[int, Timing]) -> dict[str, dict[str, Any]]:
    """Return `latency_ms`, `throughput` (images per second) and `calls`, each by batch size."""
    return {
        "latency_ms": {str(batch): timing.percentiles() for batch, timing in timings.items()},
        "throughput": {str(batch): timing.images_per_second() for batch, timing in timings.items()},
        "calls": {str(batch): timing.calls for batch, timing in timings.items()},
    }


def markdown(report: Mapping[str, Any]) -> str:
    """Return the page: accuracy, then latency, then what it was measured on."""
    model = report["model"]
    sections = [
        f"# {model['name']}",
        f"{len(model['learners'])} learner(s), {model['classes']} classes, {model['megabytes']} MB, "
        f"technique {model['technique']}",
        table(("", *HEADLINES), _accuracy_rows(report), "Accuracy on the test split"),
        _fit_line(report),
        *_set_sections(report),
        table(
            ("", "batch", "p50 ms", "p90 ms", "p99 ms", "images/s", "calls", "onnx is faster by"),
            _timing_rows(report),
            "Latency",
        ),
        machine_line(report),
    ]
    return "\n\n".join(sections) + "\n"


def _accuracy_rows(report: Mapping[str, Any]) -> Iterable[list[str]]:
    for name, part in {"onnx": report, **report["against"]}.items():
        values = [part["accuracy"][key] for key in HEADLINES]
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


def _timing_rows(report: Mapping[str, Any]) -> Iterable[list[str]]:
    systems = {"onnx": report, **report["against"]}
    for batch in report["latency_ms"]:
        for name, part in systems.items():
            latency = part["latency_ms"][batch]
            speed = f"{part['speed_of_onnx'][batch]:.2f}x" if "speed_of_onnx" in part else ""
            figures = [f"{latency[key]:.2f}" for key in ("p50", "p90", "p99")]
            yield [name, batch, *figures, f"{part['throughput'][batch]:.1f}", str(part["calls"][batch]), speed]


def _fit_line(report: Mapping[str, Any]) -> str:
    model = report["model"]
    lines = [f"`fit` measured top-1 {model['top1_in_fit']:.4f}"]
    lines[0] += " on this test split." if model["same_test_split"] else " on another test split."
    for name, part in report["against"].items():
        lines.append(f"{name} gives the same label for {part['same_label']:.2%} of the images.")
    return " ".join(lines)


def machine_line(report: Mapping[str, Any]) -> str:
    """Return what the figures were measured on, with a warning where others took the cores meanwhile."""
    machine = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if name != "onnxruntime")
    text = (
        f"{machine['provider']}, {machine['threads']} thread(s); {machine['cpu']}, {machine['cores']} core(s), "
        f"{machine['memory_gib']} GiB; {machine['versions']['onnxruntime']}, {versions}; {machine['system']}."
    )
    if machine["cores_of_others"] > IDLE:
        text += (
            f"\n\n**Other processes took {machine['cores_of_others']} core(s) during the measurement: "
            "don't trust its latencies.**"
        )
    return text


def table(header: Iterable[str], rows: Iterable[Iterable[str]], title: str) -> str:
    """Return a headline and a table, whose first column is text and whose others are figures."""
    first, *figures = header
    lines = [[first, *figures], ["---", *("---:" for _ in figures)], *rows]
    return f"## {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)
