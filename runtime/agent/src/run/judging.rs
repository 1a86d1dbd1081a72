//! Has the conditions of the steps after this one evaluated, in worker processes of this binary.

use std::path::PathBuf;

use serde_json::value::RawValue;
use tokio::sync::mpsc;
use towpath_step_jq::judge::{Holds, Judge};

use crate::core::Question;

/// What comes of questions.
#[derive(Debug)]
pub(super) enum Judged {
    /// The verdicts on all that were asked together, in their order.
    Verdicts(Vec<Vec<Holds>>),
    /// There are none yet, for this reason.
    Trouble(String),
}

/// Answers questions until nobody asks any more. `conditions` are those of each port.
pub(super) async fn serve(
    program: PathBuf,
    conditions: Vec<Vec<String>>,
    mut questions: mpsc::Receiver<Vec<Question>>,
    judged: mpsc::Sender<Judged>,
) {
    let judge = |conditions| Judge::new(program.clone(), conditions);
    let judges: Vec<Judge> = conditions.into_iter().map(judge).collect();
    while let Some(asked) = questions.recv().await {
        let verdicts = answer(&judges, &asked, &judged).await;
        if judged.send(Judged::Verdicts(verdicts)).await.is_err() {
            return;
        }
    }
}

/// Has each port's questions answered together.
async fn answer(
    judges: &[Judge],
    asked: &[Question],
    judged: &mpsc::Sender<Judged>,
) -> Vec<Vec<Holds>> {
    let mut verdicts = vec![Vec::new(); asked.len()];
    for (port, judge) in (0..).zip(judges) {
        let of_port: Vec<usize> = (0..asked.len())
            .filter(|index| asked[*index].port == port)
            .collect();
        if of_port.is_empty() {
            continue;
        }
        let mut messages = Vec::with_capacity(of_port.len());
        for index in &of_port {
            messages.push(message(&asked[*index]));
        }
        let mut trouble = |why: &str| {
            // Said again at the next try, if nobody listens now.
            judged.try_send(Judged::Trouble(why.to_owned())).ok();
        };
        let found = judge.judge(messages, &mut trouble).await;
        for (index, verdict) in of_port.into_iter().zip(found) {
            verdicts[index] = verdict;
        }
    }
    verdicts
}

fn message(question: &Question) -> Box<RawValue> {
    let text = String::from_utf8_lossy(&question.message).into_owned();
    RawValue::from_string(text).expect("an output was encoded as JSON")
}
