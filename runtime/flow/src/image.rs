//! Names of images: `[registry[:port]/]path[:tag][@digest]`.

/// Why a name of an image cannot be one; none if it can.
pub(crate) fn fault(image: &str) -> Option<&'static str> {
    if image.len() > 512 {
        return Some("it is longer than 512 characters");
    }
    if image.contains("${") {
        return Some("an image cannot have placeholders");
    }
    if image.chars().any(char::is_whitespace) {
        return Some("it has spaces in it");
    }
    let (name, digest) = match image.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (image, None),
    };
    if digest.is_some_and(|digest| !is_digest(digest)) {
        return Some("its digest is not `sha256:` and 64 hexadecimal digits");
    }
    let last_slash = name.rfind('/').map_or(0, |slash| slash + 1);
    let (path, tag) = match name[last_slash..].find(':') {
        Some(colon) => (
            &name[..last_slash + colon],
            Some(&name[last_slash + colon + 1..]),
        ),
        None => (name, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Some("what follows the colon is no tag");
    }
    let mut parts = path.split('/').peekable();
    if let (Some(first), true) = (parts.peek(), path.contains('/'))
        && (first.contains(['.', ':']) || *first == "localhost")
    {
        if !is_registry(first) {
            return Some("what stands before the first slash is no registry");
        }
        parts.next();
    }
    if path.chars().any(char::is_uppercase) && path.to_lowercase().split('/').all(is_component) {
        return Some("it has capital letters in it");
    }
    (!parts.all(is_component)).then_some("it is not `name:tag` or `registry/name:tag`")
}

fn is_component(part: &str) -> bool {
    let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    part.starts_with(inside)
        && part.ends_with(inside)
        && part
            .chars()
            .all(|c| inside(c) || matches!(c, '.' | '_' | '-'))
}

fn is_tag(tag: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    tag.len() <= 128
        && tag.starts_with(word)
        && tag.chars().all(|c| word(c) || matches!(c, '.' | '-'))
}

fn is_digest(digest: &str) -> bool {
    digest.strip_prefix("sha256:").is_some_and(|hex| {
        hex.len() == 64 && hex.chars().all(|c| matches!(c, '0'..='9' | 'a'..='f'))
    })
}

fn is_registry(registry: &str) -> bool {
    let (host, port) = registry.split_once(':').unwrap_or((registry, "0"));
    !host.is_empty()
        && host.split('.').all(|label| {
            !label.is_empty() && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        })
        && port.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_images() {
        let digest = format!("a@sha256:{}", "0".repeat(64));
        for good in [
            "jq",
            "towpath/jq:1",
            "localhost/jq",
            "registry.example:5000/a/b__c-d.e:v1.2-rc",
            "a:LATEST",
            digest.as_str(),
        ] {
            assert_eq!(fault(good), None, "{good}");
        }
        for bad in [
            "",
            "towpath/jq:",
            "Towpath/jq",
            "a b",
            "a//b",
            "/a",
            "a/",
            "a@sha256:12",
            "a:b:c",
            "-a",
            "a:${env.TAG}",
            "http://a/b",
            "a.b:port/c",
            "ä",
        ] {
            assert!(fault(bad).is_some(), "{bad}");
        }
    }
}
