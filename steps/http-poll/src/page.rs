//! A walk from page to page: which URL comes first, and which comes next.
//!
//! # Invariants
//!
//! - `credentials_stay_at_their_origin`: a page at another origin is refused, not asked for.
//! - `a_walk_ends`: no page is asked for twice, and there is a most number of pages.

use std::collections::HashSet;

use serde_json::value::RawValue;
use towpath_step_http::{Answer, Url};
use towpath_step_json::{Path, text};

use crate::config::{PageConfig, Style};
use crate::link;
use crate::value::CursorValue;

/// Where a walk goes after a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    /// To this page.
    Page(Url),
    /// Nowhere: this was the last.
    End,
    /// Nowhere: the source leads in a circle.
    Circle,
}

/// A walk leads to another origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ElsewhereError(String);

impl std::fmt::Display for ElsewhereError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "the next page is at {}, which is another origin than `url`",
            self.0
        )
    }
}

impl std::error::Error for ElsewhereError {}

/// The pages of one walk.
#[derive(Debug)]
pub(crate) struct Pages<'a> {
    config: &'a PageConfig,
    /// The first page, with everything but the name of a page.
    base: Url,
    number: u64,
    asked: HashSet<String>,
}

impl<'a> Pages<'a> {
    /// Plans a walk over the list at a URL.
    pub(crate) fn new(
        config: &'a PageConfig,
        url: &Url,
        since: Option<(&str, &CursorValue)>,
    ) -> Self {
        let mut base = url.clone();
        if let Some((param, since)) = since {
            set(&mut base, param, &since.to_string());
        }
        if let (Some(param), Some(size)) = (&config.size_param, config.size) {
            set(&mut base, param, &size.to_string());
        }
        Self {
            config,
            base,
            number: config.start.unwrap_or(1),
            asked: HashSet::new(),
        }
    }

    /// Returns the first page.
    pub(crate) fn first(&mut self) -> Url {
        let mut url = self.base.clone();
        if self.config.style == Style::Number {
            set(&mut url, self.param("page"), &self.number.to_string());
        }
        self.asked.insert(url.to_string());
        url
    }

    /// Decides where to go after a page that had `count` items.
    pub(crate) fn next(
        &mut self,
        answer: &Answer,
        document: &RawValue,
        count: usize,
    ) -> Result<Next, ElsewhereError> {
        let is_over = self
            .config
            .end
            .as_ref()
            .is_some_and(|end| end.is_true(document));
        let is_not_more = |more: &Path| more.find(document).is_some() && !more.is_true(document);
        if is_over || self.config.more.as_ref().is_some_and(is_not_more) {
            return Ok(Next::End);
        }
        let url = match self.config.style {
            Style::None => None,
            Style::Link => link::next(&answer.headers, &answer.url),
            Style::Cursor => self.by_cursor(answer, document),
            Style::Number if count == 0 => None,
            Style::Number => {
                self.number += 1;
                let mut url = self.base.clone();
                set(&mut url, self.param("page"), &self.number.to_string());
                Some(url)
            }
        };
        let Some(url) = url else {
            return Ok(Next::End);
        };
        if url.origin() != self.base.origin() {
            return Err(ElsewhereError(url.origin().ascii_serialization()));
        }
        if !self.asked.insert(url.to_string()) {
            return Ok(Next::Circle);
        }
        Ok(Next::Page(url))
    }

    fn by_cursor(&self, answer: &Answer, document: &RawValue) -> Option<Url> {
        let default = Path::from("next_cursor");
        let path = self.config.next.as_ref().unwrap_or(&default);
        let next = text(path.find_some(document)?)?;
        if next.is_empty() || next == "false" {
            return None;
        }
        if next.starts_with("http://") || next.starts_with("https://") || next.starts_with('/') {
            return answer.url.join(&next).ok();
        }
        let mut url = self.base.clone();
        set(&mut url, self.param("cursor"), &next);
        Some(url)
    }

