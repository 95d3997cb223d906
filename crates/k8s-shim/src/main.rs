//! `shoal-k8s`: sizes the StatefulSets of a build grid by what its nodes gossip of their demand.
//!
//! It joins the mesh as an observer, which keeps nothing and builds nothing, and watches the StatefulSets. When it is gone
//! the mesh works at its present size.

mod http;
mod lease;
mod metrics;
mod observer;
mod operator;
mod options;
mod pools;
mod size;
mod status;

use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use lease::Lead;
use metrics::Metrics;
use observer::Observer;
use operator::Operator;
use options::Options;

fn main() -> Result<()> {
    let options = Options::parse();
    let json = !std::io::IsTerminal::is_terminal(&std::io::stderr());
    start_log(json);
    // Of two that are set the first counts, and both are the same.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")?;
    runtime.block_on(run(options))
}

fn start_log(json: bool) {
    use tracing_subscriber::filter::{LevelFilter, Targets};
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::util::SubscriberInitExt;
    let targets = Targets::new().with_default(LevelFilter::WARN).with_target("shoal", LevelFilter::INFO);
    let registry = tracing_subscriber::registry().with(targets);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    match json {
        true => registry.with(layer.json().flatten_event(true)).init(),
        false => registry.with(layer.with_target(false)).init(),
    }
}

async fn run(options: Options) -> Result<()> {
    let mut config = kube::Config::infer().await.context(
        "no Kubernetes to talk to: neither a service account of a pod nor a kubeconfig is there; run it in a pod, or set KUBECONFIG",
    )?;
    config.read_timeout = None;
    let namespace = options.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    let client = kube::Client::try_from(config).context("cannot use the Kubernetes configuration")?;
    let metrics = Arc::new(Metrics::default());
    let server = http::serve(options.listen, metrics.clone()).await?;
    let observer = Observer::join(&options).await?;
    let (lead, leads) = watch::channel(false);
    let lease = Lead::new(client.clone(), &namespace, &options);
    let operator = Operator::new(client, namespace, observer.clone(), metrics, options.dry_run, leads);
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for signals")?;
    tokio::select! {
        () = lease.keep(lead) => {}
        () = operator.run(&options.selector) => {}
        () = server => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    lease.release().await;
    observer.stop().await;
    Ok(())
}
