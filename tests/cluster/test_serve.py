"""`autoscaler serve` behind the real aggregator, followed by the real HPA: requests at a door become pods."""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import time
from pathlib import Path

import pytest
from cluster_api import Api, ApiError, Namespace, condition
from cluster_keys import Authority, Pair
from cluster_objects import GROUP, hpa, pool
from cluster_plane import PROXY_NAME, ControlPlane
from cluster_programs import wait_for
from cluster_serve import HOME, Door, Serve

pytestmark = pytest.mark.cluster

HOST = f"autoscaler.{HOME}.svc"
SELECTOR = {"pool": "chat"}


def begin(namespace: Namespace, door: Door, replicas: int, *, low: int = 0) -> None:
    """A pool of so many replicas with our HPA, and the requests that keep it so."""
    door.arrive(replicas)
    namespace.apply(pool("chat", replicas=max(1, replicas)))
    namespace.wait_ready("chat", max(1, replicas))
    namespace.apply(hpa("chat", selector=SELECTOR, low=low))
    active = {"status": "True", "reason": "ValidMetricFound"}
    wait_for("the HPA reads us", lambda: active.items() <= condition(namespace.hpa("chat"), "ScalingActive").items())
    namespace.wait_ready("chat", replicas)


def test_the_api_is_available_and_answers(served: Serve, namespace: Namespace, door: Door, kube: Api):
    begin(namespace, door, 2)
    root = f"/apis/{GROUP}/v1beta1"
    names = [r["name"] for r in json.loads(kube.kubectl("get", "--raw", root))["resources"]]
    assert "desired_replicas" in names
    wait_for("the number", lambda: served.metric(kube, namespace.name) == "2")
    wait_for("the rate", lambda: served.metric(kube, namespace.name, "requests_per_second") == "2")
    with pytest.raises(ApiError, match="no such metric") as error:
        served.metric(kube, namespace.name, "nothing")
    assert error.value.code == 404


def test_the_hpa_follows_up_and_down_and_by_one_at_twenty(served: Serve, namespace: Namespace, door: Door):
    begin(namespace, door, 3)
    for replicas in (20, 21, 20, 19, 5, 6):
        before = namespace.deployment("chat")
        door.arrive(replicas)
        assert namespace.sizes(before, until=replicas) == [replicas]


def test_to_zero_and_from_zero_straight_to_the_number(
    plane: ControlPlane, namespace: Namespace, door: Door, tmp_path: Path
):
    with Serve(plane, namespace, tmp_path, door, pool={"signal": "requests_per_second"}):
        begin(namespace, door, 2)
        for replicas in (0, 9, 0):
            before = namespace.deployment("chat")
            door.arrive(replicas)
            # A look that is late on a busy machine sees another rate, once; it never sees the single request of a start.
            path = namespace.sizes(before, until=replicas)
            assert path[-1] == replicas
            assert not replicas or path[0] > replicas / 2, path
            namespace.wait_ready("chat", replicas)


def test_killed_it_is_held_and_begun_again_it_goes_on(
    served: Serve, plane: ControlPlane, namespace: Namespace, door: Door
):
    begin(namespace, door, 4)
    served.program.kill()
    door.arrive(1)
    wait_for(
        "the HPA tells that it cannot ask",
        lambda: condition(namespace.hpa("chat"), "ScalingActive")["status"] == "False",
    )
    namespace.hold("chat", 4, seconds=5)
    served.start()
    wait_for("the group is available", plane.available)
    namespace.wait_wanted("chat", 1)


def test_the_api_server_restarts(served: Serve, plane: ControlPlane, namespace: Namespace, door: Door, kube: Api):
    begin(namespace, door, 4)
    plane.server.kill()
    time.sleep(5.0)  # longer than a number may be old
    plane.server.start()
    plane.server.wait_until("ready", lambda: kube.request("GET", "/readyz", timeout=5) == "ok")
    assert namespace.wanted("chat") == 4
    door.arrive(6)
    namespace.wait_ready("chat", 6, seconds=60)
    assert served.program.running()
    assert all(program.running() for program in plane.programs)


def test_what_is_too_old_is_held_and_told(served: Serve, namespace: Namespace, door: Door, kube: Api):
    begin(namespace, door, 4)
    before = namespace.deployment("chat")
    # The counts of the target cannot be read any more: no turn is made, and so no Step.
    kube.delete(f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace.name}/rolebindings/autoscaler-pool-reader")
    wait_for("our sentence is read", lambda: "last step is" in namespace.describe("hpa", "chat"))
    told = namespace.describe("hpa", "chat")
    assert "pool chat: last step is" in told
    assert "the limit is 3 s" in told
    door.arrive(1)
    namespace.hold("chat", 4, seconds=5)
    assert namespace.deployment("chat")["metadata"]["generation"] == before["metadata"]["generation"]
    with pytest.raises(ApiError) as error:
        served.metric(kube, namespace.name)
    assert error.value.code == 503


