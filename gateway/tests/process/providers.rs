//! Servers of others behind a route: by https, under the gateway's own key, with nothing of ours that is not theirs.

use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde_json::{Value, json};

use crate::apiserver::ApiServer;
use crate::harness::{Gateway, error_of, eventually, header, route_of, within};
use crate::worker::Worker;

const KEY: &str = "sk-very-secret";

/// A provider with a certificate of its own authority, and a folder with that and the key.
struct Provider {
    worker: Worker,
    files: tempfile::TempDir,
}

impl Provider {
    async fn start() -> Self {
        let mut ca = CertificateParams::new(Vec::new()).expect("parameters");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().expect("a key")).expect("a CA");
        let key = KeyPair::generate().expect("a key");
        let leaf = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
        let leaf = leaf.signed_by(&key, &ca).expect("a certificate");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("protocols")
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
            .expect("a server");
        let files = tempfile::tempdir().expect("a folder");
        std::fs::write(files.path().join("ca.pem"), ca.pem()).expect("written");
        std::fs::write(files.path().join("key"), format!("{KEY}\n")).expect("written");
        Self { worker: Worker::start_tls(Arc::new(tls)).await, files }
    }

    fn backend(&self) -> Value {
        let file = |name: &str| self.files.path().join(name).display().to_string();
        let url = format!("https://localhost:{}/api/v1", self.worker.address.port());
        json!({"name": "cloud", "weight": 1, "provider": {"url": url, "model": "gpt-x",
            "apiKeyFile": file("key"), "caFile": file("ca.pem")}})
    }

    async fn gateway(&self) -> Gateway {
        Gateway::start(&route_of("chat", &json!({"backends": [self.backend()]})), &[]).await
    }

    fn key(&self) -> impl AsRef<Path> {
        self.files.path().join("key")
    }
}

/// What a gateway tells of the provider: whether it was reached, and of what kind its trouble is.
async fn told(gateway: &Gateway) -> (bool, String) {
    let (status, text) = gateway.admin("/providers").await;
    assert_eq!(status, 200, "{text}");
    let report: Value = serde_json::from_str(&text).expect("JSON");
    let cloud = &report["routes"][0]["backends"]["cloud"];
    (cloud["reached"] == true, cloud["trouble"]["kind"].as_str().unwrap_or_default().to_owned())
}

/// Waits until a gateway tells this of the provider.
async fn tells(gateway: &Gateway, reached: bool, trouble: &str) {
    eventually(trouble, async || told(gateway).await == (reached, trouble.to_owned())).await;
}

#[tokio::test]
async fn a_provider_gets_the_request_with_its_own_names_and_nothing_of_ours() {
    let mut provider = Provider::start().await;
    let gateway = provider.gateway().await;
    let mut body = Gateway::chat_body("chat", false);
    body["user"] = json!("ann");
    body["top_k"] = json!(5);
    body["temperature"] = json!(0.5);
    let request = gateway
        .post("/v1/chat/completions", body.to_string())
        .header("authorization", "Bearer the-clients")
        .header("x-tenant", "acme")
        .header("cookie", "c");
    let (response, ()) = tokio::join!(within("an answer", request.send()), async {
        let call = provider.worker.call().await;
        assert_eq!(call.head.uri.path(), "/api/v1/chat/completions");
        assert_eq!(call.header("authorization"), format!("Bearer {KEY}"));
        let names: Vec<&str> = call.head.headers.keys().map(|name| name.as_str()).collect();
        assert!(!names.iter().any(|name| name.starts_with("x-") || *name == "cookie"), "{names:?}");
        assert_eq!(call.body["model"], "gpt-x");
        assert_eq!(call.body["temperature"], 0.5);
        assert!(call.body.get("user").is_none() && call.body.get("top_k").is_none(), "{}", call.body);
        let headers = [("openai-organization", "org-1"), ("set-cookie", "s=1"), ("x-request-id", "theirs")];
        call.json_with(200, &headers, json!({"model": "gpt-x-2026", "id": "1"}));
    });
    let response = response.expect("an answer");
    assert_eq!((response.status().as_u16(), header(&response, "x-fairlead-backend")), (200, "cloud"));
    for theirs in ["openai-organization", "set-cookie"] {
        assert_eq!(header(&response, theirs), "");
    }
    assert_ne!(header(&response, "x-request-id"), "theirs");
    let body: Value = response.json().await.expect("JSON");
    assert_eq!(body, json!({"model": "chat", "id": "1"}));
    assert!(!gateway.log().contains(KEY), "keys do not belong in logs");
}

