//! Routes from a folder of YAML files, for a gateway that runs without Kubernetes.
//!
//! All `*.yaml` and `*.yml` files of the folder, several documents in each. Wrong files stop the start; later, an edit
//! that is wrong is logged and what was in force stays in force.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fairlead_crds::model_deployment::ModelDeployment;
use fairlead_crds::model_route::cost::Cost;
use fairlead_crds::model_route::provider::Provider;
use fairlead_crds::model_route::rules::check;
use fairlead_crds::model_route::{Backend, ModelRoute};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::endpoint::Endpoint;
use crate::metrics::Metrics;
use crate::provider::credentials::Credentials;
use crate::routing::Routing;
use crate::snapshot::{Objects, Origin};
use crate::sources::credentials;

/// How often the files are looked at. An edit must look the same twice in a row, because editors write in steps.
const POLL: Duration = Duration::from_millis(200);

/// A folder of manifests that is being followed.
#[derive(Debug)]
pub struct Manifests {
    dir: PathBuf,
    routing: Arc<Routing>,
    metrics: Arc<Metrics>,
    in_force: Files,
    objects: Objects,
}

/// Names and contents of the files, by name.
type Files = Vec<(String, String)>;

/// A manifest that cannot be used: where, and why.
#[derive(Debug, PartialEq, Eq)]
pub struct ManifestError {
    /// Path of the file or folder.
    pub file: String,
    /// Which document of the file, from 1.
    pub document: Option<usize>,
    /// The field and the remedy.
    pub problem: String,
}

impl std::error::Error for ManifestError {}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(document) = self.document {
            write!(f, ", document {document}")?;
        }
        write!(f, ": {}", self.problem)
    }
}

impl Manifests {
    /// Reads a folder and puts its routes in force.
    ///
    /// # Errors
    /// When a manifest is wrong or the folder cannot be read.
    pub fn load(dir: &Path, routing: Arc<Routing>, metrics: Arc<Metrics>) -> Result<Self, ManifestError> {
        let files = read(dir)?;
        let mut objects = parse(&files)?;
        objects.credentials = credentials::by_hand(&objects.routes);
        if objects.routes.is_empty() {
            tracing::warn!(dir = %dir.display(), "there is no ModelRoute in this folder yet");
        }
        routing.publish(&objects);
        Ok(Self { dir: dir.to_owned(), routing, metrics, in_force: files, objects })
    }

    /// A key or a certificate in a file may change without the manifests.
    fn reread_credentials(&mut self) {
        let credentials = credentials::by_hand(&self.objects.routes);
        if credentials != self.objects.credentials {
            self.objects.credentials = credentials;
            self.routing.publish(&self.objects);
            tracing::info!("keys or certificates of providers have changed");
        }
    }

    /// Follows edits until told to stop.
    pub async fn follow(mut self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(POLL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut seen: Option<Result<Files, ManifestError>> = None;
        let mut refused: Option<ManifestError> = None;
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = stop.cancelled() => return,
            }
            let dir = self.dir.clone();
            let Ok(now) = tokio::task::spawn_blocking(move || read(&dir)).await else { continue };
            if seen.as_ref() != Some(&now) {
                seen = Some(now);
                continue;
            }
            let outcome = match now {
                Ok(files) if files == self.in_force => {
                    self.reread_credentials();
                    Ok(None)
                }
                Ok(files) => parse(&files).map(|mut objects| {
                    objects.credentials = credentials::by_hand(&objects.routes);
                    Some((files, objects))
                }),
                Err(error) => Err(error),
            };
            match outcome {
                Ok(edit) => {
                    if let Some((files, objects)) = edit {
                        self.routing.publish(&objects);
                        (self.in_force, self.objects) = (files, objects);
                        tracing::info!("the manifests were edited; the edit is in force");
                    }
                    if refused.take().is_some() {
                        self.metrics.source_failing(false);
                    }
                }
                Err(error) if refused.as_ref() == Some(&error) => {}
                Err(error) => {
                    self.metrics.source_error();
                    self.metrics.source_failing(true);
                    tracing::error!(%error, "the manifests were edited and are wrong; what was in force stays in force");
                    refused = Some(error);
                }
            }
        }
    }
}

