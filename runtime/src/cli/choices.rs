//! What becomes of messages that wait for a step that goes away: what `towpath apply`, `plan` and
//! `rollback` share.

use std::collections::BTreeMap;

use clap::Args;

use crate::control::view::{Draft, RollbackRequest};

/// What becomes of messages that wait for a step that goes away.
#[derive(Debug, Clone, Args)]
pub(super) struct Choices {
    /// Lets steps that go away finish what they have first; what leads to them holds still
    #[arg(long, conflicts_with_all = ["dead_letter", "drop_messages"])]
    drain_first: bool,
    /// Gives the messages of a step that goes away to another step
    #[arg(long = "move", value_name = "OLD=NEW", value_parser = pair)]
    moves: Vec<(String, String)>,
    /// Keeps messages of steps that go away as dead letters
    #[arg(long, conflicts_with = "drop_messages")]
    dead_letter: bool,
    /// Drops messages of steps that go away
    #[arg(long)]
    drop_messages: bool,
}

impl Choices {
    /// Puts them into a draft.
    pub(super) fn fill(&self, draft: &mut Draft) {
        draft.drain_first = self.drain_first;
        draft.dead_letter = self.dead_letter;
        draft.drop_messages = self.drop_messages;
        draft.moves = self.moves();
    }

    /// A request to go back with them.
    pub(super) fn request(&self, version: Option<u32>) -> RollbackRequest {
        RollbackRequest {
            version,
            drain_first: self.drain_first,
            dead_letter: self.dead_letter,
            drop_messages: self.drop_messages,
            moves: self.moves(),
        }
    }

    fn moves(&self) -> BTreeMap<String, String> {
        self.moves.iter().cloned().collect()
    }
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((old, new)) if !old.is_empty() && !new.is_empty() => {
            Ok((old.to_owned(), new.to_owned()))
        }
        _ => Err("write it like `old=new`".to_owned()),
    }
}
