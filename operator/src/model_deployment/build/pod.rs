//! The engine pod, under the restricted Pod Security Standard, and the parts that the inspection pod shares with it.

use std::collections::BTreeMap;

use fairlead_crds::{HTTP_PORT_NAME, MODEL_DEPLOYMENT_LABEL, REVISION_LABEL};
use fairlead_fetch::SourceUri;
use fairlead_inference_config::InferenceConfig;
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EmptyDirVolumeSource, EnvVar,
    EnvVarSource, HTTPGetAction, KeyToPath, LocalObjectReference, ObjectFieldSelector,
    PersistentVolumeClaimVolumeSource, PodSecurityContext, PodSpec, PodTemplateSpec, Probe,
    ResourceRequirements, SeccompProfile, SecretKeySelector, SecurityContext, TopologySpreadConstraint,
    Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::config_map::{self, CONFIG_KEY};
use super::{INFERENCE, INSTANCE_LABEL, MANAGED_BY_LABEL, NAME_LABEL, selector};
use crate::config::Settings;
use crate::model_deployment::inspection::TOKEN_KEY;
use crate::model_deployment::plan::short_hash;
use crate::model_deployment::validate::{Pod, Resources, ValidatedModelDeployment};

/// Name of the engine's container.
pub const CONTAINER: &str = "engine";
/// Where models lie in the pod.
pub const MODELS_DIR: &str = "/models";
/// A volume that lives as long as the pod.
pub const SCRATCH_DIR: &str = "/tmp";
/// Name of the volume with the engine's settings.
pub const CONFIG_VOLUME: &str = "config";
/// Where the engine's settings lie in the pod.
const CONFIG_DIR: &str = "/etc/fairlead";
/// Where the program that copies a model out of its image is put.
const TOOLS_DIR: &str = "/fairlead/bin";
/// The copying program, in the engine's image and in [`TOOLS_DIR`].
const COPY_TOOL: &str = "fairlead-model-copy";
/// Where the models volume is in the container that copies; the image has its own `/models`.
const COPY_TARGET: &str = "/model-dir";
/// A user without a name or rights in any image.
pub const USER: i64 = 65_532;
/// Port of the OpenAI API.
const PORT: i32 = 8000;

/// The pod template, but for its revision label.
pub fn template(
    validated: &ValidatedModelDeployment,
    config: &InferenceConfig,
    settings: &Settings,
) -> PodTemplateSpec {
    let Pod { labels, annotations, env: _, image_pull_secrets: _, priority_class_name, grace_seconds, image } =
        &validated.pod;
    let mut labels = labels.clone();
    labels.extend([
        (NAME_LABEL.to_owned(), INFERENCE.to_owned()),
        (INSTANCE_LABEL.to_owned(), validated.name.clone()),
        (MANAGED_BY_LABEL.to_owned(), "fairlead-operator".to_owned()),
        (MODEL_DEPLOYMENT_LABEL.to_owned(), validated.name.clone()),
    ]);
    let mut volumes = model_volumes(&validated.source);
    volumes.push(Volume {
        name: CONFIG_VOLUME.to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: format!("{}-config", validated.name),
            items: Some(vec![KeyToPath {
                key: config_map::key(config),
                path: CONFIG_KEY.to_owned(),
                mode: None,
            }]),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    });
    volumes.push(scratch("tmp"));
    volumes.extend(validated.kv_tiers.volume());
    let mut base = base(validated);
    if validated.kv_tiers.needs_group()
        && let Some(context) = &mut base.security_context
    {
        context.fs_group = Some(USER);
        context.fs_group_change_policy = Some("OnRootMismatch".to_owned());
    }
    let spec = PodSpec {
        containers: vec![engine(validated, image, settings)],
        init_containers: copy_containers(&validated.source, image),
        volumes: Some(volumes),
        termination_grace_period_seconds: Some(*grace_seconds),
        priority_class_name: priority_class_name.clone(),
        topology_spread_constraints: Some(spread(validated)),
        ..base
    };
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            annotations: (!annotations.is_empty()).then(|| annotations.clone()),
            ..ObjectMeta::default()
        }),
        spec: Some(spec),
    }
}

/// Hash of all that changes what a pod serves: its template, which names its settings by their content.
pub fn revision(template: &PodTemplateSpec) -> String {
    // Plain data always has a JSON form, with its keys in a fixed order.
    short_hash(&serde_json::to_string(template).unwrap_or_default())
}