    fn param(&self, default: &'static str) -> &'a str {
        self.config.param.as_deref().unwrap_or(default)
    }
}

/// Sets a parameter of a URL's query, in place of one that is there.
fn set(url: &mut Url, name: &str, value: &str) {
    let others: Vec<(String, String)> = url
        .query_pairs()
        .filter(|(other, _)| other != name)
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .collect();
    url.query_pairs_mut()
        .clear()
        .extend_pairs(others)
        .append_pair(name, value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use towpath_step_http::{HeaderMap, StatusCode, header};

    fn answer(url: &Url, link: Option<&str>) -> Answer {
        let mut headers = HeaderMap::new();
        if let Some(link) = link {
            headers.insert(header::LINK, link.parse().unwrap());
        }
        Answer {
            status: StatusCode::OK,
            headers,
            body: "".into(),
            url: url.clone(),
        }
    }

    /// Walks over pages (link, body, count) and returns the URLs asked for, and the end.
    fn walk(config: Value, pages: &[(Option<&str>, Value, usize)]) -> (Vec<String>, String) {
        let config: PageConfig = serde_json::from_value(config).unwrap();
        let url: Url = "http://shop/orders?status=paid&page=9".parse().unwrap();
        let since = CursorValue::Text("2026-01-01T00:00:00+01:00".into());
        let mut walk = Pages::new(&config, &url, Some(("updated_since", &since)));
        let mut url = walk.first();
        let mut urls = Vec::new();
        for (link, body, count) in pages {
            urls.push(url.to_string());
            let body = RawValue::from_string(body.to_string()).unwrap();
            match walk.next(&answer(&url, *link), &body, *count) {
                Ok(Next::Page(next)) => url = next,
                Ok(end) => return (urls, format!("{end:?}")),
                Err(error) => return (urls, error.to_string()),
            }
        }
        (urls, format!("to {url}"))
    }

    const FIRST: &str =
        "http://shop/orders?status=paid&page=9&updated_since=2026-01-01T00%3A00%3A00%2B01%3A00";

    #[test]
    fn links_lead_on_until_there_is_none() {
        let next = Some("</orders?after=1>; rel=\"next\"");
        let (urls, end) = walk(json!({}), &[(next, json!([]), 0), (None, json!([]), 1)]);
        assert_eq!(urls, [FIRST, "http://shop/orders?after=1"]);
        assert_eq!(end, "End");
        let (_, end) = walk(json!({"style": "none"}), &[(next, json!([]), 3)]);
        assert_eq!(end, "End");
    }

    #[test]
    fn credentials_stay_at_their_origin() {
        let away = Some("<http://shop:81/orders?secret=1>; rel=\"next\"");
        let (_, end) = walk(json!({}), &[(away, json!([]), 1)]);
        assert_eq!(
            end,
            "the next page is at http://shop:81, which is another origin than `url`"
        );
        let cursor = json!({"style": "cursor"});
        let (_, end) = walk(
            cursor,
            &[(None, json!({"next_cursor": "https://other/x"}), 1)],
        );
        assert_eq!(
            end,
            "the next page is at https://other, which is another origin than `url`"
        );
    }

    #[test]
    fn cursors_lead_on_until_there_is_none() {
        let config = json!({"style": "cursor", "next": "meta.next", "param": "after", "size_param": "limit", "size": 50});
        let pages = [
            (None, json!({"meta": {"next": "a b"}}), 1),
            (None, json!({"meta": {"next": 7}}), 1),
            (None, json!({"meta": {"next": null}}), 1),
        ];
        let (urls, end) = walk(config.clone(), &pages);
        let first = format!("{FIRST}&limit=50");
        assert_eq!(
            urls,
            [
                first.clone(),
                format!("{first}&after=a+b"),
                format!("{first}&after=7")
            ]
        );
        assert_eq!(end, "End");
        for last in [
            json!({}),
            json!({"meta": {"next": ""}}),
            json!({"meta": {"next": false}}),
        ] {
            assert_eq!(walk(config.clone(), &[(None, last, 1)]).1, "End");
        }
        let path = json!({"meta": {"next": "/orders?x=2"}});
        assert_eq!(
            walk(config, &[(None, path, 1)]).1,
            "to http://shop/orders?x=2"
        );
    }

    #[test]
    fn numbers_lead_on_until_a_page_is_empty() {
        let config = json!({"style": "number", "start": 0});
        let pages = [
            (None, json!([1]), 1),
            (None, json!([1]), 1),
            (None, json!([]), 0),
        ];
        let (urls, end) = walk(config, &pages);
        let page = |n| {
            format!(
                "http://shop/orders?status=paid&updated_since=2026-01-01T00%3A00%3A00%2B01%3A00&page={n}"
            )
        };
        assert_eq!(urls, [page(0), page(1), page(2)]);
        assert_eq!(end, "End");
    }

    #[test]
    fn markers_end_a_walk() {
        let next = Some("<?p=2>; rel=\"next\"");
        let more = json!({"more": "meta.has_more"});
        assert_eq!(
            walk(
                more.clone(),
                &[(next, json!({"meta": {"has_more": false}}), 1)]
            )
            .1,
            "End"
        );
        assert_eq!(
            walk(
                more.clone(),
                &[(next, json!({"meta": {"has_more": true}}), 1)]
            )
            .1,
            "to http://shop/orders?p=2"
        );
        assert_eq!(
            walk(more, &[(next, json!({}), 1)]).1,
            "to http://shop/orders?p=2"
        );
        let end = json!({"end": "last"});
        assert_eq!(
            walk(end.clone(), &[(next, json!({"last": true}), 1)]).1,
            "End"
        );
        assert_eq!(
            walk(end, &[(next, json!({"last": false}), 1)]).1,
            "to http://shop/orders?p=2"
        );
    }

    #[test]
    fn a_walk_ends() {
        let same = Some("<?p=2>; rel=\"next\"");
        let (urls, end) = walk(json!({}), &[(same, json!([]), 1), (same, json!([]), 1)]);
        assert_eq!((urls.len(), end.as_str()), (2, "Circle"));
        let cursor = json!({"style": "cursor"});
        let page = (None, json!({"next_cursor": "x"}), 1);
        let (urls, end) = walk(cursor, &[page.clone(), page]);
        assert_eq!((urls.len(), end.as_str()), (2, "Circle"));
    }
}
