# SPDX-License-Identifier: AGPL-3.0-or-later
# Everything but TensorRT, on CPUs: docker build -f docker/cpu.Dockerfile -t ultra-mq:cpu .
FROM python:3.12-slim

RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 libgomp1 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/ultra-mq
COPY pyproject.toml README.md LICENSE ./
COPY ultra_mq ultra_mq
# The CPU build of torch first, which is a tenth of the CUDA one.
RUN pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-cache-dir ".[openvino]"
WORKDIR /work
ENV YOLO_AUTOINSTALL=false
ENTRYPOINT ["ultra-mq"]
CMD ["doctor"]
