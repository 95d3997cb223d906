"""What deploy/chart gives for each level of privilege, checked against Kubernetes' own schemas.

Run by the end-to-end tests: chart_test.py CHART HELM VALIDATE, each a path.
"""

import json
import re
import subprocess
import sys
import tempfile
import unittest

import yaml

CHART, HELM, VALIDATE = sys.argv[1:4]
KUBERNETES = ["1.33", "1.36"]
LEVELS = ["privileged", "userns", "cache"]
EVERYTHING = ["perNode.enabled=true", "metrics.dashboard=true", "authorizedKeys={admin ssh-ed25519 AAAA someone}",
              "signing.existingSecret=keys", "signing.keys={one,two}", "settings.max-jobs=4", "replicas=5",
              "operator.enabled=true"]


def helm(*args):
    return subprocess.run([HELM, *args], capture_output=True, text=True, timeout=60)


def rendered(*sets, release="shoal"):
    flags = [flag for one in sets for flag in ("--set", one)]
    done = helm("template", release, CHART, "--namespace", "builds", "--kube-version", "1.33.0", *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(*sets, **more):
    return [found for found in yaml.safe_load_all(rendered(*sets, **more)) if found]


def one(all_, kind, name=None):
    found = [o for o in all_ if o["kind"] == kind and name in (None, o["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} of {kind} {name}"
    return found[0]


def pod(workload):
    return workload["spec"]["template"]["spec"]


class Chart(unittest.TestCase):
    def test_lint_finds_nothing(self):
        done = helm("lint", "--strict", CHART)
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_every_level_is_what_kubernetes_takes(self):
        for level in LEVELS:
            for version in KUBERNETES:
                with self.subTest(level=level, version=version), tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
                    file.write(rendered(f"privilege={level}", *EVERYTHING))
                    file.flush()
                    done = subprocess.run([VALIDATE, "--strict", "-k", version, file.name],
                                          capture_output=True, text=True, timeout=120)
                    self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_an_object_that_is_wrong_is_found(self):
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(rendered().replace("podManagementPolicy", "podManagementPolicies"))
            file.flush()
            done = subprocess.run([VALIDATE, "--strict", "-k", KUBERNETES[0], file.name], capture_output=True, timeout=120)
            self.assertNotEqual(done.returncode, 0)

    def test_cache_is_restricted(self):
        """Each line of the "restricted" pod security standard that is about what this pod has."""
        spec = pod(one(objects("privilege=cache"), "StatefulSet"))
        container = spec["containers"][0]
        self.assertIn("--no-build", container["args"])
        self.assertTrue(spec["securityContext"]["runAsNonRoot"])
        self.assertNotEqual(spec["securityContext"]["runAsUser"], 0)
        self.assertEqual(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault")
        security = container["securityContext"]
        self.assertEqual(security["capabilities"], {"drop": ["ALL"]})
        self.assertFalse(security["allowPrivilegeEscalation"])
        self.assertTrue(security["readOnlyRootFilesystem"])
        self.assertNotIn("procMount", security)
        kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
        self.assertLessEqual(kinds, {"configMap", "secret", "emptyDir"})

    def test_userns_has_no_privilege(self):
        spec = pod(one(objects("privilege=userns"), "StatefulSet"))
        security = spec["containers"][0]["securityContext"]
        self.assertFalse(spec["hostUsers"])
        self.assertFalse(security.get("privileged", False) or security["allowPrivilegeEscalation"])
        self.assertEqual(security["capabilities"], {"drop": ["ALL"]})
        self.assertNotIn("--no-build", spec["containers"][0]["args"])

    def test_privileged_is_root(self):
        spec = pod(one(objects(), "StatefulSet"))
        self.assertTrue(spec["containers"][0]["securityContext"]["privileged"])
        self.assertEqual(spec["securityContext"]["runAsUser"], 0)

    def test_nodes_find_each_other_before_they_are_ready(self):
        all_ = objects(release="grid")
        workload = one(all_, "StatefulSet")
        service = one(all_, "Service", workload["spec"]["serviceName"])
        self.assertEqual(service["spec"]["clusterIP"], "None")
        self.assertTrue(service["spec"]["publishNotReadyAddresses"])
        config = one(all_, "ConfigMap", "grid")["data"]["config.toml"]
        self.assertIn(f'"{service["metadata"]["name"]}.builds.svc"', config)
        self.assertEqual(workload["spec"]["podManagementPolicy"], "Parallel")
        labels = workload["spec"]["template"]["metadata"]["labels"]
        for selector in [service["spec"]["selector"], workload["spec"]["selector"]["matchLabels"]]:
            self.assertLessEqual(selector.items(), labels.items())

    def test_a_pod_drains_within_its_grace(self):
        all_ = objects("drainSeconds=300")
        spec = pod(one(all_, "StatefulSet"))
        self.assertEqual(spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"], ["/shoal", "drain"])
        self.assertEqual(spec["terminationGracePeriodSeconds"], 300)
        wait = re.search(r'drain-timeout = "(\d+)s"', one(all_, "ConfigMap")["data"]["config.toml"])
        self.assertLess(int(wait[1]), 300)

    def test_clients_reach_builders_and_not_caches_of_machines(self):
        all_ = objects("perNode.enabled=true")
        clients = one(all_, "Service", "shoal")["spec"]
        local = one(all_, "Service", "shoal-local")["spec"]
        per_node = one(all_, "DaemonSet")["spec"]["template"]["metadata"]["labels"]
        self.assertFalse(clients["selector"].items() <= per_node.items())
        self.assertLessEqual(local["selector"].items(), per_node.items())
        self.assertEqual(local["internalTrafficPolicy"], "Local")

    def test_the_store_of_a_machine_is_seen_by_it(self):
        spec = pod(one(objects("perNode.enabled=true", "perNode.mountPath=/nix/store"), "DaemonSet"))
        mounts = {mount["name"]: mount for mount in spec["containers"][0]["volumeMounts"]}
        self.assertEqual(mounts["store"]["mountPropagation"], "Bidirectional")
        self.assertIn(f"--mount={mounts['store']['mountPath']}", spec["containers"][0]["args"])
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        self.assertEqual(volumes["store"]["hostPath"]["path"], "/nix/store")

    def test_only_the_operator_may_ask_the_api_server(self):
        for workload in [o for o in objects(*EVERYTHING) if o["kind"] in ("StatefulSet", "DaemonSet", "Deployment")]:
            self.assertIs(pod(workload)["automountServiceAccountToken"], workload["kind"] == "Deployment")
        self.assertFalse([o for o in objects() if "Role" in o["kind"] or o["kind"] == "Deployment"])

    def test_the_operator_may_do_what_its_page_says(self):
        role = one(objects("operator.enabled=true"), "Role")
        may = {(group, resource): set(rule["verbs"]) for rule in role["rules"]
               for group in rule["apiGroups"] for resource in rule["resources"]}
        with open(f"{CHART}/../../../docs/kubernetes.md") as file:
            rows = re.findall(r"^\| ((?:`[a-z]+`(?:, )?)+) \| `([a-z0-9.]+)/([a-z]+)` \|$", file.read(), re.MULTILINE)
        self.assertEqual(may, {(group, resource): set(re.findall("[a-z]+", verbs)) for verbs, group, resource in rows})

    def test_the_operators_pod_is_restricted(self):
        spec = pod(one(objects("operator.enabled=true"), "Deployment"))
        self.assertTrue(spec["securityContext"]["runAsNonRoot"])
        self.assertEqual(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault")
        security = spec["containers"][0]["securityContext"]
        self.assertEqual(security["capabilities"], {"drop": ["ALL"]})
        self.assertTrue(security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"])

    def test_no_service_leads_to_the_operator(self):
        all_ = objects(*EVERYTHING)
        labels = one(all_, "Deployment")["spec"]["template"]["metadata"]["labels"]
        for service in [o for o in all_ if o["kind"] == "Service"]:
            self.assertFalse(service["spec"]["selector"].items() <= labels.items(), service["metadata"]["name"])

    def test_who_sizes_is_one(self):
        """What the operator sets is not set back by the next release."""
        sized = one(objects("operator.enabled=true", "operator.maxReplicas=7"), "StatefulSet")
        self.assertNotIn("replicas", sized["spec"])
        self.assertEqual(sized["metadata"]["annotations"]["shoal.build/max-replicas"], "7")
        selector = pod(one(objects("operator.enabled=true"), "Deployment"))["containers"][0]["args"][1]
        label, value = selector.removeprefix("--selector=").split("=")
        self.assertEqual(sized["metadata"]["labels"][label], value)
        self.assertEqual(one(objects("replicas=4"), "StatefulSet")["spec"]["replicas"], 4)

    def test_builds_do_not_reach_the_clouds_metadata(self):
        policy = one(objects(), "NetworkPolicy")["spec"]
        blocks = [to["ipBlock"] for rule in policy["egress"] for to in rule.get("to", []) if "ipBlock" in to]
        self.assertIn("169.254.0.0/16", next(block for block in blocks if block["cidr"] == "0.0.0.0/0")["except"])

    def test_another_configuration_is_another_pod(self):
        def checksum(*sets):
            return one(objects(*sets), "StatefulSet")["spec"]["template"]["metadata"]["annotations"]["shoal/config"]
        self.assertEqual(checksum(), checksum())
        self.assertNotEqual(checksum(), checksum("settings.max-jobs=3"))
        self.assertNotEqual(checksum(), checksum("authorizedKeys={one}"))

    def test_values_that_mean_nothing_are_refused(self):
        for wrong in ["privilege=root", "replica=3", "replicas=0", "storage.size=much", "settings.ssh=none",
                      "mesh.existingSecret=", "perNode.mountPath=store", "service.http=0",
                      "operator.maxReplicas=0"]:
            with self.subTest(wrong):
                done = helm("template", "shoal", CHART, "--set", wrong)
                self.assertNotEqual(done.returncode, 0)
                self.assertIn("values don't meet the specifications of the schema", done.stderr)

    def test_the_manifests_are_what_the_chart_gives(self):
        for level in LEVELS:
            with open(f"{CHART}/../../manifests/{level}.yaml") as file:
                self.assertEqual(file.read(), rendered(f"privilege={level}"), f"{level}: run deploy/manifests/make")

    def test_a_dashboard_asks_for_what_nodes_tell(self):
        board = json.loads(one(objects("metrics.dashboard=true"), "ConfigMap", "shoal-dashboard")["data"]["shoal.json"])
        asked = {name for panel in board["panels"] for target in panel["targets"]
                 for name in re.findall(r"shoal_[a-z_]+", target["expr"])}
        print("metrics:", *sorted(asked))
        self.assertTrue(asked)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
