"""Serves kmock's KubernetesEmulator on loopback until its input ends; prints its port.

The emulator keeps no resource versions. A StatefulSet or a Lease that is written with a version which is not the newest is
refused here, as the real API server does it.
"""

import asyncio
import sys

import kmock
from kmock._internal import enums, k8s


class Versioned(kmock.KubernetesEmulator):
    version = 0
    set_writes = 0

    async def _handle(self, request):
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
            Versioned.set_writes += request.resource.plural == "statefulsets"
        return await super()._handle(request)


async def main():
    async with Versioned() as emulator, kmock.Server(emulator, host="127.0.0.1") as server:
        emulator.resources["apps/v1/statefulsets"] = {"kind": "StatefulSet", "namespaced": True}
        emulator.resources["coordination.k8s.io/v1/leases"] = {"kind": "Lease", "namespaced": True}
        emulator.resources["events.k8s.io/v1/events"] = {"kind": "Event", "namespaced": True}
        emulator["get /test/writes"] << (lambda: str(Versioned.set_writes).encode())
        print(server.port, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


asyncio.run(main())
