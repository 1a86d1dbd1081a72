//! Events of `tracing` become log frames that know their message.

use std::fmt::{self, Write};
use std::str::FromStr;
use std::sync::Arc;

use towpath_protocol::MessageId;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Event, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

use crate::outbox::Outbox;
use crate::panics::current_message;
use crate::write;

/// What is logged unless `RUST_LOG` says otherwise.
const DEFAULT_FILTER: &str = "info";

/// Makes a subscriber that sends events to the agent. `filter` is like `info,my_step=debug`.
pub(crate) fn subscriber(outbox: &Arc<Outbox>, filter: Option<&str>) -> Dispatch {
    let targets = filter
        .and_then(|filter| Targets::from_str(filter).ok())
        .unwrap_or_else(|| Targets::from_str(DEFAULT_FILTER).expect("a level is a filter"));
    let frames = Frames {
        outbox: Arc::clone(outbox),
    };
    Dispatch::new(tracing_subscriber::registry().with(frames.with_filter(targets)))
}

struct Frames {
    outbox: Arc<Outbox>,
}

/// What a span remembers: its fields, and the message it began under, so that an event on another
/// thread still knows it.
struct Remembered {
    message: Option<MessageId>,
    fields: Text,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Frames {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, ctx: Context<'_, S>) {
        let Some(span) = ctx.span(id) else { return };
        let inherited = || {
            span.parent()?
                .extensions()
                .get::<Remembered>()
                .and_then(|parent| parent.message)
        };
        let message = current_message().or_else(inherited);
        let mut fields = Text::default();
        attributes.record(&mut fields);
        span.extensions_mut().insert(Remembered { message, fields });
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, ctx: Context<'_, S>) {
        if let Some(span) = ctx.span(id)
            && let Some(remembered) = span.extensions_mut().get_mut::<Remembered>()
        {
            values.record(&mut remembered.fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, ctx: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let mut message = current_message();
        for span in ctx.event_scope(event).into_iter().flatten() {
            if let Some(remembered) = span.extensions().get::<Remembered>() {
                text.fields.push_str(&remembered.fields.fields);
                message = message.or(remembered.message);
            }
        }
        let level = match *event.metadata().level() {
            tracing::Level::ERROR => "error",
            tracing::Level::WARN => "warn",
            tracing::Level::INFO => "info",
            tracing::Level::DEBUG => "debug",
            tracing::Level::TRACE => "trace",
        };
        let mut frame = Vec::new();
        write::log(
            &mut frame,
            message,
            level,
            format!("{}{}", text.message, text.fields).trim(),
        );
        self.outbox.push_log(&frame);
    }
}

/// An event as one line: the message, then ` name=value` for each field.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Text {
    fn add(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let written = match field.name() {
            "message" => self.message.write_fmt(value),
            name => write!(self.fields, " {name}={value}"),
        };
        written.expect("a String takes everything");
    }
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format_args!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(filter: Option<&str>, work: impl FnOnce()) -> String {
        let outbox = Arc::new(Outbox::default());
        tracing::dispatcher::with_default(&subscriber(&outbox, filter), work);
        outbox.close();
        let mut frames = Vec::new();
        outbox.take(&mut frames);
        String::from_utf8(frames).unwrap()
    }

    #[test]
    fn an_event_is_a_line_with_its_fields_and_those_of_its_spans() {
        let lines = logged(None, || {
            let span = tracing::info_span!("order", id = 7);
            let _entered = span.enter();
            tracing::warn!(cents = 5, name = "x", "too little");
        });
        assert_eq!(
            lines,
            "{\"log\":{\"level\":\"warn\",\"text\":\"too little cents=5 name=x id=7\"}}\n"
        );
    }

    #[test]
    fn what_is_below_the_level_is_not_logged() {
        assert_eq!(logged(None, || tracing::debug!("detail")), "");
        assert!(logged(Some("debug"), || tracing::debug!("detail")).contains("detail"));
    }
}
