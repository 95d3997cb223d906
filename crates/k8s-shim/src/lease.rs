//! Of several that run one decides: who has the Lease.
//!
//! The holder renews it; others look when it would be over, and take it where it is. Nobody compares clocks of two
//! machines: the lease is over when it has not changed for its duration, by the clock of who looks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Error};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::options::Options;

/// How long after its holder's last word it is over.
const DURATION: Duration = Duration::from_secs(15);
const RENEWAL: Duration = Duration::from_secs(5);
/// A holder that could not renew for so long decides nothing any more, before another may.
const GIVE_UP: Duration = Duration::from_secs(10);
const ANSWER: Duration = Duration::from_secs(4);

#[derive(Clone)]
pub struct Lead {
    leases: Api<Lease>,
    name: String,
    me: String,
    is_held: Arc<AtomicBool>,
}

/// What a look at the lease says.
#[derive(Debug, PartialEq, Eq)]
struct Word {
    holder: Option<String>,
    version: Option<String>,
    renewed: Option<Timestamp>,
}

impl Lead {
    pub fn new(client: Client, namespace: &str, options: &Options) -> Self {
        let leases = Api::namespaced(client, namespace);
        Lead { leases, name: options.lease.clone(), me: options.identity(), is_held: Arc::default() }
    }

    /// Takes the lease when it can be had and keeps it, for as long as it is polled. Says whether it has it.
    pub async fn keep(&self, tell: watch::Sender<bool>) {
        let mut seen: Option<(Word, Instant)> = None;
        let mut kept_at = None;
        loop {
            match timeout(ANSWER, self.turn(&mut seen)).await {
                Ok(Ok(true)) => kept_at = Some(Instant::now()),
                Ok(Ok(false)) => kept_at = None,
                Ok(Err(error)) => tracing::debug!(%error, "cannot read or renew the lease"),
                Err(_) => tracing::debug!("the API server does not answer about the lease"),
            }
            let holds = kept_at.is_some_and(|at: Instant| at.elapsed() < GIVE_UP);
            self.is_held.store(holds, Ordering::Relaxed);
            if tell.send_if_modified(|held| std::mem::replace(held, holds) != holds) {
                let what = match (holds, kept_at) {
                    (true, _) => "it has the lease and decides",
                    (false, Some(_)) => "the API server does not renew its lease; it decides nothing until it does",
                    (false, None) => "another decides",
                };
                tracing::info!(lease = self.name, what);
            }
            tokio::time::sleep(RENEWAL).await;
        }
    }

    /// Whether the lease is this one's now.
    async fn turn(&self, seen: &mut Option<(Word, Instant)>) -> Result<bool, Error> {
        let lease = match self.leases.get(&self.name).await {
            Err(Error::Api(status)) if status.code == 404 => {
                let mut lease = Lease { spec: Some(self.spec(0)), ..Lease::default() };
                lease.metadata.name = Some(self.name.clone());
                return conflicts(self.leases.create(&PostParams::default(), &lease).await);
            }
            answer => answer?,
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let word = Word {
            holder: spec.holder_identity.clone().filter(|holder| !holder.is_empty()),
            version: lease.metadata.resource_version.clone(),
            renewed: spec.renew_time.map(|time| time.0),
        };
        if seen.as_ref().is_none_or(|(before, _)| *before != word) {
            *seen = Some((word, Instant::now()));
        }
        let Some((word, since)) = seen else { return Ok(false) };
        let is_mine = word.holder.as_ref() == Some(&self.me);
        let is_over = word.holder.is_none() || since.elapsed() >= DURATION;
        if !is_mine && !is_over {
            return Ok(false);
        }
        let changes = spec.lease_transitions.unwrap_or(0).saturating_add(i32::from(!is_mine));
        conflicts(self.write(word.version.as_deref(), &self.spec(changes)).await)
    }

    /// Comes second to whatever was written after `version`.
    async fn write(&self, version: Option<&str>, spec: &LeaseSpec) -> Result<Lease, Error> {
        let change = json!({ "metadata": { "resourceVersion": version }, "spec": spec });
        self.leases.patch(&self.name, &PatchParams::default(), &Patch::Merge(change)).await
    }

    fn spec(&self, changes: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            renew_time: Some(MicroTime(Timestamp::now())),
            acquire_time: Some(MicroTime(Timestamp::now())),
            lease_transitions: Some(changes),
            ..LeaseSpec::default()
        }
    }

    /// Gives it up at once, so that another need not wait for its end.
    pub async fn release(&self) {
        if !self.is_held.load(Ordering::Relaxed) {
            return;
        }
        let given = async {
            let lease = self.leases.get(&self.name).await?;
            let mut spec = lease.spec.unwrap_or_default();
            if spec.holder_identity.as_ref() == Some(&self.me) {
                spec.holder_identity = Some(String::new());
                self.write(lease.metadata.resource_version.as_deref(), &spec).await?;
            }
            Ok::<_, Error>(())
        };
        // It is over by itself soon.
        let _ = timeout(ANSWER, given).await;
    }
}

/// Whether a write was the first.
fn conflicts<T>(written: Result<T, Error>) -> Result<bool, Error> {
    match written {
        Ok(_) => Ok(true),
        Err(Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}
