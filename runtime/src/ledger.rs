//! The ledger's decision: who may have a message. Pure.
//!
//! # Invariants
//!
//! - `what_is_settled_is_never_granted`.
//! - `a_live_claim_is_granted_to_nobody_else`: only its lease, or a proof that its holder is gone,
//!   ends it.
//! - `a_claim_of_someone_gone_is_taken_over`, and whoever takes it over knows that.
//! - `nobody_takes_over_while_a_settlement_may_be_unread`.
//! - Only a message that was alone in the hands of whoever died counts a death.

use towpath_protocol::office::Grant;

/// How long to wait before a message in somebody's hands is asked for again: about as long as it
/// takes to notice that a container is gone.
const AGAIN_MS: u64 = 1_000;

/// The shortest such wait.
const AGAIN_MS_MIN: u64 = 50;

/// What the ledger has about a message of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// It is settled.
    Settled,
    /// It is not.
    Open(Open),
}

/// A message that was claimed, and is not settled.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Open {
    /// Who has it, if anybody.
    pub hold: Option<Hold>,
    /// Somebody who is gone had it.
    pub uncertain: bool,
    /// How many containers died while they had it alone in their hands.
    pub deaths: u32,
    /// How the last of them died.
    pub death: Option<String>,
}

/// That somebody has a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// It is whoever asks now.
    pub is_askers: bool,
    /// Until when the claim holds, in milliseconds since 1970.
    pub until: u64,
    /// It was handed over alone.
    pub alone: bool,
    /// Whether whoever holds it is gone.
    pub end: Option<End>,
}

/// That an agent is gone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct End {
    /// How, if that is known.
    pub how: Option<String>,
}

/// One start of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Which.
    pub incarnation: String,
    /// The incarnations of the same replica that the ledger heard of earlier.
    pub older: Vec<String>,
    /// Since when the ledger knows a later one, if it does.
    pub newer_since: Option<u64>,
}

/// What is known of a replica from elsewhere. All times are in milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sighting {
    /// The incarnation that its last report was from, and when it wrote it.
    pub reported: Option<(String, u64)>,
    /// When the last look at the containers began; 0 if there was none.
    pub looked_at: u64,
    /// Whether that look found a container of this replica that had not ended.
    pub is_there: bool,
    /// When a container of this replica failed last, and how.
    pub failure: Option<(u64, String)>,
}

/// When entries are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The time, in milliseconds since 1970.
    pub now: u64,
    /// Whether somebody may take over from somebody else. Not as long as entries may be unread that
    /// waited while nobody read: a settlement may be among them.
    pub takeovers: bool,
}

/// Decides whether whoever asks may have a message. [`Grant::Yours`] says as well what the ledger
/// has to say of it from now on.
pub fn decide(entry: Option<&Entry>, moment: Moment) -> Grant {
    let now = moment.now;
    let open = match entry {
        None => return yours(&Open::default()),
        Some(Entry::Settled) => return Grant::Settled,
        Some(Entry::Open(open)) => open,
    };
    let Some(hold) = &open.hold else {
        return yours(open);
    };
    if hold.is_askers {
        return yours(open);
    }
    if !moment.takeovers {
        return Grant::Busy { again_ms: AGAIN_MS };
    }
    let mut taken = Open {
        hold: None,
        uncertain: true,
        ..open.clone()
    };
    if let Some(end) = &hold.end {
        if hold.alone {
            taken.deaths = taken.deaths.saturating_add(1);
            taken.death.clone_from(&end.how);
        }
        return yours(&taken);
    }
    if hold.until <= now {
        return yours(&taken);
    }
    Grant::Busy {
        again_ms: (hold.until - now).clamp(AGAIN_MS_MIN, AGAIN_MS),
    }
}

fn yours(open: &Open) -> Grant {
    Grant::Yours {
        uncertain: open.uncertain,
        deaths: open.deaths,
        death: open.death.clone(),
    }
}

/// Says whether an agent that claimed something at `claimed_at` is known to be gone.
///
/// The name of a container is that of its replica, so there is one at a time: an agent is gone if
/// the same replica was heard of with another incarnation since, or if a look that began after the
/// claim found no container of that replica. What was heard late proves nothing: an incarnation
/// that came earlier does not replace a later one.
pub fn end(holder: &Holder, claimed_at: u64, sighting: &Sighting) -> Option<End> {
    let is_replaced = is_over(holder, sighting);
    let is_reported_otherwise = sighting.reported.as_ref().is_some_and(|(incarnation, at)| {
        *incarnation != holder.incarnation
            && *at > claimed_at
            && !holder.older.contains(incarnation)
    });
    let is_missing = sighting.looked_at > claimed_at && !sighting.is_there;
    (is_replaced || is_reported_otherwise || is_missing).then(|| {
        let since = |(at, _): &&(u64, String)| *at >= claimed_at;
        let failure = sighting.failure.as_ref().filter(since);
        End {
            how: failure.map(|(_, how)| how.clone()),
        }
    })
}

