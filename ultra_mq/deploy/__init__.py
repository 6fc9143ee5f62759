# SPDX-License-Identifier: AGPL-3.0-or-later
"""A finished artefact in the thing that people deploy with.

In: a run folder, an ONNX file or an engine. Out: a folder that runs it.
"""

from ultra_mq.deploy.deployable import read_deployable
from ultra_mq.deploy.package import PackageTarget, package

__all__ = ["PackageTarget", "package", "read_deployable"]
