# The image of a node without GPUs: heads, packing, masks, small trainings. From the root of the repository:
#   docker build --file cluster/docker/cpu.Dockerfile --tag REGISTRY/ktse:0.1.0-cpu .
# Another package index: --build-arg PIP_INDEX_URL=URL. One with a password: --secret id=pip,src=pip.conf, since build
# arguments stay readable in the image.
FROM python:3.11.14-slim-bookworm

# g++: the CRF, Triton and DeepSpeed compile. ssh, rsync: Ray's cluster launcher. wget: the probes of older KubeRay.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ openssh-client procps rsync wget \
    && rm -rf /var/lib/apt/lists/*

# HOME is read by Ray's cluster launcher. Ray asks for its token everywhere, unless a person says otherwise.
ENV HOME=/home/ktse \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1 \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0
RUN groupadd --gid 1000 ktse && useradd --uid 1000 --gid 1000 --create-home ktse

WORKDIR /opt/ktse
COPY constraints-cpu.txt ./

# torch comes from one place only, PyTorch's own index; TORCH_INDEX= (empty) takes it from the package index instead.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG PIP_INDEX_URL
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install --no-deps --constraint constraints-cpu.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch

# The dependencies, with nothing of our own code: this layer changes with pyproject.toml and not with a commit. For
# gs:// addresses: --build-arg EXTRAS=train,tune,kernels,crf,remote,onnx,launcher,gs
ARG EXTRAS=train,tune,kernels,crf,remote,onnx,launcher
COPY pyproject.toml README.md LICENSE ./
COPY ktse_dist/data/pack/drawings/LICENSES.md ktse_dist/data/pack/drawings/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install --constraint constraints-cpu.txt ".[$EXTRAS]"

COPY configs configs
COPY kernels kernels
COPY ktse_dist ktse_dist
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    pip install --no-deps --force-reinstall . && rm -rf build ktse_dist kernels ./*.egg-info \
    && find configs -xtype l -delete -o -type d -empty -delete  # links into the package: found by name

# The code cannot be changed by what runs it.
USER 1000:1000
WORKDIR /home/ktse

# A container that is a Ray node is as healthy as its raylet; any other has nothing to ask.
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ! pgrep -x raylet >/dev/null || wget -q -O- http://127.0.0.1:52365/api/local_raylet_healthz | grep -q success

CMD ["ktse", "--help"]
