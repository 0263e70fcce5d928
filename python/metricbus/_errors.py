"""What can go wrong. Every message says what was wrong, with the value, and what would be right."""


class MetricBusError(Exception):
    """Any error of this package that is not a plain TypeError or ValueError of an argument."""


class DeclareError(MetricBusError, ValueError):
    """A metric can't be declared so: a name, a label, a bucket, or a clash with what is declared."""


class LabelError(MetricBusError, ValueError):
    """Labels of another number or name than those declared, or more series than the metric may have."""


class CounterError(MetricBusError, ValueError):
    """A counter can't go up by that: it is negative or no number."""


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


class NatsError(MetricBusError):
    """NATS, or an option for it."""


class FleetError(MetricBusError):
    """A fleet, or a question to it."""
