//! The operator as a process, against kmock's Kubernetes emulator, with nodes of a real mesh that build nothing.
//!
//! `SHOAL_KMOCK` names a Python that has kmock; else `target/kmock/bin/python` does, which `scripts/get-kmock` makes.
//! Where neither is there, the tests are skipped.

mod cluster;

use cluster::Cluster;
use serde_json::json;
use shoal_grid::random::Random;
use std::time::{Duration, Instant};

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

/// Half a minute stands for a day: some hours of bursts from a seed, then a night. No more is written than the size changes, the size
/// stays within its bounds, and no node ends that has not drained, which [`Cluster::keep_up`] looks at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_of_demand_is_followed_and_costs_no_node_that_has_something() {
    let seed = std::env::var("SHOAL_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    println!("SHOAL_SEED={seed}");
    let Some(mut cluster) = Cluster::start().await else { return };
    cluster.create_set(&QUICK, 1).await;
    cluster.node(0).await;
    let operator = cluster.operator("day", &[]).await;
    cluster.until_leader(&operator).await;
    let writes = cluster.writes().await;
    let mut random = Random::new(seed);
    for _ in 0..HOURS {
        let jobs = if random.below(3) == 0 { 0 } else { random.below(9) as u32 };
        cluster.demand(jobs, u64::from(jobs) * 60).await;
        let hour_ends = Instant::now() + HOUR;
        while Instant::now() < hour_ends {
            follow(&mut cluster).await;
        }
    }
    cluster.demand(0, 0).await;
    let deadline = Instant::now() + Duration::from_secs(60);
    while cluster.replicas().await != 1 {
        assert!(Instant::now() < deadline, "it is still large at night: {:?}", cluster.sizes().await);
        follow(&mut cluster).await;
    }
    let (sizes, written) = (cluster.sizes().await, cluster.writes().await - writes);
    assert!(sizes.len() > 1, "there was nothing to do");
    assert!(sizes.iter().all(|size| (1..=4).contains(size)), "{sizes:?}");
    let counted = "shoal_k8s_writes_total{pool=\"shoal\"}";
    cluster.until("it has counted its writes", async || operator.counted(counted).await == written).await;
    let is_changed = sizes.windows(2).all(|pair| pair[0] != pair[1]);
    assert!(is_changed && written == sizes.len() as u64 - 1, "{written} writes, of which each should change {sizes:?}");
    cluster.stop().await;
}

const HOURS: u32 = 6;
const HOUR: Duration = Duration::from_secs(6);

async fn follow(cluster: &mut Cluster) {
    cluster.keep_up().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
}

/// Somebody changes the set while the operator's change of it is under way: the operator comes second, looks again, and
/// is right by what it sees then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_writes_second_looks_again() {
    let Some(mut cluster) = Cluster::start().await else { return };
    cluster.create_set(&QUICK, 1).await;
    cluster.node(0).await;
    let operator = cluster.operator("second", &[]).await;
    cluster.until_leader(&operator).await;
    cluster.behave("?hold=3").await;
    cluster.demand(6, 600).await;
    cluster.until("its change is under way", async || cluster.held().await > 0).await;
    cluster.patch(json!({ "metadata": { "annotations": { "shoal.build/max-replicas": "3" } } })).await;
    cluster
        .until("it hears that it came second", async || {
            operator.counted("shoal_k8s_conflicts_total{pool=\"shoal\"}").await > 0
        })
        .await;
    cluster.behave("").await;
    cluster.until_replicas(3).await;
    cluster.stop().await;
}

/// An API server that is slow, fails, or stands still: sizes stay, it is said once, and all goes on when it answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_in_trouble_costs_time_only() {
    let Some(mut cluster) = Cluster::start().await else { return };
    cluster.create_set(&QUICK, 1).await;
    cluster.node(0).await;
    let operator = cluster.operator("patient", &[]).await;
    cluster.until_leader(&operator).await;
    // Fails for everybody: also the lease is lost, so nobody decides.
    cluster.behave("?broken=1").await;
    cluster.demand(2, 600).await;
    cluster.until("it does not lead any more", async || operator.counted("shoal_k8s_is_leader").await == 0).await;
    cluster.behave("").await;
    cluster.until_replicas(2).await;
    // Stands still for longer than a write may take.
    cluster.demand(4, 1_200).await;
    cluster.freeze_api(Duration::from_secs(13)).await;
    cluster.until_replicas(3).await;
    assert!(operator.said("nothing is wrong") <= 1 && operator.said("cannot watch") <= 2, "what goes on is said once");
    cluster.stop().await;
}

/// Work for machines of which there are none, and a pod that was evicted with what only it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_can_run_and_who_died_are_said_once_and_nothing_is_lost() {
    let Some(mut cluster) = Cluster::start().await else { return };
    cluster.create_set(&QUICK, 3).await;
    for ordinal in 0..3 {
        cluster.node(ordinal).await;
    }
    let operator = cluster.operator("careful", &[]).await;
    cluster.until_leader(&operator).await;
    cluster.demand_of("riscv64-linux", 5, 600).await;
    cluster.until("it counts them", async || operator.counted("shoal_k8s_unserved_jobs").await == 5).await;
    cluster.until_ordered(&[1, 2]).await;
    cluster.stop_node(2).await;
    cluster.until("it says who died", async || operator.said("do not live: shoal-2;") == 1).await;
    cluster.drained(1);
    cluster.until_considered(&operator).await;
    assert_eq!(cluster.replicas().await, 3, "nobody knows what only the dead one has");
    assert_eq!((operator.said("no pool can run"), operator.said("do not live")), (1, 1), "what goes on is said once");

    // It comes back with all that it had.
    cluster.node(2).await;
    cluster.until("it is well", async || operator.said("nothing is wrong with it any more") == 1).await;
    cluster.until_ordered(&[1, 2]).await;
    cluster.drained(2);
    cluster.until_replicas(1).await;
    cluster.stop().await;
}