/// All manifests of a folder. Hidden files, and a mounted ConfigMap's hidden folders, are left out.
fn read(dir: &Path) -> Result<Files, ManifestError> {
    let failed = |path: &Path, error: std::io::Error| ManifestError {
        file: path.display().to_string(),
        document: None,
        problem: format!("cannot be read: {error}; --manifests must name a folder of YAML files"),
    };
    let mut files = Files::new();
    for entry in std::fs::read_dir(dir).map_err(|error| failed(dir, error))? {
        let path = entry.map_err(|error| failed(dir, error))?.path();
        let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        let yaml = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        if hidden || !yaml {
            continue;
        }
        let text = std::fs::read_to_string(&path).map_err(|error| failed(&path, error))?;
        files.push((path.display().to_string(), text));
    }
    files.sort();
    Ok(files)
}

/// Reads the objects in these files. Strict: an unknown kind or field is an error.
fn parse(files: &[(String, String)]) -> Result<Objects, ManifestError> {
    let mut objects = Objects {
        origin: Origin::Manifests,
        routes: vec![],
        deployments: vec![],
        slices: vec![],
        revisions: std::collections::HashMap::new(),
        credentials: Credentials::default(),
        provider_hosts: None,
    };
    for (file, text) in files {
        for (index, document) in documents(text).into_iter().enumerate() {
            document_into(&document, &mut objects).map_err(|problem| ManifestError {
                file: file.clone(),
                document: Some(index + 1),
                problem,
            })?;
        }
    }
    let mut names = std::collections::HashMap::new();
    for route in &objects.routes {
        let id = (route.metadata.namespace.clone(), route.metadata.name.clone());
        if names.insert(id, ()).is_some() {
            let name = route.metadata.name.as_deref().unwrap_or_default();
            let problem = format!("metadata.name: there are two ModelRoutes {name:?}; rename or remove one");
            return Err(ManifestError { file: "manifests".to_owned(), document: None, problem });
        }
    }
    Ok(objects)
}

/// The documents of a file, each behind as many empty lines as stood before it, so that line numbers are the file's.
fn documents(text: &str) -> Vec<String> {
    let mut documents = Vec::new();
    let mut current = String::new();
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let marker = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.trim_start().len() < rest.len() || rest.is_empty());
        if marker {
            documents.push(std::mem::replace(&mut current, "\n".repeat(number)));
        }
        current.push_str(line);
    }
    documents.push(current);
    let empty = |document: &String| {
        let mut lines = document.lines().map(str::trim);
        lines.all(|line| line.is_empty() || line == "---" || line.starts_with('#'))
    };
    documents.retain(|document| !empty(document));
    documents
}

fn document_into(document: &str, objects: &mut Objects) -> Result<(), String> {
    let value: Value =
        serde_saphyr::from_str(document).map_err(|error| format!("is not valid YAML: {error}"))?;
    let field = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
    let (version, kind) = (field("apiVersion"), field("kind"));
    let ours = format!("{}/{}", fairlead_crds::GROUP, fairlead_crds::VERSION);
    if version != ours {
        return Err(format!("apiVersion: is {version:?}; write {ours}"));
    }
    match kind {
        "ModelRoute" => {
            let route: ModelRoute = typed(value)?;
            check(&route)?;
            objects.routes.push(Arc::new(route));
        }
        "ModelDeployment" => objects.deployments.push(Arc::new(typed::<ModelDeployment>(value)?)),
        _ => return Err(format!("kind: is {kind:?}; write ModelRoute or ModelDeployment")),
    }
    Ok(())
}

/// The types pass over fields that they do not know, because in a cluster the API server checks those and one object with
/// a newer field must not stop a watch. Here nobody else would tell of a misspelt one.
fn typed<K: DeserializeOwned>(value: Value) -> Result<K, String> {
    let mut unknown = None;
    let mut track = serde_path_to_error::Track::new();
    let object = serde_ignored::deserialize(
        serde_path_to_error::Deserializer::new(value, &mut track),
        |path: serde_ignored::Path<'_>| {
            let path = field_path(&path.to_string());
            // The derived types leave what names the kind to others.
            if path != "apiVersion" && path != "kind" {
                unknown.get_or_insert(path);
            }
        },
    );
    let object = object.map_err(|error| format!("{}: {error}", track.path()))?;
    match unknown {
        Some(path) => Err(format!("{path}: there is no such field; correct or remove it")),
        None => Ok(object),
    }
}

