//! `./chaos`: breaks everything, on a schedule that a seed gives, and counts what came out.
//!
//! A flow runs on real Docker and real RabbitMQ: its trigger polls numbered orders from this
//! program, and its two last actions post each of them back to it, one of them with `once: true`.
//! Meanwhile agents, step processes, containers, networks, the broker, the control plane and, if it
//! is its own, the engine are killed, paused, cut and restarted. Then the faults stop, and nobody
//! helps. What is missing or was done twice is named.

mod clock;
mod command;
mod engine;
mod evidence;
mod fault;
mod flow;
mod injector;
mod operator;
mod options;
mod printer;
mod results;
mod schedule;
mod source;
mod target;
mod web;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser as _;
use towpath_tests::{BrokerVersion, Instance};

use crate::clock::Clock;
use crate::injector::Injector;
use crate::operator::Operator;
use crate::options::Options;
use crate::printer::say;
use crate::results::Results;
use crate::target::Target;

/// How long nothing may arrive, with messages missing, before they count as lost.
const SILENCE_MAX: Duration = Duration::from_secs(180);

/// How long nothing has to arrive, with none missing, before no more duplicates are expected.
const SETTLED_AFTER: Duration = Duration::from_secs(10);

/// How long states may take to say that everything runs, at the end.
const RUNNING_WITHIN: Duration = Duration::from_secs(180);

/// How often progress is said.
const PROGRESS_EVERY: Duration = Duration::from_secs(15);

fn main() -> ExitCode {
    let options = Options::parse();
    let kinds = match options.kinds() {
        Ok(kinds) => kinds,
        Err(error) => {
            say(&format!("error: {error}"));
            return ExitCode::from(2);
        }
    };
    let planned = schedule::plan(options.seed, options.faults, options.gap(), &kinds);
    if options.plan {
        for fault in &planned {
            say(&fault.to_string());
        }
        return ExitCode::SUCCESS;
    }
    let results = run(&options, &planned);
    for line in results.lines() {
        say(&line);
    }
    if let Some(file) = &options.json
        && let Err(error) = std::fs::write(file, format!("{:#}\n", results.json()))
    {
        say(&format!(
            "error: cannot write `{}`: {error}",
            file.display()
        ));
        return ExitCode::from(2);
    }
    if results.is_right() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn run(options: &Options, planned: &[schedule::Planned]) -> Results {
    let began = Instant::now();
    let clock = Arc::new(Clock::new(schedule::length(planned, options.gap())));
    let target = Arc::new(Target::new(options.messages, options.seed));
    let web = web::serve(options.messages, Arc::clone(&clock), Arc::clone(&target));
    let instance = Arc::new(Instance::start_linked(
        BrokerVersion::V40,
        BrokerVersion::V40.alone(),
        "",
    ));
    let flow = flow::Template {
        base: format!("http://{}:{}", instance.gateway(), web.port),
        tag: options.tag.clone(),
        once: !options.plain,
    };
    instance.apply(&flow.text(0));
    say(&format!(
        "seed {}: {} messages, {} faults over {:.0} s; `{}` runs",
        options.seed,
        options.messages,
        planned.len(),
        clock.length().as_secs_f64(),
        flow::NAME,
    ));

    let operator = Operator::start(Arc::clone(&instance));
    let mut injector = Injector::new(
        Arc::clone(&instance),
        Arc::clone(&target),
        flow,
        operator,
        options.engine(),
    );
    disturb(&clock, &target, &mut injector, planned);
    clock.finish();
    injector.heal_everything();
    let (faults, operations) = injector.finish();
    say("the faults have stopped; waiting for everything to arrive");
    let quiet_since = Instant::now();
    converge(&target, quiet_since);
    let states = evidence::states_when_running(&instance, RUNNING_WITHIN);
    let dead = evidence::dead_letters(&instance);
    let results = Results {
        seed: options.seed,
        tally: target.tally(),
        faults,
        operations,
        states,
        dead,
        converged: quiet_since.elapsed(),
        took: began.elapsed(),
        once: !options.plain,
    };
    if !results.is_right() {
        let folder = options.evidence();
        match evidence::keep(&instance, &results, &folder) {
            Ok(()) => say(&format!(
                "what is needed to find out is in {}",
                folder.display()
            )),
            Err(error) => say(&format!("error: cannot keep the evidence: {error}")),
        }
    }
    results
}

/// Lets time pass, and breaks and heals what the schedule says.
fn disturb(clock: &Clock, target: &Target, injector: &mut Injector, planned: &[schedule::Planned]) {
    let mut said = Instant::now();
    for step in schedule::steps(planned) {
        while !clock.advance_to(step.at) {
            std::thread::sleep(Duration::from_millis(50));
            if said.elapsed() > PROGRESS_EVERY {
                said = Instant::now();
                say(&format!(
                    "{:>5.0} s  {}",
                    clock.now().as_secs_f64(),
                    target.tally().progress()
                ));
            }
        }
        let began = Instant::now();
        match step.what {
            schedule::What::Inject(index) => injector.inject(&planned[index]),
            schedule::What::Heal(index) => injector.heal(&planned[index]),
        }
        clock.stand_still(began.elapsed());
    }
    while !clock.advance_to(clock.length()) {
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until everything has arrived and nothing comes any more, or until nothing comes and
/// something is missing.
fn converge(target: &Target, since: Instant) {
    let mut said = Instant::now();
    loop {
        let tally = target.tally();
        let silence = tally.last.map_or(since, |last| last.max(since)).elapsed();
        let limit = if tally.missing().is_empty() {
            SETTLED_AFTER
        } else {
            SILENCE_MAX
        };
        if silence > limit {
            return;
        }
        if said.elapsed() > PROGRESS_EVERY {
            said = Instant::now();
            say(&tally.progress());
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}
