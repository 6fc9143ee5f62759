# SPDX-License-Identifier: AGPL-3.0-or-later
"""Studies over recipes, whose trials survive the death of the driver and of any worker."""