def test_a_door_that_is_gone_takes_no_replica(served: Serve, namespace: Namespace, door: Door):
    begin(namespace, door, 4)
    door.close()
    namespace.hold("chat", 4, seconds=8)


class Asker(threading.Thread):
    """Asks through the aggregator without a pause, and keeps what went wrong."""

    def __init__(self, served: Serve, api: Api, namespace: str) -> None:
        super().__init__(daemon=True)
        self._served, self._api, self._namespace = served, api, namespace
        self._end = threading.Event()
        self.answers, self.problems = 0, []  # type: int, list[str]

    def run(self) -> None:
        while not self._end.is_set():
            try:
                value = self._served.metric(self._api, self._namespace)
                if value != "5":
                    self.problems.append(value)
            except OSError as error:
                self.problems.append(str(error))
            self.answers += 1

    def stop(self) -> None:
        self._end.set()
        self.join()


def test_certificates_rotate_under_load(
    plane: ControlPlane, namespace: Namespace, door: Door, kube: Api, tmp_path: Path
):
    keys = tmp_path / "keys"
    pair = plane.serving.issue(keys, "autoscaler", hosts=(HOST,))
    flags = ["--tls-cert-file", pair.cert, "--tls-private-key-file", pair.key]
    with Serve(plane, namespace, tmp_path, door, flags=flags, ca_bundle=plane.serving.pem) as served:
        begin(namespace, door, 5)
        asker = Asker(served, kube, namespace.name)
        asker.start()
        old = presented(served.secure)
        plane.serving.issue(keys, "autoscaler", hosts=(HOST,))
        wait_for("the new certificate is served", lambda: presented(served.secure) != old)
        plane.rotate_front_proxy()
        before = asker.answers
        wait_for("answers after both", lambda: asker.answers > before + 20)
        asker.stop()
        assert asker.problems == []
        door.arrive(7)
        namespace.wait_wanted("chat", 7)


def presented(port: int) -> bytes | None:
    """The certificate that a server shows."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=5)
    connection.connect()
    found: bytes | None = connection.sock.getpeercert(binary_form=True)
    connection.close()
    return found


def ask(port: int, path: str, headers: dict[str, str], pair: Pair | None = None) -> int:
    """The code of an answer of the adapter itself, past the aggregator."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if pair is not None:
        context.load_cert_chain(pair.cert, pair.key)
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=10)
    connection.request("GET", path, headers=headers)
    code = connection.getresponse().status
    connection.close()
    return code


def test_forged_headers_are_refused(
    served: Serve, plane: ControlPlane, namespace: Namespace, door: Door, tmp_path: Path
):
    begin(namespace, door, 1)
    path = f"/apis/{GROUP}/v1beta1/namespaces/{namespace.name}/desired_replicas?labelSelector=pool%3Dchat"
    admin = {"X-Remote-User": "admin", "X-Remote-Group": "system:masters"}
    assert ask(served.secure, path, admin) == 401
    # Signed by the right authority, and by another that took the right name.
    assert ask(served.secure, path, admin, plane.front_proxy.issue(tmp_path / "a", "somebody-else")) == 401
    with pytest.raises((ssl.SSLError, ConnectionError)):
        ask(served.secure, path, admin, Authority("front proxy").issue(tmp_path / "b", PROXY_NAME))
    assert ask(served.secure, path, admin, plane.front_proxy.issue(tmp_path / "c", PROXY_NAME)) == 200
    # Through the aggregator they are not the caller's to send: who asks is who the API server says.
    with pytest.raises(ApiError) as error:
        plane.api_of("nobody").request("GET", path, headers=admin)
    assert error.value.code == 403
    # A token is good without the aggregator, for what its owner may see.
    for user, code in (("admin", 200), ("nobody", 403), ("unheard-of", 401)):
        assert ask(served.secure, path, {"Authorization": f"Bearer {plane.token(user)}"}) == code, user


def test_a_hundred_looks_take_no_time(served: Serve, namespace: Namespace, door: Door, kube: Api):
    begin(namespace, door, 5)
    started = time.monotonic()
    asker = Asker(served, kube, namespace.name)
    asker.start()
    wait_for("a hundred answers", lambda: asker.answers >= 100, seconds=60)
    asker.stop()
    assert asker.problems == []
    print(f"{asker.answers / (time.monotonic() - started):.0f} answers a second through the aggregator")
