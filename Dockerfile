# The main job and the tests, with the locked versions. torch is built for the CPU unless TORCH says otherwise.
#   docker build --target run -t actstats . && docker run --rm -v "$PWD:/work" actstats demo
#   docker build --target test -t actstats-test . && docker run --rm actstats-test
#   docker build --target run --build-arg TORCH=https://pypi.org/simple -t actstats-gpu .   # docker run --gpus all ...
FROM python:3.11-slim AS base
ARG TORCH=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# Triton and --compile need a C++ compiler; OpenMP's library comes with it.
RUN apt-get update && apt-get install --no-install-recommends -y g++ git && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/actstats
# torch apart and first, so that a change of the code does not fetch it again.
COPY constraints.txt .
RUN pip install --index-url "$TORCH" $(grep -E '^(torch|torchvision)==' constraints.txt)

FROM base AS run
COPY . .
RUN pip install -c constraints.txt '.[demo,distort,timm]'
WORKDIR /work
ENTRYPOINT ["actstats"]
CMD ["--help"]

FROM base AS test
COPY . .
RUN pip install -c constraints.txt -e '.[test]'
CMD ["python", "-m", "pytest"]
