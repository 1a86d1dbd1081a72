//! Keeping to the step's rate: what waits for its turn waits in the queue.

use towpath_protocol::office::Share;

use super::{Consuming, Core};
use crate::clock::Now;
use crate::envelope;
use crate::lanes::LaneId;
use crate::pace::Pace;
use crate::record::{Resolution, State};

impl Core {
    /// Returns whether a message may be handed over now, as far as the rate goes.
    pub(super) fn pace_is_open(&mut self, now: Now) -> bool {
        let waits = self.waiting_here() > 0;
        let Some(pace) = &mut self.pace else {
            return true;
        };
        let is_open = pace.is_open(now.instant);
        if !is_open && waits {
            pace.note_waiting();
        }
        is_open
    }

    /// Returns how many messages are here and wait to be handed over.
    fn waiting_here(&self) -> usize {
        let unread = usize::try_from(self.deliveries.waiting_lines()).unwrap_or(usize::MAX);
        unread
            .saturating_add(self.again.len())
            .saturating_add(self.suspects.len())
            .saturating_add(self.claims.waiting())
    }

    /// Returns whether more is to be taken from the queue, as far as the rate goes.
    pub(super) fn pace_takes(&mut self, now: Now) -> bool {
        if self.order.is_some() {
            // Of each partition little is taken anyway, and leaving them gives them to others.
            return true;
        }
        let here = self.waiting_here();
        let each = self.setup.batch.map_or(1, |batch| batch.max as usize);
        let is_consuming = self.consuming == Consuming::Yes;
        let Some(pace) = &mut self.pace else {
            return true;
        };
        if pace.has_none() {
            return false;
        }
        if pace.is_slow() {
            return here == 0 && pace.is_open(now.instant);
        }
        let ahead = pace.ahead().max(1) * each;
        if is_consuming {
            here <= ahead
        } else {
            here <= ahead / 2
        }
    }

    /// Returns how many messages are claimed ahead of their turn.
    pub(super) fn claimed_ahead_max(&self) -> usize {
        let most = self.setup.limits.claim_ahead;
        let each = self.setup.batch.map_or(1, |batch| batch.max as usize);
        self.pace
            .as_ref()
            .map_or(most, |pace| most.min(pace.ahead().max(1) * each))
    }

    /// Of a delivery with several messages, all but the first would wait here for their turn, and
    /// where that takes long the broker would take them back: they go back to the queue, each by
    /// itself.
    pub(super) fn split_for_pace(&mut self, now: Now) {
        if !self.pace.as_ref().is_some_and(Pace::is_slow) {
            return;
        }
        while let Some((delivery, _, payload)) = self.deliveries.next_returned(0) {
            let lines = || payload.split(|byte| *byte == b'\n');
            let is_known = lines().any(|line| {
                envelope::read(line).is_ok_and(|it| self.records.find(it.id).is_some())
            });
            if is_known {
                // It came back because a connection was lost: what is in hand settles it.
                return;
            }
            self.deliveries.take_whole(delivery);
            let number = self.records.insert_unreadable(payload.clone(), delivery);
            for line in lines() {
                self.publish_settlement(number, LaneId::Delay(0), &[line, b"\n"].concat(), now);
            }
            let record = self.records.get(number);
            record.resolution = Some(Resolution::Split);
            record.state = State::Settling;
        }
    }

    pub(super) fn on_share(&mut self, share: &Share, now: Now) {
        if let Some(pace) = &mut self.pace {
            pace.on_share(share, now.instant);
        }
    }

    /// Returns whether a report is due soon, because others wait to hear of this replica's share.
    pub fn has_news_of_its_share(&self) -> bool {
        self.pace.as_ref().is_some_and(Pace::has_news)
    }

    /// Returns whether there is a rate, and no share of it yet.
    pub fn wants_a_share(&self) -> bool {
        self.pace.as_ref().is_some_and(Pace::has_none)
    }
}
