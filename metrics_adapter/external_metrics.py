"""``external.metrics.k8s.io/v1beta1``: what the Kubernetes aggregation layer and an HPA ask of a metrics adapter.

    application = external_metrics(metrics_of(board), group="external.metrics.k8s.io")

Every answer comes from memory.  An answer to a metric has exactly one item, since an HPA adds items up; everything else is
a ``Status`` with a sentence: 400 selector, 404 unknown metric or pool, 503 stale, not observed or not measured.  An HPA
holds on each of them.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from metrics_adapter.board import Stale
from metrics_adapter.external_metrics_openapi import openapi_routes
from metrics_adapter.external_metrics_selector import SelectorError, parse
from metrics_adapter.external_metrics_values import Ambiguous, Item, Metric, NoSuchItem, Unmeasured, pick, quantity

GROUP, VERSION = "external.metrics.k8s.io", "v1beta1"
REASONS = {
    400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 405: "MethodNotAllowed",
    500: "InternalError", 503: "ServiceUnavailable",
}  # fmt: skip
HEALTH_PATHS = ("/livez", "/readyz", "/healthz")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Refusal(Exception):
    """An answer that is an error: its HTTP status and one sentence."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


def status(code: int, message: str, **headers: str) -> web.Response:
    """An error as the Kubernetes API spells it."""
    body = {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": REASONS.get(code, ""), "code": code,
    }  # fmt: skip
    return web.json_response(body, status=code, headers=headers)


@web.middleware
async def errors_as_status(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever goes wrong is told as a ``Status``."""
    try:
        return await handler(request)
    except Refusal as refusal:
        return status(refusal.code, refusal.message)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return status(error.status, f"{request.method} {request.path}: {error.reason}")


def external_metrics(
    metrics: Mapping[str, Metric], *, group: str = GROUP, middlewares: Sequence[Any] = (), outer: Sequence[Any] = ()
) -> web.Application:
    """The API of `metrics` under `group`; `middlewares` come between it and the caller, the outermost first.

    Health paths answer to everybody who gets through these; who may see metrics is theirs to say.  `outer` ones see every
    answer, errors too.
    """
    application = web.Application(middlewares=[*outer, errors_as_status, *middlewares], client_max_size=65_536)
    application.add_routes([*api_routes(metrics, group), *openapi_routes(group, VERSION)])
    for path in HEALTH_PATHS:
        application.router.add_get(path, _healthy)
    return application


def api_routes(metrics: Mapping[str, Metric], group: str) -> list[web.RouteDef]:
    """Discovery and values."""
    root = f"/apis/{group}"
    group_version = f"{group}/{VERSION}"
    discovery = _group(group)
    groups = {"kind": "APIGroupList", "apiVersion": "v1", "groups": [discovery]}
    resources = json.dumps(_resources(metrics, group_version)).encode()

    async def values(request: web.Request) -> web.Response:
        return answer(
            metrics, request.match_info["metric"], request.match_info["namespace"], _selector(request), group_version
        )

    return [
        web.get("/apis", _constant(json.dumps(groups).encode())),
        web.get(root, _constant(json.dumps({"kind": "APIGroup", "apiVersion": "v1", **discovery}).encode())),
        web.get(f"{root}/{VERSION}", _constant(resources)),
        web.get(f"{root}/{VERSION}/namespaces/{{namespace}}/{{metric}}", values),
    ]


def answer(metrics: Mapping[str, Metric], name: str, namespace: str, selector: str, group_version: str) -> web.Response:
    """The value list of one metric.  Raises Refusal."""
    metric = metrics.get(name)
    if metric is None:
        raise Refusal(404, f"{name}: no such metric; GET /apis/{group_version} lists those there are")
    try:
        item = pick(name, metric(namespace), parse(selector))
    except (SelectorError, Ambiguous) as error:
        raise Refusal(400, str(error)) from None
    except NoSuchItem as error:
        raise Refusal(404, str(error)) from None
    except (Stale, Unmeasured) as error:
        raise Refusal(503, str(error)) from None
    body = {
        "kind": "ExternalMetricValueList", "apiVersion": group_version, "metadata": {},
        "items": [_value(name, item)],
    }  # fmt: skip
    return web.json_response(body)


def _value(name: str, item: Item) -> dict[str, Any]:
    at = datetime.fromtimestamp(item.at_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    value: dict[str, Any] = {"metricName": name, "metricLabels": dict(item.labels), "timestamp": at}
    if item.window_seconds is not None:
        value["window"] = item.window_seconds
    return {**value, "value": quantity(item.milli)}


def _selector(request: web.Request) -> str:
    given = request.query.getall("labelSelector", [])
    if len(given) > 1:
        raise Refusal(400, f"labelSelector: given {len(given)} times, must be given once")
    return given[0] if given else ""


def _group(group: str) -> dict[str, Any]:
    version = {"groupVersion": f"{group}/{VERSION}", "version": VERSION}
    return {"name": group, "versions": [version], "preferredVersion": version}


def _resources(metrics: Mapping[str, Metric], group_version: str) -> dict[str, Any]:
    rows = [
        {"name": name, "singularName": "", "namespaced": True, "kind": "ExternalMetricValueList", "verbs": ["get"]}
        for name in sorted(metrics)
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": rows}


def _constant(body: bytes) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def give(_: web.Request) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    return give


async def _healthy(_: web.Request) -> web.Response:
    return web.Response(text="ok")
