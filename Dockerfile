# compact-distill in a container.
#
#   docker build -t compact --build-arg PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu" .    CPU
#   docker build -t compact --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 \
#       --build-arg TORCH=torch .                                                      CUDA: torch as the registry has it
#   docker run --rm -v "$PWD":/work compact demo
#
# No image was built where this was written (no Docker daemon there); tests/test_dockerfile.py runs its steps in a folder
# (apt-get's and useradd's ran once by hand in a bare Debian 12 root), and continuous integration builds the CPU image and asks it for its version.
#
# BASE must bring Python 3.11 or newer, or apt-get to install it.
ARG BASE=python:3.12-slim
FROM ${BASE}

# What pip is asked for besides the pinned packages; a CUDA image overrides the CPU build's pin.
ARG TORCH="torch -c constraints.txt"
ARG PIP_FLAGS=""

RUN command -v python3 >/dev/null && python3 -m venv --help >/dev/null 2>&1 && python3 -c 'import ensurepip' 2>/dev/null \
    || (apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*)

WORKDIR /opt/compact
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
RUN python3 -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir ${PIP_FLAGS} setuptools ${TORCH} \
    && /opt/venv/bin/pip install --no-cache-dir ${PIP_FLAGS} .

# Nobody needs root to train. Mount your data and runs here.
RUN useradd --create-home --uid 10001 compact && mkdir -p /work && chown compact /work
USER compact
WORKDIR /work
ENTRYPOINT ["/opt/venv/bin/compact"]
CMD ["--help"]
