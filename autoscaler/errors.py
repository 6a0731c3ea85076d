"""The errors that leave this library.

    AutoscalerError
    ├── ConfigError        one sentence: field, value, allowed range
    ├── SourceError
    │   ├── SourceUnavailable
    │   └── MetricMissing  names the series and the engine row
    ├── TargetError
    │   ├── TargetNotFound
    │   └── TargetConflict retried at the next tick
    ├── ForecastError      too little history: reactive policies still speak
    ├── LogError           a log that cannot be read: file, line, reason
    └── ReplayMismatch     first differing line and field, both values

Only the shell (`loop`, `main`) catches them.
"""

from __future__ import annotations


class AutoscalerError(Exception):
    """Base of every error raised on purpose; its text is one sentence for a person."""


class ConfigError(AutoscalerError):
    """A value that a person wrote is wrong.  `field` is the path to it, such as ``pools[0].limits.max_replicas``."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field
        self.message = message

    def under(self, prefix: str) -> ConfigError:
        """The same error seen from the enclosing section `prefix`."""
        if not prefix:
            return self
        joint = "" if not self.field or self.field.startswith("[") else "."
        return ConfigError(f"{prefix}{joint}{self.field}", self.message)


class SourceError(AutoscalerError):
    """Metrics could not be had."""


class SourceUnavailable(SourceError):
    """Nobody answered, or too late."""


class MetricMissing(SourceError):
    """An answer came without a series that the engine's row promises."""


class TargetError(AutoscalerError):
    """The scaled object could not be read or written."""


class TargetNotFound(TargetError):
    """The scaled object does not exist."""


class TargetConflict(TargetError):
    """Somebody else wrote the scaled object in between."""


class ForecastError(AutoscalerError):
    """No forecast can be made from what is there."""


class LogError(AutoscalerError):
    """A step log cannot be read."""


class ReplayMismatch(AutoscalerError):
    """A replayed line differs from the recorded one."""

    def __init__(self, line: int, field: str, recorded: object, replayed: object) -> None:
        super().__init__(f"line {line}: {field}: recorded {recorded!r}, replayed {replayed!r}")
        self.line = line
        self.field = field
        self.recorded = recorded
        self.replayed = replayed
