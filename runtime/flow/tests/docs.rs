//! Every flow on a page of the manual is a flow: it passes the check, without a warning.
//!
//! A flow is a fenced block of `yaml` that has a line `flow: …`. One that is to show a mistake is
//! fenced as `yaml wrong`, and must not pass.

#![expect(clippy::unwrap_used, reason = "what a test needs must be there")]

use std::fs;
use std::path::{Path, PathBuf};

use towpath_flow::{Facts, Severity, Source, check};

/// A fenced block: its page and line, what it is fenced as, and its text.
struct Block {
    place: String,
    fence: String,
    text: String,
}

fn pages() -> Vec<PathBuf> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut folders = vec![repository.clone(), repository.join("docs")];
    let steps = fs::read_dir(repository.join("steps")).unwrap();
    folders.extend(steps.map(|entry| entry.unwrap().path()));
    let mut pages: Vec<PathBuf> = folders
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flat_map(|entries| entries.map(|entry| entry.unwrap().path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    pages.sort();
    pages
}

fn blocks(page: &Path) -> Vec<Block> {
    let text = fs::read_to_string(page).unwrap();
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (number, line) in text.lines().enumerate() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(fence)) => {
                open = Some(Block {
                    place: format!("{}:{}", page.display(), number + 1),
                    fence: fence.trim().to_owned(),
                    text: String::new(),
                });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    blocks
}

#[test]
fn every_flow_of_the_manual_passes_the_check() {
    let mut count = 0;
    for block in pages().iter().flat_map(|page| blocks(page)) {
        let is_flow = block.text.lines().any(|line| line.starts_with("flow: "));
        if !is_flow || !matches!(&*block.fence, "yaml" | "yaml wrong") {
            continue;
        }
        count += 1;
        let source = Source::new(block.place.as_str(), block.text.as_str());
        match (check(&source, &Facts::default()), &*block.fence) {
            (Ok(checked), "yaml") => {
                let warnings = checked.warnings.count(Severity::Warning);
                assert_eq!(warnings, 0, "{}", checked.warnings);
            }
            (Err(found), "yaml") => panic!("{found}"),
            (checked, _) => assert!(checked.is_err(), "{} is no mistake", block.place),
        }
    }
    // Those of the README and of docs/flow-file.md at least: the blocks were really found.
    assert!(count >= 2, "only {count} flows were found");
}
