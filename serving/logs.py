"""Logs: one JSON object a line, on the standard output."""

import ctypes
import json
import logging
import logging.config
import re
from datetime import UTC, datetime
from pathlib import Path

_LOADED = Path("/proc/self/maps")
_ENCODER = json.JSONEncoder(default=str)
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonFormatter(logging.Formatter):
    """A record as JSON: time, level, logger, message, and whatever `extra` it was logged with."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return _ENCODER.encode(entry)


def silence_libtiff() -> None:
    """Keep libtiff from writing what is wrong with a client's file into the log, where it is no JSON line.

    Pillow, which raises an error of its own then, leaves libtiff's handler as it is.
    """
    # Pillow's packages bring a library of their own, under a name with a digest.
    loaded = re.search(r"/\S*/libtiff\S*", _LOADED.read_text()) if _LOADED.exists() else None
    if loaded:
        ctypes.CDLL(loaded[0]).TIFFSetErrorHandler(None)


def configure() -> None:
    """Send every logger of this process through the formatter, BentoML's and uvicorn's too, and Python's warnings."""
    logging.captureWarnings(True)
    handler = {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "json"}
    own = {"handlers": ["stdout"], "level": "INFO", "propagate": False}
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": {"()": JsonFormatter}},
            "handlers": {"stdout": handler},
            "loggers": {
                "tailstack": own,
                "bentoml": own,
                # These warn of each malformed request, which is the client's affair; the answer and /metrics tell.
                "uvicorn.error": {**own, "level": "ERROR"},
                "PIL": {**own, "level": "CRITICAL"},
            },
            "root": {"handlers": ["stdout"], "level": "WARNING"},
        }
    )
