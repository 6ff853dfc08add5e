# The worker without weights, for cached models or a network volume: docker build -t qwen-image .
# With those of both 20B models, 105 GB: --build-arg BAKE=yes. docs/deploying.md has sizes and variants.
#
# The stages are in the order in which they change least: weights before packages before code, so that a change of code
# pushes and pulls megabytes. BASE_IMAGE: any Debian or Ubuntu with Python 3.11 or later.
ARG BASE_IMAGE=python:3.12.12-slim-bookworm@sha256:593bd06efe90efa80dc4eee3948be7c0fde4134606dd40d8dd8dbcade98e669c
# [weights: what stands between such brackets is left out of .runpod/Dockerfile, which `make hub-files` writes
# yes: the weights of BAKE_MODELS are laid into the image.
ARG BAKE=no
# Hub ids, each perhaps with @revision; a gated one needs --secret id=hf_token,src=FILE.
ARG BAKE_MODELS="Qwen/Qwen-Image Qwen/Qwen-Image-Edit"
# A download that fails: fail the build, or leave-out the model.
ARG BAKE_FAILURE=fail
# A mirror of the hub.
ARG HF_ENDPOINT=
# weights]

FROM ${BASE_IMAGE} AS packages
# For git URLs in DIFFUSERS. Unpinned: Debian serves no old versions, and none of it reaches the image.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates git && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
# The CUDA build of torch, for the most hosts: docs/deploying.md weighs the builds. The one for 12.6 has no kernels for
# Blackwell cards (RTX 5090, RTX PRO 6000, B200): those need .../whl/cu130 and a driver of at least 580. The CUDA floor
# of endpoints, .runpod/hub.json and `--gpu auto` is read from this line.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cu126
# In place of the pinned releases, for an index that lacks them: "torch==2.11.0 torchvision==0.26.0" from .../whl/cu128.
ARG TORCH=
# What QWEN_MARK=c2pa signs with and what some jobs need for their pictures are in every image: 53 and 233 MB beside 6 GB.
COPY requirements.txt requirements-c2pa.txt requirements-pictures.txt /tmp/
# From that index alone, so that the pin cannot be met by another build. TORCH is a list.
# hadolint ignore=SC2086
RUN { if [ -n "${TORCH}" ]; then printf '%s\n' ${TORCH}; else grep -E '^torch(vision)?==' /tmp/requirements.txt; fi; } \
        > /tmp/torch.txt \
    && grep -vE '^torch(vision)?==' /tmp/requirements.txt > /tmp/others.txt \
    && /opt/venv/bin/pip install --no-cache-dir --index-url "${TORCH_INDEX}" -r /tmp/torch.txt \
    && /opt/venv/bin/pip install --no-cache-dir --constraint /tmp/torch.txt -r /tmp/others.txt -r /tmp/requirements-c2pa.txt -r /tmp/requirements-pictures.txt
# In place of the pinned release, for example git+https://github.com/huggingface/diffusers@COMMIT.
ARG DIFFUSERS=
RUN if [ -n "${DIFFUSERS}" ]; then /opt/venv/bin/pip install --no-cache-dir "${DIFFUSERS}"; fi

# [weights: only this line of the requirements, so that a change of another one does not fetch them anew.
FROM ${BASE_IMAGE} AS hub-pin
COPY requirements.txt /tmp/requirements.txt
RUN grep '^huggingface_hub==' /tmp/requirements.txt > /tmp/hub.txt

# What goes where: the models' commits, each distinct file once, in layers of at most 8 GB.
FROM ${BASE_IMAGE} AS bake
COPY --from=hub-pin /tmp/hub.txt /tmp/hub.txt
RUN python3 -m venv /bake/venv && /bake/venv/bin/pip install --no-cache-dir -r /tmp/hub.txt
COPY qwen_bake /bake/qwen_bake
# Without the package's own file, which changes with each release.
COPY qwen_worker/errors.py /bake/qwen_worker/
COPY qwen_worker/network/hub.py /bake/qwen_worker/network/
RUN ln -s qwen_bake/step.sh /bake/step
ARG BAKE
ARG BAKE_MODELS
ARG BAKE_FAILURE
ARG HF_ENDPOINT
# How many steps below fetch a layer: 22 hold two 20B models that share nothing.
ARG LAYERS=24
# BAKE_MODELS is a list.
# hadolint ignore=SC2086
RUN --mount=type=secret,id=hf_token \
    if [ "${BAKE}" != yes ]; then BAKE_MODELS=; fi; \
    /bake/step plan --layers "${LAYERS}" --failure "${BAKE_FAILURE}" ${BAKE_MODELS}
# weights]

FROM ${BASE_IMAGE} AS worker
# The cache folders are below /tmp, where the worker's user may write. The platform's own patience with a start is 420 s,
# too short for a first load of 58 GB.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/tmp/.huggingface \
    TORCH_HOME=/tmp/.torch \
    SERVER_MODE=runpod \
    RUNPOD_DEBUG_LEVEL=INFO \
    RUNPOD_INIT_TIMEOUT=800 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
# For Triton: torch compiles the transformer's block for the card, and it a launcher in C. Unpinned: Debian serves no
# old versions.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 worker

