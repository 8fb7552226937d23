//! Which Evaluations to look at again when something that they name has changed.

use fairlead_crds::evaluation::Evaluation;
use fairlead_crds::model_deployment::ModelDeployment;
use fairlead_crds::model_route::ModelRoute;
use kube::ResourceExt;
use kube::runtime::reflector::{ObjectRef, Store};
use tokio::sync::mpsc;

use crate::stores::{Changes, told};

const CAPACITY: usize = 256;

/// What has changed, by namespace and name.
#[derive(Clone, Debug)]
pub enum Changed {
    /// A ModelDeployment.
    Deployment(String, String),
    /// A ModelRoute.
    Route(String, String),
}

/// A channel for changes.
pub fn channel() -> (mpsc::Sender<Changed>, mpsc::Receiver<Changed>) {
    mpsc::channel(CAPACITY)
}

/// Passes ModelDeployments on, and tells of each.
pub fn tell_of_deployments(
    changes: Changes<ModelDeployment>,
    tell: mpsc::Sender<Changed>,
) -> Changes<ModelDeployment> {
    told(changes, tell, |it| Changed::Deployment(it.namespace().unwrap_or_default(), it.name_any()))
}

/// Passes routes on, and tells of each.
pub fn tell_of_routes(changes: Changes<ModelRoute>, tell: mpsc::Sender<Changed>) -> Changes<ModelRoute> {
    told(changes, tell, |it| Changed::Route(it.namespace().unwrap_or_default(), it.name_any()))
}

/// The Evaluations that a change concerns.
pub fn concerned(changed: &Changed, evaluations: &Store<Evaluation>) -> Vec<ObjectRef<Evaluation>> {
    let concerned = evaluations.state_filter(|evaluation| {
        let target = &evaluation.spec.target;
        match changed {
            Changed::Route(namespace, name) => {
                evaluation.metadata.namespace.as_ref() == Some(namespace)
                    && target.route.as_ref() == Some(name)
            }
            Changed::Deployment(namespace, name) => {
                // A route's backends were written down when it was looked at last; a change of the route is told too.
                let asked = evaluation.status.iter().flat_map(|status| &status.current);
                evaluation.metadata.namespace.as_ref() == Some(namespace)
                    && (target.model_deployment.as_ref() == Some(name)
                        || (target.route.is_some()
                            && (waits(evaluation)
                                || asked.into_iter().any(|it| it.model_deployment == *name))))
            }
        }
    });
    concerned.iter().map(|evaluation| ObjectRef::from_obj(&**evaluation)).collect()
}

/// Whether its targets are not written down yet.
fn waits(evaluation: &Evaluation) -> bool {
    evaluation.status.as_ref().is_none_or(|status| status.current.is_empty())
}

/// The Evaluations whose questions are in a ConfigMap.
pub fn with_questions_in(
    namespace: &str,
    config_map: &str,
    evaluations: &Store<Evaluation>,
) -> Vec<ObjectRef<Evaluation>> {
    let concerned = evaluations.state_filter(|evaluation| {
        evaluation.metadata.namespace.as_deref() == Some(namespace)
            && evaluation.spec.questions.config_map_ref.name == config_map
    });
    concerned.iter().map(|evaluation| ObjectRef::from_obj(&**evaluation)).collect()
}
