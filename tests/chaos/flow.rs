//! The flow that all this happens to, and its versions.

/// Its name.
pub(crate) const NAME: &str = "chaos";

/// The steps whose replicas an operator changes.
pub(crate) const SCALED: [&str; 3] = ["shape", "plain", "once"];

/// What its versions have in common.
pub(crate) struct Template {
    /// Where this program is, as containers reach it.
    pub(crate) base: String,
    /// The tag of the images.
    pub(crate) tag: String,
    /// Whether the second branch has `once: true`.
    pub(crate) once: bool,
}

impl Template {
    /// The file of a version: each says so in what it makes, and has other limits.
    pub(crate) fn text(&self, version: u64) -> String {
        let Self { base, tag, once } = self;
        let concurrency = 4 + version % 3 * 6;
        let memory = 128 + version % 2 * 32;
        let (once_key, check) = if *once {
            (
                "once: true",
                format!("check: {{ url: \"{base}/once/{{{{ message.id }}}}\" }}"),
            )
        } else {
            ("mode: frames", "emit: none".to_owned())
        };
        format!(
            r#"
flow: {NAME}
trigger:
  id: orders
  image: towpath/http-poll:{tag}
  every: 500ms
  with:
    url: "{base}/orders"
    cursor: n
    sorted: true
    page: {{ style: link, size_param: size, size: 100 }}
actions:
  - id: shape
    image: towpath/jq:{tag}
    replicas: 2
    concurrency: {concurrency}
    memory: {memory}MiB
    retry: {{ attempts: 100, initial: 250ms, factor: 1.5, max: 5s }}
    with: {{ filter: "{{id, n, version: {version}}}" }}
  - id: plain
    after: shape
    image: towpath/http-request:{tag}
    replicas: 2
    concurrency: {concurrency}
    retry: {{ attempts: 100, initial: 250ms, factor: 1.5, max: 5s }}
    with:
      method: POST
      url: "{base}/plain"
      emit: none
  - id: once
    after: shape
    image: towpath/http-request:{tag}
    replicas: 3
    concurrency: {concurrency}
    {once_key}
    retry: {{ attempts: 100, initial: 250ms, factor: 1.5, max: 5s }}
    with:
      method: POST
      url: "{base}/once"
      {check}
"#
        )
    }
}
