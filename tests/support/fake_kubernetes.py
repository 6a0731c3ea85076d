"""A small API server over HTTP: objects by path, resource versions, merge patches, lists and watches, reviews.

    async with FakeKubernetes() as server:
        server.put("/api/v1/namespaces/llm/configmaps/ca", {"data": {"a": "1"}})
        async with Kubernetes(Plain(server.url)) as cluster: ...

It does what a real one does on the paths that we ask for, and misbehaves as it is told to.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable
from typing import Any, Self

from aiohttp import web

Json = dict[str, Any]


class FakeKubernetes:
    """`objects` by path.  `refuse`: answers (status, message) instead, for paths that hold a text.  `asked`: (method, path)."""

    def __init__(self) -> None:
        self.objects: dict[str, Json] = {}
        self.refuse: dict[str, tuple[int, str]] = {}
        self.asked: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.token: str | None = None
        self.review_token: Callable[[str], Json] = lambda token: {"authenticated": False}
        self.review_access: Callable[[Json], Json] = lambda spec: {"allowed": False}
        self.hang = asyncio.Event()  # cleared: nobody is answered
        self.hang.set()
        self.version = 100
        self.oldest = 0  # watches from before it are told 410
        self._history: list[tuple[int, str, str, Json]] = []
        self._watchers: list[tuple[str, str | None, asyncio.Queue[Json | None]]] = []
        self._runner: web.AppRunner | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *exception: object) -> None:
        self.hang.set()
        self.cut()
        assert self._runner is not None
        await self._runner.cleanup()

    def put(self, path: str, body: Json) -> Json:
        """Make or replace an object, as another client would."""
        kind = "MODIFIED" if path in self.objects else "ADDED"
        self.version += 1
        item = copy.deepcopy(body)
        parts = path.split("/")
        meta = {**item.get("metadata", {}), "name": parts[-1], "resourceVersion": str(self.version)}
        if "namespaces" in parts[:-2]:
            meta["namespace"] = parts[parts.index("namespaces") + 1]
        item["metadata"] = meta
        self.objects[path] = item
        self._tell(kind, path, item)
        return item

    def delete(self, path: str) -> None:
        """Remove an object."""
        self.version += 1
        self._tell("DELETED", path, self.objects.pop(path))

    def forget(self) -> None:
        """As after a compaction: what happened is told to no watch, and every one of them ends with 410."""
        self.oldest = self.version
        for _, _, queue in self._watchers:
            queue.put_nowait({"type": "ERROR", "object": {"code": 410, "reason": "Expired", "message": "too old"}})
            queue.put_nowait(None)

    def cut(self) -> None:
        """End every watch."""
        for _, _, queue in self._watchers:
            queue.put_nowait(None)

    @property
    def watches(self) -> int:
        """Watches that are open."""
        return len(self._watchers)

    def _tell(self, kind: str, path: str, item: Json) -> None:
        collection, name = path.rsplit("/", 1)
        event = {"type": kind, "object": copy.deepcopy(item)}
        event["object"]["metadata"]["resourceVersion"] = str(self.version)
        self._history.append((self.version, collection, name, event))
        for prefix, only, queue in self._watchers:
            if _below(prefix, collection) and only in (None, name):
                queue.put_nowait(event)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path = "/" + request.match_info["path"]
        self.asked.append((request.method, path))
        self.headers.append(dict(request.headers))
        await self.hang.wait()
        if self.token is not None and request.headers.get("Authorization") != f"Bearer {self.token}":
            return _status(401, "Unauthorized")
        for text, (status, message) in self.refuse.items():
            if text in path:
                return _status(status, message)
        if request.method == "GET" and request.query.get("watch"):
            return await self._watch(request, path)
        body = await request.json() if request.can_read_body else {}
        if path.endswith("/tokenreviews"):
            return web.json_response({"status": self.review_token(body["spec"]["token"])}, status=201)
        if path.endswith("/subjectaccessreviews"):
            return web.json_response({"status": self.review_access(body["spec"])}, status=201)
        return self._crud(request, path, body)

    def _crud(self, request: web.Request, path: str, body: Json) -> web.Response:
        if request.method == "POST":
            target = f"{path}/{body['metadata']['name']}"
            if target in self.objects:
                return _status(409, "already exists", "AlreadyExists")
            return web.json_response(self.put(target, body), status=201)
        scale = path.endswith("/scale")
        target = path.removesuffix("/scale") if scale else path
        item = self.objects.get(target)
        if item is None:
            if request.method == "GET" and not scale and path.split("/")[-1].endswith("s"):
                return web.json_response(self._list(request, path))
            return _status(404, f"{target.rsplit('/', 1)[-1]} not found", "NotFound")
        if request.method == "GET":
            return web.json_response(_scale(item) if scale else item)
        wanted = (body.get("metadata") or {}).get("resourceVersion")
        if wanted and wanted != item["metadata"]["resourceVersion"]:
            return _status(409, "the object has been modified", "Conflict")
        merged = body if request.method == "PUT" else _merged(item, body)
        stored = self.put(target, merged)
        return web.json_response(_scale(stored) if scale else stored)

    def _list(self, request: web.Request, path: str) -> Json:
        only = _only(request)
        labels = dict(p.split("=", 1) for p in request.query.get("labelSelector", "").split(",") if p)
        found = [
            item
            for key, item in sorted(self.objects.items())
            if _below(path, key.rsplit("/", 1)[0])
            and only in (None, item["metadata"]["name"])
            and labels.items() <= (item["metadata"].get("labels") or {}).items()
        ]
        start, limit = int(request.query.get("continue", "0")), int(request.query.get("limit", "500"))
        more = {"continue": str(start + limit)} if start + limit < len(found) else {}
        return {"metadata": {"resourceVersion": str(self.version), **more}, "items": found[start : start + limit]}

    async def _watch(self, request: web.Request, path: str) -> web.StreamResponse:
        since, only = int(request.query["resourceVersion"]), _only(request)
        if since < self.oldest:
            return _status(410, "too old resource version", "Expired")
        queue: asyncio.Queue[Json | None] = asyncio.Queue()
        for version, collection, name, event in self._history:
            if version > since and _below(path, collection) and only in (None, name):
                queue.put_nowait(event)
        entry = (path, only, queue)
        self._watchers.append(entry)
        response = web.StreamResponse()
        try:
            await response.prepare(request)
            while (event := await queue.get()) is not None:
                await response.write(json.dumps(event).encode() + b"\n")
        finally:
            self._watchers.remove(entry)
        return response


def _below(prefix: str, collection: str) -> bool:
    """Whether a collection is meant: itself, or all namespaces' ones of its kind."""
    base, plural = prefix.rsplit("/", 1)
    return collection == prefix or (collection.startswith(f"{base}/namespaces/") and collection.endswith(f"/{plural}"))


def _only(request: web.Request) -> str | None:
    return request.query.get("fieldSelector", "").removeprefix("metadata.name=") or None


def _merged(old: Any, patch: Any) -> Any:
    if not isinstance(old, dict) or not isinstance(patch, dict):
        return patch
    return {
        k: _merged(old.get(k), patch[k]) if k in patch else old[k]
        for k in {**old, **patch}
        if patch.get(k, 0) is not None
    }


def _scale(item: Json) -> Json:
    labels = item["spec"].get("selector", {}).get("matchLabels", {})
    status = {
        "replicas": item.get("status", {}).get("replicas", 0),
        "selector": ",".join(f"{k}={v}" for k, v in labels.items()),
    }
    spec = {"replicas": item["spec"].get("replicas", 0)}
    return {"kind": "Scale", "metadata": item["metadata"], "spec": spec, "status": status}


def _status(code: int, message: str, reason: str = "") -> web.Response:
    body = {"kind": "Status", "status": "Failure", "message": message, "reason": reason, "code": code}
    return web.json_response(body, status=code)
