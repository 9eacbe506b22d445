# The images of Vistazo: `docker build --target server .`, or through docker-compose.yml.
#
#   server       `vistazo serve` on the CPU, and the client's commands
#   server-gpu   the same on CUDA; onnxruntime-gpu brings CUDA and cuDNN as wheels, the driver is the host's
#   export       `vistazo export`, `vistazo verify`: torch, several GB where pip finds its CUDA build
#
# The stages of an image come after all that it needs and before the next image's: a builder without BuildKit
# runs every stage up to its target.
#
# Versions are those of deploy/requirements/ (`make lock`). Wheels in wheelhouse/ are preferred to the
# registry's: with the CPU build of torch in it, no CUDA is downloaded:
#   pip download --no-deps --dest wheelhouse torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# ── What all stages that install start from ─────────────────────────────────────────────────────────────
FROM ${PYTHON_IMAGE} AS installer
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_QUIET=1 \
    PIP_FIND_LINKS=/wheelhouse PYTHONDONTWRITEBYTECODE=1
# The environment has no pip of its own: what runs can install nothing.
RUN python3 -m venv --without-pip /opt/vistazo && mkdir /wheelhouse
# Every wheel is a binary: no compiler is needed here, and none is in any image.
ENV PIP_PYTHON=/opt/vistazo/bin/python PIP_ONLY_BINARY=:all:

# ── The package itself, alone in an environment that the images lay over their dependencies' ────────────
FROM installer AS package
WORKDIR /src
COPY pyproject.toml README.md ./
COPY proto proto
COPY preprocessing preprocessing
COPY server server
COPY client client
COPY export export
COPY bench/vistazo_bench bench/vistazo_bench
COPY evaluate evaluate
RUN PIP_PYTHON='' PIP_ONLY_BINARY='' pip wheel --no-deps --wheel-dir /package . \
    && pip install --no-deps /package/*.whl \
    && /opt/vistazo/bin/python -m compileall -q /opt/vistazo

# ── What all images are: a user without rights, who owns nothing but the volumes ─────────────────────
FROM ${PYTHON_IMAGE} AS runtime
# /tmp is the only place that is written to besides the volumes; mount a tmpfs on it and the root can be
# read-only.
ENV PATH=/opt/vistazo/bin:${PATH} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
RUN groupadd --gid 10001 vistazo \
    && useradd --uid 10001 --gid vistazo --no-create-home --home-dir /tmp --shell /usr/sbin/nologin vistazo \
    && install -d -o vistazo -g vistazo /models /weights
# `models`, the default of every command, is the volume.
WORKDIR /
ENTRYPOINT ["vistazo"]

FROM runtime AS serving
ENV VISTAZO_LISTEN=0.0.0.0:8001 VISTAZO_METRICS_LISTEN=0.0.0.0:8002 VISTAZO_SERVER=127.0.0.1:8001 \
    VISTAZO_LOG_FORMAT=json GRPC_VERBOSITY=ERROR
EXPOSE 8001 8002
USER 10001:10001
# Not before the models are warm; until then the container is "starting".
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 CMD ["vistazo", "health"]
CMD ["serve"]

# ── server ──────────────────────────────────────────────────────────────────────────────────────────────
# The dependencies first: they change less often than the package, and are the larger part by far.
FROM installer AS server-dependencies
COPY deploy/requirements/server.txt wheelhouse* /wheelhouse/
RUN pip install --requirement /wheelhouse/server.txt && /opt/vistazo/bin/python -m compileall -q /opt/vistazo

FROM serving AS server
COPY --from=server-dependencies /opt/vistazo /opt/vistazo
COPY --from=package /opt/vistazo /opt/vistazo

# ── export ──────────────────────────────────────────────────────────────────────────────────────────────
FROM installer AS export-dependencies
COPY deploy/requirements/export.txt wheelhouse* /wheelhouse/
RUN pip install --requirement /wheelhouse/export.txt

FROM runtime AS export
COPY --from=export-dependencies /opt/vistazo /opt/vistazo
COPY --from=package /opt/vistazo /opt/vistazo
# Published weights are kept here between runs.
ENV TORCH_HOME=/weights
USER 10001:10001
CMD ["export", "lenet"]

# ── server-gpu ──────────────────────────────────────────────────────────────────────────────────────────
FROM installer AS server-gpu-dependencies
COPY deploy/requirements/server-gpu.txt wheelhouse* /wheelhouse/
RUN pip install --requirement /wheelhouse/server-gpu.txt && /opt/vistazo/bin/python -m compileall -q /opt/vistazo

FROM serving AS server-gpu
COPY --from=server-gpu-dependencies /opt/vistazo /opt/vistazo
COPY --from=package /opt/vistazo /opt/vistazo
ENV VISTAZO_DEVICE=cuda NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

# What `docker build .` makes.
FROM server
