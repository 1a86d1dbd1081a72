//! What is to become of messages that wait for a step that goes away: pure.
//!
//! # Invariants
//!
//! - `nothing_is_decided_for_anybody`: messages wait, and nobody chose: refused.
//! - `choices_that_cannot_be_meant_are_errors`.

use std::collections::BTreeMap;

use towpath_flow::{Flow, Step, nearest};

use super::error::{ControlError, ErrorKind};

/// What whoever applies chose, for all steps that go away.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Choices {
    /// They are let finish first.
    pub(super) drain_first: bool,
    /// Their messages become dead letters.
    pub(super) dead_letter: bool,
    /// Their messages are dropped.
    pub(super) drop_messages: bool,
    /// The steps that take their messages, by the step that goes away.
    pub(super) moves: BTreeMap<String, String>,
}

/// What becomes of the messages of a step that goes away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    /// There are none.
    Empty,
    /// Nobody chose.
    Refused,
    /// The step finishes them first.
    Drained,
    /// Another step takes them.
    Moved(String),
    /// They become dead letters.
    DeadLettered,
    /// They are dropped.
    Dropped,
}

impl Fate {
    /// In words, after "its messages".
    pub(super) fn words(&self) -> String {
        match self {
            Self::Empty => "there are none".to_owned(),
            Self::Refused => "refused: choose what becomes of its messages".to_owned(),
            Self::Drained => "it finishes them first".to_owned(),
            Self::Moved(to) => format!("`{to}` takes them"),
            Self::DeadLettered => "they become dead letters".to_owned(),
            Self::Dropped => "they are dropped".to_owned(),
        }
    }
}

impl Choices {
    /// What becomes of the messages of a step that goes away.
    pub(super) fn fate(&self, step: &str, has_messages: bool) -> Fate {
        if let Some(to) = self.moves.get(step) {
            Fate::Moved(to.clone())
        } else if self.drain_first {
            Fate::Drained
        } else if !has_messages {
            Fate::Empty
        } else if self.dead_letter {
            Fate::DeadLettered
        } else if self.drop_messages {
            Fate::Dropped
        } else {
            Fate::Refused
        }
    }

    /// Refuses what cannot be meant. `old` is the flow as it is, if it is there.
    pub(super) fn check(&self, old: Option<&Flow>, new: &Flow) -> Result<(), ControlError> {
        let chosen = [
            (self.drain_first, "drain_first"),
            (self.dead_letter, "dead_letter"),
            (self.drop_messages, "drop_messages"),
        ];
        let mut chosen = chosen.iter().filter(|(is, _)| *is).map(|(_, name)| *name);
        if let (Some(one), Some(other)) = (chosen.next(), chosen.next()) {
            let message = format!("`{one}` and `{other}` contradict each other");
            return Err(
                ControlError::new(ErrorKind::Bad, "choices_contradict", message).hint(
                    "choose one of them; `move` may be given beside either, for single steps",
                ),
            );
        }
        for (from, to) in &self.moves {
            check_move(old, new, from, to)?;
        }
        Ok(())
    }
}

fn check_move(old: Option<&Flow>, new: &Flow, from: &str, to: &str) -> Result<(), ControlError> {
    let bad = |message: String| ControlError::new(ErrorKind::Bad, "bad_move", message);
    if from == to {
        return Err(
            bad(format!("messages of `{from}` cannot be moved to itself")).hint(
                "name the step that goes away and the step that takes its messages: `old=new`",
            ),
        );
    }
    let find = |flow: &'_ Flow, id: &str| flow.steps.iter().find(|it| it.id == id).cloned();
    if find(new, from).is_some() {
        return Err(bad(format!(
            "`{from}` is still in the file: its messages stay with it"
        ))
        .hint("only messages of a step that goes away are moved"));
    }
    let Some(source) = old.and_then(|old| find(old, from)) else {
        let error = bad(format!(
            "`{}` has no step `{from}` that goes away",
            new.name
        ));
        let gone = old.into_iter().flat_map(|old| {
            let is_gone = |it: &&Step| new.steps.iter().all(|step| step.id != it.id);
            old.steps.iter().filter(is_gone)
        });
        return Err(with_near(error, from, gone));
    };
    let Some(target) = find(new, to) else {
        let error = bad(format!(
            "there is no step `{to}` in the file that could take them"
        ));
        return Err(with_near(error, to, new.steps.iter()));
    };
    let is_fired = |flow: &Flow, step: &Step| step.is_trigger && flow.fires.by_ticks();
    let takes_ticks = is_fired(new, &target);
    let gives_ticks = old.is_some_and(|old| is_fired(old, &source));
    if takes_ticks != gives_ticks {
        return Err(bad(format!(
            "`{to}` cannot take what `{from}` has: one is fired by ticks, and the other handles messages"
        ))
        .hint("move to a step of the same kind, or choose another way"));
    }
    Ok(())
}

