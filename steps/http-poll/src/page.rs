//! A walk from page to page: which URL comes first, and which comes next.
//!
//! # Invariants
//!
//! - `credentials_stay_at_their_origin`: a page at another origin is refused, not asked for.
//! - `a_walk_ends`: no page is asked for twice, none that has what the one before it had is gone
//!   beyond, and there is a most number of pages.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::value::RawValue;
use towpath_step_http::{HeaderMap, Url};
use towpath_step_json::{Path, text};

use crate::config::{PageConfig, Style};
use crate::link;
use crate::recent::Recent;
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

/// What was read of a page.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Page<'a> {
    /// Where it came from, after redirects.
    pub(crate) url: &'a Url,
    pub(crate) headers: &'a HeaderMap,
    /// The page without its items.
    pub(crate) document: &'a RawValue,
    /// How many items it had.
    pub(crate) count: u64,
    /// The hash of its items.
    pub(crate) content: u64,
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
    /// The number of the page, or of the items before it.
    number: u64,
    /// The hashes of the URLs that were asked for. Bounded.
    asked: Recent,
    /// The hash of the items of the last page, if it had some.
    last: Option<u64>,
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
        let by_default = (config.style == Style::Offset).then_some("limit");
        let param = config.size_param.as_deref().or(by_default);
        if let (Some(param), Some(size)) = (param, config.size) {
            set(&mut base, param, &size.to_string());
        }
        let first = u64::from(config.style == Style::Number);
        Self {
            config,
            base,
            number: config.start.unwrap_or(first),
            asked: Recent::default(),
            last: None,
        }
    }

    /// Returns the first page.
    pub(crate) fn first(&mut self) -> Url {
        let url = match self.config.style {
            Style::Number => self.numbered("page"),
            Style::Offset => self.numbered("offset"),
            Style::None | Style::Link | Style::Cursor | Style::Url => self.base.clone(),
        };
        self.asked.insert(hash(&url));
        url
    }

    /// Decides where to go after a page.
    pub(crate) fn next(&mut self, page: Page<'_>) -> Result<Next, ElsewhereError> {
        let is_over = |end: &Path| end.is_true(page.document);
        let is_not_more =
            |more: &Path| more.find(page.document).is_some() && !more.is_true(page.document);
        if self.config.end.as_ref().is_some_and(is_over)
            || self.config.more.as_ref().is_some_and(is_not_more)
        {
            return Ok(Next::End);
        }
        let url = match self.config.style {
            Style::None => None,
            Style::Link => link::next(page.headers, page.url),
            Style::Cursor => self.by_cursor(page),
            Style::Url => self
                .named("next", page)
                .and_then(|next| page.url.join(&next).ok()),
            Style::Number | Style::Offset if page.count == 0 => None,
            Style::Number => {
                self.number += 1;
                Some(self.numbered("page"))
            }
            Style::Offset => {
                self.number += page.count;
                Some(self.numbered("offset"))
            }
        };
        let Some(url) = url else {
            return Ok(Next::End);
        };
        if url.origin() != self.base.origin() {
            return Err(ElsewhereError(url.origin().ascii_serialization()));
        }
        // A source that does not know the parameter, or that gives its last page for every page
        // after it, gives the same page again.
        let content = (page.count > 0).then_some(page.content);
        let is_repeated = content.is_some() && content == self.last;
        self.last = content;
        if is_repeated || !self.asked.insert(hash(&url)) {
            return Ok(Next::Circle);
        }
        Ok(Next::Page(url))
    }

    fn by_cursor(&self, page: Page<'_>) -> Option<Url> {
        let next = self.named("next_cursor", page)?;
        if next.starts_with("http://") || next.starts_with("https://") || next.starts_with('/') {
            return page.url.join(&next).ok();
        }
        let mut url = self.base.clone();
        set(&mut url, self.param("cursor"), &next);
        Some(url)
    }

    /// What a page says of the next one.
    fn named(&self, default: &str, page: Page<'_>) -> Option<String> {
        let default = Path::from(default);
        let path = self.config.next.as_ref().unwrap_or(&default);
        let next = text(path.find_some(page.document)?)?;
        (!next.is_empty() && next != "false").then(|| next.into_owned())
    }

    fn numbered(&self, param: &'static str) -> Url {
        let mut url = self.base.clone();
        set(&mut url, self.param(param), &self.number.to_string());
        url
    }

    fn param(&self, default: &'static str) -> &'a str {
        self.config.param.as_deref().unwrap_or(default)
    }
}

