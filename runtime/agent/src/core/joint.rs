//! Outputs that were made from several messages.
//!
//! Messages that share an output are **bound**: what becomes of them is decided for all at once, when
//! the step has answered the last of them. If all of them are done, the outputs leave, and none is
//! acknowledged before the broker has every output of all. If one of them is not, what they share is
//! void: that one goes the way of any message that failed, the others are handed over once more, and
//! for them nothing is counted.
//!
//! # Invariants
//!
//! - `every_message_is_in_an_output_wherever_it_is_cut`, and in exactly one if nothing breaks.
//! - `whoever_shares_an_output_is_settled_with_the_others`.
//! - `what_fails_makes_void_what_it_shares_and_the_others_come_again_at_once`.
//! - `the_same_messages_make_the_same_output`: its id is a hash of theirs, whatever their order.
//!
//! All of them are in tests/joining.rs.

use std::collections::HashMap;

use towpath_protocol::{DEFAULT_PORT, MessageId};

use super::Core;
use super::step_frames::encode;
use crate::clock::Now;
use crate::journal;
use crate::lanes::Member;
use crate::record::{HeldLine, Resolution, State};
use crate::step_frame::Output;

/// An output that is held until all it was made from is done.
struct Shared {
    line: HeldLine,
    /// Whose lineage it has.
    lead: u32,
    others: Vec<u32>,
}

/// Messages that are bound to each other.
#[derive(Default)]
pub(super) struct Bond {
    members: Vec<u32>,
    /// How many outputs the same messages have emitted by a port.
    counts: HashMap<(MessageId, u16), u64>,
    /// The encoded outputs, one line after the other.
    held: Vec<u8>,
    outputs: Vec<Shared>,
    is_void: bool,
}

/// All of them, by their numbers.
#[derive(Default)]
pub(super) struct Bonds {
    bonds: HashMap<u32, Bond>,
    last: u32,
}

impl Bonds {
    fn get(&mut self, bond: u32) -> &mut Bond {
        self.bonds
            .get_mut(&bond)
            .expect("a bond stays while a message is in it")
    }
}

impl Core {
    /// Notes an output that was made from several messages.
    pub(super) fn on_joint_output(&mut self, output: &Output<'_>, now: Now) -> Result<(), String> {
        let mut ids = output.with.clone();
        ids.push(output.id);
        ids.sort_unstable();
        ids.dedup();
        let mut members = Vec::with_capacity(ids.len());
        let mut is_void = false;
        for id in &ids {
            let number = self.held_by_step(*id)?;
            is_void |= self.cancelled.contains_key(id);
            is_void |= self.records.get(number).bad_output.is_some();
            members.push(number);
        }
        if let Some(reason) = self.cannot_be_sent(output) {
            self.spoil_all(&members, &reason);
            return Ok(());
        }
        let port_name = output.port.as_deref().unwrap_or(DEFAULT_PORT);
        let Some(port) = self.lanes.port(port_name) else {
            self.counters.unconnected += 1;
            return Ok(());
        };
        let lead = self.held_by_step(output.id)?;
        let number = self.bind(&members);
        let bond = self.bonds.get(number);
        bond.is_void |= is_void;
        if bond.is_void {
            self.void(number);
            self.decide_bond(number, now);
            return Ok(());
        }
        let joint = MessageId::of_several(&ids);
        let count = bond.counts.entry((joint, port)).or_default();
        let id = MessageId::derive(joint, &self.setup.identity.step, port_name, *count);
        *count += 1;
        let before = bond.held.len();
        encode(&mut bond.held, self.records.get(lead), id, output);
        let added = bond.held.len() - before;
        members.retain(|member| *member != lead);
        bond.outputs.push(Shared {
            line: HeldLine {
                port,
                len: u32::try_from(added).expect("a frame is below 4 GiB"),
                id,
            },
            lead,
            others: members,
        });
        self.held_bytes += added;
        let limit = self.setup.limits.joint_bytes;
        if bond.held.len() > limit {
            let members = bond.members.clone();
            let reason = format!(
                "the step emitted more than {limit} bytes that were made from several messages: they are held until all of those are done"
            );
            self.spoil_all(&members, &reason);
            self.void(number);
            self.decide_bond(number, now);
        }
        Ok(())
    }

    /// Notes that what these messages emitted cannot be sent on.
    pub(super) fn spoil_all(&mut self, members: &[u32], reason: &str) {
        for member in members {
            self.spoil(*member, reason.to_owned());
        }
    }

    /// Binds messages to each other, with all that each of them was bound to before.
    fn bind(&mut self, members: &[u32]) -> u32 {
        let bound = members.iter().find_map(|it| self.records.get(*it).bond);
        let Bonds { bonds, last } = &mut self.bonds;
        let number = bound.unwrap_or_else(|| {
            *last = last.wrapping_add(1);
            *last
        });
        let mut bond = bonds.remove(&number).unwrap_or_default();
        for member in members {
            match self.records.get(*member).bond {
                Some(known) if known == number => {}
                Some(other) => {
                    let other = bonds
                        .remove(&other)
                        .expect("a bond stays while a message is in it");
                    for moved in &other.members {
                        self.records.get(*moved).bond = Some(number);
                    }
                    bond.members.extend(other.members);
                    bond.counts.extend(other.counts);
                    bond.held.extend(other.held);
                    bond.outputs.extend(other.outputs);
                    bond.is_void |= other.is_void;
                }
                None => {
                    self.records.get(*member).bond = Some(number);
                    bond.members.push(*member);
                }
            }
        }
        bonds.insert(number, bond);
        number
    }