/// What every pod of ours has: who it runs as, where, and what it may not do.
pub fn base(validated: &ValidatedModelDeployment) -> PodSpec {
    let placement = &validated.placement;
    let pull_secrets = &validated.pod.image_pull_secrets;
    PodSpec {
        service_account_name: Some(validated.name.clone()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        image_pull_secrets: (!pull_secrets.is_empty())
            .then(|| pull_secrets.iter().map(|name| LocalObjectReference { name: name.clone() }).collect()),
        node_selector: (!placement.node_selector.is_empty()).then(|| placement.node_selector.clone()),
        tolerations: (!placement.tolerations.is_empty()).then(|| placement.tolerations.clone()),
        affinity: placement.affinity.clone(),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        ..PodSpec::default()
    }
}

fn engine(validated: &ValidatedModelDeployment, image: &str, settings: &Settings) -> Container {
    let probe = |path: &str, period, timeout, failures| {
        Some(Probe {
            http_get: Some(HTTPGetAction {
                path: Some(path.to_owned()),
                port: IntOrString::String(HTTP_PORT_NAME.to_owned()),
                ..HTTPGetAction::default()
            }),
            period_seconds: Some(period),
            timeout_seconds: Some(timeout),
            failure_threshold: Some(failures),
            ..Probe::default()
        })
    };
    Container {
        name: CONTAINER.to_owned(),
        image: Some(image.to_owned()),
        args: Some(vec!["serve".to_owned(), "--config".to_owned(), format!("{CONFIG_DIR}/{CONFIG_KEY}")]),
        env: environment(validated, settings),
        ports: Some(vec![ContainerPort {
            name: Some(HTTP_PORT_NAME.to_owned()),
            container_port: PORT,
            protocol: Some("TCP".to_owned()),
            ..ContainerPort::default()
        }]),
        resources: Some(resources(
            &validated.resources,
            validated.kv_tiers.container_memory(&validated.resources),
        )),
        readiness_probe: probe("/readyz", 2, 3, 2),
        // Answered from the first moment, also during a long fetch, so that no start-up probe is needed.
        liveness_probe: probe("/healthz", 10, 5, 6),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        security_context: Some(restricted()),
        volume_mounts: Some(
            [
                mount(CONFIG_VOLUME, CONFIG_DIR, true),
                mount("models", MODELS_DIR, !matches!(validated.source, SourceUri::Hub { .. })),
                mount("tmp", SCRATCH_DIR, false),
            ]
            .into_iter()
            .chain(validated.kv_tiers.mount())
            .collect(),
        ),
        ..Container::default()
    }
}

/// Whether the pod brings files from a hub: the model, an adapter or a draft model.
pub fn fetches(validated: &ValidatedModelDeployment) -> bool {
    let mut sources =
        std::iter::once(&validated.source).chain(validated.adapters.values()).chain(validated.draft());
    sources.any(|source| matches!(source, SourceUri::Hub { .. }))
}

fn environment(validated: &ValidatedModelDeployment, settings: &Settings) -> Option<Vec<EnvVar>> {
    // Through the label, since the revision is a hash of this template.
    let mut env = vec![EnvVar {
        name: "FAIRLEAD_REVISION".to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: Some("v1".to_owned()),
                field_path: format!("metadata.labels['{REVISION_LABEL}']"),
            }),
            ..EnvVarSource::default()
        }),
    }];
    if fetches(validated) {
        env.push(EnvVar {
            name: "HF_ENDPOINT".to_owned(),
            value: Some(settings.hf_endpoint.clone()),
            value_from: None,
        });
        // Of an image it is a pull secret, which has no token in it.
        let secret =
            validated.secret.as_ref().filter(|_| !matches!(validated.source, SourceUri::Image { .. }));
        env.extend(secret.map(|secret| EnvVar {
            name: "HF_TOKEN".to_owned(),
            value: None,
            value_from: Some(EnvVarSource {
                secret_key_ref: Some(SecretKeySelector {
                    name: secret.clone(),
                    key: TOKEN_KEY.to_owned(),
                    optional: None,
                }),
                ..EnvVarSource::default()
            }),
        }));
    }
    // The user's own win.
    env.retain(|ours| !validated.pod.env.iter().any(|theirs| theirs.name == ours.name));
    env.extend(validated.pod.env.iter().cloned());
    (!env.is_empty()).then_some(env)
}