/// `spec.backends.0.?.name` as people write it: `spec.backends[0].name`.
fn field_path(path: &str) -> String {
    let mut written = String::new();
    for part in path.split('.').filter(|part| *part != "?") {
        if !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()) {
            written.push_str(&format!("[{part}]"));
        } else {
            written.push_str(if written.is_empty() { "" } else { "." });
            written.push_str(part);
        }
    }
    written
}

/// Checks a provider that is named by hand.
fn check_provider(backend: &Backend, provider: &Provider) -> Result<(), String> {
    if !backend.endpoints.is_empty() {
        return Err("endpoints: a provider is reached at its url; leave them out".to_owned());
    }
    Endpoint::of_provider(&provider.url).map_err(|problem| format!("provider.url: {problem}"))?;
    if let Some((field, kind, name)) = provider.in_cluster() {
        return Err(format!(
            "provider.{field}: there is no {kind} {name} without Kubernetes; use apiKeyFile or apiKeyEnv, and caFile"
        ));
    }
    if provider.api_key_file.is_some() && provider.api_key_env.is_some() {
        return Err("provider.apiKeyEnv: there is an apiKeyFile, too; leave one of them out".to_owned());
    }
    Ok(())
}

/// What the API server would check in a cluster, as far as this gateway depends on it.
fn check(route: &ModelRoute) -> Result<(), String> {
    if route.metadata.name.as_deref().unwrap_or_default().is_empty() {
        return Err("metadata.name: missing; give the route a name".to_owned());
    }
    if route.spec.backends.is_empty() {
        return Err("spec.backends: empty; name at least one backend".to_owned());
    }
    for (index, backend) in route.spec.backends.iter().enumerate() {
        let at = format!("spec.backends[{index}]");
        if route.spec.backends[..index].iter().any(|other| other.name == backend.name) {
            return Err(format!(
                "{at}.name: {:?} appears twice; give each backend its own name",
                backend.name
            ));
        }
        if let Some(provider) = &backend.provider {
            check_provider(backend, provider).map_err(|problem| format!("{at}.{problem}"))?;
            continue;
        }
        if backend.endpoints.is_empty() {
            let remedy = "without Kubernetes a backend lists addresses, such as [\"http://127.0.0.1:8001\"]";
            return Err(format!("{at}.endpoints: missing; {remedy}"));
        }
        for (place, base) in backend.endpoints.iter().enumerate() {
            Endpoint::parse(base).map_err(|problem| format!("{at}.endpoints[{place}]: {problem}"))?;
        }
    }
    if let Some(policy) = &route.spec.endpoint_policy {
        policy.check()?;
    }
    for (index, backend) in route.spec.backends.iter().enumerate() {
        if let Some(Err(problem)) = backend.cost_per_million_tokens.as_deref().map(str::parse::<Cost>) {
            return Err(format!("spec.backends[{index}].costPerMillionTokens: {problem}"));
        }
    }
    if let Some(problem) = check::problems(&route.spec).into_iter().next() {
        return Err(problem.text);
    }
    if let Some(problem) = route.spec.stickiness.as_ref().and_then(check::stickiness_problem) {
        return Err(problem);
    }
    if route.spec.canary.is_some() {
        return Err("spec.canary: the operator moves canaries, and there is none without Kubernetes; give the backends weights"
            .to_owned());
    }
    if route.weights().iter().all(|(_, weight)| *weight == 0) {
        return Err(
            "spec.backends: the weights sum to zero; give at least one backend a weight above 0".to_owned()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_one(text: &str) -> Result<Objects, String> {
        parse(&[("routes.yaml".to_owned(), text.to_owned())]).map_err(|error| error.to_string())
    }

    const ROUTE: &str = "\
apiVersion: fairlead.dev/v1alpha1
kind: ModelRoute
metadata: {name: chat}
spec:
  backends:
    - name: v1
      endpoints: [\"http://127.0.0.1:8001\"]
";

    #[test]
    fn several_documents_in_a_file() {
        let deployment = "apiVersion: fairlead.dev/v1alpha1\nkind: ModelDeployment\nmetadata: {name: d}\nspec: {model: {uri: \"hf://a/b\"}}\n";
        let text = format!("# a comment\n---\n{ROUTE}---\n{deployment}---\n\n---\n");
        let objects = parse_one(&text).expect("parses");
        assert_eq!((objects.routes.len(), objects.deployments.len()), (1, 1));
    }

    #[test]
    fn errors_name_the_file_the_document_and_the_field() {
        let cases = [
            ("endpoints: [\"http://127.0.0.1:8001\"]", "endpoint: [x]", "spec.backends[0]"),
            (
                "endpoints: [\"http://127.0.0.1:8001\"]",
                "endpoints: [\"https://x\"]",
                "spec.backends[0].endpoints[0]",
            ),
            ("endpoints: [\"http://127.0.0.1:8001\"]", "modelDeployment: x", "spec.backends[0].endpoints"),
            ("- name: v1", "- name: v1\n      weight: 0", "spec.backends: the weights sum to zero"),
            ("- name: v1", "- name: v1\n      weight: -3", "spec.backends[0].weight"),
            (
                "  backends:",
                "  endpointPolicy: {kind: SessionAffinity}\n  backends:",
                "spec.endpointPolicy.session: missing",
            ),
            (
                "- name: v1",
                "- name: v1\n      costPerMillionTokens: free",
                "spec.backends[0].costPerMillionTokens",
            ),
            (
                "  backends:",
                "  rules: [{name: r, match: {users: [x]}, split: [{backend: v9}]}]\n  backends:",
                "spec.rules[r].split: there is no backend",
            ),
            (
                "  backends:",
                "  rules: [{name: r, match: {user: [x]}}]\n  backends:",
                "spec.rules[0].match.user: there is no such field",
            ),
            ("  backends:", "  stickiness: {by: Header}\n  backends:", "spec.stickiness.header"),
            (
                "endpoints: [\"http://127.0.0.1:8001\"]",
                "provider: {url: \"https://h/v1\", model: m, caConfigMapRef: {name: bundle, key: ca.crt}}",
                "spec.backends[0].provider.caConfigMapRef: there is no ConfigMap bundle",
            ),
            ("kind: ModelRoute", "kind: Deployment", "kind: is \"Deployment\""),
            ("fairlead.dev/v1alpha1", "fairlead.dev/v1", "apiVersion"),
            ("metadata: {name: chat}", "metadata: {}", "metadata.name"),
            ("  backends:", "  backend:", "spec"),
            ("  backends:", "  timeout: 3\n  backends:", "spec.timeout: there is no such field"),
            ("- name: v1", "- name: v1\n      wieght: 3", "spec.backends[0].wieght: there is no such field"),
            (
                "metadata: {name: chat}",
                "metadata: {name: chat, label: {}}",
                "metadata.label: there is no such field",
            ),
        ];
        for (from, to, wanted) in cases {
            let text =
                format!("{ROUTE}---\n{}", ROUTE.replace(from, to).replace("{name: chat}", "{name: other}"));
            let error = parse_one(&text).expect_err(to);
            assert!(
                error.starts_with("routes.yaml, document 2: ") && error.contains(wanted),
                "{to}: {error}"
            );
        }
        let error = parse_one(&format!("{ROUTE}---\nspec: [\n")).expect_err("must fail");
        assert!(error.contains("document 2: is not valid YAML"), "{error}");
        let error = parse_one(&format!("{ROUTE}---\n{ROUTE}")).expect_err("must fail");
        assert!(error.contains("two ModelRoutes"), "{error}");
    }

    #[test]
    fn a_folder_is_read_in_order_and_without_what_is_not_yaml() {
        let dir = tempfile::tempdir().expect("a folder");
        for (name, text) in [("b.yaml", "b"), ("a.yml", "a"), ("notes.txt", "x"), (".hidden.yaml", "x")] {
            std::fs::write(dir.path().join(name), text).expect("written");
        }
        let texts: Vec<_> = read(dir.path()).expect("read").into_iter().map(|(_, text)| text).collect();
        assert_eq!(texts, ["a", "b"]);
        let error = read(&dir.path().join("missing")).expect_err("must fail").to_string();
        assert!(error.contains("missing") && error.contains("--manifests"), "{error}");
    }
}
