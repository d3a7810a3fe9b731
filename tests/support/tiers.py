"""The three tiers of a test: a remote, and two caches behind proxies, each to be taken away."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.support.machine import Machine
from tests.support.proxy import Proxy


@dataclass
class Tiers:
    """A remote and two caches that can each be taken away."""

    remote: Path
    hot: Proxy
    emergency: Proxy
    hot_url: str
    emergency_url: str
    direct: str

    def set(self, *, hot: bool = True, emergency: bool = True, master: bool = True) -> None:
        self.hot.mode = "pass" if hot else "refuse"
        self.emergency.mode = "pass" if emergency else "refuse"
        away = self.remote.with_name("away.git")
        if master and away.exists():
            away.rename(self.remote)
        elif not master and self.remote.exists():
            self.remote.rename(away)


def forget_failures(machine: Machine) -> None:
    """As if the pause of the breaker were over."""
    (machine.data / "breaker.json").unlink(missing_ok=True)
