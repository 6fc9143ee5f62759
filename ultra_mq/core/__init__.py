# SPDX-License-Identifier: AGPL-3.0-or-later
"""What every room stands on; it knows nothing of models.

In: nothing. Out: errors, formats, whole files, the cache, the terminal, strict schemas.
"""

from ultra_mq.core.cache import Cache, hash_key, versions
from ultra_mq.core.errors import (
    BackendError,
    BudgetError,
    DataError,
    EvaluationError,
    ExportError,
    ModelError,
    PackageError,
    ParityError,
    PlanError,
    RecipeError,
    ReportError,
    RunFolderError,
    SweepError,
    UltraMQError,
)
from ultra_mq.core.files import UNWRITABLE, atomic_folder, atomic_path, csv_text, publish, sha256_of, write_text
from ultra_mq.core.formats import E4M3, FLOAT, FORMATS, FormatName, quantize_config
from ultra_mq.core.kernels import KernelTime
from ultra_mq.core.schema import Strict, load_document, validate
from ultra_mq.core.terminal import (
    announce,
    building,
    console,
    logger,
    progress,
    quiet,
    shown_log,
    silent_streams,
    track,
    warn,
)

__all__ = [
    "E4M3",
    "FLOAT",
    "FORMATS",
    "UNWRITABLE",
    "BackendError",
    "BudgetError",
    "Cache",
    "DataError",
    "EvaluationError",
    "ExportError",
    "FormatName",
    "KernelTime",
    "ModelError",
    "PackageError",
    "ParityError",
    "PlanError",
    "RecipeError",
    "ReportError",
    "RunFolderError",
    "Strict",
    "SweepError",
    "UltraMQError",
    "announce",
    "atomic_folder",
    "atomic_path",
    "building",
    "console",
    "csv_text",
    "hash_key",
    "load_document",
    "logger",
    "progress",
    "publish",
    "quantize_config",
    "quiet",
    "sha256_of",
    "shown_log",
    "silent_streams",
    "track",
    "validate",
    "versions",
    "warn",
    "write_text",
]