    /// Forgets what messages share: one of them is not done.
    fn void(&mut self, number: u32) {
        let bond = self.bonds.get(number);
        bond.is_void = true;
        self.held_bytes = self.held_bytes.saturating_sub(bond.held.len());
        bond.held = Vec::new();
        bond.outputs = Vec::new();
    }

    /// A message will not be done: what it shares with others is void.
    pub(super) fn leave_bond(&mut self, member: u32, now: Now) {
        let Some(number) = self.records.get(member).bond.take() else {
            return;
        };
        self.bonds
            .get(number)
            .members
            .retain(|other| *other != member);
        self.void(number);
        self.decide_bond(number, now);
    }

    /// The step is done with a message that is bound to others.
    pub(super) fn wait_for_bond(&mut self, member: u32, number: u32, now: Now) {
        self.records.get(member).state = State::Bound;
        self.decide_bond(number, now);
    }

    /// Decides what becomes of messages that are bound to each other, if the step has answered all
    /// of them and all are this agent's to settle.
    pub(super) fn decide_bond(&mut self, number: u32, now: Now) {
        let bond = self.bonds.get(number);
        if bond.is_void {
            let records = &mut self.records;
            let (bound, rest) = std::mem::take(&mut bond.members)
                .into_iter()
                .partition(|member| records.get(*member).state == State::Bound);
            bond.members = rest;
            if bond.members.is_empty() {
                self.bonds.bonds.remove(&number);
            }
            self.hand_once_more(bound, now);
            return;
        }
        // Those that were answered last are at the end, most of the time.
        let mut members = bond.members.iter().rev();
        if members.any(|member| self.records.get(*member).state != State::Bound) {
            return;
        }
        let mut members = bond.members.iter();
        let lost = members.find(|member| self.records.get(**member).deliveries.is_empty());
        match lost.copied() {
            None => self.send_shared(number, now),
            // It may come again, to this agent or to another.
            Some(_) if self.waits_for_lost() => {}
            Some(lost) => {
                self.abandon(lost, now);
                self.release_deferred(now);
            }
        }
    }

    /// All that share outputs are done: their outputs leave.
    fn send_shared(&mut self, number: u32, now: Now) {
        let bond = self.bonds.get(number);
        let members = bond.members.clone();
        let held = std::mem::take(&mut bond.held);
        let outputs = std::mem::take(&mut bond.outputs);
        self.held_bytes = self.held_bytes.saturating_sub(held.len());
        let mut start = 0;
        for Shared { line, lead, others } in outputs {
            let end = start + line.len as usize;
            let member = Member {
                record: lead,
                epoch: 0,
                count: 1,
            };
            let awaited = self.send_output(line.port, &held[start..end], line.id, member, now);
            self.records.get(lead).unconfirmed += awaited;
            start = end;
            for other in others {
                if let Some(id) = self.records.get(other).id {
                    let event = journal::Event::Joined {
                        output: line.id,
                        port: line.port,
                    };
                    self.journal.push(id, now.wall_ms, event);
                }
            }
        }
        for member in members {
            self.resolve(member, Resolution::Done, now);
        }
    }

    /// Ends messages that are bound to each other once the broker has every output of all of them.
    pub(super) fn complete_bond(&mut self, number: u32, now: Now) {
        let mut members = self.bonds.get(number).members.iter().rev();
        let is_open = members.any(|member| {
            let record = self.records.get(*member);
            record.state != State::Settling || record.unconfirmed > 0
        });
        if is_open {
            return;
        }
        let bond = self.bonds.bonds.remove(&number);
        let members = bond.map(|bond| bond.members).unwrap_or_default();
        for member in &members {
            let record = self.records.get(*member);
            record.bond = None;
            record.is_joined = true;
        }
        for member in members {
            self.try_complete(member, now);
        }
    }

    /// Hands over once more what the step was done with, for nothing: what it made of it is void.
    fn hand_once_more(&mut self, members: Vec<u32>, now: Now) {
        for member in members {
            self.spoil_held(member);
            self.records.forget_log(member);
            let record = self.records.get(member);
            record.bond = None;
            record.state = State::Ready;
            record.is_uncertain = true;
            record.start_again();
            if record.deliveries.is_empty() {
                self.abandon(member, now);
                self.release_deferred(now);
            } else {
                self.line_up(member, now);
            }
        }
    }

    /// Gives up what is bound and was not delivered again: someone else has it.
    pub(super) fn abandon_bound(&mut self, now: Now) {
        for number in self.records.in_state(State::Bound) {
            let is_lost = self
                .records
                .peek(number)
                .is_some_and(|record| record.state == State::Bound && record.deliveries.is_empty());
            if is_lost {
                self.abandon(number, now);
            }
        }
    }
}
