//! End-to-end tests: real Nix clients against real nodes.
//!
//! `SHOAL_E2E=full` runs every client version over everything, and many more rounds of what is random.

/// A test for each client version: `by_each_version!(name)` calls `name(&Nix)`.
macro_rules! by_each_version {
    ($($name:ident),* $(,)?) => {$(
        mod $name {
            use shoal_tests::Nix;

            #[test]
            fn v2_8() {
                super::$name(&Nix::get("2.8"));
            }

            #[test]
            fn v2_26() {
                super::$name(&Nix::get("2.26"));
            }

            #[test]
            fn v2_34() {
                super::$name(&Nix::get("2.34"));
            }
        }
    )*};
}

#[path = "e2e/cache.rs"]
mod cache;
#[path = "e2e/cancelled.rs"]
mod cancelled;
#[path = "e2e/cold.rs"]
mod cold;
#[path = "e2e/commands.rs"]
mod commands;
#[path = "e2e/containers.rs"]
mod containers;
#[path = "e2e/copies.rs"]
mod copies;
#[path = "e2e/crashes.rs"]
mod crashes;
#[path = "e2e/cutoff.rs"]
mod cutoff;
#[path = "e2e/demo.rs"]
mod demo;
#[path = "e2e/estimates.rs"]
mod estimates;
#[path = "e2e/examples.rs"]
mod examples;
#[path = "e2e/explain.rs"]
mod explain;
#[path = "e2e/far_tools.rs"]
mod far_tools;
#[path = "e2e/grid.rs"]
mod grid;
#[path = "e2e/grid_activities.rs"]
mod grid_activities;
#[path = "e2e/grid_crowd.rs"]
mod grid_crowd;
#[path = "e2e/grid_faults.rs"]
mod grid_faults;
#[path = "e2e/grid_kills.rs"]
mod grid_kills;
#[path = "e2e/grid_lies.rs"]
mod grid_lies;
#[path = "e2e/grid_memory.rs"]
mod grid_memory;
#[path = "e2e/grid_steps.rs"]
mod grid_steps;
#[path = "e2e/joining.rs"]
mod joining;
#[path = "e2e/keeping.rs"]
mod keeping;
#[path = "e2e/kept_mount.rs"]
mod kept_mount;
#[path = "e2e/lifecycle.rs"]
mod lifecycle;
#[path = "e2e/mesh.rs"]
mod mesh;
#[path = "e2e/mesh_losses.rs"]
mod mesh_losses;
#[path = "e2e/mesh_network.rs"]
mod mesh_network;
#[path = "e2e/mini.rs"]
mod mini;
#[path = "e2e/mount.rs"]
mod mount;
#[path = "e2e/mounted_store.rs"]
mod mounted_store;
#[path = "e2e/options.rs"]
mod options;
#[path = "e2e/packaging.rs"]
mod packaging;
#[path = "e2e/pull.rs"]
mod pull;
#[path = "e2e/push.rs"]
mod push;
#[path = "e2e/put.rs"]
mod put;
#[path = "e2e/quorum.rs"]
mod quorum;
#[path = "e2e/quorum_waits.rs"]
mod quorum_waits;
#[path = "e2e/requests.rs"]
mod requests;
#[path = "e2e/store.rs"]
mod store;
#[path = "e2e/stragglers.rs"]
mod stragglers;
#[path = "e2e/tls.rs"]
mod tls;
#[path = "e2e/trace.rs"]
mod trace;
#[path = "e2e/trust.rs"]
mod trust;
#[path = "e2e/upstream.rs"]
mod upstream;
#[path = "e2e/views.rs"]
mod views;
#[path = "e2e/watch.rs"]
mod watch;
