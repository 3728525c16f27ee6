# syntax=docker/dockerfile:1
# lswap with a llama-server built for it.
#
#   docker build -t lswap .                                  for the processor
#   docker build -t lswap:cuda --build-arg BACKEND=cuda .    for NVIDIA cards (an hour of compiling)
#
# compose.yaml shows how it is run; docs/operating.md says more.

ARG BACKEND=cpu
ARG UBUNTU=24.04
ARG CUDA=12.8.1

# --- where llama-server is compiled, and where it runs ---------------------------------------------

FROM ubuntu:${UBUNTU} AS build-cpu
FROM nvidia/cuda:${CUDA}-devel-ubuntu${UBUNTU} AS build-cuda
FROM ubuntu:${UBUNTU} AS run-cpu
FROM nvidia/cuda:${CUDA}-runtime-ubuntu${UBUNTU} AS run-cuda

# --- llama-server ----------------------------------------------------------------------------------

FROM build-${BACKEND} AS engine
ARG BACKEND
# A release tag of llama.cpp; empty for the one that lswap is tested with.
ARG LLAMA_CPP_REF=
# CUDA architectures like 86;89: fewer compile faster. Empty: the usual ones.
ARG CUDAARCHS=
# python3-venv: without a way to GitHub the script takes the source from PyPI.
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential ca-certificates cmake git libssl-dev ninja-build python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY scripts/build_llama_cpp.sh /tmp/
# The driver's libcuda is not here, only the toolkit's stand-in for it: hence the linker's flag.
RUN CUDAARCHS="$CUDAARCHS" bash /tmp/build_llama_cpp.sh --backend "$BACKEND" --portable \
        --prefix /opt/llama ${LLAMA_CPP_REF:+--ref "$LLAMA_CPP_REF"} \
        -- -DCMAKE_EXE_LINKER_FLAGS=-Wl,--allow-shlib-undefined \
    && rm -rf /root/.cache

# --- lswap -----------------------------------------------------------------------------------------

FROM ubuntu:${UBUNTU} AS package
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY requirements requirements
COPY scripts scripts
COPY configs/demo.yaml configs/demo.yaml
COPY llamaswap_py llamaswap_py
RUN python3 -m venv /opt/lswap \
    && /opt/lswap/bin/pip install --no-cache-dir --require-hashes --requirement requirements/run.txt \
    && /opt/lswap/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /tmp/wheel . \
    && /opt/lswap/bin/pip install --no-deps /tmp/wheel/*.whl

# --- what runs -------------------------------------------------------------------------------------

FROM run-${BACKEND}
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libgomp1 libssl3t64 python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --create-home --home-dir /data lswap \
    && install -d -o lswap -g lswap -m 0700 /run/lswap \
    && install -d -o lswap -g lswap /config /models
COPY --from=engine /opt/llama /opt/llama
COPY --from=package /opt/lswap /opt/lswap
ENV PATH=/opt/lswap/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    LSWAP_LLAMA_SERVER=/opt/llama/bin/llama-server \
    XDG_RUNTIME_DIR=/run/lswap \
    XDG_STATE_HOME=/data/state \
    XDG_CACHE_HOME=/data/cache \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER lswap
VOLUME /data
EXPOSE 8080
# Drains running requests: give it time (docker stop --time, stop_grace_period).
STOPSIGNAL SIGTERM
# The path needs no key, and says 503 before lswap serves and while it drains.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python3", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8080, timeout=4); c.request('GET', '/readyz'); raise SystemExit(c.getresponse().status != 200)"]
# lswap as process 1 reaps its llama-servers and passes signals on itself: no init is needed.
ENTRYPOINT ["lswap"]
CMD ["up", "/config/models.yaml"]
