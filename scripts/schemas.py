# SPDX-License-Identifier: AGPL-3.0-or-later
"""Writes ultra_mq/schemas anew, after a change of recipe or plan.

python scripts/schemas.py
"""

from ultra_mq.session.json_schema import KINDS, make_schema, schema_file

if __name__ == "__main__":
    for kind in KINDS:
        schema_file(kind).parent.mkdir(exist_ok=True)
        schema_file(kind).write_text(make_schema(kind))
        print(schema_file(kind))
