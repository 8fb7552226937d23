//! Gates of Prometheus: an instant query, the one number that it gives, and what follows. What fails or gives nothing is no verdict.

use std::time::Duration;

use fairlead_crds::model_route::ModelRoute;
use fairlead_crds::model_route::analysis::PrometheusQuery;
use fairlead_rollout::{External, Gate, Verdict};
use kube::ResourceExt;
use serde_json::Value;

/// How long a query may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longer answers hold more than one number.
const LONGEST: usize = 64 << 10;

/// What a query may name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names(Vec<(&'static str, String)>);

impl Names {
    /// The names of a route's canary.
    pub fn of(object: &ModelRoute, canary: &str, stable: &str) -> Self {
        let deployments = |names: &str| {
            let backends = names.split('+').filter_map(|name| {
                let backend = object.spec.backends.iter().find(|backend| backend.name == name)?;
                backend.model_deployment.as_deref()
            });
            // As an alternative of a regular expression, in case there are several.
            backends.collect::<Vec<_>>().join("|")
        };
        Self(vec![
            ("namespace", object.namespace().unwrap_or_default()),
            ("route", object.name_any()),
            ("model", object.model_name()),
            ("canary", canary.to_owned()),
            ("stable", stable.replace('+', "|")),
            ("canaryDeployment", deployments(canary)),
            ("stableDeployment", deployments(stable)),
        ])
    }

    /// A query with the names filled in.
    ///
    /// # Errors
    /// What is in braces and is no name, with those that are.
    pub fn fill(&self, query: &str) -> Result<String, String> {
        let mut filled = String::with_capacity(query.len());
        let mut rest = query;
        while let Some((before, after)) = rest.split_once("{{") {
            filled.push_str(before);
            let (name, after) =
                after.split_once("}}").ok_or_else(|| "the query has {{ without }}; close it".to_owned())?;
            let Some((_, value)) = self.0.iter().find(|(known, _)| *known == name.trim()) else {
                let known: Vec<_> = self.0.iter().map(|(known, _)| *known).collect();
                return Err(format!(
                    "the query has {{{{{name}}}}}, which is not one of {}",
                    known.join(", ")
                ));
            };
            filled.push_str(value);
            rest = after;
        }
        filled.push_str(rest);
        Ok(filled)
    }
}

/// Asks, and judges what is answered. `allowed`: the servers that may be asked, the first where the query names none.
pub async fn judge(
    http: &reqwest::Client,
    allowed: &[String],
    gate: &Gate,
    query: &PrometheusQuery,
    names: &Names,
) -> External {
    match value(http, allowed, query, names).await {
        Ok(value) => {
            let at = fairlead_rollout::Interval { low: value, high: value };
            External { verdict: gate.bound.verdict(at), canary: Some(value), ..External::default() }
        }
        Err(note) => External { verdict: Verdict::NotMeasured, note: Some(note), ..External::default() },
    }
}

async fn value(
    http: &reqwest::Client,
    allowed: &[String],
    query: &PrometheusQuery,
    names: &Names,
) -> Result<f64, String> {
    let text = names.fill(&query.query)?;
    let base = server(allowed, query.url.as_deref())?;
    let mut url = reqwest::Url::parse(&format!("{base}/api/v1/query"))
        .map_err(|error| format!("{base} is not a URL: {error}"))?;
    url.query_pairs_mut().append_pair("query", &text);
    let failed = |error: reqwest::Error| {
        let why = if error.is_timeout() { "it did not answer in time" } else { "it cannot be reached" };
        format!("Prometheus at {base}: {why}")
    };
    let mut response = http.get(url).timeout(TIMEOUT).send().await.map_err(failed)?;
    let status = response.status();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        body.extend_from_slice(&chunk);
        if body.len() > LONGEST {
            return Err("the query gives more than one number; sum or average it".to_owned());
        }
    }
    number(status.as_u16(), &body)
}

/// The server to ask.
fn server<'a>(allowed: &'a [String], wanted: Option<&str>) -> Result<&'a str, String> {
    let plain = |url: &str| url.trim_end_matches('/').to_owned();
    let found = match wanted {
        None => allowed.first(),
        Some(wanted) => allowed.iter().find(|url| plain(url) == plain(wanted)),
    };
    found.map(|url| url.trim_end_matches('/')).ok_or_else(|| match wanted {
        None => "no Prometheus server is configured; set operator.prometheusUrls of the chart".to_owned(),
        Some(wanted) => format!("{wanted} is not one of the operator's Prometheus servers; add it to operator.prometheusUrls of the chart"),
    })
}

