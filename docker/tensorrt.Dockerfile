# SPDX-License-Identifier: AGPL-3.0-or-later
# On NVIDIA's image of TensorRT, whose bindings belong to the Python of the image:
# docker build -f docker/tensorrt.Dockerfile -t ultra-mq:tensorrt .
# docker run --gpus all -v "$PWD:/work" ultra-mq:tensorrt autoquant --max-drop 0.5 --cost latency yolo11n.pt data=coco128.yaml
ARG TENSORRT=25.06-py3
FROM nvcr.io/nvidia/tensorrt:${TENSORRT}

RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/ultra-mq
COPY pyproject.toml README.md LICENSE ./
COPY ultra_mq ultra_mq
# An environment of our own: torch brings CUDA libraries that are not those of the image.
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir . \
    && /usr/bin/python3 -m pip install --no-cache-dir --break-system-packages cuda-python numpy
ENV PATH=/opt/venv/bin:$PATH ULTRA_MQ_TRT_PYTHON=/usr/bin/python3 YOLO_AUTOINSTALL=false
WORKDIR /work
ENTRYPOINT ["ultra-mq"]
CMD ["doctor"]
