"""The OpenAPI documents of the external metrics API: small, for what merges the documents of a cluster's API servers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

ITEM = {
    "type": "object",
    "required": ["metricName", "metricLabels", "timestamp", "value"],
    "properties": {
        "metricName": {"type": "string"},
        "metricLabels": {"type": "object", "additionalProperties": {"type": "string"}},
        "timestamp": {"type": "string", "format": "date-time"},
        "window": {"type": "integer", "format": "int64"},
        "value": {"type": "string", "description": "A Kubernetes quantity: whole, or in thousandths such as 1500m."},
    },
}


def openapi_routes(group: str, version: str) -> list[web.RouteDef]:
    """``/openapi/v2`` and ``/openapi/v3``, whose index names the group's own document; both with an ETag."""
    v2 = _encoded(_document(group, version, two=True))
    v3 = _encoded(_document(group, version, two=False))
    path = f"apis/{group}/{version}"
    index = {"paths": {path: {"serverRelativeURL": f"/openapi/v3/{path}?hash={_hash(v3)}"}}}
    return [
        web.get("/openapi/v2", _tagged(v2)),
        web.get("/openapi/v3", _tagged(_encoded(index))),
        web.get(f"/openapi/v3/{path}", _tagged(v3)),
    ]


def _document(group: str, version: str, *, two: bool) -> dict[str, Any]:
    names = [
        f"{'.'.join(reversed(group.split('.')))}.{version}.{kind}"
        for kind in ("ExternalMetricValue", "ExternalMetricValueList")
    ]
    prefix = "#/definitions/" if two else "#/components/schemas/"
    schemas = {
        names[0]: ITEM,
        names[1]: {
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": {"type": "string"},
                "kind": {"type": "string"},
                "metadata": {"type": "object"},
                "items": {"type": "array", "items": {"$ref": prefix + names[0]}},
            },
        },
    }  # fmt: skip
    path = f"/apis/{group}/{version}/namespaces/{{namespace}}/{{metric}}"
    paths = {path: {"get": _operation(group, version, prefix + names[1], two=two)}}
    info = {"title": "External metrics of the autoscaler", "version": version}
    if two:
        return {"swagger": "2.0", "info": info, "paths": paths, "definitions": schemas}
    return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": schemas}}


def _operation(group: str, version: str, ref: str, *, two: bool) -> dict[str, Any]:
    asked = [("namespace", "path"), ("metric", "path"), ("labelSelector", "query")]
    parameters = [
        {
            "name": name,
            "in": where,
            "required": where == "path",
            **({"type": "string"} if two else {"schema": {"type": "string"}}),
        }
        for name, where in asked
    ]
    schema = {"$ref": ref}
    answer: dict[str, Any] = {"description": "One item."}
    answer |= {"schema": schema} if two else {"content": {"application/json": {"schema": schema}}}
    kind = {"group": group, "version": version, "kind": "ExternalMetricValueList"}
    return {
        "description": "The value of an external metric.",
        "operationId": "getExternalMetric",
        "parameters": parameters,
        "responses": {"200": answer},
        "x-kubernetes-action": "get",
        "x-kubernetes-group-version-kind": kind,
        **({"produces": ["application/json"]} if two else {}),
    }


def _encoded(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


def _hash(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:32].upper()


def _tagged(body: bytes) -> Callable[[web.Request], Awaitable[web.Response]]:
    tag = f'"{_hash(body)}"'

    async def give(request: web.Request) -> web.Response:
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers={"ETag": tag})
        return web.Response(body=body, content_type="application/json", headers={"ETag": tag})

    return give
