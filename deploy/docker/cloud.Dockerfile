# A worker, on processors by default. For CUDA: --build-arg TORCH_INDEX=https://pypi.org/simple, whose torch brings CUDA
# along; the machine has the driver and the NVIDIA container toolkit. docs/how-to/deploy.md has the commands.
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS build
ARG TORCH=torch==2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m venv /opt/cutline && /opt/cutline/bin/pip install --no-cache-dir --index-url "${TORCH_INDEX}" "${TORCH}"
WORKDIR /source
COPY . .
RUN /opt/cutline/bin/pip install --no-cache-dir '.[cloud]'

FROM python:${PYTHON}
COPY --from=build /opt/cutline /opt/cutline
ENV PATH=/opt/cutline/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OMP_WAIT_POLICY=passive CUTLINE_CA=/keys/ca.crt \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /work
EXPOSE 50051
STOPSIGNAL SIGTERM
# gRPC's health service. Over TLS with the authority in CUTLINE_CA, in plain text where that is empty.
HEALTHCHECK --interval=10s --timeout=8s --start-period=300s --retries=3 CMD ["sh", "-c", "exec cutline health 127.0.0.1:50051 ${CUTLINE_CA:+--ca \"$CUTLINE_CA\"}"]
ENTRYPOINT ["cutline", "cloud"]
# A container's own loopback is reached by nobody else, so it listens at all of its addresses: by TLS, with tokens.
CMD ["--listen", "0.0.0.0:50051", "--tls-cert", "/keys/server.crt", "--tls-key", "/keys/server.key", "--tokens", "/keys/tokens.toml"]
