"""What every section of the run file shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """A part of the run file: frozen, unknown keys refused, no infinities and no NaN.

    A section that is given in part keeps the rest of its default: with a default of `{learning_rate: 1e-6, schedule:
    linear}`, giving the rate alone leaves the schedule linear.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _keep_the_rest_of_defaults(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        kept = {
            name: {**field.default.model_dump(exclude_unset=True), **values[name]}
            for name, field in cls.model_fields.items()
            if isinstance(field.default, Section)
            and field.annotation is type(field.default)
            and isinstance(values.get(name), Mapping)
        }
        return {**values, **kept}
