"""Connecting to a Ray cluster: one way for what trains and for what scores."""

import logging
import os

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray

from tailstack.errors import UserError


def connect(address: str | None) -> None:
    """Connect to a Ray cluster; `auto` takes the one that runs on this machine, and starts one if none does.

    Raises:
        UserError: there is none at that address.
    """
    try:
        ray.init(address=None if address == "auto" else address, include_dashboard=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError) as error:
        raise UserError(f"there is no Ray cluster at {address}: {error}") from error