#[tokio::test]
async fn a_providers_stream_passes_with_the_routes_name() {
    let mut provider = Provider::start().await;
    let gateway = provider.gateway().await;
    let (response, sending) = tokio::join!(gateway.chat("chat", true), async {
        let call = provider.worker.call().await;
        assert_eq!(call.header("x-fairlead-resumable"), "");
        let sending = call.stream();
        sending.send("data: {\"model\":\"gpt-x\",\"n\":1}\n\n").await;
        sending
    });
    let text = async {
        sending.send("data: {\"model\":\"gpt-x\",\"n\":2}\n\ndata: [DONE]\n\n").await;
        drop(sending);
    };
    let (text, ()) = tokio::join!(within("the end", response.text()), text);
    let expected =
        "data: {\"model\":\"chat\",\"n\":1}\n\ndata: {\"model\":\"chat\",\"n\":2}\n\ndata: [DONE]\n\n";
    assert_eq!(text.expect("text"), expected);
}

#[tokio::test]
async fn a_providers_refusals_are_told_in_our_words() {
    let mut provider = Provider::start().await;
    let gateway = provider.gateway().await;
    let theirs =
        json!({"error": {"message": "key sk-very-secret of org-1", "type": "t", "param": "p", "code": "c"}});
    for (status, expected, code) in
        [(401, 502, "provider_refused"), (404, 502, "provider_model_not_found"), (400, 400, "c")]
    {
        let (response, ()) = tokio::join!(gateway.chat("chat", false), async {
            provider.worker.call().await.json(status, theirs.clone());
        });
        assert_eq!(response.status().as_u16(), expected);
        let error = error_of(response).await;
        assert_eq!(error["code"], code);
        assert!(status == 400 || !error.to_string().contains("org-1"), "{error}");
    }
}

#[tokio::test]
async fn a_provider_that_wants_to_be_left_alone_is() {
    let mut provider = Provider::start().await;
    let own = Worker::start().await.answer_all("own");
    let mut cloud = provider.backend();
    cloud["weight"] = json!(1_000_000);
    let spec = json!({"backends": [cloud, {"name": "own", "weight": 1, "endpoints": [own.url()]}]});
    let gateway = Gateway::start(&route_of("chat", &spec), &[]).await;
    let (response, ()) = tokio::join!(gateway.chat("chat", false), async {
        provider.worker.call().await.json_with(429, &[("retry-after", "120")], json!({}));
    });
    // Another backend took it over, and all that follow for so long.
    assert_eq!((response.status().as_u16(), header(&response, "x-fairlead-backend")), (200, "own"));
    for _ in 0..5 {
        assert_eq!(header(&gateway.chat("chat", false).await, "x-fairlead-diverted-from"), "cloud");
    }
    assert!(provider.worker.is_idle());
}

#[tokio::test]
async fn what_a_provider_cannot_do_is_refused_by_name() {
    let mut provider = Provider::start().await;
    let gateway = provider.gateway().await;
    let mut body = Gateway::chat_body("chat", false);
    body["structured_outputs"] = json!({"regex": "a"});
    let response = within("an answer", gateway.post("/v1/chat/completions", body.to_string()).send()).await;
    let response = response.expect("an answer");
    assert_eq!(response.status(), 400);
    let error = error_of(response).await;
    assert_eq!(
        (&error["param"], &error["code"]),
        (&json!("structured_outputs"), &json!("unsupported_parameter"))
    );
    assert!(provider.worker.is_idle());
}

