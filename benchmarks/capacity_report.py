"""The plan as a page and a figure."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import ScalarFormatter

from benchmarks.queueing import Replica
from benchmarks.report import machine_line, table
from tailstack.figures import BLUE, GREY, ORANGE, VERMILION, drawing

_NAMES = {"cpu": "CPU", "gpu": "GPU"}


def markdown(report: Mapping[str, Any], figure: str) -> str:
    """Return the page."""
    sections = [
        "# Capacity",
        "How many replicas a load takes, and what they cost. `python benchmarks/capacity.py` writes this page; it has "
        "a flag for each number that is yours: rates, prices, the delay to keep.",
        _measured(report),
        _assumed(report),
        _model(report["check"]),
        f"![Delay of one replica by its load]({figure})",
        _replicas(report),
        _autoscaling(report),
        _check(report["check"]),
    ]
    return "\n\n".join(sections) + "\n"


def draw(report: Mapping[str, Any], path: Path) -> None:
    """Write the figure as PNG: a replica's delay by its load, and, beside it, the real server's."""
    uses = np.linspace(0.02, 0.98, 80)
    with drawing(path, 3.6, 2, share_y=False) as (planned, checked):
        for kind, colour in (("cpu", BLUE), ("gpu", ORANGE)):
            one = _replica(report["replicas"][kind])
            known, ratios = zip(*report["replicas"][kind]["beside_model"], strict=True)
            slower = np.interp(uses, known, ratios)
            delays = [1e3 * one.quantile(use * one.rate, 0.99) for use in uses] * slower
            planned.plot(100 * uses, delays, color=colour, label=f"{_NAMES[kind]} replica, 99%")
            use = report["replicas"][kind]["in_time"]["use"]
            planned.plot([100 * use], [report["replicas"][kind]["in_time"]["p99_ms"]], "o", color=colour)
        planned.axhline(report["p99_ms"], color=GREY, linewidth=0.8, linestyle=":", label="delay to keep")
        planned.set(title="Planned", xlabel="load, % of the largest", ylabel="ms", yscale="log")
        check = report["check"]
        replica = Replica.measured({row["images"]: row["rate"] for row in check["inside"]})
        _draw_check(checked, check)
        for share, style in ((None, "-"), (0.99, "--")):
            values = [_delay(replica, use * replica.rate, share) for use in uses]
            checked.plot(100 * uses, values, style, color=BLUE, label="mean, model" if share is None else "99%, model")
        checked.set(title="Beside the real server", xlabel="load, % of the largest", yscale="log")
        for axes in (planned, checked):
            axes.yaxis.set_major_formatter(ScalarFormatter())
            axes.legend()


def _draw_check(axes: Any, check: Mapping[str, Any]) -> None:
    uses = [100 * row["use"] for row in check["loads"]]
    axes.plot(uses, [row["mean_ms"] for row in check["loads"]], "o", color=VERMILION, label="mean, measured")
    axes.plot(uses, [row["p99_ms"] for row in check["loads"]], "^", color=VERMILION, label="99%, measured")


def _delay(replica: Replica, load: float, share: float | None) -> float:
    """Return milliseconds: the mean, or those within which a share is answered."""
    seconds = replica.mean(load) if share is None else replica.quantile(load, share)
    return 1e3 * seconds


def _replica(planned: Mapping[str, Any]) -> Replica:
    return Replica(tuple(planned["rates"]))


def _measured(report: Mapping[str, Any]) -> str:
    cost, inside = report["cost"], report["check"]["inside"]
    rows = [
        [
            f"images/s of one server on {cost['cores']:.0f} cores, {row['images']} under way",
            f"{row['rate_without_load']:.1f}",
        ]
        for row in inside
    ]
    rows += [
        [
            f"ms of processor time an image, {inside[-1]['images']} under way",
            f"{cost['server_ms']:.2f}",
        ],
        ["of which inference", f"{cost['inference_ms']:.2f}"],
        ["of which receiving, decoding, answering", f"{cost['front_ms']:.2f}"],
    ]
    return (
        f"{table(('', 'figure'), rows, 'What was measured')}\n\n"
        "By `--check true`, on the CPU. Rates are those on cores of the server's own: the load's processor time is "
        "taken out. Inference is that of full batches on one thread."
    )


def _assumed(report: Mapping[str, Any]) -> str:
    values = report["assumptions"]
    rows = [
        ["price of a core with its memory, $ an hour", f"{values['core_price']:g}"],
        ["price of a GPU, $ an hour", f"{values['gpu_price']:g}"],
        ["images/s that one GPU infers", f"{values['gpu_rate']:g}"],
        ["cores beside each GPU", f"{values['gpu_cores']}"],
    ]
    return (
        f"{table(('', 'assumption'), rows, 'What is assumed')}\n\n"
        "No GPU was measured here. Whoever has one measures it with `benchmarks/eval.py`, and gives the figure as "
        "`--gpu_rate`."
    )


def _model(check: Mapping[str, Any]) -> str:
    most = max(row["images"] for row in check["inside"])
    means, tails = ([row[name] for row in check["loads"]] for name in ("mean_ratio", "p99_ratio"))
    return (
        "## The queue\n\n"
        "Images come at random. A Kubernetes Service gives each replica a random share of them, so each has a queue of "
        "its own: twice the load takes twice the replicas. A CPU replica with n images inside answers as many a second "
        f"as it was measured to do with n requests always under way, above {most} as with {most}: batches, threads "
        "and cores that share a core need no model of their own. Times between answers are taken to be exponential. "
        "[benchmarks/queueing.py](../benchmarks/queueing.py) computes mean and quantiles, and a test puts them beside "
        f"a simulation. Of the real server, on this machine, means were {min(means):.2f} to {max(means):.2f} times the "
        f"model's, and 99% delays {min(tails):.2f} to {max(tails):.2f} times (last table). The plan takes "
        "99% delays of a CPU replica to be as many times the model's, where that is more than once, or as many as the "
        "medians of that table differ by, where that is more. A GPU replica speeds up with its images until the slower "
        "of GPU and cores is busy. Bursts that are worse than random need more."
    )


def _replicas(report: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{load['rate']:,.0f} images/s, {_NAMES[kind]}",
            f"{load['replicas']:,}",
            f"{load['price_month']:,.0f}",
            f"{load['price_million']:.2f}",
        ]
        for kind, planned in report["replicas"].items()
        for load in planned["loads"]
    ]
    ends = ", ".join(
        f"a {_NAMES[kind]} replica at {planned['in_time']['load']:.0f} of its {planned['rates'][-1]:.0f} images/s"
        for kind, planned in report["replicas"].items()
    )
    bound = report["replicas"]["gpu"]["rates"][-1] < report["assumptions"]["gpu_rate"]
    text = (
        f"{table(('', 'replicas', '$ a month', '$ a million images'), rows, 'Replicas')}\n\n"
        f"99% of the images are answered within {report['p99_ms']:g} ms: {ends}. "
        "Two replicas at least, so that one may go."
    )
    if bound:
        needed = report["assumptions"]["gpu_rate"] * report["cost"]["front_ms"] / 1e3
        text += (
            " A GPU replica is bound by its cores, which receive and decode: this GPU would keep "
            f"{needed:.0f} of them busy."
        )
    return text


def _autoscaling(report: Mapping[str, Any]) -> str:
    rows = [
        [
            _NAMES[kind],
            f"{planned['autoscaler']['use']:.1%}",
            f"{planned['autoscaler']['p99_ms']:.0f}",
            f"{planned['in_time']['use']:.1%}",
            f"{1e3 * planned['in_time']['queue_share']:.0f}m",
        ]
        for kind, planned in report["replicas"].items()
    ]
    header = ("", "load there", "ms of 99% there", f"load for {report['p99_ms']:g} ms", "`averageValue` for it")
    most = max(load["autoscaler"] for planned in report["replicas"].values() for load in planned["loads"])
    return (
        f"{table(header, rows, 'The autoscaler')}\n\n"
        f"[The manifests](../deploy/kubernetes/cpu.yaml) add pods when a pod's queue holds more than "
        f"{report['queue_share']:.0%} of its {report['max_queue']} images, averaged over a minute. By then it is "
        "near its largest load: that is cheap, and keeps clear of refusals, but not of waiting. Who promises "
        f"{report['p99_ms']:g} ms sets `averageValue` as in the last column, or `minReplicas` as in the table above. "
        f"`maxReplicas` is 10 there; the largest load above would take {most:,}."
    )


def _check(check: Mapping[str, Any]) -> str:
    rows = [
        [
            f"{row['use']:.0%}",
            str(row["images"]),
            f"{row['mean_ms']:.1f}",
            f"{row['mean_ms_model']:.1f}",
            f"{row['mean_ratio']:.2f}",
            f"{row['p99_ms']:.1f}",
            f"{row['p99_ms_model']:.1f}",
            f"{row['p99_ratio']:.2f}",
        ]
        for row in check["loads"]
    ]
    header = ("load", "images", "mean ms", "by the model", "ratio", "99% ms", "by the model", "ratio")
    return (
        f"{table(header, rows, 'Beside the real server')}\n\n"
        f"`bentoml serve` on this machine, at most {check['inside'][-1]['rate']:.1f} images/s beside the load's "
        "own work; loads come at random. Medians over rounds, in each of which the server is measured anew; a ratio is "
        "the median of the rounds' ratios, which isn't the ratio of the medians beside it. "
        f"{machine_line(check)}"
    )
