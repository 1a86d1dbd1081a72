//! A program started for each message.

use std::io;
use std::time::Duration;

use serde_json::value::RawValue;
use tokio::io::AsyncWriteExt;
use tokio::process::{ChildStdin, ChildStdout};
use tokio::time::timeout;
use towpath_step::{Context, Result};

use crate::State;
use crate::output::{Line, OUTPUT_LINE_MAX, json, read_line, too_long};
use crate::program::{Program, fate, log_errors};
use crate::settings::Config;

/// How long what a program wrote is read after its end: what it started may hold its pipes open.
const AFTER_END: Duration = Duration::from_secs(1);

/// Starts the program, gives it the body, emits each line it writes, and waits for its end.
///
/// An agent drops the outputs of a message that failed, so they are emitted as they come.
pub(crate) async fn handle(body: &RawValue, ctx: &Context<Config, State>) -> Result<()> {
    let variables = [
        ("TOWPATH_MESSAGE_ID", ctx.idempotency_key()),
        ("TOWPATH_ATTEMPT", ctx.attempt().to_string()),
    ];
    let mut program = Program::start(&ctx.state.settings.command, &variables)?;
    let stdin = program.stdin.take();
    let status = {
        let talk = async {
            tokio::try_join!(
                give(stdin, body),
                emit_outputs(&mut program.stdout, ctx),
                log_errors(&mut program.stderr, &mut program.last_lines, ctx),
            )
        };
        tokio::pin!(talk);
        // Both branches are cancel-safe: `wait` may be called again, and `talk` goes on where it was.
        tokio::select! {
            talked = &mut talk => {
                talked?;
                program.child.wait().await?
            }
            status = program.child.wait() => {
                let status = status?;
                if let Ok(talked) = timeout(AFTER_END, talk).await {
                    talked?;
                } else {
                    ctx.log_warn("the program left something running that holds its output open: killed");
                }
                status
            }
        }
    };
    let result = fate(status, &program.last_lines);
    program.kill();
    result
}

/// Writes the body and closes. A program may well not read it.
async fn give(stdin: Option<ChildStdin>, body: &RawValue) -> Result<()> {
    let Some(mut stdin) = stdin else {
        return Ok(());
    };
    let line = [body.get().as_bytes(), b"\n"].concat();
    match stdin.write_all(&line).await {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

async fn emit_outputs(
    stdout: &mut tokio::io::BufReader<ChildStdout>,
    ctx: &Context<Config, State>,
) -> Result<()> {
    let mut line = Vec::new();
    loop {
        match read_line(stdout, &mut line, OUTPUT_LINE_MAX).await? {
            Line::End => return Ok(()),
            Line::Cut => return Err(too_long()),
            Line::Whole if line.trim_ascii().is_empty() => {}
            Line::Whole => ctx.emit(json(&line)?).await?,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use towpath_step::Fate;
    use towpath_step::testing::{Outcome, TestRun};

    use crate::per_process::Kept;
    use crate::settings::{Arguments, Settings};
    use crate::{State, handle};

    async fn run(script: &str, body: serde_json::Value) -> Outcome {
        let words = ["--", "sh", "-c", script].map(str::to_owned);
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
            .input(body)
            .await
    }

    #[tokio::test]
    async fn each_line_is_an_output() {
        let outcome = run(
            "read body; echo \"$body\"; echo; echo '{\"n\": 2}'; echo 3",
            json!({"a": 1}),
        )
        .await;
        assert!(outcome.is_done(), "{outcome:?}");
        assert_eq!(
            outcome.bodies(),
            [&json!({"a": 1}), &json!({"n": 2}), &json!(3)]
        );
        assert!(run("cat >/dev/null", json!(1)).await.outputs.is_empty());
    }

    #[tokio::test]
    async fn the_exit_code_is_the_fate() {
        for (code, fate) in [(75, Fate::Retry), (65, Fate::Permanent), (1, Fate::Retry)] {
            let outcome = run(&format!("echo oops >&2; exit {code}"), json!(1)).await;
            let failure = outcome.failure.unwrap();
            assert_eq!(failure.fate, fate);
            assert!(
                failure.reason.contains(&code.to_string()),
                "{}",
                failure.reason
            );
            assert_eq!(failure.chain, ["oops"]);
            assert_eq!(outcome.logs[0].text, "oops");
        }
        let outcome = run("kill -9 $$", json!(1)).await;
        assert_eq!(outcome.fate(), Some(Fate::Retry));
        assert_eq!(outcome.reason(), "the program was killed by signal 9");
    }

    #[tokio::test]
    async fn what_is_not_json_is_permanent() {
        let outcome = run("echo 1; echo hello; sleep 600", json!(1)).await;
        assert_eq!(outcome.fate(), Some(Fate::Permanent));
        assert_eq!(
            outcome.reason(),
            "the program wrote a line that is not JSON: `hello`"
        );
    }

    #[tokio::test]
    async fn a_line_above_the_limit_is_permanent() {
        let outcome = run("yes x | tr -d '\\n'", json!(1)).await;
        assert_eq!(
            outcome.reason(),
            "the program wrote a line of more than 1048576 bytes"
        );
    }

    #[tokio::test]
    async fn a_large_body_and_output_pass_each_other() {
        let text = "x".repeat(900_000);
        let outcome = run("cat", json!(text)).await;
        assert_eq!(outcome.bodies(), [&json!(text)]);
    }

    #[tokio::test]
    async fn a_program_that_does_not_read_is_no_failure() {
        let outcome = run("echo 1", json!("x".repeat(900_000))).await;
        assert_eq!(outcome.bodies(), [&json!(1)]);
    }

    #[tokio::test]
    async fn what_a_program_leaves_running_is_not_waited_for() {
        let outcome = run("sleep 600 & echo 1", json!(1)).await;
        assert!(outcome.is_done());
        assert_eq!(outcome.bodies(), [&json!(1)]);
        assert!(outcome.logs[0].text.contains("left something running"));
    }

    #[tokio::test]
    async fn the_program_knows_its_message_and_not_the_agents_pipes() {
        let outcome = run(
            "echo \"\\\"$TOWPATH_MESSAGE_ID $TOWPATH_ATTEMPT $(readlink /proc/self/fd/3)\\\"\"",
            json!(1),
        )
        .await;
        assert_eq!(
            outcome.bodies(),
            [&json!("00000000000000000000000000000001 1 /dev/null")]
        );
    }
}
