"""How values of callers are shown in messages. Pure, and without errors of its own."""

from __future__ import annotations

from typing import Final

#: Longer texts are cut: what is wrong with a value is seen at its beginning.
_MOST_CHARACTERS: Final = 200


def shown(value: object) -> str:
    """*value* as ``repr`` shows it, on one line and cut to 200 characters.

    What ``repr`` cannot show is described: an integer of more digits than Python converts
    (:func:`sys.get_int_max_str_digits`), an object whose ``repr`` fails.
    """
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 -- whatever a stranger's repr raises
        if isinstance(value, int):
            return f"<{'negative ' if value < 0 else ''}integer of {value.bit_length()} bits>"
        return f"<{type(value).__name__}>"
    text = " ".join(text.splitlines())
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}…"


__all__ = ["shown"]
