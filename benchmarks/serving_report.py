"""The serving benchmark's figures as a page of Markdown: the same text in the terminal and in the file."""

from collections.abc import Mapping
from typing import Any

from benchmarks.report import cell, machine_line, table


def markdown(report: Mapping[str, Any]) -> str:
    """Return the page: throughput, latency, start and memory, then what it was measured on."""
    sections = [
        f"# Serving {report['model']['file']}",
        f"{_pictures(report)}, as a form to `/classify`; medians over the rounds.",
        table(("", "decode + inference", "HTTP", "HTTP without load"), _speed_rows(report), "Speed"),
        table(("", "figure"), _server_rows(report), "Server"),
        machine_line(report),
    ]
    return "\n\n".join(sections) + "\n"


def soak_markdown(report: Mapping[str, Any]) -> str:
    """Return the page of a soak, then what it was measured on."""
    sections = [
        f"# Soak of {report['model']['file']}",
        f"{_pictures(report)}, as a form to `/classify`.",
        table(("", "figure"), _soak_rows(report), "Soak"),
        machine_line(report),
    ]
    return "\n\n".join(sections) + "\n"


def _pictures(report: Mapping[str, Any]) -> str:
    size = f"{report['image_bytes']} bytes"
    return f"A picture of {size}" if report["images"] == 1 else f"{report['images']} test photos of {size} on average"


def _speed_rows(report: Mapping[str, Any]) -> list[list[str]]:
    speed, latency = report["throughput"], report["latency_ms"]
    rates = [f"{speed[key]:.1f}" for key in ("in_process", "http", "http_without_load")]
    return [
        [f"requests/s at concurrency {speed['concurrency']}", *rates],
        ["share of decode + inference", "1", f"{speed['ratio']:.3f}", f"{speed['ratio_without_load']:.3f}"],
        ["median ms at concurrency 1", f"{latency['in_process']:.2f}", f"{latency['http']:.2f}", ""],
        ["ms above decode + inference", "0", f"{latency['above']:.2f}", ""],
    ]


def _server_rows(report: Mapping[str, Any]) -> list[list[str]]:
    memory = report["memory_mib"]
    return [
        ["start to ready, s", ", ".join(f"{seconds:.2f}" for seconds in report["ready_s"])],
        [f"MiB a worker after {memory['requests']} requests", ", ".join(f"{size:.0f}" for size in memory["workers"])],
        ["ms of processor time a request, server", f"{report['server_cpu_ms']:.2f}"],
        ["ms of processor time a request, load", f"{report['throughput']['load_cpu_ms']:.2f}"],
        ["failed requests", str(report["failures"])],
    ]


def _soak_rows(soak: Mapping[str, Any]) -> list[list[str]]:
    latency, memory, tenths = soak["latency_ms"], soak["memory_mib"], ("first_tenth", "last_tenth")
    return [
        ["minutes", f"{soak['minutes']:g}"],
        ["requests/s, and the capacity", f"{soak['rate']:.1f} of {soak['capacity']:.1f}"],
        ["requests", str(soak["requests"])],
        ["median, 99 % in ms", f"{cell(latency['p50'], '.1f')}, {cell(latency['p99'], '.1f')}"],
        ["new models", f"{soak['reloads']}, loaded {cell(soak['models_loaded'], 'd')} times by the workers"],
        ["failed when a worker was killed", str(soak["failures_by_kill"])],
        ["failed else", str(soak["failures_else"])],
        ["workers at the end", str(soak["workers_at_the_end"])],
        ["MiB of the other worker, first and last tenth", ", ".join(cell(memory[part], ".0f") for part in tenths)],
    ]
