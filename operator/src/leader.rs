//! Leader election by a Lease: of several operators only the leader reconciles, so that no two write at once.
//!
//! The holder renews the Lease every few seconds and gives it up at shutdown, so that a successor need not wait for it to
//! run out. Whoever fails to renew in time stops leading before anyone else may begin: times are taken from this
//! process's own monotonic clock, never compared between machines.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::{Client, ResourceExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Name of the Lease.
pub const LEASE_NAME: &str = "fairlead-operator";

/// How long a Lease holds without being renewed, for those who wait for it.
const HOLDS: Duration = Duration::from_secs(30);
/// How long a leader that can't renew goes on leading; shorter than [`HOLDS`].
const GIVES_UP_AFTER: Duration = Duration::from_secs(22);
/// How long one attempt to renew may take; several fit into [`GIVES_UP_AFTER`].
const ATTEMPT: Duration = Duration::from_secs(6);
/// Between two looks at the Lease.
const RETRY: Duration = Duration::from_secs(2);

// A leader that gives up stops its controllers within four seconds (`run`), which must be over before the Lease is.
const _: () = assert!(GIVES_UP_AFTER.as_secs() + 4 < HOLDS.as_secs());

/// One candidate.
pub struct Candidate {
    api: Api<Lease>,
    identity: String,
}

/// What this candidate last saw of someone else's Lease: its state, and when it was first seen in that state.
struct Seen {
    holder: Option<String>,
    renewed: Option<MicroTime>,
    since: Instant,
}

impl Candidate {
    /// A candidate for the Lease in `namespace`.
    pub fn new(client: Client, namespace: &str, identity: String) -> Self {
        Self { api: Api::namespaced(client, namespace), identity }
    }

    /// Waits until this candidate leads; `false` when `stop` came first.
    pub async fn acquire(&self, stop: &CancellationToken) -> bool {
        let mut seen: Option<Seen> = None;
        loop {
            match self.try_acquire(&mut seen).await {
                Ok(true) => return true,
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "leader election: the Lease can't be read or written"),
            }
            tokio::select! {
                () = stop.cancelled() => return false,
                () = tokio::time::sleep(RETRY.mul_f64(rand::random_range(0.8..1.2))) => {}
            }
        }
    }

    async fn try_acquire(&self, seen: &mut Option<Seen>) -> Result<bool, kube::Error> {
        let Some(lease) = self.api.get_opt(LEASE_NAME).await? else {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(LEASE_NAME.to_owned()), ..ObjectMeta::default() },
                spec: Some(self.spec(1)),
            };
            return won(self.api.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().filter(|holder| !holder.is_empty());
        let ours = holder.as_deref() == Some(self.identity.as_str());
        let unchanged = seen.as_ref().filter(|it| it.holder == holder && it.renewed == spec.renew_time);
        let expired = match unchanged {
            Some(seen) => {
                let holds = spec
                    .lease_duration_seconds
                    .and_then(|it| u64::try_from(it).ok())
                    .map_or(HOLDS, Duration::from_secs);
                seen.since.elapsed() >= holds
            }
            None => {
                *seen = Some(Seen {
                    holder: holder.clone(),
                    renewed: spec.renew_time.clone(),
                    since: Instant::now(),
                });
                false
            }
        };
        if holder.is_some() && !ours && !expired {
            return Ok(false);
        }
        let transitions = spec.lease_transitions.unwrap_or_default() + i32::from(!ours);
        won(self.replace(lease, self.spec(transitions)).await)
    }

    /// Renews until `stop`, or until leading can't be proven any longer. Returns true in the first case.
    pub async fn keep(&self, stop: &CancellationToken) -> bool {
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => return true,
                () = tokio::time::sleep(RETRY) => {}
            }
            let begun = Instant::now();
            let attempt = tokio::time::timeout(ATTEMPT, self.renew()).await;
            match attempt {
                Ok(Ok(true)) => renewed = begun,
                Ok(Ok(false)) => {
                    tracing::error!("leader election: somebody else holds the Lease");
                    return false;
                }
                Ok(Err(error)) => tracing::warn!(%error, "leader election: the Lease can't be renewed"),
                Err(_) => tracing::warn!("leader election: renewing the Lease takes too long"),
            }
            if renewed.elapsed() >= GIVES_UP_AFTER {
                tracing::error!("leader election: the Lease could not be renewed in time");
                return false;
            }
        }
    }

    async fn renew(&self) -> Result<bool, kube::Error> {
        let lease = self.api.get(LEASE_NAME).await?;
        let spec = lease.spec.clone().unwrap_or_default();
        if spec.holder_identity.as_deref() != Some(self.identity.as_str()) {
            return Ok(false);
        }
        let mut renewed = self.spec(spec.lease_transitions.unwrap_or_default());
        renewed.acquire_time = spec.acquire_time;
        match self.replace(lease, renewed).await {
            Ok(_) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Gives the Lease up, so that a successor can begin at once. Only after all work has stopped.
    pub async fn release(&self) {
        let released = async {
            let lease = self.api.get(LEASE_NAME).await?;
            let mut spec = lease.spec.clone().unwrap_or_default();
            if spec.holder_identity.as_deref() == Some(self.identity.as_str()) {
                spec.holder_identity = None;
                spec.lease_duration_seconds = Some(1);
                self.replace(lease, spec).await?;
            }
            Ok::<_, kube::Error>(())
        };
        match tokio::time::timeout(Duration::from_secs(5), released).await {
            Ok(Ok(())) => tracing::info!("leader election: gave the Lease up"),
            Ok(Err(error)) => tracing::warn!(%error, "leader election: the Lease could not be given up"),
            Err(_) => tracing::warn!("leader election: giving the Lease up took too long"),
        }
    }

    fn spec(&self, transitions: i32) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(HOLDS.as_secs()).ok(),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    /// Replaces the Lease that was read; the API server refuses when somebody else was quicker.
    async fn replace(&self, lease: Lease, spec: LeaseSpec) -> Result<Lease, kube::Error> {
        let metadata = ObjectMeta {
            name: Some(LEASE_NAME.to_owned()),
            resource_version: lease.resource_version(),
            ..ObjectMeta::default()
        };
        self.api.replace(LEASE_NAME, &PostParams::default(), &Lease { metadata, spec: Some(spec) }).await
    }
}

/// Whether a write that others compete for was ours.
fn won(result: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}
