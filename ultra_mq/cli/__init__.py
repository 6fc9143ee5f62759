# SPDX-License-Identifier: AGPL-3.0-or-later
"""The command line: parse, call a job, print.

In: arguments. Out: text, JSON, an exit code.
"""

from ultra_mq.cli.run_commands import main

__all__ = ["main"]
