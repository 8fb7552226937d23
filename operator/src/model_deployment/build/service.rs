//! The Service: its EndpointSlices, which carry its labels, are where the gateway finds the pods.

use fairlead_crds::HTTP_PORT_NAME;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{metadata, selector};
use crate::model_deployment::validate::ValidatedModelDeployment;

/// The Service.
pub fn service(validated: &ValidatedModelDeployment) -> Service {
    Service {
        metadata: metadata(validated, validated.name.clone()),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            selector: selector(validated).match_labels,
            ports: Some(vec![ServicePort {
                name: Some(HTTP_PORT_NAME.to_owned()),
                port: 80,
                target_port: Some(IntOrString::String(HTTP_PORT_NAME.to_owned())),
                protocol: Some("TCP".to_owned()),
                app_protocol: Some("http".to_owned()),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}
