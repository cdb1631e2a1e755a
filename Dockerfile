# The image of apiserver-proxy-sidecar. docs/deploy.md tells how to build it, and what it needs to run.
#
# BASE is any Debian from 13 on, or Ubuntu from 25.04 on: Python, ip, both iptables and nft come from its packages. What is
# not needed at run time stays in the first stage; the final one has no shell, no package manager and no pip.
ARG BASE=debian:trixie-slim

FROM ${BASE} AS build
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        iproute2 iptables nftables python3 python3-venv
WORKDIR /build
COPY requirements-metrics.txt requirements-build.txt ./
RUN python3 -m venv tools \
    && python3 -m venv --without-pip /opt/apiserver-proxy-sidecar \
    && tools/bin/pip install --no-cache-dir --require-hashes --requirement requirements-build.txt \
    && tools/bin/pip --python /opt/apiserver-proxy-sidecar install --no-cache-dir --no-compile \
        --require-hashes --requirement requirements-metrics.txt
COPY pyproject.toml README.md CHANGELOG.md LICENSE ./
COPY sidecar sidecar
RUN tools/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir dist . \
    && tools/bin/pip --python /opt/apiserver-proxy-sidecar install --no-cache-dir --no-compile --no-deps --no-index \
        dist/*.whl
COPY scripts/image-root ./
RUN python3 image-root /image

FROM scratch
COPY --from=build /image /
ENV PATH=/opt/apiserver-proxy-sidecar/bin:/usr/sbin:/usr/bin
LABEL org.opencontainers.image.title="apiserver-proxy-sidecar" \
    org.opencontainers.image.description="Holds an IP address and its iptables rules on a Kubernetes node" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="0.2.0"
# UID 0, as Kubernetes grants capabilities to no other user. It needs NET_ADMIN, and for the legacy backend NET_RAW.
USER 0:0
ENTRYPOINT ["apiserver-proxy-sidecar"]
