# An agent: Python and ONNX Runtime, no torch. For amd64 and arm64; docs/how-to/deploy.md has the commands.
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS build
WORKDIR /source
COPY . .
RUN python -m venv /opt/cutline && /opt/cutline/bin/pip install --no-cache-dir .

FROM python:${PYTHON}
COPY --from=build /opt/cutline /opt/cutline
ENV PATH=/opt/cutline/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OMP_WAIT_POLICY=passive
USER 10001:10001
WORKDIR /work
EXPOSE 8080
STOPSIGNAL SIGTERM
# The only path without a token. A certificate is not checked here: this is the process asking itself.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-c", "import os, ssl, urllib.request as r; r.urlopen(os.environ.get('CUTLINE_URL', 'https://127.0.0.1:8080') + '/healthz', timeout=4, context=ssl._create_unverified_context())"]
ENTRYPOINT ["cutline", "edge"]
# A container's own loopback is reached by nobody else, so it listens at all of its addresses: by TLS, with tokens.
CMD ["--listen", "0.0.0.0:8080", "--tls-cert", "/keys/server.crt", "--tls-key", "/keys/server.key", "--api-tokens", "/keys/tokens.toml"]