#[tokio::test]
async fn a_provider_with_a_certificate_of_somebody_else_is_not_called() {
    let (mut provider, other) = (Provider::start().await, Provider::start().await);
    let mut backend = provider.backend();
    backend["provider"]["caFile"] = other.backend()["provider"]["caFile"].clone();
    let gateway = Gateway::start(&route_of("chat", &json!({"backends": [backend]})), &[]).await;
    let response = gateway.chat("chat", false).await;
    assert_eq!(response.status(), 502);
    let error = error_of(response).await;
    assert_eq!(error["code"], "provider_untrusted");
    assert!(error["message"].as_str().is_some_and(|message| message.contains("caSecretRef")), "{error}");
    assert!(provider.worker.is_idle());
}

#[tokio::test]
async fn a_wrong_certificate_authority_is_told_before_anybody_asks_and_a_right_one_takes_it_away() {
    let (mut provider, other) = (Provider::start().await, Provider::start().await);
    let ca = provider.files.path().join("ca.pem");
    let right = std::fs::read(&ca).expect("read");
    std::fs::copy(other.files.path().join("ca.pem"), &ca).expect("written");
    let gateway = provider.gateway().await;
    tells(&gateway, false, "NotTrusted").await;
    let (_, text) = gateway.admin("/providers").await;
    assert!(text.contains("localhost") && text.contains("no authority has signed it"), "{text}");
    assert!(provider.worker.is_idle(), "nothing is sent to find out");
    std::fs::write(&ca, right).expect("written");
    tells(&gateway, true, "").await;
    let (response, ()) = tokio::join!(gateway.chat("chat", false), async {
        provider.worker.call().await.json(200, json!({}));
    });
    assert_eq!(response.status(), 200);
    assert_eq!(told(&gateway).await, (true, String::new()));
}

#[tokio::test]
async fn a_refused_key_and_an_unknown_model_are_told_until_a_request_succeeds() {
    let mut provider = Provider::start().await;
    let gateway = provider.gateway().await;
    tells(&gateway, true, "").await;
    let unknown = json!({"error": {"message": "no such model of org-1", "code": "model_not_found"}});
    for (status, body, trouble) in
        [(401, json!({}), "KeyRefused"), (404, unknown, "ModelUnknown"), (200, json!({}), "")]
    {
        let (_, ()) = tokio::join!(gateway.chat("chat", false), async {
            provider.worker.call().await.json(status, body);
        });
        assert_eq!(told(&gateway).await, (true, trouble.to_owned()));
    }
    let (_, text) = gateway.admin("/providers").await;
    assert!(!text.contains(KEY) && !text.contains("org-1"), "{text}");
}

#[tokio::test]
async fn a_provider_that_is_gone_is_told() {
    let provider = Provider::start().await;
    let gateway = provider.gateway().await;
    tells(&gateway, true, "").await;
    provider.worker.kill().await;
    // Requests find out; the next look would, too.
    eventually("its loss is told", async || {
        gateway.chat("chat", false).await;
        told(&gateway).await.1 == "NotConnected"
    })
    .await;
}

#[tokio::test]
async fn a_changed_key_is_in_force_without_an_edit_and_one_that_is_gone_is_a_problem() {
    let mut provider = Provider::start().await;
    let gateway = provider.gateway().await;
    std::fs::write(provider.key(), "sk-new").expect("written");
    within("the new key is in force", async {
        loop {
            let (response, key) = tokio::join!(gateway.chat("chat", false), async {
                let call = provider.worker.call().await;
                let key = call.header("authorization").to_owned();
                call.json(200, json!({}));
                key
            });
            assert_eq!(response.status(), 200);
            if key == "Bearer sk-new" {
                break;
            }
        }
    })
    .await;
    std::fs::remove_file(provider.key()).expect("removed");
    eventually("its loss is in force", || async {
        gateway.metric("fairlead_gateway_snapshot_problems", "").await == 1.0
    })
    .await;
    assert_eq!(gateway.chat("chat", false).await.status(), 503);
    assert!(gateway.log().contains("apiKey") && !gateway.log().contains("sk-new"));
}

