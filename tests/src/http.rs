//! A blocking HTTP client for tests.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;
use tokio::runtime::Runtime;

fn runtime() -> &'static (Runtime, reqwest::Client) {
    static RUNTIME: OnceLock<(Runtime, reqwest::Client)> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        // Somebody else may have been first; then theirs serves as well.
        drop(rustls::crypto::ring::default_provider().install_default());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime can be made");
        let client = reqwest::Client::builder()
            // Some wait for an answer that a flow gives.
            .timeout(Duration::from_secs(60))
            .tls_certs_only([])
            // A connection that is kept may be closed by the other side just as it is used again.
            .pool_max_idle_per_host(0)
            .build()
            .expect("a client can be made");
        (runtime, client)
    })
}

/// An answer: the status, the headers, and the body.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers, those that are text.
    pub headers: BTreeMap<String, String>,
    /// The header `retry-after`.
    pub retry_after: Option<String>,
    /// The body.
    pub text: String,
}

/// Sends a request.
pub fn send(
    method: &str,
    url: &str,
    token: Option<&str>,
    body: Option<&str>,
) -> Result<Answer, String> {
    let (runtime, client) = runtime();
    runtime.block_on(async {
        let method = method
            .parse()
            .map_err(|_| format!("`{method}` is not a method"))?;
        let mut request = client.request(method, url);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request
                .header("content-type", "application/json")
                .body(body.to_owned());
        }
        let answer = request
            .send()
            .await
            .map_err(|error| format!("{url}: {error:?}"))?;
        read(answer).await
    })
}

async fn read(answer: reqwest::Response) -> Result<Answer, String> {
    let status = answer.status().as_u16();
    let headers = answer.headers().iter();
    let headers: BTreeMap<String, String> = headers
        .filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())))
        .collect();
    Ok(Answer {
        status,
        retry_after: headers.get("retry-after").cloned(),
        headers,
        text: answer.text().await.map_err(|error| error.to_string())?,
    })
}

/// Gets a JSON document.
pub fn get(url: &str) -> Result<Value, String> {
    let answer = send("GET", url, None, None)?;
    if answer.status != 200 {
        return Err(format!("{url}: {} {}", answer.status, answer.text));
    }
    serde_json::from_str(&answer.text).map_err(|error| format!("{url}: {error}: {}", answer.text))
}

/// Sends a request with headers and a body of any kind.
pub fn send_with(
    method: &str,
    url: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Answer, String> {
    let (runtime, client) = runtime();
    runtime.block_on(async {
        let method = method
            .parse()
            .map_err(|_| format!("`{method}` is not a method"))?;
        let mut request = client.request(method, url).body(body.to_vec());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request
            .send()
            .await
            .map_err(|error| format!("{url}: {error:?}"))?;
        read(answer).await
    })
}
