"""Plain values: as dictionaries, and as pickle brings them back."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from types import GetSetDescriptorType, MemberDescriptorType
from typing import Any

from ._metricbus import Series

__all__ = ["restored", "to_dict"]

_ATTRIBUTES = (GetSetDescriptorType, MemberDescriptorType)


def restored(kind: Any, parts: tuple[Any, ...]) -> Any:
    """A value of this class, from its parts."""
    return kind._restored(parts)


def to_dict(value: Any) -> dict[str, Any]:
    """Its attributes, as what JSON has."""
    attributes = vars(type(value)).items()
    names = [name for name, kind in attributes if isinstance(kind, _ATTRIBUTES) and not name.startswith("_")]
    return {name: _plain(getattr(value, name)) for name in sorted(names)}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Series):
        return {"name": value.name, "labels": value.labels}
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return value.to_dict() if hasattr(value, "to_dict") else str(value)
