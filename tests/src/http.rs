//! A blocking HTTP client for tests.

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
            .timeout(Duration::from_secs(20))
            .tls_certs_only([])
            // A connection that is kept may be closed by the other side just as it is used again.
            .pool_max_idle_per_host(0)
            .build()
            .expect("a client can be made");
        (runtime, client)
    })
}

/// An answer: the status, the header `retry-after`, and the body.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
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
        let status = answer.status().as_u16();
        let retry_after = answer
            .headers()
            .get("retry-after")
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let text = answer.text().await.map_err(|error| error.to_string())?;
        Ok(Answer {
            status,
            retry_after,
            text,
        })
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
        let retry_after = answer.headers().get("retry-after");
        Ok(Answer {
            status: answer.status().as_u16(),
            retry_after: retry_after
                .and_then(|value| value.to_str().ok())
                .map(str::to_owned),
            text: answer.text().await.map_err(|error| error.to_string())?,
        })
    })
}
