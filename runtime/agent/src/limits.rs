//! Every limit of an agent that is not a setting of the flow, in one place, each with its reason.

use std::time::Duration;

/// The limits. Tests use smaller ones.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Outputs of one message that are held until it is done; beyond, they are streamed.
    pub held_outputs: usize,
    /// Bytes of outputs of one message that are held until it is done.
    pub held_bytes: usize,
    /// Bytes of outputs of all messages that are held: a step with many in hand must not take
    /// [`Self::held_bytes`] for each.
    pub held_bytes_all: usize,
    /// Bytes of outputs that were made from several messages and are held until all of those are
    /// done: they are never streamed, because a message that fails later would be in a second one.
    /// Twice [`Self::together_bytes`], so that whatever was handed over together can be put together.
    pub joint_bytes: usize,
    /// Bytes of log lines of all attempts that are kept, in case they fail: a step with hundreds of
    /// messages in hand must not take [`towpath_protocol::message::ATTEMPT_LINES_MAX`] lines for each.
    pub attempt_log_bytes_all: usize,
    /// Bytes that are published or about to be and not confirmed, above which the step's frames
    /// are not read: back-pressure.
    pub outstanding_bytes: usize,
    /// Outputs whose conditions are evaluated together: enough that the worker never waits for the
    /// loop.
    pub questions: usize,
    /// Bytes of them, unless one alone has more.
    pub question_bytes: usize,
    /// Bytes of one batch: the broker copies a delivery as a whole.
    pub batch_bytes: usize,
    /// How old the oldest of a batch may get while earlier batches await their confirms.
    pub batch_age: Duration,
    /// Batches of one lane that await their confirms.
    pub open_batches: u32,
    /// Messages of one batch that go into the delay ladder together.
    pub delay_batch: u32,
    /// Bytes waiting to be written to the step, above which nothing more is handed over.
    pub step_input_bytes: usize,
    /// Bytes of messages that are handed over together, unless one alone has more: all of them are in
    /// the memory of the agent and of the step.
    pub together_bytes: usize,
    /// How long a step may take to say `ready`: a cold virtual machine is slow.
    pub hello: Duration,
    /// How long a step may take to come back with a cancelled message before it is killed.
    pub cancel_grace: Duration,
    /// The first wait before a step process that died is started again.
    pub restart_first: Duration,
    /// The longest.
    pub restart_longest: Duration,
    /// The first wait after the broker refused a batch.
    pub refused_first: Duration,
    /// The longest.
    pub refused_longest: Duration,
    /// How often a trigger's agent asks for its checkpoint until it is answered.
    pub ask_again: Duration,
    /// How long after a reconnect an outcome waits for its message to be delivered again.
    pub reattach: Duration,
    /// How long notes about messages that wait are gathered before they are sent.
    pub note_age: Duration,
    /// Bytes of notes that are sent at once, however young they are.
    pub note_bytes: usize,
    /// How long deliveries may be held without anything moving before the connection is taken to be
    /// broken: several times what the slowest confirm takes, and a small part of the 30 min after
    /// which the broker itself would act.
    pub stall: Duration,
    /// How long a report says that the connection was made again, and why: long enough to be read.
    pub mishap_told: Duration,
    /// Messages that are claimed, or asked for, ahead of free places in the step's hands
    /// (`once: true`): an answer takes some milliseconds, and the step must not wait for it.
    pub claim_ahead: usize,
    /// Messages in one question to the ledger: one look-up is one transaction of the control plane.
    pub claim_batch: usize,
    /// The same while the control plane does not answer: one small question asks for all.
    pub claim_probe: usize,
    /// Questions under way.
    pub claim_questions: usize,
    /// How long an answer may take before the question is asked again; twice as long after each
    /// silence.
    pub claim_again: Duration,
    /// The longest: how much later than the control plane the step comes back to work.
    pub claim_again_longest: Duration,
    /// How old a claim may be when its message is handed over. The lease of a claim is this and what
    /// the step may then take, so that no message is in the hands of a step whose claim ran out.
    pub claim_margin: Duration,
    /// How old a claim gets before it is asked for once more.
    pub claim_renew: Duration,
    /// The lease of a claim of a step without a time limit. Whoever waits for a message of an agent
    /// that is cut off waits this long, and what such an agent has in hand is taken from it.
    pub claim_lease: Duration,
    /// How often a delivery may come back before its messages are taken one by one: whatever took
    /// it may have died of it.
    pub suspect_returns: u32,
    /// How long a message of such a delivery waits for the ledger, unless the step is `once: true`.
    pub suspect_patience: Duration,
    /// Messages that are on their way from the intake into the partitions of their keys (a step that
    /// keeps an order): enough that neither the filter nor the broker waits for the other.
    pub sort_ahead: usize,
    /// The longest that a message of a step that keeps an order is held until it is tried again: it is
    /// not acknowledged meanwhile, and the broker waits for 30 min.
    pub held_longest: Duration,
    /// How long a trigger that runs for ever has to come to an end before it is cancelled: time for a
    /// page and its checkpoint.
    pub finish: Duration,
    /// How often the tick of a trigger that runs for ever may come back, because its connection was
    /// lost or the broker's consumer timeout passed, before it is ended to begin anew: well below the
    /// delivery limit of 50, at which the broker gives it up.
    pub stream_returns: u32,
    /// How long a step has to exit after `drain` once nothing is in its hands.
    pub leave: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            held_outputs: 256,
            held_bytes: 1 << 20,
            held_bytes_all: 16 << 20,
            joint_bytes: 16 << 20,
            attempt_log_bytes_all: 1 << 20,
            outstanding_bytes: 4 << 20,
            questions: 256,
            question_bytes: 1 << 20,
            batch_bytes: 512 << 10,
            batch_age: Duration::from_millis(10),
            open_batches: 8,
            delay_batch: 256,
            step_input_bytes: 256 << 10,
            together_bytes: 8 << 20,
            hello: Duration::from_secs(60),
            cancel_grace: Duration::from_secs(5),
            restart_first: Duration::from_millis(100),
            restart_longest: Duration::from_secs(30),
            refused_first: Duration::from_millis(50),
            refused_longest: Duration::from_secs(5),
            ask_again: Duration::from_secs(3),
            reattach: Duration::from_secs(60),
            note_age: Duration::from_millis(200),
            note_bytes: 64 << 10,
            stall: Duration::from_secs(60),
            mishap_told: Duration::from_secs(300),
            claim_ahead: 1024,
            claim_batch: 512,
            claim_probe: 16,
            claim_questions: 4,
            claim_again: Duration::from_secs(5),
            claim_again_longest: Duration::from_secs(15),
            claim_margin: Duration::from_secs(60),
            claim_renew: Duration::from_secs(20),
            claim_lease: Duration::from_secs(600),
            suspect_returns: 2,
            suspect_patience: Duration::from_secs(30),
            sort_ahead: 512,
            held_longest: Duration::from_secs(900),
            finish: Duration::from_secs(5),
            stream_returns: 25,
            leave: Duration::from_secs(10),
        }
    }
}
