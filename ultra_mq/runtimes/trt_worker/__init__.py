# SPDX-License-Identifier: AGPL-3.0-or-later
"""The process that talks to TensorRT: builds, inspects, runs and times engines for ``backends/worker.py``.

It has an interpreter of its own, which needs TensorRT (or TensorRT-RTX), numpy and, to run engines, ``cuda.bindings``;
nothing of ultra-mq or torch. Python 3.8 or later. A crash of the builder or of CUDA ends this process and not the run
that asked.

Requests are JSON lines on standard input, answers JSON lines on standard output, the log is standard error. Tensors
travel through a file that both sides map into memory.
"""
