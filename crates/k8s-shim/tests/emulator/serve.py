"""Serves kmock's KubernetesEmulator on loopback until its input ends; prints its port.

The emulator keeps no resource versions. A StatefulSet or a Lease that is written with a version which is not the newest is
refused here, as the real API server does it.

GET /test/behave?hold=SECONDS&broken=1: changes of a StatefulSet that name a version wait for so long before they are looked
at, and every request fails. Without a parameter it behaves again.

GET /test/sizes: the replicas that a StatefulSet was written with, oldest first, separated by commas.
"""

import asyncio
import sys

import kmock
from kmock._internal import enums, k8s


class Versioned(kmock.KubernetesEmulator):
    version = 0
    set_writes = 0
    sizes = []
    hold_s = 0.0
    held = 0
    broken = False

    async def _handle(self, request):
        if request.url.path == "/test/behave":
            Versioned.hold_s = float(request.params.get("hold", 0))
            Versioned.broken = "broken" in request.params
        if request.resource is not None and Versioned.broken:
            raise k8s.KubernetesError()
        is_change = request.resource is not None and request.action == enums.action.UPDATE
        if is_change and request.resource.plural == "statefulsets" and request.data.get("metadata", {}).get("resourceVersion"):
            Versioned.held += 1
            try:
                await asyncio.sleep(Versioned.hold_s)
            finally:
                Versioned.held -= 1
        if request.resource is not None and request.action in (enums.action.CREATE, enums.action.UPDATE):
            metadata = request.data.setdefault("metadata", {})
            if request.action == enums.action.UPDATE:
                key = (request.resource, request.namespace, request.name)
                held = self._objects[key].raw if key in self._objects else {}
                known = held.get("metadata", {}).get("resourceVersion")
                if metadata.get("resourceVersion") not in (None, known):
                    raise k8s.KubernetesObjectConflictError()
            Versioned.version += 1
            metadata["resourceVersion"] = str(Versioned.version)
            if request.resource.plural == "statefulsets":
                Versioned.set_writes += 1
                if "replicas" in request.data.get("spec", {}):
                    Versioned.sizes.append(request.data["spec"]["replicas"])
        return await super()._handle(request)


async def main():
    async with Versioned() as emulator, kmock.Server(emulator, host="127.0.0.1") as server:
        emulator.resources["apps/v1/statefulsets"] = {"kind": "StatefulSet", "namespaced": True}
        emulator.resources["coordination.k8s.io/v1/leases"] = {"kind": "Lease", "namespaced": True}
        emulator.resources["events.k8s.io/v1/events"] = {"kind": "Event", "namespaced": True}
        emulator["get /test/writes"] << (lambda: str(Versioned.set_writes).encode())
        emulator["get /test/sizes"] << (lambda: ",".join(map(str, Versioned.sizes)).encode())
        emulator["get /test/held"] << (lambda: str(Versioned.held).encode())
        emulator["get /test/behave"] << b"ok"
        print(server.port, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


asyncio.run(main())
