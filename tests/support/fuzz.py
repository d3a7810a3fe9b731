"""How hard property tests try: ``make fuzz`` sets ANNORIS_FUZZ to many times as hard."""

from __future__ import annotations

import os

FACTOR = int(os.environ.get("ANNORIS_FUZZ", "1"))


def examples(ordinary: int) -> int:
    """So many examples in an ordinary run."""
    return ordinary * FACTOR
