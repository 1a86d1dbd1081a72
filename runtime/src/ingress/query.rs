//! The parameters of a query.

use super::body::decode;

/// The value of a parameter, decoded; of one that is there several times, the first.
pub(super) fn value(query: &str, name: &str) -> Option<String> {
    query.split('&').find_map(|pair| {
        let (found, value) = pair.split_once('=').unwrap_or((pair, ""));
        let is_it = decode(found).is_ok_and(|found| found == name);
        is_it.then(|| decode(value).ok()).flatten()
    })
}

/// A query without a parameter.
pub(super) fn without(query: &str, name: &str) -> String {
    let kept: Vec<&str> = query
        .split('&')
        .filter(|pair| {
            let found = pair.split_once('=').map_or(*pair, |(found, _)| found);
            !decode(found).is_ok_and(|found| found == name)
        })
        .collect();
    kept.join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found_by_their_decoded_names() {
        let query = "a=1&hub.challenge=x%20y&k%65y=s3cret&b";
        assert_eq!(value(query, "hub.challenge").as_deref(), Some("x y"));
        assert_eq!(value(query, "key").as_deref(), Some("s3cret"));
        assert_eq!(value(query, "b").as_deref(), Some(""));
        assert_eq!(value(query, "c"), None);
        assert_eq!(without(query, "key"), "a=1&hub.challenge=x%20y&b");
    }
}
