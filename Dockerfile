# The worker with its weights: docker build --build-arg WORKER_VERSION=$(git rev-parse --short HEAD) -t qwen-image .
# BAKE_MODELS="" leaves the weights out, for the platform's cached models or a network volume.
ARG BASE_IMAGE=python:3.12-slim-bookworm

FROM ${BASE_IMAGE} AS packages
ARG DIFFUSERS=
RUN apt-get update && apt-get install -y --no-install-recommends git && rm -rf /var/lib/apt/lists/*
COPY requirements.txt /tmp/requirements.txt
# DIFFUSERS replaces the pinned release, for example with git+https://github.com/huggingface/diffusers.
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir -r /tmp/requirements.txt \
    && if [ -n "$DIFFUSERS" ]; then /opt/venv/bin/pip install --no-cache-dir "$DIFFUSERS"; fi

FROM ${BASE_IMAGE}
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/tmp/.huggingface \
    TORCH_HOME=/tmp/.torch \
    SERVER_MODE=runpod \
    RUNPOD_DEBUG_LEVEL=INFO
COPY --from=packages /opt/venv /opt/venv
WORKDIR /app
COPY qwen_worker qwen_worker
ARG BAKE_MODELS="Qwen/Qwen-Image Qwen/Qwen-Image-Edit"
RUN python -c "import sys; from qwen_worker import checkpoint, hub; \
    [hub.download(checkpoint.known(model) or hub.look_up(model)) for model in sys.argv[1:]]" $BAKE_MODELS
COPY runpod_handler.py test_input.json ./
ARG WORKER_VERSION=0.1.0
ENV QWEN_WORKER_VERSION=${WORKER_VERSION}
CMD ["python", "runpod_handler.py"]
