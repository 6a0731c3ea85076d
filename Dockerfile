# docker build -t autoscaler:0.1.0 .        runs as user 65532 with a read-only root; /tmp and /var/lib/autoscaler are written
FROM python:3.13-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY autoscaler autoscaler
COPY forecast forecast
COPY serving serving
COPY metrics_adapter metrics_adapter
COPY load_tests load_tests
RUN python -m venv /opt/autoscaler \
 && /opt/autoscaler/bin/pip install --no-cache-dir '.[serve,keda]'

FROM python:3.13-slim
LABEL org.opencontainers.image.title="autoscaler" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/autoscaler /opt/autoscaler
ENV PATH=/opt/autoscaler/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN install -d -o 65532 -g 65532 /var/lib/autoscaler
USER 65532:65532
WORKDIR /var/lib/autoscaler
EXPOSE 6443 8080 9090
ENTRYPOINT ["autoscaler"]
CMD ["serve", "--config", "/etc/autoscaler/config.yaml"]
