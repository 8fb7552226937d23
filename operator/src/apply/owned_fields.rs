//! Reads `metadata.managedFields` to tell whether applying an object again would change anything. Pure.

use kube::Resource;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::Error;
use crate::quantity;

/// Whether `manager` owns exactly the fields of `desired` in `live`, with the same values.
///
/// # Errors
/// [`Error::Transient`] when an object can't be made into JSON, which no Kubernetes type does.
pub fn settled<K: Resource + Serialize>(live: &K, desired: &K, manager: &str) -> Result<bool, Error> {
    let Some(fields) = applied_by(live, manager) else { return Ok(false) };
    let json = |object: &K| {
        serde_json::to_value(object).map_err(|error| Error::Transient(format!("to JSON: {error}")))
    };
    let mut desired = json(desired)?;
    // What names an object is not among its managed fields.
    if let Some(object) = desired.as_object_mut() {
        object.remove("apiVersion");
        object.remove("kind");
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("name");
            metadata.remove("namespace");
        }
    }
    Ok(same(fields, &desired, &json(live)?))
}

/// Whether `manager` has applied the field at `path` of `live`.
pub fn owns(live: &impl Resource, manager: &str, path: &[&str]) -> bool {
    let mut fields = applied_by(live, manager);
    for name in path {
        fields = fields.and_then(|fields| fields.get(&format!("f:{name}"))).and_then(Value::as_object);
    }
    fields.is_some()
}

/// The fields that `manager` has applied.
fn applied_by<'a>(live: &'a impl Resource, manager: &str) -> Option<&'a Map<String, Value>> {
    let entry = live.meta().managed_fields.iter().flatten().find(|entry| {
        entry.manager.as_deref() == Some(manager)
            && entry.operation.as_deref() == Some("Apply")
            && entry.subresource.as_deref().unwrap_or_default().is_empty()
    });
    entry?.fields_v1.as_ref()?.0.as_object()
}

