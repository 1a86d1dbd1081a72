//! The header `Link`: where the next page is.

use towpath_step_http::{HeaderMap, Url, header};

/// Finds the target of `rel="next"`, relative to the page it came with.
pub(crate) fn next(headers: &HeaderMap, base: &Url) -> Option<Url> {
    let values = headers.get_all(header::LINK).into_iter();
    let target = values
        .filter_map(|value| value.to_str().ok())
        .find_map(next_target)?;
    base.join(target).ok()
}

/// Finds the target of `rel="next"` among links such as `<a>; rel="prev", <b>; rel="next"`.
fn next_target(header: &str) -> Option<&str> {
    let mut rest = header;
    while let Some(start) = rest.find('<') {
        let length = rest[start..].find('>')?;
        let target = &rest[start + 1..start + length];
        let parameters = &rest[start + length + 1..];
        // A comma ends the parameters, unless it is quoted.
        let mut quoted = false;
        let end = parameters.find(|c: char| {
            quoted ^= c == '"';
            c == ',' && !quoted
        });
        let end = end.unwrap_or(parameters.len());
        if parameters[..end].split(';').any(is_next) {
            return Some(target.trim());
        }
        rest = &parameters[end..];
    }
    None
}

fn is_next(parameter: &str) -> bool {
    let Some((name, value)) = parameter.split_once('=') else {
        return false;
    };
    let relations = value.trim().trim_matches('"');
    name.trim().eq_ignore_ascii_case("rel")
        && relations
            .split_whitespace()
            .any(|relation| relation.eq_ignore_ascii_case("next"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(links: &[&str], expect: Option<&str>) {
        let mut headers = HeaderMap::new();
        for link in links {
            headers.append(header::LINK, link.parse().unwrap());
        }
        let base: Url = "https://shop.example/a/orders?page=1".parse().unwrap();
        assert_eq!(next(&headers, &base).as_ref().map(Url::as_str), expect);
    }

    #[test]
    fn the_next_page_is_found_among_links() {
        check(&[], None);
        check(
            &["<https://shop.example/x?page=2>; rel=\"next\""],
            Some("https://shop.example/x?page=2"),
        );
        check(
            &["</x?page=2>; rel=next"],
            Some("https://shop.example/x?page=2"),
        );
        check(
            &["<?page=2>; rel=\"next\""],
            Some("https://shop.example/a/orders?page=2"),
        );
        check(
            &["<?p=0>; rel=\"prev\"; title=\"a, b\", <?p=2>;title=x; REL=\"last Next\""],
            Some("https://shop.example/a/orders?p=2"),
        );
        check(
            &["<?p=0>; rel=\"first\"", "<?p=2>; rel=\"next\""],
            Some("https://shop.example/a/orders?p=2"),
        );
        check(&["<?p=0>; rel=\"prev\", <?p=9>; rel=\"last\""], None);
        check(&["<broken"], None);
        check(&["<?p=0>; rel=\"nextish\""], None);
    }
}