fn hash(url: &Url) -> u64 {
    let mut hasher = DefaultHasher::new();
    url.hash(&mut hasher);
    hasher.finish()
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
    use towpath_step_http::header;

    /// Walks over pages (link, body, count) and returns the URLs asked for, and the end.
    fn walk(config: Value, pages: &[(Option<&str>, Value, u64)]) -> (Vec<String>, String) {
        let config: PageConfig = serde_json::from_value(config).unwrap();
        let url: Url = "http://shop/orders?status=paid&page=9".parse().unwrap();
        let since = CursorValue::Text("2026-01-01T00:00:00+01:00".into());
        let mut walk = Pages::new(&config, &url, Some(("updated_since", &since)));
        let mut url = walk.first();
        let mut urls = Vec::new();
        for (index, (link, body, count)) in pages.iter().enumerate() {
            urls.push(url.to_string());
            let body = RawValue::from_string(body.to_string()).unwrap();
            let mut headers = HeaderMap::new();
            if let Some(link) = link {
                headers.insert(header::LINK, link.parse().unwrap());
            }
            let page = Page {
                url: &url,
                headers: &headers,
                document: &body,
                count: *count,
                content: index as u64,
            };
            match walk.next(page) {
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
    fn offsets_lead_on_by_what_there_was_until_a_page_is_empty() {
        let config = json!({"style": "offset", "param": "skip", "size": 50});
        // A source may give less than it was asked for: that is not the end.
        let pages = [
            (None, json!([1]), 50),
            (None, json!([1]), 20),
            (None, json!([]), 0),
        ];
        let (urls, end) = walk(config, &pages);
        let page = |n| format!("{FIRST}&limit=50&skip={n}");
        assert_eq!(urls, [page(0), page(50), page(70)]);
        assert_eq!(end, "End");
    }

    #[test]
    fn urls_in_the_body_lead_on_whole_or_relative() {
        let config = json!({"style": "url", "next": "links.next.href"});
        let next = |href: &str| (None, json!({"links": {"next": {"href": href}}}), 1);
        let pages = [
            next("?after=1"),
            next("orders?after=2"),
            next("http://shop/orders?after=3"),
            (None, json!({"links": {"next": null}}), 1),
        ];
        let (urls, end) = walk(config, &pages);
        let at = |n| format!("http://shop/orders?after={n}");
        assert_eq!(urls, [FIRST.to_owned(), at(1), at(2), at(3)]);
        assert_eq!(end, "End");
        let away = [(None, json!({"next": "//other/x"}), 1)];
        let (_, end) = walk(json!({"style": "url"}), &away);
        assert!(end.ends_with("which is another origin than `url`"), "{end}");
    }

    #[test]
    fn a_page_that_comes_again_under_another_name_ends_the_walk() {
        let config: PageConfig = serde_json::from_value(json!({"style": "number"})).unwrap();
        let url: Url = "http://shop/orders".parse().unwrap();
        let mut walk = Pages::new(&config, &url, None);
        walk.first();
        let (headers, document) = (HeaderMap::new(), RawValue::NULL);
        let mut next = |content| {
            walk.next(Page {
                url: &url,
                headers: &headers,
                document,
                count: 2,
                content,
            })
        };
        assert!(matches!(next(1), Ok(Next::Page(_))));
        assert!(matches!(next(2), Ok(Next::Page(_))));
        assert_eq!(next(2), Ok(Next::Circle));
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
