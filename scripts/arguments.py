# SPDX-License-Identifier: AGPL-3.0-or-later
"""What every script here takes: weights, settings in Ultralytics' style, and the page to write."""

from __future__ import annotations

import argparse
from pathlib import Path


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser of ``WEIGHTS key=value ... --output PAGE``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--output", type=Path, required=True)
    return parser
