# Onestep in a container: no root, no package cache, and no compiler but for a GPU.
#
#   docker build -t onestep:0.1.0 .
#   docker build -t onestep:0.1.0-cuda --build-arg TORCH_INDEX_URL=https://download.pytorch.org/whl/cu130 .

FROM python:3.11-slim-bookworm AS build

# Where the build of torch comes from: the CPU's by default.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
# A folder of wheels that the builder may mount, for builds with no internet. Usually there is none.
ARG PIP_FIND_LINKS=/opt/wheels
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1

RUN python -m venv /opt/onestep
ENV PATH=/opt/onestep/bin:$PATH
WORKDIR /src

# torch alone and first: it is large and seldom changes. A mounted wheel comes before the index.
COPY constraints.txt ./
RUN pip install --no-deps --no-index --constraint constraints.txt torch 2>/dev/null \
    || pip install --no-deps --index-url "$TORCH_INDEX_URL" --constraint constraints.txt torch

# The dependencies change less often than the service: they have a layer of their own.
COPY pyproject.toml ./
RUN python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        > requirements.txt \
    && pip install --constraint constraints.txt --requirement requirements.txt

COPY README.md LICENSE NOTICE ./
COPY service service
RUN pip install --no-deps --constraint constraints.txt . \
    && pip uninstall --yes --quiet pip


FROM python:3.11-slim-bookworm

# /cache holds what makes the next start faster: certifications, and models from a hub. It may be a volume.
RUN groupadd --gid 10001 onestep \
    && useradd --uid 10001 --gid onestep --home-dir /cache --no-create-home --shell /usr/sbin/nologin onestep \
    && install --directory --owner onestep --group onestep /cache

COPY --from=build /opt/onestep /opt/onestep

# Triton, which only builds of torch for a GPU bring, compiles a few lines of C as it starts.
RUN if [ -d /opt/onestep/lib/python3.11/site-packages/triton ]; then \
        apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi

ENV PATH=/opt/onestep/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    HOME=/cache \
    XDG_CACHE_HOME=/cache \
    HF_HOME=/cache/huggingface \
    ONESTEP_HOST=0.0.0.0 \
    ONESTEP_PORT=8000

USER 10001:10001
WORKDIR /cache
EXPOSE 8000

# Healthy means that it can serve: 200 from /readyz. Loading and certifying are the start period.
HEALTHCHECK --interval=5s --timeout=3s --start-period=180s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open('http://127.0.0.1:%s/readyz' % (os.environ.get('ONESTEP_PORT') or 8000), timeout=2)"]

# The exec form: SIGTERM reaches the server itself, which then finishes what it has accepted.
STOPSIGNAL SIGTERM
ENTRYPOINT ["onestep"]
CMD ["serve"]
