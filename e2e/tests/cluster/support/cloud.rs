//! A provider: a server that is none of our pods, by https, with a certificate of a test's own authority and a key that it wants to see.

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};

use super::kubectl::{apply, kubectl};
use super::{SERVED, image};

/// The provider's own name for its model.
pub const MODEL: &str = "cloud-model";
const NAME: &str = "cloud";
const KEY: &str = "sk-of-the-test";

/// A provider that runs in a namespace, outside of what the operator knows.
pub struct Cloud {
    namespace: String,
    ca: String,
}

impl Cloud {
    /// Starts it, and waits until it listens. The gateways are allowed to read the Secrets `secrets` and the ConfigMaps `config_maps` of the
    /// namespace, as the chart's `gateway.providers` does it for namespaces that are known when it is installed.
    pub async fn start(namespace: &str, secrets: &[&str], config_maps: &[&str]) -> Result<Self> {
        let ca = authority()?;
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![host(namespace)])?.signed_by(&key, &ca)?;
        let files = json!({"tls.crt": certificate.pem(), "tls.key": key.serialize_pem()});
        secret(namespace, "cloud-serves", &files).await?;
        let labels = json!({"app": NAME});
        let restricted = json!({
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
        });
        let pod = json!({
            "automountServiceAccountToken": false,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": NAME, "image": image("fairlead-test-worker"), "imagePullPolicy": "IfNotPresent",
                "args": ["serve", "--listen=0.0.0.0:8443", format!("--model={MODEL}"), format!("--api-key={KEY}"),
                    "--tls-cert=/tls/tls.crt", "--tls-key=/tls/tls.key"],
                "ports": [{"containerPort": 8443}],
                "readinessProbe": {"tcpSocket": {"port": 8443}, "periodSeconds": 1},
                "securityContext": restricted,
                "volumeMounts": [{"name": "tls", "mountPath": "/tls", "readOnly": true}],
            }],
            "volumes": [{"name": "tls", "secret": {"secretName": "cloud-serves"}}],
        });
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": NAME},
            "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}},
        });
        apply(namespace, &deployment).await?;
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME},
            "spec": {"selector": labels, "ports": [{"port": 443, "targetPort": 8443}]},
        });
        apply(namespace, &service).await?;
        let role = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "gateway-providers"},
            "rules": [
                {"apiGroups": [""], "resources": ["secrets"], "resourceNames": secrets, "verbs": ["get"]},
                {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": config_maps, "verbs": ["get"]},
            ],
        });
        apply(namespace, &role).await?;
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "gateway-providers"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "gateway-providers"},
            "subjects": [{"kind": "ServiceAccount", "name": "fairlead-gateway", "namespace": "fairlead-system"}],
        });
        apply(namespace, &binding).await?;
        let within = format!("--timeout={}s", SERVED.as_secs());
        kubectl(&["-n", namespace, "rollout", "status", &format!("deployment/{NAME}"), &within]).await?;
        Ok(Self { namespace: namespace.to_owned(), ca: ca.pem() })
    }

    /// A backend of a route, with the key and the certificate authority where these Secrets have them.
    pub fn backend(&self, key: &str, ca: &str) -> Value {
        json!({"name": NAME, "provider": {
            "url": format!("https://{}/v1", host(&self.namespace)), "model": MODEL,
            "apiKeySecretRef": {"name": key, "key": "token"}, "caSecretRef": {"name": ca, "key": "ca.crt"},
        }})
    }

    /// Makes a Secret with the key that it wants.
    pub async fn make_key(&self, name: &str) -> Result<()> {
        secret(&self.namespace, name, &json!({"token": KEY})).await
    }

    /// Makes a Secret with its certificate authority.
    pub async fn make_ca(&self, name: &str) -> Result<()> {
        secret(&self.namespace, name, &json!({"ca.crt": self.ca})).await
    }

    /// A backend of a route, with the key, and with the certificate authority where this ConfigMap has it.
    pub fn backend_of_bundle(&self, key: &str, bundle: &str) -> Value {
        let mut backend = self.backend(key, "");
        if let Some(provider) = backend["provider"].as_object_mut() {
            provider.remove("caSecretRef");
            provider.insert("caConfigMapRef".to_owned(), json!({"name": bundle, "key": "ca.crt"}));
        }
        backend
    }

    /// Makes a ConfigMap with its certificate authority.
    pub async fn make_bundle(&self, name: &str) -> Result<()> {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"ca.crt": self.ca}});
        apply(&self.namespace, &object).await
    }
}

/// Makes a Secret with a certificate authority that has signed nothing.
pub async fn make_other_ca(namespace: &str, name: &str) -> Result<()> {
    secret(namespace, name, &json!({"ca.crt": authority()?.pem()})).await
}

fn host(namespace: &str) -> String {
    format!("{NAME}.{namespace}.svc.cluster.local")
}

fn authority() -> Result<CertifiedIssuer<'static, KeyPair>> {
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(ca, KeyPair::generate()?).context("making a certificate authority")
}

async fn secret(namespace: &str, name: &str, files: &Value) -> Result<()> {
    let object =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": files});
    apply(namespace, &object).await
}