fn same(fields: &Map<String, Value>, desired: &Value, live: &Value) -> bool {
    let below: Vec<(&str, &Map<String, Value>)> = fields
        .iter()
        .filter(|(key, _)| *key != ".")
        .filter_map(|(key, value)| value.as_object().map(|value| (key.as_str(), value)))
        .collect();
    if below.is_empty() {
        return covered(desired, live);
    }
    match desired {
        Value::Object(wanted) => {
            // An API server leaves out what is empty, whether or not it says that we own it.
            let dropped = |name: &str, value: &Value| is_empty(value) && live.get(name).is_none();
            let below: Vec<_> = below
                .into_iter()
                .filter(|(key, _)| {
                    let name = key.strip_prefix("f:").unwrap_or_default();
                    wanted.get(name).is_none_or(|value| !dropped(name, value))
                })
                .collect();
            let wanted: Vec<_> = wanted
                .iter()
                .filter(|(name, value)| !value.is_null() && !dropped(name, value))
                .collect();
            wanted.len() == below.len()
                && wanted.iter().all(|(name, value)| {
                    let owned = below.iter().find(|(key, _)| key.strip_prefix("f:") == Some(name.as_str()));
                    matches!((owned, live.get(name.as_str())), (Some((_, owned)), Some(live)) if same(owned, value, live))
                })
        }
        Value::Array(wanted) => {
            wanted.len() == below.len()
                && below.iter().all(|(key, owned)| {
                    let Some(key) = key.strip_prefix("k:").and_then(|key| serde_json::from_str::<Value>(key).ok()) else {
                        return false;
                    };
                    let element = |list: &Value| {
                        list.as_array().and_then(|list| list.iter().find(|it| covered(&key, it)).cloned())
                    };
                    matches!((element(desired), element(live)), (Some(desired), Some(live)) if same(owned, &desired, &live))
                })
        }
        _ => false,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        Value::Null => true,
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Whether all of `part` is in `whole`; the API server may have filled in defaults beside it.
fn covered(part: &Value, whole: &Value) -> bool {
    match (part, whole) {
        (Value::Object(part), Value::Object(whole)) => part
            .iter()
            .filter(|(_, value)| !value.is_null())
            .all(|(name, value)| whole.get(name).map_or(is_empty(value), |whole| covered(value, whole))),
        (Value::Array(part), Value::Array(whole)) => {
            part.len() == whole.len() && part.iter().zip(whole).all(|(part, whole)| covered(part, whole))
        }
        (Value::String(part), Value::String(whole)) => part == whole || quantity::same(part, whole),
        (part, whole) => part == whole,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::Deployment;
    use serde_json::json;

    use super::*;

    const MANAGER: &str = "fairlead-operator/test";

    fn desired() -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "a", "namespace": "b", "labels": {"x": "y"}},
            "spec": {
                "selector": {"matchLabels": {"x": "y"}},
                "template": {"spec": {"containers": [{
                    "name": "engine", "image": "i", "args": ["serve"],
                    "ports": [{"containerPort": 8000, "protocol": "TCP", "name": "http"}],
                    "resources": {"requests": {"cpu": "1000m"}},
                }]}},
            },
        })
    }

    fn live() -> Value {
        let mut live = desired();
        live["metadata"]["uid"] = json!("u");
        live["spec"]["replicas"] = json!(3);
        let container = &mut live["spec"]["template"]["spec"]["containers"][0];
        container["imagePullPolicy"] = json!("IfNotPresent");
        container["resources"]["requests"]["cpu"] = json!("1");
        live["metadata"]["managedFields"] = json!([
            {"manager": "kube-controller-manager", "operation": "Update", "subresource": "status", "fieldsV1": {}},
            {"manager": MANAGER, "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": {
                "f:metadata": {"f:labels": {"f:x": {}}},
                "f:spec": {
                    "f:selector": {},
                    "f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"engine\"}": {
                        ".": {}, "f:name": {}, "f:image": {}, "f:args": {},
                        "f:ports": {"k:{\"containerPort\":8000,\"protocol\":\"TCP\"}": {
                            ".": {}, "f:containerPort": {}, "f:name": {}, "f:protocol": {}}},
                        "f:resources": {"f:requests": {"f:cpu": {}}},
                    }}}},
                },
            }},
        ]);
        live
    }

    fn check(live: Value, desired: Value) -> bool {
        let parse = |value| serde_json::from_value::<Deployment>(value).unwrap();
        settled(&parse(live), &parse(desired), MANAGER).unwrap()
    }

    #[test]
    fn defaults_and_other_managers_fields_need_no_write() {
        assert!(check(live(), desired()));
    }

    #[test]
    fn a_changed_added_or_removed_field_needs_one() {
        let mut changed = desired();
        changed["spec"]["template"]["spec"]["containers"][0]["image"] = json!("j");
        assert!(!check(live(), changed));
        let mut added = desired();
        added["spec"]["template"]["spec"]["nodeSelector"] = json!({"gpu": "yes"});
        assert!(!check(live(), added));
        let mut removed = desired();
        removed["spec"]["template"]["spec"]["containers"][0].as_object_mut().unwrap().remove("args");
        assert!(!check(live(), removed));
        let mut label = desired();
        label["metadata"]["labels"] = json!({"x": "y", "z": "1"});
        assert!(!check(live(), label));
    }

    #[test]
    fn what_the_api_server_leaves_out_because_it_is_empty_needs_none() {
        let mut desired = desired();
        desired["spec"]["template"]["spec"]["containers"][0]["env"] = json!([{"name": "A", "value": ""}]);
        desired["spec"]["template"]["spec"]["tolerations"] = json!([{"key": "", "operator": "Exists"}]);
        let mut live = live();
        live["spec"]["template"]["spec"]["containers"][0]["env"] = json!([{"name": "A"}]);
        live["spec"]["template"]["spec"]["tolerations"] = json!([{"operator": "Exists"}]);
        let template = "/metadata/managedFields/1/fieldsV1/f:spec/f:template/f:spec";
        let container = "f:containers/k:{\"name\":\"engine\"}".replace("f:containers/", "");
        live.pointer_mut(template).unwrap()["f:tolerations"] = json!({});
        for owned in [json!({".": {}, "f:name": {}}), json!({".": {}, "f:name": {}, "f:value": {}})] {
            live.pointer_mut(template).unwrap()["f:containers"][&container]["f:env"] =
                json!({"k:{\"name\":\"A\"}": owned});
            assert!(check(live.clone(), desired.clone()), "{owned}");
        }
        desired["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"] = json!("1");
        assert!(!check(live, desired));
    }

    #[test]
    fn drift_needs_a_write() {
        let mut drifted = live();
        drifted["spec"]["template"]["spec"]["containers"][0]["args"] = json!(["serve", "--debug"]);
        assert!(!check(drifted, desired()));
    }

    #[test]
    fn an_object_that_we_never_applied_needs_a_write() {
        let mut foreign = live();
        foreign["metadata"]["managedFields"] = json!([]);
        assert!(!check(foreign, desired()));
    }
}
