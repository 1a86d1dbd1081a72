//! `towpath why`

use clap::Args;

use super::printer::{Printer, Tone};
use super::problem::Problem;
use super::words::{apart, moment};
use super::{Context, ExitStatus};
use crate::control::{AtStep, Place, Whereabouts};
use crate::store::now_ms;

/// How many children are printed; all of them are in the answer of the API.
const CHILDREN_MAX: usize = 10;

/// Which message.
#[derive(Debug, Args)]
pub(super) struct Why {
    /// Its id: 32 hexadecimal digits, from a log line, a dead letter or a run
    #[arg(value_name = "MESSAGE-ID")]
    id: String,
}

pub(super) async fn run(command: &Why, context: &Context) -> Result<ExitStatus, Problem> {
    let found: Whereabouts = context
        .client()?
        .get(&["messages", &command.id], &[])
        .await?;
    if context.printer.is_json() {
        context.printer.json(&found);
    } else {
        context
            .printer
            .line(&text(&found, now_ms(), context.printer));
    }
    Ok(match found.state {
        Place::Unknown => ExitStatus::No,
        _ => ExitStatus::Done,
    })
}

fn text(found: &Whereabouts, now: u64, printer: Printer) -> String {
    let head = |word: &str| printer.tone(&format!("{word:9}"), Tone::Faint);
    let mut lines = vec![format!("{} {}", head("message"), found.id)];
    for step in &found.steps {
        lines.push(format!(
            "{} {}",
            head("where"),
            printer.tone(&place(step, now), tone(step.place))
        ));
        lines.extend(
            step.reason
                .iter()
                .map(|reason| format!("{} {reason}", head("why"))),
        );
        lines.push(format!("{} {}", head("next"), step.next));
    }
    if found.steps.is_empty() {
        lines.push(format!("{} {}", head("where"), unknown(found, now)));
    }
    for contradiction in &found.contradictions {
        lines.push(format!(
            "{} {}",
            head("but"),
            printer.tone(contradiction, Tone::Fair)
        ));
    }
    for attempt in &found.attempts {
        lines.push(format!(
            "{} {} at {} UTC by replica {} of {}/{}: {}",
            head("attempt"),
            attempt.attempt,
            moment(attempt.at),
            attempt.replica,
            attempt.flow,
            attempt.step,
            attempt.outcome
        ));
        lines.extend(
            attempt
                .log
                .iter()
                .map(|line| format!("{} | {line}", head(""))),
        );
    }
    lines.extend(found.run.iter().map(|run| format!("{} {run}", head("run"))));
    lines.extend(found.parent.iter().map(|parent| {
        let how = match (&parent.step, &parent.port) {
            (Some(step), Some(port)) => format!(" (`{step}` emitted it by port `{port}`)"),
            _ => String::new(),
        };
        format!("{} {}{how}", head("parent"), parent.id)
    }));
    for child in found.children.iter().take(CHILDREN_MAX) {
        lines.push(format!(
            "{} {} (from `{}` by port `{}`, {} ago)",
            head("child"),
            child.id,
            child.step,
            child.port,
            apart(now, child.at)
        ));
    }
    if found.children.len() > CHILDREN_MAX {
        lines.push(format!(
            "{} {} more; `--output json` has them",
            head("child"),
            found.children.len() - CHILDREN_MAX
        ));
    }
    if !found.silent.is_empty() {
        lines.push(format!(
            "{} {} did not answer: what they know is missing here",
            head("asked"),
            found.silent.join(", ")
        ));
    }
    lines.join("\n")
}

/// Where a message is at a step.
fn place(at: &AtStep, now: u64) -> String {
    let step = format!("{}/{}", at.flow, at.step);
    let who = match at.replica {
        Some(replica) => format!("replica {replica} of {step}"),
        None => step.clone(),
    };
    let by = at
        .replica
        .map_or_else(String::new, |replica| format!(" by replica {replica}"));
    let since = at.since.map(|since| apart(now, since));
    let ago = since
        .as_ref()
        .map_or_else(String::new, |since| format!(", {since} ago"));
    let lasting = since
        .as_ref()
        .map_or_else(String::new, |since| format!(" for {since}"));
    let letter = at
        .letter
        .as_ref()
        .map_or_else(String::new, |letter| format!(" (dead letter {letter})"));
    match at.place {
        Place::Dead => format!("dead{letter}: given up at {step}{by}{ago}"),
        Place::Claimed => format!("claimed by {who}{lasting}, which does not say more"),
        Place::InHand => {
            let attempt = at
                .attempt
                .map_or_else(String::new, |attempt| format!(", attempt {attempt}"));
            format!("in the hands of {who}{lasting}{attempt}")
        }
        Place::Settling => format!("decided by {who}, waiting for the broker's confirms"),
        Place::Waiting => {
            let until = at.until.map_or_else(String::new, |until| {
                format!(" until {} UTC, in {}", moment(until), apart(until, now))
            });
            format!("waiting to come back to {step}{until}")
        }
        Place::Taken => format!("taken by {who}, not yet handed to the step"),
        Place::Queued => {
            let ready = match at.ready {
                Some(1) => ", where 1 delivery is ready".to_owned(),
                Some(ready) => format!(", where {ready} deliveries are ready"),
                None => String::new(),
            };
            format!("in the queue of {step}{lasting}{ready}")
        }
        Place::Discarded => format!("discarded{letter}: given up at {step}{by}{ago}"),
        Place::Settled => format!("settled at {step}{by}{ago}"),
        Place::Unmatched => {
            format!("nowhere: emitted by {step}{ago}, and no condition held for it")
        }
        Place::Untraced => format!("sent to {step}{ago}, and there is no trace of it any more"),
        Place::Unknown => format!("unknown at {step}"),
    }
}

