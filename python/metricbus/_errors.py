"""What can go wrong. Every message says what was wrong, with the value, and what would be right."""


class MetricBusError(Exception):
    """Any error of this package that is not a plain TypeError or ValueError of an argument."""


class DeclareError(MetricBusError, ValueError):
    """A metric can't be declared so: a name, a label, a bucket, or a clash with what is declared."""


class LabelError(MetricBusError, ValueError):
    """Labels of another number or name than those declared, or more series than the metric may have."""


class CounterError(MetricBusError, ValueError):
    """A counter can't go up by that: it is negative or no number."""


class ExemplarError(MetricBusError, ValueError):
    """An exemplar can't be so: more than 128 characters, or a label's name. What it stood for was counted all the same."""


class SelectorError(MetricBusError, ValueError):
    """A selector that can't be read, or matches nothing by its very form."""


class SubscribeError(MetricBusError, ValueError):
    """A subscription that can't be: a wrong bound, a wrong selector, a closed bus."""


class RuleError(MetricBusError, ValueError):
    """A rule that can't be added: what is wrong with it."""


class RuleStateError(MetricBusError):
    """The state of rules can't be kept: its file can't be read or written, or rules were added before it was read."""


class ClosedError(MetricBusError, RuntimeError):
    """It was closed already."""


class ForkedError(MetricBusError, RuntimeError):
    """It belongs to the process from which this one was forked."""


class ServeError(MetricBusError, OSError):
    """The address can't be served."""


class PushError(MetricBusError, OSError):
    """Nothing was pushed: the gateway can't be reached, it refused it, or an option is wrong."""


class NatsError(MetricBusError):
    """NATS, or an option for it."""


class FleetError(MetricBusError):
    """A fleet, or a question to it."""


class BackendError(MetricBusError):
    """What went wrong in, or on the way to, a backend."""

    #: `"unknown"` (there is no such backend), `"setting"` (a variable or an option has a wrong value), `"setup"` (it can't be
    #: used), `"refused"` (it refused a metric), `"deadline"` (not everything was there when the time was over), or `"other"`.
    kind: str
    #: The backend's name, where it is about one.
    backend: str | None
    #: What is wrong, without the rest of the message.
    why: str | None

    def __init__(self, message: str, *, kind: str = "other", backend: str | None = None, why: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.backend = backend
        self.why = why
