"""The command that a report gives: it trains the technique that was chosen, in a shell as it stands."""

import math
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tailstack.errors import UserError
from training.report_data import Series
from training.settings import SHARED_SETTINGS, FitSettings
from training.techniques import completed


def fit_command(series: Series) -> str:
    """Return the command that trains the technique with the settings of its cells."""
    config = series.cells[0].run.config
    return f"python -m training fit --datastore DATASTORE --technique {series.technique}{_flags(config)} --output RUN"


def _flags(config: Mapping[str, Any]) -> str:
    try:
        technique = str(config.get("technique"))
        plain = completed(FitSettings(datastore=Path(), output=Path(), technique=technique)).to_dict()
    except UserError:
        return ""
    keys = [key for key in plain if key in config and key not in SHARED_SETTINGS | {"technique", "seed"}]
    return "".join(f" --{key} {flag_value(config[key])}" for key in keys if config[key] != plain[key])


def flag_value(value: Any) -> str:
    """Return the value of a setting as a shell takes it."""
    if isinstance(value, list):
        return f'"[{", ".join(map(str, value))}]"'
    if isinstance(value, dict):
        text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf)
        return shlex.quote(text.strip())  # names of classes may have anything in them
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def code(text: str) -> str:
    """Return a text as code in Markdown, whose backticks are more than any in it."""
    inside = re.findall("`+", text)
    fence = "`" * (1 + max(map(len, inside), default=0))
    return f"{fence} {text} {fence}" if inside else f"{fence}{text}{fence}"