/// What is said of a message that nobody knows.
fn unknown(found: &Whereabouts, now: u64) -> String {
    let asked = match (found.answered, found.remembered_since) {
        (0, _) | (_, None) => "no agent could be asked".to_owned(),
        (1, Some(since)) => format!(
            "one agent was asked, which remembers the last {}",
            apart(now, since)
        ),
        (count, Some(since)) => format!(
            "{count} agents were asked, which all remember the last {}",
            apart(now, since)
        ),
    };
    let queued = match found.queued_deliveries {
        0 => "no queue holds anything".to_owned(),
        1 => "one delivery is in a queue, and what is in it is not known".to_owned(),
        count => format!("{count} deliveries are in queues, and what is in them is not known"),
    };
    format!(
        "unknown: it is no dead letter, waits for no retry, and nobody has it; {asked}; {queued}"
    )
}

const fn tone(place: Place) -> Tone {
    match place {
        Place::Dead => Tone::Bad,
        Place::Claimed | Place::Unmatched | Place::Untraced | Place::Unknown => Tone::Fair,
        _ => Tone::Good,
    }
}

#[cfg(test)]
mod tests {
    use super::super::printer::{Color, Output};
    use super::*;
    use crate::control::{Attempt, Child, Parent};

    const NOW: u64 = 1_795_222_861_000;

    fn plain() -> Printer {
        Printer::new(Output::Table, Color::Never, true)
    }

    fn at(place: Place) -> AtStep {
        AtStep {
            flow: "orders".into(),
            step: "crm".into(),
            place,
            replica: Some(2),
            since: Some(NOW - 12_000),
            until: Some(NOW + 240_000),
            attempt: Some(2),
            attempts: Some(5),
            letter: Some("12".into()),
            reason: None,
            ready: Some(120),
            next: "what happens next".into(),
        }
    }

    fn found(steps: Vec<AtStep>) -> Whereabouts {
        Whereabouts {
            id: "3f".repeat(16),
            state: steps.first().map_or(Place::Unknown, |step| step.place),
            steps,
            contradictions: Vec::new(),
            attempts: Vec::new(),
            run: None,
            parent: None,
            children: Vec::new(),
            answered: 3,
            silent: Vec::new(),
            remembered_since: Some(NOW - 600_000),
            queued_deliveries: 7,
        }
    }

    #[test]
    fn what_a_person_sees() {
        let mut dead = found(vec![at(Place::Dead), at(Place::Settled)]);
        dead.steps[0].reason = Some("404 from the shop".into());
        dead.contradictions = vec!["it came twice".into()];
        dead.attempts = vec![Attempt {
            flow: "orders".into(),
            step: "crm".into(),
            attempt: 1,
            at: NOW - 12_000,
            replica: 2,
            outcome: "404 from the shop".into(),
            log: vec!["asking the shop".into()],
        }];
        dead.run = Some("aa".repeat(16));
        dead.parent = Some(Parent {
            id: "bb".repeat(16),
            step: Some("shape".into()),
            port: Some("out".into()),
        });
        let child = Child {
            id: "cc".repeat(16),
            step: "crm".into(),
            port: "out".into(),
            at: NOW - 1_000,
        };
        dead.children = vec![child; 12];
        dead.silent = vec!["replica 1 of orders/mail".into()];
        let mut all = text(&dead, NOW, plain());
        let places = [
            Place::Claimed,
            Place::InHand,
            Place::Settling,
            Place::Waiting,
            Place::Taken,
            Place::Queued,
            Place::Discarded,
            Place::Unmatched,
            Place::Untraced,
        ];
        for one in places {
            let line = text(&found(vec![at(one)]), NOW, plain());
            all = format!("{all}\n\n{line}");
        }
        let nobody = text(&found(Vec::new()), NOW, plain());
        insta::assert_snapshot!(format!("{all}\n\n{nobody}"));
    }
}
