# SPDX-License-Identifier: AGPL-3.0-or-later
"""``python -m ultra_mq`` is ``ultra-mq``."""

from ultra_mq.cli import main

main(prog_name="ultra-mq")