/// Says whether a later incarnation took the place of this one: then what it asks for comes late,
/// and nobody waits for the answer.
pub fn is_over(holder: &Holder, sighting: &Sighting) -> bool {
    holder.newer_since.is_some_and(|since| {
        // It still speaks: the entries of the two came in the wrong order.
        let speaks =
            |(incarnation, at): &(String, u64)| *incarnation == holder.incarnation && *at > since;
        !sighting.reported.as_ref().is_some_and(speaks)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 10_000;

    fn hold() -> Hold {
        Hold {
            is_askers: false,
            until: NOW + 60_000,
            alone: false,
            end: None,
        }
    }

    fn open(hold: Option<Hold>) -> Entry {
        Entry::Open(Open {
            hold,
            ..Open::default()
        })
    }

    fn granted(uncertain: bool, deaths: u32, death: Option<&str>) -> Grant {
        Grant::Yours {
            uncertain,
            deaths,
            death: death.map(Into::into),
        }
    }

    #[track_caller]
    fn check(entry: Option<&Entry>, expect: &Grant) {
        let moment = Moment {
            now: NOW,
            takeovers: true,
        };
        assert_eq!(decide(entry, moment), *expect, "{entry:?}");
    }

    #[test]
    fn nobody_takes_over_while_a_settlement_may_be_unread() {
        let late = Hold {
            until: NOW - 1,
            ..hold()
        };
        let moment = Moment {
            now: NOW,
            takeovers: false,
        };
        let busy = Grant::Busy { again_ms: AGAIN_MS };
        assert_eq!(decide(Some(&open(Some(late.clone()))), moment), busy);
        let gone = Hold {
            end: Some(End::default()),
            ..late
        };
        assert_eq!(decide(Some(&open(Some(gone))), moment), busy);
        let own = Hold {
            is_askers: true,
            ..hold()
        };
        let granted = granted(false, 0, None);
        assert_eq!(decide(Some(&open(Some(own))), moment), granted);
        assert_eq!(decide(None, moment), granted);
    }

    #[test]
    fn what_is_settled_is_never_granted() {
        check(Some(&Entry::Settled), &Grant::Settled);
    }

    #[test]
    fn what_nobody_has_is_granted() {
        check(None, &granted(false, 0, None));
        check(Some(&open(None)), &granted(false, 0, None));
        let known = Open {
            hold: None,
            uncertain: true,
            deaths: 1,
            death: Some("killed".into()),
        };
        check(Some(&Entry::Open(known)), &granted(true, 1, Some("killed")));
    }

    #[test]
    fn a_live_claim_is_granted_to_nobody_else() {
        let busy = |again_ms| Grant::Busy { again_ms };
        check(Some(&open(Some(hold()))), &busy(AGAIN_MS));
        let short = Hold {
            until: NOW + 300,
            alone: true,
            ..hold()
        };
        check(Some(&open(Some(short))), &busy(300));
        let last = Hold {
            until: NOW + 1,
            ..hold()
        };
        check(Some(&open(Some(last))), &busy(AGAIN_MS_MIN));
    }

    #[test]
    fn whoever_has_it_gets_it_again() {
        let own = Hold {
            is_askers: true,
            until: NOW - 1,
            alone: true,
            end: Some(End::default()),
        };
        check(Some(&open(Some(own))), &granted(false, 0, None));
    }

    #[test]
    fn a_claim_of_someone_gone_is_taken_over() {
        let how = || {
            Some(End {
                how: Some("killed".into()),
            })
        };
        let gone = |alone| Hold {
            alone,
            end: how(),
            ..hold()
        };
        check(Some(&open(Some(gone(false)))), &granted(true, 0, None));
        check(
            Some(&open(Some(gone(true)))),
            &granted(true, 1, Some("killed")),
        );
        let again = Open {
            hold: Some(gone(true)),
            uncertain: true,
            deaths: 2,
            death: Some("terminated".into()),
        };
        check(Some(&Entry::Open(again)), &granted(true, 3, Some("killed")));
    }

    #[test]
    fn a_lease_that_has_passed_is_no_death() {
        let late = Hold {
            until: NOW,
            alone: true,
            ..hold()
        };
        check(Some(&open(Some(late))), &granted(true, 0, None));
    }

    fn holder() -> Holder {
        Holder {
            incarnation: "b".into(),
            older: vec!["a".into()],
            newer_since: None,
        }
    }

    fn reported(incarnation: &str, at: u64) -> Sighting {
        Sighting {
            reported: Some((incarnation.into(), at)),
            ..Sighting::default()
        }
    }

    #[test]
    fn who_is_gone_is_known_from_what_came_after_the_claim() {
        let gone = |holder: &Holder, sighting: &Sighting| end(holder, 1_000, sighting).is_some();
        let one = holder();
        assert!(!gone(&one, &Sighting::default()), "nothing is known");
        assert!(!gone(&one, &reported("b", 2_000)), "it speaks");
        assert!(gone(&one, &reported("c", 2_000)), "another one speaks");
        assert!(!gone(&one, &reported("c", 900)), "another one spoke before");
        assert!(!gone(&one, &reported("a", 2_000)), "an older one, late");
        let looked = |looked_at, is_there| Sighting {
            looked_at,
            is_there,
            ..Sighting::default()
        };
        assert!(gone(&one, &looked(1_001, false)), "no container");
        assert!(!gone(&one, &looked(1_001, true)), "a container");
        assert!(!gone(&one, &looked(1_000, false)), "looked too early");
        let replaced = Holder {
            newer_since: Some(1_500),
            ..holder()
        };
        assert!(gone(&replaced, &Sighting::default()), "a later one claimed");
        assert!(gone(&replaced, &reported("b", 1_400)), "its last words");
        assert!(!gone(&replaced, &reported("b", 1_600)), "it still speaks");
    }

    #[test]
    fn how_it_died_is_said_if_it_died_since() {
        let failed = |at| Sighting {
            looked_at: 5_000,
            failure: Some((at, "it was killed".into())),
            ..Sighting::default()
        };
        let how = |at| end(&holder(), 1_000, &failed(at)).expect("it is gone").how;
        assert_eq!(how(1_200).as_deref(), Some("it was killed"));
        assert_eq!(how(800), None);
    }
}