#[tokio::test]
async fn in_a_cluster_the_key_is_in_a_secret_and_hosts_must_be_allowed() {
    let mut provider = Provider::start().await;
    let host = format!("localhost:{}", provider.worker.address.port());
    let api = ApiServer::start().await;
    let mut backend = provider.backend();
    let fields = backend["provider"].as_object_mut().expect("an object");
    fields.retain(|field, _| field == "url" || field == "model");
    fields.insert("apiKeySecretRef".to_owned(), json!({"name": "cloud", "key": "token"}));
    fields.insert("caSecretRef".to_owned(), json!({"name": "cloud", "key": "ca.crt"}));
    let route = json!({"apiVersion": "fairlead.dev/v1alpha1", "kind": "ModelRoute",
        "metadata": {"namespace": "ns", "name": "r", "uid": "r"}, "spec": {"model": "chat", "backends": [backend]}});
    api.apply("modelroutes", route.clone());

    // Whoever writes a route has no say in whom the gateway calls.
    let closed = Gateway::start_in_cluster(&api.kubeconfig(), &[]).await;
    eventually("it says who must allow it", || async { closed.log().contains("--provider-hosts") }).await;
    assert_eq!(closed.chat("chat", false).await.status(), 503);
    tells(&closed, false, "NotUsable").await;

    let gateway = Gateway::start_in_cluster(&api.kubeconfig(), &["--provider-hosts", &host]).await;
    eventually("it misses the Secret", || async { gateway.log().contains("Secret ns/cloud") }).await;
    assert!(api.requests().iter().any(|request| request == "/api/v1/namespaces/ns/secrets/cloud"));
    let ca = std::fs::read(provider.files.path().join("ca.pem")).expect("read");
    let encoded = |bytes: &[u8]| k8s_openapi::ByteString(bytes.to_vec());
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": "ns", "name": "cloud"},
        "data": {"token": encoded(KEY.as_bytes()), "ca.crt": encoded(&ca)}});
    api.apply("secrets", secret);
    // It is read again after a while.
    eventually("it has the key", || async {
        gateway.metric("fairlead_gateway_snapshot_problems", "").await == 0.0
    })
    .await;
    let (response, ()) = tokio::join!(gateway.chat("chat", false), async {
        let call = provider.worker.call().await;
        assert_eq!(call.header("authorization"), format!("Bearer {KEY}"));
        call.json(200, json!({}));
    });
    assert_eq!(response.status(), 200);
    assert!(!gateway.log().contains(KEY));
}

#[tokio::test]
async fn in_a_cluster_certificate_authorities_may_be_in_a_config_map() {
    let (mut provider, other) = (Provider::start().await, Provider::start().await);
    let host = format!("localhost:{}", provider.worker.address.port());
    let api = ApiServer::start().await;
    let mut backend = provider.backend();
    let fields = backend["provider"].as_object_mut().expect("an object");
    fields.retain(|field, _| field == "url" || field == "model");
    fields.insert("caConfigMapRef".to_owned(), json!({"name": "bundle", "key": "ca.crt"}));
    let route = json!({"apiVersion": "fairlead.dev/v1alpha1", "kind": "ModelRoute",
        "metadata": {"namespace": "ns", "name": "r", "uid": "r"}, "spec": {"model": "chat", "backends": [backend]}});
    api.apply("modelroutes", route);
    let gateway = Gateway::start_in_cluster(&api.kubeconfig(), &["--provider-hosts", &host]).await;
    tells(&gateway, false, "NotUsable").await;
    let (_, text) = gateway.admin("/providers").await;
    assert!(
        text.contains("the key ca.crt of ConfigMap ns/bundle") && text.contains("providers.configMaps"),
        "{text}"
    );
    assert!(api.requests().iter().any(|request| request == "/api/v1/namespaces/ns/configmaps/bundle"));
    assert_eq!(gateway.chat("chat", false).await.status(), 503);

    // Somebody else's, then the right one beside it, as when an authority is replaced: each in force with no restart.
    let pem =
        |provider: &Provider| std::fs::read_to_string(provider.files.path().join("ca.pem")).expect("read");
    let bundle = |text: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "ns", "name": "bundle"},
            "data": {"ca.crt": text}})
    };
    api.apply("configmaps", bundle(&pem(&other)));
    tells(&gateway, false, "NotTrusted").await;
    api.apply("configmaps", bundle(&(pem(&other) + &pem(&provider))));
    tells(&gateway, true, "").await;
    let (response, ()) = tokio::join!(gateway.chat("chat", false), async {
        provider.worker.call().await.json(200, json!({}));
    });
    assert_eq!(response.status(), 200);
}
