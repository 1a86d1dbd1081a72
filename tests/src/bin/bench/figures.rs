//! The figures, and the only place of the benchmark that prints.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::Plan;

/// What was measured, in order.
pub(crate) struct Figures {
    machine: Vec<(String, String)>,
    rows: Vec<Row>,
    began: Instant,
}

struct Row {
    key: &'static str,
    what: &'static str,
    value: f64,
    unit: &'static str,
}

impl Figures {
    /// Says what machine this is and which versions are in play.
    pub(crate) fn of_this_machine(plan: &Plan) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            text.lines()
                .find(|line| line.starts_with(name))
                .and_then(|line| line.split_once(':'))
                .map_or_else(
                    || "unknown".to_owned(),
                    |(_, value)| value.trim().to_owned(),
                )
        };
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let machine = vec![
            (
                "processor".into(),
                format!(
                    "{}, {cores} cores",
                    field(&read("/proc/cpuinfo"), "model name")
                ),
            ),
            ("memory".into(), field(&read("/proc/meminfo"), "MemTotal")),
            (
                "kernel".into(),
                read("/proc/sys/kernel/osrelease").trim().to_owned(),
            ),
            ("broker".into(), plan.broker_version.clone()),
            ("towpath".into(), env!("CARGO_PKG_VERSION").to_owned()),
            (
                "build".into(),
                if cfg!(debug_assertions) {
                    "dev"
                } else {
                    "release"
                }
                .to_owned(),
            ),
        ];
        Self {
            machine,
            rows: Vec::new(),
            began: Instant::now(),
        }
    }

    /// Adds a figure.
    pub(crate) fn add(
        &mut self,
        key: &'static str,
        what: &'static str,
        value: f64,
        unit: &'static str,
    ) {
        self.rows.push(Row {
            key,
            what,
            value,
            unit,
        });
    }

    /// Adds a ratio.
    pub(crate) fn ratio(&mut self, key: &'static str, what: &'static str, value: f64) {
        self.add(key, what, value, "×");
    }

    /// Says what is being measured now.
    #[expect(
        clippy::print_stderr,
        reason = "progress, beside the result on standard output"
    )]
    pub(crate) fn progress(&self, what: &str) {
        eprintln!("[{:>5.1} s] {what}", self.began.elapsed().as_secs_f64());
    }

    /// Prints the table, and writes the JSON if a file is named.
    #[expect(clippy::print_stdout, reason = "the result")]
    pub(crate) fn print(&self, json: Option<PathBuf>) -> Result<()> {
        for (key, value) in &self.machine {
            println!("{key:>10}  {value}");
        }
        println!();
        for row in &self.rows {
            println!("{:<52} {:>12} {}", row.what, pretty(row.value), row.unit);
        }
        if let Some(path) = json {
            let machine: serde_json::Map<String, Value> = self
                .machine
                .iter()
                .map(|(key, value)| (key.clone(), json!(value)))
                .collect();
            let figures: Vec<Value> = self
                .rows
                .iter()
                .map(|row| json!({"key": row.key, "what": row.what, "value": row.value, "unit": row.unit}))
                .collect();
            let text =
                serde_json::to_string_pretty(&json!({"machine": machine, "figures": figures}))?;
            std::fs::write(&path, text + "\n")
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}

fn pretty(value: f64) -> String {
    if value < 100.0 {
        return format!("{value:.1}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
