//! Every setting of the operator, from flags and environment, parsed once.

use std::net::SocketAddr;

/// The control plane of Fairlead.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "fairlead-operator", version)]
pub struct Settings {
    /// Image of the inference pods, where a ModelDeployment names no other.
    #[arg(long, env = "FAIRLEAD_INFERENCE_IMAGE", default_value = "localhost/fairlead-inference:dev")]
    pub inference_image: String,
    /// Image of the pods that ask an Evaluation's questions, where it names no other.
    #[arg(long, env = "FAIRLEAD_RAG_IMAGE", default_value = "localhost/fairlead-rag:dev")]
    pub rag_image: String,
    /// Hub that hf:// models come from, for the operator and the inference pods.
    #[arg(long, env = "HF_ENDPOINT", default_value = "https://huggingface.co")]
    pub hf_endpoint: String,
    /// Namespace of the leader election's Lease.
    #[arg(long, env = "POD_NAMESPACE", default_value = "fairlead-system")]
    pub namespace: String,
    /// Name of this process in the leader election. Default: a random one.
    #[arg(long, env = "POD_NAME")]
    pub identity: Option<String>,
    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
    /// Objects of one kind that are reconciled at the same time.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub concurrency: u16,
    /// Service of the gateways' admin port, in this process's namespace: every gateway behind it is asked what it has counted of canaries.
    #[arg(long, env = "FAIRLEAD_GATEWAY_ADMIN_SERVICE", default_value = "fairlead-gateway-admin")]
    pub gateway_admin_service: String,
    /// Base URLs of the Prometheus servers that ModelRoutes' gates may ask, with commas between them; the first is asked where a gate names
    /// none. Whoever may write a route can have this process send queries to them.
    #[arg(long, env = "FAIRLEAD_PROMETHEUS_URLS", value_delimiter = ',')]
    pub prometheus_urls: Vec<String>,
    /// Port of the inference pods' API, asked for their progress while they start.
    #[arg(long, default_value_t = 8000, hide = true)]
    pub inference_port: u16,
}
