"""Logs: one JSON object a line, on the standard output."""

import json
import logging
import logging.config
from datetime import UTC, datetime

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
        return json.dumps(entry, default=str, ensure_ascii=False)


def configure() -> None:
    """Send every logger of this process through the formatter, BentoML's and uvicorn's too."""
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
                "python_multipart": {**own, "level": "ERROR"},
            },
            "root": {"handlers": ["stdout"], "level": "WARNING"},
        }
    )