# [weights: each step is a layer, fetched in place, so that the build needs the disk once, and one that failed goes on with
# its layer; what had come of that one is in the cache mount. The arguments are for builders that would take a layer from
# their cache without a look at what is mounted.
ARG BAKE
ARG BAKE_MODELS
ARG BAKE_FAILURE
ARG HF_ENDPOINT
RUN --mount=type=bind,from=bake,source=/bake,target=/bake --mount=type=secret,id=hf_token --mount=type=cache,target=/partial /bake/step fetch 0
RUN --mount=type=bind,from=bake,source=/bake,target=/bake --mount=type=secret,id=hf_token --mount=type=cache,target=/partial /bake/step fetch 1
RUN --mount=type=bind,from=bake,source=/bake,target=/bake --mount=type=secret,id=hf_token --mount=type=cache,target=/partial /bake/step fetch 2
RUN --mount=type=bind,from=bake,source=/bake,target=/bake --mount=type=secret,id=hf_token --mount=type=cache,target=/partial /bake/step fetch 3
RUN --mount=type=bind,from=bake,source=/bake,target=/bake --mount=type=secret,id=hf_token --mount=type=cache,target=/partial /bake/step fetch 4
RUN --mount=type=bind,from=bake,source=/bake,target=/bake --mount=type=secret,id=hf_token --mount=type=cache,target=/partial /bake/step fetch 5
RUN --mount=type=bind,from=bake,source=/bake,target=/bake --mount=type=secret,id=hf_token --mount=type=cache,target=/partial /bake/step fetch 6
RUN --mount=type=bind,from=bake,source=/bake,target=/bake --mount=type=secret,id=hf_token --mount=type=cache,target=/partial /bake/step fetch 7
RUN --mount=type=bind,from=bake,source=/bake,target=/bake --mount=type=secret,id=hf_token --mount=type=cache,target=/partial /bake/step fetch 8
RUN --mount=type=bind,from=bake,source=/bake,target=/bake --mount=type=secret,id=hf_token --mount=type=cache,target=/partial /bake/step fetch 9
RUN --mount=type=bind,from=bake,source=/bake,target=/bake --mount=type=secret,id=hf_token --mount=type=cache,target=/partial /bake/step fetch 10
RUN --mount=type=bind,from=bake,source=/bake,target=/bake --mount=type=secret,id=hf_token --mount=type=cache,target=/partial /bake/step fetch 11
RUN --mount=type=bind,from=bake,source=/bake,target=/bake --mount=type=secret,id=hf_token --mount=type=cache,target=/partial /bake/step fetch 12
RUN --mount=type=bind,from=bake,source=/bake,target=/bake --mount=type=secret,id=hf_token --mount=type=cache,target=/partial /bake/step fetch 13
RUN --mount=type=bind,from=bake,source=/bake,target=/bake --mount=type=secret,id=hf_token --mount=type=cache,target=/partial /bake/step fetch 14
RUN --mount=type=bind,from=bake,source=/bake,target=/bake --mount=type=secret,id=hf_token --mount=type=cache,target=/partial /bake/step fetch 15
RUN --mount=type=bind,from=bake,source=/bake,target=/bake --mount=type=secret,id=hf_token --mount=type=cache,target=/partial /bake/step fetch 16
RUN --mount=type=bind,from=bake,source=/bake,target=/bake --mount=type=secret,id=hf_token --mount=type=cache,target=/partial /bake/step fetch 17
RUN --mount=type=bind,from=bake,source=/bake,target=/bake --mount=type=secret,id=hf_token --mount=type=cache,target=/partial /bake/step fetch 18
RUN --mount=type=bind,from=bake,source=/bake,target=/bake --mount=type=secret,id=hf_token --mount=type=cache,target=/partial /bake/step fetch 19
RUN --mount=type=bind,from=bake,source=/bake,target=/bake --mount=type=secret,id=hf_token --mount=type=cache,target=/partial /bake/step fetch 20
RUN --mount=type=bind,from=bake,source=/bake,target=/bake --mount=type=secret,id=hf_token --mount=type=cache,target=/partial /bake/step fetch 21
RUN --mount=type=bind,from=bake,source=/bake,target=/bake --mount=type=secret,id=hf_token --mount=type=cache,target=/partial /bake/step fetch 22
RUN --mount=type=bind,from=bake,source=/bake,target=/bake --mount=type=secret,id=hf_token --mount=type=cache,target=/partial /bake/step fetch 23
RUN --mount=type=bind,from=bake,source=/bake,target=/bake /bake/step link
# weights]

COPY --from=packages /opt/venv /opt/venv
WORKDIR /app
# 24 MB beside 6 GB: with it a new endpoint, and the Hub's tests, are proved on the card before 58 GB are loaded.
COPY models/tiny-qwen-image models/tiny-qwen-image
COPY runpod_handler.py test_input.json ./
COPY qwen_worker qwen_worker
# Byte code now: the worker's user may not write it. pip has compiled the packages.
RUN python -m compileall -q .
ARG WORKER_VERSION=0.1.0
ENV QWEN_WORKER_VERSION=${WORKER_VERSION}
# The worker writes below /tmp alone and opens no port; weights it only reads. RunPod mounts volumes and cached models
# as root's: where their files are not readable by all, or HF_HOME shall be on the volume, --build-arg RUN_AS=root.
ARG RUN_AS=worker
USER ${RUN_AS}
# The image as it is draws the job of test_input.json, falling back forbidden, and leaves nothing behind.
RUN mkdir -p "${HF_HOME}" "${TORCH_HOME}" \
    && export QWEN_FALLBACK=forbid QWEN_IMAGE_MODEL=models/tiny-qwen-image/generate \
    && { python runpod_handler.py > /tmp/job.log 2>&1 || { tail -c 4000 /tmp/job.log; exit 1; }; } \
    && rm -r /tmp/* "${HF_HOME}" "${TORCH_HOME}"
CMD ["python", "runpod_handler.py"]