/// The one number of an answer.
fn number(status: u16, body: &[u8]) -> Result<f64, String> {
    let answer: Value = serde_json::from_slice(body)
        .map_err(|_| format!("Prometheus answered {status} and not in its own form"))?;
    if answer["status"] != "success" {
        let why: String = answer["error"].as_str().unwrap_or("no reason given").chars().take(200).collect();
        return Err(format!("Prometheus refused the query: {why}"));
    }
    let result = &answer["data"]["result"];
    let sample = match answer["data"]["resultType"].as_str() {
        Some("scalar") => &result[1],
        Some("vector") => match result.as_array().map(Vec::as_slice) {
            Some([one]) => &one["value"][1],
            Some([]) => {
                return Err("the query gives nothing: no such series, or none of the last minutes".to_owned());
            }
            several => {
                let count = several.map_or(0, <[Value]>::len);
                return Err(format!("the query gives {count} series; sum or average them into one"));
            }
        },
        other => {
            let kind = other.unwrap_or("nothing");
            return Err(format!("the query gives a {kind}; it has to be an instant query of one number"));
        }
    };
    let value = sample.as_str().and_then(|text| text.parse::<f64>().ok());
    value
        .filter(|value| value.is_finite())
        .ok_or_else(|| "the query gives no number (NaN or infinite)".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn names() -> Names {
        let route: ModelRoute = serde_json::from_value(json!({
            "apiVersion": "fairlead.dev/v1alpha1", "kind": "ModelRoute", "metadata": {"name": "chat", "namespace": "ns"},
            "spec": {"backends": [{"name": "v1", "modelDeployment": "m1"}, {"name": "also", "modelDeployment": "m2"}, {"name": "v2", "modelDeployment": "m3"}]},
        }))
        .unwrap();
        Names::of(&route, "v2", "v1+also")
    }

    #[test]
    fn names_are_filled_in_and_promql_is_left_alone() {
        let filled = names().fill(
            r#"sum(x{namespace="{{namespace}}",b=~"{{ stable }}",d="{{canaryDeployment}}"})/{{route}}"#,
        );
        assert_eq!(filled.unwrap(), r#"sum(x{namespace="ns",b=~"v1|also",d="m3"})/chat"#);
        assert_eq!(names().fill(r#"d=~"{{stableDeployment}}""#).unwrap(), r#"d=~"m1|m2""#);
        let error = names().fill("{{backend}}").unwrap_err();
        assert!(error.contains("{{backend}}") && error.contains("canaryDeployment"), "{error}");
        assert!(names().fill("{{canary").unwrap_err().contains("close it"));
    }

    #[test]
    fn only_servers_that_are_allowed_are_asked() {
        let allowed = ["http://one:9090/".to_owned(), "http://two/prom".to_owned()];
        assert_eq!(server(&allowed, None), Ok("http://one:9090"));
        assert_eq!(server(&allowed, Some("http://two/prom/")), Ok("http://two/prom"));
        assert!(server(&allowed, Some("http://one:9090.evil")).unwrap_err().contains("prometheusUrls"));
        assert!(server(&[], None).unwrap_err().contains("prometheusUrls"));
    }

    #[test]
    fn one_number_is_read_and_nothing_else_is_taken_for_one() {
        let read =
            |data: Value| number(200, json!({"status": "success", "data": data}).to_string().as_bytes());
        let vector = |values: &[&str]| {
            let series: Vec<_> =
                values.iter().map(|value| json!({"metric": {}, "value": [1, value]})).collect();
            read(json!({"resultType": "vector", "result": series}))
        };
        assert_eq!(vector(&["0.25"]), Ok(0.25));
        assert_eq!(read(json!({"resultType": "scalar", "result": [1, "3"]})), Ok(3.0));
        assert!(vector(&[]).unwrap_err().contains("gives nothing"));
        assert!(vector(&["1", "2"]).unwrap_err().contains("2 series"));
        assert!(vector(&["NaN"]).unwrap_err().contains("no number"));
        assert!(read(json!({"resultType": "matrix", "result": []})).unwrap_err().contains("matrix"));
        let refused = json!({"status": "error", "error": "parse error at char 3"}).to_string();
        assert!(number(400, refused.as_bytes()).unwrap_err().contains("parse error at char 3"));
        assert!(number(502, b"<html>").unwrap_err().contains("502"));
    }
}
