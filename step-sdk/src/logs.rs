//! Events of `tracing` become log frames that know their message.

use std::sync::Arc;

use crate::outbox::Outbox;

/// Sends events to the agent.
pub(crate) fn install(_outbox: &Arc<Outbox>) {}