fn with_near<'a>(
    error: ControlError,
    name: &str,
    steps: impl Iterator<Item = &'a Step>,
) -> ControlError {
    let names: Vec<&str> = steps.map(|step| step.id.as_str()).collect();
    match nearest(name, names.iter().copied()) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None if names.is_empty() => error.hint("no step goes away"),
        None => error.hint(format!("there are {}", names.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use towpath_flow::{Facts, Source, check};

    use super::*;

    fn flow(trigger: &str, steps: &[&str]) -> Flow {
        let actions: Vec<String> = steps
            .iter()
            .map(|step| format!("  - {{ id: {step}, image: \"x:1\" }}\n"))
            .collect();
        let actions = actions.concat();
        let text = format!(
            "flow: f\ntrigger: {{ id: t, image: \"t:1\", {trigger} }}\nactions:\n{actions}"
        );
        check(&Source::new("f.yaml", text.as_bytes()), &Facts::default())
            .unwrap_or_else(|found| panic!("{}", found.render(towpath_flow::Paint::Plain)))
            .flow
    }

    fn moves(from: &str, to: &str) -> Choices {
        Choices {
            moves: BTreeMap::from([(from.to_owned(), to.to_owned())]),
            ..Choices::default()
        }
    }

    #[test]
    fn nothing_is_decided_for_anybody() {
        let none = Choices::default();
        assert_eq!(none.fate("a", true), Fate::Refused);
        assert_eq!(none.fate("a", false), Fate::Empty);
        let moving = moves("a", "b");
        assert_eq!(moving.fate("a", true), Fate::Moved("b".into()));
        assert_eq!(moving.fate("c", true), Fate::Refused);
        let dead = Choices {
            dead_letter: true,
            ..moves("a", "b")
        };
        assert_eq!(dead.fate("a", true), Fate::Moved("b".into()));
        assert_eq!(dead.fate("c", true), Fate::DeadLettered);
        assert_eq!(dead.fate("c", false), Fate::Empty);
    }

    #[track_caller]
    fn refused(choices: &Choices, says: &str, hint: &str) {
        let old = flow("every: 1h", &["shape", "crm"]);
        let new = flow("every: 1h", &["shape", "deals"]);
        let error = choices.check(Some(&old), &new).unwrap_err();
        let given = error.hint.clone().unwrap_or_default();
        assert!(error.message.contains(says), "{error:?}");
        assert!(given.contains(hint), "{error:?}");
    }

    #[test]
    fn choices_that_cannot_be_meant_are_errors() {
        let both = Choices {
            drain_first: true,
            dead_letter: true,
            ..Choices::default()
        };
        refused(&both, "contradict", "choose one");
        refused(&moves("crm", "crm"), "to itself", "old=new");
        refused(&moves("shape", "deals"), "still in the file", "goes away");
        refused(
            &moves("crn", "deals"),
            "no step `crn`",
            "did you mean `crm`?",
        );
        refused(
            &moves("crm", "deal"),
            "no step `deal`",
            "did you mean `deals`?",
        );
        refused(&moves("crm", "t"), "ticks", "same kind");
        let old = flow("every: 1h", &["shape", "crm"]);
        let new = flow("every: 1h", &["shape", "deals"]);
        moves("crm", "deals").check(Some(&old), &new).unwrap();
        moves("crm", "shape").check(Some(&old), &new).unwrap();
        assert!(moves("crm", "deals").check(None, &new).is_err());
        let requests = flow("webhook: true", &["shape", "crm"]);
        assert!(
            moves("crm", "t")
                .check(Some(&requests), &flow("webhook: true", &["shape"]))
                .is_ok()
        );
    }
}
