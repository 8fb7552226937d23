//! `rollout promote`, `abort`, `pause`, `resume` and `retry`: writes a request, and waits until the operator has followed or refused it.

use std::pin::pin;
use std::time::Duration;

use fairlead_crds::model_route::canary::REFUSED;
use fairlead_rollout::machine::Action;
use futures::StreamExt;
use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use serde::Serialize;
use serde_json::json;

use crate::cli::{self, route_name};
use crate::connect::Session;
use crate::fault::{Call, Fault, Role};
use crate::output;
use crate::render::units::span;
use crate::route::{self, Route};

use super::report::Report;

/// The owner of `status.request`.
const MANAGER: &str = "fairlead-cli";

/// How a request is written, as RBAC names it.
const PATCH: Call<'static> =
    Call { verb: "patch", resource: "modelroutes.fairlead.dev/status", namespace: None, role: Role::Edit };

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
enum Outcome {
    /// It is written, and nobody has waited.
    Sent,
    Followed,
    Refused,
}

/// What is printed for programs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Asked {
    namespace: String,
    route: String,
    action: Action,
    canary: String,
    id: String,
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// Runs it.
///
/// # Errors
/// [`Fault`] where there is nothing to ask, the request cannot be written, or nobody looks at it in time.
pub async fn run(session: &Session, action: Action, arguments: &cli::Ask) -> Result<u8, Fault> {
    let cli::Ask { route, no_wait, timeout, output } = arguments;
    let route = route::get(session, route_name(route)).await?;
    let Some(canary) = &route.spec.canary else { return Err(no_canary(&route.metadata.name, action)) };
    let mut asked = Asked {
        namespace: route.metadata.namespace.clone(),
        route: route.metadata.name.clone(),
        action,
        canary: canary.backend.clone(),
        // The time helps whoever reads the object, the rest makes it another one.
        id: format!("{}-{}", Timestamp::now().strftime("%Y%m%dT%H%M%SZ"), uuid::Uuid::new_v4().simple()),
        outcome: Outcome::Sent,
        message: None,
    };
    write(session, &asked).await?;
    if !no_wait {
        let answered = tokio::time::timeout(*timeout, answer(session, &asked.route, &asked.id)).await;
        let Ok(answered) = answered else { return Err(unanswered(session, &asked, *timeout).await) };
        (asked.outcome, asked.message) = answered?;
    }
    match output {
        Some(format) => output::print(&output::text(*format, &asked)?)?,
        None => say(&asked)?,
    }
    Ok(u8::from(asked.outcome == Outcome::Refused))
}

fn no_canary(route: &str, action: Action) -> Fault {
    let action = word(action);
    Fault::new(format!(
        "{route} has no canary, so there is nothing to {action}; a canary begins with spec.canary"
    ))
}

async fn write(session: &Session, asked: &Asked) -> Result<(), Fault> {
    let patch = json!({
        "apiVersion": "fairlead.dev/v1alpha1",
        "kind": "ModelRoute",
        "metadata": {"name": asked.route},
        "status": {"request": {"id": asked.id, "action": asked.action, "canary": asked.canary}},
    });
    let namespace = asked.namespace.as_str();
    let call = Call { namespace: Some(namespace), ..PATCH };
    // By force: the latest person to ask owns the request, whatever an earlier one wrote it with.
    let parameters = PatchParams::apply(MANAGER).force();
    let written = route::api(session, Some(namespace))
        .patch_status(&asked.route, &parameters, &Patch::Apply(&patch))
        .await;
    written.map(drop).map_err(|error| call.failed(&error))
}

/// Waits for the operator.
async fn answer(session: &Session, name: &str, id: &str) -> Result<(Outcome, Option<String>), Fault> {
    let mut changes = pin!(route::watch(session, name));
    while let Some(change) = changes.next().await {
        let Some(route) = change? else {
            return Err(Fault::new(format!(
                "the ModelRoute {name} was deleted before the operator looked at the request"
            )));
        };
        if let Some(answer) = answered(&route, id)? {
            return Ok(answer);
        }
    }
    Err(Fault::new("the watch ended; see `kubectl fairlead rollout status`"))
}

/// What the operator has made of the request `id`, if anything. Pure.
fn answered(route: &Route, id: &str) -> Result<Option<(Outcome, Option<String>)>, Fault> {
    let rollout = route.status.rollout.as_ref();
    if let Some(rollout) = rollout.filter(|rollout| rollout.handled.as_deref() == Some(id)) {
        let message = rollout.message.clone();
        let refused = message.as_deref().and_then(|message| message.strip_prefix(REFUSED)).map(str::to_owned);
        return Ok(Some(match refused {
            Some(why) => (Outcome::Refused, Some(why)),
            None => (Outcome::Followed, message),
        }));
    }
    let latest = route.status.request.as_ref();
    if let Some(other) = latest.filter(|request| request.id != id) {
        return Err(Fault::new(format!(
            "somebody else asked to {} before the operator had looked at this request; see `kubectl fairlead rollout status {}`",
            other.action.to_lowercase(),
            route.metadata.name
        )));
    }
    Ok(None)
}

