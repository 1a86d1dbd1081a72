//! A panic of a handler fails its message; the process stays.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::pin::Pin;
use std::sync::Once;
use std::task::{Context, Poll};

use towpath_protocol::MessageId;

use crate::error::StepError;

thread_local! {
    /// The message that is being worked on, on this thread, now.
    static CURRENT: Cell<Option<MessageId>> = const { Cell::new(None) };
    static GUARDED: Cell<bool> = const { Cell::new(false) };
    static PANICKED_AT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Returns the message that is being worked on, on this thread, now.
pub(crate) fn current_message() -> Option<MessageId> {
    CURRENT.get()
}

/// Work that is known to belong to a message while it runs, and whose panic is an error.
#[derive(Debug)]
pub(crate) struct Guarded<F: ?Sized> {
    id: Option<MessageId>,
    work: Pin<Box<F>>,
}

impl<F: Future + ?Sized> Guarded<F> {
    pub(crate) fn new(id: Option<MessageId>, work: Pin<Box<F>>) -> Self {
        install_hook();
        Self { id, work }
    }
}

impl<F: Future + ?Sized> Future for Guarded<F> {
    type Output = Result<F::Output, StepError>;

    fn poll(mut self: Pin<&mut Self>, ctx: &mut Context<'_>) -> Poll<Self::Output> {
        let before = CURRENT.replace(self.id);
        let result = guard(|| self.work.as_mut().poll(ctx));
        CURRENT.set(before);
        match result {
            Ok(poll) => poll.map(Ok),
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

/// Runs a function and makes a retry of its panic.
pub(crate) fn guard<T>(function: impl FnOnce() -> T) -> Result<T, StepError> {
    let before = GUARDED.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(function));
    GUARDED.set(before);
    result.map_err(|payload| {
        let place = PANICKED_AT
            .take()
            .map(|place| format!(" at {place}"))
            .unwrap_or_default();
        StepError::retry(format!(
            "the handler panicked{place}: {}",
            message(&*payload)
        ))
    })
}

fn message(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// Notes where a handler panicked. Elsewhere, and when a backtrace is asked for, panics are
/// printed as always.
fn install_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let printed = panic::take_hook();
        let backtrace = std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0");
        panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
            if GUARDED.get() {
                PANICKED_AT.set(info.location().map(ToString::to_string));
            }
            if !GUARDED.get() || backtrace {
                printed(info);
            }
        }));
    });
}
