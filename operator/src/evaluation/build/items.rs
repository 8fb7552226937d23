//! The ConfigMap that a backend's run writes its answers into. The operator makes it empty and never looks into it.

use k8s_openapi::api::core::v1::ConfigMap;

use super::metadata;
use crate::evaluation::validate::ValidatedEvaluation;

/// Its name.
pub fn name(validated: &ValidatedEvaluation, backend: &str) -> String {
    format!("{}-items-{backend}", validated.name)
}

/// The ConfigMap, without its contents.
pub fn config_map(validated: &ValidatedEvaluation, backend: &str) -> ConfigMap {
    ConfigMap { metadata: metadata(validated, name(validated, backend)), ..ConfigMap::default() }
}
