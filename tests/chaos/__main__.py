"""``python -m tests.chaos``: run a campaign, print its figures, fail when a promise was broken."""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.campaign import Campaign, Size
from tests.chaos.report import figures, table


def main() -> int:
    ask = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    ask.add_argument("--seed", type=int, default=0, help="replay this plan")
    ask.add_argument("--minutes", type=float, default=2.0, help="under faults")
    ask.add_argument("--report", default="", metavar="FILE", help="write the figures as JSON")
    wanted = ask.parse_args()
    seed = wanted.seed or secrets.randbelow(10**6) + 1
    print(f"chaos: seed {seed}; again: make chaos SEED={seed} MINUTES={wanted.minutes:g}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as folder:
        seconds = wanted.minutes * 60
        size = Size(seconds, pause=max(60.0, seconds / 10))
        campaign = Campaign(Path(folder), seed, size)
        campaign.run()
    found = figures(campaign, time.monotonic() - began)
    if wanted.report:
        Path(wanted.report).write_text(json.dumps(found, indent=1, default=str) + "\n")
    print(table(found))
    for violation in found["violations"]:
        print(f"\n{violation['kind']}: {violation['message']}  (seed {seed})")
        for text in violation["history"]:
            print(f"  {text}")
    return 1 if campaign.model.violations else 0


if __name__ == "__main__":
    sys.exit(main())
