//! Server-side apply that writes nothing when nothing would change, so that a settled cluster sees no write at all.
//!
//! Whether it would is read from the live object: the fields that our manager owns must be exactly the wanted ones
//! (so a field that is no longer wanted is noticed too), with the wanted values (so drift is noticed). Fields of other
//! managers are left alone.

mod owned_fields;

use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PropagationPolicy};
use kube::core::object::HasStatus;
use kube::{Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::metrics::{Kind, Metrics};

/// What is somebody else's is not watched; look again whether it is gone.
const FOREIGN: Duration = Duration::from_secs(30);

/// So often a status is tried to be written that somebody else's writes to the same object get in the way of.
const ATTEMPTS: usize = 3;

/// Writes the children and the status of one kind's objects.
#[derive(Clone)]
pub struct Applier {
    client: Client,
    manager: &'static str,
    kind: Kind,
    metrics: Metrics,
}

impl Applier {
    /// A writer with the field manager of one controller.
    pub fn new(client: Client, manager: &'static str, kind: Kind, metrics: Metrics) -> Self {
        Self { client, manager, kind, metrics }
    }

    /// Brings a child to its wanted state and returns it as it then is. `live` is what the cache has.
    ///
    /// # Errors
    /// [`Error::Invalid`] when an object of that name exists that is not the owner's; [`Error::Kube`].
    pub async fn apply<K>(&self, live: Option<&K>, desired: &K) -> Result<K, Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Serialize
            + DeserializeOwned
            + Clone
            + Debug,
    {
        let (name, namespace) = (desired.name_any(), desired.namespace().unwrap_or_default());
        let kind = K::kind(&()).into_owned();
        let api = Api::<K>::namespaced(self.client.clone(), &namespace);
        // The cache holds only what carries our label; before a name is used for the first time, look who has it.
        let found = match live {
            Some(live) => Some(live.clone()),
            None => api.get_opt(&name).await.map_err(Error::kube(format!("read {kind} {name}")))?,
        };
        if let Some(found) = &found {
            let owner = desired.owner_references().first().map(|owner| owner.uid.as_str());
            let ours = found.owner_references().iter().any(|it| Some(it.uid.as_str()) == owner);
            if !ours {
                return Err(Error::Invalid {
                    reason: fairlead_crds::condition::stalled::INVALID_SPEC,
                    message: format!(
                        "metadata.name: a {kind} named {name} exists already and is not this object's; delete it, or choose another name"
                    ),
                    retry: Some(FOREIGN),
                });
            }
            if owned_fields::settled(found, desired, self.manager)? {
                return Ok(found.clone());
            }
        }
        let applied = api
            .patch(&name, &PatchParams::apply(self.manager).force(), &Patch::Apply(desired))
            .await
            .map_err(Error::kube(format!("apply {kind} {name}")))?;
        self.metrics.wrote(self.kind);
        tracing::info!(kind, namespace, name, "applied");
        Ok(applied)
    }

    /// Keeps `spec.replicas` of a Deployment as it is when `desired` does not name it any more. Nobody else may own the field
    /// yet, and a field that its last owner lets go of falls back to its default: an autoscaler would find one replica left.
    ///
    /// # Errors
    /// [`Error::Kube`].
    pub async fn hand_over_replicas(
        &self,
        live: Option<&Deployment>,
        desired: &Deployment,
    ) -> Result<(), Error> {
        let named = |it: &Deployment| it.spec.as_ref().and_then(|spec| spec.replicas);
        let Some((live, replicas)) = live.and_then(|live| Some((live, named(live)?))) else { return Ok(()) };
        if named(desired).is_some() || !owned_fields::owns(live, self.manager, &["spec", "replicas"]) {
            return Ok(());
        }
        let (name, namespace) = (live.name_any(), live.namespace().unwrap_or_default());
        let body = serde_json::json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": name, "uid": live.uid()}, "spec": {"replicas": replicas},
        });
        let manager = format!("{}-replicas", self.manager);
        Api::<Deployment>::namespaced(self.client.clone(), &namespace)
            .patch(&name, &PatchParams::apply(&manager).force(), &Patch::Apply(&body))
            .await
            .map_err(Error::kube(format!("hand over the replicas of Deployment {name}")))?;
        self.metrics.wrote(self.kind);
        Ok(())
    }

    /// Writes the status of an object. The caller has made sure that it differs.
    ///
    /// A status is a memory too: where a canary is, which runs have ended. What was decided on an old one must not be written over
    /// what was decided since, by this process before its watch had caught up, or by the next leader. So it is written only as long as
    /// the object is the one that was decided on. Whatever else is written to it meanwhile (a label, an annotation) is nobody's concern
    /// here, and delays nothing.
    ///
    /// # Errors
    /// [`Error::Outdated`] when the spec or the status has changed, or the object has gone; [`Error::Kube`].
    pub async fn status<K>(&self, object: &K, status: &K::Status) -> Result<(), Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + HasStatus<Status: Serialize + PartialEq + Sync>
            + Serialize
            + DeserializeOwned
            + Clone
            + Debug,
    {
        let name = object.name_any();
        let api = Api::<K>::namespaced(self.client.clone(), &object.namespace().unwrap_or_default());
        let mut version = object.resource_version();
        for _ in 0..ATTEMPTS {
            let body = serde_json::json!({
                "apiVersion": K::api_version(&()),
                "kind": K::kind(&()),
                // With the uid, the status of an object that was deleted and made anew is not written over.
                "metadata": {"name": name, "uid": object.uid(), "resourceVersion": version},
                "status": status,
            });
            match api
                .patch_status(&name, &PatchParams::apply(self.manager).force(), &Patch::Apply(&body))
                .await
            {
                Ok(_) => {
                    self.metrics.wrote(self.kind);
                    return Ok(());
                }
                Err(kube::Error::Api(refusal)) if matches!(refusal.code, 404 | 409) => {}
                Err(error) => return Err(Error::kube(format!("write the status of {name}"))(error)),
            }
            let live = api.get_opt(&name).await.map_err(Error::kube(format!("read {name}")))?;
            let unchanged = |live: &K| {
                (live.meta().uid.as_ref(), live.meta().generation, live.status())
                    == (object.meta().uid.as_ref(), object.meta().generation, object.status())
            };
            let Some(live) = live.filter(unchanged) else { break };
            version = live.resource_version();
        }
        Err(Error::Outdated)
    }

    /// Deletes a child and what it owns; one that is gone already is fine.
    ///
    /// # Errors
    /// [`Error::Kube`].
    pub async fn delete<K>(&self, child: &K) -> Result<(), Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + DeserializeOwned + Clone + Debug,
    {
        let name = child.name_any();
        let api = Api::<K>::namespaced(self.client.clone(), &child.namespace().unwrap_or_default());
        let how = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            preconditions: Some(kube::api::Preconditions { uid: child.uid(), resource_version: None }),
            ..DeleteParams::default()
        };
        match api.delete(&name, &how).await {
            Ok(_) => {
                self.metrics.wrote(self.kind);
                Ok(())
            }
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => Err(Error::kube(format!("delete {} {name}", K::kind(&())))(error)),
        }
    }
}
