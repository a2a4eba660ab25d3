"""Limits that make a measurement a gate."""

from collections.abc import Mapping
from typing import Any

from benchmarks.evaluation_contract import EvalSettings

ALONE = "1"
"""Batch size, or requests under way, whose p99 counts."""


def broken_limits(report: Mapping[str, Any], settings: EvalSettings) -> list[str]:
    """Return a line for each limit of the settings that the figures don't keep."""
    lines = []
    top1, p99 = report["accuracy"]["top1"], report["latency_ms"][ALONE]["p99"]
    if settings.min_top1 is not None and top1 < settings.min_top1:
        lines.append(f"top-1 is {top1:.4f}, below --min_top1 {settings.min_top1:g}")
    if settings.max_p99_ms is not None and p99 > settings.max_p99_ms:
        lines.append(f"p99 of one image at a time is {p99:.2f} ms, above --max_p99_ms {settings.max_p99_ms:g}")
    failed = report["http"]["closed"][ALONE]["failed"] if "http" in report else 0
    if settings.max_p99_ms is not None and failed:
        lines.append(f"{failed} request(s) with one image at a time failed, and --max_p99_ms allows none")
    return lines
