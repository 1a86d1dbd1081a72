//! Dead letters as lines of JSON, page by page.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};

use super::select::{Failures, PAGE, held};
use super::{Control, DeadFilter, letter};
use crate::control::error::ControlError;
use crate::engine::chain;
use crate::filter::Filter;
use crate::store::dead_letters::DeadQuery;

/// Where an export is.
struct Exporting {
    control: Arc<Control>,
    filter: Option<Filter>,
    failures: Failures,
    query: DeadQuery,
    is_over: bool,
}

impl Control {
    /// Writes dead letters, newest first, one a line. A store that fails in the middle cuts it off:
    /// what ends well is whole.
    pub async fn dead_export(
        self: &Arc<Self>,
        filter: &DeadFilter,
    ) -> Result<BoxStream<'static, io::Result<Bytes>>, ControlError> {
        let query = DeadQuery {
            limit: PAGE,
            ..filter.query()?
        };
        let exporting = Exporting {
            control: Arc::clone(self),
            filter: match &filter.filter {
                Some(code) => Some(self.filter(code).await?),
                None => None,
            },
            failures: Failures::default(),
            query,
            is_over: false,
        };
        Ok(stream::unfold(exporting, |mut exporting| async move {
            let page = exporting.page().await?;
            Some((page, exporting))
        })
        .boxed())
    }
}

impl Exporting {
    async fn page(&mut self) -> Option<io::Result<Bytes>> {
        if self.is_over {
            return None;
        }
        let store = &self.control.catalog.store;
        let letters = match store.dead_letters(self.query.clone()).await {
            Ok(letters) => letters,
            Err(error) => {
                self.is_over = true;
                tracing::error!(
                    error = chain(&error),
                    "an export of dead letters was cut off"
                );
                return Some(Err(io::Error::other(error)));
            }
        };
        let Some(last) = letters.last() else {
            self.is_over = true;
            let failures = std::mem::take(&mut self.failures);
            if let Some(left) = failures.left_out("the filter failed on them") {
                tracing::warn!(
                    count = left.count,
                    why = left.why,
                    "dead letters are not in an export"
                );
            }
            return None;
        };
        self.query.before = Some(last.id);
        let chosen = match &self.filter {
            Some(filter) => held(filter, &letters, &mut self.failures).await,
            None => letters.iter().collect(),
        };
        let mut lines = String::new();
        for letter in chosen {
            lines.push_str(letter::exported(letter).get());
            lines.push('\n');
        }
        Some(Ok(Bytes::from(lines)))
    }
}
