//! The operator as a process, against kmock's Kubernetes emulator, with nodes of a real mesh that build nothing.
//!
//! `SHOAL_KMOCK` names a Python that has kmock; else `target/kmock/bin/python` does, which `scripts/get-kmock` makes.
//! Where neither is there, the tests are skipped.

mod cluster;

use cluster::Cluster;
use serde_json::json;

const QUICK: [(&str, &str); 4] = [
    ("shoal.build/max-replicas", "4"),
    ("shoal.build/startup-seconds", "3"),
    ("shoal.build/quiet-seconds", "2"),
    ("shoal.build/slots", "2"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_grows_by_demand_drains_from_the_end_and_survives_others() {
    let Some(mut cluster) = Cluster::start().await else { return };
    cluster.create_set(&QUICK, 1).await;
    cluster.node(0).await;
    let operator = cluster.operator("first", &[]).await;

    // Four at once on two slots: two more nodes, in one write.
    let writes = cluster.writes().await;
    cluster.demand(6, 600).await;
    cluster.until_replicas(4).await;
    assert_eq!(cluster.writes().await, writes + 1, "one write for one change of size");
    for ordinal in 1..4 {
        cluster.node(ordinal).await;
    }

    // Quiet: the last three are asked to drain, and none goes before it says that it has drained.
    cluster.demand(0, 0).await;
    cluster.until_ordered(&[1, 2, 3]).await;
    cluster.drained(1);
    cluster.drained(2);
    cluster.until_considered(&operator).await;
    assert_eq!(cluster.replicas().await, 4, "the last has not drained");
    cluster.drained(3);
    cluster.until_replicas(1).await;
    for ordinal in 1..4 {
        cluster.stop_node(ordinal).await;
    }

    // Somebody else sets the size: it is left alone at first, and comes back later only where that is needed.
    cluster.patch(json!({ "spec": { "replicas": 2 } })).await;
    cluster.node(1).await;
    cluster.until_considered(&operator).await;
    assert_eq!(cluster.replicas().await, 2);

    let metrics = operator.get("/metrics").await;
    assert!(metrics.contains("shoal_k8s_replicas{pool=\"shoal\",kind=\"current\"} 2"), "{metrics}");
    assert!(metrics.contains("shoal_k8s_is_leader 1"), "{metrics}");
    assert_eq!(operator.get("/healthz").await, "ok\n");
    let resident_mib = operator.resident_mib();
    println!("resident: {resident_mib} MiB");
    if !cfg!(debug_assertions) {
        assert!(resident_mib < 30, "{resident_mib} MiB");
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_two_decides_and_the_other_takes_over() {
    let Some(mut cluster) = Cluster::start().await else { return };
    cluster.create_set(&QUICK, 1).await;
    cluster.node(0).await;
    let first = cluster.operator("first", &[]).await;
    cluster.until_leader(&first).await;
    let second = cluster.operator("second", &[]).await;
    cluster.until_considered(&second).await;
    assert!(second.get("/metrics").await.contains("shoal_k8s_is_leader 0"));
    cluster.demand(2, 600).await;
    cluster.until_replicas(2).await;
    first.kill();
    cluster.demand(4, 1_200).await;
    cluster.until_replicas(3).await;
    assert!(second.get("/metrics").await.contains("shoal_k8s_is_leader 1"));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_writes_nothing_and_mistakes_are_left_alone() {
    let Some(mut cluster) = Cluster::start().await else { return };
    cluster.create_set(&[("shoal.build/max-replicas", "many")], 1).await;
    cluster.node(0).await;
    let operator = cluster.operator("dry", &["--dry-run"]).await;
    cluster.until_leader(&operator).await;
    cluster.demand(50, 6_000).await;
    cluster.until_considered(&operator).await;
    assert_eq!(cluster.replicas().await, 1, "its maximum is no number");
    cluster.patch(json!({ "metadata": { "annotations": { "shoal.build/max-replicas": "9" } } })).await;
    cluster
        .until("it decides", async || {
            operator.get("/metrics").await.contains("shoal_k8s_replicas{pool=\"shoal\",kind=\"target\"} 9")
        })
        .await;
    assert_eq!(cluster.replicas().await, 1, "it is a dry run");
    cluster.stop().await;
}