fn resources(resources: &Resources, memory: Quantity) -> ResourceRequirements {
    let Resources { gpus, gpu_resource, gpu_memory_bytes: _, cpu, memory: _, memory_bytes: _ } = resources;
    // No limit on CPU: an engine that is throttled in the middle of a step keeps everybody waiting.
    let mut limits = BTreeMap::from([("memory".to_owned(), memory)]);
    if *gpus > 0 {
        limits.insert(gpu_resource.clone(), Quantity(gpus.to_string()));
    }
    let mut requests = limits.clone();
    requests.insert("cpu".to_owned(), cpu.clone());
    ResourceRequirements { limits: Some(limits), requests: Some(requests), claims: None }
}

/// The spec's own constraints, or a mild wish to spread over nodes.
fn spread(validated: &ValidatedModelDeployment) -> Vec<TopologySpreadConstraint> {
    if !validated.placement.topology_spread_constraints.is_empty() {
        return validated
            .placement
            .topology_spread_constraints
            .iter()
            .map(|constraint| {
                let label_selector = constraint.label_selector.clone().or_else(|| Some(selector(validated)));
                TopologySpreadConstraint { label_selector, ..constraint.clone() }
            })
            .collect();
    }
    vec![TopologySpreadConstraint {
        max_skew: 1,
        topology_key: "kubernetes.io/hostname".to_owned(),
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        label_selector: Some(selector(validated)),
        ..TopologySpreadConstraint::default()
    }]
}

/// The volume with the model, and for an image the one with the program that copies it.
pub fn model_volumes(source: &SourceUri) -> Vec<Volume> {
    match source {
        SourceUri::Hub { .. } | SourceUri::Folder { .. } => vec![scratch("models")],
        SourceUri::Claim { claim, path: _ } => vec![Volume {
            name: "models".to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.clone(),
                // Read-only at the mount: a claim that is attached read-only can't be shared with a writer on the node.
                read_only: None,
            }),
            ..Volume::default()
        }],
        SourceUri::Image { .. } => vec![scratch("models"), scratch("tools")],
    }
}

/// For an image, two init containers: the first brings our static copying program, the second runs it in the model's
/// image, which need not even have a shell.
pub fn copy_containers(source: &SourceUri, engine_image: &str) -> Option<Vec<Container>> {
    let SourceUri::Image { image, folder } = source else { return None };
    let small = ResourceRequirements {
        requests: Some(BTreeMap::from([
            ("cpu".to_owned(), Quantity("100m".to_owned())),
            ("memory".to_owned(), Quantity("64Mi".to_owned())),
        ])),
        limits: Some(BTreeMap::from([("memory".to_owned(), Quantity("256Mi".to_owned()))])),
        claims: None,
    };
    let container = |name: &str, image: &str, command: Vec<String>, mounts| Container {
        name: name.to_owned(),
        image: Some(image.to_owned()),
        command: Some(command),
        resources: Some(small.clone()),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        security_context: Some(restricted()),
        volume_mounts: Some(mounts),
        ..Container::default()
    };
    let tool = format!("{TOOLS_DIR}/{COPY_TOOL}");
    Some(vec![
        container(
            "copy-tool",
            engine_image,
            vec!["cp".to_owned(), format!("/usr/local/bin/{COPY_TOOL}"), format!("{TOOLS_DIR}/")],
            vec![mount("tools", TOOLS_DIR, false)],
        ),
        container(
            "copy-model",
            image,
            vec![tool, folder.clone(), COPY_TARGET.to_owned()],
            vec![mount("tools", TOOLS_DIR, true), mount("models", COPY_TARGET, false)],
        ),
    ])
}

/// Where the model lies in a pod that has it mounted or copied.
pub fn model_uri(source: &SourceUri) -> String {
    match source {
        SourceUri::Claim { path, .. } if !path.is_empty() => format!("file://{MODELS_DIR}/{path}"),
        _ => format!("file://{MODELS_DIR}"),
    }
}

/// What the restricted Pod Security Standard asks of a container.
pub fn restricted() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
        ..SecurityContext::default()
    }
}

/// A volume that lives as long as the pod.
pub fn scratch(name: &str) -> Volume {
    Volume { name: name.to_owned(), empty_dir: Some(EmptyDirVolumeSource::default()), ..Volume::default() }
}

/// A mount of a volume.
pub fn mount(volume: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: volume.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..VolumeMount::default()
    }
}
