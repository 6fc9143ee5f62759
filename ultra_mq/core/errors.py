# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every error that ultra-mq raises on purpose.

``UltraMQError``
 ├── ``ModelError``      weights that cannot be read, are not YOLO, or are quantized already
 ├── ``DataError``       a data YAML, images or labels that cannot be used
 ├── ``RecipeError``     a recipe or ``key=value`` override that does not fit the schema
 ├── ``BudgetError``     a bits budget that no plan can meet
 ├── ``PlanError``       a plan file that is damaged or belongs to another model
 ├── ``ExportError``     an ONNX graph that could not be written or fails its lint
 ├── ``EvaluationError`` a validation whose figures cannot be trusted
 │    └── ``ParityError``  two stages of one model that part from each other
 ├── ``SweepError``      a sweep that cannot be started or resumed
 ├── ``ReportError``     a report that is damaged or does not hold what is asked of it
 ├── ``BackendError``    a runtime that is missing or failed
 └── ``RunFolderError``  a run folder or cache that cannot be written

Every message says what is wrong, where, and what to do next. The command line prints it without a
traceback and exits with code 2.
"""


class UltraMQError(Exception):
    """Root of all deliberate errors of ultra-mq."""


class ModelError(UltraMQError):
    """Weights that cannot be read, are not a YOLO model, or are quantized already."""


class DataError(UltraMQError):
    """A data YAML, its images or its labels that cannot be used."""


class RecipeError(UltraMQError):
    """A recipe or an override that does not fit the schema."""


class BudgetError(UltraMQError):
    """A budget that no plan can meet."""


class PlanError(UltraMQError):
    """A precision plan that is damaged or belongs to another model."""


class ExportError(UltraMQError):
    """An ONNX graph that could not be written or fails its lint."""


class EvaluationError(UltraMQError):
    """A validation whose figures cannot be trusted."""


class ParityError(EvaluationError):
    """Two stages of one model that should agree and do not."""


class SweepError(UltraMQError):
    """A sweep that cannot be started or resumed."""


class ReportError(UltraMQError):
    """A report that is damaged or does not hold what is asked of it."""


class BackendError(UltraMQError):
    """A runtime that is missing or failed."""


class PackageError(UltraMQError):
    """An artefact that cannot be packaged for a target."""


class RunFolderError(UltraMQError):
    """A run folder or cache that cannot be written."""
