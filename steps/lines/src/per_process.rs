//! One program that answers each line with a line.

use std::io;
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::sync::Mutex;
use tokio::time::timeout;
use towpath_step::{Context, Result, StepError};

use crate::State;
use crate::output::{Line, OUTPUT_LINE_MAX, json, read_line, too_long};
use crate::program::{Program, fate, log_errors};
use crate::settings::Config;

/// How long the last words of a program are read after its end.
const AFTER_END: Duration = Duration::from_secs(1);

/// The program, while there is one.
///
/// A message takes it out and puts it back when it has its answer. So a program whose answer did not
/// come (it failed, the message was cancelled) is dropped, which kills it, and the next message
/// starts another: an answer can never be taken for that of another message.
#[derive(Debug, Default)]
pub(crate) struct Kept(Mutex<Option<Program>>);

impl Kept {
    /// Gives the program the body, and emits its answer; `null` is no output.
    pub(crate) async fn handle(&self, body: &RawValue, ctx: &Context<Config, State>) -> Result<()> {
        let mut kept = self.0.lock().await;
        let mut program = match kept.take() {
            Some(program) => program,
            None => Program::start(&ctx.state.settings.command, &[])?,
        };
        let answer = ask(&mut program, body, ctx).await?;
        let answer = json(&answer)?;
        *kept = Some(program);
        drop(kept);
        ctx.emit(answer).await
    }
}

/// Writes a line and reads a line. What the program says on standard error meanwhile is logged with
/// this message.
async fn ask(
    program: &mut Program,
    body: &RawValue,
    ctx: &Context<Config, State>,
) -> Result<Vec<u8>> {
    let mut answer = Vec::new();
    let read = {
        let Program {
            stdin,
            stdout,
            stderr,
            last_lines,
            ..
        } = &mut *program;
        let exchange = exchange(stdin.as_mut(), stdout, body, &mut answer);
        let log = log_errors(stderr, last_lines, ctx);
        tokio::pin!(exchange, log);
        // Both are polled until the exchange is over; the log may end before, if the program
        // closes its standard error.
        tokio::select! {
            read = &mut exchange => {
                let read = read?;
                if read == Line::End {
                    // The program's last words explain its end.
                    drop(timeout(AFTER_END, log).await);
                }
                read
            }
            logged = &mut log => {
                logged?;
                exchange.await?
            }
        }
    };
    match read {
        Line::Whole => Ok(answer),
        Line::Cut => Err(too_long()),
        Line::End => {
            let status = program.child.wait().await?;
            fate(status, &program.last_lines)?;
            Err(StepError::retry(
                "the program exited without an answer (exit code 0)",
            ))
        }
    }
}

async fn exchange(
    stdin: Option<&mut ChildStdin>,
    stdout: &mut BufReader<ChildStdout>,
    body: &RawValue,
    answer: &mut Vec<u8>,
) -> io::Result<Line> {
    let line = [body.get().as_bytes(), b"\n"].concat();
    let give = async {
        if let Some(stdin) = stdin {
            // If it does not read, its end says more than the pipe's.
            drop(stdin.write_all(&line).await);
        }
    };
    tokio::join!(give, read_line(stdout, answer, OUTPUT_LINE_MAX)).1
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use towpath_step::Fate;
    use towpath_step::testing::{Outcome, TestRun};

    use super::Kept;
    use crate::settings::{Arguments, Settings};
    use crate::{State, handle};

    async fn run(script: &str, bodies: Vec<serde_json::Value>) -> Vec<Outcome> {
        let words = ["--per", "process", "--", "sh", "-c", script].map(str::to_owned);
        let path = "/usr/bin:/bin".as_ref();
        let settings = Settings::new(
            &crate::Config::default(),
            Arguments::parse(words).unwrap(),
            path,
        );
        let state = State {
            settings: settings.unwrap(),
            kept: Kept::default(),
        };
        TestRun::action(handle)
            .config(json!({}))
            .state(state)
            .inputs(bodies)
            .await
    }

    #[tokio::test]
    async fn one_program_answers_each_line() {
        let script = "n=0; while read line; do n=$((n+1)); echo \"[$n, $line]\"; done";
        let outcomes = run(script, (0..50).map(|n| json!(n)).collect()).await;
        let mut counts: Vec<_> = outcomes
            .iter()
            .map(|outcome| outcome.bodies()[0][0].as_u64())
            .collect();
        counts.sort_unstable();
        assert_eq!(
            counts,
            (1..=50).map(Some).collect::<Vec<_>>(),
            "one process counted all of them"
        );
        for (n, outcome) in outcomes.iter().enumerate() {
            assert_eq!(outcome.bodies()[0][1], n, "each has its own answer");
        }
    }

    #[tokio::test]
    async fn a_program_that_dies_fails_one_message_and_is_started_again() {
        let script =
            "while read line; do [ $line = 1 ] && { echo dying >&2; exit 65; }; echo $line; done";
        let outcomes = run(script, vec![json!(0), json!(1), json!(2)]).await;
        assert_eq!(outcomes[0].bodies(), [&json!(0)]);
        assert_eq!(outcomes[1].fate(), Some(Fate::Permanent));
        assert_eq!(outcomes[1].failure.as_ref().unwrap().chain, ["dying"]);
        assert_eq!(outcomes[2].bodies(), [&json!(2)]);
    }

    #[tokio::test]
    async fn null_is_no_output_and_what_is_not_json_is_permanent() {
        let outcomes = run(
            "read line; echo null; read line; echo oops; sleep 600",
            vec![json!(0), json!(1)],
        )
        .await;
        assert!(outcomes[0].is_done() && outcomes[0].outputs.is_empty());
        assert_eq!(
            outcomes[1].reason(),
            "the program wrote a line that is not JSON: `oops`"
        );
    }
}