/// What is said where nobody has looked at the request in time.
async fn unanswered(session: &Session, asked: &Asked, timeout: Duration) -> Fault {
    let stalled = route::get(session, &asked.route)
        .await
        .ok()
        .and_then(|route| Report::of(&route, Timestamp::now()).stalled);
    let after = span(timeout.as_secs());
    Fault::new(match stalled {
        Some(why) => format!(
            "the request is written, but the operator cannot act on {}: {why}. It will follow the request when that is mended",
            asked.route
        ),
        None => format!(
            "the request is written, but the operator has not looked at it in {after}. Does it run? kubectl -n {} get pods -l app.kubernetes.io/name=fairlead-operator",
            session.system_namespace
        ),
    })
}

fn say(asked: &Asked) -> Result<(), Fault> {
    let words = in_words(asked);
    if asked.outcome == Outcome::Refused {
        eprintln!("{words}");
        return Ok(());
    }
    output::print(&words)
}

fn in_words(asked: &Asked) -> String {
    let Asked { namespace, route, action, outcome, message, .. } = asked;
    let name = format!("{}.fairlead.dev/{route}", route::kind());
    let message = message.as_deref().unwrap_or_default();
    match outcome {
        Outcome::Sent => format!(
            "{name}: asked to {}; see `kubectl fairlead rollout status {route} -n {namespace}`",
            word(*action)
        ),
        Outcome::Followed => format!("{name} {}: {message}", done(*action)),
        Outcome::Refused => format!("error: the operator refused to {} {route}: {message}", word(*action)),
    }
}

fn word(action: Action) -> &'static str {
    match action {
        Action::Promote => "promote",
        Action::Abort => "abort",
        Action::Pause => "pause",
        Action::Resume => "resume",
        Action::Retry => "retry",
    }
}

fn done(action: Action) -> &'static str {
    match action {
        Action::Promote => "promoted",
        Action::Abort => "aborted",
        Action::Pause => "paused",
        Action::Resume => "resumed",
        Action::Retry => "begun again",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documented;

    fn route(handled: &str, message: &str, request: &str) -> Route {
        serde_json::from_value(json!({"metadata": {"name": "chat"}, "status": {
            "rollout": {"phase": "Paused", "handled": handled, "message": message},
            "request": {"id": request, "action": "Abort", "canary": "v2"},
        }}))
        .unwrap()
    }

    #[test]
    fn the_page_shows_what_is_printed() {
        let asked = |action, outcome, message: &str| {
            in_words(&Asked {
                namespace: "shop".to_owned(),
                route: "support-chat".to_owned(),
                action,
                canary: "v2".to_owned(),
                id: "1".to_owned(),
                outcome,
                message: Some(message.to_owned()),
            })
        };
        let paused = "v2 stays at 25 %: a person paused it; ask to resume, promote or abort";
        let shown = asked(Action::Pause, Outcome::Followed, paused);
        documented::check("kubectl fairlead rollout pause support-chat", &shown);
        let nobody = "nobody has paused the rollout: ask to promote or to abort";
        let shown = asked(Action::Resume, Outcome::Refused, nobody);
        documented::check("kubectl fairlead rollout resume support-chat", &shown);
        let none = format!("error: {}", no_canary("search", Action::Promote));
        documented::check("kubectl fairlead rollout promote search", &none);
        // As Kubernetes puts it.
        let said = "modelroutes.fairlead.dev \"support-chat\" is forbidden: User \"ada\" cannot patch resource \
                    \"modelroutes/status\" in API group \"fairlead.dev\" in the namespace \"shop\"";
        let denied = format!("error: {}", Call { namespace: Some("shop"), ..PATCH }.denied(Some(said)));
        documented::check("kubectl fairlead rollout abort support-chat --as ada", &denied);
    }

    #[test]
    fn the_operators_answer_is_told_from_what_it_said_before() {
        let refusal = format!("{REFUSED}nobody has paused the rollout");
        assert_eq!(answered(&route("old", "stays", "mine"), "mine").unwrap(), None);
        assert_eq!(answered(&route("old", &refusal, "mine"), "mine").unwrap(), None, "of an earlier request");
        assert_eq!(
            answered(&route("mine", "v2 stays", "mine"), "mine").unwrap(),
            Some((Outcome::Followed, Some("v2 stays".to_owned())))
        );
        assert_eq!(
            answered(&route("mine", &refusal, "mine"), "mine").unwrap(),
            Some((Outcome::Refused, Some("nobody has paused the rollout".to_owned())))
        );
        let overtaken = answered(&route("old", "stays", "theirs"), "mine").unwrap_err().to_string();
        assert!(overtaken.contains("somebody else asked to abort"), "{overtaken}");
    }
}
